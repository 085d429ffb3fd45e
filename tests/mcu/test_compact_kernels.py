"""Kernels that layers share for size: every output equals NumPy's, bounds are checked, networks stay small."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fast_layers import layer, random_layer, telling_inputs

from tinyml_edu import ir, mcu
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
    """Compile for size, every buffer at its own place; return (image, plan)."""
    plan = planning.plan(graph, planner="naive")
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in cgen.generate(graph, plan, requant=requant, optimize="size").items():
        if "/" not in name:
            (folder / name).write_text(text)
    options = {"compiler": compiler, "optimize": "size", "stack_bytes": planning.STACK_BYTES}
    return toolchain.compile_firmware(folder, "stm32f412", **options), plan


def wrong_tensors(graph: Graph, x: np.ndarray, folder: Path, **options) -> dict[str, list[int]]:
    """Return, for each activation with a wrong code on the emulated board, the inputs where it has one."""
    image, plan = build(graph, folder, **options)
    offset = plan.offsets[graph.inputs[0]]
    made = emulator.emulate(image, "stm32f412", x.reshape(len(x), -1), plan.arena_bytes, input_offset=offset)
    assert made.stack_bytes <= planning.STACK_BYTES
    wrong: dict[str, list[int]] = {}
    for i, one in enumerate(x):
        values = ir.run(graph, one, requant=options.get("requant", "exact"), keep=True)
        for name, value in values.items():
            at = plan.offsets[name]
            codes = made.outputs[i].view(np.int8)[at : at + value.size]
            if not np.array_equal(codes, value.ravel()):
                wrong.setdefault(name, []).append(i)
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
