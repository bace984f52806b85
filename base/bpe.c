/* bpe.c: the symbols, the vocabulary, the merges, their application.
 *
 * Both tables are open addressing, at most half full, with linear probing. A
 * short piece is merged by looking through all ranks for the lowest; a long
 * one keeps its pairs in a heap by (rank, position) over a linked list, where
 * a pair that has changed since is recognised by its rank when it comes up. */
#include "bpe.h"

#include "unicode.h"

#include <stdlib.h>
#include <string.h>

/* Symbols ---------------------------------------------------------------- */

int symbol_byte(uint32_t code)
{
    if ((code >= 33 && code <= 126) || (code >= 161 && code <= 255))
        return code == 173 ? -1 : (int)code;
    if (code < 256 || code >= SYMBOLS_END)
        return -1;
    int rank = (int)code - 256; /* among 0-32, 127-160, 173 */
    return rank < 33 ? rank : rank < 67 ? rank - 33 + 127 : 173;
}

/* The bytes of a spelling of n bytes; out has room for as many. Returns their
 * number; the spelling itself where a character is no symbol. */
static size_t spelled_bytes(const char *text, size_t n, char *out)
{
    const char *s = text;
    size_t count = 0;
    while (s < text + n && *s > ' ' && *s <= '~') /* nearly all, most often */
        out[count++] = *s++;
    while (s < text + n) {
        int byte = symbol_byte(utf8_next(&s));
        if (byte < 0) {
            memcpy(out, text, n);
            return n;
        }
        out[count++] = (char)byte;
    }
    return count;
}

/* Vocabulary ------------------------------------------------------------- */

static const uint32_t NO_TOKEN = UINT32_MAX;

/* A slot of either table is a number + 1 below ten bits of its key's hash:
 * what is not there is seldom looked at. */
static const uint32_t NUMBER = (1u << 22) - 1;

static bool may_be(uint32_t slot, uint32_t hash)
{
    return ((slot ^ hash) & ~NUMBER) == 0;
}

/* The least power of two above twice n, less one. */
static size_t table_mask(size_t n)
{
    size_t size = 16;
    while (size < 2 * n + 2)
        size *= 2;
    return size - 1;
}

static uint64_t mix(uint64_t h)
{
    h *= 0xff51afd7ed558ccd;
    return (h ^ h >> 32) * 0xc4ceb9fe1a85ec53;
}

uint32_t spelling_hash(const char *text, size_t n)
{
    uint64_t h = n, word;
    for (; n >= 8; text += 8, n -= 8) {
        memcpy(&word, text, 8);
        h = mix(h ^ word);
    }
    word = 0;
    memcpy(&word, text, n);
    return (uint32_t)(mix(h ^ word) >> 32);
}

int vocabulary_open(Vocabulary *v, size_t n, size_t room, Error *err)
{
    memset(v, 0, sizeof *v);
    if (n > TOKEN_LIMIT)
        return fail(err, "wanted at most %d tokens, found %zu", TOKEN_LIMIT,
                    n);
    if (room >= NO_TOKEN)
        return fail(err, "wanted less than 4 GiB of tokens, found %zu", room);
    v->most_tokens = n;
    v->room = room;
    v->mask = table_mask(n);
    v->text = allocate(room, 1, "the vocabulary's text", err);
    v->bytes = allocate(room, 1, "the vocabulary's bytes", err);
    v->slots = allocate(v->mask + 1, sizeof *v->slots, "the vocabulary",
                        err);
    if (v->text != NULL && v->bytes != NULL && v->slots != NULL)
        return 0;
    vocabulary_close(v);
    return -1;
}

void vocabulary_close(Vocabulary *v)
{
    free(v->tokens);
    free(v->text);
    free(v->bytes);
    free(v->slots);
    memset(v, 0, sizeof *v);
}

char *vocabulary_next(Vocabulary *v, size_t *room)
{
    *room = v->room - v->used;
    return v->text + v->used;
}

const Token *vocabulary_token(const Vocabulary *v, int64_t id)
{
    if (id < 0 || (uint64_t)id >= v->n_ids || v->tokens[id].at == NO_TOKEN)
        return NULL;
    return &v->tokens[id];
}

bool vocabulary_spells(const Vocabulary *v, int64_t id, const char *text,
                       size_t n)
{
    const Token *t = vocabulary_token(v, id);
    return t != NULL && t->length == n
        && memcmp(v->text + t->at, text, n) == 0;
}

