"""Network slimming: train with a penalty on the scales of batch norms, then remove the smallest channels.

``train.fit(model, ..., loss=slimming_loss(model))``, then
``shrink(model, example, 0.5, criterion="bn_scale", ranking="global")``.

References
----------
.. [1] Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
   https://arxiv.org/abs/1708.06519
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .criteria import Batches, Scores


def slimming_loss(model: nn.Module, coefficient: float = 1e-4) -> Callable[..., Tensor]:
    """Return the loss of network slimming, for ``train.fit(..., loss=...)`` (eq. 1 of [1]_ above).

    ``cross_entropy + coefficient * sum |gamma|`` over the scales of all batch norms: what a channel does not
    need decays to zero while the network trains.
    """
    scales = list(batch_norm_scales(model).values())

    def loss(logits: Tensor, x: Tensor, y: Tensor, indices: Tensor) -> Tensor:  # noqa: ARG001
        penalty = torch.stack([scale.abs().sum() for scale in scales]).sum()
        return F.cross_entropy(logits, y) + coefficient * penalty

    return loss


def bn_scale(model: nn.Module, batches: Batches = (), *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score channels by ``|gamma|`` (C,) of their batch norms, by the name of its weight.

    Scores of whole channels, for `structured.shrink` alone.
    """
    return {f"{path}.weight": scale.detach().abs() for path, scale in batch_norm_scales(model).items()}


def batch_norm_scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the scales (C,) of the batch norms by module path."""
    scales = {
        path: module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None
    }
    if not scales:
        raise UsageError("network slimming needs batch norms with scales, and the model has none")
    return scales
