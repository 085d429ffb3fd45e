"""Write an int8 graph as a TensorFlow Lite file that computes the same codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .._files import write_atomically
from ..errors import DataError, UsageError
from .graph import Graph, Node, Quant
from .int_params import pad_code
from .tflite_checks import require_writable
from .tflite_pack import NO_OPTIONS, PackedOperator, PackedTensor, Packer
from .tflite_padding import padding_kind, with_pads

DESCRIPTION = "int8 network written by tinyml_edu"


def write_tflite(graph: Graph, path: str | Path) -> None:
    """Write ``graph`` as a ``.tflite`` file: whole, or not at all.

    A runtime that computes as TensorFlow Lite's reference kernels do returns the codes of `ir.run`, but for
    near ties of SOFTMAX, which it computes in float32, see `int_params.softmax_table`.

    Parameters
    ----------
    graph : Graph
        int8 graph with batch 1, as `quantize_graph` or `read_tflite` makes it; it is not changed.
    path : str or Path
        Folders on the way are made.

    Raises
    ------
    UsageError
        If the graph is not int8 throughout, or the ``tflite`` package is not installed.
    UnsupportedOpError
        If a node has no exact counterpart: cropping, an average over explicit padding that is not SAME, a
        maximum over padding that could win, activations of fewer than 8 bits, a batch.
    GraphError
        If the graph contradicts itself.
    DataError
        If the file cannot be written.

    Notes
    -----
    `read_tflite` gives the same graph back, but for these: nodes are named by op and position; explicit
    padding that is neither SAME nor VALID is a PAD node; bottom and right padding that no output
    reads is that of SAME or 0; every bias has the scale ``s_x * s_w``, and a CONV_2D without one has a
    bias of zeros; tensors that no node uses are gone; ``beta`` of SOFTMAX is a float32.

    Weights of fewer bits are int8 codes in the file, which does not say their width; one scale has no axis.

    Operators carry the version of their int8 kernels [1]_.  FULLY_CONNECTED with a scale for each channel has
    no version of its own: a runtime from before it existed uses one scale, or stops.

    References
    ----------
    .. [1] TensorFlow Lite, operator versions.
       https://ai.google.dev/edge/litert/conversion/tensorflow/build/ops_version
    """
    content, path = tflite_bytes(graph), Path(path)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None


def tflite_bytes(graph: Graph) -> bytes:
    """Return what `write_tflite` writes."""
    try:
        import flatbuffers  # noqa: F401 (the packer needs it)
        import tflite
    except ImportError:
        raise UsageError("writing .tflite needs one more package: pip install 'tinyml_edu[tflite]'") from None
    require_writable(graph)
    return _Writer(tflite, with_pads(graph)).pack()


def _runtime(operator: PackedOperator) -> tuple[int, int, int]:
    """Return the TensorFlow version whose runtime was the first to have the operator."""
    if operator.op == "RESIZE_NEAREST_NEIGHBOR" and operator.version == 3:
        return 2, 3, 0
    without_bias = operator.op == "FULLY_CONNECTED" and operator.version == 6
    if operator.op == "LEAKY_RELU":
        return 2, 3, 0
    if without_bias or operator.op in ("RELU", "RELU6"):
        return 2, 1, 0
    return 1, 15 if operator.op == "HARD_SWISH" else 14, 0


class _Writer:
    """Tensors and operators by index; ``lib`` is the ``tflite`` package."""

    def __init__(self, lib: Any, graph: Graph) -> None:
        self.lib, self.graph = lib, graph
        self.indices: dict[str, int] = {}
        self.tensors: list[PackedTensor] = []
        self.names = set(graph.tensors)
        self.writers: dict[str, Callable[[Node], PackedOperator]] = {
            "CONV_2D": self._conv,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "FULLY_CONNECTED": self._fully_connected,
            "ADD": self._add,
            "SUB": self._sub,
            "MUL": self._mul,
            "CONCATENATION": self._concatenation,
            "LOGISTIC": self._logistic,
            "HARD_SWISH": self._hard_swish,
            "RELU": self._relu,
            "RELU6": self._relu,
            "RELU_N1_TO_1": self._relu_n1_to_1,
            "LEAKY_RELU": self._leaky_relu,
            "TANH": self._relu,
            "QUANTIZE": self._quantize,
            "RESIZE_NEAREST_NEIGHBOR": self._resize,
            "AVERAGE_POOL_2D": self._pool,
            "MAX_POOL_2D": self._pool,
            "MEAN": self._mean,
            "PAD": self._pad,
            "RESHAPE": self._reshape,
            "SOFTMAX": self._softmax,
        }

    def pack(self) -> bytes:
        inputs = [self._index(name) for name in self.graph.inputs]
        operators = [operator for node in self.graph.nodes for operator in self._operators(node)]
        outputs = [self._index(name) for name in self.graph.outputs]
        runtime = ".".join(map(str, max(_runtime(o) for o in operators))).encode()
        return Packer(self.lib).pack(
            self.tensors,
            operators,
            inputs,
            outputs,
            name=self.graph.name,
            description=DESCRIPTION,
            metadata={"min_runtime_version": runtime.ljust(16, b"\0")},
        )

    def _index(self, name: str) -> int:
        """Return the index of a tensor of the graph, which is written on first use."""
        if name not in self.indices:
            tensor = self.graph[name]
            self.indices[name] = len(self.tensors)
            self.tensors.append(PackedTensor(name, tensor.shape, tensor.dtype, tensor.data, tensor.quant))
        return self.indices[name]

    def _operators(self, node: Node) -> list[PackedOperator]:
        """Return the operators of a node: one, but for a QUANTIZE through float, which is two."""
        operator = self.writers[node.op](node)
        if node.op != "QUANTIZE" or not node.attrs.through_float:
            return [operator]
        shape = self.graph[node.outputs[0]].shape
        real = self._extra(node, "real", PackedTensor("", shape, "float32"))
        first = PackedOperator("DEQUANTIZE", 2, operator.inputs, [real], "DequantizeOptions")
        return [first, replace(operator, inputs=[real])]

    def _extra(self, node: Node, what: str, tensor: PackedTensor) -> int:
        """Add a tensor that the graph does not have, under a new name; return its index."""
        name, n = f"{node.name}/{what}", 2
        while name in self.names:
            name, n = f"{node.name}/{what}_{n}", n + 1
        self.names.add(name)
        self.tensors.append(replace(tensor, name=name))
        return len(self.tensors) - 1

    def _constant(self, node: Node, what: str, values: Any, quant: Quant | None = None) -> int:
        """Add an int32 constant that the graph does not have as a tensor; return its index."""
        data = np.asarray(values, np.int32)
        return self._extra(node, what, PackedTensor("", data.shape, "int32", data, quant))

    def _operator(
        self, node: Node, kind: str, options: dict[str, Any], *, version: int = 2, extra: tuple[int, ...] = ()
    ) -> PackedOperator:
        """Return the operator of ``node``; ``extra`` are inputs that the graph holds as attributes."""
        inputs = [*(self._index(name) for name in node.inputs), *extra]
        outputs = [self._index(name) for name in node.outputs]
        return PackedOperator(node.op, version, inputs, outputs, kind, options)

    def _activation(self, node: Node) -> dict[str, int]:
        known = self.lib.ActivationFunctionType
        return {"FusedActivationFunction": getattr(known, node.attrs.activation.upper())}

    def _sliding(self, node: Node) -> dict[str, int]:
        kind = padding_kind(self.graph, node)
        assert kind is not None  # `with_pads` has made it so
        stride = {"StrideH": node.attrs.stride[0], "StrideW": node.attrs.stride[1]}
        return {"Padding": getattr(self.lib.Padding, kind), **stride, **self._activation(node)}

    def _dilated(self, node: Node) -> dict[str, int]:
        height, width = node.attrs.dilation
        return self._sliding(node) | {"DilationHFactor": height, "DilationWFactor": width}

    def _bias_quant(self, node: Node) -> Quant:
        """Return what the codes of a bias stand for: steps of ``s_x * s_w``."""
        x, w = (self.graph[name].quant for name in node.inputs[:2])
        assert x is not None
        assert w is not None
        scale = (np.float64(x.scale[0]) * w.scale).astype(np.float32)
        return Quant(scale, np.zeros(scale.size, np.int32), None if scale.size == 1 else 0)

    def _scale_bias(self, node: Node) -> bool:
        """Give the bias its scale; return whether there is one."""
        if len(node.inputs) > 2:
            self.graph.update(node.inputs[2], quant=self._bias_quant(node))
        return len(node.inputs) > 2

    def _conv(self, node: Node) -> PackedOperator:
        extra: tuple[int, ...] = ()
        if not self._scale_bias(node):  # of the three ops with a bias, the one that cannot do without
            zeros = np.zeros(self.graph[node.outputs[0]].shape[3])
            extra = (self._constant(node, "bias", zeros, self._bias_quant(node)),)
        return self._operator(node, "Conv2DOptions", self._dilated(node), version=3, extra=extra)

    def _depthwise(self, node: Node) -> PackedOperator:
        self._scale_bias(node)
        channels, outputs = (self.graph[name].shape[3] for name in (node.inputs[0], node.outputs[0]))
        options = self._dilated(node) | {"DepthMultiplier": outputs // channels}
        return self._operator(node, "DepthwiseConv2DOptions", options, version=3)

    def _fully_connected(self, node: Node) -> PackedOperator:
        version = 4 if self._scale_bias(node) else 6
        return self._operator(node, "FullyConnectedOptions", self._activation(node), version=version)

    def _add(self, node: Node) -> PackedOperator:
        return self._operator(node, "AddOptions", self._activation(node))

    def _sub(self, node: Node) -> PackedOperator:
        return self._operator(node, "SubOptions", self._activation(node))

    def _mul(self, node: Node) -> PackedOperator:
        return self._operator(node, "MulOptions", self._activation(node))

    def _concatenation(self, node: Node) -> PackedOperator:
        return self._operator(node, "ConcatenationOptions", {"Axis": node.attrs.axis})

    def _logistic(self, node: Node) -> PackedOperator:
        return self._operator(node, NO_OPTIONS, {})

    def _relu(self, node: Node) -> PackedOperator:
        return self._operator(node, NO_OPTIONS, {})

    def _relu_n1_to_1(self, node: Node) -> PackedOperator:
        return self._operator(node, NO_OPTIONS, {}, version=1)

    def _leaky_relu(self, node: Node) -> PackedOperator:
        return self._operator(node, "LeakyReluOptions", {"Alpha": node.attrs.alpha})

    def _hard_swish(self, node: Node) -> PackedOperator:
        return self._operator(node, "HardSwishOptions", {}, version=1)

    def _quantize(self, node: Node) -> PackedOperator:
        return self._operator(node, "QuantizeOptions", {}, version=1)

    def _resize(self, node: Node) -> PackedOperator:
        a, size = node.attrs, self._constant(node, "size", node.attrs.size)
        options = {"AlignCorners": a.align_corners, "HalfPixelCenters": a.half_pixel_centers}
        version = 3 if a.align_corners or a.half_pixel_centers else 2
        return self._operator(node, "ResizeNearestNeighborOptions", options, version=version, extra=(size,))

    def _pool(self, node: Node) -> PackedOperator:
        height, width = node.attrs.kernel
        options = self._sliding(node) | {"FilterHeight": height, "FilterWidth": width}
        return self._operator(node, "Pool2DOptions", options)

    def _mean(self, node: Node) -> PackedOperator:
        axes = self._constant(node, "axes", node.attrs.axes)
        return self._operator(node, "ReducerOptions", {"KeepDims": node.attrs.keepdims}, extra=(axes,))

    def _pad(self, node: Node) -> PackedOperator:
        amounts = self._constant(node, "paddings", node.attrs.padding)
        if node.attrs.value == 0:
            return self._operator(node, "PadOptions", {}, extra=(amounts,))
        code, quant = np.array([pad_code(self.graph, node)], np.int8), self.graph[node.outputs[0]].quant
        value = self._extra(node, "value", PackedTensor("", (1,), "int8", code, quant))
        return replace(self._operator(node, "PadV2Options", {}, extra=(amounts, value)), op="PADV2")

    def _reshape(self, node: Node) -> PackedOperator:
        shape = self._constant(node, "shape", node.attrs.shape)
        options = {"NewShape": list(node.attrs.shape)}
        return self._operator(node, "ReshapeOptions", options, version=1, extra=(shape,))

    def _softmax(self, node: Node) -> PackedOperator:
        return self._operator(node, "SoftmaxOptions", {"Beta": node.attrs.beta})
