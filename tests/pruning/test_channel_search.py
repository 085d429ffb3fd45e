"""The search for channel ratios: within its budget, near the brute-force optimum, clear where it cannot."""

import itertools

import pytest
import torch
from torch import nn

from tinyml_edu.errors import UsageError
from tinyml_edu.profile.counting import model_macs
from tinyml_edu.pruning import ChannelPruner, latency_cost, macs_cost, search_channel_ratios
from tinyml_edu.pruning.channel_search import _first_within

X = torch.zeros(1, 3, 8, 8)


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()


def widths(model: nn.Module) -> tuple[int, int]:
    return model[0].out_channels, model[2].out_channels


def prefers_the_second_layer(model: nn.Module) -> float:
    """A stand-in for the accuracy whose optimum under a budget a brute force can find."""
    first, second = widths(model)
    return 1 - 0.01 * (16 - first) - 0.04 * (16 - second)


def macs_of(first: int, second: int) -> int:
    return 64 * 9 * (3 * first + first * second) + 4 * second


def test_the_search_meets_its_budget_and_comes_close_to_the_brute_force_optimum():
    model = chain()
    budget = 0.4 * macs_of(16, 16)
    found = search_channel_ratios(
        ChannelPruner(model, X), prefers_the_second_layer, macs_cost(X), budget, multiple=1, seed=1
    )
    assert found.cost == macs_of(*widths(found.model)) == model_macs(found.model, X) <= budget
    sizes = itertools.product(range(3, 17), repeat=2)  # max_ratio 0.8 leaves 3 of 16
    best = max(1 - 0.01 * (16 - a) - 0.04 * (16 - b) for a, b in sizes if macs_of(a, b) <= budget)
    # One channel of the better layer.
    assert found.reward + 1 >= best - 0.04 - 1e-9
    assert found.reward == prefers_the_second_layer(found.model) - 1
    assert found.mean_reward_by_iteration[-1] > found.mean_reward_by_iteration[0]
    uniform = next(
        small
        for percent in range(1, 100)
        if macs_of(*widths(small := ChannelPruner(model, X).shrink(percent / 100, multiple=1))) <= budget
    )
    assert prefers_the_second_layer(uniform) < found.reward + 1 - 0.04  # the control: even cuts lose


def test_a_budget_that_nothing_exceeds_removes_nothing_more_than_the_policy_wants():
    model = chain()
    found = search_channel_ratios(
        ChannelPruner(model, X),
        prefers_the_second_layer,
        macs_cost(X),
        1e12,
        population=4,
        iterations=1,
        elite=2,
    )
    assert found.evaluations == 4
    assert all(0 <= ratio <= 0.8 for ratio in found.ratios.values())


def test_milliseconds_of_a_given_clock_are_a_budget_too():
    # Each run of a network takes as many ticks as it has channels in the first layer.
    model, time, current = chain(), [0.0], [16]

    def clock() -> float:
        time[0] += current[0] / 1000
        return time[0]

    cost = latency_cost(X, repeats=2, clock=clock)

    def measured(small: nn.Module) -> float:
        current[0] = widths(small)[0]
        return cost(small)

    found = search_channel_ratios(
        ChannelPruner(model, X),
        prefers_the_second_layer,
        measured,
        8.0,
        multiple=1,
        population=6,
        iterations=2,
    )
    assert widths(found.model)[0] <= 8
    assert found.cost == pytest.approx(widths(found.model)[0])


def test_a_cost_that_rises_when_it_is_measured_again_never_wins():
    calls = itertools.count()

    def rising(_model: nn.Module) -> float:
        return 1.0 if next(calls) == 0 else 5.0

    with pytest.raises(UsageError, match="no reward"):
        search_channel_ratios(
            ChannelPruner(chain(), X), lambda _: 1.0, rising, 2.0, population=2, elite=1, iterations=1
        )


def test_a_budget_out_of_reach_names_the_least_cost():
    with pytest.raises(UsageError, match="cannot be reached: with 80% of all channels removed it is"):
        search_channel_ratios(ChannelPruner(chain(), X), prefers_the_second_layer, macs_cost(X), 10.0)
    with pytest.raises(UsageError, match="max_ratio"):
        search_channel_ratios(
            ChannelPruner(chain(), X), prefers_the_second_layer, macs_cost(X), 1e9, max_ratio=1.0
        )


@pytest.mark.parametrize("budget", [2.0, 5.0, 9.9, 10.0])
def test_the_common_step_is_the_smallest_that_meets_the_budget(budget):
    # The cost falls from 10 to 2; six bisections leave an interval of 2**-6.
    found, _, cost = _first_within(lambda step: ({"step": step}, nn.Identity(), 10 - 8 * step), budget)
    smallest = (10 - budget) / 8
    assert cost <= budget
    assert smallest <= found["step"] <= smallest + 2**-6
