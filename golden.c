/* golden.c: packs that show whether another engine is right
 *
 * A pack is a small model, made so that a mistake in any stage moves its
 * output, with what every stage of it computes. Stages: a row of `packs` says
 * which config, which weights and which tokens; the weights are drawn and
 * written (model_draw); tokens are picked one by one so that no choice of
 * experts is a narrow one (pick_ids); a pass over them is traced; the manifest
 * lists what there is. docs/golden.md says what each pack is for.
 *
 * Invariants: a pack follows from its row alone, to the bit, on every machine;
 * a row that gives other bytes than before has another version. Weights are
 * BF16 or FP8, and read back from the files before anything is computed. A
 * pack is whole or not there: it is made beside its place and renamed.
 *
 * Not here: comparing a dump with a pack. */
#include "deepseek.h"

#include "base/json.h"
#include "base/sha256.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* Configs ---------------------------------------------------------------- */

static const RopeScaling yarn = {
    .yarn = true, .factor = 40, .original_max_position_embeddings = 4096,
    .beta_fast = 32, .beta_slow = 1, .mscale = 1, .mscale_all_dim = 1};

static void common(Config *c)
{
    *c = (Config){
        .vocab_size = 64, .hidden_size = 32, .num_hidden_layers = 3,
        .intermediate_size = 20, .moe_intermediate_size = 4,
        .first_k_dense_replace = 1, .moe_layer_freq = 1,
        .num_attention_heads = 2, .q_lora_rank = 16, .kv_lora_rank = 20,
        .qk_nope_head_dim = 12, .qk_rope_head_dim = 8, .v_head_dim = 12,
        .n_routed_experts = 12, .num_experts_per_tok = 4, .n_group = 4,
        .topk_group = 2, .rms_norm_eps = 1e-6, .rope_theta = 10000,
        .initializer_range = 0.02, .rope_scaling = yarn,
        .max_position_embeddings = 163840, .bos_token_id = 0,
        .eos_token_id = {1}, .n_eos = 1, .torch_dtype = DT_BF16};
}

static void v2(Config *c)
{
    common(c);
    c->model_type = DEEPSEEK_V2;
    c->n_shared_experts = 2;
    c->topk_method = TOPK_GROUP_LIMITED_GREEDY;
    c->scoring_func = SCORING_SOFTMAX;
    c->routed_scaling_factor = 16;
    c->rope_scaling.mscale = c->rope_scaling.mscale_all_dim = 0.707;
}

/* 27 layers, as the released one has: what some engines know it by. */
static void v2_lite(Config *c)
{
    v2(c);
    c->q_lora_rank = 0;
    c->num_hidden_layers = 27;
    c->topk_method = TOPK_GREEDY;
    c->n_group = c->topk_group = 1;
    c->routed_scaling_factor = 1;
}

static void v3(Config *c)
{
    common(c);
    c->model_type = DEEPSEEK_V3;
    c->n_shared_experts = 1;
    c->topk_method = TOPK_NOAUX_TC;
    c->scoring_func = SCORING_SIGMOID;
    c->norm_topk_prob = true;
    c->routed_scaling_factor = 2.5;
}

static void v3_deep(Config *c)
{
    v3(c);
    c->num_hidden_layers = 6;
    c->first_k_dense_replace = 3;
}

static void v3_two_moe(Config *c)
{
    v3(c);
    c->num_hidden_layers = 2;
    c->first_k_dense_replace = 0;
}

static void v3_no_yarn(Config *c)
{
    v3(c);
    c->rope_scaling = (RopeScaling){.yarn = false};
    c->rope_theta = 640;
}

static void v3_yarn(Config *c)
{
    v3(c);
    c->qk_rope_head_dim = 16;
    c->rope_theta = 50;
    c->max_position_embeddings = 1024;
    c->rope_scaling = (RopeScaling){
        .yarn = true, .factor = 32, .original_max_position_embeddings = 32,
        .beta_fast = 3, .beta_slow = 0.05, .mscale = 0.9,
        .mscale_all_dim = 0.6};
}

static void v3_eps(Config *c)
{
    v3(c);
    c->rms_norm_eps = 1e-2;
}

static void v3_shapes(Config *c)
{
    v3(c);
    c->num_hidden_layers = 5;
    c->moe_layer_freq = 2;
    c->vocab_size = 67;
    c->tie_word_embeddings = true;
    c->v_head_dim = 20;
    c->n_group = 3;
    c->num_experts_per_tok = 3;
}

static void v3_mtp(Config *c)
{
    v3(c);
    c->num_hidden_layers = 2;
    c->num_nextn_predict_layers = 2;
}

/* 152 rows in two blocks, which 76 divides, wrongly; 576 in five, as V3's own,
 * which nothing divides; 149 columns a head, so that a head begins inside a
 * block. */
static void v3_fp8(Config *c)
{
    v3(c);
    c->num_hidden_layers = 2;
    c->hidden_size = 40;
    c->q_lora_rank = 152;
    c->kv_lora_rank = 560;
    c->qk_rope_head_dim = 16;
    c->v_head_dim = 149;
    c->intermediate_size = 300;
    c->n_routed_experts = 8;
    c->num_experts_per_tok = 2;
    c->fp8 = true;
}

