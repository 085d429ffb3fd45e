"""A tiny lab, built once, and small helpers that damage its notebooks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinyml_edu.checks.protocol import Lab
from tinyml_edu.grading.graft import Graft, Master, graft, read_master
from tinyml_edu.grading.labs import LabFolder, find
from tinyml_edu.grading.notebooks import read_cells
from tinyml_edu.grading.release import release

FIXTURES = Path(__file__).parent / "fixtures" / "tiny"
# Modules of the tiny course; they import each other under names that only the grader gives them.
collect_ignore_glob = ["fixtures/*"]

Notebook = dict[str, Any]


def copy_of_tiny(target: Path) -> LabFolder:
    """Copy the tiny course to ``target``, build its release and return its lab."""
    shutil.copytree(FIXTURES, target)
    folder = find("lab90", target)
    release(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LabFolder:
    """The tiny lab, built; tests must not change its files."""
    return copy_of_tiny(tmp_path_factory.mktemp("tiny") / "course")


@pytest.fixture(scope="session")
def tiny_lab(tiny: LabFolder) -> Lab:
    return tiny.load()


@pytest.fixture(scope="session")
def master(tiny: LabFolder) -> Master:
    return read_master(tiny.notebook)


@pytest.fixture(scope="session")
def reference(tiny: LabFolder, tiny_lab: Lab, master: Master) -> Graft:
    """The answers of the source notebook."""
    return graft(master, read_cells(tiny.built_source), tiny_lab)


@pytest.fixture
def solved(tiny: LabFolder) -> Notebook:
    """The source notebook as a fresh dictionary: a perfect submission."""
    return json.loads(tiny.built_source.read_text())


@pytest.fixture
def own_tiny(tmp_path: Path) -> LabFolder:
    """A built copy of the tiny course that the test may change."""
    return copy_of_tiny(tmp_path / "course")


@pytest.fixture
def hand_in(tmp_path: Path) -> Callable[..., Path]:
    """Write a submission: ``hand_in("ada", notebook, name="x.ipynb")``; returns the class's directory."""

    def write(student: str, notebook: Notebook, name: str = "lab90_tiny.ipynb") -> Path:
        folder = tmp_path / "in" / student
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(notebook))
        return tmp_path / "in"

    return write


def cell_of(notebook: Notebook, grade_id: str) -> dict[str, Any]:
    """Return the cell with a grade id."""
    return next(c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)
