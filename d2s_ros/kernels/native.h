/* What all files of the compiled part share.
 *
 * Plain C behind ctypes: no Python inside, so one library serves every interpreter, and whoever
 * calls it holds no lock. Callers check shapes and types (library.py); nothing is checked here. */
#ifndef D2S_NATIVE_H
#define D2S_NATIVE_H

#include <stdint.h>

#define API __attribute__((visibility("default")))

/* The hot functions are compiled for several instruction sets; the loader takes the best one. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#else
#define VECTORISED __attribute__((noinline))
#endif

/* Sixteen numbers at once, wherever they lie. */
enum { LANES = 16 };
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t)), may_alias));

/* Called by these: compiled as they are. */
#define INLINED static inline __attribute__((always_inline))

#endif
