/* json.h: reads JSON that a stranger wrote.
 *
 * The text is parsed once into a flat array of nodes in document order: an
 * object's children are key, value, key, value, …, each followed by its own
 * subtree. Strings stay in the text and are decoded when asked for. Refused:
 * anything that is not RFC 8259, depth beyond JSON_MAX_DEPTH, more values than
 * JSON_MAX_NODES, duplicate keys (compared after decoding), keys made to
 * collide in our hash, invalid UTF-8, lone surrogates, bytes after the value.
 * Errors name the file, the line and the column (in characters). */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    JSON_MAX_DEPTH = 64,
    JSON_MAX_NODES = (1 << 23) - 1 /* 128 MB; V3's tokenizer has 2^18.6 */
};

typedef enum {
    JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY,
    JSON_OBJECT
} JsonType;

typedef struct {
    uint32_t type : 4;  /* JsonType; strings: | JSON_ESCAPED if with a '\' */
    uint32_t size : 28; /* children: elements, or pairs of an object */
    uint32_t start;     /* of its text; a string's is after the quote */
    uint32_t length;    /* of its text, quotes apart */
    uint32_t next;      /* index of the node after its whole subtree */
} JsonNode;

enum { JSON_ESCAPED = 8 };

typedef struct {
    const char *name;   /* the file, for messages; the caller's */
    const char *text;   /* the caller's; must outlive the Json */
    size_t length;
    JsonNode *nodes;    /* nodes[0] is the root */
    size_t n_nodes;
} Json;

/* length < 2^31 - 1. The text need not end in a zero byte. */
int json_parse(Json *json, const char *name, const char *text, size_t length,
               Error *err);
void json_free(Json *json);

JsonType json_type(const JsonNode *node);
const char *json_type_name(const JsonNode *node); /* "a string", "an array" */
/* First child (an object's first key) or NULL; the next sibling or NULL.
 * In an object a key's sibling is its value. */
const JsonNode *json_first(const Json *json, const JsonNode *parent);
const JsonNode *json_next(const Json *json, const JsonNode *parent,
                          const JsonNode *node);
/* The value of a key, or NULL where the node is no object or has no such. */
const JsonNode *json_get(const Json *json, const JsonNode *object,
                         const char *key);

/* Decodes a string into out (capacity cap, zero-terminated); returns its
 * length in bytes, or -1 if node is no string or does not fit. A decoded
 * string is never longer than node->length bytes. */
long json_string(const Json *json, const JsonNode *node, char *out,
                 size_t cap);
/* As above into fresh memory (*length may be NULL); NULL with a message that
 * names `what` if it is no string. */
char *json_string_dup(const Json *json, const JsonNode *node,
                      const char *what, size_t *length, Error *err);
/* True where node is a string that decodes to this text. */
bool json_equals(const Json *json, const JsonNode *node, const char *text);
/* True where node is a number; exact decimal to double, correctly rounded, in
 * any locale. Beyond the range of double it is an infinity. */
bool json_number(const Json *json, const JsonNode *node, double *value);
/* True where node is a number with an integer value in range: 1.0 is 1. */
bool json_integer(const Json *json, const JsonNode *node, int64_t low,
                  int64_t high, int64_t *value);

/* Writing: a string with quotes and escapes, appended to a growing buffer. */
typedef struct {
    char *text;       /* zero-terminated; NULL when empty */
    size_t length, capacity;
    bool failed;      /* memory was short: check once, at the end */
} Text;

void text_add(Text *t, const char *bytes, size_t n);
void text_printf(Text *t, const char *format, ...) PRINTF_LIKE(2, 3);
/* Invalid UTF-8 becomes U+FFFD; with ascii all else becomes \uXXXX. */
void text_json_string(Text *t, const char *bytes, size_t n, bool ascii);
/* The shortest decimal that reads back as x, which is finite. */
void text_number(Text *t, double x);
void text_free(Text *t);

#endif
