/* Compressed sparse columns times a dense matrix.
 *
 *   for each column j, for k in pointers[j] .. pointers[j + 1]:  y[indices[k],:] += values[k] * x[j,:]
 *
 * Shapes   values and indices (nnz), pointers (cols + 1), x (cols, n), y (rows, n); te_spmm.h has the types.
 * Method   Reads x once, in order, and scatters into y: a column of zeros in x could be left out whole, which
 *          is what EIE does in hardware.
 * Cost     nnz * n MACs, each with a load and a store of y.
 * Mirror   tinyml_edu/pruning/sparse/compressed.py:Csc
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_spmm.h"

TE_INLINE void column(const te_value *values, const te_index *indices, size_t count, const te_value *x,
                      int32_t n, te_sum *y, int32_t width) {
    for (size_t k = 0; k < count; k++) {
        te_add_scaled(y + (size_t)indices[k] * n, values[k], x, width);
    }
}

te_status te_spmm_csc(const te_sizes *s, const te_value *values, const te_index *indices,
                      const void *pointers, int32_t pointer_bytes, const te_value *x, te_sum *y) {
    te_status status = te_check(s, values, x, y);
    if (status == TE_OK) {
        status = indices == NULL ? TE_NULL_POINTER : te_check_pointers(pointers, pointer_bytes);
    }
    if (status != TE_OK) {
        return status;
    }
    memset(y, 0, (size_t)s->rows * (size_t)s->n * sizeof(te_sum));
    size_t start = te_pointer(pointers, pointer_bytes, 0);
    for (int32_t j = 0; j < s->cols; j++) {
        const size_t stop = te_pointer(pointers, pointer_bytes, (size_t)j + 1);
        const te_value *in = x + (size_t)j * s->n;
#define ROW(first, width) \
    column(values + start, indices + start, stop - start, in + (first), s->n, y + (first), width)
        TE_FOR_TILES(s->n, ROW);
#undef ROW
        start = stop;
    }
    return TE_OK;
}
