/* moe.c: the gate and the experts ------------------ V2 §2.2, V3 §2.1.2
 *
 * A token goes to K of N routed experts and to the shared ones. Stages: the
 * gate scores every expert (softmax in V2, sigmoid in V3), picks groups, then
 * experts inside them, and weighs those (gate_forward); tokens are sorted by
 * expert, so that each expert's weights are read once (route); every expert
 * runs as one product and its rows are added to their tokens (run_expert), by
 * ascending expert id; then the shared experts.
 *
 * Invariants: the gate computes in F32. Ties go to the lowest index, of
 * groups and experts alike. The bias b_i chooses and never weighs. Experts
 * outside the chosen groups have choice -inf, so they lose to any biased
 * score, however negative. The shared experts are one FFN of n_shared_experts
 * widths, without a gate and without the scaling factor. Inputs of the experts'
 * Linear layers may be FP8 (a->fp8), the gate's never (V3 §3.3.1).
 *
 * Not here: the residual and the norm before (deepseek.c); balance losses and
 * the update of b_i, which only training has. */
#include "deepseek.h"

#include "base/maths.h"

#include <math.h>
#include <string.h>

/* y = W_down(silu(W_gate x) · W_up x), R rows of width d = w->down_proj.rows.
 */
void ffn_forward(float *y, const float *x, const FfnWeights *w, size_t T,
                 FfnActs *a)
{
    size_t d = w->down_proj.rows, inter = w->down_proj.cols;
    linear(a->gate, inter, x, d, T, &w->gate_proj, a->fp8);
    linear(a->up, inter, x, d, T, &w->up_proj, a->fp8);
    silu_mul(a->h, a->gate, a->up, T * inter);
    linear(y, d, a->h, inter, T, &w->down_proj, a->fp8);
}

/* s = Softmax_i(u·e_i), V2 (22); s = Sigmoid(u·e_i), V3 (15) */
static void affinity(const Config *c, size_t T, MoeActs *a)
{
    size_t N = c->n_routed_experts;
    if (c->scoring_func == SCORING_SIGMOID)
        sigmoid(a->scores, a->logits, T * N);
    else
        for (size_t t = 0; t < T; t++)
            softmax(a->scores + t * N, a->logits + t * N, N);
}

/* The index of the greatest of x that `taken` has not; the lowest on ties. */
static size_t best_left(const float *x, size_t n, const int32_t *taken,
                        size_t n_taken)
{
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        bool left = true;
        for (size_t j = 0; j < n_taken; j++)
            left = left && (size_t)taken[j] != i;
        if (left && (best == n || x[i] > x[best]))
            best = i;
    }
    return best;
}

/* The k greatest, best first. */
static void top_k(int32_t *ids, size_t k, const float *x, size_t n)
{
    for (size_t j = 0; j < k; j++)
        ids[j] = (int32_t)best_left(x, n, ids, j);
}

/* V2: the greatest score of a group ("the devices that have experts with the
 * highest affinity scores", V2 §2.2.2). V3: the sum of the two greatest, with
 * the bias as in the released code (V3 §2.1.2 says K/M affinity scores). */
static float group_score(const Config *c, const float *choice, size_t n)
{
    int32_t best[2];
    if (c->topk_method != TOPK_NOAUX_TC)
        return choice[argmax(choice, n)];
    top_k(best, 2, choice, n);
    return choice[best[0]] + choice[best[1]];
}

/* Keeps the topk_group best of n_group groups: choice -inf elsewhere.
 * V2 §2.2.2, V3 §2.1.2 "node-limited routing". */
static void limit_groups(const Config *c, float *choice, float *group_scores,
                         int32_t *kept)
{
    size_t n = c->n_routed_experts / c->n_group;
    for (size_t g = 0; g < c->n_group; g++)
        group_scores[g] = group_score(c, choice + g * n, n);
    top_k(kept, c->topk_group, group_scores, c->n_group);
    for (size_t g = 0; g < c->n_group; g++) {
        bool keep = false;
        for (size_t j = 0; j < c->topk_group; j++)
            keep = keep || (size_t)kept[j] == g;
        for (size_t i = 0; !keep && i < n; i++)
            choice[g * n + i] = -INFINITY;
    }
}

/* g_i = s_i of the chosen, V2 (21), V3 (14); with norm_topk_prob divided by
 * their sum, V3 (13); times routed_scaling_factor. V2's released code divides
 * only for K > 1 and then leaves out the factor (docs/disputes.md). */
