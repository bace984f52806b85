/* npy.c: any bytes as an array of NumPy's, or as an archive of them; every
 * byte that an array claims can be read. */
#include "fuzz.h"

#include "base/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static volatile unsigned sum;
    bool archive = size > 0 && data[0] == 'P';
    Error err;
    Safetensors st;
    if (npy_open(&st, fuzz_file(archive ? "input.npz" : "input.npy", data,
                                size), &err)) {
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
