/* sample.c: from logits to one index.
 *
 * 1. p = softmax((l - max l) / temperature).
 * 2. Where top_k or top_p limits: the candidates become a heap, the best on
 *    top: greater p, then lower index. They leave it in this order until
 *    top_k are out, or, where top_k keeps all, until their mass reaches
 *    top_p. A mass is summed in double, in this order.
 * 3. After a top_k, the fewest are kept whose mass reaches top_p of theirs.
 * 4. p is multiplied by 1/mass of what is kept, rounded to float. */
#include "sample.h"

#include "kernels.h"

#include <math.h>

size_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

typedef struct {
    uint32_t *order;
    float *p;
    size_t n;
} Heap;

static int better(const Heap *h, size_t a, size_t b)
{
    if (h->p[a] > h->p[b] || h->p[a] < h->p[b])
        return h->p[a] > h->p[b];
    return h->order[a] < h->order[b];
}

static void swap(Heap *h, size_t a, size_t b)
{
    uint32_t o = h->order[a];
    float p = h->p[a];
    h->order[a] = h->order[b];
    h->order[b] = o;
    h->p[a] = h->p[b];
    h->p[b] = p;
}

/* Lets entry i sink until neither child is better. */
static void sink(Heap *h, size_t i)
{
    for (size_t child = 2 * i + 1; child < h->n; child = 2 * i + 1) {
        if (child + 1 < h->n && better(h, child + 1, child))
            child++;
        if (!better(h, child, i))
            return;
        swap(h, i, child);
        i = child;
    }
}

/* Moves the best entry behind the shrunken heap; returns its p. */
static float pop(Heap *h)
{
    swap(h, 0, --h->n);
    sink(h, 0);
    return h->p[h->n];
}

/* How many of p[0..n) it takes for their sum to reach the target. */
static size_t reaching(const float *p, size_t n, double target, double *mass)
{
    size_t i = 0;
    for (*mass = 0; i < n && (i == 0 || *mass < target); i++)
        *mass += (double)p[i];
    return i;
}

/* Sorts the best to the front: k of them, or until their mass reaches enough;
 * returns how many. */
static size_t rank(uint32_t *order, float *p, size_t n, size_t k,
                   double enough)
{
    Heap all = {order, p, n}, h = all;
    double mass = 0;
    for (size_t i = n / 2; i-- > 0;)
        sink(&h, i);
    while (n - h.n < k && (h.n == n || mass < enough))
        mass += (double)pop(&h);
    for (size_t i = 0; i < n / 2; i++)
        swap(&all, i, n - 1 - i);
    return n - h.n;
}

size_t sample_distribution(const Sampler *s, const float *logits, size_t n,
                           uint32_t *order, float *p)
{
    size_t best = argmax(logits, n), kept = n;
    int some = s->top_k != 0 && s->top_k < n;
    double top_p = s->top_p < 1 ? (double)s->top_p : INFINITY, mass;
    if (s->temperature == 0) {
        order[0] = (uint32_t)best;
        p[0] = 1;
        return 1;
    }
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
        p[i] = (logits[i] - logits[best]) / s->temperature;
    }
    softmax(p, p, n);
    if (some || s->top_p < 1)
        kept = rank(order, p, n, some ? s->top_k : n, some ? INFINITY : top_p);
    reaching(p, kept, INFINITY, &mass);
    if (some)
        kept = reaching(p, kept, top_p * mass, &mass);
    scale(p, p, (float)(1 / mass), kept);
    return kept;
}

uint32_t sample_draw(const uint32_t *order, const float *p, size_t kept,
                     Random *r)
{
    double u = (double)(random_u64(r) >> 11) * 0x1p-53, mass;
    /* The first whose running sum exceeds u: u = 0 must skip p = 0. */
    size_t i = 0;
    for (mass = (double)p[0]; i + 1 < kept && mass <= u; i++)
        mass += (double)p[i + 1];
    return order[i];
}
