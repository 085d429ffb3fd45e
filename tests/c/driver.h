/* A network as a row of a table, so that one program can run hundreds. */
#ifndef DRIVER_H
#define DRIVER_H

#include "te_runtime.h"

typedef struct {
    int8_t *(*input)(void);
    const int8_t *(*output)(void);
    te_status (*invoke)(void);
    int input_count, output_count;
} network;

extern const network networks[];
extern const int network_count;

#endif
