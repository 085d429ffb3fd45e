/* DEPTHWISE_CONV_2D for a computer with vector units; te_depthwise_conv2d_s8 says what it computes.
 *
 * Adjacent channels side by side, since a depthwise filter is a vector over channels.  The centred input fits
 * int16, so that a vector unit with 16-bit multipliers can use them.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_WIDE_DEPTHWISE_H
#define TE_WIDE_DEPTHWISE_H

#include "te_wide.h"

/* acc[j] += sum over the taps inside of (x[j] - x_zp) * w[j], j < lanes; inlined with a constant `lanes`. */
static inline void te_wide_taps(const te_conv_params *p, const int8_t *x, const int8_t *w, te_taps ty,
                                te_taps tx, int32_t lanes, int32_t *acc) {
    const int16_t x_zp = (int16_t)p->x_zp;
    for (int32_t k = ty.begin; k < ty.end; k++) {
        for (int32_t l = tx.begin; l < tx.end; l++) {
            const int8_t *from = x + (ty.start + (k - ty.begin) * p->dilation_h) * p->in.row +
                                 (tx.start + (l - tx.begin) * p->dilation_w) * p->in.channels;
            const int8_t *tap = w + (k * p->kernel_w + l) * p->out.channels;
            for (int32_t j = 0; j < lanes; j++) {
                acc[j] += (int16_t)(from[j] - x_zp) * tap[j];
            }
        }
    }
}

/* DEPTHWISE_CONV_2D with one filter a channel, for arguments that have been checked. */
static void te_wide_depthwise(const te_conv_params *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                              int8_t *y) {
    for (int32_t o = 0; o < p->out.channels; o += TE_LANES) {
        const te_wide_block b = te_wide_channels(&p->output, bias, o, p->out.channels);
        for (int32_t i = 0; i < p->out.height; i++) {
            const te_taps ty =
                te_taps_inside(i, p->stride_h, p->pad_top, p->dilation_h, p->kernel_h, p->in.height);
            for (int32_t j = 0; j < p->out.width; j++) {
                const te_taps tx =
                    te_taps_inside(j, p->stride_w, p->pad_left, p->dilation_w, p->kernel_w, p->in.width);
                int32_t acc[TE_LANES] = {0};
                if (b.count == TE_LANES) {
                    te_wide_taps(p, x + o, w + o, ty, tx, TE_LANES, acc);
                } else if (b.count == TE_LANES / 2) {
                    te_wide_taps(p, x + o, w + o, ty, tx, TE_LANES / 2, acc);
                } else {
                    te_wide_taps(p, x + o, w + o, ty, tx, b.count, acc);
                }
                te_wide_finish(&b, acc, y + i * p->out.row + j * p->out.channels + o);
            }
        }
    }
}

#endif
