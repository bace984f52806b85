/* plot.c: numbers to places on an axis, places to SVG.
 *
 * An axis is a range, already in logarithms where it is logarithmic, from one
 * tick to another: multiples of a step, or 1, 2 and 5 of every decade where
 * there are few. Stages: the ranges of all points (span); frame, grid and
 * labels; the lines; the legend to their right. A heat map has the same x axis;
 * each colour is one path over all its cells.
 *
 * Invariants: every text is escaped; coordinates have two decimals, and what
 * they are computed from uses no libm, so that bytes do not depend on the
 * machine. */
#include "plot.h"

#include "file.h"
#include "maths.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 900, HEIGHT = 420, LEFT = 80, RIGHT = 320, TOP = 46, BOTTOM = 56,
    ROW = 20, MAX_TICKS = 8,
    MAX_DOTS = 60,       /* a line of more points has none */
    SHADES = 7           /* of a heat map, on either side of the middle */
};

/* A range of values; log10 of them on a logarithmic axis. */
typedef struct {
    double low, high;
    double step;         /* 0: ticks at 1, 2, 5 of every decade */
    int64_t first, last; /* the ticks at low and high, as tick_at counts */
    bool log;
    double from, to;     /* the places of low and high in the picture */
} Scale;

/* Told apart with any kind of sight (after Okabe and Ito). */
static const char *const palette[] = {
    "#000000", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00",
    "#56b4e9"};

enum { COLOURS = sizeof palette / sizeof *palette };

static void add_escaped(Text *out, const char *s)
{
    for (; *s; s++)
        if (*s == '<')
            text_printf(out, "&lt;");
        else if (*s == '>')
            text_printf(out, "&gt;");
        else if (*s == '&')
            text_printf(out, "&amp;");
        else if (*s == '"')
            text_printf(out, "&quot;");
        else if ((unsigned char)*s >= 0x20)
            text_add(out, s, 1);
}

/* anchor: "start", "middle", "end". */
static void add_label(Text *out, double x, double y, const char *anchor,
                      const char *label)
{
    text_printf(out, "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"%s\">", x, y,
                anchor);
    add_escaped(out, label);
    text_printf(out, "</text>\n");
}

static void add_segment(Text *out, double x1, double y1, double x2, double y2,
                        const char *style)
{
    text_printf(out, "<path d=\"M%.2f %.2fL%.2f %.2f\" %s/>\n", x1, y1, x2,
                y2, style);
}

/* The value on its axis; false where it has no place there. */
static bool on_axis(const Scale *s, double value, double *at)
{
    if (!isfinite(value) || (s->log && !(value > 0)))
        return false;
    *at = s->log ? log64(value) / 2.302585092994046 : value;
    return true;
}

static double place(const Scale *s, double at)
{
    return s->from + (at - s->low) / (s->high - s->low) * (s->to - s->from);
}

/* The least of 1, 2, 5 · 10^n that makes few enough steps; whole decades on a
 * logarithmic axis, or 0 where these would be too few. */
static double step_of(double range, bool log)
{
    static const double factors[] = {1, 2, 5};
    double power = 1;
    if (log && range < 2)
        return 0;
    while (!log && power * MAX_TICKS > range && power > 1e-300)
        power /= 10;
    for (;; power *= 10)
        for (int i = 0; i < 3; i++)
            if (range <= factors[i] * power * MAX_TICKS)
                return factors[i] * power;
}

/* Where tick i lies, by the axis's own measure. */
static double tick_at(const Scale *s, int64_t i)
{
    static const double logs[] = {0, 0.3010299956639812, 0.6989700043360189};
    int64_t decade = i >= 0 ? i / 3 : -((2 - i) / 3);
    return s->step > 0 ? s->step * (double)i
                       : (double)decade + logs[i - 3 * decade];
}

