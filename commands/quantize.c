/* quantize.c: the command that writes a model with FP8 weights, or without. */
#include "commands.h"

/* What --scale-fmt says; without it, the scales that the model has. */
static bool powers_of_two(const Model *m, const Arguments *a)
{
    return given(a, O_SCALE_FMT) ? a->scale_fmt == 0
                                 : m->config.scale_fmt_ue8m0;
}

int run_quantize(const Arguments *a, Error *err)
{
    const char *dir = a->line.operands[0];
    bool fp8 = a->to == 0;
    Model m;
    if (!fp8 && given(a, O_SCALE_FMT))
        return fail(err, "--scale-fmt: BF16 weights have no scales");
    if (model_open(&m, dir, err) != 0)
        return -1;
    int status = model_quantize(&m, dir, a->output, a->force,
                                fp8 ? DT_F8_E4M3 : DT_BF16,
                                powers_of_two(&m, a), err);
    model_close(&m);
    return status;
}
