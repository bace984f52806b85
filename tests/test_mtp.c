/* test_mtp.c: the modules against the reference, drafting against decoding.
 *
 * golden/mtp.safetensors of the models mtp-present (one module) and mtp-two:
 * what the NumPy forward (tests/reference/forward.py) gives in float64 for
 * rows of known tokens and for drafts, with each disputed reading. The rest
 * are properties, of random models in memory: drafting changes no greedy text,
 * no distribution, and leaves no trace in a cache. ROUNDS in the environment
 * tries so many times as much (`make exhaustive`). */
#include "case.h"

static size_t rounds(void)
{
    const char *text = getenv("ROUNDS");
    size_t n = text ? (size_t)strtoul(text, NULL, 10) : 1;
    return n > 0 ? n : 1;
}

/* Models in memory ------------------------------------------------------- */

static size_t one_of(Random *r, const size_t *x, size_t n)
{
    return x[random_between(r, 0, n - 1)];
}

static void random_experts(Config *c, Random *r)
{
    static const size_t groups[] = {1, 2, 4};
    size_t g = one_of(r, groups, 3);
    c->n_routed_experts = 2 * g * random_between(r, 1, 2);
    c->n_group = g;
    c->topk_group = random_between(r, 1, g);
    c->num_experts_per_tok = random_between(
        r, 1, c->n_routed_experts / g * c->topk_group);
    c->n_shared_experts = random_between(r, 0, 2);
    c->moe_intermediate_size = random_between(r, 1, 6);
    c->first_k_dense_replace = random_between(r, 0, 3);
    if (c->model_type == DEEPSEEK_V3)
        c->topk_method = TOPK_NOAUX_TC;
    else
        c->topk_method = g > 1 ? TOPK_GROUP_LIMITED_GREEDY : TOPK_GREEDY;
}

/* V2 or V3, dense or not, with one to three modules. */
static Config random_config(Random *r)
{
    static const size_t q_lora[] = {0, 5};
    Config c = {.model_type = random_between(r, 0, 1) ? DEEPSEEK_V3
                                                      : DEEPSEEK_V2,
                .moe_layer_freq = 1, .rms_norm_eps = 1e-6,
                .rope_theta = 10000, .initializer_range = 0.02,
                .routed_scaling_factor = 1.5, .rope_scaling = {.mscale = 1},
                .max_position_embeddings = 4096, .bos_token_id = -1,
                .torch_dtype = DT_F32};
    c.vocab_size = random_between(r, 2, 20);
    c.hidden_size = random_between(r, 2, 20);
    c.num_hidden_layers = random_between(r, 1, 3);
    c.intermediate_size = random_between(r, 1, 20);
    c.num_attention_heads = random_between(r, 1, 2);
    c.q_lora_rank = one_of(r, q_lora, 2);
    c.kv_lora_rank = random_between(r, 2, 8);
    c.qk_nope_head_dim = random_between(r, 1, 6);
    c.qk_rope_head_dim = 2 * random_between(r, 1, 3);
    c.v_head_dim = random_between(r, 1, 6);
    c.tie_word_embeddings = random_between(r, 0, 3) == 0;
    c.num_nextn_predict_layers = random_between(r, 1, 3);
    c.scoring_func = c.model_type == DEEPSEEK_V3 ? SCORING_SIGMOID
                                                 : SCORING_SOFTMAX;
    c.norm_topk_prob = c.model_type == DEEPSEEK_V3;
    if (random_between(r, 0, 2))
        random_experts(&c, r);
    c.mtp_hidden_first = random_between(r, 0, 7) == 0;
    c.mtp_before_norm = random_between(r, 0, 7) == 0;
    c.mtp_carry_raw = random_between(r, 0, 7) == 0;
    c.mtp_zero_first = random_between(r, 0, 7) == 0;
    return c;
}

/* How a random model's modules come to agree with it: what blocks add is
 * multiplied by `noise`, and eh_proj takes the embedding through. With noise 0
 * the next token follows from the last one alone, and a module knows it. */
static void design(Matrix *w, const TensorInfo *t, float noise)
{
    float *x = (float *)(uintptr_t)w->data;
    bool adds = strstr(t->name, "o_proj") || strstr(t->name, "down_proj");
    if (t->kind == TENSOR_NORM)
        for (size_t i = 0; i < t->cols; i++)
            x[i] = 1;
    if (adds || t->kind == TENSOR_EH_PROJ)
        scale(x, x, noise, t->rows * t->cols);
    for (size_t i = 0; t->kind == TENSOR_EH_PROJ && i < t->rows; i++)
        x[i * t->cols + i] += 1;
}

static bool has_copy(const TensorInfo *t)
{
    return t->mtp && (t->kind == TENSOR_EMBED || t->kind == TENSOR_HEAD);
}

/* noise below 0: nothing is designed, Linear weights may be BF16 or FP8, and
 * modules have tables of their own, or none. */
static void random_weights(Model *m, Random *r, float noise)
{
    static const DType dtypes[] = {DT_F32, DT_BF16, DT_F8_E4M3};
    TensorWalk walk = tensor_walk(&m->config, m);
    TensorInfo t;
    bool copies = noise < 0 && random_between(r, 0, 1);
    DType dtype = noise < 0 ? dtypes[random_between(r, 0, 2)] : DT_F32;
    while (tensor_next(&walk, &t)) {
        size_t rows = t.rank == 1 ? 1 : t.rows;
        if (has_copy(&t) && !copies)
            continue;
        *t.slot = random_matrix(r, rows, t.cols,
                                t.kind == TENSOR_LINEAR ? dtype : DT_F32,
                                t.kind == TENSOR_EMBED || t.rank == 1
                                    ? 1 : 1.3f / sqrtf((float)t.cols));
        if (noise >= 0)
            design(t.slot, &t, noise);
    }
    if (m->config.tie_word_embeddings)
        m->lm_head = m->embed_tokens;
}

