"""Lab 2, quantization: how the answers about codes are judged (questions 1 to 4).

The truth is recomputed in NumPy, in float64, over the inputs; it shares no code with the library's
quantization nor with a student's answer.  `lab02_integer_judges` holds the questions that compute in codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .compare import all_of, close, true
from .protocol import Arrays, Verdict

# A scale is a difference and a quotient of float32 values: three roundings of 6e-8.
SCALE_RTOL = 1e-6
# r / s in float32 is off by two roundings: a code may be the neighbour's where r / s is that near to a tie.
TIE = 1e-3
# A mean of at most 2,000 float32 values of one sign or of mixed ones, over their span: 2,000 roundings of
# 6e-8 would be 1.2e-4 if all fell to one side; their random sum stays below 45 of them.
MEAN_TOL = 1e-5
# Lloyd's steps may end elsewhere after a tie that float32 sees otherwise; no such end was 1 % off.
ERROR_SLACK = 1.05
LLOYD_STEPS = 300


def code_range(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest signed code of ``bits`` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def unchanged(got: np.ndarray, want: np.ndarray, name: str) -> Verdict:
    """Return the verdict on a tensor that a call must leave as it is."""
    return close(got, want, name=f"{name} after the call", look_at="make a new tensor; leave yours as it is")


def rounded(steps: np.ndarray, got: np.ndarray, tie: float | np.ndarray = TIE) -> np.ndarray:
    """Return ``steps`` rounded to whole numbers; next to a tie the neighbour that came back is taken."""
    want = np.rint(steps)
    if np.shape(got) == want.shape:
        near = (np.abs(got - steps) <= 0.5 + tie) & (np.rint(got) == got)
        want = np.where(near, got, want)
    return want


# q1: k_means_quantize(fp32_tensor, bitwidth, codebook), update_codebook(fp32_tensor, codebook)


def lloyd(values: np.ndarray, k: int) -> np.ndarray:
    """Return k centroids: evenly over the range at first, then means; one without values stays."""
    values = np.asarray(values, np.float64).ravel()
    centroids = np.linspace(values.min(), values.max(), k)
    labels = np.full(values.size, -1)
    for _ in range(LLOYD_STEPS):
        before, labels = labels, np.abs(values[:, None] - centroids).argmin(1)
        if np.array_equal(before, labels):
            break
        centroids = label_means(values, labels, centroids)
    return centroids


def label_means(values: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the mean of the values of each label; a centroid without values stays."""
    values = np.asarray(values, np.float64).ravel()
    kept = np.asarray(centroids, np.float64).copy()
    for label in np.unique(labels):
        kept[label] = values[labels == label].mean()
    return kept


def q1(arrays: Arrays, outputs: Arrays) -> Verdict:
    return all_of(_q1_clusters(arrays, outputs), _q1_given(arrays, outputs), _q1_update(arrays, outputs))


def _q1_clusters(arrays: Arrays, outputs: Arrays) -> Verdict:
    tensor, k = arrays["tensor"].astype(np.float64), 2 ** int(arrays["bitwidth"])
    centroids, labels = outputs["centroids"], outputs["labels"].ravel()
    if centroids.shape != (k,):
        return true(False, f"there are {centroids.size} centroids, expected {k}", look_at="2**bitwidth")
    if not np.isfinite(centroids).all():
        return true(
            False,
            f"{int((~np.isfinite(centroids)).sum())} of {k} centroids are NaN",
            look_at="a cluster that has lost all its values has no mean: leave its centroid where it is",
        )
    if labels.shape != (tensor.size,) or labels.min() < 0 or labels.max() >= k:
        return true(False, "labels must be one number from 0 to k - 1 for each value, flattened")
    span = float(np.ptp(tensor)) or 1.0
    distance = np.abs(tensor.ravel()[:, None] - centroids)
    chosen = distance[np.arange(labels.size), labels]
    means = label_means(tensor, labels, centroids)
    error, reference = float((chosen**2).sum()), _squared_error(tensor, lloyd(tensor, k))
    return all_of(
        close(
            outputs["quantized"],
            centroids[labels].reshape(tensor.shape),
            name="fp32_tensor after the call",
            look_at="fp32_tensor.copy_(...): its values become centroids[labels], in place",
        ),
        true(
            bool((chosen <= distance.min(1) + MEAN_TOL * span).all()),
            f"{int((chosen > distance.min(1) + MEAN_TOL * span).sum())} values carry the label of a centroid "
            "that is not the nearest",
            look_at="after the last step labels and centroids must belong together",
        ),
        close(
            centroids,
            means,
            atol=MEAN_TOL * span,
            name="centroids",
            look_at="each centroid is the mean of its values: repeat both steps until no label changes",
        ),
        true(
            error <= ERROR_SLACK * reference + k * (MEAN_TOL * span) ** 2,
            f"the squared error is {error:.4g}, k-means from an even start reaches {reference:.4g}",
            look_at="start with torch.linspace over the range; two centroids must never start equal",
        ),
    )


