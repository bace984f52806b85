/* test_mtp.c: the modules against the reference, drafting against decoding.
 *
 * golden/mtp.safetensors of the models mtp-present (one module) and mtp-two:
 * what the NumPy forward (tests/reference/forward.py) gives in float64 for
 * rows of known tokens and for drafts, with each disputed reading. The rest
 * are properties, of random models in memory: drafting changes no greedy text,
 * no distribution, and leaves no trace in a cache. */
#include "support.h"

#define MODELS "tests/data/models/"

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

/* noise below 0: nothing is designed, and modules have tables of their own,
 * or none. */
static void random_weights(Model *m, Random *r, float noise)
{
    TensorWalk walk = tensor_walk(&m->config, m);
    TensorInfo t;
    bool copies = noise < 0 && random_between(r, 0, 1);
    while (tensor_next(&walk, &t)) {
        size_t rows = t.rank == 1 ? 1 : t.rows;
        if (has_copy(&t) && !copies)
            continue;
        *t.slot = random_matrix(r, rows, t.cols, DT_F32,
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
    size_t accepted, refused, stopped, full, enough, late;
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
    for (int i = 0; i < 4000; i++)
        check_greedy(&r, &met);
    print_message("%zu drafts accepted, %zu of them beyond the modules; %zu"
                  " refused; %zu texts stopped, %zu full, %zu sated\n",
                  met.accepted, met.late, met.refused, met.stopped, met.full,
                  met.enough);
    assert_true(met.accepted > 5000 && met.late > 1000
                && met.refused > 5000 && met.stopped > 300 && met.full > 300
                && met.enough > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy_is_plain),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove(scratch(""));
    return failed;
}
