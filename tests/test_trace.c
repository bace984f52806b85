/* Chunks of a run, put in turns, come out as whole tensors; patterns choose;
 * the first thing that went wrong is told at the end. */
#define _XOPEN_SOURCE 700
#include "base/random.h"
#include "base/safetensors.h"
#include "base/trace.h"
#include "tests/temp.h"

#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/resource.h>

#include <cmocka.h>

#define SHAPE(...) (const size_t[]){__VA_ARGS__}

static Trace *begin(const char *path, const char *only)
{
    Error err;
    Trace *trace = trace_open(path, true, only, &err);
    if (trace == NULL)
        fail_msg("%s", err.text);
    return trace;
}

static void end(Trace *trace)
{
    Error err;
    if (trace_close(trace, &err) != 0)
        fail_msg("%s", err.text);
}

static void end_with(Trace *trace, const char *message)
{
    Error err;
    assert_int_equal(trace_close(trace, &err), -1);
    assert_string_equal(err.text, message);
}

static void test_pieces(void **state)
{
    (void)state;
    float q[6] = {1, 2, 3, 4, 5, 6}, logits[2] = {7, 8};
    int32_t ids[3] = {1, -2, 3};
    Trace *trace = begin("t", NULL);
    trace_put(trace, "q", DT_F32, q, 2, SHAPE(1, 3));
    trace_put(trace, "ids", DT_I32, ids, 1, SHAPE(2));
    trace_put(trace, "q", DT_F32, q, 2, SHAPE(2, 3));
    trace_put(trace, "ids", DT_I32, ids + 2, 1, SHAPE(1));
    trace_put(trace, "logits", DT_F32, logits, 2, SHAPE(1, 2));
    trace_put(trace, "q", DT_F32, q, 2, SHAPE(0, 3));
    end(trace);
    Safetensors st;
    Error err;
    const StTensor *order[3];
    assert_int_equal(st_open(&st, "t", &err), 0);
    assert_int_equal(st.n_tensors, 3);
    st_order(&st, order);
    assert_string_equal(order[0]->name, "q");
    assert_int_equal(order[0]->shape[0], 3);
    assert_int_equal(order[0]->shape[1], 3);
    assert_memory_equal(order[0]->data, q, 12);
    assert_memory_equal(order[0]->data + 12, q, 24);
    assert_string_equal(order[1]->name, "ids");
    assert_int_equal(order[1]->dtype, DT_I32);
    assert_memory_equal(order[1]->data, ids, 12);
    assert_string_equal(order[2]->name, "logits");
    assert_memory_equal(order[2]->data, logits, 8);
    st_close(&st);
}

static void test_off(void **state)
{
    (void)state;
    assert_false(trace_wants(NULL, "q"));
    trace_put(NULL, "q", DT_F32, NULL, 9, NULL);
    trace_abort(NULL);
}

static bool wants(const char *pattern, const char *name)
{
    Trace *trace = begin("w", pattern);
    bool wanted = trace_wants(trace, name);
    trace_abort(trace);
    return wanted;
}

static void test_patterns(void **state)
{
    (void)state;
    static const char *const yes[][2] = {
        {"", ""}, {"*", ""}, {"*", "abc"}, {"**", "abc"}, {"a*", "a"},
        {"*c", "abc"}, {"a*c", "abc"}, {"a*c", "ac"}, {"a?c", "abc"},
        {"???", "abc"}, {"*b*", "abc"}, {"*.layers.3.*", "model.layers.3.q"},
        {"*ab", "aab"}, {"*ab*ab", "abxabab"}, {"a*?", "ab"}, {"*?*", "x"},
        {"a*b*c", "abbbcbc"}, {"?*", "\303\251"}, {"a*b", "a*b"},
    };
    static const char *const no[][2] = {
        {"", "a"}, {"a", ""}, {"?", ""}, {"a", "b"}, {"a", "aa"},
        {"*c", "abd"}, {"a*c", "abcd"}, {"a?c", "ac"}, {"????", "abc"},
        {"*.layers.3.*", "model.layers.33.q"}, {"a*?", "a"}, {"A", "a"},
        {"*ab*ab", "xab"}, {"q", "q_pe"},
    };
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        assert_true(wants(yes[i][0], yes[i][1]));
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_false(wants(no[i][0], no[i][1]));
    /* stars do not multiply the work */
    char name[4001];
    memset(name, 'a', 4000);
    name[4000] = 0;
    assert_false(wants("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", name));
    assert_true(wants("l.#", "l.0") && wants("l.#", "l.127"));
    assert_true(wants("l.#.q", "l.12.q") && wants("*#", "l.12"));
    assert_false(wants("l.#", "l.") || wants("l.#", "l.1.q"));
    assert_false(wants("l.#", "l.x") || wants("#", "12a"));
}

