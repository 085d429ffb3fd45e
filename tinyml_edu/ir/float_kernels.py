"""Float32 kernels in NumPy, with the call signature of the integer kernels but no ``params``.

They define what a float graph computes; quantization calibrates on them and is judged against them.
"""
# ruff: noqa: ARG001 - all kernels have one signature, whether or not an op uses every part of it

from __future__ import annotations

import numpy as np

from .attrs import Add, Conv2D, DepthwiseConv2D, FullyConnected, Mean, Pad, Pool2D, Reshape, Softmax
from .graph import GraphError
from .windows import Slide, batches


def activate(y: np.ndarray, activation: str) -> np.ndarray:
    """Return ``y`` after the fused activation."""
    if activation == "none":
        return y
    if activation == "relu":
        return np.maximum(y, 0)
    if activation == "relu6":
        return np.clip(y, 0, 6)
    raise GraphError(f"unknown activation {activation!r}; known: none, relu, relu6")


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
    """ADD of two tensors of one shape."""
    return activate(x1 + x2, attrs.activation).reshape(out_shape)


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
    """PAD with 0."""
    return np.pad(x, attrs.padding).reshape(out_shape)


def reshape(x: np.ndarray, *, attrs: Reshape, out_shape: tuple[int, ...]) -> np.ndarray:
    """RESHAPE: the same values in the same order."""
    return x.reshape(out_shape)


def softmax(x: np.ndarray, *, attrs: Softmax, out_shape: tuple[int, ...]) -> np.ndarray:
    """SOFTMAX over the last axis of ``beta * x``, shifted by its maximum against overflow."""
    e = np.exp(attrs.beta * (x - x.max(axis=-1, keepdims=True)))
    return (e / e.sum(axis=-1, keepdims=True)).reshape(out_shape).astype(np.float32)
