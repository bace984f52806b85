/* train_state.c: directories that training goes on from
 *
 * RUN/step-00000250/ is a model directory, to be loaded by whatever loads one,
 * with one file more: training.safetensors. For a weight NAME that holds
 *
 *   NAME.m, NAME.v   AdamW's moments, F32 or BF16
 *   NAME.ema         the moving average, if there is one
 *   NAME.f32         the master weight, if the model's file has not F32
 *
 * and in its metadata step, tokens, the place in the data, hashes of settings
 * and data, and one of these numbers. That is all a step depends on (train.c).
 *
 * Invariants: a directory is written as step-00000250.tmp, file by file, each
 * on the disk before the next; then it is renamed. So what is called
 * step-00000250 is whole, whenever the run was killed. One that is to go is
 * renamed first, too. What is called *.tmp is nobody's. */
#include "deepseek.h"

#include "base/hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char format_name[] = "deepseek.c training 1";
static const char file_name[] = "training.safetensors";

enum { MAX_PARTS = 4 };

/* n numbers in the layout of model_zeros, and what is put behind the names of
 * the tensors among them. */
typedef struct {
    const char *suffix;
    DType dtype;
    char *numbers;
} Part;

/* All tensors of all parts, tensor by tensor. */
typedef struct {
    Part parts[MAX_PARTS];
    size_t n_parts;
    StSpec *specs;          /* (n) */
    char (*names)[160];     /* (n) */
    size_t *at;             /* (n) place of its first number */
    size_t n;
} Parts;

static void add_part(Parts *p, const char *suffix, DType dtype, void *numbers)
{
    p->parts[p->n_parts++] = (Part){suffix, dtype, numbers};
}

static void add_tensor(Parts *p, const TensorInfo *info, const float *first)
{
    for (size_t k = 0; k < p->n_parts; k++, p->n++) {
        StSpec *s = &p->specs[p->n];
        snprintf(p->names[p->n], sizeof *p->names, "%s%s", info->name,
                 p->parts[k].suffix);
        *s = (StSpec){p->names[p->n], p->parts[k].dtype, info->rank,
                      {info->rank == 1 ? info->cols : info->rows,
                       info->cols}};
        p->at[p->n] = (size_t)(matrix_numbers(info->slot) - first);
    }
}

static bool next_tensor(TensorWalk *walk, TensorInfo *info)
{
    while (tensor_next(walk, info))
        if (info->slot->data)
            return true;
    return false;            /* without what modules share */
}

static int list_tensors(Parts *p, const Model *m, Error *err)
{
    Model model = *m;
    TensorWalk walk = tensor_walk(&model.config, &model);
    TensorInfo info;
    size_t n = 0;
    while (next_tensor(&walk, &info))
        n += p->n_parts;
    p->specs = allocate(n, sizeof *p->specs, "tensors", err);
    p->names = allocate(n, sizeof *p->names, "tensors", err);
    p->at = allocate(n, sizeof *p->at, "tensors", err);
    if (!p->specs || !p->names || !p->at)
        return -1;
    walk = tensor_walk(&model.config, &model);
    while (next_tensor(&walk, &info))
        add_tensor(p, &info, model.copied);
    return 0;
}

static void close_parts(Parts *p)
{
    free(p->specs);
    free(p->names);
    free(p->at);
}

static Part *part_of(Parts *p, size_t i)
{
    return &p->parts[i % p->n_parts];
}

static size_t elements_of(const StSpec *s)
{
    return s->rank == 1 ? s->shape[0] : s->shape[0] * s->shape[1];
}

/* Writing ---------------------------------------------------------------- */

static int fill(void *context, size_t i, StSink *sink, Error *err)
{
    Parts *p = context;
    const Part *part = part_of(p, i);
    return st_put(sink, part->numbers + p->at[i] * dtype_size(part->dtype),
                  elements_of(&p->specs[i]), err);
}

static int write_parts(Parts *p, const Model *m, const char *path, bool force,
                       const char *const *metadata, Error *err)
{
    int failed = list_tensors(p, m, err)
                 || st_write(path, force, p->specs, p->n, metadata, fill, p,
                             err);
    close_parts(p);
    return failed ? -1 : 0;
}

