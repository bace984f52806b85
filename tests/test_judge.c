/* Dumps that are right in any layout, and wrong ones.
 *
 * Golden values here are drawn, not computed: 6 tokens, 2 heads, 4 numbers of
 * RoPE, 4 experts of which 2 are picked. A dump is a copy with changes. */
#include "support.h"

#include "base/npy.h"

enum { T = 6, HEADS = 2, ROPE = 4, D = 8, V = 10, N = 4, K = 2, MOST = 24 };

typedef struct {
    char name[64];
    DType dtype;
    int rank;
    size_t shape[4], n;
    float x[T * HEADS * D];
} Item;

typedef struct {
    Item items[MOST];
    size_t n;
} Dump;

static int put_item(void *context, size_t i, StSink *sink, Error *err)
{
    const Item *item = &((Dump *)context)->items[i];
    for (size_t k = 0; k < item->n; k++) {
        int32_t id = item->dtype == DT_I32 ? (int32_t)item->x[k] : 0;
        uint16_t half = bf16_from_f32(item->x[k]);
        if (st_put(sink, item->dtype == DT_I32 ? (const void *)&id
                         : item->dtype == DT_BF16 ? (const void *)&half
                         : (const void *)&item->x[k], 1, err))
            return -1;
    }
    return 0;
}

static void write_dump(const char *path, Dump *d)
{
    StSpec specs[MOST];
    Error err;
    for (size_t i = 0; i < d->n; i++) {
        specs[i] = (StSpec){d->items[i].name, d->items[i].dtype,
                            d->items[i].rank, {0}};
        memcpy(specs[i].shape, d->items[i].shape, sizeof d->items[i].shape);
    }
    must(st_write(path, true, specs, d->n, NULL, put_item, d, &err), &err);
}

static Item *find(Dump *d, const char *name)
{
    for (size_t i = 0; i < d->n; i++)
        if (strcmp(d->items[i].name, name) == 0)
            return &d->items[i];
    fail_msg("no %s", name);
    return NULL;
}

static Item *add_item(Dump *d, const char *name, int rank, size_t a, size_t b,
                      size_t c)
{
    Item *item = &d->items[d->n++];
    assert_true(d->n <= MOST);
    *item = (Item){.dtype = DT_F32, .rank = rank, .shape = {a, b, c}};
    item->n = a * (rank > 1 ? b : 1) * (rank > 2 ? c : 1);
    snprintf(item->name, sizeof item->name, "%s", name);
    return item;
}

static void drop(Dump *d, const char *name)
{
    Item *item = find(d, name);
    size_t i = (size_t)(item - d->items);
    memmove(item, item + 1, (--d->n - i) * sizeof *item);
}

/* The picks of a row are its two greatest; here always 1 and 0, or by
 * little. */
static void draw_gate(Dump *d, Random *r)
{
    Item *choice = add_item(d, "model.layers.1.mlp.gate.choice", 2, T, N, 0);
    Item *ids = add_item(d, "model.layers.1.mlp.gate.topk_ids", 2, T, K, 0);
    Item *w = add_item(d, "model.layers.1.mlp.gate.topk_weights", 2, T, K, 0);
    ids->dtype = DT_I32;
    for (size_t t = 0; t < T; t++) {
        static const float row[N] = {0.7f, 0.9f, 0.4f, 0.1f};
        memcpy(choice->x + t * N, row, sizeof row);
        ids->x[t * K] = 1;
        ids->x[t * K + 1] = 0;
    }
    choice->x[3 * N + 2] = 0.6999f;
    random_normal(r, w->x, w->n, 1);
}

