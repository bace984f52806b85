/* trace.c: values are spooled as they come, sorted out by name at the end.
 *
 * Chunks of a prefill interleave: the spool holds q, k, q, k, … and each name
 * has a list of its pieces. At the end the spool is mapped and the pieces of
 * each name, in order, become one tensor; names in the order in which they were
 * first seen. The spool lies beside the target, where there is room for as
 * much again, and where an unwritable place shows before the work is done. */
#include "trace.h"

#include "file.h"
#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t offset, elements; /* in the spool */
} Piece;

typedef struct {
    StSpec spec; /* shape[0] grows */
    char *name;
    Piece *pieces;
    size_t n_pieces, capacity;
} Stage;

struct Trace {
    TraceSink *sink;   /* or NULL: a file, and all of the following */
    void *context;
    char *path, *only; /* only: NULL for all */
    bool force;
    OutFile spool;
    size_t size;       /* of the spool */
    Stage *stages;
    size_t n_stages, capacity;
    size_t expected;   /* the stage after the last: they come in turns */
    bool failed;
    Error err;         /* the first, where failed */
};

static char *copy(const char *text, Error *err)
{
    char *to = allocate(strlen(text) + 1, 1, text, err);
    return to != NULL ? strcpy(to, text) : NULL;
}

Trace *trace_open(const char *path, bool force, const char *only, Error *err)
{
    Trace *trace = allocate(1, sizeof *trace, "a trace", err);
    if (trace == NULL)
        return NULL;
    trace->force = force;
    trace->path = copy(path, err);
    trace->only = only != NULL ? copy(only, err) : NULL;
    if (trace->path == NULL || (only != NULL && trace->only == NULL)
        || out_open(&trace->spool, path, force, err) != 0) {
        trace_abort(trace);
        return NULL;
    }
    return trace;
}

Trace *trace_to(TraceSink *sink, void *context, const char *only, Error *err)
{
    Trace *trace = allocate(1, sizeof *trace, "a trace", err);
    if (trace == NULL)
        return NULL;
    trace->sink = sink;
    trace->context = context;
    trace->only = only != NULL ? copy(only, err) : NULL;
    if (only == NULL || trace->only != NULL)
        return trace;
    trace_abort(trace);
    return NULL;
}

static size_t digits(const char *s)
{
    return strspn(s, "0123456789");
}

/* On a mismatch the last '*' takes in one character more and all behind it is
 * tried again; earlier ones need not be touched. */
