/* eva.h: what the drivers in this folder share: an Error that holds nothing. */
#ifndef EVA_H
#define EVA_H

#include "base/error.h"

#include "__fc_builtin.h"

#include <stdlib.h>

int fail(Error *err, const char *format, ...)
{
    (void)format;
    err->text[0] = 0;
    return -1;
}

void *allocate(size_t n, size_t size, const char *what, Error *err)
{
    void *p = calloc(n ? n : 1, size);
    if (!p)
        fail(err, "%s", what);
    return p;
}

#endif
