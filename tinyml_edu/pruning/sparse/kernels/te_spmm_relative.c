/* EIE's columns with 4-bit relative indices times a dense matrix.
 *
 *   for each PE p and column j, from l = -1, for each entry:
 *       l += zeros + 1;  y[l * pes + p,:] += value * x[j,:]
 *
 * Shapes   values (entries), zeros (ceil(entries / 2)), pointers (pes, cols + 1), x (cols, n), y (rows, n);
 *          te_spmm.h has the types.
 * Method   The PEs of the accelerator, one after the other.  A row is known only after the one before it, and
 *          padding zeros are multiplied like any value: the price of four bits an index.
 * Cost     entries * n MACs, each with a load and a store of y.
 * Source   Han et al. 2016, arXiv:1602.01528, section III.
 * Mirror   tinyml_edu/pruning/sparse/relative.py:RelativeIndex
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_spmm.h"

TE_INLINE void column(const te_value *values, const uint8_t *zeros, size_t start, size_t stop,
                      const te_value *x, int32_t n, te_sum *y, size_t step, int32_t width) {
    size_t next = 0; /* local row behind the last entry's */
    for (size_t k = start; k < stop; k++) {
        const size_t local = next + (zeros[k / 2] >> (k % 2 * 4) & 15);
        te_add_scaled(y + local * step * (size_t)n, values[k], x, width);
        next = local + 1;
    }
}

te_status te_spmm_relative(const te_sizes *s, const te_value *values, const uint8_t *zeros,
                           const void *pointers, int32_t pointer_bytes, int32_t pes, const te_value *x,
                           te_sum *y) {
    te_status status = te_check(s, values, x, y);
    if (status == TE_OK) {
        status = zeros == NULL ? TE_NULL_POINTER : te_check_pointers(pointers, pointer_bytes);
    }
    if (status == TE_OK && pes < 1) {
        status = TE_BAD_PARAMETER;
    }
    if (status != TE_OK) {
        return status;
    }
    memset(y, 0, (size_t)s->rows * (size_t)s->n * sizeof(te_sum));
    size_t p = 0;
    for (; p < (size_t)pes && p < (size_t)s->rows; p++) { /* a PE without rows has no entries */
        for (size_t j = 0; j < (size_t)s->cols; j++) {
            const size_t at = p * ((size_t)s->cols + 1) + j;
            const size_t start = te_pointer(pointers, pointer_bytes, at);
            const size_t stop = te_pointer(pointers, pointer_bytes, at + 1);
            const te_value *in = x + j * (size_t)s->n;
            te_sum *out = y + p * (size_t)s->n;
#define ROW(first, width) \
    column(values, zeros, start, stop, in + (first), s->n, out + (first), (size_t)pes, width)
            TE_FOR_TILES(s->n, ROW);
#undef ROW
        }
    }
    return TE_OK;
}
