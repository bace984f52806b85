/* matmul.c: y = x wᵀ, to the bits of matmul_plain.
 *
 * Each output keeps its own sixteen lanes and the order in which they take up
 * products; only which outputs are computed side by side differs. Three steps:
 *
 * 1. A panel: a few rows of w are decoded to F32, padded, in the first cache.
 * 2. Tiles: the rows of the panel times up to 3 rows of x, VW of the sixteen
 *    lanes at a time. Between panels the lanes are parked in memory.
 * 3. The tree, for four outputs at once.
 *
 * Many rows of x with few columns go the way of matmul_lanes.c.
 * One row of x alone, or two, need no panel where w can be used as it is
 * stored. The next rows are prefetched meanwhile: rows are too short for the
 * hardware to run ahead by itself. */
#include "tile.h"

#define OF(lanes, r, t) ((lanes) + (t) * TILE + (r) * LANES + s)
#define TAKE(r, t) V c##r##t = v_load(OF(from, r, t));
#define PARK(r, t) v_store(OF(lanes, r, t), c##r##t);
#define ADD(r, t)                                                       \
    v_store(OF(lanes, r, t),                                            \
            v_fma(c##r##t, factor, v_load(OF(from, r, t))));
#define TAKE_ROW(C, r) C(TAKE, r)
#define PARK_ROW(C, r) C(PARK, r)
#define ADD_ROW(C, r) { V factor = v_splat(factors[r]); C(ADD, r) }

#define LOAD_X(r, t) V x##t = v_load(x + (t) * ldx + k + s);
#define STEP_ROW(C, r) \
    { V row = v_load_once(w + k * R + (r) * LANES + s); C(FMA, r) }

/* lanes[t][r] = from[t][r] + w[r]·x[t] over n columns, a multiple of 16, not 0
 * (do: with a for gcc keeps copies of all accumulators). */
#define MULTIPLY(name, C)                                               \
    NOINLINE static void name(float *lanes, const float *from,          \
                              const float *restrict w,                  \
                              const float *restrict x, size_t ldx,      \
                              size_t n)                                 \
    {                                                                   \
        for (size_t s = 0; s < LANES; s += VW) {                        \
            EACH(TAKE_ROW, C)                                           \
            size_t k = 0;                                               \
            do {                                                        \
                C(LOAD_X, 0)                                            \
                EACH(STEP_ROW, C)                                       \
            } while ((k += LANES) < n);                                 \
            EACH(PARK_ROW, C)                                           \
        }                                                               \
    }

/* The same for a block of 128 columns or less that has a factor each row. */
#define MULTIPLY_BLOCK(name, C)                                         \
    NOINLINE static void name(float *lanes, const float *from,          \
                              const float *restrict w,                  \
                              const float *restrict x, size_t ldx,      \
                              size_t n, const float *restrict factors)  \
    {                                                                   \
        for (size_t s = 0; s < LANES; s += VW) {                        \
            EACH(ZERO_ROW, C)                                           \
            size_t k = 0;                                               \
            do {                                                        \
                C(LOAD_X, 0)                                            \
                EACH(STEP_ROW, C)                                       \
            } while ((k += LANES) < n);                                 \
            EACH(ADD_ROW, C)                                            \
        }                                                               \
    }

MULTIPLY(multiply1, COLUMNS1)
MULTIPLY(multiply2, COLUMNS2)
MULTIPLY(multiply3, COLUMNS3)
MULTIPLY_BLOCK(multiply_block1, COLUMNS1)
MULTIPLY_BLOCK(multiply_block2, COLUMNS2)
MULTIPLY_BLOCK(multiply_block3, COLUMNS3)

static void multiply(float *lanes, const float *from, const float *w,
                     const float *x, size_t ldx, size_t T, size_t n)
{
    if (T == 1)
        multiply1(lanes, from, w, x, ldx, n);
    else if (T == 2)
        multiply2(lanes, from, w, x, ldx, n);
    else
        multiply3(lanes, from, w, x, ldx, n);
}

/* The same; factors (n/128, R). */
static void multiply_blocks(float *lanes, const float *from, const float *w,
                            const float *x, size_t ldx, size_t T, size_t n,
                            const float *factors)
{
    for (size_t k = 0; k < n; k += F8_BLOCK, w += F8_BLOCK * R, factors += R) {
        size_t m = least(F8_BLOCK, n - k);
        if (T == 1)
            multiply_block1(lanes, from, w, x + k, ldx, m, factors);
        else if (T == 2)
            multiply_block2(lanes, from, w, x + k, ldx, m, factors);
        else
            multiply_block3(lanes, from, w, x + k, ldx, m, factors);
        from = lanes;
    }
}

/* ---- Several rows of x ---- */

enum {
    DEPTH = 640,     /* columns of a panel: R·640 floats lie in the L1 cache */
    GROUPS = 4       /* panels side by side before x moves on in k: what is
                        left of x in the L2 cache is used so many times */
};

typedef struct {
    float w[DEPTH * R];                  /* (n/16, R, 16) */
    float factors[DEPTH / F8_BLOCK * R]; /* (n/128, R) */
    size_t n;                            /* columns */
    int scaled;
} Panel;

/* n columns from k on of rows r to r + R - 1; the last row of w stands in for
 * those beyond it. k is a multiple of 128. */
static void fill(Panel *panel, const Matrix *w, size_t r, size_t k, size_t n)
{
    panel->n = n;
    panel->scaled = w->scale != NULL;
    for (size_t i = 0; i < R; i++) {
        size_t row = least(r + i, w->rows - 1);
        matrix_decode(panel->w + i * LANES, TILE, w->dtype, at(w, row, k), n);
        for (size_t b = 0; panel->scaled && b < blocks(n); b++)
            panel->factors[b * R + i] = block_scale(w, row, k / F8_BLOCK + b);
    }
}

/* lanes[t] = from[t] + panel·x[t] over n > 0 columns from k on; k is a multiple
 * of 128. */
static void multiply_panel(float *lanes, const float *from,
                           const Panel *panel, size_t k, const float *x,
                           size_t ldx, size_t T, size_t n)
{
    const float *w = panel->w + k * R;
    if (panel->scaled)
        multiply_blocks(lanes, from, w, x, ldx, T, n,
                        panel->factors + k / F8_BLOCK * R);
    else
        multiply(lanes, from, w, x, ldx, T, n);
}

/* lanes[t] = from[t] + panel·x[t] for up to 3 t. Rows of x end with their
 * matrix, so that a last run of less than 16 must be copied to be padded; its
 * whole block of 128 is, for that takes one factor. */
static void tile(float *lanes, const float *from, const Panel *panel,
                 const float *x, size_t ldx, size_t T)
{
    ALIGNED float padded[COLUMNS * F8_BLOCK];
    size_t rest = panel->n % LANES == 0 ? 0 : panel->n % F8_BLOCK;
    size_t n = panel->n - rest;
    if (n > 0) {
        multiply_panel(lanes, from, panel, 0, x, ldx, T, n);
        from = lanes;
    }
    if (rest == 0)
        return;
    memset(padded, 0, sizeof padded);
    for (size_t t = 0; t < T; t++)
        memcpy(padded + t * F8_BLOCK, x + t * ldx + n, rest * sizeof *x);
    multiply_panel(lanes, from, panel, n, padded, F8_BLOCK, T,
                   (rest + LANES - 1) / LANES * LANES);
}

/* The trees of four outputs or, by vectors of eight, two times four. */
enum { TREES = VW == 16 ? 8 : 4 };

#if !GNU_VECTORS || !HAS_BUILTIN(__builtin_shufflevector)
static void trees(float out[TREES], const float *lanes)
{
    for (int i = 0; i < TREES; i++)
        out[i] = tree(lanes + i * LANES);
}
#elif VW == 16
static void trees(float out[TREES], const float *lanes)
{
    V8 q[4], a, b;
    for (int i = 0; i < 4; i++) {
        V8 p[4];
        memcpy(p, lanes + i * LANES, 2 * sizeof *p);
        memcpy(p + 2, lanes + (i + 4) * LANES, 2 * sizeof *p);
        a = p[0] + p[1];
        b = p[2] + p[3];
        q[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
    a = __builtin_shufflevector(q[0], q[1], 0, 1, 8, 9, 4, 5, 12, 13) +
        __builtin_shufflevector(q[0], q[1], 2, 3, 10, 11, 6, 7, 14, 15);
    b = __builtin_shufflevector(q[2], q[3], 0, 1, 8, 9, 4, 5, 12, 13) +
        __builtin_shufflevector(q[2], q[3], 2, 3, 10, 11, 6, 7, 14, 15);
    a = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
        __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
    memcpy(out, &a, sizeof a);
}
#else
static void trees(float out[TREES], const float *lanes)
{
    V4 q[4], a, b;
    for (int i = 0; i < 4; i++) {
        V4 p[4];
        memcpy(p, lanes + i * LANES, sizeof p);
        q[i] = (p[0] + p[2]) + (p[1] + p[3]);
    }
    a = __builtin_shufflevector(q[0], q[1], 0, 1, 4, 5) +
        __builtin_shufflevector(q[0], q[1], 2, 3, 6, 7);
    b = __builtin_shufflevector(q[2], q[3], 0, 1, 4, 5) +
        __builtin_shufflevector(q[2], q[3], 2, 3, 6, 7);
    a = __builtin_shufflevector(a, b, 0, 2, 4, 6) +
        __builtin_shufflevector(a, b, 1, 3, 5, 7);
    memcpy(out, &a, sizeof a);
}
#endif

/* y[i] = the tree of lanes[i], for n <= R outputs; there are lanes for R. */
static void fold(float *y, const float *lanes, size_t n)
{
    float out[R];
    for (size_t i = 0; i < R; i += TREES)
        trees(out + i, lanes + i * LANES);
    if (n == R)
        memcpy(y, out, sizeof out); /* a length that the compiler knows */
    else
        memcpy(y, out, n * sizeof *y);
}

/* Columns of a panel: w's in equal parts, multiples of 128. */
static size_t panel_depth(const Matrix *w)
{
    size_t parts = (w->cols + DEPTH - 1) / DEPTH;
    return parts == 0 ? 1 : blocks((w->cols + parts - 1) / parts) * F8_BLOCK;
}

/* The panel after that of n rows' r and columns' k: the next rows, else the
 * next columns of the same rows, else the rows of the next product. */
static Ahead next_panel(const Matrix *w, size_t r, size_t end, size_t begin,
                        size_t k, size_t depth)
{
    if (r + R >= end && k + depth < w->cols) {
        r = begin;
        k += depth;
    } else {
        k = r + R < end ? k : 0;
        r += R;
    }
    return ahead_of(w, r, R, k, least(depth, w->cols - k));
}

/* Rows begin to end - 1 of w, at most GROUPS·R, by T <= TOKENS rows of x.
 * Lanes are parked from one panel to the next in k; with one panel for all of
 * k, the same few serve every tile. */
static void product(float *y, size_t ldy, const float *x, size_t ldx,
                    size_t T, const Matrix *w, size_t begin, size_t end)
{
    ALIGNED static const float zeros[COLUMNS * TILE];
    ALIGNED float parked[GROUPS * TOKENS * TILE];
    ALIGNED Panel panel;
    size_t depth = panel_depth(w), cols = w->cols;
    size_t step = cols > depth ? TILE : 0;
    for (size_t k = 0; k < cols; k += depth)
        for (size_t r = begin; r < end; r += R) {
            Ahead ahead = next_panel(w, r, end, begin, k, depth);
            size_t lines = R * (ahead.bytes / 64 + 1) / (T / COLUMNS + 1);
            fill(&panel, w, r, k, least(depth, cols - k));
            for (size_t t = 0; t < T; t += COLUMNS) {
                size_t m = least(COLUMNS, T - t);
                float *lanes = parked + ((r - begin) / R * T + t) * step;
                prefetch_some(&ahead, lines + 1);
                tile(lanes, k == 0 ? zeros : lanes, &panel, x + t * ldx + k,
                     ldx, m);
                for (size_t j = 0; k + depth >= cols && j < m; j++)
                    fold(y + (t + j) * ldy + r, lanes + j * TILE,
                         least(R, end - r));
            }
        }
}

/* ---- One or two rows of x, from w as it is stored ---- */

enum {
    SLICES = LANES / VW,  /* vectors for the lanes of a row */
    AT_ONCE = 8 / SLICES, /* rows with eight accumulators */
    FEW = 2               /* rows of x that do without a panel; with F8, which
                             is more to decode, only one */
};

/* Row r or its part: load() its weights, `size` bytes each. */
#define STEP_STORED(r, load, size)                                      \
    {                                                                   \
        size_t i = k + (r) % SLICES * VW;                               \
        const unsigned char *q = p + (r) / SLICES * row + i * (size);   \
        c##r##0 = v_fma(load(q), v_load(x + i), c##r##0);               \
    }
#define STEP_F32(C, r)                                                  \
    PREFETCH(p + (r) / SLICES * row + ahead + k * sizeof(float));       \
    STEP_STORED(r, v_load_f32, sizeof(float))
#define STEP_BF16(C, r)                                                 \
    PREFETCH(p + (r) / SLICES * row + ahead + k * sizeof(uint16_t));    \
    STEP_STORED(r, v_load_bf16, sizeof(uint16_t))
#define STEP_NORMAL_F8(C, r)                                            \
    PREFETCH(p + (r) / SLICES * row + ahead + k);                       \
    STEP_STORED(r, v_load_normal_f8, 1)
#define STEP_ANY_F8(C, r)                                               \
    PREFETCH(p + (r) / SLICES * row + ahead + k);                       \
    STEP_STORED(r, v_load_f8, 1)

#define PART(r) (lanes + (r) * VW)
#define PUT_PART(C, r) v_store(PART(r), c##r##0);
#define ADD_PART(C, r)                                                  \
    v_store(PART(r), v_fma(c##r##0, v_splat(factors[(r) / SLICES]),     \
                           v_load(PART(r))));

/* lanes[r] = w[r]·x over n columns, a multiple of 16, for AT_ONCE rows `row`
 * bytes apart; those to prefetch are `ahead` bytes away. */
#define MULTIPLY_STORED(name, STEP)                                     \
    NOINLINE static void name(float *restrict lanes,                    \
                              const unsigned char *restrict p,          \
                              size_t row, size_t ahead,                 \
                              const float *restrict x, size_t n)        \
    {                                                                   \
        EACH8(ZERO_ROW, COLUMNS1)                                       \
        for (size_t k = 0; k < n; k += LANES) {                         \
            EACH8(STEP, COLUMNS1)                                       \
        }                                                               \
        EACH8(PUT_PART, COLUMNS1)                                       \
    }

MULTIPLY_STORED(multiply_f32, STEP_F32)
MULTIPLY_STORED(multiply_bf16, STEP_BF16)

/* lanes[r] += factors[r] (w[r]·x) over at most 128 columns of F8. */
#define MULTIPLY_F8(name, STEP)                                         \
    NOINLINE static void name(float *restrict lanes,                    \
                              const unsigned char *restrict p,          \
                              size_t row, size_t ahead,                 \
                              const float *restrict x, size_t n,        \
                              const float *restrict factors)            \
    {                                                                   \
        EACH8(ZERO_ROW, COLUMNS1)                                       \
        for (size_t k = 0; k < n; k += LANES) {                         \
            EACH8(STEP, COLUMNS1)                                       \
        }                                                               \
        EACH8(ADD_PART, COLUMNS1)                                       \
    }

MULTIPLY_F8(multiply_normal_f8, STEP_NORMAL_F8)
MULTIPLY_F8(multiply_any_f8, STEP_ANY_F8)

/* lanes += R rows from r on times x; `ahead` rows on, they are prefetched. A
 * last run of less than 16 columns goes by way of a panel. */
static void stored_rows(float *lanes, const float *x, const Matrix *w,
                        size_t r, size_t ahead)
{
    Panel panel;
    size_t row = w->stride * dtype_size(w->dtype), rest = w->cols % LANES;
    size_t n = w->cols - rest;
    for (size_t i = 0; i < R; i += AT_ONCE)
        if (w->dtype == DT_BF16)
            multiply_bf16(lanes + i * LANES, at(w, r + i, 0), row,
                          ahead * row, x, n);
        else
            multiply_f32(lanes + i * LANES, at(w, r + i, 0), row,
                         ahead * row, x, n);
    if (rest == 0)
        return;
    fill(&panel, w, r, n, rest);
    tile(lanes, lanes, &panel, x + n, 0, 1);
}

/* The same for n <= 128 columns of F8 from k on, a multiple of 16. */
static void stored_block_f8(float *lanes, const float *x, const Matrix *w,
                            size_t r, size_t ahead, size_t k, size_t n)
{
    const unsigned char *p = at(w, r, k);
    size_t row = w->stride;
    bool normal = f8_all_normal(p, row, R, n);
    float factors[R];
    for (size_t i = 0; i < R; i++)
        factors[i] = block_scale(w, r + i, k / F8_BLOCK);
    for (size_t i = 0; i < R; i += AT_ONCE)
        (normal ? multiply_normal_f8 : multiply_any_f8)(
            lanes + i * LANES, p + i * row, row, ahead * row, x + k, n,
            factors + i);
}

/* The same for F8: what shares a factor goes one way, so a last block that
 * ends in less than 16 columns is a panel. */
static void stored_rows_f8(float *lanes, const float *x, const Matrix *w,
                           size_t r, size_t ahead)
{
    Panel panel;
    for (size_t k = 0; k < w->cols; k += F8_BLOCK) {
        size_t n = least(F8_BLOCK, w->cols - k);
        if (n % LANES == 0) {
            stored_block_f8(lanes, x, w, r, ahead, k, n);
        } else {
            fill(&panel, w, r, k, n);
            tile(lanes, lanes, &panel, x + k, 0, 1);
        }
    }
}

/* As many rows of w as come in groups of R; returns how many. The next row of x
 * finds a group in the cache. */
static size_t few(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                  const Matrix *w)
{
    ALIGNED float lanes[TILE];
    size_t r = 0;
    for (; r + R <= w->rows; r += R)
        for (size_t t = 0; t < T; t++) {
            size_t ahead = r + 2 * R <= w->rows && t == 0 ? R : 0;
            memset(lanes, 0, sizeof lanes);
            if (w->dtype == DT_F8_E4M3)
                stored_rows_f8(lanes, x + t * ldx, w, r, ahead);
            else
                stored_rows(lanes, x + t * ldx, w, r, ahead);
            fold(y + t * ldy + r, lanes, R);
        }
    return r;
}

void matmul(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
            const Matrix *w)
{
    size_t group = T > 16 ? GROUPS * R : R, begin = 0;
    if (matmul_lanes(y, ldy, x, ldx, T, w))
        return;
    if (T <= (w->dtype == DT_F8_E4M3 ? 1 : FEW) && as_stored(w))
        begin = few(y, ldy, x, ldx, T, w);
    for (size_t t = 0; t < T; t += TOKENS)
        for (size_t r = begin; r < w->rows; r += group)
            product(y + t * ldy, ldy, x + t * ldx, ldx, least(TOKENS, T - t),
                    w, r, least(r + group, w->rows));
}

float dot(const float *a, const float *b, size_t n)
{
    ALIGNED float lanes[LANES];
    float last_a[LANES] = {0}, last_b[LANES] = {0};
    size_t whole = n - n % LANES;
    for (size_t s = 0; s < LANES; s += VW) {
        V v = v_splat(0);
        for (size_t i = 0; i < whole; i += LANES)
            v = v_fma(v_load(a + i + s), v_load(b + i + s), v);
        v_store(lanes + s, v);
    }
    memcpy(last_a, a + whole, (n - whole) * sizeof *a);
    memcpy(last_b, b + whole, (n - whole) * sizeof *b);
    for (int l = 0; whole != n && l < LANES; l++)
        lanes[l] = fma32(last_a[l], last_b[l], lanes[l]);
    return tree(lanes);
}
