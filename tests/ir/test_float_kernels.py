"""The float kernels against torch, N H W C against N C H W."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tinyml_edu.ir import OPS, GraphError, float_kernels
from tinyml_edu.ir import attrs as A

torch.set_num_threads(1)

EPSILON = float(np.finfo(np.float32).eps)


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.numpy().transpose(0, 2, 3, 1)


def assert_close(got, want, terms, size):
    """Two orders of summation of ``terms`` float32 products of size ``size`` differ by 2·terms·eps·size."""
    np.testing.assert_allclose(got, want, rtol=0, atol=2 * terms * EPSILON * size)


def apply(op, attrs, *args):
    spec = OPS[op]
    shape = spec.infer_shape(attrs, *(a.shape for a in args))
    y = spec.float_kernel(*args, attrs=attrs, out_shape=shape)
    assert y.dtype == np.float32
    return y


def torch_activation(y, name):
    return {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[name](y)


def case(seed):
    rng = np.random.default_rng(seed)
    h, w, c = (int(v) for v in rng.integers(6, 12, 3))
    kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, 4, 2)) for _ in range(3))
    padding = tuple(int(v) for v in rng.integers(-1, 3, 4))
    activation = ("none", "relu", "relu6")[seed % 3]
    x = (3 * rng.standard_normal((2, h, w, c))).astype(np.float32)
    return (
        rng,
        x,
        kernel,
        {
            "stride": stride,
            "dilation": dilation,
            "padding": padding,
            "activation": activation,
        },
    )


def torch_pad(x, padding, value=0.0):
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value)


@pytest.mark.parametrize("seed", range(12))
def test_conv2d_equals_torch(seed):
    rng, x, kernel, slide = case(seed)
    w = rng.standard_normal((5, *kernel, x.shape[3])).astype(np.float32)
    bias = [rng.standard_normal(5).astype(np.float32)] if seed % 2 else []
    want = F.conv2d(
        torch_pad(nchw(x), slide["padding"]),
        nchw(w),
        torch.from_numpy(bias[0]) if bias else None,
        slide["stride"],
        dilation=slide["dilation"],
    )
    want = torch_activation(want, slide["activation"])
    got = apply("CONV_2D", A.Conv2D(**slide), x, w, *bias)
    assert_close(got, nhwc(want), w[0].size, np.abs(x).max() * np.abs(w).max())


@pytest.mark.parametrize("seed", range(12))
def test_depthwise_conv2d_equals_torch(seed):
    rng, x, kernel, slide = case(seed)
    channels, multiplier = x.shape[3], 1 + seed % 3
    w = rng.standard_normal((1, *kernel, channels * multiplier)).astype(np.float32)
    bias = [rng.standard_normal(channels * multiplier).astype(np.float32)] if seed % 2 else []
    want = F.conv2d(
        torch_pad(nchw(x), slide["padding"]),
        torch.from_numpy(np.ascontiguousarray(w.transpose(3, 0, 1, 2))),
        torch.from_numpy(bias[0]) if bias else None,
        slide["stride"],
        dilation=slide["dilation"],
        groups=channels,
    )
    want = torch_activation(want, slide["activation"])
    got = apply("DEPTHWISE_CONV_2D", A.DepthwiseConv2D(**slide), x, w, *bias)
    assert_close(got, nhwc(want), w[..., 0].size + 1, np.abs(x).max() * np.abs(w).max())


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_fully_connected_and_add_equal_torch(activation):
    rng = np.random.default_rng(1)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((4, 30), (7, 30), (7,)))
    want = torch_activation(F.linear(*(torch.from_numpy(v) for v in (x, w, b))), activation).numpy()
    assert_close(
        apply("FULLY_CONNECTED", A.FullyConnected(activation), x, w, b), want, 31, np.abs(x).max() * 4
    )
    total = torch_activation(torch.from_numpy(x + x[::-1]), activation).numpy()
    np.testing.assert_array_equal(apply("ADD", A.Add(activation), x, np.ascontiguousarray(x[::-1])), total)


@pytest.mark.parametrize("seed", range(8))
def test_pools_equal_torch(seed):
    rng, x, _, slide = case(seed)
    kernel = (2 + seed % 2, 3)
    pad = int(rng.integers(0, 2))
    attrs = A.Pool2D(kernel, slide["stride"], (pad, pad, pad, pad), slide["activation"])
    options = {"stride": slide["stride"], "padding": pad}
    average = F.avg_pool2d(nchw(x), kernel, count_include_pad=False, **options)
    best = F.max_pool2d(nchw(x), kernel, **options)
    got = apply("AVERAGE_POOL_2D", attrs, x)
    assert_close(got, nhwc(torch_activation(average, attrs.activation)), 9, np.abs(x).max())
    got = apply("MAX_POOL_2D", attrs, x)
    np.testing.assert_array_equal(got, nhwc(torch_activation(best, attrs.activation)))


def test_mean_pad_reshape_softmax_equal_torch():
    _, x, _, _ = case(0)
    t = torch.from_numpy(x)
    for axes, keep in (((1, 2), False), ((3,), True), ((1, 2, 3), False)):
        want = t.mean(dim=axes, keepdim=keep).numpy()
        assert_close(apply("MEAN", A.Mean(axes, keep), x), want, x[0].size, np.abs(x).max() / x[0].size)
    pads = ((0, 0), (1, 2), (0, 3), (2, 0))
    want = F.pad(t, [n for pair in reversed(pads) for n in pair]).numpy()
    np.testing.assert_array_equal(apply("PAD", A.Pad(pads), x), want)
    np.testing.assert_array_equal(apply("RESHAPE", A.Reshape((2, x[0].size)), x), x.reshape(2, -1))
    want = torch.softmax(1.5 * t, dim=-1).numpy()
    assert_close(apply("SOFTMAX", A.Softmax(1.5), x), want, x.shape[3] + 40, 1.0)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_sub_and_mul_equal_torch(activation):
    rng = np.random.default_rng(1)
    x, z, narrow = (
        rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 5, 6), (2, 4, 5, 6), (2, 1, 1, 6))
    )
    a, b, c = (torch.from_numpy(v) for v in (x, z, narrow))
    for op, attrs, other, want in (
        ("SUB", A.Sub(activation), z, a - b),
        ("MUL", A.Mul(activation), z, a * b),
        ("MUL", A.Mul(activation), narrow, a * c),
    ):
        np.testing.assert_array_equal(apply(op, attrs, x, other), torch_activation(want, activation).numpy())


def test_functions_of_one_element_equal_torch():
    x = np.linspace(-100, 100, 4001, dtype=np.float32).reshape(1, -1)
    t = torch.from_numpy(x)
    wanted = {
        "LOGISTIC": torch.sigmoid(t),
        "HARD_SWISH": F.hardswish(t),
        "RELU": F.relu(t),
        "RELU6": F.relu6(t),
        "QUANTIZE": t,
    }
    for op, want in wanted.items():
        got = apply(op, A.Elementwise(), x)
        # At most four roundings in either, each half a unit in the last place; PyTorch makes subnormals 0.
        np.testing.assert_allclose(got, want.numpy(), rtol=4 * EPSILON, atol=np.finfo(np.float32).tiny)


def test_concatenation_and_resizing_equal_torch():
    rng = np.random.default_rng(1)
    x, z = (rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 5, 6), (2, 4, 5, 1)))
    np.testing.assert_array_equal(apply("CONCATENATION", A.Concatenation(3), x, z), np.concatenate([x, z], 3))
    for size in ((8, 5), (12, 10), (7, 3), (2, 9)):
        want = nhwc(F.interpolate(nchw(x), size=size, mode="nearest"))
        np.testing.assert_array_equal(apply("RESIZE_NEAREST_NEIGHBOR", A.ResizeNearest(size), x), want)
        want = nhwc(F.interpolate(nchw(x), size=size, mode="nearest-exact"))
        attrs = A.ResizeNearest(size, half_pixel_centers=True)
        np.testing.assert_array_equal(apply("RESIZE_NEAREST_NEIGHBOR", attrs, x), want)


def test_aligned_corners_meet():
    x = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)
    y = apply("RESIZE_NEAREST_NEIGHBOR", A.ResizeNearest((9, 1), align_corners=True), x)
    assert y.ravel().tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]  # row 1 lies at 0.5, which rounds up


def test_softmax_survives_large_logits():
    y = apply("SOFTMAX", A.Softmax(), np.array([[1000.0, 999.0, -1000.0]], np.float32))
    np.testing.assert_allclose(y[0], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0], atol=4 * EPSILON)


def test_an_unknown_activation_is_refused():
    with pytest.raises(GraphError, match="unknown activation 'gelu'"):
        float_kernels.activate(np.zeros(1, np.float32), "gelu")
