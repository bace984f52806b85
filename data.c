/* data.c: documents to packed ids, and those to sequences for training.
 *
 *   text -> documents -> [PSM] -> ids (tokenizer.c) -> [split] -> data file
 *   data file, mapped -> sequence i of T + 1 ids, in an order without a list
 *                                                                 V3 §4.1
 * Packing is plain: documents stand one after another and a sequence begins
 * where the one before it ended, inside a document or not. There is no mask
 * between documents. The file is little-endian everywhere; what it says is
 * checked before it is used, its ids when they are read. This file knows
 * nothing of batches, nor of what is learnt. */
#include "deepseek.h"

#include "base/hash.h"
#include "base/unicode.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Documents -------------------------------------------------------------- */

static bool is_break(char c)
{
    return c == '\n' || c == '\r';
}

/* True where the line of n bytes, without its line break, is the separator. */
static bool is_separator(const char *line, size_t n, const char *separator)
{
    if (n > 0 && line[n - 1] == '\r')
        n--;
    return n > 0 && strlen(separator) == n && memcmp(line, separator, n) == 0;
}

/* The end of the document that begins at d->at; moves that on. */
static const char *document_end(Documents *d)
{
    if (d->separator[0] == '\0')
        return d->at = d->end;
    while (d->at < d->end) {
        const char *line = d->at;
        const char *stop = memchr(line, '\n', (size_t)(d->end - line));
        d->at = stop == NULL ? d->end : stop + 1;
        if (line[0] == d->separator[0]
            && is_separator(line, (size_t)((stop == NULL ? d->end : stop)
                                           - line), d->separator))
            return line;
    }
    return d->end;
}

bool documents_next(Documents *d, const char **text, size_t *n)
{
    while (d->at < d->end) {
        const char *start = d->at, *end = document_end(d);
        while (start < end && is_break(*start))
            start++;
        while (start < end && is_break(end[-1]))
            end--;
        if (start < end) {
            *text = start;
            *n = (size_t)(end - start);
            return true;
        }
    }
    return false;
}

/* The header ------------------------------------------------------------- */

/* Little-endian; docs/data.md has the table. */
enum {
    AT_MAGIC = 0, AT_VERSION = 8, AT_WIDTH = 12, AT_VOCAB = 16, AT_TOKENS = 24,
    AT_DOCUMENTS = 32, AT_BYTES = 40, AT_FIM_DOCUMENTS = 48, AT_SPLITS = 56,
    AT_HASH = 64, AT_SEED = 72, AT_FIM = 80, AT_SPLIT = 88, AT_END = 96,
    HEADER = 128
};

static const unsigned char magic[8] = {'D', 'S', 'D', 'A', 'T', 'A', '\r',
                                       '\n'};

static void put(unsigned char *to, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        to[i] = (unsigned char)(value >> 8 * i);
}

static uint64_t get(const unsigned char *from, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)from[i] << 8 * i;
    return value;
}

static uint64_t rate_bits(double rate)
{
    uint64_t bits;
    memcpy(&bits, &rate, sizeof bits);
    return bits;
}

static double rate_from_bits(uint64_t bits)
{
    double rate;
    memcpy(&rate, &bits, sizeof rate);
    return rate;
}

static void write_header(unsigned char *h, const DataInfo *info)
{
    memset(h, 0, HEADER);
    memcpy(h + AT_MAGIC, magic, sizeof magic);
    put(h + AT_VERSION, 4, 1);
    put(h + AT_WIDTH, 4, info->width);
    put(h + AT_VOCAB, 4, info->vocab_size);
    put(h + AT_TOKENS, 8, info->tokens);
    put(h + AT_DOCUMENTS, 8, info->documents);
    put(h + AT_BYTES, 8, info->bytes);
    put(h + AT_FIM_DOCUMENTS, 8, info->fim_documents);
    put(h + AT_SPLITS, 8, info->splits);
    put(h + AT_HASH, 8, info->tokenizer_hash);
    put(h + AT_SEED, 8, info->settings.seed);
    put(h + AT_FIM, 8, rate_bits(info->settings.fim));
    put(h + AT_SPLIT, 8, rate_bits(info->settings.split));
}

