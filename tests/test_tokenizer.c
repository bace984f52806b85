/* Text to ids and back.
 *
 * tiny_v3.jsonl, tiny_v2.jsonl: small vocabularies in V3's and V2's schemes,
 * ids by the Hugging Face tokenizers 0.23.3 (tests/reference/
 * make_tokenizers.py). v3_vectors.jsonl, v2_vectors.jsonl: DeepSeek's own
 * vocabularies, by version 0.23.2; these files and the table of known ids need
 * the published tokenizer.json in ../shared/data/tokenizers and are skipped
 * without it. In the table the first column of ids is also what DeepSeek-LLM
 * gives; most of it was first seen in llama.cpp's tests. */
#include "vectors.h"

#include "base/unicode.h"

#define DATA "tests/data/tokenizer/"
#define PUBLISHED "../shared/data/tokenizers/"

static Tokenizer *open_tokenizer(const char *dir)
{
    Error err;
    Tokenizer *t = tokenizer_open(dir, &err);
    if (!t)
        fail_msg("%s", err.text);
    return t;
}

static Tokenizer *open_published(const char *version)
{
    char dir[200], file[250];
    snprintf(dir, sizeof dir, PUBLISHED "%s", version);
    snprintf(file, sizeof file, "%s/tokenizer.json", dir);
    if (!path_exists(file)) {
        print_message("%s is absent\n", file);
        skip();
    }
    return open_tokenizer(dir);
}

static void decode_all(const Tokenizer *t, const IdList *ids,
                       bool skip_special, Text *out)
{
    for (size_t i = 0; i < ids->n; i++) {
        const char *bytes;
        size_t n;
        assert_true(tokenizer_decode(t, ids->ids[i], skip_special, &bytes,
                                     &n));
        text_add(out, bytes, n);
    }
}

static void must_decode(const Tokenizer *t, const IdList *ids,
                        bool skip_special, const char *text, size_t n,
                        const char *where)
{
    Text back = { NULL, 0, 0, false };
    decode_all(t, ids, skip_special, &back);
    if (back.length != n || (n && memcmp(back.text, text, n) != 0))
        fail_msg("%s: decoded to %s", where, back.text);
    text_free(&back);
}

static void must_be_ids(const Json *row, const JsonNode *array,
                        const IdList *found, const char *where)
{
    const JsonNode *node = json_first(row, array);
    for (size_t i = 0; i < found->n; i++, node = json_next(row, array, node)) {
        int64_t id = -1;
        if (!node || !json_integer(row, node, 0, INT32_MAX, &id)
            || id != found->ids[i])
            fail_msg("%s: id %zu is %ld instead of %ld", where, i,
                     (long)found->ids[i], (long)id);
    }
    if (node)
        fail_msg("%s: only %zu ids", where, found->n);
}

static void check_vector(void *context, const Json *row, const char *where)
{
    const Tokenizer *t = context;
    IdList ids = { NULL, 0, 0 };
    Error err;
    size_t n, plain_n;
    char *text = vector_string(row, row->nodes, "text", &n);
    char *plain = vector_string(row, row->nodes, "plain", &plain_n);
    must(tokenizer_encode(t, text, n, &ids, &err), &err);
    must_be_ids(row, json_get(row, row->nodes, "ids"), &ids, where);
    must_decode(t, &ids, false, text, n, where);
    if (plain)
        must_decode(t, &ids, true, plain, plain_n, where);
    free(text);
    free(plain);
    ids_free(&ids);
}

static void check_vectors(Tokenizer *t, const char *path, size_t least)
{
    assert_true(each_vector(path, check_vector, t) >= least);
    tokenizer_close(t);
}

static void tiny_v3(void **state)
{
    (void)state;
    check_vectors(open_tokenizer(DATA "v3"), DATA "tiny_v3.jsonl", 200);
}

static void tiny_v2(void **state)
{
    (void)state;
    check_vectors(open_tokenizer(DATA "v2"), DATA "tiny_v2.jsonl", 200);
}

static void published_v3(void **state)
{
    (void)state;
    check_vectors(open_published("v3"), DATA "v3_vectors.jsonl", 500);
}

static void published_v2(void **state)
{
    (void)state;
    check_vectors(open_published("v2"), DATA "v2_vectors.jsonl", 500);
}

