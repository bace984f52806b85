/* chat.c: a conversation as the text that the model was trained to go on
 * from. Each function below writes what one published template would: they
 * are programs in a template language, which this is not.
 *
 * The text contains BOS where the template does: encode it without another.
 * What a template leaves out (tools in V2) is refused. docs/tokenizer.md shows
 * each form, and what tool_quirk is about. */
#include "deepseek.h"

#include <string.h>

#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define END "<｜end▁of▁sentence｜>"
#define CALLS_BEGIN "<｜tool▁calls▁begin｜>"
#define CALLS_END "<｜tool▁calls▁end｜>"
#define CALL_BEGIN "<｜tool▁call▁begin｜>"
#define CALL_END "<｜tool▁call▁end｜>"
#define SEPARATOR "<｜tool▁sep｜>"
#define OUTPUTS_BEGIN "<｜tool▁outputs▁begin｜>"
#define OUTPUTS_END "<｜tool▁outputs▁end｜>"
#define OUTPUT_BEGIN "<｜tool▁output▁begin｜>"
#define OUTPUT_END "<｜tool▁output▁end｜>"

typedef struct {
    Text *out;
    const Tokenizer *t;
    const ChatOptions *options;
    bool called;          /* a call was written (quirk: ever) */
    bool tool_turn;       /* the last message was a tool's */
    bool had_output;      /* a tool's output was written (quirk: ever) */
    bool user_turn;       /* V3.1: the last message was a user's */
} Chat;

static void put(Chat *c, const char *text)
{
    text_add(c->out, text, strlen(text));
}

static void put_token(Chat *c, int32_t id)
{
    const char *bytes;
    size_t n;
    if (tokenizer_decode(c->t, id, false, &bytes, &n))
        text_add(c->out, bytes, n);
}

/* System messages first, wherever they stand. V2.5 keeps the last alone. */
static void put_system(Chat *c, const ChatMessage *m, size_t n)
{
    const char *last = NULL;
    for (size_t i = 0; i < n; i++) {
        if (m[i].role != ROLE_SYSTEM)
            continue;
        if (c->options->kind != TEMPLATE_V25) {
            if (last != NULL)
                put(c, "\n\n");
            put(c, m[i].content);
        }
        last = m[i].content;
    }
    if (c->options->kind == TEMPLATE_V25 && last != NULL)
        put(c, last);
}

/* V2 --------------------------------------------------------------------- */

static void put_v2(Chat *c, const ChatMessage *m)
{
    if (m->role == ROLE_USER)
        put(c, "User: ");
    if (m->role == ROLE_ASSISTANT)
        put(c, "Assistant: ");
    put(c, m->content);
    if (m->role == ROLE_ASSISTANT)
        put_token(c, tokenizer_eos(c->t));
    else
        put(c, "\n\n");
}

/* V2.5, V3, R1 ----------------------------------------------------------- */

static void put_call(Chat *c, const ChatCall *call)
{
    put(c, CALL_BEGIN);
    put(c, call->type);
    put(c, SEPARATOR);
    put(c, call->name);
    put(c, "\n```json\n");
    put(c, call->arguments);
    put(c, "\n```" CALL_END);
}

/* As the template has it: the flag of the first call is never taken back, and
 * what closes the calls follows every call but the first. */
static void put_calls_quirk(Chat *c, const ChatMessage *m)
{
    for (size_t i = 0; i < m->n_calls; i++) {
        put(c, c->called ? "\n" : ASSISTANT CALLS_BEGIN);
        put_call(c, &m->calls[i]);
        if (c->called)
            put(c, CALLS_END END);
        c->called = true;
    }
}

static void put_calls(Chat *c, const ChatMessage *m)
{
    put(c, CALLS_BEGIN);
    for (size_t i = 0; i < m->n_calls; i++) {
        if (i > 0)
            put(c, "\n");
        put_call(c, &m->calls[i]);
    }
    put(c, CALLS_END);
}

/* What the assistant said after thinking: R1 is not shown its old thoughts.
 * Its template lets those after a tool's output stand; only with tool_quirk
 * does this. */
static const char *after_thinking(const Chat *c, const char *content)
{
    if (c->options->kind != TEMPLATE_R1
        || (c->options->tool_quirk && c->tool_turn))
        return content;
    static const char close[] = "</think>";
    const char *at = content, *next;
    while ((next = strstr(at, close)) != NULL)
        at = next + sizeof close - 1;
    return at;
}

static void put_assistant(Chat *c, const ChatMessage *m)
{
    bool quirk = c->options->tool_quirk;
    if (quirk && m->content == NULL) {
        put_calls_quirk(c, m);
        return;
    }
    put(c, c->tool_turn ? OUTPUTS_END : ASSISTANT);
    if (m->content != NULL)
        put(c, after_thinking(c, m->content));
    if (!quirk && m->n_calls > 0)
        put_calls(c, m);
    put(c, END);
}

static void put_output(Chat *c, const ChatMessage *m)
{
    bool more = c->options->tool_quirk ? c->had_output : c->tool_turn;
    put(c, more ? "\n" : OUTPUTS_BEGIN);
    put(c, OUTPUT_BEGIN);
    put(c, m->content);
    put(c, OUTPUT_END);
    c->had_output = true;
}

