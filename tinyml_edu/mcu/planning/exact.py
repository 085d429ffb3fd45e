"""Exact planner: branch and bound, which ends with the smallest arena there is, and knows it.

Every plan can be settled: push each buffer down until it stands on the floor or on another buffer.  The
search builds settled plans from the bottom up, buffers in order of their offsets, so that a buffer's offset
is the height of what is already below it.  A branch ends where

* some step's height plus the bytes still to come there reach the best arena so far, or
* a buffer that is still to come fits entirely below the one just placed: the plan would not be settled.

Worst case exponential (the problem is NP-hard, Garey and Johnson, 1979, SR2), so the effort is limited; a
search that was cut short says so.  The effort is counted in steps and not in seconds: plans repeat exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .buffers import Buffer, arena_bytes, lower_bound
from .placement import first_fit, greedy

SEARCH_STEPS = 400_000
"""Most offsets computed in one search; about a second."""

_MAX_DEPTH = 400


@dataclass(frozen=True)
class Solution:
    """Offsets in bytes, one for each buffer, and whether no plan with a smaller arena exists."""

    offsets: list[int]
    proven: bool


def solve(
    buffers: Sequence[Buffer], start: Sequence[int] | None = None, *, steps: int = SEARCH_STEPS
) -> Solution:
    """Return a plan with the smallest arena, or the best one found in ``steps`` steps.

    Parameters
    ----------
    buffers : sequence of Buffer
    start : sequence of int, optional
        Offsets of a legal plan to improve; by default the better one of two greedy plans.
    steps : int
        Most offsets to compute.
    """
    if start is None:
        start = min((greedy(buffers), first_fit(buffers)), key=lambda o: arena_bytes(buffers, o))
    offsets = [offset if b.size_bytes else 0 for offset, b in zip(start, buffers)]
    goal, proven = lower_bound(buffers), True
    for part in sorted(_parts(buffers), key=lambda part: -lower_bound([buffers[i] for i in part])):
        # Buffers that meet no other part are a problem of their own; the largest arena decides.
        search = _Search([buffers[i] for i in part], [offsets[i] for i in part], goal, steps)
        search.run()
        steps = search.steps
        if steps >= 0:
            goal = max(goal, search.top)
        else:
            proven = proven and search.top <= goal
        for i, offset in zip(part, search.best):
            offsets[i] = offset
    return Solution(offsets, proven)


def exact(buffers: Sequence[Buffer]) -> list[int]:
    """Return the offsets of `solve`."""
    return solve(buffers).offsets


def _parts(buffers: Sequence[Buffer]) -> Iterator[list[int]]:
    """Yield the indices of buffers whose lives are connected; a zero-size buffer connects nothing."""
    part: list[int] = []
    end = -1
    for i in sorted(range(len(buffers)), key=lambda i: buffers[i].first):
        if not buffers[i].size_bytes:
            continue
        if buffers[i].first > end and part:
            yield part
            part = []
        part.append(i)
        end = max(end, buffers[i].last)
    if part:
        yield part


class _Search:
    """Depth-first search over one connected set of buffers; ``best`` starts from a legal plan.

    ``goal`` is an arena that needs no improvement.  ``steps`` counts down and is negative after a search that
    was cut short.
    """

    def __init__(self, buffers: Sequence[Buffer], start: list[int], goal: int, steps: int) -> None:
        self.sizes = [b.size_bytes for b in buffers]
        self.best, self.top, self.goal, self.steps = start, arena_bytes(buffers, start), goal, steps
        times = _busiest_steps(buffers)
        self.times = [[k for k, t in enumerate(times) if b.first <= t <= b.last] for b in buffers]
        self.height = [0] * len(times)
        self.to_come = [sum(b.size_bytes for b in buffers if b.first <= t <= b.last) for t in times]
        self.offsets = [0] * len(buffers)
        self.dead: set[tuple[int, tuple[int, int], tuple[int, ...]]] = set()
        # Of buffers that can be exchanged, the first is placed first.
        kinds = [(b.size_bytes, tuple(t)) for b, t in zip(buffers, self.times)]
        self.twin = [
            next((j for j in range(i - 1, -1, -1) if kinds[j] == kinds[i]), -1) for i in range(len(kinds))
        ]

    def run(self) -> None:
        if self.top <= self.goal:
            return
        if len(self.sizes) > _MAX_DEPTH:
            self.steps = -1
            return
        self._extend((1 << len(self.sizes)) - 1, (0, -1))

    def _extend(self, left: int, floor: tuple[int, int]) -> None:
        """Place every buffer of the set ``left``, in order of (offset, index), above ``floor``."""
        if not left:
            self.best, self.top = list(self.offsets), max(self.height)
            return
        state = (left, floor, tuple(self.height))
        if self.steps < 0 or state in self.dead or self._hopeless(floor[0]):
            return
        rest = [i for i in range(len(self.sizes)) if left >> i & 1]
        self.steps -= len(rest)
        lowest = {i: max(self.height[k] for k in self.times[i]) for i in rest}
        settled = min(lowest[i] + self.sizes[i] for i in rest)
        for i in sorted(rest, key=lambda i: (lowest[i], -self.sizes[i])):
            at = (lowest[i], i)
            if at > floor and at[0] < settled and not (self.twin[i] >= 0 and left >> self.twin[i] & 1):
                self._place(i, left, at)
            if self.steps < 0 or self.top <= self.goal:
                return
        self.dead.add(state)

    def _place(self, i: int, left: int, at: tuple[int, int]) -> None:
        before = [self.height[k] for k in self.times[i]]
        for k in self.times[i]:
            self.height[k] = at[0] + self.sizes[i]
            self.to_come[k] -= self.sizes[i]
        self.offsets[i] = at[0]
        self._extend(left & ~(1 << i), at)
        for k, height in zip(self.times[i], before):
            self.height[k] = height
            self.to_come[k] += self.sizes[i]

    def _hopeless(self, floor: int) -> bool:
        """Whether some step must reach the best arena so far: what is to come there lies above ``floor``."""
        return any(
            more and max(height, floor) + more >= self.top for height, more in zip(self.height, self.to_come)
        )


def _busiest_steps(buffers: Sequence[Buffer]) -> list[int]:
    """Return steps whose live buffers contain those of every other step: all conflicts, each once."""
    starts = sorted({b.first for b in buffers})
    live = {t: frozenset(i for i, b in enumerate(buffers) if b.first <= t <= b.last) for t in starts}
    return [t for t in starts if not any(live[t] < live[u] for u in starts)]
