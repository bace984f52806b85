/* test_deepseek.c: the forward pass against other people's, and its promises.
 *
 * tests/data/models: 23 small checkpoints, one for every branch, and in
 * golden/ what a NumPy forward gave for them in float64, after transformers,
 * in float64 too, had agreed to 1e-12 (tests/reference/make_golden.py; the
 * metadata of each file have the margins of its routes and greedy ids).
 * Held here: values to NMSE 1e-9, ids exactly; then that form, chunks, trace
 * and order of calls change no bit that they must not change. */
#include "support.h"

#define MODELS "tests/data/models/"

static const char *const models[] = {
    "k1-v2-lite", "k2-v2", "k3-v3", "k4-negative-bias", "k5-ties",
    "k6-no-yarn", "k7-yarn", "k8-eps", "k9-shapes", "fp8-ragged",
    "fp8-ue8m0", "fp8-sharded", "f16", "f32-unaligned", "mtp-absent",
    "mtp-present", "one-group", "dense-v2", "dense-v3", "norm-topk-v2",
    "yarn-absent", "transformers-5-v2", "transformers-5-v3"};

enum { MODEL_COUNT = sizeof models / sizeof *models };

/* A model with its golden values and its prompt. */
typedef struct {
    Model model;
    Safetensors golden;
    int32_t *ids;
    size_t T, V;
} Case;

static void case_open(Case *c, const char *name)
{
    char path[200];
    Error err;
    size_t one;
    snprintf(path, sizeof path, MODELS "%s", name);
    must(model_open(&c->model, path, &err), &err);
    snprintf(path, sizeof path, MODELS "%s/golden/golden.safetensors", name);
    must(st_open(&c->golden, path, &err), &err);
    c->ids = golden(&c->golden, "ids", DT_I32, &c->T, &one);
    assert_int_equal(one, 1);
    c->V = c->model.config.vocab_size;
}

static void case_close(Case *c)
{
    model_close(&c->model);
    st_close(&c->golden);
    free(c->ids);
}

static Session open_session(const Model *m, SessionOptions o)
{
    Session s;
    Error err;
    must(session_open(&s, m, &o, &err), &err);
    return s;
}

static void forward(Session *s, const int32_t *ids, size_t n)
{
    Error err;
    must(session_forward(s, ids, n, NULL, &err), &err);
}

/* Logits (T, V) of the prompt, in passes of `chunk` tokens. */
static float *all_logits(const Case *c, bool naive, size_t chunk)
{
    float *logits = test_alloc(c->T * c->V, sizeof *logits);
    Session s = open_session(&c->model, (SessionOptions){
        .ctx = c->T, .chunk = chunk, .naive = naive, .all_logits = true});
    for (size_t t = 0; t < c->T; t += chunk) {
        size_t n = c->T - t < chunk ? c->T - t : chunk;
        forward(&s, c->ids + t, n);
        memcpy(logits + t * c->V, s.host_logits, n * c->V * sizeof *logits);
    }
    session_close(&s);
    return logits;
}

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Golden values ---------------------------------------------------------- */

static void compare(const StTensor *want, const StTensor *got, const char *in)
{
    float *a, *b;
    if (!got || got->elements != want->elements || got->dtype != want->dtype)
        fail_msg("%s: %s: absent, or of another shape", in, want->name);
    if (want->dtype == DT_I32) {
        if (memcmp(want->data, got->data, want->bytes) != 0)
            fail_msg("%s: %s: other ids", in, want->name);
        return;
    }
    a = test_alloc(want->elements, sizeof *a);
    b = test_alloc(want->elements, sizeof *b);
    memcpy(a, want->data, want->bytes);
    memcpy(b, got->data, got->bytes);
    double e = nmse(b, a, want->elements);
    if (!(e <= 1e-9))
        fail_msg("%s: %s: NMSE %g", in, want->name, e);
    free(a);
    free(b);
}

/* Every golden tensor against the trace: hidden states of every layer, routes
 * and their weights, the final norm, logits. */
static void check_trace(const Case *c, bool naive, const char *in)
{
    char *path = scratch_dup("trace.safetensors");
    Safetensors traced;
    Error err;
    Trace *trace = trace_open(path, true, NULL, &err);
    size_t compared = 0;
    assert_non_null(trace);
    Session s = open_session(&c->model, (SessionOptions){
        .ctx = c->T, .naive = naive, .all_logits = true, .trace = trace});
    forward(&s, c->ids, c->T);
    session_close(&s);
    must(trace_close(trace, &err), &err);
    must(st_open(&traced, path, &err), &err);
    for (size_t i = 0; i < c->golden.n_tensors; i++) {
        const StTensor *want = &c->golden.tensors[i];
        if (strcmp(want->name, "ids") == 0 || begins(want->name, "logits.")
            || strcmp(want->name, "greedy_ids") == 0)
            continue;
        compare(want, st_find(&traced, want->name), in);
        compared++;
    }
    assert_true(compared >= 2 + c->model.config.num_hidden_layers);
    st_close(&traced);
    remove(path);
    free(path);
}

