/* pass.c: a batch forward and back -------------- V2 §3.1; V3 §2.2, §3.2.3
 *
 * A pass runs B sequences of T tokens forward, with the functions of inference,
 * and back, with their twins:
 *
 *   embedding -> layers -> norm -> head -> cross-entropy       main model
 *                            |-> join -> layer -> norm -> head    MTP k = 1 …
 *
 * Each layer keeps its activations. With `recompute` it keeps only what cannot
 * be had from others by an RMSNorm, an up-projection of MLA or a SwiGLU (V3
 * §3.2.3); the rest is one set for all layers, filled again on the way back by
 * the forward's own functions: the same bits.
 *
 * Order: gradients of weights are sums over tokens, sequence by sequence, and
 * the head and the embedding, which main model and modules share, take for each
 * sequence the main model's rows first, then those of module 1, 2, …. So a step
 * of one pass and one of many give the same bits.
 *
 * Not here: what a layer computes; the optimiser (adamw.c), schedules
 * (schedule.c), the bias update (balance.c): train.c puts them together. */
#include "deepseek.h"

#include "base/backward.h"
#include "base/device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows of logits that are made and used at a time, and their bytes, which a
 * large vocabulary may exceed: the head is read once for so many, and so is
 * its gradient. Tokens of a block of scores at most, for it computes those that
 * its first tokens do not see too; it is three strips of mla.c. Its bytes. */
enum {
    MIN_LOGIT_ROWS = 64, LOGIT_ROWS = 256, LOGIT_BYTES = 4 << 20,
    SCORE_TOKENS = 36, SCORE_BYTES = 2 << 20
};

/* Memory ----------------------------------------------------------------- */

/* Hands out room from `at` on, or counts it while that is NULL. */
typedef struct {
    char *at;
    size_t bytes;
} Arena;

static void *take(Arena *m, size_t n, size_t size)
{
    void *p = m->at ? m->at + m->bytes : NULL;
    m->bytes += (n * size + 63) / 64 * 64;
    return p;
}

static float *floats(Arena *m, size_t n)
{
    return take(m, n, sizeof(float));
}

static int32_t *ints(Arena *m, size_t n)
{
    return take(m, n, sizeof(int32_t));
}

static size_t heads_by(const Config *c, size_t width)
{
    return c->num_attention_heads * width;
}

/* The widest FFN that every token goes through. */
static size_t widest_ffn(const Config *c)
{
    size_t shared = c->n_shared_experts * c->moe_intermediate_size;
    return shared > c->intermediate_size ? shared : c->intermediate_size;
}

static size_t logit_rows(const Config *c, size_t T)
{
    size_t n = LOGIT_BYTES / sizeof(float) / (c->vocab_size + 1);
    n = n < MIN_LOGIT_ROWS ? MIN_LOGIT_ROWS : n < LOGIT_ROWS ? n : LOGIT_ROWS;
    return n < T ? n : T;
}

/* Tokens of a block. */
static size_t score_block(const Config *c, size_t T)
{
    size_t n = SCORE_BYTES / sizeof(float) / (heads_by(c, T) + 1);
    n = n < SCORE_TOKENS ? n : SCORE_TOKENS;
    return n < 1 ? 1 : n < T ? n : T;
}

/* What recomputation fills again: of every layer, or one set for all. */
static void take_refilled(Arena *m, LayerTape *l, const Config *c, size_t R)
{
    size_t d_h = c->qk_nope_head_dim, d_r = c->qk_rope_head_dim;
    MlaActs *a = &l->acts.mla;
    l->cache = floats(m, R * (c->kv_lora_rank + d_r));
    l->acts.attn_norm = floats(m, R * c->hidden_size);
    l->acts.ffn_norm = floats(m, R * c->hidden_size);
    a->c_q = floats(m, R * c->q_lora_rank);
    if (c->q_lora_rank)
        a->q = floats(m, R * heads_by(c, d_h + d_r));
    a->query = floats(m, R * heads_by(c, d_h + d_r));
    a->kv = floats(m, R * heads_by(c, d_h + c->v_head_dim));
    a->key = floats(m, R * heads_by(c, d_h + d_r));
}

