"""Compressed sparse rows (CSR) and columns (CSC): an index for each value, a pointer for each row or column.

With ``V`` bytes a value, ``I`` bytes an index and ``P`` bytes a pointer (each the smallest of 1, 2 and 4 that
holds the largest one possible):

    CSR  nnz * (V + I) + (rows + 1) * P        CSC  nnz * (V + I) + (cols + 1) * P

References
----------
.. [1] Saad, Iterative Methods for Sparse Linear Systems, 2nd ed., SIAM 2003, section 3.4.
       https://www-users.cse.umn.edu/~saad/IterMethBook_2ndEd.pdf
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .matrix import Layout, Size, SparseMatrix, as_matrix, smallest_unsigned


@dataclass(frozen=True, eq=False)
class Csr(SparseMatrix):
    """Compressed sparse rows [1]_.

    Attributes
    ----------
    values : ndarray (nnz,)
        Weights that are not zero, row by row, columns ascending.
    indices : ndarray (nnz,)
        Column of each value; the smallest unsigned type that holds ``cols - 1``.
    pointers : ndarray (rows + 1,)
        Row ``i`` is ``values[pointers[i]:pointers[i + 1]]``; the smallest unsigned type that holds ``nnz``.

    Examples
    --------
    >>> import numpy as np
    >>> w = Csr.encode(np.array([[0, 5, 0], [0, 0, 0], [7, 0, -2]], dtype=np.int8))
    >>> w.values.tolist(), w.indices.tolist(), w.pointers.tolist(), w.nbytes
    ([5, 7, -2], [1, 0, 2], [0, 1, 1, 3], 10)
    """

    name: ClassVar[str] = "csr"

    indices: NDArray[Any]
    pointers: NDArray[Any]

    @classmethod
    def encode(cls, matrix: ArrayLike) -> Self:
        """Return a dense (rows, cols) matrix in this format."""
        dense = as_matrix(matrix)
        return cls(dense.shape, *_compress(dense))

    def decode(self) -> NDArray[Any]:
        """Return the dense (rows, cols) matrix."""
        return _expand(self.shape, self.values, self.indices, self.pointers)

    @classmethod
    def layout(cls, size: Size) -> Layout:
        """Return what is stored."""
        return _layout(size.shape, size.entries, size.dtype)

    def problem(self) -> str | None:
        """Return what is wrong with indices or pointers, or None."""
        return _problem(self.shape, self.indices, self.pointers)


@dataclass(frozen=True, eq=False)
class Csc(SparseMatrix):
    """Compressed sparse columns: CSR of the transpose [1]_.

    Attributes
    ----------
    values : ndarray (nnz,)
        Weights that are not zero, column by column, rows ascending.
    indices : ndarray (nnz,)
        Row of each value; the smallest unsigned type that holds ``rows - 1``.
    pointers : ndarray (cols + 1,)
        Column ``j`` is ``values[pointers[j]:pointers[j + 1]]``.
    """

    name: ClassVar[str] = "csc"

    indices: NDArray[Any]
    pointers: NDArray[Any]

    @classmethod
    def encode(cls, matrix: ArrayLike) -> Self:
        """Return a dense (rows, cols) matrix in this format."""
        dense = as_matrix(matrix)
        return cls(dense.shape, *_compress(dense.T))

    def decode(self) -> NDArray[Any]:
        """Return the dense (rows, cols) matrix."""
        flipped = _expand(self.shape[::-1], self.values, self.indices, self.pointers)
        return np.ascontiguousarray(flipped.T)

    @classmethod
    def layout(cls, size: Size) -> Layout:
        """Return what is stored."""
        return _layout(size.shape[::-1], size.entries, size.dtype)

    def problem(self) -> str | None:
        """Return what is wrong with indices or pointers, or None."""
        return _problem(self.shape[::-1], self.indices, self.pointers)


# Below, "major" is the axis with pointers: rows of CSR, columns of CSC.


def _compress(dense: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return values, minor indices and major pointers of a (major, minor) matrix."""
    majors, minors = np.nonzero(dense)
    layout = _layout((dense.shape[0], dense.shape[1]), len(majors), dense.dtype)
    counts = np.bincount(majors, minlength=len(dense))
    pointers = np.concatenate([[0], np.cumsum(counts)])
    return dense[majors, minors], minors.astype(layout["indices"][0]), pointers.astype(layout["pointers"][0])


def _expand(
    shape: tuple[int, int], values: NDArray[Any], indices: NDArray[Any], pointers: NDArray[Any]
) -> NDArray[Any]:
    dense = np.zeros(shape, values.dtype)
    dense[np.repeat(np.arange(shape[0]), _lengths(pointers)), indices] = values
    return dense


def _lengths(pointers: NDArray[Any]) -> NDArray[np.int64]:
    wide = pointers.astype(np.int64)
    return wide[1:] - wide[:-1]


def _layout(shape: tuple[int, int], entries: int, dtype: np.dtype) -> Layout:
    major, minor = shape
    return {
        "values": (dtype, (entries,)),
        "indices": (smallest_unsigned(minor - 1), (entries,)),
        "pointers": (smallest_unsigned(entries), (major + 1,)),
    }


def _problem(shape: tuple[int, int], indices: NDArray[Any], pointers: NDArray[Any]) -> str | None:
    steps = _lengths(pointers)
    if pointers[0] != 0 or pointers[-1] != len(indices) or (steps < 0).any():
        return f"pointers must rise from 0 to {len(indices)}"
    if len(indices) and indices.max() >= shape[1]:
        return f"an index reaches {indices.max()}, outside 0 to {shape[1] - 1}"
    flat = np.repeat(np.arange(shape[0]), steps) * shape[1] + indices.astype(np.int64)
    return None if (np.diff(flat) > 0).all() else "indices must ascend within a row or column"
