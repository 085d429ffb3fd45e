"""CONV_2D with a 1x1 kernel and stride 1, and FULLY_CONNECTED, for cores with the DSP extension.

A tile is T adjacent pixels, T <= 4.  Their inputs are widened once, to pairs of int16 on the stack, pixel
beside pixel.  Then, two output channels at a time, one loop over the inputs with everything in registers::

    r0        stream: biases, weights, factors (see `weights`)
    r1, r2    two words of weights                        r3  the even channel's weights, unpacked
    r4, r5    two inputs of two pixels
    r6..r9    sums of the even channel, pixel by pixel     r10..lr  sums of both, or of the odd one

16 products cost 8 SMLAD, 1 SXTB16, 2 LDRD and half an LDRD of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import requantize
from .assembly import SAVED_BYTES, Assembly, function, macro
from .requantize import Channels

TILES = (4, 3, 2, 1)
MAX_SCRATCH_BYTES = 1728
"""Inputs of a tile on the stack: with saved registers and callers they stay below `planning.STACK_BYTES`."""

LDRD_REACH = 1020
LDR_REACH = 4095
_EVEN = ("r6", "r7", "r8", "r9")
_ODD = ("r10", "r11", "r12", "lr")


@dataclass(frozen=True)
class Shape:
    """What the code of a kernel depends on: layers of one shape share it.

    ``k`` inputs, ``o`` outputs a pixel, ``tile`` pixels at once; ``packed`` weights, ``rounding`` and
    ``clamp`` as in `requantize.Channels`; ``unroll`` words of a channel's weights (two inputs each) a round
    of the inner loop, 0 for all of them and no loop.  Where a pixel has ``inputs`` that are no multiple of 4,
    ``k`` is the next one, and the last four inputs overlap those before (see `weights.overlapped`).
    """

    k: int
    o: int
    tile: int
    packed: bool
    rounding: str
    clamp: tuple[int, int]
    inputs: int = 0
    unroll: int = 0

    @property
    def step(self) -> int:
        """Bytes from pixel to pixel of x."""
        return self.inputs or self.k

    @property
    def name(self) -> str:
        """The function's name in C."""
        tags = ("" if self.packed else "_wide") + ("" if self.rounding == "double" else "_single")
        tags += f"_unroll_{self.unroll}" if self.unroll else ""
        if self.clamp != (-128, 127):
            tags += "".join(f"_{v}" if v >= 0 else f"_m{-v}" for v in self.clamp)
        return f"te_pointwise_{self.step}_to_{self.o}_by_{self.tile}{tags}"

    @property
    def scratch_bytes(self) -> int:
        """Stack of the widened tile."""
        return 2 * self.k * self.tile

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the function's size: nearly all its instructions take four bytes."""
        inner = (self.unroll or self.k // 2) * (2 * self.tile + self.tile + 2)
        inner += 2 * self.tile + 6 if self.unroll else 0
        return 4 * (inner + self.tile * 24 + 44)


def unrolls(k: int, tile: int, *, packed: bool) -> list[int]:
    """Return the values that ``Shape.unroll`` may have, 0 first.

    A loop needs a register that walks over the inputs: with packed weights, four pixels leave none.
    """
    if packed and tile == TILES[0]:
        return [0]
    return [0] + [n for n in (16, 8, 4, 2) if k // 2 % n == 0 and n < k // 2]


def tiles(pixels: int, k: int, bytes_an_input: int = 2) -> list[int]:
    """Return the tiles of ``pixels`` pixels whose inputs fit the stack, the largest first."""
    return [t for t in TILES if t <= pixels and bytes_an_input * k * t <= MAX_SCRATCH_BYTES]


def best_tile(pixels: int, k: int, bytes_an_input: int = 2) -> int | None:
    """Return the tile that costs fewest instructions for ``pixels`` pixels of ``k`` inputs, if any fits.

    The last tile of an image overlaps the one before it, so tiles cost what ``ceil(pixels / tile)`` full
    ones do: 4 * T products, 2 * T SMLAD, and 1.5 + T / 2 instructions around them.
    """
    legal = tiles(pixels, k, bytes_an_input)
    return min(legal, key=lambda t: -(-pixels // t) * (2 * t + 1.5 + -(-t // 2)), default=None)


def shape_of(
    c: Channels, pixels: int, *, packed: bool, bytes_an_input: int = 2, inputs: int = 0
) -> Shape | None:
    """Return the kernel for a layer, or None; ``c`` has a multiple of 4 weights a channel."""
    o, k = c.weights.shape
    tile = best_tile(pixels, k, bytes_an_input)
    if tile is None or not is_legal(k, o, tile):
        return None
    return Shape(k, o, tile, packed, c.rounding, c.clamp, inputs)


def is_legal(k: int, o: int, tile: int) -> bool:
    """Whether words of inputs are whole and every pixel's inputs and outputs are in reach."""
    return k % 4 == 0 and (tile - 1) * max(k, o) + o <= LDR_REACH


def source(s: Shape, c: Channels) -> str:
    """Return the C function of a shape; of ``c`` only rounding and clamp are used."""
    asm = Assembly()
    slots = s.scratch_bytes  # above the widened inputs: y, then the end of the stream
    asm(f"sub sp, sp, #{s.scratch_bytes + 8}")
    asm(f"str r1, [sp, #{slots}]")
    asm(f"str r3, [sp, #{slots + 4}]")
    _widen(asm, s)
    asm("mov r0, r2")
    asm.note("Two output channels a round.")
    asm("2:")
    _products(asm, s)
    _finish(asm, s, c, slots)
    asm(f"add sp, sp, #{s.scratch_bytes + 8}")
    comment = (
        f"/* {s.step} inputs to {s.o} outputs, for {s.tile} adjacent pixels (or rows):\n"
        f" * x ({s.tile}, {s.step}), y ({s.tile}, {s.o}), both int8.\n"
        " * `stream` is the layer's, `end` its end.\n"
        f" * Stack: {s.scratch_bytes + 8 + SAVED_BYTES} bytes. */"
    )
    arguments = [
        ("const int8_t *", "x"),
        ("int8_t *", "y"),
        ("const uint32_t *", "stream"),
        ("const uint32_t *", "end"),
    ]
    return f"{_macro(s)}\n\n{function(s.name, comment, arguments, asm)}\n#undef {_STEP}"


def _widen(asm: Assembly, s: Shape) -> None:
    """Widen x to int16: words of pixels 0..T-1 for inputs (4j, 4j+2), then for (4j+1, 4j+3)."""
    rest = s.step % 4
    asm.note(f"Widen {s.tile} x {s.step} inputs to int16.")
    asm("mov r1, sp")
    asm(f"add r3, sp, #{2 * s.tile * (s.step - rest)}")
    asm("1:")
    _widen_word(asm, s)
    asm("cmp r1, r3")
    asm("bne 1b")
    if rest:
        asm(f"sub r0, r0, #{4 - rest}", "the last four inputs")
        _widen_word(asm, s)


def _widen_word(asm: Assembly, s: Shape) -> None:
    loaded, wide = [f"r{4 + p}" for p in range(s.tile)], [f"r{8 + p}" for p in range(s.tile)]
    for p in reversed(range(s.tile)):
        asm(f"ldr {loaded[p]}, [r0, #{p * s.step}]" if p else f"ldr {loaded[p]}, [r0], #4")
    for rotation in ("", ", ror #8"):
        for p in range(s.tile):
            asm(f"sxtb16 {wide[p]}, {loaded[p]}{rotation}")
        asm(f"stm r1!, {{{', '.join(wide)}}}" if s.tile > 1 else f"str {wide[0]}, [r1], #4")


_STEP = "TE_STEP"


def _macro(s: Shape) -> str:
    """Return the macro of one word of weights: its loads of inputs come as an argument."""
    w, parameters = "<w>", ["w"]
    lines = [] if not s.packed else [f"sxtb16 r3, {w}"]
    for p in range(0, s.tile, 2):
        parameters.append(f"x{p}")
        lines.append(f"<x{p}>")
        for q in range(p, min(p + 2, s.tile)):
            lines += _multiply(s, q, w if s.packed else "r1")
    if not s.packed:
        parameters = parameters[1:]
    return macro(_STEP, parameters, lines)


def _multiply(s: Shape, pixel: int, w: str, addend: tuple[str, str] | None = None) -> list[str]:
    """Return the two SMLADs of a pixel: even channel, then both channels (packed) or the odd one."""
    x = ("r4", "r5")[pixel % 2]
    even, odd = addend or (_EVEN[pixel], _ODD[pixel])
    operands = ("r3", w) if s.packed else ("r1", "r2")
    return [
        f"smlad {_EVEN[pixel]}, {x}, {operands[0]}, {even}",
        f"smlad {_ODD[pixel]}, {x}, {operands[1]}, {odd}",
    ]


def _loads(s: Shape, word: int) -> list[str]:
    """Return, for each two pixels, the text that loads their inputs of word ``word``."""
    result = []
    for p in range(0, s.tile, 2):
        at = 4 * (word * s.tile + p)
        if p + 1 == s.tile:
            result.append(f"ldr r4, [sp, #{at}]")
        elif at <= LDRD_REACH:
            result.append(f"ldrd r4, r5, [sp, #{at}]")
        else:
            result.append(f"ldr r4, [sp, #{at}]\\n\\tldr r5, [sp, #{at + 4}]")
    return result


def _rolled_products(asm: Assembly, s: Shape) -> None:
    """Sum the products of two channels in a loop of ``s.unroll`` words a round."""
    at = "lr" if s.packed else "r3"
    asm(f"ldrd {_EVEN[0]}, {_ODD[0]}, [r0], #8", "biases")
    for p in range(1, s.tile):
        asm(f"mov {_EVEN[p]}, {_EVEN[0]}")
        asm(f"mov {_ODD[p]}, {_ODD[0]}")
    asm(f"mov {at}, sp")
    asm("3:")
    loads = [
        f"ldr r4, [{at}], #4" if p + 1 == s.tile else f"ldrd r4, r5, [{at}], #8" for p in range(0, s.tile, 2)
    ]
    for word in range(s.unroll):
        if not s.packed or word % 2 == 0:
            asm("ldrd r1, r2, [r0], #8")
        w = [f'"{("r1", "r2")[word % 2]}"'] if s.packed else []
        asm.macro(f"{_STEP}({', '.join(w + [_quote(x) for x in loads])})")
    asm(f"add r4, sp, #{s.scratch_bytes}")
    asm(f"cmp {at}, r4")
    asm("bne 3b")


def _products(asm: Assembly, s: Shape) -> None:
    """Sum the products of two channels, fully unrolled over the inputs."""
    if s.unroll:
        _rolled_products(asm, s)
        return
    last = s.tile - 1
    first = (_EVEN[last], _ODD[last])
    asm(f"ldrd {first[0]}, {first[1]}, [r0], #8", "biases, until the last pixel's sums need the registers")
    for word in range(s.k // 2):
        if not s.packed or word % 2 == 0:
            asm("ldrd r1, r2, [r0], #8")
        w = ("r1", "r2")[word % 2]
        loads = _loads(s, word)
        if word:
            arguments = [f'"{w}"'] if s.packed else []
            asm.macro(f"{_STEP}({', '.join(arguments + [_quote(x) for x in loads])})")
            continue
        if s.packed:
            asm(f"sxtb16 r3, {w}")
        for p in range(s.tile):
            if p % 2 == 0:
                asm(loads[p // 2])
            for line in _multiply(s, p, w, first):
                asm(line)


def _quote(text: str) -> str:
    return f'"{text}"'


def _finish(asm: Assembly, s: Shape, c: Channels, slots: int) -> None:
    """Requantize and store both channels of the tile, where the stream says; then go to the next two."""
    twice = "acc" if s.rounding == "single" else "twice"
    if s.packed:
        for even, odd in _pairs(s.tile):
            asm(f"sub {odd}, {odd}, {even}", "256 times the odd channel's sum")
    for parity, registers in enumerate((_EVEN, _ODD)):
        asm("ldm r0!, {r1, r2, r3, r5}", "multiplier, addend, shift, channel")
        asm(f"ldr r4, [sp, #{slots}]")
        asm("add r5, r5, r4")
        for p, acc in enumerate(registers[: s.tile]):
            if s.packed and parity:
                asm(f"asr {acc}, {acc}, #{8 if s.rounding == 'single' else 7}")
            form = "acc" if s.packed and not parity else twice
            requantize.emit(asm, c, acc, t="r4", m="r1", addend="r2", shift="r3", form=form)
            asm(f"strb r4, [r5, #{p * s.o}]")
    asm(f"ldr r1, [sp, #{slots + 4}]")
    asm("cmp r0, r1")
    asm("bne 2b")


def _pairs(tile: int) -> Sequence[tuple[str, str]]:
    return list(zip(_EVEN[:tile], _ODD[:tile]))
