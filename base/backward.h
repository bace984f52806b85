/* backward.h: gradients of what kernels.h computes, in one fixed order.
 *
 * With L the loss and y = f(x), a function takes dy = dL/dy and gives dx, or
 * adds to it where it says so: a gradient that comes from several places is a
 * sum. The gradient of a weight is always added to: it is a sum over tokens,
 * t ascending, whichever call they come in, so that a batch in one piece and in
 * several gives the same bits. The sums over features are dot products and
 * plain sums of kernels.h. dx = dy W is matmul_t.
 *
 * Knows nothing of transformers. gpu/backward.cu is its twin. */
#ifndef BASE_BACKWARD_H
#define BASE_BACKWARD_H

#include "kernels.h"

/* y = x wᵀ: dw += dyᵀ x; dy (T, N), x (T, K), dw (N, K):
 * for t ascending dw[n][k] = fmaf(dy[t][n], x[t][k], dw[n][k]). */
void matmul_dw(float *dw, size_t lddw, const float *dy, size_t lddy,
               const float *x, size_t ldx, size_t T, size_t N, size_t K);

/* y = (x·r)·w. With x^ = x·r and g = dy·w:
 * dw = fmaf(dy, x^, dw); dx = r·fmaf(-x^, dot(g, x)·r/n, g), for T rows;
 * dx is neither dy nor x. */
void rmsnorm_backward(float *dx, size_t lddx, float *dw, const float *dy,
                      size_t lddy, const float *x, size_t ldx, size_t T,
                      const Matrix *w, float eps);

/* ds = p·(dp - dot(p, dp)): one row of n; ds may be dp. */
void softmax_backward(float *ds, const float *p, const float *dp, size_t n);
/* dx = dy·(y·(1 - y)), y = sigmoid(x); dx may be dy. */
void sigmoid_backward(float *dx, const float *y, const float *dy, size_t n);
/* h = silu(g) u, with s = sigmoid(g):
 * du = dh·(g·s), dg = (dh·u)·(s·fmaf(g, 1 - s, 1)). */
void silu_mul_backward(float *dg, float *du, const float *dh, const float *g,
                       const float *u, size_t n);

/* -ln p of logit `target` of n, p = softmax(logits), in double; in the place
 * of the logits is left factor·(p - onehot). */
double cross_entropy(float *logits, size_t n, size_t target, float factor);

#endif
