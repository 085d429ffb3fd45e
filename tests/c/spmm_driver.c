/* Run products that arrive on standard input; write each result to standard output.
 *
 * A case: int32 {kernel, rows, cols, n, pes, pointer_bytes, bytes of three arrays, of x and of y}, then
 * the arrays and x.  Each array gets a heap block of exactly its size, so that a sanitizer sees any access
 * outside it.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_spmm.h"

#include <stdio.h>
#include <stdlib.h>

enum { KERNEL, ROWS, COLS, N, PES, POINTER_BYTES, ARRAYS, X = ARRAYS + 3, Y, COUNT };

static void *take(int32_t bytes) {
    void *block = malloc((size_t)bytes);
    if (block == NULL || fread(block, 1, (size_t)bytes, stdin) != (size_t)bytes) {
        exit(3);
    }
    return block;
}

static te_status run(const int32_t *c, void *const *a, const te_value *x, te_sum *y) {
    const te_sizes s = {c[ROWS], c[COLS], c[N]};
    switch (c[KERNEL]) {
    case 0:
        return te_spmm_dense(&s, a[0], x, y);
    case 1:
        return te_spmm_csr(&s, a[0], a[1], a[2], c[POINTER_BYTES], x, y);
    case 2:
        return te_spmm_csc(&s, a[0], a[1], a[2], c[POINTER_BYTES], x, y);
    case 3:
        return te_spmm_bitmask(&s, a[0], a[1], x, y);
    case 4:
        return te_spmm_relative(&s, a[0], a[1], a[2], c[POINTER_BYTES], c[PES], x, y);
    default:
        return te_spmm_two_four(&s, a[0], a[1], x, y);
    }
}

int main(void) {
    int32_t c[COUNT];
    while (fread(c, sizeof(int32_t), COUNT, stdin) == COUNT) {
        void *arrays[3];
        for (int i = 0; i < 3; i++) {
            arrays[i] = take(c[ARRAYS + i]);
        }
        void *x = take(c[X]), *y = malloc((size_t)c[Y]);
        if (y == NULL || run(c, arrays, x, y) != TE_OK) {
            return 2;
        }
        fwrite(y, 1, (size_t)c[Y], stdout);
        for (int i = 0; i < 3; i++) {
            free(arrays[i]);
        }
        free(x);
        free(y);
    }
    return 0;
}
