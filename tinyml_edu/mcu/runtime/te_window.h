/* The part of a kernel window that lies inside the image, along one axis.
 *
 * Tap k of output position `out` reads input position out * stride - pad + k * dilation.  Taps begin..end - 1
 * read inside 0..size - 1; all others read padding, which stands for real 0 and adds nothing to a sum of
 * (x - x_zp) * w.  Skipping them is how every kernel pads: no value is ever written into a border.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_WINDOW_H
#define TE_WINDOW_H

#include <stdint.h>

typedef struct {
    int32_t begin, end; /* taps; empty if begin >= end */
    int32_t start;      /* input position of tap `begin` */
} te_taps;

static inline te_taps te_taps_inside(int32_t out, int32_t stride, int32_t pad, int32_t dilation,
                                     int32_t kernel, int32_t size) {
    const int32_t origin = out * stride - pad;
    te_taps t = {0, kernel, origin};
    if (origin < 0) {
        t.begin = (-origin + dilation - 1) / dilation;
        t.start = origin + t.begin * dilation;
    }
    if (origin + (kernel - 1) * dilation >= size) {
        t.end = origin < size ? (size - 1 - origin) / dilation + 1 : 0;
    }
    return t;
}

#endif
