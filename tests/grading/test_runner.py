"""A class: every submission gets a row, nothing aborts the batch, a second run changes nothing."""

from __future__ import annotations

import csv
import json
import os

import pytest
from conftest import cell_of
from hypothesis import given
from hypothesis import strategies as st

from tinyml_edu.errors import GradingError
from tinyml_edu.grading import records, runner, student
from tinyml_edu.grading.process import plain_process

KEYS = {"student", "lab", "score", "max_score", "manual_points", "questions", "notes"}


def _grade(folder, directory, **options):
    options = {"workers": 1, "course": folder.root / "autograder", "unsafe_no_sandbox": True, **options}
    return runner.run(folder, directory, **options)


def test_without_a_sandbox_real_submissions_are_refused_before_anything_is_read(tiny, tmp_path):
    with pytest.raises(GradingError, match="--unsafe-no-sandbox") as caught:
        runner.run(tiny, tmp_path / "absent", course=tiny.root / "autograder")
    assert "\n" not in str(caught.value)


def test_a_mixed_class(own_tiny, solved, hand_in, tmp_path):
    hand_in("ada", solved, name="Copy of lab1.ipynb")
    released = json.loads(own_tiny.notebook.read_text())
    hand_in("ben, =cmd()", released)
    half = json.loads(own_tiny.built_source.read_text())
    cell_of(half, "q1")["source"] = "import os\nos._exit(1)\n"
    half["cells"].append(cell_of(half, "q2"))
    directory = hand_in("cyd", half)
    (directory / "dan").mkdir()
    (directory / "eve.ipynb").write_text("not a notebook")
    (directory / "readme.txt").write_text("ignored")
    rows = _grade(own_tiny, directory, csv=tmp_path / "g.csv", json=tmp_path / "g.json", workers=2)

    assert [(r["student"], r["score"]) for r in rows] == [
        ("ada", 10.0),
        ("ben, =cmd()", 0.0),
        ("cyd", 6.0),
        ("dan", 0.0),
        ("eve", 0.0),
    ]
    assert all(set(r) == KEYS for r in rows)
    assert all((r["max_score"], r["manual_points"], r["lab"]) == (10, 1, "lab90") for r in rows)
    assert rows[2]["notes"] == ["q2: 2 copies; the last changed one is graded"]
    assert rows[3]["notes"] == ["no notebook was handed in"]
    assert "not a readable notebook" in rows[4]["notes"][0]
    assert json.loads((tmp_path / "g.json").read_text()) == rows
    with (tmp_path / "g.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["student"] for line in table] == [r["student"] for r in rows]
    assert table[0]["q1"] == "4.0"


def test_a_second_run_runs_nothing_and_a_change_runs_only_what_changed(
    own_tiny, solved, hand_in, monkeypatch
):
    hand_in("ada", solved)
    directory = hand_in("ben", solved)
    first = _grade(own_tiny, directory)
    runs = []

    def counting(command, folder, timeout_s):
        runs.append(command)
        return plain_process(command, folder, timeout_s)

    assert _grade(own_tiny, directory, launch=counting) == first
    assert runs == []
    cell_of(solved, "q1")["source"] = "def row_means(x):\n    return x\n"
    hand_in("ben", solved)
    second = _grade(own_tiny, directory, launch=counting)
    assert len(runs) == 4  # one process for each automatic question of one student
    assert (second[0], second[1]["score"]) == (first[0], 6.0)


def test_a_changed_judge_grades_anew(own_tiny, solved, hand_in):
    directory = hand_in("ada", solved)
    assert _grade(own_tiny, directory)[0]["score"] == 10.0
    hidden = own_tiny.root / "autograder" / "hidden" / "lab90.py"
    hidden.write_text(
        hidden.read_text()
        + "from tinyml_edu.checks.protocol import wrong\n"
        + "QUESTIONS[0] = LAB['q1'].hidden(judge=lambda a, o: wrong('no'))\n"
    )
    assert _grade(own_tiny, directory)[0]["score"] == 6.0


def test_a_damaged_record_is_made_again(own_tiny, solved, hand_in):
    directory = hand_in("ada", solved)
    first = _grade(own_tiny, directory)
    kept = list((own_tiny.root / "autograder" / ".build" / "records").rglob("*.json"))
    assert len(kept) == 1
    kept[0].write_text(kept[0].read_text()[:50])
    assert _grade(own_tiny, directory) == first


def test_inputs_differ_between_students_and_not_between_runs(tiny):
    from tinyml_edu.grading.course import find_course, seeded_rng

    secret = find_course(tiny.root / "autograder").secret()
    draw = [seeded_rng(secret, name, "lab90", "q1").integers(2**62) for name in ("ada", "ada", "ben")]
    assert draw[0] == draw[1] != draw[2]
    assert (tiny.root / "autograder" / ".build" / "secret").stat().st_mode & 0o077 == 0


def test_a_folder_and_a_file_of_the_same_name_are_two_rows(tmp_path):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada.ipynb").write_text("{}")
    assert {s.student for s in runner.collect(tmp_path)} == {"ada", "ada.ipynb"}


def test_a_link_to_another_students_notebook_is_not_followed(tmp_path):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "lab.ipynb").write_text("{}")
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / "lab.ipynb").symlink_to(tmp_path / "ada" / "lab.ipynb")
    assert [len(s.notebooks) for s in runner.collect(tmp_path)] == [1, 0]


