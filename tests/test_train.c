/* test_train.c: a step against its parts, and against itself in other forms.
 * Gradients are test_pass.c's, the optimiser's formula test_adamw.c's. */
#include "support.h"

#define MODELS "tests/data/models/"

enum { T = 6, STEPS = 5 };

static const char *const models[] = {
    MODELS "k1-v2-lite", MODELS "k3-v3", MODELS "k9-shapes",
    MODELS "mtp-two"};

enum { MODELS_N = sizeof models / sizeof *models };

/* Sequence i is drawn from seed and i: the same for every trainer. */
typedef struct {
    uint64_t seed, i;
    size_t V;
} Source;

static int draw(void *context, int32_t *ids, Error *err)
{
    Source *s = context;
    Random r = random_seeded(s->seed + s->i++ * 977);
    (void)err;
    for (size_t t = 0; t <= T; t++)
        ids[t] = (int32_t)random_between(&r, 0, s->V - 1);
    return 0;
}

static TrainSettings settings(void)
{
    TrainSettings s = {
        .sequence_length = T, .total_tokens = 4 * T * STEPS,
        .micro_batch = 4, .warmup_steps = 3,
        .adamw = {0.9, 0.95, 1e-8, 0.1}, .clip = 1, .moments = DT_F32,
        .devices = 1, .device_limit = 1, .exempt_rate = 0.1, .seed = 3};
    s.batch_size = schedule_constant(4);
    s.learning_rate = schedule_constant(1e-2);
    s.mtp_lambda = schedule_constant(0.3);
    s.gamma = schedule_constant(0.001);
    for (size_t i = 0; i < BALANCE_LOSSES; i++)
        s.alpha[i] = schedule_constant(i == BALANCE_SEQUENCE ? 0.01 : 0);
    return s;
}

typedef struct {
    Model files;
    TrainSettings settings;
    Trainer trainer;
    Source source;
} Fixture;

static void setup(Fixture *f, const char *dir, TrainSettings s, uint64_t seed)
{
    Error err;
    memset(f, 0, sizeof *f);
    f->settings = s;
    must(model_open(&f->files, dir, &err), &err);
    must(train_open(&f->trainer, &f->files, &f->settings, &err), &err);
    f->source = (Source){seed, 0, f->files.config.vocab_size};
}

static void teardown(Fixture *f)
{
    train_close(&f->trainer);
    model_close(&f->files);
}

static StepReport one_step(Fixture *f)
{
    Error err;
    StepReport r;
    must(train_step(&f->trainer, draw, &f->source, &r, &err), &err);
    return r;
}

static void must_equal_state(const Trainer *a, const Trainer *b)
{
    size_t bytes = a->n * dtype_size(a->settings->moments);
    must_equal_bits(a->model.copied, b->model.copied, a->n, "weights");
    assert_memory_equal(a->m, b->m, bytes);
    assert_memory_equal(a->v, b->v, bytes);
    if (a->ema)
        must_equal_bits(a->ema, b->ema, a->n, "average");
    assert_true(a->step == b->step && a->tokens == b->tokens);
}

/* With all of the balance losses. */
static TrainSettings balanced(size_t micro_batch, bool recompute)
{
    TrainSettings s = settings();
    for (size_t i = 0; i < BALANCE_LOSSES; i++)
        s.alpha[i] = schedule_constant(0.01);
    s.micro_batch = micro_batch;
    s.recompute = recompute;
    return s;
}

/* Passes of 4, 3 (and 1), 2 and 1 sequences; recomputed or kept: the same
 * state, and the same losses in every step. */
static void test_passes(void **state)
{
    Random random = test_random();
    uint64_t seed = random_u64(&random);
    (void)state;
    for (size_t i = 0; i < MODELS_N; i++) {
        Fixture a, b;
        LossSums losses[STEPS];
        setup(&a, models[i], balanced(4, false), seed);
        for (int k = 0; k < STEPS; k++)
            losses[k] = one_step(&a).losses;
        for (size_t size = 1; size < 4; size++) {
            setup(&b, models[i], balanced(size, size % 2), seed);
            for (int k = 0; k < STEPS; k++) {
                LossSums same = one_step(&b).losses;
                assert_memory_equal(&same, &losses[k], sizeof same);
            }
            must_equal_state(&a.trainer, &b.trainer);
            teardown(&b);
        }
        assert_true(train_done(&a.trainer));
        teardown(&a);
    }
}

