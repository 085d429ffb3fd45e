"""Sparse matrix times dense matrix in C, in each storage format; the C sources are in ``kernels/``.

The kernels read the stored arrays as they are, without unpacking them first.  One library is compiled for
each combination of value and index type that is used, and kept in the compiler's cache.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError
from .matrix import SparseMatrix

KERNELS_DIR = Path(__file__).parent / "kernels"
MAX_COLS = (1 << 17) - 1
"""Longest row: ``cols * 2**14`` must stay below ``2**31`` for int8."""


class _Sizes(ctypes.Structure):
    """``te_sizes``."""

    _fields_ = [("rows", ctypes.c_int32), ("cols", ctypes.c_int32), ("n", ctypes.c_int32)]


class SpmmKernel:
    """The product of one matrix with inputs of one width, ready to run many times.

    Parameters
    ----------
    weight : SparseMatrix (rows, cols)
    n : int
        Columns of the input; 1 is a matrix-vector product.

    Raises
    ------
    UsageError
        If ``n`` is below 1 or ``cols`` above `MAX_COLS`.
    ToolchainError
        If the compiler is missing.
    """

    def __init__(self, weight: SparseMatrix, n: int) -> None:
        if n < 1 or weight.shape[1] > MAX_COLS:
            raise UsageError(
                f"a product needs 1 or more input columns and at most {MAX_COLS} weight columns, got {n} and "
                f"{weight.shape[1]}; split the matrix"
            )
        self.weight = weight
        self.n = n
        self.dtype = weight.values.dtype
        self.sum_dtype = np.dtype(np.int32 if self.dtype == np.int8 else np.float32)
        index = weight.arrays["indices"].dtype if "indices" in weight.arrays else np.dtype(np.uint16)
        self._function = getattr(_library(self.dtype.name, index.name), f"te_spmm_{weight.name}")
        self._function.restype = ctypes.c_int
        self._sizes = _Sizes(*weight.shape, n)
        self._stored = _arguments(weight)

    def __call__(self, x: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return ``weight @ x``.

        Parameters
        ----------
        x : ndarray (cols, n)
            C-contiguous, of the dtype of the weight.
        out : ndarray (rows, n), optional
            Where to write: C-contiguous, float32, or int32 for int8 weights; must not overlap ``x``.
        """
        rows, cols = self.weight.shape
        out = np.empty((rows, self.n), self.sum_dtype) if out is None else out
        for name, array, dtype, shape in (
            ("x", x, self.dtype, (cols, self.n)),
            ("out", out, self.sum_dtype, (rows, self.n)),
        ):
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise UsageError(
                    f"{name} must be a C-contiguous {dtype} array {shape}, got {array.dtype} {array.shape}"
                )
        if not out.flags.writeable or np.may_share_memory(x, out):
            raise UsageError("out must be writeable and must not overlap x; pass another array")
        status = self._function(ctypes.byref(self._sizes), *self._stored, _address(x), _address(out))
        assert status == 0, f"te_spmm_{self.weight.name} refused checked arguments with status {status}"
        return out


def matmul(weight: SparseMatrix, x: ArrayLike) -> NDArray[Any]:
    """Return ``weight @ x``, computed in C from the stored arrays.

    Parameters
    ----------
    weight : SparseMatrix (rows, cols)
    x : array (cols, n) or (cols,)
        Of the dtype of the weight: float32 or int8.

    Returns
    -------
    ndarray (rows, n) or (rows,)
        float32, or the exact sums in int32 for int8.

    Raises
    ------
    UsageError
        If shape or dtype of ``x`` do not match the weight.
    ToolchainError
        If the compiler is missing.

    Notes
    -----
    In float32 each sum of ``k`` stored values is within ``k u / (1 - k u) * (|weight| @ |x|)`` of the exact
    one, ``u = 2**-24``, in whatever order it is summed [1]_.  Weights that are not stored take no part, so
    that an infinity or NaN in ``x`` reaches only the rows that store its column.

    References
    ----------
    .. [1] Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, eq. (3.5).
           https://doi.org/10.1137/1.9780898718027
    """
    array = np.asarray(x)
    if array.ndim not in (1, 2) or array.shape[0] != weight.shape[1] or array.size == 0:
        raise UsageError(f"x must be ({weight.shape[1]}, n) or ({weight.shape[1]},), got {array.shape}")
    matrix = np.ascontiguousarray(array.reshape(weight.shape[1], -1))
    result = SpmmKernel(weight, matrix.shape[1])(matrix)
    return result if array.ndim == 2 else result[:, 0]


@functools.cache
def _library(value: str, index: str) -> ctypes.CDLL:
    """Compile the kernels for one value type and one index type."""
    from ...mcu import toolchain

    flags = [f"-DTE_INDEX={index}_t", *(["-DTE_S8"] if value == "int8" else [])]
    sources = sorted(KERNELS_DIR.glob("*.c"))
    return ctypes.CDLL(
        str(toolchain.compile_shared(sources, name=f"spmm_{value}", include=[KERNELS_DIR], flags=flags))
    )


def _arguments(weight: SparseMatrix) -> list[Any]:
    """Return the stored arrays as the kernels take them: pointers are followed by their width in bytes."""
    arguments: list[Any] = []
    for name, array in weight.arrays.items():
        arguments.append(_address(array))
        if name == "pointers":
            arguments.append(ctypes.c_int32(array.itemsize))
    return arguments + [ctypes.c_int32(number) for number in weight.options().values()]


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
