/* vector.h: VW floats at once, by the compiler's own vector types.
 *
 * No intrinsics: an operation is a loop over the elements that every GNU
 * compiler turns into one instruction. Elsewhere, or with PLAIN_VECTORS, a
 * vector is a struct and the loops stay loops; the bits are the same. */
#ifndef BASE_VECTOR_H
#define BASE_VECTOR_H

#include "maths.h"

/* The widest vector of the target (a wider type is lowered badly), and
 * whether it has 32 of them. */
#if defined(__AVX512F__)
enum { VW = 16, MANY_VECTORS = 1 };
#elif defined(__AVX__)
enum { VW = 8, MANY_VECTORS = 0 };
#elif defined(__aarch64__) || defined(__VSX__) || defined(__s390x__)
enum { VW = 4, MANY_VECTORS = 1 };
#else
enum { VW = 4, MANY_VECTORS = 0 };
#endif

#if defined(__GNUC__) && !defined(__TINYC__) && !defined(PLAIN_VECTORS)
#define GNU_VECTORS 1
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(p) __builtin_prefetch(p)
typedef float V __attribute__((vector_size(VW * sizeof(float))));
#define AT(v, i) (v)[i]
#else
#define GNU_VECTORS 0
#define INLINE static inline
#define PREFETCH(p) ((void)(p))
typedef struct {
    float e[VW];
} V;
#define AT(v, i) (v).e[i]
#endif
#if defined(__has_builtin)
#define HAS_BUILTIN(name) __has_builtin(name)
#else
#define HAS_BUILTIN(name) 0
#endif

/* p may have any alignment. */
INLINE V v_load(const void *p)
{
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void v_store(void *p, V v)
{
    memcpy(p, &v, sizeof v);
}

INLINE V v_splat(float f)
{
    V v;
    for (int i = 0; i < VW; i++)
        AT(v, i) = f;
    return v;
}

INLINE V v_fma(V a, V b, V c)
{
    V v;
    for (int i = 0; i < VW; i++)
        AT(v, i) = fma32(AT(a, i), AT(b, i), AT(c, i));
    return v;
}

#endif
