"""CONV_2D 3x3 with stride 1 by Winograd's F(2, 3) along each row, in exact integers, for cores with DSP.

Two adjacent outputs of a kernel row g need four products instead of six [1]_.  Twice the outputs are::

    m1 = (d1 + d2) (g0 + g1 + g2)     m0 = (d0 - d2) 2 g0      2 y0 = m0 + m1 + m2
    m2 = (d2 - d1) (g0 - g1 + g2)     m3 = (d1 - d3) 2 g2      2 y1 = m1 - m2 - m3

Everything is an integer, and twice the sum is what the rounding starts from, or may (see `requantize`).
Sums over kernel rows and channels come before the additions on the right.  Inputs are within 256, weights
within 381: both fit int16; sums are taken modulo 2**32, so only the end result has to fit.

`transform` writes the four combinations of a tile's inputs to the stack, one kernel row a call; `outputs`
multiplies.  A tile is T pairs of outputs, a round G = 8 / T channels: eight sums.  The stream takes 8/3 of
the flash of plain weights.  Registers of `outputs`::

    r0  stream     r2, r3  weights     r6..lr  sums, (channel, pair)
    r1  inputs     r4, r5  inputs

References
----------
.. [1] Lavin and Gray, CVPR 2016, section 4.1.  https://arxiv.org/abs/1509.09308
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

import numpy as np

from ...ir.graph import Graph, Node
from . import requantize
from .assembly import Assembly, function, macro
from .requantize import Channels
from .weights import lane_order, lanes

MAX_SCRATCH_BYTES = 1536
_SUMS = ("r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr")
_ALL_SUMS = "{r6, r7, r8, r9, r10, r11, r12, lr}"
_STEP = "TE_STEP"
_SAVED, _COLUMNS_END, _Y, _STREAM_END, _INPUTS, _FRAME = 0, 32, 36, 40, 44, 48


@dataclass(frozen=True)
class Shape:
    """What the code of a kernel depends on: sizes of x and y, padding before them, the tile, the clamp.

    ``unroll`` words of weights a round of the inner loop; with ``keeps`` the transformed inputs of two kernel
    rows are kept for the next output row, and moved, instead of made anew.
    """

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    outputs: int
    pad_top: int
    pad_left: int
    x_zp: int
    pairs: int
    clamp: tuple[int, int]
    rounding: str
    unroll: int
    keeps: bool = False

    @property
    def group(self) -> int:
        """Output channels of a round."""
        return len(_SUMS) // self.pairs

    @property
    def words(self) -> int:
        """Words of weights of one channel and one of the four sums; inputs have as many for each pair."""
        return 3 * self.channels // 2

    @property
    def name(self) -> str:
        """The stem of the function names in C."""
        sizes = f"{self.height}x{self.width}x{self.channels}_to_{self.out_height}x{self.out_width}"
        numbers = (self.outputs, self.pad_top, self.pad_left, self.x_zp, *self.clamp)
        tags = f"_by_{self.pairs}_unroll_{self.unroll}{'_keeps' if self.keeps else ''}"
        tags += "" if self.rounding == "double" else "_single"
        return f"te_winograd_{sizes}x" + "_".join(str(v).replace("-", "m") for v in numbers) + tags

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the size of the functions."""
        inner = 4 * self.unroll * 13
        requantized = 2 * (8 * 12 + 4 * self.group)
        return (
            4 * (inner + requantized + 4 * 8 + 60 + 24 * self.pairs + 30 + 100 + 40 * self.keeps)
            + 2 * self.pairs * self.channels
        )


