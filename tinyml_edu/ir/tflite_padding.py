"""The paddings of TensorFlow Lite: SAME, VALID, or a PAD before the op.

A graph pads each side as it likes.  What is neither SAME nor VALID becomes a PAD where that computes the same
codes, and is refused where it does not.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import UnsupportedOpError
from . import attrs as A
from .graph import Graph, GraphError, Kind, Node, Tensor
from .int_params import INT8_MIN
from .ops import OPS, output_size, same_padding

_SLIDING = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")


def padding_kind(graph: Graph, node: Node) -> str | None:
    """Return ``"SAME"`` or ``"VALID"`` if a sliding node computes what that padding does, else None.

    Only the first row and column that a window meets and the output's size count: padding at the bottom and
    right that no output reads makes no difference.
    """
    inside, outside = graph[node.inputs[0]].shape[1:3], graph[node.outputs[0]].shape[1:3]
    kernel, dilation = _window(graph, node)
    axes = list(
        zip(inside, outside, kernel, node.attrs.stride, dilation, node.attrs.padding[:2], strict=True)
    )
    if all(p == 0 and out == output_size(n, k, s, d) for n, out, k, s, d, p in axes):
        return "VALID"
    if all(p == same_padding(n, k, s, d)[0] and out == -(-n // s) for n, out, k, s, d, p in axes):
        return "SAME"
    return None


def with_pads(graph: Graph) -> Graph:
    """Return a graph with the same outputs in which every sliding node is SAME or VALID.

    Other paddings become PAD nodes; two nodes that pad one tensor alike share one.

    Raises
    ------
    UnsupportedOpError
        If PAD cannot stand for the padding of a node, see `_require_pad_is_exact`.
    """
    result = Graph(graph.name, dict(graph.tensors), inputs=graph.inputs, outputs=graph.outputs)
    made: dict[tuple[str, A.Pad], str] = {}
    for node in graph.nodes:
        if node.op not in _SLIDING or padding_kind(graph, node) is not None:
            result.nodes.append(node)
            continue
        _require_pad_is_exact(graph, node)
        x, attrs = node.inputs[0], A.Pad(_pad_amounts(graph, node))
        if (x, attrs) not in made:
            made[x, attrs] = _add_pad(result, node, x, attrs)
        inputs = (made[x, attrs], *node.inputs[1:])
        result.nodes.append(replace(node, inputs=inputs, attrs=replace(node.attrs, padding=(0, 0, 0, 0))))
    return result


def _window(graph: Graph, node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (kernel, dilation) of a sliding node."""
    if isinstance(node.attrs, A.Pool2D):
        return node.attrs.kernel, (1, 1)
    _, kh, kw, _ = graph[node.inputs[1]].shape
    return (kh, kw), node.attrs.dilation


def _pad_amounts(graph: Graph, node: Node) -> tuple[tuple[int, int], ...]:
    """Return (before, after) of each axis: as many rows and columns as the outputs read."""
    inside, outside = graph[node.inputs[0]].shape[1:3], graph[node.outputs[0]].shape[1:3]
    kernel, dilation = _window(graph, node)
    amounts = []
    for axis in (0, 1):
        before = node.attrs.padding[axis]
        last = (outside[axis] - 1) * node.attrs.stride[axis] + (kernel[axis] - 1) * dilation[axis]
        amounts.append((before, max(0, last + 1 - inside[axis] - before)))
    return (0, 0), *amounts, (0, 0)


def _require_pad_is_exact(graph: Graph, node: Node) -> None:
    """Raise unless a PAD, which writes real 0, and VALID compute what the explicit padding of ``node`` does.

    A convolution reads padding as real 0.  An average leaves padding out.  A maximum does too, which is
    the same thing where real 0 can never win: it is the least code, or a ReLU raises the result to it anyway.
    """
    padding, zero_point = node.attrs.padding, _zero_point(graph, node.inputs[0])
    what = f"{node.name} ({node.op}) with padding {padding}"
    if min(padding) < 0:
        raise UnsupportedOpError(f"{what} crops its input; .tflite cannot say that, crop before the network")
    if node.op == "AVERAGE_POOL_2D":
        raise UnsupportedOpError(
            f"{what} is neither SAME nor VALID and averages no padding; pad with F.pad before it instead"
        )
    if node.op == "MAX_POOL_2D" and node.attrs.activation not in ("relu", "relu6") and zero_point != INT8_MIN:
        raise UnsupportedOpError(
            f"{what} is neither SAME nor VALID, and a padded {zero_point} could win; put a ReLU before it"
        )


def _zero_point(graph: Graph, name: str) -> int:
    quant = graph[name].quant
    if quant is None:
        raise GraphError(f"tensor {name!r} has no scale; quantize the graph first")
    return quant.item()[1]


def _add_pad(graph: Graph, node: Node, x: str, attrs: A.Pad) -> str:
    shape = OPS["PAD"].infer_shape(attrs, graph[x].shape)
    padded = Tensor(graph.unique(f"{x}_padded"), shape, "int8", Kind.ACTIVATION, quant=graph[x].quant)
    graph.nodes.append(Node(f"{node.name}_pad", "PAD", (x,), (graph.add(padded),), attrs))
    return padded.name
