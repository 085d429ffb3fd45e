"""Random one-op int8 graphs over all legal shapes and options: `CASES` by op, for comparison with LiteRT.

They are wider than those of ``graph_cases``: scales over three decades, dead channels, real factors above 1,
zero points at the ends, one row, one column, one channel, dilation, strides above the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from graph_cases import one_op

from tinyml_edu.ir import Graph, Kind, Quant, Tensor
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.ops import output_size, same_padding

Pair = tuple[int, int]


def scale(rng: np.random.Generator, low: float = 1e-3, high: float = 1e-1) -> np.float32:
    return np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))


def zero_point(rng: np.random.Generator) -> int:
    return int(rng.choice([-128, 127, 0, rng.integers(-128, 128)]))


def activation(rng: np.random.Generator) -> str:
    return str(rng.choice(A.ACTIVATIONS))


def weight_scales(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Return (channels,) or (1,) scales; now and then a channel is dead (multiplier 0)."""
    if rng.random() < 0.25:
        return np.array([scale(rng)])
    scales = np.array([scale(rng, 1e-4, 1e-1) for _ in range(channels)], np.float32)
    if channels > 1 and rng.random() < 0.25:
        scales[rng.integers(channels)] = 1e-16
    return scales


def output_quant(rng: np.random.Generator, x: Quant, w_scale: np.ndarray, fan_in: int) -> Quant:
    """Return a scale that spreads typical sums over the codes, sometimes far too fine or too coarse.

    Codes are uniform: a product of two has a standard deviation near 74 * 74, a sum of ``fan_in`` of
    them sqrt(fan_in) times that.
    """
    product = x.item()[0] * float(w_scale.max())
    if rng.random() < 0.15:  # a real factor above 1: the exponent is positive, the shift goes left
        return Quant.per_tensor(product * rng.uniform(0.02, 1.5), zero_point(rng))
    typical = product * 74 * 74 * fan_in**0.5 / 64
    return Quant.per_tensor(typical * np.exp(rng.uniform(-2, 3)), zero_point(rng))


def _input(shape: tuple[int, ...], quant: Quant, name: str = "x") -> Tensor:
    return Tensor(name, shape, "int8", Kind.INPUT, quant=quant)


def _quant(rng: np.random.Generator, low: float = 1e-3, high: float = 1e-1) -> Quant:
    return Quant.per_tensor(scale(rng, low, high), zero_point(rng))


def _constants(rng: np.random.Generator, shape: tuple[int, ...], axis: int, fan_in: int) -> list[Tensor]:
    """Return weights, and four times in five a bias."""
    channels, scales = shape[axis], weight_scales(rng, shape[axis])
    quant = Quant(
        scales.astype(np.float32), np.zeros(scales.size, np.int32), axis if scales.size > 1 else None
    )
    data = rng.integers(-127, 128, shape, dtype=np.int8)
    bias = rng.integers(-4000 * fan_in, 4000 * fan_in, channels, dtype=np.int32)
    w = Tensor("w", shape, "int8", Kind.CONSTANT, data, quant)
    b = Tensor("b", (channels,), "int32", Kind.CONSTANT, bias)
    return [w, b] if rng.random() < 0.8 else [w]


def _slide(rng: np.random.Generator, *, dilated: bool, explicit: bool) -> tuple[Pair, Pair, dict[str, Any]]:
    """Return (H, W), (KH, KW) and the attributes: SAME, VALID, or padding of any size below the kernel."""
    kernel = tuple(int(v) for v in rng.integers(1, 6, 2))
    stride = tuple(int(v) for v in rng.integers(1, 4, 2))
    dilation = tuple(int(v) for v in rng.integers(1, 4, 2)) if dilated and max(stride) == 1 else (1, 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    kind = str(rng.choice(["same", "valid", "explicit"] if explicit else ["same", "valid"]))
    low = [1, 1] if kind == "same" else reach
    size = tuple(int(rng.integers(least, least + 10)) for least in low)
    padding = (0, 0, 0, 0)
    if kind == "same":
        pairs = [same_padding(*axis) for axis in zip(size, kernel, stride, dilation, strict=True)]
        padding = (pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1])
    elif kind == "explicit":
        padding = tuple(int(rng.integers(0, limit)) for limit in (*kernel, *kernel))
    attrs = {"stride": stride, "padding": padding}
    return size, kernel, attrs | ({"dilation": dilation} if dilated else {})