/* What state there is, is all: a trainer that takes over weights, moments,
 * average and counters goes on to the same bits. */
static void test_resumed(void **state)
{
    Random random = test_random();
    uint64_t seed = random_u64(&random);
    TrainSettings s = settings();
    Fixture a, b;
    (void)state;
    s.ema_decay = 0.9;
    s.moments = DT_BF16;
    setup(&a, MODELS "mtp-two", s, seed);
    setup(&b, MODELS "mtp-two", s, seed);
    for (int k = 0; k < 3; k++)
        one_step(&a);
    size_t n = a.trainer.n;
    memcpy(b.trainer.model.copied, a.trainer.model.copied, n * 4);
    memcpy(b.trainer.m, a.trainer.m, n * 2);
    memcpy(b.trainer.v, a.trainer.v, n * 2);
    memcpy(b.trainer.ema, a.trainer.ema, n * 4);
    b.trainer.step = a.trainer.step;
    b.trainer.tokens = a.trainer.tokens;
    b.source.i = a.source.i;
    for (int k = 0; k < 2; k++) {
        one_step(&a);
        one_step(&b);
    }
    must_equal_state(&a.trainer, &b.trainer);
    teardown(&a);
    teardown(&b);
}

/* One step by hand: which tensors decay, where each one's moments lie, what
 * clips, the rate of the warm-up. */
static void check_first_step(const char *dir, bool decay_all, uint64_t seed)
{
    TrainSettings s = settings();
    Fixture f, g;
    Error err;
    StepReport r, of;
    TensorInfo info;
    double norm = 0;
    s.decay_all = decay_all;
    s.clip = 0.1;
    setup(&f, dir, s, seed);
    setup(&g, dir, s, seed);
    r = one_step(&f);
    must(train_gradient(&g.trainer, draw, &g.source, &of, &err), &err);
    assert_true(r.losses.main == of.losses.main && r.step == 1);
    assert_true(r.tokens == 4 * T && r.sequences == 4);
    assert_true(r.lr == warm_up(1e-2, 1, 3));
    TensorWalk walk = tensor_walk(&g.trainer.grads.config, &g.trainer.grads);
    while (tensor_next(&walk, &info))
        if (info.slot->data && info.kind != TENSOR_BIAS)
            norm += sum_of_squares(matrix_numbers(info.slot),
                                   info.rows * info.cols);
    assert_true(r.grad_norm == sqrt(norm));
    AdamWStep step = adamw_step(&s.adamw, r.lr, clip_factor(sqrt(norm), 0.1),
                                1);
    walk = tensor_walk(&g.trainer.grads.config, &g.trainer.grads);
    while (tensor_next(&walk, &info)) {
        size_t n = info.rows * info.cols;
        if (!info.slot->data || info.kind == TENSOR_BIAS)
            continue;
        float *dw = matrix_numbers(info.slot);
        size_t at = (size_t)(dw - (float *)g.trainer.grads.copied);
        float *w = (float *)g.trainer.model.copied + at;
        Moments m = {DT_F32, (float *)g.trainer.m + at,
                     (float *)g.trainer.v + at};
        adamw_update(w, dw, &m, n, info.rank == 2 || decay_all, &step);
        must_equal_bits((float *)f.trainer.model.copied + at, w, n,
                        info.name);
    }
    teardown(&f);
    teardown(&g);
}

static void test_first_step(void **state)
{
    Random random = test_random();
    uint64_t seed = random_u64(&random);
    (void)state;
    for (size_t i = 0; i < MODELS_N; i++)
        check_first_step(models[i], i % 2, seed + i);
}

/* b_i moves by gamma against the load of the whole step, in every layer that
 * has one, an MTP module's too. */
