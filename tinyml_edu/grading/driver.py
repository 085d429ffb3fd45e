"""One question in one process: hand over code and inputs, take arrays back, say in words what went wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checks.protocol import Arrays, Question
from ..errors import DataError, GradingError
from .arrays import read_arrays, unflatten, write_arrays
from .process import Finished, Launcher, plain_process

# For Python and the set-up cells on a loaded machine; the worker counts the question's own limit after them.
START_ALLOWANCE_S = 30.0
MAX_REPORT_BYTES = 64_000


@dataclass(frozen=True)
class Job:
    """What a student's process is given, beside the inputs.

    Parameters
    ----------
    lab_id : str
        ``"lab00"``.
    checks : str or None
        File with ``LAB``; None for a lab of the library.
    question_id : str
        Whose ``drive`` is called.
    setup : tuple of str
        Text of the set-up cells, from the release and never from the submission.
    answers : tuple of (str, str)
        Grade id and text of each answer cell of this question.
    timeout_s : float
        Limit of the question in seconds, set-up cells not included.
    """

    lab_id: str
    checks: str | None
    question_id: str
    setup: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    timeout_s: float


@dataclass(frozen=True)
class Returned:
    """What came back: one dictionary of arrays a case, or the reason why none did."""

    outputs: list[Arrays] | None
    reason: str
    stdout: str
    stderr: str
    seconds: float


def run_question(
    job: Job, question: Question, cases: Sequence[Arrays], launch: Launcher = plain_process
) -> Returned:
    """Run one question's answer on the inputs of all cases.

    Parameters
    ----------
    job : Job
        Code to run.
    question : Question
        Its limit, for the messages.
    cases : sequence of dict of str to ndarray
        Inputs; the student's process gets copies in a file.
    launch : Launcher
        How to start the process.

    Raises
    ------
    GradingError
        If the process fails before it reaches the answer: a broken lab or machine must never cost points.
    """
    folder = Path(tempfile.mkdtemp(prefix="tinyml-question-"))
    try:
        (folder / "job.json").write_text(json.dumps({**asdict(job), "cases": len(cases)}))
        write_arrays(folder / "inputs.npz", _flat(cases))
        command = [sys.executable, "-I", "-m", "tinyml_edu.grading.worker", str(folder)]
        finished = launch(command, folder, job.timeout_s + START_ALLOWANCE_S)
        outputs, reason = _collect(folder, question, len(cases), finished)
        return Returned(outputs, reason, finished.stdout, finished.stderr, finished.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flat(cases: Sequence[Arrays]) -> Arrays:
    return {f"{i}/{name}": value for i, case in enumerate(cases) for name, value in case.items()}


def _collect(
    folder: Path, question: Question, count: int, finished: Finished
) -> tuple[list[Arrays] | None, str]:
    """Read what the process left; nothing in the folder is trusted."""
    if not (folder / "ready").exists():
        last = (finished.stderr.strip() or "no message").splitlines()[-1]
        if finished.timed_out:
            last = (
                f"the set-up cells take longer than {START_ALLOWANCE_S:g} s; try again on a quieter machine"
            )
        raise GradingError(
            f"question {question.id} could not be set up, which is no fault of the answer: {last}"
        )
    if finished.timed_out:
        return (
            None,
            f"the answer takes longer than {question.timeout_s:g} s; look for a loop that does not end",
        )
    report = _report(folder / "report.json")
    if report:
        return None, report
    try:
        return unflatten(read_arrays(folder / "outputs.npz"), count), ""
    except DataError as error:
        if (folder / "outputs.npz").exists() and finished.returncode == 0:
            return None, str(error)
    return None, _how_it_ended(finished)


def _report(path: Path) -> str:
    """Return the worker's message, if it is a short text in a regular file."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_REPORT_BYTES:
            return ""
        message = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    reason = message.get("reason") if isinstance(message, dict) else None
    return reason[:2000] if isinstance(reason, str) else ""


def _how_it_ended(finished: Finished) -> str:
    if finished.returncode < 0:
        try:
            name = signal.Signals(-finished.returncode).name
        except ValueError:
            name = f"signal {-finished.returncode}"
        return (
            f"the process was ended by {name} before the answer returned; memory or processor time ran out?"
        )
    return f"the process ended by itself (exit code {finished.returncode}) before the answer returned"
