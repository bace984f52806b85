/* os.c: clock, memory and terminal, from POSIX where it is there. */
#if !defined NO_POSIX && (defined __unix__ || defined __APPLE__)
#define _XOPEN_SOURCE 600
#define HAVE_POSIX
#endif

#include "os.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#ifdef HAVE_POSIX

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

double os_seconds(void)
{
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t) != 0)
        return 0;
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

size_t os_peak_memory(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
#ifdef __APPLE__
    return (size_t)usage.ru_maxrss;
#else
    return (size_t)usage.ru_maxrss * 1024;
#endif
}

bool os_is_terminal(FILE *stream)
{
    return isatty(fileno(stream)) == 1;
}

bool os_lock(FILE *file)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fileno(file), F_SETLK, &lock) == 0
           || (errno != EACCES && errno != EAGAIN);
}

/* The program's path; false where there is no such link, or it was cut. */
static bool find_program(char *path, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", path, size);
    if (n <= 0 || (size_t)n >= size)
        return false;
    path[n] = 0;
    return true;
}

#else

/* Processor time: near enough for one busy thread. */
double os_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

size_t os_peak_memory(void)
{
    return 0;
}

bool os_is_terminal(FILE *stream)
{
    (void)stream;
    return false;
}

bool os_lock(FILE *file)
{
    (void)file;
    return true;
}

static bool find_program(char *path, size_t size)
{
    (void)path;
    (void)size;
    return false;
}

#endif

bool os_program_dir(char *dir, size_t size, const char *name)
{
    if (!find_program(dir, size)
        && snprintf(dir, size, "%s", name) >= (int)size)
        return false;
    char *slash = strrchr(dir, '/');
    if (slash == NULL)
        return false;
    slash[1] = 0;
    return true;
}

void progress_begin(Progress *p, const char *what)
{
    p->what = what;
    p->start = p->shown = os_seconds();
    p->width = 0;
}

static bool is_due(const Progress *p, double now)
{
    return p->what && now - p->start >= 1
           && (p->width == 0 || now - p->shown >= 0.1)
           && os_is_terminal(stderr);
}

/* Blanks cover what is left of a longer line before. */
static void show(Progress *p, const char *text, double now)
{
    int width = (int)strlen(text);
    int rest = p->width > width ? p->width - width : 0;
    fprintf(stderr, "\r%s%*s", text, rest, "");
    fflush(stderr);
    p->shown = now;
    p->width = width + rest;
}

void progress_show(Progress *p, double done, double total)
{
    char text[256];
    double now = os_seconds();
    if (!is_due(p, now))
        return;
    double part = total > 0 ? done / total : 0;
    int percent = part >= 1 ? 100 : part > 0 ? (int)(100 * part) : 0;
    snprintf(text, sizeof text, "%s %d %%", p->what, percent);
    show(p, text, now);
}

void progress_text(Progress *p, const char *text)
{
    double now = os_seconds();
    if (is_due(p, now))
        show(p, text, now);
}

void progress_end(Progress *p)
{
    if (p->width == 0)
        return;
    fprintf(stderr, "\r%*s\r", p->width, "");
    fflush(stderr);
    p->width = 0;
}
