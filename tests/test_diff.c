/* Distances worked out by hand, in every dtype.
 *
 * E4M3 and E5M2 codes and their values: the tables of the OCP 8-bit floating
 * point specification (greatest 448 and 57344, least subnormals 2^-9 and
 * 2^-16, E4M3 with no infinities). */
#include "base/diff.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static StTensor vector(DType dtype, const void *data, size_t n)
{
    StTensor t = {.name = "t", .dtype = dtype, .rank = 1, .shape = {n},
                  .elements = n, .bytes = n * dtype_size(dtype)};
    t.data = data;
    return t;
}

static DiffRow compare(const StTensor *a, const StTensor *b)
{
    DiffRow row;
    Error err;
    assert_int_equal(diff_tensor(&row, a, b, &err), 0);
    assert_string_equal(row.name, "t");
    assert_int_equal(row.elements, a->elements);
    return row;
}

static DiffRow compare_f32(const float *x, const float *y, size_t n)
{
    StTensor a = vector(DT_F32, x, n), b = vector(DT_F32, y, n);
    return compare(&a, &b);
}

static void test_equal(void **state)
{
    (void)state;
    float x[3] = {1, NAN, -INFINITY};
    DiffRow row = compare_f32(x, x, 3);
    assert_true(row.same_bits && !row.missing && !row.shape_differs);
    assert_true(row.differing == 0 && row.nmse == 0 && row.max_abs == 0);
    row = compare_f32(x, x, 0);
    assert_true(row.same_bits && row.nmse == 0);
}

static void test_distance(void **state)
{
    (void)state;
    float x[4] = {1, 2, 3, 4}, y[4] = {1, 2.5f, 3, 3.5f};
    DiffRow row = compare_f32(x, y, 4);
    assert_false(row.same_bits);
    assert_int_equal(row.differing, 2);
    assert_true(row.nmse == 0.5 / 30);
    assert_true(row.max_abs == 0.5);
    assert_int_equal(row.worst, 1); /* the first of two */
}

static void test_zeros(void **state)
{
    (void)state;
    float x[2] = {0, 1}, y[2] = {-0.0f, 1}, z[2] = {0, 0}, w[2] = {0, 2};
    DiffRow row = compare_f32(x, y, 2);
    assert_false(row.same_bits);
    assert_true(row.differing == 0 && row.nmse == 0 && row.max_abs == 0);
    row = compare_f32(x, y, 1);
    assert_true(!row.same_bits && row.nmse == 0);
    row = compare_f32(z, w, 2);
    assert_true(row.differing == 1 && isinf(row.nmse) && row.max_abs == 2);
    assert_int_equal(row.worst, 1);
}

static void test_not_finite(void **state)
{
    (void)state;
    float x[3] = {NAN, INFINITY, 2}, y[3] = {-NAN, INFINITY, 1};
    DiffRow row = compare_f32(x, y, 3);
    assert_true(row.differing == 1 && row.nmse == 0.25 && row.max_abs == 1);
    float z[3] = {NAN, INFINITY, NAN};
    row = compare_f32(x, z, 3);
    assert_true(row.differing == 1 && isinf(row.nmse) && isinf(row.max_abs));
    assert_int_equal(row.worst, 2);
    float v[3] = {NAN, -INFINITY, 2};
    row = compare_f32(x, v, 3);
    assert_true(row.differing == 1 && isinf(row.max_abs) && row.worst == 1);
}

static void test_missing_and_shapes(void **state)
{
    (void)state;
    float x[6] = {0};
    StTensor a = vector(DT_F32, x, 6), b = a;
    assert_true(compare(&a, NULL).missing);
    b.rank = 2;
    b.shape[0] = 2;
    b.shape[1] = 3;
    assert_true(compare(&a, &b).shape_differs);
    a = b;
    assert_true(compare(&a, &b).same_bits);
    a.shape[0] = 3;
    a.shape[1] = 2;
    assert_true(compare(&a, &b).shape_differs);
    a = b = vector(DT_F32, x, 1);
    a.rank = 0;
    assert_true(compare(&a, &b).shape_differs);
    b.rank = 0;
    assert_true(compare(&a, &b).same_bits);
}

