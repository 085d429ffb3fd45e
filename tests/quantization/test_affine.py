"""Scales and zero points: the half-step bound, its control, and the range of the codes."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinyml_edu.quantization import affine_params, quantize_weight, symmetric_scale

REALS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda r: 0.0 if abs(r) < 1e-9 else r)


def round_trip(r: float, scale: float, zero_point: int, bits: int) -> float:
    q = round(r / scale) + zero_point
    q = min(max(q, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    return scale * (q - zero_point)


@given(REALS, REALS, st.floats(0, 1), st.integers(2, 16))
def test_round_trip_is_within_half_a_step(a, b, t, bits):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    assume(high > low)
    scale, zero_point = affine_params(min(a, b), max(a, b), bits=bits)
    r = min(max(low + t * (high - low), low), high)
    error = abs(r - round_trip(r, scale, zero_point, bits))
    assert error <= scale / 2 * (1 + 1e-9), (low, high, r, error / scale)


@given(REALS, REALS, st.integers(2, 16))
def test_zero_has_an_exact_code(a, b, bits):
    assume(a != 0 or b != 0)
    scale, zero_point = affine_params(min(a, b), max(a, b), bits=bits)
    assert scale > 0
    assert -(2 ** (bits - 1)) <= zero_point <= 2 ** (bits - 1) - 1
    assert round_trip(0.0, scale, zero_point, bits) == 0.0


def test_the_bound_can_fail():
    scale, zero_point = affine_params(-1.0, 3.0)
    assert abs(3.0 - round_trip(3.0, scale, zero_point + 1, 8)) > scale / 2
    assert abs(3.0 - round_trip(3.0, scale, -zero_point, 8)) > scale / 2


def test_a_range_that_is_not_widened_has_no_code_for_zero():
    scale = (3.0 - 1.0) / 255  # of [1, 3] as it is
    zero_point = round(-128 - 1.0 / scale)
    assert not -128 <= zero_point <= 127
    assert affine_params(1.0, 3.0) == affine_params(0.0, 3.0)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, -1.0), (0.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (-1e308, 1e308)]
)
def test_an_empty_or_infinite_range_is_refused(low, high):
    with pytest.raises(ValueError, match="empty or not finite"):
        affine_params(low, high)


@pytest.mark.parametrize("bits", [1, 17])
def test_a_width_out_of_range_is_refused(bits):
    with pytest.raises(ValueError, match="between 2 and 16"):
        affine_params(0.0, 1.0, bits=bits)


@pytest.mark.parametrize("axis", [0, 3, None])
def test_weights_round_within_half_a_step_and_use_the_full_symmetric_range(axis, rng):
    w = rng.normal(size=(5, 3, 2, 4)) * rng.uniform(0.01, 100, size=(5, 1, 1, 4))
    scale = symmetric_scale(w, axis)
    assert scale.shape == (1 if axis is None else w.shape[axis],)
    codes = quantize_weight(w, scale, axis)
    shape = [-1 if i == axis else 1 for i in range(4)] if axis is not None else [1]
    steps = scale.reshape(shape)
    assert np.all(np.abs(codes * steps - w) <= steps / 2 * (1 + 1e-9))
    others = tuple(i for i in range(4) if i != axis)
    assert np.all(np.abs(codes.astype(int)).max(axis=others) == 127)  # in every channel, and never -128


def test_weights_scaled_along_the_wrong_axis_break_the_bound(rng):
    w = rng.normal(size=(4, 4)) * np.array([[0.01], [1.0], [10.0], [100.0]])
    right, wrong = symmetric_scale(w, 0), symmetric_scale(w, 1)
    assert np.any(np.abs(quantize_weight(w, wrong, 1) * wrong - w) > right[:, None] / 2)


def test_a_channel_of_zeros_has_scale_zero():
    assert symmetric_scale(np.array([[0.0, 0.0], [1.27, 0.0]]), 0).tolist() == [0.0, 0.01]
