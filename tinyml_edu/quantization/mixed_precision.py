"""A width for each layer: how much each one suffers, and the best widths that a byte budget allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, sparse

from .. import ir
from ..errors import UnknownNameError, UsageError
from ..ir.graph import Graph, Kind, Node
from .affine import quantize_weight, symmetric_scale
from .calibration import as_stored
from .checking import is_whole, require_float_graph
from .post_training import LINEAR_OPS

Sensitivities = dict[str, dict[int, float]]
"""Node name -> bits -> what the network loses when this layer alone has so many."""

METRICS = ("kl", "accuracy")


def weight_counts(graph: Graph) -> dict[str, int]:
    """Return the number of weights of every convolution and fully connected node, by node name."""
    return {node.name: graph[node.inputs[1]].data.size for node in _layers(graph)}  # type: ignore[union-attr]


def weight_bytes(count: int, bits: int) -> int:
    """Return the bytes of ``count`` codes of ``bits`` bits, packed without gaps.

    Examples
    --------
    >>> weight_bytes(27, 3)
    11
    """
    return -(-count * bits // 8)


def round_weights(graph: Graph, bits: Mapping[str, int], *, per_channel: bool = True) -> Graph:
    """Return a float graph with the weights of some layers rounded to few bits; the rest is shared.

    Parameters
    ----------
    graph : Graph
        Float graph; it is not changed.
    bits : mapping of str to int
        Node name -> bits, 2 to 8; other layers keep their float weights.
    per_channel : bool, default=True
        One symmetric scale for each output channel, else one for each tensor, as in `QuantConfig`.

    Raises
    ------
    UsageError
        If the graph is int8, a node does not exist or has no weights, or a width is not 2 to 8.
    """
    require_float_graph(graph)
    layers = {node.name: node for node in _layers(graph)}
    result = Graph(graph.name, dict(graph.tensors), list(graph.nodes), graph.inputs, graph.outputs)
    for name, width in bits.items():
        if name not in layers:
            raise UnknownNameError("layer with weights", name, layers)
        _check_bits([width])
        result.update(layers[name].inputs[1], data=_rounded(graph, layers[name], width, per_channel))
    return result


def _rounded(graph: Graph, node: Node, bits: int, per_channel: bool) -> np.ndarray:
    """Return the weights of one node after a round trip through codes of ``bits`` bits."""
    w = graph[node.inputs[1]].data
    assert w is not None
    axis = (w.ndim - 1 if node.op == "DEPTHWISE_CONV_2D" else 0) if per_channel else None
    scale = symmetric_scale(w, axis, bits=bits)
    scale = np.where(scale > 0, scale, 1.0)  # a channel of zeros has any scale
    shape = [1] * w.ndim
    shape[axis or 0] = -1
    return (quantize_weight(w, scale, axis, bits=bits) * scale.reshape(shape)).astype(np.float32)


def sensitivity(
    graph: Graph,
    x: Any,
    y: Any = None,
    *,
    bits: Sequence[int] = (2, 3, 4, 5, 6, 8),
    metric: str = "kl",
    per_channel: bool = True,
) -> Sensitivities:
    """Return what a network loses when one layer's weights have few bits and all else is float.

    Parameters
    ----------
    graph : Graph
        Float graph with one input and one output of logits (N, classes), or of probabilities if its last
        node is a SOFTMAX.
    x : ndarray or torch.Tensor
        Validation inputs, see `calibration.as_stored`.
    y : ndarray, optional
        Labels (N,), for ``metric="accuracy"``.
    bits : sequence of int
        Widths to try, each 2 to 8.
    metric : {"kl", "accuracy"}
        Mean over the inputs of ``KL(p_float || p_rounded)`` in nats, which needs no labels; or the accuracy
        that is lost, which may be negative.
    per_channel : bool, default=True
        As in `round_weights`.

    Returns
    -------
    dict of str to dict of int to float
        Node name -> bits -> loss.

    Raises
    ------
    UsageError
        If the graph is int8, inputs or labels do not fit, or a width is not 2 to 8.

    Notes
    -----
    A layer is rounded, and the graph is run from it on: earlier activations are those of the float graph.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    _check_bits(bits)
    require_float_graph(graph)
    if len(graph.outputs) != 1:
        raise UsageError(f"graph {graph.name} has {len(graph.outputs)} outputs; only one is supported here")
    x = as_stored(graph, x)
    if len(x) == 0:
        raise UsageError("there are no inputs; pass at least one, a few hundred are better")
    labels = _labels(y, len(x), metric)
    values = ir.run(graph, x, keep=True)
    reference = values[graph.outputs[0]]
    probabilities = any(node.op == "SOFTMAX" and node.outputs == graph.outputs for node in graph.nodes)
    result: Sensitivities = {}
    for node in _layers(graph):
        result[node.name] = {}
        for width in bits:
            tail = _from_node(round_weights(graph, {node.name: width}, per_channel=per_channel), node)
            output = ir.run(tail, {name: values[name] for name in tail.inputs})
            loss = (
                _lost_accuracy(reference, output, labels)
                if labels is not None
                else _mean_kl(reference, output, probabilities)
            )
            result[node.name][width] = loss
    return result