static void draw(Dump *d)
{
    Random r = random_seeded(5);
    *d = (Dump){.n = 0};
    Item *ids = add_item(d, "ids", 1, T, 0, 0);
    ids->dtype = DT_I32;
    add_item(d, "model.rotary_emb.cos", 2, T, ROPE / 2, 0);
    add_item(d, "model.layers.0.self_attn.kv_a_layernorm", 2, T, 5, 0);
    add_item(d, "model.layers.0.self_attn.k_pe", 2, T, ROPE, 0);
    add_item(d, "model.layers.0.self_attn.q_pe", 3, T, HEADS, ROPE);
    add_item(d, "model.layers.0.self_attn.scores", 3, T, HEADS, T);
    add_item(d, "model.layers.0.mlp.gate_proj", 2, T, 3, 0);
    add_item(d, "model.layers.0.mlp.up_proj", 2, T, 3, 0);
    add_item(d, "model.layers.0", 2, T, D, 0);
    for (size_t i = 1; i < d->n; i++)
        random_normal(&r, d->items[i].x, d->items[i].n, 1);
    for (size_t t = 0; t < T; t++)
        ids->x[t] = (float)(3 * t + 1);
    Item *scores = find(d, "model.layers.0.self_attn.scores");
    for (size_t i = 0; i < scores->n; i++)
        if (i % T > i / (HEADS * T))
            scores->x[i] = -INFINITY;
    draw_gate(d, &r);
    static const char *const last[] = {"model.layers.1", "model.layers.2"};
    for (size_t i = 0; i < 2; i++)
        random_normal(&r, add_item(d, last[i], 2, T, D, 0)->x, T * D, 1);
    random_normal(&r, add_item(d, "logits", 2, T, V, 0)->x, T * V, 2);
}

/* What is compared, and where it lies. */
typedef struct {
    Dump golden, theirs;
    Safetensors a, b;
    Judgement j;
} Case;

static void begin(Case *c)
{
    *c = (Case){.a = {0}};
    draw(&c->golden);
    c->theirs = c->golden;
}

static int judged(Case *c, JudgeRule rule, Error *err)
{
    char golden[500];
    snprintf(golden, sizeof golden, "%s", scratch("golden.safetensors"));
    write_dump(golden, &c->golden);
    write_dump(scratch("theirs.safetensors"), &c->theirs);
    must(st_open(&c->a, golden, err), err);
    must(npy_open(&c->b, scratch("theirs.safetensors"), err), err);
    return judge_dump(&c->j, &c->a, &c->b, rule, err);
}

static void end(Case *c)
{
    judge_close(&c->j);
    st_close(&c->a);
    st_close(&c->b);
}

static const JudgedTensor *tensor(const Case *c, const char *name)
{
    for (size_t i = 0; i < c->j.n; i++)
        if (strcmp(c->j.tensors[i].name, name) == 0)
            return &c->j.tensors[i];
    fail_msg("%s was not judged", name);
    return NULL;
}

/* Judges and wants all of it right; ends the case unless `keep`. */
static void must_be_right(Case *c, JudgeRule rule)
{
    Error err;
    must(judged(c, rule, &err), &err);
    if (c->j.departed)
        fail_msg("%s departs: %g", c->j.first->name, c->j.first->nmse);
    assert_int_equal(c->j.n_unknown, 0);
}

static void the_same(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    must_be_right(&c, RULE_FP32);
    assert_int_equal(c.j.n, c.golden.n - 1); /* all but ids */
    const JudgedTensor *t = tensor(&c, "logits");
    assert_true(t->logits && t->top1 == T && t->kl_mean == 0);
    end(&c);
}

static void any_subset(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    while (c.theirs.n > 1)
        drop(&c.theirs, c.theirs.items[0].name);
    must_be_right(&c, RULE_FP32);
    assert_int_equal(c.j.n, 1);
    end(&c);
}

/* Layouts ---------------------------------------------------------------- */

static void wants_layout(Case *c, const char *name, const char *layout)
{
    must_be_right(c, RULE_FP32);
    assert_string_equal(tensor(c, name)->layout, layout);
    end(c);
}

static void half_split(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *golden = find(&c.golden, "model.layers.0.self_attn.k_pe");
    Item *k = find(&c.theirs, "model.layers.0.self_attn.k_pe");
    for (size_t i = 0; i < k->n; i++) {
        size_t j = i % ROPE;
        k->x[i - j + j / 2 + j % 2 * (ROPE / 2)] = golden->x[i];
    }
    wants_layout(&c, k->name, "half-split");
}

static void heads_first(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *golden = find(&c.golden, "model.layers.0.self_attn.q_pe");
    Item *q = find(&c.theirs, "model.layers.0.self_attn.q_pe");
    *q = (Item){.dtype = DT_F32, .rank = 4, .shape = {1, HEADS, T, ROPE},
                .n = golden->n};
    snprintf(q->name, sizeof q->name, "%s", golden->name);
    for (size_t i = 0; i < q->n; i++)
        q->x[i / ROPE % HEADS * T * ROPE + i / (HEADS * ROPE) * ROPE
             + i % ROPE] = golden->x[i];
    wants_layout(&c, q->name, "axes 2 1 3");
}

