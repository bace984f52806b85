/* judge.c: prints how a dump does against golden values. */
#include "commands.h"

#include "../base/os.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What diff --rule and --fingerprint work with. */
typedef struct {
    const char *path;       /* of the dump */
    const char *rule;
    Judgement judgement;
    const char *bugs;       /* the file of known ones; NULL: there is none */
    char found[4200];       /* its path, where no --bugs gives one */
    bool known;             /* it has some of this pack */
    Text out;
} Report;

/* Of those in a layer, or outside layers: which is worst. */
typedef struct {
    size_t n;
    const JudgedTensor *worst;
} Layer;

static Layer next_layer(const Judgement *j, size_t *i)
{
    Layer l = {0, &j->tensors[*i]};
    size_t layer = j->tensors[*i].layer;
    for (; *i < j->n && j->tensors[*i].layer == layer; ++*i) {
        const JudgedTensor *t = &j->tensors[*i];
        l.n++;
        if (t->departs > l.worst->departs
            || (t->departs == l.worst->departs && !(t->nmse <= l.worst->nmse)))
            l.worst = t;
    }
    return l;
}

static void add_layers(Report *r)
{
    const Judgement *j = &r->judgement;
    text_printf(&r->out, "%8s %8s %8s %10s %10s\n", "layer", "tensors",
                "tokens", "nmse", "bound");
    for (size_t i = 0; i < j->n;) {
        Layer l = next_layer(j, &i);
        if (l.worst->layer == SIZE_MAX)
            text_printf(&r->out, "%8s", "-");
        else
            text_printf(&r->out, "%8zu", l.worst->layer);
        text_printf(&r->out, " %8zu %8zu %10.2e %10.2e  %s%s\n", l.n,
                    l.worst->judged, l.worst->nmse, l.worst->bound,
                    l.worst->name, l.worst->departs ? "  departs" : "");
    }
}

/* Each other name or layout once, with how many have it. */
static void add_layouts(Report *r)
{
    const Judgement *j = &r->judgement;
    for (size_t i = 0; i < j->n; i++) {
        const JudgedTensor *t = &j->tensors[i];
        size_t n = 0, before = 0;
        for (size_t k = 0; t->layout[0] && k < j->n; k++) {
            bool same = strcmp(j->tensors[k].layout, t->layout) == 0;
            n += same;
            before += same && k < i;
        }
        if (n > 0 && before == 0)
            text_printf(&r->out, "%zu taken as %s, %s first\n", n, t->layout,
                        t->name);
        if (strcmp(t->name, t->from) != 0)
            text_printf(&r->out, "%s taken from %s\n", t->name, t->from);
    }
}

/* NULL: there is none. */
static const JudgedTensor *first_not_finite(const Judgement *j)
{
    for (size_t i = 0; i < j->n; i++)
        if (j->tensors[i].not_finite > 0)
            return &j->tensors[i];
    return NULL;
}

static void add_remarks(Report *r)
{
    const Judgement *j = &r->judgement;
    if (first_not_finite(j) != NULL)
        text_printf(&r->out, "%zu numbers of %s are NaN or infinite\n",
                    first_not_finite(j)->not_finite, first_not_finite(j)->name);
    if (j->n_unknown)
        text_printf(&r->out, "%zu of the dump's tensors are none of golden's,"
                    " %s first\n", j->n_unknown, j->unknown);
    if (j->swapped)
        text_printf(&r->out, "%zu times experts were swapped whose scores are"
                    " as close as the dump is to golden's\n", j->swapped);
    if (j->blind)
        text_printf(&r->out, "topk_ids are not all there: bounds are wide, for"
                    " experts may have been swapped\n");
}

static void add_logits(Report *r)
{
    const Judgement *j = &r->judgement;
    for (size_t i = 0; i < j->n; i++) {
        const JudgedTensor *t = &j->tensors[i];
        if (t->logits)
            text_printf(&r->out, "%s: KL %.2e a token, most %.2e at token %zu;"
                        " top-1 as golden's for %zu of %zu tokens, %zu wrong"
                        " by more than %.2e\n", t->name, t->kl_mean,
                        t->kl_most, t->kl_at, t->top1, t->tokens,
                        t->top1_wrong, t->top1_margin);
    }
}

static void add_bugs(Report *r)
{
    const Judgement *j = &r->judgement;
    if (j->departed == 0)
        return;
    if (!r->known)
        text_printf(&r->out, "no bug is named: %s%s\n",
                    r->bugs ? r->bugs : "no golden/bugs.txt is found",
                    r->bugs ? " has no fingerprints of this pack"
                            : ", see --bugs");
    else if (j->n_bugs == 0)
        text_printf(&r->out, "it is none of the known bugs\n");
    for (size_t i = 0; i < j->n_bugs; i++)
        text_printf(&r->out, "%s %s (agreement %.3f)\n",
                    i ? "           or" : "likely bug:", j->bugs[i].name,
                    j->bugs[i].agreement);
}

static void add_text(Report *r)
{
    const Judgement *j = &r->judgement;
    add_layers(r);
    add_layouts(r);
    add_remarks(r);
    add_logits(r);
    if (j->first != NULL) {
        text_printf(&r->out, "first to depart: %s, nmse %.2e, bound %.2e\n",
                    j->first->name, j->first->nmse, j->first->bound);
        text_printf(&r->out, "worst: %s, nmse %.2e, bound %.2e\n",
                    j->worst->name, j->worst->nmse, j->worst->bound);
    }
    add_bugs(r);
    if (j->departed == 0)
        text_printf(&r->out, "right by %s: %zu tensors of golden's %zu\n",
                    r->rule, j->n, j->in_golden);
}

