"""Choose the layers that run in patches and the grid: under a limit of arithmetic, or for a budget of RAM."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import DoesNotFitError, UsageError
from ...ir.graph import Graph
from ...ir.ops import macs
from ..planning import Plan, lower_bound, share
from .memory_plan import patch_buffers, plan_patches
from .schedule import Schedule, crossing, make_schedule, patchable_layers

MAX_SIDE = 6
"""Most patches down and across that a search tries."""


def search(
    graph: Graph,
    *,
    macs_limit: float | None = 0.07,
    budget_bytes: int | None = None,
    source: str = "resident",
) -> tuple[Schedule, Plan]:
    """Return the best patch schedule and its memory plan.

    Parameters
    ----------
    graph : Graph
    macs_limit : float or None
        Most multiply-accumulates that halos may add, as a fraction of the whole image's; None for no limit.
    budget_bytes : int, optional
        With a budget, the schedule with the fewest multiply-accumulates whose arena is no larger; without,
        the smallest arena.
    source : {"resident", "streamed"}
        Where the input is.

    Returns
    -------
    schedule, plan
        ``schedule.layers`` is 0 if the whole image at once is the best (input resident only).

    Raises
    ------
    DoesNotFitError
        If no schedule within the limit has so small an arena; the message names the least bytes.
    UsageError
        If nothing can run in patches with a streamed input.

    Notes
    -----
    Schedules are ranked by the lower bound of their buffers; a plan is made, in that order, until the best
    plan is no larger than the next bound.
    """
    ranked = sorted(_candidates(graph, macs_limit, source), key=lambda c: c[:4])
    if not ranked:
        raise UsageError(
            f"no layer of {graph.name} can run in patches with a {source} input; try a higher limit of MACs"
        )
    if budget_bytes is not None:
        fitting = sorted((c for c in ranked if c[0] <= budget_bytes), key=lambda c: (c[1], c[0], *c[2:4]))
        for *_, schedule in fitting:
            plan = plan_patches(schedule, source=source)
            if plan.arena_bytes <= budget_bytes:
                return schedule, plan
        smallest = ranked[0]
        raise DoesNotFitError(
            f"no patches of {graph.name} fit {budget_bytes:,} B: at least {smallest[0]:,} B are needed, by"
            f" {name(smallest[-1])}; try a streamed input, a smaller input or a larger board"
        )
    best: tuple[Schedule, Plan] | None = None
    for bound, *_, schedule in ranked:
        if best is not None and best[1].arena_bytes <= bound:
            break
        plan = plan_patches(schedule, source=source)
        if best is None or plan.arena_bytes < best[1].arena_bytes:
            best = schedule, plan
    assert best is not None
    return best


def _candidates(
    graph: Graph, macs_limit: float | None, source: str
) -> Iterator[tuple[int, int, int, int, Schedule]]:
    """Yield (bound in bytes, MACs, patches, layers, schedule) of each schedule within the limit."""
    whole = sum(macs(graph).values())
    most = float("inf") if macs_limit is None else whole * (1 + macs_limit)
    if source == "resident":
        schedule = make_schedule(graph, 0, (1, 1))
        yield lower_bound(share(graph).buffers()), whole, 1, 0, schedule
    for layers in range(1, patchable_layers(graph) + 1):
        if source == "streamed" and _reads_input_later(graph, layers):
            continue
        shapes = [graph[tensor].shape for tensor in crossing(graph, layers)]
        height, width = (min(MAX_SIDE, *(shape[axis] for shape in shapes)) for axis in (1, 2))
        for rows in range(1, height + 1):
            for columns in range(1, width + 1):
                schedule = make_schedule(graph, layers, (rows, columns))
                cost = sum(schedule.macs().values())
                if cost > most:
                    break  # more columns share more halos
                bound = lower_bound(patch_buffers(schedule, source))
                yield bound, cost, rows * columns, layers, schedule


def _reads_input_later(graph: Graph, layers: int) -> bool:
    later = {tensor for node in graph.nodes[layers:] for tensor in node.inputs} | set(graph.outputs)
    return not later.isdisjoint(graph.inputs)


def name(schedule: Schedule) -> str:
    """Return how a schedule is written, "none" or "ROWSxCOLUMNS@LAYERS"."""
    return f"{schedule.grid[0]}x{schedule.grid[1]}@{schedule.layers}" if schedule.layers else "none"


def parse(graph: Graph, text: str) -> Schedule:
    """Return the schedule that ``text`` names, the reverse of `name`.

    Raises
    ------
    UsageError
        If ``text`` is no "ROWSxCOLUMNS@LAYERS", or the graph has no such schedule.
    """
    if text == "none":
        return make_schedule(graph, 0, (1, 1))
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})@(\d{1,6})", text)
    if not match:
        raise UsageError(f"patch={text!r} is not 'none', 'auto' or like '2x2@8': rows x columns @ layers")
    rows, columns, layers = (int(group) for group in match.groups())
    if layers == 0:
        raise UsageError(f"patch={text!r} runs no layer in patches; say 'none'")
    return make_schedule(graph, layers, (rows, columns))
