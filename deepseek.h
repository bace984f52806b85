/* deepseek.h: DeepSeek-V2, V2-Lite and V3, one block a file.
 *
 *   main.c -> mtp.c -> deepseek.c -> mla.c, moe.c -> rope.c -> base/
 *             config.c, model.c, checkpoint.c, cost.c --> fp8.c --> base/
 *             chat.c, data.c -> tokenizer.c --------> base/
 *   main.c -> golden.c -> mtp.c, checkpoint.c
 *   main.c -> train.c -> pass.c -> mtp.c, deepseek.c, balance.c
 *             train.c -> adamw.c, schedule.c, settings.c
 *
 * No file calls up. A layer function takes out, in, weights, config, (tokens,
 * position), cache, activations, in this order; it reads no globals, allocates
 * nothing and does no I/O. Activations are named fields of a struct with their
 * shapes; inference hands the same struct to every layer, training keeps one a
 * layer. All activations are F32, row-major.
 *
 * Symbols: T tokens of this call, S cached positions (those of this call
 * included), d = hidden_size, d_c = kv_lora_rank, d_c' = q_lora_rank,
 * n_h = num_attention_heads, d_h = qk_nope_head_dim, d_r = qk_rope_head_dim,
 * d_v = v_head_dim, N = n_routed_experts, K = num_experts_per_tok.
 * docs/glossary.md has them all. Equations: "V2 (41)", "V3 (1)". */
#ifndef DEEPSEEK_H
#define DEEPSEEK_H

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/kernels.h"
#include "base/random.h"
#include "base/safetensors.h"
#include "base/sample.h"
#include "base/sketch.h"
#include "base/trace.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* config.c: config.json --------------------------------- V2 §3.1.2, V3 §4.2
 * Keys verbatim; the values are checked when read. */

typedef enum { DEEPSEEK_V2, DEEPSEEK_V3 } ModelType;

typedef enum {
    TOPK_GREEDY,               /* V2-Lite: the K best */
    TOPK_GROUP_LIMITED_GREEDY, /* V2: of the best groups by their maximum */
    TOPK_NOAUX_TC              /* V3: biased, groups by their top two */
} TopkMethod;

typedef enum { SCORING_SOFTMAX, SCORING_SIGMOID } ScoringFunc;

typedef struct {
    bool yarn;                 /* false: plain RoPE, the rest unused */
    double factor;
    size_t original_max_position_embeddings;
    double beta_fast, beta_slow;
    double mscale, mscale_all_dim;  /* absent: 1 and 0 */
} RopeScaling;

enum { MAX_EOS = 8 };

typedef struct {
    ModelType model_type;
    size_t vocab_size, hidden_size, num_hidden_layers;
    size_t intermediate_size, moe_intermediate_size;
    size_t first_k_dense_replace, moe_layer_freq;
    size_t num_attention_heads;
    size_t q_lora_rank;        /* 0: null, no query compression */
    size_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    size_t n_routed_experts;   /* 0: every layer is dense */
    size_t n_shared_experts, num_experts_per_tok, n_group, topk_group;
    TopkMethod topk_method;
    ScoringFunc scoring_func;
    bool norm_topk_prob;
    double routed_scaling_factor;
    double rms_norm_eps, rope_theta, initializer_range;
    RopeScaling rope_scaling;
    size_t max_position_embeddings;
    bool tie_word_embeddings;
    size_t num_nextn_predict_layers;    /* MTP modules announced */
    int64_t bos_token_id;               /* -1: none */
    int64_t eos_token_id[MAX_EOS];
    size_t n_eos;
    DType torch_dtype;
    bool fp8;                  /* quantization_config: fp8 e4m3 128×128 */
    bool scale_fmt_ue8m0;
    /* Where the sources disagree (docs/disputes.md); set by --reading. */
    bool latent_eps_from_config;  /* else 1e-6 whatever rms_norm_eps says */
    bool v2_norm_scales;          /* V2 with norm_topk_prob also scales */
    bool mtp_hidden_first;        /* eh_proj takes [h; Emb], as V3 (21) says */
    bool mtp_before_norm;         /* h^0 is taken before model.norm */
    bool mtp_carry_raw;           /* h^k is carried before shared_head.norm */
    bool mtp_zero_first;          /* Emb is 0 at position 0 */
} Config;

/* Reads config.json, or a directory that holds one. Both spellings, that of
 * transformers 4 and of 5. A value that would change the result and is not
 * known here is refused by name; an unknown harmless key is not. */
int config_read(Config *c, const char *path, Error *err);
/* Writes config.json with both spellings. dtype: of the weights beside it. */
int config_write(const Config *c, DType dtype, const char *path, bool force,
                 Error *err);
/* Copies a config.json that config_read has taken, with every key it has, but
 * those that say how weights are stored: these say dtype and, with F8_E4M3,
 * the kind of scales. */
int config_copy(const char *from, DType dtype, bool ue8m0, const char *path,
                bool force, Error *err);
/* Writes generation_config.json: BOS, EOS, greedy. */
int config_write_generation(const Config *c, const char *path, bool force,
                            Error *err);
/* That c is what `was` is but for how weights are stored; else a message with
 * the first key that is not. */
int config_same(const Config *c, const char *where, const Config *was,
                const char *where_was, Error *err);
/* Checks that the sizes fit one another; config_read has called it. */
int config_check(const Config *c, const char *where, Error *err);
/* NAME=VALUE of docs/disputes.md. */
int config_reading(Config *c, const char *text, Error *err);
/* True where layer l has experts (spec: l >= first_k_dense_replace and
 * l mod moe_layer_freq = 0; an MTP layer always). */
bool config_is_moe(const Config *c, size_t layer);

/* model.c: weights ----------------------------------------------------------
 * Linear weights are (out, in); an absent one has data NULL. A norm's gain is
 * a matrix of one row. */

typedef struct {
    Matrix gate_proj, up_proj;  /* (inter, d) */
    Matrix down_proj;           /* (d, inter) */
} FfnWeights;

typedef struct {
    Matrix q_proj;              /* (n_h (d_h+d_r), d)   if d_c' = 0 */
    Matrix q_a_proj;            /* (d_c', d)            W_DQ */
    Matrix q_a_layernorm;       /* (d_c') */
    Matrix q_b_proj;            /* (n_h (d_h+d_r), d_c') W_UQ, W_QR by head */
    Matrix kv_a_proj_with_mqa;  /* (d_c+d_r, d)         W_DKV, W_KR */
    Matrix kv_a_layernorm;      /* (d_c) */
    Matrix kv_b_proj;           /* (n_h (d_h+d_v), d_c) W_UK, W_UV by head */
    Matrix o_proj;              /* (d, n_h d_v)         W_O */
} MlaWeights;

typedef struct {
    Matrix gate;                    /* (N, d): row i is e_i */
    Matrix e_score_correction_bias; /* (N), V3 only: b_i */
    FfnWeights *experts;            /* N, each moe_intermediate_size wide */
    FfnWeights shared_experts;      /* one FFN of n_shared_experts widths */
} MoeWeights;

typedef struct {
    bool is_moe;
    Matrix input_layernorm, post_attention_layernorm;
    MlaWeights self_attn;
    FfnWeights mlp;             /* dense layers */
    MoeWeights moe;             /* the others */
    /* An MTP layer, index num_hidden_layers and up, has these besides. */
    Matrix embed_tokens, enorm, hnorm, eh_proj;
    Matrix shared_head_norm, shared_head_head;
} LayerWeights;

typedef struct {
    Config config;
    Safetensors files;
    Matrix embed_tokens, norm;  /* (V, d), (d) */
    Matrix lm_head;             /* (V, d); the embedding's if tied */
    LayerWeights *layers;       /* main layers, then MTP layers */
    size_t n_mtp;               /* MTP layers whose tensors are there */
    FfnWeights *experts;        /* all layers' experts, one allocation */
    void *copied;               /* of a model_copy: its own weights */
} Model;

/* What one FP8 scale serves. */
typedef enum {
    FP8_TILE,      /* 1×128: 128 channels of a token, activations */
    FP8_BLOCK,     /* 128×128: weights */
    FP8_COLUMN,    /* 128×1: the transposed tensor of Wgrad */
    FP8_TENSOR     /* all of it: what V3 §3.3.2 argues against */
} Fp8Scope;

/* One row of the table of tensors: every loop over a checkpoint walks it. */
typedef enum {
    TENSOR_EMBED, TENSOR_NORM, TENSOR_LINEAR, TENSOR_GATE, TENSOR_BIAS,
    TENSOR_HEAD, TENSOR_EH_PROJ
} TensorKind;

typedef struct {
    char name[128];
    TensorKind kind;
    int rank;                   /* 1: only cols counts */
    size_t rows, cols;
    size_t layer;               /* SIZE_MAX outside the layers */
    bool routed, shared, mtp;   /* of an expert; of an MTP layer */
    Matrix *slot;               /* in the model, if the walk has one */
} TensorInfo;

