/* Depthwise 2-D convolution that writes its output over its input: stride 1, y as large as x.
 *
 *   acc      = bias[c] + sum_{k,l} (x[i - pt + k*dh, j - pl + l*dw, c] - x_zp) * w[k,l,c]
 *   x[i,j,c] = clamp(requant(acc, multiplier[c], exponent[c]) + y_zp, y_min, y_max)
 *
 * Output row i needs input rows i - pt to i - pt + reach - 1, reach = (kernel_h - 1) * dh + 1.  They are kept
 * in a ring: input row r, four channels of it, is copied to row r mod reach before any output replaces it.
 *
 * Shapes   x (in), equal to out; w (kernel_h, kernel_w, channels), bias (channels) or NULL,
 *          ring (reach, width, 4) bytes of working memory that overlap nothing.
 * Bounds   |bias[c]| + 255 * sum |w[.,.,c]| < 2^31 keeps the accumulator inside int32; the code generator
 *          checks it.
 * Rounding te_requant: double, or single with TE_REQUANT_FAST.
 * Padding  taps outside x are skipped, so they count as real 0.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER (a stride, or 0 <= pad_top < reach violated), TE_OK.
 * Source   Lin et al. 2020, arXiv:2007.10319, section 3.2, has a plane a channel as working memory; a ring of
 *          rows is smaller where the image is higher than the kernel.
 * Mirror   tinyml_edu/ir/integer_kernels.py:depthwise_conv2d, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"
#include "te_finish.h"
#include "te_window.h"

#define GROUP 4

/* Copy row r of n channels of x into its place in the ring. */
static void keep_row(const te_conv_params *p, const int8_t *x, int32_t r, int32_t n, int8_t *slot) {
    x += r * p->in.row;
    for (int32_t j = 0; j < p->in.width; j++) {
        for (int32_t c = 0; c < n; c++) {
            slot[j * GROUP + c] = x[j * p->in.channels + c];
        }
    }
}

/* acc (n): the sums of n channels over the taps of one output pixel. */
static TE_OWN_REGISTERS void accumulate(const te_conv_params *p, const int8_t *ring, int32_t reach, te_taps ty,
                                        te_taps tx, const int8_t *w, int32_t n, int32_t acc[GROUP]) {
    const int32_t line = p->in.width * GROUP;
    int32_t slot = ty.start % reach;
    for (int32_t c = 0; c < n; c++) {
        acc[c] = 0;
    }
    const int32_t end = tx.begin < tx.end ? ty.end : ty.begin; /* no column inside x: nothing to add */
    for (int32_t k = ty.begin; k < end; k++) {
        const int8_t *from = ring + slot * line + tx.start * GROUP;
        const int8_t *by = w + (k * p->kernel_w + tx.begin) * p->in.channels;
        for (int32_t l = tx.begin; l < tx.end; l++) {
            for (int32_t c = 0; c < n; c++) {
                acc[c] += (from[c] - p->x_zp) * by[c];
            }
            from += p->dilation_w * GROUP;
            by += p->in.channels;
        }
        slot += p->dilation_h;
        slot = slot >= reach ? slot - reach : slot;
    }
}

static te_status check(const te_conv_params *p, int32_t reach) {
    const te_shape in = p->in, out = p->out;
    const int32_t weights[3] = {p->kernel_h, p->kernel_w, in.channels};
    const int32_t ring[3] = {reach, in.width, GROUP};
    const int same =
        in.height == out.height && in.width == out.width && in.channels == out.channels && in.row == out.row;
    if (!same || !te_is_volume(weights, 3) || !te_is_volume(ring, 3)) {
        return TE_BAD_SHAPE;
    }
    const int ok = p->stride_h == 1 && p->stride_w == 1 && te_in_range(p->pad_top, 0, reach - 1);
    return ok ? TE_OK : TE_BAD_PARAMETER;
}

te_status te_depthwise_conv2d_inplace_s8(const te_conv_params *p, int8_t *x, const int8_t *w,
                                         const int32_t *bias, int8_t *ring) {
    if (p == NULL || x == NULL || w == NULL || ring == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(te_check_conv(p));
    const int32_t reach = (p->kernel_h - 1) * p->dilation_h + 1;
    TE_TRY(check(p, reach));
    const int32_t channels = p->in.channels, line = p->in.width * GROUP;
    for (int32_t c = 0; c < channels; c += GROUP) {
        const int32_t n = channels - c < GROUP ? channels - c : GROUP;
        int32_t next = 0; /* the first row of x that is not in the ring yet */
        for (int32_t i = 0; i < p->out.height; i++) {
            for (; next < p->in.height && next < i - p->pad_top + reach; next++) {
                keep_row(p, x + c, next, n, ring + (next % reach) * line);
            }
            const te_taps ty = te_taps_inside(i, 1, p->pad_top, p->dilation_h, p->kernel_h, p->in.height);
            for (int32_t j = 0; j < p->out.width; j++) {
                const te_taps tx = te_taps_inside(j, 1, p->pad_left, p->dilation_w, p->kernel_w, p->in.width);
                int32_t acc[GROUP];
                accumulate(p, ring, reach, ty, tx, w + c, n, acc);
                te_finish(&p->output, bias, acc, c, n, x + i * p->out.row + j * channels + c);
            }
        }
    }
    return TE_OK;
}
