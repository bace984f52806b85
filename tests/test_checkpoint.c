/* test_checkpoint.c: model directories that the program writes: drawn ones,
 * and models in FP8 or out of it.
 *
 * What is written is opened again and held to the numbers it was made of, each
 * rounded once; its tensors and bytes to what cost.c counts from the config.
 * tests/reference/check_quantize.py compares the files with NumPy's. */
#include "support.h"

#define MODELS "tests/data/models/"

/* New models ------------------------------------------------------------- */

static Config config_of(const char *path)
{
    Config c;
    Error err;
    must(config_read(&c, path, &err), &err);
    return c;
}

static const char *const made_files[] = {
    "model.safetensors", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json"};

static void remove_made(const char *dir)
{
    for (int i = 0; i < 5; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/%s", dir, made_files[i]);
        remove(path);
    }
    remove(dir);
}

static void init(const Config *c, const char *dir, DType dtype,
                 uint64_t seed)
{
    Error err;
    must(model_init(c, "nowhere/config.json", dir, false, dtype, seed, 0.05,
                    &err), &err);
}

static float *row_of(const Matrix *w, size_t r)
{
    float *row = test_alloc(w->cols, sizeof *row);
    matrix_row(row, w, r);
    return row;
}

/* One tensor of a new F32 model and of one in another dtype: each number of
 * the second is that of the first, rounded once. */
static void check_rounded(const Matrix *exact, const Matrix *w, size_t r)
{
    float *a = row_of(exact, r), *b = row_of(w, r);
    for (size_t k = 0; k < w->cols; k++) {
        float x = a[k], want = x;
        if (w->dtype == DT_BF16)
            want = f32_from_bf16(bf16_from_f32(x));
        if (w->dtype == DT_F16)
            want = f32_from_f16(f16_from_f32(x));
        if (w->dtype == DT_F8_E4M3) {
            size_t grid = (w->cols + 127) / 128;
            float s;
            memcpy(&s, (const char *)w->scale
                           + (r / 128 * grid + k / 128) * sizeof s,
                   sizeof s);
            want = e4m3_decode(e4m3_encode(x / s)) * s;
        }
        assert_true(b[k] == want);
    }
    free(a);
    free(b);
}

/* Scales are the block's greatest magnitude over 448. */
static void check_scales(const Matrix *exact, const Matrix *w, bool ue8m0)
{
    size_t grid = (w->cols + 127) / 128;
    for (size_t b = 0; b < (w->rows + 127) / 128 * grid; b++) {
        float amax = 0, s;
        for (size_t r = b / grid * 128; r < w->rows && r / 128 == b / grid;
             r++) {
            float *row = row_of(exact, r);
            for (size_t k = b % grid * 128;
                 k < w->cols && k / 128 == b % grid; k++)
                amax = fmaxf(amax, fabsf(row[k]));
            free(row);
        }
        memcpy(&s, (const char *)w->scale + b * sizeof s, sizeof s);
        assert_true(s == fp8_scale(amax, ue8m0));
    }
}

static void check_tensor(const TensorInfo *exact, const TensorInfo *info,
                         DType dtype, bool ue8m0)
{
    const Matrix *w = info->slot;
    assert_int_equal(w->dtype, tensor_dtype(info, dtype));
    if (w->dtype == DT_F8_E4M3)
        check_scales(exact->slot, w, ue8m0);
    for (size_t r = 0; r < w->rows; r++)
        check_rounded(exact->slot, w, r);
}

static void check_init(const char *path, DType dtype)
{
    char *first = scratch_dup("f32"), *second = scratch_dup("other");
    Config c = config_of(path);
    Model a, b;
    Error err;
    TensorInfo x, y;
    init(&c, first, DT_F32, 7);
    init(&c, second, dtype, 7);
    must(model_open(&a, first, &err), &err);
    must(model_open(&b, second, &err), &err);
    assert_int_equal(b.n_mtp, c.num_nextn_predict_layers);
    TensorWalk wa = tensor_walk(&a.config, &a);
    TensorWalk wb = tensor_walk(&b.config, &b);
    while (tensor_next(&wa, &x)) {
        assert_true(tensor_next(&wb, &y));
        assert_string_equal(x.name, y.name);
        check_tensor(&x, &y, dtype, c.scale_fmt_ue8m0);
    }
    assert_int_equal(b.config.fp8, dtype == DT_F8_E4M3);
    must(model_find_not_finite(&b, &err), &err);
    model_close(&a);
    model_close(&b);
    remove_made(first);
    remove_made(second);
    free(first);
    free(second);
}

static void test_init_round_trip(void **state)
{
    (void)state;
    for (int dtype = DT_F32; dtype <= DT_F8_E4M3; dtype++) {
        check_init(MODELS "k1-v2-lite", (DType)dtype);
        check_init(MODELS "mtp-present", (DType)dtype);
        check_init(MODELS "k9-shapes", (DType)dtype);
    }
    check_init(MODELS "fp8-ragged", DT_F8_E4M3);
    check_init(MODELS "fp8-ue8m0", DT_F8_E4M3);
}

/* Gains 1, bias 0, the rest normal; MTP's tables are copies. */
static void test_init_values(void **state)
{
    char *dir = scratch_dup("new");
    Config c = config_of(MODELS "mtp-present");
    Model m;
    Error err;
    TensorInfo info;
    double n = 0, sum = 0, square = 0;
    (void)state;
    init(&c, dir, DT_F32, 3);
    must(model_open(&m, dir, &err), &err);
    TensorWalk walk = tensor_walk(&m.config, &m);
    while (tensor_next(&walk, &info))
        for (size_t r = 0; r < info.rows; r++) {
            float *row = row_of(info.slot, r);
            for (size_t k = 0; k < info.cols; k++) {
                if (info.kind == TENSOR_NORM || info.kind == TENSOR_BIAS) {
                    assert_true(row[k] == (info.kind == TENSOR_NORM));
                    continue;
                }
                n += 1;
                sum += (double)row[k];
                square += (double)row[k] * (double)row[k];
            }
            free(row);
        }
    /* Standard errors: 0.05/sqrt(n) and 0.05/sqrt(2n); five of each. */
    assert_true(fabs(sum / n) < 5 * 0.05 / sqrt(n));
    assert_true(fabs(sqrt(square / n) - 0.05) < 5 * 0.05 / sqrt(2 * n));
    assert_memory_equal(m.layers[2].embed_tokens.data, m.embed_tokens.data,
                        64 * 32 * 4);
    assert_memory_equal(m.layers[2].shared_head_head.data, m.lm_head.data,
                        64 * 32 * 4);
    assert_memory_not_equal(m.lm_head.data, m.embed_tokens.data, 64 * 32 * 4);
    model_close(&m);
    remove_made(dir);
    free(dir);
}

/* Sides of 127, 128, 129 and 256: a grid has no block more than it needs. */
static void test_scale_grid(void **state)
{
    char *dir = scratch_dup("new"), name[200];
    Config c = config_of(MODELS "k3-v3");
    Model m;
    Error err;
    TensorInfo info;
    size_t exact = 0;
    (void)state;
    c.hidden_size = 256;
    c.intermediate_size = 129;
    c.moe_intermediate_size = 127;
    c.kv_lora_rank = 128 - c.qk_rope_head_dim;
    c.q_lora_rank = 128;
    c.num_hidden_layers = 4;
    init(&c, dir, DT_F8_E4M3, 1);
    must(model_open(&m, dir, &err), &err);
    TensorWalk walk = tensor_walk(&m.config, &m);
    while (tensor_next(&walk, &info)) {
        snprintf(name, sizeof name, "%s_scale_inv", info.name);
        const StTensor *t = st_find(&m.files, name);
        assert_int_equal(t != NULL, info.slot->dtype == DT_F8_E4M3);
        if (!t)
            continue;
        assert_int_equal(t->shape[0], (info.rows + 127) / 128);
        assert_int_equal(t->shape[1], (info.cols + 127) / 128);
        exact += info.rows % 128 == 0 || info.cols % 128 == 0;
    }
    assert_true(exact > 50);
    model_close(&m);
    remove_made(dir);
    free(dir);
}

static bool same_file(const char *a, const char *b, const char *name)
{
    char path[300];
    File x, y;
    Error err;
    snprintf(path, sizeof path, "%s/%s", a, name);
    must(file_open(&x, path, &err), &err);
    snprintf(path, sizeof path, "%s/%s", b, name);
    must(file_open(&y, path, &err), &err);
    bool same = x.size == y.size && memcmp(x.data, y.data, x.size) == 0;
    file_close(&x);
    file_close(&y);
    return same;
}

/* A tensor depends on the seed and its own name alone: not on how many layers
 * or experts there are. */
static void test_init_seed(void **state)
{
    char *a = scratch_dup("a"), *b = scratch_dup("b");
    Config c = config_of(MODELS "k3-v3");
    Model m, n;
    Error err;
    (void)state;
    init(&c, a, DT_BF16, 5);
    init(&c, b, DT_BF16, 5);
    for (int i = 0; i < 3; i++)
        assert_true(same_file(a, b, made_files[i]));
    remove_made(b);
    init(&c, b, DT_BF16, 6);
    assert_false(same_file(a, b, made_files[0]));
    remove_made(b);
    c.num_hidden_layers = 4;
    c.n_routed_experts = 16;
    init(&c, b, DT_BF16, 5);
    must(model_open(&m, a, &err), &err);
    must(model_open(&n, b, &err), &err);
    assert_memory_equal(m.layers[3].moe.experts[11].down_proj.data,
                        n.layers[3].moe.experts[11].down_proj.data,
                        4 * 32 * 2);
    assert_memory_equal(m.lm_head.data, n.lm_head.data, 64 * 32 * 2);
    assert_memory_not_equal(m.layers[3].moe.experts[11].down_proj.data,
                            m.layers[3].moe.experts[10].down_proj.data,
                            4 * 32 * 2);
    model_close(&m);
    model_close(&n);
    remove_made(a);
    remove_made(b);
    free(a);
    free(b);
}

/* What a model in memory is saved as: its MTP module with copies of embedding
 * and head, but with no copy of a table that is both. */
static void test_save_stores_the_tied_once(void **state)
{
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        char path[200], *from = scratch_dup("drawn");
        char *dir = scratch_dup("saved");
        Config c = config_of(MODELS "mtp-present");
        Model m, saved;
        Error err;
        size_t n;
        c.tie_word_embeddings = tied;
        init(&c, from, DT_F32, 3);
        must(model_zeros(&m, &c, &n, &err), &err);
        snprintf(path, sizeof path, "%s/config.json", from);
        must(model_save(&m, path, dir, DT_F32, NULL, NULL, &err), &err);
        must(model_open(&saved, dir, &err), &err);
        assert_int_equal(saved.n_mtp, 1);
        assert_true((saved.layers[2].embed_tokens.data == NULL) == tied);
        assert_true((saved.layers[2].shared_head_head.data == NULL) == tied);
        model_close(&saved);
        model_close(&m);
        remove_made(from);
        remove_made(dir);
        free(from);
        free(dir);
    }
}

