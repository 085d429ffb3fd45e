"""What do measured kernels gain over the cost model, and what do they cost in flash?

Needs the three ``.tflite`` files in ``$TINYML_EDU_DATA/mlperf_tiny``.  Prints, for each network, the whole
network with each way of choosing, then the best measured set for smaller and smaller budgets of code.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tinyml_edu import ir, mcu
from tinyml_edu.errors import DataError
from tinyml_edu.ir.graph import Graph
from tinyml_edu.mcu.kernels import search

from .mcu import BOARD, NETWORKS

CODE_KIB = (64, 32, 16, 8, 4, 2, 0)


def figures() -> dict[str, tuple[float, str]]:
    """Deploy each network with each way of choosing kernels; prints two tables."""
    root = os.environ.get("TINYML_EDU_DATA")
    if not root:
        raise DataError("TINYML_EDU_DATA is not set; point it at the folder that holds mlperf_tiny/")
    graphs = {name: ir.read_tflite(Path(root) / "mlperf_tiny" / file) for name, file in NETWORKS.items()}
    results: dict[str, tuple[float, str]] = {}
    print("network  search        instructions    est. cycles    code B  constants B")
    for name, graph in graphs.items():
        for way in search.WAYS:
            results |= _deployed(name, graph, way)
    print("\nnetwork  code KiB  instructions of the layers that have candidates, fewest")
    for name, graph in graphs.items():
        found = search.search(graph, mcu.get_board(BOARD))
        for kib in CODE_KIB:
            limits = search.Limits(code_bytes=1024 * kib)
            taken = search.solve(list(found.options.values()), limits, "instructions")
            options = [some[i] for some, i in zip(found.options.values(), taken)]
            print(f"{name:8} {kib:8} {sum(o.cost.instructions for o in options):13,}")
    return results


def _deployed(name: str, graph: Graph, way: str) -> dict[str, tuple[float, str]]:
    with tempfile.TemporaryDirectory() as folder:
        report = mcu.deploy(graph, BOARD, Path(folder) / name, search=way).report
    instructions, spent, flash = report["instructions"], report["estimated_cycles"], report["flash_bytes"]
    print(f"{name:8} {way:12} {instructions:13,} {spent:14,} {flash['code']:9,} {flash['weights']:12,}")
    return {
        f"mcu.{name}.search_{way}.instructions": (instructions, "instructions"),
        f"mcu.{name}.search_{way}.estimated_cycles": (spent, "cycles, estimated"),
        f"mcu.{name}.search_{way}.flash_bytes": (flash["total"], "bytes"),
    }


if __name__ == "__main__":
    figures()