static void v3_ue8m0(Config *c)
{
    v3_fp8(c);
    c->kv_lora_rank = 24;
    c->scale_fmt_ue8m0 = true;
}

/* Heads, latents and experts as V3 has them, for which kernels are written;
 * all other sizes the least that is a multiple of 256. */
static void v3_kernels(Config *c)
{
    v3(c);
    c->num_hidden_layers = 2;
    c->vocab_size = c->hidden_size = c->q_lora_rank = 256;
    c->intermediate_size = c->moe_intermediate_size = 256;
    c->num_attention_heads = 16;
    c->kv_lora_rank = 512;
    c->qk_rope_head_dim = 64;
    c->qk_nope_head_dim = c->v_head_dim = 128;
    c->n_routed_experts = 256;
    c->num_experts_per_tok = c->n_group = 8;
    c->topk_group = 4;
}

/* Weights ---------------------------------------------------------------- */

static bool ends(const char *name, const char *with)
{
    size_t n = strlen(name), m = strlen(with);
    return n >= m && strcmp(name + n - m, with) == 0;
}

/* A matrix's deviation times the root of its inputs, which a norm has brought
 * to 1 or so. Scores of attention get a deviation of 2: it looks at few
 * tokens, so that its output is no small mean, and not at one alone. */
static float gain_of(const char *name)
{
    static const struct {
        const char *end;
        float gain;
    } gains[] = {
        {"gate.weight", 1.5f}, {"q_proj.weight", 2}, {"q_b_proj.weight", 2},
        {"kv_a_proj_with_mqa.weight", 1}, {"kv_b_proj.weight", 1.3f},
        {"o_proj.weight", 2.5f}, {"down_proj.weight", 2},
    };
    for (size_t i = 0; i < LENGTH(gains); i++)
        if (ends(name, gains[i].end))
            return gains[i].gain;
    return 1.2f;
}

static float uniform(Random *r, float low, float high)
{
    return low + (high - low) * random_uniform(r);
}

/* Deviation of a matrix. */
static float spread(const TensorInfo *info, const GoldenPack *p)
{
    float gain = gain_of(info->name) / sqrtf((float)info->cols);
    bool down = ends(info->name, "down_proj.weight");
    if (down || ends(info->name, "o_proj.weight"))
        gain *= p->branch;
    return down && info->routed ? gain * p->routed : gain;
}

static void draw_one(float *w, const TensorInfo *info, size_t n, Random *r,
                     const GoldenPack *p)
{
    if (info->kind == TENSOR_NORM)
        for (size_t i = 0; i < n; i++)
            w[i] = uniform(r, 0.5f, 1.5f);
    else if (info->kind == TENSOR_BIAS)
        for (size_t i = 0; i < n; i++)
            w[i] = f32_from_bf16(bf16_from_f32(uniform(r, -0.3f, 0.3f)));
    else if (info->kind == TENSOR_EMBED)
        random_normal(r, w, n, 1);
    else
        random_normal(r, w, n, spread(info, p));
}

static void draw(float *w, const TensorInfo *info, size_t row, size_t rows,
                 Random *random, const void *design)
{
    const GoldenPack *p = design;
    (void)row;
    draw_one(w, info, rows * info->cols, random, p);
    if (p->design)
        p->design(w, info, rows, random);
}

/* Every bias from -1.9 to -1, so that most biased scores are negative: experts
 * of dropped groups would win if they counted as 0. */
static void negative_bias(float *w, const TensorInfo *info, size_t rows,
                          Random *random)
{
    (void)rows;
    (void)random;
    for (size_t i = 0; info->kind == TENSOR_BIAS && i < info->cols; i++)
        w[i] = f32_from_bf16(bf16_from_f32(1.5f * w[i] - 1.45f));
}

static void copy_row(float *w, size_t cols, size_t to, size_t from)
{
    memcpy(w + to * cols, w + from * cols, cols * sizeof *w);
}

/* Experts 3 and 4, and groups 2 and 3, are the same to the router. */
static void tie(float *w, size_t cols)
{
    copy_row(w, cols, 4, 3);
    for (size_t i = 0; i < 3; i++)
        copy_row(w, cols, 9 + i, 6 + i);
}

/* Biases apart by less than BF16 sees at 4; expert 5 of layer 1 has 12, where
 * (s + 12) - 12 is 0 for small s. */
static void great_biases(float *w, const TensorInfo *info)
{
    for (size_t i = 0; i < info->cols; i++)
        w[i] = 4 + w[i] / 6;
    w[2] = w[1] + 1e-4f;
    if (info->layer == 1)
        w[5] = 12;
}

/* Number 0 of a hidden state passes through all layers as it is. Where the
 * token has some, the gates' column of -10 brings all scores from 1e-3 down to
 * below 1e-20: there the biases choose, and 1e-20 counts. */
