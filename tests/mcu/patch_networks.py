"""Networks for the tests of patch-based inference: MobileNetV2's layers, and random stages with residuals."""

from __future__ import annotations

import numpy as np
from random_graphs import Builder

from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
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
    weights = np.array([4 if op.endswith("CONV_2D") else 6 if op == "ADD" else 1 for op in ops], float)
    for _ in range(layers):
        builder.add(str(rng.choice(ops, p=weights / weights.sum())))
    return builder.finish()


def residual_network(size: int, channels: int = 16, *, seed: int = 0) -> Graph:
    """Return an int8 network with a residual block at half the size, for which large tensors come first.

    Scales let every layer's codes spread, so that a wrong window changes the outcome.
    """
    rng = np.random.default_rng(seed)
    graph = Graph(f"residual_{size}")
    x = graph.add(Tensor("x", (1, size, size, 3), "int8", Kind.INPUT, quant=Quant.per_tensor(0.02, -3)))
    graph.inputs = (x,)
    skip = x = _int8(graph, rng, x, channels, 3, stride=2)
    x = _int8(graph, rng, x, 4 * channels, 1, stride=1)
    x = _int8(graph, rng, x, 4 * channels, 3, stride=1, depthwise=True)
    x = _int8(graph, rng, x, channels, 1, stride=1)
    x = _quantized(graph, "ADD", A.Add(), Quant.per_tensor(graph[x].quant.item()[0] * 2, 5), skip, x)
    for _ in range(2):
        x = _int8(graph, rng, x, channels, 3, stride=2, depthwise=True)
        x = _int8(graph, rng, x, 2 * channels, 1, stride=1)
        channels *= 2
    x = _quantized(graph, "MEAN", A.Mean((1, 2)), graph[x].quant, x)
    x = _int8(graph, rng, x, 10, 1, stride=1)
    graph.outputs = (x,)
    return graph.validate()


def branches(size: int = 12) -> Graph:
    """Return a sum of two branches of one tensor, of which the first to read it needs no halo.

    Then come products with constants: a factor for each channel, each row and each column.
    """
    rng = np.random.default_rng(0)
    graph = Graph("branches")
    x = graph.add(Tensor("x", (1, size, size, 3), "int8", Kind.INPUT, quant=Quant.per_tensor(0.02, -3)))
    graph.inputs = (x,)
    x = _int8(graph, rng, x, 4, 3, stride=1)
    sides = [_int8(graph, rng, x, 4, kernel, stride=1) for kernel in (1, 5)]
    scale = sum(graph[side].quant.item()[0] for side in sides)
    x = _quantized(graph, "ADD", A.Add(), Quant.per_tensor(scale, 0), *sides)
    for shape in ((1, 1, 1, 4), (1, size, 1, 1), (1, 1, size, 4)):
        codes = rng.integers(-128, 128, shape, dtype=np.int8)
        quant = Quant.per_tensor(1 / 74, 3)
        factor = graph.add(Tensor(graph.unique("factor"), shape, "int8", Kind.CONSTANT, codes, quant))
        x = _quantized(graph, "MUL", A.Mul(), Quant.per_tensor(graph[x].quant.item()[0], -2), x, factor)
    graph.outputs = (x,)
    return graph.validate()


def _int8(
    graph: Graph,
    rng: np.random.Generator,
    x: str,
    channels: int,
    kernel: int,
    *,
    stride: int,
    depthwise=False,
) -> str:
    shape = graph[x].shape
    dense = len(shape) == 2
    fan_in = kernel * kernel * (1 if depthwise else shape[-1])
    weights = (channels, shape[1]) if dense else (channels, kernel, kernel, shape[3])
    weights = (1, kernel, kernel, channels) if depthwise else weights
    data = rng.integers(-127, 128, weights, dtype=np.int8)
    stem = graph.unique("w")
    w = graph.add(Tensor(stem, weights, "int8", Kind.CONSTANT, data, Quant.per_tensor(0.01, 0)))
    bias = rng.integers(-3000, 3000, channels, dtype=np.int32)
    b = graph.add(Tensor(f"{stem}_bias", (channels,), "int32", Kind.CONSTANT, bias))
    # Codes and weights are uniform, 74 is their standard deviation; the sum's becomes 45 codes.
    scale = graph[x].quant.item()[0] * 0.01 * 74 * 74 * np.sqrt(fan_in) / 45
    quant = Quant.per_tensor(scale, int(rng.integers(-20, 20)))
    if dense:
        return _quantized(graph, "FULLY_CONNECTED", A.FullyConnected(), quant, x, w, b)
    (top, bottom), (left, right) = (same_padding(n, kernel, stride) for n in shape[1:3])
    kind, op = (A.DepthwiseConv2D, "DEPTHWISE_CONV_2D") if depthwise else (A.Conv2D, "CONV_2D")
    attrs = kind(stride=(stride, stride), padding=(top, left, bottom, right))
    return _quantized(graph, op, attrs, quant, x, w, b)


def _quantized(graph: Graph, op: str, attrs, quant: Quant, *inputs: str) -> str:
    name = _node(graph, op, attrs, *inputs)
    graph.update(name, dtype="int8", quant=quant)
    return name
