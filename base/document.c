/* document.c: see document.h. */
#include "document.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int doc_open(Document *d, const char *dir, const char *name, Error *err)
{
    memset(d, 0, sizeof *d);
    d->err = err;
    d->path = path_join(dir, name, err);
    if (d->path == NULL)
        return -1;
    if (file_read(&d->file, d->path, err) == 0) {
        if (json_parse(&d->json, d->path, (const char *)d->file.data,
                       d->file.size, err) == 0)
            return 0;
        file_close(&d->file);
    }
    free(d->path);
    return -1;
}

void doc_close(Document *d)
{
    json_free(&d->json);
    file_close(&d->file);
    free(d->path);
}

const char *doc_shown(const Document *d, const JsonNode *node, char *out,
                      size_t cap)
{
    if (node == NULL)
        return "nothing";
    JsonType type = json_type(node);
    if (type == JSON_ARRAY || type == JSON_OBJECT)
        return json_type_name(node);
    const char *text = d->json.text + node->start;
    const char *quote = type == JSON_STRING ? "\"" : "";
    size_t n = node->length < cap - 3 ? node->length : cap - 3;
    while (n < node->length && n > 0 && (text[n] & 0xc0) == 0x80)
        n--; /* no half character */
    snprintf(out, cap, "%s%.*s%s", quote, (int)n, text, quote);
    return out;
}

int doc_wanted(const Document *d, const char *key, const char *what,
               const JsonNode *found)
{
    char text[300];
    return fail(d->err, "%s: %s: wanted %s, found %s", d->path, key, what,
                doc_shown(d, found, text, sizeof text));
}

int doc_in_file(const Document *d, const char *key)
{
    Error inner = *d->err;
    return fail(d->err, "%s: %s: %s", d->path, key, inner.text);
}

const JsonNode *doc_get(const Document *d, const JsonNode *object,
                        const char *key)
{
    return object == NULL ? NULL : json_get(&d->json, object, key);
}

const JsonNode *doc_get_typed(const Document *d, const JsonNode *object,
                              const char *key, JsonType type)
{
    const JsonNode *node = doc_get(d, object, key);
    if (node != NULL && json_type(node) == type)
        return node;
    doc_wanted(d, key, type == JSON_ARRAY ? "an array" : "an object", node);
    return NULL;
}

const JsonNode *doc_each(const Document *d, const JsonNode *array,
                         const JsonNode *last)
{
    return last == NULL ? json_first(&d->json, array)
                        : json_next(&d->json, array, last);
}

bool doc_has_type(const Document *d, const JsonNode *object,
                  const char *name)
{
    const JsonNode *type = doc_get(d, object, "type");
    return type != NULL && json_equals(&d->json, type, name);
}

bool doc_is_off(const Document *d, const JsonNode *node)
{
    double number;
    if (node == NULL)
        return true;
    if (json_number(&d->json, node, &number))
        return number == 0;
    JsonType type = json_type(node);
    return type == JSON_NULL || type == JSON_FALSE
        || (type == JSON_STRING && node->length == 0);
}

int doc_refuse_on(const Document *d, const JsonNode *object,
                  const char *const *keys)
{
    for (; *keys != NULL; keys++) {
        const JsonNode *node = doc_get(d, object, *keys);
        if (!doc_is_off(d, node))
            return doc_wanted(d, *keys, "it off", node);
    }
    return 0;
}
