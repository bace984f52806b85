/* test_model.c: the table of tensors, binding files to it.
 *
 * Malformed checkpoints are made from small good ones (tests/data/models):
 * each tensor is copied, but for one that is left out, renamed, given another
 * dtype, shape or value, or added. Counts and bytes of V2-Lite, V2 and V3 are
 * those of the published checkpoints. */
#include "support.h"

#define MODELS "tests/data/models/"

/* The walk --------------------------------------------------------------- */

static void count(const char *path, DType dtype, size_t *tensors,
                  double *bytes)
{
    Config c;
    Error err;
    TensorInfo info;
    must(config_read(&c, path, &err), &err);
    TensorWalk walk = tensor_walk(&c, NULL);
    *tensors = 0;
    *bytes = 0;
    while (tensor_next(&walk, &info)) {
        DType type = tensor_dtype(&info, dtype);
        double n = (double)info.rows * (double)info.cols;
        assert_null(info.slot);
        *bytes += n * (double)dtype_size(type);
        *tensors += 1;
        if (type == DT_F8_E4M3) {
            *bytes += 4 * ceil((double)info.rows / 128)
                      * ceil((double)info.cols / 128);
            *tensors += 1;
        }
    }
    assert_false(tensor_next(&walk, &info));
}

static void test_published_counts(void **state)
{
    static const struct {
        const char *path;
        DType dtype;
        size_t tensors;
        double bytes;
    } wanted[] = {
        {"tests/data/configs/v2-lite.json", DT_BF16, 5291, 31412968448.0},
        {"tests/data/configs/v2.json", DT_BF16, 29102, 471482869760.0},
        {"tests/data/configs/v3.json", DT_F8_E4M3, 91991, 688574839360.0}};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        size_t tensors;
        double bytes;
        count(wanted[i].path, wanted[i].dtype, &tensors, &bytes);
        assert_int_equal(tensors, wanted[i].tensors);
        assert_true(bytes == wanted[i].bytes);
    }
}

/* Shapes of V3, from the table of the released checkpoint. */
static void test_shapes_of_v3(void **state)
{
    static const struct {
        const char *name;
        size_t rows, cols;   /* 0 rows: of rank 1 */
        DType dtype;
    } wanted[] = {
        {"model.embed_tokens.weight", 129280, 7168, DT_BF16},
        {"model.layers.0.input_layernorm.weight", 0, 7168, DT_BF16},
        {"model.layers.3.post_attention_layernorm.weight", 0, 7168, DT_BF16},
        {"model.layers.0.self_attn.q_a_proj.weight", 1536, 7168, DT_F8_E4M3},
        {"model.layers.0.self_attn.q_a_layernorm.weight", 0, 1536, DT_BF16},
        {"model.layers.0.self_attn.q_b_proj.weight", 24576, 1536,
         DT_F8_E4M3},
        {"model.layers.60.self_attn.kv_a_proj_with_mqa.weight", 576, 7168,
         DT_F8_E4M3},
        {"model.layers.0.self_attn.kv_a_layernorm.weight", 0, 512, DT_BF16},
        {"model.layers.0.self_attn.kv_b_proj.weight", 32768, 512,
         DT_F8_E4M3},
        {"model.layers.0.self_attn.o_proj.weight", 7168, 16384, DT_F8_E4M3},
        {"model.layers.2.mlp.gate_proj.weight", 18432, 7168, DT_F8_E4M3},
        {"model.layers.2.mlp.down_proj.weight", 7168, 18432, DT_F8_E4M3},
        {"model.layers.3.mlp.gate.weight", 256, 7168, DT_BF16},
        {"model.layers.3.mlp.gate.e_score_correction_bias", 0, 256, DT_F32},
        {"model.layers.3.mlp.experts.255.up_proj.weight", 2048, 7168,
         DT_F8_E4M3},
        {"model.layers.60.mlp.experts.0.down_proj.weight", 7168, 2048,
         DT_F8_E4M3},
        {"model.layers.9.mlp.shared_experts.gate_proj.weight", 2048, 7168,
         DT_F8_E4M3},
        {"model.norm.weight", 0, 7168, DT_BF16},
        {"lm_head.weight", 129280, 7168, DT_BF16},
        {"model.layers.61.embed_tokens.weight", 129280, 7168, DT_BF16},
        {"model.layers.61.enorm.weight", 0, 7168, DT_BF16},
        {"model.layers.61.hnorm.weight", 0, 7168, DT_BF16},
        {"model.layers.61.eh_proj.weight", 7168, 14336, DT_BF16},
        {"model.layers.61.mlp.experts.7.up_proj.weight", 2048, 7168,
         DT_F8_E4M3},
        {"model.layers.61.shared_head.norm.weight", 0, 7168, DT_BF16},
        {"model.layers.61.shared_head.head.weight", 129280, 7168, DT_BF16}};
    enum { N = sizeof wanted / sizeof *wanted };
    size_t seen = 0;
    Config c;
    Error err;
    TensorInfo info;
    (void)state;
    must(config_read(&c, "tests/data/configs/v3.json", &err), &err);
    TensorWalk walk = tensor_walk(&c, NULL);
    while (tensor_next(&walk, &info))
        for (size_t i = 0; i < N; i++)
            if (strcmp(info.name, wanted[i].name) == 0) {
                size_t rows = wanted[i].rows;
                assert_true(info.rank == (rows ? 2 : 1));
                assert_true(info.rows == (rows ? rows : 1));
                assert_true(info.cols == wanted[i].cols);
                assert_int_equal(tensor_dtype(&info, DT_F8_E4M3),
                                 wanted[i].dtype);
                seen++;
            }
    assert_int_equal(seen, N);
}