static void read_header(const unsigned char *h, DataInfo *info)
{
    info->width = (unsigned)get(h + AT_WIDTH, 4);
    info->vocab_size = (size_t)get(h + AT_VOCAB, 4);
    info->tokens = get(h + AT_TOKENS, 8);
    info->documents = get(h + AT_DOCUMENTS, 8);
    info->bytes = get(h + AT_BYTES, 8);
    info->fim_documents = get(h + AT_FIM_DOCUMENTS, 8);
    info->splits = get(h + AT_SPLITS, 8);
    info->tokenizer_hash = get(h + AT_HASH, 8);
    info->settings.seed = get(h + AT_SEED, 8);
    info->settings.fim = rate_from_bits(get(h + AT_FIM, 8));
    info->settings.split = rate_from_bits(get(h + AT_SPLIT, 8));
}

/* The narrowest that holds every id. */
static unsigned id_width(size_t vocab_size)
{
    return vocab_size <= 65536 ? 2 : 4;
}

/* Writing: what becomes of a document ------------------------------------- */

int tokenizer_hash(const char *dir, uint64_t *hash, Error *err)
{
    File file = {0};
    char *path = path_join(dir, "tokenizer.json", err);
    int status = path == NULL ? -1 : file_open(&file, path, err);
    *hash = hash_bytes(HASH_START, file.data, file.size);
    file_close(&file);
    free(path);
    return status;
}

/* How many of the n bytes of a token stand before its line breaks, if it is
 * ` ?[\p{P}\p{S}]+[\r\n]+`; else 0. */
static size_t marks_before_breaks(const char *text, size_t n)
{
    const char *s = text, *end = text + n, *marks;
    while (end > text && is_break(end[-1]))
        end--;
    if (end == text + n || utf8_valid(text, n) < n)
        return 0;
    s += s < end && *s == ' ';
    for (marks = s; s < end;) {
        if ((unicode_class(utf8_next(&s)) & (UNICODE_P | UNICODE_S)) == 0)
            return 0;
    }
    return s > marks ? (size_t)(s - text) : 0;
}

/* For each such token the ids of its two halves, if any is to be split. */
static int find_halves(DataWriter *w, Error *err)
{
    const Tokenizer *t = w->tokenizer;
    w->half = allocate(w->info.vocab_size + 1, sizeof *w->half, "tokens",
                       err);
    if (w->half == NULL)
        return -1;
    for (size_t id = 0; id < w->info.vocab_size; id++) {
        const char *text;
        size_t n, k = 0;
        if (w->info.settings.split > 0
            && tokenizer_decode(t, (int32_t)id, false, &text, &n))
            k = marks_before_breaks(text, n);
        if (k > 0
            && (tokenizer_encode(t, text, k, &w->halves, err) != 0
                || tokenizer_encode(t, text + k, n - k, &w->halves, err)
                   != 0))
            return -1;
        w->half[id + 1] = w->halves.n;
    }
    return 0;
}

static bool chance(Random *r, double rate)
{
    return (double)(random_u64(r) >> 11) * 0x1p-53 < rate;
}

/* Adds the ids of a text; those with halves are split at the rate. */
static int add_text(DataWriter *w, const char *text, size_t n, Random *r,
                    Error *err)
{
    w->encoded.n = 0;
    if (tokenizer_encode(w->tokenizer, text, n, &w->encoded, err) != 0)
        return -1;
    for (size_t i = 0; i < w->encoded.n; i++) {
        int32_t id = w->encoded.ids[i];
        size_t half = w->half[id], stop = w->half[id + 1];
        if (half == stop || !chance(r, w->info.settings.split)) {
            if (ids_add(&w->ids, id, err) != 0)
                return -1;
            continue;
        }
        w->info.splits++;
        for (; half < stop; half++) {
            if (ids_add(&w->ids, w->halves.ids[half], err) != 0)
                return -1;
        }
    }
    return 0;
}

