/* tokenizer.c: text to token ids and back, conversations to text.
 *
 *   text -> added tokens cut out -> pieces (base/pretoken.h) -> bytes
 *        -> merges (base/bpe.h) -> ids        V2 §3.1.1, V3 §4.1
 *
 * Everything comes from the model's tokenizer.json, as the Hugging Face
 * tokenizers read it: whatever there would change an id and is not known here
 * is refused by its key. tokenizer_config.json tells BOS, EOS and the
 * template. Decoding joins the tokens' bytes; a token may end inside a
 * character. After tokenizer_open nothing changes: encoding keeps its state in
 * the call. This file neither trains vocabularies nor runs templates: the
 * published ones are recognised and written out as functions. */
#include "deepseek.h"

#include "base/bpe.h"
#include "base/document.h"
#include "base/pretoken.h"
#include "base/unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *text;
    size_t n;
    int32_t id;
    bool special;
} AddedToken;

/* Added tokens sorted by their bytes: those with a common beginning are
 * neighbours. */
typedef struct {
    AddedToken *tokens;
    size_t n;
    bool first[256];         /* the bytes that one begins with */
} AddedSet;

/* Added tokens are sought in the raw text first, then, between those, in the
 * normalised text. There is no normaliser here, but the order remains. */
enum { RAW, NORMALIZED, PASSES };

struct Tokenizer {
    Vocabulary vocabulary;
    Merges merges;
    Pretokenizer pretokenizer;
    AddedSet added[PASSES];
    bool *special;           /* by id */
    int32_t bos, eos;        /* -1: none */
    bool add_bos;
    ChatTemplate template;
};

/* Lists of ids ----------------------------------------------------------- */

static int ids_reserve(IdList *list, size_t more, Error *err)
{
    if (more <= list->capacity - list->n)
        return 0;
    if (more > SIZE_MAX / sizeof *list->ids / 2 - list->n)
        return fail(err, "too many ids: %zu", list->n);
    size_t capacity = 2 * (list->n + more);
    int32_t *ids = realloc(list->ids, capacity * sizeof *ids);
    if (ids == NULL)
        return fail(err, "no memory for %zu ids", capacity);
    list->ids = ids;
    list->capacity = capacity;
    return 0;
}

int ids_add(IdList *list, int32_t id, Error *err)
{
    if (ids_reserve(list, 1, err) != 0)
        return -1;
    list->ids[list->n++] = id;
    return 0;
}

void ids_free(IdList *list)
{
    free(list->ids);
    memset(list, 0, sizeof *list);
}

/* tokenizer.json: the model ---------------------------------------------- */

static int read_token(Tokenizer *t, const Document *d, const JsonNode *key,
                      const JsonNode *value)
{
    size_t room;
    int64_t id;
    char *text = vocabulary_next(&t->vocabulary, &room);
    long n = json_string(&d->json, key, text, room);
    if (n < 0 || !json_integer(&d->json, value, 0, TOKEN_LIMIT - 1, &id)) {
        char name[100];
        return doc_wanted(d, doc_shown(d, key, name, sizeof name),
                          "an id from 0 to 4194302", value);
    }
    if (vocabulary_add(&t->vocabulary, (size_t)n, (uint32_t)id, false,
                       d->err) != 0)
        return doc_in_file(d, "vocab");
    return 0;
}

static int read_vocabulary(Tokenizer *t, const Document *d,
                           const JsonNode *vocab, size_t n_added)
{
    if (vocabulary_open(&t->vocabulary, vocab->size + n_added,
                        d->json.length, d->err) != 0)
        return doc_in_file(d, "vocab");
    const JsonNode *key = json_first(&d->json, vocab);
    while (key != NULL) {
        const JsonNode *value = json_next(&d->json, vocab, key);
        if (read_token(t, d, key, value) != 0)
            return -1;
        key = json_next(&d->json, vocab, value);
    }
    return vocabulary_index(&t->vocabulary, d->err); /* JSON's keys differ */
}

typedef struct {
    char *ab;                /* the two tokens joined, n bytes */
    size_t split, n;         /* b begins at split */
    uint32_t left_hash, right_hash;
    int32_t left, right, id; /* of a, b and ab */
} Pair;