/* Every row of the table has a slot of its own in the model, every slot a
 * name of its own, and an open model has all of them filled. */
static void test_slots(void **state)
{
    static const char *const names[] = {"k1-v2-lite", "k3-v3", "k9-shapes",
                                        "mtp-present", "dense-v2"};
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        char path[100];
        Model m;
        Error err;
        TensorInfo infos[700];
        size_t n = 0;
        snprintf(path, sizeof path, MODELS "%s", names[i]);
        must(model_open(&m, path, &err), &err);
        TensorWalk walk = tensor_walk(&m.config, &m);
        while (n < 700 && tensor_next(&walk, &infos[n])) {
            const StTensor *t = st_find(&m.files, infos[n].name);
            assert_non_null(t);
            assert_ptr_equal(infos[n].slot->data, t->data);
            for (size_t k = 0; k < n; k++)
                assert_true(infos[k].slot != infos[n].slot
                            && strcmp(infos[k].name, infos[n].name) != 0);
            n++;
        }
        assert_int_equal(n, m.files.n_tensors);
        assert_ptr_equal(m.lm_head.data, m.config.tie_word_embeddings
                             ? m.embed_tokens.data
                             : st_find(&m.files, "lm_head.weight")->data);
        model_close(&m);
        model_close(&m);
    }
}

/* Checkpoints that are wrong --------------------------------------------- */

typedef enum { LEAVE_OUT, RENAME, DTYPE, SHAPE, VALUE, ADD } What;

/* One change. to: another name; type, rank, shape: of what is written in its
 * place, zeros; bits: of element 0, in the tensor's own format. */
typedef struct {
    What what;
    const char *name, *to;
    DType type;
    int rank;
    size_t shape[3];
    uint32_t bits;
} Edit;

typedef struct {
    StSpec specs[700];
    const unsigned char *data[700];
    unsigned char bytes[1 << 20];  /* what replaces the data of the change */
} Rewrite;

static int fill_copy(void *context, size_t i, StSink *sink, Error *err)
{
    const Rewrite *w = context;
    size_t n = 1;
    for (int k = 0; k < w->specs[i].rank; k++)
        n *= w->specs[i].shape[k];
    return st_put(sink, w->data[i], n, err);
}

static void change(Rewrite *w, size_t i, const Edit *e, const StTensor *t)
{
    StSpec *s = &w->specs[i];
    if (e->what == RENAME) {
        s->name = e->to;
        return;
    }
    w->data[i] = w->bytes;
    if (e->what == VALUE) {
        assert_true(t->bytes <= sizeof w->bytes);
        memcpy(w->bytes, t->data, t->bytes);
        if (dtype_size(t->dtype) == 2)
            memcpy(w->bytes, &(uint16_t){(uint16_t)e->bits}, 2);
        else if (dtype_size(t->dtype) == 1)
            w->bytes[0] = (unsigned char)e->bits;
        else
            memcpy(w->bytes, &e->bits, 4);
        return;
    }
    s->dtype = e->type;
    if (e->what == DTYPE)
        return;
    s->rank = e->rank;
    memcpy(s->shape, e->shape, sizeof e->shape);
}

/* Copies a checkpoint of one file into the scratch directory "made" with the
 * change; the path of the directory, to be freed. */
