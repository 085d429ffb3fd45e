"""Each op, as a one-op .tflite file with random legal shapes, options and scales, against LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the oracle of these tests")
pytest.importorskip("tflite", reason="reading .tflite needs the tflite package")

from litert_oracle import ACTIVATIONS, ModelWriter, Reference, codes, options

from tinyml_edu import ir
from tinyml_edu.ir import fixed_point, integer_kernels

FAST_CASES, SLOW_CASES = 30, 400

Case = tuple[bytes, list[tuple[int, ...]]]


def _scale(rng: np.random.Generator, low: float = 1e-3, high: float = 1e-1) -> np.float32:
    return np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))


def _zero_point(rng: np.random.Generator) -> int:
    return int(rng.choice([-128, 127, 0, rng.integers(-128, 128)]))


def _activation(rng: np.random.Generator) -> int:
    return ACTIVATIONS[str(rng.choice(["none", "relu", "relu6"]))]


def _weight_scales(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Return (channels,) or (1,) scales; now and then a channel is dead (multiplier 0)."""
    if rng.random() < 0.25:
        return np.array([_scale(rng)])
    scales = np.array([_scale(rng, 1e-4, 1e-1) for _ in range(channels)], np.float32)
    if channels > 1 and rng.random() < 0.25:
        scales[rng.integers(channels)] = 1e-16
    return scales


def _output_scale(rng: np.random.Generator, x_scale: float, w_scale: np.ndarray, fan_in: int) -> np.float32:
    """Return a scale that spreads typical sums over the codes, sometimes far too fine or too coarse.

    Codes are uniform: a product of two has a standard deviation near 74 * 74, a sum of ``fan_in`` of
    them sqrt(fan_in) times that.
    """
    typical = float(x_scale) * float(w_scale.max()) * 74 * 74 * fan_in**0.5 / 64
    if rng.random() < 0.15:  # a real factor above 1: the exponent is positive, the shift goes left
        return np.float32(float(x_scale) * float(w_scale.max()) * rng.uniform(0.02, 1.5))
    return np.float32(typical * np.exp(rng.uniform(-2, 3)))


