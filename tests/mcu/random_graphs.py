"""Legal random int8 graphs with every op, for the tests that compare NumPy, host C and firmware."""

from __future__ import annotations

from math import prod

import numpy as np

from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, GraphError, Kind, Node, Quant, Tensor
from tinyml_edu.ir.ops import CONSTANT_OPERANDS, OPS

ALL_OPS = tuple(OPS)
ACTIVATIONS = A.ACTIVATIONS


PROBES = 9


class Builder:
    """Grows a chain (with skips for ADD) from one input tensor.

    With ``telling``, a node is kept only if its output tells random inputs apart.  A layer that saturates
    gives one output for all inputs, and every wrong kernel before it would go unnoticed.
    """

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, ...], name: str = "random", *, telling: bool = False
    ) -> None:
        self.rng = rng
        self.telling = telling
        self.graph = Graph(name)
        self.current = self.graph.add(Tensor("x", shape, "int8", Kind.INPUT, quant=self.quant()))
        self.graph.inputs = ("x",)
        self.values = {"x": rng.integers(-128, 128, (PROBES, *shape[1:]), dtype=np.int8)}

    def integer(self, low: int, high: int) -> int:
        """Return an integer in low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def quant(self, scale: float | None = None) -> Quant:
        scale = float(2.0 ** self.rng.uniform(-9, 0)) if scale is None else scale
        return Quant.per_tensor(scale, int(self.rng.choice([-128, 0, 127, self.integer(-128, 127)])))

    def constant(self, stem: str, data: np.ndarray, quant: Quant) -> str:
        return self.graph.add(
            Tensor(self.graph.unique(stem), data.shape, str(data.dtype), Kind.CONSTANT, data, quant)
        )

    def shape(self) -> tuple[int, ...]:
        return self.graph[self.current].shape

    def add(self, op: str) -> bool:
        """Append one random node; return whether the op is legal on the current tensor."""
        for _ in range(20):
            before = dict(self.graph.tensors)
            made = getattr(self, "_" + op.lower())()
            if made is None:
                return False
            attributes, extra, quant = made
            inputs = (self.current, *extra)
            try:
                shape = OPS[op].infer_shape(attributes, *(self.graph[n].shape for n in inputs))
            except GraphError:
                self.graph.tensors = before
                continue
            if prod(shape) > 6000:
                self.graph.tensors = before
                continue
            name = self.graph.add(Tensor(self.graph.unique("t"), shape, "int8", Kind.ACTIVATION, quant=quant))
            node = Node(f"{op.lower()}_{len(self.graph.nodes)}", op, inputs, (name,), attributes)
            if self.telling and not self._tells(node):
                self.graph.tensors = before
                continue
            self.graph.nodes.append(node)
            self.current = name
            return True
        return False

    def _tells(self, node: Node) -> bool:
        """Run the node on the probes; return whether nearly all outputs differ and many codes occur."""
        (name,), spec = node.outputs, OPS[node.op]
        args = [self.values[n] if n in self.values else self.graph[n].data for n in node.inputs]
        if node.op in CONSTANT_OPERANDS:
            args = [np.broadcast_to(v, (PROBES, *v.shape[1:])) for v in args]
        y = spec.integer_kernel(
            *args,
            attrs=node.attrs,
            params=spec.params(self.graph, node),
            out_shape=(PROBES, *self.graph[name].shape[1:]),
        )
        self.values[name] = y
        return len(np.unique(y.reshape(PROBES, -1), axis=0)) >= PROBES - 1 and len(np.unique(y)) >= 12

    def finish(self) -> Graph:
        self.graph.outputs = (self.current,)
        return self.graph.validate()

    # Each method returns (attributes, further inputs, output quantization), or None if the op cannot follow.

    def _weights(self, shape: tuple[int, ...], axis: int, fan_in: int) -> tuple[tuple[str, ...], Quant]:
        channels = shape[axis]
        w = self.rng.integers(-127, 128, shape, dtype=np.int8)
        if self.rng.random() < 0.15:
            w[...] = 127  # with a saturated input, the largest sums there are
        w_scale = (2.0 ** self.rng.uniform(-9, -2, channels)).astype(np.float32)
        per_channel = self.rng.random() < 0.7
        if self.rng.random() < 0.2:
            w_scale[self.integer(0, channels - 1)] = 1e-13  # a dead channel: its multiplier becomes 0
        if not per_channel:
            w_scale = w_scale[:1]
        w_quant = Quant(w_scale, np.zeros(w_scale.size, np.int32), axis if per_channel else None)
        x_scale, _ = self.graph[self.current].quant.item()
        typical = x_scale * float(w_scale.max()) * 74 * 74 * np.sqrt(fan_in)
        # Mostly sensible scales; at times a factor above 1, which shifts accumulators to the left.
        spread = 2.0 ** self.rng.uniform(-2, 3) if self.rng.random() < 0.85 else 2.0**-18
        y_quant = self.quant(max(typical * spread / 60, 1e-12))
        names = [self.constant("w", w, w_quant)]
        if self.rng.random() < 0.8:
            bound = int(self.rng.choice([100, 20_000, 2**30], p=[0.45, 0.45, 0.1]))
            bias = self.rng.integers(-bound, bound, channels, dtype=np.int32)
            b_quant = Quant(
                np.float32(x_scale) * w_scale, np.zeros(w_scale.size, np.int32), w_quant.axis and 0
            )
            names.append(self.constant("bias", bias, b_quant))
        return tuple(names), y_quant

    def _pads(self, kernel: tuple[int, int], low: int) -> tuple[int, int, int, int]:
        return tuple(self.integer(low, kernel[i % 2] - 1) for i in range(4))  # type: ignore[return-value]

    def _slide(self) -> dict:
        kernel = (self.integer(1, 4), self.integer(1, 4))
        return {
            "kernel": kernel,
            "stride": (self.integer(1, 3), self.integer(1, 3)),
            "padding": self._pads(kernel, -1 if self.rng.random() < 0.2 else 0),
            "activation": str(self.rng.choice(ACTIVATIONS)),
        }

    def _conv_2d(self):
        if len(self.shape()) != 4:
            return None
        slide = self._slide()
        (kh, kw), channels = slide.pop("kernel"), self.shape()[3]
        dilation = (self.integer(1, 2), self.integer(1, 2))
        names, quant = self._weights((self.integer(1, 9), kh, kw, channels), 0, kh * kw * channels)
        return A.Conv2D(dilation=dilation, **slide), names, quant

    def _depthwise_conv_2d(self):
        if len(self.shape()) != 4:
            return None
        slide = self._slide()
        kh, kw = slide.pop("kernel")
        channels = self.shape()[3] * int(self.rng.choice([1, 1, 1, 2, 3]))
        dilation = (self.integer(1, 2), self.integer(1, 2))
        names, quant = self._weights((1, kh, kw, channels), 3, kh * kw)
        return A.DepthwiseConv2D(dilation=dilation, **slide), names, quant

    def _fully_connected(self):
        if len(self.shape()) != 2:
            return None
        names, quant = self._weights((self.integer(1, 11), self.shape()[1]), 0, self.shape()[1])
        return A.FullyConnected(str(self.rng.choice(ACTIVATIONS))), names, quant

    def _add(self):
        same = [
            n
            for n, t in self.graph.tensors.items()
            if t.shape == self.shape() and t.kind is not Kind.CONSTANT
        ]
        other = str(self.rng.choice(same))
        if self.rng.random() < 0.3:
            other = self._factor(1.0 if self.rng.random() < 0.3 else 0.5)
        scales = [self.graph[n].quant.item()[0] for n in (self.current, other)]
        spread = float(2.0 ** self.rng.uniform(-4, 3))
        return A.Add(str(self.rng.choice(ACTIVATIONS))), (other,), self.quant(max(scales) * spread)

    def _sub(self):
        attributes, extra, quant = self._add()
        if extra == (self.current,):  # x - x says nothing
            codes = self.rng.integers(-128, 128, self.shape(), dtype=np.int8)
            extra = (self.constant("constant", codes, self.graph[self.current].quant),)
        return A.Sub(attributes.activation), extra, quant

    def _factor(self, keep: float) -> str:
        """Return a constant that has each axis of the current one with probability ``keep``, else 1."""
        shape = tuple(n if self.rng.random() < keep else 1 for n in self.shape()[1:])
        codes = self.rng.integers(-128, 128, (self.shape()[0], *shape), dtype=np.int8)
        return self.constant("factor", codes, self.quant())

    def _mul(self):
        """Multiply by an earlier tensor, or by a constant of which some axes have length 1."""
        _, (other,), _ = self._add()
        if self.rng.random() < 0.6:
            other = self._factor(0.5)
        s1, s2 = (self.graph[n].quant.item()[0] for n in (self.current, other))
        spread = float(2.0 ** self.rng.uniform(-3, 2))
        return A.Mul(str(self.rng.choice(ACTIVATIONS))), (other,), self.quant(s1 * s2 * 74 * spread)

    def _concatenation(self):
        """Join earlier tensors that have the scale of the current one, itself, and a constant at times."""
        rank, quant = len(self.shape()), self.graph[self.current].quant
        if rank < 2:
            return None
        axis = rank - 1 if self.rng.random() < 0.7 else self.integer(1, rank - 1)
        alike = [
            n
            for n, t in self.graph.tensors.items()
            if t.quant is quant and len(t.shape) == rank and t.kind is not Kind.CONSTANT
        ]
        extra = [str(name) for name in self.rng.choice(alike, self.integer(0, 2))]
        if self.rng.random() < 0.3:
            shape = (*self.shape()[:axis], self.integer(1, 3), *self.shape()[axis + 1 :])
            extra.append(self.constant("joined", self.rng.integers(-128, 128, shape, dtype=np.int8), quant))
        return A.Concatenation(axis), tuple(extra), quant

    def _logistic(self):
        return A.Elementwise(), (), Quant.per_tensor(1 / 256, -128)

    def _tanh(self):
        return A.Elementwise(), (), Quant.per_tensor(1 / 128, 0)

    def _rescaled(self):
        x_scale, _ = self.graph[self.current].quant.item()
        return A.Elementwise(), (), self.quant(x_scale * float(2.0 ** self.rng.uniform(-1, 1)))

    _hard_swish = _rescaled
    _relu = _rescaled
    _relu6 = _rescaled

    def _relu_n1_to_1(self):
        return (
            A.Elementwise(),
            (),
            Quant.per_tensor(2.0 ** -float(self.rng.uniform(5, 8)), self.integer(-9, 9)),
        )

    def _quantize(self):
        return A.Quantize(bool(self.rng.random() < 0.3)), *self._rescaled()[1:]

    def _leaky_relu(self):
        return A.LeakyRelu(float(self.rng.uniform(0, 0.5))), *self._rescaled()[1:]

    def _resize_nearest_neighbor(self):
        if len(self.shape()) != 4:
            return None
        corners, centers = [(False, False), (True, False), (False, True)][self.integer(0, 2)]
        size = (self.integer(1, 16), self.integer(1, 16))
        if self.rng.random() < 0.5:
            size = (2 * self.shape()[1], 2 * self.shape()[2])
        return A.ResizeNearest(size, corners, centers), (), self.graph[self.current].quant

    def _pool(self):
        return (
            (A.Pool2D(**self._slide()), (), self.graph[self.current].quant)
            if len(self.shape()) == 4
            else None
        )

    _average_pool_2d = _pool
    _max_pool_2d = _pool

    def _mean(self):
        rank = len(self.shape())
        if rank < 2:
            return None
        axes = self.rng.choice(np.arange(1, rank), self.integer(1, rank - 1), replace=False)
        x_scale, x_zp = self.graph[self.current].quant.item()
        zero_point = int(np.clip(x_zp + self.integer(-20, 20), -128, 127))
        quant = Quant.per_tensor(x_scale * float(2.0 ** self.rng.uniform(-1, 1)), zero_point)
        return A.Mean(tuple(sorted(int(a) for a in axes)), bool(self.rng.random() < 0.5)), (), quant

    def _pad(self):
        rank = len(self.shape())
        pairs = ((0, 0), *((self.integer(0, 2), self.integer(0, 2)) for _ in range(rank - 1)))
        quant = self.graph[self.current].quant
        value = quant.item()[0] * self.integer(-60, 60) if self.rng.random() < 0.3 else 0.0
        return A.Pad(pairs, value), (), quant

    def _reshape(self):
        shape = self.shape()
        options = [(1, prod(shape[1:]))]
        if len(shape) == 4:
            options.append((1, shape[2], shape[1], shape[3]))
        if len(shape) == 2:
            options.append((1, 1, 1, shape[1]))
        return A.Reshape(options[self.integer(0, len(options) - 1)]), (), self.graph[self.current].quant

    def _softmax(self):
        return A.Softmax(float(self.rng.choice([1.0, 0.5, 2.0]))), (), Quant.per_tensor(1 / 256, -128)


def random_network(seed: int, layers: int = 8) -> Graph:
    """Return a random network of at most ``layers`` nodes whose output tells inputs apart."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers((6, 6, 1), (13, 13, 6)))
    builder = Builder(rng, (1, *shape), f"random_{seed}", telling=True)
    weights = np.array([4 if op.endswith("CONV_2D") else 2 if op == "ADD" else 1 for op in ALL_OPS], float)
    for _ in range(layers - 3):
        builder.add(str(rng.choice(ALL_OPS, p=weights / weights.sum())))
    if len(builder.shape()) != 2:
        builder.add("RESHAPE")
    builder.add("FULLY_CONNECTED")
    builder.add("SOFTMAX" if rng.random() < 0.3 else "ADD")
    return builder.finish()


