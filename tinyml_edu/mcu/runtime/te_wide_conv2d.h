/* CONV_2D for a computer with vector units; te_conv2d_s8 says what it computes.
 *
 * TE_WIDE_PIXELS windows times the weights of TE_LANES channels.  Sums are taken in float32, whose fused
 * multiply-add is the fastest multiplier of such a computer: every partial sum is an integer that float32
 * holds exactly, in any order and with or without fusing.
 *
 * Needs    the vector types of GCC and clang.
 * Bounds   |x - x_zp| <= 255 and |w| <= 128, so TE_WIDE_EXACT products stay below 2^24 in magnitude; longer
 *          sums go on in int32.  A window of more than TE_WIDE_TAPS values is left to the plain loops.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_WIDE_CONV2D_H
#define TE_WIDE_CONV2D_H

#include "te_wide.h"

#define TE_WIDE_TAPS 2304 /* 144 KB of stack for the weights of TE_LANES channels, 72 KB for windows */
#define TE_WIDE_PIXELS 8  /* computed together: each weight is loaded once for all */
#define TE_WIDE_EXACT 512 /* 512 * 255 * 128 < 2^24 */

typedef float te_lanes __attribute__((vector_size(4 * TE_LANES)));
typedef int32_t te_sums __attribute__((vector_size(4 * TE_LANES)));

/* The window of output pixel (i, j) as x - x_zp, v (kernel_h, kernel_w, in.channels); padding is 0. */
static inline void te_wide_window(const te_conv_params *p, const int8_t *x, int32_t i, int32_t j, float *v) {
    const int32_t channels = p->in.channels, line = p->kernel_w * channels, x_zp = p->x_zp;
    const te_taps ty = te_taps_inside(i, p->stride_h, p->pad_top, p->dilation_h, p->kernel_h, p->in.height);
    const te_taps tx = te_taps_inside(j, p->stride_w, p->pad_left, p->dilation_w, p->kernel_w, p->in.width);
    const int32_t taps = tx.end - tx.begin, dense = p->dilation_w == 1;
    if (taps < p->kernel_w || ty.end - ty.begin < p->kernel_h) {
        memset(v, 0, (size_t)(p->kernel_h * line) * sizeof *v);
    }
    for (int32_t k = ty.begin; k < ty.end && taps > 0; k++) {
        const int8_t *from = x + (ty.start + (k - ty.begin) * p->dilation_h) * p->in.row + tx.start * channels;
        float *to = v + k * line + tx.begin * channels;
        const int32_t runs = dense ? 1 : taps, length = dense ? taps * channels : channels;
        for (int32_t r = 0; r < runs; r++) {
            for (int32_t c = 0; c < length; c++) {
                to[r * channels + c] = (float)(from[r * p->dilation_w * channels + c] - x_zp);
            }
        }
    }
}

/* w[k] = the weights of one tap for the block's channels. */
static inline void te_wide_weights(const int8_t *w, int32_t taps, int32_t count, te_lanes *packed) {
    memset(packed, 0, (size_t)taps * sizeof *packed);
    for (int32_t j = 0; j < count; j++) {
        for (int32_t k = 0; k < taps; k++) {
            packed[k][j] = (float)w[j * taps + k];
        }
    }
}

/* acc[n] = sum_k v[n][k] * w[k], k < taps: in float up to TE_WIDE_EXACT taps at a time, then in int32. */
static inline void te_wide_sums(float v[TE_WIDE_PIXELS][TE_WIDE_TAPS], const te_lanes *w, int32_t taps,
                                te_sums acc[TE_WIDE_PIXELS]) {
    memset(acc, 0, sizeof(te_sums) * TE_WIDE_PIXELS);
    for (int32_t first = 0; first < taps; first += TE_WIDE_EXACT) {
        const int32_t end = taps - first < TE_WIDE_EXACT ? taps : first + TE_WIDE_EXACT;
        te_lanes a[TE_WIDE_PIXELS];
        memset(a, 0, sizeof a);
        for (int32_t k = first; k < end; k++) {
            for (int32_t n = 0; n < TE_WIDE_PIXELS; n++) {
                a[n] += v[n][k] * w[k];
            }
        }
        for (int32_t n = 0; n < TE_WIDE_PIXELS; n++) {
            acc[n] += __builtin_convertvector(a[n], te_sums);
        }
    }
}

/* CONV_2D, for arguments that have been checked; returns 0, and does nothing, if the window is too large. */
static int te_wide_conv2d(const te_conv_params *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                          int8_t *y) {
    const int32_t taps = p->kernel_h * p->kernel_w * p->in.channels, channels = p->out.channels;
    const int32_t pixels = p->out.height * p->out.width;
    te_lanes weights[TE_WIDE_TAPS];
    te_sums acc[TE_WIDE_PIXELS];
    float v[TE_WIDE_PIXELS][TE_WIDE_TAPS];
    if (taps > TE_WIDE_TAPS) {
        return 0;
    }
    for (int32_t o = 0; o < channels; o += TE_LANES) {
        const te_wide_block b = te_wide_channels(&p->output, bias, o, channels);
        te_wide_weights(w + o * taps, taps, b.count, weights);
        for (int32_t first = 0; first < pixels; first += TE_WIDE_PIXELS) {
            const int32_t count = pixels - first < TE_WIDE_PIXELS ? pixels - first : TE_WIDE_PIXELS;
            for (int32_t n = 0; n < TE_WIDE_PIXELS; n++) {
                const int32_t at = n < count ? first + n : first; /* the last group repeats a pixel */
                te_wide_window(p, x, at / p->out.width, at % p->out.width, v[n]);
            }
            te_wide_sums(v, weights, taps, acc);
            for (int32_t n = 0; n < count; n++) {
                const int32_t i = (first + n) / p->out.width, j = (first + n) % p->out.width;
                te_wide_finish(&b, (const int32_t *)&acc[n], y + i * p->out.row + j * channels + o);
            }
        }
    }
    return 1;
}

#endif
