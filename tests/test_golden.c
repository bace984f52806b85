/* test_golden.c: that packs are what their manifests say, and that they show
 * what they are for.
 *
 * Every pack is made twice. Held: the same bytes, those whose hashes are in
 * golden/NAME.json; margins of every choice; that each stage has its share of
 * the residual's mean square and no gate is saturated; that rounding moves
 * little, and the loss of any one tensor much. */
#include "support.h"

#include "base/diff.h"
#include "base/json.h"
#include "base/sha256.h"

#include <math.h>

/* What a stage's loss must move, mean square over mean square: ten thousand
 * times what is allowed to an F32 engine, 1e-9. */
#define MOVES 1e-5

/* What F32 rounding may, so that the rule of 1e-9 has room. */
#define ROUNDING 1e-10

/* A pack that was made, open. */
typedef struct {
    const GoldenPack *pack;
    char *dir;
    Model model;
    Safetensors golden;   /* a traced pass; of a step's pack its first sequence
                             alone, */
    Safetensors step;     /* and what the step gives */
    int32_t ids[GOLDEN_TOKENS];
    size_t n;             /* of these in the pass */
} Made;

static char *make_in(const GoldenPack *p, const char *name)
{
    char *dir = scratch_dup(name);
    Error err;
    must(golden_make(p, dir, true, &err), &err);
    return dir;
}

static const StTensor *tensor(const Made *m, const char *name)
{
    const StTensor *t = st_find(&m->golden, name);
    if (!t)
        fail_msg("%s: no tensor %s", m->pack->name, name);
    return t;
}

static void run_pass(const Made *m, const Model *model, bool naive,
                     Trace *trace)
{
    Error err;
    Session s;
    Mtp mtp;
    size_t D = naive ? 0 : model->config.num_nextn_predict_layers;
    must(session_open(&s, model, &(SessionOptions){
        .ctx = m->n, .naive = naive, .logit_rows = SIZE_MAX, .modules = D,
        .trace = trace}, &err), &err);
    if (D) {
        must(mtp_open(&mtp, &s, 0, false, &err), &err);
        must(mtp_prompt(&mtp, m->ids, m->n, NULL, &err), &err);
        mtp_close(&mtp);
    } else {
        must(session_forward(&s, m->ids, m->n, NULL, &err), &err);
    }
    session_close(&s);
    must(trace_close(trace, &err), &err);
}

/* Opens what a pass gives, by a file that goes at once. */
static void trace_pass(Safetensors *st, const Made *m, bool naive)
{
    Error err;
    char *path = scratch_dup("pass.safetensors");
    run_pass(m, &m->model, naive, trace_open(path, true, NULL, &err));
    must(st_open(st, path, &err), &err);
    remove(path);
    free(path);
}

static void open_made(Made *m, const GoldenPack *p)
{
    Error err;
    *m = (Made){.pack = p, .dir = make_in(p, p->name),
                .n = p->step ? GOLDEN_SEQUENCE : GOLDEN_TOKENS};
    Safetensors *st = p->step ? &m->step : &m->golden;
    char *path = path_join(m->dir, "golden/golden.safetensors", &err);
    must(model_open(&m->model, m->dir, &err), &err);
    must(st_open(st, path, &err), &err);
    memcpy(m->ids, st_find(st, "ids")->data, m->n * sizeof *m->ids);
    if (p->step)
        trace_pass(&m->golden, m, false);
    free(path);
}

static void remove_made(char *dir)
{
    Error err;
    char *golden = path_join(dir, "golden", &err);
    must(dir_remove(golden, &err), &err);
    must(dir_remove(dir, &err), &err);
    free(golden);
    free(dir);
}

static void close_made(Made *m)
{
    model_close(&m->model);
    st_close(&m->golden);
    st_close(&m->step);
    remove_made(m->dir);
}

static bool ends_with(const char *name, const char *with)
{
    size_t n = strlen(name), m = strlen(with);
    return n >= m && strcmp(name + n - m, with) == 0;
}

/* Every pack, made and opened once for all tests. */
enum { MOST = 32 };
static Made made[MOST];
static size_t n_made;

