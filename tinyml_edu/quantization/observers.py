"""From the values of an activation to the range that its codes cover.

Every observer sees the values batch by batch (`update`) and then names a range (`range`), which may be
narrower than what it saw: a value outside it saturates, and every value inside it gets a finer step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from ..errors import UsageError
from .affine import affine_params, get_quantized_range
from .histogram import SMALLEST, Histogram

Range = tuple[float, float]


class Observer(ABC):
    """What all observers share: checked updates and the smallest and largest value so far.

    Parameters
    ----------
    bits : int, default=8
        Width of the codes that the range is for, 2 to 8.  Only `KLObserver` and `MSEObserver` need it.
    """

    def __init__(self, *, bits: int = 8) -> None:
        if not 2 <= bits <= 8:
            raise UsageError(f"an observer serves codes of 2 to 8 bits, got {bits}")
        self.bits = bits
        self.low, self.high = math.inf, -math.inf

    def update(self, values: np.ndarray) -> None:
        """Take in an array of any shape; an empty one changes nothing.

        Raises
        ------
        UsageError
            If a value is NaN or infinite; the observer is then as it was before.
        """
        values = np.asarray(values)
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())  # NaN, where there is one, reaches both
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UsageError(
                "a value to observe is NaN or infinite; check the model and the calibration data"
            )
        self.low, self.high = min(low, self.low), max(high, self.high)
        self._take(values, low, high)

    def _take(self, values: np.ndarray, low: float, high: float) -> None:  # noqa: B027 (some need the ends only)
        """Take in finite values, at least one, that span ``[low, high]``."""

    def range(self) -> Range:
        """Return ``(low, high)``, within what was seen.

        Raises
        ------
        UsageError
            If no value was seen.
        """
        if self.low > self.high:
            raise UsageError("this observer has seen no value; call update with calibration data first")
        low, high = self._range()
        return min(max(low, self.low), self.high), max(min(high, self.high), self.low)

    @abstractmethod
    def _range(self) -> Range:
        """Return the range that the values ask for, before it is held within what was seen."""


class MinMaxObserver(Observer):
    """The smallest and the largest value: nothing saturates, one outlier widens every step."""

    def _range(self) -> Range:
        return self.low, self.high


class EMAObserver(Observer):
    """An exponential moving average of each batch's smallest and largest value [1]_.

    Parameters
    ----------
    momentum : float, default=0.9
        Weight of the past, 0 to below 1: ``average = momentum * average + (1 - momentum) * batch``.

    References
    ----------
    .. [1] Jacob et al., CVPR 2018, section 3.1.  https://arxiv.org/abs/1712.05877
    """

    def __init__(self, momentum: float = 0.9, *, bits: int = 8) -> None:
        super().__init__(bits=bits)
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum is the weight of the past, 0 to below 1; got {momentum}")
        self.momentum = momentum
        self._average: Range | None = None

    def _take(self, values: np.ndarray, low: float, high: float) -> None:  # noqa: ARG002
        old_low, old_high = self._average or (low, high)
        keep, add = self.momentum, 1 - self.momentum
        self._average = keep * old_low + add * low, keep * old_high + add * high

    def _range(self) -> Range:
        assert self._average is not None
        return self._average


class _HistogramObserver(Observer):
    """An observer that keeps a histogram of ``bins`` bins on each side of 0, see `Histogram`."""

    def __init__(self, *, bins: int = 2048, bits: int = 8) -> None:
        super().__init__(bits=bits)
        self.histogram = Histogram(bins)

    def _take(self, values: np.ndarray, low: float, high: float) -> None:  # noqa: ARG002
        self.histogram.add(values)


class PercentileObserver(_HistogramObserver):
    """The narrowest range beyond which, at either end, at most ``100 - percent`` percent of the values lie.

    Each end is off by at most one bin of the histogram, and never cuts more than that.

    Parameters
    ----------
    percent : float, default=99.99
        Above 50, at most 100; 100 is min-max.
    """

    def __init__(self, percent: float = 99.99, *, bins: int = 2048, bits: int = 8) -> None:
        super().__init__(bins=bins, bits=bits)
        if not 50 < percent <= 100:
            raise UsageError(f"percent lies above 50 and at most at 100, got {percent}")
        self.percent = percent

    def _range(self) -> Range:
        total = int(self.histogram.counts.sum()) + self.histogram.zeros
        drop = int(total * (100 - self.percent) / 100 + 1e-9)  # 100 - 99.99 is a little below 0.01
        return self.histogram.tail(drop, upper=False), self.histogram.tail(drop, upper=True)


class KLObserver(_HistogramObserver):
    """The threshold whose quantized histogram of magnitudes diverges least from the true one [1]_.

    For every threshold ``t`` of ``i`` bins: P is the histogram of ``|x|`` below ``t`` with everything
    beyond it added to its last bin; Q is the same histogram without what lies beyond, cut into
    ``2**(bits - 1)`` levels (``2**bits`` where all values have one sign, for then all codes serve them),
    each level spread evenly over its non-empty bins.  The smallest ``sum P * log(P / Q)`` wins.

    Notes
    -----
    Where P is not 0 and Q is, the divergence is infinite and the threshold loses; no smoothing constant is
    needed, for the full range is always finite.  A threshold that leaves a single bin with values, and cuts
    others off, loses too: both histograms are then one spike, whatever was cut.

    References
    ----------
    .. [1] Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """

    def _range(self) -> Range:
        one_sided = self.low >= 0 or self.high <= 0
        levels = 2**self.bits if one_sided else 2 ** (self.bits - 1)
        threshold = kl_bins(self.histogram.magnitudes(), levels) * self.histogram.width
        return -threshold, threshold


def kl_bins(counts: np.ndarray, levels: int) -> int:
    """Return how many of the bins ``counts`` (n,) to keep for ``levels`` levels, see `KLObserver`.

    At least ``levels`` are kept; of equal divergences the first, the narrowest, wins.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= levels:
        return used
    counts = counts[:used].astype(np.float64)
    return levels + int(np.argmin([kl_divergence(counts, i, levels) for i in range(levels, used + 1)]))


