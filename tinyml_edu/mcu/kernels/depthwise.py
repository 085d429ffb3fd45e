"""DEPTHWISE_CONV_2D with a 3x3 kernel and stride 1 or 2, for cores with the DSP extension.

Four channels at a time.  `load` widens two rows of the image into a strip on the stack, so that one word
holds one channel of two rows, ``(row r, row r + 1)``; the strip keeps the two rows before them as well, and
padding is part of it::

    strip[column][channel][0]  rows r - 2, r - 1          strip[column][channel][1]  rows r, r + 1

Two words of weights serve a kernel column, ``Wa = (w0, w1)`` and ``Wb = (w1, w2)``.  With
``P = (x0, x1)`` and ``Q = (x2, x3)``, four instructions give both output rows (stride 1)::

    upper row  w0 x0 + w1 x1 + w2 x2 = SMLAD(P, Wa) + SMLABT(Q, Wb)
    lower row  w0 x1 + w1 x2 + w2 x3 = SMLATB(P, Wa) + SMLAD(Q, Wb)

Stride 2 needs the upper row only.  Weights and bias are doubled where the rounding starts from ``2 * acc``.
Registers of the inner loop::

    r0  strip          r2, r3  Wa, Wb of column 2, then scratch      r6..r9   Wa, Wb of columns 0 and 1
    r1  y              r4, r5  P, Q, then multiplier and addend      r10..lr  sums
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

import numpy as np

from ...ir.graph import Graph, Node
from . import requantize
from .assembly import Assembly, function
from .requantize import Channels, stored_multiplier

GROUP = 4
MAX_COLUMNS = 50
"""Columns of the strip, which is on the stack: 50 of 32 bytes."""

_COLUMN_BYTES = GROUP * 8
_SUMS = ("r10", "r11", "r12", "lr")
_WEIGHTS = (("r6", "r7"), ("r8", "r9"), ("r2", "r3"))
_IMMEDIATE = 4095

# What the inner loop finds behind sp: six words of the channel, then where it is.
_W2, _MULTIPLIER, _SHIFT, _BIAS, _END, _X, _Y, _STREAM, _LAST, _FRAME = 0, 8, 16, 20, 24, 28, 32, 36, 40, 44


@dataclass(frozen=True)
class Shape:
    """What the code of a kernel depends on: sizes of x and y, the window, rounding and clamp.

    ``chosen_tile`` is `tile` where a search chose it, 0 for the one that `_cost` finds cheapest.
    """

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    stride: int
    pad_top: int
    pad_left: int
    x_zp: int
    rounding: str
    clamp: tuple[int, int]
    chosen_tile: int = 0

    @property
    def rows(self) -> int:
        """Output rows that the inner loop computes at once."""
        return 2 if self.stride == 1 else 1

    @property
    def block(self) -> int:
        """Output columns of one strip; a wide image takes several, and the last overlaps."""
        return min(self.out_width, (MAX_COLUMNS - 3) // self.stride + 1)

    @property
    def columns(self) -> int:
        """Columns of the strip."""
        return (self.block - 1) * self.stride + 3

    @property
    def tile(self) -> int:
        """Output columns of one round of the inner loop: as many as there are registers for sums."""
        return self.chosen_tile or min(
            self.tiles, key=lambda n: (_cost(self.block, n, self.stride, self.rows), n)
        )

    @property
    def tiles(self) -> range:
        """The values that `tile` may have."""
        return range(1, min(len(_SUMS) // self.rows, self.block) + 1)

    @property
    def in_place(self) -> bool:
        """Whether y may be x: no row or column is loaded again after an output was written over it.

        Output rows i and i + 1 are written when input rows up to i + 3 - pad_top are in the strip.
        """
        same = (self.height, self.width) == (self.out_height, self.out_width)
        one_pass = self.block == self.out_width and self.out_height % self.rows == 0
        return self.stride == 1 and same and one_pass and self.pad_top <= 2

    @property
    def name(self) -> str:
        """The stem of the function names in C."""
        sizes = f"{self.height}x{self.width}x{self.channels}_to_{self.out_height}x{self.out_width}"
        numbers = (self.stride, self.pad_top, self.pad_left, self.x_zp, *self.clamp)
        tags = "_".join(str(v).replace("-", "m") for v in numbers)
        tags += f"_by_{self.chosen_tile}" if self.chosen_tile else ""
        return f"te_depthwise_{sizes}_{tags}{'' if self.rounding == 'double' else '_single'}"

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the size of the functions."""
        rest = self.block % self.tile
        return 4 * (90 + 40) + 4 * sum(
            _instructions(n, self.stride, self.rows) + 6 * n * self.rows for n in (self.tile, rest) if n
        )


