/* tokenizer.c: any bytes as tokenizer.json; one that opens encodes, and what
 * it encodes decodes. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello, w\xc3\xb6rld 123\n\n  again!";
    Error err;
    IdList ids = {0};
    Tokenizer *t;
    fuzz_file("tokenizer.json", data, size);
    t = tokenizer_open(fuzz_dir(), &err);
    if (!t) {
        MUST(!strchr(err.text, '\n') && err.text[0]);
        return 0;
    }
    if (!tokenizer_encode(t, text, sizeof text - 1, &ids, &err))
        for (size_t i = 0; i < ids.n; i++) {
            const char *bytes;
            size_t n;
            MUST(ids.ids[i] >= 0
                 && (size_t)ids.ids[i] < tokenizer_size(t));
            MUST(tokenizer_decode(t, ids.ids[i], false, &bytes, &n));
        }
    ids_free(&ids);
    tokenizer_close(t);
    return 0;
}
