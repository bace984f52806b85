/* kernels.c: sums, norms and functions of vectors. The products are in
 * matrix.c (plain), matmul.c and matmul_t.c (fast). */
#include "kernels.h"

#include "vector.h"

float sum(const float *a, size_t n)
{
    ALIGNED float lanes[LANES], last[LANES] = {0};
    size_t whole = n - n % LANES;
    for (size_t s = 0; s < LANES; s += VW) {
        V v = v_splat(0);
        for (size_t i = 0; i < whole; i += LANES)
            v = v_add(v, v_load(a + i + s));
        v_store(lanes + s, v);
    }
    memcpy(last, a + whole, (n - whole) * sizeof *a);
    for (int l = 0; whole != n && l < LANES; l++)
        lanes[l] = lanes[l] + last[l];
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

/* A maximum is exact in any order. (Inlined, it keeps clang from making vector
 * code of the loop after it.) */
NOINLINE float maximum(const float *x, size_t n)
{
    float m[VW];
    V v = v_splat(x[0]);
    for (size_t i = 0; i + VW <= n; i += VW)
        v = v_max(v_load(x + i), v);
    v_store(m, v);
    for (size_t i = n - n % VW; i < n; i++)
        m[0] = x[i] > m[0] ? x[i] : m[0];
    for (int i = 1; i < VW; i++)
        m[0] = m[i] > m[0] ? m[i] : m[0];
    return m[0];
}

void softmax(float *p, const float *s, size_t n)
{
    float m = maximum(s, n);
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

/* By vectors, not left to the compiler: for y may be an operand, which it
 * would take for an overlap. */
void add(float *y, const float *a, const float *b, size_t n)
{
    size_t i = 0;
    for (; i + VW <= n; i += VW)
        v_store(y + i, v_add(v_load(a + i), v_load(b + i)));
    for (; i < n; i++)
        y[i] = a[i] + b[i];
}

void add_scaled(float *y, float a, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + VW <= n; i += VW)
        v_store(y + i, v_fma(v_splat(a), v_load(x + i), v_load(y + i)));
    for (; i < n; i++)
        y[i] = fma32(a, x[i], y[i]);
}

void scale(float *y, const float *x, float a, size_t n)
{
    size_t i = 0;
    for (; i + VW <= n; i += VW)
        v_store(y + i, v_mul(v_load(x + i), v_splat(a)));
    for (; i < n; i++)
        y[i] = x[i] * a;
}