/* h of the FFN that all tokens pass, or of a dense one; of experts. */
static void take_ffn_h(Arena *m, BlockActs *a, const Config *c, size_t rows,
                       size_t expert_rows, size_t inter)
{
    a->ffn.h = floats(m, rows * inter);
    a->moe.routed.h = floats(m, expert_rows * c->moe_intermediate_size);
}

/* What no backward pass reads: one set for all layers. */
static void take_scratch(Arena *m, BlockActs *a, const Config *c, size_t R,
                         size_t T)
{
    size_t d = c->hidden_size, N = c->n_routed_experts;
    a->mla.block = score_block(c, T);
    a->mla.span = T;
    a->mla.scores = floats(m, a->mla.block * heads_by(c, T));
    a->mla.probs = floats(m, a->mla.block * heads_by(c, T));
    a->attn_out = floats(m, R * d);
    a->ffn_out = floats(m, R * d);
    a->moe.bias = floats(m, N);
    a->moe.choice = floats(m, R * N);
    a->moe.group_scores = floats(m, R * c->n_group);
    a->moe.kept = ints(m, c->topk_group);
    a->moe.x = floats(m, R * d);
    a->moe.y = floats(m, R * d);
    a->moe.routed_out = floats(m, R * d);
    a->moe.shared_out = floats(m, R * d);
}

static void take_gate(Arena *m, MoeActs *a, const Config *c, size_t R)
{
    size_t N = c->n_routed_experts, K = c->num_experts_per_tok;
    a->logits = floats(m, R * N);
    a->scores = floats(m, R * N);
    a->topk_ids = ints(m, R * K);
    a->topk_weights = floats(m, R * K);
    a->dropped = ints(m, R * K);
    a->first = ints(m, N + 1);
    a->pick = ints(m, R * K);
}

/* What every layer keeps. */
static void take_layer(Arena *m, LayerTape *l, const Config *c, bool moe,
                       size_t R)
{
    size_t d_q = c->qk_nope_head_dim + c->qk_rope_head_dim;
    size_t inter = moe ? c->n_shared_experts * c->moe_intermediate_size
                       : c->intermediate_size;
    BlockActs *a = &l->acts;
    if (c->q_lora_rank)
        a->mla.c_q_raw = floats(m, R * c->q_lora_rank);
    else
        a->mla.q = floats(m, R * heads_by(c, d_q));
    a->mla.kv_raw = floats(m, R * (c->kv_lora_rank + c->qk_rope_head_dim));
    a->mla.o = floats(m, R * heads_by(c, c->v_head_dim));
    a->attn_residual = floats(m, R * c->hidden_size);
    a->h = floats(m, R * c->hidden_size);
    a->ffn.gate = floats(m, R * inter);
    a->ffn.up = floats(m, R * inter);
    if (moe) {
        size_t rows = R * c->num_experts_per_tok;
        take_gate(m, &a->moe, c, R);
        a->moe.routed.gate = floats(m, rows * c->moe_intermediate_size);
        a->moe.routed.up = floats(m, rows * c->moe_intermediate_size);
    }
}

/* all: the set that all layers use. */
static void take_layers(Arena *m, Pass *p, const Config *c, size_t R)
{
    const PassOptions *o = &p->options;
    size_t D = c->num_nextn_predict_layers, L = c->num_hidden_layers + D;
    LayerTape all = {0};
    take_scratch(m, &all.acts, c, R, o->T);
    all.acts.moe.keep = true;
    all.acts.moe.keep_h = !o->recompute;
    if (o->recompute) {
        take_refilled(m, &all, c, R);
        take_ffn_h(m, &all.acts, c, R, R, widest_ffn(c));
    }
    p->layers = take(m, L, sizeof *p->layers);
    for (size_t l = 0; l < L; l++) {
        LayerTape tape = all;
        bool moe = config_is_moe(c, l);
        take_layer(m, &tape, c, moe, R);
        if (!o->recompute) {
            take_refilled(m, &tape, c, R);
            take_ffn_h(m, &tape.acts, c, R,
                       moe ? R * c->num_experts_per_tok : 0,
                       moe ? c->n_shared_experts * c->moe_intermediate_size
                           : c->intermediate_size);
        }
        tape.acts.moe.shared = tape.acts.ffn;
        if (m->at)
            p->layers[l] = tape;
    }
}