static bool is_big(const GoldenPack *p)
{
    return strcmp(p->name, "K12") == 0;
}

/* Where every instruction is checked the big one is left out: it runs what the
 * others run. */
static int make_all(void **state)
{
    const GoldenPack *p;
    (void)state;
    for (size_t i = 0; (p = golden_pack(i)) != NULL; i++) {
        assert_true(i < MOST);
        if (!getenv("QUICK") || !is_big(p))
            open_made(&made[n_made++], p);
    }
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    while (n_made > 0)
        close_made(&made[--n_made]);
    return 0;
}

static void each(void (*f)(const Made *m))
{
    for (size_t i = 0; i < n_made; i++)
        f(&made[i]);
}

/* Bytes ------------------------------------------------------------------ */

static File read_below(const char *dir, const char *name)
{
    Error err;
    File f;
    char *path = path_join(dir, name, &err);
    must(file_read(&f, path, &err), &err);
    free(path);
    return f;
}

static void must_hash(const char *dir, const char *name, const Json *j,
                      const JsonNode *said)
{
    File f = read_below(dir, name);
    Sha256 s = sha256_begin();
    char hex[65];
    int64_t bytes = -1;
    sha256_add(&s, f.data, f.size);
    sha256_end(&s, hex);
    if (!json_equals(j, json_get(j, said, "sha256"), hex))
        fail_msg("%s/%s has the hash %s", dir, name, hex);
    assert_true(json_integer(j, json_get(j, said, "bytes"), 0, INT64_MAX,
                             &bytes));
    assert_int_equal(bytes, f.size);
    file_close(&f);
}

/* That the files are those that the manifest lists; returns how many. */
static size_t check_files(const char *dir, const Json *j)
{
    const JsonNode *files = json_get(j, j->nodes, "files");
    size_t n = 0;
    for (const JsonNode *k = json_first(j, files); k; n++) {
        char name[100];
        const JsonNode *said = json_next(j, files, k);
        assert_true(json_string(j, k, name, sizeof name) > 0);
        must_hash(dir, name, j, said);
        k = json_next(j, files, said);
    }
    return n;
}

static size_t readings_of(const GoldenPack *p)
{
    size_t n = 0;
    while (p->readings[n])
        n++;
    return n;
}

static void check_bytes(const Made *m)
{
    char kept[80];
    char *again = make_in(m->pack, "again");
    File x = read_below(m->dir, "golden/manifest.json"), y;
    Json j;
    Error err;
    must(json_parse(&j, "manifest", (const char *)x.data, x.size, &err), &err);
    assert_int_equal(check_files(m->dir, &j),
                     4 + readings_of(m->pack) + (m->pack->step ? 2 : 0));
    check_files(again, &j);
    snprintf(kept, sizeof kept, "golden/%s.json", m->pack->name);
    must(file_read(&y, kept, &err), &err);
    if (x.size != y.size || memcmp(x.data, y.data, x.size) != 0)
        fail_msg("%s: the manifest is not %s: `make golden` shows where",
                 m->pack->name, kept);
    json_free(&j);
    file_close(&x);
    file_close(&y);
    remove_made(again);
}

static void same_bytes(void **state)
{
    (void)state;
    each(check_bytes);
}

/* Weights that are not F32 by nature are BF16 or FP8. */
static void check_dtypes(const Made *m)
{
    for (size_t i = 0; i < m->model.files.n_tensors; i++) {
        const StTensor *t = &m->model.files.tensors[i];
        bool scale = strstr(t->name, "_scale_inv") != NULL;
        bool bias = strstr(t->name, "correction_bias") != NULL;
        assert_int_equal(t->dtype == DT_F32, scale || bias);
        assert_true(t->dtype == DT_F32 || t->dtype == DT_BF16
                    || t->dtype == DT_F8_E4M3);
        for (size_t k = 0; bias && k < t->elements
                           && strncmp(m->pack->name, "K5", 2) != 0; k++) {
            float b;
            memcpy(&b, t->data + k * sizeof b, sizeof b);
            assert_true(f32_from_bf16(bf16_from_f32(b)) == b);
        }
    }
}