/* A place from 0 to n, between two characters. */
static size_t random_cut(const char *text, size_t n, Random *r)
{
    size_t cut = (size_t)(random_u64(r) % ((uint64_t)n + 1));
    while (cut > 0 && cut < n && ((unsigned char)text[cut] & 0xc0) == 0x80)
        cut--;
    return cut;
}

/* fim_begin prefix fim_hole suffix fim_end middle: the text in three parts,
 * the middle one last. */
static int add_psm(DataWriter *w, const char *text, size_t n, Random *r,
                   Error *err)
{
    size_t a = random_cut(text, n, r), b = random_cut(text, n, r);
    size_t low = a < b ? a : b, high = a < b ? b : a;
    w->info.fim_documents++;
    if (ids_add(&w->ids, w->fim_begin, err) != 0
        || add_text(w, text, low, r, err) != 0
        || ids_add(&w->ids, w->fim_hole, err) != 0
        || add_text(w, text + high, n - high, r, err) != 0
        || ids_add(&w->ids, w->fim_end, err) != 0)
        return -1;
    return add_text(w, text + low, high - low, r, err);
}

/* w->ids becomes the whole document. */
static int encode_document(DataWriter *w, const char *text, size_t n,
                           Error *err)
{
    const Tokenizer *t = w->tokenizer;
    Random r = random_seeded(random_u64(&w->seeds));
    w->ids.n = 0;
    if (tokenizer_add_bos(t) && ids_add(&w->ids, tokenizer_bos(t), err) != 0)
        return -1;
    int status = chance(&r, w->info.settings.fim)
               ? add_psm(w, text, n, &r, err)
               : add_text(w, text, n, &r, err);
    return status == 0 ? ids_add(&w->ids, tokenizer_eos(t), err) : -1;
}

/* Writing: the file ------------------------------------------------------- */

static int find_id(const DataWriter *w, const char *token, int32_t *id,
                   Error *err)
{
    *id = tokenizer_id(w->tokenizer, token);
    if (*id < 0)
        return fail(err, "the tokenizer has no %s", token);
    return 0;
}

static int find_ids(DataWriter *w, Error *err)
{
    if (tokenizer_eos(w->tokenizer) < 0)
        return fail(err, "the tokenizer has no EOS, which ends a document");
    if (w->info.settings.fim > 0
        && (find_id(w, "<｜fim▁begin｜>", &w->fim_begin, err) != 0
            || find_id(w, "<｜fim▁hole｜>", &w->fim_hole, err) != 0
            || find_id(w, "<｜fim▁end｜>", &w->fim_end, err) != 0))
        return -1;
    return find_halves(w, err);
}

int data_create(DataWriter *w, const char *path, bool force,
                const Tokenizer *t, uint64_t hash, const DataSettings *s,
                Error *err)
{
    unsigned char header[HEADER] = {0};
    memset(w, 0, sizeof *w);
    w->tokenizer = t;
    w->seeds = random_seeded(s->seed);
    w->info.settings = *s;
    w->info.tokenizer_hash = hash;
    w->info.vocab_size = tokenizer_size(t);
    w->info.width = id_width(w->info.vocab_size);
    if (find_ids(w, err) == 0 && out_open(&w->out, path, force, err) == 0
        && out_write(&w->out, header, HEADER, err) == 0)
        return 0;
    data_abort(w);
    return -1;
}

static int write_ids(DataWriter *w, Error *err)
{
    enum { BLOCK = 1024 };
    unsigned char bytes[4 * BLOCK];
    unsigned width = w->info.width;
    for (size_t i = 0; i < w->ids.n;) {
        size_t n = w->ids.n - i < BLOCK ? w->ids.n - i : BLOCK;
        for (size_t k = 0; k < n; k++)
            put(bytes + k * width, width, (uint64_t)w->ids.ids[i + k]);
        if (out_write(&w->out, bytes, n * width, err) != 0)
            return -1;
        i += n;
    }
    return 0;
}

