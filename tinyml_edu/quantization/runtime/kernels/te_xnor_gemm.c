/* Product of two matrices of +1 and -1, one bit each, by exclusive-or and population count.
 *
 *   y[i,t] = sum_k w[i,k] * x[k,t] = cols - 2 * popcount(w[i] xor x[:,t])
 *
 * A product of two signs is +1 where the bits agree.  XNOR counts the agreements a, y = 2 a - cols; XOR counts
 * the others, which needs no mask: bits behind the last entry are 0 on both sides and never differ.
 *
 * Shapes   w (rows, words), x (words, n), y (rows, n), row-major, words = ceil(cols / 64); y must not overlap
 *          w or x.  te_xnor.h has the order of the bits and the bounds.
 * Method   8 rows by TE_TILE columns of counts in registers: each word of x is loaded once for eight rows.  One
 *          column (n = 1): a row's words are contiguous, TE_TILE of them at a time.
 * Cost     rows * n * words exclusive-ors, counts and additions: 64 multiply-accumulates each.
 * Source   Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279, section 3.2.
 * Mirror   tinyml_edu/quantization/runtime/xnor.py:sign_gemm, checked bit for bit.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_xnor.h"

#define TE_ROWS 8

/* Bits that differ are products of -1. */
TE_INLINE int32_t sum_of(int32_t cols, uint64_t differing) { return cols - 2 * (int32_t)differing; }

/* `height` rows of w times TE_TILE columns of x, starting at x and y. */
TE_INLINE void tile(const te_sizes *s, const uint64_t *w, const uint64_t *x, int32_t *y, int32_t height) {
    const int32_t words = te_words_of(s->cols);
    te_words acc[TE_ROWS] = {{0}};
    for (int32_t k = 0; k < words; k++) {
        te_words in;
        memcpy(&in, x + (size_t)k * s->n, sizeof in);
        for (int32_t r = 0; r < height; r++) {
            te_words differing = in ^ w[(size_t)r * words + k];
            te_count(&differing);
            acc[r] += differing;
        }
    }
    for (int32_t r = 0; r < height; r++) {
        for (int32_t t = 0; t < TE_TILE; t++) {
            y[(size_t)r * s->n + t] = sum_of(s->cols, acc[r][t]);
        }
    }
}

/* `height` rows of w times one column of x, whose words are s->n apart. */
TE_INLINE void column(const te_sizes *s, const uint64_t *w, const uint64_t *x, int32_t *y, int32_t height) {
    const int32_t words = te_words_of(s->cols);
    uint64_t acc[TE_ROWS] = {0};
    for (int32_t k = 0; k < words; k++) {
        const uint64_t in = x[(size_t)k * s->n];
        for (int32_t r = 0; r < height; r++) {
            acc[r] += (uint64_t)__builtin_popcountll(w[(size_t)r * words + k] ^ in);
        }
    }
    for (int32_t r = 0; r < height; r++) {
        y[(size_t)r * s->n] = sum_of(s->cols, acc[r]);
    }
}

/* The same for n = 1: both operands are contiguous. */
TE_INLINE void dot(const te_sizes *s, const uint64_t *w, const uint64_t *x, int32_t *y, int32_t height) {
    const int32_t words = te_words_of(s->cols);
    te_words acc[TE_ROWS] = {{0}};
    int32_t k = 0;
    for (; k + TE_TILE <= words; k += TE_TILE) {
        te_words in, differing;
        memcpy(&in, x + k, sizeof in);
        for (int32_t r = 0; r < height; r++) {
            memcpy(&differing, w + (size_t)r * words + k, sizeof differing);
            differing ^= in;
            te_count(&differing);
            acc[r] += differing;
        }
    }
    for (int32_t r = 0; r < height; r++) {
        uint64_t sum = 0;
        for (int32_t t = 0; t < TE_TILE; t++) {
            sum += acc[r][t];
        }
        for (int32_t rest = k; rest < words; rest++) {
            sum += (uint64_t)__builtin_popcountll(w[(size_t)r * words + rest] ^ x[rest]);
        }
        y[r] = sum_of(s->cols, sum);
    }
}

TE_INLINE void rows_of(const te_sizes *s, const uint64_t *w, const uint64_t *x, int32_t *y, int32_t height) {
    if (s->n == 1) {
        dot(s, w, x, y, height);
        return;
    }
    int32_t t = 0;
    for (; t + TE_TILE <= s->n; t += TE_TILE) {
        tile(s, w, x + t, y + t, height);
    }
    for (; t < s->n; t++) {
        column(s, w, x + t, y + t, height);
    }
}

te_status te_xnor_gemm(const te_sizes *s, const uint64_t *w, const uint64_t *x, int32_t *y) {
    const te_status status = w == NULL ? TE_NULL_POINTER : te_check(s, x, y);
    if (status != TE_OK) {
        return status;
    }
    const size_t words = (size_t)te_words_of(s->cols);
    int32_t i = 0;
    for (; i + TE_ROWS <= s->rows; i += TE_ROWS) {
        rows_of(s, w + (size_t)i * words, x, y + (size_t)i * s->n, TE_ROWS);
    }
    for (; i < s->rows; i++) {
        rows_of(s, w + (size_t)i * words, x, y + (size_t)i * s->n, 1);
    }
    return TE_OK;
}
