"""The C kernels compute the product: exactly in int8, within the bound of float32 summation otherwise."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tinyml_edu.errors import UsageError
from tinyml_edu.pruning import sparse
from tinyml_edu.pruning.sparse import FORMATS, RelativeIndex, SpmmKernel, matmul
from tinyml_edu.pruning.sparse.spmm import KERNELS_DIR, MAX_COLS, _library

pytestmark = pytest.mark.c

DRIVER = Path(__file__).parent.parent / "c" / "spmm_driver.c"
STRICT = [
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wno-sign-conversion",
    "-Wno-unused-function",
    "-Werror",
]
SHAPES = [(1, 1), (1, 9), (9, 1), (3, 5), (4, 16), (5, 67), (34, 130), (70, 300), (300, 70)]
WIDTHS = [1, 2, 15, 16, 17, 31, 32, 33, 65]
U = 2.0**-24
"""Unit roundoff of float32."""


def weights(rng, shape, density, dtype, two_four=False):
    values = rng.integers(-128, 128, shape) if dtype == "int8" else rng.standard_normal(shape)
    keep = rng.random(shape) < density
    if two_four:
        rank = np.argsort(rng.random((shape[0], -(-shape[1] // 4), 4)), axis=2)
        keep &= (rank < 2).reshape(shape[0], -1)[:, : shape[1]]
    return np.where(keep, values, 0).astype(dtype)


def inputs(rng, cols, n, dtype):
    values = rng.integers(-128, 128, (cols, n)) if dtype == "int8" else rng.standard_normal((cols, n))
    return values.astype(dtype)


def excess(w, x, y):
    """Return the largest error over its bound, k u / (1 - k u) * (|w| @ |x|) for k weights in a row.

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. (3.5).
    """
    exact = w.astype(np.float64) @ x.astype(np.float64)
    k = np.count_nonzero(w, axis=1)[:, None]
    bound = k * U / (1 - k * U) * (np.abs(w).astype(np.float64) @ np.abs(x).astype(np.float64))
    # The oracle's own float64 sum errs 2^29 times less; a row without weights must be exactly 0.
    error = np.abs(y - exact) * (1 - 2.0**-20)
    return float(
        np.max(np.where(bound > 0, error / np.where(bound > 0, bound, 1), np.where(error > 0, np.inf, 0)))
    )


# Products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_products_are_exact(name, shape, rng):
    for density in (0.0, 0.1, 0.5, 1.0):
        w = weights(rng, shape, density, "int8", two_four=name == "two_four")
        for n in WIDTHS:
            x = inputs(rng, shape[1], n, "int8")
            y = matmul(sparse.encode(w, name), x)
            assert y.dtype == np.int32
            np.testing.assert_array_equal(
                y, w.astype(np.int64) @ x.astype(np.int64), err_msg=f"{density} {n}"
            )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float_products_are_within_the_bound_of_summation(name, shape, rng):
    for density in (0.0, 0.1, 0.5, 1.0):
        w = weights(rng, shape, density, "float32", two_four=name == "two_four")
        for n in WIDTHS:
            x = inputs(rng, shape[1], n, "float32")
            y = matmul(sparse.encode(w, name), x)
            assert y.dtype == np.float32
            assert excess(w, x, y) <= 1, (density, n)


@pytest.mark.parametrize("name", FORMATS)
def test_float_products_of_small_integers_are_exact(name, rng):
    w = np.rint(3 * weights(rng, (33, 90), 0.4, "float32", two_four=name == "two_four"))
    x = np.rint(3 * inputs(rng, 90, 20, "float32"))
    np.testing.assert_array_equal(matmul(sparse.encode(w, name), x), w @ x)  # sums far below 2^24


@pytest.mark.parametrize("pes", [1, 2, 7, 64, 500])
def test_interleaved_rows_give_the_same_product(pes, rng):
    w = weights(rng, (130, 40), 0.1, "int8")
    for n in (1, 5, 16):
        x = inputs(rng, 40, n, "int8")
        y = matmul(RelativeIndex.encode(w, pes=pes), x)
        np.testing.assert_array_equal(y, w.astype(np.int64) @ x.astype(np.int64))


@pytest.mark.parametrize("name", ["csr", "csc"])
@pytest.mark.parametrize("shape", [(2, 256), (2, 257), (256, 2), (257, 2), (3, 66000), (66000, 3)])
def test_every_index_and_pointer_width_is_read_right(name, shape, rng):
    w = weights(rng, shape, 0.01, "int8")
    w[-1, -1] = 100
    x = inputs(rng, shape[1], 3, "int8")
    stored = sparse.encode(w, name)
    np.testing.assert_array_equal(matmul(stored, x), w.astype(np.int64) @ x.astype(np.int64))


def test_four_byte_pointers_are_read_right(rng):
    w = weights(rng, (300, 250), 0.95, "int8")
    x = inputs(rng, 250, 2, "int8")
    for name in ("csr", "csc", "relative"):
        stored = sparse.encode(w, name)
        assert stored.arrays["pointers"].dtype == np.uint32
        np.testing.assert_array_equal(matmul(stored, x), w.astype(np.int64) @ x.astype(np.int64))


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_int8_sums_do_not_overflow(name):
    w = np.full((1, MAX_COLS), -128, np.int8)
    if name == "two_four":
        w[:, 2::4] = w[:, 3::4] = 0
    y = matmul(sparse.encode(w, name), np.full(MAX_COLS, -128, np.int8))
    assert y.tolist() == [np.count_nonzero(w) * 2**14]


@pytest.mark.parametrize("name", FORMATS)
def test_a_vector_gives_a_vector(name, rng):
    w, x = weights(rng, (6, 12), 0.5, "int8", two_four=True), inputs(rng, 12, 1, "int8")[:, 0]
    y = matmul(sparse.encode(w, name), x)
    assert y.shape == (6,)
    np.testing.assert_array_equal(y, w.astype(np.int64) @ x.astype(np.int64))


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("dense", "relative", "two_four")])
def test_weights_that_are_not_stored_meet_no_infinity(name):
    w, x = np.array([[0, 2], [3, 0]], np.float32), np.array([1, np.inf], np.float32)
    assert matmul(sparse.encode(w, name), x).tolist() == [np.inf, 3]


def test_a_kernel_runs_again_into_the_same_array(rng):
    w, kernel_n = weights(rng, (20, 30), 0.3, "int8"), 5
    for name in ("dense", "csr", "csc", "bitmask", "relative"):
        kernel = SpmmKernel(sparse.encode(w, name), kernel_n)
        out = np.full((20, kernel_n), 77, np.int32)
        for _ in range(2):
            x = inputs(rng, 30, kernel_n, "int8")
            assert kernel(x, out) is out
            np.testing.assert_array_equal(out, w.astype(np.int64) @ x.astype(np.int64))


# Controls --------------------------------------------------------------------------------------------------


def test_the_bound_sees_half_precision_and_a_lost_weight(rng):
    w, x = weights(rng, (70, 300), 0.5, "float32"), inputs(rng, 300, 4, "float32")
    assert excess(w, x, w @ x) <= 1
    half = w.astype(np.float16).astype(np.float32) @ x
    assert excess(w, x, half) > 1
    lost = w.copy()
    lost[0, np.flatnonzero(w[0])[-1]] = 0
    assert excess(w, x, lost @ x) > 1


def test_a_wrong_index_changes_the_product(rng):
    w, x = np.eye(20, dtype=np.int8), inputs(rng, 20, 3, "int8")
    w[3] = np.roll(w[3], 1)
    assert not np.array_equal(matmul(sparse.encode(w, "csr"), x), x)


# Refusals --------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_refused(rng):
    stored = sparse.encode(np.eye(4, dtype=np.float32), "csr")
    with pytest.raises(UsageError, match=r"x must be \(4, n\)"):
        matmul(stored, np.ones((3, 2), np.float32))
    with pytest.raises(UsageError, match="float32"):
        matmul(stored, np.ones((4, 2)))
    kernel, x = SpmmKernel(stored, 4), np.ones((4, 4), np.float32)
    with pytest.raises(UsageError, match="C-contiguous"):
        kernel(np.ones((4, 4), np.float32, order="F"))
    with pytest.raises(UsageError, match="overlap"):
        kernel(x, x)
    with pytest.raises(UsageError, match="out must be"):
        kernel(x, np.ones((4, 3), np.float32))
    with pytest.raises(UsageError, match="at most"):
        SpmmKernel(sparse.encode(np.ones((1, MAX_COLS + 1), np.int8), "dense"), 1)


def test_the_boundary_in_c_refuses_null_and_bad_sizes():
    library, one = _library("int8", "uint8"), ctypes.create_string_buffer(64)
    sizes = ctypes.c_int32 * 3
    good, pointer_bytes, pes = sizes(1, 1, 1), ctypes.c_int32(1), ctypes.c_int32(1)
    calls = {
        "dense": [one],
        "csr": [one, one, one, pointer_bytes],
        "csc": [one, one, one, pointer_bytes],
        "bitmask": [one, one],
        "relative": [one, one, one, pointer_bytes, pes],
        "two_four": [one, one],
    }
    for name, stored in calls.items():
        function = library[f"te_spmm_{name}"]
        x, y = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        assert function(good, *stored, x, y) == 0, name
        arguments = [good, *stored, x, y]
        for at, argument in enumerate(arguments):
            if not isinstance(argument, ctypes.c_int32):
                assert function(*arguments[:at], None, *arguments[at + 1 :]) == 1, (name, at)
            else:
                assert function(*arguments[:at], ctypes.c_int32(0), *arguments[at + 1 :]) == 3, (name, at)
        for bad in (sizes(0, 1, 1), sizes(1, 0, 1), sizes(1, 1, -1), sizes(1, 1 << 17, 1)):
            assert function(bad, *stored, x, y) == 2, (name, list(bad))


# Sanitizers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """A function that returns the driver for a value and an index type, built with two sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    return functools.cache(lambda dtype, index: build_sanitized(folder, dtype, index))


