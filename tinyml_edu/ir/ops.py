"""The one table of ops: what each op is, costs, reads, and how it rounds.

To add an op: an attribute class in `attrs`, its numbers in `int_params`, a kernel in `integer_kernels`
and in `float_kernels`, and one entry in `OPS`.
"""
# ruff: noqa: ARG001 - the functions of a column of the table have one signature

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import attrs as A
from . import float_kernels, int_params, integer_kernels, lookup_tables
from .graph import Graph, GraphError, Kind, Node
from .windows import nearest

Shape = tuple[int, ...]

Region = tuple[int, int, int, int]
"""Rows ``y0 <= y < y1`` and columns ``x0 <= x < x1`` of an image, as (y0, y1, x0, x1)."""


@dataclass(frozen=True)
class OpSpec:
    """One op.

    Attributes
    ----------
    attrs : type
        Attribute class of its nodes.
    infer_shape : callable
        ``(attrs, *in_shapes) -> out_shape``; raises `GraphError` on shapes that do not fit.
    macs : callable
        ``(attrs, in_shapes, out_shape) -> int``: multiply-accumulates; 0 for ops that sum no products.
    input_region : callable or None
        ``(attrs, region, *in_shapes) -> region``: the part of input 0, clipped to the image, that an
        output region reads.  None, or the callable returns None, where the op does not keep rows and
        columns apart.
    rounding : str
        How ``"exact"`` rounds, see ``fixed_point``.
    params : callable
        ``(graph, node) ->`` the numbers of an int8 node, see ``int_params``.
    integer_kernel, float_kernel : callable
        See ``integer_kernels`` and ``float_kernels``.
    """

    attrs: type
    infer_shape: Callable[..., Shape]
    macs: Callable[[Any, tuple[Shape, ...], Shape], int]
    input_region: Callable[..., Region | None] | None
    rounding: str
    params: Callable[[Graph, Node], Any]
    integer_kernel: Callable[..., np.ndarray]
    float_kernel: Callable[..., np.ndarray]


def output_size(size: int, kernel: int, stride: int, dilation: int = 1) -> int:
    """Return the output rows (or columns) of a kernel that slides over ``size`` rows, padding included."""
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return (before, after) of TensorFlow's SAME: ``ceil(size / stride)`` outputs, the odd row after.

    Examples
    --------
    >>> same_padding(32, 3, 2)
    (0, 1)
    """
    out = -(-size // stride)
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


def _slide(a: Any, x: Shape, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Return (OH, OW) after checking that strides, kernel and padding make sense."""
    _need(len(x) == 4, f"a 4-dimensional input (N, H, W, C) is needed, got {x}")
    _need(min(*x, *kernel, *a.stride, *dilation) > 0, f"sizes must be positive: input {x}, kernel {kernel}")
    top, left, bottom, right = a.padding
    height = output_size(top + x[1] + bottom, kernel[0], a.stride[0], dilation[0])
    width = output_size(left + x[2] + right, kernel[1], a.stride[1], dilation[1])
    _need(min(height, width) > 0, f"kernel {kernel} is larger than the padded input {x}")
    return height, width


def _bias_fits(shapes: tuple[Shape, ...], channels: int) -> None:
    _need(not shapes or shapes == ((channels,),), f"the bias must have shape ({channels},), got {shapes}")


def _conv_shape(a: A.Conv2D, x: Shape, w: Shape, *bias: Shape) -> Shape:
    _need(len(w) == 4 and w[0] > 0, f"weights (O, KH, KW, I) are needed, got {w}")
    height, width = _slide(a, x, (w[1], w[2]), a.dilation)
    _need(w[3] == x[3], f"weights {w} read {w[3]} channels, the input has {x[3]}")
    _bias_fits(bias, w[0])
    return x[0], height, width, w[0]


def _depthwise_shape(a: A.DepthwiseConv2D, x: Shape, w: Shape, *bias: Shape) -> Shape:
    _need(len(w) == 4 and w[0] == 1, f"weights (1, KH, KW, C·M) are needed, got {w}")
    height, width = _slide(a, x, (w[1], w[2]), a.dilation)
    _need(w[3] > 0 and w[3] % x[3] == 0, f"{w[3]} output channels are no multiple of {x[3]} input channels")
    _bias_fits(bias, w[3])
    return x[0], height, width, w[3]


def _pool_shape(a: A.Pool2D, x: Shape) -> Shape:
    height, width = _slide(a, x, a.kernel, (1, 1))
    for size, out, axis in ((x[1], height, 0), (x[2], width, 1)):
        first, last = a.padding[axis], (out - 1) * a.stride[axis] - a.padding[axis]
        _need(first < a.kernel[axis] and last < size, "a pooling window lies in the padding only")
    return x[0], height, width, x[3]


