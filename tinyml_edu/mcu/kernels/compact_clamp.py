"""A clamp narrower than int8, over a whole output: one kernel for all layers that have one."""

from __future__ import annotations

from .assembly import Assembly, function

NAME = "te_clamp_codes"
CODE_BYTES = 4 * 16
LEAST = 4
"""Fewest codes that it takes."""


def call(y: str, size: int, clamp: tuple[int, int]) -> str:
    """Return the C that clamps ``size`` codes from ``y`` on; "" if ``clamp`` is all of int8."""
    low, high = (f"{(v & 0xFF) * 0x01010101:#010x}u" for v in clamp)
    return "" if clamp == (-128, 127) else f"\n{NAME}({y}, {y} + {size - LEAST}, {low}, {high});"


def source() -> str:
    """Return the C function: four codes a round, the last four may be clamped twice."""
    asm = Assembly()
    asm("1:")
    asm("cmp r0, r1")
    asm("it hi")
    asm("movhi r0, r1")
    asm("ldr r4, [r0]")
    asm("ssub8 r5, r4, r2")
    asm("sel r4, r4, r2", "the larger")
    asm("ssub8 r5, r3, r4")
    asm("sel r4, r4, r3", "the smaller")
    asm("str r4, [r0], #4")
    asm("sub r5, r0, #4")
    asm("cmp r5, r1")
    asm("bne 1b")
    comment = "/* Clamp the codes from y to last + 3; `low` and `high` hold their bound four times. */"
    arguments = [
        ("int8_t *", "y"),
        ("int8_t *", "last"),
        ("uint32_t", "low"),
        ("uint32_t", "high"),
    ]
    return function(NAME, comment, arguments, asm)
