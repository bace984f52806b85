/* test_moe.c: routing, its weights, and the experts.
 *
 * Vectors (from the released code's rules, by an independent program, eight
 * digits): logits 0.2 -1 1.5 0.1 -0.3 0.9 2 -2 of 8 experts in 4 groups of 2,
 * of which 2 are kept, top 3; as V2, V2-Lite and V3 route them. Elsewhere the
 * equations in double, written down as they stand. */
#include "support.h"

/* A layer of experts with its activations, all to be freed. */
typedef struct {
    Config c;
    MoeWeights w;
    MoeActs a;
    size_t T;
} Layer;

static FfnActs ffn_acts(size_t T, size_t inter)
{
    FfnActs a = {0};
    a.gate = test_alloc(T * inter, sizeof *a.gate);
    a.up = test_alloc(T * inter, sizeof *a.up);
    a.h = test_alloc(T * inter, sizeof *a.h);
    return a;
}

static void ffn_acts_free(FfnActs *a)
{
    free(a->gate);
    free(a->up);
    free(a->h);
}

static MoeActs moe_acts(const Config *c, size_t T)
{
    size_t N = c->n_routed_experts, K = c->num_experts_per_tok;
    size_t d = c->hidden_size, f = sizeof(float), i = sizeof(int32_t);
    MoeActs a = {0};
    a.logits = test_alloc(T * N, f);
    a.scores = test_alloc(T * N, f);
    a.bias = test_alloc(N, f);
    a.choice = test_alloc(T * N, f);
    a.group_scores = test_alloc(T * c->n_group, f);
    a.kept = test_alloc(c->topk_group, i);
    a.topk_ids = test_alloc(T * K, i);
    a.topk_weights = test_alloc(T * K, f);
    a.first = test_alloc(N + 1, i);
    a.pick = test_alloc(T * K, i);
    a.x = test_alloc(T * d, f);
    a.routed = ffn_acts(T, c->moe_intermediate_size);
    a.y = test_alloc(T * d, f);
    a.routed_out = test_alloc(T * d, f);
    a.shared = ffn_acts(T, c->n_shared_experts * c->moe_intermediate_size);
    a.shared_out = test_alloc(T * d, f);
    return a;
}

static void moe_acts_free(MoeActs *a)
{
    free(a->logits);
    free(a->scores);
    free(a->bias);
    free(a->choice);
    free(a->group_scores);
    free(a->kept);
    free(a->topk_ids);
    free(a->topk_weights);
    free(a->first);
    free(a->pick);
    free(a->x);
    ffn_acts_free(&a->routed);
    free(a->y);
    free(a->routed_out);
    ffn_acts_free(&a->shared);
    free(a->shared_out);
}

static FfnWeights random_ffn(Random *r, size_t d, size_t inter, DType dtype)
{
    float in = 1 / sqrtf((float)d), out = 1 / sqrtf((float)inter);
    return (FfnWeights){.gate_proj = random_matrix(r, inter, d, dtype, in),
                        .up_proj = random_matrix(r, inter, d, dtype, in),
                        .down_proj = random_matrix(r, d, inter, dtype, out)};
}

static void ffn_free(FfnWeights *w)
{
    matrix_free(&w->gate_proj);
    matrix_free(&w->up_proj);
    matrix_free(&w->down_proj);
}

/* The gate alone, its weights the identity: logits are what goes in. */
static Layer gate_of_identity(Config c, size_t T)
{
    size_t N = c.n_routed_experts;
    float *one = test_alloc(N * N, sizeof *one);
    float *bias = test_alloc(N, sizeof *bias);
    for (size_t i = 0; i < N; i++)
        one[i * N + i] = 1;
    c.hidden_size = N;
    return (Layer){
        .c = c, .T = T, .a = moe_acts(&c, T),
        .w = {.gate = matrix_f32(one, N, N, N),
              .e_score_correction_bias = matrix_f32(bias, 1, N, N)}};
}

