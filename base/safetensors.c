/* safetensors.c: reader and writer of the format, and of sharded checkpoints.
 *
 * Reading: each file is mapped, its header parsed, each entry checked by
 * itself, then the entries of the file together (their ranges must tile the
 * data). When all files are there the tensors are sorted by name, which shows
 * duplicates, and compared with the index. Nothing of a header is used after
 * st_open but the names, which are copied. */
#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* How much of a name goes into a message: the rest of the line matters too. */
#define NAME "%.200s"

bool st_little_endian(void)
{
    const uint16_t one = 1;
    unsigned char low;
    memcpy(&low, &one, 1);
    return low == 1;
}

void st_swap(unsigned char *data, size_t n, size_t size)
{
    for (; n > 0; n--, data += size) {
        for (size_t i = 0; i < size / 2; i++) {
            unsigned char byte = data[i];
            data[i] = data[size - 1 - i];
            data[size - 1 - i] = byte;
        }
    }
}

int st_elements(const size_t *shape, int rank, DType dtype, size_t *elements)
{
    size_t n = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] != 0 && n > (size_t)PTRDIFF_MAX / shape[i])
            return -1;
        n *= shape[i];
    }
    *elements = n;
    return n > (size_t)PTRDIFF_MAX / dtype_size(dtype) ? -1 : 0;
}

typedef struct {
    int length;
    const char *text;
} Excerpt;

/* One file while it is read. */
typedef struct {
    const char *path;
    Json json;                 /* of its header */
    const unsigned char *data; /* behind the header */
    size_t size;               /* of the data */
    Error *err;
} Shard;

/* How the start of a value is written in the file, for a message. */
static Excerpt excerpt(const Json *json, const JsonNode *node)
{
    size_t quote = json_type(node) == JSON_STRING ? 1 : 0;
    size_t n = node->length + 2 * quote;
    return (Excerpt){n < 40 ? (int)n : 40, json->text + node->start - quote};
}

static int read_dtype(const Shard *s, const JsonNode *entry, StTensor *t)
{
    const JsonNode *node = json_get(&s->json, entry, "dtype");
    if (node == NULL || json_type(node) != JSON_STRING)
        return fail(s->err, "%s: tensor " NAME ": dtype: wanted a string, "
                    "found %s", s->path, t->name,
                    node != NULL ? json_type_name(node) : "none");
    char name[16];
    long n = json_string(&s->json, node, name, sizeof name);
    t->dtype = n < 0 ? DT_COUNT : dtype_parse(name, (size_t)n);
    if (t->dtype != DT_COUNT)
        return 0;
    Excerpt found = excerpt(&s->json, node);
    return fail(s->err, "%s: tensor " NAME ": unknown dtype %.*s", s->path,
                t->name, found.length, found.text);
}

static int refuse_size(const Shard *s, const char *tensor, const char *key,
                       int i, const JsonNode *node)
{
    Excerpt found = excerpt(&s->json, node);
    return fail(s->err, "%s: tensor " NAME ": %s[%d]: wanted a size, found "
                "%.*s", s->path, tensor, key, i, found.length, found.text);
}

/* An array of integers from 0 up, at most `most` of them; how many, or -1. */
static int read_sizes(const Shard *s, const JsonNode *entry, const char *key,
                      const char *name, size_t *sizes, int most)
{
    const JsonNode *array = json_get(&s->json, entry, key);
    if (array == NULL || json_type(array) != JSON_ARRAY)
        return fail(s->err, "%s: tensor " NAME ": %s: wanted an array, found "
                    "%s", s->path, name, key,
                    array != NULL ? json_type_name(array) : "none");
    if (array->size > (uint32_t)most)
        return fail(s->err, "%s: tensor " NAME ": %s: wanted at most %d "
                    "numbers, found %" PRIu32, s->path, name, key, most,
                    array->size);
    int n = 0;
    const JsonNode *item = json_first(&s->json, array);
    for (; item != NULL; item = json_next(&s->json, array, item)) {
        int64_t value;
        if (!json_integer(&s->json, item, 0, PTRDIFF_MAX, &value))
            return refuse_size(s, name, key, n, item);
        sizes[n++] = (size_t)value;
    }
    return n;
}

