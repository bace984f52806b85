/* tile.h: what the products of kernels.h share: matrix.c, matmul.c,
 * matmul_lanes.c, matmul_t.c, tiles.c. For them alone.
 *
 * A tile of matmul.c is R rows of w times up to 3 rows of x. Accumulators are
 * named variables made by macros, so that they stay in registers; arrays of
 * vectors do not in every compiler. */
#ifndef BASE_TILE_H
#define BASE_TILE_H

#include "kernels.h"
#include "vector.h"

#include <stdbool.h>

enum {
    R = MANY_VECTORS ? 8 : 4, /* rows of w in a tile */
    COLUMNS = 3,              /* rows of x: R·3 sums fit the registers */
    TILE = R * LANES,
    TOKENS = 128,             /* rows of x that share a decoded panel of w */
    ROWS = 6,                 /* tiles.c: rows of x, */
    ADD_WIDE = R / 2,         /* vectors of columns, so that 6·R/2 sums fit */
    DOT_WIDE = R / 4,         /* the registers, or twice 6·R/4 */
    ADD_WIDTH = ADD_WIDE * VW,
    DOT_WIDTH = DOT_WIDE * VW
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

/* n elements as floats to runs of 16, `step` floats apart, the last padded
 * with +0. */
void matrix_decode(float *out, size_t step, DType type,
                   const unsigned char *p, size_t n);
/* True if the n codes of each of some rows are normal numbers; false if not,
 * or if n is less than a vector's bytes. Rows are `row` bytes apart. */
bool f8_all_normal(const unsigned char *p, size_t row, size_t rows, size_t n);

static inline float load_f32(const unsigned char *p, size_t i)
{
    float f;
    memcpy(&f, p + i * sizeof f, sizeof f);
    return f;
}

static inline uint16_t load_u16(const unsigned char *p, size_t i)
{
    uint16_t h;
    memcpy(&h, p + i * sizeof h, sizeof h);
    return h;
}

static inline float load_f16(const unsigned char *p, size_t i)
{
    return f32_from_f16(load_u16(p, i));
}

static inline float load_bf16(const unsigned char *p, size_t i)
{
    return f32_from_bf16(load_u16(p, i));
}

static inline float load_f8(const unsigned char *p, size_t i)
{
    return f32_from_f8(p[i]);
}

/* Right for all F8 codes but subnormal numbers, 0 and NaN. */
static inline float load_normal_f8(const unsigned char *p, size_t i)
{
    uint32_t u = (uint32_t)(int32_t)(int8_t)p[i] << 20;
    return f32_from_bits((u & 0x87f00000) + ((uint32_t)120 << 23));
}

/* The magnitude of a code, by the same rule, and its sign, ±1. */
static inline float load_f8_magnitude(const unsigned char *p, size_t i)
{
    uint32_t u = (uint32_t)(int32_t)(int8_t)p[i] << 20;
    return f32_from_bits((u & 0x07f00000) + ((uint32_t)120 << 23));
}

static inline float load_f8_sign(const unsigned char *p, size_t i)
{
    uint32_t u = (uint32_t)(int32_t)(int8_t)p[i];
    return f32_from_bits((u & 0x80000000) + ((uint32_t)127 << 23));
}

/* VW elements. */
#define LOADER(name, load)                                              \
    INLINE V name(const unsigned char *p)                               \
    {                                                                   \
        V v = {0};                                                      \
        for (size_t i = 0; i < VW; i++)                                 \
            AT(v, i) = load(p, i);                                      \
        return v;                                                       \
    }

LOADER(v_load_f32, load_f32)
LOADER(v_load_bf16, load_bf16)
LOADER(v_load_normal_f8, load_normal_f8)
LOADER(v_load_f8_magnitude, load_f8_magnitude)
LOADER(v_load_f8_sign, load_f8_sign)

/* Any codes (dtype.h, f32_from_f8): a magnitude below 2^-6 moves to twice its
 * distance from there, and 480, which stands for NaN, alone becomes infinite,
 * of which 0 times is NaN. */
INLINE V v_load_f8(const unsigned char *p)
{
    V minus = v_splat(-1), zero = v_splat(0), x = v_load_f8_magnitude(p);
    V below = v_max(v_fma(minus, x, v_splat(0x1p-6f)), zero);
    V huge = v_fma(x, v_splat(0x1p119f), v_splat(0x1p124f));
    x = v_fma(huge, zero, v_fma(minus, below, x));
    return v_mul(x, v_load_f8_sign(p));
}

/* Where w[r][k] is stored. */
static inline const unsigned char *at(const Matrix *w, size_t r, size_t k)
{
    return (const unsigned char *)w->data +
           (r * w->stride + k) * dtype_size(w->dtype);
}

static inline size_t blocks(size_t n)
{
    return n / F8_BLOCK + (n % F8_BLOCK != 0);
}

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The scale of row r in block b of columns. */
static inline float block_scale(const Matrix *w, size_t r, size_t b)
{
    return load_f32(w->scale,
                    (w->row0 + r) / F8_BLOCK * blocks(w->cols) + b);
}

/* Weights that need no panel for one row of x. */
static inline bool as_stored(const Matrix *w)
{
    return w->scale != NULL ? w->dtype == DT_F8_E4M3 :
           w->dtype == DT_F32 || w->dtype == DT_BF16;
}

static inline void prefetch(const unsigned char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        PREFETCH(p + i);
}

/* The rows of a panel to come, prefetched a few lines at a time, so that the
 * memory works while the tiles of this one do. */
typedef struct {
    const unsigned char *p;
    size_t rows, row, bytes, done; /* left; their distance, length; of one */
} Ahead;

static inline Ahead ahead_of(const Matrix *w, size_t r, size_t rows, size_t k,
                             size_t n)
{
    size_t size = dtype_size(w->dtype);
    if (r >= w->rows)
        return (Ahead){NULL, 0, 0, 0, 0};
    return (Ahead){at(w, r, k), least(rows, w->rows - r), w->stride * size,
                   n * size, 0};
}

static inline void prefetch_some(Ahead *a, size_t lines)
{
    while (lines > 0 && a->rows > 0) {
        size_t n = least(64 * lines, a->bytes - a->done);
        prefetch(a->p + a->done, n);
        lines -= (n + 63) / 64;
        a->done += n;
        if (a->done == a->bytes) {
            a->done = 0;
            a->p += a->row;
            a->rows--;
        }
    }
}

/* x[t][i] is p[t·row + i·step]. */
typedef struct {
    const float *p;
    size_t row, step;
} Factors;

/* n rows of floats, `row` bytes apart: a panel, ADD_WIDTH or DOT_WIDTH wide, or
 * a matrix; what to prefetch meanwhile. */
typedef struct {
    const unsigned char *p;
    size_t row, n;
    Ahead *ahead;
} Slab;

/* y[t] += Σ_i x[t][i] w[i], i ascending, for T rows of y and the panel's first
 * `width` columns; it has whole vectors of them. */
void tiles_add(float *y, size_t ldy, Factors x, size_t T, Slab w,
               size_t width);
/* y[t] = Σ_i x[t][i] w[i] in sixteen lanes and their tree: the panel has n rows
 * for each lane, and x.step is 16. */
void tiles_dot(float *y, size_t ldy, Factors x, size_t T, Slab w,
               size_t width);
/* y = x wᵀ if there are many rows of x with few columns; else false. */
bool matmul_lanes(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
                  const Matrix *w);

#endif
