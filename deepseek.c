/* deepseek.c: the forward pass, its cache, generation ------- V2 §2, V3 §2
 *
 *   h = Emb(t)
 *   in every layer: h += MLA(RMSNorm(h)), h += FFN(RMSNorm(h))
 *   logits = Head(RMSNorm(h))
 *
 * A Session is a model with a cache and one set of activations, which every
 * layer of a pass uses in turn, MTP modules too (mtp.c runs them behind it).
 * One table, in stages, lists every buffer: its shape, the name it has in a
 * trace, when it exists; opening, the memory formula and tracing walk it.
 *
 * Invariants: this file composes and never touches a number of the model: it
 * hands pointers on, and reads back logits. The cache holds d_c + d_r numbers
 * a token and layer; rows below `pos` are final. A prompt in chunks, whole, or
 * token by token gives the same bits.
 *
 * Not here: files and shapes of weights (model.c), what a layer computes
 * (mla.c, moe.c), text (tokenizer.c). */
#include "deepseek.h"

#include "base/backward.h"
#include "base/device.h"
#include "base/maths.h"
#include "base/os.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Everything a buffer's side can be; plan() gives the numbers. */
typedef enum {
    ONE, TOKENS, CTX, LAYERS, ROWS_OUT, VOCAB, HIDDEN, PAIRS, Q_LORA, HEADS,
    D_QK, D_QUERY, D_CACHE, D_C, D_R, D_KV, D_V, BLOCK, SPAN, INTER, EXPERTS,
    EXPERTS_1, GROUPS, KEPT, TOPK, PICKS, MOE_INTER, SHARED_INTER, FFN_WIDEST,
    HIDDEN_2, MODULES, FP8_INPUT, FP8_QUARTER, FP8_TILES, EXTENTS
} Extent;

/* When a buffer exists, and in which layers a trace shows it. */
typedef enum {
    ALWAYS, WITH_Q_LORA, WITHOUT_Q_LORA, NAIVE, ABSORBED, DENSE, MOE, BIASED,
    GROUPED, SHARED, TRACED, WITH_FP8, WITH_MODULES, COUNTED
} When;

/* A row allocates, or it shows what another row allocates. */
typedef enum {
    OWN, OWN_INT, OWN_HOST, SHOWN, CACHE_HEAD, CACHE_TAIL, QUERY_TAIL, MASKED,
    ENORM, HNORM
} Storage;

typedef struct {
    const char *name;    /* in a trace; NULL: not shown */
    Storage storage;
    size_t offset;       /* of the pointer in Session */
    Extent shape[3];
    When when;
} Buffer;

#define IN(field) offsetof(Session, field)

static const Buffer first_buffers[] = {
    {NULL, OWN, IN(cache), {LAYERS, CTX, D_CACHE}, ALWAYS},
    {"model.rotary_emb.cos", OWN, IN(cos), {TOKENS, ONE, PAIRS}, ALWAYS},
    {"model.rotary_emb.sin", OWN, IN(sin), {TOKENS, ONE, PAIRS}, ALWAYS},
    {"model.embed_tokens", OWN, IN(embed), {TOKENS, ONE, HIDDEN}, ALWAYS},
};

/* In the order of computation; the name follows "model.layers.L". Before an
 * MTP module's block come its own. */
static const Buffer pair_buffers[] = {
    {NULL, OWN, IN(mtp.kept), {MODULES, ONE, HIDDEN}, WITH_MODULES},
    {NULL, OWN, IN(mtp.pair), {TOKENS, ONE, HIDDEN_2}, WITH_MODULES},
    {".enorm", ENORM, IN(mtp.pair), {TOKENS, ONE, HIDDEN}, WITH_MODULES},
    {".hnorm", HNORM, IN(mtp.pair), {TOKENS, ONE, HIDDEN}, WITH_MODULES},
    {".eh_proj", OWN, IN(mtp.h), {TOKENS, ONE, HIDDEN}, WITH_MODULES},
};