static Layer random_layer(Random *r, Config c, size_t T, DType dtype)
{
    size_t N = c.n_routed_experts, d = c.hidden_size;
    size_t inter = c.moe_intermediate_size;
    Layer l = {.c = c, .T = T, .a = moe_acts(&c, T)};
    l.w.gate = random_matrix(r, N, d, DT_F32, 2 / sqrtf((float)d));
    l.w.e_score_correction_bias = random_matrix(r, 1, N, DT_F32, 0.3f);
    l.w.experts = test_alloc(N, sizeof *l.w.experts);
    for (size_t e = 0; e < N; e++)
        l.w.experts[e] = random_ffn(r, d, inter, dtype);
    if (c.n_shared_experts)
        l.w.shared_experts = random_ffn(r, d, c.n_shared_experts * inter,
                                        dtype);
    return l;
}

static void layer_free(Layer *l)
{
    for (size_t e = 0; l->w.experts && e < l->c.n_routed_experts; e++)
        ffn_free(&l->w.experts[e]);
    free(l->w.experts);
    ffn_free(&l->w.shared_experts);
    matrix_free(&l->w.gate);
    matrix_free(&l->w.e_score_correction_bias);
    moe_acts_free(&l->a);
}

/* Vectors ---------------------------------------------------------------- */

static const float logits[8] = {0.2f, -1, 1.5f, 0.1f, -0.3f, 0.9f, 2, -2};

static Config grouped(ModelType type, TopkMethod method, double factor)
{
    return (Config){
        .model_type = type, .topk_method = method,
        .scoring_func = type == DEEPSEEK_V3 ? SCORING_SIGMOID
                                            : SCORING_SOFTMAX,
        .norm_topk_prob = type == DEEPSEEK_V3, .n_routed_experts = 8,
        .n_group = 4, .topk_group = 2, .num_experts_per_tok = 3,
        .routed_scaling_factor = factor};
}

static void must_be(const float *found, const double *wanted, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)found[i] - wanted[i]);
        if (!(off <= 1e-8 + 2e-7 * fabs(wanted[i])))
            fail_msg("element %zu: found %.9g, wanted %.9g", i,
                     (double)found[i], wanted[i]);
    }
}

static void must_be_ids(const int32_t *found, const int32_t *wanted, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_int_equal(found[i], wanted[i]);
}

static void set_bias(Layer *l, const float *bias)
{
    float *b = (float *)(uintptr_t)l->w.e_score_correction_bias.data;
    memcpy(b, bias, l->c.n_routed_experts * sizeof *b);
}

static void test_v2_vector(void **state)
{
    static const double softmax_of[] = {.06823115, .02055083, .25036034,
                                        .06173810, .04138429, .13740067,
                                        .41277441, .00756023};
    static const double groups[] = {.06823115, .25036034, .13740067,
                                    .41277441};
    static const double weights[] = {6.60439056, 4.00576536, 0.98780958};
    static const int32_t kept[] = {3, 1}, ids[] = {6, 2, 3};
    (void)state;
    Layer l = gate_of_identity(grouped(DEEPSEEK_V2,
                                       TOPK_GROUP_LIMITED_GREEDY, 16), 1);
    gate_forward(logits, &l.w, &l.c, 1, &l.a);
    must_equal_bits(l.a.logits, logits, 8, "logits");
    must_be(l.a.scores, softmax_of, 8);
    must_be(l.a.group_scores, groups, 4);
    must_be_ids(l.a.kept, kept, 2);
    must_be_ids(l.a.topk_ids, ids, 3);
    must_be(l.a.topk_weights, weights, 3);
    layer_free(&l);
}

static void test_greedy_vector(void **state)
{
    static const double weights[] = {.41277441, .25036034, .13740067};
    static const int32_t ids[] = {6, 2, 5};
    (void)state;
    Layer l = gate_of_identity(grouped(DEEPSEEK_V2, TOPK_GREEDY, 1), 1);
    gate_forward(logits, &l.w, &l.c, 1, &l.a);
    must_be_ids(l.a.topk_ids, ids, 3);
    must_be(l.a.topk_weights, weights, 3);
    layer_free(&l);
}

