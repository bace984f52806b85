/* tiles.c: the inner loops of products with many rows of x.
 *
 * A tile is 6 rows of x times a few vectors of columns of y, whose sums stay
 * in registers while the rows of a panel go by. No sum crosses a vector, so
 * none needs a tree of its own:
 *
 * - tiles_add: the sum itself goes on in y, row after row of the panel;
 * - tiles_dot: the sixteen lanes of a dot product are sums over every
 *   sixteenth column of x. They are computed one after another and merged as
 *   they come, like the digits of a counter: in the order 0 8 4 12 2 10 …
 *   neighbours are those that the tree adds. */
#include "tile.h"

#define ROWS1(OP, r) OP(r, 0)
#define ROWS2(OP, r) OP(r, 0) OP(r, 1)
#define ROWS6(OP, r) ROWS2(OP, r) OP(r, 2) OP(r, 3) OP(r, 4) OP(r, 5)
#define EACH1(DO, C) DO(C, 0)
#define EACH2(DO, C) DO(C, 0) DO(C, 1)
#if MANY_VECTORS
#define EACH_ADD EACH4
#define EACH_DOT EACH2
#else
#define EACH_ADD EACH2
#define EACH_DOT EACH1
#endif

/* c<r><t> is the sum of column vector r and row t; w<r> are a row of the
 * panel, xt a number of x. */
#define OF_Y(r, t) (y + (t) * ldy + (size_t)(r) * VW)
#define TAKE(r, t) V c##r##t = v_load(OF_Y(r, t));
#define PUT(r, t) v_store(OF_Y(r, t), c##r##t);
#define TAKE_ROW(C, r) C(TAKE, r)
#define PUT_ROW(C, r) C(PUT, r)
#define LOAD_W(C, r) V w##r = v_load_once(w + (r) * sizeof(V));
#define FMA_W(t, r) c##r##t = v_fma(w##r, xt, c##r##t);
#define STEP_X(EACH_OF, t)                                              \
    {                                                                   \
        V xt = v_splat(x[(t) * row]);                                   \
        EACH_OF(FMA_W, t)                                               \
    }

/* n > 0 rows of a panel. */
#define ADD_TILE(name, EACH_OF, C)                                      \
    NOINLINE static void name(float *restrict y, size_t ldy,            \
                              const float *restrict x, size_t row,      \
                              size_t step,                              \
                              const unsigned char *restrict w,          \
                              size_t w_row, size_t n)                   \
    {                                                                   \
        (void)row;                                                      \
        EACH_OF(TAKE_ROW, C)                                            \
        do {                                                            \
            EACH_OF(LOAD_W, C)                                          \
            C(STEP_X, EACH_OF)                                          \
        } while (w += w_row, x += step, --n > 0);                       \
        EACH_OF(PUT_ROW, C)                                             \
    }

/* The same for every lane, with n rows of the panel and every sixteenth column
 * of x. Lanes l (c) and l + 8 (d, v) go together; what waits to be merged with
 * other pairs is parked, three tiles at most. */
#define PARKED(r, t) (parked + (size_t)((t) * DOT_WIDE + (r)) * VW)
#define CLEAR(r, t) c##r##t = d##r##t = v_splat(0);
#define PAIR(r, t) c##r##t = v_add(c##r##t, d##r##t);
#define MERGE(r, t) c##r##t = v_add(v_load(PARKED(r, t)), c##r##t);
#define PARK(r, t) v_store(PARKED(r, t), c##r##t);
#define SUMS(r, t) V c##r##t, d##r##t;
#define SUMS_ROW(C, r) C(SUMS, r)
#define CLEAR_ROW(C, r) C(CLEAR, r)
#define PAIR_ROW(C, r) C(PAIR, r)
#define MERGE_ROW(C, r) C(MERGE, r)
#define PARK_ROW(C, r) C(PARK, r)
#define LOAD_PAIR(C, r) \
    V w##r = v_load_once(w + (r) * sizeof(V));                          \
    V v##r = v_load_once(v + (r) * sizeof(V));
#define FMA_V(t, r) d##r##t = v_fma(v##r, xt, d##r##t);
#define STEP_PAIR(EACH_OF, t)                                           \
    {                                                                   \
        V xt = v_splat(x[(t) * row]);                                   \
        EACH_OF(FMA_W, t)                                               \
    }                                                                   \
    {                                                                   \
        V xt = v_splat(x[(t) * row + LANES / 2]);                       \
        EACH_OF(FMA_V, t)                                               \
    }

#define DOT_TILE(name, EACH_OF, C)                                      \
    NOINLINE static void name(float *restrict y, size_t ldy,            \
                              const float *restrict from, size_t row,   \
                              size_t step,                              \
                              const unsigned char *restrict panel,      \
                              size_t w_row, size_t n)                   \
    {                                                                   \
        ALIGNED float waiting[3 * ROWS * DOT_WIDTH];                    \
        float *parked = waiting;                                        \
        EACH_OF(SUMS_ROW, C)                                            \
        (void)row;                                                      \
        for (size_t i = 0;; i++) {                                      \
            const float *x = from + pair_order[i];                      \
            const unsigned char *w = panel + pair_order[i] * n * w_row; \
            const unsigned char *v = w + LANES / 2 * n * w_row;         \
            size_t left = n;                                            \
            EACH_OF(CLEAR_ROW, C)                                       \
            do {                                                        \
                EACH_OF(LOAD_PAIR, C)                                   \
                C(STEP_PAIR, EACH_OF)                                   \
                w += w_row;                                             \
                v += w_row;                                             \
            } while (x += step, --left > 0);                            \
            EACH_OF(PAIR_ROW, C)                                        \
            for (size_t m = i; m % 2 == 1; m /= 2) {                    \
                parked -= (size_t)ROWS * DOT_WIDTH;                     \
                EACH_OF(MERGE_ROW, C)                                   \
            }                                                           \
            if (i + 1 == LANES / 2)                                     \
                break;                                                  \
            EACH_OF(PARK_ROW, C)                                        \
            parked += (size_t)ROWS * DOT_WIDTH;                         \
        }                                                               \
        EACH_OF(PUT_ROW, C)                                             \
    }