def _instructions(n: int, stride: int, rows: int) -> int:
    """Return the length of a round of ``n`` output columns, without unusual clamps."""
    return (n - 1) * stride + 3 + n * rows * (6 + 5) + 8


def _cost(width: int, n: int, stride: int, rows: int) -> int:
    rounds, rest = divmod(width, n)
    return rounds * _instructions(n, stride, rows) + (_instructions(rest, stride, rows) if rest else 0)


def shape_of(graph: Graph, node: Node, c: Channels) -> Shape | None:
    """Return the kernel for a node, or None if it has another window, multiplier or an odd channel count."""
    x, w, y = (graph[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    a = node.attrs
    window = w[1:3] == (3, 3) and a.dilation == (1, 1) and a.stride in ((1, 1), (2, 2))
    if not window or x[3] != y[3] or x[3] % GROUP or not all(0 <= pad <= 2 for pad in a.padding):
        return None
    x_zp = graph[node.inputs[0]].quant.item()[1]  # type: ignore[union-attr]  # int_params has checked it
    sizes = (x[1], x[2], x[3], y[1], y[2], a.stride[0], a.padding[0], a.padding[1], x_zp)
    s = Shape(*sizes, c.rounding, c.clamp)
    return s if is_legal(s) else None


def is_legal(s: Shape) -> bool:
    """Whether the image has the rows of a tile, and all its columns are in reach of one store."""
    return s.out_height >= s.rows and s.tile * s.channels <= _IMMEDIATE


def stream(c: Channels) -> np.ndarray:
    """Return the words of all channels, uint32 (C, 10): Wa, Wb three times, factors, bias."""
    factor, form = (1, "acc") if c.rounding == "single" else (2, "twice")
    w = factor * c.weights.reshape(-1, 3, 3)
    upper, lower = _words(w[:, 0], w[:, 1]), _words(w[:, 1], w[:, 2])
    taps = np.stack([upper, lower], axis=2).reshape(len(w), 6)
    last = np.stack([stored_multiplier(c, form), c.addend, c.shift, factor * c.bias], axis=1)
    return (np.concatenate([taps, last], axis=1) & 0xFFFFFFFF).astype(np.uint32)


def _words(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (low & 0xFFFF) | ((high & 0xFFFF) << 16)


def source(s: Shape, c: Channels) -> str:
    """Return the three C functions of a shape; of ``c`` only rounding and clamp are used."""
    return "\n\n".join([_load(s), _rows(s, c), _image(s)])


def _load(s: Shape) -> str:
    """Widen two rows of four channels into the strip, and keep the two rows that it held."""
    asm = Assembly()
    asm(f"movw r4, #{s.channels}", "bytes from column to column; 0 for a row of padding")
    asm("mov r5, r4")
    for bit, step in ((1, "r4"), (2, "r5")):
        asm(f"tst r12, #{bit}")
        asm("it ne")
        asm(f"movne {step}, #0")
    asm("1:")
    asm("ldr r6, [r0]")
    asm("add r0, r0, r4")
    asm("ldr r7, [r1]")
    asm("add r1, r1, r5")
    asm("pkhbt r12, r6, r7, lsl #16", "channels 0 and 1 of both rows")
    asm("pkhtb r6, r7, r6, asr #16", "channels 2 and 3 of both rows")
    for pair in ("r12", "r6"):
        asm("ldr r8, [r2, #4]")
        asm(f"sxtb16 r9, {pair}")
        asm("ldr r10, [r2, #12]")
        asm(f"sxtb16 r11, {pair}, ror #8")
        asm("stm r2!, {r8, r9, r10, r11}")
    asm("cmp r2, r3")
    asm("bne 1b")
    comment = (
        "/* Widen four channels of two rows of x, `upper` and `lower`, into the columns `strip` to `end`,\n"
        " * and keep the two rows that they held.  Bit 0 of `padding`: `upper` is one pixel of padding,\n"
        " * repeated; bit 1: `lower` is. */"
    )
    arguments = [
        ("const int8_t *", "upper"),
        ("const int8_t *", "lower"),
        ("uint32_t *", "strip"),
        ("const uint32_t *", "end"),
        ("int32_t", "padding"),
    ]
    return function(f"{s.name}_load", comment, arguments, asm)


def _rows(s: Shape, c: Channels) -> str:
    """Compute the output rows of a strip, four channels one after the other."""
    asm = Assembly()
    rounds, rest = divmod(s.block, s.tile)
    asm(f"sub sp, sp, #{_FRAME}")
    asm(f"add r3, r0, #{_COLUMN_BYTES}")
    asm(f"str r3, [sp, #{_LAST}]")
    asm("1:")
    asm("ldm r2!, {r6, r7, r8, r9}", "weights of columns 0 and 1")
    asm("ldm r2!, {r3, r4, r5, r10, r11, r12}")
    asm("stm sp, {r3, r4, r5, r10, r11, r12}", "weights of column 2, multiplier, addend, shift, bias")
    asm("add r3, r0, #8")
    asm("add r4, r1, #1")
    asm(f"add r5, r0, #{rounds * s.tile * s.stride * _COLUMN_BYTES}")
    asm(f"strd r5, r3, [sp, #{_END}]", "where the columns end, the next channel's strip")
    asm(f"strd r4, r2, [sp, #{_Y}]", "and its y and weights")
    asm("2:")
    _round(asm, s, c, s.tile)
    asm(f"ldr r4, [sp, #{_END}]")
    asm("cmp r0, r4")
    asm("bne 2b")
    if rest:
        asm.note("The columns that are left.")
        _round(asm, s, c, rest)
    asm(f"ldrd r0, r1, [sp, #{_X}]")
    asm(f"ldrd r2, r3, [sp, #{_STREAM}]")
    asm("cmp r0, r3")
    asm("bne 1b")
    asm(f"add sp, sp, #{_FRAME}")
    comment = (
        f"/* 3x3 depthwise convolution, stride {s.stride}: {s.rows} x {s.block} outputs of four channels,\n"
        f" * {s.tile} columns a round. */"
    )
    arguments = [("const uint32_t *", "strip"), ("int8_t *", "y"), ("const uint32_t *", "stream")]
    return function(f"{s.name}_rows", comment, arguments, asm)


def _round(asm: Assembly, s: Shape, c: Channels, n: int) -> None:
    """Append ``n`` output columns, and move r0 and r1 behind them."""
    sums = _SUMS[-n * s.rows :]
    asm(f"ldr lr, [sp, #{_BIAS}]", "every sum starts from the bias; lr becomes the last sum itself")
    asm(f"ldrd r2, r3, [sp, #{_W2}]")
    step = n * s.stride * _COLUMN_BYTES
    for column in range((n - 1) * s.stride + 3):
        at = f"[r0, #{column * _COLUMN_BYTES - step}]" if column else f"[r0], #{step}"
        asm(f"ldrd r4, r5, {at}")
        for j in range(n):
            tap = column - j * s.stride
            if 0 <= tap <= 2:
                _tap(asm, _WEIGHTS[tap], sums[j * s.rows : (j + 1) * s.rows], first=tap == 0)
    asm(f"ldrd r4, r5, [sp, #{_MULTIPLIER}]")
    asm(f"ldr r2, [sp, #{_SHIFT}]")
    form = "acc" if s.rounding == "single" else "twice"
    row_bytes = s.out_width * s.channels
    for row in range(s.rows):
        base, offset = "r1", row * row_bytes
        if offset + (n - 1) * s.channels > _IMMEDIATE:
            asm(f"movw {sums[0]}, #{row_bytes}")
            asm(f"add {sums[0]}, {sums[0]}, r1")
            base, offset = sums[0], 0
        for j in range(n):
            acc = sums[j * s.rows + row]
            requantize.emit(asm, c, acc, t="r3", m="r4", addend="r5", shift="r2", form=form)
            asm(f"strb r3, [{base}, #{offset + j * s.channels}]")
    asm(f"add r1, r1, #{n * s.channels}")


def _tap(asm: Assembly, weights: tuple[str, str], sums: tuple[str, ...], *, first: bool) -> None:
    """Append one kernel column of one output column: both words times both words of weights."""
    addends = ["lr" if first else acc for acc in sums]
    wa, wb = weights
    asm(f"smlad {sums[0]}, r4, {wa}, {addends[0]}")
    asm(f"smlabt {sums[0]}, r5, {wb}, {sums[0]}")
    if len(sums) == 2:
        asm(f"smlatb {sums[1]}, r4, {wa}, {addends[1]}")
        asm(f"smlad {sums[1]}, r5, {wb}, {sums[1]}")


_IMAGE = Template("""\
/* 3x3 depthwise convolution, stride $stride: x ($height, $width, $channels),
 * y ($out_height, $out_width, $channels).  `stream` is the layer's. */
TE_NOINLINE static void $name(const int8_t *x, int8_t *y, const uint32_t *stream) {
    static const int8_t padding[4] __attribute__((aligned(4))) = {$x_zp, $x_zp, $x_zp, $x_zp};
    uint32_t strip[$columns * 8]; /* (column, channel, older and newer two rows) */
    for (int32_t c = 0; c < $channels; c += 4, stream += 40) {
        for (int32_t block = 0; block < $out_width; block += $block) {
            const int32_t j = block < $last_block ? block : $last_block;
            const int32_t left = j * $stride - $pad_left; /* column of x at the strip's start */
            const int32_t first = left < 0 ? 0 : left;
            const int32_t end = left + $columns > $width ? $width : left + $columns;
            for (int32_t i = 0; i < $columns * 8; i++) {
                strip[i] = $zp_pair;
            }
            int32_t next = -1; /* row of x that comes after those in the strip */
            for (int32_t row = 0; row < $out_height; row += $rows) {
                const int32_t i = row < $last_row ? row : $last_row; /* the last rows may overlap */
                const int32_t top = i * $stride - $pad_top;
                for (int32_t r = next == top + 2 ? next : top; r <= top + 2; r += 2) {
                    const int upper = r >= 0 && r < $height, lower = r + 1 >= 0 && r + 1 < $height;
                    const int32_t at = (r * $width + first) * $channels + c;
                    ${name}_load(upper ? x + at : padding, lower ? x + at + $row_bytes : padding,
                        strip + (first - left) * 8, strip + (end - left) * 8, !upper + 2 * !lower);
                }
                next = top + 4;
                ${name}_rows(strip, y + (i * $out_width + j) * $channels + c, stream);
            }
        }
    }
}""")


def _image(s: Shape) -> str:
    zp = s.x_zp & 0xFFFF
    return _IMAGE.substitute(
        vars(s)
        | {
            "name": s.name,
            "rows": s.rows,
            "columns": s.columns,
            "block": s.block,
            "last_block": s.out_width - s.block,
            "last_row": s.out_height - s.rows,
            "row_bytes": s.width * s.channels,
            "zp_pair": f"{zp | zp << 16:#010x}u",
        }
    )
