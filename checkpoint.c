/* checkpoint.c: writing model directories
 *
 * A directory is a Hugging Face one: model.safetensors, config.json,
 * generation_config.json, and the tokenizer's files copied along. The walk of
 * model.c says which tensors there are. A source fills them, F8_BLOCK rows at
 * a time: random numbers (model_init, model_draw), another model
 * (model_quantize) or one in memory (model_save); each strip is encoded for the
 * file and written.
 *
 * Invariants: a drawn tensor depends on its name and the seed alone. Memory
 * does not grow with the model. A directory is whole or not there: an error
 * removes what was written, and without force nothing that exists is touched.
 *
 * Not here: reading (model.c), the container (base/safetensors.c), E4M3 and
 * its scales (fp8.c). */
#include "deepseek.h"

#include "base/hash.h"
#include "base/os.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Draft Draft;

/* Fills values with rows r … r+rows-1 of a tensor, asked for in order. */
typedef int Source(Draft *d, const TensorInfo *info, size_t r, size_t rows,
                   Error *err);

/* What is written: each tensor of the walk, an FP8 weight followed by its
 * scales, which stay here until their turn. */
struct Draft {
    const Config *config;
    const char *from;    /* the config.json that tokenizer files lie beside;
                            NULL: there are none */
    Source *source;
    TensorInfo *infos;   /* (n): of the tensor, or of the weight of a scale */
    StSpec *specs;       /* (n) */
    char (*names)[160];  /* (n) */
    size_t n;
    DType dtype;
    bool ue8m0;          /* the scales to write */
    ModelDraw *draw;     /* drawn: from the stream of the tensor at hand */
    const void *design;
    Random random;
    uint64_t seed;
    Model *model;        /* or NULL: where values are read */
    float *values;       /* F8_BLOCK rows of the widest tensor */
    void *coded;         /* the same, converted */
    float *scales;       /* of the weight just written */
    ModelPart *part;     /* one file more, or NULL */
    void *context;
    double done, total;  /* elements */
    Progress progress;
};

static void draft_spec(Draft *d, const TensorInfo *info, DType dtype,
                       bool scale_of)
{
    StSpec *s = &d->specs[d->n];
    size_t rows = scale_of ? fp8_blocks(info->rows) : info->rows;
    size_t cols = scale_of ? fp8_blocks(info->cols) : info->cols;
    snprintf(d->names[d->n], sizeof *d->names, "%s%s", info->name,
             scale_of ? "_scale_inv" : "");
    *s = (StSpec){d->names[d->n], dtype, info->rank, {rows, cols}};
    if (info->rank == 1)
        s->shape[0] = cols;
    d->infos[d->n++] = *info;
}

/* A module's copy of embedding or head, where a model in memory has none of
 * its own (model_zeros). Where the two are tied there is one table, and it is
 * stored once. */
static void find_shared(const Draft *d, TensorInfo *info)
{
    Model *m = d->model;
    if (!m || !m->copied || m->config.tie_word_embeddings || !info->mtp
        || info->slot->data)
        return;
    if (info->kind == TENSOR_EMBED)
        info->slot = &m->embed_tokens;
    if (info->kind == TENSOR_HEAD)
        info->slot = &m->lm_head;
}

/* Two passes: the first counts, the second fills the specs. */
static void draft_walk(Draft *d, size_t *n, size_t *widest, size_t *scales)
{
    TensorWalk walk = tensor_walk(d->config, d->model);
    TensorInfo info;
    while (tensor_next(&walk, &info)) {
        DType dtype = tensor_dtype(&info, d->dtype);
        size_t grid = fp8_blocks(info.rows) * fp8_blocks(info.cols);
        bool f8 = dtype == DT_F8_E4M3;
        find_shared(d, &info);
        if (d->model && !info.slot->data)
            continue;    /* of an MTP layer: absent, or shared */
        *n += f8 ? 2 : 1;
        *widest = info.cols > *widest ? info.cols : *widest;
        *scales = f8 && grid > *scales ? grid : *scales;
        if (!d->specs)
            continue;
        d->total += (double)info.rows * (double)info.cols;
        draft_spec(d, &info, dtype, false);
        if (f8)
            draft_spec(d, &info, DT_F32, true);
    }
}

