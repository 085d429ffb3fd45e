/* From accumulators to codes, for CONV_2D and DEPTHWISE_CONV_2D: bias, requantization, zero point, clamp.
 *
 * A store through int8_t * may change anything in the compiler's eyes, so whatever the loop needs is read
 * into locals first.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_FINISH_H
#define TE_FINISH_H

#include <stddef.h>

#include "te_requant.h"
#include "te_runtime.h"

/* Inner loops keep their sums in registers only if they get a function of their own: inlined into the loop
 * over pixels, everything competes for the 13 registers of a Cortex-M. */
#if defined(__GNUC__)
#define TE_OWN_REGISTERS __attribute__((noinline))
/* Before a loop of a few rounds: unrolled, the code that sorts out the remainder costs more than it saves. */
#define TE_SHORT_LOOP _Pragma("GCC unroll 1")
#else
#define TE_OWN_REGISTERS
#define TE_SHORT_LOOP
#endif

/* y[j] for channels o..o + n - 1, with acc (n) and y (n) counted from channel o. */
static TE_OWN_REGISTERS void te_finish(const te_output *q, const int32_t *bias, const int32_t *acc, int32_t o,
                                       int32_t n, int8_t *y) {
    const int32_t *multiplier = q->multiplier + o;
    const int8_t *exponent = q->exponent + o;
    const int32_t y_zp = q->y_zp, y_min = q->y_min, y_max = q->y_max;
    for (int32_t j = 0; j < n; j++) {
        const int32_t sum = bias != NULL ? acc[j] + bias[o + j] : acc[j];
        y[j] = te_narrow(te_requant(sum, multiplier[j], exponent[j]), y_zp, y_min, y_max);
    }
}

#endif
