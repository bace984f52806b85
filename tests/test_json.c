/* RFC 8259, read strictly: what is refused with which words, what is accepted,
 * and what comes out.
 *
 * The decimal numbers that are hard to round are the classical ones: halves
 * between two doubles (2^53 + 1, 1 + 2^-53 written out), the greatest subnormal
 * (2.2250738585072011e-308, on which PHP and Java once hung), the least double
 * and half of it. Ill-formed UTF-8 follows table 3-7 of the Unicode standard,
 * its replacement Unicode's section 3.9 ("U+FFFD substitution of maximal
 * subparts"). */
#include "base/json.h"
#include "base/random.h"

#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include <cmocka.h>

/* Parses a copy that has exactly n bytes, so that a sanitizer or valgrind sees
 * the first byte read beyond it. */
static int parse_n(Json *json, const char *text, size_t n, Error *err)
{
    char *copy = malloc(n > 0 ? n : 1);
    assert_non_null(copy);
    memcpy(copy, text, n);
    return json_parse(json, "f", copy, n, err);
}

static void parse(Json *json, const char *text)
{
    Error err;
    if (parse_n(json, text, strlen(text), &err) != 0)
        fail_msg("%s: %s", text, err.text);
}

static void done(Json *json)
{
    free((char *)(uintptr_t)json->text);
    json_free(json);
}

