"""The tables of elementwise ops against exact real arithmetic, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
from graph_cases import one_op, random_graph

from tinyml_edu.ir import OPS, Graph, GraphError, Kind, Quant, Tensor
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.lookup_tables import CODES

ALPHA = 0.25

FUNCTIONS = {
    "LOGISTIC": lambda r: 1 / (1 + (-r).exp()),
    "HARD_SWISH": lambda r: r * min(max(r + 3, Decimal(0)), Decimal(6)) / 6,
    "RELU": lambda r: max(r, Decimal(0)),
    "RELU6": lambda r: min(max(r, Decimal(0)), Decimal(6)),
    "RELU_N1_TO_1": lambda r: min(max(r, Decimal(-1)), Decimal(1)),
    "LEAKY_RELU": lambda r: r if r > 0 else Decimal(ALPHA) * r,
    "TANH": lambda r: ((2 * r).exp() - 1) / ((2 * r).exp() + 1),
    "QUANTIZE": lambda r: r,
}

# In codes, beyond the half of rounding once.  RELU and QUANTIZE round twice with a multiplier of 31 bits.
# HARD_SWISH computes in 16 bits, with a unit of 1/8 code or less for these scales: half a unit from the
# product by the ratio of scales, one from the gate, one from truncating their product.
BEYOND_HALF = {"LOGISTIC": 1e-4, "TANH": 1e-4, "HARD_SWISH": 2.5 / 8} | dict.fromkeys(
    ("RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "QUANTIZE"), 0.5
)


def unary(op: str, x: Quant, y: Quant) -> Graph:
    attrs = {"LEAKY_RELU": A.LeakyRelu(ALPHA), "QUANTIZE": A.Quantize()}.get(op, A.Elementwise())
    return one_op(op, attrs, Tensor("x", (1, 256), "int8", Kind.INPUT, quant=x), out_quant=y)


def table(graph: Graph) -> np.ndarray:
    node = graph.nodes[0]
    return OPS[node.op].params(graph, node)


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("seed", range(12))
def test_a_table_is_the_function_rounded_to_codes(op, seed):
    graph = random_graph(op, np.random.default_rng(seed))
    graph = unary(op, graph["x"].quant, graph["y"].quant)
    (x_scale, x_zp), (y_scale, y_zp) = graph["x"].quant.item(), graph["y"].quant.item()
    entries = table(graph)
    assert entries.dtype == np.int8
    assert entries.shape == (256,)
    with localcontext() as context:
        context.prec = 40
        real = [
            FUNCTIONS[op](Decimal(x_scale) * int(code - x_zp)) / Decimal(y_scale) + y_zp for code in CODES
        ]
    clamped = np.clip(np.array([float(r) for r in real]), -128, 127)
    error = np.abs(entries - clamped)
    assert error.max() <= 0.5 + BEYOND_HALF[op], (op, seed, error.max())


@pytest.mark.parametrize("op", FUNCTIONS)
def test_codes_of_fewer_bits_stay_inside_their_width(op):
    if op in ("LOGISTIC", "TANH"):
        return  # their outputs have 8 bits always
    graph = unary(op, Quant.per_tensor(0.1, 0), Quant.per_tensor(0.05, 0, bits=4))
    assert table(graph).min() >= -8
    assert table(graph).max() == 7
    wide = unary(op, Quant.per_tensor(0.1, 0), Quant.per_tensor(0.05, 0))
    assert table(wide).max() > 7  # the control: the width is what clamps


def test_scales_that_the_reference_refuses_are_refused():
    logistic = unary("LOGISTIC", Quant.per_tensor(0.1, 0), Quant.per_tensor(1 / 256, -128))
    assert table(logistic)[128] == 0  # 1 / (1 + exp(0)) = 128 / 256
    for quant in (Quant.per_tensor(1 / 255, -128), Quant.per_tensor(1 / 256, 0)):
        logistic.update("y", quant=quant)
        with pytest.raises(GraphError, match="must have scale 1/256 and zero point -128"):
            table(logistic)
    swish = unary("HARD_SWISH", Quant.per_tensor(1.0, 0), Quant.per_tensor(1 / 127, 0))
    table(swish)
    swish.update("y", quant=Quant.per_tensor(1 / 128, 0))
    with pytest.raises(GraphError, match="the output scale must be larger"):
        table(swish)


def test_a_table_needs_both_scales():
    graph = random_graph("RELU", np.random.default_rng(0))
    graph.tensors["x"] = replace(graph["x"], quant=None)
    with pytest.raises(GraphError, match="quantize the graph first"):
        table(graph)
