"""A histogram that grows with its data: fixed number of bins, aligned at 0, merged in pairs to grow."""

from __future__ import annotations

import math

import numpy as np

from ..errors import UsageError

SMALLEST = 1e-300
"""Magnitudes below it count as 0: no float32 but 0 is that small."""


class Histogram:
    """Counts of real values in ``2 * bins`` bins of one width, half of them on each side of 0.

    The first values that are not all 0 set the width to ``largest magnitude / bins``, rounded up to 24 bits:
    the borders of the bins are then exact, and so is the bin of every float32 value.  A larger value
    doubles it, which merges bins two by two and loses nothing else; so at least half of the bins of the
    longer side are always in use.  Exact zeros are counted apart, for 0.0 has a code of its own.

    Parameters
    ----------
    bins : int, default=2048
        Bins on each side of 0, an even number.
    """

    def __init__(self, bins: int = 2048) -> None:
        if bins < 2 or bins % 2:
            raise UsageError(f"bins must be even and at least 2, got {bins}")
        self.bins = bins
        self.width = 0.0
        self.zeros = 0
        self.counts = np.zeros(
            2 * bins, np.int64
        )  # the bin k covers [(k - bins) * width, (k - bins + 1) * width)

    def add(self, values: np.ndarray) -> None:
        """Count finite values of any shape."""
        flat = np.asarray(values, np.float64).ravel()
        nonzero = flat[np.abs(flat) >= SMALLEST]
        self.zeros += flat.size - nonzero.size
        if nonzero.size == 0:
            return
        largest = float(np.abs(nonzero).max())
        if self.width == 0:
            fraction, exponent = math.frexp(largest / self.bins)
            self.width = math.ldexp(math.ceil(math.ldexp(fraction, 24)), exponent - 24)
        while self.width * self.bins < largest:
            self._double()
        index = np.clip(np.floor(nonzero / self.width), -self.bins, self.bins - 1).astype(np.int64)
        self.counts += np.bincount(index + self.bins, minlength=2 * self.bins)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts[:] = 0
        self.counts[self.bins // 2 : self.bins // 2 + self.bins] = pairs
        self.width *= 2

    def magnitudes(self) -> np.ndarray:
        """Return the counts (bins,) of ``|x|`` without the exact zeros."""
        return self.counts[self.bins :] + self.counts[: self.bins][::-1]

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres float64 and the counts of the bins that hold a value, exact zeros left out."""
        used = np.flatnonzero(self.counts)
        return (used - self.bins + 0.5) * self.width, self.counts[used]

    def tail(self, drop: int, *, upper: bool) -> float:
        """Return the value that is left at one end when the ``drop`` outermost values are dropped.

        It is the far edge of that value's bin, so that it is not cut itself: off by one width at most.
        """
        half = self.bins
        counts = np.concatenate([self.counts[:half], [self.zeros], self.counts[half:]])
        cumulative = np.cumsum(counts[::-1] if upper else counts)
        k = int(np.searchsorted(cumulative, drop + 1))  # bins from the outer end; the one at `half` holds 0.0
        edge = max(half - k, 0) * self.width if k <= half else (k - half - 1) * -self.width
        return edge if upper else 0.0 - edge  # never -0.0
