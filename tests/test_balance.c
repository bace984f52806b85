/* test_balance.c: losses, bias and dropping that even out the load.
 *
 * Vectors: a hand example of four tokens, and a router alone whose experts
 * differ in popularity, 300 steps at four speeds of the bias, both by an
 * independent program in double (loads and MaxVio are exact). Elsewhere the
 * equations in double, written down as they stand, and central differences. */
#include "support.h"

#include "base/maths.h"

enum { WORK = 4 };   /* doubles an expert, of balance_losses */

static float affinity(const Routes *r, size_t row, size_t i)
{
    return r->scores[row * r->N + i];
}

static bool picked(const Routes *r, size_t row, size_t i)
{
    bool found = false;
    for (size_t k = 0; k < r->K; k++)
        found = found || (size_t)r->topk_ids[row * r->K + k] == i;
    return found;
}

/* Among the K greatest scores: fewer than K stand before it. */
static bool among_greatest(const Routes *r, size_t row, size_t i)
{
    float s = affinity(r, row, i);
    size_t before = 0;
    for (size_t j = 0; j < r->N; j++) {
        float other = affinity(r, row, j);
        before += other > s || (other == s && j < i);
    }
    return before < r->K;
}

/* The equations ---------------------------------------------------------- */

/* One sequence: rows first … first+T-1. */
typedef struct {
    const Routes *r;
    const Balance *b;
    size_t first, T;
} Rows;

/* V2 (24), V3 (18) */
static double f(const Rows *s, size_t i, bool greatest)
{
    double count = 0;
    for (size_t t = s->first; t < s->first + s->T; t++)
        count += greatest ? among_greatest(s->r, t, i) : picked(s->r, t, i);
    return (double)s->r->N / (double)(s->r->K * s->T) * count;
}

/* V2 (25), V3 (19)-(20) */
static double P(const Rows *s, size_t i, bool share)
{
    double mean = 0;
    for (size_t t = s->first; t < s->first + s->T; t++) {
        double total = 0;
        for (size_t j = 0; j < s->r->N; j++)
            total += (double)affinity(s->r, t, j);
        mean += (double)affinity(s->r, t, i) / (share ? total : 1);
    }
    return mean / (double)s->T;
}

/* V2 (27)-(28), (30)-(31) of device g: the product of both. */
static double device(const Rows *s, size_t g, bool communication)
{
    size_t n = s->r->N / s->b->devices;
    double sum_f = 0, sum_P = 0, sent = 0;
    for (size_t i = g * n; i < (g + 1) * n; i++) {
        sum_f += f(s, i, false);
        sum_P += P(s, i, false);
    }
    for (size_t t = s->first; t < s->first + s->T; t++) {
        bool any = false;
        for (size_t i = g * n; i < (g + 1) * n; i++)
            any = any || picked(s->r, t, i);
        sent += any;
    }
    if (communication)
        return (double)s->b->devices
               / (double)(s->b->device_limit * s->T) * sent * sum_P;
    return sum_f / (double)n * sum_P;
}

/* V2 (23), (26), (29), V3 (17) */
static double by_definition(const Rows *s, BalanceLoss kind)
{
    bool v3 = kind == BALANCE_SEQUENCE, v2 = kind == BALANCE_EXPERT;
    double loss = 0;
    for (size_t i = 0; i < s->r->N && (v2 || v3); i++)
        loss += f(s, i, v3 && !s->b->count_picks) * P(s, i, v3);
    for (size_t g = 0; g < s->b->devices && !v2 && !v3; g++)
        loss += device(s, g, kind == BALANCE_COMMUNICATION);
    return s->b->alpha[kind] * loss;
}

/* Random routes ---------------------------------------------------------- */

/* Scores that softmax or sigmoid gave, and picks that no score explains, so
 * that counting them is not counting the greatest. To be freed. */
