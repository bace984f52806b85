/* train_log.c: what a training run tells of itself, a line a step.
 *
 * docs/train.md describes the lines. One that was cut by a crash, and those
 * behind the checkpoint that a run goes on from, are removed when it does: so
 * the log of a resumed run is that of a straight one, but for the times. */
#include "commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* From 0 to 61 tenths of the mean: 'a' is the mean itself. */
static const char digits[] =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

enum { MOST_TENTHS = sizeof digits - 2 };

int load_tenths(char c)
{
    const char *at = c == '\0' ? NULL : strchr(digits, c);
    return at == NULL ? -1 : (int)(at - digits);
}

static char load_digit(uint64_t load, uint64_t total, size_t N)
{
    double tenths = total == 0 ? 0
                  : 10 * (double)load * (double)N / (double)total + 0.5;
    return digits[tenths < MOST_TENTHS ? (int)tenths : MOST_TENTHS];
}

/* A string a layer with experts, a digit an expert; modules last. */
static void add_loads(Text *t, const Trainer *trainer)
{
    const Config *c = &trainer->model.config;
    size_t N = c->n_routed_experts, n = 0;
    size_t layers = c->num_hidden_layers + c->num_nextn_predict_layers;
    text_printf(t, ", \"load\": [");
    for (size_t l = 0; l < layers; l++) {
        const uint64_t *load = trainer->load + l * N;
        uint64_t total = 0;
        if (!trainer->model.layers[l].is_moe)
            continue;
        for (size_t i = 0; i < N; i++)
            total += load[i];
        text_printf(t, n++ == 0 ? "\"" : ", \"");
        for (size_t i = 0; i < N; i++) {
            char digit = load_digit(load[i], total, N);
            text_add(t, &digit, 1);
        }
        text_printf(t, "\"");
    }
    text_printf(t, "]");
}

static void add_number(Text *t, const char *key, double x)
{
    text_printf(t, ", \"%s\": ", key);
    text_number(t, x);
}

double mean_mtp_loss(const Config *c, const LossSums *losses)
{
    size_t D = c->num_nextn_predict_layers;
    double sum = 0;
    for (size_t k = 0; k < D; k++)
        sum += losses->mtp[k];
    return D > 0 ? sum / (double)D : 0;
}

static double balance_loss(const LossSums *losses)
{
    double sum = 0;
    for (int i = 0; i < BALANCE_LOSSES; i++)
        sum += losses->balance[i];
    return sum;
}

/* Writes and empties the line. */
static int add_line(TrainLog *l, Text *t, Error *err)
{
    text_printf(t, "}\n");
    errno = 0;
    int failed = t->failed ? fail(err, "%s: out of memory", l->path)
               : fwrite(t->text, 1, t->length, l->stream) == t->length
                 && fflush(l->stream) == 0 ? 0
               : fail(err, "%s: cannot write: %s", l->path, strerror(errno));
    text_free(t);
    return failed;
}

int log_step(TrainLog *l, const Trainer *t, const StepReport *r,
             double seconds, Error *err)
{
    const Config *c = &t->model.config;
    Text line = {0};
    text_printf(&line, "{\"step\": %" PRIu64 ", \"tokens\": %" PRIu64
                ", \"sequences\": %zu", r->step, r->tokens, r->sequences);
    add_number(&line, "loss", r->losses.main);
    if (c->num_nextn_predict_layers > 0) {
        add_number(&line, "mtp_loss", mean_mtp_loss(c, &r->losses));
        add_number(&line, "lambda", r->lambda);
    }
    add_number(&line, "grad_norm", r->grad_norm);
    add_number(&line, "lr", r->lr);
    if (c->n_routed_experts > 0) {
        add_number(&line, "balance_loss", balance_loss(&r->losses));
        add_number(&line, "gamma", r->gamma);
        add_number(&line, "maxvio", r->max_violation);
        text_printf(&line, ", \"dropped\": %" PRIu64, r->losses.dropped);
        add_loads(&line, t);
    }
    text_printf(&line, ", \"seconds\": %.3f", seconds);
    return add_line(l, &line, err);
}

int log_eval(TrainLog *l, const Trainer *t, const LossSums *losses,
             uint64_t sequences, double bytes, double seconds, Error *err)
{
    const Config *c = &t->model.config;
    Text line = {0};
    text_printf(&line, "{\"step\": %" PRIu64 ", \"tokens\": %" PRIu64
                ", \"eval_sequences\": %" PRIu64, t->step, t->tokens,
                sequences);
    add_number(&line, "eval_loss", losses->main);
    if (c->num_nextn_predict_layers > 0)
        add_number(&line, "eval_mtp_loss", mean_mtp_loss(c, losses));
    if (bytes > 0)
        add_number(&line, "bits_per_byte",
                   losses->main / 0.6931471805599453 / bytes);
    text_printf(&line, ", \"seconds\": %.3f", seconds);
    return add_line(l, &line, err);
}

/* How many bytes of a log are lines of steps up to this one; -1: a line is
 * none of a log. */
static long kept(const char *text, size_t n, uint64_t step)
{
    static const char head[] = "{\"step\": ";
    size_t at = 0;
    while (at < n) {
        const char *line = text + at, *end = memchr(line, '\n', n - at);
        uint64_t number = 0;
        size_t i = sizeof head - 1;
        if (end == NULL)
            break;                  /* cut while it was written */
        if ((size_t)(end - line) <= i || memcmp(line, head, i) != 0
            || line[i] < '0' || line[i] > '9')
            return -1;
        for (; line[i] >= '0' && line[i] <= '9'; i++)
            number = 10 * number + (uint64_t)(line[i] - '0');
        if (number > step)
            break;
        at += (size_t)(end - line) + 1;
    }
    return (long)at;
}

static int cut_log(const char *path, uint64_t step, Error *err)
{
    File file;
    if (!path_exists(path))
        return 0;
    if (file_open(&file, path, err) != 0)
        return -1;
    long n = kept((const char *)file.data, file.size, step);
    int failed = 0;
    if (n < 0)
        failed = fail(err, "%s: wanted a run's log, an object a line that "
                      "begins with its step", path);
    else if ((size_t)n < file.size)
        failed = file_write(path, true, file.data, (size_t)n, err);
    file_close(&file);
    return failed;
}

int log_open(TrainLog *l, const char *run, uint64_t step, Error *err)
{
    l->path = path_join(run, "log.jsonl", err);
    if (l->path == NULL || cut_log(l->path, step, err) != 0)
        return -1;
    errno = 0;
    l->stream = fopen(l->path, "ab");
    if (l->stream == NULL)
        return fail(err, "%s: cannot write: %s", l->path, strerror(errno));
    return 0;
}

void log_close(TrainLog *l)
{
    if (l->stream != NULL)
        fclose(l->stream);
    free(l->path);
    *l = (TrainLog){0};
}

int log_sync(const TrainLog *l, Error *err)
{
    return file_sync(l->stream, l->path, err);
}
