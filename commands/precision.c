/* precision.c: the command that measures what FP8 costs a model.
 *
 * The same text runs through variants of one model; the first, its weights as
 * they are stored, is what the others are compared with. A variant is a copy
 * of the weights (model_copy) and a session over it; a trace to a function
 * sees every layer's output.
 *
 * Outliers (V3 §3.3.2, B.2), which by themselves change no output:
 * - of tokens: where a Linear layer's input is quantised, one row in 128 is
 *   2^POWER times as large and its scales are as much smaller (Fp8Acts).
 * - of features: a channel of a Linear layer's input becomes 2^POWER times as
 *   large where that input is made (a norm's gain, rows of up_proj, of W_UV)
 *   and the weights that meet it as much smaller. Powers of two only: in F32
 *   every product, so every output, keeps its bits. */
#include "commands.h"

#include "../base/maths.h"
#include "../base/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Every EVERY-th channel of each input, from FIRST on; see docs/fp8.md for how
 * the figures were chosen. */
enum { EVERY = 256, FIRST = 5, POWER = 14, WINDOW = 512 };

typedef struct {
    const char *name;    /* in JSON */
    const char *head, *label;
    bool fp8;            /* weights */
    bool activations;
    Fp8Scope weights, scope;
} Variant;

static const Variant variants[] = {
    {"stored", "as stored", "as stored", false, false, FP8_BLOCK, FP8_TILE},
    {"weights", "weights", "FP8 weights", true, false, FP8_BLOCK,
     FP8_TILE},
    {"tiles", "1x128", "activations 1x128", true, true, FP8_BLOCK,
     FP8_TILE},
    {"blocks", "128x128", "activations 128x128", true, true, FP8_BLOCK,
     FP8_BLOCK},
    {"tensor", "tensor", "one scale a tensor", true, true, FP8_TENSOR,
     FP8_TENSOR},
};

typedef enum { NONE, TOKENS, FEATURES, KINDS } Outliers;

static const char *const kinds[KINDS] = {"none", "tokens", "features"};

enum {
    VARIANTS = sizeof variants / sizeof *variants, RUNS = KINDS * VARIANTS
};

/* What became of one run: the first VARIANTS without outliers. */
typedef struct {
    double perplexity;
    double *error;       /* (layers): |h - h_stored| / |h_stored| */
} Result;

typedef struct {
    Run run;             /* its prompt: the text */
    const char *file;
    size_t ctx, layers, tokens;
    Result results[RUNS];
    size_t now;          /* the run at hand */
    float *stored;       /* what every layer of the first run put out */
    size_t n, capacity;
    size_t at;           /* how much of it the run at hand has met */
    double *power;       /* (layers): sums of its squares */
    double *sums;        /* (RUNS, layers): what the results point to */
} Precision;

/* Outliers ---------------------------------------------------------------- */

static float *row_of(const Matrix *w, size_t r)
{
    return matrix_numbers(w) + r * w->stride;
}

static void scale_row(const Matrix *w, size_t r)
{
    scale(row_of(w, r), row_of(w, r), (float)(1 << POWER), w->cols);
}

/* The columns of what reads the outliers; w may be absent. */
static void scale_columns(const Matrix *w)
{
    for (size_t r = 0; w->data != NULL && r < w->rows; r++)
        for (size_t k = FIRST; k < w->cols; k += EVERY)
            row_of(w, r)[k] /= (float)(1 << POWER);
}

static void scale_gain(const Matrix *w)
{
    for (size_t k = FIRST; w->data != NULL && k < w->cols; k += EVERY)
        row_of(w, 0)[k] *= (float)(1 << POWER);
}

/* W_UV's rows lie in kv_b_proj, those of a head behind its W_UK; o_proj reads
 * the heads' values one behind another. */
