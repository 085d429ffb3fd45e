"""Bias correction makes the quantized layers' channel means those of the float layers.

Bound: the shift is measured with the real values of all codes and taken off in float64; what is left is the
rounding of the bias to its int32 grid, half a step ``s_x * s_w / 2``, and of the means, float32.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tinyml_edu import ir, mcu
from tinyml_edu.errors import UsageError
from tinyml_edu.ir import Graph
from tinyml_edu.quantization import (
    QuantConfig,
    bias_correction,
    calibrate,
    correct_bias,
    quantize_graph,
    weight_scales,
)
from tinyml_edu.quantization.layerwise import paired_streams, preactivation

LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class Net(nn.Module):
    """Convolutions, a depthwise one, a residual sum and a linear layer, with uneven channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(torch.linspace(0.2, 3, len(p)).reshape(-1, *[1] * (p.dim() - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return mcu.capture(Net(), torch.zeros(1, 3, 8, 8))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (24, 8, 8, 3)).astype(np.float32)


def excess(graph: Graph, corrected: Graph, x: np.ndarray, config: QuantConfig, codes=None) -> float:
    """Return the largest distance of two channel means, in the units of the bound (above 1: broken)."""
    int8 = quantize_graph(corrected, calibrate(graph, x), config, weight_codes=codes)
    real, coded = paired_streams(graph, int8, x)
    worst = 0.0
    for node in graph.nodes:
        if node.op in LINEAR:
            wanted = preactivation(graph, node, real.value(node.inputs[0])).astype(np.float64)
            got = preactivation(int8, node, coded.value(node.inputs[0])).astype(np.float64)
            axes = tuple(range(wanted.ndim - 1))
            step = int8[node.inputs[2]].quant.scale
            bound = step / 2 + 2.0**-20 * np.abs(wanted).max()
            worst = max(worst, float((np.abs(got.mean(axes) - wanted.mean(axes)) / bound).max()))
        real.step(node)
        coded.step(node)
    return worst


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_channel_means_agree_to_half_a_step_of_the_bias(graph, x, bits, per_channel):
    config = QuantConfig(weight_bits=bits, per_channel=per_channel)
    assert excess(graph, correct_bias(graph, x, config), x, config) <= 1
    # The control: without the correction they are steps apart.
    assert excess(graph, graph, x, config) > 5


@pytest.mark.parametrize("defect", ["added", "early", "one layer"])
def test_a_wrong_correction_is_caught(graph, x, defect, monkeypatch):
    config = QuantConfig(weight_bits=3)
    right = bias_correction._move_bias
    if defect == "added":  # the sign of the shift is wrong
        monkeypatch.setattr(
            bias_correction, "_move_bias", lambda g, q, name, shift: right(g, q, name, -shift)
        )
    elif defect == "early":  # the prefix is not quantized: layers see float inputs
        monkeypatch.setattr(
            bias_correction,
            "paired_streams",
            lambda g, q, data: (paired_streams(g, q, data)[0], Floats(g, data)),
        )
    else:
        last = graph.nodes[-1].inputs[2]
        monkeypatch.setattr(
            bias_correction,
            "_move_bias",
            lambda g, q, name, shift: None if name == last else right(g, q, name, shift),
        )
    assert excess(graph, correct_bias(graph, x, config), x, config) > 5


class Floats:
    """The float network in the place of the quantized one."""

    def __init__(self, graph: Graph, x: np.ndarray) -> None:
        int8 = quantize_graph(graph, calibrate(graph, x))
        self.stream, _ = paired_streams(graph, int8, x)

    def value(self, name: str) -> np.ndarray:
        return self.stream.value(name)

    def step(self, node, graph=None) -> None:  # noqa: ARG002
        self.stream.step(node)


def test_only_biases_change(graph, x):
    before = {t.name: t.data.copy() for t in graph.constants()}
    corrected = correct_bias(graph, x, QuantConfig(weight_bits=3))
    biases = {node.inputs[2] for node in graph.nodes if node.op in LINEAR}
    for name, data in before.items():
        assert np.array_equal(graph[name].data, data)
        assert np.array_equal(corrected[name].data, data) == (name not in biases)
    assert corrected.nodes == graph.nodes


def test_a_layer_without_bias_gets_one(graph, x):
    bare = replace(
        graph, nodes=[replace(n, inputs=n.inputs[:2]) if n.op in LINEAR else n for n in graph.nodes]
    )
    config = QuantConfig(weight_bits=3)
    corrected = correct_bias(bare, x, config)
    assert all(len(n.inputs) == 3 for n in corrected.nodes if n.op in LINEAR)
    zeros = replace(graph, tensors=dict(graph.tensors))
    for node in graph.nodes:
        if node.op in LINEAR:
            zeros.update(node.inputs[2], data=np.zeros(graph[node.inputs[2]].shape, np.float32))
    assert np.array_equal(ir.run(zeros, x), ir.run(bare, x))
    wanted = correct_bias(zeros, x, config)
    assert np.array_equal(ir.run(corrected, x), ir.run(wanted, x))


def test_given_codes_are_what_is_corrected(graph, x):
    """With all weights rounded down the means are far off, and come back."""
    config = QuantConfig(weight_bits=4)
    scales = weight_scales(graph, calibrate(graph, x), config)
    codes = {}
    for node in graph.nodes:
        if node.op in LINEAR:
            w, s = graph[node.inputs[1]].data, scales[node.inputs[1]]
            along = -1 if node.op == "DEPTHWISE_CONV_2D" else (-1,) + (1,) * (w.ndim - 1)
            codes[node.inputs[1]] = np.clip(np.floor(w / s.reshape(along)), -7, 7)
    assert excess(graph, graph, x, config, codes) > 50
    assert excess(graph, correct_bias(graph, x, config, weight_codes=codes), x, config, codes) <= 1
    assert excess(graph, correct_bias(graph, x, config), x, config, codes) > 50


def test_wrong_arguments_are_refused(graph, x):
    with pytest.raises(UsageError, match="int8 already"):
        correct_bias(quantize_graph(graph, calibrate(graph, x)), x)
    with pytest.raises(UsageError, match="the calibration set is empty"):
        correct_bias(graph, x[:0])
