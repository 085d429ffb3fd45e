/* Element-wise product of two tensors, each with its own scale: int8 in, int8 out.
 *
 *   y = clamp(requant((x1 - x1_zp) * (x2 - x2_zp), multiplier, exponent) + y_zp, y_min, y_max)
 *
 * Shapes   x1 and y (out), x1 with its own row length.  Element (i, j, c) of x2 is at i * row_2 + j * column_2
 *          + c * channel_2: a step of 0 repeats x2 along that axis (squeeze-and-excitation scales each
 *          channel of an image, row_2 = column_2 = 0).  y may be x1 itself, and x2 where no step is 0.
 * Bounds   |x - zp| <= 255: the product is below 2^16.
 * Rounding te_requant: double, or single with TE_REQUANT_FAST.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER, or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:mul, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"

static te_status check(const te_mul_params *p) {
    TE_TRY(te_check_shape(p->out));
    te_shape x1 = p->out;
    x1.row = p->row_1;
    TE_TRY(te_check_shape(x1));
    const int32_t size = p->out.height * p->out.row;
    if (!te_in_range(p->row_2, 0, size) || !te_in_range(p->column_2, 0, size) ||
        !te_in_range(p->channel_2, 0, size)) {
        return TE_BAD_SHAPE;
    }
    const int64_t last = te_multiply(p->out.height - 1, p->row_2) + te_multiply(p->out.width - 1, p->column_2) +
                         te_multiply(p->out.channels - 1, p->channel_2);
    if (last > TE_MAX_ELEMENTS) {
        return TE_BAD_SHAPE;
    }
    TE_TRY(te_check_factor(p->multiplier, p->exponent));
    const int ok = te_in_range(p->x1_zp, -128, 127) && te_in_range(p->x2_zp, -128, 127);
    return ok ? te_check_clamp(p->y_zp, p->y_min, p->y_max) : TE_BAD_PARAMETER;
}

te_status te_mul_s8(const te_mul_params *p, const int8_t *x1, const int8_t *x2, int8_t *y) {
    if (p == NULL || x1 == NULL || x2 == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(check(p));
    for (int32_t i = 0; i < p->out.height; i++) {
        for (int32_t j = 0; j < p->out.width; j++) {
            const int8_t *a = x1 + i * p->row_1 + j * p->out.channels;
            const int8_t *b = x2 + i * p->row_2 + j * p->column_2;
            int8_t *to = y + i * p->out.row + j * p->out.channels;
            for (int32_t c = 0; c < p->out.channels; c++) {
                const int32_t product = (a[c] - p->x1_zp) * (*b - p->x2_zp);
                const int32_t scaled = te_requant(product, p->multiplier, p->exponent);
                to[c] = te_narrow(scaled, p->y_zp, p->y_min, p->y_max);
                b += p->channel_2;
            }
        }
    }
    return TE_OK;
}