def shape_of(graph: Graph, node: Node, c: Channels) -> Shape | None:
    """Return the kernel for a node, or None if its window is another or its tile does not fit the stack."""
    x, w, y = (graph[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    a = node.attrs
    window = w[1:3] == (3, 3) and a.dilation == (1, 1) and a.stride == (1, 1)
    if not window or x[3] % 4 or not all(0 <= pad <= 1 for pad in a.padding):
        return None
    if not c.doubles or not c.of_twice.fits:
        return None
    legal = tiles(x[3], y[2], y[3])
    if not legal:
        return None
    x_zp = graph[node.inputs[0]].quant.item()[1]  # type: ignore[union-attr]  # int_params has checked it
    sizes = (x[1], x[2], x[3], y[1], y[2], y[3], a.padding[0], a.padding[1])
    return Shape(*sizes, x_zp, legal[0], c.clamp, c.rounding, unrolls(x[3])[0])


def tiles(channels: int, out_width: int, outputs: int) -> list[int]:
    """Return the values that ``Shape.pairs`` may have, the largest first."""
    return [
        t
        for t in (4, 2, 1)
        if 24 * channels * t <= MAX_SCRATCH_BYTES and 2 * t <= out_width and outputs % (len(_SUMS) // t) == 0
    ]


def unrolls(channels: int) -> list[int]:
    """Return the values that ``Shape.unroll`` may have, the one that is taken unmeasured first."""
    legal = [n for n in (2, 4, 6, 8, 12, 24, 48) if 3 * channels // 2 % n == 0]
    return sorted(legal, key=lambda n: (n > 12, -n))


def stream(s: Shape, c: Channels) -> np.ndarray:
    """Return the words of all rounds, uint32 (O / G, words of a round).

    Of each: eight first addends, weights of m1, m2 and m0, then multiplier, addend and shift of each channel,
    then weights of m3, negated.
    """
    g = c.weights.reshape(-1, 3, 3, s.channels)
    g0, g1, g2 = g[:, :, 0], g[:, :, 1], g[:, :, 2]
    order = lane_order(3 * s.channels)
    sums = [lanes(u.reshape(len(g), -1)[:, order]) for u in (g0 + g1 + g2, g0 - g1 + g2, 2 * g0, -2 * g2)]
    rounds = s.outputs // s.group
    # (O, words) -> (round, word, channel of the round)
    m1, m2, m0, m3 = (u.reshape(rounds, s.group, -1).transpose(0, 2, 1).reshape(rounds, -1) for u in sums)
    bias = np.repeat(2 * c.bias, s.pairs).reshape(rounds, -1)
    twice = c.of_twice
    factors = np.stack([requantize.stored_multiplier(c, _form(c)), twice.addend, twice.shift], axis=1)
    parts = [bias, m1, m2, m0, factors.reshape(rounds, -1), m3]
    return (np.concatenate(parts, axis=1) & 0xFFFFFFFF).astype(np.uint32)


def _form(c: Channels) -> str:
    """Return what `requantize.emit` is told of the sums, which are ``2 * acc``; see `Channels.of_twice`."""
    return "acc" if c.rounding == "single" else "twice"


def source(s: Shape, c: Channels) -> str:
    """Return the C functions of a shape; of ``c`` only rounding and clamp are used."""
    return "\n\n".join([_transform(s), *([_move(s)] if s.keeps else []), _outputs(s, c), _image(s)])


def _transform(s: Shape) -> str:
    """Combine the inputs of one kernel row: for each four channels, all pairs of the tile."""
    asm = Assembly()
    sum_bytes, step = 4 * s.words * s.pairs, 8 * s.pairs
    asm(f"add r12, r0, #{s.channels}")
    asm("1:")
    d = [("r4", "r5"), ("r6", "r7"), ("r8", "r9"), ("r10", "r11")]  # channels 0 and 2, channels 1 and 3
    _column(asm, "[r1], #4", d[0])
    _column(asm, "[r0]", d[1])
    for pair in range(s.pairs):
        _column(asm, f"[r0, #{(2 * pair + 1) * s.channels}]", d[2])
        last = pair + 1 == s.pairs
        _column(asm, "[r2], #4" if last else f"[r0, #{(2 * pair + 2) * s.channels}]", d[3])
        for half in range(2):
            d0, d1, d2, d3 = (column[half] for column in d)
            combinations = [
                f"sadd16 lr, {d1}, {d2}",
                f"ssub16 lr, {d2}, {d1}",
                f"ssub16 lr, {d0}, {d2}",
                f"ssub16 lr, {d1}, {d3}",
            ]
            for m, instruction in enumerate(combinations):
                asm(instruction)
                asm(f"str lr, [r3, #{m * sum_bytes + half * 4 * s.pairs + 4 * pair}]")
        d = [d[2], d[3], d[0], d[1]]
    asm("add r0, r0, #4")
    asm(f"add r3, r3, #{step}")
    asm("cmp r0, r12")
    asm("bne 1b")
    comment = (
        f"/* d1 + d2, d2 - d1, d0 - d2, d1 - d3 of {s.pairs} pairs of outputs and {s.channels} channels,\n"
        " * one kernel row.  `row` is the second column of the window, `first` and `last` the outermost. */"
    )
    arguments = [
        ("const int8_t *", "row"),
        ("const int8_t *", "first"),
        ("const int8_t *", "last"),
        ("uint32_t *", "inputs"),
    ]
    return function(f"{s.name}_transform", comment, arguments, asm)


def _move(s: Shape) -> str:
    """Move kernel rows 1 and 2 of each sum's inputs to rows 0 and 1."""
    asm = Assembly()
    row_bytes = 2 * s.channels * s.pairs
    asm(f"add r1, r0, #{row_bytes}")
    asm(f"add r12, r0, #{4 * 3 * row_bytes}")
    asm("1:")
    registers = [f"r{i}" for i in range(4, 12)]
    for part in np.array_split(np.arange(row_bytes // 2), -(-row_bytes // 2 // len(registers))):
        asm(f"ldm r1!, {{{', '.join(registers[: len(part)])}}}")
        asm(f"stm r0!, {{{', '.join(registers[: len(part)])}}}")
    asm(f"add r0, r0, #{row_bytes}")
    asm(f"add r1, r1, #{row_bytes}")
    asm("cmp r0, r12")
    asm("bne 1b")
    comment = (
        "/* The next output row: transformed rows 1 and 2 become rows 0 and 1, in each of the four sums. */"
    )
    return function(f"{s.name}_move", comment, [("uint32_t *", "inputs")], asm)


def _column(asm: Assembly, address: str, wide: tuple[str, str]) -> None:
    """Load four channels of one column, and widen them to int16."""
    asm(f"ldr lr, {address}")
    asm(f"sxtb16 {wide[0]}, lr")
    asm(f"sxtb16 {wide[1]}, lr, ror #8")


def _outputs(s: Shape, c: Channels) -> str:
    """Multiply and requantize all channels of a tile."""
    asm = Assembly()
    sum_bytes = 4 * s.words * s.group
    asm(f"sub sp, sp, #{_FRAME}")
    asm(f"strd r1, r3, [sp, #{_Y}]")
    asm(f"str r0, [sp, #{_INPUTS}]")
    asm("mov r1, r0")
    asm("mov r0, r2")
    asm("1:")
    asm(f"ldm r0!, {_ALL_SUMS}", "m1, from the biases")
    _products(asm, s)
    asm(f"stm sp, {_ALL_SUMS}")
    for acc in _SUMS:
        asm(f"mov {acc}, #0", "m2" if acc == _SUMS[0] else "")
    _products(asm, s)
    for i, acc in enumerate(_SUMS):
        asm(f"ldr r4, [sp, #{_SAVED + 4 * i}]", "m1 + m2 stays, m1 - m2 is for later" if not i else "")
        asm(f"sub r5, r4, {acc}")
        asm(f"add {acc}, {acc}, r4")
        asm(f"str r5, [sp, #{_SAVED + 4 * i}]")
    asm.note("m0, and with it the even outputs")
    _products(asm, s)
    _finish(asm, s, c, 0)
    asm(f"ldr r1, [sp, #{_INPUTS}]")
    asm(f"add r1, r1, #{3 * 4 * s.words * s.pairs}")
    asm(f"ldm sp, {_ALL_SUMS}", "m3, and with it the odd outputs")
    _products(asm, s)
    asm(f"sub r0, r0, #{sum_bytes + 12 * s.group}", "back to the factors")
    _finish(asm, s, c, 1)
    asm(f"add r0, r0, #{sum_bytes}")
    asm(f"add r1, r1, #{s.group}")
    asm(f"str r1, [sp, #{_Y}]")
    asm(f"ldrd r2, r1, [sp, #{_STREAM_END}]")
    asm("cmp r0, r2")
    asm("bne 1b")
    asm(f"add sp, sp, #{_FRAME}")
    comment = (
        f"/* {2 * s.pairs} adjacent outputs of all {s.outputs} channels, from transformed inputs, {s.group}\n"
        " * channels a round. */"
    )
    arguments = [
        ("const uint32_t *", "inputs"),
        ("int8_t *", "y"),
        ("const uint32_t *", "stream"),
        ("const uint32_t *", "end"),
    ]
    return f"{_macro(s)}\n\n{function(f'{s.name}_outputs', comment, arguments, asm)}\n#undef {_STEP}"


def _macro(s: Shape) -> str:
    """Return the macro of two words of weights of each channel of a round, times the inputs."""
    lines = []
    for word in range(2):
        if s.pairs == 1 and word == 0:
            lines.append("ldrd r4, r5, [r1], #8")
        for pair in range(0, s.pairs, 2):
            if s.pairs > 1:
                lines.append("ldrd r4, r5, [r1], #8")
            for channel in range(0, s.group, 2):
                if pair == 0:
                    lines.append("ldrd r2, r3, [r0], #8")
                for w in (0, 1):
                    for p in range(pair, min(pair + 2, s.pairs)):
                        acc = _SUMS[(channel + w) * s.pairs + p]
                        x = ("r4", "r5")[word if s.pairs == 1 else p % 2]
                        lines.append(f"smlad {acc}, {x}, {('r2', 'r3')[w]}, {acc}")
    return macro(_STEP, (), lines)


def _products(asm: Assembly, s: Shape) -> None:
    """Append the loop over all words of one of the four sums."""
    asm(f"add r4, r1, #{4 * s.words * s.pairs}")
    asm(f"str r4, [sp, #{_COLUMNS_END}]")
    asm("2:")
    for _ in range(s.unroll // 2):
        asm.macro(f"{_STEP}()")
    asm(f"ldr r4, [sp, #{_COLUMNS_END}]")
    asm("cmp r1, r4")
    asm("bne 2b")


def _finish(asm: Assembly, s: Shape, c: Channels, odd: int) -> None:
    """Requantize and store every second output column; r1 is y behind it."""
    asm(f"ldr r1, [sp, #{_Y}]")
    for channel in range(s.group):
        asm("ldm r0!, {r2, r3, r4}", "multiplier, addend, shift")
        for pair in range(s.pairs):
            acc = _SUMS[channel * s.pairs + pair]
            requantize.emit(asm, c, acc, t="r5", m="r2", addend="r3", shift="r4", form=_form(c))
            asm(f"strb r5, [r1, #{(2 * pair + odd) * s.outputs + channel}]")


_IMAGE = """\
/* 3x3 convolution by F(2, 3) along rows: x ($height, $width, $channels),
 * y ($out_height, $out_width, $outputs).  `stream` is the layer's, `end` its end. */
TE_NOINLINE static void $name(const int8_t *x, int8_t *y, const uint32_t *stream, const uint32_t *end) {
    static const int8_t padding[$line] __attribute__((aligned(4))) = {
$zero_points
    };
    uint32_t inputs[$scratch]; /* (sum, kernel row and channel pair, output pair) */
$loops
            for (int32_t k = $first_row; k < 3; k++) {
                const int32_t r = i - $pad_top + k;
                const int inside = r >= 0 && r < $height;
                const int8_t *row = inside ? x + (r * $width + left + 1) * $channels : padding;
                const int8_t *first = inside && left >= 0 ? row - $channels : padding;
                const int8_t *last = inside && left + $columns + 1 < $width ? row + $line : padding;
                ${name}_transform(row, first, last, inputs + k * $row_words);
            }
            ${name}_outputs(inputs, y + (i * $out_width + j) * $outputs, stream, end);
        }
    }
}"""

_ROW_BY_ROW = """\
    for (int32_t i = 0; i < $out_height; i++) {
        for (int32_t block = 0; block < $out_width; block += $columns) {
            const int32_t j = block < $last_block ? block : $last_block; /* the last may overlap */
            const int32_t left = j - $pad_left; /* first column of the window */"""
_COLUMN_BY_COLUMN = """\
    for (int32_t block = 0; block < $out_width; block += $columns) {
        const int32_t j = block < $last_block ? block : $last_block; /* the last may overlap */
        const int32_t left = j - $pad_left; /* first column of the window */
        for (int32_t i = 0; i < $out_height; i++) {
            if (i > 0) {
                ${name}_move(inputs);
            }"""


def _image(s: Shape) -> str:
    line = 2 * s.pairs * s.channels
    values = [f"{s.x_zp}," for _ in range(line)]
    rows = ["        " + " ".join(values[i : i + 16]) for i in range(0, line, 16)]
    return Template(_IMAGE.replace("$loops", _COLUMN_BY_COLUMN if s.keeps else _ROW_BY_ROW)).substitute(
        vars(s)
        | {
            "first_row": "i > 0 ? 2 : 0" if s.keeps else "0",
            "name": s.name,
            "line": line,
            "zero_points": "\n".join(rows),
            "scratch": 4 * s.words * s.pairs,
            "columns": 2 * s.pairs,
            "last_block": s.out_width - 2 * s.pairs,
            "row_words": s.channels * s.pairs // 2,
        }
    )
