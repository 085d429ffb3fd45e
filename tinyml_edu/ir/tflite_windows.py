"""Read the operators with weights or windows: convolutions, FULLY_CONNECTED and pools.

SAME and VALID become explicit padding; FULLY_CONNECTED gets a RESHAPE where its input is not (N, I).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..errors import UnsupportedOpError
from . import attrs as A
from .graph import GraphError, Kind, Quant
from .ops import same_padding
from .tflite_operator import OperatorReader

_MAX_KERNEL_SPAN = 1024
"""Rows or columns that a dilated kernel may span on an input that is smaller."""


def _weighted(r: OperatorReader, ids: list[int], axis: int) -> tuple[str, ...]:
    """Return the names of (x, w[, bias]) after checking the constants; ``axis`` of w is per channel."""
    x, w = r.activation(ids[0]), r.name(ids[1])
    weights = r.graph[w]
    if weights.kind is not Kind.CONSTANT or weights.dtype != "int8" or weights.quant is None:
        raise UnsupportedOpError(f"{r.where} needs constant int8 weights with a scale")
    if np.any(weights.quant.zero_point):
        raise UnsupportedOpError(f"{r.where} has weights with a zero point other than 0")
    if weights.quant.scale.size > 1 and weights.quant.axis != axis:
        raise UnsupportedOpError(f"{r.where} has a scale for each index of axis {weights.quant.axis}")
    if len(ids) < 3 or ids[2] == -1:
        return x, w
    bias = r.name(ids[2])
    if r.graph[bias].kind is not Kind.CONSTANT or r.graph[bias].dtype != "int32":
        raise UnsupportedOpError(f"{r.where} needs a constant int32 bias")
    x_quant = r.graph[x].quant
    assert x_quant is not None
    scale = (np.float64(x_quant.scale[0]) * weights.quant.scale).astype(np.float32)
    along = None if scale.size == 1 else 0
    r.graph.update(bias, quant=Quant(scale, np.zeros(scale.size, np.int32), along))
    return x, w, bias


def _sliding(r: OperatorReader, options: Any, x: str, kernel: tuple[int, int]) -> dict[str, Any]:
    """Return stride, dilation and explicit padding of a convolution or pooling."""
    stride = options.StrideH(), options.StrideW()
    dilation = (1, 1)
    if hasattr(options, "DilationHFactor"):
        dilation = options.DilationHFactor(), options.DilationWFactor()
    shape = r.graph[x].shape
    if len(shape) != 4 or min(*stride, *dilation, *kernel) < 1:
        raise GraphError(f"{r.where}: input {shape}, kernel {kernel}, stride {stride}")
    for size, k, d in zip(shape[1:3], kernel, dilation, strict=True):
        # SAME would pad a small input up to a kernel of any size, and memory with it.
        if (k - 1) * d + 1 > max(size, _MAX_KERNEL_SPAN):
            span = (k - 1) * d + 1
            raise UnsupportedOpError(f"{r.where} has a kernel that spans {span} rows or columns of {size}")
    padding = (0, 0, 0, 0)
    if options.Padding() == r.lib.Padding.SAME:
        top, bottom = same_padding(shape[1], kernel[0], stride[0], dilation[0])
        left, right = same_padding(shape[2], kernel[1], stride[1], dilation[1])
        padding = (top, left, bottom, right)
    elif options.Padding() != r.lib.Padding.VALID:
        raise GraphError(f"{r.where} has padding {options.Padding()}")
    return {"stride": stride, "dilation": dilation, "padding": padding}


def conv(r: OperatorReader, op: Any, ids: list[int]) -> None:
    options = r.options(op, "Conv2DOptions")
    names = _weighted(r, ids, axis=0)
    x, w = r.graph[names[0]].shape, r.graph[names[1]].shape
    if len(x) == len(w) == 4 and w[3] < x[3] and x[3] % w[3] == 0:
        raise UnsupportedOpError(f"{r.where} is a grouped convolution ({x[3] // w[3]} groups)")
    slide = _sliding(r, options, names[0], _kernel(r, w))
    attrs = A.Conv2D(**slide, activation=r.fused_activation(options))
    r.node(names, attrs, r.activation(r.out))


def depthwise(r: OperatorReader, op: Any, ids: list[int]) -> None:
    options = r.options(op, "DepthwiseConv2DOptions")
    names = _weighted(r, ids, axis=3)
    slide = _sliding(r, options, names[0], _kernel(r, r.graph[names[1]].shape))
    attrs = A.DepthwiseConv2D(**slide, activation=r.fused_activation(options))
    r.node(names, attrs, r.activation(r.out))


def _kernel(r: OperatorReader, w: tuple[int, ...]) -> tuple[int, int]:
    if len(w) != 4:
        raise GraphError(f"{r.where} has weights of shape {w}")
    return w[1], w[2]


def fully_connected(r: OperatorReader, op: Any, ids: list[int]) -> None:
    options = r.options(op, "FullyConnectedOptions")
    if options.WeightsFormat() != 0:
        raise UnsupportedOpError(f"{r.where} has shuffled weights; export it for the default format")
    names = _weighted(r, ids, axis=0)
    x, w, out = r.graph[names[0]], r.graph[names[1]].shape, r.activation(r.out)
    attrs = A.FullyConnected(r.fused_activation(options))
    if len(w) != 2 or prod(x.shape) % w[1]:
        raise GraphError(f"{r.where}: an input {x.shape} does not fit weights {w}")
    rows = prod(x.shape) // w[1]
    if x.shape != (rows, w[1]):
        flat = r.new(f"{x.name}_flat", (rows, w[1]), x.quant)
        r.node((x.name,), A.Reshape((rows, w[1])), flat, op="RESHAPE", suffix="_in")
        names = (flat, *names[1:])
    target = r.graph[out]
    if not options.KeepNumDims() or target.shape == (rows, w[0]):
        return r.node(names, attrs, out)
    rect = r.new(f"{out}_flat", (rows, w[0]), target.quant)
    r.node(names, attrs, rect)
    return r.node((rect,), A.Reshape(target.shape), out, op="RESHAPE", suffix="_out")


def pool(r: OperatorReader, op: Any, ids: list[int]) -> None:
    options = r.options(op, "Pool2DOptions")
    x, out = r.activation(ids[0]), r.activation(r.out)
    kernel = options.FilterHeight(), options.FilterWidth()
    slide = _sliding(r, options, x, kernel)
    del slide["dilation"]
    r.same_quant(x, out)
    r.node((x,), A.Pool2D(kernel, **slide, activation=r.fused_activation(options)), out)


READERS = {
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise,
    "FULLY_CONNECTED": fully_connected,
    "AVERAGE_POOL_2D": pool,
    "MAX_POOL_2D": pool,
}
"""``reader(r, operator, input indices)`` appends the nodes of an operator to the graph of ``r``."""
