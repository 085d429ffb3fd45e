"""The int8 graph against a fake-quantized reference, layer by layer.

Oracle: scales and zero points recomputed here from the calibration ranges, real arithmetic by PyTorch in
float64 on the float graph's own weights.

Bound: let t be the real value of an output in steps of its scale.  The reference code is within 1/2 of t.
The integer kernel rounds the bias (1/2 of s_x s_w / s_y steps, at most 1/8 where that ratio is below 1/4),
after the 31-bit shift (1/2 unit, divided by the second shift, at most 1/4) and at the end (1/2); ADD rounds
its inputs too, to 2**-20 of a step.  So the codes differ by less than 1/2 + 1/8 + 1/4 + 1/2 < 2: at most one.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import ir, mcu, models, quantization
from tinyml_edu.errors import UsageError
from tinyml_edu.ir import Graph, GraphError, Kind, Node, Quant, Tensor
from tinyml_edu.ir.attrs import FullyConnected, Mean
from tinyml_edu.ir.int_params import activation_range
from tinyml_edu.quantization import QuantConfig, calibrate, quantize, quantize_graph

LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class Everything(nn.Module):
    """A network with every op that capture can make."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, groups=8, padding=1), nn.BatchNorm2d(16))
        self.point = nn.Conv2d(16, 8, 1)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.last = nn.Conv2d(8, 6, (2, 3), dilation=(1, 2), padding=1)
        self.linear = nn.Linear(6, 5)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
                m.weight.data.uniform_(0.5, 1.5)
                m.bias.data.normal_(0, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(y := x + self.point(self.deep(x))) + y
        x = F.avg_pool2d(self.pool(F.pad(x, (1, 0, 0, 2))), 2)
        x = self.last(x).mean((2, 3))
        return F.softmax(self.linear(x), dim=1)


def batch(n: int, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def oracle_quants(graph: Graph, ranges, bits: int = 8) -> dict[str, tuple[float, int, int]]:
    """Return (scale, zero point, bits) of each activation, by the definition and not by the library."""
    group = {name: name for name in graph.inputs}
    for node in graph.nodes:
        shares = node.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE")
        group[node.outputs[0]] = group[node.inputs[0]] if shares else node.outputs[0]
    result = {}
    for name, top in group.items():
        members = [ranges[n] for n, t in group.items() if t == top]
        low, high = min(0.0, *(r[0] for r in members)), max(0.0, *(r[1] for r in members))
        outer = any(t == top and n in (*graph.inputs, *graph.outputs) for n, t in group.items())
        width = 8 if outer else bits
        step, lowest = (high - low) / (2**width - 1), -(2 ** (width - 1))
        result[name] = (float(np.float32(step)), round(lowest - low / step), width)
        if any(node.op == "SOFTMAX" and node.outputs[0] == top for node in graph.nodes):
            result[name] = (1 / 256, -128, 8)
    return result


def real_output(graph: Graph, node: Node, inputs: list[np.ndarray], weights: np.ndarray | None) -> np.ndarray:
    """Compute one float node in float64 with PyTorch; NHWC in and out."""
    a = node.attrs
    xs = [torch.from_numpy(x) for x in inputs]
    x = xs[0].permute(0, 3, 1, 2) if xs[0].ndim == 4 else xs[0]
    if node.op in LINEAR:
        w, b = torch.from_numpy(weights), torch.from_numpy(graph[node.inputs[2]].data.astype(np.float64))
    if node.op == "FULLY_CONNECTED":
        y = F.linear(x, w, b)
    elif node.op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        top, left, bottom, right = a.padding
        order, groups = ((0, 3, 1, 2), 1) if node.op == "CONV_2D" else ((3, 0, 1, 2), x.shape[1])
        x = F.pad(x, (left, right, top, bottom))
        y = F.conv2d(x, w.permute(*order), b, a.stride, 0, a.dilation, groups)
    elif node.op == "ADD":
        y = x + (xs[1].permute(0, 3, 1, 2) if x.ndim == 4 else xs[1])
    elif node.op == "MAX_POOL_2D":
        top, left, bottom, right = a.padding
        y = F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-torch.inf), a.kernel, a.stride)
    elif node.op == "AVERAGE_POOL_2D":
        assert a.padding == (0, 0, 0, 0)
        y = F.avg_pool2d(x, a.kernel, a.stride)
    elif node.op == "PAD":
        return np.pad(inputs[0], a.padding)
    elif node.op == "RESHAPE":
        return inputs[0].reshape(len(inputs[0]), *a.shape[1:])
    elif node.op == "MEAN":
        return inputs[0].mean(axis=a.axes)
    else:
        y = F.softmax(x, dim=1)
    y = {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[getattr(a, "activation", "none")](y)
    return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy()


def largest_code_errors(
    graph: Graph, int8: Graph, ranges, x: np.ndarray, weight_bits: int = 8, bits: int = 8
) -> dict[str, int]:
    """Return the largest distance of each node, in codes, to the reference fed with the node's own inputs."""
    quants = oracle_quants(graph, ranges, bits)
    scale, zero_point, _ = quants[graph.inputs[0]]
    codes = np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)
    kept = ir.run(int8, codes, keep=True)
    errors = {}
    for node in graph.nodes:
        inputs = [
            quants[n][0] * (kept[n].astype(np.float64) - quants[n][1]) for n in node.inputs if n in kept
        ]
        weights = None
        if node.op in LINEAR:
            w, q_max = graph[node.inputs[1]].data.astype(np.float64), 2 ** (weight_bits - 1) - 1
            axes = tuple(range(3)) if node.op == "DEPTHWISE_CONV_2D" else tuple(range(1, w.ndim))
            step = (np.abs(w).max(axis=axes, keepdims=True) / q_max).astype(np.float32).astype(np.float64)
            weights = np.rint(w / step) * step
        y_scale, y_zp, y_bits = quants[node.outputs[0]]
        real = real_output(graph, node, inputs, weights)
        lowest, highest = -(2 ** (y_bits - 1)), 2 ** (y_bits - 1) - 1
        expected = np.clip(np.rint(real / y_scale) + y_zp, lowest, highest).astype(int)
        errors[node.name] = int(np.abs(kept[node.outputs[0]].astype(int) - expected).max())
    return errors


