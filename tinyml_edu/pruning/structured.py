"""Structured surgery: whole channels out of a network, through everything that shares them.

`shrink` returns a smaller dense network that computes what the original computes with those channels at zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import nn

from ..errors import UnknownNameError, UsageError
from .criteria import Batches
from .dependency import ChannelGroup, Dependencies, find_dependencies
from .slimming import bn_scale
from .surgery import check_runs, cut

Criterion = Callable[..., Mapping[str, torch.Tensor]]
"""``criterion(model, batches, *, seed)`` as in `criteria`: scores by the name of the weight."""

Ranking = Literal["group", "global"]
RANKINGS = ("group", "global")


class ChannelPruner:
    """Removes channels of one network, again and again: the graph is read and the channels ranked once.

    Channels that depend on each other go together (see `dependency`): both sides of a residual add, a
    depthwise convolution and what it reads, the features of a channel after a flatten.  The importance of
    such a unit is the sum of the scores of all weights that write it, by default the L1 norm of its
    filters [1]_ [2]_; of a criterion with scores (1, I, ...), of those that read it.

    Parameters
    ----------
    model : nn.Module
        Any network that `dependency.channel_groups` can read.  It is not changed.
    example : torch.Tensor
        Input (N, C, H, W) or (N, F).
    criterion : str or callable, default="l1"
        A key of `masking.CRITERIA`, ``"bn_scale"`` (network slimming), or a function with the signature of
        `criteria`.
    batches : sequence of (x, y)
        Examples for a criterion that needs them: float (N, C, H, W) and int64 (N,).
    seed : int, default=0
        For a criterion that draws random numbers.

    Raises
    ------
    UsageError
        If a layer runs twice, or the forward pass has a number of channels written into it.
    UnsupportedOpError
        If the network has an operation that is not known here.

    References
    ----------
    .. [1] Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.  https://arxiv.org/abs/1608.08710
    .. [2] Fang et al., DepGraph, CVPR 2023.  https://arxiv.org/abs/2301.12900
    """

    def __init__(
        self,
        model: nn.Module,
        example: torch.Tensor,
        *,
        criterion: str | Criterion = "l1",
        batches: Batches = (),
        seed: int = 0,
    ) -> None:
        self.model, self.example = model, example
        self._found = find_dependencies(model, example)
        scores = _criterion(criterion)(model, batches, seed=seed)
        self._importance, self._scores_by_unit = _importance(self._found, scores)

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The groups of units that may be removed."""
        return self._found.groups

    def shrink(
        self, ratios: float | Mapping[str, float], *, ranking: Ranking = "group", multiple: int = 4
    ) -> nn.Module:
        """Return a smaller copy of the network, see `shrink`."""
        stays = self._select(ratios, ranking, multiple)
        small = copy.deepcopy(self.model)
        for layer in self._found.layers:
            cut(small.get_submodule(layer.path), layer, stays)
        if self._found.layers:
            check_runs(small, self.example)
        return small

    def kept_channels(
        self, ratios: float | Mapping[str, float], *, ranking: Ranking = "group", multiple: int = 4
    ) -> dict[str, torch.Tensor]:
        """Return the output channels that `shrink` keeps, see `kept_channels`."""
        stays = self._select(ratios, ranking, multiple)
        prunable = {path for group in self.groups for path in group.layers}
        return {
            layer.path: torch.from_numpy(np.flatnonzero(stays[layer.outputs]))
            for layer in self._found.layers
            if layer.path in prunable
        }

    def _select(self, ratios: float | Mapping[str, float], ranking: str, multiple: int) -> np.ndarray:
        """Return which labels stay, bool (labels,)."""
        if ranking not in RANKINGS:
            raise UnknownNameError("ranking", ranking, RANKINGS)
        by_group = _ratio_of_each(self.groups, ratios)
        if multiple < 1 or not all(0 <= ratio < 1 for ratio in by_group):
            raise UsageError(
                f"pruning ratios must satisfy 0 <= ratio < 1 and multiple >= 1, got {ratios}, {multiple}"
            )
        if ranking == "global":
            by_group = self._ratios_of_one_rank(ratios)
        stays = np.ones(len(self._importance), dtype=bool)
        for group, ratio in zip(self.groups, by_group):
            count = _count(len(group), ratio, _units_per_multiple(group, multiple))
            if count < len(group):
                values = self._finite(group)
                stays[group.labels[np.argsort(-values, kind="stable")[count:]]] = False
        return stays

    def _ratios_of_one_rank(self, ratios: float | Mapping[str, float]) -> list[float]:
        """Return the share of each group that goes when the units of all groups stand in one rank.

        A unit counts with the mean of its scores: one that many layers write would else stay longer.
        """
        if isinstance(ratios, Mapping):
            raise UsageError("a global ranking takes one ratio for the whole network, not one for each layer")
        if not self.groups:
            return []
        means = [self._finite(group) / self._scores_by_unit[group.labels] for group in self.groups]
        flat = np.concatenate(means)
        goes = np.zeros(len(flat), dtype=bool)
        goes[np.argsort(flat, kind="stable")[: round(ratios * len(flat))]] = True
        parts = np.split(goes, np.cumsum([len(mean) for mean in means])[:-1])
        return [float(part.mean()) for part in parts]

    def _finite(self, group: ChannelGroup) -> np.ndarray:
        """Return the importance of the group's units, (units,)."""
        values = self._importance[group.labels]
        if not np.isfinite(values).all():
            raise UsageError(
                f"the criterion gives no finite score to {int((~np.isfinite(values)).sum())} channels of "
                f"{', '.join(group.layers)}; check the weights, or use another criterion"
            )
        return values


