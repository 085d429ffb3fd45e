"""A lab in real JupyterLab: Run All leaves no error, and moving the explorer's slider changes its output."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

from tinyml_edu.grading.labs import all_labs
from tinyml_edu.grading.release import KERNEL, build

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
LABS = {folder.id: folder for folder in all_labs(ROOT)}


def _problems(notebook: dict) -> list[str]:
    """Return what a reader of a finished run would call an error."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        first = "".join(cell["source"])[:60]
        if cell["execution_count"] is None:
            found.append(f"not run: {first}")
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"{output.get('evalue') or output.get('text')}: {first}")
    return found


def _screenshot(page, name: str, tmp_path: Path) -> Path:
    """Save what is on the screen; ``TINYML_EDU_SCREENSHOTS`` names a folder to keep it in."""
    folder = Path(os.environ.get("TINYML_EDU_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
    return folder / f"{name}.png"


@pytest.mark.slow
@pytest.mark.parametrize("lab", LABS)
def test_run_all_leaves_no_error_and_the_slider_changes_the_output(lab, tmp_path):
    from jupyterlab_driver import changed, move_slider, opened, run_all, save, server, shown

    folder = tmp_path / "work"
    folder.mkdir()
    notebook = folder / f"{LABS[lab].name}.ipynb"
    notebook.write_text(build(LABS[lab])[0], encoding="utf-8")
    with server(folder) as address, opened(address, notebook.name) as page:
        run_all(page, timeout_s=600)
        assert _problems(save(page, notebook)) == []
        before = shown(page)
        assert before == shown(page), "the output changes by itself"
        assert len(before) >= 2, "the explorer shows a picture and a table"
        move_slider(page)
        after = changed(page, before)
        assert all(a != b for a, b in zip(before, after, strict=True)), (before, after)
        assert _screenshot(page, f"{lab}_explorer", tmp_path).stat().st_size > 10_000


def test_a_failing_cell_is_found(tmp_path):
    """The control: an error in a cell must not pass for a clean run."""
    from jupyterlab_driver import opened, run_all, save, server

    folder = tmp_path / "work"
    folder.mkdir()
    cells = [nbformat.v4.new_code_cell("1 / 0"), nbformat.v4.new_code_cell("print('not reached')")]
    notebook = folder / "broken.ipynb"
    # Without a kernel in its metadata JupyterLab would ask for one in a dialog.
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), notebook)
    with server(folder) as address, opened(address, notebook.name) as page:
        run_all(page, timeout_s=60)
        found = _problems(save(page, notebook))
    assert any("division by zero" in problem for problem in found), found
