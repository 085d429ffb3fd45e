"""Tensors that share memory: the plan decides, a symbolic run checks it, and C computes the same codes."""

from __future__ import annotations

import shutil
from dataclasses import replace

import fast_layers
import host_build
import numpy as np
import pytest
from random_graphs import inputs, random_network, sharing_network

from tinyml_edu import ir
from tinyml_edu.errors import UsageError
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import cgen, deployment, planning
from tinyml_edu.mcu.kernels import selection
from tinyml_edu.mcu.planning import PlanError, plan, sharing, verify_values

SEEDS = range(14)


@pytest.fixture(scope="module")
def networks():
    return [sharing_network(seed) for seed in SEEDS]


def elementwise(*rows: tuple[str, str, tuple[str, ...]], size: int = 64, outputs: tuple[str, ...]) -> Graph:
    """Return a graph of (output, op, inputs) over tensors (1, size) and the input "x"."""
    graph, quant = Graph("elementwise"), Quant.per_tensor(1 / 256, -128)
    graph.add(Tensor("x", (1, size), "int8", Kind.INPUT, quant=quant))
    attributes = {
        "ADD": A.Add(),
        "RELU": A.Elementwise(),
        "SUB": A.Sub(),
        "CONCATENATION": A.Concatenation(1),
    }
    for name, op, names in rows:
        shape = (1, sum(graph[n].shape[1] for n in names)) if op == "CONCATENATION" else (1, size)
        graph.add(Tensor(name, shape, "int8", Kind.ACTIVATION, quant=quant))
        graph.nodes.append(Node(f"make {name}", op, names, (name,), attributes[op]))
    graph.inputs, graph.outputs = ("x",), outputs
    return graph.validate()


def writes_over(graph, made, node) -> bool:
    """Whether the plan gives the node's output the address of an input."""
    at = made.offsets[node.outputs[0]]
    return any(made.offsets.get(name) == at for name in node.inputs)


# --- what is shared ------------------------------------------------------------------------------------


def test_a_chain_of_elementwise_ops_needs_one_tensor():
    graph = elementwise(("a", "RELU", ("x",)), ("b", "ADD", ("a", "a")), outputs=("b",))
    made = plan(graph)
    assert made.arena_bytes == 64
    assert plan(graph, in_place=False).arena_bytes == 128


def test_an_operand_that_is_read_later_is_not_written_over():
    graph = elementwise(
        ("a", "RELU", ("x",)), ("b", "RELU", ("a",)), ("c", "ADD", ("a", "b")), outputs=("c",)
    )
    made = plan(graph)
    assert made.offsets["a"] == made.offsets["x"]  # x dies here
    assert made.offsets["b"] != made.offsets["a"]
    assert made.offsets["c"] in (made.offsets["a"], made.offsets["b"])
    assert made.arena_bytes == 128


def test_an_output_of_the_graph_is_not_written_over():
    graph = elementwise(("a", "RELU", ("x",)), ("b", "RELU", ("a",)), outputs=("a", "b"))
    made = plan(graph)
    assert made.offsets["b"] != made.offsets["a"]


def test_parts_are_written_into_the_concatenation_and_a_part_read_twice_is_copied_once():
    graph = elementwise(
        ("a", "RELU", ("x",)), ("b", "RELU", ("x",)), ("c", "CONCATENATION", ("a", "b", "a")), outputs=("c",)
    )
    made = plan(graph)
    at = made.offsets["c"]
    assert (made.offsets["a"] - at) in (0, 128)
    assert made.offsets["b"] - at == 64
    assert not planning.moves_nothing(graph, graph.nodes[2], made.offsets)  # one copy of a is left
    twice = elementwise(
        ("a", "RELU", ("x",)), ("b", "RELU", ("x",)), ("c", "CONCATENATION", ("a", "b")), outputs=("c",)
    )
    made = plan(twice)
    assert planning.moves_nothing(twice, twice.nodes[2], made.offsets)
    assert cgen.layer_symbols(twice, made).keys() == {"make a", "make b"}


