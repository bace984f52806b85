/* What is said about a value in a file that will not do. */
#include "vectors.h"

#include "base/document.h"

static void open_text(Document *d, const char *text, Error *err)
{
    const char *dir = scratch("document");
    must(make_dir(dir, err), err);
    char *path = path_join(dir, "d.json", err);
    must(file_write(path, true, text, strlen(text), err), err);
    free(path);
    must(doc_open(d, dir, "d.json", err), err);
}

/* A value as messages show it. */
static void shown(void **state)
{
    static const struct {
        const char *json, *shown;
    } cases[] = {
        { "null", "null" }, { "true", "true" }, { "-1.50", "-1.50" },
        { "\"a\"", "\"a\"" }, { "\"\"", "\"\"" }, { "[1]", "an array" },
        { "{}", "an object" }, { "\"0123456789abcdef\"", "\"0123456\"" },
        { "\"012345中\"", "\"012345\"" }, /* no half character */
        { "\"0123中\"", "\"0123中\"" }, { "1234567890", "1234567" }
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Document d;
        Error err;
        char text[10];
        open_text(&d, cases[i].json, &err);
        assert_string_equal(doc_shown(&d, d.json.nodes, text, sizeof text),
                            cases[i].shown);
        doc_close(&d);
    }
}

static void must_say(Document *d, int status, const char *rest)
{
    char wanted[1000];
    snprintf(wanted, sizeof wanted, "%s: %s", d->path, rest);
    must_fail(status, d->err, wanted);
}

static void messages(void **state)
{
    static const char *const off[] = { "a", "b", "c", "d", "e", "on", NULL };
    Document d;
    Error err;
    (void)state;
    open_text(&d, "{\"a\":null,\"b\":false,\"c\":0,\"d\":\"\",\"on\":1,"
              "\"list\":[1,2],\"type\":\"T\"}", &err);
    const JsonNode *root = d.json.nodes;
    must_say(&d, doc_wanted(&d, "x.y", "a cat", NULL),
             "x.y: wanted a cat, found nothing");
    must_say(&d, doc_refuse_on(&d, root, off),
             "on: wanted it off, found 1");
    assert_null(doc_get_typed(&d, root, "c", JSON_ARRAY));
    must_say(&d, -1, "c: wanted an array, found 0");
    assert_null(doc_get_typed(&d, root, "list", JSON_OBJECT));
    must_say(&d, -1, "list: wanted an object, found an array");
    strcpy(err.text, "inner");
    must_say(&d, doc_in_file(&d, "key"), "key: inner");
    assert_true(doc_has_type(&d, root, "T"));
    assert_false(doc_has_type(&d, root, "U"));
    assert_false(doc_has_type(&d, doc_get(&d, root, "list"), "T"));
    assert_null(doc_get(&d, NULL, "x"));
    doc_close(&d);
}

static void elements(void **state)
{
    Document d;
    Error err;
    size_t n = 0;
    (void)state;
    open_text(&d, "[1,[2,3],4]", &err);
    const JsonNode *node = doc_each(&d, d.json.nodes, NULL);
    for (; node; node = doc_each(&d, d.json.nodes, node))
        n++;
    assert_int_equal(n, 3);
    doc_close(&d);
    open_text(&d, "[]", &err);
    assert_null(doc_each(&d, d.json.nodes, NULL));
    doc_close(&d);
}

static void unreadable(void **state)
{
    Document d;
    Error err;
    (void)state;
    open_text(&d, "{}", &err);
    doc_close(&d);
    const char *dir = scratch("document");
    char *path = path_join(dir, "d.json", &err);
    must(file_write(path, true, "{", 1, &err), &err);
    assert_int_equal(doc_open(&d, dir, "d.json", &err), -1);
    assert_non_null(strstr(err.text, "d.json"));
    assert_int_equal(doc_open(&d, dir, "none.json", &err), -1);
    assert_non_null(strstr(err.text, "none.json"));
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shown),
        cmocka_unit_test(messages),
        cmocka_unit_test(elements),
        cmocka_unit_test(unreadable)
    };
    return cmocka_run_group_tests_name("document", tests, NULL, NULL);
}
