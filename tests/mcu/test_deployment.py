"""`deploy`: three ways agree bit for bit, the report shows what was measured, failures leave nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from random_graphs import inputs, random_network

from tinyml_edu import ir
from tinyml_edu.errors import DataError, DoesNotFitError, ToolchainError, UnknownNameError, UsageError
from tinyml_edu.ir.graph import Graph, Kind, Quant, Tensor
from tinyml_edu.mcu import cgen, deployment, elf, planning
from tinyml_edu.mcu.boards import get_board
from tinyml_edu.mcu.deployment import STACK_BYTES, Deployment, check_target, deploy
from tinyml_edu.mcu.planning import planner

pytestmark = pytest.mark.c

REPORT_KEYS = [
    "model", "board", "core", "requant", "optimize", "optimize_note", "planner", "patch", "search", "macs",
    "arena_bytes", "lower_bound_bytes", "proven_optimal", "sram_bytes", "instructions", "estimated_cycles",
    "estimated_ms", "flash_bytes", "layers",
]  # fmt: skip
ONE_BOARD_A_CORE = ["stm32f412", "stm32f103", "stm32f746", "rp2040"]


@pytest.fixture(scope="module")
def graph():
    return random_network(6, layers=10)


@pytest.fixture(scope="module")
def deployed(graph, tmp_path_factory):
    return deploy(graph, "stm32f412", tmp_path_factory.mktemp("deployed") / "net")


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("board", ONE_BOARD_A_CORE)
@pytest.mark.parametrize("seed", [11, 12])
def test_numpy_host_and_firmware_agree_bit_for_bit(tmp_path, board, requant, seed):
    graph = random_network(seed, layers=12)
    made = deploy(graph, board, tmp_path / "net", requant=requant)
    x = inputs(graph, seed)
    wanted = ir.run(graph, x, requant=requant)
    for target in deployment.TARGETS:
        assert np.array_equal(made.run(x, target).outputs, wanted), target


@pytest.mark.slow
@pytest.mark.parametrize("optimize", ["speed", "size"])
@pytest.mark.parametrize("seed", range(20, 35))
def test_numpy_host_and_firmware_agree_on_more_networks(tmp_path, optimize, seed):
    graph = random_network(seed, layers=16)
    made = deploy(graph, ONE_BOARD_A_CORE[seed % 4], tmp_path / "net", optimize=optimize)
    x = inputs(graph, seed)
    wanted = ir.run(graph, x)
    for target in deployment.TARGETS:
        assert np.array_equal(made.run(x, target).outputs, wanted), target


def test_a_changed_kernel_is_noticed_on_the_host(tmp_path, graph):
    made = deploy(graph, "stm32f412", tmp_path / "net")
    source = tmp_path / "net" / "te_requant.h"
    text, old = source.read_text(), "te_clamp(scaled, "
    assert old in text
    source.write_text(text.replace(old, "te_clamp(scaled + 1, "))
    x = inputs(graph, 0, n=50)
    assert not np.array_equal(made.run(x, "host").outputs, ir.run(graph, x))


def test_the_report_has_the_documented_keys_and_the_linkers_bytes(graph, deployed):
    report = deployed.report
    assert list(report) == REPORT_KEYS
    assert (report["model"], report["board"], report["core"]) == (graph.name, "stm32f412", "cortex-m4")
    image = elf.read_elf(deployed.path / "firmware.elf")
    sram, flash = report["sram_bytes"], report["flash_bytes"]
    assert list(sram) == ["input", "activations", "scratch", "stack", "total"]
    assert sum(sram[k] for k in list(sram)[:-1]) == sram["total"] == image.data + image.bss + sram["stack"]
    in_arena = sum(sram[k] for k in ("input", "activations", "scratch"))
    assert image.symbol("te_arena").size == report["arena_bytes"] == in_arena
    assert list(flash) == ["code", "weights", "total"]
    assert flash["code"] + flash["weights"] == flash["total"]
    assert flash["weights"] >= sum(t.nbytes for t in graph.constants())
    assert 0 < sram["stack"] <= STACK_BYTES


def test_the_layers_of_the_report_add_up_to_the_inference(graph, deployed):
    layers = deployed.report["layers"]
    assert [list(row) for row in layers] == [["name", "op", "macs", "instructions"]] * len(graph.nodes)
    assert [row["name"] for row in layers] == [node.name for node in graph.nodes]
    assert sum(row["macs"] for row in layers) == deployed.report["macs"]
    result = deployed.run(inputs(graph, 0, n=1)[:1], "emulate")
    within = sum(row["instructions"] for row in result.layers)
    # model_invoke itself: a call, a test and a branch for each layer.
    assert 0 <= result.instructions - within <= 10 * len(layers) + 20
    for row, node in zip(layers, graph.nodes, strict=True):
        assert (row["instructions"] == 0) == (node.op == "RESHAPE")


def test_a_run_on_the_host_claims_no_instructions(graph, deployed):
    result = deployed.run(inputs(graph, 0), "host")
    assert (result.instructions, result.estimated_ms, result.stack_bytes, result.layers) == (
        None,
        None,
        None,
        (),
    )


def test_the_folder_can_be_opened_again_and_holds_the_project(graph, deployed):
    again = Deployment.load(deployed.path)
    assert again.report == deployed.report
    assert {"model.c", "model.h", "Makefile", "README.md", "firmware.elf", "plan.json"} <= {
        p.name for p in deployed.path.iterdir()
    }
    stored = json.loads((deployed.path / "plan.json").read_text())
    assert stored["offsets"] == planning.plan(graph).offsets
    x = inputs(graph, 1)
    assert np.array_equal(again.run(x, "emulate").outputs, again.run(x, "host").outputs)


def test_float_inputs_are_quantized_with_the_inputs_scale(graph, deployed):
    codes = inputs(graph, 2)
    values = graph[graph.inputs[0]].quant.dequantize(codes)
    assert np.array_equal(deployed.run(values).outputs, deployed.run(codes).outputs)
    assert deployed.codes(np.full((1, *codes.shape[1:]), 1e9, np.float32)).min() == 127


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], "batch first"),
        (lambda x: x[:0], "batch first"),
        (lambda x: x[:, :1], "must have shape"),
        (lambda x: x.astype(np.uint8), "uint8"),
        (lambda x: np.full(x.shape, np.nan), "not a number"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(graph, deployed, change, message):
    with pytest.raises(UsageError, match=message):
        deployed.run(change(inputs(graph, 0)))


def test_wrong_names_are_refused_before_any_work(graph, tmp_path):
    for options, kind in [
        ({"planner": "gredy"}, UnknownNameError), ({"requant": "exat"}, UnknownNameError),
        ({"optimize": "sped"}, UnknownNameError), ({"patch": "2x2@3"}, UsageError),
    ]:  # fmt: skip
        with pytest.raises(kind):
            deploy(graph, "stm32f412", tmp_path / "net", **options)
    with pytest.raises(UnknownNameError, match="stm32f412"):
        deploy(graph, "stm32f421", tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_is_refused(graph, deployed):
    with pytest.raises(UnknownNameError, match="emulate"):
        deployed.run(inputs(graph, 0), "emulat")


def test_too_little_sram_is_refused_to_the_byte(graph, tmp_path):
    need = planning.plan(graph).arena_bytes + STACK_BYTES
    board = get_board("stm32f412")
    exact = deploy(graph, replace(board, sram_bytes=need), tmp_path / "fits")
    assert exact.run(inputs(graph, 0), "emulate").instructions > 0
    with pytest.raises(
        DoesNotFitError, match=r"16 B of SRAM are missing.*At the peak, node .* are live: .*Try "
    ):
        deploy(graph, replace(board, sram_bytes=need - 16), tmp_path / "not")
    assert [p.name for p in tmp_path.iterdir()] == ["fits"]


def test_the_linker_enforces_the_same_sram_budget(graph, tmp_path, monkeypatch):
    board = replace(get_board("stm32f412"), sram_bytes=planning.plan(graph).arena_bytes + STACK_BYTES - 16)
    monkeypatch.setattr(planner, "STACK_BYTES", 0)  # the planner's own check passes now ...
    real = STACK_BYTES
    from tinyml_edu.mcu import toolchain

    compile_firmware = toolchain.compile_firmware
    monkeypatch.setattr(
        toolchain, "compile_firmware", lambda *a, **k: compile_firmware(*a, **(k | {"stack_bytes": real}))
    )
    with pytest.raises(
        DoesNotFitError, match=r"16 bytes of RAM are missing.*At the peak"
    ):  # ... the linker's does not
        deploy(graph, board, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_too_little_flash_is_refused_with_the_largest_constants(graph, tmp_path):
    board = replace(get_board("stm32f412"), flash_bytes=4096)
    largest = max(graph.constants(), key=lambda t: t.nbytes)
    with pytest.raises(
        DoesNotFitError, match=rf"\d+ bytes of FLASH are missing.*largest constants: {largest.name} "
    ):
        deploy(graph, board, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_and_keeps_the_earlier_deployment(graph, tmp_path, monkeypatch):
    out = tmp_path / "net"
    first = deploy(graph, "stm32f412", out)
    before = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.setattr(cgen, "_model_c", lambda *_: "this is no C\n")
    with pytest.raises(ToolchainError, match="compiler failed"):
        deploy(graph, "stm32f412", out)
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert list(tmp_path.iterdir()) == [out]
    assert first.run(inputs(graph, 0), "emulate").instructions > 0


def test_a_deployment_is_replaced_and_any_other_folder_is_refused(graph, tmp_path):
    out = tmp_path / "net"
    deploy(graph, "stm32f412", out)
    assert deploy(graph, "rp2040", out).report["board"] == "rp2040"
    assert list(tmp_path.iterdir()) == [out]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds other files"):
        deploy(graph, "stm32f412", other)
    with pytest.raises(UsageError, match="is a file"):
        deploy(graph, "stm32f412", other / "chapter1.tex")
    assert (other / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize("plan", ["{}", "[]", "not json", None])
def test_a_foreign_folder_with_a_plan_in_it_is_refused(graph, tmp_path, plan):
    # A plan.json alone does not make a folder ours; nor does our plan.json cover files added later.
    out = tmp_path / "net"
    if plan is None:
        deploy(graph, "stm32f412", out)
        (out / "build").mkdir()
        (out / "build" / "run").write_text("what make builds is ours")
        check_target(out)
    else:
        out.mkdir()
        (out / "plan.json").write_text(plan)
    (out / "src").mkdir()
    (out / "src" / "main.c").write_text("int main(void);")
    with pytest.raises(UsageError, match=r"holds other files"):
        deploy(graph, "rp2040", out)
    assert (out / "src" / "main.c").read_text() == "int main(void);"


def test_the_current_folder_is_refused_before_any_work(tmp_path, graph, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the folder that you are in"):
        deploy(graph, "stm32f412", ".")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_deployment_stays_a_link(graph, tmp_path):
    deploy(graph, "stm32f412", tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    deploy(graph, "rp2040", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Deployment.load(tmp_path / "real").report["board"] == "rp2040"


def test_anything_but_a_graph_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"pass quantized\.graph"):
        deploy(SimpleNamespace(graph=None), "stm32f412", tmp_path / "net")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 99, "version": "9"}'])
def test_a_damaged_plan_is_reported(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match="deploy"):
        Deployment.load(tmp_path)


def test_a_folder_without_a_plan_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"no plan\.json"):
        Deployment.load(tmp_path / "absent")


def test_a_float_graph_is_refused_with_what_to_do(tmp_path):
    graph = Graph("float")
    graph.add(Tensor("x", (1, 4), "float32", Kind.INPUT, quant=Quant.per_tensor(1.0, 0)))
    graph.inputs = graph.outputs = ("x",)
    with pytest.raises(UsageError, match="quantize the network first"):
        deploy(graph, "stm32f412", tmp_path / "net")


# MLPerf Tiny: arena, and the plain kernels' cost.  The limits leave a tenth to a change of compiler.
MLPERF_TINY = [
    ("kws_ref_model", "stm32f103", 16_000, 5.5),
    ("vww_96_int8", "stm32f401", 55_296, 5.5),
    ("pretrainedResnet_quant", "stm32f412", 49_152, 3.8),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "board", "arena", "instructions_per_mac"), MLPERF_TINY)
def test_mlperf_tiny_agrees_three_ways_and_fits_its_board(
    tmp_path, data_dir, name, board, arena, instructions_per_mac
):
    graph = ir.read_tflite(data_dir / "mlperf_tiny" / f"{name}.tflite")
    made = deploy(graph, board, tmp_path / "net")
    assert made.report["arena_bytes"] == made.report["lower_bound_bytes"] == arena
    assert made.report["proven_optimal"]
    x = inputs(graph, 0, n=5)
    wanted = ir.run(graph, x)
    assert np.array_equal(made.run(x, "host").outputs, wanted)
    emulated = made.run(x, "emulate")
    assert np.array_equal(emulated.outputs, wanted)
    assert emulated.instructions <= instructions_per_mac * made.report["macs"]
