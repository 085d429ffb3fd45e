"""Which activations are alive at each step of a schedule, and how many elements they hold.

This counts the values that must exist, nothing else: no alignment, no fragmentation, no scratch.  It is
what a perfect allocator would need; `tinyml_edu.mcu.plan` reports the arena that a real one needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..ir.graph import Graph, Kind

# One step: the name that it writes and the names that it reads.
Step = tuple[str, Sequence[str]]


def lifetimes(schedule: Sequence[Step], outputs: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Return ``name -> (first, last)``: the steps, both included, during which each value must exist.

    A value lives from the step that writes it to the last step that reads it.  One that no step writes is
    an input of the network and lives from step 0; one in ``outputs`` lives to the end.

    Examples
    --------
    >>> lifetimes([("a", ["x"]), ("b", ["a"]), ("c", ["b", "x"])])
    {'x': (0, 2), 'a': (0, 1), 'b': (1, 2), 'c': (2, 2)}
    """
    spans: dict[str, tuple[int, int]] = {}
    for step, (written, read) in enumerate(schedule):
        for name in read:
            spans[name] = (spans.get(name, (0, 0))[0], step)
        spans.setdefault(written, (step, step))
    for name in outputs:
        spans[name] = (spans.get(name, (0, 0))[0], len(schedule) - 1)
    return spans


def live_sizes(schedule: Sequence[Step], sizes: Mapping[str, int], outputs: Sequence[str] = ()) -> list[int]:
    """Return, for each step, the sum of ``sizes`` of the values that are alive in it."""
    spans = lifetimes(schedule, outputs)
    return [
        sum(sizes[name] for name, (first, last) in spans.items() if first <= step <= last)
        for step in range(len(schedule))
    ]


def peak_activation_bytes(
    schedule: Sequence[Step], sizes: Mapping[str, int], outputs: Sequence[str] = ()
) -> int:
    """Return the largest sum of ``sizes`` (bytes) that is alive in one step.

    Examples
    --------
    >>> peak_activation_bytes([("a", ["x"]), ("b", ["a"])], {"x": 100, "a": 400, "b": 50})
    500
    """
    return max(live_sizes(schedule, sizes, outputs))


def schedule_of(graph: Graph) -> tuple[list[Step], dict[str, int], list[str]]:
    """Return the graph as ``(schedule, elements by name, outputs)`` for the functions above.

    RESHAPE moves no data: its output goes by the name of its input and it writes nothing new.  Constants
    live in flash and do not appear; a variable appears in the outputs, because it must outlive the run.
    """
    root: dict[str, str] = {}

    def of(name: str) -> str:
        return root.get(name, name)

    schedule: list[Step] = []
    for node in graph.nodes:
        read = [of(name) for name in node.inputs if graph[name].kind is not Kind.CONSTANT]
        if node.op == "RESHAPE":
            root[node.outputs[0]] = read[0]
        schedule.append((of(node.outputs[0]), read))
    kept = [name for name, tensor in graph.tensors.items() if tensor.kind is Kind.VARIABLE]
    names = {name for written, read in schedule for name in (written, *read)} | set(kept)
    sizes = {name: math.prod(graph[name].shape) for name in names}
    return schedule, sizes, [*map(of, graph.outputs), *kept]


def live_elements(graph: Graph) -> list[int]:
    """Return, for each node, the elements of all activations that must exist while it runs.

    Parameters
    ----------
    graph : Graph
        Nodes in execution order; each shape counts as stored, batch included.

    Returns
    -------
    list of int
        ``live[i]`` belongs to ``graph.nodes[i]``; ``max(live)`` is the peak of this schedule.
    """
    return live_sizes(*schedule_of(graph))
