/* matmul.c: the products of kernels.h, plain and fast.
 *
 * The plain loops come first: they are the definition. The fast ones give the
 * same bits, because each output keeps its own sixteen lanes and the order in
 * which they take up products; only which outputs are computed side by side
 * differs. They work in three steps:
 *
 * 1. A panel: a few rows of w are decoded to F32, padded, in the cache.
 * 2. A tile: R rows of the panel times up to 3 rows of x. Its accumulators
 *    are named variables, so that they stay in registers, and cover VW of the
 *    sixteen lanes at a time; between panels lanes are parked in memory.
 * 3. The tree, for four outputs at once.
 *
 * One row of x alone needs no panel where w can be used as it is stored. The
 * next rows are prefetched meanwhile: rows are too short for the hardware to
 * run ahead by itself. tests/test_kernels.c compares both forms bit by bit. */
#include "kernels.h"

#include "vector.h"

/* ---- Matrices and their elements ---- */

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

static float load_f32(const unsigned char *p, size_t i)
{
    float f;
    memcpy(&f, p + i * sizeof f, sizeof f);
    return f;
}

static uint16_t load_u16(const unsigned char *p, size_t i)
{
    uint16_t h;
    memcpy(&h, p + i * sizeof h, sizeof h);
    return h;
}

static float load_f16(const unsigned char *p, size_t i)
{
    return f32_from_f16(load_u16(p, i));
}

static float load_bf16(const unsigned char *p, size_t i)
{
    return f32_from_bf16(load_u16(p, i));
}

static float load_f8(const unsigned char *p, size_t i)
{
    return f32_from_f8(p[i]);
}

/* Where w[r][k] is stored. */
static const unsigned char *at(const Matrix *w, size_t r, size_t k)
{
    return (const unsigned char *)w->data +
           (r * w->stride + k) * dtype_size(w->dtype);
}

/* w[r][k] without its scale. */
static float element(const Matrix *w, size_t r, size_t k)
{
    const unsigned char *p = at(w, r, k);
    switch (w->dtype) {
    case DT_F32: return load_f32(p, 0);
    case DT_F16: return load_f16(p, 0);
    case DT_BF16: return load_bf16(p, 0);
    default: return load_f8(p, 0);
    }
}

