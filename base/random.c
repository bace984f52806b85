/* random.c: SplitMix64, and normal numbers by Box and Muller's method. */
#include "random.h"

#include "maths.h"

static const uint64_t step = 0x9e3779b97f4a7c15;

Random random_seeded(uint64_t seed)
{
    return (Random){seed};
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

uint64_t random_u64(Random *r)
{
    r->state += step;
    return mix(r->state);
}

float random_uniform(Random *r)
{
    return (float)(random_u64(r) >> 40) * 0x1p-24f;
}

/* cos(2π turn/2^32). The turn is folded exactly into the eighth next to 0,
 * where a Taylor series of either function is enough. */
static float cos_turn(uint32_t turn)
{
    uint32_t quadrant = (turn + ((uint32_t)1 << 29)) >> 30;
    int32_t part = (int32_t)(turn - (quadrant << 30) + ((uint32_t)1 << 29)) -
                   ((int32_t)1 << 29);
    float a = (float)part * 1.46291808e-9f, z = a * a; /* 2π·2^-32 */
    float s = fma32(2.75573192e-6f, z, -1.98412698e-4f);
    s = fma32(fma32(s, z, 8.33333333e-3f), z, -1.66666667e-1f);
    s = fma32(s * z, a, a);
    float c = fma32(-2.75573192e-7f, z, 2.48015873e-5f);
    c = fma32(fma32(c, z, -1.38888889e-3f), z, 4.16666667e-2f);
    c = fma32(fma32(c, z, -0.5f), z, 1.0f);
    uint32_t sign = ((quadrant + 1) & 2) << 30;
    return f32_from_bits(f32_bits(quadrant & 1 ? s : c) ^ sign);
}

/* √(-2 ln v) cos(2πw): v in (0, 1] from a number's upper half, w from its
 * lower one. The root has a loop of its own, because the library's, which may
 * set errno, would keep all of it from becoming vector code. */
void random_normal(Random *r, float *out, size_t n, float std)
{
    enum { BLOCK = 256 };
    float square[BLOCK], cosine[BLOCK];
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        size_t m = n - begin < BLOCK ? n - begin : BLOCK;
        for (size_t i = 0; i < m; i++) {
            uint64_t u = mix(r->state + (i + 1) * step);
            float v = fma32((float)(uint32_t)(u >> 32), 0x1p-32f, 0x1p-33f);
            square[i] = -2.0f * log32(v);
            cosine[i] = cos_turn((uint32_t)u);
        }
        for (size_t i = 0; i < m; i++)
            out[begin + i] = (sqrtf(square[i]) * cosine[i]) * std;
        r->state += m * step;
    }
}
