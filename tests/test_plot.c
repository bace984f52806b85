/* test_plot.c: pictures of lines.
 *
 * Places follow from the axes by hand: 500 wide from 80 on, 318 high from 46
 * on, as plot.c has them. */
#include "support.h"

#include "base/plot.h"

static Text drawn(const Plot *p)
{
    Text t = {0};
    plot_svg(p, &t);
    assert_false(t.failed);
    return t;
}

static Plot plot_of(const PlotLine *lines, size_t n, bool log)
{
    return (Plot){"title", {"along", false}, {"up", log}, lines, n};
}

static size_t times(const Text *t, const char *what)
{
    size_t n = 0;
    for (const char *p = t->text; (p = strstr(p, what)) != NULL; p++)
        n++;
    return n;
}

static void test_linear(void **state)
{
    const double x[] = {0, 2, 4}, y[] = {0, 10, 40};
    PlotLine line = {"line", x, y, 3, 1, 0};
    Plot p = plot_of(&line, 1, false);
    Text t = drawn(&p);
    (void)state;
    assert_memory_equal(t.text, "<svg xmlns", 10);
    assert_string_equal(t.text + t.length - 7, "</svg>\n");
    assert_non_null(strstr(t.text, "d=\"M80.00 364.00L330.00 284.50L580.00"
                                   " 46.00\" stroke=\"#0072b2\""));
    assert_int_equal(times(&t, "<circle"), 3);
    assert_non_null(strstr(t.text, ">40</text>"));
    assert_non_null(strstr(t.text, ">0.5</text>"));
    assert_null(strstr(t.text, "dasharray"));
    text_free(&t);
}

/* Ticks at 1, 2, 5 of few decades, at whole decades of many. */
static void test_logarithmic(void **state)
{
    const double x[] = {0, 1, 2, 3}, few[] = {0.03, 0.05, 0.1, 0.15};
    const double many[] = {1e-3, 1, 1e3, 1e9};
    const double decade_and_a_half[] = {0.03, 0.05, 0.1, 0.9};
    const double between_two[] = {1.2, 1.3, 1.4, 1.8};
    PlotLine line = {"line", x, few, 4, 0, 1};
    Plot p = plot_of(&line, 1, true);
    Text t = drawn(&p);
    (void)state;
    assert_non_null(strstr(t.text, "y=\"368.00\" text-anchor=\"end\">0.02<"));
    assert_non_null(strstr(t.text, "y=\"241.46\" text-anchor=\"end\">0.05<"));
    assert_non_null(strstr(t.text, "y=\"145.73\" text-anchor=\"end\">0.1<"));
    assert_non_null(strstr(t.text, "y=\"50.00\" text-anchor=\"end\">0.2<"));
    assert_non_null(strstr(t.text, "L413.33 141.73L"));
    assert_int_equal(times(&t, "dasharray=\"6 4\""), 2);
    text_free(&t);
    line.y = decade_and_a_half;
    t = drawn(&p);
    assert_non_null(strstr(t.text, ">0.02<"));
    assert_non_null(strstr(t.text, ">0.5<"));
    text_free(&t);
    line.y = between_two;
    t = drawn(&p);
    assert_non_null(strstr(t.text, "y=\"368.00\" text-anchor=\"end\">1<"));
    assert_non_null(strstr(t.text, "y=\"50.00\" text-anchor=\"end\">2<"));
    text_free(&t);
    line.y = many;
    t = drawn(&p);
    assert_non_null(strstr(t.text, ">0.0001</text>"));
    assert_non_null(strstr(t.text, ">1e+10</text>"));
    assert_null(strstr(t.text, ">5</text>"));
    text_free(&t);
}

/* What has no place breaks the line and has no dot. */
static void test_gaps(void **state)
{
    const double x[] = {0, 1, 2, 3, 4}, y[] = {1, NAN, 10, 0, 100};
    const double none[] = {1, NAN, INFINITY, -INFINITY, 2};
    PlotLine line = {"line", x, y, 5, 0, 0};
    Plot p = plot_of(&line, 1, true);
    Text t = drawn(&p);
    (void)state;
    assert_int_equal(times(&t, "<circle"), 3);
    assert_non_null(strstr(t.text, "d=\"M80.00 364.00M330.00 205.00M580.00"
                                   " 46.00\""));
    text_free(&t);
    line.y = none;
    p.y.log = false;
    t = drawn(&p);
    assert_int_equal(times(&t, "<circle"), 2);
    assert_non_null(strstr(t.text, "d=\"M80.00 364.00M580.00 46.00\""));
    text_free(&t);
}

