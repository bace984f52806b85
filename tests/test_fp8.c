/* test_fp8.c: formats, tiles and blocks, products, and what the checks say.
 *
 * tests/data/fp8_vectors.json: decode tables, 392 encodings at and beside
 * every midpoint, six quantised tiles, errors of re-tiling, a product, and how
 * Hopper's sums err, from an independent program (its own head says which). The
 * test points are of the format's description. All else is held to the
 * definitions, written down once more in formats.h. */
#include "formats.h"

static void must_encode_as(const Known *k, float x, uint32_t code)
{
    uint32_t found = format_encode(k->format, x);
    if (found != code)
        fail_msg("%s of %a: 0x%02x, wanted 0x%02x", k->name, (double)x,
                 (unsigned)found, (unsigned)code);
}

static void must_encode(float x, int code)
{
    assert_int_equal(e4m3_encode(x), code);
    must_encode_as(&known[0], x, (uint32_t)code);
}

static void must_encode_nearest(const Known *k, float x)
{
    must_encode_as(k, x, nearest(k, (double)x));
    must_encode_as(k, -x, nearest(k, (double)-x));
}

/* Codes ------------------------------------------------------------------ */

static void check_number(const Known *k, uint32_t code)
{
    uint32_t minus = 1u << (k->E + k->M);
    double value = value_of(k, code);
    assert_true((double)format_decode(k->format, code) == value);
    assert_true((double)format_decode(k->format, code | minus) == -value);
    assert_true(signbit(format_decode(k->format, code | minus)));
    must_encode_as(k, (float)value, code);
    must_encode_as(k, -(float)value, code | minus);
}

static void check_codes(const Known *k)
{
    uint32_t minus = 1u << (k->E + k->M), code = 0;
    for (; code <= k->top; code++)
        check_number(k, code);
    if (!k->finite) {
        assert_true(format_decode(k->format, code) == INFINITY);
        assert_true(format_decode(k->format, code++ | minus) == -INFINITY);
    }
    for (; code < minus; code++)
        assert_true(isnan(format_decode(k->format, code))
                    && isnan(format_decode(k->format, code | minus)));
    assert_true((double)format_greatest(k->format) == k->greatest);
    code = format_encode(k->format, NAN);
    assert_true(isnan(format_decode(k->format, code)));
    code = format_encode(k->format, f32_from_bits(0xff800001));
    assert_true(isnan(format_decode(k->format, code)));
}

