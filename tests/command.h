/* command.h: the program run in a test's scratch directory, by tests that
 * call the library too (program.h is for those that only run it).
 *
 * DEEPSEEK names it, else ./deepseek. Define _XOPEN_SOURCE 700 before the first
 * include. */
#ifndef TESTS_COMMAND_H
#define TESTS_COMMAND_H

#include "support.h"

#include <sys/wait.h>

static char said[1 << 14];   /* stderr, or stdout where that is empty */

/* The exit status. */
static inline int run(const char *words)
{
    const char *program = getenv("DEEPSEEK");
    char line[4096], *here = realpath(program ? program : "./deepseek", NULL);
    assert_non_null(here);
    snprintf(line, sizeof line, "cd '%s' && '%s' %s >out 2>err </dev/null",
             scratch(""), here, words);
    free(here);
    int status = system(line);
    assert_true(WIFEXITED(status));
    static const char *const names[] = {"err", "out"};
    said[0] = '\0';
    for (int i = 0; i < 2 && said[0] == '\0'; i++) {
        FILE *f = fopen(scratch(names[i]), "rb");
        assert_non_null(f);
        said[fread(said, 1, sizeof said - 1, f)] = '\0';
        fclose(f);
    }
    return WEXITSTATUS(status);
}

static inline void wrong(const char *words, int status, const char *message)
{
    char line[1024];
    snprintf(line, sizeof line, "deepseek: %s\n", message);
    int found = run(words);
    if (found != status || strcmp(said, line) != 0)
        fail_msg("%s: wanted %d and %s, found %d and %s", words, status,
                 line, found, said);
}

static inline void put_text(const char *name, const char *text)
{
    put_file(scratch(name), text, strlen(text));
}

#endif
