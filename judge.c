/* judge.c: whether another engine's dump is right
 *
 * Stages: ids have to be golden's; then each tensor of golden's, in the order
 * of computation, is looked for in the dump (fetch: under its name, or as a
 * part of a fused or stacked one), brought into golden's layout (layout_find)
 * and measured against a bound that follows from the rule, from what kind of
 * stage it is and from how many layers lie before it. docs/golden.md derives
 * the bounds.
 *
 * Invariants: where two experts' scores are closer than the dump is to golden,
 * either may be picked; the token no longer counts from there on, and in the
 * layers behind it no later token does. Once a tensor departs, all count again.
 * Nothing is changed in either file.
 *
 * Not here: naming the bug (bugs.c), printing (commands/diff.c). */
#include "deepseek.h"

#include "base/diff.h"
#include "base/layout.h"
#include "base/maths.h"
#include "base/sha256.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* A judgement in the making. */
typedef struct {
    Judgement *j;
    const Safetensors *golden, *theirs;
    JudgeRule rule;
    bool *used;         /* of their tensors: something was read from it */
    size_t tokens;
    size_t tail;        /* d_r */
    size_t layer;       /* at hand; SIZE_MAX before the first */
    size_t limit;       /* tokens before any that counts no more */
    bool *swapped;      /* (tokens) which do not from this layer's gate on */
    Error *err;
} Judge;

/* Names ------------------------------------------------------------------ */

static bool ends(const char *name, const char *with)
{
    size_t n = strlen(name), m = strlen(with);
    return n >= m && strcmp(name + n - m, with) == 0;
}

/* What follows "model.layers.12"; NULL for other names. */
static const char *in_layer(const char *name, size_t *layer)
{
    static const char prefix[] = "model.layers.";
    size_t n = strlen(prefix), digits;
    if (strncmp(name, prefix, n) != 0)
        return NULL;
    digits = strspn(name + n, "0123456789");
    if (digits == 0 || digits > 9)
        return NULL;
    *layer = (size_t)strtoul(name + n, NULL, 10);
    return name + n + digits;
}

static bool is_logits(const char *name)
{
    return ends(name, "logits") && !ends(name, ".gate.logits");
}

/* Bounds ----------------------------------------------------------------- */

/* How much of the error that a layer adds a stage shows: docs/golden.md. */
typedef enum { STORED, GATE, STATE, INNER, SHARED } StageKind;

static StageKind kind_of(const char *name)
{
    static const struct {
        const char *end;
        StageKind kind;
    } kinds[] = {
        {"rotary_emb.cos", STORED}, {"rotary_emb.sin", STORED},
        {"embed_tokens", STORED}, {".gate.scores", GATE},
        {".gate.choice", GATE}, {".gate.group_scores", GATE},
        {".gate.topk_weights", INNER}, {".self_attn.probs", INNER},
        {".self_attn.z", INNER}, {".self_attn.o", INNER},
        {".self_attn.o_proj", INNER}, {".mlp.h", INNER}, {".mlp", INNER},
        {".routed_out", INNER}, {".post_attention_layernorm", INNER},
        {".shared_head.norm", INNER}, {".shared_out", SHARED},
        {".shared_experts.h", SHARED}, {".shared_experts.gate_proj", SHARED},
        {".shared_experts.up_proj", SHARED},
    };
    for (size_t i = 0; i < LENGTH(kinds); i++)
        if (ends(name, kinds[i].end))
            return kinds[i].kind;
    return STATE;
}

/* Of an NMSE. What an engine rounds to is 2^-9 off at most in BF16, 2^-4 in
 * E4M3; the part of a layer's stages and of depth is measured. */
static double bound_of(const Judge *g, const char *name)
{
    static const double bf16[] = {0x1p-16, 0x1p-10, 0x1p-9, 0x1p-8, 0x1p-6};
    static const double most[] = {0x1p-16, 0x1p-5, 0x1p-4, 0x1p-3, 0x1p-2};
    StageKind kind = kind_of(name);
    double depth = g->layer == SIZE_MAX ? 1 : (double)g->layer + 1;
    double wider = g->rule == RULE_FP8 && kind != STORED ? 32 : 1;
    double bound = bf16[kind] * depth * depth * wider;
    double cap = most[kind] * (wider > 1 ? 4 : 1);
    if (g->rule == RULE_FP32)
        return 1e-9;
    if (bound > cap || kind == STORED)
        bound = cap;
    return g->j->blind && bound < 0x1p-3 && kind != STORED ? 0x1p-3 : bound;
}

