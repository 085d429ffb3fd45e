"""AdaRound against every possible rounding of small layers, and against rounding to nearest on networks."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tinyml_edu import data, ir, mcu, zoo
from tinyml_edu.errors import UsageError
from tinyml_edu.ir import Graph
from tinyml_edu.quantization import (
    QuantConfig,
    QuantizedModel,
    adaptive_rounding,
    adaround,
    calibrate,
    quantize_graph,
    weight_scales,
)
from tinyml_edu.quantization.adaptive_rounding import (
    RoundingProblem,
    beta_at,
    clamped,
    layer_problem,
    learn_rounding,
    rectified_sigmoid,
    regularizer,
)
from tinyml_edu.quantization.layerwise import paired_streams, preactivation

LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
LEARNING = {"iterations": 400, "batch_size": 256, "learning_rate": 0.02, "regularization": 10.0, "seed": 0}


def small_problem(seed: int, *, bits: int = 3, activation: str = "none") -> RoundingProblem:
    """Return 3 outputs of 9 correlated, mostly positive inputs, those of the quantized net a little off."""
    rng = np.random.default_rng(seed)
    q_max = 2 ** (bits - 1) - 1
    x = np.maximum(rng.normal(size=(400, 9)) @ rng.normal(size=(9, 9)) / 2 + rng.uniform(0, 1, 9), 0)
    x_q = x + 0.02 * rng.normal(size=x.shape)
    w, bias = rng.normal(size=(1, 3, 9)), rng.normal(size=(1, 1, 3)) / 10
    scale = np.abs(w).max(axis=2, keepdims=True) / q_max
    y = clamped(torch.from_numpy(x[None] @ w.swapaxes(1, 2) + bias), activation).numpy()
    as_float = [a.astype(np.float32) for a in (scale, x_q[None], y, bias)]
    return RoundingProblem(w / scale, as_float[0], q_max, *as_float[1:], activation)


def best_errors(problem: RoundingProblem) -> np.ndarray:
    """Return (G, M): the least error of each output over all 2**K ways to round its weights."""
    floor = np.floor(problem.steps)
    ways = itertools.product((0, 1), repeat=floor.shape[2])
    codes = (np.clip(floor + np.array(way), -problem.q_max, problem.q_max) for way in ways)
    return np.minimum.reduce([problem.errors(c) for c in codes])


def lost(rounding) -> float:
    """Return the error beyond the best rounding as a share of what nearest has beyond it, over all problems.

    Each problem counts in units of its error with nearest.
    """
    beyond = total = 0.0
    for problem, best in zip(PROBLEMS, BEST, strict=True):
        nearest = problem.errors(problem.nearest()).mean()
        beyond += (problem.errors(rounding(problem)).mean() - best) / nearest
        total += (nearest - best) / nearest
    return beyond / total


PROBLEMS = [
    small_problem(seed, bits=bits, activation=activation)
    for seed, bits in ((0, 3), (1, 4), (2, 3), (3, 4))
    for activation in ("none", "relu")
]
BEST = [best_errors(problem).mean() for problem in PROBLEMS]


def test_learned_rounding_is_near_the_best_of_all_roundings():
    """Most of what nearest loses to the best of the 512 roundings of each output comes back."""
    assert lost(lambda p: learn_rounding(p, **LEARNING)) < 0.3
    # Controls: nearest loses 1 by definition, rounding down more, and so do soft weights that never had to
    # take sides: they start at the real ones.
    assert lost(lambda p: np.floor(p.steps)) > 1
    assert lost(lambda p: learn_rounding(p, **LEARNING | {"regularization": 0.0})) > 0.45


@pytest.mark.parametrize("iterations", [1, 30])
def test_no_output_is_worse_than_nearest(iterations):
    """However short the learning: an output falls back to nearest."""
    for seed in range(4):
        problem = small_problem(seed)
        learned = learn_rounding(problem, **LEARNING | {"iterations": iterations, "learning_rate": 0.5})
        assert (problem.errors(learned) <= problem.errors(problem.nearest())).all()


def test_weights_on_the_grid_stay():
    problem = small_problem(0)
    on_grid = np.rint(problem.steps).clip(-3, 3)
    y = problem.inputs @ (on_grid * problem.scale).astype(np.float32).swapaxes(1, 2) + problem.bias
    exact = RoundingProblem(
        on_grid, problem.scale, 3, problem.inputs, y.astype(np.float32), problem.bias, "none"
    )
    assert np.array_equal(learn_rounding(exact, **LEARNING), on_grid)


def test_the_regularizer_is_zero_only_at_both_ends():
    ends = rectified_sigmoid(torch.tensor([-20.0, 20.0]))
    assert ends.tolist() == [0, 1]
    for beta in (2.0, 20.0):
        assert float(regularizer(ends, beta)) == 0
        assert float(regularizer(torch.tensor([0.5]), beta)) == 1
    betas = [beta_at(i, 100) for i in range(100)]
    assert betas[:20] == [None] * 20
    assert betas[20] == 20
    assert all(a > b > 2 for a, b in itertools.pairwise(betas[20:]))
    assert float(regularizer(torch.tensor([0.5]), None)) == 0


class Net(nn.Module):
    """Every linear op, a depthwise one with two outputs a channel, odd strides and paddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(6, 12, (3, 2), padding=(1, 0), groups=6), nn.ReLU6(),
            nn.Conv2d(12, 8, 2, dilation=2, bias=False), nn.ReLU(),
        )  # fmt: skip
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def images(n: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).normal(size=(n, 5, 5, 3))
    return coarse.repeat(3, 1).repeat(3, 2)[:, :12, :12].astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return mcu.capture(Net(), torch.zeros(1, 3, 12, 12))


