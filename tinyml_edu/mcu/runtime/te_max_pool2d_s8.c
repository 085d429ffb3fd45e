/* Maximum pooling: int8 in, int8 out, x and y share scale and zero point.
 *
 *   y[i,j,c] = clamp(max of the window's pixels inside x, y_min, y_max)
 *
 * Shapes   x (in), y (out), same channels; y must not overlap x.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER (also for a window without a pixel), or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:max_pool2d, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"
#include "te_window.h"

static int32_t window_max(const te_shape *in, const int8_t *x, int32_t rows, int32_t cols) {
    int32_t best = x[0];
    for (int32_t k = 0; k < rows; k++) {
        for (int32_t l = 0; l < cols; l++) {
            const int32_t v = x[k * in->row + l * in->channels];
            best = v > best ? v : best;
        }
    }
    return best;
}

te_status te_max_pool2d_s8(const te_pool_params *p, const int8_t *x, int8_t *y) {
    if (p == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(te_check_pool(p));
    for (int32_t i = 0; i < p->out.height; i++) {
        const te_taps ty = te_taps_inside(i, p->stride_h, p->pad_top, 1, p->kernel_h, p->in.height);
        for (int32_t j = 0; j < p->out.width; j++) {
            const te_taps tx = te_taps_inside(j, p->stride_w, p->pad_left, 1, p->kernel_w, p->in.width);
            const int32_t rows = ty.end - ty.begin, cols = tx.end - tx.begin;
            TE_ASSERT(rows > 0 && cols > 0);
            const int8_t *corner = x + ty.start * p->in.row + tx.start * p->in.channels;
            for (int32_t c = 0; c < p->in.channels; c++) {
                const int32_t best = window_max(&p->in, corner + c, rows, cols);
                y[i * p->out.row + j * p->out.channels + c] = (int8_t)te_clamp(best, p->y_min, p->y_max);
            }
        }
    }
    return TE_OK;
}
