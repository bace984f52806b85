/* matmul_t.c: y += x w, to the bits of matmul_t_plain, and dw += dyᵀ x.
 *
 * Both are sums over the rows of a matrix, taken up in their order: those of w
 * times numbers of x, those of x times numbers of dy. Some of them are copied,
 * a few columns at a time, to a panel in the first cache; tiles of y go over it
 * (tiles.c). One row of x alone takes w as it is stored. */
#include "tile.h"

#include "backward.h"

enum {
    SPAN = R * VW,           /* columns for one row of x; they share a factor */
    DEPTH = 128,             /* rows of w in a panel */
    FEW = 72,                /* rows of y at most, to use F32 where it lies */
    BLOCK = 84 * ROWS        /* rows of y that go by all of w together */
};

/* Rows r to r + n - 1, `width` <= ADD_WIDTH columns from k on, with their
 * scale, padded to a run of 16. */
static void fill_panel(float *panel, const Matrix *w, size_t r, size_t n,
                       size_t k, size_t width)
{
    const unsigned char *p = at(w, r, k);
    size_t row = w->stride * dtype_size(w->dtype);
    for (size_t i = 0; i < n; i++, p += row, panel += ADD_WIDTH) {
        if (w->dtype == DT_F32 && width == ADD_WIDTH)
            memcpy(panel, p, ADD_WIDTH * sizeof *panel);
        else
            matrix_decode(panel, LANES, w->dtype, p, width);
        if (w->scale != NULL)
            scale(panel, panel, block_scale(w, r + i, k / F8_BLOCK), width);
    }
}

/* One row of x and whole spans of w as it is stored: q points to the span in
 * row i. */
#define TAKE_Y(C, r) V c##r##0 = v_load(y + (r) * VW);
#define PUT_Y(C, r) v_store(y + (r) * VW, c##r##0);
#define STEP_T_F32(C, r) \
    c##r##0 = v_fma(x0, v_load_f32(q + (r) * VW * 4), c##r##0);
#define STEP_T_BF16(C, r) \
    c##r##0 = v_fma(x0, v_load_bf16(q + (r) * VW * 2), c##r##0);
#define STEP_T_F8(C, r) \
    c##r##0 = v_fma(x0, v_mul(v_load_normal_f8(q + (r) * VW), \
                              v_splat(factors[i])), c##r##0);
#define ADD_STORED(name, STEP, size)                                    \
    NOINLINE static void name(float *restrict y,                        \
                              const float *restrict x,                  \
                              const unsigned char *restrict q,          \
                              size_t row, size_t ahead, size_t n,       \
                              const float *restrict factors)            \
    {                                                                   \
        size_t i = 0;                                                   \
        (void)factors;                                                  \
        EACH(TAKE_Y, 0)                                                 \
        do {                                                            \
            V x0 = v_splat(x[i]);                                       \
            prefetch(q + ahead, SPAN * (size));                         \
            EACH(STEP, 0)                                               \
        } while (q += row, ++i < n);                                    \
        EACH(PUT_Y, 0)                                                  \
    }

ADD_STORED(add_f32, STEP_T_F32, sizeof(float))
ADD_STORED(add_bf16, STEP_T_BF16, sizeof(uint16_t))
ADD_STORED(add_f8, STEP_T_F8, 1)

/* y += x w for n <= R rows from r on and the span at k; false if w must
 * be decoded into a panel first. */
static bool add_stored(float *y, const float *x, const Matrix *w,
                              size_t r, size_t n, size_t k)
{
    float factors[R] = {0};
    const unsigned char *p = at(w, r, k);
    size_t row = w->stride * dtype_size(w->dtype);
    size_t ahead = r + n + R <= w->rows ? R * row : 0;
    if (!as_stored(w))
        return false;
    for (size_t i = 0; w->scale != NULL && i < n; i++)
        factors[i] = block_scale(w, r + i, k / F8_BLOCK);
    if (w->dtype == DT_F32)
        add_f32(y, x, p, row, ahead, n, factors);
    else if (w->dtype == DT_BF16)
        add_bf16(y, x, p, row, ahead, n, factors);
    else if (f8_all_normal(p, row, n, SPAN))
        add_f8(y, x, p, row, ahead, n, factors);
    else
        return false;
    return true;
}

/* y += x w for rows r to r + n - 1 of w, n <= DEPTH, and columns begin to
 * end - 1; x begins at r. */
static void add_rows(float *y, size_t ldy, Factors x, size_t T,
                     const Matrix *w, size_t r, size_t n, size_t begin,
                     size_t end)
{
    ALIGNED float panel[DEPTH * ADD_WIDTH + LANES];
    for (size_t k = begin; k < end; k += ADD_WIDTH) {
        size_t width = least(ADD_WIDTH, end - k), next = k + width;
        Ahead ahead = next < w->cols
            ? ahead_of(w, r, n, next, least(ADD_WIDTH, w->cols - next))
            : ahead_of(w, r + n, DEPTH, 0, least(ADD_WIDTH, w->cols));
        Slab rows = {at(w, r, k), w->stride * sizeof *panel, n, &ahead};
        if (T > FEW || w->dtype != DT_F32 || width % VW != 0) {
            fill_panel(panel, w, r, n, k, width);
            rows.p = (const unsigned char *)panel;
            rows.row = ADD_WIDTH * sizeof *panel;
        }
        tiles_add(y + k, ldy, x, T, rows, width);
    }
}

/* As stored, R rows at a time: all must be normal codes for it. */
static void add_one(float *y, const float *x, const Matrix *w)
{
    for (size_t r = 0; r < w->rows; r += R)
        for (size_t k = 0; k < w->cols; k += SPAN) {
            size_t n = least(R, w->rows - r), end = least(k + SPAN, w->cols);
            if (end < k + SPAN || !add_stored(y + k, x + r, w, r, n, k))
                add_rows(y, 0, (Factors){x + r, 0, 1}, 1, w, r, n, k, end);
        }
}

static void add_many(float *y, size_t ldy, Factors x, size_t T,
                     const Matrix *w)
{
    for (size_t t = 0; t < T; t += BLOCK)
        for (size_t r = 0; r < w->rows; r += DEPTH) {
            Factors part = {x.p + t * x.row + r * x.step, x.row, x.step};
            add_rows(y + t * ldy, ldy, part, least(BLOCK, T - t), w, r,
                     least(DEPTH, w->rows - r), 0, w->cols);
        }
}

void matmul_t(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
              const Matrix *w)
{
    if (T == 1)
        add_one(y, x, w);
    else
        add_many(y, ldy, (Factors){x, ldx, 1}, T, w);
}

void matmul_dw(float *dw, size_t lddw, const float *dy, size_t lddy,
               const float *x, size_t ldx, size_t T, size_t N, size_t K)
{
    Matrix rows = matrix_f32(x, T, K, ldx);
    add_many(dw, lddw, (Factors){dy, 1, lddy}, N, &rows);
}