static char *make(const char *from, const Edit *e)
{
    static Rewrite w;
    char path[300], *dir = scratch_dup("made");
    Safetensors st;
    Error err;
    File file;
    size_t n = 0;
    bool changed = e->what == ADD;
    memset(w.bytes, 0, sizeof w.bytes);
    must(make_dir(dir, &err), &err);
    snprintf(path, sizeof path, MODELS "%s/config.json", from);
    must(file_open(&file, path, &err), &err);
    put_file(scratch("made/config.json"), file.data, file.size);
    file_close(&file);
    snprintf(path, sizeof path, MODELS "%s", from);
    must(st_open(&st, path, &err), &err);
    for (size_t i = 0; i < st.n_tensors; i++) {
        const StTensor *t = &st.tensors[i];
        bool it = e->what != ADD && strcmp(t->name, e->name) == 0;
        changed = changed || it;
        if (it && e->what == LEAVE_OUT)
            continue;
        w.specs[n] = (StSpec){t->name, t->dtype, t->rank, {0}};
        memcpy(w.specs[n].shape, t->shape, sizeof t->shape);
        w.data[n] = t->data;
        if (it)
            change(&w, n, e, t);
        n++;
    }
    if (e->what == ADD) {
        w.specs[n] = (StSpec){e->name, e->type, e->rank, {0}};
        memcpy(w.specs[n].shape, e->shape, sizeof e->shape);
        w.data[n++] = w.bytes;
    }
    assert_true(changed);
    must(st_write(scratch("made/model.safetensors"), true, w.specs, n, NULL,
                  fill_copy, &w, &err), &err);
    st_close(&st);
    return dir;
}

static void unmake(char *dir)
{
    remove(scratch("made/config.json"));
    remove(scratch("made/model.safetensors"));
    remove(dir);
    free(dir);
}

#define WITHOUT(tensor) {LEAVE_OUT, .name = tensor}
#define ATTN "model.layers.1.self_attn."
#define MLP "model.layers.1.mlp."

/* From k3-v3 of six layers, BF16, three of them dense; fp8-ue8m0; k1-v2-lite;
 * mtp-present; k9-shapes, whose head is tied. */
