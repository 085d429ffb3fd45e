"""Build the students' notebooks from the sources; the same source gives the same bytes.

``solutions/labNN_topic/labNN_topic.py`` becomes a notebook with solutions in ``.build/source`` (the layout
that nbgrader asks for) and, through nbgrader's own preprocessors, the release in ``labs/``.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks.protocol import Lab
from ..errors import GradingError, TinyMLError
from .labs import LabFolder, all_labs, find
from .notebooks import belongs_to, grade_id, is_setup
from .records import write_text

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
HIDDEN_CALL = """
### BEGIN HIDDEN TESTS
from tinyml_edu.grading import stock
stock.hidden_check("{lab}.{question}", globals())
### END HIDDEN TESTS"""


@dataclass(frozen=True)
class Home:
    """Where the repository lives, for badges and the Colab cell: ``[tool.tinyml_edu]`` of pyproject.toml."""

    repository: str
    branch: str

    @classmethod
    def read(cls, root: Path) -> Home:
        """Read the one place that says it."""
        table = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["tinyml_edu"]
        return cls(table["repository"], table["branch"])

    def badge(self, lab: str) -> str:
        """Return the markdown of a lab's Colab badge."""
        site = f"https://colab.research.google.com/github/{self.repository}/blob/{self.branch}"
        return f"[![Open in Colab]({BADGE_IMAGE})]({site}/labs/{lab}/{lab}.ipynb)"

    def install_cell(self) -> str:
        """Return the code that installs the package on Colab and does nothing elsewhere."""
        url = f"git+https://github.com/{self.repository}@{self.branch}"
        return (
            "# Installs the course's library when this notebook runs on Colab; does nothing elsewhere.\n"
            "import sys\n\n"
            'if "google.colab" in sys.modules:\n'
            f'    %pip install -q "tinyml_edu[mcu] @ {url}"'
        )


def build(folder: LabFolder, home: Home | None = None) -> tuple[str, str]:
    """Return the texts of the source notebook and of the release notebook.

    Raises
    ------
    GradingError
        If the source and the lab's questions do not fit together.
    """
    lab = folder.load()
    home = home or Home.read(folder.root)
    notebook = _read_source(folder)
    for position, cell in enumerate(notebook.cells):
        _fill(cell, folder, lab, home)
        _identify(cell, lab, position)
    _verify(notebook, folder, lab)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    source = _dump(notebook)
    return source, _dump(_released(notebook))


def _read_source(folder: LabFolder) -> Any:
    import jupytext

    if not folder.source.is_file():
        raise GradingError(f"the source {folder.source} is missing; a lab is built from solutions/LAB/LAB.py")
    return jupytext.reads(folder.source.read_text(encoding="utf-8"), fmt="py:percent")


def _fill(cell: Any, folder: LabFolder, lab: Lab, home: Home) -> None:
    """Put in what is derived: C files, badge, minutes, points, the hidden call."""
    c_file = cell.metadata.pop("c_file", None)
    if c_file:
        text = (folder.source.parent / c_file).read_text(encoding="utf-8").rstrip("\n")
        cell.source = f"%%writefile {c_file}\n{text}"
    if cell.source.strip() == "# {{COLAB_INSTALL}}":
        cell.source = home.install_cell()
    values = {
        "COLAB_BADGE": home.badge(folder.name),
        "MINUTES": str(lab.minutes),
        "POINTS": f"{lab.max_score + lab.manual_points:g}",
        "MANUAL_POINTS": f"{lab.manual_points:g}",
        **{f"POINTS:{question.id}": f"{question.points:g}" for question in lab},
    }
    cell.source = re.sub(
        r"\{\{([A-Z_]+(?::\w+)?)\}\}", lambda m: _value(values, m.group(1), folder), cell.source
    )
    if _nbgrader(cell).get("grade") and not _nbgrader(cell).get("solution"):
        question = _checked(cell, folder, lab)
        if "BEGIN HIDDEN TESTS" not in cell.source:
            cell.source += HIDDEN_CALL.format(lab=lab.id, question=question)


def _value(values: dict[str, str], name: str, folder: LabFolder) -> str:
    if name not in values:
        raise GradingError(
            f"{folder.source.name}: unknown placeholder {{{{{name}}}}}; known: {', '.join(values)}"
        )
    return values[name]


def _nbgrader(cell: Any) -> dict[str, Any]:
    return cell.metadata.get("nbgrader", {})


def _checked(cell: Any, folder: LabFolder, lab: Lab) -> str:
    """Return the id of the question that a check cell belongs to."""
    for question in lab:
        if belongs_to(_nbgrader(cell)["grade_id"], question.id):
            return question.id
    raise GradingError(
        f"{folder.source.name}: no question has the check cell {_nbgrader(cell)['grade_id']!r}"
    )