/* Known ids, blanks between; NULL where there is no figure. */
static const struct {
    const char *text, *v2, *v3;
} known[] = {
    { "Hello world", "17464 1843", "19923 2058" },
    { " Hello World!", "37727 5427 0", "45948 4495 3" },
    { "Hello, world!", "17464 11 1843 0", "19923 14 2058 3" },
    { " ", "207", "223" }, { "  ", "243", "262" }, { "   ", "300", "361" },
    { "\t", "184", "200" }, { "\n", "185", "201" },
    { "\n\n", "185 185", "271" }, { "\n\n\n", "185 185 185", "6328" },
    { "\t\n", "184 185", "7028" },
    { "    Hello\n    Hello", "300 37727 185 300 37727",
      "361 45948 201 361 45948" },
    { "w048 7tuijk dsdfhu",
      "86 15 19 23 207 22 83 3970 27519 26016 3944 14025",
      "89 30633 223 25 19679 10637 47502 5920 13524" },
    { "333", "18 18 18", "11722" }, { "3333", "18 18 18 18", "11722 21" },
    { "33333", "18 18 18 18 18", "11722 1671" },
    { "!!!!!!", "15278 3033", "27656 6909" },
    { "' era", "6 2906", "9 9861" }, { "\n =", "185 403", "201 438" },
    { "ied 4 ½ months", "1052 207 19 207 19109 4223",
      "1199 223 22 223 23951 4447" },
    { "нещо на Български", "1603 6476 620 91754",
      "4136 2418 355 1857 8211 83377 76004 4313" },
    { "Cửa Việt", "34 32555 242 64 23708 32555 216 83",
      "37 70712 67 19239 96272" },
    { "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
      "17464 11 320 6 436 0 1724 418 340 33701 210 3025 19017 612 9407 2681 "
      "16 18 16 19 16 20 16 1398 68940 239",
      "19923 14 383 98513 3 1730 477 440 53769 226 4054 11458 445 42123 1472 "
      "9049 19453 19 954 9596" },
    { "foo();\n\n", NULL, "40897 8517" }, { "a.\nb", NULL, "67 603 68" },
    { "x = 1;\r\ny", NULL, "90 438 223 19 29 204 201 91" },
    { "don't stop", NULL, "20385 1664 6409" },
    { "#include <stdio.h>\nint main(void) { return 0; }\n", NULL,
      "6201 818 21968 5196 1018 650 1840 40374 11 680 1354 223 18 29 1554" },
    { "<｜User｜>Hi<｜Assistant｜>", NULL, "128803 23166 128804" },
    { "...\n\n\nend  ", NULL, "3108 201 523 262" },
    { " \n", NULL, "539" }, { "  \n\n  x", NULL, "6776 223 1527" },
    { "ひらがなカタカナ漢字", NULL,
      "40259 4970 2936 2942 15961 11767 15961 27071 29069 2024" }
};

static void must_encode(const Tokenizer *t, const char *text,
                        const char *wanted)
{
    IdList ids = { NULL, 0, 0 };
    Text found = { NULL, 0, 0, false };
    Error err;
    must(tokenizer_encode(t, text, strlen(text), &ids, &err), &err);
    for (size_t i = 0; i < ids.n; i++)
        text_printf(&found, "%s%ld", i ? " " : "", (long)ids.ids[i]);
    if (strcmp(found.text ? found.text : "", wanted) != 0)
        fail_msg("%s: %s instead of %s", text, found.text, wanted);
    text_free(&found);
    ids_free(&ids);
}

/* Traps 44 and 46 are among these: digits in threes or one by one, newlines
 * with what stands before them or alone. */
static void known_v3(void **state)
{
    Tokenizer *t = open_published("v3");
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        must_encode(t, known[i].text, known[i].v3);
    assert_int_equal(tokenizer_size(t), 128815); /* trap 39 */
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_true(tokenizer_add_bos(t));
    assert_int_equal(tokenizer_id(t, "<｜tool▁sep｜>"), 128814);
    assert_int_equal(tokenizer_template(t), TEMPLATE_V3);
    tokenizer_close(t);
}

static void known_v2(void **state)
{
    Tokenizer *t = open_published("v2");
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].v2)
            must_encode(t, known[i].text, known[i].v2);
    }
    assert_int_equal(tokenizer_bos(t), -1); /* there is no config beside it */
    assert_false(tokenizer_add_bos(t));
    tokenizer_close(t);
}

/* Added tokens: the longest of the leftmost, those of the raw text before
 * those of the normalised one, wherever these begin. */