int data_add(DataWriter *w, const char *text, size_t n, Error *err)
{
    size_t valid = utf8_valid(text, n);
    if (valid < n)
        return fail(err, "wanted UTF-8, found byte 0x%02x at offset %zu",
                    (unsigned)(unsigned char)text[valid], valid);
    if (encode_document(w, text, n, err) != 0 || write_ids(w, err) != 0)
        return -1;
    w->info.documents++;
    w->info.bytes += n;
    w->info.tokens += w->ids.n;
    return 0;
}

int data_commit(DataWriter *w, Error *err)
{
    unsigned char header[HEADER];
    int status = 0;
    write_header(header, &w->info);
    if (w->out.stream == NULL)
        return fail(err, "committed a data file that is not open");
    if (w->info.documents == 0)
        status = fail(err, "%s: no document to write", w->out.path);
    else if (fseek(w->out.stream, 0, SEEK_SET) != 0)
        status = fail(err, "%s: cannot go back to its header", w->out.path);
    if (status == 0)
        status = out_write(&w->out, header, HEADER, err);
    if (status == 0)
        status = out_commit(&w->out, err);
    data_abort(w);
    return status;
}

void data_abort(DataWriter *w)
{
    out_abort(&w->out);
    ids_free(&w->ids);
    ids_free(&w->encoded);
    ids_free(&w->halves);
    free(w->half);
    w->half = NULL;
}

/* Reading ----------------------------------------------------------------- */

static int check_rate(const char *path, const char *what, double rate,
                      Error *err)
{
    if (rate >= 0 && rate <= 1)
        return 0;
    return fail(err, "%s: %s rate: wanted 0 to 1, found %g", path, what,
                rate);
}

/* That the counts can be those of one file. */
static int check_counts(const Data *d, Error *err)
{
    const DataInfo *i = &d->info;
    uint64_t body = d->file.size - HEADER;
    if (i->tokens != body / i->width || body % i->width != 0)
        return fail(err, "%s: wanted the %" PRIu64 " ids of %u bytes that its "
                    "header tells, found %" PRIu64 " bytes", d->path,
                    i->tokens, i->width, body);
    if (i->documents == 0 || i->documents > i->tokens)
        return fail(err, "%s: wanted 1 to %" PRIu64 " documents, found %"
                    PRIu64, d->path, i->tokens, i->documents);
    if (i->fim_documents > i->documents || i->splits > i->tokens)
        return fail(err, "%s: wanted at most %" PRIu64 " FIM documents and %"
                    PRIu64 " split tokens, found %" PRIu64 " and %" PRIu64,
                    d->path, i->documents, i->tokens, i->fim_documents,
                    i->splits);
    return 0;
}

static int check_header(const Data *d, Error *err)
{
    const unsigned char *h = d->file.data;
    const DataInfo *i = &d->info;
    if (get(h + AT_VERSION, 4) != 1)
        return fail(err, "%s: wanted version 1, found %" PRIu64, d->path,
                    get(h + AT_VERSION, 4));
    if (i->vocab_size == 0 || i->vocab_size > INT32_MAX)
        return fail(err, "%s: wanted a vocabulary of 1 to %" PRId32 " ids, "
                    "found %zu", d->path, INT32_MAX, i->vocab_size);
    if (i->width != id_width(i->vocab_size))
        return fail(err, "%s: wanted ids of %u bytes for a vocabulary of %zu,"
                    " found %u", d->path, id_width(i->vocab_size),
                    i->vocab_size, i->width);
    if (get(h + AT_VOCAB + 4, 4) != 0)
        return fail(err, "%s: wanted 0 at offset %d, found %" PRIu64, d->path,
                    AT_VOCAB + 4, get(h + AT_VOCAB + 4, 4));
    for (int at = AT_END; at < HEADER; at += 8) {
        if (get(h + at, 8) != 0)
            return fail(err, "%s: wanted 0 at offset %d, found %" PRIu64,
                        d->path, at, get(h + at, 8));
    }
    if (check_rate(d->path, "FIM", i->settings.fim, err) != 0)
        return -1;
    return check_rate(d->path, "split", i->settings.split, err);
}

