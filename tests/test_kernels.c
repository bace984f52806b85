/* test_kernels.c: the fast products against the plain loops that define them,
 * bit by bit; the definition against golden bits; the vector functions.
 *
 * No vectors from elsewhere: the order of summation is ours. The golden bits
 * were printed by gcc -O0 on x86-64 without FMA instructions; every build must
 * give them. SEED=n in the environment tries other data. */
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
    /* F8 codes that are no normal numbers: as they come, none, or few. */
    uint32_t normal = below(r, 3);
    Stored s = {{0}, malloc(bytes + 1), NULL};
    memset(s.data, 0xff, bytes + 1);
    s.m = (Matrix){s.data + 1, type, rows, cols, stride, NULL, 0};
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < cols; k++) {
            unsigned char *p = s.data + 1 + (i * stride + k) * size;
            put_element(p, type, r);
            if (normal != 0 && type == DT_F8_E4M3 && (*p & 0x78) == 0 &&
                (normal == 1 || below(r, 100) != 0))
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
                size_t cols = some_width(i, &r);
                size_t rows = 1 + below(&r, below(&r, 4) ? 20 : 75);
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

/* Tiles of every shape. */
static void test_every_batch(void **state)
{
    enum { ROWS = 21, COLS = 137, MOST = 40 };
    (void)state;
    Random r = random_seeded(seed);
    for (size_t d = 0; d < COUNT(kinds); d++)
        for (size_t T = 1; T <= MOST; T++) {
            Stored w = stored(kinds[d], ROWS, COLS, &r);
            compare(matmul, matmul_plain, T, COLS, ROWS, &w.m, &r);
            compare(matmul_t, matmul_t_plain, T, ROWS, COLS, &w.m, &r);
            drop(&w);
        }
}

/* Whole runs of 16 columns, many rows of x: lanes one after another. Sizes
 * around those of tiles, panels, blocks, and where that way begins and ends. */
static void test_many_short(void **state)
{
    static const size_t rows[] = {1, 15, 16, 17, 31, 32, 33, 47, 64, 70};
    static const size_t cols[] = {16, 32, 48, 64, 256, 640, 656};
    static const size_t T[] = {23, 24, 25, 29, 30, 505, 511};
    Random r = random_seeded(seed);
    (void)state;
    for (size_t i = 0; i < 7 * COUNT(rows) * 2; i++) {
        size_t n = i < 7 * COUNT(rows) ? T[i % 5] : T[5 + i % 2];
        size_t k = cols[n < 500 ? i % COUNT(cols) : i % 3];
        int kind = kinds[i % COUNT(kinds)];
        Stored w = stored(kind, rows[i % COUNT(rows)], k, &r);
        compare(matmul, matmul_plain, n, k, w.m.rows, &w.m, &r);
        drop(&w);
    }
}

/* More rows of y than go by w together, more rows of w than a panel has. */
static void test_many_sums(void **state)
{
    static const size_t rows[] = {5, 128, 129, 260};
    static const size_t cols[] = {8, 16, 33, 64, 100};
    Random r = random_seeded(seed);
    (void)state;
    for (size_t i = 0; i < COUNT(rows) * COUNT(cols); i++) {
        Stored w = stored(kinds[i % COUNT(kinds)], rows[i % COUNT(rows)],
                          cols[i % COUNT(cols)], &r);
        compare(matmul_t, matmul_t_plain, 500 + i, w.m.rows, w.m.cols, &w.m,
                &r);
        drop(&w);
    }
}

/* One F8 code among normal ones that is none, at every column: whole blocks,
 * a short one, one that ends in less than sixteen columns. */
static void test_abnormal_codes(void **state)
{
    enum { ROWS = 8, COLS = 224, RAGGED = 85 };
    static const uint8_t codes[] = {0x00, 0x80, 0x07, 0x7f};
    (void)state;
    Random r = random_seeded(seed);
    for (size_t i = 0; i < COUNT(codes) * COLS; i++)
        for (size_t T = 1; T <= 4; T += 3) {
            size_t k = i % COLS, cols = k < RAGGED && T == 1 ? RAGGED : COLS;
            uint8_t w[ROWS * COLS];
            float scales[2] = {0.75f, -3};
            for (size_t j = 0; j < sizeof w; j++)
                w[j] = (uint8_t)(0x30 + below(&r, 32) + 128 * below(&r, 2));
            w[k % ROWS * cols + k] = codes[i / COLS];
            Matrix m = {w, DT_F8_E4M3, ROWS, cols, cols, scales, 0};
            compare(matmul, matmul_plain, T, cols, ROWS, &m, &r);
        }
}

/* A row of x alone gives what it gives among others. */
static void test_batch(void **state)
{
    enum { T = 11, ROWS = 21, COLS = 300 };
    (void)state;
    Random r = random_seeded(seed);
    for (size_t d = 0; d < COUNT(kinds); d++) {
        Stored w = stored(kinds[d], ROWS, COLS, &r);
        float *x = floats(T, COLS, 0, &r), y[T * ROWS], alone[ROWS];
        matmul(y, ROWS, x, COLS, T, &w.m);
        for (size_t t = 0; t < T; t++) {
            matmul(alone, ROWS, x + t * COLS, COLS, 1, &w.m);
            assert_same(y + t * ROWS, alone, ROWS);
        }
        free(x);
        drop(&w);
    }
}

/* Rows of a view take their scales from the whole tensor's grid. */
static void test_views(void **state)
{
    enum { ROWS = 400, COLS = 200 };
    (void)state;
    Random r = random_seeded(seed);
    Stored w = stored(DT_COUNT, ROWS, COLS, &r);
    float *x = floats(1, COLS, 0, &r), y[ROWS], part[ROWS];
    matmul(y, ROWS, x, COLS, 1, &w.m);
    for (size_t begin = 0; begin < ROWS; begin += 37) {
        Matrix v = matrix_rows(&w.m, begin, ROWS - begin);
        matmul(part, ROWS, x, COLS, 1, &v);
        assert_same(part, y + begin, ROWS - begin);
    }
    free(x);
    drop(&w);
}

/* Every F8 code, NaN too, alone and among normal ones. */
static void test_codes(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 256; code++)
        for (size_t n = 1; n <= 128; n += 127) {
            uint8_t codes[128];
            float y[128];
            memset(codes, 0x38, sizeof codes);
            codes[n / 2] = (uint8_t)code;
            Matrix m = {codes, DT_F8_E4M3, 1, n, n, NULL, 0};
            matrix_row(y, &m, 0);
            float wanted = f32_from_f8((uint8_t)code);
            assert_same(y + n / 2, &wanted, 1);
        }
}

