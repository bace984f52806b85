/* safetensors.h: tensors in files.
 *
 * A file is 8 bytes of little-endian header length, a JSON header, then raw
 * little-endian data. Reading maps the file: a tensor's data stay where they
 * lie, at any alignment (on a big-endian host the file is read into memory and
 * its elements swapped once). Checked before use: header length, every shape
 * product, dtype and offset; ranges must tile the data exactly, without
 * overlap or gap; names must be unique, also across shards. A tensor that lies
 * in a shard but not in the index is left out, as other engines do. */
#ifndef BASE_SAFETENSORS_H
#define BASE_SAFETENSORS_H

#include "dtype.h"
#include "error.h"
#include "file.h"
#include "json.h"

enum {
    ST_MAX_RANK = 8,
    ST_MAX_HEADER = 100000000 /* bytes: the format's own limit */
};

typedef struct {
    const char *name;
    DType dtype;
    int rank;
    size_t shape[ST_MAX_RANK];
    size_t elements, bytes;
    const unsigned char *data; /* native byte order, unaligned */
    size_t file;               /* index into files */
} StTensor;

typedef struct {
    StTensor *tensors;   /* sorted by name */
    size_t n_tensors;
    char **paths;        /* the files, for messages */
    File *files;
    size_t n_files;
    char **names;        /* for each file: the names of its tensors */
} Safetensors;

/* One file, or a directory: model.safetensors, or the shards that
 * model.safetensors.index.json names (plain file names inside the directory;
 * every tensor must lie in the file that the index says). */
int st_open(Safetensors *st, const char *path, Error *err);
void st_close(Safetensors *st);
/* The text of a key of the first file's metadata into out (capacity cap); an
 * error where it is absent or longer. */
int st_metadata(const Safetensors *st, const char *key, char *out, size_t cap,
                Error *err);
const StTensor *st_find(const Safetensors *st, const char *name);
/* Tensors in the order of their data, as they were written: by file, then by
 * offset. Sorts an array of n_tensors pointers. */
void st_order(const Safetensors *st, const StTensor **order);

/* For readers of other formats: the product of a shape, -1 where it or its
 * bytes overflow; elements of `size` bytes the other way round. */
int st_elements(const size_t *shape, int rank, DType dtype, size_t *elements);
bool st_little_endian(void);
void st_swap(unsigned char *data, size_t n, size_t size);

/* Writing: the shapes first, then each tensor's data in turn. */
typedef struct {
    const char *name;
    DType dtype;
    int rank;
    size_t shape[ST_MAX_RANK];
} StSpec;

typedef struct StSink StSink;
/* Appends n elements of the tensor's dtype, in native byte order. */
int st_put(StSink *sink, const void *elements, size_t n, Error *err);
/* Called for each spec in turn; must st_put exactly its elements. */
typedef int StFill(void *context, size_t i, StSink *sink, Error *err);

/* metadata: pairs of strings, NULL at the end; or NULL. The data start at a
 * multiple of 64 bytes (the header is padded with blanks). */
int st_write(const char *path, bool force, const StSpec *specs, size_t n,
             const char *const *metadata, StFill *fill, void *context,
             Error *err);

#endif
