"""Notebooks as plain dictionaries, read without trust: any cell may lack any field."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError

MAX_NOTEBOOK_BYTES = 200_000_000
_DEFINES = re.compile(r"^(?:async\s+def|def|class)\s+(\w+)|^(\w+)\s*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
_WRITEFILE = re.compile(r"\A\s*%%writefile\s+(?:-a\s+)?(\S+)[^\n]*\n?")

Cell = dict[str, Any]


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of a notebook file.

    Raises
    ------
    DataError
        If the file is no notebook of format 4.
    """
    try:
        if path.stat().st_size > MAX_NOTEBOOK_BYTES:
            raise DataError(f"{path.name} is over {MAX_NOTEBOOK_BYTES // 10**6} MB; clear its outputs")
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))
        cells = notebook["cells"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path.name} is not a readable notebook ({type(error).__name__}); save it again"
        ) from error
    if not isinstance(cells, list):
        raise DataError(f"{path.name} is not a readable notebook (cells is no list); save it again")
    return [cell for cell in cells if isinstance(cell, dict)]


def source(cell: Cell) -> str:
    """Return a cell's text, which a file may hold as one text or as a list of lines."""
    text = cell.get("source", "")
    if isinstance(text, list):
        text = "".join(part for part in text if isinstance(part, str))
    return text if isinstance(text, str) else ""


def metadata(cell: Cell) -> dict[str, Any]:
    """Return a cell's metadata, empty where it is lost."""
    value = cell.get("metadata")
    return value if isinstance(value, dict) else {}


def nbgrader(cell: Cell) -> dict[str, Any]:
    """Return a cell's nbgrader metadata, empty where it is lost."""
    value = metadata(cell).get("nbgrader")
    return value if isinstance(value, dict) else {}


def grade_id(cell: Cell) -> str:
    """Return the grade id that nbgrader's metadata names, or an empty text."""
    value = nbgrader(cell).get("grade_id", "")
    return value if isinstance(value, str) else ""


def is_answer(cell: Cell) -> bool:
    """Whether nbgrader lets students write here."""
    return nbgrader(cell).get("solution") is True


def is_setup(cell: Cell) -> bool:
    """Whether the cell runs before every question."""
    tags = metadata(cell).get("tags")
    return cell.get("cell_type") == "code" and isinstance(tags, list) and "setup" in tags


def belongs_to(answer_id: str, question_id: str) -> bool:
    """Whether an answer cell is one of the question's: ``q1`` and ``q1_helper``, never ``q10``."""
    return answer_id == question_id or answer_id.startswith(question_id + "_")


def written_file(text: str) -> tuple[str, str] | None:
    """Return name and contents of a ``%%writefile`` cell, or None for any other cell."""
    match = _WRITEFILE.match(text)
    return (match.group(1), text[match.end() :]) if match else None


def defined_names(text: str) -> set[str]:
    """Return the names that a code cell defines at its top level.

    Examples
    --------
    >>> sorted(defined_names("import math\\ndef f(x):\\n    y = 1\\nclass A: pass\\nn = 3"))
    ['A', 'f', 'n']
    >>> sorted(defined_names("def f(x:\\n  oops"))
    ['f']
    >>> defined_names("%%writefile q1.c\\nint x;")
    {'q1.c'}
    """
    written = written_file(text)
    if written:
        return {written[0]}
    try:
        tree = ast.parse(without_magics(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A cell that does not parse is still recognisable by the line that opens its function.
        return {first or second for first, second in _DEFINES.findall(text)}
    return set(_bound(tree))


def _bound(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def without_magics(text: str) -> str:
    """Return the code with IPython's line magics and shell lines turned into ``pass``.

    Only a text that does not compile is touched, so that a string which holds a line like ``%d`` stays.

    Examples
    --------
    >>> without_magics("%matplotlib inline\\nif x:\\n    !ls\\n")
    'pass\\nif x:\\n    pass\\n'
    """
    try:
        compile(text, "<cell>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return re.sub(r"^([ \t]*)[%!?][^\n]*", r"\1pass", text, flags=re.MULTILINE)
    return text
