/* drafts.c: what drafts brought, and what they can bring: V3 §5.4.3.
 *
 * A run counts and times its steps; cost.c counts the bytes that a step reads.
 * Where reading takes the time, as in decoding on most machines, the second
 * predicts the first. */
#include "commands.h"

#include <inttypes.h>

/* After a run ------------------------------------------------------------- */

/* Of all drafts whose predecessors were accepted, how many were too. */
static double acceptance(const MtpStats *d)
{
    size_t tried = 0, accepted = 0;
    for (size_t j = 0; j < MAX_DRAFTS; j++) {
        tried += d->tried[j];
        accepted += d->accepted[j];
    }
    return tried > 0 ? (double)accepted / (double)tried : 0;
}

static size_t moe_layers(const Config *c)
{
    size_t n = 0;
    for (size_t l = 0; l < c->num_hidden_layers; l++)
        n += config_is_moe(c, l);
    return n;
}

/* Experts of a layer that a step's pass read; 0 in a model without. */
static double experts_read(const Run *r, uint64_t experts, size_t steps)
{
    size_t layers = moe_layers(&r->model.config);
    return layers > 0 ? (double)experts / (double)(steps * layers) : 0;
}

/* The steps of the run and its plain ones, half way through the text. */
static void run_steps(const Run *r, const GenerateStats *s, Step *step,
                      Step *plain)
{
    const MtpStats *d = &r->drafted;
    size_t half = s->new_tokens / 2, pos = r->session.pos;
    *plain = (Step){.batch = 1, .ctx = pos > half ? pos - half : 0};
    *step = *plain;
    step->drafts = r->mtp.drafts;
    step->acceptance = acceptance(d);
    step->experts = experts_read(r, d->step_experts, d->steps);
    plain->experts = experts_read(r, d->plain_experts, d->plain_steps);
}

static void print_speed(const Run *r, const GenerateStats *s)
{
    const MtpStats *d = &r->drafted;
    const Config *c = &r->model.config;
    DType dtype = checkpoint_dtype(c);
    double token = d->step_seconds / (double)d->tokens;
    Step step, plain;
    StepBytes bytes;
    run_steps(r, s, &step, &plain);
    double read = cost_step(&bytes, c, dtype, &plain) /
                  cost_step(&bytes, c, dtype, &step);
    fprintf(stderr, "; speed-up %.2f against %zu plain step%s, %.2f by bytes "
            "read", d->plain_seconds / (double)d->plain_steps / token,
            d->plain_steps, d->plain_steps == 1 ? "" : "s",
            read * cost_tokens(step.acceptance, step.drafts));
    if (step.experts > 0)
        fprintf(stderr, "; a layer's experts %.2f for %.2f", step.experts,
                plain.experts);
}

static void print_acceptance(const MtpStats *d, size_t K)
{
    fprintf(stderr, "drafts: %zu a step, %zu steps; accepted by position:", K,
            d->steps);
    for (size_t j = 0; j < K; j++)
        if (d->tried[j] > 0)
            fprintf(stderr, " %.1f %%", 100 * (double)d->accepted[j] /
                                        (double)d->tried[j]);
        else
            fprintf(stderr, " -");
    fprintf(stderr, "\n");
}

void print_drafts(const Run *r, const GenerateStats *s)
{
    const MtpStats *d = &r->drafted;
    size_t K = r->mtp.drafts;
    double a = acceptance(d);
    print_acceptance(d, K);
    if (d->steps > 0)
        fprintf(stderr, "tokens a step: %.2f; (1-a^%zu)/(1-a) = %.2f at a = "
                "%.1f %%\n", (double)d->tokens / (double)d->steps, K + 1,
                cost_tokens(a, K), 100 * a);
    fprintf(stderr, "time: %.1f %% in drafts",
            s->decode_seconds > 0
                ? 100 * d->draft_seconds / s->decode_seconds : 0);
    if (d->tokens > 0 && d->step_seconds > 0 && d->plain_steps > 0)
        print_speed(r, s);
    fprintf(stderr, "\n");
}

/* From the config alone ---------------------------------------------------- */

/* V3 §5.4.3: 85 to 90 %. */
static const double acceptances[] = {0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 1};
static const size_t batches[] = {1, 8, 64, 512, 4096};

enum {
    ACCEPTANCES = sizeof acceptances / sizeof acceptances[0],
    BATCHES = sizeof batches / sizeof batches[0]
};

#define SHOWN 0.85

