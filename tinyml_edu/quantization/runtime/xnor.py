"""Matrices of +1 and -1 as bits, and their product by exclusive-or and population count in C [1]_.

A value that is 0 or above counts as +1, bit 1.  64 values of the summed axis share one word.

References
----------
.. [1] Rastegari et al., XNOR-Net, ECCV 2016.  https://arxiv.org/abs/1603.05279
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError

KERNELS_DIR = Path(__file__).parent / "kernels"
WORD_BITS = 64
MAX_COLS = (1 << 30) - 1
"""Longest summed axis: sums and counts stay inside int32."""


@dataclass(frozen=True, eq=False)
class PackedBits:
    """The signs of a matrix, 64 in a word along the axis that a product sums over.

    Attributes
    ----------
    words : ndarray uint64
        (rows, ceil(cols / 64)) for ``axis=1``, (ceil(rows / 64), cols) for ``axis=0``; entry ``k`` of the
        packed axis is bit ``k % 64`` of word ``k // 64``, and the bits behind the last entry are 0.
    shape : tuple of int
        (rows, cols) of the matrix itself.
    axis : int
        The packed axis.
    """

    words: NDArray[np.uint64]
    shape: tuple[int, int]
    axis: int

    @property
    def nbytes(self) -> int:
        """Bytes of the words: 1/32 of the matrix in float32 where 64 divides the packed axis."""
        return self.words.nbytes


def pack_bits(matrix: ArrayLike, axis: int = 1) -> PackedBits:
    """Return the signs of a matrix as bits: 1 where a value is 0 or above.

    Parameters
    ----------
    matrix : array (rows, cols)
        Numbers of any kind, without NaN.
    axis : {1, 0}
        The axis that the product will sum over: 1 for the left operand, 0 for the right one.

    Raises
    ------
    UsageError
        If the matrix is empty, has another number of axes, or holds NaN or no real numbers.

    Examples
    --------
    >>> packed = pack_bits([[1.0, -2.0, 0.0]])
    >>> packed.words.tolist(), packed.nbytes
    ([[5]], 8)
    """
    values: Any = matrix
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)  # or a torch tensor
    if array.dtype.kind not in "biuf":
        raise UsageError(f"pack_bits takes real numbers, got {array.dtype}; convert them first")
    if array.ndim != 2 or array.size == 0 or axis not in (0, 1):
        raise UsageError(f"pack_bits takes a matrix and axis 0 or 1, got shape {array.shape} and axis {axis}")
    if array.shape[axis] > MAX_COLS:
        raise UsageError(f"{array.shape[axis]} values to sum are more than {MAX_COLS}; split the matrix")
    if np.isnan(array).any():
        raise UsageError("the matrix holds NaN, which has no sign; check where it comes from")
    bits = np.moveaxis(array >= 0, axis, 1)
    missing = -bits.shape[1] % WORD_BITS
    bytes_ = np.packbits(np.pad(bits, ((0, 0), (0, missing))), axis=1, bitorder="little")
    words = np.ascontiguousarray(bytes_).view("<u8").astype(np.uint64, copy=False)
    return PackedBits(np.ascontiguousarray(np.moveaxis(words, 1, axis)), array.shape, axis)


def unpack_bits(packed: PackedBits) -> NDArray[np.int8]:
    """Return the matrix of +1 and -1 (int8) that the bits stand for."""
    words = np.ascontiguousarray(np.moveaxis(packed.words, packed.axis, 1)).astype("<u8", copy=False)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=packed.shape[packed.axis])
    return np.ascontiguousarray(np.moveaxis(2 * bits.astype(np.int8) - 1, 1, packed.axis))


def sign_gemm(w: ArrayLike, x: ArrayLike) -> NDArray[np.int32]:
    """Return ``sign(w) @ sign(x)`` with integers, the plain way, where the sign of 0 is +1."""
    left, right = (np.where(np.asarray(a) >= 0, 1, -1).astype(np.int32) for a in (w, x))
    return left @ right


class XnorKernel:
    """The product of one packed matrix with inputs of one width, ready to run many times.

    Parameters
    ----------
    weight : PackedBits
        (rows, cols), packed along axis 1.
    n : int
        Columns of the input; 1 is a matrix-vector product.

    Raises
    ------
    UsageError
        If ``n`` is below 1 or the weight is packed along the other axis.
    ToolchainError
        If the compiler is missing.
    """

    def __init__(self, weight: PackedBits, n: int) -> None:
        if n < 1 or weight.axis != 1:
            raise UsageError(
                f"a product needs 1 or more input columns, got {n}, and a weight packed along axis 1, "
                f"got axis {weight.axis}; use pack_bits(weight, axis=1)"
            )
        self.weight = weight
        self.n = n
        self._sizes = (ctypes.c_int32 * 3)(*weight.shape, n)
        self._words = -(-weight.shape[1] // WORD_BITS)

    def pack(self, x: NDArray[np.float32], out: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
        """Return the signs of a float32 input (cols, n) as words (ceil(cols / 64), n), NaN as -1."""
        out = np.empty((self._words, self.n), np.uint64) if out is None else out
        self._check("x", x, np.float32, (self.weight.shape[1], self.n))
        self._check_out(out, np.uint64, (self._words, self.n), x)
        status = _library().te_pack_columns_f32(self._sizes, _address(x), _address(out))
        assert status == 0, f"te_pack_columns_f32 refused checked arguments with status {status}"
        return out

    def __call__(self, x: NDArray[np.uint64], out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Return the exact sums (rows, n) of the weight times packed inputs.

        Parameters
        ----------
        x : ndarray uint64 (ceil(cols / 64), n)
            C-contiguous, as from :meth:`pack` or in `PackedBits.words`; bits behind the last entry are 0.
        out : ndarray int32 (rows, n), optional
            Where to write: C-contiguous; must not overlap ``x``.
        """
        out = np.empty((self.weight.shape[0], self.n), np.int32) if out is None else out
        self._check("x", x, np.uint64, (self._words, self.n))
        self._check_out(out, np.int32, (self.weight.shape[0], self.n), x)
        words = self.weight.words
        status = _library().te_xnor_gemm(self._sizes, _address(words), _address(x), _address(out))
        assert status == 0, f"te_xnor_gemm refused checked arguments with status {status}"
        return out

    @staticmethod
    def _check(name: str, array: NDArray[Any], dtype: Any, shape: tuple[int, int]) -> None:
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            raise UsageError(
                f"{name} must be a C-contiguous {np.dtype(dtype)} array {shape}, "
                f"got {array.dtype} {array.shape}"
            )

    def _check_out(self, out: NDArray[Any], dtype: Any, shape: tuple[int, int], x: NDArray[Any]) -> None:
        self._check("out", out, dtype, shape)
        if not out.flags.writeable or np.may_share_memory(x, out):
            raise UsageError("out must be writeable and must not overlap x; pass another array")


