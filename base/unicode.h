/* unicode.h: UTF-8, strictly, and the character classes that splitting text
 * into words needs.
 *
 * Classes are those of Unicode 16, as the regular expressions \p{L} … \s see
 * them: white space is 25 code points, U+0085 among them and U+FEFF not. */
#ifndef BASE_UNICODE_H
#define BASE_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    UNICODE_L = 1,      /* letters */
    UNICODE_M = 2,      /* marks */
    UNICODE_N = 4,      /* numbers: Nd, Nl, No */
    UNICODE_P = 8,      /* punctuation */
    UNICODE_S = 16,     /* symbols */
    UNICODE_SPACE = 32,
    UNICODE_ND = 64     /* decimal digits */
};

/* The classes of a code point, or'ed; 0 for one that has none. */
unsigned unicode_class(uint32_t code);

enum { UTF8_REPLACEMENT = 0xfffd };

/* Reads the character at s, n > 0 bytes long at most. Returns its length and
 * sets *code; or 0 where the n bytes begin a character that is not complete;
 * or -k where no character begins: the first k bytes are the longest start of
 * one (at least 1), what a decoder replaces by one U+FFFD. */
int utf8_decode(const char *s, size_t n, uint32_t *code);
/* Writes a code point below 0x110000; returns the number of bytes. */
size_t utf8_encode(uint32_t code, char out[4]);
/* Bytes before the first that is not part of valid UTF-8; n if none is. */
size_t utf8_valid(const char *s, size_t n);

/* Reads the character at s in text known to be valid and moves past it. */
static inline uint32_t utf8_next(const char **s)
{
    const unsigned char *p = (const unsigned char *)*s;
    if (p[0] < 0x80) {
        *s += 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *s += 2;
        return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    }
    if (p[0] < 0xf0) {
        *s += 3;
        return (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    }
    *s += 4;
    return (p[0] & 7u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6
         | (p[3] & 0x3fu);
}

#endif