static int read_range(const Shard *s, const JsonNode *entry, StTensor *t)
{
    size_t range[2];
    int n = read_sizes(s, entry, "data_offsets", t->name, range, 2);
    if (n < 0)
        return -1;
    if (n != 2)
        return fail(s->err, "%s: tensor " NAME ": data_offsets: wanted 2 "
                    "numbers, found %d", s->path, t->name, n);
    if (range[0] > range[1])
        return fail(s->err, "%s: tensor " NAME ": data_offsets: begin %zu is "
                    "beyond end %zu", s->path, t->name, range[0], range[1]);
    if (range[1] > s->size)
        return fail(s->err, "%s: tensor " NAME ": ends at byte %zu of the "
                    "data, but the file holds only %zu", s->path, t->name,
                    range[1], s->size);
    t->data = s->data + range[0];
    t->bytes = range[1] - range[0];
    return 0;
}

static int read_entry(const Shard *s, const JsonNode *entry, StTensor *t)
{
    if (json_type(entry) != JSON_OBJECT)
        return fail(s->err, "%s: tensor " NAME ": wanted an object, found %s",
                    s->path, t->name, json_type_name(entry));
    if (read_dtype(s, entry, t) != 0)
        return -1;
    t->rank = read_sizes(s, entry, "shape", t->name, t->shape, ST_MAX_RANK);
    if (t->rank < 0)
        return -1;
    if (st_elements(t->shape, t->rank, t->dtype, &t->elements) != 0)
        return fail(s->err, "%s: tensor " NAME ": shape: more elements than "
                    "memory can hold", s->path, t->name);
    if (read_range(s, entry, t) != 0)
        return -1;
    size_t bytes = t->elements * dtype_size(t->dtype);
    if (t->bytes != bytes)
        return fail(s->err, "%s: tensor " NAME ": its shape wants %zu bytes, "
                    "data_offsets give %zu", s->path, t->name, bytes,
                    t->bytes);
    return 0;
}

static int check_metadata(const Shard *s, const JsonNode *metadata)
{
    if (json_type(metadata) != JSON_OBJECT)
        return fail(s->err, "%s: __metadata__: wanted an object, found %s",
                    s->path, json_type_name(metadata));
    const JsonNode *key = json_first(&s->json, metadata);
    for (; key != NULL; key = json_next(&s->json, metadata, key + 1)) {
        if (json_type(key + 1) != JSON_STRING)
            return fail(s->err, "%s: __metadata__: wanted strings, found %s",
                        s->path, json_type_name(key + 1));
    }
    return 0;
}

static int by_data(const void *a, const void *b)
{
    const StTensor *s = *(const StTensor *const *)a;
    const StTensor *t = *(const StTensor *const *)b;
    if (s->file != t->file)
        return s->file < t->file ? -1 : 1;
    if (s->data != t->data)
        return s->data < t->data ? -1 : 1;
    if (s->bytes != t->bytes)
        return s->bytes < t->bytes ? -1 : 1;
    return strcmp(s->name, t->name);
}

/* The ranges of the file's tensors, in order, leave out no byte. */
static int check_order(const Shard *s, const StTensor **order, size_t n)
{
    size_t end = 0;
    for (size_t i = 0; i < n; i++) {
        size_t begin = (size_t)(order[i]->data - s->data);
        if (begin != end)
            return fail(s->err, "%s: tensor " NAME ": begins at byte %zu of "
                        "the data, wanted %zu: %s", s->path, order[i]->name,
                        begin, end, begin > end ? "a gap" : "an overlap");
        end = begin + order[i]->bytes;
    }
    if (end != s->size)
        return fail(s->err, "%s: the tensors end at byte %zu of the data, but "
                    "the file holds %zu", s->path, end, s->size);
    return 0;
}

static int check_tiling(const Shard *s, const StTensor *tensors, size_t n)
{
    const StTensor **order = allocate(n, sizeof *order, s->path, s->err);
    if (order == NULL)
        return -1;
    for (size_t i = 0; i < n; i++)
        order[i] = &tensors[i];
    qsort(order, n, sizeof *order, by_data);
    int rc = check_order(s, order, n);
    free(order);
    return rc;
}

