"""A graded question: data plus three small functions, each in its place.

``inputs(rng) -> arrays`` runs on the grader's side.  ``drive(namespace, arrays) -> arrays`` runs beside the
student's code and is public: it calls what the student defined and returns plain arrays.
``judge(arrays, outputs) -> Verdict`` runs on the grader's side again, recomputes the truth and never sees an
object that the student's code made.  The same three functions serve the check cells of a notebook,
``tinyml lab check``, the hidden judges and the mutants.

A lab's module ``tinyml_edu/checks/labNN.py`` ends in ``LAB = Lab(...)``.  The hidden module
``autograder/hidden/labNN.py`` ends in ``QUESTIONS = [LAB["q1"].hidden(inputs=..., judge=...), ...]``, one
entry for every question that is not written: it changes the inputs and the judge, never ``drive``, because
the hidden module does not enter the student's process.  ``autograder/mutants/labNN.py`` ends in
``MUTANTS = [Mutant(...), ...]``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..errors import GradingError, UnknownNameError

Arrays = dict[str, np.ndarray]
Namespace = Mapping[str, Any]
InputMaker = Callable[[np.random.Generator], Arrays]
Driver = Callable[[Namespace, Arrays], Arrays]


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one case.

    Parameters
    ----------
    score : float
        Share of the question's points, 0 to 1.
    reason : str
        What is wrong, in words, with what was expected and what came; empty when nothing is wrong.
    look_at : str
        Where a student should look: a class of mistake, an equation, a line of the lab.
    """

    score: float
    reason: str = ""
    look_at: str = ""

    def __post_init__(self) -> None:
        # `not (a <= x <= b)` also refuses NaN, which every plain comparison would let through.
        if not 0.0 <= self.score <= 1.0:
            raise ValueError(f"a verdict's score is a share from 0 to 1, not {self.score}")

    @property
    def passed(self) -> bool:
        """Whether the full points are earned."""
        return self.score == 1.0


PASS = Verdict(1.0)


def wrong(reason: str, *, look_at: str = "", score: float = 0.0) -> Verdict:
    """Return the verdict of a wrong answer; ``score`` is the partial credit that remains, if any."""
    return Verdict(score, reason, look_at)


Judge = Callable[[Arrays, Arrays], Verdict]


