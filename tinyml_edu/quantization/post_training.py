"""Post-training quantization: a float graph and a calibration set become an int8 graph.

Activations are affine int8 per tensor, weights symmetric int8, biases int32 at ``s_x * s_w``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.dataset import normalised
from ..errors import UnsupportedOpError, UsageError
from ..ir.graph import Graph, Kind, Node, Quant, Tensor
from ..ir.int_params import SOFTMAX_SCALE, SOFTMAX_ZERO_POINT
from ..ir.ops import OPS, infer_shape, is_int8
from .affine import AffineParams, affine_params, quantize_weight, symmetric_scale
from .calibration import Range, calibrate
from .quantized_model import QuantizedModel

LINEAR_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

SHARING_OPS = ("AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE")
"""Their kernels move or average codes without a multiplier, so input and output share one scale."""

BIAS_LIMIT = 2**30
"""Largest bias code: half of int32, the other half is for the sum of products."""


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize.

    Attributes
    ----------
    weight_bits, activation_bits : int
        8 is what exists now.
    per_channel : bool
        One weight scale for each output channel, else one for each tensor.
    observer : str
        How an activation's range is chosen: ``"minmax"`` is what exists now.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    observer: str = "minmax"

    def __post_init__(self) -> None:
        for name, known in (("weight_bits", 8), ("activation_bits", 8), ("observer", "minmax")):
            if getattr(self, name) != known:
                raise UsageError(
                    f"QuantConfig({name}={getattr(self, name)!r}) does not exist yet; use {name}={known!r}"
                )


def quantize(model: Any, config: QuantConfig | None = None, calibration: Any = None) -> QuantizedModel:
    """Return the int8 form of a network.

    Parameters
    ----------
    model : torch.nn.Module or Graph
        A module is captured first, see `tinyml_edu.mcu.capture`; a graph must be float32.
    config : QuantConfig, optional
        Default: 8 bits, a scale for each output channel, minimum and maximum as ranges.
    calibration : ndarray or torch.Tensor
        Inputs as in use, see `calibration.as_stored`.
        A few hundred are usually enough.

    Returns
    -------
    QuantizedModel

    Raises
    ------
    UsageError
        If the calibration set is missing, empty, of another shape or not normalised.
    UnsupportedOpError
        If the model holds an operation that cannot be captured.
    """
    if calibration is None:
        raise UsageError("quantize needs calibration inputs; pass calibration=train.x[:256]")
    if not hasattr(calibration, "shape") or not hasattr(calibration, "dtype"):
        raise UsageError(
            f"calibration is {type(calibration).__name__}; pass an array (n, H, W, C) "
            "or a torch tensor (n, C, H, W)"
        )
    if len(calibration) == 0:
        raise UsageError("the calibration set is empty; pass at least one input, a few hundred are better")
    graph = model if isinstance(model, Graph) else _capture(model, calibration)
    if is_int8(graph):
        raise UsageError(f"graph {graph.name} is int8 already; pass the float graph or the torch model")
    ranges = calibrate(graph, calibration)
    return QuantizedModel(quantize_graph(graph, ranges, config), graph)


def _capture(model: Any, calibration: Any) -> Graph:
    import torch

    from ..mcu import capture

    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"quantize takes a torch module or an ir.Graph, not {type(model).__name__}; "
            "zoo.load turns a name into a module"
        )
    example = calibration[:1]
    if not isinstance(example, torch.Tensor):
        example = torch.from_numpy(normalised(np.asarray(example)))
        example = example.permute(0, 3, 1, 2) if example.ndim == 4 else example
    return capture(model, example)


def quantize_graph(graph: Graph, ranges: Mapping[str, Range], config: QuantConfig | None = None) -> Graph:
    """Return the int8 graph of a float graph for given activation ranges.

    Parameters
    ----------
    graph : Graph
        Float graph; it is not changed.
    ranges : mapping of str to (float, float)
        ``(min, max)`` of every input and activation, as from `calibrate`.

    Raises
    ------
    GraphError
        If an accumulator could leave int32; the message names the layer.
    """
    config = config or QuantConfig()
    quants = _activation_quants(graph, ranges)
    result = Graph(graph.name, inputs=graph.inputs, outputs=graph.outputs, nodes=list(graph.nodes))
    for name, tensor in graph.tensors.items():
        if name in quants:
            result.add(_codes(tensor, quants[name]))
    for node in graph.nodes:
        if node.op in LINEAR_OPS:
            _quantize_linear(graph, result, node, quants, config)
    for node in result.validate().nodes:
        assert infer_shape(result, node) == result[node.outputs[0]].shape, node
        OPS[node.op].params(result, node)  # checks that the integers of the node exist and fit
    return result


def _codes(tensor: Tensor, quant: Quant) -> Tensor:
    data = None if tensor.data is None else quant.quantize(tensor.data)
    return replace(tensor, dtype="int8", data=data, quant=quant)


def _activation_quants(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Quant]:
    """Return the quantization of every tensor but weights and biases.

    Tensors tied by `SHARING_OPS` form a tree below one root; the union of their ranges, or the scale that
    the root's op prescribes, is that of them all.
    """
    root: dict[str, str] = {name: name for name in graph.inputs}
    prescribed: dict[str, Quant] = {}
    for node in graph.nodes:
        output = node.outputs[0]
        root[output] = root[node.inputs[0]] if node.op in SHARING_OPS else output
        if node.op == "SOFTMAX":
            prescribed[output] = Quant.per_tensor(SOFTMAX_SCALE, SOFTMAX_ZERO_POINT)
        elif node.op not in LINEAR_OPS:
            for name in node.inputs:
                root.setdefault(name, name)  # a constant operand
    united: dict[str, Range] = {}
    for name, top in root.items():
        low, high = _range(graph[name], ranges)
        united[top] = (min(low, united.get(top, (0, 0))[0]), max(high, united.get(top, (0, 0))[1]))
    quants = {top: prescribed.get(top) or Quant.per_tensor(*_affine(*span)) for top, span in united.items()}
    return {name: quants[top] for name, top in root.items()}


def _range(tensor: Tensor, ranges: Mapping[str, Range]) -> Range:
    if tensor.kind is Kind.CONSTANT and tensor.data is not None:
        return float(tensor.data.min()), float(tensor.data.max())
    if tensor.name not in ranges:
        raise UsageError(f"no range is given for {tensor.name!r}; take them from calibrate(graph, x)")
    return ranges[tensor.name]


def _affine(low: float, high: float) -> AffineParams:
    """Return `affine_params`, and a unit scale for a tensor that was 0 throughout the calibration."""
    smallest = float(np.finfo(np.float32).tiny) * 256  # the scale must be a normal float32
    return affine_params(low, high) if high - low > smallest else AffineParams(1.0, 0)


def _quantize_linear(
    graph: Graph, result: Graph, node: Node, quants: Mapping[str, Quant], config: QuantConfig
) -> None:
    """Add weights and bias of one node to the int8 graph."""
    weight, bias = graph[node.inputs[1]], graph[node.inputs[2]] if len(node.inputs) > 2 else None
    if weight.data is None or (bias is not None and bias.data is None):
        raise UnsupportedOpError(f"{node.name}: weights and bias must be constants to be quantized")
    if weight.name in result.tensors or (bias is not None and bias.name in result.tensors):
        raise UnsupportedOpError(
            f"{node.name}: a constant that two layers share cannot be quantized; copy it"
        )
    axis = (weight.data.ndim - 1 if node.op == "DEPTHWISE_CONV_2D" else 0) if config.per_channel else None
    x_scale, _ = quants[node.inputs[0]].item()
    y_scale, _ = quants[node.outputs[0]].item()
    offset = np.zeros(1) if bias is None or bias.data is None else bias.data.astype(np.float64)
    scale = _weight_scale(weight.data, axis, offset, x_scale, y_scale)
    codes = quantize_weight(weight.data, scale, axis)
    result.add(replace(weight, dtype="int8", data=codes, quant=_symmetric(scale, axis)))
    if bias is not None:
        step = x_scale * scale.astype(np.float64)  # (O,) or (1,)
        q = np.clip(np.rint(offset / step), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
        quant = _symmetric(step, None if axis is None else 0)
        result.add(replace(bias, dtype="int32", data=q, quant=quant))


def _weight_scale(
    w: np.ndarray, axis: int | None, bias: np.ndarray, x_scale: float, y_scale: float
) -> np.ndarray:
    """Return float32 scales (O,) or (1,): the symmetric ones, raised where the bias needs it.

    The bias is stored in steps of ``s_x * s_w``: a channel whose weights are tiny or 0 beside its bias (batch
    norms leave such channels) would overflow int32.  Two floors prevent it: the bias code stays within
    `BIAS_LIMIT`, and ``s_x * s_w / s_y >= 2**-24``.  At the second floor rounding the weights moves an
    output by at most ``fan_in * 255 / 2 * 2**-24`` codes, below 0.04 for a fan-in of 4,608.
    """
    scale = symmetric_scale(w, axis)
    largest = np.abs(bias) if axis is not None else np.abs(bias).max(keepdims=True)
    floor = np.maximum(largest / (x_scale * BIAS_LIMIT), y_scale / x_scale * 2.0**-24)
    return np.maximum(scale, floor).astype(np.float32)


def _symmetric(scale: np.ndarray, axis: int | None) -> Quant:
    return Quant(scale.astype(np.float32), np.zeros(scale.size, np.int32), axis)