/* No points, one point, equal ones, huge and tiny ones: ticks all the same. */
static void test_ranges(void **state)
{
    static const double values[][2] = {
        {0, 0}, {-3, -3}, {1e15, 1e15 + 1}, {-1e300, 1e300}, {1e-300, 2e-300},
        {-0.0007, 0.0007}, {12345, 12346}, {1, 1.0000001}};
    const double x[] = {0, 1};
    PlotLine line = {"line", x, x, 0, 0, 0};
    (void)state;
    for (size_t i = 0; i <= 2 * (sizeof values / sizeof *values); i++) {
        Plot p = plot_of(&line, 1, i % 2 == 1);
        Text t = drawn(&p);
        size_t ticks = times(&t, "#ddd");
        assert_true(ticks >= 2 && ticks <= 12);
        assert_null(strstr(t.text, "nan"));
        assert_null(strstr(t.text, "inf"));
        text_free(&t);
        line.y = values[i / 2 % 8];
        line.n = 2;
    }
}

/* The same bytes again; every text escaped; a legend row for each line. */
static void test_text(void **state)
{
    const double x[] = {0, 1};
    PlotLine lines[] = {{"a<b>&\"c\"\n", x, x, 2, 0, 0},
                        {"second", x, x, 2, 9, 2}};
    Plot p = plot_of(lines, 2, false);
    Text a = drawn(&p), b = drawn(&p);
    (void)state;
    assert_non_null(strstr(a.text, ">a&lt;b&gt;&amp;&quot;c&quot;</text>"));
    assert_int_equal(times(&a, "h30"), 2);
    assert_non_null(strstr(a.text, "M600.00 54.00h30"));
    assert_non_null(strstr(a.text, "M600.00 74.00h30"));
    assert_int_equal(times(&a, "stroke-dasharray=\"2 3\""), 2);
    assert_int_equal(a.length, b.length);
    assert_memory_equal(a.text, b.text, a.length);
    text_free(&a);
    text_free(&b);
}

static void test_file(void **state)
{
    const double x[] = {0, 1};
    PlotLine line = {"line", x, x, 2, 0, 0};
    Plot p = plot_of(&line, 1, false);
    Text t = drawn(&p);
    char *path = scratch_dup("p.svg"), wanted[500];
    Error err;
    File file;
    (void)state;
    must(plot_write(&p, path, false, &err), &err);
    must(file_open(&file, path, &err), &err);
    assert_int_equal(file.size, t.length);
    assert_memory_equal(file.data, t.text, t.length);
    file_close(&file);
    snprintf(wanted, sizeof wanted,
             "%s: exists already; --force overwrites it", path);
    must_fail(plot_write(&p, path, false, &err), &err, wanted);
    must(plot_write(&p, path, true, &err), &err);
    remove(path);
    free(path);
    text_free(&t);
}

static int clean(void **state)
{
    (void)state;
    return remove(scratch(""));
}

static HeatMap heat_of(const double *values)
{
    static const char *const names[] = {"one", "two"};
    return (HeatMap){"title", "along", 0, 4, values, 2, 4, names, 2, 0, 1, 3};
}

/* Neighbours of one colour are one cell; what is not finite is none; values
 * beyond the ends have the colours of these. */
static void test_heat(void **state)
{
    const double values[] = {1, 1, 3, 9, 0, NAN, 0, -1};
    HeatMap h = heat_of(values);
    Text t = {0};
    (void)state;
    heat_svg(&h, &t);
    assert_false(t.failed);
    assert_non_null(strstr(t.text, "<path fill=\"#f4f4f0\" d=\"M80.00 46.00"
                           "h250.00v159.00h-250.00z\"/>"));
    assert_non_null(strstr(t.text, "<path fill=\"#d55e00\" d=\"M330.00 46.00"
                           "h250.00v159.00h-250.00z\"/>"));
    assert_non_null(strstr(t.text, "<path fill=\"#0072b2\" d=\"M80.00 205.00"
                           "h125.00v159.00h-125.00zM330.00 205.00h250.00"
                           "v159.00h-250.00z\"/>"));
    assert_non_null(strstr(t.text, ">one</text>"));
    assert_int_equal(times(&t, "<rect"), 1 + 15);
    text_free(&t);
}

static void test_page(void **state)
{
    const double values[8] = {0};
    HeatMap h = heat_of(values);
    Plot p = plot_of(NULL, 0, false);
    PlotPage page = {.title = "both"};
    char *path = scratch_dup("page.svg");
    Error err;
    File file;
    (void)state;
    page_add_plot(&page, &p);
    page_add_heat(&page, &h);
    must(page_write(&page, path, false, &err), &err);
    page_free(&page);
    must(file_open(&file, path, &err), &err);
    Text t = {(char *)(uintptr_t)file.data, file.size, 0, false};
    assert_non_null(strstr(t.text, "viewBox=\"0 0 900 840\""));
    assert_int_equal(times(&t, "<svg "), 3);
    assert_int_equal(times(&t, "</svg>"), 3);
    assert_non_null(strstr(t.text, "translate(0 420)"));
    file_close(&file);
    remove(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear), cmocka_unit_test(test_logarithmic),
        cmocka_unit_test(test_gaps), cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_text), cmocka_unit_test(test_file),
        cmocka_unit_test(test_heat), cmocka_unit_test(test_page),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