static size_t blocks(size_t n)
{
    return n / F8_BLOCK + (n % F8_BLOCK != 0);
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The scale of row r in block b of columns. */
static float block_scale(const Matrix *w, size_t r, size_t b)
{
    return load_f32(w->scale,
                    (w->row0 + r) / F8_BLOCK * blocks(w->cols) + b);
}

/* ---- The definition ---- */

/* lanes += w[r][k] x[k] for begin <= k < end, padded with 0; begin is a
 * multiple of 16. */
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
    if (w->scale == NULL)
        lanes_plain(a, w, r, x, 0, w->cols);
    for (size_t b = 0; w->scale != NULL && b < blocks(w->cols); b++) {
        float p[LANES] = {0}, s = block_scale(w, r, b);
        size_t k = b * F8_BLOCK;
        lanes_plain(p, w, r, x, k, least(k + F8_BLOCK, w->cols));
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
    for (size_t t = 0; t < T; t++)
        for (size_t n = 0; n < w->rows; n++)
            for (size_t k = 0; k < w->cols; k++) {
                float v = element(w, n, k), *out = y + t * ldy + k;
                if (w->scale != NULL)
                    v = v * block_scale(w, n, k / F8_BLOCK);
                *out = fma32(x[t * ldx + n], v, *out);
            }
}

/* ---- Decoding runs of a row ---- */

/* VW elements. */
#define LOADER(name, load)                                              \
    INLINE V name(const unsigned char *p)                               \
    {                                                                   \
        V v = {0};                                                      \
        for (size_t i = 0; i < VW; i++)                                 \
            AT(v, i) = load(p, i);                                      \
        return v;                                                       \
    }

/* Right for all F8 codes but subnormal numbers, 0 and NaN. */
static float load_normal_f8(const unsigned char *p, size_t i)
{
    uint32_t u = (uint32_t)(int32_t)(int8_t)p[i] << 20;
    return f32_from_bits((u & 0x87f00000) + ((uint32_t)120 << 23));
}

LOADER(v_load_f32, load_f32)
LOADER(v_load_bf16, load_bf16)
LOADER(v_load_normal_f8, load_normal_f8)

/* n elements, a multiple of 16, to runs of 16 floats `step` floats apart. */
#define DECODER(name, load, size)                                       \
    static void name(float *restrict out, size_t step,                  \
                     const unsigned char *restrict p, size_t n)         \
    {                                                                   \
        for (size_t i = 0; i < n; i += LANES, out += step)              \
            for (size_t s = 0; s < LANES; s += VW)                      \
                v_store(out + s, load(p + (i + s) * (size)));           \
    }
/* The same where compilers make better code of a plain loop. */
#define PLAIN_DECODER(name, load)                                       \
    static void name(float *restrict out, size_t step,                  \
                     const unsigned char *restrict p, size_t n)         \
    {                                                                   \
        for (size_t i = 0; i < n; i += LANES, out += step)              \
            for (size_t l = 0; l < LANES; l++)                          \
                out[l] = load(p, i + l);                                \
    }

DECODER(decode_f32, v_load_f32, sizeof(float))
DECODER(decode_bf16, v_load_bf16, sizeof(uint16_t))
DECODER(decode_normal_f8, v_load_normal_f8, 1)
PLAIN_DECODER(decode_f16, load_f16)
PLAIN_DECODER(decode_any_f8, load_f8)

/* True if the n codes of each of some rows are all normal. Adding 0x78 to the
 * low seven bits of one carries into the eighth from 8 on, where the exponent
 * field is not 0; adding 1 only from 0x7f, which is NaN. */
static int all_normal_f8(const unsigned char *p, size_t row, size_t rows,
                         size_t n)
{
    const uint64_t each = 0x0101010101010101, top = 0x80 * each;
    VBits normal, codes;
    uint64_t parts[sizeof normal / sizeof(uint64_t)], all = top;
    memset(&normal, 0xff, sizeof normal);
    if (n % sizeof codes != 0)
        return 0;
    for (; rows > 0; rows--, p += row)
        for (size_t i = 0; i < n; i += sizeof codes) {
            memcpy(&codes, p + i, sizeof codes);
            codes &= 0x7f * each;
            normal &= (codes + 0x78 * each) & ~(codes + each);
        }
    memcpy(parts, &normal, sizeof parts);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        all &= parts[i];
    return all == top;
}

static void decode_f8(float *restrict out, size_t step,
                      const unsigned char *restrict p, size_t n)
{
    for (size_t i = 0; i < n; i += F8_BLOCK, out += F8_BLOCK / LANES * step) {
        size_t m = least(F8_BLOCK, n - i);
        if (all_normal_f8(p + i, 0, 1, m))
            decode_normal_f8(out, step, p + i, m);
        else
            decode_any_f8(out, step, p + i, m);
    }
}

static void decode_whole(float *out, size_t step, DType type,
                         const unsigned char *p, size_t n)
{
    switch (type) {
    case DT_F32: decode_f32(out, step, p, n); break;
    case DT_F16: decode_f16(out, step, p, n); break;
    case DT_BF16: decode_bf16(out, step, p, n); break;
    default: decode_f8(out, step, p, n);
    }
}

/* Any n: the last run is padded with +0, which zero bytes are in any type. */
static void decode(float *out, size_t step, DType type,
                   const unsigned char *p, size_t n)
{
    unsigned char last[LANES * sizeof(float)] = {0};
    size_t rest = n % LANES, whole = n - rest, size = dtype_size(type);
    decode_whole(out, step, type, p, whole);
    if (rest == 0)
        return;
    memcpy(last, p + whole * size, rest * size);
    decode_whole(out + whole / LANES * step, step, type, last, LANES);
}

void matrix_row(float *y, const Matrix *w, size_t r)
{
    float block[F8_BLOCK];
    for (size_t k = 0; k < w->cols; k += F8_BLOCK) {
        size_t n = least(F8_BLOCK, w->cols - k);
        decode(block, LANES, w->dtype, at(w, r, k), n);
        if (w->scale != NULL)
            scale(block, block, block_scale(w, r, k / F8_BLOCK), n);
        memcpy(y + k, block, n * sizeof(float));
    }
}

/* ---- Tiles ---- */

enum {
    R = MANY_VECTORS ? 8 : 4, /* rows of w in a tile */
    COLUMNS = 3,              /* rows of x: R·3 sums fit the registers */
    TILE = R * LANES
};

/* C(OP, r) is OP(r, t) for the columns t; EACH(DO, C) is DO(C, r) for the
 * rows r. The accumulator of row r and column t is called c<r><t>. */
#define COLUMNS1(OP, r) OP(r, 0)
#define COLUMNS2(OP, r) OP(r, 0) OP(r, 1)
#define COLUMNS3(OP, r) OP(r, 0) OP(r, 1) OP(r, 2)
#define EACH4(DO, C) DO(C, 0) DO(C, 1) DO(C, 2) DO(C, 3)
#define EACH8(DO, C) EACH4(DO, C) DO(C, 4) DO(C, 5) DO(C, 6) DO(C, 7)
#if MANY_VECTORS
#define EACH EACH8
#else
#define EACH EACH4
#endif

#define FMA(r, t) c##r##t = v_fma(row, x##t, c##r##t);
#define ZERO(r, t) V c##r##t = v_splat(0);
#define ZERO_ROW(C, r) C(ZERO, r)

#define LANES_OF(r, t) (lanes + (t) * TILE + (r) * LANES + s)
#define TAKE(r, t) V c##r##t = v_load(LANES_OF(r, t));
#define PARK(r, t) v_store(LANES_OF(r, t), c##r##t);
#define ADD(r, t) \
    v_store(LANES_OF(r, t), v_fma(c##r##t, factor, v_load(LANES_OF(r, t))));
#define TAKE_ROW(C, r) C(TAKE, r)
#define PARK_ROW(C, r) C(PARK, r)
#define ADD_ROW(C, r) { V factor = v_splat(factors[r]); C(ADD, r) }

#define LOAD_X(r, t) V x##t = v_load(x + (t) * ldx + k + s);
#define STEP_ROW(C, r) \
    { V row = v_load_once(w + k * R + (r) * LANES + s); C(FMA, r) }

/* lanes[t][r] += w[r]·x[t] over n columns, a multiple of 16, not 0 (do: with a
 * for gcc keeps copies of all accumulators). */
#define MULTIPLY(name, C)                                               \
    NOINLINE static void name(float *restrict lanes,                    \
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
    NOINLINE static void name(float *restrict lanes,                    \
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

static void multiply(float *lanes, const float *w, const float *x, size_t ldx,
                     size_t T, size_t n)
{
    if (T == 1)
        multiply1(lanes, w, x, ldx, n);
    else if (T == 2)
        multiply2(lanes, w, x, ldx, n);
    else
        multiply3(lanes, w, x, ldx, n);
}

/* factors (n/128, R) */
static void multiply_blocks(float *lanes, const float *w, const float *x,
                            size_t ldx, size_t T, size_t n,
                            const float *factors)
{
    for (size_t k = 0; k < n; k += F8_BLOCK, w += F8_BLOCK * R, factors += R) {
        size_t m = least(F8_BLOCK, n - k);
        if (T == 1)
            multiply_block1(lanes, w, x + k, ldx, m, factors);
        else if (T == 2)
            multiply_block2(lanes, w, x + k, ldx, m, factors);
        else
            multiply_block3(lanes, w, x + k, ldx, m, factors);
    }
}

/* ---- y = x wᵀ ---- */

enum {
    DEPTH = 640,     /* columns of a panel: R·640 floats lie in the L1 cache */
    TOKENS = 128,    /* rows of x that share a panel */
    GROUPS = 4       /* panels side by side before x moves on in k: what is
                        left of x in the L2 cache is used so many times */
};

typedef struct {
    float w[DEPTH * R];                  /* (n/16, R, 16) */
    float factors[DEPTH / F8_BLOCK * R]; /* (n/128, R) */
    size_t n;                            /* columns */
    int scaled;
} Panel;

static void prefetch(const unsigned char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        PREFETCH(p + i);
}

/* n columns from k on of rows r to r + R - 1; the last row of w stands in for
 * those beyond it. k is a multiple of 128. */
static void fill(Panel *panel, const Matrix *w, size_t r, size_t k, size_t n)
{
    panel->n = n;
    panel->scaled = w->scale != NULL;
    for (size_t i = 0; i < R; i++) {
        size_t row = least(r + i, w->rows - 1);
        decode(panel->w + i * LANES, TILE, w->dtype, at(w, row, k), n);
        for (size_t b = 0; panel->scaled && b < blocks(n); b++)
            panel->factors[b * R + i] = block_scale(w, row, k / F8_BLOCK + b);
    }
}

/* The rows of a panel to come, prefetched a few lines at a time, so that the
 * memory works while the tiles of this one do. */
typedef struct {
    const unsigned char *p;
    size_t rows, row, bytes, done; /* left; their distance, length; of one */
} Ahead;

static Ahead ahead_of(const Matrix *w, size_t r, size_t rows, size_t k,
                      size_t n)
{
    size_t size = dtype_size(w->dtype);
    if (r >= w->rows)
        return (Ahead){NULL, 0, 0, 0, 0};
    return (Ahead){at(w, r, k), least(rows, w->rows - r), w->stride * size,
                   n * size, 0};
}

static void prefetch_some(Ahead *a, size_t lines)
{
    for (; lines > 0 && a->rows > 0; lines--) {
        PREFETCH(a->p + a->done);
        a->done += 64;
        if (a->done >= a->bytes) {
            a->done = 0;
            a->p += a->row;
            a->rows--;
        }
    }
}

/* lanes[t] += panel·x[t] over n columns from k on; k is a multiple of 128. */
static void multiply_panel(float *lanes, const Panel *panel, size_t k,
                           const float *x, size_t ldx, size_t T, size_t n)
{
    const float *w = panel->w + k * R;
    if (n == 0)
        return;
    if (panel->scaled)
        multiply_blocks(lanes, w, x, ldx, T, n,
                        panel->factors + k / F8_BLOCK * R);
    else
        multiply(lanes, w, x, ldx, T, n);
}

/* lanes[t] += panel·x[t] for up to 3 t. Rows of x end with their matrix, so
 * that a last run of less than 16 must be copied to be padded; its whole
 * block of 128 is, for that takes one factor. */
static void tile(float *lanes, const Panel *panel, const float *x, size_t ldx,
                 size_t T)
{
    ALIGNED float padded[COLUMNS * F8_BLOCK];
    size_t rest = panel->n % LANES == 0 ? 0 : panel->n % F8_BLOCK;
    size_t n = panel->n - rest;
    multiply_panel(lanes, panel, 0, x, ldx, T, n);
    if (rest == 0)
        return;
    memset(padded, 0, sizeof padded);
    for (size_t t = 0; t < T; t++)
        memcpy(padded + t * F8_BLOCK, x + t * ldx + n, rest * sizeof *x);
    multiply_panel(lanes, panel, n, padded, F8_BLOCK, T,
                   (rest + LANES - 1) / LANES * LANES);
}

/* The trees of four outputs, side by side. */
static void tree4(float out[4], const float *lanes)
{
#if GNU_VECTORS && HAS_BUILTIN(__builtin_shufflevector)
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
#else
    for (int i = 0; i < 4; i++)
        out[i] = tree(lanes + i * LANES);
#endif
}

/* y[i] = the tree of lanes[i], for n outputs; there are lanes for the next
 * multiple of four. */
static void fold(float *y, const float *lanes, size_t n)
{
    float out[4];
    for (size_t i = 0; i < n; i += 4) {
        tree4(out, lanes + i * LANES);
        memcpy(y + i, out, least(4, n - i) * sizeof *y);
    }
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
                if (k == 0)
                    memset(lanes, 0, m * TILE * sizeof *lanes);
                tile(lanes, &panel, x + t * ldx + k, ldx, m);
                for (size_t j = 0; k + depth >= cols && j < m; j++)
                    fold(y + (t + j) * ldy + r, lanes + j * TILE,
                         least(R, end - r));
            }
        }
}

/* ---- y = w x for one x, from w as it is stored ---- */

enum {
    SLICES = LANES / VW, /* vectors for the lanes of a row */
    AT_ONCE = 8 / SLICES /* rows with eight accumulators */
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
#define STEP_F8(C, r) STEP_STORED(r, v_load_normal_f8, 1)

#define PART(r) (lanes + (r) * VW)
#define PUT_PART(C, r) v_store(PART(r), c##r##0);
#define ADD_PART(C, r)                                                  \
    v_store(PART(r), v_fma(c##r##0, v_splat(factors[(r) / SLICES]),     \
                           v_load(PART(r))));

/* lanes[r] = w[r]·x over n columns, a multiple of 16; w's rows are `row` bytes
 * apart, and those to prefetch `ahead` bytes away. */
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

/* lanes[r] += factors[r] (w[r]·x) over 128 columns of normal F8 codes. */
NOINLINE static void multiply_f8(float *restrict lanes,
                                 const unsigned char *restrict p, size_t row,
                                 const float *restrict x,
                                 const float *restrict factors)
{
    EACH8(ZERO_ROW, COLUMNS1)
    for (size_t k = 0; k < F8_BLOCK; k += LANES) {
        EACH8(STEP_F8, COLUMNS1)
    }
    EACH8(ADD_PART, COLUMNS1)
}

/* The same for one row, any type and n <= 128 columns from k on: for what the
 * loops above leave over. */
static void add_block(float *lanes, const Matrix *w, size_t r, const float *x,
                      size_t k, size_t n)
{
    ALIGNED float row[F8_BLOCK], padded[F8_BLOCK], fresh[LANES] = {0};
    float *sums = w->scale == NULL ? lanes : fresh;
    decode(row, LANES, w->dtype, at(w, r, k), n);
    memset(padded, 0, sizeof padded);
    memcpy(padded, x + k, n * sizeof *x);
    for (size_t i = 0; i < n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            sums[l] = fma32(row[i + l], padded[i + l], sums[l]);
    for (size_t l = 0; w->scale != NULL && l < LANES; l++)
        lanes[l] = fma32(fresh[l], block_scale(w, r, k / F8_BLOCK), lanes[l]);
}

/* lanes = AT_ONCE rows from r on times x; `ahead` rows are prefetched. */
static void stored_rows(float *lanes, const float *x, const Matrix *w,
                        size_t r, size_t ahead)
{
    size_t row = w->stride * dtype_size(w->dtype), rest = w->cols % LANES;
    size_t n = w->cols - rest;
    if (w->dtype == DT_BF16)
        multiply_bf16(lanes, at(w, r, 0), row, ahead * row, x, n);
    else
        multiply_f32(lanes, at(w, r, 0), row, ahead * row, x, n);
    for (size_t i = 0; rest != 0 && i < AT_ONCE; i++)
        add_block(lanes + i * LANES, w, r + i, x, n, rest);
}

static void stored_rows_f8(float *lanes, const float *x, const Matrix *w,
                           size_t r, size_t ahead)
{
    const unsigned char *p = at(w, r, 0);
    size_t row = w->stride;
    memset(lanes, 0, AT_ONCE * LANES * sizeof *lanes);
    for (size_t k = 0; k < w->cols; k += F8_BLOCK) {
        size_t n = least(F8_BLOCK, w->cols - k);
        float factors[AT_ONCE];
        for (size_t i = 0; i < AT_ONCE; i++) {
            prefetch(p + (i + ahead) * row + k, n);
            factors[i] = block_scale(w, r + i, k / F8_BLOCK);
        }
        if (n == F8_BLOCK && all_normal_f8(p + k, row, AT_ONCE, F8_BLOCK))
            multiply_f8(lanes, p + k, row, x + k, factors);
        else
            for (size_t i = 0; i < AT_ONCE; i++)
                add_block(lanes + i * LANES, w, r + i, x, k, n);
    }
}

static int usable_as_stored(const Matrix *w)
{
    return w->scale != NULL ? w->dtype == DT_F8_E4M3 :
           w->dtype == DT_F32 || w->dtype == DT_BF16;
}

/* As many rows as come in whole groups; returns how many. */
static size_t matvec(float *y, const float *x, const Matrix *w)
{
    ALIGNED float lanes[(AT_ONCE < 4 ? 4 : AT_ONCE) * LANES]; /* fold's four */
    size_t r = 0;
    for (; r + AT_ONCE <= w->rows; r += AT_ONCE) {
        size_t ahead = r + 2 * AT_ONCE <= w->rows ? AT_ONCE : 0;
        if (w->dtype == DT_F8_E4M3)
            stored_rows_f8(lanes, x, w, r, ahead);
        else
            stored_rows(lanes, x, w, r, ahead);
        fold(y + r, lanes, AT_ONCE);
    }
    return r;
}

void matmul(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
            const Matrix *w)
{
    size_t group = T > 16 ? GROUPS * R : R, begin = 0;
    if (T == 1 && usable_as_stored(w))
        begin = matvec(y, x, w);
    for (size_t t = 0; t < T; t += TOKENS)
        for (size_t r = begin; r < w->rows; r += group)
            product(y + t * ldy, ldy, x + t * ldx, ldx, least(TOKENS, T - t),
                    w, r, least(r + group, w->rows));
}

float dot(const float *a, const float *b, size_t n)
{
    ALIGNED float lanes[LANES];
    Matrix m = matrix_f32(a, 1, n, n);
    size_t whole = n - n % LANES;
    for (size_t s = 0; s < LANES; s += VW) {
        V v = v_splat(0);
        for (size_t i = 0; i < whole; i += LANES)
            v = v_fma(v_load(a + i + s), v_load(b + i + s), v);
        v_store(lanes + s, v);
    }
    if (whole != n)
        add_block(lanes, &m, 0, b, whole, n - whole);
    return tree(lanes);
}

/* ---- y += x w ---- */

/* Here a tile is 3 rows of x times R vectors of columns, and its loop runs
 * over the rows of w: every element takes them up in their order. */
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
        decode(panel, LANES, w->dtype, p, width);
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

/* y += x w for n <= T_DEPTH rows from r on and the span at k; 0 if w must be
 * decoded into a panel first. */
static int accumulate_stored(float *y, const float *x, const Matrix *w,
                             size_t r, size_t n, size_t k)
{
    float factors[T_DEPTH] = {0};
    const unsigned char *p = at(w, r, k);
    size_t row = w->stride * dtype_size(w->dtype);
    size_t ahead = r + n + T_DEPTH <= w->rows ? T_DEPTH * row : 0;
    if (!usable_as_stored(w))
        return 0;
    for (size_t i = 0; w->scale != NULL && i < n; i++)
        factors[i] = block_scale(w, r + i, k / F8_BLOCK);
    if (w->dtype == DT_F32)
        accumulate_f32(y, 0, x, p, row, ahead, n, factors);
    else if (w->dtype == DT_BF16)
        accumulate_bf16(y, 0, x, p, row, ahead, n, factors);
    else if (all_normal_f8(p, row, n, SPAN))
        accumulate_f8(y, 0, x, p, row, ahead, n, factors);
    else
        return 0;
    return 1;
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
    for (size_t t = 0; t < T; t += TOKENS)
        for (size_t r = 0; r < w->rows; r += T_DEPTH)
            product_t(y + t * ldy, ldy, x + t * ldx, ldx,
                      least(TOKENS, T - t), w, r,
                      least(T_DEPTH, w->rows - r));
}
