"""Lab 1's explorer: bytes follow from the masks, accuracy is measured, and every knob changes the output."""

from __future__ import annotations

import numpy as np
import pytest

from tinyml_edu import explore
from tinyml_edu.explore import pruning

BY_UNITS = ("element", "vector", "kernel", "channel")


@pytest.mark.parametrize("granularity", BY_UNITS)
def test_encoded_bytes_are_a_bit_for_each_unit_and_a_byte_for_each_kept_weight(granularity):
    units = {"element": 128 * 128 * 9, "vector": 128 * 128 * 3, "kernel": 128 * 128, "channel": 128}
    mask = pruning.masks(0.75, granularity)["features.7.conv.weight"]
    assert pruning.encoded_bytes(mask, granularity) == units[granularity] // 8 + 128 * 128 * 9 // 4


def test_one_of_four_takes_two_bits_a_kept_weight_and_a_pattern_three_bits_a_kernel():
    kept = 128 * 128 * 9 // 4
    mask = pruning.masks(0.75, "2:4")["features.7.conv.weight"]
    assert mask.unflatten(1, (-1, 4)).sum(2).unique().tolist() == [1]
    assert pruning.encoded_bytes(mask, "2:4") == kept + 2 * kept // 8
    mask = pruning.masks(2 / 3, "pattern")["features.7.conv.weight"]
    assert len(mask.flatten(2).flatten(0, 1).unique(dim=0)) == 8
    assert pruning.encoded_bytes(mask, "pattern") == 128 * 128 * 3 + 128 * 128 * 3 // 8


@pytest.mark.parametrize("granularity", BY_UNITS)
def test_units_stay_or_go_as_a_whole(granularity):
    axes = {"element": (), "vector": (3,), "kernel": (2, 3), "channel": (1, 2, 3)}[granularity]
    mask = pruning.masks(0.5, granularity)["features.4.conv.weight"].numpy()
    share = mask.mean(axis=axes) if axes else mask
    assert set(np.unique(share)) == {0, 1}


def test_nothing_pruned_is_the_trained_network_and_nearly_all_pruned_is_not():
    """The control: an accuracy that ignored the masks would be the same for both."""
    whole, empty = pruning.pruned_accuracy(0.0, "channel"), pruning.pruned_accuracy(0.95, "channel")
    assert whole > 0.8
    assert empty < whole / 2


def test_the_trained_network_is_not_changed_by_looking_at_it():
    before = {name: w.clone() for name, w in pruning._weights(pruning._network()).items()}
    pruning.pruning_view(0.9, "kernel")
    assert all(w.equal(before[name]) for name, w in pruning._weights(pruning._network()).items())


def test_the_table_counts_the_positions():
    stays = sum(int(m.sum()) for m in pruning.masks(0.5, "element").values())
    total = sum(m.numel() for m in pruning.masks(0.5, "element").values())
    _, table = explore.pruning_view(0.5, "element")
    assert f"{stays + total // 8:,}" in table


def test_moving_the_slider_and_choosing_a_granularity_change_figure_and_table():
    pytest.importorskip("ipywidgets")
    slider, menu, image, table = explore.pruning_explorer().children
    for change in (lambda: setattr(slider, "value", 0.8), lambda: setattr(menu, "value", "kernel")):
        before = image.value, table.value
        change()
        assert image.value != before[0]
        assert table.value != before[1]


def test_only_widgets_of_both_supported_versions_are_used():
    pytest.importorskip("ipywidgets")
    box = explore.pruning_explorer()
    names = {type(w).__name__ for w in (box, *box.children)}
    assert names == {"VBox", "FloatSlider", "Dropdown", "Image", "HTML"}


def test_every_curve_of_a_sensitivity_plot_has_a_look_of_its_own():
    curves = {f"layer{i}.weight": [0.9, 0.5] for i in range(8)}
    figure = explore.sensitivity_curves([0.5, 0.9], curves, 0.9)
    lines = figure.axes[0].get_lines()[:-1]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(curves)
    assert "8 layers" in figure.get_label()
