/* npy.c: reader of .npy and .npz.
 *
 * Stages: the archive's directory, at its end, says where each member lies;
 * a member is a .npy: 6 magic bytes, a version, the length of a header, the
 * header, which is a Python dictionary of three keys, and the elements. Every
 * length and offset is checked against the file before it is followed; where
 * an archive says a thing twice, the directory's word counts. */
#include "npy.h"

#include <stdlib.h>
#include <string.h>

/* How much of a name goes into a message. */
#define NAME "%.200s"

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), m = strlen(with);
    return n >= m && strcmp(s + n - m, with) == 0;
}

static size_t little(const unsigned char *p, int bytes)
{
    size_t n = 0;
    while (bytes-- > 0)
        n = n << 8 | p[bytes];
    return n;
}

/* The header ------------------------------------------------------------- */

/* One array while it is read. */
typedef struct {
    const char *path, *name;
    const unsigned char *at;   /* what is left of it */
    size_t left;
    bool swapped, fortran;
    StTensor *tensor;
    Error *err;
} Array;

static int refuse(const Array *a, const char *what)
{
    size_t n = a->left < 30 ? a->left : 30;
    return fail(a->err, "%s: array " NAME ": %s, found '%.*s'", a->path,
                a->name, what, (int)n, (const char *)a->at);
}

static void skip(Array *a, size_t n)
{
    a->at += n;
    a->left -= n;
}

static void skip_blanks(Array *a)
{
    while (a->left > 0 && (*a->at == ' ' || *a->at == '\n'))
        skip(a, 1);
}

/* True, and past it, where this comes next. */
static bool take(Array *a, const char *text)
{
    size_t n = strlen(text);
    skip_blanks(a);
    if (a->left < n || memcmp(a->at, text, n) != 0)
        return false;
    skip(a, n);
    return true;
}

/* A string in either quote, cut to fit. */
static bool take_string(Array *a, char *out, size_t cap)
{
    skip_blanks(a);
    if (a->left < 2 || (*a->at != '\'' && *a->at != '"'))
        return false;
    const unsigned char *end = memchr(a->at + 1, *a->at, a->left - 1);
    if (end == NULL)
        return false;
    size_t n = (size_t)(end - a->at) - 1, kept = n < cap ? n : cap - 1;
    memcpy(out, a->at + 1, kept);
    out[kept] = 0;
    skip(a, n + 2);
    return true;
}

static DType dtype_of(const char *text)
{
    static const struct {
        const char *text;
        DType dtype;
    } known[] = {
        {"f2", DT_F16}, {"f4", DT_F32}, {"f8", DT_F64}, {"V2", DT_BF16},
        {"i1", DT_I8}, {"i2", DT_I16}, {"i4", DT_I32}, {"i8", DT_I64},
        {"u1", DT_U8}, {"u2", DT_U16}, {"u4", DT_U32}, {"u8", DT_U64},
        {"b1", DT_BOOL},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(text, known[i].text) == 0)
            return known[i].dtype;
    return DT_COUNT;
}

static int read_descr(Array *a)
{
    char text[16];
    Array start = *a;
    if (!take_string(a, text, sizeof text))
        return refuse(&start, "descr: wanted a type of numbers");
    bool ordered = strchr("<>|=", text[0]) != NULL && text[0] != 0;
    a->tensor->dtype = ordered ? dtype_of(text + 1) : DT_COUNT;
    if (a->tensor->dtype == DT_COUNT)
        return refuse(&start, ordered && text[1] == 'O'
                                  ? "descr: wanted numbers, not objects"
                                  : "descr: wanted a type of numbers");
    a->swapped = (text[0] == '>') == st_little_endian() && text[0] != '|'
                 && text[0] != '=';
    return 0;
}

static int read_order(Array *a)
{
    a->fortran = take(a, "True");
    return a->fortran || take(a, "False")
               ? 0 : refuse(a, "fortran_order: wanted True or False");
}

static int read_side(Array *a, size_t *side)
{
    size_t digits = 0, n = 0;
    for (; digits < a->left && a->at[digits] >= '0' && a->at[digits] <= '9';
         digits++) {
        if (n > (size_t)PTRDIFF_MAX / 10 - 1)
            return refuse(a, "shape: wanted a size that memory can hold");
        n = n * 10 + (size_t)(a->at[digits] - '0');
    }
    if (digits == 0)
        return refuse(a, "shape: wanted a whole number");
    skip(a, digits);
    *side = n;
    return 0;
}

