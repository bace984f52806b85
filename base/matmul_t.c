/* matmul_t.c: y += x w, to the bits of matmul_t_plain.
 *
 * A tile is up to 3 rows of x times R vectors of columns of w, and its loop
 * runs over the rows of w: every element of y takes them up in their order. */
#include "tile.h"

enum {
    SPAN = R * VW,   /* columns of a tile; they share a factor */
    T_DEPTH = 32     /* rows of w in a panel */
};

#define Y_OF(r, t) (y + (t) * ldy + (r) * VW)
#define TAKE_Y(r, t) V c##r##t = v_load(Y_OF(r, t));
#define PUT_Y(r, t) v_store(Y_OF(r, t), c##r##t);
#define TAKE_Y_ROW(C, r) C(TAKE_Y, r)
#define PUT_Y_ROW(C, r) C(PUT_Y, r)
#define SPLAT_X(r, t) V x##t = v_splat(x[(t) * ldx + i]);
#define STEP_SPAN(C, r) \
    { V row = v_load_once(w + i * SPAN + (r) * VW); C(FMA, r) }

/* y[t] += Σ x[t][i] w[i] for the n > 0 rows of a panel (n, SPAN). */
#define ACCUMULATE(name, C)                                             \
    NOINLINE static void name(float *restrict y, size_t ldy,            \
                              const float *restrict x, size_t ldx,      \
                              const float *restrict w, size_t n)        \
    {                                                                   \
        EACH(TAKE_Y_ROW, C)                                             \
        size_t i = 0;                                                   \
        do {                                                            \
            C(SPLAT_X, 0)                                               \
            EACH(STEP_SPAN, C)                                          \
        } while (++i < n);                                              \
        EACH(PUT_Y_ROW, C)                                              \
    }

ACCUMULATE(accumulate1, COLUMNS1)
ACCUMULATE(accumulate2, COLUMNS2)
ACCUMULATE(accumulate3, COLUMNS3)

static void accumulate(float *y, size_t ldy, const float *x, size_t ldx,
                       size_t T, const float *w, size_t n)
{
    if (T == 1)
        accumulate1(y, ldy, x, ldx, w, n);
    else if (T == 2)
        accumulate2(y, ldy, x, ldx, w, n);
    else
        accumulate3(y, ldy, x, ldx, w, n);
}

/* Rows r to r + n - 1, `width` <= SPAN columns from k on, with their scale. */
static void fill_span(float *panel, const Matrix *w, size_t r, size_t n,
                      size_t k, size_t width)
{
    const unsigned char *p = at(w, r, k);
    size_t row = w->stride * dtype_size(w->dtype);
    for (size_t i = 0; i < n; i++, p += row, panel += SPAN) {
        matrix_decode(panel, LANES, w->dtype, p, width);
        if (w->scale != NULL)
            scale(panel, panel, block_scale(w, r + i, k / F8_BLOCK), width);
    }
}

/* The same for one row of x and whole spans, from w as it is stored: q points
 * to the span in row i. */
#define STEP_T_F32(C, r) \
    c##r##0 = v_fma(x0, v_load_f32(q + (r) * VW * 4), c##r##0);
#define STEP_T_BF16(C, r) \
    c##r##0 = v_fma(x0, v_load_bf16(q + (r) * VW * 2), c##r##0);
#define STEP_T_F8(C, r) \
    c##r##0 = v_fma(x0, v_mul(v_load_normal_f8(q + (r) * VW), \
                              v_splat(factors[i])), c##r##0);
#define ACCUMULATE_STORED(name, STEP, size)                             \
    NOINLINE static void name(float *restrict y, size_t ldy,            \
                              const float *restrict x,                  \
                              const unsigned char *restrict q,          \
                              size_t row, size_t ahead, size_t n,       \
                              const float *restrict factors)            \
    {                                                                   \
        size_t i = 0;                                                   \
        (void)factors;                                                  \
        EACH(TAKE_Y_ROW, COLUMNS1)                                      \
        do {                                                            \
            V x0 = v_splat(x[i]);                                       \
            prefetch(q + ahead, SPAN * (size));                         \
            EACH(STEP, COLUMNS1)                                        \
        } while (q += row, ++i < n);                                    \
        EACH(PUT_Y_ROW, COLUMNS1)                                       \
    }