/* The tokenizer's files beside the config go along. */
static void test_init_copies_tokenizer(void **state)
{
    char *dir = scratch_dup("new"), *from = scratch_dup("from");
    char *config = scratch_dup("from/config.json");
    Config c = config_of(MODELS "k9-shapes");
    Error err;
    (void)state;
    must(make_dir(from, &err), &err);
    put_file(scratch("from/tokenizer.json"), "{\"x\": 1}", 8);
    must(model_init(&c, config, dir, false, DT_BF16, 1, 0.1, &err), &err);
    assert_true(same_file(from, dir, "tokenizer.json"));
    assert_false(path_exists(scratch("new/tokenizer_config.json")));
    remove_made(dir);
    remove_made(from);
    free(dir);
    free(from);
    free(config);
}

/* Also where the config was found in a directory. */
static void test_init_copies_from_directory(void **state)
{
    char *dir = scratch_dup("new"), *from = scratch_dup("from");
    Config c = config_of(MODELS "k9-shapes");
    Error err;
    (void)state;
    must(make_dir(from, &err), &err);
    put_file(scratch("from/tokenizer.json"), "{}", 2);
    must(model_init(&c, from, dir, false, DT_BF16, 1, 0.1, &err), &err);
    assert_true(same_file(from, dir, "tokenizer.json"));
    remove_made(dir);
    remove_made(from);
    free(dir);
    free(from);
}