static const Buffer block_buffers[] = {
    {".input_layernorm", OWN, IN(acts.attn_norm), {TOKENS, ONE, HIDDEN},
     ALWAYS},
    {".self_attn.q_a_proj", OWN, IN(acts.mla.c_q_raw), {TOKENS, ONE, Q_LORA},
     WITH_Q_LORA},
    {".self_attn.q_a_layernorm", OWN, IN(acts.mla.c_q),
     {TOKENS, ONE, Q_LORA}, WITH_Q_LORA},
    {".self_attn.q_b_proj", OWN, IN(acts.mla.q), {TOKENS, HEADS, D_QK},
     WITH_Q_LORA},
    {".self_attn.q_proj", OWN, IN(acts.mla.q), {TOKENS, HEADS, D_QK},
     WITHOUT_Q_LORA},
    {".self_attn.kv_a_proj_with_mqa", OWN, IN(acts.mla.kv_raw),
     {TOKENS, ONE, D_CACHE}, ALWAYS},
    {".self_attn.kv_a_layernorm", CACHE_HEAD, IN(cache), {TOKENS, ONE, D_C},
     ALWAYS},
    {".self_attn.k_pe", CACHE_TAIL, IN(cache), {TOKENS, ONE, D_R}, ALWAYS},
    {".self_attn.query", OWN, IN(acts.mla.query), {TOKENS, HEADS, D_QUERY},
     ALWAYS},
    {".self_attn.q_pe", QUERY_TAIL, IN(acts.mla.query), {TOKENS, HEADS, D_R},
     ALWAYS},
    {NULL, OWN, IN(acts.mla.kv), {CTX, HEADS, D_KV}, NAIVE},
    {NULL, OWN, IN(acts.mla.key), {CTX, HEADS, D_QK}, NAIVE},
    {NULL, OWN, IN(acts.mla.scores), {BLOCK, HEADS, SPAN}, ALWAYS},
    {NULL, OWN, IN(acts.mla.probs), {BLOCK, HEADS, SPAN}, ALWAYS},
    {".self_attn.scores", MASKED, IN(acts.mla.scores),
     {TOKENS, HEADS, SPAN}, ALWAYS},
    {".self_attn.probs", MASKED, IN(acts.mla.probs), {TOKENS, HEADS, SPAN},
     ALWAYS},
    {".self_attn.z", OWN, IN(acts.mla.z), {TOKENS, HEADS, D_C}, ABSORBED},
    {".self_attn.o", OWN, IN(acts.mla.o), {TOKENS, HEADS, D_V}, ALWAYS},
    {".self_attn.o_proj", OWN, IN(acts.attn_out), {TOKENS, ONE, HIDDEN},
     ALWAYS},
    {".attn_residual", OWN, IN(acts.attn_residual), {TOKENS, ONE, HIDDEN},
     ALWAYS},
    {".post_attention_layernorm", OWN, IN(acts.ffn_norm),
     {TOKENS, ONE, HIDDEN}, ALWAYS},
    {NULL, OWN, IN(acts.ffn.gate), {TOKENS, ONE, FFN_WIDEST}, ALWAYS},
    {NULL, OWN, IN(acts.ffn.up), {TOKENS, ONE, FFN_WIDEST}, ALWAYS},
    {NULL, OWN, IN(acts.ffn.h), {TOKENS, ONE, FFN_WIDEST}, TRACED},
    {".mlp.gate_proj", SHOWN, IN(acts.ffn.gate), {TOKENS, ONE, INTER}, DENSE},
    {".mlp.up_proj", SHOWN, IN(acts.ffn.up), {TOKENS, ONE, INTER}, DENSE},
    {".mlp.h", SHOWN, IN(acts.ffn.h), {TOKENS, ONE, INTER}, DENSE},
    {".mlp.gate.logits", OWN, IN(acts.moe.logits), {TOKENS, ONE, EXPERTS},
     MOE},
    {".mlp.gate.scores", OWN, IN(acts.moe.scores), {TOKENS, ONE, EXPERTS},
     MOE},
    {NULL, OWN, IN(acts.moe.bias), {ONE, ONE, EXPERTS}, BIASED},
    {".mlp.gate.choice", OWN, IN(acts.moe.choice), {TOKENS, ONE, EXPERTS},
     MOE},
    {".mlp.gate.group_scores", OWN, IN(acts.moe.group_scores),
     {TOKENS, ONE, GROUPS}, GROUPED},
    {NULL, OWN_INT, IN(acts.moe.kept), {ONE, ONE, KEPT}, GROUPED},
    {".mlp.gate.topk_ids", OWN_INT, IN(acts.moe.topk_ids),
     {TOKENS, ONE, TOPK}, MOE},
    {".mlp.gate.topk_weights", OWN, IN(acts.moe.topk_weights),
     {TOKENS, ONE, TOPK}, MOE},
    {NULL, OWN_INT, IN(acts.moe.first), {ONE, ONE, EXPERTS_1}, MOE},
    {NULL, OWN_HOST, IN(host_first), {ONE, ONE, EXPERTS_1}, COUNTED},
    {NULL, OWN_INT, IN(acts.moe.pick), {ONE, ONE, PICKS}, MOE},
    {NULL, OWN, IN(acts.moe.x), {TOKENS, ONE, HIDDEN}, MOE},
    {NULL, OWN, IN(acts.moe.routed.gate), {TOKENS, ONE, MOE_INTER}, MOE},
    {NULL, OWN, IN(acts.moe.routed.up), {TOKENS, ONE, MOE_INTER}, MOE},
    {NULL, OWN, IN(acts.moe.y), {TOKENS, ONE, HIDDEN}, MOE},
    {".mlp.routed_out", OWN, IN(acts.moe.routed_out), {TOKENS, ONE, HIDDEN},
     MOE},
    {".mlp.shared_experts.gate_proj", SHOWN, IN(acts.ffn.gate),
     {TOKENS, ONE, SHARED_INTER}, SHARED},
    {".mlp.shared_experts.up_proj", SHOWN, IN(acts.ffn.up),
     {TOKENS, ONE, SHARED_INTER}, SHARED},
    {".mlp.shared_experts.h", SHOWN, IN(acts.ffn.h),
     {TOKENS, ONE, SHARED_INTER}, SHARED},
    {".mlp.shared_out", OWN, IN(acts.moe.shared_out), {TOKENS, ONE, HIDDEN},
     SHARED},
    {".mlp", OWN, IN(acts.ffn_out), {TOKENS, ONE, HIDDEN}, ALWAYS},
    {"", OWN, IN(acts.h), {TOKENS, ONE, HIDDEN}, ALWAYS},
    {NULL, OWN, IN(acts.fp8.codes), {ONE, ONE, FP8_QUARTER}, WITH_FP8},
    {NULL, OWN, IN(acts.fp8.values), {ONE, ONE, FP8_INPUT}, WITH_FP8},
    {NULL, OWN, IN(acts.fp8.scales), {ONE, ONE, FP8_TILES}, WITH_FP8},
};

static const Buffer mtp_norm_buffers[] = {
    {".shared_head.norm", OWN, IN(mtp.norm), {TOKENS, ONE, HIDDEN},
     WITH_MODULES},
};

