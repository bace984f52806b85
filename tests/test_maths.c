/* test_maths.c: errors of the functions against the C library's wider ones,
 * special values, and golden bits that every build must give.
 *
 * Bounds in units of the last place (ulp) of the result. Measured over every
 * float in range (exp32, log32) and over tens of millions of numbers against
 * long double (the others):
 *   exp32 0.979 (0.751 where the result is subnormal)   asserted 1
 *   log32 0.813                                         asserted 1
 *   exp64 0.77, log64 0.89, sin64 0.80, cos64 0.79      asserted 1
 * Here a sample of them runs; STEP=1 in the environment takes every float. */
#include "base/maths.h"
#include "base/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t seed = 1;
static uint32_t step = 4099;

static double from_bits(uint64_t u)
{
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}

static uint64_t bits(double d)
{
    uint64_t u;
    memcpy(&u, &d, sizeof u);
    return u;
}

/* |found - exact| in ulps of a float next to exact, subnormal ones included. */
static double ulps32(float found, double exact)
{
    int e = exact == 0 ? -126 : ilogb(exact);
    return fabs((double)found - exact) / ldexp(1, (e < -126 ? -126 : e) - 23);
}

static long double ulps64(double found, long double exact)
{
    int e = exact == 0 ? -1022 : ilogbl(exact);
    return fabsl(found - exact) / ldexpl(1, (e < -1022 ? -1022 : e) - 52);
}

static void test_exp32(void **state)
{
    double worst = 0;
    (void)state;
    for (uint32_t u = 0x30000000; u <= 0x42b17217; u += step)
        worst = fmax(worst, ulps32(exp32(f32_from_bits(u)),
                                   exp((double)f32_from_bits(u))));
    for (uint32_t u = 0xb0000000; u <= 0xc2d00000; u += step)
        worst = fmax(worst, ulps32(exp32(f32_from_bits(u)),
                                   exp((double)f32_from_bits(u))));
    print_message("exp32 %.4f ulp\n", worst);
    assert_true(worst < 1);
}

static void test_exp32_edges(void **state)
{
    (void)state;
    float largest = f32_from_bits(0x42b17217); /* below ln of the greatest */
    assert_true(exp32(largest) < INFINITY);
    assert_true(exp32(f32_from_bits(0x42b17218)) == INFINITY);
    assert_true(exp32(INFINITY) == INFINITY && exp32(3e38f) == INFINITY);
    assert_int_equal(f32_bits(exp32(-INFINITY)), 0);
    assert_int_equal(f32_bits(exp32(-3e38f)), 0);
    assert_int_equal(f32_bits(exp32(-103.9f)), 1);
    assert_int_equal(f32_bits(exp32(-104.1f)), 0);
    assert_true(exp32(0.0f) == 1 && exp32(-0.0f) == 1);
    assert_true(exp32(1e-30f) == 1 && exp32(-1e-45f) == 1);
    assert_true(exp32(NAN) != exp32(NAN));
}

static void test_log32(void **state)
{
    double worst = 0;
    (void)state;
    for (uint32_t u = 1; u < 0x7f800000; u += step)
        if (u != 0x3f800000)
            worst = fmax(worst, ulps32(log32(f32_from_bits(u)),
                                       log((double)f32_from_bits(u))));
    for (uint32_t u = 0x3f7f0000; u < 0x3f810000; u++)
        if (u != 0x3f800000)
            worst = fmax(worst, ulps32(log32(f32_from_bits(u)),
                                       log((double)f32_from_bits(u))));
    print_message("log32 %.4f ulp\n", worst);
    assert_true(worst < 1);
    assert_int_equal(f32_bits(log32(1)), 0);
    assert_true(log32(0.0f) == -INFINITY && log32(-0.0f) == -INFINITY);
    assert_true(log32(INFINITY) == INFINITY);
    assert_true(log32(-1.0f) != log32(-1.0f));
    assert_true(log32(-INFINITY) != log32(-INFINITY));
    assert_true(log32(NAN) != log32(NAN));
}

static double between(Random *r, double low, double high)
{
    double u = (double)(random_u64(r) >> 11) * 0x1p-53;
    return low + (high - low) * u;
}

static void skip_without_wide_long_double(void)
{
    if (LDBL_MANT_DIG < 64) {
        print_message("long double is double here\n");
        skip();
    }
}

