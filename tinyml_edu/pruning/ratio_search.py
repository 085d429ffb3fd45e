"""Search the sparsity of each layer under a budget of MACs, with AMC's state, action and reward [1]_.

AMC trains its policy by DDPG.  Here the policy is a logistic function of the same state and the cross-entropy
method finds its coefficients [2]_: a population of Gaussian samples, of which the best set the next mean and
spread.  It needs no replay buffer and no gradient, and one seed gives one answer.

References
----------
.. [1] He et al., AMC, ECCV 2018.  https://arxiv.org/abs/1802.03494
.. [2] Rubinstein, The Cross-Entropy Method, 1999; de Boer et al., A Tutorial, 2005.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from .._modes import evaluating
from ..errors import UsageError
from .fine_grained import prunable_weights

Built = TypeVar("Built")


@dataclass(frozen=True)
class LayerCost:
    """What AMC's agent sees of a layer (its eq. 1), for one input.

    Attributes
    ----------
    name : str
        Parameter name of the weight.
    macs : int
        Multiply-accumulates of the dense layer.
    outputs, inputs : int
        Channels ``n`` and ``c``.
    height, width : int
        Of the input in pixels, 1 for a linear layer.
    stride, kernel : int
        Along H, in pixels.
    """

    name: str
    macs: int
    outputs: int
    inputs: int
    height: int
    width: int
    stride: int
    kernel: int


@dataclass(frozen=True)
class SearchResult:
    """The best ratios found.

    Attributes
    ----------
    sparsity_by_weight : dict of str to float
        Share of weights to remove, by parameter name.
    reward : float
        Of these ratios.
    macs : float
        MACs by weights that are left, ``sum macs (1 - sparsity)``, at most the budget.
    mean_reward_by_iteration : tuple of float
        Mean over the population.
    evaluations : int
        Calls of ``evaluate``.
    """

    sparsity_by_weight: dict[str, float]
    reward: float
    macs: float
    mean_reward_by_iteration: tuple[float, ...]
    evaluations: int


def layer_costs(model: nn.Module, example: torch.Tensor) -> list[LayerCost]:
    """Return the cost of each convolution and linear layer, in order of execution, for one input."""
    costs: list[LayerCost] = []
    handles = []
    for name in prunable_weights(model):
        layer = model.get_submodule(name.rpartition(".")[0])

        def record(layer: Any, args: tuple[torch.Tensor, ...], y: torch.Tensor, name: str = name) -> None:
            x, weight = args[0], layer.weight
            conv = isinstance(layer, nn.Conv2d)
            height, width = (x.shape[2], x.shape[3]) if conv else (1, 1)
            stride, kernel = (layer.stride[0], layer.kernel_size[0]) if conv else (1, 1)
            macs = y[0].numel() * weight[0].numel()
            costs.append(LayerCost(name, macs, len(weight), x.shape[1], height, width, stride, kernel))

        handles.append(layer.register_forward_hook(record))
    try:
        with evaluating(model), torch.no_grad():
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return costs


def error_reward(accuracy: float, macs: float) -> float:  # noqa: ARG001
    """Return ``-Error``: AMC's reward when the actions are bounded by the budget."""
    return accuracy - 1


def flops_reward(accuracy: float, macs: float) -> float:
    """Return ``-Error * log(FLOPs)``, two FLOPs a MAC: AMC's reward for accuracy-guaranteed compression."""
    return -(1 - accuracy) * math.log(2 * macs)


def bounded_action(
    action: float, *, macs: float, later_macs: float, excess_macs: float, max_sparsity: float
) -> float:
    """Return the sparsity nearest to ``action`` from which the budget can still be met [1]_.

    Parameters
    ----------
    action : float
        What the policy wants, 0 to ``max_sparsity``.
    macs, later_macs : float
        Dense MACs of this layer, and of all that follow.
    excess_macs : float
        MACs that this layer and the later ones together must lose.
    max_sparsity : float
        Strongest action on any layer.

    References
    ----------
    .. [1] He et al., AMC, ECCV 2018, algorithm 1.
    """
    duty = excess_macs - max_sparsity * later_macs
    return min(max(action, duty / macs), max_sparsity)


