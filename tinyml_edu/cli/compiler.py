"""``tinyml profile | plan | deploy | run``: the compiler from a shell."""

from __future__ import annotations

import io
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, UsageError
from .output import JsonOption, check_output, check_picture, console, table, write_json, write_output
from .resolve import MODEL_HELP, resolve_graph

if TYPE_CHECKING:
    from ..mcu.planning import Schedule

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
BoardOption = Annotated[
    str, typer.Option("--board", help="The board's name, such as stm32f412; `tinyml doctor` lists them.")
]


class Requant(StrEnum):
    exact = "exact"
    fast = "fast"


class Optimize(StrEnum):
    speed = "speed"
    size = "size"


class SearchGoal(StrEnum):
    model = "model"
    instructions = "instructions"
    cycles = "cycles"


def profile(model: ModelArgument, json_file: JsonOption = None) -> None:
    """Count parameters, MACs, activation and weight bytes, layer by layer.

    Example: tinyml profile resnet8.glyphs32
    """
    from ..profile import profile as profile_graph

    check_output(json_file)
    report = profile_graph(resolve_graph(model))
    values = report.to_dict()
    table(
        f"{Path(model).name} in {report.dtype}: {report.macs:,} MACs, {report.parameters:,} parameters, "
        f"{report.weight_bytes():,} B of weights, {report.peak_activation_bytes:,} B of activations at peak",
        ["layer", "op", "output", "MACs", "parameters", "live B"],
        [
            [
                *(r["name"], r["op"], "×".join(map(str, r["output_shape"][1:]))),
                *(r["macs"], r["parameters"], r["live_bytes"]),
            ]
            for r in values["layers"]
        ],
    )
    write_json(json_file, {**values, "model": model})


def plan(
    model: ModelArgument,
    json_file: JsonOption = None,
    picture: Annotated[
        Path | None,
        typer.Option("--plot", "--picture", metavar="FILE", help="Draw the memory map over time (PNG)."),
    ] = None,
) -> None:
    """Compare the memory planners on one model, and show what is in memory at the peak.

    Input and output are part of the arena.  Branches are executed in the order that `tinyml deploy` uses.

    Example: tinyml plan vww_96_int8.tflite --plot map.png
    """
    from ..mcu import planning

    check_output(json_file)
    check_output(picture)
    check_picture("--plot", picture)
    schedule = planning.reorder(resolve_graph(model))
    graph = schedule.graph
    plans = planning.compare(graph)
    best = plans["best"]
    table(
        f"{Path(model).name}: no plan can need less than {best.lower_bound_bytes:,} B, input included",
        ["planner", "arena B", "× bound", "proven optimal", "seconds"],
        [
            [n, p.arena_bytes, p.arena_bytes / best.lower_bound_bytes, p.proven_optimal, p.seconds]
            for n, p in plans.items()
        ],
    )
    step, live = planning.peak(best)
    table(
        f"Live at the peak, node {planning.short_name(graph.nodes[step].name)} ({graph.nodes[step].op})",
        ["buffer", "kind", "B", "from node", "to node"],
        [[planning.short_name(b.name), b.kind, b.size_bytes, b.first, b.last] for b in live],
    )
    console().print(_order_and_input(schedule))
    if picture is not None:
        from .. import plots

        write_output(picture, plots.to_png(plots.memory_map(best)))
        console().print(f"memory map: {picture}")
    write_json(
        json_file,
        {
            "model": model,
            "lower_bound_bytes": best.lower_bound_bytes,
            "planners": {
                n: {"arena_bytes": p.arena_bytes, "seconds": p.seconds, "proven_optimal": p.proven_optimal}
                for n, p in plans.items()
            },
        },
    )


def _order_and_input(schedule: Schedule) -> str:
    """Say what the figures assume: the order of nodes, and where the input lies."""
    from ..mcu import planning

    searched = "all orders were considered" if schedule.exact else "a beam search, not all orders"
    saved = schedule.given_bound_bytes - schedule.bound_bytes
    order = f"reordered, which lowers the bound by {saved:,} B" if saved else "in the given order"
    streamed = planning.streamed_input_bound(schedule.graph)
    return (
        f"Nodes {order} ({searched}).  The input is resident in the arena; streamed piece by piece, "
        f"the bound would be {streamed:,} B."
    )


