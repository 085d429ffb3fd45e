"""A made class whose scores are known: the reference, the empty release, mutants, damaged notebooks.

``python -m tinyml_edu.grading.sample lab00 DIR`` writes one folder a student, to try the grader on.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checks.protocol import Lab, Mutant
from ..errors import TinyMLError, UsageError
from .course import Course, find_course
from .labs import LabFolder, find
from .notebooks import grade_id
from .records import write_text
from .release import build

Notebook = dict[str, Any]


def write_class(folder: LabFolder, course: Course, directory: Path) -> dict[str, float]:
    """Write the submissions of a made class; return each student's score.

    Parameters
    ----------
    folder : LabFolder
        The lab; its notebooks are built from the source for this.
    course : Course
        Where the mutants are.
    directory : Path
        Gets one folder a student; folders of the same names are written over.
    """
    expected = {}
    for student, name, notebook, score in _submissions(folder, course):
        write_text(directory / student / name, json.dumps(notebook, indent=1) + "\n")
        expected[student] = score
    return expected


def _submissions(folder: LabFolder, course: Course) -> Iterator[tuple[str, str, Notebook, float]]:
    """Yield student, file name, notebook and score."""
    lab = folder.load()
    solved, released = (json.loads(text) for text in build(folder))
    own_name = f"{folder.name}.ipynb"
    first = _one_mutant_a_question(course, lab)
    yield "ada", own_name, solved, lab.max_score
    yield "ben", own_name, released, 0.0
    yield "cleo", "Copy of lab.ipynb", _as_colab_saves(solved), lab.max_score
    yield "dora", own_name, _handed_in_twice(solved, released), lab.max_score
    for student, mutants in zip(("emil", "fay", "gus"), (first[:1], first[:2], first[2:])):
        lost = sum(sum(mutant.loses.values()) for mutant in mutants)
        yield student, own_name, _with_mistakes(solved, mutants), round(lab.max_score - lost, 6)


def _one_mutant_a_question(course: Course, lab: Lab) -> list[Mutant]:
    """Return the first mutant of each question that loses points there only, so that losses add up."""
    alone = [m for m in course.mutants(lab) if set(m.loses) == {m.question}]
    return list({m.question: m for m in reversed(alone)}.values())[::-1]


def _with_mistakes(notebook: Notebook, mutants: list[Mutant]) -> Notebook:
    made = copy.deepcopy(notebook)
    for mutant in mutants:
        for cell in made["cells"]:
            if grade_id(cell) == mutant.answer_cell:
                cell["source"] = mutant.source
    return made


def _as_colab_saves(notebook: Notebook) -> Notebook:
    """Lose what Colab loses: nbgrader's metadata and the cell ids; ``metadata.id`` stays."""
    made = copy.deepcopy(notebook)
    for cell in made["cells"]:
        cell.pop("id", None)
        cell["metadata"].pop("nbgrader", None)
    return {**made, "nbformat_minor": 0}


def _handed_in_twice(solved: Notebook, released: Notebook) -> Notebook:
    """Leave a blank copy of every answer cell at the end, and delete every test."""
    answers = [cell for cell in released["cells"] if cell["metadata"].get("nbgrader", {}).get("solution")]
    kept = [cell for cell in solved["cells"] if not grade_id(cell).endswith("_check")]
    return {**solved, "cells": copy.deepcopy([*kept, *answers])}


def main(arguments: list[str] | None = None) -> int:
    """``python -m tinyml_edu.grading.sample LAB DIR``."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if len(words) != 2:
            raise UsageError("usage: python -m tinyml_edu.grading.sample LAB DIR")
        expected = write_class(find(words[0]), find_course(), Path(words[1]))
    except TinyMLError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for student, score in expected.items():
        print(f"{student}: {score:g} points expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
