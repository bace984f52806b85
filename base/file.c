/* file.c: mapping, reading and safe writing, over POSIX or plain C.
 *
 * First what only the system can do, once for POSIX and once for a bare C
 * library (compile with -DNO_POSIX to test that); then everything else, the
 * same for both.
 *
 * The two lists below are the one state in base/ that outlives a call: a
 * signal handler has no other way to learn which file an address belongs to,
 * or which temporary files to remove. An entry is complete before it is
 * linked, and freed after it is unlinked. */
#if !defined NO_POSIX && (defined __unix__ || defined __APPLE__)
#define _XOPEN_SOURCE 600
#define _FILE_OFFSET_BITS 64
#define HAVE_POSIX
#endif

#include "file.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_POSIX
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <time.h>
#endif

/* What changes when somebody writes to a file. */
typedef struct {
    uintmax_t device, inode, size;
    intmax_t time;
} Stamp;

typedef struct Entry {
    struct Entry *next;
    const unsigned char *data; /* a mapping's bytes; else NULL */
    size_t size;
    Stamp stamp;               /* of a mapping's file */
    char name[];
} Entry;

typedef Entry *volatile List;

static List mapped_files; /* what file_guard_mapped looks an address up in */
static List temp_files;   /* what file_remove_temps removes */

static Entry *entry_new(const char *name, Error *err)
{
    size_t n = strlen(name) + 1;
    Entry *e = allocate(1, sizeof *e + n, name, err);
    if (e != NULL)
        memcpy(e->name, name, n);
    return e;
}

static void entry_link(List *list, Entry *e)
{
    e->next = *list;
    *list = e;
}

static void entry_unlink(List *list, const Entry *e)
{
    Entry *at = *list;
    if (at == e) {
        *list = e->next;
        return;
    }
    while (at != NULL && at->next != e)
        at = at->next;
    if (at != NULL)
        at->next = e->next;
}

/* Why the last call of the C library failed. */
static const char *reason(void)
{
    return errno != 0 ? strerror(errno) : "unknown reason";
}

static int fail_to(const char *verb, const char *path, Error *err)
{
    return fail(err, "%s: cannot %s: %s", path, verb, reason());
}

#ifdef HAVE_POSIX

bool path_exists(const char *path)
{
    struct stat s = {0};
    return stat(path, &s) == 0;
}

bool path_is_dir(const char *path)
{
    struct stat s = {0};
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static bool is_regular(const char *path)
{
    struct stat s = {0};
    return stat(path, &s) == 0 && S_ISREG(s.st_mode);
}

static int system_mkdir(const char *path)
{
    return mkdir(path, 0777);
}

static long process_id(void)
{
    return (long)getpid();
}

/* A new file for writing; NULL if the name is taken. */
static FILE *create(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd < 0)
        return NULL;
    FILE *stream = fdopen(fd, "wb");
    if (stream == NULL) {
        close(fd);
        unlink(path);
    }
    return stream;
}

static int sync_stream(FILE *stream)
{
    if (fsync(fileno(stream)) == 0 || errno == EINVAL)
        return 0; /* EINVAL: a file system that has nothing to sync */
    return -1;
}

/* rename() replaces what has the name. */
static int rename_over(const char *from, const char *to)
{
    return rename(from, to);
}

/* The names in a directory are on the disk too. */
static int sync_dir(const char *path)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    int rc = fsync(fd) == 0 || errno == EINVAL ? 0 : -1;
    close(fd);
    return rc;
}

int dir_each(const char *path, EachName *each, void *context, Error *err)
{
    errno = 0;
    DIR *dir = opendir(path);
    int rc = 0;
    if (dir == NULL)
        return fail_to("list", path, err);
    while (rc == 0) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            rc = errno != 0 ? fail_to("list", path, err) : 0;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0
            && strcmp(entry->d_name, "..") != 0)
            rc = each(context, entry->d_name, err);
    }
    closedir(dir);
    return rc;
}

static int system_rmdir(const char *path)
{
    return rmdir(path);
}

/* A file, or a directory if it is empty. */
static void remove_temp(const char *path)
{
    if (unlink(path) != 0)
        rmdir(path);
}

static Stamp stamp_of(const struct stat *s)
{
    return (Stamp){(uintmax_t)s->st_dev, (uintmax_t)s->st_ino,
                   (uintmax_t)s->st_size, (intmax_t)s->st_mtime};
}

/* True where the path still leads to the file, which is not as it was. */
static bool has_changed(const char *path, const Stamp *was)
{
    struct stat s = {0};
    if (stat(path, &s) != 0)
        return false;
    Stamp is = stamp_of(&s);
    return is.device == was->device && is.inode == was->inode
        && (is.size != was->size || is.time != was->time);
}

