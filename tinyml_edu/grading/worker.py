"""The program inside the student's process: set-up cells, this question's answer, `drive`, arrays out.

It holds nothing worth stealing: code, inputs and the public checks.  It reports in words to ``report.json``
and leaves with ``os._exit``, so that threads or exit handlers of an answer cannot hold it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import linecache
import os
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from ..checks.loading import load_checks, load_lab
from ..checks.protocol import Arrays, Lab, Question
from ..checks.tripwire import armed, taken
from ..errors import DataError
from .arrays import read_arrays, unflatten, write_arrays
from .notebooks import without_magics, written_file

MEMORY_BYTES = 4 << 30
FILE_BYTES = 64 << 20
READY = "ready"


class AnswerError(Exception):
    """What to tell the student; the message is the whole of it."""


def main(folder: Path) -> int:
    """Run the job in ``folder``; return the exit code."""
    job = json.loads((folder / "job.json").read_text())
    limit(job["timeout_s"])
    checks = job["checks"]
    lab = load_checks(Path(checks)) if checks else load_lab(job["lab_id"])
    inputs = read_arrays(folder / "inputs.npz")
    cases = unflatten(inputs, job["cases"])
    question = dataclasses.replace(lab[job["question_id"]], timeout_s=job["timeout_s"])
    namespace = set_up(lab, question, job["setup"])
    # From here on a failure is the answer's; before, it was the grader's.
    (folder / READY).touch()
    try:
        outputs = answer(lab, question, namespace, job, cases)
        start_clock(0)
        write_arrays(folder / "outputs.npz", outputs)
    except (AnswerError, DataError) as error:
        report(folder, str(error))
    return 0


def limit(timeout_s: float) -> None:
    """Set this process's limits, before any code of a student runs; not every system has each of them."""
    try:
        import resource
    except ImportError:
        return
    seconds = int(timeout_s) + 30
    for name, value in (("AS", MEMORY_BYTES), ("FSIZE", FILE_BYTES), ("CORE", 0), ("CPU", seconds)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def start_clock(timeout_s: float) -> None:
    """Raise in the answer after ``timeout_s`` (0: never), so that the message can name the limit.

    The parent's limit stands behind it, for code that swallows everything or is deep in C.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)


class _TimeUpError(BaseException):
    """Not an `Exception`, so that an answer's own ``except Exception`` does not swallow it."""


def _too_long(signum: int, frame: Any) -> None:  # noqa: ARG001
    raise _TimeUpError


def set_up(lab: Lab, question: Question, cells: list[str]) -> dict[str, Any]:
    """Run the set-up cells in a fresh module, add what the question uses, return the namespace."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # dataclasses and pickling look classes up here
    namespace = vars(module)
    for number, text in enumerate(cells):
        execute(text, f"set-up cell {number + 1}", namespace)
    for name in question.uses:
        namespace[name] = lab.resolve(name)
    for name in question.provides:
        if name in lab.reference:
            lab.resolve(name)  # imported now, so that the answer's clock does not count it
    return namespace


def answer(
    lab: Lab, question: Question, namespace: dict[str, Any], job: dict[str, Any], cases: list[Arrays]
) -> Arrays:
    """Execute the answer cells and drive every case; return the outputs as ``"<case>/<name>"``."""
    with armed(lab, question.provides, namespace):
        start_clock(job["timeout_s"])
        for grade_id, text in job["answers"]:
            run_cell(text, f"answer cell {grade_id}", namespace, question)
        missing = [name for name in question.provides if name not in namespace]
        if missing:
            raise AnswerError(f"{', '.join(missing)} is not defined in the answer cell")
        if message := taken(lab, question.provides, namespace):
            raise AnswerError(message)
        return drive_cases(question, namespace, cases)


def drive_cases(question: Question, namespace: dict[str, Any], cases: list[Arrays]) -> Arrays:
    """Call ``drive`` on copies of each case's arrays."""
    import numpy as np

    outputs: Arrays = {}
    assert question.drive is not None
    for index, case in enumerate(cases):
        try:
            returned = question.drive(namespace, {name: value.copy() for name, value in case.items()})
            for name, value in returned.items():
                outputs[f"{index}/{name}"] = np.asarray(value)
        except BaseException as error:  # noqa: BLE001
            raise AnswerError(explain(error, question)) from None
    return outputs


def run_cell(text: str, place: str, namespace: dict[str, Any], question: Question) -> None:
    """Execute one answer cell; whatever it raises becomes a message."""
    try:
        execute(text, place, namespace)
    except BaseException as error:  # noqa: BLE001
        raise AnswerError(explain(error, question)) from None


def execute(text: str, place: str, namespace: dict[str, Any]) -> None:
    """Execute one cell; a ``%%writefile`` cell leaves its file, and its text under the file's name."""
    written = written_file(text)
    if written:
        name, contents = written
        namespace[name] = contents
        Path(Path(name).name).write_text(contents)
        return
    code = without_magics(text)
    filename = f"<{place}>"
    # For tracebacks and inspect.getsource, as in a notebook.
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    exec(compile(code, filename, "exec", dont_inherit=True), namespace)  # noqa: S102


def explain(error: BaseException, question: Question) -> str:
    """Return an exception in words, with the student's line."""
    if isinstance(error, _TimeUpError):
        return f"the answer takes longer than {question.timeout_s:g} s; look for an endless loop"
    if isinstance(error, NotImplementedError):
        return f"not answered yet{': ' + str(error) if str(error) else ''}"
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}, line {error.lineno} of {str(error.filename).strip('<>')}"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(("<answer cell", "<set-up cell")):
            return f"{text} (line {frame.lineno} of {frame.filename.strip('<>')})"
    return text


def report(folder: Path, reason: str) -> None:
    """Leave a message for the grader."""
    partial = folder / "report.partial"
    partial.write_text(json.dumps({"reason": reason[:2000]}))
    os.replace(partial, folder / "report.json")


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
