"""How much faster is a product of bits than one of floats, and how much smaller?

Every ratio is the time of a float32 product over that of the product of bits (above 1 the bits are faster),
both measured in the same round, one right after the other, in processor time of one thread.  Two float
products: our own in plain C (``te_spmm_dense``), built by the same compiler with the same flags, and torch's,
a tuned library.  The input's signs have to be packed before a product: "with_packing" adds that time,
"product" leaves it out, as where the layer before hands on bits.

Example: python -m benchmarks.xnor --rounds 15
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import time_ratios
from tinyml_edu._threads import torch_threads
from tinyml_edu.pruning import sparse
from tinyml_edu.pruning.sparse import SpmmKernel
from tinyml_edu.quantization.runtime.xnor import XnorKernel, pack_bits, sign_gemm

SHAPES = ((512, 1024, 1), (512, 1024, 64), (128, 1152, 64), (1024, 1024, 256))
"""(rows, cols, n): a vector, a batch of 64, a 3×3 convolution of 128 channels on 8×8 pixels, a square."""


def figures(rounds: int = 9) -> dict[str, tuple[float, str]]:
    """Return ratios and bytes; prints a table."""
    results: dict[str, tuple[float, str]] = {}
    print(f"(rows, cols) times (cols, n); time in float32 / time in bits over {rounds} rounds")
    print("rows  cols     n  against  what              min  median")
    for rows, cols, n in SHAPES:
        rng = np.random.default_rng(0)
        w, x = (rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, cols), (cols, n)))
        packed = pack_bits(w)
        print(f"{rows:4} {cols:5} {n:5}  weights: {w.nbytes:,} bytes in float32, {packed.nbytes:,} as bits")
        results[f"xnor.{rows}x{cols}.weight_bytes"] = (packed.nbytes, "bytes")
        results[f"xnor.{rows}x{cols}.float_bytes"] = (w.nbytes, "bytes")
        for (peer, what), ratios in _measure(w, x, rounds).items():
            low, middle = min(ratios), statistics.median(ratios)
            print(f"{rows:4} {cols:5} {n:5}  {peer:8} {what:13} {low:7.2f} {middle:7.2f}")
            key = f"xnor.{rows}x{cols}.n{n}.{peer}.{what}"
            results[f"{key}.ratio_min"] = (round(low, 3), "float32 time / bits time")
            results[f"{key}.ratio_median"] = (round(middle, 3), "float32 time / bits time")
    return results


def _measure(w: np.ndarray, x: np.ndarray, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the time ratios of one shape by (float product, what the bits' time holds)."""
    n = x.shape[1]
    kernel, dense = XnorKernel(pack_bits(w), n), SpmmKernel(sparse.encode(w, "dense"), n)
    words, sums, y = kernel.pack(x), np.empty((len(w), n), np.int32), dense(x)
    tensors = [torch.from_numpy(a) for a in (w, x)]
    product = torch.empty(len(w), n)
    floats: dict[str, Callable[[], object]] = {
        "c_float": lambda: dense(x, y),
        "torch": lambda: torch.mm(*tensors, out=product),
    }
    bits: dict[str, Callable[[], object]] = {
        "product": lambda: kernel(words, sums),
        "with_packing": lambda: kernel(kernel.pack(x, words), sums),
    }
    result = {}
    with torch_threads(1):
        for peer, float_call in floats.items():
            for what, call in bits.items():
                result[peer, what] = time_ratios(float_call, call, rounds)
    # What was timed must also be right.
    assert np.array_equal(sums, sign_gemm(w, x))
    assert np.allclose(y, product.numpy(), atol=1e-3 * math.sqrt(w.shape[1]))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    arguments = parser.parse_args()
    figures(3 if arguments.quick else arguments.rounds)