def test_a_part_that_would_not_be_aligned_stays_apart():
    rows = [("a", "RELU", ("x",)), ("b", "RELU", ("x",)), ("c", "CONCATENATION", ("a", "b"))]
    made = plan(elementwise(*rows, size=40, outputs=("c",)))
    assert made.offsets["a"] == made.offsets["c"]
    assert made.offsets["b"] != made.offsets["c"] + 40
    assert all(offset % planning.ALIGNMENT == 0 for offset in made.offsets.values())


def test_a_concatenation_along_inner_axes_is_copied():
    graph, quant = Graph("inner"), Quant.per_tensor(1.0, 0)
    for name, shape, kind in [("x", (1, 2, 16), Kind.INPUT), ("y", (1, 2, 32), Kind.ACTIVATION)]:
        graph.add(Tensor(name, shape, "int8", kind, quant=quant))
    graph.nodes.append(Node("join", "CONCATENATION", ("x", "x"), ("y",), A.Concatenation(2)))
    graph.inputs, graph.outputs = ("x",), ("y",)
    made = plan(graph.validate())
    assert made.arena_bytes == 32 + 64
    with pytest.raises(PlanError, match="would overlap its input"):
        verify_values(graph, replace(made, offsets=made.offsets | {"x": made.offsets["y"]}))


def test_a_part_is_not_written_into_the_concatenation_where_that_raises_the_bound():
    # The whole output would be live from its first part on, beside the wide tensor in between.
    graph, quant = Graph("early part"), Quant.per_tensor(1.0, 0)
    graph.add(Tensor("x", (1, 16), "int8", Kind.INPUT, quant=quant))
    for name, source, size in [("a", "x", 16), ("wide", "x", 320), ("b", "wide", 160)]:
        weights = np.ones((size, graph[source].shape[1]), np.int8)
        graph.add(Tensor(f"w {name}", weights.shape, "int8", Kind.CONSTANT, weights, quant))
        graph.add(Tensor(name, (1, size), "int8", Kind.ACTIVATION, quant=quant))
        graph.nodes.append(Node(name, "FULLY_CONNECTED", (source, f"w {name}"), (name,), A.FullyConnected()))
    graph.add(Tensor("y", (1, 176), "int8", Kind.ACTIVATION, quant=quant))
    graph.nodes.append(Node("join", "CONCATENATION", ("a", "b"), ("y",), A.Concatenation(1)))
    graph.inputs, graph.outputs = ("x",), ("y",)
    assert plan(graph.validate()).arena_bytes == 16 + 320 + 160
    assert not planning.moves_nothing(graph, graph.nodes[-1], plan(graph).offsets)


def test_a_factor_that_lies_inside_the_other_operand_is_not_written_over():
    graph, quant = Graph("inside"), Quant.per_tensor(1.0, 0)
    shapes = {
        "x": (1, 1, 1, 16),
        "a": (1, 1, 1, 16),
        "b": (1, 1, 1, 16),
        "c": (1, 2, 1, 16),
        "y": (1, 2, 1, 16),
    }
    for name, shape in shapes.items():
        kind = Kind.INPUT if name == "x" else Kind.ACTIVATION
        graph.add(Tensor(name, shape, "int8", kind, quant=quant))
    graph.nodes = [
        Node("a", "RELU", ("x",), ("a",), A.Elementwise()),
        Node("b", "RELU", ("x",), ("b",), A.Elementwise()),
        Node("c", "CONCATENATION", ("a", "b"), ("c",), A.Concatenation(1)),
        Node("y", "MUL", ("c", "a"), ("y",), A.Mul()),  # a is repeated along the rows of c
    ]
    graph.inputs, graph.outputs = ("x",), ("y",)
    made = plan(graph.validate())  # the symbolic run would refuse y over a
    assert made.offsets["y"] == made.offsets["c"]
    assert abs(made.offsets["a"] - made.offsets["y"]) >= 16


def test_sharing_lowers_the_bound_and_uses_every_way_of_sharing(networks):
    seen = {"depthwise": 0, "joined": 0, "elementwise": 0}
    for graph in networks:
        made, apart = plan(graph), plan(graph, in_place=False)
        assert made.lower_bound_bytes < apart.lower_bound_bytes
        for node in graph.nodes:
            seen["depthwise"] += node.op == "DEPTHWISE_CONV_2D" and writes_over(graph, made, node)
            seen["joined"] += planning.moves_nothing(graph, node, made.offsets)
            seen["elementwise"] += node.op in sharing.OVER_ANY and writes_over(graph, made, node)
    assert min(seen.values()) >= 5, seen