static void test_only(void **state)
{
    (void)state;
    float x[1] = {1};
    Trace *trace = begin("o", "*.q");
    trace_put(trace, "0.q", DT_F32, x, 1, SHAPE(1));
    trace_put(trace, "0.k", DT_F32, x, 1, SHAPE(1));
    trace_put(trace, "1.q", DT_F32, x, 1, SHAPE(1));
    end(trace);
    Safetensors st;
    Error err;
    assert_int_equal(st_open(&st, "o", &err), 0);
    assert_int_equal(st.n_tensors, 2);
    assert_null(st_find(&st, "0.k"));
    st_close(&st);
    trace = begin("none", "*.z");
    trace_put(trace, "0.q", DT_F32, x, 1, SHAPE(1));
    end_with(trace, "none: no stage has a name like *.z");
    assert_int_equal(access("none", F_OK), -1);
}

/* Many names and chunks of random sizes, against arrays in memory. */
static void test_random(void **state)
{
    (void)state;
    enum { NAMES = 40, ROWS = 60 };
    static float all[NAMES][ROWS * 3];
    uint64_t seed = 7;
    Random r = random_seeded(seed);
    print_message("seed %" PRIu64 "\n", seed);
    Trace *trace = begin("r", NULL);
    for (size_t i = 0; i < NAMES; i++)
        random_normal(&r, all[i], ROWS * 3, 1);
    for (size_t row = 0; row < ROWS;) {
        size_t n = 1 + (size_t)(random_u64(&r) % (ROWS - row));
        for (int i = 0; i < NAMES; i++) {
            char name[32];
            sprintf(name, "stage.%d", i * 7 % NAMES);
            trace_put(trace, name, DT_F32, all[i * 7 % NAMES] + row * 3, 3,
                      SHAPE(n, 1, 3));
        }
        row += n;
    }
    end(trace);
    Safetensors st;
    Error err;
    assert_int_equal(st_open(&st, "r", &err), 0);
    for (int i = 0; i < NAMES; i++) {
        char name[32];
        sprintf(name, "stage.%d", i);
        const StTensor *t = st_find(&st, name);
        assert_int_equal(t->rank, 3);
        assert_int_equal(t->elements, ROWS * 3);
        assert_memory_equal(t->data, all[i], sizeof all[i]);
    }
    st_close(&st);
}

static void test_misuse(void **state)
{
    (void)state;
    float x[8] = {0};
    int before = temp_count(".");
    Trace *trace = begin("m", NULL);
    trace_put(trace, "x", DT_F32, x, 2, SHAPE(2, 2));
    trace_put(trace, "x", DT_F32, x, 2, SHAPE(1, 3));
    trace_put(trace, "x", DT_F32, x, 0, NULL); /* the first error counts */
    end_with(trace, "m: tensor x: traced with two shapes or types");
    trace = begin("m", NULL);
    trace_put(trace, "x", DT_F32, x, 1, SHAPE(2));
    trace_put(trace, "x", DT_I32, x, 1, SHAPE(2));
    end_with(trace, "m: tensor x: traced with two shapes or types");
    trace = begin("m", NULL);
    trace_put(trace, "x", DT_F32, x, 1, SHAPE(2));
    trace_put(trace, "x", DT_F32, x, 2, SHAPE(2, 1));
    end_with(trace, "m: tensor x: traced with two shapes or types");
    trace = begin("m", NULL);
    trace_put(trace, "x", DT_F32, x, 2, SHAPE(2, 1));
    trace_put(trace, "x", DT_F32, x, 1, SHAPE(2));
    end_with(trace, "m: tensor x: traced with two shapes or types");
    trace = begin("m", NULL);
    trace_put(trace, "x", DT_F32, x, 0, NULL);
    end_with(trace, "m: tensor x: wanted rank 1 to 8, got 0");
    trace = begin("m", NULL);
    trace_put(trace, "x", DT_F32, x, 9, SHAPE(1, 1, 1, 1, 1, 1, 1, 1, 1));
    end_with(trace, "m: tensor x: wanted rank 1 to 8, got 9");
    assert_int_equal(temp_count("."), before);
}

