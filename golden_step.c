/* golden_step.c: the packs' step of training
 *
 * Where a pass shows what a model computes, a step shows how it learns. Such a
 * pack has settings beside its model, golden/train.json, and two sequences,
 * golden/ids.txt; its golden values are losses by part, loads, the gradient of
 * every parameter, and every weight and bias after AdamW and the update of the
 * biases: the ids, and what `deepseek train --dump-grads` writes for these.
 *
 * Not here: which packs there are, how tokens are picked (golden.c); the step
 * itself (train.c). */
#include "deepseek.h"

#include <stdlib.h>
#include <string.h>

/* Files ------------------------------------------------------------------ */

/* As settings_write has them: every setting, not those alone that the pack
 * names. */
static int write_settings(const GoldenPack *p, const char *path, Error *err)
{
    TrainSettings s = {.data = NULL};
    Text t = {0};
    text_printf(&t, "%s", p->step);
    int failed = t.failed ? fail(err, "not enough memory for settings")
                          : file_write(path, false, t.text, t.length, err);
    text_free(&t);
    if (failed || settings_read(&s, path, err))
        return -1;
    failed = settings_write(&s, path, true, err);
    settings_free(&s);
    return failed;
}

static int write_ids(const int32_t *ids, const char *path, Error *err)
{
    const size_t n = GOLDEN_SEQUENCE;
    Text t = {0};
    for (size_t i = 0; i < GOLDEN_SEQUENCES * n; i++)
        text_printf(&t, "%d%s", (int)ids[i], (i + 1) % n ? "," : "\n");
    int failed = t.failed ? fail(err, "not enough memory for ids")
                          : file_write(path, false, t.text, t.length, err);
    text_free(&t);
    return failed;
}

int golden_step_files(const GoldenPack *p, const int32_t *ids,
                      const char *dir, Error *err)
{
    char *train = path_join(dir, "golden/train.json", err);
    char *list = path_join(dir, "golden/ids.txt", err);
    int failed = !train || !list || write_settings(p, train, err)
                 || write_ids(ids, list, err);
    free(train);
    free(list);
    return failed ? -1 : 0;
}

/* The step --------------------------------------------------------------- */

static int next_sequence(void *context, int32_t *ids, Error *err)
{
    const int32_t **at = context;
    (void)err;
    memcpy(ids, *at, GOLDEN_SEQUENCE * sizeof *ids);
    *at += GOLDEN_SEQUENCE;
    return 0;
}

static int read_settings(TrainSettings *s, const Model *m, const char *dir,
                         const char *reading, Error *err)
{
    char *path = path_join(dir, "golden/train.json", err);
    int failed = !path || settings_read(s, path, err)
                 || (reading && settings_set(s, reading, err))
                 || settings_check(s, &m->config, path, err);
    free(path);
    return failed ? -1 : 0;
}

static int write_step(const Trainer *t, const StepReport *r,
                      const int32_t *ids, const char *path, Error *err)
{
    const size_t shape[2] = {GOLDEN_SEQUENCES, GOLDEN_SEQUENCE};
    Trace *trace = trace_open(path, false, NULL, err);
    if (!trace)
        return -1;
    trace_put(trace, "ids", DT_I32, ids, 2, shape);
    state_put_step(t, r, trace);
    return trace_close(trace, err);
}

static int run_step(const TrainSettings *s, const Model *m,
                    const int32_t *ids, const char *path, Error *err)
{
    const int32_t *at = ids;
    StepReport report;
    Trainer t;
    if (train_open(&t, m, s, err))
        return -1;
    int failed = train_step(&t, next_sequence, (void *)&at, &report, err)
                 || write_step(&t, &report, ids, path, err);
    train_close(&t);
    return failed ? -1 : 0;
}

int golden_step(const Model *m, const int32_t *ids, const char *dir,
                const char *reading, const char *path, Error *err)
{
    TrainSettings s = {.data = NULL};
    int failed = read_settings(&s, m, dir, reading, err)
                 || run_step(&s, m, ids, path, err);
    settings_free(&s);
    return failed ? -1 : 0;
}

/* A side of what such a file holds. */
const char *golden_step_axis(const char *name, int rank, int i)
{
    if (strcmp(name, "ids") == 0)
        return i == 0 ? "sequences" : "tokens";
    if (strstr(name, ".mlp.gate.load"))
        return "n_routed_experts";
    if (strncmp(name, "model.", 6) != 0 && strncmp(name, "lm_head.", 8) != 0)
        return "one";
    return i + 1 < rank ? "out" : rank == 2 ? "in" : "features";
}
