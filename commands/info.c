/* info.c: the command that counts: a table of the config and of cost.c's
 * figures, and of the files where there are weights. */
#include "commands.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *path;
    Config config;
    Costs costs;
    size_t drafts;
    SessionOptions session;
    Run run;              /* its model, where has_model; its tokenizer */
    Text out;
} Info;

static const struct {
    const char *key, *symbol;
    size_t offset;
} config_rows[] = {
    {"vocab_size", "V", offsetof(Config, vocab_size)},
    {"hidden_size", "d", offsetof(Config, hidden_size)},
    {"num_hidden_layers", "l", offsetof(Config, num_hidden_layers)},
    {"first_k_dense_replace", "", offsetof(Config, first_k_dense_replace)},
    {"moe_layer_freq", "", offsetof(Config, moe_layer_freq)},
    {"num_nextn_predict_layers", "D",
     offsetof(Config, num_nextn_predict_layers)},
    {"num_attention_heads", "n_h", offsetof(Config, num_attention_heads)},
    {"q_lora_rank", "d_c'", offsetof(Config, q_lora_rank)},
    {"kv_lora_rank", "d_c", offsetof(Config, kv_lora_rank)},
    {"qk_nope_head_dim", "d_h", offsetof(Config, qk_nope_head_dim)},
    {"qk_rope_head_dim", "d_r", offsetof(Config, qk_rope_head_dim)},
    {"v_head_dim", "d_v", offsetof(Config, v_head_dim)},
    {"intermediate_size", "", offsetof(Config, intermediate_size)},
    {"moe_intermediate_size", "", offsetof(Config, moe_intermediate_size)},
    {"n_routed_experts", "N", offsetof(Config, n_routed_experts)},
    {"n_shared_experts", "N_s", offsetof(Config, n_shared_experts)},
    {"num_experts_per_tok", "K", offsetof(Config, num_experts_per_tok)},
    {"n_group", "", offsetof(Config, n_group)},
    {"topk_group", "", offsetof(Config, topk_group)},
    {"max_position_embeddings", "",
     offsetof(Config, max_position_embeddings)},
};

enum { CONFIG_ROWS = sizeof config_rows / sizeof config_rows[0] };

static const char *model_type(const Config *c)
{
    return c->model_type == DEEPSEEK_V3 ? "deepseek_v3" : "deepseek_v2";
}

static size_t config_value(const Info *i, size_t row)
{
    return *(const size_t *)(const void *)((const char *)&i->config +
                                           config_rows[row].offset);
}

static const void *cost_value(const Info *i, const CostRow *row)
{
    return (const char *)&i->costs + row->offset;
}

static uint64_t cost_count_of(const Info *i, const CostRow *row)
{
    return *(const uint64_t *)cost_value(i, row);
}

static double cost_flops_of(const Info *i, const CostRow *row)
{
    return *(const double *)cost_value(i, row);
}

/* As text ------------------------------------------------------------------ */

static void text_config(Info *i)
{
    Text *t = &i->out;
    text_printf(t, "%s: %s, weights in %s\n\nconfig\n", i->path,
                model_type(&i->config),
                dtype_name(checkpoint_dtype(&i->config)));
    for (size_t row = 0; row < CONFIG_ROWS; row++) {
        text_printf(t, "  %-26s %-11s", config_rows[row].key,
                    config_rows[row].symbol);
        add_count(t, config_value(i, row), 20);
        text_printf(t, "\n");
    }
}

static void text_heading(Info *i, CostGroup group)
{
    Text *t = &i->out;
    switch (group) {
    case COST_PARAMETERS: text_printf(t, "\nparameters\n"); break;
    case COST_CHECKPOINT:
        text_printf(t, "\ncheckpoint in %s\n",
                    dtype_name(checkpoint_dtype(&i->config)));
        break;
    case COST_CACHE:
        text_printf(t, "\n%-36s%15s%12s%9s\n", "cache of a token", "elements",
                    "BF16 bytes", "of MHA");
        break;
    case COST_FLOPS:
        text_printf(t, "\nGFLOP of a token, attending to ");
        add_count(t, i->session.ctx, 0);
        text_printf(t, " positions\n");
        break;
    }
}