/* Maps a regular file that is not empty; false where that cannot be done. */
static bool map(File *file, FILE *in, Stamp *stamp)
{
    struct stat s = {0};
    if (fstat(fileno(in), &s) != 0 || !S_ISREG(s.st_mode) || s.st_size <= 0
        || (uintmax_t)s.st_size > PTRDIFF_MAX)
        return false;
    void *data = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE,
                      fileno(in), 0);
    if (data == MAP_FAILED)
        return false;
    *file = (File){data, (size_t)s.st_size, true};
    *stamp = stamp_of(&s);
    return true;
}

static void unmap(File *file)
{
    munmap((void *)(uintptr_t)file->data, file->size);
}

static void say(const char *text)
{
    ssize_t n = write(STDERR_FILENO, text, strlen(text));
    (void)n;
}

static void on_bus_error(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (Entry *e = mapped_files; e != NULL; e = e->next) {
        if (at - (uintptr_t)e->data < e->size) {
            say(e->name);
            say(": was cut short or became unreadable while in use\n");
            file_remove_temps();
            _exit(1);
        }
    }
    signal(signal_number, SIG_DFL); /* not ours */
    raise(signal_number);
}

void file_guard_mapped(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

#else

bool path_exists(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f != NULL)
        fclose(f);
    return f != NULL || path_is_dir(path);
}

/* A directory cannot be read as a file: some libraries say so when it is
 * opened, others at the first byte. */
bool path_is_dir(const char *path)
{
    errno = 0;
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return errno == EACCES;
    bool unreadable = getc(f) == EOF && ferror(f);
    fclose(f);
    return unreadable;
}

static bool is_regular(const char *path)
{
    return path_exists(path) && !path_is_dir(path);
}

static int system_mkdir(const char *path)
{
    (void)path;
    errno = 0;
    return -1;
}

static long process_id(void)
{
    return (long)(time(NULL) % 1000000);
}

static FILE *create(const char *path)
{
    return fopen(path, "wb");
}

static int sync_stream(FILE *stream)
{
    (void)stream;
    return 0;
}

/* Some systems' rename() refuses a name that is taken. */
static int rename_over(const char *from, const char *to)
{
    if (rename(from, to) == 0)
        return 0;
    return remove(to) == 0 ? rename(from, to) : -1;
}

static int sync_dir(const char *path)
{
    (void)path;
    return 0;
}

int dir_each(const char *path, EachName *each, void *context, Error *err)
{
    (void)each;
    (void)context;
    return fail(err, "%s: this program was built without a way to list a "
                "directory", path);
}

/* None of these is called: dir_each fails, and nothing is mapped. */
#define system_rmdir(path) remove(path)
#define has_changed(path, was) ((void)(path), (void)(was), false)
#define unmap(file) ((void)(file))

static void remove_temp(const char *path)
{
    remove(path);
}

static bool map(File *file, FILE *in, Stamp *stamp)
{
    (void)file;
    (void)in;
    (void)stamp;
    return false;
}

void file_guard_mapped(void)
{
}

#endif

static FILE *open_stream(const char *path, Error *err)
{
    errno = 0;
    FILE *in = fopen(path, "rb");
    if (in == NULL)
        fail_to("open", path, err);
    return in;
}

/* A first guess, no more: a pipe has no size, and a file may grow. */
static size_t size_guess(FILE *in)
{
    long size = fseek(in, 0, SEEK_END) == 0 ? ftell(in) : -1;
    if (size >= 0 && fseek(in, 0, SEEK_SET) == 0 && size < LONG_MAX / 2)
        return (size_t)size + 1; /* one more, to meet the end at once */
    return 1 << 16;
}

static int grow(unsigned char **data, size_t *capacity, const char *path,
                Error *err)
{
    size_t more = *capacity < PTRDIFF_MAX / 2 ? 2 * *capacity : 0;
    unsigned char *p = more > 0 ? realloc(*data, more) : NULL;
    if (p == NULL)
        return fail(err, "%s: not enough memory to read it", path);
    *data = p;
    *capacity = more;
    return 0;
}

/* What reading a directory is called differs between systems. */
static int fail_to_read(const char *path, Error *err)
{
    int error = errno;
    if (path_is_dir(path))
        return fail(err, "%s: cannot read: is a directory", path);
    errno = error;
    return fail_to("read", path, err);
}

