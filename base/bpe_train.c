/* bpe_train.c: counted words, then a queue of pairs.
 *
 *   words -> ids (a byte each) -> counts of pairs, and the words they are in
 *         -> queue -> the first pair -> merged in its words -> counts …
 *
 * The queue holds entries: a pair, its count, and words it was seen in. An
 * entry's count may be out of date; it is set right when the entry comes to
 * the top, and the entry goes back. Equal counts: the pair with the lower ids
 * first. Merging changes the counts of the pairs beside; where a pair comes
 * about, it gets a new entry with the words where it just did.
 *
 * The count of a pair that is merged stays what it was. So a token that comes
 * about in a second way (aa·a, later a·aa) can bring a pair back that was
 * merged before, at its old count and more: it is merged again, and its rank
 * is that of the last time. The library does so too, and its ranks depend on
 * it. */
#include "bpe_train.h"

#include "os.h"
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

/* n elements of size bytes, with room for one more; the new room is zeroed
 * by nobody. */
static void *grow(void *list, size_t n, size_t *capacity, size_t size,
                  const char *what, Error *err)
{
    size_t more = *capacity < 512 ? 1024 : 2 * *capacity;
    void *p = more > PTRDIFF_MAX / size ? NULL : realloc(list, more * size);
    if (p == NULL)
        fail(err, "not enough memory for %s: %zu of %zu bytes", what, n + 1,
             size);
    else
        *capacity = more;
    return p;
}

/* Counting words --------------------------------------------------------- */

/* The slot that a word is in, or the empty one for it. */
static size_t word_slot(const Words *w, const char *word, size_t n,
                        uint32_t hash)
{
    size_t i = hash & w->mask;
    for (; w->slots[i] != 0; i = (i + 1) & w->mask) {
        const Word *at = &w->list[w->slots[i] - 1];
        if (at->hash == hash && at->n == n
            && memcmp(w->text + at->at, word, n) == 0)
            break;
    }
    return i;
}

/* A table of twice the size, at most half full. */
static int widen_words(Words *w, Error *err)
{
    size_t mask = w->mask == 0 ? 1023 : 2 * w->mask + 1;
    uint32_t *slots = allocate(mask + 1, sizeof *slots, "words", err);
    if (slots == NULL)
        return -1;
    for (size_t k = 0; k < w->n; k++) {
        size_t i = w->list[k].hash & mask;
        while (slots[i] != 0)
            i = (i + 1) & mask;
        slots[i] = (uint32_t)k + 1;
    }
    free(w->slots);
    w->slots = slots;
    w->mask = mask;
    return 0;
}

static int room_for_word(Words *w, size_t n, Error *err)
{
    if (w->n == w->capacity) {
        Word *list = grow(w->list, w->n, &w->capacity, sizeof *list, "words",
                          err);
        if (list == NULL)
            return -1;
        w->list = list;
    }
    while (n > w->room - w->used) {
        char *text = grow(w->text, w->used, &w->room, 1, "words", err);
        if (text == NULL)
            return -1;
        w->text = text;
    }
    return 2 * (w->n + 1) > w->mask ? widen_words(w, err) : 0;
}

static int new_word(Words *w, const char *word, size_t n, uint32_t hash,
                    uint64_t times, Error *err)
{
    if (n > INT32_MAX || w->n >= INT32_MAX)
        return fail(err, "wanted fewer than 2^31 words below 2 GiB each");
    if (room_for_word(w, n, err) != 0)
        return -1;
    size_t slot = word_slot(w, word, n, hash);
    memcpy(w->text + w->used, word, n);
    w->list[w->n] = (Word){w->used, (uint32_t)n, hash, times};
    w->used += n;
    w->slots[slot] = (uint32_t)++w->n;
    return 0;
}

int words_add(Words *w, const char *word, size_t n, uint64_t times,
              Error *err)
{
    uint32_t hash = spelling_hash(word, n);
    w->total += times;
    if (w->slots != NULL) {
        size_t slot = word_slot(w, word, n, hash);
        if (w->slots[slot] != 0) {
            w->list[w->slots[slot] - 1].count += times;
            return 0;
        }
    }
    return new_word(w, word, n, hash, times, err);
}

void words_free(Words *w)
{
    free(w->text);
    free(w->list);
    free(w->slots);
    memset(w, 0, sizeof *w);
}

