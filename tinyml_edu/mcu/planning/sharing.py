"""Which tensors share a buffer: views, results written over an operand, and parts of a concatenation.

Sharing belongs to the plan and not to the graph: the graph says what is computed, the plan where it lies.

* RESHAPE: input and output are the same bytes.
* An element-wise op, or SOFTMAX, writes its result over an operand that nobody reads afterwards.
* CONCATENATION whose outer axes have length 1: its inputs are written straight into the output, which then
  is live as soon as its first part is.  Done only where that does not raise the lower bound.
* DEPTHWISE_CONV_2D with stride 1 works in place with a few rows of scratch; that may cost a specialised
  kernel, so it is done at the peak only, and only if the peak becomes lower.

None of this is trusted: `verification.verify_values` checks every plan on symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ...ir.graph import Graph, Node
from .buffers import ALIGNMENT, Buffer, aligned, live_bytes

OVER_ANY = ("ADD", "SUB", "MUL", "LOGISTIC", "HARD_SWISH", "RELU", "RELU6", "QUANTIZE", "SOFTMAX")
"""Ops that may write their output over an input of the same size (the headers of their kernels say so)."""

GROUP_CHANNELS = 4
"""Channels that `te_depthwise_conv2d_inplace_s8` treats at once."""


@dataclass(frozen=True)
class Place:
    """A tensor's bytes start ``offset`` bytes into the buffer that is named after the tensor ``root``."""

    root: str
    offset: int = 0


class Sharing:
    """Places of all tensors in the arena; starts with views only, and joins more on request.

    ``scratch`` are the bytes of working memory that a node needs, by the node's name.
    """

    def __init__(self, graph: Graph, scratch: Mapping[str, int] | None = None) -> None:
        self.graph = graph
        self.scratch = dict(scratch or {})
        self.places = {name: Place(name) for name in graph.inputs}
        self.born = dict.fromkeys(graph.inputs, -1)
        self.makers: dict[str, Node] = {}
        for step, node in enumerate(graph.nodes):
            view = node.op == "RESHAPE" and node.inputs[0] in self.places
            for name in node.outputs:
                self.places[name] = self.places[node.inputs[0]] if view else Place(name)
                self.born[name] = step
                self.makers[name] = node
        self.dies = dict(self.born)
        for step, node in enumerate(graph.nodes):
            self.dies.update({name: step for name in node.inputs if name in self.born})
        self.dies.update({name: len(graph.nodes) for name in graph.outputs if name in self.born})

    def copy(self) -> Sharing:
        """Return a copy that can be changed on its own."""
        other = object.__new__(Sharing)
        other.__dict__.update(self.__dict__, places=dict(self.places), scratch=dict(self.scratch))
        return other

    def buffers(self, *, resident_input: bool = True) -> list[Buffer]:
        """Return the buffers in order of first use, then scratch.

        Graph inputs are live from step 0 and graph outputs until the last step, so that a caller can write
        and read them between inferences.  Without ``resident_input``, inputs are not in the arena.
        """
        end = max(len(self.graph.nodes) - 1, 0)
        members: dict[str, list[str]] = {}
        for name, place in self.places.items():
            if resident_input or name not in self.graph.inputs:
                members.setdefault(place.root, []).append(name)
        result = []
        for root, names in members.items():
            first = max(min(self.born[n] for n in names), 0)
            last = min(max(max(self.dies[n], self.born[n]) for n in names), end)
            kinds = [
                kind for kind, ports in (("input", self.graph.inputs), ("output", self.graph.outputs))
                if not set(ports).isdisjoint(names)
            ]  # fmt: skip
            size = aligned(self.graph[root].nbytes)
            result.append(Buffer(root, size, first, max(last, 0), kinds[0] if kinds else "activation"))
        result.sort(key=lambda b: b.first)
        steps = {node.name: step for step, node in enumerate(self.graph.nodes)}
        for name, size in self.scratch.items():
            result.append(Buffer(scratch_name(name), aligned(size), steps[name], steps[name], "scratch"))
        return result

    def join(self, name: str, onto: str, distance: int = 0) -> bool:
        """Let ``name`` start ``distance`` bytes after ``onto`` in one buffer; return whether that is legal.

        The tensors that already share a buffer with either come along.
        """
        a, b = self.places[onto], self.places[name]
        shift = a.offset + distance - b.offset
        big, small = a.root, b.root
        if self.graph[small].nbytes > self.graph[big].nbytes:
            big, small, shift = small, big, -shift
        fits = shift >= 0 and shift + self.graph[small].nbytes <= self.graph[big].nbytes
        if big == small or not fits or shift % ALIGNMENT:
            return False
        moved = {n: Place(big, p.offset + shift) for n, p in self.places.items() if p.root == small}
        stay = [n for n, p in self.places.items() if p.root == big]
        places = self.places | moved
        if any(self._clash(t, u, places) or self._clash(u, t, places) for t in stay for u in moved):
            return False
        self.places = places
        return True

    def _clash(self, old: str, new: str, places: Mapping[str, Place]) -> bool:
        """Whether writing ``new`` destroys ``old`` while somebody still needs it."""
        distance = places[new].offset - places[old].offset
        apart = distance >= self.graph[old].nbytes or -distance >= self.graph[new].nbytes
        if apart or not self.born[old] < self.born[new] <= self.dies[old]:
            return False
        if -distance in self._found_in(self._base(new), self._base(old)):
            return False
        over = [self._base(n) for n in self._operands(self.makers[new])]
        same_bytes = distance == 0 and self.graph[old].nbytes == self.graph[new].nbytes
        return not (same_bytes and self.born[new] == self.dies[old] and self._base(old) in over)

    def _base(self, name: str) -> str:
        """Return the tensor that ``name`` is a view of."""
        while name in self.makers and self.makers[name].op == "RESHAPE":
            if self.makers[name].inputs[0] not in self.places:
                break
            name = self.makers[name].inputs[0]
        return name

    def _found_in(self, new: str, old: str) -> set[int]:
        """Return the offsets at which the bytes of ``new`` contain those of ``old``, if it joins tensors."""
        if new == old:
            return {0}
        if new not in self.makers or not is_joined_by_parts(self.graph, self.makers[new]):
            return set()
        found, before = set(), 0
        for part in self.makers[new].inputs:
            if part in self.places:
                found |= {before + at for at in self._found_in(self._base(part), old)}
            before += self.graph[part].nbytes
        return found

    def _operands(self, node: Node) -> list[str]:
        """Return the inputs that ``node`` may write its output over, if nobody reads them afterwards."""
        size = self.graph[node.outputs[0]].nbytes
        if node.op in OVER_ANY:
            return [n for n in node.inputs if n in self.places and self.graph[n].nbytes == size]
        if node.name in self.scratch and in_place_scratch_bytes(self.graph, node):
            return [n for n in node.inputs[:1] if n in self.places]
        return []


