/* error.h: how a function says what went wrong.
 *
 * Every function that can fail takes an Error last and returns 0, or -1 with
 * one line of text in it: the file, the tensor or key, what was wanted and what
 * was found. Nothing below main() prints or exits. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stddef.h>

typedef struct {
    char text[1024];
} Error;

#if defined(__GNUC__)
#define PRINTF_LIKE(at, first) \
    __attribute__((__format__(__printf__, at, first)))
#else
#define PRINTF_LIKE(at, first)
#endif

/* Writes the message and returns -1. Control characters, which a hostile file
 * may have put into a name, become '?', so that the message stays one line. */
int fail(Error *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* n zeroed elements of the given size; NULL with a message that names `what`
 * when memory is short or n * size overflows. n = 0 gives one element. The
 * caller frees it with free(). */
void *allocate(size_t n, size_t size, const char *what, Error *err);

#endif
