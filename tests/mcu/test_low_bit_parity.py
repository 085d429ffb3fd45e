"""Activations of fewer than 8 bits in C: the kernels clamp to the width that NumPy clamps to."""

from __future__ import annotations

import host_build
import numpy as np
import pytest
from random_graphs import inputs, random_network

from tinyml_edu import ir
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant
from tinyml_edu.ir.ops import FIXED_SCALES, ONE_SCALE_OPS, OPS

pytestmark = pytest.mark.c


def narrowed(graph: Graph, bits: int) -> Graph:
    """Return the graph with every output that has a scale of its own, unless prescribed, cut to ``bits``."""
    result = Graph(graph.name, dict(graph.tensors), list(graph.nodes), graph.inputs, graph.outputs)
    for node in graph.nodes:
        name = node.outputs[0]
        if node.op in ONE_SCALE_OPS:
            quant = result[node.inputs[0]].quant
            result.update(name, quant=quant)
            for constant in [n for n in node.inputs if result[n].kind is Kind.CONSTANT]:
                result.update(constant, quant=quant, data=result[constant].data.clip(*quant.limits))
        elif node.op not in FIXED_SCALES:
            scale, zero_point = graph[name].quant.item()
            low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            result.update(name, quant=Quant.per_tensor(scale, min(max(zero_point, low), high), bits))
    return result.validate()


def limits_hold(graph: Graph, x: np.ndarray) -> bool:
    values = ir.run(graph, x, keep=True)
    spans = ((v, graph[n].quant.limits) for n, v in values.items() if graph[n].kind is not Kind.INPUT)
    return all(v.min() >= low and v.max() <= high for v, (low, high) in spans)


def test_random_networks_of_narrow_activations_agree_with_numpy(tmp_path):
    graphs = [narrowed(random_network(seed), 2 + seed % 6) for seed in range(24)]
    assert {node.op for graph in graphs for node in graph.nodes} == set(OPS)
    for graph, run in zip(graphs, host_build.build(tmp_path, graphs)):
        x = inputs(graph, 7)
        assert limits_hold(graph, x)
        np.testing.assert_array_equal(run(x), ir.run(graph, x).reshape(len(x), -1))


def mean_of(bits: int) -> Graph:
    graph = Graph("mean", inputs=("x",), outputs=("y",))
    graph.add(ir.Tensor("x", (1, 2, 2, 3), "int8", Kind.INPUT, quant=Quant.per_tensor(1.0, 0)))
    graph.add(ir.Tensor("y", (1, 3), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(1.0, 0, bits)))
    graph.nodes.append(Node("y", "MEAN", ("x",), ("y",), ir.attrs.Mean((1, 2))))
    return graph.validate()


def test_the_mean_is_clamped_to_its_width(tmp_path):
    x = np.broadcast_to(np.array([-100, 3, 100], np.int8), (1, 2, 2, 3)).copy()
    narrow, wide = host_build.build(tmp_path, [mean_of(4), mean_of(8)])
    assert narrow(x).tolist() == [[-8, 3, 7]]
    assert wide(x).tolist() == [[-100, 3, 100]]  # control: the width is what clamps
