"""What a question promises: independent cases, the lowest case counts, no verdict outside 0 to 1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinyml_edu.checks.protocol import (
    PASS,
    Lab,
    Question,
    Verdict,
    lowest,
    numeric,
    stable_rng,
    wrong,
)
from tinyml_edu.errors import UnknownNameError


def _question(**changes):
    fields = {
        "id": "q1",
        "title": "t",
        "points": 2,
        "provides": ("f",),
        "drive": lambda namespace, arrays: {"y": namespace["f"](arrays["x"])},
        "judge": lambda arrays, outputs: PASS if outputs["y"] == arrays["x"] else wrong("no"),
    }
    return Question(**{**fields, **changes})


def test_a_case_does_not_depend_on_the_cases_before_it():
    def draw(rng):
        return {"x": rng.normal(size=3)}

    def draw_much(rng):
        return {"x": rng.normal(size=300)}

    one = _question(inputs=(draw, draw)).cases(stable_rng("s"))
    other = _question(inputs=(draw_much, draw)).cases(stable_rng("s"))
    assert np.array_equal(one[1]["x"], other[1]["x"])
    assert not np.array_equal(one[0]["x"], one[1]["x"])


def test_the_same_seed_gives_the_same_cases_and_another_seed_others():
    question = _question(inputs=lambda rng: {"x": rng.normal(size=3)})
    again = [question.cases(stable_rng("a"))[0]["x"] for _ in range(2)]
    assert np.array_equal(*again)
    assert not np.array_equal(again[0], question.cases(stable_rng("b"))[0]["x"])


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf])
def test_a_verdict_outside_0_to_1_is_refused(score):
    with pytest.raises(ValueError, match="share"):
        Verdict(score)


def test_the_lowest_case_decides():
    assert lowest([PASS, wrong("half", score=0.5), wrong("none"), wrong("later")])[0] == 2


def test_a_judge_that_trips_over_the_outputs_is_a_wrong_answer_and_no_crash():
    verdicts = _question().verdicts([{"x": np.float64(1)}] * 2, [{}, {"y": np.array(["a"] * 2)}])
    assert [v.score for v in verdicts] == [0.0, 0.0]
    assert "no value named 'y'" in verdicts[0].reason


def test_too_few_outputs_do_not_pass():
    assert _question().verdicts([{"x": np.float64(1)}] * 2, [{"y": np.float64(1)}])[0].score == 0.0


@pytest.mark.parametrize(
    "changes",
    [{"drive": None}, {"judge": None}, {"provides": ()}, {"uses": ("f",)}, {"points": 0}],
)
def test_an_incomplete_question_cannot_be_made(changes):
    with pytest.raises(ValueError, match="q1"):
        _question(**changes)


def test_a_lab_needs_a_reference_for_what_its_questions_use():
    with pytest.raises(ValueError, match="no reference for g"):
        Lab("lab90", "t", 1, (_question(uses=("g",)),))


def test_points_split_into_automatic_and_manual():
    lab = Lab("lab90", "t", 1, (_question(), Question("q2", "w", 3, kind="written")))
    assert (lab.max_score, lab.manual_points) == (2, 3)


def test_an_unknown_question_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'q1'"):
        Lab("lab90", "t", 1, (_question(),))["q11"]


def _numeric_verdict(answer, **tolerance):
    question = numeric("q3", "n", 1, name="n", truth=lambda: 200.0, **tolerance)
    return question.verdicts([{}], [question.drive({"n": answer}, {})])[0]


@pytest.mark.parametrize("answer", [200, 200.0, np.float32(200), np.array(200), np.array([200.0])])
def test_a_number_in_any_dress_is_right(answer):
    assert _numeric_verdict(answer).passed


@pytest.mark.parametrize(("answer", "word"), [(201, "large"), (199.9, "small"), (math.nan, "not a number")])
def test_a_wrong_number_is_described(answer, word):
    assert word in _numeric_verdict(answer).reason


def test_the_tolerance_is_a_closed_interval():
    assert _numeric_verdict(202, rtol=0.01).passed
    assert not _numeric_verdict(202.001, rtol=0.01).passed


@pytest.mark.parametrize("answer", [None, ...])
def test_a_number_that_was_not_set_is_not_answered(answer):
    with pytest.raises(NotImplementedError):
        _numeric_verdict(answer)


def test_hidden_keeps_drive_and_points():
    question = _question()
    hidden = question.hidden(inputs=lambda _: {"x": np.float64(5)})
    assert hidden.drive is question.drive
    assert hidden.points == question.points
    assert not hidden.visible
