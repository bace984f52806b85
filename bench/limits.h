/* limits.h: what one thread of this machine can do at most.
 *
 * Limits move while others use a machine. So they are measured just before
 * what is compared with them, several times, and medians of the shares count.
 */
#ifndef BENCH_LIMITS_H
#define BENCH_LIMITS_H

#include <stddef.h>

enum { REGION = 1 << 28 };  /* bytes to read: larger than a core's caches */

/* Processor time: what others take of the machine hardly counts. */
double cpu_seconds(void);
/* Bytes a second of reading n bytes at p. */
double read_limit(const unsigned char *p, size_t n);
/* Floating-point operations a second of fused multiply-adds (two an element)
 * on vectors that stay in registers. */
double fma_limit(void);
/* Sorts a. */
double median(double *a, size_t n);
/* Memory that no file backs, in bytes; 0 where the system does not tell. */
double anonymous_memory(void);

#endif
