/* Messages are one printable line, whatever a file put into a name. */
#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#undef fail /* cmocka has a macro of that name */

static void test_format(void **state)
{
    (void)state;
    Error err;
    assert_int_equal(fail(&err, "%s: wanted %d, found %zu", "x", 3,
                          (size_t)4), -1);
    assert_string_equal(err.text, "x: wanted 3, found 4");
}

static void test_controls(void **state)
{
    (void)state;
    Error err;
    fail(&err, "%s", "a\nb\033[1mc\177d\xc2\x9b" "e\xc3\xa9\xc2\xa0");
    assert_string_equal(err.text, "a?b?[1mc?d??e\xc3\xa9\xc2\xa0");
    fail(&err, "%s", "\x1f \x01");
    assert_string_equal(err.text, "? ?");
    fail(&err, "%s", "\xc2"); /* the text may end there */
    assert_string_equal(err.text, "\xc2");
}

static void test_own_text(void **state)
{
    (void)state;
    Error err;
    fail(&err, "inner");
    fail(&err, "outer: %s", err.text);
    assert_string_equal(err.text, "outer: inner");
}

static void test_cut(void **state)
{
    (void)state;
    Error err;
    char long_text[3000];
    for (size_t shift = 0; shift < 3; shift++) {
        /* a character of three bytes at each offset from the cut */
        memset(long_text, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof long_text; i += 3)
            memcpy(long_text + i, "\xe2\x82\xac", 4);
        fail(&err, "%s", long_text);
        size_t n = strlen(err.text);
        assert_in_range(n, sizeof err.text - 4, sizeof err.text - 1);
        assert_string_equal(err.text + n - 3, "...");
        assert_memory_equal(err.text + n - 6, "\xe2\x82\xac", 3);
    }
}

static void test_full(void **state)
{
    (void)state;
    Error err;
    char text[sizeof err.text + 1];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    fail(&err, "%s", text + 1);
    assert_string_equal(err.text, text + 1);
    fail(&err, "%s", text); /* one more than fits */
    assert_string_equal(err.text + sizeof err.text - 5, "x...");
}

static void test_allocate(void **state)
{
    (void)state;
    Error err = {"untouched"};
    unsigned char *p = allocate(100, 3, "bytes", &err);
    assert_non_null(p);
    for (int i = 0; i < 300; i++)
        assert_int_equal(p[i], 0);
    free(p);
    p = allocate(0, 0, "nothing", &err);
    assert_non_null(p);
    p[0] = 1;
    free(p);
    assert_string_equal(err.text, "untouched");
}

static void test_allocate_too_much(void **state)
{
    (void)state;
    Error err;
    char expected[200];
    size_t half = SIZE_MAX / 2 + 1;
    assert_null(allocate(half, 2, "a wrapping size", &err));
    snprintf(expected, sizeof expected,
             "not enough memory for a wrapping size: %zu times 2 bytes", half);
    assert_string_equal(err.text, expected);
    assert_null(allocate(4, SIZE_MAX / 4, "nearly everything", &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format),
        cmocka_unit_test(test_controls),
        cmocka_unit_test(test_own_text),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_allocate),
        cmocka_unit_test(test_allocate_too_much),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