static const struct {
    const char *from;
    Edit edit;
    const char *message;   /* behind the file's name */
} wrong[] = {
    {"k3-v3", WITHOUT("model.embed_tokens.weight"),
     "model.embed_tokens.weight is missing"},
    {"k3-v3", WITHOUT("lm_head.weight"), "lm_head.weight is missing"},
    {"k3-v3", WITHOUT("model.norm.weight"),
     "model.norm.weight is missing"},
    {"k3-v3", WITHOUT(ATTN "q_a_layernorm.weight"),
     ATTN "q_a_layernorm.weight is missing"},
    {"k3-v3", WITHOUT(ATTN "kv_b_proj.weight"),
     ATTN "kv_b_proj.weight is missing"},
    {"k3-v3", WITHOUT("model.layers.0.mlp.up_proj.weight"),
     "model.layers.0.mlp.up_proj.weight is missing"},
    {"k3-v3", WITHOUT("model.layers.3.mlp.experts.11.down_proj.weight"),
     "model.layers.3.mlp.experts.11.down_proj.weight is missing"},
    {"k3-v3", WITHOUT("model.layers.4.mlp.gate.e_score_correction_bias"),
     "model.layers.4.mlp.gate.e_score_correction_bias is missing"},
    {"k3-v3", WITHOUT("model.layers.5.mlp.gate.weight"),
     "model.layers.5.mlp.gate.weight is missing"},
    {"k3-v3", WITHOUT("model.layers.5.mlp.shared_experts.gate_proj.weight"),
     "model.layers.5.mlp.shared_experts.gate_proj.weight is missing"},
    {"k3-v3", {RENAME, ATTN "o_proj.weight", .to = ATTN "o_proj.weights"},
     ATTN "o_proj.weight is missing"},
    {"k1-v2-lite", WITHOUT(ATTN "q_proj.weight"),
     ATTN "q_proj.weight is missing"},
    {"k3-v3", {SHAPE, "model.embed_tokens.weight", .type = DT_BF16, .rank = 2,
               .shape = {63, 32}},
     "model.embed_tokens.weight: wanted shape [64, 32], found shape"
     " [63, 32]"},
    {"k3-v3", {SHAPE, "model.embed_tokens.weight", .type = DT_BF16, .rank = 2,
               .shape = {32, 64}},
     "model.embed_tokens.weight: wanted shape [64, 32], found shape"
     " [32, 64]"},
    {"k3-v3", {SHAPE, "model.norm.weight", .type = DT_BF16, .rank = 1,
               .shape = {31}},
     "model.norm.weight: wanted shape [32], found shape [31]"},
    {"k3-v3", {SHAPE, "model.norm.weight", .type = DT_BF16, .rank = 2,
               .shape = {1, 32}},
     "model.norm.weight: wanted shape [32], found shape [1, 32]"},
    {"k3-v3", {SHAPE, "model.norm.weight", .type = DT_BF16, .rank = 0},
     "model.norm.weight: wanted shape [32], found shape []"},
    {"k3-v3", {SHAPE, ATTN "o_proj.weight", .type = DT_BF16, .rank = 3,
               .shape = {32, 24, 1}},
     ATTN "o_proj.weight: wanted shape [32, 24], found shape [32, 24, 1]"},
    {"k3-v3", {SHAPE, ATTN "o_proj.weight", .type = DT_BF16, .rank = 1,
               .shape = {32}},
     ATTN "o_proj.weight: wanted shape [32, 24], found shape [32]"},
    {"k3-v3", {SHAPE, ATTN "o_proj.weight", .type = DT_BF16, .rank = 2,
               .shape = {32, 0}},
     ATTN "o_proj.weight: wanted shape [32, 24], found shape [32, 0]"},
    {"k3-v3", {SHAPE, ATTN "kv_a_proj_with_mqa.weight", .type = DT_BF16,
               .rank = 2, .shape = {20, 32}},
     ATTN "kv_a_proj_with_mqa.weight: wanted shape [28, 32], found shape"
     " [20, 32]"},
    {"k3-v3", {SHAPE, "model.layers.3.mlp.gate.weight", .type = DT_BF16,
               .rank = 2, .shape = {8, 32}},
     "model.layers.3.mlp.gate.weight: wanted shape [12, 32], found shape"
     " [8, 32]"},
    {"k3-v3", {DTYPE, ATTN "o_proj.weight", .type = DT_I16},
     ATTN "o_proj.weight: wanted dtype F32, F16, BF16 or F8_E4M3, found I16"},
    {"k3-v3", {DTYPE, ATTN "o_proj.weight", .type = DT_F64},
     ATTN "o_proj.weight: wanted dtype F32, F16, BF16 or F8_E4M3, found F64"},
    {"k3-v3", {DTYPE, ATTN "o_proj.weight", .type = DT_F8_E5M2},
     ATTN "o_proj.weight: wanted dtype F32, F16, BF16 or F8_E4M3, found"
     " F8_E5M2"},
    {"k3-v3", {DTYPE, "model.norm.weight", .type = DT_F8_E4M3},
     "model.norm.weight: wanted dtype F32, F16 or BF16, found F8_E4M3"},
    {"k3-v3", {DTYPE, "model.embed_tokens.weight", .type = DT_F8_E4M3},
     "model.embed_tokens.weight: wanted dtype F32, F16 or BF16, found"
     " F8_E4M3"},
    {"k3-v3", {DTYPE, "lm_head.weight", .type = DT_F8_E4M3},
     "lm_head.weight: wanted dtype F32, F16 or BF16, found F8_E4M3"},
    {"k3-v3", {DTYPE, "model.layers.3.mlp.gate.weight", .type = DT_F8_E4M3},
     "model.layers.3.mlp.gate.weight: wanted dtype F32, F16 or BF16, found"
     " F8_E4M3"},
    {"k3-v3", {DTYPE, "model.layers.3.mlp.gate.e_score_correction_bias",
               .type = DT_U32},
     "model.layers.3.mlp.gate.e_score_correction_bias: wanted dtype F32, F16"
     " or BF16, found U32"},
    {"k3-v3", {DTYPE, ATTN "o_proj.weight", .type = DT_F8_E4M3},
     ATTN "o_proj.weight_scale_inv is missing, which the FP8 tensor needs"},
    {"fp8-ue8m0", WITHOUT(ATTN "o_proj.weight_scale_inv"),
     ATTN "o_proj.weight_scale_inv is missing, which the FP8 tensor needs"},
    {"fp8-ue8m0", {DTYPE, ATTN "o_proj.weight_scale_inv", .type = DT_BF16},
     ATTN "o_proj.weight_scale_inv: wanted dtype F32, found BF16"},
    {"fp8-ue8m0", {SHAPE, ATTN "o_proj.weight_scale_inv", .type = DT_F32,
                   .rank = 2, .shape = {2, 1}},
     ATTN "o_proj.weight_scale_inv: wanted shape [1, 2], found shape"
     " [2, 1]"},
    {"fp8-ue8m0", {SHAPE, ATTN "o_proj.weight_scale_inv", .type = DT_F32,
                   .rank = 1, .shape = {2}},
     ATTN "o_proj.weight_scale_inv: wanted shape [1, 2], found shape [2]"},
    {"fp8-ue8m0", {SHAPE, ATTN "o_proj.weight_scale_inv", .type = DT_F32,
                   .rank = 2, .shape = {1, 3}},
     ATTN "o_proj.weight_scale_inv: wanted shape [1, 2], found shape"
     " [1, 3]"},
    {"fp8-ue8m0", {VALUE, ATTN "o_proj.weight_scale_inv", .bits = 0},
     ATTN "o_proj.weight_scale_inv: element (0, 0) is 0, wanted a finite"
     " positive scale"},
    {"fp8-ue8m0", {VALUE, ATTN "o_proj.weight_scale_inv", .bits = 0xbf800000},
     ATTN "o_proj.weight_scale_inv: element (0, 0) is -1, wanted a finite"
     " positive scale"},
    {"fp8-ue8m0", {VALUE, ATTN "o_proj.weight_scale_inv", .bits = 0x7f800000},
     ATTN "o_proj.weight_scale_inv: element (0, 0) is inf, wanted a finite"
     " positive scale"},
    {"fp8-ue8m0", {VALUE, ATTN "o_proj.weight_scale_inv", .bits = 0x7fc00000},
     ATTN "o_proj.weight_scale_inv: element (0, 0) is nan, wanted a finite"
     " positive scale"},
    {"fp8-ue8m0", {DTYPE, ATTN "o_proj.weight", .type = DT_BF16},
     ATTN "o_proj.weight_scale_inv: no tensor that this config has"},
    {"k3-v3", {VALUE, "model.layers.3.mlp.gate.e_score_correction_bias",
               .bits = 0x7f800000},
     "model.layers.3.mlp.gate.e_score_correction_bias: element (0, 0) is"
     " inf, wanted a finite number"},
    {"k3-v3", {ADD, ATTN "q_proj.weight", .type = DT_BF16, .rank = 2,
               .shape = {40, 32}},
     ATTN "q_proj.weight: no tensor that this config has"},
    {"k3-v3", {ADD, ATTN "o_proj.bias", .type = DT_BF16, .rank = 1,
               .shape = {32}},
     ATTN "o_proj.bias: no tensor that this config has"},
    {"k3-v3", {ADD, "model.layers.3.mlp.experts.12.up_proj.weight",
               .type = DT_BF16, .rank = 2, .shape = {4, 32}},
     "model.layers.3.mlp.experts.12.up_proj.weight: no tensor that this"
     " config has"},
    {"k3-v3", {ADD, "model.layers.0.mlp.gate.weight", .type = DT_BF16,
               .rank = 2, .shape = {12, 32}},
     "model.layers.0.mlp.gate.weight: no tensor that this config has"},
    {"k1-v2-lite", {ADD, MLP "gate.e_score_correction_bias", .type = DT_F32,
                    .rank = 1, .shape = {12}},
     MLP "gate.e_score_correction_bias: no tensor that this config has"},
    {"k1-v2-lite", {ADD, ATTN "o_proj.weight_scale_inv", .type = DT_F32,
                    .rank = 2, .shape = {1, 1}},
     ATTN "o_proj.weight_scale_inv: no tensor that this config has"},
    {"mtp-present", WITHOUT("model.layers.2.eh_proj.weight"),
     "model.layers.2.eh_proj.weight is missing"},
    {"mtp-present", WITHOUT("model.layers.2.shared_head.norm.weight"),
     "model.layers.2.shared_head.norm.weight is missing"},
    {"mtp-present", WITHOUT("model.layers.2.self_attn.o_proj.weight"),
     "model.layers.2.self_attn.o_proj.weight is missing"},
    {"mtp-present", {SHAPE, "model.layers.2.eh_proj.weight", .type = DT_BF16,
                     .rank = 2, .shape = {32, 32}},
     "model.layers.2.eh_proj.weight: wanted shape [32, 64], found shape"
     " [32, 32]"},
};

