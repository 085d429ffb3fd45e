/* Softmax over the last axis, without a float unit and without a division: int8 in, int8 out.
 *
 *   e_i = table[max(x) - x_i], S = sum e,  y_i = min(round(256 * e_i / S), 255) - 128, half up
 *
 * The output scale is 1/256 with zero point -128, as TensorFlow Lite fixes it.
 *
 * Shapes   x (rows, classes), y (rows, classes); y may be x itself; table (256), 32-bit.
 *          table[k] = round(exp(-beta * x_scale * k) * 2^24), not increasing, table[0] > 0.
 * Bounds   classes <= 2^16 keeps S below 2^41.
 * Returns  TE_NULL_POINTER, TE_BAD_SHAPE, TE_BAD_PARAMETER (a table that starts with 0), or TE_OK.
 * Mirror   tinyml_edu/ir/integer_kernels.py:softmax, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_check.h"

/* round(256 * e / s), half up, for e <= s: long division in base 2, nine compare-and-subtract steps.  No core
 * here divides 64 bits; the compiler would call a library routine. */
static int32_t ratio_256(uint64_t e, uint64_t s) {
    int32_t q = 0;
    for (int32_t bit = 0; bit < 9; bit++) {
        q <<= 1;
        if (e >= s) {
            e -= s;
            q |= 1;
        }
        e <<= 1;
    }
    return q + (e >= s); /* e is now twice the remainder */
}

static void row(int32_t classes, const uint32_t *table, const int8_t *x, int8_t *y) {
    int32_t largest = x[0];
    for (int32_t i = 1; i < classes; i++) {
        largest = x[i] > largest ? x[i] : largest;
    }
    uint64_t sum = 0;
    for (int32_t i = 0; i < classes; i++) {
        sum += table[largest - x[i]];
    }
    for (int32_t i = 0; i < classes; i++) {
        const int32_t q = ratio_256(table[largest - x[i]], sum);
        y[i] = (int8_t)te_clamp(q - 128, -128, 127);
    }
}

te_status te_softmax_s8(int32_t rows, int32_t classes, const uint32_t *table, const int8_t *x, int8_t *y) {
    if (table == NULL || x == NULL || y == NULL) {
        return TE_NULL_POINTER;
    }
    const int32_t sizes[2] = {rows, classes};
    if (!te_is_volume(sizes, 2) || classes > 1 << 16) {
        return TE_BAD_SHAPE;
    }
    if (table[0] == 0) {
        return TE_BAD_PARAMETER;
    }
    for (int32_t n = 0; n < rows; n++) {
        row(classes, table, x + n * classes, y + n * classes);
    }
    return TE_OK;
}
