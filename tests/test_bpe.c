/* Byte symbols, the table of tokens, and merges against their definition: the
 * adjacent pair of the lowest rank, the leftmost on ties, again and again. */
#include "support.h"

#include "base/bpe.h"

enum { LETTERS = 5, TOKENS = 60 };

typedef struct {
    Vocabulary v;
    Merges m;
    int32_t pair[TOKENS * 4][3]; /* left, right, joined */
} Rig;

static int32_t add_token(Vocabulary *v, const char *text, size_t n,
                         uint32_t id)
{
    size_t room;
    Error err;
    memcpy(vocabulary_next(v, &room), text, n);
    assert_true(n <= room);
    must(vocabulary_add(v, n, id, false, &err), &err);
    return (int32_t)id;
}

static void random_merge(Rig *rig, Random *r)
{
    const Vocabulary *v = &rig->v;
    const Token *a, *b;
    char ab[1000];
    Error err;
    a = &v->tokens[random_between(r, 0, v->n_ids - 1)];
    b = &v->tokens[random_between(r, 0, v->n_ids - 1)];
    size_t n = (size_t)a->length + b->length;
    if (n > 12)
        return;
    memcpy(ab, v->text + a->at, a->length);
    memcpy(ab + a->length, v->text + b->at, b->length);
    int32_t id = vocabulary_find(v, ab, n);
    if (id < 0 && v->n_ids < TOKENS)
        id = add_token(&rig->v, ab, n, (uint32_t)v->n_ids);
    int32_t *pair = rig->pair[rig->m.n];
    pair[0] = (int32_t)(a - v->tokens);
    pair[1] = (int32_t)(b - v->tokens);
    pair[2] = id;
    if (id >= 0) /* a pair that is there already is refused, and not kept */
        (void)merges_add(&rig->m, (uint32_t)pair[0], (uint32_t)pair[1],
                         (uint32_t)id, &err);
}

/* A few letters and random merges of random tokens: the same text may come
 * about in many ways, which a trained vocabulary seldom shows. */
static void open_random(Rig *rig, Random *r)
{
    Error err;
    must(vocabulary_open(&rig->v, TOKENS, TOKENS * 12, &err), &err);
    for (uint32_t i = 0; i < LETTERS; i++)
        add_token(&rig->v, &"abcde"[i], 1, i);
    must(vocabulary_index(&rig->v, &err), &err);
    must(merges_open(&rig->m, &rig->v, TOKENS * 3, &err), &err);
    for (int i = 0; i < TOKENS * 2; i++)
        random_merge(rig, r);
}

/* The rank of a pair by looking at all. */
static size_t plain_rank(const Rig *rig, int32_t left, int32_t right)
{
    size_t i = 0;
    while (i < rig->m.n
           && (rig->pair[i][0] != left || rig->pair[i][1] != right))
        i++;
    return i;
}

static size_t plain_apply(const Rig *rig, int32_t *ids, size_t n)
{
    for (;;) {
        size_t best = rig->m.n, at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            size_t rank = plain_rank(rig, ids[i], ids[i + 1]);
            if (rank < best) {
                best = rank;
                at = i;
            }
        }
        if (best == rig->m.n)
            return n;
        ids[at] = rig->pair[best][2];
        n--;
        memmove(ids + at + 1, ids + at + 2, (n - at - 1) * sizeof *ids);
    }
}

