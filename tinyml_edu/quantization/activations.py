"""Which activations share a scale, how many bits each has, and the scales that follow from ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from ..ir.graph import Graph, Kind, Quant, Tensor
from ..ir.int_params import SOFTMAX_SCALE, SOFTMAX_ZERO_POINT
from .affine import AffineParams, affine_params

Range = tuple[float, float]

LINEAR_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

SHARING_OPS = ("AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE")
"""Their kernels move or average codes without a multiplier, so input and output share one scale."""


def sharing_roots(graph: Graph) -> dict[str, str]:
    """Return the first tensor of each tensor's sharing group, for every tensor but weights and biases.

    Tensors tied by `SHARING_OPS` form a tree below that root and have one scale, zero point and width.
    """
    root: dict[str, str] = {name: name for name in graph.inputs}
    for node in graph.nodes:
        output = node.outputs[0]
        if node.op not in LINEAR_OPS:
            for name in node.inputs:
                root.setdefault(name, name)  # a constant operand
        root[output] = root[node.inputs[0]] if node.op in SHARING_OPS else output
    return root


def activation_widths(graph: Graph, bits: int) -> dict[str, int]:
    """Return the bits of every input, activation and constant operand.

    They are ``bits``, but 8 for the network's inputs and outputs, for what shares their scale, and for
    every SOFTMAX output, whose scale the operator prescribes.
    """
    root = sharing_roots(graph)
    wide = {root[name] for name in (*graph.inputs, *graph.outputs)}
    wide |= {node.outputs[0] for node in graph.nodes if node.op == "SOFTMAX"}
    return {name: 8 if top in wide else bits for name, top in root.items()}


def activation_quants(graph: Graph, ranges: Mapping[str, Range], bits: int = 8) -> dict[str, Quant]:
    """Return the quantization of every input, activation and constant operand of a float graph.

    Parameters
    ----------
    graph : Graph
        Float graph.
    ranges : mapping of str to (float, float)
        ``(min, max)`` of every input and activation, as from `calibrate`.  A sharing group gets the union
        of its members' ranges.
    bits : int, default=8
        Width of inner activations, see `activation_widths`.

    Raises
    ------
    UsageError
        If a range is missing, empty or not finite.
    """
    root, widths = sharing_roots(graph), activation_widths(graph, bits)
    united: dict[str, Range] = {}
    for name, top in root.items():
        low, high = _range(graph[name], ranges)
        united[top] = (min(low, united.get(top, (0, 0))[0]), max(high, united.get(top, (0, 0))[1]))
    quants = {
        top: Quant.per_tensor(*storable_params(*span, widths[top]), widths[top])
        for top, span in united.items()
    }
    for node in graph.nodes:
        if node.op == "SOFTMAX":
            quants[node.outputs[0]] = Quant.per_tensor(SOFTMAX_SCALE, SOFTMAX_ZERO_POINT)
    return {name: quants[top] for name, top in root.items()}


def _range(tensor: Tensor, ranges: Mapping[str, Range]) -> Range:
    if tensor.kind is Kind.CONSTANT and tensor.data is not None:
        return float(tensor.data.min()), float(tensor.data.max())
    if tensor.name not in ranges:
        raise UsageError(f"no range is given for {tensor.name!r}; take them from calibrate(graph, x)")
    low, high = ranges[tensor.name]
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(
            f"the range of {tensor.name!r}, [{low}, {high}], is empty or not finite; check the calibration "
            "data, or whether training diverged"
        )
    return low, high


def storable_params(low: float, high: float, bits: int) -> AffineParams:
    """Return `affine_params`, and a unit scale for a range that is 0 or has no normal float32 as scale."""
    smallest = float(np.finfo(np.float32).tiny) * 2**bits
    return affine_params(low, high, bits=bits) if high - low > smallest else AffineParams(1.0, 0)
