"""Kernels called directly: every argument is checked, and a window of an output is the same kernel."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int8, c_int32, c_uint32

import host_build
import numpy as np
import pytest
from c_structs import Add, Conv, FullyConnected, Mean, Mul, Output, Pad, Pool, Resize, Shape, Steps
from random_graphs import random_layer

from tinyml_edu import ir
from tinyml_edu.ir import int_params
from tinyml_edu.ir.ops import OPS
from tinyml_edu.mcu import toolchain

pytestmark = pytest.mark.c

OK, NULL_POINTER, BAD_SHAPE, BAD_PARAMETER = range(4)


@pytest.fixture(scope="module")
def runtime():
    sources = sorted(host_build.RUNTIME.glob("*.[ch]"))
    return ctypes.CDLL(
        str(
            toolchain.compile_shared(
                sources, name="runtime", include=[host_build.RUNTIME], flags=host_build.STRICT
            )
        )
    )


MULTIPLIER, EXPONENT = (c_int32 * 8)(*[2**30] * 8), (c_int8 * 8)(*[-3] * 8)
BUFFER, WEIGHTS, BIAS, RESULT = (c_int8 * 512)(), (c_int8 * 512)(), (c_int32 * 8)(), (c_int8 * 512)()
TABLE = (c_uint32 * 256)(*[max(2**24 - k * 2**16, 0) for k in range(256)])


def output():
    return Output(MULTIPLIER, EXPONENT, 0, -128, 127)


def conv():
    return Conv(Shape(4, 4, 2, 8), Shape(4, 4, 2, 8), 3, 3, 1, 1, 1, 1, 1, 1, 0, output())


def pool():
    return Pool(Shape(4, 4, 2, 8), Shape(2, 2, 2, 4), 2, 2, 2, 2, 0, 0, -128, 127)


def fully_connected():
    return FullyConnected(1, 8, 4, 0, output())


def add():
    return Add(
        Shape(2, 2, 2, 4), Steps(4, 2, 1), Steps(4, 2, 1), 0, 0, 0, 2**30, 2**30, 2**30, 0, 0, -18, -128, 127
    )


def mul():
    return Mul(Shape(2, 2, 2, 4), Steps(4, 2, 1), Steps(0, 0, 1), 0, 0, 0, 2**30, -6, -128, 127)


ROWS, BAD_ROWS, NEGATIVE_ROWS = ((c_int32 * 4)(0, 0, 1, last) for last in (1, 2, -1))


def resize():
    return Resize(Shape(2, 2, 2, 4), Shape(4, 4, 2, 8), ROWS, ROWS)


def mean():
    return Mean((c_int32 * 3)(1, 2, 1), (c_int32 * 2)(4, 1), 0, 0, 2**30, -1, -128, 127)


def pad():
    return Pad((c_int32 * 4)(1, 2, 2, 2), (c_int32 * 4)(0, 1, 1, 0), (c_int32 * 4)(0, 1, 0, 1), 0)


# kernel: (a legal params struct, the further arguments, which of them must not be NULL)
KERNELS = {
    "te_conv2d_s8": (conv, (BUFFER, WEIGHTS, BIAS, RESULT), (0, 1, 3)),
    "te_depthwise_conv2d_s8": (conv, (BUFFER, WEIGHTS, BIAS, RESULT), (0, 1, 3)),
    "te_depthwise_conv2d_inplace_s8": (conv, (BUFFER, WEIGHTS, BIAS, RESULT), (0, 1, 3)),
    "te_fully_connected_s8": (fully_connected, (BUFFER, WEIGHTS, BIAS, RESULT), (0, 1, 3)),
    "te_average_pool2d_s8": (pool, (BUFFER, RESULT), (0, 1)),
    "te_max_pool2d_s8": (pool, (BUFFER, RESULT), (0, 1)),
    "te_add_s8": (add, (BUFFER, WEIGHTS, RESULT), (0, 1, 2)),
    "te_sub_s8": (add, (BUFFER, WEIGHTS, RESULT), (0, 1, 2)),
    "te_mul_s8": (mul, (BUFFER, WEIGHTS, RESULT), (0, 1, 2)),
    "te_resize_nearest_s8": (resize, (BUFFER, RESULT), (0, 1)),
    "te_mean_s8": (mean, (BUFFER, RESULT), (0, 1)),
    "te_pad_s8": (pad, (BUFFER, RESULT), (0, 1)),
}


def call(runtime, kernel, params, arguments):
    return runtime[kernel](None if params is None else ctypes.byref(params), *arguments)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_missing_buffer_is_reported_and_a_missing_bias_is_allowed(runtime, kernel):
    make, arguments, needed = KERNELS[kernel]
    assert call(runtime, kernel, make(), arguments) == OK
    assert call(runtime, kernel, None, arguments) == NULL_POINTER
    for i in range(len(arguments)):
        holed = [None if j == i else a for j, a in enumerate(arguments)]
        assert call(runtime, kernel, make(), holed) == (NULL_POINTER if i in needed else OK), i


BIG = 2**31 - 1
WRONG_SHAPES = {
    "te_conv2d_s8": [
        "in_.height=0",
        "in_.width=-1",
        "out.channels=0",
        "in_.row=7",
        f"out.row={BIG}",
        f"in_.channels={BIG}",
    ],
    "te_depthwise_conv2d_s8": ["in_.height=0", "out.channels=3", "out.row=1", f"in_.width={BIG}"],
    "te_depthwise_conv2d_inplace_s8": [
        "in_.height=0",
        "out.height=3",
        "out.width=3",
        "out.channels=1",
        "out.row=16",
        f"in_.width={BIG}",
    ],
    "te_fully_connected_s8": ["rows=0", "in_=0", "out=-4", f"in_={BIG}", f"rows={BIG}"],
    "te_average_pool2d_s8": ["in_.channels=1", "out.height=0", "in_.row=0"],
    "te_max_pool2d_s8": ["in_.channels=1", "out.width=-5", f"in_.height={BIG}"],
    "te_add_s8": ["out.height=0", "x1.row=-1", "x2.column=-8", f"x1.row={BIG}", f"out.channels={BIG}"],
    "te_sub_s8": ["out.height=0", "x1.channel=-1", "x2.row=-8", f"out.channels={BIG}"],
    "te_mul_s8": ["out.height=0", "x1.row=-1", "x2.row=-1", "x2.column=-1", "x1.channel=-1", f"x2.row={BIG}"],
    "te_resize_nearest_s8": ["in_.channels=1", "in_.height=0", "out.row=7", f"out.width={BIG}"],
    "te_mean_s8": ["keep[0]=0", "reduce[1]=0", f"reduce[0]={BIG}", f"keep[2]={BIG}"],
    "te_pad_s8": ["in_[1]=0", "before[1]=-4", f"in_[3]={BIG}"],
}
WRONG_PARAMETERS = {
    "te_conv2d_s8": [
        "stride_h=0", "dilation_w=0", "kernel_h=0", "x_zp=128", "x_zp=-129", "output.y_zp=200",
        "output.y_min=-129", "output.y_max=128", "output.y_min=100 output.y_max=99", f"stride_w={BIG}",
        f"kernel_w={BIG}", f"pad_top={BIG}", f"pad_left={-BIG}", f"dilation_h={BIG}",
    ],
    "te_depthwise_conv2d_s8": ["stride_w=-1", "kernel_w=0", "x_zp=300", f"pad_left={BIG}"],
    "te_depthwise_conv2d_inplace_s8": ["stride_h=2", "stride_w=2", "pad_top=3", "pad_top=-1", "x_zp=300"],
    "te_fully_connected_s8": ["x_zp=128", "output.y_zp=-129", "output.y_max=500"],
    "te_average_pool2d_s8": ["pad_top=2", "pad_left=9", "stride_h=4", "pad_left=-3", "kernel_h=0",
                             "y_max=128", "y_min=-200"],
    "te_max_pool2d_s8": ["pad_top=2", "stride_w=5", "stride_h=0", "y_min=1 y_max=0"],
    "te_add_s8": ["x1_zp=128", "x2_zp=-129", "y_zp=999", "exponent_1=1", "multiplier_2=1073741825",
                  "multiplier_y=-1", "exponent_y=31", "exponent_1=-32", "y_max=128"],
    "te_sub_s8": ["x1_zp=128", "exponent_1=1", "multiplier_2=1073741825", "y_max=128"],
    "te_mul_s8": ["x1_zp=128", "x2_zp=-129", "y_zp=999", "multiplier=-1", "exponent=31", "y_max=128"],
    "te_resize_nearest_s8": ["in_.height=1", "in_.width=1"],
    "te_mean_s8": ["x_zp=128", "y_zp=-129", "multiplier=-1", "exponent=31", "exponent=-32",
                   "y_min=-129", "y_max=128", "y_min=1 y_max=0"],
    "te_pad_s8": ["code=128", f"before[2]={BIG}", f"after[0]={-BIG}"],
}  # fmt: skip


def assign(params, changes: str):
    for change in changes.split():
        path, value = change.split("=")
        *parents, last = path.replace("[", ".").replace("]", "").split(".")
        target = params
        for name in parents:
            target = target[int(name)] if name.isdigit() else getattr(target, name)
        if last.isdigit():
            target[int(last)] = int(value)
        else:
            setattr(target, last, int(value))
    return params


@pytest.mark.parametrize(
    ("kernel", "changes", "status"),
    [(k, c, BAD_SHAPE) for k, all_ in WRONG_SHAPES.items() for c in all_]
    + [(k, c, BAD_PARAMETER) for k, all_ in WRONG_PARAMETERS.items() for c in all_],
)
def test_illegal_arguments_are_refused_before_anything_is_written(runtime, kernel, changes, status):
    make, arguments, _ = KERNELS[kernel]
    ctypes.memset(RESULT, 85, 512)
    assert call(runtime, kernel, assign(make(), changes), arguments) == status
    assert bytes(RESULT) == b"U" * 512


def test_an_exponent_out_of_range_and_a_missing_multiplier_are_refused(runtime):
    for kernel in ("te_conv2d_s8", "te_fully_connected_s8"):
        make, arguments, _ = KERNELS[kernel]
        for exponents, multipliers, status in [
            ([-3, 31] * 4, [2**30] * 8, BAD_PARAMETER),
            ([-3, -32] * 4, [2**30] * 8, BAD_PARAMETER),
            ([-3] * 8, [2**30, -1] * 4, BAD_PARAMETER),
        ]:
            params = make()
            keep = (c_int32 * 8)(*multipliers), (c_int8 * 8)(*exponents)
            params.output.multiplier, params.output.exponent = keep
            assert call(runtime, kernel, params, arguments) == status
        params = make()
        params.output.exponent = None
        assert call(runtime, kernel, params, arguments) == NULL_POINTER


def test_softmax_and_reshape_refuse_bad_sizes(runtime):
    softmax, reshape = runtime.te_softmax_s8, runtime.te_reshape_s8
    assert softmax(2, 8, TABLE, BUFFER, RESULT) == OK
    assert softmax(0, 8, TABLE, BUFFER, RESULT) == BAD_SHAPE
    assert softmax(1, 2**16 + 1, TABLE, BUFFER, RESULT) == BAD_SHAPE
    assert softmax(1, 8, (c_uint32 * 256)(), BUFFER, RESULT) == BAD_PARAMETER
    for holed in [(None, BUFFER, RESULT), (TABLE, None, RESULT), (TABLE, BUFFER, None)]:
        assert softmax(1, 8, *holed) == NULL_POINTER
    assert reshape(16, BUFFER, RESULT) == OK
    assert reshape(0, BUFFER, RESULT) == BAD_SHAPE
    assert reshape(16, None, RESULT) == NULL_POINTER


def test_lookup_concatenation_and_resizing_refuse_bad_sizes_and_pointers(runtime):
    lookup, join = runtime.te_lookup_s8, runtime.te_concatenation_s8
    table = (c_int8 * 256)(*range(-128, 128))
    assert lookup(16, table, BUFFER, RESULT) == OK
    assert lookup(0, table, BUFFER, RESULT) == lookup(2**30 + 1, table, BUFFER, RESULT) == BAD_SHAPE
    for holed in [(None, BUFFER, RESULT), (table, None, RESULT), (table, BUFFER, None)]:
        assert lookup(16, *holed) == NULL_POINTER
    parts = (ctypes.c_void_p * 2)(ctypes.addressof(BUFFER), ctypes.addressof(WEIGHTS))
    assert join(4, 2, (c_int32 * 2)(3, 5), parts, RESULT) == OK
    for rows, count, sizes in [
        (0, 2, (3, 5)),
        (4, 0, (3, 5)),
        (4, 2, (3, 0)),
        (4, 2, (2**30, 1)),
        (2**29, 2, (3, 5)),
    ]:
        assert join(rows, count, (c_int32 * 2)(*sizes), parts, RESULT) == BAD_SHAPE, (rows, count, sizes)
    holed = (ctypes.c_void_p * 2)(ctypes.addressof(BUFFER), None)
    assert join(4, 2, (c_int32 * 2)(3, 5), holed, RESULT) == NULL_POINTER
    assert join(4, 2, None, parts, RESULT) == join(4, 2, (c_int32 * 2)(3, 5), parts, None) == NULL_POINTER
    for field, rows, status in [
        ("rows", BAD_ROWS, BAD_PARAMETER),
        ("columns", NEGATIVE_ROWS, BAD_PARAMETER),
        ("rows", None, NULL_POINTER),
    ]:
        params = resize()
        setattr(params, field, rows)
        assert call(runtime, "te_resize_nearest_s8", params, (BUFFER, RESULT)) == status


# --- windows -------------------------------------------------------------------------------------------


def pointer(array, offset=0):
    return ctypes.c_void_p(array.ctypes.data + offset)


def geometry(node, kernel):
    a = node.attrs
    dilation = getattr(a, "dilation", (1, 1))
    return {
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": a.stride[0], "stride_w": a.stride[1],
        "dilation_h": dilation[0], "dilation_w": dilation[1],
    }  # fmt: skip


def window_call(runtime, graph, x, x_shape, y, y_offset, out_shape, pads):
    """Run the graph's only node on one window; shapes are (height, width, channels, row)."""
    node = graph.nodes[0]
    if node.op.endswith("CONV_2D"):
        p = int_params.conv_params(graph, node)
        w = np.ascontiguousarray(graph[node.inputs[1]].data)
        bias = graph[node.inputs[2]].data if len(node.inputs) > 2 else None
        exponent = p.exponent.astype(np.int8)
        result = Output(
            p.multiplier.ctypes.data_as(POINTER(c_int32)),
            exponent.ctypes.data_as(POINTER(c_int8)),
            p.y_zp,
            p.y_min,
            p.y_max,
        )
        params = Conv(
            Shape(*x_shape), Shape(*out_shape), **geometry(node, w.shape[1:3]),
            pad_top=pads[0], pad_left=pads[1], x_zp=p.x_zp, output=result,
        )  # fmt: skip
        name = "te_conv2d_s8" if node.op == "CONV_2D" else "te_depthwise_conv2d_s8"
        more = (pointer(w), None if bias is None else pointer(bias))
    else:
        p = int_params.pool_params(graph, node)
        where = {k: v for k, v in geometry(node, node.attrs.kernel).items() if "dilation" not in k}
        params = Pool(
            Shape(*x_shape),
            Shape(*out_shape),
            **where,
            pad_top=pads[0],
            pad_left=pads[1],
            y_min=p.y_min,
            y_max=p.y_max,
        )
        name = "te_average_pool2d_s8" if node.op == "AVERAGE_POOL_2D" else "te_max_pool2d_s8"
        more = ()
    return runtime[name](ctypes.byref(params), pointer(x), *more, pointer(y, y_offset))