static Model model_of(Config c, Random *r, float noise)
{
    Model m = {.config = c, .n_mtp = c.num_nextn_predict_layers};
    size_t n = c.num_hidden_layers + c.num_nextn_predict_layers;
    size_t N = c.n_routed_experts;
    Error err;
    must(config_check(&c, "random", &err), &err);
    m.layers = test_alloc(n, sizeof *m.layers);
    m.experts = test_alloc(n * N, sizeof *m.experts);
    for (size_t l = 0; l < n; l++) {
        m.layers[l].is_moe = config_is_moe(&c, l);
        m.layers[l].moe.experts = m.experts + l * N;
    }
    random_weights(&m, r, noise);
    return m;
}

static void model_free(Model *m)
{
    TensorWalk walk = tensor_walk(&m->config, m);
    TensorInfo t;
    while (tensor_next(&walk, &t))
        if (t.slot->data)
            matrix_free(t.slot);
    free(m->layers);
    free(m->experts);
}

static float random_noise(Random *r)
{
    static const float noise[] = {-1, 0, 0.1f, 0.4f};
    return noise[random_between(r, 0, 3)];
}

/* Runs ------------------------------------------------------------------- */

enum { MOST = 64 };

typedef struct {
    int32_t ids[MOST];
    size_t n, enough;    /* the sink has enough after so many; 0: never */
    int answer;          /* what it says then */
    size_t pos;          /* of the cache, at the end */
    GenerateStats stats;
    MtpStats drafted;
} Said;

static int take(void *context, int32_t id, Error *err)
{
    Said *t = context;
    assert_true(t->n < MOST);
    t->ids[t->n++] = id;
    if (t->n != t->enough)
        return 0;
    return t->answer < 0 ? (fail)(err, "no more room") : 1;
}

/* What one run is. */
typedef struct {
    const Model *model;
    int32_t prompt[MOST];
    size_t n, drafts;    /* drafts 0: plain decoding */
    bool best;
    SessionOptions session;
    GenerateOptions o;
} Task;

static void open_task(const Task *t, Session *s, Mtp *m)
{
    SessionOptions o = t->session;
    Error err;
    if (t->drafts)
        must(mtp_options(&o, t->model, t->drafts, &err), &err);
    must(session_open(s, t->model, &o, &err), &err);
    if (t->drafts)
        must(mtp_open(m, s, t->drafts, t->best, &err), &err);
}

static int run_on(const Task *t, Session *s, Mtp *m, Said *text, Error *err)
{
    int status = t->drafts
        ? mtp_generate(m, t->prompt, t->n, &t->o, take, text, &text->stats,
                       &text->drafted, err)
        : generate(s, t->prompt, t->n, &t->o, take, text, &text->stats, err);
    text->pos = s->pos;
    return status;
}

static Said run_task(const Task *t, Said text)
{
    Session s;
    Mtp m;
    Error err;
    open_task(t, &s, &m);
    must(run_on(t, &s, &m, &text, &err), &err);
    if (t->drafts)
        mtp_close(&m);
    session_close(&s);
    return text;
}

static Task random_task(const Model *m, Random *r)
{
    Task t = {.model = m, .n = random_between(r, 1, 12)};
    size_t V = m->config.vocab_size;
    for (size_t i = 0; i < t.n; i++)
        t.prompt[i] = (int32_t)random_between(r, 0, V - 1);
    t.o = (GenerateOptions){.sampler = {0, 0, 1}, .seed = random_u64(r),
                            .n = random_between(r, 0, 30),
                            .vocabulary = random_between(r, (V + 1) / 2, V)};
    t.session = (SessionOptions){.ctx = t.n + random_between(r, 0, 40),
                                 .chunk = random_between(r, 0, 5),
                                 .naive = random_between(r, 0, 3) == 0};
    if (m->layers[0].self_attn.o_proj.dtype == DT_F8_E4M3)
        t.session.fp8 = t.session.naive = random_between(r, 0, 1);
    return t;
}

static void must_agree(const Said *a, const Said *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_int_equal(a->stats.new_tokens, b->stats.new_tokens);
    assert_int_equal(a->stats.stopped, b->stats.stopped);
    assert_int_equal(a->stats.prompt_tokens, b->stats.prompt_tokens);
    assert_int_equal(a->pos, b->pos);
}

/* Greedy text ------------------------------------------------------------ */

/* What many runs met: that every way of ending and judging was tried. */
typedef struct {
    size_t accepted, refused, stopped, full, enough, late, fp8;
} Met;

static void note(Met *met, const Task *t, const Said *text)
{
    const MtpStats *d = &text->drafted;
    for (size_t j = 0; j < MAX_DRAFTS; j++) {
        met->accepted += d->accepted[j];
        met->refused += d->tried[j] - d->accepted[j];
        met->late += j >= t->model->n_mtp ? d->accepted[j] : 0;
    }
    met->stopped += text->stats.stopped;
    met->full += text->pos == t->session.ctx;
    met->enough += text->enough && text->n == text->enough;
    met->fp8 += t->session.fp8;
}

static void check_greedy(Random *r, Met *met)
{
    Config c = random_config(r);
    Model m = model_of(c, r, random_noise(r));
    Task t = random_task(&m, r);
    int32_t stop[1] = {(int32_t)random_between(r, 0, c.vocab_size - 1)};
    Said none = {.enough = random_between(r, 0, 4) ? 0
                            : random_between(r, 1, 20)};
    t.o.stop = stop;
    t.o.n_stop = random_between(r, 0, 1);
    Said plain = run_task(&t, none);
    t.drafts = random_between(r, 1, 6);
    t.best = random_between(r, 0, 1);
    t.session.chunk = random_between(r, 0, 9);
    Said drafted = run_task(&t, none);
    must_agree(&drafted, &plain);
    note(met, &t, &drafted);
    model_free(&m);
}