/* ["a", "b"] */
static bool read_two(const Json *json, const JsonNode *node, Pair *p,
                     size_t cap)
{
    const JsonNode *a = json_first(json, node);
    if (node->size != 2)
        return false;
    long left = json_string(json, a, p->ab, cap);
    if (left < 0)
        return false;
    long right = json_string(json, json_next(json, node, a), p->ab + left,
                             cap - (size_t)left);
    p->split = (size_t)left;
    p->n = (size_t)(left + right);
    return right >= 0;
}

/* "a b" */
static bool read_blank(const Json *json, const JsonNode *node, Pair *p,
                       size_t cap)
{
    long n = json_string(json, node, p->ab, cap);
    char *blank = n < 0 ? NULL : memchr(p->ab, ' ', (size_t)n);
    if (blank == NULL)
        return false;
    p->split = (size_t)(blank - p->ab);
    p->n = (size_t)n - 1;
    memmove(blank, blank + 1, p->n - p->split);
    return memchr(blank, ' ', p->n - p->split) == NULL;
}

static int read_pair(const Document *d, const JsonNode *node, Pair *p,
                     size_t cap)
{
    bool two = json_type(node) == JSON_ARRAY
             ? read_two(&d->json, node, p, cap)
             : read_blank(&d->json, node, p, cap);
    if (!two)
        return doc_wanted(d, "merges", "two tokens", node);
    p->left_hash = spelling_hash(p->ab, p->split);
    p->right_hash = spelling_hash(p->ab + p->split, p->n - p->split);
    return 0;
}

/* last: the id that the merge before this one made. Most vocabularies number
 * them in order: the guess saves a search. */
static int find_tokens(const Vocabulary *v, const Document *d, Pair *p,
                       int32_t last)
{
    p->left = vocabulary_find_hash(v, p->ab, p->split, p->left_hash);
    p->right = vocabulary_find_hash(v, p->ab + p->split, p->n - p->split,
                                    p->right_hash);
    p->id = last + 1;
    if (!vocabulary_spells(v, p->id, p->ab, p->n))
        p->id = vocabulary_find(v, p->ab, p->n);
    if (p->left >= 0 && p->right >= 0 && p->id >= 0)
        return 0;
    return fail(d->err, "%s: merges: wanted tokens of the vocabulary, found "
                "%.*s and %.*s", d->path, (int)p->split, p->ab,
                (int)(p->n - p->split), p->ab + p->split);
}

static int add_merge(Merges *m, const Document *d, const Pair *p)
{
    if (merges_add(m, (uint32_t)p->left, (uint32_t)p->right, (uint32_t)p->id,
                   d->err) != 0)
        return doc_in_file(d, "merges");
    return 0;
}

enum { BLOCK = 64 };

/* Reads up to BLOCK merges from *node on into text, then looks them all up,
 * then adds them: twice as fast as one after another. *id: made by the last
 * merge. */
static int read_block(Tokenizer *t, const Document *d, const JsonNode *merges,
                      const JsonNode **node, char *text, int32_t *id)
{
    Pair pairs[BLOCK];
    size_t n = 0, used = 0;
    int status = 0;
    for (; status == 0 && n < BLOCK && *node != NULL; n++) {
        pairs[n].ab = text + used;
        status = read_pair(d, *node, &pairs[n], d->json.length + 1 - used);
        used += status == 0 ? pairs[n].n : 0;
        *node = doc_each(d, merges, *node);
    }
    for (size_t i = 0; status == 0 && i < n; i++) {
        status = find_tokens(&t->vocabulary, d, &pairs[i], *id);
        *id = pairs[i].id;
    }
    for (size_t i = 0; status == 0 && i < n; i++)
        status = add_merge(&t->merges, d, &pairs[i]);
    return status;
}

static int read_merges(Tokenizer *t, const Document *d,
                       const JsonNode *merges)
{
    int32_t id = -1;
    const JsonNode *node = doc_each(d, merges, NULL);
    /* All of them together are shorter than the file. */
    char *text = allocate(d->json.length + 1, 1, "merges", d->err);
    int status = text == NULL ? -1 : merges_open(&t->merges, &t->vocabulary,
                                                 merges->size, d->err);
    while (status == 0 && node != NULL)
        status = read_block(t, d, merges, &node, text, &id);
    free(text);
    return status;
}

