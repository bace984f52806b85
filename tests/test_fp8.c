/* test_fp8.c: E4M3, block scales, and what the checks say.
 *
 * tests/data/fp8_vectors.json: decode table, 392 encodings at and beside
 * every midpoint, six quantised tiles, from an independent program (its own
 * head says which). The test points are of the format's description. All else
 * is held to the definitions, written down here again. */
#include "support.h"

#include "base/json.h"

#include <float.h>

/* (-1)^s 2^(e-7) (1 + m/8), or (-1)^s 2^-6 (m/8) for e = 0. */
static double value_of(int code)
{
    int e = code >> 3 & 15, m = code & 7;
    double v = e ? ldexp(1 + m / 8.0, e - 7) : ldexp(m / 8.0, -6);
    return code & 0x80 ? -v : v;
}

static bool is_nan_code(int code)
{
    return (code & 0x7f) == 0x7f;
}

/* The nearest of the 127 magnitudes; of two at one distance the even code. */
static int nearest(double x)
{
    double v = fabs(x), off = INFINITY;
    int best = 0;
    for (int code = 0; code < 0x7f; code++) {
        double d = fabs(value_of(code) - v);
        if (d < off || (!(d > off) && code % 2 == 0)) {
            best = code;
            off = d;
        }
    }
    return best | (signbit(x) ? 0x80 : 0);
}

static void must_encode(float x, int code)
{
    int found = e4m3_encode(x);
    if (found != code)
        fail_msg("%a: 0x%02x, wanted 0x%02x", (double)x, (unsigned)found,
                 (unsigned)code);
}

/* Codes ------------------------------------------------------------------ */

static void test_all_codes(void **state)
{
    (void)state;
    for (int code = 0; code < 256; code++) {
        float x = e4m3_decode((uint8_t)code);
        float kernel = f32_from_f8((uint8_t)code);
        if (is_nan_code(code)) {
            assert_true(isnan(x) && isnan(kernel));
            must_encode(x, code);
            continue;
        }
        assert_true((double)x == value_of(code));
        assert_int_equal(f32_bits(x), f32_bits(kernel));
        assert_int_equal(signbit(x) != 0, code >> 7);
        must_encode(x, code);
    }
    assert_true(e4m3_decode(0x7e) == 448 && e4m3_decode(0xfe) == -448);
    assert_true(e4m3_decode(0x08) == 0x1p-6f && e4m3_decode(1) == 0x1p-9f);
}

static void test_points(void **state)
{
    static const struct {
        float x;
        int code;
    } points[] = {
        {0.1f, 0x1d}, {0.3f, 0x2a}, {1.0625f, 0x38}, {1.1875f, 0x3a},
        {17, 0x58}, {19, 0x5a}, {3.14159f, 0x45}, {2.71828f, 0x43},
        {300, 0x79}, {432, 0x7e}, {0x1p-10f, 0}, {0.00098f, 1},
        {-0.7f, 0xb3}, {0, 0}, {-0.0f, 0x80}, {448, 0x7e}, {464, 0x7e},
        {465, 0x7e}, {-465, 0xfe}, {FLT_MAX, 0x7e}, {INFINITY, 0x7e},
        {-INFINITY, 0xfe}, {FLT_MIN, 0}, {-0x1p-149f, 0x80}};
    (void)state;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        must_encode(points[i].x, points[i].code);
}

static void test_every_bf16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = f32_from_bf16((uint16_t)h);
        if (isnan(x))
            must_encode(x, h >> 15 ? 0xff : 0x7f);
        else
            must_encode(x, nearest((double)x));
    }
}

/* At and beside every code and every middle between two. */
static void test_boundaries(void **state)
{
    (void)state;
    for (int code = 0; code < 0x7e; code++) {
        float low = (float)value_of(code), high = (float)value_of(code + 1);
        float points[] = {low, (low + high) / 2, high};
        for (int i = 0; i < 3; i++)
            for (uint32_t step = 0; step < 3; step++) {
                float x = f32_from_bits(f32_bits(points[i]) + step - 1);
                if (points[i] > 0) {
                    must_encode(x, nearest((double)x));
                    must_encode(-x, nearest((double)-x));
                }
            }
    }
}

