"""Each integer kernel once more, as loops over Python integers: the definition, beside the fast version."""

from __future__ import annotations

from itertools import product

import numpy as np

from tinyml_edu.ir.fixed_point import requant_double, requant_single


def scale(acc: int, multiplier: int, exponent: int, requant: str) -> int:
    function = requant_single if requant == "fast" else requant_double
    return int(function(acc, int(multiplier), int(exponent)))


def clamp(value: int, params) -> int:
    return min(max(value, params.y_min), params.y_max)


def inputs_under(x, n, oy, ox, kernel, attrs):
    """Yield (ky, kx, pixel) for the taps of output (oy, ox) that lie inside the image."""
    dilation = getattr(attrs, "dilation", (1, 1))
    for ky, kx in product(range(kernel[0]), range(kernel[1])):
        iy = oy * attrs.stride[0] - attrs.padding[0] + ky * dilation[0]
        ix = ox * attrs.stride[1] - attrs.padding[1] + kx * dilation[1]
        if 0 <= iy < x.shape[1] and 0 <= ix < x.shape[2]:
            yield ky, kx, x[n, iy, ix]


def conv2d(x, w, bias=None, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for n, oy, ox, o in np.ndindex(out_shape):
        acc = 0 if bias is None else int(bias[o])
        for ky, kx, pixel in inputs_under(x, n, oy, ox, w.shape[1:3], attrs):
            acc += sum((int(p) - params.x_zp) * int(c) for p, c in zip(pixel, w[o, ky, kx], strict=True))
        scaled = scale(acc, params.multiplier[o], params.exponent[o], requant)
        y[n, oy, ox, o] = clamp(scaled + params.y_zp, params)
    return y


def depthwise_conv2d(x, w, bias=None, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    multiplier = w.shape[3] // x.shape[3]
    for n, oy, ox, o in np.ndindex(out_shape):
        acc = 0 if bias is None else int(bias[o])
        for ky, kx, pixel in inputs_under(x, n, oy, ox, w.shape[1:3], attrs):
            acc += (int(pixel[o // multiplier]) - params.x_zp) * int(w[0, ky, kx, o])
        scaled = scale(acc, params.multiplier[o], params.exponent[o], requant)
        y[n, oy, ox, o] = clamp(scaled + params.y_zp, params)
    return y


def fully_connected(x, w, bias=None, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for n, o in np.ndindex(out_shape):
        acc = 0 if bias is None else int(bias[o])
        acc += sum((int(p) - params.x_zp) * int(c) for p, c in zip(x[n], w[o], strict=True))
        scaled = scale(acc, params.multiplier[o], params.exponent[o], "fast")
        y[n, o] = clamp(scaled + params.y_zp, params)
    return y


def operand(x, i):
    """Return the element of ``x`` at the output's index ``i``; an axis of length 1 repeats."""
    return int(x[tuple(n if size > 1 else 0 for n, size in zip(i, x.shape, strict=True))])


def add(x1, x2, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for i in np.ndindex(out_shape):
        s1 = scale((operand(x1, i) - params.x1_zp) << 20, params.m1, params.e1, requant)
        s2 = scale((operand(x2, i) - params.x2_zp) << 20, params.m2, params.e2, requant)
        y[i] = clamp(scale(s1 + s2, params.mo, params.eo, requant) + params.y_zp, params)
    return y


def sub(x1, x2, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for i in np.ndindex(out_shape):
        s1 = scale((operand(x1, i) - params.x1_zp) << 20, params.m1, params.e1, requant)
        s2 = scale((operand(x2, i) - params.x2_zp) << 20, params.m2, params.e2, requant)
        y[i] = clamp(scale(s1 - s2, params.mo, params.eo, requant) + params.y_zp, params)
    return y


def mul(x1, x2, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for i in np.ndindex(out_shape):
        product = (operand(x1, i) - params.x1_zp) * (operand(x2, i) - params.x2_zp)
        y[i] = clamp(scale(product, params.multiplier, params.exponent, requant) + params.y_zp, params)
    return y


def concatenation(*xs, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for i in np.ndindex(out_shape):
        at, k = i[attrs.axis], 0
        while at >= xs[k].shape[attrs.axis]:
            at, k = at - xs[k].shape[attrs.axis], k + 1
        y[i] = xs[k][(*i[: attrs.axis], at, *i[attrs.axis + 1 :])]
    return y


def lookup(x, *, attrs, params, out_shape, requant="exact"):
    return np.array([params[int(code) + 128] for code in x.flat], np.int8).reshape(out_shape)


def resize_nearest(x, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for n, oy, ox, c in np.ndindex(out_shape):
        y[n, oy, ox, c] = x[n, params[0][oy], params[1][ox], c]
    return y


def average_pool2d(x, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for n, oy, ox, c in np.ndindex(out_shape):
        values = [int(pixel[c]) for _, _, pixel in inputs_under(x, n, oy, ox, attrs.kernel, attrs)]
        total, count = sum(values), len(values)
        magnitude = (abs(total) + count // 2) // count
        y[n, oy, ox, c] = clamp(magnitude if total > 0 else -magnitude, params)
    return y


def max_pool2d(x, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for n, oy, ox, c in np.ndindex(out_shape):
        best = max(int(pixel[c]) for _, _, pixel in inputs_under(x, n, oy, ox, attrs.kernel, attrs))
        y[n, oy, ox, c] = clamp(best, params)
    return y


def mean(x, *, attrs, params, out_shape, requant="exact"):
    totals: dict[tuple[int, ...], int] = {}
    for i in np.ndindex(x.shape):
        kept = tuple(n for axis, n in enumerate(i) if axis not in attrs.axes)
        totals[kept] = totals.get(kept, 0) + int(x[i])
    y = [
        clamp(
            scale(total - params.count * params.x_zp, params.multiplier, params.exponent, requant)
            + params.y_zp,
            params,
        )
        for _, total in sorted(totals.items())
    ]
    return np.array(y, np.int8).reshape(out_shape)


def pad(x, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for i in np.ndindex(out_shape):
        source = tuple(n - before for n, (before, _) in zip(i, attrs.padding, strict=True))
        inside = all(0 <= n < size for n, size in zip(source, x.shape, strict=True))
        y[i] = x[source] if inside else params
    return y


def reshape(x, *, attrs, params, out_shape, requant="exact"):
    return np.array(list(x.flat), np.int8).reshape(out_shape)


def softmax(x, *, attrs, params, out_shape, requant="exact"):
    y = np.empty(out_shape, np.int8)
    for row in np.ndindex(out_shape[:-1]):
        exps = [int(params[int(x[row].max()) - int(v)]) for v in x[row]]
        total = sum(exps)
        y[row] = [min((512 * e + total) // (2 * total) - 128, 127) for e in exps]
    return y


KERNELS = {
    "CONV_2D": conv2d,
    "DEPTHWISE_CONV_2D": depthwise_conv2d,
    "FULLY_CONNECTED": fully_connected,
    "ADD": add,
    "AVERAGE_POOL_2D": average_pool2d,
    "MAX_POOL_2D": max_pool2d,
    "MEAN": mean,
    "PAD": pad,
    "RESHAPE": reshape,
    "SOFTMAX": softmax,
    "SUB": sub,
    "MUL": mul,
    "CONCATENATION": concatenation,
    "LOGISTIC": lookup,
    "HARD_SWISH": lookup,
    "RELU": lookup,
    "RELU6": lookup,
    "RELU_N1_TO_1": lookup,
    "LEAKY_RELU": lookup,
    "TANH": lookup,
    "QUANTIZE": lookup,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
}
