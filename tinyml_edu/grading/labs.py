"""Where a lab's files lie: its source, its release notebook and its checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks.loading import load_checks, load_lab
from ..checks.protocol import Lab
from ..errors import GradingError, UnknownNameError


@dataclass(frozen=True)
class LabFolder:
    """One lab on disk.

    Parameters
    ----------
    name : str
        Folder name, ``"lab00_efficiency_metrics"``; its first part is the lab's id.
    root : Path
        The folder that holds ``labs/`` and, in a development checkout, ``solutions/``.
    checks : Path, optional
        File with ``LAB``; by default the module ``tinyml_edu.checks.<id>``.
    """

    name: str
    root: Path
    checks: Path | None = None

    @property
    def id(self) -> str:
        """``"lab00"``."""
        return self.name.partition("_")[0]

    @property
    def source(self) -> Path:
        """The percent-format source; exists only in a development checkout."""
        return self.root / "solutions" / self.name / f"{self.name}.py"

    @property
    def notebook(self) -> Path:
        """The release notebook that students open."""
        return self.root / "labs" / self.name / f"{self.name}.ipynb"

    @property
    def built_source(self) -> Path:
        """The source as a notebook with solutions, in the layout that nbgrader asks for."""
        return self.root / ".build" / "source" / self.name / f"{self.name}.ipynb"

    def load(self) -> Lab:
        """Return the lab's questions."""
        if self.checks is None:
            return load_lab(self.id)
        return load_checks(self.checks)


def checkout_root() -> Path | None:
    """Return the development checkout that this package lies in, or None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "solutions").is_dir() else None


def all_labs(root: Path | None = None) -> list[LabFolder]:
    """Return the labs under ``root``; by default of this checkout, else of the current folder."""
    roots: Iterable[Path | None] = [root] if root else [checkout_root(), Path.cwd(), Path.cwd().parent]
    for base in roots:
        if base is None:
            continue
        names = {p.parent.name for kind in ("labs", "solutions") for p in base.glob(f"{kind}/lab*/lab*.*")}
        if names:
            return [_folder(name, base) for name in sorted(names)]
    return []


def _folder(name: str, root: Path) -> LabFolder:
    # A private lab brings its checks along; the course's own are modules of the library.
    private = root / "checks" / f"{name.partition('_')[0]}.py"
    return LabFolder(name, root, private if private.is_file() else None)


def find(name: str, root: Path | None = None) -> LabFolder:
    """Return the lab with the given folder name or unique prefix.

    Raises
    ------
    GradingError
        If there are no labs here, or the prefix fits several.
    UnknownNameError
        If no lab has this name.
    """
    labs = all_labs(root)
    if not labs:
        raise GradingError(
            "there is no labs/ folder here; clone the course's repository and run the command in its folder"
        )
    fitting = [lab for lab in labs if lab.name == name] or [lab for lab in labs if lab.name.startswith(name)]
    if not fitting or not name:
        raise UnknownNameError("lab", name, [lab.name for lab in labs])
    if len(fitting) > 1:
        raise GradingError(f"{name!r} fits {', '.join(lab.name for lab in fitting)}; type more of the name")
    return fitting[0]


def summaries() -> list[dict[str, Any]]:
    """Return ``lab, title, minutes, points, questions`` of every lab; points include the written ones."""
    rows = []
    for folder in all_labs():
        lab = folder.load()
        points = lab.max_score + lab.manual_points
        rows.append(
            {
                "lab": folder.name,
                "title": lab.title,
                "minutes": lab.minutes,
                "points": points,
                "questions": len(lab.questions),
            }
        )
    return rows
