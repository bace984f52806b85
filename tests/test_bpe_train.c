/* The trainer against the Hugging Face library's, against its own definition
 * by the plainest means, and the command that writes its directory.
 *
 * Vectors: data/tokenizer/bpe_train.jsonl, learnt by version 0.23.3 of the
 * library (reference/check_bpe_train.py --vectors) from texts made by hand and
 * at random and, where "text" is null, from data/fairy_excerpt.txt (public
 * domain). Ids are those of Learnt: 0 is the first byte. DEEPSEEK names the
 * program, else ./deepseek. */
#define _XOPEN_SOURCE 700
#include "vectors.h"

#include "command.h"

#include "base/bpe_train.h"
#include "base/pretoken.h"

#include <inttypes.h>

#define FAIRY "tests/data/fairy_excerpt.txt"

static int add_word(void *words, const char *piece, size_t n, Error *err)
{
    return words_add(words, piece, n, 1, err);
}

/* The words of a text behind V3's rules. */
static void count_text(Words *w, const char *text, size_t n)
{
    Pretokenizer p = {.n = 0};
    Error err;
    for (int i = 0; i < PRETOKEN_V3_RULES; i++)
        must(pretoken_add_regex(&p, pretoken_v3[i], strlen(pretoken_v3[i]),
                                &err), &err);
    must(pretoken_run(&p, text, n, add_word, w, &err), &err);
    pretoken_free(&p);
}

static size_t whole(const Json *row, const JsonNode *object, const char *key)
{
    int64_t n;
    const JsonNode *node = json_get(row, object, key);
    assert_true(json_integer(row, node, 0, INT32_MAX, &n));
    return (size_t)n;
}

static uint32_t element(const Json *row, const JsonNode *merge, int i)
{
    int64_t id;
    const JsonNode *e = json_first(row, merge);
    for (; i > 0; i--)
        e = json_next(row, merge, e);
    assert_true(json_integer(row, e, 0, INT32_MAX, &id));
    return (uint32_t)id;
}

static void check_merges(const Learnt *l, const Json *row, const char *where)
{
    const JsonNode *list = json_get(row, row->nodes, "merges");
    size_t n = 0;
    assert_int_equal(l->n_tokens, whole(row, row->nodes, "tokens"));
    for (const JsonNode *m = json_first(row, list); m != NULL;
         m = json_next(row, list, m), n++) {
        const Merge *found = &l->merges[n];
        if (n == l->n_merges || found->left != element(row, m, 0)
            || found->right != element(row, m, 1)
            || found->id != element(row, m, 2))
            fail_msg("%s: merge %zu of %zu differs", where, n, l->n_merges);
    }
    assert_int_equal(n, l->n_merges);
}

static void check_vector(void *fairy, const Json *row, const char *where)
{
    const File *tale = fairy;
    Error err;
    Words words = {.n = 0};
    Learnt learnt;
    size_t n = 0;
    char *text = vector_string(row, row->nodes, "text", &n);
    if (text != NULL)
        count_text(&words, text, n);
    else
        count_text(&words, (const char *)tale->data, tale->size);
    /* vocab has the three special tokens of the beginning and 5 more. */
    must(bpe_train(&learnt, &words, whole(row, row->nodes, "vocab") - 8,
                   whole(row, row->nodes, "min"), NULL, &err), &err);
    check_merges(&learnt, row, where);
    learnt_free(&learnt);
    words_free(&words);
    free(text);
}

static void library_vectors(void **state)
{
    File tale;
    Error err;
    (void)state;
    must(file_open(&tale, FAIRY, &err), &err);
    assert_int_equal(each_vector("tests/data/tokenizer/bpe_train.jsonl",
                                 check_vector, &tale), 126);
    file_close(&tale);
}

/* By definition ----------------------------------------------------------- */

enum { WORDS = 12, LONGEST = 10 };

typedef struct {
    uint32_t ids[WORDS][LONGEST];
    size_t length[WORDS], n;
    uint64_t count[WORDS];
} Plain;

static uint64_t plain_count(const Plain *p, uint32_t left, uint32_t right)
{
    uint64_t count = 0;
    for (size_t w = 0; w < p->n; w++)
        for (size_t i = 0; i + 1 < p->length[w]; i++)
            if (p->ids[w][i] == left && p->ids[w][i + 1] == right)
                count += p->count[w];
    return count;
}

