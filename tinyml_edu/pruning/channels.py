"""Channel pruning of a chain of convolutions, by position: the vocabulary of Lab 1.

`channel_prune` keeps the first channels of each convolution and `apply_channel_sorting` puts the important
ones first.  `structured.shrink` does both at once, on networks that are no chain.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from ..errors import UsageError
from .surgery import keep_inputs, keep_outputs

ModelT = TypeVar("ModelT", bound=nn.Module)


def get_num_channels_to_keep(channels: int, prune_ratio: float) -> int:
    """Return how many of ``channels`` stay: ``round(channels * (1 - prune_ratio))``, at least 1.

    Python rounds a half to even.

    Raises
    ------
    UsageError
        If ``prune_ratio`` is outside 0 to 1.

    Examples
    --------
    >>> get_num_channels_to_keep(64, 0.3), get_num_channels_to_keep(5, 0.5), get_num_channels_to_keep(4, 1.0)
    (45, 2, 1)
    """
    if not 0 <= prune_ratio <= 1:
        raise UsageError(f"a pruning ratio lies between 0 and 1, got {prune_ratio}")
    return max(1, round(channels * (1 - prune_ratio)))


def channel_prune(model: ModelT, prune_ratio: float | Sequence[float]) -> ModelT:
    """Return a copy of ``model`` in which each convolution but the last keeps its first channels only.

    Parameters
    ----------
    model : nn.Module
        Its ``backbone`` or ``features``, else the module itself, nests ``nn.Sequential`` and holds the
        convolutions, each with at most its batch norms and layers without parameters behind it.
    prune_ratio : float or sequence of float
        Share of channels to remove, one for all or one for each convolution but the last: the last one's
        channels are read by the classifier and stay.

    Raises
    ------
    UsageError
        If the backbone is no such chain, or the number of ratios is not that of its convolutions less 1.
    """
    model = copy.deepcopy(model)
    links = _links(model)
    ratios = list(prune_ratio) if isinstance(prune_ratio, Sequence) else [prune_ratio] * len(links)
    if len(ratios) != len(links):
        raise UsageError(
            f"{len(links) + 1} convolutions need {len(links)} pruning ratios, one for each but the last; "
            f"got {len(ratios)}"
        )
    for (writers, reader), ratio in zip(links, ratios):
        _take(writers, reader, torch.arange(get_num_channels_to_keep(reader.in_channels, ratio)))
    return model


def get_input_channel_importance(weight: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm of the weights (O, I, KH, KW) that read each input channel, (I,)."""
    return weight.detach().transpose(0, 1).flatten(1).norm(dim=1)


def apply_channel_sorting(model: ModelT) -> ModelT:
    """Return a copy of ``model`` with each convolution's channels in falling order of importance.

    The importance of a channel is `get_input_channel_importance` of the convolution that reads it; equal ones
    keep their order.  The outputs do not change, up to the order of float sums.  Parameters and errors are
    those of `channel_prune`; the last convolution's channels keep their places.
    """
    model = copy.deepcopy(model)
    for writers, reader in _links(model):
        importance = get_input_channel_importance(reader.weight)
        _take(writers, reader, torch.argsort(importance, descending=True, stable=True))
    return model


def _take(writers: list[nn.Module], reader: nn.Conv2d, index: torch.Tensor) -> None:
    for module in writers:
        keep_outputs(module, index)
    keep_inputs(reader, index)


def _links(model: nn.Module) -> list[tuple[list[nn.Module], nn.Conv2d]]:
    """Return (a convolution and its batch norms, the convolution that reads them), in order."""
    backbone = getattr(model, "backbone", getattr(model, "features", model))
    runs: list[list[nn.Module]] = []
    for module in backbone.modules():
        if list(module.children()):
            if not isinstance(module, nn.Sequential):
                raise UsageError(
                    f"channel_prune needs a chain of layers in nn.Sequential, found {type(module).__name__}; "
                    "use pruning.shrink(model, example, ratio), which follows the graph"
                )
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            runs.append([module])
        elif isinstance(module, nn.BatchNorm2d) and runs:
            runs[-1].append(module)
        elif next(module.parameters(), None) is not None:
            raise UsageError(
                f"channel_prune knows Conv2d of one group and BatchNorm2d behind it, found {module}; use "
                "pruning.shrink(model, example, ratio), which follows the graph"
            )
    return [(writers, readers[0]) for writers, readers in itertools.pairwise(runs)]  # type: ignore[misc]
