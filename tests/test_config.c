/* test_config.c: what config.json may say, and what each wrong value gets.
 *
 * Configs are made by changing keys of a small V3 (or V2) config. Messages
 * are compared whole. Defaults of absent keys are those of transformers 5.23's
 * DeepseekV2Config and DeepseekV3Config. */
#include "support.h"

#define MODELS "tests/data/models/"

typedef struct {
    const char *key;
    const char *value;   /* JSON; NULL: the key is absent */
} Pair;

#define YARN "{\"type\": \"yarn\", \"factor\": 40, \
\"original_max_position_embeddings\": 4096, \"beta_fast\": 32, \
\"beta_slow\": 1, \"mscale\": 1.0, \"mscale_all_dim\": 0.5}"

static const Pair base[] = {
    {"model_type", "\"deepseek_v3\""}, {"vocab_size", "64"},
    {"hidden_size", "32"}, {"num_hidden_layers", "3"},
    {"intermediate_size", "20"}, {"moe_intermediate_size", "4"},
    {"first_k_dense_replace", "1"}, {"moe_layer_freq", "1"},
    {"num_attention_heads", "2"}, {"q_lora_rank", "16"},
    {"kv_lora_rank", "20"}, {"qk_nope_head_dim", "12"},
    {"qk_rope_head_dim", "8"}, {"v_head_dim", "12"},
    {"n_routed_experts", "12"}, {"n_shared_experts", "1"},
    {"num_experts_per_tok", "4"}, {"n_group", "4"}, {"topk_group", "2"},
    {"max_position_embeddings", "4096"},
    {"num_nextn_predict_layers", "1"}, {"topk_method", "\"noaux_tc\""},
    {"scoring_func", "\"sigmoid\""}, {"norm_topk_prob", "true"},
    {"routed_scaling_factor", "2.5"}, {"rms_norm_eps", "1e-6"},
    {"initializer_range", "0.02"}, {"rope_theta", "10000"},
    {"rope_scaling", YARN}, {"tie_word_embeddings", "false"},
    {"torch_dtype", "\"bfloat16\""}, {"bos_token_id", "0"},
    {"eos_token_id", "1"}, {"hidden_act", "\"silu\""},
    {"attention_bias", "false"}, {"architectures", NULL},
    {"rope_parameters", NULL}, {"quantization_config", NULL},
    {"dtype", NULL}, {"mlp_bias", NULL}, {"rope_interleave", NULL}};

enum { BASE = sizeof base / sizeof *base };

static const char *value_of(const Pair *p, const Pair *change, size_t n)
{
    const char *value = p->value;
    for (size_t i = 0; i < n; i++)
        if (strcmp(change[i].key, p->key) == 0)
            value = change[i].value;
    return value;
}

/* Writes the base config with n changes; changes of keys that it does not
 * have are added. */
static const char *write_config(const Pair *change, size_t n)
{
    const char *path = scratch("config.json");
    Text t = {0};
    text_printf(&t, "{\"unknown\": [1, {}]");
    for (size_t i = 0; i < BASE; i++) {
        const char *value = value_of(&base[i], change, n);
        if (value)
            text_printf(&t, ",\n\"%s\": %s", base[i].key, value);
    }
    for (size_t i = 0; i < n; i++) {
        bool known = false;
        for (size_t k = 0; k < BASE; k++)
            known = known || strcmp(base[k].key, change[i].key) == 0;
        if (!known)
            text_printf(&t, ",\n\"%s\": %s", change[i].key, change[i].value);
    }
    text_printf(&t, "}\n");
    put_file(path, t.text, t.length);
    text_free(&t);
    return path;
}

static Config read_changed(const Pair *change, size_t n)
{
    Config c;
    Error err;
    must(config_read(&c, write_config(change, n), &err), &err);
    return c;
}

static Config read_one(const char *key, const char *value)
{
    Pair change = {key, value};
    return read_changed(&change, 1);
}

/* The whole message, the file's name before it. */
static void must_refuse(const Pair *change, size_t n, const char *message)
{
    char wanted[1200];
    Config c;
    Error err;
    const char *path = write_config(change, n);
    snprintf(wanted, sizeof wanted, "%s: %s", path, message);
    must_fail(config_read(&c, path, &err), &err, wanted);
}

static void must_equal(const Config *a, const Config *b)
{
#define SAME(field) assert_true(a->field == b->field)
    SAME(model_type); SAME(vocab_size); SAME(hidden_size);
    SAME(num_hidden_layers); SAME(intermediate_size);
    SAME(moe_intermediate_size); SAME(first_k_dense_replace);
    SAME(moe_layer_freq); SAME(num_attention_heads); SAME(q_lora_rank);
    SAME(kv_lora_rank); SAME(qk_nope_head_dim); SAME(qk_rope_head_dim);
    SAME(v_head_dim); SAME(n_routed_experts); SAME(n_shared_experts);
    SAME(num_experts_per_tok); SAME(n_group); SAME(topk_group);
    SAME(topk_method); SAME(scoring_func); SAME(norm_topk_prob);
    SAME(routed_scaling_factor); SAME(rms_norm_eps); SAME(rope_theta);
    SAME(initializer_range); SAME(rope_scaling.yarn);
    SAME(rope_scaling.factor);
    SAME(rope_scaling.original_max_position_embeddings);
    SAME(rope_scaling.beta_fast); SAME(rope_scaling.beta_slow);
    SAME(rope_scaling.mscale); SAME(rope_scaling.mscale_all_dim);
    SAME(max_position_embeddings); SAME(num_nextn_predict_layers);
    SAME(tie_word_embeddings); SAME(bos_token_id); SAME(n_eos);
    for (size_t i = 0; i < a->n_eos; i++)
        SAME(eos_token_id[i]);
    SAME(torch_dtype); SAME(fp8); SAME(scale_fmt_ue8m0);
    SAME(latent_eps_from_config); SAME(v2_norm_scales);
#undef SAME
}

