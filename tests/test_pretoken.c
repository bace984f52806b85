/* The pieces of v2_pretok.jsonl and v3_pretok.jsonl, made by the Hugging Face
 * tokenizers 0.23.2 with the regular expressions of DeepSeek's own files; no
 * vocabulary is needed. The lists of rules come from the small tokenizers of
 * tests/data/tokenizer, whose expressions are the published ones. The single
 * expressions further down were run through the same engine (Oniguruma). */
#include "vectors.h"

#include "base/pretoken.h"

typedef struct {
    Pretokenizer p;
    const Json *row;          /* the pieces wanted */
    const JsonNode *array, *next;
    const char *where;
} Rig;

static void add_rule(Rig *rig, const Json *json, const JsonNode *step)
{
    const JsonNode *pattern = json_get(json, step, "pattern");
    Error err;
    size_t n;
    if (json_equals(json, json_get(json, step, "type"), "Split")) {
        char *regex = vector_string(json, pattern, "Regex", &n);
        must(pretoken_add_regex(&rig->p, regex, n, &err), &err);
        free(regex);
    } else if (json_equals(json, json_get(json, step, "type"), "Digits")) {
        must(pretoken_add_digits(&rig->p, true, &err), &err);
    }
}

static void open_rules(Rig *rig, const char *path)
{
    File file;
    Json json;
    Error err;
    memset(rig, 0, sizeof *rig);
    must(file_open(&file, path, &err), &err);
    must(json_parse(&json, path, (const char *)file.data, file.size, &err),
         &err);
    const JsonNode *steps = json_get(&json, json.nodes, "pre_tokenizer");
    steps = json_get(&json, steps, "pretokenizers");
    const JsonNode *step = json_first(&json, steps);
    for (; step; step = json_next(&json, steps, step))
        add_rule(rig, &json, step);
    json_free(&json);
    file_close(&file);
}

static int check_piece(void *context, const char *piece, size_t n, Error *err)
{
    Rig *rig = context;
    size_t wanted_n;
    (void)err;
    if (!rig->next)
        fail_msg("%s: one piece too many", rig->where);
    char *wanted = json_string_dup(rig->row, rig->next, "piece", &wanted_n,
                                   err);
    if (n != wanted_n || memcmp(piece, wanted, n) != 0)
        fail_msg("%s: wanted %s, found %.*s", rig->where, wanted, (int)n,
                 piece);
    free(wanted);
    rig->next = json_next(rig->row, rig->array, rig->next);
    return 0;
}

static void check_row(void *context, const Json *row, const char *where)
{
    Rig *rig = context;
    Error err;
    size_t n;
    char *text = vector_string(row, row->nodes, "text", &n);
    rig->row = row;
    rig->where = where;
    rig->array = json_get(row, row->nodes, "pieces");
    rig->next = json_first(row, rig->array);
    must(pretoken_run(&rig->p, text, n, check_piece, rig, &err), &err);
    if (rig->next)
        fail_msg("%s: a piece is missing", where);
    free(text);
}

static void v3_pieces(void **state)
{
    Rig rig;
    (void)state;
    open_rules(&rig, "tests/data/tokenizer/v3/tokenizer.json");
    assert_true(each_vector("tests/data/tokenizer/v3_pretok.jsonl", check_row,
                            &rig) > 500);
    pretoken_free(&rig.p);
}

static void v2_pieces(void **state)
{
    Rig rig;
    (void)state;
    open_rules(&rig, "tests/data/tokenizer/v2/tokenizer.json");
    assert_true(each_vector("tests/data/tokenizer/v2_pretok.jsonl", check_row,
                            &rig) > 500);
    pretoken_free(&rig.p);
}

/* The pieces of a text, '|' between them. */
static int join(void *context, const char *piece, size_t n, Error *err)
{
    Text *t = context;
    (void)err;
    if (t->length > 0)
        text_add(t, "|", 1);
    text_add(t, piece, n);
    return 0;
}