/* Without --force nothing that exists is touched, with it all is new. */
static void test_init_force(void **state)
{
    char *dir = scratch_dup("new"), wanted[600];
    Config c = config_of(MODELS "k9-shapes"), read;
    Error err;
    (void)state;
    for (int i = 0; i < 5; i++) {
        char path[300];
        must(make_dir(dir, &err), &err);
        snprintf(path, sizeof path, "%s/%s", dir, made_files[i]);
        put_file(path, "old", 3);
        snprintf(wanted, sizeof wanted, "%s exists; --force overwrites it",
                 path);
        must_fail(model_init(&c, "config.json", dir, false, DT_BF16, 1, 0.1,
                             &err), &err, wanted);
        for (int k = 0; k < 5; k++) {
            snprintf(path, sizeof path, "%s/%s", dir, made_files[k]);
            assert_int_equal(path_exists(path), k == i);
        }
        remove_made(dir);
    }
    init(&c, dir, DT_BF16, 1);
    c.rms_norm_eps = 0.5;
    must(model_init(&c, "nowhere/config.json", dir, true, DT_BF16, 1, 0.1,
                    &err), &err);
    must(config_read(&read, dir, &err), &err);
    assert_true(read.rms_norm_eps == 0.5);
    remove_made(dir);
    free(dir);
}

