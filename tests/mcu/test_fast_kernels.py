"""Specialised kernels: every output equals NumPy's, every bound they rely on is checked, and is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from fast_layers import KINDS, differences, expected, layer, on_a_board, random_layer, telling_inputs

from tinyml_edu import ir
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import cgen, elf, planning, toolchain
from tinyml_edu.mcu.boards import get_board
from tinyml_edu.mcu.kernels import addition, pointwise, requantize, selection, weights, winograd

pytestmark = pytest.mark.c
STREAM = addition.stream
HAS_ARM_GCC = pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="no arm-none-eabi-gcc")
STRICT = (
    "-std=c99",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wsign-conversion",
    "-Wshadow",
    "-Wundef",
    "-Werror",
)


def fast_names(graph: Graph, **options) -> list[str]:
    """Return the specialised functions of a graph's first node, none if it keeps its plain kernel."""
    chosen = selection.Selection(graph, "exact", **options).choose(graph.nodes[0])
    return list(chosen.sources) if chosen else []


def sums_graph(k: int, *, gain: float = 2.0**-16, y_zp: int = 0, bias: int = 0) -> Graph:
    """Two channels of k weights 127: an all-127 input gives the largest sum there is."""
    return layer("CONV_2D", (1, 2, 2, k), np.full((2, 1, 1, k), 127), np.full(2, bias), gain=gain, y_zp=y_zp)


# --- exactness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_random_layers_equal_numpy(kind, requant, tmp_path):
    taken = 0
    for seed in range(3):
        graph = random_layer(kind, seed if requant == "exact" else 100 + seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert not any(differences(graph, telling_inputs(graph), folder, requant=requant)), seed
        taken += bool(fast_names(graph))
    assert taken >= 2  # a layer now and then keeps its plain kernel


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_many_more_random_layers_equal_numpy(kind, part, tmp_path):
    for seed in range(1000 + 25 * part, 1025 + 25 * part):
        graph = random_layer(kind, seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert not any(differences(graph, telling_inputs(graph), folder)), seed


@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 9])
def test_every_remainder_of_a_pixel_tile_is_computed(pixels, tmp_path, rng):
    graph = layer("CONV_2D", (1, 1, pixels, 8), rng.integers(-127, 128, (6, 1, 1, 8)), np.arange(6))
    assert fast_names(graph)
    assert not any(differences(graph, telling_inputs(graph), tmp_path))