/* Drafting is greedy decoding bit for bit: every id, count, and the cache's
 * length, of V2 and V3, dense or not, one to three modules, one to six
 * drafts, every chunk, both forms, ends of the context, stop ids, sinks. */
static void test_greedy_is_plain(void **state)
{
    Random r = test_random();
    Met met = {0};
    (void)state;
    for (size_t i = 0; i < 1500 * rounds(); i++)
        check_greedy(&r, &met);
    print_message("%zu models: %zu drafts accepted, %zu of them beyond the"
                  " modules; %zu refused; %zu texts stopped, %zu full, %zu"
                  " sated; %zu with FP8 activations\n", 1500 * rounds(),
                  met.accepted, met.late, met.refused, met.stopped, met.full,
                  met.enough, met.fp8);
    assert_true(met.accepted > 2000 && met.late > 500 && met.refused > 2000
                && met.stopped > 100 && met.full > 100 && met.enough > 50
                && met.fp8 > 30);
}

/* The ends that a draft may reach, one by one: -n, the context, a stop id and
 * a sink inside it. In these models every draft is right. */
static void test_ends_inside_a_draft(void **state)
{
    Random r = test_random();
    Met met = {0};
    (void)state;
    for (size_t i = 0; i < 10 * rounds(); i++) {
        Model m = model_of(random_config(&r), &r, 0);
        Task t = random_task(&m, &r);
        for (size_t end = 0; end < 4 * 14; end++) {
            size_t n = end / 4 + 1;
            Said none = {.enough = end % 4 == 0 ? n : 0};
            Task plain = t;
            plain.o.n = end % 4 == 1 ? n : 20;
            plain.session.ctx = t.n + (end % 4 == 2 ? n : 20);
            plain.o.stop = &t.prompt[n % t.n];
            plain.o.n_stop = end % 4 == 3;
            Task drafted = plain;
            drafted.drafts = random_between(&r, 3, 6);
            Said a = run_task(&plain, none), b = run_task(&drafted, none);
            must_agree(&b, &a);
            note(&met, &drafted, &b);
        }
        model_free(&m);
    }
    assert_true(met.accepted > 250 && met.full > 25 && met.enough > 25);
}

/* An error of the sink comes through, from a draft too. */
static void test_sink_refuses(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t n = 1; n < 8; n++) {
        Model m = model_of(random_config(&r), &r, 0);
        Task t = random_task(&m, &r);
        Said said = {.enough = n, .answer = -1};
        Session s;
        Mtp mtp;
        Error err;
        t.drafts = 4;
        t.o.n = 20;
        t.session.ctx = t.n + 20;
        open_task(&t, &s, &mtp);
        must_fail(run_on(&t, &s, &mtp, &said, &err), &err, "no more room");
        assert_int_equal(said.n, n);
        mtp_close(&mtp);
        session_close(&s);
        model_free(&m);
    }
}

/* Caches ----------------------------------------------------------------- */

/* What a run leaves in the caches is what all its tokens would have left if
 * they had been known from the start: of the main model, and of each module
 * up to the first row that is not final. */
static void check_caches(const Task *t, const Session *s, const Mtp *mtp,
                         const Said *text)
{
    const Config *c = &t->model->config;
    size_t width = c->kv_lora_rank + c->qk_rope_head_dim;
    size_t L = c->num_hidden_layers, ctx = t->session.ctx;
    int32_t all[2 * MOST];
    Task whole = *t;
    Session other;
    Mtp modules;
    Error err;
    memcpy(all, t->prompt, t->n * sizeof *all);
    memcpy(all + t->n, text->ids, text->n * sizeof *all);
    whole.session.chunk = 0;
    open_task(&whole, &other, &modules);
    must(mtp_prompt(&modules, all, s->pos, NULL, &err), &err);
    for (size_t l = 0; l < L + s->options.modules; l++) {
        size_t rows = l < L ? s->pos : mtp->row[l - L];
        assert_true(rows <= s->pos);
        must_equal_bits(s->cache + l * ctx * width,
                        other.cache + l * ctx * width, rows * width, "cache");
    }
    mtp_close(&modules);
    session_close(&other);
}

static void test_caches_are_as_if_known(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t i = 0; i < 200 * rounds(); i++) {
        Model m = model_of(random_config(&r), &r, random_noise(&r));
        Task t = random_task(&m, &r);
        Said text = {.n = 0};
        Session s;
        Mtp mtp;
        Error err;
        t.drafts = random_between(&r, 1, 6);
        open_task(&t, &s, &mtp);
        must(run_on(&t, &s, &mtp, &text, &err), &err);
        check_caches(&t, &s, &mtp, &text);
        mtp_close(&mtp);
        session_close(&s);
        model_free(&m);
    }
}

/* A prompt after a text that was drafted, at any point of it, is as a new
 * one, in every cache: mtp_rewind says from where on it has to run. */
static void check_continued(const Task *t, Random *r, Said *text)
{
    Session s;
    Mtp mtp;
    Error err;
    Task next = *t, fresh;
    Said said = {.n = 0}, want;
    size_t known, all;
    open_task(t, &s, &mtp);
    must(run_on(t, &s, &mtp, text, &err), &err);
    known = random_between(r, 0, s.pos);
    all = known;
    memcpy(next.prompt + t->n, text->ids,
           (MOST - t->n < text->n ? MOST - t->n : text->n)
               * sizeof *text->ids);
    while (all < known + 3 && all < MOST && all < t->session.ctx)
        next.prompt[all++] = t->prompt[0];
    fresh = next;
    fresh.n = all;
    fresh.drafts = 0;
    size_t left = mtp_rewind(&mtp, known < all ? known : all - 1);
    assert_true(left <= known
                && left + s.options.modules + t->drafts + 1 >= known);
    assert_int_equal(s.pos, left);
    memmove(next.prompt, next.prompt + left,
            (all - left) * sizeof *next.prompt);
    next.n = all - left;
    must(run_on(&next, &s, &mtp, &said, &err), &err);
    want = run_task(&fresh, (Said){.n = 0});
    assert_int_equal(said.n, want.n);
    assert_memory_equal(said.ids, want.ids, want.n * sizeof *want.ids);
    assert_int_equal(said.pos, want.pos);
    fresh.drafts = t->drafts;
    check_caches(&fresh, &s, &mtp, &said);
    mtp_close(&mtp);
    session_close(&s);
}

