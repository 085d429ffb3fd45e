"""Post-training quantization: a float graph and a calibration set become an int8 graph.

Activations are affine codes per tensor, weights symmetric codes, both in int8 arrays; biases are int32 at
``s_x * s_w``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..data.dataset import normalised
from ..errors import UnknownNameError, UnsupportedOpError, UsageError
from ..ir.graph import Graph, Node, Quant, Tensor
from ..ir.ops import OPS, infer_shape
from .activations import LINEAR_OPS, Range, activation_quants
from .affine import quantize_weight, symmetric_scale
from .calibration import calibrate
from .checking import is_whole, require_float_graph
from .observers import OBSERVERS
from .quantized_model import QuantizedModel

BIAS_LIMIT = 2**30
"""Largest bias code: half of int32, the other half is for the sum of products."""

SMALLEST_FACTOR = 2.0**-24
"""Smallest ``s_x * s_w / s_y`` of a channel."""


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize.

    Attributes
    ----------
    weight_bits : int
        2 to 8.  Codes of ``b`` bits lie in ``[-q_max, q_max]``, ``q_max = 2**(b - 1) - 1``, in int8 arrays.
    activation_bits : int
        2 to 8, for inner activations; the network's inputs and outputs keep 8, see `activation_widths`.
    per_channel : bool
        One weight scale for each output channel, else one for each tensor.
    observer : str
        How an activation's range is chosen, a key of `observers.OBSERVERS`.
    weight_bits_by_layer : mapping of str to int
        Bits of single layers, by node name, instead of ``weight_bits``.

    Raises
    ------
    UsageError
        If a width or the observer's name is not one of these.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    observer: str = "minmax"
    weight_bits_by_layer: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.weight_bits_by_layer, Mapping):
            raise UsageError("QuantConfig: weight_bits_by_layer maps node names to bits; pass a dict")
        object.__setattr__(self, "weight_bits_by_layer", dict(self.weight_bits_by_layer))
        widths = {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}
        for layer, bits in self.weight_bits_by_layer.items():
            widths[f"weight_bits_by_layer[{layer!r}]"] = bits
        for name, bits in widths.items():
            if not is_whole(bits, 2, 8):
                raise UsageError(f"QuantConfig: {name} is {bits!r}; choose a whole number from 2 to 8")
        if self.observer not in OBSERVERS:
            raise UnknownNameError("observer", str(self.observer), OBSERVERS)

    def bits_of(self, node: Node) -> int:
        """Return the weight bits of one layer."""
        return int(self.weight_bits_by_layer.get(node.name, self.weight_bits))


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
        If the calibration set is missing, empty, not finite, or of another shape or type.
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
    if config is not None and not isinstance(config, QuantConfig):
        raise UsageError(f"config is {type(config).__name__}; pass a QuantConfig")
    if calibration.shape[:1] in ((), (0,)):
        raise UsageError("the calibration set is empty; pass at least one input, a few hundred are better")
    graph = model if isinstance(model, Graph) else _capture(model, calibration)
    require_float_graph(graph)
    config = config or QuantConfig()
    ranges = calibrate(graph, calibration, observer=config.observer, bits=config.activation_bits)
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
    elif example.dtype == torch.uint8:
        example = torch.from_numpy(normalised(example.cpu().numpy()))
    return capture(model, example)


def weight_scales(
    graph: Graph,
    ranges: Mapping[str, Range],
    config: QuantConfig | None = None,
    *,
    given: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return the scales that `quantize_graph` gives to the weights.

    Parameters
    ----------
    graph, ranges, config
        As for `quantize_graph`.
    given : mapping of str to ndarray, optional
        Scales by weight tensor name, (O,) or (1,), that replace the symmetric ones of that tensor.

    Returns
    -------
    dict of str to ndarray
        float32 (O,) or (1,) by weight tensor name: the symmetric or the given ones, raised where the bias
        needs it, see `_raised`.
    """
    config, given = config or QuantConfig(), given or {}
    require_float_graph(graph)
    layers = _linear_layers(graph, config)
    _check_names(given, [layer.weight.name for layer in layers], "weight_scales")
    quants = activation_quants(graph, ranges, config.activation_bits)
    scales = {}
    for layer in layers:
        scale = symmetric_scale(layer.w, layer.axis, bits=layer.bits)
        if layer.weight.name in given:
            scale = _given_scale(layer, given[layer.weight.name], scale.shape)
        scales[layer.weight.name] = _raised(scale, layer, quants)
    return scales


