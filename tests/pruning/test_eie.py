"""The cycle model of EIE: cases counted by hand, a simulation cycle by cycle, and what must always hold."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyml_edu.errors import UsageError
from tinyml_edu.pruning.sparse import RelativeIndex, simulate


def ones(rows, cols, places):
    w = np.zeros((rows, cols), np.int8)
    for place in places:
        w[place] = 1
    return w


def run(w, a, pes, depth):
    return simulate(RelativeIndex.encode(w, pes=pes), a, queue_depth=depth)


@st.composite
def layers(draw):
    """Draw (weights int8, activations int8) with empty rows and columns and long runs of zeros."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, cols = draw(st.integers(1, 80)), draw(st.integers(1, 12))
    w = rng.integers(-128, 128, (rows, cols)) * (
        rng.random((rows, cols)) < draw(st.sampled_from([0, 0.05, 0.3, 1]))
    )
    a = rng.integers(-128, 128, cols) * (rng.random(cols) < draw(st.sampled_from([0, 0.4, 1])))
    return w.astype(np.int8), a.astype(np.int8)


def step_by_step(w, a, pes, depth):
    """Simulate one cycle after the other with real queues; return the number of cycles."""
    entries = RelativeIndex.encode(w, pes=pes).column_entries()
    waiting = deque(j for j in range(len(a)) if a[j] != 0)
    queues = [deque() for _ in range(pes)]  # cycles left of each activation in the queue, its head at work
    cycles = 0
    while waiting or any(queues):
        if waiting and all(len(queue) < depth for queue in queues):
            j = waiting.popleft()
            for p, queue in enumerate(queues):
                queue.append(max(1, int(entries[p, j])))
        for queue in queues:
            if queue:
                queue[0] -= 1
                if queue[0] == 0:
                    queue.popleft()
        cycles += 1
    return cycles


# By hand ---------------------------------------------------------------------------------------------------


def test_one_processing_element_needs_a_cycle_an_entry():
    report = run(np.ones((5, 3), np.int8), [1, 1, 1], pes=1, depth=1)
    assert report.cycles == 15 == report.ideal_cycles
    assert report.load_balance == 1.0
    assert report.dense_macs == 15


def test_activations_that_are_zero_cost_nothing():
    report = run(np.ones((5, 3), np.int8), [0, 1, 0], pes=1, depth=4)
    assert (report.cycles, report.broadcasts, report.work.tolist()) == (5, 1, [5])


def test_a_column_without_entries_costs_a_look_up():
    report = run(ones(4, 3, [(0, 0), (0, 2)]), [1, 1, 1], pes=1, depth=2)
    assert report.cycles == 3
    assert report.lookups.tolist() == [1]
    assert report.load_balance == 2 / 3


def test_queues_let_processing_elements_run_apart():
    # Column 0 gives PE 0 three entries and PE 1 one; column 1 the other way round.
    w = ones(6, 2, [(0, 0), (2, 0), (4, 0), (1, 0), (1, 1), (3, 1), (5, 1), (0, 1)])
    in_step, queued = run(w, [1, 1], 2, 1), run(w, [1, 1], 2, 2)
    # Depth 1: max(3, 1) + max(1, 3).  Depth 2: PE 0 works in cycles 0-2 and 3, PE 1 in cycles 0 and 1-3.
    assert in_step.cycles == 6
    assert queued.cycles == 4 == queued.ideal_cycles
    assert in_step.load_balance == 8 / 12
    assert queued.load_balance == 1.0


def test_a_full_queue_holds_up_the_broadcast():
    # PE 0 needs 4 cycles for column 0, PE 1 one for each column; with depth 2 column 2 waits until cycle 4.
    w = ones(8, 3, [(0, 0), (2, 0), (4, 0), (6, 0), (1, 0), (1, 1), (1, 2), (0, 1), (0, 2)])
    assert run(w, [1, 1, 1], 2, 2).cycles == 6  # PE 0: 0-3, 4, 5
    w[[3, 5, 7], 2] = 1  # column 2 now takes PE 1 four cycles, from cycle 4 on
    assert run(w, [1, 1, 1], 2, 2).cycles == 8
    assert run(w, [1, 1, 1], 2, 3).cycles == 6  # from cycle 2 on; PE 0 is last again


def test_padding_zeros_are_work():
    w = ones(40, 1, [(39, 0)])  # 39 zeros before the weight: entries at rows 15, 31 and 39
    report = run(w, [1], 1, 1)
    assert (report.cycles, report.work.tolist(), report.padding.tolist()) == (3, [3], [2])
    # On 4 PEs row 39 is row 9 of PE 3: no padding is left, the other PEs look up in vain.
    report = run(w, [1], 4, 1)
    assert (report.cycles, report.work.tolist(), report.padding.tolist()) == (1, [0, 0, 0, 1], [0] * 4)
    assert report.lookups.tolist() == [1, 1, 1, 0]


