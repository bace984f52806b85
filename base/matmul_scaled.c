/* matmul_scaled.c: the product of two FP8 operands with scales, as it is
 * defined (docs/numerics.md). */
#include "tile.h"

/* Block b of one output: fresh lanes over its columns. */
static void block_lanes(float p[LANES], const float *w, const float *x,
                        size_t n)
{
    for (size_t k = 0; k < n; k++)
        p[k % LANES] = fma32(w[k], x[k], p[k % LANES]);
}

static float dot_scaled(const Matrix *w, size_t r, const float *x,
                        const float *x_scale)
{
    ALIGNED float values[F8_BLOCK];
    float a[LANES] = {0};
    for (size_t b = 0; b < blocks(w->cols); b++) {
        float p[LANES] = {0}, padded[F8_BLOCK] = {0};
        size_t n = least(F8_BLOCK, w->cols - b * F8_BLOCK);
        float s = x_scale[b] * block_scale(w, r, b);
        matrix_decode(values, LANES, w->dtype, at(w, r, b * F8_BLOCK), n);
        memcpy(padded, x + b * F8_BLOCK, n * sizeof *x);
        block_lanes(p, values, padded, (n + LANES - 1) / LANES * LANES);
        for (int l = 0; l < LANES; l++)
            a[l] = fma32(p[l], s, a[l]);
    }
    return tree(a);
}

void matmul_scaled(float *y, size_t ldy, const float *x, size_t ldx,
                   const float *x_scale, size_t T, const Matrix *w)
{
    for (size_t t = 0; t < T; t++)
        for (size_t n = 0; n < w->rows; n++)
            y[t * ldy + n] = dot_scaled(w, n, x + t * ldx,
                                        x_scale + t * blocks(w->cols));
}