/* The most frequent pair, of equals that with the lowest ids; false where
 * none occurs `least` times. */
static bool plain_best(const Plain *p, uint64_t least, Merge *best)
{
    uint64_t most = 0;
    for (size_t w = 0; w < p->n; w++) {
        for (size_t i = 0; i + 1 < p->length[w]; i++) {
            uint32_t a = p->ids[w][i], b = p->ids[w][i + 1];
            uint64_t count = plain_count(p, a, b);
            if (count > most
                || (count == most
                    && (a < best->left
                        || (a == best->left && b < best->right)))) {
                most = count;
                best->left = a;
                best->right = b;
            }
        }
    }
    return most >= least && most > 0;
}

static void plain_merge(Plain *p, const Merge *m)
{
    for (size_t w = 0; w < p->n; w++) {
        uint32_t *id = p->ids[w];
        for (size_t i = 0; i + 1 < p->length[w]; i++) {
            if (id[i] != m->left || id[i + 1] != m->right)
                continue;
            id[i] = m->id;
            p->length[w]--;
            memmove(id + i + 1, id + i + 2,
                    (p->length[w] - i - 1) * sizeof *id);
        }
    }
}

/* Words of distinct letters: no token can come about in two ways, and then
 * the rule is no more than its definition. */
static void random_words(Random *r, Plain *p, Words *words)
{
    Error err;
    p->n = random_between(r, 1, WORDS);
    for (size_t w = 0; w < p->n; w++) {
        char text[LONGEST];
        size_t n = random_between(r, 1, LONGEST), first, k;
        first = random_between(r, 0, 25);
        for (k = 0; k < n; k++)
            text[k] = (char)('a' + (first + k * (1 + w % 3)) % 26);
        p->count[w] = random_between(r, 1, 4);
        p->length[w] = n;
        for (k = 0; k < n; k++)
            p->ids[w][k] = (uint32_t)(text[k] - '!'); /* 33 is the first */
        must(words_add(words, text, n, p->count[w], &err), &err);
    }
}

static void by_definition(void **state)
{
    Random r = test_random();
    (void)state;
    for (int round = 0; round < 400; round++) {
        Plain p = {.n = 0};
        Words words = {.n = 0};
        Learnt learnt;
        Error err;
        uint64_t least = random_between(&r, 1, 3);
        random_words(&r, &p, &words);
        must(bpe_train(&learnt, &words, 4000, least, NULL, &err), &err);
        for (size_t k = 0; k <= learnt.n_merges; k++) {
            Merge best = {0, 0, 0};
            bool any = plain_best(&p, least, &best);
            assert_int_equal(any, k < learnt.n_merges);
            if (!any)
                break;
            assert_int_equal(learnt.merges[k].left, best.left);
            assert_int_equal(learnt.merges[k].right, best.right);
            best.id = learnt.merges[k].id;
            plain_merge(&p, &best);
        }
        learnt_free(&learnt);
        words_free(&words);
    }
}

/* The same words in another order and in parts: the same tokens. */
static void order_of_words(void **state)
{
    Random r = test_random();
    Words w = {.n = 0}, v = {.n = 0};
    Learnt a, b;
    File tale;
    Error err;
    (void)state;
    must(file_open(&tale, FAIRY, &err), &err);
    count_text(&w, (const char *)tale.data, tale.size);
    for (size_t i = w.n; i-- > 0;) {
        uint64_t some = random_between(&r, 0, w.list[i].count);
        must(words_add(&v, w.text + w.list[i].at, w.list[i].n, some, &err),
             &err);
    }
    for (size_t i = 0; i < w.n; i++)
        must(words_add(&v, w.text + w.list[i].at, w.list[i].n,
                       w.list[i].count - v.list[w.n - 1 - i].count, &err),
             &err);
    assert_int_equal(v.n, w.n);
    assert_int_equal(v.total, w.total);
    must(bpe_train(&a, &w, 900, 2, NULL, &err), &err);
    must(bpe_train(&b, &v, 900, 2, NULL, &err), &err);
    assert_int_equal(a.n_merges, b.n_merges);
    assert_int_equal(a.n_tokens, b.n_tokens);
    assert_memory_equal(a.merges, b.merges, a.n_merges * sizeof *a.merges);
    assert_memory_equal(a.bytes, b.bytes, a.at[a.n_tokens]);
    learnt_free(&a);
    learnt_free(&b);
    words_free(&w);
    words_free(&v);
    file_close(&tale);
}