@pytest.mark.parametrize("seed", range(12))
def test_sharing_never_raises_the_bound(seed):
    graph = random_network(seed, layers=12)
    assert plan(graph).lower_bound_bytes <= plan(graph, in_place=False).lower_bound_bytes


def test_a_depthwise_convolution_off_the_peak_keeps_its_own_output(networks):
    # In place it may lose its specialised kernel, so there must be something to gain.
    for graph in networks:
        made = plan(graph)
        for b in made.buffers:
            if b.kind == "scratch":
                without = sharing.Sharing(graph)
                for node in graph.nodes:
                    if node.op in sharing.OVER_ANY:
                        any(without.join(node.outputs[0], n) for n in without._operands(node))
                assert planning.lower_bound(without.buffers()) > made.lower_bound_bytes


def test_a_streamed_input_takes_no_place_in_the_bound():
    graph = elementwise(("a", "RELU", ("x",)), ("b", "ADD", ("a", "x")), outputs=("b",))
    assert plan(graph).lower_bound_bytes == 128
    assert planning.streamed_input_bound(graph) == 64


# --- the verifier --------------------------------------------------------------------------------------


def test_the_symbolic_run_refuses_any_tensor_moved_onto_one_that_is_needed(networks):
    """The oracle of the move: the tensor is still read after the other one is written."""
    found = 0
    for graph in networks:
        made = plan(graph, in_place=False)
        reads = {name: step for step, node in enumerate(graph.nodes) for name in node.inputs}
        born = {name: step for step, node in enumerate(graph.nodes) for name in node.outputs} | {"x": -1}
        for old in born:
            for new in born:
                if born[old] < born[new] < reads.get(old, -1):
                    found += 1
                    with pytest.raises(PlanError, match="overlap"):
                        verify_values(graph, replace(made, offsets=made.offsets | {new: made.offsets[old]}))
    assert found > 50


@pytest.mark.parametrize("op", ["DEPTHWISE_CONV_2D", "MAX_POOL_2D"])
def test_the_symbolic_run_refuses_an_op_that_cannot_work_in_place(op, monkeypatch):
    """A planner that takes a sliding window for an element-wise op."""
    graph = depthwise(4, 4, 8)
    if op == "MAX_POOL_2D":
        window = A.Pool2D((3, 3), (1, 1), (1, 1, 1, 1))
        graph.nodes[0] = replace(graph.nodes[0], op=op, inputs=("x",), attrs=window)
    plan(graph)
    monkeypatch.setattr(sharing, "OVER_ANY", (*sharing.OVER_ANY, op))
    with pytest.raises(PlanError, match="would overlap its input"):
        plan(graph)


def test_the_symbolic_run_catches_a_planner_whose_lives_end_one_step_early(monkeypatch, networks):
    class OffByOne(sharing.Sharing):
        def __init__(self, graph, scratch=None):
            super().__init__(graph, scratch)
            self.dies = {name: max(step - 1, self.born[name]) for name, step in self.dies.items()}

    monkeypatch.setattr(sharing, "Sharing", OffByOne)
    caught = 0
    for graph in networks:
        try:
            plan(graph)
        except PlanError:
            caught += 1
    assert caught >= len(networks) - 1  # in one, no tensor comes to lie where it does harm


