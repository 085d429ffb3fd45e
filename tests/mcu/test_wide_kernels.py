"""The forms for a computer with vector units compute what NumPy computes, and each part is needed."""

from __future__ import annotations

import shutil

import host_build
import numpy as np
import pytest
from fast_layers import layer
from random_graphs import inputs, random_layer, random_network

from tinyml_edu import ir
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph
from tinyml_edu.mcu import Deployment, deploy

pytestmark = pytest.mark.c

WIDE = ("te_config.h", "#define TE_WIDE 0", "#define TE_WIDE 1")
EXACT_TAPS, MOST_TAPS = 512, 2304
"""``TE_WIDE_EXACT`` and ``TE_WIDE_TAPS`` of the runtime."""


def named(name: str, graph: Graph) -> Graph:
    graph.name = name
    return graph


def conv(channels: tuple[int, int], kernel: int, attributes: A.Conv2D, gain: float, seed: int) -> Graph:
    """A convolution of a 7 x 6 image: 42 pixels leave a group of two, other strides other remainders."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-127, 128, (channels[1], kernel, kernel, channels[0]))
    x, zp = (1, 7, 6, channels[0]), int(rng.integers(-128, 128))
    graph = layer(
        "CONV_2D", x, w, rng.integers(-9000, 9000, channels[1]), x_zp=zp, gain=gain, attributes=attributes
    )
    return named(f"conv_{channels}_{kernel}_{seed}", graph)


def depthwise(channels: int, attributes: A.DepthwiseConv2D, seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    w, bias = rng.integers(-127, 128, (1, 3, 3, channels)), rng.integers(-9000, 9000, channels)
    graph = layer(
        "DEPTHWISE_CONV_2D", (1, 7, 6, channels), w, bias, x_zp=-3, gain=0.004, attributes=attributes
    )
    return named(f"depthwise_{channels}_{seed}", graph)


def long_sum(taps: int, gain: float) -> Graph:
    """One pixel whose sum of ``taps`` products 255 * 127 is brought back to 90 by the bias."""
    bias = np.full(3, 90 - 255 * 127 * taps)
    w = np.full((3, 1, 1, taps), 127)
    return named(f"long_{taps}_{gain}", layer("CONV_2D", (1, 1, 1, taps), w, bias, gain=gain, y_zp=0))


def ties() -> Graph:
    """A quarter of small sums: every fourth one lies half-way between two codes, below zero too."""
    w = np.random.default_rng(0).integers(-1, 2, (16, 1, 1, 3))
    return named("ties", layer("CONV_2D", (1, 7, 6, 3), w, np.zeros(16), x_zp=0, gain=0.25, y_zp=0))


LONG = [long_sum(taps, gain) for taps in (EXACT_TAPS, EXACT_TAPS + 1, 1100, MOST_TAPS) for gain in (0.4, 1.0)]
GRAPHS = [
    *(random_layer(op, seed) for op in ("CONV_2D", "DEPTHWISE_CONV_2D") for seed in range(30)),
    *(random_network(seed) for seed in range(6)),
    *(conv((5, o), 3, A.Conv2D((1, 1), (1, 1, 1, 1)), 0.004, o) for o in (1, 8, 15, 16, 17, 33)),
    conv((4, 16), 3, A.Conv2D((2, 1), (2, 0, 1, 1), (1, 2)), 0.004, 100),
    conv((4, 16), 3, A.Conv2D((1, 2), (0, 2, 2, 1), (2, 1)), 0.004, 101),
    *(conv((3, 16), 1, A.Conv2D(), gain, 110 + i) for i, gain in enumerate((0.26, 0.6, 1.0, 3.0))),
    *(depthwise(c, A.DepthwiseConv2D((1, 1), (1, 1, 1, 1)), c) for c in (1, 8, 16, 21, 24, 40)),
    depthwise(16, A.DepthwiseConv2D((2, 2), (0, 1, 0, 1)), 200),
    *LONG,
    ties(),
    long_sum(MOST_TAPS + 1, 0.4),
]
INPUTS = {graph.name: inputs(graph, 5, n=4) for graph in GRAPHS}


def wrong(
    folder, graphs: list[Graph], mutation: host_build.Mutation, requant: str = "exact"
) -> dict[str, int]:
    """Return the graphs that C with one more change and NumPy compute differently."""
    sources = host_build.write_networks(folder, graphs, requant=requant, mutation=mutation)
    config = folder / "te_config.h"
    assert mutation == WIDE or WIDE[1] in config.read_text()
    config.write_text(config.read_text().replace(*WIDE[1:]))
    assert sources
    runners = host_build.runners(folder, sources, graphs)
    expected = {graph.name: ir.run(graph, INPUTS[graph.name], requant=requant) for graph in graphs}
    return host_build.differences(graphs, runners, expected, INPUTS)


@pytest.mark.parametrize("requant", ["exact", "fast"])
def test_every_code_equals_numpy(tmp_path, requant):
    assert len({graph.name for graph in GRAPHS}) == len(GRAPHS)
    assert wrong(tmp_path, GRAPHS, WIDE, requant) == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        # Sums beyond 2^24: float32 no longer holds every integer.
        ("te_wide_conv2d.h", "TE_WIDE_EXACT 512", "TE_WIDE_EXACT 4096", "long_1100"),
        ("te_wide_conv2d.h", "first += TE_WIDE_EXACT)", "first += TE_WIDE_EXACT + 1)", "long_1100"),
        ("te_wide_conv2d.h", "memset(v, 0,", "memset(v, 0x40,", "conv_(5, 17)"),
        ("te_wide_conv2d.h", "length = dense ? taps *", "length = 1 ? taps *", "conv_(4, 16)_3_100"),
        ("te_wide_conv2d.h", "(k - ty.begin) * p->dilation_h)", "(k - ty.begin))", "conv_(4, 16)_3_101"),
        ("te_wide_conv2d.h", "n < count; n++", "n < count - 1; n++", "conv_(5, 33)"),
        ("te_wide.h", "(TE_REQUANT_FAST ? -2 : -1)", "0", "conv_(3, 16)_1_111"),
        ("te_wide.h", "(high + (high >> 31))", "(high)", "ties"),
        ("te_wide.h", "(size_t)b->count", "(size_t)TE_LANES", "conv_(5, 17)"),
        ("te_wide_depthwise.h", "ty, tx, TE_LANES / 2, acc", "ty, tx, TE_LANES / 2 - 1, acc", "depthwise_24"),
        ("te_wide_depthwise.h", "ty, tx, b.count, acc", "ty, tx, 1, acc", "depthwise_21"),
    ],
)  # fmt: skip
def test_each_way_to_get_it_wrong_is_noticed(tmp_path, file, old, new, seen):
    graphs = [graph for graph in GRAPHS if graph.name.startswith(seen)]
    assert graphs
    assert wrong(tmp_path, graphs, (file, old, new))


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_the_sanitizers_find_nothing_and_gcc_computes_the_same(tmp_path):
    graphs = [graph for graph in GRAPHS if graph.name.startswith(("conv", "depth", "long"))]
    batches = [INPUTS[graph.name] for graph in graphs]
    got = host_build.run_sanitized(tmp_path, graphs, batches, len(batches[0]), mutation=WIDE)
    for graph, rows in zip(graphs, got, strict=True):
        wanted = ir.run(graph, INPUTS[graph.name])
        assert np.array_equal(rows.ravel(), wanted.ravel()), graph.name


def test_a_deployed_network_runs_on_the_vector_form(tmp_path):
    """The control: with the vector form broken on purpose, the host's outputs change."""
    graph = conv((5, 16), 3, A.Conv2D((1, 1), (1, 1, 1, 1)), 0.004, 300)
    made = deploy(graph, "stm32f412", tmp_path / "net")
    x = inputs(graph, 0)
    assert np.array_equal(made.run(x, "host").outputs, ir.run(graph, x))
    source = tmp_path / "net" / "te_wide_conv2d.h"
    source.write_text(source.read_text().replace("a[n] += v[n][k] * w[k];", "a[n] -= v[n][k] * w[k];"))
    assert not np.array_equal(Deployment.load(tmp_path / "net").run(x, "host").outputs, ir.run(graph, x))