def _layers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op in LINEAR_OPS and graph[node.inputs[1]].data is not None]


def _check_bits(bits: Sequence[int]) -> None:
    if not bits or not all(is_whole(width, 2, 8) for width in bits):
        raise UsageError(f"widths must be whole numbers from 2 to 8, got {list(bits)}")


def _labels(y: Any, n: int, metric: str) -> np.ndarray | None:
    if metric == "kl":
        return None
    labels = None if y is None else np.asarray(y)
    if labels is None or labels.shape != (n,):
        raise UsageError(
            f"metric='accuracy' needs a label for each of the {n} inputs; pass y, or metric='kl'"
        )
    return labels


def _from_node(graph: Graph, node: Node) -> Graph:
    """Return the part of a graph from one node on; what it reads of the part before becomes input."""
    nodes = graph.nodes[graph.nodes.index(node) :]
    made = {name for later in nodes for name in later.outputs}
    read = {name for later in nodes for name in later.inputs} - made
    inputs = tuple(name for name in graph.tensors if name in read and graph[name].kind is not Kind.CONSTANT)
    tail = Graph(graph.name, dict(graph.tensors), nodes, inputs, graph.outputs)
    for name in inputs:
        tail.update(name, kind=Kind.INPUT)
    return tail


def _log_softmax(z: np.ndarray, probabilities: bool) -> np.ndarray:
    z = z.astype(np.float64)
    if probabilities:
        return np.log(np.maximum(z, np.finfo(np.float32).tiny))
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def _mean_kl(reference: np.ndarray, output: np.ndarray, probabilities: bool) -> float:
    p, q = _log_softmax(reference, probabilities), _log_softmax(output, probabilities)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _lost_accuracy(reference: np.ndarray, output: np.ndarray, labels: np.ndarray) -> float:
    return float((reference.argmax(-1) == labels).mean() - (output.argmax(-1) == labels).mean())


