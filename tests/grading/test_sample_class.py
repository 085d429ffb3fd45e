"""The made class earns exactly the points that its making says."""

from __future__ import annotations

import pytest

from tinyml_edu.grading import labs, runner, sample
from tinyml_edu.grading.course import find_course


def _both(folder, course, directory, workers):
    expected = sample.write_class(folder, course, directory)
    rows = runner.run(folder, directory, course=course.path, workers=workers, unsafe_no_sandbox=True)
    return expected, {row["student"]: row["score"] for row in rows}


def test_the_tiny_class_earns_what_its_making_says(own_tiny, tmp_path):
    expected, scores = _both(own_tiny, find_course(own_tiny.root / "autograder"), tmp_path / "in", 1)
    assert scores == expected
    assert expected["ada"] == expected["cleo"] == expected["dora"] == 10.0
    assert [expected[name] for name in ("ben", "emil", "fay", "gus")] == [0.0, 6.0, 3.0, 8.0]


@pytest.mark.slow
def test_the_lab0_class_earns_what_its_making_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYML_EDU_GRADING_SECRET", "a secret of this test")
    expected, scores = _both(labs.find("lab00"), find_course(), tmp_path / "in", 2)
    assert scores == expected
    assert len(set(expected.values())) >= 4