static Routes random_routes(Random *r, size_t N, size_t K, size_t B,
                            size_t T, bool sum_to_one)
{
    float *scores = test_alloc(B * T * N, sizeof *scores);
    int32_t *ids = test_alloc(B * T * K, sizeof *ids);
    random_fill(r, scores, B * T * N);
    for (size_t t = 0; t < B * T; t++) {
        float *row = scores + t * N;
        scale(row, row, 3, N);
        if (sum_to_one)
            softmax(row, row, N);
        else
            sigmoid(row, row, N);
        size_t first = random_between(r, 0, N - 1), step = N;
        while (step % 2 == 0 || step % 3 == 0 || step % N == 0)
            step = random_between(r, 1, 5 * N);
        for (size_t k = 0; k < K; k++)
            ids[t * K + k] = (int32_t)((first + k * step) % N);
    }
    return (Routes){.N = N, .K = K, .B = B, .T = T, .scores = scores,
                    .topk_ids = ids};
}

static void routes_free(Routes *r)
{
    free((void *)(uintptr_t)r->scores);
    free((void *)(uintptr_t)r->topk_ids);
}

static const Balance all_losses = {.alpha = {0.003, 0.05, 0.02, 0.7},
                                   .devices = 4, .device_limit = 2};

static double must_be_near(double found, double wanted, double tolerance,
                           const char *what, size_t at)
{
    double error = fabs(found - wanted);
    if (!(error <= tolerance))
        fail_msg("%s %zu: %.17g is not %.17g, off by %g of %g", what, at,
                 found, wanted, error, tolerance);
    return error;
}

/* Sums of up to T N terms in another order: T N rounding errors at most, and
 * a few for the products. */
static void test_equations(void **state)
{
    (void)state;
    Random random = test_random();
    for (int round = 0; round < 12; round++) {
        size_t N = 12 * random_between(&random, 1, 2);
        size_t B = random_between(&random, 1, 4);
        size_t T = random_between(&random, 1, 9);
        Routes r = random_routes(&random, N, 5, B, T, round % 2 == 0);
        Balance b = all_losses;
        double found[BALANCE_LOSSES] = {0}, *work = test_alloc(WORK * N, 8);
        b.count_picks = round % 3 == 0;
        b.batch = round % 4 == 0;
        balance_losses(found, NULL, &r, &b, 1 / (double)B, work);
        for (int kind = 0; kind < BALANCE_LOSSES; kind++) {
            double wanted = 0;
            for (size_t i = 0; i < (b.batch ? 1 : B); i++) {
                Rows s = {&r, &b, i * T, b.batch ? B * T : T};
                wanted += by_definition(&s, (BalanceLoss)kind);
            }
            wanted /= b.batch ? 1 : (double)B;
            must_be_near(found[kind], wanted,
                         wanted * (double)(T * B * N + 20) * 0x1p-53, "loss",
                         (size_t)kind);
        }
        free(work);
        routes_free(&r);
    }
}

/* Four tokens of four experts on two devices, two picks each: by hand. */
static void test_by_hand(void **state)
{
    (void)state;
    static const float scores[] = {0.5f, 0.25f, 0.125f, 0.125f,
                                   0.5f, 0.125f, 0.25f, 0.125f,
                                   0.25f, 0.5f, 0.125f, 0.125f,
                                   0.125f, 0.125f, 0.25f, 0.5f};
    static const int32_t ids[] = {0, 1, 0, 2, 1, 0, 3, 2};
    Routes r = {4, 2, 1, 4, scores, ids};
    Balance b = {.alpha = {1, 1, 1, 1}, .devices = 2, .device_limit = 1};
    double loss[BALANCE_LOSSES] = {0}, work[WORK * 4];
    balance_losses(loss, NULL, &r, &b, 1, work);
    /* f = (3, 2, 2, 1)/2, P = (11, 8, 6, 7)/32; f' = (5, 3)/4,
     * P' = (19, 13)/32; f'' = (3, 2)/2. */
    assert_true(loss[BALANCE_EXPERT] == (33 + 16 + 12 + 7) / 64.0);
    assert_true(loss[BALANCE_DEVICE] == (5 * 19 + 3 * 13) / 128.0);
    assert_true(loss[BALANCE_COMMUNICATION] == (3 * 19 + 2 * 13) / 64.0);
    assert_true(loss[BALANCE_SEQUENCE] == loss[BALANCE_EXPERT]);
}

