/* test_adamw.c: the optimiser's step.
 *
 * The algorithm in double, written down as it stands, with a derived
 * tolerance; what each term does alone; bits recorded once. */
#include "support.h"

#include "base/maths.h"

static const AdamW published = {0.9, 0.95, 1e-8, 0.1};

/* Random signs, magnitudes from 1/2 to 1: no moment is near 0. */
static void random_gradient(Random *r, float *g, size_t n)
{
    random_fill(r, g, n);
    for (size_t i = 0; i < n; i++)
        g[i] = (g[i] < 0 ? -0.5f : 0.5f) + g[i] / 2;
}

typedef struct {
    double p, m, v;
} Reference;

static void reference_step(Reference *r, const AdamW *a, double g, double lr,
                           double t, bool decay)
{
    double m_hat, v_hat;
    r->m = a->beta1 * r->m + (1 - a->beta1) * g;
    r->v = a->beta2 * r->v + (1 - a->beta2) * g * g;
    m_hat = r->m / (1 - pow(a->beta1, t));
    v_hat = r->v / (1 - pow(a->beta2, t));
    r->p -= lr * (m_hat / (sqrt(v_hat) + a->eps)
                  + (decay ? a->weight_decay * r->p : 0));
}

/* With u = 2^-24: m is off by 3u of its greatest term a step, over the 10
 * steps that it remembers; v by 2u a step of itself, over 20; both roots and
 * quotients by a few u. With sqrt(v) >= 1/2 the quotient is off by less than
 * 200u, |quotient| < 3; the parameter by 2u of itself more, a step. */
static void test_against_double(void **state)
{
    (void)state;
    enum { N = 700, STEPS = 50 };
    Random r = test_random();
    static float p[N], g[N], m[N], v[N];
    static Reference ref[N];
    const double lr = 0.01, clip = 0.25;
    Moments moments = {DT_F32, m, v};
    for (int decay = 0; decay < 2; decay++) {
        memset(m, 0, sizeof m);
        memset(v, 0, sizeof v);
        random_fill(&r, p, N);
        for (size_t i = 0; i < N; i++)
            ref[i] = (Reference){(double)p[i], 0, 0};
        for (uint64_t t = 1; t <= STEPS; t++) {
            AdamWStep s = adamw_step(&published, lr, (float)clip, t);
            random_gradient(&r, g, N);
            adamw_update(p, g, &moments, N, decay, &s);
            for (size_t i = 0; i < N; i++)
                reference_step(&ref[i], &published, clip * (double)g[i], lr,
                               (double)t, decay);
        }
        for (size_t i = 0; i < N; i++)
            if (!(fabs((double)p[i] - ref[i].p)
                  <= STEPS * (600 * lr + 3) * 0x1p-24))
                fail_msg("%zu: %.9g is not %.9g", i, (double)p[i], ref[i].p);
    }
}

/* The first step is lr sign(g), whatever the gradient's size. */
static void test_first_step(void **state)
{
    (void)state;
    float p[3] = {1, 1, 1}, m[3] = {0}, v[3] = {0};
    const float g[3] = {1e-3f, -4, 0};
    Moments moments = {DT_F32, m, v};
    AdamWStep s = adamw_step(&published, 0.125, 1, 1);
    adamw_update(p, g, &moments, 3, false, &s);
    assert_true(fabsf(p[0] - 0.875f) < 2e-6f);   /* eps is 1e-5 of 1e-3 */
    assert_true(fabsf(p[1] - 1.125f) < 1e-6f);
    assert_true(p[2] == 1);
    assert_true(m[1] == -0.4f && m[2] == 0 && v[2] == 0);
}

/* eps stands beside the root of the unbiased moment, not within it. */
static void test_eps(void **state)
{
    (void)state;
    float p = 0, m = 0, v = 0;
    const float g = 2;
    Moments moments = {DT_F32, &m, &v};
    AdamW a = {0.5, 0.75, 6, 0};
    AdamWStep s = adamw_step(&a, 1, 1, 1);
    adamw_update(&p, &g, &moments, 1, true, &s);
    assert_true(p == -0.25f);   /* 2 / (2 + 6) */
}

