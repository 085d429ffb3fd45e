"""What do the MLPerf Tiny networks cost on a Cortex-M4, beside other engines and published latencies?

Instructions are counted on the emulated board; cycles and milliseconds are estimated from them.  Published
latencies were measured on a NUCLEO-L4R5ZI (Cortex-M4, 120 MHz), so our cycles stand beside them at that
clock: an estimate with zero wait states beside measurements on a flash that has some.

Needs the three ``.tflite`` files in ``$TINYML_EDU_DATA/mlperf_tiny``.  Example: python -m benchmarks.mcu
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyml_edu import ir, mcu
from tinyml_edu.errors import DataError
from tinyml_edu.mcu.cycles import CAVEAT

BOARD = "stm32f412"
NETWORKS = {
    "kws": "kws_ref_model.tflite",
    "vww": "vww_96_int8.tflite",
    "ic": "pretrainedResnet_quant.tflite",
}
BUILDS = (("speed", "exact"), ("speed", "fast"), ("size", "exact"), ("size", "fast"))


@dataclass(frozen=True)
class Anchor:
    """TensorFlow Lite Micro on the same emulated core: one inference; ``code_bytes`` without the model."""

    reference: float
    cmsis_nn: float
    cmsis_nn_arena_bytes: int
    code_bytes: int = 121_000


ANCHORS = {
    "kws": Anchor(43.1e6, 7.85e6, 22_820),
    "vww": Anchor(100.5e6, 24.7e6, 100_708),
    "ic": Anchor(107.5e6, 29.9e6, 54_996),
}

PUBLISHED_HZ = 120e6
CMSIS_NN_PUBLISHED = "microTVM + CMSIS-NN (MLPerf Tiny v1.0, 2022)"
PUBLISHED = {
    "TFLM 2.3.1 (MLPerf Tiny v0.5 reference, 2021)": {"kws": 5.497, "vww": 1.665, "ic": 1.420},
    "X-CUBE-AI 7.1.0 (MLPerf Tiny v0.7, 2022)": {"kws": 10.241, "vww": 3.927, "ic": 3.956},
    CMSIS_NN_PUBLISHED: {"kws": 10.019, "vww": 3.320, "ic": 2.567},
}
"""Median inferences a second on a NUCLEO-L4R5ZI at 120 MHz, closed division.

From ``results.txt`` of each network's performance run in github.com/mlcommons/tiny_results_v0.5
(closed/reference/results/Nucleo-L4R5ZI), tiny_results_v0.7
(closed/STMicroelectronics/results/NUCLEO_L4R5ZI) and tiny_results_v1.0
(closed/OctoML/results/microtvm_cmsis_nn/NUCLEO_L4R5ZI).
"""


def figures() -> dict[str, tuple[float, str]]:
    """Deploy each network in four builds; return and print its figures beside the anchors."""
    root = os.environ.get("TINYML_EDU_DATA")
    if not root:
        raise DataError("TINYML_EDU_DATA is not set; point it at the folder that holds mlperf_tiny/")
    results: dict[str, tuple[float, str]] = {}
    for name, file in NETWORKS.items():
        graph = ir.read_tflite(Path(root) / "mlperf_tiny" / file)
        reports = {build: _report(graph, *build) for build in BUILDS}
        _print(name, reports)
        results |= _results(name, reports)
    print(f"Cycles and milliseconds are {CAVEAT}.")
    return results


def _report(graph: ir.Graph, optimize: str, requant: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        made = mcu.deploy(graph, BOARD, Path(folder) / "net", optimize=optimize, requant=requant)
        probe = np.zeros((1, *made.input.shape[1:]), np.int8)
        start_up = made.run(probe, "emulate").startup_instructions
        return made.report | {"startup_instructions": start_up}


def _print(name: str, reports: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Print the engines of one network, one a line, then the published latencies."""
    anchor, first = ANCHORS[name], reports[BUILDS[0]]
    macs = first["macs"]
    print(
        f"{name}: {macs:,} MACs, no plan needs less than {first['lower_bound_bytes']:,} bytes of activations"
    )
    rows = [
        ("TFLM reference", anchor.reference),
        ("TFLM + CMSIS-NN", anchor.cmsis_nn, "", "", f"~{anchor.code_bytes:,}", anchor.cmsis_nn_arena_bytes),
    ]
    for build, report in reports.items():
        flash = report["flash_bytes"]
        rows.append(
            (
                f"ours, {', '.join(build)}",
                *(report["instructions"], report["estimated_cycles"], round(report["estimated_ms"], 1)),
                *(flash["code"], report["arena_bytes"], flash["weights"], report["startup_instructions"]),
            )
        )
    heads = ("est. cycles", "est. ms", "code B", "arena B", "constants B", "start-up")
    print(
        f"  {'engine':20} {'instructions':>12} {'a MAC':>6} {'ratio':>6}" + "".join(f"{h:>12}" for h in heads)
    )
    for engine, count, *rest in rows:
        cells = "".join(f"{cell if isinstance(cell, str) else f'{cell:,}':>12}" for cell in rest)
        print(f"  {engine:20} {count:12,.0f} {count / macs:6.2f} {count / anchor.cmsis_nn:6.3f}{cells}")
    ours = 1e3 * first["estimated_cycles"] / PUBLISHED_HZ
    print(
        f"  at {PUBLISHED_HZ / 1e6:.0f} MHz: ours, speed, exact, estimated {ours:.1f} ms; measured by others:"
    )
    for engine, rates in PUBLISHED.items():
        latency = 1e3 / rates[name]
        print(f"    {engine:46} {latency:7.1f} ms, {latency / ours:5.2f} of our estimate")
    measured, estimated = _cycles_an_instruction(name, first)
    print(
        f"  cycles an instruction: ours {estimated:.2f}, estimated; CMSIS-NN {measured:.2f}, from the "
        "latency of microTVM and the instructions of TFLM (the same kernels in two frameworks)"
    )