/* Copies a name into the block at *to and moves *to past it. */
static const char *copy_name(const Shard *s, const JsonNode *key, char **to)
{
    long n = json_string(&s->json, key, *to, (size_t)key->length + 1);
    if (memchr(*to, 0, (size_t)n) != NULL) {
        fail(s->err, "%s: tensor " NAME ": a zero byte in its name", s->path,
             *to);
        return NULL;
    }
    const char *name = *to;
    *to += n + 1;
    return name;
}

static size_t names_size(const Json *json)
{
    size_t n = 0;
    const JsonNode *key = json_first(json, json->nodes);
    for (; key != NULL; key = json_next(json, json->nodes, key + 1))
        n += (size_t)key->length + 1;
    return n;
}

static int read_tensors(Safetensors *st, const Shard *s)
{
    const JsonNode *root = s->json.nodes, *key = json_first(&s->json, root);
    size_t file = st->n_files - 1;
    char *to = st->names[file];
    for (; key != NULL; key = json_next(&s->json, root, key + 1)) {
        if (json_equals(&s->json, key, "__metadata__")) {
            if (check_metadata(s, key + 1) != 0)
                return -1;
            continue;
        }
        StTensor *t = &st->tensors[st->n_tensors];
        *t = (StTensor){.file = file};
        t->name = copy_name(s, key, &to);
        if (t->name == NULL || read_entry(s, key + 1, t) != 0)
            return -1;
        st->n_tensors++;
    }
    return 0;
}

static void swap_file(const StTensor *tensors, size_t n)
{
    for (size_t i = 0; i < n; i++)
        st_swap((unsigned char *)(uintptr_t)tensors[i].data,
                      tensors[i].elements, dtype_size(tensors[i].dtype));
}

static int read_header(Safetensors *st, const Shard *s)
{
    const JsonNode *root = s->json.nodes;
    size_t old = st->n_tensors, all = old + root->size;
    StTensor *tensors = all < PTRDIFF_MAX / sizeof *tensors
        ? realloc(st->tensors, (all + 1) * sizeof *tensors) : NULL;
    if (tensors == NULL)
        return fail(s->err, "%s: not enough memory for %zu tensors", s->path,
                    all);
    st->tensors = tensors;
    st->names[st->n_files - 1] = allocate(names_size(&s->json), 1, s->path,
                                          s->err);
    if (st->names[st->n_files - 1] == NULL || read_tensors(st, s) != 0)
        return -1;
    size_t n = st->n_tensors - old;
    if (check_tiling(s, st->tensors + old, n) != 0)
        return -1;
    if (!st_little_endian())
        swap_file(st->tensors + old, n);
    return 0;
}

/* The 8 bytes in front: how long the header is. */
static int header_length(const File *file, const char *path, size_t *length,
                         Error *err)
{
    if (file->size < 8)
        return fail(err, "%s: wanted 8 bytes of header length, found %zu",
                    path, file->size);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | file->data[i];
    if (n > ST_MAX_HEADER)
        return fail(err, "%s: header length: wanted at most %d, found %" PRIu64
                    ": no safetensors file", path, ST_MAX_HEADER, n);
    if (n > file->size - 8)
        return fail(err, "%s: the header wants %" PRIu64 " bytes, but the file "
                    "holds only %zu", path, n, file->size - 8);
    if (n == 0 || file->data[8] != '{')
        return fail(err, "%s: the header does not begin with {", path);
    *length = (size_t)n;
    return 0;
}

static int read_file(Safetensors *st, const File *file, const char *path,
                     Error *err)
{
    size_t length = 0;
    if (header_length(file, path, &length, err) != 0)
        return -1;
    Shard s = {.path = path, .err = err};
    s.data = file->data + 8 + length;
    s.size = file->size - 8 - length;
    if (json_parse(&s.json, path, (const char *)file->data + 8, length, err)
        != 0)
        return -1;
    int rc = read_header(st, &s);
    json_free(&s.json);
    return rc;
}

