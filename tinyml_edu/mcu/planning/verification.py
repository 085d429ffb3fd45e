"""Verification of plans.  Nothing here shares code with what makes them.

`verify` looks at buffers: lives and addresses.  `verify_values` runs the network on symbols: every byte of
the arena holds the name of the value that was last written there, and every node must find the values that
it reads.  That holds for anything that shares memory, however the plan came by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...ir.graph import Graph, Kind, Node
from .buffers import ALIGNMENT, Buffer, PlanError

if TYPE_CHECKING:
    from .planner import Plan

_ELEMENTWISE = frozenset(
    ("ADD", "SUB", "MUL", "LOGISTIC", "HARD_SWISH", "RELU", "RELU6", "QUANTIZE", "SOFTMAX")
)
"""Ops whose C kernel says "y may be x itself": element i of y needs element i of x and nothing behind it."""


def verify(plan: Plan) -> None:
    """Raise `PlanError` unless the buffers of the plan are safe.

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


def verify_values(graph: Graph, plan: Plan) -> None:
    """Raise `PlanError` unless every node finds its inputs in the arena, and the caller the outputs.

    A node may write over an input only where its op allows it: element for element at the same address, or a
    depthwise convolution with stride 1 that has scratch for the rows it still needs.  Scratch is filled with
    nonsense before and after its node.
    """
    arena = _Arena(graph, plan)
    for name in graph.inputs:
        arena.write(name, arena.fresh(name))
    for step, node in enumerate(graph.nodes):
        scratch = [b for b in plan.buffers if b.kind == "scratch" and b.first <= step <= b.last]
        arena.spoil(scratch)
        values = [arena.read(name, node.name) for name in node.inputs]
        for name in node.outputs:
            for source in node.inputs:
                arena.check_overlap(node, source, name, sum(b.size_bytes for b in scratch))
            if node.op in ("RESHAPE", "CONCATENATION"):
                arena.write(name, _joined(graph, node, values))
            else:
                arena.write(name, arena.fresh(name))
        arena.spoil(scratch)
    for name in graph.outputs:
        arena.read(name, "the caller")


def _joined(graph: Graph, node: Node, values: list[np.ndarray]) -> np.ndarray:
    """Return the value of a node that only moves bytes, flat."""
    if node.op == "RESHAPE":
        return values[0]
    shapes = [(*graph[name].shape, -1) for name in node.inputs]
    return np.concatenate([v.reshape(s) for v, s in zip(values, shapes)], axis=node.attrs.axis).ravel()


class _Arena:
    """One int64 a byte: which byte of which tensor it holds.  A constant's bytes have names as well."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.bytes = np.full(plan.arena_bytes, -1, np.int64)
        self.values: dict[str, np.ndarray] = {}
        self._next = 0

    def fresh(self, name: str) -> np.ndarray:
        """Return names for the bytes of a new value."""
        size = self.graph[name].nbytes
        self._next += size
        return np.arange(self._next - size, self._next)

    def _region(self, name: str) -> slice:
        if name not in self.plan.offsets:
            raise PlanError(f"{name} has no offset; plan the graph again")
        start, size = self.plan.offsets[name], self.graph[name].nbytes
        if start < 0 or start % ALIGNMENT or start + size > len(self.bytes):
            raise PlanError(f"{name} at {start} (+{size} B) is unaligned or outside the arena")
        return slice(start, start + size)

    def write(self, name: str, value: np.ndarray) -> None:
        self.values[name] = value
        self.bytes[self._region(name)] = value

    def read(self, name: str, reader: str) -> np.ndarray:
        """Return the value of a tensor, which must be where the plan says."""
        if self.graph[name].kind is Kind.CONSTANT:
            return self.values.setdefault(name, self.fresh(name))
        if not np.array_equal(self.bytes[self._region(name)], self.values[name]):
            raise PlanError(f"{name} overlaps with a tensor that is written before {reader} reads {name}")
        return self.values[name]

    def spoil(self, scratch: list[Buffer]) -> None:
        """Fill working memory with nonsense."""
        for b in scratch:
            start = self.plan.offsets[b.name]
            self.bytes[start : start + b.size_bytes] = -2

    def check_overlap(self, node: Node, source: str, target: str, scratch_bytes: int) -> None:
        """Raise unless ``node`` may write ``target`` where ``source`` lies."""
        if self.graph[source].kind is Kind.CONSTANT:
            return
        a, b = self._region(source), self._region(target)
        same = (a.start, a.stop) == (b.start, b.stop)
        if a.stop <= b.start or b.stop <= a.start:
            return
        if node.op == "CONCATENATION":
            legal = self._is_in_its_place(node, source, a.start - b.start)
        else:
            legal = same and (
                node.op == "RESHAPE"
                or node.op in _ELEMENTWISE
                or _slides_in_place(self.graph, node, scratch_bytes)
            )
        if not legal:
            raise PlanError(f"the output of {node.name} ({node.op}) would overlap its input {source}")

    def _is_in_its_place(self, node: Node, source: str, distance: int) -> bool:
        """Whether an input of CONCATENATION lies where it belongs in the output, ``distance`` bytes in."""
        outer = self.graph[node.outputs[0]].shape[: node.attrs.axis]
        before = 0
        for name in node.inputs:
            if name == source and distance == before:
                return all(n == 1 for n in outer)
            before += self.graph[name].nbytes
        return False


def _slides_in_place(graph: Graph, node: Node, scratch_bytes: int) -> bool:
    """Whether a depthwise convolution may write over its input, and the rows it still needs fit the scratch.

    Output row i reads input rows i - pad_top to i - pad_top + reach - 1; four channels are done at a time.
    """
    if node.op != "DEPTHWISE_CONV_2D" or node.attrs.stride != (1, 1):
        return False
    x, y = graph[node.inputs[0]].shape, graph[node.outputs[0]].shape
    reach = (graph[node.inputs[1]].shape[1] - 1) * node.attrs.dilation[0] + 1
    return x == y and reach > node.attrs.padding[0] >= 0 and scratch_bytes >= reach * x[2] * 4
