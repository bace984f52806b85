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
 * The backward pass takes the choice of experts as it is: gradients reach the
 * gate through the weights g_i, and through balance losses. It goes through
 * the experts in the same order; sums over tokens ascend.
 *
 * Not here: the residual and the norm before (deepseek.c); balance losses,
 * dropped tokens and the update of b_i (balance.c). */
#include "deepseek.h"

#include "base/backward.h"
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

static bool is_dropped(const MoeActs *a, size_t pick)
{
    return a->dropped && a->dropped[pick];
}

/* Rows first[e] … first[e+1]-1 belong to expert e: its tokens in order. A
 * counting sort; a token that is dropped has no row. */
static void route(const Config *c, size_t T, MoeActs *a)
{
    size_t N = c->n_routed_experts, K = c->num_experts_per_tok;
    memset(a->first, 0, (N + 1) * sizeof *a->first);
    for (size_t i = 0; i < T * K; i++)
        a->first[a->topk_ids[i] + 1] += !is_dropped(a, i);
    for (size_t e = 0; e < N; e++)
        a->first[e + 1] += a->first[e];
    for (size_t i = 0; i < T * K; i++)
        if (!is_dropped(a, i))
            a->pick[a->first[a->topk_ids[i]]++] = (int32_t)i;
    memmove(a->first + 1, a->first, N * sizeof *a->first);
    a->first[0] = 0;
}

/* The rows of x that expert e takes, side by side; their number. */
static size_t gather(float *rows, const float *x, const Config *c, size_t e,
                     const MoeActs *a)
{
    size_t d = c->hidden_size, first = (size_t)a->first[e];
    size_t n = (size_t)a->first[e + 1] - first;
    for (size_t i = 0; i < n; i++) {
        size_t t = (size_t)a->pick[first + i] / c->num_experts_per_tok;
        memcpy(rows + i * d, x + t * d, d * sizeof *x);
    }
    return n;
}

/* Where expert e leaves what it computes: one set of buffers for all, or
 * rows of its own. */
static FfnActs expert_acts(const Config *c, size_t e, const MoeActs *a)
{
    FfnActs f = a->routed;
    size_t row = (size_t)a->first[e] * c->moe_intermediate_size;
    if (a->keep) {
        f.gate += row;
        f.up += row;
    }
    if (a->keep_h)
        f.h += row;
    return f;
}

/* routed_out += g FFN_e(x) for the tokens of expert e, as one product. Experts
 * run by ascending id, so every token adds its terms in that order:
 * acc = fmaf(g, y, acc). */
static void run_expert(const float *x, const FfnWeights *w, const Config *c,
                       size_t e, MoeActs *a)
{
    size_t d = c->hidden_size, K = c->num_experts_per_tok;
    size_t n = gather(a->x, x, c, e, a);
    const int32_t *pick = a->pick + a->first[e];
    FfnActs f = expert_acts(c, e, a);
    if (n)
        ffn_forward(a->y, a->x, w, n, &f);
    for (size_t i = 0; i < n; i++)
        add_scaled(a->routed_out + (size_t)pick[i] / K * d,
                   a->topk_weights[pick[i]], a->y + i * d, d);
}

