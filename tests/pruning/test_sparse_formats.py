"""What is stored decodes to what went in, and costs exactly the bytes that are claimed."""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyml_edu.errors import DataError, UnknownNameError, UsageError
from tinyml_edu.pruning import sparse
from tinyml_edu.pruning.sparse import FORMATS, HEADER_BYTES, RelativeIndex, TwoFour

ANY = [name for name in FORMATS if name != "two_four"]


@st.composite
def matrices(draw, two_four=False):
    """Draw any (rows, cols) matrix: sizes around 1, 4, 8 and 16, densities from none to all, empty rows."""
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.int8])))
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 20)))
    shape = shape[::-1] if draw(st.booleans()) else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(-128, 128, shape) if dtype == np.int8 else rng.standard_normal(shape)
    keep = rng.random(shape) < draw(st.sampled_from([0.0, 0.03, 0.3, 0.9, 1.0]))
    keep[rng.random(shape[0]) < draw(st.sampled_from([0.0, 0.3]))] = False
    if two_four:
        rank = np.argsort(rng.random((shape[0], -(-shape[1] // 4), 4)), axis=2)
        keep &= (rank < 2).reshape(shape[0], -1)[:, : shape[1]]
    return np.where(keep, values, 0).astype(dtype)


def walk(w, pes):
    """EIE's encoder as the paper tells it, one weight after the other: (zeros before, value) pairs."""
    pairs = []
    for p in range(pes):
        for column in w[p::pes].T:
            zeros = 0
            for value in column:
                if value == 0:
                    zeros += 1
                    continue
                while zeros > 15:
                    pairs.append((15, 0))
                    zeros -= 16
                pairs.append((zeros, value))
                zeros = 0
    return pairs


def counted_bytes(name, w, pes=1):
    """Count what a format must store from the dense matrix alone, by the formulas of the docstrings."""
    (rows, cols), v, nnz = w.shape, w.itemsize, int((w != 0).sum())

    def width(largest):
        return 1 if largest < 256 else 2 if largest < 65536 else 4

    groups, entries = math.ceil(cols / 4), len(walk(w, pes))
    return {
        "dense": rows * cols * v,
        "csr": nnz * (v + width(cols - 1)) + (rows + 1) * width(nnz),
        "csc": nnz * (v + width(rows - 1)) + (cols + 1) * width(nnz),
        "bitmask": nnz * v + rows * math.ceil(cols / 8),
        "relative": entries * v + math.ceil(entries / 2) + pes * (cols + 1) * width(entries),
        "two_four": rows * groups * 2 * v + rows * math.ceil(groups / 2),
    }[name]


# Identity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANY)
@given(w=matrices())
def test_decode_undoes_encode(name, w):
    stored = sparse.encode(w, name)
    back = sparse.decode(stored)
    assert back.dtype == w.dtype
    np.testing.assert_array_equal(back, w)
    assert stored.nnz == np.count_nonzero(w)
    assert stored.nnz + stored.padding == stored.values.size


@given(w=matrices(two_four=True))
def test_decode_undoes_encode_of_two_four(w):
    np.testing.assert_array_equal(TwoFour.encode(w).decode(), w)


@given(w=matrices(), pes=st.integers(1, 50))
def test_decode_undoes_encode_for_any_number_of_processing_elements(w, pes):
    stored = RelativeIndex.encode(w, pes=pes)
    np.testing.assert_array_equal(stored.decode(), w)
    expected = walk(w, pes)
    assert list(zip(stored.zero_runs().tolist(), stored.values.tolist())) == [
        (zeros, float(v) if w.dtype == np.float32 else int(v)) for zeros, v in expected
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (3, 4), (2, 8), (5, 257), (257, 3), (40, 300)])
def test_all_zero_and_single_weights_survive(name, shape):
    for flat in (None, 0, shape[0] * shape[1] // 2, shape[0] * shape[1] - 1):
        w = np.zeros(shape, np.float32)
        if flat is not None:
            w.reshape(-1)[flat] = -1.5
        np.testing.assert_array_equal(sparse.encode(w, name).decode(), w, err_msg=f"{name} {shape} {flat}")


@pytest.mark.parametrize("name", FORMATS)
def test_special_values_are_weights_like_any_other(name):
    w = np.array([[np.nan, 0, 0, np.inf], [-0.0, 1e-45, 0, 0]], np.float32)
    stored = sparse.encode(w, name)
    np.testing.assert_array_equal(stored.decode(), w)
    assert stored.nnz == 3
    assert not np.signbit(stored.decode()[1, 0])  # -0.0 is a zero like any other


@pytest.mark.parametrize("name", ["csr", "csc", "relative", "bitmask"])
def test_the_identity_test_sees_one_wrong_index(name):
    w = np.diag(np.arange(1, 41)).astype(np.int8)
    w[0, 1:3] = 1, 0
    stored = sparse.encode(w, name)
    field = {"csr": "indices", "csc": "indices", "relative": "zeros", "bitmask": "mask"}[name]
    moved = getattr(stored, field).copy()
    if name == "bitmask":
        moved[0, 0] = 0b101  # column 2 instead of column 1
    elif name == "relative":
        moved[0] += 1
    else:
        moved[-1] -= 1
    damaged = dataclasses.replace(stored, **{field: moved})
    assert not np.array_equal(damaged.decode(), w)


# Bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANY)
@given(w=matrices())
def test_bytes_are_the_formula(name, w):
    assert sparse.encode(w, name).nbytes == counted_bytes(name, w)


@given(w=matrices(two_four=True))
def test_bytes_of_two_four_are_the_formula(w):
    assert TwoFour.encode(w).nbytes == counted_bytes("two_four", w)


@given(w=matrices(), pes=st.integers(1, 9))
def test_bytes_count_the_pointers_of_every_processing_element(w, pes):
    assert RelativeIndex.encode(w, pes=pes).nbytes == counted_bytes("relative", w, pes)


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_by_hand(name):
    # (2, 20) int8: row 0 holds 5 at column 0 and 7 at column 18, row 1 nothing.
    w = np.zeros((2, 20), np.int8)
    w[0, [0, 18]] = 5, 7
    by_hand = {
        "dense": 40,
        "csr": 2 * (1 + 1) + 3,
        "csc": 2 * (1 + 1) + 21,
        "bitmask": 2 + 2 * 3,
        "relative": 2 + 1 + 21,
        "two_four": 2 * 10 + 2 * 3,
    }
    assert sparse.encode(w, name).nbytes == by_hand[name]
    assert sparse.byte_table(w) == by_hand


def test_wide_indices_and_pointers_are_counted_wide():
    w = np.zeros((2, 300), np.int8)
    w[:, :150] = 1
    assert sparse.encode(w, "csr").nbytes == 300 * (1 + 2) + 3 * 2
    assert sparse.encode(w[:1], "csr").nbytes == 150 * (1 + 2) + 2 * 1


def test_eie_pads_as_in_the_paper():
    # Han et al. 2016, section III-B: [0,0,1,2, 18 zeros, 3] is v = [1,2,0,3], z = [2,0,15,2].
    column = np.array([0, 0, 1, 2, *[0] * 18, 3], np.float32)[:, None]
    stored = RelativeIndex.encode(column)
    assert stored.values.tolist() == [1, 2, 0, 3]
    assert stored.zero_runs().tolist() == [2, 0, 15, 2]
    assert stored.padding == 1
    assert stored.nbytes == 4 * 4 + 2 + 2  # four values, four nibbles, two pointers of a byte


@pytest.mark.parametrize(("zeros", "padding"), [(15, 0), (16, 1), (31, 1), (32, 2), (100, 6)])
def test_every_sixteen_zeros_cost_one_padding_entry(zeros, padding):
    column = np.zeros((zeros + 3, 1), np.int8)
    column[zeros] = 1  # the zeros behind it cost nothing
    assert RelativeIndex.encode(column).padding == padding == zeros // 16


def test_the_byte_test_sees_forgotten_padding():
    # The control: bytes counted from the non-zero weights alone are too few as soon as there is padding.
    column = np.zeros((40, 1), np.int8)
    column[-1] = 1
    stored = RelativeIndex.encode(column)
    forgotten = stored.nnz * 1 + math.ceil(stored.nnz / 2) + 2
    assert forgotten < stored.nbytes == counted_bytes("relative", column)


# Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@given(w=matrices(two_four=True))
def test_a_file_is_the_header_and_the_claimed_bytes(name, w, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"{name}.bin"
    stored = sparse.encode(w, name)
    assert sparse.write(stored, path) == path.stat().st_size == HEADER_BYTES + stored.nbytes
    back = sparse.read(path)
    assert type(back) is type(stored)
    assert back.shape == stored.shape
    for field, array in stored.arrays.items():
        read = back.arrays[field]
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_a_file_keeps_the_number_of_processing_elements(tmp_path, rng):
    w = (rng.random((37, 11)) < 0.2).astype(np.int8)
    stored = RelativeIndex.encode(w, pes=4)
    sparse.write(stored, tmp_path / "w.bin")
    back = sparse.read(tmp_path / "w.bin")
    assert back.pes == 4
    np.testing.assert_array_equal(back.decode(), w)


@pytest.mark.parametrize("name", FORMATS)
def test_any_damaged_byte_is_an_error_with_advice(name, tmp_path):
    w = np.tile(np.array([[3, 0, 0, -4, 0, 0, 5]], np.int8), (3, 1))
    path = tmp_path / "w.bin"
    sparse.write(sparse.encode(w, name), path)
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x40
        path.write_bytes(bad)
        with pytest.raises(DataError, match="write it"):
            sparse.read(path)
    path.write_bytes(good)
    np.testing.assert_array_equal(sparse.read(path).decode(), w)


def test_missing_short_and_foreign_files_are_errors(tmp_path):
    path = tmp_path / "w.bin"
    with pytest.raises(DataError, match="cannot read"):
        sparse.read(path)
    for content in (b"", b"TESP", b"PK" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a sparse matrix"):
            sparse.read(path)


def test_a_file_with_a_right_checksum_and_wrong_indices_is_an_error(tmp_path):
    path = tmp_path / "w.bin"
    sparse.write(sparse.encode(np.eye(3, dtype=np.int8), "csr"), path)
    data = path.read_bytes()
    body = bytearray(data[HEADER_BYTES:])
    body[3 + 1] = 200  # the second column index
    head = data[: HEADER_BYTES - 4]
    path.write_bytes(head + struct.pack("<I", zlib.crc32(head + body)) + body)
    with pytest.raises(DataError, match="outside 0 to 2"):
        sparse.read(path)


# Refusals --------------------------------------------------------------------------------------------------


def test_what_cannot_be_stored_is_refused_with_advice():
    with pytest.raises(UnknownNameError, match="bitmask"):
        sparse.encode(np.eye(2, dtype=np.float32), "bitmaks")
    with pytest.raises(UsageError, match="reshape"):
        sparse.encode(np.zeros((2, 3, 3), np.float32), "csr")
    with pytest.raises(UsageError, match="float32 or int8"):
        sparse.encode(np.eye(2), "csr")
    with pytest.raises(UsageError, match="shape"):
        sparse.encode(np.zeros((0, 3), np.float32), "csr")
    with pytest.raises(UsageError, match="pes=0"):
        RelativeIndex.encode(np.eye(2, dtype=np.int8), pes=0)


def test_three_of_four_are_not_two_four_sparse():
    w = np.zeros((3, 9), np.int8)
    w[1, [4, 5, 7]] = 1
    with pytest.raises(UsageError, match="row 1 has 3 non-zero weights in columns 4 to 7"):
        TwoFour.encode(w)
    w[1, 5] = 0
    np.testing.assert_array_equal(TwoFour.encode(w).decode(), w)
    assert "two_four" not in sparse.byte_table(np.ones((2, 4), np.int8))


def _with(stored, field, change):
    array = getattr(stored, field).copy()
    change(array)
    return dataclasses.replace(stored, **{field: array})


def _set(index, value):
    return lambda array: array.__setitem__(index, value)


@pytest.mark.parametrize(
    ("name", "field", "change", "message"),
    [
        ("csr", "indices", _set(0, 11), "outside 0 to 10"),
        ("csr", "indices", _set(slice(None), 0), "ascend"),
        ("csc", "indices", _set(0, 5), "outside 0 to 4"),
        ("csr", "pointers", _set(1, 200), "pointers must rise"),
        ("csc", "pointers", _set(-1, 0), "pointers must rise"),
        ("bitmask", "mask", _set((0, 1), 0x80), "padding bits"),
        ("bitmask", "mask", _set((0, 0), 0), "announces"),
        ("relative", "zeros", _set(0, 0xFF), "an index reaches row"),
        ("relative", "pointers", _set((0, 0), 1), "pointers must rise"),
        ("relative", "pointers", _set((0, 1), 9), "must not fall"),
        ("two_four", "places", _set((0, 0), 0), "first place"),
        ("two_four", "places", _set((0, 1), 0xF4), "unused four bits"),
    ],
)
def test_arrays_that_would_mislead_a_kernel_are_refused(name, field, change, message):
    w = np.zeros((5, 11), np.int8)
    w[:, [0, 6]] = 3
    w[0, 0] = 0
    stored = sparse.encode(w, name)
    _with(stored, field, lambda array: array.copy())  # unchanged, it is accepted
    with pytest.raises(DataError, match=message):
        _with(stored, field, change)


def test_wrong_dtypes_and_lengths_are_refused():
    stored = sparse.encode(np.eye(4, dtype=np.float32), "csr")
    with pytest.raises(DataError, match="indices must be uint8"):
        dataclasses.replace(stored, indices=stored.indices.astype(np.int64))
    with pytest.raises(DataError, match="pointers must be"):
        dataclasses.replace(stored, pointers=stored.pointers[:-1])
    with pytest.raises(UsageError, match="float32 or int8"):
        dataclasses.replace(stored, values=stored.values.astype(np.float64))


@pytest.mark.parametrize("name", FORMATS)
def test_stored_arrays_cannot_be_changed(name):
    source = np.eye(4, dtype=np.float32)
    stored = sparse.encode(source, name)
    source[:] = 7  # nor is the caller's matrix shared
    np.testing.assert_array_equal(stored.decode(), np.eye(4))
    for array in stored.arrays.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
