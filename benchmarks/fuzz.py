"""Does the runtime compute what NumPy does on layers by the hundred thousand, and what do damaged files do?

Layers: random legal ones of every op, over shapes, strides, dilations, paddings, multipliers, scales and zero
points, on random and on saturated codes, in both roundings.  Each is emitted by the generator, called in the
C runtime on the host and compared with the NumPy kernel bit for bit; bytes around its buffers must stay as
they were.  Files: valid ones with bytes flipped, cut, spliced, and with lengths, offsets, shapes and scales
changed.  Each gives one of our errors in one line, or a graph, which is then planned, run and compared with
LiteRT; never another exception, a crash, a hang or a gigabyte.

A run is told where to begin by ``--first``, and prints where the next one begins.

Example: python -m benchmarks.fuzz --layers 2000 --files 500
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "mcu"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "ir"))

import mutated_files
from direct_layers import Layer, library
from litert_cases import CASES, case
from random_graphs import random_layer

from tinyml_edu import ir

LAYERS, FILES = 100_000, 10_000
MODES = ("exact", "fast")


def figures() -> dict[str, tuple[float, str]]:
    """Return what was compared, and how much differed; prints a table."""
    return layers(LAYERS) | files(FILES)


def layers(
    count: int, *, first: int = 0, seconds: float = 1e9, sanitized: bool = False
) -> dict[str, tuple[float, str]]:
    """Compare ``count`` layers, the ops in turn, and print a line for each op."""
    start, total, codes, different = time.monotonic(), Counter(), Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) if sanitized else None
        libraries = {mode: library(fast=mode == "fast", sanitized_in=place) for mode in MODES}
        for number in range(first, first + count):
            op = list(CASES)[number % len(CASES)]
            compared, wrong = compare_layer(op, number // len(CASES), libraries)
            total[op], codes[op], different[op] = total[op] + 1, codes[op] + compared, different[op] + wrong
            if time.monotonic() - start > seconds:
                break
    print(f"{'op':24} {'layers':>8} {'outputs':>12} {'different':>10}")
    for op in total:
        print(f"{op:24} {total[op]:8,} {codes[op]:12,} {different[op]:10,}")
    done = total.total()
    print(f"{done:,} layers, {codes.total():,} outputs, {different.total()} different,", end=" ")
    print(f"{time.monotonic() - start:.0f} s; next --first {first + done}", flush=True)
    return {
        "fuzz.layers.compared": (done, "layers"),
        "fuzz.layers.outputs": (codes.total(), "outputs"),
        "fuzz.layers.different": (different.total(), "outputs"),
    }


def compare_layer(op: str, seed: int, libraries: dict) -> tuple[int, int]:
    """Return the outputs compared and those that differ, of one layer in every rounding."""
    # Two generators: one pads and crops at will, the other has wider scales and options.
    graph = random_layer(op, 10_000 + seed) if seed % 2 else case(op, 10_000 + seed)[0]
    layer, inputs = Layer(graph), codes_for(graph, seed)
    compared = wrong = 0
    for mode, lib in libraries.items():
        want = ir.run(graph, inputs, requant=mode)
        images = len(next(iter(inputs.values())))
        for i in range(images):
            rows = len(want) // images
            got = layer.run(lib, *(x[i : i + 1] for x in inputs.values()))
            compared += got.size
            wrong += int(np.count_nonzero(got != want[i * rows : (i + 1) * rows]))
    if wrong:
        print(f"{op} with seed {seed}: {wrong} of {compared} outputs differ")
    return compared, wrong


def codes_for(graph: ir.Graph, seed: int) -> dict[str, np.ndarray]:
    """Return two images for each input: uniform codes, and codes at the ends, all alike one time in two."""
    rng = np.random.default_rng([seed, 5])
    ends = np.array([-128, 127], np.int8)
    result = {}
    for name in graph.inputs:
        shape = graph[name].shape
        extreme = rng.choice(ends, shape if rng.random() < 0.5 else (1,) * len(shape))
        uniform = rng.integers(-128, 128, shape, dtype=np.int8)
        result[name] = np.concatenate([uniform, np.broadcast_to(extreme, shape)])
    return result


def files(count: int, *, first: int = 0, seconds: float = 1e9) -> dict[str, tuple[float, str]]:
    """Judge ``count`` damaged files and print how many came to which end."""
    start, verdicts = time.monotonic(), Counter()
    for number, verdict in mutated_files.judged(range(first, first + count), seconds):
        verdicts[verdict.kind] += 1
        if verdict.is_defect:
            print(f"file {number}: {verdict.kind}: {verdict.text}", flush=True)
    for kind, n in sorted(verdicts.items()):
        print(f"{kind:24} {n:8,}")
    done, defects = verdicts.total(), sum(verdicts[kind] for kind in mutated_files.DEFECTS)
    print(f"{done:,} files, {defects} defects, {time.monotonic() - start:.0f} s; next --first {first + done}")
    return {"fuzz.files.judged": (done, "files"), "fuzz.files.defects": (defects, "files")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=0, metavar="N", help="layers to compare")
    parser.add_argument("--files", type=int, default=0, metavar="N", help="damaged files to judge")
    parser.add_argument(
        "--seconds", type=float, default=1e9, metavar="S", help="stop each part after S seconds"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first layer or file")
    parser.add_argument("--sanitized", action="store_true", help="kernels stop on undefined behaviour (gcc)")
    options = parser.parse_args()
    nothing = not (options.layers or options.files)
    results = {}
    if options.layers or nothing:
        results |= layers(
            options.layers or LAYERS,
            first=options.first,
            seconds=options.seconds,
            sanitized=options.sanitized,
        )
    if options.files or nothing:
        results |= files(options.files or FILES, first=options.first, seconds=options.seconds)
    if any(value for key, (value, _) in results.items() if key.endswith(("different", "defects"))):
        raise SystemExit("something differs: the lines above name it")


if __name__ == "__main__":
    main()