static int grow_files(Safetensors *st, const char *path, Error *err)
{
    size_t n = st->n_files + 1;
    char **paths = realloc(st->paths, n * sizeof *paths);
    if (paths != NULL)
        st->paths = paths;
    File *files = realloc(st->files, n * sizeof *files);
    if (files != NULL)
        st->files = files;
    char **names = realloc(st->names, n * sizeof *names);
    if (names != NULL)
        st->names = names;
    if (paths == NULL || files == NULL || names == NULL)
        return fail(err, "%s: not enough memory to open it", path);
    st->files[n - 1] = (File){0};
    st->names[n - 1] = NULL;
    st->paths[n - 1] = allocate(strlen(path) + 1, 1, path, err);
    if (st->paths[n - 1] == NULL)
        return -1;
    strcpy(st->paths[n - 1], path);
    st->n_files = n;
    return 0;
}

static int open_one(Safetensors *st, const char *path, Error *err)
{
    if (grow_files(st, path, err) != 0)
        return -1;
    File *file = &st->files[st->n_files - 1];
    int rc = st_little_endian() ? file_open(file, path, err)
                                : file_read(file, path, err);
    return rc == 0 ? read_file(st, file, path, err) : -1;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const StTensor *)a)->name, ((const StTensor *)b)->name);
}

static int sort_tensors(Safetensors *st, Error *err)
{
    if (st->n_tensors > 0)
        qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
    for (size_t i = 1; i < st->n_tensors; i++) {
        const StTensor *a = &st->tensors[i - 1], *b = &st->tensors[i];
        if (strcmp(a->name, b->name) == 0)
            return fail(err, "%s: tensor " NAME " is also in %s",
                        st->paths[b->file], b->name, st->paths[a->file]);
    }
    return 0;
}

/* What the index says: this tensor is in that file. */
typedef struct {
    const char *name, *file;
    size_t index; /* of the file among st->files */
} Place;

typedef struct {
    const char *path, *dir;
    Json json;
    Place *places;
    size_t n;
    char *text; /* their names and files */
    Error *err;
} Index;

/* A name that cannot lead out of the directory. */
static bool is_plain_name(const char *name)
{
    return name[0] != 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0
        && strpbrk(name, "/\\:") == NULL;
}

static const char *copy_string(const Index *index, const JsonNode *node,
                               char **to)
{
    long n = json_string(&index->json, node, *to, (size_t)node->length + 1);
    const char *text = *to;
    if (n < 0 || strlen(text) != (size_t)n)
        return NULL;
    *to += n + 1;
    return text;
}

static int read_place(Index *index, const JsonNode *key, char **to)
{
    Place *place = &index->places[index->n];
    place->name = copy_string(index, key, to);
    if (place->name == NULL)
        return fail(index->err, "%s: weight_map: a tensor with a zero byte in "
                    "its name", index->path);
    if (json_type(key + 1) != JSON_STRING)
        return fail(index->err, "%s: weight_map: " NAME ": wanted a string, "
                    "found %s", index->path, place->name,
                    json_type_name(key + 1));
    place->file = copy_string(index, key + 1, to);
    if (place->file == NULL || !is_plain_name(place->file))
        return fail(index->err, "%s: weight_map: " NAME ": wanted the name of "
                    "a file beside the index, found " NAME, index->path,
                    place->name, place->file == NULL ? "one with a zero byte"
                    : place->file[0] == 0 ? "an empty one" : place->file);
    index->n++;
    return 0;
}

static int read_places(Index *index, const JsonNode *map)
{
    size_t bytes = 0;
    const JsonNode *key = json_first(&index->json, map);
    for (; key != NULL; key = json_next(&index->json, map, key + 1))
        bytes += (size_t)key->length + (size_t)key[1].length + 2;
    index->text = allocate(bytes, 1, index->path, index->err);
    index->places = allocate(map->size, sizeof *index->places, index->path,
                             index->err);
    if (index->text == NULL || index->places == NULL)
        return -1;
    char *to = index->text;
    key = json_first(&index->json, map);
    for (; key != NULL; key = json_next(&index->json, map, key + 1)) {
        if (read_place(index, key, &to) != 0)
            return -1;
    }
    return 0;
}

