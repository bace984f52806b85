/* backward.c: gradients of sums, norms and functions of vectors. */
#include "backward.h"

#include "maths.h"
#include "sample.h"

/* Rows of dyᵀ and tokens of one piece: a transposed piece lies on the stack. */
enum { PIECE_N = 128, PIECE_T = 128, SQUARE = 16 };

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* to (cols, PIECE_T) = from (rows, cols), in squares: both are in cache. */
static void transpose(float *to, const float *from, size_t ld, size_t rows,
                      size_t cols)
{
    for (size_t r = 0; r < rows; r += SQUARE)
        for (size_t c = 0; c < cols; c++)
            for (size_t i = r; i < least(r + SQUARE, rows); i++)
                to[c * PIECE_T + i] = from[i * ld + c];
}

/* dw += dyᵀ x is matmul_t of dyᵀ with x in the place of the weights. */
static void piece_dw(float *dw, size_t lddw, const float *dy, size_t lddy,
                     size_t N, const Matrix *x)
{
    float transposed[PIECE_N * PIECE_T];
    transpose(transposed, dy, lddy, x->rows, N);
    matmul_t(dw, lddw, transposed, PIECE_T, N, x);
}

void matmul_dw(float *dw, size_t lddw, const float *dy, size_t lddy,
               const float *x, size_t ldx, size_t T, size_t N, size_t K)
{
    for (size_t t = 0; t < T; t += PIECE_T) {
        Matrix rows = matrix_f32(x + t * ldx, least(PIECE_T, T - t), K, ldx);
        for (size_t n = 0; n < N; n += PIECE_N)
            piece_dw(dw + n * lddw, lddw, dy + t * lddy + n, lddy,
                     least(PIECE_N, N - n), &rows);
    }
}

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
    size_t best = argmax(logits, n);
    double above = (double)logits[best] - (double)logits[target];
    softmax(logits, logits, n);
    double loss = above - log64((double)logits[best]);
    logits[target] -= 1.0f;
    scale(logits, logits, factor, n);
    return loss;
}
