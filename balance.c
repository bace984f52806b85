/* balance.c: even loads of experts -- V2 §2.2.3-2.2.4, V3 §2.1.2, §4.5.3
 *
 * Three means to one end. Losses on the gate's scores: V2's for experts,
 * devices and what devices receive, V3's for a sequence (balance_losses). A
 * bias on the choice, moved after each step by the load of the whole of it
 * (balance_count, balance_update_bias). Leaving out what exceeds a device's
 * budget (drop_tokens).
 *
 * Every loss is Σ_g f_g Σ_{i in g} P_i over groups g of neighbouring experts:
 * f counts, so it has no gradient; P is a mean of scores. A group is an expert
 * or a device; device g holds experts g N/D … (g+1) N/D - 1.
 *
 * Order of sums, all in double, each from 0: over tokens ascending, over
 * experts ascending, over sequences ascending. Z, the sum of a token's scores,
 * has 1e-20 added at its end, as the gate's sum has. A sequence alone gives
 * the bits it gives among many.
 *
 * Not here: the backward pass of the gate, from dL/ds on (moe.c); what a
 * dropped pair does; the coefficients of a step (schedule.c, settings.c). */
#include "deepseek.h"

#include <stdlib.h>
#include <string.h>

/* One sequence of T tokens, and what the losses keep of it. */
typedef struct {
    size_t N, K, T;
    const float *scores;      /* (T, N) */
    const int32_t *topk_ids;  /* (T, K) */
    double *f;                /* (N)  the share of tokens, 1 if even */
    double *P;                /* (N)  the mean score */
    double *group;            /* (D)  f of devices */
    double *dP;               /* (N)  dL/dP_i */
} Sequence;

/* Counts become 1 where each of `groups` gets as much, `each` a token. */
static void count_to_share(double *f, size_t groups, size_t each, size_t T)
{
    double factor = (double)groups / ((double)each * (double)T);
    for (size_t g = 0; g < groups; g++)
        f[g] = f[g] * factor;
}

/* V2 (24): f_i = N/(K T) · how many tokens select expert i */
static void share_of_picks(Sequence *s)
{
    memset(s->f, 0, s->N * sizeof *s->f);
    for (size_t i = 0; i < s->T * s->K; i++)
        s->f[s->topk_ids[i]] += 1;
    count_to_share(s->f, s->N, s->K, s->T);
}

/* From the greatest score down, the lowest index first among equals. */
static bool comes_after(const float *score, size_t i, size_t last)
{
    return i > last ? score[i] <= score[last] : score[i] < score[last];
}

/* The expert that comes next after `last`; N: the first. N where none is left,
 * which only a NaN can bring about. */
static size_t next_best(const float *score, size_t N, size_t last)
{
    size_t best = N;
    for (size_t i = 0; i < N; i++)
        if ((last == N || comes_after(score, i, last))
            && (best == N || score[i] > score[best]))
            best = i;
    return best;
}

/* V3 (18): f_i = N/(K T) · how many tokens have s_i among their K greatest,
 * without bias and without groups */
static void share_of_affinity(Sequence *s)
{
    memset(s->f, 0, s->N * sizeof *s->f);
    for (size_t t = 0; t < s->T; t++) {
        size_t best = s->N;
        for (size_t k = 0; k < s->K; k++) {
            best = next_best(s->scores + t * s->N, s->N, best);
            if (best == s->N)
                break;
            s->f[best] += 1;
        }
    }
    count_to_share(s->f, s->N, s->K, s->T);
}

/* V2 (25): P_i = 1/T Σ_t s_{i,t} */
static void mean_scores(Sequence *s)
{
    memset(s->P, 0, s->N * sizeof *s->P);
    for (size_t t = 0; t < s->T; t++)
        for (size_t i = 0; i < s->N; i++)
            s->P[i] += (double)s->scores[t * s->N + i];
    for (size_t i = 0; i < s->N; i++)
        s->P[i] /= (double)s->T;
}

/* V3 (19): s'_i = s_i / Z, Z = Σ_j s_j */
static double row_total(const float *score, size_t N)
{
    double total = 0;
    for (size_t i = 0; i < N; i++)
        total += (double)score[i];
    return total + 1e-20;
}

/* V3 (20): P_i = 1/T Σ_t s'_{i,t} */
static void mean_shares(Sequence *s)
{
    memset(s->P, 0, s->N * sizeof *s->P);
    for (size_t t = 0; t < s->T; t++) {
        const float *score = s->scores + t * s->N;
        double total = row_total(score, s->N);
        for (size_t i = 0; i < s->N; i++)
            s->P[i] += (double)score[i] / total;
    }
    for (size_t i = 0; i < s->N; i++)
        s->P[i] /= (double)s->T;
}

