"""Code generator: an int8 graph and its memory plan become a C99 project that builds on its own.

`generate` returns every file as text and derives no number: multipliers, shifts, clamps and tables come from
`ir.int_params`, offsets from the plan.  What one node becomes is in `cgen_layers`; Makefile, README and the
example program are templates in ``project/``, the kernels are copied from ``runtime/``.
"""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template

import numpy as np

from ..errors import UnknownNameError, UnsupportedOpError, UsageError
from ..ir.execute import run
from ..ir.fixed_point import REQUANT_MODES
from ..ir.graph import Graph, Kind
from ..ir.ops import macs
from .boards import QEMU_M4
from .cgen_layers import EMITTERS, Emitter, Layer, comment_text
from .kernels.compact import CompactSelection
from .kernels.selection import Chooser, Selection
from .planning import Plan, PlanError, moves_nothing, verify, verify_values
from .toolchain import linker_script

OPTIMIZE_FLAGS = {"speed": "-O3", "size": "-Os"}

_RUNTIME = files("tinyml_edu.mcu") / "runtime"
_PROJECT = files("tinyml_edu.mcu") / "project"
_FIRMWARE = files("tinyml_edu.mcu") / "firmware"


def generate(
    graph: Graph,
    plan: Plan,
    *,
    requant: str = "exact",
    optimize: str = "speed",
    lean: bool = False,
    selection: Chooser | None = None,
) -> dict[str, str]:
    """Return the generated project, file name to text.

    Parameters
    ----------
    graph : Graph
        An int8 graph with one input and one output.
    plan : Plan
        Offsets of every activation of this graph.
    requant : {"exact", "fast"}
        Rounding of convolutions, ADD and MEAN: TensorFlow Lite's, or once everywhere.
    optimize : {"speed", "size"}
        For cores with the DSP extension: "speed" adds a kernel for each shape of layer, "size" a few that
        all layers share.  Both say what the generated Makefile asks of the compiler.
    lean : bool
        With "speed" and no ``selection``: of the kernels of each layer, take the one that needs least flash.
    selection : Chooser, optional
        Chooses the specialised kernels of "speed"; by default the cost model.

    Returns
    -------
    dict of str to str
        ``model.c``, ``model.h``, ``te_config.h``, the runtime's headers and the kernels that the network
        uses, ``Makefile``, ``README.md`` and programs in ``example/``.

    Raises
    ------
    UnsupportedOpError
        If a node's op or layout has no C kernel.
    UsageError
        If the graph is not int8 or does not have exactly one input and one output, or the plan is another
        graph's.
    """
    if requant not in REQUANT_MODES:
        raise UnknownNameError("requantization", requant, REQUANT_MODES)
    if optimize not in OPTIMIZE_FLAGS:
        raise UnknownNameError("optimization", optimize, OPTIMIZE_FLAGS)
    _check(graph, plan)
    if optimize == "size":
        selection = CompactSelection(graph, requant)
    emitter = Emitter(graph, plan, selection or Selection(graph, requant, lean=lean))
    layers = [layer for i, node in enumerate(graph.nodes) if (layer := emitter.emit(i, node))]
    fields = _fields(graph, plan, layers, requant, optimize)
    result = {
        "model.c": _model_c(graph, plan, layers),
        "model.h": Template(_read(_PROJECT / "model.h.in")).substitute(fields),
        "Makefile": Template(_read(_PROJECT / "Makefile.in")).substitute(fields),
        "README.md": Template(_read(_PROJECT / "README.md.in")).substitute(fields),
        **_examples(),
    }
    return runtime_files(["te_runtime.h", *(f"{layer.kernel}.c" for layer in layers)], requant) | result


def _examples() -> dict[str, str]:
    """Return a program for this computer, and one for QEMU's Cortex-M4 with all that bare metal needs."""
    files = {f"example/{name}": _read(_PROJECT / "example" / name) for name in ("run.c", "qemu.c")}
    files |= {f"example/{name}": _read(_FIRMWARE / name) for name in ("startup.c", "support.c")}
    return files | {"example/qemu.ld": linker_script(QEMU_M4)}


def example_files(graph: Graph, requant: str = "exact") -> dict[str, bytes]:
    """Return inputs for ``example/run.c`` and the outputs that the integer kernels expect of them.

    The project's ``make check`` compares: an engineer's own compiler is tested by it.
    """
    shape = graph[graph.inputs[0]].shape
    random = np.random.default_rng(0).integers(-128, 128, (2, *shape))
    ends = [np.full((1, *shape), end) for end in (-128, 127)]
    codes = np.concatenate([random, *ends]).astype(np.int8)
    outputs = [run(graph, one, requant=requant) for one in codes]
    return {
        "example/input.bin": codes.tobytes(),
        "example/expected.bin": b"".join(y.tobytes() for y in outputs),
    }


def scratch_requests(graph: Graph, *, requant: str = "exact", optimize: str = "speed") -> dict[str, int]:
    """Return the bytes of working memory that specialised kernels ask of the plan, by node name."""
    if optimize != "speed":
        return {}
    selection = Selection(graph, requant)
    chosen = {node.name: selection.choose(node) for node in graph.nodes}
    return {name: fast.scratch_bytes for name, fast in chosen.items() if fast and fast.scratch_bytes}