static void cut_by(const char *const *regexes, size_t n, const char *text,
                   const char *wanted)
{
    Pretokenizer p = { .n = 0 };
    Text joined = { NULL, 0, 0, false };
    Error err;
    for (size_t i = 0; i < n; i++)
        must(pretoken_add_regex(&p, regexes[i], strlen(regexes[i]), &err),
             &err);
    must(pretoken_run(&p, text, strlen(text), join, &joined, &err), &err);
    assert_string_equal(joined.text, wanted);
    text_free(&joined);
    pretoken_free(&p);
}

static void cut_one(const char *regex, const char *text, const char *wanted)
{
    cut_by(&regex, 1, text, wanted);
}

/* Trap 45, 47: a rule sees the end of its piece, not of the text. */
static void rules_in_turn(void **state)
{
    static const char *const rules[] = { "[;]", "\\s+$" };
    static const char *const other[] = { "\\s+$", "[;]" };
    (void)state;
    cut_by(rules, 2, "a  ; b  ", "a|  |;| b|  ");
    cut_by(other, 2, "a  ; b  ", "a  |;| b|  ");
}

/* Ruby's $ stands before every line feed, not only at the end. */
static void line_ends(void **state)
{
    (void)state;
    cut_one("\\s+$", "a  ", "a|  ");
    cut_one("\\s+$", "a \n b", "a| |\n b");
    cut_one("\\s+$", "a\n", "a|\n");
    cut_one("\\s+$", "\n\n", "\n\n");
    cut_one("\\s+$", "  \n  x", "  |\n  x");
    cut_one("\\s+$", "a \r\n b", "a| \r|\n b");
    cut_one("\\s+$", "a  \xc2\x85 b", "a  \xc2\x85 b");
    cut_one("\\s+$", "a\v\nb", "a|\v|\nb");
    cut_one("\\s+$", "a\n\n b", "a|\n|\n b");
}

static void sets(void **state)
{
    (void)state;
    cut_one("[ab]", "xaaby", "x|a|a|b|y");
    cut_one("[ab]+", "xaaby", "x|aab|y");
    cut_one("\\s?[a-c]+", "x  ab c", "x | ab| c");
    cut_one("\\s?[a-c]", "x ab", "x| a|b");
    cut_one("[a-cb-dz]+", "xabcdzy", "x|abcdz|y");
    cut_one("[\\r\\n]", "a\r\n\nb", "a|\r|\n|\n|b");
    /* White space that is a member, as U+3000 is of V2's punctuation. */
    cut_one("\\s?[\xe3\x80\x80-\xe3\x80\x82]+",
            "a\xe3\x80\x80\xe3\x80\x80\xe3\x80\x82 \xe3\x80\x80" "b",
            "a|\xe3\x80\x80\xe3\x80\x80\xe3\x80\x82| \xe3\x80\x80|b");
}

static void numbers(void **state)
{
    Pretokenizer p = { .n = 0 };
    Text joined = { NULL, 0, 0, false };
    Error err;
    (void)state;
    cut_one("\\p{N}{1,3}", "a1234567b", "a|123|456|7|b");
    cut_one("\\p{N}{1,3}", "\xc2\xbd\xe2\x85\xa7" "1" "2",
            "\xc2\xbd\xe2\x85\xa7" "1|2");
    must(pretoken_add_digits(&p, false, &err), &err);
    must(pretoken_run(&p, "a1234b", 6, join, &joined, &err), &err);
    assert_string_equal(joined.text, "a|1234|b");
    text_free(&joined);
    pretoken_free(&p);
}