def build_sanitized(folder, dtype, index):
    program = folder / f"spmm_{dtype}"
    flags = [
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        f"-DTE_INDEX={index}_t",
    ]
    flags += ["-DTE_S8"] if dtype == "int8" else []
    sources = [*sorted(KERNELS_DIR.glob("*.c")), DRIVER]
    command = ["gcc", *STRICT, *flags, f"-I{KERNELS_DIR}", *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


def as_case(stored, x, change=None):
    """Return the bytes that the driver reads; ``change`` damages the arrays behind the checks' back."""
    arrays = {name: array.copy() for name, array in stored.arrays.items()}
    if change:
        change(arrays)
    blocks = [array.tobytes() for array in arrays.values()]
    blocks += [b""] * (3 - len(blocks)) + [x.tobytes()]
    pointer_bytes = arrays["pointers"].itemsize if "pointers" in arrays else 0
    y_bytes = stored.shape[0] * x.shape[1] * 4
    numbers = [list(FORMATS).index(stored.name), *stored.shape, x.shape[1], stored.options().get("pes", 1)]
    header = [*numbers, pointer_bytes, *map(len, blocks), y_bytes]
    return np.array(header, np.int32).tobytes() + b"".join(blocks)


needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc with its sanitizers is not installed")


@needs_gcc
@pytest.mark.parametrize(
    ("dtype", "index", "shapes"),
    [
        ("int8", "uint8", [(1, 1), (3, 5), (5, 67), (34, 130)]),
        ("float32", "uint16", [(257, 260), (300, 259)]),
    ],
)
def test_kernels_are_clean_under_address_and_undefined_sanitizers(dtype, index, shapes, sanitized, rng):
    program = sanitized(dtype, index)
    cases, products = [], []
    for shape in shapes:
        for name in FORMATS:
            for density, n in ((0.0, 1), (0.2, 1), (0.2, 35), (1.0, 16)):
                w = weights(rng, shape, density, dtype, two_four=name == "two_four")
                stored = RelativeIndex.encode(w, pes=3) if name == "relative" else sparse.encode(w, name)
                x = inputs(rng, shape[1], n, dtype)
                cases.append(as_case(stored, x))
                products.append((w, x))
    done = subprocess.run([program], input=b"".join(cases), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    sums, at = np.frombuffer(done.stdout, np.int32 if dtype == "int8" else np.float32), 0
    for w, x in products:
        y = sums[at : at + len(w) * x.shape[1]].reshape(len(w), -1)
        at += y.size
        assert (
            excess(w, x, y) <= 1 if dtype == "float32" else np.array_equal(y, w.astype(int) @ x.astype(int))
        )
    assert at == sums.size


@needs_gcc
@pytest.mark.parametrize(
    ("name", "field", "index", "value"),
    [
        ("csr", "indices", 0, 9),
        ("csc", "indices", 0, 9),
        ("csr", "pointers", -1, 200),
        ("bitmask", "mask", 0, 255),
    ],
)
def test_the_sanitizers_would_stop_an_index_outside_the_matrix(name, field, index, value, sanitized):
    program = sanitized("int8", "uint8")
    stored, x = sparse.encode(np.eye(8, dtype=np.int8), name), np.ones((8, 1), np.int8)

    def damage(arrays):
        arrays[field].reshape(-1)[index] = value

    good = subprocess.run([program], input=as_case(stored, x), capture_output=True, check=False)
    assert good.returncode == 0
    bad = subprocess.run([program], input=as_case(stored, x, damage), capture_output=True, check=False)
    assert bad.returncode != 0
    assert b"AddressSanitizer" in bad.stderr


# The benchmark ---------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark_module(repository):
    spec = importlib.util.spec_from_file_location("spmm_benchmark", repository / "benchmarks" / "spmm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_crossing_is_where_the_ratio_is_one(benchmark_module):
    crossing = benchmark_module.crossing
    # Sparse time proportional to density makes the ratio crossing / density, a straight line in logarithms.
    assert crossing({d: 0.37 / d for d in (0.9, 0.5, 0.3, 0.02)}) == pytest.approx(0.37, abs=1e-6)
    assert crossing({0.9: 2.0, 0.5: 0.5, 0.1: 0.9}) == crossing({0.9: 2.0, 0.5: 2.0, 0.1: 3.0}) is None
    # The control: plain interpolation between the same two points would say otherwise.
    assert crossing({0.4: 0.5, 0.1: 2.0}) == 0.2 != 0.1 + (2.0 - 1) / (2.0 - 0.5) * 0.3


def test_the_benchmark_measures_every_format_at_the_density_it_names(benchmark_module, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_module, "SHAPE", (8, 40))
    monkeypatch.setattr("benchmarks.timing.ROUND_SECONDS", 1e-5)
    for density in benchmark_module.DENSITIES:
        w = benchmark_module._weights(density, "int8", two_four=False)
        assert np.count_nonzero(w) == round(density * w.size)
    figures = benchmark_module.figures(rounds=1)
    for dtype in ("float32", "int8"):
        for name, density in (("csr", 5), ("csc", 90), ("bitmask", 2), ("relative", 30), ("two_four", 50)):
            assert f"spmm.{dtype}.n64.{name}.d{density:02}.ratio_median" in figures
    assert figures["spmm.int8.n1.two_four.d50.bytes"] == (8 * 10 * 2 + 8 * 5, "bytes")
    assert "median" in capsys.readouterr().out
