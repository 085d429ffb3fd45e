"""The C around the shared kernels: which pixels a kernel takes next, and where it finds their inputs.

Each function reads the sizes of its layer at run time.  All stand once in ``model.c``, those that the network
uses; scratch comes from the layer's function, which knows how much it needs.
"""

from __future__ import annotations

from .assembly import Assembly, function

WINDOW = """\
/* Where the window of an output pixel lies in x (height, width, channels). */
typedef struct {
    int32_t height, width, channels, out_width;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    int32_t zero_point; /* of x: what padding holds */
} te_conv_window;"""

ROWS = """\
/* A dense layer whose pixels (or rows) have their inputs side by side in x.  The last tile may overlap. */
TE_NOINLINE static void te_dense_rows(const te_dense *d, const int8_t *x, int8_t *y, uint32_t *scratch) {
    for (int32_t p = 0; p < d->pixels; p += d->tile) {
        const int32_t first = p + d->tile <= d->pixels ? p : d->pixels - d->tile;
        d->kernel(x + first * d->inputs, y + first * d->outputs, d, scratch);
    }
}"""

PATCHES = """\
/* Copy the inputs of output pixel p, kernel row after kernel row; padding is the zero point. */
TE_NOINLINE static void te_patch(const te_conv_window *w, const int8_t *x, int32_t p, int8_t *patch) {
    const int32_t row = p / w->out_width * w->stride_h - w->pad_top;
    const int32_t col = p % w->out_width * w->stride_w - w->pad_left;
    const int32_t run = w->kernel_w * w->channels;
    const int adjacent = w->dilation_w == 1 && col >= 0 && col + w->kernel_w <= w->width;
    for (int32_t k = 0; k < w->kernel_h; k++, patch += run) {
        const int32_t r = row + k * w->dilation_h;
        const int8_t *from = x + (r * w->width + col) * w->channels;
        if (r >= 0 && r < w->height && adjacent) {
            te_copy(patch, from, run);
            continue;
        }
        __builtin_memset(patch, w->zero_point, (uint32_t)run);
        for (int32_t l = 0; l < w->kernel_w && r >= 0 && r < w->height; l++) {
            const int32_t c = l * w->dilation_w;
            if (col + c >= 0 && col + c < w->width) {
                te_copy(patch + l * w->channels, from + c * w->channels, w->channels);
            }
        }
    }
}

/* A dense layer over patches: a tile's inputs are copied to scratch, behind the widened ones. */
TE_NOINLINE static void te_dense_patches(const te_dense *d, const te_conv_window *w, const int8_t *x,
                                         int8_t *y, uint32_t *scratch) {
    int8_t *patches = (int8_t *)scratch + d->wide_bytes;
    for (int32_t p = 0; p < d->pixels; p += d->tile) {
        const int32_t first = p + d->tile <= d->pixels ? p : d->pixels - d->tile;
        for (int32_t t = 0; t < d->tile; t++) {
            te_patch(w, x, first + t, patches + t * d->inputs);
        }
        d->kernel(patches, y + first * d->outputs, d, scratch);
    }
}"""

FILL = """\
/* Give every pixel the codes of channels that are not computed: they do not depend on the input. */
TE_NOINLINE static void te_fill_pixels(int8_t *y, int32_t pixels, int32_t channels, const uint32_t *codes) {
    for (int32_t p = 0; p < pixels; p++) {
        __builtin_memcpy(y + p * channels, codes, (uint32_t)channels);
    }
}"""

DEPTHWISE = """\
/* Depthwise convolution: runs of pixels whose windows lie inside x share a list of taps; at the border,
 * each pixel has its own.  `outside` (channels) are zero points; `taps` has room for an even number. */
TE_NOINLINE static void te_depthwise_runs(const te_depthwise *d, const te_conv_window *w, const int8_t *x,
                                          int8_t *y, int8_t *outside, const int8_t **taps) {
    const int32_t reach_h = (w->kernel_h - 1) * w->dilation_h, reach_w = (w->kernel_w - 1) * w->dilation_w;
    __builtin_memset(outside, w->zero_point, (uint32_t)w->channels);
    for (int32_t i = 0; i < d->out_height; i++) {
        const int32_t row = i * w->stride_h - w->pad_top;
        for (int32_t j = 0, run; j < w->out_width; j += run, y += run * w->channels) {
            const int32_t col = j * w->stride_w - w->pad_left;
            const int32_t left = w->width - reach_w - col; /* columns in which a window may begin */
            run = 1;
            if (row >= 0 && row + reach_h < w->height && col >= 0 && left > 0) {
                const int32_t inside = (left - 1) / w->stride_w + 1;
                run = inside < w->out_width - j ? inside : w->out_width - j;
            }
            int32_t n = 0;
            for (int32_t r = row; r <= row + reach_h; r += w->dilation_h) {
                for (int32_t c = col; c <= col + reach_w; c += w->dilation_w) {
                    const int inside = r >= 0 && r < w->height && c >= 0 && c < w->width;
                    taps[n++] = inside ? x + (r * w->width + c) * w->channels : outside;
                }
            }
            if (n % 2) {
                taps[n] = taps[0]; /* its weights are 0 */
            }
            d->kernel(taps, y, d, run);
        }
    }
}"""

CODE_BYTES = {"COPY": 120, "ROWS": 100, "PATCHES": 500, "FILL": 80, "DEPTHWISE": 450, "CLAMP": 80}
"""Upper estimates of the functions' sizes."""


def copy_source() -> str:
    """Return the C function that copies a run of inputs, 16 bytes in 10 instructions."""
    asm = Assembly()
    asm("subs r2, r2, #16")
    asm("blt 2f")
    asm("1:")
    for instruction, base in (("ldr", "r1"), ("str", "r0")):
        for register in ("r4", "r5", "r6", "r7"):
            asm(f"{instruction} {register}, [{base}], #4")
    asm("subs r2, r2, #16")
    asm("bge 1b")
    asm("2:")
    asm("adds r2, r2, #12", "bytes beyond the next word")
    asm("blt 4f")
    asm("3:")
    asm("ldr r4, [r1], #4")
    asm("str r4, [r0], #4")
    asm("subs r2, r2, #4")
    asm("bge 3b")
    asm("4:")
    asm("adds r2, r2, #4")
    asm("beq 6f")
    asm("5:")
    asm("ldrb r4, [r1], #1")
    asm("strb r4, [r0], #1")
    asm("subs r2, r2, #1")
    asm("bne 5b")
    asm("6:")
    arguments = [("int8_t *", "to"), ("const int8_t *", "from"), ("int32_t", "n")]
    return function("te_copy", "/* Copy n bytes, n >= 0, of any alignment. */", arguments, asm)
