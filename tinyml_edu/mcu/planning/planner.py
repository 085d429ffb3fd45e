"""Plans: offsets for every activation of a graph, verified, with a certificate of how good they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import DoesNotFitError, UnknownNameError
from ...ir.graph import Graph
from .buffers import Buffer, arena_bytes, lower_bound
from .exact import Solution, exact, solve
from .explanation import explain_sram
from .placement import Planner, first_fit, greedy, greedy_by_breadth, hill_climb, naive
from .sharing import Sharing, scratch_name, share
from .verification import verify, verify_values

if TYPE_CHECKING:
    from ..boards import Board

STACK_BYTES = 2048
"""RAM kept for the stack beside the arena; a deeper stack leaves the RAM, and the emulator faults."""


@dataclass(frozen=True)
class Plan:
    """Where every activation of a graph lies in an arena.

    Attributes
    ----------
    offsets : dict of str to int
        Bytes from the start of the arena, of every activation and every buffer, by name.  Tensors that share
        memory have a buffer in common, which is named after one of them.
    arena_bytes, lower_bound_bytes : int
        Size of the arena, and what no plan of these buffers can undercut.  Both hold the graph's input
        (resident: a caller writes all of it before an inference), its output, and scratch.
    planner : str
    proven_optimal : bool
        The arena is the lower bound, or an exact search ended without finding a smaller one.
    seconds : float
        What the planner took.
    buffers : tuple of Buffer
    """

    offsets: dict[str, int]
    arena_bytes: int
    lower_bound_bytes: int
    planner: str
    proven_optimal: bool
    seconds: float
    buffers: tuple[Buffer, ...]

    def scratch(self, node_name: str) -> tuple[int, int]:
        """Return (offset, bytes) of a node's working memory; (0, 0) if it has none."""
        name = scratch_name(node_name)
        return next(((self.offsets[name], b.size_bytes) for b in self.buffers if b.name == name), (0, 0))


def solve_best(buffers: Sequence[Buffer]) -> Solution:
    """Return the smallest plan of all planners; each slower one runs only where the others miss the bound."""
    bound = lower_bound(buffers)
    offsets = naive(buffers)
    for planner in (first_fit, greedy, hill_climb):
        if arena_bytes(buffers, offsets) == bound:
            return Solution(offsets, proven=True)
        offsets = min(offsets, planner(buffers), key=lambda o: arena_bytes(buffers, o))
    return solve(buffers, offsets)


def best(buffers: Sequence[Buffer]) -> list[int]:
    """Return the offsets of `solve_best`."""
    return solve_best(buffers).offsets


PLANNERS: dict[str, Planner] = {
    "naive": naive,
    "first_fit": first_fit,
    "greedy": greedy,
    "greedy_by_breadth": greedy_by_breadth,
    "hill_climb": hill_climb,
    "exact": exact,
    "best": best,
}

_PROVING: dict[str, Callable[[Sequence[Buffer]], Solution]] = {"exact": solve, "best": solve_best}
"""Planners that can prove a plan optimal although it is above the lower bound."""


def plan(
    graph: Graph,
    board: Board | None = None,
    *,
    planner: str = "best",
    in_place: bool = True,
    scratch: Mapping[str, int] | None = None,
) -> Plan:
    """Return offsets for every activation of ``graph``, verified.

    Parameters
    ----------
    graph : Graph
        A graph whose activations have their final types (int8 for a deployable network).
    board : Board, optional
        If given, the arena and `STACK_BYTES` of stack must fit its SRAM.
    planner : str, default="best"
        A key of `PLANNERS`.  "naive" shares nothing but views.
    in_place : bool, default=True
        Let results lie over operands that die, and parts of a concatenation inside it, see `sharing`.
    scratch : mapping of str to int, optional
        Bytes of working memory that a node, by name, asks for while it runs.

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
    shares = in_place and planner != "naive"
    result = _made(graph, share(graph, scratch) if shares else Sharing(graph, scratch), planner)
    if board is not None and (missing := result.arena_bytes + STACK_BYTES - board.sram_bytes) > 0:
        raise DoesNotFitError(explain_sram(graph, result, board, missing))
    return result


def placed(offsets: Mapping[str, int], arena_bytes: int) -> Plan:
    """Return a plan with the offsets of somebody else, not verified, without scratch."""
    return Plan(
        offsets=dict(offsets),
        arena_bytes=arena_bytes,
        lower_bound_bytes=arena_bytes,
        planner="placed",
        proven_optimal=False,
        seconds=0.0,
        buffers=(),
    )


def streamed_input_bound(graph: Graph) -> int:
    """Return the lower bound if the input came piece by piece and took no place in the arena, bytes."""
    return lower_bound(share(graph).buffers(resident_input=False))


def compare(graph: Graph, scratch: Mapping[str, int] | None = None) -> dict[str, Plan]:
    """Return the plan of each planner; what one has proven optimal is proven for all that reach it.

    "naive" has its own lower bound, that of buffers that share nothing but views.
    """
    plans = {name: plan(graph, planner=name, scratch=scratch) for name in PLANNERS}
    optimum = {p.arena_bytes for p in plans.values() if p.proven_optimal and p.planner != "naive"}
    return {
        name: replace(p, proven_optimal=p.proven_optimal or (name != "naive" and p.arena_bytes in optimum))
        for name, p in plans.items()
    }


def _made(graph: Graph, sharing: Sharing, planner: str) -> Plan:
    buffers = tuple(sharing.buffers())
    bound = lower_bound(buffers)
    start = time.perf_counter()
    if planner in _PROVING:
        solution = _PROVING[planner](buffers)
    else:
        solution = Solution(PLANNERS[planner](buffers), proven=False)
    seconds = time.perf_counter() - start
    arena = arena_bytes(buffers, solution.offsets)
    by_buffer = {b.name: offset for b, offset in zip(buffers, solution.offsets)}
    by_tensor = {name: by_buffer[place.root] + place.offset for name, place in sharing.places.items()}
    result = Plan(
        offsets=by_buffer | by_tensor,
        arena_bytes=arena,
        lower_bound_bytes=bound,
        planner=planner,
        proven_optimal=solution.proven or arena == bound,
        seconds=seconds,
        buffers=buffers,
    )
    verify(result)
    verify_values(graph, result)
    return result
