/* support.h: what several tests need: a printed seed, random numbers, places
 * to write, golden files.
 *
 * cmocka's fail() is a macro of no arguments, base/error.h's a function: the
 * project's headers come first, and tests use fail_msg(). */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include "deepseek.h"

#include "base/device.h"
#include "base/file.h"
#include "base/os.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* SEED in the environment repeats a failed run, or begins another one. */
static inline Random test_random(void)
{
    const char *text = getenv("SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 1;
    print_message("seed %llu\n", (unsigned long long)seed);
    return random_seeded(seed);
}

/* A whole number from low to high. */
static inline size_t random_between(Random *r, size_t low, size_t high)
{
    return low + (size_t)(random_u64(r) % (high - low + 1));
}

/* From -1 up to 1, n of them. */
static inline void random_fill(Random *r, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = 2 * random_uniform(r) - 1;
}

static inline void *test_alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    assert_non_null(p);
    return p;
}

/* What must succeed. */
static inline void must(int status, const Error *err)
{
    if (status)
        fail_msg("%s", err->text);
}

/* What must fail, with exactly this message. */
static inline void must_fail(int status, const Error *err, const char *text)
{
    if (!status)
        fail_msg("accepted, wanted: %s", text);
    assert_int_equal(status, -1);
    assert_string_equal(err->text, text);
}

/* Bit for bit, so that NaN and -0 count too. */
static inline void must_equal_bits(const float *a, const float *b, size_t n,
                                   const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (f32_bits(a[i]) != f32_bits(b[i]))
            fail_msg("%s: element %zu of %zu: %a is not %a", what, i, n,
                     (double)a[i], (double)b[i]);
}

/* Mean square of the difference over the mean square of what is wanted. */
static inline double nmse(const float *found, const float *wanted, size_t n)
{
    double power = 0, error = 0;
    for (size_t i = 0; i < n; i++) {
        double w = (double)wanted[i], e = (double)found[i] - w;
        power += w * w;
        error += e * e;
    }
    return power > 0 ? error / power : error;
}

/* Weights ---------------------------------------------------------------- */

/* (rows, cols) of mean 0 and standard deviation std, F32, BF16 or F8_E4M3
 * with scales; to be freed. */
static inline Matrix random_matrix(Random *r, size_t rows, size_t cols,
                                   DType dtype, float std)
{
    size_t grid = fp8_blocks(rows) * fp8_blocks(cols);
    float *x = test_alloc(rows * cols, sizeof *x);
    float *scale = test_alloc(grid, sizeof *scale);
    uint16_t *half = test_alloc(rows * cols, sizeof *half);
    Matrix m = {.dtype = dtype, .rows = rows, .cols = cols, .stride = cols};
    random_normal(r, x, rows * cols, std);
    for (size_t i = 0; i < rows * cols; i++)
        half[i] = bf16_from_f32(x[i]);
    if (dtype == DT_F8_E4M3)
        fp8_quantize((uint8_t *)half, scale, x, cols, rows, cols, FP8_BLOCK,
                     false);
    m.data = dtype == DT_F32 ? (void *)x : half;
    m.scale = dtype == DT_F8_E4M3 ? scale : NULL;
    free(dtype == DT_F32 ? (void *)half : x);
    if (dtype != DT_F8_E4M3)
        free(scale);
    return m;
}

static inline void matrix_free(Matrix *m)
{
    free((void *)(uintptr_t)m->data);
    free((void *)(uintptr_t)m->scale);
    m->data = m->scale = NULL;
}

/* One weight in double: an FP8 code times its scale is not rounded. */
static inline double weight(const Matrix *m, size_t r, size_t k)
{
    size_t i = r * m->stride + k;
    size_t grid = (m->cols + F8_BLOCK - 1) / F8_BLOCK;
    size_t block = (m->row0 + r) / F8_BLOCK * grid + k / F8_BLOCK;
    if (m->dtype == DT_F32)
        return (double)((const float *)m->data)[i];
    if (m->dtype == DT_BF16)
        return (double)f32_from_bf16(((const uint16_t *)m->data)[i]);
    return (double)e4m3_decode(((const uint8_t *)m->data)[i])
           * (double)((const float *)m->scale)[block];
}

/* Places ----------------------------------------------------------------- */

/* "DIR/name" of a new directory under TMPDIR, the same for the whole run of a
 * test program. */
static inline const char *scratch(const char *name)
{
    static char dir[200], path[400];
    const char *tmp = getenv("TMPDIR");
    Error err;
    while (!dir[0]) {
        uint64_t key = (uint64_t)(os_seconds() * 1e9);
        Random r = random_seeded(key ^ (uint64_t)(uintptr_t)malloc);
        snprintf(dir, sizeof dir, "%s/deepseek-test-%016llx",
                 tmp ? tmp : "/tmp", (unsigned long long)random_u64(&r));
        if (path_exists(dir))
            dir[0] = 0;
        else
            must(make_dir(dir, &err), &err);
    }
    if (snprintf(path, sizeof path, "%s%s%s", dir, name[0] ? "/" : "", name)
        >= (int)sizeof path)
        fail_msg("%s: too long", name);
    return path;
}

/* The same, in memory of its own. */
static inline char *scratch_dup(const char *name)
{
    const char *path = scratch(name);
    char *copy = test_alloc(strlen(path) + 1, 1);
    return strcpy(copy, path);
}

/* A file, in place of any; without the sync of file_write, which is slow. */
static inline void put_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* The tensor of this name, which must be there, in memory to be freed. */
static inline void *golden(const Safetensors *st, const char *name,
                           DType type, size_t *rows, size_t *cols)
{
    const StTensor *t = st_find(st, name);
    void *copy;
    if (!t)
        fail_msg("%s: no %s", st->paths[0], name);
    assert_int_equal(t->dtype, type);
    copy = test_alloc(t->bytes, 1);
    memcpy(copy, t->data, t->bytes);
    *rows = t->shape[0];
    *cols = t->elements / t->shape[0];
    return copy;
}

#endif
