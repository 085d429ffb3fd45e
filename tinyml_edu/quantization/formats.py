"""Number formats of 4 to 16 bits: real values to bit patterns and back.

A format is named by a key of `FORMATS` or, for fixed point, by ``"qI.F"``.  Rounding is to the nearest value,
ties to the even code.  What lies beyond the largest value becomes infinity where the format has one, else NaN
where it has that (FP8 E4M3; some converters saturate instead, the standard allows both), else the largest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import UnknownNameError, UsageError


@dataclass(frozen=True)
class FloatFormat:
    """Sign, exponent E and fraction f: ``±2**(E - bias) * 1.f``, and ``±2**(1 - bias) * 0.f`` at E = 0.

    Attributes
    ----------
    exponent_bits, fraction_bits : int
        Widths of E and f; the sign takes one bit more.
    special : {"ieee", "nan", "none"}
        Codes that are no numbers: "ieee", infinities and NaNs at the largest exponent; "nan", only the
        code with all bits set; "none", every code is a number.
    """

    exponent_bits: int
    fraction_bits: int
    special: str

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, 1 - bias."""
        return 2 - 2 ** (self.exponent_bits - 1)

    @property
    def largest_code(self) -> int:
        """The code of the largest finite number."""
        everything = 2 ** (self.bits - 1) - 1
        reserved = {"ieee": 2**self.fraction_bits, "nan": 1, "none": 0}
        return everything - reserved[self.special]

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float(self.decode(np.array(self.largest_code)))

    def encode(self, x: np.ndarray, *, saturate: bool = False) -> np.ndarray:
        """Return codes of float64 values, uint8 or uint16; ``saturate`` clamps to `largest` instead."""
        if self.special == "none" and np.isnan(x).any():
            raise UsageError("this format has no code for NaN; check the values for NaN first")
        magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
        # frexp gives 0.5 <= m < 1, so that the leading bit stands for 2**(exponent - 1); 0 has none.
        exponent = np.where(magnitude > 0, np.frexp(magnitude)[1] - 1, self.min_exponent)
        exponent = np.maximum(exponent, self.min_exponent)
        # A carry of the rounded fraction into the next exponent is what the sum below makes of it.
        fraction = np.rint(np.ldexp(magnitude, self.fraction_bits - exponent)).astype(np.int64)
        code = ((exponent - self.min_exponent).astype(np.int64) << self.fraction_bits) + fraction
        beyond = (code > self.largest_code) | np.isinf(x)
        # The code after the largest number is infinity ("ieee") or NaN ("nan").
        code = np.where(beyond, self.largest_code + (not saturate and self.special != "none"), code)
        quiet = 2 ** (self.fraction_bits - 1) if self.special == "ieee" else 0
        code = np.where(np.isnan(x), self.largest_code + 1 + quiet, code)
        code |= np.signbit(x).astype(np.int64) << (self.bits - 1)
        return code.astype(np.uint8 if self.bits <= 8 else np.uint16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the float64 values of codes."""
        code = codes.astype(np.int64) & (2 ** (self.bits - 1) - 1)
        exponent, fraction = code >> self.fraction_bits, code & (2**self.fraction_bits - 1)
        whole = fraction + np.where(exponent > 0, 1 << self.fraction_bits, 0)
        power = np.maximum(exponent, 1) - 1 + self.min_exponent - self.fraction_bits
        value = np.ldexp(whole.astype(np.float64), power)
        value = np.where(code > self.largest_code, np.nan, value)
        if self.special == "ieee":
            value = np.where(code == self.largest_code + 1, np.inf, value)
        return np.where((codes.astype(np.int64) >> (self.bits - 1)) & 1 == 1, -value, value)


@dataclass(frozen=True)
class FixedPoint:
    """Signed codes of ``bits`` bits in steps of ``2**-fraction_bits``; values beyond the range saturate.

    ``symmetric`` leaves the most negative code unused.
    """

    bits: int
    fraction_bits: int
    symmetric: bool = False

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Return codes of float64 values, int8 or int16."""
        if np.isnan(x).any():
            raise UsageError("an integer format has no code for NaN; check the values for NaN first")
        q_max = 2 ** (self.bits - 1) - 1
        codes = np.clip(
            np.rint(np.ldexp(x, self.fraction_bits)), -q_max if self.symmetric else -q_max - 1, q_max
        )
        return codes.astype(np.int8 if self.bits <= 8 else np.int16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the float64 values of codes."""
        return np.ldexp(codes.astype(np.float64), -self.fraction_bits)


class BlockCodes(NamedTuple):
    """Element codes (..., n) and the scale codes uint8 (..., ceil(n / 32)) of a `BlockFormat`.

    A scale code ``s`` stands for ``2**(s - 127)`` (E8M0), and 255 for NaN.
    """

    codes: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class BlockFormat:
    """Microscaling (MX): 32 neighbours along the last axis share one power of two [1]_.

    The scale is ``2**floor(log2(max |x|))`` over the largest power of two in the element format, so that the
    largest element keeps its leading bits; elements that still lie beyond saturate.  A block with a NaN or
    an infinity becomes NaN as a whole.

    References
    ----------
    .. [1] Open Compute Project, OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3.
    """

    element: FloatFormat | FixedPoint
    block: int = 32

    @property
    def bits(self) -> float:
        """Bits for each value, with its share of the scale."""
        return self.element.bits + 8 / self.block

    def encode(self, x: np.ndarray) -> BlockCodes:
        """Return element and scale codes of float64 values (..., n)."""
        groups = self._blocks(x)
        finite = np.isfinite(groups).all(axis=-1)
        groups = np.where(finite[..., None], groups, 0.0)
        largest = np.abs(groups).max(axis=-1)
        exponent = np.frexp(largest)[1] - 1 - self._element_exponent()
        scale = np.where(largest > 0, np.clip(exponent, -127, 127), -127)
        scaled = np.ldexp(groups, -scale[..., None])
        if isinstance(self.element, FloatFormat):
            codes = self.element.encode(scaled, saturate=True)
        else:
            codes = self.element.encode(scaled)
        flat = self._flat(codes)[..., : x.shape[-1]]
        return BlockCodes(flat, np.where(finite, scale + 127, 255).astype(np.uint8))

    def decode(self, codes: BlockCodes) -> np.ndarray:
        """Return the float64 values (..., n) of element and scale codes."""
        values = self._blocks(self.element.decode(codes.codes))
        values = np.ldexp(values, codes.scales.astype(np.int64)[..., None] - 127)
        values = np.where(codes.scales[..., None] == 255, np.nan, values)
        return self._flat(values)[..., : codes.codes.shape[-1]]

    def _element_exponent(self) -> int:
        """Return the exponent of the largest power of two that the element format holds."""
        if isinstance(self.element, FloatFormat):
            return int(np.frexp(self.element.largest)[1]) - 1
        return self.element.bits - 2 - self.element.fraction_bits

    def _blocks(self, x: np.ndarray) -> np.ndarray:
        """Return (..., n) as (..., blocks, 32), the last block filled up with zeros."""
        if x.ndim == 0:
            raise UsageError("a block format needs at least one axis; pass an array of values")
        missing = -x.shape[-1] % self.block
        filled = np.concatenate([x, np.zeros((*x.shape[:-1], missing))], axis=-1)
        return filled.reshape(*x.shape[:-1], filled.shape[-1] // self.block, self.block)

    @staticmethod
    def _flat(blocks: np.ndarray) -> np.ndarray:
        """Return (..., blocks, 32) as (..., blocks * 32)."""
        return blocks.reshape(*blocks.shape[:-2], blocks.shape[-2] * blocks.shape[-1])


Format = FloatFormat | FixedPoint | BlockFormat

_FP8, _FP6, _FP4 = FloatFormat(4, 3, "nan"), FloatFormat(2, 3, "none"), FloatFormat(2, 1, "none")

FORMATS: dict[str, Format] = {
    "fp16": FloatFormat(5, 10, "ieee"),
    "bf16": FloatFormat(8, 7, "ieee"),
    "fp8_e4m3": _FP8,
    "fp8_e5m2": FloatFormat(5, 2, "ieee"),
    "fp6_e2m3": _FP6,
    "fp6_e3m2": FloatFormat(3, 2, "none"),
    "fp4_e2m1": _FP4,
    "int8": FixedPoint(8, 0, symmetric=True),
    "int4": FixedPoint(4, 0, symmetric=True),
    "mxfp8": BlockFormat(_FP8),
    "mxfp6": BlockFormat(_FP6),
    "mxfp4": BlockFormat(_FP4),
    "mxint8": BlockFormat(FixedPoint(8, 6, symmetric=True)),
}
"""The formats by name; ``"qI.F"`` names fixed point with a sign, I integer and F fraction bits."""


def format_of(name: str) -> Format:
    """Return the format called ``name``.

    Examples
    --------
    >>> format_of("q3.4")
    FixedPoint(bits=8, fraction_bits=4, symmetric=False)
    """
    fixed = re.fullmatch(r"q(\d+)\.(\d+)", str(name))
    if fixed:
        integer, fraction = int(fixed[1]), int(fixed[2])
        if not 1 <= integer + fraction <= 15:
            raise UsageError(f"{name} has {1 + integer + fraction} bits; fixed point here has 2 to 16")
        return FixedPoint(1 + integer + fraction, fraction)
    if name not in FORMATS:
        raise UnknownNameError("number format", str(name), [*FORMATS, "q3.4"])
    return FORMATS[name]


def encode(x: Any, fmt: str) -> Any:
    """Return the codes of real values.

    Parameters
    ----------
    x : array of any shape
        Real values; float64 is rounded once, not by way of float32.
    fmt : str
        Name of the format, see `FORMATS`.

    Returns
    -------
    ndarray or BlockCodes
        Of the shape of ``x``: uint8 or uint16 bit patterns of a float format, int8 or int16 codes of an
        integer format; a block format gives `BlockCodes`.

    Raises
    ------
    UsageError
        If the format does not exist, the values are no real numbers, or one is NaN and the format has none.

    Examples
    --------
    >>> encode([1.0, -0.3, 500.0], "fp8_e4m3")
    array([ 56, 170, 127], dtype=uint8)
    """
    values = x.detach().cpu() if hasattr(x, "detach") else x  # a torch tensor, without importing torch
    try:
        real = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"a format encodes real numbers, not {type(x).__name__}; pass an array") from None
    return format_of(fmt).encode(real)


def decode(codes: Any, fmt: str) -> np.ndarray:
    """Return the float32 values that the codes of `encode` stand for."""
    known = format_of(fmt)
    if isinstance(known, BlockFormat):
        return known.decode(BlockCodes(*codes)).astype(np.float32)
    return known.decode(np.asarray(codes)).astype(np.float32)


def round_to(x: Any, fmt: str) -> np.ndarray:
    """Return the float32 values nearest to ``x`` that a format holds.

    Examples
    --------
    >>> round_to([0.3, 2.4, 100.0], "fp4_e2m1")
    array([0.5, 2. , 6. ], dtype=float32)
    """
    return decode(encode(x, fmt), fmt)