/* A token is the bytes of the two that its merge joins. */
static void bytes_of_tokens(void **state)
{
    Words w = {.n = 0};
    Learnt l;
    Error err;
    File tale;
    bool seen[256] = {false};
    (void)state;
    must(file_open(&tale, FAIRY, &err), &err);
    count_text(&w, (const char *)tale.data, tale.size);
    must(bpe_train(&l, &w, 600, 1, NULL, &err), &err);
    for (size_t id = 0; id < 256; id++) {
        assert_int_equal(l.at[id], id);
        seen[(unsigned char)l.bytes[id]] = true;
    }
    for (size_t i = 0; i < 256; i++)
        assert_true(seen[i]);
    assert_int_equal(l.bytes[0], '!');
    assert_int_equal(l.bytes[188], 0);
    for (size_t i = 0; i < l.n_merges; i++) {
        const Merge *m = &l.merges[i];
        size_t left = l.at[m->left + 1] - l.at[m->left];
        size_t right = l.at[m->right + 1] - l.at[m->right];
        const char *joined = l.bytes + l.at[m->id];
        assert_int_equal(l.at[m->id + 1] - l.at[m->id], left + right);
        assert_memory_equal(joined, l.bytes + l.at[m->left], left);
        assert_memory_equal(joined + left, l.bytes + l.at[m->right], right);
    }
    learnt_free(&l);
    words_free(&w);
    file_close(&tale);
}

/* A word of a million letters, and one of a million equal ones, whose tokens
 * stop at the longest that a tokenizer may have. */
static void long_words(void **state)
{
    enum { N = 1000000 };
    Random r = test_random();
    char *text = test_alloc(N, 1);
    Words w = {.n = 0};
    Learnt l;
    Error err;
    (void)state;
    for (size_t i = 0; i < N; i++)
        text[i] = (char)('a' + random_between(&r, 0, 25));
    must(words_add(&w, text, N, 1, &err), &err);
    memset(text, '-', N);
    must(words_add(&w, text, N, 1, &err), &err);
    must(bpe_train(&l, &w, 1000, 1, NULL, &err), &err);
    assert_int_equal(l.n_tokens, 1000);
    size_t longest = 0;
    for (size_t i = 0; i < l.n_tokens; i++)
        if (l.at[i + 1] - l.at[i] > longest)
            longest = l.at[i + 1] - l.at[i];
    assert_int_equal(longest, 16384);
    learnt_free(&l);
    words_free(&w);
    free(text);
}

static void bounds(void **state)
{
    Words w = {.n = 0};
    Learnt l;
    Error err;
    (void)state;
    must_fail(bpe_train(&l, &w, 255, 1, NULL, &err), &err,
              "wanted from 256 to 4194302 tokens, found 255");
    must_fail(bpe_train(&l, &w, 4194303, 1, NULL, &err), &err,
              "wanted from 256 to 4194302 tokens, found 4194303");
    must(bpe_train(&l, &w, 300, 1, NULL, &err), &err); /* no words */
    assert_int_equal(l.n_tokens, 256);
    assert_int_equal(l.n_merges, 0);
    learnt_free(&l);
    must(words_add(&w, "abab", 4, UINT64_C(1) << 40, &err), &err);
    must(bpe_train(&l, &w, 256, 1, NULL, &err), &err); /* no room */
    assert_int_equal(l.n_merges, 0);
    learnt_free(&l);
    must(bpe_train(&l, &w, 300, (UINT64_C(1) << 41) + 1, NULL, &err), &err);
    assert_int_equal(l.n_merges, 0); /* counts beyond 32 bits */
    learnt_free(&l);
    must(bpe_train(&l, &w, 300, UINT64_C(1) << 41, NULL, &err), &err);
    assert_int_equal(l.n_merges, 1);
    learnt_free(&l);
    words_free(&w);
}

/* The command ------------------------------------------------------------- */

/* Runs the program in the scratch directory; its stderr, or stdout if it said
 * nothing there, is in `said`. */
