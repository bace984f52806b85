/* matmul_t.c: y += x w, to the bits of matmul_t_plain.
 *
 * A tile is a few rows of x times a few vectors of columns of w, and its loop
 * runs over the rows of w: every element of y takes them up in their order. A
 * span of R vectors goes with 3 rows of x; what is narrower goes in pieces of
 * R/4 vectors with 12. F32 is used where it lies, the rest from a panel. */
#include "tile.h"

enum {
    SPAN = R * VW,           /* columns of a tile; they share a factor */
    PIECE = SPAN / 4,        /* columns of a narrow one */
    PIECE_COLUMNS = 12,      /* and its rows of x */
    T_DEPTH = 32             /* rows of w in a panel */
};

#define COLUMNS12(OP, r) COLUMNS3(OP, r) OP(r, 3) OP(r, 4) OP(r, 5) OP(r, 6) \
    OP(r, 7) OP(r, 8) OP(r, 9) OP(r, 10) OP(r, 11)
#if MANY_VECTORS
#define EACH_OF_PIECE(DO, C) DO(C, 0) DO(C, 1)
#else
#define EACH_OF_PIECE(DO, C) DO(C, 0)
#endif

#define Y_OF(r, t) (y + (t) * ldy + (r) * VW)
#define TAKE_Y(r, t) V c##r##t = v_load(Y_OF(r, t));
#define PUT_Y(r, t) v_store(Y_OF(r, t), c##r##t);
#define TAKE_Y_ROW(C, r) C(TAKE_Y, r)
#define PUT_Y_ROW(C, r) C(PUT_Y, r)
#define SPLAT_X(r, t) V x##t = v_splat(x[(t) * ldx + i]);
#define STEP_SPAN(C, r) \
    { V row = v_load_once(w + (r) * VW * sizeof *y); C(FMA, r) }

/* y[t] += Σ x[t][i] w[i] for n > 0 rows of F32, `row` bytes apart. */
#define ACCUMULATE(name, EACH_OF, C)                                    \
    NOINLINE static void name(float *restrict y, size_t ldy,            \
                              const float *restrict x, size_t ldx,      \
                              const unsigned char *restrict w,          \
                              size_t row_bytes, size_t n)               \
    {                                                                   \
        EACH_OF(TAKE_Y_ROW, C)                                          \
        size_t i = 0;                                                   \
        do {                                                            \
            C(SPLAT_X, 0)                                               \
            EACH_OF(STEP_SPAN, C)                                       \
        } while (w += row_bytes, ++i < n);                              \
        EACH_OF(PUT_Y_ROW, C)                                           \
    }

ACCUMULATE(accumulate1, EACH, COLUMNS1)
ACCUMULATE(accumulate2, EACH, COLUMNS2)
ACCUMULATE(accumulate3, EACH, COLUMNS3)
ACCUMULATE(piece1, EACH_OF_PIECE, COLUMNS1)
ACCUMULATE(piece3, EACH_OF_PIECE, COLUMNS3)
ACCUMULATE(piece12, EACH_OF_PIECE, COLUMNS12)

/* Rows of w as floats: in the matrix itself or in a panel. */
typedef struct {
    const unsigned char *p;
    size_t row_bytes, n;
} Rows;

static void accumulate(float *y, size_t ldy, const float *x, size_t ldx,
                       size_t T, const Rows *w)
{
    if (T == 1)
        accumulate1(y, ldy, x, ldx, w->p, w->row_bytes, w->n);
    else if (T == 2)
        accumulate2(y, ldy, x, ldx, w->p, w->row_bytes, w->n);
    else
        accumulate3(y, ldy, x, ldx, w->p, w->row_bytes, w->n);
}