static void weights_are_exact_in_bf16(void **state)
{
    (void)state;
    each(check_dtypes);
}

/* Axes ------------------------------------------------------------------- */

/* -1: not a key of this list. */
static long size_of_axis(const Made *m, const char *axis)
{
    const Config *c = &m->model.config;
    const struct {
        const char *axis;
        size_t size;
    } sizes[] = {
        {"hidden_size", c->hidden_size}, {"vocab_size", c->vocab_size},
        {"positions", m->n}, {"q_lora_rank", c->q_lora_rank},
        {"num_attention_heads", c->num_attention_heads},
        {"kv_lora_rank", c->kv_lora_rank}, {"v_head_dim", c->v_head_dim},
        {"qk_rope_head_dim", c->qk_rope_head_dim},
        {"kv_lora_rank+qk_rope_head_dim",
         c->kv_lora_rank + c->qk_rope_head_dim},
        {"qk_nope_head_dim+qk_rope_head_dim",
         c->qk_nope_head_dim + c->qk_rope_head_dim},
        {"qk_rope_head_dim/2", c->qk_rope_head_dim / 2},
        {"intermediate_size", c->intermediate_size},
        {"n_routed_experts", c->n_routed_experts}, {"n_group", c->n_group},
        {"num_experts_per_tok", c->num_experts_per_tok},
        {"n_shared_experts*moe_intermediate_size",
         c->n_shared_experts * c->moe_intermediate_size},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (strcmp(sizes[i].axis, axis) == 0)
            return (long)sizes[i].size;
    return -1;
}

static void check_axes(const Made *m)
{
    for (size_t i = 0; i < m->golden.n_tensors; i++) {
        const StTensor *t = &m->golden.tensors[i];
        const char *axes[3];
        int rank = session_axes(t->name, false, axes);
        if (strcmp(t->name, "ids") == 0 || strncmp(t->name, "draft.", 6) == 0)
            continue;
        if (rank != t->rank || strcmp(axes[0], "tokens") != 0)
            fail_msg("%s: %s has other axes", m->pack->name, t->name);
        for (int k = 1; k < rank; k++)
            if (size_of_axis(m, axes[k]) != (long)t->shape[k])
                fail_msg("%s: %s: %s is not %zu", m->pack->name, t->name,
                         axes[k], t->shape[k]);
    }
}

static void axes_are_sizes(void **state)
{
    const char *axes[3];
    (void)state;
    each(check_axes);
    assert_int_equal(session_axes("model.layers.x.mlp", false, axes), 0);
    assert_int_equal(session_axes("model.layers.1.nothing", false, axes), 0);
    assert_int_equal(session_axes("model.layers.1.self_attn.query", true,
                                  axes), 3);
    assert_string_equal(axes[2], "qk_nope_head_dim+qk_rope_head_dim");
}

/* Margins ---------------------------------------------------------------- */

static void check_margins(const Made *m)
{
    size_t choices = 0, ties = 0;
    for (size_t i = 0; i < m->golden.n_tensors; i++) {
        const StTensor *t = &m->golden.tensors[i];
        GoldenMargins g;
        golden_margins(&g, &m->model.config, t->name, t->data, t->shape[0],
                       t->rank == 2 ? t->shape[1] : 0);
        choices += isfinite(g.least) != 0;
        ties += g.ties;
        if (g.least < m->pack->margin)
            fail_msg("%s: %s, token %zu: %g", m->pack->name, t->name, g.row,
                     g.least);
    }
    assert_true(choices > 0);
    assert_int_equal(ties > 0, m->pack->ties);
}

static void no_choice_is_narrow(void **state)
{
    (void)state;
    each(check_margins);
}

static void margins_of_a_row(void **state)
{
    const Config c = {.num_experts_per_tok = 2, .topk_group = 1};
    const float x[] = {1, 5, 3, 4, 2, 7, 7, 7, 9, 8, -INFINITY, -INFINITY};
    GoldenMargins g;
    (void)state;
    golden_margins(&g, &c, "a.mlp.gate.choice", x, 3, 4);
    assert_true(g.least == 1 && g.row == 0 && g.ties == 1);
    golden_margins(&g, &c, "a.mlp.gate.choice", x + 8, 1, 4);
    assert_true(isinf(g.least) && g.ties == 0);
    golden_margins(&g, &c, "a.mlp.gate.group_scores", x, 3, 4);
    assert_true(g.least == 1 && g.ties == 1);
    golden_margins(&g, &c, "a.mlp.gate.logits", x, 3, 4);
    assert_true(isinf(g.least) && g.ties == 0);
}

/* Picks ------------------------------------------------------------------ */

static int32_t load_of(const Made *m, size_t layer, size_t expert)
{
    char name[128];
    int32_t n;
    snprintf(name, sizeof name, "model.layers.%zu.mlp.gate.load", layer);
    const StTensor *t = st_find(&m->step, name);
    memcpy(&n, t->data + expert * sizeof n, sizeof n);
    return n;
}

static bool is_picked(const Made *m, size_t layer, size_t expert)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%zu.mlp.gate.topk_ids", layer);
    const StTensor *t = tensor(m, name);
    for (size_t i = 0; i < t->elements; i++) {
        int32_t id;
        memcpy(&id, t->data + i * sizeof id, sizeof id);
        if ((size_t)id == expert)
            return true;
    }
    return false;
}

