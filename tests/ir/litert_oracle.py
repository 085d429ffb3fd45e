"""LiteRT's reference kernels as an oracle: a runner, a comparison, and a raw writer of small files.

`Reference` and `compare` serve the tests of kernels and of `ir.write_tflite`.  `ModelWriter` serves the tests
of `ir.read_tflite`: it uses LiteRT's own schema bindings, so that it shares no code with the library, and it
writes what the library's writer refuses, files that are wrong or that other exporters lay out differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tinyml_edu import ir
from tinyml_edu.ir import Graph, Kind, Node

TYPES = {
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
    "float32": schema.TensorType.FLOAT32,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int64": schema.TensorType.INT64,
}
ACTIVATIONS = {
    "none": schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
    "relu_n1_to_1": schema.ActivationFunctionType.RELU_N1_TO_1,
}


class ModelWriter:
    """Collect tensors and operators, then `pack` them into the bytes of a .tflite file."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[int] = []
        self.old_codes: dict[int, int] = {}  # what the field of old files says, where that differs
        self.buffers: list[Any] = [schema.BufferT()]

    def tensor(
        self,
        shape: tuple[int, ...],
        *,
        scale: float | np.ndarray | None = None,
        zero_point: int = 0,
        axis: int = 0,
        data: np.ndarray | None = None,
        dtype: str = "int8",
        name: str | None = None,
    ) -> int:
        """Add a tensor; ``scale`` of more than one entry is per channel along ``axis``."""
        t = schema.TensorT()
        t.name = name or f"t{len(self.tensors)}"
        t.shape, t.type, t.buffer = list(shape), TYPES[dtype], 0
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            t.quantization = schema.QuantizationParametersT()
            t.quantization.scale = scales.tolist()
            t.quantization.zeroPoint = [zero_point] * scales.size
            t.quantization.quantizedDimension = axis
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data, dtype).tobytes(), np.uint8)
            t.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(t)
        return len(self.tensors) - 1

    def op(self, name: str, inputs: list[int], output: int, options: Any = None) -> int:
        """Add an operator; ``options`` is an object of the schema such as ``Conv2DOptionsT``."""
        code = getattr(schema.BuiltinOperator, name)
        if code not in self.codes:
            self.codes.append(code)
        o = schema.OperatorT()
        o.opcodeIndex, o.inputs, o.outputs = self.codes.index(code), inputs, [output]
        if options is not None:
            o.builtinOptions = options
            o.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self.operators.append(o)
        return output

    def pack(self, inputs: list[int], outputs: list[int]) -> bytes:
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = inputs, outputs
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = 3, [graph], self.buffers
        model.operatorCodes = []
        for code in self.codes:
            c = schema.OperatorCodeT()
            c.builtinCode, c.version = code, 1
            c.deprecatedBuiltinCode = self.old_codes.get(code, min(code, 127))
            model.operatorCodes.append(c)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def options(kind: str, **values: Any) -> Any:
    """Return an options object of the schema, for example ``options("Pool2D", strideH=2)``."""
    result = getattr(schema, f"{kind}OptionsT")()
    for key, value in values.items():
        if not hasattr(result, key):
            raise AttributeError(f"{kind}Options has no {key}")
        setattr(result, key, value)
    return result


class Reference:
    """LiteRT with its reference kernels (no XNNPACK), keeping every tensor."""

    def __init__(self, model: bytes | Path) -> None:
        content = model if isinstance(model, bytes) else model.read_bytes()
        self.interpreter = Interpreter(
            model_content=content,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        self.interpreter.allocate_tensors()

    def run(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run one inference (batch 1) and return every tensor by name."""
        for detail, value in zip(self.interpreter.get_input_details(), inputs, strict=True):
            self.interpreter.set_tensor(detail["index"], value)
        self.interpreter.invoke()
        return {
            d["name"]: self.interpreter.get_tensor(d["index"])
            for d in self.interpreter.get_tensor_details()
            if d["name"] and d["dtype"] is np.int8
        }


def codes(rng: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return inputs of ``shape``: uniform, all least, all greatest, and a mix of both ends."""
    ends = np.array([-128, 127], np.int8)
    return [
        rng.integers(-128, 128, shape, dtype=np.int8),
        np.full(shape, -128, np.int8),
        np.full(shape, 127, np.int8),
        rng.choice(ends, shape),
    ]


class Comparison(NamedTuple):
    """Codes compared, and how many of them differ.

    ``fast`` is the largest difference between the two requantizations of one layer, given the same inputs.
    """

    compared: int
    different: int
    fast: int


def compare(graph: Graph, content: bytes, inputs: Sequence[Sequence[np.ndarray]]) -> Comparison:
    """Run ``graph`` and the file on every input and compare each node's output that the file has too.

    Parameters
    ----------
    graph : Graph
        What computes with `ir.run`.
    content : bytes
        A .tflite file with tensors of the same names.
    inputs : sequence of sequence of ndarray int8 (1, ...)
        For each input of the graph, its values, as from `codes`.
    """
    reference = Reference(content)
    batch = {name: np.concatenate(x) for name, x in zip(graph.inputs, inputs, strict=True)}
    values, compared, different = ir.run(graph, batch, keep=True), 0, 0
    outputs = [node.outputs[0] for node in graph.nodes]
    for i, one in enumerate(zip(*inputs, strict=True)):
        want = reference.run(*one)
        assert set(graph.outputs) <= set(want), "the file has no tensor by the name of an output"
        for name in set(outputs) & set(want):
            rows = len(values[name]) // len(inputs[0])
            got = values[name][i * rows : (i + 1) * rows]
            compared += got.size
            different += int((got != want[name]).sum()) if got.shape == want[name].shape else got.size
    fast = max(fast_difference(graph, node, values) for node in graph.nodes)
    return Comparison(compared, different, fast)


def fast_difference(graph: Graph, node: Node, values: dict[str, np.ndarray]) -> int:
    """Return the largest difference, in codes, of one node with ``requant="fast"`` on the inputs it had."""
    alone = Graph(node.name, nodes=[node], outputs=node.outputs)
    for name in dict.fromkeys((*node.inputs, *node.outputs)):
        flows = name in node.inputs and graph[name].kind is not Kind.CONSTANT
        alone.add(replace(graph[name], kind=Kind.INPUT) if flows else graph[name])
        alone.inputs += (name,) if flows else ()
    fast = ir.run(alone, {name: values[name] for name in alone.inputs}, requant="fast")
    return int(np.abs(fast.astype(int) - values[node.outputs[0]]).max())
