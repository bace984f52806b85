/* train.c: a step of pre-training ---------------------- V2 §3.1, V3 §4.2
 *
 * A step takes the sequences that the batch schedule says, in passes of
 * micro_batch, which add up one gradient. Then, in this order: the norm of the
 * gradient over all tensors, in the order of the table; AdamW on each, clipped;
 * the moving average; the gates' bias from the loads of the whole step. All
 * rates are those of the tokens seen before the step.
 *
 * Invariants: a step depends on the Trainer and its sequences alone: who keeps
 * model, moments, average, step and tokens goes on to the same bits. How many
 * sequences a pass takes changes none, but where dropping or a batch-wise loss
 * looks at those of a pass together.
 *
 * Not here: the pass itself (pass.c); the order of sequences (data.c); files
 * (checkpoint.c), logs and time (commands/train.c). */
#include "deepseek.h"

#include "base/device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t layers_of(const Config *c)
{
    return c->num_hidden_layers + c->num_nextn_predict_layers;
}

static PassOptions pass_options(const TrainSettings *s)
{
    return (PassOptions){.sequences = s->micro_batch,
                         .T = s->sequence_length,
                         .recompute = s->recompute};
}

/* Opening ---------------------------------------------------------------- */

size_t train_bytes(const Config *c, const TrainSettings *s)
{
    PassOptions o = pass_options(s);
    size_t n = model_numbers(c);
    size_t copies = 2 + (s->ema_decay > 0);   /* weights, gradients, average */
    return n * (copies * sizeof(float) + 2 * dtype_size(s->moments))
           + pass_bytes(c, &o);
}

static int allocate_state(Trainer *t, Error *err)
{
    const TrainSettings *s = t->settings;
    const Config *c = &t->model.config;
    size_t of = dtype_size(s->moments), T = s->sequence_length;
    t->m = device_alloc(t->n, of, "moments", err);
    t->v = t->m ? device_alloc(t->n, of, "moments", err) : NULL;
    t->ids = allocate(s->micro_batch, (T + 1) * sizeof *t->ids, "sequences",
                      err);
    t->load = allocate(layers_of(c), c->n_routed_experts * sizeof *t->load,
                       "loads", err);
    if (!t->v || !t->ids || !t->load)
        return -1;
    if (s->ema_decay > 0) {
        t->ema = device_alloc(t->n, sizeof *t->ema, "averages", err);
        if (!t->ema)
            return -1;
        memcpy(t->ema, t->model.copied, t->n * sizeof *t->ema);
    }
    return 0;
}

int train_open(Trainer *t, const Model *from, const TrainSettings *s,
               Error *err)
{
    PassOptions o = pass_options(s);
    memset(t, 0, sizeof *t);
    t->settings = s;
    if (model_floats(&t->model, from, &t->n, err))
        return -1;
    if (model_zeros(&t->grads, &t->model.config, &t->n, err)
        || allocate_state(t, err)
        || pass_open(&t->pass, &t->model, &o, err)) {
        train_close(t);
        return -1;
    }
    return 0;
}

void train_close(Trainer *t)
{
    if (t->pass.model)
        pass_close(&t->pass);
    model_close(&t->grads);
    model_close(&t->model);
    device_free(t->m);
    device_free(t->v);
    device_free(t->ema);
    free(t->ids);
    free(t->load);
    memset(t, 0, sizeof *t);
}

bool train_done(const Trainer *t)
{
    return t->tokens >= t->settings->total_tokens;
}

/* Gradient --------------------------------------------------------------- */

static PassLoss loss_of(const Trainer *t, size_t sequences)
{
    const TrainSettings *s = t->settings;
    return (PassLoss){
        .step_sequences = sequences,
        .lambda = schedule_value(&s->mtp_lambda, t->tokens),
        .balance = settings_balance(s, t->tokens),
        .capacity = s->capacity_factor,
        .exempt_rate = s->exempt_rate,
        .seed = s->seed,
        .sequence = t->tokens / s->sequence_length};
}

/* n sequences in passes; without grads only their losses. */
static int run_passes(Trainer *t, NextSequence *next, void *context,
                      size_t n, PassLoss *l, LossSums *losses, Model *grads,
                      Error *err)
{
    size_t T = t->settings->sequence_length;
    for (size_t i = 0; i < n;) {
        size_t b = 0;
        for (; b < t->settings->micro_batch && i + b < n; b++)
            if (next(context, t->ids + b * (T + 1), err))
                return -1;
        if (pass_run(&t->pass, t->ids, b, l, losses, grads,
                     grads ? t->load : NULL, err))
            return -1;
        l->sequence += b;
        i += b;
    }
    pass_finish(&t->pass, losses, grads);
    return 0;
}

