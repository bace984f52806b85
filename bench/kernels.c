/* kernels.c: what share of the machine's limits the products reach.
 *
 * A machine's limits move while others use it. So each figure is a ratio to a
 * limit measured just before it, and the median of several. Limits are of one
 * thread: reading memory larger than the caches, and fused multiply-adds of
 * vectors that stay in registers (2 FLOP an element). */
#include "limits.h"

#include "deepseek.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLS = 2048, BATCH = 128, SAMPLES = 7 };

/* Weights of unit size: a few thousand different ones over and over. In F8 one
 * code of 8192 is 0, about as in a quantised normal distribution. */
static void fill(unsigned char *region, DType type)
{
    enum { N = 8192 };
    static unsigned char block[N * sizeof(float)];
    size_t size = dtype_size(type);
    Random r = random_seeded(1);
    for (size_t i = 0; i < N; i++) {
        uint32_t u = (uint32_t)(random_u64(&r) >> 32);
        float f = f32_from_bits((u & 0x80ffffff) | 0x3f000000);
        uint16_t h = type == DT_BF16 ? bf16_from_f32(f) : f16_from_f32(f);
        uint8_t code = i == 0 ? 0 : (uint8_t)((u & 0x9f) | 0x20);
        memcpy(block + i * size, size == 4 ? (void *)&f :
               size == 2 ? (void *)&h : (void *)&code, size);
    }
    for (size_t i = 0; i < REGION; i += N * size)
        memcpy(region + i, block, N * size);
}

typedef struct {
    unsigned char *region;
    float *x, *y, *scales;
    Fp8Acts fp8;            /* x in FP8 */
    Fp8Accumulation how;
} Bench;

typedef void Product(float *y, size_t ldy, const float *x, size_t ldx,
                     size_t T, const Matrix *w);

/* GFLOP/s or GB/s by T rows of x, and the share of the limit. f NULL: x is
 * quantised, then both are FP8. */
static void measure(const char *name, const Bench *b, Product *f, Matrix w,
                    size_t T, int repeat)
{
    double share[SAMPLES], speed[SAMPLES];
    size_t in = f == matmul_t ? w.rows : w.cols;
    size_t out = f == matmul_t ? w.cols : w.rows;
    size_t bytes = w.rows * w.cols * dtype_size(w.dtype);
    for (int i = 0; i < SAMPLES; i++) {
        double limit = T == 1 ? read_limit(b->region, REGION) : fma_limit();
        double work = T == 1 ? (double)bytes :
                               2.0 * (double)T * (double)(in * out);
        double start = cpu_seconds();
        Fp8Acts acts = b->fp8;
        for (int j = 0; j < repeat && f == NULL; j++) {
            fp8_activations(&acts, b->x, in, T, in);
            fp8_gemm(b->y, out, &acts, T, &w, b->how);
        }
        for (int j = 0; j < repeat && f != NULL; j++)
            f(b->y, out, b->x, in, T, &w);
        speed[i] = work * repeat / (cpu_seconds() - start);
        share[i] = speed[i] / limit;
    }
    printf("%-10s %-8s %5zu x %-5zu T %-4zu %6.1f %s  %.2f\n", name,
           dtype_name(w.dtype), w.rows, w.cols, T, median(speed, SAMPLES) * 1e-9,
           T == 1 ? "GB/s   " : "GFLOP/s", median(share, SAMPLES));
    fflush(stdout);
}

/* V3 §3.3.2: the sums of Hopper's tensor cores, number by number. */
static void measure_hopper(Bench b, Matrix w)
{
    b.how.sum = FP8_APART;
    measure("as Hopper", &b, NULL, matrix_rows(&w, 0, 64), 16, 1);
}

static void measure_type(const Bench *b, DType type)
{
    static const size_t batches[] = {4, 16, 128};
    Matrix w = {b->region, type, REGION / COLS / dtype_size(type), COLS, COLS,
                type == DT_F8_E4M3 ? b->scales : NULL, 0};
    fill(b->region, type);
    measure("matvec", b, matmul, w, 1, 1);
    for (size_t i = 0; i < 3; i++)
        measure("product", b, matmul, matrix_rows(&w, 0, 2048), batches[i],
                (int)(BATCH / batches[i] / 8) + 1);
    for (size_t i = 0; i < 3 && type == DT_F8_E4M3; i++)
        measure("both FP8", b, NULL, matrix_rows(&w, 0, 2048), batches[i],
                (int)(BATCH / batches[i] / 8) + 1);
    if (type == DT_F8_E4M3)
        measure_hopper(*b, w);
    w.cols = 512;
    w.stride = 512;
    measure("transposed", b, matmul_t, matrix_rows(&w, 0, 128), 1, 100);
}

/* Scores and values of attention: 1024 positions of 512 + 64 numbers. */
static void measure_attention(const Bench *b)
{
    Matrix c = {b->region, DT_F32, 1024, 576, 576, NULL, 0}, v = c;
    fill(b->region, DT_F32);
    v.cols = 512;
    measure("scores", b, matmul, c, 16, 10);
    measure("scores", b, matmul, c, 128, 2);
    measure("values", b, matmul_t, v, 16, 10);
    measure("values", b, matmul_t, v, 128, 2);
}

int main(void)
{
    static const DType types[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3};
    Random r = random_seeded(2);
    size_t rows = REGION / COLS;
    Bench b = {malloc(REGION), malloc(BATCH * COLS * sizeof(float)),
               malloc((rows + BATCH * COLS) * sizeof(float)),
               malloc((rows / 128 + 1) * (COLS / 128) * sizeof(float)),
               {FP8_TILE, false, 0, malloc(BATCH * COLS),
                malloc(BATCH * COLS * sizeof(float)),
                malloc(BATCH * COLS / 128 * sizeof(float))},
               {.sum = FP8_LANES}};
    if (b.region == NULL || b.x == NULL || b.y == NULL || b.scales == NULL
        || b.fp8.codes == NULL || b.fp8.values == NULL
        || b.fp8.scales == NULL)
        return 1;
    random_normal(&r, b.x, BATCH * COLS, 1);
    random_normal(&r, b.scales, (rows / 128 + 1) * (COLS / 128), 1);
    memset(b.y, 0, (rows + BATCH * COLS) * sizeof(float));
    fill(b.region, DT_F32);
    printf("limits of one thread: read %.1f GB/s, FMA %.1f GFLOP/s\n",
           read_limit(b.region, REGION) * 1e-9, fma_limit() * 1e-9);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        measure_type(&b, types[i]);
    measure_attention(&b);
    free(b.region), free(b.x), free(b.y), free(b.scales);
    free(b.fp8.codes), free(b.fp8.values), free(b.fp8.scales);
    return 0;
}
