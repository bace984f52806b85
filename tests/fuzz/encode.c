/* encode.c: any bytes as text: decode(encode(x)) = x where x is UTF-8, refused
 * where it is not; the same streamed byte by byte. The first byte chooses the
 * tokenizer: V3's scheme or V2's. */
#include "fuzz.h"

#include "base/unicode.h"

static const Tokenizer *tokenizer(int v2)
{
    static Tokenizer *t[2];
    Error err;
    if (!t[v2])
        t[v2] = tokenizer_open(v2 ? "tests/data/tokenizer/v2"
                                  : "tests/data/tokenizer/v3", &err);
    MUST(t[v2]);
    return t[v2];
}

static void decode(const Tokenizer *t, const IdList *ids, const char *text,
                   size_t n)
{
    Text all = {0}, streamed = {0};
    Utf8Stream stream = {{0}, 0};
    for (size_t i = 0; i < ids->n; i++) {
        const char *bytes;
        size_t length;
        MUST(tokenizer_decode(t, ids->ids[i], false, &bytes, &length));
        text_add(&all, bytes, length);
        utf8_stream(&stream, bytes, length, false, &streamed);
    }
    utf8_stream(&stream, NULL, 0, true, &streamed);
    MUST(all.length == n && streamed.length == n);
    MUST(!n || !memcmp(all.text, text, n));
    MUST(!n || !memcmp(streamed.text, text, n));
    text_free(&all);
    text_free(&streamed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Error err;
    IdList ids = {0};
    if (!size)
        return 0;
    const Tokenizer *t = tokenizer(data[0] & 1);
    const char *text = (const char *)data + 1;
    int failed = tokenizer_encode(t, text, size - 1, &ids, &err);
    MUST((utf8_valid(text, size - 1) == size - 1) == !failed);
    if (!failed)
        decode(t, &ids, text, size - 1);
    ids_free(&ids);
    return 0;
}