/* V2 (27): f'_g, the mean of f_j over the experts of device g */
static void mean_of_devices(Sequence *s, size_t devices)
{
    size_t n = s->N / devices;
    for (size_t g = 0; g < devices; g++) {
        double total = 0;
        for (size_t j = g * n; j < (g + 1) * n; j++)
            total += s->f[j];
        s->group[g] = total / (double)n;
    }
}

static bool sent_to(const int32_t *ids, size_t K, size_t first, size_t n)
{
    for (size_t k = 0; k < K; k++)
        if ((size_t)ids[k] >= first && (size_t)ids[k] < first + n)
            return true;
    return false;
}

/* V2 (30): f''_g = D/(M T) · how many tokens are sent to device g: those that
 * picked any of its experts */
static void share_of_devices(Sequence *s, size_t devices, size_t limit)
{
    size_t n = s->N / devices;
    for (size_t g = 0; g < devices; g++) {
        s->group[g] = 0;
        for (size_t t = 0; t < s->T; t++)
            s->group[g] += sent_to(s->topk_ids + t * s->K, s->K, g * n, n);
    }
    count_to_share(s->group, devices, limit, s->T);
}

/* alpha Σ_g f_g P_g, where P_g = Σ P_j over the experts of group g; adds its
 * gradient to dP. */
static double even_out(Sequence *s, double alpha, const double *f,
                       size_t groups)
{
    size_t n = s->N / groups;
    double loss = 0;
    for (size_t g = 0; g < groups; g++) {
        double P = 0;
        for (size_t j = g * n; j < (g + 1) * n; j++) {
            P += s->P[j];
            s->dP[j] += alpha * f[g];
        }
        loss += f[g] * P;
    }
    return alpha * loss;
}

/* Of V2 alone: the losses that have a coefficient, and dL/dP in dP. */
static void v2_losses(double *losses, Sequence *s, const Balance *b,
                      double scale)
{
    const double *alpha = b->alpha;
    size_t D = b->devices;
    memset(s->dP, 0, s->N * sizeof *s->dP);
    share_of_picks(s);
    mean_scores(s);
    if (alpha[BALANCE_EXPERT] > 0) /* V2 (23) */
        losses[BALANCE_EXPERT] +=
            scale * even_out(s, alpha[BALANCE_EXPERT], s->f, s->N);
    if (alpha[BALANCE_DEVICE] > 0) {
        mean_of_devices(s, D);
        losses[BALANCE_DEVICE] += /* V2 (26), (28) */
            scale * even_out(s, alpha[BALANCE_DEVICE], s->group, D);
    }
    if (alpha[BALANCE_COMMUNICATION] > 0) {
        share_of_devices(s, D, b->device_limit);
        losses[BALANCE_COMMUNICATION] += /* V2 (29), (31) */
            scale * even_out(s, alpha[BALANCE_COMMUNICATION], s->group, D);
    }
}

/* dL/ds_{i,t} = dL/dP_i / T */
static void v2_backward(float *dscores, const Sequence *s, double scale)
{
    double factor = scale / (double)s->T;
    for (size_t t = 0; t < s->T; t++)
        for (size_t i = 0; i < s->N; i++)
            dscores[t * s->N + i] += (float)(s->dP[i] * factor);
}

static void v3_loss(double *losses, Sequence *s, const Balance *b,
                    double scale)
{
    memset(s->dP, 0, s->N * sizeof *s->dP);
    if (b->count_picks)
        share_of_picks(s);
    else
        share_of_affinity(s);
    mean_shares(s);
    losses[BALANCE_SEQUENCE] += /* V3 (17) */
        scale * even_out(s, b->alpha[BALANCE_SEQUENCE], s->f, s->N);
}

/* Through s'_i = s_i/Z:
 * dL/ds_{i,t} = (dL/dP_i - Σ_j dL/dP_j s'_{j,t}) / (T Z) */
static void v3_backward(float *dscores, const Sequence *s, double scale)
{
    for (size_t t = 0; t < s->T; t++) {
        const float *score = s->scores + t * s->N;
        double total = row_total(score, s->N), mean = 0;
        double factor = scale / ((double)s->T * total);
        for (size_t j = 0; j < s->N; j++)
            mean += s->dP[j] * ((double)score[j] / total);
        for (size_t i = 0; i < s->N; i++)
            dscores[t * s->N + i] += (float)((s->dP[i] - mean) * factor);
    }
}