/* Of two groups that are equal the second never wins; 384 picks do not reach
 * all of K12's 256 experts; a step has two sequences, a pass the first. */
static bool some_are_idle(const GoldenPack *p)
{
    return p->ties || is_big(p) || p->step;
}

/* Of n experts from `first` on. */
static size_t picked(const Made *m, size_t layer, size_t first, size_t n)
{
    size_t found = 0;
    for (size_t e = first; e < first + n; e++)
        found += is_picked(m, layer, e);
    return found;
}

static void check_picks(const Made *m)
{
    const Config *c = &m->model.config;
    size_t layers = c->num_hidden_layers + c->num_nextn_predict_layers;
    for (size_t l = 0; l < layers; l++) {
        size_t n = c->n_routed_experts;
        if (config_is_moe(c, l) && !some_are_idle(m->pack)
            && picked(m, l, 0, n) < n)
            fail_msg("%s: layer %zu: nobody picks some expert",
                     m->pack->name, l);
    }
}

static void every_expert_is_picked(void **state)
{
    (void)state;
    each(check_picks);
}

/* And a quarter of each group, and the last. */
static void half_of_256_experts_are_picked(void **state)
{
    const Made *m = made;
    (void)state;
    while (m < made + n_made && !is_big(m->pack))
        m++;
    if (m == made + n_made)
        skip();
    assert_true(picked(m, 1, 0, 256) >= 128);
    for (size_t g = 0; g < 8; g++)
        assert_true(picked(m, 1, g * 32, 32) >= 8);
    assert_true(is_picked(m, 1, 255));
}

/* Shares ----------------------------------------------------------------- */

static double mean_square(const StTensor *t)
{
    double total = 0;
    for (size_t i = 0; i < t->elements; i++) {
        float x;
        memcpy(&x, t->data + i * sizeof x, sizeof x);
        total += (double)x * (double)x;
    }
    return total / (double)t->elements;
}

static double power(const Made *m, size_t layer, const char *after)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%zu%s", layer, after);
    return mean_square(tensor(m, name));
}

static void must_share(const Made *m, size_t layer, const char *what,
                       double part, double whole, double least)
{
    if (getenv("SHARES"))
        print_message("%s layer %zu: %s %.3f\n", m->pack->name, layer, what,
                      part / whole);
    if (!(part / whole >= least))
        fail_msg("%s: layer %zu: %s has a share of %g", m->pack->name, layer,
                 what, part / whole);
}

/* Each block adds to what came before; of a MoE's output neither the routed
 * nor the shared experts are a detail. */
