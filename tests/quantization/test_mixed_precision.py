"""A width for each layer: sensitivities as defined, and the best widths that a budget allows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import data, ir, mcu, zoo
from tinyml_edu.data.dataset import normalised
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.ir.graph import Graph
from tinyml_edu.models import Classifier, ConvBN, ResidualBlock
from tinyml_edu.quantization import QuantConfig, quantize
from tinyml_edu.quantization.affine import quantize_weight, symmetric_scale
from tinyml_edu.quantization.mixed_precision import (
    assign_bits,
    round_weights,
    sensitivity,
    weight_bytes,
    weight_counts,
)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """A network with a branch, so that a part of it has two inputs."""
    torch.manual_seed(0)
    net = Classifier(nn.Sequential(ConvBN(3, 4), ResidualBlock(4, 8, 2)), 8, 5).eval()
    return mcu.capture(net, torch.randn(1, 3, 8, 8))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).standard_normal((24, 8, 8, 3)).astype(np.float32)


# Sensitivity -----------------------------------------------------------------------------------------------


def softmax(z):
    e = np.exp(z.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


def test_kl_is_that_of_the_whole_network_with_one_rounded_layer(graph, images):
    found = sensitivity(graph, images, bits=(2, 5))
    p = softmax(ir.run(graph, images))
    assert list(found) == list(weight_counts(graph))
    for layer, losses in found.items():
        for bits, loss in losses.items():
            q = softmax(ir.run(round_weights(graph, {layer: bits}), images))
            # Logits agree up to float32 rounding, and KL is quadratic near 0.
            assert loss == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()), rel=1e-3, abs=1e-9)
        assert losses[2] > losses[5] > 0
    assert len({losses[2] for losses in found.values()}) == len(found)  # the control: layers differ


def test_accuracy_is_what_is_lost_against_the_labels(graph, images):
    labels = np.random.default_rng(2).integers(0, 5, len(images))
    found = sensitivity(graph, images, labels, bits=(2,), metric="accuracy")
    before = (ir.run(graph, images).argmax(1) == labels).mean()
    for layer, losses in found.items():
        after = (ir.run(round_weights(graph, {layer: 2}), images).argmax(1) == labels).mean()
        assert losses[2] == pytest.approx(before - after, abs=1e-12)


def test_rounding_touches_the_named_layers_only(graph):
    name = next(iter(weight_counts(graph)))
    node = next(n for n in graph.nodes if n.name == name)
    for per_channel in (True, False):
        rounded = round_weights(graph, {name: 3}, per_channel=per_channel)
        w = graph[node.inputs[1]].data
        axis = 0 if per_channel else None
        scale = symmetric_scale(w, axis, bits=3)
        codes = quantize_weight(w, scale, axis, bits=3)
        wanted = codes * (scale[:, None, None, None] if per_channel else scale)
        np.testing.assert_allclose(rounded[node.inputs[1]].data, wanted, rtol=1e-6)
        assert rounded[node.inputs[1]].data is not w
        others = [t.name for t in graph.constants() if t.name != node.inputs[1]]
        assert all(rounded[other].data is graph[other].data for other in others)


def test_sensitivity_refuses_what_it_cannot_measure(graph, images):
    with pytest.raises(UnknownNameError, match="metric"):
        sensitivity(graph, images, metric="mse")
    with pytest.raises(UsageError, match="pass y"):
        sensitivity(graph, images, metric="accuracy")
    for bits in ((), (1,), (9,), (2.5,)):
        with pytest.raises(UsageError, match="2 to 8"):
            sensitivity(graph, images, bits=bits)
    with pytest.raises(UsageError, match="int8 already"):
        sensitivity(quantize(graph, calibration=images).graph, images)
    with pytest.raises(UnknownNameError, match="layer with weights"):
        round_weights(graph, {"nothing": 4})
    with pytest.raises(UsageError, match="no inputs"):
        sensitivity(graph, images[:0])
    with pytest.raises(UsageError, match="not finite"):
        sensitivity(graph, np.full(images.shape, np.nan, np.float32))


# Assignment ------------------------------------------------------------------------------------------------


def brute_force(losses, sizes, budget):
    """Return the least sum of losses within the budget over every assignment, or None."""
    layers, best = list(losses), None
    for widths in itertools.product(*(losses[layer] for layer in layers)):
        used = sum(math.ceil(sizes[layer] * b / 8) for layer, b in zip(layers, widths))
        if used <= budget:
            value = math.fsum(losses[layer][b] for layer, b in zip(layers, widths))
            best = value if best is None else min(best, value)
    return best


@st.composite
def problems(draw):
    """Up to five layers; losses over many orders of magnitude, as those of 2 and 8 bits are."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    layers = [f"layer{i}" for i in range(draw(st.integers(1, 5)))]
    widths = draw(st.lists(st.integers(2, 8), min_size=1, max_size=4, unique=True))
    spread = draw(st.sampled_from([0.0, 1.0, 12.0]))
    floor = draw(st.sampled_from([0.0, -0.1]))
    losses = {
        layer: {
            b: float(floor + 10.0 ** rng.uniform(-spread, 0) * (10.0 ** (-spread * b / 8))) for b in widths
        }
        for layer in layers
    }
    sizes = {layer: int(10 ** rng.uniform(0, 6)) for layer in layers}
    ends = [sum(math.ceil(n * b / 8) for n in sizes.values()) for b in (min(widths), max(widths))]
    budget = ends[0] + round(draw(st.floats(-0.1, 1.1)) * (ends[1] - ends[0]))
    return losses, sizes, budget


