/* Documents to a data file and back, and the order of its sequences.
 *
 * The tokenizer is data/tokenizer/v3 with three of its tool tokens renamed to
 * V3's FIM tokens. Pinned hashes follow from docs/data.md; every machine has
 * to come to them. DEEPSEEK names the program, else ./deepseek. */
#define _XOPEN_SOURCE 700
#include "command.h"

#include "base/unicode.h"

#include <inttypes.h>

static Tokenizer *tokenizer;
static int32_t fim_begin, fim_hole, fim_end;

/* The tokenizer ----------------------------------------------------------- */

static void rename_token(char *text, const char *from, const char *to)
{
    char *at = strstr(text, from);
    assert_non_null(at);
    size_t n = strlen(from), m = strlen(to);
    assert_true(m <= n);
    memcpy(at, to, m);
    memmove(at + m, at + n, strlen(at + n) + 1);
}

static void copy_file(const char *from, const char *to)
{
    File file;
    Error err;
    must(file_open(&file, from, &err), &err);
    put_file(to, file.data, file.size);
    file_close(&file);
}

static int begin(void **state)
{
    File file;
    Error err;
    (void)state;
    must(file_open(&file, "tests/data/tokenizer/v3/tokenizer.json", &err),
         &err);
    char *text = test_alloc(file.size + 1, 1);
    memcpy(text, file.data, file.size);
    file_close(&file);
    rename_token(text, "<｜tool▁calls▁begin｜>", "<｜fim▁begin｜>");
    rename_token(text, "<｜tool▁calls▁end｜>", "<｜fim▁end｜>");
    rename_token(text, "<｜tool▁call▁begin｜>", "<｜fim▁hole｜>");
    must(make_dir(scratch("tok"), &err), &err);
    put_file(scratch("tok/tokenizer.json"), text, strlen(text));
    copy_file("tests/data/tokenizer/v3/tokenizer_config.json",
              scratch("tok/tokenizer_config.json"));
    free(text);
    tokenizer = tokenizer_open(scratch("tok"), &err);
    must(tokenizer == NULL ? -1 : 0, &err);
    fim_begin = tokenizer_id(tokenizer, "<｜fim▁begin｜>");
    fim_hole = tokenizer_id(tokenizer, "<｜fim▁hole｜>");
    fim_end = tokenizer_id(tokenizer, "<｜fim▁end｜>");
    assert_true(fim_begin > 0 && fim_hole > 0 && fim_end > 0);
    return 0;
}

static int end(void **state)
{
    char line[500];
    (void)state;
    tokenizer_close(tokenizer);
    snprintf(line, sizeof line, "rm -rf '%s'", scratch(""));
    return system(line);
}

/* Documents --------------------------------------------------------------- */

/* Random documents: words, marks, breaks, Chinese, emoji; none empty. */
typedef struct {
    Text text;
    size_t n, at[401];
} Texts;

static void random_texts(Random *r, Texts *t, size_t n)
{
    static const char *const parts[] = {
        "the ", "upon", " time", ".\n", ".\n\n", ";\n", " {\n\n", "}\n\n",
        ").\n\n\n", "。\n", "\n", " ", "123456", "龙", "é", "😁", "  ",
        "!!!\r\n", "a", "_x"
    };
    assert_true(n <= 400);
    *t = (Texts){.n = n};
    for (size_t i = 0; i < n; i++) {
        t->at[i] = t->text.length;
        for (size_t k = random_between(r, 1, 30); k > 0; k--) {
            const char *part = parts[random_between(
                r, 0, sizeof parts / sizeof *parts - 1)];
            text_add(&t->text, part, strlen(part));
        }
    }
    t->at[n] = t->text.length;
}

static void write_data(const char *path, const Texts *t,
                       const DataSettings *s, DataInfo *info)
{
    DataWriter w;
    Error err;
    must(data_create(&w, path, true, tokenizer, 7, s, &err), &err);
    for (size_t i = 0; i < t->n; i++)
        must(data_add(&w, t->text.text + t->at[i], t->at[i + 1] - t->at[i],
                      &err), &err);
    must(data_commit(&w, &err), &err);
    *info = w.info;
}

/* All ids, as one long sequence of T + 1. */
static int32_t *all_ids(const char *path, size_t *n)
{
    Data d;
    Error err;
    must(data_open(&d, path, &err), &err);
    *n = (size_t)d.info.tokens;
    int32_t *ids = test_alloc(*n, sizeof *ids);
    must(data_sequence(&d, *n - 1, 0, ids, &err), &err);
    data_close(&d);
    return ids;
}