static void test_wrong_checkpoints(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char wanted[700], *dir = make(wrong[i].from, &wrong[i].edit);
        Model m;
        Error err;
        snprintf(wanted, sizeof wanted, "%s/model.safetensors: %s", dir,
                 wrong[i].message);
        must_fail(model_open(&m, dir, &err), &err, wanted);
        model_close(&m);
        unmake(dir);
    }
}

/* Harmless: what other tools leave in, what MTP may lack. */
static const struct {
    const char *from;
    Edit edit;
    size_t n_mtp;
} right[] = {
    {"k3-v3", {ADD, ATTN "rotary_emb.inv_freq", .type = DT_F32, .rank = 1,
               .shape = {4}}, 0},
    {"k3-v3", {ADD, "model.layers.6.anything", .type = DT_I64, .rank = 0}, 0},
    {"k3-v3", {ADD, "optimizer.step", .type = DT_I64, .rank = 0}, 0},
    {"k9-shapes", {ADD, "lm_head.weight", .type = DT_BF16, .rank = 2,
                   .shape = {67, 32}}, 0},
    {"mtp-present", WITHOUT("model.layers.2.embed_tokens.weight"), 1},
    {"mtp-present", WITHOUT("model.layers.2.shared_head.head.weight"),
     1},
    {"mtp-absent", {ADD, "model.layers.3.enorm.weight", .type = DT_BF16,
                    .rank = 1, .shape = {32}}, 0},
};

