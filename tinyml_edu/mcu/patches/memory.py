"""What a patch schedule costs: bytes that are live at each step, and multiply-accumulates.

The figures here are exact sums of tensor sizes, without alignment, at one byte an element (a float graph
counts as the int8 network that it becomes); a plan rounds each buffer up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ...errors import UnknownNameError, UsageError
from ...ir.graph import Graph, Node
from ...ir.ops import macs
from .schedule import Schedule, data_inputs

INPUTS = ("resident", "copied", "streamed", "uncounted")


@dataclass(frozen=True)
class Accounting:
    """What counts as memory; every figure needs to say it.

    Attributes
    ----------
    input : {"resident", "copied", "streamed", "uncounted"}
        The whole input image lies in the arena while patches run, and they read windows of it; or each copies
        its region out of it first; or each fetches its region into the arena from outside, a camera or flash;
        or that region is not counted either, as in publications.
    in_place_depthwise : bool
        A depthwise convolution overwrites an input that nobody else reads: its step counts the larger of
        both.  The rows that such a kernel keeps aside are not counted.
    skips : bool
        Count what is kept for a later residual sum or concatenation.  Publications that look at one layer at
        a time leave it out; a network does not run without it.
    """

    input: str = "resident"
    in_place_depthwise: bool = False
    skips: bool = True

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise UnknownNameError("input accounting", self.input, INPUTS)


PUBLISHED = Accounting(input="uncounted", in_place_depthwise=True, skips=False)
"""How the figures of MCUNetV2 (arXiv:2110.15352) come out."""


@dataclass(frozen=True)
class Cost:
    """Memory and arithmetic of one inference.

    Attributes
    ----------
    peak_bytes : int
        Largest sum of live tensors over all steps.
    stage_bytes, rest_bytes : int
        The same over the steps in patches and over the others; 0 if there are none.
    peak_node : str
        Name of the node of the peak.
    live : dict of str to int
        Bytes by tensor at the peak.
    macs, whole_macs : int
        Of the schedule, halos included, and of the whole image at once.
    """

    peak_bytes: int
    stage_bytes: int
    rest_bytes: int
    peak_node: str
    live: Mapping[str, int]
    macs: int
    whole_macs: int

    @property
    def overhead(self) -> float:
        """Multiply-accumulates that halos add, as a fraction of the whole image's."""
        return self.macs / self.whole_macs - 1 if self.whole_macs else 0.0


def cost(schedule: Schedule, accounting: Accounting | None = None) -> Cost:
    """Return what ``schedule`` needs, counted as ``accounting`` says; by default the input is resident."""
    accounting = accounting or Accounting()
    graph = schedule.graph
    lives = tensor_lives(schedule, accounting.input)
    steps = [_live_at(schedule, lives, step, accounting) for step in range(len(graph.nodes))]
    sums = [sum(live.values()) for live in steps]
    peak = max(range(len(sums)), key=sums.__getitem__, default=0)
    k = schedule.layers
    return Cost(
        peak_bytes=max(sums, default=0),
        stage_bytes=max(sums[:k], default=0),
        rest_bytes=max(sums[k:], default=0),
        peak_node=graph.nodes[peak].name if graph.nodes else "",
        live=steps[peak] if steps else {},
        macs=sum(schedule.macs().values()),
        whole_macs=sum(macs(graph).values()),
    )


@dataclass(frozen=True)
class Life:
    """One block of memory: the tensor, whether it holds a patch of it or all, bytes, first and last step."""

    tensor: str
    is_patch: bool
    size_bytes: int
    first: int
    last: int


def tensor_lives(schedule: Schedule, source: str) -> list[Life]:
    """Return the blocks that a schedule needs; step i is node i, all patches of it together.

    ``source`` is a key of `INPUTS`.  Patches interleave: what they leave behind is live from step 0, and so
    is what they all read.

    Raises
    ------
    UsageError
        If the input is streamed but read as a whole.
    """
    graph, k = schedule.graph, schedule.layers
    end = max(len(graph.nodes) - 1, 0)
    last = _last_reads(graph)
    lives = []
    for name in graph.inputs:
        whole = k == 0 or any(name in node.inputs for node in graph.nodes[k:]) or name in graph.outputs
        if source in ("resident", "copied"):
            stop = max(last.get(name, 0), k - 1, 0)
            lives.append(Life(name, False, _bytes(graph, name), 0, end if name in graph.outputs else stop))
        elif whole and source == "streamed":
            raise UsageError(f"{graph.name} reads its input {name!r} as a whole; it cannot be streamed")
        if source in ("copied", "streamed") and name in schedule.rows:
            lives.append(Life(name, True, prod(schedule.patch_shape(name)), 0, last[name]))
    for step, node in enumerate(graph.nodes):
        for name in node.outputs:
            stop = end if name in graph.outputs else last.get(name, step)
            if step >= k:
                lives.append(Life(name, False, _bytes(graph, name), step, stop))
                continue
            if name in schedule.tile_rows:
                lives.append(Life(name, False, _bytes(graph, name), 0, max(stop, k - 1)))
            if name in schedule.rows and not schedule.is_direct(name):
                size = prod(schedule.patch_shape(name))
                lives.append(Life(name, True, size, step, _last_read_before(graph, name, k, step)))
    return lives


def _last_reads(graph: Graph) -> dict[str, int]:
    return {name: step for step, node in enumerate(graph.nodes) for name in node.inputs}


def _last_read_before(graph: Graph, name: str, k: int, step: int) -> int:
    return max((i for i, node in enumerate(graph.nodes[:k]) if name in node.inputs), default=step)


def _bytes(graph: Graph, name: str) -> int:
    return prod(graph[name].shape)


def _live_at(schedule: Schedule, lives: list[Life], step: int, accounting: Accounting) -> dict[str, int]:
    """Return the bytes of each block that counts at ``step``, by tensor ("patch of x" for a part)."""
    graph, in_stage = schedule.graph, step < schedule.layers
    node = graph.nodes[step]
    touched = {*node.inputs, *node.outputs}
    live: dict[str, int] = {}
    for life in lives:
        collected = in_stage and not life.is_patch  # the tensor that the patches fill or all read
        if life.first <= step <= life.last and (accounting.skips or collected or life.tensor in touched):
            live[f"patch of {life.tensor}" if life.is_patch else life.tensor] = life.size_bytes
    if accounting.in_place_depthwise and (pair := _in_place(schedule, lives, step, node)):
        smaller = min(pair, key=lambda name: live[name])
        del live[smaller]
    return live


def _in_place(schedule: Schedule, lives: list[Life], step: int, node: Node) -> tuple[str, str] | None:
    """Return the labels of the blocks that a depthwise convolution can share, or None."""
    graph = schedule.graph
    if node.op != "DEPTHWISE_CONV_2D":
        return None
    (x,), (y,) = data_inputs(graph, node), node.outputs
    if graph[x].shape[3] != graph[y].shape[3]:
        return None
    in_stage = step < schedule.layers
    ends = [life for life in lives if life.tensor == x and life.is_patch == in_stage and life.last == step]
    starts = [life for life in lives if life.tensor == y and life.is_patch == in_stage and life.first == step]
    if not ends or not starts:
        return None
    return (f"patch of {x}", f"patch of {y}") if in_stage else (x, y)
