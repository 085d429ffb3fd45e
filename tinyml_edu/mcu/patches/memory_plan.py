"""Memory plan of a patch schedule: the planners' buffers, with a patch where no whole tensor is kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...errors import DoesNotFitError, UnknownNameError
from ..planning import (
    ALIGNMENT,
    PLANNERS,
    STACK_BYTES,
    Buffer,
    Plan,
    aliases,
    lower_bound,
    plan,
    short_name,
    verify,
)
from .memory import tensor_lives
from .schedule import Schedule

if TYPE_CHECKING:
    from ..boards import Board

PATCH = "patch of "
"""Prefix of the name of a buffer that holds one patch of a tensor."""


def patch_buffers(schedule: Schedule, source: str = "resident") -> list[Buffer]:
    """Return the buffers of a schedule in order of first use; all patches of a layer are one step.

    Parameters
    ----------
    schedule : Schedule
    source : {"resident", "streamed"}
        Where the input is, see `memory.Accounting`.
    """
    graph = schedule.graph
    root = aliases(graph)
    outputs = {root[name] for name in graph.outputs}
    spans: dict[str, tuple[int, int, int, str]] = {}
    for life in tensor_lives(schedule, source):
        if life.is_patch:
            kind = "input" if life.tensor in graph.inputs else "activation"
            spans[PATCH + life.tensor] = (life.size_bytes, life.first, life.last, kind)
            continue
        name = root[life.tensor]
        size, first, last, _ = spans.get(name, (life.size_bytes, life.first, life.last, ""))
        kind = "input" if name in graph.inputs else "output" if name in outputs else "activation"
        spans[name] = (size, min(first, life.first), max(last, life.last), kind)
    return [
        Buffer(name, -(-size // ALIGNMENT) * ALIGNMENT, first, last, kind)
        for name, (size, first, last, kind) in spans.items()
    ]


def plan_patches(
    schedule: Schedule, board: Board | None = None, *, source: str = "resident", planner: str = "best"
) -> Plan:
    """Return offsets for every buffer of a schedule, verified; parameters and errors as `planning.plan`.

    Without a layer in patches it is that plan; with some, results in place are not among what is planned.
    """
    if not schedule.layers and source == "resident":
        return plan(schedule.graph, board, planner=planner)
    if planner not in PLANNERS:
        raise UnknownNameError("planner", planner, PLANNERS)
    buffers = tuple(patch_buffers(schedule, source))
    start = time.perf_counter()
    offsets = PLANNERS[planner](buffers)
    seconds = time.perf_counter() - start
    by_name = {b.name: offset for b, offset in zip(buffers, offsets, strict=True)}
    arena = max((offset + b.size_bytes for b, offset in zip(buffers, offsets, strict=True)), default=0)
    roots = aliases(schedule.graph)
    bound = lower_bound(buffers)
    result = Plan(
        offsets=by_name | {name: by_name[root] for name, root in roots.items() if root in by_name},
        arena_bytes=arena,
        lower_bound_bytes=bound,
        planner=planner,
        proven_optimal=arena == bound,
        seconds=seconds,
        buffers=buffers,
    )
    verify(result)
    if board is not None and (missing := arena + STACK_BYTES - board.sram_bytes) > 0:
        raise DoesNotFitError(_explain(schedule, result, board, missing))
    return result


def _explain(schedule: Schedule, made: Plan, board: Board, missing: int) -> str:
    largest = sorted(made.buffers, key=lambda b: -b.size_bytes)[:3]
    rows, columns = schedule.grid
    return (
        f"{schedule.graph.name} in {rows}x{columns} patches up to layer {schedule.layers} does not fit"
        f" {board.name}: {missing:,} B of SRAM are missing.  The largest buffers: "
        + ", ".join(f"{short_name(b.name)} ({b.size_bytes:,} B)" for b in largest)
        + ".  Try patch='auto', a streamed input, or a larger board."
    )