static void test_bias(void **state)
{
    Random random = test_random();
    uint64_t seed = random_u64(&random);
    Fixture f;
    (void)state;
    setup(&f, MODELS "mtp-present", settings(), seed);
    one_step(&f);
    const Config *c = &f.files.config;
    size_t N = c->n_routed_experts, moved = 0;
    for (size_t l = 0; l <= c->num_hidden_layers; l++) {
        const MoeWeights *w = &f.trainer.model.layers[l].moe;
        const uint64_t *load = f.trainer.load + l * N;
        uint64_t total = 0;
        if (!w->e_score_correction_bias.data)
            continue;
        for (size_t e = 0; e < N; e++)
            total += load[e];
        for (size_t e = 0; e < N; e++) {
            float was, b = matrix_numbers(&w->e_score_correction_bias)[e];
            float row[64];
            matrix_row(row, &f.files.layers[l].moe.e_score_correction_bias,
                       0);
            was = row[e];
            assert_true(N * load[e] > total ? b < was
                        : N * load[e] < total ? b > was : b == was);
            moved += b != was;
        }
    }
    assert_true(moved > 0);
    teardown(&f);
}

/* Half of the gradient's steps repeat the same sequences: the loss falls. */
static void test_learns(void **state)
{
    Random random = test_random();
    uint64_t seed = random_u64(&random);
    (void)state;
    for (size_t i = 0; i < MODELS_N; i++) {
        Fixture f;
        Error err;
        LossSums before, after;
        TrainSettings s = settings();
        s.total_tokens = 1 << 20;
        setup(&f, models[i], s, seed);
        must(train_evaluate(&f.trainer, draw, &f.source, 4, &before, &err),
             &err);
        for (int k = 0; k < 60; k++) {
            f.source.i = 0;
            one_step(&f);
        }
        f.source.i = 0;
        must(train_evaluate(&f.trainer, draw, &f.source, 4, &after, &err),
             &err);
        print_message("%s: %.3f -> %.3f\n", models[i], before.main,
                      after.main);
        assert_true(after.main < 0.7 * before.main);
        assert_true(f.files.config.num_nextn_predict_layers == 0
                    || after.mtp[0] < 0.9 * before.mtp[0]);
        teardown(&f);
    }
}

static void test_evaluation_changes_nothing(void **state)
{
    Random random = test_random();
    uint64_t seed = random_u64(&random);
    Fixture a, b;
    Error err;
    LossSums sums;
    (void)state;
    setup(&a, MODELS "k3-v3", settings(), seed);
    setup(&b, MODELS "k3-v3", settings(), seed);
    one_step(&a);
    must(train_evaluate(&b.trainer, draw, &b.source, 7, &sums, &err), &err);
    b.source.i = 0;
    one_step(&b);
    must_equal_state(&a.trainer, &b.trainer);
    teardown(&a);
    teardown(&b);
}

/* The average stands at the weights first, then follows by a quarter of each
 * step; a gate's bias is the current one. */
static void test_average(void **state)
{
    Random random = test_random();
    TrainSettings s = settings();
    TensorInfo info;
    Fixture f;
    size_t behind = 0, biases = 0;
    (void)state;
    s.ema_decay = 0.75;
    setup(&f, MODELS "k3-v3", s, random_u64(&random));
    size_t n = f.trainer.n;
    float *was = test_alloc(n, sizeof *was);
    const float *now = f.trainer.model.copied, *ema = f.trainer.ema;
    memcpy(was, now, n * sizeof *was);
    must_equal_bits(was, ema, n, "at first");
    one_step(&f);
    TensorWalk walk = tensor_walk(&f.files.config, &f.trainer.model);
    while (tensor_next(&walk, &info)) {
        size_t at = (size_t)(matrix_numbers(info.slot) - now);
        size_t end = at + info.rows * info.cols;
        bool bias = info.kind == TENSOR_BIAS;
        if (bias)
            must_equal_bits(ema + at, now + at, end - at, info.name);
        for (size_t i = at; i < end; i++) {
            double want = 0.75 * (double)was[i] + 0.25 * (double)now[i];
            assert_true(bias || fabs((double)ema[i] - want) < 1e-6);
            behind += !bias && fabsf(ema[i] - now[i]) > 1e-4f;
            biases += bias && fabsf(now[i] - was[i]) > 1e-4f;
        }
    }
    assert_true(behind > n / 2 && biases > 0);
    free(was);
    teardown(&f);
}

