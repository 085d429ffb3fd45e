"""Tables on the terminal and JSON in files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers to FILE as JSON.")
]


def console() -> Console:
    """Return a console on stdout; without a terminal it keeps long rows on one line."""
    # Square brackets in names and paths are text, not markup.
    plain = Console(markup=False, highlight=False)
    return plain if plain.is_terminal else Console(width=160, no_color=True, markup=False, highlight=False)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers are right-aligned and grouped by thousands."""
    rows = [list(row) for row in rows]
    view = Table()
    for column, name in enumerate(header):
        numeric = any(isinstance(row[column], int | float) for row in rows)
        view.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(_cell(value) for value in row))
    # Not the table's own title: that is folded to the width of the table.
    console().print(title, view, sep="\n")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) >= 1 else f"{value:.4f}"
    return str(value)


def write_json(path: Path | None, value: Any) -> None:
    """Write ``value`` to ``path`` in one step, so that a reader never sees half a file."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