static void check_shares(const Made *m)
{
    const Config *c = &m->model.config;
    size_t layers = c->num_hidden_layers + c->num_nextn_predict_layers;
    double least = 0.2 / (double)c->num_hidden_layers;
    for (size_t l = 0; l < layers; l++) {
        double ffn = power(m, l, ".mlp");
        must_share(m, l, "attention", power(m, l, ".self_attn.o_proj"),
                   power(m, l, ".attn_residual"), least);
        must_share(m, l, "FFN", ffn, power(m, l, ""), least);
        if (!config_is_moe(c, l))
            continue;
        must_share(m, l, "routed", power(m, l, ".mlp.routed_out"), ffn, 0.1);
        must_share(m, l, "shared", power(m, l, ".mlp.shared_out"), ffn, 0.1);
    }
}

static void each_stage_has_its_share(void **state)
{
    (void)state;
    each(check_shares);
}

/* Gates' and SwiGLU's inputs are where the functions bend: between a constant
 * and a line. K5's scores go to 0 on purpose. */
static void check_gates(const Made *m)
{
    const Config *c = &m->model.config;
    for (size_t l = 0; l < c->num_hidden_layers; l++) {
        bool moe = config_is_moe(c, l);
        double silu = power(m, l, moe ? ".mlp.shared_experts.gate_proj"
                                      : ".mlp.gate_proj");
        if (!(silu > 0.3 && silu < 9))
            fail_msg("%s: layer %zu: silu of %g", m->pack->name, l, silu);
        if (!moe || m->pack->forced)
            continue;
        double gate = power(m, l, ".mlp.gate.logits");
        if (!(gate > 0.3 && gate < 9))
            fail_msg("%s: layer %zu: gate of %g", m->pack->name, l, gate);
    }
}

static void no_gate_is_saturated(void **state)
{
    (void)state;
    each(check_gates);
}

/* Rounding --------------------------------------------------------------- */

static void must_agree(const Made *m, const Safetensors *other)
{
    double worst = 0;
    for (size_t i = 0; i < m->golden.n_tensors; i++) {
        const StTensor *t = &m->golden.tensors[i];
        const StTensor *u = st_find(other, t->name);
        DiffRow d;
        Error err;
        if (!u || ends_with(t->name, ".query"))
            continue;
        must(diff_tensor(&d, t, u, &err), &err);
        worst = d.nmse > worst ? d.nmse : worst;
        if (!(d.nmse <= ROUNDING) || d.shape_differs)
            fail_msg("%s: %s differs by %g", m->pack->name, t->name, d.nmse);
    }
    if (getenv("SHARES"))
        print_message("%s rounding %.1e\n", m->pack->name, worst);
}

/* The other form of attention rounds otherwise in every layer, as another
 * engine would. */
static void check_rounding(const Made *m)
{
    Safetensors other;
    trace_pass(&other, m, true);
    must_agree(m, &other);
    st_close(&other);
}

static void rounding_stays_small(void **state)
{
    (void)state;
    each(check_rounding);
}

/* Losses ----------------------------------------------------------------- */

/* Logits of the main model, or those of module k. */
typedef struct {
    float *main, *module[2];
    size_t n;
} Logits;

static int keep_logits(void *context, const char *name, DType type,
                       const void *values, int rank, const size_t *shape,
                       Error *err)
{
    Logits *to = context;
    float *at = to->main;
    (void)type;
    (void)rank;
    (void)err;
    if (strncmp(name, "mtp.", 4) == 0)
        at = to->module[name[4] - '1'];
    if (!strstr(name, "gate"))
        memcpy(at, values, shape[0] * shape[1] * sizeof *at);
    return 0;
}

static Logits new_logits(const Config *c)
{
    Logits l = {.n = GOLDEN_TOKENS * c->vocab_size};
    l.main = test_alloc(l.n, sizeof *l.main);
    l.module[0] = test_alloc(l.n, sizeof *l.main);
    l.module[1] = test_alloc(l.n, sizeof *l.main);
    return l;
}

static void free_logits(Logits *l)
{
    free(l->main);
    free(l->module[0]);
    free(l->module[1]);
}

