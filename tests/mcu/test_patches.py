"""Patch-based inference: published memory figures, and the same codes as with the whole image."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from patch_networks import ROW_OPS, branches, mobilenet_v2_body, random_stage
from random_graphs import inputs, random_network

from tinyml_edu import ir
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.mcu.patches import (
    PUBLISHED,
    Accounting,
    cost,
    execute,
    make_schedule,
    patchable_layers,
    run_patches,
    tiles,
)
from tinyml_edu.mcu.patches.schedule import crossing

KIB = 1024
TO_28 = 13
"""Layers of MobileNetV2 up to its first 28×28×32 map."""


@pytest.fixture(scope="module")
def body():
    return mobilenet_v2_body()


@pytest.fixture(scope="module")
def vww(data_dir):
    return ir.read_tflite(data_dir / "mlperf_tiny" / "vww_96_int8.tflite")


# --- figures ---------------------------------------------------------------------------------------------


def test_the_network_is_mobilenet_v2(body):
    # 300.8 M multiply-accumulates (arXiv:1801.04381, table 4) less the last convolution and the classifier.
    head = 7 * 7 * 320 * 1280 + 1280 * 1000
    assert round((sum(ir.macs(body).values()) + head) / 1e6) == 301
    assert body[body.nodes[TO_28 - 1].outputs[0]].shape == (1, 28, 28, 32)


@pytest.mark.parametrize(
    ("grid", "kib", "percent"), [(1, 1372, 0.0), (2, 431, 3.2), (3, 266, 6.5), (4, 172, 10.0)]
)
def test_published_figures_of_mobilenet_v2_come_out(body, grid, kib, percent):
    # arXiv:2110.15352, figure 1: 1372 KiB, with patches 172 KiB; the overhead is that of the 17 blocks.
    layers = TO_28 if grid > 1 else 0
    found = cost(make_schedule(body, layers, (grid, grid) if layers else (1, 1), tiling="ceil"), PUBLISHED)
    assert round(found.peak_bytes / KIB) == kib
    assert f"{found.overhead:.1%}" == f"{percent}%"


def test_of_the_whole_network_with_its_classifier_the_overhead_is_9_3_percent(body):
    found = cost(make_schedule(body, TO_28, (4, 4)), PUBLISHED)
    head = 7 * 7 * 320 * 1280 + 1280 * 1000
    assert round(100 * (found.macs - found.whole_macs) / (found.whole_macs + head), 1) == 9.3


def test_without_in_place_depthwise_the_same_network_needs_1470_and_294_kib(body):
    published = replace(PUBLISHED, in_place_depthwise=False)
    found = [cost(make_schedule(body, *how), published).peak_bytes for how in ((0, (1, 1)), (TO_28, (4, 4)))]
    assert found == [1470 * KIB, 294 * KIB]


def test_what_a_residual_keeps_adds_24_5_kib_to_the_published_figure(body):
    # The blocks at 28×28 keep their input, 25,088 B, while the expanded tensor is there.
    schedule = make_schedule(body, TO_28, (4, 4))
    with_skips, without = cost(schedule, replace(PUBLISHED, skips=True)), cost(schedule, PUBLISHED)
    assert with_skips.peak_bytes - without.peak_bytes == 28 * 28 * 32
    assert sorted(with_skips.live.values()) == [28 * 28 * 32, 28 * 28 * 32, 28 * 28 * 192]


@pytest.mark.data
@pytest.mark.parametrize(
    ("layers", "grid", "source", "peak_bytes", "percent"),
    [
        (0, 1, "resident", 55_296, 0.0),
        (8, 2, "streamed", 24_792, 6.85),
        (8, 3, "streamed", 18_432, 14.62),
        (4, 3, "copied", 44_315, 2.29),
        (4, 3, "resident", 43_800, 2.29),  # kernels read windows of the image; no copy is needed
    ],
)
def test_figures_of_visual_wake_words(vww, layers, grid, source, peak_bytes, percent):
    accounting = Accounting(source, in_place_depthwise=True)
    found = cost(make_schedule(vww, layers, (grid, grid)), accounting)
    assert (found.peak_bytes, round(100 * found.overhead, 2)) == (peak_bytes, percent)


def test_bytes_of_a_residual_block_by_hand():
    """One 3×3 convolution and a sum with its input, two patches: rows 0..5 and 3..8 of 8 stay for the sum."""
    graph = residual_block()
    found = cost(make_schedule(graph, 2, (2, 1)), Accounting("streamed"))
    # Layer 0: a patch of x (5 rows for the halo) and of its convolution (4 rows); the result is collected.
    assert found.live == {"patch of x": 5 * 8 * 4, "patch of t0": 4 * 8 * 4, "t1": 8 * 8 * 4}
    assert found.macs - found.whole_macs == 0  # the halo of x is read, not computed
    resident = cost(make_schedule(graph, 2, (2, 1)), Accounting("resident"))
    assert resident.live == {"x": 8 * 8 * 4, "patch of t0": 4 * 8 * 4, "t1": 8 * 8 * 4}


def residual_block():
    graph = random_stage(0, 0)
    shape = (1, 8, 8, 4)
    graph.update("x", shape=shape)
    w = np.ones((4, 3, 3, 4), np.int8)
    quant = graph["x"].quant
    graph.add(ir.Tensor("w", w.shape, "int8", ir.Kind.CONSTANT, w, ir.Quant.per_tensor(0.01, 0)))
    for name in ("t0", "t1"):
        graph.add(ir.Tensor(name, shape, "int8", ir.Kind.ACTIVATION, quant=quant))
    conv = ir.attrs.Conv2D(padding=(1, 1, 1, 1))
    graph.nodes = [
        ir.Node("conv", "CONV_2D", ("x", "w"), ("t0",), conv),
        ir.Node("sum", "ADD", ("t0", "x"), ("t1",), ir.attrs.Add()),
    ]
    graph.outputs = ("t1",)
    return graph.validate()


# --- schedules -------------------------------------------------------------------------------------------


@given(size=st.integers(1, 60), count=st.integers(1, 12))
def test_balanced_tiles_cover_every_row_once_and_differ_by_at_most_one(size, count):
    spans = tiles(size, count)
    assert [i for start, stop in spans for i in range(start, stop)] == list(range(size))
    lengths = [stop - start for start, stop in spans]
    assert len(lengths) == count
    assert max(lengths) - min(lengths) <= 1
    # Inner patches have a halo on both sides, so they are the last to get another row.
    assert lengths[-1] == max(lengths)
    assert max(lengths[1:-1], default=0) <= max(lengths[0], min(lengths))


def test_a_schedule_that_does_not_fit_is_refused(body):
    with pytest.raises(UsageError, match="0 to 61 of its 61 layers"):
        make_schedule(body, 66, (2, 2))
    with pytest.raises(UsageError, match="a result of 28x28"):
        make_schedule(body, TO_28, (29, 2))
    with pytest.raises(UsageError, match="empty"):
        make_schedule(body, TO_28, (9, 1), tiling="ceil")
    with pytest.raises(UnknownNameError, match="tiling"):
        make_schedule(body, TO_28, (2, 2), tiling="even")
    with pytest.raises(UnknownNameError, match="input accounting"):
        Accounting("stream")
    graph = random_network(1)
    assert patchable_layers(graph) < len(graph.nodes)  # RESHAPE mixes rows


# --- the same codes --------------------------------------------------------------------------------------


def draw_schedule(data, graph):
    assume(patchable_layers(graph))  # or a CONCATENATION of rows comes first
    layers = data.draw(st.integers(1, patchable_layers(graph)), label="layers")
    results = crossing(graph, layers)
    most = [min(graph[name].shape[axis] for name in results) for axis in (1, 2)]
    grid = tuple(data.draw(st.integers(1, min(n, 4)), label="grid") for n in most)
    return make_schedule(graph, layers, grid)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_patches_give_the_codes_of_the_whole_image(seed, data):
    graph = random_stage(seed)
    schedule = draw_schedule(data, graph)
    x = inputs(graph, seed, 1)
    requant = data.draw(st.sampled_from(["exact", "fast"]))
    np.testing.assert_array_equal(
        run_patches(schedule, x, requant=requant), ir.run(graph, x, requant=requant)
    )


@pytest.mark.parametrize("grid", [(2, 2), (3, 1), (4, 5)])
def test_two_branches_get_the_larger_halo_and_constants_their_window(grid):
    graph = branches()
    x, wanted = inputs(graph, 0, 1), ir.run(graph, inputs(graph, 0, 1))
    for layers in range(1, len(graph.nodes) + 1):
        np.testing.assert_array_equal(run_patches(make_schedule(graph, layers, grid), x), wanted)
    assert len(np.unique(wanted)) > 50


def test_the_random_stages_hold_every_op_and_residuals_inside_and_across_the_split():
    ops, inside, across = set(), 0, 0
    for seed in range(40):
        graph = random_stage(seed)
        ops |= {node.op for node in graph.nodes}
        for layers in range(1, len(graph.nodes)):
            across += len(crossing(graph, layers)) > 1
        inside += sum(len(graph.consumers(n.outputs[0])) > 1 for n in graph.nodes)
    assert ops == set(ROW_OPS)
    assert inside >= 10
    assert across >= 10


@pytest.mark.parametrize("edge", ["rows", "columns"])
def test_a_halo_one_pixel_short_is_caught(edge):
    found = 0
    for seed in range(30):
        graph = random_stage(seed, 2, ops=("CONV_2D", "DEPTHWISE_CONV_2D"))
        if min(graph[graph.outputs[0]].shape[1:3]) < 2:
            continue
        schedule = make_schedule(graph, len(graph.nodes), (1, 2) if edge == "columns" else (2, 1))
        spans = dict(getattr(schedule, edge))
        (start, stop), second = spans["x"]
        if stop - start < 2 or stop <= second[0]:
            continue
        spans["x"] = ((start, stop - 1), second)
        x = inputs(graph, seed)
        short = run_patches(replace(schedule, **{edge: spans}), x)
        found += not np.array_equal(short, ir.run(graph, x))
        np.testing.assert_array_equal(run_patches(schedule, x), ir.run(graph, x))
    assert found >= 5


@pytest.mark.data
@pytest.mark.parametrize(("layers", "grid"), [(8, (2, 2)), (8, (3, 3)), (5, (1, 4)), (24, (3, 2))])
def test_visual_wake_words_by_patches_gives_the_codes_of_the_whole_image(vww, layers, grid):
    x = inputs(vww, 0, 1)
    np.testing.assert_array_equal(run_patches(make_schedule(vww, layers, grid), x), ir.run(vww, x))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_the_cost_is_what_execution_holds_and_multiplies(seed, data):
    """Trace execution: the largest buffers, the nodes that still need them, and the products summed."""
    graph = random_stage(seed)
    schedule = draw_schedule(data, graph)
    assume(not any("x" in node.inputs for node in graph.nodes[schedule.layers :]))  # or it cannot be streamed
    k, held, products = schedule.layers, [0] * len(graph.nodes), 0
    collected = sum(prod(graph[name].shape) for name in schedule.tile_rows)
    readers = {name: [i for i, n in enumerate(graph.nodes[:k]) if name in n.inputs] for name in graph.tensors}
    sizes: dict[str, int] = {}
    original = execute.window

    def traced(graph, node, buffers, region, requant):
        nonlocal products
        y = original(graph, node, buffers, region, requant)
        if graph[node.outputs[0]].data is None and len(node.inputs) > 1 and "CONV" in node.op:
            w = graph[node.inputs[1]].shape
            products += y[0].size * prod(w[1:3]) * (w[3] if node.op == "CONV_2D" else 1)
        sizes[node.outputs[0]] = max(sizes.get(node.outputs[0], 0), y[0].size)
        for name in set(node.inputs) & buffers.keys():
            sizes[name] = max(sizes.get(name, 0), buffers[name].values[0].size)
        return y

    x = inputs(graph, seed, 1)[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "window", traced)
        run_patches(schedule, x)
    for step in range(k):
        for name, size in sizes.items():
            made = next((i for i, n in enumerate(graph.nodes) if name in n.outputs), 0)
            direct = name in schedule.tile_rows and not readers[name] and node_of(graph, name).op != "PAD"
            if not direct and made <= step <= max(readers[name], default=made):
                held[step] += size
        held[step] += collected
    found = cost(schedule, Accounting("streamed"))
    assert found.stage_bytes == max(held[:k])
    stage_macs = schedule.macs()
    assert products == sum(stage_macs[n.name] for n in graph.nodes[:k])


def node_of(graph, name):
    return next(n for n in graph.nodes if name in n.outputs)
