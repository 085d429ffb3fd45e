"""Exact int8 kernels in NumPy: the definition that the generated C is compared with, bit for bit.

Every kernel takes its inputs, then by keyword ``attrs`` (see `attrs`; only the top and left padding are
read, and they are signed), ``params`` (see `int_params`), ``out_shape`` (N, ...) and ``requant``:

- ``"exact"``: the rounding of TensorFlow Lite's reference kernel of that op;
- ``"fast"``: one rounding, half up, everywhere; at most one code away from ``"exact"``.

Sums are formed by floating-point matrix products, which are exact here: integers whose partial sums
stay below ``2**24`` (float32) or ``2**53`` (float64) in magnitude are represented without rounding,
whatever the order of summation.
"""
# ruff: noqa: ARG001 - all kernels have one signature, whether or not an op uses every part of it

from __future__ import annotations

from typing import Any

import numpy as np

from .attrs import (
    Add,
    Concatenation,
    Conv2D,
    DepthwiseConv2D,
    Elementwise,
    FullyConnected,
    LeakyRelu,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Quantize,
    Reshape,
    ResizeNearest,
    Softmax,
    Sub,
)
from .fixed_point import requant_double, requant_single
from .int_params import INT8_MAX, INT8_MIN, AddParams, ConvParams, MeanParams, MulParams, PoolParams
from .windows import Slide, batches


def _requant(acc: np.ndarray, multiplier: Any, exponent: Any, requant: str) -> np.ndarray:
    return (requant_single if requant == "fast" else requant_double)(acc, multiplier, exponent)


def _finish(scaled: np.ndarray, params: ConvParams | AddParams | MulParams | MeanParams) -> np.ndarray:
    """Add the output zero point, clamp, and only then narrow to int8."""
    return np.clip(scaled + params.y_zp, params.y_min, params.y_max).astype(np.int8)


def _codes(acc: np.ndarray, bias: np.ndarray | None, params: ConvParams, requant: str) -> np.ndarray:
    """Return the int8 codes of the sums ``acc`` (..., O), to which ``bias`` int32 (O,) is added in place."""
    acc += 0 if bias is None else bias
    return _finish(_requant(acc, params.multiplier, params.exponent, requant), params)


def _matmul_dtype(w: np.ndarray, axis: int | tuple[int, ...]) -> type:
    """Return the float type in which ``sum (x - x_zp) * w`` over ``axis`` is exact; |x - x_zp| <= 255."""
    worst = 255 * int(np.abs(w.astype(np.int64)).sum(axis=axis).max(initial=0))
    return np.float32 if worst < 2**24 else np.float64