static int read_model(Tokenizer *t, const Document *d, size_t n_added)
{
    static const char *const off[] = {
        "dropout", "continuing_subword_prefix", "end_of_word_suffix",
        "byte_fallback", "ignore_merges", NULL
    };
    const JsonNode *model = doc_get_typed(d, d->json.nodes, "model",
                                          JSON_OBJECT);
    if (model == NULL || doc_refuse_on(d, model, off) != 0)
        return -1;
    if (!doc_has_type(d, model, "BPE"))
        return doc_wanted(d, "model.type", "\"BPE\"",
                          doc_get(d, model, "type"));
    const JsonNode *vocab = doc_get_typed(d, model, "vocab", JSON_OBJECT);
    const JsonNode *merges = doc_get_typed(d, model, "merges", JSON_ARRAY);
    if (vocab == NULL || merges == NULL
        || read_vocabulary(t, d, vocab, n_added) != 0)
        return -1;
    return read_merges(t, d, merges);
}

/* tokenizer.json: from text to pieces and back --------------------------- */

/* What works like a Sequence: an array of steps under one of these keys. */
static const JsonNode *steps_of(const Document *d, const JsonNode *node)
{
    static const char *const keys[] = {
        "pretokenizers", "normalizers", "decoders", "processors"
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const JsonNode *steps = doc_get(d, node, keys[i]);
        if (steps != NULL && json_type(steps) == JSON_ARRAY)
            return steps;
    }
    return NULL;
}

static int read_split(Tokenizer *t, const Document *d, const JsonNode *node)
{
    static const char *const off[] = { "invert", NULL };
    const JsonNode *behavior = doc_get(d, node, "behavior");
    const JsonNode *regex = doc_get(d, doc_get(d, node, "pattern"), "Regex");
    if (doc_refuse_on(d, node, off) != 0)
        return -1;
    if (behavior == NULL || !json_equals(&d->json, behavior, "Isolated"))
        return doc_wanted(d, "Split.behavior", "\"Isolated\"", behavior);
    if (regex == NULL)
        return doc_wanted(d, "Split.pattern", "a Regex",
                          doc_get(d, node, "pattern"));
    size_t n;
    char *text = json_string_dup(&d->json, regex, "Regex", &n, d->err);
    int status = text == NULL ? -1
        : pretoken_add_regex(&t->pretokenizer, text, n, d->err);
    free(text);
    return status == 0 ? 0 : doc_in_file(d, "Split.pattern");
}

static int read_digits(Tokenizer *t, const Document *d, const JsonNode *node)
{
    const JsonNode *individual = doc_get(d, node, "individual_digits");
    bool one = individual != NULL && json_type(individual) == JSON_TRUE;
    if (!one && !doc_is_off(d, individual))
        return doc_wanted(d, "Digits.individual_digits", "true or false",
                      individual);
    if (pretoken_add_digits(&t->pretokenizer, one, d->err) != 0)
        return doc_in_file(d, "Digits");
    return 0;
}

static int read_byte_level(const Document *d, const JsonNode *node)
{
    static const char *const off[] = { "add_prefix_space", NULL };
    const JsonNode *regex = doc_get(d, node, "use_regex");
    if (regex == NULL || json_type(regex) != JSON_FALSE)
        return doc_wanted(d, "ByteLevel.use_regex", "false", regex);
    return doc_refuse_on(d, node, off);
}

/* One step or a Sequence of them; ByteLevel must be the last of all. As deep
 * as the JSON is. */
static int read_pretokenizer(Tokenizer *t, const Document *d,
                             const JsonNode *node, bool *bytes)
{
    const JsonNode *steps = steps_of(d, node);
    if (*bytes)
        return doc_wanted(d, "pre_tokenizer", "ByteLevel last", node);
    if (doc_has_type(d, node, "Sequence") && steps != NULL) {
        const JsonNode *step = doc_each(d, steps, NULL);
        for (; step != NULL; step = doc_each(d, steps, step)) {
            if (read_pretokenizer(t, d, step, bytes) != 0)
                return -1;
        }
        return 0;
    }
    if (doc_has_type(d, node, "Split"))
        return read_split(t, d, node);
    if (doc_has_type(d, node, "Digits"))
        return read_digits(t, d, node);
    if (!doc_has_type(d, node, "ByteLevel"))
        return doc_wanted(d, "pre_tokenizer.type", "Split, Digits or ByteLevel",
                      doc_get(d, node, "type"));
    *bytes = true;
    return read_byte_level(d, node);
}

