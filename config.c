/* config.c: config.json ---------------------------------- V2 §3.1.2, V3 §4.2
 *
 * Reads the hyper-parameters of a model, in the spelling of transformers 4 and
 * of transformers 5, and writes them in both. One table lists the whole
 * numbers with their ranges and what the released classes take for an absent
 * key; reading and writing walk it.
 *
 * Invariants: after config_read every size is in range and fits the others,
 * so nothing behind it checks again. A value that would change the result and
 * is not known here is refused by name. */
#include "deepseek.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a config reader carries: the document, its object, the file's name. */
typedef struct {
    Json json;
    const JsonNode *root;
    const char *path;
    Error *err;
} Source;

/* A whole number of the config. null: the value that null means, or -1 where
 * null is refused. absent, by model type: -1 where the key must be there. */
typedef struct {
    const char *key;
    size_t offset;
    int64_t low, high;
    int64_t null, absent_v2, absent_v3;
} SizeKey;

#define AT(field) offsetof(Config, field)
#define LENGTH(array) (sizeof(array) / sizeof *(array))
enum {
    WIDE = 1 << 24,
    HEADS = 1 << 16,
    MANY = 1 << 16,
    ALL_EXPERTS = 1 << 20   /* of all layers; V3 has 15,616 */
};

static const SizeKey size_keys[] = {
    {"vocab_size", AT(vocab_size), 1, WIDE, -1, -1, -1},
    {"hidden_size", AT(hidden_size), 1, WIDE, -1, -1, -1},
    {"num_hidden_layers", AT(num_hidden_layers), 1, 4096, -1, -1, -1},
    {"intermediate_size", AT(intermediate_size), 1, WIDE, -1, -1, -1},
    {"moe_intermediate_size", AT(moe_intermediate_size), 1, WIDE, -1, 1407,
     2048},
    {"first_k_dense_replace", AT(first_k_dense_replace), 0, 4096, -1, 0, 3},
    {"moe_layer_freq", AT(moe_layer_freq), 1, 4096, -1, 1, 1},
    {"num_attention_heads", AT(num_attention_heads), 1, HEADS, -1, -1, -1},
    {"q_lora_rank", AT(q_lora_rank), 1, WIDE, 0, 1536, 1536},
    {"kv_lora_rank", AT(kv_lora_rank), 1, WIDE, -1, -1, -1},
    {"qk_nope_head_dim", AT(qk_nope_head_dim), 1, HEADS, -1, -1, -1},
    {"qk_rope_head_dim", AT(qk_rope_head_dim), 2, HEADS, -1, -1, -1},
    {"v_head_dim", AT(v_head_dim), 1, HEADS, -1, -1, -1},
    {"n_routed_experts", AT(n_routed_experts), 1, MANY, 0, 64, 256},
    {"n_shared_experts", AT(n_shared_experts), 0, 4096, 0, 2, 1},
    {"num_experts_per_tok", AT(num_experts_per_tok), 1, MANY, 0, 0, 8},
    {"n_group", AT(n_group), 1, MANY, 1, 1, 8},
    {"topk_group", AT(topk_group), 1, MANY, 1, 1, 4},
    {"max_position_embeddings", AT(max_position_embeddings), 1, 1 << 30, -1,
     2048, 4096},
    {"num_nextn_predict_layers", AT(num_nextn_predict_layers), 0, 64, 0, 0,
     0},
};

/* A key whose other values would change the result and are not computed. */
typedef struct {
    const char *key;
    JsonType type;
    const char *only;    /* a string's text; for the rest to show only */
} FixedKey;

static const FixedKey fixed_keys[] = {
    {"hidden_act", JSON_STRING, "silu"},
    {"attention_bias", JSON_FALSE, "false"},
    {"mlp_bias", JSON_FALSE, "false"},
    {"rope_interleave", JSON_TRUE, "true"},
};
static const FixedKey fixed_rope_keys[] = {
    {"attention_factor", JSON_NULL, "null"},
    {"truncate", JSON_TRUE, "true"},
};

static const char *const topk_methods[] = {"greedy", "group_limited_greedy",
                                           "noaux_tc"};
