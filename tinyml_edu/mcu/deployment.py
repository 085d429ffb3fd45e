"""From an int8 graph to a project folder with a firmware image, and back from the folder to outputs.

`deploy` plans memory, generates C, compiles it for the board with the linker enforcing the budget, and
measures one inference on the emulated core.  Every figure of the report is one that the linker or the
emulator showed.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import DataError, DoesNotFitError, TinyMLError, UnknownNameError, UsageError
from ..ir.graph import Graph, Quant
from ..ir.ops import macs
from . import cgen, planning
from .boards import Board, get_board
from .forms import Form, forms, missing_flash
from .instruments import CELL_BYTES, ArenaTrace, rows_of
from .kernels.search import Search, measured_choice
from .planning import STACK_BYTES
from .project_folder import PLAN_FORMAT, check_target, replace_folder, write_texts, writing

TARGETS = ("host", "emulate")


@dataclass(frozen=True)
class RunResult:
    """Outputs of one or more inferences, and what one inference cost on the board.

    Attributes
    ----------
    outputs : ndarray of int8
        Codes, batch first, in the shape of the graph's output.
    instructions, estimated_cycles, stack_bytes : int or None
        Of one inference, the largest if they differ; None where the target was the host.
    estimated_ms : float or None
        ``estimated_cycles`` at the board's highest clock with zero wait states, milliseconds.
    layers : list of dict
        ``name, op, macs, instructions`` of each node; empty for the host.
    startup_instructions : int or None
        From reset to the first instruction of ``model_invoke``, once.
    mnemonics : dict of str to dict of str to int
        By node name, and ``model_invoke`` for what lies between the layers: how often each mnemonic ran in
        the last inference; empty for the host.
    trace : ArenaTrace or None
        Reads and writes of the arena, by node, over all inferences; if it was asked for.
    """

    outputs: np.ndarray
    instructions: int | None = None
    estimated_cycles: int | None = None
    estimated_ms: float | None = None
    stack_bytes: int | None = None
    layers: tuple[dict[str, Any], ...] = ()
    startup_instructions: int | None = None
    mnemonics: dict[str, dict[str, int]] = field(default_factory=dict)
    trace: ArenaTrace | None = None


@dataclass(frozen=True)
class _Port:
    """Where the network's input or output lies in the arena, and what its codes mean."""

    name: str
    shape: tuple[int, ...]
    offset: int
    quant: Quant

    @classmethod
    def of(cls, graph: Graph, plan: planning.Plan, name: str) -> _Port:
        tensor = graph[name]
        assert tensor.quant is not None  # cgen has checked it
        return cls(name, tensor.shape, plan.offsets[name], tensor.quant)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        scale, zero_point = self.quant.item()
        return {
            "name": self.name,
            "shape": list(self.shape),
            "offset": self.offset,
            "scale": scale,
            "zero_point": zero_point,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> _Port:
        quant = Quant.per_tensor(value["scale"], value["zero_point"])
        return cls(value["name"], tuple(value["shape"]), value["offset"], quant)


@dataclass(frozen=True)
class Deployment:
    """A deployed network: its folder, its report (keys of ``tinyml deploy --json``), and how to run it."""

    path: Path
    report: dict[str, Any]
    board: Board
    input: _Port
    output: _Port
    optimize: str
    nodes: tuple[dict[str, Any], ...]

    @classmethod
    def load(cls, path: str | Path) -> Deployment:
        """Open a folder that `deploy` wrote.

        Raises
        ------
        DataError
            If there is no ``plan.json``, or it is damaged or of another version.
        """
        path = Path(path)
        try:
            stored = json.loads((path / "plan.json").read_text(encoding="utf-8"))
            if stored["format"] != PLAN_FORMAT:
                raise DataError(f"{path} was written by another version ({stored['version']}); deploy again")
            return cls(
                path,
                stored["report"],
                Board(**stored["board"]),
                _Port.from_json(stored["input"]),
                _Port.from_json(stored["output"]),
                stored["optimize"],
                tuple(stored["nodes"]),
            )
        except FileNotFoundError:
            raise DataError(f"{path} holds no plan.json; name a folder that `deploy` wrote") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path / 'plan.json'} is damaged ({error!r}); deploy again") from error

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Return ``x`` as int8 codes (n, ...): floats are quantized with the input's scale.

        Raises
        ------
        UsageError
            If the shape is not (n, ...) of the network's input, n >= 1, or the type neither int8 nor float.
        """
        x = np.asarray(x)
        wanted = self.input.shape[1:]
        if x.ndim != len(wanted) + 1 or x.shape[1:] != wanted or not len(x):
            raise UsageError(
                f"the input must have shape (n, {', '.join(map(str, wanted))}), batch first, not {x.shape}"
            )
        if x.dtype == np.int8:
            return x
        if not np.issubdtype(x.dtype, np.floating):
            raise UsageError(f"the input must be int8 codes or float values, not {x.dtype}; convert it first")
        if not np.isfinite(x).all():
            raise UsageError("the input holds values that are infinite or not a number; clean it first")
        return self.input.quant.quantize(x)

    def run(
        self, x: np.ndarray, target: str = "host", *, trace: bool = False, cell_bytes: int = CELL_BYTES
    ) -> RunResult:
        """Run the compiled network.

        Parameters
        ----------
        x : ndarray (n, ...)
            int8 codes or float values, batch first.
        target : {"host", "emulate"}
            The same C on this computer, or the firmware image on the board's emulated core.
        trace : bool
            Count reads and writes of the arena, on the emulated core only (ten to thirty times slower).
        cell_bytes : int
            Bytes of the arena that the trace by layer takes together.
        """
        if target not in TARGETS:
            raise UnknownNameError("target", target, TARGETS)
        codes = self.codes(x)
        if target == "emulate":
            return self._run_emulated(codes, trace, cell_bytes)
        if trace:
            raise UsageError("only the emulated core traces the arena; use target='emulate'")
        return self._run_host(codes)

    def host_library(self) -> ctypes.CDLL:
        """Compile the folder's sources for this computer, unless the cache has them, and load the library."""
        from . import toolchain

        sources = sorted([*self.path.glob("*.c"), *self.path.glob("*.h")])
        flags = ["-DTE_WIDE=1"]  # vector units: same codes, in half of the time or less
        path = toolchain.compile_shared(
            sources, name="model", optimize=self.optimize, include=[self.path], flags=flags
        )
        library = ctypes.CDLL(str(path))
        for function in (library.model_input, library.model_output):
            function.restype = ctypes.c_void_p
        return library

    def _run_host(self, codes: np.ndarray) -> RunResult:
        library = self.host_library()
        outputs = np.empty((len(codes), *self.output.shape[1:]), np.int8)
        for code, output in zip(codes, outputs):
            data = code.tobytes()
            ctypes.memmove(library.model_input(), data, len(data))
            status = library.model_invoke()
            if status:
                raise TinyMLError(
                    f"model_invoke returned status {status}; the sources in {self.path} were changed"
                )
            output[...] = np.frombuffer(
                ctypes.string_at(library.model_output(), self.output.size_bytes), np.int8
            ).reshape(output.shape)
        return RunResult(outputs)

    def _run_emulated(self, codes: np.ndarray, trace: bool, cell_bytes: int) -> RunResult:
        from . import emulator

        result = emulator.emulate(
            self.path / "firmware.elf",
            self.board,
            codes.reshape(len(codes), -1),
            self.output.size_bytes,
            input_offset=self.input.offset,
            output_offset=self.output.offset,
            trace=trace,
            cell_bytes=cell_bytes,
        )
        rows = rows_of(self.nodes)
        layers = [
            {key: node[key] for key in ("name", "op", "macs")}
            | {"instructions": result.layer_instructions.get(node["symbol"], 0)}
            for node in self.nodes
        ]
        return RunResult(
            result.outputs.reshape(len(codes), *self.output.shape[1:]),
            result.instructions,
            result.estimated_cycles,
            result.estimated_ms,
            result.stack_bytes,
            tuple(layers),
            result.startup_instructions,
            {
                name: result.mnemonics[symbol]
                for symbol, name in [*rows.items(), ("model_invoke", "model_invoke")]
            },
            result.trace and result.trace.select(rows),
        )


