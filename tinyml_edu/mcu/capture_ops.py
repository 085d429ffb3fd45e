"""How each ATen operation is transcribed into the graph: NCHW in, NHWC out.

A handler gets the operation's arguments by the names of its schema and returns a `Value`.  A value of
rank 4 is stored as N H W C; other ranks keep PyTorch's order, except that a flattened image keeps the order
H W C and remembers it in ``perm``, which the next linear layer applies to its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..ir.attrs import (
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
    Reshape,
    ResizeNearest,
    Softmax,
)
from .capture_call import Call, Value, array, handles, image_order, stored_shape
from .capture_fold import Activation, BatchNorm


@dataclass(frozen=True)
class GroupedConv2D(Conv2D):
    """GROUPED_CONV_2D of a literal transcript: as CONV_2D with w (O, KH, KW, I / groups)."""

    groups: int = 1


@dataclass(frozen=True)
class AdaptivePool2D:
    """ADAPTIVE_AVERAGE_POOL_2D of a literal transcript, to ``size`` (height, width)."""

    size: tuple[int, int]


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(values[0]), int(values[-1]))


@handles("conv2d", "convolution")
def _convolution(call: Call) -> Value:
    x, weight, bias = call.image("input"), call["weight"], call["bias"]
    call.require(
        isinstance(weight, torch.Tensor), "its weights are computed from the input; make them parameters"
    )
    call.require(
        weight.ndim == 4 and not call.args.get("transposed"), "only 2-D convolutions, not transposed"
    )
    outputs, _, kh, kw = weight.shape
    channels, groups = x.shape[1], call["groups"]
    stride, dilation = _pair(call["stride"]), _pair(call["dilation"])
    padding = _padding(call["padding"], (kh, kw), dilation)
    w = array(weight)  # (O, I / groups, KH, KW)
    b = call.constant("bias", np.zeros(outputs) if bias is None else array(bias))
    if groups == 1:
        inputs = (x.name, call.constant("weight", w.transpose(0, 2, 3, 1)), b)
        return call.emit("CONV_2D", inputs, Conv2D(stride, padding, dilation))
    message = (
        f"{groups} groups over {channels} channels; supported: 1 group, or a group for each input channel"
    )
    call.require(groups == channels or call.literal, message)
    if groups != channels:
        inputs = (x.name, call.constant("weight", w.transpose(0, 2, 3, 1)), b)
        return call.emit("GROUPED_CONV_2D", inputs, GroupedConv2D(stride, padding, dilation, groups=groups))
    inputs = (x.name, call.constant("weight", w.transpose(1, 2, 3, 0)), b)
    return call.emit("DEPTHWISE_CONV_2D", inputs, DepthwiseConv2D(stride, padding, dilation))


def _padding(given: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return explicit (top, left, bottom, right); PyTorch's "same" puts the odd element after the image."""
    if given == "valid":
        return (0, 0, 0, 0)
    if given == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel)]
        top, left = whole[0] // 2, whole[1] // 2
        return (top, left, whole[0] - top, whole[1] - left)
    y, x = _pair(given)
    return (y, x, y, x)


