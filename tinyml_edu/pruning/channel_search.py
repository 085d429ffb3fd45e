"""Search the share of channels that each group loses, under a budget of MACs or of measured latency.

The policy, its state and its reward are AMC's [1]_, as in `ratio_search`; the cost is any function of the cut
network, so that the budget may be milliseconds of this very processor.

References
----------
.. [1] He et al., AMC, ECCV 2018.  https://arxiv.org/abs/1802.03494
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .._modes import evaluating
from ..errors import UsageError
from ..profile.latency import measure_latency
from .ratio_search import LayerCost, cross_entropy_search, error_reward, layer_costs, rollout
from .structured import ChannelPruner

Measure = Callable[[nn.Module], float]
"""A figure of a network, such as its cost or its accuracy (0 to 1) on the validation split."""

_BISECTIONS = 6


@dataclass(frozen=True)
class ChannelSearchResult:
    """The best ratios found.

    Attributes
    ----------
    ratios : dict of str to float
        Share of channels to remove by the path of the first layer of a group, for ``shrink``.
    model : nn.Module
        The network cut by them.
    reward, cost : float
        Of that network; the cost is at most the budget, in its unit.
    mean_reward_by_iteration : tuple of float
        Mean over the population.
    evaluations : int
        Networks whose reward was computed.
    """

    ratios: dict[str, float]
    model: nn.Module
    reward: float
    cost: float
    mean_reward_by_iteration: tuple[float, ...]
    evaluations: int


def macs_cost(example: torch.Tensor) -> Measure:
    """Return a function that counts the MACs of a network for one input (N, C, H, W) or (N, F)."""
    return lambda model: sum(cost.macs for cost in layer_costs(model, example))


def latency_cost(example: torch.Tensor, *, repeats: int = 5, **settings: Any) -> Measure:
    """Return a function that measures the milliseconds a network takes for ``example``, batch and all.

    It returns the shortest of ``repeats`` runs, which other programs disturb least; ``settings`` go to
    `profile.latency.measure_latency`.
    """

    def cost(model: nn.Module) -> float:
        with evaluating(model), torch.inference_mode():
            return measure_latency(lambda: model(example), repeats=repeats, warmup=1, **settings).min_ms

    return cost


def search_channel_ratios(
    pruner: ChannelPruner,
    evaluate: Measure,
    cost: Measure,
    budget: float,
    *,
    reward: Callable[[float, float], float] = error_reward,
    max_ratio: float = 0.8,
    multiple: int = 4,
    population: int = 12,
    elite: int = 3,
    iterations: int = 5,
    seed: int = 0,
) -> ChannelSearchResult:
    """Find the share of channels to remove from each group that gives the highest reward within a budget.

    A policy proposes a ratio for each group.  Where the network is then too costly, all ratios move towards
    ``max_ratio`` by the smallest common step, found by bisection, at which it is not.

    Parameters
    ----------
    pruner : ChannelPruner
        Holds the network.
    evaluate : callable
        ``evaluate(small) -> accuracy`` (0 to 1) on the validation split.
    cost : callable
        ``cost(small) -> float`` in the unit of ``budget``, see `macs_cost` and `latency_cost`.
    budget : float
        Most that the network may cost.
    reward : callable
        ``reward(accuracy, cost)``, see `ratio_search.error_reward`.
    max_ratio : float
        Strongest cut of any group, 0 to 1 (exclusive).
    multiple : int
        See `structured.shrink`.
    population, elite, iterations : int
        Of the cross-entropy method: samples an iteration; those that set the next mean and spread; rounds.

    Raises
    ------
    UsageError
        If even ``max_ratio`` everywhere misses the budget, or a setting is out of range.
    """
    if not pruner.groups or not 0 <= max_ratio < 1:
        raise UsageError("the search needs a network with channels to remove, and 0 <= max_ratio < 1")
    costs = _group_costs(pruner)
    strongest = dict.fromkeys((cost.name for cost in costs), max_ratio)
    least = cost(pruner.shrink(strongest, multiple=multiple))
    if least > budget:
        raise UsageError(
            f"a cost of {budget:,.6g} cannot be reached: with {max_ratio:.0%} of all channels removed it is "
            f"{least:,.6g}; raise the budget or max_ratio"
        )
    total = sum(cost.macs for cost in costs)

    def cut(ratios: dict[str, float], step: float) -> tuple[dict[str, float], nn.Module, float]:
        moved = {path: ratio + step * (max_ratio - ratio) for path, ratio in ratios.items()}
        small = pruner.shrink(moved, multiple=multiple)
        return moved, small, cost(small)

    def build(policy: np.ndarray) -> tuple[float, ChannelSearchResult]:
        wanted = rollout(costs, policy, total, max_sparsity=max_ratio)
        ratios, small, price = _first_within(functools.partial(cut, wanted), budget)
        value = reward(evaluate(small), price) if price <= budget else -math.inf
        return value, ChannelSearchResult(ratios, small, value, price, (), 0)

    best, means = cross_entropy_search(
        build, population=population, elite=elite, iterations=iterations, seed=seed
    )
    evaluations = population * iterations
    return replace(best, mean_reward_by_iteration=means, evaluations=evaluations)


def _group_costs(pruner: ChannelPruner) -> list[LayerCost]:
    """Return what AMC's state needs of each group: the cost of the first layer that writes it."""
    by_path = {cost.name.rpartition(".")[0]: cost for cost in layer_costs(pruner.model, pruner.example)}
    first = [group.layers[0] for group in pruner.groups]
    return [replace(by_path[path], name=path) for path in first]


def _first_within(
    cut: Callable[[float], tuple[dict[str, float], nn.Module, float]], budget: float
) -> tuple[dict[str, float], nn.Module, float]:
    """Return what ``cut(step)`` gives at the smallest step, 0 to 1, at which its cost is within the budget.

    A measured cost varies: where even the step 1 now costs more, that is what is returned.
    """
    found = cut(0.0)
    if found[2] <= budget:
        return found
    low, high, found = 0.0, 1.0, cut(1.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        tried = cut(middle)
        if tried[2] <= budget:
            high, found = middle, tried
        else:
            low = middle
    return found
