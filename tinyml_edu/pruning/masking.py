"""``prune(model, config)``: a criterion, a granularity, ratios and a schedule, put together."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..errors import UnknownNameError, UsageError
from . import activation_criteria, criteria
from .criteria import Batches, Criterion, Scores
from .fine_grained import Masks, apply_masks, prunable_weights, sparsity_by_weight
from .granularity import GRANULARITIES
from .ratios import global_masks
from .schedules import SCHEDULES, Train

CRITERIA: dict[str, Criterion] = {
    "l1": criteria.l1,
    "l2": criteria.l2,
    "taylor": criteria.taylor,
    "obd": criteria.obd,
    "snip": criteria.snip,
    "grasp": criteria.grasp,
    "synflow": criteria.synflow,
    "apoz": activation_criteria.apoz,
    "activation_entropy": activation_criteria.activation_entropy,
    "reconstruction": activation_criteria.reconstruction,
    "random": criteria.random,
}

_GRANULARITY_OF: dict[str, str] = {
    "apoz": "channel",
    "activation_entropy": "channel",
    "reconstruction": "input_channel",
}
"""Criteria that score whole channels, with the only granularity that they can rank."""


@dataclass(frozen=True)
class PruneConfig:
    """What to remove, and in which steps.

    Attributes
    ----------
    criterion : str
        A name in ``CRITERIA``.
    granularity : str
        A name in ``GRANULARITIES``.  "channel" spares the last weight, whose outputs are the classes, and
        "input_channel" the first, whose inputs are the colours.
    sparsity : float or mapping of str to float
        Share to remove (0 to 1): of every weight, or by parameter name, the others staying whole.  With
        ``ratios="global"`` of all weights together.
    ratios : {"given", "global"}
        "given" ranks within each weight; "global" ranks all single weights of the network together.
    schedule : str
        A name in ``SCHEDULES``: how the sparsity rises over the steps.
    steps : int
        Times to score and prune, with training after each.
    skip : tuple of str
        Parameter names that stay whole.
    seed : int
        Of criteria that draw.
    """

    criterion: str = "l1"
    granularity: str = "element"
    sparsity: float | Mapping[str, float] = 0.5
    ratios: Literal["given", "global"] = "given"
    schedule: str = "one_shot"
    steps: int = 1
    skip: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("criterion", self.criterion, CRITERIA),
            ("granularity", self.granularity, GRANULARITIES),
            ("ratios", self.ratios, ("given", "global")),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        needed = _GRANULARITY_OF.get(self.criterion, self.granularity)
        if needed != self.granularity:
            raise UsageError(f"criterion {self.criterion!r} ranks channels; use granularity={needed!r}")
        if self.ratios == "global" and (self.granularity != "element" or isinstance(self.sparsity, Mapping)):
            raise UsageError("ratios='global' needs granularity='element' and one number as sparsity")
        if self.steps < 1:
            raise UsageError(f"pruning needs steps >= 1, got {self.steps}")
        if self.granularity == "pattern" and self.steps > 1:
            raise UsageError("a smaller pattern need not lie within a larger one; use steps=1 with patterns")


@dataclass(frozen=True)
class PruneResult:
    """A pruned network and the masks that keep it so.

    Attributes
    ----------
    model : nn.Module
        A copy of the network with the removed weights at zero, in its original mode.
    masks : dict of str to Tensor
        bool, by parameter name, True where a weight stays.
    sparsity_by_weight : dict of str to float
        Share of removed weights, 0 to 1.
    removed_weights, prunable_weights : int
        Counts of single weights, over all masks and over all convolutions and linear layers.
    """

    model: nn.Module
    masks: Masks
    sparsity_by_weight: dict[str, float]
    removed_weights: int
    prunable_weights: int

    @property
    def sparsity(self) -> float:
        """Share of removed weights (0 to 1) in all convolutions and linear layers."""
        return self.removed_weights / self.prunable_weights

    def after_step(self, model: nn.Module) -> None:
        """Put removed weights back to zero; for ``train.fit(result.model, ..., after_step=...)``."""
        apply_masks(model, self.masks)


def prune(
    model: nn.Module,
    config: PruneConfig | None = None,
    *,
    batches: Batches = (),
    train: Train | None = None,
) -> PruneResult:
    """Return a copy of ``model`` with its least important weights at zero.

    Parameters
    ----------
    model : nn.Module
        It is not changed.
    config : PruneConfig, optional
        Default: half of each weight, by magnitude, at once.
    batches : sequence of (Tensor, Tensor)
        ``x`` (N, C, H, W) and ``y`` (N,) for criteria that need data.
    train : callable, optional
        ``train(model, after_step)``, called after each step.  Without it the steps only differ where a
        criterion depends on the other weights.

    Returns
    -------
    PruneResult

    Raises
    ------
    UsageError
        If a setting is out of range or the criterion needs data.
    UnknownNameError
        If a name is not a weight of the model.

    Examples
    --------
    >>> result = prune(nn.Linear(4, 2), PruneConfig(sparsity=0.75))
    >>> result.removed_weights, result.prunable_weights, result.sparsity
    (6, 8, 0.75)
    """
    config = config or PruneConfig()
    targets = _targets(model, config)
    pruned = copy.deepcopy(model)
    masks: Masks = {}
    for step in range(config.steps):
        now = {
            name: SCHEDULES[config.schedule](target, config.steps)[step] for name, target in targets.items()
        }
        masks = _choose(pruned, config, now, batches, masks)
        apply_masks(pruned, masks)
        if train is not None:
            train(pruned, functools.partial(apply_masks, masks=masks))
    pruned.train(model.training)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    return PruneResult(pruned, masks, sparsity_by_weight(masks), removed, total)


def _targets(model: nn.Module, config: PruneConfig) -> dict[str, float]:
    """Return the final sparsity of each weight that is to be pruned."""
    names = list(prunable_weights(model))
    given = config.sparsity if isinstance(config.sparsity, Mapping) else dict.fromkeys(names, config.sparsity)
    for name in (*given, *config.skip):
        if name not in names:
            raise UnknownNameError("weight", name, names)
    for sparsity in given.values():
        if not 0 <= sparsity <= 1:
            raise UsageError(f"sparsity must lie between 0 and 1, got {sparsity}")
    spared = {"channel": names[-1:], "input_channel": names[:1]}.get(config.granularity, [])
    if isinstance(config.sparsity, Mapping):
        spared = []
    return {name: s for name, s in given.items() if name not in (*spared, *config.skip)}


def _choose(
    model: nn.Module, config: PruneConfig, sparsity: Mapping[str, float], batches: Batches, before: Masks
) -> Masks:
    """Return masks of the given sparsities; what was removed before ranks last."""
    scores = CRITERIA[config.criterion](model, batches, seed=config.seed)
    ranked = {name: _full(model, scores, name, config.criterion) for name in sparsity}
    # Below every other score, so that what was removed stays removed; finite, so that units have sums.
    floor = -1.0 - sum(float(score.abs().sum()) for score in ranked.values())
    for name, mask in before.items():
        ranked[name] = ranked[name].masked_fill(~mask, floor)
    if config.ratios == "global" and sparsity:
        return global_masks(ranked, next(iter(sparsity.values())))
    function: Callable[[Tensor, float], Tensor] = GRANULARITIES[config.granularity]
    return {name: function(ranked[name], share) for name, share in sparsity.items()}


def _full(model: nn.Module, scores: Scores, name: str, criterion: str) -> Tensor:
    """Return scores of the weight's shape, float64."""
    weight = model.get_parameter(name)
    if name not in scores:
        raise UsageError(f"criterion {criterion!r} has no score for {name!r}; add it to skip")
    return scores[name].double().to(weight.device).expand(weight.shape)