static void decode(Text *out, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t m;
        assert_true(tokenizer_decode(tokenizer, ids[i], false, &bytes, &m));
        text_add(out, bytes, m);
    }
}

static void must_decode(const int32_t *ids, size_t n, const char *text,
                        size_t length)
{
    Text found = {0};
    decode(&found, ids, n);
    assert_int_equal(found.length, length);
    if (length > 0)
        assert_memory_equal(found.text, text, length);
    text_free(&found);
}

static size_t find(const int32_t *ids, size_t n, int32_t id)
{
    size_t i = 0;
    while (i < n && ids[i] != id)
        i++;
    assert_true(i < n);
    return i;
}

/* decode(pack) = documents, and what the header counts. */
static void round_trip(void **state)
{
    Random r = test_random();
    (void)state;
    for (int round = 0; round < 10; round++) {
        DataSettings s = {0, 0, random_u64(&r)};
        DataInfo info;
        Texts t;
        random_texts(&r, &t, random_between(&r, 1, 60));
        write_data(scratch("data"), &t, &s, &info);
        size_t n, i = 0;
        int32_t *ids = all_ids(scratch("data"), &n);
        assert_int_equal(info.documents, t.n);
        assert_int_equal(info.bytes, t.text.length);
        assert_int_equal(info.tokens, n);
        assert_int_equal(info.fim_documents + info.splits, 0);
        for (size_t k = 0; k < t.n; k++) {
            assert_int_equal(ids[i++], tokenizer_bos(tokenizer));
            size_t m = find(ids + i, n - i, tokenizer_eos(tokenizer));
            must_decode(ids + i, m, t.text.text + t.at[k],
                        t.at[k + 1] - t.at[k]);
            i += m + 1;
        }
        assert_int_equal(i, n);
        free(ids);
        text_free(&t.text);
    }
}

/* PSM: begin, prefix, hole, suffix, end, middle, EOS; every part is text of
 * its own, encoded as such, and a third of the whole on average. */
static void fim_form(void **state)
{
    Random r = test_random();
    DataSettings s = {1, 0, 5};
    DataInfo info;
    Texts t;
    Error err;
    double share[3] = {0};
    (void)state;
    random_texts(&r, &t, 400);
    write_data(scratch("data"), &t, &s, &info);
    assert_int_equal(info.fim_documents, t.n);
    size_t n, i = 0;
    int32_t *ids = all_ids(scratch("data"), &n);
    for (size_t k = 0; k < t.n; k++) {
        assert_int_equal(ids[i++], tokenizer_bos(tokenizer));
        assert_int_equal(ids[i++], fim_begin);
        Text parts[3] = {{0}}, whole = {0};
        const int32_t stop[3] = {fim_hole, fim_end, tokenizer_eos(tokenizer)};
        for (int p = 0; p < 3; p++) {
            size_t m = find(ids + i, n - i, stop[p]);
            IdList again = {0};
            decode(&parts[p], ids + i, m);
            const char *text = m > 0 ? parts[p].text : "";
            must(tokenizer_encode(tokenizer, text, parts[p].length, &again,
                                  &err), &err);
            assert_int_equal(again.n, m);
            if (m > 0)
                assert_memory_equal(again.ids, ids + i, m * sizeof *ids);
            ids_free(&again);
            i += m + 1;
        }
        for (int p = 0; p < 3; p++) {
            static const int order[3] = {0, 2, 1};
            const Text *part = &parts[order[p]];
            text_add(&whole, part->text ? part->text : "", part->length);
        }
        assert_int_equal(whole.length, t.at[k + 1] - t.at[k]);
        assert_memory_equal(whole.text, t.text.text + t.at[k], whole.length);
        for (int p = 0; p < 3; p++) {
            share[p] += (double)parts[p].length / (double)whole.length / 400;
            text_free(&parts[p]);
        }
        text_free(&whole);
    }
    for (int p = 0; p < 3; p++) /* 400 draws of variance 1/18: 5 sigma */
        assert_true(fabs(share[p] - 1.0 / 3) < 0.06);
    free(ids);
    text_free(&t.text);
}

/* The rate is met, and which documents it meets depends on the seed alone. */
static void fim_rate(void **state)
{
    Random r = test_random();
    Texts t = {.n = 400};
    DataInfo info;
    uint64_t total = 0;
    (void)state;
    for (size_t i = 0; i <= 400; i++)
        t.at[i] = i;
    for (size_t i = 0; i < 400; i++)
        text_add(&t.text, "x", 1);
    for (int round = 0; round < 25; round++) {
        DataSettings s = {0.1, 0, random_u64(&r)};
        write_data(scratch("data"), &t, &s, &info);
        total += info.fim_documents;
    }
    assert_true(total > 850 && total < 1150); /* 1000, sigma 30 */
    text_free(&t.text);
}

