"""Grade one notebook: graft, run every question, judge what comes back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks.notebook import explain
from ..checks.protocol import Arrays, Lab, Question, Verdict, lowest
from .driver import Job, run_question
from .graft import Graft, Master
from .labs import LabFolder
from .process import Launcher, plain_process

_NAME_ERROR = re.compile(r"^NameError: name '(\w+)'")


@dataclass(frozen=True)
class Score:
    """Points and reason of one question."""

    id: str
    score: float
    max_score: float
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The form of the machine-readable output."""
        return {"id": self.id, "score": self.score, "max_score": self.max_score, "reason": self.reason}


@dataclass(frozen=True)
class Grader:
    """What stays the same for every submission of a lab.

    Parameters
    ----------
    folder : LabFolder
        Where the lab lies.
    lab : Lab
        Its questions.
    master : Master
        The release notebook, which set-up cells come from.
    launch : Launcher
        How a student's process is started: plainly, or in a sandbox.
    """

    folder: LabFolder
    lab: Lab
    master: Master
    launch: Launcher = plain_process

    def job(self, question: Question, found: Graft) -> Job:
        """Return what the student's process of one question is given."""
        ids = self.master.ids_of(question.id)
        checks = str(self.folder.checks) if self.folder.checks else None
        answers = tuple((i, found.answers[i]) for i in ids if i in found.answers)
        return Job(self.lab.id, checks, question.id, self.master.setup, answers, question.timeout_s)

    def grade(self, question: Question, found: Graft, rng: np.random.Generator) -> Score:
        """Return the score of one question; whatever the answer does costs this question only.

        The reason of a hidden question names what failed, not the hidden input.
        """
        verdicts, reason = self._run_and_judge(question, found, question.cases(rng))
        if not verdicts:
            return Score(question.id, 0.0, question.points, reason)
        _, verdict = lowest(verdicts)
        words = verdict.reason + (f"; look at: {verdict.look_at}" if verdict.look_at else "")
        return Score(question.id, round(verdict.score * question.points, 6), question.points, words)

    def check(self, question: Question, found: Graft, rng: np.random.Generator) -> str:
        """Return what a visible check says, empty when it passes; it shows the failing input."""
        cases = question.cases(rng)
        verdicts, reason = self._run_and_judge(question, found, cases)
        return explain(self.lab, question, cases, verdicts) if verdicts else reason

    def _run_and_judge(
        self, question: Question, found: Graft, cases: Sequence[Arrays]
    ) -> tuple[list[Verdict], str]:
        """Return the verdicts of all cases, or none and the reason why the answer returned nothing."""
        job = self.job(question, found)
        if not job.answers:
            return [], "answer cell not found"
        returned = run_question(job, question, cases, self.launch)
        if returned.outputs is None:
            return [], with_hint(returned.reason, found)
        return question.verdicts(cases, returned.outputs), ""


def with_hint(reason: str, found: Graft) -> str:
    """Add the most frequent cause of a NameError: code that stands outside the answer cell."""
    match = _NAME_ERROR.match(reason)
    if match and match.group(1) in found.elsewhere:
        return f"{reason}; {match.group(1)} is defined outside the answer cell: move it into the answer"
    return reason
