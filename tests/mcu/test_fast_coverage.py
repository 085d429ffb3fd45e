"""Shapes that networks beside the usual ones have: each gets a specialised kernel, exact and worth it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from fast_layers import differences, expected, layer, on_a_board, telling_inputs

from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import cgen, planning
from tinyml_edu.mcu.kernels import depthwise, long_sums, pointwise, requantize, selection, weights

pytestmark = pytest.mark.c


def choose(graph: Graph, requant: str = "exact", **options) -> selection.Fast | None:
    return selection.Selection(graph, requant, **options).choose(graph.nodes[0])


def first_name(fast: selection.Fast) -> str:
    return next(iter(fast.sources))


def depthwise_layer(x, kernel, *, stride=1, multiplier=1, pads=None, bias=0, **options) -> Graph:
    rng = np.random.default_rng(3)
    channels = x[3] * multiplier
    window = A.DepthwiseConv2D((stride, stride), pads or (kernel // 2,) * 4)
    w = rng.integers(-127, 128, (1, kernel, kernel, channels))
    options = {"x_zp": 37, "y_zp": 5, "gain": 1 / (40 * kernel)} | options
    return layer("DEPTHWISE_CONV_2D", x, w, np.full(channels, bias), attributes=window, **options)


def dense_layer(op, x, o, **options) -> Graph:
    rng = np.random.default_rng(3)
    shape = (o, 1, 1, x[3]) if op == "CONV_2D" else (o, x[1])
    return layer(op, x, rng.integers(-127, 128, shape), rng.integers(-999, 999, o), gain=1 / 500, **options)


# --- depthwise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "kernel", "stride", "multiplier"),
    [
        ((1, 9, 9, 8), 5, 1, 1),
        ((1, 12, 11, 6), 5, 2, 1),
        ((1, 10, 9, 5), 7, 1, 1),
        ((1, 13, 15, 10), 7, 2, 1),
        ((1, 8, 7, 1), 3, 1, 8),
        ((1, 8, 7, 3), 3, 2, 8),
        ((1, 6, 5, 15), 3, 1, 2),
        ((1, 5, 5, 27), 9, 1, 1),
        ((1, 7, 60, 3), 4, 3, 1),
    ],
)
def test_depthwise_of_any_window_and_multiplier_equals_numpy(x, kernel, stride, multiplier, tmp_path):
    graph = depthwise_layer(x, kernel, stride=stride, multiplier=multiplier)
    assert choose(graph)
    assert not any(differences(graph, telling_inputs(graph), tmp_path))


def test_rows_that_lie_beyond_a_stores_offset_are_stored(tmp_path):
    graph = depthwise_layer((1, 4, 30, 120), 3)  # 3600 bytes a row
    (name,) = choose(graph).sources
    shape = depthwise.shape_of(graph, graph.nodes[0], requantize.channels(graph, graph.nodes[0], "exact"))
    assert (shape.name, shape.far) == (name, True)
    assert not any(differences(graph, telling_inputs(graph)[:3], tmp_path))


def test_depthwise_sums_that_cannot_be_doubled_keep_the_plain_kernel(tmp_path, monkeypatch):
    # Sums around 2**30, where the code steps from 27 to 28.
    graph = depthwise_layer((1, 4, 4, 4), 3, x_zp=0, bias=2**30, gain=127.5 / 2**30, y_zp=-100)
    c = requantize.channels(graph, graph.nodes[0], "exact")
    assert c.fits
    assert not c.doubles
    assert choose(graph) is None
    assert not any(differences(graph, telling_inputs(graph), tmp_path))
    monkeypatch.setattr(requantize.Channels, "doubles", True)
    assert choose(graph)
    assert any(differences(graph, telling_inputs(graph), tmp_path))


def test_a_kept_pair_of_rows_is_the_one_that_is_needed(tmp_path, monkeypatch):
    graph = depthwise_layer((1, 14, 6, 4), 5)
    assert not any(differences(graph, telling_inputs(graph), tmp_path, in_place=False))
    monkeypatch.setattr(depthwise.Shape, "kept", property(lambda s: s.pairs - 1))  # the control
    assert any(differences(graph, telling_inputs(graph), tmp_path, in_place=False))


@pytest.mark.parametrize(
    ("x", "kernel", "pads"),
    [
        ((1, 8, 9, 6), 3, (1, 1, 1, 1)),
        ((1, 12, 7, 3), 5, (2, 2, 2, 2)),
        ((1, 8, 6, 5), 5, (4, 0, 0, 4)),
        ((1, 12, 5, 8), 4, (1, 2, 2, 1)),
        ((1, 6, 5, 9), 7, (3, 3, 3, 3)),
        ((1, 7, 5, 4), 1, (0, 0, 0, 0)),
    ],
)
def test_every_number_of_rows_works_in_place_or_does_not_say_so(x, kernel, pads, tmp_path, monkeypatch):
    graph = depthwise_layer(x, kernel, pads=pads)
    made = planning.plan(graph)
    assert made.offsets["x"] == made.offsets["y"]
    c = requantize.channels(graph, graph.nodes[0], "exact")
    shapes = depthwise.forms(graph, graph.nodes[0], c)
    legal = [s.in_place for s in shapes]
    assert len(set(legal)) == 2 or kernel == 1
    monkeypatch.setattr(depthwise.Shape, "in_place", True)
    for i, shape in enumerate(shapes):
        monkeypatch.setattr(depthwise, "forms", lambda *_, only=shape: [only])
        folder = tmp_path / str(i)
        folder.mkdir()
        wrong = any(differences(graph, telling_inputs(graph), folder))
        assert shape.name in (folder / "model.c").read_text()
        assert wrong != legal[i], shape.name  # the control: no form is refused for nothing


# --- inputs and outputs in any number --------------------------------------------------------------------


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("channels", [5, 6, 10, 15, 27])
def test_pointwise_with_any_number_of_channels_equals_numpy(channels, requant, tmp_path):
    graph = dense_layer("CONV_2D", (1, 3, 4, channels), channels + 2)
    assert first_name(choose(graph)).startswith("te_pointwise_")
    assert not any(differences(graph, telling_inputs(graph), tmp_path, requant=requant))


@pytest.mark.parametrize(("inputs", "outputs"), [(90, 10), (1001, 3), (402, 15), (7, 5)])
def test_fully_connected_with_any_number_of_inputs_and_outputs_equals_numpy(inputs, outputs, tmp_path):
    graph = dense_layer("FULLY_CONNECTED", (1, inputs), outputs)
    assert first_name(choose(graph)).startswith("te_long_")
    assert not any(differences(graph, telling_inputs(graph), tmp_path))


def test_no_byte_behind_the_input_is_read(tmp_path, monkeypatch):
    # The last tensor of the arena ends with it: what is read behind it would be another variable.
    graph = dense_layer("FULLY_CONNECTED", (1, 10), 2)
    c = requantize.channels(graph, graph.nodes[0], "exact")
    overlapped = weights.overlapped(c)
    assert overlapped.weights.shape == (2, 12)
    assert not overlapped.weights[:, 8:10].any()
    assert np.array_equal(overlapped.weights[:, 10:], c.weights[:, 8:])
    padded = replace(c, weights=np.pad(c.weights, ((0, 0), (0, 2))))
    monkeypatch.setattr(weights, "overlapped", lambda _: padded)
    assert any(differences(graph, telling_inputs(graph), tmp_path))  # the control: weights at other inputs


def test_the_last_round_repeats_channels_instead_of_storing_behind_y():
    shape = long_sums.Shape(8, 11, True, "double", (-128, 127), 6)
    assert shape.order.tolist() == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("packed", [True, False])
def test_rounds_of_every_size_equal_numpy(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(pointwise, "shape_of", lambda *_, **__: None)
    monkeypatch.setattr(selection, "legal", lambda _: [packed])
    for outputs in (5, 6, 11):
        graph = dense_layer("FULLY_CONNECTED", (2, 37), outputs)
        (name,) = choose(graph).sources
        assert ("wide" not in name) == packed
        folder = tmp_path / str(outputs)
        folder.mkdir()
        assert not any(differences(graph, telling_inputs(graph), folder))


# --- the code budget of a network -----------------------------------------------------------------------


def chain(channels: list[int]) -> Graph:
    """Return 1x1 convolutions of these numbers of channels, one after the other."""
    rng, graph = np.random.default_rng(0), Graph("chain")
    shape = (1, 4, 4, channels[0])
    graph.add(Tensor("t0", shape, "int8", Kind.INPUT, quant=Quant.per_tensor(1.0, 0)))
    for i, (c, o) in enumerate(pairwise(channels), 1):
        w = rng.integers(-127, 128, (o, 1, 1, c)).astype(np.int8)
        graph.add(Tensor(f"w{i}", w.shape, "int8", Kind.CONSTANT, w, Quant.per_tensor(1 / 500, 0)))
        y = Tensor(f"t{i}", (1, 4, 4, o), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(1.0, 0))
        graph.add(y)
        graph.nodes.append(Node(f"n{i}", "CONV_2D", (f"t{i - 1}", f"w{i}"), (y.name,), A.Conv2D()))
    graph.inputs, graph.outputs = ("t0",), (y.name,)
    return graph.validate()


def test_the_code_budget_reaches_every_layer(tmp_path, monkeypatch):
    graph = chain([64, 72, 80, 8, 96, 104])

    def kernels(budget):
        chosen = selection.Selection(graph, "exact", budget_bytes=budget)
        fast = [chosen.choose(node) for node in graph.nodes]
        return [first_name(f).split("_")[1] if f else "plain" for f in fast], sum(chosen.used.values())

    straight, whole = kernels(10**6)
    assert straight == ["pointwise"] * 5
    mixed, used = kernels(whole - 1)
    assert used < whole
    assert "plain" not in mixed
    assert mixed.count("long") == 1
    shortest, least = kernels(1)
    assert shortest == ["plain"] * 5
    assert least == 0
    x = np.random.default_rng(1).integers(-128, 128, (2, 1, 4, 4, 64)).astype(np.int8)
    monkeypatch.setattr(cgen, "Selection", partial(selection.Selection, budget_bytes=whole - 1))
    result = on_a_board(graph, x, tmp_path)
    assert "te_long_" in (tmp_path / "model.c").read_text()
    assert np.array_equal(result.outputs, expected(graph, x))


def test_lean_takes_the_kernel_of_least_flash():
    rng = np.random.default_rng(0)
    w, window = rng.integers(-127, 128, (16, 3, 3, 16)), A.Conv2D(padding=(1,) * 4)
    graph = layer("CONV_2D", (1, 6, 6, 16), w, np.zeros(16), gain=1 / 900, attributes=window)
    fast, lean = choose(graph), choose(graph, lean=True)
    assert first_name(fast).startswith("te_winograd_")
    assert lean.stream.nbytes < fast.stream.nbytes


# --- cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "kernel", "stride", "multiplier", "most"),
    [
        ((1, 16, 16, 32), 5, 1, 1, 1.11),
        ((1, 16, 16, 32), 7, 1, 1, 1.0),
        ((1, 16, 16, 32), 5, 2, 1, 1.7),
        ((1, 16, 16, 32), 7, 2, 1, 1.3),
        ((1, 16, 16, 15), 3, 1, 1, 1.95),
        ((1, 16, 16, 3), 3, 1, 8, 1.65),
    ],
)
def test_instructions_of_a_mac_of_depthwise_kernels(x, kernel, stride, multiplier, most, tmp_path):
    graph = depthwise_layer(x, kernel, stride=stride, multiplier=multiplier)
    result = on_a_board(graph, telling_inputs(graph)[:1], tmp_path, in_place=False)
    assert result.instructions / (graph["y"].nbytes * kernel**2) <= most
    assert result.stack_bytes <= planning.STACK_BYTES


@pytest.mark.parametrize("columns", [(1, 3), (2, 0), (0, 2)])
def test_padded_lines_equal_numpy(columns, tmp_path):
    graph = Graph("pad")
    graph.add(Tensor("x", (1, 3, 4, 5), "int8", Kind.INPUT, quant=Quant.per_tensor(1.0, 7)))
    shape = (1, 6, 4 + sum(columns), 5)
    graph.add(Tensor("y", shape, "int8", Kind.ACTIVATION, quant=Quant.per_tensor(1.0, 7)))
    graph.nodes.append(Node("pad", "PAD", ("x",), ("y",), A.Pad(((0, 0), (1, 2), columns, (0, 0)))))
    graph.inputs, graph.outputs = ("x",), ("y",)
    x = np.random.default_rng(0).integers(-128, 128, (2, 1, 3, 4, 5)).astype(np.int8)
    assert differences(graph.validate(), x, tmp_path) == [0, 0]
