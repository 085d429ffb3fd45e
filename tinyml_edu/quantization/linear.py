"""Linear quantization on torch tensors (N, C, H, W) in integers: the arithmetic that a lab builds by hand.

Names and argument order are those of the second lab of the course 6.5940.  The arithmetic is that of the
int8 graph: int32 sums, a fixed-point multiplier and shift for each channel (`ir.fixed_point`), clamp before
narrowing.  So `quantized_linear` and `quantized_conv2d` return exactly the codes of `ir.run` for that layer.
"""
# ruff: noqa: PLR0917 - the argument order is the course's

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UsageError
from ..ir.fixed_point import effective_scale, quantize_multipliers, requant_double, requant_single
from .activations import storable_params
from .affine import get_quantized_range, symmetric_scale
from .checking import require_tensor
from .post_training import BIAS_LIMIT

Scale = float | torch.Tensor


def linear_quantize(
    fp_tensor: torch.Tensor,
    bitwidth: int,
    scale: Scale,
    zero_point: int | torch.Tensor,
    dtype: torch.dtype = torch.int8,
) -> torch.Tensor:
    """Return the codes ``clamp(round(r / scale) + zero_point)``, rounded half to even.

    Parameters
    ----------
    fp_tensor : torch.Tensor
        Real values of any shape.
    bitwidth : int
        Codes are clamped to `get_quantized_range`, before the cast: a cast alone wraps 200 to -56.
    scale, zero_point : float and int, or tensors that broadcast against ``fp_tensor``
        The affine map.
    dtype : torch.dtype
        Integer type of the codes.

    Raises
    ------
    UsageError
        If the values are not real numbers, a scale is not positive or does not broadcast against them, or
        ``dtype`` cannot hold the codes.
    """
    q_min, q_max = get_quantized_range(bitwidth)
    require_tensor(fp_tensor, "what linear_quantize rounds")
    if not fp_tensor.is_floating_point():
        raise UsageError(
            f"linear_quantize takes real values, got {fp_tensor.dtype}; are these codes already?"
        )
    if bool(torch.isnan(fp_tensor).any()):
        raise UsageError("a value to quantize is NaN, which has no code; check where it comes from")
    if dtype.is_floating_point or torch.iinfo(dtype).min > q_min or torch.iinfo(dtype).max < q_max:
        raise UsageError(f"{dtype} cannot hold signed codes of {bitwidth} bits; choose a wider integer type")
    step = torch.as_tensor(scale, dtype=fp_tensor.dtype)
    if not bool((step > 0).all()):
        raise UsageError("a scale must be positive; a tensor of zeros may have any scale, for example 1.0")
    for name, shape in (("scale", step.shape), ("zero point", torch.as_tensor(zero_point).shape)):
        if not _broadcasts(shape, fp_tensor.shape):
            raise UsageError(
                f"a {name} of shape {tuple(shape)} does not broadcast against values of shape "
                f"{tuple(fp_tensor.shape)}; scales of the output channels have shape (O, 1, ...)"
            )
    q = torch.round(fp_tensor / step).double() + zero_point
    return q.clamp(q_min, q_max).to(dtype)


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    """Return whether a tensor of ``shape`` broadcasts to ``target``."""
    return len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )


def get_quantization_scale_and_zero_point(fp_tensor: torch.Tensor, bitwidth: int) -> tuple[float, int]:
    """Return the scale, a float32 value, and the zero point for the range of a tensor.

    The range is widened to contain 0, see `affine_params`; a tensor of zeros gets scale 1.0.
    """
    values = _real(fp_tensor)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale, zero_point = storable_params(low, high, bitwidth)
    return float(np.float32(scale)), zero_point


def get_quantization_scale_for_weight(weight: torch.Tensor, bitwidth: int) -> float:
    """Return the symmetric scale, a float32 value, of a whole weight tensor; 1.0 for zeros."""
    return float(np.float32(symmetric_scale(_real(weight), None, bits=bitwidth)[0])) or 1.0