static void test_random_floats(void **state)
{
    Random random = test_random();
    (void)state;
    for (int i = 0; i < 100000; i++) {
        uint64_t bits = random_u64(&random);
        uint32_t e = (uint32_t)(127 - 14 + bits % 25);
        float x = f32_from_bits((uint32_t)(bits >> 32 & 0x807fffff)
                                | e << 23);
        must_encode(x, nearest((double)x));
    }
}

/* Vectors ---------------------------------------------------------------- */

typedef struct {
    File file;
    Json json;
} Vectors;

static Vectors vectors_open(void)
{
    const char *path = "tests/data/fp8_vectors.json";
    Vectors v;
    Error err;
    must(file_open(&v.file, path, &err), &err);
    must(json_parse(&v.json, path, (const char *)v.file.data, v.file.size,
                    &err), &err);
    return v;
}

static void vectors_close(Vectors *v)
{
    json_free(&v->json);
    file_close(&v->file);
}

static const JsonNode *member(const Vectors *v, const JsonNode *object,
                              const char *key)
{
    const JsonNode *node = json_get(&v->json, object, key);
    assert_non_null(node);
    return node;
}

static uint32_t hex_of(const Vectors *v, const JsonNode *node)
{
    char text[16];
    assert_int_equal(json_string(&v->json, node, text, sizeof text), 8);
    return (uint32_t)strtoul(text, NULL, 16);
}

static long integer_of(const Vectors *v, const JsonNode *node)
{
    int64_t value;
    assert_true(json_integer(&v->json, node, 0, INT32_MAX, &value));
    return (long)value;
}

static void test_decode_vectors(void **state)
{
    Vectors v = vectors_open();
    const JsonNode *all = member(&v, v.json.nodes, "decode");
    const JsonNode *item = json_first(&v.json, all);
    (void)state;
    assert_int_equal(all->size, 128);
    for (int code = 0; code < 0x7f; code++) {
        double value;
        assert_true(json_number(&v.json, item, &value));
        assert_true((double)e4m3_decode((uint8_t)code) == value);
        item = json_next(&v.json, all, item);
    }
    vectors_close(&v);
}

static void test_encode_vectors(void **state)
{
    Vectors v = vectors_open();
    const JsonNode *all = member(&v, v.json.nodes, "encode");
    const JsonNode *pair = json_first(&v.json, all);
    (void)state;
    assert_int_equal(all->size, 392);
    for (; pair; pair = json_next(&v.json, all, pair)) {
        const JsonNode *bits = json_first(&v.json, pair);
        must_encode(f32_from_bits(hex_of(&v, bits)),
                    (int)integer_of(&v, json_next(&v.json, pair, bits)));
    }
    vectors_close(&v);
}

/* The tile's 128 numbers, from its seed. */
static void tile_values(float *x, const Vectors *v, const JsonNode *tile)
{
    uint32_t state = (uint32_t)integer_of(v, member(v, tile, "seed"));
    float amp = f32_from_bits(hex_of(v, member(v, tile, "amp")));
    const JsonNode *spike = member(v, tile, "spike");
    const JsonNode *first = member(v, tile, "first4"), *item;
    for (size_t i = 0; i < 128; i++) {
        state = (state * 1103515245u + 12345u) & 0x7fffffff;
        x[i] = (2 * (float)(state >> 8) * 0x1p-23f - 1) * amp;
    }
    item = json_first(&v->json, first);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(f32_bits(x[i]), hex_of(v, item));
        item = json_next(&v->json, first, item);
    }
    if (json_type(spike) == JSON_ARRAY) {
        double value;
        item = json_first(&v->json, spike);
        assert_true(json_number(&v->json, json_next(&v->json, spike, item),
                                &value));
        x[integer_of(v, item)] = (float)value;
    }
}

static void check_tile(const Vectors *v, const JsonNode *tile, bool ue8m0)
{
    float x[128], scale;
    uint8_t codes[128];
    char wanted[257], found[257];
    tile_values(x, v, tile);
    fp8_quantize(codes, &scale, x, 128, 1, 128, FP8_TILE, ue8m0);
    for (size_t i = 0; i < 128; i++)
        snprintf(found + 2 * i, 3, "%02x", codes[i]);
    assert_int_equal(f32_bits(scale),
                     hex_of(v, member(v, tile, ue8m0 ? "ue8m0_scale"
                                                     : "scale")));
    assert_int_equal(json_string(&v->json,
                                 member(v, tile, ue8m0 ? "ue8m0_codes"
                                                       : "codes"),
                                 wanted, sizeof wanted), 256);
    assert_string_equal(found, wanted);
}

