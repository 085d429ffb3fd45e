"""The search over kernels: every candidate is exact, costs are what a network pays, the set is the best."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from fast_layers import expected, layer, random_layer, telling_inputs

from tinyml_edu import cli, ir, mcu
from tinyml_edu.errors import DoesNotFitError, UnknownNameError, UsageError
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import cgen, elf, emulator, planning, toolchain
from tinyml_edu.mcu.boards import get_board
from tinyml_edu.mcu.cgen_layers import EMITTERS, Emitter, fast_body, function_text
from tinyml_edu.mcu.kernels import candidates, measure, pointwise, search, selection
from tinyml_edu.mcu.kernels.selection import Fast

pytestmark = pytest.mark.c
BOARD = get_board("stm32f412")


def all_layers(graph: Graph, requant: str = "exact") -> list[tuple[candidates.Description, Fast]]:
    """Return every candidate of a graph's first node, with its C."""
    node = graph.nodes[0]
    return [(d, candidates.build(d, graph, node, requant)) for d in candidates.describe(graph, node, requant)]


def outputs_of_all(graph: Graph, kernels: list[Fast], x: np.ndarray, folder) -> np.ndarray:
    """Run all kernels of a one-layer graph, in one image, on ``x`` (n, input bytes).

    Returns int8 (n, kernels, output bytes): each kernel writes an output of its own.
    """
    node, y, offsets, end = graph.nodes[0], graph[graph.outputs[0]], {}, 0
    for name in graph.inputs:
        offsets[name], end = end, end + -(-graph[name].nbytes // 16) * 16
    step, texts, seen = -(-y.nbytes // 16) * 16, [], set()
    for i, fast in enumerate(kernels):
        places = offsets | {y.name: end + i * step}
        parts = EMITTERS[node.op](Emitter(graph, planning.placed(places, 0)), i, node)
        texts += [text for name, (text, _) in fast.sources.items() if name not in seen]
        seen |= fast.sources.keys()
        words = ", ".join(f"{w}u" for w in fast.stream.ravel().tolist())
        texts.append(f"static const uint32_t stream_{i}[] = {{{words}}};")
        texts.append(function_text(f"model_layer_{i}", fast_body(parts, fast, f"stream_{i}")))
    size = end + len(kernels) * step
    files = cgen.runtime_files(["te_runtime.h"], "exact") | {
        "model.c": cgen.model_c("all", [f"model_layer_{i}" for i in range(len(kernels))], "\n".join(texts)),
        "model.h": measure._HEADER.format(arena=size, stream="unused", words=1),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    roomy = measure._roomy(BOARD, size)
    image = toolchain.compile_firmware(folder, roomy, stack_bytes=planning.STACK_BYTES)
    result = emulator.emulate(image, roomy, x, len(kernels) * step, output_offset=end)
    assert result.stack_bytes <= planning.STACK_BYTES
    return result.outputs.reshape(len(x), len(kernels), step)[:, :, : y.nbytes]


def wrong_candidates(graph: Graph, folder, requant: str = "exact") -> tuple[int, list[str]]:
    """Return how many candidates a layer has, and the names of those that differ from NumPy."""
    made, x = all_layers(graph, requant), telling_inputs(graph)
    got = outputs_of_all(graph, [fast for _, fast in made], x.reshape(len(x), -1), folder)
    differs = (got != expected(graph, x, requant)[:, None]).any(axis=(0, 2))
    return len(made), [" ".join(made[i][1].sources) for i in np.flatnonzero(differs)]


def tall_layer() -> Graph:
    """Return a layer that Winograd's kernels compute in seven rows of four or five tiles."""
    rng = np.random.default_rng(0)
    weights, pads = rng.integers(-127, 128, (8, 3, 3, 8)), A.Conv2D(padding=(1, 1, 1, 1))
    return layer("CONV_2D", (1, 7, 9, 8), weights, np.arange(8), x_zp=5, gain=1 / 400, attributes=pads)


def small_network() -> Graph:
    """Return a network with two pointwise layers of one shape, a depthwise, a Winograd and an ADD layer."""
    rng = np.random.default_rng(0)
    graph = Graph("small")
    graph.add(Tensor("t0", (1, 9, 10, 16), "int8", Kind.INPUT, quant=Quant.per_tensor(1.0, -3)))

    def append(op: str, shape: tuple[int, ...], attributes: object) -> None:
        i, axis = len(graph.nodes), 3 if op == "DEPTHWISE_CONV_2D" else 0
        scale, zeros = np.full(shape[axis], 1 / 300, np.float32), np.zeros(shape[axis], np.int32)
        w = rng.integers(-127, 128, shape).astype(np.int8)
        graph.add(Tensor(f"w{i}", shape, "int8", Kind.CONSTANT, w, Quant(scale, zeros, axis)))
        b = rng.integers(-900, 900, shape[axis]).astype(np.int32)
        graph.add(Tensor(f"b{i}", b.shape, "int32", Kind.CONSTANT, b, Quant(scale, zeros, 0)))
        graph.nodes.append(Node(f"n{i}", op, (f"t{i}", f"w{i}", f"b{i}"), (f"t{i + 1}",), attributes))
        graph.add(
            Tensor(f"t{i + 1}", (1, 9, 10, 16), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(1.0, -3))
        )

    append("CONV_2D", (16, 1, 1, 16), A.Conv2D())
    append("DEPTHWISE_CONV_2D", (1, 3, 3, 16), A.DepthwiseConv2D(padding=(1, 1, 1, 1)))
    append("CONV_2D", (16, 1, 1, 16), A.Conv2D())
    append("CONV_2D", (16, 3, 3, 16), A.Conv2D(padding=(1, 1, 1, 1)))
    graph.add(Tensor("sum", (1, 9, 10, 16), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(2.0, 0)))
    graph.nodes.append(Node("add", "ADD", ("t4", "t1"), ("sum",), A.Add()))
    graph.inputs, graph.outputs = ("t0",), ("sum",)
    return graph.validate()


@pytest.fixture(scope="module")
def found() -> search.Search:
    return search.search(small_network(), BOARD)


# --- every candidate is exact -----------------------------------------------------------------------------


CASES = [
    *(("pointwise", 1), ("pointwise", 4), ("direct", 2), ("direct", 7), ("depthwise", 1), ("depthwise", 2)),
    *(("fully connected", 0), ("winograd", 1), ("winograd", 3), ("long", 0)),
]


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_every_candidate_equals_numpy(kind, seed, requant, tmp_path):
    count, wrong = wrong_candidates(random_layer(kind, seed), tmp_path, requant)
    assert count >= 1
    assert wrong == []


def test_every_candidate_of_a_tall_layer_equals_numpy(tmp_path):
    assert wrong_candidates(tall_layer(), tmp_path) == (18, [])


@pytest.mark.parametrize(("s1", "s2"), [(0.1, 0.05), (0.003, 0.1)])
def test_every_candidate_of_an_addition_equals_numpy(s1, s2, tmp_path):
    graph = Graph("add")
    for name, scale, zp in (("x", s1, 3), ("p", s2, -7), ("y", 0.09, 5)):
        kind = Kind.ACTIVATION if name == "y" else Kind.INPUT
        graph.add(Tensor(name, (1, 16, 16, 256), "int8", kind, quant=Quant.per_tensor(scale, zp)))
    graph.nodes.append(Node("node", "ADD", ("x", "p"), ("y",), A.Add("relu6")))
    graph.inputs, graph.outputs = ("x", "p"), ("y",)
    pairs = np.indices((256, 256)).reshape(2, -1) - 128  # all there are
    made = all_layers(graph.validate())
    assert [d.unroll for d, _ in made] == [1, 2, 4, 8]
    x1, x2 = (part.reshape(1, 16, 16, 256).astype(np.int8) for part in pairs)
    got = outputs_of_all(graph, [fast for _, fast in made], pairs.astype(np.int8).reshape(1, -1), tmp_path)
    assert (got == ir.run(graph, {"x": x1, "p": x2}).ravel()).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({kind for kind, _ in CASES}))
def test_candidates_of_many_more_random_layers_equal_numpy(kind, tmp_path):
    for seed in range(2000, 2010):
        folder = tmp_path / str(seed)
        folder.mkdir()
        graph = random_layer(kind, seed)
        if all_layers(graph):
            assert wrong_candidates(graph, folder)[1] == [], seed


def test_candidates_cover_loops_tiles_rests_and_kept_rows():
    made = [d for kind, seed in CASES for d, _ in all_layers(random_layer(kind, seed))]
    adjacent = [d for d in made if isinstance(d, candidates.Adjacent)]
    assert any(d.rest for d in adjacent)
    shapes = [d.main for d in adjacent if isinstance(d.main, pointwise.Shape)]
    assert {s.packed for s in shapes} == {True, False}
    assert {bool(s.unroll) for s in shapes} == {True, False}
    assert len({s.tile for s in shapes}) >= 3
    wino = [d for d in made if isinstance(d, candidates.winograd.Shape)]
    assert {d.keeps for d in wino} == {True, False}
    assert len({d.pairs for d in wino}) >= 2
    assert all(d == replace(d) and hash(d) == hash(replace(d)) for d in made)  # plain, comparable values


def test_a_kept_row_that_is_not_moved_is_noticed(tmp_path, monkeypatch):
    # The control of the comparison: rows that stay where they are give wrong sums.
    graph = tall_layer()
    move = candidates.winograd._move
    monkeypatch.setattr(candidates.winograd, "_move", lambda s: move(s).replace("stm r0!", "ldm r0!"))
    wrong = wrong_candidates(graph, tmp_path)[1]
    assert wrong
    assert all("keeps" in name for name in wrong)


# --- what is measured is what a network pays --------------------------------------------------------------


def test_measured_instructions_are_those_inside_the_network(found, tmp_path):
    # The assembly is the same text.  The C around it is too, but tensors lie elsewhere: in each pass of its
    # loops, the compiler may form the addresses of x, y, stream and end anew, two instructions each.
    graph = small_network()
    plan = planning.plan(graph)
    for name, text in cgen.generate(graph, plan, selection=found).items():
        if "/" not in name:
            (tmp_path / name).write_text(text)
    image = toolchain.compile_firmware(tmp_path, BOARD, stack_bytes=planning.STACK_BYTES)
    symbols = elf.read_elf(image).symbols
    functions = [
        s for s in symbols if s.startswith(("te_", "model_layer_")) and symbols[s].kind == "STT_FUNC"
    ]
    machine = emulator.Machine(image, BOARD, watch=tuple(functions))
    machine.infer(bytes(graph["t0"].nbytes), plan.offsets["t0"], 1, 0)
    result = machine.result(np.zeros((1, 1), np.int8))
    measured = {name: found.options[name][i].cost for name, i in found.taken.items()}
    for i, node in enumerate(graph.nodes):
        cost, inside = measured[node.name], result.layer_instructions[f"model_layer_{i}"]
        passes = sum(n for f, n in result.layer_calls.items() if f.startswith(tuple(cost.shared_bytes)))
        assert abs(inside - cost.instructions) <= 8 * passes < 0.2 * inside, node.name
        assert abs(inside - cost.instructions) < 0.02 * inside, node.name
        for name, size in cost.shared_bytes.items():
            if name.startswith(("te_add", "te_pointwise")):  # assembly, and four addresses of eight bytes
                assert abs(size - symbols[name].size) <= 4 * 8
    total = sum(cost.instructions for cost in measured.values())
    assert abs(total - result.instructions) < 0.01 * result.instructions


def test_code_is_measured_in_bytes_of_the_image(found):
    graph, node = small_network(), small_network().nodes[0]
    offer, *_ = selection.offers(graph, node, "exact")
    estimates = {name: size for name, (_, size) in offer.sources.items()}
    (name,) = estimates
    option = next(o for o in found.options["n0"] if o.fast and list(o.fast.sources) == [name])
    assert 0.5 * estimates[name] < option.cost.shared_bytes[name] <= estimates[name]
    code = option.cost.own_bytes + option.cost.shared_bytes[name]
    assert option.row(chosen=True)["code_bytes"] == code > option.cost.shared_bytes[name]


def test_constants_beyond_the_plain_ones_are_counted(found):
    packed, wide = (
        next(o for o in found.options["n0"] if o.name == f"te_pointwise_16_to_16_by_4{tag}")
        for tag in ("", "_wide")
    )
    factors = 2 * 4 + 2 * 4 * 4  # of two channels: first addends; multiplier, addend, shift, place
    plain = 16 * (16 + 4 + 5)  # of a channel: weights, bias, multiplier and exponent
    assert found.options["n0"][-1].constant_bytes == plain
    assert packed.constant_bytes == 8 * (2 * 16 + factors)
    assert wide.constant_bytes == 8 * (4 * 16 + factors)
    assert packed.extra_bytes == packed.constant_bytes - plain
    assert wide.extra_bytes == wide.constant_bytes - plain
    assert found.options["n0"][-1].extra_bytes == 0


def test_a_second_search_measures_nothing(found, monkeypatch):
    monkeypatch.setattr(measure, "_run", None)
    again = search.search(small_network(), BOARD)
    assert again.taken == found.taken
    for name, options in found.options.items():
        assert [o.cost for o in again.options[name]] == [o.cost for o in options]


def test_the_cache_tells_kernels_cores_and_rounding_apart():
    graph = small_network()
    layers = [measure._layer(graph, graph.nodes[i], None) for i in (0, 1)]
    other = replace(BOARD, core="cortex-m7", mcpu="cortex_m7")
    paths = {measure._path(one, b, r) for one in layers for b in (BOARD, other) for r in ("exact", "fast")}
    assert len(paths) == 8


# --- the set is the best, within the limits ---------------------------------------------------------------


def random_options(rng: np.random.Generator) -> list[list[search.Option]]:
    """Return options of four layers that share some of five functions; a plain one in each."""
    layers = []
    for _ in range(4):
        some = []
        for _ in range(3):
            names = rng.choice(5, rng.integers(1, 3), replace=False)
            cost = measure.Cost(
                int(rng.integers(100, 999)),
                int(rng.integers(100, 999)),
                int(rng.integers(10, 99)),
                {f"f{n}": 100 + 37 * int(n) for n in names},
            )
            fast = Fast(dict.fromkeys(cost.shared_bytes, ("", 0)), np.zeros(1, np.uint32), "")
            some.append(search.Option(fast, cost, int(rng.integers(50, 500)), int(rng.integers(0, 300))))
        plain = measure.Cost(2000, 2500, 20, {"plain": 500})
        layers.append([*some, search.Option(None, plain, 100, 0)])
    return layers


def used(options) -> tuple[int, int, int]:
    """Return the code of specialised kernels, extra constants and flash of a set."""
    special = [o for o in options if o.fast is not None]
    shared = {name: size for o in special for name, size in o.cost.shared_bytes.items()}
    code = sum(shared.values()) + sum(o.cost.own_bytes for o in special)
    return code, sum(o.extra_bytes for o in options), search.flash_of(options)


def within(options, limits: search.Limits) -> bool:
    code, extra, flash = used(options)
    fits = code <= limits.code_bytes and extra <= limits.extra_bytes
    return fits and (limits.flash_bytes is None or flash <= limits.flash_bytes)


@pytest.mark.parametrize("goal", search.GOALS)
@pytest.mark.parametrize("seed", range(12))
def test_the_set_is_the_one_that_brute_force_finds(seed, goal):
    rng = np.random.default_rng(seed)
    layers = random_options(rng)
    limits = search.Limits(
        int(rng.integers(200, 900)), int(rng.integers(0, 700)), int(rng.integers(1600, 3000))
    )
    taken = search.solve(layers, limits, goal)
    chosen = [some[i] for some, i in zip(layers, taken)]

    def key(options) -> tuple[int, int]:
        return sum(getattr(o.cost, goal) for o in options), search.flash_of(options)

    best = min(key(s) for s in itertools.product(*layers) if within(s, limits))
    assert within(chosen, limits)
    assert key(chosen) == best
    # The control: taking each layer's cheapest breaks a limit, or the limits would not matter.
    greedy = [min(some, key=lambda o: getattr(o.cost, goal)) for some in layers]
    assert not within(greedy, limits)


def test_sets_of_equal_cost_are_told_apart_by_their_flash():
    plain = random_options(np.random.default_rng(0))[0][-1]
    layers = [[replace(plain, constant_bytes=n) for n in (300, 200, 400)] for _ in range(3)]
    assert search.solve(layers, search.Limits(), "cycles") == [1, 1, 1]


def test_limits_that_nothing_meets_are_an_error():
    with pytest.raises(DoesNotFitError, match="no set of kernels"):
        search.solve(random_options(np.random.default_rng(0)), search.Limits(flash_bytes=100), "cycles")


def test_the_code_budget_is_respected_and_more_of_it_buys_speed(found):
    layers = list(found.options.values())
    spent = []
    for code in (0, 1500, 4000, 10**9):
        limits = search.Limits(code_bytes=code, extra_bytes=10**9)
        options = [some[i] for some, i in zip(layers, search.solve(layers, limits, "instructions"))]
        assert used(options)[0] <= code
        spent.append((used(options)[0], -sum(o.cost.instructions for o in options)))
    assert spent == sorted(spent)
    assert len(set(spent)) == 4  # without a limit, a set that the limit had ruled out
    assert spent[0][0] == 0


def test_the_search_is_never_slower_than_the_model(found):
    graph = small_network()
    model = selection.Selection(graph, "exact")
    total = {"model": 0, "search": 0}
    for node in graph.nodes:
        names = list(model.choose(node).sources)
        options = found.options[node.name]
        total["model"] += next(o for o in options if list(o.cost.shared_bytes) == names).cost.instructions
        total["search"] += options[found.taken[node.name]].cost.instructions
    assert total["search"] < total["model"]


# --- deploy -----------------------------------------------------------------------------------------------


def test_a_searched_deployment_computes_the_same_and_reports_its_candidates(tmp_path):
    graph = small_network()
    plain = mcu.deploy(graph, "stm32f412", tmp_path / "model")
    x = np.random.default_rng(1).integers(-128, 128, (3, 9, 10, 16)).astype(np.int8)
    for goal in search.GOALS:
        made = mcu.deploy(graph, "stm32f412", tmp_path / goal, search=goal)
        y = made.run(x, target="emulate").outputs
        assert np.array_equal(y, np.concatenate([ir.run(graph, one[None]) for one in x]))
        key = {"instructions": "instructions", "cycles": "estimated_cycles"}[goal]
        assert made.report[key] < plain.report[key]
        assert made.report["search"] == goal
        for row in made.report["layers"]:
            assert sum(c["chosen"] for c in row["candidates"]) == 1
            costs = [c[goal] for c in row["candidates"]]
            assert costs == sorted(costs)
            assert row["candidates"][-1]["kernel"].endswith("_s8")  # the plain kernel is the slowest
    assert "candidates" not in plain.report["layers"][0]
    json.dumps(made.report)


def test_a_full_flash_makes_the_search_take_smaller_kernels(tmp_path):
    graph = small_network()
    roomy = mcu.deploy(graph, "stm32f412", tmp_path / "roomy", search="instructions").report
    total = roomy["flash_bytes"]["total"]
    tight = replace(BOARD, flash_bytes=total - 600)
    report = mcu.deploy(graph, tight, tmp_path / "tight", search="instructions").report
    assert report["flash_bytes"]["total"] <= total - 600
    assert report["instructions"] > roomy["instructions"]
    full = mcu.deploy(
        graph, replace(BOARD, flash_bytes=6000), tmp_path / "full", search="instructions"
    ).report
    assert (full["optimize"], full["search"]) == ("size", "model")  # no set of measured kernels fits
    assert "candidates" not in full["layers"][0]
    with pytest.raises(DoesNotFitError, match="FLASH"):
        mcu.deploy(graph, replace(BOARD, flash_bytes=2000), tmp_path / "none", search="instructions")


def test_a_network_without_kernels_to_choose_is_searched_and_may_not_fit(tmp_path):
    graph = Graph("softmax")
    graph.add(Tensor("x", (1, 4000), "int8", Kind.INPUT, quant=Quant.per_tensor(0.1, 0)))
    graph.add(Tensor("y", (1, 4000), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(1 / 256, -128)))
    graph.nodes.append(Node("n", "SOFTMAX", ("x",), ("y",), A.Softmax()))
    graph.inputs, graph.outputs = ("x",), ("y",)
    report = mcu.deploy(graph.validate(), "stm32f412", tmp_path / "x", search="cycles").report
    assert report["layers"][0]["candidates"] == []
    with pytest.raises(DoesNotFitError, match="FLASH"):
        mcu.deploy(graph, replace(BOARD, flash_bytes=1024), tmp_path / "none", search="cycles")


def test_a_search_says_what_it_cannot_do(tmp_path):
    graph = small_network()
    with pytest.raises(UnknownNameError, match="search"):
        mcu.deploy(graph, "stm32f412", tmp_path / "x", search="time")
    with pytest.raises(UsageError, match="use search='model'"):
        mcu.deploy(graph, "rp2040", tmp_path / "x", search="cycles")
    with pytest.raises(UsageError, match="optimize='speed'"):
        mcu.deploy(graph, "stm32f412", tmp_path / "x", search="cycles", optimize="size")


def test_the_command_lists_the_candidates(found, tmp_path, monkeypatch, capsys):
    ir.write_tflite(small_network(), tmp_path / "small.tflite")
    command = ["tinyml", "deploy", str(tmp_path / "small.tflite"), "--board", "stm32f412", "--candidates"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "add --search" in capsys.readouterr().err
    report = tmp_path / "report.json"
    more = ["--search", "cycles", "--out", str(tmp_path / "x"), "--json", str(report)]
    monkeypatch.setattr("sys.argv", [*command, *more])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (None, 0)
    rows = [row for r in json.loads(report.read_text())["layers"] for row in r["candidates"]]
    assert len(rows) == sum(map(len, found.options.values()))
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row['instructions']:,}" in printed
