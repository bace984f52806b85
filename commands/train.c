/* train.c: the command that trains a model.
 *
 *   config, settings, data -> RUN with step-00000000 -> [load] -> steps
 *
 * There is one way to begin: from a checkpoint. A new run writes one of random
 * weights, or those of --from, and goes on from it as --resume does. Each step
 * gives a line of log.jsonl; then, as the settings say, an evaluation and a
 * checkpoint, in this order, so that the log up to a checkpoint's step is whole
 * when that is there. docs/train.md has what lies in RUN. */
#include "commands.h"

#include "../base/hash.h"
#include "../base/os.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Where sequences come from: a data file or lines of ids. */
typedef struct {
    const char *path;
    size_t T;
    uint64_t seed;
    DataPosition *at;          /* in an epoch; of lines: how many were taken */
    Data data;
    File lines;                /* with --ids-file */
    size_t offset;             /* of the next line */
    uint64_t line;             /* its number, from 0 on */
} Source;

typedef struct {
    const Arguments *a;
    Config config;
    TrainSettings settings;
    Source source, eval;
    Trainer trainer;
    TrainPlace place;
    TrainLog log;
    Progress progress;
    StepReport report;         /* of the last step */
    double logged;             /* when the last line was */
    double start;              /* when the first step began */
    Text where;                /* what the settings are called in errors */
    FILE *lock;                /* RUN/lock, while this process trains it */
    char *lock_path;
    uint64_t first, saved;     /* tokens then; the last checkpoint's step */
} Training;

/* Sequences --------------------------------------------------------------- */

/* The next line, without its end; false where there is no more. */
static bool next_line(Source *s, const char **text, size_t *n)
{
    const char *at = (const char *)s->lines.data + s->offset;
    size_t left = s->lines.size - s->offset;
    const char *end = left > 0 ? memchr(at, '\n', left) : NULL;
    *text = at;
    *n = end == NULL ? left : (size_t)(end - at);
    s->offset += *n + (end != NULL);
    s->line += left > 0;
    return left > 0;
}

static int parse_line(const Source *s, const char *text, size_t n,
                      int32_t *ids, Error *err)
{
    IdList list = {0};
    Error inner;
    char *copy = allocate(n + 1, 1, "a line", err);
    if (copy == NULL)
        return -1;
    memcpy(copy, text, n);
    int status = parse_ids(&list, copy, &inner);
    if (status != 0)
        fail(err, "%s: line %" PRIu64 ": %s", s->path, s->line, inner.text);
    else if (list.n != s->T + 1)
        status = fail(err, "%s: line %" PRIu64 ": wanted %zu ids "
                      "(sequence_length + 1), found %zu", s->path, s->line,
                      s->T + 1, list.n);
    if (status == 0)
        memcpy(ids, list.ids, list.n * sizeof *ids);
    ids_free(&list);
    free(copy);
    return status;
}

static int next_ids(void *source, int32_t *ids, Error *err)
{
    Source *s = source;
    const char *text;
    size_t n;
    do {
        if (!next_line(s, &text, &n))
            return fail(err, "%s: wanted more than %" PRIu64 " lines of ids",
                        s->path, s->line);
    } while (s->line <= s->at->index);
    s->at->index++;
    return parse_line(s, text, n, ids, err);
}

static int next_shuffled(void *source, int32_t *ids, Error *err)
{
    Source *s = source;
    return data_next(&s->data, s->T, s->seed, s->at, ids, err);
}

static int next_in_order(void *source, int32_t *ids, Error *err)
{
    Source *s = source;
    return data_sequence(&s->data, s->T, s->at->index++, ids, err);
}

static NextSequence *taking(const Training *r)
{
    return r->a->ids_file != NULL ? next_ids : next_shuffled;
}

/* Length, beginning and end: a corpus may be larger than memory, and the
 * beginning of a data file counts its documents, bytes and tokens. */
static uint64_t fingerprint(const File *file)
{
    enum { SPAN = 1 << 16 };
    size_t n = file->size < SPAN ? file->size : SPAN;
    uint64_t hash = hash_number(HASH_START, file->size);
    hash = hash_bytes(hash, file->data, n);
    return hash_bytes(hash, file->data + file->size - n, n);
}

static int check_vocabulary(const Training *r, const Data *d, Error *err)
{
    if (d->info.vocab_size <= r->config.vocab_size)
        return 0;
    return fail(err, "%s: wanted a vocabulary of at most %zu, as the config "
                "says, found %zu", d->path, r->config.vocab_size,
                d->info.vocab_size);
}

