/* What ADD and SUB have in common: both inputs on one fine scale, where they can be added.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_SUM_H
#define TE_SUM_H

#include "te_check.h"

#define TE_SUM_LEFT_SHIFT 20

static inline int32_t te_sum_rescale(int32_t v, int32_t zp, int32_t multiplier, int32_t exponent) {
    return te_requant((v - zp) * (1 << TE_SUM_LEFT_SHIFT), multiplier, exponent);
}

static inline te_status te_check_sum(const te_add_params *p) {
    TE_TRY(te_check_shape(p->out));
    TE_TRY(te_check_steps(p->x1, p->out));
    TE_TRY(te_check_steps(p->x2, p->out));
    TE_TRY(te_check_factor(p->multiplier_1, p->exponent_1));
    TE_TRY(te_check_factor(p->multiplier_2, p->exponent_2));
    TE_TRY(te_check_factor(p->multiplier_y, p->exponent_y));
    /* A factor is below 2^exponent; above 1/2 the sum of both inputs could leave int32. */
    const int ok = te_in_range(p->x1_zp, -128, 127) && te_in_range(p->x2_zp, -128, 127) &&
                   (p->exponent_1 < 0 || (p->exponent_1 == 0 && p->multiplier_1 <= 1 << 30)) &&
                   (p->exponent_2 < 0 || (p->exponent_2 == 0 && p->multiplier_2 <= 1 << 30));
    return ok ? te_check_clamp(p->y_zp, p->y_min, p->y_max) : TE_BAD_PARAMETER;
}

#endif