/* Is it one of the tokens that are split? By the expression's definition. */
static bool joins(int32_t id)
{
    const char *text;
    size_t n;
    assert_true(tokenizer_decode(tokenizer, id, false, &text, &n));
    const char *s = text, *stop = text + n;
    size_t marks = 0, breaks = 0;
    if (n == 0 || utf8_valid(text, n) < n)
        return false;
    if (*s == ' ')
        s++;
    while (s < stop) {
        const char *next = s;
        if ((unicode_class(utf8_next(&next)) & (UNICODE_P | UNICODE_S)) == 0)
            break;
        s = next;
        marks++;
    }
    for (; s < stop && (*s == '\n' || *s == '\r'); s++)
        breaks++;
    return s == stop && marks > 0 && breaks > 0;
}

static size_t count_joins(const int32_t *ids, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += joins(ids[i]);
    return count;
}

/* Splitting keeps the text; all are split at rate 1, none at 0, and half of
 * them at a half. */
static void splitting(void **state)
{
    Random r = test_random();
    DataSettings s = {0, 0, 11};
    DataInfo info;
    Texts t;
    size_t n, m, h;
    (void)state;
    random_texts(&r, &t, 400);
    write_data(scratch("data"), &t, &s, &info);
    int32_t *whole = all_ids(scratch("data"), &n);
    size_t joined = count_joins(whole, n);
    assert_true(joined > 1000);
    s.split = 1;
    write_data(scratch("data"), &t, &s, &info);
    int32_t *split = all_ids(scratch("data"), &m);
    assert_int_equal(info.splits, joined);
    assert_int_equal(count_joins(split, m), 0);
    s.split = 0.5;
    write_data(scratch("data"), &t, &s, &info);
    int32_t *half = all_ids(scratch("data"), &h);
    assert_int_equal(info.splits + count_joins(half, h), joined);
    assert_true(fabs((double)info.splits / (double)joined - 0.5) < 0.08);
    Text a = {0};
    decode(&a, whole, n);
    must_decode(split, m, a.text, a.length);
    must_decode(half, h, a.text, a.length);
    text_free(&a);
    free(whole);
    free(split);
    free(half);
    text_free(&t.text);
}

/* ".\n\n" is ".", "\n\n": the halves are encoded each as a text of its own. */
static void halves(void **state)
{
    static const char text[] = "a.\n\nb;\nc \xe3\x80\x82\n";
    DataSettings s = {0, 1, 0};
    DataInfo info;
    Texts t = {.n = 1, .at = {0, sizeof text - 1}};
    IdList wanted = {0};
    Error err;
    size_t n;
    (void)state;
    static const char *const pieces[] = {"a", ".", "\n\n", "b", ";", "\n",
                                         "c", " \xe3\x80\x82", "\n"};
    text_add(&t.text, text, sizeof text - 1);
    write_data(scratch("data"), &t, &s, &info);
    int32_t *ids = all_ids(scratch("data"), &n);
    must(ids_add(&wanted, 0, &err), &err);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        must(tokenizer_encode(tokenizer, pieces[i], strlen(pieces[i]),
                              &wanted, &err), &err);
    must(ids_add(&wanted, 1, &err), &err);
    assert_int_equal(n, wanted.n);
    assert_memory_equal(ids, wanted.ids, n * sizeof *ids);
    free(ids);
    ids_free(&wanted);
    text_free(&t.text);
}

/* What becomes of a document depends on its number, not on the others. */
static void documents_apart(void **state)
{
    Random r = test_random();
    DataSettings s = {0.5, 0.5, 3};
    DataInfo info;
    Texts t, u;
    size_t n, m;
    (void)state;
    random_texts(&r, &t, 50);
    random_texts(&r, &u, 50);
    for (size_t i = t.at[49]; i < t.at[50]; i++) /* the last one stays */
        text_add(&u.text, t.text.text + i, 1);
    u.at[49] = u.at[50];
    u.at[50] = u.text.length;
    write_data(scratch("data"), &t, &s, &info);
    int32_t *a = all_ids(scratch("data"), &n);
    write_data(scratch("data"), &u, &s, &info);
    int32_t *b = all_ids(scratch("data"), &m);
    size_t k = 0;
    do
        k++;
    while (a[n - k] != tokenizer_bos(tokenizer));
    assert_true(k <= m);
    assert_memory_equal(a + n - k, b + m - k, k * sizeof *a);
    free(a);
    free(b);
    text_free(&t.text);
    text_free(&u.text);
}