typedef struct {
    const Config *config;
    Model *model;               /* may be NULL: names and shapes alone */
    size_t section, row, expert;  /* where the walk stands */
} TensorWalk;

/* In the order of computation, MTP layers last; false at the end. */
TensorWalk tensor_walk(const Config *c, Model *model);
bool tensor_next(TensorWalk *walk, TensorInfo *info);
/* The dtype a checkpoint of this dtype stores a tensor in: with F8_E4M3 only
 * Linear weights are FP8, the rest BF16; the gate's bias is always F32. */
DType tensor_dtype(const TensorInfo *info, DType checkpoint);

/* Maps the files of a model directory and binds every tensor, checking names,
 * shapes and dtypes. Announced MTP layers may be absent (n_mtp says). */
int model_open(Model *m, const char *dir, Error *err);
void model_close(Model *m);
/* A copy in memory, to compare with or to change. F32: every weight but
 * embedding and head, as F32; F8_E4M3: the Linear weights, with scales for
 * `scope`, FP8_BLOCK or FP8_TENSOR. The rest stays m's, which must outlive it.
 */
int model_copy(Model *copy, const Model *m, DType dtype, Fp8Scope scope,
               Error *err);
/* A model in memory whose weights are F32 and 0: one array, m->copied, in the
 * order of tensor_walk, each tensor at a multiple of 64 bytes, *n numbers in
 * all. MTP modules share embedding and head with the main model, as a tied
 * head does the embedding: they have none of their own. */
int model_zeros(Model *m, const Config *c, size_t *n, Error *err);
size_t model_numbers(const Config *c);   /* that n */
/* The same from the weights of m, all of them as F32. */
int model_floats(Model *copy, const Model *m, size_t *n, Error *err);
/* Names the first tensor that holds a NaN or an infinity. */
int model_find_not_finite(const Model *m, Error *err);

/* checkpoint.c: writing model directories ---------------------------------- */

/* A new directory with random weights: normal with the given deviation, norm
 * gains 1, the gate's bias 0; one random stream a tensor, so that a tensor
 * does not depend on the others. Tokenizer files beside the config go along.
 * dtype: F32, F16, BF16, F8_E4M3. */
int model_init(const Config *c, const char *config_path, const char *dir,
               bool force, DType dtype, uint64_t seed, double std,
               Error *err);
/* The same with weights of the caller's: values of rows r … r+rows-1, asked for
 * in order, 128 at a time. random: the tensor's stream, going on from row to
 * row. config_path may be NULL: no tokenizer. */
typedef void ModelDraw(float *values, const TensorInfo *info, size_t r,
                       size_t rows, Random *random, const void *design);
int model_draw(const Config *c, const char *config_path, const char *dir,
               bool force, DType dtype, uint64_t seed, ModelDraw *draw,
               const void *design, Error *err);
/* A new directory with the weights of m, which was opened from `from`.
 * F8_E4M3: the official layout, Linear weights in FP8 with scales of 128×128,
 * the rest BF16; ue8m0: those scales are powers of two. BF16: no FP8 at all,
 * code·scale rounded once. FP8 weights whose scales are of the wanted kind by
 * their config keep codes and scales. A number that is not finite, or would
 * not be in BF16, is refused by name. Needs 128 rows of the widest tensor,
 * whatever the model's size. */
int model_quantize(const Model *m, const char *from, const char *dir,
                   bool force, DType dtype, bool ue8m0, Error *err);
/* A new directory with the weights of a model in memory (model_zeros), MTP
 * modules with their copies of embedding and head unless these are tied, and
 * what lies beside the config.json at config_path. part, or NULL, writes one
 * file more, training.safetensors, so that all are there or none. */
typedef int ModelPart(void *context, const char *path, Error *err);
int model_save(const Model *m, const char *config_path, const char *dir,
               DType dtype, ModelPart *part, void *context, Error *err);
/* Copies generation_config.json and the tokenizer's files, those there are,
 * from beside a config.json, or the directory that holds one. */
int model_copy_texts(const char *config_path, const char *dir, Error *err);

/* rope.c: decoupled RoPE and YaRN ------------- V2 §2.1.3, §3.1.4; V3 §4.3 */

typedef struct {
    size_t pairs;          /* d_r / 2 */
    double *freq;          /* (pairs) radians a position */
    double magnitude;      /* on cos and sin */
    float softmax_scale;   /* (d_h+d_r)^-1/2 · mscale² */
} Rope;

/* The multiplier 0.1 m ln s + 1 of YaRN, 1 for s <= 1. */
double yarn_mscale(double s, double m);
int rope_open(Rope *r, const Config *c, Error *err);
void rope_close(Rope *r);
/* cos, sin (T, pairs) of positions pos … pos+T-1, for all layers at once. */
void rope_table(float *cos, float *sin, const Rope *r, size_t T, size_t pos);
/* Turns pair (x[2i], x[2i+1]) of T rows by the angles of row t. */
void rope_apply(float *y, size_t ldy, const float *x, size_t ldx,
                const float *cos, const float *sin, size_t T, size_t pairs);

/* dx of the same: the transpose of the turn, with the same cos and sin. */
void rope_backward(float *dx, size_t lddx, const float *dy, size_t lddy,
                   const float *cos, const float *sin, size_t T,
                   size_t pairs);

/* mla.c: multi-head latent attention ---------------- V2 §2.1, V3 §2.1.1 */

typedef struct Fp8Acts Fp8Acts;   /* fp8.c */

/* A block of queries attends at a time: nb tokens with all their heads. */
typedef struct {
    Fp8Acts *fp8;     /* inputs of Linear layers in FP8; NULL: F32 */
    size_t block;     /* nb: tokens whose scores the buffers hold */
    size_t span;      /* positions a row of scores holds */
    float *c_q_raw;   /* (T, d_c')            W_DQ h                  */
    float *c_q;       /* (T, d_c')            normalised              */
    float *q;         /* (T, n_h, d_h+d_r)    before RoPE             */
    float *kv_raw;    /* (T, d_c+d_r)         [W_DKV h; W_KR h]       */
    float *query;     /* (T, n_h, d_c+d_r) absorbed, (T, n_h, d_h+d_r) naive */
    float *kv;        /* (S, n_h, d_h+d_v)    naive: [k_C; v_C]       */
    float *key;       /* (S, n_h, d_h+d_r)    naive: [k_C; k_R]       */
    float *scores;    /* (nb, n_h, span)      scaled, masked -inf     */
    float *probs;     /* (nb, n_h, span)      softmax of scores       */
    float *z;         /* (T, n_h, d_c)        absorbed: Σ p c_kv      */
    float *o;         /* (T, n_h, d_v)        Σ p v                   */
} MlaActs;

/* u = attention of h, T tokens at positions pos … pos+T-1.
 * h (T, d) -> u (T, d); cache (capacity, d_c+d_r): rows pos … are written
 * with [c_kv; k_rope], rows 0 … pos-1 hold the past. cos, sin: rope_table of
 * these positions. All of it in V2 (37)-(47), V3 (1)-(11).
 * absorbed: W_UK goes to the query and W_UV to the output, so that the past
 * is read as it is cached; naive: keys and values of all S positions are
 * expanded first, the form of training. Equal but for rounding. a->fp8 asks
 * for naive: absorbed has no product of kv_b_proj with an activation. */
void mla_absorbed(float *u, const float *h, const MlaWeights *w,
                  const Config *c, size_t T, size_t pos, const float *cos,
                  const float *sin, float softmax_scale, float *cache,
                  MlaActs *a);
void mla_naive(float *u, const float *h, const MlaWeights *w,
               const Config *c, size_t T, size_t pos, const float *cos,
               const float *sin, float softmax_scale, float *cache,
               MlaActs *a);

/* Training: whole sequences, each from position 0, in the naive form.
 * Gradients of a sequence on their way back through a layer. */
typedef struct {
    float *o;         /* (T, n_h, d_v) */
    float *scores;    /* (nb, span)           of one head            */
    float *query;     /* (T, n_h, d_h+d_r) */
    float *key;       /* (T, n_h, d_h+d_r) */
    float *kv;        /* (T, n_h, d_h+d_v) */
    float *latent;    /* (T, d_c+d_r)         of cache rows          */
    float *kv_raw;    /* (T, d_c+d_r) */
    float *c_q;       /* (T, d_c') */
    float *c_q_raw;   /* (T, d_c') */
} MlaGrads;

/* Moves to the activations of the rows from `row` on: another sequence's. */
void mla_rows(MlaActs *a, const Config *c, size_t row);
/* Fills what follows from c_q_raw (or q) and kv_raw: c_q, q, cache, query, kv,
 * key; V3 §3.2.3. */
