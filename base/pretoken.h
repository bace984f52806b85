/* pretoken.h: cuts text into the pieces that byte-pair merges stay inside.
 *
 * A pre-tokenizer is a list of rules, each a regular expression. The first
 * cuts the text: every match becomes a piece, and so does what lies between
 * two matches. The next cuts each of these pieces as if it were a text of its
 * own, and so on: `$` and (?!\S) see the end of the piece, not of the text.
 *
 * There is no regular expression engine here. Expressions that DeepSeek's
 * tokenizers use are recognised by their text and matched by functions written
 * for them; of the rest only the form \s?[…]+ is read, where \s? and + may be
 * missing and … are characters and ranges. Anything else is refused. The
 * meaning is Oniguruma's, Ruby syntax: \s and \p{…} are Unicode's, `$` also
 * stands before a line feed. */
#ifndef BASE_PRETOKEN_H
#define BASE_PRETOKEN_H

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint32_t low, high;
} CodeRange;

typedef struct PretokenRule PretokenRule;

/* Finds the first match in the n bytes at text: sets *start and *stop. */
typedef bool PretokenFind(const PretokenRule *rule, const char *text,
                          size_t n, size_t *start, size_t *stop);

struct PretokenRule {
    PretokenFind *find;
    size_t most;        /* numbers: so many at once */
    bool space, many;   /* sets: \s? before, + behind */
    bool ascii[128];    /* sets: the members below U+0080 */
    CodeRange *ranges;  /* sets: the members, ascending */
    size_t n_ranges;
};

/* The expressions of V3's tokenizer, in order. */
enum { PRETOKEN_V3_RULES = 3 };
extern const char *const pretoken_v3[PRETOKEN_V3_RULES];

enum { PRETOKEN_MAX_RULES = 16 };

typedef struct {
    PretokenRule rules[PRETOKEN_MAX_RULES]; /* all zero: none yet */
    size_t n;
} Pretokenizer;

/* Adds a rule that cuts at the matches of a regular expression of n bytes,
 * valid UTF-8. An unknown one is refused with its text. */
int pretoken_add_regex(Pretokenizer *p, const char *regex, size_t n,
                       Error *err);
/* Adds \p{N} (one piece each) or \p{N}+. */
int pretoken_add_digits(Pretokenizer *p, bool individual, Error *err);
void pretoken_free(Pretokenizer *p);

/* Receives each piece, none empty, in order; non-zero ends the run. */
typedef int PretokenSink(void *context, const char *piece, size_t n,
                         Error *err);
/* The text must be valid UTF-8. Time is linear in n for a given list. */
int pretoken_run(const Pretokenizer *p, const char *text, size_t n,
                 PretokenSink *sink, void *context, Error *err);

#endif
