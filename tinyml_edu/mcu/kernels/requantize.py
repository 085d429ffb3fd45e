"""What a fast kernel adds, multiplies and shifts by, for each output channel, and the bounds behind it.

The plain kernels round twice (``ir.fixed_point.requant_double``).  With ``v = 2 * acc``, right shift ``e``
and ``addend = 2**(e - 1) + (zp << e)``, both roundings, the zero point and the clamp are four instructions::

    t = addend + (v >> 31)           ADD with a shifted operand: half away from zero
    t = t + round(v * M / 2**32)     SMMLAR: the doubling high multiply, half up
    y = saturate8(t >> e)            ASR, SSAT

``acc < 0`` stands for ``high < 0`` there: they disagree only where ``high`` rounds to 0, and then both
give ``zp``.  It is exact if ``e >= 1`` and neither ``v`` nor ``t`` leaves int32.  One rounding
(FULLY_CONNECTED, and ``requant="fast"``) is ``t = addend + floor(acc * M / 2**32)``,
``y = saturate8(t >> (e - 1))``: it needs ``e >= 2``.

Every bound is checked here, for each channel, against the smallest and largest accumulator that its own
weights, bias and the 256 input codes allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...ir import int_params
from ...ir.fixed_point import requant_double, requant_single
from ...ir.graph import Graph, Node
from .assembly import Assembly

INT32 = 2**31
VARIES = -129
"""No code: what `Channels.codes` holds for a channel whose output depends on its input."""


@dataclass(frozen=True, eq=False)
class Channels:
    """The numbers of one convolution, output channel by output channel.

    Attributes
    ----------
    weights : ndarray of int64, shape (O, K)
    bias : ndarray of int64, shape (O,)
        With the input's zero point folded in: ``acc = bias + sum x * w`` over raw codes ``x``.
    low, high : ndarray of int64, shape (O,)
        The range of ``acc``, exact: some input code of each weight attains it.
    product_low, product_high : ndarray of int64, shape (O,)
        The range of ``sum x * w`` alone.
    multiplier, addend, shift : ndarray of int64, shape (O,)
        ``M``, the addend and the right shift of the module's formulas.
    codes : ndarray of int64, shape (O,)
        The only output of a channel that has one, `VARIES` for all others.
    clamp : (int, int)
        What `emit` still has to apply: (-128, 127) if SSAT alone does it.
    rounding : {"double", "single"}
    """

    weights: np.ndarray
    bias: np.ndarray
    low: np.ndarray
    high: np.ndarray
    product_low: np.ndarray
    product_high: np.ndarray
    multiplier: np.ndarray
    addend: np.ndarray
    shift: np.ndarray
    codes: np.ndarray
    clamp: tuple[int, int]
    rounding: str

    def take(self, rows: np.ndarray) -> Channels:
        """Return the channels ``rows``, in that order."""
        per_channel = {k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **per_channel)

    @property
    def of_twice(self) -> Channels:
        """The numbers for registers that hold ``2 * acc`` although the rounding is single.

        ``2 * acc * M / 2**32`` is twice the product: shifting by one bit more, with twice the addend, rounds
        at the same place.  With double rounding nothing changes: it starts from ``2 * acc`` anyway.
        """
        if self.rounding == "double":
            return self
        return replace(self, addend=2 * self.addend, shift=self.shift + 1)

    @property
    def fits(self) -> bool:
        """Whether the short requantization is exact in every channel, for every input."""
        reach = np.maximum(np.abs(self.low), np.abs(self.high))
        return bool(
            np.all(self.shift >= 1)
            and np.all(self.shift <= 31)
            and np.all(reach + np.abs(self.addend) + 2 < INT32)
        )

    @property
    def doubles(self) -> bool:
        """Whether ``2 * acc`` stays inside int32 in every channel, for every input."""
        return bool(np.all(2 * self.low >= -INT32) and np.all(2 * self.high < INT32))


def channels(graph: Graph, node: Node, requant: str) -> Channels:
    """Return the numbers of a CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED node.

    A channel whose output is one code for every input (its weights are noise beside its bias: MLPerf Tiny's
    VWW has hundreds) is given weights and bias 0 and an addend that yields that code.
    """
    p = int_params.conv_params(graph, node)
    data = graph[node.inputs[1]].data
    assert data is not None
    axis = data.ndim - 1 if node.op == "DEPTHWISE_CONV_2D" else 0
    weights = np.moveaxis(data, axis, 0).reshape(data.shape[axis], -1).astype(np.int64)
    bias = np.zeros(len(weights), np.int64)
    if len(node.inputs) > 2:
        stored = graph[node.inputs[2]].data
        assert stored is not None
        bias += stored.ravel()
    bias -= p.x_zp * weights.sum(axis=1)
    multiplier, e = p.multiplier.astype(np.int64), -p.exponent.astype(np.int64)
    rounding = "single" if requant == "fast" or node.op == "FULLY_CONNECTED" else "double"
    reference = requant_single if rounding == "single" else requant_double
    low, high = _range(weights)
    ends = [
        np.clip(reference(bias + end, p.multiplier, p.exponent) + p.y_zp, p.y_min, p.y_max)
        for end in (low, high)
    ]
    # Requantization never decreases where acc grows, so equal ends mean one code throughout.
    constant = ends[0] == ends[1]
    weights, bias = weights * ~constant[:, None], bias * ~constant
    low, high = low * ~constant, high * ~constant
    shift = e if rounding == "double" else e - 1
    half = np.left_shift(1, np.clip(shift - 1, 0, 31))
    addend = half + p.y_zp * np.left_shift(1, np.clip(shift, 0, 31))
    multiplier, shift = np.where(constant, 2**30, multiplier), np.where(constant, 1, shift)
    addend = np.where(constant, 1 + 2 * ends[0], addend)
    return Channels(
        weights,
        bias,
        bias + low,
        bias + high,
        low,
        high,
        multiplier,
        addend,
        shift,
        np.where(constant, ends[0], VARIES),
        (p.y_min, p.y_max),
        rounding,
    )


def _range(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest ``sum x * w`` of each row over all int8 ``x``."""
    ends = np.stack([-128 * weights, 127 * weights])
    return ends.min(axis=0).sum(axis=1), ends.max(axis=0).sum(axis=1)