void mla_recompute(const MlaWeights *w, const Config *c, size_t T,
                   const float *cos, const float *sin, float *cache,
                   MlaActs *a);
/* dh += of u = mla_naive(h), dw += of its weights, from du (T, d); a and cache
 * as that has left them, or mla_recompute. a->o, q, kv_raw … are read, scores
 * and probs written. */
void mla_backward(float *dh, const float *du, const float *h,
                  const MlaWeights *w, const MlaWeights *dw, const Config *c,
                  size_t T, const float *cos, const float *sin,
                  float softmax_scale, const float *cache, MlaActs *a,
                  MlaGrads *g);

/* moe.c: the gate and the experts ---------------------- V2 §2.2, V3 §2.1.2 */

typedef struct {
    float *gate;      /* (R, inter)   W_gate x  */
    float *up;        /* (R, inter)   W_up x    */
    float *h;         /* (R, inter)   silu(gate) · up; may be gate itself */
    Fp8Acts *fp8;     /* inputs of Linear layers in FP8; NULL: F32 */
} FfnActs;

typedef struct {
    float *logits;        /* (T, N)       u·e_i                      */
    float *scores;        /* (T, N)       s_i: softmax or sigmoid    */
    float *bias;          /* (N)          b_i, as F32                */
    float *choice;        /* (T, N)       what top-K sees: s_i + b_i, masked */
    float *group_scores;  /* (T, n_group) */
    int32_t *kept;        /* (topk_group)  the groups of the last token */
    int32_t *topk_ids;    /* (T, K)       best first, ties: lowest id */
    float *topk_weights;  /* (T, K)       g_i, in the order of topk_ids */
    int32_t *dropped;     /* (T, K)       1: left out; NULL: none is */
    int32_t *first;       /* (N+1)        rows of expert e: first[e] … */
    int32_t *pick;        /* (T K)        of each row, the place in topk_ids */
    float *x;             /* (T, d)       the tokens of one expert   */
    bool keep, keep_h;    /* gate and up, h of all experts side by side */
    FfnActs routed;       /* (T, moe_intermediate_size), kept (T K, …) */
    float *y;             /* (T, d)       FFN_e(x)                   */
    float *routed_out;    /* (T, d)       Σ g_i FFN_i, ids ascending */
    FfnActs shared;       /* (T, n_shared_experts moe_intermediate_size) */
    float *shared_out;    /* (T, d) */
} MoeActs;

/* y = W_down(silu(W_gate x) · W_up x); x (T, d) -> y (T, d). */
void ffn_forward(float *y, const float *x, const FfnWeights *w, size_t T,
                 FfnActs *a);
/* Fills logits … topk_weights. V2 (21)-(22), V3 (13)-(16). */
void gate_forward(const float *x, const MoeWeights *w, const Config *c,
                  size_t T, MoeActs *a);
/* y = Σ shared + Σ g_i FFN_i(x); x (T, d) -> y (T, d), without the residual.
 * V2 (20), V3 (12). The tokens of each expert run as one product.
 * moe_experts: what follows gate_forward. */
void moe_experts(float *y, const float *x, const MoeWeights *w,
                 const Config *c, size_t T, MoeActs *a);
void moe_forward(float *y, const float *x, const MoeWeights *w,
                 const Config *c, size_t T, MoeActs *a);

/* Training. Gradients on their way back; routed, x, y: of one expert. */
typedef struct {
    float *topk_weights;  /* (T, K)   dg */
    float *scores;        /* (T, N)   ds, then that of the logits */
    FfnActs routed;       /* (T, moe_intermediate_size) */
    FfnActs shared;       /* as MoeActs; dense layers use it too */
    float *x, *y;         /* (T, d) */
} MoeGrads;

/* Fills h from gate and up. */
void ffn_recompute(const FfnWeights *w, size_t T, FfnActs *a);
/* dx += of y = ffn_forward(x), dw += of its weights, from dy (T, d). */
void ffn_backward(float *dx, const float *dy, const float *x,
                  const FfnWeights *w, const FfnWeights *dw, size_t T,
                  const FfnActs *a, FfnActs *g);
/* The same of y = moe_forward(x). g->scores holds the gradient of balance
 * losses by s_i, or 0. Needs a->keep; without keep_h h is computed again. The
 * choice of experts is constant; b_i has no gradient. */
void moe_backward(float *dx, const float *dy, const float *x,
                  const MoeWeights *w, const MoeWeights *dw, const Config *c,
                  size_t T, MoeActs *a, MoeGrads *g);

/* fp8.c: fine-grained FP8 ---------------------------------------- V3 §3.3 */

/* A binary float of at most 16 bits: sign, exponent, mantissa. */
typedef struct {
    int exponent_bits, mantissa_bits, bias;
    bool finite;    /* "fn": no infinity, NaN only where all bits are set */
} FloatFormat;

extern const FloatFormat E4M3, E5M2, E5M6, BF16, F16;

/* Exact. */
float format_decode(const FloatFormat *f, uint32_t code);
/* Nearest, ties to even. Beyond the greatest number: infinity, or that number
 * where the format has none. */
uint32_t format_encode(const FloatFormat *f, float x);
float format_greatest(const FloatFormat *f);

float e4m3_decode(uint8_t code);   /* 0x7f, 0xff: NaN */
uint8_t e4m3_encode(float x);      /* |x| > 448: 448 */
/* UE8M0, an exponent and nothing else: 2^(code-127), 0xff is NaN. Encoding
 * takes a positive s to the power of two at or above it, 2^-126 … 2^127. */
float ue8m0_decode(uint8_t code);
uint8_t ue8m0_encode(float s);

/* s = amax / (the format's greatest number), amax at least 1e-4; ue8m0: the
 * power of two at or above it. fp8_scale: of E4M3, amax/448. */
float format_scale(const FloatFormat *f, float amax, bool ue8m0);
float fp8_scale(float amax, bool ue8m0);
size_t fp8_blocks(size_t n);       /* ceil(n/128) */
/* Elements that one scale serves, of a tensor (rows, cols): *height rows by
 * *width columns, fewer at ragged edges. */
void fp8_reach(Fp8Scope scope, size_t rows, size_t cols, size_t *height,
               size_t *width);
/* x (rows, cols), rows ldx apart -> codes (rows, cols) = E4M3(x/s) and one
 * scale for each `scope`: (ceil(rows/height), ceil(cols/width)). Online: s
 * follows from the elements at hand. */
void fp8_quantize(uint8_t *codes, float *scales, const float *x, size_t ldx,
                  size_t rows, size_t cols, Fp8Scope scope, bool ue8m0);
/* x = code·s of the same. With fp8_quantize behind it, tiles 1×128 become
 * tiles 128×1 as the backward pass wants them. */
void fp8_dequantize(float *x, size_t ldx, const uint8_t *codes,
                    const float *scales, size_t rows, size_t cols,
                    Fp8Scope scope);
/* The same for one tile of n numbers in any format; 12 bits of E5M6 lie in 16.
 * V3 §3.3.3: the input of o_proj is stored so, with ue8m0. */
void tile_encode(uint16_t *codes, float *scale, const float *x, size_t n,
                 const FloatFormat *f, bool ue8m0);
void tile_decode(float *x, const uint16_t *codes, float scale, size_t n,
                 const FloatFormat *f);

/* What the input of a Linear layer becomes where activations are FP8 too. */
struct Fp8Acts {
    Fp8Scope scope;    /* FP8_TILE; others to compare with */
    bool ue8m0;
    int raise;         /* 0; else one row in 128 is quantised 2^raise as great
                          and its scales are made less: to compare scopes */
    uint8_t *codes;    /* (T, in) */
    float *values;     /* (T, in)  the codes' values, exact in F32 */
    float *scales;     /* (T, ceil(in/128)) */
};

/* Fills codes, values and scales from x (T, cols). */
void fp8_activations(Fp8Acts *a, const float *x, size_t ldx, size_t T,
                     size_t cols);

/* How the products of 128 k are summed. */
typedef enum {
    FP8_LANES,     /* the order of docs/numerics.md: what a model runs with */
    FP8_EXACT,     /* without error, then rounded to F32 once */
    /* As Hopper's tensor cores do, 32 at a time: shifted to the exponent of
     * the greatest, 13 fraction bits kept, their sum added to a register that
     * keeps 13 fraction bits too. Whether the register is shifted with them
     * is not published. */
    FP8_APART,     /* the register is not */
    FP8_TOGETHER   /* the register is one of 33 numbers that are shifted */
} Fp8Sum;

typedef struct {
    Fp8Sum sum;
    bool floor;      /* bits shifted out: toward -inf, as an arithmetic shift
                        of two's complement does; else toward 0 */
    bool alone;      /* no promotion: the sum runs over all of K, and the
                        scales of the first 128 k serve for all */
} Fp8Accumulation;

