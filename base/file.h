/* file.h: files read whole by mapping them, and files written safely.
 *
 * A written file appears under its name only when it is complete: bytes go to
 * a temporary name beside it, are synced, then renamed. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include "error.h"

#include <stdbool.h>
#include <stdio.h>

typedef struct {
    const unsigned char *data; /* read-only bytes, mapped or read */
    size_t size;
    bool mapped;
} File;

/* Maps `path` read-only where the system can, reads it otherwise (a pipe, an
 * empty file). A directory, a missing or an unreadable file is an error. */
int file_open(File *file, const char *path, Error *err);
/* As above, but always into memory of our own that the caller may change:
 * big-endian hosts swap bytes there. */
int file_read(File *file, const char *path, Error *err);
void file_close(File *file); /* a zeroed or closed File is fine */

typedef struct {
    FILE *stream; /* NULL when closed */
    char *path;   /* the final name */
    char *temp;   /* the name while writing */
    bool force;   /* the final name may exist */
} OutFile;

/* Refuses a path that exists unless `force`, and always one that is no regular
 * file. */
int out_open(OutFile *out, const char *path, bool force, Error *err);
int out_write(OutFile *out, const void *bytes, size_t n, Error *err);
/* Hands all bytes to the system, so that the temporary file can be read. */
int out_flush(OutFile *out, Error *err);
/* Flush, sync, rename: after 0 the whole file is there under its name, after
 * -1 nothing is left of it. */
int out_commit(OutFile *out, Error *err);
/* Removes the temporary file; harmless after a commit or a second time. */
void out_abort(OutFile *out);

/* out_open, out_write and out_commit in one. */
int file_write(const char *path, bool force, const void *bytes, size_t n,
               Error *err);

/* For main(): from now on, touching a mapped file that was cut short or can no
 * longer be read ends the program with status 1 and one line that names the
 * file, instead of SIGBUS. Does nothing where there is no such signal. */
void file_guard_mapped(void);
/* Names a mapped file that somebody has written to since, where the system can
 * tell: what was computed from it is worth nothing. A file that another one has
 * replaced under its name is still as it was. */
int file_check_mapped(Error *err);
/* For main()'s signal handlers: removes the temporary file of every OutFile
 * that is open, and what temp_add named. Calls only what a signal handler may
 * call. */
void file_remove_temps(void);
/* Until temp_forget, file_remove_temps removes this file, or directory if it is
 * empty, as well: a part of what is of no use before the rest is there. */
int temp_add(const char *path, Error *err);
/* Forgets this and all that came after it, at once: no signal finds some of
 * them. No OutFile that was opened in between may still be open. */
void temp_forget(const char *path);

bool path_exists(const char *path);
bool path_is_dir(const char *path);
/* "dir/name", to be freed; NULL when memory is short. */
char *path_join(const char *dir, const char *name, Error *err);
/* Makes one directory; an existing one is fine. */
int make_dir(const char *path, Error *err);
/* Calls each() for every name in a directory but "." and "..", in no order,
 * until it returns anything but 0, which is the result. An error where the
 * system has no such list. each() may rename or remove what it is called for.
 */
typedef int EachName(void *context, const char *name, Error *err);
int dir_each(const char *path, EachName *each, void *context, Error *err);
/* Removes a directory and the files in it; refuses one with directories. */
int dir_remove(const char *path, Error *err);
/* The temporary directory gets its name, which nothing may have yet, when all
 * that is in it is on the disk. */
int dir_commit(const char *temp, const char *path, Error *err);
/* What was written to the stream is on the disk. */
int file_sync(FILE *stream, const char *path, Error *err);

#endif
