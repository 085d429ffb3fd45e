"""Networks for the tests of patch-based inference: MobileNetV2's layers, and random stages with residuals."""

from __future__ import annotations

import numpy as np
from random_graphs import Builder

from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Tensor
from tinyml_edu.ir.ops import OPS, same_padding

ROW_OPS = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "CONCATENATION", "PAD", "RESIZE_NEAREST_NEIGHBOR"),
    *("AVERAGE_POOL_2D", "MAX_POOL_2D", "LOGISTIC", "HARD_SWISH", "RELU", "QUANTIZE"),
)

# Expansion, channels, repeats, stride of each stage: Sandler et al. 2018, arXiv:1801.04381, table 2.
MOBILENET_V2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def mobilenet_v2_body(size: int = 224) -> Graph:
    """Return the 17 inverted residual blocks after the first convolution, without the classifier."""
    graph = Graph("mobilenet_v2_body")
    x = graph.add(Tensor("x", (1, size, size, 3), "float32", Kind.INPUT))
    graph.inputs = (x,)
    x = _conv(graph, x, 32, 3, 2)
    for expansion, channels, repeats, stride in MOBILENET_V2:
        for i in range(repeats):
            skip, hidden = x, graph[x].shape[3] * expansion
            x = _conv(graph, x, hidden, 1, 1) if expansion > 1 else x
            x = _conv(graph, x, hidden, 3, 1 if i else stride, depthwise=True)
            x = _conv(graph, x, channels, 1, 1)
            x = _node(graph, "ADD", A.Add(), skip, x) if i else x
    graph.outputs = (x,)
    return graph.validate()


def _conv(graph: Graph, x: str, channels: int, kernel: int, stride: int, *, depthwise: bool = False) -> str:
    shape = graph[x].shape
    (top, bottom), (left, right) = (same_padding(n, kernel, stride) for n in shape[1:3])
    weights = (1, kernel, kernel, channels) if depthwise else (channels, kernel, kernel, shape[3])
    zeros = np.zeros(weights, np.float32)
    w = graph.add(Tensor(graph.unique("w"), weights, "float32", Kind.CONSTANT, zeros))
    kind, op = (A.DepthwiseConv2D, "DEPTHWISE_CONV_2D") if depthwise else (A.Conv2D, "CONV_2D")
    return _node(graph, op, kind(stride=(stride, stride), padding=(top, left, bottom, right)), x, w)


def _node(graph: Graph, op: str, attrs, *inputs: str) -> str:
    shape = OPS[op].infer_shape(attrs, *(graph[name].shape for name in inputs))
    name = graph.add(Tensor(graph.unique("t"), shape, "float32", Kind.ACTIVATION))
    graph.nodes.append(Node(f"{op.lower()}_{len(graph.nodes)}", op, inputs, (name,), attrs))
    return name


def random_stage(seed: int, layers: int = 7, *, ops: tuple[str, ...] = ROW_OPS) -> Graph:
    """Return a random int8 network of images; ADD, MUL and CONCATENATION read any earlier one that fits."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers((7, 7, 1), (15, 15, 5)))
    builder = Builder(rng, (1, *shape), f"stage_{seed}", telling=True)
    weights = np.array([4 if op.endswith("CONV_2D") else 3 if op == "ADD" else 1 for op in ops], float)
    for _ in range(layers):
        builder.add(str(rng.choice(ops, p=weights / weights.sum())))
    return builder.finish()
