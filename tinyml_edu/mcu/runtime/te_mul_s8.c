/* Element-wise product of two tensors, each with its own scale: int8 in, int8 out.
 *
 *   y = clamp(requant((x1 - x1_zp) * (x2 - x2_zp), multiplier, exponent) + y_zp, y_min, y_max)
 *
 * Shapes   x1, x2 and y (out), x1 and x2 with steps of their own (squeeze-and-excitation scales each channel of
 *          an image: x2.row = x2.column = 0); y may be an input that has no step of 0.
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
    TE_TRY(te_check_steps(p->x1, p->out));
    TE_TRY(te_check_steps(p->x2, p->out));
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
            const int8_t *a = x1 + i * p->x1.row + j * p->x1.column;
            const int8_t *b = x2 + i * p->x2.row + j * p->x2.column;
            int8_t *to = y + i * p->out.row + j * p->out.channels;
            for (int32_t c = 0; c < p->out.channels; c++) {
                const int32_t product = (*a - p->x1_zp) * (*b - p->x2_zp);
                const int32_t scaled = te_requant(product, p->multiplier, p->exponent);
                to[c] = te_narrow(scaled, p->y_zp, p->y_min, p->y_max);
                a += p->x1.channel;
                b += p->x2.channel;
            }
        }
    }
    return TE_OK;
}