/* C = A Bᵀ, both FP8: A (T, K) in `a`, B = w (N, K), C (T, N).
 * V3 §3.3.2: C[t][n] = Σ_b (Σ_k a b) · (a_scale·w_scale) over blocks b of
 * 128 k, the outer sum in F32. FP8_LANES is matmul_scaled. */
void fp8_gemm(float *c, size_t ldc, const Fp8Acts *a, size_t T,
              const Matrix *w, Fp8Accumulation how);
/* y = x wᵀ of a Linear layer; x (T, in), y (T, out). a NULL: x stays F32.
 * Else x is quantised and both operands are FP8, V3 §3.3.2: w must be. */
void linear(float *y, size_t ldy, const float *x, size_t ldx, size_t T,
            const Matrix *w, Fp8Acts *a);
/* Dgrad and Wgrad of the same in F32: dx += dy w, dw += dyᵀ x. */
void linear_backward(float *dx, size_t lddx, const float *dy, size_t lddy,
                     const float *x, size_t ldx, size_t T, const Matrix *w,
                     const Matrix *dw);
/* Names the first NaN code of w. */
int fp8_check(const Matrix *w, const char *name, Error *err);
/* Names the first of rows·cols F32 scales, unaligned, that is not a finite
 * positive number. */
int fp8_check_scales(const void *scales, size_t rows, size_t cols,
                     const char *name, const char *file, Error *err);

/* logfmt.c: LogFMT-nBit --- "Insights into DeepSeek-V3" (ISCA 2025) §3.2 */

typedef struct {
    int bits;      /* n: a sign and n-1 bits of K; 3 … 16 */
    float min;     /* the logarithm that K = 1 stands for */
    float step;    /* from one K to the next; 0 where all are equal */
} LogTile;

/* n finite numbers, a tile of 128 or fewer, -> n codes and their range. */
void logfmt_encode(uint16_t *codes, LogTile *tile, const float *x, size_t n,
                   int bits);
void logfmt_decode(float *x, const uint16_t *codes, const LogTile *tile,
                   size_t n);

/* deepseek.c: the forward pass ------------------------------ V2 §2, V3 §2 */

typedef struct {
    float *attn_norm;     /* (T, d)  RMSNorm(h; input_layernorm) */
    MlaActs mla;
    float *attn_out;      /* (T, d)  u_t                        */
    float *attn_residual; /* (T, d)  h + u                      */
    float *ffn_norm;      /* (T, d)  RMSNorm(; post_attention_layernorm) */
    FfnActs ffn;          /* dense layers; moe.shared is the same memory */
    MoeActs moe;
    float *ffn_out;       /* (T, d) */
    float *h;             /* (T, d)  the block's output         */
    Fp8Acts fp8;          /* of the Linear layer at hand */
} BlockActs;

/* Training: pairs of token and expert that are left out, V2 §2.2.4. */
typedef struct {
    double capacity;      /* 1: a device's average load */
    size_t devices;
    const bool *exempt;   /* (B) sequences that keep all; NULL: none */
    uint64_t *work;       /* (B T K) */
} Dropping;

/* The tokens of a call. */
typedef struct {
    size_t sequences;     /* B, whose rows follow one another; training */
    size_t T, pos;        /* tokens of each and the position of the first */
    bool naive;           /* which form of attention */
    const float *cos, *sin;  /* (T, d_r/2) rope_table of these positions */
    float softmax_scale;
    const Dropping *dropping;  /* NULL: no token is dropped */
} Batch;

/* One layer: h (B T, d) -> a->h. cache: of this layer, (capacity, d_c+d_r);
 * with several sequences (B T, d_c+d_r) and pos 0. */
void block_forward(const float *h, float *cache, const LayerWeights *w,
                   const Config *c, const Batch *b, BlockActs *a);

/* Gradients on their way back through a layer, one set for all. */
typedef struct {
    float *norm;          /* (B T, d)  of a norm's output */
    float *x;             /* (B T, d)  of its input       */
    MlaGrads mla;
    MoeGrads moe;
} BlockGrads;

/* What a layer of training need not keep: norms, MLA's up-projections, SwiGLU
 * (V3 §3.2.3), from h and the rest of a. */
void block_recompute(const float *h, float *cache, const LayerWeights *w,
                     const Config *c, const Batch *b, BlockActs *a);
/* dh (B T, d): of the block's output, then of its input h. */
void block_backward(float *dh, const float *h, const float *cache,
                    const LayerWeights *w, const LayerWeights *dw,
                    const Config *c, const Batch *b, BlockActs *a,
                    BlockGrads *g);

/* What an MTP module has besides its block, one for all modules (mtp.c). */
typedef struct {
    float *pair;          /* (T, 2d) [RMSNorm(Emb); RMSNorm(h)] */
    float *h;             /* (T, d)  M_k pair, into the block   */
    float *norm;          /* (T, d)  h^k: after shared_head.norm */
    float *kept;          /* (D, d)  a row of h^(k-1) that is still to run */
} MtpActs;

typedef struct {
    size_t ctx;           /* positions the cache holds */
    size_t chunk;         /* tokens of one pass; 0: 128, or fewer if ctx is */
    bool naive;           /* --mla naive */
    bool fp8;             /* --fp8 activations; asks for naive, FP8 weights */
    Fp8Scope fp8_scope;   /* 0, FP8_TILE: the paper's */
    int fp8_raise;        /* 0: see Fp8Acts */
    size_t logit_rows;    /* the last rows of a pass have logits; 0: one */
    size_t modules;       /* MTP modules that run too: each has a cache */
    Trace *trace;         /* or NULL */
} SessionOptions;

typedef struct {
    const Model *model;
    SessionOptions options;
    Rope rope;
    size_t pos;           /* tokens in the cache */
    float *cache;         /* (layers and modules, ctx, d_c+d_r) */
    float *cos, *sin;     /* (T, d_r/2) */
    float *embed;         /* (T, d)  the embedding, then h */
    BlockActs acts;       /* one, for all layers */
    MtpActs mtp;
    float *norm;          /* (T, d)  after model.norm */
    size_t rows;          /* of logits, the last ones of the last pass */
    float *logits;        /* (rows, V) */
    float *host_logits;   /* the same, read back */
    int32_t *host_first;  /* (N+1) with modules: moe.first, read back */
    uint64_t experts_read;  /* with modules: those that ran, in all passes */
} Session;

int session_open(Session *s, const Model *m, const SessionOptions *o,
                 Error *err);
void session_close(Session *s);
/* Bytes that session_open allocates: the printed formula. */
size_t session_bytes(const Config *c, const SessionOptions *o);
/* Runs n ids after those in the cache, in chunks; logits of the last rows of
 * the last chunk are in host_logits. Refuses ids outside the vocabulary and a
 * context that would overflow. what: for the progress line on a terminal, or
 * NULL for none. */
int session_forward(Session *s, const int32_t *ids, size_t n,
                    const char *what, Error *err);
/* What session_forward refuses, before anything runs. */
int session_check(const Session *s, const int32_t *ids, size_t n,
                  Error *err);
/* Tokens of one pass at most. */
size_t session_chunk(const Session *s);
/* The logits of the row that is `back` rows before the last. */
const float *session_logits(const Session *s, size_t back);
/* Forgets all but the first `pos` tokens. */
void session_rewind(Session *s, size_t pos);

/* The parts of a pass, for modules that run behind it. One layer on rows of
 * positions pos … pos+T-1, whose cos and sin are at hand: h (T, d) -> acts.h.
 * MTP modules are the layers from num_hidden_layers on. Only a trace can
 * fail. */
int session_block(Session *s, const float *h, size_t layer, size_t T,
                  size_t pos, Error *err);
/* Logits of the last rows of h (T, d), which has had its norm, into
 * host_logits; refuses one that is not finite. pos: of the first row. */
int session_head(Session *s, const float *h, const Matrix *head, size_t T,
                 size_t pos, Error *err);

/* The tables of what a trace shows, in the order of a pass. */
typedef enum {
    STAGE_FIRST, STAGE_PAIR, STAGE_BLOCK, STAGE_MTP_NORM, STAGE_LAST,
    STAGE_MTP_LOGITS
} Stage;
int session_trace(Session *s, Stage stage, size_t layer, size_t T,
                  size_t pos, Error *err);
/* What the sides of a traced tensor are, by the config's keys: returns the
 * rank, or 0 for a name that is in no trace. */
int session_axes(const char *name, bool naive, const char *axes[3]);

typedef struct {
    Sampler sampler;
    uint64_t seed;
    size_t n;                /* new tokens at most */
    size_t vocabulary;       /* sample below this id: no padding ids */
    const int32_t *stop;     /* ids that end the text */
    size_t n_stop;
} GenerateOptions;