/* The slot of a spelling: the one it is in, or the empty one for it. */
static size_t find_slot(const Vocabulary *v, const char *text, size_t n,
                        uint32_t hash)
{
    size_t i = hash & v->mask;
    for (; v->slots[i] != 0; i = (i + 1) & v->mask) {
        if (may_be(v->slots[i], hash)
            && vocabulary_spells(v, (v->slots[i] & NUMBER) - 1, text, n))
            break;
    }
    return i;
}

int32_t vocabulary_find_hash(const Vocabulary *v, const char *text, size_t n,
                             uint32_t hash)
{
    size_t i = find_slot(v, text, n, hash);
    return (int32_t)(v->slots[i] & NUMBER) - 1;
}

int32_t vocabulary_find(const Vocabulary *v, const char *text, size_t n)
{
    return vocabulary_find_hash(v, text, n, spelling_hash(text, n));
}

/* Makes the table of tokens reach to an id below TOKEN_LIMIT. */
static int reach(Vocabulary *v, uint32_t id, Error *err)
{
    size_t capacity = v->capacity == 0 ? v->most_tokens : v->capacity;
    if (id >= v->capacity) {
        while (capacity <= id)
            capacity = 2 * capacity + 1;
        Token *tokens = allocate(capacity, sizeof *tokens, "tokens", err);
        if (tokens == NULL)
            return -1;
        if (v->n_ids > 0)
            memcpy(tokens, v->tokens, v->n_ids * sizeof *tokens);
        free(v->tokens);
        v->tokens = tokens;
        v->capacity = capacity;
    }
    while (v->n_ids <= id)
        v->tokens[v->n_ids++].at = NO_TOKEN;
    return 0;
}

static int refuse_token(const Vocabulary *v, const char *text, size_t n,
                        uint32_t id, Error *err)
{
    size_t left = v->room - v->used, there = n < left ? n : left;
    int shown = there < 80 ? (int)there : 80;
    if (id >= TOKEN_LIMIT || n > TOKEN_LONGEST)
        return fail(err, "token %.*s: wanted an id below %d and at most %d "
                    "bytes, found %lu and %zu", shown, text, TOKEN_LIMIT,
                    TOKEN_LONGEST, (unsigned long)id, n);
    if (vocabulary_token(v, id) != NULL)
        return fail(err, "token %.*s: its id %lu belongs to another", shown,
                    text, (unsigned long)id);
    if (v->n_tokens == v->most_tokens || n > left)
        return fail(err, "token %.*s: no room", shown, text);
    return 0;
}

/* Enters a token into the slots. */
static int enter(Vocabulary *v, uint32_t id, uint32_t hash, Error *err)
{
    const Token *t = &v->tokens[id];
    const char *text = v->text + t->at;
    size_t slot = find_slot(v, text, t->length, hash);
    if (v->slots[slot] != 0)
        return fail(err, "token %.*s: is there twice",
                    t->length < 80 ? (int)t->length : 80, text);
    v->slots[slot] = (hash & ~NUMBER) | (id + 1);
    return 0;
}

enum { BLOCK = 64 };

/* The ids from `first` on, BLOCK at most. */
static int index_block(Vocabulary *v, uint32_t first, Error *err)
{
    uint32_t hash[BLOCK], id;
    for (id = first; id < v->n_ids && id < first + BLOCK; id++) {
        const Token *t = &v->tokens[id];
        hash[id - first] = t->at == NO_TOKEN ? 0
                         : spelling_hash(v->text + t->at, t->length);
    }
    for (id = first; id < v->n_ids && id < first + BLOCK; id++) {
        if (v->tokens[id].at != NO_TOKEN
            && enter(v, id, hash[id - first], err) != 0)
            return -1;
    }
    return 0;
}

int vocabulary_index(Vocabulary *v, Error *err)
{
    for (uint32_t id = 0; id < v->n_ids; id += BLOCK) {
        if (index_block(v, id, err) != 0)
            return -1;
    }
    v->indexed = true;
    return 0;
}

int vocabulary_add(Vocabulary *v, size_t n, uint32_t id, bool literal,
                   Error *err)
{
    const char *text = v->text + v->used;
    if (refuse_token(v, text, n, id, err) != 0 || reach(v, id, err) != 0)
        return -1;
    Token *t = &v->tokens[id];
    t->at = (uint32_t)v->used;
    t->length = (uint16_t)n;
    if (literal)
        memcpy(v->bytes + t->at, text, n);
    t->n = literal ? t->length
                   : (uint16_t)spelled_bytes(text, n, v->bytes + t->at);
    v->used += n;
    v->n_tokens++;
    return v->indexed ? enter(v, id, spelling_hash(text, n), err) : 0;
}

