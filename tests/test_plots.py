"""Figures: opaque, described in words, in colours that stay apart, and marking what they claim to mark."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tinyml_edu import plots
from tinyml_edu.explore.efficiency import plain_network
from tinyml_edu.mcu.instruments import ArenaTrace
from tinyml_edu.profile import Roofline, profile


def _plan():
    buffers = [
        SimpleNamespace(name="x", size_bytes=3000, first=0, last=1, kind="input"),
        SimpleNamespace(name="y", size_bytes=5000, first=1, last=2, kind="activation"),
    ]
    return SimpleNamespace(
        buffers=buffers, offsets={"x": 5000, "y": 0}, arena_bytes=8000, lower_bound_bytes=7000
    )


def _trace(cells=((16, 0), (0, 9))):
    counts = np.array(cells, np.uint32)
    bytes_ = np.zeros(25, np.uint32)
    return ArenaTrace(("a", "b"), 16, bytes_, bytes_, counts, counts[::-1])


MNEMONICS = {"conv": {"smlad": 90, "ldr": 40, "add": 3}, "pool": {"ldr": 7, "b": 1}}

FIGURES = {
    "mnemonics": lambda: plots.mnemonics(MNEMONICS, most=2),
    "arena_heat_map": lambda: plots.arena_heat_map(_trace()),
    "roofline": lambda: plots.roofline(Roofline(100, 10), {"conv": (30, 80.0), "linear": (0.5, None)}),
    "pareto": lambda: plots.pareto([("a", 1e6, 0.8), ("b", 2e6, 0.7)], x_label="MACs", y_label="accuracy"),
    "pareto_log": lambda: plots.pareto([("a", 1e3, 1), ("b", 2e6, 2)], x_label="x", y_label="y", log_x=True),
    "live_memory": lambda: plots.live_memory(["a", "b"], [10, 2048], budget_bytes=4096),
    "memory_map": lambda: plots.memory_map(_plan(), steps=["0", "1", "2"]),
    "layer_costs": lambda: plots.layer_costs(profile(plain_network(8, 16, 1))),
    "bars": lambda: plots.bars(["a", "b"], {"MACs": [1, 2], "ms": [2, 1]}, x_label="relative", log=True),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_opaque_has_a_text_alternative_and_draws_something(name):
    figure = FIGURES[name]()
    pixels = np.asarray(Image.open(io.BytesIO(plots.to_png(figure))).convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 3
    assert len(str(figure.get_label())) > 20


def _luminance(color: str) -> float:
    """Relative luminance, WCAG 2.1."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_that_wcag_asks_for():
    for color in (plots.INK, plots.MUTED):
        assert (1.05) / (_luminance(color) + 0.05) >= 4.5


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB; and sRGB to XYZ (D65).
_SIMULATION = {
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _lab_seen_by(color: str, kind: str) -> np.ndarray:
    """CIELAB coordinates of a colour as a dichromat sees it."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = _XYZ @ np.clip(np.array(_SIMULATION[kind]) @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    ("kind", "confused"),
    [("deuteranopia", ("#D62728", "#2CA02C")), ("protanopia", ("#FF0000", "#7F6A00"))],
)
def test_colours_stay_apart_for_colour_blind_readers(kind, confused):
    """A difference of 10 in CIELAB is seen at a glance; the control is a pair known to be confused."""

    def nearest(colors):
        seen = [_lab_seen_by(c, kind) for c in colors]
        return min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])

    assert nearest(confused) < 10 < nearest(plots.PALETTE)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_holds_exactly_the_points_that_no_other_beats(pairs):
    points = [(str(i), x, y) for i, (x, y) in enumerate(pairs)]
    front = plots.pareto_front(points)
    for name, x, y in points:
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for _, a, b in points)
        assert ((name, x, y) in front) == (not beaten)


def test_the_peak_bar_is_the_largest():
    axes = plots.live_memory(["a", "b", "c"], [1, 9, 3]).axes[0]
    marked = [
        bar for bar in axes.patches if bar.get_facecolor()[:3] == pytest.approx((0xD5 / 255, 0x5E / 255, 0))
    ]
    assert [bar.get_height() for bar in marked] == [9 / 1024]


def test_a_box_lies_at_its_offset_for_its_life():
    axes = plots.memory_map(_plan()).axes[0]
    boxes = {(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches}
    assert {(-0.5, 5000, 2, 3000), (0.5, 0, 2, 5000)} <= boxes


def test_stacked_bars_of_a_layer_end_at_its_instructions():
    left, right = plots.mnemonics(MNEMONICS, most=2).axes
    ends = {round(bar.get_y() + bar.get_height() / 2): bar.get_x() + bar.get_width() for bar in right.patches}
    assert ends == {0: 133, 1: 8}
    assert [bar.get_width() for bar in left.patches] == [90, 47, 3, 1]


def test_a_cell_is_drawn_at_its_layer_and_offset_and_an_idle_one_is_empty():
    read, written, _ = plots.arena_heat_map(_trace()).axes
    for axes, counts in ((read, [[16, 0], [0, 9]]), (written, [[0, 9], [16, 0]])):
        (image,) = axes.images
        assert image.get_array().filled(0).T.tolist() == counts
        assert image.get_extent() == [-0.5, 1.5, 0, 25 / 1024]
    plots.to_png(
        plots.arena_heat_map(_trace(((0, 0), (0, 0))))
    )  # nothing was accessed: a figure all the same


def test_importing_plots_chooses_no_backend():
    code = "import sys, tinyml_edu.plots; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
