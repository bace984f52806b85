/* matrix.c: matrices, the plain loops that define their products, and the
 * decoding of their elements.
 *
 * The loops are the definition (docs/numerics.md). matmul.c and matmul_t.c
 * give the same bits faster; tests/test_kernels.c compares them. */
#include "tile.h"

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

float *matrix_numbers(const Matrix *m)
{
    return (float *)(uintptr_t)m->data;
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
DECODER(decode_any_f8, v_load_f8, 1)
PLAIN_DECODER(decode_f16, load_f16)

/* Adding 0x78 to the low seven bits of a code carries into the eighth from 8
 * on, where the exponent field is not 0; adding 1 only from 0x7f, which is
 * NaN. The last vector of a row may overlap the one before. */
bool f8_all_normal(const unsigned char *p, size_t row, size_t rows, size_t n)
{
    const uint64_t each = 0x0101010101010101, top = 0x80 * each;
    VBits normal, codes;
    uint64_t parts[sizeof normal / sizeof(uint64_t)], all = top;
    memset(&normal, 0xff, sizeof normal);
    if (n < sizeof codes)
        return false;
    for (; rows > 0; rows--, p += row)
        for (size_t i = 0; i < n; i += sizeof codes) {
            memcpy(&codes, p + least(i, n - sizeof codes), sizeof codes);
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
    if (f8_all_normal(p, 0, 1, n))
        decode_normal_f8(out, step, p, n);
    else
        decode_any_f8(out, step, p, n);
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

/* Zero bytes are +0 in any type. */
void matrix_decode(float *out, size_t step, DType type,
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
    float padded[F8_BLOCK] = {0};
    for (size_t k = 0; k < w->cols; k += F8_BLOCK) {
        size_t n = least(F8_BLOCK, w->cols - k);
        float *to = n % LANES == 0 ? y + k : padded;
        matrix_decode(to, LANES, w->dtype, at(w, r, k), n);
        if (w->scale != NULL)
            scale(to, to, block_scale(w, r, k / F8_BLOCK), n);
        if (to == padded)
            memcpy(y + k, padded, n * sizeof *y);
    }
}