/* To ticks around low … high; a range of nothing is widened. */
static void round_out(Scale *s)
{
    if (!(s->low <= s->high))
        s->low = s->high = 0;
    if (!(s->low < s->high)) {
        double half = s->log || s->low == 0 ? 0.5 : fabs(s->low) / 2;
        s->low -= half;
        s->high += half;
    }
    s->step = step_of(s->high - s->low, s->log);
    s->first = (int64_t)floor(s->step > 0 ? s->low / s->step : s->low * 3)
               + 3;
    while (tick_at(s, s->first) > s->low)
        s->first--;
    for (s->last = s->first + 1; tick_at(s, s->last) < s->high; s->last++)
        ;
    s->low = tick_at(s, s->first);
    s->high = tick_at(s, s->last);
}

static Scale span(const Plot *p, bool vertical, double from, double to)
{
    Scale s = {.low = INFINITY, .high = -INFINITY,
               .log = vertical ? p->y.log : p->x.log, .from = from,
               .to = to};
    for (size_t i = 0; i < p->n_lines; i++)
        for (size_t k = 0; k < p->lines[i].n; k++) {
            double at;
            if (!on_axis(&s, (vertical ? p->lines[i].y : p->lines[i].x)[k],
                         &at))
                continue;
            s.low = at < s.low ? at : s.low;
            s.high = at > s.high ? at : s.high;
        }
    round_out(&s);
    return s;
}

/* What stands at tick i: the number itself, also where its logarithm counts.
 * A decimal is read, not computed: the same digits everywhere. */
static void name_tick(char name[40], const Scale *s, int64_t i)
{
    double at = tick_at(s, i), decade = s->step > 0 ? at : floor(at);
    static const int digit[] = {1, 2, 5};
    char number[40];
    snprintf(number, sizeof number, "%de%.0f",
             s->step > 0 ? 1 : digit[i - 3 * (int64_t)decade], decade);
    snprintf(name, 40, "%.6g", s->log ? strtod(number, NULL) : at);
}

static void add_tick_x(Text *out, double at, const char *name)
{
    add_segment(out, at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 5,
                "stroke=\"#000\"");
    add_label(out, at, HEIGHT - BOTTOM + 20, "middle", name);
}

static void add_tick_y(Text *out, double at, const char *name)
{
    add_segment(out, LEFT, at, WIDTH - RIGHT, at, "stroke=\"#ddd\"");
    add_label(out, LEFT - 8, at + 4, "end", name);
}

static void add_ticks(Text *out, const Scale *s,
                      void (*add)(Text *out, double at, const char *name))
{
    for (int64_t i = s->first; i <= s->last; i++) {
        char name[40];
        name_tick(name, s, i);
        add(out, place(s, tick_at(s, i)), name);
    }
}

static void add_frame(Text *out, const char *title, const char *label)
{
    add_segment(out, LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM,
                "stroke=\"#000\"");
    add_segment(out, LEFT, TOP, LEFT, HEIGHT - BOTTOM, "stroke=\"#000\"");
    text_printf(out, "<g font-size=\"15\">\n");
    add_label(out, LEFT, TOP - 18, "start", title);
    text_printf(out, "</g>\n");
    add_label(out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14, "middle",
              label);
}

static void add_label_y(Text *out, const char *label)
{
    double middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    text_printf(out, "<g transform=\"rotate(-90 20 %.2f)\">\n", middle);
    add_label(out, 20, middle, "middle", label);
    text_printf(out, "</g>\n");
}

static void add_style(Text *out, const PlotLine *line)
{
    static const char *const dashes[] = {"", "6 4", "2 3"};
    text_printf(out, "stroke=\"%s\" stroke-width=\"2\"",
                palette[line->colour % COLOURS]);
    if (line->dash)
        text_printf(out, " stroke-dasharray=\"%s\"", dashes[line->dash]);
    text_printf(out, "/>\n");
}

