/* plot.c: the command that draws how a training run went.
 *
 * RUN/log.jsonl is read twice: its numbers, then the loads of the experts, for
 * which the range of tokens has to be known. A long run is drawn by means over
 * neighbouring steps. */
#include "commands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../base/plot.h"

enum {
    MOST_POINTS = 400,       /* of a line */
    MOST_CELLS = 24000, MOST_COLUMNS = 200, LEAST_COLUMNS = 24
};

typedef enum {
    LOSS, MTP_LOSS, GRAD_NORM, MAXVIO, RATE, EVAL_LOSS, EVAL_MTP_LOSS, SERIES
} SeriesKind;

/* Key in the log, name in the picture. */
static const struct {
    const char *key, *name;
} series[SERIES] = {
    [LOSS] = {"loss", "loss"},
    [MTP_LOSS] = {"mtp_loss", "MTP loss"},
    [GRAD_NORM] = {"grad_norm", "norm"},
    [MAXVIO] = {"maxvio", "MaxVio"},
    [RATE] = {"lr", "learning rate"},
    [EVAL_LOSS] = {"eval_loss", "held-out loss"},
    [EVAL_MTP_LOSS] = {"eval_mtp_loss", "held-out MTP loss"},
};

/* One number over the tokens. */
typedef struct {
    double *x, *y;           /* (n) */
    size_t n, capacity;
} Points;

typedef struct {
    char *path;              /* of the log */
    Points points[SERIES];
    double last;             /* tokens of the last line of a step */
    size_t layers, N;        /* of the loads; 0: there are none */
    size_t columns;
    double *heat;            /* (layers, N, columns) */
    double *count;           /* (columns) lines in each */
    bool second;             /* the second reading */
} History;

static void close_history(History *h)
{
    for (int i = 0; i < SERIES; i++) {
        free(h->points[i].x);
        free(h->points[i].y);
    }
    free(h->heat);
    free(h->count);
    free(h->path);
}

/* Reading ----------------------------------------------------------------- */

static int grow(Points *p, Error *err)
{
    size_t capacity = 2 * p->capacity + 64;
    double *x = realloc(p->x, capacity * sizeof *x);
    if (x != NULL)
        p->x = x;
    double *y = realloc(p->y, capacity * sizeof *y);
    if (y != NULL)
        p->y = y;
    if (x == NULL || y == NULL)
        return fail(err, "not enough memory for the log");
    p->capacity = capacity;
    return 0;
}

static int add_point(Points *p, double x, double y, Error *err)
{
    if (p->n == p->capacity && grow(p, err) != 0)
        return -1;
    p->x[p->n] = x;
    p->y[p->n++] = y;
    return 0;
}

static int read_numbers(History *h, const Json *j, double tokens, Error *err)
{
    for (int i = 0; i < SERIES; i++) {
        const JsonNode *node = json_get(j, j->nodes, series[i].key);
        double y;
        if (node == NULL)
            continue;
        if (!json_number(j, node, &y))
            return fail(err, "%s: %s: wanted a number, found %s", j->name,
                        series[i].key, json_type_name(node));
        if (add_point(&h->points[i], tokens, y, err) != 0)
            return -1;
        if (i == LOSS)
            h->last = tokens > h->last ? tokens : h->last;
    }
    return 0;
}

static int wrong_loads(const Json *j, Error *err)
{
    return fail(err, "%s: load: wanted strings of tenths, as many and as long"
                " as in the first line", j->name);
}

static size_t column_of(const History *h, double tokens)
{
    double at = tokens / h->last * (double)h->columns;
    return at < 1 ? 0 : at >= (double)h->columns ? h->columns - 1
                                                 : (size_t)at;
}

/* A layer's digits: their number at first, then their sum by column. */
static int read_layer(History *h, const Json *j, const JsonNode *node,
                      size_t layer, size_t column, Error *err)
{
    if (json_type(node) != JSON_STRING || layer >= h->layers
        || node->length != h->N)
        return wrong_loads(j, err);
    for (size_t i = 0; i < h->N; i++) {
        int tenths = load_tenths(j->text[node->start + i]);
        if (tenths < 0)
            return wrong_loads(j, err);
        if (h->second)
            h->heat[(layer * h->N + i) * h->columns + column] += tenths;
    }
    return 0;
}

static int read_loads(History *h, const Json *j, double tokens, Error *err)
{
    const JsonNode *loads = json_get(j, j->nodes, "load"), *node;
    size_t layer = 0, column = h->second ? column_of(h, tokens) : 0;
    if (loads == NULL)
        return 0;
    if (json_type(loads) != JSON_ARRAY)
        return wrong_loads(j, err);
    node = json_first(j, loads);
    if (h->layers == 0 && node != NULL) {
        h->layers = loads->size;
        h->N = node->length;
    }
    for (; node != NULL; node = json_next(j, loads, node))
        if (read_layer(h, j, node, layer++, column, err) != 0)
            return -1;
    if (layer != h->layers)
        return wrong_loads(j, err);
    if (h->second)
        h->count[column] += 1;
    return 0;
}

static int read_line(History *h, const char *text, size_t n, size_t number,
                     Error *err)
{
    char name[200];
    Json j;
    double tokens;
    snprintf(name, sizeof name, "%.150s: line %zu", h->path, number);
    if (json_parse(&j, name, text, n, err) != 0)
        return -1;
    const JsonNode *node = json_get(&j, j.nodes, "tokens");
    int status = 0;
    if (node == NULL || !json_number(&j, node, &tokens) || !(tokens >= 1)
        || !(tokens < 1e18))
        status = fail(err, "%s: tokens: wanted a number from 1 on", name);
    else if (!h->second)
        status = read_numbers(h, &j, tokens, err);
    if (status == 0)
        status = read_loads(h, &j, tokens, err);
    json_free(&j);
    return status;
}

