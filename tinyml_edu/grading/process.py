"""Run one untrusted process: its own session and folder, a wall-clock limit, capped output.

`plain_process` isolates mistakes (loops, crashes, floods of text), not malice.  A sandbox is another function
with the same signature (`Launcher`): it starts the same command inside namespaces.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

OUTPUT_CAP = 20_000
_KEPT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TINYML_EDU_DATA",
    "TINYML_EDU_CACHE",
    "XDG_CACHE_HOME",
    "TINYML_EDU_FAST",
    "SYSTEMROOT",
)
# One thread a question: questions already run side by side on all cores.
_SINGLE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
}


@dataclass(frozen=True)
class Finished:
    """How a process ended.

    Parameters
    ----------
    returncode : int
        Negative: killed by that signal.
    stdout, stderr : str
        The first `OUTPUT_CAP` bytes of each.
    timed_out : bool
        Whether the wall-clock limit ended it.
    seconds : float
        Wall-clock time.
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool
    seconds: float


Launcher = Callable[[Sequence[str], Path, float], Finished]


def plain_process(command: Sequence[str], folder: Path, timeout_s: float) -> Finished:
    """Run ``command`` in ``folder/work`` with a small environment and no isolation from the file system.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    folder : Path
        The job's own folder; HOME and TMPDIR lie in it.
    timeout_s : float
        Wall-clock limit in seconds; then the process and its session are killed.
    """
    work, temporary = folder / "work", folder / "tmp"
    work.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    started = time.monotonic()
    process = subprocess.Popen(
        list(command),
        cwd=work,
        env=_environment(folder, temporary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [_Reader(process.stdout), _Reader(process.stderr)]
    timed_out = False
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        _kill_session(process)
    texts = [reader.finish() for reader in readers]
    return Finished(process.returncode, texts[0], texts[1], timed_out, time.monotonic() - started)


def _environment(folder: Path, temporary: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # Fonts are indexed once on this machine and not once a question.
    fonts = os.environ.get("MPLCONFIGDIR", str(Path.home() / ".cache" / "tinyml_edu" / "matplotlib"))
    private = {"HOME": str(folder), "TMPDIR": str(temporary), "MPLBACKEND": "Agg", "MPLCONFIGDIR": fonts}
    cache = {"XDG_CACHE_HOME": kept.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))}
    return {**kept, **_SINGLE_THREAD, **private, **cache}


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """End the process and every child that stayed in its session, then reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


class _Reader(threading.Thread):
    """Drains a pipe, so that a chatty process never blocks, and keeps the beginning only."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._kept = bytearray()
        self._dropped = 0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._pipe.fileno(), 65536):
                room = OUTPUT_CAP - len(self._kept)
                self._kept += chunk[:room]
                self._dropped += len(chunk) - len(chunk[:room])

    def finish(self) -> str:
        """Return the text; a child that left the session may hold the pipe open, so waiting is bounded."""
        self.join(timeout=2.0)
        if not self.is_alive():
            self._pipe.close()
        text = bytes(self._kept).decode("utf-8", "replace")
        return text + (f"\n... {self._dropped} bytes more" if self._dropped else "")
