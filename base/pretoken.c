/* pretoken.c: the rules, one function each, then reading and running them.
 *
 * Every function below gets valid UTF-8 and reads no byte at or after `end`.
 * A match is sought once from each place where one can begin; what a rule
 * learns about a run of characters (that no match begins inside it) lets it
 * skip the run, so that no input makes it quadratic. */
#include "pretoken.h"

#include "unicode.h"

#include <stdlib.h>
#include <string.h>

static bool is_ascii(char c)
{
    return (unsigned char)c < 0x80;
}

static bool is_space(uint32_t code)
{
    return (unicode_class(code) & UNICODE_SPACE) != 0;
}

static bool is_newline(uint32_t code)
{
    return code == '\n' || code == '\r';
}

/* The end of the white space at s. */
static const char *skip_space(const char *s, const char *end)
{
    while (s < end) {
        const char *next = s;
        if (!is_space(utf8_next(&next)))
            break;
        s = next;
    }
    return s;
}

static const char *skip_newlines(const char *s, const char *end)
{
    while (s < end && is_newline((unsigned char)*s))
        s++;
    return s;
}

/* Numbers: \p{N}{1,most} ------------------------------------------------- */

static bool is_number(uint32_t code)
{
    return (unicode_class(code) & UNICODE_N) != 0;
}

static bool find_numbers(const PretokenRule *rule, const char *text, size_t n,
                         size_t *start, size_t *stop)
{
    const char *s = text, *end = text + n, *next = text;
    while (s < end && !is_number(utf8_next(&next)))
        s = next;
    *start = (size_t)(s - text);
    for (size_t i = 0; i < rule->most && s < end; i++) {
        next = s;
        if (!is_number(utf8_next(&next)))
            break;
        s = next;
    }
    *stop = (size_t)(s - text);
    return *stop > *start;
}

/* White space at the end of a piece or of a line: \s+$ ------------------- */

/* The longest stretch of the white space s … stop that ends at `end` or
 * before a line feed; s if none does. */
static const char *before_line_end(const char *s, const char *stop,
                                   const char *end)
{
    if (stop == end)
        return stop;
    for (const char *at = stop - 1; at > s; at--) {
        if (*at == '\n')
            return at;
    }
    return s;
}

static bool find_trailing_space(const PretokenRule *rule, const char *text,
                                size_t n, size_t *start, size_t *stop)
{
    const char *s = text, *end = text + n;
    (void)rule;
    while (s < end) {
        const char *space = skip_space(s, end);
        const char *match = before_line_end(s, space, end);
        if (match > s) {
            *start = (size_t)(s - text);
            *stop = (size_t)(match - text);
            return true;
        }
        /* A line feed that begins the run can end nothing before it. */
        s = space;
        if (s < end)
            utf8_next(&s);
    }
    return false;
}

/* Sets: \s?[…]+ ---------------------------------------------------------- */

static bool in_ranges(const PretokenRule *rule, uint32_t code)
{
    size_t low = 0, high = rule->n_ranges;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > rule->ranges[middle].high)
            low = middle + 1;
        else
            high = middle;
    }
    return low < rule->n_ranges && code >= rule->ranges[low].low;
}

static bool in_set(const PretokenRule *rule, uint32_t code)
{
    return code < 0x80 ? rule->ascii[code] : in_ranges(rule, code);
}

/* The end of the members at s; of one where the rule has no +. */
static const char *skip_set(const PretokenRule *rule, const char *s,
                            const char *end)
{
    while (s < end) {
        const char *next = s;
        if (!in_set(rule, utf8_next(&next)))
            break;
        s = next;
        if (!rule->many)
            break;
    }
    return s;
}

/* The end of a match that begins at s, or s. White space may itself be a
 * member: V2's punctuation has U+3000. */
static const char *match_set(const PretokenRule *rule, const char *s,
                             const char *end)
{
    const char *next = s;
    if (rule->space && is_space(utf8_next(&next))) {
        const char *stop = skip_set(rule, next, end);
        if (stop > next)
            return stop;
    }
    return skip_set(rule, s, end);
}

static bool find_set(const PretokenRule *rule, const char *text, size_t n,
                     size_t *start, size_t *stop)
{
    const char *end = text + n;
    for (const char *s = text; s < end; utf8_next(&s)) {
        const char *match = match_set(rule, s, end);
        if (match > s) {
            *start = (size_t)(s - text);
            *stop = (size_t)(match - text);
            return true;
        }
    }
    return false;
}

/* Words, V3: the alternatives in order ----------------------------------- */

