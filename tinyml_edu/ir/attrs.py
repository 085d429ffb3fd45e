"""Attributes of each op.  Sizes and strides are (height, width); paddings are in elements."""

from __future__ import annotations

from dataclasses import dataclass

ACTIVATIONS = ("none", "relu", "relu6", "relu_n1_to_1")


@dataclass(frozen=True)
class Conv2D:
    """CONV_2D, inputs (x, w, bias): x (N, H, W, I), w (O, KH, KW, I), bias (O,).

    ``padding`` is (top, left, bottom, right) and explicit; a negative value crops.  Padding stands
    for real 0, that is the zero point.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "none"


@dataclass(frozen=True)
class DepthwiseConv2D(Conv2D):
    """DEPTHWISE_CONV_2D, inputs (x, w, bias): w (1, KH, KW, C·M), output channel c·M + m reads channel c."""


@dataclass(frozen=True)
class FullyConnected:
    """FULLY_CONNECTED, inputs (x, w, bias): x (N, I), w (O, I), bias (O,)."""

    activation: str = "none"


@dataclass(frozen=True)
class Add:
    """ADD of two tensors; an axis of either, but not the batch, may have length 1 and is repeated."""

    activation: str = "none"


@dataclass(frozen=True)
class Sub:
    """SUB, the first tensor minus the second; axes of length 1 are repeated as in ADD."""

    activation: str = "none"


@dataclass(frozen=True)
class Mul:
    """MUL of two tensors; axes of length 1 are repeated as in ADD."""

    activation: str = "none"


@dataclass(frozen=True)
class Concatenation:
    """CONCATENATION of any number of tensors along ``axis`` (of the input, batch is axis 0)."""

    axis: int


@dataclass(frozen=True)
class Pool2D:
    """AVERAGE_POOL_2D and MAX_POOL_2D; padding (top, left, bottom, right) does not enter the result."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    activation: str = "none"


@dataclass(frozen=True)
class Mean:
    """MEAN over ``axes`` (of the input, batch is axis 0)."""

    axes: tuple[int, ...]
    keepdims: bool = False


@dataclass(frozen=True)
class Pad:
    """PAD and PADV2: ``padding`` holds (before, after) for each axis, ``value`` is the real number in it."""

    padding: tuple[tuple[int, int], ...]
    value: float = 0.0


@dataclass(frozen=True)
class Reshape:
    """RESHAPE to ``shape``, batch included."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class ResizeNearest:
    """RESIZE_NEAREST_NEIGHBOR to ``size`` (height, width).

    Output row ``i`` copies input row ``floor((i + offset) * ratio)``, ``offset`` 1/2 with
    ``half_pixel_centers`` and else 0, ``ratio = rows in / rows out``; with ``align_corners`` the ratio is
    ``(rows in - 1) / (rows out - 1)``, rounded to nearest, so that the last row meets the last.
    """

    size: tuple[int, int]
    align_corners: bool = False
    half_pixel_centers: bool = False


@dataclass(frozen=True)
class Elementwise:
    """LOGISTIC, TANH, HARD_SWISH, RELU, RELU6, RELU_N1_TO_1: a function of each element, without options."""


@dataclass(frozen=True)
class Quantize:
    """QUANTIZE of codes to another scale.

    With ``through_float`` it stands for DEQUANTIZE and then QUANTIZE, whose quotient is float32.
    """

    through_float: bool = False


@dataclass(frozen=True)
class LeakyRelu:
    """LEAKY_RELU, ``x`` where positive, else ``alpha * x``."""

    alpha: float = 0.01


@dataclass(frozen=True)
class Softmax:
    """SOFTMAX over the last axis of ``beta * x``."""

    beta: float = 1.0