/* Text, and its message without the file's name. */
static const char *const refused[][2] = {
    {"",
     "line 1, column 1: wanted a value, found the end"},
    {"  \n ",
     "line 2, column 2: wanted a value, found the end"},
    {"nul",
     "line 1, column 1: wanted a value, found n"},
    {"nulL",
     "line 1, column 1: wanted a value, found n"},
    {"True",
     "line 1, column 1: wanted a value, found T"},
    {"truee",
     "line 1, column 5: wanted the end, found e"},
    {"'a'",
     "line 1, column 1: wanted a value, found '"},
    {"[",
     "line 1, column 2: wanted a value, found the end"},
    {"[1",
     "line 1, column 3: wanted a comma or ], found the end"},
    {"[1,",
     "line 1, column 4: wanted a value, found the end"},
    {"[1 2]",
     "line 1, column 4: wanted a comma or ], found 2"},
    {"[1,]",
     "line 1, column 4: wanted a value, found ]"},
    {"[,1]",
     "line 1, column 2: wanted a value, found ,"},
    {"[1}",
     "line 1, column 3: wanted a comma or ], found }"},
    {"{",
     "line 1, column 2: wanted a key in quotes, found the end"},
    {"{1:2}",
     "line 1, column 2: wanted a key in quotes, found 1"},
    {"{\"a\"}",
     "line 1, column 5: wanted a colon, found }"},
    {"{\"a\" 1}",
     "line 1, column 6: wanted a colon, found 1"},
    {"{\"a\":}",
     "line 1, column 6: wanted a value, found }"},
    {"{\"a\":1",
     "line 1, column 7: wanted a comma or }, found the end"},
    {"{\"a\":1,}",
     "line 1, column 8: wanted a key in quotes, found }"},
    {"{\"a\":1 \"b\":2}",
     "line 1, column 8: wanted a comma or }, found \""},
    {"{,}",
     "line 1, column 2: wanted a key in quotes, found ,"},
    {"{\"a\":1]",
     "line 1, column 7: wanted a comma or }, found ]"},
    {"]",
     "line 1, column 1: wanted a value, found ]"},
    {"1 2",
     "line 1, column 3: wanted the end, found 2"},
    {"{}x",
     "line 1, column 3: wanted the end, found x"},
    {"[]]",
     "line 1, column 3: wanted the end, found ]"},
    {"\"",
     "line 1, column 2: wanted the end of the string, found the end"},
    {"\"a",
     "line 1, column 3: wanted the end of the string, found the end"},
    {"\"\\",
     "line 1, column 2: malformed escape"},
    {"\"\\\"",
     "line 1, column 4: wanted the end of the string, found the end"},
    {"\"\\q\"",
     "line 1, column 2: malformed escape"},
    {"\"\\u12\"",
     "line 1, column 2: malformed escape"},
    {"\"\\u12g4\"",
     "line 1, column 2: malformed escape"},
    {"\"\\ud800\"",
     "line 1, column 2: half of a surrogate pair"},
    {"\"\\ud800x\"",
     "line 1, column 2: half of a surrogate pair"},
    {"\"\\ud800\\n\"",
     "line 1, column 2: half of a surrogate pair"},
    {"\"\\ud800\\u0041\"",
     "line 1, column 2: half of a surrogate pair"},
    {"\"\\udc00\"",
     "line 1, column 2: half of a surrogate pair"},
    {"\"\\udc00\\ud800\"",
     "line 1, column 2: half of a surrogate pair"},
    {"\"\\udc00\\udc00\"",
     "line 1, column 2: half of a surrogate pair"},
    {"\"\\U0041\"",
     "line 1, column 2: malformed escape"},
    {"\"\011\"",
     "line 1, column 2: wanted a character or an escape, found byte 0x09"},
    {"\"a\nb\"",
     "line 1, column 3: wanted a character or an escape, found byte 0x0a"},
    {"\"\037\"",
     "line 1, column 2: wanted a character or an escape, found byte 0x1f"},
    {"-",
     "line 1, column 2: wanted a digit, found the end"},
    {"+1",
     "line 1, column 1: wanted a value, found +"},
    {"01",
     "line 1, column 1: a number with a leading zero"},
    {"-01",
     "line 1, column 2: a number with a leading zero"},
    {"00",
     "line 1, column 1: a number with a leading zero"},
    {"1.",
     "line 1, column 3: wanted a digit, found the end"},
    {"1.e5",
     "line 1, column 3: wanted a digit, found e"},
    {".5",
     "line 1, column 1: wanted a value, found ."},
    {"1e",
     "line 1, column 3: wanted a digit, found the end"},
    {"1e+",
     "line 1, column 4: wanted a digit, found the end"},
    {"1e1.5",
     "line 1, column 4: wanted the end, found ."},
    {"0x10",
     "line 1, column 2: wanted the end, found x"},
    {"1_000",
     "line 1, column 2: wanted the end, found _"},
    {"NaN",
     "line 1, column 1: wanted a value, found N"},
    {"Infinity",
     "line 1, column 1: wanted a value, found I"},
    {"-Infinity",
     "line 1, column 2: wanted a digit, found I"},
    {"--1",
     "line 1, column 2: wanted a digit, found -"},
    {"1-2",
     "line 1, column 2: wanted the end, found -"},
    {"Inf",
     "line 1, column 1: wanted a value, found I"},
    {"\"\200\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\300\200\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\301\277\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\303\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\303(\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\340\200\200\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\342\202\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\355\240\200\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\360\200\200\200\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\364\220\200\200\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\365\200\200\200\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\377\"",
     "line 1, column 2: invalid UTF-8"},
    {"\"\360\237\230\"",
     "line 1, column 2: invalid UTF-8"},
    {"\357\273\277{}",
     "line 1, column 1: wanted a value, found byte 0xef"},
    {"\303\251",
     "line 1, column 1: wanted a value, found byte 0xc3"},
    {"// c\n1",
     "line 1, column 1: wanted a value, found /"},
    {"/* c */1",
     "line 1, column 1: wanted a value, found /"},
    {"[1,2,\n 3 // c\n]",
     "line 2, column 4: wanted a comma or ], found /"},
    {"{\"a\":1,\"a\":2}",
     "line 1, column 8: the key \"a\" is there twice"},
    {"{\"a\":1,\"\\u0061\":2}",
     "line 1, column 8: the key \"\\u0061\" is there twice"},
    {"{\"a\":{\"b\":[],\"b\":0}}",
     "line 1, column 14: the key \"b\" is there twice"},
    {"{\"a\\u0000b\":1,\"a\\u0000b\":1}",
     "line 1, column 15: the key \"a\\u0000b\" is there twice"},
    {"{\n  \"\303\251\": 1,\n  \"\303\251\" : oops}",
     "line 3, column 9: wanted a value, found o"},
    {"{a:1}",
     "line 1, column 2: wanted a key in quotes, found a"},
    {"{'a':1}",
     "line 1, column 2: wanted a key in quotes, found '"},
    {"[1,\0132]",
     "line 1, column 4: wanted a value, found byte 0x0b"},
    {"[\"a\"\"b\"]",
     "line 1, column 5: wanted a comma or ], found \""},
    {"{\"a\":1,,\"b\":2}",
     "line 1, column 8: wanted a key in quotes, found ,"},
    {"{\"\":0,\"1\":0,\"2\":0,\"3\":0,\"4\":0,\"5\":0,\"6\":0,\"7\":0,"
     "\"8\":0,\"9\":0,\"\":0}",
     "line 1, column 61: the key \"\" is there twice"},
    {"{\"a\":1}}",
     "line 1, column 8: wanted the end, found }"},
    {"[[[[}",
     "line 1, column 5: wanted a value, found }"},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        Json json;
        Error err;
        const char *text = refused[i][0];
        assert_int_equal(parse_n(&json, text, strlen(text), &err), -1);
        assert_memory_equal(err.text, "f: ", 3);
        assert_string_equal(err.text + 3, refused[i][1]);
        done(&json);
    }
}

