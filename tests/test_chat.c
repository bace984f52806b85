/* Conversations as text.
 *
 * chat_v3.jsonl: random conversations rendered with the template in
 * DeepSeek-V3's tokenizer_config.json by jinja2 (tests/reference/
 * make_chat.py); tool_quirk must give them byte for byte. The other forms are
 * written out here from the published templates. */
#include "vectors.h"

#define DATA "tests/data/tokenizer/"
#define PUBLISHED "../shared/data/tokenizers/"

#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define USER "<｜User｜>"
#define BOT "<｜Assistant｜>"

static Tokenizer *open_tokenizer(const char *dir)
{
    Error err;
    Tokenizer *t = tokenizer_open(dir, &err);
    if (!t)
        fail_msg("%s", err.text);
    return t;
}

static void must_render(const Tokenizer *t, const ChatMessage *m, size_t n,
                        ChatOptions o, const char *wanted, const char *where)
{
    Text out = { NULL, 0, 0, false };
    Error err;
    must(chat_render(&out, t, m, n, &o, &err), &err);
    if (strcmp(out.text ? out.text : "", wanted) != 0)
        fail_msg("%s:\nwanted %s\nfound  %s", where, wanted, out.text);
    text_free(&out);
}

/* V3's template, byte for byte ------------------------------------------- */

enum { MOST = 10, MOST_CALLS = 3 };

static ChatRole role_of(const Json *row, const JsonNode *message)
{
    static const char *const names[] = { "system", "user", "assistant",
                                         "tool" };
    int i = 0;
    while (!json_equals(row, json_get(row, message, "role"), names[i]))
        i++;
    return (ChatRole)i;
}

static char *element(const Json *row, const JsonNode *array, int i)
{
    const JsonNode *node = json_first(row, array);
    Error err;
    while (i-- > 0)
        node = json_next(row, array, node);
    return json_string_dup(row, node, "a string", NULL, &err);
}

static void read_message(const Json *row, const JsonNode *node,
                         ChatMessage *m, ChatCall *calls)
{
    const JsonNode *list = json_get(row, node, "calls");
    const JsonNode *call = list ? json_first(row, list) : NULL;
    m->role = role_of(row, node);
    m->content = vector_string(row, node, "content", NULL);
    m->calls = calls;
    for (m->n_calls = 0; call; call = json_next(row, list, call)) {
        assert_true(m->n_calls < MOST_CALLS);
        calls[m->n_calls].type = element(row, call, 0);
        calls[m->n_calls].name = element(row, call, 1);
        calls[m->n_calls++].arguments = element(row, call, 2);
    }
}

static void free_message(ChatMessage *m)
{
    for (size_t i = 0; i < m->n_calls; i++) {
        free((char *)m->calls[i].type);
        free((char *)m->calls[i].name);
        free((char *)m->calls[i].arguments);
    }
    free((char *)m->content);
}

static void check_row(void *context, const Json *row, const char *where)
{
    const JsonNode *list = json_get(row, row->nodes, "messages");
    const JsonNode *node = json_first(row, list);
    const JsonNode *prompt = json_get(row, row->nodes, "generation_prompt");
    ChatMessage messages[MOST];
    ChatCall calls[MOST][MOST_CALLS];
    ChatOptions o = { TEMPLATE_V3, false, false, true };
    size_t n = 0;
    char *wanted = vector_string(row, row->nodes, "text", NULL);
    for (; node; node = json_next(row, list, node), n++) {
        assert_true(n < MOST);
        read_message(row, node, &messages[n], calls[n]);
    }
    o.generation_prompt = json_type(prompt) == JSON_TRUE;
    must_render(context, messages, n, o, wanted, where);
    while (n > 0)
        free_message(&messages[--n]);
    free(wanted);
}

static void v3_quirk(void **state)
{
    Tokenizer *t = open_tokenizer(DATA "v3");
    (void)state;
    assert_true(each_vector(DATA "chat_v3.jsonl", check_row, t) >= 100);
    tokenizer_close(t);
}

/* Each template on the same two conversations ---------------------------- */

static const ChatMessage talk[] = {
    { ROLE_SYSTEM, "S", NULL, 0 },
    { ROLE_USER, "U1", NULL, 0 },
    { ROLE_ASSISTANT, "<think>a</think>b</think>A1", NULL, 0 },
    { ROLE_SYSTEM, "S2", NULL, 0 },
    { ROLE_USER, "U2", NULL, 0 }
};

