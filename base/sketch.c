/* sketch.c: random signs, one bit each of a number that i picks. */
#include "sketch.h"

#include "random.h"

#include <math.h>
#include <string.h>

static const char digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

enum { MOST = 31 }; /* a character is -31 … 31 times the scale */

void sketch_add(Sketch *s, uint64_t i, double x)
{
    Random random = random_seeded(i);
    uint64_t signs = random_u64(&random);
    for (int k = 0; k < SKETCH; k++)
        s->at[k] += signs >> k & 1 ? x : -x;
}

void sketch_print(Text *t, const Sketch *s)
{
    char text[SKETCH];
    double most = 0;
    for (int k = 0; k < SKETCH; k++)
        most = fmax(most, fabs(s->at[k]));
    for (int k = 0; k < SKETCH; k++)
        text[k] = digits[MOST + (most > 0
                                     ? (int)lrint(s->at[k] / most * MOST)
                                     : 0)];
    text_printf(t, "%.3e ", most / MOST);
    text_add(t, text, SKETCH);
}

/* "1.234e+05 ": digits, as sketch_print writes them. */
static bool parse_scale(double *x, const char *text, size_t n)
{
    double value = 0, power = 1;
    if (n < 9 || text[1] != '.' || text[5] != 'e')
        return false;
    for (size_t i = 0; i < 5; i++)
        if (i != 1 && (text[i] < '0' || text[i] > '9'))
            return false;
        else if (i != 1)
            value = value * 10 + (text[i] - '0');
    int exponent = 0;
    for (size_t i = 7; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || exponent > 300)
            return false;
        exponent = exponent * 10 + (text[i] - '0');
    }
    for (int i = 0; i < exponent && i < 400; i++)
        power *= 10;
    *x = text[6] == '-' ? value / 1000 / power : value / 1000 * power;
    return text[6] == '-' || text[6] == '+';
}

bool sketch_parse(Sketch *s, const char *text, size_t n)
{
    const char *blank = memchr(text, ' ', n);
    double scale;
    if (blank == NULL || (size_t)(text + n - blank) != SKETCH + 1
        || !parse_scale(&scale, text, (size_t)(blank - text)))
        return false;
    for (int k = 0; k < SKETCH; k++) {
        const char *digit = strchr(digits, blank[1 + k]);
        if (digit == NULL || blank[1 + k] == 0)
            return false;
        s->at[k] = ((double)(digit - digits) - MOST) * scale;
    }
    return true;
}

double sketch_agreement(const Sketch *a, const Sketch *b)
{
    double product = 0, squares = 0;
    for (int k = 0; k < SKETCH; k++) {
        product += a->at[k] * b->at[k];
        squares += a->at[k] * a->at[k] + b->at[k] * b->at[k];
    }
    return squares > 0 ? 2 * product / squares : 0;
}
