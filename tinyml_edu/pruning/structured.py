"""Structured surgery: whole channels out of a network, through everything that shares them.

`shrink` returns a smaller dense network that computes what the original computes with those channels at zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from .._modes import evaluating
from ..errors import UnknownNameError, UsageError
from .criteria import Batches
from .dependency import ChannelGroup, Dependencies, Layer, find_dependencies

Criterion = Callable[..., Mapping[str, torch.Tensor]]
"""``criterion(model, batches, *, seed)`` as in `criteria`: scores by the name of the weight."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def shrink(
    model: nn.Module,
    example: torch.Tensor,
    ratios: float | Mapping[str, float],
    *,
    criterion: str | Criterion = "l1",
    batches: Batches = (),
    seed: int = 0,
    multiple: int = 4,
) -> nn.Module:
    """Return a copy of ``model`` with its least important channels removed.

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
    ratios : float or mapping of str to float
        Share of channels to remove, ``0 <= ratio < 1``: of every group, or by the path of any layer of a
        group (``"features.0.conv"``), the other groups staying whole.
    criterion : str or callable, default="l1"
        A key of `masking.CRITERIA`, or a function with the signature of `criteria`.
    batches : sequence of (x, y)
        Examples for a criterion that needs them: float (N, C, H, W) and int64 (N,).
    seed : int, default=0
        For a criterion that draws random numbers.
    multiple : int, default=4
        Where channels are removed, the number kept is rounded to a multiple of this, at least one of it.

    Returns
    -------
    nn.Module
        Of the same class, with fewer channels, in the mode of ``model``.

    Raises
    ------
    UsageError
        If a ratio is out of range, a path is not one of the layers, a channel has no finite score, a layer
        runs twice, or the forward pass has a number of channels written into it.
    UnsupportedOpError
        If the network has an operation that is not known here.

    Notes
    -----
    The result equals ``model`` with the removed channels set to zero where they are read, up to the order of
    float sums.  A grouped convolution loses the same positions in each of its groups.

    References
    ----------
    .. [1] Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.  https://arxiv.org/abs/1608.08710
    .. [2] Fang et al., DepGraph, CVPR 2023.  https://arxiv.org/abs/2301.12900
    """
    found = find_dependencies(model, example)
    scores = _criterion(criterion)(model, batches, seed=seed)
    stays = _select(found, ratios, scores, multiple)
    small = copy.deepcopy(model)
    for layer in found.layers:
        _cut(small.get_submodule(layer.path), layer, stays)
    if found.layers:
        _check_runs(small, example)
    return small


def kept_channels(
    model: nn.Module,
    example: torch.Tensor,
    ratios: float | Mapping[str, float],
    *,
    criterion: str | Criterion = "l1",
    batches: Batches = (),
    seed: int = 0,
    multiple: int = 4,
) -> dict[str, torch.Tensor]:
    """Return the output channels that `shrink` keeps: int64, ascending, by the path of the layer.

    Only layers with a channel that could go are listed, in execution order.
    """
    found = find_dependencies(model, example)
    scores = _criterion(criterion)(model, batches, seed=seed)
    stays = _select(found, ratios, scores, multiple)
    prunable = {path for group in found.groups for path in group.layers}
    return {
        layer.path: torch.from_numpy(np.flatnonzero(stays[layer.outputs]))
        for layer in found.layers
        if layer.path in prunable
    }


def _select(
    found: Dependencies,
    ratios: float | Mapping[str, float],
    scores: Mapping[str, torch.Tensor],
    multiple: int,
) -> np.ndarray:
    """Return which labels stay, bool (labels,)."""
    by_group = _ratio_of_each(found.groups, ratios)
    if multiple < 1 or not all(0 <= ratio < 1 for ratio in by_group):
        raise UsageError(
            f"pruning ratios must satisfy 0 <= ratio < 1 and multiple >= 1, got {ratios}, {multiple}"
        )
    importance = _importance(found, scores)
    stays = np.ones(len(importance), dtype=bool)
    for group, ratio in zip(found.groups, by_group):
        count = _count(len(group), ratio, _units_per_multiple(group, multiple))
        if count < len(group):
            values = importance[group.labels]
            if not np.isfinite(values).all():
                raise UsageError(
                    f"the criterion gives no finite score to {int((~np.isfinite(values)).sum())} channels of "
                    f"{', '.join(group.layers)}; check the weights, or use another criterion"
                )
            stays[group.labels[np.argsort(-values, kind="stable")[count:]]] = False
    return stays