/* Merges ----------------------------------------------------------------- */

static const uint32_t NO_RANK = UINT32_MAX;

static void find_byte_ids(Merges *m, const Vocabulary *v)
{
    for (int i = 0; i < 256; i++)
        m->byte_id[i] = -1;
    for (uint32_t code = 0; code < SYMBOLS_END; code++) {
        int byte = symbol_byte(code);
        if (byte >= 0) {
            char text[4];
            size_t n = utf8_encode(code, text);
            m->byte_id[byte] = vocabulary_find(v, text, n);
        }
    }
}

int merges_open(Merges *m, const Vocabulary *v, size_t n, Error *err)
{
    memset(m, 0, sizeof *m);
    if (n > TOKEN_LIMIT)
        return fail(err, "wanted at most %d merges, found %zu", TOKEN_LIMIT,
                    n);
    m->most = n;
    m->mask = table_mask(n);
    m->list = allocate(n, sizeof *m->list, "the merges", err);
    m->slots = allocate(m->mask + 1, sizeof *m->slots, "the merges", err);
    find_byte_ids(m, v);
    if (m->list != NULL && m->slots != NULL)
        return 0;
    merges_close(m);
    return -1;
}

void merges_close(Merges *m)
{
    free(m->list);
    free(m->slots);
    memset(m, 0, sizeof *m);
}

static uint32_t hash_pair(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15;
    return (uint32_t)(h >> 32 ^ h >> 10);
}

/* The slot of a pair, or the empty one for it. */
static inline size_t find_pair(const Merges *m, uint32_t left, uint32_t right,
                               uint32_t hash)
{
    size_t i = hash & m->mask;
    for (; m->slots[i] != 0; i = (i + 1) & m->mask) {
        if (!may_be(m->slots[i], hash))
            continue;
        const Merge *merge = &m->list[(m->slots[i] & NUMBER) - 1];
        if (merge->left == left && merge->right == right)
            break;
    }
    return i;
}

/* The rank of a pair, or NO_RANK. */
static inline uint32_t pair_rank(const Merges *m, uint32_t left,
                                 uint32_t right)
{
    size_t i = find_pair(m, left, right, hash_pair(left, right));
    return (m->slots[i] & NUMBER) - 1;
}

int merges_add(Merges *m, uint32_t left, uint32_t right, uint32_t id,
               Error *err)
{
    uint32_t hash = hash_pair(left, right);
    size_t slot = find_pair(m, left, right, hash);
    if (m->slots[slot] != 0)
        return fail(err, "merge %zu is that of merge %lu", m->n,
                    (unsigned long)(m->slots[slot] & NUMBER) - 1);
    if (m->n == m->most)
        return fail(err, "merge %zu: no room", m->n);
    m->list[m->n].left = left;
    m->list[m->n].right = right;
    m->list[m->n++].id = id;
    m->slots[slot] = (hash & ~NUMBER) | (uint32_t)m->n;
    return 0;
}

/* Application ------------------------------------------------------------ */

enum { SHORT = 48 }; /* bytes of a piece that is searched through */

/* The index of the lowest of n >= 1 ranks, the first on ties. */
static size_t lowest(const uint32_t *rank, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (rank[i] < rank[best])
            best = i;
    }
    return best;
}

static size_t apply_short(const Merges *m, uint32_t *ids, size_t n)
{
    uint32_t rank[SHORT]; /* of the pair i, i + 1 */
    for (size_t i = 0; i + 1 < n; i++)
        rank[i] = pair_rank(m, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t i = lowest(rank, n - 1);
        if (rank[i] == NO_RANK)
            break;
        ids[i] = m->list[rank[i]].id;
        n--;
        for (size_t k = i + 1; k < n; k++) {
            ids[k] = ids[k + 1];
            rank[k - 1] = rank[k];
        }
        if (i > 0)
            rank[i - 1] = pair_rank(m, ids[i - 1], ids[i]);
        if (i + 1 < n)
            rank[i] = pair_rank(m, ids[i], ids[i + 1]);
    }
    return n;
}

/* A binary heap of rank << 32 | position, the lowest on top. */
static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t item = heap[i];
    for (size_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= item)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = item;
}

static void push(uint64_t *heap, size_t *n, uint64_t item)
{
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > item; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
}

