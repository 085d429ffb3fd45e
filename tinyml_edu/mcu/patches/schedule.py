"""Patch schedule: the first layers of a network, computed for one tile of their result after the other.

Every tile of the result needs a region of every tensor before it, larger by the kernels' reach: neighbouring
tiles share a *halo*, which is computed twice.  In exchange no tensor of these layers is ever there as a whole
(MCUNetV2, arXiv:2110.15352, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from ...errors import UnknownNameError, UsageError
from ...ir.graph import Graph, Node
from ...ir.ops import OPS, Region, input_region

Span = tuple[int, int]
"""Rows (or columns) ``start <= i < stop``."""

Grid = tuple[int, int]
"""Patches down and across."""

TILINGS = ("balanced", "ceil")


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which region of which tensor each patch computes.

    A region is a pair of spans, and rows do not depend on the patch's column: patch (r, c) holds
    ``rows[name][r]`` × ``columns[name][c]`` of tensor ``name``.

    Attributes
    ----------
    graph : Graph
    layers : int
        The first ``layers`` nodes run once a patch, the others once.
    grid : (int, int)
    rows, columns : dict of str to tuple of Span
        For each tensor that the patches need, the graph's inputs included, its span in each row (column) of
        the grid, clipped to the image; at least one row (column).
    tile_rows, tile_columns : dict of str to tuple of Span
        For each tensor that a later layer or the caller reads, the part that each patch contributes.  The
        tiles cover the tensor without overlap.
    """

    graph: Graph
    layers: int
    grid: Grid
    rows: dict[str, tuple[Span, ...]]
    columns: dict[str, tuple[Span, ...]]
    tile_rows: dict[str, tuple[Span, ...]]
    tile_columns: dict[str, tuple[Span, ...]]

    @cached_property
    def stage(self) -> tuple[Node, ...]:
        """Nodes that run once a patch; one whose result nobody reads is left out."""
        return tuple(node for node in self.graph.nodes[: self.layers] if node.outputs[0] in self.rows)

    @cached_property
    def stage_reads(self) -> frozenset[str]:
        return frozenset(name for node in self.stage for name in node.inputs)

    def is_direct(self, name: str) -> bool:
        """Return whether patches write ``name`` straight into the whole tensor.

        A result that the stage reads itself needs a halo and so a patch of its own; its tile is copied.
        PAD writes no rows apart, so it does too.
        """
        if name not in self.tile_rows or name in self.stage_reads:
            return False
        producer = self.graph.producer(name)
        return producer is not None and producer.op != "PAD"

    def region(self, name: str, r: int, c: int) -> Region:
        """Return the rows and columns of ``name`` that patch (r, c) holds."""
        return *self.rows[name][r], *self.columns[name][c]

    def patch_shape(self, name: str) -> tuple[int, int, int]:
        """Return (height, width, channels) of a buffer that holds any patch of ``name``."""
        height = max(stop - start for start, stop in self.rows[name])
        width = max(stop - start for start, stop in self.columns[name])
        return height, width, self.graph[name].shape[3]

    def patches(self) -> Iterable[tuple[int, int]]:
        """Yield (row, column) of each patch in the order in which they run."""
        for r in range(self.grid[0]):
            for c in range(self.grid[1]):
                yield r, c

    def macs(self) -> dict[str, int]:
        """Return the multiply-accumulates of each node, halos included, by node name."""
        done = {node.name for node in self.stage}
        result = {}
        for i, node in enumerate(self.graph.nodes):
            ins = tuple(self.graph[name].shape for name in node.inputs)
            n, *_, channels = out = self.graph[node.outputs[0]].shape
            if i < self.layers:
                name = node.outputs[0]
                height = sum(stop - start for start, stop in self.rows[name]) if node.name in done else 0
                width = sum(stop - start for start, stop in self.columns[name]) if node.name in done else 0
                out = (n, height, width, channels)
            result[node.name] = OPS[node.op].macs(node.attrs, ins, out)
        return result


