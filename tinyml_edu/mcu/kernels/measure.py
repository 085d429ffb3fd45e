"""What kernels of layers cost on a core: instructions and cycles that the emulator counts, bytes of code.

Layers are compiled alone, many into one image, each as the function that it is in a deployed network; only
where its tensors lie differs.  The specialised kernels have no branch that depends on data, so all layers
share one array of zeros for their constants, and layers of one shape are measured once.  Results stay in the
`compile_cache` under everything that they depend on.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ...ir.graph import Graph, Node
from .. import cgen, cycles, elf, emulator, toolchain
from ..boards import Board
from ..cgen_layers import C_TYPES, EMITTERS, Emitter, fast_body, function_text, plain_body
from ..compile_cache import built_beside, cached
from ..planning import ALIGNMENT, STACK_BYTES, placed
from .selection import Fast

_SYMBOL, _STREAM = "model_layer_", "te_stream"
_FUNCTION = re.compile(r"^TE_NOINLINE static void (\w+)\(", re.MULTILINE)
_FLASH_BYTES = 64 * 1024 * 1024
_BATCH_BYTES = 1_000_000  # of C a compiler run


@dataclass(frozen=True)
class Cost:
    """What one inference of a layer costs.

    Attributes
    ----------
    instructions, cycles : int
        From the entry of the layer's function to its return; cycles are estimated, see `mcu.cycles`.
    own_bytes : int
        Code of the layer's function.
    shared_bytes : dict of str to int
        Code of the functions that it calls, by the name that stands in `Fast.sources`: layers of one shape
        have them together.  A plain kernel's is that of the runtime's function.
    """

    instructions: int
    cycles: int
    own_bytes: int
    shared_bytes: dict[str, int]

    @property
    def code_bytes(self) -> int:
        """Code of the layer if it shares with no other."""
        return self.own_bytes + sum(self.shared_bytes.values())


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer to measure: the C of its functions by name ("" for the runtime's), and of its own function."""

    sources: dict[str, str]
    body: str
    arena_bytes: int
    stream_words: int

    def key(self) -> list[str]:
        return [*self.sources.values(), self.body, str(self.arena_bytes)]