static int open_data(const Training *r, Source *s, const char *path,
                     DataPosition *at, Error *err)
{
    *s = (Source){.path = path, .T = r->settings.sequence_length,
                  .seed = r->settings.seed, .at = at};
    if (data_open(&s->data, path, err) != 0
        || check_vocabulary(r, &s->data, err) != 0)
        return -1;
    if (data_sequences(&s->data, s->T) > 0)
        return 0;
    return fail(err, "%s: wanted at least %zu tokens for a sequence, found %"
                PRIu64, path, s->T + 1, s->data.info.tokens);
}

static int open_sources(Training *r, Error *err)
{
    const TrainSettings *s = &r->settings;
    Source *from = &r->source;
    if (r->a->ids_file != NULL) {
        *from = (Source){.path = s->data, .T = s->sequence_length,
                         .at = &r->place.at};
        if (file_open(&from->lines, s->data, err) != 0)
            return -1;
    } else if (open_data(r, from, s->data, &r->place.at, err) != 0) {
        return -1;
    }
    r->place.hash = fingerprint(r->a->ids_file != NULL ? &from->lines
                                                       : &from->data.file);
    return s->eval_every == 0 || r->a->dump_grads != NULL ? 0
         : open_data(r, &r->eval, s->eval_data, NULL, err);
}

static void source_close(Source *s)
{
    data_close(&s->data);
    file_close(&s->lines);
}

/* That no other process trains this run. */
static int lock(Training *r, Error *err)
{
    char *path = path_join(r->a->output, "lock", err);
    if (path == NULL)
        return -1;
    FILE *file = fopen(path, "ab");
    if (file != NULL && os_lock(file)) {
        r->lock = file;
        r->lock_path = path;
        return 0;
    }
    if (file == NULL) {
        fail(err, "%s: cannot open: %s", path, strerror(errno));
    } else {
        fail(err, "%s: wanted a run that nobody trains, found another process "
             "at it", r->a->output);
        fclose(file);
    }
    free(path);
    return -1;
}

/* Config and settings ------------------------------------------------------ */

static int read_settings(Training *r, Error *err)
{
    const Arguments *a = r->a;
    const char *path = a->line.operands[1];
    Text data = {0};
    if (settings_read(&r->settings, path, err) != 0)
        return -1;
    text_printf(&r->where, "%s%s", path, a->set.n > 0 ? " with --set" : "");
    int status = 0;
    for (size_t i = 0; i < a->set.n && status == 0; i++)
        status = settings_set(&r->settings, a->set.text[i], err);
    text_printf(&data, "data=%s", a->ids_file != NULL ? a->ids_file : "");
    if (data.failed || r->where.failed)
        status = fail(err, "%s: out of memory", path);
    if (status == 0 && a->ids_file != NULL)
        status = settings_set(&r->settings, data.text, err);
    text_free(&data);
    return status != 0 ? -1
         : settings_check(&r->settings, &r->config, r->where.text, err);
}

static int open_training(Training *r, Error *err)
{
    const Arguments *a = r->a;
    if (config_read(&r->config, a->line.operands[0], err) != 0)
        return -1;
    if (read_settings(r, err) != 0)
        return -1;
    return open_sources(r, err);
}

/* RUN/lock of a process that was killed is nobody's any more. */
static void unlock(Training *r)
{
    if (r->lock == NULL)
        return;
    remove(r->lock_path);
    free(r->lock_path);
    fclose(r->lock);
}

static void close_training(Training *r)
{
    unlock(r);
    train_close(&r->trainer);
    log_close(&r->log);
    source_close(&r->source);
    source_close(&r->eval);
    settings_free(&r->settings);
    text_free(&r->where);
}

/* The weights of a model that has the config of the line. */
static int open_from(Training *r, const char *dir, Error *err)
{
    Model m;
    if (model_open(&m, dir, err) != 0)
        return -1;
    int status = config_same(&r->config, r->a->line.operands[0], &m.config,
                             dir, err);
    if (status == 0)
        status = train_open(&r->trainer, &m, &r->settings, err);
    model_close(&m);
    return status;
}

/* The directory of a run --------------------------------------------------- */

/* RUN/name, written by one of the three below. */
typedef int WriteFile(const Training *r, const char *path, Error *err);