@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D"])
@pytest.mark.parametrize("source", ["whole image", "patch with a halo"])
def test_tiles_computed_one_by_one_equal_the_whole_output(runtime, rng, op, source):
    # What patch inference relies on: a tile reads the whole image, or only its own patch of it.
    tiles = 0
    for seed in range(60):
        graph = random_layer(op, seed, telling=True)
        node = graph.nodes[0]
        x = rng.integers(-128, 128, graph["x"].shape, dtype=np.int8)
        whole = ir.run(graph, x)
        _, height, width, channels = whole.shape
        _, in_h, in_w, in_c = x.shape
        y, done = np.zeros_like(whole), np.ones(whole.shape[1:3], bool)
        top, left = node.attrs.padding[:2]
        (sh, sw), shapes = node.attrs.stride, [graph[n].shape for n in node.inputs]
        for y0 in range(0, height, 2):
            for x0 in range(0, width, 3):
                y1, x1 = min(y0 + 2, height), min(x0 + 3, width)
                r0, r1, c0, c1 = (0, in_h, 0, in_w)
                if source != "whole image":
                    r0, r1, c0, c1 = OPS[op].input_region(node.attrs, (y0, y1, x0, x1), *shapes)
                    if r0 >= r1 or c0 >= c1:  # the tile reads padding only: there is no patch to make
                        done[y0:y1, x0:x1] = False
                        continue
                patch = np.ascontiguousarray(x[0, r0:r1, c0:c1])
                status = window_call(
                    runtime, graph, patch, (r1 - r0, c1 - c0, in_c, (c1 - c0) * in_c),
                    y, (y0 * width + x0) * channels, (y1 - y0, x1 - x0, channels, width * channels),
                    (top - y0 * sh + r0, left - x0 * sw + c0),
                )  # fmt: skip
                assert status == OK
                tiles += 1
        assert np.array_equal(y[0, done], whole[0, done]), (op, seed)
        assert done.all() or source != "whole image"
    assert tiles > 100


def test_a_tile_with_the_wrong_origin_differs(runtime, rng):
    graph = random_layer("DEPTHWISE_CONV_2D", 0, telling=True)
    x = rng.integers(-128, 128, graph["x"].shape, dtype=np.int8)
    whole = ir.run(graph, x)
    y = np.zeros_like(whole)
    _, h, w, c = whole.shape
    top, left = graph.nodes[0].attrs.padding[:2]
    window_call(
        runtime, graph, x, (*x.shape[1:], x.shape[2] * x.shape[3]), y, 0, (h, w, c, w * c), (top - 1, left)
    )
    assert not np.array_equal(y, whole)