static void test_v3_vector(void **state)
{
    static const float bias[] = {0, 0, -.5f, 0, .1f, 0, -.2f, .3f};
    static const double groups[] = {.81877542, .84255366, 1.23650699, 1.1};
    static const double weights[] = {.88106389, 1.09155220, .52738391};
    static const int32_t kept[] = {2, 3}, ids[] = {5, 6, 4};
    (void)state;
    Layer l = gate_of_identity(grouped(DEEPSEEK_V3, TOPK_NOAUX_TC, 2.5), 1);
    set_bias(&l, bias);
    gate_forward(logits, &l.w, &l.c, 1, &l.a);
    must_be(l.a.group_scores, groups, 4);
    must_be_ids(l.a.kept, kept, 2);
    must_be_ids(l.a.topk_ids, ids, 3);
    must_be(l.a.topk_weights, weights, 3);
    layer_free(&l);
}

/* Masked with 0, experts 0, 1, 2 of dropped groups would win. */
static void test_negative_bias_vector(void **state)
{
    static const float bias[] = {-1.2f, -1.3f, -1.9f, -1.1f, -1.4f, -1.2f,
                                 -1.0f, -0.9f};
    static const double weights[] = {1.28700040, 1.03882304, .17417656};
    static const int32_t kept[] = {3, 2}, ids[] = {6, 5, 7};
    (void)state;
    Layer l = gate_of_identity(grouped(DEEPSEEK_V3, TOPK_NOAUX_TC, 2.5), 1);
    set_bias(&l, bias);
    gate_forward(logits, &l.w, &l.c, 1, &l.a);
    must_be_ids(l.a.kept, kept, 2);
    must_be_ids(l.a.topk_ids, ids, 3);
    must_be(l.a.topk_weights, weights, 3);
    for (size_t e = 0; e < 4; e++)
        assert_true(isinf(l.a.choice[e]) && l.a.choice[e] < 0);
    layer_free(&l);
}

/* 256 of the released models are as many as a byte can name. */
static void test_more_experts_than_a_byte_names(void **state)
{
    static const int32_t ids[] = {299, 256, 255};
    float many[300] = {0};
    Config c = grouped(DEEPSEEK_V2, TOPK_GREEDY, 1);
    (void)state;
    c.n_routed_experts = 300;
    many[299] = 3;
    many[256] = 2;
    many[255] = 1;
    Layer l = gate_of_identity(c, 1);
    gate_forward(many, &l.w, &l.c, 1, &l.a);
    must_be_ids(l.a.topk_ids, ids, 3);
    layer_free(&l);
}

/* Ties ------------------------------------------------------------------- */

/* Experts and groups alike; 1 and 6 are better than the rest, which tie. */
static void check_ties(Config c, const int32_t *ids)
{
    static const float tied[8] = {0, 1, 0, 0, 0, 0, 1, 0};
    Layer l = gate_of_identity(c, 1);
    gate_forward(tied, &l.w, &l.c, 1, &l.a);
    must_be_ids(l.a.topk_ids, ids, c.num_experts_per_tok);
    layer_free(&l);
}

static void test_ties_go_to_the_lowest(void **state)
{
    static const int32_t greedy[] = {1, 6, 0, 2, 3};
    static const int32_t two_groups[] = {1, 6, 0, 7};
    static const int32_t three_groups[] = {1, 6, 0, 2, 3, 7};
    Config c = grouped(DEEPSEEK_V2, TOPK_GREEDY, 1);
    (void)state;
    c.num_experts_per_tok = 5;
    check_ties(c, greedy);
    for (int v3 = 0; v3 < 2; v3++) {
        c = v3 ? grouped(DEEPSEEK_V3, TOPK_NOAUX_TC, 1)
               : grouped(DEEPSEEK_V2, TOPK_GROUP_LIMITED_GREEDY, 1);
        c.num_experts_per_tok = 4;
        check_ties(c, two_groups);
        c.num_experts_per_tok = 6;
        c.topk_group = 3;
        check_ties(c, three_groups);
    }
}

