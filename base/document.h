/* document.h: a JSON file that sets something up, and what to say when a
 * value in it will not do: file, key, what was wanted, what was found. */
#ifndef BASE_DOCUMENT_H
#define BASE_DOCUMENT_H

#include "file.h"
#include "json.h"

typedef struct {
    char *path;
    File file;
    Json json;
    Error *err;     /* where the functions below put their message */
} Document;

/* Reads dir/name. */
int doc_open(Document *d, const char *dir, const char *name, Error *err);
void doc_close(Document *d);

/* Fails with "path: key: wanted what, found …"; found may be NULL. */
int doc_wanted(const Document *d, const char *key, const char *what,
               const JsonNode *found);
/* Fails with the message there is, "path: key: " before it. */
int doc_in_file(const Document *d, const char *key);
/* A value as a message shows it: by its text, long ones cut, or by its type.
 * Uses out (capacity cap) where it has to. */
const char *doc_shown(const Document *d, const JsonNode *node, char *out,
                      size_t cap);

/* The value of a key; NULL where there is none, or no object. */
const JsonNode *doc_get(const Document *d, const JsonNode *object,
                        const char *key);
/* As above, but NULL with a message where it is not an array or an object, as
 * asked for. */
const JsonNode *doc_get_typed(const Document *d, const JsonNode *object,
                              const char *key, JsonType type);
/* The child of an array after `last`; the first if that is NULL. */
const JsonNode *doc_each(const Document *d, const JsonNode *array,
                         const JsonNode *last);
/* True where the value of "type" is name. */
bool doc_has_type(const Document *d, const JsonNode *object,
                  const char *name);
/* True where the value is absent, null, false, 0 or "". */
bool doc_is_off(const Document *d, const JsonNode *node);
/* Refuses the first of the keys, NULL at the end, whose value is not off. */
int doc_refuse_on(const Document *d, const JsonNode *object,
                  const char *const *keys);

#endif