@pytest.mark.parametrize(
    ("height", "width", "stride", "pads"),
    [
        (2, 1, 1, (1, 1, 1, 1)),
        (3, 5, 1, (1, 1, 1, 1)),
        (5, 3, 2, (0, 0, 1, 1)),
        (4, 101, 1, (1, 1, 1, 1)),
        (4, 59, 2, (1, 1, 1, 1)),
        (6, 6, 1, (2, 2, 2, 2)),
    ],
)
def test_depthwise_borders_odd_sizes_and_wide_images(height, width, stride, pads, tmp_path, rng):
    graph = layer(
        "DEPTHWISE_CONV_2D",
        (1, height, width, 8),
        rng.integers(-127, 128, (1, 3, 3, 8)),
        rng.integers(-9000, 9000, 8),
        x_zp=37,
        y_zp=5,
        gain=1 / 300,
        attributes=A.DepthwiseConv2D((stride, stride), pads),
    )
    assert fast_names(graph)
    assert not any(differences(graph, telling_inputs(graph), tmp_path))


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize(
    ("s1", "s2", "activation"),
    [(0.1, 0.05, "none"), (0.003, 0.1, "relu6"), (0.1, 0.1, "relu"), (0.1, 0.04, "none")],
)
def test_addition_equals_numpy(s1, s2, activation, requant, tmp_path):
    graph, n = Graph("add"), 64
    graph.add(Tensor("x", (1, 8, 8, n), "int8", Kind.INPUT, quant=Quant.per_tensor(s1, 3)))
    graph.add(Tensor("p", (1, 8, 8, n), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(s2, -7)))
    graph.add(Tensor("y", (1, 8, 8, n), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(0.09, 5)))
    # p is x with its channels in another order, so that all pairs of codes meet.
    w = 127 * np.eye(n, dtype=np.int8)[np.random.default_rng(0).permutation(n)].reshape(n, 1, 1, n)
    graph.add(Tensor("w", w.shape, "int8", Kind.CONSTANT, w, Quant.per_tensor(s2 / s1 / 127, 0)))
    graph.nodes.append(Node("shuffle", "CONV_2D", ("x", "w"), ("p",), A.Conv2D()))
    graph.nodes.append(Node("add", "ADD", ("x", "p"), ("y",), A.Add(activation)))
    graph.inputs, graph.outputs = ("x",), ("y",)
    x = np.random.default_rng(1).integers(-128, 128, (3, 1, 8, 8, n)).astype(np.int8)
    assert "te_add_s8(" in cgen.generate(graph.validate(), planning.plan(graph))["model.c"]
    assert selection.Selection(graph, requant).choose(graph.nodes[1])
    assert differences(graph, x, tmp_path, requant=requant) == [0, 0, 0]


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("size", [4, 7, 13])
def test_addition_of_any_size_equals_numpy(size, requant, tmp_path, monkeypatch):
    graph = Graph("add")
    for name, shape in (("x", (1, 2, size)), ("same", (2, size)), ("y", (2, size))):
        kind = Kind.INPUT if name == "x" else Kind.ACTIVATION
        scale = 0.2 if name == "y" else 0.13
        graph.add(Tensor(name, shape, "int8", kind, quant=Quant.per_tensor(scale, 4)))
    graph.nodes.append(Node("fold", "RESHAPE", ("x",), ("same",), A.Reshape((2, size))))
    graph.nodes.append(Node("add", "ADD", ("same", "same"), ("y",), A.Add()))
    graph.inputs, graph.outputs = ("x",), ("y",)
    assert selection.Selection(graph.validate(), requant).choose(graph.nodes[1])
    made = planning.plan(graph)
    assert (
        made.offsets["y"] == made.offsets["same"]
    )  # what is added twice must not be read after it is written
    x = np.random.default_rng(1).integers(-128, 128, (4, 1, 2, size)).astype(np.int8)
    assert not any(differences(graph, x, tmp_path, requant=requant))
    monkeypatch.setattr(addition, "stream", _without_the_half)
    assert any(differences(graph, x, tmp_path, requant=requant))


def _without_the_half(shape: addition.Shape) -> np.ndarray:
    """Return the constants of an addition that rounds down, the control of the tests above."""
    words = STREAM(shape)
    words[5] -= np.uint32(1 << (shape.y_shift - 1))
    return words


def test_rounding_once_has_its_kernels_too():
    for kind in KINDS:
        graph = random_layer(kind, 7)
        exact, fast = (selection.Selection(graph, mode).choose(graph.nodes[0]) for mode in ("exact", "fast"))
        assert bool(fast) == bool(exact), kind
        assert [n.startswith("te_winograd") for n in fast.sources] == [
            n.startswith("te_winograd") for n in exact.sources
        ]


def test_images_folded_into_the_batch_axis_are_computed_one_by_one(tmp_path, rng):
    image = layer("CONV_2D", (1, 5, 5, 8), rng.integers(-127, 128, (8, 3, 3, 8)), np.arange(8), gain=1 / 200)
    graph = Graph("folded")
    graph.add(Tensor("x", (1, 3 * 25, 8), "int8", Kind.INPUT, quant=image["x"].quant))
    for name, shape, like in (("images", (3, 5, 5, 8), "x"), ("y", (3, 3, 3, 8), "y")):
        graph.add(Tensor(name, shape, "int8", Kind.ACTIVATION, quant=image[like].quant))
    for name in ("w", "b"):
        graph.add(image[name])
    graph.nodes.append(Node("fold", "RESHAPE", ("x",), ("images",), A.Reshape((3, 5, 5, 8))))
    graph.nodes.append(Node("node", "CONV_2D", ("images", "w", "b"), ("y",), A.Conv2D()))
    graph.inputs, graph.outputs = ("x",), ("y",)
    assert selection.Selection(graph.validate(), "exact").choose(graph.nodes[1])
    x = rng.integers(-128, 128, (2, 1, 75, 8)).astype(np.int8)
    assert differences(graph, x, tmp_path) == [0, 0]