/* V2 (30) as this program reads it, the devices of a token's picks, and as the
 * M devices that it was limited to, which are had as one pick of each. Of 6
 * experts on 3 devices K = 2 are picked from M = 2 devices. By the maximum of
 * their scores all four tokens are limited to devices 0 and 1, and all but the
 * second pick both experts of one of them. P'' = (15, 12, 5)/32; the first
 * reading has f'' = (9, 6, 0)/8, the second (12, 12, 0)/8. */
static void test_what_is_sent(void **state)
{
    (void)state;
    static const float scores[] = {
        0.375f, 0.3125f, 0.125f, 0.0625f, 0.09375f, 0.03125f,
        0.375f, 0.0625f, 0.3125f, 0.125f, 0.09375f, 0.03125f,
        0.125f, 0.0625f, 0.375f, 0.3125f, 0.09375f, 0.03125f,
        0.3125f, 0.25f, 0.03125f, 0.15625f, 0.125f, 0.125f};
    static const int32_t picks[] = {0, 1, 0, 2, 2, 3, 0, 1};
    static const int32_t limits[] = {0, 2, 0, 2, 0, 2, 0, 2};
    Routes r = {6, 2, 1, 4, scores, picks};
    Balance b = {.alpha = {[BALANCE_COMMUNICATION] = 1}, .devices = 3,
                 .device_limit = 2};
    double picked[BALANCE_LOSSES] = {0}, limited[BALANCE_LOSSES] = {0};
    double work[WORK * 6];
    balance_losses(picked, NULL, &r, &b, 1, work);
    r.topk_ids = limits;
    balance_losses(limited, NULL, &r, &b, 1, work);
    assert_true(picked[BALANCE_COMMUNICATION] == (9 * 15 + 6 * 12) / 256.0);
    assert_true(limited[BALANCE_COMMUNICATION] == 12 * (15 + 12) / 256.0);
}

/* With an even load every f is 1, and the loss its coefficient; f'' is 1 where
 * every token uses exactly M devices. */
static void test_even_load(void **state)
{
    (void)state;
    float scores[8 * 8];
    int32_t ids[8 * 2];
    for (size_t i = 0; i < 64; i++)
        scores[i] = 0.125f;
    for (int32_t t = 0; t < 8; t++) {
        ids[2 * t] = t;
        ids[2 * t + 1] = (t + 2) % 8;   /* always another device */
    }
    Routes r = {8, 2, 1, 8, scores, ids};
    Balance b = all_losses;
    double loss[BALANCE_LOSSES] = {0}, work[WORK * 8];
    float dscores[64] = {0};
    b.count_picks = true;
    balance_losses(loss, dscores, &r, &b, 0.5, work);
    for (int kind = 0; kind < BALANCE_LOSSES; kind++)
        must_be_near(loss[kind], b.alpha[kind] / 2, 1e-15, "loss",
                     (size_t)kind);
    for (size_t i = 1; i < 64; i++)   /* nothing to gain between experts */
        assert_true(dscores[i] == dscores[0]);
}

/* Gradients -------------------------------------------------------------- */

/* A score a sixteenth apart from every other of its row, so that a step of
 * 2^-9 changes no order; all exact in F32. */
static Routes spaced_routes(Random *random, size_t N, size_t K, size_t B,
                            size_t T)
{
    Routes r = random_routes(random, N, K, B, T, false);
    float *scores = (float *)(uintptr_t)r.scores;
    for (size_t t = 0; t < B * T; t++)
        for (size_t i = 0, k; i < N; i++) {
            k = random_between(random, 0, i);
            scores[t * N + i] = scores[t * N + k];
            scores[t * N + k] = (float)(i + 1) / 16;
        }
    return r;
}

static double loss_of(const Routes *r, const Balance *b, double *work)
{
    double loss[BALANCE_LOSSES] = {0}, total = 0;
    balance_losses(loss, NULL, r, b, 0.25, work);
    for (int kind = 0; kind < BALANCE_LOSSES; kind++)
        total += loss[kind];
    return total;
}

