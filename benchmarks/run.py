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

from tinyml_edu._files import write_atomically
from tinyml_edu.errors import TinyMLError

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = (
    "mcu",
    "host_speed",
    "kernel_search",
    "zoo_accuracy",
    "pruning",
    "spmm",
    "quantization",
    "equalization",
    "parity",
    "xnor",
    "quantization_peers",
)


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
    for name in arguments.names or BENCHMARKS:
        try:
            figures = importlib.import_module(f"benchmarks.{name}").figures()
        except TinyMLError as error:
            raise SystemExit(f"{name}: {error}") from None
        merge(arguments.out, name, figures)


def merge(path: Path, name: str, figures: dict[str, tuple[float, str]]) -> None:
    """Replace the figures of one benchmark in the results and write them: whole, or not at all."""
    results = json.loads(path.read_text()) if path.exists() else {}
    command = f"python -m benchmarks.run {name}"
    results = {key: row for key, row in results.items() if row.get("command") != command}
    for key, (value, unit) in figures.items():
        results[key] = {"value": value, "unit": unit, "command": command}
    results["_meta"] = meta()
    write_atomically(path, (json.dumps(results, indent=1, sort_keys=True) + "\n").encode())
    print(f"{len(results) - 1} figures in {path}")


if __name__ == "__main__":
    main()
