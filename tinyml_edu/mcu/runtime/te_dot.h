/* The inner product of CONV_2D and FULLY_CONNECTED: one input against four filters, or against one.
 *
 *   acc[j] += sum_i (x[i] - x_zp) * w[j * filter + i],  i < n
 *
 * Four filters at a time load and centre each x once instead of four times.
 * Bounds   |x - x_zp| <= 255 and |w| <= 128; the caller keeps the sum inside int32 (the code generator
 *          checks every channel's worst case).
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_DOT_H
#define TE_DOT_H

#include <stdint.h>

static inline void te_dot_4(const int8_t *x, int32_t x_zp, const int8_t *w, int32_t filter, int32_t n,
                            int32_t *acc) {
    const int8_t *w0 = w, *w1 = w0 + filter, *w2 = w1 + filter, *w3 = w2 + filter;
    int32_t a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
    for (const int8_t *end = x + n; x != end;) {
        const int32_t v = *x++ - x_zp;
        a0 += v * *w0++;
        a1 += v * *w1++;
        a2 += v * *w2++;
        a3 += v * *w3++;
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
    acc[3] = a3;
}

static inline void te_dot_1(const int8_t *x, int32_t x_zp, const int8_t *w, int32_t n, int32_t *acc) {
    int32_t sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += (x[i] - x_zp) * w[i];
    }
    *acc += sum;
}

#endif