static void test_continued(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t i = 0; i < 200 * rounds(); i++) {
        Model m = model_of(random_config(&r), &r, random_noise(&r));
        Task t = random_task(&m, &r);
        Said text = {.n = 0};
        t.drafts = random_between(&r, 1, 6);
        check_continued(&t, &r, &text);
        model_free(&m);
    }
}

/* A prompt in any chunks leaves the same drafts, of a model whose modules are
 * at work on it in every chunk. */
static void test_chunks_change_no_draft(void **state)
{
    Random r = test_random();
    GenerateOptions o = {.sampler = {0, 0, 1}};
    (void)state;
    for (size_t i = 0; i < 150 * rounds(); i++) {
        Model m = model_of(random_config(&r), &r, -1);
        Task t = random_task(&m, &r);
        size_t V = m.config.vocab_size;
        float *logits = test_alloc(V, sizeof *logits);
        int32_t want[8];
        t.session.ctx = t.n + 10;
        t.drafts = random_between(&r, 1, 5);
        o.vocabulary = V;
        for (size_t chunk = 0; chunk <= t.n; chunk++) {
            Session s;
            Mtp mtp;
            Error err;
            t.session.chunk = chunk;
            open_task(&t, &s, &mtp);
            must(mtp_prompt(&mtp, t.prompt, t.n, NULL, &err), &err);
            must(mtp_draft(&mtp, 1, t.drafts, &o, &err), &err);
            if (chunk) {
                must_equal_bits(s.host_logits, logits, V, "last draft");
                assert_memory_equal(mtp.ids + t.n, want,
                                    (t.drafts + 1) * sizeof *want);
            }
            memcpy(logits, s.host_logits, V * sizeof *logits);
            memcpy(want, mtp.ids + t.n, (t.drafts + 1) * sizeof *want);
            mtp_close(&mtp);
            session_close(&s);
        }
        free(logits);
        model_free(&m);
    }
}

/* q is what a draft was drawn from: one id with 1 if only the best is drafted,
 * and ids are of the vocabulary that text is sampled from. */
static void check_drawn(const Task *t, Random *r)
{
    Session s;
    Mtp m;
    Error err;
    size_t V = t->model->config.vocab_size;
    open_task(t, &s, &m);
    must(mtp_prompt(&m, t->prompt, t->n, NULL, &err), &err);
    must(mtp_draft(&m, (int32_t)random_between(r, 0, V - 1), t->drafts, &t->o,
                   &err), &err);
    for (size_t j = 0; j < t->drafts; j++) {
        const float *q = m.q + j * V;
        size_t n = 0, id = (size_t)m.ids[t->n + 1 + j];
        assert_true(id < t->o.vocabulary && q[id] > 0);
        for (size_t i = 0; i < t->o.vocabulary; i++)
            n += q[i] > 0;
        assert_int_equal(n, t->best ? 1 : t->o.vocabulary);
        if (t->best && j + 1 == t->drafts)
            assert_int_equal(id, argmax(session_logits(&s, 0),
                                        t->o.vocabulary));
    }
    mtp_close(&m);
    session_close(&s);
}

static void test_drawn_from_q(void **state)
{
    Random r = test_random();
    (void)state;
    for (int i = 0; i < 200; i++) {
        Model m = model_of(random_config(&r), &r, random_noise(&r));
        Task t = random_task(&m, &r);
        t.drafts = random_between(&r, 1, 6);
        t.best = i % 2;
        t.o.sampler.temperature = 4;
        t.session.ctx = t.n + 8;
        check_drawn(&t, &r);
        model_free(&m);
    }
}

/* Golden values ---------------------------------------------------------- */

/* A trace of the main model and of all modules. */
static void trace_case(const Case *c, SessionOptions o, const char *path)
{
    Session s;
    Mtp mtp;
    Error err;
    Trace *trace = trace_open(path, true, NULL, &err);
    assert_non_null(trace);
    o.ctx = c->T;
    o.logit_rows = SIZE_MAX;
    o.modules = c->D;
    o.trace = trace;
    must(session_open(&s, &c->model, &o, &err), &err);
    must(mtp_open(&mtp, &s, 0, false, &err), &err);
    must(mtp_prompt(&mtp, c->ids, c->T, NULL, &err), &err);
    mtp_close(&mtp);
    session_close(&s);
    must(trace_close(trace, &err), &err);
}

static double error_of(const StTensor *want, const StTensor *got)
{
    float *a, *b;
    double e;
    if (!got || got->elements != want->elements || got->dtype != want->dtype
        || got->shape[0] != want->shape[0])
        fail_msg("%s: absent, or of another shape", want->name);
    if (want->dtype == DT_I32)
        return memcmp(want->data, got->data, want->bytes) != 0;
    a = test_alloc(want->elements, sizeof *a);
    b = test_alloc(want->elements, sizeof *b);
    memcpy(a, want->data, want->bytes);
    memcpy(b, got->data, got->bytes);
    e = nmse(b, a, want->elements);
    free(a);
    free(b);
    return e;
}

/* Every stage of every module, T-k rows of module k: values to NMSE 1e-9,
 * routes exactly. */