static void scale_values(const MlaWeights *w, const Config *c)
{
    size_t d_v = c->v_head_dim, width = c->qk_nope_head_dim + d_v;
    for (size_t k = FIRST; k < c->num_attention_heads * d_v; k += EVERY)
        scale_row(&w->kv_b_proj,
                  k / d_v * width + c->qk_nope_head_dim + k % d_v);
    scale_columns(&w->o_proj);
}

static void scale_attention(const LayerWeights *l, const Config *c)
{
    const MlaWeights *w = &l->self_attn;
    scale_gain(&l->input_layernorm);
    scale_columns(&w->q_proj);
    scale_columns(&w->q_a_proj);
    scale_columns(&w->kv_a_proj_with_mqa);
    scale_gain(&w->q_a_layernorm);
    scale_columns(&w->q_b_proj);
    scale_gain(&w->kv_a_layernorm);
    scale_columns(&w->kv_b_proj);
    scale_values(w, c);
}

static void scale_ffn(const FfnWeights *w)
{
    scale_columns(&w->gate_proj);
    scale_columns(&w->up_proj);
    for (size_t r = FIRST; r < w->up_proj.rows; r += EVERY)
        scale_row(&w->up_proj, r);
    scale_columns(&w->down_proj);
}

static void put_outliers(Model *m)
{
    const Config *c = &m->config;
    for (size_t l = 0; l < c->num_hidden_layers; l++) {
        LayerWeights *w = &m->layers[l];
        scale_attention(w, c);
        scale_gain(&w->post_attention_layernorm);
        if (!w->is_moe)
            scale_ffn(&w->mlp);
        for (size_t e = 0; w->is_moe && e < c->n_routed_experts; e++)
            scale_ffn(&w->moe.experts[e]);
        if (w->is_moe)
            scale_columns(&w->moe.gate);
        if (w->is_moe && c->n_shared_experts > 0)
            scale_ffn(&w->moe.shared_experts);
    }
}

/* One run ----------------------------------------------------------------- */

static int keep(Precision *p, const float *h, size_t n, Error *err)
{
    if (p->n + n > p->capacity) {
        size_t more = 2 * p->capacity + n;
        float *grown = realloc(p->stored, more * sizeof *grown);
        if (grown == NULL)
            return fail(err, "not enough memory for the layers' outputs");
        p->stored = grown;
        p->capacity = more;
    }
    memcpy(p->stored + p->n, h, n * sizeof *h);
    p->n += n;
    return 0;
}

/* Layers come in the same order in every run: what the first kept is met again
 * one piece after another. */
static int see(void *context, const char *name, DType type,
               const void *values, int rank, const size_t *shape, Error *err)
{
    Precision *p = context;
    size_t layer = strtoul(name + strlen("model.layers."), NULL, 10);
    size_t n = shape[0] * shape[rank - 1];
    const float *h = values;
    (void)type;
    if (p->now == 0 && keep(p, h, n, err) != 0)
        return -1;
    for (size_t i = 0; i < n; i++) {
        double want = (double)p->stored[p->at + i], e = (double)h[i] - want;
        p->results[p->now].error[layer] += e * e;
        if (p->now == 0)
            p->power[layer] += want * want;
    }
    p->at += n;
    return 0;
}

static int run_text(Precision *p, const Model *m, const SessionOptions *o,
                 Error *err)
{
    Result *r = &p->results[p->now];
    Score s = {0};
    p->at = 0;
    if (session_open(&p->run.session, m, o, err) != 0)
        return -1;
    int status = score_ids(&p->run, &p->run.prompt, p->file, &s, err);
    session_close(&p->run.session);
    if (status == 0 && s.tokens == 0)
        return fail(err, "%s: wanted 2 tokens or more, found 1", p->file);
    p->tokens = s.tokens;
    r->perplexity = exp64(s.nats / (double)s.tokens);
    for (size_t l = 0; l < p->layers; l++)
        r->error[l] = p->power[l] > 0 ? sqrt(r->error[l] / p->power[l]) : 0;
    return status;
}