def layer_symbols(graph: Graph, plan: Plan) -> dict[str, str]:
    """Return the C function of each node, by name; a node without work in this plan has none."""
    return {
        node.name: f"model_layer_{i}"
        for i, node in enumerate(graph.nodes)
        if not moves_nothing(graph, node, plan.offsets)
    }


def _check(graph: Graph, plan: Plan) -> None:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UsageError(
            f"{graph.name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; generated code"
            " has one of each: cut the network into parts with one input and one output"
        )
    for tensor in graph.tensors.values():
        if tensor.kind is Kind.VARIABLE:
            raise UnsupportedOpError(
                f"{tensor.name!r} is a variable; generated code only infers, freeze it first"
            )
        if tensor.kind is not Kind.CONSTANT and tensor.dtype != "int8":
            raise UsageError(
                f"{tensor.name!r} is {tensor.dtype}; C is made from int8 graphs: quantize the network first"
            )
    for node in graph.nodes:
        if node.op not in EMITTERS:
            raise UnsupportedOpError(
                f"{node.name}: no C kernel for {node.op}; supported: {', '.join(sorted(EMITTERS))}"
            )
    verify(plan)
    try:
        verify_values(graph, plan)
    except PlanError as error:
        raise UsageError(
            f"the plan is not one of {graph.name} ({error}); make it with planning.plan(graph)"
        ) from error


def _read(path) -> str:  # type: ignore[no-untyped-def]  # an importlib Traversable
    return path.read_text(encoding="utf-8")


def runtime_files(names: list[str], requant: str) -> dict[str, str]:
    """Return the named runtime files and, transitively, the headers that they include."""
    fast = int(requant == "fast")
    config = re.sub(r"(#define TE_REQUANT_FAST) \d", rf"\1 {fast}", _read(_RUNTIME / "te_config.h"))
    result = {"te_config.h": config}
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in result:
            result[name] = _read(_RUNTIME / name)
            queue += re.findall(r'^#include "(\w+\.h)"', result[name], re.MULTILINE)
    return dict(sorted(result.items()))


def _code(name: str) -> str:
    return f"`{name}`" if name else "the same"


def _c_float(value: float) -> str:
    text = f"{np.float32(value):.9g}"
    return (text if re.search(r"[.e]", text) else text + ".0") + "f"


def _fields(graph: Graph, plan: Plan, layers: list[Layer], requant: str, optimize: str) -> dict[str, object]:
    """Return what the templates name."""
    result: dict[str, object] = {
        "name": comment_text(graph.name),
        "arena_bytes": plan.arena_bytes,
        "lower_bound_bytes": plan.lower_bound_bytes,
        "requant": requant,
        "optimize": optimize,
        "optimize_flag": OPTIMIZE_FLAGS[optimize],
        "macs": f"{sum(macs(graph).values()):,}",
        "weight_bytes": f"{sum(layer.constant_bytes for layer in layers):,}",
        "dsp_weight_bytes": f"{sum(layer.fast_bytes for layer in layers):,}",
        "layer_table": "\n".join(
            f"| `{layer.symbol}` | {layer.op} | {layer.shapes} | `{layer.kernel}` | {_code(layer.fast)} |"
            for layer in layers
        ),
        "kernels": " ".join(sorted({f"{layer.kernel}.c" for layer in layers})),
    }
    for role, name in (("input", graph.inputs[0]), ("output", graph.outputs[0])):
        tensor = graph[name]
        if tensor.quant is None:
            raise UsageError(f"the {role} {name!r} has no scale; quantize the graph first")
        scale, zero_point = tensor.quant.item()
        result |= {
            f"{role}_shape": tensor.shape,
            f"{role}_count": tensor.nbytes,
            f"{role}_scale": _c_float(scale),
            f"{role}_zero_point": zero_point,
            f"{role}_offset": plan.offsets[name],
        }
    return result


def _model_c(graph: Graph, plan: Plan, layers: list[Layer]) -> str:
    symbols, texts = [layer.symbol for layer in layers], "\n".join(layer.text for layer in layers)
    return model_c(comment_text(graph.name), symbols, texts, _memory_map(graph, plan))


def model_c(name: str, symbols: list[str], layers: str, memory_map: str = "") -> str:
    """Return a ``model.c`` whose network calls the functions ``symbols`` of ``layers``, in order."""
    return Template(_read(_PROJECT / "model.c.in")).substitute(
        name=name,
        memory_map=memory_map,
        declarations="".join(f"te_status {symbol}(void);\n" for symbol in symbols),
        layers=layers,
        calls="".join(f"    TE_LAYER({symbol}());\n" for symbol in symbols),
    )


def _memory_map(graph: Graph, plan: Plan) -> str:
    """Return one comment line a buffer: offset, size, the nodes at which it is live, tensor, shape."""
    rows = []
    for b in sorted(plan.buffers, key=lambda b: (b.first, plan.offsets[b.name])):
        what = f"{comment_text(b.name)} {graph[b.name].shape if b.name in graph.tensors else ''}"
        rows.append(f" *   {plan.offsets[b.name]:>8}  {b.size_bytes:>8}  {b.first:>4}..{b.last:<4} {what}")
    return "\n".join(rows)
