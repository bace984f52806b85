/* kernels.h: vectors and matrices in one fixed order of summation.
 *
 * The order of every dot product (docs/numerics.md): operands padded with +0
 * to a multiple of 16; sixteen lanes start at +0; for j ascending
 * a[j%16] = fmaf(w[j], x[j], a[j%16]); then fold halves, s = 8, 4, 2, 1:
 * a[l] += a[l+s]. Plain sums use the same lanes and tree. Batch, tiles and
 * vector width never enter, so one row alone gives the bits it gives among
 * many. F16, BF16 and F8 weights are first converted to their exact F32
 * value. For F8 with scales: per block of 128 k fresh lanes p, then
 * a[l] = fmaf(p[l], s, a[l]), and one tree at the very end.
 *
 * Knows nothing of transformers. gpu/kernels.cu is its twin. */
#ifndef BASE_KERNELS_H
#define BASE_KERNELS_H

#include "dtype.h"

enum { F8_BLOCK = 128 };

/* A matrix as it is stored: row-major, any alignment, native byte order. */
typedef struct {
    const void *data;    /* row 0; NULL where the model has no such tensor */
    DType dtype;         /* F32, F16, BF16, F8_E4M3 */
    size_t rows, cols;
    size_t stride;       /* elements from one row to the next, >= cols */
    const void *scale;   /* F8: F32 (rows/128 up, cols/128 up), or NULL: 1 */
    size_t row0;         /* the row of the stored tensor that data begins at:
                            it picks the row of the scale grid */
} Matrix;

/* A view of n rows from row r on. */
Matrix matrix_rows(const Matrix *m, size_t r, size_t n);
/* F32 activations as a matrix. */
Matrix matrix_f32(const float *data, size_t rows, size_t cols,
                  size_t stride);
/* The numbers of an F32 matrix that its owner may write. */
float *matrix_numbers(const Matrix *m);

/* y = x wᵀ: y[t][n] = dot(w[n], x[t]); x (T, w->cols), y (T, w->rows).
 * ldx, ldy: elements from one row to the next. */
void matmul(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
            const Matrix *w);
/* The same for an F8 w and an x that has scales too, (T, w->cols/128 up):
 * x's elements are the values of its codes, and the factor of a block of 128 k
 * is s = x_scale·w_scale, one F32 product. */
void matmul_scaled(float *y, size_t ldy, const float *x, size_t ldx,
                   const float *x_scale, size_t T, const Matrix *w);
/* y += x w: for n ascending y[t][k] = fmaf(x[t][n], w[n][k], y[t][k]);
 * x (T, w->rows), y (T, w->cols). An F8 element is value·scale, rounded once
 * to F32. */
void matmul_t(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
              const Matrix *w);
/* The loops above as the definition says them: what tests hold the fast ones
 * to, bit for bit. */
void matmul_plain(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                  const Matrix *w);
void matmul_t_plain(float *y, size_t ldy, const float *x, size_t ldx,
                    size_t T, const Matrix *w);

float dot(const float *a, const float *b, size_t n);
float sum(const float *a, size_t n);
float maximum(const float *x, size_t n);          /* n >= 1 */

/* y = (x·r)·w with r = 1/sqrt(dot(x,x)/n + eps), n = w->cols, for T rows;
 * y is not x. */
void rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
             const Matrix *w, float eps);
/* p = exp(s - max s)·(1/sum): one row of n >= 1; p may be s. */
void softmax(float *p, const float *s, size_t n);
void sigmoid(float *y, const float *x, size_t n);  /* 1/(1 + exp(-x)) */
/* h = (g·sigmoid(g))·u: sigmoid first, then two products. */
void silu_mul(float *h, const float *g, const float *u, size_t n);
void add(float *y, const float *a, const float *b, size_t n);
/* y = fmaf(a, x, y) */
void add_scaled(float *y, float a, const float *x, size_t n);
/* y = x·a */
void scale(float *y, const float *x, float a, size_t n);
/* Row r of w, dequantised, as F32. */
void matrix_row(float *y, const Matrix *w, size_t r);

#endif
