"""Which weights go together: from single ones over patterns, rows and kernels to whole channels.

Every function takes scores of a weight's shape, (O, I, KH, KW) or (O, I), high where the weight matters, and
a sparsity, and returns a bool mask of that shape, True where a weight stays.  A linear layer counts as a 1×1
convolution.  A unit's score is the sum over its weights, in float64.  ``round(sparsity * units)`` units (ties
to even) go; of equal scores the one with the lower index goes first.

The ladder of granularities is that of Mao et al., 2017, https://arxiv.org/abs/1705.08922, figure 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UsageError
from .n_m import n_m_mask

MaskFunction = Callable[[Tensor, float], Tensor]


def element_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Remove single weights."""
    return _lowest_removed(scores.flatten(), sparsity).reshape(scores.shape)


def vector_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Remove rows of kernels: the KW weights that share an output, an input and a kernel row."""
    return _by_unit(scores, sparsity, (3,))


def kernel_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Remove kernels: the KH × KW weights between one input and one output channel."""
    return _by_unit(scores, sparsity, (2, 3))


def channel_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Remove filters: all weights of an output channel.

    Examples
    --------
    >>> channel_mask(torch.tensor([[3.0, 1.0], [1.0, 0.5], [2.0, 2.0]]), 1 / 3)
    tensor([[ True,  True],
            [False, False],
            [ True,  True]])
    """
    return _by_unit(scores, sparsity, (1, 2, 3))


def input_channel_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Remove input channels: all weights that read one channel of the layer before."""
    return _by_unit(scores, sparsity, (0, 2, 3))


def pattern_mask(scores: Tensor, sparsity: float, *, patterns: int = 8) -> Tensor:
    """Give each kernel the best of a few common patterns of kept positions [1]_.

    Each kernel's largest ``k = KH * KW - round(sparsity * KH * KW)`` positions vote; the ``patterns`` sets
    with the most votes form the library (on a tie the set with the lower code, bit ``i`` for position ``i``),
    and every kernel takes the set of the library that keeps the highest sum, the earlier on a tie.

    Parameters
    ----------
    scores : Tensor
        (O, I, KH, KW) or (O, I).  A 1×1 kernel has one position, which stays below a sparsity of 0.5.
    sparsity : float
        Share of each kernel's positions to remove.
    patterns : int, default=8
        Size of the library; 8 lets a pattern's number fit in 3 bits.

    References
    ----------
    .. [1] Ma et al., PCONV, AAAI 2020, section "Kernel pattern".  https://arxiv.org/abs/1909.05073
    """
    if patterns < 1:
        raise UsageError(f"the pattern library needs at least one pattern, got {patterns}")
    kernels = _as_4d(scores).flatten(2).flatten(0, 1).double()  # (O * I, KH * KW)
    if kernels.shape[1] > 52:
        raise UsageError(
            f"kernels of {kernels.shape[1]} weights have too many patterns; use element granularity"
        )
    own = _lowest_removed(kernels, sparsity)
    bits = 2 ** torch.arange(own.shape[1], device=scores.device)
    codes, votes = (own * bits).sum(1).unique(return_counts=True)  # ascending codes
    chosen = codes[torch.argsort(votes, descending=True, stable=True)[:patterns]]
    library = (chosen[:, None] & bits) != 0  # (patterns, KH * KW)
    # Every set has k positions, so their sums compare directly; argmax returns the first on a tie.
    best = (kernels @ library.double().T).argmax(1)
    return library[best].reshape(scores.shape)


def two_four_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Keep the largest of each four neighbouring input channels: two at a sparsity of 0.5 (2:4).

    In general ``n:4`` with ``n = 4 - round(4 * sparsity)``, see :func:`~tinyml_edu.pruning.n_m.n_m_mask`.
    """
    _check(sparsity)
    kept = 4 - round(4 * sparsity)
    return n_m_mask(scores, kept, 4)


GRANULARITIES: dict[str, MaskFunction] = {
    "element": element_mask,
    "pattern": pattern_mask,
    "2:4": two_four_mask,
    "vector": vector_mask,
    "kernel": kernel_mask,
    "channel": channel_mask,
    "input_channel": input_channel_mask,
}


def _by_unit(scores: Tensor, sparsity: float, within: tuple[int, ...]) -> Tensor:
    """Remove units that span the axes ``within`` of (O, I, KH, KW)."""
    units = _as_4d(scores).sum(dim=within, keepdim=True, dtype=torch.float64)
    kept = _lowest_removed(units.flatten(), sparsity).reshape(units.shape)
    return kept.expand(_as_4d(scores).shape).reshape(scores.shape).clone()


def _lowest_removed(scores: Tensor, sparsity: float) -> Tensor:
    """Return a bool mask (..., n): the ``round(sparsity * n)`` lowest scores of each last axis are False."""
    _check(sparsity)
    if torch.isnan(scores).any():
        raise UsageError("some scores are not numbers and cannot be ranked; check the data and the loss")
    order = torch.argsort(scores.detach(), dim=-1, stable=True)
    kept = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    return kept.scatter(-1, order[..., : round(sparsity * scores.shape[-1])], False)


def _check(sparsity: float) -> None:
    if not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity must lie between 0 and 1, got {sparsity}")


def _as_4d(scores: Tensor) -> Tensor:
    if scores.dim() not in (2, 4):
        raise UsageError(
            f"scores must be (O, I, KH, KW) or (O, I), got {tuple(scores.shape)}; "
            "reshape other weights to (O, I) or use element_mask"
        )
    return scores if scores.dim() == 4 else scores[:, :, None, None]