/* A Sequence whose every step is one of type `name`, at least `least`. */
static bool only_steps(const Document *d, const JsonNode *node,
                       const char *name, size_t least)
{
    const JsonNode *steps = steps_of(d, node);
    if (!doc_has_type(d, node, "Sequence") || steps == NULL
        || steps->size < least)
        return false;
    const JsonNode *step = doc_each(d, steps, NULL);
    while (step != NULL && doc_has_type(d, step, name))
        step = doc_each(d, steps, step);
    return step == NULL;
}

static int check_normalizer(const Document *d)
{
    const JsonNode *node = doc_get(d, d->json.nodes, "normalizer");
    if (doc_is_off(d, node) || only_steps(d, node, "", 0))
        return 0;
    const JsonNode *type = doc_get(d, node, "type");
    return doc_wanted(d, "normalizer", "none", type == NULL ? node : type);
}

static int check_decoder(const Document *d)
{
    const JsonNode *node = doc_get(d, d->json.nodes, "decoder");
    if (node != NULL && (doc_has_type(d, node, "ByteLevel")
                         || only_steps(d, node, "ByteLevel", 1)))
        return 0;
    const JsonNode *type = node == NULL ? NULL : doc_get(d, node, "type");
    return doc_wanted(d, "decoder", "ByteLevel", type == NULL ? node : type);
}

/* The name in {"SpecialToken": {"id": name}} or NULL. */
static const JsonNode *special_name(const Document *d, const JsonNode *item)
{
    return doc_get(d, doc_get(d, item, "SpecialToken"), "id");
}

/* TemplateProcessing may put one token before the text: that is BOS. */
static int read_template_processing(Tokenizer *t, const Document *d,
                                    const JsonNode *node)
{
    const JsonNode *single = doc_get_typed(d, node, "single", JSON_ARRAY);
    if (single == NULL)
        return -1;
    const JsonNode *item = doc_each(d, single, NULL);
    const JsonNode *bos = item == NULL ? NULL : special_name(d, item);
    if (bos != NULL) {
        char *name = json_string_dup(&d->json, bos, "id", NULL, d->err);
        t->bos = name == NULL ? -1 : tokenizer_id(t, name);
        free(name);
        if (t->bos < 0)
            return doc_wanted(d, "post_processor", "a token", bos);
        t->add_bos = true;
        item = doc_each(d, single, item);
    }
    if (item == NULL || doc_get(d, item, "Sequence") == NULL
        || doc_each(d, single, item) != NULL)
        return doc_wanted(d, "post_processor.single",
                      "at most one token, before the text", single);
    return 0;
}

static int read_post_processor(Tokenizer *t, const Document *d,
                               const JsonNode *node)
{
    if (doc_is_off(d, node) || doc_has_type(d, node, "ByteLevel"))
        return 0; /* it only trims offsets */
    if (doc_has_type(d, node, "TemplateProcessing"))
        return read_template_processing(t, d, node);
    const JsonNode *steps = steps_of(d, node);
    if (!doc_has_type(d, node, "Sequence") || steps == NULL)
        return doc_wanted(d, "post_processor.type",
                      "ByteLevel or TemplateProcessing",
                      doc_get(d, node, "type"));
    const JsonNode *step = doc_each(d, steps, NULL);
    for (; step != NULL; step = doc_each(d, steps, step)) {
        if (read_post_processor(t, d, step) != 0)
            return -1;
    }
    return 0;
}

static int read_pipeline(Tokenizer *t, const Document *d)
{
    static const char *const off[] = { "truncation", "padding", NULL };
    bool bytes = false;
    const JsonNode *root = d->json.nodes;
    const JsonNode *node = doc_get_typed(d, root, "pre_tokenizer", JSON_OBJECT);
    if (node == NULL || doc_refuse_on(d, root, off) != 0
        || check_normalizer(d) != 0
        || read_pretokenizer(t, d, node, &bytes) != 0)
        return -1;
    if (!bytes)
        return doc_wanted(d, "pre_tokenizer", "ByteLevel last",
                      doc_get(d, node, "type"));
    return check_decoder(d);
}

