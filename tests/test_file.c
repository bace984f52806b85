/* Files appear whole or not at all, and what is wrong with one is said. */
#define _XOPEN_SOURCE 700
#include "base/file.h"
#include "tests/temp.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>

static void assert_file(const char *path, const char *text)
{
    Error err;
    File file;
    assert_int_equal(file_read(&file, path, &err), 0);
    assert_int_equal(file.size, strlen(text));
    assert_memory_equal(file.data, text, file.size);
    file_close(&file);
}

static int open_as(int (*open_file)(File *, const char *, Error *),
                   const char *path, Error *err)
{
    File file;
    int rc = open_file(&file, path, err);
    if (rc != 0)
        assert_null(file.data);
    file_close(&file);
    file_close(&file);
    return rc;
}

/* Both ways of opening refuse the path with this message. */
static void assert_refused(const char *path, const char *message)
{
    Error err;
    assert_int_equal(open_as(file_open, path, &err), -1);
    assert_string_equal(err.text, message);
    assert_int_equal(open_as(file_read, path, &err), -1);
    assert_string_equal(err.text, message);
}

static void test_unreadable(void **state)
{
    (void)state;
    assert_int_equal(mkdir("dir", 0777), 0);
    temp_write("plain", "x", 1);
    assert_refused("absent", "absent: cannot open: No such file or directory");
    assert_refused("plain/x", "plain/x: cannot open: Not a directory");
    assert_refused("dir", "dir: cannot read: is a directory");
    if (geteuid() == 0)
        return; /* root may read everything */
    chmod("plain", 0);
    assert_refused("plain", "plain: cannot open: Permission denied");
}

static void test_read(void **state)
{
    (void)state;
    static char bytes[300000];
    Error err;
    File file;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7 >> 3);
    static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 65536, 300000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        temp_write("sized", bytes, sizes[i]);
        assert_int_equal(file_open(&file, "sized", &err), 0);
        assert_int_equal(file.size, sizes[i]);
        assert_memory_equal(file.data, bytes, sizes[i]);
        file_close(&file);
        assert_int_equal(file_read(&file, "sized", &err), 0);
        assert_int_equal(file.size, sizes[i]);
        assert_memory_equal(file.data, bytes, sizes[i]);
        assert_false(file.mapped);
        ((unsigned char *)(uintptr_t)file.data)[0] = 1; /* it is ours */
        file_close(&file);
    }
}

/* A pipe does not know its size: 200,000 bytes of one. */
static void test_pipe(void **state)
{
    (void)state;
    Error err;
    File file;
    assert_int_equal(mkfifo("pipe", 0600), 0);
    pid_t child = fork();
    if (child == 0) {
        int fd = open("pipe", O_WRONLY);
        for (int i = 0; i < 2000; i++) {
            char block[100];
            memset(block, 'a' + i % 26, sizeof block);
            if (write(fd, block, sizeof block) != (ssize_t)sizeof block)
                _exit(1);
        }
        _exit(0);
    }
    assert_int_equal(file_open(&file, "pipe", &err), 0);
    assert_int_equal(file.size, 200000);
    for (size_t i = 0; i < file.size; i++)
        assert_int_equal(file.data[i], 'a' + i / 100 % 26);
    file_close(&file);
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
}

static void test_write(void **state)
{
    (void)state;
    Error err;
    OutFile out;
    int before = temp_count(".");
    assert_int_equal(out_open(&out, "new", false, &err), 0);
    assert_int_equal(out_write(&out, "one ", 4, &err), 0);
    assert_int_equal(out_write(&out, NULL, 0, &err), 0);
    assert_int_equal(out_write(&out, "two", 3, &err), 0);
    assert_false(path_exists("new"));
    assert_true(path_exists(out.temp));
    assert_int_equal(out_flush(&out, &err), 0);
    assert_file(out.temp, "one two");
    assert_int_equal(out_commit(&out, &err), 0);
    assert_null(out.stream);
    out_abort(&out);
    assert_file("new", "one two");
    assert_int_equal(temp_count("."), before + 1);
}

static void test_existing(void **state)
{
    (void)state;
    Error err;
    assert_int_equal(file_write("old", false, "old", 3, &err), 0);
    int before = temp_count(".");
    assert_int_equal(file_write("old", false, "new", 3, &err), -1);
    assert_string_equal(err.text,
                        "old: exists already; --force overwrites it");
    assert_file("old", "old");
    assert_int_equal(file_write("old", true, "newer", 5, &err), 0);
    assert_file("old", "newer");
    assert_int_equal(temp_count("."), before);
}