static void run_model(Logits *to, const Made *m, const Model *model)
{
    Error err;
    run_pass(m, model, false, trace_to(keep_logits, to, "*logits", &err));
}

/* The greatest of the losses' effects on main and modules. */
static double moved(const Logits *a, const Logits *b)
{
    double most = nmse(a->main, b->main, a->n);
    for (int k = 0; k < 2; k++) {
        double e = nmse(a->module[k], b->module[k], a->n);
        most = e > most ? e : most;
    }
    return most;
}

/* A gain becomes 1, a matrix or a bias 0; what it was is kept. */
static void lose(const TensorInfo *info, float *kept)
{
    float *w = matrix_numbers(info->slot);
    for (size_t i = 0; i < info->rows * info->cols; i++) {
        kept[i] = w[i];
        w[i] = info->kind == TENSOR_NORM;
    }
}

static size_t expert_of(const TensorInfo *info)
{
    const char *at = strstr(info->name, ".experts.");
    return (size_t)strtoul(at + strlen(".experts."), NULL, 10);
}

static bool is_idle(const Made *m, const TensorInfo *info)
{
    return info->routed && some_are_idle(m->pack)
           && !is_picked(m, info->layer, expert_of(info));
}

/* An FFN without W_gate, W_up or W_down gives 0, whichever it is: W_down will
 * do for the three. A tied or shared table is no tensor of its own. Of a deep
 * model the first layers and the last; of many experts some in each group, for
 * time. */
static bool is_tried(const TensorInfo *info, const Config *c)
{
    if (info->routed && c->n_routed_experts > 100 && expert_of(info) % 15)
        return false;
    bool table = info->kind == TENSOR_EMBED || info->kind == TENSOR_HEAD;
    bool middle = c->num_hidden_layers > 8 && info->layer != SIZE_MAX
                  && info->layer >= 3
                  && info->layer + 1 < c->num_hidden_layers;
    bool same = ends_with(info->name, ".gate_proj.weight")
                || ends_with(info->name, ".up_proj.weight");
    return info->slot->data && !(info->mtp && table) && !middle && !same
           && !(info->kind == TENSOR_HEAD && c->tie_word_embeddings);
}

static void lose_each(const Made *m, Model *copy, size_t n)
{
    float *kept = test_alloc(n, sizeof *kept);
    Logits whole = new_logits(&copy->config), less = new_logits(&copy->config);
    TensorWalk walk = tensor_walk(&copy->config, copy);
    TensorInfo info;
    run_model(&whole, m, copy);
    while (tensor_next(&walk, &info)) {
        if (!is_tried(&info, &copy->config) || is_idle(m, &info))
            continue;
        lose(&info, kept);
        run_model(&less, m, copy);
        memcpy(matrix_numbers(info.slot), kept,
               info.rows * info.cols * sizeof *kept);
        double e = moved(&less, &whole);
        if (getenv("SHARES"))
            print_message("%s %s %.1e\n", m->pack->name, info.name, e);
        if (!(e >= MOVES))
            fail_msg("%s: without %s the logits move by %g", m->pack->name,
                     info.name, e);
    }
    free_logits(&whole);
    free_logits(&less);
    free(kept);
}

static void check_losses(const Made *m)
{
    Model copy;
    Error err;
    size_t n;
    must(model_floats(&copy, &m->model, &n, &err), &err);
    lose_each(m, &copy, n);
    model_close(&copy);
}

static void every_tensor_counts(void **state)
{
    (void)state;
    each(check_losses);
}

/* Steps ------------------------------------------------------------------ */

static void each_step(void (*f)(const Made *m))
{
    size_t steps = 0;
    for (size_t i = 0; i < n_made; i++)
        if (made[i].pack->step) {
            f(&made[i]);
            steps++;
        }
    assert_true(steps > 0);
}