/* The quotient (L(s+h) - L(s-h))/2h is off by
 * - h²/6 L''': V2's losses are linear in s; V3's is α/T (f_k + (A - f_k C)/Z)
 *   as a function of one score, |A - f_k C| <= max f · Z, so
 *   |L'''| <= 6 α/T max f / Z³, with Z the least that it can be, Z - h;
 * - the rounding of L, at most (T N + 20) 2^-53 L each, over h;
 * and the gradient is rounded to F32 once a loss: 2^-24 of it. */
static void check_gradient(const Routes *r, const Balance *b)
{
    size_t n = r->B * r->T * r->N;
    const double h = 0x1p-9;
    double *work = test_alloc(WORK * r->N, 8), L = loss_of(r, b, work);
    double none[BALANCE_LOSSES] = {0};
    float *ds = test_alloc(n, 4), *s = (float *)(uintptr_t)r->scores;
    size_t T = b->batch ? r->B * r->T : r->T;
    double part = (b->batch ? (double)r->B : 1) * 0.25 / (double)T;
    balance_losses(none, ds, r, b, 0.25, work);
    for (size_t i = 0; i < n; i++) {
        double Z = 0, slope, max_f = (double)r->N / (double)r->K, g;
        float at = s[i];
        for (size_t j = 0; j < r->N; j++)
            Z += (double)s[i / r->N * r->N + j];
        s[i] = at + (float)h;
        slope = loss_of(r, b, work);
        s[i] = at - (float)h;
        slope = (slope - loss_of(r, b, work)) / (2 * h);
        s[i] = at;
        g = (double)ds[i];
        must_be_near(g, slope,
                     b->alpha[BALANCE_SEQUENCE] * part * max_f * h * h
                             / ((Z - h) * (Z - h) * (Z - h))
                         + (double)(T * r->N + 20) * 0x1p-53 * L / h
                         + (fabs(g) + part * max_f) * 0x1p-23,
                     "gradient", i);
    }
    free(work);
    free(ds);
}

static void test_gradients(void **state)
{
    (void)state;
    Random random = test_random();
    for (int kind = 0; kind < BALANCE_LOSSES; kind++)
        for (int variant = 0; variant < 4; variant++) {
            Routes r = spaced_routes(&random, 12, 5, 2, 3);
            Balance b = {.devices = 4, .device_limit = 2};
            b.alpha[kind] = 1;
            b.count_picks = variant & 1;
            b.batch = variant & 2;
            check_gradient(&r, &b);
            routes_free(&r);
        }
}

/* All at once: the gradients add up, and they are added to what is there. */
static void test_gradients_add(void **state)
{
    (void)state;
    Random random = test_random();
    Routes r = spaced_routes(&random, 12, 5, 2, 3);
    float each[72] = {0}, together[72];
    double loss[BALANCE_LOSSES] = {0}, work[WORK * 12], before;
    check_gradient(&r, &all_losses);
    for (size_t i = 0; i < 72; i++)
        together[i] = each[i] = (float)i;
    for (int kind = 0; kind < BALANCE_LOSSES; kind++) {
        Balance b = {.devices = 4, .device_limit = 2};
        b.alpha[kind] = all_losses.alpha[kind];
        balance_losses(loss, each, &r, &b, 1, work);
    }
    before = loss[BALANCE_DEVICE];
    balance_losses(loss, together, &r, &all_losses, 1, work);
    must_be_near(loss[BALANCE_DEVICE], 2 * before, before * 0x1p-50, "loss",
                 BALANCE_DEVICE);
    for (size_t i = 0; i < 72; i++)
        must_be_near((double)together[i], (double)each[i], 72 * 0x1p-22,
                     "gradient", i);
    routes_free(&r);
}

/* A sequence's gradient is its own, and losses are added by sequences: four
 * at once or one by one are the same bits. */
static void test_accumulation(void **state)
{
    (void)state;
    Random random = test_random();
    Routes r = random_routes(&random, 24, 5, 4, 7, false), one = r;
    float *whole = test_alloc(4 * 7 * 24, 4), *parts = test_alloc(672, 4);
    double loss[BALANCE_LOSSES] = {0}, sum_of[BALANCE_LOSSES] = {0};
    double work[WORK * 24];
    balance_losses(loss, whole, &r, &all_losses, 0.25, work);
    one.B = 1;
    for (size_t i = 0; i < 4; i++) {
        one.scores = r.scores + i * 7 * 24;
        one.topk_ids = r.topk_ids + i * 7 * 5;
        balance_losses(sum_of, parts + i * 7 * 24, &one, &all_losses, 0.25,
                       work);
    }
    must_equal_bits(parts, whole, 672, "gradient");
    assert_memory_equal(loss, sum_of, sizeof loss);
    free(whole);
    free(parts);
    routes_free(&r);
}

