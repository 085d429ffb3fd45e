/* Signs of a float matrix, 64 rows of a column in one word: what a layer does to its input at run time.
 *
 *   bit k % 64 of packed[k / 64, t] = x[k,t] >= 0        so 0 and -0 count as +1, and NaN as -1
 *
 * Shapes   x (cols, n) float32, packed (ceil(cols / 64), n), row-major; they must not overlap.  s->rows is
 *          not used, but must be positive.  Bits behind the last entry are 0.
 * Cost     cols * n comparisons, and each x read once.
 * Mirror   tinyml_edu/quantization/runtime/xnor.py:pack_bits, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_xnor.h"

#define TE_PACKED 16 /* columns at once: a cache line of floats */

/* Pack `width` columns of `bits` rows. */
TE_INLINE void word(const float *x, int32_t n, uint64_t *packed, int32_t bits, int32_t width) {
    uint64_t acc[TE_PACKED] = {0};
    for (int32_t b = 0; b < bits; b++) {
        for (int32_t t = 0; t < width; t++) {
            acc[t] |= (uint64_t)(x[(size_t)b * n + t] >= 0.0f) << b;
        }
    }
    memcpy(packed, acc, (size_t)width * sizeof(uint64_t));
}

te_status te_pack_columns_f32(const te_sizes *s, const float *x, uint64_t *packed) {
    const te_status status = te_check(s, x, packed);
    if (status != TE_OK) {
        return status;
    }
    for (int32_t k = 0; k < s->cols; k += TE_WORD_BITS) {
        const int32_t bits = s->cols - k < TE_WORD_BITS ? s->cols - k : TE_WORD_BITS;
        int32_t t = 0;
        for (; t + TE_PACKED <= s->n; t += TE_PACKED) {
            word(x + t, s->n, packed + t, bits, TE_PACKED);
        }
        if (t < s->n) {
            word(x + t, s->n, packed + t, bits, s->n - t);
        }
        x += (size_t)bits * s->n;
        packed += s->n;
    }
    return TE_OK;
}