/* A window is run at once: it is the tensor that one scale serves. */
static int measure(Precision *p, const Model *m, const Variant *v, Error *err)
{
    SessionOptions o = {.ctx = p->ctx, .chunk = p->ctx, .naive = true,
                        .fp8 = v->activations, .fp8_scope = v->scope,
                        .fp8_raise = p->now / VARIANTS == TOKENS ? POWER : 0,
                        .logit_rows = SIZE_MAX,
                        .trace = trace_to(see, p, "model.layers.#", err)};
    if (o.trace == NULL)
        return -1;
    int status = run_text(p, m, &o, err);
    if (status != 0) {
        trace_abort(o.trace);
        return -1;
    }
    return trace_close(o.trace, err);
}

/* All variants of m: its own, then those of its copies. */
static int run_variants(Precision *p, const Model *m, Error *err)
{
    int status = 0;
    for (size_t i = 0; i < VARIANTS && status == 0; i++, p->now++) {
        const Variant *v = &variants[i];
        Model copy;
        if (!v->fp8) {
            status = measure(p, m, v, err);
            continue;
        }
        if (model_copy(&copy, m, DT_F8_E4M3, v->weights, err) != 0)
            return -1;
        status = measure(p, &copy, v, err);
        model_close(&copy);
    }
    return status;
}

/* FP8 weights count as the numbers that they stand for. */
static int run_all(Precision *p, Error *err)
{
    Model m;
    int status = 0;
    if (model_find_not_finite(&p->run.model, err) != 0
        || model_copy(&m, &p->run.model, DT_F32, FP8_BLOCK, err) != 0)
        return -1;
    for (int kind = NONE; kind < KINDS && status == 0; kind++) {
        if (kind == FEATURES)
            put_outliers(&m);
        status = run_variants(p, &m, err);
    }
    model_close(&m);
    return status;
}

/* What is printed --------------------------------------------------------- */

static double change(const Precision *p, size_t run)
{
    return p->results[run].perplexity / p->results[0].perplexity - 1;
}

static void add_table(Text *t, const Precision *p, Outliers kind)
{
    static const char *const titles[KINDS] = {
        "no outliers", "in tokens", "in features"};
    size_t from = (size_t)kind * VARIANTS;
    text_printf(t, "\n%-14s", titles[kind]);
    for (size_t i = 0; i < VARIANTS; i++)
        text_printf(t, " %12s", variants[i].head);
    for (size_t l = 0; l < p->layers; l++) {
        text_printf(t, "\n  layer %-6zu", l);
        for (size_t i = from; i < from + VARIANTS; i++)
            text_printf(t, " %12.6f", p->results[i].error[l]);
    }
    text_printf(t, "\n  perplexity  ");
    for (size_t i = from; i < from + VARIANTS; i++)
        text_printf(t, " %12.4f", p->results[i].perplexity);
    text_printf(t, "\n  change      ");
    for (size_t i = from; i < from + VARIANTS; i++)
        text_printf(t, " %11.2f%%", 100 * change(p, i));
    text_printf(t, "\n");
}

static void add_text(Text *t, const Precision *p)
{
    text_printf(t, "%zu tokens in windows of %zu; |h - h'| / |h| of every "
                "layer's output h\noutliers: 1 of %d tokens, or 1 of %d "
                "features, of every Linear layer's input, times 2^%d\n",
                p->tokens, p->ctx, (int)F8_BLOCK, (int)EVERY, (int)POWER);
    for (int kind = NONE; kind < KINDS; kind++)
        add_table(t, p, (Outliers)kind);
}

