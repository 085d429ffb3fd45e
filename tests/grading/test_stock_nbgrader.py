"""Stock nbgrader with our configuration gives honest work the points that `tinyml grade` gives."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import cell_of

from tinyml_edu.checks.loading import CHECKS_VARIABLE
from tinyml_edu.grading import runner
from tinyml_edu.grading.course import COURSE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Object of type")]


@pytest.fixture
def api(own_tiny, repository, tmp_path, monkeypatch):
    """nbgrader's own API in a class's folder, configured by the file that instructors get."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config.loader import PyFileConfigLoader

    course = own_tiny.root / "autograder"
    shutil.copy(repository / "autograder" / "nbgrader_config.py", course)
    (tmp_path / "class").mkdir()
    # Set first, so that monkeypatch takes back what the configuration file sets.
    monkeypatch.setenv(COURSE_VARIABLE, "")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv(CHECKS_VARIABLE, str(own_tiny.checks.parent))
    monkeypatch.setenv("TINYML_EDU_CLASS", str(tmp_path / "class"))
    return NbGraderAPI(config=PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config())


def _submit(api, student, text):
    path = Path(api.coursedir.format_path("submitted", student, "lab90_tiny")) / "lab90_tiny.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_reference_empty_and_half_right_get_the_same_points_from_both(api, own_tiny, solved, tmp_path):
    assert api.generate_assignment("lab90_tiny")["success"]
    released = Path(api.coursedir.format_path("release", ".", "lab90_tiny")) / "lab90_tiny.ipynb"
    assert "total_of_rows" not in released.read_text()
    assert '#error \\"YOUR CODE HERE\\"' in released.read_text()
    half = json.loads(own_tiny.built_source.read_text())
    cell_of(half, "q2")["source"] = "def center(x):\n    return x\n"
    work = {"ada": json.dumps(solved), "ben": released.read_text(), "cyd": json.dumps(half)}
    for student, text in work.items():
        _submit(api, student, text)
        result = api.autograde("lab90_tiny", student)
        assert result["success"], result["log"]
    with api.gradebook as book:
        stock = {s: book.find_submission("lab90_tiny", s).score for s in work}
        assert book.find_assignment("lab90_tiny").max_score == 11
    class_folder = tmp_path / "class" / "submitted"
    rows = runner.run(
        own_tiny, class_folder, course=own_tiny.root / "autograder", workers=1, unsafe_no_sandbox=True
    )
    assert stock == {row["student"]: row["score"] for row in rows} == {"ada": 10.0, "ben": 0.0, "cyd": 7.0}


def test_feedback_can_be_generated(api, solved):
    api.generate_assignment("lab90_tiny")
    _submit(api, "ada", json.dumps(solved))
    assert api.autograde("lab90_tiny", "ada")["success"]
    assert api.generate_feedback("lab90_tiny", "ada")["success"]
