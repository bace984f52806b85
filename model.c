/* model.c: the table of tensors, model directories
 *
 * A model is an ordinary Hugging Face directory. Two parts:
 *   tensors  one table of names, shapes and kinds; a walk over it drives
 *            binding, writing, counting
 *   model    the mapped files bound to the walk
 *
 * Invariants: a bound Matrix has the shape that the config says, and every
 * tensor of the main layers is bound. Weights stay where they are mapped.
 *
 * Not here: the config (config.c), writing a directory (checkpoint.c), what is
 * computed with the weights (deepseek.c, mla.c, moe.c). */
#include "deepseek.h"

#include "base/device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The table of tensors. A row's shape is in dimensions of the config; `when`
 * says which layers have it. */
typedef enum {
    ONE, VOCAB, HIDDEN, HIDDEN_2, Q_LORA, HEADS_QK, KV_A, KV_LORA, HEADS_KV,
    HEADS_V, INTER, MOE_INTER, SHARED_INTER, EXPERTS
} Dim;

typedef enum {
    ALWAYS, WITH_Q_LORA, WITHOUT_Q_LORA, DENSE, MOE, MOE_BIAS, EACH_EXPERT,
    SHARED, MTP, UNTIED
} When;

typedef struct {
    const char *name;
    TensorKind kind;
    Dim rows, cols;
    When when;
    size_t offset;      /* of the Matrix: in Model, LayerWeights, FfnWeights */
} TensorRow;

#define IN(field) offsetof(LayerWeights, field)
#define OF(field) offsetof(Model, field)
#define EX(field) offsetof(FfnWeights, field)

static const TensorRow first_rows[] = {
    {"model.embed_tokens.weight", TENSOR_EMBED, VOCAB, HIDDEN, ALWAYS,
     OF(embed_tokens)},
};

static const TensorRow last_rows[] = {
    {"model.norm.weight", TENSOR_NORM, ONE, HIDDEN, ALWAYS, OF(norm)},
    {"lm_head.weight", TENSOR_HEAD, VOCAB, HIDDEN, UNTIED, OF(lm_head)},
};

static const TensorRow layer_rows[] = {
    {"embed_tokens.weight", TENSOR_EMBED, VOCAB, HIDDEN, MTP,
     IN(embed_tokens)},
    {"enorm.weight", TENSOR_NORM, ONE, HIDDEN, MTP, IN(enorm)},
    {"hnorm.weight", TENSOR_NORM, ONE, HIDDEN, MTP, IN(hnorm)},
    {"eh_proj.weight", TENSOR_EH_PROJ, HIDDEN, HIDDEN_2, MTP, IN(eh_proj)},
    {"input_layernorm.weight", TENSOR_NORM, ONE, HIDDEN, ALWAYS,
     IN(input_layernorm)},
    {"self_attn.q_proj.weight", TENSOR_LINEAR, HEADS_QK, HIDDEN,
     WITHOUT_Q_LORA, IN(self_attn.q_proj)},
    {"self_attn.q_a_proj.weight", TENSOR_LINEAR, Q_LORA, HIDDEN, WITH_Q_LORA,
     IN(self_attn.q_a_proj)},
    {"self_attn.q_a_layernorm.weight", TENSOR_NORM, ONE, Q_LORA, WITH_Q_LORA,
     IN(self_attn.q_a_layernorm)},
    {"self_attn.q_b_proj.weight", TENSOR_LINEAR, HEADS_QK, Q_LORA,
     WITH_Q_LORA, IN(self_attn.q_b_proj)},
    {"self_attn.kv_a_proj_with_mqa.weight", TENSOR_LINEAR, KV_A, HIDDEN,
     ALWAYS, IN(self_attn.kv_a_proj_with_mqa)},
    {"self_attn.kv_a_layernorm.weight", TENSOR_NORM, ONE, KV_LORA, ALWAYS,
     IN(self_attn.kv_a_layernorm)},
    {"self_attn.kv_b_proj.weight", TENSOR_LINEAR, HEADS_KV, KV_LORA, ALWAYS,
     IN(self_attn.kv_b_proj)},
    {"self_attn.o_proj.weight", TENSOR_LINEAR, HIDDEN, HEADS_V, ALWAYS,
     IN(self_attn.o_proj)},
    {"post_attention_layernorm.weight", TENSOR_NORM, ONE, HIDDEN, ALWAYS,
     IN(post_attention_layernorm)},
    {"mlp.gate_proj.weight", TENSOR_LINEAR, INTER, HIDDEN, DENSE,
     IN(mlp.gate_proj)},
    {"mlp.up_proj.weight", TENSOR_LINEAR, INTER, HIDDEN, DENSE,
     IN(mlp.up_proj)},
    {"mlp.down_proj.weight", TENSOR_LINEAR, HIDDEN, INTER, DENSE,
     IN(mlp.down_proj)},
    {"mlp.gate.weight", TENSOR_GATE, EXPERTS, HIDDEN, MOE, IN(moe.gate)},
    {"mlp.gate.e_score_correction_bias", TENSOR_BIAS, ONE, EXPERTS, MOE_BIAS,
     IN(moe.e_score_correction_bias)},
    {"gate_proj.weight", TENSOR_LINEAR, MOE_INTER, HIDDEN, EACH_EXPERT,
     EX(gate_proj)},
    {"up_proj.weight", TENSOR_LINEAR, MOE_INTER, HIDDEN, EACH_EXPERT,
     EX(up_proj)},
    {"down_proj.weight", TENSOR_LINEAR, HIDDEN, MOE_INTER, EACH_EXPERT,
     EX(down_proj)},
    {"mlp.shared_experts.gate_proj.weight", TENSOR_LINEAR, SHARED_INTER,
     HIDDEN, SHARED, IN(moe.shared_experts.gate_proj)},
    {"mlp.shared_experts.up_proj.weight", TENSOR_LINEAR, SHARED_INTER, HIDDEN,
     SHARED, IN(moe.shared_experts.up_proj)},
    {"mlp.shared_experts.down_proj.weight", TENSOR_LINEAR, HIDDEN,
     SHARED_INTER, SHARED, IN(moe.shared_experts.down_proj)},
    {"shared_head.norm.weight", TENSOR_NORM, ONE, HIDDEN, MTP,
     IN(shared_head_norm)},
    {"shared_head.head.weight", TENSOR_HEAD, VOCAB, HIDDEN, MTP,
     IN(shared_head_head)},
};