static void take_ffn_grads(Arena *m, FfnActs *g, size_t n)
{
    g->gate = floats(m, n);
    g->up = floats(m, n);
    g->h = floats(m, n);
}

static void take_grads(Arena *m, BlockGrads *g, const Config *c, size_t R,
                       size_t T)
{
    size_t d = c->hidden_size, d_h = c->qk_nope_head_dim;
    size_t d_r = c->qk_rope_head_dim, d_c = c->kv_lora_rank;
    MlaGrads *a = &g->mla;
    g->norm = floats(m, R * d);
    g->x = floats(m, R * d);
    a->o = floats(m, T * heads_by(c, c->v_head_dim));
    a->scores = floats(m, score_block(c, T) * T);
    a->query = floats(m, T * heads_by(c, d_h + d_r));
    a->key = floats(m, T * heads_by(c, d_h + d_r));
    a->kv = floats(m, T * heads_by(c, d_h + c->v_head_dim));
    a->latent = floats(m, T * (d_c + d_r));
    a->kv_raw = floats(m, T * (d_c + d_r));
    a->c_q = floats(m, T * c->q_lora_rank);
    a->c_q_raw = floats(m, T * c->q_lora_rank);
    g->moe.topk_weights = floats(m, R * c->num_experts_per_tok);
    g->moe.scores = floats(m, R * c->n_routed_experts);
    take_ffn_grads(m, &g->moe.routed, R * c->moe_intermediate_size);
    take_ffn_grads(m, &g->moe.shared, R * widest_ffn(c));
    g->moe.x = floats(m, R * d);
    g->moe.y = floats(m, R * d);
}

static void take_modules(Arena *m, Pass *p, const Config *c, size_t R)
{
    size_t d = c->hidden_size, D = c->num_nextn_predict_layers;
    p->modules = take(m, D, sizeof *p->modules);
    for (size_t k = 0; k < D; k++) {
        MtpTape t = {floats(m, R * d), floats(m, R * d),
                     floats(m, R * 2 * d), floats(m, R * d),
                     floats(m, R * d)};
        if (m->at)
            p->modules[k] = t;
    }
    p->dstate = D ? floats(m, R * d) : NULL;
    p->dpair = D ? floats(m, R * 2 * d) : NULL;
}

/* All that a pass needs; run twice, to count and to place. */
static void lay_out(Arena *m, Pass *p, const Config *c)
{
    const PassOptions *o = &p->options;
    size_t R = o->sequences * o->T, d = c->hidden_size;
    size_t stages = c->num_nextn_predict_layers + 1;
    p->cos = floats(m, o->T * c->qk_rope_head_dim / 2);
    p->sin = floats(m, o->T * c->qk_rope_head_dim / 2);
    p->embed = floats(m, R * d);
    take_layers(m, p, c, R);
    take_modules(m, p, c, R);
    p->norm = floats(m, R * d);
    p->dnorm = take(m, stages, sizeof *p->dnorm);
    p->dembed = take(m, stages, sizeof *p->dembed);
    for (size_t k = 0; k < stages; k++) {
        float *dnorm = floats(m, R * d), *dembed = floats(m, R * d);
        if (m->at) {
            p->dnorm[k] = dnorm;
            p->dembed[k] = dembed;
        }
    }
    p->dhead = c->tie_word_embeddings ? floats(m, c->vocab_size * d) : NULL;
    p->logits = floats(m, logit_rows(c, o->T) * c->vocab_size);
    take_grads(m, &p->grads, c, R, o->T);
    p->balance = take(m, (c->num_hidden_layers + stages - 1) * BALANCE_LOSSES,
                      sizeof *p->balance);
    p->balance_work = take(m, 4 * c->n_routed_experts, sizeof(double));
    p->drop_work = take(m, R * c->num_experts_per_tok, sizeof(uint64_t));
    p->exempt = take(m, o->sequences, sizeof *p->exempt);
}

