"""Latency of a callable, measured so that the number can be repeated: warm-up, median, quartiles, threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._threads import torch_threads
from ..errors import UsageError


@dataclass(frozen=True)
class LatencyReport:
    """Wall-clock times of one callable, in milliseconds.

    ``q1_ms`` and ``q3_ms`` enclose the middle half of the runs; ``threads`` is the number of threads that
    torch could use, or ``None`` where it was left as it stood.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    min_ms: float
    warmup: int
    repeats: int
    threads: int | None
    samples_ms: tuple[float, ...]

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"{self.median_ms:.3f} ms median ({self.q1_ms:.3f} to {self.q3_ms:.3f}), "
            f"{self.repeats} runs after {self.warmup} warm-up{threads}"
        )


def measure_latency(
    call: Callable[[], Any],
    *,
    warmup: int = 3,
    repeats: int = 20,
    threads: int | None = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyReport:
    """Time ``call()`` and return the median and the quartiles.

    The first calls pay for page faults, caches and lazy initialisation, so ``warmup`` of them are thrown
    away.  The median and quartiles of what is left ignore the few runs that the operating system
    interrupted; a mean would not.

    Parameters
    ----------
    call : callable
        Takes no argument; it must do all its work before it returns.
    warmup, repeats : int
        Runs thrown away, runs kept (at least 2).
    threads : int or None, default=1
        Threads for torch during the measurement (the old number is restored); ``None`` leaves them alone.
    clock : callable
        Returns seconds; a test passes its own.

    Raises
    ------
    UsageError
        If ``repeats`` is below 2 or ``warmup`` is negative.

    Examples
    --------
    >>> ticks = iter(range(100))
    >>> print(measure_latency(lambda: None, warmup=1, repeats=4, threads=None, clock=lambda: next(ticks)))
    1000.000 ms median (1000.000 to 1000.000), 4 runs after 1 warm-up
    """
    if repeats < 2 or warmup < 0:
        raise UsageError(
            f"repeats={repeats}, warmup={warmup}: use at least 2 repeats and no negative warm-up"
        )
    with torch_threads(threads):
        for _ in range(warmup):
            call()
        samples = []
        for _ in range(repeats):
            start = clock()
            call()
            samples.append(1e3 * (clock() - start))
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return LatencyReport(median, q1, q3, min(samples), warmup, repeats, threads, tuple(samples))