static void test_tile_vectors(void **state)
{
    Vectors v = vectors_open();
    const JsonNode *all = member(&v, v.json.nodes, "tiles");
    const JsonNode *tile = json_first(&v.json, all);
    (void)state;
    assert_int_equal(all->size, 6);
    for (; tile; tile = json_next(&v.json, all, tile)) {
        check_tile(&v, tile, false);
        check_tile(&v, tile, true);
    }
    vectors_close(&v);
}

/* Scales ----------------------------------------------------------------- */

static void test_scale(void **state)
{
    (void)state;
    assert_true(fp8_scale(448, false) == 1);
    assert_true(fp8_scale(1, false) == 1 / 448.0f);
    assert_int_equal(f32_bits(fp8_scale(0, false)), 0x346facad);
    assert_true(fp8_scale(1e-5f, false) == 1e-4f / 448.0f);
    assert_true(fp8_scale(1e-4f, false) == 1e-4f / 448.0f);
    assert_true(fp8_scale(1.1e-4f, false) == 1.1e-4f / 448.0f);
}

/* The next power of two at or above s, by the bits: 2^-10 (1 + 2^-23), where
 * a logarithm in float rounds down, is 2^-9. */
static void test_ue8m0_scale(void **state)
{
    float amax = 448 * 0x1p-10f;
    (void)state;
    assert_true(fp8_scale(448, true) == 1 && fp8_scale(896, true) == 2);
    assert_true(fp8_scale(amax, true) == 0x1p-10f);
    while (f32_bits(fp8_scale(amax, false)) < 0x3a800001)
        amax = f32_from_bits(f32_bits(amax) + 1);
    assert_int_equal(f32_bits(fp8_scale(amax, false)), 0x3a800001);
    assert_true(fp8_scale(amax, true) == 0x1p-9f);
    assert_int_equal(f32_bits(fp8_scale(0, true)), 0x34800000);
    assert_true(fp8_scale(INFINITY, true) == 0x1p127f);
    Random random = test_random();
    for (int i = 0; i < 10000; i++) {
        float x = f32_from_bits((uint32_t)(random_u64(&random) >> 33)
                                % 0x7f800000);
        float s = fp8_scale(x, false), p = fp8_scale(x, true);
        assert_int_equal(f32_bits(p) & 0x7fffff, 0);
        assert_true(p >= s && p / 2 < s);
    }
}

/* Blocks of 128 columns of all the rows given, the last one ragged; each has
 * its own scale, a block of zeros the smallest. */
static void check_rows(Random *random, size_t n, size_t cols, bool ue8m0)
{
    size_t blocks = (cols + 127) / 128;
    float *x = test_alloc(n * cols, sizeof *x);
    float *scales = test_alloc(blocks, sizeof *scales);
    uint8_t *codes = test_alloc(n * cols, 1);
    random_fill(random, x, n * cols);
    for (size_t i = 0; i < n * cols; i++)
        x[i] *= i % cols / 128 == 1 ? 0 : (float)(1 + i % cols / 128);
    fp8_quantize(codes, scales, x, cols, n, cols, FP8_BLOCK, ue8m0);
    for (size_t b = 0; b < blocks; b++) {
        float amax = 0;
        for (size_t i = 0; i < n * cols; i++)
            if (i % cols / 128 == b)
                amax = fmaxf(amax, fabsf(x[i]));
        assert_true(scales[b] == fp8_scale(amax, ue8m0));
    }
    for (size_t i = 0; i < n * cols; i++)
        assert_int_equal(codes[i], nearest((double)(x[i]
                                             / scales[i % cols / 128])));
    free(x);
    free(scales);
    free(codes);
}

static void test_ragged_rows(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 20; run++)
        check_rows(&random, random_between(&random, 1, 128),
                   random_between(&random, 1, 400), run % 2);
}

/* Kernels ---------------------------------------------------------------- */