/* y = Σ g_i FFN_i(x) + FFN_shared(x)                     V2 (20); V3 (12) */
void moe_experts(float *y, const float *x, const MoeWeights *w,
                 const Config *c, size_t T, MoeActs *a)
{
    size_t d = c->hidden_size;
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

void moe_forward(float *y, const float *x, const MoeWeights *w,
                 const Config *c, size_t T, MoeActs *a)
{
    gate_forward(x, w, c, T, a);
    moe_experts(y, x, w, c, T, a);
}

/* Training --------------------------------------------------------------- */

/* dh -> dgate, dup, dW and dx; dy: what W_down gave dW_down of. */
static void inner_backward(float *dx, const float *dy, const float *x,
                           const FfnWeights *w, const FfnWeights *dw,
                           size_t T, const FfnActs *a, FfnActs *g)
{
    size_t d = w->down_proj.rows, inter = w->down_proj.cols;
    matmul_dw(matrix_numbers(&dw->down_proj), inter, dy, d, a->h, inter, T,
              d, inter);
    silu_mul_backward(g->gate, g->up, g->h, a->gate, a->up, T * inter);
    linear_backward(dx, d, g->gate, inter, x, d, T, &w->gate_proj,
                    &dw->gate_proj);
    linear_backward(dx, d, g->up, inter, x, d, T, &w->up_proj, &dw->up_proj);
}

/* y = W_down h: dh = W_downᵀ dy. */
static void down_backward(float *dh, const float *dy, const FfnWeights *w,
                          size_t T)
{
    size_t d = w->down_proj.rows, inter = w->down_proj.cols;
    memset(dh, 0, T * inter * sizeof *dh);
    matmul_t(dh, inter, dy, d, T, &w->down_proj);
}

void ffn_recompute(const FfnWeights *w, size_t T, FfnActs *a)
{
    silu_mul(a->h, a->gate, a->up, T * w->down_proj.cols);
}

void ffn_backward(float *dx, const float *dy, const float *x,
                  const FfnWeights *w, const FfnWeights *dw, size_t T,
                  const FfnActs *a, FfnActs *g)
{
    down_backward(g->h, dy, w, T);
    inner_backward(dx, dy, x, w, dw, T, a, g);
}

/* routed_out = Σ g_e y_e, y_e = W_down h: dg = dy·y_e = (W_downᵀ dy)·h, so
 * that y_e need not be kept; then expert e has the gradient g dy. */
static void weigh_rows(const int32_t *pick, size_t n, const Config *c,
                       const FfnActs *f, const MoeActs *a, MoeGrads *g)
{
    size_t d = c->hidden_size, inter = c->moe_intermediate_size;
    for (size_t i = 0; i < n; i++) {
        float *dh = g->routed.h + i * inter, *dy = g->y + i * d;
        float weight = a->topk_weights[pick[i]];
        g->topk_weights[pick[i]] = dot(dh, f->h + i * inter, inter);
        scale(dh, dh, weight, inter);
        scale(dy, dy, weight, d);
    }
}

static void expert_backward(float *dx, const float *dy, const float *x,
                            const FfnWeights *w, const FfnWeights *dw,
                            const Config *c, size_t e, MoeActs *a,
                            MoeGrads *g)
{
    size_t d = c->hidden_size, K = c->num_experts_per_tok;
    size_t n = gather(a->x, x, c, e, a);
    const int32_t *pick = a->pick + a->first[e];
    FfnActs f = expert_acts(c, e, a);
    if (!n)
        return;
    if (!a->keep_h)
        ffn_recompute(w, n, &f);
    gather(g->y, dy, c, e, a);
    down_backward(g->routed.h, g->y, w, n);
    weigh_rows(pick, n, c, &f, a, g);
    memset(g->x, 0, n * d * sizeof *g->x);
    inner_backward(g->x, g->y, a->x, w, dw, n, &f, &g->routed);
    for (size_t i = 0; i < n; i++) {
        float *row = dx + (size_t)pick[i] / K * d;
        add(row, row, g->x + i * d, d);
    }
}

/* g_j = α s_j / Z, Z the sum over the chosen: with norm_topk_prob
 * ds_j += α/Z (dg_j - Σ_i dg_i s_i / Z), else ds_j += α dg_j; see weigh. */
static void weigh_backward(const Config *c, const float *scores,
                           const int32_t *ids, const float *dweights,
                           float *dscores)
{
    size_t K = c->num_experts_per_tok;
    bool v2 = c->model_type == DEEPSEEK_V2;
    bool norm = c->norm_topk_prob && (K > 1 || !v2);
    float factor = (float)c->routed_scaling_factor, total = 0, mean = 0;
    for (size_t j = 0; norm && j < K; j++)
        total += scores[ids[j]];
    total += 1e-20f;
    for (size_t j = 0; norm && j < K; j++)
        mean = fma32(dweights[j], scores[ids[j]] / total, mean);
    if (norm)
        factor = (v2 && !c->v2_norm_scales ? 1.0f : factor) / total;
    for (size_t j = 0; j < K; j++)
        dscores[ids[j]] = fma32(factor, dweights[j] - mean, dscores[ids[j]]);
}

/* dg -> ds -> dlogits, in the place of ds; then e_i and u. */
static void gate_backward(float *dx, const float *x, const MoeWeights *w,
                          const MoeWeights *dw, const Config *c, size_t T,
                          const MoeActs *a, MoeGrads *g)
{
    size_t N = c->n_routed_experts, K = c->num_experts_per_tok;
    size_t d = c->hidden_size;
    for (size_t t = 0; t < T; t++) {
        const float *s = a->scores + t * N;
        float *ds = g->scores + t * N;
        weigh_backward(c, s, a->topk_ids + t * K, g->topk_weights + t * K,
                       ds);
        if (c->scoring_func == SCORING_SIGMOID)
            sigmoid_backward(ds, s, ds, N);
        else
            softmax_backward(ds, s, ds, N);
    }
    linear_backward(dx, d, g->scores, N, x, d, T, &w->gate, &dw->gate);
}

void moe_backward(float *dx, const float *dy, const float *x,
                  const MoeWeights *w, const MoeWeights *dw, const Config *c,
                  size_t T, MoeActs *a, MoeGrads *g)
{
    memset(g->topk_weights, 0,
           T * c->num_experts_per_tok * sizeof *g->topk_weights);
    for (size_t e = 0; e < c->n_routed_experts; e++)
        expert_backward(dx, dy, x, &w->experts[e], &dw->experts[e], c, e, a,
                        g);
    if (c->n_shared_experts)
        ffn_backward(dx, dy, x, &w->shared_experts, &dw->shared_experts, T,
                     &a->shared, &g->shared);
    gate_backward(dx, x, w, dw, c, T, a, g);
}