/* JSON ------------------------------------------------------------------- */

/* JSON has no infinity. */
static void add_number(Text *t, const char *key, double x)
{
    text_printf(t, ", \"%s\": ", key);
    if (isfinite(x))
        text_number(t, x);
    else
        text_printf(t, "null");
}

static void add_string(Text *t, const char *key, const char *text)
{
    text_printf(t, ", \"%s\": ", key);
    text_json_string(t, text, strlen(text), false);
}

static void add_tensor(Text *out, const JudgedTensor *t, bool first)
{
    text_printf(out, "%s  {\"name\": ", first ? "" : ",\n");
    text_json_string(out, t->name, strlen(t->name), false);
    if (strcmp(t->name, t->from) != 0)
        add_string(out, "from", t->from);
    if (t->layout[0])
        add_string(out, "layout", t->layout);
    text_printf(out, ", \"departs\": %s, \"tokens\": %zu, \"judged\": %zu, "
                "\"not_finite\": %zu", t->departs ? "true" : "false",
                t->tokens, t->judged, t->not_finite);
    add_number(out, "nmse", t->nmse);
    add_number(out, "bound", t->bound);
    if (t->logits) {
        add_number(out, "kl", t->kl_mean);
        add_number(out, "kl_most", t->kl_most);
        text_printf(out, ", \"kl_at\": %zu, \"top1\": %zu, \"top1_wrong\": "
                    "%zu", t->kl_at, t->top1, t->top1_wrong);
        add_number(out, "top1_margin", t->top1_margin);
    }
    text_printf(out, "}");
}

static void add_json(Report *r)
{
    const Judgement *j = &r->judgement;
    text_printf(&r->out, "{\"rule\": \"%s\", \"right\": %s, \"departed\": %zu",
                r->rule, j->departed ? "false" : "true", j->departed);
    if (j->first != NULL) {
        add_string(&r->out, "first", j->first->name);
        add_string(&r->out, "worst", j->worst->name);
    }
    text_printf(&r->out, ", \"swapped\": %zu, \"unknown\": %zu, \"bugs\": [",
                j->swapped, j->n_unknown);
    for (size_t i = 0; i < j->n_bugs && j->departed; i++) {
        text_printf(&r->out, "%s{\"name\": ", i ? ", " : "");
        text_json_string(&r->out, j->bugs[i].name, strlen(j->bugs[i].name),
                         false);
        add_number(&r->out, "agreement", j->bugs[i].agreement);
        text_printf(&r->out, "}");
    }
    text_printf(&r->out, "],\n \"tensors\": [\n");
    for (size_t i = 0; i < j->n; i++)
        add_tensor(&r->out, &j->tensors[i], i == 0);
    text_printf(&r->out, "]}\n");
}

/* The whole -------------------------------------------------------------- */

static bool is_there(Report *r, const char *dir, const char *name)
{
    snprintf(r->found, sizeof r->found, "%s%s", dir, name);
    r->bugs = path_exists(r->found) ? r->found : NULL;
    return r->bugs != NULL;
}

/* Here, beside the program, or where `make install` puts it. */
static bool find_file(Report *r, const char *program)
{
    char dir[4096];
    return is_there(r, "", "golden/bugs.txt")
           || (os_program_dir(dir, sizeof dir, program)
               && (is_there(r, dir, "golden/bugs.txt")
                   || is_there(r, dir, "../share/deepseek/bugs.txt")));
}

static int find_bugs(Report *r, const Arguments *a, Error *err)
{
    r->bugs = a->bugs;
    if (r->judgement.departed == 0
        || (r->bugs == NULL && !find_file(r, a->line.program)))
        return 0;
    return bugs_find(&r->judgement, r->bugs, &r->known, err);
}

static int print_report(Report *r, const Arguments *a, Error *err)
{
    if (a->fingerprint != NULL)
        bugs_print(&r->out, &r->judgement, a->fingerprint);
    else if (find_bugs(r, a, err) != 0)
        return -1;
    else if (a->json)
        add_json(r);
    else
        add_text(r);
    return print_text(&r->out, err);
}

/* A word, as bugs_find reads it. */
static int check_name(const char *name, Error *err)
{
    size_t n = strlen(name), most = sizeof ((Judgement *)0)->bugs->name - 1;
    if (n > 0 && n <= most && strcspn(name, " \n") == n)
        return 0;
    return fail(err, "--fingerprint wants a word of at most %zu bytes, not "
                "'%.100s'", most, name);
}

int diff_judged(const Arguments *a, const Safetensors *golden,
                const Safetensors *theirs, Error *err)
{
    static const char *const names[] = {"fp32", "bf16", "fp8"};
    JudgeRule rule = a->rule > 0 ? (JudgeRule)(a->rule - 1) : RULE_FP32;
    Report r = {.path = a->line.operands[1], .rule = names[rule]};
    const Judgement *j = &r.judgement;
    if ((a->fingerprint != NULL && check_name(a->fingerprint, err) != 0)
        || judge_dump(&r.judgement, golden, theirs, rule, err) != 0)
        return -1;
    int status = print_report(&r, a, err);
    if (status == 0 && a->fingerprint == NULL && j->departed > 0)
        status = fail(err, "%s departs by %s in %zu of %zu tensors, first in "
                      "%.200s%s", r.path, r.rule, j->departed, j->n,
                      j->first->name, first_not_finite(j) != NULL
                      ? "; some numbers are NaN or infinite" : "");
    text_free(&r.out);
    judge_close(&r.judgement);
    return status;
}