def _no_inputs(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return {}


@dataclass(frozen=True)
class Question:
    """One graded question of a lab.

    Parameters
    ----------
    id : str
        Grade id of the answer cell; further answer cells of the question are named ``<id>_<anything>``.
    title : str
        A few words for tables and feedback.
    points : float
        What the question is worth.
    provides : tuple of str
        Names that the student's answer cells define; ``"q1.c"`` for a ``%%writefile q1.c`` cell, whose text
        then stands under that name in the namespace.
    uses : tuple of str
        Names that the answer needs from earlier questions.  They are replaced by the reference, so that one
        mistake costs one question.
    inputs : callable or tuple of callables
        ``inputs(rng) -> {name: array}``.  Each callable makes one case; put the smallest first.  The
        question's score is the lowest over its cases.
    drive : callable
        ``drive(namespace, arrays) -> {name: array}``: calls the student's code.  It gets copies of
        the arrays.  None only for a written question.
    judge : callable
        ``judge(arrays, outputs) -> Verdict``, called once a case with the grader's own copy of the inputs.
    visible : bool
        Whether students are shown this question's check.
    timeout_s : float
        Wall-clock limit of the whole question, all cases together.
    kind : {"code", "numeric", "written"}
        A written question is graded by a person: its points are manual, it has no ``drive`` and no ``judge``.
    """

    id: str
    title: str
    points: float
    provides: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    inputs: InputMaker | tuple[InputMaker, ...] = _no_inputs
    drive: Driver | None = None
    judge: Judge | None = None
    visible: bool = True
    timeout_s: float = 30.0
    kind: Literal["code", "numeric", "written"] = "code"

    def __post_init__(self) -> None:
        if self.kind != "written" and (self.drive is None or self.judge is None or not self.provides):
            raise ValueError(f"question {self.id}: a {self.kind} question needs provides, drive and judge")
        if set(self.provides) & set(self.uses):
            raise ValueError(f"question {self.id}: a name cannot stand in both provides and uses")
        if not self.points > 0:
            raise ValueError(f"question {self.id}: points must be positive, not {self.points}")

    @property
    def makers(self) -> tuple[InputMaker, ...]:
        """The functions that make the cases, in order."""
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    def cases(self, rng: np.random.Generator) -> list[Arrays]:
        """Make every case; each maker draws from a generator of its own: no case depends on another."""
        makers = self.makers
        return [
            {name: np.asarray(value) for name, value in make(child).items()}
            for make, child in zip(makers, rng.spawn(len(makers)))
        ]

    def hidden(
        self, *, judge: Judge | None = None, inputs: InputMaker | tuple[InputMaker, ...] | None = None
    ) -> Question:
        """Return this question with hidden inputs and a stricter judge, where given; ``drive`` stays."""
        return dataclasses.replace(
            self, visible=False, inputs=inputs or self.inputs, judge=judge or self.judge
        )

    def verdicts(self, cases: Sequence[Arrays], outputs: Sequence[Arrays]) -> list[Verdict]:
        """Judge every case; a missing output or a judge that raises on a malformed one is a wrong answer."""
        if self.judge is None:
            raise GradingError(f"question {self.id} is graded by a person; it has no judge")
        if len(cases) != len(outputs):
            return [wrong(f"{len(outputs)} of {len(cases)} cases came back")]
        return [_judged(self.judge, case, output) for case, output in zip(cases, outputs)]


def _judged(judge: Judge, case: Arrays, output: Arrays) -> Verdict:
    """Call the judge; what it trips over came from the student's side: it costs the case, not the batch."""
    try:
        return judge(case, output)
    except KeyError as error:
        return wrong(f"no value named {error.args[0]!r} came back")
    except Exception as error:  # noqa: BLE001
        return wrong(f"the returned values cannot be judged ({type(error).__name__}: {error})")


def lowest(verdicts: Sequence[Verdict]) -> tuple[int, Verdict]:
    """Return index and verdict of the first case with the lowest score."""
    index = min(range(len(verdicts)), key=lambda i: verdicts[i].score)
    return index, verdicts[index]


def numeric(
    id: str,  # noqa: A002
    title: str,
    points: float,
    *,
    name: str,
    truth: Callable[[], float],
    rtol: float = 0.0,
    atol: float = 0.0,
    unit: str = "",
    look_at: str = "",
    uses: tuple[str, ...] = (),
) -> Question:
    """Return a predict-then-measure question: the answer cell sets the variable ``name`` to a number.

    Parameters
    ----------
    truth : callable
        ``truth() -> float``: recomputes the answer on the grader's side.  Nothing that the student measured
        is believed.
    rtol, atol : float
        The answer passes when ``|answer - truth| <= atol + rtol * |truth|``; both 0 for an integer count.
    look_at : str
        Printed with a wrong answer.
    """

    def drive(namespace: Namespace, arrays: Arrays) -> Arrays:  # noqa: ARG001
        value = namespace[name]
        if value is None or value is Ellipsis:
            raise NotImplementedError(f"set {name} to a number")
        if not isinstance(value, numbers.Real) and not (isinstance(value, np.ndarray) and value.size == 1):
            # A torch scalar has .item(); anything else is not one number.
            value = value.item() if hasattr(value, "item") else value
        return {name: np.asarray(value, dtype=np.float64).reshape(())}

    def judge(arrays: Arrays, outputs: Arrays) -> Verdict:  # noqa: ARG001
        got, want = float(outputs[name]), float(truth())
        if abs(got - want) <= atol + rtol * abs(want):
            return PASS
        size = "not a number" if np.isnan(got) else "too large" if got > want else "too small"
        return wrong(f"{name} = {got:,.10g}{unit and ' ' + unit} is {size}", look_at=look_at)

    return Question(id, title, points, provides=(name,), uses=uses, drive=drive, judge=judge, kind="numeric")


@dataclass(frozen=True)
class Lab:
    """A lab's questions and the reference that stands in for earlier answers.

    Parameters
    ----------
    id : str
        ``"lab00"``.
    title : str
        The lab's name.
    minutes : int
        Time for a student, reading included.
    questions : tuple of Question
        In the order of the notebook; written ones included.
    reference : mapping of str to object or str
        For every name in a ``uses`` (and, for the tripwire, every taught name that the library also has): the
        object itself or, so that nothing is imported before it is needed, ``"package.module:name"``.
    """

    id: str
    title: str
    minutes: int
    questions: tuple[Question, ...]
    reference: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [question.id for question in self.questions]
        if len(set(ids)) != len(ids):
            raise ValueError(f"{self.id}: question ids must be unique, not {ids}")
        missing = {name for question in self.questions for name in question.uses} - set(self.reference)
        if missing:
            raise ValueError(f"{self.id}: no reference for {', '.join(sorted(missing))}")

    def __getitem__(self, question_id: str) -> Question:
        for question in self.questions:
            if question.id == question_id:
                return question
        raise UnknownNameError(f"question of {self.id}", question_id, [q.id for q in self.questions])

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    @property
    def max_score(self) -> float:
        """Points that are graded automatically."""
        return sum(q.points for q in self.questions if q.kind != "written")

    @property
    def manual_points(self) -> float:
        """Points that a person gives."""
        return sum(q.points for q in self.questions if q.kind == "written")

    def resolve(self, name: str) -> Any:
        """Return the reference object for ``name``, importing it where the mapping holds a path."""
        return resolve(self.reference[name])


def resolve(target: Any) -> Any:
    """Return the object that ``"package.module:name"`` names; anything but a string is returned as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def stable_rng(*parts: str) -> np.random.Generator:
    """Return a generator that depends on the given texts only, on every machine and Python."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


@dataclass(frozen=True)
class Mutant:
    """A plausible wrong answer, kept in the repository, that the hidden judges must catch.

    Parameters
    ----------
    name : str
        The mistake in two or three words.
    question : str
        Id of the question whose answer is replaced.
    source : str
        Replacement text of the answer cell whose grade id is ``cell`` (default: the question's id).
    loses : mapping of str to float
        Points lost, a question; exactly these, no more and no less.
    why : str
        The misconception behind it.
    """

    name: str
    question: str
    source: str
    loses: Mapping[str, float]
    why: str
    cell: str = ""

    @property
    def answer_cell(self) -> str:
        """Grade id of the cell that the mutant replaces."""
        return self.cell or self.question
