/* fault.c: makes one call into the C library fail, for check_faults.sh.
 *
 * Linked with --wrap for each function below, so that the program's own calls
 * arrive here; its sources stay as they are. FAULT_AT=n in the environment
 * lets the n-th of all these calls fail, as a full disk or a full memory
 * would, and creates the file FAULT_MARK; without it all calls go through. */
#include "base/device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int over;

static void end(void)
{
    over = 1;
}

/* Calls at exit are the compiler's, which counts lines there. */
static int due(const char *name)
{
    static long count;
    const char *at = getenv("FAULT_AT"), *mark = getenv("FAULT_MARK");
    if (count == 0)
        atexit(end);
    if (!at || over || ++count != strtol(at, NULL, 10))
        return 0;
    if (mark) {
        int fd = creat(mark, 0600);
        if (fd < 0 || write(fd, name, strlen(name)) < 0)
            abort();
        close(fd);
    }
    return 1;
}

/* glibc's mark of a stream that met an error: what ferror() reads. */
static void spoil(FILE *stream)
{
    stream->_flags |= 0x20;
}

#define WRAP(type, name, parameters, arguments, error, otherwise)       \
    type __real_##name parameters;                                      \
    type __wrap_##name parameters;                                      \
    type __wrap_##name parameters                                       \
    {                                                                   \
        if (!due(#name))                                                \
            return __real_##name arguments;                             \
        otherwise;                                                      \
        errno = error;                                                  \
        return FAILED_##name;                                           \
    }

#define FAILED_malloc NULL
#define FAILED_calloc NULL
#define FAILED_realloc NULL
#define FAILED_fopen64 NULL
#define FAILED_fdopen NULL
#define FAILED_fread 0
#define FAILED_fwrite 0
#define FAILED_fflush EOF
#define FAILED_fclose EOF
#define FAILED_fseek (-1)
#define FAILED_ftell (-1)
#define FAILED_fsync (-1)
#define FAILED_rename (-1)
#define FAILED_open64 (-1)
#define FAILED_fstat64 (-1)
#define FAILED_mmap64 MAP_FAILED
#define FAILED_mkdir (-1)
#define FAILED_opendir NULL
#define FAILED_getc EOF
#define FAILED_getchar EOF

WRAP(void *, malloc, (size_t n), (n), ENOMEM, )
WRAP(void *, calloc, (size_t n, size_t size), (n, size), ENOMEM, )
WRAP(void *, realloc, (void *p, size_t n), (p, n), ENOMEM, )
WRAP(FILE *, fopen64, (const char *path, const char *mode), (path, mode),
     EMFILE, )
WRAP(FILE *, fdopen, (int fd, const char *mode), (fd, mode), EMFILE, )
WRAP(size_t, fread, (void *p, size_t size, size_t n, FILE *s),
     (p, size, n, s), EIO, spoil(s))
WRAP(size_t, fwrite, (const void *p, size_t size, size_t n, FILE *s),
     (p, size, n, s), ENOSPC, spoil(s))
/* With nothing to write there is nothing that could fail. */
WRAP(int, fflush, (FILE *s), (s), ENOSPC,
     if (__fpending(s) == 0) return 0; spoil(s))
WRAP(int, fclose, (FILE *s), (s), ENOSPC, __real_fclose(s))
WRAP(int, fseek, (FILE *s, long at, int from), (s, at, from), ESPIPE, )
WRAP(long, ftell, (FILE *s), (s), ESPIPE, )
WRAP(int, fsync, (int fd), (fd), EIO, )
WRAP(int, rename, (const char *from, const char *to), (from, to), EIO, )
WRAP(int, fstat64, (int fd, struct stat64 *s), (fd, s), EIO, )
WRAP(void *, mmap64,
     (void *p, size_t n, int prot, int flags, int fd, off64_t at),
     (p, n, prot, flags, fd, at), ENOMEM, )
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), EACCES, )
WRAP(DIR *, opendir, (const char *path), (path), EMFILE, )

WRAP(int, getc, (FILE *s), (s), EIO, spoil(s))
WRAP(int, getchar, (void), (), EIO, spoil(stdin))

/* A device whose memory is full. */
const void *__real_device_weight(const void *p, size_t n, Error *err);
const void *__wrap_device_weight(const void *p, size_t n, Error *err);
const void *__wrap_device_weight(const void *p, size_t n, Error *err)
{
    if (!due("device_weight"))
        return __real_device_weight(p, n, err);
    snprintf(err->text, sizeof err->text, "the device is full");
    return NULL;
}

/* open's third argument is there only when a file is made. */
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, int mode);
int __wrap_open64(const char *path, int flags, int mode)
{
    if (!due("open"))
        return __real_open64(path, flags, mode);
    errno = EMFILE;
    return -1;
}
