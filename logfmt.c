/* logfmt.c: LogFMT-nBit --- "Insights into DeepSeek-V3" (ISCA 2025) §3.2
 *
 * A tile of 128 numbers by their logarithms, evenly spaced between the least
 * and the greatest: a sign and n-1 bits of K. K = 0 is zero, K = 1 the least
 * magnitude of the tile, the last K the greatest.
 *
 * Invariants: exp and log are those of base/maths.h, so codes and numbers are
 * the same everywhere. A code is the one whose number lies nearest to x, not
 * the one whose logarithm does: the paper found that unbiased, for training.
 *
 * Choices, where the paper is silent: a tile stores its least logarithm and
 * its step as F32; what lies below the range becomes K = 1, not zero; -0 keeps
 * its sign. Numbers are finite. */
#include "deepseek.h"

#include "base/maths.h"

/* The range is that of five exponent bits: a factor of 2^32. */
static const double log_range = 32 * 0.69314718055994531;

static int last_code(const LogTile *tile)
{
    return (1 << (tile->bits - 1)) - 1;
}

static double magnitude_of(const LogTile *tile, int K)
{
    double v = exp64((double)tile->min + (double)tile->step * (K - 1));
    return v < (double)FLT_MAX ? v : (double)FLT_MAX;
}

static void set_range(LogTile *tile, const float *x, size_t n)
{
    double min = 0, max = 0;
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        double l;
        if (x[i] == 0)
            continue;
        l = log64(fabs((double)x[i]));
        min = !any || l < min ? l : min;
        max = !any || l > max ? l : max;
        any = true;
    }
    if (min < max - log_range)
        min = max - log_range;
    tile->min = (float)min;
    tile->step = (float)((max - min) / (last_code(tile) - 1));
}

/* The nearer of the two around |x|; halfway, the even one. */
static int nearest_code(const LogTile *tile, double x)
{
    double steps, above, below;
    int K;
    if (!(tile->step > 0))
        return 1;
    steps = (log64(x) - (double)tile->min) / (double)tile->step;
    if (!(steps >= 0))
        return 1;
    K = steps < last_code(tile) - 2 ? 1 + (int)steps : last_code(tile) - 1;
    above = magnitude_of(tile, K + 1) - x;
    below = x - magnitude_of(tile, K);
    return K + (above < below || (!(above > below) && K % 2));
}

void logfmt_encode(uint16_t *codes, LogTile *tile, const float *x, size_t n,
                   int bits)
{
    tile->bits = bits;
    set_range(tile, x, n);
    for (size_t i = 0; i < n; i++) {
        int sign = signbit(x[i]) ? last_code(tile) + 1 : 0;
        int K = x[i] == 0 ? 0 : nearest_code(tile, fabs((double)x[i]));
        codes[i] = (uint16_t)(sign | K);
    }
}

void logfmt_decode(float *x, const uint16_t *codes, const LogTile *tile,
                   size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int K = codes[i] & last_code(tile);
        float v = K ? (float)magnitude_of(tile, K) : 0;
        x[i] = codes[i] > last_code(tile) ? -v : v;
    }
}