def test_the_error_of_a_problem_is_that_of_the_layer(graph):
    """Oracle: the node itself, run by the graph on all pixels, with weights rounded to nearest."""
    x, config = images(3, 0), QuantConfig(weight_bits=3)
    ranges = calibrate(graph, x)
    scales, int8 = weight_scales(graph, ranges, config), quantize_graph(graph, ranges, config)
    real, coded = paired_streams(graph, int8, x)
    for node in graph.nodes:
        if node.op in LINEAR:
            name, shape = node.inputs[1], graph[node.outputs[0]].shape
            inputs = [stream.value(node.inputs[0]) for stream in (real, coded)]
            pixels = [np.arange(shape[1] * shape[2] if len(shape) == 4 else 1)] * 3
            problem = layer_problem(
                graph, node, x=inputs[0], x_q=inputs[1], scale=scales[name], bits=3, pixels=pixels
            )
            assert np.array_equal(adaptive_rounding._stored(graph, node, problem.nearest()), int8[name].data)
            wanted, got = (
                clamped(torch.from_numpy(preactivation(g, node, v)), node.attrs.activation).numpy()
                for g, v in zip((graph, int8), inputs, strict=True)
            )
            squared = np.square(wanted - got).reshape(-1, shape[-1]).mean(0)
            # The bias of the int8 graph is rounded, by 1/255 of an input's range times a step of the weights
            # at most; the weights of many inputs are rounded by up to half a step each.
            np.testing.assert_allclose(problem.errors(problem.nearest()).reshape(-1), squared, rtol=0.05)
        real.step(node)
        coded.step(node)


def layer_errors(graph: Graph, int8: Graph, x: np.ndarray) -> dict[str, float]:
    """Return the mean squared error of each linear node behind its own quantized prefix."""
    real, coded = paired_streams(graph, int8, x)
    errors = {}
    for node in graph.nodes:
        if node.op in LINEAR:
            wanted, got = (
                clamped(
                    torch.from_numpy(preactivation(s.graph, node, s.value(node.inputs[0]))),
                    node.attrs.activation,
                ).numpy()
                for s in (real, coded)
            )
            errors[node.name] = float(np.square(wanted - got).mean())
        real.step(node)
        coded.step(node)
    return errors


