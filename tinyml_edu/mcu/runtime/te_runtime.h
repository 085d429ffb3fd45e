/* The inference runtime: int8 kernels for networks quantized as in TensorFlow Lite.
 *
 * A value is r = scale * (q - zp), with zp the zero point: the code of real 0.0, never its negative.
 * Images are (height, width, channels), channels innermost; a batch is one image.
 * No function allocates memory, keeps state, or recurses.  Each checks its arguments once, at the start, and
 * returns a te_status; a y that is smaller than out says, or memory that x and y share, is not detected.
 *
 * A kernel computes any window of its output.  Pads are signed: a negative pad_top skips rows of x, and
 * `row` lets x or y be a window inside a larger image.  What lies outside `in` counts as real 0.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_RUNTIME_H
#define TE_RUNTIME_H

#include <stdint.h>

#include "te_config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    TE_OK = 0,
    TE_NULL_POINTER = 1,  /* a buffer that the kernel needs is missing */
    TE_BAD_SHAPE = 2,     /* sizes that are not positive, too large, or contradict each other */
    TE_BAD_PARAMETER = 3, /* a zero point, clamp range, stride or pad outside its range */
    TE_BAD_MEMORY = 4,    /* the arena does not hold what is written to it */
} te_status;

/* One image, or a window of one: element (i, j, c) is at i * row + j * channels + c. */
typedef struct {
    int32_t height, width, channels;
    int32_t row; /* elements from one row to the next, >= width * channels */
} te_shape;

/* Per-channel requantization: y = clamp(acc * multiplier[c] * 2^(exponent[c] - 31) + y_zp, y_min, y_max). */
typedef struct {
    const int32_t *multiplier; /* (channels), 0 or in [2^30, 2^31) */
    const int8_t *exponent;    /* (channels), -31..30 */
    int32_t y_zp, y_min, y_max;
} te_output;

typedef struct {
    te_shape in, out;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h, dilation_w;
    int32_t pad_top, pad_left;
    int32_t x_zp;
    te_output output;
} te_conv_params;

typedef struct {
    int32_t rows, in, out; /* x (rows, in), w (out, in), y (rows, out) */
    int32_t x_zp;
    te_output output; /* with one multiplier and exponent for each of the `out` channels */
} te_fully_connected_params;

typedef struct {
    te_shape in, out;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t pad_top, pad_left;
    int32_t y_min, y_max;
} te_pool_params;

/* Where an operand of ADD, SUB or MUL has element (i, j, c): at i * row + j * column + c * channel.  A step of 0
 * repeats the operand along that axis. */
typedef struct {
    int32_t row, column, channel;
} te_steps;

typedef struct {
    te_shape out;
    te_steps x1, x2;
    int32_t x1_zp, x2_zp, y_zp;
    int32_t multiplier_1, multiplier_2, multiplier_y;
    int32_t exponent_1, exponent_2, exponent_y;
    int32_t y_min, y_max;
} te_add_params;

typedef struct {
    te_shape out;
    te_steps x1, x2;
    int32_t x1_zp, x2_zp, y_zp;
    int32_t multiplier, exponent;
    int32_t y_min, y_max;
} te_mul_params;

typedef struct {
    te_shape in, out;
    const int32_t *rows;    /* (out.height), the row of x that each row of y copies */
    const int32_t *columns; /* (out.width) */
} te_resize_params;

/* Axes grouped so that kept and reduced ones alternate: keep[0], reduce[0], keep[1], reduce[1], keep[2]. */
typedef struct {
    int32_t keep[3], reduce[2];
    int32_t x_zp, y_zp;
    int32_t multiplier, exponent;
    int32_t y_min, y_max;
} te_mean_params;

typedef struct {
    int32_t in[4];     /* sizes of x */
    int32_t before[4]; /* codes to add before each axis, and after it; negative crops */
    int32_t after[4];
    int32_t code;
} te_pad_params;

te_status te_conv2d_s8(const te_conv_params *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                       int8_t *y);
te_status te_depthwise_conv2d_s8(const te_conv_params *p, const int8_t *x, const int8_t *w,
                                 const int32_t *bias, int8_t *y);
te_status te_depthwise_conv2d_inplace_s8(const te_conv_params *p, int8_t *x, const int8_t *w,
                                         const int32_t *bias, int8_t *ring);
te_status te_fully_connected_s8(const te_fully_connected_params *p, const int8_t *x, const int8_t *w,
                                const int32_t *bias, int8_t *y);
te_status te_average_pool2d_s8(const te_pool_params *p, const int8_t *x, int8_t *y);
te_status te_max_pool2d_s8(const te_pool_params *p, const int8_t *x, int8_t *y);
te_status te_add_s8(const te_add_params *p, const int8_t *x1, const int8_t *x2, int8_t *y);
te_status te_sub_s8(const te_add_params *p, const int8_t *x1, const int8_t *x2, int8_t *y);
te_status te_mul_s8(const te_mul_params *p, const int8_t *x1, const int8_t *x2, int8_t *y);
te_status te_lookup_s8(int32_t size, const int8_t *table, const int8_t *x, int8_t *y);
te_status te_concatenation_s8(int32_t rows, int32_t count, const int32_t *sizes, const int8_t *const *x,
                              int8_t *y);
te_status te_resize_nearest_s8(const te_resize_params *p, const int8_t *x, int8_t *y);
te_status te_mean_s8(const te_mean_params *p, const int8_t *x, int8_t *y);
te_status te_pad_s8(const te_pad_params *p, const int8_t *x, int8_t *y);
te_status te_softmax_s8(int32_t rows, int32_t classes, const uint32_t *table, const int8_t *x, int8_t *y);
te_status te_reshape_s8(int32_t size, const int8_t *x, int8_t *y);

#ifdef __cplusplus
}
#endif

#endif
