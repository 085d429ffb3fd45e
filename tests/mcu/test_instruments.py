"""Histogram, access trace and start-up: hand-written code and the memory plan are the oracles."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fast_layers import layer, random_layer
from firmware_projects import MIXED_C, assembly, firmware
from random_graphs import inputs, random_network

from tinyml_edu import ir
from tinyml_edu.errors import ToolchainError, UsageError
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph
from tinyml_edu.mcu import deploy, elf, instruments, toolchain
from tinyml_edu.mcu.count_hook import load_unicorn
from tinyml_edu.mcu.deployment import Deployment
from tinyml_edu.mcu.emulator import EmulationResult, Machine, emulate

pytestmark = pytest.mark.c

CORES = ["rp2040", "stm32f103", "stm32f412", "stm32f746"]
NOTHING = np.zeros((1, 4), np.int8)
STARTUP_MOST = 32  # FPU, the two loops over nothing, the call


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> list[tuple[Graph, Deployment]]:
    """A network of every op on the plain kernels, and layers with a specialised kernel."""
    graphs = [random_network(6, layers=10), *(random_layer(k, 0) for k in ("pointwise", "winograd"))]
    folder = tmp_path_factory.mktemp("networks")
    return [(graph, deploy(graph, "stm32f412", folder / str(i))) for i, graph in enumerate(graphs)]


# -- mnemonics ----------------------------------------------------------------------------------


def two_layers(nops: int = 2) -> list[str]:
    return [
        assembly("helper", *["nop"] * nops, "bx lr"),
        assembly("model_layer_0", "push {r4, lr}", "bl helper", "bl helper", "pop {r4, pc}"),
        assembly(
            "model_layer_1",
            *("movs r0, #0", "movw r1, #4660", "cmp r0, r1", "beq 1f", "adds r0, #0", "1: b helper"),
        ),
        assembly(
            "model_invoke",
            *("push {r4, lr}", "bl model_layer_0", "bl model_layer_1", "movs r0, #0", "pop {r4, pc}"),
        ),
    ]


def test_each_layer_has_the_instructions_of_its_text_and_of_its_callees(tmp_path):
    result = emulate(firmware(tmp_path, "stm32f412", *two_layers()), "stm32f412", NOTHING, 4)
    assert result.mnemonics == {
        "model_layer_0": {"push": 1, "bl": 2, "nop": 4, "bx": 2, "pop": 1},
        "model_layer_1": {"movs": 1, "movw": 1, "cmp": 1, "beq": 1, "adds": 1, "b": 1, "nop": 2, "bx": 1},
        "model_invoke": {"push": 1, "bl": 2, "movs": 1, "pop": 1},
    }
    for name, total in result.layer_instructions.items():
        assert sum(result.mnemonics[name].values()) == total


def test_one_more_instruction_changes_its_own_bar_and_no_other(tmp_path):
    """The control: three calls of the helper, one nop more in it."""
    few, more = (
        instruments.total_mnemonics(
            emulate(
                firmware(tmp_path / str(n), "stm32f412", *two_layers(n)), "stm32f412", NOTHING, 4
            ).mnemonics
        )
        for n in (2, 3)
    )
    assert {name: more[name] - few[name] for name in more if more[name] != few[name]} == {"nop": 3}


def test_a_wide_encoding_is_the_same_mnemonic(tmp_path):
    code = assembly("model_invoke", "adds.w r1, r1, #1", "adds.n r1, r1, #1", "movs r0, #0", "bx lr")
    result = emulate(firmware(tmp_path, "stm32f412", code), "stm32f412", NOTHING, 4)
    assert result.mnemonics == {"model_invoke": {"adds": 2, "movs": 1, "bx": 1}}


@pytest.mark.parametrize("board", CORES)
def test_histograms_sum_to_the_last_inference_on_both_counters(tmp_path, board, rng):
    elf_path = firmware(tmp_path, board, MIXED_C)
    codes = rng.integers(-128, 128, (2, 64), np.int8)
    fast = emulate(elf_path, board, codes, 64, output_offset=64)
    plain = Machine(elf_path, board, each=True)
    for row in codes:
        plain.infer(row.tobytes(), 0, 64, 64)
    assert fast.mnemonics == plain.result(fast.outputs).mnemonics
    assert sum(sum(h.values()) for h in fast.mnemonics.values()) == fast.instructions_each[-1]


def test_the_histogram_of_a_network_sums_to_its_instructions(networks):
    for graph, made in networks:
        result = made.run(inputs(graph, 0, n=1), "emulate")
        assert sum(sum(h.values()) for h in result.mnemonics.values()) == result.instructions
        rows = {row["name"]: row["instructions"] for row in result.layers if row["instructions"]}
        assert {n: sum(h.values()) for n, h in result.mnemonics.items() if n != "model_invoke"} == rows
        assert made.run(inputs(graph, 0, n=1), "host").mnemonics == {}


def test_the_specialised_kernel_is_seen_to_multiply_pairs(networks):
    plain, pointwise, _ = (made.run(inputs(graph, 0, n=1), "emulate").mnemonics for graph, made in networks)
    assert instruments.total_mnemonics(pointwise)["smlad"] > 0
    graph = networks[1][0]
    size = deploy(graph, "stm32f103", networks[1][1].path.parent / "m3").run(inputs(graph, 0, n=1), "emulate")
    assert "smlad" not in instruments.total_mnemonics(size.mnemonics)  # the M3 has no such instruction
    assert set(plain) > {"model_invoke"}


# -- accesses -----------------------------------------------------------------------------------


def buffers(made: Deployment, graph: Graph, names: tuple[str, ...]) -> np.ndarray:
    """Return which bytes of the arena belong to the activations among ``names``."""
    offsets = json.loads((made.path / "plan.json").read_text())["offsets"]
    inside = np.zeros(made.report["arena_bytes"], bool)
    for name in names:
        if name in offsets:
            inside[offsets[name] : offsets[name] + graph[name].nbytes] = True
    return inside


def differing(made: Deployment, graph: Graph, trace: instruments.ArenaTrace) -> list[str]:
    """Return the nodes that do not write exactly their output, or read outside of their inputs and output."""
    wrong = []
    nodes = {node.name: node for node in graph.nodes}
    for name, reads, writes in zip(trace.layers, trace.layer_reads, trace.layer_writes, strict=True):
        inputs_, outputs = (
            buffers(made, graph, names) for names in (nodes[name].inputs, nodes[name].outputs)
        )
        if not np.array_equal(writes > 0, outputs) or (reads[~(inputs_ | outputs)] > 0).any():
            wrong.append(name)
    return wrong


def test_each_layer_writes_exactly_its_output_and_reads_its_inputs(networks):
    for graph, made in networks:
        trace = made.run(inputs(graph, 0, n=1), "emulate", trace=True, cell_bytes=1).trace
        assert trace.layers == tuple(node.name for node in graph.nodes if node.op != "RESHAPE")
        assert differing(made, graph, trace) == []
        read = trace.layer_reads.sum(axis=0)
        assert (read[buffers(made, graph, graph.inputs)] > 0).any()


def test_a_layer_that_writes_beside_its_output_is_noticed(networks, tmp_path):
    """The control: one byte of somebody else's, in a copy of the project."""
    graph, made = networks[0]
    last = graph.nodes[-1]
    free = int(np.flatnonzero(~buffers(made, graph, (*last.inputs, *last.outputs)))[0])
    folder = tmp_path
    for path in [*made.path.glob("*.[ch]"), made.path / "plan.json"]:
        (folder / path.name).write_bytes(path.read_bytes())
    text = (folder / "model.c").read_text()
    at = text.rindex(f"te_status model_layer_{len(graph.nodes) - 1}(void) {{")
    body = text.index("{", at) + 1
    stray = f"\n    ((volatile int8_t *)te_arena)[{free}] = 1;"
    (folder / "model.c").write_text(text[:body] + stray + text[body:])
    toolchain.compile_firmware(folder, "stm32f412", out=folder / "firmware.elf", stack_bytes=2048)
    trace = Deployment.load(folder).run(inputs(graph, 0, n=1), "emulate", trace=True, cell_bytes=1).trace
    assert differing(made, graph, trace) == [last.name]


