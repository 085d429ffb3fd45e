"""Shapes, MACs and input regions of the op table against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from graph_cases import random_graph

from tinyml_edu import ir
from tinyml_edu.ir import OPS, GraphError
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.ops import same_padding

SPATIAL = [name for name, spec in OPS.items() if spec.input_region is not None]


@pytest.mark.parametrize("op", SPATIAL)
def test_input_region_is_what_perturbation_finds(op):
    """Change one input pixel at a time: an output region may depend on no pixel outside its region.

    And the region is no larger than the rows and columns between the first and the last tap.
    """
    for seed in range(4):
        rng = np.random.default_rng([seed, 3, *op.encode()])
        graph = random_graph(op, rng)
        node = graph.nodes[0]
        inputs = {n: rng.integers(-20, 20, graph[n].shape).astype(np.float32) for n in graph.inputs}
        args = [inputs[n] if n in inputs else np.ones(graph[n].shape, np.float32) for n in node.inputs]
        attrs = replace(node.attrs, activation="none") if hasattr(node.attrs, "activation") else node.attrs
        out_shape = graph["y"].shape
        base = OPS[op].float_kernel(*args, attrs=attrs, out_shape=out_shape)
        reads: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for y, x in product(range(args[0].shape[1]), range(args[0].shape[2])):
            changed = args[0].copy()
            changed[:, y, x] += 1000  # wins every maximum, moves every sum
            moved = (OPS[op].float_kernel(changed, *args[1:], attrs=attrs, out_shape=out_shape) != base).any(
                (0, 3)
            )
            for out in zip(*np.nonzero(moved), strict=True):
                reads.setdefault((int(out[0]), int(out[1])), set()).add((y, x))
        for oy, ox in product(range(out_shape[1]), range(out_shape[2])):
            y0, y1, x0, x1 = ir.input_region(graph, node, (oy, oy + 1, ox, ox + 1))
            seen = reads.get((oy, ox), set())
            assert all(y0 <= y < y1 and x0 <= x < x1 for y, x in seen), (op, seed, oy, ox)
            if seen and getattr(attrs, "dilation", (1, 1)) == (1, 1):
                rows, columns = zip(*seen, strict=True)
                tight = (min(rows), max(rows) + 1, min(columns), max(columns) + 1)
                assert (y0, y1, x0, x1) == tight, (op, seed)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_gives_ceil_and_the_odd_row_after(size, stride):
    for kernel, dilation in product(range(1, 6), (1, 2)):
        before, after = same_padding(size, kernel, stride, dilation)
        attrs = A.Conv2D((stride, 1), (before, 0, after, 0), (dilation, 1))
        out = OPS["CONV_2D"].infer_shape(attrs, (1, size, 1, 1), (1, kernel, 1, 1))
        assert out[1] == -(-size // stride)
        assert after - before in (0, 1)


def test_macs_are_the_products_of_the_loops():
    conv = OPS["CONV_2D"].macs(A.Conv2D(), ((1, 8, 8, 3), (16, 3, 3, 3), (16,)), (1, 6, 6, 16))
    depthwise = OPS["DEPTHWISE_CONV_2D"].macs(A.DepthwiseConv2D(), ((1, 8, 8, 4), (1, 3, 3, 8)), (1, 6, 6, 8))
    dense = OPS["FULLY_CONNECTED"].macs(A.FullyConnected(), ((1, 40), (10, 40)), (1, 10))
    assert (conv, depthwise, dense) == (6 * 6 * 16 * 27, 6 * 6 * 8 * 9, 400)
    graph = random_graph("ADD", np.random.default_rng(0))
    assert ir.macs(graph) == {"node": 0}


def test_every_op_says_how_it_rounds():
    assert all(spec.rounding for spec in OPS.values())


@pytest.mark.parametrize(
    ("op", "attrs", "shapes", "message"),
    [
        ("CONV_2D", A.Conv2D(), [(1, 4, 4, 3), (8, 3, 3, 4)], "read 4 channels, the input has 3"),
        ("CONV_2D", A.Conv2D(), [(1, 2, 2, 3), (8, 3, 3, 3)], "larger than the padded input"),
        ("CONV_2D", A.Conv2D(stride=(0, 1)), [(1, 4, 4, 3), (8, 3, 3, 3)], "must be positive"),
        ("CONV_2D", A.Conv2D(), [(1, 4, 4, 3), (8, 3, 3, 3), (7,)], r"bias must have shape \(8,\)"),
        ("CONV_2D", A.Conv2D(), [(4, 4, 3), (8, 3, 3, 3)], "4-dimensional input"),
        ("DEPTHWISE_CONV_2D", A.DepthwiseConv2D(), [(1, 4, 4, 3), (1, 3, 3, 4)], "no multiple of 3"),
        ("FULLY_CONNECTED", A.FullyConnected(), [(1, 9), (2, 8)], "read 8 values, the input has 9"),
        ("ADD", A.Add(), [(1, 4), (1, 2)], "of one length, or 1"),
        ("SUB", A.Sub(), [(1, 2), (1, 1, 2)], "of one length, or 1"),
        ("MUL", A.Mul(), [(1, 4, 4, 2), (1, 2)], "of one length, or 1"),
        ("MUL", A.Mul(), [(3, 4), (1, 4)], "of one length, or 1"),
        ("CONCATENATION", A.Concatenation(0), [(1, 2), (1, 2)], "along axis 0"),
        ("CONCATENATION", A.Concatenation(2), [(1, 2), (1, 2)], "along axis 2"),
        ("CONCATENATION", A.Concatenation(1), [(1, 2, 3), (1, 2, 4)], "differ elsewhere"),
        ("RESIZE_NEAREST_NEIGHBOR", A.ResizeNearest((2, 0)), [(1, 2, 2, 1)], "must be positive"),
        ("RESIZE_NEAREST_NEIGHBOR", A.ResizeNearest((2, 2)), [(1, 2, 2)], "4-dimensional"),
        ("RESIZE_NEAREST_NEIGHBOR", A.ResizeNearest((2, 2), True, True), [(1, 2, 2, 1)], "excludes"),
        ("MAX_POOL_2D", A.Pool2D((2, 2), (2, 2), (2, 0, 0, 0)), [(1, 4, 4, 1)], "lies in the padding"),
        ("AVERAGE_POOL_2D", A.Pool2D((2, 2), (2, 2), (0, 0, 0, 3)), [(1, 4, 4, 1)], "lies in the padding"),
        ("MEAN", A.Mean((0, 1)), [(1, 4)], "MEAN over axes"),
        ("MEAN", A.Mean((1, 1)), [(1, 4)], "twice"),
        ("PAD", A.Pad(((0, 0), (1, 0))), [(1, 4, 4)], "lists 2 axes"),
        ("PAD", A.Pad(((1, 0), (1, 0))), [(1, 4)], "batch axis"),
        ("RESHAPE", A.Reshape((1, 5)), [(1, 2, 2)], "changes the number of values"),
        ("SOFTMAX", A.Softmax(), [()], "needs a batch axis and one with values"),
        ("SOFTMAX", A.Softmax(), [(4,)], "needs a batch axis and one with values"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(op, attrs, shapes, message):
    with pytest.raises(GraphError, match=message):
        OPS[op].infer_shape(attrs, *shapes)


def test_the_message_names_the_node():
    graph = random_graph("ADD", np.random.default_rng(0))
    graph.update("x2", shape=(2, 1, 1, 1))
    with pytest.raises(GraphError, match=r"node \(ADD\): ADD needs"):
        ir.infer_shape(graph, graph.nodes[0])
