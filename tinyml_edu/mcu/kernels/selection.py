"""Which nodes get a specialised kernel, and the C of each.

A specialised kernel is for Cortex-M cores with the DSP extension; every node keeps its plain kernel beside
it, for all other cores.  The choice depends on the graph alone, so one generated text serves all boards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from ...ir.graph import Graph, Node
from ...ir.ops import macs
from . import addition, depthwise, direct, long_sums, pointwise, weights, winograd
from .requantize import VARIES, Channels, channels

CODE_BYTES = 64 * 1024
"""Most code of specialised kernels in a network, bytes (estimated from above)."""

EXTRA_WEIGHT_BYTES = 128 * 1024
"""Most flash that streams of a network may take beyond its plain weights, biases and factors."""


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
    """Chooses kernels node by node within the code budget; remembers what is already paid for.

    ``lean`` takes the kernel of least flash instead of the fastest.
    """

    graph: Graph
    requant: str
    budget_bytes: int = CODE_BYTES
    extra_bytes: int = EXTRA_WEIGHT_BYTES
    lean: bool = False
    _candidates: dict[str, list[Fast]] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)

    def choose(self, node: Node) -> Fast | None:
        """Return the specialised kernel of a node, or None where its plain kernel is to be called."""
        for fast in self._in_order(node):
            used = self.used | {name: size for name, (_, size) in fast.sources.items()}
            extra = fast.stream.nbytes - self._plain_bytes(node)
            if sum(used.values()) <= self.budget_bytes and extra <= self.extra_bytes:
                self.used = used
                self.extra_bytes -= max(extra, 0)
                return fast
        return None

    def candidates(self, node: Node) -> list[Fast]:
        """Return the specialised kernels that are exact for a node, the fastest first."""
        if node.name not in self._candidates:
            make = _MAKERS.get(node.op)
            legal = self.graph[node.inputs[0]].data is None and self._owns_constants(node)
            kernels = list(make(self.graph, node, self.requant)) if make is not None and legal else []
            self._candidates[node.name] = sorted(kernels, key=self._flash) if self.lean else kernels
        return self._candidates[node.name]

    def _in_order(self, node: Node) -> list[Fast]:
        """Return a node's kernels in the order in which to try them."""
        kernels = self.candidates(node)
        return sorted(kernels, key=_code_bytes) if node.name in self._short else kernels

    @cached_property
    def _short(self) -> set[str]:
        """Nodes that take the kernel of least code, so that the budget reaches the whole network.

        Long straight code is a little faster than a loop; a plain kernel is three times slower.  So all nodes
        get the shortest code first; then those of the most MACs a byte get their fastest.
        """
        nodes = [node for node in self.graph.nodes if self.candidates(node)]
        costs, groups = macs(self.graph), dict[tuple[str, ...], list[Node]]()
        chosen = {node.name: min(self.candidates(node), key=_code_bytes) for node in nodes}
        for node in nodes:
            groups.setdefault(tuple(self.candidates(node)[0].sources), []).append(node)

        def gain(group: list[Node]) -> float:
            return sum(costs[node.name] for node in group) / _code_bytes(self.candidates(group[0])[0])

        short = {node.name for node in nodes}
        for group in sorted(groups.values(), key=gain, reverse=True):
            trial = chosen | {node.name: self.candidates(node)[0] for node in group}
            used = {name: size for fast in trial.values() for name, (_, size) in fast.sources.items()}
            if sum(used.values()) <= self.budget_bytes:
                chosen = trial
                short -= {node.name for node in group}
        return short

    def _flash(self, fast: Fast) -> int:
        """Return the flash that a kernel takes beside what is already paid for."""
        return fast.stream.nbytes + sum(
            size for name, (_, size) in fast.sources.items() if name not in self.used
        )

    def _plain_bytes(self, node: Node) -> int:
        """Return the flash of a node's weights, bias, multipliers and exponents in their plain form."""
        constants = sum(self.graph[name].nbytes for name in node.inputs if self.graph[name].data is not None)
        return constants + (5 * self.graph[node.outputs[0]].shape[-1] if constants else 0)

    def _owns_constants(self, node: Node) -> bool:
        """Whether no other node reads this node's weights and bias: their plain form is then left out."""
        readers = [name for other in self.graph.nodes for name in other.inputs]
        return all(self.graph[name].data is None or readers.count(name) == 1 for name in node.inputs[1:])