@pytest.mark.parametrize("cell_bytes", [1, 7, 16, 10_000])
def test_cells_add_up_to_the_bytes(tmp_path, cell_bytes):
    body = """__attribute__((noinline)) void model_layer_0(void) {
        volatile uint8_t *bytes = (volatile uint8_t *)te_arena;
        for (int i = 0; i < 90; ++i) bytes[i + 10] = bytes[i]; }
    int model_invoke(void) {
        volatile uint32_t *words = (volatile uint32_t *)te_arena;
        words[20] = words[0];
        model_layer_0();
        return 0; }\n"""
    elf_path = firmware(tmp_path, "stm32f412", body, arena_bytes=100)
    trace = emulate(elf_path, "stm32f412", NOTHING, 4, trace=True, cell_bytes=cell_bytes).trace
    rows = dict(zip(trace.layers, zip(trace.layer_reads, trace.layer_writes, strict=True), strict=True))
    assert set(rows) == {"model_layer_0", "model_invoke", instruments.OUTSIDE}
    reads, writes = np.zeros(100, int), np.zeros(100, int)
    reads[:90], writes[10:] = 1, 1
    starts = np.arange(0, 100, cell_bytes)
    assert rows["model_layer_0"][0].tolist() == np.add.reduceat(reads, starts).tolist()
    assert rows["model_layer_0"][1].tolist() == np.add.reduceat(writes, starts).tolist()
    assert (rows["model_invoke"][0].sum(), rows["model_invoke"][1].sum()) == (4, 4)
    for by_byte, by_layer in ((trace.reads, trace.layer_reads), (trace.writes, trace.layer_writes)):
        assert by_layer.sum(axis=0).tolist() == np.add.reduceat(by_byte, starts).tolist()
    assert not rows[instruments.OUTSIDE][0].any()


