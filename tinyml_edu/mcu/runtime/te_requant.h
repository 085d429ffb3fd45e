/* Requantization: an int32 accumulator times a real factor, rounded to an integer, in fixed point.
 *
 *   factor = multiplier * 2^(exponent - 31), multiplier in [0, 2^31), exponent in -31..30
 *
 * Two roundings exist, and each kernel names the one it uses:
 *   double   high = round(acc * multiplier / 2^31), half up; then round(high * 2^exponent), half away from
 *            zero.  TensorFlow Lite's reference convolutions, ADD and MEAN.
 *   single   round(acc * factor), half up, once, in 64 bits.  TensorFlow Lite's FULLY_CONNECTED.
 * te_requant is the double one, or the single one if TE_REQUANT_FAST is set.
 *
 * Bounds   |acc| < 2^31, so that no sum below leaves its type.
 * Source   Jacob et al. 2018, arXiv:1712.05877, section 2.2, eq. (6).
 * Mirror   tinyml_edu/ir/fixed_point.py: requant_double, requant_single; checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_REQUANT_H
#define TE_REQUANT_H

#include <stdint.h>

#include "te_config.h"

/* C99 leaves it to the compiler whether >> keeps the sign.  All compilers for these targets do; this line
 * does not compile with one that does not. */
typedef char te_shift_keeps_the_sign[(-1 >> 1) == -1 ? 1 : -1];

/* Every 64-bit product of the runtime: one SMULL on ARMv7-M, the compiler's helper on ARMv6-M. */
static inline int64_t te_multiply(int32_t a, int32_t b) { return (int64_t)a * b; }

static inline int32_t te_saturate(int64_t v) {
    return v < INT32_MIN ? INT32_MIN : v > INT32_MAX ? INT32_MAX : (int32_t)v;
}

static inline int32_t te_clamp(int32_t v, int32_t low, int32_t high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}

static inline int32_t te_requant_double(int32_t acc, int32_t multiplier, int32_t exponent) {
    if (exponent > 0) { /* a factor of 1 or more is rare */
        acc = te_saturate(te_multiply(acc, (int32_t)1 << exponent));
    }
    const int32_t high = (int32_t)((te_multiply(acc, multiplier) + ((int64_t)1 << 30)) >> 31);
    if (exponent >= 0) {
        return high;
    }
    /* Half away from zero is half up, once a negative value has lost one unit.  Shifting by one bit less,
     * adding 1 and shifting by the last bit is half up without a constant that depends on the exponent. */
    return (((high + (high >> 31)) >> (-exponent - 1)) + 1) >> 1;
}

static inline int32_t te_requant_single(int32_t acc, int32_t multiplier, int32_t exponent) {
    const int64_t product = te_multiply(acc, multiplier);
    if (exponent <= -2) { /* only the high word counts; a 64-bit shift costs four times as much */
        return (((int32_t)(product >> 32) >> (-exponent - 2)) + 1) >> 1;
    }
    return te_saturate(((product >> (30 - exponent)) + 1) >> 1);
}

static inline int32_t te_requant(int32_t acc, int32_t multiplier, int32_t exponent) {
#if TE_REQUANT_FAST
    return te_requant_single(acc, multiplier, exponent);
#else
    return te_requant_double(acc, multiplier, exponent);
#endif
}

/* scaled + zp, clamped, then narrowed: narrowing first would wrap a large value around.  The clamp range
 * moves by zp instead of the value, which may be saturated. */
static inline int8_t te_narrow(int32_t scaled, int32_t y_zp, int32_t y_min, int32_t y_max) {
    return (int8_t)(te_clamp(scaled, y_min - y_zp, y_max - y_zp) + y_zp);
}

#endif
