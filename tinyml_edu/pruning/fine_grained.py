"""Single weights out of a tensor, and masks that survive the optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import UnknownNameError, UsageError


def fine_grained_prune(tensor: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return the mask that removes the smallest weights of a tensor [1]_.

    Parameters
    ----------
    tensor : torch.Tensor
        Weights of any shape; they are not changed.
    sparsity : float
        Share of weights to remove, 0 to 1.

    Returns
    -------
    torch.Tensor
        bool, of the same shape, True where a weight stays.  Exactly ``round(sparsity * n)`` (ties to even) of
        the ``n`` entries are False; of equal magnitudes the one with the lower flat index goes first.

    References
    ----------
    .. [1] Han et al., Learning both Weights and Connections, NeurIPS 2015.  https://arxiv.org/abs/1506.02626

    Examples
    --------
    >>> fine_grained_prune(torch.tensor([3.0, -1.0, 1.0, -2.0]), 0.5)
    tensor([ True, False, False,  True])
    """
    if not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity must lie between 0 and 1, got {sparsity}")
    if not torch.isfinite(tensor).all():
        raise UsageError("the tensor holds values that are not finite; their magnitudes cannot be ranked")
    removed = round(sparsity * tensor.numel())
    order = torch.argsort(tensor.detach().abs().flatten(), stable=True)
    mask = torch.ones(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[order[:removed]] = False
    return mask.reshape(tensor.shape)


Masks = dict[str, torch.Tensor]
"""Parameter name (``"features.0.conv.weight"``) to a bool tensor of its shape, True where a weight stays."""


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of all convolutions and linear layers by parameter name, in the model's order.

    Shapes are (O, I / groups, KH, KW) and (O, I); biases and batch norms are not pruned.
    """
    return {
        f"{path}.weight" if path else "weight": module.get_parameter("weight")
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the weights under False to zero, in place, on whatever device the model is."""
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        weight.masked_fill_(~mask.to(weight.device), 0.0)


def sparsity_by_weight(masks: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the share of removed weights (0 to 1) of each mask."""
    return {name: 1 - int(mask.sum()) / mask.numel() for name, mask in masks.items()}


class FineGrainedPruner:
    """Holds one mask for each weight, and puts the removed weights back to zero when asked.

    An optimizer moves a removed weight away from zero again, for its gradient and momentum are not zero.  So
    the masks are applied after every step: ``train.fit(..., after_step=pruner.after_step)``.

    Parameters
    ----------
    model : nn.Module
        Its weights decide the masks and are not changed before :meth:`apply`.
    sparsity : float or mapping of str to float
        Share to remove of every weight, or by parameter name, the others staying whole.

    Attributes
    ----------
    masks : dict of str to Tensor
        bool, by parameter name, see :func:`fine_grained_prune`.

    Raises
    ------
    UsageError
        If a sparsity is not between 0 and 1.
    UnknownNameError
        If a name is not a weight of a convolution or linear layer.
    """

    def __init__(self, model: nn.Module, sparsity: float | Mapping[str, float]) -> None:
        weights = prunable_weights(model)
        if not isinstance(sparsity, Mapping):
            sparsity = dict.fromkeys(weights, sparsity)
        for name in sparsity:
            if name not in weights:
                raise UnknownNameError("weight", name, weights)
        self.model = model
        self.masks: Masks = {name: fine_grained_prune(weights[name], s) for name, s in sparsity.items()}

    def apply(self, model: nn.Module | None = None) -> None:
        """Set the removed weights of ``model``, by default the one given at first, to zero in place."""
        apply_masks(self.model if model is None else model, self.masks)

    def after_step(self, model: nn.Module) -> None:
        """Hook for :func:`tinyml_edu.train.fit`: the same as :meth:`apply`."""
        self.apply(model)

    def sparsity_by_weight(self) -> dict[str, float]:
        """Return the share of removed weights (0 to 1) by parameter name."""
        return sparsity_by_weight(self.masks)
