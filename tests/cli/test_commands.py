"""The commands do their work and write the documented keys."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tinyml_edu import ir
from tinyml_edu.cli import main
from tinyml_edu.cli.resolve import quantized_zoo
from tinyml_edu.mcu import planning

MODEL = "resnet8.glyphs32"


@pytest.fixture
def tinyml(monkeypatch, capsys):
    """Call ``tinyml`` in this process; it must succeed.  Returns what it printed."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tinyml", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        assert stop.value.code in (None, 0), output.err
        return output.out

    return call


def test_plan_reports_every_planner_against_the_bound(tinyml, tmp_path):
    out = tinyml("plan", MODEL, "--json", tmp_path / "plan.json", "--plot", tmp_path / "map.png")
    assert "Live at the peak, node " in out
    assert "resident in the arena" in out
    report = json.loads((tmp_path / "plan.json").read_text())
    assert set(report) == {"model", "lower_bound_bytes", "planners"}
    assert set(report["planners"]) == set(planning.PLANNERS)
    assert report["planners"]["best"]["proven_optimal"]
    for planner in report["planners"].values():
        assert set(planner) == {"arena_bytes", "seconds", "proven_optimal"}
        assert planner["arena_bytes"] >= report["lower_bound_bytes"]
        assert planner["proven_optimal"] <= (planner["arena_bytes"] == report["lower_bound_bytes"])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_profile_writes_the_costs(tinyml, tmp_path):
    tinyml("profile", MODEL, "--json", tmp_path / "p.json")
    report = json.loads((tmp_path / "p.json").read_text())
    graph = quantized_zoo(MODEL)
    assert report["macs"] == sum(ir.macs(graph).values())
    assert report["macs"] == sum(layer["macs"] for layer in report["layers"])


@pytest.mark.c
def test_deploy_and_run_agree_with_numpy(tinyml, tmp_path):
    """The same codes through the host build, the firmware and the integer kernels."""
    project = tmp_path / "project with space"
    tinyml("deploy", MODEL, "--board", "stm32f412", "--out", project, "--json", tmp_path / "d.json")
    report = json.loads((tmp_path / "d.json").read_text())
    assert set(report) >= {
        *(
            "model",
            "board",
            "core",
            "requant",
            "planner",
            "patch",
            "macs",
            "arena_bytes",
            "lower_bound_bytes",
        ),
        *("proven_optimal", "sram_bytes", "flash_bytes", "layers"),
    }
    sram, flash = report["sram_bytes"], report["flash_bytes"]
    assert sram["total"] == sum(sram[k] for k in ("input", "activations", "scratch", "stack"))
    assert sram["input"] + sram["activations"] + sram["scratch"] == report["arena_bytes"]
    assert flash["total"] == flash["code"] + flash["weights"]
    for name in ("model.c", "model.h", "Makefile", "README.md", "firmware.elf", "plan.json"):
        assert (project / name).is_file()

    graph = quantized_zoo(MODEL)
    rng = np.random.default_rng(7)
    codes = rng.integers(-128, 128, (3, 32, 32, 3), dtype=np.int8)
    np.save(tmp_path / "x.npy", codes)
    expected = ir.run(graph, codes).reshape(3, -1)
    for target in ("--host", "--emulate"):
        y = tmp_path / f"y{target}.npy"
        tinyml(
            "run",
            project,
            "--input",
            tmp_path / "x.npy",
            "--output",
            y,
            target,
            "--json",
            tmp_path / "r.json",
        )
        got = np.load(y)
        assert got.dtype == np.int8
        np.testing.assert_array_equal(got.reshape(3, -1), expected)
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) == {
        *("instructions", "estimated_cycles", "estimated_ms", "stack_bytes", "layers"),
        *("startup_instructions", "mnemonics"),
    }
    assert result["instructions"] >= sum(layer["instructions"] for layer in result["layers"]) > 0
    assert result["stack_bytes"] == sram["stack"]
    picture = tmp_path / "map.png"
    printed = tinyml("run", project, "--input", tmp_path / "x.npy", "--histogram", "--heat-map", picture)
    assert sum(sum(row.values()) for row in result["mnemonics"].values()) == result["instructions"]
    total = next(line for line in printed.splitlines() if line.startswith("│ total"))
    assert sum(int(n.replace(",", "")) for n in total.split("│")[2:-1]) == result["instructions"]
    assert "not validated on silicon" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_floats_are_quantized_with_the_input_scale(tinyml, tmp_path):
    graph = quantized_zoo(MODEL)
    x = np.random.default_rng(3).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    codes = graph[graph.inputs[0]].quant.quantize(x)
    project = tmp_path / "project"
    tinyml("deploy", MODEL, "--board", "rp2040", "--out", project, "--optimize", "size", "--requant", "fast")
    np.save(tmp_path / "x.npy", x)
    tinyml("run", project, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--host")
    expected = ir.run(graph, codes, requant="fast")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy").reshape(2, -1), expected.reshape(2, -1))


def test_data_list_and_zoo_list(tinyml, tmp_path):
    assert "glyphs32" in tinyml("data", "list", "--json", tmp_path / "d.json")
    rows = json.loads((tmp_path / "d.json").read_text())
    assert {r["name"] for r in rows if r["available"]} >= {"digits", "glyphs32", "glyph_presence"}
    assert MODEL in tinyml("zoo", "list")


def test_data_get_reports_the_splits(tinyml):
    assert "digits test: 360 examples" in tinyml("data", "get", "digits")


@pytest.mark.c
def test_doctor_compiles_and_lists_the_boards(tinyml):
    out = tinyml("doctor")
    assert "works" in out
    assert "stm32f412" in out


def test_every_command_has_help_with_an_example():
    commands = [
        *(
            ["demo"],
            ["doctor"],
            ["profile"],
            ["plan"],
            ["deploy"],
            ["run"],
            ["data", "list"],
            ["data", "get"],
        ),
        *(
            ["zoo", "list"],
            ["lab", "list"],
            ["lab", "open"],
            ["lab", "check"],
            ["grade", "run"],
            ["grade", "prove"],
        ),
    ]
    from typer.testing import CliRunner

    from tinyml_edu.cli.app import app

    for command in commands:
        result = CliRunner().invoke(app, [*command, "--help"])
        assert result.exit_code == 0
        assert f"Example: tinyml {' '.join(command)}" in result.output


def test_version_and_module_entry():
    out = subprocess.run(
        [sys.executable, "-m", "tinyml_edu.cli", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert out.startswith("tinyml_edu ")
