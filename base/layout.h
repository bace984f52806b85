/* layout.h: another program's tensor read as one of ours.
 *
 * The same numbers may lie otherwise: sides of 1 that we do not have, axes in
 * another order, neighbouring axes as one, the end of each row apart by even
 * and odd columns, or in front of the rest, or every number twice. All that
 * the two shapes admit is tried, and what comes closest is taken. Where ours is
 * among them and a tenth of the squares off at most, no other is; else another
 * has to be ten times closer. */
#ifndef BASE_LAYOUT_H
#define BASE_LAYOUT_H

#include "safetensors.h"

/* A tensor without its sides of 1, as double. */
typedef struct {
    int rank;
    size_t shape[ST_MAX_RANK];
    size_t elements;
    double *x;
} Numbers;

/* Elements [first, first + n) of a tensor, in the shape of its last `rank`
 * sides; all of it: 0, its elements, its rank. */
int numbers_open(Numbers *a, const StTensor *t, size_t first, size_t n,
                 int rank, Error *err);
void numbers_close(Numbers *a);
/* Columns [first, first + n) of the last side alone. */
int numbers_columns(Numbers *a, size_t first, size_t n, Error *err);

typedef enum { ONCE, HALVES_TWICE, EACH_TWICE } Twice;

typedef struct {
    int order[ST_MAX_RANK];   /* their axis k is our axis order[k] */
    bool halves;              /* the tail: even columns, then odd ones */
    bool first;               /* the tail before the rest */
    Twice twice;              /* x0 x1 … x0 x1 …, or x0 x0 x1 x1 … */
} Layout;

typedef struct {
    size_t tail;  /* columns at the end of a row that may lie otherwise */
    bool twice;   /* every number may be there two times */
} LayoutChoice;

/* theirs gets the layout of ours. *fits: false where none has its shape. ours
 * has 3 sides at most. */
int layout_find(Layout *found, bool *fits, const Numbers *ours,
                Numbers *theirs, LayoutChoice choice, Error *err);
/* "half-split, axes 2 1 3", or "" where it is ours. */
void layout_name(char *text, size_t cap, const Layout *l, int rank);

/* (a - b)²: 0 for equal ones, two NaN, and -inf where b is as low as F16 goes,
 * which masks as well; infinite where one alone is not finite. */
double squared_distance(double a, double b);

#endif
