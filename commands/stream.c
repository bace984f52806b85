/* stream.c: how text is sampled and printed while it comes. */
#include "commands.h"

#include "../base/json.h"
#include "../base/os.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>

/* Interrupts ------------------------------------------------------------- */

/* What a signal handler may touch, and so the only global state. */
static volatile sig_atomic_t generating, interrupted;

/* The first ^C while text is coming, or steps of training, ends these; any
 * other signal ends the program as if there were no handler, but leaves no
 * half-written file. */
static void on_signal(int number)
{
    if (number == SIGINT && generating && !interrupted) {
        interrupted = 1;
        signal(number, on_signal);
        return;
    }
    file_remove_temps();
    signal(number, SIG_DFL);
    raise(number);
}

/* A signal that the caller had ignored stays ignored: nohup, a shell's '&'. */
static void handle(int number)
{
    if (signal(number, on_signal) == SIG_IGN)
        signal(number, SIG_IGN);
}

void handle_signals(void)
{
    handle(SIGINT);
    handle(SIGTERM);
#ifdef SIGHUP
    handle(SIGHUP);
#endif
#ifdef SIGPIPE
    signal(SIGPIPE, SIG_IGN); /* a closed stdout is a write error */
#endif
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN); /* so is a file that may not grow */
#endif
    file_guard_mapped();
}

void note_interrupts(bool note)
{
    interrupted = 0;
    generating = note;
}

bool was_interrupted(void)
{
    return interrupted != 0;
}

/* How to sample ----------------------------------------------------------- */

static void add_stop(Run *r, int64_t id)
{
    if (id >= 0 && id <= INT32_MAX && r->generate.n_stop < MAX_STOP)
        r->stop[r->generate.n_stop++] = (int32_t)id;
}

static int stop_key(Run *r, const Json *j, const JsonNode *value, Error *err)
{
    bool list = json_type(value) == JSON_ARRAY;
    const JsonNode *id = list ? json_first(j, value) : value;
    for (; id != NULL; id = list ? json_next(j, value, id) : NULL) {
        int64_t number;
        if (!json_integer(j, id, 0, INT32_MAX, &number))
            return fail(err, "%s: eos_token_id: wanted ids, found %s", j->name,
                        json_type_name(id));
        add_stop(r, number);
    }
    return 0;
}

/* A key of generation_config.json into *value, where it is there. */
static int number_key(const Json *j, const char *key, double low, double high,
                      double *value, Error *err)
{
    const JsonNode *node = json_get(j, j->nodes, key);
    double x;
    if (node == NULL || json_type(node) == JSON_NULL)
        return 0;
    if (!json_number(j, node, &x) || !(x >= low && x <= high))
        return fail(err, "%s: %s: wanted a number from %g to %g, found %.*s",
                    j->name, key, low, high,
                    (int)(node->length < 40 ? node->length : 40),
                    j->text + node->start);
    *value = x;
    return 0;
}

/* As transformers reads it: without do_sample the rest is not used. */
static int generation_keys(Run *r, const Json *j, Error *err)
{
    const JsonNode *eos = json_get(j, j->nodes, "eos_token_id");
    const JsonNode *sample = json_get(j, j->nodes, "do_sample");
    double temperature = 1, top_k = 0, top_p = 1;
    if (eos != NULL && json_type(eos) != JSON_NULL &&
        stop_key(r, j, eos, err) != 0)
        return -1;
    if (sample == NULL || json_type(sample) != JSON_TRUE)
        return 0;
    if (number_key(j, "temperature", 0, 100, &temperature, err) != 0 ||
        number_key(j, "top_k", 0, 1e9, &top_k, err) != 0 ||
        number_key(j, "top_p", 0, 1, &top_p, err) != 0)
        return -1;
    r->generate.sampler = (Sampler){(float)temperature, (size_t)top_k,
                                    (float)top_p};
    return 0;
}

