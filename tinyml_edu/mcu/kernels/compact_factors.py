"""Factors of a channel in two words, and the instructions that use them, for kernels that many layers share.

`requantize` keeps multiplier, addend and shift of each channel in three words.  Here ``addend`` is computed:
it is ``(2 * zp + 1) << (shift - 1)``, and ``2 * zp + 1`` belongs to the whole layer.  The other word holds
``shift - 1`` in its lowest byte, which is all that a shift by register looks at, and the channel's place
above it, which an ADD with a shifted operand adds to y.  Every sum and bound is the one of `requantize`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .assembly import Assembly
from .requantize import VARIES, Channels, stored_multiplier


@dataclass(frozen=True)
class Registers:
    """Those of `emit`: ``factors`` and ``place`` hold the two words, ``zero`` is ``2 * zp + 1``.

    ``addend`` and ``t`` are scratch; ``t`` is the code in the end.
    """

    multiplier: str
    place: str
    zero: str
    addend: str
    t: str


def is_short(c: Channels, y_zp: int) -> bool:
    """Whether `emit` is exact for the channels of ``c`` that vary: see `Channels.fits`."""
    varies = c.codes == VARIES
    derived = (2 * y_zp + 1) * np.left_shift(1, np.clip(c.shift - 1, 0, 31))
    return c.fits and bool(np.all((c.addend == derived) | ~varies))


def with_constants(c: Channels, y_zp: int) -> Channels:
    """Return ``c`` with biases that make `emit` yield the code of each channel that has one.

    The weights of such a channel are 0.  With multiplier 2**30 and shift 1 a sum counts a fourth (rounded
    twice) or an eighth (once).
    """
    constant = c.codes != VARIES
    unit = 4 if c.rounding == "double" else 8
    bias = np.where(constant, unit * (c.codes - y_zp), c.bias)
    return replace(c, bias=bias)


def words(c: Channels, form: str, places: np.ndarray) -> np.ndarray:
    """Return (n, 2) words: what `emit` multiplies by, and shift and place of each channel."""
    return np.stack([stored_multiplier(c, form), (c.shift - 1) | (places << 8)], axis=1)


def emit_addend(asm: Assembly, r: Registers) -> None:
    """Append the instruction that computes a channel's addend; it may replace ``zero``."""
    asm(f"lsl {r.addend}, {r.zero}, {r.place}", "the addend")


def emit(asm: Assembly, rounding: str, acc: str, r: Registers, *, form: str) -> None:
    """Append instructions that turn the accumulator in register ``acc`` into a code, as `requantize.emit`."""
    if rounding == "single":
        asm(f"smmla {r.t}, {acc}, {r.multiplier}, {r.addend}")
    else:
        asm(f"add {r.t}, {r.addend}, {acc}, asr #31")
        if form == "acc":
            asm(f"add {r.t}, {r.t}, {acc}")
        asm(f"smmlar {r.t}, {acc}, {r.multiplier}, {r.t}")
    asm(f"asr {r.t}, {r.t}, {r.place}")
    asm(f"ssat {r.t}, #8, {r.t}, asr #1")