static void added_tokens(void **state)
{
    Tokenizer *t = open_tokenizer(DATA "v3");
    char wanted[100];
    long xx = tokenizer_id(t, "<<x>>"), ll = tokenizer_id(t, "<<");
    long ry = tokenizer_id(t, ">>y");
    (void)state;
    snprintf(wanted, sizeof wanted, "%ld", xx);
    must_encode(t, "<<x>>", wanted);
    snprintf(wanted, sizeof wanted, "%ld %ld", ll, xx);
    must_encode(t, "<<<<x>>", wanted);
    snprintf(wanted, sizeof wanted, "%ld %ld", (long)tokenizer_id(t, "z"),
             xx); /* z<<x is longer, further left and comes too late */
    must_encode(t, "z<<x>>", wanted);
    snprintf(wanted, sizeof wanted, "%ld %ld", xx, ry);
    must_encode(t, "<<x>>>>y", wanted);
    must_encode(t, "", "");
    tokenizer_close(t);
}

/* Trap 43: <｜User｜> is not special, <｜begin▁of▁sentence｜> is. */
static void special_tokens(void **state)
{
    static const char text[] = "<｜begin▁of▁sentence｜><｜User｜>Hi<|EOT|>";
    Tokenizer *t = open_tokenizer(DATA "v3");
    IdList ids = { NULL, 0, 0 };
    Error err;
    const char *bytes;
    size_t n;
    (void)state;
    must(tokenizer_encode(t, text, strlen(text), &ids, &err), &err);
    must_decode(t, &ids, false, text, strlen(text), "all");
    must_decode(t, &ids, true, "<｜User｜>Hi", strlen("<｜User｜>Hi"), "plain");
    assert_false(tokenizer_decode(t, -1, false, &bytes, &n));
    assert_false(tokenizer_decode(t, (int32_t)tokenizer_size(t), false,
                                  &bytes, &n));
    ids_free(&ids);
    tokenizer_close(t);
}

/* Trap 49: where the vocabulary lacks the bytes that UTF-8 never has, their
 * symbols may be added tokens, and a letter ü in the text is one. */
static void odd_letters(void **state)
{
    Tokenizer *t = open_tokenizer(DATA "v2");
    IdList ids = { NULL, 0, 0 };
    Error err;
    (void)state;
    must(tokenizer_encode(t, "Führer", strlen("Führer"), &ids, &err), &err);
    assert_int_equal(ids.ids[1], tokenizer_id(t, "ü"));
    must_decode(t, &ids, false, "Führer", strlen("Führer"), "ü");
    ids_free(&ids);
    tokenizer_close(t);
}

static size_t random_text(Random *r, char *out, size_t n)
{
    static const char *const likely[] = {
        " ", "\n", "\r\n", "e", "the ", "12", ". ", "<<", ">>", "x", "<｜",
        "User｜>", "中", "ü", "\xcc\x81", "\xf0\x9f\x98\x81", "\xe3\x80\x80"
    };
    size_t used = 0;
    while (used + 20 < n) {
        size_t i = random_between(r, 0, 30);
        if (i < sizeof likely / sizeof likely[0]) {
            memcpy(out + used, likely[i], strlen(likely[i]));
            used += strlen(likely[i]);
            continue;
        }
        uint32_t code = (uint32_t)random_between(r, 0, i & 1 ? 0x10ffff
                                                             : 0x2fff);
        if (code < 0xd800 || code >= 0xe000)
            used += utf8_encode(code, out + used);
    }
    return used;
}

static void round_trip(const char *dir)
{
    Tokenizer *t = open_tokenizer(dir);
    Random r = test_random();
    for (int i = 0; i < 1000; i++) {
        char text[400];
        IdList ids = { NULL, 0, 0 };
        Error err;
        size_t n = random_text(&r, text, random_between(&r, 0, sizeof text));
        must(tokenizer_encode(t, text, n, &ids, &err), &err);
        must_decode(t, &ids, false, text, n, dir);
        ids_free(&ids);
    }
    tokenizer_close(t);
}

/* decode(encode(x)) = x for every valid x. */
static void round_trips(void **state)
{
    (void)state;
    round_trip(DATA "v3");
    round_trip(DATA "v2");
}

static void invalid_text(void **state)
{
    Tokenizer *t = open_tokenizer(DATA "v3");
    IdList ids = { NULL, 0, 0 };
    Error err;
    (void)state;
    must(ids_add(&ids, 5, &err), &err);
    must_fail(tokenizer_encode(t, "Hello, \xed\xa0\x80", 10, &ids, &err),
              &err, "text: wanted UTF-8, found byte 0xed at offset 7");
    assert_int_equal(ids.n, 1); /* nothing was appended */
    must(tokenizer_encode(t, "\0a", 2, &ids, &err), &err);
    assert_true(ids.n >= 2);    /* a zero byte is a byte */
    ids_free(&ids);
    tokenizer_close(t);
}

