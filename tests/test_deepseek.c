/* test_deepseek.c: the forward pass against other people's, and its promises.
 *
 * tests/data/models: 23 small checkpoints, one for every branch, and in
 * golden/ what a NumPy forward gave for them in float64, after transformers,
 * in float64 too, had agreed to 1e-12 (tests/reference/make_golden.py; the
 * metadata of each file have the margins of its routes and greedy ids).
 * Held here: values to NMSE 1e-9, ids exactly; then that form, chunks, trace
 * and order of calls change no bit that they must not change. */
#include "case.h"

static const char *const models[] = {
    "k1-v2-lite", "k2-v2", "k3-v3", "k4-negative-bias", "k5-ties",
    "k6-no-yarn", "k7-yarn", "k8-eps", "k9-shapes", "fp8-ragged",
    "fp8-ue8m0", "fp8-sharded", "f16", "f32-unaligned", "mtp-absent",
    "mtp-present", "one-group", "dense-v2", "dense-v3", "norm-topk-v2",
    "yarn-absent", "transformers-5-v2", "transformers-5-v3"};

enum { MODEL_COUNT = sizeof models / sizeof *models };

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
        .ctx = c->T, .chunk = chunk, .naive = naive, .logit_rows = SIZE_MAX});
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
        .ctx = c->T, .naive = naive, .logit_rows = SIZE_MAX, .trace = trace});
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
    case_open(&c, *state, "golden");
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
        case_open(&c, models[i], "golden");
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
    case_open(&c, name, "golden");
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
        case_open(&c, models[i], "golden");
        check_chunks(&c, false, models[i]);
        check_chunks(&c, true, models[i]);
        case_close(&c);
    }
}

/* Whatever the chunk of a session, the whole prompt at once leaves the same
 * cache and the same last row of logits. */
static void check_cache(const Case *c, bool naive, const char *name)
{
    static const size_t chunks[] = {1, 2, 5};
    const Config *k = &c->model.config;
    size_t n = k->num_hidden_layers * c->T
               * (k->kv_lora_rank + k->qk_rope_head_dim);
    Session want = open_session(&c->model, (SessionOptions){
        .ctx = c->T, .naive = naive});
    forward(&want, c->ids, c->T);
    for (size_t i = 0; i < 3; i++) {
        Session got = open_session(&c->model, (SessionOptions){
            .ctx = c->T, .chunk = chunks[i], .naive = naive});
        forward(&got, c->ids, c->T);
        must_equal_bits(got.cache, want.cache, n, name);
        must_equal_bits(got.host_logits, want.host_logits, c->V, name);
        session_close(&got);
    }
    session_close(&want);
}

static void test_chunk_option_changes_no_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < MODEL_COUNT; i++) {
        Case c;
        case_open(&c, models[i], "golden");
        check_cache(&c, false, models[i]);
        check_cache(&c, true, models[i]);
        case_close(&c);
    }
}

/* A trace asks for larger score buffers and reads everything: the logits stay
 * what they were. In chunks it is the same file. */
static void traced(const Case *c, bool naive, size_t chunk, const char *path,
                   float *logits)
{
    Error err;
    Trace *trace = trace_open(path, true, NULL, &err);
    assert_non_null(trace);
    Session s = open_session(&c->model, (SessionOptions){
        .ctx = c->T, .chunk = chunk, .naive = naive, .logit_rows = SIZE_MAX,
        .trace = trace});
    forward(&s, c->ids, c->T);
    if (logits)
        memcpy(logits, s.host_logits, c->T * c->V * sizeof *logits);
    session_close(&s);
    must(trace_close(trace, &err), &err);
}

static void must_equal_files(const char *a, const char *b)
{
    File x, y;
    Error err;
    must(file_open(&x, a, &err), &err);
    must(file_open(&y, b, &err), &err);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_close(&x);
    file_close(&y);
}

static void check_traced(const char *name, bool naive)
{
    char *whole = scratch_dup("whole.safetensors");
    char *parts = scratch_dup("parts.safetensors");
    Case c;
    case_open(&c, name, "golden");
    float *plain = all_logits(&c, naive, c.T);
    float *with = test_alloc(c.T * c.V, sizeof *with);
    traced(&c, naive, 0, whole, with);
    must_equal_bits(with, plain, c.T * c.V, name);
    traced(&c, naive, 7, parts, NULL);
    must_equal_files(whole, parts);
    remove(whole);
    remove(parts);
    free(whole);
    free(parts);
    free(plain);
    free(with);
    case_close(&c);
}