static void test_all_codes(void **state)
{
    (void)state;
    for (size_t i = 0; i < FORMATS; i++)
        check_codes(&known[i]);
    for (int code = 0; code < 256; code++) {
        float x = e4m3_decode((uint8_t)code);
        float kernel = f32_from_f8((uint8_t)code);
        if (isnan(x))
            assert_true(isnan(kernel) && (code & 0x7f) == 0x7f);
        else
            assert_int_equal(f32_bits(x), f32_bits(kernel));
        must_encode(x, code);
    }
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

static void check_every_bf16(const Known *k)
{
    for (uint32_t h = 0; h <= 0x7f80; h++)
        must_encode_nearest(k, f32_from_bf16((uint16_t)h));
}

static void test_every_bf16(void **state)
{
    (void)state;
    for (size_t i = 0; i < FORMATS; i++)
        check_every_bf16(&known[i]);
}

/* At and beside every code and every middle between two, and where the
 * numbers end. */
static void check_boundaries(const Known *k)
{
    for (uint32_t code = 0; code <= k->top; code++) {
        double low = value_of(k, code), high = value_of(k, code + 1);
        float points[] = {(float)low, (float)((low + high) / 2), (float)high};
        for (int i = 0; i < 3; i++)
            for (uint32_t step = 0; step < 3; step++)
                if (points[i] > 0 && points[i] < INFINITY)
                    must_encode_nearest(k, f32_from_bits(f32_bits(points[i])
                                                         + step - 1));
    }
}

static void test_boundaries(void **state)
{
    (void)state;
    for (size_t i = 0; i < FORMATS; i++)
        check_boundaries(&known[i]);
}

static void test_random_floats(void **state)
{
    Random random = test_random();
    (void)state;
    for (int i = 0; i < 500000; i++) {
        uint64_t bits = random_u64(&random);
        const Known *k = &known[i % FORMATS];
        uint32_t e = k->E == 8 ? (uint32_t)(bits % 255)
                               : (uint32_t)(127 - 26 + bits % 46);
        must_encode_nearest(k, f32_from_bits((uint32_t)(bits >> 32 & 0x7fffff)
                                             | e << 23));
    }
}

/* The conversions of base/dtype.c have their own arithmetic. */
static void check_half(float x)
{
    uint32_t half = format_encode(&F16, x), brain = format_encode(&BF16, x);
    if (isnan(x)) {
        assert_true(isnan(f32_from_f16(f16_from_f32(x))));
        assert_true(isnan(f32_from_bf16(bf16_from_f32(x))));
        return;
    }
    assert_int_equal(f16_from_f32(x), half);
    assert_int_equal(bf16_from_f32(x), brain);
}

/* Every 16-bit code, and floats at and beside what lies between two: of F16
 * and of BF16 these are all that end in the bits below. */
static void test_halves_agree(void **state)
{
    static const uint32_t ends[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float half = format_decode(&F16, h);
        assert_true(isnan(half) || half == f32_from_f16((uint16_t)h));
        half = format_decode(&BF16, h);
        assert_true(isnan(half) || half == f32_from_bf16((uint16_t)h));
        for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
            check_half(f32_from_bits(h << 16 | ends[i]));
        for (uint32_t low = 0xfff; low <= 0x1001; low++)
            for (uint32_t odd = 0; odd < 8; odd++)
                check_half(f32_from_bits(h << 16 | odd << 13 | low));
    }
}

/* The next power of two at or above s, by the bits. */
static void test_ue8m0(void **state)
{
    (void)state;
    for (uint32_t code = 1; code < 255; code++) {
        float s = ue8m0_decode((uint8_t)code);
        assert_int_equal(f32_bits(s), code << 23);
        assert_int_equal(ue8m0_encode(s), code);
        if (code < 254)
            assert_int_equal(ue8m0_encode(f32_from_bits(f32_bits(s) + 1)),
                             code + 1);
        assert_int_equal(ue8m0_encode(f32_from_bits((code << 23) + 0x7fffff)),
                         code < 254 ? code + 1 : 254);
    }
    assert_true(ue8m0_decode(0) == 0x1p-127f && isnan(ue8m0_decode(0xff)));
    assert_int_equal(ue8m0_encode(0x1p-149f), 1);
    assert_int_equal(ue8m0_encode(FLT_MAX), 254);
    assert_int_equal(ue8m0_encode(INFINITY), 254);
}

/* Vectors ---------------------------------------------------------------- */

static void check_decode(const Vectors *v, const char *key, const Known *k)
{
    const JsonNode *all = member(v, v->json.nodes, key);
    const JsonNode *item = json_first(&v->json, all);
    assert_int_equal(all->size, 128);
    for (uint32_t code = 0; code < 128; code++) {
        float x = format_decode(k->format, code);
        if (json_type(item) == JSON_NULL)
            assert_true(!isfinite(x));
        else
            assert_true((double)x == number_of(v, item));
        item = json_next(&v->json, all, item);
    }
}

static void test_decode_vectors(void **state)
{
    Vectors v = vectors_open();
    (void)state;
    check_decode(&v, "decode", &known[0]);
    check_decode(&v, "e5m2_decode", &known[1]);
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
        x[i] = (float)(2 * draw(&state) - 1) * amp;
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

/* x/s is 1.6875, a tie, which goes to 1.75; x·(1/s) is just below it and goes
 * to 1.625. */
static void test_division(void **state)
{
    const float x[2] = {0.125f, 0x1.edb6dcp-12f};
    volatile float reciprocal, product; /* rounded, whatever computes them */
    float scale;
    uint8_t codes[2];
    (void)state;
    fp8_quantize(codes, &scale, x, 2, 1, 2, FP8_TILE, false);
    reciprocal = 1 / scale;
    product = x[1] * reciprocal;
    assert_true(product < 1.6875f);
    assert_int_equal(codes[0], 0x7e);
    assert_true(e4m3_decode(codes[1]) == 1.75f);
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

/* The scale of element (r, c), whose scope holds its own tile and no other. */
static float scale_of(const float *x, size_t ldx, size_t rows, size_t cols,
                      size_t r, size_t c, Fp8Scope scope, bool ue8m0)
{
    float amax = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < cols; k++) {
            bool row = scope == FP8_TENSOR || i == r
                       || (scope != FP8_TILE && i / 128 == r / 128);
            bool column = scope == FP8_TENSOR || k == c
                          || (scope != FP8_COLUMN && k / 128 == c / 128);
            if (row && column)
                amax = fmaxf(amax, fabsf(x[i * ldx + k]));
        }
    return fp8_scale(amax, ue8m0);
}

static const size_t heights[] = {1, 128, 128, SIZE_MAX};
static const size_t widths[] = {128, 128, 1, SIZE_MAX};

/* Codes and scales of some elements by the definition; zeros in one tile. */
static void check_scope(Random *random, Fp8Scope scope, bool ue8m0)
{
    size_t rows = random_between(random, 1, 200);
    size_t cols = random_between(random, 1, 400);
    size_t ldx = cols + random_between(random, 0, 3);
    size_t across = widths[scope] == SIZE_MAX ? 1
                        : (cols + widths[scope] - 1) / widths[scope];
    float *x = test_alloc(rows * ldx, sizeof *x);
    float *y = test_alloc(rows * ldx, sizeof *y);
    float *scales = test_alloc(rows * cols, sizeof *scales);
    uint8_t *codes = test_alloc(rows * cols, 1);
    random_fill(random, x, rows * ldx);
    for (size_t i = 0; i < rows * ldx; i++)
        x[i] *= i % ldx / 128 == 1 ? 0 : (float)(1 + i % 7 + i / ldx % 5);
    fp8_quantize(codes, scales, x, ldx, rows, cols, scope, ue8m0);
    fp8_dequantize(y, ldx, codes, scales, rows, cols, scope);
    for (int i = 0; i < 300; i++) {
        size_t r = random_between(random, 0, rows - 1);
        size_t c = random_between(random, 0, cols - 1);
        float s = scale_of(x, ldx, rows, cols, r, c, scope, ue8m0);
        uint32_t code = nearest(&known[0], (double)(x[r * ldx + c] / s));
        assert_true(scales[r / heights[scope] * across + c / widths[scope]]
                    == s);
        assert_int_equal(codes[r * cols + c], code);
        assert_true(y[r * ldx + c] == e4m3_decode((uint8_t)code) * s);
    }
    free(x);
    free(y);
    free(scales);
    free(codes);
}

static void test_scopes(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 80; run++)
        check_scope(&random, (Fp8Scope)(run % 4), run / 4 % 2);
}

/* Tiles 1×128 of an activation become tiles 128×1 of it for Wgrad. With powers
 * of two this costs next to nothing (V3 §3.3.3): a code moves by an exponent,
 * and only what becomes subnormal loses bits. */
static void check_retile(const Vectors *v, const char *key, bool ue8m0)
{
    enum { N = 128 };
    static float x[N * N], tile[N * N], column[N * N];
    static uint8_t codes[N * N];
    float scales[N];
    const JsonNode *wanted = member(v, member(v, v->json.nodes, "retile"),
                                    key);
    uint32_t state = 77;
    size_t changed = 0;
    for (size_t i = 0; i < N * N; i++)
        x[i] = (float)ldexp(2 * draw(&state) - 1, (int)(7 * (i / N) % 11) - 5);
    fp8_quantize(codes, scales, x, N, N, N, FP8_TILE, ue8m0);
    fp8_dequantize(tile, N, codes, scales, N, N, FP8_TILE);
    fp8_quantize(codes, scales, tile, N, N, N, FP8_COLUMN, ue8m0);
    fp8_dequantize(column, N, codes, scales, N, N, FP8_COLUMN);
    for (size_t i = 0; i < N * N; i++)
        changed += tile[i] < column[i] || tile[i] > column[i];
    must_be_near(relative_error(tile, x, N * N),
                 number_of(v, element(v, wanted, 0)), 1e-6, "tiles");
    must_be_near(relative_error(column, tile, N * N),
                 number_of(v, element(v, wanted, 1)), 1e-6, "again");
    must_be_near(relative_error(column, x, N * N),
                 number_of(v, element(v, wanted, 2)), 1e-6, "both");
    assert_int_equal(changed, integer_of(v, element(v, wanted, 3)));
}

static void test_retile(void **state)
{
    Vectors v = vectors_open();
    (void)state;
    check_retile(&v, "fp32", false);
    check_retile(&v, "ue8m0", true);
    vectors_close(&v);
}

/* Products --------------------------------------------------------------- */

/* Two operands and their product; all to be freed by product_free. */
typedef struct {
    size_t M, N, K;
    Fp8Acts a;
    Matrix b;
    float *x, *y, *c;     /* (M, K), (N, K), (M, N) */
} Product;

static Product product_new(size_t M, size_t N, size_t K)
{
    Product p = {.M = M, .N = N, .K = K};
    size_t blocks = fp8_blocks(K);
    p.x = test_alloc(M * K, sizeof *p.x);
    p.y = test_alloc(N * K, sizeof *p.y);
    p.c = test_alloc(M * N, sizeof *p.c);
    p.a.codes = test_alloc(M * K, 1);
    p.a.values = test_alloc(M * K, sizeof *p.a.values);
    p.a.scales = test_alloc(M * blocks, sizeof *p.a.scales);
    p.b = (Matrix){.dtype = DT_F8_E4M3, .rows = N, .cols = K, .stride = K};
    p.b.data = test_alloc(N * K, 1);
    p.b.scale = test_alloc(fp8_blocks(N) * blocks, sizeof(float));
    return p;
}

static void product_free(Product *p)
{
    free(p->x);
    free(p->y);
    free(p->c);
    free(p->a.codes);
    free(p->a.values);
    free(p->a.scales);
    matrix_free(&p->b);
}

static uint8_t *codes_of(const Matrix *m)
{
    return (uint8_t *)(uintptr_t)m->data;
}

static float *scales_of(const Matrix *m)
{
    return (float *)(uintptr_t)m->scale;
}

static void product_quantize(Product *p)
{
    fp8_activations(&p->a, p->x, p->K, p->M, p->K);
    fp8_quantize(codes_of(&p->b), scales_of(&p->b), p->y, p->K, p->N, p->K,
                 FP8_BLOCK, p->a.ue8m0);
}

/* x and y as codes already, with scales of 1. */
static void product_set(Product *p)
{
    for (size_t i = 0; i < p->M * p->K; i++) {
        p->a.codes[i] = e4m3_encode(p->x[i]);
        p->a.values[i] = e4m3_decode(p->a.codes[i]);
    }
    for (size_t i = 0; i < p->N * p->K; i++)
        codes_of(&p->b)[i] = e4m3_encode(p->y[i]);
    for (size_t i = 0; i < p->M * fp8_blocks(p->K); i++)
        p->a.scales[i] = 1;
    for (size_t i = 0; i < fp8_blocks(p->N) * fp8_blocks(p->K); i++)
        scales_of(&p->b)[i] = 1;
}

static void product_run(Product *p, Fp8Sum sum, bool floor, bool alone)
{
    Fp8Accumulation how = {sum, floor, alone};
    fp8_gemm(p->c, p->N, &p->a, p->M, &p->b, how);
}

static void must_have_bits(const Vectors *v, const JsonNode *all,
                           const float *found)
{
    for (size_t i = 0; i < all->size; i++)
        assert_int_equal(f32_bits(found[i]), hex_of(v, element(v, all, i)));
}

/* Our order rounds each of 128 products' sums in lanes, the vectors' once:
 * they part by some units of the last place. */
static void check_gemm(const Vectors *v, const char *key, bool ue8m0)
{
    Product p = product_new(4, 6, 384);
    const JsonNode *gemm = member(v, v->json.nodes, "gemm");
    const JsonNode *wanted = member(v, gemm, key);
    uint32_t state = 123;
    float exact[24];
    for (size_t i = 0; i < 4 * 384; i++)
        p.x[i] = (float)(2 * draw(&state) - 1);
    for (size_t i = 0; i < 6 * 384; i++)
        p.y[i] = (float)(2 * draw(&state) - 1);
    p.a.ue8m0 = ue8m0;
    product_quantize(&p);
    must_have_bits(v, member(v, wanted, "scale_A_bits"), p.a.scales);
    must_have_bits(v, member(v, wanted, "scale_B_bits"), p.b.scale);
    product_run(&p, FP8_EXACT, false, false);
    must_have_bits(v, member(v, wanted, "C_bits"), p.c);
    memcpy(exact, p.c, sizeof exact);
    product_run(&p, FP8_LANES, false, false);
    print_message("%s: lanes and exact sums differ by %.2g\n", key,
                  relative_error(p.c, exact, 24));
    assert_true(relative_error(p.c, exact, 24) < 1e-7);
    product_free(&p);
}

static void test_gemm_vectors(void **state)
{
    Vectors v = vectors_open();
    (void)state;
    check_gemm(&v, "fp32", false);
    check_gemm(&v, "ue8m0", true);
    vectors_close(&v);
}

/* Ragged K, rows of B that cross blocks and begin inside one: the definition
 * in double, and linear() to the bit. */
static void check_products(Random *random)
{
    size_t M = random_between(random, 1, 5), K = random_between(random, 1, 300);
    Product p = product_new(M, 140, K);
    size_t blocks = fp8_blocks(K), first = random_between(random, 0, 130);
    Matrix b = matrix_rows(&p.b, first, 140 - first);
    float *y = test_alloc(M * b.rows, sizeof *y);
    random_fill(random, p.x, M * K);
    random_fill(random, p.y, p.N * K);
    for (size_t i = 0; i < p.N * K; i++)
        p.y[i] *= (float)(1 + i / K / 128 + 3 * (i % K / 128));
    product_quantize(&p);
    linear(y, b.rows, p.x, K, M, &b, &p.a);
    for (Fp8Sum sum = FP8_LANES; sum <= FP8_EXACT; sum++) {
        fp8_gemm(p.c, b.rows, &p.a, M, &b, (Fp8Accumulation){sum, 0, 0});
        for (size_t t = 0; t < M; t++)
            for (size_t n = 0; n < b.rows; n++) {
                double wanted = 0, size = 0;
                for (size_t k = 0; k < K; k++) {
                    double v = (double)p.a.values[t * K + k]
                               * (double)p.a.scales[t * blocks + k / 128]
                               * weight(&b, n, k);
                    wanted += v;
                    size += fabs(v);
                }
                assert_true(fabs((double)p.c[t * b.rows + n] - wanted)
                            <= 1e-6 * size);
            }
        if (sum == FP8_LANES)
            must_equal_bits(p.c, y, M * b.rows, "linear");
    }
    free(y);
    product_free(&p);
}

static void test_products(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 15; run++)
        check_products(&random);
}

