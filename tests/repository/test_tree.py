"""The repository keeps its own rules: sizes, links, no leftovers, one importable package."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FILE_LIMIT = 500_000
CHECKPOINT_LIMIT = 5_000_000
ZOO_LIMIT = 40_000_000


def tracked(repository: Path) -> list[Path]:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    return [repository / name for name in names if name and (repository / name).is_file()]


def too_large(path: Path, size: int) -> bool:
    return size > (CHECKPOINT_LIMIT if path.suffix == ".safetensors" else FILE_LIMIT)


def test_committed_files_are_small(repository):
    large = [(p.name, p.stat().st_size) for p in tracked(repository) if too_large(p, p.stat().st_size)]
    assert not large
    assert sum(p.stat().st_size for p in (repository / "tinyml_edu" / "zoo").iterdir()) <= ZOO_LIMIT


def test_the_size_gate_can_fail():
    assert too_large(Path("a.npz"), FILE_LIMIT + 1)
    assert too_large(Path("a.safetensors"), CHECKPOINT_LIMIT + 1)
    assert not too_large(Path("a.safetensors"), FILE_LIMIT + 1)


def broken_links(page: Path, text: str) -> list[str]:
    """Return relative links of a Markdown page that lead nowhere (code blocks apart)."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [t.split("#")[0] for t in targets if not re.match(r"[a-z]+:", t)]
    return [t for t in local if t and not (page.parent / t).exists()]


def test_links_of_the_documents_lead_somewhere(repository):
    pages = [p for p in tracked(repository) if p.suffix == ".md"]
    assert len(pages) >= 5
    assert {p.name: b for p in pages if (b := broken_links(p, p.read_text(encoding="utf-8")))} == {}


def test_the_link_check_can_fail(tmp_path):
    assert broken_links(tmp_path / "a.md", "[x](nowhere.md) [y](https://example.org)") == ["nowhere.md"]


def test_only_the_library_is_importable():
    # A folder named `datasets` or `autograder` on the path would shadow other packages.
    code = (
        "import importlib.util as u; "
        "print([u.find_spec(n) is None for n in ('datasets', 'autograder', 'labs')])"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    assert out.strip() == "[True, True, True]"
    assert importlib.util.find_spec("tinyml_edu") is not None


def test_constraints_pin_every_direct_dependency(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = ("mcu", "tflite", "labs", "dev", "peers")
    wanted = [*project["dependencies"], *(r for e in used for r in extras[e])]
    names = {re.split(r"[\[><=; ]", r)[0].lower().replace("_", "-") for r in wanted} - {"tinyml-edu"}
    pins = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (repository / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names - pins == set()


def test_ci_runs_the_commands_of_the_readme(repository):
    script = (repository / ".ci" / "run").read_text()
    assert [line for line in script.splitlines() if line.startswith("make ")] == [
        "make setup",
        "make test-all",
        "make check",
    ]


def test_import_loads_nothing_heavy():
    code = (
        "import sys, tinyml_edu; "
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'torchvision', 'IPython') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("module", ["tinyml_edu.ir", "tinyml_edu.mcu.planning", "tinyml_edu.mcu.cgen"])
def test_the_compiler_core_never_imports_torch(module):
    code = f"import sys, {module}, tinyml_edu.ir.execute, tinyml_edu.ir.tflite; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"
