"""Every lab: each mutant is caught in-process, the source keeps its anatomy, the words are in order."""

from __future__ import annotations

import re
import tomllib

import numpy as np
import pytest

pytest.importorskip("jupytext", reason="jupytext reads the sources of the labs")

from lab_sources import LABS, ROOT, seeds

HEADINGS = [
    "Question and budget",
    "Setup",
    "Idea",
    "Build",
    "Measure",
    "Deploy or compare",
    "Reflect",
]
every_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
every_mutant = pytest.mark.parametrize(
    ("lab", "mutant"),
    [
        pytest.param(lab, mutant, id=f"{lab.id}-{mutant.name.replace(' ', '-')}")
        for lab in LABS
        for mutant in lab.mutants
    ],
)


@pytest.mark.parametrize(
    ("lab", "question"),
    [pytest.param(lab, q, id=f"{lab.id}-{q.id}") for lab in LABS for q in lab.hidden.values()],
)
def test_the_reference_earns_every_point_on_many_seeds(lab, question):
    for seed in seeds(question):
        assert lab.score(question, lab.answer(question.id), seed) == 1.0, f"seed {seed}"


@every_mutant
def test_every_mutant_loses_its_question_on_every_seed(lab, mutant):
    question = lab.hidden[mutant.question]
    for seed in seeds(question):
        assert lab.score(question, mutant.source, seed) == 0.0, f"seed {seed}: {mutant.why}"


@every_mutant
def test_a_mutant_runs_and_is_wrong_rather_than_broken(lab, mutant):
    """A mutant that raises would be caught by any check: it must define what the question asks for."""
    question = lab.hidden[mutant.question]
    names = lab.namespace(question)
    exec(mutant.source, names)
    assert question.drive(names, question.cases(np.random.default_rng(0))[0])


@every_lab
def test_every_question_but_the_numeric_ones_has_a_mutant_for_each_shortcut(lab):
    caught = {q: [m.name for m in lab.mutants if m.question == q] for q in lab.hidden}
    enough = {q: len(names) >= (1 if lab.hidden[q].kind == "numeric" else 3) for q, names in caught.items()}
    assert all(enough.values()), caught


@every_lab
def test_points_sum_to_a_hundred_and_at_most_ten_are_manual(lab):
    assert lab.lab.max_score + lab.lab.manual_points == 100
    assert lab.lab.manual_points <= 10


@every_lab
def test_the_seven_headings_stand_in_order(lab):
    text = "\n".join(c.source for c in lab.cells if c.cell_type == "markdown")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


@every_lab
def test_markdown_cells_are_short_enough_to_be_read(lab):
    for cell in lab.cells:
        words = len(re.sub(r"\$.*?\$", "", cell.source, flags=re.DOTALL).split())
        assert cell.cell_type != "markdown" or words <= 120, (words, cell.source[:60])


@every_lab
def test_code_cells_are_short(lab):
    for cell in lab.cells:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert cell.cell_type != "code" or len(lines) <= 26, (len(lines), cell.source[:60])


@every_lab
def test_no_graded_cell_catches_exceptions(lab):
    for cell in lab.cells:
        if cell.metadata.get("nbgrader"):
            assert "except" not in cell.source or cell.cell_type == "markdown"


@every_lab
def test_setup_cells_hold_no_magics_because_they_run_in_plain_python(lab):
    assert not re.search(r"^\s*[%!]", lab.setup, re.MULTILINE)


@every_lab
def test_a_numeric_question_says_which_variable_it_wants(lab):
    """Else a student finds the right number, gives it another name, and is told that it is not defined."""
    text = "\n".join(c.source for c in lab.cells if c.cell_type == "markdown")
    for question in lab.hidden.values():
        if question.kind == "numeric":
            assert f"`{question.provides[0]}`" in text, question.id


@every_lab
def test_the_address_of_the_repository_stands_in_one_place(lab):
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["tinyml_edu"]
    assert set(table) >= {"repository", "branch"}
    assert table["repository"] not in lab.path.read_text(), "write {{COLAB_BADGE}}, not the address"