/* One output as docs/numerics.md defines it: per block of 128 fresh lanes of
 * products, padded with 0; each times the product of both scales; a tree. C's
 * own fmaf, which rounds once. */
static float lanes_and_tree(const Product *p, const Matrix *b, size_t t,
                            size_t n)
{
    float a[16] = {0};
    size_t K = p->K, blocks = fp8_blocks(K), row = b->row0 + n;
    const uint8_t *codes = (const uint8_t *)b->data + n * b->stride;
    for (size_t i = 0; i < blocks; i++) {
        float lane[16] = {0};
        float s = p->a.scales[t * blocks + i]
                  * scales_of(b)[row / 128 * blocks + i];
        for (size_t k = i * 128; k < i * 128 + 128; k++) {
            float w = k < K ? e4m3_decode(codes[k]) : 0;
            float x = k < K ? p->a.values[t * K + k] : 0;
            lane[k % 16] = fmaf(w, x, lane[k % 16]);
        }
        for (int l = 0; l < 16; l++)
            a[l] = fmaf(lane[l], s, a[l]);
    }
    for (int s = 8; s > 0; s /= 2)
        for (int l = 0; l < s; l++)
            a[l] += a[l + s];
    return a[0];
}

/* Every number of rows of x that may share a decoded block, every rest of K,
 * rows of B that begin inside a block; numbers of both signs, zeros too. */
