/* run.c: what several commands need: input, a model, a prompt, a session. */
#include "commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

bool given(const Arguments *a, size_t option)
{
    return option_given(&a->line, option);
}

/* Input and output ------------------------------------------------------- */

int flush_stdout(Error *err)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    return fail(err, "cannot write to standard output: %s", strerror(errno));
}

int print_text(Text *t, Error *err)
{
    if (t->failed)
        return fail(err, "not enough memory for the output");
    if (t->length > 0)
        fwrite(t->text, 1, t->length, stdout);
    t->length = 0;
    return flush_stdout(err);
}

void add_count(Text *t, uint64_t n, int width)
{
    char digits[32], out[48];
    size_t length = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, n);
    size_t to = 0;
    for (size_t i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            out[to++] = ',';
        out[to++] = digits[i];
    }
    out[to] = '\0';
    text_printf(t, "%*s", width, out);
}

static int read_stdin(Text *t, Error *err)
{
    char buffer[1 << 14];
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0)
        text_add(t, buffer, n);
    if (ferror(stdin))
        return fail(err, "cannot read standard input: %s", strerror(errno));
    return t->failed ? fail(err, "not enough memory for the input") : 0;
}

int read_input(Text *t, const char *path, Error *err)
{
    File file;
    if (path == NULL || strcmp(path, "-") == 0)
        return read_stdin(t, err);
    if (file_open(&file, path, err) != 0)
        return -1;
    text_add(t, (const char *)file.data, file.size);
    file_close(&file);
    return t->failed ? fail(err, "not enough memory for %s", path) : 0;
}

int parse_ids(IdList *list, const char *text, Error *err)
{
    for (;;) {
        text += strspn(text, ", \t\r\n[]");
        if (*text == '\0')
            return 0;
        size_t n = strcspn(text, ", \t\r\n[]");
        errno = 0;
        char *end;
        long id = strtol(text, &end, 10);
        if (end != text + n || errno != 0 || id < 0 || id > INT32_MAX)
            return fail(err, "an id is a whole number from 0 to %" PRId32
                        ", not '%.*s'", INT32_MAX, (int)(n < 40 ? n : 40),
                        text);
        if (ids_add(list, (int32_t)id, err) != 0)
            return -1;
        text = end;
    }
}

int read_text(const Run *r, const char *path, IdList *ids, size_t *bytes,
              Error *err)
{
    Text text = {0};
    Error inner;
    int status = read_input(&text, path, err);
    if (status == 0 && text.length == 0)
        status = fail(err, "%s is empty", path);
    if (status == 0 && tokenizer_encode(r->tokenizer, text.text, text.length,
                                        ids, &inner) != 0)
        status = fail(err, "%s: %s", path, inner.text);
    *bytes = text.length;
    text_free(&text);
    return status;
}

/* A model, its tokenizer and what it is to run ---------------------------- */

void run_close(Run *r)
{
    mtp_close(&r->mtp);
    if (r->has_session)
        session_close(&r->session);
    ids_free(&r->prompt);
    if (r->tokenizer != NULL)
        tokenizer_close(r->tokenizer);
    if (r->has_model)
        model_close(&r->model);
}

int dir_has(const char *dir, const char *name, Error *err)
{
    char *path = path_join(dir, name, err);
    int has = path == NULL ? -1 : path_exists(path);
    free(path);
    return has;
}

static int open_tokenizer(Run *r, const char *dir, Error *err)
{
    int has = dir_has(dir, "tokenizer.json", err);
    if (has <= 0)
        return has;
    r->tokenizer = tokenizer_open(dir, err);
    return r->tokenizer == NULL ? -1 : 0;
}

static int set_readings(Config *c, const Arguments *a, Error *err)
{
    for (size_t i = 0; i < a->readings.n; i++)
        if (config_reading(c, a->readings.text[i], err) != 0)
            return -1;
    return 0;
}

int run_open(Run *r, const Arguments *a, Error *err)
{
    r->dir = a->line.operands[0];
    if (model_open(&r->model, r->dir, err) != 0)
        return -1;
    r->has_model = true;
    if (set_readings(&r->model.config, a, err) != 0)
        return -1;
    return open_tokenizer(r, r->dir, err);
}

int want_tokenizer(const Run *r, const char *instead, Error *err)
{
    if (r->tokenizer != NULL)
        return 0;
    return fail(err, "%s has no tokenizer.json%s", r->dir, instead);
}

int32_t first_id(const Tokenizer *t)
{
    return tokenizer_add_bos(t) ? tokenizer_bos(t) : -1;
}

static int encode_prompt(Run *r, const char *prompt, Error *err)
{
    Text text = {0};
    int32_t bos = first_id(r->tokenizer);
    int status = 0;
    if (strcmp(prompt, "-") == 0)
        status = read_stdin(&text, err);
    else
        text_add(&text, prompt, strlen(prompt));
    if (status == 0 && bos >= 0)
        status = ids_add(&r->prompt, bos, err);
    if (status == 0)
        status = tokenizer_encode(r->tokenizer, text.length ? text.text : "",
                                  text.length, &r->prompt, err);
    text_free(&text);
    return status;
}

int read_prompt(Run *r, const Arguments *a, Error *err)
{
    if (a->ids != NULL)
        return parse_ids(&r->prompt, a->ids, err);
    if (want_tokenizer(r, ": give --ids instead of -p", err) != 0 ||
        encode_prompt(r, a->prompt, err) != 0)
        return -1;
    return r->prompt.n > 0 ? 0 : fail(err, "the prompt is empty");
}

size_t context(const Config *c, const Arguments *a, size_t tokens,
               size_t least)
{
    size_t ctx = tokens > least ? tokens : least;
    if (a->ctx > 0)
        return a->ctx;
    return ctx < c->max_position_embeddings ? ctx : c->max_position_embeddings;
}

int open_session(Run *r, const Arguments *a, size_t tokens, bool all_logits,
                 Trace *trace, Error *err)
{
    SessionOptions o = {
        .ctx = context(&r->model.config, a, tokens,
                       trace == NULL ? DEFAULT_CTX : 1),
        .chunk = a->chunk,
        .naive = a->mla == 1 || (a->fp8 == 1 && !given(a, O_MLA)),
        .fp8 = a->fp8 == 1,
        .logit_rows = all_logits ? SIZE_MAX : 1,
        .modules = trace != NULL && all_logits ? r->model.n_mtp : 0,
        .trace = trace
    };
    if (a->draft_best && a->draft == 0)
        return fail(err, "--draft-best: wanted --draft too");
    if (a->draft > 0 && mtp_options(&o, &r->model, a->draft, err) != 0)
        return -1;
    if (session_open(&r->session, &r->model, &o, err) != 0)
        return -1;
    r->has_session = true;
    return o.modules == 0 ? 0 : mtp_open(&r->mtp, &r->session, a->draft,
                                         a->draft_best, err);
}

size_t run_rewind(Run *r, size_t pos)
{
    if (r->mtp.session != NULL)
        return mtp_rewind(&r->mtp, pos);
    session_rewind(&r->session, pos);
    return r->session.pos;
}

DType checkpoint_dtype(const Config *c)
{
    return c->fp8 ? DT_F8_E4M3 : c->torch_dtype;
}
