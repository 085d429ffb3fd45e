"""Run every benchmark and write ``docs/results.json``: flat keys, each with value, unit and command.

Example: python -m benchmarks.run
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ("mcu_networks", "zoo_accuracy", "pruning", "spmm", "quantization", "parity", "xnor")


def meta() -> dict[str, Any]:
    """Say which code ran, when, and on what kind of computer."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    python = platform.python_version()
    return {"commit": commit, "date": date.today().isoformat(), "machine": machine, "python": python}


def main() -> None:
    """Run the benchmarks named on the command line, or all, and merge their figures into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.json")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.names or BENCHMARKS:
        figures = importlib.import_module(f"benchmarks.{name}").figures()
        for key, (value, unit) in figures.items():
            results[key] = {"value": value, "unit": unit, "command": f"python -m benchmarks.run {name}"}
    results["_meta"] = meta()
    temporary = arguments.out.with_suffix(".part")
    temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    temporary.replace(arguments.out)
    print(f"{len(results) - 1} figures in {arguments.out}")


if __name__ == "__main__":
    main()