def share(graph: Graph, scratch: Mapping[str, int] | None = None) -> Sharing:
    """Return the places that give ``graph`` the lowest bound this module can find, see its top."""
    best = Sharing(graph, scratch)
    for node in graph.nodes:
        if node.op in OVER_ANY:
            any(best.join(node.outputs[0], name) for name in best._operands(node))
    for node in graph.nodes:
        if is_joined_by_parts(graph, node):
            best = _with_parts(best, node)
    return _with_depthwise(best)


def _with_parts(given: Sharing, node: Node) -> Sharing:
    """Return ``given`` with parts of a concatenation inside its output, each where that costs nothing."""
    before = 0
    for part in node.inputs:
        trial = given.copy()
        legal = part in given.places and trial.join(part, node.outputs[0], before)
        if legal and _bound(trial) <= _bound(given):
            given = trial
        before += given.graph[part].nbytes
    return given


def _with_depthwise(given: Sharing) -> Sharing:
    """Return ``given`` with depthwise convolutions at the peak in place, if that lowers the peak."""
    best, trial = given, given.copy()
    while True:
        live = live_bytes(trial.buffers())
        peaks = [step for step in range(len(given.graph.nodes)) if live[step] == live.max()]
        done = [_join_depthwise(trial, given.graph.nodes[step]) for step in peaks]
        if not any(done):
            return best
        if _bound(trial) < _bound(best):
            best = trial.copy()


def _join_depthwise(sharing: Sharing, node: Node) -> bool:
    size = in_place_scratch_bytes(sharing.graph, node)
    if not size or node.name in sharing.scratch or node.inputs[0] not in sharing.places:
        return False
    sharing.scratch[node.name] = size
    if sharing.join(node.outputs[0], node.inputs[0]):
        return True
    del sharing.scratch[node.name]
    return False


def _bound(sharing: Sharing) -> int:
    return int(live_bytes(sharing.buffers()).max())


def aliases(graph: Graph) -> dict[str, str]:
    """Return, for each tensor that lives in the arena, the tensor that it is a view of, or itself.

    The output of a RESHAPE has the bytes of its input.  A constant lives in flash: the RESHAPE of one is a
    copy.
    """
    return {name: place.root for name, place in Sharing(graph).places.items()}


def lifetimes(graph: Graph, scratch: Mapping[str, int] | None = None) -> list[Buffer]:
    """Return the buffers of ``graph`` where only views share one: see `Sharing.buffers`.

    Parameters
    ----------
    graph : Graph
        Its nodes in execution order; node ``i`` is time step ``i``.
    scratch : mapping of str to int, optional
        Bytes of working memory that a node, by name, needs while it runs.
    """
    return Sharing(graph, scratch).buffers()


def scratch_name(node_name: str) -> str:
    """Return the name of the buffer that holds a node's working memory."""
    return f"scratch of {node_name}"


def is_joined_by_parts(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is a CONCATENATION whose inputs lie one behind the other in its output."""
    return node.op == "CONCATENATION" and prod(graph[node.outputs[0]].shape[: node.attrs.axis]) == 1


def in_place_scratch_bytes(graph: Graph, node: Node) -> int:
    """Return the scratch of a depthwise convolution that writes over its input; 0 if it cannot.

    A ring of as many rows as the kernel reaches, of four channels at a time: element
    (row mod rows, column, channel), int8.
    """
    if node.op != "DEPTHWISE_CONV_2D":
        return 0
    x, w, y = (graph[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    rows = (w[1] - 1) * node.attrs.dilation[0] + 1
    if x != y or node.attrs.stride != (1, 1) or not 0 <= node.attrs.padding[0] < rows:
        return 0
    return rows * x[2] * GROUP_CHANNELS


def moves_nothing(graph: Graph, node: Node, offsets: Mapping[str, int]) -> bool:
    """Whether a plan's offsets leave a RESHAPE or CONCATENATION without a byte to move."""
    if node.op not in ("RESHAPE", "CONCATENATION"):
        return False
    if node.op == "CONCATENATION" and not is_joined_by_parts(graph, node):
        return False
    at = offsets[node.outputs[0]]
    for name in node.inputs:
        if offsets.get(name, -1) != at:
            return False
        at += graph[name].nbytes
    return True