static void talks(void **state)
{
    static const struct {
        ChatOptions o;
        size_t n;
        const char *wanted;
    } cases[] = {
        { { TEMPLATE_V2, true, false, false }, 5,
          BOS "S\n\nUser: U1\n\nAssistant: <think>a</think>b</think>A1" EOS
          "S2\n\nUser: U2\n\nAssistant:" }, /* trap 41: no blank */
        { { TEMPLATE_V2, false, false, false }, 2, BOS "S\n\nUser: U1\n\n" },
        { { TEMPLATE_V25, true, false, false }, 5,
          BOS "S2" USER "U1" BOT "<think>a</think>b</think>A1" EOS
          USER "U2" BOT },
        { { TEMPLATE_V3, true, false, false }, 5,
          BOS "S\n\nS2" USER "U1" BOT "<think>a</think>b</think>A1" EOS
          USER "U2" BOT },
        { { TEMPLATE_V3, true, true, false }, 2, BOS "S" USER "U1" BOT },
        { { TEMPLATE_V3, true, false, false }, 0, BOS BOT },
        { { TEMPLATE_R1, true, false, false }, 5, /* trap 51 */
          BOS "S\n\nS2" USER "U1" BOT "A1" EOS USER "U2" BOT },
        { { TEMPLATE_R1, true, true, false }, 2,
          BOS "S" USER "U1" BOT "<think>\n" },
        { { TEMPLATE_V31, true, false, false }, 5,
          BOS "S\n\nS2" USER "U1" BOT "</think>b</think>A1" EOS
          USER "U2" BOT "</think>" },
        { { TEMPLATE_V31, true, true, false }, 2,
          BOS "S" USER "U1" BOT "<think>" },
        { { TEMPLATE_V31, true, true, false }, 3,
          BOS "S" USER "U1" BOT "</think>b</think>A1" EOS },
        { { TEMPLATE_V31, true, true, false }, 0, BOS },
        { { TEMPLATE_V31, false, true, false }, 2, BOS "S" USER "U1" }
    };
    Tokenizer *t = open_tokenizer(DATA "v3");
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        must_render(t, talk, cases[i].n, cases[i].o, cases[i].wanted,
                    chat_template_name(cases[i].o.kind));
    tokenizer_close(t);
}

static const ChatCall calls[] = {
    { "function", "f", "{}" }, { "function", "g", "{\"x\":1}" }
};

static const ChatMessage tools[] = {
    { ROLE_USER, "U", NULL, 0 },
    { ROLE_ASSISTANT, NULL, calls, 2 },
    { ROLE_TOOL, "1", NULL, 0 },
    { ROLE_TOOL, "2", NULL, 0 },
    { ROLE_ASSISTANT, "so</think>A", calls, 1 },
    { ROLE_TOOL, "3", NULL, 0 },
    { ROLE_ASSISTANT, "done", NULL, 0 }
};

#define CALL(name, arguments) "<｜tool▁call▁begin｜>function<｜tool▁sep｜>" \
    name "\n```json\n" arguments "\n```<｜tool▁call▁end｜>"
#define OUTPUT(text) "<｜tool▁output▁begin｜>" text "<｜tool▁output▁end｜>"
#define CALL_F CALL("f", "{}")
#define CALL_G CALL("g", "{\"x\":1}")
#define CALLS(text) "<｜tool▁calls▁begin｜>" text "<｜tool▁calls▁end｜>"
#define OUTPUTS "<｜tool▁outputs▁begin｜>"
#define OUTPUTS_END "<｜tool▁outputs▁end｜>"