/* Somebody else makes the file while ours is being written. */
static void test_existing_late(void **state)
{
    (void)state;
    Error err;
    OutFile out;
    assert_int_equal(out_open(&out, "late", false, &err), 0);
    int before = temp_count(".");
    temp_write("late", "theirs", 6);
    assert_int_equal(out_commit(&out, &err), -1);
    assert_string_equal(err.text,
                        "late: exists already; --force overwrites it");
    assert_file("late", "theirs");
    assert_int_equal(temp_count("."), before);
}

static void test_bad_target(void **state)
{
    (void)state;
    Error err;
    assert_int_equal(mkdir("target", 0777), 0);
    assert_int_equal(file_write("target", true, "x", 1, &err), -1);
    assert_string_equal(err.text,
                        "target: cannot write: is a directory");
    assert_int_equal(file_write("nowhere/x", true, "x", 1, &err), -1);
    assert_string_equal(err.text, "nowhere/x: cannot create: No such file or"
                                  " directory");
#ifndef NO_POSIX
    assert_int_equal(mkfifo("fifo", 0600), 0);
    assert_int_equal(file_write("fifo", true, "x", 1, &err), -1);
    assert_string_equal(err.text,
                        "fifo: cannot write: is not a regular file");
#endif
}

static void test_abort(void **state)
{
    (void)state;
    Error err;
    OutFile out;
    int before = temp_count(".");
    assert_int_equal(out_open(&out, "aborted", false, &err), 0);
    assert_int_equal(out_write(&out, "x", 1, &err), 0);
    assert_int_equal(temp_count("."), before + 1);
    out_abort(&out);
    out_abort(&out);
    assert_int_equal(temp_count("."), before);
    assert_int_equal(out_write(&out, "x", 1, &err), -1);
    assert_string_equal(err.text, "written to a file that is not open");
    assert_int_equal(out_flush(&out, &err), -1);
    assert_string_equal(err.text, "flushed a file that is not open");
    assert_int_equal(out_commit(&out, &err), -1);
    assert_string_equal(err.text, "committed a file that is not open");
}

/* Two at once, also to one name, do not meet. */
static void test_two(void **state)
{
    (void)state;
    Error err;
    OutFile a, b;
    assert_int_equal(out_open(&a, "both", true, &err), 0);
    assert_int_equal(out_open(&b, "both", true, &err), 0);
    assert_string_not_equal(a.temp, b.temp);
    assert_int_equal(out_write(&a, "a", 1, &err), 0);
    assert_int_equal(out_write(&b, "b", 1, &err), 0);
    assert_int_equal(out_commit(&a, &err), 0);
    assert_file("both", "a");
    assert_int_equal(out_commit(&b, &err), 0);
    assert_file("both", "b");
}

/* A limit on file sizes stands for a full disk. */
static void test_full_disk(void **state)
{
    (void)state;
    Error err;
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 100000;
    signal(SIGXFSZ, SIG_IGN);
    int before = temp_count(".");
    static char bytes[200000];
    setrlimit(RLIMIT_FSIZE, &small);
    int whole = file_write("full", false, bytes, sizeof bytes, &err);
    Error late = {""}; /* the last bytes leave the buffer only at the end */
    int rest = file_write("full", false, bytes, 100001, &late);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(whole, -1);
    assert_string_equal(err.text, "full: cannot write: File too large");
    assert_int_equal(rest, -1);
    assert_string_equal(late.text, "full: cannot write: File too large");
    assert_int_equal(temp_count("."), before);
}

/* The descriptor is closed behind the stream's back. */
static void test_lost_handle(void **state)
{
    (void)state;
    Error err;
    OutFile out;
    int before = temp_count(".");
    assert_int_equal(out_open(&out, "lost", false, &err), 0);
    assert_int_equal(out_write(&out, "x", 1, &err), 0);
    close(fileno(out.stream));
    assert_int_equal(out_commit(&out, &err), -1);
    assert_string_equal(err.text, "lost: cannot write: Bad file descriptor");
    assert_int_equal(temp_count("."), before);
}

static void test_lost_temp(void **state)
{
    (void)state;
    Error err;
    OutFile a, b;
    int before = temp_count(".");
    assert_int_equal(out_open(&a, "a", false, &err), 0);
    assert_int_equal(out_open(&b, "b", false, &err), 0);
    assert_int_equal(temp_count("."), before + 2);
    file_remove_temps();
    assert_int_equal(temp_count("."), before);
    assert_int_equal(out_commit(&a, &err), -1);
    assert_string_equal(err.text, "a: cannot rename to this: No such file or "
                        "directory");
    out_abort(&b);
    assert_int_equal(temp_count("."), before);
}

