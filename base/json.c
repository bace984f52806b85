/* json.c: text to nodes, nodes to values, values to text.
 *
 * Stages of json_parse: a loop reads one value after another and appends its
 * node; the containers that are still open stand on a stack of fixed depth, so
 * that no text can make the program recurse. When an object is closed its keys
 * are compared: all pairs of a small one, by a hash table of its own for a
 * large one, which is freed at once. After json_parse has returned 0 every
 * string is known to be well-formed, so the readers below decode without
 * checks. */
#include "json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Json *json;
    const char *at, *end;
    size_t capacity;               /* of nodes */
    uint32_t open[JSON_MAX_DEPTH]; /* the containers around `at` */
    int depth;
    Error *err;
} Parser;

static void position(const Parser *p, const char *at, size_t *line,
                     size_t *column)
{
    *line = *column = 1;
    for (const char *s = p->json->text; s < at; s++) {
        if (*s == '\n') {
            ++*line;
            *column = 1;
        } else if (((unsigned char)*s & 0xc0) != 0x80) {
            ++*column;
        }
    }
}

static int refuse(const Parser *p, const char *at, const char *complaint)
{
    size_t line, column;
    position(p, at, &line, &column);
    return fail(p->err, "%s: line %zu, column %zu: %s", p->json->name, line,
                column, complaint);
}

/* "wanted X, found Y", Y being the byte at `at`. */
static int wanted(const Parser *p, const char *at, const char *what)
{
    char text[160];
    unsigned c = at < p->end ? (unsigned char)*at : 0;
    if (at >= p->end)
        snprintf(text, sizeof text, "wanted %s, found the end", what);
    else if (c > 0x20 && c < 0x7f)
        snprintf(text, sizeof text, "wanted %s, found %c", what, (int)c);
    else
        snprintf(text, sizeof text, "wanted %s, found byte 0x%02x", what, c);
    return refuse(p, at, text);
}

