"""Take the answers out of a submission and leave the rest of it behind.

The release notebook is the master: it says which answers exist.  Set-up cells and checks come from it, never
from the submission, so that a deleted test, a lost tag or a moved cell costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ..checks.protocol import Lab
from ..errors import GradingError
from .notebooks import (
    Cell,
    belongs_to,
    defined_names,
    grade_id,
    is_answer,
    is_setup,
    metadata,
    read_cells,
    source,
)


@dataclass(frozen=True)
class Master:
    """What the release notebook says: set-up cells and answer cells, in its order."""

    setup: tuple[str, ...]
    answers: tuple[Cell, ...]
    before: dict[str, str]

    def ids_of(self, question_id: str) -> list[str]:
        """Grade ids of the answer cells of a question."""
        return [grade_id(cell) for cell in self.answers if belongs_to(grade_id(cell), question_id)]


@dataclass
class Graft:
    """The answers found in one submission.

    Parameters
    ----------
    answers : dict of str to str
        Grade id to text; an answer that was not found is absent.
    notes : list of str
        What was unusual, for instructor and student.
    elsewhere : set of str
        Names that cells outside the answers define: a frequent cause of a NameError.
    """

    answers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)


def read_master(path: Path) -> Master:
    """Read a release (or source) notebook.

    Raises
    ------
    GradingError
        If it holds no answer cell.
    """
    if not path.is_file():
        raise GradingError(f"the release notebook {path} is missing; run: make release")
    cells = read_cells(path)
    answers = tuple(cell for cell in cells if is_answer(cell))
    if not answers:
        raise GradingError(f"{path} has no answer cell; run: make release")
    before = {grade_id(b): source(a).strip() for a, b in pairwise(cells) if is_answer(b)}
    return Master(tuple(source(cell) for cell in cells if is_setup(cell)), answers, before)


def graft(master: Master, cells: list[Cell], lab: Lab) -> Graft:
    """Match every answer cell of the master in a submission.

    The first of these that finds a cell decides: grade id, cell id, the id that Colab keeps in the metadata,
    the names that the cell defines, and for prose the cell before.
    """
    result = Graft()
    happened: dict[str, list[str]] = {}  # what was noted, and of which answers: one note a kind
    used: list[int] = []
    for cell in master.answers:
        answer_id = grade_id(cell)
        how, found = _search(master, cell, cells, lab)
        if not found:
            happened.setdefault("answer cell not found", []).append(answer_id)
            continue
        chosen = _last_changed(found, source(cell))
        used += [i for i, other in enumerate(cells) if any(other is one for one in found)]
        result.answers[answer_id] = source(chosen)
        if how:
            happened.setdefault(f"found by {how}; nbgrader's metadata is lost", []).append(answer_id)
        if len(found) > 1:
            kind = f"{len(found)} copies; the last changed one is graded"
            happened.setdefault(kind, []).append(answer_id)
    result.notes += [f"{', '.join(ids)}: {what}" for what, ids in happened.items()]
    for index, other in enumerate(cells):
        if index not in used and other.get("cell_type") == "code":
            result.elsewhere |= defined_names(source(other))
    return result


def _search(master: Master, cell: Cell, cells: list[Cell], lab: Lab) -> tuple[str, list[Cell]]:
    answer_id = grade_id(cell)
    names = _names(cell, lab, master)

    def after_its_neighbour(other: Cell) -> bool:
        index = next(i for i, one in enumerate(cells) if one is other)
        text = master.before.get(answer_id, "")
        return bool(index and text) and source(cells[index - 1]).strip() == text

    tests: list[tuple[str, Callable[[Cell], bool]]] = [
        ("", lambda c: grade_id(c) == answer_id),
        ("its cell id", lambda c: c.get("id") == answer_id),
        ("Colab's id", lambda c: metadata(c).get("id") == answer_id),
        ("the name that it defines", lambda c: _defines(c, names)),
        ("the cell before it", after_its_neighbour),
    ]
    for how, test in tests:
        found = [other for other in cells if test(other)]
        if found:
            return how, found
    return "", []


def _names(cell: Cell, lab: Lab, master: Master) -> set[str]:
    """Names by which a cell is known: those that its released text defines or its question provides."""
    answer_id = grade_id(cell)
    names = defined_names(source(cell)) if cell.get("cell_type") == "code" else set()
    for question in lab:
        if belongs_to(answer_id, question.id) and len(master.ids_of(question.id)) == 1:
            names |= set(question.provides)
    return names


def _defines(cell: Cell, names: set[str]) -> bool:
    return cell.get("cell_type") == "code" and bool(names & defined_names(source(cell)))


def _last_changed(found: list[Cell], released: str) -> Cell:
    """Of several copies the last that differs from the released text, else the last."""
    changed = [cell for cell in found if source(cell).strip() != released.strip()]
    return (changed or found)[-1]


def choose_notebook(paths: Iterable[Path], master: Master, name: str) -> tuple[Path | None, str]:
    """Return the notebook of a submission that may hold several, and a note when there was a choice.

    The lab's own name wins; else the one with the most answer cells; else the first by name.
    """
    paths = sorted(paths)
    if len(paths) <= 1:
        return (paths[0] if paths else None), ""
    wanted = {grade_id(cell) for cell in master.answers}

    def merit(path: Path) -> tuple[bool, int]:
        try:
            present = {grade_id(cell) for cell in read_cells(path)}
        except Exception:  # noqa: BLE001  an unreadable copy merely loses the choice
            present = set()
        return path.stem == name, len(wanted & present)

    chosen = max(paths, key=merit)
    return chosen, f"{len(paths)} notebooks were handed in; {chosen.name} is graded"
