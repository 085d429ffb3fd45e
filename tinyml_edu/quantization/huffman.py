"""Huffman coding with canonical codes: a table of code lengths is all that a decoder needs.

Codes are ordered by length, then by symbol, and count upwards; the first bit of a code is its highest and
the first code sits in the highest bits of the first byte [2]_.

References
----------
.. [1] Huffman, A Method for the Construction of Minimum-Redundancy Codes, Proc. IRE 1952.
.. [2] Schwartz and Kallick, Generating a Canonical Prefix Encoding, CACM 1964.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, UsageError

MAX_LENGTH = 57
"""Longest code in bits: eight bytes hold as many after up to seven bits of the code before.

An optimal code is longer only if more than 10**12 symbols are written, with counts that grow as Fibonacci's.
"""

BLOCK_BITS = 1 << 20


class Encoded(NamedTuple):
    """A coded sequence.

    Attributes
    ----------
    data : bytes
        ``ceil(bits / 8)`` of them; the unused bits at the end are 0.
    lengths : ndarray (alphabet,) of uint8
        Bits of each symbol's code, 0 for a symbol that has none.  Where a single symbol has a code it is
        1 here, and is written in 0 bits: the table alone says what the sequence is.
    bits, size : int
        Length of the code in bits, of the sequence in symbols.
    """

    data: bytes
    lengths: NDArray[np.uint8]
    bits: int
    size: int


def entropy(counts: ArrayLike) -> float:
    """Return the entropy in bits per symbol, ``-sum p log2 p``: no symbol code needs fewer.

    Examples
    --------
    >>> entropy([1, 1, 2])
    1.5
    """
    n = np.asarray(counts, np.float64)
    p = n[n > 0] / n.sum() if n.any() else n[:0]
    return float(-(p * np.log2(p)).sum() + 0.0)


def code_lengths(counts: ArrayLike) -> NDArray[np.uint8]:
    """Return the code lengths (alphabet,) in bits that make ``sum(counts * lengths)`` smallest [1]_.

    Parameters
    ----------
    counts : array_like (alphabet,) of int
        How often each symbol occurs.  A symbol that never does has no code and length 0; one that occurs
        alone has length 1, see `Encoded`.

    References
    ----------
    .. [1] Huffman 1952: join the two rarest, again and again.

    Examples
    --------
    >>> code_lengths([5, 0, 1, 2]).tolist()
    [1, 0, 2, 2]
    """
    n = np.asarray(counts, np.int64)
    if n.ndim != 1 or (n < 0).any():
        raise UsageError("Huffman coding needs a list of counts, none below 0")
    lengths = np.zeros(n.size, np.uint8)
    # (count, when it was made, symbols below): ties go to the older, which keeps the longest code short.
    heap = [(int(n[s]), i, [int(s)]) for i, s in enumerate(np.flatnonzero(n))]
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    heapq.heapify(heap)
    made = len(heap)
    while len(heap) > 1:
        (a, _, below), (b, _, above) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[below + above] += 1
        heapq.heappush(heap, (a + b, made, below + above))
        made += 1
    return lengths


def fixed_lengths(alphabet: int) -> NDArray[np.uint8]:
    """Return (alphabet,) times ``ceil(log2(alphabet))``, at least 1: the code that is no code."""
    return np.full(alphabet, max(1, (alphabet - 1).bit_length()), np.uint8)


def canonical_codes(lengths: ArrayLike) -> NDArray[np.uint64]:
    """Return the code (alphabet,) of each symbol, in its lowest ``lengths`` bits; 0 where there is none.

    Raises
    ------
    DataError
        If no prefix code has these lengths (Kraft's sum is above 1), or one is above `MAX_LENGTH`.

    Examples
    --------
    >>> [f"{c:0{n}b}" for c, n in zip(canonical_codes([2, 1, 3, 3]).tolist(), [2, 1, 3, 3])]
    ['10', '0', '110', '111']
    """
    n = np.asarray(lengths, np.int64)
    used = _in_order(n)
    if used.size and n.max() > MAX_LENGTH:
        raise DataError(f"a code of {n.max()} bits is longer than {MAX_LENGTH}")
    codes = np.zeros(n.size, np.uint64)
    code, before = 0, 0
    for symbol in used.tolist():
        code <<= int(n[symbol]) - before
        before = int(n[symbol])
        if code >> before:
            raise DataError("no prefix code has these lengths: Kraft's sum is above 1")
        codes[symbol] = code
        code += 1
    return codes


def encode(symbols: ArrayLike, alphabet: int | None = None, *, lengths: ArrayLike | None = None) -> Encoded:
    """Code a sequence of symbols.

    Parameters
    ----------
    symbols : array_like (n,) of int
        0 to ``alphabet - 1``; n may be 0.
    alphabet : int, optional
        Default ``max(symbols) + 1``.
    lengths : array_like (alphabet,), optional
        Code lengths; the default, `code_lengths`, is optimal for these symbols.

    Raises
    ------
    UsageError
        If a symbol is outside the alphabet, or has no code in ``lengths``.

    Examples
    --------
    >>> coded = encode([2, 0, 0, 2, 0, 1])
    >>> coded.bits, coded.lengths.tolist(), coded.data.hex()
    (9, [1, 2, 2], 'cd00')
    >>> decode(coded).tolist()
    [2, 0, 0, 2, 0, 1]
    """
    sequence = np.asarray(symbols, np.int64).reshape(-1)
    top = int(sequence.max(initial=-1)) + 1
    alphabet = top if alphabet is None else alphabet
    if top > alphabet or sequence.min(initial=0) < 0:
        raise UsageError(f"symbols must lie between 0 and {alphabet - 1}")
    counts = np.bincount(sequence, minlength=alphabet)
    table = code_lengths(counts) if lengths is None else np.asarray(lengths, np.uint8)
    if table.size != alphabet or (table[counts > 0] == 0).any():
        raise UsageError("every symbol that occurs needs a code length above 0")
    codes, bits = canonical_codes(table), table.astype(np.int64)
    if _is_single(table):
        return Encoded(b"", table, 0, sequence.size)
    each = bits[sequence]  # (n,) bits of each symbol's code
    ends = np.cumsum(each)
    left = np.repeat(ends, each) - np.arange(each.sum()) - 1  # (bits,): bits of the same code still to come
    stream = (np.repeat(codes[sequence], each) >> left.astype(np.uint64)) & np.uint64(1)
    return Encoded(np.packbits(stream.astype(np.uint8)).tobytes(), table, int(each.sum()), sequence.size)


def decode(coded: Encoded) -> NDArray[np.int64]:
    """Return the symbols (n,).

    At every bit position the code that would start there is looked up, all positions at once; then the true
    positions are those that the first one leads to.

    Raises
    ------
    DataError
        If table, bits and size contradict each other.
    """
    codes = canonical_codes(coded.lengths)
    if len(coded.data) != -(-coded.bits // 8) or min(coded.bits, coded.size) < 0:
        raise DataError(f"{len(coded.data)} bytes do not hold {coded.size} symbols in {coded.bits} bits")
    used = _in_order(np.asarray(coded.lengths, np.int64))
    if used.size < 2:
        if coded.bits or (coded.size and used.size == 0):
            raise DataError("a table of fewer than two codes goes with no bits")
        return np.full(coded.size, used[0] if used.size else 0, np.int64)
    lengths = coded.lengths[used].astype(np.uint64)
    firsts = codes[used] << (np.uint64(MAX_LENGTH) - lengths)  # (codes,), ascending: codes moved to the left
    padded = np.frombuffer(coded.data + bytes(8), np.uint8)
    found: list[NDArray[np.int64]] = []
    position, left = 0, coded.size
    for start in range(0, coded.bits, BLOCK_BITS):
        window = _windows(padded, start, min(start + BLOCK_BITS, coded.bits))
        which = np.searchsorted(firsts, window, side="right") - 1
        # A code that is no Huffman code leaves some patterns without meaning: they get no way on.
        meant = (window ^ firsts[which]) >> (np.uint64(MAX_LENGTH) - lengths[which]) == 0
        steps = np.where(meant, lengths[which], 0).astype(np.int64).tolist()
        here, position = _walk(steps, position - start, left)
        found.append(used[which[here]])
        position, left = position + start, left - len(here)
    if position != coded.bits or left:
        raise DataError("the coded symbols do not end where the bits do")
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _walk(steps: list[int], position: int, most: int) -> tuple[list[int], int]:
    """Return the positions of up to ``most`` codes, and where the next one starts."""
    here: list[int] = []
    while position < len(steps) and len(here) < most:
        if steps[position] == 0:
            raise DataError("a pattern of bits stands for no symbol")
        here.append(position)
        position += steps[position]
    return here, position


def _windows(padded: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint64]:
    """Return (stop - start,): the `MAX_LENGTH` bits from each bit position on, zeros after the end."""
    first, last = start // 8, -(-stop // 8)
    words = np.zeros(last - first, np.uint64)
    for i in range(8):
        words = words << np.uint64(8) | padded[first + i : last + i].astype(np.uint64)
    shifted = words[:, None] << np.arange(8, dtype=np.uint64)  # (bytes, 8)
    return (shifted >> np.uint64(64 - MAX_LENGTH)).reshape(-1)[start - first * 8 : stop - first * 8]


def _in_order(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the symbols that have a code, shortest first, then ascending."""
    order = np.argsort(lengths, kind="stable")
    return order[lengths[order] > 0]


def _is_single(lengths: NDArray[np.uint8]) -> bool:
    return int(np.count_nonzero(lengths)) < 2
