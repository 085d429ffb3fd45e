"""One place that decides what is skipped, and why; pytest's summary lists the reasons."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Compiled code and made images: kept between runs, and out of the user's own cache.
os.environ.setdefault("TINYML_EDU_CACHE", str(Path(__file__).resolve().parent.parent / ".build" / "cache"))

# The same examples in every run, so that a change that lands did not pass by luck.  To look for new ones:
# HYPOTHESIS_PROFILE=explore make test
hypothesis.settings.register_profile("repeat", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def _missing(marker: str) -> str | None:
    """Return what a test with ``marker`` lacks on this computer, or None."""
    if marker == "data" and not os.environ.get("TINYML_EDU_DATA"):
        return "TINYML_EDU_DATA is not set: real data sets are absent"
    if marker == "c" and not importlib.util.find_spec("ziglang"):
        return "ziglang is not installed"
    if marker == "qemu" and not (shutil.which("qemu-system-arm") and shutil.which("arm-none-eabi-gcc")):
        return "qemu-system-arm or arm-none-eabi-gcc is not installed"
    if marker == "browser" and not (shutil.which("chromium") and importlib.util.find_spec("playwright")):
        return "chromium or playwright is not installed"
    if marker == "gpu":
        import torch

        return None if torch.cuda.is_available() else "no GPU"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {name: _missing(name) for name in ("data", "c", "qemu", "browser")}
    for item in items:
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("gpu") and (reason := _missing("gpu")):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2026)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data; use it together with ``@pytest.mark.data``."""
    folder = os.environ.get("TINYML_EDU_DATA")
    if not folder:
        pytest.skip("TINYML_EDU_DATA is not set: real data sets are absent")
    return Path(folder)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