def _identify(cell: Any, lab: Lab, position: int) -> None:
    """Complete nbgrader's metadata and give the cell an id that survives a rebuild."""
    data = _nbgrader(cell)
    if is_setup(cell) and not data:
        data = {"grade_id": f"setup-{position}", "locked": True}
    if data:
        data = {"grade": False, "solution": False, "task": False, "schema_version": 3, **data}
        data.setdefault("locked", not data["solution"])
        data["cell_type"] = cell.cell_type
        if data["grade"]:
            data["points"] = next(q.points for q in lab if belongs_to(data["grade_id"], q.id))
        cell.metadata["nbgrader"] = data
        identity = data["grade_id"]
    else:
        # Position, not text: an edited paragraph keeps its id and so its diff stays small.
        identity = hashlib.sha256(f"{lab.id}/{position}".encode()).hexdigest()[:12]
    cell["id"] = identity
    cell.metadata["id"] = identity  # Colab keeps this one and drops the other
    for name in ("widgets", "lines_to_next_cell", "lines_to_end_of_cell_marker"):
        cell.metadata.pop(name, None)


def _verify(notebook: Any, folder: LabFolder, lab: Lab) -> None:
    """Fail where the source and ``LAB`` disagree: ids, missing answer or check cells, duplicates."""
    answers = [grade_id(cell) for cell in notebook.cells if _nbgrader(cell).get("solution")]
    checks = [grade_id(cell) for cell in notebook.cells if _nbgrader(cell).get("grade")]
    ids = [grade_id(cell) for cell in notebook.cells if _nbgrader(cell)]
    problems = [f"{i} stands twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    for question in lab:
        if not any(belongs_to(i, question.id) for i in answers):
            problems.append(f"{question.id} has no answer cell")
        if sum(belongs_to(i, question.id) for i in checks) != 1:
            problems.append(f"{question.id} needs exactly one cell with grade: true")
    problems += [f"{i} is no question's" for i in answers if not any(belongs_to(i, q.id) for q in lab)]
    if not any(is_setup(cell) for cell in notebook.cells):
        problems.append('no cell is tagged "setup"')
    if problems:
        raise GradingError(f"{folder.source.name}: {'; '.join(problems)}")


def _released(notebook: Any) -> Any:
    """Run nbgrader's preprocessors of generate_assignment; the gradebook's own step is left out."""
    import copy
    import logging

    from nbgrader import preprocessors as pre

    from .clearing import ClearAllSolutions

    steps = [
        pre.LockCells,
        ClearAllSolutions,
        pre.ClearOutput,
        pre.CheckCellMetadata,
        pre.ClearHiddenTests,
        pre.ClearMarkScheme,
        pre.ComputeChecksums,  # last, because a checksum covers the text that students get
        pre.CheckCellMetadata,
    ]
    released = copy.deepcopy(notebook)
    resources: dict[str, Any] = {"nbgrader": {}}
    for step in steps:
        preprocessor = step()
        preprocessor.log = logging.getLogger("tinyml_edu.release")
        released, resources = preprocessor.preprocess(released, resources)
    for cell in released.cells:
        cell.source = cell.source.rstrip("\n")
    return released


def _dump(notebook: Any) -> str:
    import nbformat

    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def release(folder: LabFolder) -> bool:
    """Write source and release notebook of a lab; return whether the release changed."""
    source, released = build(folder)
    write_text(folder.built_source, source)
    if folder.notebook.is_file() and folder.notebook.read_text(encoding="utf-8") == released:
        return False
    write_text(folder.notebook, released)
    return True


def check_release(root: Path | None = None) -> list[str]:
    """Return what is wrong with the committed releases: labs out of date, orphans, leaks; empty when fine."""
    from .leaks import find_leaks

    problems = []
    for folder in all_labs(root):
        if not folder.source.is_file():
            problems.append(f"labs/{folder.name} has no source in solutions/; delete it")
            continue
        text = folder.notebook.read_text(encoding="utf-8") if folder.notebook.is_file() else ""
        source, released = build(folder)
        write_text(folder.built_source, source)
        if released != text:
            problems.append(f"labs/{folder.name} is out of date; run: make release")
        problems += [f"labs/{leak.file} shows a solution line: {leak.line}" for leak in find_leaks(folder)]
    return problems


def main(arguments: list[str] | None = None) -> int:
    """``python -m tinyml_edu.grading.release [--check] [LAB ...]``."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if "--check" in words:
            problems = check_release()
            print("\n".join(problems) if problems else "labs/ is up to date", flush=True)
            return 1 if problems else 0
        folders = [find(word) for word in words] or all_labs()
        for folder in folders:
            print(f"{folder.name}: {'written' if release(folder) else 'unchanged'}")
    except TinyMLError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