def test_the_symbolic_run_refuses_scratch_that_is_too_small(networks):
    for graph in networks:
        made = plan(graph)
        scratch = [b for b in made.buffers if b.kind == "scratch"]
        if scratch:
            short = replace(scratch[0], size_bytes=scratch[0].size_bytes // 4)
            buffers = tuple(short if b is scratch[0] else b for b in made.buffers)
            with pytest.raises(PlanError, match="would overlap"):
                verify_values(graph, replace(made, buffers=buffers))
            return
    pytest.fail("no network has scratch")


def test_the_generator_refuses_the_plan_of_another_graph(networks):
    for plans_of, graph in [(networks[0], networks[1]), (networks[1], networks[0])]:
        with pytest.raises(UsageError, match="the plan is not one of"):
            cgen.generate(graph, plan(plans_of))


# --- the C -----------------------------------------------------------------------------------------------


@pytest.mark.c
@pytest.mark.parametrize("requant", ["exact", "fast"])
def test_networks_that_share_memory_equal_numpy(networks, tmp_path, requant):
    runners = host_build.build(tmp_path, networks, requant=requant, in_place=True)
    x = {g.name: inputs(g, 1) for g in networks}
    wanted = {g.name: ir.run(g, x[g.name], requant=requant) for g in networks}
    assert host_build.differences(networks, runners, wanted, x) == {}


IN_PLACE = "te_depthwise_conv2d_inplace_s8.c"
MUTATIONS = {
    "keeps one row less": (IN_PLACE, "next < i - p->pad_top + reach;", "next < i - p->pad_top + reach - 1;"),
    "copies a row after it was written over": (IN_PLACE, "int32_t next = 0;", "int32_t next = 1;"),
    "never goes round the ring": (IN_PLACE, "slot = slot >= reach ? slot - reach : slot;", ""),
    "starts at the first row of the ring": (IN_PLACE, "ty.start % reach", "0"),
    "reads the next column of weights": (IN_PLACE, "p->kernel_w + tx.begin", "p->kernel_w + tx.begin + 1"),
    "treats the first four channels only": (IN_PLACE, "keep_row(p, x + c,", "keep_row(p, x,"),
    "forgets the zero point": (IN_PLACE, "(from[c] - p->x_zp)", "from[c]"),
}


@pytest.mark.c
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_comparison_catches_an_in_place_kernel_that(networks, tmp_path, mutation, monkeypatch):
    monkeypatch.setattr(host_build, "STRICT", ("-std=c99", "-w"))
    runners = host_build.build(tmp_path, networks[:5], mutation=MUTATIONS[mutation], in_place=True)
    x = {g.name: inputs(g, 1) for g in networks[:5]}
    wanted = {g.name: ir.run(g, x[g.name]) for g in networks[:5]}
    assert host_build.differences(networks[:5], runners, wanted, x)


@pytest.mark.c
@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc with its sanitizers is not installed")
def test_networks_that_share_memory_are_clean_under_sanitizers(networks, tmp_path):
    batches = [inputs(g, 2) for g in networks]
    outputs = host_build.run_sanitized(tmp_path, networks, batches, len(batches[0]), in_place=True)
    for graph, x, y in zip(networks, batches, outputs, strict=True):
        assert np.array_equal(y.ravel(), ir.run(graph, x).ravel()), graph.name


@pytest.mark.c
@pytest.mark.parametrize(
    ("seed", "board"), [(1, "stm32f412"), (4, "stm32f412"), (8, "stm32f103"), (11, "stm32f746")]
)
def test_networks_that_share_memory_agree_on_boards(tmp_path, seed, board):
    graph = sharing_network(seed)
    made = deployment.deploy(graph, board, tmp_path / "net")
    x = inputs(graph, seed, n=1)
    assert made.report["sram_bytes"]["scratch"] > 0
    assert made.report["arena_bytes"] < plan(graph, in_place=False).arena_bytes
    assert np.array_equal(made.run(x, "emulate").outputs, ir.run(graph, x))


@pytest.mark.c
@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_more_networks_that_share_memory_equal_numpy(tmp_path, part):
    graphs = [sharing_network(seed, layers=9) for seed in range(100 + 10 * part, 110 + 10 * part)]
    x = {g.name: inputs(g, 3) for g in graphs}
    wanted = {g.name: ir.run(g, x[g.name]) for g in graphs}
    assert host_build.differences(graphs, host_build.build(tmp_path, graphs, in_place=True), wanted, x) == {}
    graph = graphs[part]
    found = fast_layers.differences_of_a_network(graph, inputs(graph, 5, n=1), tmp_path / "board")
    assert not any(found)


def depthwise(height: int, width: int, channels: int, gain: float = 1 / 64) -> Graph:
    rng = np.random.default_rng(height)
    attributes = A.DepthwiseConv2D((1, 1), (1, 1, 1, 1))
    weights, bias = rng.integers(-127, 128, (1, 3, 3, channels)), rng.integers(-99, 99, channels)
    shape = (1, height, width, channels)
    return fast_layers.layer("DEPTHWISE_CONV_2D", shape, weights, bias, gain=gain, attributes=attributes)


@pytest.mark.c
@pytest.mark.parametrize(
    ("height", "width", "fast"), [(8, 9, True), (7, 6, False), (4, 60, False), (2, 48, True)]
)
def test_a_specialised_depthwise_kernel_works_in_place_where_it_reads_nothing_twice(
    tmp_path, height, width, fast
):
    graph = depthwise(height, width, 8)
    made = plan(graph)
    assert made.arena_bytes < 2 * graph["x"].nbytes
    assert made.offsets["x"] == made.offsets["y"]
    assert made.scratch("node")[1] >= 3 * width * 4
    text = cgen.generate(graph, made)["model.c"]
    assert "te_depthwise_conv2d_inplace_s8(" in text
    assert ("#if TE_DSP" in text) == fast
    assert not any(fast_layers.differences(graph, fast_layers.telling_inputs(graph), tmp_path))


@pytest.mark.c
@pytest.mark.parametrize(("height", "width"), [(7, 6), (4, 60)])
def test_the_specialised_kernel_is_wrong_in_place_where_it_is_not_offered(
    tmp_path, monkeypatch, height, width
):
    # The control of the test above: an odd last row, or a second block of columns, is read again.
    monkeypatch.setattr(selection.depthwise.Shape, "in_place", True)
    graph = depthwise(height, width, 8)
    assert any(fast_layers.differences(graph, fast_layers.telling_inputs(graph), tmp_path))


# --- scratch that a specialised kernel asks for ----------------------------------------------------------


def with_scratch(monkeypatch, size: int) -> None:
    """Give FULLY_CONNECTED a kernel that copies its input to scratch first and uses ``size`` bytes there."""

    def maker(graph, node, requant):
        count, outputs = graph[node.inputs[0]].nbytes, graph[node.outputs[0]].nbytes
        source = (
            "static void te_through(const int8_t *x, int8_t *y, int8_t *scratch) {\n"
            f"    for (int i = 0; i < {size}; i++) scratch[i] = i < {count} ? x[i] : 0;\n"
            f"    for (int o = 0; o < {outputs}; o++) y[o] = scratch[o];\n}}"
        )
        stream = np.zeros(1, np.uint32)
        yield selection.Fast({"te_through": (source, 64)}, stream, "te_through($x, $y, $scratch);", size)

    monkeypatch.setitem(selection._MAKERS, "FULLY_CONNECTED", maker)


def dense() -> Graph:
    weights = np.ones((8, 64), int)
    return fast_layers.layer("FULLY_CONNECTED", (1, 64), weights, np.zeros(8, int), x_zp=0, y_zp=0)


@pytest.mark.c
def test_a_kernel_gets_the_scratch_that_it_asks_for(tmp_path, monkeypatch):
    graph = dense()
    with_scratch(monkeypatch, 300)
    assert cgen.scratch_requests(graph) == {"node": 300}
    assert cgen.scratch_requests(graph, optimize="size") == {}
    made = deployment.deploy(graph, "stm32f412", tmp_path / "net")
    assert made.report["sram_bytes"]["scratch"] == 304
    assert made.report["arena_bytes"] == made.report["lower_bound_bytes"] == 64 + 16 + 304
    x = np.arange(-32, 32, dtype=np.int8)[None]
    # The stand-in kernel returns the first inputs, so the output shows that scratch was used and reached.
    assert np.array_equal(made.run(x, "emulate").outputs, x[:, :8])
    text = (tmp_path / "net" / "model.c").read_text()
    assert "scratch of node" in text  # in the memory map


def test_a_kernel_whose_scratch_is_not_planned_is_not_called(monkeypatch):
    graph = dense()
    with_scratch(monkeypatch, 300)
    for scratch, called in [(None, False), ({"node": 284}, False), ({"node": 300}, True)]:
        text = cgen.generate(graph, plan(graph, scratch=scratch))["model.c"]
        assert ("te_through(te_arena" in text) == called