static const char *const scoring_funcs[] = {"softmax", "sigmoid"};

/* With the value's own text, at most 60 bytes of it, whole characters. */
static int refuse_as(const Source *s, const char *key, const JsonNode *found,
                     const char *wanted, const char *quote)
{
    const char *text = s->json.text + found->start;
    int n = found->length > 60 ? 60 : (int)found->length;
    while (n < (int)found->length && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    return fail(s->err, "%s: %s: wanted %s, found %s%.*s%s", s->path, key,
                wanted, quote, n, text, quote);
}

static int refuse(const Source *s, const char *key, const JsonNode *found,
                  const char *wanted)
{
    return refuse_as(s, key, found, wanted,
                     json_type(found) == JSON_STRING ? "\"" : "");
}

static bool is_null(const JsonNode *node)
{
    return !node || json_type(node) == JSON_NULL;
}

static int read_size(const Source *s, const SizeKey *k, Config *c)
{
    const JsonNode *node = json_get(&s->json, s->root, k->key);
    int64_t value;
    if (!node)
        value = c->model_type == DEEPSEEK_V2 ? k->absent_v2 : k->absent_v3;
    else if (json_type(node) == JSON_NULL)
        value = k->null;
    else if (!json_integer(&s->json, node, k->low, k->high, &value)) {
        char wanted[80];
        snprintf(wanted, sizeof wanted, "a whole number from %" PRId64
                 " to %" PRId64, k->low, k->high);
        return refuse(s, k->key, node, wanted);
    }
    if (value < 0)
        return fail(s->err, "%s: %s is missing", s->path, k->key);
    size_t *field = (size_t *)(void *)((char *)c + k->offset);
    *field = (size_t)value;
    return 0;
}

/* A number of an object; *value stays where the key is absent or null. */
static int read_number(const Source *s, const JsonNode *object,
                       const char *key, double low, double high,
                       double *value)
{
    const JsonNode *node = json_get(&s->json, object, key);
    char wanted[80];
    double x;
    if (is_null(node))
        return 0;
    if (json_number(&s->json, node, &x) && x >= low && x <= high) {
        *value = x;
        return 0;
    }
    snprintf(wanted, sizeof wanted, "a number from %g to %g", low, high);
    return refuse(s, key, node, wanted);
}

static int read_bool(const Source *s, const char *key, bool *value)
{
    const JsonNode *node = json_get(&s->json, s->root, key);
    if (is_null(node))
        return 0;
    if (json_type(node) != JSON_TRUE && json_type(node) != JSON_FALSE)
        return refuse(s, key, node, "true or false");
    *value = json_type(node) == JSON_TRUE;
    return 0;
}

/* One of n names; *value stays where the key is absent or null. */
static int read_choice(const Source *s, const JsonNode *object,
                       const char *key, const char *const *names, int n,
                       int *value)
{
    const JsonNode *node = json_get(&s->json, object, key);
    char wanted[120] = "";
    if (is_null(node))
        return 0;
    for (int i = 0; i < n; i++) {
        if (json_equals(&s->json, node, names[i])) {
            *value = i;
            return 0;
        }
        size_t at = strlen(wanted);
        snprintf(wanted + at, sizeof wanted - at, "%s%s", i ? " or " : "",
                 names[i]);
    }
    return refuse_as(s, key, node, wanted, "");
}

static int read_model_type(const Source *s, Config *c)
{
    static const char *const types[] = {"deepseek_v2", "deepseek_v3"};
    static const char *const classes[] = {"DeepseekV2ForCausalLM",
                                          "DeepseekV3ForCausalLM"};
    const JsonNode *node = json_get(&s->json, s->root, "architectures");
    int type = -1;
    if (read_choice(s, s->root, "model_type", types, 2, &type))
        return -1;
    if (type < 0 && node && (node = json_first(&s->json, node)) != NULL)
        for (int i = 0; i < 2; i++)
            if (json_equals(&s->json, node, classes[i]))
                type = i;
    if (type < 0)
        return fail(s->err, "%s: model_type is missing; wanted deepseek_v2"
                    " or deepseek_v3", s->path);
    c->model_type = type ? DEEPSEEK_V3 : DEEPSEEK_V2;
    return 0;
}

static int read_fixed(const Source *s, const JsonNode *object,
                      const FixedKey *keys, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const JsonNode *node = json_get(&s->json, object, keys[i].key);
        if (!is_null(node)
            && (json_type(node) != keys[i].type
                || (keys[i].type == JSON_STRING
                    && !json_equals(&s->json, node, keys[i].only))))
            return refuse_as(s, keys[i].key, node, keys[i].only,
                             json_type(node) == JSON_STRING
                                     && keys[i].type != JSON_STRING
                                 ? "\"" : "");
    }
    return 0;
}

