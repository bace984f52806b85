/* model.c: how fast a model runs, warm, in one process.
 *
 *   model DIR WORK...    a line for each, beside the limit it runs against
 *   model DIR            the works come from stdin, a line each; one run of
 *                        each is answered with its seconds alone
 *
 *   decode:P             tokens one at a time from position P on: bytes of
 *                        weights and of cache against the read limit
 *   prefill:N            N tokens as one prompt: operations against the FMA
 *                        limit
 *   curve:N, naive:N     one prompt of N tokens, seen at N/16, N/8, … N;
 *                        absorbed, and naive with the prompt as one chunk
 *   draft:P              a step with one draft behind P tokens, against a
 *                        plain one and what the bytes they read make of it;
 *                        the model has an MTP module
 *   start:N              a fresh ./deepseek (or $DEEPSEEK) to its first token
 *                        after N, beyond what that prompt takes here
 *   memory:N             memory beside the mapped file at a context of N
 *
 * Every work runs once before it is timed. What a decoded token would have
 * found in the cache is random numbers: nothing that is timed depends on
 * them. */
#define _POSIX_C_SOURCE 200112L /* popen */
#include "limits.h"

#include "base/os.h"
#include "base/random.h"
#include "deepseek.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NEW = 32, SAMPLES = 5, LONG = 16384 };

typedef struct {
    const char *dir;
    Model model;
    Session session;
    SessionOptions options;  /* what the session was opened with */
    unsigned char *region;   /* to measure the read limit on */
    int32_t *ids;
    double table_bytes;      /* what opening the model took */
} Bench;

/* Stored bytes of a weight, scales included. */
static double stored_bytes(const Matrix *w)
{
    double bytes = (double)(w->rows * w->cols * dtype_size(w->dtype));
    size_t blocks = (w->rows + F8_BLOCK - 1) / F8_BLOCK
                    * ((w->cols + F8_BLOCK - 1) / F8_BLOCK);
    return w->scale == NULL ? bytes : bytes + 4 * (double)blocks;
}

/* Bytes of weights that one decoded token reads: of the embedding a row, of
 * the routed experts K of N. */
static double token_bytes(Model *m)
{
    const Config *c = &m->config;
    double bytes = stored_bytes(&m->lm_head);
    TensorWalk walk = tensor_walk(c, m);
    TensorInfo t;
    while (tensor_next(&walk, &t)) {
        bool table = t.kind == TENSOR_EMBED || t.kind == TENSOR_HEAD;
        if (t.mtp || table || t.slot == NULL || t.slot->data == NULL)
            continue;
        bytes += stored_bytes(t.slot)
                 * (t.routed ? (double)c->num_experts_per_tok
                               / (double)c->n_routed_experts : 1);
    }
    return bytes;
}

/* Bytes of cache that a token at position P reads. */
static double cache_bytes(const Config *c, size_t P)
{
    return (double)(c->num_hidden_layers * (P + 1) * sizeof(float)
                    * (c->kv_lora_rank + c->qk_rope_head_dim));
}

/* Operations of a prompt of n tokens: the head is computed for the last one
 * alone, and token t attends to t positions. */
static double prompt_flops(const Config *c, size_t n, bool naive)
{
    Costs costs;
    double head = 2.0 * (double)c->vocab_size * (double)c->hidden_size;
    double pairs = (double)n * ((double)n + 1) / 2;
    cost_count(&costs, c, DT_F32, 1);
    return (double)n * (costs.flops_weights - head) + head
           + pairs * (naive ? costs.flops_naive : costs.flops_absorbed);
}

/* A session with these options, the one at hand if it has them. */
static int want_session(Bench *b, size_t ctx, bool naive, Error *err)
{
    SessionOptions o = {.ctx = ctx, .naive = naive, .chunk = naive ? ctx : 0};
    if (b->session.model != NULL && b->options.ctx == ctx
        && b->options.naive == naive)
        return 0;
    session_close(&b->session);
    b->options = o;
    return session_open(&b->session, &b->model, &o, err);
}

static void fill_cache(Session *s, size_t positions)
{
    enum { N = 8192 };
    const Config *c = &s->model->config;
    size_t width = c->kv_lora_rank + c->qk_rope_head_dim;
    float block[N];
    Random r = random_seeded(1);
    random_normal(&r, block, N, 1);
    for (size_t l = 0; l < c->num_hidden_layers; l++) {
        float *layer = s->cache + l * s->options.ctx * width;
        for (size_t i = 0; i < positions * width; i += N)
            memcpy(layer + i, block, sizeof(float)
                   * (positions * width - i < N ? positions * width - i : N));
    }
}

