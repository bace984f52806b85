/* test_fp8_activations.c: models whose Linear layers have FP8 inputs too.
 *
 * tests/data/models/X/golden/fp8_activations.safetensors: what a NumPy forward
 * with a quantiser of its own gave in float64 (tests/reference/make_fp8.py,
 * which also shows that every layer left out, the gate or the head quantised
 * too, other tiles and other scales move the logits by NMSE 8e-6 and more).
 * Held here: values to NMSE 1e-9; then that chunks change no bit, what the
 * form of attention and the dtype have to be, and what memory it costs. */
#include "case.h"

static const char *const models[] = {"fp8-ragged", "fp8-ue8m0",
                                     "fp8-sharded"};

/* Logits (T, V) of the prompt, in passes of `chunk` tokens. */
static float *all_logits(const Case *c, SessionOptions o)
{
    float *logits = test_alloc(c->T * c->V, sizeof *logits);
    Session s;
    Error err;
    o.ctx = c->T;
    o.naive = true;
    o.logit_rows = SIZE_MAX;
    must(session_open(&s, &c->model, &o, &err), &err);
    for (size_t t = 0; t < c->T; t += o.chunk) {
        size_t n = c->T - t < o.chunk ? c->T - t : o.chunk;
        must(session_forward(&s, c->ids + t, n, NULL, &err), &err);
        memcpy(logits + t * c->V, s.host_logits, n * c->V * sizeof *logits);
    }
    session_close(&s);
    return logits;
}

/* Every golden tensor against the trace: each layer's output and the logits. */
static void check_trace(const Case *c, const char *in)
{
    char *path = scratch_dup("trace.safetensors");
    Safetensors traced;
    Error err;
    Trace *trace = trace_open(path, true, NULL, &err);
    SessionOptions o = {.ctx = c->T, .naive = true, .fp8 = true,
                        .logit_rows = SIZE_MAX, .trace = trace};
    Session s;
    assert_non_null(trace);
    must(session_open(&s, &c->model, &o, &err), &err);
    must(session_forward(&s, c->ids, c->T, NULL, &err), &err);
    session_close(&s);
    must(trace_close(trace, &err), &err);
    must(st_open(&traced, path, &err), &err);
    assert_int_equal(c->golden.n_tensors,
                     2 + c->model.config.num_hidden_layers);
    for (size_t i = 0; i < c->golden.n_tensors; i++) {
        const StTensor *want = &c->golden.tensors[i];
        const StTensor *got = st_find(&traced, want->name);
        float *a, *b;
        size_t rows, cols;
        if (strcmp(want->name, "ids") == 0)
            continue;
        assert_non_null(got);
        a = golden(&c->golden, want->name, DT_F32, &rows, &cols);
        b = golden(&traced, want->name, DT_F32, &rows, &cols);
        double e = nmse(b, a, want->elements);
        if (!(e <= 1e-9))
            fail_msg("%s: %s: NMSE %g", in, want->name, e);
        free(a);
        free(b);
    }
    st_close(&traced);
    remove(path);
    free(path);
}

static void test_golden(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        Case c;
        case_open(&c, models[i], "fp8_activations");
        check_trace(&c, models[i]);
        case_close(&c);
    }
}

/* A token's tiles are its own: however many run at once. */
static void test_chunks(void **state)
{
    static const size_t chunks[] = {1, 2, 5};
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        Case c;
        case_open(&c, models[i], "fp8_activations");
        SessionOptions o = {.chunk = c.T, .fp8 = true};
        float *whole = all_logits(&c, o);
        for (size_t j = 0; j < sizeof chunks / sizeof *chunks; j++) {
            o.chunk = chunks[j];
            float *parts = all_logits(&c, o);
            must_equal_bits(parts, whole, c.T * c.V, models[i]);
            free(parts);
        }
        free(whole);
        case_close(&c);
    }
}

/* Blocks of 128 tokens and one scale a tensor are other numbers, and all
 * differ from F32 inputs. */
static void test_scopes(void **state)
{
    float *logits[4];
    Case c;
    (void)state;
    case_open(&c, "fp8-ragged", "fp8_activations");
    SessionOptions o = {.chunk = c.T};
    logits[3] = all_logits(&c, o);
    o.fp8 = true;
    static const Fp8Scope scopes[] = {FP8_TILE, FP8_BLOCK, FP8_TENSOR};
    for (int i = 0; i < 3; i++) {
        o.fp8_scope = scopes[i];
        logits[i] = all_logits(&c, o);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < i; j++)
            assert_true(nmse(logits[i], logits[j], c.T * c.V) > 1e-6);
    for (int i = 0; i < 4; i++)
        free(logits[i]);
    case_close(&c);
}

static void test_refused(void **state)
{
    SessionOptions o = {.ctx = 4, .fp8 = true};
    Session s;
    Model m;
    Error err;
    (void)state;
    must(model_open(&m, MODELS "fp8-ragged", &err), &err);
    must_fail(session_open(&s, &m, &o, &err), &err,
              "FP8 activations: wanted the naive form of attention, found the"
              " absorbed one, in which kv_b_proj is no Linear layer");
    model_close(&m);
    must(model_open(&m, MODELS "k3-v3", &err), &err);
    o.naive = true;
    must_fail(session_open(&s, &m, &o, &err), &err,
              "FP8 activations: model.layers.0.self_attn.q_a_proj.weight:"
              " wanted F8_E4M3 weights, found BF16: run deepseek quantize"
              " first");
    model_close(&m);
}

/* Codes, their values and their scales: of fp8-ragged at 128 tokens the widest
 * input has 300 channels, three tiles; past some context kv_b_proj's of 24
 * channels for every position is larger. */
static void test_memory(void **state)
{
    Config c;
    Error err;
    (void)state;
    must(config_read(&c, MODELS "fp8-ragged", &err), &err);
    for (size_t ctx = 128; ctx <= 8192; ctx *= 64) {
        SessionOptions o = {.ctx = ctx, .chunk = 128, .naive = true};
        size_t without = session_bytes(&c, &o), input, tiles;
        o.fp8 = true;
        input = ctx == 128 ? 128 * 300 : ctx * 24;
        tiles = ctx == 128 ? 128 * 3 : ctx;
        assert_int_equal(session_bytes(&c, &o) - without,
                         input + 4 + 4 * input + 4 * tiles);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden), cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_scopes), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