typedef struct {
    size_t prompt_tokens, new_tokens;
    double prompt_seconds, decode_seconds;
    bool stopped;            /* by a stop id, which was not emitted */
} GenerateStats;

/* Called with each new id; non-zero ends the generation. */
typedef int GenerateSink(void *context, int32_t id, Error *err);
int generate(Session *s, const int32_t *prompt, size_t n,
             const GenerateOptions *o, GenerateSink *sink, void *context,
             GenerateStats *stats, Error *err);
/* What generate refuses of its options. */
int generate_check(const Session *s, const GenerateOptions *o, Error *err);
/* Emits one id, unless it stops the text: 1 where the text ends here, 0 where
 * it goes on, -1 for the sink's error. full: the context has no room. */
int generate_emit(const GenerateOptions *o, int32_t id, bool full,
                  GenerateSink *sink, void *context, GenerateStats *stats,
                  Error *err);

/* -ln p of each id given those before it, summed: nats over n-1 ids. Needs a
 * session with the logits of every row. */
int session_nll(Session *s, const int32_t *ids, size_t n, double *nats,
                const char *what, Error *err);

/* mtp.c: multi-token prediction, drafting -------------- V3 §2.2, §5.4.3 */

enum { MAX_DRAFTS = 16 };

/* Refuses a model that has not so many modules, and says what is missing. */
int mtp_check(const Model *m, size_t modules, Error *err);
/* What drafting K tokens asks of a session: modules, their caches, logits of
 * K+1 rows and passes that hold them. Refuses as mtp_check. */
int mtp_options(SessionOptions *o, const Model *m, size_t drafts,
                Error *err);

/* A session with its modules. */
typedef struct {
    Session *session;
    size_t drafts;       /* K: tokens drafted a step; 0: a trace */
    bool best;           /* drafts are a module's best token, not sampled */
    int32_t *ids;        /* (ctx+1) all tokens by position, then drafts */
    size_t *row;         /* (D)    of each module, the first not yet final */
    size_t states;       /* position of the first main state still at hand */
    uint32_t *order;     /* (V)    sampling's: candidates, */
    float *p;            /* (V)    their probabilities */
    float *q;            /* (K, V) what each draft was drawn from */
    Random random;
} Mtp;

int mtp_open(Mtp *m, Session *s, size_t drafts, bool best, Error *err);
void mtp_close(Mtp *m);
/* session_forward, and every module behind each pass. In a trace each gets
 * its logits too. */
int mtp_prompt(Mtp *m, const int32_t *ids, size_t n, const char *what,
               Error *err);
/* Puts `next` behind the tokens of the cache and n <= K drafts behind it:
 * m->ids[pos+1] …; n = 0 only lets the modules catch up. */
int mtp_draft(Mtp *m, int32_t next, size_t n, const GenerateOptions *o,
              Error *err);
/* Forgets all but the first `pos` tokens of the cache and a few more, which
 * the modules have to see again; returns how many are left. */
size_t mtp_rewind(Mtp *m, size_t pos);

/* The rule of lossless drafts: a draft x, drawn from q, is kept with
 * probability min(1, p(x)/q(x)) … */
double draft_acceptance(double p, double q);
/* … else another token is drawn from max(0, p - q), normalised. order, p: the
 * `kept` candidates of p, then those of the result, whose number is returned;
 * q by id. 0 where nothing is left but rounding: then p itself will do. */
size_t draft_residual(uint32_t *order, float *p, size_t kept, const float *q);

typedef struct {
    size_t steps, tokens;  /* with K drafts each, and what they gave */
    size_t tried[MAX_DRAFTS], accepted[MAX_DRAFTS];  /* by position */
    size_t plain_steps;    /* with none */
    double draft_seconds;  /* of modules, all steps */
    double step_seconds, plain_seconds;     /* of such steps */
    uint64_t step_experts, plain_experts;   /* the main model read in them */
} MtpStats;

/* As generate, and the same greedy text bit for bit; sampled text has the
 * same distribution. Adds to drafted. Every 16th step has no drafts, for
 * comparison. The cache holds nothing, or what mtp_rewind left. */
int mtp_generate(Mtp *m, const int32_t *prompt, size_t n,
                 const GenerateOptions *o, GenerateSink *sink, void *context,
                 GenerateStats *stats, MtpStats *drafted, Error *err);

/* Training. What a module leaves for its backward pass, beside its block. */
typedef struct {
    float *state;        /* (R, d)  h^(k-1) */
    float *embed;        /* (R, d)  Emb(t_(i+k)) */
    float *pair;         /* (R, 2d) */
    float *h;            /* (R, d)  M_k pair */
    float *norm;         /* (R, d)  h^k */
} MtpTape;

/* V3 (21) for B sequences of T rows: ids (B, ld) hold t_k … of each from its
 * k-th on. a->state is given. */
void mtp_join(MtpTape *a, const int32_t *ids, size_t ld,
              const LayerWeights *w, const Matrix *embedding,
              const Config *c, size_t B, size_t T);
/* dstate, dembed (R, d) from dh (R, d), both overwritten; dpair (R, 2d). */
void mtp_join_backward(float *dstate, float *dembed, const float *dh,
                       float *dpair, const MtpTape *a,
                       const LayerWeights *w, const LayerWeights *dw,
                       const Config *c, size_t B, size_t T);

/* cost.c: parameters, bytes, FLOPs ------------ V2 Table 1, V3 §4.2, §3.2 */

typedef struct {
    /* Parameters: of one such module, then of all. */
    uint64_t embedding, mla, dense_ffn, routed_expert, shared_experts;
    uint64_t gate, moe_ffn;              /* the bias is in the gate */
    uint64_t total;                      /* the main model */
    uint64_t activated;                  /* a token's, all of both tables */
    uint64_t activated_no_embedding;     /* without the input table */
    uint64_t mtp_unique, mtp_with_copies, mtp_activated;
    uint64_t checkpoint_total;           /* main model and MTP layers */
    uint64_t tensors, checkpoint_bytes;  /* scales of FP8 weights included */
    /* Cache: elements a token, all layers. */
    uint64_t cache_mla, cache_mla_mtp;   /* d_c + d_r a layer */
    uint64_t cache_naive;                /* keys and values expanded */
    uint64_t cache_mha, cache_gqa8, cache_mqa; /* heads as wide as d_h, d_v */
    /* Floating-point operations a token, a multiply-add counted as two. */
    double flops_weights;                /* forward, 2 activated weights */
    double flops_absorbed, flops_naive;  /* attention over ctx positions */
    double flops_train;                  /* forward and backward, 4096 long */
} Costs;

/* Walks the table of tensors; ctx: positions that a token attends to. */
void cost_count(Costs *costs, const Config *c, DType checkpoint, size_t ctx);

/* A step of decoding: V3 §5.4.3. */
typedef struct {
    size_t drafts;           /* K; 0: a plain step */
    size_t batch;            /* sequences side by side, a step each */
    size_t ctx;              /* positions in the cache of each */
    double acceptance;       /* a: how often a draft is kept if all before it
                                are */
    double experts;          /* of a layer that the main model reads; 0: as
                                many as independent picks hit */
} Step;

/* What it reads, in bytes: weights once, whatever the number of tokens. */
typedef struct {
    double weights;          /* the main model's but routed experts, and no
                                rows of the embedding */
    double experts;          /* of these each that a token picks */
    double cache;            /* of the main model, F32 */
    double modules;          /* what the drafts need, their caches too, */
    double heads;            /* and the head for each */
    double distinct;         /* experts of a layer: Step.experts, or N of them
                                hit on average */
} StepBytes;

/* The sum. */
double cost_step(StepBytes *b, const Config *c, DType checkpoint,
                 const Step *s);
/* Tokens that a step gives: 1 + a + … + a^K = (1-a^(K+1))/(1-a). */
double cost_tokens(double a, size_t drafts);
/* Of such steps over plain ones, if time is what reading takes. */
double cost_speed_up(const Config *c, DType checkpoint, const Step *s);

/* Costs as rows to print: what they are called and where they come from. */
typedef enum {
    COST_PARAMETERS, COST_CHECKPOINT, COST_CACHE, COST_FLOPS
} CostGroup;

typedef struct {
    CostGroup group;
    const char *name;       /* the field's, a JSON key */
    const char *label;
    const char *reference;  /* "V2 §2.1", "" */
    size_t offset;          /* in Costs: uint64_t, double for COST_FLOPS */
} CostRow;

const CostRow *cost_rows(size_t *n);

/* golden.c: packs that another engine is judged by ------------------------ */

