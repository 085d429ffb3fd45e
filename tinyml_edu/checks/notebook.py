"""The check cell of a notebook: run one question on what the notebook has defined, and teach."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .loading import load_lab
from .protocol import Arrays, Lab, Question, Verdict, stable_rng, wrong
from .tripwire import armed, taken

_ABSENT = object()


class CheckError(AssertionError):
    """A check failed.  In a notebook only the message is shown, without the check's own frames."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: what to print in place of a traceback."""
        return [f"Check failed. {self}"]


def check(question_id: str, namespace: MutableMapping[str, Any] | None = None) -> None:
    """Run the visible check of a question; print that it passed or raise with what is wrong.

    Parameters
    ----------
    question_id : str
        ``"lab00.q1"``.
    namespace : mapping, optional
        Where the answer is defined; the caller's globals by default.

    Raises
    ------
    CheckError
        If the answer is missing or wrong.  The message holds the smallest failing input, what was expected,
        what came, and what to look at.
    """
    if namespace is None:
        namespace = sys._getframe(1).f_globals
    lab_id, dot, name = question_id.partition(".")
    if not dot:
        raise UsageError(f"a question is named like 'lab00.q1', not {question_id!r}")
    lab = load_lab(lab_id)
    question = lab[name]
    message = run_check(lab, question, namespace, question.cases(stable_rng(lab.id, name, "visible")))
    # Raised here, after every `except` has ended, so that no frame of the check or of a judge hangs on it.
    if message:
        raise CheckError(message)
    print(f"{question_id} ({question.title}): visible checks passed")


def run_check(
    lab: Lab,
    question: Question,
    namespace: MutableMapping[str, Any],
    cases: Sequence[Arrays],
    *,
    show_input: bool = True,
) -> str:
    """Return what is wrong with the answer in ``namespace``, or an empty text."""
    if question.drive is None:
        return ""
    for name in question.provides:
        # An answer in C is the file that its %%writefile cell has left in the notebook's folder.
        if "." in name and Path(name).is_file():
            namespace[name] = Path(name).read_text()
    missing = [name for name in question.provides if name not in namespace]
    if missing:
        return f"{lab.id}.{question.id}: {', '.join(missing)} is not defined; run the answer cell first"
    verdicts = []
    with injected(lab, question, namespace), armed(lab, question.provides, namespace):
        if stolen := taken(lab, question.provides, namespace):
            return f"{lab.id}.{question.id}: {stolen}"
        for case in cases:
            try:
                output = question.drive(namespace, {name: value.copy() for name, value in case.items()})
            except NotImplementedError:
                return f"{lab.id}.{question.id}: not answered yet; replace the NotImplementedError"
            except Exception as error:  # noqa: BLE001
                verdicts.append(wrong(describe_error(error, namespace)))
            else:
                verdicts += question.verdicts([case], [output])
    return explain(lab, question, cases, verdicts, show_input=show_input)


def explain(
    lab: Lab,
    question: Question,
    cases: Sequence[Arrays],
    verdicts: Sequence[Verdict],
    *,
    show_input: bool = True,
) -> str:
    """Return the message for the smallest failing case, or an empty text when all pass."""
    failing = [i for i, verdict in enumerate(verdicts) if not verdict.passed]
    if not failing:
        return ""
    index = min(failing, key=lambda i: sum(value.size for value in cases[i].values()))
    verdict = verdicts[index]
    lines = [f"{lab.id}.{question.id} ({question.title}): {verdict.reason}"]
    if show_input and cases[index]:
        lines.append("smallest failing input:")
        lines += [f"  {name} = {show(value)}" for name, value in cases[index].items()]
    if verdict.look_at:
        lines.append(f"look at: {verdict.look_at}")
    return "\n".join(lines)


def show(value: np.ndarray, limit: int = 16) -> str:
    """Return a value as a student would type it, or its shape, dtype and range when it is large.

    Examples
    --------
    >>> show(np.array([1, 2])), show(np.zeros((8, 8), np.float32))
    ('[1, 2]', 'float32 array of shape (8, 8), from 0 to 0')
    """
    if value.size <= limit:
        return np.array2string(value, separator=", ", precision=6)
    text = f"{value.dtype} array of shape {value.shape}"
    return f"{text}, from {value.min():g} to {value.max():g}" if value.dtype.kind in "biuf" else text


def describe_error(error: BaseException, namespace: MutableMapping[str, Any]) -> str:
    """Return type and message of an exception, with the last line of student code that it passed through."""
    place = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_globals is namespace:
            place = f" in {frame.f_code.co_name}, line {number} of its cell"
    text = str(error).strip()
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


@contextmanager
def injected(lab: Lab, question: Question, namespace: MutableMapping[str, Any]) -> Iterator[None]:
    """Within the block, the names that the question uses are the reference's; then the student's again."""
    before = {name: namespace.get(name, _ABSENT) for name in question.uses}
    try:
        for name in question.uses:
            namespace[name] = lab.resolve(name)
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                namespace.pop(name, None)
            else:
                namespace[name] = value