static void test_zero_byte(void **state)
{
    (void)state;
    Json json;
    Error err;
    assert_int_equal(parse_n(&json, "[1]\0", 4, &err), -1);
    assert_string_equal(err.text,
                        "f: line 1, column 4: wanted the end, found byte "
                        "0x00");
    done(&json);
    assert_int_equal(parse_n(&json, "\"\\\0\"", 4, &err), -1);
    assert_string_equal(err.text, "f: line 1, column 2: malformed escape");
    done(&json);
}

static void test_accepted(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "0", "-0", "-0.0e-0", "1E+2", "123456789012345678901234567890",
        "\"\"", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\"", "null", "true",
        "false", "[]", "{}", " [ ] ", "\t{\r\n}\n", "[[],{}]",
        "{\"\":{\"\":[]}}", "{\"a\":1,\"A\":2,\"a \":3}", "\"\177\"",
        "\"\302\200\337\277\340\240\200\355\237\277\356\200\200\357\277\277\"",
        "\"\360\220\200\200\364\217\277\277\"", "\"\\ud83d\\ude00\"",
        "\"\\uD83D\\uDE00\\uFFFF\\uE000\"", "[1,\n2 , 3]",
        "{\"a\":{},\"b\":[]}", "[\n            1\n      ]",
        "{\"\\u0061\":1,\"\\u0062\":2,\"\\u0061b\":3,\"b\\n\":4}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        Json json;
        parse(&json, texts[i]);
        assert_int_equal(json.nodes[0].next, json.n_nodes);
        done(&json);
    }
}

static char *repeat(const char *text, size_t n)
{
    size_t length = strlen(text);
    char *all = malloc(n * length + 1);
    assert_non_null(all);
    for (size_t i = 0; i < n; i++)
        memcpy(all + i * length, text, length);
    all[n * length] = 0;
    return all;
}

static void test_depth(void **state)
{
    (void)state;
    Error err;
    Json json;
    char text[2 * JSON_MAX_DEPTH + 1];
    memset(text, '[', JSON_MAX_DEPTH);
    memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    text[2 * JSON_MAX_DEPTH] = 0;
    parse(&json, text);
    assert_int_equal(json.n_nodes, JSON_MAX_DEPTH);
    done(&json);
    static const char *const openers[] = {"[", "{\"a\":", "[0,", "[{\"\":"};
    for (size_t i = 0; i < sizeof openers / sizeof *openers; i++) {
        char *deep = repeat(openers[i], 100000);
        assert_int_equal(parse_n(&json, deep, strlen(deep), &err), -1);
        assert_non_null(strstr(err.text, ": nested too deeply"));
        done(&json);
        free(deep);
    }
    char *deep = repeat("[", 100000);
    assert_int_equal(parse_n(&json, deep, 100000, &err), -1);
    assert_string_equal(err.text, "f: line 1, column 65: nested too deeply");
    done(&json);
    free(deep);
}

static void test_too_many(void **state)
{
    (void)state;
    Error err;
    Json json;
    char *many = repeat(" 0,", JSON_MAX_NODES + 1);
    many[0] = '[';
    assert_int_equal(parse_n(&json, many, strlen(many), &err), -1);
    assert_non_null(strstr(err.text,
                           ": more values than this program accepts"));
    done(&json);
    free(many);
    assert_int_equal(json_parse(&json, "f", "", INT32_MAX, &err), -1);
    assert_string_equal(err.text,
                        "f: 2147483647 bytes of JSON are too many");
}

