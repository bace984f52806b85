/* cost.c: parameters, bytes and operations of a model, from its config alone.
 *
 * One walk over the table of tensors (tensor_walk) sums the parameters of each
 * kind of module and the bytes that a checkpoint of them takes; what a token
 * activates, caches and costs follows from these sums, and what a step of
 * decoding reads, with drafts or without. No shape is written a second time
 * here. Published figures that come out exactly: V3's 91,991 tensors and
 * 688,574,839,360 bytes (tests/test_cost.c has them all). */
#include "deepseek.h"

#include <string.h>

enum {
    GQA_GROUPS = 8,       /* of the comparison in V2 Table 8 */
    TRAIN_SEQUENCE = 4096 /* V2 §3.1.2, V3 §4.2 */
};

/* Parameters, summed over the layers of the main model or of MTP. */
typedef struct {
    uint64_t tables;  /* embedding and head */
    uint64_t mla, dense_ffn, routed, shared, gate, rest;
} Sums;

static uint64_t elements(const TensorInfo *t)
{
    return t->rank == 1 ? t->cols : (uint64_t)t->rows * t->cols;
}

static uint64_t *sum_of(Sums *s, const TensorInfo *t)
{
    if (t->kind == TENSOR_EMBED || t->kind == TENSOR_HEAD)
        return &s->tables;
    if (t->kind == TENSOR_GATE || t->kind == TENSOR_BIAS)
        return &s->gate;
    if (t->routed)
        return &s->routed;
    if (t->shared)
        return &s->shared;
    if (strstr(t->name, ".self_attn.") != NULL)
        return &s->mla;
    return strstr(t->name, ".mlp.") != NULL ? &s->dense_ffn : &s->rest;
}

static uint64_t sum_all(const Sums *s)
{
    return s->tables + s->mla + s->dense_ffn + s->routed + s->shared +
           s->gate + s->rest;
}

static uint64_t blocks(size_t n)
{
    return n / F8_BLOCK + (n % F8_BLOCK != 0);
}

static bool has_scales(const TensorInfo *t, DType checkpoint)
{
    return tensor_dtype(t, checkpoint) == DT_F8_E4M3;
}

/* The tensor as it is stored, with the scales of an FP8 weight: V3 §3.3.2 */
static uint64_t stored_bytes(const TensorInfo *t, DType checkpoint)
{
    uint64_t scales = has_scales(t, checkpoint)
                          ? blocks(t->rows) * blocks(t->cols) : 0;
    return elements(t) * dtype_size(tensor_dtype(t, checkpoint)) +
           scales * dtype_size(DT_F32);
}

static uint64_t per(uint64_t sum, uint64_t n)
{
    return n > 0 ? sum / n : 0;
}

/* Of each token only K of N experts run: V2 (20), V3 (12). */
static uint64_t activated(const Sums *s, const Config *c)
{
    return sum_all(s) - s->routed +
           per(s->routed, c->n_routed_experts) * c->num_experts_per_tok;
}

static void count_modules(Costs *costs, const Sums *s, const Config *c)
{
    uint64_t layers = c->num_hidden_layers, moe = 0;
    for (size_t l = 0; l < layers; l++)
        moe += config_is_moe(c, l);
    costs->embedding = (uint64_t)c->vocab_size * c->hidden_size;
    costs->mla = per(s->mla, layers);
    costs->dense_ffn = per(s->dense_ffn, layers - moe);
    costs->routed_expert = per(s->routed, moe * c->n_routed_experts);
    costs->shared_experts = per(s->shared, moe);
    costs->gate = per(s->gate, moe);
    costs->moe_ffn = per(s->routed + s->shared + s->gate, moe);
}

static void count_totals(Costs *costs, const Sums *s, const Sums *mtp,
                         const Config *c)
{
    costs->total = sum_all(s);
    costs->activated = activated(s, c);
    costs->activated_no_embedding =
        costs->activated - (c->tie_word_embeddings ? 0 : costs->embedding);
    costs->mtp_with_copies = sum_all(mtp);
    costs->mtp_unique = costs->mtp_with_copies - mtp->tables;
    costs->mtp_activated = activated(mtp, c);
    costs->checkpoint_total = costs->total + costs->mtp_with_copies;
}

/* V2 Table 1: elements a token. A head's key and value are d_h and d_v wide
 * in the other designs, as if they had no decoupled RoPE. */
