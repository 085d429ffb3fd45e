/* 2-D convolution: int8 in, int8 out, int32 accumulator, one factor per output channel.
 *
 *   acc      = bias[o] + sum_{k,l,c} (x[i*sh - pt + k*dh, j*sw - pl + l*dw, c] - x_zp) * w[o,k,l,c]
 *   y[i,j,o] = clamp(requant(acc, multiplier[o], exponent[o]) + y_zp, y_min, y_max)
 *
 * Shapes   x (in), w (out.channels, kernel_h, kernel_w, in.channels), bias (out.channels) or NULL, y (out);
 *          y must not overlap x.
 * Bounds   |bias[o]| + 255 * sum |w[o]| < 2^31 keeps the accumulator inside int32; the code generator
 *          checks it.
 * Rounding te_requant: double, or single with TE_REQUANT_FAST.
 * Padding  taps outside x are skipped, so they count as real 0.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER, or TE_OK.
 * Source   Jacob et al. 2018, arXiv:1712.05877, section 2.2.
 * Mirror   tinyml_edu/ir/integer_kernels.py:conv2d, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"
#include "te_dot.h"
#include "te_finish.h"
#include "te_window.h"
#if TE_WIDE
#include "te_wide_conv2d.h"
#endif

/* What one output pixel reads: `rows` lines of `runs` runs, each `length` adjacent elements of x and of w. */
typedef struct {
    const int8_t *x, *w;
    int32_t rows, runs, length;
    int32_t x_row, x_run, w_row, w_run, filter;
} patch;

static patch locate(const te_conv_params *p, const int8_t *x, const int8_t *w, te_taps ty, te_taps tx) {
    const int32_t channels = p->in.channels;
    const int32_t taps = tx.end - tx.begin;
    const int dense = p->dilation_w == 1; /* then the taps of a line are adjacent: one long run */
    patch a = {0};
    a.rows = taps > 0 ? ty.end - ty.begin : 0;
    a.runs = dense ? 1 : taps;
    a.length = dense ? taps * channels : channels;
    a.x_row = p->dilation_h * p->in.row;
    a.x_run = p->dilation_w * channels;
    a.w_row = p->kernel_w * channels;
    a.w_run = channels;
    a.filter = p->kernel_h * a.w_row;
    a.w = w + (a.rows > 0 ? ty.begin * a.w_row + tx.begin * channels : 0);
    a.x = x + (a.rows > 0 ? ty.start * p->in.row + tx.start * channels : 0);
    return a;
}

static TE_OWN_REGISTERS void accumulate_4(const patch *a, int32_t x_zp, int32_t o, int32_t acc[4]) {
    const int8_t *w = a->w + o * a->filter;
    TE_SHORT_LOOP
    for (int32_t k = 0; k < a->rows; k++) {
        TE_SHORT_LOOP
        for (int32_t r = 0; r < a->runs; r++) {
            te_dot_4(a->x + k * a->x_row + r * a->x_run, x_zp, w + k * a->w_row + r * a->w_run, a->filter,
                     a->length, acc);
        }
    }
}

static TE_OWN_REGISTERS void accumulate_1(const patch *a, int32_t x_zp, int32_t o, int32_t *acc) {
    const int8_t *w = a->w + o * a->filter;
    TE_SHORT_LOOP
    for (int32_t k = 0; k < a->rows; k++) {
        TE_SHORT_LOOP
        for (int32_t r = 0; r < a->runs; r++) {
            te_dot_1(a->x + k * a->x_row + r * a->x_run, x_zp, w + k * a->w_row + r * a->w_run, a->length,
                     acc);
        }
    }
}

static void pixel(const te_conv_params *p, const patch *a, const int32_t *bias, int8_t *y) {
    const int32_t channels = p->out.channels;
    int32_t o = 0;
    for (; o + 4 <= channels; o += 4) {
        int32_t acc[4] = {0};
        accumulate_4(a, p->x_zp, o, acc);
        te_finish(&p->output, bias, acc, o, 4, y + o);
    }
    for (; o < channels; o++) {
        int32_t acc = 0;
        accumulate_1(a, p->x_zp, o, &acc);
        te_finish(&p->output, bias, &acc, o, 1, y + o);
    }
}

te_status te_conv2d_s8(const te_conv_params *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                       int8_t *y) {
    if (p == NULL || x == NULL || w == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(te_check_conv(p));
    const int32_t weights[4] = {p->out.channels, p->kernel_h, p->kernel_w, p->in.channels};
    if (!te_is_volume(weights, 4)) {
        return TE_BAD_SHAPE;
    }
#if TE_WIDE
    if (te_wide_conv2d(p, x, w, bias, y)) {
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