/* A tensor without gradient decays all the same, by lr wd of itself. */
static void test_decay(void **state)
{
    (void)state;
    float p[2] = {1, -2}, m[2] = {0}, v[2] = {0};
    const float g[2] = {0};
    Moments moments = {DT_F32, m, v};
    AdamW a = {0.9, 0.95, 1e-8, 0.5};
    AdamWStep s = adamw_step(&a, 0.25, 1, 9);
    adamw_update(p, g, &moments, 2, false, &s);
    assert_true(p[0] == 1 && p[1] == -2);
    adamw_update(p, g, &moments, 2, true, &s);
    assert_true(p[0] == 0.875f && p[1] == -1.75f);
}

static void test_bias_correction(void **state)
{
    (void)state;
    double beta1 = 1, beta2 = 1;
    for (uint64_t t = 1; t <= 400; t++) {
        AdamWStep s = adamw_step(&published, 1, 1, t);
        beta1 *= 0.9;
        beta2 *= 0.95;
        double u1 = 1 / (1 - beta1), u2 = 1 / (1 - beta2);
        assert_true(fabs((double)s.unbias1 - u1) < u1 * 0x1p-23);
        assert_true(fabs((double)s.unbias2 - u2) < u2 * 0x1p-23);
    }
    AdamWStep last = adamw_step(&published, 1, 1, UINT64_MAX);
    assert_true(last.unbias1 == 1 && last.unbias2 == 1);
}

/* Rounded to nearest even once a step, when they are stored: the first update
 * has the bits that F32 moments give. */
static void test_bf16_moments(void **state)
{
    (void)state;
    enum { N = 300 };
    Random r = test_random();
    float p[N], q[N], g[N], m[N] = {0}, v[N] = {0};
    uint16_t short_m[N] = {0}, short_v[N] = {0};
    Moments wide = {DT_F32, m, v}, narrow = {DT_BF16, short_m, short_v};
    random_fill(&r, p, N);
    memcpy(q, p, sizeof p);
    for (uint64_t t = 1; t <= 3; t++) {
        AdamWStep s = adamw_step(&published, 0.01, 1, t);
        random_gradient(&r, g, N);
        adamw_update(p, g, &wide, N, true, &s);
        adamw_update(q, g, &narrow, N, true, &s);
        must_equal_bits(q, p, N, "parameter");
        for (size_t i = 0; i < N; i++) {
            assert_int_equal(short_m[i], bf16_from_f32(m[i]));
            assert_int_equal(short_v[i], bf16_from_f32(v[i]));
            m[i] = f32_from_bf16(short_m[i]);
            v[i] = f32_from_bf16(short_v[i]);
        }
    }
}

/* One by one or all at once: the same bits. */
static void test_elements_apart(void **state)
{
    (void)state;
    enum { N = 600 };
    Random r = test_random();
    float p[N], q[N], g[N], m[2][N] = {{0}}, v[2][N] = {{0}};
    AdamWStep s = adamw_step(&published, 0.01, 0.7f, 3);
    Moments whole = {DT_F32, m[0], v[0]};
    random_fill(&r, p, N);
    random_fill(&r, g, N);
    memcpy(q, p, sizeof p);
    adamw_update(p, g, &whole, N, true, &s);
    for (size_t i = 0; i < N; i++) {
        Moments one = {DT_F32, &m[1][i], &v[1][i]};
        adamw_update(q + i, g + i, &one, 1, true, &s);
    }
    must_equal_bits(q, p, N, "parameter");
    must_equal_bits(m[1], m[0], N, "m");
    must_equal_bits(v[1], v[0], N, "v");
}

/* The order of docs/train.md; a square of F32 is exact in double. Magnitudes
 * from 1 to 2^-15, or every order would give the same bits. */
