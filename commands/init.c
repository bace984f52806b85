/* init.c: the command that makes a model with random weights. */
#include "commands.h"

/* The words of --dtype; without it, what the config announces. */
static DType chosen_dtype(const Config *c, const Arguments *a)
{
    static const DType named[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3};
    return given(a, O_DTYPE) ? named[a->dtype] : checkpoint_dtype(c);
}

int run_init(const Arguments *a, Error *err)
{
    const char *path = a->line.operands[0];
    Config c;
    if (config_read(&c, path, err) != 0)
        return -1;
    return model_init(&c, path, a->output, a->force, chosen_dtype(&c, a),
                      a->seed, a->std, err);
}