def _squared_error(tensor: np.ndarray, centroids: np.ndarray) -> float:
    return float((np.abs(tensor.ravel()[:, None] - centroids).min(1) ** 2).sum())


def _q1_given(arrays: Arrays, outputs: Arrays) -> Verdict:
    want = arrays["given_centroids"][arrays["given_labels"]].reshape(arrays["other"].shape)
    return close(
        outputs["given"],
        want,
        name="fp32_tensor with a codebook given",
        look_at="take the labels and centroids of the codebook as they are; no clustering",
    )


def _q1_update(arrays: Arrays, outputs: Arrays) -> Verdict:
    other, labels, before = arrays["other"], arrays["given_labels"], arrays["given_centroids"]
    span = float(np.ptp(other)) or 1.0
    return all_of(
        close(
            outputs["updated"],
            label_means(other, labels, before),
            atol=MEAN_TOL * span,
            name="codebook.centroids after update_codebook",
            mistakes={
                "nothing has moved: write into codebook.centroids, in place": before,
                "a centroid without values stays where it is": np.where(
                    np.isin(np.arange(before.size), labels), label_means(other, labels, before), 0
                ),
            },
            look_at="the mean of the values that carry the label; an empty cluster has none",
        ),
        unchanged(outputs["other"], other, "the tensor of update_codebook"),
        close(outputs["kept_labels"], labels, name="codebook.labels", look_at="labels stay as they are"),
    )


# q2: get_quantized_range(bitwidth), linear_quantize(fp_tensor, bitwidth, scale, zero_point, dtype)


def q2(arrays: Arrays, outputs: Arrays) -> Verdict:
    bits = int(arrays["bitwidth"])
    low, high = code_range(bits)
    r, scale, zp = (np.asarray(arrays[name], np.float64) for name in ("fp_tensor", "scale", "zero_point"))
    steps = np.rint(r / scale)
    limits = close(
        outputs["range"],
        [low, high],
        name=f"get_quantized_range({bits})",
        mistakes={
            "these are unsigned codes; ours have a sign": [0, 2**bits - 1],
            "the smallest code is one further away from 0 than the largest": [-high, high],
        },
        look_at="two's complement: half of the 2**bits codes are negative",
    )
    codes = close(
        outputs["codes"].astype(np.float64),
        np.clip(steps + zp, low, high),
        name="linear_quantize(...)",
        mistakes={
            "values wrap: clamp first, then cast": _wrapped(steps + zp, outputs["codes"].dtype, low, high),
            "the zero point has the wrong sign: q = r / s + zp": np.clip(steps - zp, low, high),
            "round to the nearest; a cast cuts towards zero": np.clip(np.trunc(r / scale) + zp, low, high),
            "round to the nearest, not down": np.clip(np.floor(r / scale) + zp, low, high),
            "the scale divides": np.clip(np.rint(r * scale) + zp, low, high),
            "add the zero point before you clamp": np.clip(steps, low, high) + zp,
        },
        look_at="clamp(round(r / s) + zp), in this order, then the cast to dtype",
    )
    kind = true(
        bool(outputs["is_dtype"]),
        f"the codes are {outputs['codes'].dtype}, not the dtype that was asked for",
        look_at="the argument dtype",
    )
    return all_of(unchanged(outputs["fp_tensor"], arrays["fp_tensor"], "fp_tensor"), limits, codes, kind)


def _wrapped(q: np.ndarray, dtype: np.dtype, low: int, high: int) -> np.ndarray:
    if dtype.kind != "i":
        return np.full(q.shape, np.nan)
    return np.clip(q.astype(np.int64).astype(dtype).astype(np.float64), low, high)


# q3: get_quantization_scale_and_zero_point(fp_tensor, bitwidth)


def affine(low: float, high: float, bits: int) -> tuple[float, float]:
    """Return the scale and the zero point before it is rounded; the range must not be empty."""
    q_min, q_max = code_range(bits)
    scale = (high - low) / (q_max - q_min)
    return scale, q_min - low / scale


