/* test_kernels.c: the fast products against the plain loops that define them,
 * bit by bit; the definition against golden bits; the vector functions.
 *
 * No vectors from elsewhere: the order of summation is ours. The golden bits
 * were printed by gcc -O0 from the plain loops alone; every build must give
 * them. SEED=n in the environment repeats a run with other data. */
#include "base/kernels.h"
#include "base/maths.h"
#include "base/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t seed = 1;

static uint32_t below(Random *r, uint32_t n)
{
    return (uint32_t)(random_u64(r) >> 32) % n;
}

/* A float of sign, 8 bits and an exponent within ±12 of 1; now and then ±0, a
 * tiny or a subnormal one. */
static float any_float(Random *r)
{
    uint32_t u = (uint32_t)(random_u64(r) >> 32);
    uint32_t sign = u & 0x80000000, exponent = 115 + (u >> 8) % 24;
    if ((u & 63) == 0)
        return f32_from_bits(sign | ((u & 64) ? (u >> 10) & 0x7fffff : 0));
    if ((u & 63) == 1)
        exponent = 20;
    return f32_from_bits(sign | exponent << 23 | ((u >> 3) & 0x7fffff));
}

static void put_element(unsigned char *p, DType type, Random *r)
{
    float f = any_float(r);
    uint16_t h = type == DT_BF16 ? bf16_from_f32(f) : f16_from_f32(f);
    uint8_t code = (uint8_t)below(r, 256);
    if (type == DT_F32)
        memcpy(p, &f, sizeof f);
    else if (type == DT_F8_E4M3)
        *p = (code & 0x7f) == 0x7f ? 0x80 : code;
    else
        memcpy(p, &h, sizeof h);
}

/* A matrix at an odd address, in a block of its own that ends with it, so that
 * sanitizers see any byte read beyond; NaN between the rows. */
typedef struct {
    Matrix m;
    unsigned char *data, *scale;
} Stored;

static void fill_scales(Stored *s, size_t n, Random *r)
{
    s->scale = malloc(n * sizeof(float) + 1);
    for (size_t i = 0; i < n; i++) {
        float f = any_float(r);
        memcpy(s->scale + 1 + i * sizeof f, &f, sizeof f);
    }
    s->m.scale = s->scale + 1;
}

/* kind: a DType, or DT_COUNT for F8 with scales. */
static Stored stored(int kind, size_t rows, size_t cols, Random *r)
{
    DType type = kind == DT_COUNT ? DT_F8_E4M3 : (DType)kind;
    size_t size = dtype_size(type), stride = cols + below(r, 5);
    size_t bytes = ((rows - 1) * stride + cols) * size;
    /* Subnormal F8 codes only in every other matrix: both decoders. */
    int normal = (int)below(r, 2);
    Stored s = {{0}, malloc(bytes + 1), NULL};
    memset(s.data, 0xff, bytes + 1);
    s.m = (Matrix){s.data + 1, type, rows, cols, stride, NULL, 0};
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < cols; k++) {
            unsigned char *p = s.data + 1 + (i * stride + k) * size;
            put_element(p, type, r);
            if (type == DT_F8_E4M3 && normal && (*p & 0x78) == 0)
                *p |= 0x40;
        }
    if (kind == DT_COUNT) {
        s.m.row0 = below(r, 300);
        fill_scales(&s, ((s.m.row0 + rows) / 128 + 1) * (cols / 128 + 1), r);
    }
    return s;
}

static void drop(Stored *s)
{
    free(s->data);
    free(s->scale);
}

/* (rows, cols) floats, `gap` NaN between the rows and none after the last. */
static float *floats(size_t rows, size_t cols, size_t gap, Random *r)
{
    size_t n = (rows - 1) * (cols + gap) + cols;
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = i % (cols + gap) < cols ? any_float(r) : NAN;
    return x;
}

/* NaN counts as equal to NaN: which one is no part of the promise. */
static void assert_same(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (f32_bits(a[i]) != f32_bits(b[i]) &&
            !(a[i] != a[i] && b[i] != b[i]))
            fail_msg("element %zu: %a is not %a", i, (double)a[i],
                     (double)b[i]);
}

typedef void Product(float *y, size_t ldy, const float *x, size_t ldx,
                     size_t T, const Matrix *w);

/* Both start from the same y, whose gaps must stay. */
static void compare(Product *fast, Product *plain, size_t T, size_t in,
                    size_t out, const Matrix *w, Random *r)
{
    size_t ldx = in + below(r, 4), gap = below(r, 4), ldy = out + gap;
    size_t n = (T - 1) * ldy + out;
    float *x = floats(T, in, ldx - in, r), *y = floats(T, out, gap, r);
    float *wanted = malloc(n * sizeof *wanted);
    memcpy(wanted, y, n * sizeof *y);
    fast(y, ldy, x, ldx, T, w);
    plain(wanted, ldy, x, ldx, T, w);
    assert_same(y, wanted, n);
    free(x);
    free(y);
    free(wanted);
}

static const int kinds[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_COUNT};
static const size_t batches[] = {1, 2, 3, 4, 5, 8, 16, 33, 130};
static const size_t widths[] = {0, 0, 0, 0, 0, 0, 128, 512, 576, 1024, 1408};

static size_t some_width(size_t i, Random *r)
{
    return widths[i] != 0 ? widths[i] : 1 + below(r, 99);
}

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void compare_all(Product *fast, Product *plain, int transposed)
{
    Random r = random_seeded(seed);
    for (size_t d = 0; d < COUNT(kinds); d++)
        for (size_t b = 0; b < COUNT(batches); b++)
            for (size_t i = 0; i < COUNT(widths); i++) {
                size_t cols = some_width(i, &r), rows = 1 + below(&r, 75);
                Stored w = stored(kinds[d], rows, cols, &r);
                compare(fast, plain, batches[b], transposed ? rows : cols,
                        transposed ? cols : rows, &w.m, &r);
                drop(&w);
            }
}

static void test_matmul(void **state)
{
    (void)state;
    compare_all(matmul, matmul_plain, 0);
}

static void test_matmul_t(void **state)
{
    (void)state;
    compare_all(matmul_t, matmul_t_plain, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_matmul_t),
    };
    if (getenv("SEED") != NULL)
        seed = strtoull(getenv("SEED"), NULL, 10);
    printf("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