static int write_in_run(const Training *r, const char *name,
                        WriteFile *write_file, Error *err)
{
    char *path = path_join(r->a->output, name, err);
    int status = path == NULL ? -1 : write_file(r, path, err);
    free(path);
    return status;
}

static int write_settings(const Training *r, const char *path, Error *err)
{
    return settings_write(&r->settings, path, true, err);
}

/* The config with the dtype that it announces. */
static int write_config(const Training *r, const char *path, Error *err)
{
    const char *given_path = r->a->line.operands[0];
    bool dir = path_is_dir(given_path);
    char *joined = dir ? path_join(given_path, "config.json", err) : NULL;
    if (dir && joined == NULL)
        return -1;
    int status = config_copy(dir ? joined : given_path,
                             checkpoint_dtype(&r->config),
                             r->config.scale_fmt_ue8m0, path, true, err);
    free(joined);
    return status;
}

static int write_generation(const Training *r, const char *path, Error *err)
{
    return path_exists(path) ? 0
         : config_write_generation(&r->config, path, true, err);
}

/* What every checkpoint takes along; the tokenizer from beside the config, or
 * else from --from. */
static int write_texts(const Training *r, Error *err)
{
    const char *run = r->a->output;
    if (model_copy_texts(r->a->line.operands[0], run, err) != 0)
        return -1;
    int has = dir_has(run, "tokenizer.json", err);
    if (has == 0 && r->a->from != NULL)
        has = model_copy_texts(r->a->from, run, err);
    return has < 0 ? -1
         : write_in_run(r, "generation_config.json", write_generation, err);
}

static int check_ids_of(const Source *s, uint64_t hash, const char *dir,
                        Error *err)
{
    return s->data.path == NULL || s->data.info.tokenizer_hash == hash ? 0
         : fail(err, "%s: wanted ids by %s/tokenizer.json, found another "
                "tokenizer's", s->path, dir);
}

/* That one tokenizer made the data: that in this directory, if it has one. */
static int check_tokenizer(const Training *r, const char *dir, Error *err)
{
    const Data *eval = &r->eval.data, *data = &r->source.data;
    uint64_t hash;
    int has = dir_has(dir, "tokenizer.json", err);
    if (has < 0)
        return -1;
    if (has == 0)
        return eval->path == NULL || data->path == NULL
               || eval->info.tokenizer_hash == data->info.tokenizer_hash ? 0
             : fail(err, "%s: wanted ids by the tokenizer of %s, found "
                    "another's", eval->path, data->path);
    return tokenizer_hash(dir, &hash, err) != 0
           || check_ids_of(&r->source, hash, dir, err) != 0
           || check_ids_of(&r->eval, hash, dir, err) != 0 ? -1 : 0;
}

/* Weights in F32 that training begins with, in a directory that goes again. */
static int draw(Training *r, Error *err)
{
    const TrainSettings *s = &r->settings;
    char *dir = path_join(r->a->output, "init.tmp", err);
    char *config = path_join(r->a->output, "config.json", err);
    int status = -1;
    if (dir != NULL && config != NULL
        && (!path_exists(dir) || dir_remove(dir, err) == 0)
        && model_init(&r->config, config, dir, false, DT_F32, s->seed,
                      s->init_std, err) == 0
        && open_from(r, dir, err) == 0)
        status = dir_remove(dir, err);
    free(dir);
    free(config);
    return status;
}

/* A mark that what lies in RUN is this program's, from before all else until
 * there is a checkpoint; then it goes with whatever is called *.tmp. */
#define MARK "begun.tmp"

static int write_mark(const Training *r, const char *path, Error *err)
{
    (void)r;
    return file_write(path, true, "", 0, err);
}

/* train.json, config.json, tokenizer, step-00000000. */
static int write_run(Training *r, Error *err)
{
    const char *run = r->a->output;
    if (make_dir(run, err) != 0
        || write_in_run(r, MARK, write_mark, err) != 0
        || lock(r, err) != 0
        || write_in_run(r, "train.json", write_settings, err) != 0
        || write_in_run(r, "config.json", write_config, err) != 0
        || write_texts(r, err) != 0
        || check_tokenizer(r, run, err) != 0)
        return -1;
    int status = r->a->from != NULL ? open_from(r, r->a->from, err)
                                    : draw(r, err);
    if (status == 0)
        status = state_save(&r->trainer, &r->place, run, err);
    train_close(&r->trainer);
    return status;
}