/* What a released class computes where a key is absent. */
static void set_defaults(Config *c)
{
    bool v3 = c->model_type == DEEPSEEK_V3;
    c->topk_method = v3 ? TOPK_NOAUX_TC : TOPK_GREEDY;
    c->scoring_func = v3 ? SCORING_SIGMOID : SCORING_SOFTMAX;
    c->norm_topk_prob = v3;
    c->routed_scaling_factor = v3 ? 2.5 : 1.0;
    c->rms_norm_eps = 1e-6;
    c->rope_theta = 10000;
    c->initializer_range = 0.02;
    c->bos_token_id = -1;
    c->torch_dtype = DT_BF16;
}

/* rope_scaling has type, rope_parameters rope_type, some files both. */
static int read_rope_type(const Source *s, const char *name,
                          const JsonNode *o, int *type)
{
    static const char *const types[] = {"default", "yarn"};
    int v4 = -1, v5 = -1;
    if (json_type(o) != JSON_OBJECT)
        return refuse(s, name, o, "an object");
    if (read_choice(s, o, "type", types, 2, &v4)
        || read_choice(s, o, "rope_type", types, 2, &v5))
        return -1;
    if (v4 < 0 && v5 < 0)
        return refuse(s, name, o, "an object with a type");
    if (v4 >= 0 && v5 >= 0 && v4 != v5)
        return fail(s->err, "%s: %s: type and rope_type disagree", s->path,
                    name);
    *type = v4 < 0 ? v5 : v4;
    return 0;
}

static int read_yarn(const Source *s, const char *name, const JsonNode *o,
                     RopeScaling *r)
{
    const char *key = "original_max_position_embeddings";
    double length = 0;
    *r = (RopeScaling){.yarn = true, .beta_fast = 32, .beta_slow = 1,
                       .mscale = 1};
    if (read_number(s, o, "factor", 1, 1e6, &r->factor)
        || read_number(s, o, key, 1, 1 << 30, &length)
        || read_number(s, o, "beta_fast", 1e-6, 1e6, &r->beta_fast)
        || read_number(s, o, "beta_slow", 1e-6, 1e6, &r->beta_slow)
        || read_number(s, o, "mscale", 0, 1e3, &r->mscale)
        || read_number(s, o, "mscale_all_dim", 0, 1e3, &r->mscale_all_dim))
        return -1;
    if (length != floor(length))
        return refuse(s, key, json_get(&s->json, o, key), "a whole number");
    if (r->factor == 0 || length == 0)
        return fail(s->err, "%s: %s: %s is missing", s->path, name,
                    length == 0 ? key : "factor");
    r->original_max_position_embeddings = (size_t)length;
    return 0;
}

/* An object of RoPE settings in either spelling; rope_parameters has
 * rope_theta besides. */
static int read_rope(const Source *s, const char *name, const JsonNode *o,
                     Config *c)
{
    double part = 1;
    int type = 0;
    if (read_rope_type(s, name, o, &type)
        || read_fixed(s, o, fixed_rope_keys, LENGTH(fixed_rope_keys))
        || read_number(s, o, "partial_rotary_factor", 1, 1, &part)
        || read_number(s, o, "rope_theta", 1.001, 1e12, &c->rope_theta))
        return -1;
    c->rope_scaling = (RopeScaling){.yarn = false};
    return type ? read_yarn(s, name, o, &c->rope_scaling) : 0;
}

