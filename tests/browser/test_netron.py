"""Netron opens the `.tflite` files that `ir.write_tflite` makes and draws every operator of the graph."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyml_edu import ir, zoo
from tinyml_edu.quantization import quantize

pytestmark = pytest.mark.browser

LOADING, GRAPH, ALERT = "welcome spinner", "default", "alert"
"""Classes that Netron gives the page: while it reads, once a graph is drawn, with a message of an error."""


@pytest.fixture(scope="module", params=["vgg_lite.glyphs32", "mobilenet_v2_tiny.glyphs32"])
def written(request, tmp_path_factory) -> tuple[Path, ir.Graph]:
    """Return the file of an int8 network of the zoo and what the file holds."""
    model, _ = zoo.load(request.param)
    noise = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    path = tmp_path_factory.mktemp("netron") / f"{request.param}.tflite"
    quantize(model, None, noise).write_tflite(path)
    return path, ir.read_tflite(path)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Serve a file with Netron, open it in headless Chromium, and yield the page when Netron has read it."""
    netron = pytest.importorskip("netron", reason="netron is not installed")
    from playwright.sync_api import sync_playwright

    address = netron.start(str(path), address=("127.0.0.1", 0), browse=False)
    url = f"http://{address[0]}:{address[1]}/"
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 1600})
            # Netron asks for consent, sends statistics, and half a year after its release wants an update.
            page.context.add_cookies([{"name": "consent", "value": "1", "url": url}])
            page.route(lambda to: not to.startswith(url), lambda route: route.abort())
            page.clock.set_fixed_time(datetime.datetime(2026, 11, 1))
            page.goto(url)
            _await_class(page)
            yield page
            browser.close()
    finally:
        netron.stop(address)


def _await_class(page: Any, timeout_s: float = 240) -> None:
    # Netron switches `eval` off, which the waiting functions of Playwright need.
    deadline = time.monotonic() + timeout_s
    while page.locator("body").get_attribute("class") not in (GRAPH, ALERT):
        assert time.monotonic() < deadline, page.locator("body").get_attribute("class")
        page.wait_for_timeout(100)


def _texts(locator: Any) -> list[str]:
    return [locator.nth(i).text_content() for i in range(locator.count())]


def drawn_operators(page: Any) -> Counter[str]:
    """Return how often each operator is drawn; an activation inside an operator is none of its own."""
    nodes = page.locator("#target g.node")
    found: Counter[str] = Counter()
    for i in range(nodes.count()):
        found.update(_texts(nodes.nth(i).locator(".node-item-type text"))[:1])
    return found


def netron_name(op: str) -> str:
    """Return what Netron calls an operator: CONV_2D is Conv2D."""
    return "".join(part if part == "2D" else part.capitalize() for part in op.split("_"))


def _screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("TINYML_EDU_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_netron_draws_every_operator_of_a_written_file(written):
    path, graph = written
    with opened(path) as page:
        _screenshot(page, f"netron_{path.stem}")
        assert page.locator("body").get_attribute("class") == GRAPH, _texts(page.locator("#message-text"))
        assert drawn_operators(page) == Counter(netron_name(node.op) for node in graph.nodes)
        shown = " ".join(_texts(page.locator("#target g.node")))
    tensors = [graph[name] for name in (*graph.inputs, *graph.outputs)]
    tensors += [graph[node.inputs[1]] for node in graph.nodes if node.op == "CONV_2D"]
    for tensor in tensors:
        assert f"int8[{','.join(map(str, tensor.shape))}]" in shown, tensor.name


def test_netron_refuses_a_file_that_ends_early(written, tmp_path):
    """The control: no graph is drawn and the page says that the file is wrong."""
    broken = tmp_path / "broken.tflite"
    content = written[0].read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with opened(broken) as page:
        _screenshot(page, f"netron_{written[0].stem}_broken")
        assert page.locator("body").get_attribute("class") == ALERT
        assert "end of file" in page.locator("#message-text").text_content()
        assert drawn_operators(page) == Counter()
