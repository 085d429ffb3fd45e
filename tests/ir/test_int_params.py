"""The numbers of int8 nodes: clamps, accumulator bound, softmax table, mean."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from graph_cases import image, one_op, random_graph

from tinyml_edu.ir import GraphError, Kind, Quant, Tensor, int_params, run
from tinyml_edu.ir import attrs as A


@pytest.mark.parametrize(
    ("scale", "zero_point", "activation", "limits"),
    [
        (0.1, 3, "none", (-128, 127)),
        (0.1, 3, "relu", (3, 127)),
        (0.1, -128, "relu6", (-128, -68)),
        (0.01, 0, "relu6", (0, 127)),  # 6 lies beyond the last code
        (6 / 255, -128, "relu6", (-128, 127)),
        (0.1, 127, "relu", (127, 127)),
        (1e-30, 0, "relu6", (0, 127)),
    ],
)
def test_activation_range(scale, zero_point, activation, limits):
    assert int_params.activation_range(Quant.per_tensor(scale, zero_point), activation) == limits


@pytest.mark.parametrize(
    ("scale", "zero_point", "bits", "activation", "limits"),
    [
        (0.1, 3, 4, "none", (-8, 7)),
        (0.1, 3, 4, "relu", (3, 7)),
        (1.0, -8, 4, "relu6", (-8, -2)),
        (0.1, -2, 2, "relu6", (-2, 1)),
        (0.1, -64, 7, "none", (-64, 63)),
    ],
)
def test_activation_range_honours_the_width(scale, zero_point, bits, activation, limits):
    assert int_params.activation_range(Quant.per_tensor(scale, zero_point, bits), activation) == limits


def test_an_unknown_activation_is_refused():
    with pytest.raises(GraphError, match="unknown activation 'tanh'"):
        int_params.activation_range(Quant.per_tensor(1.0, 0), "tanh")


def dense(bias: int, fan_in: int = 4) -> object:
    x = replace(image(np.random.default_rng(0), (1, fan_in)), quant=Quant.per_tensor(0.5, -128))
    w = Tensor(
        "w", (1, fan_in), "int8", Kind.CONSTANT, np.full((1, fan_in), 127, np.int8), Quant.per_tensor(0.25, 0)
    )
    b = Tensor("b", (1,), "int32", Kind.CONSTANT, np.array([bias], np.int32))
    return one_op("FULLY_CONNECTED", A.FullyConnected(), x, w, b, out_quant=Quant.per_tensor(2.0**20, 5))


def test_the_accumulator_bound_is_exact():
    """255 * 127 * 4 + |bias| must stay below 2**31; the largest legal bias computes, one more is refused."""
    worst = 255 * 127 * 4
    graph = dense(2**31 - 1 - worst)
    int_params.conv_params(graph, graph.nodes[0])
    # y = round((2**31 - 1) * 0.5 * 0.25 / 2**20) + 5, clamped
    assert run(graph, np.full((1, 4), 127, np.int8)).item() == 127
    graph = dense(2**31 - worst)
    with pytest.raises(GraphError, match="channel 0 can reach 2147483648, beyond int32"):
        int_params.conv_params(graph, graph.nodes[0])
    graph = dense(-(2**31))
    with pytest.raises(GraphError, match="beyond int32"):
        int_params.conv_params(graph, graph.nodes[0])


def test_conv_params_hold_one_multiplier_a_channel():
    graph = random_graph("CONV_2D", np.random.default_rng(1))
    node = graph.nodes[0]
    params = int_params.conv_params(graph, node)
    x, w, y = (graph[name].quant for name in (*node.inputs[:2], "y"))
    assert params.multiplier.dtype == params.exponent.dtype == np.int32
    for o, scale in enumerate(w.scale):
        real = Fraction(float(x.scale[0])) * Fraction(float(scale)) / Fraction(float(y.scale[0]))
        got = Fraction(int(params.multiplier[o])) * Fraction(2) ** (int(params.exponent[o]) - 31)
        assert abs(got / real - 1) <= Fraction(1, 2**31) + Fraction(3, 2**53)  # three roundings of float64
    assert (params.x_zp, params.y_zp) == (int(x.zero_point[0]), int(y.zero_point[0]))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", {"quant": None}, "'x' has no scale"),
        ("w", {"data": None}, "must be a constant"),
        ("w", {"quant": Quant(np.ones(3, np.float32), np.zeros(3, np.int32), 0)}, "3 weight scales for 1"),
        ("w", {"quant": Quant.per_tensor(0.1, 1)}, "zero point 0"),
    ],
)
def test_graphs_without_usable_numbers_are_refused(name, change, message):
    graph = dense(0)
    graph.update(name, **change)
    with pytest.raises(GraphError, match=message):
        int_params.conv_params(graph, graph.nodes[0])


def test_softmax_table_gives_float_softmax_rounded():
    """Error budget: a table entry is off by 1/2 in 2**24, so e/S by at most about (n + 1) / 2**25 and
    the output, in steps of 1/256, by 256 * (n + 1) / 2**25 < 0.001 before it is rounded."""
    rng = np.random.default_rng(0)
    x = replace(image(rng, (1, 60)), quant=Quant.per_tensor(0.11, 4))
    graph = one_op("SOFTMAX", A.Softmax(1.0), x, out_quant=Quant.per_tensor(1 / 256, -128))
    table = int_params.softmax_table(graph, graph.nodes[0])
    assert table.shape == (256,)
    assert table.dtype == np.uint32
    assert table[0] == 2**24
    codes = rng.integers(-128, 128, (200, 60), dtype=np.int8)
    scale = float(x.quant.scale[0])
    e = np.exp(scale * codes.astype(np.float64))
    real = np.minimum(e / e.sum(axis=1, keepdims=True) * 256 - 128, 127)
    assert np.abs(run(graph, codes) - real).max() <= 0.5 + 0.001
    shifted = one_op("SOFTMAX", A.Softmax(1.05), x, out_quant=Quant.per_tensor(1 / 256, -128))
    assert np.abs(run(shifted, codes) - real).max() > 0.5 + 0.001  # the control: 5 % in beta is seen


def test_mean_multiplier_holds_the_division():
    for seed in range(20):
        graph = random_graph("MEAN", np.random.default_rng(seed))
        node = graph.nodes[0]
        params = int_params.mean_params(graph, node)
        real = float(graph["x"].quant.scale[0]) / float(graph["y"].quant.scale[0]) / params.count
        got = params.multiplier * 2.0 ** (params.exponent - 31)
        # The multiplier keeps at least 30 bits: shifting by bit_length - 1 leaves a quotient above 2**29.
        assert abs(got / real - 1) <= 2.0**-29
        assert -31 <= params.exponent <= 30


def test_mean_of_a_vanishing_factor_is_the_zero_point():
    x = replace(image(np.random.default_rng(0), (1, 4, 4, 2)), quant=Quant.per_tensor(1e-12, 3))
    graph = one_op("MEAN", A.Mean((1, 2)), x, out_quant=Quant.per_tensor(1.0, 7))
    assert int_params.mean_params(graph, graph.nodes[0]).multiplier == 0
    assert run(graph, np.full((1, 4, 4, 2), 127, np.int8)).tolist() == [[7, 7]]


def test_a_mean_that_could_leave_int32_is_refused():
    """255 * 8421504 = 2**31 - 128 is the last sum that fits."""
    for count, fits in ((8_421_504, True), (8_421_505, False)):
        x = image(np.random.default_rng(0), (1, count, 1, 1))
        graph = one_op("MEAN", A.Mean((1, 2)), x, out_quant=Quant.per_tensor(0.1, 0))
        if fits:
            assert int_params.mean_params(graph, graph.nodes[0]).count == count
        else:
            with pytest.raises(GraphError, match="average in two steps"):
                int_params.mean_params(graph, graph.nodes[0])
