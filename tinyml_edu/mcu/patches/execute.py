"""Run a patch schedule with the exact integer kernels: the definition that generated code is compared with.

Each node computes a window of its output from buffers with their own origins.  What lies outside a buffer
that holds everything the window needs lies outside the image, so the kernels' own padding is the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...errors import UnknownNameError, UsageError
from ...ir.execute import run
from ...ir.fixed_point import REQUANT_MODES
from ...ir.graph import Graph, Kind, Node
from ...ir.ops import OPS, Region
from .schedule import Schedule


class Buffer(NamedTuple):
    """Part of an image: int8 (N, h, w, C), and the row and column of the image at which it starts."""

    values: np.ndarray
    origin: tuple[int, int] = (0, 0)


SLIDING = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")


def run_patches(
    schedule: Schedule, x: np.ndarray | Mapping[str, np.ndarray], *, requant: str = "exact"
) -> np.ndarray | dict[str, np.ndarray]:
    """Run an int8 graph by patches; the result equals ``ir.run(schedule.graph, x)`` bit for bit.

    Parameters
    ----------
    schedule : Schedule
        Of an int8 graph.
    x : ndarray of int8, or dict of input name to array
        Codes, batch first.
    requant : {"exact", "fast"}

    Returns
    -------
    ndarray of int8, or dict of output name to array if the graph has several outputs

    Raises
    ------
    UsageError
        If the graph is not int8.
    """
    if requant not in REQUANT_MODES:
        raise UnknownNameError("requantization", requant, REQUANT_MODES)
    graph = schedule.graph
    if any(graph[node.outputs[0]].dtype != "int8" for node in schedule.stage):
        raise UsageError(f"{graph.name} is not int8; patches run with integer kernels: quantize it first")
    inputs = {k: np.asarray(v) for k, v in x.items()} if isinstance(x, Mapping) else {graph.inputs[0]: x}
    n = len(next(iter(inputs.values())))
    whole = {name: np.zeros((n, *graph[name].shape[1:]), np.int8) for name in schedule.tile_rows}
    for r, c in schedule.patches():
        for name, tile in run_patch(schedule, inputs, r, c, requant).items():
            rows, columns = slice(*schedule.tile_rows[name][r]), slice(*schedule.tile_columns[name][c])
            whole[name][:, rows, columns] = tile
    rest = remainder(schedule)
    return run(rest, {name: (whole | inputs)[name] for name in rest.inputs}, requant=requant)


def run_patch(
    schedule: Schedule, inputs: Mapping[str, np.ndarray], r: int, c: int, requant: str
) -> dict[str, np.ndarray]:
    """Return the tiles of all results of the stage that patch (r, c) contributes."""
    graph = schedule.graph
    buffers: dict[str, Buffer] = {}
    for name in graph.inputs:
        if name in schedule.rows:
            y0, y1, x0, x1 = schedule.region(name, r, c)
            buffers[name] = Buffer(inputs[name][:, y0:y1, x0:x1], (y0, x0))
    for node in schedule.stage:
        name = node.outputs[0]
        region = schedule.region(name, r, c)
        buffers[name] = Buffer(window(graph, node, buffers, region, requant), (region[0], region[2]))
    tiles = {}
    for name in schedule.tile_rows:
        (y0, y1), (x0, x1) = schedule.tile_rows[name][r], schedule.tile_columns[name][c]
        values, (oy, ox) = buffers[name]
        tiles[name] = values[:, y0 - oy : y1 - oy, x0 - ox : x1 - ox]
    return tiles


def remainder(schedule: Schedule) -> Graph:
    """Return the graph of the layers behind the patches; its inputs are what the patches leave."""
    graph = schedule.graph
    nodes = graph.nodes[schedule.layers :]
    read = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    sources = tuple(name for name in (*graph.inputs, *schedule.tile_rows) if name in read)
    tensors = dict(graph.tensors)
    for name in schedule.tile_rows:
        tensors[name] = replace(tensors[name], kind=Kind.INPUT)
    return Graph(graph.name, tensors, list(nodes), sources, graph.outputs)


def window(
    graph: Graph,
    node: Node,
    buffers: Mapping[str, Buffer],
    region: Region,
    requant: str,
) -> np.ndarray:
    """Return ``region`` of the output of ``node``, int8 (N, rows, columns, C).

    Parameters
    ----------
    buffers : mapping of str to Buffer
        Inputs of the node: any part of the image that holds what ``region`` needs.
    """
    spec = OPS[node.op]
    source, (oy, ox) = buffers[node.inputs[0]]
    y0, y1, x0, x1 = region
    shape = (len(source), y1 - y0, x1 - x0, graph[node.outputs[0]].shape[3])
    params: Any = spec.params(graph, node)
    if node.op == "PAD":
        return _pad(node, buffers[node.inputs[0]], region, params)
    if node.op in SLIDING:
        attrs = replace(node.attrs, padding=(*local_padding(node, (oy, ox), region), 0, 0))
        constants = [graph[name].data for name in node.inputs[1:]]
        return spec.integer_kernel(
            source, *constants, attrs=attrs, params=params, out_shape=shape, requant=requant
        )
    if node.op == "RESIZE_NEAREST_NEIGHBOR":
        params = params[0][y0:y1] - oy, params[1][x0:x1] - ox
        args = [source]
    else:
        args = [_crop(graph, name, buffers, region, len(source)) for name in node.inputs]
    return spec.integer_kernel(*args, attrs=node.attrs, params=params, out_shape=shape, requant=requant)


def local_padding(node: Node, origin: tuple[int, int], region: Region) -> tuple[int, int]:
    """Return the signed (top, left) padding of a sliding kernel that computes ``region`` from a buffer.

    Output row i of the window reads rows ``(y0 + i) * stride - top + k`` of the image, that is ``i * stride -
    (top + oy - y0 * stride) + k`` of a buffer that starts at row ``oy``.
    """
    a = node.attrs
    top = a.padding[0] + origin[0] - region[0] * a.stride[0]
    left = a.padding[1] + origin[1] - region[2] * a.stride[1]
    return top, left


def _crop(
    graph: Graph,
    name: str,
    buffers: Mapping[str, Buffer],
    region: Region,
    n: int,
) -> np.ndarray:
    """Return ``region`` of an operand of an elementwise op; an axis of length 1 stays as it is.

    A constant is one image, which is repeated for a batch.
    """
    data = graph[name].data
    values, (oy, ox) = buffers[name] if data is None else Buffer(np.repeat(data, n, axis=0))
    y0, y1, x0, x1 = region
    rows = slice(None) if graph[name].shape[1] == 1 else slice(y0 - oy, y1 - oy)
    columns = slice(None) if graph[name].shape[2] == 1 else slice(x0 - ox, x1 - ox)
    return values[:, rows, columns]


def _pad(node: Node, source: Buffer, region: Region, code: int) -> np.ndarray:
    """Return a window of a padded image: ``x`` moved to its place in a frame of ``code``."""
    x, origin = source
    _, (top, _), (left, _), channels = node.attrs.padding
    y0, y1, x0, x1 = region
    y, low, high = _overlap(origin[0] + top - y0, x.shape[1], y1 - y0)
    z, left_end, right_end = _overlap(origin[1] + left - x0, x.shape[2], x1 - x0)
    frame = np.full((len(x), y1 - y0, x1 - x0, x.shape[3]), code, np.int8)
    frame[:, low:high, left_end:right_end] = x[:, y : y + high - low, z : z + right_end - left_end]
    return np.pad(frame, ((0, 0), (0, 0), (0, 0), channels), constant_values=code)


def _overlap(at: int, size: int, frame: int) -> tuple[int, int, int]:
    """Return (first source row, first and last frame row) of ``size`` rows placed at row ``at``."""
    low, high = max(at, 0), min(at + size, frame)
    return low - at, low, max(low, high)
