"""A lab as its authors see it: source cells, hidden questions and mutants, and the score of one answer."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import numpy as np

from tinyml_edu.checks.loading import load_file
from tinyml_edu.checks.protocol import Lab, Question

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class LabSource:
    """One lab, found by its source ``solutions/labNN_topic/labNN_topic.py``."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.stem.partition("_")[0]

    @functools.cached_property
    def lab(self) -> Lab:
        return importlib.import_module(f"tinyml_edu.checks.{self.id}").LAB

    @functools.cached_property
    def hidden(self) -> dict[str, Question]:
        module = load_file(ROOT / "autograder" / "hidden" / f"{self.id}.py", f"{self.id}_hidden")
        return {question.id: question for question in module.QUESTIONS}

    @functools.cached_property
    def mutants(self) -> list[Any]:
        return load_file(ROOT / "autograder" / "mutants" / f"{self.id}.py", f"{self.id}_mutants").MUTANTS

    @functools.cached_property
    def cells(self) -> list[Any]:
        return jupytext.reads(self.path.read_text(encoding="utf-8"), fmt="py:percent").cells

    @property
    def setup(self) -> str:
        return "\n".join(c.source for c in self.cells if "setup" in c.metadata.get("tags", []))

    def answer(self, grade_id: str) -> str:
        """Return the reference answer of a question."""
        cells = (c for c in self.cells if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)
        return next(cells).source

    def namespace(self, question: Question) -> dict[str, Any]:
        """Return what stands before an answer: the set-up cells' names and the references that it uses."""
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(self.setup, names)
        return names | {name: self.lab.resolve(name) for name in question.uses}

    def score(self, question: Question, answer: str, seed: int) -> float:
        """Return the share that an answer earns, the lowest over its cases; an exception earns 0."""
        names = self.namespace(question)
        cases = question.cases(np.random.default_rng(seed))
        outputs = []
        try:
            exec(answer, names)
            for case in cases:
                outputs.append(question.drive(names, {name: value.copy() for name, value in case.items()}))
        except Exception:  # noqa: BLE001
            return 0.0
        return min(verdict.score for verdict in question.verdicts(cases, outputs))


LABS = [LabSource(path) for path in sorted(ROOT.glob("solutions/lab*/lab*.py"))]
"""Every lab of the course; one that joins is tested without a line of its own."""


def seeds(question: Question) -> range:
    """Return the seeds to try; a numeric question has one case."""
    return range(1 if question.kind == "numeric" else 6)