static void test_harmless_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        char *dir = make(right[i].from, &right[i].edit);
        Model m;
        Error err;
        must(model_open(&m, dir, &err), &err);
        assert_int_equal(m.n_mtp, right[i].n_mtp);
        model_close(&m);
        unmake(dir);
    }
}

/* A dtype of its own for each tensor is fine. */
static void test_mixed_dtypes(void **state)
{
    static const Edit edits[] = {
        {SHAPE, "model.layers.3.mlp.gate.e_score_correction_bias",
         .type = DT_BF16, .rank = 1, .shape = {12}},
        {SHAPE, "model.norm.weight", .type = DT_F32, .rank = 1,
         .shape = {32}},
        {SHAPE, ATTN "o_proj.weight", .type = DT_F16, .rank = 2,
         .shape = {32, 24}}};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        char *dir = make("k3-v3", &edits[i]);
        Model m;
        Error err;
        must(model_open(&m, dir, &err), &err);
        must(model_find_not_finite(&m, &err), &err);
        model_close(&m);
        unmake(dir);
    }
}

static void test_announced_mtp(void **state)
{
    Model m;
    Error err;
    (void)state;
    must(model_open(&m, MODELS "mtp-absent", &err), &err);
    assert_true(m.n_mtp == 0 && m.config.num_nextn_predict_layers == 1);
    model_close(&m);
    must(model_open(&m, MODELS "mtp-present", &err), &err);
    assert_true(m.n_mtp == 1 && m.layers[2].is_moe);
    assert_true(m.layers[2].eh_proj.rows == 32
                && m.layers[2].eh_proj.cols == 64);
    model_close(&m);
}

/* Shards: no one of them is named for what all of them lack. */
static void test_sharded(void **state)
{
    static const char *const files[] = {
        "config.json", "model.safetensors.index.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors"};
    char *dir = scratch_dup("sharded"), path[300];
    Model m;
    Error err;
    (void)state;
    must(make_dir(dir, &err), &err);
    for (int i = 0; i < 5; i++) {
        File f;
        snprintf(path, sizeof path, MODELS "fp8-sharded/%s", files[i]);
        must(file_open(&f, path, &err), &err);
        char *text = test_alloc(f.size + 1, 1), *at;
        memcpy(text, f.data, f.size);
        /* One layer more than there is. */
        at = i ? NULL : strstr(text, "\"num_hidden_layers\": 2");
        assert_true(i || at);
        if (at)
            at[strlen("\"num_hidden_layers\": ")] = '3';
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        put_file(path, text, f.size);
        free(text);
        file_close(&f);
    }
    snprintf(path, sizeof path, "%s: model.layers.2.input_layernorm.weight is"
             " missing", dir);
    must_fail(model_open(&m, dir, &err), &err, path);
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        remove(path);
    }
    assert_int_equal(model_open(&m, dir, &err), -1);
    model_close(&m);
    remove(dir);
    free(dir);
}

/* Numbers that are none -------------------------------------------------- */