def measure(
    graph: Graph, requests: Sequence[tuple[Node, Fast | None]], board: Board, requant: str = "exact"
) -> list[Cost]:
    """Return what each node costs with each kernel on the board's core; None stands for its plain kernel.

    Raises
    ------
    ToolchainError
        If the compiler or the emulator is missing or fails.
    """
    layers = [_layer(graph, node, fast) for node, fast in requests]
    board = _roomy(board, max((layer.arena_bytes for layer in layers), default=0))
    paths = [_path(layer, board, requant) for layer in layers]
    missing = {path: layer for path, layer in zip(paths, layers) if not path.exists()}
    for batch in _batches(missing):
        for path, cost in zip(batch, _run(list(batch.values()), board, requant)):
            with built_beside(path) as scratch:
                scratch.write_text(json.dumps(asdict(cost)), encoding="utf-8")
    return [Cost(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def _roomy(board: Board, arena_bytes: int) -> Board:
    """Return a board of the same core on which any number of layers fits."""
    sram = -(-(arena_bytes + 4 * STACK_BYTES) // 4096) * 4096
    return replace(board, name=f"{board.core}-kernels", flash_bytes=_FLASH_BYTES, sram_bytes=sram)


def _path(layer: _Layer, board: Board, requant: str) -> Path:
    """Return where a layer's cost stands in the cache, or will stand."""
    tools = [*toolchain.what_decides_code(board), requant]
    return cached("kernel", ".json", [Path(__file__), Path(cycles.__file__)], [*layer.key(), *tools])


def _batches(layers: dict[Path, _Layer]) -> list[dict[Path, _Layer]]:
    """Return the layers in parts that one compiler run takes."""
    result: list[dict[Path, _Layer]] = []
    room = 0
    for path, layer in layers.items():
        size = sum(map(len, layer.key()))
        if not result or size > room:
            result.append({})
            room = _BATCH_BYTES
        result[-1][path] = layer
        room -= size
    return result


def _layer(graph: Graph, node: Node, fast: Fast | None) -> _Layer:
    """Return a layer whose tensors lie one behind the other."""
    offsets, end = {}, 0
    for name in [*node.inputs, *node.outputs]:
        if graph[name].data is None and name not in offsets:
            offsets[name] = end
            end += -(-graph[name].nbytes // ALIGNMENT) * ALIGNMENT
    parts = EMITTERS[node.op](_WithoutConstants(graph, placed(offsets, end)), 0, node)
    if fast is None:
        words = max((graph[name].nbytes // 4 + 1 for name in node.inputs), default=0)
        # Definitions inside the function: every layer has a params_0.
        return _Layer({parts.kernel: ""}, "\n".join([*parts.definitions, plain_body(parts)]), end, words)
    sources = {name: text for name, (text, _) in fast.sources.items()}
    return _Layer(sources, fast_body(parts, fast, _STREAM), end, fast.stream.size)


class _WithoutConstants(Emitter):
    """Emits layers whose weights and biases are the shared zeros; multipliers stay."""

    def pointer(self, name: str, parts: list[str], stem: str) -> str:
        if self.graph[name].data is None:
            return super().pointer(name, parts, stem)
        return f"(const {C_TYPES[self.graph[name].dtype]} *){_STREAM}"


def _run(layers: list[_Layer], board: Board, requant: str) -> list[Cost]:
    """Compile layers into one image and run it once."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kernels = [name for layer in layers for name, text in layer.sources.items() if not text]
        texts = cgen.runtime_files(["te_runtime.h", *(f"{name}.c" for name in kernels)], requant)
        for name, text in (texts | _program(layers)).items():
            (folder / name).write_text(text, encoding="utf-8")
        path = toolchain.compile_firmware(
            folder, board, out=folder / "firmware.elf", stack_bytes=4 * STACK_BYTES
        )
        watch = tuple(f"{_SYMBOL}{i}" for i in range(len(layers)))
        machine = emulator.Machine(path, board, watch=watch)
        machine.infer(b"\0", 0, 1, 0)
        result = machine.result(np.zeros((1, 1), np.int8))
        symbols = elf.read_elf(path).symbols
    return [_cost(i, layer, result, symbols) for i, layer in enumerate(layers)]


def _cost(i: int, layer: _Layer, result: emulator.EmulationResult, symbols: dict[str, elf.Symbol]) -> Cost:
    symbol = f"{_SYMBOL}{i}"
    shared = {
        # A function that the compiler has proven unused or has inlined is no symbol.
        name: sum(symbols[each].size for each in _FUNCTION.findall(text) or [name] if each in symbols)
        for name, text in layer.sources.items()
    }
    return Cost(result.layer_instructions[symbol], result.layer_cycles[symbol], symbols[symbol].size, shared)


def _program(layers: list[_Layer]) -> dict[str, str]:
    """Return the C files of an image that runs each layer once."""
    texts: list[str] = []
    seen: set[str] = set()
    for i, layer in enumerate(layers):
        texts += [text for name, text in layer.sources.items() if name not in seen]
        seen |= layer.sources.keys()
        texts.append(function_text(f"{_SYMBOL}{i}", layer.body))
    symbols = [f"{_SYMBOL}{i}" for i in range(len(layers))]
    words = max(1, *(layer.stream_words for layer in layers))
    arena = max(layer.arena_bytes for layer in layers)
    return {
        "model.c": cgen.model_c("kernels to measure", symbols, "\n".join(texts)),
        "model.h": _HEADER.format(arena=arena, stream=_STREAM, words=words),
        "stream.c": f'#include "model.h"\nconst uint32_t {_STREAM}[{words}] = {{0}};\n',
    }


_HEADER = """\
#include "te_runtime.h"
#define MODEL_ARENA_BYTES {arena}
#define MODEL_INPUT_OFFSET 0
#define MODEL_OUTPUT_OFFSET 0
extern int8_t te_arena[MODEL_ARENA_BYTES];
extern const uint32_t {stream}[{words}];
int8_t *model_input(void);
const int8_t *model_output(void);
te_status model_invoke(void);
"""