/* Reading ---------------------------------------------------------------- */

static void test_every_size(void **state)
{
#define FIELD(key) {#key, offsetof(Config, key)}
    static const struct {
        const char *key;
        size_t offset;
    } sizes[] = {
        FIELD(vocab_size), FIELD(hidden_size), FIELD(num_hidden_layers),
        FIELD(intermediate_size), FIELD(moe_intermediate_size),
        FIELD(first_k_dense_replace), FIELD(moe_layer_freq),
        FIELD(num_attention_heads), FIELD(q_lora_rank), FIELD(kv_lora_rank),
        FIELD(qk_nope_head_dim), FIELD(qk_rope_head_dim), FIELD(v_head_dim),
        FIELD(n_shared_experts), FIELD(max_position_embeddings),
        FIELD(num_nextn_predict_layers)};
#undef FIELD
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Config c = read_one(sizes[i].key, "38"), want = read_changed(NULL, 0);
        size_t *field = (size_t *)(void *)((char *)&want + sizes[i].offset);
        assert_true(*field != 38);
        *field = 38;
        must_equal(&c, &want);
    }
}

static void test_experts(void **state)
{
    Pair change[] = {{"n_routed_experts", "30"}, {"n_group", "5"},
                     {"topk_group", "3"}, {"num_experts_per_tok", "18"}};
    Config c = read_changed(change, 4), want = read_changed(NULL, 0);
    (void)state;
    want.n_routed_experts = 30;
    want.n_group = 5;
    want.topk_group = 3;
    want.num_experts_per_tok = 18;
    must_equal(&c, &want);
}

static void test_the_rest(void **state)
{
    Config c = read_one("topk_method", "\"greedy\"");
    (void)state;
    assert_int_equal(c.topk_method, TOPK_GREEDY);
    c = read_one("topk_method", "\"group_limited_greedy\"");
    assert_int_equal(c.topk_method, TOPK_GROUP_LIMITED_GREEDY);
    c = read_one("scoring_func", "\"softmax\"");
    assert_int_equal(c.scoring_func, SCORING_SOFTMAX);
    assert_false(read_one("norm_topk_prob", "false").norm_topk_prob);
    assert_true(read_one("tie_word_embeddings", "true").tie_word_embeddings);
    c = read_one("routed_scaling_factor", "16");
    assert_true(c.routed_scaling_factor == 16);
    assert_true(read_one("rms_norm_eps", "0.01").rms_norm_eps == 0.01);
    assert_true(read_one("rope_theta", "5e4").rope_theta == 50000);
    assert_true(read_one("initializer_range", "0.006").initializer_range
                == 0.006);
    assert_true(read_one("bos_token_id", "63").bos_token_id == 63);
    c = read_one("eos_token_id", "[3, 5]");
    assert_true(c.n_eos == 2 && c.eos_token_id[0] == 3
                && c.eos_token_id[1] == 5);
    assert_int_equal(read_one("dtype", "\"bfloat16\"").torch_dtype, DT_BF16);
    assert_int_equal(read_one("torch_dtype", "\"float16\"").torch_dtype,
                     DT_F16);
    assert_int_equal(read_one("torch_dtype", "\"float32\"").torch_dtype,
                     DT_F32);
}

static void test_rope_scaling(void **state)
{
    Config c = read_one("rope_scaling", "{\"rope_type\": \"yarn\","
                        " \"factor\": 2.5, \"mscale_all_dim\": null,"
                        " \"original_max_position_embeddings\": 77}");
    (void)state;
    assert_true(c.rope_scaling.yarn && c.rope_scaling.factor == 2.5
                && c.rope_scaling.original_max_position_embeddings == 77
                && c.rope_scaling.beta_fast == 32
                && c.rope_scaling.beta_slow == 1 && c.rope_scaling.mscale == 1
                && c.rope_scaling.mscale_all_dim == 0);
    c = read_changed(NULL, 0);
    assert_true(c.rope_scaling.factor == 40 && c.rope_scaling.beta_fast == 32
                && c.rope_scaling.beta_slow == 1 && c.rope_scaling.mscale == 1
                && c.rope_scaling.mscale_all_dim == 0.5);
    assert_false(read_one("rope_scaling", "null").rope_scaling.yarn);
    assert_false(read_one("rope_scaling", NULL).rope_scaling.yarn);
    c = read_one("rope_scaling", "{\"type\": \"default\", \"factor\": 9,"
                 " \"attention_factor\": null}");
    assert_true(!c.rope_scaling.yarn && c.rope_scaling.factor == 0);
}

static void test_fp8(void **state)
{
    Config c = read_one("quantization_config",
        "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\","
        " \"activation_scheme\": \"dynamic\","
        " \"weight_block_size\": [128, 128.0]}");
    (void)state;
    assert_true(c.fp8 && !c.scale_fmt_ue8m0);
    c = read_one("quantization_config",
                 "{\"quant_method\": \"fp8\", \"scale_fmt\": \"ue8m0\","
                 " \"weight_block_size\": [128, 128]}");
    assert_true(c.fp8 && c.scale_fmt_ue8m0);
    assert_false(read_one("quantization_config", "null").fp8);
    assert_false(read_changed(NULL, 0).fp8);
}

