"""The set of kernels with the fewest instructions (or cycles) that fits the flash, from measured costs.

Every layer takes one of its candidates, its plain kernel among them.  Layers that take kernels of one shape
share the code, so the choices depend on each other: a multiple-choice knapsack with shared items, as an
integer program.  With x[l, k] = 1 where layer l takes candidate k and y[f] = 1 where function f is used::

    minimise    sum cost[l, k] x[l, k]
    subject to  sum_k x[l, k] = 1                              for each layer l
                sum_(k that calls f) x[l, k] <= y[f]           for each layer l and function f
                code, constants beyond the plain ones, and flash within their limits

Sets of equal cost are told apart by the flash that they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import DoesNotFitError, UnknownNameError, UsageError
from ...ir.graph import Graph, Node
from ..boards import Board
from . import candidates, measure
from .selection import CODE_BYTES, EXTRA_WEIGHT_BYTES, Fast, is_eligible, offers, plain_bytes

GOALS = ("instructions", "cycles")
WAYS = ("model", *GOALS)
"""How kernels are chosen: by the cost model of `selection`, or by measuring."""


@dataclass(frozen=True)
class Limits:
    """What the kernels of a network may take, bytes.

    Attributes
    ----------
    code_bytes : int
        Code of specialised kernels.
    extra_bytes : int
        Constants beyond those of the plain kernels, summed over the layers that need more.
    flash_bytes : int, optional
        Code and constants of all layers that have candidates.
    """

    code_bytes: int = CODE_BYTES
    extra_bytes: int = EXTRA_WEIGHT_BYTES
    flash_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Option:
    """One kernel of one layer: ``fast`` is None for the plain one; constants in bytes."""

    fast: Fast | None
    cost: measure.Cost
    constant_bytes: int
    extra_bytes: int

    @property
    def name(self) -> str:
        """The functions that a layer calls, without those whose name ends another's."""
        names = list(self.cost.shared_bytes)
        inner = {n for n in names for m in names if n != m and m.endswith(n.removeprefix("te_"))}
        return " + ".join(n for n in names if n not in inner)

    def row(self, *, chosen: bool) -> dict[str, Any]:
        """Return the option as a row of the report."""
        return {
            "kernel": self.name,
            "instructions": self.cost.instructions,
            "cycles": self.cost.cycles,
            "code_bytes": self.cost.code_bytes,
            "constant_bytes": self.constant_bytes,
            "chosen": chosen,
        }


@dataclass(frozen=True, eq=False)
class Search:
    """Measured options of each node that has any, by node name, and which of them is taken."""

    options: dict[str, list[Option]]
    taken: dict[str, int]
    goal: str
    limits: Limits

    def choose(self, node: Node, scratch_bytes: int | None = None, *, in_place: bool = False) -> Fast | None:
        """See `Chooser.choose`; a kernel that the plan does not suit gives way to the plain one."""
        if node.name not in self.options:
            return None
        fast = self.options[node.name][self.taken[node.name]].fast
        return fast if fast and fast.suits(scratch_bytes, in_place=in_place) else None

    def rows(self, node: str) -> list[dict[str, Any]]:
        """Return the candidates of a node, the cheapest first; none for a node without any."""
        rows = [o.row(chosen=i == self.taken[node]) for i, o in enumerate(self.options.get(node, []))]
        return sorted(rows, key=lambda row: (row[self.goal], row["code_bytes"]))

    @property
    def flash_bytes(self) -> int:
        """Code and constants of the options taken."""
        return flash_of([self.options[name][i] for name, i in self.taken.items()])

    def within(self, flash_bytes: int) -> Search:
        """Return the best set of the same options that takes no more flash than that.

        Raises
        ------
        DoesNotFitError
            If none does.
        """
        limits = replace(self.limits, flash_bytes=flash_bytes)
        taken = solve(list(self.options.values()), limits, self.goal)
        return replace(self, limits=limits, taken=dict(zip(self.options, taken)))


def measured_choice(
    graph: Graph, board: Board, way: str, *, requant: str = "exact", optimize: str = "speed"
) -> Search | None:
    """Return the kernels of a network, measured, or None where ``way`` leaves the choice to the cost model.

    Raises
    ------
    UnknownNameError
        If ``way`` is not one of `WAYS`.
    UsageError
        If there is nothing to measure: another core, or plain kernels only.
    """
    if way not in WAYS:
        raise UnknownNameError("search", way, WAYS)
    if way == "model":
        return None
    if not board.has_dsp:
        raise UsageError(
            f"search={way!r} measures specialised kernels, and {board.name} ({board.core}) runs none;"
            " use search='model'"
        )
    if optimize != "speed":
        raise UsageError(
            f"search={way!r} measures specialised kernels; use it with optimize='speed', or search='model'"
        )
    return search(graph, board, requant=requant, goal=way)