/* tokenizer.json: added tokens ------------------------------------------- */

static int read_flag(const Document *d, const JsonNode *object,
                     const char *key, bool *value)
{
    const JsonNode *node = doc_get(d, object, key);
    *value = node != NULL && json_type(node) == JSON_TRUE;
    if (!*value && (node == NULL || json_type(node) != JSON_FALSE))
        return doc_wanted(d, key, "true or false", node);
    return 0;
}

static int wrong_id(const Document *d, const JsonNode *node, int32_t id)
{
    char name[100], what[130];
    snprintf(what, sizeof what, "%ld for %s", (long)id,
             doc_shown(d, doc_get(d, node, "content"), name, sizeof name));
    return doc_wanted(d, "added_tokens.id", what, doc_get(d, node, "id"));
}

/* Finds or makes the token that stands, n bytes long, at vocabulary_next. The
 * Hugging Face tokenizers number a new one *next, whatever the file says: a
 * file that says otherwise has no certain meaning. */
static int place_added(Tokenizer *t, const Document *d, const JsonNode *node,
                       size_t n, int64_t *next, AddedToken *token)
{
    Vocabulary *v = &t->vocabulary;
    const JsonNode *number = doc_get(d, node, "id");
    size_t room;
    int32_t known = vocabulary_find(v, vocabulary_next(v, &room), n);
    int64_t id;
    token->id = known < 0 ? (int32_t)*next : known;
    if (number == NULL || !json_integer(&d->json, number, token->id,
                                        token->id, &id))
        return wrong_id(d, node, token->id);
    if (known < 0 && vocabulary_add(v, n, (uint32_t)id, true, d->err) != 0)
        return doc_in_file(d, "added_tokens");
    if (id >= *next)
        *next = id + 1;
    token->text = v->text + vocabulary_token(v, id)->at;
    token->n = n;
    return 0;
}

static int read_added(Tokenizer *t, const Document *d, const JsonNode *node,
                      int64_t *next)
{
    static const char *const off[] = { "single_word", "lstrip", "rstrip",
                                       NULL };
    AddedToken token;
    bool normalized;
    size_t room;
    char *text = vocabulary_next(&t->vocabulary, &room);
    const JsonNode *content = doc_get(d, node, "content");
    long n = content == NULL ? -1
                             : json_string(&d->json, content, text, room);
    if (n <= 0)
        return doc_wanted(d, "added_tokens.content", "a string", content);
    if (doc_refuse_on(d, node, off) != 0
        || read_flag(d, node, "normalized", &normalized) != 0
        || read_flag(d, node, "special", &token.special) != 0
        || place_added(t, d, node, (size_t)n, next, &token) != 0)
        return -1;
    AddedSet *set = &t->added[normalized ? NORMALIZED : RAW];
    set->tokens[set->n++] = token;
    return 0;
}

static int compare_added(const void *a, const void *b)
{
    const AddedToken *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->n < y->n ? x->n : y->n);
    return order != 0 ? order : x->n < y->n ? -1 : x->n > y->n;
}

static int finish_added(Tokenizer *t, const Document *d, AddedSet *set)
{
    if (set->n > 0)
        qsort(set->tokens, set->n, sizeof *set->tokens, compare_added);
    for (size_t i = 0; i < set->n; i++) {
        const AddedToken *token = &set->tokens[i];
        if (i > 0 && token->id == token[-1].id)
            return fail(d->err, "%s: added_tokens: %.*s is there twice",
                        d->path, (int)token->n, token->text);
        set->first[(unsigned char)token->text[0]] = true;
        t->special[token->id] = token->special;
    }
    return 0;
}

