/* From sums to codes for the forms of CONV_2D and DEPTHWISE_CONV_2D that suit a computer with vector units:
 * TE_LANES output channels side by side.
 *
 * Not for boards.  The two kernels use these forms when the build sets TE_WIDE; their plain loops are the
 * specification, and both compute the same codes.  Loops run over TE_LANES adjacent values with nothing that
 * depends on the lane, so that compilers turn them into vector instructions, whatever their width.
 *
 * Rounding te_requant; its rare cases are left to it.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_WIDE_H
#define TE_WIDE_H

#include <string.h>

#include "te_check.h"
#include "te_window.h"

#define TE_LANES 16

/* Bias and factor of TE_LANES channels; lanes beyond the last channel hold zeros. */
typedef struct {
    int32_t bias[TE_LANES], multiplier[TE_LANES], exponent[TE_LANES];
    int32_t y_zp, y_min, y_max;
    int32_t count; /* channels */
    int32_t usual; /* 1 if every factor has the right shift that the lane form takes */
} te_wide_block;

static inline te_wide_block te_wide_channels(const te_output *q, const int32_t *bias, int32_t o,
                                             int32_t channels) {
    te_wide_block b = {.y_zp = q->y_zp, .y_min = q->y_min, .y_max = q->y_max, .usual = 1};
    b.count = channels - o < TE_LANES ? channels - o : TE_LANES;
    for (int32_t j = 0; j < b.count; j++) {
        b.bias[j] = bias != NULL ? bias[o + j] : 0;
        b.multiplier[j] = q->multiplier[o + j];
        b.exponent[j] = q->exponent[o + j];
    }
    for (int32_t j = 0; j < TE_LANES; j++) {
        if (j >= b.count) {
            b.exponent[j] = -2;
        }
        b.usual &= b.exponent[j] <= (TE_REQUANT_FAST ? -2 : -1);
    }
    return b;
}

/* y[j] = clamp(requant(acc[j] + bias[j])) for the block's channels; te_requant without its branches. */
static inline void te_wide_finish(const te_wide_block *b, const int32_t *acc, int8_t *y) {
    int32_t scaled[TE_LANES];
    int8_t codes[TE_LANES];
    if (b->usual) {
        for (int32_t j = 0; j < TE_LANES; j++) {
            const int64_t product = te_multiply(acc[j] + b->bias[j], b->multiplier[j]);
#if TE_REQUANT_FAST
            scaled[j] = (((int32_t)(product >> 32) >> (-b->exponent[j] - 2)) + 1) >> 1;
#else
            const int32_t high = (int32_t)((product + ((int64_t)1 << 30)) >> 31);
            scaled[j] = (((high + (high >> 31)) >> (-b->exponent[j] - 1)) + 1) >> 1;
#endif
        }
    } else {
        for (int32_t j = 0; j < TE_LANES; j++) {
            scaled[j] = te_requant(acc[j] + b->bias[j], b->multiplier[j], b->exponent[j]);
        }
    }
    for (int32_t j = 0; j < TE_LANES; j++) {
        codes[j] = te_narrow(scaled[j], b->y_zp, b->y_min, b->y_max);
    }
    if (b->count == TE_LANES) {
        memcpy(y, codes, TE_LANES);
    } else {
        memcpy(y, codes, (size_t)b->count);
    }
}

#endif