static int draft_open(Draft *d, Error *err)
{
    size_t n = 0, widest = 0, scales = 0, again = 0;
    draft_walk(d, &n, &widest, &scales);
    d->infos = allocate(n, sizeof *d->infos, "tensors", err);
    d->names = allocate(n, sizeof *d->names, "tensors", err);
    d->values = allocate(widest, F8_BLOCK * sizeof *d->values, "a block",
                         err);
    d->coded = allocate(widest, F8_BLOCK * sizeof(float), "a block", err);
    d->scales = allocate(scales, sizeof *d->scales, "scales", err);
    d->specs = allocate(n, sizeof *d->specs, "tensors", err);
    if (!d->infos || !d->names || !d->values || !d->coded || !d->scales
        || !d->specs)
        return -1;
    draft_walk(d, &again, &widest, &scales);
    return 0;
}

static void draft_close(Draft *d)
{
    free(d->infos);
    free(d->names);
    free(d->values);
    free(d->coded);
    free(d->scales);
    free(d->specs);
}

/* A stream of its own for each tensor, from its name (FNV-1a). The copies in
 * an MTP layer get the stream of what they copy. */
static Random stream_of(const TensorInfo *info, uint64_t seed)
{
    const char *name = info->name;
    if (info->mtp && info->kind == TENSOR_EMBED)
        name = "model.embed_tokens.weight";
    if (info->mtp && info->kind == TENSOR_HEAD)
        name = "lm_head.weight";
    return random_seeded(hash_bytes(HASH_START, name, strlen(name)) ^ seed);
}

static int draw(Draft *d, const TensorInfo *info, size_t r, size_t rows,
                Error *err)
{
    (void)err;
    if (r == 0)
        d->random = stream_of(info, d->seed);
    d->draw(d->values, info, r, rows, &d->random, d->design);
    return 0;
}

/* code·scale as a float that rounds to BF16 as the exact product would: of the
 * two floats around it the one whose last bit is 1 (round to odd). */
static float product_to_odd(float code, float scale)
{
    double exact = (double)code * (double)scale;
    float x = (float)exact;
    uint32_t bits = f32_bits(x);
    if ((double)x == exact)
        return x;
    return f32_from_bits((bits - (fabs((double)x) > fabs(exact))) | 1);
}

/* Row r of an FP8 weight; w is a whole tensor. */
static void row_to_odd(float *x, const Matrix *w, size_t r)
{
    const uint8_t *codes = (const uint8_t *)w->data + r * w->stride;
    const char *scales = (const char *)w->scale
                         + r / F8_BLOCK * fp8_blocks(w->cols) * sizeof *x;
    for (size_t k = 0; k < w->cols; k++) {
        float s;
        memcpy(&s, scales + k / F8_BLOCK * sizeof s, sizeof s);
        x[k] = product_to_odd(e4m3_decode(codes[k]), s);
    }
}

/* What a tensor's numbers must be below so that none becomes infinite: the
 * middle between the greatest and the next on. */
static float limit_of(DType dtype)
{
    return dtype == DT_F32 ? INFINITY
           : dtype == DT_F16 ? 0x1.ffep15f : 0x1.ffp127f;
}

static int check_row(const Draft *d, const TensorInfo *info, size_t r,
                     const float *x, Error *err)
{
    float limit = limit_of(d->dtype);
    const StTensor *t = st_find(&d->model->files, info->name);
    for (size_t k = 0; k < info->cols; k++)
        if (!(fabsf(x[k]) < limit))
            return fail(err, "%s: %s: element (%zu, %zu) is %g, wanted a"
                        " finite %s number",
                        t ? d->model->files.paths[t->file]
                          : "a model in memory", info->name, r, k,
                        isnan(x[k]) ? (double)NAN : (double)x[k],
                        dtype_name(d->dtype == DT_F8_E4M3 ? DT_BF16
                                                          : d->dtype));
    return 0;
}

static int read_rows(Draft *d, const TensorInfo *info, size_t r, size_t rows,
                     Error *err)
{
    bool odd = d->dtype == DT_BF16 && info->slot->dtype == DT_F8_E4M3;
    for (size_t i = 0; i < rows; i++) {
        float *row = d->values + i * info->cols;
        (odd ? row_to_odd : matrix_row)(row, info->slot, r + i);
        if (check_row(d, info, r + i, row, err))
            return -1;
    }
    return 0;
}