/* transformers 5's words for the same model. */
static void test_other_spelling(void **state)
{
    static const char parameters[] =
        "{\"rope_type\": \"yarn\", \"type\": \"yarn\", \"factor\": 40,"
        " \"original_max_position_embeddings\": 4096, \"beta_fast\": 32,"
        " \"beta_slow\": 1, \"mscale\": 1.0, \"mscale_all_dim\": 0.5,"
        " \"rope_theta\": 640, \"truncate\": true,"
        " \"partial_rotary_factor\": 1.0}";
    Pair v4 = {"rope_theta", "640"};
    Pair v5[] = {{"rope_theta", NULL}, {"rope_scaling", NULL},
                 {"torch_dtype", NULL}, {"rope_parameters", parameters},
                 {"dtype", "\"bfloat16\""}, {"rope_interleave", "true"},
                 {"mlp_bias", "false"}};
    Pair both[] = {{"rope_theta", "640.0"}, {"rope_parameters", parameters},
                   {"dtype", "\"bfloat16\""}};
    Config a = read_changed(&v4, 1), b = read_changed(v5, 7);
    Config c = read_changed(both, 3);
    (void)state;
    must_equal(&a, &b);
    must_equal(&a, &c);
    b = read_one("rope_parameters", NULL);
    v5[3].value = "{\"rope_type\": \"default\", \"rope_theta\": 640.0}";
    a = read_changed(v5, 7);
    assert_true(a.rope_theta == 640 && !a.rope_scaling.yarn);
}

/* Only what has no default: the rest as the released classes take it. */
static void test_absent_keys(void **state)
{
    (void)state;
    for (int v3 = 0; v3 < 2; v3++) {
        Pair change[BASE];
        size_t n = 0;
        for (size_t i = 7; i < BASE; i++)
            if (strcmp(base[i].key, "num_attention_heads") != 0
                && strcmp(base[i].key, "kv_lora_rank") != 0
                && strcmp(base[i].key, "qk_nope_head_dim") != 0
                && strcmp(base[i].key, "qk_rope_head_dim") != 0
                && strcmp(base[i].key, "v_head_dim") != 0)
                change[n++] = (Pair){base[i].key, NULL};
        change[n++] = (Pair){"moe_intermediate_size", NULL};
        change[n++] = (Pair){"first_k_dense_replace", NULL};
        change[n++] = (Pair){"num_experts_per_tok", v3 ? NULL : "6"};
        change[n++] = (Pair){"model_type", v3 ? "\"deepseek_v3\""
                                              : "\"deepseek_v2\""};
        Config c = read_changed(change, n);
        assert_true(c.moe_intermediate_size == (v3 ? 2048 : 1407)
                    && c.first_k_dense_replace == (v3 ? 3 : 0)
                    && c.moe_layer_freq == 1 && c.q_lora_rank == 1536
                    && c.n_routed_experts == (v3 ? 256 : 64)
                    && c.n_shared_experts == (v3 ? 1 : 2)
                    && c.num_experts_per_tok == (v3 ? 8 : 6)
                    && c.n_group == (v3 ? 8 : 1)
                    && c.topk_group == (v3 ? 4 : 1));
        assert_true(c.max_position_embeddings == (v3 ? 4096 : 2048)
                    && c.num_nextn_predict_layers == 0
                    && c.topk_method == (v3 ? TOPK_NOAUX_TC : TOPK_GREEDY)
                    && c.scoring_func == (v3 ? SCORING_SIGMOID
                                             : SCORING_SOFTMAX)
                    && c.norm_topk_prob == v3
                    && c.routed_scaling_factor == (v3 ? 2.5 : 1)
                    && c.rms_norm_eps == 1e-6 && c.rope_theta == 10000
                    && c.initializer_range == 0.02 && !c.rope_scaling.yarn
                    && !c.tie_word_embeddings && c.bos_token_id == -1
                    && c.n_eos == 0 && c.torch_dtype == DT_BF16 && !c.fp8);
    }
}

/* null means absent where that makes sense, and none for some sizes. */
static void test_null(void **state)
{
    Pair change[] = {
        {"q_lora_rank", "null"}, {"n_shared_experts", "null"},
        {"n_group", "null"}, {"topk_group", "null"},
        {"num_nextn_predict_layers", "null"}, {"topk_method", "null"},
        {"scoring_func", "null"}, {"norm_topk_prob", "null"},
        {"routed_scaling_factor", "null"}, {"bos_token_id", "null"},
        {"eos_token_id", "null"}, {"hidden_act", "null"},
        {"torch_dtype", "null"}, {"rms_norm_eps", "null"}};
    Config c = read_changed(change, 14);
    (void)state;
    assert_true(c.q_lora_rank == 0 && c.n_shared_experts == 0
                && c.n_group == 1 && c.topk_group == 1
                && c.num_nextn_predict_layers == 0
                && c.topk_method == TOPK_NOAUX_TC && c.norm_topk_prob
                && c.routed_scaling_factor == 2.5 && c.bos_token_id == -1
                && c.n_eos == 0 && c.rms_norm_eps == 1e-6);
    Pair dense[] = {{"n_routed_experts", "null"},
                    {"num_experts_per_tok", "null"}};
    c = read_changed(dense, 2);
    assert_true(c.n_routed_experts == 0);
    for (size_t l = 0; l < 5; l++)
        assert_false(config_is_moe(&c, l));
}