/* Two at once, and encoding in between, do not know of each other. */
static void no_state(void **state)
{
    Tokenizer *a = open_tokenizer(DATA "v3"), *b = open_tokenizer(DATA "v2");
    IdList first = { NULL, 0, 0 }, again = { NULL, 0, 0 };
    Error err;
    (void)state;
    must(tokenizer_encode(a, "the castle", 10, &first, &err), &err);
    must(tokenizer_encode(b, "the castle", 10, &again, &err), &err);
    again.n = 0;
    must(tokenizer_encode(a, "the castle", 10, &again, &err), &err);
    assert_int_equal(first.n, again.n);
    assert_memory_equal(first.ids, again.ids, first.n * sizeof *first.ids);
    ids_free(&first);
    ids_free(&again);
    tokenizer_close(a);
    tokenizer_close(b);
}

/* Streamed output ------------------------------------------------------- */

static void stream(const char *bytes, size_t n, size_t step,
                   const char *wanted)
{
    Utf8Stream s = { { 0 }, 0 };
    Text out = { NULL, 0, 0, false };
    for (size_t i = 0; i < n; i += step) {
        utf8_stream(&s, bytes + i, n - i < step ? n - i : step, false, &out);
        assert_int_equal(utf8_valid(out.text ? out.text : "", out.length),
                         out.length);
    }
    utf8_stream(&s, NULL, 0, true, &out);
    if (strcmp(out.text ? out.text : "", wanted) != 0)
        fail_msg("step %zu: %s instead of %s", step, out.text, wanted);
    assert_int_equal(s.n, 0);
    text_free(&out);
}

/* Trap 50. Wanted: what Python's bytes.decode("utf-8", "replace") gives. */
static void streamed_utf8(void **state)
{
#define R "\xef\xbf\xbd"
    static const struct {
        const char *bytes, *wanted;
    } cases[] = {
        { "", "" }, { "abc", "abc" }, { "aé中😁z", "aé中😁z" },
        { "\xe4\xb8", R }, { "a\xf0\x9f\x98", "a" R }, { "\xff", R },
        { "\xe4\xb8z", R "z" }, { "\xe4\xe4\xb8\xad", R "中" },
        { "\xf0\x9f\x98\xe4\xb8\xad", R "中" }, { "\xc0\x80", R R },
        { "\xed\xa0\x80", R R R }, { "\xf4\x90\x80\x80", R R R R },
        { "\x80\x80\xc3", R R R }, { "\xf0\x80\x80\x41", R R R "A" },
        { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", R R R R "A" }
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t step = 1; step < 6; step++)
            stream(cases[i].bytes, strlen(cases[i].bytes), step,
                   cases[i].wanted);
    }
}

/* Files ------------------------------------------------------------------ */

