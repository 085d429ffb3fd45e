"""Products of pixels and channels for layers of any size: two kernels that all dense layers share.

What depends on the layer (inputs, outputs, how many channels) is read at run time from a ``te_dense``.  Two
channels share a word, as in `weights`, and a round takes several such pairs::

    two pixels   2 pairs = 4 channels: 8 sums, inputs widened once to pairs of int16, pixel beside pixel
    one pixel    4 pairs = 8 channels: 8 sums, inputs widened as they are read, so K has no limit

Sixteen products of two pixels cost 8 SMLAD, 2 LDRD and 2 SXTB16; of one pixel, 1.5 instructions more.

A channel is the upper one of a pair only if ``|B| < 2**23`` (see `weights`), for each input there is.  One
that might leave that range becomes the lower one; where no upper one is left to share its words, it has them
alone.  So each layer has one form, and the bound costs time only where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import compact_factors
from .assembly import Assembly, function, macro
from .compact_factors import Registers
from .requantize import VARIES, Channels
from .weights import lane_order, lanes

NOBODY = -1
_STEP = "TE_STEP"
_Y, _END = 8, 12  # in the frame of both kernels
_FACTORS = Registers(multiplier="r2", place="r3", zero="r4", addend="r4", t="r5")

TYPES = """\
/* What a dense kernel reads of its layer.  A pixel has `inputs` inputs, a multiple of 4, side by side, and
 * `outputs` outputs; `zero` is 2 * zp + 1 of y. */
