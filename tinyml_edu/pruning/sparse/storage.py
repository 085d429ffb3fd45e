"""A sparse matrix in a file: a header of `HEADER_BYTES` bytes, then the stored arrays and nothing else.

Header, little-endian: ``TESP``, version (2 bytes), number of the format and of the value type (1 each),
rows, cols, stored values, PEs, CRC-32 of everything else (4 each).  Element types and lengths follow from
these by the format's ``layout``, so they are not written.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..._files import write_atomically
from ...errors import DataError, UsageError
from .formats import FORMATS
from .matrix import VALUE_DTYPES, Size, SparseMatrix
from .relative import RelativeIndex

_HEADER, _CHECKSUM = struct.Struct("<4sHBBIIII"), struct.Struct("<I")
_MAGIC, _VERSION = b"TESP", 1

HEADER_BYTES = _HEADER.size + _CHECKSUM.size
"""Bytes before the arrays; a file has ``HEADER_BYTES + matrix.nbytes`` bytes."""


def write(matrix: SparseMatrix, path: str | Path) -> int:
    """Write a matrix and return the bytes of the file, ``HEADER_BYTES + matrix.nbytes``."""
    body = b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in matrix.arrays.values())
    kind, value = list(FORMATS).index(matrix.name), VALUE_DTYPES.index(matrix.values.dtype)
    pes = matrix.options().get("pes", 1)
    head = _HEADER.pack(_MAGIC, _VERSION, kind, value, *matrix.shape, matrix.values.size, pes)
    write_atomically(Path(path), head + _CHECKSUM.pack(zlib.crc32(head + body)) + body)
    return HEADER_BYTES + len(body)


def read(path: str | Path) -> SparseMatrix:
    """Return the matrix in a file.

    Raises
    ------
    DataError
        If the file is missing, is not such a file, has another version, or is damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; write it with sparse.write") from error
    if len(data) < HEADER_BYTES or data[:4] != _MAGIC:
        raise DataError(f"{path} is not a sparse matrix; write it with sparse.write")
    head, body = data[: _HEADER.size], data[HEADER_BYTES:]
    _, version, kind, value, rows, cols, entries, pes = _HEADER.unpack(head)
    if version != _VERSION or kind >= len(FORMATS) or value >= len(VALUE_DTYPES):
        raise DataError(
            f"{path} has version {version} or an unknown format; write it again with this release"
        )
    if data[_HEADER.size : HEADER_BYTES] != _CHECKSUM.pack(zlib.crc32(head + body)):
        raise DataError(f"{path} is damaged: its checksum does not match; write it again")
    size = Size((rows, cols), entries, VALUE_DTYPES[value], pes)
    try:
        return _parse(list(FORMATS.values())[kind], size, body)
    except (DataError, UsageError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}; write it again") from error


def _parse(kind: type[SparseMatrix], size: Size, body: bytes) -> SparseMatrix:
    fields: dict[str, Any] = {"pes": size.pes} if kind is RelativeIndex else {}
    start = 0
    for name, (element, shape) in kind.layout(size).items():
        stop = start + math.prod(shape) * element.itemsize
        flat = np.frombuffer(body[start:stop], element.newbyteorder("<"))
        fields[name] = flat.astype(element).reshape(shape)
        start = stop
    if start != len(body):
        raise DataError(f"{len(body)} bytes where {start} belong")
    return kind(size.shape, **fields)