static void test_walk(void **state)
{
    (void)state;
    Json json;
    parse(&json, "{\"a\": [1, [2, 3], {\"x\": null}], \"b\": \"s\", "
          "\"c\": {}, \"d\": true}");
    const JsonNode *root = json.nodes;
    assert_int_equal(json_type(root), JSON_OBJECT);
    assert_int_equal(root->size, 4);
    static const char *const names[] = {"a", "b", "c", "d"};
    static const JsonType types[] = {JSON_ARRAY, JSON_STRING, JSON_OBJECT,
                                     JSON_TRUE};
    const JsonNode *key = json_first(&json, root);
    for (int i = 0; i < 4; i++) {
        const JsonNode *value = json_next(&json, root, key);
        assert_true(json_equals(&json, key, names[i]));
        assert_int_equal(json_type(value), types[i]);
        assert_ptr_equal(json_get(&json, root, names[i]), value);
        key = json_next(&json, root, value);
    }
    assert_null(key);
    const JsonNode *a = json_get(&json, root, "a");
    assert_int_equal(a->size, 3);
    assert_int_equal(a->length, strlen("[1, [2, 3], {\"x\": null}]"));
    const JsonNode *item = json_first(&json, a);
    item = json_next(&json, a, item);
    assert_int_equal(item->size, 2);
    item = json_next(&json, a, item);
    assert_int_equal(json_type(json_get(&json, item, "x")), JSON_NULL);
    assert_null(json_next(&json, a, item));
    assert_null(json_first(&json, json_get(&json, root, "c")));
    assert_null(json_first(&json, json_get(&json, root, "b")));
    assert_null(json_get(&json, root, "e"));
    assert_null(json_get(&json, a, "a"));
    done(&json);
}

static void test_type_names(void **state)
{
    (void)state;
    Json json;
    parse(&json, "[null, false, true, 1, \"\\n\", [], {}]");
    static const char *const names[] = {"null", "false", "true", "a number",
                                        "a string", "an array", "an object"};
    const JsonNode *item = json_first(&json, json.nodes);
    for (int i = 0; i < 7; i++) {
        assert_string_equal(json_type_name(item), names[i]);
        item = json_next(&json, json.nodes, item);
    }
    done(&json);
}

static void test_strings(void **state)
{
    (void)state;
    static const struct {
        const char *text, *bytes;
        size_t length;
    } cases[] = {
        {"\"\"", "", 0}, {"\"plain\"", "plain", 5},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8},
        {"\"a\\u0000b\"", "a\0b", 3}, {"\"\\u00e9\\u20AC\"",
                                       "\303\251\342\202\254", 5},
        {"\"\\ud83d\\ude00\"", "\360\237\230\200", 4},
        {"\"\\uDBFF\\uDFFF\"", "\364\217\277\277", 4},
        {"\"\303\251\\n\"", "\303\251\n", 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Json json;
        Error err;
        char out[16];
        size_t n = cases[i].length, length = 99;
        parse(&json, cases[i].text);
        memset(out, 'x', sizeof out);
        assert_int_equal(json_string(&json, json.nodes, out, n + 1), n);
        assert_memory_equal(out, cases[i].bytes, n + 1);
        assert_int_equal(out[n + 1], 'x');
        for (size_t cap = 0; cap <= n; cap++)
            assert_int_equal(json_string(&json, json.nodes, out, cap), -1);
        char *copy = json_string_dup(&json, json.nodes, "it", &length, &err);
        assert_int_equal(length, n);
        assert_memory_equal(copy, cases[i].bytes, n + 1);
        free(copy);
        assert_true(json_equals(&json, json.nodes, cases[i].bytes)
                    == (strlen(cases[i].bytes) == n));
        char longer[20];
        sprintf(longer, "%sx", cases[i].bytes);
        assert_false(json_equals(&json, json.nodes, longer));
        assert_false(json_equals(&json, json.nodes, "another"));
        assert_false(json_equals(&json, json.nodes, "p"));
        done(&json);
    }
}

static void test_not_a_string(void **state)
{
    (void)state;
    Json json;
    Error err;
    char out[8];
    parse(&json, "[1]");
    assert_int_equal(json_string(&json, json.nodes, out, 8), -1);
    assert_false(json_equals(&json, json.nodes, "[1]"));
    assert_null(json_string_dup(&json, json.nodes, "key", NULL, &err));
    assert_string_equal(err.text, "f: key: wanted a string, found an array");
    done(&json);
}