@pytest.mark.parametrize("board", ["stm32f103", "rp2040"])
def test_cores_without_the_extension_compute_the_same_from_the_same_text(board, tmp_path):
    assert get_board(board).core in ("cortex-m3", "cortex-m0plus")
    graph = random_layer("pointwise", 5)
    assert fast_names(graph)
    assert not any(differences(graph, telling_inputs(graph), tmp_path, board=board))


@HAS_ARM_GCC
@pytest.mark.parametrize("kind", KINDS)
def test_gcc_compiles_the_kernels_without_a_warning_and_they_stay_exact(kind, tmp_path):
    graph = random_layer(kind, 7)
    assert fast_names(graph)
    assert not any(differences(graph, telling_inputs(graph), tmp_path, compiler="gcc"))
    for level in ("-O0", "-O3"):
        target = ["-mthumb", "-mcpu=cortex-m4", "-c", tmp_path / "model.c", "-o", tmp_path / "model.o"]
        subprocess.run(["arm-none-eabi-gcc", *STRICT, level, *target], check=True)


def test_clang_compiles_the_kernels_without_a_warning(tmp_path):
    for kind in KINDS:
        on_a_board(graph := random_layer(kind, 7), telling_inputs(graph), tmp_path)
        target = ["-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4", "-O0", "-c"]
        command = [sys.executable, "-m", "ziglang", "cc", *target, *STRICT]
        subprocess.run([*command, tmp_path / "model.c", "-o", tmp_path / "model.o"], check=True)


# --- bounds: each is checked by the generator, and a generator that skips the check is wrong ---------------


def test_sums_beyond_23_bits_take_separate_words(tmp_path, monkeypatch):
    # 400 * 127 * 255 - 3e6 > 2**23, but random inputs stay near 400 * 127 * 127 - 3e6.
    graph = sums_graph(400, bias=-3_000_000)
    x = telling_inputs(graph)
    assert all("wide" in name for name in fast_names(graph))
    assert not any(differences(graph, x, tmp_path))
    monkeypatch.setattr(weights, "is_packable", lambda _: True)
    assert not any("wide" in name for name in fast_names(graph))
    wrong = differences(graph, x, tmp_path)
    assert wrong[:2] == [0, 0]  # random data does not notice,
    assert wrong[3] > 0  # all-127 data does


def test_sums_that_cannot_reach_23_bits_share_words():
    assert 256 * 127 * 255 < 2**23
    assert fast_names(sums_graph(256)) == ["te_pointwise_256_to_2_by_2"]


def test_weights_that_leave_a_lane_take_separate_words(tmp_path, monkeypatch):
    w = np.full((2, 1, 1, 8), -128)  # -128 - 256 * 128 is below int16
    graph = layer("CONV_2D", (1, 2, 2, 8), w, np.zeros(2), gain=1 / 2000, y_zp=127)
    x = telling_inputs(graph)
    assert all("wide" in name for name in fast_names(graph))
    assert not any(differences(graph, x, tmp_path))
    monkeypatch.setattr(weights, "is_packable", lambda _: True)
    assert any(differences(graph, x, tmp_path))


def test_sums_that_cannot_be_doubled_keep_the_plain_kernel(tmp_path, monkeypatch):
    graph = sums_graph(600, gain=2.0**-23, y_zp=-100, bias=2**30 - 2**20)
    c = requantize.channels(graph, graph.nodes[0], "exact")
    assert c.fits
    assert not c.doubles
    assert fast_names(graph) == []
    assert not any(differences(graph, telling_inputs(graph), tmp_path))
    monkeypatch.setattr(requantize.Channels, "doubles", True)
    assert fast_names(graph)
    assert any(differences(graph, telling_inputs(graph), tmp_path))