/* Scaled elements are rounded once. */
static void test_matrix_row(void **state)
{
    (void)state;
    Random r = random_seeded(seed);
    Stored w = stored(DT_COUNT, 5, 300, &r);
    float y[300], scaled[3];
    for (size_t i = 0; i < 5; i++) {
        size_t grid = (w.m.row0 + i) / 128 * 3;
        memcpy(scaled, w.scale + 1 + grid * sizeof(float), sizeof scaled);
        matrix_row(y, &w.m, i);
        for (size_t k = 0; k < 300; k++) {
            float v = f32_from_f8(w.data[1 + i * w.m.stride + k]);
            v = v * scaled[k / 128];
            assert_same(y + k, &v, 1);
        }
    }
    drop(&w);
}

/* Sixteen lanes and their tree, written out. */
static float tree_of(float a[16])
{
    for (int l = 0; l < 8; l++)
        a[l] += a[l + 8];
    for (int l = 0; l < 4; l++)
        a[l] += a[l + 4];
    return (a[0] + a[2]) + (a[1] + a[3]);
}

static void test_sum_and_dot(void **state)
{
    (void)state;
    Random r = random_seeded(seed);
    for (size_t n = 0; n < 200; n++) {
        float *x = floats(1, n + 1, 0, &r), *z = floats(1, n + 1, 0, &r);
        float sums[16] = {0}, products[16] = {0};
        for (size_t i = 0; i < n; i++) {
            sums[i % 16] += x[i];
            products[i % 16] = fma32(x[i], z[i], products[i % 16]);
        }
        float s = sum(x, n), d = dot(x, z, n);
        float wanted_s = tree_of(sums), wanted_d = tree_of(products);
        assert_same(&s, &wanted_s, 1);
        assert_same(&d, &wanted_d, 1);
        free(x);
        free(z);
    }
}

/* A product of -2^-200 underflows to -0; padding then makes the lane +0. So
 * the sign tells a padded tail from a skipped one, in all 16 lanes or none. */
static void test_padding(void **state)
{
    float w[32], x[32], y;
    (void)state;
    for (size_t i = 0; i < 32; i++) {
        w[i] = -0x1p-100f;
        x[i] = 0x1p-100f;
    }
    Matrix m = matrix_f32(w, 1, 32, 32);
    matmul(&y, 1, x, 32, 1, &m);
    assert_int_equal(f32_bits(y), 0x80000000);
    assert_int_equal(f32_bits(dot(w, x, 16)), 0x80000000);
    for (size_t n = 17; n < 32; n++) {
        m.cols = n;
        matmul(&y, 1, x, 32, 1, &m);
        assert_int_equal(f32_bits(y), 0);
        assert_int_equal(f32_bits(dot(w, x, n)), 0);
    }
}

static void test_rmsnorm(void **state)
{
    enum { T = 3, N = 77, LD = 80 };
    (void)state;
    Random r = random_seeded(seed);
    for (size_t d = 0; d < 3; d++) {
        Stored w = stored(kinds[d], 1, N, &r);
        float *x = floats(T, N, LD - N, &r), y[T * LD], weight[N];
        rmsnorm(y, LD, x, LD, T, &w.m, 1e-6f);
        matrix_row(weight, &w.m, 0);
        for (size_t t = 0; t < T; t++) {
            const float *row = x + t * LD;
            float mean = dot(row, row, N) / N, inverse;
            inverse = 1 / sqrtf(mean + 1e-6f);
            for (size_t i = 0; i < N; i++) {
                float v = row[i] * inverse;
                v = v * weight[i];
                assert_same(y + t * LD + i, &v, 1);
            }
        }
        free(x);
        drop(&w);
    }
}

