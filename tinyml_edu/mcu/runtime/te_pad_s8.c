/* Padding with one code, the zero point unless the operator names another value: int8 in, int8 out, x and y share scale and zero point.
 *
 *   y[i] = x[i - before] where that lies inside x, else code; i has four axes
 *
 * Shapes   x (in[0..3]), y (before[k] + in[k] + after[k]); y must not overlap x.  A negative pad crops.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER, or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:pad, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include <string.h>

#include "te_check.h"

static te_status output_sizes(const te_pad_params *p, int32_t out[4]) {
    for (int32_t k = 0; k < 4; k++) {
        if (!te_in_range(p->before[k], -TE_MAX_REACH, TE_MAX_REACH) ||
            !te_in_range(p->after[k], -TE_MAX_REACH, TE_MAX_REACH)) {
            return TE_BAD_PARAMETER;
        }
    }
    if (!te_is_volume(p->in, 4)) {
        return TE_BAD_SHAPE;
    }
    for (int32_t k = 0; k < 4; k++) {
        out[k] = p->before[k] + p->in[k] + p->after[k];
    }
    return te_is_volume(out, 4) ? TE_OK : TE_BAD_SHAPE;
}

/* Offset in x of row (n, h, w, .) of y, or -1 if that row is padding. */
static int32_t source(const te_pad_params *p, int32_t n, int32_t h, int32_t w) {
    const int32_t i = n - p->before[0], j = h - p->before[1], k = w - p->before[2];
    const int inside = te_in_range(i, 0, p->in[0] - 1) && te_in_range(j, 0, p->in[1] - 1) &&
                       te_in_range(k, 0, p->in[2] - 1);
    return inside ? ((i * p->in[1] + j) * p->in[2] + k) * p->in[3] : -1;
}

/* One line (w, c) of y where neither a column nor a channel is cropped: `from` is x's, NULL for padding. */
static int8_t *whole_line(const te_pad_params *p, const int8_t *from, int32_t line, int8_t *y) {
    const int32_t channels = p->in[3];
    const int32_t left = p->before[2] * channels, middle = p->in[2] * channels;
    if (from == NULL) {
        memset(y, p->code, (size_t)line);
    } else {
        memset(y, p->code, (size_t)left);
        memcpy(y + left, from, (size_t)middle);
        memset(y + left + middle, p->code, (size_t)(line - left - middle));
    }
    return y + line;
}

te_status te_pad_s8(const te_pad_params *p, const int8_t *x, int8_t *y) {
    int32_t out[4];
    if (p == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    TE_TRY(output_sizes(p, out));
    if (!te_in_range(p->code, -128, 127)) {
        return TE_BAD_PARAMETER;
    }
    const int whole = p->before[2] >= 0 && p->after[2] >= 0 && p->before[3] == 0 && p->after[3] == 0;
    for (int32_t n = 0; n < out[0]; n++) {
        for (int32_t h = 0; h < out[1]; h++) {
            if (whole) {
                const int32_t from = source(p, n, h, p->before[2]);
                y = whole_line(p, from < 0 ? NULL : x + from, out[2] * out[3], y);
                continue;
            }
            for (int32_t w = 0; w < out[2]; w++) {
                const int32_t from = source(p, n, h, w);
                for (int32_t c = 0; c < out[3]; c++) {
                    const int32_t s = c - p->before[3];
                    const int inside = from >= 0 && te_in_range(s, 0, p->in[3] - 1);
                    *y++ = inside ? x[from + s] : (int8_t)p->code;
                }
            }
        }
    }
    return TE_OK;
}