static void merged_axes(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *q = find(&c.theirs, "model.layers.0.self_attn.q_pe");
    q->rank = 2;
    q->shape[1] = HEADS * ROPE;
    wants_layout(&c, q->name, "");
}

static void transposed(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *golden = find(&c.golden, "model.layers.2");
    Item *h = find(&c.theirs, "model.layers.2");
    h->shape[0] = D;
    h->shape[1] = T;
    for (size_t i = 0; i < h->n; i++)
        h->x[i % D * T + i / D] = golden->x[i];
    wants_layout(&c, h->name, "axes 2 1");
}

static void cosines_twice(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *golden = find(&c.golden, "model.rotary_emb.cos");
    Item *cos = find(&c.theirs, "model.rotary_emb.cos");
    cos->shape[1] = ROPE;
    cos->n = T * ROPE;
    for (size_t i = 0; i < cos->n; i++)
        cos->x[i] = golden->x[i / ROPE * (ROPE / 2) + i % (ROPE / 2)];
    wants_layout(&c, cos->name, "every number twice");
}

static void unmasked_scores(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *s = find(&c.theirs, "model.layers.0.self_attn.scores");
    for (size_t i = 0; i < s->n; i++)
        s->x[i] = isinf(s->x[i]) ? (i % 3 ? -3e38f : 5) : s->x[i];
    wants_layout(&c, s->name, "");
}

static void log_probabilities(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *x = find(&c.theirs, "logits");
    for (size_t t = 0; t < T; t++) {
        double sum = 0;
        for (size_t i = 0; i < V; i++)
            sum += exp((double)x->x[t * V + i]);
        for (size_t i = 0; i < V; i++)
            x->x[t * V + i] = (float)((double)x->x[t * V + i] - log(sum));
    }
    wants_layout(&c, "logits", "log-probabilities");
}

static void fused(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *gate = find(&c.golden, "model.layers.0.mlp.gate_proj");
    Item *up = find(&c.golden, "model.layers.0.mlp.up_proj");
    drop(&c.theirs, gate->name);
    drop(&c.theirs, up->name);
    Item *both = add_item(&c.theirs, "model.layers.0.mlp.gate_up_proj", 3, 1,
                          T, 6);
    for (size_t t = 0; t < T; t++) {
        memcpy(both->x + t * 6, gate->x + t * 3, 3 * sizeof *both->x);
        memcpy(both->x + t * 6 + 3, up->x + t * 3, 3 * sizeof *both->x);
    }
    must_be_right(&c, RULE_FP32);
    assert_string_equal(tensor(&c, up->name)->from, both->name);
    end(&c);
    both->x[4] = 9;
    Error err;
    must(judged(&c, RULE_FP32, &err), &err);
    assert_string_equal(c.j.first->name, up->name);
    end(&c);
}

static void stacked(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *all = add_item(&c.theirs, "model.layers", 3, 2, T, D);
    for (size_t i = 0; i < 2; i++) {
        char name[] = "model.layers.0";
        name[13] = (char)('0' + i);
        memcpy(all->x + i * T * D, find(&c.golden, name)->x,
               T * D * sizeof *all->x);
        drop(&c.theirs, name);
        all = find(&c.theirs, "model.layers");
    }
    must_be_right(&c, RULE_FP32);
    assert_string_equal(tensor(&c, "model.layers.1")->from, "model.layers");
    end(&c);
}

static void picks_in_any_order(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    Item *ids = find(&c.theirs, "model.layers.1.mlp.gate.topk_ids");
    Item *w = find(&c.theirs, "model.layers.1.mlp.gate.topk_weights");
    for (size_t i = 0; i < T * K; i += 2) {
        float id = ids->x[i], weight = w->x[i];
        ids->x[i] = ids->x[i + 1];
        w->x[i] = w->x[i + 1];
        ids->x[i + 1] = id;
        w->x[i + 1] = weight;
    }
    must_be_right(&c, RULE_FP32);
    end(&c);
    drop(&c.theirs, ids->name);
    must_be_right(&c, RULE_FP32);
    end(&c);
}