/* The same bytes on every machine. */
static void pinned_file(void **state)
{
    static const char first[] = "Once upon a time.\n\nA king; a dog!\n";
    DataSettings s = {0.5, 0.5, 42};
    DataInfo info;
    Texts t = {.n = 40};
    File file;
    Error err;
    uint64_t hash = 0xcbf29ce484222325;
    (void)state;
    for (size_t i = 0; i < t.n; i++) {
        t.at[i] = t.text.length;
        text_printf(&t.text, "%s%zu", first, i);
    }
    t.at[t.n] = t.text.length;
    write_data(scratch("data"), &t, &s, &info);
    must(file_open(&file, scratch("data"), &err), &err);
    for (size_t i = 0; i < file.size; i++)
        hash = (hash ^ file.data[i]) * 0x100000001b3;
    assert_int_equal(info.fim_documents, 24);
    assert_int_equal(info.splits, 20);
    assert_int_equal(hash, UINT64_C(0xb7fa020ad7601771));
    file_close(&file);
    text_free(&t.text);
}

/* Sequences --------------------------------------------------------------- */

/* A data file by hand: n ids of that width, each given by its place. */
static void put_ids(const char *path, unsigned width, size_t vocab, size_t n)
{
    unsigned char *h = test_alloc(128 + n * width, 1);
    memcpy(h, "DSDATA\r\n", 8);
    h[8] = 1;
    h[12] = (unsigned char)width;
    for (int i = 0; i < 4; i++) {
        h[16 + i] = (unsigned char)(vocab >> 8 * i);
        h[24 + i] = (unsigned char)(n >> 8 * i);
    }
    h[32] = 1;
    for (size_t k = 0; k < n; k++)
        for (unsigned i = 0; i < width; i++)
            h[128 + k * width + i] = (unsigned char)(k % vocab >> 8 * i);
    put_file(path, h, 128 + n * width);
    free(h);
}

static void sequences(void **state)
{
    static const unsigned widths[] = {2, 4};
    Error err;
    (void)state;
    for (int w = 0; w < 2; w++) {
        enum { N = 70001 };
        size_t vocab = w == 0 ? 65536 : 70000;
        Data d;
        put_ids(scratch("data"), widths[w], vocab, N);
        must(data_open(&d, scratch("data"), &err), &err);
        assert_int_equal(d.info.vocab_size, vocab);
        for (size_t T = 1; T < 90000; T = T * 3 + 1) {
            int32_t *ids = test_alloc(T + 1, sizeof *ids);
            uint64_t n = data_sequences(&d, T);
            assert_int_equal(n, (N - 1) / T);
            for (uint64_t i = 0; i < n; i += 1 + n / 50) {
                must(data_sequence(&d, T, i, ids, &err), &err);
                for (size_t k = 0; k <= T; k++)
                    assert_int_equal(ids[k], (i * T + k) % vocab);
            }
            assert_int_equal(data_sequence(&d, T, n, ids, &err), -1);
            free(ids);
        }
        data_close(&d);
    }
}

static void permutation(void **state)
{
    Random r = test_random();
    static const uint64_t large[] = {1000003, 65536, 65537, 1 << 20};
    (void)state;
    for (uint64_t n = 1; n <= 300; n++) {
        uint64_t seed = random_u64(&r), epoch = random_u64(&r) % 1000;
        bool seen[300] = {false};
        for (uint64_t i = 0; i < n; i++) {
            uint64_t to = data_shuffled(i, n, seed, epoch);
            assert_true(to < n && !seen[to]);
            seen[to] = true;
        }
    }
    for (size_t k = 0; k < sizeof large / sizeof *large; k++) {
        uint64_t n = large[k], seed = random_u64(&r);
        bool *seen = test_alloc((size_t)n, 1);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t to = data_shuffled(i, n, seed, 0);
            assert_true(to < n && !seen[to]);
            seen[to] = true;
        }
        free(seen);
    }
}

