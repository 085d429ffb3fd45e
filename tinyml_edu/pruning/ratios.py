"""How much to remove from which layer: evenly, by sensitivity, by one global rank.

Searches under a budget are in :mod:`~tinyml_edu.pruning.ratio_search` (single weights) and
:mod:`~tinyml_edu.pruning.channel_search`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .fine_grained import Masks, fine_grained_prune, prunable_weights

Evaluate = Callable[[nn.Module], float]
"""Accuracy (0 to 1) of a model on the validation split; never on the test split."""


def uniform(model: nn.Module, sparsity: float) -> dict[str, float]:
    """Return the same sparsity for every weight, by parameter name."""
    return dict.fromkeys(prunable_weights(model), sparsity)


def sensitivity_scan(
    model: nn.Module,
    evaluate: Evaluate,
    sparsities: Iterable[float],
    *,
    names: Iterable[str] | None = None,
) -> dict[str, list[float]]:
    """Prune one weight at a time by magnitude and measure [1]_.

    Parameters
    ----------
    model : nn.Module
        Every weight is put back, bit for bit, also where ``evaluate`` raises.
    evaluate : callable
        ``evaluate(model) -> float``; called once for each weight and sparsity.
    sparsities : iterable of float
        0 to 1.
    names : iterable of str, optional
        Parameter names; default all convolutions and linear layers.

    Returns
    -------
    dict of str to list of float
        By parameter name, the value of ``evaluate`` at each sparsity, the other weights whole.

    References
    ----------
    .. [1] Han et al., NeurIPS 2015, section 4.1 and figure 6.  https://arxiv.org/abs/1506.02626
    """
    sparsities = list(sparsities)
    weights = prunable_weights(model)
    table: dict[str, list[float]] = {}
    for name in weights if names is None else names:
        weight = weights[name]
        whole = weight.detach().clone()
        try:
            table[name] = [_measured(model, evaluate, weight, whole, s) for s in sparsities]
        finally:
            _set(weight, whole)
    return table


def ratios_from_scan(
    scan: Mapping[str, Sequence[float]], sparsities: Sequence[float], *, least: float
) -> dict[str, float]:
    """Return for each weight the highest sparsity up to which the scan never falls below ``least``.

    Examples
    --------
    >>> ratios_from_scan({"a": [0.9, 0.8, 0.85], "b": [0.9, 0.9, 0.9]}, [0.3, 0.6, 0.9], least=0.85)
    {'a': 0.3, 'b': 0.9}
    """
    chosen = {}
    for name, values in scan.items():
        if len(values) != len(sparsities):
            raise UsageError(
                f"the scan of {name!r} has {len(values)} values for {len(sparsities)} sparsities"
            )
        chosen[name] = 0.0
        for sparsity, value in sorted(zip(sparsities, values)):
            if value < least:
                break
            chosen[name] = sparsity
    return chosen


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Return the masks that remove the lowest scores of all weights together [1]_.

    Exactly ``round(sparsity * n)`` of the ``n`` entries go (ties to even); of equal scores the one in the
    earlier weight, then at the lower flat index, goes first.

    Parameters
    ----------
    scores : mapping of str to Tensor
        By parameter name, comparable between weights; any shapes.

    References
    ----------
    .. [1] Lee et al., SNIP, ICLR 2019, algorithm 1 keeps the top of all connections.
       https://arxiv.org/abs/1810.02340
    """
    if not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity must lie between 0 and 1, got {sparsity}")
    flat = torch.cat([score.detach().flatten().double() for score in scores.values()])
    if torch.isnan(flat).any():
        raise UsageError("some scores are not numbers and cannot be ranked; check the data and the loss")
    kept = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    kept[torch.argsort(flat, stable=True)[: round(sparsity * len(flat))]] = False
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts)}


def global_magnitude(model: nn.Module, sparsity: float) -> dict[str, float]:
    """Return the sparsity of each weight, by parameter name, when the smallest of all weights go."""
    magnitudes = {name: weight.detach().abs() for name, weight in prunable_weights(model).items()}
    masks = global_masks(magnitudes, sparsity)
    return {name: int((~mask).sum()) / mask.numel() for name, mask in masks.items()}


def _measured(
    model: nn.Module, evaluate: Evaluate, weight: nn.Parameter, whole: Tensor, sparsity: float
) -> float:
    _set(weight, whole * fine_grained_prune(whole, sparsity))
    return float(evaluate(model))


@torch.no_grad()
def _set(weight: nn.Parameter, value: Tensor) -> None:
    weight.copy_(value)
