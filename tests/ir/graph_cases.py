"""Random one-op int8 graphs for the tests of kernels and of windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyml_edu.ir import OPS, Graph, Kind, Node, Quant, Tensor
from tinyml_edu.ir import attrs as A


def one_op(op: str, attrs, *inputs: Tensor, out_quant: Quant) -> Graph:
    """Return a graph of one node; constants among ``inputs`` stay constants."""
    graph = Graph(op.lower())
    for tensor in inputs:
        graph.add(tensor)
    shape = OPS[op].infer_shape(attrs, *(t.shape for t in inputs))
    graph.add(Tensor("y", shape, "int8", Kind.ACTIVATION, quant=out_quant))
    graph.nodes.append(Node("node", op, tuple(t.name for t in inputs), ("y",), attrs))
    graph.inputs = tuple(t.name for t in inputs if t.kind is Kind.INPUT)
    graph.outputs = ("y",)
    return graph.validate()


def quant(rng: np.random.Generator, low: float = 0.01, high: float = 0.1) -> Quant:
    return Quant.per_tensor(rng.uniform(low, high), int(rng.integers(-128, 128)))


def image(rng: np.random.Generator, shape: tuple[int, ...], name: str = "x") -> Tensor:
    return Tensor(name, shape, "int8", Kind.INPUT, quant=quant(rng))


def weights(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> tuple[Tensor, Tensor]:
    channels = shape[axis]
    per_channel = Quant(
        rng.uniform(0.001, 0.01, channels).astype(np.float32), np.zeros(channels, np.int32), axis
    )
    data = rng.integers(-127, 128, shape, dtype=np.int8)
    bias = rng.integers(-9000, 9000, channels, dtype=np.int32)
    return (
        Tensor("w", shape, "int8", Kind.CONSTANT, data, per_channel),
        Tensor("b", (channels,), "int32", Kind.CONSTANT, bias),
    )


def signed_padding(rng: np.random.Generator, limit: int) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right), each between -1 (crop) and ``limit``."""
    return tuple(int(v) for v in rng.integers(-1, limit + 1, 4))


def repeated(rng: np.random.Generator, *tensors: Tensor) -> list[Tensor]:
    """Return the tensors, at times with axes of length 1."""
    shapes = [(1, *(n if rng.random() < 0.7 else 1 for n in t.shape[1:])) for t in tensors]
    return [replace(t, shape=shape) for t, shape in zip(tensors, shapes, strict=True)]


def random_graph(op: str, rng: np.random.Generator) -> Graph:
    """Return a random legal one-op graph of ``op``."""
    h, w, c = (int(v) for v in rng.integers(5, 9, 3))
    x = image(rng, (1, h, w, c))
    kernel = tuple(int(v) for v in rng.integers(1, 4, 2))
    slide = {"stride": tuple(int(v) for v in rng.integers(1, 3, 2))}
    activation = str(rng.choice(A.ACTIVATIONS))
    if op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        kernel = tuple(min(k, 2) for k in kernel)
        slide |= {"dilation": tuple(int(v) for v in rng.integers(1, 3, 2)), "padding": signed_padding(rng, 2)}
        if op == "CONV_2D":
            constants = weights(rng, (int(rng.integers(1, 6)), *kernel, c), 0)
            return one_op(op, A.Conv2D(**slide, activation=activation), x, *constants, out_quant=quant(rng))
        constants = weights(rng, (1, *kernel, c * int(rng.integers(1, 3))), 3)
        attrs = A.DepthwiseConv2D(**slide, activation=activation)
        return one_op(op, attrs, x, *constants[: int(rng.integers(1, 3))], out_quant=quant(rng))
    if op == "FULLY_CONNECTED":
        x = image(rng, (1, h * w))
        constants = weights(rng, (c, h * w), 0)
        return one_op(op, A.FullyConnected(activation), x, *constants, out_quant=quant(rng))
    if op == "ADD":
        other = image(rng, x.shape, "x2")
        if rng.random() < 0.3:  # y = (a + b) / 2: half of the sums are ties
            other = replace(other, quant=x.quant)
            half = Quant.per_tensor(2 * float(x.quant.scale[0]), 0)
            return one_op(op, A.Add(), x, other, out_quant=half)
        x, other = repeated(rng, x, other)
        return one_op(op, A.Add(activation), x, other, out_quant=quant(rng, 0.02, 0.2))
    if op == "SUB":
        if rng.random() < 0.3:  # y = (a - b) / 2: half of the differences are ties
            half = Quant.per_tensor(2 * float(x.quant.scale[0]), 0)
            return one_op(op, A.Sub(), x, replace(x, name="x2"), out_quant=half)
        x, other = repeated(rng, x, image(rng, x.shape, "x2"))
        return one_op(op, A.Sub(activation), x, other, out_quant=quant(rng, 0.02, 0.2))
    if op == "MUL":
        x, other = repeated(rng, x, image(rng, x.shape, "x2"))
        return one_op(op, A.Mul(activation), x, other, out_quant=quant(rng, 0.02, 0.2))
    if op == "CONCATENATION":
        others = [replace(x, name=f"x{i}", shape=(1, h, w, int(rng.integers(1, 5)))) for i in range(2)]
        return one_op(op, A.Concatenation(3), x, *others, out_quant=x.quant)
    if op == "LOGISTIC":
        return one_op(op, A.Elementwise(), x, out_quant=Quant.per_tensor(1 / 256, -128))
    if op in ("HARD_SWISH", "RELU", "RELU6", "RELU_N1_TO_1"):
        return one_op(op, A.Elementwise(), x, out_quant=quant(rng))
    if op == "TANH":
        return one_op(op, A.Elementwise(), x, out_quant=Quant.per_tensor(1 / 128, 0))
    if op == "LEAKY_RELU":
        return one_op(op, A.LeakyRelu(float(rng.uniform(0, 1))), x, out_quant=quant(rng))
    if op == "QUANTIZE":
        return one_op(op, A.Quantize(bool(rng.integers(2))), x, out_quant=quant(rng))
    if op == "RESIZE_NEAREST_NEIGHBOR":
        corners, centers = [(False, False), (True, False), (False, True)][rng.integers(3)]
        size = tuple(int(v) for v in rng.integers(1, 15, 2))
        return one_op(op, A.ResizeNearest(size, corners, centers), x, out_quant=x.quant)
    if op in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        padding = tuple(int(rng.integers(-1, k)) for k in (*kernel, *kernel))
        attrs = A.Pool2D(kernel, (1, 1), padding, activation)
        return one_op(op, attrs, x, out_quant=x.quant)
    if op == "MEAN":
        axes = [(1, 2), (1,), (3,), (1, 2, 3)][rng.integers(4)]
        return one_op(op, A.Mean(axes, bool(rng.integers(2))), x, out_quant=quant(rng))
    if op == "PAD":
        pairs = ((0, 0), *((int(a), int(b)) for a, b in rng.integers(0, 3, (3, 2))))
        value = float(x.quant.scale[0]) * int(rng.integers(-9, 9)) if rng.random() < 0.5 else 0.0
        return one_op(op, A.Pad(pairs, value), x, out_quant=x.quant)
    if op == "RESHAPE":
        return one_op(op, A.Reshape((1, h * w * c)), x, out_quant=x.quant)
    if op == "SOFTMAX":
        x = image(rng, (1, h * w))
        return one_op(op, A.Softmax(1.0), x, out_quant=Quant.per_tensor(1 / 256, -128))
    raise KeyError(op)