/* Reading their tensors -------------------------------------------------- */

/* What engines call a stage, or two of them in one tensor, side by side. */
static const struct {
    const char *theirs, *parts[2];
} other_names[] = {
    {"lm_head", {"logits", NULL}},
    {"input_ids", {"ids", NULL}},
    {".self_attn", {".self_attn.o_proj", NULL}},
    {".mlp.down_proj", {".mlp", NULL}},
    {".mlp.experts", {".mlp.routed_out", NULL}},
    {".mlp.shared_experts", {".mlp.shared_out", NULL}},
    {".mlp.shared_experts.down_proj", {".mlp.shared_out", NULL}},
    {".mlp.gate_up_proj", {".mlp.gate_proj", ".mlp.up_proj"}},
    {".mlp.shared_experts.gate_up_proj",
     {".mlp.shared_experts.gate_proj", ".mlp.shared_experts.up_proj"}},
    {".self_attn.fused_qkv_a_proj",
     {".self_attn.q_a_proj", ".self_attn.kv_a_proj_with_mqa"}},
    {".self_attn.fused_qkv_a_proj_with_mqa",
     {".self_attn.q_a_proj", ".self_attn.kv_a_proj_with_mqa"}},
    {".self_attn.kv_cache",
     {".self_attn.kv_a_layernorm", ".self_attn.k_pe"}},
};

static const StTensor *find_name(const Judge *g, const char *name)
{
    const StTensor *t = st_find(g->theirs, name);
    if (t != NULL)
        g->used[t - g->theirs->tensors] = true;
    return t;
}

/* The name with another end. */
static const StTensor *find_with(const Safetensors *st, const char *name,
                                 const char *end, const char *instead)
{
    char text[256];
    size_t n = strlen(name) - strlen(end);
    if (snprintf(text, sizeof text, "%.*s%s", (int)n, name, instead)
        >= (int)sizeof text)
        return NULL;
    return st_find(st, text);
}

static size_t columns_of(const StTensor *t)
{
    return t->rank > 0 && t->shape[0] > 0 ? t->elements / t->shape[0] : 1;
}

/* The columns of part k, the parts lying side by side: *x is cut to them. */
static int cut_part(const Judge *g, const StTensor *golden, size_t row, int k,
                    const char *from, Numbers *x)
{
    const char *const *parts = other_names[row].parts;
    const StTensor *other = find_with(g->golden, golden->name, parts[k],
                                      parts[1 - k]);
    size_t own = columns_of(golden);
    size_t both = own + (other != NULL ? columns_of(other) : 0);
    size_t found = x->rank < 1 ? 1 : x->shape[x->rank - 1];
    if (other == NULL || found != both)
        return fail(g->err, "%s: %.200s: wanted rows of %zu, of which %.200s "
                    "is a part, found rows of %zu", g->theirs->paths[0], from,
                    both, golden->name, found);
    return numbers_columns(x, k == 0 ? 0 : both - own, own, g->err);
}

/* 1: *x has what lies under another name; 0: nothing does; -1: error. */
static int fetch_renamed(const Judge *g, const StTensor *golden, Numbers *x,
                         const char **from)
{
    for (size_t i = 0; i < LENGTH(other_names); i++)
        for (int k = 0; k < 2 && other_names[i].parts[k] != NULL; k++) {
            const char *part = other_names[i].parts[k];
            const StTensor *t = !ends(golden->name, part) ? NULL
                : find_with(g->theirs, golden->name, part,
                            other_names[i].theirs);
            if (t == NULL)
                continue;
            g->used[t - g->theirs->tensors] = true;
            *from = t->name;
            if (numbers_open(x, t, 0, t->elements, t->rank, g->err) != 0)
                return -1;
            return other_names[i].parts[1] == NULL
                   || cut_part(g, golden, i, k, t->name, x) == 0
                           ? 1 : -1;
        }
    return 0;
}

/* All layers in one tensor, "model.layers.self_attn.o_proj"; "model.layers" has
 * their outputs. */
