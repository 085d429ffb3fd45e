"""The integers that an int8 node computes with, derived from scales in this one place.

The NumPy kernels and the C generator read these numbers; neither derives any of them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from .attrs import ACTIVATIONS
from .fixed_point import effective_scale, quantize_multiplier, quantize_multipliers
from .graph import Graph, GraphError, Node, Quant
from .windows import nearest

INT8_MIN, INT8_MAX = -128, 127

ADD_LEFT_SHIFT = 20
"""Bits by which ADD widens its centred inputs before it scales them: 9 + 20 bits stay inside int32."""

SOFTMAX_SCALE, SOFTMAX_ZERO_POINT = 1 / 256, -128
"""Quantization of every int8 SOFTMAX output, fixed by the operator specification."""


@dataclass(frozen=True)
class PoolParams:
    """Clamp of a pooled int8 output, in codes."""

    y_min: int
    y_max: int


@dataclass(frozen=True, eq=False)
class ConvParams:
    """Numbers of CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED.

    ``y[o] = clamp(requant(bias[o] + sum (x - x_zp) * w, multiplier[o], exponent[o]) + y_zp, y_min, y_max)``
    with ``multiplier`` and ``exponent`` int32 of shape (O,), see `fixed_point`.
    """

    multiplier: np.ndarray
    exponent: np.ndarray
    x_zp: int
    y_zp: int
    y_min: int
    y_max: int


@dataclass(frozen=True)
class AddParams:
    """Numbers of ADD and SUB.

    ``s_i = requant((x_i - xi_zp) << left_shift, m_i, e_i)`` for both inputs, then
    ``y = clamp(requant(s_1 + s_2, mo, eo) + y_zp, y_min, y_max)``, or ``s_1 - s_2`` for SUB.
    """

    x1_zp: int
    x2_zp: int
    y_zp: int
    m1: int
    e1: int
    m2: int
    e2: int
    mo: int
    eo: int
    y_min: int
    y_max: int
    left_shift: int = ADD_LEFT_SHIFT


@dataclass(frozen=True)
class MulParams:
    """Numbers of MUL.

    ``y = clamp(requant((x_1 - x1_zp) * (x_2 - x2_zp), multiplier, exponent) + y_zp, y_min, y_max)``
    """

    multiplier: int
    exponent: int
    x1_zp: int
    x2_zp: int
    y_zp: int
    y_min: int
    y_max: int


@dataclass(frozen=True)
class MeanParams:
    """Numbers of MEAN over ``count`` elements; ``multiplier`` holds the division by ``count``.

    ``y = clamp(requant(sum x - count * x_zp, multiplier, exponent) + y_zp, y_min, y_max)``
    """

    multiplier: int
    exponent: int
    count: int
    x_zp: int
    y_zp: int
    y_min: int
    y_max: int


def activation_range(quant: Quant, activation: str) -> tuple[int, int]:
    """Return ``(y_min, y_max)``, the codes that the width of the output and a fused activation allow.

    Examples
    --------
    >>> activation_range(Quant.per_tensor(0.05, -100), "relu6")
    (-100, 20)
    >>> activation_range(Quant.per_tensor(0.5, -3, bits=4), "relu")
    (-3, 7)
    """
    scale, zero_point = quant.item()
    low, high = quant.limits
    if activation == "none":
        return low, high
    if activation == "relu":
        return max(low, zero_point), high
    if activation == "relu6":
        return max(low, zero_point), int(min(high, zero_point + _units(6, scale)))
    if activation == "relu_n1_to_1":
        one = _units(1, scale)
        return int(max(low, zero_point - one)), int(min(high, zero_point + one))
    raise GraphError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")


def _units(value: float, scale: float) -> float:
    """Return ``value / scale`` as the reference rounds it: the quotient in float32, half away from zero."""
    return float(np.floor(np.float64(np.float32(value) / np.float32(scale)) + 0.5))


def _quant(graph: Graph, node: Node, name: str) -> Quant:
    quant = graph[name].quant
    if quant is None:
        raise GraphError(f"{node.name}: tensor {name!r} has no scale; quantize the graph first")
    return quant


def pool_params(graph: Graph, node: Node) -> PoolParams:
    """Return the clamp of AVERAGE_POOL_2D or MAX_POOL_2D."""
    return PoolParams(*activation_range(_quant(graph, node, node.outputs[0]), node.attrs.activation))


def conv_params(graph: Graph, node: Node) -> ConvParams:
    """Return the numbers of a convolution or of FULLY_CONNECTED.

    Raises
    ------
    GraphError
        If a scale is missing, the weights have a zero point, or ``|bias| + 255 * sum |w|`` of a channel
        reaches ``2**31``: the int32 accumulator of the C kernel could then overflow.
    """
    x_scale, x_zp = _quant(graph, node, node.inputs[0]).item()
    y_quant = _quant(graph, node, node.outputs[0])
    y_scale, y_zp = y_quant.item()
    w_quant = _quant(graph, node, node.inputs[1])
    if np.any(w_quant.zero_point):
        raise GraphError(f"{node.name}: weights must have zero point 0")
    channels = graph[node.outputs[0]].shape[-1]
    if w_quant.scale.size not in (1, channels):
        raise GraphError(f"{node.name}: {w_quant.scale.size} weight scales for {channels} output channels")
    _check_accumulator(graph, node, channels)
    scale = effective_scale(x_scale, np.broadcast_to(w_quant.scale, (channels,)), y_scale)
    multiplier, exponent = quantize_multipliers(scale)
    return ConvParams(multiplier, exponent, x_zp, y_zp, *activation_range(y_quant, node.attrs.activation))


fully_connected_params = conv_params


def _check_accumulator(graph: Graph, node: Node, channels: int) -> None:
    """Raise `GraphError` unless every partial sum stays inside int32 for every input."""
    w = graph[node.inputs[1]].data
    if w is None:
        raise GraphError(f"{node.name}: the weights must be a constant")
    axis = w.ndim - 1 if node.op == "DEPTHWISE_CONV_2D" else 0
    sums = np.abs(np.moveaxis(w, axis, 0).reshape(channels, -1).astype(np.int64)).sum(axis=1)
    bias = graph[node.inputs[2]].data if len(node.inputs) > 2 else None
    worst = 255 * sums + (0 if bias is None else np.abs(bias.astype(np.int64)))
    if worst.size and worst.max() >= 2**31:
        raise GraphError(
            f"{node.name}: channel {int(worst.argmax())} can reach {int(worst.max())}, beyond int32; "
            "its bias or fan-in is too large for an int8 engine"
        )


def add_params(graph: Graph, node: Node) -> AddParams:
    """Return the numbers of ADD and SUB: both inputs on the scale ``2 * max(s_1, s_2) / 2**20``."""
    s1, x1_zp = _quant(graph, node, node.inputs[0]).item()
    s2, x2_zp = _quant(graph, node, node.inputs[1]).item()
    y_quant = _quant(graph, node, node.outputs[0])
    s_y, y_zp = y_quant.item()
    twice_max = 2.0 * max(s1, s2)
    m1, e1 = quantize_multiplier(s1 / twice_max)
    m2, e2 = quantize_multiplier(s2 / twice_max)
    mo, eo = quantize_multiplier(twice_max / (2.0**ADD_LEFT_SHIFT * s_y))
    y_min, y_max = activation_range(y_quant, node.attrs.activation)
    return AddParams(x1_zp, x2_zp, y_zp, m1, e1, m2, e2, mo, eo, y_min, y_max)


def mul_params(graph: Graph, node: Node) -> MulParams:
    """Return the numbers of MUL.  The reference forms the ratio of scales in float32, left to right."""
    s1, x1_zp = _quant(graph, node, node.inputs[0]).item()
    s2, x2_zp = _quant(graph, node, node.inputs[1]).item()
    y_quant = _quant(graph, node, node.outputs[0])
    s_y, y_zp = y_quant.item()
    ratio = np.float32(s1) * np.float32(s2) / np.float32(s_y)
    multiplier, exponent = quantize_multiplier(float(ratio))
    clamp = activation_range(y_quant, node.attrs.activation)
    return MulParams(multiplier, exponent, x1_zp, x2_zp, y_zp, *clamp)


def concatenation_params(graph: Graph, node: Node) -> None:
    """Raise `GraphError` unless inputs and output have one scale: CONCATENATION copies codes."""
    scale, zero_point = _quant(graph, node, node.outputs[0]).item()
    for name in node.inputs:
        s, z = _quant(graph, node, name).item()
        if (s, z) != (scale, zero_point):
            raise GraphError(
                f"{node.name}: {name!r} has scale {s:g} and zero point {z}, the output {scale:g} and "
                f"{zero_point}; CONCATENATION copies codes, put a QUANTIZE before it"
            )


def resize_rows(graph: Graph, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (OH,) and the columns (OW,) that RESIZE_NEAREST_NEIGHBOR copies, int64."""
    x, y = graph[node.inputs[0]].shape, graph[node.outputs[0]].shape
    return nearest(x[1], y[1], node.attrs), nearest(x[2], y[2], node.attrs)