static void test_model_type_from_architectures(void **state)
{
    Pair change[] = {{"model_type", NULL},
                     {"architectures", "[\"DeepseekV2ForCausalLM\"]"}};
    (void)state;
    assert_int_equal(read_changed(change, 2).model_type, DEEPSEEK_V2);
    change[1].value = "[\"DeepseekV3ForCausalLM\", \"Other\"]";
    assert_int_equal(read_changed(change, 2).model_type, DEEPSEEK_V3);
}

/* Legal, if odd: floats that are whole, escapes in keys and values, keys that
 * mean nothing here, a directory in place of the file. */
static void test_oddities(void **state)
{
    Pair change[] = {{"hidden_size", "32.0"}, {"vocab_size", "6.4e1"},
                     {"hidden_act", "\"s\\u0069lu\""},
                     {"topk_method", "\"noaux\\u005ftc\""},
                     {"ep_size", "1"}, {"use_cache", "true"},
                     {"auto_map", "{\"AutoConfig\": \"x.y\"}"},
                     {"num_key_value_heads", "7"},
                     {"aux_loss_alpha", "0.001"},
                     {"attention_dropout", "0.5"}};
    Config c = read_changed(change, 10), want = read_changed(NULL, 0), d;
    Error err;
    (void)state;
    must_equal(&c, &want);
    must(config_read(&d, scratch(""), &err), &err);
    must_equal(&d, &want);
    Pair escaped[] = {{"hidden_size", NULL}, {"hidden\\u005fsize", "32"}};
    c = read_changed(escaped, 2);
    must_equal(&c, &want);
}

/* Refusing --------------------------------------------------------------- */

#define WHOLE(low, high) "wanted a whole number from " low " to " high ", "
#define ROPE(key, value, rest) "{\"type\": \"yarn\", \"factor\": 40, \
\"original_max_position_embeddings\": 4096, \"" key "\": " value rest "}"

