/* bf16.c: what an engine that keeps activations in BF16 rounds.
 *
 * tests/mutants.sh compiles the layers with -Dmatmul=bf16_matmul and the like:
 * each of these does what its namesake does and rounds what it gives. Sums
 * stay F32, as in the kernels of engines, and so does the gate, which every
 * engine is asked to compute in F32 (V3 §3.3.1). */
#include "deepseek.h"

static void round_rows(float *y, size_t ldy, size_t T, size_t n)
{
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < n; i++)
            y[t * ldy + i] = f32_from_bf16(bf16_from_f32(y[t * ldy + i]));
}

void bf16_matmul(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                 const Matrix *w);
void bf16_matmul(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                 const Matrix *w)
{
    matmul(y, ldy, x, ldx, T, w);
    round_rows(y, ldy, T, w->rows);
}

void bf16_rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                  const Matrix *w, float eps);
void bf16_rmsnorm(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                  const Matrix *w, float eps)
{
    rmsnorm(y, ldy, x, ldx, T, w, eps);
    round_rows(y, ldy, T, w->cols);
}

void bf16_softmax(float *p, const float *s, size_t n);
void bf16_softmax(float *p, const float *s, size_t n)
{
    softmax(p, s, n);
    round_rows(p, n, 1, n);
}

void bf16_silu_mul(float *h, const float *g, const float *u, size_t n);
void bf16_silu_mul(float *h, const float *g, const float *u, size_t n)
{
    silu_mul(h, g, u, n);
    round_rows(h, n, 1, n);
}

void bf16_add(float *y, const float *a, const float *b, size_t n);
void bf16_add(float *y, const float *a, const float *b, size_t n)
{
    add(y, a, b, n);
    round_rows(y, n, 1, n);
}

void bf16_rope_table(float *cos, float *sin, const Rope *r, size_t T,
                     size_t pos);
void bf16_rope_table(float *cos, float *sin, const Rope *r, size_t T,
                     size_t pos)
{
    rope_table(cos, sin, r, T, pos);
    round_rows(cos, r->pairs, T, r->pairs);
    round_rows(sin, r->pairs, T, r->pairs);
}

void bf16_rope_apply(float *y, size_t ldy, const float *x, size_t ldx,
                     const float *cos, const float *sin, size_t T,
                     size_t pairs);
void bf16_rope_apply(float *y, size_t ldy, const float *x, size_t ldx,
                     const float *cos, const float *sin, size_t T,
                     size_t pairs)
{
    rope_apply(y, ldy, x, ldx, cos, sin, T, pairs);
    round_rows(y, ldy, T, 2 * pairs);
}