size_t pass_bytes(const Config *c, const PassOptions *o)
{
    Arena m = {NULL, 0};
    Pass p = {.options = *o};
    lay_out(&m, &p, c);
    return m.bytes;
}

int pass_open(Pass *p, const Model *m, const PassOptions *o, Error *err)
{
    Arena arena = {NULL, 0};
    *p = (Pass){.model = m, .options = *o};
    if (m->n_mtp < m->config.num_nextn_predict_layers)
        return fail(err, "training: wanted the tensors of %zu MTP modules,"
                    " found %zu", m->config.num_nextn_predict_layers,
                    m->n_mtp);
    if (o->T <= m->config.num_nextn_predict_layers)
        return fail(err, "training: wanted sequences of more than %zu tokens"
                    " (num_nextn_predict_layers), found %zu",
                    m->config.num_nextn_predict_layers, o->T);
    p->memory = device_alloc(pass_bytes(&m->config, o), 1, "activations",
                             err);
    if (!p->memory || rope_open(&p->rope, &m->config, err)) {
        pass_close(p);
        return -1;
    }
    arena.at = p->memory;
    lay_out(&arena, p, &m->config);
    rope_table(p->cos, p->sin, &p->rope, o->T, 0);
    return 0;
}

void pass_close(Pass *p)
{
    device_free(p->memory);
    rope_close(&p->rope);
    memset(p, 0, sizeof *p);
}

/* Forward ---------------------------------------------------------------- */

/* Where one pass stands. */
typedef struct {
    Pass *pass;
    const Config *c;
    const int32_t *ids;      /* (B, T+1) */
    size_t B;
    const PassLoss *l;
    Dropping dropping;
} Run;

static size_t rows_of(const Run *r, size_t k)
{
    return r->pass->options.T - k;   /* of a sequence in module k */
}

static Batch batch_of(const Run *r, size_t k)
{
    const Pass *p = r->pass;
    return (Batch){r->B, rows_of(r, k), 0, true, p->cos, p->sin,
                   p->rope.softmax_scale,
                   r->l->capacity > 0 ? &r->dropping : NULL};
}

static const float *forward_layers(const Run *r)
{
    Pass *p = r->pass;
    const Model *m = p->model;
    Batch b = batch_of(r, 0);
    const float *h = p->embed;
    size_t d = r->c->hidden_size, T = p->options.T;
    for (size_t row = 0; row < r->B * T; row++)
        matrix_row(p->embed + row * d, &m->embed_tokens,
                   (size_t)r->ids[row / T * (T + 1) + row % T]);
    for (size_t l = 0; l < r->c->num_hidden_layers; l++) {
        LayerTape *t = &p->layers[l];
        t->h = h;
        block_forward(h, t->cache, &m->layers[l], r->c, &b, &t->acts);
        h = t->acts.h;
    }
    rmsnorm(p->norm, d, h, d, r->B * T, &m->norm,
            (float)r->c->rms_norm_eps);
    return h;
}

/* The first T-k rows of each sequence of h (B, T-k+1, d). */
static void hand_on(float *state, const float *h, const Run *r, size_t k)
{
    size_t T = rows_of(r, k), d = r->c->hidden_size;
    for (size_t b = 0; b < r->B; b++)
        memcpy(state + b * T * d, h + b * (T + 1) * d, T * d * sizeof *h);
}

/* h^(k-1) -> h^k                                       V3 (21), (22) */
static const float *forward_module(const Run *r, size_t k, const float *h)
{
    Pass *p = r->pass;
    size_t layer = r->c->num_hidden_layers + k - 1, d = r->c->hidden_size;
    const LayerWeights *w = &p->model->layers[layer];
    LayerTape *t = &p->layers[layer];
    MtpTape *a = &p->modules[k - 1];
    Batch b = batch_of(r, k);
    hand_on(a->state, h, r, k);
    mtp_join(a, r->ids + k, p->options.T + 1, w, &p->model->embed_tokens,
             r->c, r->B, b.T);
    t->h = a->h;
    block_forward(a->h, t->cache, w, r->c, &b, &t->acts);
    rmsnorm(a->norm, d, t->acts.h, d, r->B * b.T, &w->shared_head_norm,
            (float)r->c->rms_norm_eps);
    return r->c->mtp_carry_raw ? t->acts.h : a->norm;
}

