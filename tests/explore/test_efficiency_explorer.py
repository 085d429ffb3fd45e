"""The explorer: every knob moves the metrics by the law that the lab teaches, and the widget shows it."""

from __future__ import annotations

import pytest

from tinyml_edu import explore
from tinyml_edu.explore.efficiency import BASELINE, costs, plain_network
from tinyml_edu.ir import macs
from tinyml_edu.mcu.boards import get_board


def test_resolution_moves_macs_and_memory_and_not_one_parameter():
    small, large = costs(16, 32, 2), costs(16, 64, 2)
    assert small["parameters"] == large["parameters"]
    linear = 64 * 10  # the last layer sees no pixels
    assert large["MACs"] - linear == 4 * (small["MACs"] - linear)
    assert large["peak activation bytes, int8"] == 4 * small["peak activation bytes, int8"]


def test_depth_adds_layers_of_equal_width():
    one, two = (macs(plain_network(8, 32, depth)) for depth in (1, 2))
    added = sum(two.values()) - sum(one.values())
    assert added == sum((32 >> s) ** 2 * (8 << s) ** 2 * 9 for s in range(3))


def test_doubling_the_width_quadruples_inner_weights():
    one, two = (plain_network(w, 32, 2)["conv2.2.weight"].shape for w in (8, 16))
    assert (two[0] * two[3]) == 4 * one[0] * one[3]


def test_the_graph_is_valid_and_runs():
    import numpy as np

    from tinyml_edu.ir import run

    graph = plain_network(4, 16, 2).validate()
    assert run(graph, np.zeros((2, 16, 16, 3), np.float32)).shape == (2, 10)


def test_the_view_says_what_does_not_fit():
    figure, table = explore.efficiency_view(64, 128, 1)
    sram = get_board("stm32f412").sram_bytes
    assert costs(64, 128, 1)["peak activation bytes, int8"] > sram
    assert "does not fit" in table
    assert "does not fit" not in explore.efficiency_view(**BASELINE)[1]
    assert "peak" in figure.get_label()


def test_a_network_can_miss_sram_while_its_weights_take_less_than_a_tenth_of_flash():
    """The lab asks the student to find one; it must exist within the sliders' range."""
    board = get_board("stm32f412")
    found = costs(32, 128, 1)
    assert found["peak activation bytes, int8"] > board.sram_bytes
    assert found["weight bytes, int8"] < board.flash_bytes / 10


def test_moving_a_slider_changes_figure_and_table():
    pytest.importorskip("ipywidgets")
    box = explore.efficiency_explorer()
    *sliders, image, table = box.children
    for slider in sliders:
        before = image.value, table.value
        slider.value += slider.step
        assert image.value != before[0]
        assert table.value != before[1]


def test_only_widgets_of_both_supported_versions_are_used():
    pytest.importorskip("ipywidgets")
    box = explore.efficiency_explorer()
    assert {type(w).__name__ for w in (box, *box.children)} == {"VBox", "IntSlider", "Image", "HTML"}
