/* temp.h: a directory of its own for a test program that writes files.
 *
 * The program works inside it, so that file names in messages are short and
 * the same everywhere. Define _XOPEN_SOURCE 700 before the first include. */
#ifndef TESTS_TEMP_H
#define TESTS_TEMP_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char temp_dir[4096];

/* For cmocka_run_group_tests: enters the directory, removes it at the end. */
static int temp_begin(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(temp_dir, sizeof temp_dir, "%s/deepseek-XXXXXX",
             base != NULL ? base : "/tmp");
    return mkdtemp(temp_dir) != NULL ? chdir(temp_dir) : -1;
}

static void temp_empty(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        char path[8192];
        if (strcmp(entry->d_name, ".") == 0
            || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (unlink(path) != 0) {
            temp_empty(path);
            rmdir(path);
        }
    }
    if (d != NULL)
        closedir(d);
}

static int temp_end(void **state)
{
    (void)state;
    temp_empty(temp_dir);
    return chdir("/") == 0 ? rmdir(temp_dir) : -1;
}

/* How many names the directory holds. */
static inline int temp_count(const char *dir)
{
    DIR *d = opendir(dir);
    int n = 0;
    while (d != NULL && readdir(d) != NULL)
        n++;
    if (d != NULL)
        closedir(d);
    return n - 2;
}

static inline void temp_write(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

#endif
