"""Fake quantization: values against `Quant`, gradients against finite differences, networks against integers.

Layer bound: let t be a layer's exact output in steps of its scale, for given input codes and the module's own
weight and bias codes.  The module rounds float32 sums, within e + 1/2 of t, where e is the summation error.
The engine sums exactly and rounds after the 31-bit shift (1/2 unit, divided by the second shift, at most 1/4)
and at the end (1/2); ADD rounds its inputs to 2**-20 of a step, SOFTMAX its exponentials to 2**-24.  The
codes differ by less than e + 5/4: at most 1 while e < 5/8, which leaves 1/8 for the latter.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import data, ir, mcu, train, zoo
from tinyml_edu.data import Dataset
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.ir import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.ir.attrs import FullyConnected, Mean
from tinyml_edu.quantization import (
    FakeQuantize,
    LearnedStepSize,
    QuantConfig,
    calibrate,
    convert,
    fake_quantization,
    prepare_qat,
    qat,
    quantize_graph,
    weight_scales,
)
from tinyml_edu.quantization.fake_quantization import SMALLEST_STEP, fake_quantize
from tinyml_edu.quantization.qat import QATGraph
from tinyml_edu.quantization.torch_graph import from_stored, to_stored

LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


# --- one quantizer ---


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.floats(1e-3, 10), st.integers(0, 255), st.integers(0, 10_000))
def test_values_are_those_of_the_codes(bits, scale, offset, seed):
    """Bit for bit: both divide, round half to even and multiply in float32."""
    quant = Quant.per_tensor(scale, -(2 ** (bits - 1)) + offset % 2**bits, bits)
    x = np.random.default_rng(seed).normal(size=200).astype(np.float32) * np.float32(scale * 2**bits)
    expected = quant.dequantize(quant.quantize(x))
    assert np.array_equal(FakeQuantize(quant)(torch.from_numpy(x)).numpy(), expected)


def test_channels_have_their_own_scale_and_weights_are_symmetric():
    quant = Quant(np.array([0.5, 2.0], np.float32), np.zeros(2, np.int32), 0, 4)
    w = torch.tensor([[-9.0, 0.6], [-9.0, 3.1]])
    assert FakeQuantize(quant, symmetric=True)(w).tolist() == [[-3.5, 0.5], [-8.0, 4.0]]


STEP, LOW, HIGH = 0.5, -4, 3
X = [-9.0, -2.2, -2.0, -1.9, 0.0, 0.4, 1.2, 1.5, 1.6, 3.0]
PASSES = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
# Clipped: the end.  Inside: round(u) - u with u = x / 0.5.
STEP_SHARES = [-4, -4, 0, -4 + 3.8, 0, 1 - 0.8, 2 - 2.4, 0, 3, 3]


def test_the_gradients_have_the_values_derived_by_hand():
    weights = torch.arange(1.0, len(X) + 1)
    x, step = torch.tensor(X, requires_grad=True), torch.tensor([STEP], requires_grad=True)
    (fake_quantize(x, step, LOW, HIGH) * weights).sum().backward()
    assert x.grad.tolist() == [p * w for p, w in zip(PASSES, weights.tolist(), strict=True)]
    expected = sum(s * w for s, w in zip(STEP_SHARES, weights.tolist(), strict=True))
    # Ten float32 terms of magnitude up to 4 * 10, each within a unit, and as many additions.
    assert float(step.grad) == pytest.approx(expected, abs=20 * 100 * 2**-24)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_ends_of_the_range_belong_to_it(bits):
    quantizer = FakeQuantize(Quant.per_tensor(0.3, -(2 ** (bits - 1)), bits))
    high = quantizer.scale * quantizer.high
    x = torch.tensor([0.0, float(high), float(high) * (1 + 2.0**-10)], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0]


def surrogate(x: torch.Tensor, step: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return what the estimator differentiates: rounding replaced by adding the present rounding error."""
    clipped = (x / step).clamp(low, high)
    return step * (clipped + (clipped.round() - clipped).detach())