static const Buffer last_buffers[] = {
    {"model.norm", OWN, IN(norm), {TOKENS, ONE, HIDDEN}, ALWAYS},
    {"logits", OWN, IN(logits), {ROWS_OUT, ONE, VOCAB}, ALWAYS},
    {NULL, OWN_HOST, IN(host_logits), {ROWS_OUT, ONE, VOCAB}, ALWAYS},
};

/* The name follows "mtp.K". */
static const Buffer mtp_logits_buffers[] = {
    {".logits", SHOWN, IN(logits), {ROWS_OUT, ONE, VOCAB}, WITH_MODULES},
};

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define TABLE(buffers) {buffers, LENGTH(buffers)}

static const struct {
    const Buffer *rows;
    size_t n;
} stages[] = {
    [STAGE_FIRST] = TABLE(first_buffers),
    [STAGE_PAIR] = TABLE(pair_buffers),
    [STAGE_BLOCK] = TABLE(block_buffers),
    [STAGE_MTP_NORM] = TABLE(mtp_norm_buffers),
    [STAGE_LAST] = TABLE(last_buffers),
    [STAGE_MTP_LOGITS] = TABLE(mtp_logits_buffers),
};

/* Bytes that the two score buffers may take: a block of tokens is as many as
 * fit, so that a long context does not need memory for a whole chunk; and no
 * more than SCORE_TOKENS, for its first tokens' scores of later positions are
 * computed for nothing. The longest context is the greatest
 * max_position_embeddings. */
enum { SCORE_BYTES = 2 << 20, SCORE_TOKENS = 36, MAX_CTX = 1 << 30 };

/* a·b; SIZE_MAX, which no allocation grants, if that is too much. */
static size_t product(size_t a, size_t b)
{
    return b && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}