def search_ratios(
    costs: Sequence[LayerCost],
    evaluate: Callable[[Mapping[str, float]], float],
    budget_macs: float,
    *,
    reward: Callable[[float, float], float] = error_reward,
    max_sparsity: float = 0.95,
    population: int = 16,
    elite: int = 4,
    iterations: int = 8,
    seed: int = 0,
) -> SearchResult:
    """Find the sparsity of each layer that gives the highest reward within a budget of MACs.

    Parameters
    ----------
    costs : sequence of LayerCost
        See :func:`layer_costs`.
    evaluate : callable
        ``evaluate(sparsity_by_weight) -> accuracy`` (0 to 1) on the validation split: prune, measure.
    budget_macs : float
        Most MACs by weights that are left.
    reward : callable
        ``reward(accuracy, macs)``; also :func:`flops_reward`.
    max_sparsity : float
        Strongest action on any layer.
    population, elite, iterations : int
        Samples an iteration; those that set the next mean and spread; rounds.

    Raises
    ------
    UsageError
        If even ``max_sparsity`` everywhere misses the budget, or a setting is out of range.
    """
    total = sum(cost.macs for cost in costs)
    if not costs or not 0 <= max_sparsity <= 1:
        raise UsageError("the search needs layers and 0 <= max_sparsity <= 1")
    if total * (1 - max_sparsity) > budget_macs:
        raise UsageError(
            f"{budget_macs:,.0f} MACs cannot be reached: with max_sparsity={max_sparsity} at least "
            f"{total * (1 - max_sparsity):,.0f} of {total:,} are left; raise the budget or max_sparsity"
        )

    def build(policy: np.ndarray) -> tuple[float, tuple[dict[str, float], float, float]]:
        ratios = rollout(costs, policy, budget_macs, max_sparsity=max_sparsity)
        macs = sum(cost.macs * (1 - ratios[cost.name]) for cost in costs)
        value = reward(evaluate(ratios), macs)
        return value, (ratios, value, macs)

    best, means = cross_entropy_search(
        build, population=population, elite=elite, iterations=iterations, seed=seed
    )
    return SearchResult(*best, means, population * iterations)


def cross_entropy_search(
    build: Callable[[np.ndarray], tuple[float, Built]],
    *,
    population: int,
    elite: int,
    iterations: int,
    seed: int,
) -> tuple[Built, tuple[float, ...]]:
    """Return what the best policy builds, and the mean reward of each iteration.

    Parameters
    ----------
    build : callable
        ``build(policy) -> (reward, what the policy stands for)``; the policy is (12,), see `rollout`.
    population, elite, iterations : int
        Samples an iteration; those that set the next mean and spread; rounds.

    Raises
    ------
    UsageError
        If a setting is out of range, or no reward is a number.
    """
    if not 1 <= elite <= population or iterations < 1:
        raise UsageError("the search needs 1 <= elite <= population and iterations >= 1")
    rng = np.random.default_rng(seed)
    mean, spread = np.zeros(_STATE_SIZE), np.full(_STATE_SIZE, 2.0)
    best: tuple[float, list[Built]] = (-math.inf, [])
    means = []
    for _ in range(iterations):
        policies = mean + spread * rng.standard_normal((population, _STATE_SIZE))
        rewards = np.empty(population)
        for i, policy in enumerate(policies):
            rewards[i], built = build(policy)
            if rewards[i] > best[0]:
                best = (float(rewards[i]), [built])
        chosen = policies[np.argsort(-rewards, kind="stable")[:elite]]
        # A floor under the spread keeps the search alive after one lucky generation.
        mean, spread = chosen.mean(0), np.maximum(chosen.std(0), 0.1)
        means.append(float(rewards.mean()))
    if not best[1]:
        raise UsageError("no reward was a number; check evaluate")
    return best[1][0], tuple(means)


def rollout(
    costs: Sequence[LayerCost], policy: np.ndarray, budget_macs: float, *, max_sparsity: float
) -> dict[str, float]:
    """Return the sparsity of each layer that a policy (12,) chooses, one layer after the other.

    The state is AMC's eq. 1: index, n, c, h, w, stride, k, MACs of the layer, MACs reduced so far, MACs in
    the layers that follow, and the last action, each scaled into 0 to 1; the twelfth entry is a constant 1.
    """
    largest = np.array([_shape(cost) for cost in costs], dtype=float).max(0)
    total = sum(cost.macs for cost in costs)
    reduced, rest, last = 0.0, float(total), 0.0
    ratios = {}
    for t, cost in enumerate(costs):
        rest -= cost.macs
        place = [t / len(costs), *(np.array(_shape(cost)) / largest)]
        state = np.array([*place, cost.macs / total, reduced / total, rest / total, last, 1.0])
        wanted = max_sparsity / (1 + math.exp(-np.clip(state @ policy, -50, 50)))
        last = bounded_action(
            wanted,
            macs=cost.macs,
            later_macs=rest,
            excess_macs=total - budget_macs - reduced,
            max_sparsity=max_sparsity,
        )
        reduced += last * cost.macs
        ratios[cost.name] = last
    return ratios


_STATE_SIZE = 12


def _shape(cost: LayerCost) -> tuple[int, ...]:
    return cost.outputs, cost.inputs, cost.height, cost.width, cost.stride, cost.kernel