def prepared(seed: int = 0) -> tuple[Graph, Graph, dict, np.ndarray]:
    graph = mcu.capture(Everything(seed), torch.zeros(1, 3, 19, 22))
    x = batch(6, (19, 22, 3), seed + 1)
    ranges = calibrate(graph, x)
    return graph, quantize_graph(graph, ranges), ranges, x


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_every_layer_is_within_one_code_of_the_fake_quantized_reference(seed):
    graph, int8, ranges, x = prepared(seed)
    assert {node.op for node in graph.nodes} == {
        *LINEAR, "ADD", "AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE", "SOFTMAX",
    }  # fmt: skip
    errors = largest_code_errors(graph, int8, ranges, x)
    assert max(errors.values()) <= 1, errors


def test_inputs_beyond_the_calibrated_range_saturate_within_one_code():
    graph, int8, ranges, x = prepared()
    assert max(largest_code_errors(graph, int8, ranges, 3 * x).values()) <= 1


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_reference_networks_are_within_one_code_layer_by_layer(name):
    torch.manual_seed(0)
    shape = (49, 10, 1) if name == "ds_cnn" else (32, 32, 3)
    model = models.build(name, in_channels=shape[2], width=0.5)
    graph = mcu.capture(model, torch.zeros(1, shape[2], *shape[:2]))
    x = batch(4, shape)
    ranges = calibrate(graph, x)
    errors = largest_code_errors(graph, quantize_graph(graph, ranges), ranges, x)
    assert max(errors.values()) <= 1, errors


def _negated_zero_point(graph: Graph, int8: Graph, ranges):
    name = int8.nodes[0].outputs[0]
    scale, zero_point = int8[name].quant.item()
    int8.update(name, quant=Quant.per_tensor(scale, min(-zero_point, 127)))
    return int8


def _bias_at_the_scale_of_the_output(graph: Graph, int8: Graph, ranges):
    node = next(n for n in int8.nodes if n.op == "CONV_2D")
    codes = np.rint(graph[node.inputs[2]].data / int8[node.outputs[0]].quant.item()[0])
    int8.update(node.inputs[2], data=codes.astype(np.int32))
    return int8


def _range_not_widened(graph: Graph, int8: Graph, ranges):
    # The zero point of [high / 2, high] lies outside int8; clamped, it shifts every value.
    name = int8.nodes[0].outputs[0]
    high = ranges[name][1]
    scale = high / 2 / 255
    int8.update(name, quant=Quant.per_tensor(scale, max(-128, round(-128 - high / 2 / scale))))
    return int8


def _weights_of_another_channel(graph: Graph, int8: Graph, ranges):
    weight = int8[next(n for n in int8.nodes if n.op == "DEPTHWISE_CONV_2D").inputs[1]]
    rolled = Quant(np.roll(weight.quant.scale, 1), weight.quant.zero_point, weight.quant.axis)
    int8.update(weight.name, quant=rolled)
    return int8