/* One sequence is a batch of one; two are not. */
static void test_batch_of_one(void **state)
{
    (void)state;
    Random random = test_random();
    Routes r = random_routes(&random, 12, 5, 2, 4, true);
    Balance batch = all_losses;
    double a[BALANCE_LOSSES] = {0}, b[BALANCE_LOSSES] = {0}, work[WORK * 12];
    batch.batch = true;
    for (r.B = 1; r.B <= 2; r.B++) {
        balance_losses(a, NULL, &r, &all_losses, 1, work);
        balance_losses(b, NULL, &r, &batch, 1, work);
        assert_int_equal(memcmp(a, b, sizeof a) == 0, r.B == 1);
    }
    routes_free(&r);
}

/* Of equal scores the lowest index counts, as in the gate. */
static void test_ties_count_the_lowest(void **state)
{
    (void)state;
    static const float scores[] = {0.25f, 0.5f, 0.5f, 0.5f, 0.25f, 0.25f};
    static const int32_t ids[] = {5, 4, 3, 0};   /* not used */
    Routes r = {6, 4, 1, 1, scores, ids};
    Balance b = {.alpha = {0, 0, 0, 1}};
    double loss[BALANCE_LOSSES] = {0}, work[WORK * 6];
    balance_losses(loss, NULL, &r, &b, 1, work);
    for (size_t i = 0; i < 6; i++)
        assert_true(work[i] == (i < 4 ? 1.5 : 0));   /* f = N/(K T) */
    must_be_near(loss[BALANCE_SEQUENCE], 1.5 * 1.75 / 2.25, 1e-15, "loss", 0);
}

/* No expert is ever counted beyond the array, no division is by zero. */
static void test_odd_scores(void **state)
{
    (void)state;
    static const float bad[] = {NAN, NAN, NAN, 0, NAN, 1};
    static const float zero[6] = {0};
    static const int32_t ids[] = {0, 1, 2, 3};
    Routes r = {6, 4, 1, 1, bad, ids};
    Balance b = {.alpha = {0, 0, 0, 1}};
    double loss[BALANCE_LOSSES] = {0}, work[WORK * 6];
    float dscores[6] = {0};
    balance_losses(loss, dscores, &r, &b, 1, work);
    assert_true(isnan(loss[BALANCE_SEQUENCE]));
    r.scores = zero;
    loss[BALANCE_SEQUENCE] = 0;
    balance_losses(loss, dscores, &r, &b, 1, work);
    assert_true(loss[BALANCE_SEQUENCE] == 0);
    r.T = 0;   /* an MTP module deeper than the sequence */
    balance_losses(loss, NULL, &r, &b, 1, work);
    assert_true(loss[BALANCE_SEQUENCE] == 0);
}

static uint64_t fnv(uint64_t hash, const void *bytes, size_t n)
{
    const unsigned char *at = bytes;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ at[i]) * 0x100000001b3;
    return hash;
}

static uint64_t hash_number(uint64_t hash, uint64_t number)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(number >> 8 * i);
    return fnv(hash, bytes, 8);
}

/* The bits that every build has to give. */
static void test_golden(void **state)
{
    (void)state;
    Random random = random_seeded(7);
    Routes r = random_routes(&random, 24, 5, 3, 50, false);
    float *dscores = test_alloc(3 * 50 * 24, 4);
    double loss[BALANCE_LOSSES] = {0}, work[WORK * 24];
    uint64_t hash = 0xcbf29ce484222325, bits;
    balance_losses(loss, dscores, &r, &all_losses, 1.0 / 3, work);
    for (size_t i = 0; i < 3 * 50 * 24; i++)
        hash = hash_number(hash, f32_bits(dscores[i]));
    for (int kind = 0; kind < BALANCE_LOSSES; kind++) {
        memcpy(&bits, &loss[kind], sizeof bits);
        hash = hash_number(hash, bits);
    }
    assert_true(hash == 0xcffccdba561aceb2);
    free(dscores);
    routes_free(&r);
}