/* Reads a number; fails the test where it is none. */
static double number(const char *text)
{
    Json json;
    double value = 99;
    parse(&json, text);
    assert_true(json_number(&json, json.nodes, &value));
    done(&json);
    return value;
}

static void assert_number(const char *text, double value)
{
    double found = number(text);
    if (memcmp(&found, &value, sizeof value) != 0)
        fail_msg("%s: wanted %a, found %a", text, value, found);
}

static void test_numbers(void **state)
{
    (void)state;
    assert_number("0", 0);
    assert_number("-0", -0.0);
    assert_number("-0.000e5", -0.0);
    assert_number("0e99999999999999999999", 0);
    assert_number("1.5", 1.5);
    assert_number("-12.5e-1", -1.25);
    assert_number("0.0001e4", 1);
    assert_number("10000000000e-10", 1);
    assert_number("1e22", 1e22);
    assert_number("1e23", 0x1.52d02c7e14af6p+76);
    assert_number("9007199254740993", 0x1p53);
    assert_number("9007199254740995", 0x1.0000000000002p53);
    assert_number("2.2250738585072011e-308", 0x0.fffffffffffffp-1022);
    assert_number("2.2250738585072014e-308", 0x1p-1022);
    assert_number("4.9406564584124654e-324", 0x1p-1074);
    assert_number("2.4703282292062327e-324", 0);
    assert_number("2.4703282292062328e-324", 0x1p-1074);
    assert_number("1.7976931348623157e308", 0x1.fffffffffffffp1023);
    assert_number("1.7976931348623159e308", HUGE_VAL);
    assert_number("-1e400", -HUGE_VAL);
    assert_number("1e-400", 0);
    assert_number("1e99999999999999999999999", HUGE_VAL);
    assert_number("-1e-99999999999999999999999", -0.0);
    assert_number("1e4294967296", HUGE_VAL);
    assert_number("1e-4294967295", 0);
    assert_number("1e18446744073709551617", HUGE_VAL);
}

/* 1 + 2^-53 lies half way; whatever follows, however late, decides. */
static void test_long_numbers(void **state)
{
    (void)state;
    static const char half[] =
        "1.00000000000000011102230246251565404236316680908203125";
    char text[3000];
    assert_number(half, 1);
    for (size_t zeros = 0; zeros < 2800; zeros += 97) {
        char *end = text + sprintf(text, "%s", half);
        memset(end, '0', zeros);
        strcpy(end + zeros, "1");
        assert_number(text, 0x1.0000000000001p0);
        strcpy(end + zeros, "0");
        assert_number(text, 1);
    }
    memset(text, '0', 2000);
    memcpy(text, "0.", 2);
    strcpy(text + 2000, "1e1999"); /* 10^-1999 10^1999 */
    assert_number(text, 1);
    memset(text, '0', 2000);
    text[0] = '1';
    strcpy(text + 2000, "e-1999");
    assert_number(text, 1);
    memset(text, '9', 2000);
    strcpy(text + 2000, "e-2000");
    assert_number(text, 1);
}

/* Half the least double, 2^-1075, has 752 digits: 5^1075 behind a point. */
static void test_most_digits(void **state)
{
    (void)state;
    int digits[760] = {1}, n = 1;
    for (int i = 0; i < 1075; i++) {
        for (int j = 0, carry = 0; j < n || carry > 0; j++) {
            int value = digits[j] * 5 + carry;
            digits[j] = value % 10;
            carry = value / 10;
            n = j >= n ? j + 1 : n;
        }
    }
    assert_int_equal(n, 752);
    char text[800];
    for (int j = 0; j < n; j++)
        text[j] = (char)('0' + digits[n - 1 - j]);
    strcpy(text + n, "e-1075");
    assert_number(text, 0); /* a tie, to even */
    strcpy(text + n, "0000000000000000000001e-1097");
    assert_number(text, 0x1p-1074);
}

/* Against strtod, which rounds correctly here. */
static void test_random_numbers(void **state)
{
    (void)state;
    uint64_t seed = 20240507;
    Random r = random_seeded(seed);
    print_message("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < 20000; i++) {
        char text[64];
        uint64_t bits = random_u64(&r);
        double x;
        memcpy(&x, &bits, sizeof x);
        if (!isfinite(x))
            continue;
        sprintf(text, "%.*e", (int)(random_u64(&r) % 25), x);
        assert_number(text, strtod(text, NULL));
    }
}