def conv_case(rng: np.random.Generator) -> Graph:
    (h, w), kernel, slide = _slide(rng, dilated=True, explicit=True)
    c, o = (int(v) for v in rng.integers(1, 9, 2))
    x = _input((1, h, w, c), _quant(rng))
    fan_in = kernel[0] * kernel[1] * c
    constants = _constants(rng, (o, *kernel, c), 0, fan_in)
    out = output_quant(rng, x.quant, constants[0].quant.scale, fan_in)
    return one_op("CONV_2D", A.Conv2D(**slide, activation=activation(rng)), x, *constants, out_quant=out)


def depthwise_case(rng: np.random.Generator) -> Graph:
    (h, w), kernel, slide = _slide(rng, dilated=True, explicit=True)
    c, multiplier = int(rng.integers(1, 9)), int(rng.choice([1, 1, 2, 3]))
    x = _input((1, h, w, c), _quant(rng))
    constants = _constants(rng, (1, *kernel, c * multiplier), 3, kernel[0] * kernel[1])
    out = output_quant(rng, x.quant, constants[0].quant.scale, kernel[0] * kernel[1])
    attrs = A.DepthwiseConv2D(**slide, activation=activation(rng))
    return one_op("DEPTHWISE_CONV_2D", attrs, x, *constants, out_quant=out)


def fully_connected_case(rng: np.random.Generator) -> Graph:
    fan_in, o = (int(v) for v in rng.integers(1, 80, 2))
    x = _input((1, fan_in), _quant(rng))
    constants = _constants(rng, (o, fan_in), 0, fan_in)
    out = output_quant(rng, x.quant, constants[0].quant.scale, fan_in)
    return one_op("FULLY_CONNECTED", A.FullyConnected(activation(rng)), x, *constants, out_quant=out)


