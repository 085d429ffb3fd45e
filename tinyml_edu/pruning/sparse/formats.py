"""The formats by name, and what a matrix costs in each of them."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from ...errors import UnknownNameError, UsageError
from .bitmask import Bitmask
from .compressed import Csc, Csr
from .matrix import Dense, SparseMatrix
from .relative import RelativeIndex
from .two_four import TwoFour

FORMATS: dict[str, type[SparseMatrix]] = {
    kind.name: kind for kind in (Dense, Csr, Csc, Bitmask, RelativeIndex, TwoFour)
}
"""Name -> class; the order is the format's number in a file."""


def encode(matrix: ArrayLike, format: str) -> SparseMatrix:  # noqa: A002 - the word for it
    """Return a dense matrix in a storage format.

    Parameters
    ----------
    matrix : array (rows, cols)
        float32 or int8; a convolution's weight is passed as ``weight.reshape(len(weight), -1)``.
    format : {"dense", "csr", "csc", "bitmask", "relative", "two_four"}

    Returns
    -------
    SparseMatrix
        With the arrays stored, ``nbytes`` and ``decode()``.

    Raises
    ------
    UnknownNameError
        If there is no such format.
    UsageError
        If the matrix cannot be stored in it: wrong shape or dtype, or not 2:4 sparse.

    Examples
    --------
    >>> import numpy as np
    >>> w = encode(np.eye(16, dtype=np.int8), "bitmask")
    >>> w.nbytes, bool((decode(w) == np.eye(16)).all())
    (48, True)
    """
    if format not in FORMATS:
        raise UnknownNameError("sparse format", format, FORMATS)
    return FORMATS[format].encode(matrix)


def decode(stored: SparseMatrix) -> NDArray[Any]:
    """Return the dense (rows, cols) matrix that ``stored`` stands for."""
    return stored.decode()


def byte_table(matrix: ArrayLike) -> dict[str, int]:
    """Return the bytes of a (rows, cols) matrix in each format that can hold it.

    ``two_four`` is left out where the matrix is not 2:4 sparse.

    Examples
    --------
    >>> import numpy as np
    >>> byte_table(np.eye(64, dtype=np.int8))
    {'dense': 4096, 'csr': 193, 'csc': 193, 'bitmask': 576, 'relative': 305, 'two_four': 2560}
    """
    table = {}
    for name in FORMATS:
        try:
            table[name] = encode(matrix, name).nbytes
        except UsageError:
            if name != TwoFour.name:
                raise
    return table