/* A last line without an end is still being written. */
static int read_lines(History *h, const File *file, Error *err)
{
    const char *at = (const char *)file->data, *end;
    size_t left = file->size, number = 0;
    while (left > 0 && (end = memchr(at, '\n', left)) != NULL) {
        size_t n = (size_t)(end - at);
        if (read_line(h, at, n, ++number, err) != 0)
            return -1;
        at += n + 1;
        left -= n + 1;
    }
    return 0;
}

static size_t between(size_t n, size_t low, size_t high)
{
    return n < low ? low : n > high ? high : n;
}

static int allocate_heat(History *h, Error *err)
{
    size_t rows = h->layers * h->N, n = h->points[LOSS].n;
    size_t most = between(rows > 0 ? MOST_CELLS / rows : 0, LEAST_COLUMNS,
                          MOST_COLUMNS);
    h->columns = n < most ? n : most;
    h->heat = allocate(rows, h->columns * sizeof *h->heat, "loads", err);
    h->count = allocate(h->columns, sizeof *h->count, "loads", err);
    return h->heat == NULL || h->count == NULL ? -1 : 0;
}

/* Sums to means over the mean load; a column without a line is as the one
 * before. */
static void finish_heat(History *h)
{
    for (size_t r = 0; r < h->layers * h->N; r++) {
        double *row = h->heat + r * h->columns;
        for (size_t c = 0; c < h->columns; c++)
            row[c] = h->count[c] > 0 ? row[c] / h->count[c] / 10
                   : c > 0 ? row[c - 1] : (double)NAN;
    }
}

static int read_log(History *h, const char *run, Error *err)
{
    File file;
    h->path = path_join(run, "log.jsonl", err);
    if (h->path == NULL || file_open(&file, h->path, err) != 0)
        return -1;
    int status = read_lines(h, &file, err);
    if (status == 0 && h->points[LOSS].n == 0)
        status = fail(err, "%s: wanted lines of steps, found none", h->path);
    if (status == 0)
        status = allocate_heat(h, err);
    h->second = true;
    if (status == 0)
        status = read_lines(h, &file, err);
    if (status == 0)
        finish_heat(h);
    file_close(&file);
    return status;
}

/* Drawing ----------------------------------------------------------------- */

/* Means over neighbours, so that no more than MOST_POINTS are left. */
static void thin(Points *p)
{
    size_t bins = p->n < MOST_POINTS ? p->n : MOST_POINTS;
    for (size_t b = 0; b < bins; b++) {
        size_t from = b * p->n / bins, to = (b + 1) * p->n / bins;
        double x = 0, y = 0;
        for (size_t i = from; i < to; i++) {
            x += p->x[i];
            y += p->y[i];
        }
        p->x[b] = x / (double)(to - from);
        p->y[b] = y / (double)(to - from);
    }
    p->n = bins;
}

/* A picture of those of the kinds that the log has. */
static void add_plot(PlotPage *page, History *h, const char *title, bool log,
                     const SeriesKind *kinds, size_t n)
{
    PlotLine lines[SERIES];
    Plot plot = {title, {"tokens", false}, {"", log}, lines, 0};
    for (size_t i = 0; i < n; i++) {
        Points *p = &h->points[kinds[i]];
        if (p->n == 0)
            continue;
        thin(p);
        bool held_out = kinds[i] == EVAL_LOSS || kinds[i] == EVAL_MTP_LOSS;
        lines[plot.n_lines++] = (PlotLine){series[kinds[i]].name, p->x, p->y,
                                           p->n, i % 2 + 1, held_out};
    }
    if (plot.n_lines > 0)
        page_add_plot(page, &plot);
}

static int add_heat(PlotPage *page, const History *h, Error *err)
{
    char (*texts)[24] = allocate(h->layers, sizeof *texts, "names", err);
    const char **names = allocate(h->layers, sizeof *names, "names", err);
    if (texts != NULL && names != NULL) {
        for (size_t l = 0; l < h->layers; l++) {
            snprintf(texts[l], sizeof *texts, "%zu", l + 1);
            names[l] = texts[l];
        }
        HeatMap map = {
            "load of each expert over the mean, by layer with experts",
            "tokens", 0, h->last, h->heat, h->layers * h->N, h->columns,
            names, h->layers, 0, 1, 3};
        page_add_heat(page, &map);
    }
    int status = texts == NULL || names == NULL ? -1 : 0;
    free(texts);
    free(names);
    return status;
}

static int draw(History *h, const Arguments *a, Error *err)
{
    static const SeriesKind losses[] = {LOSS, MTP_LOSS, EVAL_LOSS,
                                        EVAL_MTP_LOSS};
    static const SeriesKind norm[] = {GRAD_NORM}, rate[] = {RATE};
    static const SeriesKind violation[] = {MAXVIO};
    PlotPage page = {.title = "a training run"};
    int status = 0;
    add_plot(&page, h, "loss, nats a token", false, losses, 4);
    add_plot(&page, h, "norm of the gradient, before it is clipped", true,
             norm, 1);
    add_plot(&page, h, "learning rate", false, rate, 1);
    add_plot(&page, h, "MaxVio, the mean over the layers with experts", false,
             violation, 1);
    if (h->layers > 0 && h->N > 0)
        status = add_heat(&page, h, err);
    if (status == 0)
        status = page_write(&page, a->output, a->force, err);
    page_free(&page);
    return status;
}

int run_plot(const Arguments *a, Error *err)
{
    History h = {.layers = 0};
    int status = read_log(&h, a->line.operands[0], err);
    if (status == 0)
        status = draw(&h, a, err);
    close_history(&h);
    return status;
}