def emit(asm: Assembly, c: Channels, acc: str, *, t: str, m: str, addend: str, shift: str, form: str) -> None:
    """Append instructions that turn the accumulator in register ``acc`` into a code in register ``t``.

    Parameters
    ----------
    t, m, addend, shift : str
        Registers; ``m`` holds `stored_multiplier` of the same ``form``.
    form : {"acc", "twice"}
        Whether the register holds ``acc`` or ``2 * acc``.
    """
    if c.rounding == "single":
        asm(f"smmla {t}, {acc}, {m}, {addend}")
    else:
        asm(f"add {t}, {addend}, {acc}, asr #31")
        if form == "acc":
            asm(f"add {t}, {t}, {acc}")
        asm(f"smmlar {t}, {acc}, {m}, {t}")
    asm(f"asr {t}, {t}, {shift}")
    asm(f"ssat {t}, #8, {t}")
    low, high = c.clamp
    for bound, condition, default in ((low, "lt", -128), (high, "gt", 127)):
        if bound != default:
            asm(f"cmp {t}, #{bound}")
            asm(f"it {condition}")
            asm(f"mov{condition} {t}, #{bound}")


def stored_multiplier(c: Channels, form: str) -> np.ndarray:
    """Return the 32-bit word of each channel's multiplier that `emit` expects.

    ``acc * 2M / 2**32`` is the doubling multiply of ``acc`` itself.  2M has 33 bits with its sign: the word
    holds ``2M - 2**32``, and `emit` adds ``acc`` once more.  With one rounding the multiplier is ``M``, on
    ``acc``; on ``2 * acc`` it would be halved, which is not exact.
    """
    if c.rounding == "single":
        assert form == "acc"
        return c.multiplier
    return 2 * c.multiplier - 2**32 if form == "acc" else c.multiplier