/* Head and losses -------------------------------------------------------- */

/* Rows of one sequence: the sum of -ln p of their targets; with dh, which
 * takes the gradients by h times `factor`, and those by the head. */
static double score_rows(Pass *p, const float *h, const int32_t *targets,
                         size_t T, float factor, float *dh, Model *grads)
{
    const Matrix *head = &p->model->lm_head;
    size_t V = head->rows, d = head->cols;
    float *dw = !grads ? NULL : p->dhead ? p->dhead
                                         : matrix_numbers(&grads->lm_head);
    size_t most = logit_rows(&p->model->config, p->options.T);
    double total = 0;
    for (size_t t = 0; t < T; t += most) {
        size_t n = T - t < most ? T - t : most;
        matmul(p->logits, V, h + t * d, d, n, head);
        for (size_t i = 0; i < n; i++)
            total += cross_entropy(p->logits + i * V, V,
                                   (size_t)targets[t + i], factor);
        if (!dw)
            continue;
        memset(dh + t * d, 0, n * d * sizeof *dh);
        matmul_t(dh + t * d, d, p->logits, V, n, head);
        matmul_dw(dw, d, p->logits, V, h + t * d, d, n, V, d);
    }
    return total;
}

/* Main model (k = 0): mean over all tokens. Module k: λ/D times the sum over
 * its T-k rows divided by T                            V3 (24), (25) */
static void score_all(const Run *r, LossSums *losses, Model *grads)
{
    Pass *p = r->pass;
    size_t T = p->options.T, d = r->c->hidden_size;
    size_t D = r->c->num_nextn_predict_layers;
    double count = (double)r->l->step_sequences * (double)T;
    for (size_t b = 0; b < r->B; b++)
        for (size_t k = 0; k <= D; k++) {
            size_t n = rows_of(r, k), first = b * n * d;
            double weight = k ? r->l->lambda / (double)D : 1;
            double *loss = k ? &losses->mtp[k - 1] : &losses->main;
            const float *h = k ? p->modules[k - 1].norm : p->norm;
            *loss += score_rows(p, h + first,
                                r->ids + b * (T + 1) + k + 1, n,
                                (float)(weight / count), p->dnorm[k] + first,
                                grads)
                     / count;
        }
}

/* Backward --------------------------------------------------------------- */

static Routes routes_of(const Run *r, size_t k, const MoeActs *a)
{
    return (Routes){r->c->n_routed_experts, r->c->num_experts_per_tok, r->B,
                    rows_of(r, k), a->scores, a->topk_ids};
}

/* Balance losses of a layer of module k (0: the main model), loads; into
 * dscores what they add to the gradient, NULL: nothing. */
static void balance_layer(const Run *r, size_t layer, size_t k,
                          float *dscores, LossSums *losses, uint64_t *load)
{
    Pass *p = r->pass;
    const MoeActs *a = &p->layers[layer].acts.moe;
    size_t N = r->c->n_routed_experts, n = r->B * rows_of(r, k);
    Routes routes = routes_of(r, k, a);
    if (!p->model->layers[layer].is_moe)
        return;
    if (dscores)
        memset(dscores, 0, n * N * sizeof *dscores);
    balance_losses(p->balance + layer * BALANCE_LOSSES, dscores, &routes,
                   &r->l->balance, 1 / (double)r->l->step_sequences,
                   p->balance_work);
    if (load)
        balance_count(load + layer * N, a->topk_ids,
                      n * r->c->num_experts_per_tok);
    for (size_t i = 0;
         r->l->capacity > 0 && i < n * r->c->num_experts_per_tok; i++)
        losses->dropped += a->dropped[i] != 0;
}