/* True where codes and scales of the model are those to write. */
static bool stays(const Draft *d, const TensorInfo *info)
{
    return d->model && d->dtype == DT_F8_E4M3
           && info->slot->dtype == DT_F8_E4M3
           && d->ue8m0 == d->model->config.scale_fmt_ue8m0;
}

/* The values, `rows` whole rows, in the dtype of the file. */
static const void *encode(const Draft *d, const TensorInfo *info, DType dtype,
                          size_t row, size_t rows)
{
    size_t cols = info->cols;
    uint16_t *half = d->coded;
    if (dtype == DT_F32)
        return d->values;
    if (dtype == DT_F8_E4M3 && stays(d, info))
        return (const uint8_t *)info->slot->data + row * cols;
    if (dtype == DT_F8_E4M3)
        fp8_quantize(d->coded, d->scales + row / F8_BLOCK * fp8_blocks(cols),
                     d->values, cols, rows, cols, FP8_BLOCK, d->ue8m0);
    else
        for (size_t i = 0; i < rows * cols; i++)
            half[i] = dtype == DT_F16 ? f16_from_f32(d->values[i])
                                      : bf16_from_f32(d->values[i]);
    return d->coded;
}

static int fill(Draft *d, size_t i, StSink *sink, Error *err)
{
    const TensorInfo *info = &d->infos[i];
    const StSpec *spec = &d->specs[i];
    if (i > 0 && strcmp(info->name, d->infos[i - 1].name) == 0)
        return st_put(sink, stays(d, info) ? info->slot->scale : d->scales,
                      spec->shape[0] * spec->shape[1], err);
    for (size_t r = 0; r < info->rows; r += F8_BLOCK) {
        size_t rows = info->rows - r < F8_BLOCK ? info->rows - r : F8_BLOCK;
        size_t n = rows * info->cols;
        if (d->source(d, info, r, rows, err)
            || st_put(sink, encode(d, info, spec->dtype, r, rows), n, err))
            return -1;
        d->done += (double)n;
        progress_show(&d->progress, d->done, d->total);
    }
    return 0;
}

/* Before the last tensor is in place, and the file with it: was what it was
 * read from the same all the while? */
static int draft_fill(void *context, size_t i, StSink *sink, Error *err)
{
    Draft *d = context;
    if (fill(d, i, sink, err))
        return -1;
    return i + 1 < d->n ? 0 : file_check_mapped(err);
}

static int write_weights(Draft *d, const char *path, bool force, Error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    int failed = draft_open(d, err);
    if (!failed) {
        progress_begin(&d->progress, "writing weights");
        failed = st_write(path, force, d->specs, d->n, metadata, draft_fill,
                          d, err);
        progress_end(&d->progress);
    }
    draft_close(d);
    return failed;
}

/* A name beside the config, or in the directory that holds one. */
static char *path_beside(const char *config_path, const char *name,
                         Error *err)
{
    const char *slash = strrchr(config_path, '/');
    size_t n = slash ? (size_t)(slash - config_path) + 1 : 0;
    char *path;
    if (path_is_dir(config_path))
        return path_join(config_path, name, err);
    path = allocate(n + strlen(name) + 1, 1, "a path", err);
    if (!path)
        return NULL;
    memcpy(path, config_path, n);
    return strcat(path, name);
}

/* Copies a file that lies beside the config, if it does. */
static int copy_beside(const char *config_path, const char *name,
                       const char *to, bool force, Error *err)
{
    char *from = path_beside(config_path, name, err);
    File file;
    int failed;
    if (!from)
        return -1;
    failed = path_exists(from) ? file_open(&file, from, err) : 1;
    free(from);
    if (failed)
        return failed < 0 ? -1 : 0;
    failed = file_write(to, force, file.data, file.size, err);
    file_close(&file);
    return failed;
}

static const char *const names[] = {
    "model.safetensors", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "training.safetensors"};

/* Those that lie beside a config and are copied: from COPIED up to PART. */
enum { COPIED = 3, PART = 6, FILES = sizeof names / sizeof *names };

/* Every file's path, none of them a directory; without force none of them may
 * exist. Known before the first is replaced. */
static int make_paths(char *paths[FILES], const char *dir, bool force,
                      Error *err)
{
    for (int i = 0; i < FILES; i++) {
        paths[i] = path_join(dir, names[i], err);
        if (!paths[i])
            return -1;
        if (path_is_dir(paths[i]))
            return fail(err, "%s: cannot write: is a directory", paths[i]);
        if (!force && path_exists(paths[i]))
            return fail(err, "%s exists; --force overwrites it", paths[i]);
    }
    return 0;
}

