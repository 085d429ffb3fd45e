/* Run each network on n inputs from stdin and write its n outputs to stdout; one argument, n. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>

static int run(const network *net) {
    if (fread(net->input(), 1, (size_t)net->input_count, stdin) != (size_t)net->input_count) {
        fprintf(stderr, "stdin ended early\n");
        return 1;
    }
    const te_status status = net->invoke();
    if (status != TE_OK) {
        fprintf(stderr, "status %d\n", (int)status);
        return 1;
    }
    return fwrite(net->output(), 1, (size_t)net->output_count, stdout) != (size_t)net->output_count;
}

int main(int argc, char **argv) {
    const int n = argc == 2 ? atoi(argv[1]) : 0;
    for (int k = 0; k < network_count; k++) {
        for (int i = 0; i < n; i++) {
            if (run(&networks[k]) != 0) {
                fprintf(stderr, "network %d, input %d failed\n", k, i);
                return 1;
            }
        }
    }
    return n > 0 ? 0 : 2;
}