static const char plain[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,"
    "\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"single_word\":false,"
    "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"
    "\"special\":true}],\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
    "\"trim_offsets\":true,\"use_regex\":false},\"post_processor\":null,"
    "\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3},"
    "\"merges\":[\"a b\"]}}";

/* The text with one occurrence of `old` replaced; without it, itself. */
static char *replaced(const char *text, const char *old, const char *new)
{
    const char *at = old ? strstr(text, old) : NULL;
    size_t n = strlen(text);
    char *out = test_alloc(n + (new ? strlen(new) : 0) + 1, 1);
    if (old && !at)
        fail_msg("%s is not in the text", old);
    if (!at)
        return strcpy(out, text);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
    return out;
}

/* dir/name with this text, or no such file. */
static void set_file(const char *dir, const char *name, const char *text)
{
    Error err;
    char *path = path_join(dir, name, &err);
    if (text)
        must(file_write(path, true, text, strlen(text), &err), &err);
    else
        remove(path);
    free(path);
}

/* A directory with these files; the next call has the same one. */
static const char *model_dir(const char *tokenizer, const char *config)
{
    const char *dir = scratch("tokenizer");
    Error err;
    must(make_dir(dir, &err), &err);
    set_file(dir, "tokenizer.json", tokenizer);
    set_file(dir, "tokenizer_config.json", config);
    return dir;
}

/* Opening must fail with "DIR/" and this message. */
static void must_refuse(const char *dir, const char *message)
{
    Error err;
    char wanted[1500];
    Tokenizer *t = tokenizer_open(dir, &err);
    snprintf(wanted, sizeof wanted, "%s/%s", dir, message);
    if (t)
        fail_msg("accepted, wanted: %s", wanted);
    assert_string_equal(err.text, wanted);
}

#define SPLIT(regex) "\"pre_tokenizer\":{\"type\":\"Sequence\"," \
    "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":" regex "," \
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":"
#define BYTE_LEVEL "\"pre_tokenizer\":{\"type\":"

/* One change each, and what is said about it. */
static const struct {
    const char *old, *new, *message;
} bad[] = {
    { "\"padding\":null", "\"padding\":{\"strategy\":\"Fixed\"}",
      "padding: wanted it off, found an object" },
    { "\"truncation\":null", "\"truncation\":{}",
      "truncation: wanted it off, found an object" },
    { "\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}",
      "normalizer: wanted none, found \"NFC\"" },
    { "\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\","
      "\"normalizers\":[{\"type\":\"Lowercase\"}]}",
      "normalizer: wanted none, found \"Sequence\"" },
    { "\"use_regex\":false", "\"use_regex\":true",
      "ByteLevel.use_regex: wanted false, found true" },
    { ",\"use_regex\":false", "",
      "ByteLevel.use_regex: wanted false, found nothing" },
    { "\"add_prefix_space\":false", "\"add_prefix_space\":true",
      "add_prefix_space: wanted it off, found true" },
    { BYTE_LEVEL "\"ByteLevel\"", BYTE_LEVEL "\"Metaspace\"",
      "pre_tokenizer.type: wanted Split, Digits or ByteLevel, found "
      "\"Metaspace\"" },
    { BYTE_LEVEL "\"ByteLevel\"", BYTE_LEVEL "\"Digits\"",
      "pre_tokenizer: wanted ByteLevel last, found \"Digits\"" },
    { BYTE_LEVEL, "\"pre_tokenizer\":{\"individual_digits\":1,\"type\":"
      "\"Digits\",\"was\":",
      "Digits.individual_digits: wanted true or false, found 1" },
    { "\"pre_tokenizer\":{", "\"pre_tokenizer\":null,\"was\":{",
      "pre_tokenizer: wanted an object, found null" },
    { BYTE_LEVEL "\"ByteLevel\"", BYTE_LEVEL "\"Split\",\"pattern\":"
      "{\"String\":\"x\"},\"behavior\":\"Isolated\"",
      "Split.pattern: wanted a Regex, found an object" },
    { BYTE_LEVEL "\"ByteLevel\"", BYTE_LEVEL "\"Split\",\"pattern\":"
      "{\"Regex\":\"x\"},\"behavior\":\"Removed\"",
      "Split.behavior: wanted \"Isolated\", found \"Removed\"" },
    { BYTE_LEVEL "\"ByteLevel\"", BYTE_LEVEL "\"Split\",\"pattern\":"
      "{\"Regex\":\"[x]\"},\"behavior\":\"Isolated\",\"invert\":true",
      "invert: wanted it off, found true" },
    { BYTE_LEVEL "\"ByteLevel\"", BYTE_LEVEL "\"Split\",\"pattern\":"
      "{\"Regex\":\"\\\\p{L}+\\n\"},\"behavior\":\"Isolated\"",
      "Split.pattern: wanted a regular expression that DeepSeek's "
      "tokenizers use, found \\p{L}+?" },
    { "\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":null",
      "decoder: wanted ByteLevel, found null" },
    { "\"decoder\":{\"type\":\"ByteLevel\"}",
      "\"decoder\":{\"type\":\"Metaspace\"}",
      "decoder: wanted ByteLevel, found \"Metaspace\"" },
    { "\"decoder\":{\"type\":\"ByteLevel\"}",
      "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[]}",
      "decoder: wanted ByteLevel, found \"Sequence\"" },
    { "\"post_processor\":null", "\"post_processor\":{\"type\":\"Bert\"}",
      "post_processor.type: wanted ByteLevel or TemplateProcessing, found "
      "\"Bert\"" },
    { "\"post_processor\":null", "\"post_processor\":{\"type\":"
      "\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},"
      "{\"SpecialToken\":{\"id\":\"<s>\"}}]}",
      "post_processor.single: wanted at most one token, before the text, "
      "found an array" },
    { "\"post_processor\":null", "\"post_processor\":{\"type\":"
      "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<b>\"}"
      "},{\"Sequence\":{\"id\":\"A\"}}]}",
      "post_processor: wanted a token, found \"<b>\"" },
    { "\"post_processor\":null", "\"post_processor\":{\"type\":"
      "\"TemplateProcessing\"}", "single: wanted an array, found nothing" },
    { "\"post_processor\":null", "\"post_processor\":{\"type\":"
      "\"Sequence\",\"processors\":[{\"type\":\"Bert\"}]}",
      "post_processor.type: wanted ByteLevel or TemplateProcessing, found "
      "\"Bert\"" },
    { "\"type\":\"BPE\"", "\"type\":\"Unigram\"",
      "model.type: wanted \"BPE\", found \"Unigram\"" },
    { "\"model\":{", "\"model\":[],\"was\":{",
      "model: wanted an object, found an array" },
    { "\"dropout\":null", "\"dropout\":0.1",
      "dropout: wanted it off, found 0.1" },
    { "\"dropout\":null", "\"ignore_merges\":true",
      "ignore_merges: wanted it off, found true" },
    { "\"dropout\":null", "\"byte_fallback\":true",
      "byte_fallback: wanted it off, found true" },
    { "\"dropout\":null", "\"continuing_subword_prefix\":\"##\"",
      "continuing_subword_prefix: wanted it off, found \"##\"" },
    { "\"dropout\":null", "\"end_of_word_suffix\":\"</w>\"",
      "end_of_word_suffix: wanted it off, found \"</w>\"" },
    { "\"vocab\":{", "\"vocab\":[],\"was\":{",
      "vocab: wanted an object, found an array" },
    { "\"b\":1", "\"b\":-1",
      "\"b\": wanted an id from 0 to 4194302, found -1" },
    { "\"b\":1", "\"b\":1.5",
      "\"b\": wanted an id from 0 to 4194302, found 1.5" },
    { "\"b\":1", "\"b\":99999999999999999999",
      "\"b\": wanted an id from 0 to 4194302, found 99999999999999999999" },
    { "\"b\":1", "\"b\":4194303",
      "\"b\": wanted an id from 0 to 4194302, found 4194303" },
    { "\"b\":1", "\"b\":\"1\"",
      "\"b\": wanted an id from 0 to 4194302, found \"1\"" },
    { "\"b\":1", "\"b\":0",
      "vocab: token b: its id 0 belongs to another" },
    { "[\"a b\"]", "{}", "merges: wanted an array, found an object" },
    { "\"a b\"", "\"a c\"", "merges: wanted tokens of the vocabulary, found "
      "a and c" },
    { "\"a b\"", "\"b a\"", "merges: wanted tokens of the vocabulary, found "
      "b and a" },
    { "\"a b\"", "\"<s> a\"", "merges: wanted tokens of the vocabulary, "
      "found <s> and a" },
    { "\"a b\"", "\"ab\"", "merges: wanted two tokens, found \"ab\"" },
    { "\"a b\"", "\"a b b\"", "merges: wanted two tokens, found \"a b b\"" },
    { "\"a b\"", "[\"a\"]", "merges: wanted two tokens, found an array" },
    { "\"a b\"", "[\"a\",\"b\",\"b\"]",
      "merges: wanted two tokens, found an array" },
    { "\"a b\"", "[\"a\",1]", "merges: wanted two tokens, found an array" },
    { "\"a b\"", "[1,\"b\"]", "merges: wanted two tokens, found an array" },
    { "\"a b\"", "1", "merges: wanted two tokens, found 1" },
    { "\"a b\"", "\"a b\",[\"a\",\"b\"]",
      "merges: merge 1 is that of merge 0" },
    { "\"added_tokens\":[", "\"added_tokens\":null,\"was\":[",
      "added_tokens: wanted an array, found null" },
    { "\"content\":\"<s>\"", "\"content\":\"\"",
      "added_tokens.content: wanted a string, found \"\"" },
    { "\"content\":\"<s>\"", "\"content\":5",
      "added_tokens.content: wanted a string, found 5" },
    { "\"id\":4,", "", "added_tokens.id: wanted 4 for \"<s>\", found nothing" },
    { "\"id\":4", "\"id\":30",
      "added_tokens.id: wanted 4 for \"<s>\", found 30" },
    { "\"id\":4", "\"id\":-4",
      "added_tokens.id: wanted 4 for \"<s>\", found -4" },
    { "\"content\":\"<s>\"", "\"content\":\"b\"",
      "added_tokens.id: wanted 1 for \"b\", found 4" },
    { "\"lstrip\":false", "\"lstrip\":true",
      "lstrip: wanted it off, found true" },
    { "\"rstrip\":false", "\"rstrip\":true",
      "rstrip: wanted it off, found true" },
    { "\"single_word\":false", "\"single_word\":true",
      "single_word: wanted it off, found true" },
    { "\"special\":true", "\"special\":null",
      "special: wanted true or false, found null" },
    { ",\"normalized\":false", "",
      "normalized: wanted true or false, found nothing" },
    { "\"special\":true}", "\"special\":true},{\"id\":4,\"content\":\"<s>\","
      "\"normalized\":false,\"special\":true}",
      "added_tokens: <s> is there twice" },
    { "\"a\":0", "\"a\":0,\"a\":7",
      NULL }, /* json.h's message: tested there */
    { "\"version\"", "version", NULL }
};

static void malformed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char *text = replaced(plain, bad[i].old, bad[i].new), message[600];
        const char *dir = model_dir(text, NULL);
        Error err;
        snprintf(message, sizeof message, "tokenizer.json: %s",
                 bad[i].message ? bad[i].message : "");
        if (bad[i].message)
            must_refuse(dir, message);
        else
            assert_null(tokenizer_open(dir, &err));
        free(text);
    }
}

