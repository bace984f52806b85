/* tokenize.c: the command between text and ids. */
#include "commands.h"

#include "../base/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int encode_text(const Arguments *a, const Tokenizer *t,
                       const char *text, size_t n, IdList *ids, Error *err)
{
    if (a->bos && tokenizer_bos(t) < 0)
        return fail(err, "%s: the tokenizer has no BOS",
                    a->line.operands[0]);
    if (a->bos && ids_add(ids, tokenizer_bos(t), err) != 0)
        return -1;
    return tokenizer_encode(t, text, n, ids, err);
}

static int decode_ids(const Tokenizer *t, const IdList *ids, Text *out,
                      Error *err)
{
    for (size_t i = 0; i < ids->n; i++) {
        const char *bytes;
        size_t n;
        if (!tokenizer_decode(t, ids->ids[i], false, &bytes, &n))
            return fail(err, "no token has the id %" PRId32, ids->ids[i]);
        text_add(out, bytes, n);
    }
    return 0;
}

static void add_ids(Text *t, const IdList *ids, const char *between)
{
    for (size_t i = 0; i < ids->n; i++)
        text_printf(t, "%s%" PRId32, i > 0 ? between : "", ids->ids[i]);
}

/* The whole input is one text, or with --decode the ids of one. */
static int tokenize_whole(const Arguments *a, const Tokenizer *t,
                          const char *text, size_t n, Text *out, Error *err)
{
    IdList ids = {0};
    int status = a->decode ? parse_ids(&ids, text, err)
                           : encode_text(a, t, text, n, &ids, err);
    if (status == 0 && a->decode) {
        status = decode_ids(t, &ids, out, err);
    } else if (status == 0) {
        add_ids(out, &ids, " ");
        text_add(out, "\n", 1);
    }
    ids_free(&ids);
    return status;
}

static int json_ids(const Json *j, IdList *ids, Error *err)
{
    const JsonNode *list = json_get(j, j->nodes, "ids");
    if (list == NULL || json_type(list) != JSON_ARRAY)
        return fail(err, "%s: wanted an object with an array \"ids\"",
                    j->name);
    for (const JsonNode *e = json_first(j, list); e != NULL;
         e = json_next(j, list, e)) {
        int64_t id;
        if (!json_integer(j, e, 0, INT32_MAX, &id))
            return fail(err, "%s: ids: an id is a whole number from 0 to %"
                        PRId32, j->name, INT32_MAX);
        if (ids_add(ids, (int32_t)id, err) != 0)
            return -1;
    }
    return 0;
}

static int json_encode(const Arguments *a, const Tokenizer *t, const Json *j,
                       IdList *ids, Error *err)
{
    size_t n;
    const JsonNode *node = json_get(j, j->nodes, "text");
    if (node == NULL || json_type(node) != JSON_STRING)
        return fail(err, "%s: wanted an object with a string \"text\"",
                    j->name);
    char *text = json_string_dup(j, node, "text", &n, err);
    int status = text == NULL ? -1 : encode_text(a, t, text, n, ids, err);
    free(text);
    return status;
}

static int tokenize_object(const Arguments *a, const Tokenizer *t,
                           const Json *j, Text *out, Error *err)
{
    IdList ids = {0};
    Text text = {0};
    int status = a->decode ? json_ids(j, &ids, err)
                           : json_encode(a, t, j, &ids, err);
    if (status == 0 && a->decode) {
        status = decode_ids(t, &ids, &text, err);
        text_json_string(out, text.length ? text.text : "", text.length,
                         false);
    } else if (status == 0) {
        text_add(out, "[", 1);
        add_ids(out, &ids, ", ");
        text_add(out, "]", 1);
    }
    text_add(out, "\n", 1);
    out->failed |= text.failed;
    text_free(&text);
    ids_free(&ids);
    return status;
}

/* An object a line in, an array or a string a line out; blank lines are
 * passed over. */
static int tokenize_lines(const Arguments *a, const Tokenizer *t,
                          const char *text, size_t n, Text *out, Error *err)
{
    const char *end = text + n;
    for (size_t number = 1; text < end; number++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        size_t length = (size_t)((stop != NULL ? stop : end) - text);
        char name[64];
        snprintf(name, sizeof name, "input line %zu", number);
        if (strspn(text, " \t\r") < length) {
            Json json = {0};
            int status = json_parse(&json, name, text, length, err);
            if (status == 0)
                status = tokenize_object(a, t, &json, out, err);
            json_free(&json);
            if (status != 0 || print_text(out, err) != 0)
                return -1;
        }
        text += length + (stop != NULL);
    }
    return 0;
}

static int tokenize_input(const Arguments *a, const Tokenizer *t, Error *err)
{
    Text in = {0}, out = {0};
    const char *path = a->line.n_operands > 1 ? a->line.operands[1] : NULL;
    int status = read_input(&in, path, err);
    const char *text = in.length > 0 ? in.text : "";
    if (status == 0)
        status = a->jsonl ? tokenize_lines(a, t, text, in.length, &out, err)
                          : tokenize_whole(a, t, text, in.length, &out, err);
    if (status == 0)
        status = print_text(&out, err);
    text_free(&in);
    text_free(&out);
    return status;
}

int run_tokenize(const Arguments *a, Error *err)
{
    Tokenizer *t = tokenizer_open(a->line.operands[0], err);
    int status = t == NULL ? -1 : tokenize_input(a, t, err);
    if (t != NULL)
        tokenizer_close(t);
    return status;
}