def _cycles_an_instruction(name: str, report: dict[str, Any]) -> tuple[float, float]:
    """Return cycles an instruction of CMSIS-NN, measured on silicon, and of ours, estimated."""
    measured = PUBLISHED_HZ / PUBLISHED[CMSIS_NN_PUBLISHED][name] / ANCHORS[name].cmsis_nn
    return measured, report["estimated_cycles"] / report["instructions"]


def _results(name: str, reports: dict[tuple[str, str], dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """Return the flat keys of one network; those without a build's name are of "speed", "exact"."""
    results: dict[str, tuple[float, str]] = {}
    for build, report in reports.items():
        stem = f"mcu.{name}" if build == BUILDS[0] else f"mcu.{name}.{'_'.join(build)}"
        flash, ratio = report["flash_bytes"], report["instructions"] / ANCHORS[name].cmsis_nn
        results |= {
            f"{stem}.instructions": (report["instructions"], "instructions"),
            f"{stem}.instructions_per_mac": (report["instructions"] / report["macs"], "instructions a MAC"),
            f"{stem}.of_cmsis_nn": (
                round(ratio, 3),
                "instructions / those of TensorFlow Lite Micro with CMSIS-NN",
            ),
            f"{stem}.estimated_cycles": (report["estimated_cycles"], "cycles, estimated"),
            f"{stem}.estimated_ms": (report["estimated_ms"], f"ms at 100 MHz, {CAVEAT}"),
            f"{stem}.startup_instructions": (report["startup_instructions"], "instructions"),
            f"{stem}.arena_bytes": (report["arena_bytes"], "bytes"),
            f"{stem}.lower_bound_bytes": (report["lower_bound_bytes"], "bytes"),
            f"{stem}.code_bytes": (flash["code"], "bytes"),
            f"{stem}.weights_bytes": (flash["weights"], "bytes"),
            f"{stem}.stack_bytes": (report["sram_bytes"]["stack"], "bytes"),
        }
    ours = 1e3 * reports[BUILDS[0]]["estimated_cycles"] / PUBLISHED_HZ
    measured, estimated = _cycles_an_instruction(name, reports[BUILDS[0]])
    results |= {
        f"mcu.{name}.estimated_cycles_per_instruction": (round(estimated, 3), "cycles an instruction"),
        f"mcu.{name}.cmsis_nn_cycles_per_instruction": (
            round(measured, 3),
            f"cycles an instruction: latency of {CMSIS_NN_PUBLISHED}, instructions of TFLM + CMSIS-NN",
        ),
    }
    for engine, rates in PUBLISHED.items():
        key = engine.split(" (")[0].lower().replace(" + ", "_").replace(" ", "_").replace(".", "_")
        unit = f"ms measured on a NUCLEO-L4R5ZI at 120 MHz / ms estimated at that clock; {engine}"
        results[f"mcu.{name}.published.{key}"] = (round(1e3 / rates[name] / ours, 2), unit)
    return results


if __name__ == "__main__":
    figures()
