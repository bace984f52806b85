/* diff.h: two safetensors files, tensor by tensor. */
#ifndef BASE_DIFF_H
#define BASE_DIFF_H

#include "error.h"
#include "safetensors.h"

typedef struct {
    const char *name;
    bool missing;          /* only in the first file */
    bool shape_differs;
    bool same_bits;        /* and the same dtype */
    size_t elements;
    size_t differing;      /* elements whose values differ: -0 equals +0 */
    double nmse;           /* Σ(a-b)² / Σa², sums in ascending order */
    double max_abs;        /* greatest |a-b| */
    size_t worst;          /* its flat index, the first one */
} DiffRow;

/* Element i of a tensor of any dtype. */
double diff_value(const StTensor *t, size_t i);
/* Compares one tensor of a with its namesake in b; b may be NULL. Values of
 * any dtypes are compared as double (which rounds integers beyond 2^53), NaN
 * equal to NaN and infinitely far from all else. Infinities and NaN of a are
 * left out of Σa²; where that is 0, a difference makes nmse infinite. */
int diff_tensor(DiffRow *row, const StTensor *a, const StTensor *b,
                Error *err);

#endif
