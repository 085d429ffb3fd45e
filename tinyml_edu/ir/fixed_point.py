"""Fixed-point requantization: a real factor becomes an int32 multiplier and a shift.

An int32 accumulator ``acc`` has to be scaled by a real ``m = s_x * s_w / s_y``.  The integer engine
stores ``m`` as ``multiplier * 2**(exponent - 31)`` with ``multiplier`` in ``[2**30, 2**31)`` (Jacob et
al., CVPR 2018, eq. 6) and rounds in one of two ways:

- `requant_double`: round after the 31-bit shift, then again after the rest of it.  TensorFlow Lite's
  reference convolutions, ADD and MEAN do this.
- `requant_single`: one rounding, half up, in 64 bits.  FULLY_CONNECTED and the ``fast`` mode do this.

The two differ by at most one code, and only next to a tie.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

REQUANT_MODES = ("exact", "fast")


def effective_scale(x_scale: ArrayLike, w_scale: ArrayLike, y_scale: ArrayLike) -> np.ndarray:
    """Return ``s_x * s_w / s_y`` in float64, each scale widened first; shapes broadcast."""
    return np.asarray(x_scale, np.float64) * np.asarray(w_scale, np.float64) / np.asarray(y_scale, np.float64)


def quantize_multiplier(m: float) -> tuple[int, int]:
    """Return ``(multiplier, exponent)`` with ``m ≈ multiplier * 2**(exponent - 31)``.

    Parameters
    ----------
    m : float
        Real factor, finite and not negative.

    Returns
    -------
    multiplier : int
        In ``[2**30, 2**31)``, or 0 where ``m`` is 0 or below ``2**-32``: every int32 value would round
        to 0 or ±1 at most, and the reference engine drops such a channel (real networks have them).
    exponent : int
        In ``[-31, 30]``: positive shifts left.  A larger factor saturates at the largest pair.

    Raises
    ------
    ValueError
        If ``m`` is negative, infinite or not a number.

    Notes
    -----
    The relative error is at most ``2**-31``: the multiplier is at least ``2**30`` and off by half.

    Examples
    --------
    >>> quantize_multiplier(0.75)
    (1610612736, 0)
    >>> quantize_multiplier(1 - 2**-40)
    (1073741824, 1)
    >>> quantize_multiplier(2.0**-33)
    (0, 0)
    """
    if not (math.isfinite(m) and m >= 0):
        raise ValueError(f"a scale ratio must be finite and not negative, got {m}")
    fraction, exponent = math.frexp(m)
    multiplier = math.floor(math.ldexp(fraction, 31) + 0.5)
    if multiplier == 2**31:  # the fraction rounded up to 1.0
        multiplier, exponent = 2**30, exponent + 1
    if multiplier == 0 or exponent < -31:
        return 0, 0
    if exponent > 30:
        return INT32_MAX, 30
    return multiplier, exponent


def quantize_multipliers(m: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return `quantize_multiplier` of each of the ``m`` (n,) as int32 arrays (n,) and (n,)."""
    pairs = [quantize_multiplier(float(value)) for value in np.atleast_1d(m)]
    multiplier, exponent = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(multiplier, np.int32), np.array(exponent, np.int32)


def requant_double(acc: ArrayLike, multiplier: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """Scale int32 values with two roundings, as the reference kernels of TensorFlow Lite do.

    With ``left = max(exponent, 0)`` and ``right = max(-exponent, 0)``::

        high = floor((saturate_int32(acc << left) * multiplier + 2**30) / 2**31)     round half up
        y    = high / 2**right                                        round half away from zero

    Parameters
    ----------
    acc : array of int, any shape
        Accumulators, each in the int32 range.
    multiplier, exponent : int or array
        From `quantize_multiplier`; they broadcast against ``acc`` (last axis: channels).

    Returns
    -------
    ndarray of int64
        Within the int32 range.

    Notes
    -----
    ``acc << left`` saturates.  The reference leaves an overflow there undefined; every saturated
    value lies beyond any int8 clamp, so saturating is what the real factor would have given.

    Examples
    --------
    >>> requant_double([5, -5, 6, -6], 2**30, -1)    # times 1/4: 1.25, -1.25, 1.5, -1.5
    array([ 2, -1,  2, -2])
    """
    x = np.asarray(acc, np.int64)
    multiplier, exponent = np.asarray(multiplier, np.int64), np.asarray(exponent, np.int64)
    if np.any(exponent > 0):
        x = np.clip(x << np.maximum(exponent, 0), INT32_MIN, INT32_MAX)
    right = np.maximum(-exponent, 0)
    high = (x * multiplier + (1 << 30)) >> 31
    # Half away from zero is a floor after adding a half, less one unit where the value is negative.
    negative = (high >> 63) & -(right > 0).astype(np.int64)
    return (high + ((1 << right) >> 1) + negative) >> right


def requant_single(acc: ArrayLike, multiplier: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """Scale int32 values with one rounding, half up: ``floor(acc * m + 1/2)`` in 64 bits.

    Parameters and shapes are those of `requant_double`.  With a positive exponent the int64 result may
    leave the int32 range: clamp it before it is narrowed.

    Examples
    --------
    >>> requant_single([5, -5, 6, -6], 2**30, -1)    # times 1/4: 1.25, -1.25, 1.5, -1.5
    array([ 1, -1,  2, -1])
    """
    shift = 31 - np.asarray(exponent, np.int64)
    product = np.asarray(acc, np.int64) * np.asarray(multiplier, np.int64)
    return (product + (np.int64(1) << (shift - 1))) >> shift
