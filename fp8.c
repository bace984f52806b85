/* fp8.c: number formats, tiles and products of FP8 ---------------- V3 §3.3
 *
 *   formats -> scales -> quantisation by tile, block or tensor
 *           -> the product of two quantised operands, as this program sums it
 *              and as Hopper's tensor cores do
 *           -> linear(), where a layer runs a Linear weight
 *
 * Invariants: every code decodes exactly to F32; encoding rounds once, to
 * nearest, ties to even. A number is code·scale; `weight_scale_inv` is that
 * multiplier, its name notwithstanding.
 *
 * Not here: which tensors are FP8 (model.c), which products (mla.c, moe.c),
 * the fast product (base/matmul_scaled.c), LogFMT (logfmt.c). */
#include "deepseek.h"

#include "base/backward.h"

#include <math.h>

/* Formats ---------------------------------------------------------------- */

const FloatFormat E4M3 = {4, 3, 7, true};
const FloatFormat E5M2 = {5, 2, 15, false};
const FloatFormat E5M6 = {5, 6, 15, false};
const FloatFormat BF16 = {8, 7, 127, false};
const FloatFormat F16 = {5, 10, 15, false};

/* The code of the greatest number: below NaN, or below infinity. */
static uint32_t greatest_code(const FloatFormat *f)
{
    uint32_t all = (1u << (f->exponent_bits + f->mantissa_bits)) - 1;
    return f->finite ? all - 1 : all - (1u << f->mantissa_bits);
}

static uint32_t nan_code(const FloatFormat *f)
{
    uint32_t next = greatest_code(f) + 1;
    return f->finite ? next : next | 1u << (f->mantissa_bits - 1);
}

/* 2^(e-bias) (1 + m/2^M); e = 0: 2^(1-bias) m/2^M. */
static float magnitude_of(const FloatFormat *f, uint32_t code)
{
    int M = f->mantissa_bits, e = (int)(code >> M);
    uint32_t m = code & ((1u << M) - 1), greatest = greatest_code(f);
    if (code > greatest)
        return code == greatest + 1 && !f->finite ? INFINITY : NAN;
    return e ? ldexpf((float)(m + (1u << M)), e - f->bias - M)
             : ldexpf((float)m, 1 - f->bias - M);
}

float format_decode(const FloatFormat *f, uint32_t code)
{
    int bits = f->exponent_bits + f->mantissa_bits;
    float value = magnitude_of(f, code & ((1u << bits) - 1));
    return code >> bits & 1 ? -value : value;
}

float format_greatest(const FloatFormat *f)
{
    return format_decode(f, greatest_code(f));
}

/* n·2^-shift rounded to a whole number, ties to even; n < 2^24. */
static uint32_t round_shift(uint32_t n, int shift)
{
    uint32_t half, rest, whole;
    if (shift > 25)
        return 0;
    half = 1u << (shift - 1);
    rest = n & (2 * half - 1);
    whole = n >> shift;
    return whole + (rest > half || (rest == half && (whole & 1)));
}

/* |x| = n·2^(e-M), e its exponent but at least that of the least normal
 * number, below which codes lie no closer. n rounded to a whole number has its
 * leading bit where the exponent field begins: added to the field of e less
 * one it makes the code, and a carry out of the mantissa ends up in the
 * exponent by itself. */
uint32_t format_encode(const FloatFormat *f, float x)
{
    int M = f->mantissa_bits, least = 1 - f->bias;
    uint32_t bits = f32_bits(x), magnitude = bits & 0x7fffffffu;
    uint32_t sign = bits >> 31 << (f->exponent_bits + M);
    uint32_t normal = magnitude >= 0x800000u, limit = greatest_code(f);
    uint32_t significand = (magnitude & 0x7fffffu) | normal << 23;
    int own = normal ? (int)(magnitude >> 23) - 127 : -126;
    int e = own > least ? own : least;
    uint32_t code = round_shift(significand, 23 - M + (e - own))
                    + ((uint32_t)(e - least) << M);
    if (magnitude > 0x7f800000u)
        return sign | nan_code(f);
    limit += !f->finite;            /* infinity */
    return sign | (code < limit ? code : limit);
}

float e4m3_decode(uint8_t code)
{
    return format_decode(&E4M3, code);
}

uint8_t e4m3_encode(float x)
{
    return (uint8_t)format_encode(&E4M3, x);
}

float ue8m0_decode(uint8_t code)
{
    return code == 0xff ? NAN : ldexpf(1, code - 127);
}

/* In integers: a logarithm in float takes 2^-10 (1 + 2^-23) down to 2^-10. */
uint8_t ue8m0_encode(float s)
{
    uint32_t bits = f32_bits(s), e = bits >> 23;
    e += (bits & 0x7fffffu) != 0;
    return (uint8_t)(e < 1 ? 1 : e > 254 ? 254 : e);
}

/* Scales and tiles ------------------------------------------------------- */

