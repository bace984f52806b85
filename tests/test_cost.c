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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
