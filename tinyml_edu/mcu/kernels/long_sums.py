"""Many inputs a pixel: a 1x1 convolution or FULLY_CONNECTED that keeps no widened inputs, for cores with DSP.

`pointwise` shares its weights among up to four pixels, whose widened inputs are on the stack.  Where there is
one row only, or where K inputs of two pixels would not fit, up to eight channels share the inputs: four
bytes are loaded and widened in registers, and used by eight channels at once.  Nothing limits K::

    r0  stream      r2, r3  inputs, widened     r6..lr  sums: even and odd channel of four pairs
    r1  inputs      r4, r5  weights

32 products cost 27 instructions with wide words (two words for two channels), 35 with packed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import requantize
from .assembly import Assembly, function, macro
from .requantize import Channels
from .weights import pair_stream

GROUPS = (8, 6, 4, 2)
_SUMS = ("r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr")
_STEP = "TE_STEP"
_X, _X_END, _Y, _STREAM_END, _Y_LAST, _FRAME = 0, 4, 8, 12, 16, 20


@dataclass(frozen=True)
class Shape:
    """What the code of a kernel depends on, as `pointwise.Shape`; a tile is one pixel.

    ``unroll`` is in groups of four inputs.
    """

    k: int
    o: int
    packed: bool
    rounding: str
    clamp: tuple[int, int]
    group: int = 8
    inputs: int = 0
    unroll: int = 1

    tile = 1

    @property
    def step(self) -> int:
        """Bytes of x."""
        return self.inputs or self.k

    @property
    def order(self) -> np.ndarray:
        """The output channels, round by round; the last round may repeat some."""
        starts = np.minimum(np.arange(0, self.o, self.group), self.o - self.group)
        return (starts[:, None] + np.arange(self.group)).ravel()

    @property
    def name(self) -> str:
        """The function's name in C."""
        tags = ("" if self.packed else "_wide") + ("" if self.rounding == "double" else "_single")
        if self.clamp != (-128, 127):
            tags += "".join(f"_{v}" if v >= 0 else f"_m{-v}" for v in self.clamp)
        if self.group != max(GROUPS) or self.o % self.group:
            tags += f"_to_{self.o}_by_{self.group}"
        tags += f"_unroll_{self.unroll}" if self.unroll != unrolls(self.step)[0] else ""
        return f"te_long_{self.step}{tags}"

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the function's size."""
        return 4 * ((self.unroll + 1) * 35 + self.group * 15 + 44)