/* Rates are those of the tokens before a step. */
static void test_schedules(void **state)
{
    Fixture f;
    TrainSettings s = settings();
    (void)state;
    s.gamma = (Schedule){2, {{4 * T, SHAPE_CONSTANT, 0.5, 0.5},
                             {UINT64_MAX, SHAPE_CONSTANT, 0.25, 0.25}}};
    s.mtp_lambda = s.gamma;
    s.learning_rate = s.gamma;
    s.warmup_steps = 0;
    s.batch_size = (Schedule){2, {{4 * T, SHAPE_CONSTANT, 4, 4},
                                  {UINT64_MAX, SHAPE_CONSTANT, 3, 3}}};
    setup(&f, MODELS "mtp-two", s, 1);
    StepReport r = one_step(&f);
    assert_true(r.gamma == 0.5 && r.lambda == 0.5 && r.lr == 0.5);
    assert_true(r.sequences == 4 && r.tokens == 4 * T);
    r = one_step(&f);
    assert_true(r.gamma == 0.25 && r.lambda == 0.25 && r.lr == 0.25);
    assert_true(r.sequences == 3 && r.tokens == 7 * T);
    teardown(&f);
}

/* The number of a sequence in the run, not in its pass, exempts it. Nothing is
 * dropped when a model is evaluated. */
static void test_exempt(void **state)
{
    Fixture f, g;
    Error err;
    LossSums a, b;
    TrainSettings s = settings();
    size_t yes = 0;
    (void)state;
    s.capacity_factor = 0.5;
    s.exempt_rate = 0.5;
    s.micro_batch = 1;
    for (s.seed = 0; s.seed < 20; s.seed++) {
        setup(&f, MODELS "k2-v2", s, 1);
        one_step(&f);
        one_step(&f);
        assert_true(f.trainer.pass.exempt[0] == drop_exempt(s.seed, 7, 0.5));
        yes += f.trainer.pass.exempt[0];
        teardown(&f);
    }
    assert_true(yes > 0 && yes < 20);
    s.learning_rate = s.gamma = schedule_constant(0);
    s.exempt_rate = 0;
    setup(&f, MODELS "k2-v2", s, 1);
    one_step(&f);                /* its drops are not those of evaluation */
    s.capacity_factor = 0;
    setup(&g, MODELS "k2-v2", s, 1);
    f.source = g.source;
    must(train_evaluate(&f.trainer, draw, &f.source, 4, &a, &err), &err);
    must(train_evaluate(&g.trainer, draw, &g.source, 4, &b, &err), &err);
    assert_true(a.main == b.main && a.dropped == 0);
    teardown(&f);
    teardown(&g);
}

static void test_bytes(void **state)
{
    Fixture f;
    TrainSettings s = settings();
    PassOptions o = {4, T, false};
    (void)state;
    s.ema_decay = 0.5;
    setup(&f, MODELS "k3-v3", s, 1);
    const Config *c = &f.files.config;
    size_t n = f.trainer.n, pass = pass_bytes(c, &o);
    assert_int_equal(train_bytes(c, &s), n * (3 * 4 + 8) + pass);
    s.ema_decay = 0;
    s.moments = DT_BF16;
    assert_int_equal(train_bytes(c, &s), n * (2 * 4 + 4) + pass);
    s.recompute = true;
    assert_true(train_bytes(c, &s) < n * (2 * 4 + 4) + pass);
    teardown(&f);
}

static void test_not_finite(void **state)
{
    Fixture f;
    Error err;
    StepReport r;
    (void)state;
    setup(&f, MODELS "k3-v3", settings(), 1);
    f.trainer.step = 41;
    matrix_numbers(&f.trainer.model.layers[0].mlp.down_proj)[7] = NAN;
    must_fail(train_step(&f.trainer, draw, &f.source, &r, &err), &err,
              "step 42: a copy in memory: model.layers.0.mlp.down_proj.weight:"
              " element (0, 7) is nan, wanted a finite number");
    assert_true(f.trainer.step == 41);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_passes),
        cmocka_unit_test(test_resumed),
        cmocka_unit_test(test_first_step),
        cmocka_unit_test(test_bias),
        cmocka_unit_test(test_learns),
        cmocka_unit_test(test_evaluation_changes_nothing),
        cmocka_unit_test(test_average),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_exempt),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
