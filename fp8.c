/* fp8.c: E4M3 and its scales ------------------------------------- V3 §3.3
 *
 * The storage side of fine-grained FP8: the E4M3 format, 128×128 blocks of a
 * weight with one F32 scale each, and the checks of what a file holds.
 * A stored weight is code·scale; `weight_scale_inv` is that multiplier, its
 * name notwithstanding.
 *
 * Invariants: every code decodes exactly to F32; encoding rounds to nearest,
 * ties to even, and saturates at 448 (E4M3 "fn": no infinity, NaN is 0x7f).
 * The product with activations is in base/kernels.c. */
#include "deepseek.h"

#include <math.h>

enum { E4M3_BIAS = 7, E4M3_NAN = 0x7f };

/* (-1)^s 2^(e-7) (1 + m/8); e = 0: (-1)^s 2^-6 (m/8). */
float e4m3_decode(uint8_t code)
{
    int sign = code >> 7, e = code >> 3 & 15, m = code & 7;
    float value;
    if ((code & 0x7f) == E4M3_NAN)
        return f32_from_bits(sign ? 0xffc00000u : 0x7fc00000u);
    value = e ? ldexpf((float)(8 + m), e - E4M3_BIAS - 3)
              : ldexpf((float)m, 1 - E4M3_BIAS - 3);
    return sign ? -value : value;
}

/* n rounded to the nearest multiple of 2^shift, in units of it; ties go to
 * the even unit. */
static uint32_t round_shift(uint32_t n, int shift)
{
    uint32_t half = 1u << (shift - 1), rest = n & ((1u << shift) - 1);
    uint32_t unit = n >> shift;
    return unit + (rest > half || (rest == half && (unit & 1)));
}

uint8_t e4m3_encode(float x)
{
    uint32_t bits = f32_bits(x), magnitude = bits & 0x7fffffffu, code;
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    int e = (int)(magnitude >> 23) - 127;
    uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    if (magnitude > 0x7f800000u)
        return sign | E4M3_NAN;
    if (e >= 9)
        return sign | 0x7e;
    if (e < -10)                 /* below half of 2^-9, the least code */
        return sign;
    if (e < -6)                  /* subnormal: units of 2^-9 */
        code = round_shift(significand, 23 - (e + 9));
    else                         /* a carry moves into the exponent */
        code = round_shift(significand, 20) - 8
               + ((uint32_t)(e + E4M3_BIAS) << 3);
    return sign | (uint8_t)(code > 0x7e ? 0x7e : code);
}

/* V3 §3.3.2: s = amax/448 of the block at hand, not of history. The floor
 * keeps a block of zeros from dividing by zero. ue8m0 (V3.1): the exponent
 * rounded up, in integers. */
float fp8_scale(float amax, bool ue8m0)
{
    float s = (amax < 1e-4f ? 1e-4f : amax) / 448.0f;
    uint32_t bits = f32_bits(s), e = bits >> 23;
    if (!ue8m0)
        return s;
    e += (bits & 0x7fffffu) != 0;
    return f32_from_bits((e < 1 ? 1 : e > 254 ? 254 : e) << 23);
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

void linear(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
            const Matrix *w, Fp8Acts *a)
{
    size_t cols = w->cols;
    if (a == NULL) {
        matmul(y, ldy, x, ldx, T, w);
        return;
    }
    fp8_quantize(a->codes, a->scales, x, ldx, T, cols, a->scope, a->ue8m0);
    spread_scales(a->scales, T, cols, a->scope);
    for (size_t i = 0; i < T * cols; i++)
        a->values[i] = f32_from_f8(a->codes[i]);
    matmul_scaled(y, ldy, a->values, cols, a->scales, T, w);
}

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
            if ((codes[r * w->stride + k] & 0x7f) == E4M3_NAN)
                return fail(err, "%s: element (%zu, %zu) is the E4M3 code"
                            " 0x%02x, not a number", name, r, k,
                            codes[r * w->stride + k]);
    return 0;
}
