/* test_sample.c: the distribution against one sorted and cut naively; draws
 * against their probabilities; edges. */
#include "base/kernels.h"
#include "base/sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { MAX = 300 };

static uint64_t seed = 1;

static void test_argmax(void **state)
{
    static const float x[] = {1, -2, 7, 7, 3, 7};
    static const float low[] = {-3e38f, -5, -5};
    (void)state;
    assert_int_equal(argmax(x, 6), 2);
    assert_int_equal(argmax(x, 2), 0);
    assert_int_equal(argmax(low, 3), 1);
}

static void test_greedy(void **state)
{
    static const float x[] = {1, 9, 9, 3};
    uint32_t order[4];
    float p[4];
    Sampler s = {0, 3, 0.1f};
    Random r = random_seeded(seed);
    (void)state;
    assert_int_equal(sample_distribution(&s, x, 4, order, p), 1);
    assert_int_equal(order[0], 1);
    assert_true(p[0] == 1);
    assert_int_equal(sample_draw(order, p, 1, &r), 1);
}

/* Selection sort: descending, ties to the lowest index. */
static void sort_naively(uint32_t *order, float *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = i + 1; j < n; j++)
            if (p[j] > p[i] || (!(p[j] < p[i]) && order[j] < order[i])) {
                float q = p[i];
                uint32_t o = order[i];
                p[i] = p[j], p[j] = q;
                order[i] = order[j], order[j] = o;
            }
}

static size_t distribution_naively(const Sampler *s, const float *x, size_t n,
                                   uint32_t *order, float *p)
{
    double mass = 0, target;
    size_t kept = n, k = s->top_k != 0 && s->top_k < n ? s->top_k : n;
    float greatest = x[argmax(x, n)];
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
        p[i] = (x[i] - greatest) / s->temperature;
    }
    softmax(p, p, n);
    if (k < n || s->top_p < 1)
        sort_naively(order, p, n);
    for (size_t i = 0; i < k; i++)
        mass += (double)p[i];
    target = (double)s->top_p * (k < n ? mass : 1);
    if (s->top_p < 1)
        for (kept = 0, mass = 0; kept < k && (kept == 0 || mass < target);)
            mass += (double)p[kept++];
    else
        kept = k;
    for (size_t i = 0; i < kept; i++)
        p[i] = p[i] * (float)(1 / mass);
    return kept;
}

/* Logits with many ties, and ones far apart. */
static size_t some_logits(Random *r, float *x)
{
    size_t n = 1 + random_u64(r) % MAX;
    int ties = random_u64(r) % 2 == 0;
    random_normal(r, x, n, 4);
    for (size_t i = 0; i < n; i++)
        if (ties)
            x[i] = rintf(x[i]);
    return n;
}

static void test_against_naive(void **state)
{
    static const float temperatures[] = {0.01f, 0.3f, 1, 5};
    static const float ps[] = {1, 0.95f, 0.5f, 0.01f, 0, 2};
    static const size_t ks[] = {0, 1, 2, 7, 50, 1000};
    Random r = random_seeded(seed);
    (void)state;
    for (int i = 0; i < 2000; i++) {
        float x[MAX], p[MAX], q[MAX];
        uint32_t order[MAX], wanted[MAX];
        size_t n = some_logits(&r, x);
        Sampler s = {temperatures[random_u64(&r) % 4],
                     ks[random_u64(&r) % 6], ps[random_u64(&r) % 6]};
        size_t kept = sample_distribution(&s, x, n, order, p);
        assert_int_equal(kept, distribution_naively(&s, x, n, wanted, q));
        assert_memory_equal(order, wanted, kept * sizeof *order);
        assert_memory_equal(p, q, kept * sizeof *p);
    }
}

static void test_edges(void **state)
{
    static const float x[] = {0, 0, 0, 0};
    uint32_t order[4];
    float p[4];
    Sampler half = {1, 0, 0.5f}, tiny = {1e-38f, 0, 1}, two = {1, 2, 1};
    Sampler three = {1, 3, 0.5f};
    static const float huge[] = {-3e38f, 3e38f};
    (void)state;
    /* A sum that just reaches p is enough; then 2 of 3. */
    assert_int_equal(sample_distribution(&half, x, 4, order, p), 2);
    assert_true(p[0] == 0.5f && p[1] == 0.5f);
    assert_int_equal(sample_distribution(&three, x, 4, order, p), 2);
    assert_int_equal(sample_distribution(&two, x, 4, order, p), 2);
    assert_int_equal(order[1], 1);
    /* Differences that overflow are probabilities of 0. */
    assert_int_equal(sample_distribution(&tiny, huge, 2, order, p), 2);
    assert_true(p[0] == 0 && p[1] == 1);
    assert_int_equal(sample_distribution(&half, x, 1, order, p), 1);
    assert_true(p[0] == 1);
}

/* The generator's finish maps 0 to 0: a state one step before 0 gives u = 0,
 * which must not draw what has no probability. */
static void test_draw_of_zero(void **state)
{
    static const uint32_t order[] = {5, 6, 7};
    static const float p[] = {0, 1, 0};
    Random r = random_seeded(0 - UINT64_C(0x9e3779b97f4a7c15)), same = r;
    (void)state;
    assert_true(random_u64(&same) == 0);
    assert_int_equal(sample_draw(order, p, 3, &r), 6);
}

/* Each count within five standard deviations; zeros are never drawn. */
static void test_draws(void **state)
{
    enum { N = 6, DRAWS = 200000 };
    static const uint32_t order[N] = {4, 9, 2, 7, 1, 3};
    static const float p[N] = {0, 0.5f, 0.25f, 0.2f, 0.05f, 0};
    size_t counts[10] = {0};
    Random r = random_seeded(seed);
    (void)state;
    for (int i = 0; i < DRAWS; i++)
        counts[sample_draw(order, p, N, &r)]++;
    for (int i = 0; i < N; i++) {
        double mean = (double)p[i] * DRAWS;
        double off = fabs((double)counts[order[i]] - mean);
        assert_true(off <= 5 * sqrt(mean * (1 - (double)p[i])));
    }
}

/* The whole way from a seed, the same in every build. */
static void test_golden(void **state)
{
    static const uint32_t golden[] = {291, 257, 263, 268, 1, 1, 10, 38};
    static const Sampler samplers[] = {
        {1, 0, 1}, {0.7f, 0, 0.95f}, {1.5f, 40, 1}, {1, 40, 0.9f},
    };
    float x[MAX], p[MAX];
    uint32_t order[MAX];
    Random r = random_seeded(7);
    int differ = 0;
    (void)state;
    random_normal(&r, x, MAX, 2);
    for (int i = 0; i < 8; i++) {
        size_t kept = sample_distribution(&samplers[i % 4], x, MAX, order, p);
        uint32_t drawn = sample_draw(order, p, kept, &r);
        print_message("%u, ", (unsigned)drawn);
        differ += drawn != golden[i];
    }
    print_message("\n");
    assert_int_equal(differ, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_argmax), cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_against_naive), cmocka_unit_test(test_edges),
        cmocka_unit_test(test_draw_of_zero), cmocka_unit_test(test_draws),
        cmocka_unit_test(test_golden),
    };
    if (getenv("SEED") != NULL)
        seed = strtoull(getenv("SEED"), NULL, 0);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
