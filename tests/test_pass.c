/* test_pass.c: gradients of a whole step against central differences, and
 * the ways to make one against each other, bit for bit.
 *
 * The models are those of tests/data/models, one for each branch of the
 * architecture. Along a direction v the loss changes by <gradient, v>. Where a
 * step changes what a gate picks, the loss jumps and a difference says
 * nothing: the step is made smaller. */
#include "support.h"

#define MODELS "tests/data/models/"

enum { T = 7, B = 2, STEPS = 7 };

typedef struct {
    Model files, model, grads;
    size_t n;                 /* numbers of a model */
    Pass pass;
    PassLoss loss;
    int32_t ids[B * (T + 1)];
    uint64_t *load;
} Fixture;

static size_t all_layers(const Config *c)
{
    return c->num_hidden_layers + c->num_nextn_predict_layers;
}

static void open_pass(Fixture *f, size_t sequences, bool recompute)
{
    Error err;
    PassOptions o = {.sequences = sequences, .T = T, .recompute = recompute};
    must(pass_open(&f->pass, &f->model, &o, &err), &err);
}

static void setup(Fixture *f, const char *dir, Random *r)
{
    Error err;
    size_t n;
    memset(f, 0, sizeof *f);
    must(model_open(&f->files, dir, &err), &err);
    must(model_floats(&f->model, &f->files, &n, &err), &err);
    const Config *c = &f->model.config;
    must(model_zeros(&f->grads, c, &f->n, &err), &err);
    assert_int_equal(n, f->n);
    f->loss = (PassLoss){.step_sequences = B, .lambda = 0.3};
    f->loss.balance.devices = c->n_group ? c->n_group : 1;
    f->loss.balance.device_limit = c->topk_group ? c->topk_group : 1;
    for (size_t i = 0; i < B * (T + 1); i++)
        f->ids[i] = (int32_t)random_between(r, 0, c->vocab_size - 1);
    f->load = test_alloc(all_layers(c) * c->n_routed_experts,
                         sizeof *f->load);
}

static void teardown(Fixture *f)
{
    pass_close(&f->pass);
    model_close(&f->grads);
    model_close(&f->model);
    model_close(&f->files);
    free(f->load);
}

static double total_of(const Fixture *f, const LossSums *s)
{
    size_t D = f->model.config.num_nextn_predict_layers;
    double total = s->main;
    for (size_t k = 0; k < D; k++)
        total += f->loss.lambda / (double)D * s->mtp[k];
    for (size_t i = 0; i < BALANCE_LOSSES; i++)
        total += s->balance[i];
    return total;
}

static double loss_of(Fixture *f)
{
    Error err;
    LossSums sums = {0};
    must(pass_run(&f->pass, f->ids, B, &f->loss, &sums, NULL, NULL, &err),
         &err);
    pass_finish(&f->pass, &sums, NULL);
    return total_of(f, &sums);
}

static void gradient(Fixture *f)
{
    Error err;
    LossSums sums = {0};
    memset(f->grads.copied, 0, f->n * sizeof(float));
    must(pass_run(&f->pass, f->ids, B, &f->loss, &sums, &f->grads, f->load,
                  &err), &err);
    pass_finish(&f->pass, &sums, &f->grads);
}

/* What the gates of all layers picked. */
static uint64_t picks(const Fixture *f)
{
    const Config *c = &f->model.config;
    uint64_t hash = 0;
    for (size_t l = 0; l < all_layers(c); l++)
        for (size_t i = 0; f->model.layers[l].is_moe
                           && i < B * T * c->num_experts_per_tok; i++)
            hash = hash * 1099511628211u
                   + (uint64_t)f->pass.layers[l].acts.moe.topk_ids[i] + 1;
    return hash;
}

/* w += e v */
static void move(float *w, const float *from, const float *v, double e,
                 size_t n)
{
    for (size_t i = 0; i < n; i++)
        w[i] = (float)((double)from[i] + e * (double)v[i]);
}

