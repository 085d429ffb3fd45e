"""What a student runs before handing in: the visible checks, each in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checks.protocol import stable_rng
from ..errors import GradingError
from .graft import graft, read_master
from .labs import LabFolder
from .notebooks import read_cells
from .scoring import Grader


def check_notebook(folder: LabFolder, notebook: Path) -> list[dict[str, Any]]:
    """Run the visible checks of a lab on a notebook file.

    Parameters
    ----------
    folder : LabFolder
        The lab.
    notebook : Path
        The student's notebook, under any name.

    Returns
    -------
    list of dict
        ``id, title, passed, reason`` for each automatic question.

    Raises
    ------
    GradingError
        If the notebook is absent.
    DataError
        If it cannot be read.
    """
    path = Path(notebook)
    if not path.is_file():
        raise GradingError(f"there is no notebook {path}; give its path after the lab's name")
    lab = folder.load()
    grader = Grader(folder, lab, read_master(folder.notebook))
    found = graft(grader.master, read_cells(path), lab)
    results = []
    for question in lab:
        if question.kind == "written" or not question.visible:
            continue
        rng = stable_rng(lab.id, question.id, "visible")
        reason = grader.check(question, found, rng)
        notes = [note for note in found.notes if note.startswith(question.id + ":")]
        text = "; ".join([*([reason] if reason else []), *notes])
        results.append({"id": question.id, "title": question.title, "passed": not reason, "reason": text})
    return results
