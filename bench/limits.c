/* limits.c: reading memory and multiplying, as fast as one thread can. */
#include "limits.h"

#include "base/vector.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile float sink;

double cpu_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

/* Eight streams, prefetched: one alone stays a fifth below. */
double read_limit(const unsigned char *p, size_t n)
{
    enum { STREAMS = 8, LINE = 64, AHEAD = 1024 };
    size_t part = n / STREAMS;
    VBits any, bits;
    double start = cpu_seconds();
    memset(&any, 0, sizeof any);
    for (size_t i = 0; i + AHEAD < part; i += LINE)
        for (size_t s = 0; s < STREAMS; s++) {
            PREFETCH(p + part * s + i + AHEAD);
            for (size_t j = 0; j < LINE; j += sizeof bits) {
                memcpy(&bits, p + part * s + i + j, sizeof bits);
                any |= bits;
            }
        }
    start = cpu_seconds() - start;
    memcpy((void *)&sink, &any, sizeof sink);
    return (double)n / start;
}

double fma_limit(void)
{
    enum { CHAINS = 12, STEPS = 500000 };
    V a = v_splat(0.5f), b = v_splat(1), c0 = b, c1 = b, c2 = b, c3 = b;
    V c4 = b, c5 = b, c6 = b, c7 = b, c8 = b, c9 = b, c10 = b, c11 = b;
    double start = cpu_seconds();
    for (int i = 0; i < STEPS; i++) {
        c0 = v_fma(c0, a, b), c1 = v_fma(c1, a, b), c2 = v_fma(c2, a, b);
        c3 = v_fma(c3, a, b), c4 = v_fma(c4, a, b), c5 = v_fma(c5, a, b);
        c6 = v_fma(c6, a, b), c7 = v_fma(c7, a, b), c8 = v_fma(c8, a, b);
        c9 = v_fma(c9, a, b), c10 = v_fma(c10, a, b), c11 = v_fma(c11, a, b);
    }
    start = cpu_seconds() - start;
    a = v_fma(v_fma(c0, c1, c2), v_fma(c3, c4, c5), v_fma(c6, c7, c8));
    a = v_fma(a, v_fma(c9, c10, c11), b);
    sink = AT(a, 0);
    return 2.0 * VW * CHAINS * STEPS / start;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *a, size_t n)
{
    qsort(a, n, sizeof *a, ascending);
    return a[n / 2];
}

double anonymous_memory(void)
{
    double kilobytes = 0;
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");
    if (f == NULL)
        return 0;
    while (fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "RssAnon: %lf", &kilobytes) == 1)
            break;
    fclose(f);
    return kilobytes * 1024;
}
