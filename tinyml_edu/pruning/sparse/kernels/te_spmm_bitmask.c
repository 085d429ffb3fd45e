/* Bit-masked matrix times a dense matrix.
 *
 *   y[i,t] = sum over the set bits j of mask[i] of (next value) * x[j,t]
 *
 * Shapes   values (nnz), mask (rows, ceil(cols / 8)), x (cols, n), y (rows, n); te_spmm.h has the types.
 * Method   64 mask bits at a time; "count trailing zeros" jumps from one set bit to the next, so that the
 *          cost is one step a value and one a word.
 * Cost     nnz * n MACs and rows * ceil(cols / 64) words a tile.
 * Mirror   tinyml_edu/pruning/sparse/bitmask.py:Bitmask
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_spmm.h"

/* Return up to 8 mask bytes as one word, the first byte in the lowest bits. */
TE_INLINE uint64_t load(const uint8_t *mask, int32_t bytes) {
    uint64_t word = 0;
    for (int32_t b = 0; b < bytes; b++) {
        word |= (uint64_t)mask[b] << (8 * b);
    }
    return word;
}

TE_INLINE const te_value *walk(uint64_t word, const te_value *values, const te_value *x, int32_t n,
                               te_sum *acc, int32_t width) {
    for (; word != 0; word &= word - 1) {
        te_add_scaled(acc, *values++, x + (size_t)__builtin_ctzll(word) * n, width);
    }
    return values;
}

/* Sum one row; return the value behind its last one. */
TE_INLINE const te_value *row(const uint8_t *mask, int32_t bytes, const te_value *values, const te_value *x,
                              int32_t n, te_sum *y, int32_t width) {
    te_sum acc[TE_TILE] = {0};
    int32_t b = 0;
    for (; b + 8 <= bytes; b += 8) {
        values = walk(load(mask + b, 8), values, x + (size_t)b * 8 * n, n, acc, width);
    }
    if (b < bytes) {
        values = walk(load(mask + b, bytes - b), values, x + (size_t)b * 8 * n, n, acc, width);
    }
    memcpy(y, acc, (size_t)width * sizeof(te_sum));
    return values;
}

te_status te_spmm_bitmask(const te_sizes *s, const te_value *values, const uint8_t *mask, const te_value *x,
                          te_sum *y) {
    const te_status status = te_check(s, values, x, y);
    if (status != TE_OK) {
        return status;
    }
    if (mask == NULL) {
        return TE_NULL_POINTER;
    }
    const int32_t bytes = (s->cols + 7) / 8;
    for (int32_t i = 0; i < s->rows; i++) {
        te_sum *out = y + (size_t)i * s->n;
        const te_value *next = values;
#define ROW(first, width) next = row(mask, bytes, values, x + (first), s->n, out + (first), width)
        TE_FOR_TILES(s->n, ROW);
#undef ROW
        values = next;
        mask += bytes;
    }
    return TE_OK;
}