static void put_v3(Chat *c, const ChatMessage *m)
{
    if (m->role == ROLE_SYSTEM)
        return;
    if (m->role == ROLE_USER) {
        if (c->tool_turn && !c->options->tool_quirk)
            put(c, OUTPUTS_END);
        put(c, USER);
        put(c, m->content);
    } else if (m->role == ROLE_ASSISTANT) {
        put_assistant(c, m);
    } else {
        put_output(c, m);
    }
    c->tool_turn = m->role == ROLE_TOOL;
}

static void end_v3(Chat *c)
{
    const ChatOptions *o = c->options;
    if (c->tool_turn)
        put(c, OUTPUTS_END);
    else if (o->generation_prompt)
        put(c, o->kind == TEMPLATE_R1 && o->thinking ? ASSISTANT "<think>\n"
                                                     : ASSISTANT);
}

/* V3.1 ------------------------------------------------------------------- */

static void put_calls_v31(Chat *c, const ChatMessage *m)
{
    put(c, CALLS_BEGIN);
    for (size_t i = 0; i < m->n_calls; i++) {
        put(c, CALL_BEGIN);
        put(c, m->calls[i].name);
        put(c, SEPARATOR);
        put(c, m->calls[i].arguments);
        put(c, CALL_END);
    }
    put(c, CALLS_END);
}

/* Old thoughts end at the first </think> here; what follows a tool's output
 * is kept whole. */
static void put_assistant_v31(Chat *c, const ChatMessage *m)
{
    const char *content = m->content == NULL ? "" : m->content;
    const char *close = strstr(content, "</think>");
    if (c->user_turn)
        put(c, ASSISTANT "</think>");
    if (close != NULL && m->n_calls == 0 && !c->tool_turn)
        content = close + strlen("</think>");
    put(c, content);
    if (m->n_calls > 0)
        put_calls_v31(c, m);
    put(c, END);
}

static void put_v31(Chat *c, const ChatMessage *m)
{
    if (m->role == ROLE_SYSTEM)
        return;
    if (m->role == ROLE_ASSISTANT) {
        put_assistant_v31(c, m);
    } else {
        put(c, m->role == ROLE_USER ? USER : OUTPUT_BEGIN);
        put(c, m->content);
        put(c, m->role == ROLE_USER ? "" : OUTPUT_END);
    }
    c->user_turn = m->role == ROLE_USER;
    c->tool_turn = m->role == ROLE_TOOL;
}

static void end_v31(Chat *c)
{
    if (c->options->generation_prompt && c->user_turn)
        put(c, c->options->thinking ? ASSISTANT "<think>"
                                    : ASSISTANT "</think>");
}

/* All of them ------------------------------------------------------------ */

static const struct {
    ChatTemplate kind;
    const char *name;
} names[] = {
    { TEMPLATE_V2, "v2" }, { TEMPLATE_V25, "v2.5" }, { TEMPLATE_V3, "v3" },
    { TEMPLATE_R1, "r1" }, { TEMPLATE_V31, "v3.1" }, { TEMPLATE_NONE, "none" }
};

const char *chat_template_name(ChatTemplate kind)
{
    size_t i = 0;
    while (names[i].kind != TEMPLATE_NONE && names[i].kind != kind)
        i++;
    return names[i].name;
}

static int check_message(const ChatMessage *m, size_t i, ChatTemplate kind,
                         Error *err)
{
    if (kind == TEMPLATE_V2 && (m->role == ROLE_TOOL || m->n_calls > 0))
        return fail(err, "message %zu: template v2 has no tools", i);
    if (m->content == NULL && (m->role != ROLE_ASSISTANT || m->n_calls == 0))
        return fail(err, "message %zu: wanted a text, found none", i);
    if (m->n_calls > 0 && m->role != ROLE_ASSISTANT)
        return fail(err, "message %zu: only an assistant calls tools", i);
    return 0;
}

static int check_chat(const Tokenizer *t, const ChatMessage *messages,
                      size_t n, ChatTemplate kind, Error *err)
{
    if (kind == TEMPLATE_NONE)
        return fail(err, "wanted a chat template, found none");
    if (kind == TEMPLATE_V2 && tokenizer_eos(t) < 0)
        return fail(err, "template v2: wanted an eos_token, found none");
    for (size_t i = 0; i < n; i++) {
        if (check_message(&messages[i], i, kind, err) != 0)
            return -1;
    }
    return 0;
}

int chat_render(Text *out, const Tokenizer *t, const ChatMessage *messages,
                size_t n, const ChatOptions *o, Error *err)
{
    Chat c = { out, t, o, false, false, false, false };
    if (check_chat(t, messages, n, o->kind, err) != 0)
        return -1;
    put_token(&c, tokenizer_bos(t));
    if (o->kind != TEMPLATE_V2)
        put_system(&c, messages, n);
    for (size_t i = 0; i < n; i++) {
        if (o->kind == TEMPLATE_V2)
            put_v2(&c, &messages[i]);
        else if (o->kind == TEMPLATE_V31)
            put_v31(&c, &messages[i]);
        else
            put_v3(&c, &messages[i]);
    }
    if (o->kind == TEMPLATE_V31)
        end_v31(&c);
    else if (o->kind != TEMPLATE_V2)
        end_v3(&c);
    else if (o->generation_prompt)
        put(&c, "Assistant:");
    return out->failed ? fail(err, "no memory for a conversation") : 0;
}
