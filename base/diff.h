/* diff.h: two safetensors files, tensor by tensor. */
#ifndef BASE_DIFF_H
#define BASE_DIFF_H

#include "error.h"
#include "safetensors.h"

typedef struct {
    const char *name;
    bool missing;          /* only in the first file */
    bool shape_differs;
    bool same_bits;
    size_t elements, differing;
    double nmse;           /* Σ(a-b)² / Σa² */
    double max_abs;        /* greatest |a-b| */
    size_t worst;          /* its flat index */
} DiffRow;

/* Compares one tensor of a with its namesake in b; b may be NULL. Values of
 * any float or integer dtype are compared as double, NaN equal to NaN. */
int diff_tensor(DiffRow *row, const StTensor *a, const StTensor *b,
                Error *err);

#endif