static int fetch_stacked(const Judge *g, const StTensor *golden, Numbers *x,
                         const char **from)
{
    char name[256];
    size_t layer = 0;
    const char *rest = in_layer(golden->name, &layer);
    if (rest == NULL
        || snprintf(name, sizeof name, "model.layers%s", rest)
               >= (int)sizeof name)
        return 0;
    const StTensor *t = find_name(g, name);
    if (t == NULL || t->rank < 2 || layer >= t->shape[0])
        return 0;
    size_t n = t->elements / t->shape[0];
    *from = t->name;
    return numbers_open(x, t, layer * n, n, t->rank - 1, g->err) ? -1 : 1;
}

static int fetch(const Judge *g, const StTensor *golden, Numbers *x,
                 const char **from)
{
    const StTensor *t = find_name(g, golden->name);
    int found;
    *from = golden->name;
    if (t != NULL)
        return numbers_open(x, t, 0, t->elements, t->rank, g->err) ? -1 : 1;
    found = fetch_renamed(g, golden, x, from);
    return found != 0 ? found : fetch_stacked(g, golden, x, from);
}

static void add_shape(Text *t, const StTensor *x)
{
    text_printf(t, "(");
    for (int i = 0; i < x->rank; i++)
        text_printf(t, "%s%zu", i ? ", " : "", x->shape[i]);
    text_printf(t, ")");
}

static int refuse_shape(const Judge *g, const StTensor *golden,
                        const char *from)
{
    const StTensor *t = st_find(g->theirs, from);
    Text text = {0};
    add_shape(&text, golden);
    text_printf(&text, ", found ");
    add_shape(&text, t);
    fail(g->err, "%s: %.200s: wanted the shape %s%s", g->theirs->paths[0],
         from, text.text ? text.text : "of golden's",
         is_logits(golden->name) ? ": another vocabulary or prompt"
         : strcmp(golden->name, "ids") == 0 ? ": another prompt" : "");
    text_free(&text);
    return -1;
}

static LayoutChoice choice_for(const Judge *g, const char *name)
{
    static const char *const turned[] = {
        ".k_pe", ".q_pe", ".query", ".q_proj", ".q_b_proj",
        ".kv_a_proj_with_mqa"};
    LayoutChoice c = {0, strncmp(name, "model.rotary_emb.", 17) == 0};
    for (size_t i = 0; i < LENGTH(turned); i++)
        if (ends(name, turned[i]))
            c.tail = g->tail;
    return c;
}

/* Their numbers in golden's layout. 1: there; 0: not in the dump. */
static int read_theirs(const Judge *g, const StTensor *golden,
                       const Numbers *ours, Numbers *x, JudgedTensor *v)
{
    Layout layout;
    bool fits = false;
    int found = fetch(g, golden, x, &v->from);
    if (found <= 0)
        return found;
    if (layout_find(&layout, &fits, ours, x, choice_for(g, golden->name),
                    g->err) != 0)
        return -1;
    if (!fits)
        return refuse_shape(g, golden, v->from);
    layout_name(v->layout, sizeof v->layout, &layout, ours->rank);
    return 1;
}

/* Both as numbers in golden's layout. 1, 0 or -1 as above. */
static int open_pair(const Judge *g, const StTensor *golden, Numbers *ours,
                     Numbers *x, JudgedTensor *v)
{
    *x = *ours = (Numbers){0};
    if (numbers_open(ours, golden, 0, golden->elements, golden->rank, g->err))
        return -1;
    return read_theirs(g, golden, ours, x, v);
}

static void close_pair(Numbers *ours, Numbers *x)
{
    numbers_close(ours);
    numbers_close(x);
}

/* Picks ------------------------------------------------------------------ */

/* How far the K-th greatest of n numbers is from the next; infinite where
 * there is none, or it is -inf. */
static double gap(const double *x, size_t n, size_t K)
{
    double last = INFINITY, next = -INFINITY;
    for (size_t k = 0; k <= K && k < n; k++) {
        size_t i = 0;
        for (; i < n; i++) { /* the number that k others are before */
            size_t rank = 0;
            for (size_t m = 0; m < n; m++)
                rank += x[m] > x[i] || (!(x[m] < x[i]) && m < i);
            if (rank == k)
                break;
        }
        if (i < n && k == K)
            next = x[i];
        else if (i < n)
            last = x[i];
    }
    return last - next;
}