static int by_file(const void *a, const void *b)
{
    return strcmp(((const Place *)a)->file, ((const Place *)b)->file);
}

/* Opens each file once, in the order of their names. */
static int open_shards(Safetensors *st, Index *index)
{
    qsort(index->places, index->n, sizeof *index->places, by_file);
    for (size_t i = 0; i < index->n; i++) {
        Place *place = &index->places[i];
        if (i == 0 || strcmp(place->file, place[-1].file) != 0) {
            char *path = path_join(index->dir, place->file, index->err);
            int rc = path != NULL ? open_one(st, path, index->err) : -1;
            free(path);
            if (rc != 0)
                return -1;
        }
        place->index = st->n_files - 1;
    }
    return 0;
}

static int check_place(const Safetensors *st, const Index *index,
                       const Place *place)
{
    const StTensor *t = st_find(st, place->name);
    if (t == NULL)
        return fail(index->err, "%s: tensor " NAME ": wanted in %s, found "
                    "nowhere", index->path, place->name,
                    st->paths[place->index]);
    if (t->file != place->index)
        return fail(index->err, "%s: tensor " NAME ": wanted in %s, found in "
                    "%s", index->path, place->name, st->paths[place->index],
                    st->paths[t->file]);
    return 0;
}

static int by_place_name(const void *a, const void *b)
{
    return strcmp(((const Place *)a)->name, ((const Place *)b)->name);
}

/* Every place holds its tensor; tensors without a place are dropped. */
static int check_places(Safetensors *st, Index *index)
{
    for (size_t i = 0; i < index->n; i++) {
        if (check_place(st, index, &index->places[i]) != 0)
            return -1;
    }
    if (index->n == st->n_tensors)
        return 0;
    qsort(index->places, index->n, sizeof *index->places, by_place_name);
    size_t kept = 0;
    for (size_t i = 0; i < st->n_tensors && kept < index->n; i++) {
        if (strcmp(st->tensors[i].name, index->places[kept].name) == 0)
            st->tensors[kept++] = st->tensors[i];
    }
    st->n_tensors = kept;
    return 0;
}

static int follow_index(Safetensors *st, Index *index)
{
    const JsonNode *map = json_get(&index->json, index->json.nodes,
                                   "weight_map");
    if (map == NULL || json_type(map) != JSON_OBJECT)
        return fail(index->err, "%s: weight_map: wanted an object, found %s",
                    index->path, map != NULL ? json_type_name(map) : "none");
    if (map->size == 0)
        return fail(index->err, "%s: weight_map: wanted tensors, found none",
                    index->path);
    if (read_places(index, map) != 0 || open_shards(st, index) != 0
        || sort_tensors(st, index->err) != 0)
        return -1;
    return check_places(st, index);
}

static int open_index(Safetensors *st, const char *dir, const char *path,
                      Error *err)
{
    File file;
    Index index = {.path = path, .dir = dir, .err = err};
    if (file_open(&file, path, err) != 0)
        return -1;
    int rc = json_parse(&index.json, path, (const char *)file.data, file.size,
                        err);
    if (rc == 0)
        rc = follow_index(st, &index);
    json_free(&index.json);
    free(index.places);
    free(index.text);
    file_close(&file);
    return rc;
}

static int open_single(Safetensors *st, const char *path, Error *err)
{
    return open_one(st, path, err) == 0 ? sort_tensors(st, err) : -1;
}

static int open_either(Safetensors *st, const char *dir, const char *single,
                       const char *index, Error *err)
{
    if (path_exists(single))
        return open_single(st, single, err);
    if (path_exists(index))
        return open_index(st, dir, index, err);
    return fail(err, "%s: wanted model.safetensors or "
                "model.safetensors.index.json, found neither", dir);
}

static int open_dir(Safetensors *st, const char *dir, Error *err)
{
    char *single = path_join(dir, "model.safetensors", err);
    char *index = path_join(dir, "model.safetensors.index.json", err);
    int rc = -1;
    if (single != NULL && index != NULL)
        rc = open_either(st, dir, single, index, err);
    free(single);
    free(index);
    return rc;
}