enum {
    FIRST_ROWS = sizeof first_rows / sizeof *first_rows,
    LAST_ROWS = sizeof last_rows / sizeof *last_rows,
    LAYER_ROWS = sizeof layer_rows / sizeof *layer_rows
};

static size_t dim(const Config *c, Dim d)
{
    size_t n_h = c->num_attention_heads;
    switch (d) {
    case ONE: return 1;
    case VOCAB: return c->vocab_size;
    case HIDDEN: return c->hidden_size;
    case HIDDEN_2: return 2 * c->hidden_size;
    case Q_LORA: return c->q_lora_rank;
    case HEADS_QK: return n_h * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    case KV_A: return c->kv_lora_rank + c->qk_rope_head_dim;
    case KV_LORA: return c->kv_lora_rank;
    case HEADS_KV: return n_h * (c->qk_nope_head_dim + c->v_head_dim);
    case HEADS_V: return n_h * c->v_head_dim;
    case INTER: return c->intermediate_size;
    case MOE_INTER: return c->moe_intermediate_size;
    case SHARED_INTER: return c->n_shared_experts * c->moe_intermediate_size;
    case EXPERTS: break;
    }
    return c->n_routed_experts;
}

static bool row_is_in(const Config *c, When when, size_t layer)
{
    bool moe = config_is_moe(c, layer);
    switch (when) {
    case ALWAYS: return true;
    case WITH_Q_LORA: return c->q_lora_rank > 0;
    case WITHOUT_Q_LORA: return c->q_lora_rank == 0;
    case DENSE: return !moe;
    case MOE: case EACH_EXPERT: return moe;
    case MOE_BIAS: return moe && c->topk_method == TOPK_NOAUX_TC;
    case SHARED: return moe && c->n_shared_experts > 0;
    case MTP: return layer >= c->num_hidden_layers;
    case UNTIED: break;
    }
    return !c->tie_word_embeddings;
}

/* walk->section: 0 the embedding, 1 … L the layers, L+1 the final norm and
 * the head, then the MTP layers. */
TensorWalk tensor_walk(const Config *c, Model *model)
{
    return (TensorWalk){.config = c, .model = model};
}

static const TensorRow *section_rows(const Config *c, size_t section,
                                     size_t *n)
{
    size_t L = c->num_hidden_layers;
    *n = section == 0 ? FIRST_ROWS : section == L + 1 ? LAST_ROWS
         : section <= L + 1 + c->num_nextn_predict_layers ? LAYER_ROWS : 0;
    return section == 0 ? first_rows : section == L + 1 ? last_rows
                                                        : layer_rows;
}

