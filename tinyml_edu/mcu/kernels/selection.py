"""Which nodes get a specialised kernel, and the C of each.

A specialised kernel is for Cortex-M cores with the DSP extension; every node keeps its plain kernel beside
it, for all other cores.  The choice depends on the graph alone, so one generated text serves all boards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Protocol

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
        has ``$x1`` and ``$x2``, and ``$scratch`` is the node's working memory in the arena.
    scratch_bytes : int
        Working memory that the call needs.
    in_place : bool
        Whether y may be x.
    """

    sources: dict[str, tuple[str, int]]
    stream: np.ndarray
    call: str
    scratch_bytes: int = 0
    in_place: bool = False

    def suits(self, scratch_bytes: int | None, *, in_place: bool) -> bool:
        """Whether the kernel does with so much working memory, and can write over x if it has to."""
        enough = scratch_bytes is None or self.scratch_bytes <= scratch_bytes
        return enough and (self.in_place or not in_place)


class Chooser(Protocol):
    """Says which nodes get a specialised kernel: `Selection` by a cost model, `search.Search` measured."""

    def choose(self, node: Node, scratch_bytes: int | None = None, *, in_place: bool = False) -> Fast | None:
        """Return the specialised kernel of a node, or None where its plain kernel is to be called.

        ``scratch_bytes`` is the working memory that the plan gives to the node, None if there is no plan yet:
        what the kernel then asks for is what the plan should give.  ``in_place`` says that y lies over x.
        """


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

    def choose(self, node: Node, scratch_bytes: int | None = None, *, in_place: bool = False) -> Fast | None:
        """See `Chooser.choose`."""
        kernels = self._in_order(node)
        if in_place:
            kernels = [*kernels, *in_place_offers(self.graph, node, self.requant)]
        for fast in kernels:
            used = self.used | {name: size for name, (_, size) in fast.sources.items()}
            extra = fast.stream.nbytes - plain_bytes(self.graph, node)
            if not fast.suits(scratch_bytes, in_place=in_place):
                continue
            if sum(used.values()) <= self.budget_bytes and extra <= self.extra_bytes:
                self.used = used
                self.extra_bytes -= max(extra, 0)
                return fast
        return None

    def candidates(self, node: Node) -> list[Fast]:
        """Return the specialised kernels that are exact for a node, the fastest first."""
        if node.name not in self._candidates:
            kernels = list(offers(self.graph, node, self.requant))
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