static void check_modules(const char *name, SessionOptions o)
{
    char *path = scratch_dup("trace.safetensors");
    Safetensors traced;
    Case c;
    Error err;
    size_t compared = 0;
    case_open(&c, name, "mtp");
    trace_case(&c, o, path);
    must(st_open(&traced, path, &err), &err);
    for (size_t i = 0; i < c.golden.n_tensors; i++) {
        const StTensor *want = &c.golden.tensors[i];
        if (strstr(want->name, "mtp_") || strstr(want->name, "draft")
            || strcmp(want->name, "ids") == 0)
            continue;
        double e = error_of(want, st_find(&traced, want->name));
        if (!(e <= 1e-9))
            fail_msg("%s: %s: NMSE %g", name, want->name, e);
        compared++;
    }
    assert_int_equal(compared, 8 * c.D);
    st_close(&traced);
    remove(path);
    free(path);
    case_close(&c);
}

static void test_golden(void **state)
{
    (void)state;
    for (size_t chunk = 0; chunk < 6; chunk += 5)
        for (int naive = 0; naive < 2; naive++) {
            SessionOptions o = {.chunk = chunk, .naive = naive};
            check_modules("mtp-present", o);
            check_modules("mtp-two", o);
        }
}

/* Row i of a module stands at position i: at 0, RoPE turns nothing. */
static void test_positions(void **state)
{
    char *path = scratch_dup("trace.safetensors"), name[80];
    size_t d_r = 8, width = 28, T, n;
    Safetensors traced;
    Case c;
    Error err;
    (void)state;
    case_open(&c, "mtp-two", "mtp");
    trace_case(&c, (SessionOptions){0}, path);
    must(st_open(&traced, path, &err), &err);
    for (size_t layer = 2; layer < 4; layer++) {
        snprintf(name, sizeof name, "model.layers.%zu.self_attn.k_pe", layer);
        float *k = golden(&traced, name, DT_F32, &T, &n);
        assert_int_equal(n, d_r);
        snprintf(name, sizeof name,
                 "model.layers.%zu.self_attn.kv_a_proj_with_mqa", layer);
        float *raw = golden(&traced, name, DT_F32, &T, &n);
        assert_int_equal(n, width);
        raw += width - d_r;
        must_equal_bits(k, raw, d_r, name);
        assert_memory_not_equal(k + d_r, raw + width, d_r * sizeof *k);
        free(k);
        free(raw - (width - d_r));
    }
    st_close(&traced);
    remove(path);
    free(path);
    case_close(&c);
}

/* Drafts and the logits of the last one, n of them behind the next token. */
static double draft_error(const Case *c, size_t n, const char *tensor,
                          bool ids_too)
{
    size_t K, one, V;
    int32_t *ids = golden(&c->golden, "draft_ids", DT_I32, &K, &one);
    float *logits = golden(&c->golden, tensor, DT_F32, &K, &V);
    SessionOptions o = {.ctx = c->T + K};
    GenerateOptions g = {.sampler = {0, 0, 1}, .vocabulary = c->V};
    Session s;
    Mtp mtp;
    Error err;
    must(mtp_options(&o, &c->model, n, &err), &err);
    must(session_open(&s, &c->model, &o, &err), &err);
    must(mtp_open(&mtp, &s, n, false, &err), &err);
    must(mtp_prompt(&mtp, c->ids, c->T, NULL, &err), &err);
    assert_int_equal(argmax(session_logits(&s, 0), V), ids[0]);
    must(mtp_draft(&mtp, ids[0], n, &g, &err), &err);
    if (ids_too)
        assert_memory_equal(mtp.ids + c->T, ids, (n + 1) * sizeof *ids);
    double e = nmse(session_logits(&s, 0), logits + n * V, V);
    mtp_close(&mtp);
    session_close(&s);
    free(ids);
    free(logits);
    return e;
}

static void test_golden_drafts(void **state)
{
    static const char *const names[] = {"mtp-present", "mtp-two"};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        Case c;
        case_open(&c, names[i], "mtp");
        for (size_t n = 1; n < 5; n++)
            assert_true(draft_error(&c, n, "draft_logits", true) <= 1e-9);
        case_close(&c);
    }
}

/* Where sources disagree: module k's logits with the other reading, which are
 * far from the default's. */
static void check_reading(const char *reading, const char *field, size_t k)
{
    char *path = scratch_dup("trace.safetensors"), name[80], plain[20];
    Safetensors traced;
    Case c;
    Error err;
    case_open(&c, "mtp-two", "mtp");
    must(config_reading(&c.model.config, reading, &err), &err);
    trace_case(&c, (SessionOptions){0}, path);
    must(st_open(&traced, path, &err), &err);
    snprintf(plain, sizeof plain, "mtp.%zu.logits", k);
    snprintf(name, sizeof name, "%s.%s", plain, field);
    const StTensor *got = st_find(&traced, plain);
    assert_true(error_of(st_find(&c.golden, name), got) <= 1e-9);
    assert_true(error_of(st_find(&c.golden, plain), got) > 1e-4);
    snprintf(name, sizeof name, "draft_logits.%s", field);
    assert_true(draft_error(&c, 2, name, false) <= 1e-9);
    st_close(&traced);
    remove(path);
    free(path);
    case_close(&c);
}

static void test_readings(void **state)
{
    (void)state;
    check_reading("mtp-order=hidden-first", "mtp_hidden_first", 1);
    check_reading("mtp-state=before-norm", "mtp_before_norm", 1);
    check_reading("mtp-carry=before-norm", "mtp_carry_raw", 2);
    check_reading("mtp-embedding-0=zeroed", "mtp_zero_first", 1);
}

/* The rule --------------------------------------------------------------- */

/* A distribution over n ids, sparse in q too: some are 0 in both. */
static size_t random_distribution(Random *r, uint32_t *order, float *p,
                                  size_t n)
{
    Sampler s = {0.2f + 2 * random_uniform(r), random_between(r, 0, n),
                 random_between(r, 0, 2) ? 1 : random_uniform(r)};
    float logits[16];
    random_fill(r, logits, n);
    if (random_between(r, 0, 9) == 0)
        s.temperature = 0;
    for (size_t i = 0; i < n; i++)
        logits[i] *= 3;
    return sample_distribution(&s, logits, n, order, p);
}