/* V3 §3.3.2: from the greatest number at hand, not of history. The floor keeps
 * a tile of zeros from dividing by zero. ue8m0: V3 §3.3.3, V3.1. */
float format_scale(const FloatFormat *f, float amax, bool ue8m0)
{
    float s = (amax < 1e-4f ? 1e-4f : amax) / format_greatest(f);
    return ue8m0 ? ue8m0_decode(ue8m0_encode(s)) : s;
}

float fp8_scale(float amax, bool ue8m0)
{
    return format_scale(&E4M3, amax, ue8m0);
}

size_t fp8_blocks(size_t n)
{
    return n / F8_BLOCK + (n % F8_BLOCK != 0);
}

void fp8_reach(Fp8Scope scope, size_t rows, size_t cols, size_t *height,
               size_t *width)
{
    *height = scope == FP8_TILE ? 1 : scope == FP8_TENSOR ? rows : F8_BLOCK;
    *width = scope == FP8_COLUMN ? 1 : scope == FP8_TENSOR ? cols : F8_BLOCK;
}

static float greatest(const float *x, size_t ldx, size_t rows, size_t cols)
{
    float amax = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < cols; k++) {
            float v = fabsf(x[r * ldx + k]);
            amax = v > amax ? v : amax;
        }
    return amax;
}

static void divide(uint8_t *codes, size_t ldc, const float *x, size_t ldx,
                   size_t rows, size_t cols, float s)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < cols; k++)
            codes[r * ldc + k] = e4m3_encode(x[r * ldx + k] / s);
}

void fp8_quantize(uint8_t *codes, float *scales, const float *x, size_t ldx,
                  size_t rows, size_t cols, Fp8Scope scope, bool ue8m0)
{
    size_t height, width;
    fp8_reach(scope, rows, cols, &height, &width);
    for (size_t r = 0; r < rows; r += height)
        for (size_t k = 0; k < cols; k += width) {
            size_t n = rows - r < height ? rows - r : height;
            size_t m = cols - k < width ? cols - k : width;
            const float *p = x + r * ldx + k;
            *scales = fp8_scale(greatest(p, ldx, n, m), ue8m0);
            divide(codes + r * cols + k, cols, p, ldx, n, m, *scales++);
        }
}

void fp8_dequantize(float *x, size_t ldx, const uint8_t *codes,
                    const float *scales, size_t rows, size_t cols,
                    Fp8Scope scope)
{
    size_t height, width;
    fp8_reach(scope, rows, cols, &height, &width);
    size_t n = (cols + width - 1) / width;
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < cols; k++)
            x[r * ldx + k] = f32_from_f8(codes[r * cols + k])
                             * scales[r / height * n + k / width];
}

void tile_encode(uint16_t *codes, float *scale, const float *x, size_t n,
                 const FloatFormat *f, bool ue8m0)
{
    *scale = format_scale(f, greatest(x, n, 1, n), ue8m0);
    for (size_t i = 0; i < n; i++)
        codes[i] = (uint16_t)format_encode(f, x[i] / *scale);
}

void tile_decode(float *x, const uint16_t *codes, float scale, size_t n,
                 const FloatFormat *f)
{
    for (size_t i = 0; i < n; i++)
        x[i] = format_decode(f, codes[i]) * scale;
}

/* One scale for each token and 128 channels, whatever the scope: those it
 * shares are repeated. */
static void spread_scales(float *scales, size_t T, size_t cols,
                          Fp8Scope scope)
{
    size_t n = fp8_blocks(cols), height, width;
    fp8_reach(scope, T, cols, &height, &width);
    for (size_t i = T * n; i-- > 0;)
        scales[i] = scales[i / n / height * ((cols + width - 1) / width)
                           + i % n * F8_BLOCK / width];
}

/* V3 B.2's outliers, tokens that are greater than others: y = x, (T, cols),
 * but for one row in 128, which is 2^power times as great. */
static void raise_rows(float *y, const float *x, size_t ldx, size_t T,
                       size_t cols, int power)
{
    for (size_t t = 0; t < T; t++)
        scale(y + t * cols, x + t * ldx,
              ldexpf(1, t % F8_BLOCK ? 0 : power), cols);
}

void fp8_activations(Fp8Acts *a, const float *x, size_t ldx, size_t T,
                     size_t cols)
{
    size_t n = fp8_blocks(cols);
    if (a->raise) {
        raise_rows(a->values, x, ldx, T, cols, a->raise);
        x = a->values;
        ldx = cols;
    }
    fp8_quantize(a->codes, a->scales, x, ldx, T, cols, a->scope, a->ue8m0);
    spread_scales(a->scales, T, cols, a->scope);
    if (a->raise)
        raise_rows(a->scales, a->scales, n, T, n, -a->raise);
    for (size_t i = 0; i < T * cols; i++)
        a->values[i] = f32_from_f8(a->codes[i]);
}

/* Products --------------------------------------------------------------- */

enum { MMA = 32, FRACTION_BITS = 13 };

