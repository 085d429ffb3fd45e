"""N:M sparsity: at most N of M neighbouring input channels keep their weight [1]_, [2]_.

Groups run along the input channels, the axis that a matrix multiplication sums over, for each output channel
and kernel position.  Which channels are neighbours is free to choose: reordering them, together with the
outputs of the layer before, changes nothing else in the network, and a good order loses less [3]_.

References
----------
.. [1] Mishra et al., Accelerating Sparse Deep Neural Networks, 2021.  https://arxiv.org/abs/2104.08378
.. [2] Zhou et al., Learning N:M Fine-grained Structured Sparse Networks, ICLR 2021.
   https://arxiv.org/abs/2102.04010
.. [3] Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError


def n_m_mask(scores: Tensor, n: int = 2, m: int = 4, *, permutation: Tensor | None = None) -> Tensor:
    """Return the mask that keeps the ``n`` highest scores of every ``m`` neighbouring input channels.

    Parameters
    ----------
    scores : Tensor
        (O, I, KH, KW) or (O, I), high where the weight matters.
    n, m : int
        ``0 <= n <= m``, ``m >= 1``.
    permutation : Tensor, optional
        int64 (I,): group the channels ``permutation[0:m]``, ``permutation[m:2m]`` and so on, see
        :func:`search_permutation`.  The mask is in the original order.

    Returns
    -------
    Tensor
        bool, of the shape of ``scores``.  A last group of ``r < m`` channels keeps ``min(n, r)``.  Of equal
        scores the channel that comes first in its group goes first.

    Examples
    --------
    >>> n_m_mask(torch.tensor([[1.0, 4.0, 2.0, 3.0, 5.0]]))
    tensor([[False,  True, False,  True,  True]])
    """
    _check(scores, n, m)
    channels = scores.shape[1]
    order = torch.arange(channels, device=scores.device) if permutation is None else permutation
    if sorted(order.tolist()) != list(range(channels)):
        raise UsageError(f"permutation must hold each of the {channels} input channels once")
    groups = _grouped(scores.movedim(1, -1)[..., order], m)  # (O, KH, KW, I / m, m)
    ranks = torch.argsort(torch.argsort(groups, dim=-1, stable=True), dim=-1)
    kept = (ranks >= m - n).flatten(-2)[..., :channels]
    mask = torch.empty_like(kept)
    mask[..., order] = kept
    return mask.movedim(-1, 1).contiguous()


def search_permutation(scores: Tensor, n: int = 2, m: int = 4, *, max_swaps: int = 1000) -> Tensor:
    """Return an order of the input channels in which N:M keeps a higher sum of scores [1]_.

    Starts from the given order and, while one raises the kept sum, swaps the two channels of different groups
    whose swap raises it most: the greedy search of the paper, which ends in a local optimum.

    Parameters
    ----------
    scores : Tensor
        (O, I, KH, KW) or (O, I), not negative.
    max_swaps : int, default=1000
        Stop after so many swaps.

    Returns
    -------
    Tensor
        int64 (I,), a permutation for :func:`n_m_mask`.

    References
    ----------
    .. [1] Pool and Yu, NeurIPS 2021, section 3: greedy channel swaps.

    Examples
    --------
    >>> order = search_permutation(torch.tensor([[4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 4.0, 0.0]]))
    >>> n_m_mask(torch.tensor([[4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 4.0, 0.0]]), permutation=order).int()
    tensor([[1, 1, 1, 0, 0, 0, 1, 0]], dtype=torch.int32)
    """
    _check(scores, n, m)
    if (scores < 0).any():
        raise UsageError("search_permutation needs scores that are not negative, such as magnitudes")
    columns = scores.detach().double().movedim(1, -1).flatten(0, -2)  # (O * KH * KW, I)
    channels = columns.shape[1]
    columns = F.pad(columns, (0, -channels % m))  # channels of zeros fill the last group and stay there
    order = torch.arange(columns.shape[1], device=scores.device)
    replaced = torch.cat([_replaced(columns, group, n) for group in order.view(-1, m)])
    for _ in range(max_swaps):
        a, b, gain = _best_swap(columns, order, replaced, n, m=m, movable=channels)
        if gain <= 1e-9 * float(columns.sum()):
            break
        order[[a, b]] = order[[b, a]]
        for group in {a // m, b // m}:
            span = slice(group * m, (group + 1) * m)
            replaced[span] = _replaced(columns, order[span], n)
    return order[:channels]


def _replaced(columns: Tensor, group: Tensor, n: int) -> Tensor:
    """Return (m, I): what ``group`` (m,) keeps with the channel in slot ``s`` replaced by channel ``c``."""
    m, channels = len(group), columns.shape[1]
    kept = columns.new_empty(m, channels)
    for slot in range(m):
        others = columns[:, torch.cat([group[:slot], group[slot + 1 :]])]  # (rows, m - 1)
        candidates = torch.cat(
            [others[:, None].expand(-1, channels, -1), columns[:, :, None]], dim=-1
        )  # (rows, I, m)
        kept[slot] = candidates.topk(n, dim=-1).values.sum(dim=(0, 2))
    return kept


def _best_swap(
    columns: Tensor, order: Tensor, replaced: Tensor, n: int, *, m: int, movable: int
) -> tuple[int, int, float]:
    """Return the positions, below ``movable``, and the gain of the best swap.

    ``replaced`` is (position, channel), see `_replaced`.
    """
    groups = columns[:, order].unflatten(1, (-1, m))
    kept = groups.topk(n, dim=-1).values.sum(dim=(0, 2)).repeat_interleave(m)  # (positions,)
    by_position = replaced[:, order]  # [p, q]: the group of p keeps this with order[q] in p's place
    gain = by_position + by_position.T - kept[:, None] - kept
    # Within a group a channel would count twice; the sum of the n largest is concave, so no such gain is > 0.
    gain[movable:], gain[:, movable:] = -torch.inf, -torch.inf
    best = int(gain.argmax())
    a, b = divmod(best, len(order))
    return a, b, float(gain[a, b])


def _grouped(scores: Tensor, m: int) -> Tensor:
    """Split the last axis into groups of ``m``; a short last group is filled with the lowest score."""
    return F.pad(scores.detach().double(), (0, -scores.shape[-1] % m), value=-torch.inf).unflatten(
        -1, (-1, m)
    )


def _check(scores: Tensor, n: int, m: int) -> None:
    if m < 1 or not 0 <= n <= m:
        raise UsageError(f"N:M sparsity needs 0 <= n <= m and m >= 1, got {n}:{m}")
    if scores.dim() not in (2, 4) or torch.isnan(scores).any():
        raise UsageError(
            f"scores must be numbers of shape (O, I, KH, KW) or (O, I), got {tuple(scores.shape)}"
        )
