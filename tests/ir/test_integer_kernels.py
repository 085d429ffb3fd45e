"""The NumPy kernels against loops over Python integers, whole images and windows of them."""

from __future__ import annotations

from dataclasses import replace

import naive_kernels
import numpy as np
import pytest
from graph_cases import image, one_op, random_graph

from tinyml_edu import ir
from tinyml_edu.ir import Kind, Quant, Tensor, integer_kernels
from tinyml_edu.ir import attrs as A

SPATIAL = [name for name, spec in ir.OPS.items() if spec.input_region is not None]


def random_inputs(graph, rng, n):
    return {
        name: rng.integers(-128, 128, (n, *graph[name].shape[1:]), dtype=np.int8) for name in graph.inputs
    }


def call(kernel, graph, inputs, n, requant):
    node = graph.nodes[0]
    args = [inputs[name] if name in inputs else graph[name].data for name in node.inputs]
    params = ir.OPS[node.op].params(graph, node)
    out_shape = (n, *graph["y"].shape[1:])
    return kernel(*args, attrs=node.attrs, params=params, out_shape=out_shape, requant=requant)


def test_every_op_has_a_naive_version():
    assert set(naive_kernels.KERNELS) == set(ir.OPS)


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("op", naive_kernels.KERNELS)
def test_kernel_equals_the_loops(op, requant):
    for seed in range(12):
        rng = np.random.default_rng([seed, *op.encode()])
        graph = random_graph(op, rng)
        inputs = random_inputs(graph, rng, 2)
        want = call(naive_kernels.KERNELS[op], graph, inputs, 2, requant)
        got = call(ir.OPS[op].integer_kernel, graph, inputs, 2, requant)
        assert got.dtype == np.int8
        np.testing.assert_array_equal(got, want, err_msg=f"{op} seed {seed}")


@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "MEAN"])
def test_comparing_the_two_roundings_can_fail(op):
    """The control: over the same cases "fast" and "exact" are not the same function."""
    different = 0
    for seed in range(60):
        rng = np.random.default_rng([seed, *op.encode()])
        graph = random_graph(op, rng)
        inputs = random_inputs(graph, rng, 16)
        exact, fast = (call(ir.OPS[op].integer_kernel, graph, inputs, 16, mode) for mode in ("exact", "fast"))
        different += int((exact != fast).sum())
    assert different > 0


def unless_repeated(x, region):
    """Return the region, but the only row or column of an operand that has one."""
    rows = (0, 1) if x.shape[1] == 1 else region[:2]
    return *rows, *((0, 1) if x.shape[2] == 1 else region[2:])


@pytest.mark.parametrize("op", SPATIAL)
def test_a_window_is_the_same_kernel(op):
    """Any rectangle of the output, from only the input rows and columns that it reads."""
    for seed in range(12):
        rng = np.random.default_rng([seed, 7, *op.encode()])
        graph = random_graph(op, rng)
        node = graph.nodes[0]
        inputs = random_inputs(graph, rng, 1)
        whole = ir.run(graph, inputs)
        y0, x0 = (int(rng.integers(n)) for n in whole.shape[1:3])
        y1, x1 = (int(rng.integers(a + 1, n + 1)) for a, n in zip((y0, x0), whole.shape[1:3], strict=True))
        iy0, iy1, ix0, ix1 = ir.input_region(graph, node, (y0, y1, x0, x1))
        region = (y0, y1, x0, x1) if op in ("ADD", "SUB", "MUL") else (iy0, iy1, ix0, ix1)
        args = [
            cut(inputs[name], unless_repeated(inputs[name], region)) if name in inputs else graph[name].data
            for name in node.inputs
        ]
        attrs, params = node.attrs, ir.OPS[op].params(graph, node)
        if op == "PAD":
            (top, _), (left, _) = attrs.padding[1:3]
            rows = max(0, top - y0), max(0, y1 - top - graph["x"].shape[1])
            columns = max(0, left - x0), max(0, x1 - left - graph["x"].shape[2])
            rows, columns = clip_pad(rows, y1 - y0), clip_pad(columns, x1 - x0)
            attrs = A.Pad((attrs.padding[0], rows, columns, attrs.padding[3]))
        elif op == "RESIZE_NEAREST_NEIGHBOR":
            params = params[0][y0:y1] - iy0, params[1][x0:x1] - ix0
        elif hasattr(attrs, "stride"):  # where row y0 of the output starts, seen from row iy0 of the buffer
            top = iy0 - (y0 * attrs.stride[0] - attrs.padding[0])
            left = ix0 - (x0 * attrs.stride[1] - attrs.padding[1])
            attrs = replace(attrs, padding=(top, left, 0, 0))
        part = ir.OPS[op].integer_kernel(
            *args,
            attrs=attrs,
            params=params,
            out_shape=(1, y1 - y0, x1 - x0, whole.shape[3]),
        )
        np.testing.assert_array_equal(part, whole[:, y0:y1, x0:x1], err_msg=f"{op} seed {seed}")