/* All bytes of the stream, in memory of our own. */
static int read_stream(File *file, FILE *in, const char *path, Error *err)
{
    size_t capacity = size_guess(in), n = 0, got;
    unsigned char *data = allocate(capacity, 1, path, err);
    if (data == NULL)
        return -1;
    errno = 0;
    while ((got = fread(data + n, 1, capacity - n, in)) > 0) {
        n += got;
        if (n == capacity && grow(&data, &capacity, path, err) != 0) {
            free(data);
            return -1;
        }
    }
    if (ferror(in)) {
        free(data);
        return fail_to_read(path, err);
    }
    *file = (File){data, n, false};
    return 0;
}

int file_read(File *file, const char *path, Error *err)
{
    *file = (File){0};
    FILE *in = open_stream(path, err);
    if (in == NULL)
        return -1;
    int rc = read_stream(file, in, path, err);
    fclose(in);
    return rc;
}

static int map_or_read(File *file, FILE *in, const char *path, Error *err)
{
    Stamp stamp = {0};
    if (!map(file, in, &stamp))
        return read_stream(file, in, path, err);
    Entry *e = entry_new(path, err);
    if (e == NULL) {
        file_close(file);
        return -1;
    }
    e->data = file->data;
    e->size = file->size;
    e->stamp = stamp;
    entry_link(&mapped_files, e);
    return 0;
}

int file_open(File *file, const char *path, Error *err)
{
    *file = (File){0};
    FILE *in = open_stream(path, err);
    if (in == NULL)
        return -1;
    int rc = map_or_read(file, in, path, err);
    fclose(in); /* a mapping outlives its descriptor */
    return rc;
}

static void forget_mapping(const unsigned char *data)
{
    Entry *e = mapped_files;
    while (e != NULL && e->data != data)
        e = e->next;
    if (e == NULL)
        return;
    entry_unlink(&mapped_files, e);
    free(e);
}

void file_close(File *file)
{
    if (file->mapped) {
        unmap(file);
        forget_mapping(file->data);
    } else {
        free((void *)(uintptr_t)file->data);
    }
    *file = (File){0};
}

int file_check_mapped(Error *err)
{
    for (const Entry *e = mapped_files; e != NULL; e = e->next) {
        if (has_changed(e->name, &e->stamp))
            return fail(err, "%s: was changed while in use", e->name);
    }
    return 0;
}

static int check_target(const char *path, bool force, Error *err)
{
    if (!path_exists(path))
        return 0;
    if (path_is_dir(path))
        return fail(err, "%s: cannot write: is a directory", path);
    if (!is_regular(path))
        return fail(err, "%s: cannot write: is not a regular file", path);
    if (!force)
        return fail(err, "%s: exists already; --force overwrites it", path);
    return 0;
}

/* Opens a name beside `path` that nothing has yet; its entry in *temp, linked
 * before there is a file that a signal should remove. */
static FILE *create_temp(const char *path, Entry **temp, Error *err)
{
    size_t n = strlen(path) + 48;
    char *name = allocate(n, 1, path, err);
    if (name == NULL)
        return NULL;
    for (int i = 0; i == 0 || (i < 100 && path_exists(name)); i++)
        snprintf(name, n, "%s.%ld-%d.tmp", path, process_id(), i);
    errno = 0;
    *temp = entry_new(name, err);
    free(name);
    if (*temp == NULL)
        return NULL;
    entry_link(&temp_files, *temp);
    FILE *stream = create((*temp)->name);
    if (stream == NULL)
        fail_to("create", path, err);
    return stream;
}

int out_open(OutFile *out, const char *path, bool force, Error *err)
{
    *out = (OutFile){0};
    if (check_target(path, force, err) != 0)
        return -1;
    char *copy = allocate(strlen(path) + 1, 1, path, err);
    Entry *temp = NULL;
    FILE *stream = copy != NULL ? create_temp(path, &temp, err) : NULL;
    if (stream == NULL) {
        if (temp != NULL)
            entry_unlink(&temp_files, temp);
        free(copy);
        free(temp);
        return -1;
    }
    strcpy(copy, path);
    *out = (OutFile){stream, copy, temp->name, force};
    return 0;
}

int out_write(OutFile *out, const void *bytes, size_t n, Error *err)
{
    if (out->stream == NULL)
        return fail(err, "written to a file that is not open");
    errno = 0;
    if (n > 0 && fwrite(bytes, 1, n, out->stream) != n)
        return fail_to("write", out->path, err);
    return 0;
}

int out_flush(OutFile *out, Error *err)
{
    if (out->stream == NULL)
        return fail(err, "flushed a file that is not open");
    errno = 0;
    if (ferror(out->stream) || fflush(out->stream) != 0)
        return fail_to("write", out->path, err);
    return 0;
}