static void low_scores(float *w, const TensorInfo *info, size_t rows,
                       Random *random)
{
    static const float low[] = {1, 2, 4, 8, 12, 24};
    size_t d = info->cols;
    (void)random;
    if (info->kind == TENSOR_EMBED)
        for (size_t i = 0; i < rows; i++)
            w[i * d] = i % 8 == 7 ? low[i / 8 % LENGTH(low)] : 0;
    else if (ends(info->name, "o_proj.weight")
             || ends(info->name, "down_proj.weight"))
        memset(w, 0, d * sizeof *w);
    else if (ends(info->name, "post_attention_layernorm.weight"))
        w[0] = 1;
    else if (info->kind == TENSOR_BIAS)
        great_biases(w, info);
    else if (info->kind == TENSOR_GATE)
        for (size_t i = 0; i < rows; i++)
            w[i * d] = -10;
}

static void ties(float *w, const TensorInfo *info, size_t rows,
                 Random *random)
{
    low_scores(w, info, rows, random);
    if (info->kind == TENSOR_GATE || info->kind == TENSOR_BIAS)
        tie(w, info->kind == TENSOR_GATE ? info->cols : 1);
}

/* A mean square of 0.01, as great as eps. */
static void small(float *w, const TensorInfo *info, size_t rows,
                  Random *random)
{
    (void)random;
    for (size_t i = 0; i < rows * info->cols; i++)
        if (info->kind == TENSOR_EMBED)
            w[i] *= 0.1f;
}

/* A factor on each 128×128 block, rows being at most 128, so that no scale
 * would do for another; a block of zeros. */
static void blocks(float *w, const TensorInfo *info, size_t rows,
                   Random *random)
{
    const size_t side = F8_BLOCK;
    size_t cols = info->cols;
    for (size_t b = 0; b < cols && info->kind == TENSOR_LINEAR; b += side) {
        float factor = uniform(random, 0.5f, 2);
        if (b >= 2 * side && ends(info->name, "mlp.down_proj.weight"))
            factor = 0;
        for (size_t i = 0; i < rows; i++)
            for (size_t k = b; k < cols && k < b + side; k++)
                w[i * cols + k] *= factor;
    }
}

/* Sigmoids of 256 experts crowd below 1, where biases of 0.3 would always name
 * the same ones. */
static void many(float *w, const TensorInfo *info, size_t rows,
                 Random *random)
{
    (void)random;
    for (size_t i = 0; i < rows * info->cols; i++)
        if (info->kind == TENSOR_BIAS)
            w[i] *= 0.25f;
        else if (info->kind == TENSOR_GATE)
            w[i] *= 0.625f;
}

/* The packs -------------------------------------------------------------- */

/* A sigmoid's slope is 1/4 at most: scores that are 1/64 apart stay so if the
 * logits are off by 1/32. A softmax over 12 has smaller scores. */
#define WIDE 0x1p-6
#define SOFT 0x1p-10

/* A first step of AdamW is lr sign(g) where eps is small, whatever the clipped
 * g is: this eps is as great as many of them. Warm-up halves the rate. */
#define STEP "{\"data\": \"ids.txt\", \"sequence_length\": 24, " \
    "\"total_tokens\": 48, \"batch_size\": 2, \"micro_batch\": 2, " \
    "\"learning_rate\": 0.1, \"warmup_steps\": 2, " \
    "\"adamw\": {\"eps\": 1e-3}"

/* Seeds are the first of those tried, in steps of 100, with which the tokens
 * reach every expert and each stage has its share (test_golden.c). */