/* What cannot be finished is not begun, or taken back: no file is left, nor
 * a directory that was not there. */
static void test_init_leaves_nothing(void **state)
{
    char *dir = scratch_dup("new"), *from = scratch_dup("from");
    char *inside = scratch_dup("file/new");
    char *config = scratch_dup("from/config.json");
    Config c = config_of(MODELS "k9-shapes");
    Error err;
    (void)state;
    put_file(scratch("file"), "x", 1);
    assert_int_equal(model_init(&c, config, inside, false, DT_BF16, 1, 0.1,
                                &err), -1);
    assert_non_null(strstr(err.text, scratch("file")));
    assert_int_equal(model_init(&c, config, scratch("file"), false, DT_BF16,
                                1, 0.1, &err), -1);
    remove(scratch("file"));
    assert_int_equal(model_init(&c, config, scratch("no/such/place"), false,
                                DT_BF16, 1, 0.1, &err), -1);
    assert_non_null(strstr(err.text, scratch("no/such/place")));
    /* The last step fails: the tokenizer's file is a directory. */
    must(make_dir(from, &err), &err);
    must(make_dir(scratch("from/tokenizer_config.json"), &err), &err);
    for (int existed = 0; existed < 2; existed++) {
        if (existed)
            must(make_dir(dir, &err), &err);
        assert_int_equal(model_init(&c, config, dir, false, DT_BF16, 1, 0.1,
                                    &err), -1);
        assert_non_null(strstr(err.text,
                               scratch("from/tokenizer_config.json")));
        assert_int_equal(path_exists(dir), existed);
        assert_int_equal(remove(dir), existed ? 0 : -1);
    }
    remove_made(from);
    free(dir);
    free(from);
    free(inside);
    free(config);
}

/* Sizes that no memory holds: refused, and nothing left. */
static void test_init_too_large(void **state)
{
    char *dir = scratch_dup("new");
    Config c = config_of(MODELS "k9-shapes");
    Error err;
    (void)state;
    c.n_routed_experts = 0;
    c.num_experts_per_tok = 0;
    c.vocab_size = c.hidden_size = SIZE_MAX / 2;
    assert_int_equal(model_init(&c, "nowhere/config.json", dir, false,
                                DT_F32, 1, 0.1, &err), -1);
    assert_false(path_exists(dir));
    free(dir);
}

/* Models in FP8 and out of it -------------------------------------------- */

static void quantize(const char *from, const char *to, DType dtype,
                     bool ue8m0)
{
    Model m;
    Error err;
    must(model_open(&m, from, &err), &err);
    must(model_quantize(&m, from, to, false, dtype, ue8m0, &err), &err);
    model_close(&m);
}

/* Exactly the tensors and bytes that the config announces. */
static void check_cost(const Model *m, DType dtype)
{
    Config c = m->config;
    Costs costs;
    uint64_t bytes = 0;
    c.num_nextn_predict_layers = m->n_mtp;
    cost_count(&costs, &c, dtype, 1);
    for (size_t i = 0; i < m->files.n_tensors; i++)
        bytes += m->files.tensors[i].bytes;
    assert_int_equal(m->files.n_tensors, costs.tensors);
    assert_int_equal(bytes, costs.checkpoint_bytes);
}

static size_t grid_bytes(const Matrix *w)
{
    return fp8_blocks(w->rows) * fp8_blocks(w->cols) * sizeof(float);
}

static void check_same_codes(const Matrix *a, const Matrix *b)
{
    assert_memory_equal(a->data, b->data, a->rows * a->cols);
    assert_memory_equal(a->scale, b->scale, grid_bytes(a));
}

