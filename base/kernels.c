/* kernels.c: the plain loops that define every order of summation, and the
 * vector operations around the matrix products. */
#include "kernels.h"

#include "maths.h"

#include <math.h>

enum { LANES = 16 };

Matrix matrix_rows(const Matrix *m, size_t r, size_t n)
{
    Matrix view = *m;
    view.data = (const unsigned char *)m->data +
                r * m->stride * dtype_size(m->dtype);
    view.rows = n;
    view.row0 = m->row0 + r;
    return view;
}

Matrix matrix_f32(const float *data, size_t rows, size_t cols, size_t stride)
{
    return (Matrix){.data = data, .dtype = DT_F32, .rows = rows,
                    .cols = cols, .stride = stride};
}

static float load_f32(const unsigned char *p)
{
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}

static uint16_t load_u16(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* w[r][k] as stored, without its scale. */
static float element(const Matrix *w, size_t r, size_t k)
{
    const unsigned char *p = w->data;
    p += (r * w->stride + k) * dtype_size(w->dtype);
    switch (w->dtype) {
    case DT_F32: return load_f32(p);
    case DT_F16: return f32_from_f16(load_u16(p));
    case DT_BF16: return f32_from_bf16(load_u16(p));
    default: return f32_from_f8(*p);
    }
}

static size_t blocks(size_t n)
{
    return n / F8_BLOCK + (n % F8_BLOCK != 0);
}

/* The scale of row r in block b of columns. */
static float block_scale(const Matrix *w, size_t r, size_t b)
{
    size_t i = (w->row0 + r) / F8_BLOCK * blocks(w->cols) + b;
    return load_f32((const unsigned char *)w->scale + i * sizeof(float));
}

static float tree(float a[LANES])
{
    for (int s = LANES / 2; s > 0; s /= 2)
        for (int l = 0; l < s; l++)
            a[l] = a[l] + a[l + s];
    return a[0];
}

/* lanes += w[r][k] x[k] for begin <= k < end, padded with 0. */
static void lanes_plain(float a[LANES], const Matrix *w, size_t r,
                        const float *x, size_t begin, size_t end)
{
    for (size_t k = begin; k < end || k % LANES != 0; k++) {
        float wk = k < end ? element(w, r, k) : 0, xk = k < end ? x[k] : 0;
        a[k % LANES] = fma32(wk, xk, a[k % LANES]);
    }
}

static float dot_plain(const Matrix *w, size_t r, const float *x)
{
    float a[LANES] = {0};
    if (w->scale == NULL) {
        lanes_plain(a, w, r, x, 0, w->cols);
        return tree(a);
    }
    for (size_t b = 0; b < blocks(w->cols); b++) {
        float p[LANES] = {0}, s = block_scale(w, r, b);
        size_t k = b * F8_BLOCK, rest = w->cols - k;
        lanes_plain(p, w, r, x, k, k + (rest < F8_BLOCK ? rest : F8_BLOCK));
        for (int l = 0; l < LANES; l++)
            a[l] = fma32(p[l], s, a[l]);
    }
    return tree(a);
}

void matmul_plain(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                  const Matrix *w)
{
    for (size_t t = 0; t < T; t++)
        for (size_t n = 0; n < w->rows; n++)
            y[t * ldy + n] = dot_plain(w, n, x + t * ldx);
}

void matmul_t_plain(float *y, size_t ldy, const float *x, size_t ldx,
                    size_t T, const Matrix *w)
{
    for (size_t n = 0; n < w->rows; n++)
        for (size_t k = 0; k < w->cols; k++) {
            float v = element(w, n, k);
            if (w->scale != NULL)
                v = v * block_scale(w, n, k / F8_BLOCK);
            for (size_t t = 0; t < T; t++)
                y[t * ldy + k] = fma32(x[t * ldx + n], v, y[t * ldy + k]);
        }
}

void matmul(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
            const Matrix *w)
{
    matmul_plain(y, ldy, x, ldx, T, w);
}

void matmul_t(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
              const Matrix *w)
{
    matmul_t_plain(y, ldy, x, ldx, T, w);
}

float dot(const float *a, const float *b, size_t n)
{
    Matrix m = matrix_f32(a, 1, n, n);
    return dot_plain(&m, 0, b);
}

float sum(const float *a, size_t n)
{
    float lanes[LANES] = {0};
    for (size_t i = 0; i < n || i % LANES != 0; i++)
        lanes[i % LANES] += i < n ? a[i] : 0;
    return tree(lanes);
}

void matrix_row(float *y, const Matrix *w, size_t r)
{
    for (size_t k = 0; k < w->cols; k++) {
        y[k] = element(w, r, k);
        if (w->scale != NULL)
            y[k] = y[k] * block_scale(w, r, k / F8_BLOCK);
    }
}

void rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
             const Matrix *w, float eps)
{
    size_t n = w->cols;
    for (size_t t = 0; t < T; t++) {
        const float *row = x + t * ldx;
        float r = 1.0f / sqrtf(dot(row, row, n) / (float)n + eps);
        for (size_t i = 0; i < n; i++)
            y[t * ldy + i] = (row[i] * r) * element(w, 0, i);
    }
}

static float greatest(const float *x, size_t n)
{
    float m = x[0];
    for (size_t i = 1; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
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