/* A comma for a point does no harm. */
static void test_locale(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "de_DE",
                                        "fr_FR.UTF-8", "nl_NL.UTF-8"};
    const char *set = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !set; i++)
        set = setlocale(LC_NUMERIC, names[i]);
    if (set == NULL)
        skip(); /* no such locale here */
    double x = number("1.5"), y = number("1e-3");
    setlocale(LC_NUMERIC, "C");
    assert_true(x == 1.5 && y == 1e-3);
}

static void test_integers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t value;
    } cases[] = {
        {"0", 0}, {"-0", 0}, {"0.0", 0}, {"0e5", 0}, {"-0e-99", 0}, {"1", 1},
        {"1.0", 1}, {"1e3", 1000}, {"1.5e1", 15}, {"-1500e-2", -15},
        {"100000000000000000000000e-20", 1000}, {"0.001e3", 1},
        {"163840", 163840}, {"9007199254740993", 9007199254740993},
        {"9223372036854775807", INT64_MAX},
        {"-9223372036854775808", INT64_MIN},
        {"922337203685477580.7e1", INT64_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Json json;
        int64_t value = 99;
        parse(&json, cases[i].text);
        assert_true(json_integer(&json, json.nodes, INT64_MIN, INT64_MAX,
                                 &value));
        assert_true(value == cases[i].value);
        done(&json);
    }
}

static void test_no_integers(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "0.5", "1e-1", "1.0000000000000000000000000000000000000000001",
        "9223372036854775808", "-9223372036854775809", "1e19", "1e300",
        "1e99999999999999999999", "18446744073709551616",
        "99999999999999999999", "1e-400", "\"1\"", "true", "null", "[1]",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        Json json;
        int64_t value;
        double x;
        parse(&json, texts[i]);
        assert_false(json_integer(&json, json.nodes, INT64_MIN, INT64_MAX,
                                  &value));
        assert_true(json_number(&json, json.nodes, &x) == (i < 11));
        done(&json);
    }
    Json json;
    int64_t value;
    parse(&json, "7");
    assert_true(json_integer(&json, json.nodes, 7, 7, &value));
    assert_false(json_integer(&json, json.nodes, 8, 9, &value));
    assert_false(json_integer(&json, json.nodes, 5, 6, &value));
    done(&json);
}

/* An object of n keys k0, k1, …; the last one is `last` where that is given. */
static void add_object(Text *t, int n, const char *last)
{
    text_printf(t, "{");
    for (int i = 0; i < n; i++) {
        if (i == n - 1 && last != NULL)
            text_printf(t, "%s:%d}", last, i);
        else
            text_printf(t, "\"k%d\":[%d]%c", i, i, i < n - 1 ? ',' : '}');
    }
}

static void test_keys(void **state)
{
    (void)state;
    static const int sizes[] = {2, 8, 9, 100, 3000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Text t = {0};
        Json json;
        Error err;
        add_object(&t, sizes[i], NULL);
        parse(&json, t.text);
        assert_int_equal(json.nodes[0].size, sizes[i]);
        done(&json);
        text_free(&t);
        add_object(&t, sizes[i], "\"k\\u0030\"");
        assert_int_equal(parse_n(&json, t.text, t.length, &err), -1);
        assert_non_null(strstr(err.text,
                               ": the key \"k\\u0030\" is there twice"));
        done(&json);
        text_free(&t);
    }
}

/* Keys of every length that a hash reads in blocks, once plain, once escaped:
 * they must meet although they are hashed by two routes. */
static void test_escaped_keys(void **state)
{
    (void)state;
    for (int length = 1; length < 40; length++) {
        Text t = {0};
        Json json;
        Error err;
        text_printf(&t, "{\"%.*s\":0,", length,
                    "\303\251abcdefghijklmnopqrstuvwxyzabcdefghijklm");
        for (int i = 0; i < 20; i++)
            text_printf(&t, "\"-%d\":0,", i);
        text_printf(&t, "\"\\u00e9%.*s\":0}", length > 2 ? length - 2 : 0,
                    "abcdefghijklmnopqrstuvwxyzabcdefghijklm");
        int rc = parse_n(&json, t.text, t.length, &err);
        assert_int_equal(rc, -1);
        assert_non_null(strstr(err.text, length == 1 ? ": invalid UTF-8"
                               : "is there twice"));
        done(&json);
        text_free(&t);
    }
}