/* Processor seconds of n tokens as a prompt behind the first pos. */
static int run_prompt(Bench *b, size_t pos, size_t n, double *seconds,
                      Error *err)
{
    double start = cpu_seconds();
    b->session.pos = pos;
    if (session_forward(&b->session, b->ids + pos % NEW, n, NULL, err) != 0)
        return -1;
    *seconds = cpu_seconds() - start;
    return 0;
}

/* Likewise one at a time. */
static int run_tokens(Bench *b, size_t pos, size_t n, double *seconds,
                      Error *err)
{
    double start = cpu_seconds();
    b->session.pos = pos;
    for (size_t i = 0; i < n; i++)
        if (session_forward(&b->session, b->ids + i, 1, NULL, err) != 0)
            return -1;
    *seconds = cpu_seconds() - start;
    return 0;
}

static double share_of_read(const Bench *b, double bytes, double seconds)
{
    return bytes / seconds / read_limit(b->region, REGION);
}

static int decode(Bench *b, size_t P, Error *err)
{
    double seconds[SAMPLES], share[SAMPLES], once, s;
    size_t n = P < LONG ? NEW : 4;
    double weights = token_bytes(&b->model);
    double cache = cache_bytes(&b->model.config, P + n / 2);
    if (want_session(b, P + n, false, err) != 0)
        return -1;
    fill_cache(&b->session, P);
    if (run_tokens(b, P, n, &once, err) != 0)
        return -1;
    for (size_t i = 0; i < SAMPLES; i++) {
        if (run_tokens(b, P, n, &seconds[i], err) != 0)
            return -1;
        share[i] = share_of_read(b, weights + cache, seconds[i] / (double)n);
    }
    s = median(seconds, SAMPLES) / (double)n;
    printf("decode at %-7zu %9.2f tok/s  %8.2f ms  %6.1f MB weights  "
           "%7.1f MB cache  %5.1f GB/s  %.2f of reading\n", P, 1 / s, 1e3 * s,
           weights / 1e6, cache / 1e6, (weights + cache) / s / 1e9,
           median(share, SAMPLES));
    return 0;
}

static void print_prompt(const char *what, size_t n, double seconds,
                         double flops, double share)
{
    printf("%-7s of %-6zu %9.2f tok/s  %8.1f ms  %6.1f GFLOP/s  "
           "%.2f of FMA\n", what, n, (double)n / seconds, 1e3 * seconds,
           flops / seconds / 1e9, share);
}

static int prefill(Bench *b, size_t n, Error *err)
{
    double seconds[SAMPLES], share[SAMPLES], once;
    double flops = prompt_flops(&b->model.config, n, false);
    if (want_session(b, n + NEW, false, err) != 0
        || run_prompt(b, 0, n, &once, err) != 0)
        return -1;
    for (size_t i = 0; i < SAMPLES; i++) {
        double limit = fma_limit();
        if (run_prompt(b, 0, n, &seconds[i], err) != 0)
            return -1;
        share[i] = flops / seconds[i] / limit;
    }
    print_prompt("prefill", n, median(seconds, SAMPLES), flops,
                 median(share, SAMPLES));
    return 0;
}

static int curve(Bench *b, size_t n, bool naive, Error *err)
{
    double total = 0, more, limit = fma_limit();
    const Config *c = &b->model.config;
    if (want_session(b, n, naive, err) != 0
        || run_prompt(b, 0, n / 16, &more, err) != 0)
        return -1;
    for (size_t to = n / 16, from = 0; to <= n; from = to, to *= 2) {
        double flops = prompt_flops(c, to, naive);
        if (run_prompt(b, from, to - from, &more, err) != 0)
            return -1;
        total += more;
        print_prompt(naive ? "naive" : "prompt", to, total, flops,
                     flops / total / limit);
        fflush(stdout);
    }
    return 0;
}

static int take(void *context, int32_t id, Error *err)
{
    (void)context, (void)id, (void)err;
    return 0;
}

static size_t moe_layers(const Config *c)
{
    size_t n = 0;
    for (size_t l = 0; l < c->num_hidden_layers; l++)
        n += config_is_moe(c, l);
    return n;
}

/* Bytes of a step with one draft over those of a plain one, with the experts
 * that the main model read in them. */
