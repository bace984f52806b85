/* maths.h: exp, log, sin and cos with the same bits on every machine.
 *
 * Built from +, ×, fmaf and bit patterns alone, never from libm, whose last
 * bit is the library's choice. The 64-bit forms use no fma, so that they need
 * no hardware for it; they are for tables (RoPE) and set-up, the 32-bit ones
 * for activations. Error bounds stand in docs/numerics.md and are checked by
 * tests/test_maths.c. */
#ifndef BASE_MATHS_H
#define BASE_MATHS_H

#include <stdint.h>

/* An fmaf that is exact everywhere and inline: the instruction where the
 * target has it, else double arithmetic rounded to odd. */
float fma32(float a, float b, float c);

float exp32(float x);   /* overflow gives inf, underflow 0; NaN stays */
float log32(float x);
double exp64(double x);
double log64(double x); /* x > 0 */
double sin64(double x); /* |x| <= 2^30 */
double cos64(double x);
double pow64(double x, double y); /* exp64(y * log64(x)), x > 0 */

#endif
