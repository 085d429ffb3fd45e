"""What a graph must be to become an int8 TensorFlow Lite file."""

from __future__ import annotations

from ..errors import UnsupportedOpError, UsageError
from .graph import Graph, GraphError, Kind, Node, Quant, Tensor
from .int_params import SOFTMAX_SCALE, SOFTMAX_ZERO_POINT
from .ops import CONSTANT_OPERANDS, ONE_SCALE_OPS, OPS, infer_shape

MAX_PAD_RANK = 5
"""Axes that TensorFlow Lite's PAD takes."""

_WEIGHT_AXES = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
"""Axis of the weights along which scales may differ."""

_SOFTMAX_QUANT = Quant.per_tensor(SOFTMAX_SCALE, SOFTMAX_ZERO_POINT)


def require_writable(graph: Graph) -> None:
    """Raise unless every tensor and node is one that an int8 file can hold, see `write_tflite`."""
    graph.validate()
    if not (graph.nodes and graph.inputs and graph.outputs):
        raise UsageError(f"graph {graph.name} has no operation, input or output; there is nothing to write")
    for name in dict.fromkeys((*graph.inputs, *(n for node in graph.nodes for n in node.outputs))):
        _check_activation(graph[name])
    for name in graph.inputs:
        if graph[name].shape[:1] != (1,):
            raise UnsupportedOpError(f"input {name!r} has shape {graph[name].shape}; a file has batch size 1")
    for node in graph.nodes:
        if node.op not in OPS:
            raise UnsupportedOpError(f"{node.name} is a {node.op}; supported: {', '.join(OPS)}")
        shape, out = infer_shape(graph, node), graph[node.outputs[0]]
        if shape != out.shape:
            raise GraphError(f"{node.name} makes {shape}, but {out.name!r} says {out.shape}")
        for position in range(len(node.inputs)):
            _check_input(graph, node, position)
        _check_options(node, graph[node.inputs[0]], out)
        OPS[node.op].params(graph, node)


def _check_activation(tensor: Tensor) -> None:
    if tensor.dtype != "int8" or tensor.quant is None:
        raise UsageError(
            f"tensor {tensor.name!r} is {_described(tensor)}; a .tflite is written from an int8 graph, "
            "quantize it first"
        )
    tensor.quant.item()  # one scale
    if tensor.quant.bits != 8:
        raise UnsupportedOpError(
            f"tensor {tensor.name!r} has codes of {tensor.quant.bits} bits, but .tflite kernels clamp to 8; "
            "quantize with activation_bits=8"
        )


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} without a scale" if tensor.dtype == "int8" and not tensor.quant else tensor.dtype


def _check_input(graph: Graph, node: Node, position: int) -> None:
    bias = position == 2 and node.op in _WEIGHT_AXES
    tensor, wanted = graph[node.inputs[position]], "int32" if bias else "int8"
    if tensor.dtype != wanted or (not bias and tensor.quant is None):
        raise UsageError(
            f"{node.name} reads {tensor.name!r}, which is {_described(tensor)}; it needs {wanted}, "
            "quantize the graph first"
        )
    parameter = position > 0 and node.op in _WEIGHT_AXES
    if tensor.kind is Kind.VARIABLE or (parameter and tensor.kind is not Kind.CONSTANT):
        raise UnsupportedOpError(f"{node.name} reads {tensor.name!r}, a {tensor.kind}; make it a constant")
    if tensor.kind is Kind.CONSTANT and not parameter and node.op not in CONSTANT_OPERANDS:
        raise UnsupportedOpError(
            f"{node.name} reads the constant {tensor.name!r} as data; fold the node away"
        )
    if parameter and position == 1 and tensor.quant is not None and tensor.quant.scale.size > 1:
        axis = _WEIGHT_AXES[node.op]
        if tensor.quant.axis != axis:
            raise UsageError(
                f"{node.name}: scales along axis {tensor.quant.axis}; {node.op} needs axis {axis}"
            )


def _check_options(node: Node, x: Tensor, out: Tensor) -> None:
    if node.op == "PAD" and len(x.shape) > MAX_PAD_RANK:
        raise UnsupportedOpError(f"{node.name} pads {len(x.shape)} axes; .tflite allows {MAX_PAD_RANK}")
    if node.op in ONE_SCALE_OPS and not _close(x.quant, out.quant, 1e-6):
        raise UsageError(f"{node.name} ({node.op}) needs one scale for input and output; give both the same")
    if node.op == "SOFTMAX" and not _close(out.quant, _SOFTMAX_QUANT, 1e-3):
        raise UsageError(
            f"{node.name} (SOFTMAX) needs scale 1/256 and zero point -128; give its output those"
        )


def _close(a: Quant | None, b: Quant | None, tolerance: float) -> bool:
    """Return whether zero points agree, and scales as nearly as TensorFlow Lite's own checks ask."""
    if a is None or b is None:
        return False
    (s1, z1), (s2, z2) = a.item(), b.item()
    return z1 == z2 and abs(s1 - s2) <= tolerance * max(s1, s2)
