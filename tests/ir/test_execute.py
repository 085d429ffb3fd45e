"""Running graphs: batches, several inputs and outputs, kept tensors, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graph_cases import quant, random_graph

from tinyml_edu import ir
from tinyml_edu.errors import UsageError
from tinyml_edu.ir import GraphError, Kind, Node, Tensor
from tinyml_edu.ir import attrs as A


@pytest.mark.parametrize("op", ir.OPS)
def test_a_batch_is_its_images_one_by_one(op):
    rng = np.random.default_rng(11)
    graph = random_graph(op, rng)
    x = {n: rng.integers(-128, 128, (5, *graph[n].shape[1:]), dtype=np.int8) for n in graph.inputs}
    singles = [ir.run(graph, {n: v[i : i + 1] for n, v in x.items()}) for i in range(5)]
    np.testing.assert_array_equal(ir.run(graph, x), np.concatenate(singles))


def rows_graph():
    """(1, 3, 8) -> (3, 8) -> FULLY_CONNECTED (3, 8) -> ADD of a constant (3, 8) -> (1, 24): axis 0 grows."""
    rng = np.random.default_rng(2)
    q = quant(rng)
    graph = ir.Graph("rows")
    graph.add(Tensor("x", (1, 3, 8), "int8", Kind.INPUT, quant=q))
    graph.add(Tensor("flat", (3, 8), "int8", Kind.ACTIVATION, quant=q))
    w = rng.integers(-127, 128, (8, 8), dtype=np.int8)
    graph.add(Tensor("w", (8, 8), "int8", Kind.CONSTANT, w, ir.Quant.per_tensor(0.01, 0)))
    graph.add(Tensor("h", (3, 8), "int8", Kind.ACTIVATION, quant=quant(rng)))
    c = rng.integers(-127, 128, (3, 8), dtype=np.int8)
    graph.add(Tensor("c", (3, 8), "int8", Kind.CONSTANT, c, quant(rng)))
    graph.add(Tensor("s", (3, 8), "int8", Kind.ACTIVATION, quant=quant(rng)))
    graph.add(Tensor("y", (1, 24), "int8", Kind.ACTIVATION, quant=graph["s"].quant))
    graph.nodes += [
        Node("n0", "RESHAPE", ("x",), ("flat",), A.Reshape((3, 8))),
        Node("n1", "FULLY_CONNECTED", ("flat", "w"), ("h",), A.FullyConnected()),
        Node("n2", "ADD", ("h", "c"), ("s",), A.Add()),
        Node("n3", "RESHAPE", ("s",), ("y",), A.Reshape((1, 24))),
    ]
    graph.inputs, graph.outputs = ("x",), ("y",)
    return graph.validate()


def test_axes_folded_into_the_batch_keep_images_apart():
    graph = rows_graph()
    x = np.random.default_rng(3).integers(-128, 128, (4, 3, 8), dtype=np.int8)
    singles = [ir.run(graph, x[i : i + 1]) for i in range(4)]
    np.testing.assert_array_equal(ir.run(graph, x), np.concatenate(singles))


def test_batches_cut_into_parts_leave_no_trace(monkeypatch):
    graph = rows_graph()
    x = np.random.default_rng(3).integers(-128, 128, (7, 3, 8), dtype=np.int8)
    want = ir.run(graph, x, keep=True)
    monkeypatch.setattr("tinyml_edu.ir.windows.CHUNK_ELEMENTS", 48)  # two images of 24 values
    got = ir.run(graph, x, keep=True)
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    np.testing.assert_array_equal(ir.run(graph, x), want["y"])


def test_keep_returns_every_activation():
    graph = rows_graph()
    x = np.zeros((2, 3, 8), np.int8)
    values = ir.run(graph, x, keep=True)
    assert set(values) == {"x", "flat", "h", "s", "y"}
    assert values["flat"].shape == (6, 8)
    np.testing.assert_array_equal(values["y"], ir.run(graph, x))


def test_several_outputs_come_by_name_even_if_read_again():
    graph = rows_graph()
    graph.outputs = ("h", "y")
    values = ir.run(graph, np.zeros((1, 3, 8), np.int8))
    assert set(values) == {"h", "y"}


def test_float_graphs_run_the_float_kernels():
    graph = rows_graph()
    for name, tensor in list(graph.tensors.items()):
        data = None if tensor.data is None else tensor.quant.dequantize(tensor.data)
        graph.update(name, dtype="float32", quant=None, data=data)
    x = np.random.default_rng(0).standard_normal((2, 3, 8))
    want = (x.astype(np.float32) @ graph["w"].data.T + graph["c"].data).reshape(2, 24)
    got = ir.run(graph, x)  # float64 in: converted
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=8 * np.finfo(np.float32).eps * 10)


def test_quantized_kernels_follow_the_float_kernels():
    """A convolution in int8 is within half an output step of the same one on dequantized numbers.

    The integer sum is exact, and so is the bias (its scale is s_x·s_w).  What is left is the rounding:
    1/2 at the last step and at most 1/4 from the step before it; the multiplier's 2**-31 is far below.
    """
    rng = np.random.default_rng(8)
    graph = random_graph("CONV_2D", rng)
    node = graph.nodes[0]
    attrs = replace(node.attrs, activation="none")
    graph.nodes[0] = replace(node, attrs=attrs)
    spread = graph["w"].quant.scale.max() * float(graph["x"].quant.scale[0]) * 400
    graph.update("y", quant=ir.Quant.per_tensor(spread, 0))
    x = rng.integers(-128, 128, (3, *graph["x"].shape[1:]), dtype=np.int8)
    w_quant, x_quant = graph["w"].quant, graph["x"].quant
    real = ir.OPS["CONV_2D"].float_kernel(
        x_quant.dequantize(x).astype(np.float64),
        w_quant.dequantize(graph["w"].data).astype(np.float64),
        graph["b"].data * (w_quant.scale.astype(np.float64) * float(x_quant.scale[0])),
        attrs=attrs,
        out_shape=(3, *graph["y"].shape[1:]),
    )
    steps = np.clip(real / float(graph["y"].quant.scale[0]), -128, 127)
    assert np.abs(ir.run(graph, x) - steps).max() <= 0.75
    assert np.abs(steps).max() > 20  # the codes are used


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 9), np.int8), r"must have shape \(N, 3, 8\), got \(1, 3, 9\)"),
        (np.zeros((3, 8), np.int8), "must have shape"),
        (np.zeros((1, 3, 8), np.float32), "quantize it first"),
        (np.zeros((0, 3, 8), np.int8), "multiple of 1 rows, got 0"),
        ({"z": np.zeros((1, 3, 8), np.int8)}, "input 'x' is missing"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, message):
    with pytest.raises(GraphError, match=message):
        ir.run(rows_graph(), x)


def test_two_inputs_need_names_and_one_batch_size():
    graph = random_graph("ADD", np.random.default_rng(0))
    shape, shape_2 = graph["x"].shape[1:], graph["x2"].shape[1:]
    with pytest.raises(GraphError, match="pass a dict"):
        ir.run(graph, np.zeros((1, *shape), np.int8))
    with pytest.raises(GraphError, match=r"different batch sizes: \[1, 2\]"):
        ir.run(graph, {"x": np.zeros((1, *shape), np.int8), "x2": np.zeros((2, *shape_2), np.int8)})


def test_an_unknown_rounding_is_refused():
    with pytest.raises(UsageError, match="unknown requantization 'exactly'; did you mean 'exact'"):
        ir.run(rows_graph(), np.zeros((1, 3, 8), np.int8), requant="exactly")


def test_a_value_that_nothing_makes_is_named():
    graph = rows_graph()
    graph.update("w", kind=Kind.VARIABLE, data=None)
    with pytest.raises(GraphError, match="n1 reads 'w', which has no value"):
        ir.run(graph, np.zeros((1, 3, 8), np.int8))