int st_open(Safetensors *st, const char *path, Error *err)
{
    *st = (Safetensors){0};
    int rc = path_is_dir(path) ? open_dir(st, path, err)
                               : open_single(st, path, err);
    if (rc != 0)
        st_close(st);
    return rc;
}

void st_close(Safetensors *st)
{
    for (size_t i = 0; i < st->n_files; i++) {
        file_close(&st->files[i]);
        free(st->paths[i]);
        free(st->names[i]);
    }
    free(st->files);
    free(st->paths);
    free(st->names);
    free(st->tensors);
    *st = (Safetensors){0};
}

static int name_against(const void *name, const void *tensor)
{
    return strcmp(name, ((const StTensor *)tensor)->name);
}

const StTensor *st_find(const Safetensors *st, const char *name)
{
    if (st->n_tensors == 0)
        return NULL;
    return bsearch(name, st->tensors, st->n_tensors, sizeof *st->tensors,
                   name_against);
}

int st_metadata(const Safetensors *st, const char *key, char *out, size_t cap,
                Error *err)
{
    const File *file = &st->files[0];
    const char *path = st->paths[0];
    size_t length = 0;
    Json json;
    if (header_length(file, path, &length, err) != 0
        || json_parse(&json, path, (const char *)file->data + 8, length, err)
           != 0)
        return -1;
    const JsonNode *metadata = json_get(&json, json.nodes, "__metadata__");
    const JsonNode *value = metadata == NULL ? NULL
                          : json_get(&json, metadata, key);
    int rc = value != NULL && json_string(&json, value, out, cap) >= 0
           ? 0 : fail(err, "%s: metadata: wanted a short text for " NAME,
                      path, key);
    json_free(&json);
    return rc;
}

void st_order(const Safetensors *st, const StTensor **order)
{
    for (size_t i = 0; i < st->n_tensors; i++)
        order[i] = &st->tensors[i];
    if (st->n_tensors > 0)
        qsort(order, st->n_tensors, sizeof *order, by_data);
}

struct StSink {
    OutFile *out;
    const char *path;
    const StSpec *spec;
    size_t left; /* elements still to come */
};

static int put_swapped(const StSink *sink, const unsigned char *from, size_t n,
                       Error *err)
{
    unsigned char block[4096];
    size_t size = dtype_size(sink->spec->dtype), most = sizeof block / size;
    while (n > 0) {
        size_t m = n < most ? n : most;
        memcpy(block, from, m * size);
        st_swap(block, m, size);
        if (out_write(sink->out, block, m * size, err) != 0)
            return -1;
        from += m * size;
        n -= m;
    }
    return 0;
}

int st_put(StSink *sink, const void *elements, size_t n, Error *err)
{
    if (n > sink->left)
        return fail(err, "%s: tensor " NAME ": wanted %zu more elements, got "
                    "%zu", sink->path, sink->spec->name, sink->left, n);
    sink->left -= n;
    if (st_little_endian())
        return out_write(sink->out, elements,
                         n * dtype_size(sink->spec->dtype), err);
    return put_swapped(sink, elements, n, err);
}

/* One tensor's entry, at *offset of the data, which it moves on. */
static int add_entry(Text *t, const StSpec *spec, size_t *offset,
                     const char *path, Error *err)
{
    size_t elements = 0;
    if (spec->rank < 0 || spec->rank > ST_MAX_RANK)
        return fail(err, "%s: tensor " NAME ": wanted rank 0 to %d, got %d",
                    path, spec->name, ST_MAX_RANK, spec->rank);
    if (st_elements(spec->shape, spec->rank, spec->dtype, &elements) != 0
        || elements * dtype_size(spec->dtype) > PTRDIFF_MAX - *offset)
        return fail(err, "%s: tensor " NAME ": too large", path, spec->name);
    text_add(t, t->length > 1 ? "," : "", t->length > 1);
    text_json_string(t, spec->name, strlen(spec->name), false);
    text_printf(t, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(spec->dtype));
    for (int i = 0; i < spec->rank; i++)
        text_printf(t, "%s%zu", i > 0 ? "," : "", spec->shape[i]);
    size_t end = *offset + elements * dtype_size(spec->dtype);
    text_printf(t, "],\"data_offsets\":[%zu,%zu]}", *offset, end);
    *offset = end;
    return 0;
}