static const unsigned char pair_order[LANES / 2] = {0, 4, 2, 6, 1, 5, 3, 7};

ADD_TILE(add_wide6, EACH_ADD, ROWS6)
ADD_TILE(add_wide2, EACH_ADD, ROWS2)
ADD_TILE(add_wide1, EACH_ADD, ROWS1)
ADD_TILE(add_half6, EACH2, ROWS6)
ADD_TILE(add_half2, EACH2, ROWS2)
ADD_TILE(add_half1, EACH2, ROWS1)
ADD_TILE(add_thin6, EACH1, ROWS6)
ADD_TILE(add_thin2, EACH1, ROWS2)
ADD_TILE(add_thin1, EACH1, ROWS1)
DOT_TILE(dot_wide6, EACH_DOT, ROWS6)
DOT_TILE(dot_wide2, EACH_DOT, ROWS2)
DOT_TILE(dot_wide1, EACH_DOT, ROWS1)
DOT_TILE(dot_thin6, EACH1, ROWS6)
DOT_TILE(dot_thin2, EACH1, ROWS2)
DOT_TILE(dot_thin1, EACH1, ROWS1)

typedef void Tile(float *y, size_t ldy, const float *x, size_t row,
                  size_t step, const unsigned char *w, size_t w_row,
                  size_t n);

/* The tiles of one width. */
typedef struct {
    size_t columns;
    Tile *of6, *of2, *of1;
} Tiles;

static const Tiles adding[] = {
    {ADD_WIDTH, add_wide6, add_wide2, add_wide1},
    {2 * (size_t)VW, add_half6, add_half2, add_half1},
    {VW, add_thin6, add_thin2, add_thin1}};
static const Tiles dotting[] = {
    {DOT_WIDTH, dot_wide6, dot_wide2, dot_wide1},
    {VW, dot_thin6, dot_thin2, dot_thin1}};

static void prefetch_rows(const float *y, size_t ldy, size_t rows,
                          size_t columns)
{
    for (size_t t = 0; t < rows; t++, y += ldy)
        prefetch((const unsigned char *)y, columns * sizeof *y);
}

static void run(const Tiles *tiles, float *y, size_t ldy, Factors x, size_t T,
                Slab w)
{
    size_t lines = w.ahead->rows * (w.ahead->bytes / 64 + 1);
    lines = lines / (T / ROWS + 1) + 1;
    for (; T >= ROWS; T -= ROWS, y += ROWS * ldy, x.p += ROWS * x.row) {
        prefetch_some(w.ahead, lines);
        prefetch_rows(y + ROWS * ldy, ldy, least(ROWS, T - ROWS),
                      tiles->columns);
        tiles->of6(y, ldy, x.p, x.row, x.step, w.p, w.row, w.n);
    }
    for (; T >= 2; T -= 2, y += 2 * ldy, x.p += 2 * x.row)
        tiles->of2(y, ldy, x.p, x.row, x.step, w.p, w.row, w.n);
    if (T > 0)
        tiles->of1(y, ldy, x.p, x.row, x.step, w.p, w.row, w.n);
}

/* The same for `width` < VW columns of y. */
static void run_edge(const Tiles *tiles, float *y, size_t ldy, Factors x,
                     size_t T, Slab w, size_t width)
{
    ALIGNED float edge[ROWS * VW] = {0};
    for (size_t t = 0; t < T; t += ROWS, x.p += ROWS * x.row) {
        size_t m = least(ROWS, T - t);
        for (size_t i = 0; i < m; i++)
            memcpy(edge + i * VW, y + (t + i) * ldy, width * sizeof *y);
        run(tiles, edge, VW, x, m, w);
        for (size_t i = 0; i < m; i++)
            memcpy(y + (t + i) * ldy, edge + i * VW, width * sizeof *y);
    }
}

/* n kinds of tiles, the widest first. */
static void run_all(const Tiles *tiles, size_t n, float *y, size_t ldy,
                    Factors x, size_t T, Slab w, size_t width)
{
    for (size_t i = 0; i < n; i++)
        for (size_t m = tiles[i].columns; width >= m;
             width -= m, y += m, w.p += m * sizeof *y)
            run(&tiles[i], y, ldy, x, T, w);
    if (width > 0)
        run_edge(&tiles[n - 1], y, ldy, x, T, w, width);
}

void tiles_add(float *y, size_t ldy, Factors x, size_t T, Slab w,
               size_t width)
{
    run_all(adding, sizeof adding / sizeof *adding, y, ldy, x, T, w, width);
}

void tiles_dot(float *y, size_t ldy, Factors x, size_t T, Slab w,
               size_t width)
{
    run_all(dotting, sizeof dotting / sizeof *dotting, y, ldy, x, T, w, width);
}