/* What a signal is to remove, until it is done: without `force` every file,
 * and the directory if it is new. */
static int guard_parts(char *const paths[FILES], const char *dir,
                      bool existed, bool force, Error *err)
{
    if (!existed && temp_add(dir, err))
        return -1;
    for (int i = 0; i < FILES && !force; i++)
        if (temp_add(paths[i], err))
            return -1;
    return 0;
}

/* A model's own configs are copied; drawn weights get new ones. */
static int write_configs(const Draft *d, char *paths[FILES], bool force,
                         Error *err)
{
    if (d->model)
        return config_copy(d->from, d->dtype, d->ue8m0, paths[1], force, err)
               || copy_beside(d->from, names[2], paths[2], force, err);
    return config_write(d->config, d->dtype, paths[1], force, err)
           || config_write_generation(d->config, paths[2], force, err);
}

static int write_directory(Draft *d, const char *dir, bool force, Error *err)
{
    char *paths[FILES] = {0};
    bool existed = path_is_dir(dir);
    int failed = make_paths(paths, dir, force, err)
                 || guard_parts(paths, dir, existed, force, err);
    if (!failed && !(failed = make_dir(dir, err))) {
        failed = write_weights(d, paths[0], force, err)
                 || write_configs(d, paths, force, err);
        for (int i = COPIED; i < PART && d->from && !failed; i++)
            failed = copy_beside(d->from, names[i], paths[i], force, err);
        if (d->part && !failed)
            failed = d->part(d->context, paths[PART], err);
        for (int i = 0; i < FILES && failed && !force; i++)
            remove(paths[i]);  /* none was there before */
        if (failed && !existed)
            remove(dir);
    }
    if (paths[0])
        temp_forget(existed ? paths[0] : dir);
    for (int i = 0; i < FILES; i++)
        free(paths[i]);
    return failed ? -1 : 0;
}

int model_draw(const Config *c, const char *config_path, const char *dir,
               bool force, DType dtype, uint64_t seed, ModelDraw *draw_rows,
               const void *design, Error *err)
{
    Draft d = {.config = c, .from = config_path, .source = draw,
               .dtype = dtype, .ue8m0 = c->scale_fmt_ue8m0,
               .draw = draw_rows, .design = design, .seed = seed};
    return write_directory(&d, dir, force, err);
}

static void draw_normal(float *values, const TensorInfo *info, size_t r,
                        size_t rows, Random *random, const void *std)
{
    size_t n = rows * info->cols;
    (void)r;
    if (info->kind == TENSOR_BIAS)
        memset(values, 0, n * sizeof *values);
    else if (info->kind == TENSOR_NORM)
        for (size_t i = 0; i < n; i++)
            values[i] = 1;
    else
        random_normal(random, values, n, *(const float *)std);
}

int model_init(const Config *c, const char *config_path, const char *dir,
               bool force, DType dtype, uint64_t seed, double std, Error *err)
{
    float deviation = (float)std;
    return model_draw(c, config_path, dir, force, dtype, seed, draw_normal,
                      &deviation, err);
}

int model_quantize(const Model *m, const char *from, const char *dir,
                   bool force, DType dtype, bool ue8m0, Error *err)
{
    Model copy = *m;
    char *config = path_join(from, names[1], err);
    Draft d = {.config = &copy.config, .from = config, .source = read_rows,
               .dtype = dtype, .ue8m0 = ue8m0, .model = &copy};
    int failed = config ? write_directory(&d, dir, force, err) : -1;
    free(config);
    return failed;
}

int model_save(const Model *m, const char *config_path, const char *dir,
               DType dtype, ModelPart *part, void *context, Error *err)
{
    Model copy = *m;
    Draft d = {.config = &copy.config, .from = config_path,
               .source = read_rows, .dtype = dtype,
               .ue8m0 = copy.config.scale_fmt_ue8m0, .model = &copy,
               .part = part, .context = context};
    return write_directory(&d, dir, false, err);
}

int model_copy_texts(const char *config_path, const char *dir, Error *err)
{
    for (int i = COPIED - 1; i < PART; i++) {
        char *path = path_join(dir, names[i], err);
        int failed = !path || copy_beside(config_path, names[i], path, true,
                                          err);
        free(path);
        if (failed)
            return -1;
    }
    return 0;
}