static const struct {
    const char *from;
    Edit edit;
    const char *message;
} not_finite[] = {
    {"k3-v3", {VALUE, "model.embed_tokens.weight", .bits = 0x7fc0},
     "model.embed_tokens.weight: element (0, 0) is nan, wanted a finite"
     " number"},
    {"k3-v3", {VALUE, "lm_head.weight", .bits = 0xff80},
     "lm_head.weight: element (0, 0) is -inf, wanted a finite number"},
    {"f16", {VALUE, "model.layers.1.mlp.experts.3.up_proj.weight",
             .bits = 0x7c00},
     "model.layers.1.mlp.experts.3.up_proj.weight: element (0, 0) is inf,"
     " wanted a finite number"},
    {"f32-unaligned", {VALUE, ATTN "kv_b_proj.weight", .bits = 0x7fc00000},
     ATTN "kv_b_proj.weight: element (0, 0) is nan, wanted a finite number"},
    {"fp8-ue8m0", {VALUE, ATTN "kv_b_proj.weight", .bits = 0xff},
     ATTN "kv_b_proj.weight: element (0, 0) is the E4M3 code 0xff, not a"
     " number"},
    {"mtp-present", {VALUE, "model.layers.2.enorm.weight", .bits = 0x7f80},
     "model.layers.2.enorm.weight: element (0, 0) is inf, wanted a finite"
     " number"},
};

static void test_not_finite(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof not_finite / sizeof *not_finite; i++) {
        char wanted[700], *dir = make(not_finite[i].from,
                                      &not_finite[i].edit);
        Model m;
        Error err;
        snprintf(wanted, sizeof wanted, "%s/model.safetensors: %s", dir,
                 not_finite[i].message);
        must(model_open(&m, dir, &err), &err);
        must_fail(model_find_not_finite(&m, &err), &err, wanted);
        model_close(&m);
        unmake(dir);
    }
}

/* A finite scale that is too great for its codes. */
static void test_overflowing_scale(void **state)
{
    Edit huge = {VALUE, ATTN "o_proj.weight_scale_inv", .bits = 0x7f7fffff};
    char *dir = make("fp8-ue8m0", &huge);
    Model m;
    Error err;
    (void)state;
    must(model_open(&m, dir, &err), &err);
    assert_int_equal(model_find_not_finite(&m, &err), -1);
    assert_non_null(strstr(err.text, ATTN "o_proj.weight: element (0, "));
    assert_non_null(strstr(err.text, "inf, wanted a finite number"));
    model_close(&m);
    unmake(dir);
}

/* Copies in memory ------------------------------------------------------- */

static float *values_of(const Matrix *w)
{
    float *x = test_alloc(w->rows * w->cols, sizeof *x);
    for (size_t r = 0; r < w->rows; r++)
        matrix_row(x + r * w->cols, w, r);
    return x;
}

/* One scale for all of w, or each block's own. */
static void check_quantised(const Matrix *w, const float *x, Fp8Scope scope)
{
    size_t n = w->rows * w->cols, grid = fp8_blocks(w->cols);
    uint8_t *codes = test_alloc(n, 1);
    float *scales = test_alloc(fp8_blocks(w->rows) * grid, sizeof *scales), s;
    fp8_quantize(codes, scales, x, w->cols, w->rows, w->cols, scope, false);
    assert_int_equal(w->dtype, DT_F8_E4M3);
    assert_memory_equal(w->data, codes, n);
    for (size_t i = 0; i < fp8_blocks(w->rows) * grid; i++) {
        memcpy(&s, (const char *)w->scale + i * sizeof s, sizeof s);
        assert_true(s == scales[scope == FP8_TENSOR ? 0 : i]);
    }
    free(codes);
    free(scales);
}

static void check_copy(const char *from, DType dtype, Fp8Scope scope)
{
    Model m, copy;
    Error err;
    TensorInfo a, b;
    must(model_open(&m, from, &err), &err);
    must(model_copy(&copy, &m, dtype, scope, &err), &err);
    TensorWalk x = tensor_walk(&m.config, &m);
    TensorWalk y = tensor_walk(&copy.config, &copy);
    while (tensor_next(&x, &a)) {
        assert_true(tensor_next(&y, &b));
        bool table = a.kind == TENSOR_EMBED || a.kind == TENSOR_HEAD;
        if (!a.slot->data || table
            || (dtype == DT_F8_E4M3 && a.kind != TENSOR_LINEAR)) {
            assert_ptr_equal(a.slot->data, b.slot->data);
            assert_int_equal(a.slot->dtype, b.slot->dtype);
            continue;
        }
        float *p = values_of(a.slot);
        if (dtype == DT_F32)
            assert_memory_equal(b.slot->data, p, a.rows * a.cols * sizeof *p);
        else
            check_quantised(b.slot, p, scope);
        free(p);
    }
    assert_ptr_equal(m.lm_head.data, copy.lm_head.data);
    model_close(&copy);
    model_close(&m);
}

