"""Run a notebook top to bottom in a fresh kernel, without network, within a budget."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..checks.loading import CHECKS_VARIABLE
from .course import COURSE_VARIABLE

PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

# Runs before the notebook: Python code reaches this machine only.  Programs that it starts meet a dead proxy.
GUARD = """
import errno as _errno
import socket as _socket

def _is_local(address):
    return not isinstance(address, tuple) or str(address[0]) in ("127.0.0.1", "::1", "localhost")

def _connect(self, address, _real=_socket.socket.connect):
    if not _is_local(address):
        raise OSError(f"no network: this run is offline ({address[0]})")
    return _real(self, address)

def _connect_ex(self, address, _real=_socket.socket.connect_ex):
    return _real(self, address) if _is_local(address) else _errno.ENETUNREACH

def _unknown(host, *rest, _lookup=_socket.getaddrinfo, **more):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        raise _socket.gaierror(f"no network: this run is offline ({host})")
    return _lookup(host, *rest, **more)

_socket.socket.connect, _socket.socket.connect_ex = _connect, _connect_ex
_socket.getaddrinfo = _unknown
"""


@dataclass(frozen=True)
class OfflineRun:
    """Whether a notebook ran, why not, and how long it took in seconds."""

    ok: bool
    reason: str
    seconds: float


def run_offline(
    notebook: Path, course: Path, *, budget_s: float, fast: bool = True, checks: Path | None = None
) -> OfflineRun:
    """Execute a copy of a notebook with its folder's files beside it.

    Parameters
    ----------
    notebook : Path
        The notebook; it is not changed.
    course : Path
        Where hidden checks in the notebook find their judges.
    budget_s : float
        Limit for the whole run in seconds; a longer run is ended and is not ok.
    fast : bool
        Set ``TINYML_EDU_FAST=1``.
    checks : Path, optional
        Folder with the checks of a private lab.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    content = nbformat.read(notebook, as_version=4)
    content.cells.insert(0, nbformat.v4.new_code_cell(GUARD))
    changes = {
        "TINYML_EDU_FAST": "1" if fast else "",
        COURSE_VARIABLE: str(course),
        CHECKS_VARIABLE: str(checks or ""),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **dict.fromkeys(PROXIES, "http://127.0.0.1:9"),
    }
    with tempfile.TemporaryDirectory(prefix="tinyml-") as folder, _environment(changes):
        started = time.monotonic()
        client = NotebookClient(
            content,
            timeout_func=lambda _: max(1, int(budget_s - (time.monotonic() - started))),
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            # Sockets of this user and no open ports; an absolute, short path, or the kernel does not find it.
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/k"}}),
        )
        try:
            client.execute()
        except CellTimeoutError:
            return OfflineRun(False, f"it takes longer than {budget_s:g} s", time.monotonic() - started)
        except (CellExecutionError, DeadKernelError) as error:
            return OfflineRun(False, _last_line(error), time.monotonic() - started)
        seconds = time.monotonic() - started
    if seconds > budget_s:
        return OfflineRun(False, f"it takes {seconds:.0f} s, the budget is {budget_s:g} s", seconds)
    return OfflineRun(True, "", seconds)


def _last_line(error: Exception) -> str:
    """Return the line of a kernel's traceback that says what happened, without its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Set the environment for the block; the kernel inherits this process's."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
