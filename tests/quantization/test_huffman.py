"""The code is optimal, canonical and reversible, and a broken stream says so."""

import heapq
from fractions import Fraction
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyml_edu.errors import DataError, UsageError
from tinyml_edu.quantization import huffman
from tinyml_edu.quantization.huffman import Encoded, canonical_codes, code_lengths, decode, encode, entropy

sequences = st.lists(st.integers(0, 40), max_size=200)


def merged_weight(counts) -> int:
    """Bits of an optimal code, without making it: the weights of all inner nodes of Huffman's tree."""
    heap = [c for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


def cheapest(counts) -> int:
    """Bits of the best of all prefix codes: every list of lengths that obeys Kraft's inequality is tried."""
    ordered = sorted(counts, reverse=True)
    longest = max(1, len(ordered) - 1)
    return min(
        sum(c * n for c, n in zip(ordered, lengths))
        for lengths in combinations_with_replacement(range(1, longest + 1), len(ordered))
        if sum(Fraction(1, 2**n) for n in lengths) <= 1
    )


def decode_bit_by_bit(coded: Encoded) -> list[int]:
    """The decoder as one would first write it."""
    codes = canonical_codes(coded.lengths)
    words = {f"{int(c):0{n}b}": s for s, (c, n) in enumerate(zip(codes, coded.lengths)) if n}
    bits = "".join(f"{byte:08b}" for byte in coded.data)[: coded.bits]
    symbols, word = [], ""
    for bit in bits:
        word += bit
        if word in words:
            symbols.append(words[word])
            word = ""
    assert word == ""
    return symbols


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=7))
def test_no_prefix_code_is_shorter(counts):
    assert int((code_lengths(counts) * np.array(counts)).sum()) == cheapest(counts) == merged_weight(counts)


def test_the_search_over_all_codes_can_tell_a_longer_one():
    counts = [1, 1, 2, 4]
    assert cheapest(counts) == 14
    assert int((huffman.fixed_lengths(4) * np.array(counts)).sum()) == 16


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=300))
def test_the_mean_length_is_within_a_bit_of_the_entropy(counts):
    lengths = code_lengths(counts).astype(np.int64)
    total, n = int((lengths * np.array(counts)).sum()), sum(counts)
    assert [bool(x) for x in lengths] == [c > 0 for c in counts]
    if np.count_nonzero(counts) > 1:
        assert total == merged_weight(counts)
        assert entropy(counts) * (1 - 1e-12) <= total / n < entropy(counts) + 1


def test_powers_of_two_reach_the_entropy():
    counts = [1, 1, 2, 4, 8, 16]
    assert int((code_lengths(counts) * np.array(counts)).sum()) == entropy(counts) * 32


def test_the_codes_are_those_of_the_example_in_rfc_1951():
    lengths = [3, 3, 3, 3, 3, 2, 4, 4]
    words = [f"{int(c):0{n}b}" for c, n in zip(canonical_codes(lengths), lengths)]
    assert words == ["010", "011", "100", "101", "110", "00", "1110", "1111"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=40))
def test_no_code_is_the_beginning_of_another(counts):
    lengths = code_lengths(counts)
    words = [f"{int(c):0{n}b}" for c, n in zip(canonical_codes(lengths), lengths) if n]
    ordered = sorted(words)
    assert not any(b.startswith(a) for a, b in pairwise(ordered))


@settings(deadline=None)
@given(sequences)
def test_a_sequence_comes_back_and_has_exactly_the_optimal_bits(symbols):
    coded = encode(symbols)
    counts = np.bincount(np.array(symbols, np.int64))
    assert coded.bits == merged_weight(counts.tolist())
    assert len(coded.data) == -(-coded.bits // 8)
    assert decode(coded).tolist() == symbols
    if coded.bits:
        assert decode_bit_by_bit(coded) == symbols
        assert int.from_bytes(coded.data) % 2 ** (-coded.bits % 8) == 0, "unused bits must be 0"


@settings(deadline=None)
@given(sequences, st.sampled_from([5, 8, 13, 64]))
def test_the_seams_of_the_decoder_leave_no_trace(symbols, block):
    coded = encode(symbols)
    whole, huffman.BLOCK_BITS = huffman.BLOCK_BITS, block
    try:
        assert decode(coded).tolist() == symbols
    finally:
        huffman.BLOCK_BITS = whole


@settings(deadline=None)
@given(sequences, st.integers(41, 70))
def test_a_code_of_fixed_length_also_comes_back(symbols, alphabet):
    coded = encode(symbols, alphabet, lengths=huffman.fixed_lengths(alphabet))
    assert coded.bits == len(symbols) * (6 if alphabet <= 64 else 7)
    assert decode(coded).tolist() == symbols


@pytest.mark.parametrize("symbols", [[], [0], [3, 3, 3, 3]])
def test_a_sequence_without_choice_takes_no_bits(symbols):
    coded = encode(symbols, 5)
    assert coded.bits == 0
    assert coded.data == b""
    assert decode(coded).tolist() == symbols


def test_very_long_codes_come_back():
    fibonacci = [1, 1]
    while len(fibonacci) < 57:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(fibonacci)
    assert lengths.max() == 56
    symbols = np.random.default_rng(0).integers(0, 57, 500)
    assert np.array_equal(decode(encode(symbols, 57, lengths=lengths)), symbols)


def test_a_code_beyond_the_window_is_refused():
    with pytest.raises(DataError, match="58 bits"):
        canonical_codes([*range(1, 59), 58])


def test_lengths_that_no_prefix_code_has_are_refused():
    with pytest.raises(DataError, match="Kraft"):
        canonical_codes([1, 2, 2, 2])


CODED = encode([0, 1, 2, 0, 0, 3])


@pytest.mark.parametrize(
    "broken",
    [
        CODED._replace(data=CODED.data[:-1]),
        CODED._replace(data=CODED.data + b"\0"),
        CODED._replace(bits=CODED.bits - 1),
        CODED._replace(bits=-8, data=b""),
        CODED._replace(size=CODED.size - 1),
        CODED._replace(size=CODED.size + 1),
        CODED._replace(lengths=np.zeros(4, np.uint8)),
        Encoded(b"\xc0", np.array([2, 2, 2], np.uint8), 2, 1),  # 11 stands for no symbol
        Encoded(b"", np.zeros(3, np.uint8), 0, 2),
    ],
)
def test_a_stream_that_contradicts_itself_is_an_error(broken):
    assert decode(CODED).tolist() == [0, 1, 2, 0, 0, 3]
    with pytest.raises(DataError):
        decode(broken)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode([0, 5], 5), "between 0 and 4"),
        (lambda: encode([-1]), "between 0"),
        (lambda: encode([0, 1], lengths=[1, 0]), "code length above 0"),
        (lambda: code_lengths([1, -1]), "none below 0"),
    ],
)
def test_a_wrong_request_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
