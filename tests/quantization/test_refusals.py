"""What makes no sense is refused in one line of our own: never a wrong number, never a foreign traceback."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from tinyml_edu import mcu
from tinyml_edu import quantization as Q
from tinyml_edu.errors import TinyMLError, UsageError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def graph(model):
    return mcu.capture(model, torch.zeros(1, 3, 6, 6))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)


W = np.arange(24.0).reshape(4, 6) - 10
T = torch.from_numpy(W).float()
BOOK = Q.Codebook(torch.ones(2), torch.tensor([0, 1, 5]))
CODES = torch.ones(2, 6, dtype=torch.int8)
WEIGHT = torch.ones(4, 6, dtype=torch.int8)
BIAS = torch.zeros(4, dtype=torch.int32)
IMAGE, KERNEL = torch.ones(1, 3, 5, 5, dtype=torch.int8), torch.ones(4, 3, 3, 3, dtype=torch.int8)


def linear(x=CODES, weight=WEIGHT, bias=BIAS, bits=8):
    return Q.quantized_linear(x, weight, bias, bits, 8, 0, 0, 0.1, 0.1, 0.1)


def conv(x=IMAGE, weight=KERNEL, bias=BIAS, stride=1, padding=0, groups=1):
    return Q.quantized_conv2d(x, weight, bias, 8, 8, 0, 0, 0.1, 0.1, 0.1, stride, padding, 1, groups)


CASES = {
    "bits are whole": lambda: Q.get_quantized_range(4.5),
    "bits are numbers": lambda: Q.affine_params(0.0, 1.0, bits="8"),
    "a scale of a weight that is NaN": lambda: Q.symmetric_scale(W * math.nan, 0),
    "an axis that is not there": lambda: Q.symmetric_scale(W, 2),
    "codes of a weight that is NaN": lambda: Q.quantize_weight(W * math.nan, np.ones(4), 0),
    "the scale 0 of a dead channel": lambda: Q.quantize_weight(W * 0, Q.symmetric_scale(W * 0, 0), 0),
    "negative scales": lambda: Q.quantize_weight(W, -np.ones(4), 0),
    "too few scales": lambda: Q.quantize_weight(W, np.ones(3), 0),
    "groups of half a value": lambda: Q.group_quantize(W, 4, 2.5, symmetric=True),
    "a scale beyond float32": lambda: Q.group_quantize(W * 1e300, 4, 3, symmetric=True),
    "codes of NaN": lambda: Q.linear_quantize(T * math.nan, 8, 0.1, 0),
    "an array for a tensor": lambda: Q.linear_quantize(W, 8, 0.1, 0),
    "scales that do not broadcast": lambda: Q.linear_quantize(T, 8, torch.ones(4), 0),
    "a bias that is no tensor": lambda: Q.linear_quantize_bias_per_output_channel(None, 0.1, 0.1),
    "an input of other features": lambda: linear(x=CODES[:, :5]),
    "a bias of other channels": lambda: linear(bias=BIAS[:3]),
    "a bias of floats": lambda: linear(bias=BIAS + 0.7),
    "an output of one bit": lambda: linear(bits=1),
    "an image of other channels": lambda: conv(x=IMAGE[:, :2]),
    "an image below the kernel": lambda: conv(x=IMAGE[:, :, :2, :2]),
    "a stride of 0": lambda: conv(stride=0),
    "a stride of three numbers": lambda: conv(stride=(1, 1, 1)),
    "padding by name": lambda: conv(padding="same"),
    "groups that do not divide": lambda: conv(groups=2),
    "a format without a name": lambda: Q.round_to([1.0], None),
    "a format of words": lambda: Q.round_to(["a"], "fp16"),
    "labels beyond the codebook": lambda: Q.k_means_quantize(torch.ones(3), 1, BOOK),
    "values beyond the codebook": lambda: Q.update_codebook(torch.ones(3), BOOK),
    "centroids of 2.5 bits": lambda: Q.k_means_quantize(T, 2.5),
    "k-means of an array": lambda: Q.k_means_quantize(W),
    "pieces of half a value": lambda: Q.product_quantize(T, 1.5, 4),
    "product quantization of an array": lambda: Q.product_quantize(W, 2, 4),
    "signs of an array": lambda: Q.binarize(W),
    "bits of words": lambda: Q.pack_bits([["a"]]),
    "a product of what is not packed": lambda: Q.xnor_gemm(T, T),
    "ternary channels of a number": lambda: Q.twn(torch.tensor(1.0), per_channel=True),
    "ternary weights of an array": lambda: Q.twn(W),
    "a budget of NaN": lambda: Q.assign_bits({"a": {4: 1.0}}, {"a": 5}, math.nan),
    "no budget": lambda: Q.assign_bits({"a": {4: 1.0}}, {"a": 5}, None),
    "an observer that is None": lambda: Q.QuantConfig(observer=None),
    "bits by layer that are a list": lambda: Q.QuantConfig(weight_bits_by_layer=[4]),
}


def require_one_line(do):
    with pytest.raises(TinyMLError) as caught:
        do()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("case", CASES)
def test_a_value_that_makes_no_sense_is_refused_in_one_line(case):
    require_one_line(CASES[case])


def test_the_same_calls_with_sensible_values_work():
    """Control: it is the value that is refused, not the call."""
    assert Q.quantize_weight(W, np.ones(4), 0).shape == (4, 6)
    assert Q.linear_quantize(T, 8, torch.ones(4, 1), 0).shape == (4, 6)
    assert linear().shape == (2, 4)
    assert linear(bias=None).shape == (2, 4)
    assert conv().shape == (1, 4, 3, 3)
    assert conv(padding=(1, 0), stride=(2, 1)).shape == (1, 4, 3, 3)
    assert Q.round_to(torch.ones(2, requires_grad=True), "fp16").tolist() == [1, 1]
    assert Q.twn(T[0], per_channel=True).scale.shape == (6,)
    assert Q.pack_bits(nn.Parameter(T)).shape == (4, 6)
    assert Q.assign_bits({"a": {4: 1.0}}, {"a": 5}, 3) == {"a": 4}


@pytest.mark.parametrize("fmt", ["mxfp4", "mxint8"])
@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
def test_blocks_of_nothing_are_nothing(fmt, shape):
    assert Q.round_to(np.zeros(shape), fmt).shape == shape


def test_values_too_small_for_a_scale_in_float32_get_a_unit_scale():
    """1e-44 over 255 is 0 in float32, and a scale of 0 stands for nothing."""
    tiny = torch.tensor([1e-44, -1e-44])
    assert Q.get_quantization_scale_and_zero_point(tiny, 8) == (1.0, 0)
    assert Q.linear_quantize(tiny, 8, *Q.get_quantization_scale_and_zero_point(tiny, 8)).tolist() == [0, 0]


@pytest.mark.parametrize("span", [(math.nan, math.nan), (0.0, math.nan), (-math.inf, math.inf), (3.0, -3.0)])
def test_a_range_that_is_empty_or_not_finite_gives_no_scale(graph, images, span):
    ranges = Q.calibrate(graph, images)
    name = graph.nodes[0].outputs[0]
    with pytest.raises(UsageError, match=name):
        Q.quantize_graph(graph, ranges | {name: span})


@pytest.mark.parametrize("position", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_and_biases_that_are_not_finite_have_no_codes(graph, images, position, bad):
    broken, ranges = copy.deepcopy(graph), Q.calibrate(graph, images)
    name = graph.nodes[0].inputs[position]
    broken[name].data.flat[0] = bad
    for function in (Q.quantize_graph, Q.weight_scales):
        with pytest.raises(UsageError, match=f"{graph.nodes[0].name}: a weight or bias is NaN or infinite"):
            function(broken, ranges)


@pytest.mark.parametrize("part", ["activations", "weight_steps", "tensors"])
def test_a_network_that_diverged_cannot_be_converted(graph, images, part):
    module = Q.prepare_qat(graph, Q.calibrate(graph, images))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if part in name:
                parameter.fill_(math.nan)
    require_one_line(lambda: Q.convert(module))


@pytest.mark.parametrize(
    "function",
    [Q.calibrate, Q.correct_bias, Q.adaround, Q.sensitivity, lambda g, _: Q.equalize(g),
     lambda g, _: Q.TorchGraph(g), lambda g, _: Q.quantize_graph(g, {}),
     lambda g, _: Q.prepare_qat(g, {}), lambda g, _: Q.round_weights(g, {})],
)  # fmt: skip
def test_a_module_or_an_int8_graph_is_no_float_graph(function, model, graph, images):
    for wrong in (model, Q.quantize(graph, calibration=images).graph):
        with pytest.raises(UsageError, match="float"):
            function(wrong, images)


@pytest.mark.parametrize(
    "function",
    [Q.KMeansQuantizer, Q.round_small_tensors, Q.binarize_layers, Q.ternarize_layers,
     lambda m: Q.save_compressed(m, "never"), lambda m: Q.zero_shot_calibration(m, (3, 6, 6))],
)  # fmt: skip
def test_a_graph_is_no_module(function, graph):
    with pytest.raises(UsageError, match="torch module is needed"):
        function(graph)


def test_quantize_takes_a_quant_config_and_pixels_as_array_or_tensor(model, images):
    with pytest.raises(UsageError, match="QuantConfig"):
        Q.quantize(model, {"weight_bits": 4}, images)
    with pytest.raises(UsageError, match="empty"):
        Q.quantize(model, calibration=np.float32(1.0))
    pixels = (np.clip(images, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    codes = [Q.quantize(model, calibration=x).predict(pixels) for x in (pixels, tensor)]
    assert np.array_equal(*codes)


def test_layers_that_are_ternary_already_are_not_changed_again(model):
    for change in (Q.ternarize_layers, Q.binarize_layers):
        with pytest.raises(UsageError, match="parametrized"):
            change(Q.ternarize_layers(model, skip=[]), skip=[])


def test_zero_shot_calibration_never_returns_nan(model):
    broken = copy.deepcopy(model)
    broken[1].running_var.fill_(math.nan)
    with pytest.raises(UsageError, match="NaN or infinite"):
        Q.zero_shot_calibration(broken, (3, 6, 6), 2, iterations=2)