def _criterion(criterion: str | Criterion) -> Criterion:
    if callable(criterion):
        return criterion
    from .masking import CRITERIA

    if criterion not in CRITERIA:
        raise UnknownNameError("criterion", criterion, CRITERIA)
    return CRITERIA[criterion]


def _importance(found: Dependencies, scores: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return the importance of each unit by its label, (labels,); NaN where nothing scores it."""
    labels = max((int(x.max()) for n in found.layers for x in (n.inputs, n.outputs)), default=-1) + 1
    total, scored = np.zeros(labels), np.zeros(labels, dtype=bool)
    reads = all(score.shape[0] == 1 for score in scores.values())
    for layer in found.layers:
        score = scores.get(f"{layer.path}.weight")
        if score is None:
            continue
        by_channel = score.detach().cpu().double()
        by_channel = by_channel.transpose(0, 1).flatten(1).sum(1) if reads else by_channel.flatten(1).sum(1)
        channels = layer.inputs if reads else layer.outputs
        if len(by_channel) != len(channels):
            raise UsageError(
                f"the criterion gives {layer.path!r} scores of shape {tuple(score.shape)}, not "
                f"one for each of {len(channels)} channels; see pruning.criteria for the shapes"
            )
        np.add.at(total, channels, by_channel.numpy())
        scored[channels] = True
    return np.where(scored, total, np.nan)


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


def _cut(module: nn.Module, layer: Layer, stays: np.ndarray) -> None:
    """Remove from one module the channels that do not stay, in place."""
    inputs, outputs = (torch.from_numpy(np.flatnonzero(stays[x])) for x in (layer.inputs, layer.outputs))
    if len(outputs) < len(layer.outputs):
        keep_outputs(module, outputs)
    if len(inputs) < len(layer.inputs) and layer.op != "BATCH_NORM":
        keep_inputs(module, inputs)


def keep_outputs(module: nn.Module, index: torch.Tensor) -> None:
    """Reduce a Conv2d, Linear or batch norm to the output channels ``index`` (O',), in this order."""
    names = ("weight", "bias", "running_mean", "running_var")
    for name in names if isinstance(module, _NORMS) else names[:2]:
        value = getattr(module, name)
        if isinstance(value, nn.Parameter):
            setattr(module, name, _parameter(value[index.to(value.device)], value))
        elif value is not None:
            setattr(module, name, value[index.to(value.device)].clone())
    if isinstance(module, nn.Conv2d):
        module.out_channels = len(index)
    elif isinstance(module, nn.Linear):
        module.out_features = len(index)
    elif isinstance(module, _NORMS):
        module.num_features = len(index)


def keep_inputs(module: nn.Module, index: torch.Tensor) -> None:
    """Reduce a Conv2d or Linear to the input channels ``index`` (I',), in this order.

    A depthwise convolution loses the groups of the other channels; its outputs are cut by `keep_outputs`.  In
    another grouped convolution ``index`` holds the same positions of every group.
    """
    weight = module.get_parameter("weight")
    index = index.to(weight.device)
    if isinstance(module, nn.Linear):
        module.weight, module.in_features = _parameter(weight[:, index], weight), len(index)
        return
    assert isinstance(module, nn.Conv2d)
    if weight.shape[1] == 1 < module.groups:
        module.groups = len(index)
    else:
        columns = index[index < weight.shape[1]]  # the positions within the first group
        module.weight = _parameter(weight[:, columns], weight)
    module.in_channels = len(index)


def _parameter(value: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _check_runs(model: nn.Module, example: torch.Tensor) -> None:
    """Run the cut network once: its Python code may hold the old number of channels."""
    like = next(model.parameters())
    examples = example if isinstance(example, tuple) else (example,)
    try:
        with evaluating(model), torch.no_grad():
            model(*(x[:1].to(like.device, like.dtype) for x in examples))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the forward pass of {type(model).__name__} fixes a number of channels ({reason}); "
            "write x.flatten(1) instead of a view with that number"
        ) from error