static size_t greater(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t score_block(const Config *c, const SessionOptions *o,
                          size_t chunk)
{
    uint64_t row = (uint64_t)2 * c->num_attention_heads * o->ctx
                   * sizeof(float);
    size_t n = row ? (size_t)(SCORE_BYTES / row) : 0;
    if (o->trace)
        return chunk;
    n = n < SCORE_TOKENS ? n : SCORE_TOKENS;
    return n < 1 ? 1 : n < chunk ? n : chunk;
}

/* Rows of experts are counted in int32_t. */
static size_t chunk_of(const Config *c, const SessionOptions *o)
{
    size_t chunk = o->chunk ? o->chunk : 128, K = c->num_experts_per_tok;
    if (K && chunk > INT32_MAX / K)
        chunk = INT32_MAX / K;
    return chunk < o->ctx ? chunk : o->ctx;
}

/* Whether a layer, or a module that runs, has experts (or has not). */
static bool has_layer(const Config *c, const SessionOptions *o, bool moe)
{
    for (size_t l = 0; l < c->num_hidden_layers + o->modules; l++)
        if (config_is_moe(c, l) == moe)
            return true;
    return false;
}

/* The largest input of a Linear layer: (T, widest), but kv_b_proj's, which is
 * (S, d_c) in the naive form. A code is a quarter of a float. */
static void plan_fp8(size_t n[EXTENTS])
{
    const Extent inputs[] = {HIDDEN, Q_LORA, FFN_WIDEST, MOE_INTER};
    size_t widest = product(n[HEADS], n[D_V]);
    for (size_t i = 0; i < LENGTH(inputs); i++)
        widest = n[inputs[i]] > widest ? n[inputs[i]] : widest;
    n[FP8_INPUT] = greater(product(n[TOKENS], widest),
                           product(n[CTX], n[D_C]));
    n[FP8_QUARTER] = n[FP8_INPUT] / 4 + 1;
    n[FP8_TILES] = greater(product(n[TOKENS], fp8_blocks(widest)),
                           product(n[CTX], fp8_blocks(n[D_C])));
}

/* Rows of a pass of T tokens that have logits. */
static size_t logit_rows(const SessionOptions *o, size_t T)
{
    return o->logit_rows < 1 ? 1 : o->logit_rows < T ? o->logit_rows : T;
}

static void plan(size_t n[EXTENTS], const Config *c, const SessionOptions *o)
{
    size_t T = chunk_of(c, o), d_h = c->qk_nope_head_dim;
    size_t d_r = c->qk_rope_head_dim, d_c = c->kv_lora_rank;
    n[ONE] = 1;
    n[TOKENS] = T;
    n[CTX] = n[SPAN] = o->ctx;
    n[LAYERS] = c->num_hidden_layers + o->modules;
    n[MODULES] = o->modules;
    n[ROWS_OUT] = logit_rows(o, T);
    n[VOCAB] = c->vocab_size;
    n[HIDDEN] = c->hidden_size;
    n[HIDDEN_2] = 2 * c->hidden_size;
    n[PAIRS] = d_r / 2;
    n[Q_LORA] = c->q_lora_rank;
    n[HEADS] = c->num_attention_heads;
    n[D_QK] = d_h + d_r;
    n[D_QUERY] = o->naive ? d_h + d_r : d_c + d_r;
    n[D_CACHE] = d_c + d_r;
    n[D_C] = d_c;
    n[D_R] = d_r;
    n[D_KV] = d_h + c->v_head_dim;
    n[D_V] = c->v_head_dim;
    n[BLOCK] = score_block(c, o, T);
    n[INTER] = c->intermediate_size;
    n[EXPERTS] = c->n_routed_experts;
    n[EXPERTS_1] = c->n_routed_experts + 1;
    n[GROUPS] = c->n_group;
    n[KEPT] = c->topk_group;
    n[TOPK] = c->num_experts_per_tok;
    n[PICKS] = T * c->num_experts_per_tok;
    n[MOE_INTER] = c->moe_intermediate_size;
    n[SHARED_INTER] = c->n_shared_experts * c->moe_intermediate_size;
    n[FFN_WIDEST] = n[SHARED_INTER] > n[INTER] || !has_layer(c, o, false)
                        ? n[SHARED_INTER] : n[INTER];
    plan_fp8(n);
}

/* moe, dense: whether such layers are meant (one layer's kind in a trace,
 * any layer's when memory is planned). */
static bool is_there(When when, const Config *c, const SessionOptions *o,
                     bool dense, bool moe)
{
    switch (when) {
    case ALWAYS: return true;
    case WITH_Q_LORA: return c->q_lora_rank > 0;
    case WITHOUT_Q_LORA: return c->q_lora_rank == 0;
    case NAIVE: return o->naive;
    case ABSORBED: return !o->naive;
    case DENSE: return dense;
    case MOE: return moe;
    case BIASED: return moe && c->topk_method == TOPK_NOAUX_TC;
    case GROUPED: return moe && c->topk_method != TOPK_GREEDY;
    case SHARED: return moe && c->n_shared_experts > 0;
    case TRACED: return o->trace != NULL;
    case WITH_FP8: return o->fp8;
    case WITH_MODULES: return o->modules > 0;
    case COUNTED: return moe && o->modules > 0;
    }
    return false;
}

/* Walks the rows that own memory: row i of all tables, or NULL. */
static const Buffer *owner(size_t i, const Config *c, const SessionOptions *o)
{
    size_t stage = 0;
    for (; i >= stages[stage].n; stage++)
        i -= stages[stage].n;
    const Buffer *b = &stages[stage].rows[i];
    return b->storage <= OWN_HOST
                   && is_there(b->when, c, o, has_layer(c, o, false),
                               has_layer(c, o, true))
               ? b : NULL;
}

enum {
    ALL_BUFFERS = LENGTH(first_buffers) + LENGTH(pair_buffers)
                  + LENGTH(block_buffers) + LENGTH(mtp_norm_buffers)
                  + LENGTH(last_buffers) + LENGTH(mtp_logits_buffers)
};

static size_t elements(const Buffer *b, const size_t n[EXTENTS])
{
    return product(n[b->shape[0]], product(n[b->shape[1]], n[b->shape[2]]));
}

size_t session_bytes(const Config *c, const SessionOptions *o)
{
    size_t n[EXTENTS], bytes = c->qk_rope_head_dim / 2 * sizeof(double);
    plan(n, c, o);
    for (size_t i = 0; i < ALL_BUFFERS; i++) {
        const Buffer *b = owner(i, c, o);
        size_t more = b ? product(elements(b, n), sizeof(float)) : 0;
        bytes = more > SIZE_MAX - bytes ? SIZE_MAX : bytes + more;
    }
    return bytes;
}

static void **pointer_of(Session *s, const Buffer *b)
{
    return (void **)(void *)((char *)s + b->offset);
}

/* What is never needed side by side is the same memory: the shared experts
 * of a layer and the FFN of a dense one; without a trace, which shows both,
 * h of an FFN and its gate. */
static void share_buffers(BlockActs *a)
{
    if (!a->ffn.h)
        a->ffn.h = a->ffn.gate;
    a->moe.routed.h = a->moe.routed.gate;
    a->moe.shared = a->ffn;
}

/* Every Linear layer quantises its input in the same buffers. Set for each
 * pass: the pointers lead into the Session, which its owner may have moved. */
static void share_fp8(Session *s)
{
    BlockActs *a = &s->acts;
    a->fp8.scope = s->options.fp8_scope;
    a->fp8.raise = s->options.fp8_raise;
    a->fp8.ue8m0 = s->model->config.scale_fmt_ue8m0;
    if (s->options.fp8)
        a->mla.fp8 = a->ffn.fp8 = a->moe.routed.fp8 = a->moe.shared.fp8
            = &a->fp8;
}

static int allocate_buffers(Session *s, Error *err)
{
    const Config *c = &s->model->config;
    size_t n[EXTENTS];
    plan(n, c, &s->options);
    s->acts.mla.block = n[BLOCK];
    s->acts.mla.span = n[SPAN];
    for (size_t i = 0; i < ALL_BUFFERS; i++) {
        const Buffer *b = owner(i, c, &s->options);
        void *p;
        if (!b)
            continue;
        p = b->storage == OWN_HOST
                ? allocate(elements(b, n), sizeof(float), "logits", err)
                : device_alloc(elements(b, n), sizeof(float), "activations",
                               err);
        if (!p)
            return -1;
        *pointer_of(s, b) = p;
    }
    share_buffers(&s->acts);
    return 0;
}

/* The product of two FP8 operands needs both. */
static int check_fp8(const Model *m, const SessionOptions *o, Error *err)
{
    Model copy = *m;
    TensorWalk walk = tensor_walk(&copy.config, &copy);
    TensorInfo info;
    if (!o->naive)
        return fail(err, "FP8 activations: wanted the naive form of attention,"
                    " found the absorbed one, in which kv_b_proj is no Linear"
                    " layer");
    while (tensor_next(&walk, &info))
        if (info.kind == TENSOR_LINEAR && info.slot->data
            && info.slot->dtype != DT_F8_E4M3)
            return fail(err, "FP8 activations: %s: wanted F8_E4M3 weights,"
                        " found %s: run deepseek quantize first", info.name,
                        dtype_name(info.slot->dtype));
    return 0;
}

int session_open(Session *s, const Model *m, const SessionOptions *o,
                 Error *err)
{
    memset(s, 0, sizeof *s);
    s->model = m;
    s->options = *o;
    if (o->ctx < 1 || o->ctx > MAX_CTX)
        return fail(err, "context: wanted 1 to %d tokens, found %zu",
                    (int)MAX_CTX, o->ctx);
    if (o->modules > m->n_mtp)
        return fail(err, "MTP modules: wanted at most %zu, found %zu",
                    m->n_mtp, o->modules);
    if (o->fp8 && check_fp8(m, o, err))
        return -1;
    if (rope_open(&s->rope, &m->config, err) || allocate_buffers(s, err)) {
        session_close(s);
        return -1;
    }
    return 0;
}

void session_close(Session *s)
{
    if (!s->model)
        return;
    for (size_t i = 0; i < ALL_BUFFERS; i++) {
        const Buffer *b = owner(i, &s->model->config, &s->options);
        if (b && b->storage == OWN_HOST)
            free(*pointer_of(s, b));
        else if (b)
            device_free(*pointer_of(s, b));
    }
    rope_close(&s->rope);
    memset(s, 0, sizeof *s);
}

void session_rewind(Session *s, size_t pos)
{
    if (pos < s->pos)
        s->pos = pos;
}

/* Where a buffer's numbers of this pass lie: a first element, then strides
 * of the first two sides. */
typedef struct {
    const void *start;
    size_t stride0, stride1;
} View;

static View view_of(const Session *s, const Buffer *b, size_t layer,
                    size_t pos, const size_t n[EXTENTS])
{
    bool second = s->model->config.mtp_hidden_first == (b->storage == ENORM);
    const float *p = *pointer_of((Session *)s, b);
    size_t row = n[b->shape[2]];
    size_t cached = (layer * n[CTX] + pos) * n[D_CACHE];
    switch (b->storage) {
    case CACHE_HEAD:
        return (View){p + cached, n[D_CACHE], 0};
    case CACHE_TAIL:
        return (View){p + cached + n[D_C], n[D_CACHE], 0};
    case QUERY_TAIL:
        return (View){p + n[D_QUERY] - n[D_R], n[HEADS] * n[D_QUERY],
                      n[D_QUERY]};
    case ENORM: case HNORM:
        return (View){p + second * row, n[HIDDEN_2], 0};
    default:
        return (View){p, n[b->shape[1]] * row, row};
    }
}

/* The rest of a row of scores, beyond what the pass has reached. */
static void mask_tail(const Buffer *b, float *row, size_t from, size_t to)
{
    bool probs = b->offset == IN(acts.mla.probs);
    for (size_t j = from; j < to; j++)
        row[j] = probs ? 0 : -INFINITY;
}

static int trace_buffer(Session *s, const Buffer *b, const char *name,
                        size_t layer, size_t T, size_t pos, Error *err)
{
    size_t n[EXTENTS], d1, d2;
    plan(n, &s->model->config, &s->options);
    n[TOKENS] = T;
    n[ROWS_OUT] = logit_rows(&s->options, T);
    d1 = n[b->shape[1]];
    d2 = n[b->shape[2]];
    size_t rows = n[b->shape[0]];
    size_t shape[3] = {rows, d1 == 1 ? d2 : d1, d2};
    View v = view_of(s, b, layer, pos, n);
    float *copy = allocate(rows * d1, d2 * sizeof *copy, name, err);
    if (!copy)
        return -1;
    for (size_t i = 0; i < rows * d1; i++) {
        float *row = copy + i * d2;
        device_read(row, (const float *)v.start + i / d1 * v.stride0
                         + i % d1 * v.stride1, d2 * sizeof *row);
        if (b->storage == MASKED)
            mask_tail(b, row, pos + T, d2);
    }
    trace_put(s->options.trace, name, b->storage == OWN_INT ? DT_I32 : DT_F32,
              copy, d1 == 1 ? 2 : 3, shape);
    free(copy);
    return 0;
}

static void trace_name(char *name, size_t size, Stage stage, size_t layer,
                       const Session *s, const char *after)
{
    size_t L = s->model->config.num_hidden_layers;
    if (stage == STAGE_FIRST || stage == STAGE_LAST)
        snprintf(name, size, "%s", after);
    else if (stage == STAGE_MTP_LOGITS)
        snprintf(name, size, "mtp.%zu%s", layer + 1 - L, after);
    else
        snprintf(name, size, "model.layers.%zu%s", layer, after);
}

int session_trace(Session *s, Stage stage, size_t layer, size_t T,
                  size_t pos, Error *err)
{
    bool moe = s->model->layers[layer].is_moe;
    for (size_t i = 0; s->options.trace && i < stages[stage].n; i++) {
        const Buffer *b = &stages[stage].rows[i];
        char name[128];
        if (!b->name || !is_there(b->when, &s->model->config, &s->options,
                                  !moe, moe))
            continue;
        trace_name(name, sizeof name, stage, layer, s, b->name);
        if (trace_wants(s->options.trace, name)
            && trace_buffer(s, b, name, layer, T, pos, err))
            return -1;
    }
    return 0;
}

/* What a trace shows has no other sides. */
static const char *const axis_names[EXTENTS] = {
    [TOKENS] = "tokens", [ROWS_OUT] = "tokens", [SPAN] = "positions",
    [VOCAB] = "vocab_size", [HIDDEN] = "hidden_size",
    [PAIRS] = "qk_rope_head_dim/2", [Q_LORA] = "q_lora_rank",
    [HEADS] = "num_attention_heads",
    [D_QK] = "qk_nope_head_dim+qk_rope_head_dim",
    [D_QUERY] = "kv_lora_rank+qk_rope_head_dim",
    [D_CACHE] = "kv_lora_rank+qk_rope_head_dim", [D_C] = "kv_lora_rank",
    [D_R] = "qk_rope_head_dim", [D_V] = "v_head_dim",
    [INTER] = "intermediate_size", [EXPERTS] = "n_routed_experts",
    [GROUPS] = "n_group", [TOPK] = "num_experts_per_tok",
    [SHARED_INTER] = "n_shared_experts*moe_intermediate_size",
};

/* What follows the name's number: "model.layers.12.mlp", ".mlp"; NULL: it
 * begins otherwise. */
static const char *behind_number(const char *name, const char *prefix)
{
    size_t n = strlen(prefix), digits;
    if (strncmp(name, prefix, n) != 0)
        return NULL;
    digits = strspn(name + n, "0123456789");
    return digits ? name + n + digits : NULL;
}

static const Buffer *traced_as(Stage stage, const char *name)
{
    const char *rest = name;
    if (stage == STAGE_MTP_LOGITS)
        rest = behind_number(name, "mtp.");
    else if (stage != STAGE_FIRST && stage != STAGE_LAST)
        rest = behind_number(name, "model.layers.");
    for (size_t i = 0; rest && i < stages[stage].n; i++) {
        const Buffer *b = &stages[stage].rows[i];
        if (b->name && strcmp(b->name, rest) == 0)
            return b;
    }
    return NULL;
}

int session_axes(const char *name, bool naive, const char *axes[3])
{
    int rank = 0;
    for (size_t stage = 0; stage < LENGTH(stages); stage++) {
        const Buffer *b = traced_as((Stage)stage, name);
        for (int i = 0; b && i < 3; i++)
            if (b->shape[i] == D_QUERY && naive)
                axes[rank++] = axis_names[D_QK];
            else if (b->shape[i] != ONE)
                axes[rank++] = axis_names[b->shape[i]];
        if (b)
            return rank;
    }
    return 0;
}

/* MLA of every sequence; h (B T, d) -> u (B T, d). */
static void attend(float *u, const float *h, float *cache,
                   const LayerWeights *w, const Config *c, const Batch *b,
                   const BlockActs *a)
{
    size_t width = c->kv_lora_rank + c->qk_rope_head_dim;
    for (size_t i = 0; i < b->sequences; i++) {
        size_t row = i * b->T;
        MlaActs of = a->mla;
        if (row)
            mla_rows(&of, c, row);
        (b->naive ? mla_naive : mla_absorbed)(
            u + row * c->hidden_size, h + row * c->hidden_size,
            &w->self_attn, c, b->T, b->pos, b->cos, b->sin,
            b->softmax_scale, cache + row * width, &of);
    }
}

/* moe_forward; in training some pairs that the gate picked may be dropped. */
static void mix(float *y, const float *x, const MoeWeights *w,
                const Config *c, const Batch *b, MoeActs *a)
{
    const Dropping *drop = b->dropping;
    size_t n = b->sequences * b->T;
    Routes r = {c->n_routed_experts, c->num_experts_per_tok, b->sequences,
                b->T, a->scores, a->topk_ids};
    gate_forward(x, w, c, n, a);
    if (drop)
        drop_tokens(a->dropped, &r, drop->exempt, drop->capacity,
                    drop->devices, drop->work);
    else if (a->dropped)         /* what an earlier pass has dropped */
        memset(a->dropped, 0, n * r.K * sizeof *a->dropped);
    moe_experts(y, x, w, c, n, a);
}

/* attn_residual = h + MLA(RMSNorm(h)), out = that + FFN(RMSNorm(that)) */
void block_forward(const float *h, float *cache, const LayerWeights *w,
                   const Config *c, const Batch *b, BlockActs *a)
{
    size_t d = c->hidden_size, n = b->sequences * b->T;
    float eps = (float)c->rms_norm_eps;
    rmsnorm(a->attn_norm, d, h, d, n, &w->input_layernorm, eps);
    attend(a->attn_out, a->attn_norm, cache, w, c, b, a);
    add(a->attn_residual, h, a->attn_out, n * d);
    rmsnorm(a->ffn_norm, d, a->attn_residual, d, n,
            &w->post_attention_layernorm, eps);
    if (w->is_moe)
        mix(a->ffn_out, a->ffn_norm, &w->moe, c, b, &a->moe);
    else
        ffn_forward(a->ffn_out, a->ffn_norm, &w->mlp, n, &a->ffn);
    add(a->h, a->attn_residual, a->ffn_out, n * d);
}

/* The FFN's rows are those of all sequences; MLA's of one at a time. */
void block_recompute(const float *h, float *cache, const LayerWeights *w,
                     const Config *c, const Batch *b, BlockActs *a)
{
    size_t d = c->hidden_size, n = b->sequences * b->T;
    size_t width = c->kv_lora_rank + c->qk_rope_head_dim;
    float eps = (float)c->rms_norm_eps;
    rmsnorm(a->attn_norm, d, h, d, n, &w->input_layernorm, eps);
    for (size_t row = 0; row < n; row += b->T) {
        MlaActs of = a->mla;
        mla_rows(&of, c, row);
        mla_recompute(&w->self_attn, c, b->T, b->cos, b->sin,
                      cache + row * width, &of);
    }
    rmsnorm(a->ffn_norm, d, a->attn_residual, d, n,
            &w->post_attention_layernorm, eps);
    if (!w->is_moe)
        ffn_recompute(&w->mlp, n, &a->ffn);
    else if (c->n_shared_experts)
        ffn_recompute(&w->moe.shared_experts, n, &a->moe.shared);
}

/* dh += dx through x's RMSNorm, g->norm being the gradient of its output. */
static void norm_backward(float *dh, const float *x, const Matrix *w,
                          const Matrix *dw, const Config *c, size_t n,
                          BlockGrads *g)
{
    size_t d = c->hidden_size;
    rmsnorm_backward(g->x, d, matrix_numbers(dw), g->norm, d, x, d, n, w,
                     (float)c->rms_norm_eps);
    add(dh, dh, g->x, n * d);
}

/* Both halves of the layer add to what they read: dh of a residual is that of
 * the sum, and that which comes through the branch. */
void block_backward(float *dh, const float *h, const float *cache,
                    const LayerWeights *w, const LayerWeights *dw,
                    const Config *c, const Batch *b, BlockActs *a,
                    BlockGrads *g)
{
    size_t d = c->hidden_size, n = b->sequences * b->T;
    size_t width = c->kv_lora_rank + c->qk_rope_head_dim;
    memset(g->norm, 0, n * d * sizeof *g->norm);
    if (w->is_moe)
        moe_backward(g->norm, dh, a->ffn_norm, &w->moe, &dw->moe, c, n,
                     &a->moe, &g->moe);
    else
        ffn_backward(g->norm, dh, a->ffn_norm, &w->mlp, &dw->mlp, n, &a->ffn,
                     &g->moe.shared);
    norm_backward(dh, a->attn_residual, &w->post_attention_layernorm,
                  &dw->post_attention_layernorm, c, n, g);
    memset(g->norm, 0, n * d * sizeof *g->norm);
    for (size_t row = 0; row < n; row += b->T) {
        MlaActs of = a->mla;
        mla_rows(&of, c, row);
        mla_backward(g->norm + row * d, dh + row * d, a->attn_norm + row * d,
                     &w->self_attn, &dw->self_attn, c, b->T, b->cos, b->sin,
                     b->softmax_scale, cache + row * width, &of, &g->mla);
    }
    norm_backward(dh, h, &w->input_layernorm, &dw->input_layernorm, c, n, g);
}

/* The experts that have rows in this pass. */
static void count_experts(Session *s)
{
    size_t N = s->model->config.n_routed_experts;
    device_read(s->host_first, s->acts.moe.first,
                (N + 1) * sizeof *s->host_first);
    for (size_t e = 0; e < N; e++)
        s->experts_read += s->host_first[e + 1] > s->host_first[e];
}

int session_block(Session *s, const float *h, size_t layer, size_t T,
                  size_t pos, Error *err)
{
    const Config *c = &s->model->config;
    Batch b = {1, T, pos, s->options.naive, s->cos, s->sin,
               s->rope.softmax_scale, NULL};
    float *cache = s->cache + layer * s->options.ctx
                              * (c->kv_lora_rank + c->qk_rope_head_dim);
    share_fp8(s);
    block_forward(h, cache, &s->model->layers[layer], c, &b, &s->acts);
    if (s->options.modules && s->model->layers[layer].is_moe)
        count_experts(s);
    return session_trace(s, STAGE_BLOCK, layer, T, pos, err);
}

static int check_finite(const Session *s, size_t pos, Error *err)
{
    size_t V = s->model->config.vocab_size;
    for (size_t i = 0; i < s->rows * V; i++)
        if (!isfinite(s->host_logits[i]))
            return model_find_not_finite(s->model, err)
                       ? -1 : fail(err, "logit %zu of position %zu is %g,"
                                   " wanted a finite number", i % V,
                                   pos + i / V, (double)s->host_logits[i]);
    return 0;
}

int session_head(Session *s, const float *h, const Matrix *head, size_t T,
                 size_t pos, Error *err)
{
    size_t d = s->model->config.hidden_size;
    size_t V = s->model->config.vocab_size;
    s->rows = logit_rows(&s->options, T);
    matmul(s->logits, V, h + (T - s->rows) * d, d, s->rows, head);
    device_read(s->host_logits, s->logits, s->rows * V * sizeof *s->logits);
    return check_finite(s, pos + T - s->rows, err);
}

const float *session_logits(const Session *s, size_t back)
{
    return s->host_logits
           + (s->rows - 1 - back) * s->model->config.vocab_size;
}

/* One chunk of T tokens at s->pos. */
static int forward_chunk(Session *s, const int32_t *ids, size_t T,
                         Progress *progress, double done, double total,
                         Error *err)
{
    const Model *m = s->model;
    const float *h = s->embed;
    size_t d = m->config.hidden_size, L = m->config.num_hidden_layers;
    rope_table(s->cos, s->sin, &s->rope, T, s->pos);
    for (size_t t = 0; t < T; t++)
        matrix_row(s->embed + t * d, &m->embed_tokens, (size_t)ids[t]);
    if (session_trace(s, STAGE_FIRST, 0, T, s->pos, err))
        return -1;
    for (size_t l = 0; l < L; l++) {
        if (session_block(s, h, l, T, s->pos, err))
            return -1;
        h = s->acts.h;
        progress_show(progress, done + (double)(T * (l + 1)) / (double)L,
                      total);
    }
    rmsnorm(s->norm, d, h, d, T, &m->norm, (float)m->config.rms_norm_eps);
    if (session_head(s, s->norm, &m->lm_head, T, s->pos, err)
        || session_trace(s, STAGE_LAST, 0, T, s->pos, err))
        return -1;
    s->pos += T;
    return 0;
}

size_t session_chunk(const Session *s)
{
    return chunk_of(&s->model->config, &s->options);
}

int session_check(const Session *s, const int32_t *ids, size_t n,
                  Error *err)
{
    size_t V = s->model->config.vocab_size;
    if (!n)
        return fail(err, "prompt: wanted at least 1 token, found none");
    if (n > s->options.ctx - s->pos)
        return fail(err, "context: wanted at most %zu tokens, found %zu",
                    s->options.ctx, s->pos + n);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (size_t)ids[i] >= V)
            return fail(err, "id %zu of the input: wanted 0 to %zu"
                        " (vocab_size - 1), found %ld", i, V - 1,
                        (long)ids[i]);
    return 0;
}