static bool same_rope(const Config *a, const Config *b)
{
    const RopeScaling *x = &a->rope_scaling, *y = &b->rope_scaling;
    return a->rope_theta == b->rope_theta && x->yarn == y->yarn
           && x->factor == y->factor && x->beta_fast == y->beta_fast
           && x->beta_slow == y->beta_slow && x->mscale == y->mscale
           && x->mscale_all_dim == y->mscale_all_dim
           && x->original_max_position_embeddings
                  == y->original_max_position_embeddings;
}

/* Both spellings may stand side by side, then they must agree. */
static int read_rope_keys(const Source *s, Config *c)
{
    const JsonNode *theta = json_get(&s->json, s->root, "rope_theta");
    const JsonNode *v4 = json_get(&s->json, s->root, "rope_scaling");
    const JsonNode *v5 = json_get(&s->json, s->root, "rope_parameters");
    if (read_number(s, s->root, "rope_theta", 1.001, 1e12, &c->rope_theta))
        return -1;
    if (!is_null(v4) && read_rope(s, "rope_scaling", v4, c))
        return -1;
    if (is_null(v5))
        return 0;
    Config other = *c;
    if (read_rope(s, "rope_parameters", v5, c))
        return -1;
    if (!is_null(theta) && c->rope_theta != other.rope_theta)
        return fail(s->err, "%s: rope_theta and rope_parameters disagree",
                    s->path);
    if (!is_null(v4) && !same_rope(c, &other))
        return fail(s->err, "%s: rope_scaling and rope_parameters disagree",
                    s->path);
    return 0;
}

static int read_fp8(const Source *s, Config *c)
{
    static const char *const methods[] = {"fp8"}, *const fmts[] = {"e4m3"};
    static const char *const scales[] = {"float", "ue8m0"};
    const JsonNode *q = json_get(&s->json, s->root, "quantization_config");
    const JsonNode *block;
    int64_t size;
    int choice = -1, fmt = 0, scale_fmt = 0;
    if (is_null(q))
        return 0;
    if (read_choice(s, q, "quant_method", methods, 1, &choice)
        || read_choice(s, q, "fmt", fmts, 1, &fmt)
        || read_choice(s, q, "scale_fmt", scales, 2, &scale_fmt))
        return -1;
    block = json_get(&s->json, q, "weight_block_size");
    if (choice < 0 || is_null(block))
        return fail(s->err, "%s: quantization_config: %s is missing", s->path,
                    choice < 0 ? "quant_method" : "weight_block_size");
    const JsonNode *side = json_first(&s->json, block);
    for (int i = 0; i < 2; i++) {
        if (json_type(block) != JSON_ARRAY || block->size != 2
            || !json_integer(&s->json, side, F8_BLOCK, F8_BLOCK, &size))
            return refuse(s, "weight_block_size", block, "[128, 128]");
        side = json_next(&s->json, block, side);
    }
    c->fp8 = true;
    c->scale_fmt_ue8m0 = scale_fmt == 1;
    return 0;
}

static int read_token_ids(const Source *s, Config *c)
{
    const JsonNode *bos = json_get(&s->json, s->root, "bos_token_id");
    const JsonNode *eos = json_get(&s->json, s->root, "eos_token_id");
    const JsonNode *id = eos;
    int64_t high = (int64_t)c->vocab_size - 1;
    bool list = !is_null(eos) && json_type(eos) == JSON_ARRAY;
    if (!is_null(bos)
        && !json_integer(&s->json, bos, 0, high, &c->bos_token_id))
        return refuse(s, "bos_token_id", bos, "an id of the vocabulary");
    if (is_null(eos))
        return 0;
    if (list)
        id = json_first(&s->json, eos);
    while (id && c->n_eos < MAX_EOS) {
        if (!json_integer(&s->json, id, 0, high, &c->eos_token_id[c->n_eos]))
            return refuse(s, "eos_token_id", id, "an id of the vocabulary");
        c->n_eos++;
        id = list ? json_next(&s->json, eos, id) : NULL;
    }
    return id ? refuse(s, "eos_token_id", eos, "at most 8 ids") : 0;
}