static Matrix *slot_of(const TensorWalk *w, const TensorRow *row,
                       size_t layer)
{
    char *base = (char *)w->model;
    if (!base)
        return NULL;
    if (layer != SIZE_MAX)
        base = (char *)&w->model->layers[layer];
    if (row->when == EACH_EXPERT)
        base = (char *)&w->model->layers[layer].moe.experts[w->expert];
    return (Matrix *)(void *)(base + row->offset);
}

static void describe(TensorInfo *info, const TensorWalk *w,
                     const TensorRow *row, size_t layer)
{
    const Config *c = w->config;
    *info = (TensorInfo){.kind = row->kind, .layer = layer,
                         .rows = dim(c, row->rows), .cols = dim(c, row->cols),
                         .rank = row->rows == ONE ? 1 : 2,
                         .routed = row->when == EACH_EXPERT,
                         .shared = row->when == SHARED,
                         .slot = slot_of(w, row, layer)};
    info->mtp = layer != SIZE_MAX && layer >= c->num_hidden_layers;
    if (layer == SIZE_MAX)
        snprintf(info->name, sizeof info->name, "%s", row->name);
    else if (info->routed)
        snprintf(info->name, sizeof info->name,
                 "model.layers.%zu.mlp.experts.%zu.%s", layer, w->expert,
                 row->name);
    else
        snprintf(info->name, sizeof info->name, "model.layers.%zu.%s", layer,
                 row->name);
}

/* The three rows of an expert repeat for every expert. */
static void step(TensorWalk *w, const TensorRow *row)
{
    bool last = row->when == EACH_EXPERT && row[1].when != EACH_EXPERT;
    w->row++;
    if (!last)
        return;
    w->expert++;
    if (w->expert < w->config->n_routed_experts)
        w->row -= 3;
    else
        w->expert = 0;
}

bool tensor_next(TensorWalk *w, TensorInfo *info)
{
    const Config *c = w->config;
    for (;;) {
        size_t n, L = c->num_hidden_layers;
        const TensorRow *rows = section_rows(c, w->section, &n);
        size_t layer = w->section == 0 || w->section == L + 1 ? SIZE_MAX
                       : w->section <= L ? w->section - 1 : w->section - 2;
        if (!n)
            return false;
        while (w->row < n) {
            const TensorRow *row = &rows[w->row];
            bool in = row_is_in(c, row->when, layer);
            if (!in) {
                w->row++;
                continue;
            }
            describe(info, w, row, layer);
            step(w, row);
            return true;
        }
        w->section++;
        w->row = 0;
    }
}

/* V3 §3.3.1: what stays out of FP8 is the embedding, the head, the gate, the
 * norms; eh_proj too in the released files. */
DType tensor_dtype(const TensorInfo *info, DType checkpoint)
{
    if (info->kind == TENSOR_BIAS)
        return DT_F32;
    if (checkpoint == DT_F8_E4M3 && info->kind != TENSOR_LINEAR)
        return DT_BF16;
    return checkpoint;
}

/* What a model_open carries. */
typedef struct {
    Model *model;
    const char *dir;
    bool *used;          /* (n_tensors) bound to a row of the table */
    Error *err;
} Binding;

/* Any shard could have held it. */
static int missing(const Binding *b, const char *name, const char *why)
{
    const Safetensors *files = &b->model->files;
    return fail(b->err, "%s: %s is missing%s",
                files->n_files == 1 ? files->paths[0] : b->dir, name, why);
}

static int wrong(const Binding *b, const StTensor *t, const char *wanted,
                 const char *found)
{
    return fail(b->err, "%s: %s: wanted %s, found %s",
                b->model->files.paths[t->file], t->name, wanted, found);
}

/* A shape of one or two sides against the file's. */
static int check_shape(const Binding *b, const StTensor *t, int rank,
                       size_t rows, size_t cols)
{
    char wanted[64], found[200] = "shape [";
    if (t->rank == rank && t->shape[rank - 1] == cols
        && (rank == 1 || t->shape[0] == rows))
        return 0;
    if (rank == 1)
        snprintf(wanted, sizeof wanted, "shape [%zu]", cols);
    else
        snprintf(wanted, sizeof wanted, "shape [%zu, %zu]", rows, cols);
    for (int i = 0; i < t->rank; i++) {
        size_t at = strlen(found);
        snprintf(found + at, sizeof found - at, "%s%zu", i ? ", " : "",
                 t->shape[i]);
    }
    snprintf(found + strlen(found), sizeof found - strlen(found), "]");
    return wrong(b, t, wanted, found);
}

