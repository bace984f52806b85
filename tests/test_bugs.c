/* Which of two bugs a dump shows, and when none is named. The judgements are
 * written by hand. */
#include "support.h"

static JudgedTensor tensors[3];
static StTensor stages[3];
static const StTensor *order[3];

/* Differences of bug `seed` in two tensors, of which the first is right where
 * `first` is false. */
static Judgement judgement(uint64_t seed, bool first, double factor)
{
    Random r = random_seeded(seed);
    Judgement j = {.tensors = tensors, .n = 3, .hash = "0123456789abcdef",
                   .golden = order, .in_golden = 3};
    static const char *const names[] = {"model.layers.0.self_attn.o_proj",
                                        "model.layers.0", "logits"};
    for (size_t i = 0; i < 3; i++) {
        stages[i] = (StTensor){.name = names[i]};
        order[i] = &stages[i];
        tensors[i] = (JudgedTensor){.name = names[i], .from = names[i],
                                    .at = i,
                                    .layer = i < 2 ? 0 : SIZE_MAX,
                                    .departs = i > 0 || first};
        for (size_t k = 0; k < 100; k++) {
            double x = factor * ((double)random_uniform(&r) - 0.5);
            if (tensors[i].departs)
                sketch_add(&tensors[i].sketch, k, x);
        }
    }
    j.first = first ? &tensors[0] : &tensors[1];
    j.departed = first ? 3 : 2;
    return j;
}

static void write_bugs(const char *more)
{
    Text t = {0};
    text_printf(&t, "# comment\n\n");
    Judgement j = judgement(1, true, 1);
    bugs_print(&t, &j, "early");
    j = judgement(2, false, 1);
    bugs_print(&t, &j, "late");
    text_printf(&t, "%s", more);
    put_file(scratch("bugs.txt"), t.text, t.length);
    text_free(&t);
}

static void find(Judgement *j)
{
    Error err;
    bool known;
    must(bugs_find(j, scratch("bugs.txt"), &known, &err), &err);
    assert_true(known);
}

static void named(void **state)
{
    (void)state;
    write_bugs("");
    Judgement j = judgement(1, true, 1);
    find(&j);
    assert_true(j.n_bugs == 1 && j.bugs[0].agreement > 0.998);
    assert_string_equal(j.bugs[0].name, "early");
    j = judgement(2, false, 1.1);
    find(&j);
    assert_int_equal(j.n_bugs, 1);
    assert_string_equal(j.bugs[0].name, "late");
}

static void none_named(void **state)
{
    (void)state;
    write_bugs("");
    Judgement j = judgement(3, true, 1);
    find(&j);
    assert_int_equal(j.n_bugs, 0);
    j = judgement(1, true, 3); /* the same direction, another size */
    find(&j);
    assert_int_equal(j.n_bugs, 0);
    j = judgement(2, false, 1);
    tensors[0].departs = true; /* before the bug does */
    j.first = &tensors[0];
    find(&j);
    assert_int_equal(j.n_bugs, 0);
}

static void named_together(void **state)
{
    (void)state;
    write_bugs("");
    Text t = {0};
    Judgement j = judgement(1, true, 1);
    bugs_print(&t, &j, "same");
    write_bugs(t.text);
    text_free(&t);
    j = judgement(1, true, 1);
    find(&j);
    assert_int_equal(j.n_bugs, 2);
    assert_true(strcmp(j.bugs[0].name, j.bugs[1].name) != 0);
}

static void other_packs(void **state)
{
    Error err;
    bool known;
    (void)state;
    write_bugs("");
    Judgement j = judgement(1, true, 1);
    j.hash[3] = 'x';
    must(bugs_find(&j, scratch("bugs.txt"), &known, &err), &err);
    assert_true(!known && j.n_bugs == 0);
}

static void bad_lines(void **state)
{
    static const char *const lines[] = {
        "bug", "bug a", "bug a 0123456789abcdef more",
        "bug a 0123456789abcdef0", "bug a 0123456789abcdef\nlogits",
        "bug a 0123456789abcdef\nlogits 1.000e+00 AA"};
    Judgement j = judgement(1, true, 1);
    (void)state;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        Error err;
        bool known;
        put_file(scratch("bugs.txt"), lines[i], strlen(lines[i]));
        assert_int_equal(bugs_find(&j, scratch("bugs.txt"), &known, &err), -1);
        assert_non_null(strstr(err.text, ": wanted 'bug NAME HASH'"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(named),
        cmocka_unit_test(none_named),
        cmocka_unit_test(named_together),
        cmocka_unit_test(other_packs),
        cmocka_unit_test(bad_lines),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    Error err;
    dir_remove(scratch(""), &err);
    return failed;
}
