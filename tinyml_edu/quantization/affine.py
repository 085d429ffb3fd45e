"""Scales and zero points: the affine map between real values and codes (Jacob et al., CVPR 2018)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class AffineParams(NamedTuple):
    """``r = scale * (q - zero_point)``."""

    scale: float
    zero_point: int


def affine_params(x_min: float, x_max: float, *, bits: int = 8) -> AffineParams:
    """Return the scale and zero point that map ``[x_min, x_max]`` onto signed codes.

    A code ``q`` stands for the real value ``r = scale * (q - zero_point)`` [1]_.  The range is
    first widened to contain 0, so that 0.0 (padding, a ReLU output) has an exact code.

    Parameters
    ----------
    x_min, x_max : float
        Smallest and largest real value to represent.
    bits : int, default=8
        Width of the code, 2 to 16; codes span ``[-2**(bits - 1), 2**(bits - 1) - 1]``.

    Returns
    -------
    AffineParams
        ``scale`` (float, > 0) and ``zero_point`` (int, itself a valid code).

    Raises
    ------
    ValueError
        If the range is empty or not finite, or ``bits`` is outside 2 to 16.

    Notes
    -----
    For every ``r`` in the widened range the round trip is off by at most ``scale / 2``.

    References
    ----------
    .. [1] Jacob et al., CVPR 2018, eq. (1).  https://arxiv.org/abs/1712.05877

    Examples
    --------
    >>> affine_params(-1.0, 3.0)
    AffineParams(scale=0.01568627450980392, zero_point=-64)
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must lie between 2 and 16, got {bits}")
    if not (math.isfinite(x_min) and math.isfinite(x_max) and x_min <= x_max):
        raise ValueError(f"the range [{x_min}, {x_max}] is empty or not finite; check the calibration data")
    low, high = min(float(x_min), 0.0), max(float(x_max), 0.0)
    q_min, q_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (q_max - q_min)
    if not (0 < scale < math.inf):
        raise ValueError(f"the range [{x_min}, {x_max}] is empty or not finite; check the calibration data")
    # low >= -(q_max - q_min) * scale, so the quotient lies between q_min and q_max; clamped for rounding.
    zero_point = min(max(round(q_min - low / scale), q_min), q_max)
    return AffineParams(scale, zero_point)


def symmetric_scale(w: np.ndarray, axis: int | None, *, bits: int = 8) -> np.ndarray:
    """Return float64 scales that map ``w`` onto ``[-q_max, q_max]`` with zero point 0.

    Parameters
    ----------
    w : ndarray
        Real weights.
    axis : int or None
        Axis of the output channels, one scale each; None: one scale for the whole tensor.
    bits : int, default=8
        ``q_max = 2**(bits - 1) - 1``; the code ``-2**(bits - 1)`` is not used [1]_.

    Returns
    -------
    ndarray
        Shape (channels,) or (1,); 0 where every weight is 0.

    References
    ----------
    .. [1] Jacob et al., CVPR 2018, section 2.4 (weights never take the value -128).
    """
    q_max = 2 ** (bits - 1) - 1
    magnitude = np.abs(np.asarray(w, np.float64))
    if axis is None:
        return magnitude.max(initial=0.0).reshape(1) / q_max
    return np.moveaxis(magnitude, axis, 0).reshape(w.shape[axis], -1).max(axis=1, initial=0.0) / q_max


def quantize_weight(w: np.ndarray, scale: np.ndarray, axis: int | None, *, bits: int = 8) -> np.ndarray:
    """Return the int8 codes ``round(w / scale)``, ties to even, clamped to ``[-q_max, q_max]``.

    Parameters
    ----------
    w : ndarray
        Real weights.
    scale : ndarray
        Positive scales, (channels,) along ``axis`` or (1,).
    """
    q_max = 2 ** (bits - 1) - 1
    shape = [1] * w.ndim
    if axis is not None:
        shape[axis] = -1
    steps = np.asarray(w, np.float64) / np.asarray(scale, np.float64).reshape(shape)
    return np.clip(np.rint(steps), -q_max, q_max).astype(np.int8)
