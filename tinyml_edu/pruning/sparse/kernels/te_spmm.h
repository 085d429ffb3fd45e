/* Sparse matrix times dense matrix: what the kernels share.
 *
 *   y[i,t] = sum_j w[i,j] * x[j,t]      w (rows, cols) in one of the storage formats
 *
 * Shapes   x (cols, n) and y (rows, n), row-major; y must not overlap anything else.
 * Types    float32: values, x and y float.  -DTE_S8: values and x int8_t, y int32_t.
 *          -DTE_INDEX=uint8_t, uint16_t or uint32_t: CSR's and CSC's indices.
 * Bounds   int8: |y| <= cols * 2^14, so cols < 2^17 keeps it inside int32 (checked).
 *          float32: off by at most k * u / (1 - k * u) * sum_j |w x| for k values a row, u = 2^-24
 *          (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5).
 * Trust    Sizes and null pointers are checked at the boundary.  Indices inside the arrays are not: the
 *          Python side checks them once, when a matrix is made or read.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_SPMM_H
#define TE_SPMM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef TE_S8
typedef int8_t te_value;
typedef int32_t te_sum;
#else
typedef float te_value;
typedef float te_sum;
#endif

#ifndef TE_INDEX
#define TE_INDEX uint16_t
#endif
typedef TE_INDEX te_index;

typedef enum { TE_OK = 0, TE_NULL_POINTER = 1, TE_BAD_SHAPE = 2, TE_BAD_PARAMETER = 3 } te_status;

/* Sizes of one product. */
typedef struct {
    int32_t rows, cols, n;
} te_sizes;

/* Columns of x that are summed at once: four rows of such sums fill half of the vector registers. */
#ifdef __AVX512F__
#define TE_TILE 32
#else
#define TE_TILE 16
#endif

#define TE_INLINE static inline __attribute__((always_inline))

/* A tile of sums and of values, in as many registers as the compiler needs for it. */
typedef te_sum te_sums __attribute__((vector_size(TE_TILE * sizeof(te_sum))));
typedef te_value te_values __attribute__((vector_size(TE_TILE * sizeof(te_value))));

/* Load a tile and widen it.  By address: registers as arguments would depend on the processor. */
TE_INLINE void te_load(te_sums *tile, const te_value *from) {
    te_values values;
    memcpy(&values, from, sizeof values);
    *tile = __builtin_convertvector(values, te_sums);
}

TE_INLINE te_status te_check(const te_sizes *s, const void *values, const void *x, const void *y) {
    if (s == NULL || values == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    if (s->rows < 1 || s->cols < 1 || s->n < 1 || s->cols >= 1 << 17) {
        return TE_BAD_SHAPE;
    }
    return TE_OK;
}

/* Return pointers[i], stored in 1, 2 or 4 bytes. */
TE_INLINE size_t te_pointer(const void *pointers, int32_t bytes, size_t i) {
    switch (bytes) {
    case 1:
        return ((const uint8_t *)pointers)[i];
    case 2:
        return ((const uint16_t *)pointers)[i];
    default:
        return ((const uint32_t *)pointers)[i];
    }
}

TE_INLINE te_status te_check_pointers(const void *pointers, int32_t bytes) {
    if (pointers == NULL) {
        return TE_NULL_POINTER;
    }
    return bytes == 1 || bytes == 2 || bytes == 4 ? TE_OK : TE_BAD_PARAMETER;
}

/* acc[t] += w * x[t] for t < width. */
TE_INLINE void te_add_scaled(te_sum *restrict acc, te_value w, const te_value *restrict x, int32_t width) {
    if (width == TE_TILE) {
        te_sums sums, tile;
        memcpy(&sums, acc, sizeof sums);
        te_load(&tile, x);
        sums += (te_sum)w * tile;
        memcpy(acc, &sums, sizeof sums);
        return;
    }
    for (int32_t t = 0; t < width; t++) {
        acc[t] += (te_sum)w * (te_sum)x[t];
    }
}

/* Call ROW(first column of the tile, width) over n columns of x: whole tiles with a width that the compiler
 * knows, so that it unrolls and vectorises them, then a single column or the rest. */
#define TE_FOR_TILES(n, ROW)                                                   \
    do {                                                                       \
        int32_t tile = 0;                                                      \
        for (; tile + TE_TILE <= (n); tile += TE_TILE) {                       \
            ROW(tile, TE_TILE);                                                \
        }                                                                      \
        if ((n) - tile == 1) {                                                 \
            ROW(tile, 1);                                                      \
        } else if (tile < (n)) {                                               \
            ROW(tile, (n) - tile);                                             \
        }                                                                      \
    } while (0)

te_status te_spmm_dense(const te_sizes *s, const te_value *values, const te_value *x, te_sum *y);
te_status te_spmm_csr(const te_sizes *s, const te_value *values, const te_index *indices,
                      const void *pointers, int32_t pointer_bytes, const te_value *x, te_sum *y);
te_status te_spmm_csc(const te_sizes *s, const te_value *values, const te_index *indices,
                      const void *pointers, int32_t pointer_bytes, const te_value *x, te_sum *y);
te_status te_spmm_bitmask(const te_sizes *s, const te_value *values, const uint8_t *mask, const te_value *x,
                          te_sum *y);
te_status te_spmm_relative(const te_sizes *s, const te_value *values, const uint8_t *zeros,
                           const void *pointers, int32_t pointer_bytes, int32_t pes, const te_value *x,
                           te_sum *y);
te_status te_spmm_two_four(const te_sizes *s, const te_value *values, const uint8_t *places,
                           const te_value *x, te_sum *y);

#endif
