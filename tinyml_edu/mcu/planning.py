"""Memory planner: one offset in one arena for each activation, and a certificate of how good the plan is.

A buffer is live from the node that writes it to the last node that reads it, both included.  Two buffers
whose lives share a node must not share a byte; all others may.  No plan can need less than the largest sum of
buffers that are live at one node, so an arena of that size is proven optimal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DoesNotFitError, TinyMLError, UnknownNameError
from ..ir.graph import Graph

if TYPE_CHECKING:
    from .boards import Board

ALIGNMENT = 16
STACK_BYTES = 2048
"""RAM kept for the stack beside the arena; a deeper stack leaves the RAM, and the emulator faults."""

HILL_CLIMB_STEPS = 4000


class PlanError(TinyMLError):
    """A plan that would let two live buffers share memory, or that contradicts itself."""


@dataclass(frozen=True)
class Buffer:
    """One block of the arena, live at the nodes ``first`` to ``last``, both included.

    ``size_bytes`` is a multiple of 16; ``kind`` is "input", "output", "activation" or "scratch".
    """

    name: str
    size_bytes: int
    first: int
    last: int
    kind: str = "activation"


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes of every activation tensor (aliases included) in an arena of ``arena_bytes``."""

    offsets: dict[str, int]
    arena_bytes: int
    lower_bound_bytes: int
    planner: str
    proven_optimal: bool
    seconds: float
    buffers: tuple[Buffer, ...]


Planner = Callable[[Sequence[Buffer]], list[int]]


def aliases(graph: Graph) -> dict[str, str]:
    """Return, for each tensor that lives in the arena, the tensor whose buffer it uses.

    The output of a RESHAPE has the bytes of its input, so it uses the input's buffer.  A constant lives in
    flash: the RESHAPE of one is a copy.
    """
    root = {name: name for name in graph.inputs}
    for node in graph.nodes:
        view = node.op == "RESHAPE" and node.inputs[0] in root
        for name in node.outputs:
            root[name] = root[node.inputs[0]] if view else name
    return root


def lifetimes(graph: Graph, scratch: Mapping[str, int] | None = None) -> list[Buffer]:
    """Return the buffers of ``graph``, in order of first use.

    Parameters
    ----------
    graph : Graph
        Its nodes in execution order; node ``i`` is time step ``i``.
    scratch : mapping of str to int, optional
        Bytes of working memory that a node, by name, needs while it runs.

    Returns
    -------
    list of Buffer
        Graph inputs are live from step 0 and graph outputs until the last step, so that a caller can write
        and read them between inferences.
    """
    root = aliases(graph)
    end = max(len(graph.nodes) - 1, 0)
    first = dict.fromkeys(graph.inputs, 0)
    last = dict(first)
    for step, node in enumerate(graph.nodes):
        for name in node.outputs:
            first.setdefault(root[name], step)
            last[root[name]] = step
        for name in node.inputs:
            if name in root:
                last[root[name]] = step
    outputs = {root[name] for name in graph.outputs if name in root}
    last.update(dict.fromkeys(outputs, end))
    buffers = []
    for name, start in first.items():
        kind = "input" if name in graph.inputs else "output" if name in outputs else "activation"
        buffers.append(Buffer(name, _aligned(graph[name].nbytes), start, last[name], kind))
    steps = {node.name: step for step, node in enumerate(graph.nodes)}
    for node_name, size in (scratch or {}).items():
        step = steps[node_name]
        buffers.append(Buffer(f"scratch of {node_name}", _aligned(size), step, step, "scratch"))
    return buffers


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """Return the largest sum of live bytes over all steps: no arena can be smaller."""
    return max((sum(b.size_bytes for b in live_at(buffers, b0.first)) for b0 in buffers), default=0)


def live_at(buffers: Sequence[Buffer], step: int) -> list[Buffer]:
    """Return the buffers that are live at ``step``, the largest first."""
    live = [b for b in buffers if b.first <= step <= b.last]
    return sorted(live, key=lambda b: -b.size_bytes)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# --- planners: buffers in, one offset for each out -----------------------------------------------------


def naive(buffers: Sequence[Buffer]) -> list[int]:
    """Give every buffer its own memory: the sum of all sizes, the number that reuse is measured against."""
    ends = np.cumsum([b.size_bytes for b in buffers], dtype=np.int64)
    return [int(end) - b.size_bytes for end, b in zip(ends, buffers)]


