"""The release: the same bytes every time, ids that stay, nothing that a student must not see."""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from conftest import cell_of, copy_of_tiny

from tinyml_edu.errors import GradingError
from tinyml_edu.grading import release
from tinyml_edu.grading.leaks import find_leaks


def _notebook(folder):
    return json.loads(folder.notebook.read_text())


def _text(folder):
    return "\n".join("".join(cell["source"]) for cell in _notebook(folder)["cells"])


def _edit_source(folder, old, new):
    text = folder.source.read_text()
    assert old in text
    folder.source.write_text(text.replace(old, new))


def test_two_builds_in_two_places_are_byte_identical(tiny, tmp_path):
    other = copy_of_tiny(tmp_path / "elsewhere")
    assert other.notebook.read_bytes() == tiny.notebook.read_bytes()
    assert other.built_source.read_bytes() == tiny.built_source.read_bytes()


def test_the_release_is_valid_4_5_with_ids_repeated_for_colab_and_no_output(tiny):
    notebook = nbformat.read(tiny.notebook, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert all(cell.id == cell.metadata.id for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert cell_of(_notebook(tiny), "q1")["id"] == "q1"


def test_an_edited_paragraph_keeps_its_id(own_tiny):
    before = [cell["id"] for cell in _notebook(own_tiny)["cells"]]
    _edit_source(own_tiny, "# # Tiny lab", "# # A tiny lab")
    assert release.release(own_tiny)
    assert [cell["id"] for cell in _notebook(own_tiny)["cells"]] == before


def test_solutions_and_hidden_tests_are_cleared(tiny):
    text = _text(tiny)
    assert "total_of_rows" not in text
    assert "hidden_check" not in text
    assert "BEGIN" not in text
    assert '%%writefile q4.c\n#error "YOUR CODE HERE"' in text
    assert "raise NotImplementedError()" in text
    assert "hidden_check" in tiny.built_source.read_text()


def test_badge_points_and_install_cell_come_from_one_place(tiny):
    text = _text(tiny)
    assert (
        "https://colab.research.google.com/github/owner/course/blob/main/labs/lab90_tiny/lab90_tiny.ipynb"
        in text
    )
    assert "git+https://github.com/owner/course@main" in text
    assert "5 minutes, 11 points, 1 of them written" in text
    assert "{{" not in text


def test_points_of_the_notebook_are_those_of_the_questions(tiny, tiny_lab):
    points = {q.id: q.points for q in tiny_lab}
    for cell in _notebook(tiny)["cells"]:
        data = cell["metadata"].get("nbgrader", {})
        if data.get("grade"):
            assert data["points"] == points[re.sub("_check$", "", data["grade_id"])]


def test_check_release_is_silent_on_a_fresh_release_and_names_a_stale_one(own_tiny):
    own_tiny.built_source.unlink()  # as in a fresh clone
    assert release.check_release(own_tiny.root) == []
    _edit_source(own_tiny, "mean of each row", "average of each row")
    assert release.check_release(own_tiny.root) == ["labs/lab90_tiny is out of date; run: make release"]


def test_a_planted_leak_is_found(own_tiny):
    assert find_leaks(own_tiny) == []
    notebook = _notebook(own_tiny)
    notebook["cells"][0]["source"] = ["Hint:  return   total_of_rows / x.shape[1]"]
    own_tiny.notebook.write_text(json.dumps(notebook))
    assert [leak.line for leak in find_leaks(own_tiny)] == ["return total_of_rows / x.shape[1]"]


def test_a_leak_in_an_output_or_in_a_file_beside_the_notebook_is_found(own_tiny):
    notebook = _notebook(own_tiny)
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["total_of_rows = x.sum(axis=1)"]}]
    own_tiny.notebook.write_text(json.dumps(notebook))
    (own_tiny.notebook.parent / "q4.c").write_text("int twice(int x) { return x + x; }\n")
    found = {(leak.file.split("/")[-1], leak.line) for leak in find_leaks(own_tiny)}
    assert found == {
        ("lab90_tiny.ipynb", "total_of_rows = x.sum(axis=1)"),
        ("q4.c", "int twice(int x) { return x + x; }"),
    }


def test_a_line_that_also_stands_in_the_open_is_no_leak(own_tiny):
    _edit_source(own_tiny, "# # Tiny lab", "# # Tiny lab\n#\n# `return x - row_means(x)[:, None]`")
    release.release(own_tiny)
    assert find_leaks(own_tiny) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"grade_id": "q2", ', '"grade_id": "q1", ', "q1 stands twice"),
        ('"grade_id": "q3_check"', '"grade_id": "q9_check"', "no question has the check cell 'q9_check'"),
        ('"grade_id": "q3", ', '"grade_id": "q9", ', "q3 has no answer cell"),
        ('tags=["setup"]', "", 'no cell is tagged "setup"'),
        ("{{MINUTES}}", "{{MINUTE}}", "unknown placeholder"),
    ],
)
def test_a_source_that_disagrees_with_its_questions_is_refused(own_tiny, old, new, words):
    _edit_source(own_tiny, old, new)
    with pytest.raises(GradingError, match=words):
        release.build(own_tiny)