static void test_targets(void **state)
{
    (void)state;
    Error err;
    int before = temp_count(".");
    assert_null(trace_open("no/such", true, NULL, &err));
    assert_non_null(strstr(err.text, "No such file or directory"));
    temp_write("old", "old", 3);
    assert_null(trace_open("old", false, "q", &err));
    assert_string_equal(err.text,
                        "old: exists already; --force overwrites it");
    trace_abort(begin("old", NULL));
    assert_int_equal(temp_count("."), before + 1);
    end(begin("old", NULL)); /* nothing in it: still a file */
    Safetensors st;
    assert_int_equal(st_open(&st, "old", &err), 0);
    assert_int_equal(st.n_tensors, 0);
    st_close(&st);
    assert_int_equal(temp_count("."), before + 1);
}

/* A limit on file sizes stands for a full disk: the spool fits, the result,
 * with its header, does not; then not even the spool. */
static void test_full_disk(void **state)
{
    (void)state;
    static float x[5000];
    Error err[2];
    int rc[2], before = temp_count(".");
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = sizeof x + 8;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    for (size_t i = 0; i < 2; i++) {
        Trace *trace = trace_open("full", false, NULL, &err[i]);
        for (size_t j = 0; j <= 9 * i; j++)
            trace_put(trace, "x", DT_F32, x, 1, SHAPE(5000));
        rc[i] = trace_close(trace, &err[i]);
    }
    setrlimit(RLIMIT_FSIZE, &old);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(rc[i], -1);
        assert_string_equal(err[i].text,
                            "full: cannot write: File too large");
    }
    assert_int_equal(temp_count("."), before);
}

static int take(void *context, const char *name, DType type,
                const void *values, int rank, const size_t *shape, Error *err)
{
    float *sum = context;
    const float *x = values;
    if (strcmp(name, "ids") == 0)
        return (fail)(err, "no %s here", name);  /* not the macro */
    assert_int_equal(type, DT_F32);
    assert_int_equal(rank, 2);
    for (size_t i = 0; i < shape[0] * shape[1]; i++)
        *sum += x[i];
    return 0;
}

/* A function gets each piece; its first error is told at the end, and it gets
 * nothing more. */
static void test_to_a_function(void **state)
{
    (void)state;
    float q[6] = {1, 2, 3, 4, 5, 6}, sum = 0;
    int32_t ids[1] = {1};
    Error err;
    Trace *trace = trace_to(take, &sum, "?", &err);
    assert_non_null(trace);
    assert_true(trace_wants(trace, "q"));
    assert_false(trace_wants(trace, "0.q"));
    trace_put(trace, "q", DT_F32, q, 2, SHAPE(1, 2));
    trace_put(trace, "q", DT_F32, q + 2, 2, SHAPE(2, 2));
    end(trace);
    assert_true(sum == 21);
    trace = trace_to(take, &sum, NULL, &err);
    trace_put(trace, "ids", DT_I32, ids, 1, SHAPE(1));
    trace_put(trace, "q", DT_F32, q, 2, SHAPE(1, 2));
    end_with(trace, "no ids here");
    assert_true(sum == 21);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_only),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_targets),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_to_a_function),
    };
    return cmocka_run_group_tests(tests, temp_begin, temp_end);
}
