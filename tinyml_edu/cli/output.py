"""Tables on the terminal and JSON in files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .._files import write_atomically
from ..errors import UsageError

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


def check_output(path: Path | None) -> None:
    """Refuse an output file that cannot be written, before the work that would be lost.

    Raises
    ------
    UsageError
        If ``path`` is a folder, or lies where no folder can be made.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it")
    above = next(p for p in path.resolve().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(
            f"cannot write {path}: {above} is not a folder that you may write to; name another place"
        )


def check_picture(option: str, path: Path | None) -> None:
    """Refuse a picture in another format than PNG, with UsageError."""
    if path is not None and path.suffix.lower() != ".png":
        raise UsageError(f"{option} writes PNG; name a file that ends in .png, not {path.name}")


def write_output(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a device such as /dev/stdout is written to, not replaced."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
    else:
        write_atomically(path.resolve(), content)


def write_json(path: Path | None, value: Any) -> None:
    """Write ``value`` to ``path`` as JSON, unless ``path`` is None."""
    if path is not None:
        write_output(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
