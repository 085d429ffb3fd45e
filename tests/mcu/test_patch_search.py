"""The search for patches: within its limit, as good as trying everything, and honest when nothing fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from patch_networks import mobilenet_v2_body, random_stage
from random_graphs import random_network

from tinyml_edu import ir
from tinyml_edu.errors import DoesNotFitError, UsageError
from tinyml_edu.mcu import planning
from tinyml_edu.mcu.patches import (
    Accounting,
    cost,
    make_schedule,
    patch_buffers,
    patchable_layers,
    plan_patches,
)
from tinyml_edu.mcu.patches.schedule import crossing
from tinyml_edu.mcu.patches.search import MAX_SIDE, name, parse, search


def every_schedule(graph):
    for layers in range(1, patchable_layers(graph) + 1):
        results = crossing(graph, layers)
        sides = [min(MAX_SIDE, *(graph[n].shape[axis] for n in results)) for axis in (1, 2)]
        for rows in range(1, sides[0] + 1):
            for columns in range(1, sides[1] + 1):
                yield make_schedule(graph, layers, (rows, columns))


def large_stage(seed):
    """A stage whose memory is in its first layers, so that patches help."""
    return random_stage(seed, 4, ops=("CONV_2D", "DEPTHWISE_CONV_2D", "ADD"))


@pytest.mark.parametrize("limit", [0.07, 0.5, None])
@pytest.mark.parametrize("seed", [3, 4, 8])
def test_no_schedule_within_the_limit_has_a_smaller_arena(seed, limit):
    graph = large_stage(seed)
    whole = sum(ir.macs(graph).values())
    most = float("inf") if limit is None else whole * (1 + limit)
    arenas = [planning.plan(graph).arena_bytes]
    arenas += [plan_patches(s).arena_bytes for s in every_schedule(graph) if sum(s.macs().values()) <= most]
    schedule, plan = search(graph, macs_limit=limit)
    assert plan.arena_bytes == min(arenas)
    assert sum(schedule.macs().values()) <= most
    assert plan == plan_patches(schedule) or plan.offsets == plan_patches(schedule).offsets


@pytest.mark.parametrize("seed", [3, 4])
def test_a_budget_gets_the_schedule_with_the_fewest_macs_that_fits(seed):
    graph = large_stage(seed)
    smallest = search(graph, macs_limit=None)[1].arena_bytes
    whole = planning.plan(graph).arena_bytes
    budget = (smallest + whole) // 2
    schedule, plan = search(graph, macs_limit=None, budget_bytes=budget)
    assert plan.arena_bytes <= budget
    fitting = [s for s in every_schedule(graph) if plan_patches(s).arena_bytes <= budget]
    fitting += [make_schedule(graph, 0, (1, 1))] * (whole <= budget)
    assert sum(schedule.macs().values()) == min(sum(s.macs().values()) for s in fitting)
    with pytest.raises(DoesNotFitError, match=f"at least {smallest:,} B are needed"):
        search(graph, macs_limit=None, budget_bytes=smallest - 1)


def test_the_whole_image_is_a_schedule_too_and_its_plan_is_the_planners():
    for graph in (*map(random_stage, range(3)), *map(random_network, range(4))):
        schedule = make_schedule(graph, 0, (1, 1))
        assert sorted(patch_buffers(schedule), key=str) == sorted(planning.lifetimes(graph), key=str)
        assert name(schedule) == "none"


def test_names_of_schedules_are_read_back_and_others_refused():
    graph = mobilenet_v2_body()
    for text in ("none", "4x4@13", "2x5@7"):
        assert name(parse(graph, text)) == text
    for text in ("", "4x4", "4X4@13", "4x4@0", "0x4@3", "4x4@99", "29x1@13", "-1x2@3", "a"):
        with pytest.raises(UsageError):
            parse(graph, text)


def test_mobilenet_v2_is_searched_under_a_limit():
    graph = mobilenet_v2_body()
    schedule, plan = search(graph, macs_limit=0.1)
    assert cost(schedule).overhead <= 0.1
    assert plan.arena_bytes == plan.lower_bound_bytes == cost(schedule).peak_bytes == 326_144
    tight = search(graph, macs_limit=0.02)[1].arena_bytes
    assert 326_144 < tight < planning.plan(graph).arena_bytes


@pytest.mark.data
def test_visual_wake_words_runs_in_25_kb_with_7_percent_more_macs(data_dir):
    graph = ir.read_tflite(data_dir / "mlperf_tiny" / "vww_96_int8.tflite")
    schedule, plan = search(graph, macs_limit=0.07, source="streamed")
    assert name(schedule) == "2x2@8"
    assert plan.arena_bytes == plan.lower_bound_bytes == 24_800  # 24,792, aligned
    found = cost(schedule, Accounting("streamed"))
    assert (found.peak_bytes, round(found.overhead, 4)) == (24_792, 0.0685)


def test_a_board_that_is_too_small_names_the_bytes_missing():
    schedule = parse(mobilenet_v2_body(), "4x4@13")
    board = SimpleNamespace(name="tiny", sram_bytes=326_144)
    with pytest.raises(DoesNotFitError, match=r"2,048 B of SRAM are missing.*patch='auto'"):
        plan_patches(schedule, board)