def random_layer(op: str, seed: int, *, telling: bool = False) -> Graph:
    """Return a graph of one node of ``op`` with random shape, attributes and scales.

    Some saturate for every input, which is a case too; not with ``telling``.
    """
    rng = np.random.default_rng([ALL_OPS.index(op), seed])
    while True:
        shape = tuple(int(n) for n in rng.integers(1, 10, 3))
        shape = (shape[0] * shape[1],) if op == "FULLY_CONNECTED" else shape
        builder = Builder(rng, (1, *shape), f"{op}_{seed}", telling=telling)
        if builder.add(op):
            return builder.finish()


class SharingBuilder(Builder):
    """Grows networks whose tensors can share memory: whole results, parts, and images in place."""

    def _slide(self) -> dict:
        """Return a window that keeps the image's size."""
        kernel = (self.integer(1, 4), self.integer(1, 4))
        before = [self.integer(0, k - 1) for k in kernel]
        after = [k - 1 - b for k, b in zip(kernel, before)]
        activation = str(self.rng.choice(ACTIVATIONS))
        return {"kernel": kernel, "stride": (1, 1), "padding": (*before, *after), "activation": activation}

    def _depthwise_conv_2d(self):
        slide, channels = self._slide(), self.shape()[3]
        kernel = slide.pop("kernel")
        if self.rng.random() < 0.6:  # the window that specialised kernels take
            kernel, slide["padding"] = (3, 3), (1, 1, 1, 1)
        names, quant = self._weights((1, *kernel, channels), 3, kernel[0] * kernel[1])
        return A.DepthwiseConv2D(**slide), names, quant

    def join(self) -> bool:
        """Append two or three branches of one scale and their concatenation along the rows."""
        start, quant, parts = self.current, None, []
        for _ in range(self.integer(2, 3)):
            self.current = start
            if not self.add("DEPTHWISE_CONV_2D"):
                return False
            quant = quant or self.graph[self.current].quant
            scaled = self._append("QUANTIZE", A.Quantize(), (self.current,), quant)
            parts.append(scaled)
        self.current = self._append("CONCATENATION", A.Concatenation(1), tuple(parts), quant)
        return True

    def _append(self, op: str, attributes: object, names: tuple[str, ...], quant: Quant) -> str:
        shape = OPS[op].infer_shape(attributes, *(self.graph[n].shape for n in names))
        name = self.graph.add(Tensor(self.graph.unique("t"), shape, "int8", Kind.ACTIVATION, quant=quant))
        node = Node(f"{op.lower()}_{len(self.graph.nodes)}", op, names, (name,), attributes)
        self._tells(node)
        self.graph.nodes.append(node)
        return name


