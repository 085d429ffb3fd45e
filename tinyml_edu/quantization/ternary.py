"""Weights of three values: ternary weight networks, and trained ternary quantization.

Both work as a parametrization of a layer's weight: the optimizer sees real weights, the layer ternary ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .checking import require_tensor


class Ternary(NamedTuple):
    """A ternary tensor, ``scale * codes``.

    Attributes
    ----------
    codes : Tensor
        int8, of the shape of the weight: -1, 0, 1.
    scale, threshold : Tensor
        float32, broadcastable to the weight: one value, or one for each output channel.  A weight with
        ``|w| > threshold`` has a code that is not 0.
    """

    codes: Tensor
    scale: Tensor
    threshold: Tensor

    def dequantize(self) -> Tensor:
        """Return ``scale * codes`` in float32."""
        return self.scale * self.codes


def twn(weight: Tensor, *, per_channel: bool = False, exact: bool = False) -> Ternary:
    """Return the ternary form of a weight: ternary weight networks [1]_.

    Parameters
    ----------
    weight : Tensor
        (O, ...), not changed.
    per_channel : bool, default=False
        One threshold and scale for each output channel, else one for the tensor.
    exact : bool, default=False
        Search the threshold with the least squared error, instead of the paper's ``0.7 * mean |w|``.

    Raises
    ------
    UsageError
        If the weight is empty or not finite.

    Notes
    -----
    For a given set of codes the scale with the least ``||w - scale * codes||`` is the mean ``|w|`` of the
    weights whose code is not 0; the squared error is then ``||w||**2 - S_k**2 / k``, ``S_k`` the sum of the
    ``k`` magnitudes above the threshold.  Only sets of the ``k`` largest can be best, so that ``exact`` tries
    each ``k``.  0.7 lies between the best factors for uniform (2/3) and Gaussian (about 3/4) weights.

    References
    ----------
    .. [1] Li et al., Ternary Weight Networks, 2016, section 2.  https://arxiv.org/abs/1605.04711

    Examples
    --------
    >>> codes, scale, threshold = twn(torch.tensor([[1.0, -3.0, 0.5, 2.0]]))
    >>> codes.tolist(), float(scale), round(float(threshold), 4)
    ([[0, -1, 0, 1]], 2.5, 1.1375)
    """
    require_tensor(weight, "the weight")
    if weight.numel() == 0 or not torch.isfinite(weight).all():
        raise UsageError("the weight is empty or not finite; check the training that made it")
    if per_channel and weight.ndim == 0:
        raise UsageError("a single number has no output channels; use per_channel=False")
    magnitude = weight.detach().float().abs()
    rows = magnitude.reshape(len(weight) if per_channel else 1, -1)
    threshold = _best_threshold(rows) if exact else 0.7 * rows.mean(dim=1, keepdim=True)
    kept = rows > threshold
    scale = (rows * kept).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp(min=1)
    codes = (kept.reshape(weight.shape) * weight.detach().sign()).to(torch.int8)
    shape = (-1, *[1] * (weight.ndim - 1))
    return Ternary(codes, scale.reshape(shape), threshold.reshape(shape))


def _best_threshold(rows: Tensor) -> Tensor:
    """Return the threshold (rows, 1) with the least squared error of each row of magnitudes (rows, n)."""
    ordered = rows.double().sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    gain = ordered.cumsum(dim=1) ** 2 / counts
    following = torch.cat([ordered[:, 1:], torch.zeros_like(ordered[:, :1])], dim=1)
    # A threshold cannot part equal magnitudes.  Nor would the best set: along a run of them the gain is
    # convex (a square over a line), so that an end of the run is no worse.
    gain[(following == ordered) & (counts < rows.shape[1])] = -1.0
    best = gain.argmax(dim=1, keepdim=True)
    return following.gather(1, best).float()


class TWN(nn.Module):
    """Parametrization: a weight as :func:`twn` of itself, with the identity as gradient.

    Examples
    --------
    >>> layer = nn.utils.parametrize.register_parametrization(nn.Linear(8, 4), "weight", TWN())
    >>> len(layer.weight.unique()) <= 3
    True
    """

    def __init__(self, *, per_channel: bool = False) -> None:
        super().__init__()
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        ternary = twn(weight, per_channel=self.per_channel).dequantize().to(weight.dtype)
        return weight + (ternary - weight).detach()


class _TrainedTernary(torch.autograd.Function):
    """Forward and backward of `TTQ`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, positive: Tensor, negative: Tensor, factor: float) -> Tensor:
        threshold = factor * weight.abs().max()
        above, below = weight > threshold, weight < -threshold
        ctx.save_for_backward(above, below, positive, negative)
        return above * positive - below * negative

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        above, below, positive, negative = ctx.saved_tensors
        gradient = gradients[0]
        factor = torch.where(above, positive, torch.where(below, negative, torch.ones_like(positive)))
        return gradient * factor, (gradient * above).sum(), -(gradient * below).sum(), None


class TTQ(nn.Module):
    """Parametrization: weights ``+W_p``, 0 and ``-W_n`` with both scales trained [1]_.

    Parameters
    ----------
    weight : Tensor
        The layer's real weights; each scale starts at the mean magnitude of its side.
    threshold : float, default=0.05
        Weights up to ``threshold * max |w|`` are 0: the paper's t, eq. (9).

    Attributes
    ----------
    positive, negative : nn.Parameter
        ``W_p`` and ``W_n``, shape ().

    Raises
    ------
    UsageError
        If the threshold lies outside 0 to 1, or the weights are not finite.

    Notes
    -----
    With the gradient ``g`` of the ternary weights, eq. (7) and (8): ``W_p`` gets the sum of ``g`` over the
    positive weights; ``W_n`` minus that over the negative ones (they hold ``-W_n``; the paper leaves the sign
    out); a real weight gets ``W_p g``, ``g`` or ``W_n g``, as it lies above, between or below the thresholds.

    The gradients of the scales are sums over the layer, far larger than those of its weights: train with an
    optimizer that normalises each, such as AdamW.  ``nn.utils.parametrize.remove_parametrizations(layer,
    "weight")`` then leaves a plain layer with the ternary values.

    References
    ----------
    .. [1] Zhu et al., Trained Ternary Quantization, ICLR 2017.  https://arxiv.org/abs/1612.01064

    Examples
    --------
    >>> layer = nn.Linear(8, 4)
    >>> _ = nn.utils.parametrize.register_parametrization(layer, "weight", TTQ(layer.weight))
    >>> len(layer.weight.unique()) <= 3, len(list(layer.parameters()))
    (True, 4)
    """

    def __init__(self, weight: Tensor, threshold: float = 0.05) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise UsageError(f"the threshold is a share of the largest weight, 0 to 1, got {threshold}")
        if weight.numel() == 0 or not torch.isfinite(weight).all():
            raise UsageError("the weight is empty or not finite; check the training that made it")
        self.threshold = threshold
        values = weight.detach()
        limit = threshold * values.abs().max()
        self.positive = nn.Parameter(_mean_or_zero(values[values > limit]))
        self.negative = nn.Parameter(_mean_or_zero(-values[values < -limit]))

    def forward(self, weight: Tensor) -> Tensor:
        return cast(Tensor, _TrainedTernary.apply(weight, self.positive, self.negative, self.threshold))


def _mean_or_zero(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()
