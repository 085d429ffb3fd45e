"""Ratios of processor time: two calls measured in turn, so that both see the same computer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

ROUND_SECONDS = 0.004
"""Shortest time measured at once: far above the clock's step and a call's overhead."""


def time_ratios(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[float]:
    """Return time of ``first`` over time of ``second``, once a round; they run in turn in this thread."""
    counts = [_repeats(first), _repeats(second)]
    ratios = []
    for _ in range(rounds):
        seconds = [_seconds(call, count) for call, count in zip((first, second), counts)]
        ratios.append(seconds[0] / seconds[1])
    return ratios


def _repeats(call: Callable[[], object]) -> int:
    """Return how many calls take `ROUND_SECONDS`."""
    count = 1
    while (seconds := _seconds(call, count) * count) < ROUND_SECONDS:
        count = max(2 * count, math.ceil(count * ROUND_SECONDS / max(seconds, 1e-7)))
    return count


def _seconds(call: Callable[[], object], count: int) -> float:
    start = time.thread_time()  # of this thread alone: other programs on the computer do not count
    for _ in range(count):
        call()
    return (time.thread_time() - start) / count