def linear_quantize_weight_per_channel(
    tensor: torch.Tensor, bitwidth: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Quantize weights (O, ...) with one symmetric scale for each output channel.

    Returns
    -------
    codes : torch.Tensor
        int8, the shape of ``tensor``.
    scale : torch.Tensor
        float32 (O, 1, ...): it broadcasts against ``tensor``; 1.0 for a channel of zeros.
    zero_point : int
        0.
    """
    scale = symmetric_scale(_real(tensor), 0, bits=bitwidth).astype(np.float32)
    scale[scale == 0] = 1.0
    step = torch.from_numpy(scale).reshape(-1, *[1] * (tensor.ndim - 1))
    # In float64, as `quantize_weight` does: the largest weight over its scale is q_max.
    return linear_quantize(tensor.detach().double(), bitwidth, step.double(), 0), step, 0


def linear_quantize_bias_per_output_channel(
    bias: torch.Tensor, weight_scale: Scale, input_scale: float
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Quantize a bias (O,) in steps of ``input_scale * weight_scale``, the unit of the sum of products.

    Returns
    -------
    codes : torch.Tensor
        int32 (O,), clamped to ``±2**30``, which leaves half of int32 to the sum of products.
    scale : torch.Tensor
        float32 (O,).
    zero_point : int
        0.

    Raises
    ------
    UsageError
        If there are neither one nor O weight scales.
    """
    values = _real(bias).astype(np.float64)
    step = _input_scale(input_scale) * _scales(weight_scale, values.size)
    q = np.rint(values / step).clip(-BIAS_LIMIT, BIAS_LIMIT)
    return torch.from_numpy(q.astype(np.int32)), torch.from_numpy(step.astype(np.float32)), 0


def shift_quantized_linear_bias(
    quantized_bias: torch.Tensor, quantized_weight: torch.Tensor, input_zero_point: int
) -> torch.Tensor:
    """Return the bias int32 (O,) that makes up for an input with a zero point.

    ``sum (x - zp) * w + b = sum x * w + (b - zp * sum w)``: the bracket does not depend on x.

    Parameters
    ----------
    quantized_bias : torch.Tensor
        int32 (O,).
    quantized_weight : torch.Tensor
        int8 (O, ...).
    input_zero_point : int
        The code of 0.0 in the input.
    """
    sums = quantized_weight.long().flatten(1).sum(1)
    return _int32(quantized_bias.long() - input_zero_point * sums, "the shifted bias")


def shift_quantized_conv2d_bias(
    quantized_bias: torch.Tensor, quantized_weight: torch.Tensor, input_zero_point: int
) -> torch.Tensor:
    """Return `shift_quantized_linear_bias` of weights (O, I, KH, KW); padding must then be the zero point."""
    return shift_quantized_linear_bias(quantized_bias, quantized_weight, input_zero_point)


def quantized_linear(
    input: torch.Tensor,  # noqa: A002 (the course's name)
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    feature_bitwidth: int,
    weight_bitwidth: int,
    input_zero_point: int,
    output_zero_point: int,
    input_scale: float,
    weight_scale: Scale,
    output_scale: float,
) -> torch.Tensor:
    """Return the codes int8 (N, O) of a linear layer.

    Parameters
    ----------
    input : torch.Tensor
        int8 (N, I).
    weight : torch.Tensor
        int8 (O, I), zero point 0.
    bias : torch.Tensor or None
        int32 (O,) from `shift_quantized_linear_bias`; None stands for a layer without a bias.
    feature_bitwidth, weight_bitwidth : int
        Widths of the output's and the weights' codes.
    input_zero_point, output_zero_point : int
        ``input_zero_point`` is in the bias already; a layer without a bias gets it here.
    input_scale, weight_scale, output_scale : float; ``weight_scale`` may be a tensor of O scales
        They are rounded to float32, as a graph stores them.

    Raises
    ------
    UsageError
        If a type, a shape or a width does not fit.

    Notes
    -----
    One rounding, half up, as FULLY_CONNECTED has it.
    """
    bias = _checked_bias(input, weight, bias, weight_bitwidth, input_zero_point)
    if input.ndim != 2 or weight.ndim != 2 or input.shape[1] != weight.shape[1]:
        raise UsageError(
            f"an input (N, I) and a weight (O, I) are needed, got {tuple(input.shape)}, {tuple(weight.shape)}"
        )
    acc = _int32(F.linear(input.long(), weight.long()) + bias.long(), "a sum of products").numpy()
    multiplier, exponent = _multipliers(weight, input_scale, weight_scale, output_scale)
    return _narrow(requant_single(acc, multiplier, exponent), output_zero_point, feature_bitwidth)


def quantized_conv2d(
    input: torch.Tensor,  # noqa: A002 (the course's name)
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    feature_bitwidth: int,
    weight_bitwidth: int,
    input_zero_point: int,
    output_zero_point: int,
    input_scale: float,
    weight_scale: Scale,
    output_scale: float,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Return the codes int8 (N, O, OH, OW) of a convolution.

    Parameters
    ----------
    input : torch.Tensor
        int8 (N, I, H, W).
    weight : torch.Tensor
        int8 (O, I / groups, KH, KW), zero point 0.
    bias : torch.Tensor or None
        int32 (O,) from `shift_quantized_conv2d_bias`; None stands for a layer without a bias.
    feature_bitwidth, weight_bitwidth, input_zero_point, ..., output_scale
        As for `quantized_linear`.
    stride, dilation, groups
        As for ``torch.nn.Conv2d``.
    padding : int, (height, width), or (left, right, top, bottom) as for ``torch.nn.functional.pad``
        Filled with the input's zero point, the code of 0.0.

    Raises
    ------
    UsageError
        If a type, a shape or a width does not fit.

    Notes
    -----
    Two roundings, as CONV_2D and DEPTHWISE_CONV_2D have them, see `ir.fixed_point.requant_double`.
    """
    bias = _checked_bias(input, weight, bias, weight_bitwidth, input_zero_point)
    if input.ndim != 4 or weight.ndim != 4:
        raise UsageError(
            f"an input (N, I, H, W) and a weight (O, I / groups, KH, KW) are needed, got "
            f"{tuple(input.shape)}, {tuple(weight.shape)}"
        )
    x = F.pad(input.long(), _frame(padding), value=int(input_zero_point))
    try:
        products = F.conv2d(x, weight.long(), None, _pair(stride), 0, _pair(dilation), groups)
    except RuntimeError as error:  # channels, groups or sizes that do not fit, told by PyTorch
        raise UsageError(f"no such convolution: {str(error).splitlines()[0]}") from None
    acc = _int32(products + bias.long().reshape(-1, 1, 1), "a sum of products")
    multiplier, exponent = _multipliers(weight, input_scale, weight_scale, output_scale)
    scaled = requant_double(acc.numpy(), multiplier.reshape(-1, 1, 1), exponent.reshape(-1, 1, 1))
    return _narrow(scaled, output_zero_point, feature_bitwidth)


def _real(tensor: torch.Tensor) -> np.ndarray:
    """Return finite real values as an array, at least one."""
    require_tensor(tensor, "what is quantized")
    if not tensor.is_floating_point() or tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
        raise UsageError(
            f"a tensor of finite real values is needed, got {tensor.dtype} of shape {tuple(tensor.shape)}; "
            "check it for NaN and infinity"
        )
    return tensor.detach().cpu().numpy()


def _scales(scale: Scale, channels: int) -> np.ndarray:
    """Return one or several float32 scales as float64 (channels,)."""
    values = np.asarray(torch.as_tensor(scale).detach().cpu(), np.float32).astype(np.float64).reshape(-1)
    if values.size not in (1, channels) or not (np.isfinite(values) & (values > 0)).all():
        raise UsageError(
            f"{channels} output channels need {channels} positive weight scales or one, got {values.size}"
        )
    return np.broadcast_to(values, (channels,))


def _input_scale(scale: float) -> float:
    value = float(np.float32(float(scale)))
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"the scale of an input or output must be positive and finite, got {scale}")
    return value


def _multipliers(
    weight: torch.Tensor, input_scale: float, weight_scale: Scale, output_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return multiplier and exponent of ``s_x * s_w / s_y``, int32 (O,) each."""
    scales = _scales(weight_scale, len(weight))
    return quantize_multipliers(
        effective_scale(_input_scale(input_scale), scales, _input_scale(output_scale))
    )


def _check_codes(x: torch.Tensor, weight: torch.Tensor, weight_bitwidth: int) -> None:
    for name, codes in (("input", x), ("weight", weight)):
        require_tensor(codes, f"the {name}")
        if codes.dtype != torch.int8:
            raise UsageError(f"the {name} must be int8 codes, got {codes.dtype}; use linear_quantize first")
    q_min, q_max = get_quantized_range(weight_bitwidth)
    if weight.numel() and not (q_min <= int(weight.min()) and int(weight.max()) <= q_max):
        raise UsageError(f"the weight holds codes outside [{q_min}, {q_max}] ({weight_bitwidth} bits)")


def _checked_bias(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, weight_bitwidth: int, zero_point: int
) -> torch.Tensor:
    """Check the codes of a layer; return its bias int32 (O,), shifted for the input's zero point."""
    _check_codes(x, weight, weight_bitwidth)
    if bias is None:
        return shift_quantized_linear_bias(
            torch.zeros(len(weight), dtype=torch.int32), weight, int(zero_point)
        )
    require_tensor(bias, "the bias")
    if bias.dtype != torch.int32 or bias.shape != weight.shape[:1]:
        raise UsageError(
            f"the bias must be int32 codes ({len(weight)},), got {bias.dtype} {tuple(bias.shape)}; "
            "use linear_quantize_bias_per_output_channel first"
        )
    return bias


def _int32(values: torch.Tensor, what: str) -> torch.Tensor:
    """Return int64 values as int32; raise where the int32 accumulator of a microcontroller would overflow."""
    if values.numel() and (int(values.min()) < -(2**31) or int(values.max()) >= 2**31):
        raise UsageError(f"{what} leaves int32; the fan-in or the bias is too large for an int8 engine")
    return values.to(torch.int32)


def _narrow(scaled: np.ndarray, zero_point: int, bits: int) -> torch.Tensor:
    """Add the output's zero point, clamp, and only then narrow to int8."""
    if bits > 8:
        raise UsageError(f"codes of {bits} bits do not fit int8; choose feature_bitwidth 2 to 8")
    return torch.from_numpy(np.clip(scaled + int(zero_point), *get_quantized_range(bits)).astype(np.int8))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise UsageError(f"stride, padding and dilation are numbers, or (height, width); got {value!r}")
    return pair[0], pair[1]


def _frame(padding: int | Sequence[int]) -> list[int]:
    """Return padding as (left, right, top, bottom)."""
    if isinstance(padding, int | str) or len(padding) == 2:
        height, width = _pair(padding)
        return [width, width, height, height]
    if len(padding) != 4:
        raise UsageError(f"padding is a number, (height, width) or (left, right, top, bottom); got {padding}")
    return list(padding)
