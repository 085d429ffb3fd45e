"""Lab 2, quantization: the questions, their visible inputs, and how each runs a student's function."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import lab02_integer_judges as integers
from . import lab02_integers as layers
from . import lab02_judges as judges
from .lab02_integers import array_of, asked, off_ties, tensor_of
from .protocol import Arrays, Lab, Namespace, Question, numeric

Rng = np.random.Generator


# q1: k_means_quantize(fp32_tensor, bitwidth, codebook), update_codebook(fp32_tensor, codebook)


def clusters_case(rng: Rng, tensor: np.ndarray, bitwidth: int) -> Arrays:
    """Values to cluster, and a codebook for other values of the same shape; one of its labels is unused."""
    tensor = np.asarray(tensor, np.float32)
    k = 2**bitwidth
    used = rng.permutation(k)[: k - 1]
    return {
        "tensor": tensor,
        "bitwidth": np.array(bitwidth),
        "other": rng.normal(size=tensor.shape).astype(np.float32),
        "given_labels": rng.choice(used, size=tensor.size).astype(np.int64),
        "given_centroids": np.sort(rng.normal(size=k)).astype(np.float32),
    }


def _q1_visible_small(rng: Rng) -> Arrays:
    return clusters_case(rng, np.array([0.0, 0.25, 1.0, 0.75]), 1)


def _q1_visible_gap(rng: Rng) -> Arrays:
    """Values at both ends: the two centroids in the middle find none."""
    return clusters_case(rng, np.concatenate([rng.normal(-9, 0.1, 6), rng.normal(9, 0.1, 6)]), 2)


def _q1_visible(rng: Rng) -> Arrays:
    return clusters_case(rng, rng.normal(size=(8, 3, 3, 3)), 3)


def _q1_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    codebook_type = namespace["Codebook"]
    quantized = torch.from_numpy(arrays["tensor"].copy())
    found = asked(namespace["k_means_quantize"](quantized, int(arrays["bitwidth"])))
    given = codebook_type(tensor_of(arrays["given_centroids"]), tensor_of(arrays["given_labels"]))
    other = tensor_of(arrays["other"])
    namespace["k_means_quantize"](other, int(arrays["bitwidth"]), given)
    moved = tensor_of(arrays["other"])
    book = codebook_type(tensor_of(arrays["given_centroids"]), tensor_of(arrays["given_labels"]))
    namespace["update_codebook"](moved, book)
    return {
        "centroids": array_of(found.centroids),
        "labels": array_of(found.labels),
        "quantized": array_of(quantized),
        "given": array_of(other),
        "updated": array_of(book.centroids),
        "kept_labels": array_of(book.labels),
        "other": array_of(moved),
    }


# q2: get_quantized_range(bitwidth), linear_quantize(fp_tensor, bitwidth, scale, zero_point, dtype)

_INTEGERS = ("int8", "int16", "int32")


def codes_case(tensor: np.ndarray, bitwidth: int, scale: Any, zero_point: Any, dtype: str = "int8") -> Arrays:
    """Real values, an affine map, and the integer type of the codes."""
    return {
        "fp_tensor": np.asarray(tensor, np.float32),
        "bitwidth": np.array(bitwidth),
        "scale": np.asarray(scale, np.float32),
        "zero_point": np.asarray(zero_point, np.int64),
        "dtype": np.array(_INTEGERS.index(dtype)),
    }


def _q2_visible_small(rng: Rng) -> Arrays:  # noqa: ARG001
    return codes_case(np.array([-1.0, 0.0, 0.4, 3.2]), 4, 0.5, -3)


def _q2_visible_saturated(rng: Rng) -> Arrays:  # noqa: ARG001
    return codes_case(np.array([-70.0, -64.1, 0.0, 63.4, 100.0]), 8, 0.5, 10)


def _q2_visible(rng: Rng) -> Arrays:
    scale = rng.uniform(0.05, 0.2, (4, 1, 1))
    return codes_case(off_ties(rng, scale, -9, 9, (4, 3, 3)), 4, scale, 2)


def _q2_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    bits, tensor = int(arrays["bitwidth"]), torch.from_numpy(arrays["fp_tensor"].copy())
    scale, zero_point = tensor_of(arrays["scale"]), tensor_of(arrays["zero_point"])
    dtype = getattr(torch, _INTEGERS[int(arrays["dtype"])])
    if dtype is torch.int8:
        codes = asked(namespace["linear_quantize"](tensor, bits, scale, zero_point))
    else:
        codes = asked(namespace["linear_quantize"](tensor, bits, scale, zero_point, dtype))
    return {
        "range": array_of(asked(namespace["get_quantized_range"](bits))),
        "codes": array_of(codes),
        "is_dtype": np.array(codes.dtype == dtype),
        "fp_tensor": array_of(tensor),
    }


# q3: get_quantization_scale_and_zero_point(fp_tensor, bitwidth)


def range_case(tensor: np.ndarray, bitwidth: int) -> Arrays:
    """Values whose range is to be covered."""
    return {"fp_tensor": np.asarray(tensor, np.float32), "bitwidth": np.array(bitwidth)}


def _q3_visible_small(rng: Rng) -> Arrays:  # noqa: ARG001
    return range_case(np.array([-1.0, 0.5, 3.0]), 8)


def _q3_visible_positive(rng: Rng) -> Arrays:
    return range_case(rng.uniform(2, 6, (3, 4)), 4)


def _q3_visible_zeros(rng: Rng) -> Arrays:  # noqa: ARG001
    return range_case(np.zeros(3), 8)


def _q3_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    tensor = torch.from_numpy(arrays["fp_tensor"].copy())
    function = namespace["get_quantization_scale_and_zero_point"]
    scale, zero_point = asked(function(tensor, int(arrays["bitwidth"])))
    return {
        "scale": np.asarray(float(scale)),
        "zero_point": np.asarray(float(zero_point)),
        "fp_tensor": array_of(tensor),
    }


# q4: linear_quantize_weight_per_channel(tensor, bitwidth),
#     linear_quantize_bias_per_output_channel(bias, weight_scale, input_scale)


def channels_case(rng: Rng, weight: np.ndarray, bitwidth: int, *, one_scale: bool = False) -> Arrays:
    """Weights (O, ...), a bias (O,), and the scales of the bias: one for each channel, or one for all."""
    weight = np.asarray(weight, np.float32)
    shape = () if one_scale else (len(weight), *[1] * (weight.ndim - 1))
    return {
        "weight": weight,
        "bitwidth": np.array(bitwidth),
        "bias": rng.normal(size=len(weight)).astype(np.float32),
        "scale_of_weight": rng.uniform(0.001, 0.02, shape).astype(np.float32),
        "input_scale": np.array(rng.uniform(0.01, 0.1), np.float32),
    }


def _q4_visible_small(rng: Rng) -> Arrays:
    return channels_case(rng, np.array([[0.5, -1.0], [0.25, 0.1]]), 4)


def _q4_visible(rng: Rng) -> Arrays:
    return channels_case(
        rng, rng.normal(size=(4, 3, 3, 3)) * 2.0 ** rng.permutation(4)[:, None, None, None], 8
    )


def _q4_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    weight, bias = tensor_of(arrays["weight"]), tensor_of(arrays["bias"])
    per_channel = namespace["linear_quantize_weight_per_channel"]
    codes, scale, zero_point = asked(per_channel(weight, int(arrays["bitwidth"])))
    of_bias = namespace["linear_quantize_bias_per_output_channel"]
    given = tensor_of(arrays["scale_of_weight"]), float(arrays["input_scale"])
    bias_codes, bias_scale, bias_zero_point = asked(of_bias(bias, *given))
    return {
        "weight_codes": array_of(codes),
        "weight_scale": array_of(scale),
        "weight_zero_point": array_of(zero_point),
        "bias_codes": array_of(bias_codes),
        "bias_scale": array_of(bias_scale),
        "bias_zero_point": array_of(bias_zero_point),
        "weight": array_of(weight),
        "bias": array_of(bias),
    }


_FIXED = ("quantize_multipliers", "requant_single", "requant_double")

LAB = Lab(
    id="lab02",
    title="Quantization",
    minutes=120,
    questions=(
        Question(
            "q1", "k-means codebook", 14, ("k_means_quantize", "update_codebook"),
            inputs=(_q1_visible_small, _q1_visible_gap, _q1_visible), drive=_q1_drive, judge=judges.q1,
        ),
        Question(
            "q2", "from real values to codes", 10, ("get_quantized_range", "linear_quantize"),
            inputs=(_q2_visible_small, _q2_visible_saturated, _q2_visible),
            drive=_q2_drive, judge=judges.q2,
        ),
        Question(
            "q3", "scale and zero point", 8, ("get_quantization_scale_and_zero_point",),
            ("get_quantized_range",),
            inputs=(_q3_visible_small, _q3_visible_positive, _q3_visible_zeros),
            drive=_q3_drive, judge=judges.q3,
        ),
        Question(
            "q4", "a scale for each channel", 12,
            ("linear_quantize_weight_per_channel", "linear_quantize_bias_per_output_channel"),
            ("get_quantized_range", "linear_quantize"),
            inputs=(_q4_visible_small, _q4_visible), drive=_q4_drive, judge=judges.q4,
        ),
        Question(
            "q5", "multiplier and shift", 12,
            ("quantize_multiplier", "requant_single", "requant_double"),
            inputs=(layers.q5_visible_small, layers.q5_visible_edge, layers.q5_visible),
            drive=layers.q5_drive, judge=integers.q5,
        ),
        Question(
            "q6", "a linear layer in integers", 10, ("shift_quantized_linear_bias", "quantized_linear"),
            ("get_quantized_range", "quantize_multipliers", "requant_single"),
            inputs=(layers.q6_visible_small, layers.q6_visible, layers.q6_visible_ties),
            drive=layers.q6_drive, judge=integers.q6,
        ),
        Question(
            "q7", "a convolution in integers", 12, ("shift_quantized_conv2d_bias", "quantized_conv2d"),
            ("get_quantized_range", "quantize_multipliers", "requant_double"),
            inputs=(layers.q7_visible_small, layers.q7_visible, layers.q7_visible_ties),
            drive=layers.q7_drive, judge=integers.q7,
        ),
        Question(
            "q8", "a gradient through rounding", 8, ("fake_quantize",),
            inputs=(layers.q8_visible_small, layers.q8_visible), drive=layers.q8_drive, judge=integers.q8,
        ),
        numeric(
            "n1", "bytes of the codebooks", 4, name="codebook_bytes",
            truth=integers.truth_n1, unit="bytes",
            look_at="for each weight tensor: 4 bits a label, up to whole bytes, and 16 centroids of 4 bytes",
        ),
        numeric(
            "n2", "codes that the second rounding moves", 4, name="moved_codes",
            truth=integers.truth_n2, uses=("quantize_multiplier", "requant_single", "requant_double"),
            unit="codes", look_at="both roundings of torch.arange(-2**15, 2**15) at m = 0.0123, then count",
        ),
        Question("w1", "which bits to ship", 6, kind="written"),
    ),
    reference={
        "k_means_quantize": "tinyml_edu.quantization.kmeans:k_means_quantize",
        "update_codebook": "tinyml_edu.quantization.kmeans:update_codebook",
        "get_quantized_range": "tinyml_edu.quantization.affine:get_quantized_range",
        "quantize_multiplier": "tinyml_edu.ir.fixed_point:quantize_multiplier",
        "fake_quantize": "tinyml_edu.quantization.qat:fake_quantize",
        **{name: f"tinyml_edu.checks.lab02_reference:{name}" for name in _FIXED},
        **{
            name: f"tinyml_edu.quantization.linear:{name}"
            for name in (
                "linear_quantize",
                "get_quantization_scale_and_zero_point",
                "linear_quantize_weight_per_channel",
                "linear_quantize_bias_per_output_channel",
                "shift_quantized_linear_bias",
                "quantized_linear",
                "shift_quantized_conv2d_bias",
                "quantized_conv2d",
            )
        },
    },
)  # fmt: skip
