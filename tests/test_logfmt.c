/* test_logfmt.c: LogFMT-nBit, and what each format of a tile costs.
 *
 * tests/data/fp8_vectors.json, "storage": errors on 64 tiles of a normal
 * distribution, from an independent program in double. All else is held to the
 * definition: every K of a tile in turn. */
#include "formats.h"

enum { TILE = 128 };

static double value_of_code(const LogTile *tile, int K)
{
    return exp((double)tile->min + (double)tile->step * (K - 1));
}

/* The nearest of all codes but zero. */
static int nearest_K(const LogTile *tile, double x)
{
    int best = 1;
    for (int K = 2; K < 1 << (tile->bits - 1); K++)
        if (fabs(value_of_code(tile, K) - x)
            < fabs(value_of_code(tile, best) - x))
            best = K;
    return best;
}

/* The code found is the nearest, or so near that exp's last bit decides. */
static void must_be_nearest(const LogTile *tile, int code, float x)
{
    int half = 1 << (tile->bits - 1), K = code & (half - 1);
    double v = fabs((double)x), best, found;
    assert_int_equal(code >= half, signbit(x) != 0);
    assert_int_equal(K == 0, v <= 0);
    if (K == 0)
        return;
    best = fabs(value_of_code(tile, nearest_K(tile, v)) - v);
    found = fabs(value_of_code(tile, K) - v);
    assert_true(found <= best + 1e-12 * v);
}

static void check_tile(Random *random, size_t n, int bits)
{
    float x[TILE], y[TILE];
    double min = INFINITY, max = -INFINITY;
    uint16_t codes[TILE];
    LogTile tile;
    random_normal(random, x, n, 1);
    for (size_t i = 0; i < n; i++) {
        x[i] *= i % 5 == 3 ? 0 : ldexpf(1, (int)random_between(random, 0, 9));
        if (x[i] > 0 || x[i] < 0) {
            min = fmin(min, log(fabs((double)x[i])));
            max = fmax(max, log(fabs((double)x[i])));
        }
    }
    logfmt_encode(codes, &tile, x, n, bits);
    logfmt_decode(y, codes, &tile, n);
    assert_int_equal(tile.bits, bits);
    assert_true(fabs((double)tile.min - min) < 1e-6);
    assert_true(fabs((double)tile.step * ((1 << (bits - 1)) - 2)
                     - (max - min)) < 1e-5);
    for (size_t i = 0; i < n; i++) {
        must_be_nearest(&tile, codes[i], x[i]);
        assert_int_equal(signbit(y[i]) != 0, signbit(x[i]) != 0);
        if (codes[i] & ((1 << (bits - 1)) - 1))
            must_be_near(fabs((double)y[i]),
                         value_of_code(&tile, codes[i]
                                              & ((1 << (bits - 1)) - 1)),
                         1e-7, "a code's number");
        else
            assert_true(y[i] == 0);
    }
}

static void test_tiles(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 60; run++)
        check_tile(&random, run % 2 ? TILE : random_between(&random, 2, TILE),
                   3 + run % 9);
}

/* The middle of two numbers, not of two logarithms, parts the codes: between
 * 2^(8/3) and 2^(10/3) it is 8.21 and not 8. */
static void test_linear_domain(void **state)
{
    const float x[5] = {1, 16, 8.1f, -8.1f, 8.3f};
    static const int wanted[5] = {1, 7, 5, 8 | 5, 6};
    uint16_t codes[5];
    LogTile tile;
    (void)state;
    logfmt_encode(codes, &tile, x, 5, 4);    /* 1, 2^(2/3), 2^(4/3) … 16 */
    assert_true(fabs((double)tile.step - log(16) / 6) < 1e-7);
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(codes[i], wanted[i]);
}

/* Midway between two numbers to the last bit of a double, which is rare:
 * found by search. */
static void test_ties(void **state)
{
    const float up[3] = {0x1.30117ep-1f, 0x1.7d8fe4p+0f, 0x1.750716p+0f};
    const float down[3] = {0x1.bae6dcp-2f, 0x1.258d04p-1f, 0x1.12p-1f};
    uint16_t codes[3];
    LogTile tile;
    (void)state;
    logfmt_encode(codes, &tile, up, 3, 16);
    assert_int_equal(codes[2], 31962);
    logfmt_encode(codes, &tile, down, 3, 16);
    assert_int_equal(codes[2], 24754);
}

