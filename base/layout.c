/* layout.c: every way in which a tensor may lie is a map from our index to
 * theirs; each is tried by its distance. At most 3 axes are permuted. */
#include "layout.h"

#include "diff.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_AXES = 3 };

double squared_distance(double a, double b)
{
    if (a == b || (isnan(a) && isnan(b)))
        return 0;
    if (isinf(a) && a < 0 && b <= -65504)
        return 0;
    double d = (a - b) * (a - b);
    return isnan(d) ? INFINITY : d;
}

/* Numbers ---------------------------------------------------------------- */

int numbers_open(Numbers *a, const StTensor *t, size_t first, size_t n,
                 int rank, Error *err)
{
    *a = (Numbers){.elements = n};
    for (int i = t->rank - rank; i < t->rank; i++)
        if (t->shape[i] != 1)
            a->shape[a->rank++] = t->shape[i];
    a->x = allocate(n, sizeof *a->x, t->name, err);
    if (a->x == NULL)
        return -1;
    for (size_t i = 0; i < n; i++)
        a->x[i] = diff_value(t, first + i);
    return 0;
}

void numbers_close(Numbers *a)
{
    free(a->x);
    *a = (Numbers){0};
}

int numbers_columns(Numbers *a, size_t first, size_t n, Error *err)
{
    size_t cols = a->shape[a->rank - 1], rows = a->elements / cols;
    double *x = allocate(rows * n, sizeof *x, "columns", err);
    if (x == NULL)
        return -1;
    for (size_t i = 0; i < rows * n; i++)
        x[i] = a->x[i / n * cols + first + i % n];
    free(a->x);
    a->x = x;
    a->elements = rows * n;
    a->shape[a->rank - 1] = n;
    return 0;
}

/* One layout --------------------------------------------------------------- */

/* What a search has at hand. */
typedef struct {
    const Numbers *ours, *theirs;
    size_t tail;
} Pair;

/* The side of their axis k, if axes were not merged. */
static size_t side(const Pair *p, const Layout *l, int k)
{
    int axis = l->order[k];
    bool doubled = l->twice != ONCE && axis == p->ours->rank - 1;
    return p->ours->shape[axis] * (doubled ? 2 : 1);
}

/* Their sides are ours in this order, neighbours multiplied or not. */
static bool fits_shape(const Pair *p, const Layout *l)
{
    int k = 0, n = p->ours->rank;
    for (int i = 0; i < p->theirs->rank; i++) {
        size_t product = 1;
        do {
            if (k == n)
                return false;
            product *= side(p, l, k++);
        } while (product < p->theirs->shape[i]);
        if (product != p->theirs->shape[i])
            return false;
    }
    return k == n;
}

/* Where they keep our column j of n. */
static size_t column(const Pair *p, const Layout *l, size_t j, size_t n,
                     bool second)
{
    size_t tail = p->tail, head = n - tail;
    if (l->twice == HALVES_TWICE)
        return j + (second ? n : 0);
    if (l->twice == EACH_TWICE)
        return 2 * j + second;
    if (tail == 0)
        return j;
    bool in_tail = j >= head;
    size_t i = in_tail ? j - head : j;
    if (in_tail && l->halves)
        i = i / 2 + i % 2 * (tail / 2);
    return i + (in_tail != l->first ? (in_tail ? head : tail) : 0);
}

/* Their index of our element i. */
static size_t place(const Pair *p, const Layout *l, size_t i, bool second)
{
    size_t index[MOST_AXES] = {0}, at = 0;
    int n = p->ours->rank;
    for (int k = n - 1; k >= 0; k--) {
        index[k] = i % p->ours->shape[k];
        i /= p->ours->shape[k];
    }
    if (n > 0)
        index[n - 1] = column(p, l, index[n - 1], p->ours->shape[n - 1],
                              second);
    for (int k = 0; k < n; k++)
        at = at * side(p, l, k) + index[l->order[k]];
    return at;
}

/* Of a number that is there twice, the worse one counts. */
static double read_at(const Pair *p, const Layout *l, size_t i)
{
    double x = p->theirs->x[place(p, l, i, false)];
    if (l->twice == ONCE)
        return x;
    double a = p->ours->x[i], y = p->theirs->x[place(p, l, i, true)];
    return squared_distance(a, y) > squared_distance(a, x) ? y : x;
}