def deploy(
    graph: Graph,
    board: str | Board,
    out: str | Path,
    *,
    requant: str = "exact",
    optimize: str = "speed",
    planner: str = "best",
    patch: str = "none",
    search: str = "model",
) -> Deployment:
    """Compile an int8 graph for a board and measure one inference.

    Parameters
    ----------
    graph : Graph
        int8, one input, one output.
    board : str or Board
        A key of `BOARDS`.
    out : path
        Folder to make: the C project, ``firmware.elf`` and ``plan.json``.  It is written beside its final
        place and renamed when complete; an earlier deployment there is replaced, any other folder with
        content is refused.
    requant : {"exact", "fast"}
        TensorFlow Lite's rounding, or one rounding everywhere.
    optimize : {"speed", "size"}
        A kernel for each shape of layer and ``-O3``, at the price of flash; or a few that all layers share
        and ``-Os``.  Either is for cores with the DSP extension; others get the plain kernels.  Where "speed"
        does not fit the flash, a smaller form of it is tried, then "size"; the report says which one is used
        (``optimize``) and why (``optimize_note``, "" if it is the one asked for).
    planner : str
        A key of `planning.PLANNERS`.
    patch : {"none"}
        Patch inference.
    search : {"model", "instructions", "cycles"}
        How specialised kernels are chosen: by a cost model, or by measuring all candidates of each layer on
        the board's emulated core and taking the set with the fewest instructions, or estimated cycles, that
        fits (seconds; the cache keeps what was measured).  The report then lists the candidates.

    Raises
    ------
    DoesNotFitError
        If SRAM or flash do not suffice: the bytes missing, what takes them, and what to try.
    UsageError, UnsupportedOpError
        See `cgen.generate`.
    DataError
        If the folder cannot be written.
    """
    if not isinstance(graph, Graph):
        raise UsageError(
            f"deploy takes an int8 ir.Graph, not {type(graph).__name__}; quantize and pass quantized.graph"
        )
    board, out = get_board(board), Path(out).resolve()
    if patch != "none":
        raise UsageError(f"patch={patch!r} is not available yet; use patch='none'")
    check_target(out)
    scratch = cgen.scratch_requests(graph, requant=requant, optimize=optimize)
    ordered = planning.reorder(graph, scratch).graph
    if ordered is not graph:
        graph, scratch = ordered, cgen.scratch_requests(ordered, requant=requant, optimize=optimize)
    plan = planning.plan(graph, board, planner=planner, scratch=scratch)
    options = {"requant": requant, "optimize": optimize, "planner": planner, "patch": patch, "search": search}
    chosen = measured_choice(graph, board, search, requant=requant, optimize=optimize)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            sources, built = _build(folder, graph, plan, board, options, chosen=chosen)
            write_texts(folder, {name: text for name, text in sources.items() if "/" in name})
            for name, content in cgen.example_files(graph, requant).items():
                (folder / name).write_bytes(content)
            _measure(folder, graph, plan, board, options, built=built)
            folder.chmod(0o755)
            replace_folder(folder, out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return Deployment.load(out)


@dataclass(frozen=True)
class _Built:
    """The form of the code that fits, its measured kernels if it has some, and why it is not the first."""

    form: Form
    chosen: Search | None
    note: str


def _build(
    folder: Path,
    graph: Graph,
    plan: planning.Plan,
    board: Board,
    options: dict[str, str],
    *,
    chosen: Search | None,
) -> tuple[dict[str, str], _Built]:
    """Generate and compile the first form that fits; measured kernels belong to the first form only."""
    candidates, note = forms(options["optimize"]), ""
    for form in candidates:
        try:
            sources, used = _generate(
                folder, graph, plan, board, requant=options["requant"], form=form, chosen=chosen
            )
            return sources, _Built(form, used, note and f"{note}; {form.name!r} is used instead")
        except DoesNotFitError as error:
            missing = missing_flash(error)
            if not missing or form == candidates[-1]:
                takers = _takers(str(error), graph, plan)
                raise DoesNotFitError(f"{graph.name}: {error}.  {takers}") from error
            note = note or f"{form.name!r} needs {missing:,} B more flash than {board.name} has"
            chosen = None
    raise AssertionError("forms() is never empty")


def _generate(
    folder: Path,
    graph: Graph,
    plan: planning.Plan,
    board: Board,
    *,
    requant: str,
    form: Form,
    chosen: Search | None,
) -> tuple[dict[str, str], Search | None]:
    """Generate and compile a form; where measured kernels overflow the flash, take ones that need less."""
    from . import toolchain

    while True:
        sources = cgen.generate(
            graph, plan, requant=requant, optimize=form.optimize, lean=form.lean, selection=chosen
        )
        for old in folder.iterdir():
            old.unlink()
        write_texts(folder, {name: text for name, text in sources.items() if "/" not in name})
        try:
            toolchain.compile_firmware(
                folder, board, optimize=form.optimize, out=folder / "firmware.elf", stack_bytes=STACK_BYTES
            )
            return sources, chosen
        except DoesNotFitError as error:
            missing = missing_flash(error)
            if chosen is None or not missing:
                raise
            try:
                chosen = chosen.within(chosen.flash_bytes - missing)
            except DoesNotFitError:
                raise error from None


def _takers(message: str, graph: Graph, plan: planning.Plan) -> str:
    """Say what takes the memory that the linker found missing."""
    parts = []
    if re.search(r"\bRAM\b", message):
        step, live = planning.peak(plan)
        parts.append(
            f"At the peak, node {graph.nodes[step].name}, these are live: "
            + ", ".join(f"{planning.short_name(b.name)} ({b.size_bytes:,} B)" for b in live)
            + "."
        )
    if re.search(r"\bFLASH\b", message):
        largest = sorted(graph.constants(), key=lambda t: -t.nbytes)[:3]
        parts.append(
            "The largest constants: "
            + ", ".join(f"{planning.short_name(t.name)} ({t.nbytes:,} B)" for t in largest)
            + "."
        )
    return "  ".join(parts)


def _measure(
    folder: Path,
    graph: Graph,
    plan: planning.Plan,
    board: Board,
    options: dict[str, str],
    *,
    built: _Built,
) -> None:
    """Write ``plan.json``: run one inference on the emulated core and read the image's sections."""
    from . import elf

    symbols, costs = cgen.layer_symbols(graph, plan), macs(graph)
    nodes = tuple(
        {"name": node.name, "op": node.op, "macs": costs[node.name], "symbol": symbols.get(node.name, "")}
        for node in graph.nodes
    )
    source, target = (_Port.of(graph, plan, name) for name in (graph.inputs[0], graph.outputs[0]))
    draft = Deployment(folder, {}, board, source, target, built.form.optimize, nodes)
    # Any input will do for sizes and counts; random codes take every branch that a real one might.
    probe = np.random.default_rng(0).integers(-128, 128, (1, *source.shape[1:]), dtype=np.int8)
    measured = draft.run(probe, target="emulate")
    image = elf.read_elf(folder / "firmware.elf")
    assert measured.stack_bytes is not None
    layers = [
        layer | ({"candidates": built.chosen.rows(layer["name"])} if built.chosen else {})
        for layer in measured.layers
    ]
    arena = image.data + image.bss
    scratch_bytes = max((b.size_bytes for b in plan.buffers if b.kind == "scratch"), default=0)
    report = {
        "model": graph.name,
        "board": board.name,
        "core": board.core,
        "requant": options["requant"],
        "optimize": built.form.name,
        "optimize_note": built.note,
        "planner": options["planner"],
        "patch": options["patch"],
        "search": options["search"] if built.chosen else "model",
        "macs": sum(costs.values()),
        "arena_bytes": plan.arena_bytes,
        "lower_bound_bytes": plan.lower_bound_bytes,
        "proven_optimal": plan.proven_optimal,
        "sram_bytes": {
            "input": source.size_bytes,
            "activations": arena - source.size_bytes - scratch_bytes,
            # The largest that one kernel has in the arena; what lies on the stack is counted there.
            "scratch": scratch_bytes,
            "stack": measured.stack_bytes,
            "total": arena + measured.stack_bytes,
        },
        "instructions": measured.instructions,
        "estimated_cycles": measured.estimated_cycles,
        "estimated_ms": measured.estimated_ms,
        "flash_bytes": {"code": image.code, "weights": image.weights, "total": image.flash_bytes},
        "layers": layers,
    }
    stored = {
        "format": PLAN_FORMAT,
        "version": __version__,
        "report": report,
        "board": asdict(board),
        "optimize": built.form.optimize,
        "input": source.to_json(),
        "output": target.to_json(),
        "nodes": list(nodes),
        "files": sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()),
        "offsets": plan.offsets,
        "buffers": [vars(b) | {"offset": plan.offsets[b.name]} for b in plan.buffers],
    }
    (folder / "plan.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
