"""Kernels that layers share for size: outputs equal NumPy's, bounds are checked, networks stay small."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fast_layers import layer, telling_inputs

from tinyml_edu import data, ir, mcu, zoo
from tinyml_edu.errors import ToolchainError
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import cgen, elf, emulator, planning, toolchain
from tinyml_edu.mcu.kernels import (
    addition,
    compact,
    compact_addition,
    compact_clamp,
    compact_dense,
    compact_factors,
    requantize,
)
from tinyml_edu.quantization import quantize

pytestmark = pytest.mark.c
HAS_ARM_GCC = pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="no arm-none-eabi-gcc")
N = 1680  # codes of an input: 2**4 * 3 * 5 * 7, so that many shapes hold them

Case = tuple[str, tuple[int, ...], tuple[int, ...], object]


def conv(h: int, w: int, o: int, kernel=(1, 1), **attributes) -> Case:
    c = N // (h * w)
    return "CONV_2D", (1, h, w, c), (o, *kernel, c), A.Conv2D(**attributes)


def depthwise(h: int, w: int, kernel, multiplier: int = 1, **attributes) -> Case:
    c = N // (h * w)
    return "DEPTHWISE_CONV_2D", (1, h, w, c), (1, *kernel, c * multiplier), A.DepthwiseConv2D(**attributes)


def connected(rows: int, o: int, **attributes) -> Case:
    return "FULLY_CONNECTED", (rows, N // rows), (o, N // rows), A.FullyConnected(**attributes)


DENSE = [
    conv(7, 15, 8),  # 16 inputs; 105 pixels, so the last tile overlaps
    conv(12, 7, 7),  # 20 inputs: not a multiple of 8; odd channels
    conv(10, 14, 3, activation="relu6"),  # 12 inputs
    conv(8, 15, 5),  # 14 inputs: not whole words
    conv(2, 7, 6),  # 120 inputs
    conv(1, 3, 9),  # 560 inputs: too many for two pixels on the stack
    conv(1, 1, 5),  # one pixel
    conv(1, 1, 8, activation="relu6"),
    conv(16, 15, 1),  # 7 inputs, one channel
]
WINDOWS = [
    conv(7, 15, 6, (3, 3), padding=(1, 1, 1, 1)),
    conv(7, 15, 5, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), activation="relu"),
    conv(28, 20, 4, (3, 3), stride=(2, 2), padding=(0, 0, 1, 1)),  # 3 channels
    conv(42, 40, 4, (10, 4), stride=(2, 2), padding=(4, 1, 5, 1)),  # 1 channel
    conv(16, 15, 4, (2, 3), dilation=(2, 2), padding=(2, 2, 2, 2)),
    conv(16, 15, 4, (3, 2), dilation=(3, 1), padding=(1, 0, 1, 1), activation="relu6"),
    conv(3, 7, 4, (3, 3), padding=(1, 1, 1, 1)),  # 720 inputs: patches of one pixel
    conv(2, 2, 3, (1, 1), padding=(1, 1, 1, 1)),  # pixels of padding alone
    conv(14, 12, 5, (1, 1), stride=(3, 3)),
    conv(2, 2, 2, (3, 3), padding=(1, 1, 1, 1)),  # 3780 inputs: kept plain
    depthwise(42, 40, (3, 3), 5, padding=(1, 1, 1, 1)),  # one input channel: an ordinary convolution
]
DEPTHWISE = [
    depthwise(7, 15, (3, 3), padding=(1, 1, 1, 1)),
    depthwise(7, 15, (3, 3), stride=(2, 2), padding=(0, 0, 1, 1), activation="relu6"),
    depthwise(10, 14, (5, 5), padding=(2, 2, 2, 2)),
    depthwise(16, 15, (3, 3), padding=(1, 1, 1, 1)),  # 7 channels
    depthwise(16, 21, (2, 2), stride=(1, 2)),  # 5 channels; an even window
    depthwise(8, 10, (3, 2), dilation=(2, 3), padding=(2, 1, 2, 2), activation="relu"),  # 21 channels
    depthwise(2, 2, (3, 3), padding=(1, 1, 1, 1)),  # 420 channels
    depthwise(2, 5, (1, 1)),
    depthwise(5, 7, (7, 9), padding=(3, 4, 3, 4)),  # a window wider than the image
    depthwise(28, 20, (3, 3)),  # 3 channels: kept plain
]
CONNECTED = [
    connected(1, 10),
    connected(3, 8, activation="relu6"),
    connected(7, 1),
    connected(40, 12),  # 42 inputs: rows are not whole words
    connected(420, 2),
]
CASES = {"dense": DENSE, "windows": WINDOWS, "depthwise": DEPTHWISE, "connected": CONNECTED}
PLAIN = {"dense": 0, "windows": 1, "depthwise": 1, "connected": 0}
"""How many of each keep their plain kernel."""


def random_case(case: Case, x_zp: int, rng: np.random.Generator, extreme: bool) -> Graph:
    """Return a layer with random weights, or with weights at the ends of their range only."""
    op, x, w, attributes = case
    channels = w[3] if op == "DEPTHWISE_CONV_2D" else w[0]
    weights = rng.choice([-127, 127], w) if extreme else rng.integers(-127, 128, w)
    fan_in = weights.size // channels
    gain = 2.0 ** rng.uniform(-1, 2, channels) / (74 * 0.6 * np.sqrt(fan_in))
    bias, y_zp = rng.integers(-5000, 5000, channels), int(rng.choice([-128, 127, rng.integers(-100, 100)]))
    return layer(op, x, weights, bias, x_zp=x_zp, y_zp=y_zp, gain=gain, attributes=attributes)


def together(layers: list[Graph]) -> Graph:
    """Return one graph in which every layer reads the same codes, each in its own shape."""
    graph = Graph("layers")
    quant = layers[0]["x"].quant
    graph.add(Tensor("x", (1, N), "int8", Kind.INPUT, quant=quant))
    for i, one in enumerate(layers):
        shape = one["x"].shape
        graph.add(Tensor(f"x{i}", shape, "int8", Kind.ACTIVATION, quant=quant))
        graph.nodes.append(Node(f"reshape{i}", "RESHAPE", ("x",), (f"x{i}",), A.Reshape(shape)))
        for name in ("w", "b", "y"):
            t = one[name]
            graph.add(Tensor(f"{name}{i}", t.shape, t.dtype, t.kind, t.data, t.quant))
        node = one.nodes[0]
        graph.nodes.append(Node(f"node{i}", node.op, (f"x{i}", f"w{i}", f"b{i}"), (f"y{i}",), node.attrs))
    graph.inputs, graph.outputs = ("x",), (f"y{len(layers) - 1}",)
    return graph.validate()


def build(graph: Graph, folder: Path, *, requant: str = "exact", compiler: str = "zig") -> tuple:
    """Compile for size, every buffer at its own place, later ones below earlier ones; return (image, plan).

    What a layer writes behind its output is then a buffer that no later layer writes.
    """
    plan = planning.plan(graph, planner="naive")
    size = {root: -(-graph[root].nbytes // 16) * 16 for root in planning.aliases(graph).values()}
    offsets = {
        name: plan.arena_bytes - at - size[planning.aliases(graph)[name]] for name, at in plan.offsets.items()
    }
    plan = replace(plan, offsets=offsets)
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in cgen.generate(graph, plan, requant=requant, optimize="size").items():
        if "/" not in name:
            (folder / name).write_text(text)
    options = {"compiler": compiler, "optimize": "size", "stack_bytes": planning.STACK_BYTES}
    return toolchain.compile_firmware(folder, "stm32f412", **options), plan


def wrong_tensors(graph: Graph, x: np.ndarray, folder: Path, **options) -> dict[str, list[int]]:
    """Return, for each activation with a wrong code on the emulated board, the inputs where it has one.

    Bytes of the arena that hold no activation must not be written: they are the activation "".
    """
    image, plan = build(graph, folder, **options)
    offset = plan.offsets[graph.inputs[0]]
    made = emulator.emulate(image, "stm32f412", x.reshape(len(x), -1), plan.arena_bytes, input_offset=offset)
    assert made.stack_bytes <= planning.STACK_BYTES
    wrong: dict[str, list[int]] = {}
    outside = emulator.Machine(image, "stm32f412").arena() != made.outputs.view(np.uint8)
    for i, one in enumerate(x):
        values = ir.run(graph, one, requant=options.get("requant", "exact"), keep=True)
        for name, value in values.items():
            at = plan.offsets[name]
            if not np.array_equal(made.outputs[i][at : at + value.size], value.ravel()):
                wrong.setdefault(name, []).append(i)
            outside[:, at : at + value.size] = False
    if outside.any():
        wrong[""] = np.flatnonzero(outside.any(axis=1)).tolist()
    return wrong


def inputs_of(layers: list[Graph], seed: int) -> np.ndarray:
    """Return random codes, both ends, and for each layer codes that drive its sums to their ends."""
    common = telling_inputs(layers[0], seed)[:4].reshape(4, N)
    ends = [telling_inputs(one)[4:].reshape(2, N) for one in layers]
    return np.concatenate([common, *ends])[:, None]


def chosen(graph: Graph, requant: str = "exact") -> list[str]:
    """Return the shared functions of each node that has one, the last of each."""
    selection = compact.CompactSelection(graph, requant)
    fast = [selection.choose(node) for node in graph.nodes]
    return [next(reversed(one.sources)) for one in fast if one]


# --- exactness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("kind", list(CASES))
def test_layers_of_every_shape_equal_numpy(kind, requant, tmp_path):
    rng = np.random.default_rng([len(kind), len(requant)])
    for x_zp, extreme in ((-128, False), (int(rng.integers(-127, 128)), True)):
        layers = [random_case(case, x_zp, rng, extreme) for case in CASES[kind]]
        graph = together(layers)
        assert len(chosen(graph, requant)) == len(layers) - PLAIN[kind]
        assert wrong_tensors(graph, inputs_of(layers, 1), tmp_path / str(x_zp), requant=requant) == {}


def draw_layer(rng: np.random.Generator, x_zp: int) -> Graph | None:
    """Return a layer of random shape and numbers, or None if its window does not fit its image."""

    def integer(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    divisors = [d for d in range(1, 43) if N % d == 0]
    h = int(rng.choice(divisors))
    w = int(rng.choice([d for d in divisors if N // h % d == 0]))
    kernel, activation = (integer(1, 5), integer(1, 5)), str(rng.choice(A.ACTIVATIONS))
    options = {
        "stride": (integer(1, 3), integer(1, 3)),
        "dilation": (integer(1, 2), integer(1, 2)),
        "padding": tuple(integer(0, kernel[i // 2 % 2]) for i in (0, 2, 0, 2)),
        "activation": activation,
    }
    case = (
        conv(h, w, integer(1, 12), kernel, **options),
        conv(h, w, integer(1, 20), activation=activation),
        depthwise(h, w, kernel, **options),
        connected(h, integer(1, 12), activation=activation),
    )[integer(0, 3)]
    try:
        return random_case(case, x_zp, rng, bool(rng.integers(2)))
    except ir.GraphError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_layers_equal_numpy(seed, tmp_path):
    rng = np.random.default_rng(seed)
    x_zp = int(rng.choice([-128, 127, rng.integers(-128, 128)]))
    layers = [one for _ in range(24) if (one := draw_layer(rng, x_zp)) is not None]
    graph = together(layers)
    assert len(chosen(graph)) >= len(layers) // 2
    assert (
        wrong_tensors(graph, inputs_of(layers, seed), tmp_path, requant=("exact", "fast")[seed % 4 == 3])
        == {}
    )


def test_clamps_cover_the_last_codes_and_nothing_behind(tmp_path, rng):
    # 3 x 5, 7, ... codes: not whole words; the buffers behind them keep what the layers wrote.
    cases = [conv(1, pixels, o, activation="relu6") for pixels, o in ((1, 5), (1, 7), (3, 3), (5, 1))]
    layers = [random_case(case, 3, rng, False) for case in cases]
    graph = together(layers)
    clamps = {tuple(requantize.channels(g, g.nodes[0], "exact").clamp) for g in layers}
    assert any(clamp != (-128, 127) for clamp in clamps)
    assert len(chosen(graph)) == len(layers)
    assert wrong_tensors(graph, inputs_of(layers, 2), tmp_path) == {}


def test_fewer_codes_than_a_clamp_takes_keep_the_plain_kernel(tmp_path, rng):
    graph = together([random_case(conv(1, 1, 3, activation="relu6"), 3, rng, False)])
    assert compact_clamp.LEAST == 4
    assert chosen(graph) == []
    assert wrong_tensors(graph, inputs_of([graph_of_one(graph)], 0), tmp_path) == {}


def graph_of_one(graph: Graph) -> Graph:
    """Return the layer that `together` was given, from a graph of that layer alone."""
    w, b = graph["w0"], graph["b0"]
    return layer(
        graph.nodes[1].op, graph["x0"].shape, w.data, b.data, x_zp=3, attributes=graph.nodes[1].attrs
    )


@pytest.mark.parametrize(
    ("s1", "s2", "activation"), [(0.1, 0.05, "none"), (0.003, 0.1, "relu6"), (0.1, 0.1, "relu")]
)
def test_addition_equals_numpy_for_every_pair_of_codes(s1, s2, activation, tmp_path):
    graph = sum_of_two(s1, s2, activation)
    assert chosen(graph)[-1] == compact_addition.NAME
    # Neighbouring channels are added, so all pairs of codes of x meet.
    x = np.stack(np.meshgrid(*2 * [np.arange(-128, 128)]), axis=-1).reshape(-1, 1, 8, 8, 64).astype(np.int8)
    assert wrong_tensors(graph, x, tmp_path) == {}


def test_images_folded_into_the_batch_axis_are_computed_one_by_one(tmp_path, rng):
    image = layer(
        "CONV_2D", (1, 5, 7, 16), rng.integers(-127, 128, (8, 3, 3, 16)), np.arange(8), gain=1 / 200
    )
    graph = Graph("folded")
    graph.add(Tensor("x", (1, N), "int8", Kind.INPUT, quant=image["x"].quant))
    for name, shape, like in (("images", (3, 5, 7, 16), "x"), ("y", (3, 3, 5, 8), "y")):
        graph.add(Tensor(name, shape, "int8", Kind.ACTIVATION, quant=image[like].quant))
    for name in ("w", "b"):
        graph.add(image[name])
    graph.nodes.append(Node("fold", "RESHAPE", ("x",), ("images",), A.Reshape((3, 5, 7, 16))))
    graph.nodes.append(Node("node", "CONV_2D", ("images", "w", "b"), ("y",), A.Conv2D()))
    graph.inputs, graph.outputs = ("x",), ("y",)
    assert chosen(graph.validate()) == ["te_dense_patches"]
    x = rng.integers(-128, 128, (2, 1, N)).astype(np.int8)
    assert wrong_tensors(graph, x, tmp_path) == {}


def sum_of_two(s1: float, s2: float, activation: str) -> Graph:
    """Return y = x + p, p being x in another scale with neighbouring channels swapped."""
    graph, n = Graph("add"), 64
    graph.add(Tensor("x", (1, 8, 8, n), "int8", Kind.INPUT, quant=Quant.per_tensor(s1, 3)))
    graph.add(Tensor("p", (1, 8, 8, n), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(s2, -7)))
    graph.add(Tensor("y", (1, 8, 8, n), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(0.09, 5)))
    w = 127 * np.eye(n, dtype=np.int8)[np.arange(n) ^ 1].reshape(n, 1, 1, n)
    graph.add(Tensor("w", w.shape, "int8", Kind.CONSTANT, w, Quant.per_tensor(s2 / s1 / 127, 0)))
    graph.nodes.append(Node("shuffle", "CONV_2D", ("x", "w"), ("p",), A.Conv2D()))
    graph.nodes.append(Node("add", "ADD", ("x", "p"), ("y",), A.Add(activation)))
    graph.inputs, graph.outputs = ("x",), ("y",)
    return graph.validate()


def test_the_factor_one_half_has_a_twin_with_a_shift():
    graph = sum_of_two(0.1, 0.1, "none")
    shape = addition.shape_of(graph, graph.nodes[1], "exact")
    assert shape.b_shift == 0
    words = compact_addition.stream(shape).astype(np.int64)
    v = np.arange(-255, 256) << 21
    twin = (((v * words[2] + (1 << 31)) >> 32) + (v >> 63) + words[3]) >> words[6]
    assert np.array_equal(twin, np.arange(-255, 256) << 19)


def test_channels_of_one_code_are_filled_in_or_computed_as_such(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    bias, gain = (
        np.array([2**30, 40, -(2**30), -60, 7]),
        np.array([2.0**-25, 1 / 300, 2.0**-35, 1 / 300, 1 / 300]),
    )
    arguments = {"gain": gain, "y_zp": 3, "x_zp": -128}
    layers = [
        layer("CONV_2D", (1, 7, 15, 16), rng.integers(-127, 128, (5, 1, 1, 16)), bias, **arguments),
        layer(
            "DEPTHWISE_CONV_2D", (1, 16, 21, 5), rng.integers(-127, 128, (1, 3, 3, 5)), bias,
            attributes=A.DepthwiseConv2D(), **arguments,
        ),
        layer("CONV_2D", (1, 7, 15, 16), np.zeros((4, 1, 1, 16)), np.arange(4), y_zp=3),
    ]  # fmt: skip
    graph, x = together(layers), inputs_of(layers, 3)
    for one in layers[:2]:
        c = requantize.channels(one, one.nodes[0], "exact")
        assert (c.codes == requantize.VARIES).tolist() == [False, True, False, True, True]
    assert chosen(graph) == ["te_dense_rows", "te_depthwise_runs", "te_fill_pixels"]
    assert wrong_tensors(graph, x, tmp_path / "right") == {}
    monkeypatch.setattr(compact_factors, "with_constants", lambda c, _: c)
    assert set(wrong_tensors(graph, x, tmp_path / "wrong")) == {"y1"}


# --- bounds: each is checked by the generator, and a generator that skips the check is wrong ---------------


@pytest.mark.parametrize(("k", "bias"), [(280, 0), (560, -7_000_000)])  # two pixels at once, and one
def test_sums_beyond_23_bits_do_not_share_words(k, bias, tmp_path, monkeypatch):
    # Random sums stay near half of the largest one, which is beyond 2**23.
    w = np.full((3, 1, 1, k), 127)
    graph = together([layer("CONV_2D", (1, N // k, 1, k), w, np.full(3, bias), gain=2.0**-17, y_zp=0)])
    x = np.stack([*np.random.default_rng(0).integers(-128, 128, (2, 1, N)), np.full((1, N), 127)]).astype(
        np.int8
    )
    c = requantize.channels(graph, graph.nodes[1], "exact")
    assert not compact_dense.may_share(c).any()
    assert compact_dense.pair_up(c).tolist() == [[0, -1], [1, -1], [2, -1]]
    assert wrong_tensors(graph, x, tmp_path / "right") == {}
    monkeypatch.setattr(compact_dense, "may_share", lambda c: np.ones(len(c.weights), bool))
    assert wrong_tensors(graph, x, tmp_path / "wrong") == {"y0": [2]}  # random data does not notice


def test_weights_that_leave_a_lane_do_not_share_words(tmp_path, monkeypatch):
    w = np.full((3, 1, 1, 16), -128)  # -128 - 256 * 128 is below int16
    graph = together([layer("CONV_2D", (1, 7, 15, 16), w, np.zeros(3), gain=1 / 4000, y_zp=127)])
    x = inputs_of([layer("CONV_2D", (1, 7, 15, 16), w, np.zeros(3))], 0)
    assert wrong_tensors(graph, x, tmp_path / "right") == {}
    monkeypatch.setattr(compact_dense, "may_share", lambda c: np.ones(len(c.weights), bool))
    assert wrong_tensors(graph, x, tmp_path / "wrong")


@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_factors_without_a_right_shift_keep_the_plain_kernel(op, tmp_path, monkeypatch):
    shape = (4, 1, 1, 16) if op == "CONV_2D" else (1, 1, 1, 16)
    w = np.resize([1, -1, 0, 1], shape)
    attributes = A.Conv2D() if op == "CONV_2D" else A.DepthwiseConv2D()
    bias = np.zeros(4 if op == "CONV_2D" else 16)
    one = layer(op, (1, 7, 15, 16), w, bias, gain=1.0, y_zp=0, attributes=attributes)
    graph, x = together([one]), inputs_of([one], 0)
    assert chosen(graph) == []
    assert wrong_tensors(graph, x, tmp_path / "right") == {}
    monkeypatch.setattr(compact_factors, "is_short", lambda *_: True)
    with pytest.raises(ToolchainError, match="faulted"):  # a negative shift leaves no place for y
        wrong_tensors(graph, x, tmp_path / "wrong")


def test_channels_are_paired_so_that_few_are_alone():
    def numbers(shares: list[bool]) -> requantize.Channels:
        w = np.zeros((len(shares), 4), np.int64)
        zeros, reach = np.zeros(len(shares), np.int64), np.where(shares, 0, 2**23)
        codes = np.full(len(shares), requantize.VARIES)
        return requantize.Channels(
            w, zeros, zeros, reach, zeros, zeros, zeros, zeros, zeros, codes, (-128, 127), "double"
        )

    assert compact_dense.pair_up(numbers([True] * 4)).tolist() == [[0, 2], [1, 3]]
    assert compact_dense.pair_up(numbers([True] * 3)).tolist() == [[0, 2], [1, -1]]
    assert compact_dense.pair_up(numbers([True, False, False, True])).tolist() == [[1, 0], [2, 3]]
    assert compact_dense.pair_up(numbers([False, True, False, False])).tolist() == [[0, 1], [2, -1], [3, -1]]


def test_a_wrong_addend_is_noticed(tmp_path, monkeypatch, rng):
    # The control of the comparison itself: a zero point that is off by one, in all layers.
    layers = [random_case(cases[0], -128, rng, False) for cases in CASES.values()]
    graph, x = together(layers), inputs_of(layers, 4)
    zero_point = compact._zero_point
    monkeypatch.setattr(compact_factors, "is_short", lambda *_: True)
    monkeypatch.setattr(compact, "_zero_point", lambda g, name: zero_point(g, name) + name.startswith("y"))
    assert set(wrong_tensors(graph, x, tmp_path)) == {"y0", "y1", "y2", "y3"}


# --- cost ----------------------------------------------------------------------------------------------


def test_all_shared_functions_together_stay_small(tmp_path, rng):
    layers = [random_case(case, -128, rng, False) for cases in CASES.values() for case in cases]
    sizes: dict[str, int] = {}
    for requant in ("exact", "fast"):
        image, _ = build(together(layers), tmp_path / requant, requant=requant)
        sizes |= {name: s.size for name, s in elf.read_elf(image).symbols.items() if s.kind == "STT_FUNC"}
    estimates = {name: most for name, (_, most) in compact.all_sources().items() if most}
    assert sum(estimates.values()) <= 8 * 1024
    seen = estimates.keys() & sizes.keys()
    assert estimates.keys() - seen == {"te_add_any", "te_fill_pixels"}  # no layer above needs them
    assert all(0 < sizes[name] <= estimates[name] for name in seen), (sizes, estimates)


def test_layers_of_one_kind_share_a_function_and_keep_their_plain_kernel(rng):
    layers = [random_case(case, -128, rng, False) for case in (*DENSE[:3], *DEPTHWISE[:3])]
    graph = together(layers)
    text = cgen.generate(graph, planning.plan(graph), optimize="size")["model.c"]
    for name, calls in (("te_dense_rows", 3), ("te_depthwise_runs", 3)):
        assert text.count(f"TE_NOINLINE static void {name}(") == 1
        assert text.count(f"    {name}(&layer") == calls
    for name in ("te_dense_by_2", "te_depthwise_taps"):
        assert text.count(f"TE_NOINLINE static void {name}(") == 1
    assert (text.count("return te_conv2d_s8("), text.count("return te_depthwise_conv2d_s8(")) == (3, 3)


def test_code_does_not_grow_with_the_number_of_layers(tmp_path, rng):
    one = [random_case(case, -128, rng, False) for cases in CASES.values() for case in cases[:2]]
    small, large = (elf.read_elf(build(together(n * one), tmp_path / str(n))[0]).code for n in (1, 3))
    assert (large - small) / (2 * len(one)) < 64  # the calls


@pytest.mark.parametrize(
    ("case", "most"),
    [
        (conv(7, 15, 16), 1.7),  # 16 inputs
        (conv(2, 7, 64), 0.97),  # 120 inputs
        (connected(7, 64), 1.15),  # one row at a time
        (conv(7, 15, 16, (3, 3), padding=(1, 1, 1, 1)), 1.15),
        (depthwise(7, 15, (3, 3), padding=(1, 1, 1, 1)), 4.7),
        (depthwise(10, 14, (5, 5), padding=(2, 2, 2, 2)), 4.1),
    ],
)
def test_instructions_of_a_mac(case, most, tmp_path, rng):
    graph = together([random_case(case, -128, rng, False)])
    image, plan = build(graph, tmp_path)
    x = rng.integers(-128, 128, (1, N)).astype(np.int8)
    made = emulator.emulate(image, "stm32f412", x, 1, input_offset=plan.offsets["x"])
    assert made.instructions / sum(ir.ops.macs(graph).values()) <= most


def assert_small_and_exact(graph: Graph, folder: Path) -> None:
    """Assert the goal of ``optimize="size"`` for a network, and that its outputs are NumPy's."""
    made = mcu.deploy(graph, "stm32f412", folder, optimize="size")
    assert made.report["instructions"] <= 2 * made.report["macs"]
    assert made.report["flash_bytes"]["code"] <= 20_000
    assert made.report["sram_bytes"]["stack"] <= planning.STACK_BYTES
    shape, rng = graph[graph.inputs[0]].shape[1:], np.random.default_rng(0)
    x = np.stack([rng.integers(-128, 128, shape), np.full(shape, -128), np.full(shape, 127)]).astype(np.int8)
    expected = ir.run(graph, x).reshape(len(x), -1)
    assert np.array_equal(made.run(x, target="emulate").outputs.reshape(len(x), -1), expected)
    assert np.array_equal(made.run(x, target="host").outputs.reshape(len(x), -1), expected)