static void dense(double *out, const uint32_t *order, const float *p,
                  size_t kept)
{
    for (size_t i = 0; i < 16; i++)
        out[i] = 0;
    for (size_t i = 0; i < kept; i++)
        out[order[i]] = (double)p[i];
}

/* Leviathan's identity, by exact summation over all drafts:
 * Σ_x q(x) [a(x) 1(v = x) + (1 - a(x)) r(v)] = p(v), a the acceptance, r the
 * residual; for sampled drafts and for one-hot q. */
static void test_one_step_gives_p(void **state)
{
    Random r = test_random();
    (void)state;
    for (int i = 0; i < 20000; i++) {
        uint32_t order[16], rest[16];
        float p_kept[16], q_kept[16], q[16] = {0};
        double p[16], q_all[16], out[16] = {0}, left[16], refused = 0;
        size_t n = random_between(&r, 1, 16);
        size_t kept = random_distribution(&r, rest, q_kept, n);
        dense(q_all, rest, q_kept, kept);
        kept = random_distribution(&r, order, p_kept, n);
        dense(p, order, p_kept, kept);
        for (size_t x = 0; x < n; x++)
            q[x] = (float)q_all[x];
        for (size_t x = 0; x < n; x++) {
            double a = draft_acceptance(p[x], (double)q[x]);
            out[x] += q[x] > 0 ? (double)q[x] * a : 0;
            refused += q[x] > 0 ? (double)q[x] * (1 - a) : 0;
        }
        kept = draft_residual(order, p_kept, kept, q);
        dense(left, order, p_kept, kept);
        for (size_t v = 0; v < n; v++)
            if (fabs(out[v] + refused * left[v] - p[v]) > 1e-6)
                fail_msg("p(%zu) = %g, found %g", v, p[v],
                         out[v] + refused * left[v]);
    }
}

/* Nothing is left of p where q is the same; a draft that p has not is never
 * kept. */
static void test_edges_of_the_rule(void **state)
{
    uint32_t order[2] = {4, 2};
    float p[2] = {0.75f, 0.25f}, q[5] = {0, 0, 0.25f, 0, 0.75f};
    (void)state;
    assert_int_equal(draft_residual(order, p, 2, q), 0);
    assert_true(draft_acceptance(0, 0.5) == 0);
    assert_true(draft_acceptance(0.5, 0.5) == 1);
    assert_true(draft_acceptance(0.5, 0.25) == 1);
    assert_true(draft_acceptance(0.125, 0.25) == 0.5);
    q[2] = 0.5f;
    q[4] = 0.5f;
    assert_int_equal(draft_residual(order, p, 2, q), 1);
    assert_true(order[0] == 4 && p[0] > 0.999f && p[0] < 1.001f);
}

/* Sampled text ----------------------------------------------------------- */

enum { VOCAB = 4, CELLS = VOCAB * VOCAB * VOCAB };

/* The probability of every text of three tokens, by plain decoding. */
static void exact(const Task *t, double *cells)
{
    Session s;
    Error err;
    uint32_t order[VOCAB];
    float p[VOCAB];
    double all[3][16];
    must(session_open(&s, t->model, &t->session, &err), &err);
    for (int32_t cell = 0; cell < CELLS; cell++) {
        int32_t id[3] = {cell / 16, cell / 4 % 4, cell % 4};
        session_rewind(&s, 0);
        must(session_forward(&s, t->prompt, t->n, NULL, &err), &err);
        cells[cell] = 1;
        for (int i = 0; i < 3; i++) {
            dense(all[i], order, p, sample_distribution(
                &t->o.sampler, session_logits(&s, 0), VOCAB, order, p));
            cells[cell] *= all[i][id[i]];
            must(session_forward(&s, &id[i], 1, NULL, &err), &err);
        }
    }
    session_close(&s);
}

/* χ² of thousands of texts against them; *freedom: the degrees. Texts that
 * cannot be must not come. */
static double chi_square(const Task *t, size_t *freedom)
{
    double cells[CELLS], found[CELLS] = {0};
    double sum = 0, rare = 0, seen = 0, runs = 2500 * (double)rounds();
    Session s;
    Mtp mtp;
    Error err;
    exact(t, cells);
    open_task(t, &s, &mtp);
    for (uint64_t i = 0; i < 2500 * rounds(); i++) {
        Said said = {.n = 0};
        Task one = *t;
        one.o.seed = t->o.seed + i;
        assert_int_equal(mtp_rewind(&mtp, 0), 0);
        must(run_on(&one, &s, &mtp, &said, &err), &err);
        found[said.ids[0] * 16 + said.ids[1] * 4 + said.ids[2]]++;
    }
    mtp_close(&mtp);
    session_close(&s);
    *freedom = 0;
    for (int i = 0; i < CELLS; i++) {
        double e = cells[i] * runs;
        if (cells[i] <= 0)
            assert_true(found[i] <= 0);
        if (e < 8) {
            rare += e;
            seen += found[i];
            continue;
        }
        sum += (found[i] - e) * (found[i] - e) / e;
        ++*freedom;
    }
    if (rare < 8)
        return sum;
    ++*freedom;
    return sum + (seen - rare) * (seen - rare) / rare;
}

