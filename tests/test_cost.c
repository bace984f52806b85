/* Origin of the figures: sums re-computed by program from the published
 * configs, most of which the papers state rounded (V2 §3.1.2: 236B, 21B
 * activated; §2.1.4 Table 1; V3 §4.2: 671B, 37B), and the released V3
 * checkpoint, whose index lists 91,991 tensors of 688,574,839,360 bytes. */
#include "../deepseek.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static Config config(const char *name)
{
    Config c;
    Error err;
    char path[64] = "tests/data/configs/";
    strcat(strcat(path, name), ".json");
    if (config_read(&c, path, &err) != 0)
        fail_msg("%s", err.text);
    return c;
}

static Costs costs(const char *name)
{
    Costs costs;
    Config c = config(name);
    cost_count(&costs, &c, c.fp8 ? DT_F8_E4M3 : c.torch_dtype, 4096);
    return costs;
}

typedef struct {
    const char *name;
    uint64_t v2_lite, v2, v3;
} Figure;

static const Figure figures[] = {
    {"embedding", 209715200, 524288000, 926679040},
    {"mla", 13763072, 149227520, 187107328},
    {"dense_ffn", 67239936, 188743680, 396361728},
    {"routed_expert", 8650752, 23592960, 44040192},
    {"shared_experts", 17301504, 47185920, 44040192},
    {"gate", 131072, 819200, 1835264},
    {"moe_ffn", 571080704, 3822878720, 11320164608},
    {"total", 15706484224, 235741434880, 671026419200},
    {"activated", 2661150208, 21375800320, 37552297472},
    {"activated_no_embedding", 2451435008, 20851512320, 36625618432},
    {"mtp_unique", 0, 0, 11610068224},
    {"mtp_with_copies", 0, 0, 13463426304},
    {"mtp_activated", 0, 0, 2541458688},
    {"checkpoint_total", 15706484224, 235741434880, 684489845504},
    {"tensors", 5291, 29102, 91991},
    {"checkpoint_bytes", 31412968448, 471482869760, 688574839360},
    {"cache_mla", 15552, 34560, 35136},
    {"cache_mla_mtp", 15552, 34560, 35712},
    {"cache_naive", 138240, 2457600, 2498560},
    {"cache_mha", 110592, 1966080, 1998848},
    {"cache_gqa8", 55296, 122880, 124928},
    {"cache_mqa", 6912, 15360, 15616},
};

enum { FIGURES = sizeof figures / sizeof figures[0] };

static uint64_t value(const Costs *costs, const CostRow *row)
{
    return *(const uint64_t *)(const void *)((const char *)costs +
                                             row->offset);
}

