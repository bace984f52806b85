/* model.c: config.json, a zero byte, model.safetensors; a model that opens
 * runs two tokens in both forms or says which number is none. */
#include "fuzz.h"

static void run(const Model *m, bool naive)
{
    static const int32_t ids[] = {0, 0};
    SessionOptions o = {.ctx = 4, .naive = naive};
    Error err;
    Session s;
    if (session_bytes(&m->config, &o) > 64u << 20
        || session_open(&s, m, &o, &err))
        return;
    if (session_forward(&s, ids, 2, NULL, &err))
        MUST(!strchr(err.text, '\n') && err.text[0]);
    session_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, 0, size);
    size_t n = end ? (size_t)(end - data) : size;
    Error err;
    Model m;
    fuzz_file("config.json", data, n);
    fuzz_file("model.safetensors", end ? end + 1 : data,
              end ? size - n - 1 : 0);
    if (model_open(&m, fuzz_dir(), &err)) {
        MUST(!strchr(err.text, '\n') && err.text[0]);
        return 0;
    }
    run(&m, false);
    run(&m, true);
    model_close(&m);
    return 0;
}