static void weigh(const Config *c, const float *scores, const int32_t *ids,
                  float *weights)
{
    size_t K = c->num_experts_per_tok;
    bool v2 = c->model_type == DEEPSEEK_V2;
    for (size_t j = 0; j < K; j++)
        weights[j] = scores[ids[j]];
    if (c->norm_topk_prob && (K > 1 || !v2)) {
        float total = sum(weights, K) + 1e-20f;
        for (size_t j = 0; j < K; j++)
            weights[j] = weights[j] / total;
        if (v2 && !c->v2_norm_scales)
            return;
    }
    scale(weights, weights, (float)c->routed_scaling_factor, K);
}

/* A logit that is not finite may vanish in the sigmoid, or unpicked. It must
 * reach the result, where the weight that it comes from is looked for. */
static void show_not_finite(const float *logits, size_t n, float *weights)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(logits[i]))
            weights[0] = NAN;
}

/* One token. choice = s_i + b_i where there is a bias, V3 (16), masked to the
 * chosen groups. */
static void choose(const Config *c, size_t t, MoeActs *a)
{
    size_t N = c->n_routed_experts, K = c->num_experts_per_tok;
    const float *scores = a->scores + t * N;
    float *choice = a->choice + t * N;
    int32_t *ids = a->topk_ids + t * K;
    if (c->topk_method == TOPK_NOAUX_TC)
        add(choice, scores, a->bias, N);
    else
        memcpy(choice, scores, N * sizeof *choice);
    if (c->topk_method != TOPK_GREEDY)
        limit_groups(c, choice, a->group_scores + t * c->n_group, a->kept);
    top_k(ids, K, choice, N);
    weigh(c, scores, ids, a->topk_weights + t * K);
    show_not_finite(a->logits + t * N, N, a->topk_weights + t * K);
}

void gate_forward(const float *x, const MoeWeights *w, const Config *c,
                  size_t T, MoeActs *a)
{
    size_t N = c->n_routed_experts;
    matmul(a->logits, N, x, c->hidden_size, T, &w->gate);
    affinity(c, T, a);
    if (c->topk_method == TOPK_NOAUX_TC)
        matrix_row(a->bias, &w->e_score_correction_bias, 0);
    for (size_t t = 0; t < T; t++)
        choose(c, t, a);
}

/* Rows first[e] … first[e+1]-1 belong to expert e: its tokens in order, with
 * their weights. A counting sort. */
static void route(const Config *c, size_t T, MoeActs *a)
{
    size_t N = c->n_routed_experts, K = c->num_experts_per_tok;
    memset(a->first, 0, (N + 1) * sizeof *a->first);
    for (size_t i = 0; i < T * K; i++)
        a->first[a->topk_ids[i] + 1]++;
    for (size_t e = 0; e < N; e++)
        a->first[e + 1] += a->first[e];
    for (size_t i = 0; i < T * K; i++) {
        int32_t row = a->first[a->topk_ids[i]]++;
        a->token[row] = (int32_t)(i / K);
        a->row_weight[row] = a->topk_weights[i];
    }
    memmove(a->first + 1, a->first, N * sizeof *a->first);
    a->first[0] = 0;
}

/* routed_out += g FFN_e(x) for the tokens of expert e, as one product. Experts
 * run by ascending id, so every token adds its terms in that order:
 * acc = fmaf(g, y, acc). */
static void run_expert(const float *x, const FfnWeights *w, const Config *c,
                       size_t e, MoeActs *a)
{
    size_t d = c->hidden_size, row = (size_t)a->first[e];
    size_t n = (size_t)a->first[e + 1] - row;
    const int32_t *token = a->token + row;
    for (size_t i = 0; i < n; i++)
        memcpy(a->x + i * d, x + (size_t)token[i] * d, d * sizeof *x);
    if (n)
        ffn_forward(a->y, a->x, w, n, &a->routed);
    for (size_t i = 0; i < n; i++)
        add_scaled(a->routed_out + (size_t)token[i] * d,
                   a->row_weight[row + i], a->y + i * d, d);
}

/* y = Σ g_i FFN_i(x) + FFN_shared(x)                     V2 (20); V3 (12) */
void moe_forward(float *y, const float *x, const MoeWeights *w,
                 const Config *c, size_t T, MoeActs *a)
{
    size_t d = c->hidden_size;
    gate_forward(x, w, c, T, a);
    route(c, T, a);
    memset(a->routed_out, 0, T * d * sizeof *a->routed_out);
    for (size_t e = 0; e < c->n_routed_experts; e++)
        run_expert(x, &w->experts[e], c, e, a);
    if (!c->n_shared_experts) {
        memcpy(y, a->routed_out, T * d * sizeof *y);
        return;
    }
    ffn_forward(a->shared_out, x, &w->shared_experts, T, &a->shared);
    add(y, a->routed_out, a->shared_out, T * d);
}
