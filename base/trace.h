/* trace.h: intermediates, by name, into a safetensors file or to a function.
 *
 * Values are spooled to a temporary file as they come; trace_close writes the
 * result. A tensor named again grows by rows: chunks of a prefill end up as
 * one tensor. Off (a NULL Trace), a call costs one branch. */
#ifndef BASE_TRACE_H
#define BASE_TRACE_H

#include "dtype.h"
#include "error.h"

#include <stdbool.h>

typedef struct Trace Trace;

/* only: a pattern ('*' any run, '?' one character, '#' a run of digits) that
 * names must match; NULL for all. */
Trace *trace_open(const char *path, bool force, const char *only, Error *err);
/* What trace_put is given goes to a function, as it comes, and to no file. */
typedef int TraceSink(void *context, const char *name, DType type,
                      const void *values, int rank, const size_t *shape,
                      Error *err);
Trace *trace_to(TraceSink *sink, void *context, const char *only, Error *err);
/* True where a tensor of this name is wanted: ask before computing extra. */
bool trace_wants(const Trace *trace, const char *name);
/* type: DT_F32 or DT_I32; shape[0] rows. The first error is kept until
 * trace_close. */
void trace_put(Trace *trace, const char *name, DType type, const void *values,
               int rank, const size_t *shape);
/* Writes the file, or says which put failed; frees the trace. */
int trace_close(Trace *trace, Error *err);
/* Frees the trace and writes nothing. */
void trace_abort(Trace *trace);

#endif
