"""A comparison passes exactly inside its tolerance and names the class of mistake."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyml_edu.checks.compare import all_of, close
from tinyml_edu.checks.protocol import PASS, wrong

SHAPED = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


@given(SHAPED)
def test_a_value_is_close_to_itself_and_not_to_its_neighbour(values):
    want = np.array(values)
    assert close(want.copy(), want).passed
    got = want.copy()
    got[-1] = np.nextafter(got[-1], np.inf)
    assert not close(got, want).passed


@given(SHAPED, st.integers(0, 19), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_nan_or_an_infinity_never_passes(values, index, bad):
    want = np.array(values)
    got = want.copy()
    got[index % got.size] = bad
    assert not close(got, want, rtol=1e9, atol=1e9).passed


def test_nan_is_not_close_even_to_nan():
    assert not close([np.nan], [np.nan], atol=1.0).passed


def test_equal_infinities_are_close():
    assert close([np.inf], [np.inf], atol=1.0).passed


def test_unsigned_differences_do_not_wrap():
    assert not close(np.array([0], np.uint8), np.array([255], np.uint8), atol=1.0).passed


@pytest.mark.parametrize(
    ("got", "hint"),
    [
        ([2.0, -4.0, 6.0], "every value is 2 times"),
        ([-1.0, 2.0, -3.0], "every sign is flipped"),
        ([11.0, 8.0, 13.0], "every value is off by +10"),
        ([np.nan, -2.0, 3.0], "NaN"),
        ([1.0, 2.0, 3.0], "forgot the sign"),
        ([9.0, -2.0, 3.0], "elsewhere"),
    ],
)
def test_the_class_of_mistake_is_named(got, hint):
    want = np.array([1.0, -2.0, 3.0])
    verdict = close(got, want, mistakes={"you forgot the sign": np.abs(want)}, look_at="elsewhere")
    assert hint in verdict.look_at


def test_swapped_axes_are_named():
    verdict = close(np.zeros((3, 2)), np.zeros((2, 3)))
    assert "(3, 2), expected (2, 3)" in verdict.reason
    assert verdict.look_at == "the axes are swapped"


def test_a_wrong_dtype_is_named_only_when_it_matters():
    assert close(np.array([1.0]), np.array([1]), dtype=np.int8).reason.endswith(
        "dtype float64, expected int8"
    )
    assert close(np.array([1.0]), np.array([1])).passed


def test_texts_compare_as_texts():
    assert close(np.asarray("a"), "a").passed
    assert not close(np.asarray("a"), "b").passed
    assert not close(np.asarray("1"), 1).passed


def test_the_first_of_the_worst_is_reported():
    assert all_of(PASS, wrong("a"), wrong("b")).reason == "a"
