/* vectors.h: files of test vectors, a JSON object a line. */
#ifndef TESTS_VECTORS_H
#define TESTS_VECTORS_H

#include "support.h"

#include "base/json.h"

/* Called with each line; `where` is "file:line". */
typedef void VectorRow(void *context, const Json *row, const char *where);

/* Returns the number of lines. */
static inline size_t each_vector(const char *path, VectorRow *use,
                                 void *context)
{
    File file;
    Error err;
    size_t lines = 0, start = 0;
    must(file_open(&file, path, &err), &err);
    while (start < file.size) {
        const char *text = (const char *)file.data + start, *end;
        char where[300];
        Json row;
        end = memchr(text, '\n', file.size - start);
        assert_non_null(end);
        snprintf(where, sizeof where, "%s:%zu", path, ++lines);
        must(json_parse(&row, where, text, (size_t)(end - text), &err), &err);
        use(context, &row, where);
        json_free(&row);
        start += (size_t)(end - text) + 1;
    }
    file_close(&file);
    return lines;
}

/* The string of a key, to be freed; NULL where it is null or absent. */
static inline char *vector_string(const Json *row, const JsonNode *object,
                                  const char *key, size_t *n)
{
    Error err;
    const JsonNode *node = json_get(row, object, key);
    if (!node || json_type(node) == JSON_NULL)
        return NULL;
    char *text = json_string_dup(row, node, key, n, &err);
    if (!text)
        fail_msg("%s", err.text);
    return text;
}

#endif