int session_forward(Session *s, const int32_t *ids, size_t n,
                    const char *what, Error *err)
{
    size_t chunk = session_chunk(s);
    Progress progress;
    int failed = session_check(s, ids, n, err);
    progress_begin(&progress, what);
    for (size_t i = 0; i < n && !failed; i += chunk) {
        size_t T = n - i < chunk ? n - i : chunk;
        failed = forward_chunk(s, ids + i, T, &progress, (double)i,
                               (double)n, err);
    }
    progress_end(&progress);
    return failed;
}

static bool is_stop(const GenerateOptions *o, int32_t id)
{
    for (size_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == id)
            return true;
    return false;
}

int generate_emit(const GenerateOptions *o, int32_t id, bool full,
                  GenerateSink *sink, void *context, GenerateStats *stats,
                  Error *err)
{
    int enough;
    stats->stopped = is_stop(o, id);
    if (stats->stopped)
        return 1;
    stats->new_tokens++;
    enough = sink(context, id, err);
    if (enough < 0)
        return -1;
    return enough || stats->new_tokens == o->n || full;
}

/* Sampling's memory: the candidates in order and their probabilities. */
typedef struct {
    uint32_t *order;
    float *p;
    Random random;
} Dice;

static int32_t throw(Dice *dice, const GenerateOptions *o,
                     const float *logits)
{
    size_t kept = sample_distribution(&o->sampler, logits, o->vocabulary,
                                      dice->order, dice->p);
    return (int32_t)sample_draw(dice->order, dice->p, kept, &dice->random);
}