static void check_one(const float *x, size_t n, int bits, const int *codes,
                      const float *back)
{
    uint16_t found[8];
    float y[8];
    LogTile tile;
    logfmt_encode(found, &tile, x, n, bits);
    logfmt_decode(y, found, &tile, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(found[i], codes[i]);
        assert_int_equal(signbit(y[i]) != 0, signbit(back[i]) != 0);
        must_be_near((double)y[i], (double)back[i], 4e-6, "back");
    }
}

#define ONE(bits, n, x, codes, back) \
    check_one((const float[])x, n, bits, (const int[])codes, \
              (const float[])back)
#define LIST(...) {__VA_ARGS__}

/* Zeros, of both signs; one magnitude alone; magnitudes beyond a factor of
 * 2^32 below the greatest; the ends of float. */
static void test_edges(void **state)
{
    (void)state;
    ONE(8, 3, LIST(0, -0.0f, 0), LIST(0, 128, 0), LIST(0, -0.0f, 0));
    ONE(8, 3, LIST(3, -3, 3), LIST(1, 129, 1), LIST(3, -3, 3));
    ONE(8, 4, LIST(0, 3, -0.0f, -3), LIST(0, 1, 128, 129),
        LIST(0, 3, -0.0f, -3));
    ONE(8, 1, LIST(-0x1p-149f), LIST(129), LIST(-0x1p-149f));
    ONE(8, 4, LIST(1, 0x1p-32f, -0x1p-40f, 1e-30f), LIST(127, 1, 129, 1),
        LIST(1, 0x1p-32f, -0x1p-32f, 0x1p-32f));
    ONE(8, 2, LIST(1, -0x1p-40f), LIST(127, 129), LIST(1, -0x1p-32f));
    ONE(10, 3, LIST(1, 0x1p-31f, -1), LIST(511, 1, 1023),
        LIST(1, 0x1p-31f, -1));
    ONE(16, 2, LIST(FLT_MAX, -FLT_MAX / 2), LIST(32767, 32769),
        LIST(FLT_MAX, -FLT_MAX / 2));
    ONE(3, 3, LIST(1, 4, 2), LIST(1, 3, 2), LIST(1, 4, 2));
}

/* No number is off by more than half a step, and numbers that came out of a
 * tile, its least and its greatest among them, get the same codes again. */
static void test_codes_are_stable(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 20; run++) {
        float x[TILE], y[TILE];
        uint16_t codes[TILE], again[TILE];
        LogTile tile;
        random_normal(&random, x, TILE, 3);
        logfmt_encode(codes, &tile, x, TILE, 8);
        logfmt_decode(y, codes, &tile, TILE);
        for (size_t i = 0; i < TILE; i++)
            assert_true(fabs((double)y[i] - (double)x[i])
                        <= fabs((double)x[i])
                               * (exp((double)tile.step) - 1) / 2 * 1.0001);
        logfmt_encode(again, &tile, y, TILE, 8);
        assert_memory_equal(again, codes, sizeof codes);
    }
}

/* Errors ----------------------------------------------------------------- */

/* 64 tiles of normal numbers. */
static void normal_tiles(float *x)
{
    static double u[2 * 64 * TILE];
    uint32_t state = 9;
    for (size_t i = 0; i < 2 * 64 * TILE; i++)
        u[i] = draw(&state);
    for (size_t i = 0; i < 64 * TILE; i++)
        x[i] = (float)(sqrt(-2 * log(1 - u[i]))
                       * cos(2 * 3.14159265358979323846 * u[64 * TILE + i]));
}

static void must_cost(const Vectors *v, const char *key, const float *y,
                      const float *x)
{
    const JsonNode *all = member(v, v->json.nodes, "storage");
    const JsonNode *wanted = member(v, all, key);
    double bias = 0;
    for (size_t i = 0; i < 64 * TILE; i++)
        bias += (fabs((double)y[i]) - fabs((double)x[i])) / (64 * TILE);
    must_be_near(relative_error(y, x, 64 * TILE),
                 number_of(v, element(v, wanted, 0)), 1e-5, key);
    if (!(fabs(bias - number_of(v, element(v, wanted, 1))) < 2e-8))
        fail_msg("%s: bias %.10g", key, bias);
}

