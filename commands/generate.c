/* generate.c: the command that continues a text. */
#include "commands.h"

static int generate_prepare(Run *r, const Arguments *a, Error *err)
{
    if (run_open(r, a, err) != 0)
        return -1;
    if (!a->print_ids && want_tokenizer(r, ": add --print-ids", err) != 0)
        return -1;
    if (read_prompt(r, a, err) != 0 || set_sampling(r, a, err) != 0)
        return -1;
    return open_session(r, a, r->prompt.n + a->n, false, NULL, err);
}

static int generate_text(Run *r, const Arguments *a, Error *err)
{
    Printer p = {.tokenizer = a->print_ids ? NULL : r->tokenizer};
    GenerateStats stats = {0};
    int status = 0;
    for (size_t i = 0; i < r->prompt.n && status == 0; i++)
        if (!a->print_ids && !a->no_prompt)
            status = print_id(&p, r->prompt.ids[i], err);
    if (status == 0)
        status = print_generated(r, r->prompt.ids, r->prompt.n, a->n, &p,
                                 &stats, err);
    printer_close(&p);
    if (status != 0)
        return -1;
    print_stats(r, &stats, was_interrupted() ? "; interrupted"
                           : !stats.stopped && stats.new_tokens < a->n
                           ? "; the context is full" : "");
    return was_interrupted() ? 1 : 0;
}

int run_generate(const Arguments *a, Error *err)
{
    Run r = {0};
    int status = generate_prepare(&r, a, err);
    if (status == 0)
        status = generate_text(&r, a, err);
    run_close(&r);
    return status;
}