def first_fit(buffers: Sequence[Buffer]) -> list[int]:
    """Place buffers in execution order, each in the lowest gap: what an allocator at run time would do."""
    return _place(buffers, range(len(buffers)), _neighbours(buffers))


def greedy(buffers: Sequence[Buffer]) -> list[int]:
    """Place buffers from large to small, each in the lowest gap (greedy by size, arXiv:2001.03288)."""
    return _place(buffers, _by_size(buffers), _neighbours(buffers))


def hill_climb(buffers: Sequence[Buffer]) -> list[int]:
    """Improve the order of placement by seeded random swaps until the lower bound or the last step.

    A swap moves a buffer that ends at the top of the arena, or one that it must avoid, to an earlier place in
    the order.  A new order that is no worse is kept, which lets the search cross plateaus.
    """
    rng = np.random.default_rng(0)
    neighbours = _neighbours(buffers)
    bound = lower_bound(buffers)
    order = list(_by_size(buffers))
    offsets = _place(buffers, order, neighbours)
    best = top = _top(buffers, offsets)
    best_offsets = offsets
    for _ in range(HILL_CLIMB_STEPS if len(order) > 1 else 0):
        if best == bound:
            break
        trial = _swap(order, offsets, buffers, neighbours, rng)
        trial_offsets = _place(buffers, trial, neighbours)
        trial_top = _top(buffers, trial_offsets)
        if trial_top <= top:
            order, offsets, top = trial, trial_offsets, trial_top
        if trial_top < best:
            best, best_offsets = trial_top, trial_offsets
    return best_offsets


def _swap(
    order: list[int],
    offsets: list[int],
    buffers: Sequence[Buffer],
    neighbours: list[list[int]],
    rng: np.random.Generator,
) -> list[int]:
    top = _top(buffers, offsets)
    highest = [i for i in order if offsets[i] + buffers[i].size_bytes == top]
    candidates = sorted({*highest, *(j for i in highest for j in neighbours[i])})
    mover = order.index(candidates[rng.integers(len(candidates))])
    other = int(rng.integers(len(order)))
    trial = list(order)
    trial[mover], trial[other] = trial[other], trial[mover]
    return trial


def _by_size(buffers: Sequence[Buffer]) -> list[int]:
    return sorted(range(len(buffers)), key=lambda i: (-buffers[i].size_bytes, buffers[i].first))


def _neighbours(buffers: Sequence[Buffer]) -> list[list[int]]:
    """Return, for each buffer, the others that are live at one of its steps."""
    first = np.array([b.first for b in buffers])
    last = np.array([b.last for b in buffers])
    together = (first[:, None] <= last[None, :]) & (first[None, :] <= last[:, None])
    np.fill_diagonal(together, False)
    return [np.flatnonzero(row).tolist() for row in together]


def _place(buffers: Sequence[Buffer], order: Sequence[int], neighbours: list[list[int]]) -> list[int]:
    """Place buffers in ``order``, each at the lowest offset where none of its placed neighbours is."""
    offsets = [-1] * len(buffers)
    for i in order:
        taken = sorted((offsets[j], buffers[j].size_bytes) for j in neighbours[i] if offsets[j] >= 0)
        offset = 0
        for start, size in taken:
            if start - offset >= buffers[i].size_bytes:
                break
            offset = max(offset, start + size)
        offsets[i] = offset
    return offsets


def _top(buffers: Sequence[Buffer], offsets: Sequence[int]) -> int:
    return max((o + b.size_bytes for o, b in zip(offsets, buffers)), default=0)


def best(buffers: Sequence[Buffer]) -> list[int]:
    """Return the smallest plan of all planners; the climb runs only where the quick ones miss the bound."""
    bound = lower_bound(buffers)
    offsets = naive(buffers)
    for planner in (first_fit, greedy, hill_climb):
        if _top(buffers, offsets) == bound:
            break
        offsets = min(offsets, planner(buffers), key=lambda o: _top(buffers, o))
    return offsets


PLANNERS: dict[str, Planner] = {
    "naive": naive,
    "first_fit": first_fit,
    "greedy": greedy,
    "hill_climb": hill_climb,
    "best": best,
}


# --- plans ---------------------------------------------------------------------------------------------


