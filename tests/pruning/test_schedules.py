"""Sparsity rises as the papers say, removed weights stay removed, a ticket starts where training started."""

import copy
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import train
from tinyml_edu.data.dataset import Dataset
from tinyml_edu.errors import UsageError
from tinyml_edu.pruning.fine_grained import fine_grained_prune
from tinyml_edu.pruning.schedules import (
    SCHEDULES,
    GradualPruner,
    cubic,
    cubic_sparsity,
    iterative,
    lottery_ticket,
    one_shot,
)
from tinyml_edu.train import TrainConfig


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


def noise(n=64):
    g = np.random.default_rng(0)
    x = g.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return Dataset("noise", "train", x, g.integers(0, 3, n), ("a", "b", "c"))


def fit(model, after_step, epochs=2):
    config = TrainConfig(epochs=epochs, batch_size=16, precision="float32", device="cpu", progress=False)
    train.fit(model, noise(), noise(16), config, after_step=after_step)


def exact_cubic(step, final, initial, begin, interval, count):
    done = Fraction(min(max((step - begin) // interval, 0), count), count)
    return Fraction(final) + (Fraction(initial) - Fraction(final)) * (1 - done) ** 3


@given(
    step=st.integers(0, 500), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    begin=st.integers(0, 100), interval=st.integers(1, 20), count=st.integers(1, 30),
)  # fmt: skip
def test_the_cubic_agrees_with_exact_fractions(step, ends, begin, interval, count):
    where = {"begin": begin, "interval": interval, "count": count}
    initial, final = sorted(ends)
    found = cubic_sparsity(step, final=final, initial=initial, **where)
    # Nine roundings of numbers up to 1: 9 * 2**-53 < 1e-15.
    assert abs(Fraction(found) - exact_cubic(step, final, initial, **where)) <= Fraction(1, 10**15)


def test_the_cubic_starts_and_ends_where_it_should_and_moves_only_at_the_interval():
    where = {"final": 0.9, "initial": 0.1, "begin": 5, "interval": 4, "count": 3}
    values = [cubic_sparsity(t, **where) for t in range(30)]
    assert set(values[:9]) == {0.9 + (0.1 - 0.9)}
    assert set(values[17:]) == {0.9}
    assert len(set(values)) == 4
    assert values == sorted(values)
    first, last = values[9] - values[8], values[17] - values[16]
    assert first > last, "the cubic removes most at first"


@pytest.mark.parametrize("name", SCHEDULES)
@given(sparsity=st.floats(0, 1), steps=st.integers(1, 12))
def test_every_schedule_rises_to_exactly_the_target(name, sparsity, steps):
    values = SCHEDULES[name](sparsity, steps)
    assert len(values) == steps
    assert values[-1] == sparsity
    assert list(values) == pytest.approx(sorted(values), abs=1e-15)  # equal steps may differ in the last bit
    assert all(-1e-15 <= v <= 1 for v in values)


def test_schedules_differ():
    assert len({f(0.9, 4) for f in (one_shot, iterative, cubic)}) == 3


@given(sparsity=st.floats(0, 0.99), steps=st.integers(1, 10))
def test_iterative_removes_the_same_share_of_what_is_left(sparsity, steps):
    kept = [1.0, *(1 - s for s in iterative(sparsity, steps))]
    shares = [b / a for a, b in itertools.pairwise(kept)]
    # 1 - s of numbers near 1 is off by 2**-53, and the smallest kept share is 0.01: 100 * 2**-52 < 1e-13.
    assert shares == pytest.approx([shares[0]] * steps, abs=1e-13)


@pytest.mark.parametrize(("sparsity", "steps"), [(-0.1, 2), (1.5, 2), (float("nan"), 2), (0.5, 0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_out_of_range_is_refused(name, sparsity, steps):
    with pytest.raises(UsageError, match="schedule needs"):
        SCHEDULES[name](sparsity, steps)


def test_a_cubic_that_falls_is_refused():
    with pytest.raises(UsageError, match="initial <= final"):
        cubic_sparsity(0, final=0.5, initial=0.6, interval=1, count=1)


def test_the_gradual_pruner_follows_the_schedule_inside_the_training_loop():
    model = network()
    pruner = GradualPruner(model, {"4.weight": 0.75}, begin=1, interval=2, count=3)
    seen, revived = [], 0

    def after_step(m):
        nonlocal revived
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        pruner.after_step(m)
        seen.append(int((m[4].weight == 0).sum()))
        revived += int((~before["4.weight"] & pruner.masks["4.weight"]).sum())

    fit(model, after_step)  # 2 epochs of 4 steps
    expected = [round(648 * cubic_sparsity(t, final=0.75, begin=1, interval=2, count=3)) for t in range(1, 9)]
    assert seen == expected
    assert expected[0] == 0 < expected[-1] == 486
    assert pruner.steps == 8
    assert len(set(expected)) == 4


def test_every_round_of_a_ticket_rewinds_to_the_first_weights():
    model = network()
    start = copy.deepcopy(model.state_dict())
    tickets = lottery_ticket(model, fit, sparsity=0.75, rounds=2)
    assert [t.sparsity_by_weight["4.weight"] for t in tickets] == [0.5, 0.75]
    for ticket in tickets:
        for name, value in ticket.model.state_dict().items():
            mask = ticket.masks.get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(value, start[name] * mask), name
    assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items()), "the model was changed"


def test_what_a_round_removes_stays_removed_and_the_masks_come_from_trained_weights():
    model = network()
    first, second = lottery_ticket(model, fit, sparsity=0.75, rounds=2)
    for name, mask in first.masks.items():
        assert not (second.masks[name] & ~mask).any(), name
    trained = copy.deepcopy(model)
    fit(trained, None)
    assert torch.equal(first.masks["4.weight"], fine_grained_prune(trained[4].weight, 0.5))
    at_start = fine_grained_prune(model[4].weight, 0.5)
    assert not torch.equal(first.masks["4.weight"], at_start), "training changed no rank: the check is blind"


def test_the_second_round_trains_under_the_mask_of_the_first():
    zeros = []

    def watched(model, after_step):
        fit(model, after_step, epochs=1)
        zeros.append(int((model[4].weight == 0).sum()))

    lottery_ticket(network(), watched, sparsity=0.75, rounds=2)
    assert zeros == [0, 324]


def test_a_live_weight_that_is_zero_does_not_take_the_place_of_a_removed_one():
    calls = []

    def zero_in_the_second_round(model, after_step):
        calls.append(model)
        if len(calls) == 2:
            with torch.no_grad():
                model[4].weight.zero_()

    first, second = lottery_ticket(network(), zero_in_the_second_round, sparsity=0.75, rounds=2)
    assert not (second.masks["4.weight"] & ~first.masks["4.weight"]).any()
    assert int((~second.masks["4.weight"]).sum()) == 486


def test_late_rewinding_goes_back_to_the_given_state():
    model, later = network(), network()
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.add_(1.0)
    ticket = lottery_ticket(model, fit, sparsity=0.5, rounds=1, rewind_to=later.state_dict())[0]
    mask = ticket.masks["4.weight"]
    assert torch.equal(ticket.model[4].weight, later[4].weight * mask)
    assert not torch.equal(ticket.model[4].weight, model[4].weight * mask)