static void test_exp64_log64(void **state)
{
    long double e = 0, l = 0;
    Random r = random_seeded(seed);
    (void)state;
    skip_without_wide_long_double();
    for (int i = 0; i < 100000; i++) {
        double x = ldexp(between(&r, -745, 709.5), i % 2 ? 0 : -(i % 24));
        double y = i % 2 ? from_bits(random_u64(&r) >> 1) : exp(x / 1000);
        e = fmaxl(e, ulps64(exp64(x), expl(x)));
        if (y > 0 && y < DBL_MAX && y != 1)
            l = fmaxl(l, ulps64(log64(y), logl(y)));
    }
    print_message("exp64 %.4Lf, log64 %.4Lf ulp\n", e, l);
    assert_true(e < 1 && l < 1);
}

static void test_edges64(void **state)
{
    (void)state;
    assert_true(exp64(0) == 1 && exp64(1e-300) == 1);
    assert_true(exp64(709.79) == INFINITY && exp64(INFINITY) == INFINITY);
    assert_true(exp64(709.78) < INFINITY);
    assert_true(exp64(-746) == 0 && exp64(-INFINITY) == 0);
    assert_true(exp64(-745) == 0x1p-1074);
    assert_true(exp64(NAN) != exp64(NAN));
    assert_true(bits(log64(1)) == 0);
    assert_true(log64(0) == -INFINITY && log64(INFINITY) == INFINITY);
    assert_true(log64(-1) != log64(-1) && log64(NAN) != log64(NAN));
    assert_true(log64(0x1p-1074) < -744.44 && log64(0x1p-1074) > -744.441);
    assert_true(bits(sin64(0)) == 0 && cos64(0) == 1);
    assert_true(pow64(10000, 0) == 1);
    assert_true(fabs(pow64(10000, -0.5) - 0.01) < 1e-17);
}

/* Angles of RoPE: positions times frequencies. */
static void test_sin64_cos64(void **state)
{
    long double worst = 0;
    long differ = 0;
    (void)state;
    skip_without_wide_long_double();
    for (int d = 0; d < 64; d += 14)
        for (int p = 0; p <= 163840; p += step == 1 ? 1 : 23) {
            double x = p * pow64(10000, -d / 64.0);
            long double s = sinl(x), c = cosl(x);
            worst = fmaxl(worst, ulps64(sin64(x), s));
            worst = fmaxl(worst, ulps64(cos64(x), c));
            differ += (float)sin64(x) != (float)s;
            differ += (float)cos64(x) != (float)c;
        }
    print_message("sin64, cos64 %.4Lf ulp; %ld floats differ\n", worst,
                  differ);
    assert_true(worst < 1);
    assert_int_equal(differ, 0);
}

/* Large angles, and those next to multiples of π/2, where all leading digits
 * cancel. */
static void test_reduction(void **state)
{
    long double worst = 0;
    Random r = random_seeded(seed);
    (void)state;
    skip_without_wide_long_double();
    for (int i = 0; i < 50000; i++) {
        double x = ldexp(between(&r, -1, 1), 30 - i % 40);
        if (i % 2)
            x = (double)(rintl(x / 1.5707963267948966L) *
                         1.57079632679489661923L);
        worst = fmaxl(worst, ulps64(sin64(x), sinl(x)));
        worst = fmaxl(worst, ulps64(cos64(x), cosl(x)));
    }
    print_message("to 2^30: %.4Lf ulp\n", worst);
    assert_true(worst < 1);
}

/* Floats whose products meet sums half-way, vanish or overflow. */
static float hard_float(Random *r)
{
    uint32_t u = (uint32_t)(random_u64(r) >> 32), kind = u & 15;
    uint32_t sign = u & 0x80000000, mantissa = (u >> 5) & 0x7fffff;
    if (kind < 6)
        mantissa &= 0x700007;
    if (kind < 3)
        mantissa |= 0x7ffff8;
    if (kind == 15)
        return f32_from_bits(sign | (u & 16 ? 0x7f800000 : mantissa));
    return f32_from_bits(sign | mantissa |
                         (kind > 12 ? 1 + (u >> 8) % 250 :
                          kind > 9 ? 50 + (u >> 8) % 30 :
                          115 + (u >> 8) % 24) << 23);
}