/* A rule that is not known, in a Sequence, and one behind ByteLevel. */
static void sequences(void **state)
{
    char *text = replaced(plain, "\"pre_tokenizer\":{\"type\":",
                          SPLIT("{\"Regex\":\"[x]\"}"));
    char *closed = replaced(text, "\"use_regex\":false}",
                            "\"use_regex\":false}]}");
    char *after = replaced(text, "\"use_regex\":false}",
                           "\"use_regex\":false},{\"type\":\"Digits\"}]}");
    char *nested = replaced(closed, "{\"type\":\"Split\"",
                            "{\"type\":\"Sequence\",\"pretokenizers\":[]},"
                            "{\"type\":\"Split\"");
    (void)state;
    tokenizer_close(open_tokenizer(model_dir(closed, NULL)));
    tokenizer_close(open_tokenizer(model_dir(nested, NULL)));
    must_refuse(model_dir(after, NULL), "tokenizer.json: pre_tokenizer: "
                "wanted ByteLevel last, found an object");
    free(text);
    free(closed);
    free(after);
    free(nested);
}

static void too_many_rules(void **state)
{
    Text rules = {0};
    (void)state;
    text_printf(&rules, "\"pre_tokenizer\":{\"type\":\"Sequence\","
                "\"pretokenizers\":[");
    for (int i = 0; i < 17; i++)
        text_printf(&rules, "{\"type\":\"Digits\"},");
    text_printf(&rules, "{}]},\"was\":{\"type\":");
    char *text = replaced(plain, BYTE_LEVEL, rules.text);
    must_refuse(model_dir(text, NULL), "tokenizer.json: Digits: wanted at "
                "most 16 rules, found more");
    free(text);
    text_free(&rules);
}

