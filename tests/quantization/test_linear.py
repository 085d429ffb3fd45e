"""The lab's integer layers against `ir.run`, code for code, and against exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import ir, mcu
from tinyml_edu.errors import UsageError
from tinyml_edu.ir import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.ir.attrs import Conv2D, DepthwiseConv2D, FullyConnected
from tinyml_edu.quantization import QuantConfig, calibrate, quantize_graph
from tinyml_edu.quantization import linear as L

SCALES = st.floats(1e-4, 10.0)
CODES = st.integers(-128, 127)


def graph_of(node: Node, tensors: dict[str, tuple], y_shape: tuple[int, ...], y: Quant) -> Graph:
    """Return an int8 graph of one layer; ``tensors`` are (array, Quant) of x, w and b."""
    graph = Graph("layer", inputs=("x",), outputs=("y",))
    for name, (array, quant) in tensors.items():
        kind = Kind.INPUT if name == "x" else Kind.CONSTANT
        data = None if name == "x" else array
        graph.add(Tensor(name, array.shape, array.dtype.name, kind, data, quant))
    graph.add(Tensor("y", y_shape, "int8", Kind.ACTIVATION, quant=y))
    graph.nodes.append(node)
    return graph.validate()


@st.composite
def layers(draw):
    """Draw what a layer of either kind needs: a generator, scales, zero points, widths."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w_bits, y_bits = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    x = Quant.per_tensor(draw(SCALES), draw(CODES))
    low, high = -(2 ** (y_bits - 1)), 2 ** (y_bits - 1) - 1
    y = Quant.per_tensor(draw(SCALES), draw(st.integers(low, high)), y_bits)
    return rng, x, y, w_bits, draw(st.integers(1, 5)), draw(st.booleans())


def random_codes(rng, shape, bits):
    q_max = 2 ** (bits - 1) - 1
    return rng.integers(-q_max, q_max + 1, shape).astype(np.int8)


def scale_of_weights(rng, channels: int, one: bool) -> np.ndarray:
    return rng.uniform(1e-4, 1.0, 1 if one else channels).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(layers(), st.integers(1, 40), st.integers(1, 6), st.booleans())
def test_linear_returns_the_codes_of_the_int8_graph(layer, inputs, outputs, with_bias):
    rng, x, y, w_bits, n, one = layer
    codes = random_codes(rng, (n, inputs), 8)
    w, scale = random_codes(rng, (outputs, inputs), w_bits), scale_of_weights(rng, outputs, one)
    b = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    w_quant = Quant(scale, np.zeros(scale.size, np.int32), None if one else 0, w_bits)
    tensors = {"x": (codes[:1], x), "w": (w, w_quant)} | ({"b": (b, w_quant)} if with_bias else {})
    node = Node("fc", "FULLY_CONNECTED", tuple(tensors), ("y",), FullyConnected())
    expected = ir.run(graph_of(node, tensors, (1, outputs), y), codes)
    weight = torch.from_numpy(w)
    bias = L.shift_quantized_linear_bias(torch.from_numpy(b), weight, x.item()[1]) if with_bias else None
    got = L.quantized_linear(
        torch.from_numpy(codes), weight, bias, y.bits, w_bits, x.item()[1], y.item()[1],
        x.item()[0], torch.from_numpy(scale), y.item()[0],
    )  # fmt: skip
    assert got.dtype == torch.int8
    assert np.array_equal(got.numpy(), expected)


@settings(max_examples=80, deadline=None)
@given(
    layers(),
    st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(1, 2)] * 2),
    st.tuples(*[st.integers(1, 2)] * 2),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.booleans(),
)
def test_conv2d_returns_the_codes_of_the_int8_graph(layer, kernel, stride, dilation, padding, depthwise):
    rng, x, y, w_bits, channels, one = layer
    top, left, bottom, right = padding
    size = [int(rng.integers((k - 1) * d + 1, 8)) for k, d in zip(kernel, dilation)]
    outputs = channels * int(rng.integers(1, 3)) if depthwise else int(rng.integers(1, 5))
    codes = random_codes(rng, (2, *size, channels), 8)
    shape = (1, *kernel, outputs) if depthwise else (outputs, *kernel, channels)
    w, scale = random_codes(rng, shape, w_bits), scale_of_weights(rng, outputs, one)
    b = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    axis = None if one else (3 if depthwise else 0)
    quants = (Quant(scale, np.zeros(scale.size, np.int32), a, w_bits) for a in (axis, None if one else 0))
    tensors = {"x": (codes[:1], x), "w": (w, next(quants)), "b": (b, next(quants))}
    op, made = ("DEPTHWISE_CONV_2D", DepthwiseConv2D) if depthwise else ("CONV_2D", Conv2D)
    node = Node("conv", op, ("x", "w", "b"), ("y",), made(stride, padding, dilation))
    out = [
        (before + n + after - (k - 1) * d - 1) // s + 1
        for before, n, after, k, d, s in zip(padding[:2], size, padding[2:], kernel, dilation, stride)
    ]
    expected = ir.run(graph_of(node, tensors, (1, *out, outputs), y), codes)
    weight = torch.from_numpy(w.transpose(3, 0, 1, 2) if depthwise else w.transpose(0, 3, 1, 2))
    bias = L.shift_quantized_conv2d_bias(torch.from_numpy(b), weight, x.item()[1])
    got = L.quantized_conv2d(
        torch.from_numpy(codes).permute(0, 3, 1, 2), weight, bias, y.bits, w_bits, x.item()[1], y.item()[1],
        x.item()[0], torch.from_numpy(scale).reshape(-1, 1, 1, 1), y.item()[0],
        stride, (left, right, top, bottom), dilation, channels if depthwise else 1,
    )  # fmt: skip
    assert got.dtype == torch.int8
    assert np.array_equal(got.permute(0, 2, 3, 1).numpy(), expected)


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def convolution():
    """Return module, int8 graph (4-bit weights) and inputs (n, 3, 9, 8)."""
    torch.manual_seed(0)
    module, x = nn.Conv2d(3, 5, 3, stride=2, padding=1), floats(16, 3, 9, 8) + 0.7
    graph = mcu.capture(module, x[:1])
    ranges = calibrate(graph, x)
    return module, quantize_graph(graph, ranges, QuantConfig(weight_bits=4)), x


