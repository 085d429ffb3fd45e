"""``tinyml profile | plan | deploy | run``: the compiler from a shell."""

from __future__ import annotations

import io
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError, UsageError
from .output import JsonOption, check_output, console, table, write_json, write_output
from .resolve import MODEL_HELP, resolve_graph

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
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw the memory map over time (PNG).")
    ] = None,
) -> None:
    """Compare the memory planners on one model.

    Example: tinyml plan vww_96_int8.tflite --picture map.png
    """
    from ..mcu import planning

    check_output(json_file)
    check_output(picture)
    if picture is not None and picture.suffix.lower() != ".png":
        raise UsageError(f"--picture writes PNG; name a file that ends in .png, not {picture.name}")
    graph = resolve_graph(model)
    plans = {name: planning.plan(graph, planner=name) for name in planning.PLANNERS}
    best = min(plans.values(), key=lambda p: p.arena_bytes)
    table(
        f"{Path(model).name}: no plan can need less than {best.lower_bound_bytes:,} B",
        ["planner", "arena B", "× bound", "proven optimal", "seconds"],
        [
            [n, p.arena_bytes, p.arena_bytes / p.lower_bound_bytes, p.proven_optimal, p.seconds]
            for n, p in plans.items()
        ],
    )
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
        Optimize, typer.Option(help="speed: specialised kernels, more flash; size: the plain ones.")
    ] = Optimize.speed,
    planner: Annotated[str, typer.Option(help="A memory planner of `tinyml plan`, or best.")] = "best",
    patch: Annotated[str, typer.Option(help="Patch-based inference; only none so far.")] = "none",
    json_file: JsonOption = None,
) -> None:
    """Compile a model for a board: C project, firmware, and a report measured on the emulated core.

    Example: tinyml deploy kws_ref_model.tflite --board stm32f412 --out kws
    """
    from .. import mcu

    check_output(json_file)
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
    table(
        "Memory, bytes",
        ["SRAM", "", "flash", " "],
        _pair_up(report["sram_bytes"], report["flash_bytes"]),
    )
    console().print(
        f"arena {report['arena_bytes']:,} B, lower bound {report['lower_bound_bytes']:,} B; "
        f"{report['instructions']:,} instructions an inference, about {report['estimated_ms']:.1f} ms.  "
        f"Project in {out}"
    )
    if report["optimize_note"]:
        console().print(report["optimize_note"])
    write_json(json_file, report)


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
    json_file: JsonOption = None,
) -> None:
    """Run a deployed model on inputs from a file.

    Example: tinyml run kws --input x.npy --output y.npy --emulate
    """
    from ..mcu import Deployment

    check_output(output_file)
    check_output(json_file)
    result = Deployment.load(directory).run(_read_array(input_file), target="emulate" if emulate else "host")
    if output_file is not None:
        write_output(output_file, _npy(result.outputs))
    values = {
        "instructions": result.instructions,
        "estimated_cycles": result.estimated_cycles,
        "estimated_ms": result.estimated_ms,
        "stack_bytes": result.stack_bytes,
        "layers": result.layers,
    }
    if emulate:
        console().print(
            f"{len(result.outputs)} inferences, each {result.instructions:,} instructions, "
            f"{result.estimated_cycles:,} cycles, {result.estimated_ms:.2f} ms; stack {result.stack_bytes} B"
        )
    else:
        console().print(f"{len(result.outputs)} inferences on this computer")
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
