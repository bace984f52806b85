/* plot.h: a chart of lines as an SVG file.
 *
 * Axes with ticks, labels and a legend; nothing but text, so that a picture can
 * be kept beside the document that shows it. The same numbers give the same
 * bytes everywhere. Knows nothing of what is drawn. */
#ifndef BASE_PLOT_H
#define BASE_PLOT_H

#include "error.h"
#include "json.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *label;
    bool log;            /* to base 10; what is not positive is left out */
} PlotAxis;

typedef struct {
    const char *name;    /* in the legend */
    const double *x, *y; /* (n); a point that is not finite breaks the line */
    size_t n;
    size_t colour;       /* which of the palette, taken round and round */
    int dash;            /* 0: a solid line, 1: dashes, 2: dots */
} PlotLine;

typedef struct {
    const char *title;
    PlotAxis x, y;
    const PlotLine *lines;
    size_t n_lines;
} Plot;

/* Appends the picture. */
void plot_svg(const Plot *p, Text *out);
/* A file of its own; an existing one only by force. */
int plot_write(const Plot *p, const char *path, bool force, Error *err);

#endif