static void check_lanes(Random *random, size_t M, size_t K)
{
    Product p = product_new(M, 135, K);
    size_t first = random_between(random, 0, 130), n;
    Matrix b = matrix_rows(&p.b, first, 135 - first);
    float *wanted = test_alloc(M * b.rows, sizeof *wanted);
    random_normal(random, p.x, M * K, 3);
    random_normal(random, p.y, p.N * K, 0.02f);
    for (size_t i = 0; i < p.N * K; i += 7)
        p.y[i] = 0;
    product_quantize(&p);
    for (size_t i = 0; i < M * b.rows; i++)
        wanted[i] = lanes_and_tree(&p, &b, i / b.rows, i % b.rows);
    fp8_gemm(p.c, b.rows, &p.a, M, &b,
             (Fp8Accumulation){FP8_LANES, false, false});
    must_equal_bits(p.c, wanted, M * b.rows, "the definition");
    n = M * b.rows;
    memset(p.c, 0, n * sizeof *p.c);
    linear(p.c, b.rows, p.x, K, M, &b, &p.a);
    must_equal_bits(p.c, wanted, n, "linear");
    free(wanted);
    product_free(&p);
}

static void test_lanes(void **state)
{
    Random random = test_random();
    (void)state;
    for (size_t K = 1; K <= 300; K += 1 + K / 20)
        check_lanes(&random, 1 + K % 3, K);
    for (size_t M = 1; M <= 40; M++)
        check_lanes(&random, M, 129 + M);
}