def deploy(
    model: ModelArgument,
    board: BoardOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the C project and the firmware go.")
    ],
    requant: Annotated[
        Requant, typer.Option(help="exact: TensorFlow Lite's rounding; fast: one rounding.")
    ] = Requant.exact,
    optimize: Annotated[
        Optimize,
        typer.Option(
            help="speed: a kernel for each shape of layer, up to 64 KB of code; size: a few that all layers"
            " share, under 10 KB, for up to 60 % more instructions."
        ),
    ] = Optimize.speed,
    planner: Annotated[str, typer.Option(help="A memory planner of `tinyml plan`, or best.")] = "best",
    patch: Annotated[str, typer.Option(help="Patch-based inference; only none so far.")] = "none",
    search: Annotated[
        SearchGoal,
        typer.Option(
            help="How kernels are chosen: by a cost model, or measured on the emulator for the fewest "
            "instructions or cycles that fit the flash (seconds the first time)."
        ),
    ] = SearchGoal.model,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="List the kernels that a search measured.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Compile a model for a board: C project, firmware, and a report measured on the emulated core.

    Example: tinyml deploy kws_ref_model.tflite --board stm32f412 --out kws
    """
    from .. import mcu

    check_output(json_file)
    if candidates and search is SearchGoal.model:
        raise UsageError("--candidates lists what a search measured; add --search instructions or cycles")
    mcu.get_board(board)
    mcu.project_folder.check_target(out)
    deployment = mcu.deploy(
        resolve_graph(model),
        board,
        out,
        requant=requant.value,
        optimize=optimize.value,
        planner=planner,
        patch=patch,
        search=search.value,
    )
    report = {**deployment.report, "model": model}
    table(
        f"{Path(model).name} on {report['board']} ({report['core']})",
        ["layer", "op", "MACs", "instructions", "instructions / MAC"],
        [
            [
                r["name"],
                r["op"],
                r["macs"],
                r["instructions"],
                r["instructions"] / r["macs"] if r["macs"] else None,
            ]
            for r in report["layers"]
        ],
    )
    if candidates:
        _list_candidates(report["layers"])
    table(
        "Memory, bytes",
        ["SRAM", "", "flash", " "],
        _pair_up(report["sram_bytes"], report["flash_bytes"]),
    )
    console().print(
        f"arena {report['arena_bytes']:,} B, lower bound {report['lower_bound_bytes']:,} B; "
        f"{report['instructions']:,} instructions an inference, about {report['estimated_ms']:.1f} ms "
        f"({mcu.cycles.CAVEAT}).  Project in {out}"
    )
    if report["optimize_note"]:
        console().print(report["optimize_note"])
    write_json(json_file, report)


def _list_candidates(layers: list[dict[str, Any]]) -> None:
    """Print every kernel that was measured; an asterisk marks the one taken."""
    for layer in layers:
        if layer["candidates"]:
            table(
                f"{layer['name']}: {layer['op']}",
                ["", "kernel", "instructions", "est. cycles", "code B", "constants B"],
                [
                    [
                        "*" if r["chosen"] else "",
                        *(r[key] for key in ("kernel", "instructions", "cycles", "code_bytes")),
                        r["constant_bytes"],
                    ]
                    for r in layer["candidates"]
                ],
            )


def _pair_up(left: dict[str, int], right: dict[str, int]) -> list[list[object]]:
    a, b = list(left.items()), list(right.items())
    size = max(len(a), len(b))
    a += [("", "")] * (size - len(a))  # type: ignore[list-item]
    b += [("", "")] * (size - len(b))  # type: ignore[list-item]
    return [[*x, *y] for x, y in zip(a, b, strict=True)]


def run(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that `tinyml deploy` wrote.")],
    input_file: Annotated[
        Path, typer.Option("--input", metavar="X.npy", help="int8 codes or floats, batch first, N H W C.")
    ],
    output_file: Annotated[
        Path | None, typer.Option("--output", metavar="Y.npy", help="int8 codes go here.")
    ] = None,
    emulate: Annotated[
        bool, typer.Option("--emulate/--host", help="The emulated board, or the same C on this computer.")
    ] = True,
    histogram: Annotated[
        bool, typer.Option("--histogram", help="Print which instructions each layer executes (emulated).")
    ] = False,
    heat_map: Annotated[
        Path | None,
        typer.Option(
            "--heat-map", metavar="FILE", help="Draw reads and writes of the arena (emulated; PNG)."
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Run a deployed model on inputs from a file.

    Example: tinyml run kws --input x.npy --output y.npy --emulate --histogram
    """
    from ..mcu import Deployment
    from ..mcu.cycles import CAVEAT
    from ..mcu.instruments import histogram_rows

    for path in (output_file, heat_map, json_file):
        check_output(path)
    check_picture("--heat-map", heat_map)
    if not emulate and (histogram or heat_map):
        raise UsageError("only the emulated board counts; leave out --host, --histogram or --heat-map")
    result = Deployment.load(directory).run(
        _read_array(input_file), target="emulate" if emulate else "host", trace=heat_map is not None
    )
    if output_file is not None:
        write_output(output_file, _npy(result.outputs))
    values = {
        "instructions": result.instructions,
        "estimated_cycles": result.estimated_cycles,
        "estimated_ms": result.estimated_ms,
        "stack_bytes": result.stack_bytes,
        "layers": result.layers,
        "startup_instructions": result.startup_instructions,
        "mnemonics": result.mnemonics,
    }
    if emulate:
        console().print(
            f"{len(result.outputs)} inferences, each {result.instructions:,} instructions, "
            f"{result.estimated_cycles:,} cycles, {result.estimated_ms:.2f} ms; "
            f"stack {result.stack_bytes} B; start-up {result.startup_instructions} instructions.  "
            f"Cycles and ms are {CAVEAT}."
        )
    else:
        console().print(f"{len(result.outputs)} inferences on this computer")
    if histogram:
        columns, rows = histogram_rows(result.mnemonics)
        table(
            "Instructions of one inference", ["layer", *columns], [[name, *counts] for name, counts in rows]
        )
    if result.trace is not None and heat_map is not None:
        from .. import plots

        write_output(heat_map, plots.to_png(plots.arena_heat_map(result.trace)))
        console().print(f"heat map: {heat_map}")
    write_json(json_file, values)


def _read_array(path: Path):  # type: ignore[no-untyped-def]
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"no file {path}; save the input with numpy.save") from error
    except (ValueError, EOFError, OSError) as error:
        objects = "Object arrays" in str(error)
        what = "holds Python objects, not numbers" if objects else "is not a .npy array"
        raise DataError(f"{path} {what}; save an array of int8 or float32 with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} holds several arrays; save one with numpy.save")
    return array


def _npy(array) -> bytes:  # type: ignore[no-untyped-def]
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