static void check_quantized(const char *name, bool ue8m0)
{
    char path[200], *dir = scratch_dup("fp8");
    Model a, b;
    Error err;
    TensorInfo x, y;
    snprintf(path, sizeof path, MODELS "%s", name);
    quantize(path, dir, DT_F8_E4M3, ue8m0);
    must(model_open(&a, path, &err), &err);
    must(model_open(&b, dir, &err), &err);
    assert_true(b.config.fp8);
    assert_int_equal(b.config.scale_fmt_ue8m0, ue8m0);
    check_cost(&b, DT_F8_E4M3);
    TensorWalk wa = tensor_walk(&a.config, &a);
    TensorWalk wb = tensor_walk(&b.config, &b);
    while (tensor_next(&wa, &x)) {
        assert_true(tensor_next(&wb, &y));
        if (!x.slot->data)
            assert_null(y.slot->data);
        else if (x.slot->scale && a.config.scale_fmt_ue8m0 == ue8m0)
            check_same_codes(x.slot, y.slot);
        else
            check_tensor(&x, &y, DT_F8_E4M3, ue8m0);
    }
    model_close(&a);
    model_close(&b);
    remove_made(dir);
    free(dir);
}

/* Every way a model may be stored: dtypes, shards, odd offsets, with and
 * without MTP layers, tied, ragged, with another kind of scales. */
static void test_quantize(void **state)
{
    static const char *const from[] = {
        "k1-v2-lite", "k3-v3", "k9-shapes", "f16", "f32-unaligned",
        "fp8-ragged", "fp8-ue8m0", "fp8-sharded", "mtp-absent",
        "mtp-present", "transformers-5-v3"};
    (void)state;
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        check_quantized(from[i], false);
        check_quantized(from[i], true);
    }
}

/* The nearest BF16 of a double, ties to even: of the two around it. */
static float nearest_bf16(double x)
{
    uint32_t low = f32_bits((float)x) & 0xffff0000u;
    float a, b;
    while (fabs((double)f32_from_bits(low)) > fabs(x))
        low -= 0x10000u;
    a = f32_from_bits(low);
    b = f32_from_bits(low + 0x10000u);
    double down = fabs(x - (double)a), up = fabs((double)b - x);
    return down < up || (!(up < down) && !(low & 0x10000u)) ? a : b;
}

static void check_bf16(const char *from)
{
    char *dir = scratch_dup("bf16");
    Model a, b;
    Error err;
    TensorInfo x, y;
    quantize(from, dir, DT_BF16, false);
    must(model_open(&a, from, &err), &err);
    must(model_open(&b, dir, &err), &err);
    assert_false(b.config.fp8);
    check_cost(&b, DT_BF16);
    TensorWalk wa = tensor_walk(&a.config, &a);
    TensorWalk wb = tensor_walk(&b.config, &b);
    while (tensor_next(&wa, &x) && tensor_next(&wb, &y)) {
        if (!x.slot->data)
            continue;
        assert_int_equal(y.slot->dtype, tensor_dtype(&y, DT_BF16));
        for (size_t r = 0; r < x.rows; r++) {
            float *p = row_of(x.slot, r), *q = row_of(y.slot, r);
            for (size_t k = 0; k < x.cols; k++) {
                double exact = x.slot->scale ? weight(x.slot, r, k)
                                             : (double)p[k];
                assert_true(q[k] == (x.kind == TENSOR_BIAS
                                         ? p[k] : nearest_bf16(exact)));
            }
            free(p);
            free(q);
        }
    }
    model_close(&a);
    model_close(&b);
    remove_made(dir);
    free(dir);
}

static void test_to_bf16(void **state)
{
    (void)state;
    check_bf16(MODELS "fp8-ragged");
    check_bf16(MODELS "fp8-ue8m0");
    check_bf16(MODELS "fp8-sharded");
    check_bf16(MODELS "f32-unaligned");
    check_bf16(MODELS "mtp-absent");
}

/* `times` elements of n bytes from one on, all of the same bits. */
typedef struct {
    const char *tensor;
    size_t element, n, times;
    uint32_t bits;
} Patch;

static void apply(const Patch *p, unsigned char *file, const Safetensors *st)
{
    const StTensor *t = st_find(st, p->tensor);
    assert_non_null(t);
    file += (size_t)(t->data - st->files[0].data) + p->element * p->n;
    for (size_t i = 0; i < p->n * p->times; i++)
        file[i] = (unsigned char)(p->bits >> 8 * (i % p->n));
}