static int check_data(Data *d, Error *err)
{
    if (d->file.size < HEADER
        || memcmp(d->file.data, magic, sizeof magic) != 0)
        return fail(err, "%s: wanted a data file, which `deepseek prepare` "
                    "writes, found something else", d->path);
    read_header(d->file.data, &d->info);
    return check_header(d, err) != 0 ? -1 : check_counts(d, err);
}

int data_open(Data *d, const char *path, Error *err)
{
    memset(d, 0, sizeof *d);
    d->path = path;
    if (file_open(&d->file, path, err) != 0)
        return -1;
    if (check_data(d, err) == 0)
        return 0;
    data_close(d);
    return -1;
}

void data_close(Data *d)
{
    file_close(&d->file);
}

uint64_t data_sequences(const Data *d, size_t T)
{
    return (d->info.tokens - 1) / T;
}

int data_sequence(const Data *d, size_t T, uint64_t i, int32_t *ids,
                  Error *err)
{
    if (i >= data_sequences(d, T))
        return fail(err, "%s: wanted a sequence below %" PRIu64 ", found %"
                    PRIu64, d->path, data_sequences(d, T), i);
    unsigned width = d->info.width;
    size_t first = (size_t)i * T;
    const unsigned char *at = d->file.data + HEADER + first * width;
    for (size_t k = 0; k <= T; k++, at += width) {
        uint64_t id = get(at, width);
        if (id >= d->info.vocab_size)
            return fail(err, "%s: token %zu: wanted an id below %zu, found %"
                        PRIu64, d->path, first + k, d->info.vocab_size, id);
        ids[k] = (int32_t)id;
    }
    return 0;
}

/* The order --------------------------------------------------------------- */

enum { ROUNDS = 8 };

/* A Feistel network over 2 half bits: each round adds to one half a number
 * that the other half and the key give, so that it can be undone whatever
 * that number is. */
static uint64_t feistel(uint64_t x, unsigned half, uint64_t key)
{
    uint64_t mask = ((uint64_t)1 << half) - 1;
    uint64_t left = x >> half, right = x & mask;
    Random keys = random_seeded(key);
    for (int i = 0; i < ROUNDS; i++) {
        Random f = random_seeded(random_u64(&keys) ^ right);
        uint64_t next = left ^ (random_u64(&f) & mask);
        left = right;
        right = next;
    }
    return left << half | right;
}

/* The least network that has n numbers; what leaves them goes through it
 * again until it is back: four times at most on average. */
uint64_t data_shuffled(uint64_t i, uint64_t n, uint64_t seed, uint64_t epoch)
{
    unsigned half = 1;
    Random r = random_seeded(seed);
    uint64_t key = random_u64(&r) + epoch;
    while (half < 32 && (uint64_t)1 << 2 * half < n)
        half++;
    do
        i = feistel(i, half, key);
    while (i >= n);
    return i;
}

int data_next(const Data *d, size_t T, uint64_t seed, DataPosition *at,
              int32_t *ids, Error *err)
{
    uint64_t n = data_sequences(d, T);
    if (n == 0)
        return fail(err, "%s: wanted at least %zu tokens for a sequence, "
                    "found %" PRIu64, d->path, T + 1, d->info.tokens);
    if (at->index >= n)
        return fail(err, "%s: wanted a position below %" PRIu64 " in epoch %"
                    PRIu64 ", found %" PRIu64, d->path, n, at->epoch,
                    at->index);
    uint64_t i = data_shuffled(at->index, n, seed, at->epoch);
    if (data_sequence(d, T, i, ids, err) != 0)
        return -1;
    if (++at->index == n) {
        at->index = 0;
        at->epoch++;
    }
    return 0;
}
