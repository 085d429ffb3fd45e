"""Read the operators that move codes, look them up or reduce them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..errors import UnsupportedOpError
from . import attrs as A
from .graph import GraphError
from .int_params import SOFTMAX_SCALE, SOFTMAX_ZERO_POINT
from .lookup_tables import LOGISTIC_SCALE, LOGISTIC_ZERO_POINT
from .tflite_operator import OperatorReader
from .tflite_tensors import numbers


def concatenation(r: OperatorReader, op: Any, ids: list[int]) -> None:
    options, out = r.options(op, "ConcatenationOptions"), r.activation(r.out)
    if r.fused_activation(options) != "none":
        raise UnsupportedOpError(f"{r.where} has a fused activation; the integer kernel has none")
    inputs = tuple(r.activation(i, constant=True) for i in ids)
    for name in inputs:
        r.same_quant(name, out)
    rank = len(r.graph[out].shape)
    axis = options.Axis() + (rank if options.Axis() < 0 else 0)
    if axis == 0:
        raise UnsupportedOpError(f"{r.where} joins along the batch")
    r.node(inputs, A.Concatenation(axis), out)


def elementwise(r: OperatorReader, _: Any, ids: list[int]) -> None:
    r.node((r.activation(ids[0]),), A.Elementwise(), r.activation(r.out))


def logistic(r: OperatorReader, op: Any, ids: list[int]) -> None:
    quant = r.graph[r.activation(r.out)].quant
    assert quant is not None
    if quant.item() != (LOGISTIC_SCALE, LOGISTIC_ZERO_POINT):
        raise UnsupportedOpError(f"{r.where}: the output must have scale 1/256 and zero point -128")
    elementwise(r, op, ids)


def resize(r: OperatorReader, op: Any, ids: list[int]) -> None:
    options = r.options(op, "ResizeNearestNeighborOptions")
    x, out, size = r.activation(ids[0]), r.activation(r.out), r.integers(ids[1])
    if size.shape != (2,):
        raise GraphError(f"{r.where} has a size of shape {size.shape}")
    r.same_quant(x, out)
    corners, centers = bool(options.AlignCorners()), bool(options.HalfPixelCenters())
    if corners and centers:
        raise UnsupportedOpError(f"{r.where} has align_corners and half_pixel_centers; choose one")
    r.node((x,), A.ResizeNearest((int(size[0]), int(size[1])), corners, centers), out)


def mean(r: OperatorReader, op: Any, ids: list[int]) -> None:
    x = r.activation(ids[0])
    rank = len(r.graph[x].shape)
    axes = tuple(sorted({int(a) + rank if a < 0 else int(a) for a in r.integers(ids[1]).reshape(-1)}))
    if 0 in axes:
        raise UnsupportedOpError(f"{r.where} averages over the batch")
    attrs = A.Mean(axes, bool(r.options(op, "ReducerOptions").KeepDims()))
    r.node((x,), attrs, r.activation(r.out))


def leaky_relu(r: OperatorReader, op: Any, ids: list[int]) -> None:
    alpha = float(r.options(op, "LeakyReluOptions").Alpha())
    if not 0 <= alpha < np.inf:
        raise UnsupportedOpError(f"{r.where} has alpha {alpha}; it must be a number from 0 up")
    r.node((r.activation(ids[0]),), A.LeakyRelu(alpha), r.activation(r.out))


def pad(r: OperatorReader, _: Any, ids: list[int]) -> None:
    """PAD, and PADV2 whose third input is the code to write."""
    x, out, table = r.activation(ids[0]), r.activation(r.out), r.integers(ids[1])
    if table.ndim != 2 or table.shape[1] != 2:
        raise GraphError(f"{r.where} has a padding table of shape {table.shape}")
    if len(table) and table[0].any():
        raise UnsupportedOpError(f"{r.where} pads the batch")
    r.same_quant(x, out)
    value = _pad_value(r, ids[2], out) if len(ids) > 2 else 0.0
    r.node((x,), A.Pad(tuple((int(a), int(b)) for a, b in table), value), out, op="PAD")


def _pad_value(r: OperatorReader, index: int, out: str) -> float:
    """Return the real value that the constant ``index`` writes into the padding."""
    name = r.activation(index, constant=True)
    data = r.graph[name].data
    if data is None or data.size != 1:
        raise UnsupportedOpError(f"{r.where} needs the value of its padding as one constant")
    r.same_quant(name, out)
    scale, zero_point = r.quant_of(out)
    return scale * (int(data.reshape(-1)[0]) - zero_point)


def reshape(r: OperatorReader, _: Any, ids: list[int]) -> None:
    """RESHAPE; its shape, if it is a constant, must be that of the output."""
    out = r.activation(r.out)
    wanted, count = r.graph[out].shape, prod(r.graph[out].shape)
    if len(ids) > 1 and r.has_data(ids[1]):
        given = [int(n) for n in r.integers(ids[1]).reshape(-1)]
        known = prod(n for n in given if n != -1)
        resolved = tuple(count // known if n == -1 and known > 0 else n for n in given)
        if resolved != wanted or given.count(-1) > 1:
            raise GraphError(f"{r.where} reshapes to {given}, but its output says {wanted}")
    _view(r, ids)


def squeeze(r: OperatorReader, op: Any, ids: list[int]) -> None:
    """SQUEEZE of the axes that are listed, or of all of length 1."""
    shape = r.graph[r.activation(ids[0])].shape
    listed = numbers(r.options(op, "SqueezeOptions").SqueezeDimsAsNumpy())
    axes = {a + len(shape) if a < 0 else a for a in listed} or {a for a, n in enumerate(shape) if n == 1}
    if any(not 0 <= a < len(shape) or shape[a] != 1 for a in axes):
        raise GraphError(f"{r.where} squeezes axes {listed} of {shape}")
    _view(r, ids, tuple(n for a, n in enumerate(shape) if a not in axes))


def expand_dims(r: OperatorReader, _: Any, ids: list[int]) -> None:
    """EXPAND_DIMS: one axis of length 1 more."""
    shape, axes = r.graph[r.activation(ids[0])].shape, r.integers(ids[1]).reshape(-1)
    axis = int(axes[0]) + (len(shape) + 1 if axes[0] < 0 else 0)
    if axes.size != 1 or not 0 <= axis <= len(shape):
        raise GraphError(f"{r.where} expands axis {axes.tolist()} of {shape}")
    _view(r, ids, (*shape[:axis], 1, *shape[axis:]))


def _view(r: OperatorReader, ids: list[int], shape: tuple[int, ...] | None = None) -> None:
    """Append a RESHAPE to the output's shape, which must be ``shape``."""
    x, out = r.activation(ids[0]), r.activation(r.out)
    r.same_quant(x, out)
    r.node((x,), A.Reshape(r.graph[out].shape if shape is None else shape), out, op="RESHAPE")


