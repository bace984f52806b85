/* adamw.c: one step of the optimiser, a tensor at a time -- V2 §3.1.2, V3 §4.2
 *
 * Adam with decoupled weight decay (Loshchilov and Hutter 2019), in the order
 * of a step: the sum of squares of every tensor's gradient (sum_of_squares),
 * from all of them one factor that limits the norm (clip_factor), the
 * constants that all parameters share (adamw_step), the update (adamw_update),
 * the moving average of the parameters (ema_update).
 *
 * Parameters are F32. Moments are F32 or BF16 (V3 §3.3.3): the update computes
 * in F32 either way, takes the moments as they are computed, and rounds them
 * when it stores them, once a step, to nearest even. No element meets another
 * but in sum_of_squares, so the order of tensors and elements is free.
 *
 * Not here: which tensors there are and which of them decay (train.c); the
 * learning rate (schedule.c). */
#include "deepseek.h"

#include "base/maths.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 16,   /* of a sum, as everywhere */
    BLOCK = 256   /* parameters whose moments are F32 at a time */
};

/* Sixteen lanes in double, where a square is exact, a[i%16] += g_i²; then
 * folded by halves. */
double sum_of_squares(const float *g, size_t n)
{
    double a[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            a[l] += (double)g[i + l] * (double)g[i + l];
    for (size_t l = 0; i + l < n; l++)
        a[l] += (double)g[i + l] * (double)g[i + l];
    for (size_t s = LANES / 2; s > 0; s /= 2)
        for (size_t l = 0; l < s; l++)
            a[l] += a[l + s];
    return a[0];
}

float clip_factor(double norm, double limit)
{
    return norm > limit ? (float)(limit / norm) : 1.0f;
}

/* x^n by squaring; the last bits of pow are the library's choice. */
static double power(double x, uint64_t n)
{
    double result = 1;
    for (; n > 0; n /= 2, x *= x)
        if (n % 2)
            result *= x;
    return result;
}

AdamWStep adamw_step(const AdamW *a, double lr, float clip, uint64_t t)
{
    return (AdamWStep){
        .lr = (float)lr, .clip = clip, .eps = (float)a->eps,
        .weight_decay = (float)a->weight_decay,
        .beta1 = (float)a->beta1, .rest1 = (float)(1 - a->beta1),
        .beta2 = (float)a->beta2, .rest2 = (float)(1 - a->beta2),
        .unbias1 = (float)(1 / (1 - power(a->beta1, t))),
        .unbias2 = (float)(1 / (1 - power(a->beta2, t)))};
}

/* The root has a loop of its own, because the library's, which may set errno,
 * would keep all of it from becoming vector code. */
static void update_block(float *p, const float *g, float *m, float *v,
                         size_t n, float weight_decay, const AdamWStep *s)
{
    float root[BLOCK];
    for (size_t i = 0; i < n; i++) {
        float clipped = g[i] * s->clip;
        m[i] = s->beta1 * m[i] + s->rest1 * clipped;
        v[i] = s->beta2 * v[i] + s->rest2 * (clipped * clipped);
        root[i] = v[i] * s->unbias2;
    }
    for (size_t i = 0; i < n; i++)
        root[i] = sqrtf(root[i]);
    for (size_t i = 0; i < n; i++) {
        float step = (m[i] * s->unbias1) / (root[i] + s->eps);
        p[i] = p[i] - s->lr * (step + weight_decay * p[i]);
    }
}

/* Where n moments are as F32: in their place or, from BF16, in x. */
static float *load(float *x, void *stored, DType dtype, size_t at, size_t n)
{
    if (dtype == DT_F32)
        return (float *)stored + at;
    for (size_t i = 0; i < n; i++)
        x[i] = f32_from_bf16(((const uint16_t *)stored)[at + i]);
    return x;
}

static void store(void *stored, const float *x, DType dtype, size_t at,
                  size_t n)
{
    for (size_t i = 0; dtype == DT_BF16 && i < n; i++)
        ((uint16_t *)stored)[at + i] = bf16_from_f32(x[i]);
}

void adamw_update(float *p, const float *g, const Moments *moments, size_t n,
                  bool decay, const AdamWStep *s)
{
    float room_m[BLOCK], room_v[BLOCK];
    DType dtype = moments->dtype;
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t k = n - i < BLOCK ? n - i : BLOCK;
        float *m = load(room_m, moments->m, dtype, i, k);
        float *v = load(room_v, moments->v, dtype, i, k);
        update_block(p + i, g + i, m, v, k, decay ? s->weight_decay : 0, s);
        store(moments->m, m, dtype, i, k);
        store(moments->v, v, dtype, i, k);
    }
}

void ema_update(float *ema, const float *p, size_t n, double decay)
{
    float rest = (float)(1 - decay);
    for (size_t i = 0; i < n; i++)
        ema[i] = ema[i] + rest * (p[i] - ema[i]);
}
