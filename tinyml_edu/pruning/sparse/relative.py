"""EIE's format: columns of values, each with the number of zeros before it in 4 bits.

    entries * V + ceil(entries / 2) + PEs * (cols + 1) * P   bytes

with ``V`` bytes a value and ``P`` bytes a pointer (the smallest of 1, 2 and 4 that holds ``entries``).  More
than 15 zeros in a row do not fit in 4 bits: a padding zero is stored, with 15 zeros before it, and counting
starts again, so ``entries = nnz + padding zeros``.

References
----------
.. [1] Han et al., EIE: Efficient Inference Engine on Compressed Deep Neural Network, ISCA 2016, section III-B
       and III-C.  https://arxiv.org/abs/1602.01528
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError
from .matrix import Layout, Size, SparseMatrix, as_matrix, smallest_unsigned

MAX_ZEROS = 15
"""Longest run of zeros that a 4-bit relative index can say."""


@dataclass(frozen=True, eq=False)
class RelativeIndex(SparseMatrix):
    """Compressed columns with 4-bit relative row indices, rows interleaved over PEs [1]_.

    Row ``i`` belongs to processing element ``i % pes``, whose own rows are numbered ``i // pes``.

    Attributes
    ----------
    values : ndarray (entries,)
        First all columns of PE 0, then those of PE 1, and so on; within a column rows ascend.
    zeros : ndarray (ceil(entries / 2),) of uint8
        Zeros between an entry and the one before it in the same column of the same PE (or the column's
        start); entry ``k`` is in byte ``k // 2``, the even one in the low four bits.
    pointers : ndarray (pes, cols + 1)
        Column ``j`` of PE ``p`` is ``values[pointers[p, j]:pointers[p, j + 1]]``.
    pes : int
        Number of processing elements.

    Examples
    --------
    The paper's own example: one column, 18 zeros before the last value.

    >>> column = np.array([0, 0, 1, 2, *[0] * 18, 3], dtype=np.int8)[:, None]
    >>> w = RelativeIndex.encode(column)
    >>> w.values.tolist(), w.zero_runs().tolist(), w.nbytes
    ([1, 2, 0, 3], [2, 0, 15, 2], 8)
    """

    name: ClassVar[str] = "relative"

    zeros: NDArray[Any]
    pointers: NDArray[Any]
    pes: int = 1

    @classmethod
    def encode(cls, matrix: ArrayLike, *, pes: int = 1) -> Self:
        """Return a dense (rows, cols) matrix in this format, its rows interleaved over ``pes`` PEs.

        Raises
        ------
        UsageError
            If ``pes`` is below 1, or the matrix is not two-dimensional float32 or int8.
        """
        if pes < 1:
            raise UsageError(f"EIE needs at least one processing element, got pes={pes}")
        dense = as_matrix(matrix)
        rows, cols = np.nonzero(dense)
        column, local = rows % pes * dense.shape[1] + cols, rows // pes  # column: of one PE, over all PEs
        order = np.lexsort((local, column))
        rows, cols, column, local = rows[order], cols[order], column[order], local[order]

        # A column's first value counts its zeros from row -1.
        same = np.concatenate([[False], column[1:] == column[:-1]])[: len(column)]
        before = np.where(same, np.concatenate([[-1], local[:-1]])[: len(local)], -1)
        gap = local - before - 1
        entries = gap // (MAX_ZEROS + 1) + 1  # stored for each value: its padding zeros, then itself
        last = np.cumsum(entries) - 1  # where each value itself goes

        total = int(entries.sum())
        values, runs = np.zeros(total, dense.dtype), np.full(total, MAX_ZEROS, np.uint8)
        values[last], runs[last] = dense[rows, cols], gap % (MAX_ZEROS + 1)
        counts = np.bincount(column, weights=entries, minlength=pes * dense.shape[1]).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(counts)])
        starts = np.arange(pes)[:, None] * dense.shape[1] + np.arange(dense.shape[1] + 1)  # (pes, cols + 1)
        return cls(dense.shape, values, _pack(runs), ends[starts].astype(smallest_unsigned(total)), pes)

    def decode(self) -> NDArray[Any]:
        """Return the dense (rows, cols) matrix."""
        rows, cols = self.positions()
        dense = np.zeros(self.shape, self.values.dtype)
        dense[rows, cols] = self.values
        return dense

    @classmethod
    def layout(cls, size: Size) -> Layout:
        """Return what is stored."""
        if size.pes < 1:
            raise UsageError(f"EIE needs at least one processing element, got pes={size.pes}")
        return {
            "values": (size.dtype, (size.entries,)),
            "zeros": (np.dtype(np.uint8), (-(-size.entries // 2),)),
            "pointers": (smallest_unsigned(size.entries), (size.pes, size.shape[1] + 1)),
        }

    def options(self) -> dict[str, int]:
        """Return the number of PEs."""
        return {"pes": self.pes}

    def zero_runs(self) -> NDArray[Any]:
        """Return the relative indices unpacked: (entries,) of uint8, 0 to 15."""
        nibbles = np.stack([self.zeros & 15, self.zeros >> 4], axis=1).reshape(-1)
        return nibbles[: self.values.size]

    def column_entries(self) -> NDArray[np.int64]:
        """Return how many entries each PE stores for each column: (pes, cols)."""
        wide = self.pointers.astype(np.int64)
        return wide[:, 1:] - wide[:, :-1]

    def positions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column of every entry: two (entries,) arrays."""
        counts = self.column_entries().reshape(-1)
        owner = np.repeat(np.arange(counts.size), counts)  # (entries,): PE * cols + column
        walked = np.concatenate([[0], np.cumsum(self.zero_runs().astype(np.int64) + 1)])
        start = walked[np.cumsum(counts) - counts]  # (pes * cols,): walked before the column
        local = walked[1:] - start[owner] - 1
        return local * self.pes + owner // self.shape[1], owner % self.shape[1]

    def problem(self) -> str | None:
        """Return what is wrong with pointers or indices, or None."""
        pointers = self.pointers.astype(np.int64)
        joined = (pointers[1:, 0] == pointers[:-1, -1]).all()
        if pointers[0, 0] != 0 or pointers[-1, -1] != self.values.size or not joined:
            return f"pointers must rise from 0 to {self.values.size}, each PE's where the last one's ended"
        if (self.column_entries() < 0).any():
            return "pointers must not fall"
        if self.values.size % 2 and self.zeros[-1] >> 4:
            return "the unused four bits at the end must be 0"
        rows = self.positions()[0]
        if rows.size and rows.max() >= self.shape[0]:
            return f"an index reaches row {rows.max()}, outside 0 to {self.shape[0] - 1}"
        return None


def _pack(runs: NDArray[Any]) -> NDArray[Any]:
    """Return 4-bit numbers two a byte, the first in the low bits."""
    even = np.zeros(-(-runs.size // 2) * 2, np.uint8)
    even[: runs.size] = runs
    return even[0::2] | even[1::2] << 4
