/* Tensors joined along one axis: int8 in, int8 out, all of one scale and zero point.
 *
 *   y[i] = x[0][i], x[1][i], ..., x[count - 1][i]
 *
 * Shapes   x[k] (rows, sizes[k]), y (rows, sum of sizes): what lies before the axis is rows, the axis and what
 *          lies after it is one size (along the channels of an image: rows = height * width).  y must not
 *          overlap any x, except one that already lies at its own place in y (rows = 1).
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:concatenation, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"

static te_status check(int32_t rows, int32_t count, const int32_t *sizes, const int8_t *const *x) {
    if (count < 1) {
        return TE_BAD_SHAPE;
    }
    int32_t total = 0;
    for (int32_t k = 0; k < count; k++) {
        if (x[k] == NULL) {
            return TE_NULL_POINTER;
        }
        if (sizes[k] < 1 || sizes[k] > TE_MAX_ELEMENTS - total) {
            return TE_BAD_SHAPE;
        }
        total += sizes[k];
    }
    const int32_t volume[2] = {rows, total};
    return te_is_volume(volume, 2) ? TE_OK : TE_BAD_SHAPE;
}

te_status te_concatenation_s8(int32_t rows, int32_t count, const int32_t *sizes, const int8_t *const *x,
                              int8_t *y) {
    if (sizes == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(check(rows, count, sizes, x));
    for (int32_t i = 0; i < rows; i++) {
        for (int32_t k = 0; k < count; k++) {
            const int8_t *from = x[k] + i * sizes[k];
            for (int32_t j = 0; j < sizes[k]; j++) {
                *y++ = from[j];
            }
        }
    }
    return TE_OK;
}