/* hash_plain of json.c for a key of 8 bytes. */
static uint64_t mix(uint64_t h)
{
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

static uint64_t hash8(const char *key)
{
    uint64_t word;
    memcpy(&word, key, 8);
    return mix(mix(mix(word)) ^ 8);
}

/* 2000 keys that all want one of 4096 slots. */
static void test_attack(void **state)
{
    (void)state;
    Text t = {0};
    Json json;
    Error err;
    int found = 0;
    text_printf(&t, "{\"a\":0");
    for (unsigned i = 0; found < 2000; i++) {
        char key[16];
        sprintf(key, "%08x", i);
        if ((hash8(key) & 4095) == 1) {
            text_printf(&t, ",\"%s\":0", key);
            found++;
        }
    }
    text_printf(&t, "}");
    assert_int_equal(parse_n(&json, t.text, t.length, &err), -1);
    assert_non_null(strstr(err.text,
                           ": keys that are made to slow the program down"));
    done(&json);
    text_free(&t);
}

static void test_write_string(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *utf8, *ascii;
    } cases[] = {
        {"", 0, "\"\"", "\"\""},
        {"a\"\\/\b\f\n\r\t", 9, "\"a\\\"\\\\/\\b\\f\\n\\r\\t\"",
         "\"a\\\"\\\\/\\b\\f\\n\\r\\t\""},
        {"\0\1\37\177", 4, "\"\\u0000\\u0001\\u001f\177\"",
         "\"\\u0000\\u0001\\u001f\177\""},
        {"\303\251\342\202\254", 5, "\"\303\251\342\202\254\"",
         "\"\\u00e9\\u20ac\""},
        {"\360\237\230\200", 4, "\"\360\237\230\200\"",
         "\"\\ud83d\\ude00\""},
        {"\355\237\277\356\200\200\357\277\277", 9,
         "\"\355\237\277\356\200\200\357\277\277\"",
         "\"\\ud7ff\\ue000\\uffff\""},
        {"\377a", 2, "\"\357\277\275a\"", "\"\\ufffda\""},
        {"\200\200", 2, NULL, "\"\\ufffd\\ufffd\""},
        {"\300\200", 2, NULL, "\"\\ufffd\\ufffd\""},
        {"\303", 1, NULL, "\"\\ufffd\""},
        {"\303a", 2, NULL, "\"\\ufffda\""},
        {"\342\202", 2, NULL, "\"\\ufffd\""},
        {"\342\202a", 3, NULL, "\"\\ufffda\""},
        {"\340\200\200", 3, NULL, "\"\\ufffd\\ufffd\\ufffd\""},
        {"\355\240\200", 3, NULL, "\"\\ufffd\\ufffd\\ufffd\""},
        {"\360\237\230", 3, NULL, "\"\\ufffd\""},
        {"\360\237\230\303\251", 5, NULL, "\"\\ufffd\\u00e9\""},
        {"\360\200\200\200", 4, NULL, "\"\\ufffd\\ufffd\\ufffd\\ufffd\""},
        {"\364\220\200\200", 4, NULL, "\"\\ufffd\\ufffd\\ufffd\\ufffd\""},
        /* Unicode 16, table 3-11: truncated sequences */
        {"\341\200\342\360\221\222\361\277\101", 9, NULL,
         "\"\\ufffd\\ufffd\\ufffd\\ufffdA\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int ascii = 0; ascii < 2; ascii++) {
            Text t = {0};
            text_json_string(&t, cases[i].bytes, cases[i].n, ascii);
            assert_false(t.failed);
            assert_int_equal(strlen(t.text), t.length);
            const char *wanted = ascii ? cases[i].ascii : cases[i].utf8;
            if (wanted != NULL)
                assert_string_equal(t.text, wanted);
            text_free(&t);
        }
    }
}

static void test_text(void **state)
{
    (void)state;
    Text t = {0};
    char expected[5000] = "";
    for (int i = 0; i < 300; i++) {
        text_printf(&t, "%d,", i);
        text_add(&t, "\n", i % 2 ? 1 : 0);
        sprintf(expected + strlen(expected), "%d,%s", i, i % 2 ? "\n" : "");
    }
    assert_string_equal(t.text, expected);
    text_add(&t, "x", PTRDIFF_MAX); /* no memory is that large */
    assert_true(t.failed);
    text_add(&t, "x", 1);
    assert_string_equal(t.text, expected);
    text_free(&t);
    assert_null(t.text);
    text_printf(&t, "%lc", (wint_t)0x20ac); /* which this locale has not */
    assert_true(t.failed);
    text_free(&t);
}