/* One array, 64 bytes aligned; what is shared has no place of its own. */
static void test_floats(void **state)
{
    static const char *const from[] = {
        MODELS "k1-v2-lite", MODELS "k9-shapes", MODELS "fp8-ragged",
        MODELS "mtp-two"};
    (void)state;
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        Model m, copy;
        Error err;
        TensorInfo a, b;
        size_t n, end = 0;
        must(model_open(&m, from[i], &err), &err);
        must(model_floats(&copy, &m, &n, &err), &err);
        assert_int_equal(n, model_numbers(&m.config));
        TensorWalk x = tensor_walk(&m.config, &m);
        TensorWalk y = tensor_walk(&copy.config, &copy);
        while (tensor_next(&x, &a) && tensor_next(&y, &b)) {
            bool shared = b.mtp && (b.kind == TENSOR_EMBED
                                    || b.kind == TENSOR_HEAD);
            assert_true(shared == (b.slot->data == NULL));
            if (shared)
                continue;
            size_t at = (size_t)(matrix_numbers(b.slot)
                                 - (float *)copy.copied);
            assert_true(at % 16 == 0 && at >= end);
            end = at + b.rows * b.cols;
            float *p = values_of(a.slot);
            must_equal_bits(matrix_numbers(b.slot), p, b.rows * b.cols,
                            b.name);
            free(p);
        }
        assert_true(end <= n);
        assert_true(m.config.tie_word_embeddings
                    == (copy.lm_head.data == copy.embed_tokens.data));
        model_close(&copy);
        model_close(&m);
    }
}

/* Training needs every module that the config announces. */
static void test_floats_refused(void **state)
{
    Model m, copy;
    Error err;
    size_t n;
    (void)state;
    must(model_open(&m, MODELS "mtp-absent", &err), &err);
    must_fail(model_floats(&copy, &m, &n, &err), &err,
              "wanted the tensors of 1 MTP modules, as"
              " num_nextn_predict_layers says, found 0");
    model_close(&m);
}

static void test_copies(void **state)
{
    static const char *const from[] = {
        MODELS "k1-v2-lite", MODELS "k9-shapes", MODELS "fp8-ragged",
        MODELS "mtp-present", MODELS "mtp-absent", MODELS "f16"};
    (void)state;
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        check_copy(from[i], DT_F32, FP8_BLOCK);
        check_copy(from[i], DT_F8_E4M3, FP8_BLOCK);
        check_copy(from[i], DT_F8_E4M3, FP8_TENSOR);
    }
}

/* A copy with more experts than there is memory for. */
static void test_no_room(void **state)
{
    Model m, copy;
    Error err;
    size_t n, experts;
    (void)state;
    must(model_open(&m, MODELS "k9-shapes", &err), &err);
    experts = m.config.n_routed_experts;
    m.config.n_routed_experts = (size_t)PTRDIFF_MAX / 64;
    for (int kind = 0; kind < 3; kind++) {
        memset(&err, 0, sizeof err);
        assert_int_equal(
            kind == 0 ? model_copy(&copy, &m, DT_F32, FP8_BLOCK, &err)
            : kind == 1 ? model_zeros(&copy, &m.config, &n, &err)
                        : model_floats(&copy, &m, &n, &err), -1);
        assert_non_null(strstr(err.text, "not enough memory for experts"));
        assert_null(copy.layers);
    }
    m.config.n_routed_experts = experts;
    model_close(&m);
}

/* A number that is not finite is named, without a file. */
static void test_copy_not_finite(void **state)
{
    Model m, copy;
    Error err;
    (void)state;
    must(model_open(&m, MODELS "k9-shapes", &err), &err);
    must(model_copy(&copy, &m, DT_F32, FP8_BLOCK, &err), &err);
    ((float *)(uintptr_t)copy.norm.data)[2] = INFINITY;
    must_fail(model_find_not_finite(&copy, &err), &err, "a copy in memory:"
              " model.norm.weight: element (0, 2) is inf, wanted a finite"
              " number");
    model_close(&copy);
    model_close(&m);
}

static int clean(void **state)
{
    (void)state;
    return remove(scratch(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_counts),
        cmocka_unit_test(test_shapes_of_v3), cmocka_unit_test(test_slots),
        cmocka_unit_test(test_wrong_checkpoints),
        cmocka_unit_test(test_harmless_differences),
        cmocka_unit_test(test_mixed_dtypes),
        cmocka_unit_test(test_announced_mtp), cmocka_unit_test(test_sharded),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_overflowing_scale),
        cmocka_unit_test(test_floats), cmocka_unit_test(test_floats_refused),
        cmocka_unit_test(test_copies), cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_copy_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