def q3(arrays: Arrays, outputs: Arrays) -> Verdict:
    tensor, bits = arrays["fp_tensor"].astype(np.float64), int(arrays["bitwidth"])
    low, high = min(tensor.min(), 0.0), max(tensor.max(), 0.0)
    if low == high:
        hint = "a tensor of zeros has no range: return scale 1.0 and zero point 0"
        return all_of(
            close(outputs["scale"], 1.0, name="the scale of zeros", look_at=hint),
            close(outputs["zero_point"], 0.0, name="the zero point of zeros", look_at=hint),
        )
    scale, exact = affine(low, high, bits)
    q_min, q_max = code_range(bits)
    scales = {
        "widen the range to contain 0 first": (tensor.max() - tensor.min()) / (q_max - q_min),
        "2**bits codes have 2**bits - 1 steps between them": (high - low) / 2**bits,
        "this is the symmetric scale; activations are not symmetric": np.abs(tensor).max() / q_max,
    }
    points = {
        "the sign is wrong: zp = q_min - low / s": np.rint(-exact),
        "q_min is missing: zp = q_min - low / s": np.rint(-low / scale),
        "round the zero point: it is a code": exact,
        "zp = q_min - low / s, a minus": np.rint(q_min + low / scale),
    }
    return all_of(
        close(outputs["scale"], scale, rtol=SCALE_RTOL, name="the scale", mistakes=scales),
        close(
            outputs["zero_point"],
            rounded(np.asarray(exact), outputs["zero_point"]),
            name="the zero point",
            mistakes=points,
            look_at="the code of r = 0: solve low = s (q_min - zp) for zp, then round",
        ),
        unchanged(outputs["fp_tensor"], arrays["fp_tensor"], "fp_tensor"),
    )


# q4: linear_quantize_weight_per_channel(tensor, bitwidth),
#     linear_quantize_bias_per_output_channel(bias, weight_scale, input_scale)


def channel_scales(weight: np.ndarray, bits: int) -> np.ndarray:
    """Return float64 (O,): the largest magnitude of each output channel over q_max; 1 for zeros."""
    largest = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(1)
    return np.where(largest > 0, largest / code_range(bits)[1], 1.0)


def q4(arrays: Arrays, outputs: Arrays) -> Verdict:
    return all_of(_q4_weight(arrays, outputs), _q4_bias(arrays, outputs))


def _q4_weight(arrays: Arrays, outputs: Arrays) -> Verdict:
    weight, bits = arrays["weight"].astype(np.float64), int(arrays["bitwidth"])
    along = (-1, *[1] * (weight.ndim - 1))
    scale = channel_scales(weight, bits).reshape(along)
    q_max = code_range(bits)[1]
    mistakes = {
        "this is one scale for the whole tensor": np.full(scale.shape, np.abs(weight).max() / q_max),
        "a negative weight can be the largest: take magnitudes": weight.reshape(len(weight), -1)
        .max(1)
        .reshape(along)
        / q_max,
        "divide by q_max, so that the largest weight gets the largest code": scale * q_max / (q_max + 1),
    }
    hint = "one scale for each output channel, axis 0, shaped (O, 1, ...) so that it broadcasts"
    zeros = np.flatnonzero(~weight.reshape(len(weight), -1).any(1))
    if zeros.size and not np.array_equal(outputs["weight_scale"].ravel()[zeros], np.ones(zeros.size)):
        hint = "a channel of zeros has no range: give it scale 1.0"
    return all_of(
        close(
            outputs["weight_scale"],
            scale,
            rtol=SCALE_RTOL,
            name="the weight scales",
            mistakes=mistakes,
            look_at=hint,
        ),
        close(
            outputs["weight_codes"].astype(np.float64),
            rounded(weight / scale, outputs["weight_codes"].astype(np.float64)),
            name="the weight codes",
            look_at="linear_quantize with the scales, zero point 0",
        ),
        _zero_point(outputs["weight_zero_point"], "weights"),
        unchanged(outputs["weight"], arrays["weight"], "tensor"),
    )


def _q4_bias(arrays: Arrays, outputs: Arrays) -> Verdict:
    bias, s_x = arrays["bias"].astype(np.float64), float(arrays["input_scale"])
    s_w = np.broadcast_to(arrays["scale_of_weight"].astype(np.float64).ravel(), bias.shape)
    steps = bias / (s_w * s_x)
    got = outputs["bias_codes"].astype(np.float64)
    mistakes: Mapping[str, np.ndarray] = {
        "the step is s_w * s_x; this is s_w alone": np.rint(bias / s_w),
        "the step is s_w * s_x; this is s_x alone": np.rint(bias / s_x),
        "a bias is an int32: int8 is too narrow": np.clip(np.rint(steps), -128, 127),
        "round to the nearest": np.trunc(steps),
    }
    return all_of(
        close(
            got,
            rounded(steps, got, TIE + 4e-7 * np.abs(steps)),
            name="the bias codes",
            mistakes=mistakes,
            look_at="one code for each output channel, in steps of s_w * s_x; flatten the weight scale",
        ),
        true(
            outputs["bias_codes"].dtype == np.int32,
            f"the bias codes are {outputs['bias_codes'].dtype}, expected int32",
        ),
        close(
            outputs["bias_scale"],
            s_w * s_x,
            rtol=SCALE_RTOL,
            name="the bias scale",
            look_at="s_w * s_x, the unit of the sum of products",
        ),
        _zero_point(outputs["bias_zero_point"], "a bias"),
        unchanged(outputs["bias"], arrays["bias"], "bias"),
    )


def _zero_point(got: np.ndarray, what: str) -> Verdict:
    return close(got, 0.0, name="the zero point", look_at=f"{what}: symmetric codes have zero point 0")