static const GoldenPack packs[] = {
    {.name = "K1", .version = 1, .config = v2_lite, .seed = 701,
     .branch = 0.2f, .routed = 2.5f, .margin = SOFT,
     .why = "V2-Lite: no query compression, softmax, greedy, two shared "
     "experts, mscale 0.707, 27 layers"},
    {.name = "K2", .version = 1, .config = v2, .seed = 2, .branch = 1,
     .routed = 0.25f, .margin = SOFT,
     .why = "V2: groups by their greatest score, factor 16, no "
     "normalisation"},
    {.name = "K3", .version = 1, .config = v3_deep, .seed = 3, .branch = 1,
     .routed = 1, .margin = WIDE,
     .why = "V3: sigmoid, biases of both signs, groups by their top two, "
     "factor 2.5, 3 dense layers and 3 with experts"},
    {.name = "K4", .version = 1, .config = v3, .seed = 304, .branch = 1,
     .routed = 1, .margin = WIDE, .design = negative_bias,
     .why = "V3 with biases below -0.6: dropped groups count as -inf, not as "
     "0"},
    {.name = "K5", .version = 2, .config = v3_two_moe, .seed = 105, .branch = 1,
     .routed = 1, .margin = 0x1p-16, .design = low_scores, .forced = 8,
     .why = "V3 with biases of 4 and 12 and scores down to 1e-20: F32 biases, "
     "cancellation, 1e-20"},
    {.name = "K5-ties", .version = 1, .config = v3_two_moe, .seed = 105,
     .branch = 1, .routed = 1, .margin = 0x1p-16, .design = ties,
     .ties = true, .forced = 8,
     .why = "K5 with experts and groups that are equal to the router: the "
     "lowest index wins"},
    {.name = "K6", .version = 1, .config = v3_no_yarn, .seed = 6, .branch = 1,
     .routed = 1, .margin = WIDE, .why = "V3 without YaRN, another theta"},
    {.name = "K7", .version = 1, .config = v3_yarn, .seed = 107, .branch = 1,
     .routed = 1, .margin = WIDE,
     .why = "V3 with every YaRN field apart from the others, positions past "
     "the original length"},
    {.name = "K8", .version = 1, .config = v3_eps, .seed = 108, .branch = 1,
     .routed = 1, .margin = WIDE, .design = small,
     .readings = {"latent-eps=rms_norm_eps"},
     .why = "V3 with rms_norm_eps 1e-2 and a small embedding; both readings "
     "of the latent norms' eps"},
    {.name = "K9", .version = 1, .config = v3_shapes, .seed = 2209,
     .branch = 1, .routed = 1, .margin = WIDE,
     .why = "V3 with moe_layer_freq 2, a tied head, d_v other than d_nope, 67 "
     "tokens, 3 experts of 2 groups"},
    {.name = "K10", .version = 2, .config = v3_mtp, .seed = 810, .branch = 1,
     .routed = 1, .margin = WIDE,
     .readings = {"mtp-order=hidden-first", "mtp-state=before-norm",
                  "mtp-carry=before-norm", "mtp-embedding-0=zeroed"},
     .why = "V3 with two MTP modules, in all readings"},
    {.name = "K11", .version = 1, .config = v3_fp8, .seed = 11, .branch = 1,
     .routed = 0.6f, .margin = WIDE, .design = blocks,
     .why = "V3 in FP8 with ragged blocks, one of zeros, F32 scales"},
    {.name = "K11-ue8m0", .version = 1, .config = v3_ue8m0, .seed = 412,
     .branch = 1, .routed = 0.6f, .margin = WIDE, .design = blocks,
     .why = "V3 in FP8 with ragged blocks, scales that are powers of two"},
    {.name = "K12", .version = 1, .config = v3_kernels, .seed = 212,
     .branch = 0.5f, .routed = 1, .margin = WIDE, .design = many,
     .why = "V3 in sizes that kernels take: kv_lora_rank 512, rope 64, 16 "
     "heads, 256 experts, all others multiples of 256"},
    {.name = "K13-v2", .version = 1, .config = v2, .seed = 13,
     .branch = 1, .routed = 0.25f, .margin = SOFT,
     .step = STEP ", \"balance\": {\"alpha1\": 0.3, \"alpha2\": 0.5, "
     "\"alpha3\": 0.2, \"devices\": 4, \"device_limit\": 2}}",
     .readings = {"adamw.decay_all=true"},
     .why = "a step of training V2: losses of experts, devices and "
     "communication"},
    {.name = "K13-v3", .version = 1, .config = v3_mtp, .seed = 113,
     .branch = 0.5f, .routed = 1, .margin = WIDE,
     .step = STEP ", \"mtp_lambda\": 0.3, \"balance\": {\"alpha\": 0.5, "
     "\"gamma\": 0.0078125}}",
     .readings = {"balance.count_picks=true", "balance.batch_wise=true"},
     .why = "a step of training V3: the loss of two MTP modules, the "
     "sequence-wise loss, biases with one that stays"},
};

const GoldenPack *golden_pack(size_t i)
{
    return i < LENGTH(packs) ? &packs[i] : NULL;
}

const GoldenPack *golden_find(const char *name, Error *err)
{
    const GoldenPack *p;
    Text known = {0};
    for (size_t i = 0; (p = golden_pack(i)) != NULL; i++) {
        text_printf(&known, "%s%s", i ? ", " : "", p->name);
        if (strcmp(p->name, name) == 0)
            break;
    }
    if (!p)
        fail(err, "golden: wanted one of %s, found '%.40s'",
             known.text ? known.text : "the packs", name);
    text_free(&known);
    return p;
}

/* Margins ---------------------------------------------------------------- */

/* How far the K-th greatest of n numbers is from the next; infinite where there
 * is no next, or it is -inf. Sorts x. */
static double gap(float *x, size_t n, size_t K)
{
    for (size_t i = 0; i < n && i <= K; i++) {
        size_t best = i + argmax(x + i, n - i);
        float greatest = x[best];
        x[best] = x[i];
        x[i] = greatest;
    }
    return K < n ? (double)x[K - 1] - (double)x[K] : INFINITY;
}

/* What is chosen by a traced tensor of this name: how many of a row; 0: by
 * others nothing is. */
static size_t chosen(const Config *c, const char *name)
{
    return ends(name, ".mlp.gate.choice") ? c->num_experts_per_tok
           : ends(name, ".mlp.gate.group_scores") ? c->topk_group
           : strncmp(name, "draft.", 6) == 0 && ends(name, ".logits");
}

void golden_margins(GoldenMargins *m, const Config *c, const char *name,
                    const void *values, size_t rows, size_t cols)
{
    float x[GOLDEN_WIDEST];
    size_t K = chosen(c, name);
    *m = (GoldenMargins){.least = INFINITY};
    for (size_t t = 0; t < rows && K && cols <= LENGTH(x); t++) {
        memcpy(x, (const char *)values + t * cols * sizeof *x,
               cols * sizeof *x);
        double g = gap(x, cols, K);
        m->ties += g == 0;
        if (g > 0 && g < m->least) {
            m->least = g;
            m->row = t;
        }
    }
}

/* Tokens ----------------------------------------------------------------- */

