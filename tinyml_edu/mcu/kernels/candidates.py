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
from .selection import Fast, dense_of, legal, tiled, whole

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
        first, second = ("$x2", "$x1") if d.swapped else ("$x1", "$x2")
        end = f"$y + {prod(graph[node.outputs[0]].shape)}"
        call = f"{d.name}({first}, {second}, $y, {end}, $stream);"
        return Fast({d.name: (addition.source(d), d.code_bytes)}, addition.stream(d), call)
    c = _numbers(graph, node, requant)
    if isinstance(d, depthwise.Shape):
        sources = {d.name: (depthwise.source(d, c), d.code_bytes)}
        return Fast(sources, depthwise.stream(c), f"{d.name}($x, $y, $stream);")
    if isinstance(d, winograd.Shape):
        return whole({d.name: (winograd.source(d, c), d.code_bytes)}, winograd.stream(d, c))
    if isinstance(d, direct.Shape):
        dense = dense_of(d.inner, c)
        call = f"{d.name}($x, $y, $stream, $stream + {dense.end});"
        sources = dense.sources | {d.name: (direct.source(d), d.code_bytes)}
        return Fast(sources, dense.stream, dense.fill(d.out_height * d.out_width) + call)
    return tiled(dense_of(d.main, c), d.pixels, dense_of(d.rest, c) if d.rest else None)


def _numbers(graph: Graph, node: Node, requant: str) -> Channels:
    c = channels(graph, node, requant)
    return direct.padded(c) if node.op == "CONV_2D" else c


def _conv(graph: Graph, node: Node, requant: str) -> Iterator[Description]:
    c = _numbers(graph, node, requant)
    if not c.fits:
        return
    x, y = graph[node.inputs[0]].shape, graph[node.outputs[0]].shape
    transformed = winograd.shape_of(graph, node, c)
    if transformed is not None:
        yield from _transformed(transformed)
    a = node.attrs
    adjacent = graph[node.inputs[1]].shape[1:3] == (1, 1) and a.stride == (1, 1) and not any(a.padding)
    if adjacent and x[3] == c.weights.shape[1]:
        yield from _adjacent(c, prod(x[1:3]))
        return
    for inner in _dense(c, prod(y[1:3]), patches=True):
        shape = direct.shape_of(graph, node, inner)
        if shape is not None:
            yield shape


def _fully_connected(graph: Graph, node: Node, requant: str) -> Iterator[Description]:
    c = _numbers(graph, node, requant)
    if c.fits:
        yield from _adjacent(c, prod(graph[node.inputs[0]].shape) // c.weights.shape[1])


def _adjacent(c: Channels, pixels: int) -> Iterator[Adjacent]:
    for main in _dense(c, pixels):
        yield Adjacent(pixels, main)
        left = pixels % main.tile
        if left and isinstance(main, pointwise.Shape):
            yield Adjacent(pixels, main, replace(main, tile=left))  # it reads the same stream


def _dense(c: Channels, pixels: int, *, patches: bool = False) -> Iterator[_Dense]:
    """Yield the kernels for ``pixels`` pixels; ``patches`` as in `selection`."""
    o, k = c.weights.shape
    for packed in legal(c):
        long = long_sums.shape_of(c, packed=packed)
        if long is not None and not (patches and k > pointwise.MAX_SCRATCH_BYTES):
            yield from (replace(long, unroll=n) for n in _few(long_sums.unrolls(k)))
    # The largest tile, the one of fewest instructions, and a smaller one where packed weights need a register
    # for a loop; others only do the same work in more rounds.
    tiles = [t for t in pointwise.tiles(pixels, k, 3 if patches else 2) if pointwise.is_legal(k, o, t)]
    best = pointwise.best_tile(pixels, k, 3 if patches else 2)
    for packed in legal(c.take(weights.to_compute(c))):
        for tile in sorted({*tiles[:1], *(t for t in tiles if t == best), *(tiles[1:2] if packed else [])}):
            for n in pointwise.unrolls(k, tile, packed=packed)[:3]:
                yield pointwise.Shape(k, o, tile, packed, c.rounding, c.clamp, n)


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
    c = _numbers(graph, node, requant)
    shape = depthwise.shape_of(graph, node, c)
    if shape is None or not c.fits or not (c.rounding == "single" or c.doubles):
        return
    for tile in shape.tiles:
        other = replace(shape, chosen_tile=tile if tile != shape.tile else 0)
        if depthwise.is_legal(other):
            yield other


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
