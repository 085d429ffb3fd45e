"""Drive a notebook in real JupyterLab in headless Chromium, as a student would."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "t"
SETTINGS = {
    # Cells outside the window are taken out of the page by default, and could not be looked at.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
PICTURES_AND_TABLES = """output => Array.from(output.querySelectorAll("img, table, pre"))
    .map(part => part.tagName === "IMG" ? part.src : part.innerText)"""


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serve ``folder`` with JupyterLab, its settings and runtime files kept beside it; yield the address."""
    private = folder.parent / f"{folder.name}_jupyter"
    for name, values in SETTINGS.items():
        file = private / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    env = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "JUPYTER_CONFIG_DIR": str(private / "config"),
        "TINYML_EDU_FAST": "1",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    log = (private / "server.log").open("w+")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        _await_server(f"{address}/api?token={TOKEN}", process, Path(log.name))
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _await_server(url: str, process: subprocess.Popen[Any], log: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def opened(address: str, notebook: str) -> Iterator[Any]:
    """Open a notebook in headless Chromium, wait for its kernel, and yield the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(f"{address}/lab/tree/{notebook}?token={TOKEN}&reset")
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        try:
            yield page
        finally:
            browser.close()


def run_all(page: Any, *, timeout_s: float) -> None:
    """Choose Run > Run All Cells and wait until no cell is queued any more, also after a failure."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(
        """() => {
            const prompts = Array.from(document.querySelectorAll(".jp-CodeCell .jp-InputPrompt"));
            const texts = prompts.map(prompt => prompt.innerText.trim());
            return texts.some(text => /\\d/.test(text)) && !texts.some(text => text.includes("*"));
        }""",
        timeout=1000 * timeout_s,
    )


def save(page: Any, path: Path) -> dict[str, Any]:
    """Save the notebook as a student would and return what is then on disk."""
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        page.wait_for_timeout(100)
        if path.stat().st_mtime_ns != before:
            try:
                return json.loads(path.read_text())
            except json.JSONDecodeError:  # the server is still writing
                continue
    raise AssertionError("the notebook was not saved")


def shown(page: Any) -> list[str]:
    """Return pictures (by address) and texts in the output that holds a slider, sliders left out."""
    return page.locator(".jp-OutputArea-output:has(.noUi-handle)").first.evaluate(PICTURES_AND_TABLES)


def changed(page: Any, before: list[str], *, timeout_s: float = 60) -> list[str]:
    """Return what `shown` gives once every part differs from ``before``, or at the timeout."""
    deadline = time.monotonic() + timeout_s
    after = shown(page)
    while time.monotonic() < deadline and any(a == b for a, b in zip(before, after, strict=False)):
        page.wait_for_timeout(200)
        after = shown(page)
    return after


def move_slider(page: Any, *, key: str = "ArrowRight") -> None:
    """Move the first slider of the page by one step with the keyboard."""
    handle = page.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    handle.press(key)