def quantize_graph(
    graph: Graph,
    ranges: Mapping[str, Range],
    config: QuantConfig | None = None,
    *,
    weight_codes: Mapping[str, np.ndarray] | None = None,
    weight_scales: Mapping[str, np.ndarray] | None = None,
) -> Graph:
    """Return the int8 graph of a float graph for given activation ranges.

    Parameters
    ----------
    graph : Graph
        Float graph; it is not changed.
    ranges : mapping of str to (float, float)
        ``(min, max)`` of every input and activation, as from `calibrate`.
    config : QuantConfig, optional
        Widths and granularity.  Codes of fewer than 8 bits live in int8 arrays, see `Quant.bits`.
    weight_codes : mapping of str to ndarray, optional
        Whole-numbered codes in ``[-q_max, q_max]`` by weight tensor name, for weights that are not to be
        rounded to nearest.  They belong to the scales that the function `weight_scales` returns for the
        same arguments.
    weight_scales : mapping of str to ndarray, optional
        Scales (O,) or (1,) by weight tensor name, in place of the symmetric ones; they are still raised
        where the bias needs it.

    Raises
    ------
    UsageError
        If a range is missing, or a name, a shape or a value of the arguments does not fit the graph.
    GraphError
        If an accumulator could leave int32; the message names the layer.
    """
    config, weight_codes = config or QuantConfig(), weight_codes or {}
    require_float_graph(graph)
    layers = _linear_layers(graph, config)
    _check_names(weight_codes, [layer.weight.name for layer in layers], "weight_codes")
    quants = activation_quants(graph, ranges, config.activation_bits)
    scales = _scales(graph, ranges, config, given=weight_scales)
    result = Graph(graph.name, inputs=graph.inputs, outputs=graph.outputs, nodes=list(graph.nodes))
    for name, tensor in graph.tensors.items():
        if name in quants:
            result.add(_codes(tensor, quants[name]))
    for layer in layers:
        _quantize_linear(result, layer, quants, scales[layer.weight.name], weight_codes)
    for node in result.validate().nodes:
        assert infer_shape(result, node) == result[node.outputs[0]].shape, node
        OPS[node.op].params(result, node)  # checks that the integers of the node exist and fit
    return result


_scales = weight_scales  # the parameter of `quantize_graph` hides the function


def _codes(tensor: Tensor, quant: Quant) -> Tensor:
    data = None if tensor.data is None else quant.quantize(tensor.data)
    return replace(tensor, dtype="int8", data=data, quant=quant)


@dataclass(frozen=True, eq=False)
class _Linear:
    """One node of `LINEAR_OPS`: weight ``w`` with channels along ``axis``, offset float64 (O,) or (1,)."""

    node: Node
    weight: Tensor
    w: np.ndarray
    bias: Tensor | None
    offset: np.ndarray
    axis: int | None
    bits: int


def _linear_layers(graph: Graph, config: QuantConfig) -> list[_Linear]:
    """Return the linear layers; raise if one cannot be quantized or the configuration names none."""
    nodes = [node for node in graph.nodes if node.op in LINEAR_OPS]
    _check_names(config.weight_bits_by_layer, [node.name for node in nodes], "weight_bits_by_layer")
    layers: list[_Linear] = []
    seen: set[str] = set()
    for node in nodes:
        weight, bias = graph[node.inputs[1]], graph[node.inputs[2]] if len(node.inputs) > 2 else None
        if weight.data is None or (bias is not None and bias.data is None):
            raise UnsupportedOpError(f"{node.name}: weights and bias must be constants to be quantized")
        if not all(np.isfinite(graph[name].data).all() for name in node.inputs[1:]):  # type: ignore[arg-type]
            raise UsageError(
                f"{node.name}: a weight or bias is NaN or infinite; check the training that made it"
            )
        if seen & set(node.inputs[1:]):
            raise UnsupportedOpError(
                f"{node.name}: a constant that two layers share cannot be quantized; copy it"
            )
        seen |= set(node.inputs[1:])
        axis = (weight.data.ndim - 1 if node.op == "DEPTHWISE_CONV_2D" else 0) if config.per_channel else None
        offset = np.zeros(1) if bias is None or bias.data is None else bias.data.astype(np.float64)
        layers.append(_Linear(node, weight, weight.data, bias, offset, axis, config.bits_of(node)))
    return layers