static double bytes_ratio(const Config *c, const MtpStats *d, size_t ctx)
{
    double layers = (double)moe_layers(c);
    DType dtype = c->fp8 ? DT_F8_E4M3 : c->torch_dtype;
    Step plain = {.batch = 1, .ctx = ctx}, step;
    StepBytes bytes;
    step = plain;
    step.drafts = 1;
    step.acceptance = (double)d->accepted[0] / (double)d->tried[0];
    if (layers > 0) {
        plain.experts = (double)d->plain_experts
                        / ((double)d->plain_steps * layers);
        step.experts = (double)d->step_experts / ((double)d->steps * layers);
    }
    return cost_step(&bytes, c, dtype, &step)
           / cost_step(&bytes, c, dtype, &plain);
}

/* By the wall's clock, which a generation times its steps with. */
static int draft_steps(Bench *b, Mtp *m, size_t P, size_t n, Error *err)
{
    double plain[SAMPLES], step[SAMPLES], ratio[SAMPLES], share[SAMPLES];
    GenerateOptions o = {.sampler = {0, 0, 1}, .n = n,
                         .vocabulary = b->model.config.vocab_size};
    MtpStats all = {0};
    for (size_t i = 0; i < SAMPLES; i++) {
        GenerateStats s;
        MtpStats d = all;
        mtp_rewind(m, 0);
        if (mtp_generate(m, b->ids, P, &o, take, NULL, &s, &all, err) != 0)
            return -1;
        plain[i] = (all.plain_seconds - d.plain_seconds)
                   / (double)(all.plain_steps - d.plain_steps);
        step[i] = (all.step_seconds - d.step_seconds)
                  / (double)(all.steps - d.steps);
        ratio[i] = step[i] / plain[i];
        share[i] = (all.draft_seconds - d.draft_seconds) / s.decode_seconds;
    }
    printf("draft at %-8zu plain step %.2f ms, with a draft %.2f ms: %.2f "
           "times, %.2f by bytes; %.0f %% in drafts\n", P,
           1e3 * median(plain, SAMPLES), 1e3 * median(step, SAMPLES),
           median(ratio, SAMPLES),
           bytes_ratio(&b->model.config, &all, P + n / 2),
           100 * median(share, SAMPLES));
    return 0;
}

static int draft(Bench *b, size_t P, Error *err)
{
    enum { STEPS = 66 };  /* five of them plain */
    SessionOptions o = {.ctx = P + 2 * STEPS};
    Session s;
    Mtp m;
    if (mtp_options(&o, &b->model, 1, err) != 0
        || session_open(&s, &b->model, &o, err) != 0)
        return -1;
    int status = mtp_open(&m, &s, 1, false, err);
    if (status == 0)
        status = draft_steps(b, &m, P, STEPS, err);
    mtp_close(&m);
    session_close(&s);
    return status;
}

/* Has read what the command prints; seconds: until its first byte. */
static int first_byte(const char *command, double *seconds)
{
    double start = os_seconds();
    FILE *p = popen(command, "r");
    int c = p != NULL ? getc(p) : EOF;
    *seconds = os_seconds() - start;
    bool any = c != EOF;
    while (c != EOF)
        c = getc(p);
    return p == NULL || pclose(p) != 0 || !any ? -1 : 0;
}

/* deepseek DIR with the first n ids, to its first token. */
static int first_token(const Bench *b, size_t n, double *seconds, Error *err)
{
    const char *program = getenv("DEEPSEEK");
    Text t = {0};
    int status = -1;
    text_printf(&t, "%s generate '%s' -n 1 --print-ids --temp 0 --ids ",
                program != NULL ? program : "./deepseek", b->dir);
    for (size_t i = 0; i < n; i++)
        text_printf(&t, "%s%d", i > 0 ? "," : "", (int)b->ids[i]);
    text_printf(&t, " 2>/dev/null");
    if (!t.failed)
        status = first_byte(t.text, seconds);
    text_free(&t);
    return status == 0 ? 0 : fail(err, "%s: generate failed", b->dir);
}

/* By the wall's clock: what a user waits for. */
static int start(Bench *b, size_t n, Error *err)
{
    double fresh[SAMPLES], beyond[SAMPLES], s;
    if (want_session(b, n, false, err) != 0
        || run_prompt(b, 0, n, &s, err) != 0)
        return -1;
    for (size_t i = 0; i < SAMPLES; i++) {
        double begin = os_seconds();
        if (run_prompt(b, 0, n, &s, err) != 0)
            return -1;
        beyond[i] = begin - os_seconds();
        if (first_token(b, n, &fresh[i], err) != 0)
            return -1;
        beyond[i] += fresh[i];
    }
    printf("start to token  %9.1f ms, %.1f ms beyond a warm prefill of %zu\n",
           1e3 * median(fresh, SAMPLES), 1e3 * median(beyond, SAMPLES), n);
    return 0;
}

