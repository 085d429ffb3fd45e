"""Which activations share a scale where branches join, and which scales an operator prescribes."""

from __future__ import annotations

import numpy as np
import pytest

from tinyml_edu import ir
from tinyml_edu.errors import UsageError
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Tensor
from tinyml_edu.quantization.activations import activation_quants, activation_widths, sharing_roots
from tinyml_edu.quantization.calibration import calibrate
from tinyml_edu.quantization.post_training import QuantConfig, quantize_graph

SHAPE = (1, 4, 4, 2)


def network(*nodes: tuple[str, tuple[str, ...], str, object], output: str) -> Graph:
    """Return a float graph of input "x" whose nodes are (op, inputs, output, attributes)."""
    graph = Graph("network", inputs=("x",), outputs=(output,))
    graph.add(Tensor("x", SHAPE, "float32", Kind.INPUT))
    for op, inputs, name, attrs in nodes:
        node = Node(name, op, inputs, (name,), attrs)
        graph.add(Tensor(name, ir.infer_shape(graph, node), "float32", Kind.ACTIVATION))
        graph.nodes.append(node)
    return graph.validate()


UNARY = A.Elementwise()
POOL = A.Pool2D((1, 1), (1, 1))


def two_branches() -> Graph:
    return network(
        ("HARD_SWISH", ("x",), "a", UNARY),
        ("RELU", ("x",), "b", UNARY),
        ("MAX_POOL_2D", ("a",), "p", POOL),
        ("CONCATENATION", ("p", "b"), "c", A.Concatenation(3)),
        ("RESIZE_NEAREST_NEIGHBOR", ("c",), "r", A.ResizeNearest((8, 8))),
        ("MEAN", ("r",), "m", A.Mean((1, 2))),
        output="m",
    )


def test_what_is_joined_has_one_scale_from_the_union_of_the_ranges():
    graph = two_branches()
    root = sharing_roots(graph)
    assert {name for name in root if root[name] == root["c"]} == {"a", "p", "b", "c", "r"}
    assert root["x"] == "x"
    assert root["m"] == "m"
    ranges = {"x": (-4.0, 4.0), "a": (-0.375, 3.0), "p": (-0.375, 3.0), "b": (0.0, 5.0), "m": (0.0, 1.0)}
    ranges |= {"c": (-0.375, 5.0), "r": (-0.375, 5.0)}
    quants = activation_quants(graph, ranges)
    scale, _ = quants["b"].item()
    assert scale == np.float32(5.375 / 255)
    assert all(quants[name] is quants["b"] for name in "apcr")
    assert quants["x"] is not quants["b"]


def test_groups_that_a_second_join_ties_become_one():
    graph = network(
        ("RELU", ("x",), "a", UNARY),
        ("RELU6", ("x",), "b", UNARY),
        ("HARD_SWISH", ("x",), "d", UNARY),
        ("CONCATENATION", ("a", "b"), "c1", A.Concatenation(3)),
        ("CONCATENATION", ("b", "d"), "c2", A.Concatenation(3)),
        output="c2",
    )
    root = sharing_roots(graph)
    assert len({root[name] for name in ("a", "b", "d", "c1", "c2")}) == 1
    assert set(activation_widths(graph, 4).values()) == {8}  # all of them share the output's scale


def test_a_joined_graph_is_quantized_and_near_the_float_one():
    graph = two_branches()
    x = np.random.default_rng(0).normal(size=(32, *SHAPE[1:])).astype(np.float32) * 2
    for bits in (8, 6):
        int8 = quantize_graph(graph, calibrate(graph, x, bits=bits), QuantConfig(activation_bits=bits))
        codes = int8["x"].quant.quantize(x)
        got = int8["m"].quant.dequantize(ir.run(int8, codes))
        # A mean of 16 values, each off by its own rounding and the input's, whose slope is at most 1.5.
        steps = (
            1.5 * int8["x"].quant.item()[0] / 2 + 2 * int8["c"].quant.item()[0] + int8["m"].quant.item()[0]
        )
        assert np.abs(got - ir.run(graph, x)).max() <= steps


def test_a_prescribed_scale_is_kept_and_stays_8_bits_wide():
    graph = network(
        ("LOGISTIC", ("x",), "s", UNARY),
        ("MAX_POOL_2D", ("s",), "p", POOL),
        ("MUL", ("x", "p"), "g", A.Mul()),
        ("MEAN", ("g",), "m", A.Mean((1, 2))),
        output="m",
    )
    ranges = {"x": (-4.0, 4.0), "s": (0.0, 0.9), "p": (0.0, 0.9), "g": (-1.0, 4.0), "m": (0.0, 1.0)}
    quants = activation_quants(graph, ranges, bits=4)
    for name in ("s", "p"):
        assert quants[name].item() == (1 / 256, -128)
        assert quants[name].bits == 8
    assert quants["g"].bits == 4
    quantize_graph(graph, ranges, QuantConfig(activation_bits=4))


def test_a_prescribed_scale_that_is_joined_needs_a_quantize():
    def joined(name: str, *more) -> Graph:
        join = ("CONCATENATION", (name, "x"), "c", A.Concatenation(3))
        return network(("LOGISTIC", ("x",), "s", UNARY), *more, join, output="c")

    ranges = dict.fromkeys(("x", "s", "q", "c"), (-1.0, 1.0))
    with pytest.raises(UsageError, match="'x' is joined with the output of a LOGISTIC or SOFTMAX"):
        activation_quants(joined("s"), ranges)
    quants = activation_quants(joined("q", ("QUANTIZE", ("s",), "q", UNARY)), ranges)
    assert quants["s"].item() == (1 / 256, -128)
    assert quants["q"] is quants["c"] is quants["x"]
    both = network(
        ("LOGISTIC", ("x",), "s", UNARY),
        ("SOFTMAX", ("x",), "t", A.Softmax()),
        ("CONCATENATION", ("s", "t"), "c", A.Concatenation(3)),
        output="c",
    )
    assert activation_quants(both, dict.fromkeys("xstc", (0.0, 1.0)))["c"].item() == (1 / 256, -128)


@pytest.mark.parametrize("bits", [8, 4])
def test_hard_swish_of_values_far_below_its_knee_is_given_a_scale_that_its_kernel_takes(bits):
    graph = network(("HARD_SWISH", ("x",), "h", UNARY), ("MEAN", ("h",), "m", A.Mean((1, 2))), output="m")
    ranges = {"x": (-200.0, 0.0), "h": (-0.375, 0.0), "m": (-0.3, 0.0)}
    int8 = quantize_graph(graph, ranges, QuantConfig(activation_bits=bits))  # raises if the kernel refuses
    ratio = int8["x"].quant.item()[0] / int8["h"].quant.item()[0]
    assert ratio <= 64 * (1 + 1e-6)
    assert int8["h"].quant.item()[1] == int8["h"].quant.limits[1]  # 0 is still the end of the range
    narrow = quantize_graph(graph, ranges | {"x": (-3.0, 3.0)}, QuantConfig(activation_bits=8))
    assert narrow["h"].quant.item()[0] == np.float32(0.375 / 255)  # the control: otherwise nothing is widened
