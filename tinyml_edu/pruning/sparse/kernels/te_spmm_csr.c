/* Compressed sparse rows times a dense matrix.
 *
 *   y[i,t] = sum over k in pointers[i] .. pointers[i + 1] of values[k] * x[indices[k],t]
 *
 * Shapes   values and indices (nnz), pointers (rows + 1), x (cols, n), y (rows, n); te_spmm.h has the types.
 * Method   A row's sums stay in registers while its values are walked, TE_TILE columns of x at a time.  One
 *          column (n = 1): four partial sums, or each addition would wait for the one before.
 * Cost     nnz * n MACs.
 * Mirror   tinyml_edu/pruning/sparse/compressed.py:Csr
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_spmm.h"

TE_INLINE void row(const te_value *values, const te_index *indices, size_t count, const te_value *x,
                   int32_t n, te_sum *y, int32_t width) {
    te_sum acc[TE_TILE] = {0};
    for (size_t k = 0; k < count; k++) {
        te_add_scaled(acc, values[k], x + (size_t)indices[k] * n, width);
    }
    memcpy(y, acc, (size_t)width * sizeof(te_sum));
}

TE_INLINE te_sum dot(const te_value *values, const te_index *indices, size_t count, const te_value *x) {
    te_sum acc[4] = {0};
    size_t k = 0;
    for (; k + 4 <= count; k += 4) {
        for (size_t l = 0; l < 4; l++) {
            acc[l] += (te_sum)values[k + l] * (te_sum)x[indices[k + l]];
        }
    }
    for (; k < count; k++) {
        acc[0] += (te_sum)values[k] * (te_sum)x[indices[k]];
    }
    return (acc[0] + acc[1]) + (acc[2] + acc[3]);
}

te_status te_spmm_csr(const te_sizes *s, const te_value *values, const te_index *indices,
                      const void *pointers, int32_t pointer_bytes, const te_value *x, te_sum *y) {
    te_status status = te_check(s, values, x, y);
    if (status == TE_OK) {
        status = indices == NULL ? TE_NULL_POINTER : te_check_pointers(pointers, pointer_bytes);
    }
    if (status != TE_OK) {
        return status;
    }
    size_t start = te_pointer(pointers, pointer_bytes, 0);
    for (int32_t i = 0; i < s->rows; i++) {
        const size_t stop = te_pointer(pointers, pointer_bytes, (size_t)i + 1);
        te_sum *out = y + (size_t)i * s->n;
        if (s->n == 1) {
            *out = dot(values + start, indices + start, stop - start, x);
        } else {
#define ROW(first, width) \
    row(values + start, indices + start, stop - start, x + (first), s->n, out + (first), width)
            TE_FOR_TILES(s->n, ROW);
#undef ROW
        }
        start = stop;
    }
    return TE_OK;
}
