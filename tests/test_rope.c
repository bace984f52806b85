/* test_rope.c: frequencies, magnitudes, tables and the turn itself.
 *
 * Vectors: computed from the released code's formulas by an independent
 * program, ten digits, for d_r 64, theta 10000, YaRN 40 over 4096, betas 32
 * and 1 (V2-Lite, V2, V3). Elsewhere the same formulas in long double. */
#include "support.h"

#define CONFIGS "tests/data/configs/"

static Config config_of(const char *path)
{
    Config c;
    Error err;
    must(config_read(&c, path, &err), &err);
    return c;
}

static Rope open_rope(const Config *c)
{
    Rope r;
    Error err;
    must(rope_open(&r, c, &err), &err);
    return r;
}

static void must_be_near(double found, double wanted, double relative)
{
    if (!(fabs(found - wanted) <= relative * fabs(wanted)))
        fail_msg("found %.17g, wanted %.17g", found, wanted);
}

/* Ten digits. */
static void must_be(double found, double wanted)
{
    must_be_near(found, wanted, 6e-10);
}

/* Ten digits, through a float. */
static void must_be_float(float found, double wanted)
{
    must_be_near((double)found, wanted, 0x1p-24 + 6e-10);
}

/* Vectors ---------------------------------------------------------------- */

static void test_frequencies(void **state)
{
    static const struct {
        size_t i;
        double freq;
    } wanted[] = {
        {0, 1}, {10, 5.623413252e-2}, {11, 3.900692657e-2},
        {12, 2.687936011e-2}, {13, 1.837814622e-2}, {16, 5.5e-3},
        {20, 7.905694150e-4}, {22, 1.778279410e-4}, {23, 3.333803580e-5},
        {31, 3.333803580e-6}};
    static const char *const files[] = {CONFIGS "v2-lite.json",
                                        CONFIGS "v2.json", CONFIGS "v3.json"};
    (void)state;
    for (size_t f = 0; f < 3; f++) {
        Config c = config_of(files[f]);
        Rope r = open_rope(&c);
        assert_int_equal(r.pairs, 32);
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            must_be(r.freq[wanted[i].i], wanted[i].freq);
        rope_close(&r);
    }
}

static void test_mscale(void **state)
{
    (void)state;
    must_be(yarn_mscale(40, 1), 1.3688879454);
    must_be(yarn_mscale(40, 0.707), 1.2608037774);
    must_be(yarn_mscale(40, 1) * yarn_mscale(40, 1), 1.8738542071);
    must_be(yarn_mscale(40, 0.707) * yarn_mscale(40, 0.707), 1.5896261651);
    assert_true(yarn_mscale(40, 0) == 1);
    assert_true(yarn_mscale(1, 1) == 1);
    assert_true(yarn_mscale(0.5, 1) == 1);
}

/* 1/sqrt(192), not 1/sqrt(128), times mscale_all_dim's square; cos and sin
 * stay as they are. */
static void test_softmax_scale(void **state)
{
    static const struct {
        const char *path;
        double scale;
    } wanted[] = {{CONFIGS "v3.json", 0.1352337789},
                  {CONFIGS "v2.json", 0.1147213868},
                  {CONFIGS "v2-lite.json", 0.1147213868}};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        Config c = config_of(wanted[i].path);
        Rope r = open_rope(&c);
        must_be_float(r.softmax_scale, wanted[i].scale);
        assert_true(r.magnitude == 1);
        rope_close(&r);
    }
}

/* Each field by itself --------------------------------------------------- */

static void test_no_yarn(void **state)
{
    Config c = config_of(CONFIGS "v3.json");
    (void)state;
    c.rope_scaling = (RopeScaling){.yarn = false, .factor = 40,
                                   .mscale = 3, .mscale_all_dim = 2};
    c.rope_theta = 640;
    Rope r = open_rope(&c);
    for (size_t i = 0; i < 32; i++)
        must_be_near(r.freq[i], pow(640, -(double)i / 32), 1e-14);
    must_be_float(r.softmax_scale, 0.07216878365);
    assert_true(r.magnitude == 1);
    rope_close(&r);
}

/* YaRN by a factor of 1 is no YaRN, but for a last bit of the ramp's sum. */
static void test_factor_1(void **state)
{
    Config c = config_of(CONFIGS "v3.json");
    (void)state;
    c.rope_scaling.factor = 1;
    Rope r = open_rope(&c);
    for (size_t i = 0; i < 32; i++)
        must_be_near(r.freq[i], pow(10000, -(double)i / 32), 1e-14);
    must_be_float(r.softmax_scale, 0.07216878365);
    assert_true(r.magnitude == 1);
    rope_close(&r);
}

/* The score has the square of mscale_all_dim's factor, the table the ratio of
 * the two; an absent mscale_all_dim, 0, has the factor 1. */
