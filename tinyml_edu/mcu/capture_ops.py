"""How each ATen operation is transcribed into the graph: NCHW in, NHWC out.

A handler gets the operation's arguments by the names of its schema and returns a `Value`.  A value of
rank 4 is stored as N H W C; other ranks keep PyTorch's order, except that a flattened image keeps the order
H W C and remembers it in ``perm``, which the next linear layer applies to its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UnsupportedOpError
from ..ir.attrs import (
    Add,
    Concatenation,
    Conv2D,
    DepthwiseConv2D,
    Elementwise,
    FullyConnected,
    Mul,
    Pad,
    Pool2D,
    Reshape,
    ResizeNearest,
    Softmax,
    Sub,
)
from ..ir.graph import Graph, Kind, Node, Tensor
from .capture_fold import Activation, BatchNorm


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph as PyTorch sees it.

    ``shape`` is PyTorch's.  Element ``j`` of a stored feature vector is PyTorch's element ``perm[j]``;
    None stands for the same order.
    """

    name: str
    shape: tuple[int, ...]
    perm: np.ndarray | None = None


@dataclass(frozen=True)
class GroupedConv2D(Conv2D):
    """GROUPED_CONV_2D of a literal transcript: as CONV_2D with w (O, KH, KW, I / groups)."""

    groups: int = 1


@dataclass(frozen=True)
class AdaptivePool2D:
    """ADAPTIVE_AVERAGE_POOL_2D of a literal transcript, to ``size`` (height, width)."""

    size: tuple[int, int]


@dataclass
class Call:
    """One operation under transcription: its arguments, the shape of its result and a name for it.

    ``literal`` admits what only surgery reads and the compiler lacks.
    """

    graph: Graph
    args: dict[str, Any]
    shape: tuple[int, ...]
    name: str
    literal: bool = False

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def emit(
        self,
        op: str,
        inputs: tuple[str, ...],
        attrs: Any,
        shape: tuple[int, ...] | None = None,
        perm: Any = None,
    ) -> Value:
        """Append a node and return its result, of PyTorch's ``shape`` (default: that of the operation)."""
        shape = self.shape if shape is None else shape
        result = self.graph.unique(self.name)
        self.graph.add(Tensor(result, stored_shape(shape), "float32", Kind.ACTIVATION))
        self.graph.nodes.append(Node(result, op, inputs, (result,), attrs))
        return Value(result, shape, perm)

    def constant(self, suffix: str, data: np.ndarray) -> str:
        data = np.ascontiguousarray(data, dtype=np.float32)
        name = self.graph.unique(f"{self.name}.{suffix}")
        return self.graph.add(Tensor(name, data.shape, "float32", Kind.CONSTANT, data))

    def require(self, condition: bool, message: str) -> None:
        """Raise `UnsupportedOpError` with ``message`` unless ``condition``; the caller adds the place."""
        if not condition:
            raise UnsupportedOpError(message)

    def image(self, name: str) -> Value:
        value = self[name]
        self.require(isinstance(value, Value) and len(value.shape) == 4, "its input must be N C H W")
        return value


Handler = Callable[[Call], Value]
HANDLERS: dict[str, Handler] = {}
LITERAL_HANDLERS: dict[str, Handler] = {}
"""Operations that only a literal transcript may hold."""