/* What is kept beside a model whose weights have this dtype. */
static Parts parts_of(const Trainer *t, DType weights)
{
    Parts p = {.n_parts = 0};
    add_part(&p, ".m", t->settings->moments, t->m);
    add_part(&p, ".v", t->settings->moments, t->v);
    if (t->ema)
        add_part(&p, ".ema", DT_F32, t->ema);
    if (weights != DT_F32)
        add_part(&p, ".f32", DT_F32, t->model.copied);
    return p;
}

enum { STEP, TOKENS, EPOCH, INDEX, DATA, SETTINGS, HASH, NUMBERS };

static const char *const keys[NUMBERS] = {"step", "tokens", "epoch", "index",
                                          "data", "settings", "hash"};

/* Of those before it. */
static uint64_t hash_of(const uint64_t *values)
{
    uint64_t hash = HASH_START;
    for (size_t i = 0; i < HASH; i++)
        hash = hash_number(hash, values[i]);
    return hash;
}

/* What a state's own file is written from. */
typedef struct {
    const Trainer *trainer;
    const TrainPlace *place;
    DType dtype;
} State;

static int write_state(void *context, const char *path, Error *err)
{
    const State *s = context;
    const Trainer *t = s->trainer;
    uint64_t values[NUMBERS] = {t->step, t->tokens, s->place->at.epoch,
                                s->place->at.index, s->place->hash};
    const char *metadata[2 * NUMBERS + 3] = {"format", format_name};
    char texts[NUMBERS][24];
    Parts p = parts_of(t, s->dtype);
    if (settings_hash(t->settings, &values[SETTINGS], err))
        return -1;
    values[HASH] = hash_of(values);
    for (size_t i = 0; i < NUMBERS; i++) {
        snprintf(texts[i], sizeof *texts, "%" PRIu64, values[i]);
        metadata[2 * i + 2] = keys[i];
        metadata[2 * i + 3] = texts[i];
    }
    return write_parts(&p, &t->model, path, false, metadata, err);
}

/* One step --------------------------------------------------------------- */

static void put_number(Trace *trace, const char *name, double x)
{
    const size_t shape[1] = {1};
    float value = (float)x;
    trace_put(trace, name, DT_F32, &value, 1, shape);
}

static void put_losses(Trace *trace, const Trainer *t, const StepReport *r)
{
    static const char *const names[BALANCE_LOSSES] = {
        "loss.balance.expert", "loss.balance.device",
        "loss.balance.communication", "loss.balance.sequence"};
    char name[32];
    put_number(trace, "loss.main", r->losses.main);
    for (size_t k = 0; k < t->model.config.num_nextn_predict_layers; k++) {
        snprintf(name, sizeof name, "loss.mtp.%zu", k + 1);
        put_number(trace, name, r->losses.mtp[k]);
    }
    for (size_t i = 0; i < BALANCE_LOSSES; i++)
        if (r->losses.balance[i] > 0)
            put_number(trace, names[i], r->losses.balance[i]);
    put_number(trace, "grad_norm", r->grad_norm);
}

/* An expert a row, for a trace has no 64-bit numbers. */
static void put_load(Trace *trace, const uint64_t *load, size_t N,
                     size_t layer)
{
    const size_t shape[1] = {1};
    char name[64];
    snprintf(name, sizeof name, "model.layers.%zu.mlp.gate.load", layer);
    for (size_t i = 0; i < N; i++) {
        int32_t n = load[i] < INT32_MAX ? (int32_t)load[i] : INT32_MAX;
        trace_put(trace, name, DT_I32, &n, 1, shape);
    }
}

static void put_loads(Trace *trace, const Trainer *t)
{
    const Config *c = &t->model.config;
    size_t N = c->n_routed_experts;
    size_t layers = c->num_hidden_layers + c->num_nextn_predict_layers;
    for (size_t l = 0; l < layers; l++)
        if (t->model.layers[l].is_moe)
            put_load(trace, t->load + l * N, N, l);
}

static void put_weights(Trace *trace, const Model *m, const char *suffix)
{
    Model model = *m;
    TensorWalk walk = tensor_walk(&model.config, &model);
    TensorInfo info;
    char name[160];
    while (next_tensor(&walk, &info)) {
        const size_t shape[2] = {info.rank == 1 ? info.cols : info.rows,
                                 info.cols};
        snprintf(name, sizeof name, "%s%s", info.name, suffix);
        trace_put(trace, name, DT_F32, matrix_numbers(info.slot), info.rank,
                  shape);
    }
}

void state_put_step(const Trainer *t, const StepReport *r, Trace *trace)
{
    put_losses(trace, t, r);
    put_loads(trace, t);
    put_weights(trace, &t->grads, ".grad");
    put_weights(trace, &t->model, "");
}

