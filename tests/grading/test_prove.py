"""The proof of a lab, and for each of its five runs a lab that must fail it."""

from __future__ import annotations

import json

import nbformat
import pytest

from tinyml_edu.errors import GradingError
from tinyml_edu.grading import release
from tinyml_edu.grading.offline import run_offline
from tinyml_edu.grading.prove import problems, prove

KEYS = {
    "reference",
    "empty",
    "max_score",
    "mutants",
    "killed",
    "leaks",
    "offline_ok",
    "lab_seconds",
    "seconds",
}


def _prove(folder):
    return prove(folder, course=folder.root / "autograder")


def _edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_the_tiny_lab_is_proven(tiny):
    report = _prove(tiny)
    assert problems(report) == []
    assert set(report) - {"details"} == KEYS
    assert (report["reference"], report["empty"], report["max_score"]) == (10.0, 0.0, 10)
    assert (report["mutants"], report["killed"], report["leaks"]) == (3, 3, 0)
    assert report["offline_ok"] is True
    json.dumps(report)


@pytest.fixture
def no_kernel(monkeypatch):
    """The offline run has tests of its own."""
    from tinyml_edu.grading import offline
    from tinyml_edu.grading import prove as module

    run = offline.OfflineRun(True, "", 0.0)
    monkeypatch.setattr(module, "run_offline", lambda *_, **__: run)


@pytest.mark.usefixtures("no_kernel")
def test_a_mutant_that_survives_fails_the_proof(own_tiny):
    mutants = own_tiny.root / "autograder" / "mutants" / "lab90.py"
    _edit(mutants, "return x.mean(axis=0)", "return x.mean(axis=1)")
    report = _prove(own_tiny)
    assert (report["mutants"], report["killed"]) == (3, 2)
    assert problems(report) == ["mutant 'columns' loses {}, declared {'q1': 4.0}"]


@pytest.mark.usefixtures("no_kernel")
def test_a_mutant_that_loses_other_points_than_declared_fails_the_proof(own_tiny):
    _edit(own_tiny.root / "autograder" / "mutants" / "lab90.py", '{"q1": 4}', '{"q1": 4, "q2": 3}')
    assert len(problems(_prove(own_tiny))) == 1


@pytest.mark.usefixtures("no_kernel")
def test_a_judge_that_passes_everything_fails_the_proof(own_tiny):
    hidden = own_tiny.root / "autograder" / "hidden" / "lab90.py"
    hidden.write_text(
        hidden.read_text() + "from tinyml_edu.checks.protocol import PASS\n"
        "QUESTIONS[3] = LAB['q4'].hidden(judge=lambda a, o: PASS)\n"
    )
    assert problems(_prove(own_tiny)) == ["the empty release scores 1.0 (q4)"]


@pytest.mark.usefixtures("no_kernel")
def test_a_wrong_reference_fails_the_proof(own_tiny):
    _edit(own_tiny.source, "total_of_rows / x.shape[1]", "total_of_rows / x.shape[0]")
    release.release(own_tiny)
    found = problems(_prove(own_tiny))
    assert found[0].startswith("the reference scores 6.0 of 10 (q1: the means")


@pytest.mark.usefixtures("no_kernel")
def test_a_stale_release_cannot_be_proven(own_tiny):
    _edit(own_tiny.source, "mean of each row", "average of each row")
    with pytest.raises(GradingError, match="make release"):
        _prove(own_tiny)


def test_a_mutant_of_an_unknown_question_is_refused(own_tiny):
    _edit(own_tiny.root / "autograder" / "mutants" / "lab90.py", '"q3", "q3_bytes', '"q33", "q3_bytes')
    with pytest.raises(GradingError, match="unknown question"):
        _prove(own_tiny)


def _notebook(tmp_path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    return tmp_path / "n.ipynb"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)", "offline"),
        ("import urllib.request; urllib.request.urlopen('http://example.org', timeout=5)", "refused|offline"),
        ("raise ValueError('broken')", "ValueError: broken"),
        ("import os; os._exit(1)", "died"),
        ("while True: pass", "longer than 3 s"),
    ],
)
def test_a_notebook_that_needs_the_network_fails_or_hangs_is_not_ok(cell, words, tmp_path):
    import re

    result = run_offline(_notebook(tmp_path, "1 + 1", cell), tmp_path, budget_s=3 if "while" in cell else 60)
    assert not result.ok
    assert re.search(words, result.reason), result.reason


@pytest.mark.slow
def test_a_notebook_that_needs_nothing_is_ok_and_is_not_changed(tmp_path):
    path = _notebook(tmp_path, "import os; assert os.environ['TINYML_EDU_FAST'] == '1'")
    before = path.read_bytes()
    assert run_offline(path, tmp_path, budget_s=60).ok
    assert path.read_bytes() == before