static void check_sampled(Random *r, Sampler sampler, size_t D, size_t drafts,
                          bool best, float noise)
{
    Config c = random_config(r);
    c.vocab_size = VOCAB;
    c.num_nextn_predict_layers = D;
    c.num_hidden_layers = 1;
    c.hidden_size = 8;
    c.tie_word_embeddings = false;
    Model m = model_of(c, r, noise);
    Task t = {.model = &m, .prompt = {1, 3, 0}, .n = 3, .drafts = drafts,
              .best = best, .session = {.ctx = 20}};
    size_t freedom;
    t.o = (GenerateOptions){.sampler = sampler, .seed = random_u64(r),
                            .n = drafts + 2, .vocabulary = VOCAB};
    double chi = chi_square(&t, &freedom);
    /* Six deviations of a χ² of n degrees: n + 6 √(2n). */
    double limit = (double)freedom + 6 * sqrt(2 * (double)freedom);
    print_message("%zu modules, %zu drafts, %s: chi-square %.1f, %zu cells,"
                  " at most %.1f\n", D, drafts, best ? "best" : "sampled",
                  chi, freedom, limit);
    assert_true(chi <= limit);
    model_free(&m);
}

/* Texts of three tokens come as often as plain sampling would have them. */
static void test_sampled_text(void **state)
{
    static const Sampler all = {1, 0, 1}, some = {1.3f, 3, 1},
                         mass = {1.6f, 0, 0.85f};
    Random r = test_random();
    (void)state;
    for (int best = 0; best < 2; best++) {
        check_sampled(&r, all, 1, 1, best, -1);
        check_sampled(&r, all, 1, 3, best, 0.4f);
        check_sampled(&r, all, 2, 2, best, -1);
        check_sampled(&r, some, 2, 4, best, 0.4f);
        check_sampled(&r, mass, 1, 2, best, 0.4f);
    }
}

static void test_seed_decides(void **state)
{
    Random r = test_random();
    (void)state;
    for (int i = 0; i < 20; i++) {
        Config c = random_config(&r);
        c.vocab_size = 20;
        Model m = model_of(c, &r, -1);
        Task t = random_task(&m, &r);
        t.drafts = random_between(&r, 1, 6);
        t.best = i % 2;
        t.o.sampler = (Sampler){1.5f, 0, 1};
        t.o.n = 30;
        t.session.ctx = 60;
        t.o.vocabulary = 20;
        Said a = run_task(&t, (Said){.n = 0});
        Said b = run_task(&t, (Said){.n = 0});
        t.o.seed++;
        Said other = run_task(&t, (Said){.n = 0});
        must_agree(&a, &b);
        assert_memory_not_equal(a.ids, other.ids, sizeof a.ids);
        model_free(&m);
    }
}

/* Figures ---------------------------------------------------------------- */

/* A plain step's pass reads K_r experts a layer; one over K drafts and the
 * token before reads as many at least, and not more than all can pick. */
static void check_experts(const Model *m, const MtpStats *d, size_t K)
{
    const Config *c = &m->config;
    size_t layers = 0, each = c->num_experts_per_tok, most = each * (K + 1);
    for (size_t l = 0; l < c->num_hidden_layers; l++)
        layers += m->layers[l].is_moe;
    if (most > c->n_routed_experts)
        most = c->n_routed_experts;
    assert_int_equal(d->plain_experts, d->plain_steps * layers * each);
    assert_in_range(d->step_experts, d->steps * layers * each,
                    d->steps * layers * most);
}

/* Where the next token follows from the last, every draft is accepted, and a
 * step gives K+1 tokens; one step of 16 is plain. */
static void test_all_accepted(void **state)
{
    Random r = test_random();
    (void)state;
    for (size_t K = 1; K <= 6; K++) {
        Config c = random_config(&r);
        c.mtp_hidden_first = c.mtp_zero_first = false;
        c.vocab_size = 20;
        Model m = model_of(c, &r, 0);
        Task t = random_task(&m, &r);
        t.drafts = K;
        t.o.n = 2 + 3 * (K + 1);
        t.o.vocabulary = 20;
        t.session.ctx = MOST;
        Said said = run_task(&t, (Said){.n = 0});
        const MtpStats *d = &said.drafted;
        assert_int_equal(d->steps, 3);
        assert_int_equal(d->tokens, 3 * (K + 1));
        assert_int_equal(d->plain_steps, 1);
        for (size_t j = 0; j < MAX_DRAFTS; j++) {
            assert_int_equal(d->tried[j], j < K ? 3 : 0);
            assert_int_equal(d->accepted[j], j < K ? 3 : 0);
        }
        assert_true(d->draft_seconds >= 0 && d->step_seconds > 0
                    && d->plain_seconds > 0);
        check_experts(&m, d, K);
        model_free(&m);
    }
}

/* No draft is made that -n has no room for: of 2 new tokens none, of 3 one;
 * and every 16th step is plain. */
static void test_steps(void **state)
{
    Random r = test_random();
    Config c = random_config(&r);
    (void)state;
    c.mtp_hidden_first = c.mtp_zero_first = false;
    c.vocab_size = 20;
    Model m = model_of(c, &r, 0);
    Task t = random_task(&m, &r);
    t.drafts = 4;
    t.session.ctx = MOST;
    t.o.vocabulary = 20;
    for (t.o.n = 2; t.o.n < 5; t.o.n++) {
        Said said = run_task(&t, (Said){.n = 0});
        assert_int_equal(said.drafted.tried[0], t.o.n > 2);
        assert_int_equal(said.drafted.tried[1], t.o.n > 3);
        assert_int_equal(said.drafted.steps, 0);
    }
    t.drafts = 1;
    t.o.n = 1 + 2 + 1 + 15 * 2 + 1;
    Said said = run_task(&t, (Said){.n = 0});
    assert_int_equal(said.drafted.plain_steps, 2);
    assert_int_equal(said.drafted.steps, 16);
    model_free(&m);
}