static void test_trace_changes_no_bit(void **state)
{
    static const char *const some[] = {"k1-v2-lite", "k2-v2", "k3-v3",
                                       "k9-shapes", "fp8-ragged", "dense-v2"};
    (void)state;
    for (size_t i = 0; i < 6; i++) {
        check_traced(some[i], false);
        check_traced(some[i], true);
    }
}

/* The order of blocks of queries is a question of memory alone: with a context
 * so long that a block is one token, nothing changes. */
static void test_score_block_changes_no_bit(void **state)
{
    (void)state;
    for (int naive = 0; naive < 2; naive++) {
        Case c;
        case_open(&c, "k3-v3", "golden");
        Session s = open_session(&c.model, (SessionOptions){
            .ctx = c.T, .naive = naive});
        Session t = open_session(&c.model, (SessionOptions){
            .ctx = 200000, .chunk = c.T, .naive = naive});
        assert_true(s.acts.mla.block == c.T);
        assert_true(t.acts.mla.block == 1);
        forward(&s, c.ids, c.T);
        forward(&t, c.ids, c.T);
        must_equal_bits(t.host_logits, s.host_logits, c.V, "one token");
        session_close(&s);
        session_close(&t);
        case_close(&c);
    }
}

/* What came after the point of return leaves nothing behind. */
static void test_rewind(void **state)
{
    Case c;
    (void)state;
    case_open(&c, "k3-v3", "golden");
    for (int naive = 0; naive < 2; naive++) {
        SessionOptions o = {.ctx = c.T, .naive = naive};
        Session a = open_session(&c.model, o), b = open_session(&c.model, o);
        forward(&a, c.ids, 10);
        forward(&a, c.ids + 3, 15);
        session_rewind(&a, 12);
        session_rewind(&a, 10);
        assert_int_equal(a.pos, 10);
        session_rewind(&a, 11);
        assert_int_equal(a.pos, 10);
        forward(&a, c.ids + 10, c.T - 10);
        forward(&b, c.ids, c.T);
        must_equal_bits(a.host_logits, b.host_logits, c.V, "rewound");
        session_close(&a);
        session_close(&b);
    }
    case_close(&c);
}

/* Limits ----------------------------------------------------------------- */

static void test_context_is_finite(void **state)
{
    Case c;
    Error err;
    Session bad;
    char wanted[100];
    (void)state;
    case_open(&c, "k1-v2-lite", "golden");
    Session s = open_session(&c.model, (SessionOptions){.ctx = 8});
    must_fail(session_forward(&s, c.ids, 9, NULL, &err), &err,
              "context: wanted at most 8 tokens, found 9");
    assert_int_equal(s.pos, 0);
    forward(&s, c.ids, 8);
    must_fail(session_forward(&s, c.ids, 1, NULL, &err), &err,
              "context: wanted at most 8 tokens, found 9");
    must_fail(session_forward(&s, c.ids, 0, NULL, &err), &err,
              "prompt: wanted at least 1 token, found none");
    assert_int_equal(s.pos, 8);
    session_close(&s);
    session_close(&s);
    must_fail(session_open(&bad, &c.model, &(SessionOptions){.ctx = 0}, &err),
              &err, "context: wanted 1 to 1073741824 tokens, found 0");
    session_close(&bad);
    snprintf(wanted, sizeof wanted, "context: wanted 1 to 1073741824 tokens,"
             " found %zu", SIZE_MAX);
    must_fail(session_open(&bad, &c.model,
                           &(SessionOptions){.ctx = SIZE_MAX}, &err),
              &err, wanted);
    session_close(&bad);
    case_close(&c);
}

static void test_ids_are_in_range(void **state)
{
    static const int32_t high[] = {1, 2, 64}, low[] = {1, -1},
                         far[] = {INT32_MIN};
    Case c;
    Error err;
    (void)state;
    case_open(&c, "k1-v2-lite", "golden");
    Session s = open_session(&c.model, (SessionOptions){.ctx = 8});
    must_fail(session_forward(&s, high, 3, NULL, &err), &err,
              "id 2 of the input: wanted 0 to 63 (vocab_size - 1), found 64");
    must_fail(session_forward(&s, low, 2, NULL, &err), &err,
              "id 1 of the input: wanted 0 to 63 (vocab_size - 1), found -1");
    must_fail(session_forward(&s, far, 1, NULL, &err), &err,
              "id 0 of the input: wanted 0 to 63 (vocab_size - 1), found"
              " -2147483648");
    assert_int_equal(s.pos, 0);
    forward(&s, high, 2);
    session_close(&s);
    case_close(&c);
}

