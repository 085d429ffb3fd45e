"""Rewrites that turn a literal transcript of a PyTorch graph into the ops that the compiler knows.

Capture first writes batch norms and activations as nodes of their own (`BATCH_NORM`, `ACTIVATION`).
Each rewrite here keeps the computed function and removes nodes; what cannot be folded is lowered:

- a batch norm folds into the convolution or linear layer before it, else it becomes a 1×1 depthwise;
- an activation fuses into the node that makes its input, else it becomes a 1×1 MAX_POOL_2D, which clamps
  codes without rounding them again (a 1×1 depthwise would cost a multiplication and another half step);
- zero padding moves into the convolution after it;
- a QUANTIZE stands between a sigmoid or softmax, whose scale is fixed, and a concatenation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..ir.attrs import DepthwiseConv2D, Pool2D, Quantize, Reshape
from ..ir.graph import Graph, Kind, Node, Tensor
from ..ir.ops import FIXED_SCALES, ONE_SCALE_OPS

LINEAR_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
FUSING_OPS = (*LINEAR_OPS, "ADD", "SUB", "MUL", "AVERAGE_POOL_2D")
# f(op(x)) == op(f(x)) for a clamp f with f(0) = 0: an activation may move to the other side of these, but
# for a PAD with another value than 0.
COMMUTING_OPS = ("MAX_POOL_2D", "RESHAPE", "PAD", "RESIZE_NEAREST_NEIGHBOR")


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """``y = scale * x + shift`` along the last axis; both float64 of shape (C,)."""

    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Activation:
    """``kind`` is one of `ir.attrs.ACTIVATIONS` but "none"."""

    kind: str


def fold(graph: Graph) -> Graph:
    """Return ``graph``, rewritten in place until only ops of ``ir.ops.OPS`` remain."""
    _merge_reshapes(graph)
    _fold_padding(graph)
    _fold_batch_norms(graph)
    for node in [n for n in graph.nodes if n.op == "BATCH_NORM"]:
        _lower_batch_norm(graph, node)
    _fold_activations(graph)
    for node in [n for n in graph.nodes if n.op == "ACTIVATION"]:
        _lower_activation(graph, node)
    _merge_reshapes(graph)
    _requantize_joined(graph)
    used = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}
    used |= {*graph.inputs, *graph.outputs}
    graph.tensors = {name: tensor for name, tensor in graph.tensors.items() if name in used}
    return graph


def _requantize_joined(graph: Graph) -> None:
    """Free the inputs of CONCATENATION, which copies codes of one scale, from prescribed scales."""
    for node in [n for n in graph.nodes if n.op == "CONCATENATION"]:
        inputs, made = [], []
        for name in node.inputs:
            if _has_fixed_scale(graph, name):
                free = graph.add(
                    replace(graph[name], name=graph.unique(f"{name}.quantize"), kind=Kind.ACTIVATION)
                )
                made.append(Node(free, "QUANTIZE", (name,), (free,), Quantize()))
                name = free  # noqa: PLW2901
            inputs.append(name)
        if made:
            _swap(graph, node, *made, replace(node, inputs=tuple(inputs)))


def _has_fixed_scale(graph: Graph, name: str) -> bool:
    maker = graph.producer(name)
    while maker is not None and maker.op in ONE_SCALE_OPS and maker.op != "CONCATENATION":
        maker = graph.producer(maker.inputs[0])
    return maker is not None and maker.op in FIXED_SCALES


def _sole_producer(graph: Graph, name: str) -> Node | None:
    """Return the node that makes ``name`` if exactly one node, and nobody outside, reads it."""
    if name in graph.outputs or len(graph.consumers(name)) != 1:
        return None
    return graph.producer(name)


def _swap(graph: Graph, old: Node, *new: Node) -> None:
    at = graph.nodes.index(old)
    graph.nodes[at : at + 1] = new


def _bypass(graph: Graph, node: Node) -> None:
    """Remove ``node``: its readers read its first input instead."""
    source, gone = node.inputs[0], node.outputs[0]
    graph.nodes.remove(node)
    graph.nodes[:] = [
        replace(n, inputs=tuple(source if name == gone else name for name in n.inputs)) for n in graph.nodes
    ]
    graph.outputs = tuple(source if name == gone else name for name in graph.outputs)
    del graph.tensors[gone]


def _merge_reshapes(graph: Graph) -> None:
    for node in [n for n in graph.nodes if n.op == "RESHAPE"]:
        before = _sole_producer(graph, node.inputs[0])
        if before is not None and before.op == "RESHAPE":
            _bypass(graph, before)
    for node in [n for n in graph.nodes if n.op == "RESHAPE"]:
        # A graph output keeps its own tensor, so that an output is never also an input.
        if (
            graph[node.inputs[0]].shape == graph[node.outputs[0]].shape
            and node.outputs[0] not in graph.outputs
        ):
            _bypass(graph, node)


def _fold_padding(graph: Graph) -> None:
    """Move zero padding of H and W into the convolution that alone reads it."""
    for pad in [n for n in graph.nodes if n.op == "PAD"]:
        readers = graph.consumers(pad.outputs[0])
        amounts = pad.attrs.padding
        spatial_only = len(amounts) == 4 and amounts[0] == amounts[3] == (0, 0) and pad.attrs.value == 0
        convolution = readers and readers[0].op in ("CONV_2D", "DEPTHWISE_CONV_2D")
        if len(readers) != 1 or not convolution or not spatial_only or pad.outputs[0] in graph.outputs:
            continue
        (top, bottom), (left, right) = amounts[1:3]
        t, lt, b, r = readers[0].attrs.padding
        attrs = replace(readers[0].attrs, padding=(t + top, lt + left, b + bottom, r + right))
        _swap(graph, readers[0], replace(readers[0], attrs=attrs))
        _bypass(graph, pad)


def _fold_batch_norms(graph: Graph) -> None:
    for name in [n.name for n in graph.nodes if n.op == "BATCH_NORM"]:
        node = next(n for n in graph.nodes if n.name == name)  # as a bypass before may have rewritten it
        before = _sole_producer(graph, node.inputs[0])
        if before is not None and before.op in LINEAR_OPS and before.attrs.activation == "none":
            _scale_output(graph, before, node.attrs)
            _bypass(graph, node)


def _scale_output(graph: Graph, node: Node, norm: BatchNorm) -> None:
    """Give a linear node the weights and bias of ``scale * node(x) + shift``, computed in float64."""
    weight, bias = (graph[name] for name in node.inputs[1:])
    along = (1, 1, 1, -1) if node.op == "DEPTHWISE_CONV_2D" else (-1,) + (1,) * (len(weight.shape) - 1)
    assert weight.data is not None
    assert bias.data is not None
    scaled = (weight.data.astype(np.float64) * norm.scale.reshape(along)).astype(np.float32)
    shifted = (bias.data.astype(np.float64) * norm.scale + norm.shift).astype(np.float32)
    graph.update(weight.name, data=scaled)
    graph.update(bias.name, data=shifted)


def _as_image(graph: Graph, node: Node, op: str, attrs: object, constants: tuple[str, ...]) -> None:
    """Put ``op`` in the place of ``node``; features (1, F) pass as an image (1, 1, 1, F)."""
    source, result = node.inputs[0], node.outputs[0]
    shape = graph[source].shape
    if len(shape) == 4:
        _swap(graph, node, Node(node.name, op, (source, *constants), (result,), attrs))
        return
    image = (1, 1, 1, int(np.prod(shape)))
    names = [graph.unique(f"{node.name}.{suffix}") for suffix in ("image", "result")]
    for name in names:
        graph.add(Tensor(name, image, "float32", Kind.ACTIVATION))
    _swap(
        graph,
        node,
        Node(names[0], "RESHAPE", (source,), (names[0],), Reshape(image)),
        Node(node.name, op, (names[0], *constants), (names[1],), attrs),
        Node(f"{node.name}.reshape", "RESHAPE", (names[1],), (result,), Reshape(shape)),
    )


def _lower_batch_norm(graph: Graph, node: Node) -> None:
    channels = node.attrs.scale.size
    weight = node.attrs.scale.astype(np.float32).reshape(1, 1, 1, channels)
    shift = node.attrs.shift.astype(np.float32)
    names = []
    for suffix, data in (("weight", weight), ("bias", shift)):
        name = graph.unique(f"{node.name}.{suffix}")
        names.append(graph.add(Tensor(name, data.shape, "float32", Kind.CONSTANT, data)))
    _as_image(graph, node, "DEPTHWISE_CONV_2D", DepthwiseConv2D(), tuple(names))


def _fold_activations(graph: Graph) -> None:
    for name in [n.name for n in graph.nodes if n.op == "ACTIVATION"]:
        node = next(n for n in graph.nodes if n.name == name)
        host = _activation_host(graph, node)
        if host is not None:
            attrs = replace(host.attrs, activation=_compose(host.attrs.activation, node.attrs.kind))
            _swap(graph, host, replace(host, attrs=attrs))
            _bypass(graph, node)


def _activation_host(graph: Graph, node: Node) -> Node | None:
    """Return the node to fuse the activation into: the nearest linear op, add or average pool above it.

    Fusing above a max pool gives the convolution's output the smaller range, so finer codes.
    """
    above = first = _sole_producer(graph, node.inputs[0])
    while above is not None and above.op in COMMUTING_OPS and _moves_zero_to_zero(above):
        above = _sole_producer(graph, above.inputs[0])
    if above is not None and above.op in FUSING_OPS and _compose(above.attrs.activation, node.attrs.kind):
        return above
    joins = first is not None and first.op == "MAX_POOL_2D"
    return first if joins and first and _compose(first.attrs.activation, node.attrs.kind) else None


def _moves_zero_to_zero(node: Node) -> bool:
    return node.op != "PAD" or bool(node.attrs.value == 0)


def _compose(first: str, then: str) -> str:
    """Return the activation that does both, "" if there is none."""
    if first in ("none", then):
        return then
    return "relu6" if {first, then} == {"relu", "relu6"} else ""


def _lower_activation(graph: Graph, node: Node) -> None:
    attrs = Pool2D(kernel=(1, 1), stride=(1, 1), activation=node.attrs.kind)
    _as_image(graph, node, "MAX_POOL_2D", attrs, ())
