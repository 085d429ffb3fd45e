/* Products of +1/-1 matrices whose entries are single bits: what the kernels share.
 *
 * A bit is 1 for +1 and 0 for -1.  64 entries of the summed axis share one word, entry k in bit k % 64 of
 * word k / 64; the bits behind the last entry are 0.
 *
 * Bounds   |y| <= cols < 2^30 (checked): int32 holds every sum, and sizes times 8 bytes fit in 64 bits.
 * Trust    Sizes and null pointers are checked at the boundary.  Unused bits are not: the Python side, or
 *          te_pack_columns_f32, leaves them 0.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_XNOR_H
#define TE_XNOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum { TE_OK = 0, TE_NULL_POINTER = 1, TE_BAD_SHAPE = 2 } te_status;

/* Sizes of one product, counted in entries, not words. */
typedef struct {
    int32_t rows, cols, n;
} te_sizes;

#define TE_WORD_BITS 64
#define TE_MAX_COLS (1 << 30)

/* Columns of x that are counted at once: one vector register of words. */
#ifdef __AVX512F__
#define TE_TILE 8
#else
#define TE_TILE 4
#endif

#define TE_INLINE static inline __attribute__((always_inline))

typedef uint64_t te_words __attribute__((vector_size(TE_TILE * sizeof(uint64_t))));

/* Replace each lane by its number of set bits.  By address: registers as arguments would depend on the
 * processor. */
TE_INLINE void te_count(te_words *lanes) {
#ifdef __clang__
    *lanes = __builtin_elementwise_popcount(*lanes);
#else
    for (int32_t t = 0; t < TE_TILE; t++) {
        (*lanes)[t] = (uint64_t)__builtin_popcountll((*lanes)[t]);
    }
#endif
}

TE_INLINE te_status te_check(const te_sizes *s, const void *x, const void *y) {
    if (s == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    if (s->rows < 1 || s->cols < 1 || s->n < 1 || s->cols >= TE_MAX_COLS) {
        return TE_BAD_SHAPE;
    }
    return TE_OK;
}

TE_INLINE int32_t te_words_of(int32_t cols) { return (cols + TE_WORD_BITS - 1) / TE_WORD_BITS; }

te_status te_xnor_gemm(const te_sizes *s, const uint64_t *w, const uint64_t *x, int32_t *y);
te_status te_pack_columns_f32(const te_sizes *s, const float *x, uint64_t *packed);

#endif