static void test_softmax(void **state)
{
    (void)state;
    Random r = random_seeded(seed);
    for (size_t n = 1; n < 70; n++) {
        float s[70], e[70], p[70], greatest = -INFINITY;
        for (size_t i = 0; i < n; i++) {
            s[i] = 40 * random_uniform(&r) - 20;
            if (i > 0 && below(&r, 8) == 0)
                s[i] = below(&r, 2) ? s[0] : -INFINITY;
            greatest = s[i] > greatest ? s[i] : greatest;
        }
        for (size_t i = 0; i < n; i++)
            e[i] = exp32(s[i] - greatest);
        float inverse = 1 / sum(e, n);
        softmax(p, s, n);
        for (size_t i = 0; i < n; i++)
            e[i] = e[i] * inverse;
        assert_same(p, e, n);
        softmax(s, s, n);
        assert_same(s, e, n);
    }
}

static void test_activations(void **state)
{
    enum { N = 100 };
    (void)state;
    Random r = random_seeded(seed);
    float *g = floats(1, N, 0, &r), *u = floats(1, N, 0, &r);
    float sigma[N], h[N], a[N], b[N], c[N];
    sigmoid(sigma, g, N);
    silu_mul(h, g, u, N);
    add(a, g, u, N);
    memcpy(b, u, sizeof b);
    add_scaled(b, 1.7f, g, N);
    scale(c, g, 1.7f, N);
    for (size_t i = 0; i < N; i++) {
        float s = 1 + exp32(-g[i]), v, sum_of = g[i] + u[i];
        float product = g[i] * 1.7f, fused = fma32(1.7f, g[i], u[i]);
        s = 1 / s;
        v = g[i] * s;
        v = v * u[i];
        assert_same(sigma + i, &s, 1);
        assert_same(h + i, &v, 1);
        assert_same(a + i, &sum_of, 1);
        assert_same(b + i, &fused, 1);
        assert_same(c + i, &product, 1);
    }
    free(g);
    free(u);
}

/* FNV-1a over the bits of floats, whatever the byte order. */
static uint32_t hash(uint32_t h, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ f32_bits(x[i])) * 16777619u;
    return h;
}

static uint32_t hash_product(Product *f, int kind, Random *r)
{
    enum { ROWS = 19, COLS = 333, T = 5 };
    Stored w = stored(kind, ROWS, COLS, r);
    size_t in = f == matmul ? COLS : ROWS, out = f == matmul ? ROWS : COLS;
    float *x = floats(T, in, 0, r), *y = floats(T, out, 0, r);
    f(y, out, x, in, T, &w.m);
    uint32_t h = hash(2166136261u, y, T * out);
    drop(&w);
    free(x);
    free(y);
    return h;
}

static uint32_t hash_vectors(Random *r)
{
    enum { N = 1000 };
    static float x[N], y[N];
    uint32_t h = 2166136261u;
    random_normal(r, x, N, 3);
    h = hash(h, x, N);
    softmax(y, x, N);
    h = hash(h, y, N);
    silu_mul(y, x, x, N);
    h = hash(h, y, N);
    Matrix m = matrix_f32(y, 1, N, N);
    float z[N];
    rmsnorm(z, N, x, N, 1, &m, 1e-6f);
    return hash(h, z, N);
}

static const uint32_t golden[] = {
    0xa46d7824, 0x0f599dd5, 0xe7806321, 0xcf5bdf45, 0x65715d82, 0x2b7a365b,
    0xb60dd9a5, 0x8d0bade0, 0x7f68c61b, 0x93f46a1d, 0x62197f53,
};

static void test_golden(void **state)
{
    (void)state;
    Random r = random_seeded(1);
    size_t i = 0;
    int differ = 0;
    for (size_t d = 0; d < COUNT(kinds); d++)
        for (int transposed = 0; transposed < 2; transposed++, i++) {
            uint32_t h = hash_product(transposed ? matmul_t : matmul,
                                      kinds[d], &r);
            differ += h != golden[i];
            print_message("0x%08x, ", (unsigned)h);
        }
    uint32_t h = hash_vectors(&r);
    print_message("0x%08x\n", (unsigned)h);
    assert_int_equal(differ + (h != golden[i]), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_matmul_t),
        cmocka_unit_test(test_every_batch),
        cmocka_unit_test(test_many_short),
        cmocka_unit_test(test_many_sums),
        cmocka_unit_test(test_abnormal_codes),
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_matrix_row),
        cmocka_unit_test(test_sum_and_dot),
        cmocka_unit_test(test_padding),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_golden),
    };
    if (getenv("SEED") != NULL)
        seed = strtoull(getenv("SEED"), NULL, 0);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