/* Runs of points that have a place, and a dot at each. */
static void add_line(Text *out, const PlotLine *line, const Scale *x,
                     const Scale *y)
{
    bool down = false;
    double at_x, at_y;
    text_printf(out, "<path fill=\"none\" d=\"");
    for (size_t i = 0; i < line->n; i++) {
        bool there = on_axis(x, line->x[i], &at_x)
                     && on_axis(y, line->y[i], &at_y);
        if (there)
            text_printf(out, "%c%.2f %.2f", down ? 'L' : 'M', place(x, at_x),
                        place(y, at_y));
        down = there;
    }
    text_printf(out, "\" ");
    add_style(out, line);
    for (size_t i = 0; i < line->n && line->n <= MAX_DOTS; i++)
        if (on_axis(x, line->x[i], &at_x) && on_axis(y, line->y[i], &at_y))
            text_printf(out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"3\" "
                        "fill=\"%s\"/>\n", place(x, at_x), place(y, at_y),
                        palette[line->colour % COLOURS]);
}

static void add_legend(Text *out, const Plot *p)
{
    for (size_t i = 0; i < p->n_lines; i++) {
        double y = TOP + 8 + (double)i * ROW, x = WIDTH - RIGHT + 20;
        text_printf(out, "<path d=\"M%.2f %.2fh30\" ", x, y);
        add_style(out, &p->lines[i]);
        add_label(out, x + 38, y + 4, "start", p->lines[i].name);
    }
}

static void begin_svg(Text *out, const char *title, size_t height)
{
    text_printf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" "
                "viewBox=\"0 0 %d %zu\" width=\"%d\" height=\"%zu\" "
                "font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n",
                WIDTH, height, WIDTH, height);
    text_printf(out, "<title>");
    add_escaped(out, title);
    text_printf(out, "</title>\n<rect width=\"%d\" height=\"%zu\" "
                "fill=\"#fff\"/>\n", WIDTH, height);
}

void plot_svg(const Plot *p, Text *out)
{
    Scale x = span(p, false, LEFT, WIDTH - RIGHT);
    Scale y = span(p, true, HEIGHT - BOTTOM, TOP);
    begin_svg(out, p->title, HEIGHT);
    add_ticks(out, &y, add_tick_y);
    add_ticks(out, &x, add_tick_x);
    add_frame(out, p->title, p->x.label);
    add_label_y(out, p->y.label);
    for (size_t i = 0; i < p->n_lines; i++)
        add_line(out, &p->lines[i], &x, &y);
    add_legend(out, p);
    text_printf(out, "</svg>\n");
}

/* Heat maps --------------------------------------------------------------- */

/* From -SHADES to SHADES. */
static int shade_of(const HeatMap *h, double value)
{
    double end = value < h->middle ? h->low : h->high;
    double part = (value - h->middle) / (end - h->middle);
    int shade = part >= 1 ? SHADES : (int)(part * SHADES + 0.5);
    return value < h->middle ? -shade : shade;
}

static void add_colour(Text *out, int shade)
{
    static const int ends[2][3] = {{0x00, 0x72, 0xb2}, {0xd5, 0x5e, 0x00}};
    static const int middle[3] = {0xf4, 0xf4, 0xf0};
    int part = shade < 0 ? -shade : shade;
    text_printf(out, "#");
    for (int i = 0; i < 3; i++)
        text_printf(out, "%02x", (unsigned)(middle[i]
                    + (ends[shade > 0][i] - middle[i]) * part / SHADES));
}

/* The columns from `at` on that have the shade of that one. */
static size_t run_of(const HeatMap *h, const double *row, size_t at)
{
    size_t end = at + 1;
    while (end < h->columns && isfinite(row[end])
           && shade_of(h, row[end]) == shade_of(h, row[at]))
        end++;
    return end - at;
}