def by_hand(module, x: torch.Tensor, *, pad_code: int | None = None, **wrong) -> torch.Tensor:
    """Return the codes of a convolution built with the lab's functions alone; ``wrong`` replaces a number."""
    s_x, z_x = L.get_quantization_scale_and_zero_point(x, 8)
    s_y, z_y = L.get_quantization_scale_and_zero_point(module(x), 8)
    codes = L.linear_quantize(x, 8, s_x, z_x)
    weight, s_w, _ = L.linear_quantize_weight_per_channel(module.weight, 4)
    bias, _, _ = L.linear_quantize_bias_per_output_channel(module.bias, s_w, wrong.get("bias_scale", s_x))
    shifted = L.shift_quantized_conv2d_bias(bias, weight, wrong.get("shift", z_x))
    pad = z_x if pad_code is None else pad_code
    return L.quantized_conv2d(
        codes, weight, shifted, 8, 4, pad, wrong.get("output", z_y), s_x, s_w, s_y, 2, 1, 1, 1
    )


def test_the_whole_chain_by_hand_is_the_int8_graph_of_the_library():
    module, int8, x = convolution()
    node = int8.nodes[0]
    codes = int8[int8.inputs[0]].quant.quantize(x.permute(0, 2, 3, 1).numpy())
    expected = ir.run(int8, codes)
    weight, scale, zero_point = L.linear_quantize_weight_per_channel(module.weight, 4)
    bias, _, _ = L.linear_quantize_bias_per_output_channel(
        module.bias, scale, int8[node.inputs[0]].quant.item()[0]
    )
    assert zero_point == 0
    assert np.array_equal(weight.permute(0, 2, 3, 1).numpy(), int8[node.inputs[1]].data)
    assert np.array_equal(scale.flatten().numpy(), int8[node.inputs[1]].quant.scale)
    assert np.array_equal(bias.numpy(), int8[node.inputs[2]].data)
    assert np.array_equal(by_hand(module, x).permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(
    "mistake",
    [
        {"pad_code": 0},  # padded with the code 0, not with the zero point
        {"shift": 0},  # the zero point of the input left in
        {"shift": 1000},
        {"bias_scale": 1.0},  # the bias in steps of s_w
        {"output": 0},
    ],
)
def test_the_comparison_tells_a_mistake(mistake):
    module, _, x = convolution()
    right = by_hand(module, x)
    assert not torch.equal(by_hand(module, x, **mistake), right)


def test_every_product_is_summed_and_scaled_exactly():
    """One value by rational arithmetic: acc = 127·2 + 5, m = 0.5·0.25/0.3, y = round(m·acc) + 3."""
    s_x, s_w, s_y = (Fraction(float(np.float32(s))) for s in (0.5, 0.25, 0.3))
    exact = s_x * s_w / s_y * (127 * 2 + 5)
    got = L.quantized_linear(
        torch.tensor([[127]], dtype=torch.int8), torch.tensor([[2]], dtype=torch.int8),
        torch.tensor([5], dtype=torch.int32), 8, 8, 0, 3, 0.5, 0.25, 0.3,
    )  # fmt: skip
    assert got.item() == round(exact) + 3 == 111


def test_codes_are_clamped_before_the_cast():
    r = torch.tensor([200.0, -200.0, 3.5, 4.5, 1e30])
    assert L.linear_quantize(r, 8, 1.0, 0).tolist() == [127, -128, 4, 4, 127]
    assert L.linear_quantize(r, 4, 1.0, -8).tolist() == [7, -8, -4, -4, 7]
    assert L.linear_quantize(r * 1e8, 32, 1.0, 0, torch.int32).tolist() == [
        2**31 - 1, -(2**31), 350_000_000, 450_000_000, 2**31 - 1,
    ]  # fmt: skip
    wrapped = (r[:2]).to(torch.int32).to(torch.int8)  # control: what a cast alone makes of it
    assert wrapped.tolist() == [-56, 56]


def test_linear_quantize_is_the_quantization_of_the_graph():
    x = floats(7, 33) * 3
    quant = Quant.per_tensor(0.0317, -17)
    codes = L.linear_quantize(x, 8, quant.item()[0], -17)
    assert np.array_equal(codes.numpy(), quant.quantize(x.numpy()))


@pytest.mark.parametrize(("low", "high"), [(1.0, 3.0), (-3.0, -1.0), (-1.0, 3.0), (0.0, 2.0)])
def test_the_range_of_a_tensor_is_widened_to_contain_zero(low, high):
    scale, zero_point = L.get_quantization_scale_and_zero_point(torch.tensor([low, high]), 8)
    assert -128 <= zero_point <= 127
    assert scale * (127 - zero_point) >= high - scale / 2 * (1 + 1e-6)
    assert scale * (-128 - zero_point) <= low + scale / 2 * (1 + 1e-6)
    assert scale == np.float32(scale)


def test_zeros_have_a_scale():
    zeros = torch.zeros(3, 4)
    assert L.get_quantization_scale_and_zero_point(zeros, 8) == (1.0, 0)
    assert L.get_quantization_scale_for_weight(zeros, 8) == 1.0
    codes, scale, _ = L.linear_quantize_weight_per_channel(torch.stack([zeros[0], zeros[0] + 7]), 4)
    assert codes.tolist() == [[0] * 4, [7] * 4]
    assert scale.shape == (2, 1)


def test_the_shift_of_the_bias_takes_the_zero_point_off():
    rng = np.random.default_rng(0)
    x, w = (torch.from_numpy(random_codes(rng, s, 8)) for s in ((3, 6), (4, 6)))
    b = torch.from_numpy(rng.integers(-1000, 1000, 4).astype(np.int32))
    shifted = L.shift_quantized_linear_bias(b, w, -19)
    assert shifted.dtype == torch.int32
    assert torch.equal(
        F.linear(x.long(), w.long(), shifted.long()), F.linear(x.long() + 19, w.long(), b.long())
    )


def test_arguments_are_not_changed():
    w, b, x = (
        torch.ones(s, dtype=t) for s, t in (((2, 3), torch.int8), ((2,), torch.int32), ((1, 3), torch.int8))
    )
    L.quantized_linear(x, w, L.shift_quantized_linear_bias(b, w, 5), 8, 8, 5, 0, 1.0, 1.0, 1.0)
    assert all(bool((t == 1).all()) for t in (w, b, x))
    module, _, images = convolution()
    before = images.clone(), module.weight.clone()
    by_hand(module, images)
    assert torch.equal(before[0], images)
    assert torch.equal(before[1], module.weight)


I8 = torch.ones(2, 2, dtype=torch.int8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: L.linear_quantize(I8, 8, 1.0, 0), "takes real values"),
        (lambda: L.linear_quantize(I8.float(), 9, 1.0, 0), "cannot hold"),
        (lambda: L.linear_quantize(I8.float(), 8, 0.0, 0), "must be positive"),
        (lambda: L.linear_quantize(I8.float(), 8, 1.0, 0, torch.float32), "cannot hold"),
        (lambda: L.linear_quantize(I8.float(), 8, 1.0, 0, torch.uint8), "cannot hold"),
        (lambda: L.get_quantization_scale_and_zero_point(torch.tensor([1.0, torch.nan]), 8), "finite"),
        (lambda: L.get_quantization_scale_for_weight(torch.zeros(0), 8), "finite"),
        (lambda: L.linear_quantize_bias_per_output_channel(torch.ones(3), torch.ones(2), 1.0), "3 positive"),
        (lambda: L.linear_quantize_bias_per_output_channel(torch.ones(3), 1.0, 0.0), "positive and finite"),
        (lambda: L.quantized_linear(I8.float(), I8, None, 8, 8, 0, 0, 1.0, 1.0, 1.0), "input must be int8"),
        (lambda: L.quantized_linear(I8, I8 * 9, None, 8, 4, 0, 0, 1.0, 1.0, 1.0), "outside"),
        (lambda: L.quantized_linear(I8, I8, None, 9, 8, 0, 0, 1.0, 1.0, 1.0), "do not fit int8"),
        (lambda: L.shift_quantized_linear_bias(torch.tensor([2**31 - 1, 0]).int(), I8, -1), "leaves int32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_usage_error(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_ties_are_rounded_before_the_zero_point_is_added():
    assert L.linear_quantize(torch.tensor([0.5, 1.5]), 8, 1.0, 1).tolist() == [1, 3]
