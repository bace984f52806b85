/* bugs.c: which known bug a dump shows
 *
 * A known bug is a change to this program (docs/mutants.md). What it does to a
 * pack is kept as a few lines of golden/bugs.txt: sketches of its differences
 * from golden, in the first tensor that departs and in some behind it. A dump
 * that departs is compared with all bugs of its pack. Stages: read the file
 * line by line; score each bug by how far the sketches of the tensors that the
 * dump has agree; name the best and those that cannot be told from it, or none.
 *
 * Invariant: a bug is not named where the dump departs before the bug does. */
#include "deepseek.h"

#include <string.h>

/* The file --------------------------------------------------------------- */

/* One line: "bug NAME HASH" or "TENSOR SCALE CHARACTERS"; '#' begins a
 * comment. */
typedef struct {
    const char *text;
    size_t n;
} Line;

static bool next_line(const File *f, size_t *at, Line *line)
{
    if (*at >= f->size)
        return false;
    const char *from = (const char *)f->data + *at;
    const char *end = memchr(from, '\n', f->size - *at);
    line->text = from;
    line->n = end != NULL ? (size_t)(end - from) : f->size - *at;
    *at += line->n + 1;
    return true;
}

static bool begins(Line line, const char *with)
{
    size_t n = strlen(with);
    return line.n >= n && memcmp(line.text, with, n) == 0;
}

/* The word that a line begins with goes to `word`; the line is what follows
 * the blank behind it. */
static bool take_word(Line *line, char *word, size_t cap)
{
    const char *blank = memchr(line->text, ' ', line->n);
    size_t n = blank != NULL ? (size_t)(blank - line->text) : line->n;
    if (n == 0 || n >= cap)
        return false;
    memcpy(word, line->text, n);
    word[n] = 0;
    n += blank != NULL;
    line->text += n;
    line->n -= n;
    return true;
}

/* Scores ------------------------------------------------------------------ */

/* A bug of this pack while its lines are read. */
typedef struct {
    char name[64];
    bool ours;           /* of this pack */
    bool first;          /* its first tensor is still to come */
    bool late;           /* the dump departs before it does */
    size_t n;            /* tensors compared */
    double sum;          /* of their agreements */
} Bug;

static const JudgedTensor *find_judged(const Judgement *j, const char *name)
{
    for (size_t i = 0; i < j->n; i++)
        if (strcmp(j->tensors[i].name, name) == 0)
            return &j->tensors[i];
    return NULL;
}

/* Below it a bug is not named; and how much worse than the best one may be and
 * still be named: measured, docs/golden.md. */
#define LEAST 0.8
#define APART 0.005

/* Keeps the best ones, best first. */
static void add_bug(Judgement *j, const Bug *b)
{
    double score = b->n > 0 ? b->sum / (double)b->n : 0;
    size_t i = j->n_bugs;
    if (!b->ours || b->late || score < LEAST)
        return;
    if (i == MOST_BUGS && score <= j->bugs[i - 1].agreement)
        return;
    i -= i == MOST_BUGS;
    for (; i > 0 && j->bugs[i - 1].agreement < score; i--)
        j->bugs[i] = j->bugs[i - 1];
    memcpy(j->bugs[i].name, b->name, sizeof b->name);
    j->bugs[i].agreement = score;
    j->n_bugs += j->n_bugs < MOST_BUGS;
}

/* Those that are about as good as the best. */
static void keep_best(Judgement *j)
{
    size_t n = 0;
    double best = j->n_bugs > 0 ? 1 - j->bugs[0].agreement : 0;
    while (n < j->n_bugs
           && 1 - j->bugs[n].agreement <= 1.5 * best + APART)
        n++;
    j->n_bugs = n;
}

/* Whether the dump departs before this tensor is computed. */
static bool departs_before(const Judgement *j, const char *name)
{
    for (size_t i = 0; j->first != NULL && i < j->first->at; i++)
        if (strcmp(j->golden[i]->name, name) == 0)
            return false;
    return j->first != NULL && strcmp(j->first->name, name) != 0;
}