/* A row of the table of packs: docs/golden.md. */
typedef struct {
    const char *name;     /* "K3" */
    unsigned version;     /* of its bytes */
    const char *why;
    void (*config)(Config *c);
    /* Changes rows of a drawn tensor; or NULL. */
    void (*design)(float *w, const TensorInfo *info, size_t rows,
                   Random *random);
    uint64_t seed;
    float branch;         /* on o_proj and down_proj: less than 1 where many
                             layers would make much of rounding errors */
    float routed;         /* on the routed experts' down_proj, so that they
                             count as much as the rest, whatever their g_i */
    double margin;        /* no choice of experts or groups is narrower */
    bool ties;            /* but for equal numbers */
    size_t forced;        /* each fifth token is 7, 15, 23 …: so many */
    const char *step;     /* train.json of a step of training, which is shown
                             instead of a pass; NULL: none */
    const char *readings[5];  /* that are shown too; NULL ends them */
} GoldenPack;

/* Tokens of a pass; in a step of training as many rows, each sequence having
 * one id more. */
enum {
    GOLDEN_TOKENS = 48, GOLDEN_WIDEST = 256, GOLDEN_DRAFTS = 4,
    GOLDEN_SEQUENCES = 2,
    GOLDEN_SEQUENCE = GOLDEN_TOKENS / GOLDEN_SEQUENCES + 1
};

const GoldenPack *golden_pack(size_t i);    /* NULL behind the last */
const GoldenPack *golden_find(const char *name, Error *err);
/* A new directory: a model, golden/golden.safetensors with every stage of a
 * pass over GOLDEN_TOKENS tokens, or what a step of training gives,
 * golden/manifest.json. force: it may take the place of another pack. */
int golden_make(const GoldenPack *p, const char *dir, bool force, Error *err);

/* golden_step.c: the packs' step of training. Writes golden/train.json and
 * golden/ids.txt of a pack's directory; then what the step of these gives, or,
 * with a reading, the step with one setting changed. */
int golden_step_files(const GoldenPack *p, const int32_t *ids,
                      const char *dir, Error *err);
int golden_step(const Model *m, const int32_t *ids, const char *dir,
                const char *reading, const char *path, Error *err);
/* What side i of such a tensor is. */
const char *golden_step_axis(const char *name, int rank, int i);

/* By how much experts, or groups, were chosen. */
typedef struct {
    double least;         /* between the last chosen and the next, over all
                             tokens, but for ties; infinite: no choice */
    size_t row;           /* where */
    size_t ties;          /* tokens where the two were equal */
} GoldenMargins;

/* Of a traced tensor (rows, cols), F32, unaligned: *.gate.choice,
 * *.gate.group_scores and draft.*.logits; all others choose nothing. cols <=
 * GOLDEN_WIDEST. */
void golden_margins(GoldenMargins *m, const Config *c, const char *name,
                    const void *values, size_t rows, size_t cols);

/* judge.c: whether another engine's dump is right ------------------------- */

typedef enum { RULE_FP32, RULE_BF16, RULE_FP8 } JudgeRule;

/* One tensor of golden's that the dump has. */
typedef struct {
    const char *name;         /* golden's */
    const char *from;         /* what the dump calls it */
    char layout[64];          /* as it lay in the dump; "": as golden's */
    size_t at;                /* in golden's order */
    size_t layer;             /* SIZE_MAX outside the layers */
    size_t tokens, judged;    /* of them those that count: experts swapped by
                                 a narrow margin prove nothing */
    double nmse, bound;
    double power;             /* golden's squares, of all tokens */
    size_t not_finite;        /* NaN, and what is infinite where golden's is
                                 not and nothing is masked; of all tokens */
    bool departs;
    bool picks;               /* topk_ids: nmse is the share of wrong tokens */
    bool logits;              /* then: */
    double kl_mean, kl_most;  /* Σ p ln(p/q) over the vocabulary, a token */
    size_t kl_at;             /* the token with the most */
    size_t top1, top1_wrong;  /* tokens that agree; that do not, golden's
                                 margin being greater than top1_margin */
    double top1_margin;
    Sketch sketch;            /* of theirs - golden's */
} JudgedTensor;

enum { MOST_BUGS = 8 };

typedef struct {
    JudgedTensor *tensors;    /* in the order of computation */
    size_t n;
    const StTensor **golden;  /* all of golden's, in the same order */
    size_t in_golden;
    size_t departed;
    const JudgedTensor *first, *worst; /* departed first; nmse/bound greatest */
    size_t swapped;           /* picks that differ by a narrow margin */
    bool blind;               /* picks of some layer are not in the dump */
    size_t n_unknown;         /* of the dump's, that golden has not */
    const char *unknown;      /* the first of them */
    char hash[17];            /* of golden's file */
    struct {
        char name[64];
        double agreement;     /* 1: just so; docs/golden.md */
    } bugs[MOST_BUGS];        /* the likely ones, bugs.c */
    size_t n_bugs;
} Judgement;

/* golden: a pack's golden.safetensors, or any trace. Shapes that no layout has
 * and ids of another prompt are errors; a wrong dump is none. The names are
 * those of the two files, which must outlive j. */
int judge_dump(Judgement *j, const Safetensors *golden,
               const Safetensors *theirs, JudgeRule rule, Error *err);
void judge_close(Judgement *j);

/* bugs.c: which known bug a dump shows ------------------------------------ */

/* Fills j->bugs from a file of fingerprints, golden/bugs.txt. *known: it has
 * some of this golden file. */
int bugs_find(Judgement *j, const char *path, bool *known, Error *err);
/* The lines of that file for what j shows, which is called `name`. */
void bugs_print(Text *t, const Judgement *j, const char *name);

/* tokenizer.c: byte-level BPE, templates ------------- V2 §3.1.1, V3 §4.1 */

typedef struct Tokenizer Tokenizer;

typedef struct {
    int32_t *ids;
    size_t n, capacity;
} IdList;

int ids_add(IdList *list, int32_t id, Error *err);
void ids_free(IdList *list);

/* tokenizer.json and, where it is there, tokenizer_config.json of a
 * directory. An unknown pre-tokenizer, model or decoder is refused by name. */
Tokenizer *tokenizer_open(const char *dir, Error *err);
void tokenizer_close(Tokenizer *t);
size_t tokenizer_size(const Tokenizer *t);     /* greatest id + 1 */
int32_t tokenizer_bos(const Tokenizer *t);     /* -1: none */
int32_t tokenizer_eos(const Tokenizer *t);
bool tokenizer_add_bos(const Tokenizer *t);    /* add_bos_token */
int32_t tokenizer_id(const Tokenizer *t, const char *token); /* -1: none */
/* Appends the ids of n bytes of text; added tokens in the text become their
 * ids; no BOS is added. Invalid UTF-8 is refused with its offset.
 * O(n log n). */
int tokenizer_encode(const Tokenizer *t, const char *text, size_t n,
                     IdList *out, Error *err);
/* The bytes of one id (not zero-terminated); false for an id that no token
 * has. skip_special: tokens with special = true have no bytes. */
bool tokenizer_decode(const Tokenizer *t, int32_t id, bool skip_special,
                      const char **bytes, size_t *n);

/* Streamed output: hands out whole UTF-8 characters, holds back the rest. */
typedef struct {
    char held[4];
    size_t n;
} Utf8Stream;

/* Appends to out what can be shown now; at the end call with n = 0, flush:
 * an incomplete character becomes U+FFFD. */
void utf8_stream(Utf8Stream *s, const char *bytes, size_t n, bool flush,
                 Text *out);

/* chat.c: the published chat templates ---------------------------------- */

typedef enum {
    TEMPLATE_NONE, TEMPLATE_V2, TEMPLATE_V25, TEMPLATE_V3, TEMPLATE_R1,
    TEMPLATE_V31
} ChatTemplate;

typedef enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL } ChatRole;

typedef struct {
    const char *type, *name, *arguments; /* "function", …, JSON text */
} ChatCall;

typedef struct {
    ChatRole role;
    const char *content;     /* may be NULL for an assistant that only calls */
    const ChatCall *calls;
    size_t n_calls;
} ChatMessage;

typedef struct {
    ChatTemplate kind;
    bool generation_prompt;  /* end with what the assistant begins with */
    bool thinking;           /* R1, V3.1: open <think> */
    bool tool_quirk;         /* V3's template byte for byte: see docs */
} ChatOptions;

const char *chat_template_name(ChatTemplate kind);   /* "v2", …, "none" */
/* The template that tokenizer_config.json holds; NONE if it is not one of
 * these. */
ChatTemplate tokenizer_template(const Tokenizer *t);
/* The conversation as text; BOS is in it: encode it without another. */
int chat_render(Text *out, const Tokenizer *t, const ChatMessage *messages,
                size_t n, const ChatOptions *o, Error *err);

/* data.c: documents to sequences of ids ---------------------------- V3 §4.1
 * A data file is a header and the ids of all documents, one after another.
 * docs/data.md has its bytes. */

/* A text is cut into documents by lines that are the separator. */
typedef struct {
    const char *at, *end;      /* what is left of the text */
    const char *separator;     /* "": the whole text is one document */
} Documents;

