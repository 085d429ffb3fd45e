"""Cross-layer equalization: move range from a layer's channels to the layer that reads them.

Per-tensor quantization gives all channels of a layer one scale, so a channel whose weights are small keeps
few codes.  Between two layers a channel can be divided by ``s > 0`` and multiplied back: the function stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import UnknownNameError, UsageError
from ..ir.graph import Graph, Kind, Node
from .activations import LINEAR_OPS
from .checking import require_float_graph

RELU6_RULES = ("relu", "keep")

DEAD = 2.0**-16
"""A channel whose weights are below this share of its layer's largest carries nothing: it is left alone.

Scaled up to meet its partner it would take its bias along, beyond every other activation of the layer.
"""


@dataclass(frozen=True)
class Pair:
    """Two linear nodes; only ``second`` reads what ``first`` writes, after the nodes ``between``.

    ``between`` moves, averages or clamps each channel for itself, so that it commutes with a positive scale.
    """

    first: Node
    between: tuple[Node, ...]
    second: Node
    channels: int
    """C, the channels that ``first`` writes."""
    inputs: int
    """I, what ``second`` reads: a multiple of C, more than C where an image was flattened."""


def equalize(graph: Graph, *, relu6: str = "relu", tolerance: float = 1e-3, max_rounds: int = 200) -> Graph:
    """Return a graph whose paired layers have equal weight ranges, channel by channel.

    With ``r1[c]`` the largest absolute weight that makes channel ``c`` and ``r2[c]`` the largest that reads
    it, ``s = sqrt(r1 / r2)`` (eq. 11 of [1]_): weights and bias of the first layer are divided by ``s``, the
    weights of the second are multiplied.  A layer belongs to up to two pairs, so all pairs are visited in
    rounds until no ``s`` moves.

    Parameters
    ----------
    graph : Graph
        Float graph with folded batch norms; it is not changed.
    relu6 : {"relu", "keep"}
        A clamp at 6 does not commute with a scale.  ``"relu"`` is the rule of [1]_, section 5.1: a ReLU6
        inside a pair becomes a ReLU first, which changes the function wherever a value exceeded 6.
        ``"keep"`` leaves such pairs, and so the function, as they are.
    tolerance : float, default=1e-3
        Rounds end when ``|log s|`` of every channel is below it.
    max_rounds : int, default=200
        And after so many rounds at the latest.  The function is kept in any case.

    Returns
    -------
    Graph
        Computes what ``graph`` computes (with the ReLU6 replaced, if so asked), up to float32 rounding.

    Raises
    ------
    UsageError
        If the graph is int8, a weight is not finite, or an argument is out of range.

    Notes
    -----
    A tensor with several readers (a residual sum, an output of the graph) and constants that two nodes share
    end a pair.  Pools, means over H and W, zero padding and reshapes that keep the channel axis do not: they
    are positively homogeneous in each channel.  Channels that are all 0 on either side keep ``s = 1``.

    References
    ----------
    .. [1] Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019.
       https://arxiv.org/abs/1906.04721
    """
    if not (0 < tolerance < 1 and max_rounds >= 1):
        raise UsageError(
            f"equalize needs 0 < tolerance < 1 and max_rounds >= 1, got {tolerance}, {max_rounds}"
        )
    pairs = find_pairs(graph, relu6=relu6)
    weights = {n.inputs[1]: _data(graph, n.inputs[1]) for p in pairs for n in (p.first, p.second)}
    biases = {p.first.inputs[2]: _data(graph, p.first.inputs[2]) for p in pairs if len(p.first.inputs) > 2}
    live = [_live(pair, weights) for pair in pairs]
    for _ in range(max_rounds):
        moves = [_equalize_pair(p, weights, biases, alive) for p, alive in zip(pairs, live, strict=True)]
        if max(moves, default=0.0) < tolerance:
            break
    result = _with_relu(graph, pairs)
    for name, data in {**weights, **biases}.items():
        result.update(name, data=data.astype(np.float32))
    return result.validate()


def find_pairs(graph: Graph, *, relu6: str = "relu") -> list[Pair]:
    """Return the pairs of layers that `equalize` treats, in execution order of the first.

    Parameters
    ----------
    relu6 : {"relu", "keep"}
        With ``"keep"``, pairs with a ReLU6 between them are left out.
    """
    if relu6 not in RELU6_RULES:
        raise UnknownNameError("rule for relu6", relu6, RELU6_RULES)
    require_float_graph(graph)
    pairs = []
    for first in graph.nodes:
        path = _path(graph, first) if first.op in LINEAR_OPS else []
        between = [getattr(node.attrs, "activation", "none") for node in path[:-1]]
        clamped = ("relu6" in between and relu6 == "keep") or "relu_n1_to_1" in between
        if path and not clamped:
            sizes = (graph[name].shape[-1] for name in (first.outputs[0], path[-1].inputs[0]))
            pairs.append(Pair(first, tuple(path[1:-1]), path[-1], *sizes))
    return pairs


def _path(graph: Graph, first: Node) -> list[Node]:
    """Return the nodes from ``first`` to the next linear node, both included; [] if something blocks."""
    path, channels = [first], graph[first.outputs[0]].shape[-1]
    while True:
        name = path[-1].outputs[0]
        readers = graph.consumers(name)
        if len(readers) != 1 or readers[0].inputs.count(name) != 1 or name in graph.outputs:
            return []
        path.append(readers[0])
        if path[-1].op in LINEAR_OPS:
            owned = _owns_constants(graph, first) and _owns_constants(graph, path[-1])
            return path if owned and path[-1].inputs[0] == name else []
        if not _keeps_channels(graph, path[-1], channels):
            return []


def _owns_constants(graph: Graph, node: Node) -> bool:
    constants = [graph[name] for name in node.inputs[1:]]
    return all(
        t.kind is Kind.CONSTANT and len(graph.consumers(t.name)) == 1 and t.name not in graph.outputs
        for t in constants
    )


def _keeps_channels(graph: Graph, node: Node, channels: int) -> bool:
    """Return whether ``node`` treats each channel, index modulo ``channels`` on the last axis, for itself."""
    if node.op == "MEAN":
        return len(graph[node.inputs[0]].shape) - 1 not in node.attrs.axes
    if node.op == "PAD":
        return bool(node.attrs.padding[-1] == (0, 0) and node.attrs.value == 0)
    if node.op == "RESHAPE":
        return graph[node.outputs[0]].shape[-1] % channels == 0
    return node.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D")


def _data(graph: Graph, name: str) -> np.ndarray:
    """Return a constant in float64."""
    data = graph[name].data
    assert data is not None
    if not np.isfinite(data).all():
        raise UsageError(f"{name!r} is not finite; check the model before it is equalized")
    return data.astype(np.float64)


def _live(pair: Pair, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return (C,) bool: whether a channel matters to both layers."""
    written = written_range(pair.first, weights[pair.first.inputs[1]])
    read = read_range(pair, weights[pair.second.inputs[1]])
    return (written > DEAD * written.max()) & (read > DEAD * read.max())