def offers(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    """Yield the specialised kernels that may replace a node's plain one, the fastest first."""
    if is_eligible(graph, node):
        yield from _MAKERS[node.op](graph, node, requant)


def in_place_offers(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    """Yield the specialised kernels that can write over x, the fastest first, whatever else is faster."""
    if node.op == "DEPTHWISE_CONV_2D" and is_eligible(graph, node):
        c = channels(graph, node, requant)
        if depthwise.is_exact(c):
            yield from (depthwise_of(s, c) for s in depthwise.forms(graph, node, c) if s.in_place)


def is_eligible(graph: Graph, node: Node) -> bool:
    """Whether a node's op has specialised kernels, its input is computed, and its constants are its own.

    Constants that no other node reads are left out in their plain form.
    """
    readers = [name for other in graph.nodes for name in other.inputs]
    own = all(graph[name].data is None or readers.count(name) == 1 for name in node.inputs[1:])
    return node.op in _MAKERS and graph[node.inputs[0]].data is None and own


def plain_bytes(graph: Graph, node: Node) -> int:
    """Return the flash of a node's weights, bias, multipliers and exponents in their plain form."""
    constants = sum(graph[name].nbytes for name in node.inputs if graph[name].data is not None)
    return constants + (5 * graph[node.outputs[0]].shape[-1] if constants else 0)


def _code_bytes(fast: Fast) -> int:
    return sum(size for _, size in fast.sources.values())


def _conv(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    unpadded = channels(graph, node, requant)
    c = direct.padded(unpadded)
    if not c.fits:
        return
    y = graph[node.outputs[0]].shape
    transformed = winograd.shape_of(graph, node, c)
    if transformed is not None:
        source = {transformed.name: (winograd.source(transformed, c), transformed.code_bytes)}
        yield whole(source, winograd.stream(transformed, c))
    pixels = side_by_side(graph, node)
    if pixels:
        for dense in _dense(weights.overlapped(unpadded), pixels, inputs=unpadded.weights.shape[1]):
            yield tiled(dense, pixels)
        return
    for dense in _dense(c, prod(y[1:3]), patches=True):
        shape = direct.shape_of(graph, node, dense.shape)
        if shape is not None:
            sources = dense.sources | {shape.name: (direct.source(shape), shape.code_bytes)}
            call = f"{shape.name}($x, $y, $stream, $stream + {dense.end});"
            yield Fast(sources, dense.stream, dense.fill(prod(y[1:3])) + call)


def _fully_connected(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    c = channels(graph, node, requant)
    pixels = side_by_side(graph, node)
    if c.fits and pixels:
        for dense in _dense(weights.overlapped(c), pixels, inputs=c.weights.shape[1]):
            yield tiled(dense, pixels)


def side_by_side(graph: Graph, node: Node) -> int:
    """Return the pixels (or rows) of one image whose inputs are side by side, at least four; else 0."""
    x, w = (graph[name].shape for name in node.inputs[:2])
    if w[-1] < 4:
        return 0
    if node.op == "FULLY_CONNECTED":
        return prod(x) // w[1]
    a = node.attrs
    return prod(x[1:3]) if w[1:3] == (1, 1) and a.stride == (1, 1) and not any(a.padding) else 0


@dataclass(frozen=True, eq=False)
class Dense:
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


def _dense(c: Channels, pixels: int, *, patches: bool = False, inputs: int = 0) -> Iterator[Dense]:
    """Yield the exact kernels for ``pixels`` pixels, the fastest first; the last one takes least code.

    ``patches`` says that inputs are copied to the stack first: a byte each, beside the widened ones.
    ``inputs`` are those of a pixel, if they are adjacent and ``c`` has more, see `weights.overlapped`.
    """
    inputs = inputs if inputs % 4 else 0
    bytes_an_input = 3 if patches else 2
    tile = pointwise.best_tile(pixels, c.weights.shape[1], bytes_an_input)
    long = long_shapes(c, patches=patches, inputs=inputs)
    if tile is None or tile == 1:
        # Wide words first: they cost flash, which may not be left.
        yield from (dense_of(each, c) for each in long[::-1])
    for packed in legal(c.take(weights.to_compute(c)))[:1]:
        shape = pointwise.shape_of(c, pixels, packed=packed, bytes_an_input=bytes_an_input, inputs=inputs)
        if shape is not None:
            yield dense_of(shape, c)
    if tile is not None and tile > 1:
        yield from (dense_of(each, c) for each in long[:1])


def long_shapes(c: Channels, *, patches: bool = False, inputs: int = 0) -> list[long_sums.Shape]:
    """Return the exact kernels that loop over the inputs of one pixel: packed words, then wide ones."""
    if patches and c.weights.shape[1] > pointwise.MAX_SCRATCH_BYTES:
        return []
    shapes = [long_sums.shape_of(c, packed=packed, inputs=inputs) for packed in (True, False)]
    return [s for s in shapes if s is not None and s.packed in legal(c.take(s.order))]


def dense_of(shape: pointwise.Shape | long_sums.Shape, c: Channels) -> Dense:
    """Return the kernel of a shape, with the constants of a layer."""
    if isinstance(shape, long_sums.Shape):
        stream = long_sums.stream(shape, c)
        sources = {shape.name: (long_sums.source(shape, c), shape.code_bytes)}
        return Dense(shape, sources, stream, stream.size)
    places = weights.to_compute(c)
    stream = weights.pair_stream(c.take(places), packed=shape.packed, places=places).ravel()
    sources = {shape.name: (pointwise.source(shape, c), shape.code_bytes)}
    return Dense(shape, sources, np.append(stream, _constant_codes(c)), stream.size)


def legal(c: Channels) -> list[bool]:
    """Return the choices of ``packed`` that are exact, True first."""
    return [True] * weights.is_packable(c) + [False] * (c.rounding == "single" or c.doubles)


def _constant_codes(c: Channels) -> np.ndarray:
    """Return the codes of all channels as words, 0 for those that vary; no word if all do."""
    if np.all(c.codes == VARIES):
        return np.array([], np.uint32)
    codes = np.where(c.codes == VARIES, 0, c.codes).astype(np.int8)
    return np.pad(codes, (0, -len(codes) % 4)).view("<u4")


def whole(sources: dict[str, tuple[str, int]], stream: np.ndarray) -> Fast:
    """Return the kernel whose last function computes a whole image."""
    return Fast(sources, stream, f"{list(sources)[-1]}($x, $y, $stream, $stream + {stream.size});")


def tiled(dense: Dense, pixels: int, rest: Dense | None = None) -> Fast:
    """Return the kernel that a loop over tiles of adjacent pixels calls.

    Where tiles do not fill the pixels, the last one overlaps the one before, or ``rest`` computes what they
    leave, from the same stream.
    """
    if rest is None:
        return Fast(dense.sources, dense.stream, dense.fill(pixels) + _loop(dense, pixels))
    s, first = dense.shape, pixels - rest.shape.tile
    last = f"{rest.shape.name}($x + {first * s.step}, $y + {first * s.o}, $stream, $stream + {dense.end});"
    call = f"{dense.fill(pixels)}{_loop(dense, first)}\n{last}"
    return Fast(dense.sources | rest.sources, dense.stream, call)


def _loop(dense: Dense, pixels: int) -> str:
    s, last = dense.shape, pixels - dense.shape.tile
    start, note = ("p", "")
    if pixels % s.tile:
        start, note = f"p < {last} ? p : {last}", " /* the last tile overlaps the one before */"
    return (
        f"for (int32_t p = 0; p < {pixels}; p += {s.tile}) {{\n"
        f"    const int32_t first = {start};{note}\n"
        f"    {s.name}($x + first * {s.step}, $y + first * {s.o}, $stream, $stream + {dense.end});\n"
        "}"
    )


def _depthwise(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    c = channels(graph, node, requant)
    made = depthwise.forms(graph, node, c) if depthwise.is_exact(c) else []
    yield from (depthwise_of(shape, c) for shape in made[:1])


def depthwise_of(shape: depthwise.Shape, c: Channels) -> Fast:
    """Return the depthwise kernel of a shape, with the constants of a layer."""
    sources = {shape.name: (depthwise.source(shape, c), shape.code_bytes)}
    call = f"{shape.name}($x, $y, $stream);"
    return Fast(sources, depthwise.stream(shape, c), call, in_place=shape.in_place)


def _add(graph: Graph, node: Node, requant: str) -> Iterator[Fast]:
    shape = addition.shape_of(graph, node, requant)
    if shape is not None:
        yield addition_of(shape, prod(graph[node.outputs[0]].shape))


def addition_of(shape: addition.Shape, size: int) -> Fast:
    """Return the kernel that adds ``size`` elements; y may lie over an operand.

    Elements are taken four at once, so the last four may overlap those before: copies of them are added.
    """
    a, b = ("$x2", "$x1") if shape.swapped else ("$x1", "$x2")
    most = size // 4 * 4
    call = f"{shape.name}({a}, {b}, $y, $y + {most}, $stream);"
    if most < size:
        at = size - 4
        call = (
            "uint32_t a, b; /* the last four, before y may be written over them */\n"
            f"__builtin_memcpy(&a, {a} + {at}, 4);\n"
            f"__builtin_memcpy(&b, {b} + {at}, 4);\n"
            f"{call}\n"
            f"{shape.name}((const int8_t *)&a, (const int8_t *)&b, $y + {at}, $y + {size}, $stream);"
        )
    sources = {shape.name: (addition.source(shape), shape.code_bytes)}
    return Fast(sources, addition.stream(shape), call)


_MAKERS: dict[str, Callable[[Graph, Node, str], Iterator[Fast]]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
}
"""For each op, the specialised kernels that are exact for a node, the fastest first."""
