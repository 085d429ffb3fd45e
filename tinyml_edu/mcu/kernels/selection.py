"""Which nodes get a specialised kernel, and the C of each.

A specialised kernel is for Cortex-M cores with the DSP extension; every node keeps its plain kernel beside
it, for all other cores.  The choice depends on the graph alone, so one generated text serves all boards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from ...ir.graph import Graph, Node
from . import pointwise, weights
from .requantize import channels

CODE_BYTES = 64 * 1024
"""Most code of specialised kernels in a network, bytes (estimated from above)."""


@dataclass(frozen=True, eq=False)
class Fast:
    """A node's specialised kernel.

    Attributes
    ----------
    name : str
        The function that does the work; nodes of one shape share it.
    source : str
        Its C.
    code_bytes : int
        An upper estimate of its size.
    stream : ndarray of uint32
        The node's constants.
    call : str
        C statements that compute one image, with ``$x``, ``$y`` and ``$stream`` for three pointers.
    """

    name: str
    source: str
    code_bytes: int
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
        if node.op != "CONV_2D" or not self._owns_constants(node):
            return None
        fast = _pointwise(self.graph, node, self.requant)
        if fast is None:
            return None
        if fast.name not in self.used:
            if sum(self.used.values()) + fast.code_bytes > self.budget_bytes:
                return None
            self.used[fast.name] = fast.code_bytes
        return fast

    def _owns_constants(self, node: Node) -> bool:
        """Whether no other node reads this node's weights and bias: their plain form is then left out."""
        readers = [name for other in self.graph.nodes for name in other.inputs]
        return all(self.graph[name].data is not None and readers.count(name) == 1 for name in node.inputs[1:])


def _pointwise(graph: Graph, node: Node, requant: str) -> Fast | None:
    x, w = (graph[name] for name in node.inputs[:2])
    a = node.attrs
    if w.shape[1:3] != (1, 1) or a.stride != (1, 1) or any(a.padding) or x.data is not None:
        return None
    c = channels(graph, node, requant)
    packed = weights.is_packable(c) if len(c.weights) % 2 == 0 else False
    pixels = prod(x.shape[1:3])
    shape = pointwise.shape_of(c, pixels, packed=packed)
    if shape is None or not c.fits or not (packed or c.doubles):
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
    return Fast(shape.name, pointwise.source(shape, c), shape.code_bytes, stream, call)