static int compare_u64(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void huge_permutation(void **state)
{
    enum { N = 3000 };
    static const uint64_t sizes[] = {
        UINT64_C(1) << 32, (UINT64_C(1) << 32) + 1, UINT64_C(1) << 40,
        (UINT64_C(1) << 62) + 1, UINT64_MAX
    };
    (void)state;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        uint64_t to[N], high = 0;
        for (uint64_t i = 0; i < N; i++) {
            to[i] = data_shuffled(i, sizes[k], 9, k);
            assert_true(to[i] < sizes[k]);
            high += to[i] >= sizes[k] / 2;
        }
        assert_true(high > N / 2 - 150 && high < N / 2 + 150);
        qsort(to, N, sizeof *to, compare_u64);
        for (int i = 1; i < N; i++)
            assert_true(to[i] != to[i - 1]);
    }
}

/* Where a number goes is even over the seeds and the epochs, and so is the
 * distance of two neighbours. Chi-squared of 9 degrees: 40 is p = 1e-5. */
static void even_permutation(void **state)
{
    enum { N = 10, DRAWS = 20000 };
    Random r = test_random();
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        int count[N] = {0};
        double chi = 0;
        uint64_t first = random_u64(&r);
        for (uint64_t i = 0; i < DRAWS; i++) {
            uint64_t seed = kind % 2 ? first : first + i;
            uint64_t epoch = kind % 2 ? i : 3;
            uint64_t a = data_shuffled(4, N, seed, epoch);
            uint64_t b = data_shuffled(5, N, seed, epoch);
            count[kind < 2 ? a : (b + N - a) % N]++;
        }
        int cells = kind < 2 ? N : N - 1; /* two never meet */
        assert_true(kind < 2 || count[0] == 0);
        for (int i = N - cells; i < N; i++) {
            double wanted = (double)DRAWS / cells;
            chi += (count[i] - wanted) * (count[i] - wanted) / wanted;
        }
        print_message("kind %d: chi-squared %.1f\n", kind, chi);
        assert_true(chi < 40);
    }
}

/* From every position on, what comes is what would have come: over three
 * epochs, each of which has every sequence once, in another order. */
static void resume(void **state)
{
    enum { T = 7, N = 200, EPOCHS = 3 };
    Random r = test_random();
    Data d;
    Error err;
    DataPosition at = {0, 0}, kept[EPOCHS * N];
    int32_t straight[EPOCHS * N][T + 1];
    uint64_t n, same = 0;
    (void)state;
    put_ids(scratch("data"), 2, 3000, T * N + 1 + T / 2);
    must(data_open(&d, scratch("data"), &err), &err);
    n = data_sequences(&d, T);
    assert_int_equal(n, N);
    for (size_t i = 0; i < EPOCHS * N; i++) {
        kept[i] = at;
        must(data_next(&d, T, 17, &at, straight[i], &err), &err);
    }
    assert_int_equal(at.epoch, EPOCHS);
    assert_int_equal(at.index, 0);
    for (int e = 0; e < EPOCHS; e++) {
        bool seen[N] = {false};
        for (size_t i = 0; i < N; i++) {
            int32_t first = straight[(size_t)e * N + i][0];
            assert_true(first % T == 0 && !seen[first / T]);
            seen[first / T] = true;
            same += e > 0 && first == straight[i][0];
        }
    }
    assert_true(same < 20);
    for (int round = 0; round < 50; round++) {
        size_t i = random_between(&r, 0, EPOCHS * N - 1);
        DataPosition again = kept[i];
        for (; i < EPOCHS * N; i++) {
            int32_t ids[T + 1];
            must(data_next(&d, T, 17, &again, ids, &err), &err);
            assert_memory_equal(ids, straight[i], sizeof ids);
        }
    }
    data_close(&d);
}

/* Files that are not right ------------------------------------------------ */

static void refused(const unsigned char *bytes, size_t n, const char *message)
{
    char wanted[1024];
    Data d;
    Error err;
    put_file(scratch("bad"), bytes, n);
    snprintf(wanted, sizeof wanted, "%s: %s", scratch("bad"), message);
    must_fail(data_open(&d, scratch("bad"), &err), &err, wanted);
}

/* Good bytes but for `width` of them at `at`. */
static void broken(const unsigned char *good, size_t n, size_t at, int width,
                   uint64_t value, const char *message)
{
    unsigned char *copy = test_alloc(n, 1);
    memcpy(copy, good, n);
    for (int i = 0; i < width; i++)
        copy[at + (size_t)i] = (unsigned char)(value >> 8 * i);
    refused(copy, n, message);
    free(copy);
}

