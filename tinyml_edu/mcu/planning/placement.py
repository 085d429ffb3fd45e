"""Planners that place buffers one after the other: an order of placement becomes offsets.

A planner takes buffers and returns one offset for each.  None of these proves anything by itself; a plan
that reaches the lower bound is optimal all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .buffers import Buffer, arena_bytes, live_bytes, lower_bound

Planner = Callable[[Sequence[Buffer]], list[int]]

HILL_CLIMB_STEPS = 4000
_HILL_CLIMB_WORK = 120_000
"""Most placements of single buffers in a climb, which keeps it below a second."""


def naive(buffers: Sequence[Buffer]) -> list[int]:
    """Give every buffer its own memory: the sum of all sizes, the number that reuse is measured against."""
    ends = np.cumsum([b.size_bytes for b in buffers], dtype=np.int64)
    return [int(end) - b.size_bytes for end, b in zip(ends, buffers)]


def first_fit(buffers: Sequence[Buffer]) -> list[int]:
    """Place buffers in execution order, each in the lowest gap: what an allocator at run time would do."""
    return place(buffers, range(len(buffers)), neighbours(buffers))


def greedy(buffers: Sequence[Buffer]) -> list[int]:
    """Place buffers from large to small, each in the lowest gap (greedy by size, arXiv:2001.03288)."""
    return place(buffers, _by_size(buffers), neighbours(buffers))


def greedy_by_breadth(buffers: Sequence[Buffer]) -> list[int]:
    """Place step by step, those with the most live bytes first; in a step from large to small.

    Greedy by breadth of arXiv:2001.03288, section 5.2, each buffer in the lowest gap.
    """
    order: dict[int, None] = {}
    for step in np.argsort(-live_bytes(buffers), kind="stable"):
        live = (i for i, b in enumerate(buffers) if b.first <= step <= b.last)
        order.update(dict.fromkeys(sorted(live, key=lambda i: -buffers[i].size_bytes)))
    return place(buffers, list(order), neighbours(buffers))


def hill_climb(buffers: Sequence[Buffer]) -> list[int]:
    """Improve the order of placement by seeded random swaps until the lower bound or the last step.

    A swap moves a buffer that ends at the top of the arena, or one that it must avoid, to an earlier place in
    the order.  A new order that is no worse is kept, which lets the search cross plateaus.
    """
    rng = np.random.default_rng(0)
    near = neighbours(buffers)
    bound = lower_bound(buffers)
    order = list(_by_size(buffers))
    offsets = place(buffers, order, near)
    best = top = arena_bytes(buffers, offsets)
    best_offsets = offsets
    steps = min(HILL_CLIMB_STEPS, _HILL_CLIMB_WORK // max(len(order), 1))
    for _ in range(steps if len(order) > 1 else 0):
        if best == bound:
            break
        trial = _swap(order, offsets, buffers, near, rng)
        trial_offsets = place(buffers, trial, near)
        trial_top = arena_bytes(buffers, trial_offsets)
        if trial_top <= top:
            order, offsets, top = trial, trial_offsets, trial_top
        if trial_top < best:
            best, best_offsets = trial_top, trial_offsets
    return best_offsets


def _swap(
    order: list[int],
    offsets: list[int],
    buffers: Sequence[Buffer],
    near: list[list[int]],
    rng: np.random.Generator,
) -> list[int]:
    top = arena_bytes(buffers, offsets)
    highest = [i for i in order if offsets[i] + buffers[i].size_bytes == top]
    candidates = sorted({*highest, *(j for i in highest for j in near[i])})
    mover = order.index(candidates[rng.integers(len(candidates))])
    other = int(rng.integers(len(order)))
    trial = list(order)
    trial[mover], trial[other] = trial[other], trial[mover]
    return trial


def _by_size(buffers: Sequence[Buffer]) -> list[int]:
    return sorted(range(len(buffers)), key=lambda i: (-buffers[i].size_bytes, buffers[i].first))


def neighbours(buffers: Sequence[Buffer]) -> list[list[int]]:
    """Return, for each buffer, the others that are live at one of its steps."""
    first = np.array([b.first for b in buffers])
    last = np.array([b.last for b in buffers])
    together = (first[:, None] <= last[None, :]) & (first[None, :] <= last[:, None])
    np.fill_diagonal(together, False)
    return [np.flatnonzero(row).tolist() for row in together]


def place(buffers: Sequence[Buffer], order: Sequence[int], near: list[list[int]]) -> list[int]:
    """Place buffers in ``order``, each at the lowest offset where none of its placed neighbours is."""
    offsets = [-1] * len(buffers)
    for i in order:
        taken = sorted((offsets[j], buffers[j].size_bytes) for j in near[i] if offsets[j] >= 0)
        offset = 0
        for start, size in taken:
            if start - offset >= buffers[i].size_bytes:
                break
            offset = max(offset, start + size)
        offsets[i] = offset
    return offsets
