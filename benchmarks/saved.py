"""Rows of long benchmarks, kept in ``.build/benchmarks``: what was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyml_edu._files import write_atomically

STATE = Path(__file__).parents[1] / ".build" / "benchmarks"


def saved_row(name: str, inputs: dict[str, Any], compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return ``compute()``, or what it returned before for the same ``inputs``.

    Parameters
    ----------
    name : str
        Of the benchmark: a folder.
    inputs : dict
        Everything that decides the result, such as settings, seed and the checksum of a checkpoint; must
        turn into JSON.  The code is not among them: delete the folder after a change of the code.
    """
    text = json.dumps(inputs, sort_keys=True)
    path = STATE / name / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        row = json.dumps({"inputs": inputs, "row": compute()}, indent=1)
        write_atomically(path, row.encode())
    return json.loads(path.read_text(encoding="utf-8"))["row"]
