"""Where the sparsity goes: scans, one rank over all layers, and the budgeted search."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import models
from tinyml_edu.errors import UsageError
from tinyml_edu.profile.counting import model_macs
from tinyml_edu.pruning.fine_grained import fine_grained_prune, prunable_weights
from tinyml_edu.pruning.ratio_search import (
    LayerCost,
    bounded_action,
    flops_reward,
    layer_costs,
    rollout,
    search_ratios,
)
from tinyml_edu.pruning.ratios import (
    global_magnitude,
    global_masks,
    ratios_from_scan,
    sensitivity_scan,
    uniform,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def test_the_scan_prunes_one_weight_at_a_time():
    model = network()
    whole = {name: w.detach().clone() for name, w in prunable_weights(model).items()}
    seen = []

    def evaluate(m):
        assert m is model
        seen.append({name: w.detach().clone() for name, w in prunable_weights(m).items()})
        return float(len(seen))

    table = sensitivity_scan(model, evaluate, [0.25, 0.5])
    assert table == {"0.weight": [1.0, 2.0], "4.weight": [3.0, 4.0]}
    cases = [(name, s) for name in whole for s in (0.25, 0.5)]
    for (pruned, sparsity), state in zip(cases, seen):
        for name, value in state.items():
            mask = fine_grained_prune(whole[name], sparsity) if name == pruned else 1
            assert torch.equal(value, whole[name] * mask), (pruned, sparsity, name)
    assert all(torch.equal(w, whole[name]) for name, w in prunable_weights(model).items())


def test_the_scan_puts_weights_back_when_the_evaluation_fails():
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def evaluate(m):
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        sensitivity_scan(model, evaluate, [0.9])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_ratios_stop_at_the_first_fall():
    scan = {"a": [0.5, 0.9, 0.9], "b": [0.9, 0.9, 0.5]}
    assert ratios_from_scan(scan, [0.1, 0.2, 0.3], least=0.9) == {"a": 0.0, "b": 0.2}
    with pytest.raises(UsageError, match="3 values for 2"):
        ratios_from_scan(scan, [0.1, 0.2], least=0.9)


@given(
    values=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    sparsity=st.floats(0, 1),
)
def test_a_global_rank_removes_exactly_the_lowest_of_all(values, sparsity):
    scores = {str(i): torch.tensor(v, dtype=torch.float32) for i, v in enumerate(values)}
    masks = global_masks(scores, sparsity)
    entries = sorted((x, i, j) for i, v in enumerate(values) for j, x in enumerate(v))
    gone = {(i, j) for _, i, j in entries[: round(sparsity * len(entries))]}
    for i, v in enumerate(values):
        assert masks[str(i)].tolist() == [(i, j) not in gone for j in range(len(v))]


def test_a_global_rank_is_not_uniform():
    model = network()
    with torch.no_grad():
        model[4].weight.mul_(1e-3)
    ratios = global_magnitude(model, 0.5)
    assert ratios["0.weight"] == 0.0
    removed = sum(ratios[name] * w.numel() for name, w in prunable_weights(model).items())
    assert removed == pytest.approx(round(0.5 * (108 + 720)), abs=1e-9)
    assert uniform(model, 0.5) == {"0.weight": 0.5, "4.weight": 0.5}


def test_layer_costs_add_up_to_the_macs_of_the_network():
    for name in ("vgg_lite", "mobilenet_v2_tiny"):
        model = models.build(name, width=0.5)
        example = torch.randn(2, 3, 32, 32)
        costs = layer_costs(model, example)
        assert sum(cost.macs for cost in costs) == model_macs(model, example)
        assert {cost.name for cost in costs} == set(prunable_weights(model))
        assert not any(m._forward_hooks for m in model.modules())


@st.composite
def budgets(draw):
    macs = draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
    limit = draw(st.floats(0.05, 1))
    budget = sum(macs) * (1 - limit * draw(st.floats(0, 1)))
    costs = [LayerCost(f"{i}.weight", m, 8, 4, 16, 16, 1, 3) for i, m in enumerate(macs)]
    return costs, limit, budget


@given(case=budgets(), seed=st.integers(0, 1000))
def test_whatever_the_policy_wants_the_budget_is_met(case, seed):
    costs, limit, budget = case
    policy = np.random.default_rng(seed).normal(0, 5, 12)
    ratios = rollout(costs, policy, budget, max_sparsity=limit)
    macs = sum(cost.macs * (1 - ratios[cost.name]) for cost in costs)
    # About four roundings a layer of numbers up to the total: 8 * 4 * 2**-53 of it.
    assert macs <= budget + 1e-14 * sum(cost.macs for cost in costs)
    assert all(0 <= ratio <= limit for ratio in ratios.values())


def test_without_the_bound_a_policy_misses_the_budget():
    wanted = 0.1
    assert 100 * (1 - wanted) + 100 * (1 - wanted) > 120
    first = bounded_action(wanted, macs=100, later_macs=100, excess_macs=80, max_sparsity=0.6)
    last = bounded_action(wanted, macs=100, later_macs=0, excess_macs=80 - 100 * first, max_sparsity=0.6)
    assert (first, last) == pytest.approx((0.2, 0.6), abs=1e-15)


def unequal_layers():
    """Three layers of which the costliest can go for nothing; the others cost accuracy by the square."""
    shapes = [(8, 3, 32, 3), (64, 8, 16, 3), (10, 64, 1, 1)]
    costs = [
        LayerCost(f"{i}.weight", o * c * side * side * k * k, o, c, side, side, 1, k)
        for i, (o, c, side, k) in enumerate(shapes)
    ]
    harm = {"0.weight": 0.5, "1.weight": 0.01, "2.weight": 0.5}
    return costs, lambda ratios: 1 - sum(harm[name] * ratio**2 for name, ratio in ratios.items())


def test_the_search_comes_close_to_the_optimum_and_beats_uniform_and_its_first_generation():
    costs, evaluate = unequal_layers()
    total = sum(cost.macs for cost in costs)
    result = search_ratios(costs, evaluate, 0.5 * total, max_sparsity=0.9, iterations=12, seed=0)
    grid = np.linspace(0, 0.9, 46)
    best = max(
        evaluate({"0.weight": a, "1.weight": b, "2.weight": 0.0})
        for a in grid
        for b in grid
        if costs[0].macs * a + costs[1].macs * b >= 0.5 * total
    )
    equal = evaluate({cost.name: 0.5 for cost in costs})
    reward = result.reward + 1
    assert reward - equal >= 0.9 * (best - equal), (reward, equal, best)
    assert best - equal > 0.1
    assert result.macs <= 0.5 * total * (1 + 1e-12)
    assert result.mean_reward_by_iteration[-1] > result.mean_reward_by_iteration[0]
    assert result.evaluations == 12 * 16


def test_one_seed_gives_one_answer():
    costs, evaluate = unequal_layers()
    budget = 0.6 * sum(cost.macs for cost in costs)
    a, b, c = (search_ratios(costs, evaluate, budget, iterations=2, seed=s) for s in (1, 1, 2))
    assert a == b
    assert a != c


def test_the_flops_reward_prefers_the_smaller_of_two_equally_good():
    assert flops_reward(0.9, 1e6) > flops_reward(0.9, 1e7)
    assert flops_reward(0.9, 500) == pytest.approx(-0.1 * math.log(1000), rel=1e-12)


def test_a_budget_out_of_reach_is_refused_with_the_least_that_is_left():
    costs, evaluate = unequal_layers()
    with pytest.raises(UsageError, match=r"cannot be reached.*raise the budget"):
        search_ratios(costs, evaluate, 10, max_sparsity=0.5)
    with pytest.raises(UsageError, match="elite <= population"):
        search_ratios(costs, evaluate, 1e9, elite=5, population=4)