@pytest.mark.parametrize("name", ["mobilenet_v2_tiny.glyphs32", "resnet8.glyphs32"])
def test_networks_of_the_course_take_two_instructions_a_mac_at_most(name, tmp_path):
    network, _ = zoo.load(name)
    images = data.load("glyphs32", "test").x[:32]
    quantized = quantize(mcu.capture(network, data.to_tensor(images[:1])), calibration=images)
    assert_small_and_exact(quantized.graph, tmp_path / "net")


@pytest.mark.data
@pytest.mark.parametrize(
    "file", ["kws_ref_model.tflite", "vww_96_int8.tflite", "pretrainedResnet_quant.tflite"]
)
def test_mlperf_tiny_takes_two_instructions_a_mac_at_most(file, data_dir, tmp_path):
    path = data_dir / "mlperf_tiny" / file
    if not path.exists():
        pytest.skip(f"no {path}")
    assert_small_and_exact(ir.read_tflite(path), tmp_path / "net")


# --- compilers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", [pytest.param("gcc", marks=HAS_ARM_GCC), "zig"])
def test_compilers_accept_the_kernels_without_a_warning(compiler, tmp_path, rng):
    layers = [random_case(case, -128, rng, False) for cases in CASES.values() for case in cases]
    graph = together(layers)
    build(graph, tmp_path, compiler=compiler)
    command = ["arm-none-eabi-gcc", "-mthumb", "-mcpu=cortex-m4"]
    if compiler == "zig":
        target = ["-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4"]
        command = [sys.executable, "-m", "ziglang", "cc", *target]
    strict = ("-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wundef", "-Werror")
    for level in ("-O0", "-Os"):
        files = ["-c", tmp_path / "model.c", "-o", tmp_path / "model.o"]
        subprocess.run([*command, "-std=c99", *strict, level, *files], check=True)


@HAS_ARM_GCC
def test_gcc_computes_the_same(tmp_path, rng):
    layers = [random_case(case, 5, rng, False) for cases in CASES.values() for case in cases[::3]]
    assert wrong_tensors(together(layers), inputs_of(layers, 5), tmp_path, compiler="gcc") == {}