def test_a_trace_without_cells_or_on_the_host_is_refused(networks):
    graph, made = networks[1]
    with pytest.raises(UsageError, match="only the emulated core"):
        made.run(inputs(graph, 0, n=1), "host", trace=True)
    with pytest.raises(UsageError, match="at least one byte"):
        made.run(inputs(graph, 0, n=1), "emulate", trace=True, cell_bytes=0)


# -- a traced run is the run ---------------------------------------------------------------------

IT_BLOCKS = {
    "load": ["itt eq", "moveq r3, #7", "ldreq r2, [r4]"],
    "store": ["itt eq", "moveq r3, #7", "streq r3, [r4]"],
    "else": ["ite ne", "movne r3, #9", "ldreq r3, [r4, #4]"],
    "two pages": ["b.w 1f", ".balign 4096", ".space 4092", "1: itt eq", "ldreq r2, [r4]", "moveq r3, #7"],
}
"""Instructions of a block under Z that put 7 into r3; "two pages" is in two pieces of translated code."""


def around_it_blocks(block: list[str]) -> list[str]:
    """Return functions that store 7 and then, if the block ends where it ends, 2 and 5.

    Behind the block comes code that starts with an instruction which would not set the flags (``sets``) or be
    skipped (``skips``) inside of it.  No access lies between.
    """
    arena = ["movw r4, #:lower16:te_arena", "movt r4, #:upper16:te_arena"]
    pointer = ["movw r5, #:lower16:skips", "movt r5, #:upper16:skips", "orr r5, r5, #1"]
    return [
        assembly("sets", "movs r2, #1", "ite eq", "moveq r1, #1", "movne r1, #2", "bx lr"),
        assembly("skips", "movs r1, #5", "bx lr"),
        assembly(
            "model_invoke",
            *("push {r4, r5, r6, lr}", *arena, *pointer),
            *("movs r0, #0", *block, "bl sets", "strb r3, [r4, #8]", "strb r1, [r4, #9]"),
            *("movs r1, #0", *block, "cmp r4, #0", "blx r5", "strb r1, [r4, #10]"),
            *("movs r0, #0", "pop {r4, r5, r6, pc}"),
        ),
    ]


def run_it_block(folder, name: str, *, trace: bool) -> EmulationResult:
    elf_path = firmware(folder, "stm32f412", *around_it_blocks(IT_BLOCKS[name]))
    codes = np.array([[1, 0, 0, 0, 7, 0, 0, 0]], np.int8)
    return emulate(elf_path, "stm32f412", codes, 3, output_offset=8, trace=trace)


def account(result: EmulationResult) -> dict[str, object]:
    """Return all that a run tells but its trace."""
    return {key: value for key, value in vars(result).items() if key not in ("outputs", "trace")} | {
        "outputs": result.outputs.tolist()
    }


def spoil(monkeypatch, folder) -> None:
    """Let the hook write to a register that nobody uses: the state of an IT block stays as restored.

    Skips the test with an emulator that restores none (unicorn 2.1.1).
    """
    arm = load_unicorn().arm_const
    monkeypatch.setattr(arm, "UC_ARM_REG_EPSR", arm.UC_ARM_REG_C13_C0_3)
    if account(run_it_block(folder, "load", trace=True)) == account(
        run_it_block(folder, "load", trace=False)
    ):
        pytest.skip("this unicorn leaves the state of an IT block alone")


@pytest.mark.parametrize("name", IT_BLOCKS)
def test_a_traced_access_inside_an_it_block_leaves_the_code_behind_it_alone(tmp_path, name):
    plain, traced = (run_it_block(tmp_path, name, trace=trace) for trace in (False, True))
    assert plain.outputs.tolist() == [[7, 2, 5]]
    assert account(traced) == account(plain)


@pytest.mark.parametrize("name", ["load", "store", "else"])
def test_code_behind_an_it_block_would_be_conditional_too(tmp_path, monkeypatch, name):
    """The control: what the emulator does to a program whose accesses are traced."""
    spoil(monkeypatch, tmp_path)
    assert run_it_block(tmp_path, name, trace=True).outputs[0].tolist()[1:] == [1, 0]