/* (L(w + e v) - L(w - e v)) / 2e; false where a gate picks otherwise. */
static bool difference(Fixture *f, float *w, const float *from,
                       const float *v, size_t n, double e, double *slope)
{
    uint64_t before = (loss_of(f), picks(f));
    move(w, from, v, e, n);
    double high = loss_of(f);
    bool same = picks(f) == before;
    move(w, from, v, -e, n);
    *slope = (high - loss_of(f)) / (2 * e);
    same = same && picks(f) == before;
    memcpy(w, from, n * sizeof *w);
    return same;
}

/* The slope of the loss along v (n), a change of the tensor at w, and how far
 * rounding may have put it off. Two differences such that the e² terms of
 * their errors cancel; of all steps e that whose result is nearest to the one
 * before (Ridders); losses are exact to 1e-6 or so. */
static double slope(Fixture *f, float *w, const float *v, size_t n, double e,
                    double *off)
{
    float *from = test_alloc(n, sizeof *from);
    double d[STEPS], best = INFINITY, found = NAN, last = NAN;
    memcpy(from, w, n * sizeof *w);
    for (size_t i = 0; i < STEPS; e /= 2) {
        if (!difference(f, w, from, v, n, e, &d[i]))
            continue;
        double r = i ? (4 * d[i] - d[i - 1]) / 3 : NAN;
        if (i > 1 && fabs(r - last) < best) {
            best = fabs(r - last);
            found = r;
            *off = 2e-6 / e;
        }
        last = r;
        i++;
    }
    free(from);
    return found;
}

static double norm_of(const float *x, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)x[i] * (double)x[i];
    return sqrt(s);
}

static void check_slope(const char *name, double wanted, double found,
                        double length, double off)
{
    if (getenv("SHOW"))
        printf("%-58s %11.5g %11.5g  off by %.2g of %.2g\n", name, wanted,
               found, fabs(found - wanted), 5e-4 * length + off);
    if (!(fabs(found - wanted) <= 5e-4 * length + off))
        fail_msg("%s: wanted a slope of %.9g, found %.9g", name, wanted,
                 found);
}

/* Along the gradient itself, where the slope is its length; or along a random
 * direction. */
static void direct(float *v, const float *g, size_t n, Random *r)
{
    if (random_between(r, 0, 1) || norm_of(g, n) <= 0)
        random_fill(r, v, n);
    else
        memcpy(v, g, n * sizeof *v);
    double size = norm_of(v, n);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)((double)v[i] / size);
}

static void check_tensor(Fixture *f, const TensorInfo *info, const float *g,
                         Random *r)
{
    size_t n = info->rows * info->cols;
    float *w = matrix_numbers(info->slot);
    float *v = test_alloc(n, sizeof *v);
    double off = 0, wanted = 0;
    direct(v, g, n, r);
    for (size_t i = 0; i < n; i++)
        wanted += (double)g[i] * (double)v[i];
    double found = slope(f, w, v, n, 0.03 * (norm_of(w, n) + 0.01), &off);
    check_slope(info->name, wanted, found, norm_of(g, n), off);
    free(v);
}

/* Every tensor, but of the routed experts' each third; with QUICK in the
 * environment, as for sanitizers, a tenth of that. */
static bool chosen(const TensorInfo *info, Random *r)
{
    size_t n = (info->routed ? 3u : 1u) * (getenv("QUICK") ? 10u : 1u);
    return info->slot->data && info->kind != TENSOR_BIAS
           && random_between(r, 1, n) == 1;
}

static void check_model(const char *dir, Random *r, bool recompute,
                        void (*change)(Fixture *f))
{
    Fixture f;
    TensorInfo w, g;
    setup(&f, dir, r);
    if (change)
        change(&f);
    open_pass(&f, B, recompute);
    gradient(&f);
    TensorWalk a = tensor_walk(&f.model.config, &f.model);
    TensorWalk b = tensor_walk(&f.grads.config, &f.grads);
    while (tensor_next(&a, &w) && tensor_next(&b, &g))
        if (chosen(&w, r))
            check_tensor(&f, &w, matrix_numbers(g.slot), r);
    teardown(&f);
}