def _code_bytes(fast: Fast) -> int:
    return sum(size for _, size in fast.sources.values())


def _conv(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    unpadded = channels(graph, node, requant)
    c = direct.padded(unpadded)
    if not c.fits:
        return
    a, x, y = node.attrs, graph[node.inputs[0]].shape, graph[node.outputs[0]].shape
    transformed = winograd.shape_of(graph, node, c)
    if transformed is not None:
        source = {transformed.name: (winograd.source(transformed, c), transformed.code_bytes)}
        yield _whole(source, winograd.stream(transformed, c))
    adjacent = graph[node.inputs[1]].shape[1:3] == (1, 1) and a.stride == (1, 1) and not any(a.padding)
    if adjacent and x[3] >= 4:
        for dense in _dense(weights.overlapped(unpadded), prod(x[1:3]), inputs=x[3]):
            yield _tiled(dense, prod(x[1:3]))
        return
    for dense in _dense(c, prod(y[1:3]), patches=True):
        shape = direct.shape_of(graph, node, dense.shape)
        if shape is not None:
            sources = dense.sources | {shape.name: (direct.source(shape), shape.code_bytes)}
            call = f"{shape.name}($x, $y, $stream, $stream + {dense.end});"
            yield Fast(sources, dense.stream, dense.fill(prod(y[1:3])) + call)


def _fully_connected(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    c = channels(graph, node, requant)
    rows = prod(graph[node.inputs[0]].shape) // c.weights.shape[1]
    inputs = c.weights.shape[1]
    if c.fits and inputs >= 4:
        for dense in _dense(weights.overlapped(c), rows, inputs=inputs):
            yield _tiled(dense, rows)


@dataclass(frozen=True, eq=False)
class _Dense:
    """A kernel for pixels whose inputs are side by side, before anything says where the pixels are.

    The kernel's words end at ``end`` of ``stream``.  What follows are the codes of the channels that it does
    not compute, as bytes.
    """

    shape: pointwise.Shape | long_sums.Shape
    sources: dict[str, tuple[str, int]]
    stream: np.ndarray
    end: int

    def fill(self, pixels: int) -> str:
        """Return the C that gives ``pixels`` pixels the codes of channels that are not computed, if any."""
        if self.end == self.stream.size:
            return ""
        o = self.shape.o
        return (
            "/* Channels of one code, whatever the input. */\n"
            f"for (int32_t p = 0; p < {pixels}; p++) {{\n"
            f"    __builtin_memcpy($y + p * {o}, $stream + {self.end}, {o});\n"
            "}\n"
        )


def _dense(c: Channels, pixels: int, *, patches: bool = False, inputs: int = 0) -> Iterator[_Dense]:
    """Yield the exact kernels for ``pixels`` pixels, the fastest first; the last one takes least code.

    ``patches`` says that inputs are copied to the stack first: a byte each, beside the widened ones.
    ``inputs`` are those of a pixel, if they are adjacent and ``c`` has more, see `weights.overlapped`.
    """
    inputs = inputs if inputs % 4 else 0
    bytes_an_input = 3 if patches else 2
    tile = pointwise.best_tile(pixels, c.weights.shape[1], bytes_an_input)
    long = [] if patches and c.weights.shape[1] > pointwise.MAX_SCRATCH_BYTES else _long(c, inputs)
    if tile is None or tile == 1:
        yield from long[::-1]  # wide words first: they cost flash, which may not be left
    places = weights.to_compute(c)
    live = c.take(places)
    for packed in _legal(live)[:1]:
        shape = pointwise.shape_of(c, pixels, packed=packed, bytes_an_input=bytes_an_input, inputs=inputs)
        if shape is not None:
            stream = weights.pair_stream(live, packed=packed, places=places).ravel()
            sources = {shape.name: (pointwise.source(shape, c), shape.code_bytes)}
            yield _Dense(shape, sources, np.append(stream, _constant_codes(c)), stream.size)
    if tile is not None and tile > 1:
        yield from long[:1]


def _long(c: Channels, inputs: int) -> list[_Dense]:
    """Return the exact kernels that loop over the inputs of one pixel: packed words, then wide ones."""
    kernels = []
    for packed in (True, False):
        shape = long_sums.shape_of(c, packed=packed, inputs=inputs)
        if shape is not None and packed in _legal(c.take(shape.order)):
            stream = long_sums.stream(shape, c).ravel()
            sources = {shape.name: (long_sums.source(shape, c), shape.code_bytes)}
            kernels.append(_Dense(shape, sources, stream, stream.size))
    return kernels


def _legal(c: Channels) -> list[bool]:
    """Return the choices of ``packed`` that are exact, True first."""
    return [True] * weights.is_packable(c) + [False] * (c.rounding == "single" or c.doubles)


def _constant_codes(c: Channels) -> np.ndarray:
    """Return the codes of all channels as words, 0 for those that vary; no word if all do."""
    if np.all(c.codes == VARIES):
        return np.array([], np.uint32)
    codes = np.where(c.codes == VARIES, 0, c.codes).astype(np.int8)
    return np.pad(codes, (0, -len(codes) % 4)).view("<u4")


def _whole(sources: dict[str, tuple[str, int]], stream: np.ndarray) -> Fast:
    """Return the kernel whose last function computes a whole image."""
    return Fast(sources, stream, f"{list(sources)[-1]}($x, $y, $stream, $stream + {stream.size});")


def _tiled(dense: _Dense, pixels: int) -> Fast:
    """Return the kernel that a loop over tiles of adjacent pixels calls."""
    s, last = dense.shape, pixels - dense.shape.tile
    start, note = ("p", "")
    if pixels % s.tile:
        start, note = f"p < {last} ? p : {last}", " /* the last tile overlaps the one before */"
    call = (
        f"for (int32_t p = 0; p < {pixels}; p += {s.tile}) {{\n"
        f"    const int32_t first = {start};{note}\n"
        f"    {s.name}($x + first * {s.step}, $y + first * {s.o}, $stream, $stream + {dense.end});\n"
        "}"
    )
    return Fast(dense.sources, dense.stream, dense.fill(pixels) + call)


def _depthwise(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    c = channels(graph, node, requant)
    if not c.fits or (c.rounding == "double" and not c.doubles):
        return
    shape = depthwise.shape_of(graph, node, c)
    if shape is not None:
        call = f"{shape.name}($x, $y, $stream);"
        sources = {shape.name: (depthwise.source(shape, c), shape.code_bytes)}
        yield Fast(sources, depthwise.stream(shape, c), call)


def _add(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    shape = addition.shape_of(graph, node, requant)
    if shape is not None:
        size = prod(graph[node.outputs[0]].shape)
        sources = {shape.name: (addition.source(shape), shape.code_bytes)}
        first, second = ("$x2", "$x1") if shape.swapped else ("$x1", "$x2")
        whole = size // 4 * 4
        call = f"{shape.name}({first}, {second}, $y, $y + {whole}, $stream);"
        if whole < size:
            at = size - 4
            call += (
                " /* the last four may overlap */\n"
                f"{shape.name}({first} + {at}, {second} + {at}, $y + {at}, $y + {size}, $stream);"
            )
        yield Fast(sources, addition.stream(shape), call)


_MAKERS: dict[str, Callable[[Graph, Node, str], Iterator[Fast]]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
}
"""For each op, the specialised kernels that are exact for a node, the fastest first."""
