/* dtype.c: names and conversions of number formats. */
#include "dtype.h"

static const char *const names[DT_COUNT] = {
    "F32", "F16", "BF16", "F8_E4M3", "F64", "F8_E5M2", "I64", "I32", "I16",
    "I8", "U64", "U32", "U16", "U8", "BOOL",
};

const char *dtype_name(DType type)
{
    return names[type];
}

DType dtype_parse(const char *name, size_t n)
{
    int t = 0;
    while (t < DT_COUNT && (strlen(names[t]) != n ||
                            memcmp(names[t], name, n) != 0))
        t++;
    return (DType)t;
}

/* Adding just under half of the last place kept, or half if that place is
 * odd, carries into it exactly when the value rounds up. A NaN would carry
 * into infinity, so it keeps its top bits and becomes quiet. */
static uint32_t round_off(uint32_t u, int bits)
{
    uint32_t half = (uint32_t)1 << (bits - 1);
    return u + (half - 1) + ((u >> bits) & 1);
}

uint16_t bf16_from_f32(float f)
{
    uint32_t u = f32_bits(f);
    if (f != f)
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)(round_off(u, 16) >> 16);
}

/* Below 2^-14 halves are multiples of 2^-24: adding 1/2 to the magnitude
 * rounds it to one, for that is the last place of a float there. */
uint16_t f16_from_f32(float f)
{
    uint32_t u = f32_bits(f), sign = (u >> 16) & 0x8000, half;
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        half = 0x7e00 | ((u >> 13) & 0x1ff);
    else if (u >= 0x47800000)
        half = 0x7c00;
    else if (u >= 0x38800000)
        half = (round_off(u, 13) - ((uint32_t)(127 - 15) << 23)) >> 13;
    else
        half = f32_bits(f32_from_bits(u) + 0.5f) & 0x7ff;
    return (uint16_t)(sign | half);
}
