"""Operands that repeat: the loops that are made of their axes, against NumPy's broadcasting."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tinyml_edu.ir import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.ir import attrs as A
from tinyml_edu.mcu.broadcasting import merged_axes
from tinyml_edu.mcu.kernels import addition


def walked(out, *operands) -> list[tuple[int, ...]]:
    """Return, for each element of the output in order, its offset and those of both operands."""
    axes = merged_axes(out, *operands)
    return [
        tuple(sum(i * axis[k] for i, axis in zip(index, axes, strict=True)) for k in (1, 2, 3))
        for index in product(*(range(axis[0]) for axis in axes))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_loops_meet_the_elements_that_numpy_pairs(seed):
    rng = np.random.default_rng(seed)
    out = tuple(int(n) for n in rng.integers(1, 4, rng.integers(1, 6)))
    shapes = [tuple(n if rng.random() < 0.6 else 1 for n in out) for _ in range(2)]
    out = tuple(max(pair) for pair in zip(*shapes, strict=True))
    places = [np.broadcast_to(np.arange(np.prod(s)).reshape(s), out).ravel().tolist() for s in shapes]
    assert walked(out, *shapes) == list(zip(range(int(np.prod(out))), *places, strict=True))


def test_neighbours_that_repeat_alike_are_one_loop():
    assert merged_axes((1, 8, 8, 16), (1, 8, 8, 16), (1, 8, 8, 16)) == [(1024, 1, 1, 1)]
    assert merged_axes((1, 8, 8, 16), (1, 1, 1, 16), (1, 8, 8, 16)) == [(64, 16, 0, 16), (16, 1, 1, 1)]
    assert merged_axes((1, 1), (1, 1), (1, 1)) == [(1, 1, 1, 1)]


@pytest.mark.parametrize("constant", [None, "a", "b"])
def test_the_fast_sum_reads_two_activations_only(constant):
    """A constant of either side stands behind the other branch of the generated file."""
    quant = Quant.per_tensor(0.1, 0)
    graph = Graph("sum", inputs=("a",), outputs=("y",))
    for name in ("a", "b"):
        data = np.ones((1, 4, 4, 4), np.int8) if name == constant else None
        graph.add(
            Tensor(name, (1, 4, 4, 4), "int8", Kind.INPUT if data is None else Kind.CONSTANT, data, quant)
        )
    graph.add(Tensor("y", (1, 4, 4, 4), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(0.2, 0)))
    graph.nodes.append(Node("n", "ADD", ("a", "b"), ("y",), A.Add()))
    assert (addition.shape_of(graph, graph.nodes[0], "exact") is None) == (constant is not None)