/* The next one, without the line breaks at its ends; empty ones are passed
 * over. False where there is no more. */
bool documents_next(Documents *d, const char **text, size_t *n);

typedef struct {
    double fim, split;         /* rates, 0 to 1 */
    uint64_t seed;
} DataSettings;

/* What a data file's header says. */
typedef struct {
    size_t vocab_size;         /* of the tokenizer; every id is below */
    unsigned width;            /* bytes of an id: 2 or 4 */
    uint64_t tokens, documents;
    uint64_t bytes;            /* of the documents' text */
    uint64_t fim_documents;    /* in PSM form */
    uint64_t splits;           /* tokens written as two */
    uint64_t tokenizer_hash;   /* tokenizer_hash of its directory */
    DataSettings settings;
} DataInfo;

/* FNV-1a, 64 bits, of the bytes of dir/tokenizer.json. */
int tokenizer_hash(const char *dir, uint64_t *hash, Error *err);

/* Writes a data file. A document becomes [BOS] text EOS, BOS where the
 * tokenizer adds one; at the rate `fim` it becomes
 *   [BOS] fim_begin prefix fim_hole suffix fim_end middle EOS   (PSM),
 * and a token of punctuation and line breaks becomes the tokens of either at
 * the rate `split`. What becomes of a document depends on its number and the
 * seed, not on the others. */
typedef struct {
    const Tokenizer *tokenizer;
    DataInfo info;
    int32_t fim_begin, fim_hole, fim_end;
    Random seeds;              /* one number a document */
    IdList ids, encoded;       /* of the document being written */
    IdList halves;             /* of all tokens that may be split */
    size_t *half;              /* by id: where its halves begin there */
    OutFile out;
} DataWriter;

int data_create(DataWriter *w, const char *path, bool force,
                const Tokenizer *t, uint64_t hash, const DataSettings *s,
                Error *err);
int data_add(DataWriter *w, const char *text, size_t n, Error *err);
/* Completes the header; after 0 the file is there, after -1 nothing is left
 * of it. */
int data_commit(DataWriter *w, Error *err);
void data_abort(DataWriter *w); /* harmless after a commit */

typedef struct {
    DataInfo info;
    File file;                 /* mapped: need not fit into memory */
    const char *path;          /* the caller's */
} Data;

int data_open(Data *d, const char *path, Error *err);
void data_close(Data *d);
/* Sequences of T >= 1 tokens. Sequence i is the T + 1 ids from i T on: inputs,
 * and targets one further (an MTP module of depth k uses T - k of its rows).
 * Each id but the first is a target once; fewer than T at the end are left
 * out. */
uint64_t data_sequences(const Data *d, size_t T);
/* Sequence i into T + 1 ids; refuses an id outside the vocabulary. */
int data_sequence(const Data *d, size_t T, uint64_t i, int32_t *ids,
                  Error *err);

/* Where training stands: all of it, so that who keeps this resumes exactly. */
typedef struct {
    uint64_t epoch, index;     /* index: sequences read of this epoch */
} DataPosition;

/* The next sequence of the epoch's order into T + 1 ids; moves *at on. */
int data_next(const Data *d, size_t T, uint64_t seed, DataPosition *at,
              int32_t *ids, Error *err);
/* A permutation of the numbers below n for each seed and epoch: where i < n
 * goes. Needs no memory. */
uint64_t data_shuffled(uint64_t i, uint64_t n, uint64_t seed,
                       uint64_t epoch);

/* balance.c: even loads of experts ---- V2 §2.2.3-2.2.4, V3 §2.1.2, §4.5.3 */

/* What a gate said of B sequences of T tokens, one behind another; an MTP
 * module of depth k has T - k of each. */
typedef struct {
    size_t N, K, B, T;
    const float *scores;       /* (B T, N)  MoeActs.scores */
    const int32_t *topk_ids;   /* (B T, K)  MoeActs.topk_ids */
} Routes;

typedef enum {
    BALANCE_EXPERT,            /* V2 (23)-(25) */
    BALANCE_DEVICE,            /* V2 (26)-(28) */
    BALANCE_COMMUNICATION,     /* V2 (29)-(31) */
    BALANCE_SEQUENCE,          /* V3 (17)-(20) */
    BALANCE_LOSSES
} BalanceLoss;

typedef struct {
    double alpha[BALANCE_LOSSES];  /* α1, α2, α3 of V2, α of V3; 0: none */
    size_t devices;            /* D; divides N */
    size_t device_limit;       /* M: devices that a token may be sent to */
    bool batch;                /* V3 §4.5.3: all B T tokens are one sequence */
    bool count_picks;          /* f of V3 (18) from the picks, with bias and
                                  groups; else from the K greatest s */
} Balance;

/* Adds each loss, times `scale` (1 / the sequences of a step), to losses
 * (BALANCE_LOSSES), and dL/ds to dscores (B T, N), unless that is NULL. Losses
 * of layers are summed by the caller. work: 4 N. */
void balance_losses(double *losses, float *dscores, const Routes *r,
                    const Balance *b, double scale, double *work);
/* load (N) += how often each expert is among n picks. */
void balance_count(uint64_t *load, const int32_t *topk_ids, size_t n);
/* V3 §2.1.2: b_i += γ sign(mean load - load_i), sign(0) = 0, compared in whole
 * numbers. load: of all sequences of a step. */
void balance_update_bias(float *bias, const uint64_t *load, size_t N,
                         double gamma);
/* MaxVio: the greatest load / the mean load - 1; 0 without any load. */
double balance_max_violation(const uint64_t *load, size_t N);

/* V2 §2.2.4. dropped (B T, K) = 1 for each pair of token and expert that
 * exceeds its device's budget of capacity · B T K / D pairs, rounded down, 0
 * for the others: those with the lowest scores go first, among equals the last
 * in topk_ids. Sequences with exempt (B) keep all of theirs, though they count;
 * NULL: none. Returns how many go. B T K < 2^32; work: B T K. */
size_t drop_tokens(int32_t *dropped, const Routes *r, const bool *exempt,
                   double capacity, size_t devices, uint64_t *work);
/* Drawn from the seed and the sequence's number alone. */
bool drop_exempt(uint64_t seed, uint64_t sequence, double rate);

/* pass.c: a batch forward and back -------------- V2 §3.1; V3 §2.2, §3.2.3 */

typedef struct {
    size_t sequences;    /* B of one pass, at most */
    size_t T;            /* tokens of each */
    bool recompute;      /* V3 §3.2.3: norms, up-projections, SwiGLU */
} PassOptions;

typedef struct {
    const float *h;      /* (R, d)  the layer's input, another's output */
    float *cache;        /* (R, d_c+d_r) */
    BlockActs acts;
} LayerTape;

/* A pass forward and back over R = B T rows, and what it keeps for that. */
typedef struct {
    const Model *model;
    PassOptions options;
    Rope rope;
    void *memory;        /* of all that follows */
    float *cos, *sin;    /* (T, d_r/2) */
    float *embed;        /* (R, d) */
    LayerTape *layers;   /* main layers, then modules */
    MtpTape *modules;    /* (D) */
    float *norm;         /* (R, d)  after model.norm */
    float **dnorm;       /* (D+1) (R, d) of the states that enter the head */
    float **dembed;      /* (D+1) (R, d) of embeddings; the first is dh */
    float *dstate;       /* (R, d) */
    float *dpair;        /* (R, 2d) */
    float *dhead;        /* (V, d)  a tied head's, until the step ends */
    float *logits;       /* (some rows, V) */
    BlockGrads grads;
    double *balance;     /* (L+D, BALANCE_LOSSES)  until the step ends */
    double *balance_work;
    uint64_t *drop_work;
    bool *exempt;        /* (B) */
} Pass;

/* What a step asks of each of its passes. */
typedef struct {
    size_t step_sequences;   /* of all passes: losses are means over these */
    double lambda;           /* V3 (25): weight of the modules' losses */
    Balance balance;
    double capacity;         /* of dropping; 0: no token is dropped */
    double exempt_rate;
    uint64_t seed, sequence; /* of exemption: number of the first sequence */
} PassLoss;

/* Means over the sequences of a step, added up pass by pass. */
typedef struct {
    double main;             /* nats a token */
    double mtp[MAX_DRAFTS];  /* L_MTP^k of V3 (24), without λ/D */
    double balance[BALANCE_LOSSES];  /* sums over layers, by pass_finish */
    uint64_t dropped;        /* pairs */
} LossSums;

/* Fails where memory does, or a module's tensors are absent. m stays the
 * caller's, its weights may change between passes. */
