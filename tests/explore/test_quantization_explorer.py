"""Lab 2's explorer: bytes and errors follow from the codes, accuracy is measured, every knob changes it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from tinyml_edu import explore, quantization, zoo
from tinyml_edu.explore import quantization as explorer
from tinyml_edu.explore import quantized_values

SIZES = [432, 2304, 2304, 4608, 9216, 512, 18432, 36864, 2048, 640]
CHANNELS = [16, 16, 16, 32, 32, 32, 64, 64, 64, 10]


@pytest.mark.parametrize("bits", [3, 8])
def test_bytes_are_packed_codes_and_four_for_each_scale(bits):
    packed = sum(-(-n * bits // 8) for n in SIZES)
    groups = sum(o * -(-n // o // quantized_values.GROUP) for n, o in zip(SIZES, CHANNELS))
    assert quantized_values.stored_bytes(bits, "tensor") == packed + 4 * len(SIZES)
    assert quantized_values.stored_bytes(bits, "channel") == packed + 4 * sum(CHANNELS)
    assert quantized_values.stored_bytes(bits, "group") == packed + 4 * groups


@pytest.mark.parametrize("scheme", quantized_values.SCHEMES)
def test_an_error_is_at_most_half_a_step_of_its_own_scale(scheme):
    name, bits = "features.0.conv.weight", 4
    weight = quantized_values.graph()[name].data
    values, count = quantized_values.quantized_weight(name, bits, scheme)
    rows = {"tensor": (1, -1), "channel": (16, -1), "group": (16, -1)}[scheme]
    error, magnitude = np.abs(weight - values).reshape(rows), np.abs(weight).reshape(rows)
    assert count == {"tensor": 1, "channel": 16, "group": 32}[scheme]
    parts = [slice(None)] if scheme != "group" else [slice(0, 16), slice(16, 27)]
    for part in parts:
        step = magnitude[:, part].max(axis=1, keepdims=True) / 7
        assert (error[:, part] <= step / 2 * (1 + 1e-6)).all()  # float32 scales and values: 2**-23 each
        assert error[:, part].max() > 0.3 * step.min()  # the control: something is rounded at all


def test_eight_bits_are_nearly_the_trained_network_and_two_are_not():
    """The control: an accuracy that ignored the codes would be the same for both."""
    eight = quantized_values.simulated_accuracy(8, "channel", 8, "minmax")
    assert eight > 0.85
    assert quantized_values.simulated_accuracy(2, "tensor", 8, "minmax") < eight / 2


def test_the_simulated_network_reads_as_the_integer_network_does():
    """8 bits: one rounding and float sums against two roundings and integers differ in near ties only."""
    from tinyml_edu import data

    pixels = data.load("glyphs32", "train").x[: quantized_values.CALIBRATION]
    images = data.load("glyphs32", "validation").take(slice(quantized_values.IMAGES))
    int8 = quantization.quantize(quantized_values.graph(), calibration=pixels).evaluate(images.x, images.y)
    assert (
        abs(quantized_values.simulated_accuracy(8, "channel", 8, "minmax") - int8)
        <= 3 / quantized_values.IMAGES
    )


def test_every_observer_of_the_library_can_be_chosen():
    assert set(explorer.OBSERVERS) == set(quantization.OBSERVERS)


def test_min_max_saturates_nothing_and_least_squared_error_has_the_smaller_error():
    error, saturated = quantized_values.activation_error("minmax", 4)
    best, cut = quantized_values.activation_error("mse", 4)
    assert saturated == 0 < cut
    assert best < error


def test_the_codebook_of_the_figure_does_not_change_the_weights():
    weight = zoo.load(quantized_values.NETWORK)[0].get_parameter("features.1.first.conv.weight").detach()
    before = weight.clone()
    figure = explore.value_grids(weight, 2)
    assert weight.equal(before)
    assert all(len(axes.get_lines()) == 4 for axes in figure.axes)
    assert "4 values" in figure.get_label()


def test_each_control_changes_figure_and_table():
    pytest.importorskip("ipywidgets")
    *controls, image, table = explore.quantization_explorer().children
    for control, value in zip(controls, (3, "tensor", 4, "mse"), strict=True):
        before = image.value, table.value
        control.value = value
        assert image.value != before[0]
        assert table.value != before[1]


def test_only_widgets_of_both_supported_versions_are_used():
    pytest.importorskip("ipywidgets")
    box = explore.quantization_explorer()
    names = {type(w).__name__ for w in (box, *box.children)}
    assert names == {"VBox", "IntSlider", "Dropdown", "Image", "HTML"}