/* What a config announces its weights to be stored as. */
static int stored_dtype(DType *dtype, const char *config_path, Error *err)
{
    Config c;
    if (config_read(&c, config_path, err))
        return -1;
    *dtype = c.fp8 ? DT_F8_E4M3 : c.torch_dtype;
    return 0;
}

static int save_as(const Trainer *t, const TrainPlace *place,
                   const char *config_path, const char *temp, Error *err)
{
    State s = {.trainer = t, .place = place};
    if (stored_dtype(&s.dtype, config_path, err)
        || (path_exists(temp) && dir_remove(temp, err)))
        return -1;
    return model_save(&t->model, config_path, temp, s.dtype, write_state, &s,
                      err);
}

/* "run/step-00000250" with the suffix, to be freed. */
static char *step_path(const char *run, uint64_t step, const char *suffix,
                       Error *err)
{
    char name[40];
    snprintf(name, sizeof name, "step-%08" PRIu64 "%s", step, suffix);
    return path_join(run, name, err);
}

int state_save(const Trainer *t, const TrainPlace *place, const char *run,
               Error *err)
{
    char *path = step_path(run, t->step, "", err);
    char *temp = step_path(run, t->step, ".tmp", err);
    char *config = path_join(run, "config.json", err);
    int failed = !path || !temp || !config
                 || save_as(t, place, config, temp, err)
                 || dir_commit(temp, path, err);
    free(path);
    free(temp);
    free(config);
    return failed ? -1 : 0;
}

/* Reading ---------------------------------------------------------------- */

static int read_number(const Safetensors *st, const char *key,
                       uint64_t *value, Error *err)
{
    char text[24];
    if (st_metadata(st, key, text, sizeof text, err))
        return -1;
    size_t digits = strspn(text, "0123456789");
    *value = strtoull(text, NULL, 10);
    if (digits > 0 && !text[digits])
        return 0;
    return fail(err, "%s: metadata: %s: wanted a whole number, found %s",
                st->paths[0], key, text);
}

/* All of them, as they were written. */
static int read_values(const Safetensors *st, uint64_t *values, Error *err)
{
    char format[40];
    if (st_metadata(st, "format", format, sizeof format, err))
        return -1;
    if (strcmp(format, format_name) != 0)
        return fail(err, "%s: wanted the format %s, found %s", st->paths[0],
                    format_name, format);
    for (size_t i = 0; i < NUMBERS; i++)
        if (read_number(st, keys[i], &values[i], err))
            return -1;
    if (values[HASH] != hash_of(values))
        return fail(err, "%s: metadata: hash: wanted %" PRIu64 ", which the"
                    " numbers beside it have, found %" PRIu64, st->paths[0],
                    hash_of(values), values[HASH]);
    return 0;
}

/* Step, tokens and place; that they are of these settings and these data. */
static int read_numbers(Trainer *t, TrainPlace *place, const Safetensors *st,
                        Error *err)
{
    uint64_t values[NUMBERS], settings;
    if (read_values(st, values, err)
        || settings_hash(t->settings, &settings, err))
        return -1;
    if (values[SETTINGS] != settings)
        return fail(err, "%s: is from a run with other settings",
                    st->paths[0]);
    if (values[DATA] != place->hash)
        return fail(err, "%s: was trained on other data than %s",
                    st->paths[0], t->settings->data);
    t->step = values[STEP];
    t->tokens = values[TOKENS];
    place->at = (DataPosition){values[EPOCH], values[INDEX]};
    return 0;
}

static int read_tensor(Parts *p, size_t i, const Safetensors *st, Error *err)
{
    const StSpec *s = &p->specs[i];
    const StTensor *t = st_find(st, s->name);
    Part *part = part_of(p, i);
    if (!t)
        return fail(err, "%s: wanted a tensor %s, found none", st->paths[0],
                    s->name);
    if (t->dtype != s->dtype || t->rank != s->rank
        || memcmp(t->shape, s->shape, (size_t)s->rank * sizeof *s->shape)
               != 0)
        return fail(err, "%s: %s: wanted %s of %zu numbers in the weight's"
                    " shape, found %s of %zu", st->paths[0], s->name,
                    dtype_name(s->dtype), elements_of(s),
                    dtype_name(t->dtype), t->elements);
    memcpy(part->numbers + p->at[i] * dtype_size(part->dtype), t->data,
           t->bytes);
    return 0;
}