/* Where a scale serves more than one token's tile, it is repeated. Raised rows
 * are quantised as if they were greater; their scales are not. */
static void test_activations(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 30; run++) {
        size_t T = random_between(&random, 1, 140), rows = 0;
        size_t K = random_between(&random, 1, 300), blocks = fp8_blocks(K);
        Product p = product_new(T, 1, K);
        p.a.scope = run % 3 == 2 ? FP8_TENSOR : (Fp8Scope)(run % 3);
        p.a.ue8m0 = run / 3 % 2;
        p.a.raise = run / 6 % 2 ? 5 : 0;
        random_fill(&random, p.x, T * K);
        for (size_t i = 0; i < T * K; i++)
            p.x[i] *= (float)(1 + i / K + 5 * (i % K / 128));
        fp8_activations(&p.a, p.x, K, T, K);
        for (size_t i = 0; i < T * K; i++)
            p.x[i] *= i / K % 128 ? 1 : (float)(1 << p.a.raise);
        for (; rows < 12; rows++) {
            size_t t = rows > 9 ? T - 1 - (T - 1) % 128
                                : random_between(&random, 0, T - 1);
            size_t k = random_between(&random, 0, K - 1);
            float s = scale_of(p.x, K, T, K, t, k, p.a.scope, p.a.ue8m0);
            assert_true(p.a.scales[t * blocks + k / 128]
                        * (t % 128 ? 1 : (float)(1 << p.a.raise)) == s);
            assert_int_equal(p.a.codes[t * K + k],
                             e4m3_encode(p.x[t * K + k] / s));
            assert_true(p.a.values[t * K + k]
                        == e4m3_decode(p.a.codes[t * K + k]));
        }
        product_free(&p);
    }
}