def assign_bits(
    sensitivities: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget_bytes: int
) -> dict[str, int]:
    """Return the width of each layer that loses least in sum and whose codes fit into a budget.

    An integer linear program: one binary variable for each layer and width, one width for each layer, bytes
    up to the budget.  Branch and bound solves it to the proven optimum, without a gap.

    Parameters
    ----------
    sensitivities : mapping of str to mapping of int to float
        Layer -> bits -> loss, as from `sensitivity`.
    sizes : mapping of str to int
        Layer -> number of weights, as from `weight_counts`.
    budget_bytes : int
        Bytes for all weight codes, each layer's rounded up, see `weight_bytes`; scales and biases, the same
        for all widths, are not in it.

    Returns
    -------
    dict of str to int
        Layer -> bits, for ``QuantConfig(weight_bits_by_layer=...)``.

    Raises
    ------
    UsageError
        If the budget is below what the smallest widths need, or a loss or a size is missing or not finite.

    Notes
    -----
    The sum assumes that losses of layers add up, as first-order terms do; measure the result.

    Examples
    --------
    >>> losses = {"first": {2: 0.9, 8: 0.0}, "second": {2: 0.1, 8: 0.0}}
    >>> assign_bits(losses, {"first": 100, "second": 100}, budget_bytes=130)
    {'first': 8, 'second': 2}
    """
    options = _options(sensitivities, sizes)
    least = sum(min(size for _, size, _ in choices) for choices in options.values())
    if not isinstance(budget_bytes, int | float | np.number) or not least <= budget_bytes:
        raise UsageError(
            f"a budget of {budget_bytes} bytes is too small: the narrowest widths need {least} bytes; "
            "raise the budget, or measure fewer bits"
        )
    chosen = {layer: min(choices, key=lambda c: (c[1], c[2])) for layer, choices in options.items()}
    while True:
        # The solver's tolerances are absolute, so that its numbers must be of the size of the answer.  An
        # option that loses more than a whole known solution is not in the best one: leave it out, measure in
        # units of that solution, and solve again until nothing more falls out.
        bound = sum(loss for _, _, loss in chosen.values())
        kept = {layer: [c for c in choices if c[2] <= bound] for layer, choices in options.items()}
        found = _solve(kept, budget_bytes, bound)
        value = sum(loss for _, _, loss in found.values())
        if value < bound:
            chosen = found
        if value >= bound or value == 0:
            return {layer: bits for layer, (bits, _, _) in chosen.items()}


Option = tuple[int, int, float]
"""Bits, bytes, and the loss above the layer's smallest."""


def _options(
    sensitivities: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int]
) -> dict[str, list[Option]]:
    if not sensitivities:
        raise UsageError("there is no layer to give bits to; measure with sensitivity(graph, x) first")
    if missing := set(sensitivities) - set(sizes):
        raise UsageError(f"no size is given for {sorted(missing)[0]!r}; take sizes=weight_counts(graph)")
    options = {}
    for layer, losses in sensitivities.items():
        if not losses or not np.isfinite(list(losses.values())).all():
            raise UsageError(f"the losses of {layer!r} are missing or not finite; measure it again")
        lowest = min(losses.values())  # a constant in every solution, and it may be negative
        options[layer] = [(b, weight_bytes(sizes[layer], b), loss - lowest) for b, loss in losses.items()]
    return options


def _solve(options: Mapping[str, Sequence[Option]], budget_bytes: int, unit: float) -> dict[str, Option]:
    """Return the best option of each layer; a feasible choice must exist."""
    flat = [(layer, option) for layer, choices in options.items() for option in choices]
    layers = list(options)
    place = [layers.index(layer) for layer, _ in flat]
    one_each = sparse.csr_array((np.ones(len(flat)), (place, range(len(flat)))), (len(layers), len(flat)))
    size = np.array([option[1] for _, option in flat], np.float64)
    # Bytes are whole numbers: half a byte of room keeps the solver's tolerance from excluding an exact fit.
    bytes_row = optimize.LinearConstraint(size[None, :], ub=budget_bytes + 0.5)
    solution = optimize.milp(
        np.array([option[2] for _, option in flat]) / (unit or 1.0),
        integrality=np.ones(len(flat)),
        bounds=optimize.Bounds(0, 1),
        constraints=[optimize.LinearConstraint(one_each, 1, 1), bytes_row],
        options={"mip_rel_gap": 0.0},
    )
    assert solution.x is not None, solution.message
    chosen = {layer: option for (layer, option), taken in zip(flat, solution.x) if taken > 0.5}
    assert len(chosen) == len(layers), solution.message
    assert sum(option[1] for option in chosen.values()) <= budget_bytes, solution.message
    return chosen