/* A part of a whole that is not there: until it is forgotten, the end of the
 * program removes it, and the directory around it where that is empty. */
static void test_temp_add(void **state)
{
    (void)state;
    Error err;
    for (int kept = 0; kept < 2; kept++) {
        assert_int_equal(mkdir("whole", 0777), 0);
        assert_int_equal(temp_add("whole", &err), 0);
        assert_int_equal(temp_add("whole/part", &err), 0);
        assert_int_equal(temp_add("whole/absent", &err), 0);
        assert_int_equal(file_write("whole/part", false, "x", 1, &err), 0);
        if (kept) {
            temp_forget("whole");
            temp_forget("whole");
        }
        file_remove_temps();
        assert_int_equal(path_exists("whole/part"), kept);
#ifndef NO_POSIX
        assert_int_equal(path_exists("whole"), kept);
#else
        rmdir("whole"); /* C's remove() need not take a directory */
#endif
        temp_forget("whole");
        file_remove_temps();
        assert_int_equal(path_exists("whole/part"), kept);
    }
}

#ifndef NO_POSIX

/* Written to in place, in or beside its end; another file under its name is
 * none of ours. */
static void test_changed_while_mapped(void **state)
{
    (void)state;
    static const char *const changes[] = {
        "printf x >>used", "printf xy >used", "touch -d 2001-01-01 used"};
    Error err;
    File file;
    for (int i = 0; i < 3; i++) {
        temp_write("used", "abc", 3);
        assert_int_equal(file_open(&file, "used", &err), 0);
        assert_int_equal(file_check_mapped(&err), 0);
        assert_int_equal(system(changes[i]), 0);
        assert_int_equal(file_check_mapped(&err), -1);
        assert_string_equal(err.text, "used: was changed while in use");
        file_close(&file);
        assert_int_equal(file_check_mapped(&err), 0);
    }
    assert_int_equal(file_open(&file, "used", &err), 0);
    temp_write("other", "longer", 6);
    assert_int_equal(rename("other", "used"), 0);
    assert_int_equal(file_check_mapped(&err), 0);
    assert_int_equal(remove("used"), 0);
    assert_int_equal(file_check_mapped(&err), 0);
    file_close(&file);
}

/* What a child that touches the last page of a cut file leaves: its status,
 * its one line, and no temporary file. */
static void cut_in_child(const char *path)
{
    Error err;
    File other, file;
    OutFile out;
    file_guard_mapped();
    if (file_open(&other, "other", &err) != 0
        || file_open(&file, path, &err) != 0
        || out_open(&out, "half", false, &err) != 0
        || truncate(path, 10) != 0)
        _exit(2);
    volatile unsigned char byte = file.data[file.size - 1];
    (void)byte;
    _exit(3);
}

static size_t read_all(int fd, char *text, size_t n)
{
    size_t length = 0;
    ssize_t got;
    while ((got = read(fd, text + length, n - length)) > 0)
        length += (size_t)got;
    return length;
}

static void test_cut_while_mapped(void **state)
{
    (void)state;
    static char bytes[100000];
    temp_write("other", bytes, sizeof bytes);
    temp_write("cut", bytes, sizeof bytes);
    int before = temp_count("."), pipes[2], status;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], STDERR_FILENO);
        cut_in_child("cut");
    }
    close(pipes[1]);
    char lines[200];
    size_t n = read_all(pipes[0], lines, sizeof lines - 1);
    lines[n] = 0;
    close(pipes[0]);
    waitpid(child, &status, 0);
    assert_string_equal(lines,
                        "cut: was cut short or became unreadable while in "
                        "use\n");
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    assert_int_equal(temp_count("."), before);
}

/* A bus error that no file of ours explains stays a bus error. */
static void test_other_bus_error(void **state)
{
    (void)state;
    int status;
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        file_guard_mapped();
        raise(SIGBUS);
        _exit(0);
    }
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
}

#endif

static void test_paths(void **state)
{
    (void)state;
    Error err;
    static const char *const joins[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"},
        {"/", "b", "/b"}, {"a/b", "", "a/b/"},
    };
    for (size_t i = 0; i < sizeof joins / sizeof *joins; i++) {
        char *path = path_join(joins[i][0], joins[i][1], &err);
        assert_string_equal(path, joins[i][2]);
        free(path);
    }
    temp_write("some", "x", 1);
    assert_true(path_exists("some"));
    assert_false(path_is_dir("some"));
    assert_true(path_exists("."));
    assert_true(path_is_dir("."));
    assert_false(path_exists("none"));
    assert_false(path_is_dir("none"));
}