static void test_golden(void **state)
{
    Case c;
    case_open(&c, *state);
    check_trace(&c, false, "absorbed");
    check_trace(&c, true, "naive");
    case_close(&c);
}

/* Ids collected, at most as many as there is room for. */
typedef struct {
    int32_t ids[64];
    size_t n, enough;
} Sink;

static int take(void *context, int32_t id, Error *err)
{
    Sink *s = context;
    (void)err;
    assert_true(s->n < 64);
    s->ids[s->n++] = id;
    return s->n == s->enough;
}

static void check_greedy(const Case *c, bool naive)
{
    size_t n, one;
    int32_t *want = golden(&c->golden, "greedy_ids", DT_I32, &n, &one);
    Sink sink = {.n = 0};
    GenerateOptions o = {.n = n, .vocabulary = c->V};
    GenerateStats stats;
    Error err;
    Session s = open_session(&c->model, (SessionOptions){
        .ctx = c->T + n, .naive = naive});
    must(generate(&s, c->ids, c->T, &o, take, &sink, &stats, &err), &err);
    assert_int_equal(sink.n, n);
    assert_memory_equal(sink.ids, want, n * sizeof *want);
    assert_int_equal(stats.prompt_tokens, c->T);
    assert_int_equal(stats.new_tokens, n);
    assert_false(stats.stopped);
    session_close(&s);
    free(want);
}

static void test_greedy(void **state)
{
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        Case c;
        case_open(&c, models[i]);
        check_greedy(&c, false);
        check_greedy(&c, true);
        case_close(&c);
    }
    (void)state;
}

/* Where sources disagree: the other reading has golden logits too, and the
 * two are far apart. */
static void check_reading(const char *name, const char *reading,
                          const char *tensor)
{
    Case c;
    Error err;
    size_t rows, cols;
    case_open(&c, name);
    float *want = golden(&c.golden, tensor, DT_F32, &rows, &cols);
    float *before = all_logits(&c, false, c.T);
    must(config_reading(&c.model.config, reading, &err), &err);
    float *after = all_logits(&c, false, c.T);
    assert_true(nmse(before, want, rows * cols) > 1e-4);
    assert_true(nmse(after, want, rows * cols) <= 1e-9);
    free(want);
    free(before);
    free(after);
    case_close(&c);
}

static void test_readings(void **state)
{
    (void)state;
    check_reading("k8-eps", "latent-eps=rms_norm_eps",
                  "logits.latent_eps_from_config");
    check_reading("norm-topk-v2", "v2-norm-topk=divide-and-scale",
                  "logits.v2_norm_scales");
}

/* The same bits ---------------------------------------------------------- */

static void check_chunks(const Case *c, bool naive, const char *name)
{
    static const size_t chunks[] = {1, 2, 5};
    float *want = all_logits(c, naive, c->T);
    for (size_t i = 0; i < 3; i++) {
        float *got = all_logits(c, naive, chunks[i]);
        must_equal_bits(got, want, c->T * c->V, name);
        free(got);
    }
    free(want);
}

static void test_chunks_change_no_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        Case c;
        case_open(&c, models[i]);
        check_chunks(&c, false, models[i]);
        check_chunks(&c, true, models[i]);
        case_close(&c);
    }
}

#define GOLDEN(name) {"golden " name, test_golden, NULL, NULL, name}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GOLDEN("k1-v2-lite"), GOLDEN("k2-v2"), GOLDEN("k3-v3"),
        GOLDEN("k4-negative-bias"), GOLDEN("k5-ties"), GOLDEN("k6-no-yarn"),
        GOLDEN("k7-yarn"), GOLDEN("k8-eps"), GOLDEN("k9-shapes"),
        GOLDEN("fp8-ragged"), GOLDEN("fp8-ue8m0"), GOLDEN("fp8-sharded"),
        GOLDEN("f16"), GOLDEN("f32-unaligned"), GOLDEN("mtp-absent"),
        GOLDEN("mtp-present"), GOLDEN("one-group"), GOLDEN("dense-v2"),
        GOLDEN("dense-v3"), GOLDEN("norm-topk-v2"), GOLDEN("yarn-absent"),
        GOLDEN("transformers-5-v2"), GOLDEN("transformers-5-v3"),
        cmocka_unit_test(test_greedy), cmocka_unit_test(test_readings),
        cmocka_unit_test(test_chunks_change_no_bit),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove(scratch(""));
    return failed;
}
