"""CONV_2D with any kernel and stride: patches of a few output pixels, then the 1x1 kernel over them.

The inputs of ``tile`` output pixels are copied to the stack, kernel row after kernel row, so that each pixel
has its ``K = kernel_h * kernel_w * C`` inputs side by side (im2col of one tile).  What is left to do is a 1x1
convolution with K inputs, see `pointwise`, or `long_sums` where K is large.  A patch inside the image is a
few word copies; one that crosses its border takes the slow way, tap by tap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import Template

import numpy as np

from ...ir.graph import Graph, Node
from . import long_sums, pointwise
from .assembly import Assembly, function
from .requantize import Channels

_COPIED = [f"r{i}" for i in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)]


@dataclass(frozen=True)
class Shape:
    """What the code of a kernel depends on: sizes of x, y and the window, and the kernel over patches."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    x_zp: int
    inner: pointwise.Shape | long_sums.Shape

    @property
    def name(self) -> str:
        """The stem of the function names in C."""
        numbers = (self.stride_h, self.stride_w, self.pad_top, self.pad_left, self.x_zp)
        window = "_".join(str(v).replace("-", "m") for v in numbers)
        sizes = f"{self.height}x{self.width}x{self.channels}_to_{self.out_height}x{self.out_width}"
        inner = self.inner.name.removeprefix("te_")
        return f"te_conv_{self.kernel_h}x{self.kernel_w}_{sizes}_{window}_{inner}"

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the size, without the kernel over patches."""
        return 4 * (self.kernel_h * (self.kernel_w * self.channels // 8 + 8) + 180)


def padded(c: Channels) -> Channels:
    """Return ``c`` with weights 0 added until a channel has a multiple of 4."""
    missing = -c.weights.shape[1] % 4
    return replace(c, weights=np.pad(c.weights, ((0, 0), (0, missing))))


def shape_of(graph: Graph, node: Node, inner: pointwise.Shape | long_sums.Shape) -> Shape | None:
    """Return the kernel for a node, over patches by ``inner``, or None if the window is dilated."""
    x, w, y = (graph[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    a = node.attrs
    if a.dilation != (1, 1):
        return None
    x_zp = graph[node.inputs[0]].quant.item()[1]  # type: ignore[union-attr]  # int_params has checked it
    window = (w[1], w[2], a.stride[0], a.stride[1], a.padding[0], a.padding[1])
    return Shape(x[1], x[2], x[3], y[1], y[2], *window, x_zp, inner)


def source(s: Shape) -> str:
    """Return the C functions of a shape, without the kernel over patches."""
    return "\n\n".join([_inside(s), _BORDER.substitute(_fields(s)), _IMAGE.substitute(_fields(s))])


def _inside(s: Shape) -> str:
    """Copy a patch that lies inside the image: a run of ``kernel_w * C`` bytes a kernel row."""
    asm = Assembly()
    run, row = s.kernel_w * s.channels, s.width * s.channels
    for k in range(s.kernel_h):
        if s.channels % 4 == 0:
            _copy_words(asm, run // 4)
            behind = run
        else:
            _copy_bytes(asm, run)
            behind = 0
        if k + 1 < s.kernel_h:
            asm(f"movw r2, #{row - behind}")
            asm("add r0, r0, r2", "the next row of the kernel")
            if not behind:
                asm(f"add r1, r1, #{run}")
    comment = (
        f"/* Copy the {s.kernel_h} x {s.kernel_w} x {s.channels} inputs of an output pixel, all inside the\n"
        " * image; `at` is the first. */"
    )
    return function(f"{s.name}_inside", comment, [("const int8_t *", "at"), ("int8_t *", "patch")], asm)


def _copy_words(asm: Assembly, words: int) -> None:
    """Append a copy of aligned words that moves r0 and r1 behind them."""
    rounds = -(-words // len(_COPIED))
    for part in np.array_split(np.arange(words), rounds):
        if len(part) == 1:
            asm("ldr r3, [r0], #4")
            asm("str r3, [r1], #4")
        else:
            registers = ", ".join(_COPIED[: len(part)])
            asm(f"ldm r0!, {{{registers}}}")
            asm(f"stm r1!, {{{registers}}}")


def _copy_bytes(asm: Assembly, size: int) -> None:
    """Append a copy of ``size`` unaligned bytes: words as far as they go, which LDR and STR may be."""
    at = 0
    for width, load, store in ((4, "ldr", "str"), (2, "ldrh", "strh"), (1, "ldrb", "strb")):
        while size - at >= width:
            asm(f"{load} r3, [r0, #{at}]")
            asm(f"{store} r3, [r1, #{at}]")
            at += width


_BORDER = Template("""\
/* Copy the inputs of an output pixel whose window, from (row, col), crosses the border: padding is the zero
 * point. */
TE_NOINLINE static void ${name}_border(const int8_t *x, int32_t row, int32_t col, int8_t *patch) {
    typedef $unit unit __attribute__((may_alias));
    unit *to = (unit *)(void *)patch;
    for (int32_t k = row; k < row + $kernel_h; k++) {
        for (int32_t l = col; l < col + $kernel_w; l++) {
            const int inside = k >= 0 && k < $height && l >= 0 && l < $width;
            const unit *from = (const unit *)(const void *)(inside ? x + (k * $width + l) * $channels : x);
            for (int32_t c = 0; c < $units; c++) {
                *to++ = inside ? from[c] : $zero_point;
            }
        }
    }
}""")

_IMAGE = Template("""\
/* $kernel_h x $kernel_w convolution, stride ($stride_h, $stride_w): x ($height, $width, $channels),
 * y ($out_height, $out_width, $o).  `stream` is the layer's, `end` its end. */
TE_NOINLINE static void $name(const int8_t *x, int8_t *y, const uint32_t *stream, const uint32_t *end) {
    int8_t patches[$tile * $k] __attribute__((aligned(4)));
    for (int32_t p = 0; p < $pixels; p += $tile) {
        const int32_t first = p < $last ? p : $last; /* the last tile may overlap */
        for (int32_t t = 0; t < $tile; t++) {
            const int32_t i = (first + t) / $out_width, j = (first + t) % $out_width;
            const int32_t row = i * $stride_h - $pad_top, col = j * $stride_w - $pad_left;
            int8_t *patch = patches + t * $k;
            if (row >= 0 && row <= $row_inside && col >= 0 && col <= $col_inside) {
                ${name}_inside(x + (row * $width + col) * $channels, patch);
            } else {
                ${name}_border(x, row, col, patch);
            }
        }
        $inner_name(patches, y + first * $o, stream, end);
    }
}""")


def _fields(s: Shape) -> dict[str, object]:
    pixels, zp = s.out_height * s.out_width, s.x_zp & 0xFF
    words = s.channels % 4 == 0
    return vars(s) | {
        "name": s.name,
        "unit": "uint32_t" if words else "int8_t",
        "units": s.channels // 4 if words else s.channels,
        "zero_point": f"{zp * 0x01010101:#010x}u" if words else f"(int8_t)({s.x_zp})",
        "tile": s.inner.tile,
        "k": s.inner.k,
        "o": s.inner.o,
        "inner_name": s.inner.name,
        "pixels": pixels,
        "last": pixels - s.inner.tile,
        "row_inside": s.height - s.kernel_h,
        "col_inside": s.width - s.kernel_w,
    }
