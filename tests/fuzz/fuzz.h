/* fuzz.h: what the fuzz targets share.
 *
 * Each target is one file with LLVMFuzzerTestOneInput. Readers take files, so
 * an input is written to a directory in memory first; its name is that of the
 * process, so that jobs do not meet. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include "deepseek.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The directory of this process; fuzz.sh says where and removes it. */
static inline const char *fuzz_dir(void)
{
    static char dir[160];
    const char *in = getenv("FUZZ_DIR");
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s/%ld", in ? in : "/tmp",
                 (long)getpid());
        mkdir(dir, 0700);
    }
    return dir;
}

/* Writes NAME in that directory; the path is good until the next call. */
static inline const char *fuzz_file(const char *name, const uint8_t *data,
                                    size_t size)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", fuzz_dir(), name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f))
        abort();
    return path;
}

#define MUST(condition)                                             \
    do {                                                            \
        if (!(condition)) {                                         \
            fprintf(stderr, "does not hold: %s\n", #condition);     \
            abort();                                                \
        }                                                           \
    } while (0)

#endif
