"""DEPTHWISE_CONV_2D with any window, stride, channel count and multiplier, for cores with the DSP extension.

Up to four input channels at a time, widened into planes on the stack, see `planes`; one word holds two rows
of one column, and padding is part of them::

    planes[channel][column][pair]      rows (2 pair, 2 pair + 1) of those that ``rows`` output rows read

A column of the kernel meets a column of a plane in one LDM of each.  Where output row ``o`` starts ``d`` rows
before a pair, the pair ``(x0, x1)`` adds ``w[d] x0 + w[d + 1] x1``, one SMLAD; at the ends of the kernel only
one of both counts (SMLATB, SMLABT).  Words of neighbouring weights ``(w[d], w[d + 1])`` serve even and odd
``d``, so a 5x5 kernel has four of them a column.  Weights and bias are doubled where the rounding starts from
``2 * acc``.  Registers of the inner loop, which computes ``rows`` outputs of a column::

    r0  plane, walks over its columns        r2...   words of weights, then pairs of inputs
    r1  stream, walks over the weights       ...lr   sums, one for each output row
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...ir.graph import Graph, Node
from . import planes, requantize
from .assembly import Assembly, function
from .requantize import Channels, stored_multiplier

MAX_SCRATCH_BYTES = 1600
MAX_ROWS = 6
MAX_UNROLLED = 400
"""Instructions of a round of the inner loop; longer loops gain nothing, and cost flash."""

_POOL = (*(f"r{i}" for i in range(2, 13)), "lr")
_IMMEDIATE = 4095
_FACTORS = 4  # registers of a requantization: multiplier, addend, shift and the code
_END, _Y, _PLANES, _STREAM_END, _Y_NEXT, _FRAME = 0, 4, 8, 12, 16, 20


@dataclass(frozen=True)
class Shape:
    """What the code of a kernel depends on: sizes of x and y, the window, rounding and clamp.

    ``rows`` output rows are computed at once, in blocks of ``block`` columns.
    """

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    multiplier: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    x_zp: int
    rounding: str
    clamp: tuple[int, int]
    rows: int = 1

    @property
    def group(self) -> int:
        """Input channels at a time."""
        return min(self.channels, planes.GROUP)

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.channels * self.multiplier

    @property
    def pairs(self) -> int:
        """Pairs of input rows that ``rows`` output rows read."""
        return ((self.rows - 1) * self.stride_h + self.kernel_h + 1) // 2

    @property
    def kept(self) -> int:
        """Pairs that the next output rows read too; 0 if rows and pairs do not meet again."""
        step = self.rows * self.stride_h
        return 0 if step % 2 else max(self.pairs - step // 2, 0)

    @property
    def block(self) -> int:
        """Output columns of the planes; a wide image takes several blocks, and the last overlaps."""
        columns = MAX_SCRATCH_BYTES // (4 * self.pairs * self.group)
        most = max((columns - self.kernel_w) // self.stride_w + 1, 0)
        return min(self.out_width, most) and -(-self.out_width // -(-self.out_width // most))

    @property
    def columns(self) -> int:
        """Columns of a plane."""
        return (self.block - 1) * self.stride_w + self.kernel_w

    @cached_property
    def words(self) -> list[tuple[int, int]]:
        """The kernel rows that each word of weights holds, low half first; -1 stands for no row."""
        starts = {2 * q - o * self.stride_h for q in range(self.pairs) for o in range(self.rows)}
        last = self.kernel_h - 1
        words = [(d, d + 1) for d in range(last) if d in starts]
        if not any(word[0] == 0 for word in words) and (-1 in starts or last == 0):
            words.insert(0, (0, -1))
        if last in starts and not any(last in word for word in words):
            words.append((last, -1))
        return words

    @property
    def in_place(self) -> bool:
        """Whether y may be x: no row or column is loaded again after an output was written over it.

        That needs one block of columns, and output rows that no second round computes again.  A round from
        output row i on loads input rows from ``i - pad_top + 2 * kept`` on, and rows before i are written
        already.  Of the last group of channels, those known already are loaded as well, but not used.
        """
        same = (self.height, self.width, self.channels) == (self.out_height, self.out_width, self.outputs)
        one_pass = self.block == self.out_width and self.out_height % self.rows == 0
        loads_behind = self.out_height == self.rows or 2 * self.kept >= self.pad_top
        return same and (self.stride_h, self.stride_w) == (1, 1) and one_pass and loads_behind

    @property
    def loaded(self) -> int:
        """Pairs that one instruction loads."""
        return min(self.pairs, len(_POOL) - len(self.words) - self.rows)

    @property
    def unroll(self) -> int:
        """Output columns of a round of the inner loop; those that are left stand behind it."""
        legal = [n for n in (2, 3, 4) if n + self.block % n <= 4 and n <= self.block]
        return max((n for n in legal if n * _column_cost(self) <= MAX_UNROLLED), default=1)

    @property
    def far(self) -> bool:
        """Whether the output rows are too far apart for the offset of a store."""
        return (self.rows - 1) * self.out_width * self.outputs + 3 * self.outputs > _IMMEDIATE

    @property
    def resident(self) -> int:
        """Registers that no product needs: the first keeps y, the second where the columns end."""
        free = len(_POOL) - len(self.words) - self.loaded - self.rows
        return 0 if self.far else max(0, min(2, free, len(_POOL) - self.rows - _FACTORS))

    @property
    def record(self) -> int:
        """Words of the stream for one output channel: plane, bias, weights, factors."""
        return 2 + self.kernel_w * len(self.words) + 3

    @property
    def name(self) -> str:
        """The stem of the function names in C."""
        sizes = f"{self.height}x{self.width}x{self.channels}_to_{self.out_height}x{self.out_width}"
        window = f"{self.kernel_h}x{self.kernel_w}"
        numbers = (self.outputs, self.stride_h, self.stride_w, self.pad_top, self.pad_left, self.x_zp)
        tags = "_".join(str(v).replace("-", "m") for v in (*numbers, *self.clamp))
        single = "" if self.rounding == "double" else "_single"
        return f"te_depthwise_{window}_{sizes}x{tags}_by_{self.rows}{single}"

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the size of the functions."""
        columns = self.unroll + self.block % self.unroll
        clamps = 3 * sum(bound != end for bound, end in zip(self.clamp, (-128, 127)))
        column = _column_cost(self) + (2 + clamps) * self.rows
        return 4 * (columns * column + 4 * self.kept + 320)