static int read_shape(Array *a)
{
    StTensor *t = a->tensor;
    if (!take(a, "("))
        return refuse(a, "shape: wanted '('");
    for (t->rank = 0; !take(a, ")"); t->rank++) {
        if (t->rank == ST_MAX_RANK)
            return refuse(a, "shape: wanted at most 8 sides");
        skip_blanks(a);
        if (read_side(a, &t->shape[t->rank]) != 0)
            return -1;
        if (!take(a, ",") && (skip_blanks(a), a->left == 0 || *a->at != ')'))
            return refuse(a, "shape: wanted ',' or ')'");
    }
    return 0;
}

/* {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } in any order. */
static int read_dictionary(Array *a)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    static int (*const read[])(Array *) = {read_descr, read_order, read_shape};
    unsigned seen = 0;
    if (!take(a, "{"))
        return refuse(a, "header: wanted '{'");
    while (!take(a, "}")) {
        char key[16] = "";
        size_t k = 0;
        Array start = *a;
        if (take_string(a, key, sizeof key))
            while (k < 3 && strcmp(key, keys[k]) != 0)
                k++;
        if (!key[0] || k == 3 || (seen >> k & 1) != 0 || !take(a, ":"))
            return refuse(&start, "header: wanted descr, fortran_order and "
                          "shape, each once");
        seen |= 1u << k;
        if (read[k](a) != 0)
            return -1;
        take(a, ",");
    }
    return seen == 7 ? 0 : fail(a->err, "%s: array " NAME ": header: wanted "
                                "descr, fortran_order and shape", a->path,
                                a->name);
}

/* Up to the elements: magic bytes, version, header. */
static int read_header(Array *a)
{
    if (a->left < 10 || memcmp(a->at, "\x93NUMPY", 6) != 0)
        return fail(a->err, "%s: array " NAME ": wanted NumPy's magic bytes "
                    "and a header", a->path, a->name);
    unsigned version = a->at[6];
    int bytes = version == 1 ? 2 : 4;
    if (version < 1 || version > 3)
        return fail(a->err, "%s: array " NAME ": format version: wanted 1 to "
                    "3, found %u", a->path, a->name, version);
    size_t start = 8 + (size_t)bytes;
    size_t n = a->left < start ? 0 : little(a->at + 8, bytes);
    if (a->left < start || n > a->left - start)
        return fail(a->err, "%s: array " NAME ": the header wants %zu bytes, "
                    "found %zu", a->path, a->name, n, a->left);
    Array header = *a;
    skip(&header, start);
    header.left = n;
    if (read_dictionary(&header) != 0)
        return -1;
    a->swapped = header.swapped;
    a->fortran = header.fortran;
    skip(a, start + n);
    return 0;
}

/* Elements --------------------------------------------------------------- */

/* The last side runs slowest in Fortran's order: element (i_0, …, i_r-1) of n
 * sides lies at i_0 + n_0 (i_1 + n_1 (…)). */
static size_t fortran_place(const StTensor *t, size_t i)
{
    size_t index[ST_MAX_RANK] = {0}, at = 0;
    for (int k = t->rank - 1; k >= 0; k--) {
        index[k] = i % t->shape[k];
        i /= t->shape[k];
    }
    for (int k = t->rank - 1; k >= 0; k--)
        at = at * t->shape[k] + index[k];
    return at;
}

static int reorder(StTensor *t, unsigned char *data, Error *err)
{
    size_t size = dtype_size(t->dtype);
    unsigned char *copy = allocate(t->bytes, 1, "an array", err);
    if (copy == NULL)
        return -1;
    memcpy(copy, data, t->bytes);
    for (size_t i = 0; i < t->elements; i++)
        memcpy(data + i * size, copy + fortran_place(t, i) * size, size);
    free(copy);
    return 0;
}

