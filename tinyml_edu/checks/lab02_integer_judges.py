"""Lab 2, quantization: how the answers that compute in codes are judged (questions 5 to 8), and the numbers.

The truth is whole-number arithmetic in Python and NumPy that shares no code with the library: a code is
right or wrong, there is no tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .compare import all_of, close, true
from .lab02_judges import TIE, code_range, rounded, unchanged
from .protocol import Arrays, Verdict

MIXED_UP = "the output's zero point is added at the end, once; the input's is in the bias already"


def multiplier_of(m: float) -> tuple[int, int]:
    """Return multiplier in [2**30, 2**31) and exponent with m = multiplier * 2**(exponent - 31)."""
    exponent = 0
    while m * 2.0**-exponent >= 1:  # powers of two are exact in a float
        exponent += 1
    while m * 2.0**-exponent < 0.5:
        exponent -= 1
    multiplier = math.floor(m * 2.0 ** (31 - exponent) + 0.5)
    return (2**30, exponent + 1) if multiplier == 2**31 else (multiplier, exponent)


def once(acc: int, multiplier: int, exponent: int) -> int:
    """Return floor(acc * multiplier * 2**(exponent - 31) + 1/2), exactly."""
    shift = 31 - exponent
    return (2 * acc * multiplier + 2**shift) // 2 ** (shift + 1)


def twice(acc: int, multiplier: int, exponent: int) -> int:
    """Round half up to 31 bits less, then half away from zero to the rest."""
    high = (2 * acc * 2 ** max(exponent, 0) * multiplier + 2**31) // 2**32
    right = max(-exponent, 0)
    magnitude = (2 * abs(high) + 2**right) // 2 ** (right + 1)
    return magnitude if high >= 0 else -magnitude


def requantized(
    acc: np.ndarray, multipliers: Sequence[tuple[int, int]], rule: object, axis: int
) -> np.ndarray:
    """Apply ``once`` or ``twice`` with one pair for each index along ``axis``; int64."""
    moved = np.moveaxis(acc, axis, 0)
    rows = [
        np.reshape([rule(int(a), *pair) for a in row.ravel()], row.shape)  # type: ignore[operator]
        for row, pair in zip(moved, multipliers, strict=True)
    ]
    return np.moveaxis(np.array(rows, np.int64), 0, axis)


# q5: quantize_multiplier(m), requant_single(acc, multiplier, exponent), requant_double(...)


def q5(arrays: Arrays, outputs: Arrays) -> Verdict:
    m, acc = arrays["m"].tolist(), arrays["acc"]
    pairs = [multiplier_of(value) for value in m]
    want = np.array(pairs).T
    return all_of(
        close(
            outputs["multiplier"],
            want[0],
            name="the multipliers",
            mistakes={
                "a fraction that rounds up to 1.0 needs the next exponent: 2**31 is no int32": [
                    math.floor(math.ldexp(math.frexp(v)[0], 31) + 0.5) for v in m
                ],
                "31 bits: the multiplier lies in [2**30, 2**31)": want[0] // 2,
                "round to the nearest, not down": [math.floor(math.ldexp(math.frexp(v)[0], 31)) for v in m],
            },
            look_at="math.frexp gives a fraction in [0.5, 1) and the exponent",
        ),
        close(
            outputs["exponent"],
            want[1],
            name="the exponents",
            mistakes={"the exponent has the wrong sign: positive shifts left": -want[1]},
            look_at="m = multiplier * 2**(exponent - 31)",
        ),
        _rounding("requant_single", outputs["single"], acc, pairs, once),
        _rounding("requant_double", outputs["double"], acc, pairs, twice),
        unchanged(outputs["acc"], acc, "acc"),
    )


def _rounding(
    name: str, got: np.ndarray, acc: np.ndarray, pairs: list[tuple[int, int]], rule: object
) -> Verdict:
    floats = acc * np.array([a * 2.0 ** (b - 31) for a, b in pairs])[:, None]
    product = acc * np.array([a for a, _ in pairs])[:, None]
    mistakes = {
        "the product needs 64 bits; here it wrapped in 32": product.astype(np.int32),
        "this rounds once": requantized(acc, pairs, once, 0),
        "this rounds twice": requantized(acc, pairs, twice, 0),
        "this is a float product, rounded half to even: integers only": np.rint(floats),
        "a shift alone rounds down: add a half before it": np.floor(floats),
    }
    return close(
        got,
        requantized(acc, pairs, rule, 0),
        name=f"{name}(acc, multiplier, exponent)",
        mistakes=mistakes,
        look_at="once: half up at bit 31 - exponent; twice: half up at bit 31, then half away from zero",
    )


# q6: shift_quantized_linear_bias(...), quantized_linear(...)


def shifted_bias(bias: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """Return int32 (O,): ``bias - zero_point * sum w``."""
    sums = weight.astype(np.int64).reshape(len(weight), -1).sum(1)
    return (bias.astype(np.int64) - int(zero_point) * sums).astype(np.int32)


def effective(arrays: Arrays) -> np.ndarray:
    """Return float64 (O,): ``s_x * s_w / s_y`` of a layer's case."""
    s_x, s_y = float(arrays["input_scale"]), float(arrays["output_scale"])
    s_w = arrays["weight_scale"].astype(np.float64).ravel()
    return s_x * np.broadcast_to(s_w, len(arrays["weight"])) / s_y


