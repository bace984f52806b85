/* golden.c: the command that makes packs to judge engines by. */
#include "commands.h"

int run_golden(const Arguments *a, Error *err)
{
    const GoldenPack *p = golden_find(a->line.operands[0], err);
    return p == NULL ? -1 : golden_make(p, a->output, a->force, err);
}