def gradient_error(quantizer, seed: int = 0) -> float:
    """Return the largest relative distance of gradients to central differences of the surrogate, float64."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(3, 8)) * 2)
    step = torch.from_numpy(rng.uniform(0.3, 0.6, (3, 1)))
    weights = torch.from_numpy(rng.normal(size=(3, 8)))
    residual = (x / step).clamp(LOW, HIGH).round() - (x / step).clamp(LOW, HIGH)

    def frozen(x: torch.Tensor, step: torch.Tensor) -> float:
        return float((weights * step * ((x / step).clamp(LOW, HIGH) + residual)).sum())

    leaves = [x.clone().requires_grad_(), step.clone().requires_grad_()]
    (weights * quantizer(leaves[0], leaves[1], LOW, HIGH)).sum().backward()
    h, worst = 1e-6, 0.0
    for at, value in enumerate((x, step)):
        for i in range(value.numel()):
            move = torch.zeros_like(value)
            move.view(-1)[i] = h
            up, down = [[x, step], [x, step]]
            up[at], down[at] = value + move, value - move
            slope = (frozen(*up) - frozen(*down)) / (2 * h)
            grad = leaves[at].grad
            worst = max(worst, abs(slope - (0.0 if grad is None else float(grad.view(-1)[i]))))
    return worst


@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_the_finite_differences_of_the_surrogate(seed):
    # The surrogate is linear in x and in step where nothing crosses an end: only float64 cancellation is
    # left, some 100 * 2**-53 / 1e-6.
    assert gradient_error(fake_quantize, seed) < 1e-7
    assert gradient_error(surrogate, seed) < 1e-7


def stopped_inside(x, step, low, high):
    codes = (x / step).clamp(low, high)
    inside = (codes == x / step).detach()
    y = fake_quantize(x, step, low, high)
    return torch.where(inside, y.detach(), y)


def passed_everywhere(x, step, low, high):
    return x + (fake_quantize(x, step, low, high) - x).detach()


def step_without_residual(x, step, low, high):
    codes = (x / step.detach()).clamp(low, high).round()
    return x * 0 + step * codes + surrogate(x, step.detach(), low, high) - (step * codes).detach()


def rounded_only(x, step, low, high):
    return step * (x / step).round().clamp(low, high)


@pytest.mark.parametrize("mistake", [stopped_inside, passed_everywhere, step_without_residual, rounded_only])
def test_the_gradient_check_catches(mistake):
    x, step = torch.randn(3, 8).double(), torch.full((3, 1), 0.4).double()
    assert torch.allclose(
        mistake(x, step, LOW, HIGH), fake_quantize(x, step, LOW, HIGH)
    )  # only gradients differ
    assert gradient_error(mistake) > 0.01


@pytest.mark.parametrize(("symmetric", "q_max"), [(True, 7), (False, 9)])
def test_the_step_gradient_is_scaled_by_count_and_largest_code(symmetric, q_max):
    quant = (
        Quant.per_tensor(STEP, 0 if symmetric else -2, 4) if not symmetric else Quant.per_tensor(STEP, 0, 4)
    )
    quantizer = LearnedStepSize(quant, symmetric=symmetric, elements=25)
    if not symmetric:
        assert (quantizer.low, quantizer.high) == (-6, 9)
        q_max = 9
    x = torch.linspace(-8, 8, 41)
    quantizer(x).sum().backward()
    plain = torch.tensor([STEP], requires_grad=True)
    fake_quantize(x, plain, quantizer.low, quantizer.high).sum().backward()
    assert float(quantizer.scale.grad) == pytest.approx(float(plain.grad) / math.sqrt(25 * q_max), rel=1e-6)
    assert float(quantizer.step().detach()) == STEP  # the value is not scaled


def test_learned_steps_of_channels_do_not_mix():
    quantizer = LearnedStepSize(
        Quant(np.array([0.5, 0.5], np.float32), np.zeros(2, np.int32), 1, 4), symmetric=True, elements=3
    )
    x = torch.tensor([[9.0, 0.2], [9.0, 0.2], [9.0, 0.2]])
    quantizer(x).sum().backward()
    g = 1 / math.sqrt(3 * 7)
    assert quantizer.scale.grad.tolist() == pytest.approx([3 * 7 * g, 3 * -0.4 * g], rel=1e-5)


@pytest.mark.parametrize("value", [0.0, -0.25, 1e-45])
def test_a_step_that_training_drove_through_zero_stays_positive(value):
    quantizer = LearnedStepSize(Quant.per_tensor(0.5, 0, 4), elements=1)
    quantizer.scale.data.fill_(value)
    assert float(quantizer.step().detach()) == max(abs(value), SMALLEST_STEP) > 0
    assert torch.isfinite(quantizer(torch.tensor([0.0, 1.0]))).all()


def test_quantizers_compute_in_float32_under_autocast():
    quantizer = FakeQuantize(Quant.per_tensor(0.3, 0))
    with torch.autocast("cpu", torch.bfloat16):
        y = quantizer(torch.linspace(-30, 30, 100).bfloat16())
    assert y.dtype is torch.float32
    assert torch.equal((y / quantizer.scale).round() * quantizer.scale, y)
    assert not torch.equal(y.bfloat16().float(), y)  # what a bf16 quantizer would have returned


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FakeQuantize(Quant.per_tensor(0.0, 0)), "positive scales"),
        (lambda: FakeQuantize(Quant.per_tensor(1.0, 3), symmetric=True), "zero point 0"),
        (lambda: FakeQuantize(Quant(np.ones(2, np.float32), np.zeros(2, np.int32))), "need an axis"),
        (lambda: FakeQuantize(Quant(np.ones(2, np.float32), np.arange(2), 0)), "one zero point"),
        (lambda: LearnedStepSize(Quant.per_tensor(1.0, 0), elements=0), "at least one value"),
    ],
)
def test_quantizers_refuse_what_they_cannot_do(make, words):
    with pytest.raises(UsageError, match=words):
        make()


# --- whole networks ---


class AllOps(nn.Module):
    """A network with every op of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        nn.init.constant_(self.norm.weight, 5.0)  # values above 6
        self.deep = nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.point = nn.Conv2d(6, 6, 1)
        self.last = nn.Conv2d(6, 8, (2, 3), dilation=(1, 2), padding=2)
        self.hidden = nn.Linear(8, 8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = F.relu6(y := x + self.point(F.relu(self.deep(x)))) + y
        x = F.avg_pool2d(F.relu6(F.max_pool2d(F.pad(x, (1, 0, 0, 2)), 2, ceil_mode=True)), 2)
        x = F.relu(self.hidden(self.last(x).mean((2, 3), keepdim=True).flatten(1)))
        return F.softmax(self.linear(x), dim=1)


IMAGES = np.random.default_rng(7).normal(size=(6, 17, 18, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    graph = mcu.capture(AllOps(), torch.zeros(1, 3, 17, 18))
    last = [i for i, node in enumerate(graph.nodes) if node.op == "AVERAGE_POOL_2D"][-1]
    graph.nodes[last] = replace(graph.nodes[last], op="MEAN", attrs=Mean((1, 2), keepdims=True))
    return graph.validate()


def prepared(graph: Graph, config: QuantConfig, method: str, **options) -> QATGraph:
    return prepare_qat(graph, calibrate(graph, IMAGES), config, method=method, **options)


def trained(module: QATGraph, seed: int = 0) -> QATGraph:
    """Move every parameter, as training would: weights and biases by a tenth, scales by up to a quarter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
            parameter.mul_(1 + noise * (0.25 if name.endswith("scale") else 0.1))
    return module


def code_distances(module: QATGraph, int8: Graph, x: np.ndarray) -> dict[str, int]:
    """Return the largest distance in codes of each node, both fed with the integer network's own codes."""
    kept = ir.run(int8, int8[int8.inputs[0]].quant.quantize(x), keep=True)
    real = {name: from_stored(torch.from_numpy(int8[name].quant.dequantize(kept[name]))) for name in kept}
    result = {}
    for node in module.graph.nodes:
        with torch.no_grad():
            y = module.compute(node, [real.get(name) for name in node.inputs])
        quant = int8[node.outputs[0]].quant
        scale, zero_point = quant.item()
        steps = to_stored(y).numpy().astype(np.float64) / scale
        codes = np.rint(steps) + zero_point
        # The module's output must be a code already: s * k in float32 is within 255 * 2**-24 steps of k.
        on_the_grid = np.abs(steps - np.rint(steps)).max() <= 2.0**-16
        coded = on_the_grid and quant.limits[0] <= codes.min() <= codes.max() <= quant.limits[1]
        result[node.name] = int(np.abs(codes - kept[node.outputs[0]]).max()) if coded else 256
    return result


def summation_error(module: QATGraph, int8: Graph) -> float:
    """Return e of the module docstring, for the widest inputs: (K + 2) units of sum |x| |w| + |b|."""
    worst = 0.0
    for node in module.graph.nodes:
        if node.op not in LINEAR:
            continue
        weight = int8[node.inputs[1]]
        axis = weight.data.ndim - 1 if node.op == "DEPTHWISE_CONV_2D" else 0
        w = np.moveaxis(np.abs(weight.quant.dequantize(weight.data)), axis, 0).reshape(weight.shape[axis], -1)
        quantizer = module.quantizer(node.inputs[0])
        largest = float(quantizer.step().detach()) * max(quantizer.high, -quantizer.low)
        sums = w.sum(1) * largest + np.abs(module.parameter(node.inputs[2]).detach().numpy())
        error = (w.shape[1] + 2) * 2.0**-24 * sums.max() / int8[node.outputs[0]].quant.item()[0]
        worst = max(worst, float(error))
    return worst


BRANCHING = {
    *("SUB", "MUL", "CONCATENATION", "LOGISTIC", "HARD_SWISH", "RELU", "RELU6", "QUANTIZE"),
    *("RELU_N1_TO_1", "LEAKY_RELU", "TANH"),
    "RESIZE_NEAREST_NEIGHBOR",
}
"""Ops of the second network.  Capture writes RELU and RELU6 as clamps of other ops."""


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.mask = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 1, 1)
        self.last = nn.Conv2d(13, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.stem(x))
        y = x * self.gate(F.adaptive_avg_pool2d(x, 1)).sigmoid() - F.silu(x)
        y = y.tanh() + F.leaky_relu(y, 0.2)
        return self.last(F.interpolate(torch.cat([y, self.mask(x).sigmoid(), x], 1), scale_factor=2))


@pytest.mark.parametrize("method", ["ste", "lsq"])
@pytest.mark.parametrize("bits", [8, 4])
def test_gates_and_joined_branches_are_within_one_code_after_conversion(method, bits):
    torch.manual_seed(0)
    graph = mcu.capture(Branches(), torch.zeros(1, 3, 17, 18))
    assert BRANCHING - {"RELU", "RELU6", "RELU_N1_TO_1"} <= {node.op for node in graph.nodes}
    module = trained(prepared(graph, QuantConfig(bits, bits), method))
    int8 = convert(module).graph
    assert summation_error(module, int8) < 5 / 8
    for x in (IMAGES, 3 * IMAGES):
        distances = code_distances(module, int8, x)
        assert max(distances.values()) <= 1, distances
    fixed = [node.outputs[0] for node in graph.nodes if node.op == "LOGISTIC"]
    assert len(fixed) == 3
    assert all(int8[name].quant.item() == (1 / 256, -128) for name in fixed)
    (tanh,) = [node.outputs[0] for node in graph.nodes if node.op == "TANH"]
    assert int8[tanh].quant.item() == (1 / 128, 0)


CONFIGS = [
    QuantConfig(),
    QuantConfig(4, 4),
    QuantConfig(2, 3, per_channel=False),
    QuantConfig(4, 6, weight_bits_by_layer={"last": 7, "linear": 2}),
]


@pytest.mark.parametrize("method", ["ste", "lsq"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"w{c.weight_bits}a{c.activation_bits}")
def test_every_layer_of_the_converted_network_is_within_one_code(graph, config, method):
    assert {node.op for node in graph.nodes} | BRANCHING == set(ir.OPS)
    assert any(node.op == "MAX_POOL_2D" and node.attrs.activation == "relu6" for node in graph.nodes)
    module = trained(prepared(graph, config, method))
    int8 = convert(module).graph
    assert summation_error(module, int8) < 5 / 8
    for x in (IMAGES, 3 * IMAGES):  # the second leaves the calibrated range
        distances = code_distances(module, int8, x)
        assert max(distances.values()) <= 1, distances


@pytest.mark.parametrize("quantize_bias", [True, False])
def test_constants_of_the_module_are_those_of_the_integer_network(graph, quantize_bias):
    module = trained(prepared(graph, QuantConfig(4, 4), "lsq", quantize_bias=quantize_bias))
    int8 = convert(module).graph
    for node in graph.nodes:
        if node.op not in LINEAR:
            continue
        weight, bias = int8[node.inputs[1]], int8[node.inputs[2]]
        with torch.no_grad():
            w, b = module.constant(node, 1, 1), module.constant(node, 2, 1)
        order = module._order[weight.name]
        assert np.array_equal(w.numpy().transpose(np.argsort(order)), weight.quant.dequantize(weight.data))
        step = int8[node.inputs[0]].quant.item()[0] * weight.quant.scale.astype(np.float64)
        rounded = (bias.data * step).astype(np.float32)
        assert np.array_equal(b.detach(), rounded if quantize_bias else module.parameter(bias.name).detach())


def without_bias(int8: Graph, node: Node) -> None:
    int8.update(node.inputs[2], data=np.zeros_like(int8[node.inputs[2]].data))


def another_output_scale(int8: Graph, node: Node) -> None:
    scale, zero_point = int8[node.outputs[0]].quant.item()
    int8.update(node.outputs[0], quant=Quant.per_tensor(scale * 1.25, zero_point, 4))


def weights_beside_their_codes(int8: Graph, node: Node) -> None:
    int8.update(node.inputs[1], data=-int8[node.inputs[1]].data)


@pytest.mark.parametrize("mistake", [without_bias, another_output_scale, weights_beside_their_codes])
def test_the_one_code_bound_catches(graph, mistake):
    module = trained(prepared(graph, QuantConfig(4, 8), "ste"))
    int8 = convert(module).graph
    mistake(int8, next(n for n in graph.nodes if n.name == "point"))
    assert max(code_distances(module, int8, IMAGES).values()) > 1


@pytest.mark.parametrize("method", ["ste", "lsq"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"w{c.weight_bits}a{c.activation_bits}")
def test_before_training_it_is_the_post_training_network(graph, config, method):
    expected = quantize_graph(graph, calibrate(graph, IMAGES), config)
    got = convert(prepared(graph, config, method)).graph
    for name, tensor in expected.tensors.items():
        assert tensor.data is None or np.array_equal(got[name].data, tensor.data)
        assert np.array_equal(got[name].quant.scale, tensor.quant.scale), name
        assert np.array_equal(got[name].quant.zero_point, tensor.quant.zero_point)
        assert got[name].quant.bits == tensor.quant.bits


def test_scales_are_shared_and_prescribed_as_in_the_integer_network(graph):
    module = prepared(graph, QuantConfig(4, 4), "lsq")
    for node in graph.nodes:
        source, result = module.quantizer(node.inputs[0]), module.quantizer(node.outputs[0])
        shares = node.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE")
        assert (source is result) == shares, node
        learned = node.op != "SOFTMAX" and (not shares or isinstance(source, LearnedStepSize))
        assert isinstance(result, LearnedStepSize) == learned
        assert result.bits == (8 if node.outputs[0] in graph.outputs else 4)
    first = module.quantizer(graph.inputs[0])
    assert (first.bits, isinstance(first, LearnedStepSize)) == (8, False)
    last = module.quantizer(graph.outputs[0])
    assert (float(last.step()), last.zero_point) == (1 / 256, -128)


def test_only_weights_that_are_quantized_after_folding_have_codes():
    """Rounded before, they lie between the codes of the folded weights, up to the half step of any number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    model[1].weight.data = torch.tensor([0.3, 0.7, 1.0, 1.9])

    def rounded(w: torch.Tensor) -> torch.Tensor:  # one scale, 4 bits
        return fake_quantize(w, w.abs().max() / 7, -7, 7)

    def folded() -> torch.Tensor:
        graph = mcu.capture(model, torch.zeros(1, 3, 8, 8))
        return torch.from_numpy(graph[graph.nodes[0].inputs[1]].data)

    def steps_off(w: torch.Tensor) -> float:
        return float((rounded(w) - w).abs().max() / (w.abs().max() / 7))

    assert steps_off(rounded(folded())) < 1e-5
    with torch.no_grad():
        model[0].weight.copy_(rounded(model[0].weight))
    assert steps_off(folded()) > 0.3


def test_a_channel_of_zeros_beside_a_large_bias_survives_conversion():
    graph = Graph("linear", inputs=("x",), outputs=("y",))
    graph.add(Tensor("x", (1, 2), "float32", Kind.INPUT))
    graph.add(Tensor("y", (1, 2), "float32", Kind.ACTIVATION))
    for name, values in (("w", [[1.0, -2.0], [0.0, 0.0]]), ("b", [0.1, 3.0])):
        array = np.array(values, np.float32)
        graph.add(Tensor(name, array.shape, "float32", Kind.CONSTANT, array))
    graph.nodes.append(Node("n", "FULLY_CONNECTED", ("x", "w", "b"), ("y",), FullyConnected()))
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    for method in ("ste", "lsq"):
        module = prepare_qat(graph, calibrate(graph, x), QuantConfig(4), method=method)
        module(torch.from_numpy(x)).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
        assert max(code_distances(module, convert(module).graph, x).values()) <= 1


def test_a_channel_of_zeros_without_bias_has_the_step_of_the_integer_network():
    """The floor of ``s_x * s_w / s_y``, which only such a channel reaches."""
    graph = mcu.capture(nn.Linear(3, 2, bias=False), torch.zeros(1, 3))
    node = graph.nodes[0]
    graph.update(node.inputs[1], data=np.array([[1, 2, 3], [0, 0, 0]], np.float32))
    ranges = {node.inputs[0]: (-1.0, 1.0), node.outputs[0]: (-6.0, 6.0)}
    expected = weight_scales(graph, ranges, QuantConfig(4))[node.inputs[1]]
    for method in ("ste", "lsq"):
        step = prepare_qat(graph, ranges, QuantConfig(4), method=method).weight_step(node)
        # float64 quotients of float32 scales, rounded once.
        assert step.tolist() == pytest.approx(expected.tolist(), rel=2 * 2**-24)
    assert expected[1] == pytest.approx(6 * 2.0**-24, rel=1e-6)


# --- training ---


def templates(n: int = 256) -> Dataset:
    """Return five random templates under noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, n)
    x = (rng.normal(size=(5, 8, 8, 3))[y] + rng.normal(size=(n, 8, 8, 3)) * 0.5).astype(np.float32)
    return Dataset("templates", "train", x, y, tuple("abcde"))


@pytest.fixture(scope="module")
def small() -> Graph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
    )
    return mcu.capture(net, torch.zeros(1, 3, 8, 8))


CONFIG = train.TrainConfig(
    epochs=8, batch_size=32, learning_rate=0.05, weight_decay=0.0, precision="float32", progress=False
)


@pytest.mark.parametrize(("method", "precision"), [("ste", "float32"), ("lsq", "float32"), ("lsq", "bf16")])
def test_training_with_fit_learns_and_conversion_keeps_it(small, method, precision):
    dataset = templates()
    ranges = calibrate(small, dataset.x)
    module = prepare_qat(small, ranges, QuantConfig(3, 3), method=method)
    before = train.evaluate(module, dataset)
    scales = {name: float(module.quantizer(name).step().detach()) for name in ranges}
    train.fit(module, dataset, dataset, replace(CONFIG, precision=precision))
    after = train.evaluate(module, dataset)
    assert before < 0.4
    assert after > 0.7
    model = convert(module)
    assert max(code_distances(module, model.graph, dataset.x[:50]).values()) <= 1
    assert abs(model.evaluate(dataset.x, dataset.y) - after) <= 0.05
    moved = {name for name in ranges if float(module.quantizer(name).step().detach()) != scales[name]}
    assert bool(moved) == (method == "lsq")
    assert small.inputs[0] not in moved


def test_the_true_derivative_of_rounding_teaches_nothing(small, monkeypatch):
    """Control of the test above: rounding as autograd sees it has the gradient 0."""
    for module in (qat, fake_quantization):  # of weights, of activations
        monkeypatch.setattr(module, "fake_quantize", rounded_only)
    module = prepare_qat(small, calibrate(small, templates().x), QuantConfig(3, 3), method="ste")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train.fit(module, templates(), templates(), CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_checkpoint_of_a_prepared_network_is_resumed(small, tmp_path):
    ranges, results = calibrate(small, templates().x), []
    for epochs in ((1, 2), (2,)):
        module = prepare_qat(small, ranges, QuantConfig(4, 4))
        file = tmp_path / f"{len(epochs)}.safetensors"
        for last in epochs:
            config = replace(CONFIG, epochs=2, schedule="constant", ema=0.9)
            if last == 1:
                config = replace(config, epochs=1)
            train.fit(module, templates(), templates(), config, checkpoint=file if last == 2 else None)
        results.append(module)
    again = prepare_qat(small, ranges, QuantConfig(4, 4))
    train.fit(
        again,
        templates(),
        templates(),
        replace(CONFIG, epochs=2, schedule="constant", ema=0.9),
        checkpoint=file,
    )
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), results[-1].parameters(), strict=True))


def test_what_cannot_be_prepared_or_converted_is_said(small):
    ranges = calibrate(small, templates().x)
    with pytest.raises(
        UnknownNameError, match="unknown method of quantization-aware training 'lqs'; did you mean"
    ):
        prepare_qat(small, ranges, method="lqs")
    with pytest.raises(UsageError, match="from prepare_qat, not Sequential"):
        convert(nn.Sequential())
    with pytest.raises(UsageError, match="no range is given"):
        prepare_qat(small, {})


def test_a_zoo_network_at_four_bits_agrees_layer_by_layer():
    model, _ = zoo.load("vgg_lite.glyphs32")
    graph = mcu.capture(model, torch.zeros(1, 3, 32, 32))
    images = (data.load("glyphs32", "train", size=24).x / 127.5 - 1).astype(np.float32)
    module = trained(prepare_qat(graph, calibrate(graph, images), QuantConfig(4, 4)))
    int8 = convert(module).graph
    assert summation_error(module, int8) < 5 / 8
    assert max(code_distances(module, int8, images).values()) <= 1
