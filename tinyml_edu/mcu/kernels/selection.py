"""Which nodes get a specialised kernel, and the C of each.

A specialised kernel is for Cortex-M cores with the DSP extension; every node keeps its plain kernel beside
it, for all other cores.  The choice depends on the graph alone, so one generated text serves all boards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from ...ir.graph import Graph, Node
from . import addition, depthwise, direct, pointwise, weights
from .requantize import Channels, channels

CODE_BYTES = 64 * 1024
"""Most code of specialised kernels in a network, bytes (estimated from above)."""


@dataclass(frozen=True, eq=False)
class Fast:
    """A node's specialised kernel.

    Attributes
    ----------
    sources : dict of str to (str, int)
        The C of the functions that do the work, in order, and an upper estimate of their bytes, by name;
        nodes of one shape share them.
    stream : ndarray of uint32
        The node's constants.
    call : str
        C statements that compute one image, with ``$x``, ``$y`` and ``$stream`` for pointers; ADD
        has ``$x1`` and ``$x2``.
    """

    sources: dict[str, tuple[str, int]]
    stream: np.ndarray
    call: str


@dataclass
class Selection:
    """Chooses kernels node by node within the code budget; remembers what is already paid for."""

    graph: Graph
    requant: str
    budget_bytes: int = CODE_BYTES
    used: dict[str, int] = field(default_factory=dict)

    def choose(self, node: Node) -> Fast | None:
        """Return the specialised kernel of a node, or None where its plain kernel is to be called."""
        make = _MAKERS.get(node.op)
        if make is None or self.graph[node.inputs[0]].data is not None or not self._owns_constants(node):
            return None
        fast = make(self.graph, node, self.requant)
        if fast is None:
            return None
        used = self.used | {name: size for name, (_, size) in fast.sources.items()}
        if sum(used.values()) > self.budget_bytes:
            return None
        self.used = used
        return fast

    def _owns_constants(self, node: Node) -> bool:
        """Whether no other node reads this node's weights and bias: their plain form is then left out."""
        readers = [name for other in self.graph.nodes for name in other.inputs]
        return all(self.graph[name].data is None or readers.count(name) == 1 for name in node.inputs[1:])


def _conv(graph: Graph, node: Node, requant: str) -> Fast | None:
    c = direct.padded(channels(graph, node, requant))
    packed = weights.is_packable(c)
    if not c.fits or not (packed or c.rounding == "single" or c.doubles):
        return None
    a = node.attrs
    adjacent = graph[node.inputs[1]].shape[1:3] == (1, 1) and a.stride == (1, 1) and not any(a.padding)
    if adjacent and c.weights.shape[1] == graph[node.inputs[0]].shape[3]:
        return _pointwise(c, prod(graph[node.inputs[0]].shape[1:3]), packed=packed)
    shape = direct.shape_of(graph, node, c, packed=packed)
    if shape is None:
        return None
    sources = {
        shape.inner.name: (pointwise.source(shape.inner, c), shape.inner.code_bytes),
        shape.name: (direct.source(shape), shape.code_bytes),
    }
    stream = weights.pair_stream(c, packed=packed)
    return Fast(sources, stream, f"{shape.name}($x, $y, $stream, $stream + {stream.size});")


def _fully_connected(graph: Graph, node: Node, requant: str) -> Fast | None:
    c = channels(graph, node, requant)
    if not c.fits:
        return None
    rows = prod(graph[node.inputs[0]].shape) // c.weights.shape[1]
    return _pointwise(c, rows, packed=weights.is_packable(c))


def _pointwise(c: Channels, pixels: int, *, packed: bool) -> Fast | None:
    shape = pointwise.shape_of(c, pixels, packed=packed)
    if shape is None:
        return None
    stream = weights.pair_stream(c, packed=packed)
    start = "p" if pixels % shape.tile == 0 else f"p < {pixels - shape.tile} ? p : {pixels - shape.tile}"
    note = "" if pixels % shape.tile == 0 else " /* the last tile overlaps the one before */"
    call = (
        f"for (int32_t p = 0; p < {pixels}; p += {shape.tile}) {{\n"
        f"    const int32_t first = {start};{note}\n"
        f"    {shape.name}($x + first * {shape.k}, $y + first * {shape.o}, $stream,\n"
        f"        $stream + {stream.size});\n"
        "}"
    )
    return Fast({shape.name: (pointwise.source(shape, c), shape.code_bytes)}, stream, call)


def _depthwise(graph: Graph, node: Node, requant: str) -> Fast | None:
    c = channels(graph, node, requant)
    shape = depthwise.shape_of(graph, node, c)
    if shape is None or not c.fits or not (c.rounding == "single" or c.doubles):
        return None
    call = f"{shape.name}($x, $y, $stream);"
    return Fast({shape.name: (depthwise.source(shape, c), shape.code_bytes)}, depthwise.stream(c), call)


def _add(graph: Graph, node: Node, requant: str) -> Fast | None:
    shape = addition.shape_of(graph, node, requant)
    if shape is None:
        return None
    size = prod(graph[node.outputs[0]].shape)
    sources = {shape.name: (addition.source(shape), shape.code_bytes)}
    first, second = ("$x2", "$x1") if shape.swapped else ("$x1", "$x2")
    return Fast(
        sources, addition.stream(shape), f"{shape.name}({first}, {second}, $y, $y + {size}, $stream);"
    )


_MAKERS = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
}