static int read_all_added(Tokenizer *t, const Document *d,
                          const JsonNode *added)
{
    int64_t next = (int64_t)t->vocabulary.n_tokens;
    for (int pass = 0; pass < PASSES; pass++) {
        t->added[pass].tokens = allocate(added->size, sizeof(AddedToken),
                                         "added tokens", d->err);
        if (t->added[pass].tokens == NULL)
            return -1;
    }
    const JsonNode *node = doc_each(d, added, NULL);
    for (; node != NULL; node = doc_each(d, added, node)) {
        if (read_added(t, d, node, &next) != 0)
            return -1;
    }
    t->special = allocate(t->vocabulary.n_ids, sizeof *t->special,
                          "special tokens", d->err);
    if (t->special == NULL || finish_added(t, d, &t->added[RAW]) != 0)
        return -1;
    return finish_added(t, d, &t->added[NORMALIZED]);
}

static int read_tokenizer(Tokenizer *t, const Document *d)
{
    const JsonNode *root = d->json.nodes;
    const JsonNode *added = doc_get_typed(d, root, "added_tokens", JSON_ARRAY);
    if (added == NULL || read_pipeline(t, d) != 0
        || read_model(t, d, added->size) != 0
        || read_all_added(t, d, added) != 0)
        return -1;
    return read_post_processor(t, d, doc_get(d, root, "post_processor"));
}

/* tokenizer_config.json -------------------------------------------------- */

/* What a template's text must hold, and must not, to be the one named. The
 * first row that fits counts. */
static ChatTemplate recognise(const char *text)
{
    static const struct {
        ChatTemplate kind;
        const char *with[3], *without;
    } known[] = {
        { TEMPLATE_V31, { "<｜User｜>", "thinking is defined",
                          "split('</think>', 1)[1]" }, "split('</think>')" },
        { TEMPLATE_R1, { "<｜User｜>", "<｜tool▁outputs▁begin｜>",
                         "split('</think>')[-1]" }, "thinking is defined" },
        { TEMPLATE_V25, { "<｜User｜>", "<｜tool▁outputs▁begin｜>",
                          "ns.system_prompt = message['content']" },
          "think>" },
        { TEMPLATE_V3, { "<｜User｜>", "<｜tool▁outputs▁begin｜>",
                         "is_first_sp" }, "think>" },
        { TEMPLATE_V2, { "{{ 'User: ' + message['content'] + '",
                         "{{ 'Assistant: ' + message['content'] + eos_token",
                         "{{ 'Assistant:' }}" }, "<｜User｜>" }
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strstr(text, known[i].with[0]) != NULL
            && strstr(text, known[i].with[1]) != NULL
            && strstr(text, known[i].with[2]) != NULL
            && strstr(text, known[i].without) == NULL)
            return known[i].kind;
    }
    return TEMPLATE_NONE;
}

/* chat_template: text, or a list of {name, template}, where "default" is the
 * one. NULL where there is none. */
static const JsonNode *template_text(const Document *d)
{
    const JsonNode *node = doc_get(d, d->json.nodes, "chat_template");
    if (node == NULL || json_type(node) != JSON_ARRAY)
        return node;
    const JsonNode *item = doc_each(d, node, NULL);
    for (; item != NULL; item = doc_each(d, node, item)) {
        const JsonNode *name = doc_get(d, item, "name");
        if (name != NULL && json_equals(&d->json, name, "default"))
            return doc_get(d, item, "template");
    }
    return NULL;
}

static int read_template(Tokenizer *t, const Document *d)
{
    const JsonNode *node = template_text(d);
    if (node == NULL || json_type(node) == JSON_NULL)
        return 0;
    char *text = json_string_dup(&d->json, node, "chat_template", NULL,
                                 d->err);
    if (text == NULL)
        return doc_wanted(d, "chat_template", "a string", node);
    t->template = recognise(text);
    free(text);
    return 0;
}

/* bos_token, eos_token: a string, or an object whose content is one; null or
 * absent: *id stays. */
static int read_named(const Tokenizer *t, const Document *d, const char *key,
                      int32_t *id)
{
    const JsonNode *node = doc_get(d, d->json.nodes, key);
    if (node != NULL && json_type(node) == JSON_OBJECT)
        node = doc_get(d, node, "content");
    if (node == NULL || json_type(node) == JSON_NULL)
        return 0;
    char *name = json_type(node) != JSON_STRING ? NULL
        : json_string_dup(&d->json, node, key, NULL, d->err);
    int32_t found = name == NULL ? -1 : tokenizer_id(t, name);
    free(name);
    if (found < 0)
        return doc_wanted(d, key, "a token of tokenizer.json", node);
    if (*id >= 0 && *id != found)
        return doc_wanted(d, key, "the token of post_processor", node);
    *id = found;
    return 0;
}