/* Pairs ------------------------------------------------------------------ */

static const uint32_t NONE = UINT32_MAX;

typedef struct {
    uint64_t key;            /* left id << 32 | right id */
    uint64_t count;          /* of its occurrences, merged ones included */
    uint32_t seen;           /* words where it came about in this step */
    uint32_t rank;           /* of its merge, or NONE */
} Pair;

/* A list of words, for a pair or an entry; NONE ends it. */
typedef struct {
    uint32_t word, next;
} Node;

typedef struct {
    uint64_t count, key;
    uint32_t pair, seen;
} Entry;

typedef struct {
    const Words *words;
    uint32_t *ids;           /* of word i from words->list[i].at on */
    uint32_t *length;        /* how many it still has */
    Pair *pairs;
    size_t n_pairs, pairs_room;
    uint32_t *slots;         /* index in pairs + 1; 0: empty */
    size_t mask;
    Node *nodes;
    size_t n_nodes, nodes_room;
    uint32_t free_nodes;     /* a list of those not in use */
    Entry *queue;            /* a binary heap */
    size_t n_queue, queue_room;
    uint32_t *fresh;         /* pairs with words seen in this step */
    size_t n_fresh, fresh_room;
    Merge *merges;           /* with those whose pair came again, id NONE */
    size_t n_merges, merges_room;
    Learnt learnt;
    size_t bytes_room, most; /* most: tokens wanted */
    uint32_t *token_slots;   /* id + 1 of a learnt token; 0: empty */
    size_t token_mask;
    Error *err;
} Trainer;