/* Memory ----------------------------------------------------------------- */

/* What a forward pass needs, written down from the shapes in deepseek.h and
 * not from the table in deepseek.c. T: tokens of a pass, S: the context, R:
 * rows of logits, B: tokens of a block of scores. */
static double needed(const Config *c, bool naive, double T, double S,
                     double R, double B)
{
    double d = (double)c->hidden_size, V = (double)c->vocab_size;
    double n_h = (double)c->num_attention_heads, L = 0, dense = 0, moe = 0;
    double d_c = (double)c->kv_lora_rank, d_r = (double)c->qk_rope_head_dim;
    double d_h = (double)c->qk_nope_head_dim, d_v = (double)c->v_head_dim;
    double N = (double)c->n_routed_experts;
    double K = (double)c->num_experts_per_tok;
    double inter = (double)c->intermediate_size, floats;
    double shared = (double)(c->n_shared_experts * c->moe_intermediate_size);
    for (size_t l = 0; l < c->num_hidden_layers; l++, L++)
        *(config_is_moe(c, l) ? &moe : &dense) = 1;
    floats = L * S * (d_c + d_r) + 2 * T * d_r / 2    /* cache, cos, sin */
             + T * d                                  /* embedding */
             + 5 * T * d                              /* norms, residuals */
             + 2 * T * (double)c->q_lora_rank         /* c_q raw and normal */
             + T * n_h * (d_h + d_r) + T * (d_c + d_r)
             + 2 * B * n_h * S + T * n_h * d_v        /* scores, probs, o */
             + T * d                                  /* the block's output */
             + T * d + 2 * R * V;                     /* norm, logits twice */
    if (naive)
        floats += T * n_h * (d_h + d_r) + S * n_h * (d_h + d_v)
                  + S * n_h * (d_h + d_r);
    else
        floats += T * n_h * (d_c + d_r) + T * n_h * d_c;
    floats += 2 * T * (dense > 0 && inter > shared ? inter : shared);
    if (moe > 0) {
        floats += 3 * T * N + (N + 1) + 3 * T * K + 3 * T * d
                  + 2 * T * (double)c->moe_intermediate_size;
        if (c->topk_method == TOPK_NOAUX_TC)
            floats += N;
        if (c->topk_method != TOPK_GREEDY)
            floats += T * (double)c->n_group + (double)c->topk_group;
        if (c->n_shared_experts)
            floats += T * d;
    }
    return 4 * floats + 8 * d_r / 2;                  /* frequencies */
}

static void check_bytes(const Config *c, bool naive, size_t ctx, size_t chunk,
                        bool all)
{
    SessionOptions o = {.ctx = ctx, .chunk = chunk, .naive = naive,
                        .logit_rows = all ? SIZE_MAX : 1};
    size_t T = chunk ? chunk : 128;
    double row = 2.0 * (double)c->num_attention_heads * (double)ctx * 4;
    double B = fmin(36, floor(2 * 1048576 / row));
    T = T < ctx ? T : ctx;
    B = B < 1 ? 1 : B > (double)T ? (double)T : B;
    double want = needed(c, naive, (double)T, (double)ctx,
                         all ? (double)T : 1, B);
    double found = (double)session_bytes(c, &o);
    if (want < (double)SIZE_MAX && found < want + 0.5 && found > want - 0.5)
        return;
    if (want < (double)SIZE_MAX)
        fail_msg("%.0f bytes, wanted %.0f", found, want);
}

static void test_session_bytes(void **state)
{
    static const char *const files[] = {
        "tests/data/configs/v2-lite.json", "tests/data/configs/v2.json",
        "tests/data/configs/v3.json", MODELS "k9-shapes/config.json",
        MODELS "dense-v2/config.json", MODELS "f16/config.json"};
    (void)state;
    for (int i = 0; i < 6; i++)
        for (int naive = 0; naive < 2; naive++) {
            Config c;
            Error err;
            must(config_read(&c, files[i], &err), &err);
            check_bytes(&c, naive, 4096, 0, false);
            check_bytes(&c, naive, 163840, 512, false);
            check_bytes(&c, naive, 100, 1, false);
            check_bytes(&c, naive, 100, 0, true);
        }
}

