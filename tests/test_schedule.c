/* test_schedule.c: the published schedules, and what a segment is.
 *
 * Figures: V2 §3.1.2 (2.4e-4, times 0.316 after 60 % and 90 % of 8.1T tokens;
 * 2304 to 9216 sequences over 225B), V2-Lite (4.2e-4, after 80 % and 90 % of
 * 5.7T), V3 §4.2 (2.2e-4 to 10T, cosine to 2.2e-5 over 4.3T, that for 333B,
 * 7.3e-6 for 167B; 3072 to 15360 sequences over 469B). The shape of the ramps
 * is not published: linear here. */
#include "support.h"

#define T *1e12
#define B *1e9

static const Schedule v2_lr = {3, {
    {(uint64_t)(4.86 T), SHAPE_CONSTANT, 2.4e-4, 2.4e-4},
    {(uint64_t)(7.29 T), SHAPE_CONSTANT, 7.584e-5, 7.584e-5},
    {UINT64_MAX, SHAPE_CONSTANT, 2.396544e-5, 2.396544e-5}}};
static const Schedule v2_batch = {2, {
    {(uint64_t)(225 B), SHAPE_LINEAR, 2304, 9216},
    {UINT64_MAX, SHAPE_CONSTANT, 9216, 9216}}};
static const Schedule v2_lite_lr = {3, {
    {(uint64_t)(4.56 T), SHAPE_CONSTANT, 4.2e-4, 4.2e-4},
    {(uint64_t)(5.13 T), SHAPE_CONSTANT, 1.3272e-4, 1.3272e-4},
    {UINT64_MAX, SHAPE_CONSTANT, 4.193952e-5, 4.193952e-5}}};
static const Schedule v3_lr = {4, {
    {(uint64_t)(10 T), SHAPE_CONSTANT, 2.2e-4, 2.2e-4},
    {(uint64_t)(14.3 T), SHAPE_COSINE, 2.2e-4, 2.2e-5},
    {(uint64_t)(14.633 T), SHAPE_CONSTANT, 2.2e-5, 2.2e-5},
    {(uint64_t)(14.8 T), SHAPE_CONSTANT, 7.3e-6, 7.3e-6}}};
static const Schedule v3_batch = {2, {
    {(uint64_t)(469 B), SHAPE_LINEAR, 3072, 15360},
    {UINT64_MAX, SHAPE_CONSTANT, 15360, 15360}}};
static const Schedule v3_gamma = {2, {
    {(uint64_t)(14.3 T), SHAPE_CONSTANT, 0.001, 0.001},
    {UINT64_MAX, SHAPE_CONSTANT, 0, 0}}};
static const Schedule v3_lambda = {2, {
    {(uint64_t)(10 T), SHAPE_CONSTANT, 0.3, 0.3},
    {UINT64_MAX, SHAPE_CONSTANT, 0.1, 0.1}}};

static double at(const Schedule *s, double tokens)
{
    return schedule_value(s, (uint64_t)tokens);
}

/* To as many digits as the figure has. */
static bool near(double found, double wanted, double digit)
{
    return fabs(found - wanted) <= digit / 2;
}

static void test_v2(void **state)
{
    (void)state;
    assert_true(at(&v2_lr, 0) == 2.4e-4);
    assert_true(at(&v2_lr, 4.86 T - 1) == 2.4e-4);
    assert_true(near(at(&v2_lr, 4.86 T), 2.4e-4 * 0.316, 1e-18));
    assert_true(near(at(&v2_lr, 7.29 T - 1), 7.584e-5, 1e-18));
    assert_true(near(at(&v2_lr, 8.1 T), 2.4e-4 * 0.316 * 0.316, 1e-18));
    assert_true(at(&v2_lite_lr, 4.56 T - 1) == 4.2e-4);
    assert_true(near(at(&v2_lite_lr, 4.56 T), 4.2e-4 * 0.316, 1e-18));
    assert_true(near(at(&v2_lite_lr, 5.7 T), 4.194e-5, 1e-8));
    assert_int_equal(schedule_sequences(&v2_batch, 0), 2304);
    assert_int_equal(schedule_sequences(&v2_batch, 225000000000 / 2), 5760);
    assert_int_equal(schedule_sequences(&v2_batch, 225000000000 - 1), 9216);
    assert_int_equal(schedule_sequences(&v2_batch, 225000000000), 9216);
}

