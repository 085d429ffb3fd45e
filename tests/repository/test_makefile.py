"""The Makefile's manners: a list of targets, and one clear line when Python is too old."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make(repository: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in ``folder`` with the repository's Makefile, so that the real .venv is not touched."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((repository / name).read_bytes())
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_make_alone_prints_the_targets(repository, tmp_path):
    out = make(repository, tmp_path).stdout
    for target in ("setup", "demo", "test", "test-all", "lab", "check", "release", "grade", "bench", "clean"):
        assert f"make {target} " in out


def test_an_old_python_is_refused_in_one_line(repository, tmp_path):
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")  # what any Python below 3.11 answers to the version question
    old.chmod(0o755)
    result = make(repository, tmp_path, "demo", f"PYTHON={old}")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()
