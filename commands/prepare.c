/* prepare.c: the command from documents to a data file. */
#include "commands.h"

#include "../base/os.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Held-out documents ------------------------------------------------------ */

/* How many --held-out says, if it says so of this file. */
static bool held_out_of(const char *text, const char *path, size_t *n)
{
    const char *number = strrchr(text, '=');
    size_t length = number == NULL ? 0 : (size_t)(number - text);
    number = number == NULL ? text : number + 1;
    if (number > text
        && (strlen(path) != length || memcmp(path, text, length) != 0))
        return false;
    *n = (size_t)strtoull(number, NULL, 10);
    return true;
}

static bool is_operand(const Arguments *a, const char *text)
{
    size_t n;
    for (size_t i = 1; i < a->line.n_operands; i++) {
        if (held_out_of(text, a->line.operands[i], &n))
            return true;
    }
    return false;
}

static int check_held_out(const Arguments *a, Error *err)
{
    if (a->only_held_out && a->held_out.n == 0)
        return fail(err, "--only-held-out wants --held-out");
    for (size_t i = 0; i < a->held_out.n; i++) {
        const char *text = a->held_out.text[i], *equals = strrchr(text, '=');
        const char *number = equals == NULL ? text : equals + 1;
        size_t digits = strspn(number, "0123456789");
        if (digits == 0 || digits > 9 || number[digits] != '\0')
            return fail(err, "--held-out %s: wanted N or FILE=N, N up to "
                        "999999999", text);
        if (!is_operand(a, text))
            return fail(err, "--held-out %s: no such FILE is given", text);
    }
    return 0;
}

/* The last of the options that speak of a file counts. */
static size_t held_out(const Arguments *a, const char *path)
{
    size_t n = 0;
    for (size_t i = 0; i < a->held_out.n; i++)
        held_out_of(a->held_out.text[i], path, &n);
    return n;
}

static size_t count_documents(Documents d)
{
    const char *text;
    size_t n, count = 0;
    while (documents_next(&d, &text, &n))
        count++;
    return count;
}

/* The documents first … stop - 1 of a file are to be written. */
static int choose(const Arguments *a, const char *path, Documents d,
                  size_t *first, size_t *stop, Error *err)
{
    size_t held = held_out(a, path), n;
    *first = 0;
    *stop = SIZE_MAX;
    if (a->held_out.n == 0)
        return 0;
    n = count_documents(d);
    if (held > n)
        return fail(err, "%s: wanted at least the %zu documents to hold out, "
                    "found %zu", path, held, n);
    *stop = n - held;
    if (a->only_held_out) {
        *first = *stop;
        *stop = n;
    }
    return 0;
}

/* Writing ----------------------------------------------------------------- */

typedef struct {
    DataWriter writer;
    uint64_t left_out;       /* documents not chosen */
} Prepare;

static int add_documents(Prepare *p, const Arguments *a, const char *path,
                         Documents d, Error *err)
{
    Progress progress;
    const char *start = d.at, *text;
    size_t n, first, stop;
    int status = choose(a, path, d, &first, &stop, err);
    progress_begin(&progress, path);
    for (size_t i = 0; status == 0 && documents_next(&d, &text, &n); i++) {
        Error inner;
        if (i < first || i >= stop)
            p->left_out++;
        else if (data_add(&p->writer, text, n, &inner) != 0)
            status = fail(err, "%s: document %zu, at offset %zu: %s", path,
                          i + 1, (size_t)(text - start), inner.text);
        progress_show(&progress, (double)(d.at - start),
                      (double)(d.end - start));
    }
    progress_end(&progress);
    return status;
}

static int add_files(Prepare *p, const Arguments *a, Error *err)
{
    for (size_t i = 1; i < a->line.n_operands; i++) {
        const char *path = a->line.operands[i];
        File file;
        if (file_open(&file, path, err) != 0)
            return -1;
        const char *text = (const char *)file.data;
        Documents d = {text, text + file.size, a->separator};
        int status = add_documents(p, a, path, d, err);
        file_close(&file);
        if (status != 0)
            return -1;
    }
    return 0;
}

static int print_result(const Prepare *p, const Arguments *a, Error *err)
{
    Text t = {0};
    const DataInfo *i = &p->writer.info;
    const char *form = a->json
        ? "{\"documents\": %" PRIu64 ", \"left_out\": %" PRIu64
          ", \"bytes\": %" PRIu64 ", \"tokens\": %" PRIu64
          ", \"bytes_per_token\": %.9g, \"fim_documents\": %" PRIu64
          ", \"splits\": %" PRIu64 ", \"vocab_size\": %zu, "
          "\"tokenizer_hash\": \"%016" PRIx64 "\"}\n"
        : "documents        %12" PRIu64 "\nleft out         %12" PRIu64
          "\nbytes            %12" PRIu64 "\ntokens           %12" PRIu64
          "\nbytes per token  %12.4f\nFIM documents    %12" PRIu64
          "\nsplit tokens     %12" PRIu64 "\nvocabulary       %12zu\n"
          "tokenizer        %016" PRIx64 "\n";
    text_printf(&t, form, i->documents, p->left_out, i->bytes, i->tokens,
                (double)i->bytes / (double)i->tokens, i->fim_documents,
                i->splits, i->vocab_size, i->tokenizer_hash);
    int status = print_text(&t, err);
    text_free(&t);
    return status;
}

static int prepare(const Arguments *a, const Tokenizer *t, Error *err)
{
    Prepare p = {.left_out = 0};
    DataSettings settings = {a->fim, a->split, a->seed};
    Error inner;
    uint64_t hash;
    if (tokenizer_hash(a->line.operands[0], &hash, err) != 0)
        return -1;
    if (data_create(&p.writer, a->output, a->force, t, hash, &settings,
                    &inner) != 0)
        return fail(err, "%s", inner.text);
    int status = add_files(&p, a, err);
    if (status == 0)
        status = data_commit(&p.writer, err);
    data_abort(&p.writer);
    return status == 0 ? print_result(&p, a, err) : -1;
}

int run_prepare(const Arguments *a, Error *err)
{
    if (check_held_out(a, err) != 0)
        return -1;
    Tokenizer *t = tokenizer_open(a->line.operands[0], err);
    int status = t == NULL ? -1 : prepare(a, t, err);
    if (t != NULL)
        tokenizer_close(t);
    return status;
}