def shrink(
    model: nn.Module,
    example: torch.Tensor,
    ratios: float | Mapping[str, float],
    *,
    criterion: str | Criterion = "l1",
    batches: Batches = (),
    seed: int = 0,
    ranking: Ranking = "group",
    multiple: int = 4,
) -> nn.Module:
    """Return a copy of ``model`` with its least important channels removed.

    Parameters
    ----------
    model, example, criterion, batches, seed
        See `ChannelPruner`.
    ratios : float or mapping of str to float
        Share of channels to remove, ``0 <= ratio < 1``: of every group, or by the path of any layer of a
        group (``"features.0.conv"``), the other groups staying whole.
    ranking : {"group", "global"}
        "global" ranks the channels of all groups together by the mean of their scores; the ratio is then
        that of the whole network.  With ``criterion="bn_scale"`` this is network slimming [1]_.
    multiple : int, default=4
        Where channels are removed, the number kept is rounded to a multiple of this, at least one of it.

    Returns
    -------
    nn.Module
        Of the same class, with fewer channels, in the mode of ``model``.

    Raises
    ------
    UsageError
        Also if a ratio is out of range, a path is not one of the layers, or a channel has no finite score.

    Notes
    -----
    The result equals ``model`` with the removed channels set to zero where they are read, up to the order of
    float sums.  A grouped convolution loses the same positions in each of its groups.

    References
    ----------
    .. [1] Liu et al., Network Slimming, ICCV 2017, section 3.3.  https://arxiv.org/abs/1708.06519
    """
    pruner = ChannelPruner(model, example, criterion=criterion, batches=batches, seed=seed)
    return pruner.shrink(ratios, ranking=ranking, multiple=multiple)


def kept_channels(
    model: nn.Module,
    example: torch.Tensor,
    ratios: float | Mapping[str, float],
    *,
    criterion: str | Criterion = "l1",
    batches: Batches = (),
    seed: int = 0,
    ranking: Ranking = "group",
    multiple: int = 4,
) -> dict[str, torch.Tensor]:
    """Return the output channels that `shrink` keeps: int64, ascending, by the path of the layer.

    Only layers with a channel that could go are listed, in execution order.
    """
    pruner = ChannelPruner(model, example, criterion=criterion, batches=batches, seed=seed)
    return pruner.kept_channels(ratios, ranking=ranking, multiple=multiple)


def _criterion(criterion: str | Criterion) -> Criterion:
    if callable(criterion):
        return criterion
    from .masking import CRITERIA

    known = {**CRITERIA, "bn_scale": bn_scale}
    if criterion not in known:
        raise UnknownNameError("criterion", criterion, known)
    return known[criterion]


def _importance(found: Dependencies, scores: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return by label the summed score of each unit, NaN where nothing scores it, and how many it sums."""
    labels = max((int(x.max()) for n in found.layers for x in (n.inputs, n.outputs)), default=-1) + 1
    total, count = np.zeros(labels), np.zeros(labels, dtype=np.int64)
    reads = all(score.shape[0] == 1 for score in scores.values())
    for layer in found.layers:
        score = scores.get(f"{layer.path}.weight")
        if score is None:
            continue
        by_channel = score.detach().cpu().double()
        by_channel = by_channel.transpose(0, 1) if reads else by_channel
        by_channel = by_channel.reshape(len(by_channel), -1).sum(1)
        channels = layer.inputs if reads else layer.outputs
        if len(by_channel) != len(channels):
            raise UsageError(
                f"the criterion gives {layer.path!r} scores of shape {tuple(score.shape)}, not "
                f"one for each of {len(channels)} channels; see pruning.criteria for the shapes"
            )
        np.add.at(total, channels, by_channel.numpy())
        np.add.at(count, channels, 1)
    return np.where(count > 0, total, np.nan), count


def _ratio_of_each(groups: tuple[ChannelGroup, ...], ratios: float | Mapping[str, float]) -> list[float]:
    if not isinstance(ratios, Mapping):
        return [ratios] * len(groups)
    known = dict.fromkeys(path for group in groups for path in group.layers)
    for path in ratios:
        if path not in known:
            raise UnknownNameError("prunable layer", path, known)
    chosen = []
    for group in groups:
        asked = {ratios[path] for path in group.layers if path in ratios}
        if len(asked) > 1:
            raise UsageError(
                f"layers {', '.join(group.layers)} share their channels but have different ratios "
                f"{sorted(asked)}; name one of them"
            )
        chosen.append(asked.pop() if asked else 0.0)
    return chosen


def _units_per_multiple(group: ChannelGroup, multiple: int) -> int:
    """Return how many units hold a multiple of ``multiple`` channels in every layer."""
    channels = math.gcd(*(members.shape[1] for members in group.members.values()))
    return multiple // math.gcd(multiple, channels)


def _count(channels: int, ratio: float, multiple: int) -> int:
    """Return how many of ``channels`` stay.

    Examples
    --------
    >>> _count(32, 0.5, 4), _count(32, 0.45, 4), _count(32, 0.99, 4), _count(10, 0.0, 4)
    (16, 16, 4, 10)
    """
    if ratio == 0:
        return channels
    return min(channels, multiple * max(1, math.floor(channels * (1 - ratio) / multiple + 0.5)))
