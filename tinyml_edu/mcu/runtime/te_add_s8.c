/* Element-wise sum of two tensors, each with its own scale: int8 in, int8 out.
 *
 *   s1 = requant((x1 - x1_zp) * 2^20, multiplier_1, exponent_1), s2 likewise: both on the scale 2 max / 2^20
 *   y  = clamp(requant(s1 + s2, multiplier_y, exponent_y) + y_zp, y_min, y_max)
 *
 * Shapes   x1, x2 and y (out), x1 and x2 with steps of their own; y may be an input that has no step of 0.
 * Bounds   |x - zp| <= 255 and factors <= 1/2 give |s1|, |s2| < 2^27: the sum stays inside int32.
 * Rounding te_requant: double, or single with TE_REQUANT_FAST.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER, or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:add, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_sum.h"

te_status te_add_s8(const te_add_params *p, const int8_t *x1, const int8_t *x2, int8_t *y) {
    if (p == NULL || x1 == NULL || x2 == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(te_check_sum(p));
    for (int32_t i = 0; i < p->out.height; i++) {
        for (int32_t j = 0; j < p->out.width; j++) {
            const int8_t *a = x1 + i * p->x1.row + j * p->x1.column;
            const int8_t *b = x2 + i * p->x2.row + j * p->x2.column;
            int8_t *to = y + i * p->out.row + j * p->out.channels;
            for (int32_t c = 0; c < p->out.channels; c++) {
                const int32_t s1 = te_sum_rescale(*a, p->x1_zp, p->multiplier_1, p->exponent_1);
                const int32_t s2 = te_sum_rescale(*b, p->x2_zp, p->multiplier_2, p->exponent_2);
                const int32_t sum = te_requant(s1 + s2, p->multiplier_y, p->exponent_y);
                to[c] = te_narrow(sum, p->y_zp, p->y_min, p->y_max);
                a += p->x1.channel;
                b += p->x2.channel;
            }
        }
    }
    return TE_OK;
}