static uint64_t pop(uint64_t *heap, size_t *n)
{
    uint64_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0)
        sift_down(heap, *n, 0);
    return top;
}

static const uint32_t GONE = UINT32_MAX; /* next of an id that was merged */

/* The rank of position i with the next, or NO_RANK. */
static uint32_t rank_at(const Merges *m, const MergeWork *w, size_t n,
                        size_t i)
{
    if (w->next[i] >= n) /* the last, or GONE */
        return NO_RANK;
    return pair_rank(m, w->ids[i], w->ids[w->next[i]]);
}

static void push_pair(const Merges *m, MergeWork *w, size_t n, size_t i,
                      size_t *heap_size)
{
    uint32_t rank = rank_at(m, w, n, i);
    if (rank != NO_RANK)
        push(w->heap, heap_size, (uint64_t)rank << 32 | i);
}

/* Every pair of the bytes; a heap in O(n). */
static size_t first_pairs(const Merges *m, MergeWork *w, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        w->next[i] = (uint32_t)i + 1;
        w->prev[i] = (uint32_t)i - 1;
        uint32_t rank = rank_at(m, w, n, i);
        if (rank != NO_RANK)
            w->heap[count++] = (uint64_t)rank << 32 | i;
    }
    for (size_t i = count / 2; i-- > 0;)
        sift_down(w->heap, count, i);
    return count;
}

/* Takes the id after position i out of the list. */
static void unlink_next(MergeWork *w, size_t n, size_t i)
{
    uint32_t gone = w->next[i], after = w->next[gone];
    w->next[i] = after;
    w->next[gone] = GONE;
    if (after < n)
        w->prev[after] = (uint32_t)i;
}

/* The ids that are left, moved together. */
static size_t compact(MergeWork *w, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i = w->next[i])
        w->ids[count++] = w->ids[i];
    return count;
}

static size_t apply_long(const Merges *m, MergeWork *w, size_t n)
{
    size_t heap_size = first_pairs(m, w, n);
    while (heap_size > 0) {
        uint64_t top = pop(w->heap, &heap_size);
        size_t i = (uint32_t)top;
        if (rank_at(m, w, n, i) != top >> 32)
            continue; /* the pair has changed since */
        w->ids[i] = m->list[top >> 32].id;
        unlink_next(w, n, i);
        push_pair(m, w, n, i, &heap_size);
        if (i > 0)
            push_pair(m, w, n, w->prev[i], &heap_size);
    }
    return compact(w, n);
}

/* Room for the ids of n bytes. */
static int make_room(MergeWork *w, size_t n, Error *err)
{
    if (n <= w->room)
        return 0;
    free(w->ids);
    w->room = 0;
    w->ids = allocate(2 * n, sizeof *w->ids, "a piece's tokens", err);
    if (w->ids == NULL)
        return -1;
    w->room = 2 * n;
    return 0;
}

/* Room for the list and the heap of n ids: at most n - 1 pairs to begin with
 * and two more for each of n - 1 merges. */
static int make_list_room(MergeWork *w, size_t n, Error *err)
{
    if (n <= w->list_room)
        return 0;
    free(w->next);
    free(w->prev);
    free(w->heap);
    w->list_room = 0;
    w->next = allocate(n, sizeof *w->next, "a piece's list", err);
    w->prev = allocate(n, sizeof *w->prev, "a piece's list", err);
    w->heap = allocate(n, 3 * sizeof *w->heap, "a piece's pairs", err);
    if (w->next == NULL || w->prev == NULL || w->heap == NULL)
        return -1;
    w->list_room = n;
    return 0;
}

void merge_work_free(MergeWork *w)
{
    free(w->ids);
    free(w->next);
    free(w->prev);
    free(w->heap);
    memset(w, 0, sizeof *w);
}

long merges_apply(const Merges *m, const char *piece, size_t n,
                  MergeWork *work, Error *err)
{
    if (n > INT32_MAX)
        return fail(err, "wanted a piece below 2 GiB, found %zu bytes", n);
    if (make_room(work, n, err) != 0)
        return -1;
    for (size_t i = 0; i < n; i++) {
        int byte = (unsigned char)piece[i];
        if (m->byte_id[byte] < 0)
            return fail(err, "the vocabulary has no token for byte 0x%02x",
                        (unsigned)byte);
        work->ids[i] = (uint32_t)m->byte_id[byte];
    }
    if (n <= SHORT)
        return (long)apply_short(m, work->ids, n);
    if (make_list_room(work, n, err) != 0)
        return -1;
    return (long)apply_long(m, work, n);
}
