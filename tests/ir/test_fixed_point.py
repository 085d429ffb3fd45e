"""Requantization against Python's unbounded integers and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyml_edu.ir.fixed_point import (
    INT32_MAX,
    INT32_MIN,
    effective_scale,
    quantize_multiplier,
    quantize_multipliers,
    requant_double,
    requant_single,
)

ACC = st.one_of(
    st.integers(INT32_MIN, INT32_MAX),
    st.integers(-2000, 2000),
    st.sampled_from([INT32_MIN, INT32_MIN + 1, -1, 0, 1, INT32_MAX]),
)
MULTIPLIER = st.one_of(st.integers(2**30, INT32_MAX), st.integers(0, INT32_MAX), st.just(2**30))
EXPONENT = st.integers(-31, 30)


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def half_away(value: Fraction) -> int:
    return half_up(value) if value >= 0 else -half_up(-value)


def naive_double(acc: int, multiplier: int, exponent: int) -> int:
    """Two roundings, in fractions: half up after 31 bits, half away from zero after the rest."""
    shifted = min(max(acc * 2 ** max(exponent, 0), INT32_MIN), INT32_MAX)
    high = half_up(Fraction(shifted * multiplier, 2**31))
    return half_away(Fraction(high, 2 ** max(-exponent, 0)))


def naive_single(acc: int, multiplier: int, exponent: int) -> int:
    return half_up(Fraction(acc * multiplier) * Fraction(2) ** (exponent - 31))


@given(ACC, MULTIPLIER, EXPONENT)
def test_double_equals_the_definition_in_fractions(acc, multiplier, exponent):
    got = int(requant_double(acc, multiplier, exponent))
    assert got == naive_double(acc, multiplier, exponent)
    assert INT32_MIN <= got <= INT32_MAX


@given(ACC, MULTIPLIER, EXPONENT)
def test_single_equals_the_definition_in_fractions(acc, multiplier, exponent):
    assert int(requant_single(acc, multiplier, exponent)) == naive_single(acc, multiplier, exponent)


@given(ACC, MULTIPLIER, st.integers(-31, 0))
def test_single_and_double_are_at_most_one_apart(acc, multiplier, exponent):
    """Each is within 1/2 of a number that differs by at most 2**-(right + 1); both are integers.

    With right = 0 the first rounding is the only one; with right >= 1 the distance is at most
    1/2 + 1/2 + 1/4 < 2.
    """
    assert abs(int(requant_double(acc, multiplier, exponent)) - naive_single(acc, multiplier, exponent)) <= 1


def test_single_and_double_do_differ_somewhere():
    """The control of every test that tells the two apart: about 1 in 400 random accumulators."""
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**20), 2**20, 100_000)
    multiplier, exponent = quantize_multiplier(0.0004)
    different = requant_double(acc, multiplier, exponent) != requant_single(acc, multiplier, exponent)
    assert 0 < different.sum() < 2000


def test_arrays_broadcast_along_channels():
    acc = np.arange(-6, 6).reshape(2, 2, 3)
    multiplier, exponent = quantize_multipliers([0.25, 3.0, 1e-12])
    for fast, naive in ((requant_double, naive_double), (requant_single, naive_single)):
        got = fast(acc, multiplier, exponent)
        want = [naive(int(a), int(multiplier[i % 3]), int(exponent[i % 3])) for i, a in enumerate(acc.flat)]
        assert got.shape == acc.shape
        assert got.ravel().tolist() == want


@given(st.floats(2.0**-31, 2.0**30))
def test_multiplier_is_within_two_to_the_minus_31(m):
    multiplier, exponent = quantize_multiplier(m)
    assert 2**30 <= multiplier <= INT32_MAX
    error = abs(Fraction(multiplier) * Fraction(2) ** (exponent - 31) / Fraction(m) - 1)
    assert error <= Fraction(1, 2**31)


@pytest.mark.parametrize(
    ("m", "pair"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (1 - 2.0**-53, (2**30, 1)),  # the fraction rounds up to 2**31, which must be halved
        (2.0**-32, (2**30, -31)),  # the smallest factor that is kept
        (2.0**-33, (0, 0)),
        (5e-324, (0, 0)),
        (2.0**30 * 1.5, (INT32_MAX, 30)),  # beyond the largest shift: saturated
        (1e300, (INT32_MAX, 30)),
    ],
)
def test_multiplier_edge_cases(m, pair):
    assert quantize_multiplier(m) == pair


@pytest.mark.parametrize("m", [-1e-9, math.inf, math.nan])
def test_a_factor_that_is_no_scale_is_refused(m):
    with pytest.raises(ValueError, match="finite and not negative"):
        quantize_multiplier(m)


def test_left_shift_saturates_instead_of_wrapping():
    multiplier, exponent = quantize_multiplier(1000.0)
    got = requant_double(np.array([INT32_MIN, -3, 3, INT32_MAX]), multiplier, exponent)
    assert got[1:3].tolist() == [-3000, 3000]
    assert got[0] < -128 * 2**20
    assert got[3] > 127 * 2**20


def test_effective_scale_is_formed_in_double():
    """float32 products of these scales differ from the exact one by more than double's error."""
    x, w, y = np.float32(0.1), np.float32(0.3), np.float32(0.7)
    exact = Fraction(float(x)) * Fraction(float(w)) / Fraction(float(y))
    assert abs(Fraction(float(effective_scale(x, w, y))) / exact - 1) < Fraction(1, 2**51)
    assert abs(Fraction(float(x * w / y)) / exact - 1) > Fraction(1, 2**30)