/* A new run that cannot be written leaves nothing. */
static int begin(Training *r, Error *err)
{
    const char *run = r->a->output;
    Error inner;
    if (path_exists(run))
        return fail(err, "%s: exists already; --resume goes on with a run",
                    run);
    if (write_run(r, err) == 0)
        return 0;
    if (path_is_dir(run) && state_prune(run, 0, &inner) == 0)
        dir_remove(run, &inner);
    return -1;
}

/* That config.json, train.json and tokenizer of RUN are those of the line and
 * its data. */
static int check_run(const Training *r, Error *err)
{
    const char *run = r->a->output;
    char *path = path_join(run, "train.json", err);
    TrainSettings was = {0};
    Config config;
    int status = -1;
    if (path != NULL && config_read(&config, run, err) == 0
        && config_same(&r->config, r->a->line.operands[0], &config, run, err)
           == 0
        && settings_read(&was, path, err) == 0) {
        status = settings_same(&r->settings, r->where.text, &was, path, err);
        settings_free(&was);
    }
    free(path);
    return status != 0 ? -1 : check_tokenizer(r, run, err);
}

static int refuse_name(void *run, const char *name, Error *err)
{
    size_t n = strlen(name);
    if (n >= 4 && strcmp(name + n - 4, ".tmp") == 0)
        return 0;
    return fail(err, "%s: wanted the directory of a run, found %s and no "
                "checkpoint", (const char *)run, name);
}

/* A run that was killed before its first checkpoint begins anew; without the
 * mark, what is there is somebody else's. */
static int begin_again(Training *r, Error *err)
{
    const char *run = r->a->output;
    int has = dir_has(run, MARK, err);
    if (has == 0)
        has = dir_each(run, refuse_name, (void *)(uintptr_t)run, err);
    return has < 0 ? -1 : write_run(r, err);
}

static int resume(Training *r, Error *err)
{
    const char *run = r->a->output;
    char *dir;
    if (!path_is_dir(run))
        return fail(err, "%s: wanted the directory of a run, found none",
                    run);
    if (state_newest(run, &dir, err) != 0)
        return -1;
    bool any = dir != NULL;
    free(dir);
    if (any)
        return lock(r, err) != 0 ? -1 : check_run(r, err);
    return begin_again(r, err);
}

/* Opens the trainer where the latest checkpoint is. Then RUN gets what may
 * have changed since: storage of weights, settings that count no numbers. */
static int load(Training *r, Error *err)
{
    const char *run = r->a->output;
    char *dir;
    if (state_newest(run, &dir, err) != 0)
        return -1;
    int status = state_load(&r->trainer, &r->place, dir, &r->config,
                            &r->settings, err);
    free(dir);
    if (status != 0)
        return -1;
    r->saved = r->trainer.step;
    if (log_open(&r->log, run, r->trainer.step, err) != 0
        || write_in_run(r, "config.json", write_config, err) != 0
        || write_in_run(r, "train.json", write_settings, err) != 0)
        return -1;
    return state_prune(run, r->settings.keep_checkpoints, err);
}

/* The loop ----------------------------------------------------------------- */

static int save(Training *r, Error *err)
{
    const char *run = r->a->output;
    if (r->saved == r->trainer.step)
        return 0;
    if (log_sync(&r->log, err) != 0
        || state_save(&r->trainer, &r->place, run, err) != 0)
        return -1;
    r->saved = r->trainer.step;
    return state_prune(run, r->settings.keep_checkpoints, err);
}

static int evaluate(Training *r, Error *err)
{
    DataPosition at = {0};
    LossSums losses;
    double start = os_seconds();
    const DataInfo *info = &r->eval.data.info;
    uint64_t n = data_sequences(&r->eval.data, r->eval.T);
    uint64_t most = r->settings.eval_sequences;
    n = most > 0 && most < n ? most : n;
    r->eval.at = &at;
    if (train_evaluate(&r->trainer, next_in_order, &r->eval, (size_t)n,
                       &losses, err) != 0)
        return -1;
    return log_eval(&r->log, &r->trainer, &losses, n,
                    (double)info->bytes / (double)info->tokens,
                    os_seconds() - start, err);
}

/* Tokens a second since the first step. */
static double speed(const Training *r)
{
    double seconds = os_seconds() - r->start;
    return seconds > 0
         ? (double)(r->trainer.tokens - r->first) / seconds : 0;
}

