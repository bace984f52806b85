/* matmul_lanes.c: y = x wᵀ for many rows of x with few columns.
 *
 * Where a dot product is short, folding its sixteen lanes costs as much as
 * filling them. Here vectors hold one lane of neighbouring outputs (tiles.c),
 * and the tree is fifteen additions of vectors. For that w is transposed into
 * panels: some of its rows side by side, the columns of lane 0 first, then
 * those of lane 1, … Same bits as matmul_plain. */
#include "tile.h"

enum {
    SHORT = 256,          /* columns at most: a panel lies in the L2 cache */
    MANY = 24,            /* rows of x at least, to be worth a panel */
    BLOCK = 84 * ROWS     /* rows of x that go by all of w together */
};

/* transpose: out[l] = number l of VW rows, `row` bytes apart; out's rows are
 * `step` apart. By vectors, each round puts row i and the row half of them on,
 * element by element, into rows 2i and 2i + 1. */
#if GNU_VECTORS && HAS_BUILTIN(__builtin_shufflevector)
#if VW == 16
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VW == 8
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#endif
static void zip(V out[VW], const V in[VW])
{
    for (size_t i = 0; i < VW / 2; i++) {
        out[2 * i] = __builtin_shufflevector(in[i], in[i + VW / 2], ZIP_LOW);
        out[2 * i + 1] = __builtin_shufflevector(in[i], in[i + VW / 2],
                                                 ZIP_HIGH);
    }
}

static void transpose(float *out, size_t step, const unsigned char *rows,
                      size_t row)
{
    V a[VW], b[VW];
    for (size_t i = 0; i < VW; i++)
        a[i] = v_load(rows + i * row);
    for (size_t n = 1; n < VW; n *= 2) {
        zip(b, a);
        memcpy(a, b, sizeof a);
    }
    for (size_t i = 0; i < VW; i++)
        v_store(out + i * step, a[i]);
}
#else
static void transpose(float *out, size_t step, const unsigned char *rows,
                      size_t row)
{
    for (size_t i = 0; i < VW; i++)
        for (size_t l = 0; l < VW; l++)
            out[l * step + i] = load_f32(rows + i * row, l);
}
#endif

/* VW rows of w from r on, each a column of the panel (16, cols/16, DOT_WIDTH).
 * The last row of w stands in for those beyond it. */
static void fill_columns(float *panel, const Matrix *w, size_t r)
{
    float rows[VW * SHORT];
    size_t n = w->cols, step = n / LANES * DOT_WIDTH;
    const unsigned char *p = at(w, r, 0);
    size_t row = w->stride * sizeof *rows;
    if (w->dtype != DT_F32 || r + VW > w->rows) {
        for (size_t i = 0; i < VW; i++)
            matrix_decode(rows + i * n, LANES, w->dtype,
                          at(w, least(r + i, w->rows - 1), 0), n);
        p = (const unsigned char *)rows;
        row = n * sizeof *rows;
    }
    for (size_t k = 0; k < n; k += VW)
        transpose(panel + k % LANES * step + k / LANES * DOT_WIDTH, step,
                  p + k * sizeof *rows, row);
}

/* y = x wᵀ for T <= BLOCK rows of x. */
static void product(float *y, size_t ldy, const float *x, size_t ldx,
                    size_t T, const Matrix *w)
{
    ALIGNED float panel[SHORT * DOT_WIDTH];
    for (size_t r = 0; r < w->rows; r += DOT_WIDTH) {
        size_t width = least(DOT_WIDTH, w->rows - r);
        Ahead ahead = ahead_of(w, r + DOT_WIDTH, DOT_WIDTH, 0, w->cols);
        for (size_t i = 0; i < width; i += VW)
            fill_columns(panel + i, w, r + i);
        Slab lanes = {(const unsigned char *)panel,
                      DOT_WIDTH * sizeof *panel, w->cols / LANES, &ahead};
        tiles_dot(y + r, ldy, (Factors){x, ldx, LANES}, T, lanes, width);
    }
}

bool matmul_lanes(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                  const Matrix *w)
{
    if (T < MANY || w->scale != NULL || w->cols > SHORT
        || w->cols % LANES != 0 || w->cols == 0)
        return false;
    for (size_t t = 0; t < T; t += BLOCK)
        product(y + t * ldy, ldy, x + t * ldx, ldx, least(BLOCK, T - t), w);
    return true;
}