def finished(scaled: np.ndarray, arrays: Arrays) -> np.ndarray:
    """Add the output's zero point and clamp."""
    limits = code_range(int(arrays["feature_bitwidth"]))
    return np.clip(scaled + int(arrays["output_zero_point"]), *limits)


def _q6_shift(arrays: Arrays, got: np.ndarray, name: str) -> Verdict:
    bias, weight, zp = arrays["bias"].astype(np.int64), arrays["weight"], int(arrays["input_zero_point"])
    want = shifted_bias(bias, weight, zp)
    return close(
        got,
        want,
        name=name,
        mistakes={
            "the sign is wrong: sum (x - zp) w = sum x w - zp sum w": shifted_bias(bias, weight, -zp),
            "sum the weights of each output channel, not the whole tensor": bias
            - zp * weight.astype(np.int64).sum(),
            "sums of int8 wrap: widen first": bias
            - zp * weight.reshape(len(weight), -1).sum(1, dtype=np.int8).astype(np.int64),
            "nothing is subtracted": bias,
        },
        look_at="one sum for each output channel (axis 0), times the zero point, off the bias",
    )


def _layer(arrays: Arrays, outputs: Arrays, sums: np.ndarray, rule: object, name: str) -> Verdict:
    """Judge the output codes of a layer whose sums of products, bias included, are ``sums`` (N, O, ...)."""
    m = effective(arrays)
    pairs = [multiplier_of(value) for value in m]
    codes = outputs["codes"]
    zp = int(arrays["input_zero_point"])
    axes = (1, -1, *[1] * (sums.ndim - 2))
    correction = (zp * arrays["weight"].astype(np.int64).reshape(len(m), -1).sum(1)).reshape(axes)
    scaled = requantized(sums, pairs, rule, 1)
    mistakes = {
        "the input's zero point is subtracted twice: the shifted bias holds it already": finished(
            requantized(sums - correction, pairs, rule, 1), arrays
        ),
        "the product is scaled as a float: use multiplier and shift": finished(
            np.rint(sums * m.reshape(axes)), arrays
        ),
        "clamp to feature_bitwidth": np.clip(scaled + int(arrays["output_zero_point"]), -128, 127),
        "values wrap: clamp first, then cast": (scaled + int(arrays["output_zero_point"]))
        .astype(np.int8)
        .astype(np.int64),
        "the output's zero point is missing": np.clip(scaled, *code_range(int(arrays["feature_bitwidth"]))),
        "the output's zero point has the wrong sign": np.clip(
            scaled - int(arrays["output_zero_point"]), *code_range(int(arrays["feature_bitwidth"]))
        ),
        "this layer rounds the other way: see question 5": finished(
            requantized(sums, pairs, once if rule is twice else twice, 1), arrays
        ),
        "the bias is missing": finished(
            requantized(sums - arrays["shifted"].astype(np.int64).reshape(axes), pairs, rule, 1), arrays
        ),
    }
    return all_of(
        *(unchanged(outputs[f"after/{n}"], arrays[n], n) for n in ("input", "weight", "shifted")),
        close(
            codes.astype(np.int64) if codes.dtype.kind == "i" else codes,
            finished(scaled, arrays),
            name=name,
            mistakes=mistakes,
            look_at=MIXED_UP,
        ),
        true(codes.dtype == np.int8, f"the codes are {codes.dtype}, expected int8", look_at="cast last"),
    )


def q6(arrays: Arrays, outputs: Arrays) -> Verdict:
    x, w = arrays["input"].astype(np.int64), arrays["weight"].astype(np.int64)
    return all_of(
        _q6_shift(arrays, outputs["shift"], "shift_quantized_linear_bias(...)"),
        _layer(arrays, outputs, x @ w.T + arrays["shifted"].astype(np.int64), once, "quantized_linear(...)"),
    )


# q7: shift_quantized_conv2d_bias(...), quantized_conv2d(...)


