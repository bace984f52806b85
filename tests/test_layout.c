/* Every layout of random numbers is found again, by its name. */
#include "support.h"

#include "base/layout.h"

static Numbers numbers(Random *r, int rank, size_t a, size_t b, size_t c)
{
    Numbers n = {.rank = rank, .shape = {a, b, c}, .elements = a * b * c};
    float *x = test_alloc(n.elements, sizeof *x);
    n.x = test_alloc(n.elements, sizeof *n.x);
    random_normal(r, x, n.elements, 1);
    for (size_t i = 0; i < n.elements; i++)
        n.x[i] = (double)x[i];
    free(x);
    return n;
}

static Numbers shaped(const double *x, int rank, size_t a, size_t b, size_t c)
{
    Numbers n = {.rank = rank, .shape = {a, b, c}, .elements = a * b * c};
    n.x = test_alloc(n.elements, sizeof *n.x);
    memcpy(n.x, x, n.elements * sizeof *x);
    return n;
}

static void must_find(const Numbers *ours, Numbers *theirs,
                      LayoutChoice choice, const char *name)
{
    Layout l;
    Error err;
    bool fits;
    char text[100];
    must(layout_find(&l, &fits, ours, theirs, choice, &err), &err);
    assert_true(fits);
    layout_name(text, sizeof text, &l, ours->rank);
    assert_string_equal(text, name);
    for (size_t i = 0; i < ours->elements; i++)
        assert_true(!(squared_distance(ours->x[i], theirs->x[i]) > 0));
    numbers_close(theirs);
}

/* theirs (2, 3, 4) by order of our (4, 2, 3), and the like. */
static void orders(void **state)
{
    static const struct {
        int order[3];
        const char *name;
    } cases[] = {
        {{0, 1, 2}, ""}, {{1, 0, 2}, "axes 2 1 3"}, {{0, 2, 1}, "axes 1 3 2"},
        {{1, 2, 0}, "axes 2 3 1"}, {{2, 0, 1}, "axes 3 1 2"},
        {{2, 1, 0}, "axes 3 2 1"},
    };
    Random r = test_random();
    (void)state;
    for (size_t k = 0; k < 6; k++) {
        Numbers ours = numbers(&r, 3, 4, 2, 3);
        const int *o = cases[k].order;
        size_t n[3] = {4, 2, 3}, i[3];
        Numbers theirs = shaped(ours.x, 3, n[o[0]], n[o[1]], n[o[2]]);
        for (i[0] = 0; i[0] < 4; i[0]++)
            for (i[1] = 0; i[1] < 2; i[1]++)
                for (i[2] = 0; i[2] < 3; i[2]++)
                    theirs.x[(i[o[0]] * n[o[1]] + i[o[1]]) * n[o[2]] + i[o[2]]]
                        = ours.x[(i[0] * 2 + i[1]) * 3 + i[2]];
        Numbers merged = shaped(theirs.x, 2, n[o[0]], n[o[1]] * n[o[2]], 1);
        must_find(&ours, &theirs, (LayoutChoice){0, false}, cases[k].name);
        must_find(&ours, &merged, (LayoutChoice){0, false}, cases[k].name);
        numbers_close(&ours);
    }
}

/* Rows of 6 whose last 4 columns are turned: 2 0 before, then e.g. halves. */
static void tails(void **state)
{
    static const struct {
        size_t from[6];
        const char *name;
    } cases[] = {
        {{0, 1, 2, 3, 4, 5}, ""},
        {{0, 1, 2, 4, 3, 5}, "half-split"},
        {{2, 3, 4, 5, 0, 1}, "tail first"},
        {{2, 4, 3, 5, 0, 1}, "half-split, tail first"},
    };
    Random r = test_random();
    (void)state;
    for (size_t k = 0; k < 4; k++) {
        Numbers ours = numbers(&r, 2, 5, 6, 1);
        Numbers theirs = shaped(ours.x, 2, 5, 6, 1);
        for (size_t i = 0; i < 30; i++)
            theirs.x[i] = ours.x[i / 6 * 6 + cases[k].from[i % 6]];
        must_find(&ours, &theirs, (LayoutChoice){4, false}, cases[k].name);
        numbers_close(&ours);
    }
}

static void twice(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t each = 0; each < 2; each++) {
        Numbers ours = numbers(&r, 2, 5, 3, 1);
        double x[30];
        for (size_t i = 0; i < 30; i++)
            x[i] = ours.x[i / 6 * 3 + (each ? i % 6 / 2 : i % 3)];
        Numbers theirs = shaped(x, 2, 5, 6, 1);
        must_find(&ours, &theirs, (LayoutChoice){0, true},
                  "every number twice");
        numbers_close(&ours);
    }
}

static void no_shape(void **state)
{
    Random r = test_random();
    Numbers ours = numbers(&r, 2, 5, 6, 1), theirs = numbers(&r, 2, 3, 10, 1);
    Layout l;
    Error err;
    bool fits;
    (void)state;
    must(layout_find(&l, &fits, &ours, &theirs, (LayoutChoice){4, true}, &err),
         &err);
    assert_false(fits);
    numbers_close(&theirs);
    numbers_close(&ours);
}

/* What is a little wrong keeps its layout; what is all wrong too. */
static void wrong_numbers(void **state)
{
    Random r = test_random();
    Numbers ours = numbers(&r, 2, 6, 6, 1);
    Layout l;
    Error err;
    bool fits;
    char text[100];
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        Numbers theirs = k ? numbers(&r, 2, 6, 6, 1)
                           : shaped(ours.x, 2, 6, 6, 1);
        theirs.x[3] += 1;
        must(layout_find(&l, &fits, &ours, &theirs, (LayoutChoice){4, false},
                         &err), &err);
        layout_name(text, sizeof text, &l, 2);
        assert_true(fits && text[0] == 0);
        numbers_close(&theirs);
    }
    numbers_close(&ours);
}

static void distances(void **state)
{
    (void)state;
    assert_true(squared_distance(3, 1) == 4);
    assert_true(squared_distance(NAN, NAN) == 0);
    assert_true(squared_distance(-INFINITY, -65504) == 0);
    assert_true(isinf(squared_distance(-INFINITY, -65503)));
    assert_true(isinf(squared_distance(-65504, -INFINITY)));
    assert_true(isinf(squared_distance(1, NAN)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders),
        cmocka_unit_test(tails),
        cmocka_unit_test(twice),
        cmocka_unit_test(no_shape),
        cmocka_unit_test(wrong_numbers),
        cmocka_unit_test(distances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