/* The sum of products a[k], by one Hopper sum or the other. */
static float hopper(const float *a, size_t K, Fp8Sum sum, bool floor,
                    bool alone)
{
    Product p = product_new(1, 1, K);
    float c;
    for (size_t k = 0; k < K; k++) {
        int e;
        frexpf(a[k], &e);
        p.y[k] = ldexpf(1, e / 2);
        p.x[k] = a[k] / p.y[k];
    }
    product_set(&p);
    product_run(&p, sum, floor, alone);
    c = p.c[0];
    product_free(&p);
    return c;
}

/* 13 fraction bits below the greatest exponent of 32, no more; what is shifted
 * out of a negative number goes toward zero, or down. */
static void test_alignment(void **state)
{
    float a[64] = {1};
    (void)state;
    a[31] = 0x1p-13f;
    assert_true(hopper(a, 32, FP8_APART, false, false) == 1 + 0x1p-13f);
    a[31] = -0x1p-13f;
    assert_true(hopper(a, 32, FP8_APART, true, false) == 1 - 0x1p-13f);
    a[0] = 1.875f;
    a[31] = 0x1.8p-13f;
    assert_true(hopper(a, 32, FP8_APART, true, false) == 1.875f + 0x1p-13f);
    a[0] = 2;
    a[31] = 0x1p-13f;
    assert_true(hopper(a, 32, FP8_APART, false, false) == 2);
    a[31] = -0x1p-13f;
    assert_true(hopper(a, 32, FP8_APART, false, false) == 2);
    assert_true(hopper(a, 32, FP8_APART, true, false) == 2 - 0x1p-12f);
    assert_true(hopper(a, 32, FP8_EXACT, true, false) == 2 - 0x1p-13f);
    a[0] = 0;
    assert_true(hopper(a, 32, FP8_APART, true, false) == -0x1p-13f);
    assert_true(hopper(a, 0 + 1, FP8_TOGETHER, true, false) == 0);
}