/* The bytes are those of two an element, as the papers count them. */
static void text_cache(Info *i, uint64_t elements)
{
    add_count(&i->out, elements, 15);
    add_count(&i->out, 2 * elements, 12);
    text_printf(&i->out, " %6.2f %%",
                100.0 * (double)elements / (double)i->costs.cache_mha);
}

static void text_cost(Info *i, const CostRow *row)
{
    Text *t = &i->out;
    bool cache = row->group == COST_CACHE;
    text_printf(t, cache ? "  %-34s" : "  %-38s", row->label);
    if (cache)
        text_cache(i, cost_count_of(i, row));
    else if (row->group == COST_FLOPS)
        text_printf(t, "%20.6f", cost_flops_of(i, row) / 1e9);
    else
        add_count(t, cost_count_of(i, row), 20);
    text_printf(t, "  %s\n", row->reference);
}

static void text_costs(Info *i)
{
    size_t n;
    const CostRow *rows = cost_rows(&n);
    for (size_t row = 0; row < n; row++) {
        if (row == 0 || rows[row].group != rows[row - 1].group)
            text_heading(i, rows[row].group);
        if (rows[row].group == COST_FLOPS || cost_count_of(i, &rows[row]) > 0)
            text_cost(i, &rows[row]);
    }
    text_printf(&i->out, "\nmemory beside the weights, at a context of ");
    add_count(&i->out, i->session.ctx, 0);
    text_printf(&i->out, "\n  %-38s", "bytes");
    add_count(&i->out, session_bytes(&i->config, &i->session), 20);
    text_printf(&i->out, "\n");
}

/* How many tensors have this dtype, and their bytes. */
static size_t count_dtype(const Safetensors *st, DType dtype, uint64_t *bytes)
{
    size_t n = 0;
    *bytes = 0;
    for (size_t i = 0; i < st->n_tensors; i++) {
        if (st->tensors[i].dtype == dtype) {
            n++;
            *bytes += st->tensors[i].bytes;
        }
    }
    return n;
}

static void text_weights(Info *i)
{
    Text *t = &i->out;
    const Safetensors *st = &i->run.model.files;
    text_printf(t, "\nweights: %zu tensors in %zu file%s, MTP layers %zu of "
                "%zu\n", st->n_tensors, st->n_files,
                st->n_files == 1 ? "" : "s", i->run.model.n_mtp,
                i->config.num_nextn_predict_layers);
    for (int dtype = 0; dtype < DT_COUNT; dtype++) {
        uint64_t bytes;
        size_t n = count_dtype(st, (DType)dtype, &bytes);
        if (n > 0) {
            text_printf(t, "  %-12s %8zu tensors, bytes  ",
                        dtype_name((DType)dtype), n);
            add_count(t, bytes, 22);
            text_printf(t, "\n");
        }
    }
}

static void text_tokenizer(Info *i)
{
    const Tokenizer *tokenizer = i->run.tokenizer;
    text_printf(&i->out, "\ntokenizer: %zu ids, BOS %" PRId32 "%s, EOS %"
                PRId32 ", chat template %s\n", tokenizer_size(tokenizer),
                tokenizer_bos(tokenizer),
                tokenizer_add_bos(tokenizer) ? " (added)" : "",
                tokenizer_eos(tokenizer),
                chat_template_name(tokenizer_template(tokenizer)));
}

static void info_text(Info *i)
{
    text_config(i);
    text_costs(i);
    if (i->drafts > 0)
        text_drafts(&i->out, &i->config, i->drafts, i->session.ctx);
    if (i->run.has_model)
        text_weights(i);
    if (i->run.tokenizer != NULL)
        text_tokenizer(i);
}

/* As JSON ------------------------------------------------------------------ */

static void json_config(Info *i)
{
    Text *t = &i->out;
    text_printf(t, "{\"path\": ");
    text_json_string(t, i->path, strlen(i->path), false);
    text_printf(t, ", \"model_type\": \"%s\", \"dtype\": \"%s\",\n"
                " \"config\": {", model_type(&i->config),
                dtype_name(checkpoint_dtype(&i->config)));
    for (size_t row = 0; row < CONFIG_ROWS; row++)
        text_printf(t, "%s\"%s\": %zu", row > 0 ? ", " : "",
                    config_rows[row].key, config_value(i, row));
    text_printf(t, "},\n \"costs\": {");
}