static void tool_calls(void **state)
{
    static const char v3[] = BOS USER "U"
        BOT CALLS(CALL_F "\n" CALL_G) EOS
        OUTPUTS OUTPUT("1") "\n" OUTPUT("2") OUTPUTS_END
        "so</think>A" CALLS(CALL_F) EOS
        OUTPUTS OUTPUT("3") OUTPUTS_END "done" EOS BOT;
    static const char open_end[] = BOS USER "U" BOT CALLS(CALL_F "\n" CALL_G)
        EOS OUTPUTS OUTPUT("1") OUTPUTS_END; /* and no generation prompt */
    static const char v31[] = BOS USER "U" BOT "</think>"
        CALLS("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
              "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{\"x\":1}"
              "<｜tool▁call▁end｜>") EOS OUTPUT("1") OUTPUT("2") "so</think>A"
        CALLS("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>") EOS
        OUTPUT("3") "done" EOS;
    ChatOptions o = { TEMPLATE_V3, true, false, false };
    Tokenizer *t = open_tokenizer(DATA "v3");
    char *r1 = test_alloc(sizeof v3, 1);
    (void)state;
    must_render(t, tools, 7, o, v3, "v3");
    must_render(t, tools, 3, o, open_end, "v3, open");
    o.kind = TEMPLATE_V31;
    must_render(t, tools, 7, o, v31, "v3.1");
    o.kind = TEMPLATE_R1; /* what was thought after the tools goes, too */
    const char *cut = strstr(v3, "so</think>");
    sprintf(r1, "%.*s%s", (int)(cut - v3), v3, cut + strlen("so</think>"));
    must_render(t, tools, 7, o, r1, "r1");
    free(r1);
    tokenizer_close(t);
}

/* A user who speaks after a tool: the outputs are closed first. */
static void interrupted(void **state)
{
    static const ChatMessage m[] = {
        { ROLE_TOOL, "1", NULL, 0 }, { ROLE_USER, "U", NULL, 0 }
    };
    ChatOptions o = { TEMPLATE_V3, true, false, false };
    Tokenizer *t = open_tokenizer(DATA "v3");
    (void)state;
    must_render(t, m, 2, o, BOS OUTPUTS OUTPUT("1") OUTPUTS_END USER "U" BOT,
                "closed");
    o.tool_quirk = true;
    must_render(t, m, 2, o, BOS OUTPUTS OUTPUT("1") USER "U" BOT, "quirk");
    tokenizer_close(t);
}

/* Trap 40: BOS is in the text; its id comes once. Trap 42: it is found by its
 * own characters. */
static void one_bos(void **state)
{
    Tokenizer *t = open_tokenizer(DATA "v3");
    ChatOptions o = { TEMPLATE_V3, true, false, false };
    Text out = { NULL, 0, 0, false };
    IdList ids = { NULL, 0, 0 };
    Error err;
    (void)state;
    must(chat_render(&out, t, talk, 2, &o, &err), &err);
    must(tokenizer_encode(t, out.text, out.length, &ids, &err), &err);
    assert_int_equal(ids.ids[0], tokenizer_bos(t));
    assert_int_not_equal(ids.ids[1], tokenizer_bos(t));
    assert_int_equal(ids.ids[ids.n - 1], tokenizer_id(t, BOT));
    text_free(&out);
    ids_free(&ids);
    tokenizer_close(t);
}

static void refused(void **state)
{
    static const ChatMessage empty = { ROLE_ASSISTANT, NULL, NULL, 0 };
    static const ChatMessage user = { ROLE_USER, "a", calls, 1 };
    static const ChatMessage tool = { ROLE_TOOL, "a", NULL, 0 };
    static const struct {
        const ChatMessage *message;
        ChatTemplate kind;
        const char *text;
    } cases[] = {
        { &tool, TEMPLATE_NONE, "wanted a chat template, found none" },
        { &tool, TEMPLATE_V2, "message 0: template v2 has no tools" },
        { &user, TEMPLATE_V2, "message 0: template v2 has no tools" },
        { &user, TEMPLATE_V3, "message 0: only an assistant calls tools" },
        { &empty, TEMPLATE_V31, "message 0: wanted a text, found none" }
    };
    Tokenizer *t = open_tokenizer(DATA "v3");
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ChatOptions o = { cases[i].kind, true, false, false };
        Text out = { NULL, 0, 0, false };
        Error err;
        must_fail(chat_render(&out, t, cases[i].message, 1, &o, &err), &err,
                  cases[i].text);
        text_free(&out);
    }
    tokenizer_close(t);
}

static void template_names(void **state)
{
    (void)state;
    assert_string_equal(chat_template_name(TEMPLATE_V2), "v2");
    assert_string_equal(chat_template_name(TEMPLATE_V25), "v2.5");
    assert_string_equal(chat_template_name(TEMPLATE_V3), "v3");
    assert_string_equal(chat_template_name(TEMPLATE_R1), "r1");
    assert_string_equal(chat_template_name(TEMPLATE_V31), "v3.1");
    assert_string_equal(chat_template_name(TEMPLATE_NONE), "none");
}