def test_nothing_to_do_takes_no_cycle():
    report = run(np.ones((3, 2), np.int8), [0, 0], pes=2, depth=1)
    assert (report.cycles, report.broadcasts, report.load_balance) == (0, 0, 1.0)


def test_time_is_cycles_over_the_clock():
    assert run(np.ones((8, 1), np.int8), [1], 1, 1).seconds(4e6) == 8 / 4e6


# Always ----------------------------------------------------------------------------------------------------


@given(layer=layers(), pes=st.integers(1, 9), depth=st.integers(1, 6))
def test_the_recurrence_counts_what_the_queues_do(layer, pes, depth):
    assert run(*layer, pes, depth).cycles == step_by_step(*layer, pes, depth)


def test_the_simulation_with_queues_sees_another_depth():
    w = ones(6, 2, [(0, 0), (2, 0), (4, 0), (1, 0), (1, 1), (3, 1), (5, 1), (0, 1)])
    assert step_by_step(w, [1, 1], 2, 2) != run(w, [1, 1], 2, 1).cycles


@given(layer=layers(), pes=st.integers(1, 9))
def test_the_output_is_the_product(layer, pes):
    w, a = layer
    report = run(w, a, pes, 8)
    assert report.output.dtype == np.int64
    np.testing.assert_array_equal(report.output, w.astype(np.int64) @ a.astype(np.int64))


def test_float_outputs_are_exact_where_float64_is():
    w, a = np.array([[0.5, 0], [0.25, 2]], np.float32), np.array([3, 0.5], np.float32)
    np.testing.assert_array_equal(run(w, a, 2, 1).output, [1.5, 1.75])


@given(layer=layers(), pes=st.integers(1, 9), depth=st.integers(1, 6))
def test_cycles_lie_between_the_busiest_element_and_marching_in_step(layer, pes, depth):
    report, in_step = run(*layer, pes, depth), run(*layer, pes, 1)
    busy = report.work + report.lookups
    assert max(busy.max(), report.broadcasts, report.ideal_cycles) <= report.cycles <= in_step.cycles
    assert 0 <= report.load_balance <= 1
    assert (report.padding <= report.work).all()


@given(layer=layers(), pes=st.integers(1, 9), depth=st.integers(1, 6))
def test_a_deeper_queue_never_takes_longer(layer, pes, depth):
    assert run(*layer, pes, depth + 1).cycles <= run(*layer, pes, depth).cycles


@given(layer=layers(), pes=st.integers(1, 6), times=st.integers(2, 4), depth=st.integers(1, 6))
def test_a_multiple_of_the_elements_never_gives_one_more_work(layer, pes, times, depth):
    # Rows i % (pes * times) = p are among the rows i % pes = p % pes, and closer together: fewer paddings.
    few, many = run(*layer, pes, depth), run(*layer, pes * times, depth)
    owner = np.arange(pes * times) % pes
    assert (many.work <= few.work[owner]).all()
    assert many.cycles <= few.cycles


def test_more_elements_that_are_no_multiple_can_give_one_more_work():
    # The control: rows 0 and 3 are on two of 2 PEs, but both on the first of 3.
    w = ones(4, 1, [(0, 0), (3, 0)])
    assert run(w, [1], 2, 1).work.max() == 1
    assert run(w, [1], 3, 1).work.max() == 2


@given(layer=layers(), pes=st.integers(1, 9))
def test_work_is_every_weight_that_meets_an_activation_and_the_padding(layer, pes):
    w, a = layer
    report = run(w, a, pes, 8)
    macs = int(np.count_nonzero(w[:, a != 0]))
    assert report.work.sum() - report.padding.sum() == macs
    assert report.broadcasts == np.count_nonzero(a)


def test_a_random_layer_gains_balance_with_depth(rng):
    # Figure 8 of the paper: the gain is large up to a depth of 8 and small behind it.
    w = (rng.random((512, 256)) < 0.1).astype(np.int8)
    a = (rng.random(256) < 0.4).astype(np.int8)
    balance = [run(w, a, 16, depth).load_balance for depth in (1, 8, 256)]
    assert balance[0] < balance[1] <= balance[2] <= 1
    assert balance[1] - balance[0] > balance[2] - balance[1]


# Refusals --------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    stored = RelativeIndex.encode(np.ones((2, 3), np.int8))
    with pytest.raises(UsageError, match="3 columns"):
        simulate(stored, [1, 1])
    with pytest.raises(UsageError, match="queue_depth=0"):
        simulate(stored, [1, 1, 1], queue_depth=0)
