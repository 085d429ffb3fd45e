"""Read an int8 TensorFlow Lite file into a graph.

The file is a FlatBuffer; the ``tflite`` package has the accessors of its schema.  Nothing in the file is
trusted: offsets, counts, shapes, scales and attributes are checked, and the shape of every activation
has to be the one that its op computes.  How each operator is read stands in `tflite_windows`,
`tflite_arithmetic`, `tflite_moves` and, for float and uint8 ends, `tflite_ends`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError, UnsupportedOpError, UsageError
from . import tflite_arithmetic, tflite_ends, tflite_moves, tflite_windows
from .graph import Graph, GraphError, Kind
from .ops import OPS
from .tflite_operator import OperatorReader
from .tflite_tensors import numbers, text

# What the accessors raise on offsets that lead nowhere.
_CORRUPT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, struct.error)

READERS: dict[str, Callable[[Any, Any, list[int]], None]] = {
    **tflite_windows.READERS,
    **tflite_arithmetic.READERS,
    **tflite_moves.READERS,
    **tflite_ends.READERS,
}
"""How each operator is read; the ops of the graph are those of `ops.OPS`."""

_BUILTIN_CODE_SLOT = 10
"""Place of ``builtin_code`` in the table OperatorCode, the fourth field of the schema."""

_SHAPE_OPS = ("SHAPE", "STRIDED_SLICE", "PACK")
"""With integer outputs they compute the shape of a RESHAPE, which the RESHAPE's output says too."""


def read_tflite(path: str | Path) -> Graph:
    """Return the int8 graph that a ``.tflite`` file holds.

    Parameters
    ----------
    path : str or Path
        A fully integer-quantized model, batch 1; its inputs and outputs may be int8, uint8 or float32.

    Returns
    -------
    Graph
        int8 activations, int8 weights, int32 biases.  Constants are read-only views of the file's bytes.
        Inputs and outputs are int8 codes: those of a uint8 input or output less 128, those that a float input
        is quantized to, or a float output is computed from.  `Graph.tensors` holds their scales.

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


class _Reader(OperatorReader):
    """One pass over the operators of subgraph 0."""

    def __init__(self, lib: Any, data: bytes, name: str) -> None:
        super().__init__(lib, data, name)
        from flatbuffers.number_types import Int32Flags

        self.int32 = Int32Flags
        self.op_names = {v: k for k, v in vars(lib.BuiltinOperator).items() if isinstance(v, int)}

    def read(self) -> Graph:
        for position in range(self.sub.OperatorsLength()):
            op = self.sub.Operators(position)
            self.op, self.position = self._op_name(op), position
            self.where = f"{self.op} at position {position}"
            self._read_operator(op)
        self.op = self.where = ""
        self.graph.inputs = tuple(self.activation(i) for i in self.inputs)
        for name in self.graph.inputs:
            if self.graph[name].shape[0] != 1:
                raise UnsupportedOpError(
                    f"input {name!r} has shape {self.graph[name].shape}; export the model with batch size 1"
                )
        self.graph.outputs = tuple(self.activation(i) for i in self.outputs)
        return self._checked()

    def _read_operator(self, op: Any) -> None:
        outputs = numbers(op.OutputsAsNumpy())
        if self.op in _SHAPE_OPS and all(self.type_of(i) in ("INT32", "INT64") for i in outputs):
            return
        if self.op not in READERS:
            raise UnsupportedOpError(f"{self.where} is not supported; supported: {', '.join(READERS)}")
        if len(outputs) != 1:
            raise GraphError(f"{self.where} has {len(outputs)} outputs")
        self.out = outputs[0]
        READERS[self.op](self, op, numbers(op.InputsAsNumpy()))

    def _checked(self) -> Graph:
        graph = self.graph
        if not (graph.nodes and graph.inputs and graph.outputs):
            raise GraphError("there is no operation, no input or no output")
        if len(set(graph.inputs)) < len(graph.inputs):
            raise GraphError("an input is listed twice")
        if any(graph[name].kind is Kind.CONSTANT for name in graph.outputs):
            raise GraphError("an output is a constant")
        used = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}
        used |= {*graph.inputs, *graph.outputs}
        graph.tensors = {name: tensor for name, tensor in graph.tensors.items() if name in used}
        graph.validate()
        for node in graph.nodes:
            OPS[node.op].params(graph, node)
        return graph

    def _op_name(self, op: Any) -> str:
        code = self.model.OperatorCodes(op.OpcodeIndex())
        # Files before schema 3a have an int8 field, later ones an int32 field beside it: the larger counts.
        # The accessor BuiltinCode() prefers the old field, so the new one is read here.
        place = code._tab.Offset(_BUILTIN_CODE_SLOT)
        new = code._tab.Get(self.int32, place + code._tab.Pos) if place else 0
        number = max(new, code.DeprecatedBuiltinCode())
        if number == self.lib.BuiltinOperator.CUSTOM:
            return f"custom op {text(code.CustomCode())}"
        return self.op_names.get(number, f"op number {number}")
