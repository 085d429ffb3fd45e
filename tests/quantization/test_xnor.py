"""Bits multiply like the signs that they stand for: exactly, for every size."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyml_edu.errors import UsageError
from tinyml_edu.mcu import toolchain
from tinyml_edu.quantization.runtime.xnor import (
    KERNELS_DIR,
    MAX_COLS,
    PackedBits,
    XnorKernel,
    _library,
    pack_bits,
    sign_gemm,
    unpack_bits,
    xnor_gemm,
)

DRIVER = Path(__file__).parent.parent / "c" / "xnor_driver.c"
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
SHAPES = [(1, 1, 1), (1, 63, 8), (8, 64, 7), (9, 65, 9), (17, 129, 33), (3, 700, 1), (8, 128, 16), (25, 1, 4)]
VALUES = np.array([-2.5, -1e-30, -0.0, 0.0, 1e-30, 3.0], np.float32)


def matrices(rng, m, k, n):
    return rng.choice(VALUES, (m, k)), rng.choice(VALUES, (k, n))


# Bits ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([0, 1]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing_but_the_magnitude(rows, cols, axis, seed):
    matrix = np.random.default_rng(seed).choice(VALUES, (rows, cols))
    packed = pack_bits(matrix, axis)
    np.testing.assert_array_equal(unpack_bits(packed), np.where(matrix >= 0, 1, -1))
    assert packed.words.shape[axis] == -(-matrix.shape[axis] // 64)


def test_entry_k_is_bit_k_of_its_word():
    matrix = -np.ones((1, 130))
    matrix[0, [3, 64, 129]] = 1
    assert pack_bits(matrix).words.tolist() == [[1 << 3, 1, 1 << 1]]
    assert pack_bits(matrix.T, axis=0).words.tolist() == [[1 << 3], [1], [1 << 1]]


def test_bits_are_exactly_32_times_smaller_than_floats_where_64_divides_the_row():
    w = np.ones((96, 1152), np.float32)
    assert w.nbytes == 32 * pack_bits(w).nbytes
    # Elsewhere a row ends in a word that is not full.
    assert pack_bits(w[:, :1100]).nbytes == 96 * 8 * 18 > w[:, :1100].nbytes / 32


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(UsageError, match="NaN"):
        pack_bits([[1.0, np.nan]])
    for bad in (np.ones(3), np.ones((0, 3)), np.ones((1, 2, 3))):
        with pytest.raises(UsageError, match="takes a matrix"):
            pack_bits(bad)
    with pytest.raises(UsageError, match="axis 0 or 1"):
        pack_bits(np.ones((2, 2)), axis=2)
    with pytest.raises(UsageError, match="split the matrix"):
        pack_bits(np.broadcast_to(np.float32(1), (1, MAX_COLS + 1)))


# Products --------------------------------------------------------------------------------------------------


@pytest.mark.c
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_the_product_of_bits_equals_that_of_signs(m, k, n, seed):
    w, x = matrices(np.random.default_rng(seed), m, k, n)
    y = xnor_gemm(pack_bits(w), pack_bits(x, axis=0))
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, sign_gemm(w, x))


@pytest.mark.c
@pytest.mark.parametrize("shape", SHAPES)
def test_words_packed_in_c_are_those_packed_in_numpy(shape, rng):
    w, x = matrices(rng, *shape)
    kernel = XnorKernel(pack_bits(w), shape[2])
    words = kernel.pack(x)
    np.testing.assert_array_equal(words, pack_bits(x, axis=0).words)
    np.testing.assert_array_equal(kernel(words), sign_gemm(w, x))


def test_the_plain_product_is_that_of_float_signs(rng):
    w, x = matrices(rng, 20, 300, 10)
    signs = [np.where(a < 0, -1.0, 1.0) for a in (w, x)]
    np.testing.assert_array_equal(sign_gemm(w, x), signs[0] @ signs[1])


@pytest.mark.c
def test_the_largest_sums_are_right():
    ones = PackedBits(np.full((1, 2**18), 2**64 - 1, np.uint64), (1, 2**24), 1)
    none = PackedBits(np.zeros((2**18, 1), np.uint64), (2**24, 1), 0)
    assert xnor_gemm(ones, none).tolist() == [[-(2**24)]]
    assert xnor_gemm(ones, PackedBits(ones.words.T.copy(), (2**24, 1), 0)).tolist() == [[2**24]]


@pytest.mark.c
def test_a_kernel_runs_again_into_the_same_array(rng):
    w, x = matrices(rng, 20, 100, 12)
    kernel, out, words = (
        XnorKernel(pack_bits(w), 12),
        np.full((20, 12), 7, np.int32),
        np.ones((2, 12), np.uint64),
    )
    for _ in range(2):
        assert kernel(kernel.pack(x, words), out) is out
        np.testing.assert_array_equal(out, sign_gemm(w, x))
        x = -x - 1


@pytest.mark.c
def test_a_bit_behind_the_last_entry_would_change_the_sum(rng):
    """The control: the exact tests see a tail that is not 0."""
    w, x = matrices(rng, 5, 65, 9)
    packed = pack_bits(x, axis=0)
    packed.words[-1] |= np.uint64(1 << 63)
    assert not np.array_equal(xnor_gemm(pack_bits(w), packed), sign_gemm(w, x))


# Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.c
def test_arguments_that_do_not_fit_are_refused(rng):
    w, x = matrices(rng, 4, 70, 3)
    with pytest.raises(UsageError, match="as many rows"):
        xnor_gemm(pack_bits(w), pack_bits(x[:69], axis=0))
    with pytest.raises(UsageError, match="axis=0"):
        xnor_gemm(pack_bits(w), pack_bits(x))
    with pytest.raises(UsageError, match="axis 1"):
        xnor_gemm(pack_bits(w, axis=0), pack_bits(x, axis=0))
    kernel = XnorKernel(pack_bits(w), 3)
    words = kernel.pack(x)
    with pytest.raises(UsageError, match="C-contiguous float32"):
        kernel.pack(x.astype(np.float64))
    with pytest.raises(UsageError, match="x must be"):
        kernel(words[:1])
    with pytest.raises(UsageError, match="out must be"):
        kernel(words, np.empty((3, 3), np.int32))
    with pytest.raises(UsageError, match="overlap"):
        kernel.pack(x, x.reshape(-1)[:12].view(np.uint64).reshape(2, 3))
    with pytest.raises(UsageError, match="1 or more"):
        XnorKernel(pack_bits(w), 0)


@pytest.mark.c
def test_the_boundary_in_c_refuses_null_and_bad_sizes():
    library, sizes, block = _library(), ctypes.c_int32 * 3, ctypes.create_string_buffer(64)
    assert library.te_xnor_gemm(sizes(1, 1, 1), block, block, block) == 0
    assert library.te_pack_columns_f32(sizes(1, 1, 1), block, block) == 0
    for at in range(4):
        arguments = [None if i == at else a for i, a in enumerate((sizes(1, 1, 1), block, block, block))]
        assert library.te_xnor_gemm(*arguments) == 1, at
        assert at == 3 or library.te_pack_columns_f32(*arguments[:3]) == 1, at
    for bad in (sizes(0, 1, 1), sizes(1, 0, 1), sizes(1, 1, -1), sizes(1, 1 << 30, 1)):
        assert library.te_xnor_gemm(bad, block, block, block) == 2
        assert library.te_pack_columns_f32(bad, block, block) == 2


# Compilers -------------------------------------------------------------------------------------------------


@pytest.mark.c
def test_the_kernels_compile_without_a_warning():
    sources = sorted(KERNELS_DIR.glob("*.c"))
    assert toolchain.compile_shared(sources, name="xnor_strict", include=[KERNELS_DIR], flags=STRICT).exists()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    if not shutil.which("gcc"):
        pytest.skip("gcc with its sanitizers is not installed")
    program = tmp_path_factory.mktemp("sanitized") / "xnor"
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{KERNELS_DIR}"]
    sources = [*sorted(KERNELS_DIR.glob("*.c")), DRIVER]
    command = ["gcc", *STRICT, *flags, *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


def test_kernels_are_clean_under_address_and_undefined_sanitizers(sanitized, rng):
    cases, wanted = [], []
    for shape in SHAPES:
        w, x = matrices(rng, *shape)
        header = np.array(shape, np.int32).tobytes()
        cases.append(header + np.ascontiguousarray(x).tobytes() + pack_bits(w).words.tobytes())
        wanted.append(pack_bits(x, axis=0).words.tobytes() + sign_gemm(w, x).tobytes())
    done = subprocess.run([sanitized], input=b"".join(cases), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert done.stdout == b"".join(wanted)


# The benchmark ---------------------------------------------------------------------------------------------


@pytest.mark.c
def test_the_benchmark_measures_each_pair_and_names_its_bytes(repository, monkeypatch, capsys):
    monkeypatch.syspath_prepend(repository)
    benchmark = importlib.import_module("benchmarks.xnor")
    monkeypatch.setattr(benchmark, "SHAPES", ((8, 128, 5),))
    monkeypatch.setattr("benchmarks.timing.ROUND_SECONDS", 1e-5)
    figures = benchmark.figures(rounds=1)
    for peer in ("c_float", "torch"):
        for what in ("product", "with_packing"):
            assert figures[f"xnor.8x128.n5.{peer}.{what}.ratio_median"][0] > 0
    assert figures["xnor.8x128.weight_bytes"] == (8 * 16, "bytes")
    assert figures["xnor.8x128.float_bytes"] == (8 * 128 * 4, "bytes")
    assert "median" in capsys.readouterr().out