static void malformed(void **state)
{
    static const char other[] = "wanted a data file, which `deepseek prepare`"
                                " writes, found something else";
    File f;
    Error err;
    (void)state;
    put_ids(scratch("data"), 2, 100, 50);
    must(file_open(&f, scratch("data"), &err), &err);
    const unsigned char *g = f.data;
    size_t n = f.size;
    refused(g, 0, other);
    refused(g, 127, other);
    broken(g, n, 0, 1, 'd', other);
    broken(g, n, 6, 2, 0x0a0a, other);
    broken(g, n, 8, 4, 2, "wanted version 1, found 2");
    broken(g, n, 12, 4, 4, "wanted ids of 2 bytes for a vocabulary of 100, "
           "found 4");
    broken(g, n, 12, 4, 0, "wanted ids of 2 bytes for a vocabulary of 100, "
           "found 0");
    broken(g, n, 16, 4, 65537, "wanted ids of 4 bytes for a vocabulary of "
           "65537, found 2");
    broken(g, n, 16, 4, 0, "wanted a vocabulary of 1 to 2147483647 ids, found "
           "0");
    broken(g, n, 16, 4, UINT32_MAX, "wanted a vocabulary of 1 to 2147483647 "
           "ids, found 4294967295");
    broken(g, n, 20, 4, 1, "wanted 0 at offset 20, found 1");
    broken(g, n, 24, 8, 51, "wanted the 51 ids of 2 bytes that its header "
           "tells, found 100 bytes");
    broken(g, n, 24, 8, (UINT64_C(1) << 63) + 50, "wanted the "
           "9223372036854775858 ids of 2 bytes that its header tells, found "
           "100 bytes");
    refused(g, n - 1, "wanted the 50 ids of 2 bytes that its header tells, "
            "found 99 bytes");
    refused(g, 128, "wanted the 50 ids of 2 bytes that its header tells, found"
            " 0 bytes");
    broken(g, n, 32, 8, 0, "wanted 1 to 50 documents, found 0");
    broken(g, n, 32, 8, 51, "wanted 1 to 50 documents, found 51");
    broken(g, n, 48, 8, 2, "wanted at most 1 FIM documents and 50 split "
           "tokens, found 2 and 0");
    broken(g, n, 56, 8, 51, "wanted at most 1 FIM documents and 50 split "
           "tokens, found 0 and 51");
    broken(g, n, 80, 8, UINT64_C(0x3ff8000000000000),
           "FIM rate: wanted 0 to 1, found 1.5");
    broken(g, n, 88, 8, UINT64_C(0xbff0000000000000),
           "split rate: wanted 0 to 1, found -1");
    broken(g, n, 80, 8, UINT64_C(0x7ff8000000000000),
           "FIM rate: wanted 0 to 1, found nan");
    broken(g, n, 120, 8, 5, "wanted 0 at offset 120, found 5");
    broken(g, n, 96, 1, 255, "wanted 0 at offset 96, found 255");
    file_close(&f);
}

/* An id is looked at when it is read, and named; so is a sequence that is not
 * there, and a position that cannot be. */
static void bad_reads(void **state)
{
    unsigned char bytes[128 + 2 * 50];
    char wanted[1024];
    int32_t ids[60];
    Data d;
    File f;
    Error err;
    DataPosition at = {4, 5};
    (void)state;
    put_ids(scratch("data"), 2, 100, 50);
    must(file_open(&f, scratch("data"), &err), &err);
    memcpy(bytes, f.data, sizeof bytes);
    file_close(&f);
    bytes[128 + 2 * 30] = 100;
    put_file(scratch("bad"), bytes, sizeof bytes);
    must(data_open(&d, scratch("bad"), &err), &err);
    must(data_sequence(&d, 10, 1, ids, &err), &err);
    snprintf(wanted, sizeof wanted, "%s: token 30: wanted an id below 100, "
             "found 100", scratch("bad"));
    must_fail(data_sequence(&d, 10, 2, ids, &err), &err, wanted);
    must_fail(data_sequence(&d, 10, 3, ids, &err), &err, wanted);
    snprintf(wanted, sizeof wanted, "%s: wanted a sequence below 4, found 4",
             scratch("bad"));
    must_fail(data_sequence(&d, 10, 4, ids, &err), &err, wanted);
    snprintf(wanted, sizeof wanted, "%s: wanted a position below 4 in epoch "
             "4, found 5", scratch("bad"));
    must_fail(data_next(&d, 10, 0, &at, ids, &err), &err, wanted);
    snprintf(wanted, sizeof wanted, "%s: wanted at least 51 tokens for a "
             "sequence, found 50", scratch("bad"));
    must_fail(data_next(&d, 50, 0, &at, ids, &err), &err, wanted);
    assert_int_equal(at.index, 5);
    data_close(&d);
}

