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
#define VW 16
#define MANY_VECTORS 1
#elif defined(__AVX__)
#define VW 8
#define MANY_VECTORS 0
#elif defined(__aarch64__) || defined(__VSX__) || defined(__s390x__)
#define VW 4
#define MANY_VECTORS 1
#else
#define VW 4
#define MANY_VECTORS 0
#endif

#if defined(__GNUC__) && !defined(__TINYC__) && !defined(PLAIN_VECTORS)
#define GNU_VECTORS 1
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define ALIGNED __attribute__((aligned(64)))
#define PREFETCH(p) __builtin_prefetch(p, 0, 2) /* to the second cache */
typedef float V __attribute__((vector_size(VW * sizeof(float))));
typedef V VOnce __attribute__((may_alias, aligned(1)));
typedef int32_t VMask __attribute__((vector_size(VW * sizeof(float))));
typedef uint64_t VBits __attribute__((vector_size(VW * sizeof(float))));
typedef float V4 __attribute__((vector_size(4 * sizeof(float))));
typedef float V8 __attribute__((vector_size(8 * sizeof(float))));
#define AT(v, i) (v)[i]
#else
#define GNU_VECTORS 0
#define INLINE static inline
#define NOINLINE
#define ALIGNED
#define PREFETCH(p) ((void)(p))
typedef struct {
    float e[VW];
} V;
typedef uint64_t VBits; /* any number of bits, with & + ~ */
#define AT(v, i) (v).e[i]
#endif
#if defined(__has_builtin)
#define HAS_BUILTIN(name) __has_builtin(name)
#else
#define HAS_BUILTIN(name) 0
#endif

/* The lanes of a sum, and their tree: fold halves. */
enum { LANES = 16 };

INLINE float tree(const float lanes[LANES])
{
    float a[LANES];
    memcpy(a, lanes, sizeof a);
    for (int s = LANES / 2; s > 0; s /= 2)
        for (int l = 0; l < s; l++)
            a[l] = a[l] + a[l + s];
    return a[0];
}

/* p may have any alignment. */
INLINE V v_load(const void *p)
{
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* A load that happens once: gcc would load again for each use, as an operand
 * of the instruction, and run out of loads. */
INLINE V v_load_once(const void *p)
{
#if GNU_VECTORS
    return *(const volatile VOnce *)p;
#else
    return v_load(p);
#endif
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

INLINE V v_add(V a, V b)
{
    V v;
    for (int i = 0; i < VW; i++)
        AT(v, i) = AT(a, i) + AT(b, i);
    return v;
}

INLINE V v_mul(V a, V b)
{
    V v;
    for (int i = 0; i < VW; i++)
        AT(v, i) = AT(a, i) * AT(b, i);
    return v;
}

/* a where it is greater, else b. */
INLINE V v_max(V a, V b)
{
    V v;
#if GNU_VECTORS
    VMask greater = a > b; /* all bits of an element, or none */
    v = (V)((greater & (VMask)a) | (~greater & (VMask)b));
#else
    for (int i = 0; i < VW; i++)
        AT(v, i) = AT(a, i) > AT(b, i) ? AT(a, i) : AT(b, i);
#endif
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
