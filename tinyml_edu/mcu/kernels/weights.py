"""Weights in the order in which a fast convolution reads them: one stream of words for each channel pair.

Two codes of two channels share a word.  Each 16-bit lane holds ``a + 256 * b`` with ``a`` and ``b`` the
weights of both channels for one input, so that the word itself is an operand of SMLAD::

    sumAB = sum x * (a + 256 * b) = A + 256 * B        the word
    sumA  = sum x * a             = A                  its low bytes, SXTB16
    B     = (sumAB - sumA) >> 8

Sums are taken modulo 2**32, so ``256 * B`` must not leave int32: ``|B| < 2**23``.  A pair that breaks the
bound, or whose lane leaves int16, makes the layer use `wide` words: two words, of one channel each.

The two lanes of a word are inputs ``4j`` and ``4j + 2``, then ``4j + 1`` and ``4j + 3``: that is how SXTB16
widens four bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .requantize import VARIES, Channels, stored_multiplier


def lane_order(k: int) -> np.ndarray:
    """Return the order (k,) in which inputs fill lanes; ``k`` is a multiple of 4.

    Examples
    --------
    >>> lane_order(8)
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    return np.arange(k).reshape(-1, 2, 2).transpose(0, 2, 1).ravel()


def to_compute(c: Channels) -> np.ndarray:
    """Return the channels that a kernel has to compute, an even number of them, two for each pair.

    A channel of one code is not computed.  Where an odd number is left, the last one is computed twice.
    """
    live = np.flatnonzero(c.codes == VARIES)
    if len(live) == 0:
        live = np.array([0])
    return np.append(live, live[-1:]) if len(live) % 2 else live


def is_packable(c: Channels) -> bool:
    """Whether two channels may share a word, for each pair of neighbours and every input."""
    if len(c.weights) % 2:
        return False
    a, b = c.weights[0::2], c.weights[1::2]
    lanes = a + 256 * b
    upper = np.stack([c.low[1::2], c.high[1::2]])
    # Bias included: the upper channel's bias is part of the stream's first word.
    return bool(np.all(np.abs(lanes) <= 32767) and np.all(upper >= -(2**23)) and np.all(upper < 2**23))


def pair_stream(c: Channels, *, packed: bool, places: np.ndarray | None = None) -> np.ndarray:
    """Return the words of all channel pairs, uint32 (O / 2, words a pair).

    A pair's words are: two first addends, the weights in lane order, then multiplier, addend and shift of
    the even channel and of the odd one, each followed by its entry of ``places`` (O,) if given.  ``packed``
    says which words the weights are; `wide` weights and biases are doubled if the rounding is double, since
    that rounding starts from ``2 * acc``.
    """
    even, odd = slice(0, None, 2), slice(1, None, 2)
    weights = c.weights[:, lane_order(c.weights.shape[1])]
    if packed:
        first = [c.bias[even], c.bias[even] + 256 * c.bias[odd]]
        body = lanes(weights[even] + 256 * weights[odd])
        forms = ("acc", "acc" if c.rounding == "single" else "twice")
    else:
        factor = 1 if c.rounding == "single" else 2
        first = [factor * c.bias[even], factor * c.bias[odd]]
        words = [lanes(factor * weights[part]) for part in (even, odd)]
        body = np.stack(words, axis=2).reshape(len(words[0]), -1)
        forms = ("acc", "acc") if c.rounding == "single" else ("twice", "twice")
    last = []
    for part, form in zip((even, odd), forms):
        last += [stored_multiplier(c, form)[part], c.addend[part], c.shift[part]]
        last += [] if places is None else [places[part]]
    columns = [np.stack(first, axis=1), body, np.stack(last, axis=1)]
    return (np.concatenate(columns, axis=1) & 0xFFFFFFFF).astype(np.uint32)


def overlapped(c: Channels) -> Channels:
    """Return ``c`` with a multiple of 4 weights a channel, for at least 4 inputs.

    The last four are those of the last four inputs: what is known already has weight 0 there, so that no
    input behind a pixel is read.
    """
    inputs = c.weights.shape[1]
    rest = inputs % 4
    if not rest:
        return c
    weights = np.insert(c.weights, [inputs - rest] * (4 - rest), 0, axis=1)
    return replace(c, weights=weights)


def lanes(values: np.ndarray) -> np.ndarray:
    """Return (n, k) lane values as (n, k / 2) words, the earlier lane in the low half."""
    return (values[:, 0::2] & 0xFFFF) | ((values[:, 1::2] & 0xFFFF) << 16)
