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
from ..errors import DataError
from .arrays import read_arrays, write_arrays
from .process import Finished, Launcher, plain_process

# Start of Python and of the library; the question's own limit counts after it.
START_ALLOWANCE_S = 20.0
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
        Limit of the question in seconds, set-up cells included.
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
        For the number of points nothing, for the messages its names.
    cases : sequence of dict of str to ndarray
        Inputs; the student's process gets copies in a file.
    launch : Launcher
        How to start the process.
    """
    folder = Path(tempfile.mkdtemp(prefix="tinyml-question-"))
    try:
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        write_arrays(folder / "inputs.npz", _flat(cases))
        command = [sys.executable, "-I", "-m", "tinyml_edu.grading.worker", str(folder)]
        finished = launch(command, folder, job.timeout_s + START_ALLOWANCE_S)
        outputs, reason = _collect(folder, question, len(cases), finished)
        return Returned(outputs, reason, finished.stdout, finished.stderr, finished.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flat(cases: Sequence[Arrays]) -> Arrays:
    return {f"{i}/{name}": value for i, case in enumerate(cases) for name, value in case.items()}


def unflatten(arrays: Arrays, count: int) -> list[Arrays]:
    """Return the arrays ``"<case>/<name>"`` as one dictionary a case.

    Raises
    ------
    DataError
        If a name belongs to no case.
    """
    cases: list[Arrays] = [{} for _ in range(count)]
    for key, value in arrays.items():
        index, _, name = key.partition("/")
        if not (index.isdecimal() and index.isascii() and int(index) < count):
            raise DataError(f"an array was returned for a case that does not exist: {key[:40]}")
        cases[int(index)][name] = value
    return cases


def _collect(
    folder: Path, question: Question, count: int, finished: Finished
) -> tuple[list[Arrays] | None, str]:
    """Read what the process left; nothing in the folder is trusted."""
    if finished.timed_out:
        return None, f"the answer takes longer than {question.timeout_s:g} s; look for a loop that does not end"
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
        return f"the process was ended by {name} before the answer returned; memory or processor time ran out?"
    return f"the process ended by itself (exit code {finished.returncode}) before the answer returned"