def conv2d(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    attrs: Conv2D,
    params: ConvParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """CONV_2D: x int8 (N, H, W, I), w int8 (O, KH, KW, I), bias int32 (O,) to int8 (N, OH, OW, O)."""
    slide = Slide.of(attrs, (w.shape[1], w.shape[2]), out_shape)
    dtype = _matmul_dtype(w, (1, 2, 3))
    matrix: np.ndarray = np.ascontiguousarray(w.reshape(w.shape[0], -1).T, dtype)  # (KH·KW·I, O)
    y = np.empty(out_shape, np.int8)
    for part in batches(x.shape[0], slide.out[0] * slide.out[1] * max(matrix.shape)):
        # Padding stands for real 0, which is the number 0 once the zero point is taken off.
        frame = slide.frame(x[part].astype(dtype) - dtype(params.x_zp))
        acc = (slide.im2col(frame) @ matrix).astype(np.int64)
        y[part] = _codes(acc, bias, params, requant).reshape(y[part].shape)
    return y


def depthwise_conv2d(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    attrs: DepthwiseConv2D,
    params: ConvParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """DEPTHWISE_CONV_2D: x int8 (N, H, W, C), w int8 (1, KH, KW, C·M) to int8 (N, OH, OW, C·M)."""
    slide = Slide.of(attrs, (w.shape[1], w.shape[2]), out_shape)
    multiplier = w.shape[3] // x.shape[3]
    # int32 holds every partial sum: `int_params.conv_params` has checked 255 * sum |w| + |bias| < 2**31.
    weights = w[0].astype(np.int32)
    y = np.empty(out_shape, np.int8)
    for part in batches(x.shape[0], slide.out[0] * slide.out[1] * w.shape[3]):
        frame = slide.frame(np.repeat(x[part].astype(np.int32) - params.x_zp, multiplier, axis=3))
        acc = np.zeros(y[part].shape, np.int32)
        for ky, kx, view in slide.taps(frame):
            acc += view * weights[ky, kx]
        y[part] = _codes(acc, bias, params, requant)
    return y


def fully_connected(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    attrs: FullyConnected,
    params: ConvParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """FULLY_CONNECTED: x int8 (N, I), w int8 (O, I), bias int32 (O,) to int8 (N, O).

    The reference rounds once here, so that ``"exact"`` and ``"fast"`` are the same.
    """
    dtype = _matmul_dtype(w, 1)
    acc = ((x.astype(dtype) - dtype(params.x_zp)) @ w.T.astype(dtype)).astype(np.int64)
    return _codes(acc, bias, params, "fast").reshape(out_shape)


def add(
    x1: np.ndarray,
    x2: np.ndarray,
    *,
    attrs: Add,
    params: AddParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """ADD: two int8 tensors, each with its own scale and at times axes of length 1, to int8."""
    s1, s2 = _on_one_scale(x1, x2, params, requant)
    return _finish(_requant(s1 + s2, params.mo, params.eo, requant), params).reshape(out_shape)


def sub(
    x1: np.ndarray,
    x2: np.ndarray,
    *,
    attrs: Sub,
    params: AddParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """SUB: ``x1 - x2``, each int8 with its own scale and at times axes of length 1, to int8."""
    s1, s2 = _on_one_scale(x1, x2, params, requant)
    return _finish(_requant(s1 - s2, params.mo, params.eo, requant), params).reshape(out_shape)


def _on_one_scale(
    x1: np.ndarray, x2: np.ndarray, params: AddParams, requant: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return both inputs of ADD or SUB on the scale ``2 * max(s_1, s_2) / 2**20``, int64."""
    s1 = _requant((x1.astype(np.int64) - params.x1_zp) << params.left_shift, params.m1, params.e1, requant)
    s2 = _requant((x2.astype(np.int64) - params.x2_zp) << params.left_shift, params.m2, params.e2, requant)
    return s1, s2


def mul(
    x1: np.ndarray,
    x2: np.ndarray,
    *,
    attrs: Mul,
    params: MulParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """MUL: int8 times int8, at times with axes of length 1, to int8."""
    product = (x1.astype(np.int64) - params.x1_zp) * (x2.astype(np.int64) - params.x2_zp)
    return _finish(_requant(product, params.multiplier, params.exponent, requant), params).reshape(out_shape)


def concatenation(
    *x: np.ndarray,
    attrs: Concatenation,
    params: None,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """CONCATENATION of int8 tensors of one scale along ``attrs.axis``."""
    return np.concatenate(x, axis=attrs.axis).reshape(out_shape)


def lookup(
    x: np.ndarray,
    *,
    attrs: Elementwise | LeakyRelu | Quantize,
    params: np.ndarray,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """Any op of one element: ``params`` is its table, int8 (256,), from `lookup_tables`."""
    return params[x.astype(np.int64) - INT8_MIN].reshape(out_shape)


def resize_nearest(
    x: np.ndarray,
    *,
    attrs: ResizeNearest,
    params: tuple[np.ndarray, np.ndarray],
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """RESIZE_NEAREST_NEIGHBOR: x int8 (N, H, W, C); ``params`` are rows (OH,) and columns (OW,) to copy."""
    rows, columns = params
    return x[:, rows[:, None], columns[None, :]].reshape(out_shape)


def average_pool2d(
    x: np.ndarray,
    *,
    attrs: Pool2D,
    params: PoolParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """AVERAGE_POOL_2D of int8 codes, padding left out of the count, rounded half away from zero."""
    slide = Slide.of(attrs, attrs.kernel, out_shape)
    total = slide.reduce(x.astype(np.int32), np.add, 0)
    count = slide.reduce(np.ones((1, *x.shape[1:3], 1), np.int32), np.add, 0)
    mean = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return np.clip(mean, params.y_min, params.y_max).astype(np.int8)


def max_pool2d(
    x: np.ndarray,
    *,
    attrs: Pool2D,
    params: PoolParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """MAX_POOL_2D of int8 codes; padding never wins."""
    best = Slide.of(attrs, attrs.kernel, out_shape).reduce(x, np.maximum, INT8_MIN)
    return np.clip(best, params.y_min, params.y_max)


def mean(
    x: np.ndarray,
    *,
    attrs: Mean,
    params: MeanParams,
    out_shape: tuple[int, ...],
    requant: str = "exact",
) -> np.ndarray:
    """MEAN of int8 codes over ``attrs.axes``; the division is part of ``params.multiplier``."""
    total = x.astype(np.int64).sum(axis=attrs.axes) - params.count * params.x_zp
    return _finish(_requant(total, params.multiplier, params.exponent, requant), params).reshape(out_shape)


def pad(
    x: np.ndarray, *, attrs: Pad, params: int, out_shape: tuple[int, ...], requant: str = "exact"
) -> np.ndarray:
    """PAD with one code, which is ``params``."""
    return np.pad(x, attrs.padding, constant_values=params).reshape(out_shape)


def reshape(
    x: np.ndarray, *, attrs: Reshape, params: None, out_shape: tuple[int, ...], requant: str = "exact"
) -> np.ndarray:
    """RESHAPE: the same codes in the same order."""
    return x.reshape(out_shape)


def softmax(
    x: np.ndarray, *, attrs: Softmax, params: np.ndarray, out_shape: tuple[int, ...], requant: str = "exact"
) -> np.ndarray:
    """SOFTMAX over the last axis, output scale 1/256 and zero point -128; ``params`` is the table (256,)."""
    codes = x.astype(np.int64)
    e = params.astype(np.int64)[codes.max(axis=-1, keepdims=True) - codes]
    total = e.sum(axis=-1, keepdims=True)
    return (
        np.minimum((512 * e + total) // (2 * total) + INT8_MIN, INT8_MAX).astype(np.int8).reshape(out_shape)
    )