static int read_config(Tokenizer *t, const Document *d)
{
    static const char *const off[] = { "add_eos_token", "add_prefix_space",
                                       NULL };
    const JsonNode *root = d->json.nodes;
    const JsonNode *add_bos = doc_get(d, root, "add_bos_token");
    if (json_type(root) != JSON_OBJECT)
        return doc_wanted(d, "it all", "an object", root);
    if (doc_refuse_on(d, root, off) != 0
        || read_named(t, d, "bos_token", &t->bos) != 0
        || read_named(t, d, "eos_token", &t->eos) != 0)
        return -1;
    if (add_bos != NULL && json_type(add_bos) != JSON_NULL
        && read_flag(d, root, "add_bos_token", &t->add_bos) != 0)
        return -1;
    if (t->add_bos && t->bos < 0)
        return doc_wanted(d, "bos_token", "a token, for add_bos_token is true",
                      doc_get(d, root, "bos_token"));
    return read_template(t, d);
}

/* chat_template.jinja, where newer files keep the template. */
static int read_jinja(Tokenizer *t, const char *dir, Error *err)
{
    File file;
    char *path = path_join(dir, "chat_template.jinja", err), *text = NULL;
    int status = path == NULL ? -1 : 0;
    if (status == 0 && path_exists(path)) {
        status = file_read(&file, path, err);
        if (status == 0) {
            text = allocate(file.size + 1, 1, path, err);
            status = text == NULL ? -1 : 0;
            if (text != NULL)
                memcpy(text, file.data, file.size);
            file_close(&file);
        }
    }
    if (text != NULL)
        t->template = recognise(text);
    free(text);
    free(path);
    return status;
}

static int open_config(Tokenizer *t, const char *dir, Error *err)
{
    Document d;
    char *path = path_join(dir, "tokenizer_config.json", err);
    if (path == NULL)
        return -1;
    bool exists = path_exists(path);
    free(path);
    if (exists) {
        if (doc_open(&d, dir, "tokenizer_config.json", err) != 0)
            return -1;
        int status = read_config(t, &d);
        doc_close(&d);
        if (status != 0)
            return -1;
    }
    return t->template == TEMPLATE_NONE ? read_jinja(t, dir, err) : 0;
}

/* The tokenizer as a whole ----------------------------------------------- */

