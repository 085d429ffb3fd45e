"""How sparse must a matrix be before a sparse kernel beats the dense one, and at what size in bytes?

Every ratio is dense time over sparse time (above 1 the sparse kernel is faster), both measured in the same
round, one right after the other, in processor time of one thread.  A table row has the minimum and the median
over the rounds.  The dense kernel itself is compared with NumPy's BLAS; in int8 it uses no dot-product
instructions, so that a tuned library would move the int8 crossings to lower densities.

Example: python -m benchmarks.spmm --rounds 15
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable

import numpy as np

from benchmarks.timing import time_ratios
from tinyml_edu.pruning import sparse
from tinyml_edu.pruning.sparse import SpmmKernel

SHAPE = (512, 1024)
DENSITIES = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
WIDTHS = (1, 64)
DTYPES = ("float32", "int8")
FORMATS = ("csr", "csc", "bitmask", "relative")


def figures(rounds: int = 9) -> dict[str, tuple[float, str]]:
    """Return ratios, crossing densities and bytes; prints a table."""
    results: dict[str, tuple[float, str]] = {}
    print(
        f"matrix {SHAPE[0]} x {SHAPE[1]}, n columns of input; dense time / sparse time over {rounds} rounds"
    )
    print("values     n  format    density     bytes  of dense    min  median")
    for dtype, n in itertools.product(DTYPES, WIDTHS):
        x = _random(np.random.default_rng(0), (SHAPE[1], n), dtype)
        for name in (*FORMATS, "two_four"):
            medians = {}
            for density in DENSITIES if name != "two_four" else (0.5,):
                w = _weights(density, dtype, two_four=name == "two_four")
                stored, dense = sparse.encode(w, name), sparse.encode(w, "dense")
                ratios = _ratios(SpmmKernel(dense, n), SpmmKernel(stored, n), x, rounds)
                medians[density] = statistics.median(ratios)
                share = stored.nbytes / dense.nbytes
                print(
                    f"{dtype:8} {n:3}  {name:8} {density:8.2f} {stored.nbytes:9,} {share:9.3f} "
                    f"{min(ratios):6.2f} {medians[density]:7.2f}"
                )
                key = f"spmm.{dtype}.n{n}.{name}.d{round(100 * density):02}"
                results[f"{key}.ratio_min"] = (round(min(ratios), 3), "dense time / sparse time")
                results[f"{key}.ratio_median"] = (round(medians[density], 3), "dense time / sparse time")
                results[f"{key}.bytes"] = (stored.nbytes, "bytes")
            if name != "two_four" and (density := crossing(medians)) is not None:
                results[f"spmm.{dtype}.n{n}.{name}.crossing_density"] = (round(density, 4), "density")
        results |= _against_blas(dtype, n, x, rounds)
    _print_crossings(results)
    return results


def crossing(medians: dict[float, float]) -> float | None:
    """Return the density at which the ratio is 1, or None if it never is.

    Parameters
    ----------
    medians : dict of float to float
        Density -> dense time over sparse time.

    Notes
    -----
    Of several crossings the lowest: below it the sparse kernel always won.  Between two measured densities
    the logarithms are interpolated linearly, since time is nearly proportional to density.

    Examples
    --------
    >>> crossing({0.4: 0.5, 0.1: 2.0})
    0.2
    >>> crossing({0.4: 0.5, 0.1: 0.8}) is None
    True
    """
    for (low, fast), (high, slow) in itertools.pairwise(sorted(medians.items())):
        if fast >= 1 > slow:
            share = math.log(fast) / (math.log(fast) - math.log(slow))
            return round(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), 6)
    return None


def _ratios(dense: SpmmKernel, other: SpmmKernel, x: np.ndarray, rounds: int) -> list[float]:
    return time_ratios(_ready(dense, x), _ready(other, x), rounds)


def _ready(kernel: SpmmKernel, x: np.ndarray) -> Callable[[], object]:
    out = kernel(x)
    return lambda: kernel(x, out)


def _weights(density: float, dtype: str, *, two_four: bool) -> np.ndarray:
    """Return random weights with exactly this share of them not zero; two of every four if asked."""
    rng = np.random.default_rng(1)
    rank = (
        rng.random((SHAPE[0] * SHAPE[1] // 4, 4) if two_four else (1, SHAPE[0] * SHAPE[1]))
        .argsort()
        .argsort()
    )
    keep = rank < round(density * rank.shape[1])
    return np.where(keep.reshape(SHAPE), _random(rng, SHAPE, dtype), 0).astype(dtype)


def _random(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> np.ndarray:
    if dtype == "int8":
        return rng.integers(1, 128, shape, dtype=np.int8)
    return rng.standard_normal(shape, dtype=np.float32)


def _against_blas(dtype: str, n: int, x: np.ndarray, rounds: int) -> dict[str, tuple[float, str]]:
    """Return how the dense baseline does against NumPy's BLAS, in float32 for int8 too: it has no int8."""
    w = _weights(1.0, dtype, two_four=False)
    floats, out = [w.astype(np.float32), x.astype(np.float32)], np.empty((SHAPE[0], n), np.float32)
    dense = _ready(SpmmKernel(sparse.encode(w, "dense"), n), x)
    ratios = time_ratios(lambda: np.matmul(*floats, out=out), dense, rounds)
    low, middle = min(ratios), statistics.median(ratios)
    print(f"{dtype:8} {n:3}  time of NumPy's float32 BLAS / of our dense: min {low:.2f}, median {middle:.2f}")
    return {f"spmm.{dtype}.n{n}.dense.blas_ratio_median": (round(middle, 3), "BLAS time / ours")}


def _print_crossings(results: dict[str, tuple[float, str]]) -> None:
    print("density below which the sparse kernel is faster (median ratio = 1):")
    for dtype, n, name in itertools.product(DTYPES, WIDTHS, FORMATS):
        found = results.get(f"spmm.{dtype}.n{n}.{name}.crossing_density")
        text = f"{found[0]:.3f}" if found else "none in the range measured"
        print(f"{dtype:8} {n:3}  {name:8} {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    figures(parser.parse_args().rounds)