def handles(*names: str, literal: bool = False) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        (LITERAL_HANDLERS if literal else HANDLERS).update(dict.fromkeys(names, handler))
        return handler

    return register


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape under which a value of PyTorch's ``shape`` is stored: N C H W becomes N H W C."""
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else tuple(shape)


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return a constant as float64: what is computed with it is rounded once, when it is stored."""
    return tensor.detach().cpu().to(torch.float64).numpy()


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
    message = f"clamps to [{low}, {high}]; supported: [0, 6] and [0, infinity)"
    call.require(low is not None and float(low) == 0 and (high is None or float(high) == 6), message)
    return call.emit(
        "ACTIVATION", (x.name,), Activation("relu" if high is None else "relu6"), x.shape, x.perm
    )


@handles("add", "sub")
def _add(call: Call) -> Value:
    a, b, adds = call["self"], call["other"], call["op"] == "add"
    both = isinstance(a, Value) and isinstance(b, Value)
    call.require(both, f"{'adds' if adds else 'subtracts'} a constant; use a bias or a batch norm")
    call.require(a.shape == b.shape, f"adds shapes {a.shape} and {b.shape}; broadcasting is not supported")
    call.require(call["alpha"] == 1, f"alpha = {call['alpha']}; only plain sums are supported")
    call.require(
        _same_order(a, b), "adds a flattened image to features in another order; add before the flatten"
    )
    return call.emit("ADD" if adds else "SUB", (a.name, b.name), Add() if adds else Sub(), perm=a.perm)


@handles("mul")
def _mul(call: Call) -> Value:
    a, b = call["self"], call["other"]
    both = isinstance(a, Value) and isinstance(b, Value)
    call.require(both, "multiplies by a constant; use a batch norm")
    if a.shape != call.shape:  # squeeze-and-excitation writes its factors first
        a, b = b, a
    fits = a.shape == call.shape and len(b.shape) == len(a.shape) and a.shape[0] == b.shape[0]
    call.require(fits, f"multiplies {a.shape} and {b.shape}; one of them must have the shape of the product")
    aligned = b.shape != a.shape or _same_order(a, b)
    call.require(aligned, "multiplies a flattened image by features in another order; flatten later")
    return call.emit("MUL", (a.name, b.name), Mul(), perm=a.perm)


@handles("sigmoid", "hardswish")
def _elementwise(call: Call) -> Value:
    x = call["self"]
    op = {"sigmoid": "LOGISTIC", "hardswish": "HARD_SWISH"}[call["op"]]
    return call.emit(op, (x.name,), Elementwise(), x.shape, x.perm)


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


@handles("cat")
def _concatenate(call: Call) -> Value:
    parts = call["tensors"]
    call.require(all(isinstance(p, Value) for p in parts), "joins a constant to activations")
    call.require(call["dim"] % len(call.shape) == 1, "joins along another axis than the channels")
    # Each part of a flattened image has its own order; surgery follows PyTorch's and needs none.
    perm = None if call.literal else _joined_order(parts)
    axis = 3 if len(call.shape) == 4 else 1
    return call.emit("CONCATENATION", tuple(p.name for p in parts), Concatenation(axis), perm=perm)


def _joined_order(parts: list[Value]) -> np.ndarray | None:
    if all(p.perm is None for p in parts):
        return None
    starts = np.cumsum([0, *(p.shape[1] for p in parts[:-1])])
    orders = [np.arange(p.shape[1]) if p.perm is None else p.perm for p in parts]
    return np.concatenate([start + order for start, order in zip(starts, orders, strict=True)])


def _same_order(a: Value, b: Value) -> bool:
    if a.perm is None or b.perm is None:
        return a.perm is b.perm
    return np.array_equal(a.perm, b.perm)


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
    x = call.image("self")
    axes = sorted(axis % 4 for axis in (call.args.get("dim") or range(4)))
    call.require(axes == [2, 3], f"means over axes {axes}; supported: height and width together (2, 3)")
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
    call.require(
        call.args.get("mode", "constant") == "constant", f"mode {call.args.get('mode')!r}; only zeros"
    )
    call.require(not call.args.get("value"), f"pads with {call.args.get('value')}; only zeros are supported")
    call.require(min(amounts) >= 0, "crops the image; negative padding is not supported")
    call.require(x.perm is None, "pads a flattened image; pad before the flatten")
    by_axis = [(0, 0)] * len(x.shape)  # PyTorch lists the last axis first
    for i in range(len(amounts) // 2):
        by_axis[-1 - i] = (int(amounts[2 * i]), int(amounts[2 * i + 1]))
    if len(by_axis) == 4:
        by_axis = [by_axis[0], by_axis[2], by_axis[3], by_axis[1]]
    return call.emit("PAD", (x.name,), Pad(tuple(by_axis)))


@handles("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten")
def _reshape(call: Call) -> Value:
    x = call["self"]
    if x.shape == call.shape:
        return x
    order = _image_order(x.shape) if x.perm is None else x.perm
    if len(call.shape) == 4:
        call.require(_equal(order, _image_order(call.shape)), "reorders the elements of an image")
        order = None
    flat = order is None or call.shape == (x.shape[0], int(np.prod(x.shape[1:])))
    call.require(flat, f"reshapes {x.shape} to {call.shape}; supported: flatten all but the batch")
    return call.emit("RESHAPE", (x.name,), Reshape(stored_shape(call.shape)), perm=order)


def _image_order(shape: tuple[int, ...]) -> np.ndarray | None:
    """Return ``perm`` of a flattened N C H W image (see `Value`), None where both orders agree."""
    if len(shape) != 4 or shape[1] == 1 or shape[2] * shape[3] == 1:
        return None
    return np.arange(int(np.prod(shape[1:]))).reshape(shape[1:]).transpose(1, 2, 0).ravel()


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