static void add_cells(Text *out, const HeatMap *h, const Scale *x, int shade)
{
    double left = place(x, h->from), top = TOP;
    double wide = (place(x, h->to) - left) / (double)h->columns;
    double high = (HEIGHT - BOTTOM - TOP) / (double)h->rows;
    text_printf(out, "<path fill=\"");
    add_colour(out, shade);
    text_printf(out, "\" d=\"");
    for (size_t r = 0; r < h->rows; r++) {
        const double *row = h->values + r * h->columns;
        for (size_t c = 0, n; c < h->columns; c += n) {
            n = isfinite(row[c]) ? run_of(h, row, c) : 1;
            if (isfinite(row[c]) && shade_of(h, row[c]) == shade)
                text_printf(out, "M%.2f %.2fh%.2fv%.2fh%.2fz",
                            left + (double)c * wide, top + (double)r * high,
                            (double)n * wide, high, -(double)n * wide);
        }
    }
    text_printf(out, "\"/>\n");
}

static void add_bands(Text *out, const HeatMap *h)
{
    double high = (HEIGHT - BOTTOM - TOP) / (double)h->n_names;
    for (size_t i = 0; i < h->n_names; i++) {
        double y = TOP + (double)i * high;
        add_label(out, LEFT - 8, y + high / 2 + 4, "end", h->names[i]);
        add_segment(out, LEFT, y, WIDTH - RIGHT, y, "stroke=\"#000\"");
    }
}

/* The colours with the values of the first, the middle and the last. */
static void add_shades(Text *out, const HeatMap *h)
{
    double x = WIDTH - RIGHT + 20;
    for (int i = SHADES; i >= -SHADES; i--) {
        double y = TOP + (SHADES - i) * 14;
        char value[40];
        text_printf(out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"24\" "
                    "height=\"14\" fill=\"", x, y);
        add_colour(out, i);
        text_printf(out, "\"/>\n");
        snprintf(value, sizeof value, "%.6g", i < 0 ? h->low
                 : i > 0 ? h->high : h->middle);
        if (i == SHADES || i == 0 || i == -SHADES)
            add_label(out, x + 32, y + 11, "start", value);
    }
}

void heat_svg(const HeatMap *h, Text *out)
{
    Scale x = {.low = h->from, .high = h->to, .from = LEFT,
               .to = WIDTH - RIGHT};
    round_out(&x);
    begin_svg(out, h->title, HEIGHT);
    for (int shade = -SHADES; shade <= SHADES; shade++)
        add_cells(out, h, &x, shade);
    add_ticks(out, &x, add_tick_x);
    add_frame(out, h->title, h->label);
    add_bands(out, h);
    add_shades(out, h);
    text_printf(out, "</svg>\n");
}

/* Files ------------------------------------------------------------------- */

static int write_picture(const Text *t, const char *path, bool force,
                         Error *err)
{
    return t->failed ? fail(err, "%s: not enough memory for a picture", path)
                     : file_write(path, force, t->text, t->length, err);
}

int plot_write(const Plot *p, const char *path, bool force, Error *err)
{
    Text t = {0};
    plot_svg(p, &t);
    int failed = write_picture(&t, path, force, err);
    text_free(&t);
    return failed;
}

static void begin_picture(PlotPage *page)
{
    text_printf(&page->text, "<g transform=\"translate(0 %zu)\">\n",
                page->n++ * HEIGHT);
}

void page_add_plot(PlotPage *page, const Plot *p)
{
    begin_picture(page);
    plot_svg(p, &page->text);
    text_printf(&page->text, "</g>\n");
}

void page_add_heat(PlotPage *page, const HeatMap *h)
{
    begin_picture(page);
    heat_svg(h, &page->text);
    text_printf(&page->text, "</g>\n");
}

int page_write(const PlotPage *page, const char *path, bool force, Error *err)
{
    Text t = {0};
    begin_svg(&t, page->title, page->n * HEIGHT);
    text_add(&t, page->text.text, page->text.length);
    text_printf(&t, "</svg>\n");
    t.failed = t.failed || page->text.failed;
    int failed = write_picture(&t, path, force, err);
    text_free(&t);
    return failed;
}

void page_free(PlotPage *page)
{
    text_free(&page->text);
    page->n = 0;
}