/* Everything up to the disk; the stream is closed even when that fails. */
static int finish_stream(OutFile *out, Error *err)
{
    int rc = out_flush(out, err);
    if (rc == 0 && sync_stream(out->stream) != 0)
        rc = fail_to("write", out->path, err);
    if (fclose(out->stream) != 0 && rc == 0)
        rc = fail_to("write", out->path, err);
    out->stream = NULL;
    return rc;
}

int out_commit(OutFile *out, Error *err)
{
    if (out->stream == NULL)
        return fail(err, "committed a file that is not open");
    int rc = finish_stream(out, err);
    if (rc == 0)
        rc = check_target(out->path, out->force, err);
    if (rc == 0 && rename_over(out->temp, out->path) != 0)
        rc = fail_to("rename to this", out->path, err);
    if (rc != 0)
        remove_temp(out->temp);
    out_abort(out);
    return rc;
}

static Entry *temp_entry(const char *name)
{
    Entry *e = temp_files;
    while (e != NULL && e->name != name)
        e = e->next;
    return e;
}

void out_abort(OutFile *out)
{
    if (out->stream != NULL) {
        fclose(out->stream);
        remove_temp(out->temp);
    }
    Entry *e = temp_entry(out->temp);
    if (e != NULL)
        entry_unlink(&temp_files, e);
    free(e);
    free(out->path);
    *out = (OutFile){0};
}

int file_write(const char *path, bool force, const void *bytes, size_t n,
               Error *err)
{
    OutFile out;
    if (out_open(&out, path, force, err) != 0)
        return -1;
    if (out_write(&out, bytes, n, err) != 0) {
        out_abort(&out);
        return -1;
    }
    return out_commit(&out, err);
}

int temp_add(const char *path, Error *err)
{
    Entry *e = entry_new(path, err);
    if (e == NULL)
        return -1;
    entry_link(&temp_files, e);
    return 0;
}

void temp_forget(const char *path)
{
    Entry *e = temp_files, *newest = e;
    while (e != NULL && strcmp(e->name, path) != 0)
        e = e->next;
    if (e == NULL)
        return;
    Entry *older = e->next;
    temp_files = older;
    while (newest != older) {
        e = newest->next;
        free(newest);
        newest = e;
    }
}

/* The latest first: files before the directory that was made for them. */
void file_remove_temps(void)
{
    for (Entry *e = temp_files; e != NULL; e = e->next)
        remove_temp(e->name);
}

char *path_join(const char *dir, const char *name, Error *err)
{
    size_t n = strlen(dir), m = strlen(name);
    char *path = allocate(n + m + 2, 1, name, err);
    if (path == NULL)
        return NULL;
    memcpy(path, dir, n);
    if (n > 0 && dir[n - 1] != '/')
        path[n++] = '/';
    memcpy(path + n, name, m + 1);
    return path;
}

int make_dir(const char *path, Error *err)
{
    errno = 0;
    if (path_is_dir(path) || system_mkdir(path) == 0)
        return 0;
    return fail_to("make this directory", path, err);
}

static int remove_named(void *dir, const char *name, Error *err)
{
    char *path = path_join(dir, name, err);
    if (path == NULL)
        return -1;
    errno = 0;
    int rc = remove(path) == 0 ? 0 : fail_to("remove", path, err);
    free(path);
    return rc;
}

int dir_remove(const char *path, Error *err)
{
    if (dir_each(path, remove_named, (void *)(uintptr_t)path, err) != 0)
        return -1;
    errno = 0;
    return system_rmdir(path) == 0 ? 0 : fail_to("remove", path, err);
}

/* The directory that a path is in, to be freed. */
static char *parent_of(const char *path, Error *err)
{
    const char *slash = strrchr(path, '/');
    size_t n = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    char *parent = allocate(n + 2, 1, path, err);
    if (parent != NULL)
        memcpy(parent, n > 0 ? path : ".", n > 0 ? n : 1);
    return parent;
}

int dir_commit(const char *temp, const char *path, Error *err)
{
    char *parent = parent_of(path, err);
    int rc = -1;
    errno = 0;
    if (parent == NULL)
        return -1;
    if (path_exists(path))
        fail(err, "%s: exists already", path);
    else if (sync_dir(temp) != 0)
        fail_to("write", temp, err);
    else if (rename(temp, path) != 0)
        fail_to("rename to this", path, err);
    else
        rc = sync_dir(parent) == 0 ? 0 : fail_to("write", parent, err);
    free(parent);
    return rc;
}

int file_sync(FILE *stream, const char *path, Error *err)
{
    errno = 0;
    if (!ferror(stream) && fflush(stream) == 0 && sync_stream(stream) == 0)
        return 0;
    return fail_to("write", path, err);
}
