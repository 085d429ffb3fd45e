/* Mean over any axes, with its own output scale: int8 in, int8 out.
 *
 *   y = clamp(requant(sum x - count * x_zp, multiplier, exponent) + y_zp, y_min, y_max)
 *
 * The division by count = reduce[0] * reduce[1] is inside the multiplier, as in TensorFlow Lite: this op does
 * not round like AVERAGE_POOL_2D.
 *
 * Shapes   x (keep[0], reduce[0], keep[1], reduce[1], keep[2]), row-major; y (keep[0], keep[1], keep[2]).
 *          Adjacent axes with the same fate are one, so five groups cover every choice of axes of an
 *          (H, W, C) tensor.
 * Bounds   count <= 2^22 keeps |sum - count * x_zp| below 2^30.
 * Rounding te_requant: double, or single with TE_REQUANT_FAST.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER, or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:mean, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"

static te_status check(const te_mean_params *p) {
    const int32_t sizes[5] = {p->keep[0], p->reduce[0], p->keep[1], p->reduce[1], p->keep[2]};
    const int32_t reduced[2] = {p->reduce[0], p->reduce[1]};
    if (!te_is_volume(sizes, 5) || !te_is_volume(reduced, 2) || reduced[0] * reduced[1] > 1 << 22) {
        return TE_BAD_SHAPE;
    }
    TE_TRY(te_check_factor(p->multiplier, p->exponent));
    return te_in_range(p->x_zp, -128, 127) ? te_check_clamp(p->y_zp, p->y_min, p->y_max) : TE_BAD_PARAMETER;
}

te_status te_mean_s8(const te_mean_params *p, const int8_t *x, int8_t *y) {
    if (p == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(check(p));
    const int32_t step_1 = p->keep[2];              /* of the second reduced group */
    const int32_t step_k = step_1 * p->reduce[1];   /* of the second kept group */
    const int32_t step_0 = step_k * p->keep[1];     /* of the first reduced group */
    const int32_t block = step_0 * p->reduce[0];    /* of the first kept group */
    const int32_t count = p->reduce[0] * p->reduce[1];
    for (int32_t a = 0; a < p->keep[0]; a++) {
        for (int32_t b = 0; b < p->keep[1]; b++) {
            for (int32_t c = 0; c < p->keep[2]; c++) {
                int32_t sum = -count * p->x_zp;
                for (int32_t r = 0; r < p->reduce[0]; r++) {
                    for (int32_t s = 0; s < p->reduce[1]; s++) {
                        sum += x[a * block + r * step_0 + b * step_k + s * step_1 + c];
                    }
                }
                *y++ = te_narrow(te_requant(sum, p->multiplier, p->exponent), p->y_zp, p->y_min,
                                 p->y_max);
            }
        }
    }
    return TE_OK;
}