static void sequence_losses(double *losses, float *dscores, Sequence *s,
                            const Balance *b, double scale)
{
    if (b->alpha[BALANCE_EXPERT] > 0 || b->alpha[BALANCE_DEVICE] > 0
        || b->alpha[BALANCE_COMMUNICATION] > 0) {
        v2_losses(losses, s, b, scale);
        if (dscores)
            v2_backward(dscores, s, scale);
    }
    if (b->alpha[BALANCE_SEQUENCE] > 0) {
        v3_loss(losses, s, b, scale);
        if (dscores)
            v3_backward(dscores, s, scale);
    }
}

void balance_losses(double *losses, float *dscores, const Routes *r,
                    const Balance *b, double scale, double *work)
{
    /* V3 §4.5.3: the batch as if it were one sequence. */
    size_t B = b->batch ? 1 : r->B, T = b->batch ? r->B * r->T : r->T;
    size_t N = r->N;
    double weight = b->batch ? scale * (double)r->B : scale;
    for (size_t i = 0; i < B && T > 0; i++) {
        Sequence s = {.N = N, .K = r->K, .T = T, .f = work, .P = work + N,
                      .group = work + 2 * N, .dP = work + 3 * N,
                      .scores = r->scores + i * T * N,
                      .topk_ids = r->topk_ids + i * T * r->K};
        sequence_losses(losses, dscores ? dscores + i * T * N : NULL, &s, b,
                        weight);
    }
}

void balance_count(uint64_t *load, const int32_t *topk_ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        load[topk_ids[i]]++;
}

static uint64_t total_load(const uint64_t *load, size_t N)
{
    uint64_t total = 0;
    for (size_t i = 0; i < N; i++)
        total += load[i];
    return total;
}

void balance_update_bias(float *bias, const uint64_t *load, size_t N,
                         double gamma)
{
    uint64_t total = total_load(load, N);
    for (size_t i = 0; i < N; i++) {
        if (N * load[i] < total)
            bias[i] += (float)gamma;
        else if (N * load[i] > total)
            bias[i] -= (float)gamma;
    }
}

double balance_max_violation(const uint64_t *load, size_t N)
{
    uint64_t total = total_load(load, N), most = 0;
    for (size_t i = 0; i < N; i++)
        most = load[i] > most ? load[i] : most;
    return total ? (double)(N * most) / (double)total - 1 : 0;
}

bool drop_exempt(uint64_t seed, uint64_t sequence, double rate)
{
    Random r = random_seeded(seed);
    random_u64(&r); /* the first is that of data_shuffled */
    r = random_seeded(random_u64(&r) + sequence);
    return (double)(random_u64(&r) >> 11) * 0x1p-53 < rate;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Keys of the pairs of experts first … first+n-1 that may be dropped, those
 * that go first lowest: by the score, whose bits rise with it since it is not
 * negative, then by the place from the last on. *all: the exempt ones too. */
static size_t droppable(uint64_t *keys, size_t *all, const Routes *r,
                        const bool *exempt, size_t first, size_t n)
{
    size_t pairs = r->B * r->T * r->K, count = 0;
    *all = 0;
    for (size_t i = 0; i < pairs; i++) {
        size_t row = i / r->K, id = (size_t)r->topk_ids[i];
        if (id < first || id >= first + n)
            continue;
        ++*all;
        if (!exempt || !exempt[row / r->T])
            keys[count++] = (uint64_t)f32_bits(r->scores[row * r->N + id])
                            << 32 | (UINT32_MAX - (uint32_t)i);
    }
    return count;
}

size_t drop_tokens(int32_t *dropped, const Routes *r, const bool *exempt,
                   double capacity, size_t devices, uint64_t *work)
{
    size_t pairs = r->B * r->T * r->K, n = r->N / devices, drops = 0;
    size_t budget = (size_t)(capacity * (double)pairs / (double)devices);
    memset(dropped, 0, pairs * sizeof *dropped);
    for (size_t g = 0; g < devices; g++) {
        size_t all, count = droppable(work, &all, r, exempt, g * n, n);
        size_t excess = all > budget ? all - budget : 0;
        excess = excess < count ? excess : count;
        qsort(work, count, sizeof *work, ascending);
        for (size_t i = 0; i < excess; i++)
            dropped[UINT32_MAX - (uint32_t)work[i]] = 1;
        drops += excess;
    }
    return drops;
}
