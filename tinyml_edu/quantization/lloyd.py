"""K-means in one dimension.

A cluster of numbers is an interval, so after one sort a step of Lloyd's algorithm [1]_ is a binary search for
the borders, then differences of prefix sums: O(k log n) instead of O(k n).

References
----------
.. [1] Lloyd, Least Squares Quantization in PCM, IEEE Trans. Information Theory 1982.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import UnknownNameError, UsageError

INITS = ("linear", "density", "random")
"""First centroids (Deep Compression, section 3.2): evenly over the range, over the ranks, or drawn."""

MAX_STEPS = 20_000


def cluster(
    values: NDArray[np.float64], k: int, *, init: str = "linear", seed: int = 0
) -> NDArray[np.float64]:
    """Return ``k`` ascending centroids (k,) of ``values`` (n,) by Lloyd's algorithm.

    Each centroid ends at the mean of the values nearest to it; a value halfway between two belongs to the
    lower.  A centroid that loses all its values is moved onto the value that is farthest from its own: a mean
    of nothing would be NaN.  Where there are fewer distinct values than centroids, some stay unused.

    Parameters
    ----------
    init : {"linear", "density", "random"}
        See `INITS`.
    seed : int
        Of the draw for "random".
    """
    if init not in INITS:
        raise UnknownNameError("init", init, INITS)
    ordered = np.sort(np.asarray(values, np.float64).reshape(-1))  # (n,)
    if ordered.size == 0 or not np.isfinite(ordered).all() or k < 1:
        raise UsageError("k-means needs k >= 1 and at least one value, all finite; check the tensor")
    sums = np.concatenate([[0.0], np.cumsum(ordered)])  # (n + 1,)
    centroids = _first(ordered, k, init, seed)
    borders = np.empty(0, np.int64)
    for _ in range(MAX_STEPS):
        earlier, borders = borders, _borders(ordered, centroids)
        counts = np.diff(borders)
        moved = (sums[borders[1:]] - sums[borders[:-1]]) / np.maximum(counts, 1)
        # A difference of long sums rounds; a mean never lies outside its own interval.
        low, high = ordered[borders[:-1].clip(max=ordered.size - 1)], ordered[borders[1:].clip(min=1) - 1]
        centroids = np.where(counts > 0, np.clip(moved, low, np.maximum(low, high)), centroids)
        reseeded = _reseed(ordered, centroids, borders)
        if reseeded is not None:
            centroids = reseeded
        elif np.array_equal(earlier, borders):
            break
    return np.sort(centroids)


def nearest(values: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the label (n,) of the nearest of ascending ``centroids`` (k,); halfway, the lower one."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values, side="left")


def _first(ordered: NDArray[np.float64], k: int, init: str, seed: int) -> NDArray[np.float64]:
    """Return ``k`` ascending centroids to start from."""
    if init == "linear":
        return np.linspace(ordered[0], ordered[-1], k)
    if init == "density":
        return ordered[((np.arange(k) + 0.5) / k * ordered.size).astype(np.int64)]
    return np.sort(np.random.default_rng(seed).choice(ordered, k, replace=k > ordered.size))


def _borders(ordered: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return (k + 1,): cluster i holds ``ordered[borders[i]:borders[i + 1]]``, as `nearest` labels them."""
    inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
    return np.concatenate([[0], inner, [ordered.size]])


def _reseed(
    ordered: NDArray[np.float64], centroids: NDArray[np.float64], borders: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Return ascending centroids with the unused ones moved to the worst-served values, or None.

    The farthest value of an interval is one of its ends, so the ends are the candidates.  Every move lowers
    the squared error, so this ends.
    """
    used = np.flatnonzero(np.diff(borders))
    unused = np.flatnonzero(np.diff(borders) == 0)
    ends = np.concatenate([ordered[borders[used]], ordered[borders[used + 1] - 1]])
    error = np.abs(ends - np.concatenate([centroids[used], centroids[used]]))
    worst = np.argsort(-error, kind="stable")[: unused.size]
    worst = worst[error[worst] > 0]
    if worst.size == 0:
        return None
    moved = centroids.copy()
    moved[unused[: worst.size]] = ends[worst]
    return np.sort(moved)
