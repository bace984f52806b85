/* The clock moves on, memory is counted, progress shows on terminals only. */
#define _XOPEN_SOURCE 700
#include "base/os.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static void test_seconds(void **state)
{
    (void)state;
    double start = os_seconds(), now = start;
    for (int i = 0; i < 1000; i++) {
        double next = os_seconds();
        assert_true(next >= now);
        now = next;
    }
    while (os_seconds() < start + 0.01)
        ;
}

static void test_memory(void **state)
{
    (void)state;
    size_t before = os_peak_memory();
    size_t n = (size_t)64 << 20;
    char *block = malloc(n);
    assert_non_null(block);
    for (size_t i = 0; i < n; i += 1024)
        block[i] = 1;
    size_t after = os_peak_memory();
    free(block);
    if (before == 0)
        skip(); /* the system does not tell */
    assert_true(after >= n);
    assert_true(after >= before);
}

/* All that arrives until nothing has for a while: a terminal is slow. */
static size_t listen_to(int fd, char *text, size_t n)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    size_t length = 0;
    while (poll(&wait, 1, 300) == 1 && length < n) {
        ssize_t got = read(fd, text + length, n - length);
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    text[length] = 0;
    return length;
}

/* What progress writes to stderr while that is the stream of this fd. */
static size_t show(int fd, int listen, double age, double done, char *text,
                   size_t n)
{
    int old = dup(STDERR_FILENO);
    Progress p;
    progress_begin(&p, "work");
    p.start -= age;
    p.shown -= age;
    dup2(fd, STDERR_FILENO);
    progress_show(&p, done, 8);
    progress_show(&p, done, 8); /* too soon after the first */
    progress_end(&p);
    progress_end(&p);
    dup2(old, STDERR_FILENO);
    close(old);
    return listen_to(listen, text, n - 1);
}

/* Two lines, the second after a while. */
static void show_texts(int fd, const char *one, const char *two)
{
    int old = dup(STDERR_FILENO);
    Progress p;
    progress_begin(&p, "work");
    p.start -= 10;
    dup2(fd, STDERR_FILENO);
    progress_text(&p, one);
    p.shown -= 10;
    progress_text(&p, two);
    progress_end(&p);
    dup2(old, STDERR_FILENO);
    close(old);
}

static void test_progress_file(void **state)
{
    (void)state;
    char text[100];
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    assert_false(os_is_terminal(stdin)); /* tests run without one */
    assert_int_equal(show(pipes[1], pipes[0], 10, 3, text, sizeof text), 0);
    close(pipes[0]);
    close(pipes[1]);
}

static void test_progress_terminal(void **state)
{
    (void)state;
#ifdef NO_POSIX
    skip();
#endif
    char text[100];
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK), slave = -1;
    if (master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0)
        slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    if (slave < 0)
        skip(); /* no terminals here */
    assert_int_equal(show(slave, master, 0, 3, text, sizeof text), 0);
    show(slave, master, 10, 3, text, sizeof text);
    assert_string_equal(text, "\rwork 37 %\r         \r");
    show(slave, master, 10, 80, text, sizeof text);
    assert_string_equal(text, "\rwork 100 %\r          \r");
    show_texts(slave, "a long line", "short");
    assert_int_equal(listen_to(master, text, sizeof text - 1), 37);
    assert_string_equal(text, "\ra long line\rshort      \r           \r");
    close(slave);
    close(master);
}

/* What the system tells does not fit in few bytes: then the name counts. */
static void test_program_dir(void **state)
{
    (void)state;
    char dir[4096], path[4200];
    if (os_program_dir(dir, sizeof dir, "test_os")) {
        snprintf(path, sizeof path, "%stest_os", dir);
        assert_int_equal(access(path, X_OK), 0);
    }
    assert_true(os_program_dir(dir, 4, "x/y"));
    assert_string_equal(dir, "x/");
    assert_false(os_program_dir(dir, 4, "y"));
    assert_false(os_program_dir(dir, 4, "x/yz"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_seconds),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_program_dir),
        cmocka_unit_test(test_progress_file),
        cmocka_unit_test(test_progress_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