def mean_params(graph: Graph, node: Node) -> MeanParams:
    """Return the numbers of MEAN.

    The division by the element count goes into the multiplier: it is shifted left as far as its 64-bit
    product allows, divided (truncating), and the exponent takes the shift back.
    """
    x_scale, x_zp = _quant(graph, node, node.inputs[0]).item()
    y_quant = _quant(graph, node, node.outputs[0])
    y_scale, y_zp = y_quant.item()
    shape = graph[node.inputs[0]].shape
    count = prod(shape[axis] for axis in node.attrs.axes)
    if 255 * count >= 2**31:
        raise GraphError(f"{node.name}: the sum of {count} values can leave int32; average in two steps")
    multiplier, exponent = quantize_multiplier(x_scale / y_scale)
    if multiplier:
        shift = min(count.bit_length() - 1, 32, 31 + exponent)
        multiplier, exponent = (multiplier << shift) // count, exponent - shift
    return MeanParams(multiplier, exponent, count, x_zp, y_zp, *y_quant.limits)


def pad_code(graph: Graph, node: Node) -> int:
    """Return the code that PAD writes: the zero point, which stands for real 0, or that of its value."""
    quant = _quant(graph, node, node.outputs[0])
    quant.item()  # one scale
    return int(quant.quantize(np.array(node.attrs.value, np.float64)))


def softmax_table(graph: Graph, node: Node) -> np.ndarray:
    """Return uint32 (256,): entry ``k`` is ``round(exp(-beta * s_x * k) * 2**24)``, ``k = max(x) - x``.

    With ``e`` the entry of an element and ``S`` the sum over the row (64 bits), the output code is
    ``min((512 * e + S) // (2 * S) - 128, 127)``: softmax in units of 1/256, rounded half up.

    TensorFlow Lite's kernel does the same in float32.  Where softmax is nearly a tie, nearer than float32 can
    tell after a sum of ``n`` terms, its code may be the neighbour: 3 of 2.5 million random outputs.
    """
    scale, _ = _quant(graph, node, node.inputs[0]).item()
    k = np.arange(256, dtype=np.float64)
    return np.floor(np.exp(-node.attrs.beta * scale * k) * 2.0**24 + 0.5).astype(np.uint32)