static int read_dtype(const Source *s, Config *c)
{
    static const char *const names[] = {"float32", "float16", "bfloat16",
                                        "float8_e4m3fn"};
    int type = (int)c->torch_dtype;
    if (read_choice(s, s->root, "torch_dtype", names, 4, &type)
        || read_choice(s, s->root, "dtype", names, 4, &type))
        return -1;
    c->torch_dtype = (DType)type;
    return 0;
}

static int read_keys(const Source *s, Config *c)
{
    int method, scoring;
    if (json_type(s->root) != JSON_OBJECT)
        return fail(s->err, "%s: wanted an object, found %s", s->path,
                    json_type_name(s->root));
    if (read_model_type(s, c)
        || read_fixed(s, s->root, fixed_keys, LENGTH(fixed_keys)))
        return -1;
    set_defaults(c);
    method = (int)c->topk_method;
    scoring = (int)c->scoring_func;
    for (size_t i = 0; i < LENGTH(size_keys); i++)
        if (read_size(s, &size_keys[i], c))
            return -1;
    if (read_choice(s, s->root, "topk_method", topk_methods, 3, &method)
        || read_choice(s, s->root, "scoring_func", scoring_funcs, 2, &scoring)
        || read_bool(s, "norm_topk_prob", &c->norm_topk_prob)
        || read_bool(s, "tie_word_embeddings", &c->tie_word_embeddings)
        || read_number(s, s->root, "routed_scaling_factor", 0, 1e6,
                       &c->routed_scaling_factor)
        || read_number(s, s->root, "rms_norm_eps", 0, 1, &c->rms_norm_eps)
        || read_number(s, s->root, "initializer_range", 0, 1e3,
                       &c->initializer_range)
        || read_rope_keys(s, c) || read_fp8(s, c) || read_dtype(s, c)
        || read_token_ids(s, c))
        return -1;
    c->topk_method = (TopkMethod)method;
    c->scoring_func = (ScoringFunc)scoring;
    return config_check(c, s->path, s->err);
}

static int check_experts(const Config *c, const char *where, Error *err)
{
    size_t N = c->n_routed_experts, K = c->num_experts_per_tok;
    size_t group = N / c->n_group;
    size_t layers = c->num_hidden_layers + c->num_nextn_predict_layers;
    bool grouped = c->topk_method != TOPK_GREEDY;
    if (N > ALL_EXPERTS / layers)
        return fail(err, "%s: n_routed_experts: wanted at most %zu in %zu"
                    " layers, found %zu", where, ALL_EXPERTS / layers, layers,
                    N);
    if (K < 1 || K > N)
        return fail(err, "%s: num_experts_per_tok: wanted 1 to"
                    " n_routed_experts (%zu), found %zu", where, N, K);
    if (!grouped)
        return 0;
    if (N % c->n_group != 0)
        return fail(err, "%s: n_routed_experts: wanted a multiple of n_group"
                    " (%zu), found %zu", where, c->n_group, N);
    if (c->topk_group > c->n_group)
        return fail(err, "%s: topk_group: wanted at most n_group (%zu), found"
                    " %zu", where, c->n_group, c->topk_group);
    if (K > c->topk_group * group)
        return fail(err, "%s: num_experts_per_tok: wanted at most the %zu"
                    " experts of topk_group groups, found %zu", where,
                    c->topk_group * group, K);
    if (c->topk_method == TOPK_NOAUX_TC && group < 2)
        return fail(err, "%s: n_group: wanted groups of 2 experts or more,"
                    " found %zu groups of %zu", where, c->n_group, N);
    return 0;
}

/* Sizes that are products of keys stay as small as the keys may be. */
static int check_products(const Config *c, const char *where, Error *err)
{
    size_t d_k = c->qk_nope_head_dim + c->qk_rope_head_dim;
    size_t d_kv = c->qk_nope_head_dim + c->v_head_dim;
    size_t width = d_k > d_kv ? d_k : d_kv;
    if (width > WIDE / c->num_attention_heads)
        return fail(err, "%s: num_attention_heads: wanted heads of at most %d"
                    " rows in all, found %zu of %zu", where, (int)WIDE,
                    c->num_attention_heads, width);
    if (c->n_shared_experts
        && c->moe_intermediate_size > WIDE / c->n_shared_experts)
        return fail(err, "%s: n_shared_experts: wanted at most %d rows in"
                    " all, found %zu times moe_intermediate_size %zu", where,
                    (int)WIDE, c->n_shared_experts, c->moe_intermediate_size);
    return 0;
}