def softmax(r: OperatorReader, op: Any, ids: list[int]) -> None:
    beta = float(r.options(op, "SoftmaxOptions").Beta())
    x, out = r.activation(ids[0]), r.activation(r.out)
    quant = r.graph[out].quant
    assert quant is not None
    scale, zero_point = quant.item()
    if abs(scale - SOFTMAX_SCALE) > 1e-3 * SOFTMAX_SCALE or zero_point != SOFTMAX_ZERO_POINT:
        raise UnsupportedOpError(f"{r.where}: the output must have scale 1/256 and zero point -128")
    if not 0 < beta < 2**16:
        raise GraphError(f"{r.where} has beta {beta}")
    r.node((x,), A.Softmax(beta), out)


READERS = {
    "CONCATENATION": concatenation,
    "LOGISTIC": logistic,
    "TANH": elementwise,
    "HARD_SWISH": elementwise,
    "RELU": elementwise,
    "RELU6": elementwise,
    "RELU_N1_TO_1": elementwise,
    "LEAKY_RELU": leaky_relu,
    "RESIZE_NEAREST_NEIGHBOR": resize,
    "MEAN": mean,
    "PAD": pad,
    "PADV2": pad,
    "RESHAPE": reshape,
    "SQUEEZE": squeeze,
    "EXPAND_DIMS": expand_dims,
    "SOFTMAX": softmax,
}
"""``reader(r, operator, input indices)`` appends the nodes of an operator to the graph of ``r``."""
