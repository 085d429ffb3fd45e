/* The inner product of CONV_2D and FULLY_CONNECTED, one input against one or four filters.
 *
 *   acc[j] += sum_i (x[i] - x_zp) * w[j * filter + i],  i < n
 *
 * Four filters at a time load and centre each x once: 3 instructions a multiply on a Cortex-M4 instead of 6.
 * Bounds   |x - x_zp| <= 255 and |w| <= 128, the caller keeps the sum inside int32 (the code generator checks
 *          every channel's worst case).
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_DOT_H
#define TE_DOT_H

#include <stdint.h>

static inline void te_dot_4(const int8_t *x, int32_t x_zp, const int8_t *w, int32_t filter, int32_t n,
                            int32_t acc[4]) {
    const int8_t *w1 = w + filter, *w2 = w1 + filter, *w3 = w2 + filter;
    for (int32_t i = 0; i < n; i++) {
        const int32_t v = x[i] - x_zp;
        acc[0] += v * w[i];
        acc[1] += v * w1[i];
        acc[2] += v * w2[i];
        acc[3] += v * w3[i];
    }
}

static inline int32_t te_dot_1(const int8_t *x, int32_t x_zp, const int8_t *w, int32_t n) {
    int32_t acc = 0;
    for (int32_t i = 0; i < n; i++) {
        acc += (x[i] - x_zp) * w[i];
    }
    return acc;
}

#endif
