"""What every storage format of a sparse matrix has in common, and the dense matrix as the baseline.

A format is a frozen dataclass whose arrays are exactly what is stored: ``nbytes`` is the sum of their sizes,
and `storage` writes those bytes and nothing else behind a fixed header.  Each format says in ``layout`` which
arrays a matrix of a given size needs; the constructor, the file reader and the C kernels rely on that alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import DataError, UsageError

VALUE_DTYPES = (np.dtype("float32"), np.dtype("int8"))
"""Types that a weight can be stored in: 4 bytes or 1."""

Layout = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Name of each stored array, in file order -> (dtype, shape)."""


@dataclass(frozen=True)
class Size:
    """What the sizes of a format's arrays follow from.

    Attributes
    ----------
    shape : tuple of int
        (rows, cols).
    entries : int
        Stored values, padding included.
    dtype : numpy.dtype
        Of a value.
    pes : int
        Processing elements that the rows are interleaved over; only EIE's format has more than one.
    """

    shape: tuple[int, int]
    entries: int
    dtype: np.dtype
    pes: int = 1


@dataclass(frozen=True, eq=False)
class SparseMatrix(ABC):
    """A matrix in one storage format.

    Attributes
    ----------
    shape : tuple of int
        (rows, cols), both at least 1: a linear layer's (O, I), a convolution's (O, I * KH * KW).
    values : ndarray
        Stored weights, float32 or int8, padding zeros of the format included.

    Notes
    -----
    ``-0.0`` counts as a zero, so that it decodes as ``0.0``; NaN and infinities are kept.
    """

    name: ClassVar[str]
    """Key in `formats.FORMATS`."""

    shape: tuple[int, int]
    values: NDArray[Any]

    def __post_init__(self) -> None:
        """Check every array against the layout, then make it read-only."""
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise UsageError(f"a matrix needs at least one row and one column, got shape {self.shape}")
        if self.values.dtype not in VALUE_DTYPES:
            raise UsageError(f"weights must be float32 or int8, got {self.values.dtype}; encode them first")
        layout = self.layout(self.size)
        for field, (dtype, shape) in layout.items():
            array = getattr(self, field)
            if array.dtype != dtype or array.shape != shape:
                raise DataError(
                    f"{self.name}: {field} must be {dtype} {shape}, got {array.dtype} {array.shape}; "
                    "encode the matrix again"
                )
            frozen = np.ascontiguousarray(array)
            frozen = frozen if not frozen.flags.writeable else frozen.copy()
            frozen.setflags(write=False)
            object.__setattr__(self, field, frozen)
        if problem := self.problem():
            raise DataError(f"{self.name}: {problem}; the data are damaged, encode the matrix again")

    @classmethod
    @abstractmethod
    def encode(cls, matrix: ArrayLike) -> Self:
        """Return a dense (rows, cols) matrix, float32 or int8, in this format."""

    @abstractmethod
    def decode(self) -> NDArray[Any]:
        """Return the dense (rows, cols) matrix, of the dtype of ``values``."""

    @classmethod
    @abstractmethod
    def layout(cls, size: Size) -> Layout:
        """Return what is stored for a matrix of this size."""

    def options(self) -> dict[str, int]:
        """Return the parameters of the format itself, beside shape and dtype."""
        return {}

    def problem(self) -> str | None:
        """Return what is wrong with the contents of the arrays, or None.  Kernels trust the answer."""
        return None

    @property
    def size(self) -> Size:
        """Everything that the sizes of the stored arrays follow from."""
        return Size(self.shape, self.values.size, self.values.dtype, **self.options())

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The stored arrays by name, in file order."""
        return {name: getattr(self, name) for name in self.layout(self.size)}

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored: values with padding, indices, pointers and masks."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def nnz(self) -> int:
        """Number of stored values that are not zero."""
        return int(np.count_nonzero(self.values))

    @property
    def padding(self) -> int:
        """Number of stored values that are zero."""
        return self.values.size - self.nnz

    @property
    def density(self) -> float:
        """``nnz / (rows * cols)``."""
        return self.nnz / (self.shape[0] * self.shape[1])


@dataclass(frozen=True, eq=False)
class Dense(SparseMatrix):
    """Every weight, row by row: ``rows * cols * V`` bytes, ``V`` the bytes of a value (4 or 1)."""

    name: ClassVar[str] = "dense"

    @classmethod
    def encode(cls, matrix: ArrayLike) -> Self:
        """Return a dense (rows, cols) matrix in this format."""
        dense = as_matrix(matrix)
        return cls(dense.shape, dense)

    def decode(self) -> NDArray[Any]:
        """Return a copy of the matrix."""
        return self.values.copy()

    @classmethod
    def layout(cls, size: Size) -> Layout:
        """Return what is stored."""
        return {"values": (size.dtype, size.shape)}


def as_matrix(matrix: ArrayLike) -> NDArray[Any]:
    """Return ``matrix`` as a (rows, cols) array with ``-0.0`` replaced by ``0.0``.

    Raises
    ------
    UsageError
        If it is not two-dimensional, is empty, or is neither float32 nor int8.
    """
    array = np.asarray(matrix)
    if array.ndim != 2 or array.size == 0:
        raise UsageError(
            f"a sparse format stores a (rows, cols) matrix, got shape {array.shape}; "
            "for a convolution pass weight.reshape(len(weight), -1)"
        )
    if array.dtype not in VALUE_DTYPES:
        raise UsageError(
            f"weights must be float32 or int8, got {array.dtype}; convert them with .astype(...)"
        )
    return np.where(array == 0, array.dtype.type(0), array)


def smallest_unsigned(largest: int) -> np.dtype:
    """Return the smallest unsigned dtype of 1, 2 or 4 bytes that holds ``largest``.

    Examples
    --------
    >>> [smallest_unsigned(n).itemsize for n in (0, 255, 256, 65535, 65536)]
    [1, 1, 2, 2, 4]
    """
    for dtype in (np.uint8, np.uint16, np.uint32):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise UsageError(f"an index of {largest} needs more than 32 bits; split the matrix")
