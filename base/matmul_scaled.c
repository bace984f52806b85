/* matmul_scaled.c: the product of two FP8 operands with scales, in the order
 * that docs/numerics.md defines: every output has lanes of its own, so that
 * rows of x may share a decoded block of w. */
#include "tile.h"

enum { GROUP = 16 };   /* rows of x that do */

/* lanes += values[k] x[k], n of them, a multiple of 16. */
static void block_lanes(float p[LANES], const float *values, const float *x,
                        size_t n)
{
    for (size_t k = 0; k < n; k += LANES)
        for (size_t l = 0; l < LANES; l++)
            p[l] = fma32(values[k + l], x[k + l], p[l]);
}

/* a += s · (fresh lanes of one block); values are padded with 0. */
static void add_block(float a[LANES], const float *values, const float *x,
                      size_t n, float s)
{
    float p[LANES] = {0}, last[LANES] = {0};
    size_t whole = n / LANES * LANES;
    block_lanes(p, values, x, whole);
    memcpy(last, x + whole, (n - whole) * sizeof *x);
    if (whole < n)
        block_lanes(p, values + whole, last, LANES);
    for (size_t l = 0; l < LANES; l++)
        a[l] = fma32(p[l], s, a[l]);
}

/* y[t] = the output of row r of w for T <= GROUP rows of x. */
static void dots_scaled(float *y, size_t ldy, const float *x, size_t ldx,
                        const float *x_scale, size_t T, const Matrix *w,
                        size_t r)
{
    ALIGNED float values[F8_BLOCK], a[GROUP][LANES] = {{0}};
    size_t n_blocks = blocks(w->cols);
    for (size_t b = 0; b < n_blocks; b++) {
        size_t k = b * F8_BLOCK, n = least(F8_BLOCK, w->cols - k);
        float s = block_scale(w, r, b);
        matrix_decode(values, LANES, w->dtype, at(w, r, k), n);
        for (size_t t = 0; t < T; t++)
            add_block(a[t], values, x + t * ldx + k, n,
                      x_scale[t * n_blocks + b] * s);
    }
    for (size_t t = 0; t < T; t++)
        y[t * ldy] = tree(a[t]);
}

void matmul_scaled(float *y, size_t ldy, const float *x, size_t ldx,
                   const float *x_scale, size_t T, const Matrix *w)
{
    for (size_t t = 0; t < T; t += GROUP)
        for (size_t n = 0; n < w->rows; n++)
            dots_scaled(y + t * ldy + n, ldy, x + t * ldx, ldx,
                        x_scale + t * blocks(w->cols), least(GROUP, T - t), w,
                        n);
}