/* A model that a pack is computed with. */
typedef struct {
    const GoldenPack *pack;
    Session session;
    Mtp mtp;             /* where the model has modules */
    int32_t ids[GOLDEN_SEQUENCES * GOLDEN_SEQUENCE];
    int32_t *sequence;   /* the one at hand, of these ids */
    size_t drafted;      /* tokens that drafts are put behind */
    bool narrow;         /* a choice of the pass at hand is */
} Maker;

static size_t sequences_of(const GoldenPack *p)
{
    return p->step ? GOLDEN_SEQUENCES : 1;
}

static size_t length_of(const GoldenPack *p)
{
    return p->step ? GOLDEN_SEQUENCE : GOLDEN_TOKENS;
}

static int watch(void *context, const char *name, DType type,
                 const void *values, int rank, const size_t *shape, Error *err)
{
    Maker *k = context;
    GoldenMargins m;
    (void)type;
    (void)err;
    if (k->pack->step && ends(name, ".mlp.gate.scores"))
        name = ".mlp.gate.choice";   /* V3 (18) counts these */
    golden_margins(&m, &k->session.model->config, name, values, shape[0],
                   shape[rank - 1]);
    if (m.least < k->pack->margin || (m.ties && !k->pack->ties))
        k->narrow = true;
    return 0;
}

static int maker_open(Maker *k, const Model *m, size_t modules,
                      size_t drafts, Trace *trace, Error *err)
{
    SessionOptions o = {.ctx = GOLDEN_TOKENS + drafts,
                        .logit_rows = SIZE_MAX, .modules = modules,
                        .trace = trace};
    if (session_open(&k->session, m, &o, err))
        return -1;
    if (!o.modules || !mtp_open(&k->mtp, &k->session, drafts, true, err))
        return 0;
    session_close(&k->session);
    return -1;
}

static void maker_close(Maker *k)
{
    if (k->mtp.session)
        mtp_close(&k->mtp);
    k->mtp = (Mtp){.session = NULL};
    session_close(&k->session);
}

/* Runs ids up to the n-th, from the first that is not in the cache, or that a
 * module has not seen. */
static int run(Maker *k, size_t n, Error *err)
{
    Session *s = &k->session;
    size_t from = s->pos;
    if (!k->mtp.session)
        return session_forward(s, k->sequence + from, n - from, NULL, err);
    from = mtp_rewind(&k->mtp, from);
    return mtp_prompt(&k->mtp, k->sequence + from, n - from, NULL, err);
}

static bool is_forced(const GoldenPack *p, size_t t)
{
    return t % 5 == 1 && t / 5 < p->forced;
}

/* The t-th token: the first drawn whose choices of experts are none of them
 * narrow. */
static int pick_id(Maker *k, size_t t, Random *random, Error *err)
{
    enum { TRIES = 1000 };
    uint64_t V = k->session.model->config.vocab_size;
    for (size_t i = 0; i < TRIES; i++) {
        k->sequence[t] = is_forced(k->pack, t)
                             ? (int32_t)(7 + t / 5 * 8)
                             : (int32_t)(random_u64(random) % V);
        k->narrow = false;
        if (run(k, t + 1, err))
            return -1;
        if (!k->narrow)
            return 0;
        session_rewind(&k->session, t);
    }
    return fail(err, "%s: no token at %zu has a margin of %g", k->pack->name,
                t, k->pack->margin);
}

static int pick_sequence(Maker *k, const Model *m, Trace *trace,
                         Random *random, Error *err)
{
    int failed = maker_open(k, m, m->n_mtp, 0, trace, err);
    if (failed)
        return -1;
    for (size_t t = 0; t < length_of(k->pack) && !failed; t++)
        failed = pick_id(k, t, random, err);
    maker_close(k);
    return failed;
}

static int pick_ids(Maker *k, const Model *m, Error *err)
{
    Random random = random_seeded(k->pack->seed);
    Trace *trace = trace_to(watch, k, "*.mlp.gate.*", err);
    int failed = trace ? 0 : -1;
    for (size_t i = 0; i < sequences_of(k->pack) && !failed; i++) {
        k->sequence = k->ids + i * GOLDEN_SEQUENCE;
        failed = pick_sequence(k, m, trace, &random, err);
    }
    k->sequence = k->ids;
    if (trace)
        trace_abort(trace);
    return failed;
}

/* Drafts ----------------------------------------------------------------- */

/* Behind the first k->drafted tokens: the main model's best, then drafts by so
 * many modules, each a module's best, and the logits of these. */
typedef struct {
    int32_t ids[1 + GOLDEN_DRAFTS];
    float *logits;       /* (GOLDEN_DRAFTS, V) */
} Drafts;

static int draft(Maker *k, const Model *m, size_t modules, size_t n,
                 Trace *trace, Drafts *to, Error *err)
{
    size_t V = m->config.vocab_size;
    GenerateOptions o = {.sampler = {0, 0, 1}, .vocabulary = V};
    if (maker_open(k, m, modules, GOLDEN_DRAFTS, trace, err))
        return -1;
    int failed = run(k, k->drafted, err)
                 || mtp_draft(&k->mtp, to->ids[0], n, &o, err);
    if (!failed) {
        memcpy(to->logits + (n - 1) * V, session_logits(&k->session, 0),
               V * sizeof(float));
        to->ids[n] = k->mtp.ids[k->drafted + n];
    }
    maker_close(k);
    return failed ? -1 : 0;
}

