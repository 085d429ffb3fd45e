/* Run the network on inputs from stdin: int8 codes, MODEL_INPUT_COUNT bytes an input, one after the other.
 * Outputs go to stdout, MODEL_OUTPUT_COUNT bytes each.
 *
 * SPDX-License-Identifier: MIT
 */
#include <stdio.h>

#include "model.h"

int main(void) {
    if (model_init() != TE_OK) {
        fprintf(stderr, "the arena cannot be written\n");
        return 1;
    }
    for (;;) {
        const size_t got = fread(model_input(), 1, MODEL_INPUT_COUNT, stdin);
        if (got == 0) {
            return 0;
        }
        if (got != MODEL_INPUT_COUNT) {
            fprintf(stderr, "the last input has %zu of %d bytes\n", got, MODEL_INPUT_COUNT);
            return 1;
        }
        const te_status status = model_invoke();
        if (status != TE_OK) {
            fprintf(stderr, "model_invoke returned status %d\n", (int)status);
            return 1;
        }
        if (fwrite(model_output(), 1, MODEL_OUTPUT_COUNT, stdout) != MODEL_OUTPUT_COUNT) {
            perror("stdout");
            return 1;
        }
    }
}
