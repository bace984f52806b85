/* train.c: how fast a step of training is.
 *
 *   train DIR SEQUENCES T [MICRO_BATCH]   a line: tokens a second, the share
 *                                         of the FMA limit, memory
 *   train DIR SEQUENCES T MICRO_BATCH -   one step for each line of stdin,
 *                                         answered with its seconds
 *   train DIR SEQUENCES T memory          a line for each option: memory beside
 *                                         the mapped files
 *
 * The directory's weights, random ids, AdamW, all that a run has; with and
 * without recomputation. Operations are three times those of the forward pass,
 * a product counting two an element. */
#include "limits.h"

#include "base/os.h"
#include "base/random.h"
#include "deepseek.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 5 };

typedef struct {
    Random random;
    size_t T, V;
} Source;

static int draw(void *context, int32_t *ids, Error *err)
{
    Source *s = context;
    (void)err;
    for (size_t t = 0; t <= s->T; t++)
        ids[t] = (int32_t)(random_u64(&s->random) % s->V);
    return 0;
}

static double operations(const Config *c, size_t T)
{
    Costs costs;
    cost_count(&costs, c, DT_F32, T / 2);
    return 3 * (costs.flops_weights + costs.flops_naive);
}

static double timed_step(Trainer *t, Source *s)
{
    Error err;
    StepReport r;
    double start = cpu_seconds();
    if (train_step(t, draw, s, &r, &err)) {
        fprintf(stderr, "train: %s\n", err.text);
        exit(1);
    }
    return cpu_seconds() - start;
}

static void must_open(Trainer *t, const Model *m, const TrainSettings *s)
{
    Error err;
    if (train_open(t, m, s, &err)) {
        fprintf(stderr, "train: %s\n", err.text);
        exit(1);
    }
}

static void measure(const Model *m, TrainSettings *s, size_t sequences,
                    bool recompute)
{
    Trainer t;
    double rates[SAMPLES], shares[SAMPLES];
    double tokens = (double)(sequences * s->sequence_length);
    Source source = {random_seeded(1), s->sequence_length,
                     m->config.vocab_size};
    s->recompute = recompute;
    must_open(&t, m, s);
    timed_step(&t, &source);
    for (size_t i = 0; i < SAMPLES; i++) {
        double limit = fma_limit();
        rates[i] = tokens / timed_step(&t, &source);
        shares[i] = rates[i] * operations(&m->config, s->sequence_length)
                    / limit;
    }
    printf("step of %zu x %zu %10.0f tok/s   %.2f of FMA   %7.1f MB   %s\n",
           sequences, s->sequence_length, median(rates, SAMPLES),
           median(shares, SAMPLES),
           (double)train_bytes(&m->config, s) / 1e6,
           recompute ? "recomputed" : "kept");
    train_close(&t);
}

static void answer(const Model *m, TrainSettings *s)
{
    Trainer t;
    Source source = {random_seeded(1), s->sequence_length,
                     m->config.vocab_size};
    must_open(&t, m, s);
    timed_step(&t, &source);
    for (int c; (c = getchar()) != EOF;)
        if (c == '\n') {
            printf("%.9f\n", timed_step(&t, &source));
            fflush(stdout);
        }
    train_close(&t);
}

/* Steps that touch all there is. */
static void memory(const Model *m, const TrainSettings *s, const char *what)
{
    Trainer t;
    Source source = {random_seeded(1), s->sequence_length,
                     m->config.vocab_size};
    double before = anonymous_memory();
    must_open(&t, m, s);
    timed_step(&t, &source);
    printf("memory of %zu x %zu %8.1f MB by the formula, %.1f MB measured: "
           "%s\n", schedule_sequences(&s->batch_size, 0), s->sequence_length,
           (double)train_bytes(&m->config, s) / 1e6,
           (anonymous_memory() - before) / 1e6, what);
    train_close(&t);
}

static void memory_of_each(const Model *m, const TrainSettings *s)
{
    TrainSettings o = *s, all = *s;
    memory(m, s, "all kept, F32 moments");
    o.recompute = all.recompute = true;
    memory(m, &o, "recomputed");
    o = *s;
    o.moments = all.moments = DT_BF16;
    memory(m, &o, "BF16 moments");
    o = *s;
    o.ema_decay = 0.999;
    memory(m, &o, "moving average");
    o = *s;
    o.micro_batch = all.micro_batch = 1;
    memory(m, &o, "passes of one sequence");
    memory(m, &all, "recomputed, BF16 moments, passes of one sequence");
}

int main(int argc, char **argv)
{
    Model m;
    Error err;
    bool of_memory = argc == 5 && strcmp(argv[4], "memory") == 0;
    TrainSettings s = {.total_tokens = UINT64_MAX, .clip = 1,
                       .adamw = {0.9, 0.95, 1e-8, 0.1}, .moments = DT_F32,
                       .devices = 1, .device_limit = 1};
    if (argc < 4 || argc > 6) {
        fprintf(stderr,
                "usage: train DIR SEQUENCES T [MICRO_BATCH [-]|memory]\n");
        return 2;
    }
    size_t sequences = strtoul(argv[2], NULL, 10);
    s.sequence_length = strtoul(argv[3], NULL, 10);
    s.micro_batch = argc > 4 && !of_memory ? strtoul(argv[4], NULL, 10) : sequences;
    s.batch_size = schedule_constant((double)sequences);
    s.learning_rate = schedule_constant(1e-4);
    s.mtp_lambda = schedule_constant(0.3);
    s.gamma = schedule_constant(0.001);
    for (size_t i = 0; i < BALANCE_LOSSES; i++)
        s.alpha[i] = schedule_constant(i == BALANCE_SEQUENCE ? 1e-4 : 0);
    if (model_open(&m, argv[1], &err)) {
        fprintf(stderr, "train: %s\n", err.text);
        return 1;
    }
    if (of_memory) {
        memory_of_each(&m, &s);
    } else if (argc == 6) {
        answer(&m, &s);
    } else {
        measure(&m, &s, sequences, false);
        measure(&m, &s, sequences, true);
    }
    model_close(&m);
    return 0;
}