/* A model with elements changed; its directory, to be freed. */
static char *patched(const char *name, const Patch *patches, size_t n)
{
    char path[300], *dir = scratch_dup("patched");
    Safetensors st;
    File file;
    Error err;
    must(make_dir(dir, &err), &err);
    snprintf(path, sizeof path, MODELS "%s/config.json", name);
    must(file_open(&file, path, &err), &err);
    put_file(scratch("patched/config.json"), file.data, file.size);
    file_close(&file);
    snprintf(path, sizeof path, MODELS "%s/model.safetensors", name);
    must(st_open(&st, path, &err), &err);
    must(file_open(&file, path, &err), &err);
    unsigned char *copy = test_alloc(file.size, 1);
    memcpy(copy, file.data, file.size);
    for (size_t i = 0; i < n; i++)
        apply(&patches[i], copy, &st);
    put_file(scratch("patched/model.safetensors"), copy, file.size);
    free(copy);
    file_close(&file);
    st_close(&st);
    return dir;
}

#define DOWN "model.layers.0.mlp.down_proj.weight"

/* 15·S has 28 bits, of which F32 drops the last few: what it keeps lies midway
 * between two BF16 numbers, and would go to the even one below. Codes 0x3f are
 * 15/8. */
static void test_rounded_once(void **state)
{
    uint64_t S = 1 << 23, P = 0;
    (void)state;
    for (; P < (1 << 27) || (P & 0x1fffff) > 0x80007
           || (P & 0x1fffff) <= 0x80000; S++)
        P = 15 * (S + 1);
    float s = (float)S * 0x1p-40f;
    Patch patches[] = {{DOWN, 0, 1, 40, 0x3f},
                       {DOWN "_scale_inv", 0, 4, 1, f32_bits(s)}};
    float twice = f32_from_bf16(bf16_from_f32(1.875f * s));
    assert_true(twice != nearest_bf16(1.875 * (double)s));
    char *dir = patched("fp8-ragged", patches, 2);
    check_bf16(dir);
    remove_made(dir);
    free(dir);
}

static bool same_model(const char *a, const char *b)
{
    return same_file(a, b, "model.safetensors");
}

/* BF16 weights: the FP8 file that comes of them comes again of what it holds
 * as BF16, byte for byte. */
static void test_round_trip_from_bf16(void **state)
{
    char *a = scratch_dup("a"), *b = scratch_dup("b"), *c = scratch_dup("c");
    (void)state;
    for (int ue8m0 = 0; ue8m0 < 2; ue8m0++) {
        quantize(MODELS "k3-v3", a, DT_F8_E4M3, ue8m0);
        quantize(a, b, DT_BF16, ue8m0);
        quantize(b, c, DT_F8_E4M3, ue8m0);
        if (!ue8m0)
            assert_true(same_model(a, c));
        remove_made(c);
        quantize(a, c, DT_F8_E4M3, ue8m0);
        assert_true(same_model(a, c));
        remove_made(a);
        remove_made(b);
        remove_made(c);
    }
    free(a);
    free(b);
    free(c);
}

/* Weights of any scales: codes come back, scales to within 2^-8, BF16's
 * rounding; with powers of two every value comes back. */
static void check_round_trip(const char *name, bool ue8m0)
{
    char path[200], *half = scratch_dup("half"), *again = scratch_dup("again");
    Model a, b;
    Error err;
    TensorInfo x, y;
    snprintf(path, sizeof path, MODELS "%s", name);
    quantize(path, half, DT_BF16, false);
    quantize(half, again, DT_F8_E4M3, ue8m0);
    must(model_open(&a, path, &err), &err);
    must(model_open(&b, again, &err), &err);
    TensorWalk wa = tensor_walk(&a.config, &a);
    TensorWalk wb = tensor_walk(&b.config, &b);
    while (tensor_next(&wa, &x) && tensor_next(&wb, &y)) {
        bool exact = ue8m0 && !strstr(x.name, "o_proj");
        if (!x.slot->scale || (ue8m0 && !exact))
            continue;
        if (!ue8m0)
            assert_memory_equal(x.slot->data, y.slot->data, x.rows * x.cols);
        for (size_t r = 0; r < x.rows; r++) {
            float *p = row_of(x.slot, r), *q = row_of(y.slot, r);
            for (size_t k = 0; k < x.cols; k++)
                assert_true(fabsf(p[k] - q[k])
                            <= (exact ? 0 : 0x1p-8f * fabsf(p[k])));
            free(p);
            free(q);
        }
    }
    model_close(&a);
    model_close(&b);
    remove_made(half);
    remove_made(again);
    free(half);
    free(again);
}