/* A session that no memory can hold is refused, and says what for. */
static void test_no_memory(void **state)
{
    Case c;
    Error err;
    Session s;
    SessionOptions o = {.ctx = 8, .chunk = SIZE_MAX, .logit_rows = SIZE_MAX};
    (void)state;
    case_open(&c, "k1-v2-lite", "golden");
    c.model.config.num_hidden_layers = SIZE_MAX / 16;
    assert_true(session_bytes(&c.model.config, &o) == SIZE_MAX);
    c.model.config.num_hidden_layers = 3;
    c.model.config.vocab_size = SIZE_MAX / 8;
    assert_int_equal(session_open(&s, &c.model, &o, &err), -1);
    assert_non_null(strstr(err.text, "not enough memory for "));
    session_close(&s);
    c.model.config.vocab_size = c.V;
    case_close(&c);
}

/* Likelihood ------------------------------------------------------------- */

/* -ln softmax(logits)[id] in double, straight from the definition. */
static double direct_nll(const float *logits, size_t n, int32_t id)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i]);
    return log(sum) - (double)logits[id];
}

static void check_nll(const char *name, size_t chunk)
{
    Case c;
    Error err;
    double nats, want = 0;
    case_open(&c, name, "golden");
    float *logits = all_logits(&c, false, c.T);
    for (size_t t = 0; t + 1 < c.T; t++)
        want += direct_nll(logits + t * c.V, c.V, c.ids[t + 1]);
    Session s = open_session(&c.model, (SessionOptions){
        .ctx = c.T, .chunk = chunk, .logit_rows = SIZE_MAX});
    must(session_nll(&s, c.ids, c.T, &nats, NULL, &err), &err);
    /* Each of T terms: the sum of V exponentials rounded to float, and its
     * reciprocal: some 2^-22. */
    assert_true(fabs(nats - want) <= (double)c.T * 0x1p-21);
    session_close(&s);
    free(logits);
    case_close(&c);
}

static void test_nll(void **state)
{
    (void)state;
    for (size_t chunk = 0; chunk <= 6; chunk += 3) {
        check_nll("k1-v2-lite", chunk);
        check_nll("k3-v3", chunk);
    }
}

static void test_nll_refuses(void **state)
{
    static const int32_t bad[] = {1, 2, 99};
    Case c;
    Error err;
    double nats;
    (void)state;
    case_open(&c, "k1-v2-lite", "golden");
    Session s = open_session(&c.model, (SessionOptions){.ctx = 8});
    must_fail(session_nll(&s, c.ids, 4, &nats, NULL, &err), &err,
              "session: wanted one with logits of 8 rows, found 0");
    session_close(&s);
    s = open_session(&c.model, (SessionOptions){.ctx = 8, .chunk = 2,
                                                .logit_rows = SIZE_MAX});
    must_fail(session_nll(&s, bad, 3, &nats, NULL, &err), &err,
              "id 2 of the input: wanted 0 to 63 (vocab_size - 1), found 99");
    must_fail(session_nll(&s, c.ids, 9, &nats, NULL, &err), &err,
              "context: wanted at most 8 tokens, found 9");
    assert_int_equal(s.pos, 0);
    must(session_nll(&s, c.ids, 1, &nats, NULL, &err), &err);
    assert_true(nats == 0);
    session_close(&s);
    case_close(&c);
}

/* Generation ------------------------------------------------------------- */

static Sink generated(const Case *c, size_t ctx, GenerateOptions o,
                      GenerateStats *stats)
{
    Sink sink = {.n = 0};
    Error err;
    Session s = open_session(&c->model, (SessionOptions){.ctx = ctx});
    o.vocabulary = o.vocabulary ? o.vocabulary : c->V;
    must(generate(&s, c->ids, c->T, &o, take, &sink, stats, &err), &err);
    session_close(&s);
    return sink;
}

