"""Lab 1: every mutant is caught in-process, the source keeps the anatomy of a lab, the words are in order."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tinyml_edu.checks.lab01 import LAB
from tinyml_edu.checks.loading import load_file
from tinyml_edu.checks.protocol import Question

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "solutions" / "lab01_pruning" / "lab01_pruning.py"
MUTANTS = load_file(ROOT / "autograder" / "mutants" / "lab01.py", "lab01_mutants").MUTANTS
HIDDEN = {q.id: q for q in load_file(ROOT / "autograder" / "hidden" / "lab01.py", "lab01_hidden").QUESTIONS}
HEADINGS = [
    "Question and budget",
    "Setup",
    "Idea",
    "Build",
    "Measure",
    "Deploy or compare",
    "Reflect",
]


@functools.cache
def _cells() -> list[dict]:
    jupytext = pytest.importorskip("jupytext")
    return jupytext.reads(SOURCE.read_text(encoding="utf-8"), fmt="py:percent").cells


def _setup() -> str:
    return "\n".join(c.source for c in _cells() if "setup" in c.metadata.get("tags", []))


def _answer(grade_id: str) -> str:
    return next(c.source for c in _cells() if c.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


def _score(question: Question, answer: str, seed: int) -> float:
    """Return the share that an answer earns, the lowest over its cases; an exception earns 0."""
    namespace: dict = {"__name__": "__main__"}
    exec(_setup(), namespace)
    namespace.update({name: LAB.resolve(name) for name in question.uses})
    cases = question.cases(np.random.default_rng(seed))
    outputs = []
    try:
        exec(answer, namespace)
        for case in cases:
            outputs.append(question.drive(namespace, {name: value.copy() for name, value in case.items()}))
    except Exception:  # noqa: BLE001
        return 0.0
    return min(verdict.score for verdict in question.verdicts(cases, outputs))


@pytest.mark.parametrize("question", HIDDEN.values(), ids=lambda q: q.id)
def test_the_reference_earns_every_point_on_many_seeds(question):
    for seed in range(1 if question.kind == "numeric" else 6):
        assert _score(question, _answer(question.id), seed) == 1.0, f"seed {seed}"


@pytest.mark.parametrize("question", ["q1", "q2", "q3", "q5", "q6", "q7"])
def test_the_library_passes_the_judges_of_the_lab(question):
    """One meaning for one name: what a student writes could stand in the library."""
    found = HIDDEN[question]
    namespace = {name: LAB.resolve(name) for name in found.provides}
    for seed in range(3):
        cases = found.cases(np.random.default_rng(seed))
        outputs = [found.drive(namespace, case) for case in cases]
        for verdict in found.verdicts(cases, outputs):
            assert verdict.passed, (seed, verdict.reason)


def test_no_case_of_channel_sorting_is_sorted_already():
    """Else a copy of the model would pass: the two smallest cases are the visible ones."""
    for seed in range(200):
        for question in (LAB["q7"], HIDDEN["q7"]):
            for case in question.cases(np.random.default_rng(seed)):
                out = question.drive({"apply_channel_sorting": lambda model: model}, case)
                assert not question.judge(case, out).passed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_every_mutant_loses_its_question_on_every_seed(mutant):
    question = HIDDEN[mutant.question]
    for seed in range(1 if question.kind == "numeric" else 6):
        assert _score(question, mutant.source, seed) == 0.0, f"seed {seed}: {mutant.why}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mutant_runs_and_is_wrong_rather_than_broken(mutant):
    """A mutant that raises would be caught by any check: it must define what the question asks for."""
    question = HIDDEN[mutant.question]
    namespace: dict = {}
    exec(_setup(), namespace)
    namespace.update({name: LAB.resolve(name) for name in question.uses})
    exec(mutant.source, namespace)
    case = question.cases(np.random.default_rng(0))[0]
    assert question.drive(namespace, case)


def test_every_question_but_the_numeric_ones_has_a_mutant_for_each_shortcut():
    caught = {q: [m.name for m in MUTANTS if m.question == q] for q in HIDDEN}
    assert all(len(names) >= (1 if HIDDEN[q].kind == "numeric" else 3) for q, names in caught.items()), caught


def test_points_sum_to_a_hundred_and_at_most_ten_are_manual():
    assert LAB.max_score + LAB.manual_points == 100
    assert LAB.manual_points <= 10


def test_the_seven_headings_stand_in_order():
    text = "\n".join(c.source for c in _cells() if c.cell_type == "markdown")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


def test_markdown_cells_are_short_enough_to_be_read():
    for cell in _cells():
        words = len(re.sub(r"\$.*?\$", "", cell.source, flags=re.DOTALL).split())
        assert cell.cell_type != "markdown" or words <= 120, (words, cell.source[:60])


def test_code_cells_are_short():
    for cell in _cells():
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert cell.cell_type != "code" or len(lines) <= 26, (len(lines), cell.source[:60])


def test_no_solution_catches_exceptions_and_no_check_cell_ends_in_an_expression_with_a_value():
    for cell in _cells():
        if cell.metadata.get("nbgrader"):
            assert "except" not in cell.source or cell.cell_type == "markdown"


def test_setup_cells_hold_no_magics_because_they_run_in_plain_python():
    assert not re.search(r"^\s*[%!]", _setup(), re.MULTILINE)


def test_the_library_knows_where_the_repository_is():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["tinyml_edu"]
    assert set(table) >= {"repository", "branch"}
    assert table["repository"] not in SOURCE.read_text(), "write {{COLAB_BADGE}}, not the address"