def operands(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return two shapes that make ``shape``: equal, one with axes of length 1, or each with some."""
    kind = rng.random()
    if kind < 0.4:
        return shape, shape
    narrow = [tuple(1 if rng.random() < 0.5 else n for n in shape) for _ in range(2)]
    if kind < 0.8:
        return (shape, narrow[1]) if rng.random() < 0.5 else (narrow[0], shape)
    # Rank 4 at most: LiteRT repeats both operands of up to 4 axes.
    return narrow[0], narrow[1]


def add_case(rng: np.random.Generator) -> Graph:
    shape = (1, *(int(v) for v in rng.integers(1, 9, rng.integers(1, 4))))
    shape_1, shape_2 = operands(rng, shape)
    s1, s2 = scale(rng, 1e-4), scale(rng, 1e-4)
    y_scale = max(s1, s2) * np.exp(rng.uniform(-3, 2))
    if rng.random() < 0.3:  # y = (a + b) / 2 or / 4: many sums are ties
        s2, y_scale = s1, s1 * rng.choice([2, 4])
    x1 = _input(shape_1, Quant.per_tensor(s1, zero_point(rng)), "x1")
    x2 = _input(shape_2, Quant.per_tensor(s2, zero_point(rng)), "x2")
    x1, x2 = _one_constant(rng, x1, x2)
    out = Quant.per_tensor(y_scale, zero_point(rng))
    return one_op("ADD", A.Add(activation(rng)), x1, x2, out_quant=out)


def _one_constant(rng: np.random.Generator, *tensors: Tensor) -> list[Tensor]:
    """Return the tensors, at times one of them a constant."""
    if rng.random() > 0.3:
        return list(tensors)
    k = int(rng.integers(len(tensors)))
    data = rng.integers(-128, 128, tensors[k].shape, dtype=np.int8)
    return [replace(t, kind=Kind.CONSTANT, data=data) if i == k else t for i, t in enumerate(tensors)]


def average_pool_case(rng: np.random.Generator) -> Graph:
    (h, w), kernel, slide = _slide(rng, dilated=False, explicit=False)
    x = _input((1, h, w, int(rng.integers(1, 9))), _quant(rng))
    attrs = A.Pool2D(kernel, **slide, activation=activation(rng))
    return one_op("AVERAGE_POOL_2D", attrs, x, out_quant=x.quant)


def max_pool_case(rng: np.random.Generator) -> Graph:
    """Explicit padding only where the padded zero point cannot win: it is -128, or a ReLU follows."""
    quant, act = _quant(rng), activation(rng)
    explicit = act in ("relu", "relu6") or quant.item()[1] == -128
    (h, w), kernel, slide = _slide(rng, dilated=False, explicit=explicit)
    top, left, bottom, right = slide["padding"]
    for axis, size, before, after in ((0, h, top, bottom), (1, w, left, right)):
        out = output_size(before + size + after, kernel[axis], slide["stride"][axis])
        if (out - 1) * slide["stride"][axis] - before >= size:  # a window in the padding only: no maximum
            slide["padding"] = (0, 0, 0, 0)
    x = _input((1, h, w, int(rng.integers(1, 9))), quant)
    return one_op("MAX_POOL_2D", A.Pool2D(kernel, **slide, activation=act), x, out_quant=quant)


def mean_case(rng: np.random.Generator) -> Graph:
    x = _input((1, *(int(v) for v in rng.integers(1, 13, 3))), _quant(rng))
    choices = [(1, 2), (1, 2), (1,), (2,), (3,), (2, 3), (1, 3), (1, 2, 3)]
    axes = choices[rng.integers(len(choices))]
    out = x.quant
    if rng.random() < 0.75:
        out = Quant.per_tensor(x.quant.item()[0] * np.exp(rng.uniform(-3, 1)), zero_point(rng))
    return one_op("MEAN", A.Mean(axes, bool(rng.integers(2))), x, out_quant=out)


def pad_case(rng: np.random.Generator) -> Graph:
    rank = int(rng.integers(2, 6))
    x = _input((1, *(int(v) for v in rng.integers(1, 7, rank - 1))), _quant(rng))
    pairs = ((0, 0), *((int(a), int(b)) for a, b in rng.integers(0, 4, (rank - 1, 2))))
    scale, zp = x.quant.item()
    value = scale * (int(rng.integers(-128, 128)) - zp) if rng.random() < 0.4 else 0.0
    return one_op("PAD", A.Pad(pairs, value), x, out_quant=x.quant)


def reshape_case(rng: np.random.Generator) -> Graph:
    a, b, c = (int(v) for v in rng.integers(1, 7, 3))
    target = [(1, a * b * c), (1, b, a, c), (1, a * b, c), (a, b * c)][rng.integers(4)]
    x = _input((1, a, b, c), _quant(rng))
    return one_op("RESHAPE", A.Reshape(target), x, out_quant=x.quant)


def softmax_case(rng: np.random.Generator) -> Graph:
    n = int(rng.integers(1, 120))
    x = _input((1, n) if rng.integers(2) else (1, 3, 2, n), _quant(rng, 1e-3, 0.6))
    beta = float(np.float32(rng.choice([1.0, 1.0, rng.uniform(0.2, 3)])))
    return one_op("SOFTMAX", A.Softmax(beta), x, out_quant=Quant.per_tensor(1 / 256, -128))


def sub_case(rng: np.random.Generator) -> Graph:
    graph = add_case(rng)
    x1, x2 = (graph[name] for name in graph.nodes[0].inputs)
    return one_op("SUB", A.Sub(graph.nodes[0].attrs.activation), x1, x2, out_quant=graph["y"].quant)


def mul_case(rng: np.random.Generator) -> Graph:
    """At times products are ties."""
    shape_1, shape_2 = operands(rng, (1, *(int(v) for v in rng.integers(1, 9, rng.integers(1, 4)))))
    s1, s2 = scale(rng, 1e-4), scale(rng, 1e-4)
    y_scale = s1 * s2 * 74 * 74 / 64 * np.exp(rng.uniform(-4, 2))
    if rng.random() < 0.2:
        y_scale = s1 * s2 * rng.choice([0.5, 1, 2, 64, 256])
    x1 = _input(shape_1, Quant.per_tensor(s1, zero_point(rng)), "x1")
    x2 = _input(shape_2, Quant.per_tensor(s2, zero_point(rng)), "x2")
    x1, x2 = _one_constant(rng, x1, x2)
    return one_op("MUL", A.Mul(activation(rng)), x1, x2, out_quant=Quant.per_tensor(y_scale, zero_point(rng)))


def concatenation_case(rng: np.random.Generator) -> Graph:
    shape, quant = (1, *(int(v) for v in rng.integers(1, 7, rng.integers(1, 4)))), _quant(rng)
    axis = int(rng.integers(1, len(shape)))
    parts = []
    for i in range(int(rng.integers(1, 5))):
        size = (*shape[:axis], int(rng.integers(1, 7)), *shape[axis + 1 :])
        parts.append(_input(size, quant, f"x{i}"))
    if len(parts) > 1 and rng.random() < 0.2:
        data = rng.integers(-128, 128, parts[1].shape, dtype=np.int8)
        parts[1] = Tensor("x1", data.shape, "int8", Kind.CONSTANT, data, quant)
    return one_op("CONCATENATION", A.Concatenation(axis), *parts, out_quant=quant)


def _all_codes(rng: np.random.Generator, low: float = 1e-4, high: float = 1.0) -> Tensor:
    """Return an input of 256 elements, with a scale over four decades."""
    shape = [(1, 256), (1, 16, 16), (1, 8, 8, 4)][rng.integers(3)]
    return _input(shape, _quant(rng, low, high))


def logistic_case(rng: np.random.Generator) -> Graph:
    """One time in two the scale puts a code next to a tie, which float32 decides."""
    x = _all_codes(rng)
    if rng.random() < 0.5:
        p = (rng.integers(128, 255) + 0.5) / 256
        step = np.float32(np.log(p / (1 - p)) / rng.integers(1, 256))
        x = _input(x.shape, Quant.per_tensor(step, x.quant.item()[1]))
    return one_op("LOGISTIC", A.Elementwise(), x, out_quant=Quant.per_tensor(1 / 256, -128))


def hard_swish_case(rng: np.random.Generator) -> Graph:
    x = _all_codes(rng)
    y_scale = x.quant.item()[0] * np.exp(rng.uniform(-4.8, 2))
    return one_op("HARD_SWISH", A.Elementwise(), x, out_quant=Quant.per_tensor(y_scale, zero_point(rng)))


def tanh_case(rng: np.random.Generator) -> Graph:
    """Most often with the scale 1/128 that the operator's specification names."""
    out = Quant.per_tensor(1 / 128, 0) if rng.random() < 0.6 else _quant(rng, 1e-3, 1.0)
    return one_op("TANH", A.Elementwise(), _all_codes(rng), out_quant=out)


def rescaling_case(op: str) -> Callable[[np.random.Generator], Graph]:
    def make(rng: np.random.Generator) -> Graph:
        x = _all_codes(rng)
        factor = rng.choice([0.5, 1, 2, 4]) if rng.random() < 0.3 else np.exp(rng.uniform(-4, 3))
        out = Quant.per_tensor(x.quant.item()[0] * factor, zero_point(rng))
        return one_op(op, _rescaling_attrs(rng, op), x, out_quant=out)

    return make


def _rescaling_attrs(rng: np.random.Generator, op: str) -> A.Elementwise | A.LeakyRelu | A.Quantize:
    if op == "LEAKY_RELU":
        return A.LeakyRelu(float(np.float32(rng.choice([0.0, 0.01, 0.1, 0.3, 1.0, rng.uniform(0, 3)]))))
    return A.Quantize(bool(rng.integers(2))) if op == "QUANTIZE" else A.Elementwise()


def resize_case(rng: np.random.Generator) -> Graph:
    x = _input((1, *(int(v) for v in rng.integers(1, 14, 3))), _quant(rng))
    corners, centers = [(False, False), (True, False), (False, True)][rng.integers(3)]
    doubled = (2 * x.shape[1], 2 * x.shape[2])
    size = doubled if rng.random() < 0.3 else tuple(int(v) for v in rng.integers(1, 30, 2))
    attrs = A.ResizeNearest(size, corners, centers)
    return one_op("RESIZE_NEAREST_NEIGHBOR", attrs, x, out_quant=x.quant)


CASES: dict[str, Callable[[np.random.Generator], Graph]] = {
    "CONV_2D": conv_case,
    "DEPTHWISE_CONV_2D": depthwise_case,
    "FULLY_CONNECTED": fully_connected_case,
    "ADD": add_case,
    "AVERAGE_POOL_2D": average_pool_case,
    "MAX_POOL_2D": max_pool_case,
    "MEAN": mean_case,
    "PAD": pad_case,
    "RESHAPE": reshape_case,
    "SOFTMAX": softmax_case,
    "SUB": sub_case,
    "MUL": mul_case,
    "CONCATENATION": concatenation_case,
    "LOGISTIC": logistic_case,
    "HARD_SWISH": hard_swish_case,
    "RELU": rescaling_case("RELU"),
    "RELU6": rescaling_case("RELU6"),
    "RELU_N1_TO_1": rescaling_case("RELU_N1_TO_1"),
    "LEAKY_RELU": rescaling_case("LEAKY_RELU"),
    "TANH": tanh_case,
    "QUANTIZE": rescaling_case("QUANTIZE"),
    "RESIZE_NEAREST_NEIGHBOR": resize_case,
}


def case(op: str, seed: int) -> tuple[Graph, np.random.Generator]:
    """Return case ``seed`` of ``op``, and the generator that goes on with it."""
    rng = np.random.default_rng([seed, *op.encode()])
    return CASES[op](rng), rng
