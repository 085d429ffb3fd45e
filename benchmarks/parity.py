"""How many int8 outputs equal those of LiteRT's reference kernels, per op and per network?

Ops: random one-op graphs over shapes, strides, dilations, paddings, scales and saturated inputs, each written
by `ir.write_tflite` and run by LiteRT, the cases of ``tests/ir/litert_cases.py``.  Networks: every layer of
the three MLPerf Tiny files, as published and as written again, and of the course's own networks, trained
where there is a checkpoint.  "fast" is the largest difference, in codes, that rounding once makes in a layer
with the same inputs.

LiteRT computes SOFTMAX in float32, and of millions of outputs a few lie so near a tie that float32 cannot
tell; ``tests/ir/test_ops_against_litert.py`` shows that where the two differ it is one of these.

Example: python -m benchmarks.parity --quick
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from tinyml_edu import ir
from tinyml_edu.ir.tflite_writer import tflite_bytes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "ir"))

from litert_cases import CASES, case
from litert_oracle import Comparison, codes, compare

SEEDS, QUICK_SEEDS = 3000, 50
MLPERF = {"kws": "kws_ref_model", "vww": "vww_96_int8", "image": "pretrainedResnet_quant"}
SHAPES = {
    "vgg_lite": (3, 32, 32),
    "resnet8": (3, 32, 32),
    "mobilenet_v2_tiny": (3, 32, 32),
    "ds_cnn": (1, 49, 10),
}
"""Channels, height and width of each network of `models`."""


def figures(*, quick: bool = False) -> dict[str, tuple[float, str]]:
    """Return outputs compared and different, by op and network; prints a table."""
    results: dict[str, tuple[float, str]] = {}
    print(f"{'op or network':24} {'compared':>12} {'different':>10} {'fast':>5}")
    for name, parts in chain(_ops(QUICK_SEEDS if quick else SEEDS), _networks(quick)):
        total = _total(parts)
        print(f"{name:24} {total.compared:12,} {total.different:10,} {total.fast:5}", flush=True)
        results[f"parity.{name}.compared"] = (total.compared, "outputs")
        results[f"parity.{name}.different"] = (total.different, "outputs")
        results[f"parity.{name}.fast_largest_difference"] = (total.fast, "codes")
    return results


def _total(parts: Iterator[Comparison]) -> Comparison:
    compared, different, fast = zip(*parts, strict=True)
    return Comparison(sum(compared), sum(different), max(fast))


def _ops(seeds: int) -> Iterator[tuple[str, Iterator[Comparison]]]:
    for op in CASES:
        yield op.lower(), _one_op(op, seeds)


def _one_op(op: str, seeds: int) -> Iterator[Comparison]:
    for seed in range(seeds):
        graph, rng = case(op, seed)
        yield compare(graph, tflite_bytes(graph), [codes(rng, graph[name].shape) for name in graph.inputs])


def _networks(quick: bool) -> Iterator[tuple[str, Iterator[Comparison]]]:
    inputs = 1 if quick else 4
    folder = Path(os.environ.get("TINYML_EDU_DATA", "")) / "mlperf_tiny"
    if folder.is_dir():
        for key, name in MLPERF.items():
            yield key, _published(folder / f"{name}.tflite", inputs)
    else:
        print("no mlperf_tiny folder in $TINYML_EDU_DATA: its three networks are left out")
    for name in SHAPES:
        yield name, iter([_own(name, inputs)])


def _inputs(graph: ir.Graph, n: int) -> list[list[np.ndarray]]:
    return [codes(np.random.default_rng(0), graph[graph.inputs[0]].shape)[:n]]


def _published(path: Path, inputs: int) -> Iterator[Comparison]:
    """Yield the comparison with the file itself and with what the writer makes of it."""
    graph = ir.read_tflite(path)
    for content in (path.read_bytes(), tflite_bytes(graph)):
        yield compare(graph, content, _inputs(graph, inputs))


def _own(name: str, inputs: int) -> Comparison:
    """Quantize a network of the zoo on noise, for which outputs are compared and no accuracy, and compare."""
    import torch

    from tinyml_edu import models, zoo
    from tinyml_edu.quantization import quantize

    torch.set_num_threads(1)
    torch.manual_seed(0)
    trained = next((n for n in zoo.names() if n.split(".")[0] == name), None)
    network = zoo.load(trained)[0] if trained else models.build(name, in_channels=SHAPES[name][0])
    graph = quantize(network.eval(), None, torch.randn(8, *SHAPES[name])).graph
    return compare(graph, tflite_bytes(graph), _inputs(graph, inputs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SEEDS} cases an op, one input a network"
    )
    figures(quick=parser.parse_args().quick)
