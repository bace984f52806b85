/* check_config.c: config_check() of any sizes within the ranges of config.c's
 * table: no division by zero, no product that wraps. */
#include "eva.h"

#include "config.c"

int main(void)
{
    Config c;
    Error err;
    memset(&c, 0, sizeof c);
    c.topk_method = (TopkMethod)Frama_C_interval(0, 2);
    for (size_t i = 0; i < LENGTH(size_keys); i++) {
        const SizeKey *k = &size_keys[i];
        size_t *field = (size_t *)(void *)((char *)&c + k->offset);
        int64_t low = k->low;
        if (k->null >= 0 && k->null < low)
            low = k->null;
        if (k->absent_v2 >= 0 && k->absent_v2 < low)
            low = k->absent_v2;
        *field = Frama_C_size_t_interval((size_t)low, (size_t)k->high);
    }
    config_check(&c, "config.json", &err);
    return 0;
}
