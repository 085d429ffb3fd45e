"""Lab 2: visible inputs of the questions that compute in codes (5 to 8), and how each runs an answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import lab02_integer_judges as integers
from .protocol import Arrays, Namespace

Rng = np.random.Generator


def array_of(value: Any) -> np.ndarray:
    """Return a tensor or a number as an array of its own; None becomes NaN."""
    if value is None:
        return np.array(np.nan)
    return value.detach().numpy().copy() if hasattr(value, "detach") else np.array(value)


def asked(value: Any) -> Any:
    """Return a result that the driver goes on with; None says that nothing was written yet."""
    if value is None:
        raise NotImplementedError("the function returns None; write the answer cell first")
    return value


def tensor_of(value: np.ndarray) -> Any:
    """Return an array as a tensor of its own, a single number as a Python number."""
    import torch

    return value.item() if value.ndim == 0 else torch.from_numpy(value.copy())


def off_ties(rng: Rng, scale: Any, low: int, high: int, shape: Any) -> np.ndarray:
    """Return values ``scale * (k + f)`` with ``k`` in ``[low, high]`` and ``f`` within 0.4 of 0."""
    k = rng.integers(low, high + 1, shape)
    return np.asarray(scale, np.float32) * (k + rng.uniform(-0.4, 0.4, shape))


# q5: quantize_multiplier(m), requant_single(acc, multiplier, exponent), requant_double(...)


def factors_case(rng: Rng, m: np.ndarray, per_factor: int = 40, limit: int = 2**27) -> Arrays:
    """Real factors (n,), and sums (n, per_factor) to scale: near 0, where ties are dense, and large ones."""
    small = rng.integers(-300, 300, (len(m), per_factor // 2))
    large = rng.integers(-limit, limit, (len(m), per_factor - per_factor // 2))
    return {"m": np.asarray(m, np.float64), "acc": np.concatenate([small, large], axis=1).astype(np.int64)}


def q5_visible_small(rng: Rng) -> Arrays:  # noqa: ARG001
    return {"m": np.array([0.25]), "acc": np.array([[5, -5, 6, -6]])}


def q5_visible_edge(rng: Rng) -> Arrays:
    return factors_case(rng, np.array([1 - 2.0**-40]), 4)


def q5_visible(rng: Rng) -> Arrays:
    return factors_case(rng, np.array([0.75, 0.0123, 2.0**-5, 1.6]), 20)


def q5_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    found = [asked(namespace["quantize_multiplier"](m)) for m in arrays["m"].tolist()]
    # The roundings get the right numbers, so that a wrong multiplier is one mistake and not three.
    right = torch.tensor([integers.multiplier_of(m) for m in arrays["m"].tolist()])
    acc, (multiplier, exponent) = torch.from_numpy(arrays["acc"].copy()), right.T[:, :, None]
    return {
        "multiplier": np.array([int(pair[0]) for pair in found]),
        "exponent": np.array([int(pair[1]) for pair in found]),
        "single": array_of(namespace["requant_single"](acc, multiplier, exponent)),
        "double": array_of(namespace["requant_double"](acc, multiplier, exponent)),
        "acc": array_of(acc),
    }


# q6, q7: a layer in codes


def layer_case(
    rng: Rng,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    bits: int = 8,
    weight_bits: int = 8,
    ties: bool = False,
    one_scale: bool = False,
    zero_point: int | None = None,
    spread: float = 40.0,
) -> Arrays:
    """Codes and scales of a layer.

    Parameters
    ----------
    x, weight : tuple of int
        Shapes of the input's and the weights' codes.
    bits, weight_bits : int
        Widths of the output's and the weights' codes.
    ties : bool
        Effective scales that are powers of two, so that many sums lie halfway between two codes.
    one_scale : bool
        One weight scale for all output channels.
    zero_point : int, optional
        Of the input; drawn by default.
    spread : float
        Standard deviation of the output in codes of 8 bits; above 60 many of them saturate.
    """
    limit = 2 ** (weight_bits - 1) - 1
    w = rng.integers(-limit, limit + 1, weight).astype(np.int8)
    input_zp = int(rng.integers(-100, 100)) if zero_point is None else zero_point
    fan_in = int(np.prod(weight[1:]))
    sigma = 74.0 * limit / 1.7 * fan_in**0.5  # of a sum of products of uniform codes
    scales = np.ones(1 if one_scale else len(w)) if ties else rng.uniform(0.5, 2, 1 if one_scale else len(w))
    m = spread * 2.0 ** (bits - 8) / sigma
    m = 2.0 ** np.rint(np.log2(m)) if ties else m
    s_x, s_y = (2.0**-4, 2.0**-3) if ties else rng.uniform(0.02, 0.2, 2)
    bias = rng.integers(-int(sigma), int(sigma) + 1, len(w)).astype(np.int32)
    shape = () if one_scale else (len(w), *[1] * (len(weight) - 1))
    return {
        "input": rng.integers(-128, 128, x).astype(np.int8),
        "weight": w,
        "bias": bias,
        "shifted": integers.shifted_bias(bias, w, input_zp),
        "feature_bitwidth": np.array(bits),
        "weight_bitwidth": np.array(weight_bits),
        "input_zero_point": np.array(input_zp),
        "output_zero_point": np.array(int(rng.integers(1, 2 ** (bits - 2))) * int(rng.choice([-1, 1]))),
        "input_scale": np.array(s_x, np.float32),
        "weight_scale": (m * scales * s_y / s_x).reshape(shape).astype(np.float32),
        "output_scale": np.array(s_y, np.float32),
    }


def conv_case(
    rng: Rng,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    **kinds: Any,
) -> Arrays:
    """Codes and scales of a convolution; ``padding`` is left, right, top, bottom."""
    return {
        **layer_case(rng, x, weight, **kinds),
        "padding": np.array(padding),
        "stride": np.array(stride),
        "dilation": np.array(dilation),
        "groups": np.array(groups),
    }


_LAYER = (
    "feature_bitwidth", "weight_bitwidth", "input_zero_point", "output_zero_point",
    "input_scale", "weight_scale", "output_scale",
)  # fmt: skip


def _run_layer(namespace: Namespace, arrays: Arrays, name: str, shift: str, rest: list[Any]) -> Arrays:
    tensors = [tensor_of(arrays[key]) for key in ("input", "weight", "shifted")]
    moved = namespace[shift](
        tensor_of(arrays["bias"]), tensor_of(arrays["weight"]), int(arrays["input_zero_point"])
    )
    codes = namespace[name](*tensors, *(tensor_of(arrays[key]) for key in _LAYER), *rest)
    after = {f"after/{key}": array_of(t) for key, t in zip(("input", "weight", "shifted"), tensors)}
    return {"shift": array_of(asked(moved)), "codes": array_of(asked(codes)), **after}


def q6_visible_small(rng: Rng) -> Arrays:
    return layer_case(rng, (1, 2), (1, 2), one_scale=True, zero_point=3)


def q6_visible(rng: Rng) -> Arrays:
    return layer_case(rng, (5, 8), (4, 8))


def q6_visible_ties(rng: Rng) -> Arrays:
    return layer_case(rng, (16, 4), (6, 4), ties=True, weight_bits=3)


def q6_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    return _run_layer(namespace, arrays, "quantized_linear", "shift_quantized_linear_bias", [])


def q7_visible_small(rng: Rng) -> Arrays:
    return conv_case(rng, (1, 1, 2, 2), (1, 1, 1, 1), padding=(1, 0, 0, 0), zero_point=5)


def q7_visible(rng: Rng) -> Arrays:
    return conv_case(rng, (2, 3, 6, 6), (4, 3, 3, 3))


def q7_visible_ties(rng: Rng) -> Arrays:
    return conv_case(
        rng, (2, 2, 7, 5), (4, 2, 3, 3), stride=2, padding=(0, 1, 1, 0), ties=True, weight_bits=3
    )


def q7_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    rest = [arrays["padding"].tolist(), *(int(arrays[key]) for key in ("dilation", "groups"))]
    rest.insert(0, int(arrays["stride"]))
    return _run_layer(namespace, arrays, "quantized_conv2d", "shift_quantized_conv2d_bias", rest)


# q8: fake_quantize(x, step, low, high)


def fake_case(rng: Rng, shape: tuple[int, ...], step: Any, low: int, high: int) -> Arrays:
    """Values inside and outside of ``[low, high]`` steps, none near a tie or an end, and a gradient."""
    step = np.asarray(step, np.float32)
    return {
        "x": off_ties(rng, step, low - 3, high + 3, shape).astype(np.float32),
        "step": step,
        "low": np.array(low),
        "high": np.array(high),
        "gradient": rng.uniform(0.5, 2, shape).astype(np.float32),
    }


def q8_visible_small(rng: Rng) -> Arrays:  # noqa: ARG001
    return {
        "x": np.array([-9.0, 0.4, 1.2, 3.0], np.float32),
        "step": np.array(0.5, np.float32),
        "low": np.array(-4),
        "high": np.array(3),
        "gradient": np.array([1.0, 2.0, 3.0, 4.0], np.float32),
    }


def q8_visible(rng: Rng) -> Arrays:
    return fake_case(rng, (3, 4, 3, 3), rng.uniform(0.1, 0.9, (3, 1, 1, 1)), -7, 7)


def q8_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    x = torch.from_numpy(arrays["x"].copy()).requires_grad_()
    step = torch.from_numpy(arrays["step"].copy().reshape(arrays["step"].shape))
    y = asked(namespace["fake_quantize"](x, step, int(arrays["low"]), int(arrays["high"])))
    if y.requires_grad:  # a result that is cut off from x has the gradient 0
        y.backward(torch.from_numpy(arrays["gradient"]))
    gradient = torch.zeros_like(x) if x.grad is None else x.grad
    return {"y": array_of(y), "x_gradient": array_of(gradient), "x": array_of(x)}
