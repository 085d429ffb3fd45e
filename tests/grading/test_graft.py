"""Twelve structural damages: the answers are found all the same, and the repair is reported."""

from __future__ import annotations

import copy
import json

import pytest
from conftest import cell_of

from tinyml_edu.errors import DataError
from tinyml_edu.grading.graft import choose_notebook, graft
from tinyml_edu.grading.notebooks import belongs_to, read_cells

ANSWERS = ("q1", "q2", "q3", "q4", "q5")


def _without_nbgrader(notebook):
    for cell in notebook["cells"]:
        cell["metadata"].pop("nbgrader", None)


def _without_metadata(notebook):
    for cell in notebook["cells"]:
        cell["metadata"] = {}


def _colab(notebook):
    """Colab drops nbgrader's metadata and the cell ids, and keeps metadata.id."""
    _without_nbgrader(notebook)
    for cell in notebook["cells"]:
        del cell["id"]


def _bare(notebook):
    _without_metadata(notebook)
    for cell in notebook["cells"]:
        del cell["id"]


def _as_text(notebook):
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])


def _reverse(notebook):
    notebook["cells"].reverse()


def _only_answers(notebook):
    notebook["cells"] = [c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("solution")]


def _without_tests(notebook):
    notebook["cells"] = [c for c in notebook["cells"] if not c["metadata"].get("nbgrader", {}).get("grade")]
    # q5 is graded by hand: its answer cell is its test cell.


def _duplicated_checks(notebook):
    notebook["cells"] += [copy.deepcopy(cell_of(notebook, "q1_check"))] * 2


def _junk_cells(notebook):
    notebook["cells"] = [{"cell_type": "code"}, 7, {"source": None}, *notebook["cells"], {}]


def _prose_turned_into_code(notebook):
    cell_of(notebook, "q5")["cell_type"] = "code"


def _null_metadata(notebook):
    for cell in notebook["cells"]:
        cell["metadata"].update({"tags": None, "collapsed": True})


DAMAGES = [
    _without_nbgrader,
    _without_metadata,
    _colab,
    _bare,
    _as_text,
    _reverse,
    _only_answers,
    _duplicated_checks,
    _junk_cells,
    _prose_turned_into_code,
    _null_metadata,
]


def _graft(notebook, tmp_path, master, lab):
    path = tmp_path / "Copy of lab1 (3).ipynb"
    path.write_text(json.dumps(notebook))
    return graft(master, read_cells(path), lab)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__.strip("_"))
def test_every_answer_survives(damage, solved, tmp_path, master, tiny_lab, reference):
    damage(solved)
    found = _graft(solved, tmp_path, master, tiny_lab)
    assert found.answers == reference.answers, found.notes


@pytest.mark.parametrize(
    ("damage", "words"),
    [(_without_nbgrader, "its cell id"), (_colab, "Colab's id"), (_bare, "the name that it defines")],
)
def test_the_way_it_was_found_is_reported(damage, words, solved, tmp_path, master, tiny_lab):
    damage(solved)
    notes = _graft(solved, tmp_path, master, tiny_lab).notes
    named = [note.partition(":")[0].split(", ") for note in notes if words in note]
    assert len(named) == 1  # one note for all answers that were found this way
    assert len(named[0]) >= 3, notes


def test_deleted_tests_leave_the_answers_alone(solved, tmp_path, master, tiny_lab, reference):
    _without_tests(solved)
    found = _graft(solved, tmp_path, master, tiny_lab)
    assert {k: v for k, v in found.answers.items() if k != "q5"} == {
        k: v for k, v in reference.answers.items() if k != "q5"
    }
    assert found.notes == ["q5: answer cell not found"]


def test_of_two_copies_the_last_changed_one_is_graded(tiny, solved, tmp_path, master, tiny_lab):
    released = json.loads(tiny.notebook.read_text())
    solved["cells"].append(copy.deepcopy(cell_of(solved, "q1")))
    solved["cells"][-1]["source"] = "def row_means(x):\n    return 'second'\n"
    solved["cells"].append(copy.deepcopy(cell_of(released, "q1")))
    found = _graft(solved, tmp_path, master, tiny_lab)
    assert "second" in found.answers["q1"]
    assert "q1: 3 copies; the last changed one is graded" in found.notes


def test_an_undamaged_notebook_has_no_notes(solved, tmp_path, master, tiny_lab):
    assert _graft(solved, tmp_path, master, tiny_lab).notes == []


def test_the_set_up_comes_from_the_master(solved, tmp_path, master, tiny_lab):
    cell_of(solved, "setup-2")["source"] = "import evil"
    _graft(solved, tmp_path, master, tiny_lab)
    assert all("evil" not in text for text in master.setup)
    assert any("import numpy" in text for text in master.setup)


def test_a_missing_answer_is_missing(solved, tmp_path, master, tiny_lab):
    solved["cells"] = [c for c in solved["cells"] if c["id"] != "q2"]
    found = _graft(solved, tmp_path, master, tiny_lab)
    assert "q2" not in found.answers
    assert "q2: answer cell not found" in found.notes


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": null}', "[" * 200_000, "\x00"])
def test_a_file_that_is_no_notebook_is_refused_in_one_line(text, tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(DataError, match=r"x\.ipynb is not a readable notebook"):
        read_cells(path)


def test_q10_is_not_part_of_q1():
    assert belongs_to("q1_helper", "q1")
    assert not belongs_to("q10", "q1")


def test_of_several_notebooks_the_labs_own_name_wins_then_the_fullest(tiny, tmp_path, master):
    (tmp_path / "a.ipynb").write_text('{"cells": []}')
    (tmp_path / "b.ipynb").write_text("broken")
    (tmp_path / "z.ipynb").write_text(tiny.notebook.read_text())
    chosen, note = choose_notebook(tmp_path.glob("*.ipynb"), master, "lab90_tiny")
    assert chosen == tmp_path / "z.ipynb"
    assert "3 notebooks" in note
    (tmp_path / "lab90_tiny.ipynb").write_text('{"cells": []}')
    assert choose_notebook(tmp_path.glob("*.ipynb"), master, "lab90_tiny")[0].stem == "lab90_tiny"
