/* Argument checks that kernels share.  They bound every index, so that no index computation can overflow.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_CHECK_H
#define TE_CHECK_H

#include <stddef.h>

#include "te_requant.h"
#include "te_runtime.h"

/* Inside a kernel, what the checks at its boundary established.  Off unless the build defines TE_DEBUG,
 * because a board has nowhere to print to. */
#ifdef TE_DEBUG
#include <assert.h>
#define TE_ASSERT(condition) assert(condition)
#else
#define TE_ASSERT(condition) ((void)0)
#endif

#define TE_TRY(expression)               \
    do {                                 \
        const te_status te_s = (expression); \
        if (te_s != TE_OK) {             \
            return te_s;                 \
        }                                \
    } while (0)

#define TE_MAX_ELEMENTS (1 << 30) /* of one tensor */
#define TE_MAX_REACH (1 << 29)    /* of a window along one axis: origin plus reach stays inside int32 */

static inline int te_in_range(int32_t v, int32_t low, int32_t high) { return v >= low && v <= high; }

/* 1 if the product of n sizes is in 1..TE_MAX_ELEMENTS. */
static inline int te_is_volume(const int32_t *sizes, int32_t n) {
    int64_t volume = 1;
    for (int32_t i = 0; i < n; i++) {
        if (sizes[i] < 1 || sizes[i] > TE_MAX_ELEMENTS) {
            return 0;
        }
        volume = te_multiply((int32_t)volume, sizes[i]);
        if (volume > TE_MAX_ELEMENTS) {
            return 0;
        }
    }
    return 1;
}

static inline te_status te_check_shape(te_shape s) {
    const int32_t line[2] = {s.width, s.channels};
    const int32_t plane[2] = {s.height, s.row};
    if (!te_is_volume(line, 2) || !te_is_volume(plane, 2)) {
        return TE_BAD_SHAPE;
    }
    return s.row >= s.width * s.channels ? TE_OK : TE_BAD_SHAPE;
}

/* The steps of an operand that has an element for each of `out`, or repeats some. */
static inline te_status te_check_steps(te_steps s, te_shape out) {
    if (!te_in_range(s.row, 0, TE_MAX_ELEMENTS) || !te_in_range(s.column, 0, TE_MAX_ELEMENTS) ||
        !te_in_range(s.channel, 0, TE_MAX_ELEMENTS)) {
        return TE_BAD_SHAPE;
    }
    const int64_t plane = te_multiply(out.height - 1, s.row) + te_multiply(out.width - 1, s.column);
    return plane + te_multiply(out.channels - 1, s.channel) < TE_MAX_ELEMENTS ? TE_OK : TE_BAD_SHAPE;
}

/* One axis of a sliding window: out positions `stride` apart, `kernel` taps `dilation` apart. */
static inline te_status te_check_axis(int32_t out, int32_t stride, int32_t kernel, int32_t dilation,
                                      int32_t pad) {
    const int32_t origins[2] = {out, stride}, reach[2] = {kernel, dilation};
    if (!te_is_volume(origins, 2) || !te_is_volume(reach, 2)) {
        return TE_BAD_PARAMETER;
    }
    const int ok = out * stride <= TE_MAX_REACH && kernel * dilation <= TE_MAX_REACH;
    return ok && te_in_range(pad, -TE_MAX_REACH, TE_MAX_REACH) ? TE_OK : TE_BAD_PARAMETER;
}

static inline te_status te_check_clamp(int32_t y_zp, int32_t y_min, int32_t y_max) {
    const int ok = te_in_range(y_zp, -128, 127) && y_min >= -128 && y_max <= 127 && y_min <= y_max;
    return ok ? TE_OK : TE_BAD_PARAMETER;
}

static inline te_status te_check_factor(int32_t multiplier, int32_t exponent) {
    return multiplier >= 0 && te_in_range(exponent, -31, 30) ? TE_OK : TE_BAD_PARAMETER;
}

static inline te_status te_check_output(const te_output *output, int32_t channels) {
    if (output->multiplier == NULL || output->exponent == NULL) {
        return TE_NULL_POINTER;
    }
    for (int32_t c = 0; c < channels; c++) {
        TE_TRY(te_check_factor(output->multiplier[c], output->exponent[c]));
    }
    return te_check_clamp(output->y_zp, output->y_min, output->y_max);
}

/* Everything that CONV_2D and DEPTHWISE_CONV_2D have in common. */
static inline te_status te_check_conv(const te_conv_params *p) {
    TE_TRY(te_check_shape(p->in));
    TE_TRY(te_check_shape(p->out));
    TE_TRY(te_check_axis(p->out.height, p->stride_h, p->kernel_h, p->dilation_h, p->pad_top));
    TE_TRY(te_check_axis(p->out.width, p->stride_w, p->kernel_w, p->dilation_w, p->pad_left));
    return te_in_range(p->x_zp, -128, 127) ? te_check_output(&p->output, p->out.channels) : TE_BAD_PARAMETER;
}

/* A pool's windows must each hold a pixel of x: the mean of nothing has no value. */
static inline te_status te_check_pool(const te_pool_params *p) {
    TE_TRY(te_check_shape(p->in));
    TE_TRY(te_check_shape(p->out));
    if (p->in.channels != p->out.channels) {
        return TE_BAD_SHAPE;
    }
    TE_TRY(te_check_axis(p->out.height, p->stride_h, p->kernel_h, 1, p->pad_top));
    TE_TRY(te_check_axis(p->out.width, p->stride_w, p->kernel_w, 1, p->pad_left));
    const int ok = p->pad_top < p->kernel_h && p->pad_left < p->kernel_w &&
                   (p->out.height - 1) * p->stride_h - p->pad_top < p->in.height &&
                   (p->out.width - 1) * p->stride_w - p->pad_left < p->in.width;
    return ok ? te_check_clamp(0, p->y_min, p->y_max) : TE_BAD_PARAMETER;
}

#endif