static void bf16_values(void **state)
{
    Case c;
    Error err;
    (void)state;
    begin(&c);
    for (size_t i = 0; i < c.theirs.n; i++)
        if (c.theirs.items[i].dtype == DT_F32
            && strncmp(c.theirs.items[i].name, "model.rotary", 12) != 0)
            c.theirs.items[i].dtype = DT_BF16;
    must_be_right(&c, RULE_BF16);
    end(&c);
    must(judged(&c, RULE_FP32, &err), &err);
    assert_true(c.j.departed > 5);
    end(&c);
}

/* Departures ------------------------------------------------------------- */

static void first_and_worst(void **state)
{
    Case c;
    Error err;
    (void)state;
    begin(&c);
    find(&c.theirs, "model.layers.0")->x[3] += 0.01f;
    find(&c.theirs, "model.layers.2")->x[3] += 1;
    must(judged(&c, RULE_FP32, &err), &err);
    assert_int_equal(c.j.departed, 2);
    assert_string_equal(c.j.first->name, "model.layers.0");
    assert_string_equal(c.j.worst->name, "model.layers.2");
    end(&c);
}

static void not_a_number(void **state)
{
    Case c;
    Error err;
    (void)state;
    begin(&c);
    find(&c.theirs, "logits")->x[V] = NAN;
    must(judged(&c, RULE_FP8, &err), &err);
    assert_string_equal(c.j.first->name, "logits");
    assert_int_equal(c.j.first->not_finite, 1);
    assert_true(isnan(c.j.first->kl_most) && c.j.first->kl_at == 1);
    end(&c);
}

/* Nothing lets it pass: not that it is equal to no id and greater than none,
 * nor that other experts were picked for the token, nor a mask. */
static void not_a_number_anywhere(void **state)
{
    static const struct {
        const char *name;
        size_t at;
    } places[] = {
        {"model.layers.1.mlp.gate.topk_ids", 2 * K + 1},
        {"model.layers.1.mlp.gate.choice", 3 * N + 2},
        {"model.layers.1", 3 * D},
        {"model.layers.2", 4 * D},
    };
    Error err;
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        Case c;
        begin(&c);
        find(&c.theirs, places[0].name)->x[3 * K + 1] = 2;
        find(&c.theirs, places[1].name)->x[3 * N + 2] = 0.701f;
        find(&c.theirs, places[i].name)->dtype = DT_F32;
        find(&c.theirs, places[i].name)->x[places[i].at] = NAN;
        must(judged(&c, RULE_BF16, &err), &err);
        assert_non_null(c.j.first);
        assert_string_equal(c.j.first->name, places[i].name);
        assert_int_equal(c.j.first->not_finite, 1);
        end(&c);
    }
}

/* Where other experts are masked, the choice departs, and all is a number. */
static void masked_elsewhere(void **state)
{
    Case c;
    Error err;
    (void)state;
    begin(&c);
    find(&c.theirs, "model.layers.1.mlp.gate.choice")->x[2] = -INFINITY;
    must(judged(&c, RULE_BF16, &err), &err);
    assert_string_equal(c.j.first->name, "model.layers.1.mlp.gate.choice");
    assert_int_equal(c.j.first->not_finite, 0);
    end(&c);
}

static void no_logits_at_all(void **state)
{
    Case c;
    Error err;
    (void)state;
    begin(&c);
    for (size_t i = 0; i < T * V; i++)
        find(&c.theirs, "logits")->x[i] = NAN;
    must(judged(&c, RULE_FP32, &err), &err);
    assert_string_equal(c.j.first->layout, "");
    assert_int_equal(c.j.first->not_finite, T * V);
    end(&c);
}

/* KL by hand: rows of two different logits ln 3, 0 and 0, 0 among -inf. */
static void divergence_by_hand(void **state)
{
    Case c;
    Error err;
    (void)state;
    begin(&c);
    Item *a = find(&c.golden, "logits"), *b = find(&c.theirs, "logits");
    for (size_t i = 0; i < T * V; i++)
        a->x[i] = b->x[i] = i % V < 2 ? 0 : -1000;
    a->x[4 * V] = logf(3);
    must(judged(&c, RULE_FP32, &err), &err);
    const JudgedTensor *t = tensor(&c, "logits");
    double kl = 0.75 * log(1.5) + 0.25 * log(0.5);
    assert_true(fabs(t->kl_most - kl) < 1e-6 && t->kl_at == 4);
    assert_true(fabs(t->kl_mean - kl / T) < 1e-6);
    end(&c);
}

