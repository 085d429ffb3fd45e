"""One tensor as bytes, losslessly, in the smallest of three ways.

======== ==================================================================================================
plain    the values; as float16 if that changes no bit, else as they are
sparse   positions of the values that are not zero, and the values
coded    positions, a codebook of the different values, and each value's label
======== ==================================================================================================

Positions are the zeros before each value, in EIE's relative index [1]_: symbols 0 to 15, and `PADDING` for 15
zeros and a padding zero.  Positions and labels are Huffman-coded, each with a table of its own; the table of
a stream of equal symbols is the whole stream, so the positions of a dense tensor take no bits.

References
----------
.. [1] Han et al., EIE, ISCA 2016, section III-B.  https://arxiv.org/abs/1602.01528
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..pruning.sparse.relative import MAX_ZEROS, RelativeIndex
from . import huffman

PADDING = MAX_ZEROS + 1
"""The position symbol that skips 16 zeros and stands for no value."""

MAX_CENTROIDS = 256

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Packed:
    """A tensor as bytes.

    Attributes
    ----------
    kind : {"plain", "sparse", "coded"}
    parts : dict of str to bytes
        ``"index table"``, ``"index"``, ``"codebooks"``, ``"label table"``, ``"labels"``, ``"values"``, those
        that the kind has, in the order of the file.
    stored : str
        Dtype of ``values`` or ``codebooks``.
    symbols, position_bits : int
        Length of the position stream in symbols and in bits.
    kept, centroids, label_bits : int
        Values that are stored (not zero, except for "plain"), different ones, length of the labels in bits.
    """

    kind: str
    parts: dict[str, bytes] = field(repr=False)
    stored: str
    kept: int
    symbols: int = 0
    position_bits: int = 0
    centroids: int = 0
    label_bits: int = 0

    @property
    def numbers(self) -> list[int]:
        """All that `unpack` needs to know beside the bytes."""
        sparse = [self.symbols, self.position_bits, self.kept]
        return {"plain": [], "sparse": sparse, "coded": [*sparse, self.centroids, self.label_bits]}[self.kind]

    @property
    def nbytes(self) -> int:
        return sum(len(part) for part in self.parts.values())


def pack(array: NDArray[Any], coding: str = "huffman") -> Packed:
    """Return a flat array (n,) of one of `DTYPES` as bytes; only float32 is coded.

    Zero means all bits zero: -0.0 is a value like others, and so is every NaN.
    """
    stored = _narrowest(array)
    ways = [Packed("plain", {"values": _bytes(stored)}, stored.dtype.name, array.size)]
    if array.dtype == np.float32 and array.size > 1:
        bits = array.view(np.uint32)
        positions, known = _pack_positions(bits != 0, coding)
        nonzero = bits[bits != 0]
        values = _narrowest(nonzero.view(np.float32))
        ways.append(Packed("sparse", positions | {"values": _bytes(values)}, values.dtype.name, **known))
        different, labels = np.unique(nonzero, return_inverse=True)
        if 0 < different.size <= MAX_CENTROIDS:
            centroids = _narrowest(different.view(np.float32))
            what = _coded(labels, different.size, coding)
            parts = {
                "codebooks": _bytes(centroids),
                "label table": what.lengths.tobytes(),
                "labels": what.data,
            }
            known |= {"centroids": different.size, "label_bits": what.bits}
            ways.append(Packed("coded", positions | parts, centroids.dtype.name, **known))
    return min(ways, key=lambda way: way.nbytes)


class Source:
    """Bytes that are taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes; raise `DataError` if there are fewer."""
        if not 0 <= size <= len(self.data):
            raise DataError(f"{size} bytes are asked for where {len(self.data)} are left")
        part, self.data = bytes(self.data[:size]), self.data[size:]
        return part

    def array(self, dtype: str, size: int) -> NDArray[Any]:
        """Return the next ``size`` values."""
        if dtype not in DTYPES:
            raise DataError(f"unknown dtype {dtype!r}")
        element = np.dtype(dtype)
        return np.frombuffer(self.take(size * element.itemsize), element.newbyteorder("<")).astype(element)

    def symbols(self, table: bytes, bits: int, size: int) -> NDArray[np.int64]:
        """Return the ``size`` symbols of the Huffman stream that comes next."""
        data = self.take(-(-bits // 8))
        return huffman.decode(huffman.Encoded(data, np.frombuffer(table, np.uint8), bits, size))


def unpack(source: Source, kind: str, size: int, dtypes: tuple[str, str], numbers: list[int]) -> NDArray[Any]:
    """Return the flat array (size,) that `pack` was given, taking its parts from ``source``.

    Parameters
    ----------
    source : Source
        Its next bytes are the tensor's parts.
    kind, numbers
        Those of `Packed`.
    size : int
        Values of the tensor.
    dtypes : tuple of two str
        Of the tensor, and `Packed.stored`.

    Raises
    ------
    DataError
        If the numbers contradict the bytes or each other.
    """
    dtype, stored = dtypes
    if dtype not in DTYPES or size < 0 or any(n < 0 for n in numbers):
        raise DataError("the header names an unknown dtype or a size below 0")
    if kind == "plain":
        return source.array(stored, size).astype(dtype)
    if kind not in ("sparse", "coded") or dtype != "float32":
        raise DataError(f"no tensor of {dtype} is stored as {kind!r}")
    symbols, position_bits, kept, *rest = numbers
    if not kept <= symbols <= size:
        raise DataError("more positions are named than the tensor has")
    where = _positions(source, symbols, position_bits, kept, size)
    flat = np.zeros(size, np.float32)
    if kind == "sparse":
        flat[where] = source.array(stored, kept)
    else:
        centroids, label_bits = rest
        codebook = source.array(stored, centroids).astype(np.float32)
        flat[where] = codebook[source.symbols(source.take(centroids), label_bits, kept)]
    return flat


def _pack_positions(nonzero: NDArray[np.bool_], coding: str) -> tuple[dict[str, bytes], dict[str, int]]:
    """Return the parts that say where values stand, and their numbers."""
    index = RelativeIndex.encode(nonzero.astype(np.int8)[:, None])  # one column: a run crosses all rows
    runs = np.where(index.values == 0, PADDING, index.zero_runs().astype(np.int64))
    where = _coded(runs, PADDING + 1, coding)
    parts = {"index table": where.lengths.tobytes(), "index": where.data}
    return parts, {"symbols": where.size, "position_bits": where.bits, "kept": int(nonzero.sum())}


def _positions(source: Source, symbols: int, bits: int, kept: int, size: int) -> NDArray[np.int64]:
    """Return the flat indices (kept,) of the stored values."""
    runs = source.symbols(source.take(PADDING + 1), bits, symbols)
    steps = np.where(runs == PADDING, MAX_ZEROS, runs) + 1
    where = np.cumsum(steps)[runs != PADDING] - 1
    if where.size != kept or (kept and where[-1] >= size):
        raise DataError("the positions do not fit the tensor")
    return where


def _coded(symbols: NDArray[np.int64], alphabet: int, coding: str) -> huffman.Encoded:
    lengths = None if coding == "huffman" else huffman.fixed_lengths(alphabet)
    return huffman.encode(symbols, alphabet, lengths=lengths)


def _narrowest(array: NDArray[Any]) -> NDArray[Any]:
    """Return a float32 array as float16 if the way there and back changes no bit."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        half = array.astype(np.float16)
        same = (half.astype(np.float32).view(np.uint32) == array.view(np.uint32)).all()
    return half if same else array


def _bytes(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
