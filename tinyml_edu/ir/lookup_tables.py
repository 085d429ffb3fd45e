"""Every int8 op of one element is a table: 256 codes in, 256 codes out.

The tables are computed here, once, by the arithmetic of TensorFlow Lite's reference kernels.  The NumPy
kernel and the C kernel of these ops only look up, so that they are exact for any such op, and both
requantization modes are the same.

Entry ``k`` of a table, int8 (256,), is the output code of the input code ``k - 128``.
"""

from __future__ import annotations

import numpy as np

from .fixed_point import quantize_multiplier, requant_double
from .graph import Graph, GraphError, Node, Quant
from .int_params import activation_range

CODES = np.arange(-128, 128, dtype=np.int64)
"""Every input code, in the order of a table."""

LOGISTIC_SCALE, LOGISTIC_ZERO_POINT = 1 / 256, -128
"""Quantization of every int8 LOGISTIC output, fixed by the operator specification."""

_INT16_MIN, _INT16_MAX = -(2**15), 2**15 - 1


def _quants(graph: Graph, node: Node) -> tuple[Quant, Quant]:
    """Return the quantization of input and output."""
    pair = graph[node.inputs[0]].quant, graph[node.outputs[0]].quant
    if pair[0] is None or pair[1] is None:
        raise GraphError(f"{node.name}: input or output has no scale; quantize the graph first")
    return pair[0], pair[1]