static void check_fma(float a, float b, float c)
{
    float exact = fmaf(a, b, c), here = fma32(a, b, c);
    float wide = fma32_in_double(a, b, c);
    if (exact != exact) {
        assert_true(here != here && wide != wide);
        return;
    }
    if (f32_bits(here) != f32_bits(exact) || f32_bits(wide) != f32_bits(exact))
        fail_msg("fma(%a, %a, %a): %a and %a, not %a", (double)a, (double)b,
                 (double)c, (double)here, (double)wide, (double)exact);
}

static void test_fma32(void **state)
{
    Random r = random_seeded(seed);
    (void)state;
    /* Rounded to double, then to float, this one comes out too great. */
    check_fma(0x1.000002p-12f, 0x1.fffffcp-13f, 0x1.000002p+0f);
    for (int i = 0; i < 1000000; i++) {
        float a = hard_float(&r), b = hard_float(&r), c = hard_float(&r);
        check_fma(a, b, c);
        check_fma(a, b, -(a * b));
        check_fma(a, b, f32_from_bits(f32_bits(a * b) ^ (1u << i % 32)));
    }
}

/* Eight arguments of each function; the same bits everywhere. */
static const uint32_t golden32[2][8] = {
    {0x3f800419, 0x3f8bb461, 0x3f5f1ce0, 0x3fbd907f, 0x3e9c26b4,
     0x428076bb, 0x379ec237, 0x7a19b576},
    {0xc10fcb8f, 0xc01be955, 0xbffdf804, 0xbf6f4951, 0x3e2ff984,
     0x3fb68af7, 0x4018bbde, 0x408cbbb9},
};
static const uint64_t golden64[4][8] = {
    {0x3ff0041919b7ee34, 0x40001c2a61268987, 0x3fd54dc284911bf1,
     0x4037240068789162, 0x3f139f38a5498fe2, 0x42f078401f5a3ec8,
     0x381666d0dad2961d, 0x7a914c0882aea6e2},
    {0xc01ba18a998fffa0, 0xbfd6d3c324e13f50, 0x3fb8663f793c46cc,
     0x3ff250cf662abf9a, 0x400202a5464624b1, 0x400c0b61ad3275b2,
     0x4011dd1704923fd2, 0x4019e8d03f927283},
    {0x3feaed548f090cee, 0x3fe16834defaadb0, 0xbfdb68af0cc5c275,
     0xbf65bcf9802743a1, 0x3fc66f6410f085ea, 0xbfe8b4fc6d9633f4,
     0xbfc000e94bd2f4a5, 0xbf8675ecbd923bcb},
    {0x3fe14a280fb5068c, 0xbfead9f150b2e096, 0x3feceabab3af8d64,
     0x3feffff89dcd6c37, 0x3fef812f4ce05bf2, 0x3fe4561815352f47,
     0xbfefbfb825666269, 0xbfefff81e046bdb1},
};

static void test_golden(void **state)
{
    static const double x[8] = {
        1e-3, 0.7, -1.1, 3.14159, -9.5, 33.3, -87, 650.25,
    };
    int differ = 0;
    (void)state;
    for (int i = 0; i < 8; i++) {
        float f = (float)x[i] / 8;
        uint32_t a = f32_bits(exp32(f)), b = f32_bits(log32(fabsf(f)));
        uint64_t found[4] = {
            bits(exp64(x[i])), bits(log64(fabs(x[i]))),
            bits(sin64(x[i] * 1000)), bits(cos64(x[i] * 1000)),
        };
        differ += a != golden32[0][i];
        differ += b != golden32[1][i];
        print_message("%d %08x %08x", i, (unsigned)a, (unsigned)b);
        for (int j = 0; j < 4; j++) {
            differ += found[j] != golden64[j][i];
            print_message(" %016llx", (unsigned long long)found[j]);
        }
        print_message("\n");
    }
    assert_int_equal(differ, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp32),
        cmocka_unit_test(test_exp32_edges),
        cmocka_unit_test(test_log32),
        cmocka_unit_test(test_exp64_log64),
        cmocka_unit_test(test_edges64),
        cmocka_unit_test(test_sin64_cos64),
        cmocka_unit_test(test_reduction),
        cmocka_unit_test(test_fma32),
        cmocka_unit_test(test_golden),
    };
    if (getenv("SEED") != NULL)
        seed = strtoull(getenv("SEED"), NULL, 0);
    if (getenv("STEP") != NULL)
        step = (uint32_t)strtoul(getenv("STEP"), NULL, 0);
    print_message("seed %llu, step %u\n", (unsigned long long)seed,
                  (unsigned)step);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
