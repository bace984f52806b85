/* fp8.c: the command that measures what few bits cost: sums of FP8 products as
 * Hopper's tensor cores form them (V3 §3.3.2), and a model's activations in
 * the formats they might be stored or sent in (V3 §3.3.3; the hardware paper,
 * §3.2). */
#include "commands.h"

#include "../base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Accumulation ------------------------------------------------------------ */

enum { SIDE = 16, LEAST_K = 256, STEPS = 5, MOST_K = LEAST_K << (STEPS - 1) };

static const struct {
    const char *name;
    Fp8Accumulation how;
} sums[] = {
    {"F32, this program's order", {FP8_LANES, false, false}},
    {"register apart, toward 0", {FP8_APART, false, true}},
    {"  promoted every 128", {FP8_APART, false, false}},
    {"register aligned, toward 0", {FP8_TOGETHER, false, true}},
    {"  promoted every 128", {FP8_TOGETHER, false, false}},
    {"register aligned, shifted", {FP8_TOGETHER, true, true}},
    {"  promoted every 128", {FP8_TOGETHER, true, false}},
};

enum { SUMS = sizeof sums / sizeof *sums };

typedef enum { UNIT, CENTRED, NORMAL, KINDS } Kind;

static const char *const kinds[KINDS] = {
    "uniform in [0, 1)", "uniform in [-1, 1)", "normal"};

/* A and B (SIDE, MOST_K), of which K columns are used at a time, each under
 * one scale, a power of two. */
typedef struct {
    float *x, *values;
    uint8_t *codes, *weights;
    float scales[SIDE * (MOST_K / F8_BLOCK)], weight_scales[MOST_K / F8_BLOCK];
    double exact[SIDE * SIDE];
    float c[SIDE * SIDE];
} Operands;

static void fill(float *x, size_t n, Kind kind, Random *random)
{
    if (kind == NORMAL)
        random_normal(random, x, n, 1);
    for (size_t i = 0; kind != NORMAL && i < n; i++)
        x[i] = random_uniform(random) * (kind == CENTRED ? 2.0f : 1.0f)
               - (kind == CENTRED ? 1.0f : 0.0f);
}

static void quantize(Operands *o, Fp8Acts *a, Matrix *b, size_t K, Kind kind,
                     Random *random)
{
    fill(o->x, SIDE * K, kind, random);
    fp8_activations(a, o->x, K, SIDE, K);
    fill(o->x, SIDE * K, kind, random);
    fp8_quantize(o->weights, o->weight_scales, o->x, K, SIDE, K, FP8_TENSOR,
                 true);
    for (size_t i = 1; i < K / F8_BLOCK; i++)
        o->weight_scales[i] = o->weight_scales[0];
    b->cols = b->stride = K;
}

/* The products of codes are exact in double, and so is their sum. */
static void sum_exactly(Operands *o, size_t K)
{
    double scale = (double)(o->scales[0] * o->weight_scales[0]);
    for (size_t i = 0; i < SIDE * SIDE; i++) {
        const float *a = o->values + i / SIDE * K;
        const uint8_t *b = o->weights + i % SIDE * K;
        double sum = 0;
        for (size_t k = 0; k < K; k++)
            sum += (double)a[k] * (double)f32_from_f8(b[k]);
        o->exact[i] = sum * scale;
    }
}

/* Errors of the elements in percent of the elements' root mean square. */
typedef struct {
    double off, mean, worst;    /* root mean square, mean, greatest */
} Deviation;

static Deviation compare(const Operands *o)
{
    double square = 0, error = 0, sum = 0, most = 0, unit;
    for (size_t i = 0; i < SIDE * SIDE; i++) {
        double e = (double)o->c[i] - o->exact[i];
        square += o->exact[i] * o->exact[i];
        error += e * e;
        sum += e;
        most = fabs(e) > most ? fabs(e) : most;
    }
    unit = sqrt(square / (SIDE * SIDE)) / 100;
    return (Deviation){sqrt(error / (SIDE * SIDE)) / unit,
                       sum / (SIDE * SIDE) / unit, most / unit};
}