int pass_open(Pass *p, const Model *m, const PassOptions *o, Error *err);
void pass_close(Pass *p);
/* Bytes that pass_open allocates: the printed formula. */
size_t pass_bytes(const Config *c, const PassOptions *o);
/* n <= B sequences of T + 1 ids: adds to the losses, to `grads` (a
 * model_zeros) and to `load` (all layers, N each, MTP layers too; NULL: not
 * wanted). Without grads only the losses. A loss that is not finite is an
 * error that names where it was met first. */
int pass_run(Pass *p, const int32_t *ids, size_t n, const PassLoss *l,
             LossSums *losses, Model *grads, uint64_t *load, Error *err);
/* After the last pass of a step: balance losses of the layers and, with grads,
 * a tied head's gradient join. */
void pass_finish(Pass *p, LossSums *losses, Model *grads);

/* adamw.c: one step of the optimiser ---------------- V2 §3.1.2, V3 §4.2 */

typedef struct {
    double beta1, beta2, eps, weight_decay;
} AdamW;

/* What all parameters of a step share. */
typedef struct {
    float lr, clip, eps, weight_decay;
    float beta1, rest1, beta2, rest2;   /* β, 1 - β */
    float unbias1, unbias2;             /* 1 / (1 - β^t) */
} AdamWStep;

/* Of one tensor: n numbers each, F32 or BF16, all 0 at first. */
typedef struct {
    DType dtype;
    void *m, *v;
} Moments;

/* Σ g_i². The gradient's norm is the root of the sum of those of all trained
 * tensors, added in the order of the table. */
double sum_of_squares(const float *g, size_t n);
/* min(1, limit / norm). */
float clip_factor(double norm, double limit);
/* t: the number of the update, from 1 on. */
AdamWStep adamw_step(const AdamW *a, double lr, float clip, uint64_t t);
/* g' = clip g; m = β1 m + (1 - β1) g'; v = β2 v + (1 - β2) g'²;
 * p -= lr (m/(1 - β1^t) / (√(v/(1 - β2^t)) + eps) + weight_decay p).
 * decay: whether the tensor has the last term. */
void adamw_update(float *p, const float *g, const Moments *moments, size_t n,
                  bool decay, const AdamWStep *s);
/* The parameters' moving average, V3 §3.2.3: ema += (1 - decay) (p - ema). */
void ema_update(float *ema, const float *p, size_t n, double decay);

/* schedule.c: what changes while a model is trained -- V2 §3.1.2, V3 §4.2 */

typedef enum { SHAPE_CONSTANT, SHAPE_LINEAR, SHAPE_COSINE } ScheduleShape;

typedef struct {
    uint64_t until;            /* tokens seen: the first that are not in it */
    ScheduleShape shape;
    double from, to;           /* cosine: half a period from one to the other */
} ScheduleSegment;

enum { MAX_SEGMENTS = 16 };

typedef struct {
    size_t n;                  /* at least 1 */
    ScheduleSegment segments[MAX_SEGMENTS]; /* until rises */
} Schedule;

Schedule schedule_constant(double value);
/* The value where so many tokens have been seen; behind the last segment, what
 * that ended with. */
double schedule_value(const Schedule *s, uint64_t tokens);
/* The same as a batch size: rounded, halves up, at least 1. */
size_t schedule_sequences(const Schedule *s, uint64_t tokens);
/* value · min(1, update / warmup), updates counted from 1. */
double warm_up(double value, uint64_t update, uint64_t warmup);

/* settings.c: train.json ----------------------------- V2 §3.1.2, V3 §4.2 */

typedef struct {
    char *data, *eval_data;    /* data files; NULL: none */
    size_t sequence_length;    /* T */
    uint64_t total_tokens;     /* the run ends with the step that sees them */
    Schedule batch_size;       /* sequences of a step */
    size_t micro_batch;        /* sequences of a pass */
    Schedule learning_rate;
    uint64_t warmup_steps;
    AdamW adamw;
    bool decay_all;            /* also what has one dimension */
    double clip;               /* of the gradient's norm */
    DType moments;             /* F32 or BF16 */
    double ema_decay;          /* 0: no average */
    Schedule mtp_lambda;
    Schedule alpha[BALANCE_LOSSES], gamma;
    size_t devices, device_limit;
    bool batch_wise, count_picks;
    double capacity_factor;    /* of token dropping; 0: none */
    double exempt_rate;
    double init_std;
    uint64_t seed;
    bool recompute;
    /* In steps; 0: never. eval_sequences 0: all. */
    uint64_t log_every, eval_every, eval_sequences;
    uint64_t checkpoint_every, keep_checkpoints;
} TrainSettings;

/* Reads train.json; what it does not say has its default, or is missing until
 * it is set. docs/train.json has every key. */
int settings_read(TrainSettings *s, const char *path, Error *err);
/* "key=value", a key in a group with a dot: "adamw.beta2=0.99". */
int settings_set(TrainSettings *s, const char *text, Error *err);
/* That nothing is missing and all fits the model; `where` begins a message. */
int settings_check(const TrainSettings *s, const Config *c,
                   const char *where, Error *err);
/* Writes every setting but those that are missing: settings_read gives the
 * same again. */
int settings_write(const TrainSettings *s, const char *path, bool force,
                   Error *err);
void settings_free(TrainSettings *s);
/* That a run with settings `was` can go on with s; else a message with the
 * first that must not change. */
int settings_same(const TrainSettings *s, const char *where,
                  const TrainSettings *was, const char *where_was,
                  Error *err);
/* Of those that must not change. */
int settings_hash(const TrainSettings *s, uint64_t *hash, Error *err);
/* The losses of a step that begins with so many tokens seen. */
Balance settings_balance(const TrainSettings *s, uint64_t tokens);

/* train.c: a step of pre-training ---------------------- V2 §3.1, V3 §4.2 */

/* Where sequences come from: fills T + 1 ids. */
typedef int NextSequence(void *context, int32_t *ids, Error *err);

/* All that training changes. Everything of n numbers has the layout of
 * model_zeros. */
typedef struct {
    const TrainSettings *settings;
    Model model;            /* F32 master weights */
    Model grads;            /* of the step at hand */
    size_t n;
    void *m, *v;            /* (n) AdamW's moments, F32 or BF16 */
    float *ema;             /* (n) or NULL */
    Pass pass;
    int32_t *ids;           /* (micro_batch, T+1) */
    uint64_t *load;         /* (layers and modules, N) of the last step */
    uint64_t step, tokens;  /* done */
} Trainer;

typedef struct {
    uint64_t step, tokens;  /* after it */
    size_t sequences;
    LossSums losses;
    double grad_norm;       /* before it is clipped */
    double lr, lambda, gamma;
    double max_violation;   /* MaxVio, the mean over the layers with experts */
} StepReport;

/* Begins with the weights of `from`, moments 0, the average at the weights. s
 * stays the caller's. */
int train_open(Trainer *t, const Model *from, const TrainSettings *s,
               Error *err);
void train_close(Trainer *t);
/* Bytes that train_open allocates: the printed formula. */
size_t train_bytes(const Config *c, const TrainSettings *s);
bool train_done(const Trainer *t);   /* total_tokens are reached */
/* Forward and back over the sequences of the next step: grads, load, losses.
 * train_step: that, then the optimiser, the average and the gates' bias. */
int train_gradient(Trainer *t, NextSequence *next, void *context,
                   StepReport *r, Error *err);
int train_step(Trainer *t, NextSequence *next, void *context, StepReport *r,
               Error *err);
/* Losses of n sequences; changes nothing. */
int train_evaluate(Trainer *t, NextSequence *next, void *context, size_t n,
                   LossSums *losses, Error *err);

/* train_state.c: directories that training goes on from ------------------- */

/* Where a run stands in its data. */
typedef struct {
    DataPosition at;
    uint64_t hash;          /* tells the data from others */
} TrainPlace;

/* Writes run/step-00000250: a model directory by model_save, with
 * training.safetensors, all of it under a temporary name until it is on the
 * disk. run/config.json says how weights are stored. */
int state_save(const Trainer *t, const TrainPlace *place, const char *run,
               Error *err);
/* Opens a Trainer where such a directory stands. c, s and place->hash must be
 * those of then. */
int state_load(Trainer *t, TrainPlace *place, const char *dir,
               const Config *c, const TrainSettings *s, Error *err);
/* The latest one's path, to be freed; *dir NULL: there is none. */
int state_newest(const char *run, char **dir, Error *err);
/* Removes all but the `keep` latest, and what killed runs left half-written. */
int state_prune(const char *run, uint64_t keep, Error *err);
/* What other programs compare a step with, F32: loss.main, loss.mtp.K,
 * loss.balance.expert …, those there are; grad_norm; the loads (N), I32, as
 * model.layers.L.mlp.gate.load; each gradient as NAME.grad; after the step each
 * weight as NAME. r: of train_step. */
void state_put_step(const Trainer *t, const StepReport *r, Trace *trace);

#endif
