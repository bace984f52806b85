/* dtype.h: the number formats that a safetensors file may hold.
 *
 * All conversions to F32 are exact; those from F32 round once, to nearest,
 * ties to even. fp8.c encodes E4M3 and has its tiles and blocks. */
#ifndef BASE_DTYPE_H
#define BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum {
    DT_F32, DT_F16, DT_BF16, DT_F8_E4M3,         /* a weight may be these */
    DT_F64, DT_F8_E5M2, DT_I64, DT_I32, DT_I16, DT_I8,
    DT_U64, DT_U32, DT_U16, DT_U8, DT_BOOL,
    DT_COUNT
} DType;

const char *dtype_name(DType type);  /* "BF16" */
/* Bytes an element; inline, for kernels ask often. */
static inline size_t dtype_size(DType type)
{
    static const unsigned char bytes[DT_COUNT] = {
        4, 2, 2, 1, 8, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1,
    };
    return bytes[type];
}

/* The type that safetensors calls by these n characters; DT_COUNT if none. */
DType dtype_parse(const char *name, size_t n);

static inline float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float f32_from_bf16(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

/* E4M3 (FN): bias 7, no infinity, NaN where all seven low bits are set. With
 * the exponent field at float's place, x is 2^e·(1 + m/8) for normal codes and
 * 2^-7·(1 + m/8) for subnormal ones, whose value is m/8·2^-6 = 2x - 2^-6: the
 * lesser of the two in both cases, with no branch and no subnormal float. */
static inline float f32_from_f8(uint8_t b)
{
    uint32_t magnitude = b & 0x7fu;
    float x = f32_from_bits((magnitude << 20) + ((uint32_t)120 << 23));
    float low = 2.0f * x - 0x1p-6f;
    uint32_t u = f32_bits(low < x ? low : x);
    if (magnitude == 0x7f)
        u = 0x7fc00000;
    return f32_from_bits(u | (uint32_t)(b & 0x80u) << 24);
}

/* The same for halves, bias 15; the greatest exponent is infinity or NaN. */
static inline float f32_from_f16(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    float x = f32_from_bits(magnitude + ((uint32_t)(127 - 15) << 23));
    float low = 2.0f * x - 0x1p-14f;
    uint32_t u = f32_bits(low < x ? low : x);
    if (magnitude >= 0x0f800000)
        u = magnitude | 0x7f800000;
    return f32_from_bits(u | (uint32_t)(h & 0x8000) << 16);
}

uint16_t bf16_from_f32(float f);
uint16_t f16_from_f32(float f);

#endif