def tiles(size: int, count: int, tiling: str = "balanced") -> tuple[Span, ...]:
    """Return ``count`` spans that cover ``size`` rows.

    "balanced" spans differ by at most one row; the longer ones stand at the ends, the last one first, where
    only one neighbour asks for a halo.  "ceil" spans have ``ceil(size / count)`` rows and the last one the
    rest, as in publications; it may be empty.

    Examples
    --------
    >>> tiles(28, 3)
    ((0, 9), (9, 18), (18, 28))
    >>> tiles(28, 3, "ceil")
    ((0, 10), (10, 20), (20, 28))
    """
    if tiling == "ceil":
        starts = [min(i * -(-size // count), size) for i in range(count + 1)]
    else:
        short, longer = divmod(size, count)
        lengths = [short] * count
        for i in range(longer):
            lengths[i // 2 if i % 2 else -1 - i // 2] += 1
        starts = [0, *accumulate(lengths)]
    return tuple(pairwise(starts))


def crossing(graph: Graph, layers: int) -> tuple[str, ...]:
    """Return the tensors that the first ``layers`` nodes make and a later node, or the caller, reads."""
    made = [name for node in graph.nodes[:layers] for name in node.outputs]
    wanted = {name for node in graph.nodes[layers:] for name in node.inputs} | set(graph.outputs)
    return tuple(name for name in made if name in wanted)


def patchable_layers(graph: Graph) -> int:
    """Return how many nodes, from the first, keep rows and columns apart and so can run in patches."""
    data = set(graph.inputs)
    for count, node in enumerate(graph.nodes):
        sources = data_inputs(graph, node)
        shapes = [graph[name].shape for name in (*sources, *node.outputs)]
        images = all(len(shape) == 4 and shape[0] == 1 for shape in shapes)
        first = sources[:1] == node.inputs[:1]
        if not (images and first and data.issuperset(sources) and _keeps_rows(graph, node)):
            return count
        data.update(node.outputs)
    return len(graph.nodes)


def _keeps_rows(graph: Graph, node: Node) -> bool:
    if node.op == "MUL" and graph[node.inputs[1]].shape[1:3] != graph[node.outputs[0]].shape[1:3]:
        # One factor for a whole row or column: only a constant is there before the image is complete.
        return graph[node.inputs[1]].data is not None
    return input_region(graph, node, (0, 1, 0, 1)) is not None


def data_inputs(graph: Graph, node: Node) -> tuple[str, ...]:
    """Return the inputs of ``node`` that are no constants."""
    return tuple(name for name in node.inputs if graph[name].data is None)


def make_schedule(graph: Graph, layers: int, grid: Grid, *, tiling: str = "balanced") -> Schedule:
    """Return the schedule that runs the first ``layers`` nodes in ``grid`` patches.

    Parameters
    ----------
    graph : Graph
        Float or int8.
    layers : int
        0 (the whole image at once) to ``patchable_layers(graph)``.
    grid : (int, int)
        Patches down and across, at most one for each row and column of the tensors that leave the stage.
    tiling : {"balanced", "ceil"}
        How rows are divided among patches, see `tiles`.

    Raises
    ------
    UsageError
        If layers or grid are out of range.
    """
    if tiling not in TILINGS:
        raise UnknownNameError("tiling", tiling, TILINGS)
    most = patchable_layers(graph)
    if not 0 <= layers <= most:
        raise UsageError(
            f"{graph.name} can run 0 to {most} of its {len(graph.nodes)} layers in patches, not {layers}: "
            "patches need images whose rows and columns stay apart"
        )
    results = crossing(graph, layers)
    height = min((graph[name].shape[1] for name in results), default=1)
    width = min((graph[name].shape[2] for name in results), default=1)
    if not (1 <= grid[0] <= height and 1 <= grid[1] <= width):
        raise UsageError(
            f"a grid of {grid[0]}x{grid[1]} patches does not fit a result of {height}x{width} pixels; "
            "use a coarser grid or fewer layers"
        )
    tile_rows = {name: tiles(graph[name].shape[1], grid[0], tiling) for name in results}
    tile_columns = {name: tiles(graph[name].shape[2], grid[1], tiling) for name in results}
    if any(start == stop for n in results for start, stop in (*tile_rows[n], *tile_columns[n])):
        raise UsageError(f"{tiling} tiles leave a patch of {grid[0]}x{grid[1]} empty; use balanced ones")
    # Rows and columns do not mix, so the patches on a diagonal show the spans of all of them.
    rows: dict[str, list[Span]] = {}
    columns: dict[str, list[Span]] = {}
    for i in range(max(grid)):
        r, c = min(i, grid[0] - 1), min(i, grid[1] - 1)
        wanted: dict[str, Region] = {n: (*tile_rows[n][r], *tile_columns[n][c]) for n in results}
        for name, (y0, y1, x0, x1) in _regions(graph, layers, wanted).items():
            rows.setdefault(name, []).append((y0, y1))
            columns.setdefault(name, []).append((x0, x1))
    return Schedule(
        graph,
        layers,
        grid,
        {name: tuple(spans[: grid[0]]) for name, spans in rows.items()},
        {name: tuple(spans[: grid[1]]) for name, spans in columns.items()},
        tile_rows,
        tile_columns,
    )


def _regions(graph: Graph, layers: int, wanted: dict[str, Region]) -> dict[str, Region]:
    """Return the region of each tensor that one patch needs to compute ``wanted``."""
    regions = dict(wanted)
    for node in reversed(graph.nodes[:layers]):
        if node.outputs[0] not in regions:
            continue
        region = input_region(graph, node, regions[node.outputs[0]])
        if region is None:
            raise UsageError(f"{node.name} ({node.op}) mixes rows; let the patches end before it")
        for name in data_inputs(graph, node):
            need = _not_empty(region, graph[name].shape)
            regions[name] = _union(regions[name], need) if name in regions else need
    return regions


def _not_empty(region: Region, shape: tuple[int, ...]) -> Region:
    """Return ``region`` with at least one row and column: what reads only padding still gets a buffer."""
    y0, y1, x0, x1 = region
    y0, x0 = min(y0, shape[1] - 1), min(x0, shape[2] - 1)
    return y0, max(y1, y0 + 1), x0, max(x1, x0 + 1)


def _union(a: Region, b: Region) -> Region:
    return min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3])