def xnor_gemm(w: PackedBits, x: PackedBits) -> NDArray[np.int32]:
    """Return the exact product of two matrices of +1 and -1, computed in C from their bits.

    Parameters
    ----------
    w : PackedBits (rows, cols)
        Packed along axis 1.
    x : PackedBits (cols, n)
        Packed along axis 0.

    Returns
    -------
    ndarray int32 (rows, n)
        Equal to `sign_gemm` of the matrices.

    Raises
    ------
    UsageError
        If the shapes do not fit, or an operand is not packed or packed along the wrong axis.
    ToolchainError
        If the compiler is missing.

    Notes
    -----
    ``y = cols - 2 * popcount(w xor x)``: 64 multiply-accumulates in one exclusive-or, count and addition.
    """
    if not (isinstance(w, PackedBits) and isinstance(x, PackedBits)):
        raise UsageError("xnor_gemm multiplies packed matrices; use pack_bits on both first")
    if x.axis != 0 or w.shape[1] != x.shape[0]:
        raise UsageError(
            f"{w.shape} times {x.shape} packed along axis {x.axis} is no product; "
            "the right operand needs as many rows as the left has columns, and pack_bits(x, axis=0)"
        )
    return XnorKernel(w, x.shape[1])(x.words)


@functools.cache
def _library() -> ctypes.CDLL:
    from ...mcu import toolchain

    path = toolchain.compile_shared(sorted(KERNELS_DIR.glob("*.c")), name="xnor", include=[KERNELS_DIR])
    library = ctypes.CDLL(str(path))
    for function in (library.te_xnor_gemm, library.te_pack_columns_f32):
        function.restype = ctypes.c_int
    return library


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