int config_check(const Config *c, const char *where, Error *err)
{
    if (check_products(c, where, err))
        return -1;
    if (c->qk_rope_head_dim % 2 != 0)
        return fail(err, "%s: qk_rope_head_dim: wanted an even number, found"
                    " %zu", where, c->qk_rope_head_dim);
    for (size_t l = 0; l < c->num_hidden_layers; l++)
        if (config_is_moe(c, l))
            return check_experts(c, where, err);
    return c->num_nextn_predict_layers && c->n_routed_experts
               ? check_experts(c, where, err) : 0;
}

bool config_is_moe(const Config *c, size_t layer)
{
    if (!c->n_routed_experts)
        return false;
    return layer >= c->num_hidden_layers
           || (layer >= c->first_k_dense_replace
               && layer % c->moe_layer_freq == 0);
}

int config_reading(Config *c, const char *text, Error *err)
{
    static const struct {
        const char *text;
        size_t field;
        bool value;
    } readings[] = {
        {"latent-eps=1e-6", AT(latent_eps_from_config), false},
        {"latent-eps=rms_norm_eps", AT(latent_eps_from_config), true},
        {"v2-norm-topk=divide", AT(v2_norm_scales), false},
        {"v2-norm-topk=divide-and-scale", AT(v2_norm_scales), true},
        {"mtp-order=embedding-first", AT(mtp_hidden_first), false},
        {"mtp-order=hidden-first", AT(mtp_hidden_first), true},
        {"mtp-state=after-norm", AT(mtp_before_norm), false},
        {"mtp-state=before-norm", AT(mtp_before_norm), true},
        {"mtp-carry=after-norm", AT(mtp_carry_raw), false},
        {"mtp-carry=before-norm", AT(mtp_carry_raw), true},
        {"mtp-embedding-0=kept", AT(mtp_zero_first), false},
        {"mtp-embedding-0=zeroed", AT(mtp_zero_first), true},
    };
    for (size_t i = 0; i < LENGTH(readings); i++)
        if (strcmp(text, readings[i].text) == 0) {
            *(bool *)((char *)c + readings[i].field) = readings[i].value;
            return 0;
        }
    return fail(err, "--reading: wanted latent-eps=1e-6|rms_norm_eps,"
                " v2-norm-topk=divide|divide-and-scale,"
                " mtp-order=embedding-first|hidden-first,"
                " mtp-state=after-norm|before-norm,"
                " mtp-carry=after-norm|before-norm or"
                " mtp-embedding-0=kept|zeroed, found %s", text);
}

int config_read(Config *c, const char *path, Error *err)
{
    Source s = {.err = err};
    File file;
    bool dir = path_is_dir(path);
    char *inside = dir ? path_join(path, "config.json", err) : NULL;
    int failed = -1;
    if (dir && !inside)
        return -1;
    s.path = dir ? inside : path;
    memset(c, 0, sizeof *c);
    if (!file_open(&file, s.path, err)) {
        if (!json_parse(&s.json, s.path, (const char *)file.data, file.size,
                        err)) {
            s.root = s.json.nodes;
            failed = read_keys(&s, c);
            json_free(&s.json);
        }
        file_close(&file);
    }
    free(inside);
    return failed;
}

/* A strict reader wants a float to look like one. */
static void add_number(Text *t, double x)
{
    size_t at = t->length;
    text_number(t, x);
    if (!t->failed && !strpbrk(t->text + at, ".e"))
        text_add(t, ".0", 2);
}

static void add_member(Text *t, const char *key, double x)
{
    text_printf(t, "    \"%s\": ", key);
    add_number(t, x);
    text_printf(t, ",\n");
}

