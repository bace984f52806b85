/* bpe_train.h: learns merges from text.
 *
 * First every piece of the text is counted as a word (words_add); then the
 * most frequent pair of neighbours becomes a token, in every word, again and
 * again (bpe_train). The result is that of the Hugging Face library's trainer,
 * merge for merge, whatever its text: docs/data.md has the rule. It depends on
 * the words and their counts alone, not on their order, nor on the machine.
 *
 * Memory follows the distinct words, not the text: of each its bytes and 24
 * bytes more while counting; then some 12 bytes for each byte of each, and 40
 * for each distinct pair that occurs at any time. */
#ifndef BASE_BPE_TRAIN_H
#define BASE_BPE_TRAIN_H

#include "bpe.h"

typedef struct {
    size_t at;               /* of its bytes in text */
    uint32_t n, hash;
    uint64_t count;
} Word;

/* All zero to begin with. */
typedef struct {
    char *text;              /* the distinct words, one after another */
    size_t used, room;
    Word *list;              /* in the order of their first occurrence */
    size_t n, capacity;
    uint32_t *slots;         /* index in list + 1; 0: empty */
    size_t mask;
    uint64_t total;          /* words counted, equal ones too */
} Words;

/* Counts a word of n bytes, times over. */
int words_add(Words *w, const char *word, size_t n, uint64_t times,
              Error *err);
void words_free(Words *w);

enum {
    LEARNT_FIRST = 256,              /* ids below are single bytes */
    LEARNT_LONGEST = TOKEN_LONGEST / 2 /* bytes; a symbol takes up to two */
};

/* Ids 0 … 255 are the bytes in the order of their symbols; each further one
 * was made by the merge that first has it. */
typedef struct {
    Merge *merges;           /* by rank */
    size_t n_merges;
    char *bytes;             /* of the tokens, one after another */
    size_t *at;              /* n_tokens + 1: where each begins */
    size_t n_tokens;
} Learnt;

/* Learns until there are n_tokens (at least 256, below TOKEN_LIMIT), bytes
 * included, or no pair occurs min_count times (at least once). No token gets
 * longer than LEARNT_LONGEST. what: for a progress line, or NULL. Time is at
 * most that of reading all words once for each merge. */
int bpe_train(Learnt *out, const Words *w, size_t n_tokens,
              uint64_t min_count, const char *what, Error *err);
void learnt_free(Learnt *l);

#endif
