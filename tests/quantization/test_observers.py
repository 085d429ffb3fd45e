"""Observers against their definitions: order statistics, a written-out average, brute force."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyml_edu.errors import UsageError
from tinyml_edu.quantization import (
    OBSERVERS,
    EMAObserver,
    KLObserver,
    MinMaxObserver,
    MSEObserver,
    PercentileObserver,
    affine_params,
    observers,
)
from tinyml_edu.quantization.histogram import Histogram

NAMES = sorted(OBSERVERS)
VALUES = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**20), 2.0**20, width=32))


def observed(observer, *batches):
    for values in batches:
        observer.update(np.asarray(values))
    return observer.range()


# What every observer must bear.


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3), st.integers(2, 8))
@example([np.float32([1e-40, -1e-45])], 8)
@example([np.float32([3e38, -3e38])], 2)
@example([np.float32([1e-38]), np.float32([1e38])], 8)
@example([np.float32([0.0, -0.0]), np.float32([5.0])], 4)
def test_a_range_lies_within_what_was_seen(name, batches, bits):
    low, high = observed(OBSERVERS[name](bits=bits), *batches)
    seen = np.concatenate(batches)
    assert seen.min() <= low <= high <= seen.max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, 1e-30])
def test_a_constant_has_itself_as_its_range(name, value):
    assert observed(OBSERVERS[name](), np.full((2, 3), value)) == (value, value)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_changes_nothing_and_no_values_are_an_error(name):
    observer = OBSERVERS[name]()
    observer.update(np.zeros((0, 4)))
    with pytest.raises(UsageError, match="seen no value"):
        observer.range()
    assert observed(observer, [1.0, 2.0], np.zeros(0)) == observed(OBSERVERS[name](), [1.0, 2.0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_trace(name, bad):
    observer = OBSERVERS[name]()
    observer.update(np.array([-1.0, 2.0]))
    with pytest.raises(UsageError, match="NaN or infinite"):
        observer.update(np.array([[5.0, bad], [-7.0, 0.0]]))
    assert observer.range() == observed(OBSERVERS[name](), [-1.0, 2.0])


@pytest.mark.parametrize("name", NAMES)
def test_data_of_one_sign_gets_a_range_of_that_sign_and_its_mirror_image_the_mirrored_one(name, rng):
    values = rng.gamma(2.0, size=5000)
    low, high = observed(OBSERVERS[name](bits=4), values)
    assert 0 < low < high
    assert observed(OBSERVERS[name](bits=4), -values) == pytest.approx((-high, -low), rel=2e-3)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "ema"])
def test_the_batches_do_not_matter_but_for_the_average(name, rng):
    values = rng.normal(size=4000)
    values[0] = np.abs(values).max() * 1.5  # the first batch sets the width of the histogram
    parts = np.split(values, [10, 1000, 1000, 3999])
    assert observed(OBSERVERS[name](), *parts) == observed(OBSERVERS[name](), values)


@pytest.mark.parametrize("name", NAMES)
def test_integers_and_any_shape_are_values(name):
    values = np.arange(-6, 18)
    shaped = values.reshape(2, 3, 4).astype(np.float64)
    assert observed(OBSERVERS[name](), values) == observed(OBSERVERS[name](), shaped)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MinMaxObserver(bits=9), "2 to 8 bits"),
        (lambda: EMAObserver(1.0), "momentum"),
        (lambda: PercentileObserver(50), "percent"),
        (lambda: PercentileObserver(100.5), "percent"),
        (lambda: MSEObserver(steps=0), "candidates"),
    ],
)
def test_parameters_that_make_no_sense_are_a_usage_error(make, words):
    with pytest.raises(UsageError, match=words):
        make()


# Each against its definition.


def test_minmax_is_the_smallest_and_the_largest():
    assert observed(MinMaxObserver(), [1.0, -2.0], [0.5], [4.0, 3.0]) == (-2.0, 4.0)


def test_the_average_forgets_by_its_momentum():
    low, high = observed(EMAObserver(0.75), [-8.0, 4.0], [0.0, 0.0], [-4.0, 8.0])
    # -8, then 0.75·-8 + 0.25·0 = -6, then 0.75·-6 + 0.25·-4 = -5.5; 4, 3, 4.25
    assert (low, high) == (-5.5, 4.25)
    assert observed(EMAObserver(0.0), [-8.0, 4.0], [-1.0, 2.0]) == (-1.0, 2.0)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from([51.0, 75.0, 90.0, 99.0, 100.0]), st.integers(1, 64).map(lambda b: 2 * b))
def test_a_percentile_is_an_order_statistic_to_one_bin(values, percent, bins):
    low, high = observed(PercentileObserver(percent, bins=bins), values)
    drop = math.floor(len(values) * (100 - percent) / 100 + 1e-9)
    ordered = np.sort(values.astype(np.float64))
    width = float(np.abs(ordered).max()) / bins  # one batch: the bins end at the largest magnitude
    width *= 1 + 2.0**-23  # rounded up to 24 bits
    assert ordered[drop] - width <= low <= ordered[drop]  # never cuts more than asked
    assert ordered[-1 - drop] <= high <= ordered[-1 - drop] + width


@pytest.mark.parametrize("bins", [76, 82, 90])
def test_a_hundred_percent_is_minmax_to_the_last_bit_whatever_the_width_of_a_bin(bins, rng):
    for _ in range(300):
        values = (rng.integers(-100, 100, 20) * 0.01).astype(np.float32)
        assert observed(PercentileObserver(100, bins=bins), values) == (values.min(), values.max())


def test_a_hundred_percent_is_minmax_and_an_outlier_is_dropped(rng):
    values = np.append(rng.uniform(-1, 1, 99_999), 1000.0)
    assert observed(PercentileObserver(100), values) == observed(MinMaxObserver(), values)
    low, high = observed(PercentileObserver(99.99), values)
    assert -1 <= low <= high <= 1 + 1000 / 2048


def brute_force_kl(counts: list[int], levels: int) -> int:
    """Return the best number of bins, written out bin by bin from the description of the method."""
    used = max(i + 1 for i, c in enumerate(counts) if c)
    if used <= levels:
        return used
    scores = {}
    for i in range(levels, used + 1):
        p = [float(c) for c in counts[:i]]
        p[-1] += sum(counts[i:])
        q = [0.0] * i
        for level in range(levels):
            members = [k for k in range(i) if level * i // levels <= k < (level + 1) * i // levels]
            full = [k for k in members if counts[k]]
            for k in full:
                q[k] = sum(counts[m] for m in members) / len(full)
        if any(a > 0 and b == 0 for a, b in zip(p, q)) or sum(q) == 0:
            continue
        if sum(c > 0 for c in counts[:i]) == 1 and sum(counts[i:]) > 0:  # one spike looks like any other
            continue
        scores[i] = sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q) if a > 0)
    smallest = min(scores.values())
    return min(i for i, score in scores.items() if score <= smallest + 1e-12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=24).filter(any), st.integers(2, 8))
def test_kl_finds_what_brute_force_finds(counts, levels):
    got = observers.kl_bins(np.array(counts), levels)
    expected = brute_force_kl(counts, levels)
    if got != expected:  # equal divergences, told apart by rounding only
        assert observers.kl_divergence(np.array(counts, float), got, levels) == pytest.approx(
            observers.kl_divergence(np.array(counts, float), expected, levels), abs=1e-12
        )


def test_kl_is_not_the_widest_nor_the_narrowest_range(rng):
    """Controls: an optimum at an end of the search would say nothing about the search."""
    values = rng.normal(size=100_000)
    low, high = observed(KLObserver(bits=4), values)
    assert -high == low
    assert 2 < high < np.abs(values).max() * 0.9
    values[0] = 60.0
    assert 2 < observed(KLObserver(bits=8), values)[1] < 6


def test_kl_keeps_more_than_the_smallest_of_values_that_lie_far_from_zero(rng):
    """One bin alone diverges from nothing: unguarded, its range would be [20, 20] here."""
    values = rng.uniform(20, 30, 5000)
    assert observed(KLObserver(), values)[1] > 28
    assert observed(KLObserver(), [1.0, 2.0]) == (1.0, 2.0)


def test_kl_leaves_exact_zeros_out():
    """0.0 has a code of its own; the many zeros after a ReLU must not pull the threshold in."""
    values = np.abs(np.random.default_rng(0).normal(size=20_000))
    assert observed(KLObserver(), values, np.zeros(10**5))[1] == observed(KLObserver(), values)[1]


def root_mean_square(values: np.ndarray, span: tuple[float, float], bits: int) -> float:
    """Return the error of quantizing with `affine_params` of a range, value by value."""
    if span == (0.0, 0.0):
        return math.sqrt(np.square(values).mean())
    scale, zero_point = affine_params(*span, bits=bits)
    codes = np.clip(np.rint(values / scale) + zero_point, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return math.sqrt(np.square(scale * (codes - zero_point) - values).mean())


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(2, 5))
def test_mse_is_the_best_of_all_candidates_to_one_bin(values, bits):
    """Half a bin for the range that was chosen and half a bin for the best one: see `MSEObserver`."""
    steps, bins, values = 8, 256, values.astype(np.float64)
    low, high = observed(MSEObserver(steps=steps, bins=bins, bits=bits), values)
    ends = min(values.min(), 0.0), max(values.max(), 0.0)
    grid = [(ends[0] * i / steps, ends[1] * j / steps) for i in range(1, 9) for j in range(1, 9)]
    best = min(root_mean_square(values, span, bits) for span in grid)
    width = np.abs(values).max() / bins
    chosen = root_mean_square(values, (min(low, 0.0), max(high, 0.0)), bits)
    assert chosen <= best + width * (1 + 1e-9) + 1e-12


def test_the_bound_of_mse_tells_minmax_apart(rng):
    values = np.append(rng.normal(size=2000), 40.0)
    best = root_mean_square(values, observed(MSEObserver(bits=4), values), 4)
    widest = root_mean_square(values, (values.min(), values.max()), 4)
    assert widest > best + np.abs(values).max() / 1024


def test_fewer_bits_make_kl_and_mse_cut_more(rng):
    values = rng.laplace(size=50_000)
    for make in (KLObserver, MSEObserver):
        widths = [np.subtract(*observed(make(bits=bits), values)[::-1]) for bits in (3, 5, 8)]
        assert widths == sorted(widths)
        assert widths[0] < widths[2] < np.ptp(values)


# The histogram below them.


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_every_value_is_counted_once_in_a_bin_that_holds_it(batches):
    histogram = Histogram(8)
    for values in batches:
        histogram.add(values)
    seen = np.concatenate(batches).astype(np.float64)
    assert histogram.counts.sum() + histogram.zeros == len(seen)
    assert histogram.zeros == np.sum(seen == 0)
    seen = seen[seen != 0]
    for k, count in enumerate(histogram.counts):
        left = (k - 8) * histogram.width
        right = left + histogram.width
        # A value on an edge may be on either side of it, the outermost ones are.
        assert np.sum((seen > left) & (seen < right)) <= count <= np.sum((seen >= left) & (seen <= right))


def test_growing_merges_bins_two_by_two():
    histogram = Histogram(4)
    histogram.add(np.array([4.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.0]))
    assert histogram.width == 1.0
    assert histogram.counts.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    histogram.add(np.array([7.9]))
    assert histogram.width == 2.0
    assert histogram.counts.tolist() == [0, 0, 0, 2, 2, 2, 0, 1]
    assert histogram.magnitudes().tolist() == [4, 2, 0, 1]
    assert histogram.zeros == 1


@pytest.mark.parametrize("bins", [0, 1, 3])
def test_an_odd_number_of_bins_cannot_be_merged(bins):
    with pytest.raises(UsageError, match="even"):
        Histogram(bins)


def test_the_borders_of_bins_are_exact_whatever_the_largest_value():
    histogram = Histogram(90)
    histogram.add(np.array([0.92]))
    assert all(Fraction(histogram.width * k) == k * Fraction(histogram.width) for k in range(91))
    assert 0.92 <= histogram.width * 90 <= 0.92 * (1 + 2.0**-23)
