/* maths.h: exp, log, sin and cos with the same bits on every machine.
 *
 * Built from +, ×, /, fmaf and bit patterns alone, never from libm, whose last
 * bit is the library's choice. The 64-bit forms use no fma, so that they need
 * no hardware for it; they are for tables (RoPE) and set-up, the 32-bit ones
 * for activations, inline and without branches so that loops over them become
 * vector code. Error bounds stand in docs/numerics.md and are checked by
 * tests/test_maths.c. */
#ifndef BASE_MATHS_H
#define BASE_MATHS_H

#include "dtype.h"

#include <float.h>
#include <math.h>

/* Results kept in wider registers between roundings would differ from every
 * other machine's. */
/* 16: only _Float16, unused here, is wider. */
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD % 16 != 0
#error "float needs -msse2 -mfpmath=sse (x86), -fexcess-precision=fast (s390x)"
#elif !defined(FLT_EVAL_METHOD) && defined(__i386__)
#error "this compiler computes with x87, which rounds otherwise"
#elif defined(__FAST_MATH__)
#error "-ffast-math lets the compiler change results"
#endif

/* a·b + c rounded once, in double: the product of two floats is exact there;
 * its sum s with c is rounded to odd (to the neighbour whose last bit is 1 if
 * it is not exact; e is the exact rest), after which rounding to float cannot
 * err twice. */
static inline float fma32_in_double(float a, float b, float c)
{
    double p = (double)a * (double)b, s = p + (double)c;
    double t = s - p, e = (p - (s - t)) + ((double)c - t);
    uint64_t u;
    memcpy(&u, &s, sizeof u);
    if ((e < 0 || e > 0) && (u & 1) == 0)
        u += (e > 0) == (s > 0) ? 1 : UINT64_MAX;
    memcpy(&s, &u, sizeof s);
    return (float)s;
}

/* The same by the instruction where the target has one. */
static inline float fma32(float a, float b, float c)
{
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
    return fmaf(a, b, c);
#else
    return fma32_in_double(a, b, c);
#endif
}

/* 2^n of an integer -126 <= n <= 127, as a float. */
static inline float power_of_two(uint32_t n)
{
    return f32_from_bits((n + 127) << 23);
}

/* e^x = 2^n e^r, |r| <= ln(2)/2: a polynomial for e^r (relative error 2^-35),
 * and 2^n in two factors so that the last product alone overflows or rounds
 * to a subnormal. Overflow gives inf, underflow 0; NaN stays.
 * Adding 1.5·2^23 leaves the nearest integer in the low bits. */
static inline float exp32(float x)
{
    const float magic = 0x1.8p23f;
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float z = fma32(x, 1.442695041f, magic), n = z - magic;
    float r = fma32(n, 1.90465421e-9f, fma32(n, -0.693147182f, x));
    float p = 0x1.6b5640p-13f;
    p = fma32(p, r, 0x1.6d40d6p-10f);
    p = fma32(p, r, 0x1.113734p-7f);
    p = fma32(p, r, 0x1.5554f2p-5f);
    p = fma32(p, r, 0x1.55553cp-3f);
    p = fma32(p, r, 0.5f);
    p = fma32(p, r * r, r);
    uint32_t i = f32_bits(z) - f32_bits(magic), half = ((i + 512) >> 1) - 256;
    float s = power_of_two(half);
    return fma32(p, s, s) * power_of_two(i - half);
}

/* ln x = k ln 2 + ln(1 + f), 1 + f in [√½, √2), by a polynomial of relative
 * error 2^-27. ln 0 = -inf, ln of a negative number is NaN: added, for a choice
 * between results would become a branch around all of this. */
static inline float log32(float x)
{
    const uint32_t root_half = 0x3f3504f3;
    int32_t tiny = x < 0x1p-126f;
    uint32_t u = f32_bits(x * (tiny ? 0x1p23f : 1.0f));
    uint32_t e = (u - root_half + ((uint32_t)128 << 23)) >> 23;
    float k = (float)((int32_t)e - 128 - 23 * tiny);
    float f = f32_from_bits(u - ((e - 128) << 23)) - 1.0f, z = f * f;
    float p = 0x1.b79486p-5f;
    p = fma32(p, f, -0x1.bfd670p-4f);
    p = fma32(p, f, 0x1.f004fep-4f);
    p = fma32(p, f, -0x1.01020cp-3f);
    p = fma32(p, f, 0x1.23036ep-3f);
    p = fma32(p, f, -0x1.552f18p-3f);
    p = fma32(p, f, 0x1.99a540p-3f);
    p = fma32(p, f, -0x1.000070p-2f);
    p = fma32(p, f, 0x1.555548p-2f);
    p = fma32(f * z, p, k * -1.90465421e-9f);
    p = f + fma32(z, -0.5f, p);
    float special = x < INFINITY ? 0.0f : x;
    special = x < 0.0f ? NAN : special;
    special = x == 0.0f ? -INFINITY : special;
    return fma32(k, 0.693147182f, p) + special;
}

double exp64(double x);
double log64(double x); /* x > 0 */
double sin64(double x); /* |x| <= 2^30 */
double cos64(double x);
double pow64(double x, double y); /* exp64(y * log64(x)), x > 0 */

#endif
