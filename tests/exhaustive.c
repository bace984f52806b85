/* exhaustive.c: every F32 bit pattern into every format; `make exhaustive`.
 *
 * Magnitudes are tried in rising order, so that the nearest code is found by
 * stepping over the middles of neighbours, which are exact in double: no bit
 * of this is the encoder's arithmetic. The table is decoded as formats.h
 * writes the definition down. Takes minutes; `make test` tries every BF16
 * pattern, every boundary and random numbers. */
#include "formats.h"

static size_t complaints;

static void compare(const char *what, uint32_t bits, uint32_t found,
                    uint32_t wanted)
{
    if (found == wanted)
        return;
    if (complaints++ < 10)
        printf("%s of 0x%08x: 0x%04x, wanted 0x%04x\n", what, (unsigned)bits,
               (unsigned)found, (unsigned)wanted);
}

static void compare_both(const Known *k, uint32_t bits, uint32_t wanted)
{
    uint32_t minus = 1u << (k->E + k->M), other = bits | 0x80000000u;
    float x = f32_from_bits(bits), y = f32_from_bits(other);
    compare(k->name, bits, format_encode(k->format, x), wanted);
    compare(k->name, other, format_encode(k->format, y), wanted | minus);
    if (k->format == &BF16 && !isnan(x)) {
        compare("bf16_from_f32", bits, bf16_from_f32(x), wanted);
        compare("bf16_from_f32", other, bf16_from_f32(y), wanted | minus);
    } else if (k->format == &F16 && !isnan(x)) {
        compare("f16_from_f32", bits, f16_from_f32(x), wanted);
        compare("f16_from_f32", other, f16_from_f32(y), wanted | minus);
    }
}

/* Where x leaves code for the next: above the middle, on it if code is odd. */
static bool is_beyond(double x, double middle, uint32_t code)
{
    return x > middle || (!(x < middle) && code % 2);
}

static void each_number(const Known *k)
{
    uint32_t code = 0;
    double middle = value_of(k, 1) / 2;
    for (uint32_t bits = 0; bits <= 0x7f800000u; bits++) {
        double x = (double)f32_from_bits(bits);
        while (code <= k->top && is_beyond(x, middle, code)) {
            code++;
            middle = (value_of(k, code) + value_of(k, code + 1)) / 2;
        }
        compare_both(k, bits, code > k->top && k->finite ? k->top : code);
    }
}

static void each_nan(const Known *k)
{
    uint32_t all = (1u << (k->E + k->M)) - 1;
    uint32_t quiet = k->finite ? all : all ^ ((1u << (k->M - 1)) - 1);
    for (uint32_t bits = 0x7f800001u; bits < 0x80000000u; bits++)
        compare_both(k, bits, quiet);
}

/* The next power of two at or above each positive number. */
static void each_scale(void)
{
    uint32_t code = 1;
    for (uint32_t bits = 0; bits <= 0x7f800000u; bits++) {
        double x = (double)f32_from_bits(bits);
        while (code < 254 && x > ldexp(1, (int)code - 127))
            code++;
        compare("UE8M0", bits, ue8m0_encode(f32_from_bits(bits)), code);
    }
}

int main(void)
{
    double begin = os_seconds();
    for (size_t i = 0; i < FORMATS; i++) {
        each_number(&known[i]);
        each_nan(&known[i]);
        printf("%-5s 2^32 patterns\n", known[i].name);
        fflush(stdout);
    }
    each_scale();
    printf("UE8M0 2^31 patterns\n%zu differ, %.0f s\n", complaints,
           os_seconds() - begin);
    return complaints > 0;
}
