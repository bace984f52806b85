/* diff.c: how far two tensors are apart, in double, in ascending order. */
#include "diff.h"

#include <math.h>
#include <string.h>

/* E4M3 has no infinities; its exponent and mantissa stand in F32's fields,
 * 2^120 corrects the bias, also for subnormals. fp8.c, which owns the format,
 * lies above base/. */
static double from_e4m3(unsigned char b)
{
    if ((b & 0x7f) == 0x7f)
        return NAN;
    double x = (double)f32_from_bits((uint32_t)(b & 0x7f) << 20)
             * 0x1p120;
    return b & 0x80 ? -x : x;
}

#define LOAD(type, from) \
    type value; \
    memcpy(&value, from, sizeof value)

static double from_half(DType dtype, const unsigned char *from)
{
    LOAD(uint16_t, from);
    switch (dtype) {
    case DT_F16: return (double)f32_from_f16(value);
    case DT_BF16: return (double)f32_from_bf16(value);
    case DT_U16: return value;
    default: return (double)(int16_t)value;
    }
}

static double from_word(DType dtype, const unsigned char *from)
{
    LOAD(uint32_t, from);
    switch (dtype) {
    case DT_F32: return (double)f32_from_bits(value);
    case DT_U32: return value;
    default: return (double)(int32_t)value;
    }
}

static double from_long(DType dtype, const unsigned char *from)
{
    LOAD(uint64_t, from);
    double x;
    switch (dtype) {
    case DT_F64:
        memcpy(&x, &value, sizeof x);
        return x;
    case DT_U64: return (double)value;
    default: return (double)(int64_t)value;
    }
}

static double from_byte(DType dtype, unsigned char b)
{
    switch (dtype) {
    case DT_F8_E4M3: return from_e4m3(b);
    case DT_F8_E5M2: return (double)f32_from_f16((uint16_t)(b << 8));
    case DT_I8: return (double)(int8_t)b;
    default: return b;
    }
}

double diff_value(const StTensor *t, size_t i)
{
    size_t size = dtype_size(t->dtype);
    const unsigned char *from = t->data + i * size;
    switch (size) {
    case 1: return from_byte(t->dtype, *from);
    case 2: return from_half(t->dtype, from);
    case 4: return from_word(t->dtype, from);
    default: return from_long(t->dtype, from);
    }
}

static bool same_shape(const StTensor *a, const StTensor *b)
{
    return a->rank == b->rank
        && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}

/* |x - y|; 0 for equal ones and for two NaN, infinite for one NaN. */
static double distance(double x, double y)
{
    if (x == y || (isnan(x) && isnan(y)))
        return 0;
    double d = fabs(x - y);
    return isnan(d) ? INFINITY : d;
}

typedef struct {
    double error, power; /* Σ(a-b)², Σa² */
} Sums;

static void add_element(DiffRow *row, Sums *sums, size_t i, double x, double y)
{
    double d = distance(x, y);
    sums->error += d * d;
    if (isfinite(x))
        sums->power += x * x;
    row->differing += d > 0;
    if (d > row->max_abs) {
        row->max_abs = d;
        row->worst = i;
    }
}

int diff_tensor(DiffRow *row, const StTensor *a, const StTensor *b,
                Error *err)
{
    (void)err; /* a comparison that can fail will need it */
    *row = (DiffRow){.name = a->name, .elements = a->elements};
    row->missing = b == NULL;
    if (row->missing)
        return 0;
    row->shape_differs = !same_shape(a, b);
    if (row->shape_differs)
        return 0;
    row->same_bits = a->dtype == b->dtype
        && (a->bytes == 0 || memcmp(a->data, b->data, a->bytes) == 0);
    if (row->same_bits)
        return 0;
    Sums sums = {0, 0};
    for (size_t i = 0; i < a->elements; i++)
        add_element(row, &sums, i, diff_value(a, i),
                    diff_value(b, i));
    row->nmse = sums.error == 0 ? 0 : sums.error / sums.power;
    return 0;
}