/* One object of RoPE settings; with theta it is transformers 5's. */
static void add_rope(Text *t, const Config *c, bool v5)
{
    const RopeScaling *r = &c->rope_scaling;
    const char *type = r->yarn ? "yarn" : "default";
    text_printf(t, "  \"%s\": {\n", v5 ? "rope_parameters" : "rope_scaling");
    if (r->yarn) {
        add_member(t, "factor", r->factor);
        text_printf(t, "    \"original_max_position_embeddings\": %zu,\n",
                    r->original_max_position_embeddings);
        add_member(t, "beta_fast", r->beta_fast);
        add_member(t, "beta_slow", r->beta_slow);
        add_member(t, "mscale", r->mscale);
        add_member(t, "mscale_all_dim", r->mscale_all_dim);
    }
    if (v5)
        add_member(t, "rope_theta", c->rope_theta);
    text_printf(t, "    \"%s\": \"%s\"\n  },\n", v5 ? "rope_type" : "type",
                type);
}

static void add_sizes(Text *t, const Config *c)
{
    for (size_t i = 0; i < LENGTH(size_keys); i++) {
        const SizeKey *k = &size_keys[i];
        const size_t *value =
            (const size_t *)(const void *)((const char *)c + k->offset);
        if (*value == 0 && k->null == 0 && k->low > 0)
            text_printf(t, "  \"%s\": null,\n", k->key);
        else
            text_printf(t, "  \"%s\": %zu,\n", k->key, *value);
    }
    text_printf(t, "  \"num_key_value_heads\": %zu,\n",
                c->num_attention_heads);
}

static void add_token_ids(Text *t, const Config *c)
{
    if (c->bos_token_id >= 0)
        text_printf(t, "  \"bos_token_id\": %" PRId64 ",\n",
                    c->bos_token_id);
    if (c->n_eos == 1)
        text_printf(t, "  \"eos_token_id\": %" PRId64 ",\n",
                    c->eos_token_id[0]);
    else if (c->n_eos > 1) {
        text_printf(t, "  \"eos_token_id\": [");
        for (size_t i = 0; i < c->n_eos; i++)
            text_printf(t, "%s%" PRId64, i ? ", " : "", c->eos_token_id[i]);
        text_printf(t, "],\n");
    }
}

/* The official layout's: blocks of F8_BLOCK, inputs quantised as they come. */
static void add_quantization(Text *t, bool ue8m0)
{
    text_printf(t, "  \"quantization_config\": {\n"
                "    \"activation_scheme\": \"dynamic\",\n"
                "    \"fmt\": \"e4m3\",\n    \"quant_method\": \"fp8\""
                ",\n%s    \"weight_block_size\": [128, 128]\n  },\n",
                ue8m0 ? "    \"scale_fmt\": \"ue8m0\",\n" : "");
}

static const char *const torch_names[] = {"float32", "float16", "bfloat16",
                                          "bfloat16"};

static void add_config(Text *t, const Config *c, DType dtype)
{
    bool v3 = c->model_type == DEEPSEEK_V3;
    text_printf(t, "{\n  \"architectures\": [\"DeepseekV%dForCausalLM\"],\n"
                "  \"model_type\": \"deepseek_v%d\",\n", v3 ? 3 : 2,
                v3 ? 3 : 2);
    add_sizes(t, c);
    text_printf(t, "  \"topk_method\": \"%s\",\n  \"scoring_func\": \"%s\""
                ",\n  \"norm_topk_prob\": %s,\n",
                topk_methods[c->topk_method], scoring_funcs[c->scoring_func],
                c->norm_topk_prob ? "true" : "false");
    text_printf(t, "  \"routed_scaling_factor\": ");
    add_number(t, c->routed_scaling_factor);
    text_printf(t, ",\n  \"rms_norm_eps\": ");
    add_number(t, c->rms_norm_eps);
    text_printf(t, ",\n  \"initializer_range\": ");
    add_number(t, c->initializer_range);
    text_printf(t, ",\n  \"rope_theta\": ");
    add_number(t, c->rope_theta);
    text_printf(t, ",\n");
    if (c->rope_scaling.yarn)
        add_rope(t, c, false);
    add_rope(t, c, true);
    add_token_ids(t, c);
    if (dtype == DT_F8_E4M3)
        add_quantization(t, c->scale_fmt_ue8m0);
    text_printf(t, "  \"hidden_act\": \"silu\",\n"
                "  \"attention_bias\": false,\n"
                "  \"attention_dropout\": 0.0,\n"
                "  \"tie_word_embeddings\": %s,\n"
                "  \"torch_dtype\": \"%s\",\n  \"dtype\": \"%s\"\n}\n",
                c->tie_word_embeddings ? "true" : "false",
                torch_names[dtype], torch_names[dtype]);
}

