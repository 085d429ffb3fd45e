"""Scales and zero points: the affine map between real values and codes (Jacob et al., CVPR 2018)."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from .checking import is_whole


class AffineError(UsageError, ValueError):
    """A range, a scale, a width or a group that no affine map has."""


class AffineParams(NamedTuple):
    """``r = scale * (q - zero_point)``."""

    scale: float
    zero_point: int


def get_quantized_range(bitwidth: int) -> tuple[int, int]:
    """Return the smallest and the largest signed code of ``bitwidth`` bits.

    Examples
    --------
    >>> get_quantized_range(4)
    (-8, 7)
    """
    if not is_whole(bitwidth, 2, 32):
        raise AffineError(f"bits must lie between 2 and 32, a whole number, got {bitwidth!r}")
    return -(2 ** (bitwidth - 1)), 2 ** (bitwidth - 1) - 1


def _code_range(bits: int) -> tuple[int, int]:
    if not is_whole(bits, 2, 16):
        raise AffineError(f"bits must lie between 2 and 16, a whole number, got {bits!r}")
    return get_quantized_range(bits)


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
    AffineError
        If the range is empty or not finite, or ``bits`` is outside 2 to 16; also a ValueError.

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
    q_min, q_max = _code_range(bits)
    if not (math.isfinite(x_min) and math.isfinite(x_max) and x_min <= x_max):
        raise AffineError(f"the range [{x_min}, {x_max}] is empty or not finite; check the calibration data")
    low, high = min(float(x_min), 0.0), max(float(x_max), 0.0)
    scale = (high - low) / (q_max - q_min)
    if not (0 < scale < math.inf):
        raise AffineError(f"the range [{x_min}, {x_max}] is empty or not finite; check the calibration data")
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
        Axis of the output channels, 0 or above, one scale each; None: one scale for the whole tensor.
    bits : int, default=8
        2 to 16.  ``q_max = 2**(bits - 1) - 1``; the code ``-2**(bits - 1)`` is not used [1]_.

    Returns
    -------
    ndarray
        Shape (channels,) or (1,); 0 where every weight is 0: choose any other scale for such a channel.

    Raises
    ------
    AffineError
        If a weight is not finite, there is no such axis, or ``bits`` is outside 2 to 16.

    References
    ----------
    .. [1] Jacob et al., CVPR 2018, section 2.4 (weights never take the value -128).
    """
    _, q_max = _code_range(bits)
    magnitude = np.abs(_finite(w))
    if axis is None:
        return magnitude.max(initial=0.0).reshape(1) / q_max
    if not is_whole(axis, 0, magnitude.ndim - 1):
        raise AffineError(f"weights of shape {magnitude.shape} have no axis {axis!r}; choose one of theirs")
    others = tuple(i for i in range(magnitude.ndim) if i != axis)
    return magnitude.max(axis=others, initial=0.0) / q_max


def _finite(w: np.ndarray) -> np.ndarray:
    w = np.asarray(w, np.float64)
    if not np.isfinite(w).all():
        raise AffineError("a value to quantize is NaN or infinite; check the weights")
    return w


def quantize_weight(w: np.ndarray, scale: np.ndarray, axis: int | None, *, bits: int = 8) -> np.ndarray:
    """Return the codes ``round(w / scale)``, ties to even, clamped to ``[-q_max, q_max]``.

    Parameters
    ----------
    w : ndarray
        Real weights.
    scale : ndarray
        Positive scales, (channels,) along ``axis`` or (1,).
    bits : int, default=8
        2 to 16.

    Returns
    -------
    ndarray
        Shape of ``w``; int8 up to 8 bits, int16 above.

    Raises
    ------
    AffineError
        If a weight is not finite, a scale is not positive, their number does not fit, or ``bits`` is outside
        2 to 16.
    """
    _, q_max = _code_range(bits)
    w, scale = _finite(w), np.asarray(scale, np.float64)
    if scale.size != (1 if axis is None else w.shape[axis]) or not (np.isfinite(scale) & (scale > 0)).all():
        raise AffineError(
            f"weights of shape {w.shape} need one positive scale, or one for each entry of axis {axis}; "
            "a channel of zeros may have any, for example 1.0"
        )
    shape = [1] * w.ndim
    if axis is not None:
        shape[axis] = -1
    steps = w / scale.reshape(shape)
    return np.clip(np.rint(steps), -q_max, q_max).astype(_code_type(bits))