static const struct {
    const char *key, *value, *message;
} refused[] = {
    {"vocab_size", "0", "vocab_size: " WHOLE("1", "16777216") "found 0"},
    {"vocab_size", "-5", "vocab_size: " WHOLE("1", "16777216") "found -5"},
    {"vocab_size", NULL, "vocab_size is missing"},
    {"hidden_size", "1.5", "hidden_size: " WHOLE("1", "16777216")
     "found 1.5"},
    {"hidden_size", "\"32\"", "hidden_size: " WHOLE("1", "16777216")
     "found \"32\""},
    {"hidden_size", "1e30", "hidden_size: " WHOLE("1", "16777216")
     "found 1e30"},
    {"hidden_size", "true", "hidden_size: " WHOLE("1", "16777216")
     "found true"},
    {"hidden_size", "[32]", "hidden_size: " WHOLE("1", "16777216")
     "found [32]"},
    {"hidden_size", "{\"a\":\n1}", "hidden_size: " WHOLE("1", "16777216")
     "found {\"a\":?1}"},
    {"hidden_size", "16777217", "hidden_size: " WHOLE("1", "16777216")
     "found 16777217"},
    {"num_hidden_layers", "0", "num_hidden_layers: " WHOLE("1", "4096")
     "found 0"},
    {"num_hidden_layers", "4097", "num_hidden_layers: " WHOLE("1", "4096")
     "found 4097"},
    {"num_attention_heads", "null", "num_attention_heads is missing"},
    {"num_attention_heads", "65537", "num_attention_heads: "
     WHOLE("1", "65536") "found 65537"},
    {"kv_lora_rank", NULL, "kv_lora_rank is missing"},
    {"kv_lora_rank", "null", "kv_lora_rank is missing"},
    {"kv_lora_rank", "0", "kv_lora_rank: " WHOLE("1", "16777216") "found 0"},
    {"q_lora_rank", "0", "q_lora_rank: " WHOLE("1", "16777216") "found 0"},
    {"qk_nope_head_dim", "0", "qk_nope_head_dim: " WHOLE("1", "65536")
     "found 0"},
    {"qk_rope_head_dim", "7", "qk_rope_head_dim: wanted an even number,"
     " found 7"},
    {"qk_rope_head_dim", "0", "qk_rope_head_dim: " WHOLE("2", "65536")
     "found 0"},
    {"v_head_dim", "0", "v_head_dim: " WHOLE("1", "65536") "found 0"},
    {"intermediate_size", "0", "intermediate_size: " WHOLE("1", "16777216")
     "found 0"},
    {"moe_intermediate_size", "null", "moe_intermediate_size is missing"},
    {"first_k_dense_replace", "-1", "first_k_dense_replace: "
     WHOLE("0", "4096") "found -1"},
    {"moe_layer_freq", "0", "moe_layer_freq: " WHOLE("1", "4096")
     "found 0"},
    {"n_routed_experts", "0", "n_routed_experts: " WHOLE("1", "65536")
     "found 0"},
    {"n_routed_experts", "13", "n_routed_experts: wanted a multiple of"
     " n_group (4), found 13"},
    {"n_group", "5", "n_routed_experts: wanted a multiple of n_group (5),"
     " found 12"},
    {"n_group", "0", "n_group: " WHOLE("1", "65536") "found 0"},
    {"topk_group", "5", "topk_group: wanted at most n_group (4), found 5"},
    {"topk_group", "0", "topk_group: " WHOLE("1", "65536") "found 0"},
    {"num_experts_per_tok", "13", "num_experts_per_tok: wanted 1 to"
     " n_routed_experts (12), found 13"},
    {"num_experts_per_tok", "7", "num_experts_per_tok: wanted at most the 6"
     " experts of topk_group groups, found 7"},
    {"num_experts_per_tok", "0", "num_experts_per_tok: " WHOLE("1", "65536")
     "found 0"},
    {"num_experts_per_tok", "null", "num_experts_per_tok: wanted 1 to"
     " n_routed_experts (12), found 0"},
    {"n_shared_experts", "\"1\"", "n_shared_experts: " WHOLE("0", "4096")
     "found \"1\""},
    {"max_position_embeddings", "0", "max_position_embeddings: "
     WHOLE("1", "1073741824") "found 0"},
    {"num_nextn_predict_layers", "65", "num_nextn_predict_layers: "
     WHOLE("0", "64") "found 65"},
    {"topk_method", "\"softmax\"", "topk_method: wanted greedy or"
     " group_limited_greedy or noaux_tc, found softmax"},
    {"topk_method", "3", "topk_method: wanted greedy or"
     " group_limited_greedy or noaux_tc, found 3"},
    {"scoring_func", "\"tanh\"", "scoring_func: wanted softmax or sigmoid,"
     " found tanh"},
    {"norm_topk_prob", "\"yes\"", "norm_topk_prob: wanted true or false,"
     " found \"yes\""},
    {"norm_topk_prob", "1", "norm_topk_prob: wanted true or false, found 1"},
    {"tie_word_embeddings", "0", "tie_word_embeddings: wanted true or"
     " false, found 0"},
    {"routed_scaling_factor", "\"x\"", "routed_scaling_factor: wanted a"
     " number from 0 to 1e+06, found \"x\""},
    {"routed_scaling_factor", "-1", "routed_scaling_factor: wanted a number"
     " from 0 to 1e+06, found -1"},
    {"routed_scaling_factor", "1e400", "routed_scaling_factor: wanted a"
     " number from 0 to 1e+06, found 1e400"},
    {"rms_norm_eps", "-1e-6", "rms_norm_eps: wanted a number from 0 to 1,"
     " found -1e-6"},
    {"rms_norm_eps", "2", "rms_norm_eps: wanted a number from 0 to 1,"
     " found 2"},
    {"initializer_range", "-1", "initializer_range: wanted a number from 0"
     " to 1000, found -1"},
    {"rope_theta", "1", "rope_theta: wanted a number from 1.001 to 1e+12,"
     " found 1"},
    {"rope_theta", "\"10000\"", "rope_theta: wanted a number from 1.001 to"
     " 1e+12, found \"10000\""},
    {"rope_scaling", "40", "rope_scaling: wanted an object, found 40"},
    {"rope_scaling", "[]", "rope_scaling: wanted an object, found []"},
    {"rope_scaling", "{}", "rope_scaling: wanted an object with a type,"
     " found {}"},
    {"rope_scaling", "{\"type\": null}", "rope_scaling: wanted an object"
     " with a type, found {\"type\": null}"},
    {"rope_scaling", "{\"type\": \"linear\", \"factor\": 2}", "type: wanted"
     " default or yarn, found linear"},
    {"rope_parameters", "{\"rope_type\": \"llama3\"}", "rope_type: wanted"
     " default or yarn, found llama3"},
    {"rope_scaling", "{\"type\": \"yarn\", \"rope_type\": \"default\"}",
     "rope_scaling: type and rope_type disagree"},
    {"rope_scaling", "{\"type\": \"yarn\","
     " \"original_max_position_embeddings\": 4096}",
     "rope_scaling: factor is missing"},
    {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 40}",
     "rope_scaling: original_max_position_embeddings is missing"},
    {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 40,"
     " \"original_max_position_embeddings\": 4096.5}",
     "original_max_position_embeddings: wanted a whole number, found"
     " 4096.5"},
    {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 0.5}",
     "factor: wanted a number from 1 to 1e+06, found 0.5"},
    {"rope_scaling", "{\"type\": \"yarn\", \"factor\": \"40\"}",
     "factor: wanted a number from 1 to 1e+06, found \"40\""},
    {"rope_scaling", ROPE("beta_fast", "0", ""),
     "beta_fast: wanted a number from 1e-06 to 1e+06, found 0"},
    {"rope_scaling", ROPE("beta_slow", "-1", ""),
     "beta_slow: wanted a number from 1e-06 to 1e+06, found -1"},
    {"rope_scaling", ROPE("mscale", "-1", ""),
     "mscale: wanted a number from 0 to 1000, found -1"},
    {"rope_scaling", ROPE("mscale_all_dim", "1001", ""),
     "mscale_all_dim: wanted a number from 0 to 1000, found 1001"},
    {"rope_scaling", ROPE("attention_factor", "1.2", ""),
     "attention_factor: wanted null, found 1.2"},
    {"rope_scaling", ROPE("truncate", "false", ""),
     "truncate: wanted true, found false"},
    {"rope_scaling", ROPE("partial_rotary_factor", "0.5", ""),
     "partial_rotary_factor: wanted a number from 1 to 1, found 0.5"},
    {"rope_parameters", ROPE("mscale_all_dim", "0.5",
                             ", \"rope_theta\": 10001"),
     "rope_theta and rope_parameters disagree"},
    {"rope_parameters", ROPE("mscale_all_dim", "0.6", ""),
     "rope_scaling and rope_parameters disagree"},
    {"rope_parameters", "{\"rope_type\": \"default\"}",
     "rope_scaling and rope_parameters disagree"},
    {"quantization_config", "{}",
     "quantization_config: quant_method is missing"},
    {"quantization_config", "\"fp8\"",
     "quantization_config: quant_method is missing"},
    {"quantization_config", "{\"quant_method\": \"awq\"}",
     "quant_method: wanted fp8, found awq"},
    {"quantization_config", "{\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}",
     "fmt: wanted e4m3, found e5m2"},
    {"quantization_config", "{\"quant_method\": \"fp8\","
     " \"scale_fmt\": \"e8\"}", "scale_fmt: wanted float or ue8m0, found"
     " e8"},
    {"quantization_config", "{\"quant_method\": \"fp8\"}",
     "quantization_config: weight_block_size is missing"},
    {"quantization_config", "{\"quant_method\": \"fp8\","
     " \"weight_block_size\": [64, 64]}",
     "weight_block_size: wanted [128, 128], found [64, 64]"},
    {"quantization_config", "{\"quant_method\": \"fp8\","
     " \"weight_block_size\": [128]}",
     "weight_block_size: wanted [128, 128], found [128]"},
    {"quantization_config", "{\"quant_method\": \"fp8\","
     " \"weight_block_size\": [128, 128, 128]}",
     "weight_block_size: wanted [128, 128], found [128, 128, 128]"},
    {"quantization_config", "{\"quant_method\": \"fp8\","
     " \"weight_block_size\": {\"a\": 128, \"b\": 128}}",
     "weight_block_size: wanted [128, 128], found {\"a\": 128, \"b\": 128}"},
    {"hidden_act", "\"gelu\"", "hidden_act: wanted silu, found gelu"},
    {"hidden_act", "1", "hidden_act: wanted silu, found 1"},
    {"attention_bias", "true", "attention_bias: wanted false, found true"},
    {"attention_bias", "\"false\"", "attention_bias: wanted false, found"
     " \"false\""},
    {"mlp_bias", "true", "mlp_bias: wanted false, found true"},
    {"rope_interleave", "false", "rope_interleave: wanted true, found"
     " false"},
    {"torch_dtype", "\"float64\"", "torch_dtype: wanted float32 or float16"
     " or bfloat16 or float8_e4m3fn, found float64"},
    {"dtype", "16", "dtype: wanted float32 or float16 or bfloat16 or"
     " float8_e4m3fn, found 16"},
    {"bos_token_id", "64", "bos_token_id: wanted an id of the vocabulary,"
     " found 64"},
    {"bos_token_id", "-1", "bos_token_id: wanted an id of the vocabulary,"
     " found -1"},
    {"eos_token_id", "[1, 64]", "eos_token_id: wanted an id of the"
     " vocabulary, found 64"},
    {"eos_token_id", "\"</s>\"", "eos_token_id: wanted an id of the"
     " vocabulary, found \"</s>\""},
    {"eos_token_id", "1.5", "eos_token_id: wanted an id of the vocabulary,"
     " found 1.5"},
    {"eos_token_id", "[1,2,3,4,5,6,7,8,9]", "eos_token_id: wanted at most 8"
     " ids, found [1,2,3,4,5,6,7,8,9]"},
    {"model_type", "\"llama\"", "model_type: wanted deepseek_v2 or"
     " deepseek_v3, found llama"},
    {"model_type", "3", "model_type: wanted deepseek_v2 or deepseek_v3,"
     " found 3"},
    {"model_type", NULL, "model_type is missing; wanted deepseek_v2 or"
     " deepseek_v3"},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        Pair change = {refused[i].key, refused[i].value};
        must_refuse(&change, 1, refused[i].message);
    }
}