/* Token 3's second and third expert are 0.0001 apart. */
static void narrow_picks(void **state)
{
    static const char *const name = "model.layers.1.mlp.gate.topk_ids";
    Case c;
    Error err;
    (void)state;
    begin(&c);
    find(&c.theirs, name)->x[3 * K + 1] = 2;
    find(&c.theirs, "model.layers.1.mlp.gate.choice")->x[3 * N + 2] = 0.701f;
    find(&c.theirs, "model.layers.1")->x[3 * D] = 100;
    find(&c.theirs, "model.layers.2")->x[4 * D] = 100;
    must_be_right(&c, RULE_BF16);
    assert_int_equal(c.j.swapped, 1);
    assert_int_equal(tensor(&c, "model.layers.1")->judged, T - 1);
    assert_int_equal(tensor(&c, "model.layers.2")->judged, 3);
    end(&c);
    find(&c.theirs, "model.layers.2")->x[2 * D] = 100;
    must(judged(&c, RULE_BF16, &err), &err);
    assert_string_equal(c.j.first->name, "model.layers.2");
    end(&c);
}

static void wide_picks(void **state)
{
    static const char *const name = "model.layers.1.mlp.gate.topk_ids";
    Case c;
    Error err;
    (void)state;
    begin(&c);
    find(&c.theirs, name)->x[2 * K + 1] = 3;
    must(judged(&c, RULE_BF16, &err), &err);
    assert_string_equal(c.j.first->name, name);
    assert_true(c.j.first->nmse == 1.0 / T && c.j.swapped == 0);
    end(&c);
}

/* Refused ---------------------------------------------------------------- */

static void must_refuse(Case *c, const char *message)
{
    char text[700];
    Error err;
    snprintf(text, sizeof text, "%s: %s", scratch("theirs.safetensors"),
             message);
    must_fail(judged(c, RULE_FP32, &err), &err, text);
    end(c);
}

static void refused(void **state)
{
    Case c;
    (void)state;
    begin(&c);
    find(&c.theirs, "ids")->x[2] = 5;
    must_refuse(&c, "ids[2]: wanted 7, found 5: another prompt");
    begin(&c);
    find(&c.theirs, "ids")->shape[0] = 5;
    find(&c.theirs, "ids")->n = 5;
    must_refuse(&c, "ids: wanted the shape (6), found (5): another prompt");
    begin(&c);
    find(&c.theirs, "logits")->shape[1] = 5;
    find(&c.theirs, "logits")->n = T * 5;
    must_refuse(&c, "logits: wanted the shape (6, 10), found (6, 5): another "
                "vocabulary or prompt");
    begin(&c);
    while (c.theirs.n > 1)
        drop(&c.theirs, c.theirs.items[0].name);
    snprintf(c.theirs.items[0].name, 8, "output");
    char text[700];
    snprintf(text, sizeof text, "wanted tensors of %s, found output, which is "
             "none of them", scratch("golden.safetensors"));
    must_refuse(&c, text);
    begin(&c);
    drop(&c.theirs, "model.layers.0.mlp.gate_proj");
    drop(&c.theirs, "model.layers.0.mlp.up_proj");
    add_item(&c.theirs, "model.layers.0.mlp.gate_up_proj", 2, T, 7, 0);
    must_refuse(&c, "model.layers.0.mlp.gate_up_proj: wanted rows of 6, of "
                "which model.layers.0.mlp.gate_proj is a part, found rows of "
                "7");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same),
        cmocka_unit_test(any_subset),
        cmocka_unit_test(half_split),
        cmocka_unit_test(heads_first),
        cmocka_unit_test(merged_axes),
        cmocka_unit_test(transposed),
        cmocka_unit_test(cosines_twice),
        cmocka_unit_test(unmasked_scores),
        cmocka_unit_test(log_probabilities),
        cmocka_unit_test(fused),
        cmocka_unit_test(stacked),
        cmocka_unit_test(picks_in_any_order),
        cmocka_unit_test(bf16_values),
        cmocka_unit_test(first_and_worst),
        cmocka_unit_test(not_a_number),
        cmocka_unit_test(not_a_number_anywhere),
        cmocka_unit_test(masked_elsewhere),
        cmocka_unit_test(no_logits_at_all),
        cmocka_unit_test(divergence_by_hand),
        cmocka_unit_test(narrow_picks),
        cmocka_unit_test(wide_picks),
        cmocka_unit_test(refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    Error err;
    dir_remove(scratch(""), &err);
    return failed;
}
