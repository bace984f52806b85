/* unicode.c: a binary search among the runs of equal class, and UTF-8. */
#include "unicode.h"

#include "unicode_tables.h"

#include <string.h>

enum {
    RUNS = sizeof class_run / sizeof class_run[0],
    PAGES = sizeof page_run / sizeof page_run[0] - 1
};

/* The last run in [low, high] that begins at or before the code point. */
static size_t run_of(uint32_t code, size_t low, size_t high)
{
    while (low < high) {
        size_t middle = (low + high + 1) / 2;
        if (class_run[middle] >> 8 <= code)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

unsigned unicode_class(uint32_t code)
{
    size_t page = code >> 8;
    if (code < 0x80)
        return ascii_class[code];
    if (page < PAGES)
        return class_run[run_of(code, page_run[page], page_run[page + 1])]
             & 0xff;
    return class_run[run_of(code, page_run[PAGES], RUNS - 1)] & 0xff;
}

/* The range of the byte after a lead byte: it excludes overlong forms,
 * surrogates and what lies beyond U+10FFFF. */
static bool second_fits(unsigned lead, unsigned second)
{
    unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    return second >= low && second <= high;
}

int utf8_decode(const char *s, size_t n, uint32_t *code)
{
    const unsigned char *p = (const unsigned char *)s;
    unsigned lead = p[0];
    int size = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2
             : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (size == 0)
        return -1;
    uint32_t c = size == 1 ? lead : lead & (0x7fu >> size);
    for (int i = 1; i < size; i++) {
        if ((size_t)i == n)
            return 0;
        if (i == 1 ? !second_fits(lead, p[1]) : (p[i] & 0xc0) != 0x80)
            return -i;
        c = c << 6 | (p[i] & 0x3fu);
    }
    *code = c;
    return size;
}

size_t utf8_encode(uint32_t code, char out[4])
{
    int tails = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char lead[4] = { 0, 0xc0, 0xe0, 0xf0 };
    for (int i = tails; i > 0; i--) {
        out[i] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    out[0] = (char)(lead[tails] | code);
    return (size_t)tails + 1;
}

static bool eight_ascii(const char *s)
{
    uint64_t word;
    memcpy(&word, s, 8);
    return (word & 0x8080808080808080) == 0;
}

size_t utf8_valid(const char *s, size_t n)
{
    size_t i = 0;
    uint32_t code;
    while (i < n) {
        if (n - i >= 8 && eight_ascii(s + i)) {
            i += 8;
            continue;
        }
        int size = utf8_decode(s + i, n - i, &code);
        if (size <= 0)
            return i;
        i += (size_t)size;
    }
    return n;
}
