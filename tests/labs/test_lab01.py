"""Lab 1, what is its own: the library would pass its judges, and no shortcut exists for sorting."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jupytext", reason="jupytext reads the sources of the labs")

from lab_sources import LABS

from tinyml_edu.checks import lab01_judges
from tinyml_edu.pruning import sparse

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


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_the_bytes_of_the_lab_are_those_of_the_stored_formats(sparsity):
    """The lab counts values and their places; the library's formats also store pointers, counted apart."""
    rng = np.random.default_rng(0)
    mask = rng.random(1003) >= sparsity
    column = np.where(mask, rng.integers(1, 100, mask.shape), 0).astype(np.int8)[:, None]
    bitmask, relative = sparse.encode(column.T, "bitmask"), sparse.encode(column, "relative")
    assert lab01_judges.relative_index_bytes(mask) == relative.values.nbytes + relative.zeros.nbytes
    assert (mask.size + 7) // 8 + mask.sum() == bitmask.values.nbytes + bitmask.arrays["mask"].nbytes