/* What the bug does here may be lost in what the rule lets pass. */
static bool says_nothing(const JudgedTensor *t, const Sketch *s)
{
    double squares = 0;
    for (int k = 0; k < SKETCH; k++)
        squares += s->at[k] * s->at[k] / SKETCH;
    return !t->departs && squares <= t->bound * t->power;
}

static int take_tensor(const Judgement *j, Bug *b, Line line)
{
    char name[128];
    Sketch s;
    if (!take_word(&line, name, sizeof name)
        || !sketch_parse(&s, line.text, line.n))
        return -1;
    const JudgedTensor *t = find_judged(j, name);
    if (b->first)
        b->late = departs_before(j, name);
    b->first = false;
    if (t != NULL && !says_nothing(t, &s)) {
        b->sum += sketch_agreement(&t->sketch, &s);
        b->n++;
    }
    return 0;
}

static int take_bug(const Judgement *j, Bug *b, Line line)
{
    char hash[sizeof j->hash];
    *b = (Bug){.first = true};
    if (!take_word(&line, hash, sizeof hash)
        || !take_word(&line, b->name, sizeof b->name)
        || !take_word(&line, hash, sizeof hash) || line.n != 0)
        return -1;
    b->ours = strcmp(hash, j->hash) == 0;
    return 0;
}

static int take_line(Judgement *j, Bug *b, Line line, bool *known)
{
    if (line.n == 0 || begins(line, "#"))
        return 0;
    if (!begins(line, "bug "))
        return b->ours ? take_tensor(j, b, line) : b->name[0] ? 0 : -1;
    add_bug(j, b);
    int status = take_bug(j, b, line);
    *known = *known || b->ours;
    return status;
}

int bugs_find(Judgement *j, const char *path, bool *known, Error *err)
{
    File file;
    Line line;
    Bug b = {.ours = false};
    size_t at = 0, number = 0;
    *known = false;
    j->n_bugs = 0;
    if (file_open(&file, path, err) != 0)
        return -1;
    int status = 0;
    while (status == 0 && next_line(&file, &at, &line)) {
        number++;
        if (take_line(j, &b, line, known) != 0)
            status = fail(err, "%s: line %zu: wanted 'bug NAME HASH' or "
                          "'TENSOR SCALE CODES', found '%.*s'", path, number,
                          line.n < 60 ? (int)line.n : 60, line.text);
    }
    add_bug(j, &b);
    keep_best(j);
    file_close(&file);
    return status;
}

/* A bug's lines ----------------------------------------------------------- */

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

static bool is_output(const JudgedTensor *t)
{
    return t->layer != SIZE_MAX
           && strspn(t->name + strlen("model.layers."), "0123456789")
                  == strlen(t->name) - strlen("model.layers.");
}

/* What engines mostly have: of the first layer that departs the sums, of the
 * next one its output; logits. */
static bool is_kept(const JudgedTensor *t, const JudgedTensor *first)
{
    size_t layer = first->layer == SIZE_MAX ? 0 : first->layer;
    if (t == first || ends_with(t->name, ".logits")
        || ends_with(t->name, "rotary_emb.sin")
        || strcmp(t->name, "logits") == 0)
        return !ends_with(t->name, ".gate.logits") || t == first;
    if (t->layer == SIZE_MAX || t->layer < layer || t->layer > layer + 1)
        return false;
    return is_output(t)
           || (t->layer == layer && (ends_with(t->name, ".self_attn.o_proj")
                                     || ends_with(t->name, ".mlp")));
}

void bugs_print(Text *t, const Judgement *j, const char *name)
{
    if (j->first == NULL)
        return;
    text_printf(t, "bug %s %s\n", name, j->hash);
    for (size_t i = 0; i < j->n; i++) {
        const JudgedTensor *x = &j->tensors[i];
        if (!x->departs || !is_kept(x, j->first))
            continue;
        text_printf(t, "%s ", x->name);
        sketch_print(t, &x->sketch);
        text_printf(t, "\n");
    }
}