/* Token after token until a stop id, n tokens, the end of the context, or a
 * sink that has enough. */
static int generate_loop(Session *s, const GenerateOptions *o, Dice *dice,
                         GenerateSink *sink, void *context,
                         GenerateStats *stats, Error *err)
{
    for (;;) {
        int32_t id = throw(dice, o, session_logits(s, 0));
        int ended = generate_emit(o, id, s->pos == s->options.ctx, sink,
                                  context, stats, err);
        if (ended)
            return ended < 0 ? -1 : 0;
        if (session_forward(s, &id, 1, NULL, err))
            return -1;
    }
}

int generate_check(const Session *s, const GenerateOptions *o, Error *err)
{
    size_t V = s->model->config.vocab_size;
    if (o->vocabulary >= 1 && o->vocabulary <= V)
        return 0;
    return fail(err, "vocabulary: wanted 1 to vocab_size (%zu) tokens, found"
                " %zu", V, o->vocabulary);
}

int generate(Session *s, const int32_t *prompt, size_t n,
             const GenerateOptions *o, GenerateSink *sink, void *context,
             GenerateStats *stats, Error *err)
{
    double start = os_seconds();
    Dice dice = {.random = random_seeded(o->seed)};
    int failed = -1;
    *stats = (GenerateStats){.prompt_tokens = n};
    if (generate_check(s, o, err))
        return -1;
    dice.order = allocate(o->vocabulary, sizeof *dice.order, "sampling", err);
    dice.p = allocate(o->vocabulary, sizeof *dice.p, "sampling", err);
    if (dice.order && dice.p)
        failed = session_forward(s, prompt, n, "reading the prompt", err);
    stats->prompt_seconds = os_seconds() - start;
    if (!failed && o->n)
        failed = generate_loop(s, o, &dice, sink, context, stats, err);
    stats->decode_seconds = os_seconds() - start - stats->prompt_seconds;
    free(dice.order);
    free(dice.p);
    return failed;
}

int session_nll(Session *s, const int32_t *ids, size_t n, double *nats,
                const char *what, Error *err)
{
    size_t V = s->model->config.vocab_size;
    size_t chunk = session_chunk(s);
    float *p = allocate(V, sizeof *p, "probabilities", err);
    int failed = p ? session_check(s, ids, n, err) : -1;
    Progress progress;
    *nats = 0;
    if (!failed && s->options.logit_rows < chunk)
        failed = fail(err, "session: wanted one with logits of %zu rows,"
                      " found %zu", chunk, s->options.logit_rows);
    progress_begin(&progress, what);
    for (size_t i = 0; i < n && !failed; i += chunk) {
        size_t T = n - i < chunk ? n - i : chunk;
        failed = session_forward(s, ids + i, T, NULL, err);
        for (size_t t = 0; t < T && !failed && i + t + 1 < n; t++)
            *nats += cross_entropy(memcpy(p, s->host_logits + t * V,
                                          V * sizeof *p),
                                   V, (size_t)ids[i + t + 1], 1);
        progress_show(&progress, (double)(i + T), (double)n);
    }
    progress_end(&progress);
    free(p);
    return failed;
}