def _code_type(bits: int) -> type[np.signedinteger]:
    return np.int8 if bits <= 8 else np.int16


class GroupQuantized(NamedTuple):
    """Codes (..., n) and one scale and zero point for each group, (..., ceil(n / group_size))."""

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray


def group_quantize(w: np.ndarray, bits: int, group_size: int, *, symmetric: bool) -> GroupQuantized:
    """Quantize runs of ``group_size`` values along the last axis, each run with its own scale.

    Parameters
    ----------
    w : ndarray (..., n)
        Real, finite values.
    bits : int
        2 to 16.
    group_size : int
        Values in a group; the last group of a row is short where ``n`` is no multiple of it.
    symmetric : bool
        Zero point 0 and codes in ``[-q_max, q_max]``; else affine codes over the group's range, widened
        to contain 0, as `affine_params` has them.

    Returns
    -------
    GroupQuantized
        ``codes`` int8 (int16 above 8 bits) of the shape of ``w``, ``scales`` float32, ``zero_points`` int32.

    Raises
    ------
    AffineError
        If a value is not finite, a scale would leave float32, or ``bits`` or ``group_size`` makes no sense.

    Notes
    -----
    ``scale * (code - zero_point)`` is off by at most ``scale / 2``, plus 1e-7 of the group's range where an
    end of it is rounded with the float32 scale.

    Examples
    --------
    >>> group_quantize(np.array([[0.0, 1.0, -7.0, 70.0, 0.0]]), 4, 3, symmetric=True)
    GroupQuantized(codes=array([[ 0,  1, -7,  7,  0]], dtype=int8),
                   scales=array([[ 1., 10.]], dtype=float32),
                   zero_points=array([[0, 0]], dtype=int32))
    """
    q_min, q_max = _code_range(bits)
    groups = _grouped(w, group_size)  # (..., groups, group_size)
    low, high = groups.min(axis=-1, initial=0.0), groups.max(axis=-1, initial=0.0)
    wanted = np.maximum(high, -low) / q_max if symmetric else (high - low) / (q_max - q_min)
    if wanted.max(initial=0.0) > np.finfo(np.float32).max:
        raise AffineError("a value to quantize is beyond float32; check the weights")
    scales = np.maximum(wanted, np.finfo(np.float32).tiny).astype(np.float32)
    scales[wanted == 0] = 1.0
    steps = scales.astype(np.float64)
    zero_points = np.zeros(steps.shape) if symmetric else np.clip(np.rint(q_min - low / steps), q_min, q_max)
    codes = np.rint(groups / steps[..., None]) + zero_points[..., None]
    codes = np.clip(codes, -q_max if symmetric else q_min, q_max).astype(_code_type(bits))
    flat = codes.reshape(*codes.shape[:-2], -1)[..., : np.shape(w)[-1]]
    return GroupQuantized(flat, scales, zero_points.astype(np.int32))


def group_dequantize(quantized: GroupQuantized, group_size: int) -> np.ndarray:
    """Return the float32 values (..., n) that the codes of `group_quantize` stand for."""
    codes = _grouped(quantized.codes, group_size)
    values = (codes - quantized.zero_points[..., None]) * quantized.scales[..., None].astype(np.float64)
    flat = values.reshape(*values.shape[:-2], -1)
    return flat[..., : quantized.codes.shape[-1]].astype(np.float32)


def _grouped(w: np.ndarray, group_size: int) -> np.ndarray:
    """Return ``w`` (..., n) as float64 (..., groups, group_size), the last group filled up with zeros."""
    w = _finite(w)
    if not is_whole(group_size, 1, sys.maxsize) or w.ndim == 0:
        raise AffineError(f"groups of {group_size} values cannot be cut from an array of shape {w.shape}")
    groups = -(-w.shape[-1] // group_size)
    filled = np.zeros((*w.shape[:-1], groups * group_size))
    filled[..., : w.shape[-1]] = w
    return filled.reshape(*w.shape[:-1], groups, group_size)
