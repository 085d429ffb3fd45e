"""What reading one operator of a TensorFlow Lite file needs: its options, its place in the graph."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedOpError
from . import attrs as A
from .graph import GraphError, Kind, Node, Quant, Tensor
from .ops import infer_shape
from .tflite_tensors import TensorReader


class OperatorReader(TensorReader):
    """The operator under way: its ``position`` in the file and the index ``out`` it writes."""

    position = 0
    out = -1

    def options(self, op: Any, kind: str) -> Any:
        """Return the options table ``kind`` of an operator."""
        if op.BuiltinOptionsType() != getattr(self.lib.BuiltinOptions, kind):
            raise GraphError(f"{self.where} has no {kind}")
        options, table = getattr(self.lib, kind)(), op.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options

    def fused_activation(self, options: Any) -> str:
        """Return the fused activation, one of `attrs.ACTIVATIONS`."""
        code, known = options.FusedActivationFunction(), self.lib.ActivationFunctionType
        names = {getattr(known, name.upper()): name for name in A.ACTIVATIONS}
        if code not in names:
            raise UnsupportedOpError(
                f"{self.where} has fused activation {code}; supported: {', '.join(A.ACTIVATIONS)}"
            )
        return names[code]

    def node(self, inputs: tuple[str, ...], attrs: Any, out: str, *, op: str = "", suffix: str = "") -> None:
        """Append a node after checking that the file gives its output the shape that it makes."""
        name = f"{(op or self.op).lower()}_{self.position}{suffix}"
        node = Node(name, op or self.op, inputs, (out,), attrs)
        shape = infer_shape(self.graph, node)
        if shape != self.graph[out].shape:
            raise GraphError(f"{self.where} makes {shape}, but its output says {self.graph[out].shape}")
        self.graph.nodes.append(node)

    def new(self, stem: str, shape: tuple[int, ...], quant: Quant | None) -> str:
        """Add an int8 activation that the file does not have."""
        return self.graph.add(Tensor(self.graph.unique(stem), shape, "int8", Kind.ACTIVATION, quant=quant))

    def quant_of(self, name: str) -> tuple[float, int]:
        """Return scale and zero point of an activation."""
        quant = self.graph[name].quant
        assert quant is not None  # `activation` has checked it
        return quant.item()

    def same_quant(self, x: str, out: str) -> None:
        """Raise unless ``x`` and ``out`` have one scale, as nearly as TensorFlow Lite asks."""
        (s1, z1), (s2, z2) = self.quant_of(x), self.quant_of(out)
        if z1 != z2 or abs(s1 - s2) > 1e-6 * max(s1, s2):
            raise UnsupportedOpError(f"{self.where} changes the scale from {s1:g} to {s2:g}; this op cannot")
