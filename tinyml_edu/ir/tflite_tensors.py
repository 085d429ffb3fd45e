"""Import the tensors of a TensorFlow Lite file: shapes, types, scales and constants, all checked."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..errors import UnsupportedOpError
from .graph import Graph, GraphError, Kind, Quant, Tensor

_MAX_ELEMENTS = 2**31 - 1
"""A tensor with more elements than this cannot come from a TensorFlow Lite file that works."""


class TensorReader:
    """Tensors of subgraph 0 by index; ``lib`` is the ``tflite`` package.

    ``where`` says which operator is being read, for messages.  ``codes_of`` is, for a float tensor that was
    dequantized, the index of its codes, ``begins_at``, for a float input, that of the codes it becomes, and
    ``unsigned`` holds the indices of the tensors that are uint8 in the file.
    """

    op = ""

    def __init__(self, lib: Any, data: bytes, name: str) -> None:
        self.lib = lib
        self.model = lib.Model.GetRootAsModel(data, 0)
        if self.model.SubgraphsLength() < 1:
            raise ValueError("no subgraph")
        self.sub = self.model.Subgraphs(0)
        self.graph = Graph(name)
        self.names: dict[int, str] = {}
        self.inputs = numbers(self.sub.InputsAsNumpy())
        self.outputs = numbers(self.sub.OutputsAsNumpy())
        self.where = ""
        self.codes_of: dict[int, int] = {}
        self.begins_at: dict[int, int] = {}
        self.unsigned: set[int] = set()

    def tensor(self, index: int) -> Any:
        if not 0 <= index < self.sub.TensorsLength():
            raise IndexError(f"tensor {index} does not exist")
        return self.sub.Tensors(index)

    def activation(self, index: int, *, constant: bool = False) -> str:
        """Return the name of an int8 tensor with one scale."""
        name = self.name(index)
        tensor = self.graph[name]
        if tensor.dtype != "int8":
            raise UnsupportedOpError(
                f"tensor {name!r} is {tensor.dtype}; convert the model with full integer quantization (int8)"
            )
        if index in self.unsigned and self.op not in ("QUANTIZE", "DEQUANTIZE", ""):
            raise UnsupportedOpError(
                f"{self.where} computes with uint8, {name!r}; convert the model to int8, uint8 may only be "
                "at its ends"
            )
        if tensor.quant is None or tensor.quant.scale.size != 1:
            raise UnsupportedOpError(f"activation {name!r} needs exactly one scale")
        if not tensor.shape and tensor.kind is not Kind.CONSTANT:
            raise UnsupportedOpError(f"activation {name!r} is a scalar; the first axis must be the batch")
        if tensor.kind is Kind.CONSTANT and not constant:
            raise UnsupportedOpError(f"{self.where}: tensor {name!r} is a constant where data should flow")
        return name

    def name(self, index: int) -> str:
        """Import tensor ``index`` once and return its name."""
        if index not in self.names:
            source = self.tensor(index)
            name = self.graph.unique(text(source.Name()) or f"tensor_{index}")
            shape = tuple(numbers(source.ShapeAsNumpy()))
            if any(n < 1 for n in shape) or prod(shape) > _MAX_ELEMENTS:
                raise GraphError(f"tensor {name!r} has shape {shape}")
            if source.Sparsity() is not None or source.IsVariable():
                raise UnsupportedOpError(
                    f"tensor {name!r} is sparse or a variable; export a plain int8 model"
                )
            data, kind = None, Kind.INPUT if index in self.inputs else Kind.ACTIVATION
            if kind is Kind.ACTIVATION and self._has_data(source):
                kind = Kind.CONSTANT
            offset = 128 if self.type_of(index) == "UINT8" and kind is not Kind.CONSTANT else 0
            dtype = "int8" if offset else self._dtype(name, source)
            if kind is Kind.CONSTANT:
                data = self._data(source, dtype, shape)
            quant = self._quant(name, source, shape, offset)
            if offset:
                self.unsigned.add(index)
            self.names[index] = self.graph.add(Tensor(name, shape, dtype, kind, data, quant))
        return self.names[index]

    def _dtype(self, name: str, source: Any) -> str:
        types = self.lib.TensorType
        known = {types.FLOAT32: "float32", types.INT32: "int32", types.INT8: "int8"}
        if source.Type() not in known:
            names = {v: k for k, v in vars(types).items() if isinstance(v, int)}
            given = names.get(source.Type(), f"type {source.Type()}")
            raise UnsupportedOpError(f"tensor {name!r} is {given}; the engine has int8 data and int32 biases")
        return known[source.Type()]

    def type_of(self, index: int) -> str:
        """Return the name of the type of tensor ``index``, such as ``"INT8"``."""
        names = {v: k for k, v in vars(self.lib.TensorType).items() if isinstance(v, int)}
        number = self.tensor(index).Type()
        return names.get(number, f"type {number}")

    def quant_at(self, index: int) -> tuple[float, int]:
        """Return scale and zero point of activation ``index``, as int8 codes."""
        quant = self.graph[self.activation(index)].quant
        assert quant is not None  # `activation` has checked it
        return quant.item()

    def rename(self, index: int, to: int) -> None:
        """Let tensor ``index`` be tensor ``to``."""
        self.names[index] = self.name(to)

    def has_data(self, index: int) -> bool:
        """Return whether tensor ``index`` is a constant."""
        return index >= 0 and self._has_data(self.tensor(index))

    def _has_data(self, source: Any) -> bool:
        # Buffer 0 is empty by convention and stands for "none".
        return source.Buffer() > 0 and self.model.Buffers(source.Buffer()).DataLength() > 0

    def _data(self, source: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        raw = self.model.Buffers(source.Buffer()).DataAsNumpy()
        wanted = prod(shape) * np.dtype(dtype).itemsize
        if raw.size != wanted:
            raise ValueError(f"a constant of shape {shape} needs {wanted} bytes, the file has {raw.size}")
        return raw.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def integers(self, index: int) -> np.ndarray:
        """Return a constant int32 or int64 tensor that holds axes or paddings."""
        source = self.tensor(index)
        types = {self.lib.TensorType.INT32: "int32", self.lib.TensorType.INT64: "int64"}
        if source.Type() not in types or not self._has_data(source):
            raise UnsupportedOpError(f"{self.where} needs its axes or paddings as an integer constant")
        return self._data(source, types[source.Type()], tuple(numbers(source.ShapeAsNumpy())))

    def _quant(self, name: str, source: Any, shape: tuple[int, ...], offset: int) -> Quant | None:
        """Return the quantization; ``offset`` is what a code has more in the file."""
        info = source.Quantization()
        if info is None or info.ScaleLength() == 0:
            return None
        scale = np.array(info.ScaleAsNumpy(), np.float32)
        zero_point = np.array(numbers(info.ZeroPointAsNumpy()) or [0], np.int64) - offset
        if not np.all(np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny)):
            raise GraphError(f"tensor {name!r} has a scale that is not a positive number")
        if np.any((zero_point < -128) | (zero_point > 127)) or zero_point.size not in (1, scale.size):
            raise GraphError(f"tensor {name!r} has a zero point that is no int8 code")
        axis = None if scale.size == 1 else info.QuantizedDimension()
        if axis is not None and not (0 <= axis < len(shape) and shape[axis] == scale.size):
            raise GraphError(f"tensor {name!r} of shape {shape} has {scale.size} scales on axis {axis}")
        return Quant(scale, np.broadcast_to(zero_point, scale.shape).astype(np.int32), axis)


def numbers(values: Any) -> list[int]:
    """Return a vector as ints; the accessors give 0 for a vector that is not there."""
    return [] if isinstance(values, int) else [int(v) for v in values]


def text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