static void test_sum_of_squares(void **state)
{
    (void)state;
    Random r = test_random();
    float g[200];
    random_fill(&r, g, 200);
    for (size_t i = 0; i < 200; i++)
        g[i] *= power_of_two(-(uint32_t)random_between(&r, 0, 15));
    for (size_t n = 0; n <= 200; n++) {
        double lane[16] = {0};
        for (size_t i = 0; i < n; i++)
            lane[i % 16] += (double)g[i] * (double)g[i];
        for (size_t s = 8; s > 0; s /= 2)
            for (size_t l = 0; l < s; l++)
                lane[l] += lane[l + s];
        assert_true(sum_of_squares(g, n) == lane[0]);
    }
    /* Squares that no float holds. */
    g[0] = 1e30f;
    g[1] = 1e-30f;
    assert_true(fabs(sum_of_squares(g, 1) / 1e60 - 1) < 1e-6);
    assert_true(fabs(sum_of_squares(g + 1, 1) / 1e-60 - 1) < 1e-6);
}

static void test_clip(void **state)
{
    (void)state;
    assert_true(clip_factor(0, 1) == 1);
    assert_true(clip_factor(1, 1) == 1);
    assert_true(clip_factor(0.1, 1) == 1);
    assert_true(clip_factor(4, 1) == 0.25f);
    assert_true(clip_factor(4, 0.5) == 0.125f);
    /* The factor is applied to what both moments see. */
    float p = 0, m = 0, v = 0;
    const float g = 8;
    Moments moments = {DT_F32, &m, &v};
    AdamW a = {0.5, 0.75, 1e-8, 0};
    AdamWStep s = adamw_step(&a, 0, clip_factor(16, 1), 1);
    adamw_update(&p, &g, &moments, 1, true, &s);
    assert_true(m == 0.25f && v == 0.0625f && p == 0);
}

/* What is equal stays so; the distance shrinks by the decay a step. */
static void test_ema(void **state)
{
    (void)state;
    float ema[3] = {1, 0.1f, 3}, p[3] = {1, 0.1f, 7};
    for (int i = 0; i < 3; i++)
        ema_update(ema, p, 3, 0.75);
    assert_true(ema[0] == 1 && ema[1] == 0.1f);
    assert_true(ema[2] == 7 - 4 * 0.75f * 0.75f * 0.75f);
    ema_update(ema, p, 3, 0);
    assert_true(ema[2] == 7);
}

static uint64_t hash_bits(uint64_t hash, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (int byte = 0; byte < 32; byte += 8)
            hash = (hash ^ (f32_bits(x[i]) >> byte & 0xff)) * 0x100000001b3;
    return hash;
}

/* The bits that every build has to give. */
static void test_golden(void **state)
{
    (void)state;
    enum { N = 500 };
    Random r = random_seeded(7);
    float p[N], g[N], m[N] = {0}, v[N] = {0}, ema[N];
    uint64_t hash = 0xcbf29ce484222325;
    Moments moments = {DT_F32, m, v};
    random_normal(&r, p, N, 0.02f);
    memcpy(ema, p, sizeof p);
    for (uint64_t t = 1; t <= 20; t++) {
        random_normal(&r, g, N, 0.3f);
        double norm = sqrt(sum_of_squares(g, N));
        AdamWStep s = adamw_step(&published, 4.2e-4 * (double)t,
                                 clip_factor(norm, 1), t);
        adamw_update(p, g, &moments, N, true, &s);
        ema_update(ema, p, N, 0.9);
    }
    hash = hash_bits(hash, p, N);
    hash = hash_bits(hash, m, N);
    hash = hash_bits(hash, v, N);
    hash = hash_bits(hash, ema, N);
    assert_true(hash == 0x81b869d0da2f8737);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_first_step),
        cmocka_unit_test(test_eps),
        cmocka_unit_test(test_decay),
        cmocka_unit_test(test_bias_correction),
        cmocka_unit_test(test_bf16_moments),
        cmocka_unit_test(test_elements_apart),
        cmocka_unit_test(test_sum_of_squares),
        cmocka_unit_test(test_clip),
        cmocka_unit_test(test_ema),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