def _fully_connected_shape(a: A.FullyConnected, x: Shape, w: Shape, *bias: Shape) -> Shape:
    _need(len(x) == 2 and len(w) == 2, f"x (N, I) and w (O, I) are needed, got {x} and {w}")
    _need(x[1] == w[1], f"weights {w} read {w[1]} values, the input has {x[1]}")
    _bias_fits(bias, w[0])
    return x[0], w[0]


def _broadcast_shape(a: A.Add | A.Sub | A.Mul, x1: Shape, x2: Shape) -> Shape:
    pairs = list(zip(x1, x2, strict=False))
    fits = len(x1) == len(x2) and x1[:1] == x2[:1] and all(m == n or 1 in (m, n) for m, n in pairs)
    what = type(a).__name__.upper()
    _need(
        fits, f"{what} needs two tensors whose axes are of one length, or 1 but for the batch: {x1} and {x2}"
    )
    return tuple(max(pair) for pair in pairs)


def _concatenation_shape(a: A.Concatenation, *xs: Shape) -> Shape:
    _need(len(xs) > 0 and 0 < a.axis < len(xs[0]), f"CONCATENATION along axis {a.axis} of {xs}")
    others = {(*x[: a.axis], *x[a.axis + 1 :]) for x in xs}
    _need(len(others) == 1, f"CONCATENATION along axis {a.axis} of shapes that differ elsewhere: {xs}")
    return *xs[0][: a.axis], sum(x[a.axis] for x in xs), *xs[0][a.axis + 1 :]


def _elementwise_shape(a: A.Elementwise, x: Shape) -> Shape:
    return x


def _resize_shape(a: A.ResizeNearest, x: Shape) -> Shape:
    _need(len(x) == 4, f"a 4-dimensional input (N, H, W, C) is needed, got {x}")
    _need(min(*x, *a.size) > 0, f"sizes must be positive: {x} to {a.size}")
    _need(not (a.align_corners and a.half_pixel_centers), "align_corners excludes half_pixel_centers")
    return x[0], *a.size, x[3]


def _mean_shape(a: A.Mean, x: Shape) -> Shape:
    _need(bool(a.axes) and all(0 < axis < len(x) for axis in a.axes), f"MEAN over axes {a.axes} of {x}")
    _need(len(set(a.axes)) == len(a.axes), f"MEAN names an axis twice: {a.axes}")
    _need(all(x[axis] > 0 for axis in a.axes), f"MEAN over an empty axis of {x}")
    kept = [1 if i in a.axes else n for i, n in enumerate(x) if a.keepdims or i not in a.axes]
    return tuple(kept)


def _pad_shape(a: A.Pad, x: Shape) -> Shape:
    _need(len(a.padding) == len(x), f"PAD lists {len(a.padding)} axes, the input has {len(x)}")
    _need(all(min(pair) >= 0 for pair in a.padding), f"PAD cannot crop: {a.padding}")
    _need(a.padding[0] == (0, 0), "PAD of the batch axis is not supported")
    return tuple(before + n + after for n, (before, after) in zip(x, a.padding, strict=True))


def _reshape_shape(a: A.Reshape, x: Shape) -> Shape:
    _need(prod(x) == prod(a.shape), f"RESHAPE from {x} to {a.shape} changes the number of values")
    return a.shape


def _softmax_shape(a: Any, x: Shape) -> Shape:
    _need(len(x) > 1 and x[-1] > 0, f"SOFTMAX needs a batch axis and one with values, got shape {x}")
    return x


def _no_macs(a: Any, ins: tuple[Shape, ...], out: Shape) -> int:
    return 0


def _conv_macs(a: Any, ins: tuple[Shape, ...], out: Shape) -> int:
    return prod(out) * prod(ins[1][1:])


def _depthwise_macs(a: Any, ins: tuple[Shape, ...], out: Shape) -> int:
    return prod(out) * ins[1][1] * ins[1][2]


def _clip(region: Region, x: Shape) -> Region:
    y0, y1, x0, x1 = region
    return min(max(y0, 0), x[1]), min(max(y1, 0), x[1]), min(max(x0, 0), x[2]), min(max(x1, 0), x[2])


def _sliding_region(a: Any, region: Region, x: Shape, kernel: Shape, dilation: tuple[int, int]) -> Region:
    top, left = a.padding[:2]
    y0, y1, x0, x1 = region
    return _clip(
        (
            y0 * a.stride[0] - top,
            (y1 - 1) * a.stride[0] - top + (kernel[0] - 1) * dilation[0] + 1,
            x0 * a.stride[1] - left,
            (x1 - 1) * a.stride[1] - left + (kernel[1] - 1) * dilation[1] + 1,
        ),
        x,
    )