static void json_costs(Info *i)
{
    size_t n;
    const CostRow *rows = cost_rows(&n);
    Text *t = &i->out;
    for (size_t row = 0; row < n; row++) {
        text_printf(t, "%s\"%s\": ", row > 0 ? ", " : "", rows[row].name);
        if (rows[row].group == COST_FLOPS)
            text_printf(t, "%.17g", cost_flops_of(i, &rows[row]));
        else
            text_printf(t, "%" PRIu64, cost_count_of(i, &rows[row]));
    }
    text_printf(t, "},\n \"context\": %zu, \"session_bytes\": %zu",
                i->session.ctx, session_bytes(&i->config, &i->session));
}

static void json_weights(Info *i)
{
    Text *t = &i->out;
    const Safetensors *st = &i->run.model.files;
    const char *between = "";
    text_printf(t, ",\n \"weights\": {\"files\": %zu, \"tensors\": %zu, "
                "\"mtp_layers\": %zu, \"bytes\": {", st->n_files,
                st->n_tensors, i->run.model.n_mtp);
    for (int dtype = 0; dtype < DT_COUNT; dtype++) {
        uint64_t bytes;
        if (count_dtype(st, (DType)dtype, &bytes) > 0) {
            text_printf(t, "%s\"%s\": %" PRIu64, between,
                        dtype_name((DType)dtype), bytes);
            between = ", ";
        }
    }
    text_printf(t, "}}");
}

static void json_tokenizer(Info *i)
{
    const Tokenizer *tokenizer = i->run.tokenizer;
    text_printf(&i->out, ",\n \"tokenizer\": {\"ids\": %zu, \"bos\": %" PRId32
                ", \"eos\": %" PRId32 ", \"add_bos\": %s, \"template\": "
                "\"%s\"}", tokenizer_size(tokenizer),
                tokenizer_bos(tokenizer), tokenizer_eos(tokenizer),
                tokenizer_add_bos(tokenizer) ? "true" : "false",
                chat_template_name(tokenizer_template(tokenizer)));
}

static void info_json(Info *i)
{
    json_config(i);
    json_costs(i);
    if (i->drafts > 0)
        json_drafts(&i->out, &i->config, i->drafts, i->session.ctx);
    if (i->run.has_model)
        json_weights(i);
    if (i->run.tokenizer != NULL)
        json_tokenizer(i);
    text_printf(&i->out, "}\n");
}

/* -------------------------------------------------------------------------- */

/* 1: the path is a directory with weights, 0: it is not, -1: error. */
static int has_weights(const char *path, Error *err)
{
    if (!path_is_dir(path))
        return 0;
    int has = dir_has(path, "model.safetensors", err);
    return has != 0 ? has : dir_has(path, "model.safetensors.index.json", err);
}

static int info_open(Info *i, const Arguments *a, Error *err)
{
    int weights = has_weights(i->path, err);
    if (weights < 0)
        return -1;
    if (weights == 0)
        return config_read(&i->config, i->path, err);
    if (run_open(&i->run, a, err) != 0)
        return -1;
    i->config = i->run.model.config;
    return 0;
}

/* What the memory and a step are counted of; the weights of modules that the
 * config announces need not be there. */
static int info_session(Info *i, const Arguments *a, Error *err)
{
    Model announced = {.config = i->config,
                       .n_mtp = i->config.num_nextn_predict_layers};
    i->session.ctx = context(&i->config, a, 0, DEFAULT_CTX);
    i->session.chunk = a->chunk;
    i->session.naive = a->mla == 1;
    i->drafts = a->draft;
    if (i->drafts == 0)
        return 0;
    return mtp_options(&i->session, &announced, i->drafts, err);
}

int run_info(const Arguments *a, Error *err)
{
    Info i = {.path = a->line.operands[0]};
    int status = info_open(&i, a, err);
    if (status == 0)
        status = info_session(&i, a, err);
    if (status == 0) {
        cost_count(&i.costs, &i.config, checkpoint_dtype(&i.config),
                   i.session.ctx);
        if (a->json)
            info_json(&i);
        else
            info_text(&i);
        status = print_text(&i.out, err);
    }
    run_close(&i.run);
    text_free(&i.out);
    return status;
}