/* The bias --------------------------------------------------------------- */

/* However great, it chooses and never weighs; in F32, not in BF16. */
static void test_bias_chooses_and_never_weighs(void **state)
{
    static const float bias[] = {4, 4.0001f, 4.0003f, 4.0002f, 0, 0, 0, 0};
    static const float same[8] = {1, 1, 1, 1, 9, 9, 9, 9};
    static const int32_t ids[] = {2, 3, 1};
    static const double even[] = {2.5 / 3, 2.5 / 3, 2.5 / 3};
    Config c = grouped(DEEPSEEK_V3, TOPK_NOAUX_TC, 2.5);
    (void)state;
    c.n_group = c.topk_group = 1;
    Layer l = gate_of_identity(c, 1);
    set_bias(&l, bias);
    gate_forward(same, &l.w, &l.c, 1, &l.a);
    must_be_ids(l.a.topk_ids, ids, 3);
    must_be(l.a.topk_weights, even, 3);
    layer_free(&l);
}

/* V2 has none, whatever a model holds. */
static void test_v2_has_no_bias(void **state)
{
    static const float bias[] = {9, 9, 9, 9, 0, 0, 0, 0};
    static const int32_t ids[] = {6, 2, 5};
    (void)state;
    Layer l = gate_of_identity(grouped(DEEPSEEK_V2, TOPK_GREEDY, 1), 1);
    set_bias(&l, bias);
    gate_forward(logits, &l.w, &l.c, 1, &l.a);
    must_be_ids(l.a.topk_ids, ids, 3);
    layer_free(&l);
}

/* Weights ---------------------------------------------------------------- */

static void check_weights(Config c, size_t K, bool norm, bool scales,
                          const double *wanted)
{
    c.num_experts_per_tok = K;
    c.norm_topk_prob = norm;
    c.v2_norm_scales = scales;
    Layer l = gate_of_identity(c, 1);
    gate_forward(logits, &l.w, &l.c, 1, &l.a);
    must_be(l.a.topk_weights, wanted, K);
    layer_free(&l);
}

/* V2 divides only for K > 1 and then does not scale; by the other reading it
 * does both. V3 divides for any K and scales. */
static void test_normalisation(void **state)
{
    static const double v2_sum = .41277441 + .25036034;
    static const double raw[] = {4 * .41277441, 4 * .25036034};
    static const double divided[] = {.41277441 / v2_sum, .25036034 / v2_sum};
    static const double both[] = {4 * .41277441 / v2_sum,
                                  4 * .25036034 / v2_sum};
    static const double four[] = {4};
    double s6 = 1 / (1 + exp(-2)), s2 = 1 / (1 + exp(-1.5));
    double v3_raw[] = {4 * s6, 4 * s2};
    double v3_both[] = {4 * s6 / (s6 + s2), 4 * s2 / (s6 + s2)};
    Config v2 = grouped(DEEPSEEK_V2, TOPK_GREEDY, 4);
    Config v3 = grouped(DEEPSEEK_V3, TOPK_NOAUX_TC, 4);
    (void)state;
    v3.n_group = v3.topk_group = 1;
    check_weights(v2, 2, false, false, raw);
    check_weights(v2, 2, false, true, raw);
    check_weights(v2, 2, true, false, divided);
    check_weights(v2, 2, true, true, both);
    check_weights(v2, 1, true, false, raw);
    check_weights(v2, 1, true, true, raw);
    check_weights(v3, 2, false, false, v3_raw);
    check_weights(v3, 2, true, false, v3_both);
    check_weights(v3, 1, true, false, four);
}