static int write_text(const char *path, bool force, Text *t, Error *err)
{
    int failed = t->failed ? fail(err, "%s: out of memory", path)
                           : file_write(path, force, t->text, t->length, err);
    text_free(t);
    return failed;
}

int config_write(const Config *c, DType dtype, const char *path, bool force,
                 Error *err)
{
    Text t = {0};
    add_config(&t, c, dtype);
    return write_text(path, force, &t, err);
}

/* A line without the blanks before it and the comma at its end. */
static size_t trim(const char **line, size_t n)
{
    for (; n > 0 && **line == ' '; n--)
        (*line)++;
    return n > 0 && (*line)[n - 1] == ',' ? n - 1 : n;
}

int config_same(const Config *c, const char *where, const Config *was,
                const char *where_was, Error *err)
{
    Text a = {0}, b = {0};
    int status = 0;
    add_config(&a, was, DT_F32);
    add_config(&b, c, DT_F32);
    if (a.failed || b.failed)
        status = fail(err, "%s: out of memory", where);
    const char *x = a.text, *y = b.text;
    while (status == 0 && *x && *y) {
        size_t n = strcspn(x, "\n"), m = strcspn(y, "\n");
        if (n != m || memcmp(x, y, n) != 0) {
            n = trim(&x, n);
            m = trim(&y, m);
            status = fail(err, "%s: wanted %.*s, as %s has, found %.*s",
                          where, (int)n, x, where_was, (int)m, y);
            break;
        }
        x += n + 1;
        y += m + 1;
    }
    text_free(&a);
    text_free(&b);
    return status;
}

/* The members as they stand, but for those that say how weights are stored. */
static void copy_members(Text *t, const Json *json)
{
    static const char *const stored[] = {"torch_dtype", "dtype",
                                         "quantization_config"};
    const JsonNode *key = json_first(json, json->nodes), *value;
    for (; key; key = json_next(json, json->nodes, value)) {
        bool keep = true;
        value = json_next(json, json->nodes, key);
        for (size_t i = 0; i < LENGTH(stored); i++)
            keep = keep && !json_equals(json, key, stored[i]);
        bool quoted = json_type(value) == JSON_STRING;
        if (keep)
            text_printf(t, "  \"%.*s\": %s%.*s%s,\n", (int)key->length,
                        json->text + key->start, quoted ? "\"" : "",
                        (int)value->length, json->text + value->start,
                        quoted ? "\"" : "");
    }
}

static int copy_config(Text *t, const char *from, const File *file,
                       DType dtype, bool ue8m0, Error *err)
{
    Json json;
    if (json_parse(&json, from, (const char *)file->data, file->size, err))
        return -1;
    text_printf(t, "{\n");
    copy_members(t, &json);
    json_free(&json);
    if (dtype == DT_F8_E4M3)
        add_quantization(t, ue8m0);
    text_printf(t, "  \"torch_dtype\": \"%s\",\n  \"dtype\": \"%s\"\n}\n",
                torch_names[dtype], torch_names[dtype]);
    return 0;
}

int config_copy(const char *from, DType dtype, bool ue8m0, const char *path,
                bool force, Error *err)
{
    Text t = {0};
    File file;
    if (file_open(&file, from, err))
        return -1;
    int failed = copy_config(&t, from, &file, dtype, ue8m0, err)
                 || write_text(path, force, &t, err);
    text_free(&t);
    file_close(&file);
    return failed ? -1 : 0;
}

int config_write_generation(const Config *c, const char *path, bool force,
                            Error *err)
{
    Text t = {0};
    text_printf(&t, "{\n");
    add_token_ids(&t, c);
    text_printf(&t, "  \"do_sample\": false\n}\n");
    return write_text(path, force, &t, err);
}
