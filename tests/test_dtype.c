/* test_dtype.c: every F16, BF16 and F8 code against its definition in double;
 * rounding against the midpoints of neighbours. */
#include "base/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_names(void **state)
{
    static const size_t sizes[DT_COUNT] = {
        4, 2, 2, 1, 8, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1,
    };
    (void)state;
    for (int t = 0; t < DT_COUNT; t++) {
        const char *name = dtype_name((DType)t);
        assert_int_equal(dtype_parse(name, strlen(name)), t);
        assert_int_equal(dtype_size((DType)t), sizes[t]);
    }
    assert_string_equal(dtype_name(DT_F8_E4M3), "F8_E4M3");
    assert_int_equal(dtype_parse("BF16!", 4), DT_BF16);
    assert_int_equal(dtype_parse("BF16", 3), DT_COUNT);
    assert_int_equal(dtype_parse("BF16\0", 5), DT_COUNT);
    assert_int_equal(dtype_parse("bf16", 4), DT_COUNT);
    assert_int_equal(dtype_parse("", 0), DT_COUNT);
}

/* The value of a code of e exponent and m mantissa bits, without infinities
 * and NaN. */
static double value(unsigned code, int e, int m)
{
    int exponent = (int)(code >> m) & ((1 << e) - 1), bias = (1 << (e - 1)) - 1;
    int mantissa = (int)code & ((1 << m) - 1);
    double v = exponent == 0 ?
                   ldexp(mantissa, 1 - bias - m) :
                   ldexp(mantissa + (1 << m), exponent - bias - m);
    return code >> (e + m) & 1 ? -v : v;
}

static void assert_value(float found, double wanted)
{
    assert_true((double)found == wanted);
    assert_int_equal(!signbit(found), !signbit(wanted));
}

static void test_f8(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 256; code++) {
        float f = f32_from_f8((uint8_t)code);
        if ((code & 0x7f) == 0x7f)
            assert_true(f != f);
        else
            assert_value(f, value(code, 4, 3));
    }
}

static void test_f16(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 65536; code++) {
        float f = f32_from_f16((uint16_t)code);
        if ((code & 0x7fff) > 0x7c00)
            assert_true(f != f);
        else if ((code & 0x7fff) == 0x7c00)
            assert_value(f, code >> 15 ? -HUGE_VAL : HUGE_VAL);
        else
            assert_value(f, value(code, 5, 10));
    }
}

static void test_bf16(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 65536; code++) {
        float f = f32_from_bf16((uint16_t)code);
        if ((code & 0x7fff) > 0x7f80) /* x87 returns it changed, but NaN */
            assert_true(f != f);
        else
            assert_int_equal(f32_bits(f), (uint32_t)code << 16);
    }
}

typedef uint16_t Encode(float f);
typedef float Decode(uint16_t code);

static float half_from(uint16_t code)
{
    return f32_from_f16(code);
}

static float brain_from(uint16_t code)
{
    return f32_from_bf16(code);
}

/* Codes up to `infinity` in order: each is its own, the midpoint of two goes
 * to the even one, and the floats beside a midpoint to their side. */
static void check_rounding(Encode *encode, Decode *decode, unsigned infinity,
                           double beyond)
{
    for (unsigned code = 0; code < infinity; code++) {
        float f = decode((uint16_t)code);
        double next = code + 1 < infinity ?
                          (double)decode((uint16_t)(code + 1)) : beyond;
        float middle = (float)(((double)f + next) / 2);
        unsigned even = code & 1 ? code + 1 : code;
        assert_int_equal(encode(f), code);
        assert_int_equal(encode(-f), code | 0x8000);
        assert_int_equal(encode(middle), even);
        assert_int_equal(encode(-middle), even | 0x8000);
        assert_int_equal(encode(nextafterf(middle, 0)), code);
        assert_int_equal(encode(nextafterf(middle, INFINITY)), code + 1);
    }
    assert_int_equal(encode(INFINITY), infinity);
    assert_int_equal(encode(-INFINITY), infinity | 0x8000);
}

static void check_nan(Encode *encode, Decode *decode)
{
    static const uint32_t nans[] = {
        0x7f800001, 0xff800001, 0x7fffffff, 0xffc00000, 0x7f801fff,
    };
    for (size_t i = 0; i < 5; i++) {
        float f = decode(encode(f32_from_bits(nans[i])));
        assert_true(f != f);
    }
}

static void test_encode(void **state)
{
    (void)state;
    check_rounding(f16_from_f32, half_from, 0x7c00, 65536);
    check_rounding(bf16_from_f32, brain_from, 0x7f80, 0x1p128);
    check_nan(f16_from_f32, half_from);
    check_nan(bf16_from_f32, brain_from);
    assert_int_equal(f16_from_f32(3e38f), 0x7c00);
    assert_int_equal(f16_from_f32(70000), 0x7c00);
    assert_int_equal(f16_from_f32(1e-40f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names), cmocka_unit_test(test_f8),
        cmocka_unit_test(test_f16),   cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_encode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