/* Scores near 1e-22 beside the 1e-20 that keeps the division finite. */
static void test_tiny_scores(void **state)
{
    static const float far[8] = {-50, -51, -50, -52, -50, -50, -51, -50};
    static const float none[8] = {-200, -200, -200, -200,
                                  -200, -200, -200, -200};
    Config c = grouped(DEEPSEEK_V3, TOPK_NOAUX_TC, 1);
    (void)state;
    Layer l = gate_of_identity(c, 1);
    gate_forward(far, &l.w, &l.c, 1, &l.a);
    for (size_t j = 0; j < 3; j++) {
        double s = exp((double)far[l.a.topk_ids[j]]), total = 0;
        for (size_t i = 0; i < 3; i++)
            total += exp((double)far[l.a.topk_ids[i]]);
        double w = s / (total + 1e-20);
        assert_true(fabs((double)l.a.topk_weights[j] - w) <= 1e-6 * w);
    }
    gate_forward(none, &l.w, &l.c, 1, &l.a);
    for (size_t j = 0; j < 3; j++)
        assert_true(l.a.topk_weights[j] == 0);
    layer_free(&l);
}

/* Against the equations -------------------------------------------------- */

/* Everything of one token, in double. */
typedef struct {
    double scores[64], choice[64], weights[64], y[64], routed[64];
    size_t ids[64];
    double margin;   /* the least gap that decided a group or an expert */
} Plain;

/* The k greatest of n, lowest index first on ties; the gap that decided. */
static void plain_top(size_t *ids, size_t k, const double *x, size_t n,
                      double *margin)
{
    bool taken[64] = {false};
    for (size_t j = 0; j < k; j++) {
        size_t best = n;
        double second = -INFINITY;
        for (size_t i = 0; i < n; i++)
            if (!taken[i] && (best == n || x[i] > x[best]))
                best = i;
        for (size_t i = 0; i < n; i++)
            if (!taken[i] && i != best && x[i] > second)
                second = x[i];
        if (x[best] - second < *margin)
            *margin = x[best] - second;
        taken[best] = true;
        ids[j] = best;
    }
}

static void plain_scores(Plain *p, const Layer *l, const float *x)
{
    size_t N = l->c.n_routed_experts;
    double total = 0;
    for (size_t i = 0; i < N; i++) {
        double z = 0;
        for (size_t k = 0; k < l->c.hidden_size; k++)
            z += weight(&l->w.gate, i, k) * (double)x[k];
        p->scores[i] = exp(z);
        total += exp(z);
    }
    for (size_t i = 0; i < N; i++)
        p->scores[i] = l->c.scoring_func == SCORING_SIGMOID
                           ? p->scores[i] / (1 + p->scores[i])
                           : p->scores[i] / total;
}

static void plain_groups(Plain *p, const Config *c)
{
    size_t n = c->n_routed_experts / c->n_group, kept[64], top[2];
    double score[64], none = INFINITY;
    for (size_t g = 0; g < c->n_group; g++) {
        bool two = c->topk_method == TOPK_NOAUX_TC;
        plain_top(top, two ? 2 : 1, p->choice + g * n, n, &none);
        score[g] = p->choice[g * n + top[0]]
                   + (two ? p->choice[g * n + top[1]] : 0);
    }
    plain_top(kept, c->topk_group, score, c->n_group, &p->margin);
    for (size_t i = 0; i < c->n_routed_experts; i++) {
        bool keep = false;
        for (size_t j = 0; j < c->topk_group; j++)
            keep = keep || kept[j] == i / n;
        if (!keep)
            p->choice[i] = -INFINITY;
    }
}

static void plain_gate(Plain *p, const Layer *l, const float *x)
{
    const Config *c = &l->c;
    size_t K = c->num_experts_per_tok;
    bool v2 = c->model_type == DEEPSEEK_V2;
    bool divide = c->norm_topk_prob && (K > 1 || !v2);
    double total = 1e-20;
    p->margin = INFINITY;
    plain_scores(p, l, x);
    for (size_t i = 0; i < c->n_routed_experts; i++)
        p->choice[i] = p->scores[i]
                       + (c->topk_method == TOPK_NOAUX_TC
                              ? weight(&l->w.e_score_correction_bias, 0, i)
                              : 0);
    if (c->topk_method != TOPK_GREEDY)
        plain_groups(p, c);
    plain_top(p->ids, K, p->choice, c->n_routed_experts, &p->margin);
    for (size_t j = 0; j < K; j++)
        total += p->scores[p->ids[j]];
    for (size_t j = 0; j < K; j++)
        p->weights[j] = p->scores[p->ids[j]] / (divide ? total : 1)
                        * (divide && v2 && !c->v2_norm_scales
                               ? 1 : c->routed_scaling_factor);
}

