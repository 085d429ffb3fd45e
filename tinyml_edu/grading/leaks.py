"""No line of a solution or of a hidden test may stand in what students get."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .labs import LabFolder
from .notebooks import Cell, is_answer, read_cells, source

MIN_CHARACTERS = 12
_BEGIN = re.compile(r"BEGIN (SOLUTION|HIDDEN TESTS|MARK SCHEME)")
_END = re.compile(r"END (SOLUTION|HIDDEN TESTS|MARK SCHEME)")


@dataclass(frozen=True)
class Leak:
    """A line that students must not see, and the file under ``labs/`` that shows it."""

    file: str
    line: str


def find_leaks(folder: LabFolder) -> list[Leak]:
    """Return the secret lines of a lab that stand in its release folder and nowhere public in its source.

    A line counts from `MIN_CHARACTERS` non-space characters on; runs of blanks are taken as one.  The source
    notebook is read from ``.build/source``: build it first.
    """
    secret, public = split(read_cells(folder.built_source))
    known = "\n".join(public)
    wanted = [line for line in dict.fromkeys(secret) if _long_enough(line) and line not in known]
    leaks = []
    for path in sorted(p for p in folder.notebook.parent.rglob("*") if p.is_file()):
        shown = "\n".join(_shown(path))
        leaks += [Leak(str(path.relative_to(folder.root / "labs")), line) for line in wanted if line in shown]
    return leaks


def split(cells: list[Cell]) -> tuple[list[str], list[str]]:
    """Return the secret and the public lines of a source notebook."""
    secret: list[str] = []
    public: list[str] = []
    for cell in cells:
        text = source(cell)
        # An answer cell without a region is cleared as a whole.
        inside = is_answer(cell) and not _BEGIN.search(text)
        for line in text.splitlines():
            if _BEGIN.search(line):
                inside = True
            elif _END.search(line):
                inside = False
            else:
                (secret if inside else public).append(_normal(line))
    return secret, public


def _shown(path: Path) -> Iterator[str]:
    """Yield every line that a reader of a released file sees; in a notebook also its outputs."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".ipynb":
        for cell in read_cells(path):
            yield from map(_normal, source(cell).splitlines())
            # Outputs are nested in many ways; their JSON text holds every line that they show.
            yield _normal(repr(cell.get("outputs", "")))
    else:
        yield from map(_normal, text.splitlines())


def _normal(line: str) -> str:
    return " ".join(line.split())


def _long_enough(line: str) -> bool:
    return len(line.replace(" ", "")) >= MIN_CHARACTERS
