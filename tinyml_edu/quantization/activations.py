"""Which activations share a scale, how many bits each has, and the scales that follow from ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from ..ir.graph import Graph, Kind, Quant, Tensor
from ..ir.ops import FIXED_SCALES, ONE_SCALE_OPS
from .affine import AffineParams, affine_params

Range = tuple[float, float]

LINEAR_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

SHARING_OPS = ONE_SCALE_OPS

HARD_SWISH_RATIO = 64
"""Largest ratio of the input's to the output's scale that HARD_SWISH gets; its kernel stops at 128."""


def sharing_roots(graph: Graph) -> dict[str, str]:
    """Return the first tensor of each tensor's sharing group, for every tensor but weights and biases.

    Tensors tied by `SHARING_OPS` have one scale, zero point and width.  CONCATENATION ties all its inputs.
    """
    root: dict[str, str] = {name: name for name in graph.inputs}
    for node in graph.nodes:
        output = node.outputs[0]
        if node.op not in LINEAR_OPS:
            for name in node.inputs:
                root.setdefault(name, name)  # a constant operand
        tops = {root[name] for name in node.inputs} if node.op in SHARING_OPS else set()
        first = next((top for top in root if top in tops), output)
        root = {name: first if top in tops else top for name, top in root.items()}
        root[output] = first
    return root


def _fixed(graph: Graph, root: Mapping[str, str]) -> dict[str, Quant]:
    """Return the quantization of each group, by root, that an operator prescribes."""
    makers = {node.outputs[0]: node for node in graph.nodes if node.op not in SHARING_OPS}
    moved = {node.outputs[0] for node in graph.nodes if node.op in SHARING_OPS}
    result = {
        root[name]: Quant.per_tensor(*FIXED_SCALES[node.op])
        for name, node in makers.items()
        if node.op in FIXED_SCALES
    }
    for name, top in root.items():
        free = name not in makers or makers[name].op not in FIXED_SCALES
        if top in result and free and name not in moved:
            raise UsageError(
                f"{name!r} is joined with the output of a LOGISTIC or SOFTMAX, whose scale is fixed; put a "
                "QUANTIZE between, as mcu.capture does"
            )
    return result


def activation_widths(graph: Graph, bits: int) -> dict[str, int]:
    """Return the bits of every input, activation and constant operand.

    They are ``bits``, but 8 for the network's inputs and outputs, for what shares their scale, and for
    every output whose scale the operator prescribes (SOFTMAX, LOGISTIC).
    """
    root = sharing_roots(graph)
    wide = {root[name] for name in (*graph.inputs, *graph.outputs)}
    wide |= {root[node.outputs[0]] for node in graph.nodes if node.op in FIXED_SCALES}
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
        If a range is missing, empty or not finite, or CONCATENATION joins a prescribed scale with others.
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
    quants |= _fixed(graph, root)
    for node in graph.nodes:
        x, top = root[node.inputs[0]], root[node.outputs[0]]
        ratio = quants[x].item()[0] / quants[top].item()[0] / HARD_SWISH_RATIO
        if node.op == "HARD_SWISH" and ratio > 1:  # inputs far below -3 give outputs near 0
            low, high = united[top]
            quants[top] = Quant.per_tensor(
                *storable_params(low * ratio, high * ratio, widths[top]), widths[top]
            )
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
