"""Compile many generated networks into one host library, with optional mutations of the runtime's text."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tinyml_edu.ir.graph import Graph
from tinyml_edu.mcu import cgen, planning, toolchain

RUNTIME = Path(cgen.__file__).parent / "runtime"
DRIVER = Path(__file__).parents[1] / "c" / "driver.c"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")

# Names of model.c and model.h that would clash if several networks stood in one file.
_LOCAL = re.compile(
    r"(?<!\.)\b(model_\w+|te_arena|MODEL_\w+|TE_LAYER|TE_NOINLINE|(?:w|bias|multiplier|exponent|params|table|sizes|rows|columns|x\d?)_\d+)\b"
)

Mutation = tuple[str, str, str]
"""(file, old text, new text); the old text must be there."""


def write_networks(
    folder: Path,
    graphs: Sequence[Graph],
    *,
    requant: str = "exact",
    mutation: Mutation | None = None,
    in_place: bool = False,
) -> list[Path]:
    """Write all kernels and one ``networks.c`` that holds each network under a prefix; return sources.

    Without ``in_place`` no result lies over an operand, so each op calls the kernel named after it.
    """
    texts: dict[str, str] = {p.name: p.read_text() for p in [*RUNTIME.iterdir(), DRIVER.with_suffix(".h")]}
    parts = []
    for k, graph in enumerate(graphs):
        files = cgen.generate(graph, planning.plan(graph, in_place=in_place), requant=requant)
        texts["te_config.h"] = files["te_config.h"]
        both = files["model.h"] + files["model.c"].replace('#include "model.h"\n', "")
        parts.append(_LOCAL.sub(rf"g{k}_\1", both))
    texts["networks.c"] = "\n".join(parts) + _table(len(graphs))
    if mutation:
        name, old, new = mutation
        assert old in texts[name], f"{name} no longer holds {old!r}: the mutation would test nothing"
        texts[name] = texts[name].replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return sorted(folder.glob("*.[ch]"))


def _table(count: int) -> str:
    rows = "".join(
        f"    {{g{k}_model_input, g{k}_model_output, g{k}_model_invoke,"
        f" g{k}_MODEL_INPUT_COUNT, g{k}_MODEL_OUTPUT_COUNT}},\n"
        for k in range(count)
    )
    table = f"const network networks[] = {{\n{rows}}};\nconst int network_count = {count};\n"
    return f'\n#include "driver.h"\n{table}'


def build(folder: Path, graphs: Sequence[Graph], **options) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Return one function a graph: int8 (n, ...) in, int8 (n, output bytes) out, computed by compiled C."""
    return runners(folder, write_networks(folder, graphs, **options), graphs)


def runners(
    folder: Path, sources: Sequence[Path], graphs: Sequence[Graph]
) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Compile what `write_networks` wrote and return `build`'s functions."""
    library = ctypes.CDLL(
        str(
            toolchain.compile_shared(
                sources, name="networks", include=[folder], optimize="speed", flags=STRICT
            )
        )
    )
    return [_runner(library, f"g{k}_", graph) for k, graph in enumerate(graphs)]


def _runner(library: ctypes.CDLL, prefix: str, graph: Graph) -> Callable[[np.ndarray], np.ndarray]:
    source, target = library[prefix + "model_input"], library[prefix + "model_output"]
    source.restype = target.restype = ctypes.c_void_p
    size = graph[graph.outputs[0]].nbytes

    def run(x: np.ndarray) -> np.ndarray:
        rows = []
        for code in x:
            ctypes.memmove(source(), code.tobytes(), code.size)
            status = library[prefix + "model_invoke"]()
            assert status == 0, (graph.name, status)
            rows.append(np.frombuffer(ctypes.string_at(target(), size), np.int8))
        return np.stack(rows)

    return run


def run_sanitized(
    folder: Path, graphs: Sequence[Graph], batches: Iterable[np.ndarray], n: int, **options
) -> list[np.ndarray]:
    """Run every graph on its (n, ...) batch in one program under two sanitizers (address, undefined)."""
    sources = [p for p in write_networks(folder, graphs, **options) if p.suffix == ".c"]
    program = folder / "driver"
    sanitizers = ["-DTE_DEBUG", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["gcc", *STRICT, "-O1", "-g", *sanitizers, f"-I{folder}", *map(str, sources), str(DRIVER)]
    subprocess.run([*command, "-o", str(program)], check=True)
    data = b"".join(batch.tobytes() for batch in batches)
    done = subprocess.run([program, str(n)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    outputs, at = [], 0
    for graph in graphs:
        size = graph[graph.outputs[0]].nbytes
        outputs.append(np.frombuffer(done.stdout[at : at + n * size], np.int8).reshape(n, size))
        at += n * size
    assert at == len(done.stdout)
    return outputs


def differences(
    graphs: Sequence[Graph],
    runners: Sequence[Callable],
    expected: Mapping[str, np.ndarray],
    x: Mapping[str, np.ndarray],
) -> dict[str, int]:
    """Return, for each graph that C and NumPy compute differently, the number of different codes."""
    counts = {
        g.name: int(np.count_nonzero(run(x[g.name]).ravel() != expected[g.name].ravel()))
        for g, run in zip(graphs, runners, strict=True)
    }
    return {name: count for name, count in counts.items() if count}
