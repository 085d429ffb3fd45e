"""What a handler of an ATen operation works with: values as PyTorch sees them, and the call itself.

A value of rank 4 is stored as N H W C; other ranks keep PyTorch's order, except that a flattened image keeps
the order H W C and remembers it in ``perm``, which the next linear layer applies to its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UnsupportedOpError
from ..ir.graph import Graph, Kind, Node, Tensor


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph as PyTorch sees it.

    ``shape`` is PyTorch's.  Element ``j`` of a stored feature vector is PyTorch's element ``perm[j]``;
    None stands for the same order.
    """

    name: str
    shape: tuple[int, ...]
    perm: np.ndarray | None = None


@dataclass
class Call:
    """One operation under transcription: its arguments, the shape of its result and a name for it.

    ``literal`` admits what only surgery reads and the compiler lacks.
    """

    graph: Graph
    args: dict[str, Any]
    shape: tuple[int, ...]
    name: str
    literal: bool = False

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def emit(
        self,
        op: str,
        inputs: tuple[str, ...],
        attrs: Any,
        shape: tuple[int, ...] | None = None,
        perm: Any = None,
    ) -> Value:
        """Append a node and return its result, of PyTorch's ``shape`` (default: that of the operation)."""
        shape = self.shape if shape is None else shape
        result = self.graph.unique(self.name)
        self.graph.add(Tensor(result, stored_shape(shape), "float32", Kind.ACTIVATION))
        self.graph.nodes.append(Node(result, op, inputs, (result,), attrs))
        return Value(result, shape, perm)

    def constant(self, suffix: str, data: np.ndarray) -> str:
        data = np.ascontiguousarray(data, dtype=np.float32)
        name = self.graph.unique(f"{self.name}.{suffix}")
        return self.graph.add(Tensor(name, data.shape, "float32", Kind.CONSTANT, data))

    def require(self, condition: bool, message: str) -> None:
        """Raise `UnsupportedOpError` with ``message`` unless ``condition``; the caller adds the place."""
        if not condition:
            raise UnsupportedOpError(message)

    def image(self, name: str) -> Value:
        value = self[name]
        self.require(isinstance(value, Value) and len(value.shape) == 4, "its input must be N C H W")
        return value


Handler = Callable[[Call], Value]
HANDLERS: dict[str, Handler] = {}
LITERAL_HANDLERS: dict[str, Handler] = {}
"""Operations that only a literal transcript may hold."""


def handles(*names: str, literal: bool = False) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        (LITERAL_HANDLERS if literal else HANDLERS).update(dict.fromkeys(names, handler))
        return handler

    return register


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape under which a value of PyTorch's ``shape`` is stored: N C H W becomes N H W C."""
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else tuple(shape)


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return a constant as float64: what is computed with it is rounded once, when it is stored."""
    return tensor.detach().cpu().to(torch.float64).numpy()


def same_order(a: Value, b: Value) -> bool:
    if a.perm is None or b.perm is None:
        return a.perm is b.perm
    return np.array_equal(a.perm, b.perm)


def image_order(shape: tuple[int, ...]) -> np.ndarray | None:
    """Return ``perm`` of a flattened N C H W image (see `Value`), None where both orders agree."""
    if len(shape) != 4 or shape[1] == 1 or shape[2] * shape[3] == 1:
        return None
    return np.arange(int(np.prod(shape[1:]))).reshape(shape[1:]).transpose(1, 2, 0).ravel()