/* Recognition ------------------------------------------------------------ */

/* What the published templates hold that others do not, in their order. */
#define OLD_USER "{{'" USER "' + message['content']}}"
#define TOOL "'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>'"

static const struct {
    const char *text;
    ChatTemplate kind;
} marked[] = {
    { "{{ bos_token }}{{ 'User: ' + message['content'] + '\\n\\n' }}"
      "{{ 'Assistant: ' + message['content'] + eos_token }}"
      "{{ 'Assistant:' }}", TEMPLATE_V2 },
    { "ns.system_prompt = message['content']" OLD_USER TOOL, TEMPLATE_V25 },
    { "is_first_sp=true" "ns.system_prompt = message['content']" OLD_USER
      TOOL, TEMPLATE_V25 },
    { "is_first_sp=true" OLD_USER TOOL, TEMPLATE_V3 },
    { OLD_USER "content.split('</think>')[-1]" TOOL, TEMPLATE_R1 },
    { "is_first_sp=true" OLD_USER "content.split('</think>')[-1]" TOOL
      "'<｜Assistant｜><think>\\n'", TEMPLATE_R1 },
    { "not thinking is defined" OLD_USER "content.split('</think>', 1)[1]",
      TEMPLATE_V31 },
    { "is_first_sp=true" OLD_USER TOOL "'<think>'", TEMPLATE_NONE },
    { "{{ 'User: ' + message['content'] + '\\n' }}"
      "{{ 'Assistant:' }}", TEMPLATE_NONE },
    { "{{'<|im_start|>' + message['role']}}", TEMPLATE_NONE },
    { "", TEMPLATE_NONE }
};

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

static ChatTemplate found_in(const char *dir, const char *config,
                             const char *jinja)
{
    set_file(dir, "tokenizer_config.json", config);
    set_file(dir, "chat_template.jinja", jinja);
    Tokenizer *t = open_tokenizer(dir);
    ChatTemplate kind = tokenizer_template(t);
    tokenizer_close(t);
    return kind;
}

/* In tokenizer_config.json, in a list there, or in a file of its own. */
static void recognised(void **state)
{
    const char *dir = scratch("chat");
    File file;
    Error err;
    (void)state;
    must(make_dir(dir, &err), &err);
    must(file_open(&file, DATA "v3/tokenizer.json", &err), &err);
    char *path = path_join(dir, "tokenizer.json", &err);
    must(file_write(path, true, file.data, file.size, &err), &err);
    for (size_t i = 0; i < sizeof marked / sizeof marked[0]; i++) {
        Text config = { NULL, 0, 0, false };
        const char *text = marked[i].text;
        text_printf(&config, "{\"chat_template\":");
        text_json_string(&config, text, strlen(text), false);
        text_printf(&config, "}");
        assert_int_equal(found_in(dir, config.text, NULL), marked[i].kind);
        assert_int_equal(found_in(dir, NULL, text), marked[i].kind);
        text_free(&config);
        text_printf(&config, "{\"chat_template\":[{\"name\":\"tool\","
                    "\"template\":\"x\"},{\"name\":\"default\","
                    "\"template\":");
        text_json_string(&config, text, strlen(text), true);
        text_printf(&config, "}]}");
        assert_int_equal(found_in(dir, config.text, NULL), marked[i].kind);
        text_free(&config);
    }
    file_close(&file);
    free(path);
}

static void recognised_published(void **state)
{
    (void)state;
    if (!path_exists(PUBLISHED "v3/tokenizer_config.json")) {
        print_message(PUBLISHED "v3/tokenizer_config.json is absent\n");
        skip();
    }
    Tokenizer *t = open_tokenizer(PUBLISHED "v3");
    assert_int_equal(tokenizer_template(t), TEMPLATE_V3);
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v3_quirk),
        cmocka_unit_test(talks),
        cmocka_unit_test(tool_calls),
        cmocka_unit_test(interrupted),
        cmocka_unit_test(one_bos),
        cmocka_unit_test(refused),
        cmocka_unit_test(template_names),
        cmocka_unit_test(recognised),
        cmocka_unit_test(recognised_published)
    };
    return cmocka_run_group_tests_name("chat", tests, NULL, NULL);
}
