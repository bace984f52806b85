/* maths.c: the 64-bit functions of maths.h, in double with + - × / alone.
 *
 * Each reduces its argument exactly enough, sums a Taylor series (nothing to
 * take on trust but factorials) and adds the leading terms last, with what
 * they rounded away. */
#include "maths.h"

static const double ln2_high = 0x1.62e42feep-1; /* 32 bits: n·high is exact */
static const double ln2_low = 0x1.a39ef35793c76p-33;

static double power_of_two64(uint64_t n)
{
    uint64_t u = (n + 1023) << 52;
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}

static uint64_t f64_bits(double d)
{
    uint64_t u;
    memcpy(&u, &d, sizeof u);
    return u;
}

/* c[0] + c[1] x + … + c[n-1] x^(n-1) by Horner's rule. */
static double polynomial(const double *c, int n, double x)
{
    double p = c[n - 1];
    for (int i = n - 2; i >= 0; i--)
        p = p * x + c[i];
    return p;
}

/* e^x = 2^n e^r; r = high - low, off by c. */
double exp64(double x)
{
    static const double inverse_factorials[] = {
        0.5, 1.6666666666666667e-1, 4.1666666666666667e-2,
        8.3333333333333333e-3, 1.3888888888888889e-3, 1.9841269841269841e-4,
        2.4801587301587302e-5, 2.7557319223985891e-6, 2.7557319223985891e-7,
        2.5052108385441719e-8, 2.0876756987868099e-9, 1.6059043836821615e-10,
        1.1470745597729725e-11,
    };
    const double magic = 0x1.8p52;
    x = x > 710.0 ? 710.0 : x;
    x = x < -746.0 ? -746.0 : x;
    double z = x * 1.4426950408889634 + magic, n = z - magic;
    double high = x - n * ln2_high, low = n * ln2_low;
    double r = high - low, c = (high - r) - low;
    double p = r * r * polynomial(inverse_factorials, 13, r);
    double s = 1 + r, rest = (1 - s) + r;
    uint64_t i = f64_bits(z) - f64_bits(magic);
    uint64_t half = ((i + 2048) >> 1) - 1024;
    return (s + (rest + (p + c))) * power_of_two64(half) *
           power_of_two64(i - half);
}

/* ln x = k ln 2 + ln(1 + f), 1 + f in [√½, √2). With s = f/(2 + f):
 * ln(1 + f) = 2 artanh s = 2s + s·R, R = 2s²/3 + 2s⁴/5 + …; and
 * 2s = f - s·f = f - f²/2 + s·f²/2, where only small terms round. */
double log64(double x)
{
    static const double series[] = {
        6.6666666666666667e-1, 0.4, 2.8571428571428571e-1,
        2.2222222222222222e-1, 1.8181818181818182e-1, 1.5384615384615385e-1,
        1.3333333333333333e-1, 1.1764705882352941e-1, 1.0526315789473684e-1,
        9.5238095238095238e-2,
    };
    const uint64_t root_half = 0x3fe6a09e667f3bcd;
    if (!(x > 0) || x > DBL_MAX)
        return x == 0 ? -INFINITY : x < 0 ? NAN : x;
    int tiny = x < DBL_MIN;
    uint64_t u = f64_bits(tiny ? x * 0x1p54 : x);
    uint64_t e = (u - root_half + ((uint64_t)1024 << 52)) >> 52;
    double k = (double)((int)e - 1024 - (tiny ? 54 : 0)), m;
    u -= (e - 1024) << 52;
    memcpy(&m, &u, sizeof m);
    double f = m - 1, s = f / (2 + f), z = s * s, h = 0.5 * f * f;
    double t = s * (h + z * polynomial(series, 10, z)) + k * ln2_low;
    return k * ln2_high - ((h - t) - f);
}

/* x - n π/2 as an unevaluated sum, n its nearest integer. The first parts of
 * π/2 have 23 bits, so that their products with n < 2^30 are exact. */
typedef struct {
    double high, low;
    unsigned quadrant; /* n mod 4 */
} Angle;

static double two_sum(double a, double b, double *error)
{
    double s = a + b, t = s - a;
    *error = (a - (s - t)) + (b - t);
    return s;
}

static Angle reduce(double x)
{
    const double magic = 0x1.8p52;
    double z = x * 6.3661977236758134e-1 + magic, n = z - magic, e1, e2;
    double r = (x - n * 0x1.921fb4p0) - n * 0x1.4442d0p-24;
    r = two_sum(r, -n * 0x1.846988p-48, &e1);
    r = two_sum(r, -n * 0x1.8cc514p-72, &e2);
    Angle a = {r, 0, (unsigned)(f64_bits(z) & 3)};
    a.high = two_sum(r, e1 + (e2 - n * 0x1.80dc1cd129025p-95), &a.low);
    return a;
}

/* sin of |high| <= π/4: high is added last, all else is below 0.1. */
static double sin_near_0(double high, double low)
{
    static const double series[] = { /* -1/3!, 1/5!, -1/7!, … */
        -1.6666666666666667e-1, 8.3333333333333333e-3,
        -1.9841269841269841e-4, 2.7557319223985891e-6,
        -2.5052108385441719e-8, 1.6059043836821615e-10,
        -7.6471637318198165e-13, 2.8114572543455208e-15,
    };
    double z = high * high;
    double p = high * (z * polynomial(series, 8, z));
    return high + (p + low * (1 - 0.5 * z));
}

static double cos_near_0(double high, double low)
{
    static const double series[] = { /* 1/4!, -1/6!, 1/8!, … */
        4.1666666666666667e-2, -1.3888888888888889e-3,
        2.4801587301587302e-5, -2.7557319223985891e-7,
        2.0876756987868099e-9, -1.1470745597729725e-11,
        4.7794773323873853e-14, -1.5619206968586226e-16,
    };
    double z = high * high, h = 0.5 * z, s = 1 - h, rest = (1 - s) - h;
    double p = z * (z * polynomial(series, 8, z));
    return s + (rest + (p - high * low));
}

/* sin of x + quadrants·π/2 */
static double sin_from(double x, unsigned quadrants)
{
    Angle a = reduce(x);
    unsigned q = (a.quadrant + quadrants) & 3;
    double y = q & 1 ? cos_near_0(a.high, a.low) : sin_near_0(a.high, a.low);
    return q & 2 ? -y : y;
}

double sin64(double x)
{
    return sin_from(x, 0);
}

double cos64(double x)
{
    return sin_from(x, 1);
}

double pow64(double x, double y)
{
    return exp64(y * log64(x));
}
