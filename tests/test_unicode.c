/* Every code point's classes against the ranges that the Hugging Face
 * tokenizers' regular expressions match (tests/data/tokenizer/
 * unicode_classes.json, found by asking them about each code point), and
 * UTF-8 against Unicode's own rules: table 3-7 and section 3.9 of the standard
 * for what is ill-formed and how long its maximal subparts are. */
#include "vectors.h"

#include "base/unicode.h"

static const struct {
    const char *key;
    unsigned class;
} classes[] = {
    { "L", UNICODE_L }, { "M", UNICODE_M }, { "N", UNICODE_N },
    { "P", UNICODE_P }, { "S", UNICODE_S }, { "Nd", UNICODE_ND },
    { "space", UNICODE_SPACE }
};

static void mark(unsigned char *table, const Json *json,
                 const JsonNode *ranges, unsigned class)
{
    const JsonNode *range = json_first(json, ranges);
    for (; range; range = json_next(json, ranges, range)) {
        const JsonNode *low = json_first(json, range);
        int64_t from, to;
        assert_true(json_integer(json, low, 0, 0x10ffff, &from));
        assert_true(json_integer(json, json_next(json, range, low), from,
                                 0x10ffff, &to));
        for (; from <= to; from++)
            table[from] = (unsigned char)(table[from] | class);
    }
}

static void every_code_point(void **state)
{
    unsigned char *table = test_alloc(0x110000, 1);
    File file;
    Json json;
    Error err;
    const char *path = "tests/data/tokenizer/unicode_classes.json";
    (void)state;
    must(file_open(&file, path, &err), &err);
    must(json_parse(&json, path, (const char *)file.data, file.size, &err),
         &err);
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        const JsonNode *entry = json_get(&json, json.nodes, classes[i].key);
        mark(table, &json, json_get(&json, entry, "rust_0_23_2"),
             classes[i].class);
    }
    for (uint32_t code = 0; code < 0x110000; code++) {
        if (unicode_class(code) != table[code])
            fail_msg("U+%04lX: %u is not %u", (unsigned long)code,
                     unicode_class(code), table[code]);
    }
    json_free(&json);
    file_close(&file);
    free(table);
}

/* Trap 48: what is white space is Unicode's to say. */
static void white_space(void **state)
{
    int n = 0;
    (void)state;
    for (uint32_t code = 0; code < 0x110000; code++)
        n += (unicode_class(code) & UNICODE_SPACE) != 0;
    assert_int_equal(n, 25);
    assert_true(unicode_class(0x85) & UNICODE_SPACE);
    assert_true(unicode_class(0x3000) & UNICODE_SPACE);
    assert_false(unicode_class(0xfeff) & UNICODE_SPACE);
    assert_false(unicode_class(0x200b) & UNICODE_SPACE);
}

static void utf8_round_trip(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 0x110000; code++) {
        char bytes[4];
        uint32_t back = 0, next;
        size_t n = utf8_encode(code, bytes);
        int k = utf8_decode(bytes, n, &back);
        if (code >= 0xd800 && code < 0xe000) {
            assert_int_equal(k, -1); /* a surrogate is no character */
            continue;
        }
        assert_int_equal(k, n);
        assert_int_equal(back, code);
        const char *s = bytes;
        next = utf8_next(&s);
        assert_int_equal(next, code);
        assert_ptr_equal(s, bytes + n);
        for (size_t cut = 1; cut < n; cut++)
            assert_int_equal(utf8_decode(bytes, cut, &back), 0);
    }
}

static void utf8_ill_formed(void **state)
{
    static const struct {
        const char *bytes;
        int result;
    } cases[] = {
        { "\x80", -1 }, { "\xbf", -1 }, { "\xc0\x80", -1 },
        { "\xc1\xbf", -1 }, { "\xc2\x20", -1 }, { "\xc2\xc2", -1 },
        { "\xe0\x9f\xbf", -1 }, { "\xe0\xa0\x20", -2 },
        { "\xed\xa0\x80", -1 }, { "\xed\x9f\xc0", -2 },
        { "\xef\xbf\x20", -2 }, { "\xf0\x8f\xbf\xbf", -1 },
        { "\xf0\x90\x80\x20", -3 }, { "\xf1\x80\x20", -2 },
        { "\xf4\x90\x80\x80", -1 }, { "\xf5\x80\x80\x80", -1 },
        { "\xff", -1 }, { "\xc2", 0 }, { "\xe1\x80", 0 },
        { "\xf4\x8f\xbf", 0 }, { "\xf0", 0 }
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t code;
        size_t n = strlen(cases[i].bytes);
        if (utf8_decode(cases[i].bytes, n, &code) != cases[i].result)
            fail_msg("case %zu: wanted %d", i, cases[i].result);
        assert_int_equal(utf8_valid(cases[i].bytes, n), 0);
    }
}

/* The offset is that of the first bad byte, wherever it stands between the
 * steps of eight. */
static void utf8_offsets(void **state)
{
    char text[40];
    (void)state;
    for (size_t i = 0; i < sizeof text; i++) {
        memset(text, 'a', sizeof text);
        assert_int_equal(utf8_valid(text, sizeof text), sizeof text);
        text[i] = '\xff';
        assert_int_equal(utf8_valid(text, sizeof text), i);
        text[i] = '\xc3'; /* a character begun and not ended */
        assert_int_equal(utf8_valid(text, sizeof text), i);
    }
    assert_int_equal(utf8_valid(text, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point),
        cmocka_unit_test(white_space),
        cmocka_unit_test(utf8_round_trip),
        cmocka_unit_test(utf8_ill_formed),
        cmocka_unit_test(utf8_offsets)
    };
    return cmocka_run_group_tests_name("unicode", tests, NULL, NULL);
}