static int next_token(Maker *k, const Model *m, int32_t *next, Error *err)
{
    if (maker_open(k, m, 0, 0, NULL, err))
        return -1;
    int failed = run(k, k->drafted, err);
    if (!failed)
        *next = (int32_t)argmax(session_logits(&k->session, 0),
                                m->config.vocab_size);
    maker_close(k);
    return failed;
}

/* One draft more each time: only the last one's logits are still there. */
static int draft_all(Maker *k, const Model *m, size_t modules, Trace *trace,
                     Drafts *to, Error *err)
{
    int failed = next_token(k, m, &to->ids[0], err);
    for (size_t n = 1; n <= GOLDEN_DRAFTS && !failed; n++)
        failed = draft(k, m, modules, n, trace, to, err);
    return failed;
}

static void put_draft(Trace *trace, size_t modules, const Drafts *from,
                      size_t V)
{
    const size_t ids[1] = {1 + GOLDEN_DRAFTS};
    const size_t logits[2] = {GOLDEN_DRAFTS, V};
    char name[40];
    snprintf(name, sizeof name, "draft.%zu.ids", modules);
    trace_put(trace, name, DT_I32, from->ids, 1, ids);
    snprintf(name, sizeof name, "draft.%zu.logits", modules);
    trace_put(trace, name, DT_F32, from->logits, 2, logits);
}

/* By module 1 alone, which is fed with its own state, as engines do that know
 * one; by modules 1 and 2, then 2 again; and so on. */
static int put_drafts(Maker *k, const Model *m, Trace *trace, Error *err)
{
    size_t V = m->config.vocab_size;
    const size_t one[1] = {1};
    const int32_t n = (int32_t)k->drafted;
    Drafts drafts = {.logits = allocate(GOLDEN_DRAFTS * V, sizeof(float),
                                        "drafts", err)};
    int failed = drafts.logits ? 0 : -1;
    if (m->n_mtp && !failed)
        trace_put(trace, "draft.tokens", DT_I32, &n, 1, one);
    for (size_t D = 1; D <= m->n_mtp && !failed; D++) {
        failed = draft_all(k, m, D, NULL, &drafts, err);
        if (!failed)
            put_draft(trace, D, &drafts, V);
    }
    free(drafts.logits);
    return failed;
}

/* That no draft and no choice of experts behind it is narrow. */
static int try_drafts(Maker *k, const Model *m, Trace *trace, Error *err)
{
    size_t V = m->config.vocab_size;
    Drafts drafts = {.logits = allocate(GOLDEN_DRAFTS * V, sizeof(float),
                                        "drafts", err)};
    int failed = drafts.logits ? 0 : -1;
    for (size_t D = 1; D <= m->n_mtp && !failed; D++) {
        GoldenMargins of;
        failed = draft_all(k, m, D, trace, &drafts, err);
        golden_margins(&of, &m->config, "draft.logits", drafts.logits,
                       GOLDEN_DRAFTS, V);
        if (of.least < k->pack->margin)
            k->narrow = true;
    }
    free(drafts.logits);
    return failed;
}

/* The longest prompt with wide drafts. */
static int pick_drafts(Maker *k, const Model *m, Error *err)
{
    Trace *trace = trace_to(watch, k, "*.mlp.gate.*", err);
    int failed = 0;
    if (!trace)
        return -1;
    k->drafted = GOLDEN_TOKENS + 1;
    do {
        k->narrow = false;
        failed = --k->drafted == 0
                     ? fail(err, "%s: no drafts are wide", k->pack->name)
                     : try_drafts(k, m, trace, err);
    } while (k->narrow && !failed);
    trace_abort(trace);
    return failed;
}

/* Files ------------------------------------------------------------------ */

/* Traces the pass over all tokens; a reading: its logits alone. */
static int write_trace(Maker *k, const Model *m, const char *reading,
                       const char *path, Error *err)
{
    const size_t shape[1] = {GOLDEN_TOKENS};
    Model read = *m;
    Trace *trace;
    int failed = reading && config_reading(&read.config, reading, err);
    if (failed
        || !(trace = trace_open(path, false, reading ? "*logits" : NULL, err)))
        return -1;
    trace_put(trace, "ids", DT_I32, k->ids, 1, shape);
    failed = maker_open(k, &read, read.n_mtp, 0, trace, err);
    if (!failed) {
        failed = run(k, GOLDEN_TOKENS, err);
        maker_close(k);
    }
    if (!failed && !put_drafts(k, &read, trace, err))
        return trace_close(trace, err);
    trace_abort(trace);
    return -1;
}

static const char *const model_files[] = {
    "model.safetensors", "config.json", "generation_config.json"};

static const char *const step_files[] = {"golden/train.json",
                                         "golden/ids.txt"};

/* NULL: golden.safetensors is in the default reading. */
static const char *reading_name(char name[100], const char *reading)
{
    if (!reading)
        return "golden/golden.safetensors";
    snprintf(name, 100, "golden/%s.safetensors", reading);
    return name;
}