#define V3_NUMBERS "\\p{N}{1,3}"
#define V3_WORDS \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" \
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+" \
    "| ?[\\p{P}\\p{S}]+[\r\n]*" \
    "|\\s*[\r\n]+" \
    "|\\s+(?!\\S)" \
    "|\\s+"

const char *const pretoken_v3[PRETOKEN_V3_RULES] = {
    V3_NUMBERS, "[一-龥぀-ゟ゠-ヿ]+", V3_WORDS
};

static bool is_ascii_letter(char c)
{
    return (unsigned char)((c | 0x20) - 'a') < 26;
}

static const char *skip_ascii_letters(const char *s, const char *end)
{
    while (s < end && is_ascii_letter(*s))
        s++;
    return s;
}

/* [\p{L}\p{M}]*; [\p{P}\p{S}]* */
static const char *skip_class(const char *s, const char *end, unsigned classes)
{
    while (s < end) {
        const char *next = s;
        if ((unicode_class(utf8_next(&next)) & classes) == 0)
            break;
        s = next;
    }
    return s;
}

static const char *skip_letters(const char *s, const char *end)
{
    s = skip_ascii_letters(s, end);
    if (s == end || is_ascii(*s))
        return s;
    return skip_class(s, end, UNICODE_L | UNICODE_M);
}

static const char *skip_marks(const char *s, const char *end)
{
    return skip_class(s, end, UNICODE_P | UNICODE_S);
}

/* [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+ at s, whose first character ends at
 * `next`; s if it does not match. */
static const char *match_letters(const char *s, const char *next,
                                 const char *end, unsigned class)
{
    if ((class & (UNICODE_L | UNICODE_M)) != 0)
        return skip_letters(s, end);
    if ((class & (UNICODE_P | UNICODE_S)) != 0 || is_newline((uint32_t)*s))
        return s;
    const char *stop = skip_letters(next, end);
    return stop > next ? stop : s;
}

/* The three alternatives for white space, which begins at s. */
static const char *match_space(const char *s, const char *end)
{
    const char *stop = skip_space(s, end), *last = stop;
    for (const char *at = stop; at > s; at--) {
        if (is_newline((unsigned char)at[-1]))
            return at;             /* \s*[\r\n]+ */
    }
    if (stop == end)
        return stop;               /* \s+(?!\S) */
    do
        last--;
    while ((*last & 0xc0) == 0x80);
    return last > s ? last : stop; /* \s+(?!\S), else \s+ */
}

/* The end of the match that begins at s, or s. */
static const char *match_word(const char *s, const char *end)
{
    const char *next = s, *stop;
    unsigned class = unicode_class(utf8_next(&next));
    bool mark = (class & (UNICODE_P | UNICODE_S)) != 0;
    if (mark && is_ascii(*s) && next < end && is_ascii_letter(*next))
        return skip_ascii_letters(next, end);
    stop = match_letters(s, next, end, class);
    if (stop > s)
        return stop;
    const char *marks = *s == ' ' ? next : s;
    stop = skip_marks(marks, end);
    if (stop > marks)
        return skip_newlines(stop, end);
    return (class & UNICODE_SPACE) != 0 ? match_space(s, end) : s;
}

static bool find_word(const PretokenRule *rule, const char *text, size_t n,
                      size_t *start, size_t *stop)
{
    const char *end = text + n;
    (void)rule;
    for (const char *s = text; s < end; utf8_next(&s)) {
        const char *match = match_word(s, end);
        if (match > s) {
            *start = (size_t)(s - text);
            *stop = (size_t)(match - text);
            return true;
        }
    }
    return false;
}

/* Reading \s?[…]+ -------------------------------------------------------- */

typedef struct {
    const char *at, *end;
} Reader;

static bool take(Reader *r, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, text, n) != 0)
        return false;
    r->at += n;
    return true;
}

/* One member of a set. What has a meaning of its own inside […] is not read:
 * negation, nested sets, intersections, classes. */
static bool read_member(Reader *r, uint32_t *code)
{
    if (take(r, "\\r") || take(r, "\\n")) {
        *code = r->at[-1] == 'r' ? '\r' : '\n';
        return true;
    }
    if (r->at == r->end || strchr("[]^&-\\", *r->at) != NULL)
        return false;
    *code = utf8_next(&r->at);
    return true;
}

static bool read_range(Reader *r, CodeRange *range)
{
    if (!read_member(r, &range->low))
        return false;
    range->high = range->low;
    if (take(r, "-"))
        return read_member(r, &range->high) && range->low <= range->high;
    return true;
}

/* Reads …] into rule->ranges, which has room for one a byte. */
static bool read_set(Reader *r, PretokenRule *rule)
{
    while (!take(r, "]")) {
        if (!read_range(r, &rule->ranges[rule->n_ranges]))
            return false;
        rule->n_ranges++;
    }
    return rule->n_ranges > 0;
}