def search(
    graph: Graph,
    board: Board,
    *,
    requant: str = "exact",
    goal: str = "instructions",
    limits: Limits | None = None,
) -> Search:
    """Measure the candidates of every node on the board's core, and take the cheapest set within the limits.

    Raises
    ------
    ToolchainError
        If the compiler or the emulator is missing or fails.
    """
    if goal not in GOALS:
        raise UnknownNameError("goal", goal, GOALS)
    nodes = [node for node in graph.nodes if is_eligible(graph, node)]
    kernels = [[*_kernels(graph, node, requant), None] for node in nodes]
    requests = [(node, fast) for node, some in zip(nodes, kernels) for fast in some]
    costs = iter(measure.measure(graph, requests, board, requant))
    options = {
        node.name: [_option(graph, node, fast, next(costs)) for fast in some]
        for node, some in zip(nodes, kernels)
    }
    limits = limits or Limits()
    taken = solve(list(options.values()), limits, goal)
    return Search(options, dict(zip(options, taken)), goal, limits)


def _kernels(graph: Graph, node: Node, requant: str) -> list[Fast]:
    """Return every specialised kernel of a node once: the candidates, then what is taken unmeasured."""
    made = [candidates.build(d, graph, node, requant) for d in candidates.describe(graph, node, requant)]
    made += offers(graph, node, requant)
    return list({(*fast.sources, fast.call): fast for fast in made}.values())


def _option(graph: Graph, node: Node, fast: Fast | None, cost: measure.Cost) -> Option:
    plain = plain_bytes(graph, node)
    size = fast.stream.nbytes if fast else plain
    return Option(fast, cost, size, max(size - plain, 0))


def flash_of(options: Sequence[Option]) -> int:
    """Return the code, shared functions once, and the constants of one option of each layer, bytes."""
    shared = {name: size for option in options for name, size in option.cost.shared_bytes.items()}
    return sum(shared.values()) + sum(o.cost.own_bytes + o.constant_bytes for o in options)


def solve(layers: Sequence[Sequence[Option]], limits: Limits, goal: str) -> list[int]:
    """Return the option of each layer in the cheapest set within the limits.

    Raises
    ------
    DoesNotFitError
        If no set is within the limits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not layers:
        if limits.flash_bytes is not None and limits.flash_bytes < 0:
            raise DoesNotFitError("no layer has kernels to choose from, so no choice takes less flash")
        return []
    options = [option for layer in layers for option in layer]
    sizes = {name: size for o in options for name, size in o.cost.shared_bytes.items()}
    is_special = {name: o.fast is not None for o in options for name in o.cost.shared_bytes}
    matrix, low, high = _choices(layers, list(sizes))
    own, shared = np.array([o.cost.own_bytes for o in options]), np.array(list(sizes.values()))
    special = np.array([o.fast is not None for o in options])
    constants = np.array([o.constant_bytes for o in options])
    flash = np.concatenate([own + constants, shared])
    rows = [
        (np.concatenate([own * special, shared * list(is_special.values())]), limits.code_bytes),
        (np.concatenate([[o.extra_bytes for o in options], 0 * shared]), limits.extra_bytes),
    ]
    rows += [(flash, limits.flash_bytes)] if limits.flash_bytes is not None else []
    # Costs are whole, so less than one for all the flash there is cannot change which set is cheapest.
    cost = np.concatenate([[getattr(o.cost, goal) for o in options], 0 * shared])
    result = milp(
        cost + flash * (0.5 / flash.sum()),
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(matrix, low, high),
            LinearConstraint(np.array([row for row, _ in rows]), -np.inf, [most for _, most in rows]),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise DoesNotFitError(f"no set of kernels is within the limits ({result.message}); raise them")
    taken = np.split(result.x[: len(options)], np.cumsum([len(layer) for layer in layers])[:-1])
    return [int(np.argmax(part)) for part in taken]


def _choices(layers: Sequence[Sequence[Option]], functions: list[str]) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return the rows of `milp` that say: one option a layer, and with it the functions that it calls."""
    from scipy.sparse import csr_array

    place = {name: sum(map(len, layers)) + i for i, name in enumerate(functions)}
    entries: list[tuple[int, int, float]] = []  # row, column, value
    low: list[float] = []
    high: list[float] = []
    column = 0
    for layer in layers:
        entries += [(len(low), column + i, 1.0) for i in range(len(layer))]
        low.append(1.0)
        high.append(1.0)
        for name in {name for option in layer for name in option.cost.shared_bytes}:
            calls = [column + i for i, option in enumerate(layer) if name in option.cost.shared_bytes]
            entries += [(len(low), i, 1.0) for i in calls] + [(len(low), place[name], -1.0)]
            low.append(-np.inf)
            high.append(0.0)
        column += len(layer)
    rows, columns, values = zip(*entries)
    shape = (len(low), column + len(functions))
    return csr_array((values, (rows, columns)), shape=shape), np.array(low), np.array(high)