Tokenizer *tokenizer_open(const char *dir, Error *err)
{
    Document d;
    Tokenizer *t = allocate(1, sizeof *t, "a tokenizer", err);
    if (t == NULL)
        return NULL;
    t->bos = t->eos = -1;
    int status = doc_open(&d, dir, "tokenizer.json", err);
    if (status == 0) {
        status = read_tokenizer(t, &d);
        doc_close(&d);
    }
    if (status == 0 && open_config(t, dir, err) == 0)
        return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(Tokenizer *t)
{
    vocabulary_close(&t->vocabulary);
    merges_close(&t->merges);
    pretoken_free(&t->pretokenizer);
    free(t->added[RAW].tokens);
    free(t->added[NORMALIZED].tokens);
    free(t->special);
    free(t);
}

size_t tokenizer_size(const Tokenizer *t)
{
    return t->vocabulary.n_ids;
}

int32_t tokenizer_bos(const Tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const Tokenizer *t)
{
    return t->eos;
}

bool tokenizer_add_bos(const Tokenizer *t)
{
    return t->add_bos;
}

int32_t tokenizer_id(const Tokenizer *t, const char *token)
{
    return vocabulary_find(&t->vocabulary, token, strlen(token));
}

ChatTemplate tokenizer_template(const Tokenizer *t)
{
    return t->template;
}

/* Encoding --------------------------------------------------------------- */

typedef struct {
    const Tokenizer *t;
    MergeWork work;
    IdList *out;
    Error *err;
} Encoder;

static int encode_piece(void *context, const char *piece, size_t n,
                        Error *err)
{
    Encoder *e = context;
    long count = merges_apply(&e->t->merges, piece, n, &e->work, err);
    if (count < 0 || ids_reserve(e->out, (size_t)count, err) != 0)
        return -1;
    for (long i = 0; i < count; i++)
        e->out->ids[e->out->n++] = (int32_t)e->work.ids[i];
    return 0;
}

/* The first of the sorted tokens low … high whose byte at `depth` is at least
 * c. All are longer than that. */
static size_t lower_bound(const AddedSet *set, size_t low, size_t high,
                          size_t depth, int c)
{
    while (low < high) {
        size_t middle = (low + high) / 2;
        if ((unsigned char)set->tokens[middle].text[depth] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool begins_with(const char *s, size_t n, const AddedToken *token)
{
    return n >= token->n && memcmp(s, token->text, token->n) == 0;
}

/* The longest added token that the n bytes at s begin with, or NULL: byte by
 * byte, fewer are left that could. */
static const AddedToken *longest_added(const AddedSet *set, const char *s,
                                       size_t n)
{
    const AddedToken *best = NULL;
    size_t low = 0, high = set->n;
    for (size_t depth = 0; low + 1 < high; depth++) {
        if (set->tokens[low].n == depth)
            best = &set->tokens[low++];
        if (depth == n)
            return best;
        int c = (unsigned char)s[depth];
        low = lower_bound(set, low, high, depth, c);
        high = lower_bound(set, low, high, depth, c + 1);
    }
    if (low < high && begins_with(s, n, &set->tokens[low]))
        best = &set->tokens[low];
    return best;
}

/* Cuts out the added tokens of this pass and of those after it. */
static int encode_span(Encoder *e, int pass, const char *text, size_t n)
{
    if (pass == PASSES)
        return pretoken_run(&e->t->pretokenizer, text, n, encode_piece, e,
                            e->err);
    const AddedSet *set = &e->t->added[pass];
    size_t start = 0, i = 0;
    while (i < n) {
        const AddedToken *token = set->first[(unsigned char)text[i]]
                                ? longest_added(set, text + i, n - i) : NULL;
        if (token == NULL) {
            i++;
            continue;
        }
        if (encode_span(e, pass + 1, text + start, i - start) != 0
            || ids_add(e->out, token->id, e->err) != 0)
            return -1;
        i += token->n;
        start = i;
    }
    return encode_span(e, pass + 1, text + start, n - start);
}

int tokenizer_encode(const Tokenizer *t, const char *text, size_t n,
                     IdList *out, Error *err)
{
    Encoder e = { t, { NULL, NULL, NULL, NULL, 0, 0 }, out, err };
    size_t before = out->n, valid = utf8_valid(text, n);
    if (valid < n)
        return fail(err, "text: wanted UTF-8, found byte 0x%02x at offset "
                    "%zu", (unsigned)(unsigned char)text[valid], valid);
    int status = encode_span(&e, RAW, text, n);
    if (status != 0)
        out->n = before;
    merge_work_free(&e.work);
    return status;
}

/* Decoding --------------------------------------------------------------- */

bool tokenizer_decode(const Tokenizer *t, int32_t id, bool skip_special,
                      const char **bytes, size_t *n)
{
    const Token *token = vocabulary_token(&t->vocabulary, id);
    if (token == NULL)
        return false;
    *bytes = t->vocabulary.bytes + token->at;
    *n = skip_special && t->special[id] ? 0 : token->n;
    return true;
}

/* Moves the first k held bytes out, or U+FFFD for them. */
static void release(Utf8Stream *s, int k, Text *out)
{
    if (k > 0)
        text_add(out, s->held, (size_t)k);
    else
        text_add(out, "\xef\xbf\xbd", 3);
    size_t used = (size_t)(k > 0 ? k : k < 0 ? -k : (int)s->n);
    s->n -= used;
    memmove(s->held, s->held + used, s->n);
}

void utf8_stream(Utf8Stream *s, const char *bytes, size_t n, bool flush,
                 Text *out)
{
    uint32_t code;
    for (size_t i = 0; i < n; i++) {
        s->held[s->n++] = bytes[i];
        int k;
        while (s->n > 0 && (k = utf8_decode(s->held, s->n, &code)) != 0)
            release(s, k, out);
    }
    if (flush && s->n > 0)
        release(s, 0, out);
}