static size_t argmax_below(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

/* Temperature 0 is the argmax of each pass, over the vocabulary allowed. */
static void test_greedy_is_argmax(void **state)
{
    Case c;
    GenerateStats stats;
    (void)state;
    case_open(&c, "k3-v3", "golden");
    for (size_t vocabulary = 5; vocabulary <= c.V; vocabulary += 59) {
        Sink got = generated(&c, c.T + 12, (GenerateOptions){
            .n = 12, .vocabulary = vocabulary}, &stats);
        Session s = open_session(&c.model, (SessionOptions){.ctx = c.T + 12});
        forward(&s, c.ids, c.T);
        for (size_t i = 0; i < 12; i++) {
            int32_t id = (int32_t)argmax_below(s.host_logits, vocabulary);
            assert_int_equal(got.ids[i], id);
            forward(&s, &id, 1);
        }
        assert_int_equal(got.n, 12);
        session_close(&s);
    }
    case_close(&c);
}

static void test_sampling_follows_the_seed(void **state)
{
    Case c;
    GenerateStats stats;
    GenerateOptions o = {.sampler = {1.5f, 40, 0.95f}, .seed = 7, .n = 30};
    (void)state;
    case_open(&c, "k1-v2-lite", "golden");
    Sink a = generated(&c, c.T + 30, o, &stats);
    Sink b = generated(&c, c.T + 30, o, &stats);
    o.seed = 8;
    Sink other = generated(&c, c.T + 30, o, &stats);
    assert_memory_equal(a.ids, b.ids, sizeof a.ids);
    assert_memory_not_equal(a.ids, other.ids, sizeof a.ids);
    case_close(&c);
}

/* A token that stops is not emitted; n, the context and the sink end too. */
static void test_generation_ends(void **state)
{
    Case c;
    GenerateStats stats;
    Sink s;
    size_t n, one;
    (void)state;
    case_open(&c, "k3-v3", "golden");
    int32_t *g = golden(&c.golden, "greedy_ids", DT_I32, &n, &one), stop[2];
    size_t at = 1;
    while (at < n - 1 && g[at] == g[0])
        at++;
    stop[0] = -5;
    stop[1] = g[at];
    s = generated(&c, c.T + n, (GenerateOptions){.n = n, .stop = stop,
                                                 .n_stop = 2}, &stats);
    assert_true(stats.stopped);
    assert_int_equal(s.n, at);
    assert_int_equal(stats.new_tokens, at);
    stop[1] = g[0];
    s = generated(&c, c.T + n, (GenerateOptions){.n = n, .stop = stop,
                                                 .n_stop = 2}, &stats);
    assert_true(stats.stopped && s.n == 0 && stats.new_tokens == 0);
    s = generated(&c, c.T + n, (GenerateOptions){.n = 1}, &stats);
    assert_true(!stats.stopped && s.n == 1 && s.ids[0] == g[0]);
    s = generated(&c, c.T, (GenerateOptions){.n = 0}, &stats);
    assert_true(!stats.stopped && s.n == 0 && stats.prompt_tokens == c.T);
    /* Full: the last token has been chosen, and is not run. */
    s = generated(&c, c.T + 3, (GenerateOptions){.n = n}, &stats);
    assert_true(!stats.stopped && s.n == 4 && stats.new_tokens == 4);
    assert_memory_equal(s.ids, g, 4 * sizeof *g);
    free(g);
    case_close(&c);
}

static int refuse(void *context, int32_t id, Error *err)
{
    (void)context;
    (void)id;
    return (fail)(err, "no more room");
}

static void test_generation_refuses(void **state)
{
    Case c;
    Error err;
    GenerateStats stats;
    GenerateOptions o = {.n = 3, .vocabulary = 65};
    Sink sink = {.enough = 2};
    (void)state;
    case_open(&c, "k1-v2-lite", "golden");
    Session s = open_session(&c.model, (SessionOptions){.ctx = 40});
    must_fail(generate(&s, c.ids, 4, &o, take, &sink, &stats, &err), &err,
              "vocabulary: wanted 1 to vocab_size (64) tokens, found 65");
    o.vocabulary = 0;
    must_fail(generate(&s, c.ids, 4, &o, take, &sink, &stats, &err), &err,
              "vocabulary: wanted 1 to vocab_size (64) tokens, found 0");
    o.vocabulary = 64;
    must_fail(generate(&s, c.ids, 0, &o, take, &sink, &stats, &err), &err,
              "prompt: wanted at least 1 token, found none");
    must(generate(&s, c.ids, 4, &o, take, &sink, &stats, &err), &err);
    assert_int_equal(sink.n, 2);
    must_fail(generate(&s, c.ids, 4, &o, refuse, NULL, &stats, &err), &err,
              "no more room");
    session_close(&s);
    case_close(&c);
}

/* Weights that are no numbers -------------------------------------------- */

/* A copy of the case's file with one 16-bit element replaced. */
static char *spoiled_copy(const char *name, const char *tensor, size_t i,
                          uint16_t bits, const char *dir)
{
    char from[200], *to = scratch_dup(dir), path[500];
    Safetensors st;
    Error err;
    File file;
    must(make_dir(to, &err), &err);
    snprintf(from, sizeof from, MODELS "%s/config.json", name);
    must(file_open(&file, from, &err), &err);
    snprintf(path, sizeof path, "%s/config.json", to);
    put_file(path, file.data, file.size);
    file_close(&file);
    snprintf(from, sizeof from, MODELS "%s/model.safetensors", name);
    must(st_open(&st, from, &err), &err);
    const StTensor *t = st_find(&st, tensor);
    assert_non_null(t);
    must(file_read(&file, from, &err), &err);
    memcpy((unsigned char *)file.data + (t->data - st.files[0].data) + 2 * i,
           &bits, 2);
    snprintf(path, sizeof path, "%s/model.safetensors", to);
    put_file(path, file.data, file.size);
    file_close(&file);
    st_close(&st);
    return to;
}

static void remove_copy(char *dir)
{
    char path[500];
    snprintf(path, sizeof path, "%s/config.json", dir);
    remove(path);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    remove(path);
    remove(dir);
    free(dir);
}

/* 0x7f80 is BF16's infinity, 0x7fc0 a NaN, 0xff7f its least finite number. */
static void check_not_finite(const char *tensor, size_t i, uint16_t bits,
                             const char *found)
{
    static const int32_t ids[] = {3, 4, 5};
    char wanted[700];
    Model m;
    Error err;
    char *dir = spoiled_copy("k1-v2-lite", tensor, i, bits, "spoiled");
    must(model_open(&m, dir, &err), &err);
    Session s = open_session(&m, (SessionOptions){.ctx = 3});
    snprintf(wanted, sizeof wanted, "%s/model.safetensors: %s", dir, found);
    must_fail(session_forward(&s, ids, 3, NULL, &err), &err, wanted);
    session_close(&s);
    model_close(&m);
    remove_copy(dir);
}

static void test_not_finite_weights_are_named(void **state)
{
    (void)state;
    check_not_finite("model.layers.1.self_attn.o_proj.weight", 25, 0x7fc0,
                     "model.layers.1.self_attn.o_proj.weight: element (1, 1)"
                     " is nan, wanted a finite number");
    check_not_finite("model.norm.weight", 31, 0xff80,
                     "model.norm.weight: element (0, 31) is -inf, wanted a"
                     " finite number");
    check_not_finite("model.layers.2.mlp.shared_experts.down_proj.weight", 0,
                     0x7f80, "model.layers.2.mlp.shared_experts.down_proj."
                     "weight: element (0, 0) is inf, wanted a finite number");
}

/* All weights finite, the sum is not: no tensor is to blame. */
static void test_not_finite_logit(void **state)
{
    static const int32_t ids[] = {3, 4, 5};
    Model m;
    Error err;
    char *dir = spoiled_copy("k1-v2-lite", "model.norm.weight", 0, 0x7f7f,
                             "spoiled");
    (void)state;
    must(model_open(&m, dir, &err), &err);
    Session s = open_session(&m, (SessionOptions){.ctx = 3});
    if (session_forward(&s, ids, 3, NULL, &err) == 0)
        fail_msg("finite: choose another element");
    assert_non_null(strstr(err.text, " of position 2 is "));
    assert_non_null(strstr(err.text, ", wanted a finite number"));
    session_close(&s);
    model_close(&m);
    remove_copy(dir);
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
        cmocka_unit_test(test_chunk_option_changes_no_bit),
        cmocka_unit_test(test_trace_changes_no_bit),
        cmocka_unit_test(test_score_block_changes_no_bit),
        cmocka_unit_test(test_rewind),
        cmocka_unit_test(test_context_is_finite),
        cmocka_unit_test(test_ids_are_in_range),
        cmocka_unit_test(test_session_bytes),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_nll), cmocka_unit_test(test_nll_refuses),
        cmocka_unit_test(test_greedy_is_argmax),
        cmocka_unit_test(test_sampling_follows_the_seed),
        cmocka_unit_test(test_generation_ends),
        cmocka_unit_test(test_generation_refuses),
        cmocka_unit_test(test_not_finite_weights_are_named),
        cmocka_unit_test(test_not_finite_logit),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove(scratch(""));
    return failed;
}
