"""Operator reordering: the order of a branched graph's nodes decides how much is live at once.

Dynamic programming over frontiers: the live bytes after a set of nodes do not depend on their order, so one
entry for each set of executed nodes is enough, the lowest peak that reaches it.  Two rules keep the sets
few:

* a set whose peak is not below that of the given order is dropped, and
* a node that frees at least what it takes, at no higher peak, runs at once: any later place is no better.

If one step still has more than `WIDTH` sets, the best ones are kept (a beam), and the result says so.
Liberis and Lane, 2019, arXiv:1910.05110, have the dynamic programme without the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...ir.graph import Graph, Node
from .buffers import aligned, lower_bound
from .sharing import OVER_ANY, Sharing, share

WIDTH = 600
"""Most sets of executed nodes kept from one step to the next."""

_SETS = 20_000
"""Most sets kept in all, which keeps graphs of a hundred nodes near a second."""


@dataclass(frozen=True)
class Schedule:
    """An order of execution.

    Attributes
    ----------
    graph : Graph
        The graph with its nodes in the new order; the given graph itself if no order has a lower bound.
    exact : bool
        Whether all orders were considered (with views and element-wise results in place).
    bound_bytes, given_bound_bytes : int
        Lower bound of any plan in the new and in the given order.
    """

    graph: Graph
    exact: bool
    bound_bytes: int
    given_bound_bytes: int


def reorder(graph: Graph, scratch: Mapping[str, int] | None = None, *, width: int = WIDTH) -> Schedule:
    """Return the order of execution with the lowest peak; never worse than the given one.

    Parameters
    ----------
    graph : Graph
    scratch : mapping of str to int, optional
        Bytes of working memory that a node, by name, needs while it runs.
    width : int
        Most sets of executed nodes kept from one step to the next.
    """
    given = lower_bound(share(graph, scratch).buffers())
    order, exact = _Frontiers(graph, scratch or {}).search(width)
    if order is not None:
        nodes = [graph.nodes[i] for i in order]
        changed = replace(graph, nodes=nodes).validate()
        bound = lower_bound(share(changed, scratch).buffers())
        if bound < given:
            return Schedule(changed, exact, bound, given)
    return Schedule(graph, exact, given, given)


@dataclass(frozen=True)
class _State:
    """After a set of nodes: highest live bytes so far, live bytes now, and how it was reached."""

    peak: int
    live: int
    node: int
    before: _State | None


class _Frontiers:
    """The graph as bit masks: bit i of a set stands for node i.

    A group is a tensor with its views: ``users[g]`` are the nodes that make, view or read it, ``bytes[g]``
    its size, ``held`` the groups that hold an output of the graph.
    """

    def __init__(self, graph: Graph, scratch: Mapping[str, int]) -> None:
        self.nodes, self.graph = graph.nodes, graph
        self.scratch = [aligned(scratch.get(node.name, 0)) for node in graph.nodes]
        root = {name: place.root for name, place in Sharing(graph).places.items()}
        self.bytes = {name: aligned(graph[name].nbytes) for name in root.values()}
        self.held = {root[name] for name in graph.outputs if name in root}
        self.users = dict.fromkeys(self.bytes, 0)
        makers = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
        self.needs = [0] * len(graph.nodes)
        self.reads: list[list[str]] = []
        self.makes: list[list[str]] = []
        for i, node in enumerate(graph.nodes):
            self.reads.append(list(dict.fromkeys(root[n] for n in node.inputs if n in root)))
            self.makes.append([n for n in node.outputs if root[n] == n])
            for name in (*node.inputs, *node.outputs):
                if name in root:
                    self.users[root[name]] |= 1 << i
            for name in node.inputs:
                if name in makers:
                    self.needs[i] |= 1 << makers[name]
        self.start = sum(self.bytes[root[name]] for name in dict.fromkeys(graph.inputs))

    def search(self, width: int) -> tuple[list[int] | None, bool]:
        """Return an order with a peak below the given one's, or None, and whether all orders were seen."""
        limit, width = self._given_peak(), max(1, min(width, _SETS // max(len(self.nodes), 1)))
        level, exact = {0: _State(self.start, self.start, -1, None)}, True
        for _ in self.nodes:
            following: dict[int, _State] = {}
            for done, state in level.items():
                for reached, new in self._steps(done, state):
                    known = following.get(reached)
                    if new.peak < limit and (known is None or new.peak < known.peak):
                        following[reached] = new
            if len(following) > width:
                kept = sorted(following.items(), key=lambda item: (item[1].peak, item[1].live, item[0]))
                following, exact = dict(kept[:width]), False
            level = following
        if not level:
            return None, exact
        (state,) = level.values()
        return _path(state), exact

    def _given_peak(self) -> int:
        state = _State(self.start, self.start, -1, None)
        for i in range(len(self.nodes)):
            state = self._run(i, (1 << i) - 1, state)
        return state.peak

    def _steps(self, done: int, state: _State) -> list[tuple[int, _State]]:
        """Return what can follow: one node that costs nothing, or every node that is ready."""
        steps = []
        for i in range(len(self.nodes)):
            if not done >> i & 1 and not self.needs[i] & ~done:
                new = self._run(i, done, state)
                if new.live <= state.live and new.peak == state.peak:
                    return [(done | 1 << i, new)]
                steps.append((done | 1 << i, new))
        return steps

    def _run(self, i: int, done: int, state: _State) -> _State:
        """Return the state after node ``i``: its result comes, then what nobody needs any more goes."""
        node, after = self.nodes[i], done | 1 << i
        freed = [g for g in self.reads[i] if g not in self.held and not self.users[g] & ~after]
        made = sum(self.bytes[g] for g in self.makes[i])
        dead = sum(self.bytes[g] for g in self.makes[i] if not self.users[g] & ~after and g not in self.held)
        over = made if self._writes_over(node, freed) else 0
        highest = state.live + made - over + self.scratch[i]
        live = state.live + made - dead - sum(self.bytes[g] for g in freed)
        return _State(max(state.peak, highest), live, i, state)

    def _writes_over(self, node: Node, freed: list[str]) -> bool:
        size = self.graph[node.outputs[0]].nbytes
        return node.op in OVER_ANY and any(self.graph[g].nbytes == size for g in freed)


def _path(state: _State) -> list[int]:
    order = []
    while state.before is not None:
        order.append(state.node)
        state = state.before
    return order[::-1]
