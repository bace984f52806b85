/* formats.h: number formats once more, as their definitions say them, and the
 * file of FP8 vectors. For test_fp8.c, test_logfmt.c and exhaustive.c. */
#ifndef TESTS_FORMATS_H
#define TESTS_FORMATS_H

#include "support.h"

#include "base/json.h"

#include <float.h>

typedef struct {
    const char *name;
    const FloatFormat *format;
    int E, M;           /* bits of exponent and mantissa */
    bool finite;
    uint32_t top;       /* code of the greatest number */
    double greatest;
} Known;

static const Known known[] = {
    {"E4M3", &E4M3, 4, 3, true, 0x7e, 448},
    {"E5M2", &E5M2, 5, 2, false, 0x7b, 57344},
    {"E5M6", &E5M6, 5, 6, false, 0x7bf, 65024},
    {"BF16", &BF16, 8, 7, false, 0x7f7f, 0x1.fep127},
    {"F16", &F16, 5, 10, false, 0x7bff, 65504},
};

enum { FORMATS = sizeof known / sizeof *known };

/* 2^(e-bias) (1 + m/2^M), or 2^(1-bias) m/2^M for e = 0, of a code without
 * its sign; one step beyond the greatest number too, where infinity begins. */
static inline double value_of(const Known *k, uint32_t code)
{
    int bias = (1 << (k->E - 1)) - 1, e = (int)(code >> k->M);
    double m = (double)(code & ((1u << k->M) - 1)) / (1 << k->M);
    return e ? ldexp(1 + m, e - bias) : ldexp(m, 1 - bias);
}

/* The nearest code by search in the table of values; of two at one distance
 * the even one. What rounds beyond the greatest number becomes infinity, the
 * next code, or that number where there is no infinity. */
static inline uint32_t nearest(const Known *k, double x)
{
    uint32_t low = 0, high = k->top + 1, sign = signbit(x) ? 1 : 0;
    double v = fabs(x), below, above;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (value_of(k, middle) <= v)
            low = middle;
        else
            high = middle;
    }
    below = v - value_of(k, low);
    above = value_of(k, high) - v;
    if (above < below || (!(above > below) && low % 2))
        low = high;
    if (low > k->top && k->finite)
        low = k->top;
    return low | sign << (k->E + k->M);
}

/* Vectors ---------------------------------------------------------------- */

typedef struct {
    File file;
    Json json;
} Vectors;

static inline Vectors vectors_open(void)
{
    const char *path = "tests/data/fp8_vectors.json";
    Vectors v;
    Error err;
    must(file_open(&v.file, path, &err), &err);
    must(json_parse(&v.json, path, (const char *)v.file.data, v.file.size,
                    &err), &err);
    return v;
}

static inline void vectors_close(Vectors *v)
{
    json_free(&v->json);
    file_close(&v->file);
}

static inline const JsonNode *member(const Vectors *v, const JsonNode *object,
                                     const char *key)
{
    const JsonNode *node = json_get(&v->json, object, key);
    assert_non_null(node);
    return node;
}

/* Element i of an array. */
static inline const JsonNode *element(const Vectors *v, const JsonNode *array,
                                      size_t i)
{
    const JsonNode *item = json_first(&v->json, array);
    while (i-- > 0)
        item = json_next(&v->json, array, item);
    assert_non_null(item);
    return item;
}

static inline double number_of(const Vectors *v, const JsonNode *node)
{
    double value;
    assert_true(json_number(&v->json, node, &value));
    return value;
}

static inline uint32_t hex_of(const Vectors *v, const JsonNode *node)
{
    char text[16];
    assert_int_equal(json_string(&v->json, node, text, sizeof text), 8);
    return (uint32_t)strtoul(text, NULL, 16);
}

static inline long integer_of(const Vectors *v, const JsonNode *node)
{
    int64_t value;
    assert_true(json_integer(&v->json, node, 0, INT32_MAX, &value));
    return (long)value;
}

/* The vectors' generator: numbers k·2^-23 in [0, 1). */
static inline double draw(uint32_t *state)
{
    *state = (*state * 1103515245u + 12345u) & 0x7fffffff;
    return (double)(*state >> 8) * 0x1p-23;
}

/* The figure that was recorded, to the digits that single precision leaves. */
static inline void must_be_near(double found, double wanted, double part,
                                const char *what)
{
    if (!(fabs(found - wanted) <= part * fabs(wanted)))
        fail_msg("%s: %.17g, wanted %.17g", what, found, wanted);
}

/* ||y - x|| / ||x|| */
static inline double relative_error(const float *y, const float *x, size_t n)
{
    return sqrt(nmse(y, x, n));
}

#endif