static void test_v3(void **state)
{
    (void)state;
    assert_true(at(&v3_lr, 10 T - 1) == 2.2e-4);
    assert_true(near(at(&v3_lr, 10 T), 2.2e-4, 1e-18));
    assert_true(near(at(&v3_lr, 11 T), 1.9473e-4, 1e-8));
    assert_true(near(at(&v3_lr, 12.15 T), 1.21e-4, 1e-17));
    assert_true(near(at(&v3_lr, 14 T), 2.4368e-5, 1e-9));
    assert_true(at(&v3_lr, 14.3 T) == 2.2e-5);
    assert_true(at(&v3_lr, 14.633 T) == 7.3e-6);
    assert_true(at(&v3_lr, 15 T) == 7.3e-6);   /* behind the last segment */
    assert_true(at(&v3_gamma, 14.3 T - 1) == 0.001);
    assert_true(at(&v3_gamma, 14.3 T) == 0);
    assert_true(at(&v3_lambda, 10 T - 1) == 0.3);
    assert_true(at(&v3_lambda, 10 T) == 0.1);
}

/* The whole of V3's pre-training, step by step: with the ramp
 * 469e9 / (12288·4096) · ln(15360/3072) + 14.331e12 / (15360·4096) steps. */
static void test_v3_steps(void **state)
{
    (void)state;
    uint64_t tokens = 0, steps = 0;
    size_t last = 0;
    while (tokens < (uint64_t)(14.8 T)) {
        size_t batch = schedule_sequences(&v3_batch, tokens);
        assert_true(batch >= last);
        last = batch;
        tokens += batch * 4096;
        steps++;
    }
    double ramp = 469e9 / (12288.0 * 4096) * log(5);
    assert_true(fabs((double)steps - (ramp + 14.331e12 / 62914560)) < 3);
}

static void test_shapes(void **state)
{
    (void)state;
    Schedule s = {3, {{100, SHAPE_LINEAR, 4, 8}, {300, SHAPE_COSINE, 8, 0},
                      {400, SHAPE_LINEAR, 1, 3}}};
    assert_true(schedule_value(&s, 0) == 4);
    assert_true(schedule_value(&s, 25) == 5);
    assert_true(schedule_value(&s, 100) == 8);
    assert_true(near(schedule_value(&s, 150), 4 + 4 * sqrt(0.5), 1e-14));
    assert_true(near(schedule_value(&s, 200), 4, 1e-14));
    assert_true(near(schedule_value(&s, 299), 4 - 4 * cos(0.005 * acos(-1)),
                     1e-13));
    assert_true(schedule_value(&s, 300) == 1);
    assert_true(schedule_value(&s, 350) == 2);
    assert_true(schedule_value(&s, 400) == 3);
    assert_true(schedule_value(&s, UINT64_MAX) == 3);
    s = schedule_constant(0.25);
    assert_true(schedule_value(&s, 0) == 0.25);
    assert_true(schedule_value(&s, UINT64_MAX) == 0.25);
}

static void test_whole_sequences(void **state)
{
    (void)state;
    static const double value[] = {0, 0.4, 1.49, 1.5, 2.5, 7};
    static const size_t wanted[] = {1, 1, 1, 2, 3, 7};
    for (size_t i = 0; i < 6; i++) {
        Schedule s = schedule_constant(value[i]);
        assert_int_equal(schedule_sequences(&s, 1), wanted[i]);
    }
}

static void test_warm_up(void **state)
{
    (void)state;
    assert_true(warm_up(8, 1, 4) == 2);
    assert_true(warm_up(8, 3, 4) == 6);
    assert_true(warm_up(8, 4, 4) == 8);
    assert_true(warm_up(8, 5, 4) == 8);
    assert_true(warm_up(8, 1, 0) == 8);
    assert_true(warm_up(2.4e-4, 2000, 2000) == 2.4e-4);
    assert_true(warm_up(2.4e-4, 1, 2000) == 2.4e-4 * (1 / 2000.0));
}

/* The bits that every build has to give. */
static void test_golden(void **state)
{
    (void)state;
    uint64_t hash = 0xcbf29ce484222325, bits;
    for (uint64_t x = 0; x < (uint64_t)(15 T); x += 7777777777) {
        double value = schedule_value(&v3_lr, x);
        memcpy(&bits, &value, sizeof bits);
        hash = (hash ^ bits) * 0x100000001b3;
    }
    assert_true(hash == 0xacfb04d5db4dcc61);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v2),
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_v3_steps),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_whole_sequences),
        cmocka_unit_test(test_warm_up),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
