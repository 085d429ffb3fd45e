"""How many instructions and bytes do the MLPerf Tiny networks need on an emulated Cortex-M4?

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
    """Deploy each network and return instructions, arena, bound and flash; prints a table."""
    root = os.environ.get("TINYML_EDU_DATA")
    if not root:
        raise DataError("TINYML_EDU_DATA is not set; point it at the folder that holds mlperf_tiny/")
    results: dict[str, tuple[float, str]] = {}
    print(
        "network         MACs  instructions  a MAC  of CMSIS-NN    est. cycles   arena B   bound B   flash B"
    )
    for name, file in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            graph = ir.read_tflite(Path(root) / "mlperf_tiny" / file)
            report = mcu.deploy(graph, BOARD, Path(folder) / name).report
        instructions = report["instructions"]
        macs, arena, bound = report["macs"], report["arena_bytes"], report["lower_bound_bytes"]
        flash = report["flash_bytes"]
        print(
            f"{name:8} {macs:11,} {instructions:13,} {instructions / macs:6.2f} "
            f"{instructions / CMSIS_NN[name]:12.3f} {report['estimated_cycles']:14,} "
            f"{arena:9,} {bound:9,} {flash['total']:9,}"
        )
        results |= {
            f"mcu.{name}.instructions": (instructions, "instructions"),
            f"mcu.{name}.of_cmsis_nn": (
                round(instructions / CMSIS_NN[name], 3),
                "instructions / those of TensorFlow Lite Micro with CMSIS-NN",
            ),
            f"mcu.{name}.estimated_cycles": (report["estimated_cycles"], "cycles, estimated"),
            f"mcu.{name}.arena_bytes": (arena, "bytes"),
            f"mcu.{name}.lower_bound_bytes": (bound, "bytes"),
            f"mcu.{name}.code_bytes": (flash["code"], "bytes"),
            f"mcu.{name}.weights_bytes": (flash["weights"], "bytes"),
        }
    return results


if __name__ == "__main__":
    figures()