static void test_refused_together(void **state)
{
    Pair groups[] = {{"n_group", "12"}, {"num_experts_per_tok", "2"}};
    Pair heads[] = {{"num_attention_heads", "512"}, {"v_head_dim", "65536"}};
    Pair shared[] = {{"n_shared_experts", "4096"},
                     {"moe_intermediate_size", "4097"}};
    Pair class[] = {{"model_type", NULL},
                    {"architectures", "[\"LlamaForCausalLM\"]"}};
    Pair many[] = {{"num_hidden_layers", "40"},
                   {"n_routed_experts", "65536"}};
    Pair mtp[] = {{"first_k_dense_replace", "3"}, {"n_group", "5"}};
    Pair experts[] = {{"num_hidden_layers", "1024"},
                      {"n_routed_experts", "65536"}};
    (void)state;
    must_refuse(experts, 2, "n_routed_experts: wanted at most 1023 in 1025"
                " layers, found 65536");
    must_refuse(groups, 2, "n_group: wanted groups of 2 experts or more,"
                " found 12 groups of 12");
    must_refuse(heads, 2, "num_attention_heads: wanted heads of at most"
                " 16777216 rows in all, found 512 of 65548");
    must_refuse(shared, 2, "n_shared_experts: wanted at most 16777216 rows"
                " in all, found 4096 times moe_intermediate_size 4097");
    must_refuse(class, 2, "model_type is missing; wanted deepseek_v2 or"
                " deepseek_v3");
    must_refuse(many, 2, "n_routed_experts: wanted at most 25575 in 41"
                " layers, found 65536");
    must_refuse(mtp, 2, "n_routed_experts: wanted a multiple of n_group (5),"
                " found 12");
}

/* A message shows at most 60 bytes of a value, and whole characters. */
static void test_long_values(void **state)
{
    char value[300], wanted[300];
    (void)state;
    strcpy(value, "\"x");
    strcpy(wanted, "hidden_size: " WHOLE("1", "16777216") "found \"x");
    for (int i = 0; i < 100; i++) {
        strcat(value, "\xc3\xa9");
        if (i < 29)
            strcat(wanted, "\xc3\xa9");
    }
    strcat(value, "\"");
    strcat(wanted, "\"");
    Pair change = {"hidden_size", value};
    must_refuse(&change, 1, wanted);
}