/* Paths of a pack's files below its directory, but the manifest's. */
static const char *file_name(char name[100], const GoldenPack *p, size_t i)
{
    size_t readings = 0;
    while (p->readings[readings])
        readings++;
    if (i < LENGTH(model_files))
        return model_files[i];
    i -= LENGTH(model_files);
    if (i <= readings)
        return reading_name(name, i ? p->readings[i - 1] : NULL);
    i -= readings + 1;
    return p->step && i < LENGTH(step_files) ? step_files[i] : NULL;
}

static int add_file(Text *t, const char *path, const char *name, bool first,
                    Error *err)
{
    File file;
    char hex[65];
    Sha256 s = sha256_begin();
    if (file_open(&file, path, err))
        return -1;
    sha256_add(&s, file.data, file.size);
    sha256_end(&s, hex);
    text_printf(t, "%s    \"%s\": {\"bytes\": %zu, \"sha256\": \"%s\"}",
                first ? "\n" : ",\n", name, file.size, hex);
    file_close(&file);
    return 0;
}

static int add_files(Text *t, const GoldenPack *p, const char *dir,
                     Error *err)
{
    char buffer[100];
    const char *name;
    text_printf(t, "  \"files\": {");
    for (size_t i = 0; (name = file_name(buffer, p, i)); i++) {
        char *path = path_join(dir, name, err);
        int failed = path ? add_file(t, path, name, i == 0, err) : -1;
        free(path);
        if (failed)
            return -1;
    }
    text_printf(t, "\n  },\n");
    return 0;
}

static void add_tensor(Text *t, const StTensor *x, bool step)
{
    const char *axes[3] = {"tokens", "vocab_size"};
    int rank = session_axes(x->name, false, axes);
    if (strncmp(x->name, "draft.", 6) == 0) {
        axes[0] = "drafts";
        rank = x->rank;
    }
    text_printf(t, "    \"%s\": {\"dtype\": \"%s\", \"shape\": [",
                x->name, dtype_name(x->dtype));
    for (int i = 0; i < x->rank; i++)
        text_printf(t, "%s%zu", i ? ", " : "", x->shape[i]);
    text_printf(t, "], \"axes\": [");
    for (int i = 0; i < (step ? x->rank : rank ? rank : 1); i++)
        text_printf(t, "%s\"%s\"", i ? ", " : "",
                    step ? golden_step_axis(x->name, x->rank, i) : axes[i]);
    text_printf(t, "]}");
}

static void add_margin(Text *t, const Config *c, const StTensor *x,
                       bool *first)
{
    GoldenMargins m;
    if (!chosen(c, x->name))
        return;
    golden_margins(&m, c, x->name, x->data, x->shape[0], x->shape[1]);
    if (!isfinite(m.least))
        return;
    text_printf(t, "%s    \"%s\": {\"least\": ",
                *first ? "\n" : ",\n", x->name);
    *first = false;
    text_number(t, m.least);
    text_printf(t, ", \"token\": %zu, \"ties\": %zu}", m.row, m.ties);
}

/* In the order of computation. */
static void add_tensors(Text *t, const Config *c, bool step,
                        const StTensor **x, size_t n)
{
    bool first = true;
    text_printf(t, "  \"margins\": {");
    for (size_t i = 0; i < n; i++)
        add_margin(t, c, x[i], &first);
    text_printf(t, "\n  },\n  \"tensors\": {\n");
    for (size_t i = 0; i < n; i++) {
        add_tensor(t, x[i], step);
        text_printf(t, i + 1 < n ? ",\n" : "\n");
    }
    text_printf(t, "  }\n}\n");
}

static int add_trace(Text *t, const Config *c, bool step, const char *path,
                     Error *err)
{
    Safetensors st;
    if (st_open(&st, path, err))
        return -1;
    const StTensor **order = allocate(st.n_tensors, sizeof *order, "tensors",
                                      err);
    if (order) {
        st_order(&st, order);
        add_tensors(t, c, step, order, st.n_tensors);
    }
    free((void *)order);
    st_close(&st);
    return order ? 0 : -1;
}

static void add_head(Text *t, const Maker *k)
{
    const GoldenPack *p = k->pack;
    text_printf(t, "{\n  \"pack\": \"%s\",\n  \"version\": %u,\n"
                "  \"why\": \"%s\",\n  \"seed\": %llu,\n"
                "  \"margin\": ", p->name, p->version, p->why,
                (unsigned long long)p->seed);
    text_number(t, p->margin);
    text_printf(t, ",\n  \"ids\": [");
    for (size_t i = 0; i < sequences_of(p); i++) {
        text_printf(t, p->step ? i ? "], [" : "[" : "");
        for (size_t n = 0; n < length_of(p); n++)
            text_printf(t, "%s%d", n ? ", " : "",
                        (int)k->ids[i * GOLDEN_SEQUENCE + n]);
    }
    text_printf(t, p->step ? "]],\n" : "],\n");
}

static int write_manifest(const Maker *k, const Config *c, const char *dir,
                          Error *err)
{
    Text t = {0};
    char *golden = path_join(dir, "golden/golden.safetensors", err);
    char *path = path_join(dir, "golden/manifest.json", err);
    int failed = -1;
    add_head(&t, k);
    if (golden && path && !add_files(&t, k->pack, dir, err)
        && !add_trace(&t, c, k->pack->step != NULL, golden, err))
        failed = t.failed ? fail(err, "not enough memory for a manifest")
                          : file_write(path, false, t.text, t.length, err);
    text_free(&t);
    free(golden);
    free(path);
    return failed;
}