static const char *const models[] = {
    MODELS "k1-v2-lite", MODELS "k2-v2", MODELS "k3-v3",
    MODELS "k4-negative-bias", MODELS "k7-yarn", MODELS "k9-shapes",
    MODELS "dense-v2", MODELS "dense-v3", MODELS "norm-topk-v2",
    MODELS "one-group", MODELS "mtp-present", MODELS "mtp-two"};

enum { MODELS_N = sizeof models / sizeof *models };

static void test_gradients(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t i = 0; i < MODELS_N; i++)
        check_model(models[i], &r, i % 2, NULL);
}

/* A weight of 1 and more, so that the balance losses count. */
static void want_balance(Fixture *f)
{
    bool v3 = f->model.config.scoring_func == SCORING_SIGMOID;
    double *alpha = f->loss.balance.alpha;
    if (v3)
        alpha[BALANCE_SEQUENCE] = 2;
    else
        alpha[BALANCE_EXPERT] = 1;
    alpha[BALANCE_DEVICE] = v3 ? 0 : 1.5;
    alpha[BALANCE_COMMUNICATION] = v3 ? 0 : 0.7;
    f->loss.balance.count_picks = true;
}

static void test_balance_gradients(void **state)
{
    Random r = test_random();
    (void)state;
    check_model(MODELS "k2-v2", &r, false, want_balance);
    check_model(MODELS "k3-v3", &r, true, want_balance);
    check_model(MODELS "mtp-present", &r, true, want_balance);
}

static void want_dropping(Fixture *f)
{
    f->loss.capacity = 0.7;
    f->loss.exempt_rate = 0.3;
}

/* Pairs really are dropped here, and fewer where sequences are exempt. */
static uint64_t count_dropped(double rate)
{
    Random r = random_seeded(5);
    Fixture f;
    Error err;
    LossSums sums = {0};
    setup(&f, MODELS "k2-v2", &r);
    want_dropping(&f);
    f.loss.exempt_rate = rate;
    open_pass(&f, B, true);
    must(pass_run(&f.pass, f.ids, B, &f.loss, &sums, NULL, NULL, &err),
         &err);
    teardown(&f);
    return sums.dropped;
}

static void test_dropping(void **state)
{
    (void)state;
    assert_true(count_dropped(0) > 0);
    assert_int_equal(count_dropped(1), 0);
}

static void test_dropping_gradients(void **state)
{
    Random r = test_random();
    (void)state;
    check_model(MODELS "k2-v2", &r, true, want_dropping);
}

/* Each reading changes what a module computes. */
static void want_readings(Fixture *f)
{
    Config *c = &f->model.config;
    c->mtp_hidden_first = c->mtp_before_norm = true;
    c->mtp_carry_raw = c->mtp_zero_first = true;
}

static void test_readings(void **state)
{
    Random r = test_random();
    (void)state;
    check_model(MODELS "mtp-two", &r, true, want_readings);
}

/* One step in passes of `sequences`; the loads too. */
static float *step_in(Fixture *f, size_t sequences, bool recompute)
{
    Error err;
    LossSums sums = {0};
    float *copy = test_alloc(f->n, sizeof *copy);
    open_pass(f, sequences, recompute);
    memset(f->grads.copied, 0, f->n * sizeof *copy);
    for (size_t b = 0; b < B; b += sequences)
        must(pass_run(&f->pass, f->ids + b * (T + 1), sequences, &f->loss,
                      &sums, &f->grads, f->load, &err), &err);
    pass_finish(&f->pass, &sums, &f->grads);
    pass_close(&f->pass);
    memcpy(copy, f->grads.copied, f->n * sizeof *copy);
    return copy;
}

