"""The folder of compiled files: each under the sha256 of all that it depends on, and never half a file.

A file is written beside its final name and then renamed: two processes may fill the cache at the same time,
and neither ever loads what the other has not finished.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import ToolchainError


def cache_dir() -> Path:
    """Return the folder of compiled files: ``$TINYML_EDU_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("TINYML_EDU_CACHE")
    if chosen:
        root = Path(chosen).expanduser()
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tinyml_edu"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches" / "tinyml_edu"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinyml_edu"
    folder = root / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolchainError(
            f"cannot create the cache folder {folder} ({error.strerror}); set TINYML_EDU_CACHE to a folder "
            "that you may write to"
        ) from error
    return folder


def cached(name: str, suffix: str, files: Sequence[Path], texts: Sequence[str]) -> Path:
    """Return where the result of ``files`` and ``texts`` stands in the cache, or will stand.

    Parameters
    ----------
    name, suffix : str
        First and last part of the file's name.
    files : sequence of Path
        Their names and contents are part of the key; their folders are not.
    texts : sequence of str
        Whatever else decides the result: flags, versions, scripts.
    """
    return cache_dir() / f"{name}-{_key(files, texts)[:32]}{suffix}"


def _key(files: Sequence[Path], texts: Sequence[str]) -> str:
    """Return the sha256 of file names, file contents and texts (each with its length: no ambiguity)."""
    digest = hashlib.sha256()
    parts = [(path.name.encode(), path.read_bytes()) for path in files]
    for name, content in [*parts, *((b"text", text.encode()) for text in texts)]:
        digest.update(b"%d %d " % (len(name), len(content)) + name + content)
    return digest.hexdigest()


@contextmanager
def built_beside(target: Path) -> Iterator[Path]:
    """Give a scratch path beside ``target``; it becomes ``target`` when the block ends, if nothing fails."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".building-", suffix=target.suffix)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
