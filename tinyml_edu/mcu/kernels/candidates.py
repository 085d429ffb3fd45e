"""Every specialised kernel that is exact for a node: what a search chooses from.

A *description* is a frozen dataclass that holds all that the C of a kernel depends on (a writer's ``Shape``,
or `Adjacent`); `describe` lists those of a node, `build` makes one into C and constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

from ...ir.graph import Graph, Node
from . import addition, depthwise, direct, long_sums, pointwise, weights, winograd
from .requantize import Channels, channels
from .selection import (
    Fast,
    addition_of,
    dense_of,
    depthwise_of,
    legal,
    long_shapes,
    side_by_side,
    tiled,
    whole,
)

_Dense = pointwise.Shape | long_sums.Shape


@dataclass(frozen=True)
class Adjacent:
    """A 1x1 convolution or FULLY_CONNECTED over ``pixels`` pixels (or rows), side by side.

    ``main`` computes whole tiles.  ``rest`` computes the pixels that they leave; without it, the last tile
    overlaps the one before.
    """

    pixels: int
    main: _Dense
    rest: pointwise.Shape | None = None


Description = Adjacent | direct.Shape | winograd.Shape | depthwise.Shape | addition.Shape


def describe(graph: Graph, node: Node, requant: str) -> list[Description]:
    """Return the kernels that are exact for a node, in no order; none for an op without any."""
    make = _DESCRIBERS.get(node.op)
    return list(dict.fromkeys(make(graph, node, requant))) if make else []


def build(description: Description, graph: Graph, node: Node, requant: str) -> Fast:
    """Return the C and the constants of a node's kernel."""
    d = description
    if isinstance(d, addition.Shape):
        return addition_of(d, prod(graph[node.outputs[0]].shape))
    c = channels(graph, node, requant)
    if isinstance(d, Adjacent):
        c = weights.overlapped(c)
        return tiled(dense_of(d.main, c), d.pixels, dense_of(d.rest, c) if d.rest else None)
    if isinstance(d, depthwise.Shape):
        return depthwise_of(d, c)
    c = direct.padded(c)
    if isinstance(d, winograd.Shape):
        return whole({d.name: (winograd.source(d, c), d.code_bytes)}, winograd.stream(d, c))
    dense = dense_of(d.inner, c)
    call = f"{d.name}($x, $y, $stream, $stream + {dense.end});"
    sources = dense.sources | {d.name: (direct.source(d), d.code_bytes)}
    return Fast(sources, dense.stream, dense.fill(d.out_height * d.out_width) + call)


def _conv(graph: Graph, node: Node, requant: str) -> Iterator[Description]:
    unpadded = channels(graph, node, requant)
    c = direct.padded(unpadded)
    if not c.fits:
        return
    transformed = winograd.shape_of(graph, node, c)
    if transformed is not None:
        yield from _transformed(transformed)
    pixels = side_by_side(graph, node)
    if pixels:
        yield from _adjacent(unpadded, pixels)
        return
    for inner in _dense(c, prod(graph[node.outputs[0]].shape[1:3]), patches=True):
        shape = direct.shape_of(graph, node, inner)
        if shape is not None:
            yield shape


def _fully_connected(graph: Graph, node: Node, requant: str) -> Iterator[Description]:
    c, rows = channels(graph, node, requant), side_by_side(graph, node)
    if c.fits and rows:
        yield from _adjacent(c, rows)


def _adjacent(c: Channels, pixels: int) -> Iterator[Adjacent]:
    inputs = c.weights.shape[1]
    for main in _dense(weights.overlapped(c), pixels, inputs=inputs if inputs % 4 else 0):
        yield Adjacent(pixels, main)
        left = pixels % main.tile
        if left and isinstance(main, pointwise.Shape):
            yield Adjacent(pixels, main, replace(main, tile=left))  # it reads the same stream


def _dense(c: Channels, pixels: int, *, patches: bool = False, inputs: int = 0) -> Iterator[_Dense]:
    """Yield the kernels for ``pixels`` pixels; ``patches`` as in `selection`, ``inputs`` as in the shapes."""
    o, k = c.weights.shape
    for long in long_shapes(c, patches=patches, inputs=inputs):
        yield from (replace(long, unroll=n) for n in _few(long_sums.unrolls(long.step)))
    # The largest tile, the one of fewest instructions, and a smaller one where packed weights need a register
    # for a loop; others only do the same work in more rounds.
    tiles = [t for t in pointwise.tiles(pixels, k, 3 if patches else 2) if pointwise.is_legal(k, o, t)]
    best = pointwise.best_tile(pixels, k, 3 if patches else 2)
    for packed in legal(c.take(weights.to_compute(c))):
        for tile in sorted({*tiles[:1], *(t for t in tiles if t == best), *(tiles[1:2] if packed else [])}):
            for n in pointwise.unrolls(k, tile, packed=packed)[:3]:
                yield pointwise.Shape(k, o, tile, packed, c.rounding, c.clamp, inputs, n)


def _few(values: list[int]) -> list[int]:
    """Return the first value, which is taken unmeasured, and the largest: the others lie between."""
    return list(dict.fromkeys([values[0], max(values)]))


def _transformed(s: winograd.Shape) -> Iterator[winograd.Shape]:
    """Yield each tile as it is taken unmeasured, and with kept rows for three lengths of a round."""
    for pairs in winograd.tiles(s.channels, s.out_width, s.outputs):
        yield replace(s, pairs=pairs)
        keeps = s.out_height > 1
        for unroll in {*_few(winograd.unrolls(s.channels)), 4 if s.words % 4 == 0 else 2}:
            yield replace(s, pairs=pairs, unroll=unroll, keeps=keeps)


def _depthwise(graph: Graph, node: Node, requant: str) -> Iterator[Description]:
    c = channels(graph, node, requant)
    if depthwise.is_exact(c):
        yield from depthwise.forms(graph, node, c)


def _add(graph: Graph, node: Node, requant: str) -> Iterator[Description]:
    shape = addition.shape_of(graph, node, requant)
    if shape is not None:
        size = prod(graph[node.outputs[0]].shape)
        yield from (replace(shape, unroll=n) for n in addition.unrolls(size))


_DESCRIBERS: dict[str, Callable[[Graph, Node, str], Iterator[Description]]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
}