@pytest.mark.parametrize("make", [lambda _: None, lambda p: p.mkdir()])
def test_no_submissions_is_one_clear_line(tiny, tmp_path, make):
    make(tmp_path / "in")
    with pytest.raises(GradingError, match=r"directory|holds no submission"):
        _grade(tiny, tmp_path / "in")


def test_a_course_folder_that_is_none_is_refused(tiny, tmp_path, solved, hand_in):
    with pytest.raises(GradingError, match=r"no course folder.*--course"):
        _grade(tiny, hand_in("ada", solved), course=tmp_path)


def test_a_hidden_module_without_a_judge_is_refused(own_tiny, solved, hand_in):
    hidden = own_tiny.root / "autograder" / "hidden" / "lab90.py"
    hidden.write_text(hidden.read_text() + "del QUESTIONS[1]\n")
    with pytest.raises(GradingError, match="no judge for q2"):
        _grade(own_tiny, hand_in("ada", solved))


@given(st.text(max_size=20))
def test_no_field_of_the_csv_is_a_formula_and_every_field_comes_back(text):
    row = {"student": text, "lab": "lab90", "score": 1.0, "max_score": 2, "manual_points": 0}
    table = records.to_csv([{**row, "questions": [], "notes": [text]}])
    fields = list(csv.reader(table.splitlines(keepends=True)))[1]
    for field in (fields[0], fields[-1]):
        assert field in {text, "'" + text}
        assert not field.lstrip().startswith(("=", "+", "-", "@"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    records.write_text(path, "old")

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        records.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_lab_check_passes_the_reference_and_names_what_is_wrong(tiny, solved, tmp_path):
    path = tmp_path / "my notebook.ipynb"
    path.write_text(json.dumps(solved))
    assert all(row["passed"] for row in student.check_notebook(tiny, path))
    cell_of(solved, "q1")["source"] = "def row_means(x):\n    return x.mean(axis=0)\n"
    path.write_text(json.dumps(solved))
    rows = student.check_notebook(tiny, path)
    assert [row["id"] for row in rows if not row["passed"]] == ["q1"]
    assert "smallest failing input" in rows[0]["reason"]


def test_lab_check_of_an_absent_notebook_is_one_clear_line(tiny, tmp_path):
    with pytest.raises(GradingError, match="there is no notebook"):
        student.check_notebook(tiny, tmp_path / "x.ipynb")
