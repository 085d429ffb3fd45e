/* Average pooling: int8 in, int8 out, x and y share scale and zero point.
 *
 *   y[i,j,c] = clamp(round(sum / count), y_min, y_max), half away from zero
 *
 * over the `count` pixels of the window that lie inside x: padding enters neither the sum nor the count.
 *
 * Shapes   x (in), y (out), same channels; y must not overlap x.
 * Bounds   |sum| <= 128 * kernel_h * kernel_w must stay below 2^31: kernels up to 2^23 pixels.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER (also for a window without a pixel), or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:average_pool2d, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"
#include "te_window.h"

static int32_t window_sum(const te_shape *in, const int8_t *x, int32_t rows, int32_t cols) {
    int32_t sum = 0;
    for (int32_t k = 0; k < rows; k++) {
        for (int32_t l = 0; l < cols; l++) {
            sum += x[k * in->row + l * in->channels];
        }
    }
    return sum;
}

te_status te_average_pool2d_s8(const te_pool_params *p, const int8_t *x, int8_t *y) {
    if (p == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(te_check_pool(p));
    const int32_t window[2] = {p->kernel_h, p->kernel_w};
    if (!te_is_volume(window, 2) || p->kernel_h * p->kernel_w > 1 << 23) {
        return TE_BAD_SHAPE;
    }
    for (int32_t i = 0; i < p->out.height; i++) {
        const te_taps ty = te_taps_inside(i, p->stride_h, p->pad_top, 1, p->kernel_h, p->in.height);
        for (int32_t j = 0; j < p->out.width; j++) {
            const te_taps tx = te_taps_inside(j, p->stride_w, p->pad_left, 1, p->kernel_w, p->in.width);
            const int32_t rows = ty.end - ty.begin, cols = tx.end - tx.begin, count = rows * cols;
            TE_ASSERT(rows > 0 && cols > 0);
            const int8_t *corner = x + ty.start * p->in.row + tx.start * p->in.channels;
            for (int32_t c = 0; c < p->in.channels; c++) {
                const int32_t sum = window_sum(&p->in, corner + c, rows, cols);
                /* C division truncates, so half a count towards the sum's own sign rounds away from zero. */
                const int32_t mean = (sum > 0 ? sum + count / 2 : sum - count / 2) / count;
                y[i * p->out.row + j * p->out.channels + c] = (int8_t)te_clamp(mean, p->y_min, p->y_max);
            }
        }
    }
    return TE_OK;
}