/* y += g W_down(silu(W_gate x) · W_up x) */
static void plain_ffn(double *y, double g, const FfnWeights *w,
                      const float *x)
{
    for (size_t i = 0; i < w->gate_proj.rows; i++) {
        double a = 0, b = 0;
        for (size_t k = 0; k < w->gate_proj.cols; k++) {
            a += weight(&w->gate_proj, i, k) * (double)x[k];
            b += weight(&w->up_proj, i, k) * (double)x[k];
        }
        for (size_t k = 0; k < w->down_proj.rows; k++)
            y[k] += g * weight(&w->down_proj, k, i) * (a / (1 + exp(-a)) * b);
    }
}

static void plain_layer(Plain *p, const Layer *l, const float *x)
{
    memset(p->y, 0, sizeof p->y);
    plain_gate(p, l, x);
    for (size_t j = 0; j < l->c.num_experts_per_tok; j++)
        plain_ffn(p->y, p->weights[j], &l->w.experts[p->ids[j]], x);
    memcpy(p->routed, p->y, sizeof p->y);
    if (l->c.n_shared_experts)
        plain_ffn(p->y, 1, &l->w.shared_experts, x);
}

static Config random_config(Random *r)
{
    size_t group = random_between(r, 2, 6), n_group = random_between(r, 1, 6);
    size_t kept = random_between(r, 1, n_group);
    bool v3 = random_between(r, 0, 1) == 1;
    return (Config){
        .model_type = v3 ? DEEPSEEK_V3 : DEEPSEEK_V2,
        .topk_method = (TopkMethod)random_between(r, 0, 2),
        .scoring_func = (ScoringFunc)random_between(r, 0, 1),
        .norm_topk_prob = random_between(r, 0, 1),
        .v2_norm_scales = random_between(r, 0, 1),
        .n_routed_experts = group * n_group, .n_group = n_group,
        .topk_group = kept,
        .num_experts_per_tok = random_between(r, 1, kept * group),
        .n_shared_experts = random_between(r, 0, 2),
        .hidden_size = random_between(r, 1, 40),
        .moe_intermediate_size = random_between(r, 1, 20),
        .routed_scaling_factor = 0.5 + 3 * (double)random_uniform(r)};
}

static void check_token(const Layer *l, const Plain *p, const float *y,
                        size_t t)
{
    size_t K = l->c.num_experts_per_tok, d = l->c.hidden_size;
    double size = 1e-3, off = 0, routed_off = 0;
    for (size_t j = 0; j < K; j++) {
        double w = (double)l->a.topk_weights[t * K + j];
        assert_int_equal(l->a.topk_ids[t * K + j], p->ids[j]);
        assert_true(fabs(w - p->weights[j]) <= 1e-5 * p->weights[j]);
    }
    for (size_t k = 0; k < d; k++) {
        size = fmax(size, fabs(p->y[k]));
        off = fmax(off, fabs((double)y[t * d + k] - p->y[k]));
        routed_off = fmax(routed_off, fabs((double)l->a.routed_out[t * d + k]
                                           - p->routed[k]));
    }
    if (!(off <= 1e-4 * size && routed_off <= 1e-4 * size))
        fail_msg("token %zu: off by %g and %g of %g", t, off, routed_off,
                 size);
}