static const struct {
    const char *name, *label;
    size_t offset;
} byte_rows[] = {
    {"weights", "weights but routed experts",
     offsetof(StepBytes, weights)},
    {"experts", "routed experts", offsetof(StepBytes, experts)},
    {"cache", "cache, F32", offsetof(StepBytes, cache)},
    {"modules", "modules, their caches", offsetof(StepBytes, modules)},
    {"heads", "a head for each draft", offsetof(StepBytes, heads)},
};

enum { BYTE_ROWS = sizeof byte_rows / sizeof byte_rows[0] };

static double bytes_of(const StepBytes *b, size_t row)
{
    return *(const double *)(const void *)((const char *)b +
                                           byte_rows[row].offset);
}

static void two_counts(Text *t, const char *label, double a, double b)
{
    text_printf(t, "  %-30s", label);
    add_count(t, (uint64_t)(a + 0.5), 18);
    add_count(t, (uint64_t)(b + 0.5), 18);
    text_printf(t, "\n");
}

static void text_bytes(Text *t, const Config *c, const Step *s)
{
    Step plain = {.batch = s->batch, .ctx = s->ctx};
    StepBytes a, b;
    double before = cost_step(&a, c, checkpoint_dtype(c), &plain);
    double after = cost_step(&b, c, checkpoint_dtype(c), s);
    text_printf(t, "\n%-32s%18s%12zu draft%s\n", "bytes that a step reads",
                "plain", s->drafts, s->drafts == 1 ? "" : "s");
    for (size_t row = 0; row < BYTE_ROWS; row++)
        two_counts(t, byte_rows[row].label, bytes_of(&a, row),
                   bytes_of(&b, row));
    two_counts(t, "all", before, after);
    text_printf(t, "  %-30s%18.2f%18.2f\n", "experts of a layer", a.distinct,
                b.distinct);
}

static void text_speed_ups(Text *t, const Config *c, Step s, const char *note)
{
    text_printf(t, "  %4zu%-18s", s.batch, note);
    for (size_t i = 0; i < ACCEPTANCES; i++) {
        s.acceptance = acceptances[i];
        text_printf(t, "%7.2f", cost_speed_up(c, checkpoint_dtype(c), &s));
    }
    text_printf(t, "\n");
}

void text_drafts(Text *t, const Config *c, size_t drafts, size_t ctx)
{
    Step s = {.drafts = drafts, .batch = 1, .ctx = ctx, .acceptance = SHOWN};
    text_bytes(t, c, &s);
    text_printf(t, "\nspeed-up by these bytes, drafts accepted\n  %-22s",
                "sequences at once");
    for (size_t i = 0; i < ACCEPTANCES; i++)
        text_printf(t, "%5.0f %%", 100 * acceptances[i]);
    text_printf(t, "\n");
    for (size_t i = 0; i < BATCHES; i++) {
        s.batch = batches[i];
        text_speed_ups(t, c, s, "");
    }
    s.batch = 1;
    s.experts = (double)c->num_experts_per_tok;
    if (c->n_routed_experts > 0)
        text_speed_ups(t, c, s, ", the same experts");
}

static void json_bytes(Text *t, const Config *c, const char *name, Step s)
{
    StepBytes b;
    cost_step(&b, c, checkpoint_dtype(c), &s);
    text_printf(t, "\"%s\": {", name);
    for (size_t row = 0; row < BYTE_ROWS; row++)
        text_printf(t, "\"%s\": %.17g, ", byte_rows[row].name,
                    bytes_of(&b, row));
    text_printf(t, "\"experts_of_a_layer\": %.17g}", b.distinct);
}

static void json_speed_ups(Text *t, const Config *c, Step s)
{
    for (size_t i = 0; i < BATCHES * ACCEPTANCES; i++) {
        s.batch = batches[i / ACCEPTANCES];
        s.acceptance = acceptances[i % ACCEPTANCES];
        text_printf(t, "%s{\"sequences\": %zu, \"acceptance\": %g, "
                    "\"speed_up\": %.17g}", i > 0 ? ",\n   " : "", s.batch,
                    s.acceptance, cost_speed_up(c, checkpoint_dtype(c), &s));
    }
}

void json_drafts(Text *t, const Config *c, size_t drafts, size_t ctx)
{
    Step s = {.batch = 1, .ctx = ctx, .acceptance = SHOWN};
    text_printf(t, ",\n \"step\": {\"drafts\": %zu, ", drafts);
    json_bytes(t, c, "plain", s);
    s.drafts = drafts;
    text_printf(t, ",\n  ");
    json_bytes(t, c, "drafted", s);
    text_printf(t, ",\n  \"speed_ups\": [\n   ");
    json_speed_ups(t, c, s);
    text_printf(t, "]}");
}