static void count_cache(Costs *costs, const Config *c)
{
    uint64_t l = c->num_hidden_layers, heads = c->num_attention_heads;
    uint64_t latent = c->kv_lora_rank + c->qk_rope_head_dim;
    uint64_t head = c->qk_nope_head_dim + c->v_head_dim;
    costs->cache_mla = l * latent;
    costs->cache_mla_mtp = (l + c->num_nextn_predict_layers) * latent;
    costs->cache_naive = l * heads * (head + c->qk_rope_head_dim);
    costs->cache_mha = l * heads * head;
    costs->cache_gqa8 = l * (heads < GQA_GROUPS ? heads : GQA_GROUPS) * head;
    costs->cache_mqa = l * head;
}

/* A token's scores and weighted values over one position, all layers: with
 * keys and values as they are cached (d_c + d_r, d_c), or expanded. */
static void count_flops(Costs *costs, const Config *c, size_t ctx)
{
    double heads = 2.0 * (double)c->num_hidden_layers *
                   (double)c->num_attention_heads;
    double absorbed = heads * (double)(2 * c->kv_lora_rank +
                                       c->qk_rope_head_dim);
    double naive = heads * (double)(c->qk_nope_head_dim +
                                    c->qk_rope_head_dim + c->v_head_dim);
    double weights = (double)costs->activated_no_embedding;
    costs->flops_weights = 2 * weights;
    costs->flops_absorbed = absorbed * (double)ctx;
    costs->flops_naive = naive * (double)ctx;
    /* The backward pass is two forward ones; a token of a sequence attends to
     * half of it on average. */
    costs->flops_train = 6 * weights + 3 * naive * TRAIN_SEQUENCE / 2;
}

void cost_count(Costs *costs, const Config *c, DType checkpoint, size_t ctx)
{
    Sums main = {0}, mtp = {0};
    TensorWalk walk = tensor_walk(c, NULL);
    TensorInfo t;
    *costs = (Costs){0};
    while (tensor_next(&walk, &t)) {
        *sum_of(t.mtp ? &mtp : &main, &t) += elements(&t);
        costs->tensors += has_scales(&t, checkpoint) ? 2 : 1;
        costs->checkpoint_bytes += stored_bytes(&t, checkpoint);
    }
    count_modules(costs, &main, c);
    count_totals(costs, &main, &mtp, c);
    count_cache(costs, c);
    count_flops(costs, c, ctx);
}

/* Steps of decoding: V3 §5.4.3 ------------------------------------------- */

/* Bytes of a checkpoint, by what a step reads of them. */
typedef struct {
    double weights, routed;                /* of the main model */
    double module_weights, module_routed;  /* of a module, without tables */
    double head;
} Parts;

static Parts parts_of(const Config *c, DType checkpoint)
{
    Parts p = {0};
    double modules = (double)c->num_nextn_predict_layers;
    TensorWalk walk = tensor_walk(c, NULL);
    TensorInfo t;
    while (tensor_next(&walk, &t)) {
        double bytes = (double)stored_bytes(&t, checkpoint);
        bool tied = t.kind == TENSOR_EMBED && c->tie_word_embeddings;
        if (!t.mtp && (t.kind == TENSOR_HEAD || tied))
            p.head = bytes;
        else if (t.kind == TENSOR_HEAD || t.kind == TENSOR_EMBED)
            continue;
        else if (t.mtp)
            *(t.routed ? &p.module_routed : &p.module_weights) +=
                bytes / modules;
        else
            *(t.routed ? &p.routed : &p.weights) += bytes;
    }
    p.weights += p.head;
    return p;
}

static double power(double x, size_t n)
{
    double y = 1;
    for (; n > 0; n /= 2, x *= x)
        y *= n % 2 ? x : 1;
    return y;
}

/* What an expert is not picked by: n tokens, each of which picks K of N
 * without regard to the others. */
static double missed(const Config *c, size_t n)
{
    double N = (double)c->n_routed_experts;
    return N > 0 ? power(1 - (double)c->num_experts_per_tok / N, n) : 1;
}

/* Likewise the rows of module j, whose last is that of draft j. j <= D: those
 * that were not final, j - 1 and as many as the last step gave tokens, i + 1
 * with probability a^i (1-a), at most K + 1. j > D: one. */
static double missed_by_module(const Config *c, const Step *s, size_t j)
{
    double a = s->acceptance, sum = 0, kept = 1;
    if (j > c->num_nextn_predict_layers)
        return missed(c, 1);
    for (size_t i = 0; i < s->drafts; i++, kept *= a)
        sum += kept * (1 - a) * missed(c, i + j);
    return sum + kept * missed(c, s->drafts + j);
}

