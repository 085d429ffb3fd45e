"""2:4 packed: of every four neighbours in a row two are stored, with two bits each that say which.

    rows * groups * 2 * V + rows * ceil(groups / 2)   bytes,   groups = ceil(cols / 4)

with ``V`` bytes a value.  The size does not depend on how many weights are zero: at most two of each group
may be non-zero, and a group with fewer stores zeros.  Every row's places start on a byte of their own.

References
----------
.. [1] Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, section 3.
       https://arxiv.org/abs/2104.08378
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError
from .matrix import Layout, Size, SparseMatrix, as_matrix


@dataclass(frozen=True, eq=False)
class TwoFour(SparseMatrix):
    """Two of every four [1]_.

    Attributes
    ----------
    values : ndarray (rows, 2 * groups)
        Two of each group, in the order of their columns.
    places : ndarray (rows, ceil(groups / 2)) of uint8
        Four bits a group, the even group in the low four: the first value's place (0 to 3) in the lower two
        bits, the second's in the upper two; the first is always below the second.

    Examples
    --------
    >>> w = TwoFour.encode(np.array([[0, 5, 0, 3, 0, 0, 7, 0]], dtype=np.int8))
    >>> w.values.tolist(), [f"{byte:08b}" for byte in w.places[0]], w.nbytes
    ([[5, 3, 0, 7]], ['10001101'], 5)
    """

    name: ClassVar[str] = "two_four"

    places: NDArray[Any]

    @classmethod
    def encode(cls, matrix: ArrayLike) -> Self:
        """Return a dense (rows, cols) matrix in this format.

        Raises
        ------
        UsageError
            If more than two of four neighbours are not zero, or the matrix has another shape or dtype.
        """
        dense = as_matrix(matrix)
        rows, groups = dense.shape[0], -(-dense.shape[1] // 4)
        padded = np.zeros((rows, groups * 4), dense.dtype)
        padded[:, : dense.shape[1]] = dense
        four = padded.reshape(rows, groups, 4)
        counts = np.count_nonzero(four, axis=2)
        if counts.max() > 2:
            row, group = np.unravel_index(int(counts.argmax()), counts.shape)
            raise UsageError(
                f"the matrix is not 2:4 sparse: row {row} has {counts.max()} non-zero weights in columns "
                f"{4 * group} to {4 * group + 3}; prune it with an N:M mask first"
            )
        # Stored places first (False sorts first), ties by place: unused places fill up from the left.
        pair = np.sort(np.argsort(four == 0, axis=2, kind="stable")[:, :, :2], axis=2)  # (rows, groups, 2)
        values = np.take_along_axis(four, pair, axis=2).reshape(rows, groups * 2)
        nibbles = np.zeros((rows, -(-groups // 2) * 2), np.uint8)
        nibbles[:, :groups] = pair[:, :, 0] | pair[:, :, 1] << 2
        return cls(dense.shape, values, nibbles[:, 0::2] | nibbles[:, 1::2] << 4)

    def decode(self) -> NDArray[Any]:
        """Return the dense (rows, cols) matrix."""
        rows, cols = self.shape
        pair = self.pairs()
        four = np.zeros((rows, pair.shape[1], 4), self.values.dtype)
        np.put_along_axis(four, pair, self.values.reshape(pair.shape), axis=2)
        return np.ascontiguousarray(four.reshape(rows, -1)[:, :cols])

    @classmethod
    def layout(cls, size: Size) -> Layout:
        """Return what is stored."""
        rows, groups = size.shape[0], -(-size.shape[1] // 4)
        return {
            "values": (size.dtype, (rows, 2 * groups)),
            "places": (np.dtype(np.uint8), (rows, -(-groups // 2))),
        }

    def pairs(self) -> NDArray[np.int64]:
        """Return the places of the stored values in their group: (rows, groups, 2), 0 to 3."""
        groups = self.values.shape[1] // 2
        nibbles = np.stack([self.places & 15, self.places >> 4], axis=2).reshape(self.shape[0], -1)[
            :, :groups
        ]
        return np.stack([nibbles & 3, nibbles >> 2], axis=2).astype(np.int64)

    def problem(self) -> str | None:
        """Return what is wrong with the places, or None."""
        pair = self.pairs()
        if (pair[:, :, 0] >= pair[:, :, 1]).any():
            return "the first place of a group must be below the second"
        beyond = np.arange(pair.shape[1])[:, None] * 4 + pair >= self.shape[1]  # (rows, groups, 2)
        if self.values.reshape(pair.shape)[beyond].any():
            return "a value stands behind the last column"
        if pair.shape[1] % 2 and (self.places[:, -1] >> 4).any():
            return "the unused four bits at the end of a row must be 0"
        return None