static const CostRow *row_named(const char *name)
{
    size_t n;
    const CostRow *rows = cost_rows(&n);
    for (size_t i = 0; i < n; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    fail_msg("no row is called %s", name);
    return NULL;
}

static void every_published_figure(void **state)
{
    Costs lite = costs("v2-lite"), v2 = costs("v2"), v3 = costs("v3");
    (void)state;
    for (size_t i = 0; i < FIGURES; i++) {
        const Figure *f = &figures[i];
        const CostRow *row = row_named(f->name);
        if (value(&lite, row) != f->v2_lite || value(&v2, row) != f->v2 ||
            value(&v3, row) != f->v3)
            fail_msg("%s: %llu, %llu, %llu", f->name,
                     (unsigned long long)value(&lite, row),
                     (unsigned long long)value(&v2, row),
                     (unsigned long long)value(&v3, row));
    }
}

/* A row without a figure would be a number that nothing vouches for. */
static void every_row_has_a_figure(void **state)
{
    size_t n, flops = 0;
    const CostRow *rows = cost_rows(&n);
    (void)state;
    for (size_t i = 0; i < n; i++)
        flops += rows[i].group == COST_FLOPS;
    assert_int_equal(n - flops, FIGURES);
    assert_int_equal(n * sizeof(uint64_t), sizeof(Costs));
}

/* 6 N + 3·l·2·n_h·(d_h+d_r+d_v)·2048: 155 and 250 GFLOP a token. */
static void training_flops(void **state)
{
    Costs v2 = costs("v2"), v3 = costs("v3");
    (void)state;
    assert_true(v2.flops_train == 6 * 20851512320.0 + 30198988800.0);
    assert_true(v3.flops_train == 6 * 36625618432.0 + 30702305280.0);
}

/* Absorbed, a token reads d_c + d_r and d_c of each position and head. */
static void forward_flops(void **state)
{
    Costs v3 = costs("v3");
    (void)state;
    assert_true(v3.flops_weights == 2.0 * 36625618432.0);
    assert_true(v3.flops_absorbed == 2.0 * 61 * 128 * (576 + 512) * 4096);
    assert_true(v3.flops_naive == 2.0 * 61 * 128 * (192 + 128) * 4096);
}

/* With 6 bits an element, V2 saves 93.3 % of the cache of DeepSeek 67B, whose
 * 95 layers keep 8 groups of 128 in 16 bits (V2 §3.2.3). */
static void saving_against_67b(void **state)
{
    Costs v2 = costs("v2");
    double bytes = (double)v2.cache_mla * 6 / 8;
    (void)state;
    assert_true(bytes == 25920);
    assert_true(1 - bytes / (2.0 * 95 * 8 * 128 * 2) > 0.9333);
    assert_true(1 - bytes / (2.0 * 95 * 8 * 128 * 2) < 0.9335);
}

/* The head of a tied model is the embedding: counted once, never left out. */
static void tied_tables(void **state)
{
    Config c = config("v2-lite");
    Costs untied = costs("v2-lite"), tied;
    (void)state;
    c.tie_word_embeddings = true;
    cost_count(&tied, &c, DT_BF16, 4096);
    assert_int_equal(tied.total, untied.total - untied.embedding);
    assert_int_equal(tied.tensors, untied.tensors - 1);
    assert_int_equal(tied.activated, untied.activated - untied.embedding);
    assert_int_equal(tied.activated_no_embedding,
                     untied.activated_no_embedding);
}

static void dense_model(void **state)
{
    Config c = config("v2-lite");
    Costs costs;
    (void)state;
    c.n_routed_experts = 0;
    cost_count(&costs, &c, DT_F32, 1);
    assert_int_equal(costs.dense_ffn, 67239936);
    assert_int_equal(costs.moe_ffn, 0);
    assert_int_equal(costs.routed_expert, 0);
    assert_int_equal(costs.activated, costs.total);
    assert_int_equal(costs.checkpoint_bytes, 4 * costs.total);
}

/* Steps of decoding -------------------------------------------------------- */

static void near(double found, double wanted)
{
    double error = found - wanted;
    if (!((error < 0 ? -error : error) <= 1e-12 * wanted))
        fail_msg("found %.17g, wanted %.17g", found, wanted);
}

/* Bytes of an FP8 weight, a block of 128×128 with its scale. */
static double fp8(double rows, double cols, double grid)
{
    return rows * cols + 4 * grid;
}

/* V3 as it is published, one sequence, one draft: by hand from its config. */
static void a_step_of_v3(void **state)
{
    Config c = config("v3");
    Step s = {.batch = 1, .ctx = 4096}, drafted = s;
    StepBytes b;
    double d = 7168, norms = 2 * 2 * d, cache = 4 * 4096 * 576.0;
    double mla = fp8(1536, d, 12 * 56) + 2 * 1536 +
                 fp8(24576, 1536, 192 * 12) + fp8(576, d, 5 * 56) + 2 * 512 +
                 fp8(32768, 512, 256 * 4) + fp8(d, 16384, 56 * 128);
    double expert = 3 * fp8(2048, d, 16 * 56), gate = 2 * 256 * d + 4 * 256;
    double dense = 3 * fp8(18432, d, 144 * 56), head = 2 * 129280 * d;
    double weights = 61 * (mla + norms) + 3 * dense + 58 * (expert + gate) +
                     2 * d + head;
    (void)state;
    near(cost_step(&b, &c, DT_F8_E4M3, &s),
         weights + 58 * 8 * expert + 61 * cache);
    near(b.weights, weights);
    near(b.experts, 58 * 8 * expert);
    near(b.cache, 61 * cache);
    near(b.distinct, 8);
    assert_true(b.modules <= 0 && b.heads <= 0);
    /* Two tokens hit 256 (1 - (31/32)²) = 15.75 experts of a layer; the
     * module runs one row, or two where the draft before was accepted. */
    drafted.drafts = 1;
    drafted.acceptance = 0.75;
    double hit = 0.25 * 8 + 0.75 * 15.75;
    cost_step(&b, &c, DT_F8_E4M3, &drafted);
    near(b.weights, weights);
    near(b.experts, 58 * 15.75 * expert);
    near(b.cache, 61 * cache);
    near(b.distinct, 15.75);
    near(b.modules, 3 * 2 * d + 4 * d * d + mla + norms + expert + gate +
                        hit * expert + cache);
    near(b.heads, head);
}

/* Two modules, three drafts, two sequences, BF16: module 1 runs the rows that
 * the last step's tokens made final, module 2 one more, and again for the
 * third draft. */
static void more_drafts_than_modules(void **state)
{
    Config c;
    Error err;
    Step s = {.drafts = 3, .batch = 2, .ctx = 10, .acceptance = 0.5};
    StepBytes b;
    double r = 0.75, r2 = r * r, m1, m2, cache = 4 * 2 * 10 * 28;
    double mla = 16 * 32 + 16 + 40 * 16 + 28 * 32 + 20 + 48 * 20 + 32 * 24;
    double expert = 2 * 3 * 32 * 4, gate = 2 * 8 * 32 + 4 * 8;
    double block = 2 * (mla + 2 * 32), head = 2 * 64 * 32;
    double module = block + expert + gate + 2 * (3 * 32 + 32 * 64) + cache;
    (void)state;
    if (config_read(&c, "tests/data/models/mtp-two", &err) != 0)
        fail_msg("%s", err.text);
    cost_step(&b, &c, DT_BF16, &s);
    near(b.weights, 2 * block + 2 * 3 * 20 * 32 + expert + gate + 2 * 32 +
                        head);
    near(b.distinct, 8 * (1 - r2 * r2 * r2 * r2));
    near(b.experts, b.distinct * expert);
    near(b.cache, 2 * cache);
    near(b.heads, 3 * head);
    m1 = 0.5 * r + 0.25 * r2 + 0.125 * r2 * r + 0.125 * r2 * r2;
    m2 = r * m1;
    near(b.modules, 3 * module + 8 * expert * (3 - m1 * m1 - m2 * m2 - r2));
    s.experts = 3.5;
    cost_step(&b, &c, DT_BF16, &s);
    near(b.experts, 3.5 * expert);
    near(b.distinct, 3.5);
}

static void tokens_of_a_step(void **state)
{
    (void)state;
    for (size_t K = 0; K < 17; K++) {
        near(cost_tokens(1, K), (double)K + 1);
        near(cost_tokens(0, K), 1);
    }
    near(cost_tokens(0.85, 1), 1.85);
    near(cost_tokens(0.5, 3), 1 + 0.5 + 0.25 + 0.125);
}

/* The least and the greatest speed-up at 85 and 90 %, V3's acceptance. */
static void speed_ups_of_v3(size_t batch, double experts, double *low,
                            double *high)
{
    Config c = config("v3");
    Step s = {.drafts = 1, .batch = batch, .ctx = 4096, .acceptance = 0.85,
              .experts = experts};
    *low = cost_speed_up(&c, DT_F8_E4M3, &s);
    s.acceptance = 0.9;
    *high = cost_speed_up(&c, DT_F8_E4M3, &s);
}

/* V3 §5.4.3's 1.8: where so many sequences run side by side that every expert
 * is read anyway. One alone cannot have it: its tokens' experts differ. */
static void where_1_8_holds(void **state)
{
    double low, high;
    (void)state;
    speed_ups_of_v3(512, 0, &low, &high);
    assert_true(low > 1.8 && high < 1.9);
    speed_ups_of_v3(1, 0, &low, &high);
    assert_true(low > 1.15 && high < 1.2);
    speed_ups_of_v3(1, 8, &low, &high);
    assert_true(low > 1.7 && high < 1.8);
}

static void a_step_of_a_dense_model(void **state)
{
    Config c = config("v2-lite");
    Step s = {.drafts = 2, .batch = 3, .ctx = 1, .acceptance = 1};
    StepBytes b;
    (void)state;
    c.n_routed_experts = c.num_experts_per_tok = 0;
    c.num_nextn_predict_layers = 1;
    c.tie_word_embeddings = true;
    cost_step(&b, &c, DT_BF16, &s);
    assert_true(b.experts <= 0 && b.distinct <= 0);
    near(b.heads, 2 * 2 * 209715200.0);
    near(b.weights, 2 * (209715200.0 + 27.0 * (67239936 + 13763072 + 4096) +
                         2048));
    near(b.modules, 2 * (2 * (67239936 + 13763072 + 4096 + 3 * 2048 +
                              2 * 2048.0 * 2048) + 3 * 4 * 576));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_published_figure),
        cmocka_unit_test(every_row_has_a_figure),
        cmocka_unit_test(training_flops),
        cmocka_unit_test(forward_flops),
        cmocka_unit_test(saving_against_67b),
        cmocka_unit_test(tied_tables),
        cmocka_unit_test(dense_model),
        cmocka_unit_test(a_step_of_v3),
        cmocka_unit_test(more_drafts_than_modules),
        cmocka_unit_test(tokens_of_a_step),
        cmocka_unit_test(where_1_8_holds),
        cmocka_unit_test(a_step_of_a_dense_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