static int write_traces(Maker *k, const Model *m, const char *dir, Error *err)
{
    const GoldenPack *p = k->pack;
    const char *reading = NULL;
    size_t i = 0;
    do {
        char name[100], *path = path_join(dir, reading_name(name, reading),
                                          err);
        int failed = !path ? -1
                     : p->step ? golden_step(m, k->ids, dir, reading, path,
                                             err)
                               : write_trace(k, m, reading, path, err);
        free(path);
        if (failed)
            return -1;
    } while ((reading = p->readings[i++]) != NULL);
    return 0;
}

/* From the weights as they stand in the files. */
static int write_golden(const GoldenPack *p, const char *dir, Error *err)
{
    Maker k = {.pack = p};
    Model m;
    int failed;
    if (model_open(&m, dir, err))
        return -1;
    failed = pick_ids(&k, &m, err)
             || (m.n_mtp && !p->step && pick_drafts(&k, &m, err))
             || (p->step && golden_step_files(p, k.ids, dir, err))
             || write_traces(&k, &m, dir, err)
             || write_manifest(&k, &m.config, dir, err);
    model_close(&m);
    return failed ? -1 : 0;
}

/* What a signal is to remove, until temp_forget(dir). */
static int guard_pack(const GoldenPack *p, const char *dir,
                      const char *golden, Error *err)
{
    char buffer[100];
    const char *name;
    if (temp_add(dir, err) || temp_add(golden, err))
        return -1;
    for (size_t i = 0; (name = file_name(buffer, p, i)); i++) {
        char *path = path_join(dir, name, err);
        int failed = path ? temp_add(path, err) : -1;
        free(path);
        if (failed)
            return -1;
    }
    return 0;
}

static int write_pack(const GoldenPack *p, const char *dir,
                      const char *golden, Error *err)
{
    Config c;
    p->config(&c);
    return make_dir(dir, err)
           || model_draw(&c, NULL, dir, true, c.fp8 ? DT_F8_E4M3 : DT_BF16,
                         p->seed, draw, p, err)
           || make_dir(golden, err) || write_golden(p, dir, err);
}

/* Removes a directory of a pack and all files in it. */
static int remove_pack(const char *dir, Error *err)
{
    char *golden = path_join(dir, "golden", err);
    int failed = !golden || (path_exists(golden) && dir_remove(golden, err))
                 || (path_exists(dir) && dir_remove(dir, err));
    free(golden);
    return failed ? -1 : 0;
}

/* What is in the way must be a pack, and meant to go. */
static int check_target(const char *dir, bool force, Error *err)
{
    char *manifest;
    bool pack;
    if (!path_exists(dir))
        return 0;
    if (!force)
        return fail(err, "%s exists; --force overwrites it", dir);
    if (!(manifest = path_join(dir, "golden/manifest.json", err)))
        return -1;
    pack = path_exists(manifest);
    free(manifest);
    return pack ? 0 : fail(err, "%s: wanted a golden pack to overwrite, found"
                           " no golden/manifest.json in it", dir);
}

/* A new pack takes its place; one that was there goes when that is done, or is
 * put back. */
static int take_place(const char *temp, const char *dir, const char *old,
                      Error *err)
{
    Error other;
    int failed = (path_exists(dir) && dir_commit(dir, old, err))
                 || dir_commit(temp, dir, err);
    if (!path_exists(dir) && path_exists(old))
        dir_commit(old, dir, &other);
    else if (path_exists(old) && remove_pack(old, failed ? &other : err))
        failed = -1;
    return failed ? -1 : 0;
}

static int make_beside(const GoldenPack *p, const char *temp, const char *dir,
                       const char *old, Error *err)
{
    Error other;
    char *golden = path_join(temp, "golden", err);
    int failed = !golden || guard_pack(p, temp, golden, err)
                 || write_pack(p, temp, golden, err)
                 || take_place(temp, dir, old, err);
    if (failed)
        remove_pack(temp, &other);
    temp_forget(temp);
    free(golden);
    return failed ? -1 : 0;
}

/* dir, without slashes at its end, and more behind it. */
static char *path_with(const char *dir, const char *more, Error *err)
{
    size_t n = strlen(dir), size = n + strlen(more) + 1;
    char *path = allocate(size, 1, "a path", err);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (path)
        snprintf(path, size, "%.*s%s", (int)n, dir, more);
    return path;
}

static int check_free(const char *path, Error *err)
{
    return path_exists(path) ? fail(err, "%s: exists; a run that was killed"
                                    " may have left it", path) : 0;
}

int golden_make(const GoldenPack *p, const char *dir, bool force, Error *err)
{
    char *place = path_with(dir, "", err), *temp = path_with(dir, ".tmp", err);
    char *old = path_with(dir, ".old", err);
    int failed = !place || !temp || !old || check_target(place, force, err)
                 || check_free(temp, err) || check_free(old, err)
                 || make_beside(p, temp, place, old, err);
    free(place);
    free(temp);
    free(old);
    return failed ? -1 : 0;
}
