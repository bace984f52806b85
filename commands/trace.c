/* trace.c: the command that writes every intermediate value to a file. */
#include "commands.h"

static int trace_run(Run *r, const Arguments *a, Trace *trace, Error *err)
{
    if (open_session(r, a, r->prompt.n, true, trace, err) != 0)
        return -1;
    int status = r->mtp.session == NULL
        ? session_forward(&r->session, r->prompt.ids, r->prompt.n, "trace",
                          err)
        : mtp_prompt(&r->mtp, r->prompt.ids, r->prompt.n, "trace", err);
    return status != 0 ? -1 : file_check_mapped(err);
}

int run_trace(const Arguments *a, Error *err)
{
    Run r = {0};
    Trace *trace = NULL;
    int status = run_open(&r, a, err);
    if (status == 0)
        status = read_prompt(&r, a, err);
    if (status == 0) {
        trace = trace_open(a->output, a->force, a->only, err);
        status = trace == NULL ? -1 : trace_run(&r, a, trace, err);
    }
    if (status == 0)
        status = trace_close(trace, err);
    else if (trace != NULL)
        trace_abort(trace);
    run_close(&r);
    return status;
}