static void test_two_mscales(void **state)
{
    static const struct {
        double mscale, all_dim;
    } pairs[] = {{0.9, 0.6}, {0.707, 1}, {1, 0}, {0, 1}, {0, 0}};
    Config c = config_of(CONFIGS "v3.json");
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        double a = 0.1 * pairs[i].mscale * log(40) + 1;
        double b = 0.1 * pairs[i].all_dim * log(40) + 1;
        float cos0[32], sin0[32];
        c.rope_scaling.mscale = pairs[i].mscale;
        c.rope_scaling.mscale_all_dim = pairs[i].all_dim;
        Rope r = open_rope(&c);
        must_be_near(r.magnitude, a / b, 1e-14);
        must_be_float(r.softmax_scale, b * b / sqrt(192));
        rope_table(cos0, sin0, &r, 1, 0);
        for (size_t k = 0; k < 32; k++) {
            must_be_float(cos0[k], a / b);
            assert_true(sin0[k] == 0);
        }
        rope_close(&r);
    }
}

/* Where both ends of the ramp round to pair 0 it becomes a step behind it:
 * 8 ln(6 / 2 pi) / (2 ln 10000) = -0.02. */
static void test_ramp_of_no_width(void **state)
{
    Config c = config_of(CONFIGS "v3.json");
    (void)state;
    c.qk_rope_head_dim = 8;
    c.rope_scaling.factor = 8;
    c.rope_scaling.original_max_position_embeddings = 6;
    Rope r = open_rope(&c);
    assert_true(r.freq[0] == 1);
    for (size_t i = 1; i < 4; i++)
        must_be_near(r.freq[i], pow(10, -(double)i) / 8, 1e-14);
    rope_close(&r);
}

/* The released formula, in long double. */
static void frequencies(long double *freq, const Config *c)
{
    const RopeScaling *s = &c->rope_scaling;
    long double dim = (long double)c->qk_rope_head_dim;
    long double base = logl((long double)c->rope_theta);
    long double turn = 2 * acosl(-1);
    long double length = (long double)s->original_max_position_embeddings;
    long double low = floorl(dim * logl(length / ((long double)s->beta_fast
                                                  * turn)) / (2 * base));
    long double high = ceill(dim * logl(length / ((long double)s->beta_slow
                                                  * turn)) / (2 * base));
    low = low < 0 ? 0 : low;
    high = high > dim - 1 ? dim - 1 : high;
    high += low >= high && low <= high ? 0.001L : 0;
    for (size_t i = 0; i < c->qk_rope_head_dim / 2; i++) {
        long double f = expl(-2 * (long double)i / dim * base);
        long double ramp = ((long double)i - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        freq[i] = f / (long double)s->factor * ramp + f * (1 - ramp);
    }
}

/* Betas, length, theta, factor and width each enter the ramp; its end is
 * clamped at the last dimension, not at the last pair. */
static void test_ramps(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 2000; run++) {
        long double want[64];
        Config c = config_of(CONFIGS "v3.json");
        RopeScaling *s = &c.rope_scaling;
        c.qk_rope_head_dim = 2 * random_between(&random, 1, 64);
        c.rope_theta = (double)random_between(&random, 20, 2000000);
        s->factor = 1 + 40 * (double)random_uniform(&random);
        s->original_max_position_embeddings = random_between(&random, 8,
                                                             100000);
        s->beta_slow = 0.01 + 2 * (double)random_uniform(&random);
        s->beta_fast = s->beta_slow + 40 * (double)random_uniform(&random);
        Rope r = open_rope(&c);
        frequencies(want, &c);
        for (size_t i = 0; i < r.pairs; i++)
            must_be_near(r.freq[i], (double)want[i], 1e-11);
        rope_close(&r);
    }
}

/* Tables ----------------------------------------------------------------- */

/* An angle is as exact at position 163839 as at 1: within the rounding to
 * float, and 163840 times the rounding of a frequency. */
static void test_long_positions(void **state)
{
    Config c = config_of(CONFIGS "v3.json");
    Rope r = open_rope(&c);
    long double freq[32];
    float cos_t[32], sin_t[32];
    double bound = 0x1p-25 + 163840 * 4 * 0x1p-53;
    (void)state;
    frequencies(freq, &c);
    for (size_t pos = 0; pos < 163840; pos += pos < 163000 ? 37 : 1) {
        rope_table(cos_t, sin_t, &r, 1, pos);
        for (size_t i = 0; i < 32; i += pos < 163000 ? 5 : 1) {
            long double angle = (long double)pos * freq[i];
            double c_off = (double)cos_t[i] - (double)cosl(angle);
            double s_off = (double)sin_t[i] - (double)sinl(angle);
            if (!(fabs(c_off) <= bound && fabs(s_off) <= bound))
                fail_msg("position %zu, pair %zu: off by %g, %g", pos, i,
                         c_off, s_off);
        }
    }
    rope_close(&r);
}

static void test_run_is_single_positions(void **state)
{
    Config c = config_of(CONFIGS "v2.json");
    Rope r = open_rope(&c);
    float cos_run[50 * 32], sin_run[50 * 32], cos_1[32], sin_1[32];
    (void)state;
    rope_table(cos_run, sin_run, &r, 50, 163790);
    for (size_t t = 0; t < 50; t++) {
        rope_table(cos_1, sin_1, &r, 1, 163790 + t);
        must_equal_bits(cos_run + 32 * t, cos_1, 32, "cos");
        must_equal_bits(sin_run + 32 * t, sin_1, 32, "sin");
    }
    rope_close(&r);
}