ACCUMULATE_STORED(accumulate_f32, STEP_T_F32, sizeof(float))
ACCUMULATE_STORED(accumulate_bf16, STEP_T_BF16, sizeof(uint16_t))
ACCUMULATE_STORED(accumulate_f8, STEP_T_F8, 1)

/* y += x w for n <= T_DEPTH rows from r on and the span at k; false if w must
 * be decoded into a panel first. */
static bool accumulate_stored(float *y, const float *x, const Matrix *w,
                              size_t r, size_t n, size_t k)
{
    float factors[T_DEPTH] = {0};
    const unsigned char *p = at(w, r, k);
    size_t row = w->stride * dtype_size(w->dtype);
    size_t ahead = r + n + T_DEPTH <= w->rows ? T_DEPTH * row : 0;
    if (!as_stored(w))
        return false;
    for (size_t i = 0; w->scale != NULL && i < n; i++)
        factors[i] = block_scale(w, r + i, k / F8_BLOCK);
    if (w->dtype == DT_F32)
        accumulate_f32(y, 0, x, p, row, ahead, n, factors);
    else if (w->dtype == DT_BF16)
        accumulate_bf16(y, 0, x, p, row, ahead, n, factors);
    else if (f8_all_normal(p, row, n, SPAN))
        accumulate_f8(y, 0, x, p, row, ahead, n, factors);
    else
        return false;
    return true;
}

/* accumulate where less than SPAN columns are left in y. */
static void accumulate_edge(float *y, size_t ldy, const float *x, size_t ldx,
                            size_t T, const float *w, size_t n, size_t width)
{
    ALIGNED float edge[COLUMNS * SPAN] = {0};
    for (size_t t = 0; t < T; t++)
        memcpy(edge + t * SPAN, y + t * ldy, width * sizeof *y);
    accumulate(edge, SPAN, x, ldx, T, w, n);
    for (size_t t = 0; t < T; t++)
        memcpy(y + t * ldy, edge + t * SPAN, width * sizeof *y);
}

static Ahead next_span(const Matrix *w, size_t r, size_t n, size_t k)
{
    if (k + SPAN < w->cols)
        return ahead_of(w, r, n, k + SPAN, least(SPAN, w->cols - k - SPAN));
    return ahead_of(w, r + n, T_DEPTH, 0, least(SPAN, w->cols));
}

/* T <= TOKENS rows of x; n <= T_DEPTH rows of w from r on. */
static void product_t(float *y, size_t ldy, const float *x, size_t ldx,
                      size_t T, const Matrix *w, size_t r, size_t n)
{
    ALIGNED float panel[T_DEPTH * SPAN] = {0};
    for (size_t k = 0; k < w->cols; k += SPAN) {
        size_t width = least(SPAN, w->cols - k);
        Ahead ahead = next_span(w, r, n, k);
        size_t lines = n * (ahead.bytes / 64 + 1) / (T / COLUMNS + 1);
        if (T == 1 && width == SPAN &&
            accumulate_stored(y + k, x + r, w, r, n, k))
            continue;
        fill_span(panel, w, r, n, k, width);
        for (size_t t = 0; t < T; t += COLUMNS) {
            size_t m = least(COLUMNS, T - t);
            float *out = y + t * ldy + k;
            const float *in = x + t * ldx + r;
            prefetch_some(&ahead, lines + 1);
            if (width == SPAN)
                accumulate(out, ldy, in, ldx, m, panel, n);
            else
                accumulate_edge(out, ldy, in, ldx, m, panel, n, width);
        }
    }
}

void matmul_t(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
              const Matrix *w)
{
    /* Few rows for one x: all of them must be normal codes to need no panel. */
    size_t depth = T == 1 ? R : T_DEPTH;
    for (size_t t = 0; t < T; t += TOKENS)
        for (size_t r = 0; r < w->rows; r += depth)
            product_t(y + t * ldy, ldy, x + t * ldx, ldx,
                      least(TOKENS, T - t), w, r, least(depth, w->rows - r));
}
