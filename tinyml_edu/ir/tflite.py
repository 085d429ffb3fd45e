"""Read an int8 TensorFlow Lite file into a graph.

The file is a FlatBuffer; the ``tflite`` package has the accessors of its schema.  Nothing in the file is
trusted: offsets, counts, shapes, scales and attributes are checked, and the shape of every activation
has to be the one that its op computes.  SAME and VALID become explicit padding, FULLY_CONNECTED gets a
RESHAPE where its input is not (N, I), and QUANTIZE and DEQUANTIZE at the two ends are dropped, so that
the graph takes and returns int8 codes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UnsupportedOpError, UsageError
from . import attrs as A
from .graph import Graph, GraphError, Kind, Node, Quant, Tensor
from .int_params import SOFTMAX_SCALE, SOFTMAX_ZERO_POINT
from .lookup_tables import LOGISTIC_SCALE, LOGISTIC_ZERO_POINT
from .ops import OPS, infer_shape, same_padding
from .tflite_tensors import TensorReader, numbers, text

# What the accessors raise on offsets that lead nowhere.
_CORRUPT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, struct.error)


_MAX_KERNEL_SPAN = 1024
"""Rows or columns that a dilated kernel may span on an input that is smaller."""


def read_tflite(path: str | Path) -> Graph:
    """Return the int8 graph that a ``.tflite`` file holds.

    Parameters
    ----------
    path : str or Path
        A fully integer-quantized model, batch 1.

    Returns
    -------
    Graph
        int8 activations, int8 weights, int32 biases.  Constants are read-only views of the file's bytes.

    Raises
    ------
    DataError
        If the file is missing, truncated, corrupt, or contradicts itself.
    UnsupportedOpError
        If it holds an op, an option or a data type that the integer engine does not have.
    UsageError
        If the ``tflite`` package is not installed.

    References
    ----------
    .. [1] TensorFlow Lite 8-bit quantization specification.
       https://ai.google.dev/edge/litert/models/quantization_spec
    """
    path = Path(path)
    try:
        import tflite
    except ImportError:
        raise UsageError("reading .tflite needs one more package: pip install 'tinyml_edu[tflite]'") from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from None
    if data[4:8] != b"TFL3":
        raise DataError(f"{path} is not a TensorFlow Lite file (no TFL3 mark); give a .tflite model")
    try:
        return _Reader(tflite, data, path.stem).read()
    except GraphError as error:
        raise DataError(f"{path} contradicts itself: {error}; export the model again") from None
    except _CORRUPT as error:
        raise DataError(f"{path} is truncated or corrupt ({error}); copy or export it again") from None


class _Reader(TensorReader):
    """One pass over the operators of subgraph 0."""

    def __init__(self, lib: Any, data: bytes, name: str) -> None:
        super().__init__(lib, data, name)
        self.op_names = {v: k for k, v in vars(lib.BuiltinOperator).items() if isinstance(v, int)}
        self.readers: dict[str, Callable[[Any, list[int]], None]] = {
            "CONV_2D": self._conv,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "FULLY_CONNECTED": self._fully_connected,
            "ADD": self._add,
            "SUB": self._add,
            "MUL": self._mul,
            "CONCATENATION": self._concatenation,
            "LOGISTIC": self._logistic,
            "HARD_SWISH": self._elementwise,
            "RELU": self._elementwise,
            "RELU6": self._elementwise,
            "QUANTIZE": self._elementwise,
            "RESIZE_NEAREST_NEIGHBOR": self._resize,
            "AVERAGE_POOL_2D": self._pool,
            "MAX_POOL_2D": self._pool,
            "MEAN": self._mean,
            "PAD": self._pad,
            "RESHAPE": self._reshape,
            "SOFTMAX": self._softmax,
        }

    def read(self) -> Graph:
        operators = [self.sub.Operators(i) for i in range(self.sub.OperatorsLength())]
        kept = [(i, op) for i, op in enumerate(operators) if not self._drop_end(op)]
        self.graph.inputs = tuple(self.activation(i) for i in self.inputs)
        for name in self.graph.inputs:
            if self.graph[name].shape[0] != 1:
                raise UnsupportedOpError(
                    f"input {name!r} has shape {self.graph[name].shape}; export the model with batch size 1"
                )
        for position, op in kept:
            self.op = self._op_name(op)
            self.where = f"{self.op} at position {position}"
            self.position = position
            if self.op not in self.readers:
                raise UnsupportedOpError(f"{self.where} is not supported; supported: {', '.join(OPS)}")
            outputs = numbers(op.OutputsAsNumpy())
            if len(outputs) != 1:
                raise GraphError(f"{self.where} has {len(outputs)} outputs")
            self.out = outputs[0]
            self.readers[self.op](op, numbers(op.InputsAsNumpy()))
        self.graph.outputs = tuple(self.activation(i) for i in self.outputs)
        return self._checked()

    def _checked(self) -> Graph:
        graph = self.graph
        if not (graph.nodes and graph.inputs and graph.outputs):
            raise GraphError("there is no operation, no input or no output")
        if len(set(graph.inputs)) < len(graph.inputs):
            raise GraphError("an input is listed twice")
        if any(graph[name].kind is Kind.CONSTANT for name in graph.outputs):
            raise GraphError("an output is a constant")
        graph.validate()
        for node in graph.nodes:
            OPS[node.op].params(graph, node)
        return graph

    def _op_name(self, op: Any) -> str:
        code = self.model.OperatorCodes(op.OpcodeIndex())
        # Files before schema 3a hold the code in an int8 field, later ones in an int32 field.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if number == self.lib.BuiltinOperator.CUSTOM:
            return f"custom op {text(code.CustomCode())}"
        return self.op_names.get(number, f"op number {number}")

    def _drop_end(self, op: Any) -> bool:
        """Skip a QUANTIZE of a float input or a DEQUANTIZE to a float output: move that end inwards."""
        name = self._op_name(op)
        if name not in ("QUANTIZE", "DEQUANTIZE"):
            return False
        (source,), (target,) = numbers(op.InputsAsNumpy()), numbers(op.OutputsAsNumpy())
        types = self.tensor(source).Type(), self.tensor(target).Type()
        int8, float32 = self.lib.TensorType.INT8, self.lib.TensorType.FLOAT32
        if name == "QUANTIZE" and source in self.inputs and types == (float32, int8):
            self.inputs[self.inputs.index(source)] = target
            return True
        if name == "DEQUANTIZE" and target in self.outputs and types == (int8, float32):
            self.outputs[self.outputs.index(target)] = source
            return True
        return False

    def _options(self, op: Any, kind: str) -> Any:
        if op.BuiltinOptionsType() != getattr(self.lib.BuiltinOptions, kind):
            raise GraphError(f"{self.where} has no {kind}")
        options, table = getattr(self.lib, kind)(), op.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options

    def _activation_name(self, options: Any) -> str:
        code, known = options.FusedActivationFunction(), self.lib.ActivationFunctionType
        names = {known.NONE: "none", known.RELU: "relu", known.RELU6: "relu6"}
        if code not in names:
            raise UnsupportedOpError(
                f"{self.where} has fused activation {code}; supported: none, relu, relu6"
            )
        return names[code]

    def _node(self, inputs: tuple[str, ...], attrs: Any, out: str, *, op: str = "", suffix: str = "") -> None:
        node = Node(
            f"{(op or self.op).lower()}_{self.position}{suffix}", op or self.op, inputs, (out,), attrs
        )
        shape = infer_shape(self.graph, node)
        if shape != self.graph[out].shape:
            raise GraphError(f"{self.where} makes {shape}, but its output says {self.graph[out].shape}")
        self.graph.nodes.append(node)

    def _new(self, stem: str, shape: tuple[int, ...], quant: Quant | None) -> str:
        return self.graph.add(Tensor(self.graph.unique(stem), shape, "int8", Kind.ACTIVATION, quant=quant))

    def _weighted(self, ids: list[int], axis: int) -> tuple[str, ...]:
        """Return the names of (x, w[, bias]) after checking the constants; ``axis`` of w is per channel."""
        x, w = self.activation(ids[0]), self.name(ids[1])
        weights = self.graph[w]
        if weights.kind is not Kind.CONSTANT or weights.dtype != "int8" or weights.quant is None:
            raise UnsupportedOpError(f"{self.where} needs constant int8 weights with a scale")
        if np.any(weights.quant.zero_point):
            raise UnsupportedOpError(f"{self.where} has weights with a zero point other than 0")
        if weights.quant.scale.size > 1 and weights.quant.axis != axis:
            raise UnsupportedOpError(f"{self.where} has a scale for each index of axis {weights.quant.axis}")
        if len(ids) < 3 or ids[2] == -1:
            return x, w
        bias = self.name(ids[2])
        if self.graph[bias].kind is not Kind.CONSTANT or self.graph[bias].dtype != "int32":
            raise UnsupportedOpError(f"{self.where} needs a constant int32 bias")
        x_quant = self.graph[x].quant
        assert x_quant is not None
        scale = (np.float64(x_quant.scale[0]) * weights.quant.scale).astype(np.float32)
        along = None if scale.size == 1 else 0
        self.graph.update(bias, quant=Quant(scale, np.zeros(scale.size, np.int32), along))
        return x, w, bias

    def _sliding(self, options: Any, x: str, kernel: tuple[int, int]) -> dict[str, Any]:
        """Return stride, dilation and explicit padding of a convolution or pooling."""
        stride = options.StrideH(), options.StrideW()
        dilation = (1, 1)
        if hasattr(options, "DilationHFactor"):
            dilation = options.DilationHFactor(), options.DilationWFactor()
        shape = self.graph[x].shape
        if len(shape) != 4 or min(*stride, *dilation, *kernel) < 1:
            raise GraphError(f"{self.where}: input {shape}, kernel {kernel}, stride {stride}")
        for size, k, d in zip(shape[1:3], kernel, dilation, strict=True):
            # SAME would pad a small input up to a kernel of any size, and memory with it.
            if (k - 1) * d + 1 > max(size, _MAX_KERNEL_SPAN):
                span = (k - 1) * d + 1
                raise UnsupportedOpError(
                    f"{self.where} has a kernel that spans {span} rows or columns of {size}"
                )
        padding = (0, 0, 0, 0)
        if options.Padding() == self.lib.Padding.SAME:
            top, bottom = same_padding(shape[1], kernel[0], stride[0], dilation[0])
            left, right = same_padding(shape[2], kernel[1], stride[1], dilation[1])
            padding = (top, left, bottom, right)
        elif options.Padding() != self.lib.Padding.VALID:
            raise GraphError(f"{self.where} has padding {options.Padding()}")
        return {"stride": stride, "dilation": dilation, "padding": padding}

    def _conv(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "Conv2DOptions")
        names = self._weighted(ids, axis=0)
        x, w = self.graph[names[0]].shape, self.graph[names[1]].shape
        if len(x) == len(w) == 4 and w[3] < x[3] and x[3] % w[3] == 0:
            raise UnsupportedOpError(f"{self.where} is a grouped convolution ({x[3] // w[3]} groups)")
        slide = self._sliding(options, names[0], self._kernel(w))
        attrs = A.Conv2D(**slide, activation=self._activation_name(options))
        self._node(names, attrs, self.activation(self.out))

    def _depthwise(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "DepthwiseConv2DOptions")
        names = self._weighted(ids, axis=3)
        slide = self._sliding(options, names[0], self._kernel(self.graph[names[1]].shape))
        attrs = A.DepthwiseConv2D(**slide, activation=self._activation_name(options))
        self._node(names, attrs, self.activation(self.out))

    def _kernel(self, w: tuple[int, ...]) -> tuple[int, int]:
        if len(w) != 4:
            raise GraphError(f"{self.where} has weights of shape {w}")
        return w[1], w[2]

    def _fully_connected(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "FullyConnectedOptions")
        if options.WeightsFormat() != 0:
            raise UnsupportedOpError(f"{self.where} has shuffled weights; export it for the default format")
        names = self._weighted(ids, axis=0)
        x, w, out = self.graph[names[0]], self.graph[names[1]].shape, self.activation(self.out)
        attrs = A.FullyConnected(self._activation_name(options))
        if len(w) != 2 or prod(x.shape) % w[1]:
            raise GraphError(f"{self.where}: an input {x.shape} does not fit weights {w}")
        rows = prod(x.shape) // w[1]
        if x.shape != (rows, w[1]):
            flat = self._new(f"{x.name}_flat", (rows, w[1]), x.quant)
            self._node((x.name,), A.Reshape((rows, w[1])), flat, op="RESHAPE", suffix="_in")
            names = (flat, *names[1:])
        target = self.graph[out]
        if not options.KeepNumDims() or target.shape == (rows, w[0]):
            return self._node(names, attrs, out)
        rect = self._new(f"{out}_flat", (rows, w[0]), target.quant)
        self._node(names, attrs, rect)
        return self._node((rect,), A.Reshape(target.shape), out, op="RESHAPE", suffix="_out")

    def _add(self, op: Any, ids: list[int]) -> None:
        attrs, kind = (A.Add, "AddOptions") if self.op == "ADD" else (A.Sub, "SubOptions")
        activation = self._activation_name(self._options(op, kind))
        x1, x2 = (self.activation(i, constant=True) for i in ids)
        if self.graph[x1].shape != self.graph[x2].shape:
            shapes = f"{self.graph[x1].shape} and {self.graph[x2].shape}"
            raise UnsupportedOpError(f"{self.where} broadcasts {shapes}; {self.op} needs two equal shapes")
        self._node((x1, x2), attrs(activation), self.activation(self.out))

    def _mul(self, op: Any, ids: list[int]) -> None:
        activation, out = self._activation_name(self._options(op, "MulOptions")), self.activation(self.out)
        shape = self.graph[out].shape
        x1, x2 = (self._operand(i, len(shape)) for i in ids)
        if self.graph[x1].shape != shape:  # a product is the same in either order
            x1, x2 = x2, x1
        shapes = self.graph[x1].shape, self.graph[x2].shape
        if shapes[0] != shape or len(shapes[1]) != len(shape):
            raise UnsupportedOpError(
                f"{self.where} broadcasts {shapes[0]} and {shapes[1]}; one input must have the output's shape"
            )
        self._node((x1, x2), A.Mul(activation), out)

    def _operand(self, index: int, rank: int) -> str:
        """Return an int8 tensor, a constant with leading axes of length 1 up to ``rank``."""
        name = self.activation(index, constant=True)
        tensor = self.graph[name]
        if tensor.data is None or len(tensor.shape) >= rank:
            return name
        data = tensor.data.reshape((1,) * (rank - len(tensor.shape)) + tensor.shape)
        wide = self.graph.unique(f"{name}_{rank}d")
        return self.graph.add(replace(tensor, name=wide, shape=data.shape, data=data))

    def _concatenation(self, op: Any, ids: list[int]) -> None:
        options, out = self._options(op, "ConcatenationOptions"), self.activation(self.out)
        if self._activation_name(options) != "none":
            raise UnsupportedOpError(f"{self.where} has a fused activation; the integer kernel has none")
        inputs = tuple(self.activation(i, constant=True) for i in ids)
        for name in inputs:
            self._same_quant(name, out)
        rank = len(self.graph[out].shape)
        axis = options.Axis() + (rank if options.Axis() < 0 else 0)
        if axis == 0:
            raise UnsupportedOpError(f"{self.where} joins along the batch")
        self._node(inputs, A.Concatenation(axis), out)

    def _elementwise(self, _: Any, ids: list[int]) -> None:
        self._node((self.activation(ids[0]),), A.Elementwise(), self.activation(self.out))

    def _logistic(self, op: Any, ids: list[int]) -> None:
        quant = self.graph[self.activation(self.out)].quant
        assert quant is not None
        if quant.item() != (LOGISTIC_SCALE, LOGISTIC_ZERO_POINT):
            raise UnsupportedOpError(f"{self.where}: the output must have scale 1/256 and zero point -128")
        self._elementwise(op, ids)

    def _resize(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "ResizeNearestNeighborOptions")
        x, out, size = self.activation(ids[0]), self.activation(self.out), self.integers(ids[1])
        if size.shape != (2,):
            raise GraphError(f"{self.where} has a size of shape {size.shape}")
        self._same_quant(x, out)
        corners, centers = bool(options.AlignCorners()), bool(options.HalfPixelCenters())
        if corners and centers:
            raise UnsupportedOpError(f"{self.where} has align_corners and half_pixel_centers; choose one")
        self._node((x,), A.ResizeNearest((int(size[0]), int(size[1])), corners, centers), out)

    def _pool(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "Pool2DOptions")
        x, out = self.activation(ids[0]), self.activation(self.out)
        kernel = options.FilterHeight(), options.FilterWidth()
        slide = self._sliding(options, x, kernel)
        del slide["dilation"]
        self._same_quant(x, out)
        self._node((x,), A.Pool2D(kernel, **slide, activation=self._activation_name(options)), out)

    def _mean(self, op: Any, ids: list[int]) -> None:
        x = self.activation(ids[0])
        rank = len(self.graph[x].shape)
        axes = tuple(sorted({int(a) + rank if a < 0 else int(a) for a in self.integers(ids[1]).reshape(-1)}))
        if 0 in axes:
            raise UnsupportedOpError(f"{self.where} averages over the batch")
        attrs = A.Mean(axes, bool(self._options(op, "ReducerOptions").KeepDims()))
        self._node((x,), attrs, self.activation(self.out))

    def _pad(self, _: Any, ids: list[int]) -> None:
        x, out, table = self.activation(ids[0]), self.activation(self.out), self.integers(ids[1])
        if table.ndim != 2 or table.shape[1] != 2:
            raise GraphError(f"{self.where} has a padding table of shape {table.shape}")
        if len(table) and table[0].any():
            raise UnsupportedOpError(f"{self.where} pads the batch")
        self._same_quant(x, out)
        self._node((x,), A.Pad(tuple((int(a), int(b)) for a, b in table)), out)

    def _reshape(self, _: Any, ids: list[int]) -> None:
        x, out = self.activation(ids[0]), self.activation(self.out)
        self._same_quant(x, out)
        self._node((x,), A.Reshape(self.graph[out].shape), out)

    def _softmax(self, op: Any, ids: list[int]) -> None:
        beta = float(self._options(op, "SoftmaxOptions").Beta())
        x, out = self.activation(ids[0]), self.activation(self.out)
        quant = self.graph[out].quant
        assert quant is not None
        scale, zero_point = quant.item()
        if abs(scale - SOFTMAX_SCALE) > 1e-3 * SOFTMAX_SCALE or zero_point != SOFTMAX_ZERO_POINT:
            raise UnsupportedOpError(f"{self.where}: the output must have scale 1/256 and zero point -128")
        if not 0 < beta < 2**16:
            raise GraphError(f"{self.where} has beta {beta}")
        self._node((x,), A.Softmax(beta), out)

    def _same_quant(self, x: str, out: str) -> None:
        a, b = self.graph[x].quant, self.graph[out].quant
        assert a is not None
        assert b is not None
        (s1, z1), (s2, z2) = a.item(), b.item()
        if z1 != z2 or abs(s1 - s2) > 1e-6 * max(s1, s2):
            raise UnsupportedOpError(f"{self.where} changes the scale from {s1:g} to {s2:g}; this op cannot")