static int read_parts(Parts *p, const Model *m, const Safetensors *st,
                      Error *err)
{
    int failed = list_tensors(p, m, err);
    for (size_t i = 0; i < p->n && !failed; i++)
        failed = read_tensor(p, i, st, err);
    close_parts(p);
    return failed;
}

/* All that training.safetensors has. */
static int load_file(Trainer *t, TrainPlace *place, const char *dir,
                     DType weights, Error *err)
{
    Safetensors st;
    Parts p = parts_of(t, weights);
    char *path = path_join(dir, file_name, err);
    if (!path || st_open(&st, path, err)) {
        free(path);
        return -1;
    }
    int failed = read_numbers(t, place, &st, err)
                 || read_parts(&p, &t->model, &st, err);
    st_close(&st);
    free(path);
    return failed ? -1 : 0;
}

int state_load(Trainer *t, TrainPlace *place, const char *dir,
               const Config *c, const TrainSettings *s, Error *err)
{
    Model m;
    if (model_open(&m, dir, err))
        return -1;
    DType weights = m.config.fp8 ? DT_F8_E4M3 : m.config.torch_dtype;
    int failed = config_same(c, "this config", &m.config, dir, err)
                 || train_open(t, &m, s, err) ? -1 : 0;
    model_close(&m);
    if (!failed && load_file(t, place, dir, weights, err)) {
        train_close(t);
        failed = -1;
    }
    return failed;
}

/* The directories of a run ----------------------------------------------- */

typedef struct {
    const char *run;
    uint64_t *steps;
    size_t n;
} Steps;

static bool is_step(const char *name, uint64_t *step)
{
    size_t digits = strspn(name + (strncmp(name, "step-", 5) == 0 ? 5 : 0),
                           "0123456789");
    if (strncmp(name, "step-", 5) != 0 || digits < 8 || digits > 19
        || name[5 + digits])
        return false;
    *step = strtoull(name + 5, NULL, 10);
    return true;
}

static int note_step(void *steps, const char *name, Error *err)
{
    Steps *s = steps;
    uint64_t step;
    if (!is_step(name, &step))
        return 0;
    uint64_t *more = realloc(s->steps, (s->n + 1) * sizeof *more);
    if (!more)
        return fail(err, "%s: not enough memory to list it", s->run);
    s->steps = more;
    s->steps[s->n++] = step;
    return 0;
}

static int by_step(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int list_steps(Steps *s, const char *run, Error *err)
{
    *s = (Steps){.run = run};
    if (dir_each(run, note_step, s, err)) {
        free(s->steps);
        return -1;
    }
    if (s->n)
        qsort(s->steps, s->n, sizeof *s->steps, by_step);
    return 0;
}

int state_newest(const char *run, char **dir, Error *err)
{
    Steps s;
    *dir = NULL;
    if (list_steps(&s, run, err))
        return -1;
    int failed = 0;
    if (s.n > 0) {
        *dir = step_path(run, s.steps[s.n - 1], "", err);
        failed = *dir ? 0 : -1;
    }
    free(s.steps);
    return failed;
}

/* From its name, at once; what it holds goes with the rest that has none. */
static int retire(const char *run, uint64_t step, Error *err)
{
    char *path = step_path(run, step, "", err);
    char *temp = step_path(run, step, ".tmp", err);
    int failed = !path || !temp || (path_exists(temp) && dir_remove(temp, err))
                 || dir_commit(path, temp, err);
    free(path);
    free(temp);
    return failed ? -1 : 0;
}

static int remove_temp(void *run, const char *name, Error *err)
{
    size_t n = strlen(name);
    if (n < 4 || strcmp(name + n - 4, ".tmp") != 0)
        return 0;
    char *path = path_join(run, name, err);
    int failed = !path ? -1 : path_is_dir(path) ? dir_remove(path, err) : 0;
    if (path && !failed && path_exists(path) && remove(path) != 0)
        failed = fail(err, "%s: cannot remove", path);
    free(path);
    return failed;
}

int state_prune(const char *run, uint64_t keep, Error *err)
{
    Steps s;
    if (list_steps(&s, run, err))
        return -1;
    int failed = 0;
    for (size_t i = 0; i + keep < s.n && !failed; i++)
        failed = retire(run, s.steps[i], err);
    free(s.steps);
    return failed ? -1 : dir_each(run, remove_temp, (void *)(uintptr_t)run,
                                  err);
}
