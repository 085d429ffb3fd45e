"""Bit mask: one bit a weight says whether it is stored.

    nnz * V + rows * ceil(cols / 8)   bytes, ``V`` bytes a value

Every row starts on a byte of its own, so up to 7 bits at its end are padding.  One bit a weight is less than
CSR's indices as soon as the density exceeds ``1 / (8 * I)`` (pointers aside): 1/16 with 2-byte indices.

References
----------
.. [1] Aimar et al., NullHop: sparsity map and list of non-zero values.  https://arxiv.org/abs/1706.01406
.. [2] Gondimalla et al., SparTen, MICRO 2019 (the same for weights).
       https://doi.org/10.1145/3352460.3358291
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .matrix import Layout, Size, SparseMatrix, as_matrix


@dataclass(frozen=True, eq=False)
class Bitmask(SparseMatrix):
    """Mask bits and the values they announce [1]_ [2]_.

    Attributes
    ----------
    values : ndarray (nnz,)
        Weights that are not zero, row by row, columns ascending.
    mask : ndarray (rows, ceil(cols / 8)) of uint8
        Bit ``j % 8`` (bit 0 the least significant) of byte ``j // 8`` is 1 where column ``j`` is stored.

    Examples
    --------
    >>> w = Bitmask.encode(np.array([[0, 5, 0, 3, 0, 0, 0, 0, 1]], dtype=np.int8))
    >>> w.values.tolist(), w.mask.tolist(), w.nbytes
    ([5, 3, 1], [[10, 1]], 5)
    """

    name: ClassVar[str] = "bitmask"

    mask: NDArray[Any]

    @classmethod
    def encode(cls, matrix: ArrayLike) -> Self:
        """Return a dense (rows, cols) matrix in this format."""
        dense = as_matrix(matrix)
        stored = dense != 0
        return cls(dense.shape, dense[stored], np.packbits(stored, axis=1, bitorder="little"))

    def decode(self) -> NDArray[Any]:
        """Return the dense (rows, cols) matrix."""
        stored = np.unpackbits(self.mask, axis=1, count=self.shape[1], bitorder="little").astype(bool)
        dense = np.zeros(self.shape, self.values.dtype)
        dense[stored] = self.values
        return dense

    @classmethod
    def layout(cls, size: Size) -> Layout:
        """Return what is stored."""
        rows, cols = size.shape
        return {
            "values": (size.dtype, (size.entries,)),
            "mask": (np.dtype(np.uint8), (rows, -(-cols // 8))),
        }

    def problem(self) -> str | None:
        """Return what is wrong with the mask, or None."""
        bits = np.unpackbits(self.mask, axis=1, bitorder="little")
        if bits[:, self.shape[1] :].any():
            return "padding bits behind the last column must be 0"
        if int(bits.sum()) != self.values.size:
            return f"the mask announces {int(bits.sum())} values, {self.values.size} are stored"
        return None
