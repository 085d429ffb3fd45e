"""What a plan says to a reader: the peak, the tensors there, and what to try if it does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...ir.graph import Graph
from .buffers import Buffer, live_at, live_bytes

if TYPE_CHECKING:
    from ..boards import Board
    from .planner import Plan


def peak(plan: Plan) -> tuple[int, list[Buffer]]:
    """Return the first step with the most live bytes and the buffers live there, the largest first."""
    step = int(np.argmax(live_bytes(plan.buffers)))
    return step, live_at(plan.buffers, step)


def explain_sram(graph: Graph, plan: Plan, board: Board, missing_bytes: int) -> str:
    """Say in one line why the network does not fit the SRAM of ``board``, and what to try."""
    step, live = peak(plan)
    where = graph.nodes[step].name if graph.nodes else graph.name
    tensors = ", ".join(f"{short_name(b.name)} ({b.size_bytes:,} B)" for b in live)
    needed = board.sram_bytes + missing_bytes
    advice = [
        "a smaller input",
        "fewer channels in the layers around the peak",
        _boards_with(needed, "sram_bytes"),
    ]
    if not plan.proven_optimal and plan.planner != "best":
        advice.insert(0, "planner='best'")
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
    from ..boards import BOARDS

    names = [name for name, board in BOARDS.items() if getattr(board, field) >= needed]
    return f"a larger board ({', '.join(names)})" if names else ""