/* All codes, in a matrix whose rows and columns cross blocks, as a product
 * with one unit vector after another sees them. */
static void test_kernels_dequantise(void **state)
{
    enum { R = 256, C = 130 };
    uint8_t codes[R * C];
    float scales[2 * 2] = {0.37f, 3e-5f, 1.7f, 1000.3f}, x[C] = {0}, y[R];
    float row[C], column[C];
    Matrix w = {.data = codes, .dtype = DT_F8_E4M3, .rows = R, .cols = C,
                .stride = C, .scale = scales};
    (void)state;
    for (size_t i = 0; i < R * C; i++)
        codes[i] = (uint8_t)((i % C + i / C) % 127 | (i / C & 1) << 7);
    for (size_t k = 0; k < C; k++) {
        x[k] = 1;
        matmul(y, R, x, C, 1, &w);
        x[k] = 0;
        for (size_t r = 0; r < R; r++)
            assert_true(y[r] == e4m3_decode(codes[r * C + k])
                                    * scales[r / 128 * 2 + k / 128]);
    }
    for (size_t r = 0; r < R; r++) {
        float one = 1;
        Matrix single = matrix_rows(&w, r, 1);
        matrix_row(row, &w, r);
        memset(column, 0, sizeof column);
        matmul_t(column, C, &one, 1, 1, &single);
        for (size_t k = 0; k < C; k++) {
            assert_true(row[k] == e4m3_decode(codes[r * C + k])
                                      * scales[r / 128 * 2 + k / 128]);
            assert_true(column[k] == row[k]);
        }
    }
}

/* Checks ----------------------------------------------------------------- */

static void test_nan_codes_are_named(void **state)
{
    uint8_t codes[3 * 5] = {0};
    Matrix w = {.data = codes, .dtype = DT_F8_E4M3, .rows = 3, .cols = 4,
                .stride = 5};
    Error err;
    (void)state;
    codes[4] = 0x7f;                /* between the rows */
    codes[3] = 0x7e;
    must(fp8_check(&w, "w", &err), &err);
    codes[13] = 0xff;
    must_fail(fp8_check(&w, "w", &err), &err,
              "w: element (2, 3) is the E4M3 code 0xff, not a number");
    codes[7] = 0x7f;
    must_fail(fp8_check(&w, "w", &err), &err,
              "w: element (1, 2) is the E4M3 code 0x7f, not a number");
}

static void test_scales_are_checked(void **state)
{
    static const struct {
        float scale;
        const char *found;
    } bad[] = {{0, "0"}, {-0.0f, "-0"}, {-1.5f, "-1.5"}, {INFINITY, "inf"},
               {-INFINITY, "-inf"}};
    unsigned char raw[6 * sizeof(float) + 1];
    Error err;
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        float scales[6] = {1, 0x1p-149f, FLT_MAX, 1, 1, 1};
        char wanted[200];
        memcpy(raw + 1, scales, sizeof scales);
        must(fp8_check_scales(raw + 1, 2, 3, "s", "f", &err), &err);
        scales[4] = bad[i].scale;
        memcpy(raw + 1, scales, sizeof scales);
        snprintf(wanted, sizeof wanted, "f: s: element (1, 1) is %s, wanted"
                 " a finite positive scale", bad[i].found);
        must_fail(fp8_check_scales(raw + 1, 2, 3, "s", "f", &err), &err,
                  wanted);
        scales[4] = NAN;
        memcpy(raw + 1, scales, sizeof scales);
        assert_int_equal(fp8_check_scales(raw + 1, 2, 3, "s", "f", &err),
                         -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_codes), cmocka_unit_test(test_points),
        cmocka_unit_test(test_every_bf16),
        cmocka_unit_test(test_boundaries),
        cmocka_unit_test(test_random_floats),
        cmocka_unit_test(test_decode_vectors),
        cmocka_unit_test(test_encode_vectors),
        cmocka_unit_test(test_tile_vectors), cmocka_unit_test(test_scale),
        cmocka_unit_test(test_ue8m0_scale),
        cmocka_unit_test(test_ragged_rows),
        cmocka_unit_test(test_kernels_dequantise),
        cmocka_unit_test(test_nan_codes_are_named),
        cmocka_unit_test(test_scales_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