def kl_divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """Return KL(P || Q) for the first ``kept`` of the bins ``counts`` float64 (n,), see `KLObserver`."""
    full, total = counts[:kept] > 0, counts.sum()
    inside = counts[:kept]
    p = inside.copy()
    p[-1] += counts[kept:].sum()
    if not full[-1] and p[-1] > 0:  # Q is 0 in the last bin, P is not
        return math.inf
    if p[-1] > inside[-1] and np.count_nonzero(full) == 1:  # P = Q = 1, but not because they agree
        return math.inf
    edges = np.arange(levels) * kept // levels  # first bin of each level; none is empty
    sums, filled = np.add.reduceat(inside, edges), np.add.reduceat(full.astype(np.float64), edges)
    means = np.divide(sums, filled, out=np.zeros(levels), where=filled > 0)
    q = np.repeat(means, np.diff(np.append(edges, kept)))
    return float((p[full] / total) @ np.log((p[full] / total) / (q[full] / inside.sum())))


class MSEObserver(_HistogramObserver):
    """The range with the smallest mean squared error of the codes, by exhaustive search [1]_.

    Both ends shrink independently in ``steps`` equal steps from what was seen to 0.  The error is that of
    the bins' centres: its root is off by at most half a bin, for the distance to the nearest code changes
    no faster than the value.

    Parameters
    ----------
    steps : int, default=64
        Candidates for each end that is not 0.

    References
    ----------
    .. [1] Banner et al., NeurIPS 2019 (clipping that minimizes the mean squared error).
       https://arxiv.org/abs/1810.05723
    """

    def __init__(self, *, steps: int = 64, bins: int = 1024, bits: int = 8) -> None:
        super().__init__(bins=bins, bits=bits)
        if steps < 1:
            raise UsageError(f"steps counts the candidates of each end, got {steps}")
        self.steps = steps

    def _range(self) -> Range:
        values, counts = self.histogram.centres()
        lows, highs = _shrinking(min(self.low, 0.0), self.steps), _shrinking(max(self.high, 0.0), self.steps)
        spans = [(low, high) for low in lows for high in highs if high - low >= SMALLEST]
        if not spans:  # nothing but zeros was seen
            return 0.0, 0.0
        errors = [_squared_error(values, counts, span, self.bits) for span in spans]
        return spans[int(np.argmin(errors))]


def _shrinking(end: float, steps: int) -> list[float]:
    """Return ``end`` and its ``steps - 1`` shorter fractions, or 0 alone."""
    return [end * k / steps for k in range(steps, 0, -1)] if end else [0.0]


def _squared_error(values: np.ndarray, counts: np.ndarray, span: Range, bits: int) -> float:
    """Return the summed squared distance of ``values`` (n,), ``counts`` (n,) times each, to their codes."""
    scale, zero_point = affine_params(*span, bits=bits)
    q_min, q_max = get_quantized_range(bits)
    steps = values / scale
    error = np.clip(np.rint(steps), q_min - zero_point, q_max - zero_point) - steps
    return float(counts @ (error * error)) * scale**2


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "ema": EMAObserver,
    "percentile": PercentileObserver,
    "kl": KLObserver,
    "mse": MSEObserver,
}
"""The observers by the name that `QuantConfig` and `calibrate` take."""