static int read_elements(Array *a)
{
    StTensor *t = a->tensor;
    /* The file lies in memory of ours: file_read. */
    unsigned char *data = (unsigned char *)(uintptr_t)a->at;
    if (st_elements(t->shape, t->rank, t->dtype, &t->elements) != 0)
        return fail(a->err, "%s: array " NAME ": shape: more elements than "
                    "memory can hold", a->path, a->name);
    t->bytes = t->elements * dtype_size(t->dtype);
    if (t->bytes != a->left)
        return fail(a->err, "%s: array " NAME ": its shape wants %zu bytes, "
                    "found %zu", a->path, a->name, t->bytes, a->left);
    t->data = data;
    if (a->swapped)
        st_swap(data, t->elements, dtype_size(t->dtype));
    return a->fortran && t->rank > 1 ? reorder(t, data, a->err) : 0;
}

static int read_array(StTensor *t, const char *path, const char *name,
                      const unsigned char *bytes, size_t n, Error *err)
{
    Array a = {.path = path, .name = name, .at = bytes, .left = n,
               .tensor = t, .err = err};
    *t = (StTensor){.name = name};
    return read_header(&a) != 0 || read_elements(&a) != 0 ? -1 : 0;
}

/* The archive ------------------------------------------------------------ */

enum { END = 22, ENTRY = 46, LOCAL = 30 }; /* bytes, without what varies */

/* One archive while it is read. */
typedef struct {
    Safetensors *st;
    const char *path;
    const unsigned char *data;
    size_t size;
    const unsigned char *entry;  /* the next of the directory */
    size_t left;                 /* bytes of the directory from there on */
    size_t members;              /* bytes of those read */
    char *names;                 /* where the next name goes */
    Error *err;
} Archive;

static bool is(const unsigned char *p, const char *magic)
{
    return memcmp(p, magic, 4) == 0;
}

/* The last record, behind which there may be a comment; NULL: none. */
static const unsigned char *find_end(const unsigned char *data, size_t size)
{
    for (size_t comment = 0; comment + END <= size && comment <= 65535;
         comment++) {
        const unsigned char *p = data + size - comment - END;
        if (is(p, "PK\5\6") && little(p + 20, 2) == comment)
            return p;
    }
    return NULL;
}

/* How many members there are, or -1. */
static long find_directory(Archive *z)
{
    const unsigned char *end = find_end(z->data, z->size);
    if (end == NULL)
        return fail(z->err, "%s: wanted a zip archive, found no end of its "
                    "directory", z->path);
    size_t n = little(end + 10, 2), bytes = little(end + 12, 4);
    size_t at = little(end + 16, 4), most = (size_t)(end - z->data);
    if (n == 0xffff || at > most || bytes > most - at)
        return fail(z->err, "%s: wanted a zip archive of at most 4 GB and "
                    "65534 arrays with its directory in it", z->path);
    z->entry = z->data + at;
    z->left = bytes;
    return (long)n;
}

/* CRC-32 of zip: the reflected polynomial 0xedb88320. */
static uint32_t crc32(const unsigned char *p, size_t n)
{
    uint32_t crc = 0xffffffff;
    for (; n > 0; n--, p++) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

/* The name without ".npy", copied. */
static int copy_name(Archive *z, const char **name)
{
    size_t n = little(z->entry + 28, 2);
    const char *from = (const char *)z->entry + ENTRY;
    if (n < 5 || memcmp(from + n - 4, ".npy", 4) != 0
        || memchr(from, 0, n) != NULL)
        return fail(z->err, "%s: wanted arrays (NAME.npy), found '%.*s'",
                    z->path, n < 200 ? (int)n : 200, from);
    memcpy(z->names, from, n - 4);
    z->names[n - 4] = 0;
    *name = z->names;
    z->names += n - 3;
    return 0;
}

/* Where a member's bytes lie. */
static int find_member(const Archive *z, const char *name,
                       const unsigned char **from, size_t *n)
{
    const unsigned char *e = z->entry;
    size_t stored = little(e + 20, 4), at = little(e + 42, 4);
    *n = little(e + 24, 4);
    if (little(e + 10, 2) != 0 || little(e + 8, 2) % 2 != 0)
        return fail(z->err, "%s: array " NAME ": wanted it stored "
                    "(numpy.savez), found it compressed or encrypted",
                    z->path, name);
    if (stored != *n || at > z->size || z->size - at < LOCAL
        || !is(z->data + at, "PK\3\4"))
        return fail(z->err, "%s: array " NAME ": wanted its bytes in the "
                    "archive, found none", z->path, name);
    size_t start = LOCAL + little(z->data + at + 26, 2)
                   + little(z->data + at + 28, 2);
    if (start > z->size - at || *n > z->size - at - start)
        return fail(z->err, "%s: array " NAME ": wants %zu bytes, but the "
                    "archive ends before", z->path, name, *n);
    *from = z->data + at + start;
    return 0;
}

static int read_member(Archive *z)
{
    StTensor *t = &z->st->tensors[z->st->n_tensors];
    const unsigned char *from = NULL;
    const char *name = NULL;
    size_t n = 0, length = ENTRY;
    if (z->left >= ENTRY && is(z->entry, "PK\1\2"))
        length += little(z->entry + 28, 2) + little(z->entry + 30, 2)
                  + little(z->entry + 32, 2);
    if (z->left < length || !is(z->entry, "PK\1\2"))
        return fail(z->err, "%s: the archive's directory is cut", z->path);
    if (copy_name(z, &name) != 0 || find_member(z, name, &from, &n) != 0)
        return -1;
    z->members += n; /* no more than there are: else many may be one */
    if (z->members > z->size)
        return fail(z->err, "%s: array " NAME ": overlaps others", z->path,
                    name);
    if (crc32(from, n) != little(z->entry + 16, 4))
        return fail(z->err, "%s: array " NAME ": its checksum is wrong",
                    z->path, name);
    if (read_array(t, z->path, name, from, n, z->err) != 0)
        return -1;
    z->st->n_tensors++;
    z->entry += length;
    z->left -= length;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const StTensor *)a)->name, ((const StTensor *)b)->name);
}