def _conv_region(a: A.Conv2D, region: Region, x: Shape, w: Shape, *_: Shape) -> Region:
    return _sliding_region(a, region, x, w[1:3], a.dilation)


def _pool_region(a: A.Pool2D, region: Region, x: Shape) -> Region:
    return _sliding_region(a, region, x, a.kernel, (1, 1))


def _same_region(a: Any, region: Region, x: Shape, *_: Shape) -> Region:
    return _clip(region, x)


def _broadcast_region(a: Any, region: Region, x: Shape, *_: Shape) -> Region | None:
    if len(x) != 4:
        return None
    y0, y1, x0, x1 = region
    rows, columns = ((0, 1) if n == 1 else pair for n, pair in zip(x[1:3], ((y0, y1), (x0, x1)), strict=True))
    return _clip((*rows, *columns), x)


def _concatenation_region(a: A.Concatenation, region: Region, *xs: Shape) -> Region | None:
    return _clip(region, xs[0]) if a.axis == 3 else None


def _resize_region(a: A.ResizeNearest, region: Region, x: Shape) -> Region:
    rows, columns = (nearest(n, out, a) for n, out in zip(x[1:3], a.size, strict=True))
    y0, y1, x0, x1 = region
    return int(rows[y0]), int(rows[y1 - 1]) + 1, int(columns[x0]), int(columns[x1 - 1]) + 1


def _pad_region(a: A.Pad, region: Region, x: Shape) -> Region:
    (top, _), (left, _) = a.padding[1:3]
    y0, y1, x0, x1 = region
    return _clip((y0 - top, y1 - top, x0 - left, x1 - left), x)


def _no_params(graph: Graph, node: Node) -> None:
    return None


_DOUBLE = "twice: doubling high multiply, then a shift rounded half away from zero"

OPS: dict[str, OpSpec] = {
    "CONV_2D": OpSpec(
        A.Conv2D, _conv_shape, _conv_macs, _conv_region, _DOUBLE,
        int_params.conv_params, integer_kernels.conv2d, float_kernels.conv2d,
    ),
    "DEPTHWISE_CONV_2D": OpSpec(
        A.DepthwiseConv2D, _depthwise_shape, _depthwise_macs, _conv_region, _DOUBLE,
        int_params.conv_params, integer_kernels.depthwise_conv2d, float_kernels.depthwise_conv2d,
    ),
    "FULLY_CONNECTED": OpSpec(
        A.FullyConnected, _fully_connected_shape, _conv_macs, None, "once, half up, in 64 bits",
        int_params.conv_params, integer_kernels.fully_connected, float_kernels.fully_connected,
    ),
    "ADD": OpSpec(
        A.Add, _broadcast_shape, _no_macs, _broadcast_region,
        "inputs shifted left by 20 onto the scale 2·max(s1, s2), each product rounded " + _DOUBLE,
        int_params.add_params, integer_kernels.add, float_kernels.add,
    ),
    "AVERAGE_POOL_2D": OpSpec(
        A.Pool2D, _pool_shape, _no_macs, _pool_region, "half away from zero; padding is not counted",
        int_params.pool_params, integer_kernels.average_pool2d, float_kernels.average_pool2d,
    ),
    "MAX_POOL_2D": OpSpec(
        A.Pool2D, _pool_shape, _no_macs, _pool_region, "none",
        int_params.pool_params, integer_kernels.max_pool2d, float_kernels.max_pool2d,
    ),
    "MEAN": OpSpec(
        A.Mean, _mean_shape, _no_macs, None, _DOUBLE + "; the count is divided into the multiplier",
        int_params.mean_params, integer_kernels.mean, float_kernels.mean,
    ),
    "PAD": OpSpec(
        A.Pad, _pad_shape, _no_macs, _pad_region, "none",
        int_params.pad_code, integer_kernels.pad, float_kernels.pad,
    ),
    "RESHAPE": OpSpec(
        A.Reshape, _reshape_shape, _no_macs, None, "none",
        _no_params, integer_kernels.reshape, float_kernels.reshape,
    ),
    "SOFTMAX": OpSpec(
        A.Softmax, _softmax_shape, _no_macs, None, "half up to 1/256, exponentials from a 256-entry table",
        int_params.softmax_table, integer_kernels.softmax, float_kernels.softmax,
    ),
    "SUB": OpSpec(
        A.Sub, _broadcast_shape, _no_macs, _broadcast_region,
        "as ADD, the second input subtracted",
        int_params.add_params, integer_kernels.sub, float_kernels.sub,
    ),
    "MUL": OpSpec(
        A.Mul, _broadcast_shape, _no_macs, _broadcast_region, _DOUBLE,
        int_params.mul_params, integer_kernels.mul, float_kernels.mul,
    ),
    "CONCATENATION": OpSpec(
        A.Concatenation, _concatenation_shape, _no_macs, _concatenation_region, "none",
        int_params.concatenation_params, integer_kernels.concatenation, float_kernels.concatenation,
    ),
    "LOGISTIC": OpSpec(
        A.Elementwise, _elementwise_shape, _no_macs, _same_region, "half up to 1/256, from float32",
        lookup_tables.logistic_table, integer_kernels.lookup, float_kernels.logistic,
    ),
    "HARD_SWISH": OpSpec(
        A.Elementwise, _elementwise_shape, _no_macs, _same_region,
        "four times, in 16 bits: see `lookup_tables.hard_swish_table`",
        lookup_tables.hard_swish_table, integer_kernels.lookup, float_kernels.hard_swish,
    ),
    "RELU": OpSpec(
        A.Elementwise, _elementwise_shape, _no_macs, _same_region, _DOUBLE,
        lookup_tables.relu_table, integer_kernels.lookup, float_kernels.relu,
    ),
    "RELU6": OpSpec(
        A.Elementwise, _elementwise_shape, _no_macs, _same_region, _DOUBLE,
        lookup_tables.relu_table, integer_kernels.lookup, float_kernels.relu6,
    ),
    "RELU_N1_TO_1": OpSpec(
        A.Elementwise, _elementwise_shape, _no_macs, _same_region, _DOUBLE,
        lookup_tables.relu_table, integer_kernels.lookup, float_kernels.relu_n1_to_1,
    ),
    "LEAKY_RELU": OpSpec(
        A.LeakyRelu, _elementwise_shape, _no_macs, _same_region, _DOUBLE,
        lookup_tables.leaky_relu_table, integer_kernels.lookup, float_kernels.leaky_relu,
    ),
    "TANH": OpSpec(
        A.Elementwise, _elementwise_shape, _no_macs, _same_region, "half away from zero, from float32",
        lookup_tables.tanh_table, integer_kernels.lookup, float_kernels.tanh,
    ),
    "QUANTIZE": OpSpec(
        A.Quantize, _elementwise_shape, _no_macs, _same_region, _DOUBLE + "; or half away, from float32",
        lookup_tables.requantize_table, integer_kernels.lookup, float_kernels.quantize,
    ),
    "RESIZE_NEAREST_NEIGHBOR": OpSpec(
        A.ResizeNearest, _resize_shape, _no_macs, _resize_region, "none",
        int_params.resize_rows, integer_kernels.resize_nearest, float_kernels.resize_nearest,
    ),
}  # fmt: skip