static void add_json(Text *t, const Precision *p)
{
    text_printf(t, "{\"tokens\": %zu, \"window\": %zu, \"variants\": [",
                p->tokens, p->ctx);
    for (size_t i = 0; i < RUNS; i++) {
        text_printf(t, "%s\n {\"name\": \"%s\", \"outliers\": \"%s\", "
                    "\"perplexity\": %.9g, \"change\": %.9g, \"error\": [",
                    i ? "," : "", variants[i % VARIANTS].name,
                    kinds[i / VARIANTS], p->results[i].perplexity,
                    change(p, i));
        for (size_t l = 0; l < p->layers; l++)
            text_printf(t, "%s%.9g", l ? ", " : "", p->results[i].error[l]);
        text_printf(t, "]}");
    }
    text_printf(t, "]}\n");
}

/* Whether a run has a line: not those that lose nothing, nor those that
 * outliers of tokens cannot reach. */
static bool is_drawn(size_t run)
{
    const Variant *v = &variants[run % VARIANTS];
    return v->fp8 && (v->activations || run / VARIANTS != TOKENS);
}

static int draw(const Precision *p, const Arguments *a, Error *err)
{
    static const char *const remarks[KINDS] = {
        "", ", outlier tokens", ", outlier features"};
    static const int dashes[KINDS] = {0, 2, 1};
    PlotLine lines[RUNS];
    char names[RUNS][80];
    double *x = allocate(p->layers, sizeof *x, "a picture", err);
    size_t n = 0;
    if (x == NULL)
        return -1;
    for (size_t l = 0; l < p->layers; l++)
        x[l] = (double)l;
    for (size_t i = 0; i < RUNS; i++) {
        if (!is_drawn(i))
            continue;
        snprintf(names[n], sizeof names[n], "%s%s",
                 variants[i % VARIANTS].label, remarks[i / VARIANTS]);
        lines[n] = (PlotLine){names[n], x, p->results[i].error, p->layers,
                              i % VARIANTS, dashes[i / VARIANTS]};
        n++;
    }
    Plot plot = {"Relative error of every layer's output", {"layer", false},
                 {"|h - h'| / |h|", true}, lines, n};
    int status = plot_write(&plot, a->output, a->force, err);
    free(x);
    return status;
}

static int print(const Precision *p, const Arguments *a, Error *err)
{
    Text t = {0};
    if (a->json)
        add_json(&t, p);
    else
        add_text(&t, p);
    int status = print_text(&t, err);
    text_free(&t);
    return status;
}

/* What cannot be written is known before the work is done. */
static int check_output(const Arguments *a, Error *err)
{
    OutFile out;
    if (a->output == NULL)
        return 0;
    if (out_open(&out, a->output, a->force, err) != 0)
        return -1;
    out_abort(&out);
    return 0;
}

static int prepare(Precision *p, const Arguments *a, Error *err)
{
    size_t bytes;
    p->file = a->line.operands[1];
    if (check_output(a, err) != 0 || run_open(&p->run, a, err) != 0
        || want_tokenizer(&p->run, "", err) != 0
        || read_text(&p->run, p->file, &p->run.prompt, &bytes, err) != 0)
        return -1;
    p->ctx = context(&p->run.model.config, a, 0, WINDOW);
    p->layers = p->run.model.config.num_hidden_layers;
    p->power = allocate(p->layers, sizeof *p->power, "layers", err);
    p->sums = allocate(RUNS * p->layers, sizeof *p->sums, "layers", err);
    for (size_t i = 0; i < RUNS && p->sums != NULL; i++)
        p->results[i].error = p->sums + i * p->layers;
    return p->power != NULL && p->sums != NULL ? 0 : -1;
}

int run_precision(const Arguments *a, Error *err)
{
    Precision p = {0};
    int status = prepare(&p, a, err);
    if (status == 0)
        status = run_all(&p, err);
    if (status == 0)
        status = print(&p, a, err);
    if (status == 0 && a->output != NULL)
        status = draw(&p, a, err);
    free(p.power);
    free(p.sums);
    free(p.stored);
    run_close(&p.run);
    return status;
}