static void test_round_trip_from_fp8(void **state)
{
    (void)state;
    check_round_trip("fp8-ragged", false);
    check_round_trip("fp8-sharded", false);
    check_round_trip("fp8-ue8m0", true);
}

/* Keys that this project does not know stay, in their spelling; files beside
 * the config go along, byte for byte. */
static void test_config_stays(void **state)
{
    static const char config[] =
        "{\"model_type\": \"deepseek_v3\", \"torch_dtype\": \"float32\","
        " \"un\\u006bnown\": {\"a\" : [1, 2.50]}, \"vocab_size\": 64,"
        " \"quantization_config\": null, \"text\": \"a\\\"b\"}";
    static const char wanted[] =
        "{\n  \"model_type\": \"deepseek_v3\",\n"
        "  \"un\\u006bnown\": {\"a\" : [1, 2.50]},\n  \"vocab_size\": 64,\n"
        "  \"text\": \"a\\\"b\",\n  \"quantization_config\": {\n"
        "    \"activation_scheme\": \"dynamic\",\n    \"fmt\": \"e4m3\",\n"
        "    \"quant_method\": \"fp8\",\n    \"scale_fmt\": \"ue8m0\",\n"
        "    \"weight_block_size\": [128, 128]\n  },\n"
        "  \"torch_dtype\": \"bfloat16\",\n  \"dtype\": \"bfloat16\"\n}\n";
    char *from = scratch_dup("config"), *to = scratch_dup("copy");
    Error err;
    File file;
    (void)state;
    put_file(from, config, sizeof config - 1);
    must(config_copy(from, DT_F8_E4M3, true, to, false, &err), &err);
    must(file_open(&file, to, &err), &err);
    assert_int_equal(file.size, sizeof wanted - 1);
    assert_memory_equal(file.data, wanted, file.size);
    file_close(&file);
    assert_int_equal(config_copy(from, DT_BF16, false, to, false, &err), -1);
    remove(from);
    remove(to);
    free(from);
    free(to);
}

static void test_files_go_along(void **state)
{
    static const char *const copied[] = {
        "generation_config.json", "tokenizer.json", "tokenizer_config.json"};
    char *dir = scratch_dup("new");
    (void)state;
    quantize("models/stories", dir, DT_F8_E4M3, false);
    for (int i = 0; i < 3; i++)
        assert_true(same_file("models/stories", dir, copied[i]));
    remove_made(dir);
    quantize(MODELS "k3-v3", dir, DT_F8_E4M3, false);
    for (int i = 0; i < 3; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/%s", dir, copied[i]);
        assert_false(path_exists(path));
    }
    remove_made(dir);
    free(dir);
}

/* The model that is written computes: with FP8 weights kept, the same bits. */
static void test_kept_model_computes(void **state)
{
    char *dir = scratch_dup("new");
    const int32_t ids[] = {5, 6, 7};
    SessionOptions o = {.ctx = 3};
    Model m[2];
    Session s[2];
    Error err;
    (void)state;
    quantize(MODELS "fp8-sharded", dir, DT_F8_E4M3, false);
    for (int i = 0; i < 2; i++) {
        must(model_open(&m[i], i ? dir : MODELS "fp8-sharded", &err), &err);
        must(session_open(&s[i], &m[i], &o, &err), &err);
        must(session_forward(&s[i], ids, 3, NULL, &err), &err);
    }
    must_equal_bits(s[0].host_logits, s[1].host_logits,
                    m[0].config.vocab_size, "logits");
    for (int i = 0; i < 2; i++) {
        session_close(&s[i]);
        model_close(&m[i]);
    }
    remove_made(dir);
    free(dir);
}

#define O_PROJ "model.layers.1.self_attn.o_proj.weight"

/* What no FP8 or BF16 number is: the element is named, nothing is left. */
static const struct {
    const char *from;
    Patch patch;
    DType dtype;
    const char *found;
} not_finite[] = {
    {"fp8-ragged", {O_PROJ, 3, 1, 1, 0x7f}, DT_F8_E4M3, "nan"},
    {"fp8-ragged", {O_PROJ, 3, 1, 1, 0xff}, DT_BF16, "nan"},
    {"k3-v3", {O_PROJ, 3, 2, 1, 0x7f80}, DT_F8_E4M3, "inf"},
    {"k3-v3", {O_PROJ, 3, 2, 1, 0xffc0}, DT_BF16, "nan"},
    {"k3-v3", {O_PROJ, 3, 2, 1, 0x7fc0}, DT_BF16, "nan"},
    {"k3-v3", {"model.norm.weight", 3, 2, 1, 0xff80}, DT_F8_E4M3, "-inf"},
    {"f32-unaligned", {O_PROJ, 3, 4, 1, 0x7f7f8000}, DT_BF16, "3.39618e+38"},
};

