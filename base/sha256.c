/* sha256.c: FIPS 180-4, a block of 64 bytes at a time. */
#include "sha256.h"

#include <string.h>

/* The first 32 bits behind the point of the cube roots of the first 64 primes:
 * FIPS 180-4, 4.2.2. */
static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

Sha256 sha256_begin(void)
{
    return (Sha256){.h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

static uint32_t turned(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

/* The message schedule, 6.2.2 step 1. */
static void schedule(uint32_t w[64], const unsigned char *block)
{
    for (size_t t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24
               | (uint32_t)block[4 * t + 1] << 16
               | (uint32_t)block[4 * t + 2] << 8 | block[4 * t + 3];
    for (size_t t = 16; t < 64; t++) {
        uint32_t a = w[t - 15], b = w[t - 2];
        w[t] = (turned(b, 17) ^ turned(b, 19) ^ b >> 10) + w[t - 7]
               + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[t - 16];
    }
}

/* Steps 2 to 4; v holds a … h. */
static void add_block(uint32_t h[8], const unsigned char *block)
{
    uint32_t w[64], v[8];
    schedule(w, block);
    memcpy(v, h, sizeof v);
    for (int t = 0; t < 64; t++) {
        uint32_t a = v[0], e = v[4];
        uint32_t t1 = v[7] + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25))
                      + ((e & v[5]) ^ (~e & v[6])) + K[t] + w[t];
        uint32_t t2 = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22))
                      + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        h[i] += v[i];
}

void sha256_add(Sha256 *s, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    while (n > 0) {
        size_t at = (size_t)(s->bytes % 64);
        size_t part = n < 64 - at ? n : 64 - at;
        memcpy(s->block + at, p, part);
        s->bytes += part;
        p += part;
        n -= part;
        if (at + part == 64)
            add_block(s->h, s->block);
    }
}

void sha256_end(Sha256 *s, char hex[65])
{
    static const unsigned char padding[64] = {0x80};
    uint64_t bits = s->bytes * 8;
    unsigned char length[8];
    size_t at = (size_t)(s->bytes % 64);
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(bits >> (56 - 8 * i));
    sha256_add(s, padding, at < 56 ? 56 - at : 120 - at);
    sha256_add(s, length, sizeof length);
    for (int i = 0; i < 64; i++)
        hex[i] = "0123456789abcdef"[s->h[i / 8] >> (28 - i % 8 * 4) & 15];
    hex[64] = '\0';
}