@pytest.mark.parametrize("gain", [1.0, 0.75, 3.0])
def test_factors_without_a_right_shift_keep_the_plain_kernel(gain, tmp_path, monkeypatch):
    w = np.tile([1, -1, 0, 0], (2, 1)).reshape(2, 1, 1, 4)
    graph = layer("CONV_2D", (1, 2, 2, 4), w, np.zeros(2), gain=gain, y_zp=0)
    assert fast_names(graph) == []
    assert not any(differences(graph, telling_inputs(graph), tmp_path))
    monkeypatch.setattr(requantize.Channels, "fits", True)
    assert any(differences(graph, telling_inputs(graph), tmp_path))


def test_a_channel_of_one_code_is_recognised_and_breaks_no_bound(tmp_path):
    # What VWW of MLPerf Tiny has by the hundred: weights of noise beside a bias of 2**30.
    w = np.random.default_rng(0).integers(-127, 128, (4, 1, 1, 16))
    bias = np.array([2**30, 40, -(2**30), -60])
    gain = np.array([2.0**-25, 1 / 300, 2.0**-35, 1 / 300])
    graph = layer("CONV_2D", (1, 3, 3, 16), w, bias, gain=gain, y_zp=3)
    c = requantize.channels(graph, graph.nodes[0], "exact")
    assert c.weights.any(axis=1).tolist() == [False, True, False, True]
    x = telling_inputs(graph)
    assert np.ptp(expected(graph, x).reshape(-1, 4)[:, 0]) == 0
    assert weights.to_compute(c).tolist() == [1, 3]
    chosen = selection.Selection(graph, "exact").choose(graph.nodes[0])
    words = 2 * 1 + 16 // 2 + 2 * 4  # of the one pair that is computed
    assert chosen.stream.size == words + 1  # and four codes
    assert not any(differences(graph, x, tmp_path))


@pytest.mark.parametrize(("constant", "computed"), [([0], [1, 2]), ([], [0, 1, 2, 2]), ([0, 1, 2], [0, 0])])
def test_channels_are_computed_in_pairs(constant, computed, tmp_path, rng):
    bias = np.array([90 if o in constant else 10 * o for o in range(3)])
    w = rng.integers(-127, 128, (3, 1, 1, 8))
    w[constant] = 0
    graph = layer("CONV_2D", (1, 3, 3, 8), w, bias, gain=1 / 300, y_zp=3)
    c = requantize.channels(graph, graph.nodes[0], "exact")
    assert weights.to_compute(c).tolist() == computed
    assert not any(differences(graph, telling_inputs(graph), tmp_path))


def test_a_channel_of_two_codes_is_computed(tmp_path):
    w = np.zeros((2, 1, 1, 8), np.int64)
    w[0, 0, 0, 0] = 1  # sums of 0 to 255, so codes 3 and 4
    graph = layer("CONV_2D", (1, 3, 3, 8), w, np.array([0, 90]), gain=1 / 300, y_zp=3)
    c = requantize.channels(graph, graph.nodes[0], "exact")
    assert (c.low != c.high).tolist() == [True, False]
    assert not any(differences(graph, telling_inputs(graph), tmp_path))


@pytest.mark.parametrize("gain", [2.0**-22, 1 / 4_100_000])
def test_large_sums_change_their_code_at_the_right_value(gain, tmp_path):
    # 2 * acc is beyond 2**30 in both channels; the 256 inputs step over the border between two codes.
    w = np.zeros((2, 1, 1, 8), np.int64)
    w[:, 0, 0, 0] = 1
    bias = np.round(np.array([150.5, -150.5]) / gain)
    x = np.zeros((1, 16, 16, 8), np.int8)
    x[0, ..., 0] = np.arange(-128, 128).reshape(16, 16)
    for y_zp, channel in ((-100, 0), (100, 1)):
        graph = layer("CONV_2D", x.shape, w, bias, x_zp=0, y_zp=y_zp, gain=gain)
        assert fast_names(graph)
        assert len(np.unique(ir.run(graph, x)[..., channel])) == 2
        folder = tmp_path / str(channel)
        folder.mkdir()
        assert not any(differences(graph, x[None], folder))


