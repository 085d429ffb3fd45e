"""Lab 1, what is its own: the library would pass its judges, and no shortcut exists for sorting."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jupytext", reason="jupytext reads the sources of the labs")

from lab_sources import LABS

LAB01 = next(lab for lab in LABS if lab.id == "lab01")


@pytest.mark.parametrize("question", ["q1", "q2", "q3", "q5", "q6", "q7"])
def test_the_library_passes_the_judges_of_the_lab(question):
    """One meaning for one name: what a student writes could stand in the library."""
    found = LAB01.hidden[question]
    names = {name: LAB01.lab.resolve(name) for name in found.provides}
    for seed in range(3):
        cases = found.cases(np.random.default_rng(seed))
        outputs = [found.drive(names, case) for case in cases]
        for verdict in found.verdicts(cases, outputs):
            assert verdict.passed, (seed, verdict.reason)


def test_no_case_of_channel_sorting_is_sorted_already():
    """Else a copy of the model would pass: the two smallest cases are the visible ones."""
    for seed in range(200):
        for question in (LAB01.lab["q7"], LAB01.hidden["q7"]):
            for case in question.cases(np.random.default_rng(seed)):
                out = question.drive({"apply_channel_sorting": lambda model: model}, case)
                assert not question.judge(case, out).passed