static int read_generation_config(Run *r, Error *err)
{
    char *path = path_join(r->dir, "generation_config.json", err);
    File file = {0};
    Json json = {0};
    if (path == NULL)
        return -1;
    if (!path_exists(path)) {
        free(path);
        return 0;
    }
    int status = file_open(&file, path, err);
    if (status == 0)
        status = json_parse(&json, path, (const char *)file.data, file.size,
                            err);
    if (status == 0)
        status = generation_keys(r, &json, err);
    json_free(&json);
    file_close(&file);
    free(path);
    return status;
}

int set_sampling(Run *r, const Arguments *a, Error *err)
{
    const Config *c = &r->model.config;
    GenerateOptions *g = &r->generate;
    Sampler *s = &g->sampler;
    *g = (GenerateOptions){.seed = a->seed, .stop = r->stop,
                           .vocabulary = c->vocab_size};
    s->top_p = 1;
    if (read_generation_config(r, err) != 0)
        return -1;
    if (given(a, O_TEMP))
        s->temperature = (float)a->temperature;
    else if ((given(a, O_TOP_K) || given(a, O_TOP_P)) && s->temperature <= 0)
        s->temperature = 1;
    if (given(a, O_TOP_K))
        s->top_k = a->top_k;
    if (given(a, O_TOP_P))
        s->top_p = (float)a->top_p;
    for (size_t i = 0; i < c->n_eos; i++)
        add_stop(r, c->eos_token_id[i]);
    if (r->tokenizer == NULL)
        return 0;
    add_stop(r, tokenizer_eos(r->tokenizer));
    if (tokenizer_size(r->tokenizer) < g->vocabulary)
        g->vocabulary = tokenizer_size(r->tokenizer);
    return 0;
}

/* Text as it comes --------------------------------------------------------- */

void printer_close(Printer *p)
{
    text_free(&p->text);
    text_free(&p->all);
    ids_free(&p->ids);
}

static int printer_write(Printer *p, Error *err)
{
    if (p->keep && p->text.length > 0)
        text_add(&p->all, p->text.text, p->text.length);
    return print_text(&p->text, err);
}

int print_id(Printer *p, int32_t id, Error *err)
{
    const char *bytes;
    size_t n;
    if (p->tokenizer == NULL)
        text_printf(&p->text, p->begun ? " %" PRId32 : "%" PRId32, id);
    else if (tokenizer_decode(p->tokenizer, id, true, &bytes, &n))
        utf8_stream(&p->stream, bytes, n, false, &p->text);
    p->begun = true;
    if (p->keep && ids_add(&p->ids, id, err) != 0)
        return -1;
    return printer_write(p, err);
}

static int print_end(Printer *p, Error *err)
{
    if (p->tokenizer != NULL)
        utf8_stream(&p->stream, NULL, 0, true, &p->text);
    int status = printer_write(p, err);
    text_add(&p->text, "\n", 1);
    return status != 0 ? status : print_text(&p->text, err);
}

static int sink(void *printer, int32_t id, Error *err)
{
    generating = 1;
    return print_id(printer, id, err) != 0 ? -1 : interrupted;
}

int print_generated(Run *r, const int32_t *ids, size_t n, size_t most,
                    Printer *p, GenerateStats *stats, Error *err)
{
    r->generate.n = most;
    interrupted = 0;
    int status = r->mtp.session == NULL
        ? generate(&r->session, ids, n, &r->generate, sink, p, stats, err)
        : mtp_generate(&r->mtp, ids, n, &r->generate, sink, p, stats,
                       &r->drafted, err);
    generating = 0;
    if (status == 0)
        status = print_end(p, err);
    return status != 0 ? status : file_check_mapped(err);
}

static double rate(size_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

void print_stats(const Run *r, const GenerateStats *s, const char *remark)
{
    fprintf(stderr, "prompt: %zu tokens, %.1f tok/s; new: %zu tokens, %.1f "
            "tok/s; peak memory %.1f MB%s\n", s->prompt_tokens,
            rate(s->prompt_tokens, s->prompt_seconds), s->new_tokens,
            rate(s->new_tokens, s->decode_seconds),
            (double)os_peak_memory() / 1e6, remark);
    if (r->mtp.session != NULL)
        print_drafts(r, s);
}