static uint64_t key_of(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

static size_t pair_place(uint64_t key, size_t mask)
{
    uint64_t h = key * 0x9e3779b97f4a7c15;
    return (size_t)(h ^ h >> 32) & mask;
}

static int widen_pairs(Trainer *t)
{
    size_t mask = t->mask == 0 ? 4095 : 2 * t->mask + 1;
    uint32_t *slots = allocate(mask + 1, sizeof *slots, "pairs", t->err);
    if (slots == NULL)
        return -1;
    for (size_t k = 0; k < t->n_pairs; k++) {
        size_t i = pair_place(t->pairs[k].key, mask);
        while (slots[i] != 0)
            i = (i + 1) & mask;
        slots[i] = (uint32_t)k + 1;
    }
    free(t->slots);
    t->slots = slots;
    t->mask = mask;
    return 0;
}

static Pair *new_pair(Trainer *t, uint64_t key)
{
    if (t->n_pairs == t->pairs_room) {
        Pair *pairs = grow(t->pairs, t->n_pairs, &t->pairs_room,
                           sizeof *pairs, "pairs", t->err);
        if (pairs == NULL)
            return NULL;
        t->pairs = pairs;
    }
    if (t->n_pairs >= NONE - 1) {
        fail(t->err, "wanted fewer than 2^32 pairs");
        return NULL;
    }
    if (2 * (t->n_pairs + 1) > t->mask && widen_pairs(t) != 0)
        return NULL;
    size_t i = pair_place(key, t->mask);
    while (t->slots[i] != 0)
        i = (i + 1) & t->mask;
    t->slots[i] = (uint32_t)t->n_pairs + 1;
    t->pairs[t->n_pairs] = (Pair){key, 0, NONE, NONE};
    return &t->pairs[t->n_pairs++];
}

/* The pair of this key, made if there is none; NULL when memory is short. */
static Pair *find_pair(Trainer *t, uint64_t key)
{
    size_t i = t->mask == 0 ? 0 : pair_place(key, t->mask);
    for (; t->mask != 0 && t->slots[i] != 0; i = (i + 1) & t->mask) {
        Pair *p = &t->pairs[t->slots[i] - 1];
        if (p->key == key)
            return p;
    }
    return new_pair(t, key);
}

/* Puts a word before a list. */
static int prepend(Trainer *t, uint32_t word, uint32_t *list)
{
    uint32_t node = t->free_nodes;
    if (node != NONE) {
        t->free_nodes = t->nodes[node].next;
        t->nodes[node] = (Node){word, *list};
        *list = node;
        return 0;
    }
    if (t->n_nodes == t->nodes_room) {
        Node *nodes = grow(t->nodes, t->n_nodes, &t->nodes_room,
                           sizeof *nodes, "places of pairs", t->err);
        if (nodes == NULL)
            return -1;
        t->nodes = nodes;
    }
    if (t->n_nodes == NONE)
        return fail(t->err, "wanted fewer than 2^32 places of pairs");
    t->nodes[t->n_nodes] = (Node){word, *list};
    *list = (uint32_t)t->n_nodes++;
    return 0;
}

static int add_fresh(Trainer *t, const Pair *p)
{
    if (t->n_fresh == t->fresh_room) {
        uint32_t *fresh = grow(t->fresh, t->n_fresh, &t->fresh_room,
                               sizeof *fresh, "pairs", t->err);
        if (fresh == NULL)
            return -1;
        t->fresh = fresh;
    }
    t->fresh[t->n_fresh++] = (uint32_t)(p - t->pairs);
    return 0;
}

/* A pair came about in this word. Words come one after another, so that the
 * last one seen tells whether this one was. */
static int pair_seen(Trainer *t, uint32_t left, uint32_t right, uint32_t word)
{
    Pair *p = find_pair(t, key_of(left, right));
    if (p == NULL)
        return -1;
    p->count += t->words->list[word].count;
    if (p->seen == NONE && add_fresh(t, p) != 0)
        return -1;
    if (p->seen != NONE && t->nodes[p->seen].word == word)
        return 0;
    return prepend(t, word, &p->seen);
}

/* A pair that was counted in this word is no longer there. */
static int pair_gone(Trainer *t, uint32_t left, uint32_t right, uint32_t word)
{
    Pair *p = find_pair(t, key_of(left, right));
    if (p == NULL)
        return -1;
    p->count -= t->words->list[word].count;
    return 0;
}

/* The queue -------------------------------------------------------------- */

static bool before(const Entry *a, const Entry *b)
{
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

/* Moves the entry at the top down to where it belongs. */
static void sink(Trainer *t)
{
    Entry *q = t->queue, entry = q[0];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < t->n_queue; i = child) {
        if (child + 1 < t->n_queue && before(&q[child + 1], &q[child]))
            child++;
        if (!before(&q[child], &entry))
            break;
        q[i] = q[child];
    }
    q[i] = entry;
}

static int push(Trainer *t, Entry entry)
{
    if (t->n_queue == t->queue_room) {
        Entry *queue = grow(t->queue, t->n_queue, &t->queue_room,
                            sizeof *queue, "the queue", t->err);
        if (queue == NULL)
            return -1;
        t->queue = queue;
    }
    size_t i = t->n_queue++;
    for (; i > 0 && before(&entry, &t->queue[(i - 1) / 2]); i = (i - 1) / 2)
        t->queue[i] = t->queue[(i - 1) / 2];
    t->queue[i] = entry;
    return 0;
}

/* Puts the entry with the highest true count on top: false where there is
 * none. */
static bool top_up_to_date(Trainer *t)
{
    while (t->n_queue > 0) {
        uint64_t count = t->pairs[t->queue[0].pair].count;
        if (t->queue[0].count == count)
            return true;
        t->queue[0].count = count;
        sink(t);
    }
    return false;
}

static Entry pop(Trainer *t)
{
    Entry top = t->queue[0];
    t->queue[0] = t->queue[--t->n_queue];
    if (t->n_queue > 0)
        sink(t);
    return top;
}

static void free_list(Trainer *t, uint32_t node)
{
    while (node != NONE) {
        uint32_t next = t->nodes[node].next;
        t->nodes[node].next = t->free_nodes;
        t->free_nodes = node;
        node = next;
    }
}

/* An entry for each pair that came about in this step, unless it went away
 * again. */
static int queue_fresh(Trainer *t)
{
    for (size_t i = 0; i < t->n_fresh; i++) {
        Pair *p = &t->pairs[t->fresh[i]];
        if (p->count == 0)
            free_list(t, p->seen);
        else if (push(t, (Entry){p->count, p->key, t->fresh[i], p->seen})
                 != 0)
            return -1;
        p->seen = NONE;
    }
    t->n_fresh = 0;
    return 0;
}

/* Tokens ----------------------------------------------------------------- */

static const char *token_bytes(const Learnt *l, size_t id, size_t *n)
{
    *n = l->at[id + 1] - l->at[id];
    return l->bytes + l->at[id];
}

/* The slot of the token with these bytes, or the empty one for it. */
static size_t token_slot(const Trainer *t, const char *bytes, size_t n)
{
    size_t i = spelling_hash(bytes, n) & t->token_mask;
    for (; t->token_slots[i] != 0; i = (i + 1) & t->token_mask) {
        size_t m;
        const char *b = token_bytes(&t->learnt, t->token_slots[i] - 1, &m);
        if (m == n && memcmp(b, bytes, n) == 0)
            break;
    }
    return i;
}

/* Writes the bytes of two tokens behind those of all; returns their number, 0
 * where they are too many, or -1. */
static long join(Trainer *t, uint32_t left, uint32_t right)
{
    Learnt *l = &t->learnt;
    size_t n, m, used = l->at[l->n_tokens];
    token_bytes(l, left, &n);
    token_bytes(l, right, &m);
    if (n + m > LEARNT_LONGEST)
        return 0;
    while (n + m > t->bytes_room - used) {
        char *bytes = grow(l->bytes, used, &t->bytes_room, 1, "tokens",
                           t->err);
        if (bytes == NULL)
            return -1;
        l->bytes = bytes;
    }
    memcpy(l->bytes + used, l->bytes + l->at[left], n);
    memcpy(l->bytes + used + n, l->bytes + l->at[right], m);
    return (long)(n + m);
}

/* The id of the n joined bytes; a new one where no token has them. */
static uint32_t joined_id(Trainer *t, size_t n)
{
    Learnt *l = &t->learnt;
    size_t used = l->at[l->n_tokens];
    size_t slot = token_slot(t, l->bytes + used, n);
    if (t->token_slots[slot] == 0) {
        l->at[++l->n_tokens] = used + n;
        t->token_slots[slot] = (uint32_t)l->n_tokens;
    }
    return t->token_slots[slot] - 1;
}

/* The next merge; one of the same pair before it no longer counts. */
static int add_merge(Trainer *t, Pair *p, Merge merge)
{
    if (t->n_merges == t->merges_room) {
        Merge *merges = grow(t->merges, t->n_merges, &t->merges_room,
                             sizeof *merges, "merges", t->err);
        if (merges == NULL)
            return -1;
        t->merges = merges;
    }
    if (p->rank != NONE)
        t->merges[p->rank].id = NONE;
    p->rank = (uint32_t)t->n_merges;
    t->merges[t->n_merges++] = merge;
    return 0;
}

/* Merging ---------------------------------------------------------------- */

/* The neighbours of what became one: before it, and after. */
static int changed(Trainer *t, uint32_t word, const Merge *m, uint32_t left,
                   uint32_t right)
{
    if (left != NONE
        && (pair_gone(t, left, m->left, word) != 0
            || pair_seen(t, left, m->id, word) != 0))
        return -1;
    if (right != NONE
        && (pair_gone(t, m->right, right, word) != 0
            || pair_seen(t, m->id, right, word) != 0))
        return -1;
    return 0;
}

/* Merges a pair in one word, from left to right, in place. */
static int merge_word(Trainer *t, uint32_t word, const Merge *m)
{
    uint32_t *id = t->ids + t->words->list[word].at;
    size_t n = t->length[word], k = 0;
    for (size_t i = 0; i < n; i++) {
        if (id[i] != m->left || i + 1 == n || id[i + 1] != m->right) {
            id[k++] = id[i];
            continue;
        }
        i++;
        if (changed(t, word, m, k > 0 ? id[k - 1] : NONE,
                    i + 1 < n ? id[i + 1] : NONE) != 0)
            return -1;
        id[k++] = m->id;
    }
    t->length[word] = (uint32_t)k;
    return 0;
}

static int merge_entry(Trainer *t, const Entry *e)
{
    Merge m = {(uint32_t)(e->key >> 32), (uint32_t)e->key, 0};
    long n = join(t, m.left, m.right);
    int status = n < 0 ? -1 : 0;
    if (n > 0) {
        m.id = joined_id(t, (size_t)n);
        status = add_merge(t, &t->pairs[e->pair], m);
    }
    for (uint32_t at = n > 0 ? e->seen : NONE; status == 0 && at != NONE;
         at = t->nodes[at].next)
        status = merge_word(t, t->nodes[at].word, &m);
    free_list(t, e->seen);
    return status == 0 ? queue_fresh(t) : -1;
}

/* The whole -------------------------------------------------------------- */

/* The 256 bytes as tokens; rank[byte] is its id. */
static void byte_tokens(Learnt *l, uint32_t rank[256])
{
    for (uint32_t code = 0; code < SYMBOLS_END; code++) {
        int byte = symbol_byte(code);
        if (byte < 0)
            continue;
        rank[byte] = (uint32_t)l->n_tokens;
        l->bytes[l->n_tokens++] = (char)byte;
        l->at[l->n_tokens] = l->n_tokens;
    }
}

static int first_ids(Trainer *t)
{
    const Words *w = t->words;
    uint32_t rank[256];
    byte_tokens(&t->learnt, rank);
    for (size_t i = 0; i < w->used; i++)
        t->ids[i] = rank[(unsigned char)w->text[i]];
    for (uint32_t i = 0; i < w->n; i++) {
        const uint32_t *id = t->ids + w->list[i].at;
        t->length[i] = w->list[i].n;
        for (size_t k = 1; k < w->list[i].n; k++) {
            if (pair_seen(t, id[k - 1], id[k], i) != 0)
                return -1;
        }
    }
    return queue_fresh(t);
}

static int trainer_open(Trainer *t)
{
    size_t mask = 1023;
    while (mask < 2 * t->most)
        mask = 2 * mask + 1;
    t->free_nodes = NONE;
    t->token_mask = mask;
    t->bytes_room = 16 * t->most;
    t->token_slots = allocate(mask + 1, sizeof *t->token_slots, "tokens",
                              t->err);
    t->learnt.at = allocate(t->most + 1, sizeof *t->learnt.at, "tokens",
                            t->err);
    t->learnt.bytes = allocate(t->bytes_room, 1, "tokens", t->err);
    t->ids = allocate(t->words->used, sizeof *t->ids, "words", t->err);
    t->length = allocate(t->words->n, sizeof *t->length, "words", t->err);
    return t->token_slots == NULL || t->learnt.at == NULL
        || t->learnt.bytes == NULL || t->ids == NULL || t->length == NULL
         ? -1 : 0;
}

static void trainer_close(Trainer *t)
{
    free(t->ids);
    free(t->length);
    free(t->pairs);
    free(t->slots);
    free(t->nodes);
    free(t->queue);
    free(t->fresh);
    free(t->token_slots);
}

static int train(Trainer *t, uint64_t min_count, const char *what)
{
    Progress progress;
    int status = 0;
    progress_begin(&progress, what);
    while (status == 0 && t->learnt.n_tokens < t->most && top_up_to_date(t)) {
        Entry top = pop(t);
        if (top.count < 1 || top.count < min_count)
            break;
        status = merge_entry(t, &top);
        progress_show(&progress, (double)t->learnt.n_tokens,
                      (double)t->most);
    }
    progress_end(&progress);
    return status;
}

/* Merges whose pair came again are left out. */
static void keep_last(Trainer *t)
{
    Learnt *l = &t->learnt;
    l->merges = t->merges;
    for (size_t i = 0; i < t->n_merges; i++) {
        if (t->merges[i].id != NONE)
            l->merges[l->n_merges++] = t->merges[i];
    }
}

int bpe_train(Learnt *out, const Words *w, size_t n_tokens,
              uint64_t min_count, const char *what, Error *err)
{
    Trainer t = {.words = w, .most = n_tokens, .err = err};
    memset(out, 0, sizeof *out);
    if (n_tokens < LEARNT_FIRST || n_tokens >= TOKEN_LIMIT)
        return fail(err, "wanted from %d to %d tokens, found %zu",
                    LEARNT_FIRST, TOKEN_LIMIT - 1, n_tokens);
    int status = trainer_open(&t);
    if (status == 0)
        status = first_ids(&t);
    if (status == 0)
        status = train(&t, min_count, what);
    keep_last(&t);
    trainer_close(&t);
    if (status == 0)
        *out = t.learnt;
    else
        learnt_free(&t.learnt);
    return status;
}

void learnt_free(Learnt *l)
{
    free(l->merges);
    free(l->bytes);
    free(l->at);
    memset(l, 0, sizeof *l);
}
