/* program.h: the program run as a child, in a directory of its own.
 *
 * DEEPSEEK names it, else ./deepseek. Define _XOPEN_SOURCE 700 before the first
 * include. */
#ifndef TESTS_PROGRAM_H
#define TESTS_PROGRAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "temp.h"

typedef struct {
    int status;
    char out[1 << 16], err[1 << 12]; /* texts */
} Result;

static Result last;

static inline void read_text(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    text[fread(text, 1, size - 1, f)] = '\0';
    fclose(f);
}

/* The whole of sh's line; %s of it is never a stranger's. */
static inline int shell(const char *line)
{
    int status = system(line);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Runs ./deepseek with these words, as the shell reads them. No run may take
 * more than two minutes of a processor, sanitizers and all. */
static inline const Result *run_from(const char *input, const char *words)
{
    char line[2048];
    snprintf(line, sizeof line, "ulimit -t 120; ./deepseek %s >out 2>err <%s",
             words, input);
    last.status = shell(line);
    read_text("out", last.out, sizeof last.out);
    read_text("err", last.err, sizeof last.err);
    return &last;
}

static inline const Result *run(const char *words)
{
    return run_from("/dev/null", words);
}

static inline const Result *run_with(const char *input, const char *words)
{
    temp_write("in", input, strlen(input));
    return run_from("in", words);
}

/* As run, where all must be well; returns what was printed. */
static inline const char *done(const char *words)
{
    run(words);
    if (last.status != 0)
        fail_msg("%s: %s", words, last.err);
    return last.out;
}

/* The same in memory of its own. */
static inline char *done_dup(const char *words)
{
    char *copy = strdup(done(words));
    assert_non_null(copy);
    return copy;
}

/* The last run ended with this status and this one line. */
static inline void complains(const char *words, int status,
                             const char *message)
{
    char line[2048];
    snprintf(line, sizeof line, "deepseek: %s\n", message);
    if (last.status != status || strcmp(last.err, line) != 0)
        fail_msg("%s: wanted %d and %s, found %d and %s", words, status, line,
                 last.status, last.err);
}

/* Enters an empty directory that has the program and the tests' data. */
static inline int program_begin(void **state)
{
    const char *program = getenv("DEEPSEEK");
    char *binary = realpath(program != NULL ? program : "deepseek", NULL);
    char *data = realpath("tests/data", NULL);
    int failed = binary == NULL || data == NULL || temp_begin(state) != 0 ||
                 symlink(binary, "deepseek") != 0 ||
                 symlink(data, "data") != 0;
    free(binary);
    free(data);
    return failed ? -1 : 0;
}

#endif