def sharing_network(seed: int, layers: int = 6) -> Graph:
    """Return a random branched network: depthwise convolutions, element-wise ops, joined branches.

    Branches may be joined or added; 16 channels keep each part of a concatenation at an aligned address.
    """
    rng = np.random.default_rng([7, seed])
    shape = (1, *(2 * int(n) for n in rng.integers(2, 5, 2)), 16)
    builder = SharingBuilder(rng, shape, f"sharing_{seed}", telling=True)
    ops = ("DEPTHWISE_CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "RELU", "HARD_SWISH", "join")
    for op in rng.choice(ops, layers):
        builder.join() if op == "join" else builder.add(str(op))
    builder.add("DEPTHWISE_CONV_2D")
    return builder.finish()


def inputs(graph: Graph, seed: int, n: int = 3) -> np.ndarray:
    """Return (n + 3, ...) codes: random ones, then all -128, all 127, and a random mix of both."""
    rng = np.random.default_rng(seed)
    shape = graph[graph.inputs[0]].shape[1:]
    random = rng.integers(-128, 128, (n, *shape), dtype=np.int8)
    extremes = [np.full(shape, -128), np.full(shape, 127), rng.choice([-128, 127], shape)]
    return np.concatenate([random, np.stack(extremes).astype(np.int8)])