def unrolls(inputs: int) -> list[int]:
    """Return the values that ``Shape.unroll`` may have, the one that is taken unmeasured first."""
    legal = [n for n in (1, 2, 3, 4, 8, 16) if inputs // 4 % n == 0]
    return sorted(legal, key=lambda n: (n > 4, -n))


def shape_of(c: Channels, *, packed: bool, inputs: int = 0) -> Shape | None:
    """Return the kernel for a layer of at least two outputs; ``c`` has a multiple of 4 weights a channel."""
    o, k = c.weights.shape
    a_pair = 8 if packed else 6  # instructions for four inputs
    legal = [group for group in GROUPS if group <= o]
    group = min(legal, key=lambda n: (-(-o // n) * (3 + a_pair * n // 2), n), default=None)
    if k % 4 or group is None:
        return None
    return Shape(k, o, packed, c.rounding, c.clamp, group, inputs, unrolls(inputs or k)[0])


def stream(s: Shape, c: Channels) -> np.ndarray:
    """Return the words of all rounds, uint32 (rounds, words): first addends, weights, factors.

    The words of four pairs as `weights.pair_stream` makes them, input by input instead of pair by pair.
    """
    order = s.order
    pairs = pair_stream(c.take(order), packed=s.packed)
    pairs = pairs.reshape(len(order) // s.group, s.group // 2, -1)
    rounds = len(pairs)
    width = 1 if s.packed else 2
    first, last = pairs[:, :, :2].reshape(rounds, -1), pairs[:, :, -6:].reshape(rounds, -1)
    body = pairs[:, :, 2:-6].reshape(rounds, s.group // 2, -1, width).transpose(0, 2, 1, 3)
    return np.concatenate([first, body.reshape(rounds, -1), last], axis=1)


def source(s: Shape, c: Channels) -> str:
    """Return the C function of a shape; of ``c`` only rounding and clamp are used."""
    asm = Assembly()
    asm(f"sub sp, sp, #{_FRAME}")
    asm(f"movw r4, #{s.step - s.step % 4}")
    asm("add r4, r4, r0")
    asm(f"strd r0, r4, [sp, #{_X}]", "x and its end")
    asm(f"strd r1, r3, [sp, #{_Y}]", "y and the stream's end")
    if s.o % s.group:
        asm(f"movw r4, #{s.o - s.group}")
        asm("add r4, r4, r1")
        asm(f"str r4, [sp, #{_Y_LAST}]")
    asm("mov r0, r2")
    asm("1:")
    asm(f"ldm r0!, {{{', '.join(_SUMS[: s.group])}}}", "biases")
    asm(f"ldr r1, [sp, #{_X}]")
    asm("2:")
    for _ in range(s.unroll):
        asm.macro(f"{_STEP}()")
    asm(f"ldr r4, [sp, #{_X_END}]")
    asm("cmp r1, r4")
    asm("bne 2b")
    if s.step % 4:
        asm(f"sub r1, r1, #{4 - s.step % 4}", "the last four inputs")
        asm.macro(f"{_STEP}()")
    _finish(asm, s, c)
    asm(f"ldr r2, [sp, #{_STREAM_END}]")
    asm(f"add r1, r1, #{s.group}")
    if s.o % s.group:
        asm(f"ldr r3, [sp, #{_Y_LAST}]")
        asm("cmp r1, r3", "the last round may repeat channels")
        asm("it hi")
        asm("movhi r1, r3")
    asm(f"str r1, [sp, #{_Y}]")
    asm("cmp r0, r2")
    asm("bne 1b")
    asm(f"add sp, sp, #{_FRAME}")
    comment = (
        f"/* {s.step} inputs of one pixel (or row), {s.group} outputs a round: x ({s.step}), y, both int8.\n"
        " * `stream` is the layer's, `end` its end. */"
    )
    arguments = [
        ("const int8_t *", "x"),
        ("int8_t *", "y"),
        ("const uint32_t *", "stream"),
        ("const uint32_t *", "end"),
    ]
    return f"{_macro(s)}\n\n{function(s.name, comment, arguments, asm)}\n#undef {_STEP}"


def _macro(s: Shape) -> str:
    """Return the macro of four inputs times their weights of eight channels."""
    lines = ["ldr r3, [r1], #4", "sxtb16 r2, r3", "sxtb16 r3, r3, ror #8"]
    for x in ("r2", "r3"):
        for even, odd in zip(_SUMS[0 : s.group : 2], _SUMS[1 : s.group : 2]):
            if s.packed:
                lines += ["ldr r4, [r0], #4", "sxtb16 r5, r4"]
                lines += [f"smlad {even}, {x}, r5, {even}", f"smlad {odd}, {x}, r4, {odd}"]
            else:
                lines += ["ldrd r4, r5, [r0], #8"]
                lines += [f"smlad {even}, {x}, r4, {even}", f"smlad {odd}, {x}, r5, {odd}"]
    return macro(_STEP, (), lines)


def _finish(asm: Assembly, s: Shape, c: Channels) -> None:
    """Requantize and store eight channels; r1 is y behind it."""
    single = s.rounding == "single"
    asm(f"ldr r1, [sp, #{_Y}]")
    for channel, acc in enumerate(_SUMS[: s.group]):
        odd = channel % 2
        asm("ldm r0!, {r2, r3, r4}", "multiplier, addend, shift")
        if s.packed and not odd:
            asm(f"sub {_SUMS[channel + 1]}, {_SUMS[channel + 1]}, {acc}", "256 times the odd channel's sum")
        if s.packed and odd:
            asm(f"asr {acc}, {acc}, #{8 if single else 7}")
        form = "acc" if single or (s.packed and not odd) else "twice"
        requantize.emit(asm, c, acc, t="r5", m="r2", addend="r3", shift="r4", form=form)
        asm(f"strb r5, [r1, #{channel}]")