/* A whole context with a full chunk at its end, so that every page of every
 * buffer is touched. */
static int memory(Bench *b, size_t n, Error *err)
{
    SessionOptions o = {.ctx = n};
    size_t last = n < 128 ? n : 128;
    double before, s;
    session_close(&b->session);
    before = anonymous_memory();
    if (want_session(b, n, false, err) != 0)
        return -1;
    fill_cache(&b->session, n - last);
    if (run_prompt(b, n - last, last, &s, err) != 0)
        return -1;
    printf("memory at %-6zu %9.1f MB by the formula, %.1f MB measured; "
           "%.1f MB for the table of tensors\n", n,
           (double)session_bytes(&b->model.config, &o) / 1e6,
           (anonymous_memory() - before) / 1e6, b->table_bytes / 1e6);
    return 0;
}

/* "decode:128" -> the length of its name, and 128. */
static int parse(const char *work, size_t *name, size_t *n, Error *err)
{
    char *end;
    *name = strcspn(work, ":");
    *n = work[*name] ? (size_t)strtoul(work + *name + 1, &end, 10) : 0;
    if (*n < 1 || *n > 1 << 20 || (*end && *end != '\n'))
        return fail(err, "%s: wanted a work like decode:128", work);
    return 0;
}

static bool is(const char *work, size_t length, const char *name)
{
    return strlen(name) == length && strncmp(work, name, length) == 0;
}

static int run_work(Bench *b, const char *work, Error *err)
{
    size_t name, n;
    int status;
    if (parse(work, &name, &n, err) != 0)
        return -1;
    status = is(work, name, "decode") ? decode(b, n, err)
             : is(work, name, "prefill") ? prefill(b, n, err)
             : is(work, name, "curve") ? curve(b, n, false, err)
             : is(work, name, "naive") ? curve(b, n, true, err)
             : is(work, name, "draft") ? draft(b, n, err)
             : is(work, name, "start") ? start(b, n, err)
             : is(work, name, "memory") ? memory(b, n, err)
             : fail(err, "%s: no such work", work);
    fflush(stdout);
    return status;
}

/* For a program that runs a peer in turn. */
static int answer(Bench *b, const char *work, Error *err)
{
    size_t name, n;
    double seconds;
    if (parse(work, &name, &n, err) != 0
        || want_session(b, n + NEW, false, err) != 0)
        return -1;
    if (is(work, name, "decode") ? run_tokens(b, n, NEW, &seconds, err)
                                 : run_prompt(b, 0, n, &seconds, err))
        return -1;
    printf("%.9f\n", seconds);
    fflush(stdout);
    return 0;
}

static int run_works(Bench *b, char **works, Error *err)
{
    char line[64];
    int status = 0;
    if (*works == NULL)
        while (status == 0 && fgets(line, sizeof line, stdin) != NULL)
            status = answer(b, line, err);
    while (status == 0 && *works != NULL)
        status = run_work(b, *works++, err);
    return status;
}

static int bench_open(Bench *b, const char *dir, Error *err)
{
    enum { IDS = (1 << 20) + NEW };
    double before = anonymous_memory();
    b->dir = dir;
    if (model_open(&b->model, dir, err) != 0)
        return -1;
    b->table_bytes = anonymous_memory() - before;
    b->region = allocate(REGION, 1, "read limit", err);
    b->ids = allocate(IDS, sizeof *b->ids, "ids", err);
    if (b->region == NULL || b->ids == NULL)
        return -1;
    memset(b->region, 1, REGION);
    for (size_t i = 0; i < IDS; i++)
        b->ids[i] = (int32_t)(7919 * (i + 1) % b->model.config.vocab_size);
    return 0;
}

int main(int argc, char **argv)
{
    Bench b = {0};
    Error err;
    int status = argc < 2 ? fail(&err, "usage: model DIR [WORK...]")
                          : bench_open(&b, argv[1], &err);
    if (status == 0)
        status = run_works(&b, argv + 2, &err);
    if (status != 0)
        fprintf(stderr, "%s\n", err.text);
    session_close(&b.session);
    model_close(&b.model);
    free(b.region), free(b.ids);
    return status != 0;
}