static void long_added_token(void **state)
{
    enum { N = 65536 };
    Text content = {0};
    Error err;
    (void)state;
    text_printf(&content, "\"content\":\"%0*d\"", N, 0);
    char *text = replaced(plain, "\"content\":\"<s>\"", content.text);
    assert_null(tokenizer_open(model_dir(text, NULL), &err));
    assert_non_null(strstr(err.text, "wanted an id below 4194303 and at most "
                           "65535 bytes, found 4 and 65536"));
    free(text);
    text_free(&content);
}

/* As many as no memory holds. */
static void too_many_ids(void **state)
{
    IdList full = {NULL, SIZE_MAX / 8, SIZE_MAX / 8};
    char wanted[60];
    Error err;
    (void)state;
    snprintf(wanted, sizeof wanted, "too many ids: %zu", full.n);
    must_fail(ids_add(&full, 1, &err), &err, wanted);
}

/* What is odd and harmless. */
static void accepted(void **state)
{
    static const struct {
        const char *old, *new;
    } good[] = {
        { NULL, NULL }, { "\"a b\"", "[\"a\",\"b\"]" },
        { "\"b\":1", "\"b\":1.0" }, { "\"b\":1", "\"b\":1e0" },
        { "\"dropout\":null", "\"dropout\":0.0" },
        { "\"dropout\":null", "\"byte_fallback\":false,\"fuse_unk\":true,"
          "\"continuing_subword_prefix\":\"\",\"ignore_merges\":false" },
        { "\"unk_token\":null", "\"unk_token\":\"a\"" },
        { "\"a\":0", "\"\\u0061\":0" }, { "\"a b\"", "\"\\u0061 b\"" },
        { "\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\","
          "\"normalizers\":[]}" },
        { "\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{\"type\":"
          "\"Sequence\",\"decoders\":[{\"type\":\"ByteLevel\"}]}" },
        { "\"post_processor\":null", "\"post_processor\":{\"type\":"
          "\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"}]}" },
        { "\"version\"", "\"unknown\":[{}],\"version\"" }
    };
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char *text = replaced(plain, good[i].old, good[i].new);
        Tokenizer *t = open_tokenizer(model_dir(text, NULL));
        must_encode(t, "aba <s>b", "2 0 3 4 1");
        tokenizer_close(t);
        free(text);
    }
}