double cost_step(StepBytes *b, const Config *c, DType checkpoint,
                 const Step *s)
{
    Parts p = parts_of(c, checkpoint);
    double N = (double)c->n_routed_experts;
    double cache = (double)(sizeof(float) * s->batch * s->ctx) *
                   (double)(c->kv_lora_rank + c->qk_rope_head_dim);
    double hit = 1 - power(missed(c, s->drafts + 1), s->batch);
    *b = (StepBytes){.weights = p.weights};
    b->distinct = s->experts > 0 ? s->experts : N * hit;
    b->experts = N > 0 ? p.routed * b->distinct / N : 0;
    b->cache = cache * (double)c->num_hidden_layers;
    b->heads = p.head * (double)s->drafts;
    for (size_t j = 1; j <= s->drafts; j++) {
        hit = 1 - power(missed_by_module(c, s, j), s->batch);
        b->modules += p.module_weights + p.module_routed * hit + cache;
    }
    return b->weights + b->experts + b->cache + b->modules + b->heads;
}

double cost_tokens(double a, size_t drafts)
{
    double sum = 1;
    while (drafts-- > 0)
        sum = 1 + a * sum;
    return sum;
}

double cost_speed_up(const Config *c, DType checkpoint, const Step *s)
{
    Step plain = *s;
    StepBytes bytes;
    plain.drafts = 0;
    return cost_tokens(s->acceptance, s->drafts) *
           cost_step(&bytes, c, checkpoint, &plain) /
           cost_step(&bytes, c, checkpoint, s);
}

/* Rows to print ---------------------------------------------------------- */

#define ROW(group, field, label, reference) \
    {COST_##group, #field, label, reference, offsetof(Costs, field)}

static const CostRow rows[] = {
    ROW(PARAMETERS, embedding, "embedding, and as many in the head",
        "V2 §3.1.2, V3 §4.2"),
    ROW(PARAMETERS, mla, "MLA of one layer", "V2 §2.1, V3 §2.1.1"),
    ROW(PARAMETERS, dense_ffn, "FFN of one dense layer",
        "V2 §3.1.2, V3 §4.2"),
    ROW(PARAMETERS, routed_expert, "one routed expert",
        "V2 §2.2.1, V3 §2.1.2"),
    ROW(PARAMETERS, shared_experts, "shared experts of one layer",
        "V2 §2.2.1, V3 §2.1.2"),
    ROW(PARAMETERS, gate, "gate of one layer", "V2 §2.2.1, V3 §2.1.2"),
    ROW(PARAMETERS, moe_ffn, "all experts and gate of one layer",
        "V2 §2.2, V3 §2.1.2"),
    ROW(PARAMETERS, total, "main model", "V2 §3.1.2, V3 §4.2"),
    ROW(PARAMETERS, activated, "activated by a token",
        "V2 §3.1.2, V3 §4.2"),
    ROW(PARAMETERS, activated_no_embedding,
        "activated, without the input table", "V2 §3.1.2, V3 §4.2"),
    ROW(PARAMETERS, mtp_unique, "MTP layers, their own", "V3 §2.2"),
    ROW(PARAMETERS, mtp_with_copies, "MTP layers as stored, with tables",
        "V3 §2.2"),
    ROW(PARAMETERS, mtp_activated, "MTP, activated by a token", "V3 §2.2"),
    ROW(PARAMETERS, checkpoint_total, "main model and MTP layers", "V3 §4.2"),
    ROW(CHECKPOINT, tensors, "tensors", "V3 §3.3.2"),
    ROW(CHECKPOINT, checkpoint_bytes, "bytes", "V3 §3.3.2"),
    ROW(CACHE, cache_mla, "MLA", "V2 §2.1.4"),
    ROW(CACHE, cache_mla_mtp, "MLA, with the MTP layers", "V3 §2.2"),
    ROW(CACHE, cache_naive, "MLA with keys and values expanded",
        "V2 §2.1.2"),
    ROW(CACHE, cache_mha, "MHA with these heads", "V2 Table 1"),
    ROW(CACHE, cache_gqa8, "GQA with at most 8 groups", "V2 Table 1"),
    ROW(CACHE, cache_mqa, "MQA", "V2 Table 1"),
    ROW(FLOPS, flops_weights, "forward, products with weights",
        "V2 §3.1.2, V3 §4.2"),
    ROW(FLOPS, flops_absorbed, "forward, attention, absorbed",
        "V2 §2.1.2"),
    ROW(FLOPS, flops_naive, "forward, attention, naive", "V2 §2.1.2"),
    ROW(FLOPS, flops_train, "training, sequences of 4096",
        "V2 §3.1.2, V3 §4.2"),
};

const CostRow *cost_rows(size_t *n)
{
    *n = sizeof rows / sizeof rows[0];
    return rows;
}