static void check_piece(const Rig *rig, const char *piece, size_t n,
                        MergeWork *work)
{
    int32_t wanted[400];
    Error err;
    for (size_t i = 0; i < n; i++)
        wanted[i] = piece[i] - 'a';
    size_t count = plain_apply(rig, wanted, n);
    long found = merges_apply(&rig->m, piece, n, work, &err);
    if (found != (long)count)
        fail_msg("%.*s: %ld ids instead of %zu", (int)n, piece, found, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(work->ids[i], wanted[i]);
}

static void merges_by_definition(void **state)
{
    Random r = test_random();
    MergeWork work = { .room = 0 };
    (void)state;
    for (int vocabulary = 0; vocabulary < 40; vocabulary++) {
        Rig *rig = test_alloc(1, sizeof *rig);
        open_random(rig, &r);
        for (int i = 0; i < 100; i++) {
            char piece[400];
            size_t n = random_between(&r, 1, i % 10 ? 60 : sizeof piece);
            for (size_t k = 0; k < n; k++)
                piece[k] = (char)('a' + random_between(&r, 0, LETTERS - 1));
            check_piece(rig, piece, n, &work);
        }
        merges_close(&rig->m);
        vocabulary_close(&rig->v);
        free(rig);
    }
    merge_work_free(&work);
}

/* A word of a megabyte, of one letter and of many: a quadratic loop would
 * take a quarter of an hour. */
static void long_word(void **state)
{
    enum { N = 1 << 20 };
    Random r = test_random();
    Rig *rig = test_alloc(1, sizeof *rig);
    MergeWork work = { .room = 0 };
    char *word = test_alloc(N, 1);
    Error err;
    (void)state;
    open_random(rig, &r);
    for (size_t letters = 1; letters <= LETTERS; letters += LETTERS - 1) {
        size_t bytes = 0;
        for (size_t i = 0; i < N; i++)
            word[i] = (char)('a' + random_between(&r, 0, letters - 1));
        long n = merges_apply(&rig->m, word, N, &work, &err);
        assert_true(n > 0);
        for (long i = 0; i < n; i++)
            bytes += vocabulary_token(&rig->v, work.ids[i])->n;
        assert_int_equal(bytes, N);
    }
    free(word);
    merge_work_free(&work);
    merges_close(&rig->m);
    vocabulary_close(&rig->v);
    free(rig);
}

/* GPT-2's map: each byte has a symbol, and a token's bytes come from them. */
static void byte_symbols(void **state)
{
    static const struct {
        const char *symbol;
        unsigned char byte;
    } known[] = {
        { "!", 33 }, { "~", 126 }, { "\xc2\xa1", 161 }, { "\xc2\xac", 172 },
        { "\xc2\xae", 174 }, { "\xc3\xbf", 255 }, { "\xc4\x80", 0 },
        { "\xc4\x8a", '\n' }, { "\xc4\xa0", ' ' }, { "\xc4\xa1", 127 },
        { "\xc5\x82", 160 }, { "\xc5\x83", 173 }
    };
    enum { N = sizeof known / sizeof known[0] };
    Vocabulary v;
    Merges m;
    Error err;
    (void)state;
    must(vocabulary_open(&v, N, 100, &err), &err);
    for (uint32_t i = 0; i < N; i++)
        add_token(&v, known[i].symbol, strlen(known[i].symbol), i);
    must(vocabulary_index(&v, &err), &err);
    must(merges_open(&m, &v, 0, &err), &err);
    for (uint32_t i = 0; i < N; i++) {
        const Token *t = vocabulary_token(&v, i);
        assert_int_equal(t->n, 1);
        assert_int_equal((unsigned char)v.bytes[t->at], known[i].byte);
        assert_int_equal(m.byte_id[known[i].byte], i);
    }
    assert_int_equal(m.byte_id['a'], -1);
    merges_close(&m);
    vocabulary_close(&v);
}

/* A spelling with another character in it stands for itself. */
static void other_spellings(void **state)
{
    static const char *const literal[] = { "<\xef\xbd\x9c>", " ", "a b",
                                           "\xc2\xad", "\xc5\x84", "a\n" };
    enum { N = sizeof literal / sizeof literal[0] };
    Vocabulary v;
    Error err;
    (void)state;
    must(vocabulary_open(&v, N, 100, &err), &err);
    for (uint32_t i = 0; i < N; i++) {
        add_token(&v, literal[i], strlen(literal[i]), i);
        const Token *t = vocabulary_token(&v, i);
        assert_int_equal(t->n, strlen(literal[i]));
        assert_memory_equal(v.bytes + t->at, literal[i], t->n);
    }
    vocabulary_close(&v);
}

/* Found by the index, or by what comes after it. */
static void spelled_twice(void **state)
{
    Error err;
    (void)state;
    for (int late = 0; late < 2; late++) {
        Vocabulary v;
        size_t room;
        must(vocabulary_open(&v, 2, 2, &err), &err);
        add_token(&v, "a", 1, 7);
        if (late)
            must(vocabulary_index(&v, &err), &err);
        memcpy(vocabulary_next(&v, &room), "a", 1);
        assert_int_equal(vocabulary_add(&v, 1, 8, false, &err), -late);
        if (!late)
            assert_int_equal(vocabulary_index(&v, &err), -1);
        assert_string_equal(err.text, "token a: is there twice");
        vocabulary_close(&v);
    }
}

/* An id far beyond those before it. */
static void holes_in_the_ids(void **state)
{
    Vocabulary v;
    Error err;
    (void)state;
    must(vocabulary_open(&v, 2, 10, &err), &err);
    add_token(&v, "a", 1, 1);
    add_token(&v, "b", 1, 1000);
    must(vocabulary_index(&v, &err), &err);
    assert_int_equal(vocabulary_find(&v, "a", 1), 1);
    assert_int_equal(vocabulary_find(&v, "b", 1), 1000);
    assert_null(vocabulary_token(&v, 999));
    vocabulary_close(&v);
}

/* More than was announced to the one that opened it, or than numbers hold. */
static void no_room(void **state)
{
    Vocabulary v;
    Merges m;
    MergeWork work = { .room = 0 };
    Error err;
    size_t room;
    (void)state;
    must_fail(vocabulary_open(&v, 1, UINT32_MAX, &err), &err,
              "wanted less than 4 GiB of tokens, found 4294967295");
    must(vocabulary_open(&v, 2, 3, &err), &err);
    memcpy(vocabulary_next(&v, &room), "abc", 3);
    must_fail(vocabulary_add(&v, 4, 0, false, &err), &err,
              "token abc: no room");
    add_token(&v, "a", 1, 0);
    add_token(&v, "b", 1, 1);
    must_fail(vocabulary_add(&v, 1, 2, false, &err), &err,
              "token c: no room");
    must_fail(merges_open(&m, &v, TOKEN_LIMIT + 1, &err), &err,
              "wanted at most 4194303 merges, found 4194304");
    must(merges_open(&m, &v, 1, &err), &err);
    must(merges_add(&m, 0, 1, 0, &err), &err);
    must_fail(merges_add(&m, 1, 0, 0, &err), &err, "merge 1: no room");
    must_fail((int)merges_apply(&m, "a", (size_t)INT32_MAX + 1, &work, &err),
              &err, "wanted a piece below 2 GiB, found 2147483648 bytes");
    merges_close(&m);
    vocabulary_close(&v);
}

static void refused(void **state)
{
    Vocabulary v;
    Merges m;
    MergeWork work = { .room = 0 };
    Error err;
    size_t room;
    (void)state;
    must(vocabulary_open(&v, 3, 10, &err), &err);
    add_token(&v, "a", 1, 7);
    must(vocabulary_index(&v, &err), &err);
    memcpy(vocabulary_next(&v, &room), "ab", 2);
    must_fail(vocabulary_add(&v, 2, 7, false, &err), &err,
              "token ab: its id 7 belongs to another");
    must_fail(vocabulary_add(&v, 2, TOKEN_LIMIT, false, &err), &err,
              "token ab: wanted an id below 4194303 and at most 65535 bytes, "
              "found 4194303 and 2");
    assert_null(vocabulary_token(&v, 6));
    assert_null(vocabulary_token(&v, -1));
    assert_null(vocabulary_token(&v, 8));
    assert_int_equal(vocabulary_find(&v, "ab", 2), -1);
    add_token(&v, "ab", 2, 8);
    must(merges_open(&m, &v, 2, &err), &err);
    must(merges_add(&m, 7, 7, 8, &err), &err);
    must_fail(merges_add(&m, 7, 7, 8, &err), &err, "merge 1 is that of merge "
              "0");
    assert_int_equal(merges_apply(&m, "ab", 2, &work, &err), -1);
    assert_string_equal(err.text,
                        "the vocabulary has no token for byte 0x62");
    merge_work_free(&work);
    merges_close(&m);
    vocabulary_close(&v);
    must_fail(vocabulary_open(&v, TOKEN_LIMIT + 1, 1, &err), &err,
              "wanted at most 4194303 tokens, found 4194304");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_by_definition),
        cmocka_unit_test(long_word),
        cmocka_unit_test(byte_symbols),
        cmocka_unit_test(other_spellings),
        cmocka_unit_test(spelled_twice),
        cmocka_unit_test(holes_in_the_ids),
        cmocka_unit_test(no_room),
        cmocka_unit_test(refused)
    };
    return cmocka_run_group_tests_name("bpe", tests, NULL, NULL);
}