static bool matches(const char *pattern, const char *name)
{
    const char *star = NULL, *retry = NULL;
    while (*name != 0) {
        if (*pattern == '*') {
            star = ++pattern;
            retry = name;
        } else if (*pattern == '#' && digits(name) > 0) {
            pattern++;
            name += digits(name);
        } else if (*pattern == '?' || *pattern == *name) {
            pattern++;
            name++;
        } else if (star != NULL) {
            pattern = star;
            name = ++retry;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == 0;
}

bool trace_wants(const Trace *trace, const char *name)
{
    return trace != NULL
        && (trace->only == NULL || matches(trace->only, name));
}

static Stage *find_stage(Trace *trace, const char *name)
{
    for (size_t i = 0; i < trace->n_stages; i++) {
        size_t at = (trace->expected + i) % trace->n_stages;
        if (strcmp(trace->stages[at].name, name) == 0) {
            trace->expected = at + 1;
            return &trace->stages[at];
        }
    }
    return NULL;
}

/* Makes room for one element more than n. */
static void *room(void *array, size_t n, size_t *capacity, size_t size,
                  Error *err)
{
    if (n < *capacity)
        return array;
    size_t more = *capacity == 0 ? 16 : 2 * *capacity;
    void *larger = realloc(array, more * size);
    if (larger == NULL)
        fail(err, "not enough memory for a trace");
    else
        *capacity = more;
    return larger;
}

static Stage *new_stage(Trace *trace, const char *name, DType type, int rank,
                        const size_t *shape)
{
    Stage *stages = room(trace->stages, trace->n_stages, &trace->capacity,
                         sizeof *stages, &trace->err);
    if (stages == NULL)
        return NULL;
    trace->stages = stages;
    Stage *stage = &stages[trace->n_stages];
    *stage = (Stage){.name = copy(name, &trace->err)};
    if (stage->name == NULL)
        return NULL;
    stage->spec = (StSpec){.name = stage->name, .dtype = type, .rank = rank};
    memcpy(stage->spec.shape, shape, (size_t)rank * sizeof *shape);
    stage->spec.shape[0] = 0;
    trace->expected = ++trace->n_stages;
    return stage;
}

static int check_same(Trace *trace, const StSpec *spec, DType type, int rank,
                      const size_t *shape)
{
    bool same = spec->dtype == type && spec->rank == rank;
    for (int i = 1; same && i < rank; i++)
        same = spec->shape[i] == shape[i];
    if (same)
        return 0;
    return fail(&trace->err, "%s: tensor %.200s: traced with two shapes or "
                "types", trace->path, spec->name);
}

static int put_piece(Trace *trace, Stage *stage, const void *values,
                     const size_t *shape)
{
    size_t elements = shape[0];
    for (int i = 1; i < stage->spec.rank; i++)
        elements *= shape[i];
    size_t bytes = elements * dtype_size(stage->spec.dtype);
    Piece *pieces = room(stage->pieces, stage->n_pieces, &stage->capacity,
                         sizeof *pieces, &trace->err);
    if (pieces == NULL)
        return -1;
    stage->pieces = pieces;
    if (out_write(&trace->spool, values, bytes, &trace->err) != 0)
        return -1;
    pieces[stage->n_pieces++] = (Piece){trace->size, elements};
    stage->spec.shape[0] += shape[0];
    trace->size += bytes;
    return 0;
}

static int put(Trace *trace, const char *name, DType type, const void *values,
               int rank, const size_t *shape)
{
    if (trace->sink != NULL)
        return trace->sink(trace->context, name, type, values, rank, shape,
                           &trace->err);
    if (rank < 1 || rank > ST_MAX_RANK)
        return fail(&trace->err, "%s: tensor %.200s: wanted rank 1 to %d, got "
                    "%d", trace->path, name, ST_MAX_RANK, rank);
    Stage *stage = find_stage(trace, name);
    if (stage == NULL)
        stage = new_stage(trace, name, type, rank, shape);
    else if (check_same(trace, &stage->spec, type, rank, shape) != 0)
        return -1;
    return stage != NULL ? put_piece(trace, stage, values, shape) : -1;
}

void trace_put(Trace *trace, const char *name, DType type, const void *values,
               int rank, const size_t *shape)
{
    if (!trace_wants(trace, name) || trace->failed)
        return;
    trace->failed = put(trace, name, type, values, rank, shape) != 0;
}

typedef struct {
    const Trace *trace;
    const unsigned char *spool;
} Source;

static int fill_stage(void *context, size_t i, StSink *sink, Error *err)
{
    const Source *source = context;
    const Stage *stage = &source->trace->stages[i];
    for (size_t j = 0; j < stage->n_pieces; j++) {
        const Piece *piece = &stage->pieces[j];
        if (st_put(sink, source->spool + piece->offset, piece->elements, err)
            != 0)
            return -1;
    }
    return 0;
}

static int write_stages(const Trace *trace, const File *spool, Error *err)
{
    if (spool->size != trace->size)
        return fail(err, "%s: wanted %zu bytes, found %zu", trace->spool.temp,
                    trace->size, spool->size);
    size_t n = trace->n_stages;
    StSpec *specs = allocate(n, sizeof *specs, "a trace", err);
    if (specs == NULL)
        return -1;
    for (size_t i = 0; i < n; i++)
        specs[i] = trace->stages[i].spec;
    Source source = {trace, spool->data};
    int rc = st_write(trace->path, trace->force, specs, n, NULL, fill_stage,
                      &source, err);
    free(specs);
    return rc;
}

static int finish(Trace *trace, Error *err)
{
    File spool;
    if (trace->failed)
        return fail(err, "%s", trace->err.text);
    if (trace->sink != NULL)
        return 0;
    if (trace->only != NULL && trace->n_stages == 0)
        return fail(err, "%s: no stage has a name like %s", trace->path,
                    trace->only);
    if (out_flush(&trace->spool, err) != 0
        || file_open(&spool, trace->spool.temp, err) != 0)
        return -1;
    int rc = write_stages(trace, &spool, err);
    file_close(&spool);
    return rc;
}

int trace_close(Trace *trace, Error *err)
{
    int rc = finish(trace, err);
    trace_abort(trace);
    return rc;
}

void trace_abort(Trace *trace)
{
    if (trace == NULL)
        return;
    out_abort(&trace->spool);
    for (size_t i = 0; i < trace->n_stages; i++) {
        free(trace->stages[i].name);
        free(trace->stages[i].pieces);
    }
    free(trace->stages);
    free(trace->path);
    free(trace->only);
    free(trace);
}