static void test_same_bits(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t i = 0; i < MODELS_N; i++) {
        Fixture f;
        setup(&f, models[i], &r);
        want_balance(&f);
        float *one = step_in(&f, B, false);
        float *again = step_in(&f, B, true), *parts = step_in(&f, 1, true);
        must_equal_bits(one, again, f.n, "recomputed");
        must_equal_bits(one, parts, f.n, "in two passes");
        free(one);
        free(again);
        free(parts);
        teardown(&f);
    }
}

/* A session's negative log-likelihood is the pass's. */
static void test_loss(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t i = 0; i < MODELS_N; i++) {
        Fixture f;
        Session s;
        Error err;
        LossSums sums = {0};
        double nats, total = 0;
        SessionOptions o = {.ctx = T + 1, .chunk = T + 1, .naive = true,
                            .logit_rows = T + 1};
        setup(&f, models[i], &r);
        open_pass(&f, B, false);
        must(session_open(&s, &f.files, &o, &err), &err);
        for (size_t b = 0; b < B; b++) {
            session_rewind(&s, 0);
            must(session_nll(&s, f.ids + b * (T + 1), T + 1, &nats, NULL,
                             &err), &err);
            total += nats;
        }
        must(pass_run(&f.pass, f.ids, B, &f.loss, &sums, NULL, NULL, &err),
             &err);
        assert_true(fabs(sums.main - total / (B * T)) < 1e-12 * total);
        session_close(&s);
        teardown(&f);
    }
}

/* -ln p of each row's target, from the logits of a trace. */
typedef struct {
    const int32_t *ids;
    double nats[MAX_DRAFTS];
} Seen;

static int see_logits(void *context, const char *name, DType type,
                      const void *values, int rank, const size_t *shape,
                      Error *err)
{
    Seen *s = context;
    size_t k = strtoul(name + strlen("mtp."), NULL, 10);
    const float *row = values;
    (void)type;
    (void)err;
    for (size_t t = 0; t < shape[0]; t++, row += shape[rank - 1]) {
        double total = 0;
        for (size_t i = 0; i < shape[rank - 1]; i++)
            total += exp((double)row[i]);
        s->nats[k - 1] += log(total) - (double)row[s->ids[t + k + 1]];
    }
    return 0;
}

/* The modules' losses are those of what `trace` shows, divided by T; in a model
 * whose modules have no tables of their own. */
static void check_modules(const char *dir, size_t D, Random *r)
{
    Fixture f;
    Error err;
    Seen seen = {0};
    LossSums sums = {0};
    setup(&f, dir, r);
    open_pass(&f, B, true);
    for (size_t b = 0; b < B; b++) {
        SessionOptions o = {.ctx = T, .naive = true, .modules = D,
                            .logit_rows = T,
                            .trace = trace_to(see_logits, &seen,
                                              "mtp.#.logits", &err)};
        Session s;
        Mtp m;
        seen.ids = f.ids + b * (T + 1);
        must(session_open(&s, &f.files, &o, &err), &err);
        must(mtp_open(&m, &s, 0, false, &err), &err);
        must(mtp_prompt(&m, seen.ids, T, NULL, &err), &err);
        must(trace_close(o.trace, &err), &err);
        mtp_close(&m);
        session_close(&s);
    }
    must(pass_run(&f.pass, f.ids, B, &f.loss, &sums, NULL, NULL, &err),
         &err);
    for (size_t k = 0; k < D; k++)
        if (fabs(sums.mtp[k] - seen.nats[k] / (B * T)) > 1e-5)
            fail_msg("module %zu: wanted a loss of %g, found %g", k + 1,
                     seen.nats[k] / (B * T), sums.mtp[k]);
    teardown(&f);
}

static void test_module_losses(void **state)
{
    Random r = test_random();
    (void)state;
    check_modules(MODELS "mtp-two", 2, &r);
}

/* Of a step of twice as many sequences each has half the weight; and a second
 * step knows nothing of the first. */
