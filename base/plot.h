/* plot.h: charts of lines and heat maps as an SVG file.
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

/* Values as colours, from blue over near white to orange. */
typedef struct {
    const char *title, *label;  /* label: of the x axis */
    double from, to;            /* the outer edges of the columns, to > from */
    const double *values;       /* (rows, columns); not finite: no colour */
    size_t rows, columns;
    const char *const *names;   /* of bands of rows / n_names rows each */
    size_t n_names;             /* from the top; divides rows */
    double low, middle, high;   /* the values of the three colours */
} HeatMap;

/* Append a picture. */
void plot_svg(const Plot *p, Text *out);
void heat_svg(const HeatMap *h, Text *out);
/* A file of its own; an existing one only by force. */
int plot_write(const Plot *p, const char *path, bool force, Error *err);

/* Several pictures, one below another. Zeroed at first but for the title. */
typedef struct {
    const char *title;
    Text text;
    size_t n;
} PlotPage;

void page_add_plot(PlotPage *page, const Plot *p);
void page_add_heat(PlotPage *page, const HeatMap *h);
int page_write(const PlotPage *page, const char *path, bool force,
               Error *err);
void page_free(PlotPage *page);

#endif