/* Members whose bytes overlap would be put right twice: then what comes out
 * is wrong, and no harm is done. */
static int read_archive(Safetensors *st, Error *err)
{
    Archive z = {.st = st, .path = st->paths[0], .data = st->files[0].data,
                 .size = st->files[0].size, .err = err};
    long n = find_directory(&z);
    if (n < 0)
        return -1;
    st->tensors = allocate((size_t)n, sizeof *st->tensors, z.path, err);
    /* A name is shorter than the directory's entry for it. */
    z.names = st->names[0] = allocate(z.left, 1, z.path, err);
    if (st->tensors == NULL || z.names == NULL)
        return -1;
    for (long i = 0; i < n; i++)
        if (read_member(&z) != 0)
            return -1;
    qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
    for (size_t i = 1; i < st->n_tensors; i++)
        if (by_name(&st->tensors[i - 1], &st->tensors[i]) == 0)
            return fail(err, "%s: array " NAME ": is there twice", z.path,
                        st->tensors[i].name);
    return 0;
}

/* One file ---------------------------------------------------------------- */

/* "dir/logits.npy" holds the array "logits". */
static int read_single(Safetensors *st, Error *err)
{
    const char *path = st->paths[0], *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    size_t n = strlen(base) - strlen(".npy");
    st->tensors = allocate(1, sizeof *st->tensors, path, err);
    st->names[0] = allocate(n + 1, 1, path, err);
    if (st->tensors == NULL || st->names[0] == NULL)
        return -1;
    memcpy(st->names[0], base, n);
    st->n_tensors = 1;
    return read_array(st->tensors, path, st->names[0], st->files[0].data,
                      st->files[0].size, err);
}

static int read_either(Safetensors *st, const char *path, Error *err)
{
    size_t n = strlen(path) + 1;
    st->files = allocate(1, sizeof *st->files, path, err);
    st->paths = allocate(1, sizeof *st->paths, path, err);
    st->names = allocate(1, sizeof *st->names, path, err);
    if (st->files == NULL || st->paths == NULL || st->names == NULL
        || (st->paths[0] = allocate(n, 1, path, err)) == NULL)
        return -1;
    memcpy(st->paths[0], path, n);
    if (file_read(&st->files[0], path, err) != 0)
        return -1;
    return ends(path, ".npz") ? read_archive(st, err) : read_single(st, err);
}

int npy_open(Safetensors *st, const char *path, Error *err)
{
    if (!ends(path, ".npy") && !ends(path, ".npz"))
        return st_open(st, path, err);
    *st = (Safetensors){.n_files = 1};
    int rc = read_either(st, path, err);
    if (rc == 0)
        return 0;
    if (st->files == NULL || st->paths == NULL || st->names == NULL)
        st->n_files = 0;
    st_close(st);
    return rc;
}