/* 1 in the register, then 32 times 2^-14: shifted to the register's exponent
 * each is lost, summed first they are not. 33 products are two steps. */
static void test_register(void **state)
{
    float a[300] = {1};
    (void)state;
    for (size_t k = 32; k < 64; k++)
        a[k] = 0x1p-14f;
    assert_true(hopper(a, 64, FP8_APART, false, false) == 1 + 0x1p-9f);
    assert_true(hopper(a, 64, FP8_TOGETHER, false, false) == 1);
    assert_true(hopper(a, 33, FP8_APART, false, false) == 1);
    a[32] = 0x1.8p-13f;
    assert_true(hopper(a, 33, FP8_APART, false, false) == 1 + 0x1p-13f);
    a[0] = -1;
    a[32] = -0x1.8p-13f;
    assert_true(hopper(a, 33, FP8_APART, true, false) == -1 - 0x1p-13f);
    assert_true(hopper(a, 33, FP8_TOGETHER, true, false) == -1 - 0x1p-12f);
}

/* After 128 products the register begins anew: what would be lost beside a
 * great sum is kept. */
static void test_promotion(void **state)
{
    float a[300] = {256};
    (void)state;
    for (size_t k = 128; k < 300; k++)
        a[k] = 0x1p-11f;
    for (Fp8Sum sum = FP8_APART; sum <= FP8_TOGETHER; sum++) {
        assert_true(hopper(a, 300, sum, false, false)
                    == 256 + 172 * 0x1p-11f);
        assert_true(hopper(a, 300, sum, false, true) == 256);
    }
    a[127] = 256;
    a[0] = 0;
    assert_true(hopper(a, 300, FP8_TOGETHER, false, false)
                == 256 + 172 * 0x1p-11f);
    a[128] = 256;
    a[127] = 0;
    assert_true(hopper(a, 300, FP8_TOGETHER, false, false)
                == 256 + 44 * 0x1p-11f);
}

/* 64 products of one row and one column each. */
static void check_accumulation(Product *p, Fp8Accumulation how, double *max,
                               double *mean, double *l2, float first[4])
{
    double square = 0, error = 0;
    *max = *mean = 0;
    for (size_t i = 0; i < 64; i++) {
        Product one = *p;
        Matrix b = matrix_rows(&p->b, i, 1);
        double exact = 0, e;
        float c;
        b.row0 = 0;
        one.a.values += i * p->K;
        fp8_gemm(&c, 1, &one.a, 1, &b, how);
        for (size_t k = 0; k < p->K; k++)
            exact += (double)one.a.values[k] * weight(&b, 0, k);
        e = fabs((double)c - exact);
        *max = fmax(*max, e / fabs(exact));
        *mean += e / fabs(exact) / 64;
        square += exact * exact;
        error += e * e;
        if (i < 4)
            first[i] = c;
    }
    *l2 = sqrt(error / square);
}