static bool has_id(const double *ids, size_t K, double id)
{
    for (size_t k = 0; k < K; k++)
        if (ids[k] <= id && ids[k] >= id)
            return true;
    return false;
}

static bool same_ids(const double *a, const double *b, size_t K)
{
    for (size_t k = 0; k < K; k++)
        if (!has_id(b, K, a[k]))
            return false;
    return true;
}

/* What decides the picks of a layer: golden's and theirs, where they are. */
typedef struct {
    Numbers ids, choice, groups;
    Numbers their_ids, their_choice, their_groups;
} Gate;

static void gate_close(Gate *a)
{
    close_pair(&a->ids, &a->their_ids);
    close_pair(&a->choice, &a->their_choice);
    close_pair(&a->groups, &a->their_groups);
}

/* A tensor of the layer's gate, where golden has it. */
static int open_gate_part(const Judge *g, const char *part, Numbers *ours,
                          Numbers *x)
{
    char name[100];
    JudgedTensor unused = {0};
    snprintf(name, sizeof name, "model.layers.%zu.mlp.gate.%s", g->layer,
             part);
    const StTensor *t = st_find(g->golden, name);
    return t == NULL || t->rank != 2 || t->shape[0] > g->tokens ? 0
           : open_pair(g, t, ours, x, &unused) < 0 ? -1 : 0;
}

/* The greatest difference of a row's numbers that are finite, as far as the
 * bound lets it be: a wrong gate is no excuse for its picks. Without theirs,
 * what the rule would expect. */
static double row_error(const Judge *g, const Numbers *a, const Numbers *b,
                        size_t t)
{
    static const double expected[] = {0x1p-21, 0x1p-5, 1};
    size_t n = a->elements / a->shape[0];
    double most = 0, power = 0;
    for (size_t i = t * n; i < (t + 1) * n; i++) {
        if (isfinite(a->x[i]))
            power += a->x[i] * a->x[i] / (double)n;
        if (b->x != NULL && isfinite(a->x[i]) && isfinite(b->x[i]))
            most = fmax(most, fabs(a->x[i] - b->x[i]));
    }
    return b->x != NULL
               ? fmin(most, 4 * sqrt(bound_of(g, ".gate.choice") * power))
               : sqrt(power) * expected[g->rule] * ((double)g->layer + 1);
}

/* Groups of which some expert is not masked. */
static size_t groups_kept(const double *choice, size_t n, size_t groups)
{
    size_t kept = 0, size = groups > 0 ? n / groups : 0;
    for (size_t i = 0; i < groups && size > 0; i++)
        for (size_t k = 0; k < size; k++)
            if (isfinite(choice[i * size + k])) {
                kept++;
                break;
            }
    return kept;
}

/* Whether other experts are masked: 0, 1, or -1 if more or fewer are. */
static int other_masks(const Gate *a, size_t t, size_t n)
{
    size_t differ = 0, ours = 0, theirs = 0;
    for (size_t i = t * n; a->their_choice.x != NULL && i < (t + 1) * n; i++) {
        bool x = isinf(a->choice.x[i]), y = a->their_choice.x[i] <= -65504;
        differ += x != y;
        ours += x;
        theirs += y;
    }
    return ours != theirs ? -1 : differ > 0;
}

/* Whether token t's picks differ for no other reason than that the last picked
 * and the next are closer than the dump is to golden. */
static bool is_swapped(const Judge *g, const Gate *a, size_t t)
{
    size_t K = a->ids.elements / a->ids.shape[0];
    size_t n = a->choice.elements / a->choice.shape[0];
    double margin = gap(a->choice.x + t * n, n, K);
    double error = row_error(g, &a->choice, &a->their_choice, t);
    int masks = other_masks(a, t, n);
    if (masks < 0 || (masks == 0 && same_ids(a->ids.x + t * K,
                                             a->their_ids.x + t * K, K)))
        return false;
    if (margin <= 2 * error)
        return true;
    if (a->groups.x == NULL)
        return false;
    size_t groups = a->groups.elements / a->groups.shape[0];
    size_t kept = groups_kept(a->choice.x + t * n, n, groups);
    error = 2 * fmax(error, row_error(g, &a->groups, &a->their_groups, t));
    return gap(a->groups.x + t * groups, groups, kept) <= 2 * error;
}