/* A random value of at most `depth` levels, as text. */
static void add_random(Text *t, Random *r, int depth)
{
    static const char *const scalars[] = {"null", "true", "false", "-1.5e3",
                                          "\"\\u00e9\"", "\"\"", "12", " 0"};
    unsigned kind = (unsigned)(random_u64(r) % (depth > 0 ? 4 : 2));
    int n = (int)(random_u64(r) % 12);
    if (kind < 2) {
        text_printf(t, "%s", scalars[random_u64(r) % 8]);
        return;
    }
    text_printf(t, kind == 2 ? "[ " : "{");
    for (int i = 0; i < n; i++) {
        text_printf(t, i > 0 ? "," : "");
        if (kind == 3)
            text_printf(t, "\"k%d\" :", i);
        add_random(t, r, depth - 1);
    }
    text_printf(t, kind == 2 ? "]" : " }");
}

/* Sizes and links of a subtree hold together; returns the node after it. */
static uint32_t check_tree(const Json *json, uint32_t at)
{
    const JsonNode *node = &json->nodes[at];
    assert_true(at < json->n_nodes && node->next > at);
    assert_true((size_t)node->start + node->length <= json->length);
    uint32_t n = 0, next = at + 1;
    const JsonNode *child = json_first(json, node);
    for (; child != NULL; child = json_next(json, node, child)) {
        assert_int_equal(child - json->nodes, next);
        next = check_tree(json, next);
        n++;
    }
    unsigned each = json_type(node) == JSON_OBJECT ? 2 : 1;
    assert_int_equal(n, each * node->size);
    assert_int_equal(node->next, next);
    return next;
}

/* Written numbers are read as they were, and are short where that will do. */
static void test_write_number(void **state)
{
    (void)state;
    static const char *const shortest[] = {"0", "0.1", "-2.2e-05", "1e+13",
                                           "14.633", "0.0007584"};
    Random r = random_seeded(1);
    Text t = {0};
    for (size_t i = 0; i < sizeof shortest / sizeof *shortest; i++) {
        text_number(&t, strtod(shortest[i], NULL));
        assert_string_equal(t.text, shortest[i]);
        t.length = 0;
    }
    for (int i = 0; i < 2000; i++) {
        uint64_t bits = random_u64(&r);
        double x, back;
        memcpy(&x, &bits, sizeof x);
        if (!isfinite(x))
            continue;
        t.length = 0;
        text_number(&t, x);
        Json json;
        parse(&json, t.text);
        assert_true(json_number(&json, json.nodes, &back) && back == x);
        done(&json);
    }
    text_free(&t);
}

/* What is written at random is read; with a byte changed or cut off it is
 * read or refused in one line, and never past its end. */
static void test_random(void **state)
{
    (void)state;
    uint64_t seed = 8259;
    Random r = random_seeded(seed);
    print_message("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < 2000; i++) {
        Text t = {0};
        Json json;
        Error err;
        add_random(&t, &r, 5);
        parse(&json, t.text);
        assert_int_equal(check_tree(&json, 0), json.n_nodes);
        done(&json);
        for (int j = 0; j < 20; j++) {
            size_t at = (size_t)(random_u64(&r) % t.length);
            size_t n = j % 2 ? t.length : at;
            char old = t.text[at];
            t.text[at] = (char)random_u64(&r);
            if (parse_n(&json, t.text, n, &err) == 0)
                assert_int_equal(check_tree(&json, 0), json.n_nodes);
            else
                assert_null(strchr(err.text, '\n'));
            done(&json);
            t.text[at] = old;
        }
        text_free(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_zero_byte),
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_walk),
        cmocka_unit_test(test_type_names),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_not_a_string),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_long_numbers),
        cmocka_unit_test(test_most_digits),
        cmocka_unit_test(test_random_numbers),
        cmocka_unit_test(test_locale),
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_no_integers),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_escaped_keys),
        cmocka_unit_test(test_attack),
        cmocka_unit_test(test_write_string),
        cmocka_unit_test(test_write_number),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