int train_gradient(Trainer *t, NextSequence *next, void *context,
                   StepReport *r, Error *err)
{
    const TrainSettings *s = t->settings;
    const Config *c = &t->model.config;
    size_t n = schedule_sequences(&s->batch_size, t->tokens);
    PassLoss l = loss_of(t, n);
    memset(t->grads.copied, 0, t->n * sizeof(float));
    memset(t->load, 0, layers_of(c) * c->n_routed_experts * sizeof *t->load);
    *r = (StepReport){.step = t->step + 1, .sequences = n,
                      .tokens = t->tokens + n * s->sequence_length,
                      .lambda = l.lambda};
    return run_passes(t, next, context, n, &l, &r->losses, &t->grads, err);
}

int train_evaluate(Trainer *t, NextSequence *next, void *context, size_t n,
                   LossSums *losses, Error *err)
{
    PassLoss l = loss_of(t, n);
    l.capacity = 0;                  /* V2 §2.2.4: only in training */
    *losses = (LossSums){0};
    return run_passes(t, next, context, n, &l, losses, NULL, err);
}

/* Update ----------------------------------------------------------------- */

/* Every tensor that has a gradient: of weights, their place among n numbers. */
typedef struct {
    TensorWalk walk;
    TensorInfo info;
    float *numbers;
    size_t n, at;
} Parameter;

static Parameter first_parameter(Model *m)
{
    return (Parameter){.walk = tensor_walk(&m->config, m)};
}

static bool next_parameter(Parameter *p, const Model *m)
{
    while (tensor_next(&p->walk, &p->info)) {
        if (!p->info.slot->data || p->info.kind == TENSOR_BIAS)
            continue;
        p->numbers = matrix_numbers(p->info.slot);
        p->n = p->info.rows * p->info.cols;
        p->at = (size_t)(p->numbers - (const float *)m->copied);
        return true;
    }
    return false;
}

/* One norm over all that is trained, MTP modules too; what is shared has one
 * gradient. */
static int gradient_norm(Trainer *t, double *norm, Error *err)
{
    Parameter p = first_parameter(&t->grads);
    double total = 0;
    while (next_parameter(&p, &t->grads)) {
        double s = sum_of_squares(p.numbers, p.n);
        if (!isfinite(s))
            return fail(err, "%s: its gradient is not finite", p.info.name);
        total += s;
    }
    *norm = sqrt(total);
    return 0;
}

static Moments moments_at(const Trainer *t, size_t at)
{
    size_t bytes = at * dtype_size(t->settings->moments);
    return (Moments){t->settings->moments, (char *)t->m + bytes,
                     (char *)t->v + bytes};
}

static void update(Trainer *t, const AdamWStep *step)
{
    Parameter p = first_parameter(&t->model);
    const float *grads = t->grads.copied;
    while (next_parameter(&p, &t->model)) {
        Moments moments = moments_at(t, p.at);
        bool decay = p.info.rank == 2 || t->settings->decay_all;
        adamw_update(p.numbers, grads + p.at, &moments, p.n, decay, step);
        if (t->ema)
            ema_update(t->ema + p.at, p.numbers, p.n,
                       t->settings->ema_decay);
    }
}

/* The bias is no parameter, but the average's own copy of it is this one. */
static void update_bias(Trainer *t, double gamma)
{
    const Config *c = &t->model.config;
    size_t N = c->n_routed_experts;
    for (size_t l = 0; l < layers_of(c); l++) {
        const Matrix *b = &t->model.layers[l].moe.e_score_correction_bias;
        float *bias = matrix_numbers(b);
        if (!bias)
            continue;
        balance_update_bias(bias, t->load + l * N, N, gamma);
        if (t->ema)
            memcpy(t->ema + (bias - (const float *)t->model.copied), bias,
                   N * sizeof *bias);
    }
}

static double mean_violation(const Trainer *t)
{
    const Config *c = &t->model.config;
    size_t N = c->n_routed_experts, layers = 0;
    double total = 0;
    for (size_t l = 0; l < layers_of(c); l++)
        if (t->model.layers[l].is_moe) {
            total += balance_max_violation(t->load + l * N, N);
            layers++;
        }
    return layers ? total / (double)layers : 0;
}

static int numbered(const StepReport *r, int failed, Error *err)
{
    return failed ? fail(err, "step %llu: %s", (unsigned long long)r->step,
                         err->text) : 0;
}

int train_step(Trainer *t, NextSequence *next, void *context, StepReport *r,
               Error *err)
{
    const TrainSettings *s = t->settings;
    if (numbered(r, train_gradient(t, next, context, r, err), err)
        || numbered(r, gradient_norm(t, &r->grad_norm, err), err))
        return -1;
    r->lr = warm_up(schedule_value(&s->learning_rate, t->tokens), r->step,
                    s->warmup_steps);
    r->gamma = schedule_value(&s->gamma, t->tokens);
    AdamWStep step = adamw_step(&s->adamw, r->lr,
                                clip_factor(r->grad_norm, s->clip), r->step);
    update(t, &step);
    update_bias(t, r->gamma);
    r->max_violation = mean_violation(t);
    t->step = r->step;
    t->tokens = r->tokens;
    return 0;
}
