/* sample.h: from logits to one index. */
#ifndef BASE_SAMPLE_H
#define BASE_SAMPLE_H

#include "error.h"
#include "random.h"

typedef struct {
    float temperature;  /* 0: the greatest logit, the lowest index on ties */
    size_t top_k;       /* keep the k most probable; 0: all */
    float top_p;        /* keep the fewest whose sum reaches p; 1: all */
} Sampler;

/* The distribution that sampling uses: p = softmax(logits / temperature),
 * then top_k, then top_p of what that leaves, renormalised; temperature 0 is
 * one-hot. order (n) receives the indices kept, p (n) their probabilities;
 * returns how many. Where top_k or top_p limits, they are sorted by
 * probability descending, ties to the lowest index; else all stay in the order
 * of the logits. Logits are finite, n >= 1. */
size_t sample_distribution(const Sampler *s, const float *logits, size_t n,
                           uint32_t *order, float *p);
size_t argmax(const float *x, size_t n);  /* lowest index on ties */
/* One draw: the first whose running sum of p, in double, exceeds a uniform
 * number of 53 bits. */
uint32_t sample_draw(const uint32_t *order, const float *p, size_t kept,
                     Random *r);

#endif