static void check_gradients(const Made *m)
{
    Model model = m->model;
    TensorWalk walk = tensor_walk(&model.config, &model);
    TensorInfo info;
    while (tensor_next(&walk, &info)) {
        char name[160];
        snprintf(name, sizeof name, "%s.grad", info.name);
        const StTensor *g = st_find(&m->step, name);
        if (!g && !info.mtp)
            fail_msg("%s: no %s", m->pack->name, name);
        if (g && (mean_square(g) > 1e-12) != (info.kind != TENSOR_BIAS))
            fail_msg("%s: %s has a mean square of %g", m->pack->name, name,
                     mean_square(g));
    }
}

static void every_weight_has_a_gradient(void **state)
{
    (void)state;
    each_step(check_gradients);
}

/* What each expert's bias was moved by, in steps of gamma, must be the sign of
 * what it lacks; returns how many stayed. */
static size_t check_biases(const Made *m, size_t layer)
{
    const Config *c = &m->model.config;
    size_t N = c->n_routed_experts, stay = 0;
    const Matrix *old = &m->model.layers[layer].moe.e_score_correction_bias;
    char name[128];
    int32_t total = 0;
    snprintf(name, sizeof name,
             "model.layers.%zu.mlp.gate.e_score_correction_bias", layer);
    const StTensor *t = st_find(&m->step, name);
    for (size_t i = 0; i < N; i++)
        total += load_of(m, layer, i);
    for (size_t i = 0; i < N; i++) {
        int32_t lack = total - (int32_t)N * load_of(m, layer, i);
        float was, moved = 0x1p-7f * (float)((lack > 0) - (lack < 0));
        memcpy(&was, (const char *)old->data + i * sizeof was, sizeof was);
        assert_true(diff_value(t, i) == (double)(was + moved));
        stay += lack == 0;
    }
    return stay;
}

static void some_bias_stays(void **state)
{
    size_t stay = 0, biases = 0;
    (void)state;
    for (size_t i = 0; i < n_made; i++)
        for (size_t l = 0; made[i].pack->step
                           && l < made[i].model.config.num_hidden_layers; l++)
            if (made[i].model.layers[l].moe.e_score_correction_bias.data) {
                stay += check_biases(&made[i], l);
                biases++;
            }
    assert_true(biases > 0);
    assert_true(stay > 0);
}

/* How far the step with a setting changed is off, where it is furthest. */
static double moved_by(const Made *m, const char *setting)
{
    char *path = scratch_dup("other.safetensors");
    Safetensors other;
    double most = 0;
    Error err;
    must(golden_step(&m->model, (const int32_t *)(const void *)
                     st_find(&m->step, "ids")->data, m->dir, setting, path,
                     &err), &err);
    must(st_open(&other, path, &err), &err);
    for (size_t i = 0; i < m->step.n_tensors; i++) {
        const StTensor *t = &m->step.tensors[i], *u;
        DiffRow d = {0};
        if ((u = st_find(&other, t->name)) != NULL)
            must(diff_tensor(&d, t, u, &err), &err);
        most = d.nmse > most ? d.nmse : most;
    }
    st_close(&other);
    remove(path);
    free(path);
    return most;
}

static void must_move(const Made *m, const char *setting)
{
    double e = moved_by(m, setting);
    if (getenv("SHARES"))
        print_message("%s %s %.1e\n", m->pack->name, setting, e);
    if (!(e >= MOVES))
        fail_msg("%s: %s moves the step by %g", m->pack->name, setting, e);
}

static void check_settings(const Made *m)
{
    static const char *const all[] = {
        "learning_rate=0.09", "warmup_steps=1", "adamw.eps=1e-8",
        "adamw.weight_decay=0", "adamw.clip=1000"};
    static const char *const v2[] = {
        "balance.alpha1=0", "balance.alpha2=0", "balance.alpha3=0",
        "balance.devices=2", "balance.device_limit=3"};
    static const char *const v3[] = {
        "mtp_lambda=0", "balance.alpha=0", "balance.gamma=0"};
    bool is_v3 = m->model.config.model_type == DEEPSEEK_V3;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        must_move(m, all[i]);
    for (size_t i = 0; i < (is_v3 ? sizeof v3 : sizeof v2) / sizeof *v3; i++)
        must_move(m, is_v3 ? v3[i] : v2[i]);
    for (size_t i = 0; m->pack->readings[i]; i++)
        must_move(m, m->pack->readings[i]);
}