static int measure_sums(Text *t, Operands *o, Kind kind, Random *random,
                        Error *err)
{
    Fp8Acts a = {.scope = FP8_TENSOR, .ue8m0 = true, .codes = o->codes,
                 .values = o->values, .scales = o->scales};
    Matrix b = {.data = o->weights, .dtype = DT_F8_E4M3, .rows = SIDE,
                .scale = o->weight_scales};
    Deviation found[SUMS][STEPS];
    for (size_t step = 0; step < STEPS; step++) {
        quantize(o, &a, &b, (size_t)LEAST_K << step, kind, random);
        sum_exactly(o, b.cols);
        for (size_t i = 0; i < SUMS; i++) {
            fp8_gemm(o->c, SIDE, &a, SIDE, &b, sums[i].how);
            found[i][step] = compare(o);
        }
    }
    text_printf(t, "%s\n", kinds[kind]);
    for (size_t i = 0; i < SUMS; i++) {
        text_printf(t, "  %-26s", sums[i].name);
        for (size_t step = 0; step < STEPS; step++)
            text_printf(t, " %8.4f", found[i][step].off);
        text_printf(t, " %9.4f %8.4f\n", found[i][STEPS - 1].mean,
                    found[i][STEPS - 1].worst);
    }
    return print_text(t, err);
}

static int measure_accumulation(Operands *o, uint64_t seed, Error *err)
{
    Random random = random_seeded(seed);
    Text t = {0};
    int status = 0;
    text_printf(&t, "error of %d dot products of E4M3 codes, %% of their root"
                " mean square\n%91s\n%27s", SIDE * SIDE, "at K = 4096", "K");
    for (size_t step = 0; step < STEPS; step++)
        text_printf(&t, " %*zu", step ? 8 : 9, (size_t)LEAST_K << step);
    text_printf(&t, " %9s %8s\n", "mean", "worst");
    for (int kind = 0; status == 0 && kind < KINDS; kind++)
        status = measure_sums(&t, o, (Kind)kind, &random, err);
    text_free(&t);
    return status;
}

static int run_accumulation(const Arguments *a, Error *err)
{
    static const char what[] = "two matrices";
    size_t n = SIDE * MOST_K;
    Operands *o = allocate(1, sizeof *o, what, err);
    int status = -1;
    if (o != NULL
        && (o->x = allocate(n, sizeof *o->x, what, err)) != NULL
        && (o->values = allocate(n, sizeof *o->values, what, err)) != NULL
        && (o->codes = allocate(n, 1, what, err)) != NULL
        && (o->weights = allocate(n, 1, what, err)) != NULL)
        status = measure_accumulation(o, a->seed, err);
    if (o != NULL) {
        free(o->x);
        free(o->values);
        free(o->codes);
        free(o->weights);
    }
    free(o);
    return status;
}

/* Formats ----------------------------------------------------------------- */

enum { TILE = 128, WINDOW = 512 };

static const struct {
    const char *name;
    const FloatFormat *format;  /* NULL: LogFMT of `log_bits` */
    bool scaled, ue8m0;
    int log_bits;
    double bits;                /* a number, its share of the scale with it */
} formats[] = {
    {"E4M3", &E4M3, true, false, 0, 8 + 32.0 / TILE},
    {"E4M3 ue8m0", &E4M3, true, true, 0, 8 + 8.0 / TILE},
    {"E5M2", &E5M2, true, false, 0, 8 + 32.0 / TILE},
    {"E5M6 ue8m0", &E5M6, true, true, 0, 12 + 8.0 / TILE},
    {"LogFMT-6", NULL, true, false, 6, 6 + 64.0 / TILE},
    {"LogFMT-8", NULL, true, false, 8, 8 + 64.0 / TILE},
    {"LogFMT-10", NULL, true, false, 10, 10 + 64.0 / TILE},
    {"BF16", &BF16, false, false, 0, 16},
};