def cut(image, region):
    """Return a region of an image; an axis of length 1 that is repeated stays."""
    y0, y1, x0, x1 = region
    rows = image if image.shape[1] == 1 else image[:, y0:y1]
    return rows if image.shape[2] == 1 else rows[:, :, x0:x1]


def clip_pad(pads, size):
    """A window that lies in the padding alone reads no input: all of its rows are padding."""
    before, after = pads
    return (size, 0) if before >= size else (0, size) if after >= size else pads


def wide_conv(fan_in):
    rng = np.random.default_rng(3)
    x = image(rng, (1, 2, 2, fan_in))
    w = Tensor(
        "w",
        (2, 1, 1, fan_in),
        "int8",
        Kind.CONSTANT,
        np.full((2, 1, 1, fan_in), 127, np.int8),
        Quant.per_tensor(0.01, 0),
    )
    x = replace(x, quant=Quant.per_tensor(0.02, -128))
    return one_op("CONV_2D", A.Conv2D(), x, w, out_quant=Quant.per_tensor(0.02 * 0.01 * 2**16, 0))


@pytest.mark.parametrize(("fan_in", "dtype"), [(518, np.float32), (519, np.float64)])
def test_matrix_products_are_exact_at_the_edge_of_float32(fan_in, dtype):
    """255 * 127 * 518 = 16,775,430 < 2**24 = 16,777,216 < 255 * 127 * 519."""
    graph = wide_conv(fan_in)
    assert integer_kernels._matmul_dtype(graph["w"].data, (1, 2, 3)) is dtype
    rng = np.random.default_rng(4)
    inputs = {"x": rng.integers(120, 128, (1, 2, 2, fan_in), dtype=np.int8)}
    want = call(naive_kernels.conv2d, graph, inputs, 1, "exact")
    np.testing.assert_array_equal(ir.run(graph, inputs["x"]), want)


def test_large_batches_are_cut_into_chunks_without_a_trace(monkeypatch):
    rng = np.random.default_rng(5)
    for op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        graph = random_graph(op, rng)
        x = rng.integers(-128, 128, (13, *graph["x"].shape[1:]), dtype=np.int8)
        want = ir.run(graph, x)
        monkeypatch.setattr("tinyml_edu.ir.windows.CHUNK_ELEMENTS", 1)
        np.testing.assert_array_equal(ir.run(graph, x), want)
        monkeypatch.undo()


def test_average_rounds_half_away_from_zero():
    x = replace(image(np.random.default_rng(0), (1, 1, 2, 3)), quant=Quant.per_tensor(1.0, 0))
    graph = one_op("AVERAGE_POOL_2D", A.Pool2D((1, 2), (1, 2)), x, out_quant=x.quant)
    codes = np.array([[[[1, -1, 3], [2, -2, -4]]]], np.int8)  # 1.5, -1.5, -0.5
    assert ir.run(graph, codes).ravel().tolist() == [2, -2, -1]


def test_fast_add_is_within_one_code_of_exact():
    """Derivation: the two sums s1 + s2 differ by at most 2 units, and the last factor is
    m = 2·max(s1, s2) / (2**20 · s_y).  One rounding is off by 1/2 at most, two by 1/2 + 1/4 where the
    last shift is at least 1.  So the outputs differ by less than 2, if 2·m < 3/4: s_y > max(s1, s2) / 2**18.
    """
    worst = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        graph = random_graph("ADD", rng)
        inputs = random_inputs(graph, rng, 32)
        exact, fast = (ir.run(graph, inputs, requant=mode).astype(int) for mode in ("exact", "fast"))
        worst = max(worst, int(np.abs(exact - fast).max()))
    assert worst == 1