/* Near-ties, where float may decide otherwise, are left out: few. */
static void test_equations(void **state)
{
    static const DType dtypes[] = {DT_F32, DT_BF16, DT_F8_E4M3};
    Random random = test_random();
    size_t tokens = 0, checked = 0;
    (void)state;
    for (int run = 0; run < 150; run++) {
        enum { T = 5 };
        Plain p;
        Layer l = random_layer(&random, random_config(&random), T,
                               dtypes[run % 3]);
        size_t d = l.c.hidden_size;
        float x[T * 40], y[T * 40];
        random_fill(&random, x, T * d);
        moe_forward(y, x, &l.w, &l.c, T, &l.a);
        for (size_t t = 0; t < T; t++, tokens++) {
            plain_layer(&p, &l, x + t * d);
            if (p.margin < 1e-5)
                continue;
            check_token(&l, &p, y, t);
            checked++;
        }
        layer_free(&l);
    }
    assert_true(checked * 100 >= tokens * 95);
}

/* The same bits ---------------------------------------------------------- */

static void test_gathered_is_one_at_a_time(void **state)
{
    static const DType dtypes[] = {DT_F32, DT_BF16, DT_F8_E4M3};
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 60; run++) {
        enum { T = 17 };
        Layer l = random_layer(&random, random_config(&random), T,
                               dtypes[run % 3]);
        size_t d = l.c.hidden_size;
        float x[T * 40], together[T * 40], alone[T * 40];
        random_fill(&random, x, T * d);
        moe_forward(together, x, &l.w, &l.c, T, &l.a);
        for (size_t t = 0; t < T; t++)
            moe_forward(alone + t * d, x + t * d, &l.w, &l.c, 1, &l.a);
        must_equal_bits(together, alone, T * d, "one at a time");
        layer_free(&l);
    }
}

/* A token's terms are added by ascending expert id, the shared experts' last;
 * any other order rounds otherwise. */
static void test_order_of_experts(void **state)
{
    enum { D = 40, K = 8 };
    Random random = test_random();
    Config c = random_config(&random);
    float x[D], y[D], term[D], up[D] = {0}, down[D] = {0}, shared[D];
    size_t differ = 0;
    (void)state;
    c.hidden_size = D;
    c.n_routed_experts = c.num_experts_per_tok = K;
    c.n_group = c.topk_group = 1;
    c.n_shared_experts = 1;
    Layer l = random_layer(&random, c, 1, DT_F32);
    random_fill(&random, x, D);
    moe_forward(y, x, &l.w, &c, 1, &l.a);
    for (size_t step = 0; step < 2 * K; step++) {
        size_t e = step < K ? step : 2 * K - 1 - step, j = 0;
        while ((size_t)l.a.topk_ids[j] != e)
            j++;
        ffn_forward(term, x, &l.w.experts[e], 1, &l.a.routed);
        for (size_t k = 0; k < D; k++) {
            float *sum = step < K ? &up[k] : &down[k];
            *sum = fmaf(l.a.topk_weights[j], term[k], *sum);
        }
    }
    must_equal_bits(l.a.routed_out, up, D, "ascending");
    ffn_forward(shared, x, &l.w.shared_experts, 1, &l.a.shared);
    for (size_t k = 0; k < D; k++) {
        differ += f32_bits(up[k]) != f32_bits(down[k]);
        up[k] += shared[k];
    }
    must_equal_bits(y, up, D, "shared last");
    assert_true(differ > 0);
    layer_free(&l);
}

/* The shared experts have no gate and no scaling factor. */
static void test_shared_is_not_scaled(void **state)
{
    enum { D = 16 };
    Random random = test_random();
    Config c = random_config(&random);
    float x[D], y[D], first[D];
    (void)state;
    c.hidden_size = D;
    c.n_shared_experts = 2;
    Layer l = random_layer(&random, c, 1, DT_F32);
    random_fill(&random, x, D);
    moe_forward(y, x, &l.w, &l.c, 1, &l.a);
    memcpy(first, l.a.shared_out, sizeof first);
    l.c.routed_scaling_factor = 0;
    l.c.norm_topk_prob = false;
    moe_forward(y, x, &l.w, &l.c, 1, &l.a);
    must_equal_bits(l.a.shared_out, first, D, "shared");
    for (size_t k = 0; k < D; k++)
        assert_true(y[k] == first[k]);
    layer_free(&l);
}