enum { FORMATS = sizeof formats / sizeof *formats };

/* What is stored or sent, and the stages of a trace that are it. */
typedef enum {
    ATTENTION, SWIGLU_IN, SWIGLU_OUT, DISPATCH, COMBINE, PLACES
} Place;

static const char *const places[PLACES] = {
    "o_proj in", "SwiGLU in", "SwiGLU out", "dispatch", "combine"};

static const struct {
    const char *name;
    Place place;
} stages[] = {
    {".self_attn.o", ATTENTION},
    {".mlp.gate_proj", SWIGLU_IN},
    {".mlp.up_proj", SWIGLU_IN},
    {".mlp.shared_experts.gate_proj", SWIGLU_IN},
    {".mlp.shared_experts.up_proj", SWIGLU_IN},
    {".mlp.h", SWIGLU_OUT},
    {".mlp.shared_experts.h", SWIGLU_OUT},
    {".post_attention_layernorm", DISPATCH},
    {".mlp.routed_out", COMBINE},
};

typedef struct {
    double square, error;       /* Σ x², Σ (y - x)² */
    double size, bias;          /* Σ |x|, Σ |y| - |x| */
} Loss;

typedef struct {
    const Config *config;
    size_t numbers[PLACES];
    Loss loss[FORMATS][PLACES];
} Losses;

static void store_and_load(float *y, const float *x, size_t n, size_t format)
{
    const FloatFormat *f = formats[format].format;
    uint16_t codes[TILE];
    LogTile tile;
    float s = 1;
    if (f == NULL) {
        logfmt_encode(codes, &tile, x, n, formats[format].log_bits);
        logfmt_decode(y, codes, &tile, n);
    } else if (formats[format].scaled) {
        tile_encode(codes, &s, x, n, f, formats[format].ue8m0);
        tile_decode(y, codes, s, n, f);
    } else {
        for (size_t i = 0; i < n; i++)
            y[i] = format_decode(f, format_encode(f, x[i]));
    }
}

static void add_tile(Losses *losses, Place place, const float *x, size_t n)
{
    float y[TILE];
    losses->numbers[place] += n;
    for (size_t i = 0; i < FORMATS; i++) {
        Loss *c = &losses->loss[i][place];
        store_and_load(y, x, n, i);
        for (size_t k = 0; k < n; k++) {
            double v = (double)x[k], e = (double)y[k] - v;
            c->square += v * v;
            c->error += e * e;
            c->size += fabs(v);
            c->bias += fabs((double)y[k]) - fabs(v);
        }
    }
}

/* The stage of a trace that this is; -1 where it is none of ours. Dense layers
 * send nothing. */
static int place_of(const Config *c, const char *name)
{
    static const char before[] = "model.layers.";
    char *rest;
    size_t layer, i = 0, n = sizeof stages / sizeof *stages;
    if (strncmp(name, before, strlen(before)) != 0)
        return -1;
    layer = strtoul(name + strlen(before), &rest, 10);
    while (i < n && strcmp(rest, stages[i].name) != 0)
        i++;
    if (i == n || (stages[i].place == DISPATCH && !config_is_moe(c, layer)))
        return -1;
    return (int)stages[i].place;
}

static int add_stage(void *context, const char *name, DType type,
                     const void *values, int rank, const size_t *shape,
                     Error *err)
{
    Losses *losses = context;
    const float *x = values;
    int place = place_of(losses->config, name);
    size_t cols = 1;
    (void)type;                 /* our stages are F32 */
    if (place < 0)
        return 0;
    for (int i = 1; i < rank; i++)
        cols *= shape[i];
    for (size_t i = 0; i < shape[0] * cols; i++)
        if (!isfinite(x[i]))
            return fail(err, "%s: element (%zu, %zu) is not a finite number",
                        name, i / cols, i % cols);
    for (size_t r = 0; r < shape[0]; r++)
        for (size_t k = 0; k < cols; k += TILE)
            add_tile(losses, (Place)place, x + r * cols + k,
                     cols - k < TILE ? cols - k : TILE);
    return 0;
}