static int compare_ranges(const void *a, const void *b)
{
    const CodeRange *x = a, *y = b;
    return x->low < y->low ? -1 : x->low > y->low;
}

/* Sorts, joins what overlaps and fills the table for ASCII. */
static void finish_set(PretokenRule *rule)
{
    CodeRange *r = rule->ranges;
    size_t last = 0;
    qsort(r, rule->n_ranges, sizeof *r, compare_ranges);
    for (size_t i = 1; i < rule->n_ranges; i++) {
        if (r[i].low > r[last].high)
            r[++last] = r[i];
        else if (r[i].high > r[last].high)
            r[last].high = r[i].high;
    }
    rule->n_ranges = last + 1;
    for (uint32_t code = 0; code < 0x80; code++)
        rule->ascii[code] = in_ranges(rule, code);
}

static bool parse_set(PretokenRule *rule, const char *regex, size_t n)
{
    Reader r = { regex, regex + n };
    rule->find = find_set;
    rule->space = take(&r, "\\s?");
    if (!take(&r, "[") || !read_set(&r, rule))
        return false;
    rule->many = take(&r, "+");
    finish_set(rule);
    return r.at == r.end;
}

/* The list of rules ------------------------------------------------------ */

static int refuse_regex(const char *regex, size_t n, Error *err)
{
    int shown = n < 300 ? (int)n : 300;
    return fail(err, "wanted a regular expression that DeepSeek's tokenizers "
                "use, found %.*s", shown, regex);
}

static PretokenRule *next_rule(Pretokenizer *p, Error *err)
{
    if (p->n < PRETOKEN_MAX_RULES)
        return &p->rules[p->n];
    fail(err, "wanted at most %d rules, found more", PRETOKEN_MAX_RULES);
    return NULL;
}

/* True where the expression is one that has its own function. */
static bool known_regex(PretokenRule *rule, const char *regex, size_t n)
{
    static const struct {
        const char *regex;
        PretokenFind *find;
        size_t most;
    } known[] = {
        { V3_NUMBERS, find_numbers, 3 },
        { V3_WORDS, find_word, 0 },
        { "\\s+$", find_trailing_space, 0 }
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strlen(known[i].regex) == n
            && memcmp(known[i].regex, regex, n) == 0) {
            rule->find = known[i].find;
            rule->most = known[i].most;
            return true;
        }
    }
    return false;
}

int pretoken_add_regex(Pretokenizer *p, const char *regex, size_t n,
                       Error *err)
{
    PretokenRule *rule = next_rule(p, err);
    if (rule == NULL)
        return -1;
    if (!known_regex(rule, regex, n)) {
        rule->ranges = allocate(n, sizeof *rule->ranges, "a set", err);
        if (rule->ranges == NULL)
            return -1;
        if (!parse_set(rule, regex, n)) {
            free(rule->ranges);
            memset(rule, 0, sizeof *rule);
            return refuse_regex(regex, n, err);
        }
    }
    p->n++;
    return 0;
}

int pretoken_add_digits(Pretokenizer *p, bool individual, Error *err)
{
    PretokenRule *rule = next_rule(p, err);
    if (rule == NULL)
        return -1;
    rule->find = find_numbers;
    rule->most = individual ? 1 : SIZE_MAX;
    p->n++;
    return 0;
}

void pretoken_free(Pretokenizer *p)
{
    for (size_t i = 0; i < p->n; i++)
        free(p->rules[i].ranges);
    memset(p, 0, sizeof *p);
}

typedef struct {
    const Pretokenizer *p;
    PretokenSink *sink;
    void *context;
    Error *err;
} Run;

/* Cuts a piece by the rules from `rule` on; as deep as there are rules. */
static int cut(const Run *run, size_t rule, const char *text, size_t n)
{
    size_t start, stop;
    if (n == 0)
        return 0;
    if (rule == run->p->n)
        return run->sink(run->context, text, n, run->err);
    const PretokenRule *r = &run->p->rules[rule];
    while (n > 0 && r->find(r, text, n, &start, &stop)) {
        if (cut(run, rule + 1, text, start) != 0
            || cut(run, rule + 1, text + start, stop - start) != 0)
            return -1;
        text += stop;
        n -= stop;
    }
    return cut(run, rule + 1, text, n);
}

int pretoken_run(const Pretokenizer *p, const char *text, size_t n,
                 PretokenSink *sink, void *context, Error *err)
{
    Run run = { p, sink, context, err };
    return cut(&run, 0, text, n);
}