def convolved(x: np.ndarray, w: np.ndarray, stride: int, dilation: int, groups: int) -> np.ndarray:
    """Return the sums of products int64 (N, O, OH, OW) of padded codes (N, I, H, W), by shifted views."""
    x, w = x.astype(np.int64), w.astype(np.int64)
    (o, per_group, kh, kw), (n, _, h, width) = w.shape, x.shape
    oh = (h - dilation * (kh - 1) - 1) // stride + 1
    ow = (width - dilation * (kw - 1) - 1) // stride + 1
    acc = np.zeros((n, o, oh, ow), np.int64)
    for group in range(groups):
        inputs = slice(group * per_group, (group + 1) * per_group)
        filters = slice(group * (o // groups), (group + 1) * (o // groups))
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dilation, i * dilation + stride * (oh - 1) + 1, stride)
                columns = slice(j * dilation, j * dilation + stride * (ow - 1) + 1, stride)
                acc[:, filters] += np.einsum(
                    "nihw,oi->nohw", x[:, inputs, rows, columns], w[filters, :, i, j]
                )
    return acc


def conv_sums(arrays: Arrays, fill: int | None = None) -> np.ndarray:
    """Return sums and bias of a case (N, O, OH, OW); padding is filled with the zero point, or ``fill``."""
    left, right, top, bottom = arrays["padding"].tolist()
    fill = int(arrays["input_zero_point"]) if fill is None else fill
    frame = ((0, 0), (0, 0), (top, bottom), (left, right))
    x = np.pad(arrays["input"].astype(np.int64), frame, constant_values=fill)
    stride, dilation, groups = (int(arrays[n]) for n in ("stride", "dilation", "groups"))
    acc = convolved(x, arrays["weight"], stride, dilation, groups)
    return acc + arrays["shifted"].astype(np.int64).reshape(-1, 1, 1)


def conv_codes(arrays: Arrays) -> np.ndarray:
    """Return the output codes int64 (N, O, OH, OW) of a convolution's case."""
    pairs = [multiplier_of(value) for value in effective(arrays)]
    return finished(requantized(conv_sums(arrays), pairs, twice, 1), arrays)


def q7(arrays: Arrays, outputs: Arrays) -> Verdict:
    sums = conv_sums(arrays)
    verdict = _layer(arrays, outputs, sums, twice, "quantized_conv2d(...)")
    shift = _q6_shift(arrays, outputs["shift"], "shift_quantized_conv2d_bias(...)")
    if not verdict.passed and outputs["codes"].shape == sums.shape:
        pairs = [multiplier_of(value) for value in effective(arrays)]
        zeros = finished(requantized(conv_sums(arrays, fill=0), pairs, twice, 1), arrays)
        if np.array_equal(outputs["codes"], zeros):
            hint = "pad with the input's zero point: the code 0 is no zero"
            verdict = Verdict(0.0, verdict.reason, hint)
    return all_of(shift, verdict)


# q8: fake_quantize(x, step, low, high)


def q8(arrays: Arrays, outputs: Arrays) -> Verdict:
    x, step, g = (arrays[n].astype(np.float64) for n in ("x", "step", "gradient"))
    low, high = int(arrays["low"]), int(arrays["high"])
    u = x / step
    inside = (u >= low) & (u <= high)
    got = outputs["y"].astype(np.float64)
    codes = rounded(np.clip(u, low, high), got / step if got.shape == x.shape else got, TIE)
    tolerance = {"rtol": 4e-6, "atol": 0.0}  # a float32 quotient and product
    return all_of(
        close(
            outputs["y"],
            np.rint(codes) * step,
            **tolerance,
            name="fake_quantize(x, step, low, high)",
            mistakes={
                "the value is not rounded": np.clip(u, low, high) * step,
                "the value is not clamped": np.rint(u) * step,
                "these are codes: multiply by the step again": codes,
            },
            look_at="step * round(clamp(x / step, low, high))",
        ),
        close(
            outputs["x_gradient"],
            g * inside,
            **tolerance,
            name="the gradient to x",
            mistakes={
                "no gradient comes through: round() has the slope 0; take its difference out by detach()": 0
                * g,
                "outside of [low, high] the value is clamped: no gradient passes there": g,
                "the gradient stops inside the range and passes outside: the other way round": g * ~inside,
                "the gradient is multiplied by the step: it passes as it is": g * inside * step,
                "the gradient is divided by the step: it passes as it is": g * inside / step,
            },
            look_at="1 inside the range, 0 outside",
        ),
        unchanged(outputs["x"], arrays["x"], "x"),
    )


# n1, n2: numbers that the notebook measures and the judge recomputes

RESNET8_WEIGHTS = (432, 2304, 2304, 4608, 9216, 512, 18432, 36864, 2048, 640)
"""Weights of ResNet-8's layers on 32 by 32 images of 3 channels, ten classes, in its order."""


def truth_n1() -> float:
    """Bytes of ResNet-8's weights with 4-bit labels, whole bytes for each layer, and 16 float32 centroids."""
    return float(sum((n * 4 + 7) // 8 + 16 * 4 for n in RESNET8_WEIGHTS))


def truth_n2() -> float:
    """Sums from -2**15 to 2**15 - 1 that get another code at m = 0.0123 with two roundings than with one."""
    pair = multiplier_of(0.0123)
    return float(sum(once(acc, *pair) != twice(acc, *pair) for acc in range(-(2**15), 2**15)))