def plan(graph: Graph, board: Board | None = None, *, planner: str = "best") -> Plan:
    """Return offsets for every activation of ``graph``, verified.

    Parameters
    ----------
    graph : Graph
        A graph whose activations have their final types (int8 for a deployable network).
    board : Board, optional
        If given, the arena and `STACK_BYTES` of stack must fit its SRAM.
    planner : str, default="best"
        A key of `PLANNERS`.

    Raises
    ------
    DoesNotFitError
        If arena and stack are larger than the board's SRAM; the message names the bytes missing, the tensors
        that are live at the peak, and what to try.
    UnknownNameError
        If there is no such planner.
    """
    if planner not in PLANNERS:
        raise UnknownNameError("planner", planner, PLANNERS)
    buffers = tuple(lifetimes(graph))
    start = time.perf_counter()
    offsets = PLANNERS[planner](buffers)
    seconds = time.perf_counter() - start
    by_root = {b.name: offset for b, offset in zip(buffers, offsets)}
    arena, bound = _top(buffers, offsets), lower_bound(buffers)
    result = Plan(
        offsets=by_root | {name: by_root[root] for name, root in aliases(graph).items()},
        arena_bytes=arena,
        lower_bound_bytes=bound,
        planner=planner,
        proven_optimal=arena == bound,
        seconds=seconds,
        buffers=buffers,
    )
    verify(result)
    if board is not None and (missing := arena + STACK_BYTES - board.sram_bytes) > 0:
        raise DoesNotFitError(explain_sram(graph, result, board, missing))
    return result


def verify(plan: Plan) -> None:
    """Raise `PlanError` unless the plan is safe; shares no code with the planners.

    Checked for each buffer: it has an offset, aligned and inside the arena; for each pair that is live at one
    step: no byte in common.
    """
    for b in plan.buffers:
        offset = plan.offsets.get(b.name)
        if offset is None:
            raise PlanError(f"{b.name} has no offset; plan the graph again")
        if offset < 0 or offset % ALIGNMENT or offset + b.size_bytes > plan.arena_bytes:
            raise PlanError(f"{b.name} at {offset} (+{b.size_bytes} B) is unaligned or outside the arena")
    for i, a in enumerate(plan.buffers):
        for b in plan.buffers[i + 1 :]:
            if a.last < b.first or b.last < a.first or not a.size_bytes or not b.size_bytes:
                continue
            a0, b0 = plan.offsets[a.name], plan.offsets[b.name]
            if a0 < b0 + b.size_bytes and b0 < a0 + a.size_bytes:
                raise PlanError(
                    f"{a.name} ({a0}..{a0 + a.size_bytes}) and {b.name} ({b0}..{b0 + b.size_bytes}) overlap"
                    f" while both are live (steps {max(a.first, b.first)}..{min(a.last, b.last)})"
                )


def peak(plan: Plan) -> tuple[int, list[Buffer]]:
    """Return the step with the most live bytes and the buffers that are live there, the largest first."""
    steps = sorted({b.first for b in plan.buffers})
    step = max(steps, key=lambda s: sum(b.size_bytes for b in live_at(plan.buffers, s)))
    return step, live_at(plan.buffers, step)


def explain_sram(graph: Graph, plan: Plan, board: Board, missing_bytes: int) -> str:
    """Say in one line why the network does not fit the SRAM of ``board``, and what to try."""
    step, live = peak(plan)
    where = graph.nodes[step].name if graph.nodes else graph.name
    tensors = ", ".join(f"{short_name(b.name)} ({b.size_bytes:,} B)" for b in live)
    needed = board.sram_bytes + missing_bytes
    advice = [
        _boards_with(needed, "sram_bytes"),
        "a smaller input",
        "fewer channels in the layers around the peak",
    ]
    if not plan.proven_optimal:
        advice.insert(0, "planner='best'" if plan.planner != "best" else "another order of layers")
    return (
        f"{graph.name} does not fit {board.name}: {missing_bytes:,} B of SRAM are missing ({needed:,} B"
        f" needed, {board.sram_bytes:,} B there).  At the peak, node {where}, these are live: {tensors}."
        f"  Try {', '.join(a for a in advice if a)}."
    )


def short_name(name: str, width: int = 40) -> str:
    """Return the first of names joined by ";" (fused layers of a .tflite file), its tail if it is long.

    Examples
    --------
    >>> short_name("model/relu;model/norm/FusedBatchNorm")
    'model/relu'
    """
    first = name.split(";", maxsplit=1)[0]
    return first if len(first) <= width else "..." + first[3 - width :]


def _boards_with(needed: int, field: str) -> str:
    from .boards import BOARDS

    names = [name for name, board in BOARDS.items() if getattr(board, field) >= needed]
    return f"a larger board ({', '.join(names)})" if names else ""
