/* error.c: one line of text for what went wrong. */
#include "error.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void replace_controls(unsigned char *s)
{
    for (; *s != 0; s++) {
        if (*s < 0x20 || *s == 0x7f) {
            *s = '?';
        } else if (*s == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0) {
            s[0] = s[1] = '?'; /* U+0080 to U+009F, as UTF-8 */
        }
    }
}

/* Ends a text that did not fit with "...", between two characters. */
static void mark_cut(char *text, size_t size)
{
    size_t n = size - 4;
    while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    memcpy(text + n, "...", 4);
}

int fail(Error *err, const char *format, ...)
{
    char text[sizeof err->text]; /* an argument may be err->text itself */
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0)
        strcpy(text, "an error whose message could not be formatted");
    else if ((size_t)n >= sizeof text)
        mark_cut(text, sizeof text);
    replace_controls((unsigned char *)text);
    strcpy(err->text, text);
    return -1;
}

void *allocate(size_t n, size_t size, const char *what, Error *err)
{
    if (n == 0)
        n = 1;
    if (size == 0)
        size = 1;
    void *memory = n <= (size_t)PTRDIFF_MAX / size ? calloc(n, size) : NULL;
    if (memory == NULL)
        fail(err, "not enough memory for %s: %zu times %zu bytes", what, n,
             size);
    return memory;
}
