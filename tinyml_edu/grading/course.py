"""The instructor's folder: hidden judges, mutants, the secret of the seeds, and the records."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checks.loading import load_file
from ..checks.protocol import Lab, Mutant, Question
from ..errors import GradingError
from .labs import checkout_root

COURSE_VARIABLE = "TINYML_EDU_COURSE"
SECRET_VARIABLE = "TINYML_EDU_GRADING_SECRET"


@dataclass(frozen=True)
class Course:
    """A folder with ``hidden/labNN.py`` and ``mutants/labNN.py``."""

    path: Path

    @property
    def state(self) -> Path:
        """Where secret and records live; git ignores it."""
        return self.path / ".build"

    def hidden_file(self, lab_id: str) -> Path:
        """The file with the hidden judges of a lab."""
        return self.path / "hidden" / f"{lab_id}.py"

    def questions(self, lab: Lab) -> list[Question]:
        """Return the hidden form of every automatic question, in the lab's order.

        Raises
        ------
        GradingError
            If a question is missing, unknown or changes ``drive``.
        """
        hidden = {
            q.id: q for q in load_file(self.hidden_file(lab.id), f"tinyml_edu_hidden_{lab.id}").QUESTIONS
        }
        automatic = [q for q in lab if q.kind != "written"]
        unknown = set(hidden) - {q.id for q in automatic}
        absent = [q.id for q in automatic if q.id not in hidden]
        if unknown or absent:
            raise GradingError(
                f"{self.hidden_file(lab.id)}: no judge for {', '.join(absent) or 'nothing'}; "
                f"unknown: {', '.join(sorted(unknown)) or 'nothing'}.  List every automatic question"
            )
        for question in automatic:
            if (
                hidden[question.id].drive is not question.drive
                or hidden[question.id].points != question.points
            ):
                raise GradingError(
                    f"{self.hidden_file(lab.id)}: {question.id} must keep drive and points; "
                    f'make it with LAB["{question.id}"].hidden(...)'
                )
        return [hidden[q.id] for q in automatic]

    def mutants(self, lab: Lab) -> list[Mutant]:
        """Return the mutants of a lab; each names questions that exist and loses something."""
        path = self.path / "mutants" / f"{lab.id}.py"
        mutants = list(load_file(path, f"tinyml_edu_mutants_{lab.id}").MUTANTS)
        known = {q.id for q in lab}
        for mutant in mutants:
            if mutant.question not in known or not set(mutant.loses) <= known or not mutant.loses:
                raise GradingError(
                    f"{path}: mutant {mutant.name!r} names an unknown question or loses nothing"
                )
        return mutants

    def secret(self) -> bytes:
        """Return the secret behind the seeds, made on first use and then kept."""
        if SECRET_VARIABLE in os.environ:
            return os.environ[SECRET_VARIABLE].encode()
        path = self.state / "secret"
        if not path.exists():
            self.state.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                pass  # another grader was first; its secret is the one to use
            else:
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_hex(32))
        return path.read_bytes()


def find_course(path: str | os.PathLike[str] | None = None) -> Course:
    """Return the course folder: the given one, ``$TINYML_EDU_COURSE``, or ``autograder/`` of this checkout.

    Raises
    ------
    GradingError
        If there is none.
    """
    chosen = path or os.environ.get(COURSE_VARIABLE)
    root = checkout_root()
    folder = Path(chosen) if chosen else root / "autograder" if root else None
    if folder is None:
        raise GradingError(
            "grading needs the instructor's folder with hidden/ and mutants/; clone the repository and add "
            "--course DIR (its autograder/)"
        )
    if not (folder / "hidden").is_dir():
        raise GradingError(f"{folder} is no course folder: it has no hidden/; give another with --course DIR")
    return Course(folder.resolve())


def seeded_rng(secret: bytes, *parts: str) -> np.random.Generator:
    """Return the generator of one question of one submission: HMAC-SHA256 of the parts under the secret."""
    digest = hmac.new(secret, "\0".join(parts).encode(), hashlib.sha256).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