typedef struct te_dense te_dense;
typedef void te_dense_kernel(const int8_t *x, int8_t *y, const te_dense *d, uint32_t *wide);
struct te_dense {
    int32_t inputs, wide_bytes, outputs, zero;
    const uint32_t *stream, *end;
    te_dense_kernel *kernel; /* for `tile` pixels */
    int32_t tile, pixels;
};"""


@dataclass(frozen=True)
class Kernel:
    """One of the shared functions: for ``tile`` pixels, 1 or 2, with the rounding of `Channels`."""

    tile: int
    rounding: str

    @property
    def name(self) -> str:
        """The function's name in C."""
        return f"te_dense_by_{self.tile}" + ("" if self.rounding == "double" else "_single")

    @property
    def pairs(self) -> int:
        """Pairs of channels of a round."""
        return 4 // self.tile

    @property
    def unroll(self) -> int:
        """Inputs of a round of the inner loop; a layer's are padded to a multiple."""
        return 8 if self.tile == 2 else 4

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the function's size."""
        return 4 * (28 + 12 * self.unroll // 2 * (3 - self.tile) + 60 + 8 * 14)

    def padded(self, k: int) -> int:
        """Return how many inputs the inner loop reads where a pixel has ``k``."""
        return -(-k // self.unroll) * self.unroll


def may_share(c: Channels) -> np.ndarray:
    """Return, bool (O,), which channels may be the upper one of a pair, for every input.

    Bias included: it is part of the stream's first word.  A lane ``a + 256 * b`` stays inside int16 for each
    ``a`` if no ``b`` is -128.
    """
    inside = (c.low >= -(2**23)) & (c.high < 2**23)
    return inside & np.all(c.weights > -128, axis=1)


def pair_up(c: Channels) -> np.ndarray:
    """Return (n, 2) channels, lower and upper, of every pair; the upper one may be `NOBODY`."""
    live = np.flatnonzero(c.codes == VARIES)
    shares = may_share(c)[live]
    count = max(-(-len(live) // 2), int(np.count_nonzero(~shares)))
    order = np.concatenate([live[~shares], live[shares]])
    upper = np.full(count, NOBODY)
    upper[: len(live) - count] = order[count:]
    return np.stack([order[:count], upper], axis=1).reshape(-1, 2)


def stream(kernel: Kernel, c: Channels) -> np.ndarray:
    """Return the words of all rounds, uint32 (n,): first addends, weights, factors.

    ``c`` has a multiple of 4 inputs.  The pairs of the last round are filled up with its last one.
    """
    pairs = pair_up(c)
    rounds = -(-len(pairs) // kernel.pairs)
    if not rounds:
        return np.array([], np.uint32)
    pairs = np.pad(pairs, ((0, rounds * kernel.pairs - len(pairs)), (0, 0)), mode="edge")
    lower, upper = pairs.T
    alone = upper == NOBODY
    k = c.weights.shape[1]
    taken = np.pad(c.weights, ((0, 0), (0, kernel.padded(k) - k)))[:, lane_order(kernel.padded(k))]
    # The upper channel is stored first.  `NOBODY` is the last channel, in the place of the lower one: what it
    # computes, the lower one writes over.
    body = lanes(taken[lower] + 256 * taken[upper])
    first = np.stack([c.bias[lower], c.bias[lower] + 256 * c.bias[upper]], axis=1)
    form = "acc" if kernel.rounding == "single" else "twice"
    factors = [
        compact_factors.words(c.take(upper), form, np.where(alone, lower, upper)),
        compact_factors.words(c.take(lower), "acc", lower),
    ]
    parts = [
        first.reshape(rounds, -1),
        body.reshape(rounds, kernel.pairs, -1).transpose(0, 2, 1).reshape(rounds, -1),
        np.concatenate(factors, axis=1).reshape(rounds, -1),
    ]
    return (np.concatenate(parts, axis=1) & 0xFFFFFFFF).astype(np.uint32).ravel()


def source(kernel: Kernel) -> str:
    """Return the C function of a kernel."""
    asm = Assembly()
    (_two_pixels if kernel.tile == 2 else _one_pixel)(asm, kernel)
    what = "Two pixels (or rows), four channels" if kernel.tile == 2 else "A pixel (or row), eight channels"
    comment = (
        f"/* {what} a round: x ({kernel.tile}, inputs),\n"
        f" * y ({kernel.tile}, outputs), both int8; `wide` is scratch. */"
    )
    arguments = [
        ("const int8_t *", "x"),
        ("int8_t *", "y"),
        ("const te_dense *", "d"),
        ("uint32_t *", "wide"),
    ]
    return f"{_macro(kernel)}\n\n{function(kernel.name, comment, arguments, asm)}\n#undef {_STEP}"


def _multiply(x: tuple[str, ...], lower: tuple[str, ...], both: tuple[str, ...]) -> list[str]:
    """Return the products of two words of weights, r2 or r3 or r4, r5, with every pixel in ``x``."""
    words = ("r2", "r3") if len(x) == 2 else ("r4", "r5")
    result = [f"ldrd {words[0]}, {words[1]}, [r0], #8"]
    for sums in (both, lower):
        for i, word in enumerate(words):
            if sums is lower and i == 0:
                result += [f"sxtb16 {w}, {w}" for w in words]
            for p, pixel in enumerate(x):
                acc = sums[len(x) * i + p]
                result.append(f"smlad {acc}, {pixel}, {word}, {acc}")
    return result


_LOWER, _BOTH = ("r6", "r7", "r10", "r11"), ("r8", "r9", "r12", "lr")  # (pair, pixel)
_LOWER_OF_ONE, _BOTH_OF_ONE = ("r6", "r8", "r10", "r12"), ("r7", "r9", "r11", "lr")


def _macro(kernel: Kernel) -> str:
    """Return the macro of two inputs of two pixels, or of four inputs of one."""
    if kernel.tile == 2:
        return macro(_STEP, (), ["ldrd r4, r5, [r1], #8", *_multiply(("r4", "r5"), _LOWER, _BOTH)])
    lines = ["ldr r3, [r1], #4", "sxtb16 r2, r3", "sxtb16 r3, r3, ror #8"]
    for x in ("r2", "r3"):
        for i in (0, 2):
            lines += _multiply((x,), _LOWER_OF_ONE[i : i + 2], _BOTH_OF_ONE[i : i + 2])
    return macro(_STEP, (), lines)


def _two_pixels(asm: Assembly, kernel: Kernel) -> None:
    """Append the kernel; its frame: widened inputs, their end, y, the stream's end, outputs, 2 * zp + 1."""
    asm("sub sp, sp, #24")
    asm("ldm r2, {r4, r5, r6, r7, r8, r9}", "inputs, wide_bytes, outputs, zero, stream, end")
    asm("add r5, r5, r3")
    asm("strd r3, r5, [sp]")
    asm(f"strd r1, r9, [sp, #{_Y}]")
    asm("strd r6, r7, [sp, #16]")
    asm("mov r12, r3")
    asm("add r3, r0, r4", "the second pixel")
    asm("mov r1, r3")
    asm.note("Widen: words of both pixels for inputs (4j, 4j+2), then for (4j+1, 4j+3).")
    asm("1:")
    asm("ldr r10, [r0], #4")
    asm("ldr r11, [r1], #4")
    for wide, rotation in ((("r4", "r5"), ""), (("r6", "r7"), ", ror #8")):
        for to, raw in zip(wide, ("r10", "r11")):
            asm(f"sxtb16 {to}, {raw}{rotation}")
    asm("stm r12!, {r4, r5, r6, r7}")
    asm("cmp r0, r3")
    asm("bne 1b")
    asm("mov r0, r8")
    asm("2:")
    asm("ldr r1, [sp]")
    asm("ldm r0!, {r6, r8, r10, r12}", "biases")
    for second, first in (("r7", "r6"), ("r9", "r8"), ("r11", "r10"), ("lr", "r12")):
        asm(f"mov {second}, {first}")
    _inner_loop(asm, kernel, end=4)
    for i in (0, 2):
        _finish(asm, kernel, _LOWER[i : i + 2], _BOTH[i : i + 2], zero=20)
    _next_round(asm, 24)


def _one_pixel(asm: Assembly, kernel: Kernel) -> None:
    """Append the kernel; its frame: x, its end, y, the stream's end, 2 * zp + 1."""
    asm("sub sp, sp, #20")
    asm("ldm r2, {r4, r5, r6, r7, r8, r9}", "inputs, wide_bytes, outputs, zero, stream, end")
    asm("add r5, r0, r4")
    asm("strd r0, r5, [sp]")
    asm(f"strd r1, r9, [sp, #{_Y}]")
    asm("str r7, [sp, #16]")
    asm("mov r0, r8")
    asm("2:")
    asm("ldr r1, [sp]")
    asm("ldm r0!, {r6, r7, r8, r9, r10, r11, r12, lr}", "biases")
    _inner_loop(asm, kernel, end=4)
    for lower, both in zip(_LOWER_OF_ONE, _BOTH_OF_ONE):
        _finish(asm, kernel, (lower,), (both,), zero=16)
    _next_round(asm, 20)


def _inner_loop(asm: Assembly, kernel: Kernel, *, end: int) -> None:
    asm("3:")
    for _ in range(kernel.unroll // (2 * (3 - kernel.tile))):
        asm.macro(f"{_STEP}()")
    asm(f"ldr r4, [sp, #{end}]")
    asm("cmp r1, r4")
    asm("bne 3b")


def _next_round(asm: Assembly, frame: int) -> None:
    asm(f"ldr r1, [sp, #{_END}]")
    asm("cmp r0, r1")
    asm("bne 2b")
    asm(f"add sp, sp, #{frame}")


def _finish(
    asm: Assembly, kernel: Kernel, lower: tuple[str, ...], both: tuple[str, ...], *, zero: int
) -> None:
    """Requantize and store a pair of channels, the upper one first, of one pixel or two."""
    single = kernel.rounding == "single"
    for low, high in zip(lower, both):
        asm(f"sub {high}, {high}, {low}", "256 times the upper channel's sum")
        asm(f"asr {high}, {high}, #{8 if single else 7}")
    for sums, form in ((both, "acc" if single else "twice"), (lower, "acc")):
        asm("ldrd r2, r3, [r0], #8", "multiplier; shift and place")
        asm(f"ldr r1, [sp, #{_Y}]")
        asm("add r1, r1, r3, lsr #8")
        asm(f"ldr r4, [sp, #{zero}]")
        compact_factors.emit_addend(asm, _FACTORS)
        for acc in sums:
            compact_factors.emit(asm, kernel.rounding, acc, _FACTORS, form=form)
            if acc is sums[0]:
                asm("strb r5, [r1]")
            else:
                asm("ldr r2, [sp, #16]", "outputs of a pixel")
                asm("strb r5, [r1, r2]")