static void unknown_regexes(void **state)
{
    static const char *const unknown[] = {
        "", "a", "[", "[]", "[]+", "[a", "[a-]", "[-a]", "[b-a]", "[^a]",
        "[a&&b]", "[[a]]", "[[:alpha:]]", "[\\p{L}]", "[\\s]", "[\\d]+",
        "[a]*", "[a]?", "[a]+?", "[a]++", "[a]{2}", "\\s[a]", "\\s*[a]+",
        "[a]|[b]", "\\p{L}+", "\\p{N}", "\\p{N}{1,4}", "\\p{N}{1,3}+",
        "\\s+", "\\s+$ ", "\\s+(?!\\S)", "(?i)[a]", "[\\x41]", "[a] ",
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+"
    };
    Pretokenizer p = { .n = 0 };
    Error err;
    (void)state;
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        char wanted[300];
        snprintf(wanted, sizeof wanted, "wanted a regular expression that "
                 "DeepSeek's tokenizers use, found %s", unknown[i]);
        must_fail(pretoken_add_regex(&p, unknown[i], strlen(unknown[i]),
                                     &err), &err, wanted);
        assert_int_equal(p.n, 0);
    }
}

static void too_many_rules(void **state)
{
    Pretokenizer p = { .n = 0 };
    Error err;
    (void)state;
    for (int i = 0; i < PRETOKEN_MAX_RULES; i++)
        must(pretoken_add_regex(&p, "[a]+", 4, &err), &err);
    must_fail(pretoken_add_regex(&p, "[a]+", 4, &err), &err,
              "wanted at most 16 rules, found more");
    must_fail(pretoken_add_digits(&p, true, &err), &err,
              "wanted at most 16 rules, found more");
    pretoken_free(&p);
}

static int count_bytes(void *context, const char *piece, size_t n, Error *err)
{
    size_t *sum = context;
    (void)piece;
    (void)err;
    assert_true(n > 0);
    *sum += n;
    return 0;
}

/* Long runs of one thing, between and beside others: each would take hours
 * if any rule looked at a run once for each of its characters. */
static void linear_time(void **state)
{
    static const char *const fill[] = { " ", "\n", "\t\n", "a", "1", ".", ".a",
                                        "\xe4\xb8\xad", "\xcc\x81", "\x01",
                                        "\xe3\x80\x80", " .", "\r\n " };
    static const char *const files[] = {
        "tests/data/tokenizer/v3/tokenizer.json",
        "tests/data/tokenizer/v2/tokenizer.json"
    };
    enum { N = 1 << 20 };
    char *text = test_alloc(N + 8, 1);
    (void)state;
    for (size_t f = 0; f < 2; f++) {
        Rig rig;
        open_rules(&rig, files[f]);
        for (size_t i = 0; i < sizeof fill / sizeof fill[0]; i++) {
            size_t n = 0, sum = 0;
            Error err;
            while (n + 8 < N) {
                memcpy(text + n, fill[i], strlen(fill[i]));
                n += strlen(fill[i]);
            }
            memcpy(text + n, "\xe4\xb8\xad" "x", 4);
            must(pretoken_run(&rig.p, text, n + 4, count_bytes, &sum, &err),
                 &err);
            assert_int_equal(sum, n + 4);
        }
        pretoken_free(&rig.p);
    }
    free(text);
}

static int refuse_all(void *context, const char *piece, size_t n, Error *err)
{
    (void)piece;
    (void)n;
    ++*(int *)context;
    strcpy(err->text, "no");
    return -1;
}

/* What the receiver refuses ends the run at once. */
static void refusal(void **state)
{
    Pretokenizer p = { .n = 0 };
    Error err;
    int calls = 0;
    (void)state;
    must(pretoken_add_regex(&p, "[a]", 3, &err), &err);
    must_fail(pretoken_run(&p, "xaax", 4, refuse_all, &calls, &err), &err,
              "no");
    assert_int_equal(calls, 1);
    pretoken_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v3_pieces),
        cmocka_unit_test(v2_pieces),
        cmocka_unit_test(rules_in_turn),
        cmocka_unit_test(line_ends),
        cmocka_unit_test(sets),
        cmocka_unit_test(numbers),
        cmocka_unit_test(unknown_regexes),
        cmocka_unit_test(too_many_rules),
        cmocka_unit_test(linear_time),
        cmocka_unit_test(refusal)
    };
    return cmocka_run_group_tests_name("pretoken", tests, NULL, NULL);
}