static void every_setting_counts(void **state)
{
    (void)state;
    each_step(check_settings);
}

/* Drafts ----------------------------------------------------------------- */

/* One module and two give the same first draft and go apart then; each is its
 * logits' best. */
static void drafts_are_the_best(void **state)
{
    const Made *m = made;
    int32_t ids[2][1 + GOLDEN_DRAFTS];
    (void)state;
    while (!m->pack->readings[0] || !st_find(&m->golden, "draft.2.ids"))
        assert_true(++m < made + n_made);
    size_t V = m->model.config.vocab_size;
    for (int k = 0; k < 2; k++) {
        float logits[GOLDEN_DRAFTS * 64];
        assert_int_equal(V, 64);
        memcpy(ids[k], tensor(m, k ? "draft.2.ids" : "draft.1.ids")->data,
               sizeof ids[k]);
        memcpy(logits, tensor(m, k ? "draft.2.logits"
                                   : "draft.1.logits")->data, sizeof logits);
        for (size_t j = 0; j < GOLDEN_DRAFTS; j++)
            assert_int_equal(argmax(logits + j * V, V), ids[k][1 + j]);
    }
    assert_memory_equal(ids[0], ids[1], 2 * sizeof **ids);
    assert_memory_not_equal(ids[0] + 2, ids[1] + 2, 3 * sizeof **ids);
}

/* Directories ------------------------------------------------------------ */

/* What lies where a pack is made, or the one before is put, is refused. */
static void left_over(const GoldenPack *p, const char *dir, const char *more)
{
    Error err;
    char path[500], text[600];
    snprintf(path, sizeof path, "%s%s", dir, more);
    must(make_dir(path, &err), &err);
    snprintf(text, sizeof text, "%s: exists; a run that was killed may have"
             " left it", path);
    must_fail(golden_make(p, dir, true, &err), &err, text);
    must(dir_remove(path, &err), &err);
}

static void targets(void **state)
{
    Error err;
    const GoldenPack *p = golden_find("K5-ties", &err);
    char *dir = make_in(p, "target"), text[600];
    char *other = scratch_dup("other");
    (void)state;
    snprintf(text, sizeof text, "%s exists; --force overwrites it", dir);
    must_fail(golden_make(p, dir, false, &err), &err, text);
    must(golden_make(p, dir, true, &err), &err);
    left_over(p, dir, ".tmp");
    left_over(p, dir, ".old");
    remove_made(dir);
    must(make_dir(other, &err), &err);
    snprintf(text, sizeof text, "%s: wanted a golden pack to overwrite, found"
             " no golden/manifest.json in it", other);
    must_fail(golden_make(p, other, true, &err), &err, text);
    must(dir_remove(other, &err), &err);
    free(other);
}

static void unknown(void **state)
{
    Error err;
    (void)state;
    assert_null(golden_find("K99", &err));
    assert_non_null(strstr(err.text, "golden: wanted one of K1, K2, "));
    assert_non_null(strstr(err.text, ", found 'K99'"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(axes_are_sizes), cmocka_unit_test(margins_of_a_row),
        cmocka_unit_test(no_choice_is_narrow),
        cmocka_unit_test(weights_are_exact_in_bf16),
        cmocka_unit_test(every_expert_is_picked),
        cmocka_unit_test(half_of_256_experts_are_picked),
        cmocka_unit_test(each_stage_has_its_share),
        cmocka_unit_test(no_gate_is_saturated),
        cmocka_unit_test(rounding_stays_small),
        cmocka_unit_test(every_tensor_counts),
        cmocka_unit_test(every_weight_has_a_gradient),
        cmocka_unit_test(some_bias_stays),
        cmocka_unit_test(every_setting_counts),
        cmocka_unit_test(drafts_are_the_best),
        cmocka_unit_test(targets), cmocka_unit_test(unknown),
        cmocka_unit_test(same_bytes),
    };
    return cmocka_run_group_tests(tests, make_all, remove_all);
}