/* A token reads K experts a layer; several read the union of theirs. */
static void test_experts_are_counted(void **state)
{
    Random r = test_random();
    (void)state;
    for (int i = 0; i < 100; i++) {
        Config c = random_config(&r);
        Session s;
        Error err;
        bool used[16] = {false};
        size_t want = 0;
        random_experts(&c, &r);
        c.first_k_dense_replace = 0;
        c.num_hidden_layers = 1;
        Model m = model_of(c, &r, -1);
        Task t = random_task(&m, &r);
        t.session.ctx = 20;
        t.session.modules = 1;
        must(session_open(&s, &m, &t.session, &err), &err);
        must(session_forward(&s, t.prompt, 1, NULL, &err), &err);
        assert_int_equal(s.experts_read, c.num_experts_per_tok);
        session_rewind(&s, 0);
        s.experts_read = 0;
        if (t.n > session_chunk(&s))
            t.n = session_chunk(&s);
        must(session_forward(&s, t.prompt, t.n, NULL, &err), &err);
        for (size_t j = 0; j < t.n * c.num_experts_per_tok; j++)
            used[s.acts.moe.topk_ids[j]] = true;
        for (size_t e = 0; e < c.n_routed_experts; e++)
            want += used[e];
        assert_int_equal(s.experts_read, want);
        session_close(&s);
        model_free(&m);
    }
}

/* Refused ---------------------------------------------------------------- */

static void check_refused(const char *name, size_t drafts, const char *text)
{
    char path[200];
    Model m;
    Error err;
    SessionOptions o = {.ctx = 8};
    snprintf(path, sizeof path, MODELS "%s", name);
    must(model_open(&m, path, &err), &err);
    must_fail(mtp_options(&o, &m, drafts, &err), &err, text);
    assert_int_equal(o.modules, 0);
    model_close(&m);
}

static void test_refused(void **state)
{
    (void)state;
    check_refused("k3-v3", 1, "drafts: wanted a model with 1 MTP module,"
                  " found num_nextn_predict_layers 0");
    check_refused("mtp-absent", 2, "drafts: model.layers.2.enorm.weight is"
                  " missing: MTP module 1 of the 1 announced is not there");
    check_refused("mtp-two", 0, "drafts: wanted 1 to 16 a step, found 0");
    check_refused("mtp-two", 17, "drafts: wanted 1 to 16 a step, found 17");
}

/* Of two modules that are announced, the second is missing: one draft is
 * possible, two are not. */
static void test_second_is_missing(void **state)
{
    Model m;
    Error err;
    Session s;
    SessionOptions o = {.ctx = 8};
    (void)state;
    must(model_open(&m, MODELS "mtp-two", &err), &err);
    m.n_mtp = 1;
    must(mtp_options(&o, &m, 1, &err), &err);
    assert_true(o.modules == 1 && o.logit_rows == 2 && o.chunk == 0);
    must_fail(mtp_options(&o, &m, 2, &err), &err,
              "drafts: model.layers.3.enorm.weight is missing: MTP module 2"
              " of the 2 announced is not there");
    must_fail(mtp_check(&m, 3, &err), &err, "drafts: wanted a model with 3"
              " MTP modules, found num_nextn_predict_layers 2");
    o.modules = 2;
    must_fail(session_open(&s, &m, &o, &err), &err,
              "MTP modules: wanted at most 1, found 2");
    o.chunk = 2;
    m.n_mtp = 2;
    must(mtp_options(&o, &m, 4, &err), &err);
    assert_true(o.modules == 2 && o.logit_rows == 5 && o.chunk == 6);
    model_close(&m);
}

/* Modules that have not seen what is in the cache must not draft from it. */
static void test_unseen_tokens(void **state)
{
    static const int32_t ids[] = {3, 4, 5}, far[] = {3, 64};
    Case c;
    Session s;
    Mtp mtp;
    Error err;
    SessionOptions o = {.ctx = 8};
    GenerateOptions g = {.sampler = {0, 0, 1}, .n = 4, .vocabulary = 65};
    GenerateStats stats;
    MtpStats drafted = {0};
    Said said = {.n = 0};
    (void)state;
    case_open(&c, "mtp-two", "mtp");
    must(mtp_options(&o, &c.model, 2, &err), &err);
    must(session_open(&s, &c.model, &o, &err), &err);
    must(mtp_open(&mtp, &s, 2, false, &err), &err);
    must_fail(mtp_generate(&mtp, ids, 3, &g, take, &said, &stats, &drafted,
                           &err), &err,
              "vocabulary: wanted 1 to vocab_size (64) tokens, found 65");
    g.vocabulary = 64;
    must_fail(mtp_generate(&mtp, far, 2, &g, take, &said, &stats, &drafted,
                           &err), &err, "id 1 of the input: wanted 0 to 63"
              " (vocab_size - 1), found 64");
    must(session_forward(&s, ids, 2, NULL, &err), &err);
    must_fail(mtp_prompt(&mtp, ids, 3, NULL, &err), &err,
              "drafts: wanted modules that have seen 2 tokens, found 0");
    assert_int_equal(mtp_rewind(&mtp, 2), 0);
    must(mtp_generate(&mtp, ids, 3, &g, take, &said, &stats, &drafted, &err),
         &err);
    assert_int_equal(said.n, 4);
    mtp_close(&mtp);
    session_close(&s);
    case_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden), cmocka_unit_test(test_golden_drafts),
        cmocka_unit_test(test_readings), cmocka_unit_test(test_positions),
        cmocka_unit_test(test_greedy_is_plain),
        cmocka_unit_test(test_ends_inside_a_draft),
        cmocka_unit_test(test_sink_refuses),
        cmocka_unit_test(test_caches_are_as_if_known),
        cmocka_unit_test(test_continued),
        cmocka_unit_test(test_chunks_change_no_draft),
        cmocka_unit_test(test_drawn_from_q),
        cmocka_unit_test(test_one_step_gives_p),
        cmocka_unit_test(test_edges_of_the_rule),
        cmocka_unit_test(test_sampled_text),
        cmocka_unit_test(test_seed_decides),
        cmocka_unit_test(test_all_accepted),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_experts_are_counted),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_second_is_missing),
        cmocka_unit_test(test_unseen_tokens),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove(scratch(""));
    return failed;
}