def _column_cost(s: Shape) -> int:
    """Return the instructions of the inner loop for one output column, without unusual clamps."""
    taps = sum(-1 <= 2 * q - o * s.stride_h < s.kernel_h for q in range(s.pairs) for o in range(s.rows))
    return s.kernel_w * (1 - -s.pairs // s.loaded + taps) + (6 if s.far else 5) * s.rows + 6 - s.resident


def _cost(s: Shape) -> float:
    """Return about how many instructions a layer takes, for each input channel."""
    new = s.pairs - s.kept
    load = s.columns * (14 * new / s.group + (2.5 if s.kept else 0))
    edges = 40 + s.columns * s.pairs / 3
    blocks, steps = -(-s.out_width // s.block), float(-(-s.out_height // s.rows))
    steps *= s.multiplier * s.block * _column_cost(s) + load + 40 * new / s.group
    return blocks * (steps + edges / s.group)


def shape_of(graph: Graph, node: Node, c: Channels) -> Shape | None:
    """Return the kernel for a node, or None if its window is dilated or too high for the registers."""
    return next(iter(forms(graph, node, c)), None)


def is_exact(c: Channels) -> bool:
    """Whether sums may be doubled where the rounding needs that, and the short requantization fits."""
    return c.fits and (c.rounding == "single" or c.doubles)


def forms(graph: Graph, node: Node, c: Channels) -> list[Shape]:
    """Return the kernels for a node, one for each number of output rows at once, the fastest first."""
    x, w, y = (graph[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    a = node.attrs
    if a.dilation != (1, 1) or 4 * y[3] > _IMMEDIATE or y[2] * y[3] > 0xFFFF or x[3] > 0xFFFF:
        return []
    x_zp = graph[node.inputs[0]].quant.item()[1]  # type: ignore[union-attr]  # int_params has checked it
    sizes = (x[1], x[2], x[3], y[1], y[2], y[3] // x[3], w[1], w[2])
    window = (a.stride[0], a.stride[1], a.padding[0], a.padding[1])
    s = Shape(*sizes, *window, x_zp, c.rounding, c.clamp)
    made = [replace(s, rows=rows) for rows in range(1, min(MAX_ROWS, s.out_height) + 1)]
    return sorted((f for f in made if f.loaded >= 1 and f.block >= 1), key=_cost)


def stream(s: Shape, c: Channels) -> np.ndarray:
    """Return the words of all output channels, uint32 (O, words of a channel)."""
    factor, form = (1, "acc") if c.rounding == "single" else (2, "twice")
    taps = factor * c.weights.reshape(-1, s.kernel_h, s.kernel_w).transpose(0, 2, 1)
    taps = np.pad(taps, ((0, 0), (0, 0), (0, 1)))  # row -1 of the kernel is 0
    low, high = (np.array(rows) for rows in zip(*s.words))
    weights = ((taps[:, :, low] & 0xFFFF) | ((taps[:, :, high] & 0xFFFF) << 16)).reshape(len(taps), -1)
    channel = np.arange(s.outputs) // s.multiplier
    # The last planes are those of the last channels, whatever the others of their group are.
    plane = np.where(channel < s.channels // s.group * s.group, channel % s.group, 0)
    rest = channel >= s.channels // s.group * s.group
    plane = np.where(rest, channel - (s.channels - s.group), plane) * s.columns * s.pairs * 4
    first = np.stack([plane, factor * c.bias], axis=1)
    last = np.stack([stored_multiplier(c, form), c.addend, c.shift], axis=1)
    return (np.concatenate([first, weights, last], axis=1) & 0xFFFFFFFF).astype(np.uint32)


def source(s: Shape, c: Channels) -> str:
    """Return the C functions of a shape; of ``c`` only rounding and clamp are used."""
    return "\n\n".join([planes.source(s), _rows(s, c), planes.image(s)])


def _rows(s: Shape, c: Channels) -> str:
    """Compute the output rows of the planes, one output channel after the other."""
    asm = Assembly()
    y, end = _residents(s)
    rounds, rest = divmod(s.block, s.unroll)
    asm(f"sub sp, sp, #{_FRAME}")
    asm(f"strd r0, r3, [sp, #{_PLANES}]")
    asm(f"str r1, [sp, #{_Y_NEXT}]")
    asm("mov r1, r2")
    asm("1:")
    asm("ldr r0, [r1], #4")
    asm(f"ldr r2, [sp, #{_PLANES}]")
    asm(f"ldr {y or 'r3'}, [sp, #{_Y_NEXT}]")
    asm("add r0, r0, r2", "the plane of this channel")
    asm(f"add {end or 'r2'}, r0, #{rounds * s.unroll * s.stride_w * s.pairs * 4}")
    if not end:
        asm(f"str r2, [sp, #{_END}]")
    if not y:
        asm(f"str r3, [sp, #{_Y}]")
    asm(f"add r3, {y or 'r3'}, #1")
    asm(f"str r3, [sp, #{_Y_NEXT}]")
    asm("2:")
    for column in range(s.unroll):
        _column(asm, s, c, column, s.unroll)
    if not end:
        asm(f"ldr r2, [sp, #{_END}]")
    asm(f"cmp r0, {end or 'r2'}")
    asm("bne 2b")
    for column in range(rest):
        _column(asm, s, c, column, rest)
    asm(f"ldr r2, [sp, #{_STREAM_END}]")
    asm(f"add r1, r1, #{4 * (s.record - 1)}")
    asm("cmp r1, r2")
    asm("bne 1b")
    asm(f"add sp, sp, #{_FRAME}")
    comment = (
        f"/* {s.kernel_h}x{s.kernel_w} depthwise convolution: {s.rows} x {s.block} outputs of the channels\n"
        " * from `stream` to `end`. */"
    )
    arguments = [
        ("const uint32_t *", "planes"),
        ("int8_t *", "y"),
        ("const uint32_t *", "stream"),
        ("const uint32_t *", "end"),
    ]
    return function(f"{s.name}_rows", comment, arguments, asm)


def _residents(s: Shape) -> tuple[str, str]:
    """Return the registers that keep y and the end of the columns, "" where memory does."""
    free = _POOL[len(_POOL) - s.rows - s.resident : len(_POOL) - s.rows]
    return (*free, "", "")[:2]  # type: ignore[return-value]


def _column(asm: Assembly, s: Shape, c: Channels, column: int, unroll: int) -> None:
    """Append column ``column`` of ``unroll`` of a round: all output rows; r0 moves by the stride."""
    n = len(s.words)
    sums, weights, inputs = _POOL[-s.rows :], _POOL[:n], _POOL[n : n + s.loaded]
    started: set[str] = set()
    asm("ldr lr, [r1], #4", "every sum starts from the bias; lr becomes the last sum itself")
    for _ in range(s.kernel_w):
        _load_multiple(asm, "r1", weights)
        for first in range(0, s.pairs, s.loaded):
            pairs = range(first, min(first + s.loaded, s.pairs))
            _load_multiple(asm, "r0", inputs[: len(pairs)])
            for q, x in zip(pairs, inputs):
                for o, acc in enumerate(sums):
                    product = _product(s, 2 * q - o * s.stride_h, x, weights)
                    if product:
                        instruction, operands = product
                        asm(f"{instruction} {acc}, {operands}, {acc if acc in started else 'lr'}")
                        started.add(acc)
    asm(
        f"sub r0, r0, #{4 * s.pairs * (s.kernel_w - s.stride_w)}"
        if s.kernel_w >= s.stride_w
        else f"add r0, r0, #{4 * s.pairs * (s.stride_w - s.kernel_w)}"
    )
    _finish(asm, s, c, column, unroll)
    asm(f"sub r1, r1, #{4 * (s.record - 1)}")


def _product(s: Shape, d: int, x: str, weights: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the multiplication of a pair that starts at row ``d`` of the kernel, None if it is outside."""
    last = s.kernel_h - 1
    if (d, d + 1) in s.words:
        return "smlad", f"{x}, {weights[s.words.index((d, d + 1))]}"
    if d not in (-1, last):
        return None
    row, half = (0, "t") if d == -1 else (last, "b")
    word = next(word for word in s.words if row in word)
    other = "bt"[word.index(row)]
    return f"smla{half}{other}", f"{x}, {weights[s.words.index(word)]}"


def _load_multiple(asm: Assembly, base: str, registers: tuple[str, ...]) -> None:
    """Append the load of some words that moves ``base`` behind them."""
    if len(registers) == 1:
        asm(f"ldr {registers[0]}, [{base}], #4")
    else:
        asm(f"ldm {base}!, {{{', '.join(registers)}}}")


def _finish(asm: Assembly, s: Shape, c: Channels, column: int, unroll: int) -> None:
    """Requantize and store the output rows of a column; the last column of a round moves y."""
    sums = _POOL[-s.rows :]
    m, addend, shift, t, y, step = _POOL[:6]
    y = _residents(s)[0] or y
    row_bytes = s.out_width * s.outputs
    _load_multiple(asm, "r1", (m, addend, shift))
    if not s.resident:
        asm(f"ldr {y}, [sp, #{_Y}]")
        if column + 1 == unroll:
            asm(f"add {t}, {y}, #{unroll * s.outputs}")
            asm(f"str {t}, [sp, #{_Y}]")
    if s.far:
        asm(f"movw {step}, #{row_bytes}")
    form = "acc" if s.rounding == "single" else "twice"
    for row, acc in enumerate(sums):
        requantize.emit(asm, c, acc, t=t, m=m, addend=addend, shift=shift, form=form)
        asm(f"strb {t}, [{y}, #{(0 if s.far else row * row_bytes) + column * s.outputs}]")
        if s.far and row + 1 < s.rows:
            asm(f"add {y}, {y}, {step}")
    if s.resident and column + 1 == unroll:
        asm(f"add {y}, {y}, #{unroll * s.outputs}")
