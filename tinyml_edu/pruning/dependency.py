"""Which channels of a network go together, read off its literal graph.

Every channel that a layer writes has a label.  An operation that treats channels alone hands labels on; one
that needs the same channels on both sides (a residual add, a depthwise or grouped convolution, a layer that
reads a flattened image) ties labels into one *unit*.  Removing whole units keeps every shape consistent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..errors import UnsupportedOpError, UsageError
from ..ir.graph import Graph, Node
from ..mcu.capturing import transcribe

MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "CONV_2D": (nn.Conv2d,),
    "DEPTHWISE_CONV_2D": (nn.Conv2d,),
    "GROUPED_CONV_2D": (nn.Conv2d,),
    "FULLY_CONNECTED": (nn.Linear,),
    "BATCH_NORM": (nn.BatchNorm2d, nn.BatchNorm1d),
}
"""The classes of modules that hold the parameters of an op."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with parameters: the label of each channel that it reads, (I,), and writes, (O,).

    ``path`` names the module and ``op`` the graph's operation; a linear layer's channels are its features.
    """

    path: str
    op: str
    inputs: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units of channels that the same layers write: any of the units may go, each as a whole.

    Parameters
    ----------
    members : dict of str to ndarray
        By the path of the layer, in execution order: the channels that each unit has among the layer's
        outputs, int64 (units, channels).  A chain or a residual sum has one channel a layer; a grouped
        convolution has one in each of its groups.
    labels : ndarray
        The label of each unit, (units,).
    """

    members: dict[str, np.ndarray]
    labels: np.ndarray

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the convolutions and linear layers that write the channels, in execution order."""
        return tuple(self.members)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dependencies:
    """All layers with parameters, in execution order, and the groups of units that may be removed."""

    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]


def channel_groups(model: nn.Module, example: torch.Tensor) -> tuple[ChannelGroup, ...]:
    """Return the groups of channels of ``model`` that can be removed together.

    Channels of the network's inputs and outputs, and those that a softmax normalises, are in no group.

    Parameters
    ----------
    model : nn.Module
        Convolutions, linear layers, batch norms, activations, pooling, padding, adds, concatenations along
        the channels and reshapes that keep the batch.  It is not changed.
    example : torch.Tensor
        Input (N, C, H, W) or (N, F).

    Raises
    ------
    UsageError
        If a layer runs twice or is not a module of its own.
    UnsupportedOpError
        If the network has another operation.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1))
    >>> [(group.layers, len(group)) for group in channel_groups(net, torch.zeros(1, 3, 8, 8))]
    [(('0', '1'), 8)]
    """
    return find_dependencies(model, example).groups


def find_dependencies(model: nn.Module, example: torch.Tensor) -> Dependencies:
    """Return layers and groups; parameters and errors are those of `channel_groups`."""
    graph = transcribe(model, example)
    paths = {node.name: _module_path(model, node) for node in graph.nodes if node.op in MODULES}
    labels = _Labels()
    layers = _follow(graph, paths, labels)
    roots = labels.roots()
    layers = [Layer(n.path, n.op, roots[n.inputs], roots[n.outputs]) for n in layers]
    frozen = np.zeros(len(roots), dtype=bool)
    frozen[roots[labels.frozen]] = True
    return Dependencies(tuple(layers), tuple(_groups(layers, frozen)))


class _Labels:
    """Disjoint sets of channels (union-find): tied labels share a root, the smallest of them."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self.frozen: list[int] = []

    def new(self, channels: int) -> np.ndarray:
        first = len(self._parents)
        self._parents += range(first, first + channels)
        return np.arange(first, first + channels)

    def root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Tie labels elementwise; shapes are equal or broadcast."""
        for left, right in zip(*(x.ravel().tolist() for x in np.broadcast_arrays(a, b))):
            first, second = sorted((self.root(left), self.root(right)))
            self._parents[second] = first

    def freeze(self, labels: np.ndarray) -> np.ndarray:
        """Mark labels that must stay, with all that are or will be tied to them, and return them."""
        self.frozen += labels.tolist()
        return labels

    def roots(self) -> np.ndarray:
        return np.array([self.root(label) for label in range(len(self._parents))], dtype=np.int64)


def _module_path(model: nn.Module, node: Node) -> str:
    """Return the path of the module that holds the parameters of ``node``."""
    modules, kinds = dict(model.named_modules()), MODULES[node.op]
    # A subclass defined outside torch.nn is named by its path and the operation.
    path = node.name if node.name in modules else node.name.rpartition(".")[0]
    module = modules.get(path)
    if path and isinstance(module, kinds) and not nn.utils.parametrize.is_parametrized(module):
        return path
    raise UsageError(
        f"shrink cannot prune at {node.name!r}: it must be a {kinds[0].__name__} module that runs once; "
        "write the network with modules of its own for each layer, and without parametrizations"
    )


def _follow(graph: Graph, paths: dict[str, str], labels: _Labels) -> list[Layer]:
    """Return the layers with the labels that they read and write, before ties are resolved."""
    at = {name: labels.freeze(labels.new(_channels(graph, name))) for name in graph.inputs}
    layers = []
    for node in graph.nodes:
        if node.op not in _RULES:
            raise UnsupportedOpError(f"shrink has no rule for the operation {node.op} ({node.name!r})")
        result = _RULES[node.op](graph, node, at, labels)
        at[node.outputs[0]] = result
        if node.op in MODULES:
            layers.append(Layer(paths[node.name], node.op, at[node.inputs[0]], result))
    for name in graph.outputs:
        labels.freeze(at[name])
    return layers


def _channels(graph: Graph, name: str) -> int:
    shape = graph[name].shape  # N H W C, N C, or PyTorch's for other ranks
    return shape[3] if len(shape) == 4 else shape[1]


_At = dict[str, np.ndarray]


def _pass(_graph: Graph, node: Node, at: _At, _labels: _Labels) -> np.ndarray:
    return at[node.inputs[0]]


def _create(graph: Graph, node: Node, _at: _At, labels: _Labels) -> np.ndarray:
    return labels.new(_channels(graph, node.outputs[0]))


def _depthwise(graph: Graph, node: Node, at: _At, labels: _Labels) -> np.ndarray:
    """Tie output channel c·M + m to input channel c."""
    result = _create(graph, node, at, labels)
    labels.tie(at[node.inputs[0]][:, None], result.reshape(len(at[node.inputs[0]]), -1))
    return result


def _grouped(graph: Graph, node: Node, at: _At, labels: _Labels) -> np.ndarray:
    """Tie equal positions of all groups, on both sides, so that the groups stay of one size."""
    result = _create(graph, node, at, labels)
    for channels in (at[node.inputs[0]], result):
        by_group = channels.reshape(node.attrs.groups, -1)
        labels.tie(by_group[:1], by_group)
    return result


def _add(_graph: Graph, node: Node, at: _At, labels: _Labels) -> np.ndarray:
    first, second = (at[name] for name in node.inputs)
    labels.tie(first, second)
    return first


def _concatenate(_graph: Graph, node: Node, at: _At, _labels: _Labels) -> np.ndarray:
    return np.concatenate([at[name] for name in node.inputs])


def _reshape(graph: Graph, node: Node, at: _At, labels: _Labels) -> np.ndarray:
    """Hand labels to features in the order C H W; features that become one channel are tied."""
    elements = int(np.prod(graph[node.inputs[0]].shape[1:]))
    channels = at[node.inputs[0]]
    features = np.repeat(channels, elements // len(channels))
    by_channel = features.reshape(_channels(graph, node.outputs[0]), -1)
    labels.tie(by_channel[:, :1], by_channel)
    return by_channel[:, 0]


def _pad(_graph: Graph, node: Node, at: _At, labels: _Labels) -> np.ndarray:
    rank = len(node.attrs.padding)
    before, after = node.attrs.padding[3 if rank == 4 else 1]
    added = [labels.freeze(labels.new(count)) for count in (before, after)]
    return np.concatenate([added[0], at[node.inputs[0]], added[1]])


def _softmax(_graph: Graph, node: Node, at: _At, labels: _Labels) -> np.ndarray:
    return labels.freeze(at[node.inputs[0]])  # exp(0) = 1: a channel at zero is not an absent one


_RULES: dict[str, Callable[[Graph, Node, _At, _Labels], np.ndarray]] = {
    "CONV_2D": _create,
    "FULLY_CONNECTED": _create,
    "DEPTHWISE_CONV_2D": _depthwise,
    "GROUPED_CONV_2D": _grouped,
    "BATCH_NORM": _pass,
    "ACTIVATION": _pass,
    "AVERAGE_POOL_2D": _pass,
    "ADAPTIVE_AVERAGE_POOL_2D": _pass,
    "MAX_POOL_2D": _pass,
    "ADD": _add,
    "CONCATENATION": _concatenate,
    "RESHAPE": _reshape,
    "PAD": _pad,
    "SOFTMAX": _softmax,
}


def _groups(layers: list[Layer], frozen: np.ndarray) -> list[ChannelGroup]:
    """Collect units with the same number of channels in the same layers, in execution order."""
    units: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for layer in layers:
        if layer.op != "BATCH_NORM":
            for channel, label in enumerate(layer.outputs.tolist()):
                if not frozen[label]:
                    units[label][layer.path].append(channel)
    alike: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for label, channels in units.items():
        alike[tuple((path, len(at)) for path, at in channels.items())].append(label)
    return [
        ChannelGroup(
            {path: np.array([units[label][path] for label in found]) for path, _ in signature},
            np.array(found),
        )
        for signature, found in alike.items()
    ]