static void show(Training *r)
{
    const StepReport *s = &r->report;
    const Config *c = &r->config;
    char line[160], mtp[32] = "", violation[32] = "";
    double rate = speed(r);
    uint64_t minutes = 0;
    if (c->num_nextn_predict_layers > 0)
        snprintf(mtp, sizeof mtp, ", MTP %.3f", mean_mtp_loss(c, &s->losses));
    if (c->n_routed_experts > 0)
        snprintf(violation, sizeof violation, ", MaxVio %.2f",
                 s->max_violation);
    if (r->settings.total_tokens > s->tokens && rate > 0)
        minutes = (uint64_t)((double)(r->settings.total_tokens - s->tokens)
                             / rate / 60 + 0.5);
    snprintf(line, sizeof line, "step %" PRIu64 ": loss %.3f%s, |g| %.2f%s, "
             "%.0f tok/s, %" PRIu64 ":%02d left", s->step, s->losses.main,
             mtp, s->grad_norm, violation, rate, minutes / 60,
             (int)(minutes % 60));
    progress_text(&r->progress, line);
}

static bool is_due(uint64_t step, uint64_t every)
{
    return every > 0 && step % every == 0;
}

static int one_step(Training *r, Error *err)
{
    const TrainSettings *s = &r->settings;
    if (train_step(&r->trainer, taking(r), &r->source, &r->report, err) != 0)
        return -1;
    show(r);
    if (is_due(r->report.step, s->log_every)) {
        double now = os_seconds();
        if (log_step(&r->log, &r->trainer, &r->report, now - r->logged, err)
            != 0)
            return -1;
        r->logged = now;
    }
    if (is_due(r->report.step, s->eval_every) && evaluate(r, err) != 0)
        return -1;
    return is_due(r->report.step, s->checkpoint_every) ? save(r, err) : 0;
}

static int steps(Training *r, Error *err)
{
    int status = 0;
    r->start = r->logged = os_seconds();
    r->first = r->trainer.tokens;
    progress_begin(&r->progress, "training");
    while (status == 0 && !train_done(&r->trainer) && !was_interrupted())
        status = one_step(r, err);
    progress_end(&r->progress);
    return status != 0 ? -1 : save(r, err);
}

static void tell(const Training *r, bool interrupted)
{
    const Trainer *t = &r->trainer;
    fprintf(stderr, "%s%s/step-%08" PRIu64 ": %" PRIu64 " tokens",
            interrupted ? "interrupted; --resume goes on from " : "",
            r->a->output, t->step, t->tokens);
    if (r->report.step > 0)
        fprintf(stderr, ", loss %.4f, %.0f tok/s", r->report.losses.main,
                speed(r));
    fprintf(stderr, "; training takes %.1f MB, peak memory %.1f MB\n",
            (double)train_bytes(&r->config, &r->settings) / 1e6,
            (double)os_peak_memory() / 1e6);
}

static int train(Training *r, Error *err)
{
    note_interrupts(true);
    if ((r->a->resume ? resume(r, err) : begin(r, err)) != 0
        || load(r, err) != 0 || steps(r, err) != 0)
        return -1;
    bool interrupted = !train_done(&r->trainer);
    tell(r, interrupted);
    return interrupted;
}

/* Gradients ---------------------------------------------------------------- */

static int dump(Training *r, Error *err)
{
    const Arguments *a = r->a;
    if (check_tokenizer(r, a->from, err) != 0
        || open_from(r, a->from, err) != 0
        || train_step(&r->trainer, taking(r), &r->source, &r->report, err)
           != 0
        || file_check_mapped(err) != 0)
        return -1;
    Trace *trace = trace_open(a->dump_grads, a->force, NULL, err);
    if (trace == NULL)
        return -1;
    state_put_step(&r->trainer, &r->report, trace);
    return trace_close(trace, err);
}

static int check_options(const Arguments *a, Error *err)
{
    if (a->dump_grads != NULL && a->from == NULL)
        return fail(err, "--dump-grads: wanted --from too, whose gradients "
                    "they are");
    if (a->dump_grads != NULL && a->resume)
        return fail(err, "--dump-grads: wanted no --resume; --from takes a "
                    "checkpoint too");
    if (a->force && a->dump_grads == NULL)
        return fail(err, "--force: no run is overwritten; give another -o, "
                    "or --resume");
    return 0;
}

int run_train(const Arguments *a, Error *err)
{
    Training r = {.a = a};
    if (check_options(a, err) != 0)
        return -1;
    int status = open_training(&r, err);
    if (status == 0)
        status = a->dump_grads != NULL ? dump(&r, err) : train(&r, err);
    close_training(&r);
    return status;
}
