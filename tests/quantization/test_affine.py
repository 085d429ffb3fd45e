"""Scales and zero points: the half-step bound, its control, and the range of the codes."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyml_edu.quantization import (
    GroupQuantized,
    affine_params,
    get_quantized_range,
    group_dequantize,
    group_quantize,
    quantize_weight,
    symmetric_scale,
)

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


@pytest.mark.parametrize(
    ("bits", "limits"), [(2, (-2, 1)), (4, (-8, 7)), (8, (-128, 127)), (32, (-(2**31), 2**31 - 1))]
)
def test_signed_codes_are_those_of_twos_complement(bits, limits):
    assert get_quantized_range(bits) == limits


@pytest.mark.parametrize("bits", [1, 33, True])
def test_a_range_of_no_such_width_is_refused(bits):
    with pytest.raises(ValueError, match="between 2 and 32"):
        get_quantized_range(bits)


@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_of_up_to_16_bits_fit_their_type(bits, rng):
    w = rng.normal(size=(3, 50))
    codes = quantize_weight(w, symmetric_scale(w, 0, bits=bits), 0, bits=bits)
    assert codes.dtype == (np.int8 if bits <= 8 else np.int16)
    assert np.all(np.abs(codes.astype(int)).max(axis=1) == 2 ** (bits - 1) - 1)


MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 40)),
    elements=st.floats(-(2.0**20), 2.0**20, width=32),
)


def groups_one_by_one(w: np.ndarray, bits: int, size: int, symmetric: bool) -> GroupQuantized:
    """Quantize with the functions for whole tensors, a group at a time."""
    codes, scales, zero_points = np.zeros(w.shape, int), [], []
    q_min, q_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for row, line in enumerate(w.astype(np.float64)):
        for start in range(0, len(line), size):
            group = line[start : start + size]
            if not group.any():
                scale, zero_point = 1.0, 0 if symmetric else q_min
            elif symmetric:
                scale, zero_point = np.abs(group).max() / q_max, 0
            else:
                scale, zero_point = affine_params(group.min(), group.max(), bits=bits)
            scale = float(np.float32(max(scale, np.finfo(np.float32).tiny)))
            q = np.rint(group / scale) + zero_point
            codes[row, start : start + size] = np.clip(q, -q_max if symmetric else q_min, q_max)
            scales.append(scale)
            zero_points.append(zero_point)
    shape = (len(w), -1)
    return GroupQuantized(codes, np.reshape(scales, shape), np.reshape(zero_points, shape))


@settings(max_examples=150, deadline=None)
@given(MATRICES, st.integers(2, 16), st.integers(1, 45), st.booleans())
def test_groups_are_quantized_as_tensors_of_their_own(w, bits, size, symmetric):
    w = np.where(np.abs(w) < 1e-30, 0, w)
    got = group_quantize(w, bits, size, symmetric=symmetric)
    expected = groups_one_by_one(w, bits, size, symmetric)
    assert np.array_equal(got.scales, expected.scales.astype(np.float32))
    same = got.zero_points == expected.zero_points
    assert np.all(np.abs(got.zero_points - expected.zero_points)[~same] == 1)  # a tie that float32 moved
    assert np.array_equal(got.codes[:, :size][same[:, 0]], expected.codes[:, :size][same[:, 0]])
    steps = np.repeat(got.scales.astype(np.float64), size, axis=1)[:, : w.shape[1]]
    spans = np.repeat(np.abs(got.zero_points) + 2.0**bits, size, axis=1)[:, : w.shape[1]]
    error = np.abs(group_dequantize(got, size) - w.astype(np.float64))
    # Half a step, and the rounding of the scale and of the result to float32 at up to 2**bits steps.
    assert np.all(error <= steps / 2 * (1 + 1e-9) + steps * spans * 2.0**-22)


def test_a_group_across_rows_or_of_another_size_breaks_the_bound(rng):
    w = rng.normal(size=(2, 64)) * np.repeat([1.0, 100.0], 32)
    right = group_quantize(w, 4, 32, symmetric=True)
    assert np.abs(group_dequantize(right, 32) - w)[:, :32].max() <= right.scales[:, 0].max() / 2 * (1 + 1e-6)
    wide = group_quantize(w, 4, 64, symmetric=True)
    assert np.abs(group_dequantize(wide, 64) - w)[:, :32].max() > right.scales[:, 0].max() / 2


def test_the_last_group_may_be_short_and_one_group_is_the_whole_row():
    w = np.arange(-5.0, 5.0).reshape(1, 10)
    codes, scales, zero_points = group_quantize(w, 8, 4, symmetric=False)
    assert (codes.shape, scales.shape, zero_points.shape) == ((1, 10), (1, 3), (1, 3))
    assert group_quantize(w, 8, 1000, symmetric=True).scales == np.float32(5 / 127)
    assert np.array_equal(group_quantize(w[0], 8, 4, symmetric=False).codes, codes[0])


def test_smaller_groups_have_smaller_errors(rng):
    w = rng.standard_t(3, size=(8, 256))
    errors = [
        np.square(group_dequantize(group_quantize(w, 3, g, symmetric=s), g) - w).mean()
        for s in (True, False)
        for g in (256, 64, 16, 4)
    ]
    assert errors[:4] == sorted(errors[:4], reverse=True)
    assert errors[4:] == sorted(errors[4:], reverse=True)


@pytest.mark.parametrize(
    ("w", "bits", "size", "words"),
    [
        (np.ones(3), 4, 0, "groups of 0"),
        (np.float64(1.0), 4, 2, "groups of 2"),
        (np.array([1.0, np.nan]), 4, 2, "NaN or infinite"),
        (np.ones(3), 17, 2, "between 2 and 16"),
    ],
)
def test_groups_that_make_no_sense_are_refused(w, bits, size, words):
    with pytest.raises(ValueError, match=words):
        group_quantize(w, bits, size, symmetric=True)
