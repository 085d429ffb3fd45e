"""The file is lossless, its bytes are accounted for to the last, and no damage goes unnoticed."""

import hashlib
import heapq
import json
import pickle
import struct
import zlib
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import zoo
from tinyml_edu.errors import DataError, UsageError
from tinyml_edu.pruning import FineGrainedPruner
from tinyml_edu.pruning.ratios import global_magnitude
from tinyml_edu.quantization import KMeansQuantizer, load_compressed, save_compressed
from tinyml_edu.quantization.deep_compression import round_small_tensors
from tinyml_edu.quantization.tensor_coding import PADDING, Source, pack, unpack

DIGEST = slice(6, 38)


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def assert_same(state, other):
    assert list(state) == list(other)
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert bits_of(tensor) == bits_of(other[name]), name


def compressed(seed=0) -> nn.Module:
    """A network that went through the whole chain."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    FineGrainedPruner(model, 0.7).apply()
    KMeansQuantizer(model, 2)
    round_small_tensors(model)
    return model.eval()


def merged_weight(symbols) -> int:
    """Bits of an optimal code for a sequence, by Huffman's tree alone."""
    heap = [len(list(group)) for _, group in groupby(sorted(symbols))]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


def relative(flat) -> list[int]:
    """Position symbols of a list of values, counted one by one."""
    symbols, zeros = [], 0
    for i, value in enumerate(flat):
        if value != 0:
            symbols.append(zeros)
            zeros = 0
        elif zeros == 15 and any(v != 0 for v in flat[i:]):
            symbols.append(PADDING)
            zeros = 0
        else:
            zeros += 1
    return symbols


def test_what_is_loaded_is_what_was_measured(tmp_path):
    model = compressed()
    x = torch.randn(3, 2, 4, 4)
    measured = model(x)
    save_compressed(model, tmp_path / "net.tedc")
    other = compressed(seed=1)
    assert not torch.equal(other(x), measured)
    other.load_state_dict(load_compressed(tmp_path / "net.tedc"))
    assert torch.equal(other(x), measured)
    assert_same(model.state_dict(), other.state_dict())


def words(n):
    """Float32 values of any bits, NaN and -0.0 among them, from few different ones, many of them zero."""
    some = st.integers(0, 2**32 - 1) | st.sampled_from([0x80000000, 0x7FC00001, 0x3F800000, 1])
    return st.lists(some, min_size=1, max_size=5).flatmap(
        lambda pool: st.lists(st.sampled_from([0, 0, 0, *pool]), min_size=0, max_size=n)
    )


@settings(deadline=None)
@given(words(120) | st.lists(st.integers(0, 2**32 - 1), max_size=30), st.sampled_from(["huffman", "fixed"]))
def test_any_bits_of_any_float32_come_back(tmp_path_factory, values, coding):
    model = nn.Module()
    model.register_buffer("x", torch.from_numpy(np.array(values, np.uint32).view(np.float32)))
    path = tmp_path_factory.getbasetemp() / "any.tedc"
    report = save_compressed(model, path, coding=coding)
    assert_same(model.state_dict(), load_compressed(path))
    assert path.stat().st_size == report.file_bytes


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]
)
def test_other_dtypes_and_empty_and_scalar_tensors_come_back(tmp_path, dtype):
    model = nn.Module()
    for name, shape in (("scalar", ()), ("empty", (0, 3)), ("matrix", (3, 4))):
        model.register_buffer(name, (torch.rand(shape) * 9).to(dtype))
    save_compressed(model, tmp_path / "net.tedc")
    assert_same(model.state_dict(), load_compressed(tmp_path / "net.tedc"))


def test_a_dtype_that_numpy_does_not_know_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"bfloat16.*\.float\(\)"):
        save_compressed(nn.Linear(2, 2).bfloat16(), tmp_path / "net.tedc")


