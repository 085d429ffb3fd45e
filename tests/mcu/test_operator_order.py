"""Operator reordering: the best of all orders on small graphs, never worse, and the same network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import inputs, random_network, sharing_network

from tinyml_edu import ir
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import deployment, planning
from tinyml_edu.mcu.planning import lower_bound, reorder, share

QUANT = Quant.per_tensor(1.0, 0)


def random_graph(seed: int, nodes: int = 7) -> Graph:
    """Return a random graph over tensors (1, size): reductions, growths, sums; any order."""
    rng, graph = np.random.default_rng(seed), Graph(f"order_{seed}")
    graph.add(Tensor("x", (1, 64), "int8", Kind.INPUT, quant=QUANT))
    names = ["x"]
    for i in range(nodes):
        source = str(rng.choice(names))
        alike = [n for n in names if graph[n].shape == graph[source].shape and n != source]
        y = f"y{i}"
        if alike and rng.random() < 0.5:
            graph.add(Tensor(y, graph[source].shape, "int8", Kind.ACTIVATION, quant=QUANT))
            graph.nodes.append(Node(y, "ADD", (source, str(rng.choice(alike))), (y,), A.Add()))
        else:
            size = int(rng.choice([16, 64, 160]))
            weights = graph.add(
                Tensor(f"w{i}", (size, graph[source].shape[1]), "int8", Kind.CONSTANT,
                       np.ones((size, graph[source].shape[1]), np.int8), QUANT)
            )  # fmt: skip
            graph.add(Tensor(y, (1, size), "int8", Kind.ACTIVATION, quant=QUANT))
            graph.nodes.append(Node(y, "FULLY_CONNECTED", (source, weights), (y,), A.FullyConnected()))
        names.append(y)
    graph.inputs, graph.outputs = ("x",), (names[-1],)
    return graph.validate()


def all_orders(graph: Graph):
    """Yield every order of the nodes in which each comes after those whose outputs it reads."""

    def extend(done: list[Node], left: list[Node], ready: set[str]):
        if not left:
            yield done
        for node in left:
            if all(n in ready or graph[n].kind is Kind.CONSTANT for n in node.inputs):
                rest = [other for other in left if other is not node]
                yield from extend([*done, node], rest, ready | set(node.outputs))

    yield from extend([], graph.nodes, set(graph.inputs))


def bound(graph: Graph) -> int:
    return lower_bound(share(graph).buffers())


def two_arms() -> Graph:
    """Two arms that widen and narrow again; side by side they need both wide tensors at once."""
    graph = Graph("arms")
    graph.add(Tensor("x", (1, 16), "int8", Kind.INPUT, quant=QUANT))
    for name, source, size in [("a", "x", 320), ("b", "x", 320), ("c", "a", 16), ("d", "b", 16)]:
        wide = graph[source].shape[1]
        data = np.ones((size, wide), np.int8)
        graph.add(Tensor(f"w {name}", data.shape, "int8", Kind.CONSTANT, data, QUANT))
        graph.add(Tensor(name, (1, size), "int8", Kind.ACTIVATION, quant=QUANT))
        graph.nodes.append(Node(name, "FULLY_CONNECTED", (source, f"w {name}"), (name,), A.FullyConnected()))
    graph.add(Tensor("y", (1, 16), "int8", Kind.ACTIVATION, quant=QUANT))
    graph.nodes.append(Node("y", "ADD", ("c", "d"), ("y",), A.Add()))
    graph.inputs, graph.outputs = ("x",), ("y",)
    return graph.validate()


def test_one_arm_after_the_other_needs_one_wide_tensor():
    schedule = reorder(two_arms())
    assert (schedule.given_bound_bytes, schedule.bound_bytes) == (320 + 320 + 16, 16 + 320 + 16)
    assert schedule.exact
    assert [node.name for node in schedule.graph.nodes] in (list("acbdy"), list("bdacy"))


def test_the_order_is_the_best_of_all_orders_on_small_graphs():
    lower = 0
    for seed in range(40):
        graph = random_graph(seed)
        schedule = reorder(graph)
        best = min(bound(replace(graph, nodes=list(order))) for order in all_orders(graph))
        assert schedule.exact
        assert schedule.bound_bytes == bound(schedule.graph) == best, seed
        lower += schedule.bound_bytes < schedule.given_bound_bytes
    assert lower >= 7  # or the given orders were already the best


def test_a_search_without_the_peak_of_a_step_is_noticed(monkeypatch):
    """The control: a program that minimizes what is left after each node, not what is live while it runs."""
    real = planning.ordering._Frontiers._run

    def after_the_node_only(self, i, done, state):
        new = real(self, i, done, state)
        return replace(new, peak=max(state.peak, new.live))

    monkeypatch.setattr(planning.ordering._Frontiers, "_run", after_the_node_only)
    worse = 0
    for seed in range(20):
        graph = random_graph(seed)
        best = min(bound(replace(graph, nodes=list(order))) for order in all_orders(graph))
        worse += reorder(graph).bound_bytes > best
    assert worse > 0


@pytest.mark.parametrize("width", [1, 2])
def test_a_narrow_beam_is_never_worse_than_the_given_order_and_says_that_it_is_a_beam(width):
    beams = 0
    for seed in range(30):
        schedule = reorder(random_graph(seed, nodes=12), width=width)
        assert schedule.bound_bytes == bound(schedule.graph) <= schedule.given_bound_bytes
        beams += not schedule.exact
    assert beams > 5


def test_scratch_counts_while_its_node_runs():
    graph = two_arms()
    schedule = reorder(graph, {"c": 4096})
    assert schedule.bound_bytes == lower_bound(share(schedule.graph, {"c": 4096}).buffers())
    assert schedule.bound_bytes >= 4096 + 320 + 16


def test_a_graph_in_the_best_order_is_returned_as_it_is():
    graph = reorder(two_arms()).graph
    assert reorder(graph).graph is graph


@pytest.mark.parametrize("seed", range(6))
def test_a_reordered_network_computes_the_same_codes(seed):
    graph = sharing_network(seed) if seed % 2 else random_network(seed, layers=12)
    schedule = reorder(graph)
    assert sorted(node.name for node in schedule.graph.nodes) == sorted(node.name for node in graph.nodes)
    x = inputs(graph, seed, n=1)
    assert np.array_equal(ir.run(schedule.graph, x), ir.run(graph, x))
    assert schedule.bound_bytes <= schedule.given_bound_bytes


@pytest.mark.c
def test_deploy_reorders_where_that_lowers_the_bound(tmp_path):
    graph = two_arms()
    made = deployment.deploy(graph, "stm32f412", tmp_path / "net")
    assert made.report["arena_bytes"] == 16 + 320 + 16
    assert [row["name"] for row in made.report["layers"]] != [node.name for node in graph.nodes]
    x = np.arange(-8, 8, dtype=np.int8)[None]
    for target in deployment.TARGETS:
        assert np.array_equal(made.run(x, target).outputs, ir.run(graph, x)), target
