"""How many instructions and bytes do the MLPerf Tiny networks need on an emulated Cortex-M4?

Both goals of `mcu.deploy` are measured: a kernel for each shape of layer (speed), and shared ones (size).

Needs the three ``.tflite`` files in ``$TINYML_EDU_DATA/mlperf_tiny``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tinyml_edu import ir, mcu
from tinyml_edu.errors import DataError

BOARD = "stm32f412"
NETWORKS = {
    "kws": "kws_ref_model.tflite",
    "vww": "vww_96_int8.tflite",
    "ic": "pretrainedResnet_quant.tflite",
}

CMSIS_NN = {"kws": 7.85e6, "vww": 24.7e6, "ic": 29.9e6}
"""Instructions of TensorFlow Lite Micro with CMSIS-NN for one inference, on the same emulated core."""


def figures() -> dict[str, tuple[float, str]]:
    """Deploy each network for speed and for size, return what it needs; prints a table of each."""
    return _of_goal("speed") | _of_goal("size")


def _of_goal(goal: str) -> dict[str, tuple[float, str]]:
    """Return the figures of one goal; keys of size carry its name."""
    root = os.environ.get("TINYML_EDU_DATA")
    if not root:
        raise DataError("TINYML_EDU_DATA is not set; point it at the folder that holds mlperf_tiny/")
    results: dict[str, tuple[float, str]] = {}
    print(f"optimize={goal!r}")
    print(
        "network         MACs  instructions  a MAC  of CMSIS-NN    est. cycles   arena B   bound B"
        "    code B   flash B  stack B"
    )
    for name, file in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            graph = ir.read_tflite(Path(root) / "mlperf_tiny" / file)
            report = mcu.deploy(graph, BOARD, Path(folder) / name, optimize=goal).report
        instructions = report["instructions"]
        macs, arena, bound = report["macs"], report["arena_bytes"], report["lower_bound_bytes"]
        flash, stack = report["flash_bytes"], report["sram_bytes"]["stack"]
        key = f"mcu.{name}" if goal == "speed" else f"mcu.{name}.{goal}"
        print(
            f"{name:8} {macs:11,} {instructions:13,} {instructions / macs:6.2f} "
            f"{instructions / CMSIS_NN[name]:12.3f} {report['estimated_cycles']:14,} "
            f"{arena:9,} {bound:9,} {flash['code']:9,} {flash['total']:9,} {stack:8,}"
        )
        results |= {
            f"{key}.instructions": (instructions, "instructions"),
            f"{key}.of_cmsis_nn": (
                round(instructions / CMSIS_NN[name], 3),
                "instructions / those of TensorFlow Lite Micro with CMSIS-NN",
            ),
            f"{key}.estimated_cycles": (report["estimated_cycles"], "cycles, estimated"),
            f"{key}.arena_bytes": (arena, "bytes"),
            f"{key}.lower_bound_bytes": (bound, "bytes"),
            f"{key}.code_bytes": (flash["code"], "bytes"),
            f"{key}.weights_bytes": (flash["weights"], "bytes"),
            f"{key}.stack_bytes": (stack, "bytes"),
        }
    return results


if __name__ == "__main__":
    figures()
