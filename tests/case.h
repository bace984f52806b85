/* case.h: a model of tests/data/models with golden values and their prompt. */
#ifndef TESTS_CASE_H
#define TESTS_CASE_H

#include "support.h"

#define MODELS "tests/data/models/"

typedef struct {
    Model model;
    Safetensors golden;
    int32_t *ids;        /* (T) */
    size_t T, V, D;      /* D: modules that are there */
} Case;

/* The values of golden/FILE.safetensors. */
static inline void case_open(Case *c, const char *name, const char *file)
{
    char path[200];
    Error err;
    size_t one;
    snprintf(path, sizeof path, MODELS "%s", name);
    must(model_open(&c->model, path, &err), &err);
    snprintf(path, sizeof path, MODELS "%s/golden/%s.safetensors", name, file);
    must(st_open(&c->golden, path, &err), &err);
    c->ids = golden(&c->golden, "ids", DT_I32, &c->T, &one);
    assert_int_equal(one, 1);
    c->V = c->model.config.vocab_size;
    c->D = c->model.n_mtp;
}

static inline void case_close(Case *c)
{
    model_close(&c->model);
    st_close(&c->golden);
    free(c->ids);
}

#endif