/* The bias --------------------------------------------------------------- */

/* A router alone: E experts, K picks, more popular ones first. */
typedef struct {
    double u;
    double maxvio[8];          /* after the steps below */
    double mean_last50, summed_last50;
    double bias[8];
    uint64_t first[8], last[8];   /* loads */
} Run;

static const size_t shown_steps[8] = {0, 1, 2, 10, 50, 100, 200, 299};

static const Run runs[] = {
    {0.0, {1.46875, 1.5, 1.5, 1.1875, 1.375, 1.4375, 1.21875, 1.25}, 1.5275,
     1.5275, {0}, {76, 79, 41, 33, 15, 9, 2, 1},
     {72, 56, 42, 35, 26, 16, 7, 2}},
    {0.001, {1.46875, 1.5, 1.46875, 1.125, 1.03125, 0.78125, 0.15625,
             0.34375}, 0.248125, 0.01875,
     {-0.188, -0.145, -0.093, -0.040, 0.027, 0.096, 0.162, 0.227},
     {76, 79, 41, 33, 15, 9, 2, 1}, {24, 26, 30, 31, 43, 35, 25, 42}},
    {0.01, {1.46875, 1.4375, 1.34375, 0.71875, 0.21875, 0.125, 0.125,
            0.34375}, 0.275625, 0.040625,
     {-0.17, -0.13, -0.09, -0.03, 0.04, 0.09, 0.19, 0.22},
     {76, 79, 41, 33, 15, 9, 2, 1}, {26, 24, 30, 32, 43, 33, 27, 41}},
    {0.05, {1.46875, 1.25, 0.875, 0.28125, 0.375, 0.75, 0.28125, 0.4375},
     0.430625, 0.0425, {0.40, 0.40, 0.40, 0.45, 0.55, 0.60, 0.70, 0.70},
     {76, 79, 41, 33, 15, 9, 2, 1}, {31, 19, 35, 37, 46, 38, 18, 32}}};

enum { RUNS = sizeof runs / sizeof *runs, EXPERTS = 8, PICKS = 2,
       TOKENS = 128 };

static double lcg(uint32_t *x)
{
    *x = (*x * 1103515245u + 12345u) & 0x7fffffff;
    return (double)(*x >> 8) * 0x1p-23;
}

static void draw_scores(uint32_t *x, double *s)
{
    for (int e = 0; e < EXPERTS; e++) {
        double z = -2;
        for (int i = 0; i < 4; i++)
            z += lcg(x);
        z = 1.5 * z + (1 - 2.0 * e / (EXPERTS - 1));
        s[e] = 1 / (1 + exp64(-z));
    }
}

static void pick_best(int32_t *ids, const double *s, const float *bias)
{
    for (int k = 0; k < PICKS; k++) {
        double most = -INFINITY;
        int32_t best = 0;
        for (int32_t e = 0; e < EXPERTS; e++) {
            double choice = s[e] + (double)bias[e];
            if (choice > most && !(k > 0 && ids[0] == e)) {
                most = choice;
                best = e;
            }
        }
        ids[k] = best;
    }
}

static void step(uint32_t *x, const float *bias, uint64_t *load)
{
    memset(load, 0, EXPERTS * sizeof *load);
    for (int t = 0; t < TOKENS; t++) {
        double s[EXPERTS];
        int32_t ids[PICKS];
        draw_scores(x, s);
        pick_best(ids, s, bias);
        balance_count(load, ids, PICKS);
    }
}

