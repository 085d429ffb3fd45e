"""Arrays across the boundary between grader and student: ``.npz`` files, read without trust."""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import DataError

MAX_BYTES = 64_000_000
MAX_ARRAYS = 4096


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays atomically and uncompressed; refuse what the reader would refuse.

    Raises
    ------
    DataError
        If an array holds Python objects or all of them together are too large.
    """
    for name, value in arrays.items():
        if value.dtype.hasobject:
            raise DataError(f"{name} is an array of Python objects; return numbers")
    total = sum(value.nbytes for value in arrays.values())
    if total > MAX_BYTES or len(arrays) > MAX_ARRAYS:
        raise DataError(
            f"{len(arrays)} arrays of {total} bytes were returned; the limit is {MAX_BYTES} bytes"
        )
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, value, allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getbuffer())
    os.replace(partial, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file that untrusted code may have written.

    The file must be a regular one (a pipe would block, a link would lead elsewhere), uncompressed (no
    zip bomb), and every array's header must promise no more bytes than its member holds.

    Raises
    ------
    DataError
        If any of that fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > 2 * MAX_BYTES:
                raise DataError("the returned file is too large or no file at all")
            with zipfile.ZipFile(file) as archive:
                return _members(archive)
    except DataError:
        raise
    except Exception as error:  # any parser error means the same: not written by the driver
        raise DataError(f"the returned arrays cannot be read ({type(error).__name__})") from error


def _members(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = archive.infolist()
    if len(members) > MAX_ARRAYS or sum(m.file_size for m in members) > 2 * MAX_BYTES:
        raise DataError("too many or too large arrays were returned")
    arrays = {}
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise DataError("the returned arrays are compressed")
        arrays[member.filename.removesuffix(".npy")] = _array(archive.read(member))
    return arrays


def _array(data: bytes) -> np.ndarray:
    """Parse one ``.npy`` member without trusting its header."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise DataError("an array of an unknown format version was returned")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise DataError("an array of Python objects was returned; return numbers")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise DataError("an array's header does not fit its contents")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def unflatten(arrays: Mapping[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    """Return the arrays ``"<case>/<name>"`` as one dictionary a case.

    Raises
    ------
    DataError
        If a name belongs to no case.
    """
    cases: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    for key, value in arrays.items():
        index, _, name = key.partition("/")
        if not (index.isdecimal() and index.isascii() and len(index) < 9 and int(index) < count):
            raise DataError(f"an array was returned for a case that does not exist: {key[:40]}")
        cases[int(index)][name] = value
    return cases