/* A vocabulary without some bytes serves texts that do not need them. */
static void missing_bytes(void **state)
{
    Tokenizer *t = open_tokenizer(model_dir(plain, NULL));
    IdList ids = { NULL, 0, 0 };
    Error err;
    (void)state;
    must_fail(tokenizer_encode(t, "ab<s>c", 6, &ids, &err), &err,
              "the vocabulary has no token for byte 0x63");
    assert_int_equal(ids.n, 0); /* what came before it is taken back */
    must_fail(tokenizer_encode(t, "abc<s>", 6, &ids, &err), &err,
              "the vocabulary has no token for byte 0x63");
    assert_int_equal(ids.n, 0);
    ids_free(&ids);
    tokenizer_close(t);
}

/* tokenizer_config.json -------------------------------------------------- */

static void check_config(const char *config, int32_t bos, int32_t eos,
                         bool add_bos)
{
    Tokenizer *t = open_tokenizer(model_dir(plain, config));
    assert_int_equal(tokenizer_bos(t), bos);
    assert_int_equal(tokenizer_eos(t), eos);
    assert_int_equal(tokenizer_add_bos(t), add_bos);
    assert_int_equal(tokenizer_template(t), TEMPLATE_NONE);
    tokenizer_close(t);
}

static void configs(void **state)
{
    (void)state;
    check_config(NULL, -1, -1, false);
    check_config("{}", -1, -1, false);
    check_config("{\"bos_token\":null,\"eos_token\":null,"
                 "\"add_bos_token\":null}", -1, -1, false);
    check_config("{\"bos_token\":\"<s>\",\"add_bos_token\":true}", 4, -1,
                 true);
    check_config("{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"b\","
                 "\"add_bos_token\":false,\"add_eos_token\":false}", 4, 1,
                 false);
    check_config("{\"chat_template\":[{\"name\":\"rag\",\"template\":5}]}",
                 -1, -1, false);
}

static void bad_configs(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        { "[]", "it all: wanted an object, found an array" },
        { "{\"bos_token\":\"<b>\"}",
          "bos_token: wanted a token of tokenizer.json, found \"<b>\"" },
        { "{\"eos_token\":7}",
          "eos_token: wanted a token of tokenizer.json, found 7" },
        { "{\"eos_token\":{\"content\":\"<e>\"}}",
          "eos_token: wanted a token of tokenizer.json, found \"<e>\"" },
        { "{\"add_bos_token\":true}", "bos_token: wanted a token, for "
          "add_bos_token is true, found nothing" },
        { "{\"add_bos_token\":1}",
          "add_bos_token: wanted true or false, found 1" },
        { "{\"add_eos_token\":true}",
          "add_eos_token: wanted it off, found true" },
        { "{\"chat_template\":5}",
          "chat_template: wanted a string, found 5" }
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char message[300];
        snprintf(message, sizeof message, "tokenizer_config.json: %s",
                 cases[i].message);
        must_refuse(model_dir(plain, cases[i].text), message);
    }
}

/* Files saved by some programs let tokenizer.json add BOS. */
static void bos_by_post_processor(void **state)
{
    char *text = replaced(plain, "\"post_processor\":null",
        "\"post_processor\":{\"type\":\"Sequence\",\"processors\":["
        "{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\","
        "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]}]}");
    Tokenizer *t = open_tokenizer(model_dir(text, NULL));
    (void)state;
    assert_int_equal(tokenizer_bos(t), 4);
    assert_true(tokenizer_add_bos(t));
    tokenizer_close(t);
    must_refuse(model_dir(text, "{\"bos_token\":\"a\"}"),
                "tokenizer_config.json: bos_token: wanted the token of "
                "post_processor, found \"a\"");
    free(text);
}

static void missing_files(void **state)
{
    const char *dir = model_dir(NULL, "{}");
    Error err;
    (void)state;
    assert_null(tokenizer_open(dir, &err));
    assert_non_null(strstr(err.text, "tokenizer.json"));
    assert_null(tokenizer_open("tests/data/no such directory", &err));
    assert_non_null(strstr(err.text, "tokenizer.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_v3),
        cmocka_unit_test(tiny_v2),
        cmocka_unit_test(published_v3),
        cmocka_unit_test(published_v2),
        cmocka_unit_test(known_v3),
        cmocka_unit_test(known_v2),
        cmocka_unit_test(added_tokens),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(odd_letters),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(invalid_text),
        cmocka_unit_test(no_state),
        cmocka_unit_test(streamed_utf8),
        cmocka_unit_test(malformed),
        cmocka_unit_test(sequences),
        cmocka_unit_test(too_many_rules),
        cmocka_unit_test(long_added_token),
        cmocka_unit_test(too_many_ids),
        cmocka_unit_test(accepted),
        cmocka_unit_test(missing_bytes),
        cmocka_unit_test(configs),
        cmocka_unit_test(bad_configs),
        cmocka_unit_test(bos_by_post_processor),
        cmocka_unit_test(missing_files)
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