static int bind_scale(const Binding *b, const TensorInfo *info)
{
    const Safetensors *files = &b->model->files;
    char name[160];
    snprintf(name, sizeof name, "%s_scale_inv", info->name);
    const StTensor *t = st_find(files, name);
    if (!t)
        return missing(b, name, ", which the FP8 tensor needs");
    b->used[t - files->tensors] = true;
    if (t->dtype != DT_F32)
        return wrong(b, t, "dtype F32", dtype_name(t->dtype));
    if (check_shape(b, t, 2, fp8_blocks(info->rows), fp8_blocks(info->cols)))
        return -1;
    info->slot->scale = device_weight(t->data, t->bytes, b->err);
    if (!info->slot->scale)
        return -1;
    return fp8_check_scales(t->data, t->shape[0], t->shape[1], name,
                            files->paths[t->file], b->err);
}

static int find_in_tensor(const TensorInfo *info, Error *err);

/* Now, because no result would show it: a bias only chooses. */
static int check_bias(const Binding *b, const TensorInfo *info,
                      const StTensor *t)
{
    if (!find_in_tensor(info, b->err))
        return 0;
    return fail(b->err, "%s: %s", b->model->files.paths[t->file],
                b->err->text);
}

static int bind_tensor(const Binding *b, const TensorInfo *info,
                       const StTensor *t)
{
    bool linear = info->kind == TENSOR_LINEAR;
    bool f8 = t->dtype == DT_F8_E4M3;
    b->used[t - b->model->files.tensors] = true;
    if (t->dtype > DT_F8_E4M3 || (f8 && !linear))
        return wrong(b, t, linear ? "dtype F32, F16, BF16 or F8_E4M3"
                                  : "dtype F32, F16 or BF16",
                     dtype_name(t->dtype));
    if (check_shape(b, t, info->rank, info->rows, info->cols))
        return -1;
    *info->slot = (Matrix){.dtype = t->dtype, .rows = info->rows,
                           .cols = info->cols, .stride = info->cols};
    info->slot->data = device_weight(t->data, t->bytes, b->err);
    if (!info->slot->data)
        return -1;
    if (info->kind == TENSOR_BIAS)
        return check_bias(b, info, t);
    return f8 ? bind_scale(b, info) : 0;
}

