"""Float32 kernels in NumPy, with the call signature of the integer kernels but no ``params``.

They define what a float graph computes; quantization calibrates on them and is judged against them.
"""
# ruff: noqa: ARG001 - all kernels have one signature, whether or not an op uses every part of it

from __future__ import annotations

import numpy as np

from .attrs import (
    ACTIVATIONS,
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
from .graph import GraphError
from .windows import Slide, batches, nearest


def activate(y: np.ndarray, activation: str) -> np.ndarray:
    """Return ``y`` after the fused activation."""
    if activation == "none":
        return y
    if activation == "relu":
        return np.maximum(y, 0)
    if activation == "relu6":
        return np.clip(y, 0, 6)
    if activation == "relu_n1_to_1":
        return np.clip(y, -1, 1)
    raise GraphError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")


def conv2d(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, *, attrs: Conv2D, out_shape: tuple[int, ...]
) -> np.ndarray:
    """CONV_2D: x (N, H, W, I), w (O, KH, KW, I), bias (O,) to (N, OH, OW, O)."""
    slide = Slide.of(attrs, (w.shape[1], w.shape[2]), out_shape)
    matrix = np.ascontiguousarray(w.reshape(w.shape[0], -1).T)  # (KH·KW·I, O)
    y = np.empty(out_shape, np.float32)
    for part in batches(x.shape[0], slide.out[0] * slide.out[1] * max(matrix.shape)):
        y[part] = (slide.im2col(slide.frame(x[part])) @ matrix).reshape(y[part].shape)
    return activate(y if bias is None else y + bias, attrs.activation)


def depthwise_conv2d(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    attrs: DepthwiseConv2D,
    out_shape: tuple[int, ...],
) -> np.ndarray:
    """DEPTHWISE_CONV_2D: x (N, H, W, C), w (1, KH, KW, C·M), bias (C·M,) to (N, OH, OW, C·M)."""
    slide = Slide.of(attrs, (w.shape[1], w.shape[2]), out_shape)
    frame = slide.frame(np.repeat(x, w.shape[3] // x.shape[3], axis=3))
    y = np.zeros(out_shape, np.float32)
    for ky, kx, view in slide.taps(frame):
        y += view * w[0, ky, kx]
    return activate(y if bias is None else y + bias, attrs.activation)


def fully_connected(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    attrs: FullyConnected,
    out_shape: tuple[int, ...],
) -> np.ndarray:
    """FULLY_CONNECTED: x (N, I), w (O, I), bias (O,) to (N, O)."""
    y = (x @ w.T).reshape(out_shape)
    return activate(y if bias is None else y + bias, attrs.activation)


def add(x1: np.ndarray, x2: np.ndarray, *, attrs: Add, out_shape: tuple[int, ...]) -> np.ndarray:
    """ADD of two tensors, axes of length 1 repeated."""
    return activate(x1 + x2, attrs.activation).reshape(out_shape)


def sub(x1: np.ndarray, x2: np.ndarray, *, attrs: Sub, out_shape: tuple[int, ...]) -> np.ndarray:
    """SUB of two tensors, axes of length 1 repeated."""
    return activate(x1 - x2, attrs.activation).reshape(out_shape)


def mul(x1: np.ndarray, x2: np.ndarray, *, attrs: Mul, out_shape: tuple[int, ...]) -> np.ndarray:
    """MUL of two tensors, axes of length 1 repeated."""
    return activate(x1 * x2, attrs.activation).reshape(out_shape)


def concatenation(*x: np.ndarray, attrs: Concatenation, out_shape: tuple[int, ...]) -> np.ndarray:
    """CONCATENATION along ``attrs.axis``."""
    return np.concatenate(x, axis=attrs.axis).reshape(out_shape)


def logistic(x: np.ndarray, *, attrs: Elementwise, out_shape: tuple[int, ...]) -> np.ndarray:
    """LOGISTIC, ``1 / (1 + exp(-x))``, by the exponential of ``-|x|`` against overflow."""
    e = np.exp(-np.abs(x))
    return (np.where(x >= 0, 1, e) / (1 + e)).reshape(out_shape).astype(np.float32)


def hard_swish(x: np.ndarray, *, attrs: Elementwise, out_shape: tuple[int, ...]) -> np.ndarray:
    """HARD_SWISH, ``x * relu6(x + 3) / 6`` (Howard et al., ICCV 2019, arXiv:1905.02244, section 5.2)."""
    return (x * (np.clip(x + 3, 0, 6) / 6)).reshape(out_shape).astype(np.float32)


def relu(x: np.ndarray, *, attrs: Elementwise, out_shape: tuple[int, ...]) -> np.ndarray:
    """RELU."""
    return np.maximum(x, 0).reshape(out_shape)


def relu6(x: np.ndarray, *, attrs: Elementwise, out_shape: tuple[int, ...]) -> np.ndarray:
    """RELU6."""
    return np.clip(x, 0, 6).reshape(out_shape)


def relu_n1_to_1(x: np.ndarray, *, attrs: Elementwise, out_shape: tuple[int, ...]) -> np.ndarray:
    """RELU_N1_TO_1, a clamp to [-1, 1]."""
    return np.clip(x, -1, 1).reshape(out_shape)


def leaky_relu(x: np.ndarray, *, attrs: LeakyRelu, out_shape: tuple[int, ...]) -> np.ndarray:
    """LEAKY_RELU."""
    return np.where(x >= 0, x, np.float32(attrs.alpha) * x).reshape(out_shape).astype(np.float32)


def tanh(x: np.ndarray, *, attrs: Elementwise, out_shape: tuple[int, ...]) -> np.ndarray:
    """TANH."""
    return np.tanh(x).reshape(out_shape).astype(np.float32)


def quantize(x: np.ndarray, *, attrs: Quantize, out_shape: tuple[int, ...]) -> np.ndarray:
    """QUANTIZE changes the scale only: nothing, in a float graph."""
    return x.reshape(out_shape)


def resize_nearest(x: np.ndarray, *, attrs: ResizeNearest, out_shape: tuple[int, ...]) -> np.ndarray:
    """RESIZE_NEAREST_NEIGHBOR: x (N, H, W, C) to (N, *attrs.size, C)."""
    rows, columns = (nearest(x.shape[i], out_shape[i], attrs) for i in (1, 2))
    return x[:, rows[:, None], columns[None, :]].reshape(out_shape)


def average_pool2d(x: np.ndarray, *, attrs: Pool2D, out_shape: tuple[int, ...]) -> np.ndarray:
    """AVERAGE_POOL_2D; padding is left out of the count."""
    slide = Slide.of(attrs, attrs.kernel, out_shape)
    total = slide.reduce(x, np.add, 0)
    count = slide.reduce(np.ones((1, *x.shape[1:3], 1), np.float32), np.add, 0)
    return activate(total / count, attrs.activation)


def max_pool2d(x: np.ndarray, *, attrs: Pool2D, out_shape: tuple[int, ...]) -> np.ndarray:
    """MAX_POOL_2D; padding never wins."""
    best = Slide.of(attrs, attrs.kernel, out_shape).reduce(x, np.maximum, -np.inf)
    return activate(best, attrs.activation)


def mean(x: np.ndarray, *, attrs: Mean, out_shape: tuple[int, ...]) -> np.ndarray:
    """MEAN over ``attrs.axes``."""
    return x.mean(axis=attrs.axes).reshape(out_shape)


def pad(x: np.ndarray, *, attrs: Pad, out_shape: tuple[int, ...]) -> np.ndarray:
    """PAD with ``attrs.value``."""
    return np.pad(x, attrs.padding, constant_values=attrs.value).reshape(out_shape)


def reshape(x: np.ndarray, *, attrs: Reshape, out_shape: tuple[int, ...]) -> np.ndarray:
    """RESHAPE: the same values in the same order."""
    return x.reshape(out_shape)


def softmax(x: np.ndarray, *, attrs: Softmax, out_shape: tuple[int, ...]) -> np.ndarray:
    """SOFTMAX over the last axis of ``beta * x``, shifted by its maximum against overflow."""
    e = np.exp(attrs.beta * (x - x.max(axis=-1, keepdims=True)))
    return (e / e.sum(axis=-1, keepdims=True)).reshape(out_shape).astype(np.float32)