/* dh (rows, d): of the layer's output, then of its input. */
static void backward_layer(const Run *r, size_t layer, size_t k, float *dh,
                           LossSums *losses, Model *grads, uint64_t *load)
{
    Pass *p = r->pass;
    LayerTape *t = &p->layers[layer];
    const LayerWeights *w = &p->model->layers[layer];
    Batch b = batch_of(r, k);
    balance_layer(r, layer, k, p->grads.moe.scores, losses, load);
    if (p->options.recompute)
        block_recompute(t->h, t->cache, w, r->c, &b, &t->acts);
    block_backward(dh, t->h, t->cache, w, &grads->layers[layer], r->c, &b,
                   &t->acts, &p->grads);
}

/* Adds dstate of module k (B, T-k, d) to the rows that it came from. */
static void hand_back(float *dh, const Run *r, size_t k)
{
    size_t T = rows_of(r, k), d = r->c->hidden_size;
    for (size_t b = 0; b < r->B; b++)
        add(dh + b * (T + 1) * d, dh + b * (T + 1) * d,
            r->pass->dstate + b * T * d, T * d);
}

/* Gradient of h, the sum of what comes through its norm and, where the raw h
 * is what goes on to the next module, of that. */
static void backward_norm(const Run *r, size_t k, float *dh, const float *h,
                          const Matrix *w, const Matrix *dw, bool raw)
{
    Pass *p = r->pass;
    size_t d = r->c->hidden_size, n = r->B * rows_of(r, k);
    bool more = k < r->c->num_nextn_predict_layers;
    if (more && !raw)
        hand_back(p->dnorm[k], r, k + 1);
    rmsnorm_backward(dh, d, matrix_numbers(dw), p->dnorm[k], d, h, d, n, w,
                     (float)r->c->rms_norm_eps);
    if (more && raw)
        hand_back(dh, r, k + 1);
}

static void backward_module(const Run *r, size_t k, LossSums *losses,
                            Model *grads, uint64_t *load)
{
    Pass *p = r->pass;
    size_t layer = r->c->num_hidden_layers + k - 1;
    const LayerWeights *w = &p->model->layers[layer];
    const LayerWeights *dw = &grads->layers[layer];
    float *dh = p->dembed[k];
    backward_norm(r, k, dh, p->layers[layer].acts.h, &w->shared_head_norm,
                  &dw->shared_head_norm, r->c->mtp_carry_raw);
    backward_layer(r, layer, k, dh, losses, grads, load);
    memcpy(p->dnorm[k], dh,
           r->B * rows_of(r, k) * r->c->hidden_size * sizeof *dh);
    mtp_join_backward(p->dstate, p->dembed[k], p->dnorm[k], p->dpair,
                      &p->modules[k - 1], w, dw, r->c, r->B, rows_of(r, k));
}

static void backward_main(const Run *r, const float *h, LossSums *losses,
                          Model *grads, uint64_t *load)
{
    Pass *p = r->pass;
    backward_norm(r, 0, p->dembed[0], h, &p->model->norm, &grads->norm,
                  r->c->mtp_before_norm);
    for (size_t l = r->c->num_hidden_layers; l > 0; l--)
        backward_layer(r, l - 1, 0, p->dembed[0], losses, grads, load);
}

/* Every row adds to the row of its token: of a sequence the main model's
 * first, then the modules'. */
static void backward_embedding(const Run *r, Model *grads)
{
    Pass *p = r->pass;
    size_t T = p->options.T, d = r->c->hidden_size;
    float *dw = matrix_numbers(&grads->embed_tokens);
    for (size_t b = 0; b < r->B; b++)
        for (size_t k = 0; k <= r->c->num_nextn_predict_layers; k++)
            for (size_t t = 0; t < T - k; t++) {
                size_t id = (size_t)r->ids[b * (T + 1) + t + k];
                add(dw + id * d, dw + id * d,
                    p->dembed[k] + (b * (T - k) + t) * d, d);
            }
}

/* All of it -------------------------------------------------------------- */

