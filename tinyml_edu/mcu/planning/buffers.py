"""Buffers: blocks of the arena with a size and a life, and what no plan of them can undercut.

A buffer is live from the node that writes it to the last node that reads it, both included.  Two buffers
whose lives share a node must not share a byte; all others may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import TinyMLError

ALIGNMENT = 16
"""Every buffer starts at a multiple of this many bytes, and so does every tensor inside a larger buffer."""


class PlanError(TinyMLError):
    """A plan that would let two live buffers share memory, or that contradicts itself."""


@dataclass(frozen=True)
class Buffer:
    """One block of the arena, live at the nodes ``first`` to ``last``, both included.

    ``size_bytes`` is a multiple of 16; ``kind`` is "input", "output", "activation" or "scratch".
    """

    name: str
    size_bytes: int
    first: int
    last: int
    kind: str = "activation"


def aligned(size_bytes: int) -> int:
    """Return the smallest multiple of `ALIGNMENT` that is not below ``size_bytes``."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def live_bytes(buffers: Sequence[Buffer]) -> np.ndarray:
    """Return the sum of live buffers at each step, int64 (last step + 1,), bytes."""
    changes = np.zeros(max((b.last for b in buffers), default=0) + 2, np.int64)
    for b in buffers:
        changes[b.first] += b.size_bytes
        changes[b.last + 1] -= b.size_bytes
    return np.cumsum(changes)[:-1]


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """Return the largest sum of live bytes over all steps: no arena can be smaller."""
    return int(live_bytes(buffers).max())


def live_at(buffers: Sequence[Buffer], step: int) -> list[Buffer]:
    """Return the buffers that are live at ``step``, the largest first."""
    live = [b for b in buffers if b.first <= step <= b.last]
    return sorted(live, key=lambda b: -b.size_bytes)


def arena_bytes(buffers: Sequence[Buffer], offsets: Sequence[int]) -> int:
    """Return where the highest buffer ends: the size of the arena."""
    return max((o + b.size_bytes for o, b in zip(offsets, buffers)), default=0)