/* True where the files hold any tensor of the layer. */
static bool layer_present(const Model *m, size_t layer)
{
    char prefix[40];
    snprintf(prefix, sizeof prefix, "model.layers.%zu.", layer);
    for (size_t i = 0; i < m->files.n_tensors; i++)
        if (strncmp(m->files.tensors[i].name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

/* Announced MTP layers may be absent (transformers drops them), whole; in one
 * that is there, the copies of the embedding and of the head may be. */
static bool may_be_absent(const Model *m, const TensorInfo *info)
{
    if (!info->mtp)
        return false;
    return info->layer >= m->config.num_hidden_layers + m->n_mtp
           || info->kind == TENSOR_EMBED || info->kind == TENSOR_HEAD;
}

static int bind_all(const Binding *b)
{
    Model *m = b->model;
    size_t L = m->config.num_hidden_layers;
    TensorWalk walk = tensor_walk(&m->config, m);
    TensorInfo info;
    while (m->n_mtp < m->config.num_nextn_predict_layers
           && layer_present(m, L + m->n_mtp))
        m->n_mtp++;
    while (tensor_next(&walk, &info)) {
        const StTensor *t = st_find(&m->files, info.name);
        if (t ? bind_tensor(b, &info, t) : !may_be_absent(m, &info))
            return t ? -1 : missing(b, info.name, "");
    }
    if (m->config.tie_word_embeddings)
        m->lm_head = m->embed_tokens;
    return 0;
}

/* A tensor of the main layers that the table does not have would change the
 * result in the model it was made for: a bias, a scale, an expert too many. */
static int check_unused(const Binding *b)
{
    const Model *m = b->model;
    for (size_t i = 0; i < m->files.n_tensors; i++) {
        const StTensor *t = &m->files.tensors[i];
        const char *prefix = "model.layers.";
        size_t n = strlen(prefix);
        if (b->used[i] || strncmp(t->name, prefix, n) != 0
            || strtoul(t->name + n, NULL, 10) >= m->config.num_hidden_layers
            || strstr(t->name, "rotary_emb.inv_freq"))
            continue;
        return fail(b->err, "%s: %s: no tensor that this config has",
                    m->files.paths[t->file], t->name);
    }
    return 0;
}

static int allocate_layers(Model *m, Error *err)
{
    const Config *c = &m->config;
    size_t n = c->num_hidden_layers + c->num_nextn_predict_layers, moe = 0;
    for (size_t l = 0; l < n; l++)
        moe += config_is_moe(c, l);
    m->layers = allocate(n, sizeof *m->layers, "layers", err);
    m->experts = allocate(moe * c->n_routed_experts, sizeof *m->experts,
                          "experts", err);
    if (!m->layers || !m->experts)
        return -1;
    moe = 0;
    for (size_t l = 0; l < n; l++) {
        m->layers[l].is_moe = config_is_moe(c, l);
        if (m->layers[l].is_moe)
            m->layers[l].moe.experts = m->experts
                                       + moe++ * c->n_routed_experts;
    }
    return 0;
}

int model_open(Model *m, const char *dir, Error *err)
{
    Binding b = {m, dir, NULL, err};
    int failed = -1;
    memset(m, 0, sizeof *m);
    if (config_read(&m->config, dir, err))
        return -1;
    if (st_open(&m->files, dir, err)) {
        memset(&m->files, 0, sizeof m->files);
        return -1;
    }
    b.used = allocate(m->files.n_tensors, sizeof *b.used, "tensors", err);
    if (b.used && !allocate_layers(m, err) && !bind_all(&b)
        && !check_unused(&b))
        failed = 0;
    free(b.used);
    if (failed)
        model_close(m);
    return failed;
}

void model_close(Model *m)
{
    free(m->layers);
    free(m->experts);
    free(m->copied);
    st_close(&m->files);
    memset(m, 0, sizeof *m);
}

static bool is_copied(const TensorInfo *info, DType dtype)
{
    return info->slot->data && info->kind != TENSOR_EMBED
           && info->kind != TENSOR_HEAD
           && (dtype == DT_F32 || info->kind == TENSOR_LINEAR);
}

/* Floats that a tensor takes: codes, four in one, and scales behind them. */
static size_t floats_of(const TensorInfo *info, DType dtype)
{
    size_t n = info->rows * info->cols;
    return dtype == DT_F32 ? n : n / sizeof(float) + 1
                                 + fp8_blocks(info->rows)
                                       * fp8_blocks(info->cols);
}

/* x: the tensor's numbers; at: where its copy goes. */
static void copy_fp8(Matrix *w, float *at, const float *x, Fp8Scope scope,
                     bool ue8m0)
{
    size_t rows = w->rows, cols = w->cols;
    float *scales = at + rows * cols / sizeof *at + 1;
    fp8_quantize((uint8_t *)at, scales, x, cols, rows, cols, scope, ue8m0);
    for (size_t i = 1;
         scope == FP8_TENSOR && i < fp8_blocks(rows) * fp8_blocks(cols); i++)
        scales[i] = scales[0];
    *w = (Matrix){.data = at, .dtype = DT_F8_E4M3, .rows = rows,
                  .cols = cols, .stride = cols, .scale = scales};
}

/* Puts each copied tensor behind the last; x: room for the largest. */
static void copy_tensors(Model *m, DType dtype, Fp8Scope scope, float *x)
{
    TensorWalk walk = tensor_walk(&m->config, m);
    TensorInfo info;
    float *at = m->copied;
    while (tensor_next(&walk, &info)) {
        if (!is_copied(&info, dtype))
            continue;
        for (size_t r = 0; r < info.rows; r++)
            matrix_row((dtype == DT_F32 ? at : x) + r * info.cols, info.slot,
                       r);
        if (dtype == DT_F32)
            *info.slot = matrix_f32(at, info.rows, info.cols, info.cols);
        else
            copy_fp8(info.slot, at, x, scope, m->config.scale_fmt_ue8m0);
        at += floats_of(&info, dtype);
    }
}

/* Binds the copy to the weights of m; what its own will take. */
static void share_tensors(Model *copy, const Model *m, DType dtype,
                          size_t *floats, size_t *largest)
{
    Model from = *m;
    TensorWalk a = tensor_walk(&from.config, &from);
    TensorWalk b = tensor_walk(&copy->config, copy);
    TensorInfo x, y;
    *floats = *largest = 0;
    while (tensor_next(&a, &x) && tensor_next(&b, &y)) {
        *y.slot = *x.slot;
        if (!is_copied(&y, dtype))
            continue;
        *floats += floats_of(&y, dtype);
        if (y.rows * y.cols > *largest)
            *largest = y.rows * y.cols;
    }
    copy->lm_head = m->lm_head;
}

int model_copy(Model *copy, const Model *m, DType dtype, Fp8Scope scope,
               Error *err)
{
    size_t floats, largest;
    float *x = NULL;
    *copy = (Model){.config = m->config, .n_mtp = m->n_mtp};
    if (!allocate_layers(copy, err)) {
        share_tensors(copy, m, dtype, &floats, &largest);
        copy->copied = allocate(floats, sizeof *x, "a copy of the weights",
                                err);
        x = allocate(largest, sizeof *x, "the largest weight", err);
    }
    if (x && copy->copied)
        copy_tensors(copy, dtype, scope, x);
    else
        model_close(copy);
    free(x);
    return copy->copied ? 0 : -1;
}

/* MTP modules share what is the main model's. */
static bool is_shared(const TensorInfo *info)
{
    return info->mtp && (info->kind == TENSOR_EMBED
                         || info->kind == TENSOR_HEAD);
}

/* Numbers of all tensors; binds each slot to its place from `at` on, unless
 * that is NULL. */
static size_t bind_floats(Model *m, float *at)
{
    TensorWalk walk = tensor_walk(&m->config, at ? m : NULL);
    TensorInfo info;
    size_t n = 0;
    while (tensor_next(&walk, &info)) {
        if (is_shared(&info))
            continue;
        if (at)
            *info.slot = matrix_f32(at + n, info.rows, info.cols, info.cols);
        n += (info.rows * info.cols + 15) / 16 * 16;
    }
    if (at && m->config.tie_word_embeddings)
        m->lm_head = m->embed_tokens;
    return n;
}

size_t model_numbers(const Config *c)
{
    Model m = {.config = *c};
    return bind_floats(&m, NULL);
}

int model_zeros(Model *m, const Config *c, size_t *n, Error *err)
{
    *m = (Model){.config = *c, .n_mtp = c->num_nextn_predict_layers};
    if (!allocate_layers(m, err)) {
        *n = bind_floats(m, NULL);
        m->copied = device_alloc(*n, sizeof(float), "weights", err);
    }
    if (!m->copied) {
        model_close(m);
        return -1;
    }
    bind_floats(m, m->copied);
    return 0;
}

int model_floats(Model *copy, const Model *m, size_t *n, Error *err)
{
    Model from = *m;
    TensorInfo x, y;
    if (m->n_mtp < m->config.num_nextn_predict_layers)
        return fail(err, "wanted the tensors of %zu MTP modules, as"
                    " num_nextn_predict_layers says, found %zu",
                    m->config.num_nextn_predict_layers, m->n_mtp);
    if (model_zeros(copy, &m->config, n, err))
        return -1;
    TensorWalk a = tensor_walk(&from.config, &from);
    TensorWalk b = tensor_walk(&copy->config, copy);
    while (tensor_next(&a, &x) && tensor_next(&b, &y))
        for (size_t r = 0; !is_shared(&y) && r < y.rows; r++)
            matrix_row(matrix_numbers(y.slot) + r * y.cols, x.slot, r);
    return 0;
}

static const char *file_of(const Model *m, const char *name)
{
    const StTensor *t = st_find(&m->files, name);
    return t ? m->files.paths[t->file] : "a copy in memory";
}

static int find_in_tensor(const TensorInfo *info, Error *err)
{
    const Matrix *w = info->slot;
    if (w->dtype == DT_F8_E4M3 && fp8_check(w, info->name, err))
        return -1;
    float *row = allocate(w->cols, sizeof *row, "a row", err);
    int failed = row ? 0 : -1;
    for (size_t r = 0; r < w->rows && !failed; r++) {
        matrix_row(row, w, r);
        for (size_t k = 0; k < w->cols && !failed; k++)
            if (!isfinite(row[k]))
                failed = fail(err, "%s: element (%zu, %zu) is %g, wanted a"
                              " finite number", info->name, r, k,
                              (double)row[k]);
    }
    free(row);
    return failed;
}

int model_find_not_finite(const Model *m, Error *err)
{
    Model copy = *m;
    TensorWalk walk = tensor_walk(&copy.config, &copy);
    TensorInfo info;
    while (tensor_next(&walk, &info))
        if (info.slot->data && find_in_tensor(&info, err))
            return fail(err, "%s: %s", file_of(m, info.name), err->text);
    return 0;
}