/* Whatever a file holds, reading it ends, and with ids of the vocabulary. */
static void random_bytes(void **state)
{
    Random r = test_random();
    unsigned char good[128 + 2 * 50], bytes[sizeof good];
    int opened = 0;
    File f;
    Error err;
    (void)state;
    put_ids(scratch("data"), 2, 100, 50);
    must(file_open(&f, scratch("data"), &err), &err);
    memcpy(good, f.data, sizeof good);
    file_close(&f);
    for (int round = 0; round < 2000; round++) {
        int32_t ids[51];
        Data d;
        memcpy(bytes, good, sizeof good);
        for (size_t k = random_between(&r, 1, 4); k > 0; k--)
            bytes[random_between(&r, 0, sizeof bytes - 1)] =
                (unsigned char)random_between(&r, 0, 255);
        put_file(scratch("bad"), bytes, sizeof bytes);
        if (data_open(&d, scratch("bad"), &err) != 0)
            continue;
        opened++;
        size_t T = random_between(&r, 1, 50);
        for (uint64_t i = 0; i < data_sequences(&d, T); i++)
            if (data_sequence(&d, T, i, ids, &err) == 0)
                for (size_t k = 0; k <= T; k++)
                    assert_true(ids[k] >= 0
                                && (size_t)ids[k] < d.info.vocab_size);
        data_close(&d);
    }
    assert_true(opened > 100 && opened < 1900);
}

/* Nothing is left of a file that was not committed, an old one stays. */
static void given_up(void **state)
{
    DataSettings s = {0, 0, 0};
    DataWriter w;
    Error err;
    (void)state;
    put_file(scratch("old"), "old", 3);
    must(data_create(&w, scratch("old"), true, tokenizer, 0, &s, &err), &err);
    must(data_add(&w, "text", 4, &err), &err);
    must_fail(data_add(&w, "ab\xff", 3, &err), &err,
              "wanted UTF-8, found byte 0xff at offset 2");
    data_abort(&w);
    data_abort(&w);
    assert_int_equal(data_commit(&w, &err), -1);
    must(data_create(&w, scratch("empty"), true, tokenizer, 0, &s, &err),
         &err);
    assert_int_equal(data_commit(&w, &err), -1);
    assert_false(path_exists(scratch("empty")));
    File f;
    must(file_open(&f, scratch("old"), &err), &err);
    assert_int_equal(f.size, 3);
    file_close(&f);
}

/* A tokenizer of two tokens, one with a great id: four bytes an id. */
static void wide_ids(void **state)
{
    static const char json[] =
        "{\"added_tokens\": [], \"pre_tokenizer\": {\"type\": \"ByteLevel\","
        " \"use_regex\": false}, \"decoder\": {\"type\": \"ByteLevel\"},"
        " \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 70000},"
        " \"merges\": []}}";
    static const char config[] = "{\"eos_token\": \"b\"}";
    DataSettings s = {0, 0, 0};
    DataWriter w;
    Data d;
    Error err;
    int32_t ids[4];
    (void)state;
    must(make_dir(scratch("wide"), &err), &err);
    put_file(scratch("wide/tokenizer.json"), json, sizeof json - 1);
    put_file(scratch("wide/tokenizer_config.json"), config,
             sizeof config - 1);
    Tokenizer *t = tokenizer_open(scratch("wide"), &err);
    must(t == NULL ? -1 : 0, &err);
    must(data_create(&w, scratch("data"), true, t, 0, &s, &err), &err);
    must(data_add(&w, "aba", 3, &err), &err);
    must(data_commit(&w, &err), &err);
    must(data_open(&d, scratch("data"), &err), &err);
    assert_int_equal(d.info.width, 4);
    assert_int_equal(d.info.vocab_size, 70001);
    must(data_sequence(&d, 3, 0, ids, &err), &err); /* no BOS: none added */
    static const int32_t wanted[] = {0, 70000, 0, 70000};
    assert_memory_equal(ids, wanted, sizeof ids);
    data_close(&d);
    s.fim = 0.1;
    must_fail(data_create(&w, scratch("data"), true, t, 0, &s, &err), &err,
              "the tokenizer has no <｜fim▁begin｜>");
    tokenizer_close(t);
}

/* The command ------------------------------------------------------------- */

/* The documents that a command writes, with a blank behind each. */
static void must_hold(const char *words, const char *texts)
{
    size_t n;
    Text found = {0};
    if (run(words) != 0)
        fail_msg("%s: %s", words, said);
    int32_t *ids = all_ids(scratch("held"), &n);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] == tokenizer_eos(tokenizer))
            text_add(&found, " ", 1);
        else if (ids[i] != tokenizer_bos(tokenizer))
            decode(&found, ids + i, 1);
    }
    assert_string_equal(found.text, texts);
    text_free(&found);
    free(ids);
}