def emulated(made: Deployment, codes: np.ndarray, **options) -> EmulationResult:
    ends = {"input_offset": made.input.offset, "output_offset": made.output.offset}
    rows = codes.reshape(len(codes), -1)
    return emulate(made.path / "firmware.elf", made.board, rows, made.output.size_bytes, **ends, **options)


@pytest.fixture(scope="module")
def shared_depthwise(tmp_path_factory) -> tuple[Graph, Deployment]:
    """A depthwise layer of 5 channels, two of them constant, with the kernel that layers share.

    The kernel reads and writes inside of an IT block, then calls through a pointer.
    """
    rng = np.random.default_rng(0)
    weights, bias = rng.integers(-127, 128, (1, 3, 3, 5)), np.array([2**30, 40, -(2**30), -60, 7])
    gain = np.array([2.0**-25, 1 / 300, 2.0**-35, 1 / 300, 1 / 300])
    graph = layer(
        *("DEPTHWISE_CONV_2D", (1, 16, 21, 5), weights, bias),
        attributes=A.DepthwiseConv2D(), gain=gain, y_zp=3,
    )  # fmt: skip
    made = deploy(graph, "stm32f412", tmp_path_factory.mktemp("shared") / "size", optimize="size")
    assert "te_depthwise_taps" in elf.read_elf(made.path / "firmware.elf").symbols
    return graph, made


def test_a_shared_kernel_with_it_blocks_is_traced_as_it_runs(shared_depthwise):
    graph, made = shared_depthwise
    codes = inputs(graph, 0)
    plain, traced = (emulated(made, codes, trace=trace) for trace in (False, True))
    expected = [ir.run(graph, one[None]).ravel().tolist() for one in codes]
    assert traced.outputs.tolist() == expected
    assert account(traced) == account(plain)
    assert (traced.writes[buffers(made, graph, graph.outputs)] >= len(codes)).all()
    assert differing(made, graph, made.run(codes, "emulate", trace=True, cell_bytes=1).trace) == []


def test_the_shared_kernel_would_fault_if_the_it_block_stayed_open(shared_depthwise, monkeypatch, tmp_path):
    graph, made = shared_depthwise
    spoil(monkeypatch, tmp_path)
    with pytest.raises(ToolchainError, match="faulted"):
        emulated(made, inputs(graph, 0), trace=True)


def test_traced_networks_count_and_compute_as_untraced_ones(networks, tmp_path):
    made = list(networks)
    for seed, board in ((0, "stm32f412"), (4, "stm32f412"), (3, "stm32f103")):
        graph = random_network(seed)
        made.append((graph, deploy(graph, board, tmp_path / str(seed), optimize="size")))
    for graph, one in made:
        codes = inputs(graph, 1, n=1)
        assert account(emulated(one, codes, trace=True)) == account(emulated(one, codes))


# -- start-up -----------------------------------------------------------------------------------


@pytest.mark.parametrize("board", CORES)
def test_start_up_is_a_few_instructions_whatever_the_arena(tmp_path, board):
    code = assembly("model_invoke", "movs r0, #0", "bx lr")
    counts = {
        emulate(
            firmware(tmp_path / str(size), board, code, arena_bytes=size), board, NOTHING, 4
        ).startup_instructions
        for size in (16, 8192)
    }
    assert len(counts) == 1
    assert 0 < counts.pop() <= STARTUP_MOST


def test_a_network_starts_at_once(networks):
    for graph, made in networks:
        assert 0 < made.run(inputs(graph, 0, n=1), "emulate").startup_instructions <= STARTUP_MOST
        image = elf.read_elf(made.path / "firmware.elf")
        assert image.bss == made.report["arena_bytes"]  # nothing beside the arena that reset would clear


def test_variables_cost_start_up_and_hold_their_values(tmp_path):
    """The control: 100 words to clear and 100 to copy, at least a load or store and a branch each."""
    body = """static uint32_t zeros[100], ones[100] = {1, 1, 1};
    int model_invoke(void) {
        volatile uint32_t *z = zeros, *o = ones;
        te_arena[4] = (int8_t)(z[0] + z[99] + 10 * o[2] + 100 * (o[99] + 1));
        return 0; }\n"""
    result = emulate(firmware(tmp_path, "stm32f412", body), "stm32f412", NOTHING, 1, output_offset=4)
    assert result.outputs[0, 0] == 110
    assert result.startup_instructions > 2 * 200


def test_the_arena_holds_rubbish_before_the_first_inference(tmp_path):
    """So that every emulated run also checks that nothing is read before it is written."""
    code = assembly("model_invoke", "movs r0, #0", "bx lr")
    result = emulate(firmware(tmp_path, "stm32f412", code), "stm32f412", NOTHING, 64, output_offset=64)
    assert len(np.unique(result.outputs)) > 20