static void test_not_a_config(void **state)
{
    static const struct {
        const char *text, *message;
    } files[] = {{"", "line 1, column 1: "}, {"[]", "wanted an object, found"
                 " an array"}, {"3", "wanted an object, found a number"},
                 {"{\"vocab_size\": 3", "line 1, column "},
                 {"{\"a\": 1, \"a\": 2}", "line 1, column "},
                 {"{}", "model_type is missing; wanted deepseek_v2 or"
                  " deepseek_v3"}};
    Config c;
    Error err;
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const char *path = scratch("config.json");
        put_file(path, files[i].text, strlen(files[i].text));
        assert_int_equal(config_read(&c, path, &err), -1);
        assert_non_null(strstr(err.text, path));
        assert_non_null(strstr(err.text, files[i].message));
        assert_null(strchr(err.text, '\n'));
    }
    remove(scratch("config.json"));
    assert_int_equal(config_read(&c, scratch(""), &err), -1);
    assert_non_null(strstr(err.text, scratch("config.json")));
    assert_int_equal(config_read(&c, scratch("none.json"), &err), -1);
    assert_non_null(strstr(err.text, scratch("none.json")));
}

/* A dense model need not have experts that fit groups. */
static void test_unused_groups(void **state)
{
    Pair change[] = {{"first_k_dense_replace", "3"},
                     {"num_nextn_predict_layers", "0"}, {"n_group", "5"},
                     {"num_experts_per_tok", "999"}};
    (void)state;
    read_changed(change, 4);
}

/* Layers and readings ---------------------------------------------------- */

static void test_is_moe(void **state)
{
    static const struct {
        size_t first, freq;
        const char *moe;  /* of layers 0 … 6, the last two MTP's */
    } rows[] = {{0, 1, "1111111"}, {1, 1, "0111111"}, {3, 1, "0001111"},
                {0, 2, "1010111"}, {1, 2, "0010111"}, {1, 3, "0001011"},
                {5, 1, "0000011"}, {9, 4, "0000011"}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        Config c = {.num_hidden_layers = 5, .n_routed_experts = 4,
                    .first_k_dense_replace = rows[i].first,
                    .moe_layer_freq = rows[i].freq};
        for (size_t l = 0; l < 7; l++)
            assert_int_equal(config_is_moe(&c, l), rows[i].moe[l] == '1');
    }
}

#define READINGS \
    "--reading: wanted latent-eps=1e-6|rms_norm_eps," \
    " v2-norm-topk=divide|divide-and-scale," \
    " mtp-order=embedding-first|hidden-first," \
    " mtp-state=after-norm|before-norm," \
    " mtp-carry=after-norm|before-norm or" \
    " mtp-embedding-0=kept|zeroed, found "

/* Each of MTP's sets its own switch, and takes it back. */
static void check_mtp_reading(const char *on, const char *off, size_t offset)
{
    Config c = {.vocab_size = 1};
    const bool *field = (const bool *)((const char *)&c + offset);
    Error err;
    must(config_reading(&c, on, &err), &err);
    assert_true(*field);
    assert_int_equal(c.mtp_hidden_first + c.mtp_before_norm + c.mtp_carry_raw
                     + c.mtp_zero_first, 1);
    must(config_reading(&c, off, &err), &err);
    assert_false(*field);
}

static void test_mtp_readings(void **state)
{
    (void)state;
    check_mtp_reading("mtp-order=hidden-first", "mtp-order=embedding-first",
                      offsetof(Config, mtp_hidden_first));
    check_mtp_reading("mtp-state=before-norm", "mtp-state=after-norm",
                      offsetof(Config, mtp_before_norm));
    check_mtp_reading("mtp-carry=before-norm", "mtp-carry=after-norm",
                      offsetof(Config, mtp_carry_raw));
    check_mtp_reading("mtp-embedding-0=zeroed", "mtp-embedding-0=kept",
                      offsetof(Config, mtp_zero_first));
}

static void test_readings(void **state)
{
    Config c = {.vocab_size = 1};
    Error err;
    (void)state;
    must(config_reading(&c, "latent-eps=rms_norm_eps", &err), &err);
    assert_true(c.latent_eps_from_config && !c.v2_norm_scales);
    must(config_reading(&c, "v2-norm-topk=divide-and-scale", &err), &err);
    assert_true(c.latent_eps_from_config && c.v2_norm_scales);
    must(config_reading(&c, "latent-eps=1e-6", &err), &err);
    must(config_reading(&c, "v2-norm-topk=divide", &err), &err);
    assert_true(!c.latent_eps_from_config && !c.v2_norm_scales);
    must_fail(config_reading(&c, "eps=1", &err), &err,
              READINGS "eps=1");
    must_fail(config_reading(&c, "", &err), &err, READINGS);
}

/* Writing ---------------------------------------------------------------- */

static const char *const configs[] = {
    "tests/data/configs/v2-lite.json", "tests/data/configs/v2.json",
    "tests/data/configs/v3.json", MODELS "k6-no-yarn", MODELS "k7-yarn",
    MODELS "k9-shapes", MODELS "dense-v2", MODELS "yarn-absent",
    MODELS "transformers-5-v2", MODELS "fp8-ue8m0", MODELS "f16"};

