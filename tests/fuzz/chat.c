/* chat.c: any bytes as a conversation, rendered by every template: messages
 * begin with a byte for role, calls and options and end with a zero byte. */
#include "fuzz.h"

enum { MESSAGES = 16 };

static size_t split(ChatMessage *messages, char *text, size_t size,
                    const ChatCall *call)
{
    size_t n = 0;
    char *end = text + size;
    while (text < end && n < MESSAGES) {
        ChatMessage *m = &messages[n++];
        m->role = (ChatRole)(*text & 3);
        m->n_calls = m->role == ROLE_ASSISTANT ? *text >> 2 & 3 : 0;
        m->calls = call;
        m->content = text + 1;
        text += strlen(text + 1) + 2;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static Tokenizer *t;
    static const ChatCall calls[3] = {{"function", "f", "{}"},
                                      {"function", "g", "{\"a\": 1}"},
                                      {"function", "h", ""}};
    ChatMessage messages[MESSAGES] = {{0}};
    Error err;
    if (!t)
        t = tokenizer_open("tests/data/tokenizer/v3", &err);
    if (!size || !t)
        return t ? 0 : (abort(), 0);
    char *text = calloc(size + 2, 1);
    MUST(text);
    memcpy(text, data, size);
    size_t n = split(messages, text + 1, size - 1, calls);
    for (int kind = TEMPLATE_V2; kind <= TEMPLATE_V31; kind++) {
        ChatOptions o = {(ChatTemplate)kind, data[0] & 1, data[0] & 2,
                         data[0] & 4};
        Text out = {0};
        if (chat_render(&out, t, messages, n, &o, &err))
            MUST(!strchr(err.text, '\n') && err.text[0]);
        text_free(&out);
    }
    free(text);
    return 0;
}
