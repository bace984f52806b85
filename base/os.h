/* os.h: the few things only the system knows; zero where it does not tell. */
#ifndef BASE_OS_H
#define BASE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

double os_seconds(void);      /* a monotonic clock */
size_t os_peak_memory(void);  /* bytes, the greatest resident size so far */
bool os_is_terminal(FILE *stream);
/* Keeps other processes from locking this file until it is closed; false if
 * one has locked it. Where the system has no locks, always true. */
bool os_lock(FILE *file);
/* The directory that this program lies in, with its last '/': as the system
 * tells where it does (Linux), else as `name`, its argv[0], does. false: there
 * is none, as of a name that a shell found in PATH, or it is too long. */
bool os_program_dir(char *dir, size_t size, const char *name);

/* One line on a terminal that overwrites itself: "what 37 %". Silent in the
 * first second, on anything that is no terminal, and if `what` is NULL. */
typedef struct {
    const char *what;
    double start, shown; /* seconds; shown: of the last update */
    int width;           /* of what is visible; 0: nothing is */
} Progress;

void progress_begin(Progress *p, const char *what);
void progress_show(Progress *p, double done, double total);
/* The same with any text of one line instead. */
void progress_text(Progress *p, const char *text);
void progress_end(Progress *p); /* wipes the line */

#endif