static void test_storage_vectors(void **state)
{
    static const struct {
        const char *key;
        const FloatFormat *format;
        bool ue8m0;
        int bits;
    } rows[] = {{"E4M3", &E4M3, false, 0}, {"E5M2", &E5M2, false, 0},
                {"E5M6_pow2", &E5M6, true, 0}, {"LogFMT-6", NULL, false, 6},
                {"LogFMT-8", NULL, false, 8}, {"LogFMT-10", NULL, false, 10}};
    static float x[64 * TILE], y[64 * TILE];
    Vectors v = vectors_open();
    (void)state;
    normal_tiles(x);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t t = 0; t < 64 * TILE; t += TILE) {
            uint16_t codes[TILE];
            LogTile tile;
            float scale;
            if (rows[i].format) {
                tile_encode(codes, &scale, x + t, TILE, rows[i].format,
                            rows[i].ue8m0);
                tile_decode(y + t, codes, scale, TILE, rows[i].format);
            } else {
                logfmt_encode(codes, &tile, x + t, TILE, rows[i].bits);
                logfmt_decode(y + t, codes, &tile, TILE);
            }
        }
        must_cost(&v, rows[i].key, y, x);
    }
    for (size_t i = 0; i < 64 * TILE; i++)
        y[i] = f32_from_bf16(bf16_from_f32(x[i]));
    must_cost(&v, "BF16", y, x);
    vectors_close(&v);
}

/* E5M6 of o_proj's input, V3 §3.3.3: with scales of powers of two a tile of
 * 128 rows takes over the numbers of 128 tiles of one row as they are, unless
 * they are 2^-14 of its greatest and below. */
static void test_e5m6_turns_without_loss(void **state)
{
    static float x[TILE * TILE], y[TILE * TILE];
    Random random = test_random();
    uint16_t codes[TILE];
    float column[TILE], back[TILE], scale;
    (void)state;
    random_normal(&random, x, TILE * TILE, 1);
    for (size_t r = 0; r < TILE; r++) {
        for (size_t k = 0; k < TILE; k++)
            x[r * TILE + k] *= ldexpf(1, (int)(r % 9));
        tile_encode(codes, &scale, x + r * TILE, TILE, &E5M6, true);
        tile_decode(y + r * TILE, codes, scale, TILE, &E5M6);
    }
    assert_true(relative_error(y, x, TILE * TILE) < 0x1p-7);
    for (size_t k = 0; k < TILE; k++) {
        for (size_t r = 0; r < TILE; r++)
            column[r] = y[r * TILE + k];
        tile_encode(codes, &scale, column, TILE, &E5M6, true);
        tile_decode(back, codes, scale, TILE, &E5M6);
        for (size_t r = 0; r < TILE; r++)
            assert_true(back[r] == column[r]
                        || fabsf(column[r]) < scale * 0x1p-14f);
    }
}

/* A tile's codes are those of x / scale, a division: at the middles of codes,
 * where another rounding of the quotient shows. */
static void check_division(const Known *k, float amax, bool ue8m0)
{
    float scale = format_scale(k->format, amax, ue8m0);
    for (uint32_t code = 1; code < 4u << k->M; code++) {
        double middle = (value_of(k, code) + value_of(k, code + 1)) / 2;
        for (uint32_t step = 0; step < 5; step++) {
            float near = (float)(middle * (double)scale);
            float x[2] = {amax, f32_from_bits(f32_bits(near) + step - 2)};
            uint16_t codes[2];
            tile_encode(codes, &scale, x, 2, k->format, ue8m0);
            assert_int_equal(codes[1], nearest(k, (double)(x[1] / scale)));
        }
    }
}

static void test_tiles_divide(void **state)
{
    Random random = test_random();
    (void)state;
    for (int i = 0; i < 60; i++)
        check_division(&known[i % 3], 1 + random_uniform(&random), i / 3 % 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles), cmocka_unit_test(test_linear_domain),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_codes_are_stable),
        cmocka_unit_test(test_storage_vectors),
        cmocka_unit_test(test_e5m6_turns_without_loss),
        cmocka_unit_test(test_tiles_divide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
