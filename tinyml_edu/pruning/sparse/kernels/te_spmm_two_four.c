/* 2:4 packed matrix times a dense matrix.
 *
 *   y[i,t] = sum over groups g of values[i,2g] * x[4g + place 0,t] + values[i,2g+1] * x[4g + place 1,t]
 *
 * Shapes   values (rows, 2 * groups), places (rows, ceil(groups / 2)), x (cols, n), y (rows, n), with
 *          groups = ceil(cols / 4); te_spmm.h has the types.
 * Method   Exactly two products a group: no pointer, no variable loop, and every row walks x in step, so that
 *          four rows share each group of x.  Places behind the last column belong to padding zeros of a
 *          short last group; they are left out, since x ends there.
 * Cost     rows * 2 * groups * n MACs, whatever the density.
 * Source   Mishra et al. 2021, arXiv:2104.08378, section 3.
 * Mirror   tinyml_edu/pruning/sparse/two_four.py:TwoFour
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_spmm.h"

#define TE_ROWS 4

/* Add a row's two products of group g; `limit` is how many columns the group has. */
TE_INLINE void group(const te_value *values, const uint8_t *places, int32_t g, int32_t limit,
                     const te_value *four, int32_t n, te_sum *acc, int32_t width) {
    const int32_t nibble = places[g / 2] >> (g % 2 * 4) & 15;
    for (int32_t v = 0; v < 2; v++) {
        const int32_t place = nibble >> (2 * v) & 3;
        if (place < limit) {
            te_add_scaled(acc, values[2 * g + v], four + (size_t)place * n, width);
        }
    }
}

/* Sum `height` rows times `width` columns of x. */
TE_INLINE void block(const te_sizes *s, const te_value *values, const uint8_t *places, const te_value *x,
                     te_sum *y, int32_t height, int32_t width) {
    const int32_t whole = s->cols / 4, groups = (s->cols + 3) / 4;
    te_sum acc[TE_ROWS][TE_TILE] = {{0}};
    for (int32_t g = 0; g < whole; g++) {
        for (int32_t r = 0; r < height; r++) {
            group(values + (size_t)r * 2 * groups, places + (size_t)r * ((groups + 1) / 2), g, 4,
                  x + (size_t)g * 4 * s->n, s->n, acc[r], width);
        }
    }
    for (int32_t r = 0; r < height; r++) {
        if (whole < groups) {
            group(values + (size_t)r * 2 * groups, places + (size_t)r * ((groups + 1) / 2), whole,
                  s->cols % 4, x + (size_t)whole * 4 * s->n, s->n, acc[r], width);
        }
        memcpy(y + (size_t)r * s->n, acc[r], (size_t)width * sizeof(te_sum));
    }
}

TE_INLINE void rows_of(const te_sizes *s, const te_value *values, const uint8_t *places,
                       const te_value *x, te_sum *y, int32_t height) {
#define ROW(first, width) block(s, values, places, x + (first), y + (first), height, width)
    TE_FOR_TILES(s->n, ROW);
#undef ROW
}

te_status te_spmm_two_four(const te_sizes *s, const te_value *values, const uint8_t *places,
                           const te_value *x, te_sum *y) {
    const te_status status = te_check(s, values, x, y);
    if (status != TE_OK) {
        return status;
    }
    if (places == NULL) {
        return TE_NULL_POINTER;
    }
    const size_t groups = ((size_t)s->cols + 3) / 4, bytes = (groups + 1) / 2, n = (size_t)s->n;
    size_t i = 0;
    for (; i + TE_ROWS <= (size_t)s->rows; i += TE_ROWS) {
        rows_of(s, values + i * 2 * groups, places + i * bytes, x, y + i * n, TE_ROWS);
    }
    for (; i < (size_t)s->rows; i++) {
        rows_of(s, values + i * 2 * groups, places + i * bytes, x, y + i * n, 1);
    }
    return TE_OK;
}