static void accumulate_piece(float *y, size_t ldy, const float *x, size_t ldx,
                             size_t T, const Rows *w)
{
    size_t t = 0;
    for (; t + PIECE_COLUMNS <= T; t += PIECE_COLUMNS)
        piece12(y + t * ldy, ldy, x + t * ldx, ldx, w->p, w->row_bytes, w->n);
    for (; t + COLUMNS <= T; t += COLUMNS)
        piece3(y + t * ldy, ldy, x + t * ldx, ldx, w->p, w->row_bytes, w->n);
    for (; t < T; t++)
        piece1(y + t * ldy, ldy, x + t * ldx, ldx, w->p, w->row_bytes, w->n);
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

/* The same where less than PIECE columns are left in y: w is a panel, which
 * has them all. */
static void accumulate_edge(float *y, size_t ldy, const float *x, size_t ldx,
                            size_t T, const Rows *w, size_t width)
{
    ALIGNED float edge[PIECE_COLUMNS * PIECE] = {0};
    for (size_t t = 0; t < T; t += PIECE_COLUMNS) {
        size_t m = least(PIECE_COLUMNS, T - t);
        for (size_t i = 0; i < m; i++)
            memcpy(edge + i * PIECE, y + (t + i) * ldy, width * sizeof *y);
        accumulate_piece(edge, PIECE, x + t * ldx, ldx, m, w);
        for (size_t i = 0; i < m; i++)
            memcpy(y + (t + i) * ldy, edge + i * PIECE, width * sizeof *y);
    }
}

/* `width` < SPAN columns. */
static void accumulate_narrow(float *y, size_t ldy, const float *x,
                              size_t ldx, size_t T, Rows w, size_t width)
{
    size_t k = 0;
    for (; k + PIECE <= width; k += PIECE, w.p += PIECE * sizeof *y)
        accumulate_piece(y + k, ldy, x, ldx, T, &w);
    if (k < width)
        accumulate_edge(y + k, ldy, x, ldx, T, &w, width - k);
}

static Ahead next_span(const Matrix *w, size_t r, size_t n, size_t k)
{
    if (k + SPAN < w->cols)
        return ahead_of(w, r, n, k + SPAN, least(SPAN, w->cols - k - SPAN));
    return ahead_of(w, r + n, T_DEPTH, 0, least(SPAN, w->cols));
}

/* n rows of w from r on, `width` columns from k on; the panel is filled where
 * w is not F32, or its last columns are less than a piece, or its rows lie so
 * that they would drive each other out of the first cache. */
static Rows rows_of(float *panel, const Matrix *w, size_t r, size_t n,
                    size_t k, size_t width)
{
    size_t row_bytes = w->stride * sizeof *panel;
    if (w->dtype == DT_F32 && width % PIECE == 0 && row_bytes % 2048 != 0)
        return (Rows){at(w, r, k), row_bytes, n};
    fill_span(panel, w, r, n, k, width);
    return (Rows){(const unsigned char *)panel, SPAN * sizeof *panel, n};
}

/* T <= TOKENS rows of x; n <= T_DEPTH rows of w from r on. */
static void product_t(float *y, size_t ldy, const float *x, size_t ldx,
                      size_t T, const Matrix *w, size_t r, size_t n,
                      float *panel)
{
    for (size_t k = 0; k < w->cols; k += SPAN) {
        size_t width = least(SPAN, w->cols - k);
        Ahead ahead = next_span(w, r, n, k);
        size_t lines = n * (ahead.bytes / 64 + 1) / (T / COLUMNS + 1);
        if (T == 1 && width == SPAN &&
            accumulate_stored(y + k, x + r, w, r, n, k))
            continue;
        Rows rows = rows_of(panel, w, r, n, k, width);
        if (width < SPAN) {
            accumulate_narrow(y + k, ldy, x + r, ldx, T, rows, width);
            continue;
        }
        for (size_t t = 0; t < T; t += COLUMNS) {
            prefetch_some(&ahead, lines + 1);
            accumulate(y + t * ldy + k, ldy, x + t * ldx + r, ldx,
                       least(COLUMNS, T - t), &rows);
        }
    }
}

/* The panel is 0 at first: columns that nothing fills are computed with. */
void matmul_t(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
              const Matrix *w)
{
    ALIGNED float panel[T_DEPTH * SPAN] = {0};
    /* Few rows for one x: all of them must be normal codes to need no panel. */
    size_t depth = T == 1 ? R : T_DEPTH;
    for (size_t t = 0; t < T; t += TOKENS)
        for (size_t r = 0; r < w->rows; r += depth)
            product_t(y + t * ldy, ldy, x + t * ldx, ldx,
                      least(TOKENS, T - t), w, r, least(depth, w->rows - r),
                      panel);
}
