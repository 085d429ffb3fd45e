"""The graph that every topic shares: tensors with a kind, nodes in execution order, no torch.

Activations are N H W C (or N C), batch first; a graph is stored with N = 1 and kernels accept any N.
Weights are O H W I for CONV_2D, 1 H W C for DEPTHWISE_CONV_2D (C output channels) and O I for
FULLY_CONNECTED, as in TensorFlow Lite.  Ops carry TensorFlow Lite's names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from ..errors import TinyMLError


class GraphError(TinyMLError):
    """A graph that contradicts itself."""


class Kind(StrEnum):
    """What a tensor is to the graph."""

    INPUT = "input"
    CONSTANT = "constant"
    ACTIVATION = "activation"
    VARIABLE = "variable"


@dataclass(frozen=True, eq=False)
class Quant:
    """Affine quantization: ``r = scale * (q - zero_point)`` (Jacob et al., CVPR 2018, eq. 1).

    ``scale`` (float32) and ``zero_point`` (int32) have shape (1,), or (channels,) along ``axis``.
    ``bits``, 2 to 8, is the width of int8 codes: a narrower code lives in an int8 array and never leaves
    ``[-2**(bits - 1), 2**(bits - 1) - 1]``.  It says nothing about int32 codes (biases).
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None
    bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise GraphError(f"codes in an int8 array have 2 to 8 bits, got {self.bits}")

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int, bits: int = 8) -> Quant:
        return cls(np.array([scale], np.float32), np.array([zero_point], np.int32), bits=bits)

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest int8 code, (-128, 127) for 8 bits."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def item(self) -> tuple[float, int]:
        """Return ``(scale, zero_point)`` of a per-tensor quantization; the scale is the float32 value."""
        if self.scale.size != 1:
            raise GraphError("this tensor is quantized per channel, a single scale was asked for")
        return float(self.scale[0]), int(self.zero_point[0])

    def quantize(self, r: np.ndarray, dtype: str = "int8") -> np.ndarray:
        """Return codes of ``r``, rounded half to even, clamped before the cast."""
        low, high = self.limits if dtype == "int8" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        q = np.rint(r / self._along(self.scale, r.ndim)) + self._along(self.zero_point, r.ndim)
        return np.clip(q, low, high).astype(dtype)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Return float32 values of the codes ``q``."""
        zero_point = self._along(self.zero_point, q.ndim)
        return (self._along(self.scale, q.ndim) * (q.astype(np.int64) - zero_point)).astype(np.float32)

    def _along(self, values: np.ndarray, ndim: int) -> np.ndarray:
        if self.axis is None:
            return values.reshape(())
        shape = [1] * ndim
        shape[self.axis] = -1
        return values.reshape(shape)


@dataclass(frozen=True, eq=False)
class Tensor:
    """One value of the graph.  ``dtype`` is ``"float32"``, ``"int8"`` or ``"int32"``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    data: np.ndarray | None = None
    quant: Quant | None = None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Node:
    """One operation: ``op`` is a key of ``ir.ops.OPS`` and ``attrs`` the attribute class of that op."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Any


@dataclass
class Graph:
    """Tensors by name and nodes in execution order."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def add(self, tensor: Tensor) -> str:
        """Insert a tensor and return its name; a name in use is an error."""
        if tensor.name in self.tensors:
            raise GraphError(f"two tensors are named {tensor.name!r}")
        self.tensors[tensor.name] = tensor
        return tensor.name

    def update(self, name: str, **changes: Any) -> None:
        """Replace fields of one tensor."""
        self.tensors[name] = replace(self.tensors[name], **changes)

    def unique(self, stem: str) -> str:
        """Return ``stem``, or ``stem_2``, ``stem_3``, ... if it is taken."""
        name, n = stem, 2
        while name in self.tensors:
            name, n = f"{stem}_{n}", n + 1
        return name

    def producer(self, name: str) -> Node | None:
        return next((node for node in self.nodes if name in node.outputs), None)

    def consumers(self, name: str) -> list[Node]:
        return [node for node in self.nodes if name in node.inputs]

    def constants(self) -> Iterator[Tensor]:
        """Yield constants that a node reads, each once, in order of first use."""
        seen = set()
        for node in self.nodes:
            for name in node.inputs:
                if self.tensors[name].kind is Kind.CONSTANT and name not in seen:
                    seen.add(name)
                    yield self.tensors[name]

    def validate(self) -> Graph:
        """Return self; raise `GraphError` on a missing tensor, a use before its definition, a bad kind."""
        ready = {n for n, t in self.tensors.items() if t.kind is not Kind.ACTIVATION}
        for node in self.nodes:
            for name in node.inputs:
                if name not in self.tensors:
                    raise GraphError(f"{node.name} reads {name!r}, which does not exist")
                if name not in ready:
                    raise GraphError(f"{node.name} reads {name!r} before it is written")
            for name in node.outputs:
                if name not in self.tensors:
                    raise GraphError(f"{node.name} writes {name!r}, which does not exist")
                if name in ready:
                    raise GraphError(f"{node.name} writes {name!r}, which already has a value")
                ready.add(name)
        for name in (*self.inputs, *self.outputs):
            if name not in ready:
                raise GraphError(f"graph {self.name} names {name!r} as input or output, but nothing makes it")
        for tensor in self.tensors.values():
            if tensor.kind is Kind.CONSTANT and (tensor.data is None or tensor.data.shape != tensor.shape):
                raise GraphError(f"constant {tensor.name!r} has no data of shape {tensor.shape}")
        return self