def test_a_weight_in_another_memory_layout_comes_back_by_its_indices(tmp_path):
    model = compressed()
    model.to(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    save_compressed(model, tmp_path / "net.tedc")
    assert torch.equal(load_compressed(tmp_path / "net.tedc")["0.weight"], model[0].weight)


def test_the_parts_sum_to_the_file_and_the_streams_are_optimal(tmp_path):
    model = compressed()
    report = save_compressed(model, tmp_path / "net.tedc")
    assert sum(report.parts.values()) == report.file_bytes == (tmp_path / "net.tedc").stat().st_size
    rows = {row.name: row for row in report.rows}
    assert list(rows) == list(model.state_dict())
    for part, size in report.parts.items():
        if part != "header":
            assert size == sum(row.parts.get(part, 0) for row in report.rows)
    for name in ("0.weight", "4.weight"):
        row, flat = rows[name], model.get_parameter(name).detach().reshape(-1).tolist()
        kept = [v for v in flat if v != 0]
        assert (row.kind, row.values, row.kept) == ("coded", len(flat), len(kept))
        assert row.centroids == len(set(kept)) <= 4
        assert row.position_bits == merged_weight(relative(flat))
        assert row.label_bits == merged_weight(kept)
        assert row.parts["index"] == -(-row.position_bits // 8)
        assert row.parts["labels"] == -(-row.label_bits // 8)
        assert row.parts["tables"] == PADDING + 1 + row.centroids
    assert report.parts["values"] == 2 * (6 + 4 * 6 + 5) + 8  # biases and batch norm in float16, one counter
    assert report.fp32_bytes == 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("run", [14, 15, 16, 17, 31, 32, 33, 100])
def test_long_runs_of_zeros_come_back(tmp_path, run):
    flat = [0.0] * run + [1.5] + [0.0] * run + [2.5] * 40 + [0.0] * run
    model = nn.Module()
    model.register_buffer("x", torch.tensor(flat * 4))
    report = save_compressed(model, tmp_path / "net.tedc")
    assert report.rows[0].kind == "coded"
    assert report.rows[0].position_bits == merged_weight(relative(flat * 4))
    assert_same(model.state_dict(), load_compressed(tmp_path / "net.tedc"))


def test_every_step_of_the_chain_makes_the_file_smaller(tmp_path):
    model, _ = zoo.load("vgg_lite.glyphs32")
    path = tmp_path / "net.tedc"
    dense = save_compressed(model, path)
    assert {row.kind for row in dense.rows} == {"plain"}
    assert 0.99 < dense.ratio < 1
    FineGrainedPruner(model, global_magnitude(model, 0.9)).apply()
    pruned = save_compressed(model, path)
    KMeansQuantizer(model, 4)
    round_small_tensors(model)
    shared = save_compressed(model, path, coding="fixed")
    whole = save_compressed(model, path)
    assert dense.file_bytes > pruned.file_bytes > shared.file_bytes > whole.file_bytes == path.stat().st_size
    assert pruned.rows[0].kind == "sparse"
    assert whole.ratio >= 25
    assert_same(model.state_dict(), load_compressed(path))
    labels = {row.name: row.label_bits for row in shared.rows if row.kind == "coded"}
    assert labels == {row.name: 4 * row.kept for row in shared.rows if row.kind == "coded"}


def test_a_byte_changed_anywhere_is_an_error(tmp_path):
    path = tmp_path / "net.tedc"
    save_compressed(compressed(), path)
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        with pytest.raises(DataError, match=r"(damaged|not a compressed|version).*write it again"):
            load_compressed(path)


def test_a_file_cut_or_lengthened_anywhere_is_an_error(tmp_path):
    path = tmp_path / "net.tedc"
    save_compressed(compressed(), path)
    data = path.read_bytes()
    for wrong in [*(data[:i] for i in range(len(data))), data + b"\0"]:
        path.write_bytes(wrong)
        with pytest.raises(DataError):
            load_compressed(path)


def resealed(data: bytes) -> bytes:
    return data[: DIGEST.start] + hashlib.sha256(data[DIGEST.stop :]).digest() + data[DIGEST.stop :]


def test_without_the_digest_damage_would_go_unnoticed(tmp_path):
    path = tmp_path / "net.tedc"
    model = compressed()
    save_compressed(model, path)
    data = path.read_bytes()
    path.write_bytes(resealed(data))
    assert_same(model.state_dict(), load_compressed(path))
    path.write_bytes(resealed(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]))  # in the last bias or weight
    state = load_compressed(path)
    assert any(bits_of(t) != bits_of(state[n]) for n, t in model.state_dict().items())


def test_bytes_that_no_tensor_asks_for_are_refused_whatever_the_digest_says(tmp_path):
    path = tmp_path / "net.tedc"
    save_compressed(compressed(), path)
    path.write_bytes(resealed(path.read_bytes() + b"\0"))
    with pytest.raises(DataError, match="1 bytes are left over"):
        load_compressed(path)


def test_nonsense_under_a_right_digest_is_an_error_or_a_state_dict_but_nothing_else(tmp_path, rng):
    path = tmp_path / "net.tedc"
    save_compressed(compressed(), path)
    data, errors = path.read_bytes(), 0
    for _ in range(600):
        at, bit = int(rng.integers(DIGEST.stop, len(data))), int(rng.integers(8))
        path.write_bytes(resealed(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]))
        try:
            load_compressed(path)
        except DataError:
            errors += 1
    assert errors > 100


def test_more_positions_than_values_are_refused_before_they_are_made():
    packed = pack(np.array([0, 0, 1, 0, 2] * 9, np.float32))
    for n in (46, 10**12):
        with pytest.raises(DataError, match="more positions"):
            unpack(Source(b""), packed.kind, 45, ("float32", packed.stored), [n, *packed.numbers[1:]])


@pytest.mark.parametrize("wrong", [-1, 0, 10**18, 10**40, 2.5, None, "float32", "plain", [3], [10**9, 10**9]])
def test_a_nonsense_header_under_a_right_digest_is_refused_at_every_place(tmp_path, wrong):
    path = tmp_path / "net.tedc"
    save_compressed(compressed(), path)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, DIGEST.stop)
    start = DIGEST.stop + 4
    entries = json.loads(zlib.decompress(data[start : start + length]))
    for entry in entries[:2]:  # a coded weight and a plain bias
        for place in range(1, len(entry)):
            right, entry[place] = entry[place], wrong
            if wrong != right:
                header = zlib.compress(json.dumps(entries).encode())
                rest = struct.pack("<I", len(header)) + header + data[start + length :]
                path.write_bytes(resealed(data[: DIGEST.stop] + rest))
                with pytest.raises(DataError, match="damaged"):
                    load_compressed(path)
            entry[place] = right