def test_the_range_of_a_sum_is_attained():
    graph = random_layer("pointwise", 3)
    c = requantize.channels(graph, graph.nodes[0], "exact")
    w = c.weights
    assert np.array_equal(c.bias + np.where(w > 0, 127 * w, -128 * w).sum(axis=1), c.high)
    assert np.array_equal(c.bias + np.where(w > 0, -128 * w, 127 * w).sum(axis=1), c.low)


def test_extreme_sums_of_transformed_inputs_stay_exact(tmp_path, monkeypatch):
    # The largest weights there are, and inputs that alternate: every combination is at its end.
    w = np.where(np.indices((8, 3, 3, 16)).sum(axis=0) % 2, 127, -128)
    graph = layer(
        "CONV_2D", (1, 5, 8, 16), w, np.zeros(8), gain=2.0**-15, y_zp=0, attributes=A.Conv2D(padding=(1,) * 4)
    )
    (name,) = fast_names(graph)
    assert name.startswith("te_winograd_")
    columns = np.where(np.arange(8) % 2, 127, -128)[None, None, :, None]
    x = np.concatenate([telling_inputs(graph), np.broadcast_to(columns, (1, 1, 5, 8, 16))]).astype(np.int8)
    assert not any(differences(graph, x, tmp_path))
    stream = winograd.stream

    def with_the_sign_of_m3_lost(shape, c):
        words = stream(shape, c)
        half = shape.words * shape.group
        words[:, -half:] = words[:, :half]
        return words

    monkeypatch.setattr(winograd, "stream", with_the_sign_of_m3_lost)
    assert any(differences(graph, x, tmp_path))


def test_each_kind_of_layer_has_its_kernel():
    stems = {
        "pointwise": "te_pointwise_",
        "direct": "te_conv_",
        "depthwise": "te_depthwise_3x3_",
        "depthwise any": "te_depthwise_",
        "fully connected": ("te_pointwise_", "te_long_"),
        "winograd": "te_winograd_",
        "long": ("te_long_", "te_conv_"),
    }
    for kind, stem in stems.items():
        names = [name for seed in range(8) for name in fast_names(random_layer(kind, seed))[-1:]]
        assert len(names) >= 5, kind
        assert all(name.startswith(stem) for name in names) or kind == "direct", (kind, names)
    assert any("_long_" in name for seed in range(4) for name in fast_names(random_layer("long", seed)))


def test_a_network_shares_out_the_flash_that_transformed_weights_take():
    graph = random_layer("winograd", 0)
    (name,) = fast_names(graph)
    assert name.startswith("te_winograd_")
    assert fast_names(graph, extra_bytes=200)[-1].startswith("te_conv_")


def test_a_wrong_addend_is_noticed(tmp_path, monkeypatch):
    # The control of the comparison itself: half a unit less, and outputs differ.
    graph = random_layer("pointwise", 2)
    channels = requantize.channels

    def without_half(graph, node, requant):
        from dataclasses import replace

        c = channels(graph, node, requant)
        return replace(c, addend=c.addend - (1 << (c.shift - 1)))

    monkeypatch.setattr(selection, "channels", without_half)
    assert any(differences(graph, telling_inputs(graph), tmp_path))