static void test_make_dir(void **state)
{
    (void)state;
    Error err;
#ifdef NO_POSIX
    assert_int_equal(make_dir("made", &err), -1);
    assert_string_equal(err.text, "made: cannot make this directory: unknown "
                        "reason");
    skip();
#endif
    assert_int_equal(make_dir("made", &err), 0);
    assert_true(path_is_dir("made"));
    assert_int_equal(make_dir("made", &err), 0);
    temp_write("taken", "x", 1);
    assert_int_equal(make_dir("taken", &err), -1);
    assert_string_equal(err.text,
                        "taken: cannot make this directory: File exists");
    assert_int_equal(make_dir("no/made", &err), -1);
    assert_string_equal(err.text, "no/made: cannot make this directory: No "
                        "such file or directory");
}

static int count_names(void *count, const char *name, Error *err)
{
    (void)err;
    assert_true(strcmp(name, "one") == 0 || strcmp(name, "two") == 0);
    return ++*(int *)count == 3 ? 7 : 0;
}

/* A log that goes on: what was written is in the file while it is open. */
static void test_sync(void **state)
{
    (void)state;
    Error err;
    FILE *f = fopen("log", "wb");
    assert_non_null(f);
    assert_true(fputs("a line\n", f) >= 0);
    assert_int_equal(file_sync(f, "log", &err), 0);
    assert_file("log", "a line\n");
    fclose(f);
    f = fopen("/dev/full", "wb");
    if (f == NULL)
        return; /* no such device here */
    fputc('x', f);
    assert_int_equal(file_sync(f, "log", &err), -1);
    assert_string_equal(err.text, "log: cannot write: No space left on "
                        "device");
    fclose(f);
}

static void test_directories(void **state)
{
    Error err;
    int count = 0;
    (void)state;
#ifdef NO_POSIX
    file_guard_mapped(); /* nothing is mapped */
    /* What plain C cannot do; one that is there already gets its name. */
    assert_int_equal(mkdir("d.tmp", 0777), 0);
    assert_int_equal(make_dir("d.tmp", &err), 0);
    assert_int_equal(dir_commit("d.tmp", "d", &err), 0);
    assert_int_equal(dir_each("d", count_names, &count, &err), -1);
    assert_string_equal(err.text, "d: this program was built without a way to "
                        "list a directory");
    assert_int_equal(dir_remove("d", &err), -1);
    assert_true(path_is_dir("d"));
    skip();
#endif
    assert_int_equal(make_dir("d.tmp", &err), 0);
    assert_int_equal(file_write("d.tmp/one", false, "1", 1, &err), 0);
    assert_int_equal(file_write("d.tmp/two", false, "2", 1, &err), 0);
    assert_int_equal(dir_commit("d.tmp", "d", &err), 0);
    assert_false(path_exists("d.tmp"));
    assert_int_equal(dir_each("d", count_names, &count, &err), 0);
    assert_int_equal(count, 2);
    assert_int_equal(dir_each("d", count_names, &count, &err), 7);
    assert_int_equal(make_dir("e.tmp", &err), 0);
    assert_int_equal(dir_commit("e.tmp", "d", &err), -1);
    assert_string_equal(err.text, "d: exists already");
    assert_int_equal(dir_remove("e.tmp", &err), 0);
    assert_int_equal(make_dir("d/deeper", &err), 0);
    assert_int_equal(file_write("d/deeper/x", false, "", 0, &err), 0);
    assert_int_equal(dir_remove("d", &err), -1);
    assert_true(path_exists("d/deeper/x"));
    assert_int_equal(dir_remove("d/deeper", &err), 0);
    assert_int_equal(dir_remove("d", &err), 0);
    assert_false(path_exists("d"));
    assert_int_equal(dir_remove("d", &err), -1);
    assert_string_equal(err.text, "d: cannot list: No such file or "
                        "directory");
    assert_int_equal(dir_commit("absent", "d", &err), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unreadable),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_pipe),
        cmocka_unit_test(test_write),
        cmocka_unit_test(test_existing),
        cmocka_unit_test(test_existing_late),
        cmocka_unit_test(test_bad_target),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_two),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_lost_handle),
        cmocka_unit_test(test_lost_temp),
        cmocka_unit_test(test_temp_add),
#ifndef NO_POSIX
        cmocka_unit_test(test_changed_while_mapped),
        cmocka_unit_test(test_cut_while_mapped),
        cmocka_unit_test(test_other_bus_error),
#endif
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_make_dir),
        cmocka_unit_test(test_sync),
        cmocka_unit_test(test_directories),
    };
    return cmocka_run_group_tests(tests, temp_begin, temp_end);
}
