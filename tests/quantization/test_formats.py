"""Formats against ml_dtypes, NumPy and PyTorch, bit for bit.

Rounding is monotone, so that a format is right everywhere if it is right on both sides of every boundary
between two neighbouring values, and on the boundary itself: `boundaries` are these three float32 values for
every pair of neighbours.  Random float32 bit patterns guard the argument.
"""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.quantization import FORMATS, formats, round_to
from tinyml_edu.quantization.formats import BlockCodes, decode, encode

ORACLES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def pattern_type(name: str) -> type:
    return np.uint16 if FORMATS[name].bits == 16 else np.uint8


def all_codes(name: str) -> np.ndarray:
    return np.arange(2 ** FORMATS[name].bits).astype(pattern_type(name))


def reference_encode(x: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(ORACLES[name]).view(pattern_type(name))


def boundaries(name: str) -> np.ndarray:
    """Return float32 values on, just below and just above every boundary, the overflow's included."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = all_codes(name).view(ORACLES[name]).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    step = values[-1] - values[-2]
    values = np.concatenate([[values[0] - step], values, [values[-1] + step]])
    middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    assert np.array_equal(middle, (values[1:] + values[:-1]) / 2)  # float32 holds every boundary
    down, up = np.nextafter(middle, np.float32(-np.inf)), np.nextafter(middle, np.float32(np.inf))
    return np.concatenate([middle, down, up, values[1:-1].astype(np.float32)])


def without_nan(x: np.ndarray, name: str) -> np.ndarray:
    return x[~np.isnan(x)] if FORMATS[name].special == "none" else x


BLOCKS = [name for name, known in FORMATS.items() if isinstance(known, formats.BlockFormat)]

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e38, -1e38, 1e-45, -1e-45], np.float32)


@pytest.mark.parametrize("name", ORACLES)
def test_every_code_stands_for_the_value_that_the_oracle_says(name):
    codes = all_codes(name)
    expected = codes.view(ORACLES[name]).astype(np.float32)
    assert np.array_equal(decode(codes, name), expected, equal_nan=True)
    assert np.array_equal(np.signbit(decode(codes, name)), np.signbit(expected))


@pytest.mark.parametrize("name", ORACLES)
def test_rounding_is_that_of_the_oracle_at_every_boundary_and_at_random(name):
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    x = without_nan(np.concatenate([boundaries(name), SPECIAL, random[~np.isnan(random)]]), name)
    assert np.array_equal(encode(x, name), reference_encode(x, name))


@pytest.mark.parametrize("name", TORCH)
def test_rounding_is_that_of_torch(name):
    x = np.concatenate([boundaries(name), SPECIAL[~np.isnan(SPECIAL)]])
    if name == "fp8_e4m3":  # torch saturates what lies beyond; here, as in ml_dtypes, it is NaN
        x = x[np.abs(x) < FORMATS[name].largest + 16]
    rounded = torch.from_numpy(x).to(TORCH[name])
    pattern = rounded.view(torch.int16 if rounded.element_size() == 2 else torch.uint8).numpy()
    assert np.array_equal(encode(x, name), pattern.view(pattern_type(name)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.astype(np.uint32) >> 16,  # control: truncation of the pattern, not rounding
        lambda x: (x + 0x8000) >> 16,  # control: ties away from zero, not to even
    ],
)
def test_the_boundaries_tell_other_roundings_apart(wrong):
    x = boundaries("bf16")
    x = x[np.abs(x) < 1e38]
    assert not np.array_equal(wrong(x.view(np.uint32)).astype(np.uint16), reference_encode(x, "bf16"))


@pytest.mark.parametrize("name", ORACLES)
def test_a_value_of_the_format_comes_back_as_its_own_code(name):
    codes = all_codes(name)
    codes = codes[~np.isnan(decode(codes, name))]
    assert np.array_equal(encode(decode(codes, name), name), codes)


def test_float64_is_rounded_once():
    # Just above the tie between 1 and 1 + 2**-7; float32 would drop the last term and round the tie down.
    x = 1 + 2.0**-8 + 2.0**-40
    assert round_to([x], "bf16").tolist() == [1 + 2.0**-7]
    assert round_to(np.float32([x]), "bf16").tolist() == [1.0]


def test_the_largest_numbers_are_those_of_the_standards():
    largest = {name: FORMATS[name].largest for name in ORACLES}
    assert largest == {
        "fp16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127, "fp8_e4m3": 448.0, "fp8_e5m2": 57344.0,
        "fp6_e2m3": 7.5, "fp6_e3m2": 28.0, "fp4_e2m1": 6.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp6_e2m3", "int8", "int4", "q3.4"])
def test_nan_is_refused_where_no_code_stands_for_it(name):
    with pytest.raises(UsageError, match="no code for NaN"):
        encode([0.0, np.nan], name)


@pytest.mark.parametrize(
    ("name", "integer", "fraction"), [("q3.4", 3, 4), ("q0.7", 0, 7), ("q8.7", 8, 7), ("q1.0", 1, 0)]
)
def test_fixed_point_rounds_to_its_step_half_to_even_and_saturates(name, integer, fraction):
    bits = 1 + integer + fraction
    steps = np.arange(-(2**bits), 2**bits, dtype=np.float64) / 4 + np.array([[0.0], [0.5]])
    expected = [min(max(round(float(s)), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) for s in steps.ravel()]
    codes = encode(steps.ravel() / 2**fraction, name)
    assert codes.tolist() == expected
    assert decode(codes, name).tolist() == [c / 2**fraction for c in expected]


@pytest.mark.parametrize(("name", "q_max"), [("int8", 127), ("int4", 7)])
def test_the_integer_formats_are_symmetric(name, q_max):
    x = np.array([-1e9, -q_max - 1, -0.5, 0.5, 1.5, q_max + 0.4, np.inf])
    assert encode(x, name).tolist() == [-q_max, -q_max, 0, 0, 2, q_max, q_max]
    assert round_to(x, name).tolist() == encode(x, name).tolist()


ELEMENTS = {
    "mxfp8": ml_dtypes.float8_e4m3fn,
    "mxfp6": ml_dtypes.float6_e2m3fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
}


def reference_blocks(row: np.ndarray, name: str) -> np.ndarray:
    """Round one row block by block by the specification, elements by ml_dtypes, the scale by E8M0."""
    result = []
    for start in range(0, len(row), 32):
        block = row[start : start + 32].astype(np.float64)
        largest = np.abs(block).max()
        if not np.isfinite(largest):
            result += [np.nan] * len(block)
            continue
        top = {"mxfp8": 448.0, "mxfp6": 7.5, "mxfp4": 6.0, "mxint8": 127 / 64}[name]
        power = np.floor(np.log2(largest)) - np.floor(np.log2(top)) if largest else -127.0
        scale = (
            np.array(2.0 ** max(power, -127), np.float32).astype(ml_dtypes.float8_e8m0fnu).astype(np.float64)
        )
        scaled = np.clip(block / scale, -top, top)
        element = np.rint(scaled * 64) / 64 if name == "mxint8" else scaled.astype(ELEMENTS[name])
        result += (element.astype(np.float64) * scale).tolist()
    return np.array(result, np.float32)


@pytest.mark.parametrize("name", [*ELEMENTS, "mxint8"])
@pytest.mark.parametrize("power", [-140, -126, -3, 0, 5, 120])
def test_blocks_are_those_of_the_specification(name, power):
    rng = np.random.default_rng(power + 200)
    for n in (32, 64, 33, 5, 1):
        row = (rng.normal(size=n) * 2.0**power).astype(np.float32)
        assert np.array_equal(round_to(row, name), reference_blocks(row, name)), (n, row)


@pytest.mark.parametrize("name", [*ELEMENTS, "mxint8"])
def test_blocks_do_not_mix_and_zeros_and_nan_stay_in_theirs(name):
    x = np.zeros((2, 96), np.float32)
    x[0, :32], x[0, 40], x[1, 95] = 1.0, np.nan, 2.0**20
    codes = encode(x, name)
    assert isinstance(codes, BlockCodes)
    assert codes.codes.shape == (2, 96)
    assert codes.scales.shape == (2, 3)
    assert codes.scales[0].tolist()[1:] == [255, 0]
    y = decode(codes, name)
    assert np.isnan(y[0, 32:64]).all()
    assert np.array_equal(np.nan_to_num(y, nan=7.0), np.where(np.isnan(y), 7.0, np.nan_to_num(x)))
    assert decode(tuple(codes), name).shape == x.shape


def test_mx_keeps_small_values_beside_large_blocks_where_one_scale_loses_them():
    x = np.repeat(np.float32([1.0, 2.0**-20]), 32)
    assert np.array_equal(round_to(x, "mxfp4"), x)
    assert np.all(round_to(x, "fp4_e2m1")[32:] == 0)


@given(
    hnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.sampled_from(sorted(FORMATS)),
)
def test_rounding_twice_is_rounding_once_and_keeps_the_order(x, name):
    once = round_to(x, name)
    assert np.array_equal(round_to(once, name), once, equal_nan=True)
    if name not in BLOCKS:
        ordered = round_to(np.sort(x), name)
        assert np.all(np.diff(ordered[np.isfinite(ordered)]) >= 0)


@pytest.mark.parametrize(
    ("name", "words"), [("fp9", "number format"), ("q9.9", "2 to 16"), ("q0.0", "2 to 16")]
)
def test_an_unknown_format_is_a_usage_error(name, words):
    with pytest.raises(UsageError, match=words):
        encode([1.0], name)


def test_a_misspelt_format_is_corrected():
    with pytest.raises(UnknownNameError, match="did you mean 'fp8_e4m3'"):
        encode([1.0], "fp8_e4m3fn")


def test_bits_count_the_shared_scale():
    assert FORMATS["mxfp4"].bits == 4.25
    assert FORMATS["fp8_e5m2"].bits == 8