/* x as whole units of 2^(e-13), what is less shifted out. */
static double keep_bits(double x, int e, bool down)
{
    double n = ldexp(x, FRACTION_BITS - e);
    return ldexp(down ? floor(n) : trunc(n), e - FRACTION_BITS);
}

/* e of the greatest |p| = 2^e·f, 1 <= f < 2; of zeros that of the least
 * product. */
static int greatest_exponent(const double *p, size_t n)
{
    int greatest = -18, e;
    for (size_t i = 0; i < n; i++) {
        double fraction = frexp(p[i], &e);
        if (fabs(fraction) > 0 && e - 1 > greatest)
            greatest = e - 1;
    }
    return greatest;
}

/* The register after n <= 32 products more. The sum of what was kept is exact,
 * in silicon and in double. */
static double accumulate(double sum, const float *a, const uint8_t *b,
                         size_t n, Fp8Accumulation how)
{
    double p[MMA + 1] = {0}, kept = 0;
    int e;
    for (size_t i = 0; i < n; i++)
        p[i] = (double)a[i] * (double)f32_from_f8(b[i]);
    if (how.sum == FP8_TOGETHER) {
        p[n++] = sum;
        sum = 0;
    }
    e = greatest_exponent(p, n);
    for (size_t i = 0; i < n; i++)
        kept += how.sum == FP8_EXACT ? p[i] : keep_bits(p[i], e, how.floor);
    sum += kept;
    return how.sum == FP8_EXACT
               ? sum : keep_bits(sum, greatest_exponent(&sum, 1), false);
}

static float weight_scale(const Matrix *w, size_t row, size_t block)
{
    float s;
    if (!w->scale)
        return 1;
    block += (w->row0 + row) / F8_BLOCK * fp8_blocks(w->cols);
    memcpy(&s, (const char *)w->scale + block * sizeof s, sizeof s);
    return s;
}

/* V3 §3.3.2: every 128 k the register is scaled, added in F32 and cleared. */
static float dot_tensor_core(const float *a, const float *a_scales,
                             const Matrix *w, size_t row, Fp8Accumulation how)
{
    const uint8_t *b = (const uint8_t *)w->data + row * w->stride;
    size_t interval = how.alone ? w->cols : F8_BLOCK;
    double sum = 0;
    float c = 0;
    for (size_t k = 0; k < w->cols;) {
        size_t block = k / interval, n = w->cols - k;
        sum = accumulate(sum, a + k, b + k, n < MMA ? n : MMA, how);
        k += n < MMA ? n : MMA;
        if (k % interval && k < w->cols)
            continue;
        c += a_scales[block] * weight_scale(w, row, block) * (float)sum;
        sum = 0;
    }
    return c;
}

void fp8_gemm(float *c, size_t ldc, const Fp8Acts *a, size_t T,
              const Matrix *w, Fp8Accumulation how)
{
    size_t K = w->cols;
    if (how.sum == FP8_LANES) {
        matmul_scaled(c, ldc, a->values, K, a->scales, T, w);
        return;
    }
    for (size_t t = 0; t < T; t++)
        for (size_t n = 0; n < w->rows; n++)
            c[t * ldc + n] = dot_tensor_core(a->values + t * K,
                                             a->scales + t * fp8_blocks(K), w,
                                             n, how);
}

void linear(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
            const Matrix *w, Fp8Acts *a)
{
    if (a == NULL) {
        matmul(y, ldy, x, ldx, T, w);
        return;
    }
    fp8_activations(a, x, ldx, T, w->cols);
    fp8_gemm(y, ldy, a, T, w, (Fp8Accumulation){FP8_LANES, false, false});
}

void linear_backward(float *dx, size_t lddx, const float *dy, size_t lddy,
                     const float *x, size_t ldx, size_t T, const Matrix *w,
                     const Matrix *dw)
{
    matmul_t(dx, lddx, dy, lddy, T, w);
    matmul_dw(matrix_numbers(dw), dw->stride, dy, lddy, x, ldx, T, w->rows,
              w->cols);
}

/* Checks ----------------------------------------------------------------- */

int fp8_check_scales(const void *scales, size_t rows, size_t cols,
                     const char *name, const char *file, Error *err)
{
    for (size_t i = 0; i < rows * cols; i++) {
        float s;
        memcpy(&s, (const char *)scales + i * sizeof s, sizeof s);
        if (!(s > 0) || isinf(s))
            return fail(err, "%s: %s: element (%zu, %zu) is %g, wanted a"
                        " finite positive scale", file, name, i / cols,
                        i % cols, (double)s);
    }
    return 0;
}

int fp8_check(const Matrix *w, const char *name, Error *err)
{
    const uint8_t *codes = w->data;
    for (size_t r = 0; r < w->rows; r++)
        for (size_t k = 0; k < w->cols; k++)
            if ((codes[r * w->stride + k] & 0x7f) == 0x7f)
                return fail(err, "%s: element (%zu, %zu) is the E4M3 code"
                            " 0x%02x, not a number", name, r, k,
                            codes[r * w->stride + k]);
    return 0;
}
