/* sketch.h: a long list of numbers in 64, so that two can be compared.
 *
 * Number k of a sketch is Σ ±x_i with signs that follow from i alone, so that
 * products of sketches are those of the lists, but for about an eighth of
 * their lengths (Johnson and Lindenstrauss). A list may leave out numbers
 * that are 0. As text a sketch is a scale and 64 characters of 6 bits. */
#ifndef BASE_SKETCH_H
#define BASE_SKETCH_H

#include "json.h"

enum { SKETCH = 64 };

typedef struct {
    double at[SKETCH];
} Sketch;

/* Element i of the list is x. */
void sketch_add(Sketch *s, uint64_t i, double x);
/* "SCALE CHARACTERS". */
void sketch_print(Text *t, const Sketch *s);
/* Reads that from n bytes, all of them; false: it is something else. */
bool sketch_parse(Sketch *s, const char *text, size_t n);
/* 2ab / (a² + b²): 1 for equal lists, 0 for unrelated or for very different
 * ones, -1 for opposite ones; 0 for two lists of zeros. */
double sketch_agreement(const Sketch *a, const Sketch *b);

#endif