def _check_names(given: Mapping[str, Any], known: list[str], argument: str) -> None:
    for name in given:
        if name not in known:
            raise UnknownNameError(f"name in {argument}", name, known)


def _given_scale(layer: _Linear, scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    scale = np.asarray(scale, np.float64)
    if scale.shape != shape or not np.isfinite(scale).all() or (scale <= 0).any():
        raise UsageError(
            f"the scales for {layer.weight.name!r} must be {shape} positive, finite numbers, "
            f"got {scale.shape}; "
            "per_channel=True needs one for each output channel, per_channel=False one"
        )
    return scale


def _raised(scale: np.ndarray, layer: _Linear, quants: Mapping[str, Quant]) -> np.ndarray:
    """Return float32 scales (O,) or (1,): the wanted ones, raised where the bias needs it.

    The bias is stored in steps of ``s_x * s_w``: a channel whose weights are tiny or 0 beside its bias (batch
    norms leave such channels) would overflow int32.  Two floors prevent it: the bias code stays within
    `BIAS_LIMIT`, and ``s_x * s_w / s_y >= SMALLEST_FACTOR``.  At the second floor rounding the weights moves
    an output by at most ``fan_in * 255 / 2 * 2**-24`` codes, below 0.04 for a fan-in of 4,608.
    """
    x_scale, _ = quants[layer.node.inputs[0]].item()
    y_scale, _ = quants[layer.node.outputs[0]].item()
    largest = np.abs(layer.offset)
    largest = largest if layer.axis is not None else largest.max(keepdims=True)
    floor = np.maximum(largest / (x_scale * BIAS_LIMIT), y_scale / x_scale * SMALLEST_FACTOR)
    return np.maximum(scale, floor).astype(np.float32)


def _quantize_linear(
    result: Graph,
    layer: _Linear,
    quants: Mapping[str, Quant],
    scale: np.ndarray,
    weight_codes: Mapping[str, np.ndarray],
) -> None:
    """Add weights and bias of one layer to the int8 graph."""
    weight, bias = layer.weight, layer.bias
    if weight.name in weight_codes:
        codes = _checked_codes(layer, np.asarray(weight_codes[weight.name]))
    else:
        codes = quantize_weight(layer.w, scale, layer.axis, bits=layer.bits)
    quant = Quant(scale, np.zeros(scale.size, np.int32), layer.axis, layer.bits)
    result.add(replace(weight, dtype="int8", data=codes, quant=quant))
    if bias is not None:
        x_scale, _ = quants[layer.node.inputs[0]].item()
        step = x_scale * scale.astype(np.float64)  # (O,) or (1,)
        q = np.clip(np.rint(layer.offset / step), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
        along = None if layer.axis is None else 0
        quant = Quant(step.astype(np.float32), np.zeros(step.size, np.int32), along)
        result.add(replace(bias, dtype="int32", data=q, quant=quant))


def _checked_codes(layer: _Linear, codes: np.ndarray) -> np.ndarray:
    """Return given codes as int8 (O, ...), or raise `UsageError`."""
    q_max = 2 ** (layer.bits - 1) - 1
    if codes.shape != layer.w.shape:
        raise UsageError(
            f"the codes for {layer.weight.name!r} must have shape {layer.w.shape}, got {codes.shape}"
        )
    if not (np.rint(codes) == codes).all() or (np.abs(codes.astype(np.float64)) > q_max).any():
        raise UsageError(
            f"the codes for {layer.weight.name!r} must be whole numbers from {-q_max} to {q_max} "
            f"({layer.bits} bits); round and clip them"
        )
    return codes.astype(np.int8)
