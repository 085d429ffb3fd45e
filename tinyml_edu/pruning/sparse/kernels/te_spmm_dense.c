/* Dense matrix times dense matrix: the baseline that every sparse kernel is measured against.
 *
 *   y[i,t] = sum_j w[i,j] * x[j,t]
 *
 * Shapes   w (rows, cols), x (cols, n), y (rows, n); te_spmm.h has types and bounds.
 * Method   4 rows by TE_TILE columns of sums in registers: each x is loaded once for four rows.  One column
 *          (n = 1): 4 rows by TE_TILE partial sums.
 * Cost     rows * cols * n MACs; rows * cols weights read once a tile.
 * Mirror   tinyml_edu/pruning/sparse/matrix.py:Dense
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_spmm.h"

#define TE_ROWS 4

/* Sum `height` rows of w times `width` columns of x, starting at x and y. */
TE_INLINE void block(const te_sizes *s, const te_value *w, const te_value *x, te_sum *y, int32_t height,
                     int32_t width) {
    te_sum acc[TE_ROWS][TE_TILE] = {{0}};
    for (int32_t j = 0; j < s->cols; j++) {
        for (int32_t r = 0; r < height; r++) {
            te_add_scaled(acc[r], w[(size_t)r * s->cols + j], x + (size_t)j * s->n, width);
        }
    }
    for (int32_t r = 0; r < height; r++) {
        memcpy(y + (size_t)r * s->n, acc[r], (size_t)width * sizeof(te_sum));
    }
}

/* The same for n = 1: y[r] = w[r] . x. */
TE_INLINE void dot(const te_sizes *s, const te_value *w, const te_value *x, te_sum *y, int32_t height) {
    te_sums acc[TE_ROWS] = {{0}};
    int32_t j = 0;
    for (; j + TE_TILE <= s->cols; j += TE_TILE) {
        te_sums in, weight;
        te_load(&in, x + j);
        for (int32_t r = 0; r < height; r++) {
            te_load(&weight, w + (size_t)r * s->cols + j);
            acc[r] += weight * in;
        }
    }
    for (int32_t r = 0; r < height; r++) {
        te_sum sum = 0;
        for (int32_t l = 0; l < TE_TILE; l++) {
            sum += acc[r][l];
        }
        for (int32_t k = j; k < s->cols; k++) {
            sum += (te_sum)w[(size_t)r * s->cols + k] * (te_sum)x[k];
        }
        y[r] = sum;
    }
}

TE_INLINE void rows_of(const te_sizes *s, const te_value *w, const te_value *x, te_sum *y, int32_t height) {
    if (s->n == 1) {
        dot(s, w, x, y, height);
        return;
    }
#define ROW(first, width) block(s, w, x + (first), y + (first), height, width)
    TE_FOR_TILES(s->n, ROW);
#undef ROW
}

te_status te_spmm_dense(const te_sizes *s, const te_value *values, const te_value *x, te_sum *y) {
    const te_status status = te_check(s, values, x, y);
    if (status != TE_OK) {
        return status;
    }
    int32_t i = 0;
    for (; i + TE_ROWS <= s->rows; i += TE_ROWS) {
        rows_of(s, values + (size_t)i * s->cols, x, y + (size_t)i * s->n, TE_ROWS);
    }
    for (; i < s->rows; i++) {
        rows_of(s, values + (size_t)i * s->cols, x, y + (size_t)i * s->n, 1);
    }
    return TE_OK;
}