def _equalize_pair(
    pair: Pair, weights: dict[str, np.ndarray], biases: dict[str, np.ndarray], live: np.ndarray
) -> float:
    """Scale the weights of one pair in place; return the largest ``|log s|``."""
    first, second = pair.first.inputs[1], pair.second.inputs[1]
    written = written_range(pair.first, weights[first])
    read = read_range(pair, weights[second])
    s = np.sqrt(np.divide(written, read, out=np.ones_like(written), where=live))  # eq. 11
    along = -1 if pair.first.op == "DEPTHWISE_CONV_2D" else (-1,) + (1,) * (weights[first].ndim - 1)
    weights[first] /= s.reshape(along)
    if len(pair.first.inputs) > 2:
        biases[pair.first.inputs[2]] /= s
    weights[second] *= _along_inputs(pair, weights[second], s)
    return float(np.abs(np.log(s)).max())


def written_range(node: Node, w: np.ndarray) -> np.ndarray:
    """Return (O,): the largest absolute weight that makes each output channel of a linear node."""
    axis = w.ndim - 1 if node.op == "DEPTHWISE_CONV_2D" else 0
    return np.moveaxis(np.abs(w), axis, 0).reshape(w.shape[axis], -1).max(axis=1)


def read_range(pair: Pair, w: np.ndarray) -> np.ndarray:
    """Return (C,): the largest absolute weight with which the second layer reads each channel."""
    # The last axis holds (I,) inputs, in a depthwise layer (I, M); input i is channel i % C, because a
    # flattened image holds its channels once for each pixel.
    return (
        np.abs(w)
        .reshape(-1, pair.inputs // pair.channels, pair.channels, _copies(pair, w))
        .max(axis=(0, 1, 3))
    )


def _along_inputs(pair: Pair, w: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return one factor for each entry of the last axis of the second layer's weights."""
    return np.repeat(np.tile(s, pair.inputs // pair.channels), _copies(pair, w))


def _copies(pair: Pair, w: np.ndarray) -> int:
    """Return how many outputs a depthwise layer makes of each input; 1 for the others."""
    return w.shape[-1] // pair.inputs


def _with_relu(graph: Graph, pairs: list[Pair]) -> Graph:
    """Return a copy of the graph in which no ReLU6 is left inside a pair."""
    inside = [node for pair in pairs for node in (pair.first, *pair.between)]
    clamped = [n for n in inside if getattr(n.attrs, "activation", "none") == "relu6"]
    nodes = [
        replace(n, attrs=replace(n.attrs, activation="relu")) if n in clamped else n for n in graph.nodes
    ]
    return replace(graph, tensors=dict(graph.tensors), nodes=nodes)
