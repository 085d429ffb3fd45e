/* Fully connected layer: int8 in, int8 out, int32 accumulator.
 *
 *   y[n,o] = clamp(requant(bias[o] + sum_i (x[n,i] - x_zp) * w[o,i], multiplier[o], exponent[o]) + y_zp,
 *                  y_min, y_max)
 *
 * Shapes   x (rows, in), w (out, in), bias (out) or NULL, y (rows, out); y must not overlap x.
 * Bounds   |bias[o]| + 255 * sum |w[o]| < 2^31 keeps the accumulator inside int32; the code generator
 *          checks it.
 * Rounding single in both modes, as TensorFlow Lite's reference does for this op.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER, or TE_OK.
 * Source   Jacob et al. 2018, arXiv:1712.05877, section 2.2.  Cost rows * out * in MACs.
 * Mirror   tinyml_edu/ir/integer_kernels.py:fully_connected, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"
#include "te_dot.h"

static int8_t finish(const te_output *q, const int32_t *bias, int32_t acc, int32_t o) {
    const int32_t sum = bias != NULL ? acc + bias[o] : acc;
    return te_narrow(te_requant_single(sum, q->multiplier[o], q->exponent[o]), q->y_zp, q->y_min, q->y_max);
}

static void row(const te_fully_connected_params *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                int8_t *y) {
    int32_t o = 0;
    for (; o + 4 <= p->out; o += 4) {
        int32_t acc[4] = {0};
        te_dot_4(x, p->x_zp, w + o * p->in, p->in, p->in, acc);
        for (int32_t j = 0; j < 4; j++) {
            y[o + j] = finish(&p->output, bias, acc[j], o + j);
        }
    }
    for (; o < p->out; o++) {
        int32_t acc = 0;
        te_dot_1(x, p->x_zp, w + o * p->in, p->in, &acc);
        y[o] = finish(&p->output, bias, acc, o);
    }
}

te_status te_fully_connected_s8(const te_fully_connected_params *p, const int8_t *x, const int8_t *w,
                                const int32_t *bias, int8_t *y) {
    if (p == NULL || x == NULL || w == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    const int32_t inputs[2] = {p->rows, p->in}, weights[2] = {p->out, p->in}, outputs[2] = {p->rows, p->out};
    if (!te_is_volume(inputs, 2) || !te_is_volume(weights, 2) || !te_is_volume(outputs, 2)) {
        return TE_BAD_SHAPE;
    }
    if (!te_in_range(p->x_zp, -128, 127)) {
        return TE_BAD_PARAMETER;
    }
    TE_TRY(te_check_output(&p->output, p->out));
    for (int32_t n = 0; n < p->rows; n++) {
        row(p, x + n * p->in, w, bias, y + n * p->out);
    }
    return TE_OK;
}
