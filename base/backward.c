/* backward.c: gradients of sums, norms and functions of vectors. */
#include "backward.h"

#include "maths.h"

/* dx holds the gain, then g. */
static void rmsnorm_row(float *dx, float *dw, const float *dy,
                        const float *x, size_t n, float eps)
{
    float r = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++) {
        dx[i] = dy[i] * dx[i];
        dw[i] = fma32(dy[i], x[i] * r, dw[i]);
    }
    float mean = dot(dx, x, n) * r / (float)n;
    for (size_t i = 0; i < n; i++)
        dx[i] = r * fma32(-(x[i] * r), mean, dx[i]);
}

void rmsnorm_backward(float *dx, size_t lddx, float *dw, const float *dy,
                      size_t lddy, const float *x, size_t ldx, size_t T,
                      const Matrix *w, float eps)
{
    for (size_t t = 0; t < T; t++) {
        matrix_row(dx + t * lddx, w, 0);
        rmsnorm_row(dx + t * lddx, dw, dy + t * lddy, x + t * ldx, w->cols,
                    eps);
    }
}

void softmax_backward(float *ds, const float *p, const float *dp, size_t n)
{
    float mean = dot(p, dp, n);
    for (size_t i = 0; i < n; i++)
        ds[i] = p[i] * (dp[i] - mean);
}

void sigmoid_backward(float *dx, const float *y, const float *dy, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dx[i] = dy[i] * (y[i] * (1.0f - y[i]));
}

void silu_mul_backward(float *dg, float *du, const float *dh, const float *g,
                       const float *u, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float s = 1.0f / (1.0f + exp32(-g[i])), a = dh[i];
        du[i] = a * (g[i] * s);
        dg[i] = (a * u[i]) * (s * fma32(g[i], 1.0f - s, 1.0f));
    }
}

/* -ln p = (max - logit) - ln p of the greatest, where the exponent is 0: no
 * p is too small for it. */
double cross_entropy(float *logits, size_t n, size_t target, float factor)
{
    double above = (double)maximum(logits, n) - (double)logits[target];
    softmax(logits, logits, n);
    double loss = above - log64((double)maximum(logits, n));
    logits[target] -= 1.0f;
    scale(logits, logits, factor, n);
    return loss;
}