static void find_swapped(Judge *g, const Gate *a)
{
    if (a->ids.x == NULL || a->choice.x == NULL || g->j->first != NULL)
        return;
    if (a->their_ids.x == NULL) {
        g->j->blind = g->rule != RULE_FP32;
        return;
    }
    for (size_t t = 0; t < a->ids.shape[0] && t < a->choice.shape[0]; t++) {
        g->swapped[t] = is_swapped(g, a, t);
        g->j->swapped += g->swapped[t];
    }
}

/* A new layer: what counted no more in the last one has spread to all later
 * tokens. */
static int begin_layer(Judge *g, size_t layer)
{
    Gate a = {.ids = {0}};
    for (size_t t = 0; t < g->limit; t++)
        if (g->swapped[t])
            g->limit = t;
    memset(g->swapped, 0, g->tokens * sizeof *g->swapped);
    g->layer = layer;
    int failed = open_gate_part(g, "topk_ids", &a.ids, &a.their_ids)
                 || open_gate_part(g, "choice", &a.choice, &a.their_choice)
                 || open_gate_part(g, "group_scores", &a.groups,
                                   &a.their_groups);
    if (!failed)
        find_swapped(g, &a);
    gate_close(&a);
    return failed ? -1 : 0;
}

/* Measures --------------------------------------------------------------- */

/* Whether a stage comes behind its layer's picks. */
static bool behind_picks(const char *name)
{
    static const char *const ends_of[] = {
        ".gate.topk_ids", ".gate.topk_weights", ".routed_out", ".mlp"};
    size_t layer;
    const char *rest = in_layer(name, &layer);
    for (size_t i = 0; i < LENGTH(ends_of); i++)
        if (ends(name, ends_of[i]))
            return true;
    return rest == NULL || *rest == 0 || ends(name, ".shared_head.norm");
}

static bool counts(const Judge *g, const char *name, size_t row)
{
    return g->j->first != NULL || row >= g->tokens
           || (row < g->limit && !(g->swapped[row] && behind_picks(name)));
}

/* What the sketch has of numbers that differ: by how much, what is not finite,
 * as masked scores, being -1. */
static double difference(double a, double b)
{
    return (isfinite(b) ? b : -1) - (isfinite(a) ? a : -1);
}

/* Numbers that are none, or infinite where golden's are not and nothing is
 * masked. */
static size_t count_not_finite(const char *name, const double *a,
                               const double *b, size_t n)
{
    bool masks = ends(name, ".gate.choice") || ends(name, ".self_attn.scores");
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++)
        wrong += isnan(b[i]) || (isinf(b[i]) && isfinite(a[i]) && !masks);
    return wrong;
}

/* The sums of a row's squares. */
static void add_row(double *error, double *power, const double *a,
                    const double *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double d = squared_distance(a[i], b[i]);
        *error += d;
        *power += isfinite(a[i]) ? a[i] * a[i] : 0;
    }
}

static void measure(const Judge *g, JudgedTensor *v, const Numbers *a,
                    const Numbers *b)
{
    size_t rows = a->rank > 0 ? a->shape[0] : 1;
    size_t n = rows > 0 ? a->elements / rows : 0;
    double error = 0, power = 0;
    v->tokens = rows;
    for (size_t t = 0; t < rows; t++) {
        const double *x = a->x + t * n, *y = b->x + t * n;
        v->not_finite += count_not_finite(v->name, x, y, n);
        if (!counts(g, v->name, t))
            continue;
        v->judged++;
        add_row(&error, &power, x, y, n);
    }
    v->nmse = v->not_finite > 0 ? INFINITY : error > 0 ? error / power : 0;
    v->departs = !(v->nmse <= v->bound);
}

/* Of all tokens, whether they count or not. */
static void sketch_pair(JudgedTensor *v, const Numbers *a, const Numbers *b)
{
    for (size_t i = 0; i < a->elements; i++) {
        v->power += isfinite(a->x[i]) ? a->x[i] * a->x[i] : 0;
        if (squared_distance(a->x[i], b->x[i]) > 0)
            sketch_add(&v->sketch, i, difference(a->x[i], b->x[i]));
    }
}

