"""Where files of data sets are: ``$TINYML_EDU_DATA``, then the user's cache, then a download."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .._files import write_atomically
from ..errors import DataError
from .manifest import Entry

_OFFLINE = "TINYML_EDU_OFFLINE"


def cache_folder() -> Path:
    """Return the folder for downloads and made sets: ``$TINYML_EDU_CACHE`` or the platform's cache."""
    if chosen := os.environ.get("TINYML_EDU_CACHE"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("tinyml_edu"))


def data_folders() -> list[Path]:
    """Return the folders searched for real data, in order; those that do not exist included."""
    chosen = os.environ.get("TINYML_EDU_DATA")
    return ([Path(chosen).expanduser()] if chosen else []) + [cache_folder()]


def find(entry: Entry) -> Path | None:
    """Return the reduced copy of ``entry`` if one of the folders has it."""
    for folder in data_folders():
        for relative in entry.files:
            if (folder / relative).is_file():
                return folder / relative
    return None


def verified(path: Path, sha256: str) -> bytes:
    """Return the bytes of ``path`` after comparing their sha256.

    Raises
    ------
    DataError
        If the file cannot be read or its digest differs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions") from None
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise DataError(
            f"{path} is corrupt: its sha256 starts with {found[:12]}, expected {sha256[:12]}; "
            "delete it and fetch it again"
        )
    return data


def read_arrays(data: bytes, path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the arrays ``names`` of an ``.npz`` text; pickled objects are refused.

    Raises
    ------
    DataError
        If the archive is damaged or lacks an array.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is corrupt ({str(error).splitlines()[0]}); delete it and try again"
        ) from None


def cached_arrays(name: str) -> dict[str, np.ndarray] | None:
    """Return the arrays ``x`` and ``y`` kept under ``made/name.npz`` of the cache, or None.

    A damaged entry counts as absent, because it can be made again.
    """
    path = cache_folder() / "made" / f"{name}.npz"
    try:
        return read_arrays(path.read_bytes(), path, ("x", "y"))
    except (OSError, DataError):
        return None


def cache_arrays(name: str, x: np.ndarray, y: np.ndarray) -> None:
    """Keep made arrays in the cache; a folder that cannot be written is no error, only slower next time."""
    buffer = io.BytesIO()
    np.savez(buffer, x=x, y=y)
    with contextlib.suppress(OSError):
        write_atomically(cache_folder() / "made" / f"{name}.npz", buffer.getvalue())


def original(entry: Entry, name: str) -> Path:
    """Return the path of an original file, downloaded with progress where it is absent.

    Parameters
    ----------
    entry : Entry
    name : str
        A key of ``entry.originals``.

    Raises
    ------
    DataError
        If the file is absent and there is no network, or what arrives has another digest.
    """
    if path := _local_original(entry, name):
        return _checked(path, entry.originals[name]["md5"])
    if os.environ.get(_OFFLINE, "") not in ("", "0"):
        raise absent(entry, f"{_OFFLINE} is set")
    return _download(entry, name)


def has_originals(entry: Entry) -> bool:
    """Return whether every original file of ``entry`` is here already."""
    return bool(entry.originals) and all(_local_original(entry, name) for name in entry.originals)


def _local_original(entry: Entry, name: str) -> Path | None:
    places = (p for f in data_folders() for p in (f / entry.name / name, f / "originals" / name))
    return next((path for path in places if path.is_file()), None)


def absent(entry: Entry, why: str) -> DataError:
    """Return the error for a set that cannot be had; it names the embedded stand-in."""
    files = " and ".join(entry.originals)
    return DataError(
        f"data set {entry.name!r} is not on this machine and cannot be downloaded ({why}); put {files} into "
        f"$TINYML_EDU_DATA/{entry.name}, or use data.load({entry.stand_in!r}), which needs no download"
    )


def _checked(path: Path, md5: str) -> Path:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions") from None
    if digest.hexdigest() != md5:
        raise DataError(f"{path} is corrupt: its md5 is {digest.hexdigest()}, expected {md5}; delete it")
    return path


def _download(entry: Entry, name: str) -> Path:
    """Fetch one original into the cache; pooch checks the digest and renames only a whole file."""
    import pooch
    import requests

    source = entry.originals[name]
    pooch.get_logger().setLevel("WARNING")  # its line is ours, and would go to stderr
    print(f"downloading {name} for {entry.name}: {source['url']}", flush=True)
    try:
        path = pooch.retrieve(
            url=source["url"],
            known_hash=f"md5:{source['md5']}",
            fname=name,
            path=cache_folder() / "originals",
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
        )
    except (requests.RequestException, OSError) as error:
        reason = (
            "no connection" if isinstance(error, requests.ConnectionError) else str(error).splitlines()[0]
        )
        raise absent(entry, reason[:120]) from None
    except ValueError:
        raise absent(entry, "the download is corrupt: its md5 differs") from None
    return Path(path)
