/* diff.c: the command that compares two files of tensors. */
#include "commands.h"

#include "../base/diff.h"
#include "../base/npy.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t tensors, differing;
    bool json;
    Text out;
} Diff;

/* "only in one file", "other shapes" or NULL. */
static const char *row_remark(const DiffRow *row)
{
    return row->missing ? "in one file only"
           : row->shape_differs ? "shapes differ" : NULL;
}

static void add_row_json(Diff *d, const DiffRow *row)
{
    text_printf(&d->out, "%s{\"name\": ", d->tensors > 1 ? ",\n " : "");
    text_json_string(&d->out, row->name, strlen(row->name), false);
    if (row_remark(row) != NULL)
        text_printf(&d->out, ", \"error\": \"%s\"}", row_remark(row));
    else
        text_printf(&d->out, ", \"same\": %s, \"elements\": %zu, \"differing\""
                    ": %zu, \"nmse\": %.9g, \"max_abs\": %.9g, \"worst\": %zu}",
                    row->same_bits ? "true" : "false", row->elements,
                    row->differing, row->nmse, row->max_abs, row->worst);
}

static void add_row_text(Diff *d, const DiffRow *row)
{
    if (row->same_bits)
        return;
    if (d->differing == 1)
        text_printf(&d->out, "%12s %12s %10s %10s %12s\n", "elements",
                    "differing", "nmse", "max |a-b|", "at");
    if (row_remark(row) != NULL)
        text_printf(&d->out, "%60s  %s\n", row_remark(row), row->name);
    else
        text_printf(&d->out, "%12zu %12zu %10.2e %10.2e %12zu  %s\n",
                    row->elements, row->differing, row->nmse, row->max_abs,
                    row->worst, row->name);
}

static int diff_one(Diff *d, const StTensor *a, const StTensor *b, Error *err)
{
    DiffRow row;
    if (diff_tensor(&row, a, b, err) != 0)
        return -1;
    d->tensors++;
    d->differing += !row.same_bits;
    if (d->json)
        add_row_json(d, &row);
    else
        add_row_text(d, &row);
    return print_text(&d->out, err);
}

/* In the order of the first file, so that the first stage that differs comes
 * first; then what only the second has. */
static int diff_all(Diff *d, const Safetensors *a, const Safetensors *b,
                    Error *err)
{
    const StTensor **order = allocate(a->n_tensors, sizeof *order,
                                      "the tensors", err);
    int status = order == NULL ? -1 : 0;
    if (status == 0)
        st_order(a, order);
    for (size_t i = 0; status == 0 && i < a->n_tensors; i++)
        status = diff_one(d, order[i], st_find(b, order[i]->name), err);
    for (size_t i = 0; status == 0 && i < b->n_tensors; i++)
        if (st_find(a, b->tensors[i].name) == NULL)
            status = diff_one(d, &b->tensors[i], NULL, err);
    free((void *)order);
    return status;
}

static int diff_print(Diff *d, const Safetensors *a, const Safetensors *b,
                      Error *err)
{
    if (d->json)
        text_add(&d->out, "[", 1);
    if (diff_all(d, a, b, err) != 0 || file_check_mapped(err) != 0)
        return -1;
    if (d->json)
        text_add(&d->out, "]\n", 2);
    else if (d->differing == 0)
        text_printf(&d->out, "%zu tensors, all with the same bits\n",
                    d->tensors);
    return print_text(&d->out, err);
}

/* By bits, unless there is a rule. */
static int compare(const Arguments *a, const Safetensors st[2], Error *err)
{
    char **path = a->line.operands;
    Diff d = {.json = a->json};
    if (a->rule > 0 || a->fingerprint != NULL)
        return diff_judged(a, &st[0], &st[1], err);
    int status = diff_print(&d, &st[0], &st[1], err);
    text_free(&d.out);
    if (status == 0 && d.differing > 0)
        return fail(err, "%s and %s differ in %zu of %zu tensors", path[0],
                    path[1], d.differing, d.tensors);
    return status;
}

int run_diff(const Arguments *a, Error *err)
{
    Safetensors st[2] = {{0}, {0}};
    int status = st_open(&st[0], a->line.operands[0], err);
    if (status == 0
        && (status = npy_open(&st[1], a->line.operands[1], err)) == 0) {
        status = compare(a, st, err);
        st_close(&st[1]);
    }
    if (st[0].n_files > 0)
        st_close(&st[0]);
    return status;
}
