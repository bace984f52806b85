/* kernels.c: sums, norms and functions of vectors. The products are in
 * matmul.c. */
#include "kernels.h"

#include "vector.h"

float sum(const float *a, size_t n)
{
    ALIGNED float lanes[LANES] = {0};
    size_t i, whole = n - n % LANES;
    for (i = 0; i < whole; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] = lanes[l] + a[i + (size_t)l];
    for (; whole != n && i < whole + LANES; i++)
        lanes[i - whole] = lanes[i - whole] + (i < n ? a[i] : 0);
    return tree(lanes);
}

void rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
             const Matrix *w, float eps)
{
    size_t n = w->cols;
    for (size_t t = 0; t < T; t++, x += ldx, y += ldy) {
        float r = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
        matrix_row(y, w, 0);
        for (size_t i = 0; i < n; i++)
            y[i] = (x[i] * r) * y[i];
    }
}

/* In lanes only to be vector code: a maximum is exact in any order. */
static float greatest(const float *x, size_t n)
{
    float m[LANES];
    for (int l = 0; l < LANES; l++)
        m[l] = x[0];
    for (size_t i = 0; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            m[l] = x[i + (size_t)l] > m[l] ? x[i + (size_t)l] : m[l];
    for (size_t i = n - n % LANES; i < n; i++)
        m[0] = x[i] > m[0] ? x[i] : m[0];
    for (int l = 1; l < LANES; l++)
        m[0] = m[l] > m[0] ? m[l] : m[0];
    return m[0];
}

void softmax(float *p, const float *s, size_t n)
{
    float m = greatest(s, n);
    for (size_t i = 0; i < n; i++)
        p[i] = exp32(s[i] - m);
    scale(p, p, 1.0f / sum(p, n), n);
}

void sigmoid(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = 1.0f / (1.0f + exp32(-x[i]));
}

void silu_mul(float *h, const float *g, const float *u, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h[i] = (g[i] * (1.0f / (1.0f + exp32(-g[i])))) * u[i];
}

void add(float *y, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

void add_scaled(float *y, float a, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = fma32(a, x[i], y[i]);
}

void scale(float *y, const float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * a;
}