static void print_loss(Text *t, const Loss *c)
{
    if (c->size > 0)
        text_printf(t, "  %6.3f %6.3f", 100 * sqrt(c->error / c->square),
                    100 * c->bias / c->size);
    else
        text_printf(t, "  %6s %6s", "-", "-");
}

static int print_losses(const Losses *losses, Error *err)
{
    Text t = {0};
    text_printf(&t, "%-10s %6s", "", "bits");
    for (size_t p = 0; p < PLACES; p++)
        text_printf(&t, "  %13s", places[p]);
    text_printf(&t, "\n%17s", "numbers");
    for (size_t p = 0; p < PLACES; p++)
        text_printf(&t, "  %13zu", losses->numbers[p]);
    text_printf(&t, "\n%17s", "");
    for (size_t p = 0; p < PLACES; p++)
        text_printf(&t, "  %6s %6s", "off %", "bias %");
    for (size_t i = 0; i < FORMATS; i++) {
        text_printf(&t, "\n%-10s %6.2f", formats[i].name, formats[i].bits);
        for (size_t p = 0; p < PLACES; p++)
            print_loss(&t, &losses->loss[i][p]);
    }
    text_printf(&t, "\n");
    int status = print_text(&t, err);
    text_free(&t);
    return status;
}

/* Window by window of the context: what stands before one is not seen. */
static int measure_ids(Run *r, const Arguments *a, Error *err)
{
    Losses losses = {.config = &r->model.config};
    const IdList *ids = &r->prompt;
    size_t most = ids->n < WINDOW ? ids->n : WINDOW;
    Trace *trace = trace_to(add_stage, &losses, NULL, err);
    int status = trace == NULL ? -1 : 0;
    if (status == 0)
        status = open_session(r, a, most, false, trace, err);
    for (size_t i = 0; status == 0 && i < ids->n;) {
        size_t ctx = r->session.options.ctx, left = ids->n - i;
        size_t n = left < ctx ? left : ctx;
        session_rewind(&r->session, 0);
        status = session_forward(&r->session, ids->ids + i, n, "formats",
                                 err);
        i += n;
    }
    if (status == 0)
        status = trace_close(trace, err);
    else
        trace_abort(trace);
    return status == 0 ? print_losses(&losses, err) : -1;
}

static int read_ids(Run *r, const char *path, Error *err)
{
    int32_t bos = first_id(r->tokenizer);
    size_t bytes;
    if (bos >= 0 && ids_add(&r->prompt, bos, err) != 0)
        return -1;
    return read_text(r, path, &r->prompt, &bytes, err);
}

static int run_formats(const Arguments *a, Error *err)
{
    Arguments rest = *a;
    Run r = {0};
    rest.line.operands++;
    rest.line.n_operands--;
    int status = run_open(&r, &rest, err);
    if (status == 0)
        status = want_tokenizer(&r, "", err);
    if (status == 0)
        status = read_ids(&r, rest.line.operands[1], err);
    if (status == 0)
        status = measure_ids(&r, a, err);
    run_close(&r);
    return status;
}

int run_fp8(const Arguments *a, Error *err)
{
    const char *what = a->line.operands[0];
    bool seeded = given(a, O_SEED);
    bool modelled = given(a, O_MLA) || given(a, O_FP8) || given(a, O_CTX)
                    || given(a, O_CHUNK) || given(a, O_READING);
    if (strcmp(what, "accumulation") == 0 && a->line.n_operands == 1)
        return modelled ? fail(err, "fp8 accumulation has no model and takes"
                               " no option of one") : run_accumulation(a, err);
    if (strcmp(what, "formats") == 0 && a->line.n_operands == 3)
        return seeded ? fail(err, "fp8 formats draws no numbers and takes no"
                             " --seed") : run_formats(a, err);
    return fail(err, "fp8: wanted 'accumulation' or 'formats DIR FILE', found"
                " '%.40s' and %zu more", what, a->line.n_operands - 1);
}
