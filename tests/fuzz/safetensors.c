/* safetensors.c: any bytes as a file of tensors; every byte that a tensor
 * claims can be read. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static volatile unsigned sum;
    Error err;
    Safetensors st;
    if (st_open(&st, fuzz_file("input.safetensors", data, size), &err)) {
        MUST(!strchr(err.text, '\n') && err.text[0]);
        return 0;
    }
    for (size_t i = 0; i < st.n_tensors; i++) {
        const StTensor *t = &st.tensors[i];
        MUST(t->bytes == t->elements * dtype_size(t->dtype));
        MUST(st_find(&st, t->name) == t);
        for (size_t k = 0; k < t->bytes; k++)
            sum += t->data[k];
    }
    st_close(&st);
    return 0;
}
