"""The hidden checks for stock nbgrader: one call in a test cell, no test source in the notebook.

nbgrader runs the student's notebook and the test cells in one kernel, so this path has none of the guards of
`tinyml grade`: it exists so that formgrader, feedback and export work on honest submissions.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ..checks.loading import load_lab
from ..checks.notebook import CheckError, run_check
from ..checks.protocol import stable_rng
from .course import find_course


def hidden_check(question_id: str, namespace: MutableMapping[str, Any]) -> None:
    """Run the hidden judge of a question on a live namespace; raise when it does not earn every point.

    Raises
    ------
    CheckError
        With the reason; the hidden input is not shown.
    """
    lab_id, _, name = question_id.partition(".")
    course = find_course()
    lab = load_lab(lab_id)
    question = next(q for q in course.questions(lab) if q.id == name)
    cases = question.cases(stable_rng(lab.id, name, "stock"))
    message = run_check(lab, question, namespace, cases, show_input=False)
    if message:
        raise CheckError(message)