ONE_SCALE_OPS = (
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE", "CONCATENATION", "RESIZE_NEAREST_NEIGHBOR",
)  # fmt: skip
"""Their kernels move or average codes without a multiplier, so inputs and output share one scale."""

FIXED_SCALES = {
    "SOFTMAX": (int_params.SOFTMAX_SCALE, int_params.SOFTMAX_ZERO_POINT),
    "LOGISTIC": (lookup_tables.LOGISTIC_SCALE, lookup_tables.LOGISTIC_ZERO_POINT),
    "TANH": (1 / 128, 0),
}
"""Scale and zero point of int8 outputs that the operator prescribes."""

CONSTANT_OPERANDS = ("ADD", "SUB", "MUL", "CONCATENATION")
"""Ops that may read a constant where others read data; it is one image's worth, and repeated for a batch."""


def infer_shape(graph: Graph, node: Node) -> Shape:
    """Return the output shape of a node; raise `GraphError` naming the node if its inputs do not fit."""
    try:
        return OPS[node.op].infer_shape(node.attrs, *(graph[name].shape for name in node.inputs))
    except GraphError as error:
        raise GraphError(f"{node.name} ({node.op}): {error}") from None


def input_region(graph: Graph, node: Node, region: Region) -> Region | None:
    """Return the part of input 0 that ``region`` of the output reads, or None where rows are mixed."""
    spec = OPS[node.op]
    if spec.input_region is None:
        return None
    return spec.input_region(node.attrs, region, *(graph[name].shape for name in node.inputs))


def macs(graph: Graph) -> dict[str, int]:
    """Return the multiply-accumulates of each node for one inference, by node name."""
    result = {}
    for node in graph.nodes:
        shapes = tuple(graph[name].shape for name in node.inputs)
        result[node.name] = OPS[node.op].macs(node.attrs, shapes, graph[node.outputs[0]].shape)
    return result


def is_int8(graph: Graph) -> bool:
    """Return whether the activations of a graph are int8 codes."""
    return any(t.dtype == "int8" for t in graph.tensors.values() if t.kind is not Kind.CONSTANT)