@handles("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call) -> Value:
    x = call["input"]
    call.require(len(x.shape) in (2, 4), "batch norm of N C or N C H W only")
    call.require(not call.args.get("training"), "batch statistics at inference; set track_running_stats=True")
    mean, variance = array(call["running_mean"]), array(call["running_var"])
    gamma = np.ones_like(mean) if call["weight"] is None else array(call["weight"])
    beta = np.zeros_like(mean) if call["bias"] is None else array(call["bias"])
    scale = gamma / np.sqrt(variance + call["eps"])
    shift = beta - mean * scale
    if x.perm is not None:
        scale, shift = scale[x.perm], shift[x.perm]
    return call.emit("BATCH_NORM", (x.name,), BatchNorm(scale, shift), x.shape, x.perm)


@handles("relu", "relu6", "hardtanh", "clamp", "clamp_min")
def _activation(call: Call) -> Value:
    x = call["self"]
    low = call.args.get("min_val", call.args.get("min", 0))
    high = call.args.get("max_val", call.args.get("max"))
    if call.args["op"] == "relu6":
        high = 6
    bounds = None if low is None else float(low), None if high is None else float(high)
    known: dict[Any, str] = {(0.0, None): "relu", (0.0, 6.0): "relu6", (-1.0, 1.0): "relu_n1_to_1"}
    message = f"clamps to [{low}, {high}]; supported: [0, infinity), [0, 6] and [-1, 1]"
    call.require(bounds in known, message)
    return call.emit("ACTIVATION", (x.name,), Activation(known[bounds]), x.shape, x.perm)


@handles("sigmoid", "hardswish", "tanh")
def _elementwise(call: Call) -> Value:
    x = call["self"]
    op = {"sigmoid": "LOGISTIC", "hardswish": "HARD_SWISH", "tanh": "TANH"}[call["op"]]
    return call.emit(op, (x.name,), Elementwise(), x.shape, x.perm)


@handles("leaky_relu", "prelu", "_prelu_kernel")
def _leaky_relu(call: Call) -> Value:
    x, slope = call["self"], call.args.get("negative_slope")
    if slope is None:
        weight = call["weight"]
        call.require(
            isinstance(weight, torch.Tensor) and weight.numel() == 1,
            "has a slope for each channel; supported: one slope",
        )
        slope = float(weight.detach())
    call.require(float(slope) >= 0, f"has the slope {slope}; it must not be negative")
    return call.emit("LEAKY_RELU", (x.name,), LeakyRelu(float(slope)), x.shape, x.perm)


@handles("silu")
def _silu(call: Call) -> Value:
    x = call["self"]
    gate = call.emit("LOGISTIC", (x.name,), Elementwise(), x.shape, x.perm)
    return call.emit("MUL", (x.name, gate.name), Mul(), x.shape, x.perm)


@handles("hardsigmoid")
def _hard_sigmoid(call: Call) -> Value:
    """``relu6(x + 3) / 6``: the sum and relu6 fold into the layer before, a 1×1 depthwise divides.

    Surgery finds a module for each BATCH_NORM, so that its transcript gets a node that says what this is.
    """
    x = call["self"]
    if call.literal:
        return call.emit("HARD_SIGMOID", (x.name,), Elementwise(), x.shape, x.perm)
    channels = np.ones(stored_shape(x.shape)[-1])
    shifted = call.emit("BATCH_NORM", (x.name,), BatchNorm(channels, 3 * channels), x.shape, x.perm)
    clamped = call.emit("ACTIVATION", (shifted.name,), Activation("relu6"), x.shape, x.perm)
    return call.emit("BATCH_NORM", (clamped.name,), BatchNorm(channels / 6, 0 * channels), x.shape, x.perm)


@handles("upsample_nearest2d", "_upsample_nearest_exact2d")
def _upsample(call: Call) -> Value:
    """Repeat rows and columns a whole number of times, for which both rules of PyTorch agree."""
    x = call.image("input" if "input" in call.args else "self")
    (height, width), size = x.shape[2:], call.shape[2:]
    whole = size[0] % height == 0 and size[1] % width == 0
    given = call.args.get("scale_factors") or (call.args.get("scales_h"), call.args.get("scales_w"))
    exact = all(s is None or s * n == out for s, n, out in zip(given, (height, width), size, strict=True))
    message = f"resizes {height}x{width} to {size[0]}x{size[1]}; each side must grow by a whole factor"
    call.require(whole and exact, message)
    return call.emit("RESIZE_NEAREST_NEIGHBOR", (x.name,), ResizeNearest((size[0], size[1])))


_STORED_AXIS = (0, 3, 1, 2)
"""For each axis of N C H W its place in N H W C."""


@handles("cat")
def _concatenate(call: Call) -> Value:
    parts = call["tensors"]
    call.require(all(isinstance(p, Value) for p in parts), "joins a constant to activations")
    dim = call["dim"] % len(call.shape)
    call.require(dim == 1 or not call.literal, "joins along another axis than the channels")
    call.require(dim > 0, "joins along the batch")
    # Each part of a flattened image has its own order; surgery follows PyTorch's and needs none.
    perm = None if call.literal or len(call.shape) != 2 else _joined_order(parts)
    axis = _STORED_AXIS[dim] if len(call.shape) == 4 else dim
    return call.emit("CONCATENATION", tuple(p.name for p in parts), Concatenation(axis), perm=perm)


def _joined_order(parts: list[Value]) -> np.ndarray | None:
    if all(p.perm is None for p in parts):
        return None
    starts = np.cumsum([0, *(p.shape[1] for p in parts[:-1])])
    orders = [np.arange(p.shape[1]) if p.perm is None else p.perm for p in parts]
    return np.concatenate([start + order for start, order in zip(starts, orders, strict=True)])


@handles("max_pool2d", "max_pool2d_with_indices")
def _max_pool(call: Call) -> Value:
    x = call.image("self")
    call.require(_pair(call["dilation"]) == (1, 1), "dilated pooling is not supported")
    return call.emit("MAX_POOL_2D", (x.name,), _pool(call, x))


@handles("avg_pool2d")
def _avg_pool(call: Call) -> Value:
    x = call.image("self")
    padded = _pair(call["padding"]) != (0, 0) and call["count_include_pad"]
    call.require(
        not padded, "padding enters the average; pass count_include_pad=False, or pad with F.pad before it"
    )
    call.require(call["divisor_override"] is None, "divisor_override is not supported")
    return call.emit("AVERAGE_POOL_2D", (x.name,), _pool(call, x))


def _pool(call: Call, x: Value) -> Pool2D:
    kernel = _pair(call["kernel_size"])
    stride = _pair(call["stride"]) if call["stride"] else kernel
    top, left = _pair(call["padding"])
    bottom, right = top, left
    if call["ceil_mode"]:  # the last window may reach past the image: pad until it fits
        height, width = call.shape[2:]
        bottom = max(bottom, (height - 1) * stride[0] + kernel[0] - x.shape[2] - top)
        right = max(right, (width - 1) * stride[1] + kernel[1] - x.shape[3] - left)
    return Pool2D(kernel, stride, (top, left, bottom, right))


@handles("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(call: Call) -> Value:
    x = call.image("self")
    height, width = x.shape[2:]
    out = call.shape[2:]
    even = height % out[0] == 0 and width % out[1] == 0
    if not even and call.literal:
        return call.emit("ADAPTIVE_AVERAGE_POOL_2D", (x.name,), AdaptivePool2D((out[0], out[1])))
    call.require(even, f"pools {height}x{width} to {out[0]}x{out[1]}; each side must divide evenly")
    kernel = (height // out[0], width // out[1])
    return x if kernel == (1, 1) else call.emit("AVERAGE_POOL_2D", (x.name,), Pool2D(kernel, kernel))


@handles("mean")
def _mean(call: Call) -> Value:
    """Mean over any axes but the batch; that of whole images is an AVERAGE_POOL_2D."""
    x = call["self"]
    rank = len(x.shape)
    axes = sorted(axis % rank for axis in (call.args.get("dim") or range(rank)))
    call.require(0 not in axes, f"means over axes {axes}, the batch among them; name the others")
    call.require(x.perm is None, "means over a flattened image; take the mean before the flatten")
    if rank == 4 and axes == [2, 3]:
        return _image_mean(call, x)
    call.require(not call.literal, "means over other axes than height and width")
    stored = sorted(_STORED_AXIS[axis] for axis in axes) if rank == 4 else axes
    if not call["keepdim"]:
        # What is left must be in PyTorch's order, and the channels are stored last.
        left = [_STORED_AXIS[a] for a in range(4) if a not in axes and x.shape[a] > 1] if rank == 4 else []
        call.require(left == sorted(left), "leaves an axis after the channels; pass keepdim=True")
    return call.emit("MEAN", (x.name,), Mean(tuple(stored), bool(call["keepdim"])))


def _image_mean(call: Call, x: Value) -> Value:
    kernel = x.shape[2:]
    attrs = Pool2D((kernel[0], kernel[1]), (kernel[0], kernel[1]))
    pooled = x if kernel == (1, 1) else call.emit("AVERAGE_POOL_2D", (x.name,), attrs, (*x.shape[:2], 1, 1))
    return pooled if call["keepdim"] else call.emit("RESHAPE", (pooled.name,), Reshape(call.shape))


@handles("linear")
def _linear(call: Call) -> Value:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    call.require(
        isinstance(weight, torch.Tensor), "its weights are computed from the input; make them parameters"
    )
    call.require(len(x.shape) == 2, f"its input has shape {x.shape}; flatten it to N F first")
    w = array(weight)  # (O, I)
    if x.perm is not None:
        w = w[:, x.perm]
    offset = np.zeros(len(w)) if bias is None else array(bias)
    constants = (call.constant("weight", w), call.constant("bias", offset))
    return call.emit("FULLY_CONNECTED", (x.name, *constants), FullyConnected())


@handles("softmax", "_softmax")
def _softmax(call: Call) -> Value:
    x = call["self"]
    rank = len(x.shape)
    message = "supported: softmax over the channels or features"
    call.require(rank in (2, 4) and call["dim"] % rank == 1, message)
    return call.emit("SOFTMAX", (x.name,), Softmax(), perm=x.perm)


@handles("pad", "constant_pad_nd")
def _pad(call: Call) -> Value:
    x, amounts = call["self"], list(call["pad"])
    mode, value = call.args.get("mode", "constant"), float(call.args.get("value") or 0)
    call.require(mode == "constant", f"mode {mode!r}; supported: a constant")
    call.require(np.isfinite(value), f"pads with {value}; pad with a number")
    call.require(value == 0 or not call.literal, f"pads with {value}; surgery follows zeros only")
    call.require(min(amounts) >= 0, "crops the image; negative padding is not supported")
    call.require(x.perm is None, "pads a flattened image; pad before the flatten")
    by_axis = [(0, 0)] * len(x.shape)  # PyTorch lists the last axis first
    for i in range(len(amounts) // 2):
        by_axis[-1 - i] = (int(amounts[2 * i]), int(amounts[2 * i + 1]))
    if len(by_axis) == 4:
        by_axis = [by_axis[0], by_axis[2], by_axis[3], by_axis[1]]
    return call.emit("PAD", (x.name,), Pad(tuple(by_axis), value))


@handles("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten")
def _reshape(call: Call) -> Value:
    x = call["self"]
    if x.shape == call.shape:
        return x
    order = image_order(x.shape) if x.perm is None else x.perm
    if len(call.shape) == 4:
        call.require(_equal(order, image_order(call.shape)), "reorders the elements of an image")
        order = None
    flat = order is None or call.shape == (x.shape[0], int(np.prod(x.shape[1:])))
    call.require(flat, f"reshapes {x.shape} to {call.shape}; supported: flatten all but the batch")
    return call.emit("RESHAPE", (x.name,), Reshape(stored_shape(call.shape)), perm=order)


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


@handles(
    "clone",
    "alias",
    "detach",
    "dropout",
    "feature_dropout",
    "contiguous",
    "lift_fresh_copy",
    "_to_copy",
    "to",
)
def _identity(call: Call) -> Value:
    x: Value = call["self"] if "self" in call.args else call["input"]
    dtype = call.args.get("dtype")
    call.require(dtype in (None, torch.float32), f"casts to {dtype}; convert the model to float32 first")
    call.require(not call.args.get("train"), "drops at inference")
    return x
