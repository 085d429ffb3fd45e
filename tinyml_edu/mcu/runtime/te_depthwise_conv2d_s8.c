/* Depthwise 2-D convolution: int8 in, int8 out, int32 accumulator, one factor per output channel.
 *
 *   acc      = bias[o] + sum_{k,l} (x[i*sh - pt + k*dh, j*sw - pl + l*dw, c] - x_zp) * w[k,l,o],  o = c*M + m
 *   y[i,j,o] = clamp(requant(acc, multiplier[o], exponent[o]) + y_zp, y_min, y_max)
 *
 * Shapes   x (in), w (kernel_h, kernel_w, out.channels), bias (out.channels) or NULL, y (out); the channel
 *          multiplier M is out.channels / in.channels; y must not overlap x.
 * Bounds   |bias[o]| + 255 * sum |w[.,.,o]| < 2^31 keeps the accumulator inside int32; the code generator
 *          checks it.
 * Rounding te_requant: double, or single with TE_REQUANT_FAST.
 * Padding  taps outside x are skipped, so they count as real 0.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER, or TE_OK.
 * Source   Howard et al. 2017, arXiv:1704.04861, section 3.1, with the arithmetic of arXiv:1712.05877.
 * Mirror   tinyml_edu/ir/integer_kernels.py:depthwise_conv2d, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"
#include "te_finish.h"
#include "te_window.h"
#if TE_WIDE
#include "te_wide_depthwise.h"
#endif

/* What one output pixel reads: rows x cols taps, each a vector of channels in x and in w. */
typedef struct {
    const int8_t *x, *w;
    int32_t rows, cols;
    int32_t x_row, x_col, w_row, w_col;
} patch;

static patch locate(const te_conv_params *p, const int8_t *x, const int8_t *w, te_taps ty, te_taps tx) {
    patch a = {0};
    a.cols = tx.end - tx.begin;
    a.rows = a.cols > 0 ? ty.end - ty.begin : 0;
    a.x_row = p->dilation_h * p->in.row;
    a.x_col = p->dilation_w * p->in.channels;
    a.w_col = p->out.channels;
    a.w_row = p->kernel_w * a.w_col;
    a.x = x + (a.rows > 0 ? ty.start * p->in.row + tx.start * p->in.channels : 0);
    a.w = w + (a.rows > 0 ? ty.begin * a.w_row + tx.begin * a.w_col : 0);
    return a;
}

/* Four adjacent channels, M = 1: the sums stay in registers over all taps. */
static TE_OWN_REGISTERS void accumulate_4(const patch *a, int32_t x_zp, int32_t c, int32_t acc[4]) {
    const int32_t x_gap = a->x_row - a->cols * a->x_col, w_gap = a->w_row - a->cols * a->w_col;
    const int32_t x_col = a->x_col, w_col = a->w_col;
    const int8_t *x = a->x + c, *w = a->w + c;
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
    TE_SHORT_LOOP
    for (int32_t k = a->rows; k > 0; k--) {
        TE_SHORT_LOOP
        for (int32_t l = a->cols; l > 0; l--) {
            a0 += (x[0] - x_zp) * w[0];
            a1 += (x[1] - x_zp) * w[1];
            a2 += (x[2] - x_zp) * w[2];
            a3 += (x[3] - x_zp) * w[3];
            x += x_col;
            w += w_col;
        }
        x += x_gap;
        w += w_gap;
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
    acc[3] = a3;
}

static TE_OWN_REGISTERS int32_t accumulate_1(const patch *a, int32_t x_zp, int32_t c, int32_t o) {
    int32_t acc = 0;
    for (int32_t k = 0; k < a->rows; k++) {
        for (int32_t l = 0; l < a->cols; l++) {
            acc += (a->x[k * a->x_row + l * a->x_col + c] - x_zp) * a->w[k * a->w_row + l * a->w_col + o];
        }
    }
    return acc;
}

static void pixel(const te_conv_params *p, const patch *a, const int32_t *bias, int8_t *y) {
    const int32_t channels = p->out.channels;
    const int32_t per_input = channels / p->in.channels;
    int32_t o = 0;
    for (; per_input == 1 && o + 4 <= channels; o += 4) {
        int32_t acc[4];
        accumulate_4(a, p->x_zp, o, acc);
        te_finish(&p->output, bias, acc, o, 4, y + o);
    }
    for (; o < channels; o++) {
        const int32_t acc = accumulate_1(a, p->x_zp, o / per_input, o);
        te_finish(&p->output, bias, &acc, o, 1, y + o);
    }
}

te_status te_depthwise_conv2d_s8(const te_conv_params *p, const int8_t *x, const int8_t *w,
                                 const int32_t *bias, int8_t *y) {
    if (p == NULL || x == NULL || w == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(te_check_conv(p));
    const int32_t weights[3] = {p->kernel_h, p->kernel_w, p->out.channels};
    if (!te_is_volume(weights, 3) || p->out.channels % p->in.channels != 0) {
        return TE_BAD_SHAPE;
    }
#if TE_WIDE
    if (p->out.channels == p->in.channels) {
        te_wide_depthwise(p, x, w, bias, y);
        return TE_OK;
    }
#endif
    for (int32_t i = 0; i < p->out.height; i++) {
        const te_taps ty =
            te_taps_inside(i, p->stride_h, p->pad_top, p->dilation_h, p->kernel_h, p->in.height);
        for (int32_t j = 0; j < p->out.width; j++) {
            const te_taps tx =
                te_taps_inside(j, p->stride_w, p->pad_left, p->dilation_w, p->kernel_w, p->in.width);
            const patch a = locate(p, x, w, ty, tx);
            pixel(p, &a, bias, y + i * p->out.row + j * p->out.channels);
        }
    }
    return TE_OK;
}
