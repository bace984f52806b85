/* chat.c: the command that holds a conversation.
 *
 * After each message the whole conversation is rendered and encoded anew; the
 * ids it shares with those in the cache are not run again. */
#include "commands.h"

#include "../base/os.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Run run;
    ChatOptions options;
    ChatMessage *messages;  /* each content is the chat's own */
    size_t n, capacity;
    IdList cached;          /* the ids of which the cache holds the first */
    GenerateStats stats;
} Chat;

static void chat_close(Chat *c)
{
    for (size_t i = 0; i < c->n; i++)
        free((void *)(uintptr_t)c->messages[i].content);
    free(c->messages);
    ids_free(&c->cached);
    run_close(&c->run);
}

static int chat_add(Chat *c, ChatRole role, const char *text, size_t n,
                    Error *err)
{
    if (c->n == c->capacity) {
        size_t more = c->capacity * 2 + 8;
        ChatMessage *grown = realloc(c->messages, more * sizeof *grown);
        if (grown == NULL)
            return fail(err, "not enough memory for the conversation");
        c->messages = grown;
        c->capacity = more;
    }
    char *content = allocate(n + 1, 1, "the conversation", err);
    if (content == NULL)
        return -1;
    memcpy(content, text, n);
    c->messages[c->n++] = (ChatMessage){.role = role, .content = content};
    return 0;
}

/* One line of stdin without its end: 1, or 0 at the end of the input. */
static int chat_read(Text *line, Error *err)
{
    int byte;
    line->length = 0;
    if (os_is_terminal(stdin))
        fputs("> ", stderr);
    while ((byte = getchar()) != EOF && byte != '\n') {
        char c = (char)byte;
        text_add(line, &c, 1);
    }
    if (ferror(stdin))
        return fail(err, "cannot read standard input: %s", strerror(errno));
    if (line->failed)
        return fail(err, "not enough memory for the input");
    if (line->length > 0 && line->text[line->length - 1] == '\r')
        line->length--;
    return byte != EOF || line->length > 0;
}

static int chat_ids(Chat *c, IdList *ids, Error *err)
{
    Text text = {0};
    int status = chat_render(&text, c->run.tokenizer, c->messages, c->n,
                             &c->options, err);
    if (status == 0)
        status = tokenizer_encode(c->run.tokenizer, text.text, text.length,
                                  ids, err);
    text_free(&text);
    return status;
}

/* How many ids of the conversation the cache holds already; at least one has
 * to run, for its logits. */
static size_t chat_known(const Chat *c, const IdList *ids)
{
    size_t n = 0, most = c->run.session.pos;
    if (most > ids->n - 1)
        most = ids->n - 1;
    while (n < most && c->cached.ids[n] == ids->ids[n])
        n++;
    return n;
}

static void chat_count(GenerateStats *sum, const GenerateStats *s)
{
    sum->prompt_tokens += s->prompt_tokens;
    sum->prompt_seconds += s->prompt_seconds;
    sum->new_tokens += s->new_tokens;
    sum->decode_seconds += s->decode_seconds;
}

/* Runs what the cache does not hold and prints the answer, which ids and p
 * gather. */
static int chat_generate(Chat *c, const Arguments *a, IdList *ids, Printer *p,
                         Error *err)
{
    size_t known = run_rewind(&c->run, chat_known(c, ids));
    GenerateStats stats = {0};
    c->run.generate.seed = a->seed + c->n;
    if (print_generated(&c->run, ids->ids + known, ids->n - known,
                        given(a, O_NEW) ? a->n : SIZE_MAX, p, &stats,
                        err) != 0)
        return -1;
    for (size_t i = 0; i < p->ids.n; i++)
        if (ids_add(ids, p->ids.ids[i], err) != 0)
            return -1;
    chat_count(&c->stats, &stats);
    return p->all.failed ? fail(err, "not enough memory for the answer")
                         : chat_add(c, ROLE_ASSISTANT,
                                    p->all.length ? p->all.text : "",
                                    p->all.length, err);
}

static int chat_answer(Chat *c, const Arguments *a, Error *err)
{
    Printer p = {.tokenizer = c->run.tokenizer, .keep = true};
    IdList ids = {0};
    int status = chat_ids(c, &ids, err);
    if (status == 0)
        status = chat_generate(c, a, &ids, &p, err);
    printer_close(&p);
    ids_free(&c->cached);
    c->cached = ids;
    return status;
}

static int chat_loop(Chat *c, const Arguments *a, Error *err)
{
    Text line = {0};
    int status = 0;
    if (a->system != NULL)
        status = chat_add(c, ROLE_SYSTEM, a->system, strlen(a->system), err);
    while (status == 0 && (status = chat_read(&line, err)) == 1) {
        status = 0;
        if (line.length == 0)
            continue;
        status = chat_add(c, ROLE_USER, line.text, line.length, err);
        if (status == 0)
            status = chat_answer(c, a, err);
        if (was_interrupted() && !os_is_terminal(stdin))
            break;
    }
    text_free(&line);
    return status;
}

static int chat_choose_template(Chat *c, const Arguments *a, Error *err)
{
    static const ChatTemplate named[] = {TEMPLATE_V2, TEMPLATE_V25,
                                         TEMPLATE_V3, TEMPLATE_R1,
                                         TEMPLATE_V31};
    c->options = (ChatOptions){.generation_prompt = true,
                               .thinking = a->think};
    c->options.kind = given(a, O_TEMPLATE)
                          ? named[a->chat_template]
                          : tokenizer_template(c->run.tokenizer);
    if (c->options.kind != TEMPLATE_NONE)
        return 0;
    return fail(err, "%s: tokenizer_config.json has no chat template known "
                "here: choose one with --template", c->run.dir);
}

int run_chat(const Arguments *a, Error *err)
{
    Chat c = {0};
    int status = run_open(&c.run, a, err);
    if (status == 0)
        status = want_tokenizer(&c.run, "", err);
    if (status == 0)
        status = chat_choose_template(&c, a, err);
    if (status == 0)
        status = set_sampling(&c.run, a, err);
    if (status == 0)
        status = open_session(&c.run, a, 0, false, NULL, err);
    if (status == 0)
        status = chat_loop(&c, a, err);
    if (status == 0)
        print_stats(&c.run, &c.stats,
                    was_interrupted() ? "; interrupted" : "");
    chat_close(&c);
    return status == 0 && was_interrupted() ? 1 : status;
}