static void add_metadata(Text *t, const char *const *pairs)
{
    text_printf(t, "\"__metadata__\":{");
    for (size_t i = 0; pairs[i] != NULL; i += 2) {
        text_printf(t, "%s", i > 0 ? "," : "");
        text_json_string(t, pairs[i], strlen(pairs[i]), false);
        text_printf(t, ":");
        text_json_string(t, pairs[i + 1], strlen(pairs[i + 1]), false);
    }
    text_printf(t, "}");
}

static int make_header(Text *t, const char *path, const StSpec *specs,
                       size_t n, const char *const *metadata, Error *err)
{
    size_t offset = 0;
    text_add(t, "{", 1);
    if (metadata != NULL)
        add_metadata(t, metadata);
    for (size_t i = 0; i < n; i++) {
        if (add_entry(t, &specs[i], &offset, path, err) != 0)
            return -1;
    }
    text_add(t, "}", 1);
    while (!t->failed && (t->length + 8) % 64 != 0)
        text_add(t, " ", 1);
    if (t->failed)
        return fail(err, "%s: not enough memory for its header", path);
    if (t->length > ST_MAX_HEADER)
        return fail(err, "%s: %zu tensors are too many for one file", path, n);
    return 0;
}

static int spec_by_name(const void *a, const void *b)
{
    return strcmp((*(const StSpec *const *)a)->name,
                  (*(const StSpec *const *)b)->name);
}

static int check_names(const char *path, const StSpec *specs, size_t n,
                       Error *err)
{
    const StSpec **order = allocate(n, sizeof *order, path, err);
    if (order == NULL)
        return -1;
    for (size_t i = 0; i < n; i++)
        order[i] = &specs[i];
    qsort(order, n, sizeof *order, spec_by_name);
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (strcmp(order[i]->name, "__metadata__") == 0)
            rc = fail(err, "%s: tensor __metadata__: a name that the format "
                      "keeps for itself", path);
        if (i > 0 && strcmp(order[i]->name, order[i - 1]->name) == 0)
            rc = fail(err, "%s: tensor " NAME ": given twice", path,
                      order[i]->name);
    }
    free(order);
    return rc;
}

static int write_header(OutFile *out, const Text *header, Error *err)
{
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)header->length >> 8 * i);
    if (out_write(out, length, sizeof length, err) != 0)
        return -1;
    return out_write(out, header->text, header->length, err);
}

static int write_tensor(OutFile *out, const StSpec *spec, size_t i,
                        StFill *fill, void *context, Error *err)
{
    StSink sink = {out, out->path, spec, 0};
    st_elements(spec->shape, spec->rank, spec->dtype, &sink.left);
    if (fill(context, i, &sink, err) != 0)
        return -1;
    if (sink.left > 0)
        return fail(err, "%s: tensor " NAME ": %zu elements were not given",
                    out->path, spec->name, sink.left);
    return 0;
}

static int write_all(OutFile *out, const StSpec *specs, size_t n,
                     const Text *header, StFill *fill, void *context,
                     Error *err)
{
    if (write_header(out, header, err) != 0)
        return -1;
    for (size_t i = 0; i < n; i++) {
        if (write_tensor(out, &specs[i], i, fill, context, err) != 0)
            return -1;
    }
    return 0;
}

int st_write(const char *path, bool force, const StSpec *specs, size_t n,
             const char *const *metadata, StFill *fill, void *context,
             Error *err)
{
    Text header = {0};
    OutFile out = {0};
    int rc = check_names(path, specs, n, err);
    if (rc == 0)
        rc = make_header(&header, path, specs, n, metadata, err);
    if (rc == 0)
        rc = out_open(&out, path, force, err);
    if (rc == 0)
        rc = write_all(&out, specs, n, &header, fill, context, err);
    if (rc == 0)
        rc = out_commit(&out, err);
    out_abort(&out);
    text_free(&header);
    return rc;
}