@given(problems())
@settings(max_examples=120, deadline=None)
def test_the_assignment_is_the_best_of_all(problem):
    losses, sizes, budget = problem
    best = brute_force(losses, sizes, budget)
    if best is None:
        with pytest.raises(UsageError, match="too small"):
            assign_bits(losses, sizes, budget)
        return
    bits = assign_bits(losses, sizes, budget)
    assert sum(weight_bytes(sizes[layer], b) for layer, b in bits.items()) <= budget
    value = math.fsum(losses[layer][b] for layer, b in bits.items())
    # Above the sum of the layers' smallest losses, which nobody can avoid, up to the solver's tolerance.
    unavoidable = math.fsum(min(choices.values()) for choices in losses.values())
    assert value - best <= 2e-6 * (best - unavoidable) + 1e-15, (problem, bits)


def greedy(losses, sizes, budget):
    """Start narrow; while one fits, widen the layer that gains most for a byte.  Return the sum of losses."""
    bits = {layer: min(choices) for layer, choices in losses.items()}
    while True:
        left = budget - sum(weight_bytes(sizes[layer], b) for layer, b in bits.items())
        steps = [
            ((losses[layer][bits[layer]] - losses[layer][b]) / cost, layer, b)
            for layer in losses
            for b in losses[layer]
            if 0 < (cost := weight_bytes(sizes[layer], b) - weight_bytes(sizes[layer], bits[layer])) <= left
        ]
        if not steps:
            return sum(losses[layer][b] for layer, b in bits.items())
        _, layer, bits[layer] = max(steps)


def test_greedy_by_gain_per_byte_is_not_the_best():
    """The control: the oracle tells a good heuristic from the optimum."""
    losses = {"a": {2: 10.0, 8: 0.0}, "b": {2: 6.0, 8: 0.0}, "c": {2: 6.0, 8: 0.0}}
    sizes = {"a": 120, "b": 80, "c": 80}
    budget = sum(weight_bytes(n, 2) for n in sizes.values()) + 120  # for b and c, or for a alone
    assert assign_bits(losses, sizes, budget) == {"a": 2, "b": 8, "c": 8}
    assert brute_force(losses, sizes, budget) == 10.0
    assert greedy(losses, sizes, budget) == 12.0


def test_a_small_loss_counts_beside_a_large_one():
    """A solver with absolute tolerances would not see it."""
    losses = {"a": {2: 1.0, 8: 0.0}, "b": {2: 2e-12, 8: 0.0}, "c": {2: 1e-12, 8: 0.0}}
    sizes = dict.fromkeys(losses, 8)
    assert assign_bits(losses, sizes, 18) == {"a": 8, "b": 8, "c": 2}


def test_a_budget_below_the_least_is_refused_with_the_least():
    losses = {"a": {3: 0.1, 4: 0.0}, "b": {2: 0.1, 4: 0.0}}
    sizes = {"a": 100, "b": 27}
    assert assign_bits(losses, sizes, 45) == {"a": 3, "b": 2}  # 38 + 7
    with pytest.raises(UsageError, match="44 bytes is too small: the narrowest widths need 45 bytes"):
        assign_bits(losses, sizes, 44)
    with pytest.raises(UsageError, match="no size is given for 'b'"):
        assign_bits(losses, {"a": 3}, 45)
    with pytest.raises(UsageError, match="not finite"):
        assign_bits({"a": {2: float("nan")}}, sizes, 45)
    with pytest.raises(UsageError, match="no layer"):
        assign_bits({}, sizes, 45)


@pytest.fixture(scope="module")
def assigned():
    """A trained network, and its widths for the bytes that 4 bits everywhere would take."""
    model, _ = zoo.load("resnet8.glyphs32")
    images = data.load("glyphs32", "validation", size=24)
    network = mcu.capture(model, torch.zeros(1, 3, 32, 32))
    sizes = weight_counts(network)
    found = sensitivity(network, images.x, bits=(3, 4, 5, 6))
    budget = sum(weight_bytes(n, 4) for n in sizes.values())
    return network, images, sizes, budget, assign_bits(found, sizes, budget)


def test_mixed_widths_lose_less_than_uniform_ones_in_the_same_bytes(assigned):
    network, _, sizes, budget, bits = assigned
    assert sum(weight_bytes(sizes[layer], b) for layer, b in bits.items()) <= budget
    x = normalised(data.load("glyphs32", "test", size=100).x)  # images that the assignment did not see
    p = softmax(ir.run(network, x))

    def mean_kl(widths):
        q = softmax(ir.run(round_weights(network, widths), x))
        return (p * np.log(p / q)).sum(axis=1).mean()

    mixed = mean_kl(bits)
    assert mixed < mean_kl(dict.fromkeys(bits, 4)), bits
    # The control: the same widths, given to the layers in the opposite order.
    assert mixed < mean_kl(dict(zip(bits, reversed(bits.values())))), bits


def test_the_integer_graph_gets_the_widths(assigned):
    network, images, _, _, bits = assigned
    made = quantize(network, QuantConfig(weight_bits_by_layer=bits), images.x[:16]).graph
    for node in made.nodes:
        if node.name in bits:
            assert np.abs(made[node.inputs[1]].data).max() == 2 ** (bits[node.name] - 1) - 1
