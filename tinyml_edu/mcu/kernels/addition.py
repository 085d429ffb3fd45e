"""ADD of two tensors of one shape, for cores with the DSP extension: four elements at once.

ADD brings both inputs to the scale ``2 * max(s1, s2) / 2**20`` first.  The factor of the input with the
larger scale is therefore exactly 1/2, a shift without rounding: ``a = (xa - zpa) << 19``.  The other one
rounds twice, and so does the sum (see `requantize`)::

    b = (round(((xb - zpb) << 21) * M / 2**32) + sign + half) >> e        LSL, ADD, SMMLAR, ASR
    v = 2 * (a + b)                                                       ADD, ADD
    y = saturate8((round(v * My / 2**32) + sign + addend) >> ey)          ADD, SMMLAR, SSAT, STRB

With one rounding (``requant="fast"``) it is shorter, each product rounded down (SMMLA)::

    b = (((xb - zpb) << 20) * M / 2**32 + half) >> (e - 1)
    y = saturate8(((a + b) * My / 2**32 + addend) >> (ey - 1))

Bounds: ``|x - zp| <= 255`` and factors of at most 1/2 keep ``a``, ``b`` below 2**27 and ``v`` below 2**30.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ...ir import int_params
from ...ir.graph import Graph, Node
from .assembly import Assembly, function

_HALF = (2**30, 0)  # multiplier and exponent of the factor 1/2


@dataclass(frozen=True)
class Shape:
    """The numbers of a layer.  Input a has the factor 1/2; ``swapped`` says that it is the second one.

    A round of the loop computes ``unroll`` times four elements.
    """

    swapped: bool
    a_zp: int
    b_zp: int
    b_multiplier: int
    b_shift: int
    y_multiplier: int
    y_addend: int
    y_shift: int
    clamp: tuple[int, int]
    single: bool = False
    unroll: int = 1

    @property
    def name(self) -> str:
        """The function's name in C; what is not in its name, it reads from the stream."""
        numbers = (self.b_shift, self.y_shift, *self.clamp)
        tag = ("_single" if self.single else "") + (f"_unroll_{self.unroll}" if self.unroll > 1 else "")
        return "te_add_" + "_".join(str(v).replace("-", "m") for v in numbers) + tag

    @property
    def code_bytes(self) -> int:
        """An upper estimate of the function's size."""
        return 4 * (28 + self.unroll * (2 + 4 * 18))


def shape_of(graph: Graph, node: Node, requant: str) -> Shape | None:
    """Return the kernel for a node, or None if the short form is not exact for it."""
    x1, x2, y = (graph[name] for name in (*node.inputs, node.outputs[0]))
    constant = x1.data is not None or x2.data is not None
    if constant or x1.shape != x2.shape or prod(y.shape) < 4:
        return None
    p = int_params.add_params(graph, node)
    first, second = (p.x1_zp, p.m1, p.e1), (p.x2_zp, p.m2, p.e2)
    swapped = first[1:] != _HALF
    a, b = (second, first) if swapped else (first, second)
    single = requant == "fast"
    shift = -p.eo - single
    addend = (1 << max(shift - 1, 0)) + (p.y_zp << max(shift, 0))
    exact = a[1:] == _HALF and 0 <= -b[2] <= 31 and 1 <= shift <= 31 and 2**29 + abs(addend) < 2**31
    if not exact or b[1] < 2**30:
        return None
    return Shape(swapped, a[0], b[0], b[1], -b[2], p.mo, addend, shift, (p.y_min, p.y_max), single)


def unrolls(size: int) -> list[int]:
    """Return the values that ``Shape.unroll`` may have for ``size`` elements, 1 first."""
    return [n for n in (1, 2, 4, 8) if n == 1 or size % (4 * n) == 0]


def stream(s: Shape) -> np.ndarray:
    """Return the six words that `source` reads, uint32."""
    half = (1 << s.b_shift) >> (2 if s.single else 1)
    words = [-s.a_zp, -s.b_zp, s.b_multiplier, half, s.y_multiplier, s.y_addend]
    return (np.array(words, np.int64) & 0xFFFFFFFF).astype(np.uint32)


def source(s: Shape) -> str:
    """Return the C function of a layer."""
    asm = Assembly()
    # r0 a, r1 b, r2 y, r3 and r4: four elements of a and b, r5..r10: the stream, r11, r12: scratch; sp: end
    asm("push {r3}")
    asm("ldm r12, {r5, r6, r7, r8, r9, r10}", "-zp of a and b; multiplier, half; multiplier, addend")
    asm("1:")
    for _ in range(s.unroll):
        asm("ldr r3, [r0], #4")
        asm("ldr r4, [r1], #4")
        for j in range(4):
            _element(asm, s, j)
    asm("ldr r11, [sp]")
    asm("cmp r2, r11")
    asm("bne 1b")
    asm("add sp, sp, #4")
    comment = (
        f"/* Sum of two tensors, {4 * s.unroll} elements a round, up to the end of y.\n"
        " * `a` has the larger scale. */"
    )
    arguments = [
        ("const int8_t *", "a"),
        ("const int8_t *", "b"),
        ("int8_t *", "y"),
        ("const int8_t *", "end"),
        ("const uint32_t *", "stream"),
    ]
    return function(s.name, comment, arguments, asm)


def _element(asm: Assembly, s: Shape, j: int) -> None:
    """Append the sum of byte ``j`` of r3 and r4."""
    rotation = f", ror #{8 * j}" if j else ""
    asm(f"sxtab r11, r6, r4{rotation}")
    if s.single and s.b_shift:
        asm("lsl r11, r11, #20")
        if s.b_shift == 1:
            asm("smmulr r11, r11, r7")
        else:
            asm("smmla r11, r11, r7, r8")
            asm(f"asr r11, r11, #{s.b_shift - 1}")
    elif s.b_shift:
        asm("lsl r11, r11, #21")
        asm("add r12, r8, r11, asr #31")
        asm("smmlar r11, r11, r7, r12")
        asm(f"asr r11, r11, #{s.b_shift}")
    else:
        asm("lsl r11, r11, #19", "the factor 1/2")
    asm(f"sxtab r12, r5, r3{rotation}")
    asm("add r11, r11, r12, lsl #19")
    if s.single:
        asm("smmla r11, r11, r9, r10")
    else:
        asm("add r11, r11, r11")
        asm("add r12, r10, r11, asr #31")
        asm("smmlar r11, r11, r9, r12")
    low, high = s.clamp
    asm(f"ssat r11, #8, r11, asr #{s.y_shift}")
    for bound, condition, default in ((low, "lt", -128), (high, "gt", 127)):
        if bound != default:
            asm(f"cmp r11, #{bound}")
            asm(f"it {condition}")
            asm(f"mov{condition} r11, #{bound}")
    asm("strb r11, [r2], #1")
