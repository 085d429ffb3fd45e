"""Whatever an answer does, the grader gets a score and a reason, and only this question is lost."""

from __future__ import annotations

import dataclasses
import subprocess
import time

import pytest

from tinyml_edu.errors import GradingError
from tinyml_edu.grading.course import find_course, seeded_rng
from tinyml_edu.grading.graft import Graft
from tinyml_edu.grading.process import OUTPUT_CAP, Finished, plain_process
from tinyml_edu.grading.scoring import Grader

RIGHT = "def row_means(x):\n    return x.mean(axis=1)\n"


@pytest.fixture
def grade(tiny, tiny_lab, master):
    """``grade(text)`` grades an answer to q1 and returns its score."""
    questions = {q.id: q for q in find_course(tiny.root / "autograder").questions(tiny_lab)}

    def run(text, question_id="q1", timeout_s=30.0, launch=plain_process, **changes):
        question = dataclasses.replace(questions[question_id], timeout_s=timeout_s)
        found = Graft({question_id: text}, **changes)
        return Grader(tiny, tiny_lab, master, launch).grade(question, found, seeded_rng(b"s", question_id))

    return run


def test_a_right_answer_earns_every_point(grade):
    score = grade(RIGHT)
    assert (score.score, score.max_score, score.reason) == (4.0, 4, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def row_means(x):\n    raise NotImplementedError()\n", "not answered yet"),
        ("def row_means(x):\n    return x.nope\n", "AttributeError: .* (line 2 of answer cell q1)"),
        ("def row_means(x:\n    return 1\n", "SyntaxError"),
        ("row_means = 3\n", "TypeError"),
        ("x = 1\n", "row_means is not defined in the answer cell"),
        ("import os\nos._exit(0)\n", r"ended by itself \(exit code 0\)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "SIGKILL"),
        ("def row_means(x):\n    return [object()]\n", "Python objects"),
        ("def row_means(x):\n    return x\n", "has shape .*, expected"),
        ("def row_means(x):\n    return bytearray(5 * 2**30)\n", "MemoryError"),
        ("def row_means(x):\n    return np.zeros(10**8)\n", "limit"),
        ("def row_means(x):\n    return row_means(x)\n", "RecursionError"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    ],
)
def test_a_failing_answer_scores_0_and_says_why(grade, text, words):
    import re

    score = grade(text)
    assert score.score == 0.0
    assert re.search(words.replace("(line", r"\(line").replace("q1)", r"q1\)"), score.reason), score.reason


LOOP = "while True:\n    pass\n"
STUBBORN = "while True:\n    try:\n        time.sleep(600)\n    except BaseException:\n        pass\n"


@pytest.mark.parametrize("text", [LOOP, STUBBORN.replace("BaseException", "Exception")])
def test_an_endless_loop_is_ended_by_its_own_process(grade, text):
    ended = []

    def watching(command, folder, timeout_s):
        ended.append(plain_process(command, folder, timeout_s))
        return ended[-1]

    assert "longer than 1 s" in grade("import time\n" + text, timeout_s=1.0, launch=watching).reason
    assert not ended[0].timed_out


@pytest.mark.slow
def test_a_loop_that_swallows_everything_is_ended_from_outside(grade):
    def impatient(command, folder, timeout_s):
        # Long enough to reach the answer, shorter than the allowance for a slow machine.
        return plain_process(command, folder, timeout_s - 5)

    assert "longer than 1 s" in grade("import time\n" + STUBBORN, timeout_s=1.0, launch=impatient).reason


def test_a_slow_set_up_is_never_a_score(grade):
    """The process that never reaches the answer is the grader's fault, not the student's."""

    def stuck(command, folder, timeout_s):
        return Finished(-9, "", "", True, timeout_s)

    with pytest.raises(GradingError, match="set-up cells take longer"):
        grade(RIGHT, launch=stuck)


def test_text_on_stderr_and_floods_of_output_cost_nothing(grade):
    text = RIGHT + "import sys\nsys.stderr.write('warning' * 10)\nprint('x' * 30_000_000)\n"
    assert grade(text).score == 4.0


def test_a_thread_that_never_ends_costs_nothing(grade):
    text = RIGHT + "import threading, time\nthreading.Thread(target=lambda: time.sleep(600)).start()\n"
    assert grade(text).score == 4.0


def test_replacing_numpys_asserts_or_equality_earns_nothing(grade):
    text = (
        "import numpy.testing\nnumpy.testing.assert_allclose = lambda *a, **k: None\n"
        "class Same(np.ndarray):\n    __eq__ = lambda self, other: True\n"
        "def row_means(x):\n    return np.zeros(x.shape[0]).view(Same)\n"
    )
    assert grade(text).score == 0.0


def test_the_process_holds_no_expected_value_and_no_hidden_file(grade):
    text = (
        "import sys, pathlib\n"
        "loaded = [str(getattr(m, '__file__', '')) for m in list(sys.modules.values())]\n"
        "files = [p.name for p in pathlib.Path('..').iterdir()]\n"
        "raise ValueError(str([f for f in loaded if 'hidden' in f]) + str(sorted(files)))\n"
    )
    reason = grade(text).reason
    assert reason.startswith("ValueError: []['inputs.npz', 'job.json', 'ready', 'tmp', 'work']"), reason


def test_a_helper_outside_the_answer_cell_is_pointed_out(grade):
    score = grade("def row_means(x):\n    return helper(x)\n", elsewhere={"helper"})
    assert "helper is defined outside the answer cell" in score.reason


def test_the_name_that_is_used_is_the_reference_whatever_the_student_wrote_before(grade):
    assert grade("def center(x):\n    return x - row_means(x)[:, None]\n", "q2").score == 3.0


def test_calling_or_being_the_reference_trips(grade):
    ref = "import tinyml_edu_checks_lab90 as ref\n"
    called = grade(ref + "def row_means(x):\n    return ref.row_means(x)\n")
    assert "TripwireError: call your own row_means" in called.reason
    for text in ("row_means = ref.row_means\n", "row_means = ref.LAB.reference['row_means']\n"):
        assert "library's own" in grade(ref + text).reason


def test_magics_in_an_answer_are_passed_over(grade):
    assert grade("%matplotlib inline\n!ls\n" + RIGHT + "%timeit row_means(np.eye(2))\n").score == 4.0


def test_a_failure_before_the_answer_is_the_graders_and_costs_no_points(tiny, tiny_lab, master, grade):
    broken = dataclasses.replace(master, setup=("import no_such_module\n",))
    with pytest.raises(GradingError, match=r"no fault of the answer: .*no_such_module"):
        Grader(tiny, tiny_lab, broken).grade(tiny_lab["q1"], Graft({"q1": RIGHT}), seeded_rng(b"s"))


def test_captured_output_is_capped(tmp_path):
    finished = plain_process(["python3", "-c", "print('x' * 1_000_000)"], tmp_path, 30)
    assert OUTPUT_CAP <= len(finished.stdout) <= OUTPUT_CAP + 100
    assert "bytes more" in finished.stdout


def test_children_are_ended_with_the_process(tmp_path):
    finished = plain_process(
        ["sh", "-c", "sleep 600 & echo $!"],
        tmp_path,
        30,
    )
    pid = finished.stdout.strip()
    for _ in range(100):
        # A killed child may stay a zombie until its new parent reaps it: state Z counts as ended.
        state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False)
        if not state.stdout.strip() or state.stdout.strip().startswith("Z"):
            return
        time.sleep(0.05)
    pytest.fail(f"child {pid} still runs")


def test_the_students_process_gets_no_secret_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYML_EDU_GRADING_SECRET", "s3cret")
    finished = plain_process(["env"], tmp_path, 30)
    assert "s3cret" not in finished.stdout
    assert f"HOME={tmp_path}" in finished.stdout