/* Edges ------------------------------------------------------------------ */

/* As many experts as the kept groups hold: all of those, none of the others,
 * even where a bias is -inf or every score is the same. */
static void test_all_of_the_kept_groups(void **state)
{
    static const float bias[8] = {0, 0, 0, 0, -INFINITY, -INFINITY, 0, 0};
    static const int32_t ids[] = {6, 7, 2, 3};
    Config c = grouped(DEEPSEEK_V3, TOPK_NOAUX_TC, 1);
    (void)state;
    c.num_experts_per_tok = 4;
    Layer l = gate_of_identity(c, 1);
    set_bias(&l, bias);
    float x[8] = {0, 0, 1, 0.9f, 5, 5, 2, 1.9f};
    gate_forward(x, &l.w, &l.c, 1, &l.a);
    must_be_ids(l.a.topk_ids, ids, 4);
    layer_free(&l);
}

static void test_one_expert(void **state)
{
    Random random = test_random();
    Config c = random_config(&random);
    float x[40], y[40];
    (void)state;
    c.n_routed_experts = c.num_experts_per_tok = c.n_group = c.topk_group = 1;
    c.topk_method = TOPK_GREEDY;
    c.scoring_func = SCORING_SOFTMAX;
    c.norm_topk_prob = false;
    c.routed_scaling_factor = 3;
    Layer l = random_layer(&random, c, 1, DT_F32);
    random_fill(&random, x, c.hidden_size);
    moe_forward(y, x, &l.w, &l.c, 1, &l.a);
    assert_true(l.a.topk_ids[0] == 0 && l.a.topk_weights[0] == 3);
    layer_free(&l);
}

/* Numbers that are none choose some experts, each once and in range, and show
 * in the result. */
static void test_not_a_number(void **state)
{
    static const float values[] = {NAN, INFINITY, -INFINITY};
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 120; run++) {
        enum { T = 3 };
        float x[T * 40], y[T * 40];
        Layer l = random_layer(&random, random_config(&random), T, DT_F32);
        size_t K = l.c.num_experts_per_tok, N = l.c.n_routed_experts;
        float *gate = (float *)(uintptr_t)l.w.gate.data;
        random_fill(&random, x, T * l.c.hidden_size);
        x[0] = values[run % 3];
        gate[random_between(&random, 0, N - 1) * l.c.hidden_size] = NAN;
        moe_forward(y, x, &l.w, &l.c, T, &l.a);
        for (size_t t = 0; t < T; t++) {
            bool seen[64] = {false};
            for (size_t j = 0; j < K; j++) {
                int32_t id = l.a.topk_ids[t * K + j];
                assert_true(id >= 0 && (size_t)id < N && !seen[id]);
                seen[id] = true;
            }
            assert_true(!isfinite(y[t * l.c.hidden_size]));
        }
        layer_free(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v2_vector),
        cmocka_unit_test(test_greedy_vector),
        cmocka_unit_test(test_v3_vector),
        cmocka_unit_test(test_negative_bias_vector),
        cmocka_unit_test(test_more_experts_than_a_byte_names),
        cmocka_unit_test(test_ties_go_to_the_lowest),
        cmocka_unit_test(test_bias_chooses_and_never_weighs),
        cmocka_unit_test(test_v2_has_no_bias),
        cmocka_unit_test(test_normalisation),
        cmocka_unit_test(test_tiny_scores), cmocka_unit_test(test_equations),
        cmocka_unit_test(test_gathered_is_one_at_a_time),
        cmocka_unit_test(test_order_of_experts),
        cmocka_unit_test(test_shared_is_not_scaled),
        cmocka_unit_test(test_all_of_the_kept_groups),
        cmocka_unit_test(test_one_expert),
        cmocka_unit_test(test_not_a_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
