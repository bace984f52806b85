/* eval.c: the command that measures how well a model predicts files. */
#include "commands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Disjoint windows of ctx tokens. Each begins with BOS, and every token of the
 * text is predicted once; without a BOS each window begins with the token
 * before it, and the first token of all is not predicted. */
int score_ids(Run *r, const IdList *ids, const char *path, Score *s,
              Error *err)
{
    size_t ctx = r->session.options.ctx;
    int32_t bos = first_id(r->tokenizer);
    size_t i = bos < 0, windows = (ids->n + ctx - 1) / (ctx - 1);
    int32_t *window = allocate(ctx, sizeof *window, "a window", err);
    int status = window == NULL ? -1 : 0;
    for (size_t w = 1; status == 0 && i < ids->n; w++) {
        size_t n = ids->n - i < ctx - 1 ? ids->n - i : ctx - 1;
        double nats = 0;
        char what[80];
        window[0] = bos < 0 ? ids->ids[i - 1] : bos;
        memcpy(window + 1, ids->ids + i, n * sizeof *window);
        snprintf(what, sizeof what, "%.40s, window %zu of %zu,", path, w,
                 windows);
        session_rewind(&r->session, 0);
        status = session_nll(&r->session, window, n + 1, &nats, what, err);
        s->nats += nats;
        s->tokens += n;
        i += n;
    }
    free(window);
    return status == 0 ? file_check_mapped(err) : -1;
}

static int score_file(Run *r, const char *path, Score *s, Error *err)
{
    IdList ids = {0};
    int status = read_text(r, path, &ids, &s->bytes, err);
    if (status == 0)
        status = score_ids(r, &ids, path, s, err);
    ids_free(&ids);
    return status;
}

static double per_token(const Score *s)
{
    return s->tokens > 0 ? s->nats / (double)s->tokens : 0;
}

static double per_byte(const Score *s)
{
    return s->bytes > 0 ? s->nats / log(2) / (double)s->bytes : 0;
}

static void add_score(Text *t, const Score *s, const char *name, bool json)
{
    if (!json) {
        text_printf(t, "%12zu %12zu %12.6f %12.4f %12.6f  %s\n", s->bytes,
                    s->tokens, per_token(s), exp(per_token(s)), per_byte(s),
                    name);
        return;
    }
    text_printf(t, "{\"name\": ");
    text_json_string(t, name, strlen(name), false);
    text_printf(t, ", \"bytes\": %zu, \"tokens\": %zu, \"nats_per_token\": "
                "%.9g, \"perplexity\": %.9g, \"bits_per_byte\": %.9g}",
                s->bytes, s->tokens, per_token(s), exp(per_token(s)),
                per_byte(s));
}

static int eval_files(Run *r, const Arguments *a, Text *t, Error *err)
{
    Score total = {0};
    for (size_t i = 1; i < a->line.n_operands; i++) {
        Score s = {0};
        if (score_file(r, a->line.operands[i], &s, err) != 0)
            return -1;
        add_score(t, &s, a->line.operands[i], a->json);
        text_printf(t, a->json ? ", " : "");
        total.bytes += s.bytes;
        total.tokens += s.tokens;
        total.nats += s.nats;
        if (!a->json && print_text(t, err) != 0)
            return -1;
    }
    if (a->json || a->line.n_operands > 2)
        add_score(t, &total, "total", a->json);
    return 0;
}

static int eval_print(Run *r, const Arguments *a, Error *err)
{
    Text t = {0};
    if (a->json)
        text_printf(&t, "[");
    else
        text_printf(&t, "%12s %12s %12s %12s %12s\n", "bytes", "tokens",
                    "nats/token", "perplexity", "bits/byte");
    int status = eval_files(r, a, &t, err);
    if (a->json)
        text_printf(&t, "]\n");
    if (status == 0)
        status = print_text(&t, err);
    text_free(&t);
    return status;
}

int run_eval(const Arguments *a, Error *err)
{
    Run r = {0};
    int status = run_open(&r, a, err);
    if (status == 0)
        status = want_tokenizer(&r, "", err);
    if (status == 0)
        status = open_session(&r, a, 0, true, NULL, err);
    if (status == 0)
        status = eval_print(&r, a, err);
    run_close(&r);
    return status;
}
