"""How fast is the host build beside LiteRT, one thread each?

The same ``.tflite`` networks and inputs through our C, compiled for this computer, through LiteRT's reference
kernels (BUILTIN_REF, whose codes ours must equal) and through LiteRT with XNNPACK.  The two of a pair run in
turn in one thread (`timing`); a ratio above 1 says that ours takes less time.

Example: python -m benchmarks.host_speed
"""

from __future__ import annotations

import ctypes
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinyml_edu import ir, mcu
from tinyml_edu.errors import DataError

from .mcu import BOARD, NETWORKS
from .timing import time_ratios

ROUNDS = 31


def figures() -> dict[str, tuple[float, str]]:
    """Return the median ratios of time, LiteRT over ours, for each network; prints a table."""
    from ai_edge_litert.interpreter import OpResolverType

    root = os.environ.get("TINYML_EDU_DATA")
    if not root:
        raise DataError("TINYML_EDU_DATA is not set; point it at the folder that holds mlperf_tiny/")
    results: dict[str, tuple[float, str]] = {}
    print(f"{'network':8} {'LiteRT kernels':14} {'LiteRT / ours':>14} {'quartiles':>15}")
    for name, file in NETWORKS.items():
        path = Path(root) / "mlperf_tiny" / file
        graph = ir.read_tflite(path)
        codes = np.random.default_rng(0).integers(-128, 128, graph[graph.inputs[0]].shape, dtype=np.int8)
        with tempfile.TemporaryDirectory() as folder:
            ours, output = _ours(graph, Path(folder) / "net", codes)
            for key, resolver in (
                ("builtin_ref", OpResolverType.BUILTIN_REF),
                ("xnnpack", OpResolverType.AUTO),
            ):
                invoke, theirs = _litert(path, resolver, codes)
                if key == "builtin_ref" and not np.array_equal(output, theirs):
                    raise DataError(
                        f"{name}: our codes are not those of LiteRT's reference; nothing to compare"
                    )
                ratios = time_ratios(invoke, ours, ROUNDS)
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(f"{name:8} {key:14} {middle:14.2f} {low:7.2f}..{high:.2f}", flush=True)
                results[f"mcu_host.{name}.vs_{key}"] = (
                    round(middle, 3),
                    f"time of LiteRT {key} / ours, 1 thread",
                )
    return results


def _ours(graph: ir.Graph, folder: Path, codes: np.ndarray) -> tuple[Callable[[], object], np.ndarray]:
    """Return a call of one inference by compiled C and the output of the first."""
    library = mcu.deploy(graph, BOARD, folder).host_library()
    ctypes.memmove(library.model_input(), codes.tobytes(), codes.size)
    library.model_invoke()
    size = graph[graph.outputs[0]].nbytes
    output = np.frombuffer(ctypes.string_at(library.model_output(), size), np.int8).copy()
    # Later calls read what earlier ones left in the input's memory: other codes, the same work.
    return library.model_invoke, output


def _litert(path: Path, resolver: object, codes: np.ndarray) -> tuple[Callable[[], object], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], codes)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).ravel().copy()
    return interpreter.invoke, output


if __name__ == "__main__":
    figures()