/* Picked experts count as sets; a sketch has 1 for one that is new and -1 for
 * one that is gone. */
static void measure_picks(const Judge *g, JudgedTensor *v, const Numbers *a,
                          const Numbers *b)
{
    size_t rows = a->shape[0], K = a->elements / rows, wrong = 0;
    v->picks = true;
    v->tokens = rows;
    v->bound = 0;
    for (size_t t = 0; t < rows; t++) {
        const double *x = a->x + t * K, *y = b->x + t * K;
        v->not_finite += count_not_finite(v->name, x, y, K);
        for (size_t k = 0; k < K; k++) {
            if (!has_id(y, K, x[k]) && x[k] >= 0 && x[k] < 65536)
                sketch_add(&v->sketch, t << 16 | (uint64_t)x[k], -1);
            if (!has_id(x, K, y[k]) && y[k] >= 0 && y[k] < 65536)
                sketch_add(&v->sketch, t << 16 | (uint64_t)y[k], 1);
        }
        if (!counts(g, v->name, t))
            continue;
        v->judged++;
        wrong += !same_ids(x, y, K);
    }
    v->nmse = v->judged ? (double)wrong / (double)v->judged : 0;
    v->departs = wrong + v->not_finite > 0;
}

/* Logits ----------------------------------------------------------------- */

static double log_sum_exp(const double *x, size_t n)
{
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (size_t i = 0; i < n; i++)
        sum += x[i] > most - 700 ? exp64(x[i] - most) : 0;
    return most + (sum > 0 ? log64(sum) : NAN);
}

/* Σ p ln(p/q) of the two rows' softmax. */
static double divergence(const double *a, const double *b, size_t n)
{
    double la = log_sum_exp(a, n), lb = log_sum_exp(b, n), kl = 0;
    for (size_t i = 0; i < n; i++)
        if (a[i] > la - 700)
            kl += exp64(a[i] - la) * ((a[i] - la) - (b[i] - lb));
    return kl;
}