@pytest.mark.parametrize("content", [b"", b"TEDC", b"PK\x03\x04" + bytes(60), pickle.dumps({"a": 1})])
def test_another_file_is_named_as_such(tmp_path, content):
    path = tmp_path / "net.tedc"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a compressed network"):
        load_compressed(path)


def test_a_missing_file_and_an_unwritable_folder_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        load_compressed(tmp_path / "none.tedc")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="another folder"):
        save_compressed(compressed(), tmp_path / "file" / "net.tedc")


def test_another_version_is_named(tmp_path):
    path = tmp_path / "net.tedc"
    save_compressed(compressed(), path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\x02\x00" + data[6:])
    with pytest.raises(DataError, match="version 2"):
        load_compressed(path)


def test_an_unknown_coding_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'huffman' or 'fixed'"):
        save_compressed(compressed(), tmp_path / "net.tedc", coding="zip")


def test_small_tensors_are_rounded_to_float16_and_weights_are_not():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -3.3333, 1e-6, 0.0]))
        model[1].running_mean[0] = 1e5  # beyond float16
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = round_small_tensors(model)
    assert names == ["0.bias", "1.weight", "1.bias", "1.running_var"]
    for name, tensor in model.state_dict().items():
        if name in names:
            assert torch.equal(tensor, tensor.half().float())
            bound = (before[name].abs() * 2**-11).clamp(min=2**-25)
            assert ((tensor - before[name]).abs() <= bound).all()
        else:
            assert torch.equal(tensor, before[name]), name