static bool is_tail(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

/* Bytes of the UTF-8 character that begins with this byte; 0 for none. */
static size_t utf8_need(unsigned lead)
{
    if (lead < 0x80)
        return 1;
    if (lead < 0xc2 || lead > 0xf4)
        return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* Whether a second byte is too long a form, a surrogate or > U+10FFFF. */
static bool is_bad_second(unsigned lead, unsigned second)
{
    return (lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f)
        || (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f);
}

/* How many of the n bytes of a character stand at s < end. */
static size_t utf8_match(const char *s, const char *end, size_t n)
{
    size_t i = 1;
    while (i < n && s + i < end && is_tail(s[i])
           && (i > 1 || !is_bad_second((unsigned char)s[0],
                                       (unsigned char)s[1])))
        i++;
    return i;
}

/* Bytes of the UTF-8 character at s < end; 0 where there is none. */
static size_t utf8_size(const char *s, const char *end)
{
    size_t n = utf8_need((unsigned char)*s);
    return n > 0 && utf8_match(s, end, n) == n ? n : 0;
}

static size_t utf8_put(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* The code of the well-formed character of n bytes at s. */
static uint32_t utf8_get(const char *s, size_t n)
{
    uint32_t c = (unsigned char)s[0];
    if (n > 1)
        c &= 0x7fu >> n;
    for (size_t i = 1; i < n; i++)
        c = c << 6 | ((unsigned char)s[i] & 0x3f);
    return c;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* The four hexadecimal digits at s, or -1. */
static long hex4(const char *s, const char *end)
{
    long value = 0;
    for (int i = 0; i < 4; i++) {
        int digit = s + i < end ? hex_digit(s[i]) : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Bytes of the escape at s, which points at its '\'; 0 if malformed. */
static size_t escape_size(const char *s, const char *end)
{
    if (end - s < 2)
        return 0;
    if (s[1] != 'u')
        return s[1] != 0 && strchr("\"\\/bfnrt", s[1]) != NULL ? 2 : 0;
    long code = hex4(s + 2, end);
    if (code < 0 || (code >= 0xdc00 && code < 0xe000))
        return 0;
    if (code < 0xd800 || code >= 0xe000)
        return 6;
    if (end - s < 12 || s[6] != '\\' || s[7] != 'u')
        return 0;
    long low = hex4(s + 8, end);
    return low >= 0xdc00 && low < 0xe000 ? 12 : 0;
}

static char escaped_char(char c)
{
    switch (c) {
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    default: return c;
    }
}

/* Decodes one character or byte of a checked string to out (at most 4 bytes),
 * moves *at past it and returns how many bytes it made. */
static size_t decode(const char **at, char *out)
{
    const char *s = *at;
    if (s[0] != '\\') {
        out[0] = s[0];
        *at = s + 1;
        return 1;
    }
    if (s[1] != 'u') {
        out[0] = escaped_char(s[1]);
        *at = s + 2;
        return 1;
    }
    uint32_t code = (uint32_t)hex4(s + 2, s + 6);
    *at = s + 6;
    if (code >= 0xd800 && code < 0xe000) {
        uint32_t low = (uint32_t)hex4(s + 8, s + 12);
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        *at = s + 12;
    }
    return utf8_put(code, out);
}

static int grow(Parser *p)
{
    Json *json = p->json;
    if (json->n_nodes >= JSON_MAX_NODES)
        return refuse(p, p->at, "more values than this program accepts");
    size_t more = p->capacity == 0 ? 64 : 2 * p->capacity;
    if (more > JSON_MAX_NODES)
        more = JSON_MAX_NODES;
    JsonNode *nodes = realloc(json->nodes, more * sizeof *nodes);
    if (nodes == NULL)
        return fail(p->err, "%s: not enough memory for %zu values",
                    json->name, more);
    json->nodes = nodes;
    p->capacity = more;
    return 0;
}

static int append(Parser *p, uint32_t type, const char *start, size_t length)
{
    Json *json = p->json;
    if (json->n_nodes == p->capacity && grow(p) != 0)
        return -1;
    JsonNode *node = &json->nodes[json->n_nodes++];
    node->type = type & 15u;
    node->start = (uint32_t)(start - json->text);
    node->length = (uint32_t)length;
    node->size = 0;
    node->next = (uint32_t)json->n_nodes;
    return 0;
}

static JsonNode *container(const Parser *p)
{
    return &p->json->nodes[p->open[p->depth - 1]];
}

static bool in_object(const Parser *p)
{
    return p->depth > 0 && container(p)->type == JSON_OBJECT;
}

static bool same_string(const Json *json, const JsonNode *a,
                        const JsonNode *b)
{
    const char *s = json->text + a->start, *t = json->text + b->start;
    if (!((a->type | b->type) & JSON_ESCAPED))
        return a->length == b->length && memcmp(s, t, a->length) == 0;
    const char *s_end = s + a->length, *t_end = t + b->length;
    char c[4], d[4];
    size_t c_left = 0, d_left = 0, c_n = 0, d_n = 0;
    for (;;) {
        if (c_left == 0 && s < s_end)
            c_left = c_n = decode(&s, c);
        if (d_left == 0 && t < t_end)
            d_left = d_n = decode(&t, d);
        if (c_left == 0 || d_left == 0)
            return c_left == d_left;
        if (c[c_n - c_left--] != d[d_n - d_left--])
            return false;
    }
}

static int refuse_key(const Parser *p, const JsonNode *key)
{
    char text[200];
    int n = key->length < 120 ? (int)key->length : 120;
    const char *start = p->json->text + key->start;
    snprintf(text, sizeof text, "the key \"%.*s\" is there twice", n, start);
    return refuse(p, start - 1, text);
}

static const JsonNode *next_key(const Json *json, const JsonNode *key)
{
    return &json->nodes[key[1].next];
}

static int compare_all_keys(const Parser *p, const JsonNode *object)
{
    const JsonNode *first = object + 1, *key = first;
    for (uint32_t i = 0; i < object->size; i++) {
        const JsonNode *other = first;
        for (uint32_t j = 0; j < i; j++) {
            if (same_string(p->json, key, other))
                return refuse_key(p, key);
            other = next_key(p->json, other);
        }
        key = next_key(p->json, key);
    }
    return 0;
}

static uint64_t mix(uint64_t h)
{
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

static uint64_t hash_end(uint64_t h, const char *s, size_t left, size_t n)
{
    uint64_t word = 0;
    for (; left > 0; left--)
        word = word << 8 | (unsigned char)*s++;
    return mix(mix(h ^ word) ^ n);
}

static uint64_t hash_plain(const char *s, size_t n)
{
    uint64_t h = 0, word;
    size_t left = n;
    for (; left >= 8; left -= 8, s += 8) {
        memcpy(&word, s, 8);
        h = mix(h ^ word);
    }
    return hash_end(h, s, left, n);
}

/* The same number that hash_plain gives for the decoded bytes. */
static uint64_t hash_escaped(const char *at, const char *end)
{
    uint64_t h = 0, word;
    char block[12];
    size_t left = 0, n = 0;
    while (at < end) {
        size_t made = decode(&at, block + left);
        left += made;
        n += made;
        if (left >= 8) {
            memcpy(&word, block, 8);
            h = mix(h ^ word);
            left -= 8;
            memmove(block, block + 8, left);
        }
    }
    return hash_end(h, block, left, n);
}

static uint64_t hash_key(const Json *json, const JsonNode *key)
{
    const char *s = json->text + key->start;
    if (key->type & JSON_ESCAPED)
        return hash_escaped(s, s + key->length);
    return hash_plain(s, key->length);
}

/* A slot holds the index of a key's node and as many bits of the key's hash as
 * a word has left, so that few others need a look at the key; 0 is free. */
enum { KEY_MASK = JSON_MAX_NODES };

typedef struct {
    uint32_t *slots;
    size_t mask;   /* slots - 1, a power of two less one */
    size_t budget; /* how many taken slots may be met in all */
} KeyTable;

static int insert_key(const Parser *p, KeyTable *table, const JsonNode *key)
{
    const Json *json = p->json;
    uint64_t h = hash_key(json, key);
    uint32_t slot, tag = (uint32_t)(h >> 32) & ~(uint32_t)KEY_MASK;
    size_t i = (size_t)h & table->mask;
    for (; (slot = table->slots[i]) != 0; i = (i + 1) & table->mask) {
        const JsonNode *other = &json->nodes[slot & KEY_MASK];
        if ((slot & ~(uint32_t)KEY_MASK) == tag
            && same_string(json, key, other))
            return refuse_key(p, key);
        if (table->budget-- == 0)
            return refuse(p, json->text + key->start - 1,
                          "keys that are made to slow the program down");
    }
    table->slots[i] = tag | (uint32_t)(key - json->nodes);
    return 0;
}

/* At most half full, chance makes each key meet half a taken slot on average;
 * only an attack meets 32. */
static int hash_all_keys(const Parser *p, const JsonNode *object)
{
    size_t n = 16;
    while (n < 2 * (size_t)object->size)
        n *= 2;
    KeyTable table = {NULL, n - 1, 32 * (size_t)object->size};
    table.slots = allocate(n, sizeof *table.slots, p->json->name, p->err);
    if (table.slots == NULL)
        return -1;
    int rc = 0;
    const JsonNode *key = object + 1;
    for (uint32_t i = 0; i < object->size && rc == 0; i++) {
        rc = insert_key(p, &table, key);
        key = next_key(p->json, key);
    }
    free(table.slots);
    return rc;
}

static int check_keys(const Parser *p, const JsonNode *object)
{
    if (object->size <= 8)
        return compare_all_keys(p, object);
    return hash_all_keys(p, object);
}

static void skip_blanks(Parser *p)
{
    const char *s = p->at, *end = p->end;
    while (s < end && (*s == ' ' || *s == '\n' || *s == '\r' || *s == '\t')) {
        s++;
        while (end - s >= 4 && memcmp(s, "    ", 4) == 0)
            s += 4; /* indentation, fast */
    }
    p->at = s;
}

static bool next_is(const Parser *p, char c)
{
    return p->at < p->end && *p->at == c;
}

/* A character of two bytes: much of a byte-level vocabulary. */
static bool is_pair(const char *s)
{
    unsigned lead = (unsigned char)s[0];
    return lead >= 0xc2 && lead < 0xe0 && is_tail(s[1]);
}

static int refuse_char(const Parser *p, const char *s)
{
    if (*s != '\\')
        return refuse(p, s, "invalid UTF-8");
    if (p->end - s > 2 && s[1] == 'u' && hex4(s + 2, p->end) >= 0)
        return refuse(p, s, "half of a surrogate pair");
    return refuse(p, s, "malformed escape");
}

/* Moves *at past what stands for one character of a string that needs a closer
 * look: an escape or a character beyond ASCII. */
static int check_char(const Parser *p, const char **at, uint32_t *type)
{
    const char *s = *at;
    if (s == p->end)
        return wanted(p, s, "the end of the string");
    if ((unsigned char)*s < 0x20)
        return wanted(p, s, "a character or an escape");
    size_t n = *s == '\\' ? escape_size(s, p->end) : utf8_size(s, p->end);
    if (n == 0)
        return refuse_char(p, s);
    if (*s == '\\')
        *type |= JSON_ESCAPED;
    *at = s + n;
    return 0;
}

static bool is_plain(char c)
{
    unsigned u = (unsigned char)c;
    return u >= 0x20 && u < 0x80 && u != '"' && u != '\\';
}

static int read_string(Parser *p)
{
    const char *start = p->at + 1, *s = start, *end = p->end;
    uint32_t type = JSON_STRING;
    for (;;) {
        while (s < end && is_plain(*s))
            s++;
        if (s < end && *s == '"')
            break;
        if (end - s >= 2 && is_pair(s))
            s += 2;
        else if (check_char(p, &s, &type) != 0)
            return -1;
    }
    p->at = s + 1;
    return append(p, type, start, (size_t)(s - start));
}

static bool is_digit(const char *s, const char *end)
{
    return s < end && *s >= '0' && *s <= '9';
}

/* One digit or more; NULL where there is none. */
static const char *skip_digits(const char *s, const char *end)
{
    if (!is_digit(s, end))
        return NULL;
    while (is_digit(s, end))
        s++;
    return s;
}

static int read_number(Parser *p)
{
    const char *start = p->at, *end = p->end, *s = start, *digits;
    if (*s == '-')
        s++;
    digits = s;
    if ((s = skip_digits(digits, end)) == NULL)
        return wanted(p, digits, "a digit");
    if (*digits == '0' && s > digits + 1)
        return refuse(p, digits, "a number with a leading zero");
    if (s < end && *s == '.') {
        digits = s + 1;
        if ((s = skip_digits(digits, end)) == NULL)
            return wanted(p, digits, "a digit");
    }
    if (s < end && (*s == 'e' || *s == 'E')) {
        digits = s + 1;
        if (digits < end && (*digits == '+' || *digits == '-'))
            digits++;
        if ((s = skip_digits(digits, end)) == NULL)
            return wanted(p, digits, "a digit");
    }
    p->at = s;
    return append(p, JSON_NUMBER, start, (size_t)(s - start));
}

static int read_word(Parser *p, const char *word, uint32_t type)
{
    size_t n = strlen(word);
    const char *start = p->at;
    if ((size_t)(p->end - start) < n || memcmp(start, word, n) != 0)
        return wanted(p, start, "a value");
    p->at += n;
    return append(p, type, start, n);
}

static int open_container(Parser *p, uint32_t type)
{
    if (p->depth == JSON_MAX_DEPTH)
        return refuse(p, p->at, "nested too deeply");
    if (append(p, type, p->at, 1) != 0)
        return -1;
    p->at++;
    p->open[p->depth++] = (uint32_t)p->json->n_nodes - 1;
    skip_blanks(p);
    return 0;
}

static int close_container(Parser *p)
{
    JsonNode *node = container(p);
    p->at++;
    node->length = (uint32_t)(p->at - p->json->text) - node->start;
    node->next = (uint32_t)p->json->n_nodes;
    p->depth--;
    return node->type == JSON_OBJECT ? check_keys(p, node) : 0;
}

static int read_value(Parser *p)
{
    if (p->at == p->end)
        return wanted(p, p->at, "a value");
    switch (*p->at) {
    case '{': return open_container(p, JSON_OBJECT);
    case '[': return open_container(p, JSON_ARRAY);
    case '"': return read_string(p);
    case 'n': return read_word(p, "null", JSON_NULL);
    case 't': return read_word(p, "true", JSON_TRUE);
    case 'f': return read_word(p, "false", JSON_FALSE);
    case '-': return read_number(p);
    default:
        if (is_digit(p->at, p->end))
            return read_number(p);
        return wanted(p, p->at, "a value");
    }
}

static int read_key(Parser *p)
{
    if (!next_is(p, '"'))
        return wanted(p, p->at, "a key in quotes");
    if (read_string(p) != 0)
        return -1;
    skip_blanks(p);
    if (!next_is(p, ':'))
        return wanted(p, p->at, "a colon");
    p->at++;
    skip_blanks(p);
    return 0;
}

/* A child of the innermost container, or the root. */
static int read_item(Parser *p)
{
    if (p->depth > 0)
        container(p)->size++;
    if (in_object(p) && read_key(p) != 0)
        return -1;
    return read_value(p);
}

/* After a value: closes what ends here, up to a comma or the end of the root.
 * `opened`: the value is a container whose first child may follow instead. */
static int read_end(Parser *p, bool opened)
{
    for (;;) {
        if (p->depth == 0)
            return 0;
        bool object = in_object(p);
        if (next_is(p, object ? '}' : ']')) {
            if (close_container(p) != 0)
                return -1;
        } else if (opened) {
            return 0;
        } else if (next_is(p, ',')) {
            p->at++;
            skip_blanks(p);
            return 0;
        } else {
            return wanted(p, p->at, object ? "a comma or }" : "a comma or ]");
        }
        opened = false;
        skip_blanks(p);
    }
}

static int read_root(Parser *p)
{
    skip_blanks(p);
    do {
        int depth = p->depth;
        if (read_item(p) != 0)
            return -1;
        skip_blanks(p);
        if (read_end(p, p->depth > depth) != 0)
            return -1;
    } while (p->depth > 0);
    skip_blanks(p);
    if (p->at < p->end)
        return wanted(p, p->at, "the end");
    return 0;
}

int json_parse(Json *json, const char *name, const char *text, size_t length,
               Error *err)
{
    *json = (Json){name, text, length, NULL, 0};
    if (length >= INT32_MAX)
        return fail(err, "%s: %zu bytes of JSON are too many", name, length);
    Parser p = {.json = json, .at = text, .end = text + length, .err = err};
    if (read_root(&p) != 0) {
        json_free(json);
        return -1;
    }
    return 0;
}

void json_free(Json *json)
{
    free(json->nodes);
    json->nodes = NULL;
    json->n_nodes = 0;
}

JsonType json_type(const JsonNode *node)
{
    return (JsonType)(node->type & 7u);
}

const char *json_type_name(const JsonNode *node)
{
    static const char *const names[] = {
        [JSON_NULL] = "null", [JSON_FALSE] = "false", [JSON_TRUE] = "true",
        [JSON_NUMBER] = "a number", [JSON_STRING] = "a string",
        [JSON_ARRAY] = "an array", [JSON_OBJECT] = "an object",
    };
    return names[json_type(node)];
}

const JsonNode *json_first(const Json *json, const JsonNode *parent)
{
    (void)json;
    return parent->size > 0 ? parent + 1 : NULL;
}

const JsonNode *json_next(const Json *json, const JsonNode *parent,
                          const JsonNode *node)
{
    return node->next < parent->next ? &json->nodes[node->next] : NULL;
}

const JsonNode *json_get(const Json *json, const JsonNode *object,
                         const char *key)
{
    if (json_type(object) != JSON_OBJECT)
        return NULL;
    const JsonNode *at = object + 1;
    for (uint32_t i = 0; i < object->size; i++) {
        if (json_equals(json, at, key))
            return at + 1;
        at = next_key(json, at);
    }
    return NULL;
}

static long copy_plain(const char *s, size_t n, char *out, size_t cap)
{
    if (n >= cap)
        return -1;
    memcpy(out, s, n);
    out[n] = 0;
    return (long)n;
}

static long copy_decoded(const char *s, const char *end, char *out,
                         size_t cap)
{
    size_t n = 0;
    while (s < end) {
        char c[4];
        size_t made = decode(&s, c);
        if (made >= cap || n >= cap - made)
            return -1;
        memcpy(out + n, c, made);
        n += made;
    }
    out[n] = 0;
    return (long)n;
}

long json_string(const Json *json, const JsonNode *node, char *out,
                 size_t cap)
{
    const char *s = json->text + node->start;
    if (json_type(node) != JSON_STRING)
        return -1;
    if (node->type & JSON_ESCAPED)
        return copy_decoded(s, s + node->length, out, cap);
    return copy_plain(s, node->length, out, cap);
}

char *json_string_dup(const Json *json, const JsonNode *node,
                      const char *what, size_t *length, Error *err)
{
    if (json_type(node) != JSON_STRING) {
        fail(err, "%s: %s: wanted a string, found %s", json->name, what,
             json_type_name(node));
        return NULL;
    }
    char *text = allocate((size_t)node->length + 1, 1, what, err);
    if (text == NULL)
        return NULL;
    long n = json_string(json, node, text, (size_t)node->length + 1);
    if (length != NULL)
        *length = (size_t)n;
    return text;
}

bool json_equals(const Json *json, const JsonNode *node, const char *text)
{
    if (json_type(node) != JSON_STRING)
        return false;
    const char *s = json->text + node->start, *end = s + node->length;
    size_t left = strlen(text);
    if (!(node->type & JSON_ESCAPED))
        return node->length == left && memcmp(s, text, left) == 0;
    while (s < end) {
        char c[4];
        size_t n = decode(&s, c);
        if (n > left || memcmp(c, text, n) != 0)
            return false;
        text += n;
        left -= n;
    }
    return left == 0;
}

/* A double lies between two neighbours whose midpoint has at most 767 digits;
 * beyond those it only matters whether anything but zeros follows. */
enum { MAX_DIGITS = 770 };

/* 0.d1 d2 … dn times 10^exponent, negated or not, d1 and dn not zero; n = 0 is
 * zero. */
typedef struct {
    bool negative;
    int n;
    bool inexact;     /* digits other than 0 were dropped after the last */
    int64_t exponent;
    char digits[MAX_DIGITS];
} Decimal;

/* Appends the digits at s, of which `scale` counts those before the point. */
static const char *take_digits(Decimal *d, const char *s, const char *end,
                               bool fraction)
{
    for (; is_digit(s, end); s++) {
        if (d->n == 0 && *s == '0') {
            d->exponent -= fraction; /* a leading zero */
            continue;
        }
        d->exponent += !fraction;
        if (d->n < MAX_DIGITS)
            d->digits[d->n++] = *s;
        else if (*s != '0')
            d->inexact = true;
    }
    return s;
}

/* The exponent as written, cut off far beyond where it could matter: a text
 * has fewer than 2^32 digits. */
static int64_t take_exponent(const char *s, const char *end)
{
    bool negative = *s == '-';
    if (*s == '-' || *s == '+')
        s++;
    int64_t value = 0;
    for (; s < end; s++) {
        if (value < INT64_C(1000000000000))
            value = value * 10 + (*s - '0');
    }
    return negative ? -value : value;
}

static void read_decimal(Decimal *d, const char *s, const char *end)
{
    d->negative = *s == '-';
    d->n = 0;
    d->inexact = false;
    d->exponent = 0;
    s = take_digits(d, s + d->negative, end, false);
    if (s < end && *s == '.')
        s = take_digits(d, s + 1, end, true);
    if (s < end)
        d->exponent += take_exponent(s + 1, end);
    if (d->inexact)
        return;
    while (d->n > 0 && d->digits[d->n - 1] == '0')
        d->n--;
}

bool json_number(const Json *json, const JsonNode *node, double *value)
{
    if (json_type(node) != JSON_NUMBER)
        return false;
    Decimal d;
    const char *s = json->text + node->start;
    read_decimal(&d, s, s + node->length);
    int64_t e = d.exponent - d.n - d.inexact;
    e = e > 5000 ? 5000 : e < -5000 ? -5000 : e;
    /* An integer times a power of ten: strtod rounds it correctly, and with no
     * point in the text it knows no locale. */
    char text[MAX_DIGITS + 16];
    snprintf(text, sizeof text, "%s%.*s%se%d", d.negative ? "-" : "", d.n,
             d.digits, d.inexact ? "1" : d.n == 0 ? "0" : "", (int)e);
    *value = strtod(text, NULL);
    return true;
}

bool json_integer(const Json *json, const JsonNode *node, int64_t low,
                  int64_t high, int64_t *value)
{
    if (json_type(node) != JSON_NUMBER)
        return false;
    Decimal d;
    const char *s = json->text + node->start;
    read_decimal(&d, s, s + node->length);
    if (d.n > d.exponent && d.n > 0)
        return false; /* a fraction */
    if (d.n > 0 && d.exponent > 19)
        return false;
    uint64_t u = 0;
    for (int i = 0; d.n > 0 && i < (int)d.exponent; i++) {
        unsigned digit = i < d.n ? (unsigned)(d.digits[i] - '0') : 0;
        u = u * 10 + digit; /* 19 digits fit */
    }
    if (u > (uint64_t)INT64_MAX + d.negative)
        return false;
    *value = !d.negative ? (int64_t)u : u == 0 ? 0 : -(int64_t)(u - 1) - 1;
    return *value >= low && *value <= high;
}

static bool reserve(Text *t, size_t n)
{
    if (t->failed)
        return false;
    if (n < t->capacity - t->length)
        return true;
    size_t more = t->capacity < 64 ? 64 : t->capacity;
    while (more - t->length <= n && more <= PTRDIFF_MAX / 2)
        more *= 2;
    char *text = more - t->length > n ? realloc(t->text, more) : NULL;
    if (text == NULL) {
        t->failed = true;
        return false;
    }
    t->text = text;
    t->capacity = more;
    return true;
}

void text_add(Text *t, const char *bytes, size_t n)
{
    if (!reserve(t, n))
        return;
    memcpy(t->text + t->length, bytes, n);
    t->length += n;
    t->text[t->length] = 0;
}

void text_printf(Text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        t->failed = true;
    else if (reserve(t, (size_t)n)) {
        va_start(args, format);
        vsnprintf(t->text + t->length, (size_t)n + 1, format, args);
        va_end(args);
        t->length += (size_t)n;
    }
}

static void add_code(Text *t, uint32_t c, bool ascii)
{
    if (!ascii) {
        char utf8[4];
        size_t n = utf8_put(c, utf8);
        text_add(t, utf8, n);
    } else if (c < 0x10000)
        text_printf(t, "\\u%04x", (unsigned)c);
    else
        text_printf(t, "\\u%04x\\u%04x",
                    (unsigned)(0xd800 + ((c - 0x10000) >> 10)),
                    (unsigned)(0xdc00 + ((c - 0x10000) & 0x3ff)));
}

static void add_ascii_escape(Text *t, char c)
{
    static const char named[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *at = strchr(named, c);
    if (at != NULL && c != 0)
        text_printf(t, "\\%c", letters[at - named]);
    else
        text_printf(t, "\\u%04x", (unsigned)(unsigned char)c);
}

/* What is not plain; returns how many bytes at s it was. One U+FFFD stands for
 * the start of a character up to where it goes wrong. */
static size_t add_special(Text *t, const char *s, const char *end, bool ascii)
{
    size_t n = utf8_need((unsigned char)*s);
    size_t found = utf8_match(s, end, n);
    if (n == 1)
        add_ascii_escape(t, *s);
    else if (found != n)
        add_code(t, 0xfffd, ascii);
    else if (ascii)
        add_code(t, utf8_get(s, n), ascii);
    else
        text_add(t, s, n);
    return found;
}

void text_json_string(Text *t, const char *bytes, size_t n, bool ascii)
{
    const char *s = bytes, *end = bytes + n;
    text_add(t, "\"", 1);
    while (s < end) {
        const char *start = s;
        while (s < end && is_plain(*s))
            s++;
        text_add(t, start, (size_t)(s - start));
        if (s == end)
            break;
        s += add_special(t, s, end, ascii);
    }
    text_add(t, "\"", 1);
}

void text_number(Text *t, double x)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    text_add(t, text, strlen(text));
}

void text_free(Text *t)
{
    free(t->text);
    *t = (Text){0};
}
