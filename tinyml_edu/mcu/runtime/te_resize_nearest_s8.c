/* Nearest-neighbour resizing: int8 in, int8 out, x and y share scale and zero point.
 *
 *   y[i,j,c] = x[rows[i], columns[j], c]
 *
 * rows and columns come from the generator, which rounds them as TensorFlow Lite's reference kernel does: no
 * core here divides, and align_corners and half_pixel_centers cost nothing.
 *
 * Shapes   x (in), y (out), same channels; rows (out.height), columns (out.width); y must not overlap x.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER (a row or column that x does not have), or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:resize_nearest, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"

static te_status check(const te_resize_params *p) {
    if (p->rows == NULL || p->columns == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(te_check_shape(p->in));
    TE_TRY(te_check_shape(p->out));
    if (p->in.channels != p->out.channels) {
        return TE_BAD_SHAPE;
    }
    for (int32_t i = 0; i < p->out.height; i++) {
        if (!te_in_range(p->rows[i], 0, p->in.height - 1)) {
            return TE_BAD_PARAMETER;
        }
    }
    for (int32_t j = 0; j < p->out.width; j++) {
        if (!te_in_range(p->columns[j], 0, p->in.width - 1)) {
            return TE_BAD_PARAMETER;
        }
    }
    return TE_OK;
}

te_status te_resize_nearest_s8(const te_resize_params *p, const int8_t *x, int8_t *y) {
    if (p == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(check(p));
    for (int32_t i = 0; i < p->out.height; i++) {
        for (int32_t j = 0; j < p->out.width; j++) {
            const int8_t *from = x + p->rows[i] * p->in.row + p->columns[j] * p->in.channels;
            int8_t *to = y + i * p->out.row + j * p->out.channels;
            for (int32_t c = 0; c < p->out.channels; c++) {
                to[c] = from[c];
            }
        }
    }
    return TE_OK;
}
