/* Sketches stand for lists: lengths, products, text. */
#include "support.h"

#include "base/sketch.h"

#define SIXTY "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" \
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

enum { N = 4000 };

static Sketch sketch_of(const float *x, double factor)
{
    Sketch s = {{0}};
    for (size_t i = 0; i < N; i++)
        sketch_add(&s, i, factor * (double)x[i]);
    return s;
}

static void agreement(void **state)
{
    Random r = test_random();
    static float x[N], y[N];
    (void)state;
    random_normal(&r, x, N, 1);
    random_normal(&r, y, N, 1);
    Sketch a = sketch_of(x, 1), b = sketch_of(y, 1);
    Sketch twice = sketch_of(x, 2), minus = sketch_of(x, -1);
    Sketch none = {{0}};
    assert_true(fabs(sketch_agreement(&a, &a) - 1) < 1e-12);
    assert_true(fabs(sketch_agreement(&a, &twice) - 0.8) < 1e-12);
    assert_true(fabs(sketch_agreement(&a, &minus) + 1) < 1e-12);
    assert_true(fabs(sketch_agreement(&a, &b)) < 0.5); /* four deviations */
    assert_true(sketch_agreement(&none, &none) == 0);
    double length = 0;
    for (int k = 0; k < SKETCH; k++)
        length += a.at[k] * a.at[k] / SKETCH;
    assert_true(length > N / 2.0 && length < 2.0 * N);
}

static void as_text(void **state)
{
    Random r = test_random();
    static const double factors[] = {1, 1e-30, 1e30, 0};
    static float x[N];
    (void)state;
    random_normal(&r, x, N, 1);
    for (size_t k = 0; k < 4; k++) {
        Sketch a = sketch_of(x, factors[k]), b;
        Text t = {0};
        sketch_print(&t, &a);
        assert_true(sketch_parse(&b, t.text, t.length));
        assert_true(factors[k] > 0 ? sketch_agreement(&a, &b) > 0.998
                                   : b.at[0] == 0);
        for (size_t n = 0; n < t.length; n++)
            assert_false(sketch_parse(&b, t.text, n));
        text_free(&t);
    }
}

static void other_text(void **state)
{
    static const char *const bad[] = {
        "", " ", "1.000e+00", "1.000e+00 AAAA", "1.000e+0x " SIXTY "AAAA",
        "1.000e+00 " SIXTY "AAA-", "1.000e+00 " SIXTY "AAAAA",
        "nan.......... " SIXTY "AAAA"
    };
    Sketch s;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(sketch_parse(&s, bad[i], strlen(bad[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agreement),
        cmocka_unit_test(as_text),
        cmocka_unit_test(other_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
