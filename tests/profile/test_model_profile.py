"""Liveness and bytes of a profile against a brute-force simulation, closed forms and the planner."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyml_edu import mcu, models
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.explore.efficiency import plain_network
from tinyml_edu.ir.graph import Kind
from tinyml_edu.profile import peak_activation_bytes, profile, schedule_of
from tinyml_edu.profile.liveness import live_sizes

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet8():
    return mcu.capture(models.build("resnet8").eval(), EXAMPLE)


@st.composite
def schedules(draw):
    """A network whose steps read any earlier values, with one or more outputs."""
    n = draw(st.integers(2, 9))
    steps = [
        (str(i), [str(k) for k in draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=3, unique=True))])
        for i in range(1, n)
    ]
    outputs = draw(st.lists(st.integers(1, n - 1).map(str), max_size=2, unique=True))
    return steps, {str(i): draw(st.integers(1, 99)) for i in range(n)}, outputs


def _simulate(steps, sizes, outputs):
    """Run the schedule with a set of live names: free a value when nothing later reads it."""
    written = {name for name, _ in steps}
    memory = {name for _, read in steps for name in read if name not in written}
    peak = 0
    for i, (name, _) in enumerate(steps):
        memory.add(name)
        peak = max(peak, sum(sizes[n] for n in memory))
        later = {n for _, read in steps[i + 1 :] for n in read}
        memory &= later | set(outputs)
    return peak


@settings(max_examples=200)
@given(schedules())
def test_the_peak_is_that_of_a_run_which_frees_what_nobody_reads_again(case):
    assert peak_activation_bytes(*case) == _simulate(*case)


def test_freeing_early_would_be_noticed():
    steps = [("a", ["x"]), ("b", ["a"]), ("c", ["b", "x"])]
    sizes = {"x": 100, "a": 10, "b": 10, "c": 1}
    early = [("a", ["x"]), ("b", ["a"]), ("c", ["b"])]
    assert _simulate(steps, sizes, []) == 120 != peak_activation_bytes(early, sizes, [])


def test_resnet8_peaks_where_the_residual_waits(resnet8):
    report = profile(resnet8)
    # Three tensors of 32 x 32 x 16: the residual, and the operands of the block's second convolution.
    assert report.peak_row.live_elements == 3 * 32 * 32 * 16
    assert report.peak_bytes("int8") * 4 == report.peak_bytes("float32") == report.peak_activation_bytes


def test_reshape_takes_no_memory(resnet8):
    live = dict(zip((n.op for n in resnet8.nodes), live_sizes(*schedule_of(resnet8))))
    assert live["RESHAPE"] == 64


def test_the_planners_lower_bound_is_the_peak_up_to_alignment(resnet8):
    """Aligned sizes exceed real ones by at most 15 bytes a buffer, and at most four are alive here."""
    plan = mcu.plan(resnet8)
    peak = profile(resnet8).peak_bytes("float32")
    assert peak <= plan.lower_bound_bytes <= peak + 4 * 15


def test_weight_bytes_by_dtype_count_int32_biases(resnet8):
    report = profile(resnet8)
    weights, biases = (sum(getattr(r, k) for r in report.rows) for k in ("weights", "biases"))
    stored = sum(t.data.nbytes for t in resnet8.tensors.values() if t.kind is Kind.CONSTANT)
    assert report.weight_bytes("float32") == report.weight_bytes() == stored == 4 * (weights + biases)
    assert report.weight_bytes("float16") == 2 * (weights + biases)
    assert report.weight_bytes("int8") == weights + 4 * biases
    assert report.weight_bytes("int4") == sum((r.weights + 1) // 2 for r in report.rows) + 4 * biases


def test_batch_size_of_the_example_does_not_matter():
    model = models.build("resnet8", width=0.5).train()
    one, many = (profile(model, torch.zeros(n, 3, 32, 32)) for n in (1, 4))
    assert one.rows == many.rows
    assert model.training


def test_a_layer_moves_weights_input_and_output():
    row = profile(plain_network(8, 16, 1)).rows[0]
    assert row.bytes_moved("int8") == 3 * 8 * 9 + 8 * 4 + 16 * 16 * 3 + 16 * 16 * 8
    assert row.intensity("int8") == 2 * 16 * 16 * 8 * 27 / row.bytes_moved("int8")


def test_the_dictionary_is_json_and_sums_to_the_totals(resnet8):
    report = profile(resnet8)
    data = json.loads(json.dumps(report.to_dict()))
    assert sum(layer["macs"] for layer in data["layers"]) == data["macs"]
    assert max(layer["live_bytes"] for layer in data["layers"]) == data["peak_activation_bytes"]["float32"]


def test_the_table_has_a_line_for_each_layer_and_marks_one_peak(resnet8):
    lines = profile(resnet8).table().splitlines()
    assert len(lines) == len(resnet8.nodes) + 2
    assert sum("<- peak" in line for line in lines) == 1


def test_misuse_is_refused_in_one_line():
    with pytest.raises(UsageError, match="needs an example"):
        profile(models.build("resnet8"))
    with pytest.raises(UnknownNameError, match="int9"):
        profile(plain_network(4, 16, 1)).weight_bytes("int9")


def test_shared_constants_are_counted_once():
    graph = plain_network(4, 16, 2)
    once = profile(graph).parameters
    first = next(n for n in graph.nodes if n.name == "conv2.2")
    graph.add(
        type(graph["conv2.2.weight"])("extra", graph[first.outputs[0]].shape, "float32", Kind.ACTIVATION)
    )
    graph.nodes.insert(
        graph.nodes.index(first) + 1,
        type(first)("again", first.op, (first.outputs[0], *first.inputs[1:]), ("extra",), first.attrs),
    )
    shared = profile(graph)
    assert shared.parameters == once
    assert shared.macs - profile(plain_network(4, 16, 2)).macs == next(
        r.macs for r in shared.rows if r.name == "again"
    )
    assert np.prod(graph["conv2.2.weight"].shape) > 0
