/* hash.h: FNV-1a, 64 bits: tells texts and files apart, keeps out nobody. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_START UINT64_C(0xcbf29ce484222325)

/* Goes on from the hash of what stands before, HASH_START: nothing. */
static inline uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* Eight bytes, the lowest first. */
static inline uint64_t hash_number(uint64_t hash, uint64_t x)
{
    for (int i = 0; i < 8; i++) {
        unsigned char byte = (unsigned char)(x >> 8 * i);
        hash = hash_bytes(hash, &byte, 1);
    }
    return hash;
}

#endif
