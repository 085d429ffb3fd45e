"""ADD of two tensors of one shape, its shifts read at run time: one kernel that all such layers share.

The arithmetic, its conditions and its bounds are those of `addition`, one element a round.
"""

from __future__ import annotations

import numpy as np

from . import addition
from .assembly import Assembly, function

NAME = "te_add_any"
CODE_BYTES = 4 * 24


def stream(s: addition.Shape) -> np.ndarray:
    """Return the eight words that `source` reads, uint32.

    A shift by 0 must not round, and `source` always does.  It only occurs with the factor 1/2, whose twin is
    (2**31 - 1) / 2**31 and a shift by 1: as ``|x - zp| <= 255``, the product is off by less than 1/2 before
    it is rounded, and even.
    """
    words = addition.stream(s)
    shift = s.b_shift
    if shift == 0:
        assert s.b_multiplier == 2**30, "addition.shape_of takes no factor above 1/2"
        words[2:4] = 2**31 - 1, 1
        shift = 1
    return np.append(words, np.array([shift, s.y_shift], np.uint32))


def source() -> str:
    """Return the C function."""
    asm = Assembly()
    asm("mov lr, r3")
    asm("ldm r12, {r3, r4, r5, r6, r7, r8, r9, r10}", "as in `words`: -zp, factors, addends, shifts")
    asm("1:")
    asm("ldrsb r11, [r1], #1")
    asm("add r11, r11, r4")
    asm("lsl r11, r11, #21")
    asm("add r12, r6, r11, asr #31")
    asm("smmlar r11, r11, r5, r12")
    asm("asr r11, r11, r9")
    asm("ldrsb r12, [r0], #1")
    asm("add r12, r12, r3")
    asm("add r11, r11, r12, lsl #19")
    asm("lsl r11, r11, #1")
    asm("add r12, r8, r11, asr #31")
    asm("smmlar r11, r11, r7, r12")
    asm("asr r11, r11, r10")
    asm("ssat r11, #8, r11")
    asm("strb r11, [r2], #1")
    asm("cmp r2, lr")
    asm("bne 1b")
    comment = (
        "/* Sum of two tensors, up to the end of y.  `a` has the larger scale.  `words`: -zp of a and b,\n"
        " * multiplier and half of b, multiplier and addend of y, shifts of b and y. */"
    )
    arguments = [
        ("const int8_t *", "a"),
        ("const int8_t *", "b"),
        ("int8_t *", "y"),
        ("const int8_t *", "end"),
        ("const uint32_t *", "words"),
    ]
    return function(NAME, comment, arguments, asm)