/* What it writes is what the tokenizer reads, with V3's names. */
static void command(void **state)
{
    Error err;
    (void)state;
    put_text("text", "a cat sat.\n<|endoftext|>\nthe cat sat.\n\n");
    if (run("train-tokenizer text -o dir --vocab 300 --min-count 1") != 0)
        fail_msg("%s", said);
    Tokenizer *t = tokenizer_open(scratch("dir"), &err);
    must(t == NULL ? -1 : 0, &err);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_int_equal(tokenizer_id(t, "<｜▁pad▁｜>"), 2);
    assert_true(tokenizer_add_bos(t));
    int32_t last = (int32_t)tokenizer_size(t) - 1;
    assert_int_equal(tokenizer_id(t, "<｜Assistant｜>"), last);
    assert_int_equal(tokenizer_id(t, "<｜User｜>"), last - 1);
    assert_int_equal(tokenizer_id(t, "<｜fim▁end｜>"), last - 2);
    assert_int_equal(tokenizer_id(t, "<｜fim▁begin｜>"), last - 3);
    assert_int_equal(tokenizer_id(t, "<｜fim▁hole｜>"), last - 4);
    assert_true(tokenizer_id(t, "Ġcat") > 0);
    assert_int_equal(tokenizer_id(t, "<|"), -1); /* the separator is gone */
    tokenizer_close(t);
    assert_int_equal(run("tokenize dir text"), 0);
}

/* The separator is a line, whole; documents lose their line breaks at either
 * end; '' joins them. */
static void separators(void **state)
{
    (void)state;
    put_text("text", "\n\nab\n<|endoftext|>\r\n<|endoftext|>\ncd<|endoftext|>"
             "\r\n\n<|endoftext|>");
    assert_int_equal(run("train-tokenizer text -o sep --json --vocab 264"), 0);
    assert_non_null(strstr(said, "{\"documents\": 2, \"bytes\": 17, "));
    assert_int_equal(run("train-tokenizer text -o sep --json --vocab 264 "
                         "--force --separator ''"), 0);
    assert_non_null(strstr(said, "{\"documents\": 1, \"bytes\": 63, "));
    assert_int_equal(run("train-tokenizer text -o sep --json --vocab 264 "
                         "--force --separator ab"), 0);
    assert_non_null(strstr(said, "{\"documents\": 1, \"bytes\": 60, "));
}

static void complaints(void **state)
{
    (void)state;
    put_text("text", "some text");
    put_text("empty", "");
    put_text("breaks", "\n\r\n<|endoftext|>\n");
    put_text("bad", "ok\n<|endoftext|>\nno \xff");
    wrong("train-tokenizer text", 2, "train-tokenizer wants -o "
          "(deepseek train-tokenizer --help says more)");
    wrong("train-tokenizer text -o new --vocab 263", 2, "--vocab wants a "
          "whole number from 264 to 4194302, not '263'");
    wrong("train-tokenizer text -o new --vocab 4194303", 2, "--vocab wants a "
          "whole number from 264 to 4194302, not '4194303'");
    wrong("train-tokenizer text -o new --min-count 0", 2, "--min-count wants "
          "a whole number from 1 to 1000000000000000, not '0'");
    wrong("train-tokenizer empty breaks -o new", 1,
          "empty: no text to learn from");
    wrong("train-tokenizer text bad -o new", 1,
          "bad: wanted UTF-8, found byte 0xff at offset 20");
    wrong("train-tokenizer none -o new", 1,
          "none: cannot open: No such file or directory");
    wrong("train-tokenizer text -o text", 1,
          "text: cannot make this directory: File exists");
    assert_false(path_exists(scratch("new")));
    assert_int_equal(run("train-tokenizer text -o twice"), 0);
    wrong("train-tokenizer text -o twice", 1, "twice/tokenizer.json: exists "
          "already; --force overwrites it");
    assert_int_equal(run("train-tokenizer text -o twice --force"), 0);
}

static int remove_scratch(void **state)
{
    char line[500];
    (void)state;
    snprintf(line, sizeof line, "rm -rf '%s'", scratch(""));
    return system(line);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(library_vectors),
        cmocka_unit_test(by_definition),
        cmocka_unit_test(order_of_words),
        cmocka_unit_test(bytes_of_tokens),
        cmocka_unit_test(long_words),
        cmocka_unit_test(bounds),
        cmocka_unit_test(command),
        cmocka_unit_test(separators),
        cmocka_unit_test(complaints),
    };
    return cmocka_run_group_tests(tests, NULL, remove_scratch);
}