static void test_refuses_not_finite(void **state)
{
    char *to = scratch_dup("new");
    (void)state;
    for (size_t i = 0; i < sizeof not_finite / sizeof *not_finite; i++) {
        const char *found = not_finite[i].found;
        char *dir = patched(not_finite[i].from, &not_finite[i].patch, 1);
        char wanted[400];
        Model m;
        Error err;
        must(model_open(&m, dir, &err), &err);
        assert_int_equal(model_quantize(&m, dir, to, false,
                                        not_finite[i].dtype, false, &err),
                         -1);
        snprintf(wanted, sizeof wanted, "%s/model.safetensors: %s: element"
                 " (0, 3) is %s, wanted a finite BF16 number", dir,
                 not_finite[i].patch.tensor, found);
        assert_string_equal(err.text, wanted);
        assert_false(path_exists(to));
        model_close(&m);
        remove_made(dir);
        free(dir);
    }
    free(to);
}

/* The greatest that rounds to BF16's greatest is taken. */
static void test_greatest(void **state)
{
    Patch patch = {O_PROJ, 0, 4, 1, 0x7f7f7fff};
    char *dir = patched("f32-unaligned", &patch, 1);
    (void)state;
    check_bf16(dir);
    remove_made(dir);
    free(dir);
}

/* Scales that are no multipliers do not get as far. */
static void test_refuses_scales(void **state)
{
    static const float wrong[] = {0, -1, INFINITY, NAN};
    (void)state;
    for (int i = 0; i < 4; i++) {
        Patch patch = {O_PROJ "_scale_inv", 1, 4, 1, f32_bits(wrong[i])};
        char *dir = patched("fp8-ragged", &patch, 1);
        Model m;
        Error err;
        assert_int_equal(model_open(&m, dir, &err), -1);
        assert_non_null(strstr(err.text, O_PROJ "_scale_inv: element (0, 1)"
                               " is "));
        assert_non_null(strstr(err.text, "wanted a finite positive scale"));
        remove_made(dir);
        free(dir);
    }
}

/* An existing file is kept without force; with it a model may even replace
 * the one it is made of. */
static void test_quantize_force(void **state)
{
    char *dir = scratch_dup("new"), *other = scratch_dup("other");
    char wanted[400];
    Model m;
    Error err;
    (void)state;
    quantize(MODELS "k3-v3", dir, DT_BF16, false);
    quantize(MODELS "k3-v3", other, DT_F8_E4M3, false);
    must(model_open(&m, dir, &err), &err);
    snprintf(wanted, sizeof wanted,
             "%s/model.safetensors exists; --force overwrites it", dir);
    must_fail(model_quantize(&m, dir, dir, false, DT_F8_E4M3, false, &err),
              &err, wanted);
    must(model_quantize(&m, dir, dir, true, DT_F8_E4M3, false, &err), &err);
    model_close(&m);
    assert_true(same_model(dir, other));
    remove_made(dir);
    remove_made(other);
    free(dir);
    free(other);
}

static int clean(void **state)
{
    (void)state;
    return remove(scratch(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init_round_trip),
        cmocka_unit_test(test_init_values),
        cmocka_unit_test(test_scale_grid), cmocka_unit_test(test_init_seed),
        cmocka_unit_test(test_save_stores_the_tied_once),
        cmocka_unit_test(test_init_copies_tokenizer),
        cmocka_unit_test(test_init_copies_from_directory),
        cmocka_unit_test(test_init_force),
        cmocka_unit_test(test_init_leaves_nothing),
        cmocka_unit_test(test_init_too_large),
        cmocka_unit_test(test_quantize), cmocka_unit_test(test_to_bf16),
        cmocka_unit_test(test_rounded_once),
        cmocka_unit_test(test_round_trip_from_bf16),
        cmocka_unit_test(test_round_trip_from_fp8),
        cmocka_unit_test(test_config_stays),
        cmocka_unit_test(test_files_go_along),
        cmocka_unit_test(test_kept_model_computes),
        cmocka_unit_test(test_refuses_not_finite),
        cmocka_unit_test(test_greatest),
        cmocka_unit_test(test_refuses_scales),
        cmocka_unit_test(test_quantize_force),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