static void check_run(const Run *run)
{
    float bias[EXPERTS] = {0};
    uint64_t load[EXPERTS], summed[EXPERTS] = {0};
    uint32_t x = 5;
    double mean = 0;
    for (size_t n = 0; n < 300; n++) {
        step(&x, bias, load);
        double violation = balance_max_violation(load, EXPERTS);
        for (int i = 0; i < 8; i++)
            if (shown_steps[i] == n)
                assert_true(violation == run->maxvio[i]);
        if (n == 0)
            assert_memory_equal(load, run->first, sizeof load);
        for (int e = 0; e < EXPERTS && n >= 250; e++)
            summed[e] += load[e];
        mean += n >= 250 ? violation / 50 : 0;
        balance_update_bias(bias, load, EXPERTS, run->u);
    }
    assert_memory_equal(load, run->last, sizeof load);
    must_be_near(mean, run->mean_last50, 1e-12, "mean", 0);
    must_be_near(balance_max_violation(summed, EXPERTS), run->summed_last50,
                 1e-12, "summed", 0);
    for (size_t e = 0; e < EXPERTS; e++)   /* 300 roundings below 1 */
        must_be_near((double)bias[e], run->bias[e], 300 * 0x1p-24, "bias", e);
}

static void test_router(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++)
        check_run(&runs[i]);
}

static void test_bias_by_hand(void **state)
{
    (void)state;
    static const int32_t ids[] = {0, 3, 0, 3, 3, 0, 3, 1};
    static const float wanted[] = {-0.001f, 0.001f, 0.001f, -0.001f};
    uint64_t load[4] = {0};
    float bias[4] = {0};
    balance_count(load, ids, 8);
    assert_int_equal(load[0], 3);
    assert_int_equal(load[1], 1);
    assert_int_equal(load[2], 0);
    assert_int_equal(load[3], 4);
    assert_true(balance_max_violation(load, 4) == 1);
    balance_update_bias(bias, load, 4, 0.001);
    must_equal_bits(bias, wanted, 4, "bias");
    balance_count(load, ids, 8);   /* the next micro-batch adds */
    assert_int_equal(load[3], 8);
}

/* sign(0) = 0, where N c = Σ c exactly, and one pair off it; means that no
 * double holds; a load of nothing. */
static void test_sign_of_zero(void **state)
{
    (void)state;
    const uint64_t big = (uint64_t)1 << 60;
    uint64_t even[3] = {big, big, big}, third[3] = {4, 3, 3};
    uint64_t off[3] = {big + 1, big, big - 1}, nothing[3] = {0};
    float bias[3] = {0.5f, 0.25f, -1};
    static const float before[3] = {0.5f, 0.25f, -1};
    balance_update_bias(bias, even, 3, 0.125);
    balance_update_bias(bias, nothing, 3, 0.125);
    must_equal_bits(bias, before, 3, "even");
    assert_true(balance_max_violation(nothing, 3) == 0);
    balance_update_bias(bias, off, 3, 0.125);
    assert_true(bias[0] == 0.375f && bias[1] == 0.25f && bias[2] == -0.875f);
    balance_update_bias(bias, third, 3, 0.125);   /* the mean is 10/3 */
    assert_true(bias[0] == 0.25f && bias[1] == 0.375f && bias[2] == -0.75f);
    balance_update_bias(bias, off, 3, 0);
    assert_true(bias[0] == 0.25f && bias[2] == -0.75f);
}

/* Dropping --------------------------------------------------------------- */

/* True where pair a goes before pair b of the same device. */
static bool goes_first(const Routes *r, size_t a, size_t b)
{
    float x = affinity(r, a / r->K, (size_t)r->topk_ids[a]);
    float y = affinity(r, b / r->K, (size_t)r->topk_ids[b]);
    return x < y || (x == y && a > b);
}

/* A pair that is not exempt goes exactly if fewer pairs that are not exempt
 * go before it than the device has too many. */
static size_t check_dropped(const Routes *r, const bool *exempt,
                            double capacity, size_t devices)
{
    size_t pairs = r->B * r->T * r->K, n = r->N / devices, drops = 0;
    int32_t *dropped = test_alloc(pairs, sizeof *dropped);
    uint64_t *work = test_alloc(pairs, sizeof *work);
    dropped[0] = 7;   /* what was there does not count */
    size_t found = drop_tokens(dropped, r, exempt, capacity, devices, work);
    for (size_t a = 0; a < pairs; a++) {
        size_t all = 0, before = 0, row = a / r->K;
        for (size_t b = 0; b < pairs; b++) {
            if ((size_t)r->topk_ids[a] / n != (size_t)r->topk_ids[b] / n)
                continue;
            all++;
            before += !(exempt && exempt[b / r->K / r->T])
                      && goes_first(r, b, a);
        }
        double budget = floor(capacity * (double)pairs / (double)devices);
        bool goes = !(exempt && exempt[row / r->T])
                    && (double)before < (double)all - budget;
        assert_int_equal(dropped[a], goes);
        drops += goes;
    }
    assert_int_equal(found, drops);
    free(dropped);
    free(work);
    return drops;
}

