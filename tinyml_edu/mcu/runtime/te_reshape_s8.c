/* Copy of a tensor under another shape.  The planner gives a RESHAPE its input's memory and needs no code;
 * only the RESHAPE of a constant in flash is a copy.
 *
 * Shapes   x (size), y (size); y must not overlap x.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:reshape, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"

te_status te_reshape_s8(int32_t size, const int8_t *x, int8_t *y) {
    if (x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    if (size < 1 || size > TE_MAX_ELEMENTS) {
        return TE_BAD_SHAPE;
    }
    for (int32_t i = 0; i < size; i++) {
        y[i] = x[i];
    }
    return TE_OK;
}
