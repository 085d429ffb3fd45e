"""The folder that `deploy` makes: what may be replaced, and how without a moment in between."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError, UsageError

PLAN_FORMAT = 1
"""Of ``plan.json``; a folder with another one is not replaced and not read."""


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say in one line that ``out`` cannot be written, whatever the reason is.

    Raises
    ------
    DataError
        For a folder that is read-only, a path through a file, a full disk.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write {out}: {reason}; name a folder that you may write to, on a disk with free space"
        ) from error


def check_target(out: Path) -> None:
    """Refuse a place where a deployment would overwrite what `deploy` did not write.

    Raises
    ------
    UsageError
        If ``out`` is a file, the current folder, or a folder that holds anything but an earlier deployment.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder")
    if out in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(f"{out} is the folder that you are in, or one above; name a folder of its own")
    if out.is_dir() and (foreign := _foreign_file(out)):
        raise UsageError(f"{out} holds other files, such as {foreign}; name an empty or a new folder")


def _foreign_file(out: Path) -> str:
    """Return a file under ``out`` that `deploy` and its Makefile did not write, or an empty string."""
    try:
        stored = json.loads((out / "plan.json").read_text(encoding="utf-8"))
        ours = {"plan.json", *stored["files"]} if stored["format"] == PLAN_FORMAT else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    for path in out.rglob("*"):
        name = path.relative_to(out)
        built = bool(ours) and name.parts[0] == "build"
        if not path.is_dir() and not built and name.as_posix() not in ours:
            return str(name)
    return ""


def write_texts(folder: Path, files: dict[str, str]) -> None:
    """Write files by their path under ``folder``, with Unix line ends on every platform."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def replace_folder(folder: Path, out: Path) -> None:
    """Rename ``folder`` to ``out``; what was at ``out`` goes aside first and is removed last."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        out.rename(old / out.name)
        try:
            folder.rename(out)
        except BaseException:
            (old / out.name).rename(out)
            old.rmdir()
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(out)
