/* bpe.h: a vocabulary of byte strings and the merges that build them.
 *
 * A token is spelled in symbols, one printable character a byte, the way that
 * byte-level vocabularies are stored: bytes 33-126, 161-172 and 174-255 stand
 * for themselves as code points, the other 68 become U+0100 … U+0143 in
 * order. A spelling with any other character in it is taken as it is. */
#ifndef BASE_BPE_H
#define BASE_BPE_H

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    TOKEN_LIMIT = (1 << 22) - 1, /* ids are below this */
    TOKEN_LONGEST = UINT16_MAX   /* bytes of a spelling */
};

/* The byte that a symbol stands for, or -1 for a code point that is none. */
int symbol_byte(uint32_t code);
enum { SYMBOLS_END = 256 + 68 }; /* above the greatest symbol */

/* Small, for a table of 128,000 should stay in the cache. */
typedef struct {
    uint32_t at;             /* into text and into bytes; NO_TOKEN: no such */
    uint16_t length, n;      /* of its spelling; of its bytes */
} Token;

typedef struct {
    Token *tokens;           /* by id */
    size_t n_ids, capacity;  /* n_ids: the greatest id + 1 */
    size_t n_tokens, most_tokens;
    char *text, *bytes;      /* of all tokens, one after another */
    size_t used, room;
    uint32_t *slots;         /* 10 bits of hash, 22 of id + 1; 0: empty */
    size_t mask;
    bool indexed;            /* the slots hold every token */
} Vocabulary;

/* Room for at most n tokens whose spellings take `room` bytes in all, below
 * 4 GiB. */
int vocabulary_open(Vocabulary *v, size_t n, size_t room, Error *err);
void vocabulary_close(Vocabulary *v);
/* Where the spelling of the next token may be written in place. */
char *vocabulary_next(Vocabulary *v, size_t *room);
/* Adds the token whose n bytes stand at vocabulary_next; literal: they are
 * its bytes, too. Refuses an id that is there already. */
int vocabulary_add(Vocabulary *v, size_t n, uint32_t id, bool literal,
                   Error *err);
/* Makes spellings be found, also those that are added later. Refuses one that
 * is there twice, and so does vocabulary_add from now on. */
int vocabulary_index(Vocabulary *v, Error *err);
/* The id of a spelling; -1: none. */
int32_t vocabulary_find(const Vocabulary *v, const char *text, size_t n);
/* The same in two steps. Where many are sought, hash them first: a loop that
 * only searches waits for several places in memory at once. */
uint32_t spelling_hash(const char *text, size_t n);
int32_t vocabulary_find_hash(const Vocabulary *v, const char *text, size_t n,
                             uint32_t hash);
bool vocabulary_spells(const Vocabulary *v, int64_t id, const char *text,
                       size_t n);
/* The token of an id, or NULL. */
const Token *vocabulary_token(const Vocabulary *v, int64_t id);

typedef struct {
    uint32_t left, right, id; /* the ids of two and what they become */
} Merge;

typedef struct {
    Merge *list;             /* by rank */
    uint32_t *slots;         /* 10 bits of hash, 22 of rank + 1; 0: empty */
    size_t mask, n, most;
    int32_t byte_id[256];    /* the token that is one byte; -1: none */
} Merges;

/* Room for at most n merges of the tokens of a vocabulary. */
int merges_open(Merges *m, const Vocabulary *v, size_t n, Error *err);
void merges_close(Merges *m);
/* The next merge, ranked behind all before it. Refuses a pair that is there
 * already. */
int merges_add(Merges *m, uint32_t left, uint32_t right, uint32_t id,
               Error *err);

/* What one run of merges needs; all zero to begin with, used again and again,
 * freed in the end. */
typedef struct {
    uint32_t *ids;           /* the result */
    uint32_t *next, *prev;   /* long pieces: the ids as a list */
    uint64_t *heap;
    size_t room, list_room;
} MergeWork;

/* The tokens of a piece of n < 2^31 bytes into work->ids: from its bytes on,
 * the adjacent pair of the lowest rank, the leftmost on ties, is merged until
 * no pair has one. Returns their number, or -1. O(n log n). */
long merges_apply(const Merges *m, const char *piece, size_t n,
                  MergeWork *work, Error *err);
void merge_work_free(MergeWork *work);

#endif
