"""Pack tensors and operators into the bytes of a TensorFlow Lite file.

The file is a FlatBuffer [1]_: whatever an object points to is written before the object itself, and the
root comes last.  The ``tflite`` package has the accessors of the schema.

References
----------
.. [1] https://flatbuffers.dev/internals
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .graph import Quant

SCHEMA_VERSION = 3
FILE_IDENTIFIER = b"TFL3"

NO_OPTIONS = "NONE"
"""Kind of an operator without an options table."""

DATA_ALIGNMENT = 16
"""Bytes on which constants start, so that a runtime can use them in place (schema: ``force_align: 16``)."""


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A tensor as the file has it; ``data`` is None for an activation."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    quant: Quant | None = None


@dataclass(frozen=True)
class PackedOperator:
    """An operator as the file has it.

    Attributes
    ----------
    op, version : str, int
        Name in ``BuiltinOperator`` and version of that operator.
    inputs, outputs : sequence of int
        Indices of tensors; -1 is an optional input that is not there.
    kind : str
        Name of the options table, such as ``"Conv2DOptions"``, or `NO_OPTIONS`.
    options : mapping of str to int, float, bool or list of int
        Fields of that table by their name in the schema's accessors, such as ``StrideH``.
    """

    op: str
    version: int
    inputs: Sequence[int]
    outputs: Sequence[int]
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Packer:
    """One FlatBuffer in the making; ``lib`` is the ``tflite`` package."""

    def __init__(self, lib: Any) -> None:
        import flatbuffers

        self.lib = lib
        self.builder = flatbuffers.Builder(1 << 16)
        self.buffers = [self._table("Buffer")]  # buffer 0 is empty by convention and stands for "none"

    def pack(
        self,
        tensors: Sequence[PackedTensor],
        operators: Sequence[PackedOperator],
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        name: str,
        description: str,
        metadata: Mapping[str, bytes],
    ) -> bytes:
        """Return the file: one subgraph ``name`` with these tensors, operators and ends."""
        codes = sorted({(getattr(self.lib.BuiltinOperator, o.op), o.version) for o in operators})
        packed = [self._tensor(t) for t in tensors]
        nodes = [self._operator(o, codes) for o in operators]
        subgraph = self._table(
            "SubGraph",
            Tensors=self._vector(packed, self.builder.PrependUOffsetTRelative),
            Inputs=self._ints(inputs),
            Outputs=self._ints(outputs),
            Operators=self._vector(nodes, self.builder.PrependUOffsetTRelative),
            Name=self.builder.CreateString(name),
        )
        notes = [self._metadata(key, value) for key, value in metadata.items()]
        offsets = self.builder.PrependUOffsetTRelative
        model = self._table(
            "Model",
            Version=SCHEMA_VERSION,
            OperatorCodes=self._vector([self._code(*code) for code in codes], offsets),
            Subgraphs=self._vector([subgraph], offsets),
            Description=self.builder.CreateString(description),
            Buffers=self._vector(self.buffers, offsets),
            Metadata=self._vector(notes, offsets),
        )
        self.builder.Finish(model, file_identifier=FILE_IDENTIFIER)
        return bytes(self.builder.Output())

    def _table(self, kind: str, **fields: Any) -> int:
        """Write a table whose children are already written; return its offset."""
        getattr(self.lib, f"{kind}Start")(self.builder)
        for name, value in fields.items():
            getattr(self.lib, f"{kind}Add{name}")(self.builder, value)
        return getattr(self.lib, f"{kind}End")(self.builder)

    def _vector(self, values: Sequence[Any], prepend: Callable[[Any], None], size: int = 4) -> int:
        """Write a vector of elements of ``size`` bytes, last element first; return its offset."""
        self.builder.StartVector(size, len(values), size)
        for value in reversed(values):
            prepend(value)
        return self.builder.EndVector()

    def _ints(self, values: Sequence[int]) -> int:
        return self._vector([int(v) for v in values], self.builder.PrependInt32)

    def _buffer(self, raw: bytes) -> int:
        """Write bytes on a boundary of `DATA_ALIGNMENT`; return the index of the buffer."""
        self.builder.StartVector(1, len(raw), DATA_ALIGNMENT)
        head = self.builder.Head() - len(raw)
        self.builder.head = head
        self.builder.Bytes[head : head + len(raw)] = raw
        self.buffers.append(self._table("Buffer", Data=self.builder.EndVector()))
        return len(self.buffers) - 1

    def _tensor(self, tensor: PackedTensor) -> int:
        data = tensor.data
        little = (
            None if data is None else np.ascontiguousarray(data, np.dtype(tensor.dtype).newbyteorder("<"))
        )
        fields = {
            "Shape": self._ints(tensor.shape),
            "Type": getattr(self.lib.TensorType, tensor.dtype.upper()),
            "Buffer": 0 if little is None else self._buffer(little.tobytes()),
            "Name": self.builder.CreateString(tensor.name),
        }
        if tensor.quant is not None:
            fields["Quantization"] = self._quantization(tensor.quant)
        return self._table("Tensor", **fields)

    def _quantization(self, quant: Quant) -> int:
        zero_points = [int(v) for v in np.broadcast_to(quant.zero_point, quant.scale.shape)]
        return self._table(
            "QuantizationParameters",
            Scale=self._vector([float(v) for v in quant.scale], self.builder.PrependFloat32),
            ZeroPoint=self._vector(zero_points, self.builder.PrependInt64, 8),
            QuantizedDimension=quant.axis or 0,
        )

    def _code(self, code: int, version: int) -> int:
        # Runtimes of before schema 3a read the code from an int8 field; 127 tells them to look no further.
        return self._table(
            "OperatorCode", DeprecatedBuiltinCode=min(code, 127), Version=version, BuiltinCode=code
        )

    def _operator(self, operator: PackedOperator, codes: Sequence[tuple[int, int]]) -> int:
        values = {
            name: self._ints(value) if isinstance(value, list) else value
            for name, value in operator.options.items()
        }
        options = (
            {}
            if operator.kind == NO_OPTIONS
            else {
                "BuiltinOptionsType": getattr(self.lib.BuiltinOptions, operator.kind),
                "BuiltinOptions": self._table(operator.kind, **values),
            }
        )
        return self._table(
            "Operator",
            OpcodeIndex=codes.index((getattr(self.lib.BuiltinOperator, operator.op), operator.version)),
            Inputs=self._ints(operator.inputs),
            Outputs=self._ints(operator.outputs),
            **options,
        )

    def _metadata(self, name: str, value: bytes) -> int:
        buffer = self._buffer(value)
        return self._table("Metadata", Name=self.builder.CreateString(name), Buffer=buffer)
