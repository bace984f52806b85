/* sha256.h: SHA-256, FIPS 180-4: says that a file is the one that is meant. */
#ifndef BASE_SHA256_H
#define BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t h[8];
    uint64_t bytes;              /* seen so far */
    unsigned char block[64];     /* the last ones, until there are 64 */
} Sha256;

Sha256 sha256_begin(void);
void sha256_add(Sha256 *s, const void *bytes, size_t n);
/* 64 hexadecimal digits and a zero byte; s is used up. */
void sha256_end(Sha256 *s, char hex[65]);

#endif