@pytest.mark.parametrize(
    "mistake",
    [_negated_zero_point, _bias_at_the_scale_of_the_output, _range_not_widened, _weights_of_another_channel],
)
def test_the_one_code_bound_catches(mistake):
    graph, int8, ranges, x = prepared()
    errors = largest_code_errors(graph, mistake(graph, int8, ranges), ranges, x)
    assert max(errors.values()) > 1


def test_pool_pad_and_reshape_keep_the_parameters_of_their_input():
    _, int8, _, _ = prepared()
    sharing = [n for n in int8.nodes if n.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE")]
    assert {n.op for n in sharing} == {"AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE"}
    for node in sharing:
        assert int8[node.inputs[0]].quant.item() == int8[node.outputs[0]].quant.item(), node.name


def test_softmax_has_the_prescribed_output_and_everything_has_its_type():
    _, int8, _, _ = prepared()
    assert int8[int8.outputs[0]].quant.item() == (1 / 256, -128)
    for node in int8.nodes:
        assert [int8[n].dtype for n in node.inputs[2:]] in ([], ["int32"])
        assert all(int8[n].dtype == "int8" for n in (*node.inputs[:2], *node.outputs))
        if node.op in LINEAR:
            channels = int8[node.outputs[0]].shape[-1]
            assert int8[node.inputs[1]].quant.scale.shape == (channels,)
            product = int8[node.inputs[0]].quant.item()[0] * int8[node.inputs[1]].quant.scale.astype(
                np.float64
            )
            assert np.allclose(int8[node.inputs[2]].quant.scale, product, rtol=2.0**-23, atol=0)


def test_one_scale_for_a_tensor_when_asked():
    graph, _, ranges, _ = prepared()
    int8 = quantize_graph(graph, ranges, QuantConfig(per_channel=False))
    weights = [int8[n.inputs[1]] for n in int8.nodes if n.op in LINEAR]
    assert all(w.quant.scale.shape == (1,) and np.abs(w.data.astype(int)).max() == 127 for w in weights)


def test_mean_has_parameters_of_its_own():
    graph = Graph("mean", inputs=("x",), outputs=("y",))
    graph.add(Tensor("x", (1, 4, 5, 3), "float32", Kind.INPUT))
    graph.add(Tensor("y", (1, 3), "float32", Kind.ACTIVATION))
    graph.nodes.append(Node("y", "MEAN", ("x",), ("y",), Mean((1, 2))))
    x = batch(5, (4, 5, 3))
    ranges = calibrate(graph, x)
    int8 = quantize_graph(graph, ranges)
    assert int8["y"].quant.item()[0] < int8["x"].quant.item()[0]
    assert max(largest_code_errors(graph, int8, ranges, x).values()) <= 1


def linear_graph(w: np.ndarray, bias: np.ndarray, activation: str = "none") -> Graph:
    graph = Graph("linear", inputs=("x",), outputs=("y",))
    graph.add(Tensor("x", (1, w.shape[1]), "float32", Kind.INPUT))
    graph.add(Tensor("y", (1, w.shape[0]), "float32", Kind.ACTIVATION))
    for name, data in (("w", w), ("b", bias)):
        graph.add(Tensor(name, data.shape, "float32", Kind.CONSTANT, data.astype(np.float32)))
    graph.nodes.append(Node("y", "FULLY_CONNECTED", ("x", "w", "b"), ("y",), FullyConnected(activation)))
    return graph.validate()


@pytest.mark.parametrize("tiny", [0.0, 1e-38, 1e-20, 1e-9, 1e-5])
def test_channels_with_tiny_weights_and_a_large_bias_keep_their_value(tiny):
    """Their bias in steps of s_x·s_w would overflow int32; dead channels of batch norms are such."""
    graph = linear_graph(np.array([[1.0, -2.0], [tiny, tiny], [0.5, 0.5]]), np.array([0.1, 3.0, -1.0]))
    x = batch(50, (2,))
    model = quantize(graph, calibration=x)
    step = model.graph["y"].quant.item()[0]
    x_step = model.graph["x"].quant.item()[0]
    # Input, weights (in [-127, 127] of their largest) and output are each off by half a step at most.
    slack = step / 2 * 3 + np.abs(graph["w"].data).sum(1) * x_step / 2 + np.abs(x).max() * 2 * 2 / 254
    assert np.all(np.abs(model.logits(x) - ir.run(graph, x)).max(axis=0) <= slack)
    assert np.abs(model.logits(x)[:, 1] - 3.0).max() <= step * 1.5


def test_an_output_that_stayed_zero_is_quantized_to_zero():
    graph = linear_graph(np.array([[1.0, 1.0]]), np.array([-100.0]), "relu")
    x = batch(20, (2,))
    assert np.all(quantize(graph, calibration=x).logits(x) == 0)


def test_an_accumulator_that_could_overflow_is_refused():
    graph = linear_graph(np.ones((1, 70_000)), np.zeros(1))
    with pytest.raises(GraphError, match="beyond int32"):
        quantize(graph, calibration=batch(2, (70_000,)))


def test_tensor_and_array_calibration_give_the_same_graph():
    model, x = Everything(), batch(4, (19, 22, 3))
    from_tensor = quantize(model, calibration=torch.from_numpy(x).permute(0, 3, 1, 2))
    from_array = quantize(model, calibration=x)
    from_graph = quantize(mcu.capture(model, torch.zeros(1, 3, 19, 22)), calibration=x)
    for name, tensor in from_tensor.graph.tensors.items():
        for other in (from_array, from_graph):
            assert tensor.quant.scale.tolist() == other.graph[name].quant.scale.tolist()
            assert tensor.data is None or np.array_equal(tensor.data, other.graph[name].data)


def test_ranges_do_not_depend_on_the_batch_size_and_contain_zero():
    graph, _, ranges, x = prepared()
    one_by_one = calibrate(graph, x, batch_size=1)
    for name, (low, high) in ranges.items():
        assert low <= 0 <= high
        assert one_by_one[name] == pytest.approx((low, high), rel=1e-5, abs=1e-6)  # sums run in another order


def test_pixels_are_normalised_as_in_training():
    graph = mcu.capture(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    floats = (pixels / 127.5 - 1).astype(np.float32)
    from_pixels, from_floats = calibrate(graph, pixels), calibrate(graph, floats)
    for name, expected in from_floats.items():
        assert from_pixels[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (None, "needs calibration inputs"),
        (np.zeros((0, 8, 8, 3), np.float32), "empty"),
        (np.zeros((2, 8, 9, 3), np.float32), "the network reads"),
        (np.zeros((2, 8, 8, 3), np.int64), "int64"),
        (np.full((2, 8, 8, 3), np.nan, np.float32), "not finite"),
    ],
)
def test_bad_calibration_is_a_usage_error(calibration, words):
    graph = mcu.capture(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match=words):
        quantize(graph, calibration=calibration)


def test_an_int8_graph_is_not_quantized_again():
    _, int8, _, x = prepared()
    with pytest.raises(UsageError, match="int8 already"):
        quantize(int8, calibration=x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_bits": 1}, "weight_bits is 1; choose a whole number from 2 to 8"),
        ({"activation_bits": 16}, "activation_bits is 16"),
        ({"weight_bits": 4.0}, "weight_bits is 4.0"),
        ({"weight_bits": True}, "weight_bits is True"),
        ({"weight_bits_by_layer": {"conv": 9}}, r"weight_bits_by_layer\['conv'\] is 9"),
        ({"observer": "percentil"}, "did you mean 'percentile'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_a_usage_error(change, words):
    with pytest.raises(UsageError, match=words):
        replace(QuantConfig(), **change)


def test_relu6_uses_all_codes_up_to_six():
    _, int8, _, _ = prepared()
    node = int8.nodes[0]
    assert node.attrs.activation == "relu6"
    low, high = activation_range(int8[node.outputs[0]].quant, "relu6")
    assert low == -128
    assert high == 127


def test_the_package_exports_its_public_names():
    assert {"QuantConfig", "QuantizedModel", "affine_params", "quantize"} <= set(dir(quantization))


@pytest.mark.parametrize(
    ("model", "calibration", "words"),
    [
        ("resnet8", np.zeros((1, 8, 8, 3), np.float32), "zoo.load"),
        (torch.nn.Identity(), np.zeros((0, 8, 8, 3), np.float32), "calibration set is empty"),
        (torch.nn.Identity(), [1, 2], "calibration is list"),
        (torch.nn.Identity(), None, "calibration=train.x"),
    ],
)
def test_what_cannot_be_quantized_is_a_usage_error(model, calibration, words):
    with pytest.raises(UsageError, match=words):
        quantize(model, calibration=calibration)


def test_a_channel_of_zeros_has_the_smallest_scale_that_the_engine_can_scale_by():
    """``s_x * s_w / s_y = 2**-24``, the second floor of `weight_scales`; without it the scale would be 0."""
    graph = mcu.capture(torch.nn.Linear(3, 2, bias=False), torch.zeros(1, 3))
    node = graph.nodes[0]
    graph.update(node.inputs[1], data=np.array([[1, 2, 3], [0, 0, 0]], np.float32))
    ranges = {node.inputs[0]: (-1.0, 1.0), node.outputs[0]: (-6.0, 6.0)}
    scale = quantization.weight_scales(graph, ranges)[node.inputs[1]]
    assert scale == pytest.approx([3 / 127, 6 * 2.0**-24], rel=1e-6)