/* Numbers that are not finite where ours are weigh as much in every layout: not
 * so much that the others are lost. */
static double distance(const Pair *p, const Layout *l)
{
    double sum = 0;
    for (size_t i = 0; i < p->ours->elements; i++) {
        double d = squared_distance(p->ours->x[i], read_at(p, l, i));
        sum += isfinite(d) ? d : 4;
    }
    return sum;
}

/* The search --------------------------------------------------------------- */

typedef struct {
    Pair pair;
    Layout best;
    double least;        /* of the best; of ours ten times less */
    bool any;
} Search;

static bool is_ours(const Layout *l, int rank)
{
    for (int k = 0; k < rank; k++)
        if (l->order[k] != k)
            return false;
    return !l->halves && !l->first && l->twice == ONCE;
}

static void try_one(Search *s, const Layout *l)
{
    if (!fits_shape(&s->pair, l))
        return;
    double d = distance(&s->pair, l);
    if (is_ours(l, s->pair.ours->rank))
        d /= 10;
    if (s->any && d >= s->least)
        return;
    s->any = true;
    s->least = d;
    s->best = *l;
}

static void try_tails(Search *s, Layout *l, LayoutChoice choice)
{
    static const Twice all[] = {ONCE, HALVES_TWICE, EACH_TWICE};
    for (int i = 0; i < (choice.twice ? 3 : 1); i++)
        for (int bits = 0; bits < (choice.tail ? 4 : 1); bits++) {
            l->twice = all[i];
            l->halves = bits & 1;
            l->first = bits >> 1;
            if (!l->first || choice.tail
                             < s->pair.ours->shape[s->pair.ours->rank - 1])
                try_one(s, l);
        }
}

static bool close_enough(const Search *s)
{
    double power = 0;
    for (size_t i = 0; i < s->pair.ours->elements; i++)
        if (isfinite(s->pair.ours->x[i]))
            power += s->pair.ours->x[i] * s->pair.ours->x[i];
    return s->any && s->least < power / 100;
}

/* Every order of up to three axes, ours first. */
static void try_orders(Search *s, LayoutChoice choice)
{
    static const int orders[6][MOST_AXES] = {
        {0, 1, 2}, {1, 0, 2}, {0, 2, 1}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    int rank = s->pair.ours->rank;
    int n = rank < 2 ? 1 : rank == 2 ? 2 : 6;
    for (int i = 0; i < n; i++) {
        Layout l = {.twice = ONCE};
        for (int k = 0; k < MOST_AXES; k++)
            l.order[k] = orders[i][k];
        try_tails(s, &l, choice);
    }
}

int layout_find(Layout *found, bool *fits, const Numbers *ours,
                Numbers *theirs, LayoutChoice choice, Error *err)
{
    if (ours->rank > MOST_AXES)
        return fail(err, "wanted at most %d sides, found %d", MOST_AXES,
                    ours->rank);
    if (ours->rank == 0 || choice.tail > ours->shape[ours->rank - 1])
        choice = (LayoutChoice){0, false};
    Search s = {.pair = {ours, theirs, choice.tail}};
    try_one(&s, &(Layout){.order = {0, 1, 2}});
    if (!close_enough(&s))
        try_orders(&s, choice);
    *fits = s.any;
    *found = s.best;
    if (!s.any)
        return 0;
    double *x = allocate(ours->elements, sizeof *x, "numbers", err);
    if (x == NULL)
        return -1;
    for (size_t i = 0; i < ours->elements; i++)
        x[i] = read_at(&s.pair, &s.best, i);
    free(theirs->x);
    *theirs = *ours;
    theirs->x = x;
    return 0;
}

void layout_name(char *text, size_t cap, const Layout *l, int rank)
{
    int n = snprintf(text, cap, "%s%s%s", l->halves ? ", half-split" : "",
                     l->first ? ", tail first" : "",
                     l->twice != ONCE ? ", every number twice" : "");
    bool moved = false;
    for (int k = 0; k < rank; k++)
        moved = moved || l->order[k] != k;
    for (int k = 0; moved && k < rank && n >= 0 && (size_t)n < cap; k++)
        n += snprintf(text + n, cap - (size_t)n, "%s%d",
                      k ? " " : ", axes ", l->order[k] + 1);
    if (text[0] == ',')
        memmove(text, text + 2, strlen(text + 2) + 1);
}
