"""What a student sees when a check cell runs."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tinyml_edu.checks.loading import CHECKS_VARIABLE, load_lab
from tinyml_edu.checks.notebook import CheckError, check
from tinyml_edu.errors import UnknownNameError, UsageError

RIGHT = "def row_means(x):\n    return x.mean(axis=1)\n"


@pytest.fixture(autouse=True)
def _tiny_checks(tiny, monkeypatch):
    monkeypatch.setenv(CHECKS_VARIABLE, str(tiny.checks.parent))


def _notebook(text):
    namespace = {"__name__": "__main__", "np": np}
    exec(text, namespace)
    return namespace


def test_a_right_answer_prints_that_the_visible_checks_passed(capsys):
    check("lab90.q1", _notebook(RIGHT))
    out, err = capsys.readouterr()
    assert "visible checks passed" in out
    assert err == ""  # stock nbgrader takes any text here for a failure


def test_a_wrong_answer_shows_the_smallest_failing_input_and_what_to_look_at():
    with pytest.raises(CheckError) as caught:
        check("lab90.q1", _notebook("def row_means(x):\n    return x.mean(axis=0)\n"))
    message = str(caught.value)
    assert "expected 2.0, got 3.0" in message
    assert "x = [[1., 3.]" in message
    assert "the mean is over the columns" in message


def test_the_error_carries_no_frame_of_the_judge():
    with pytest.raises(CheckError) as caught:
        check("lab90.q1", _notebook("def row_means(x):\n    return 1 / 0\n"))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "ZeroDivisionError" in str(caught.value)
    assert len(caught.value._render_traceback_()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not defined"),
        ("def row_means(x):\n    raise NotImplementedError()\n", "not answered yet"),
    ],
)
def test_a_missing_answer_is_said_to_be_missing(text, words):
    with pytest.raises(CheckError, match=words):
        check("lab90.q1", _notebook(text))


def test_an_earlier_mistake_does_not_fail_the_next_question_and_stays_the_students():
    namespace = _notebook(
        "def row_means(x):\n    return x.sum()\ndef center(x):\n    return x - row_means(x)[:, None]\n"
    )
    mine = namespace["row_means"]
    check("lab90.q2", namespace)
    assert namespace["row_means"] is mine


def test_calling_the_librarys_own_function_trips_and_the_library_is_whole_afterwards(tiny):
    lab = load_lab("lab90")
    namespace = _notebook("import tinyml_edu\ndef row_means(x):\n    return tinyml_edu.planted(x)\n")
    module = sys.modules["tinyml_edu"]
    vars(module)["planted"] = lab.reference["row_means"]
    try:
        with pytest.raises(CheckError, match="call your own row_means"):
            check("lab90.q1", namespace)
        assert vars(module)["planted"] is lab.reference["row_means"]
    finally:
        del vars(module)["planted"]


def test_handing_in_the_reference_itself_trips():
    namespace = _notebook("")
    namespace["row_means"] = load_lab("lab90").reference["row_means"]
    with pytest.raises(CheckError, match="library's own"):
        check("lab90.q1", namespace)


def test_a_wrong_name_of_a_question_says_how_to_write_it():
    with pytest.raises(UsageError, match=r"lab00\.q1"):
        check("q1", {})
    with pytest.raises(UnknownNameError, match="unknown lab 'lab77'"):
        check("lab77.q1", {})
