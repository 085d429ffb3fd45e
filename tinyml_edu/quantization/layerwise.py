"""The float graph and its quantized twin side by side, one node at a time.

Methods that repair a quantized network layer by layer need, for each layer, what the float network feeds it
and what the quantized layers before it feed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import ir
from ..ir.graph import Graph, Kind, Node
from .calibration import Range, as_stored, calibrate
from .checking import require_float_graph
from .post_training import QuantConfig


@dataclass
class Stream:
    """The activations of one graph over a data set, each kept while a later node still reads it."""

    graph: Graph
    values: dict[str, np.ndarray]

    def step(self, node: Node, graph: Graph | None = None) -> None:
        """Compute the output of the next node; from now on ``graph``, if given, has the constants."""
        self.graph = graph or self.graph
        self.values[node.outputs[0]] = run_node(self.graph, node, self.values)
        names = [n.name for n in self.graph.nodes]
        needed = {name for n in self.graph.nodes[names.index(node.name) + 1 :] for name in n.inputs}
        self.values = {name: value for name, value in self.values.items() if name in needed}

    def value(self, name: str) -> np.ndarray:
        """Return float32 values; codes are dequantized."""
        value, quant = self.values[name], self.graph[name].quant
        return value if quant is None else quant.dequantize(value)


def paired_streams(graph: Graph, int8: Graph, x: np.ndarray) -> tuple[Stream, Stream]:
    """Return the streams of a float graph and of its int8 form, both before the first node.

    Parameters
    ----------
    x : ndarray
        Real inputs as stored, (n, H, W, C) or (n, F).
    """
    name = graph.inputs[0]
    quant = int8[name].quant
    assert quant is not None
    return Stream(graph, {name: x}), Stream(int8, {name: quant.quantize(x)})


def run_node(graph: Graph, node: Node, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the output of one node for the given inputs, batch first, float values or codes as stored."""
    inputs = tuple(dict.fromkeys(n for n in node.inputs if graph[n].kind is not Kind.CONSTANT))
    alone = replace(graph, nodes=[node], inputs=inputs, outputs=node.outputs)
    return ir.run(alone, {name: values[name] for name in inputs})


def preactivation(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray:
    """Return (n, ..., O) float32: what a linear node computes from real ``x`` before its activation.

    Weights and bias of an int8 graph are taken at the real values that their codes stand for.
    """
    alone = Graph(graph.name, inputs=node.inputs[:1], outputs=node.outputs)
    for name in (*node.inputs, *node.outputs):
        tensor = graph[name]
        data = tensor.data
        if data is not None and tensor.quant is not None:
            data = tensor.quant.dequantize(data)
        alone.add(replace(tensor, dtype="float32", data=data, quant=None))
    alone.nodes = [replace(node, attrs=replace(node.attrs, activation="none"))]
    return run_node(alone, alone.nodes[0], {node.inputs[0]: x})


def prepare(graph: Graph, x: Any, config: QuantConfig) -> tuple[np.ndarray, dict[str, Range]]:
    """Return the calibration set as stored, and the ranges that ``config`` asks for.

    Raises
    ------
    UsageError
        If the graph is int8, or the calibration set is missing, empty, of another shape or not finite.
    """
    require_float_graph(graph)
    stored = as_stored(graph, x)
    return stored, calibrate(graph, stored, observer=config.observer, bits=config.activation_bits)
