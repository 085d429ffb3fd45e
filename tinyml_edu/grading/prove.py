"""Five runs prove a lab: the reference, the empty release, every mutant, no leak, and a run offline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ..checks.protocol import Mutant, Question
from ..errors import GradingError
from .course import find_course, seeded_rng
from .graft import Graft, graft, read_master
from .labs import LabFolder
from .leaks import find_leaks
from .notebooks import read_cells
from .offline import run_offline
from .process import Launcher, plain_process
from .records import write_text
from .release import build
from .scoring import Grader, Score

# A proof must give the same answer tomorrow, so its seeds are fixed; a class has its own secret.
PROOF_SECRET = b"five runs prove a lab"
BUDGET_S = 600.0
FAST_BUDGET_S = 180.0


class Proof:
    """Grades variants of the reference; an answer that did not change is not run again."""

    def __init__(self, grader: Grader, questions: list[Question]) -> None:
        self._grader = grader
        self._questions = questions
        self._known: dict[tuple[Any, ...], Score] = {}

    def scores(self, found: Graft) -> dict[str, Score]:
        """Return the score of every automatic question."""
        return {question.id: self._score(question, found) for question in self._questions}

    def _score(self, question: Question, found: Graft) -> Score:
        job = self._grader.job(question, found)
        key = (question.id, job.answers)
        if key not in self._known:
            rng = seeded_rng(PROOF_SECRET, self._grader.lab.id, question.id)
            self._known[key] = self._grader.grade(question, found, rng)
        return self._known[key]


def prove(
    folder: LabFolder,
    *,
    course: str | os.PathLike[str] | None = None,
    launch: Launcher = plain_process,
    fast: bool = True,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Prove a lab and return the report.

    Parameters
    ----------
    folder : LabFolder
        The lab, in a development checkout.
    course : path, optional
        The instructor's folder.
    launch : Launcher
        How an answer's process is started; the code is the course's own.
    fast : bool
        Run the notebook with ``TINYML_EDU_FAST=1`` and its budget of 180 s instead of 600 s.
    workers : int, optional
        Mutants graded at the same time; by default one a core.
    progress : callable, optional
        Called with a line of text before each step.

    Returns
    -------
    dict
        ``reference, empty, max_score, mutants, killed, leaks, offline_ok, lab_seconds, seconds`` and, for
        people, ``details``.
    """
    say = progress or _silent
    started = time.monotonic()
    home, lab = find_course(course), folder.load()
    say("build")
    source, released = build(folder)
    write_text(folder.built_source, source)
    if not folder.notebook.is_file() or folder.notebook.read_text(encoding="utf-8") != released:
        raise GradingError(f"labs/{folder.name} is out of date, so it cannot be proven; run: make release")
    master = read_master(folder.notebook)
    proof = Proof(Grader(folder, lab, master, launch), home.questions(lab))
    say("reference")
    answers = graft(master, read_cells(folder.built_source), lab)
    reference = proof.scores(answers)
    say("empty release")
    empty = proof.scores(graft(master, read_cells(folder.notebook), lab))
    mutants = home.mutants(lab)
    say(f"{len(mutants)} mutants")
    # Threads are enough: each waits for a process that runs the mutant.
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        results = list(pool.map(lambda mutant: _run_mutant(mutant, proof, answers, reference), mutants))
    leaks = find_leaks(folder)
    say("the notebook with reference answers, offline")
    budget = FAST_BUDGET_S if fast else BUDGET_S
    checks = folder.checks.parent if folder.checks else None
    offline = run_offline(folder.built_source, home.path, budget_s=budget, fast=fast, checks=checks)
    return {
        "reference": _total(reference),
        "empty": _total(empty),
        "max_score": lab.max_score,
        "mutants": len(results),
        "killed": sum(result["killed"] for result in results),
        "leaks": len(leaks),
        "offline_ok": offline.ok,
        "lab_seconds": round(offline.seconds, 1),
        "seconds": round(time.monotonic() - started, 1),
        "details": {
            "reference": _lost(reference),
            "empty": [score.id for score in empty.values() if score.score],
            "mutants": results,
            "leaks": [f"{leak.file}: {leak.line}" for leak in leaks],
            "offline": offline.reason,
        },
    }


def _silent(text: str) -> None:
    pass


def _run_mutant(
    mutant: Mutant, proof: Proof, answers: Graft, reference: Mapping[str, Score]
) -> dict[str, Any]:
    """Replace one answer and compare the points lost with those declared, question by question."""
    if mutant.answer_cell not in answers.answers:
        raise GradingError(f"mutant {mutant.name!r} replaces {mutant.answer_cell!r}, which is no answer cell")
    mutated = replace(answers, answers={**answers.answers, mutant.answer_cell: mutant.source})
    scores = proof.scores(mutated)
    lost = {name: round(reference[name].score - scores[name].score, 6) for name in scores}
    lost = {name: points for name, points in lost.items() if points}
    declared = {name: round(float(points), 6) for name, points in mutant.loses.items()}
    return {
        "name": mutant.name,
        "question": mutant.question,
        "loses": declared,
        "lost": lost,
        "killed": lost == declared,
        "reason": scores[mutant.question].reason,
    }


def _total(scores: Mapping[str, Score]) -> float:
    return round(sum(score.score for score in scores.values()), 6)


def _lost(scores: Mapping[str, Score]) -> list[str]:
    return [f"{score.id}: {score.reason}" for score in scores.values() if score.score != score.max_score]


def problems(report: Mapping[str, Any]) -> list[str]:
    """Return what a report fails to prove, in words; empty for a proven lab."""
    details = report["details"]
    found = []
    if report["reference"] != report["max_score"]:
        lost = "; ".join(details["reference"])
        found.append(f"the reference scores {report['reference']} of {report['max_score']} ({lost})")
    if report["empty"] != 0:
        found.append(f"the empty release scores {report['empty']} ({', '.join(details['empty'])})")
    if not report["mutants"]:
        found.append("there is no mutant")
    for mutant in details["mutants"]:
        if not mutant["killed"]:
            found.append(f"mutant {mutant['name']!r} loses {mutant['lost']}, declared {mutant['loses']}")
    found += [f"leak in {leak}" for leak in details["leaks"]]
    if not report["offline_ok"]:
        found.append(f"the notebook does not run offline: {details['offline']}")
    return found