def _narrow(codes: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.clip(codes, low, high).astype(np.int8)


def requantize_table(graph: Graph, node: Node) -> np.ndarray:
    """Return the table of QUANTIZE from int8 to int8: the same real value on another scale.

    Through float, DEQUANTIZE rounds the product of scale and code to float32, and QUANTIZE divides in float32
    and rounds half away from zero.
    """
    x, y = _quants(graph, node)
    (x_scale, x_zp), (y_scale, y_zp) = x.item(), y.item()
    if node.attrs.through_float:
        real = (x_scale * (CODES - x_zp)).astype(np.float32)
        return _narrow(_half_away(real / np.float32(y_scale)) + y_zp, *y.limits)
    scaled = requant_double(CODES - x_zp, *quantize_multiplier(x_scale / y_scale))
    return _narrow(scaled + y_zp, *y.limits)


def relu_table(graph: Graph, node: Node) -> np.ndarray:
    """Return the table of RELU, RELU6 or RELU_N1_TO_1, which clamp and change the scale."""
    x, y = _quants(graph, node)
    (x_scale, x_zp), (y_scale, y_zp) = x.item(), y.item()
    low, high = activation_range(y, node.op.lower())
    # The reference divides in float32 here, and in float64 for QUANTIZE.
    ratio = float(np.float32(x_scale) / np.float32(y_scale))
    scaled = requant_double(CODES - x_zp, *quantize_multiplier(ratio))
    return _narrow(scaled + y_zp, low, high)


def leaky_relu_table(graph: Graph, node: Node) -> np.ndarray:
    """Return the table of LEAKY_RELU: one factor for codes from the zero point on, one for those below.

    Raises
    ------
    GraphError
        If ``alpha`` is negative, for which the reference's multiplier is not defined.
    """
    x, y = _quants(graph, node)
    (x_scale, x_zp), (y_scale, y_zp) = x.item(), y.item()
    alpha = np.float32(node.attrs.alpha)
    if not (np.isfinite(alpha) and alpha >= 0):
        raise GraphError(f"{node.name}: LEAKY_RELU with alpha {node.attrs.alpha}; it must not be negative")
    centred = CODES - x_zp
    ratio = np.float32(x_scale) / np.float32(y_scale)
    below = np.float32(x_scale) * alpha / np.float32(y_scale)
    rising, falling = (requant_double(centred, *quantize_multiplier(float(m))) for m in (ratio, below))
    return _narrow(np.where(centred >= 0, rising, falling) + y_zp, *y.limits)


def tanh_table(graph: Graph, node: Node) -> np.ndarray:
    """Return the table of TANH, from a float32 function value as the reference's own table."""
    x, y = _quants(graph, node)
    (x_scale, x_zp), (y_scale, y_zp) = x.item(), y.item()
    r = np.float32(x_scale) * (CODES - x_zp).astype(np.float32)
    value = np.tanh(r.astype(np.float64)).astype(np.float32)
    return _narrow(_half_away(value * (np.float32(1) / np.float32(y_scale))) + y_zp, *y.limits)


def _half_away(units: np.ndarray) -> np.ndarray:
    """Return float32 ``units`` rounded half away from zero, as int64; far ones saturate."""
    wide = np.clip(units.astype(np.float64), -(2.0**31), 2.0**31)
    return (np.sign(wide) * np.floor(np.abs(wide) + 0.5)).astype(np.int64)


def logistic_table(graph: Graph, node: Node) -> np.ndarray:
    """Return the table of LOGISTIC, ``1 / (1 + exp(-x))``.

    The reference computes in float32.  Near a tie that decides the code, so this does the same, from an
    exponential that is rounded to float32 once.

    Raises
    ------
    GraphError
        If the output does not have scale 1/256 and zero point -128.
    """
    x, y = _quants(graph, node)
    if y.item() != (LOGISTIC_SCALE, LOGISTIC_ZERO_POINT):
        raise GraphError(f"{node.name}: the output of LOGISTIC must have scale 1/256 and zero point -128")
    x_scale, x_zp = x.item()
    r = np.float32(x_scale) * (CODES - x_zp).astype(np.float32)
    with np.errstate(over="ignore"):  # exp of a large value is infinite, and its inverse 0
        e = np.exp(-r.astype(np.float64)).astype(np.float32)
    units = np.float32(256) * (np.float32(1) / (np.float32(1) + e))
    return _narrow(np.floor(units.astype(np.float64) + 0.5).astype(np.int64) - 128, *y.limits)


def hard_swish_table(graph: Graph, node: Node) -> np.ndarray:
    """Return the table of HARD_SWISH, ``x * relu6(x + 3) / 6``, from the reference's 16-bit arithmetic.

    Raises
    ------
    GraphError
        If one code of the input spans at least 128 codes of the output, which the reference refuses.
    """
    x, y = _quants(graph, node)
    (x_scale, x_zp), (y_scale, y_zp) = x.item(), y.item()
    fine = np.float32(1 / 128) * np.float32(x_scale)  # scale of the input shifted left by 7
    out_factor, out_exponent = _multiplier_16(fine / np.float32(y_scale))
    if out_exponent > 0:
        raise GraphError(
            f"{node.name}: HARD_SWISH from scale {x_scale:g} to {y_scale:g}; the output scale must be larger"
        )
    factor, exponent = _multiplier_16(fine / (np.float32(3) / np.float32(32768)))
    value = (CODES - x_zp) << 7
    gate = _saturate(value << (exponent - 1)) if exponent > 0 else value
    gate = _multiply_16(gate, factor)  # x / 3 in steps of 2**-15, saturating at -1 and 1
    if exponent > 0:
        gate = _saturate(gate << 1)
    elif exponent < 0:
        gate = _rounded_shift(gate, -exponent)
    gate = (gate + 2**15) >> 1  # relu6(x + 3) / 6
    product = _truncated(gate * _multiply_16(value, out_factor))
    return _narrow(_rounded_shift(product, -out_exponent) + y_zp, *y.limits)


def _multiplier_16(ratio: np.float32) -> tuple[int, int]:
    """Return a multiplier of 16 bits and the exponent: ``ratio = multiplier * 2**(exponent - 15)``."""
    multiplier, exponent = quantize_multiplier(float(ratio))
    return min((multiplier + 2**15) >> 16, _INT16_MAX), exponent


def _saturate(a: np.ndarray) -> np.ndarray:
    return np.clip(a, _INT16_MIN, _INT16_MAX)


def _multiply_16(a: np.ndarray, b: int) -> np.ndarray:
    """Return ``a * b / 2**15`` rounded half up."""
    return (a * b + 2**14) >> 15


def _truncated(product: np.ndarray) -> np.ndarray:
    """Return ``product / 2**15`` rounded towards zero."""
    return np.sign(product) * (np.abs(product) >> 15)


def _rounded_shift(a: np.ndarray, right: int) -> np.ndarray:
    """Return ``a / 2**right`` rounded half away from zero."""
    return a if right == 0 else (a + (1 << (right - 1)) - (a < 0)) >> right