static void exempt_sequences(Run *r)
{
    Pass *p = r->pass;
    for (size_t b = 0; b < r->B; b++)
        p->exempt[b] = drop_exempt(r->l->seed, r->l->sequence + b,
                                   r->l->exempt_rate);
    r->dropping = (Dropping){r->l->capacity, r->l->balance.devices,
                             p->exempt, p->drop_work};
}

static int check_ids(const Run *r, Error *err)
{
    size_t V = r->c->vocab_size, n = r->B * (r->pass->options.T + 1);
    for (size_t i = 0; i < n; i++)
        if (r->ids[i] < 0 || (size_t)r->ids[i] >= V)
            return fail(err, "id %zu of a batch: wanted 0 to %zu"
                        " (vocab_size - 1), found %ld", i, V - 1,
                        (long)r->ids[i]);
    return 0;
}

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

/* Says where numbers stopped being finite: a weight, else the first output of
 * a layer. */
static int explain(const Run *r, const LossSums *losses, Error *err)
{
    const Pass *p = r->pass;
    size_t L = r->c->num_hidden_layers, d = r->c->hidden_size;
    if (model_find_not_finite(p->model, err))
        return -1;
    for (size_t l = 0; l < L + r->c->num_nextn_predict_layers; l++)
        if (!all_finite(p->layers[l].acts.h,
                        r->B * rows_of(r, l < L ? 0 : l - L + 1) * d))
            return fail(err, "model.layers.%zu: its output is not finite", l);
    return fail(err, "the loss is %g, wanted a finite number",
                losses->main);
}

static int check_losses(const Run *r, const LossSums *losses, Error *err)
{
    size_t D = r->c->num_nextn_predict_layers;
    size_t layers = r->c->num_hidden_layers + D;
    double total = losses->main;
    for (size_t k = 0; k < D; k++)
        total += losses->mtp[k];
    for (size_t i = 0; i < layers * BALANCE_LOSSES; i++)
        total += r->pass->balance[i];
    return isfinite(total) ? 0 : explain(r, losses, err);
}

int pass_run(Pass *p, const int32_t *ids, size_t n, const PassLoss *l,
             LossSums *losses, Model *grads, uint64_t *load, Error *err)
{
    const Config *c = &p->model->config;
    size_t D = c->num_nextn_predict_layers, L = c->num_hidden_layers;
    Run r = {.pass = p, .c = c, .ids = ids, .B = n, .l = l};
    if (check_ids(&r, err))
        return -1;
    exempt_sequences(&r);
    const float *last = forward_layers(&r);
    const float *h = c->mtp_before_norm ? last : p->norm;
    for (size_t k = 1; k <= D; k++)
        h = forward_module(&r, k, h);
    score_all(&r, losses, grads);
    for (size_t layer = 0; !grads && layer < L + D; layer++)
        balance_layer(&r, layer, layer < L ? 0 : layer - L + 1, NULL, losses,
                      load);
    for (size_t k = D; grads && k > 0; k--)
        backward_module(&r, k, losses, grads, load);
    if (grads) {
        backward_main(&r, last, losses, grads, load);
        backward_embedding(&r, grads);
    }
    return check_losses(&r, losses, err);
}

/* A layer's balance losses are sums over sequences; those of all layers are
 * added up now, so that passes do not tell. */
static void finish_losses(Pass *p, LossSums *losses)
{
    const Config *c = &p->model->config;
    size_t n = c->num_hidden_layers + c->num_nextn_predict_layers;
    for (size_t i = 0; i < n * BALANCE_LOSSES; i++) {
        losses->balance[i % BALANCE_LOSSES] += p->balance[i];
        p->balance[i] = 0;
    }
}

void pass_finish(Pass *p, LossSums *losses, Model *grads)
{
    const Config *c = &p->model->config;
    size_t n = c->vocab_size * c->hidden_size;
    finish_losses(p, losses);
    if (!grads || !p->dhead)
        return;
    float *dw = matrix_numbers(&grads->embed_tokens);
    add(dw, dw, p->dhead, n);
    memset(p->dhead, 0, n * sizeof *dw);
}
