/* random.h: a documented generator, the same numbers on every machine.
 *
 * SplitMix64: state += 0x9e3779b97f4a7c15, then the murmur-like finish. The
 * n-th number depends on seed and n alone, so a stream can be entered
 * anywhere. */
#ifndef BASE_RANDOM_H
#define BASE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t state;
} Random;

Random random_seeded(uint64_t seed);
uint64_t random_u64(Random *r);
float random_uniform(Random *r);  /* 24 bits: k·2^-24, in [0, 1) */
/* n draws of a normal distribution: mean 0, standard deviation std, none
 * beyond 6.8 std. Each takes one 64-bit number. */
void random_normal(Random *r, float *out, size_t n, float std);

#endif