def _image_case(rng: np.random.Generator) -> tuple[dict, int, int, tuple[int, int], tuple[int, int]]:
    """Return random sliding options, H, W, the kernel and (OH, OW)."""
    import ai_edge_litert.schema_py_generated as schema

    same = bool(rng.integers(2))
    kernel = tuple(int(v) for v in rng.integers(1, 6, 2))
    stride = tuple(int(v) for v in rng.integers(1, 4, 2))
    dilation = tuple(int(v) for v in rng.integers(1, 4, 2)) if max(stride) == 1 else (1, 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    low = [1, 1] if same else reach
    h, w = (int(rng.integers(least, least + 10)) for least in low)
    out = tuple(
        -(-size // s) if same else (size - r) // s + 1
        for size, s, r in zip((h, w), stride, reach, strict=True)
    )
    slide = {
        "padding": schema.Padding.SAME if same else schema.Padding.VALID,
        "strideH": stride[0],
        "strideW": stride[1],
        "fusedActivationFunction": _activation(rng),
    }
    if max(dilation) > 1:
        slide |= {"dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    return slide, h, w, kernel, out


def _bias(
    rng: np.random.Generator, m: ModelWriter, channels: int, fan_in: int, scale: np.ndarray
) -> list[int]:
    data = rng.integers(-4000 * fan_in, 4000 * fan_in, channels, dtype=np.int32)
    return [m.tensor((channels,), scale=scale, data=data, dtype="int32")]


def conv_case(rng: np.random.Generator) -> Case:
    slide, h, w, kernel, out = _image_case(rng)
    c, o = (int(v) for v in rng.integers(1, 9, 2))
    m, x_scale, w_scale = ModelWriter(), _scale(rng), _weight_scales(rng, o)
    fan_in = kernel[0] * kernel[1] * c
    x = m.tensor((1, h, w, c), scale=x_scale, zero_point=_zero_point(rng))
    weights = m.tensor(
        (o, *kernel, c), scale=w_scale, data=rng.integers(-127, 128, (o, *kernel, c), dtype=np.int8)
    )
    y_scale = _output_scale(rng, x_scale, w_scale, fan_in)
    y = m.tensor((1, *out, o), scale=y_scale, zero_point=_zero_point(rng))
    bias = _bias(rng, m, o, fan_in, x_scale * w_scale)
    m.op("CONV_2D", [x, weights, *bias], y, options("Conv2D", **slide))
    return m.pack([x], [y]), [(1, h, w, c)]


def depthwise_case(rng: np.random.Generator) -> Case:
    slide, h, w, kernel, out = _image_case(rng)
    c, multiplier = int(rng.integers(1, 9)), int(rng.choice([1, 1, 2, 3]))
    o, fan_in = c * multiplier, kernel[0] * kernel[1]
    m, x_scale, w_scale = ModelWriter(), _scale(rng), _weight_scales(rng, o)
    x = m.tensor((1, h, w, c), scale=x_scale, zero_point=_zero_point(rng))
    data = rng.integers(-127, 128, (1, *kernel, o), dtype=np.int8)
    weights = m.tensor((1, *kernel, o), scale=w_scale, data=data, axis=3)
    y_scale = _output_scale(rng, x_scale, w_scale, fan_in)
    y = m.tensor((1, *out, o), scale=y_scale, zero_point=_zero_point(rng))
    bias = _bias(rng, m, o, fan_in, x_scale * w_scale) if rng.random() < 0.8 else []
    slide["depthMultiplier"] = multiplier
    m.op("DEPTHWISE_CONV_2D", [x, weights, *bias], y, options("DepthwiseConv2D", **slide))
    return m.pack([x], [y]), [(1, h, w, c)]


def fully_connected_case(rng: np.random.Generator) -> Case:
    fan_in, o = (int(v) for v in rng.integers(1, 80, 2))
    m, x_scale = ModelWriter(), _scale(rng)
    w_scale = _weight_scales(rng, o)
    shape = [(1, fan_in), (1, 1, 1, fan_in), (1, 2, fan_in)][rng.integers(3)]
    keep = bool(rng.integers(2))
    rows = 2 if len(shape) == 3 else 1
    x = m.tensor(shape, scale=x_scale, zero_point=_zero_point(rng))
    data = rng.integers(-127, 128, (o, fan_in), dtype=np.int8)
    weights = m.tensor((o, fan_in), scale=w_scale, data=data)
    y_shape = (*shape[:-1], o) if keep else (rows, o)
    y_scale = _output_scale(rng, x_scale, w_scale, fan_in)
    y = m.tensor(y_shape, scale=y_scale, zero_point=_zero_point(rng))
    bias = _bias(rng, m, o, fan_in, x_scale * w_scale) if rng.random() < 0.8 else [-1]
    kind = options("FullyConnected", fusedActivationFunction=_activation(rng), keepNumDims=keep)
    m.op("FULLY_CONNECTED", [x, weights, *bias], y, kind)
    return m.pack([x], [y]), [shape]


def add_case(rng: np.random.Generator) -> Case:
    shape = (1, *(int(v) for v in rng.integers(1, 9, 3)))
    m = ModelWriter()
    s1, s2 = _scale(rng, 1e-4), _scale(rng, 1e-4)
    y_scale = max(s1, s2) * np.exp(rng.uniform(-3, 2))
    if rng.random() < 0.3:  # y = (a + b) / 2 or / 4: many sums are ties
        s2, y_scale = s1, s1 * rng.choice([2, 4])
    x1 = m.tensor(shape, scale=s1, zero_point=_zero_point(rng))
    x2 = m.tensor(shape, scale=s2, zero_point=_zero_point(rng))
    y = m.tensor(shape, scale=y_scale, zero_point=_zero_point(rng))
    m.op("ADD", [x1, x2], y, options("Add", fusedActivationFunction=_activation(rng)))
    return m.pack([x1, x2], [y]), [shape, shape]


def _pool_case(rng: np.random.Generator, op: str) -> Case:
    slide, h, w, kernel, _ = _image_case(rng)
    slide.pop("dilationHFactor", None)
    slide.pop("dilationWFactor", None)
    stride = slide["strideH"], slide["strideW"]
    same = slide["padding"] == 0
    out = tuple(
        -(-size // s) if same else (size - k) // s + 1
        for size, s, k in zip((h, w), stride, kernel, strict=True)
    )
    c = int(rng.integers(1, 9))
    m, scale, zero_point = ModelWriter(), _scale(rng), _zero_point(rng)
    x = m.tensor((1, h, w, c), scale=scale, zero_point=zero_point)
    y = m.tensor((1, *out, c), scale=scale, zero_point=zero_point)
    m.op(op, [x], y, options("Pool2D", filterHeight=kernel[0], filterWidth=kernel[1], **slide))
    return m.pack([x], [y]), [(1, h, w, c)]


def average_pool_case(rng: np.random.Generator) -> Case:
    return _pool_case(rng, "AVERAGE_POOL_2D")


def max_pool_case(rng: np.random.Generator) -> Case:
    return _pool_case(rng, "MAX_POOL_2D")


def mean_case(rng: np.random.Generator) -> Case:
    shape = (1, *(int(v) for v in rng.integers(1, 13, 3)))
    choices = [(1, 2), (1, 2), (1,), (2,), (3,), (2, 3), (1, 3), (1, 2, 3)]
    axes = choices[rng.integers(len(choices))]
    keep = bool(rng.integers(2))
    m, x_scale, x_zero = ModelWriter(), _scale(rng), _zero_point(rng)
    x = m.tensor(shape, scale=x_scale, zero_point=x_zero)
    y_shape = tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)
    if rng.random() < 0.25:
        y_scale, y_zero = x_scale, x_zero
    else:
        y_scale, y_zero = np.float32(x_scale * np.exp(rng.uniform(-3, 1))), _zero_point(rng)
    y = m.tensor(y_shape, scale=y_scale, zero_point=y_zero)
    negative = [a - 4 if rng.random() < 0.3 else a for a in axes]
    axis = m.tensor((len(axes),), data=np.array(negative), dtype="int32")
    m.op("MEAN", [x, axis], y, options("Reducer", keepDims=keep))
    return m.pack([x], [y]), [shape]


def pad_case(rng: np.random.Generator) -> Case:
    shape = (1, *(int(v) for v in rng.integers(1, 7, 3)))
    pads = np.concatenate([[[0, 0]], rng.integers(0, 4, (3, 2))])
    m, scale, zero_point = ModelWriter(), _scale(rng), _zero_point(rng)
    x = m.tensor(shape, scale=scale, zero_point=zero_point)
    y_shape = tuple(int(n + a + b) for n, (a, b) in zip(shape, pads, strict=True))
    y = m.tensor(y_shape, scale=scale, zero_point=zero_point)
    table = m.tensor((4, 2), data=pads, dtype="int32")
    m.op("PAD", [x, table], y, options("Pad"))
    return m.pack([x], [y]), [shape]


def reshape_case(rng: np.random.Generator) -> Case:
    a, b, c = (int(v) for v in rng.integers(1, 7, 3))
    target = [(1, a * b * c), (1, b, a, c), (1, a * b, c), (a, b * c)][rng.integers(4)]
    m, scale, zero_point = ModelWriter(), _scale(rng), _zero_point(rng)
    x = m.tensor((1, a, b, c), scale=scale, zero_point=zero_point)
    y = m.tensor(target, scale=scale, zero_point=zero_point)
    wanted = m.tensor((len(target),), data=np.array(target), dtype="int32")
    m.op("RESHAPE", [x, wanted], y, options("Reshape", newShape=list(target)))
    return m.pack([x], [y]), [(1, a, b, c)]


def softmax_case(rng: np.random.Generator) -> Case:
    n = int(rng.integers(1, 120))
    shape = (1, n) if rng.integers(2) else (1, 3, 2, n)
    m = ModelWriter()
    x = m.tensor(shape, scale=_scale(rng, 1e-3, 0.6), zero_point=_zero_point(rng))
    y = m.tensor(shape, scale=1 / 256, zero_point=-128)
    beta = float(rng.choice([1.0, 1.0, rng.uniform(0.2, 3)]))
    m.op("SOFTMAX", [x], y, options("Softmax", beta=beta))
    return m.pack([x], [y]), [shape]


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
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
}


def compare(op: str, seed: int, tmp_path: Path) -> tuple[int, int, int]:
    """Run one case through both; return (outputs, outputs that differ, largest difference of "fast")."""
    rng = np.random.default_rng([seed, *op.encode()])
    content, shapes = CASES[op](rng)
    path = tmp_path / f"{op}.tflite"
    path.write_bytes(content)
    graph = ir.read_tflite(path)
    inputs = [codes(rng, shape) for shape in shapes]
    reference = Reference(content)
    want = np.concatenate([reference.run(*one)[graph.outputs[0]] for one in zip(*inputs, strict=True)])
    batch = {name: np.concatenate(x) for name, x in zip(graph.inputs, inputs, strict=True)}
    got, fast = ir.run(graph, batch), ir.run(graph, batch, requant="fast")
    assert got.shape == want.shape
    return want.size, int((got != want).sum()), int(np.abs(fast.astype(int) - got).max())


def test_every_op_of_the_table_is_compared():
    assert set(CASES) == set(ir.OPS)


@pytest.mark.parametrize("op", CASES)
def test_op_equals_the_reference_kernel(op, tmp_path):
    for seed in range(FAST_CASES):
        size, different, off = compare(op, seed, tmp_path)
        assert different == 0, (op, seed, f"{different} of {size} codes differ")
        assert off <= 1, (op, seed, "fast is more than one code away")


@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN"])
def test_the_reference_notices_the_other_rounding(op, tmp_path, monkeypatch):
    """The control: with single and double rounding swapped, the same cases differ from LiteRT."""
    monkeypatch.setattr(integer_kernels, "requant_double", fixed_point.requant_single)
    monkeypatch.setattr(integer_kernels, "requant_single", fixed_point.requant_double)
    assert any(compare(op, seed, tmp_path)[1] for seed in range(2 * FAST_CASES))


@pytest.mark.slow
@pytest.mark.parametrize("op", CASES)
def test_op_equals_the_reference_kernel_at_length(op, tmp_path):
    for seed in range(FAST_CASES, FAST_CASES + SLOW_CASES):
        size, different, off = compare(op, seed, tmp_path)
        assert different == 0, (op, seed, f"{different} of {size} codes differ")
        assert off <= 1, (op, seed, "fast is more than one code away")