/* What two elements of a dtype, given by their bits, are as doubles: each is
 * compared with the F64 that it should equal. */
static void assert_value(DType dtype, const void *bits, double value)
{
    double wrong = value + (value == 0 ? 1 : value / 2);
    unsigned char unaligned[9];
    memcpy(unaligned + 1, bits, dtype_size(dtype));
    StTensor a = vector(dtype, unaligned + 1, 1);
    StTensor b = vector(DT_F64, &value, 1), c = vector(DT_F64, &wrong, 1);
    assert_int_equal(compare(&a, &b).differing, 0);
    assert_int_equal(compare(&b, &a).differing, 0);
    assert_true(isnan(value) || isinf(value) || compare(&a, &c).differing);
}

#define VALUE(dtype, type, bits, value) \
    assert_value(dtype, &(type){bits}, value)

static void test_dtypes(void **state)
{
    (void)state;
    VALUE(DT_F64, double, -1e300, -1e300);
    VALUE(DT_F32, float, 1e-45f, 0x1p-149);
    VALUE(DT_F16, uint16_t, 0x3c01, 1 + 0x1p-10);
    VALUE(DT_F16, uint16_t, 0x8001, -0x1p-24);
    VALUE(DT_F16, uint16_t, 0xfc00, -INFINITY);
    VALUE(DT_BF16, uint16_t, 0x3f81, 1 + 0x1p-7);
    VALUE(DT_BF16, uint16_t, 0x7fc0, NAN);
    VALUE(DT_I64, int64_t, -5, -5);
    VALUE(DT_I64, int64_t, INT64_MIN, -0x1p63);
    VALUE(DT_U64, uint64_t, UINT64_MAX, 0x1p64);
    VALUE(DT_I32, int32_t, -2147483647, -2147483647.0);
    VALUE(DT_U32, uint32_t, 4294967295u, 4294967295.0);
    VALUE(DT_I16, int16_t, -32768, -32768);
    VALUE(DT_U16, uint16_t, 65535, 65535);
    VALUE(DT_I8, int8_t, -128, -128);
    VALUE(DT_U8, uint8_t, 255, 255);
    VALUE(DT_BOOL, uint8_t, 1, 1);
}

static void test_eight_bit_floats(void **state)
{
    (void)state;
    VALUE(DT_F8_E4M3, uint8_t, 0x7e, 448);
    VALUE(DT_F8_E4M3, uint8_t, 0xfe, -448);
    VALUE(DT_F8_E4M3, uint8_t, 0x38, 1);
    VALUE(DT_F8_E4M3, uint8_t, 0x01, 0x1p-9);
    VALUE(DT_F8_E4M3, uint8_t, 0x87, -0x1.cp-7);
    VALUE(DT_F8_E4M3, uint8_t, 0x08, 0x1p-6);
    VALUE(DT_F8_E4M3, uint8_t, 0x80, 0);
    VALUE(DT_F8_E4M3, uint8_t, 0x7f, NAN);
    VALUE(DT_F8_E4M3, uint8_t, 0xff, NAN);
    VALUE(DT_F8_E5M2, uint8_t, 0x7b, 57344);
    VALUE(DT_F8_E5M2, uint8_t, 0x3c, 1);
    VALUE(DT_F8_E5M2, uint8_t, 0x81, -0x1p-16);
    VALUE(DT_F8_E5M2, uint8_t, 0x7c, INFINITY);
    VALUE(DT_F8_E5M2, uint8_t, 0xfe, NAN);
}

static void test_mixed_dtypes(void **state)
{
    (void)state;
    float x[2] = {1, -7};
    int32_t y[2] = {1, -7};
    StTensor a = vector(DT_F32, x, 2), b = vector(DT_I32, y, 2);
    DiffRow row = compare(&a, &b);
    assert_true(!row.same_bits && row.differing == 0 && row.nmse == 0);
    b = vector(DT_I32, x, 2); /* the same bytes, other values */
    row = compare(&a, &b);
    assert_true(!row.same_bits && row.differing == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal),
        cmocka_unit_test(test_distance),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_missing_and_shapes),
        cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_eight_bit_floats),
        cmocka_unit_test(test_mixed_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