static void held_out(void **state)
{
    (void)state;
    put_text("abc", "a\n<|endoftext|>\n\n<|endoftext|>\nb\n<|endoftext|>\nc");
    put_text("de", "d\n<|endoftext|>\ne\n<|endoftext|>\n");
    must_hold("prepare tok abc de -o held", "a b c d e ");
    must_hold("prepare tok abc de -o held --force --held-out 1", "a b d ");
    must_hold("prepare tok abc de -o held --force --held-out abc=2",
              "a d e ");
    must_hold("prepare tok abc de -o held --force --held-out 1 "
              "--held-out de=0", "a b d e ");
    must_hold("prepare tok abc de -o held --force --held-out 1 "
              "--only-held-out", "c e ");
    must_hold("prepare tok abc de -o held --force --held-out abc=3 "
              "--only-held-out", "a b c ");
    must_hold("prepare tok de abc -o held --force --separator ''",
              "d\n<|endoftext|>\ne\n<|endoftext|> a\n<|endoftext|>\n\n"
              "<|endoftext|>\nb\n<|endoftext|>\nc ");
}

static void complaints(void **state)
{
    (void)state;
    put_text("text", "some text");
    put_text("bad", "ok\n<|endoftext|>\nno \xff");
    put_text("empty", "");
    wrong("prepare tok text", 2, "prepare wants -o (deepseek prepare --help "
          "says more)");
    wrong("prepare tok text -o new --fim 1.5", 2,
          "--fim wants a number from 0 to 1, not '1.5'");
    wrong("prepare tok text -o new --split nan", 2,
          "--split wants a number from 0 to 1, not 'nan'");
    wrong("prepare tok text -o new --held-out x", 1,
          "--held-out x: wanted N or FILE=N, N up to 999999999");
    wrong("prepare tok text -o new --held-out text=", 1,
          "--held-out text=: wanted N or FILE=N, N up to 999999999");
    wrong("prepare tok text -o new --held-out tex=1", 1,
          "--held-out tex=1: no such FILE is given");
    wrong("prepare tok text -o new --held-out 2", 1,
          "text: wanted at least the 2 documents to hold out, found 1");
    wrong("prepare tok text -o new --only-held-out", 1,
          "--only-held-out wants --held-out");
    wrong("prepare tok text bad -o new", 1, "bad: document 2, at offset 17: "
          "wanted UTF-8, found byte 0xff at offset 3");
    wrong("prepare tok empty -o new", 1, "new: no document to write");
    wrong("prepare tok text -o new --held-out 1", 1,
          "new: no document to write");
    wrong("prepare none text -o new", 1,
          "none/tokenizer.json: cannot open: No such file or directory");
    wrong("prepare tok text -o text", 1,
          "text: exists already; --force overwrites it");
    assert_false(path_exists(scratch("new")));
}

/* The hash of tokenizer.json is that of its bytes: FNV-1a's own vector. */
static void hash_of_tokenizer(void **state)
{
    uint64_t hash;
    Error err;
    (void)state;
    must(make_dir(scratch("hash"), &err), &err);
    put_text("hash/tokenizer.json", "foobar");
    must(tokenizer_hash(scratch("hash"), &hash, &err), &err);
    assert_int_equal(hash, UINT64_C(0x85944171f73967e8));
    put_text("hash/tokenizer.json", "");
    must(tokenizer_hash(scratch("hash"), &hash, &err), &err);
    assert_int_equal(hash, UINT64_C(0xcbf29ce484222325));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(fim_form),
        cmocka_unit_test(fim_rate),
        cmocka_unit_test(splitting),
        cmocka_unit_test(halves),
        cmocka_unit_test(documents_apart),
        cmocka_unit_test(pinned_file),
        cmocka_unit_test(sequences),
        cmocka_unit_test(permutation),
        cmocka_unit_test(huge_permutation),
        cmocka_unit_test(even_permutation),
        cmocka_unit_test(resume),
        cmocka_unit_test(malformed),
        cmocka_unit_test(bad_reads),
        cmocka_unit_test(random_bytes),
        cmocka_unit_test(given_up),
        cmocka_unit_test(wide_ids),
        cmocka_unit_test(held_out),
        cmocka_unit_test(complaints),
        cmocka_unit_test(hash_of_tokenizer),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