/* As written, so read: whatever the dtype, in both spellings. */
static void test_round_trip(void **state)
{
    char *path = scratch_dup("written.json");
    (void)state;
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++)
        for (int dtype = DT_F32; dtype <= DT_F8_E4M3; dtype++) {
            Config a, b;
            Error err;
            must(config_read(&a, configs[i], &err), &err);
            must(config_write(&a, (DType)dtype, path, true, &err), &err);
            must(config_read(&b, path, &err), &err);
            a.fp8 = dtype == DT_F8_E4M3;
            a.scale_fmt_ue8m0 = a.fp8 && a.scale_fmt_ue8m0;
            a.torch_dtype = a.fp8 ? DT_BF16 : (DType)dtype;
            must_equal(&a, &b);
        }
    remove(path);
    free(path);
}

static void test_round_trip_of_numbers(void **state)
{
    char *path = scratch_dup("written.json");
    Config a = read_one("eos_token_id", "[1, 2, 3, 4, 5, 6, 7, 8]"), b;
    Error err;
    (void)state;
    a.rms_norm_eps = 1.0 / 3;
    a.rope_theta = 123456.789012345678;
    a.routed_scaling_factor = 0x1.fffffffffffffp-4;
    a.rope_scaling.mscale = 0.70700000000000007;
    a.initializer_range = 5e-324;
    a.bos_token_id = -1;
    must(config_write(&a, DT_BF16, path, true, &err), &err);
    must(config_read(&b, path, &err), &err);
    must_equal(&a, &b);
    remove(path);
    free(path);
}

static void test_write_refuses(void **state)
{
    char *path = scratch_dup("written.json"), wanted[600];
    Config c = read_changed(NULL, 0);
    Error err;
    (void)state;
    must(config_write(&c, DT_BF16, path, false, &err), &err);
    snprintf(wanted, sizeof wanted, "%s: exists already; --force overwrites"
             " it", path);
    must_fail(config_write(&c, DT_BF16, path, false, &err), &err, wanted);
    must(config_write(&c, DT_BF16, path, true, &err), &err);
    remove(path);
    assert_int_equal(config_write(&c, DT_BF16, scratch("no/such.json"),
                                  true, &err), -1);
    assert_non_null(strstr(err.text, scratch("no/such.json")));
    free(path);
}

/* How weights are stored makes no other model. */
static void test_same(void **state)
{
    static const Pair stored[] = {
        {"torch_dtype", "\"float16\""},
        {"quantization_config", "{\"quant_method\": \"fp8\", \"fmt\": "
         "\"e4m3\", \"weight_block_size\": [128, 128]}"}};
    Config a = read_changed(NULL, 0), b = read_changed(stored, 2);
    Error err;
    (void)state;
    assert_true(b.fp8);
    must(config_same(&a, "new", &b, "old", &err), &err);
    must(config_same(&b, "new", &a, "old", &err), &err);
}

/* The first difference, whether a value is another, or a key is not there,
 * is inside an object, or ends a line without a comma. */
static void test_not_same(void **state)
{
    static const struct {
        Pair change;
        const char *was, *is;
    } differences[] = {
        {{"hidden_size", "34"}, "\"hidden_size\": 32",
         "\"hidden_size\": 34"},
        {{"hidden_size", "320"}, "\"hidden_size\": 32",
         "\"hidden_size\": 320"},
        {{"tie_word_embeddings", "true"}, "\"tie_word_embeddings\": false",
         "\"tie_word_embeddings\": true"},
        {{"rope_theta", "9999"}, "\"rope_theta\": 10000.0",
         "\"rope_theta\": 9999.0"},
        {{"rope_scaling", "null"}, "\"rope_scaling\": {",
         "\"rope_parameters\": {"},
        {{"rope_scaling", "{\"type\": \"yarn\", \"factor\": 8, "
          "\"original_max_position_embeddings\": 4096}"},
         "\"factor\": 40.0", "\"factor\": 8.0"},
        {{"bos_token_id", "null"}, "\"bos_token_id\": 0",
         "\"eos_token_id\": 1"}};
    Config was = read_changed(NULL, 0);
    (void)state;
    for (size_t i = 0; i < sizeof differences / sizeof *differences; i++) {
        Config c = read_changed(&differences[i].change, 1);
        char wanted[300];
        Error err;
        snprintf(wanted, sizeof wanted, "new: wanted %s, as old has, found"
                 " %s", differences[i].was, differences[i].is);
        must_fail(config_same(&c, "new", &was, "old", &err), &err, wanted);
    }
}

static int clean(void **state)
{
    (void)state;
    remove(scratch("config.json"));
    return remove(scratch(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_size), cmocka_unit_test(test_experts),
        cmocka_unit_test(test_the_rest), cmocka_unit_test(test_rope_scaling),
        cmocka_unit_test(test_fp8), cmocka_unit_test(test_other_spelling),
        cmocka_unit_test(test_absent_keys), cmocka_unit_test(test_null),
        cmocka_unit_test(test_model_type_from_architectures),
        cmocka_unit_test(test_oddities), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_refused_together),
        cmocka_unit_test(test_long_values),
        cmocka_unit_test(test_not_a_config),
        cmocka_unit_test(test_unused_groups), cmocka_unit_test(test_is_moe),
        cmocka_unit_test(test_mtp_readings),
        cmocka_unit_test(test_readings), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_round_trip_of_numbers),
        cmocka_unit_test(test_write_refuses),
        cmocka_unit_test(test_same), cmocka_unit_test(test_not_same),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
