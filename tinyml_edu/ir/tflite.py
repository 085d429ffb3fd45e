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
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UnsupportedOpError, UsageError
from . import attrs as A
from .graph import Graph, GraphError, Kind, Node, Quant, Tensor
from .int_params import SOFTMAX_SCALE, SOFTMAX_ZERO_POINT
from .ops import OPS, infer_shape, same_padding

# What the accessors raise on offsets that lead nowhere.
_CORRUPT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, struct.error)

_MAX_ELEMENTS = 2**31 - 1
"""A tensor with more elements than this cannot come from a TensorFlow Lite file that works."""


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


class _Reader:
    """One pass over subgraph 0; ``lib`` is the ``tflite`` package."""

    def __init__(self, lib: Any, data: bytes, name: str) -> None:
        self.lib = lib
        self.model = lib.Model.GetRootAsModel(data, 0)
        if self.model.SubgraphsLength() < 1:
            raise ValueError("no subgraph")
        self.sub = self.model.Subgraphs(0)
        self.graph = Graph(name)
        self.names: dict[int, str] = {}
        self.inputs = _numbers(self.sub.InputsAsNumpy())
        self.outputs = _numbers(self.sub.OutputsAsNumpy())
        self.where = ""
        self.readers: dict[str, Callable[[Any, list[int]], None]] = {
            "CONV_2D": self._conv,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "FULLY_CONNECTED": self._fully_connected,
            "ADD": self._add,
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
        self.graph.inputs = tuple(self._activation(i) for i in self.inputs)
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
            outputs = _numbers(op.OutputsAsNumpy())
            if len(outputs) != 1:
                raise GraphError(f"{self.where} has {len(outputs)} outputs")
            self.out = outputs[0]
            self.readers[self.op](op, _numbers(op.InputsAsNumpy()))
        self.graph.outputs = tuple(self._activation(i) for i in self.outputs)
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

    # -- operators ---------------------------------------------------------------------------------------

    def _op_name(self, op: Any) -> str:
        code = self.model.OperatorCodes(op.OpcodeIndex())
        # Files before schema 3a hold the code in an int8 field, later ones in an int32 field.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if number == self.lib.BuiltinOperator.CUSTOM:
            return f"custom op {_text(code.CustomCode())}"
        known = {v: k for k, v in vars(self.lib.BuiltinOperator).items() if isinstance(v, int)}
        return known.get(number, f"op number {number}")

    def _drop_end(self, op: Any) -> bool:
        """Skip a QUANTIZE of a float input or a DEQUANTIZE to a float output: move that end inwards."""
        name = self._op_name(op)
        if name not in ("QUANTIZE", "DEQUANTIZE"):
            return False
        (source,), (target,) = _numbers(op.InputsAsNumpy()), _numbers(op.OutputsAsNumpy())
        types = self._tensor(source).Type(), self._tensor(target).Type()
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
        x, w = self._activation(ids[0]), self._name(ids[1])
        weights = self.graph[w]
        if weights.kind is not Kind.CONSTANT or weights.dtype != "int8" or weights.quant is None:
            raise UnsupportedOpError(f"{self.where} needs constant int8 weights with a scale")
        if np.any(weights.quant.zero_point):
            raise UnsupportedOpError(f"{self.where} has weights with a zero point other than 0")
        if weights.quant.scale.size > 1 and weights.quant.axis != axis:
            raise UnsupportedOpError(f"{self.where} has a scale for each index of axis {weights.quant.axis}")
        if len(ids) < 3 or ids[2] == -1:
            return x, w
        bias = self._name(ids[2])
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
        self._node(names, attrs, self._activation(self.out))

    def _depthwise(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "DepthwiseConv2DOptions")
        names = self._weighted(ids, axis=3)
        slide = self._sliding(options, names[0], self._kernel(self.graph[names[1]].shape))
        attrs = A.DepthwiseConv2D(**slide, activation=self._activation_name(options))
        self._node(names, attrs, self._activation(self.out))

    def _kernel(self, w: tuple[int, ...]) -> tuple[int, int]:
        if len(w) != 4:
            raise GraphError(f"{self.where} has weights of shape {w}")
        return w[1], w[2]

    def _fully_connected(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "FullyConnectedOptions")
        if options.WeightsFormat() != 0:
            raise UnsupportedOpError(f"{self.where} has shuffled weights; export it for the default format")
        names = self._weighted(ids, axis=0)
        x, w, out = self.graph[names[0]], self.graph[names[1]].shape, self._activation(self.out)
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
        activation = self._activation_name(self._options(op, "AddOptions"))
        x1, x2 = (self._activation(i, constant=True) for i in ids)
        if self.graph[x1].shape != self.graph[x2].shape:
            shapes = f"{self.graph[x1].shape} and {self.graph[x2].shape}"
            raise UnsupportedOpError(f"{self.where} broadcasts {shapes}; ADD needs two equal shapes")
        self._node((x1, x2), A.Add(activation), self._activation(self.out))

    def _pool(self, op: Any, ids: list[int]) -> None:
        options = self._options(op, "Pool2DOptions")
        x, out = self._activation(ids[0]), self._activation(self.out)
        kernel = options.FilterHeight(), options.FilterWidth()
        slide = self._sliding(options, x, kernel)
        del slide["dilation"]
        self._same_quant(x, out)
        self._node((x,), A.Pool2D(kernel, **slide, activation=self._activation_name(options)), out)

    def _mean(self, op: Any, ids: list[int]) -> None:
        x = self._activation(ids[0])
        rank = len(self.graph[x].shape)
        axes = tuple(sorted({int(a) + rank if a < 0 else int(a) for a in self._integers(ids[1]).reshape(-1)}))
        if 0 in axes:
            raise UnsupportedOpError(f"{self.where} averages over the batch")
        attrs = A.Mean(axes, bool(self._options(op, "ReducerOptions").KeepDims()))
        self._node((x,), attrs, self._activation(self.out))

    def _pad(self, op: Any, ids: list[int]) -> None:
        x, out, table = self._activation(ids[0]), self._activation(self.out), self._integers(ids[1])
        if table.ndim != 2 or table.shape[1] != 2:
            raise GraphError(f"{self.where} has a padding table of shape {table.shape}")
        if len(table) and table[0].any():
            raise UnsupportedOpError(f"{self.where} pads the batch")
        self._same_quant(x, out)
        self._node((x,), A.Pad(tuple((int(a), int(b)) for a, b in table)), out)

    def _reshape(self, op: Any, ids: list[int]) -> None:
        x, out = self._activation(ids[0]), self._activation(self.out)
        self._same_quant(x, out)
        self._node((x,), A.Reshape(self.graph[out].shape), out)

    def _softmax(self, op: Any, ids: list[int]) -> None:
        beta = float(self._options(op, "SoftmaxOptions").Beta())
        x, out = self._activation(ids[0]), self._activation(self.out)
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

    # -- tensors -----------------------------------------------------------------------------------------

    def _tensor(self, index: int) -> Any:
        if not 0 <= index < self.sub.TensorsLength():
            raise IndexError(f"tensor {index} does not exist")
        return self.sub.Tensors(index)

    def _activation(self, index: int, *, constant: bool = False) -> str:
        """Return the name of an int8 tensor with one scale."""
        name = self._name(index)
        tensor = self.graph[name]
        if tensor.dtype != "int8":
            raise UnsupportedOpError(
                f"tensor {name!r} is {tensor.dtype}; convert the model with full integer quantization (int8)"
            )
        if tensor.quant is None or tensor.quant.scale.size != 1:
            raise UnsupportedOpError(f"activation {name!r} needs exactly one scale")
        if tensor.kind is Kind.CONSTANT and not constant:
            raise UnsupportedOpError(f"{self.where}: tensor {name!r} is a constant where data should flow")
        return name

    def _name(self, index: int) -> str:
        """Import tensor ``index`` once and return its name."""
        if index not in self.names:
            source = self._tensor(index)
            name = self.graph.unique(_text(source.Name()) or f"tensor_{index}")
            shape = tuple(_numbers(source.ShapeAsNumpy()))
            if any(n < 1 for n in shape) or not shape or prod(shape) > _MAX_ELEMENTS:
                raise GraphError(f"tensor {name!r} has shape {shape}")
            if source.Sparsity() is not None or source.IsVariable():
                raise UnsupportedOpError(
                    f"tensor {name!r} is sparse or a variable; export a plain int8 model"
                )
            dtype, data = self._dtype(name, source), None
            kind = Kind.INPUT if index in self.inputs else Kind.ACTIVATION
            if kind is Kind.ACTIVATION and self._has_data(source):
                kind, data = Kind.CONSTANT, self._data(source, dtype, shape)
            quant = self._quant(name, source, shape)
            self.names[index] = self.graph.add(Tensor(name, shape, dtype, kind, data, quant))
        return self.names[index]

    def _dtype(self, name: str, source: Any) -> str:
        types = self.lib.TensorType
        known = {types.FLOAT32: "float32", types.INT32: "int32", types.INT8: "int8"}
        if source.Type() not in known:
            names = {v: k for k, v in vars(types).items() if isinstance(v, int)}
            given = names.get(source.Type(), source.Type())
            raise UnsupportedOpError(f"tensor {name!r} is {given}; the engine has int8 data and int32 biases")
        return known[source.Type()]

    def _has_data(self, source: Any) -> bool:
        # Buffer 0 is empty by convention and stands for "none".
        return source.Buffer() > 0 and self.model.Buffers(source.Buffer()).DataLength() > 0

    def _data(self, source: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        raw = self.model.Buffers(source.Buffer()).DataAsNumpy()
        wanted = prod(shape) * np.dtype(dtype).itemsize
        if raw.size != wanted:
            raise ValueError(f"a constant of shape {shape} needs {wanted} bytes, the file has {raw.size}")
        return raw.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def _integers(self, index: int) -> np.ndarray:
        """Return a constant int32 or int64 tensor that holds axes or paddings."""
        source = self._tensor(index)
        types = {self.lib.TensorType.INT32: "int32", self.lib.TensorType.INT64: "int64"}
        if source.Type() not in types or not self._has_data(source):
            raise UnsupportedOpError(f"{self.where} needs its axes or paddings as an integer constant")
        return self._data(source, types[source.Type()], tuple(_numbers(source.ShapeAsNumpy())))

    def _quant(self, name: str, source: Any, shape: tuple[int, ...]) -> Quant | None:
        info = source.Quantization()
        if info is None or info.ScaleLength() == 0:
            return None
        scale = np.array(info.ScaleAsNumpy(), np.float32)
        zero_point = np.array(_numbers(info.ZeroPointAsNumpy()) or [0], np.int64)
        if not np.all(np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny)):
            raise GraphError(f"tensor {name!r} has a scale that is not a positive number")
        if np.any((zero_point < -128) | (zero_point > 127)) or zero_point.size not in (1, scale.size):
            raise GraphError(f"tensor {name!r} has a zero point that is no int8 code")
        axis = None if scale.size == 1 else info.QuantizedDimension()
        if axis is not None and not (0 <= axis < len(shape) and shape[axis] == scale.size):
            raise GraphError(f"tensor {name!r} of shape {shape} has {scale.size} scales on axis {axis}")
        return Quant(scale, np.broadcast_to(zero_point, scale.shape).astype(np.int32), axis)


def _numbers(values: Any) -> list[int]:
    """Return a vector as ints; the accessors give 0 for a vector that is not there."""
    return [] if isinstance(values, int) else [int(v) for v in values]


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
