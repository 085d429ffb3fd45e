/* Pack inputs and multiply bits that arrive on standard input; write the words and the sums.
 *
 * A case: int32 {rows, cols, n}, then float x (cols, n) and uint64 w (rows, ceil(cols / 64)).  Each array gets a
 * heap block of exactly its size, so that a sanitizer sees any access outside it.
 *
 * SPDX-License-Identifier: MIT
 */
#include "te_xnor.h"

#include <stdio.h>
#include <stdlib.h>

static void *take(size_t bytes) {
    void *block = malloc(bytes);
    if (block == NULL || fread(block, 1, bytes, stdin) != bytes) {
        exit(3);
    }
    return block;
}

int main(void) {
    te_sizes s;
    while (fread(&s, sizeof s, 1, stdin) == 1) {
        const size_t words = (size_t)te_words_of(s.cols), n = (size_t)s.n, rows = (size_t)s.rows;
        float *x = take((size_t)s.cols * n * sizeof(float));
        uint64_t *w = take(rows * words * sizeof(uint64_t));
        uint64_t *packed = malloc(words * n * sizeof(uint64_t));
        int32_t *y = malloc(rows * n * sizeof(int32_t));
        if (packed == NULL || y == NULL) {
            return 3;
        }
        if (te_pack_columns_f32(&s, x, packed) != TE_OK || te_xnor_gemm(&s, w, packed, y) != TE_OK) {
            return 2;
        }
        fwrite(packed, sizeof(uint64_t), words * n, stdout);
        fwrite(y, sizeof(int32_t), rows * n, stdout);
        free(x);
        free(w);
        free(packed);
        free(y);
    }
    return 0;
}
