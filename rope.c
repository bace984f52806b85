/* rope.c: decoupled RoPE and YaRN ------------- V2 §2.1.3, §3.1.4; V3 §4.3
 *
 * Only the d_r RoPE dimensions of each query head and the one key that all
 * heads share are turned. Stages: rope_open derives d_r/2 frequencies and two
 * magnitudes from the config; rope_table gives cos and sin of a run of
 * positions, once for all layers; rope_apply turns rows by them.
 *
 * Invariants: the checkpoint's layout, pairs (x[2i], x[2i+1]), never halves.
 * Frequencies, angles, cos and sin are double and rounded to F32 once, so an
 * angle is as exact at position 163839 as at 1. Released engines round the
 * frequency and the angle to F32 (docs/disputes.md).
 *
 * Not here: the score's YaRN factor mscale² is only computed here; mla.c
 * multiplies it on. */
#include "deepseek.h"

#include "base/maths.h"

#include <math.h>
#include <stdlib.h>

static const double TWO_PI = 6.283185307179586476925286766559;

/* sqrt(1/t) = 0.1 ln s + 1, YaRN (22), with the factor m of the configs. */
double yarn_mscale(double s, double m)
{
    return s <= 1 ? 1 : 0.1 * m * log64(s) + 1;
}

/* The pair index whose wavelength fits n times into the original context:
 * d_r ln(L0 / (2 pi n)) / (2 ln base), from YaRN (17) solved for d. */
static double pair_of_rotations(const Config *c, double n)
{
    double length = (double)c->rope_scaling.original_max_position_embeddings;
    return (double)c->qk_rope_head_dim * log64(length / (n * TWO_PI))
           / (2 * log64(c->rope_theta));
}

/* YaRN (20): f/s where the ramp is 1, f where it is 0. The paper's ramp (18)
 * is linear in the rotations r; all released code has it linear in the pair
 * index, and the weights were trained with that. */
static void yarn_stretch(double *freq, size_t pairs, const Config *c)
{
    const RopeScaling *s = &c->rope_scaling;
    double low = floor(pair_of_rotations(c, s->beta_fast));
    double high = ceil(pair_of_rotations(c, s->beta_slow));
    double last = (double)c->qk_rope_head_dim - 1;
    if (low < 0)
        low = 0;
    if (high > last)
        high = last;
    if (low == high)
        high += 0.001;
    for (size_t i = 0; i < pairs; i++) {
        double ramp = ((double)i - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        freq[i] = freq[i] / s->factor * ramp + freq[i] * (1 - ramp);
    }
}

int rope_open(Rope *r, const Config *c, Error *err)
{
    const RopeScaling *s = &c->rope_scaling;
    double softmax_scale = 1 / sqrt((double)(c->qk_nope_head_dim
                                             + c->qk_rope_head_dim));
    r->pairs = c->qk_rope_head_dim / 2;
    r->magnitude = 1;
    r->freq = allocate(r->pairs, sizeof *r->freq, "RoPE frequencies", err);
    if (!r->freq)
        return -1;
    for (size_t i = 0; i < r->pairs; i++)
        r->freq[i] = pow64(c->rope_theta, -2 * (double)i
                                          / (double)c->qk_rope_head_dim);
    if (s->yarn) {
        double m = yarn_mscale(s->factor, s->mscale_all_dim);
        yarn_stretch(r->freq, r->pairs, c);
        r->magnitude = yarn_mscale(s->factor, s->mscale) / m;
        /* q and k would each get it: V2 §3.1.4, V3 §4.3 */
        softmax_scale *= m * m;
    }
    r->softmax_scale = (float)softmax_scale;
    return 0;
}

void rope_close(Rope *r)
{
    free(r->freq);
    r->freq = NULL;
}

void rope_table(float *cos, float *sin, const Rope *r, size_t T, size_t pos)
{
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < r->pairs; i++) {
            double angle = (double)(pos + t) * r->freq[i];
            cos[t * r->pairs + i] = (float)(cos64(angle) * r->magnitude);
            sin[t * r->pairs + i] = (float)(sin64(angle) * r->magnitude);
        }
}

/* y[2i] = x[2i] cos - x[2i+1] sin, y[2i+1] = x[2i] sin + x[2i+1] cos, each
 * as fmaf(first product, second product rounded). y may be x. */
void rope_apply(float *y, size_t ldy, const float *x, size_t ldx,
                const float *cos, const float *sin, size_t T, size_t pairs)
{
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < pairs; i++) {
            float c = cos[t * pairs + i], s = sin[t * pairs + i];
            float a = x[t * ldx + 2 * i], b = x[t * ldx + 2 * i + 1];
            y[t * ldy + 2 * i] = fma32(a, c, -(b * s));
            y[t * ldy + 2 * i + 1] = fma32(a, s, b * c);
        }
}

/* The transpose of the turn, cos and sin with their magnitude:
 * dx[2i] = dy[2i] cos + dy[2i+1] sin, dx[2i+1] = dy[2i+1] cos - dy[2i] sin. */
void rope_backward(float *dx, size_t lddx, const float *dy, size_t lddy,
                   const float *cos, const float *sin, size_t T, size_t pairs)
{
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < pairs; i++) {
            float c = cos[t * pairs + i], s = sin[t * pairs + i];
            float a = dy[t * lddy + 2 * i], b = dy[t * lddy + 2 * i + 1];
            dx[t * lddx + 2 * i] = fma32(a, c, b * s);
            dx[t * lddx + 2 * i + 1] = fma32(b, c, -(a * s));
        }
}
