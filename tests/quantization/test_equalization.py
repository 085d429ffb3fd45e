"""Equalization keeps the float function and makes channel ranges equal.

Tolerance: a scale is applied in float64 and each weight rounded to float32 once, which moves it by at most
one unit in the last place; sums then round differently, by as much again a term.  `wobble` measures what
moving every weight to a neighbouring float32 does to the output, and 16 times that is allowed.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import ir, mcu, models
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.ir import Graph, Kind, Node, Tensor
from tinyml_edu.ir.attrs import Add, Conv2D, DepthwiseConv2D, FullyConnected, Mean, Pad, Pool2D, Reshape
from tinyml_edu.quantization import QuantConfig, calibrate, equalization, equalize, quantize_graph
from tinyml_edu.quantization.equalization import find_pairs, read_range, written_range

LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class Chain:
    """A float graph that grows node by node, with weights whose channels differ in size."""

    def __init__(self, seed: int, shape: tuple[int, ...] = (1, 6, 6, 3)) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("chain", inputs=("x",))
        self.last = self.graph.add(Tensor("x", shape, "float32", Kind.INPUT))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.graph[self.last].shape

    def constant(self, shape: tuple[int, ...], axis: int) -> str:
        spread = 10.0 ** self.rng.uniform(-1.5, 1.5, shape[axis])
        along = [1] * len(shape)
        along[axis] = -1
        data = (self.rng.normal(size=shape) * spread.reshape(along)).astype(np.float32)
        return self.graph.add(Tensor(self.graph.unique("c"), shape, "float32", Kind.CONSTANT, data))

    def node(self, op: str, attrs, *constants: str, others: tuple[str, ...] = ()) -> "Chain":
        inputs = (self.last, *others, *constants)
        shape = ir.OPS[op].infer_shape(attrs, *(self.graph[name].shape for name in inputs))
        self.last = self.graph.add(Tensor(self.graph.unique("t"), shape, "float32", Kind.ACTIVATION))
        self.graph.nodes.append(Node(f"n{len(self.graph.nodes)}", op, inputs, (self.last,), attrs))
        return self

    def conv(self, outputs: int, kernel: int = 1, activation: str = "relu", bias: bool = True) -> "Chain":
        pad = (kernel // 2,) * 4
        constants = [self.constant((outputs, kernel, kernel, self.shape[3]), 0)]
        constants += [self.constant((outputs,), 0)] * bias
        return self.node("CONV_2D", Conv2D(padding=pad, activation=activation), *constants)

    def depthwise(self, multiplier: int = 1, activation: str = "relu") -> "Chain":
        channels = self.shape[3] * multiplier
        constants = self.constant((1, 3, 3, channels), 3), self.constant((channels,), 0)
        attrs = DepthwiseConv2D(padding=(1, 1, 1, 1), activation=activation)
        return self.node("DEPTHWISE_CONV_2D", attrs, *constants)

    def linear(self, outputs: int, activation: str = "none") -> "Chain":
        constants = self.constant((outputs, self.shape[1]), 0), self.constant((outputs,), 0)
        return self.node("FULLY_CONNECTED", FullyConnected(activation), *constants)

    def pool(self, op: str, activation: str = "none") -> "Chain":
        return self.node(op, Pool2D((2, 2), (2, 2), activation=activation))

    def flatten(self) -> "Chain":
        return self.node("RESHAPE", Reshape((1, int(np.prod(self.shape)))))

    def done(self) -> Graph:
        self.graph.outputs = (self.last,)
        return self.graph.validate()


def images(graph: Graph, n: int = 3) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(n, *graph[graph.inputs[0]].shape[1:])).astype(np.float32)


def wobble(graph: Graph, x: np.ndarray, draws: int = 3) -> float:
    """Return how far the output moves when every weight moves to a neighbouring float32."""
    rng, wanted, worst = np.random.default_rng(3), ir.run(graph, x), 0.0
    for _ in range(draws):
        moved = replace(graph, tensors=dict(graph.tensors))
        for tensor in list(graph.constants()):
            to = np.where(rng.random(tensor.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
            moved.update(tensor.name, data=np.nextafter(tensor.data, to))
        worst = max(worst, float(np.abs(ir.run(moved, x) - wanted).max()))
    return worst


def same_function(before: Graph, after: Graph) -> bool:
    x = images(before)
    return bool(np.abs(ir.run(before, x) - ir.run(after, x)).max() <= 16 * wobble(before, x))


def without_relu6(graph: Graph) -> Graph:
    nodes = [
        replace(n, attrs=replace(n.attrs, activation="relu"))
        if getattr(n.attrs, "activation", "none") == "relu6"
        else n
        for n in graph.nodes
    ]
    return replace(graph, nodes=nodes)


def random_chain(seed: int) -> Graph:
    """Return 3 to 7 nodes of every kind that a pair may hold or end at, and a classifier."""
    chain = Chain(seed)
    rng, pooled = chain.rng, 0
    chain.conv(int(rng.integers(2, 7)), 3, str(rng.choice(["relu", "none"])))
    for _ in range(int(rng.integers(1, 6))):
        activation = str(rng.choice(["relu", "none"]))
        kind = str(rng.choice(["conv", "depthwise", "pool", "pad", "residual", "dead"]))
        if kind == "conv":
            chain.conv(int(rng.integers(1, 7)), int(rng.choice([1, 3])), activation, bool(rng.random() < 0.7))
        elif kind == "depthwise":
            chain.depthwise(int(rng.integers(1, 3)), activation)
        elif kind == "pool" and pooled < 2:
            chain.pool(str(rng.choice(["MAX_POOL_2D", "AVERAGE_POOL_2D"])), activation)
            pooled += 1
        elif kind == "pad":
            chain.node("PAD", Pad(((0, 0), (1, 0), (0, 1), (0, 0))))
        elif kind == "residual":
            skip = chain.last
            chain.conv(chain.shape[3], 3, activation).node("ADD", Add(activation), others=(skip,))
        elif kind == "dead":
            chain.conv(4, 1, activation)
            chain.graph[chain.graph.nodes[-1].inputs[1]].data[rng.integers(4)] = 0
    if rng.random() < 0.5:
        chain.flatten()
    else:
        chain.node("MEAN", Mean((1, 2)))
    return chain.linear(5, "relu").linear(4).done()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_function_stays(seed):
    graph = random_chain(seed)
    assert same_function(graph, equalize(graph))


def test_some_of_the_random_chains_hold_long_pairs_and_blocked_ones():
    pairs = [find_pairs(random_chain(seed)) for seed in range(40)]
    ops = {node.op for found in pairs for pair in found for node in pair.between}
    assert ops == {"MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "MEAN", "RESHAPE"}
    assert {pair.second.op for found in pairs for pair in found} == set(LINEAR)
    graphs = [random_chain(seed) for seed in range(40)]
    linear = [sum(node.op in LINEAR for node in graph.nodes) for graph in graphs]
    assert any(len(found) < n - 1 for found, n in zip(pairs, linear, strict=True))


@pytest.mark.parametrize("part", ["_along_inputs", "tile"])
def test_a_forgotten_inverse_is_caught(part, monkeypatch):
    """Without the inverse scale on the second layer, or with it on the wrong columns, the function moves."""
    if part == "_along_inputs":
        monkeypatch.setattr(equalization, "_along_inputs", lambda pair, w, s: np.ones(w.shape[-1]))  # noqa: ARG005
    else:
        monkeypatch.setattr(equalization.np, "tile", np.repeat)
    graph = Chain(1).conv(6, 3).pool("MAX_POOL_2D").flatten().linear(4).done()
    assert not same_function(graph, equalize(graph))


def captured(name: str) -> Graph:
    torch.manual_seed(2)
    model = models.build(name, width=0.5)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.02, 2)
            nn.init.normal_(norm.bias, 0, 0.3)
    return mcu.capture(model, torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("name", "pairs"), [("vgg_lite", 7), ("resnet8", 3), ("mobilenet_v2_tiny", 14), ("ds_cnn", 9)]
)
def test_the_function_of_a_network_stays(name, pairs):
    graph = captured(name)
    assert len(find_pairs(graph)) == pairs
    assert same_function(without_relu6(graph), equalize(graph))


def test_relu6_is_kept_where_asked():
    graph = captured("mobilenet_v2_tiny")
    kept = equalize(graph, relu6="keep")
    assert [n.attrs for n in kept.nodes] == [n.attrs for n in graph.nodes]
    assert same_function(graph, kept)
    replaced = equalize(graph)
    loud = 40 * images(graph)
    assert np.abs(ir.run(graph, loud) - ir.run(replaced, loud)).max() > 100 * wobble(graph, loud)


def test_relu6_outside_of_a_pair_stays():
    chain = Chain(0).conv(4, 1, "relu6")
    graph = chain.node("ADD", Add("relu6"), others=(chain.last,)).conv(3, 1, "relu6").done()
    assert [n.attrs.activation for n in equalize(graph).nodes] == ["relu6"] * 3


def test_a_relu6_pool_inside_a_pair_becomes_a_relu():
    graph = Chain(0).conv(4).pool("MAX_POOL_2D", "relu6").conv(3).done()
    assert find_pairs(graph, relu6="keep") == []
    assert [n.attrs.activation for n in equalize(graph).nodes] == ["relu"] * 3


def test_one_pair_has_the_scales_of_the_paper():
    """Two fully connected layers: s = sqrt(r1 / r2), and both ranges become sqrt(r1 * r2) (eq. 11)."""
    graph = Chain(4, (1, 3)).linear(5, "relu").linear(2).done()
    w1, b1, w2 = (graph[name].data.astype(np.float64) for name in ("c", "c_2", "c_3"))
    r1, r2 = np.abs(w1).max(1), np.abs(w2).max(0)
    s, after = np.sqrt(r1 / r2), equalize(graph)
    one_rounding = {"rtol": 2.0**-23, "atol": 0}
    np.testing.assert_allclose(after["c"].data, w1 / s[:, None], **one_rounding)
    np.testing.assert_allclose(after["c_2"].data, b1 / s, **one_rounding)
    np.testing.assert_allclose(after["c_3"].data, w2 * s, **one_rounding)
    np.testing.assert_allclose(np.abs(after["c"].data).max(1), np.sqrt(r1 * r2), **one_rounding)


@pytest.mark.parametrize("name", ["vgg_lite", "mobilenet_v2_tiny", "ds_cnn"])
def test_ranges_of_a_pair_are_equal_after_the_last_round(name):
    tolerance = 1e-3
    before, graph = captured(name), equalize(captured(name), tolerance=tolerance)

    def distance(g: Graph) -> float:
        logs = [
            np.log(
                written_range(p.first, g[p.first.inputs[1]].data) / read_range(p, g[p.second.inputs[1]].data)
            )
            for p in find_pairs(g)
        ]
        return max(float(np.abs(values).max()) for values in logs)

    # The last round moved every s by less than the tolerance; a neighbour's later move changes a range by
    # as much again.  log(r1 / r2) is twice log s.
    assert distance(graph) <= 2 * 2 * tolerance
    assert distance(before) > 1


def test_channels_without_weights_are_left_alone():
    graph = Chain(5).conv(5, 1).conv(3, 1).done()
    w1, w2 = graph["c"].data, graph["c_3"].data
    w1[0], w2[..., 1] = 0, 0
    w1[2], w2[..., 2] = 0, 0
    w1[3] *= 1e-30
    after = equalize(graph)
    for c in (0, 1, 2, 3):
        np.testing.assert_array_equal(after["c"].data[c], w1[c])
        np.testing.assert_array_equal(after["c_3"].data[..., c], w2[..., c])
    assert not np.array_equal(after["c"].data[4], w1[4])
    assert same_function(graph, after)


def test_a_layer_of_zeros_is_left_alone():
    graph = Chain(5).conv(5, 1).conv(3, 1).done()
    graph["c"].data[:] = 0
    after = equalize(graph)
    assert all(np.array_equal(after[n].data, graph[n].data) for n in ("c", "c_2", "c_3", "c_4"))


def residual() -> Graph:
    chain = Chain(0).conv(4)
    skip = chain.last
    return chain.conv(4, 3).node("ADD", Add(), others=(skip,)).conv(4).done()


def doubled() -> Graph:
    chain = Chain(0).conv(4)
    return chain.node("ADD", Add(), others=(chain.last,)).conv(4).done()


def tapped() -> Graph:
    chain = Chain(0).conv(4)
    middle = chain.last
    graph = chain.conv(4).done()
    graph.outputs = (middle, *graph.outputs)
    return graph


def shared() -> Graph:
    graph = Chain(0, (1, 6, 6, 4)).conv(4, 1, bias=False).conv(4, 1, bias=False).done()
    graph.nodes[1] = replace(graph.nodes[1], inputs=(graph.nodes[1].inputs[0], graph.nodes[0].inputs[1]))
    return graph


def mixed_by_mean() -> Graph:
    return Chain(0).conv(4).node("MEAN", Mean((3,), True)).conv(2).done()


def padded_channels() -> Graph:
    return Chain(0).conv(4).node("PAD", Pad(((0, 0), (0, 0), (0, 0), (1, 1)))).conv(2).done()


def reshaped() -> Graph:
    return Chain(0).conv(4).node("RESHAPE", Reshape((1, 6, 8, 3))).conv(2).done()


@pytest.mark.parametrize(
    "blocked", [residual, doubled, tapped, shared, mixed_by_mean, padded_channels, reshaped]
)
def test_what_blocks_a_pair_is_left_as_it_was(blocked):
    graph = blocked()
    assert find_pairs(graph) == []
    after = equalize(graph)
    assert all(np.array_equal(after[t.name].data, t.data) for t in graph.constants())


def test_the_graph_is_not_changed():
    graph = captured("mobilenet_v2_tiny")
    before = {t.name: t.data.copy() for t in graph.constants()}, list(graph.nodes)
    equalize(graph)
    assert all(np.array_equal(graph[name].data, data) for name, data in before[0].items())
    assert graph.nodes == before[1]


def test_per_tensor_codes_lose_less_after_equalization():
    """What it is for: the same bits, the same calibration, a smaller error of the output."""
    graph = Chain(11).conv(8, 3).depthwise().conv(8).depthwise().conv(4).done()
    x, config = images(graph, 16), QuantConfig(per_channel=False)
    wanted = ir.run(graph, x)

    def error(g: Graph) -> float:
        int8 = quantize_graph(g, calibrate(g, x), config)
        codes = ir.run(int8, int8[int8.inputs[0]].quant.quantize(x))
        return float(np.square(int8[int8.outputs[0]].quant.dequantize(codes) - wanted).mean())

    assert error(equalize(graph)) < error(graph) / 2


def test_wrong_arguments_are_refused():
    graph = Chain(0).conv(4).conv(2).done()
    with pytest.raises(UnknownNameError, match="unknown rule for relu6 'drop'"):
        equalize(graph, relu6="drop")
    for wrong in ({"tolerance": 0}, {"tolerance": 1}, {"max_rounds": 0}):
        with pytest.raises(UsageError, match="equalize needs 0 < tolerance < 1"):
            equalize(graph, **wrong)
    x = images(graph)
    with pytest.raises(UsageError, match="int8 already"):
        equalize(quantize_graph(graph, calibrate(graph, x)))
    graph["c"].data[0] = np.nan
    with pytest.raises(UsageError, match="'c' is not finite"):
        equalize(graph)
