"""``tinyml demo`` and ``tinyml doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TinyMLError
from .output import JsonOption, check_output, console, table, write_json


def demo(
    data: Annotated[str, typer.Option("--data", help="glyphs32 (embedded) or cifar10.")] = "glyphs32",
    board: Annotated[str, typer.Option("--board", help="The board to compile for.")] = "stm32f412",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Project, firmware and plots.")] = Path(
        "tinyml-demo"
    ),
    images: Annotated[
        int, typer.Option(min=1, help="Test images that NumPy, host C and firmware compare.")
    ] = 100,
    json_file: JsonOption = None,
) -> None:
    """Prune, distil, quantize, compile and run a network; every number is measured in this run.

    Example: tinyml demo --data cifar10 --board stm32f746
    """
    from .. import demo as demonstration

    check_output(json_file)
    report = demonstration.run(data, board, out, images=images, say=console().print)
    table(
        f"{report['dataset']} → {report['board']}",
        ["step", "accuracy", "parameters", "MACs", "weight bytes"],
        [[s["name"], s["accuracy"], s["parameters"], s["macs"], s["weight_bytes"]] for s in report["steps"]],
    )
    deployed = report["deployed"]
    table(
        "On the board (emulated; instructions are counted, milliseconds estimated from them)",
        ["what", "value"],
        [
            ["accuracy of the int8 network, whole test split", deployed["accuracy"]],
            ["images compared: NumPy, host C, firmware", deployed["images_compared"]],
            ["images that differ in any output code", deployed["images_different"]],
            ["instructions, one inference", deployed["instructions"]],
            ["estimated ms", deployed["estimated_ms"]],
            *([f"SRAM bytes: {k}", v] for k, v in deployed["sram_bytes"].items()),
            *([f"flash bytes: {k}", v] for k, v in deployed["flash_bytes"].items()),
        ],
    )
    console().print(f"{report['seconds']:.0f} s; C project, firmware and plots in {out}")
    write_json(json_file, report)
    if deployed["images_different"]:
        raise TinyMLError(
            f"{deployed['images_different']} of {deployed['images_compared']} images differ between NumPy, "
            "host C and firmware; a defect of the compiler: please report it with the folder of the demo"
        )


def doctor(json_file: JsonOption = None) -> None:
    """Check what this computer has and what each missing part would add.

    Example: tinyml doctor
    """
    rows = [*_python_rows(), *_module_rows(), *_program_rows(), _compile_row(), *_data_rows()]
    table("tinyml doctor", ["part", "state", "what for, or what to do"], rows)
    from ..mcu import BOARDS

    table(
        "Boards",
        ["name", "core", "SRAM B", "flash B", "MHz"],
        [[b.name, b.core, b.sram_bytes, b.flash_bytes, b.clock_hz // 1_000_000] for b in BOARDS.values()],
    )
    write_json(json_file, [{"part": p, "state": s, "note": n} for p, s, n in rows])


def _python_rows() -> list[list[str]]:
    return [["Python", platform.python_version(), sys.executable], ["CPU cores", str(os.cpu_count()), ""]]


def _module_rows() -> list[list[str]]:
    wanted = {
        "torch": "networks",
        "ziglang": "C compiler for host and Cortex-M: pip install 'tinyml_edu[mcu]'",
        "unicorn": "Cortex-M emulator: pip install 'tinyml_edu[mcu]'",
        "tflite": "reading .tflite files: pip install 'tinyml_edu[tflite]'",
        "jupyterlab": "the labs: pip install 'tinyml_edu[labs]'",
        "nbgrader": "grading: pip install 'tinyml_edu[labs]'",
    }
    return [[n, "found" if importlib.util.find_spec(n) else "MISSING", use] for n, use in wanted.items()]


def _program_rows() -> list[list[str]]:
    wanted = {
        "qemu-system-arm": "cross-check of instruction counts (optional)",
        "arm-none-eabi-gcc": "a second Cortex-M compiler (optional)",
    }
    return [[n, "found" if shutil.which(n) else "missing", use] for n, use in wanted.items()]


def _compile_row() -> list[str]:
    from ..errors import TinyMLError
    from ..mcu import toolchain

    try:
        return ["C toolchain", "works", toolchain.self_test()]
    except TinyMLError as error:
        return ["C toolchain", "FAILS", str(error)]


def _data_rows() -> list[list[str]]:
    from .. import data

    folder = os.environ.get("TINYML_EDU_DATA")
    rows = [["TINYML_EDU_DATA", folder or "not set", "folder with real data sets (optional)"]]
    for name in data.names():
        here = data.is_available(name)
        rows.append(
            [f"data: {name}", "here" if here else "absent", "" if here else f"tinyml data get {name}"]
        )
    return rows