static size_t greatest(const double *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* Rows that sum to 1 are logarithms of probabilities: so golden's become. */
static void take_logarithms(Numbers *a, const Numbers *b, JudgedTensor *v)
{
    size_t rows = a->shape[0], n = a->elements / rows;
    double ours = 0;
    for (size_t t = 0; t < rows; t++) {
        if (!(fabs(log_sum_exp(b->x + t * n, n)) < 0.05))
            return;
        ours = fmax(ours, fabs(log_sum_exp(a->x + t * n, n)));
    }
    if (ours < 0.5)
        return;
    for (size_t t = 0; t < rows; t++) {
        double sum = log_sum_exp(a->x + t * n, n);
        for (size_t i = t * n; i < (t + 1) * n; i++)
            a->x[i] -= sum;
    }
    snprintf(v->layout, sizeof v->layout, "log-probabilities");
}

/* How far two logits may come closer: six deviations of a difference of two
 * errors at the bound, for some tokens have more than their share. */
static double margin_at(const JudgedTensor *v, const Numbers *a)
{
    double power = 0;
    for (size_t i = 0; i < a->elements; i++)
        power += a->x[i] * a->x[i] / (double)a->elements;
    return 6 * sqrt(2 * v->bound * power);
}

static void measure_logits(const Judge *g, JudgedTensor *v, const Numbers *a,
                           const Numbers *b)
{
    size_t rows = a->shape[0], n = a->elements / rows;
    v->logits = true;
    v->top1_margin = margin_at(v, a);
    for (size_t t = 0; t < rows; t++) {
        const double *x = a->x + t * n, *y = b->x + t * n;
        double kl = divergence(x, y, n);
        size_t best = greatest(x, n), other = greatest(y, n);
        if (!(kl <= v->kl_most) && !isnan(v->kl_most)) {
            v->kl_most = kl;
            v->kl_at = t;
        }
        v->kl_mean += kl / (double)rows;
        v->top1 += best == other;
        v->top1_wrong += best != other && counts(g, v->name, t)
                         && !(x[best] - x[other] <= v->top1_margin);
    }
    v->departs = v->departs || v->top1_wrong > 0;
}

/* One tensor ------------------------------------------------------------- */

static int descending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Weights follow their ids, which may stand in another order; without ids
 * both are sorted. */
static int align_weights(const Judge *g, JudgedTensor *v, Numbers *a,
                         Numbers *b)
{
    Numbers ids = {0}, theirs = {0};
    size_t rows = a->shape[0], K = a->elements / rows;
    if (open_gate_part(g, "topk_ids", &ids, &theirs) != 0) {
        close_pair(&ids, &theirs);
        return -1;
    }
    bool known = theirs.x != NULL && theirs.elements == a->elements;
    double *row = allocate(K, sizeof *row, "weights", g->err);
    for (size_t t = 0; row != NULL && t < rows; t++) {
        double *x = a->x + t * K, *y = b->x + t * K;
        memcpy(row, y, K * sizeof *row);
        for (size_t k = 0; known && k < K; k++)
            for (size_t m = 0; m < K; m++)
                if (!(ids.x[t * K + k] < theirs.x[t * K + m])
                    && !(ids.x[t * K + k] > theirs.x[t * K + m]))
                    y[k] = row[m];
        if (!known) {
            qsort(x, K, sizeof *x, descending);
            qsort(y, K, sizeof *y, descending);
            snprintf(v->layout, sizeof v->layout, "sorted");
        }
    }
    free(row);
    close_pair(&ids, &theirs);
    return row == NULL ? -1 : 0;
}

/* Where groups were swapped, others are masked. */
static void leave_swapped(const Judge *g, Numbers *a, Numbers *b)
{
    size_t n = a->elements / a->shape[0];
    for (size_t i = 0; i < a->elements && g->j->first == NULL; i++)
        if (i / n < g->tokens && g->swapped[i / n]
            && isinf(a->x[i]) != (b->x[i] <= -65504) && !isnan(b->x[i]))
            b->x[i] = a->x[i];
}

/* What stands above the diagonal of scores may be masked later. */
static void leave_masked(const Numbers *a, Numbers *b)
{
    for (size_t i = 0; i < a->elements; i++)
        if (isinf(a->x[i]) && a->x[i] < 0)
            b->x[i] = a->x[i];
}

static int measure_pair(const Judge *g, JudgedTensor *v, Numbers *a,
                        Numbers *b)
{
    bool table = a->rank == 2 && a->elements > 0;
    if (table && ends(v->name, ".gate.topk_ids")) {
        measure_picks(g, v, a, b);
        return 0;
    }
    if (table && ends(v->name, ".gate.topk_weights")
        && align_weights(g, v, a, b) != 0)
        return -1;
    if (ends(v->name, ".self_attn.scores"))
        leave_masked(a, b);
    if (table && is_logits(v->name))
        take_logarithms(a, b, v);
    sketch_pair(v, a, b);
    if (table && ends(v->name, ".gate.choice"))
        leave_swapped(g, a, b);
    measure(g, v, a, b);
    if (table && is_logits(v->name))
        measure_logits(g, v, a, b);
    return 0;
}

/* How many times its bound a tensor is off. */
static double excess(const JudgedTensor *v)
{
    return v->bound > 0 ? v->nmse / v->bound : v->departs ? INFINITY : 0;
}

static void keep(Judge *g, const JudgedTensor *v)
{
    Judgement *j = g->j;
    JudgedTensor *kept = &j->tensors[j->n++];
    *kept = *v;
    j->departed += v->departs;
    if (v->departs && j->first == NULL)
        j->first = kept;
    if (j->worst == NULL || !(excess(v) <= excess(j->worst)))
        j->worst = kept;
}

/* The naive form's queries and the absorbed form's are not comparable. */
static bool other_form(const Judge *g, const StTensor *golden)
{
    const StTensor *t = st_find(g->theirs, golden->name);
    return t != NULL && ends(golden->name, ".self_attn.query")
           && t->elements != golden->elements;
}

static int judge_tensor(Judge *g, size_t at)
{
    const StTensor *golden = g->j->golden[at];
    JudgedTensor v = {.name = golden->name, .at = at, .layer = SIZE_MAX};
    Numbers ours, theirs;
    size_t layer;
    if (in_layer(golden->name, &layer) != NULL) {
        if (layer != g->layer && begin_layer(g, layer) != 0)
            return -1;
        v.layer = layer;
    }
    if (other_form(g, golden))
        return 0;
    v.bound = bound_of(g, golden->name);
    int there = open_pair(g, golden, &ours, &theirs, &v);
    int failed = there < 0 || (there > 0 && measure_pair(g, &v, &ours,
                                                         &theirs));
    if (!failed && there > 0)
        keep(g, &v);
    close_pair(&ours, &theirs);
    return failed ? -1 : 0;
}

/* The whole -------------------------------------------------------------- */

static int check_ids(const Judge *g)
{
    const StTensor *golden = st_find(g->golden, "ids");
    JudgedTensor unused = {0};
    Numbers a, b;
    int failed = 0;
    if (golden == NULL)
        return 0;
    int there = open_pair(g, golden, &a, &b, &unused);
    for (size_t i = 0; there > 0 && !failed && i < a.elements; i++)
        if (squared_distance(a.x[i], b.x[i]) > 0)
            failed = fail(g->err, "%s: %s[%zu]: wanted %.0f, found %g: "
                          "another prompt", g->theirs->paths[0], unused.from,
                          i, a.x[i], b.x[i]);
    close_pair(&a, &b);
    return there < 0 || failed ? -1 : 0;
}

static int check_unknown(Judge *g)
{
    const Safetensors *st = g->theirs;
    for (size_t i = 0; i < st->n_tensors; i++)
        if (!g->used[i]) {
            g->j->unknown = g->j->n_unknown++ ? g->j->unknown
                                              : st->tensors[i].name;
        }
    if (g->j->n > 0)
        return 0;
    return fail(g->err, "%s: wanted tensors of %s, found %.200s%s",
                st->paths[0], g->golden->paths[0],
                g->j->unknown ? g->j->unknown : "none of them",
                g->j->unknown ? ", which is none of them" : "");
}

/* Tokens are the rows of the embedding, or of the logits; the tail is the width
 * of k_pe. */
static void find_sizes(Judge *g)
{
    const Safetensors *st = g->golden;
    for (size_t i = 0; i < st->n_tensors; i++) {
        const StTensor *t = &st->tensors[i];
        if (t->rank == 2 && ends(t->name, ".k_pe")) {
            g->tail = t->shape[1];
            g->tokens = t->shape[0] > g->tokens ? t->shape[0] : g->tokens;
        } else if (t->rank == 2 && ends(t->name, ".gate.topk_ids"))
            g->tokens = t->shape[0] > g->tokens ? t->shape[0] : g->tokens;
    }
    g->limit = g->tokens;
}

static void hash_golden(const Safetensors *golden, char hash[17])
{
    char hex[65];
    Sha256 s = sha256_begin();
    sha256_add(&s, golden->files[0].data, golden->files[0].size);
    sha256_end(&s, hex);
    snprintf(hash, 17, "%.16s", hex);
}

static int judge_all(Judge *g)
{
    Judgement *j = g->j;
    st_order(g->golden, j->golden);
    if (check_ids(g) != 0)
        return -1;
    for (size_t i = 0; i < j->in_golden; i++)
        if (strcmp(j->golden[i]->name, "ids") != 0
            && judge_tensor(g, i) != 0)
            return -1;
    return check_unknown(g);
}

int judge_dump(Judgement *j, const Safetensors *golden,
               const Safetensors *theirs, JudgeRule rule, Error *err)
{
    Judge g = {.j = j, .golden = golden, .theirs = theirs, .rule = rule,
               .layer = SIZE_MAX, .err = err};
    *j = (Judgement){.in_golden = golden->n_tensors};
    find_sizes(&g);
    hash_golden(golden, j->hash);
    j->golden = allocate(golden->n_tensors, sizeof *j->golden, "tensors", err);
    g.used = allocate(theirs->n_tensors, sizeof *g.used, "tensors", err);
    g.swapped = allocate(g.tokens, sizeof *g.swapped, "tokens", err);
    j->tensors = allocate(golden->n_tensors, sizeof *j->tensors, "tensors",
                          err);
    int failed = j->golden == NULL || g.used == NULL || g.swapped == NULL
                 || j->tensors == NULL || judge_all(&g);
    free(g.used);
    free(g.swapped);
    if (failed)
        judge_close(j);
    return failed ? -1 : 0;
}

void judge_close(Judgement *j)
{
    free(j->tensors);
    free((void *)j->golden);
    *j = (Judgement){0};
}