static void test_weight_of_a_sequence(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t i = 0; i < MODELS_N; i++) {
        Fixture f;
        setup(&f, models[i], &r);
        want_balance(&f);
        open_pass(&f, B, true);
        float *first = test_alloc(f.n, sizeof *first);
        float *grads = f.grads.copied;
        gradient(&f);
        memcpy(first, grads, f.n * sizeof *first);
        gradient(&f);
        must_equal_bits(grads, first, f.n, "a second step");
        double whole = loss_of(&f);
        f.loss.step_sequences *= 2;
        assert_true(fabs(whole - 2 * loss_of(&f)) < 1e-12);
        gradient(&f);
        for (size_t k = 0; k < f.n; k++)
            assert_true(fabsf(grads[k] * 2 - first[k]) < 1e-30f);
        free(first);
        teardown(&f);
    }
}

/* Every token of a step goes to K experts in every layer, its gradient is that
 * of the loads it made; a module sees one token less. */
static void test_loads(void **state)
{
    Random r = test_random();
    Fixture f;
    (void)state;
    setup(&f, MODELS "mtp-present", &r);
    open_pass(&f, B, true);
    gradient(&f);
    const Config *c = &f.model.config;
    for (size_t l = 0; l < all_layers(c); l++) {
        size_t N = c->n_routed_experts, rows = T - (l >= c->num_hidden_layers);
        uint64_t total = 0;
        for (size_t e = 0; e < N; e++)
            total += f.load[l * N + e];
        assert_int_equal(total, f.model.layers[l].is_moe
                                    ? B * rows * c->num_experts_per_tok : 0);
    }
    teardown(&f);
}

static void test_not_finite(void **state)
{
    Random r = test_random();
    Fixture f;
    Error err;
    LossSums sums = {0};
    (void)state;
    setup(&f, MODELS "k3-v3", &r);
    open_pass(&f, B, true);
    matrix_numbers(&f.model.layers[1].mlp.up_proj)[3] = INFINITY;
    must_fail(pass_run(&f.pass, f.ids, B, &f.loss, &sums, &f.grads, NULL,
                       &err),
              &err, "a copy in memory: model.layers.1.mlp.up_proj.weight:"
              " element (0, 3) is inf, wanted a finite number");
    matrix_numbers(&f.model.layers[1].mlp.up_proj)[3] = 1e38f;
    matrix_numbers(&f.model.layers[1].mlp.down_proj)[0] = 1e38f;
    matrix_numbers(&f.model.layers[1].mlp.down_proj)[1] = 1e38f;
    must_fail(pass_run(&f.pass, f.ids, B, &f.loss, &sums, &f.grads, NULL,
                       &err),
              &err, "model.layers.1: its output is not finite");
    teardown(&f);
}

static void test_refusals(void **state)
{
    Random r = test_random();
    Fixture f;
    Error err;
    LossSums sums = {0};
    PassOptions o = {.sequences = 1, .T = 1};
    (void)state;
    setup(&f, MODELS "mtp-present", &r);
    must_fail(pass_open(&f.pass, &f.model, &o, &err), &err,
              "training: wanted sequences of more than 1 tokens"
              " (num_nextn_predict_layers), found 1");
    open_pass(&f, B, true);
    f.ids[5] = -1;
    must_fail(pass_run(&f.pass, f.ids, B, &f.loss, &sums, NULL, NULL, &err),
              &err, "id 5 of a batch: wanted 0 to 63 (vocab_size - 1), found"
              " -1");
    teardown(&f);
    must(model_open(&f.files, MODELS "mtp-absent", &err), &err);
    must_fail(pass_open(&f.pass, &f.files, &o, &err), &err,
              "training: wanted the tensors of 1 MTP modules, found 0");
    model_close(&f.files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_balance_gradients),
        cmocka_unit_test(test_dropping),
        cmocka_unit_test(test_dropping_gradients),
        cmocka_unit_test(test_readings),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_loss),
        cmocka_unit_test(test_module_losses),
        cmocka_unit_test(test_weight_of_a_sequence),
        cmocka_unit_test(test_loads),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