/* The turn --------------------------------------------------------------- */

/* Neighbours are a pair, not halves; what lies between the rows stays. */
static void test_neighbours_are_pairs(void **state)
{
    enum { T = 3, PAIRS = 2, LDX = 5, LDY = 7 };
    float x[T * LDX], y[T * LDY], cos_t[T * PAIRS], sin_t[T * PAIRS];
    (void)state;
    for (size_t i = 0; i < T * LDX; i++)
        x[i] = (float)(1 << i % 8);
    for (size_t i = 0; i < T * LDY; i++)
        y[i] = -1;
    for (size_t i = 0; i < T * PAIRS; i++) {
        cos_t[i] = 0.5f + (float)i;
        sin_t[i] = 0.25f - (float)i;
    }
    rope_apply(y, LDY, x, LDX, cos_t, sin_t, T, PAIRS);
    for (size_t t = 0; t < T; t++) {
        for (size_t i = 0; i < PAIRS; i++) {
            float a = x[t * LDX + 2 * i], b = x[t * LDX + 2 * i + 1];
            float c = cos_t[t * PAIRS + i], s = sin_t[t * PAIRS + i];
            assert_true(y[t * LDY + 2 * i] == a * c - b * s);
            assert_true(y[t * LDY + 2 * i + 1] == a * s + b * c);
        }
        for (size_t k = 2 * PAIRS; k < LDY; k++)
            assert_true(y[t * LDY + k] == -1);
    }
}

static void test_in_place(void **state)
{
    Random random = test_random();
    Config c = config_of(CONFIGS "v3.json");
    Rope r = open_rope(&c);
    float x[4 * 64], y[4 * 64], cos_t[4 * 32], sin_t[4 * 32];
    (void)state;
    random_fill(&random, x, 4 * 64);
    rope_table(cos_t, sin_t, &r, 4, 1000);
    rope_apply(y, 64, x, 64, cos_t, sin_t, 4, 32);
    rope_apply(x, 64, x, 64, cos_t, sin_t, 4, 32);
    must_equal_bits(x, y, 4 * 64, "in place");
    rope_close(&r);
}

/* q turned by m and k by n, dotted: YaRN (6)-(9), only m - n matters. */
static double score(const Rope *r, const float *q, size_t m, const float *k,
                    size_t n)
{
    float cos_t[32], sin_t[32], a[64], b[64];
    double dot = 0;
    rope_table(cos_t, sin_t, r, 1, m);
    rope_apply(a, 64, q, 64, cos_t, sin_t, 1, 32);
    rope_table(cos_t, sin_t, r, 1, n);
    rope_apply(b, 64, k, 64, cos_t, sin_t, 1, 32);
    for (size_t i = 0; i < 64; i++)
        dot += (double)a[i] * (double)b[i];
    return dot;
}

/* With |x| <= 1 and u = 2^-24 a turned number a cos - b sin is off by at
 * most 2 u/2 (cos, sin), u/2·√2 (the product) and u/2·√2 (the sum), below
 * 2.5 u; no turned number exceeds √2. So a score of 64 products is off by at
 * most 64·2·√2·2.5 u, two of them by twice that. */
static void test_only_the_distance_matters(void **state)
{
    const double bound = 2 * 64 * 2 * 1.4143 * 2.5 * 0x1p-24;
    Random random = test_random();
    Config c = config_of(CONFIGS "v3.json");
    Rope r = open_rope(&c);
    int shown = 0;
    (void)state;
    for (int run = 0; run < 3000; run++) {
        float q[64], k[64];
        size_t m = random_between(&random, 0, 80000);
        size_t n = random_between(&random, 0, 80000);
        size_t by = random_between(&random, 1, 83000);
        random_fill(&random, q, 64);
        random_fill(&random, k, 64);
        double here = score(&r, q, m, k, n);
        double there = score(&r, q, m + by, k, n + by);
        if (!(fabs(here - there) <= bound))
            fail_msg("%zu and %zu, then %zu on: %g, %g", m, n, by, here,
                     there);
        shown += fabs(here - score(&r, q, m + 1, k, n)) > bound;
    }
    /* The test can fail: one position of distance more shows. */
    assert_true(shown > 2950);
    rope_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies), cmocka_unit_test(test_mscale),
        cmocka_unit_test(test_softmax_scale), cmocka_unit_test(test_no_yarn),
        cmocka_unit_test(test_factor_1), cmocka_unit_test(test_two_mscales),
        cmocka_unit_test(test_ramp_of_no_width), cmocka_unit_test(test_ramps),
        cmocka_unit_test(test_long_positions),
        cmocka_unit_test(test_run_is_single_positions),
        cmocka_unit_test(test_neighbours_are_pairs),
        cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_only_the_distance_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