@pytest.mark.parametrize(("bits", "per_channel"), [(3, True), (4, True), (4, False)])
def test_every_layer_of_a_network_is_better_than_with_nearest(graph, bits, per_channel):
    """On images that the rounding was not learned from."""
    x, unseen = images(256, 0), images(64, 1)
    config, ranges = QuantConfig(weight_bits=bits, per_channel=per_channel), calibrate(graph, x)
    codes = adaround(graph, x, config, iterations=300, rows=2048, batch_size=256)
    nearest = layer_errors(graph, quantize_graph(graph, ranges, config), unseen)
    learned = layer_errors(graph, quantize_graph(graph, ranges, config, weight_codes=codes), unseen)
    assert all(learned[name] < nearest[name] for name in nearest), (learned, nearest)
    assert sum(learned.values()) < 0.75 * sum(nearest.values())
    for name, scale in weight_scales(graph, ranges, config).items():
        node = next(n for n in graph.nodes if name in n.inputs)
        along = (1, 1, 1, -1) if node.op == "DEPTHWISE_CONV_2D" else (-1,) + (1,) * (codes[name].ndim - 1)
        assert codes[name].dtype == np.int8
        assert np.abs(codes[name] - graph[name].data / scale.reshape(along)).max() < 1 + 1e-5  # up or down


def test_a_layer_learns_behind_the_rounded_layers_before_it(graph, monkeypatch):
    seen = {}

    def spy(g, node, **arguments):
        seen[node.name] = arguments
        return layer_problem(g, node, **arguments)

    monkeypatch.setattr(adaptive_rounding, "layer_problem", spy)
    x = images(8, 0)
    config = QuantConfig(weight_bits_by_layer={"linear": 3}, weight_bits=2)
    codes = adaround(graph, x, config, iterations=20, rows=64, batch_size=32)
    int8 = quantize_graph(graph, calibrate(graph, x), config, weight_codes=codes)
    nearest = quantize_graph(graph, calibrate(graph, x), config)
    coded, other = (ir.run(g, g[g.inputs[0]].quant.quantize(x), keep=True) for g in (int8, nearest))
    last = next(n for n in graph.nodes if n.name == "linear")
    name = last.inputs[0]
    assert seen["linear"]["bits"] == 3
    assert np.array_equal(seen["linear"]["x_q"], int8[name].quant.dequantize(coded[name]))
    assert np.array_equal(seen["linear"]["x"], ir.run(graph, x, keep=True)[name])
    assert not np.array_equal(coded[name], other[name])


def test_the_seed_decides(graph):
    x = images(16, 0)
    few = {"iterations": 60, "rows": 256, "batch_size": 64}
    state = torch.get_rng_state()
    first, again, other = (
        adaround(graph, x, QuantConfig(weight_bits=3), **few, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_wrong_arguments_are_refused(graph):
    x = images(4, 0)
    for wrong in ({"iterations": 0}, {"rows": 0}, {"learning_rate": 0.0}, {"regularization": -1.0}):
        with pytest.raises(UsageError, match="adaround needs iterations"):
            adaround(graph, x, **wrong)
    with pytest.raises(UsageError, match="int8 already"):
        adaround(quantize_graph(graph, calibrate(graph, x)), x)


@pytest.mark.slow
def test_three_bits_keep_the_accuracy_of_a_network():
    model, _ = zoo.load("vgg_lite.glyphs32")
    graph = mcu.capture(model, torch.zeros(1, 3, 32, 32))
    x, test = data.load("glyphs32", "train").x[:128], data.load("glyphs32", "test", size=500)
    config, ranges = QuantConfig(weight_bits=3, per_channel=False), calibrate(graph, x)
    codes = adaround(graph, x, config, iterations=300)
    nearest, learned = (
        QuantizedModel(quantize_graph(graph, ranges, config, weight_codes=c)).evaluate(test.x, test.y)
        for c in ({}, codes)
    )
    assert learned > nearest + 0.03, (learned, nearest)