# --- cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "x", "w", "most"),
    [
        ("CONV_2D", (1, 12, 12, 64), (64, 1, 1, 64), 0.86),
        ("CONV_2D", (1, 6, 6, 128), (128, 1, 1, 128), 0.79),
        ("CONV_2D", (1, 16, 16, 32), (32, 3, 3, 32), 0.54),
        ("CONV_2D", (1, 12, 12, 12), (32, 3, 4, 12), 0.9),
        ("CONV_2D", (1, 2, 2, 512), (64, 1, 1, 512), 0.89),
        ("DEPTHWISE_CONV_2D", (1, 16, 16, 32), (1, 3, 3, 32), 1.92),
    ],
)
def test_instructions_of_a_mac(op, x, w, most, tmp_path, rng):
    pads = (w[1] // 2,) * 4
    kind = A.Conv2D if op == "CONV_2D" else A.DepthwiseConv2D
    channels = w[0] if op == "CONV_2D" else w[3]
    graph = layer(op, x, rng.integers(-127, 128, w), np.zeros(channels), attributes=kind(padding=pads))
    result = on_a_board(graph, telling_inputs(graph)[:1], tmp_path)
    macs = x[1] * x[2] * int(np.prod(w))
    assert result.instructions / macs <= most
    assert result.stack_bytes <= planning.STACK_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_code_sizes_are_estimated_from_above(kind, tmp_path):
    graph = random_layer(kind, 7)
    on_a_board(graph, telling_inputs(graph)[:1], tmp_path)
    image = elf.read_elf(toolchain.compile_firmware(tmp_path, "stm32f412", stack_bytes=planning.STACK_BYTES))
    for name, (_, most) in selection.Selection(graph, "exact").choose(graph.nodes[0]).sources.items():
        size = sum(s.size for symbol, s in image.symbols.items() if symbol.startswith(name))
        assert 0 < size <= most, (name, size, most)


def test_a_network_keeps_plain_kernels_where_the_code_budget_ends():
    graph = random_layer("pointwise", 7)
    (name,) = fast_names(graph)
    size = selection.Selection(graph, "exact").choose(graph.nodes[0]).sources[name][1]
    assert fast_names(graph, budget_bytes=size) == [name]
    assert fast_names(graph, budget_bytes=size - 1) == []


@pytest.mark.parametrize(
    ("pixels", "k", "tile"), [(125, 64, 4), (9, 256, 3), (36, 128, 4), (2, 64, 2), (1, 64, 1), (9, 512, 1)]
)
def test_the_tile_is_the_one_that_costs_least(pixels, k, tile):
    assert pointwise.best_tile(pixels, k) == tile


def test_lanes_follow_the_order_in_which_bytes_are_widened():
    assert weights.lane_order(8).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_layers_of_one_shape_share_a_function():
    rng = np.random.default_rng(0)
    graph = layer("CONV_2D", (1, 3, 3, 8), rng.integers(-127, 128, (8, 1, 1, 8)), np.zeros(8))
    second = graph.add(Tensor("z", (1, 3, 3, 8), "int8", Kind.ACTIVATION, quant=graph["y"].quant))
    w = rng.integers(-127, 128, (8, 1, 1, 8)).astype(np.int8)
    graph.add(Tensor("v", w.shape, "int8", Kind.CONSTANT, w, graph["w"].quant))
    graph.nodes.append(Node("again", "CONV_2D", ("y", "v"), (second,), A.Conv2D()))
    graph.outputs = (second,)
    text = cgen.generate(graph.validate(), planning.plan(graph))["model.c"]
    assert text.count("TE_NOINLINE static void te_pointwise_8_to_8_by_3(") == 1
    assert text.count("    te_pointwise_8_to_8_by_3(") == 2


def test_a_window_that_no_kernel_takes_keeps_the_plain_one(rng):
    dilated = layer(
        "CONV_2D",
        (1, 7, 7, 8),
        rng.integers(-127, 128, (4, 3, 3, 8)),
        np.zeros(4),
        attributes=A.Conv2D(dilation=(2, 2)),
    )
    spread = rng.integers(-127, 128, (1, 3, 3, 8))
    for graph in (
        dilated,
        layer(
            "DEPTHWISE_CONV_2D",
            (1, 7, 7, 8),
            spread,
            np.zeros(8),
            attributes=A.DepthwiseConv2D(dilation=(2, 2)),
        ),
    ):
        assert fast_names(graph) == []
