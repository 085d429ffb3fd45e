/* Any function of one element as a table: int8 in, int8 out, each with its own scale.
 *
 *   y[i] = table[x[i] + 128]
 *
 * LOGISTIC, HARD_SWISH, RELU, RELU6 and QUANTIZE are 256 codes each, computed offline by the arithmetic of
 * TensorFlow Lite's reference kernels: exact, and two loads and a store an element on every core.
 *
 * Shapes   x (size), y (size); y may be x itself; table (256), entry k the code for x = k - 128.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:lookup, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"

te_status te_lookup_s8(int32_t size, const int8_t *table, const int8_t *x, int8_t *y) {
    if (table == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    if (size < 1 || size > TE_MAX_ELEMENTS) {
        return TE_BAD_SHAPE;
    }
    const int8_t *centre = table + 128;
    for (int32_t i = 0; i < size; i++) {
        y[i] = centre[x[i]];
    }
    return TE_OK;
}