static Product random_codes(uint32_t seed, size_t K, bool centred)
{
    Product p = product_new(64, 64, K);
    for (size_t i = 0; i < 64 * K; i++)
        p.x[i] = (float)(256 * (draw(&seed) * (1 + centred) - centred));
    for (size_t i = 0; i < 64 * K; i++)
        p.y[i] = (float)(256 * (draw(&seed) * (1 + centred) - centred));
    product_set(&p);
    return p;
}

static void test_accumulation_vectors(void **state)
{
    Vectors v = vectors_open();
    const JsonNode *all = member(&v, v.json.nodes, "accumulation");
    const JsonNode *rows = member(&v, all, "rows");
    (void)state;
    assert_int_equal(rows->size, 6);
    for (size_t i = 0; i < rows->size; i++) {
        const JsonNode *row = element(&v, rows, i);
        size_t K = (size_t)integer_of(&v, element(&v, row, 0));
        Product p = random_codes(4242, K, false);
        for (size_t j = 0; j < 4; j++) {
            Fp8Accumulation how = {j < 2 ? FP8_APART : FP8_TOGETHER, false,
                                   j % 2 == 0};
            const JsonNode *wanted = element(&v, row, j + 1);
            double max, mean, l2;
            float first[4];
            check_accumulation(&p, how, &max, &mean, &l2, first);
            must_be_near(max, number_of(&v, element(&v, wanted, 0)), 1e-10,
                         "max");
            must_be_near(mean, number_of(&v, element(&v, wanted, 1)), 1e-10,
                         "mean");
        }
        product_free(&p);
    }
    vectors_close(&v);
}

static void test_accumulation_signed(void **state)
{
    static const struct {
        const char *key;
        Fp8Accumulation how;
    } models[] = {
        {"A_toward_zero", {FP8_APART, false, true}},
        {"A_arithmetic_shift", {FP8_APART, true, true}},
        {"A_arithmetic_shift_promote128", {FP8_APART, true, false}},
        {"B_arithmetic_shift", {FP8_TOGETHER, true, true}}};
    Vectors v = vectors_open();
    const JsonNode *all = member(&v, v.json.nodes, "accumulation_signed");
    Product p = random_codes(31337, 4096, true);
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        const JsonNode *wanted = member(&v, all, models[i].key);
        double max, mean, l2;
        float first[4];
        check_accumulation(&p, models[i].how, &max, &mean, &l2, first);
        must_be_near(l2, number_of(&v, element(&v, wanted, 0)), 1e-10, "L2");
        for (size_t j = 0; j < 4; j++)
            assert_true((double)first[j]
                        == number_of(&v, element(&v, element(&v, wanted, 1),
                                                 j)));
    }
    product_free(&p);
    vectors_close(&v);
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
        cmocka_unit_test(test_halves_agree), cmocka_unit_test(test_ue8m0),
        cmocka_unit_test(test_decode_vectors),
        cmocka_unit_test(test_encode_vectors),
        cmocka_unit_test(test_tile_vectors), cmocka_unit_test(test_division),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_ue8m0_scale), cmocka_unit_test(test_scopes),
        cmocka_unit_test(test_retile), cmocka_unit_test(test_gemm_vectors),
        cmocka_unit_test(test_products), cmocka_unit_test(test_lanes),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_alignment), cmocka_unit_test(test_register),
        cmocka_unit_test(test_promotion),
        cmocka_unit_test(test_accumulation_vectors),
        cmocka_unit_test(test_accumulation_signed),
        cmocka_unit_test(test_kernels_dequantise),
        cmocka_unit_test(test_nan_codes_are_named),
        cmocka_unit_test(test_scales_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