static void test_dropping(void **state)
{
    (void)state;
    Random random = test_random();
    size_t drops = 0;
    for (int round = 0; round < 30; round++) {
        size_t B = random_between(&random, 1, 4);
        Routes r = random_routes(&random, 12, 5, B, 6, true);
        bool exempt[4];
        for (size_t i = 0; i < 4; i++)
            exempt[i] = random_between(&random, 0, 2) == 0;
        float *scores = (float *)(uintptr_t)r.scores;
        for (size_t i = 0; i < B * 6 * 12 && round % 3 == 0; i++)
            scores[i] = floorf(scores[i] * 8) / 8;   /* many ties */
        double capacity = 0.5 + 0.25 * (double)random_between(&random, 0, 4);
        drops += check_dropped(&r, NULL, capacity, 4);
        drops += check_dropped(&r, exempt, capacity, 4);
        routes_free(&r);
    }
    assert_true(drops > 100);
}

/* Two devices of two experts, one pick: five tokens on the first, one on the
 * second. The budget is 6/2; the later of equals goes. */
static void test_dropping_by_hand(void **state)
{
    (void)state;
    static const float scores[] = {0.5f, 0, 0, 0, 0.25f, 0, 0, 0,
                                   0, 0.25f, 0, 0, 0, 0.25f, 0, 0,
                                   0, 0, 0, 0.01f, 0.75f, 0, 0, 0};
    static const int32_t ids[] = {0, 0, 1, 1, 3, 0};
    static const bool exempt[] = {false, false, true};
    Routes r = {4, 1, 3, 2, scores, ids};
    int32_t dropped[6];
    uint64_t work[6];
    assert_int_equal(drop_tokens(dropped, &r, NULL, 1, 2, work), 2);
    assert_true(dropped[2] && dropped[3] && !dropped[1] && !dropped[4]);
    assert_int_equal(drop_tokens(dropped, &r, NULL, 1.4, 2, work), 1);
    assert_true(dropped[3] && !dropped[2]);
    assert_int_equal(drop_tokens(dropped, &r, exempt, 0, 2, work), 4);
    assert_true(!dropped[4] && !dropped[5]);
    assert_int_equal(drop_tokens(dropped, &r, NULL, 2, 2, work), 0);
}

static void test_exempt(void **state)
{
    (void)state;
    enum { MANY = 100000 };
    size_t n = 0, same = 0;
    for (uint64_t i = 0; i < MANY; i++) {
        bool exempt = drop_exempt(1, i, 0.1);
        n += exempt;
        same += exempt && drop_exempt(2, i, 0.1);
        assert_false(drop_exempt(1, i, 0));
        assert_true(drop_exempt(1, i, 1));
    }
    /* Five standard deviations of binomial distributions. */
    assert_true(fabs((double)n - 0.1 * MANY) < 5 * sqrt(0.09 * MANY));
    assert_true(fabs((double)same - 0.01 * MANY) < 5 * sqrt(0.01 * MANY));
    static const uint64_t recorded[] = {11, 12, 13, 18, 20, 23, 24, 25, 32};
    for (uint64_t i = 0, k = 0; i < 36; i++)
        if (drop_exempt(1, i, 0.1))
            assert_int_equal(recorded[k++], i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equations),
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_what_is_sent),
        cmocka_unit_test(test_even_load),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_gradients_add),
        cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_batch_of_one),
        cmocka_unit_test(test_ties_count_the_lowest),
        cmocka_unit_test(test_odd_scores),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_router),
        cmocka_unit_test(test_bias_by_hand),
        cmocka_unit_test(test_sign_of_zero),
        cmocka_unit_test(test_dropping),
        cmocka_unit_test(test_dropping_by_hand),
        cmocka_unit_test(test_exempt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
