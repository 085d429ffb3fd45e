"""What each layer of a network costs: parameters, MACs, bytes of weights, bytes of live activations."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UnknownNameError, UsageError
from ..ir.graph import Graph, Kind
from .liveness import live_elements

if TYPE_CHECKING:
    import torch

# dtype -> (bits of a weight or an activation, bits of a bias).  Integer kernels add an int32 bias.
_BITS = {"float32": (32, 32), "float16": (16, 16), "int8": (8, 32), "int4": (4, 32)}
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def _bits(dtype: str) -> tuple[int, int]:
    if dtype not in _BITS:
        raise UnknownNameError("data type", dtype, _BITS)
    return _BITS[dtype]


@dataclass(frozen=True)
class LayerProfile:
    """Costs of one node; elements and not bytes, so that one profile answers for every dtype.

    ``output_shape`` is that of the graph (N H W C or N C).  ``live_elements`` counts all activations that
    must exist while this node runs, its own inputs and outputs among them.  A constant that several nodes
    share is counted at the first.
    """

    name: str
    op: str
    output_shape: tuple[int, ...]
    macs: int
    weights: int
    biases: int
    input_elements: int
    output_elements: int
    live_elements: int

    @property
    def parameters(self) -> int:
        return self.weights + self.biases

    def weight_bytes(self, dtype: str) -> int:
        """Return bytes of the constants; below 8 bits they are packed, the last byte rounded up."""
        weight_bits, bias_bits = _bits(dtype)
        return math.ceil(self.weights * weight_bits / 8) + math.ceil(self.biases * bias_bits / 8)

    def bytes_moved(self, dtype: str) -> int:
        """Return bytes of constants, inputs and outputs, each moved once: the least that a kernel can do."""
        activations = self.input_elements + self.output_elements
        return self.weight_bytes(dtype) + math.ceil(activations * _bits(dtype)[0] / 8)

    def intensity(self, dtype: str) -> float:
        """Return the arithmetic intensity in FLOP per byte, one MAC being two FLOP; 0 if nothing moves."""
        moved = self.bytes_moved(dtype)
        return 2 * self.macs / moved if moved else 0.0


@dataclass(frozen=True)
class ModelProfile:
    """Costs of a network, batch 1.

    ``parameters`` are those of the deployed graph, in which batch norms are folded into convolutions;
    ``torch_parameters`` and ``torch_buffers`` are those of the PyTorch module before folding (``None``
    for a profile of a graph).  ``peak_activation_bytes`` is that of ``dtype``, the graph's own type.
    """

    name: str
    dtype: str
    rows: tuple[LayerProfile, ...]
    torch_parameters: int | None = None
    torch_buffers: int | None = None

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def peak_activation_bytes(self) -> int:
        return self.peak_bytes(self.dtype)

    @property
    def peak_row(self) -> LayerProfile:
        """The first layer at which the most activations are alive."""
        return max(self.rows, key=lambda row: row.live_elements)

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Return bytes of all constants in ``dtype`` (default: the graph's own).

        ``int8`` and ``int4`` have int32 biases; scales and multipliers are in the report of `mcu.deploy`.
        """
        return sum(row.weight_bytes(dtype or self.dtype) for row in self.rows)

    def peak_bytes(self, dtype: str | None = None) -> int:
        """Return the peak over the schedule of live activations, input included, in ``dtype``."""
        return math.ceil(self.peak_row.live_elements * _bits(dtype or self.dtype)[0] / 8)

    def activation_bytes(self, dtype: str | None = None) -> int:
        """Return the traffic of activations: each node reads its inputs and writes its output once."""
        elements = sum(row.input_elements + row.output_elements for row in self.rows)
        return math.ceil(elements * _bits(dtype or self.dtype)[0] / 8)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; sizes in bytes by dtype."""
        return {
            "model": self.name,
            "dtype": self.dtype,
            "macs": self.macs,
            "parameters": self.parameters,
            "torch_parameters": self.torch_parameters,
            "torch_buffers": self.torch_buffers,
            "weight_bytes": {dtype: self.weight_bytes(dtype) for dtype in _BITS},
            "peak_activation_bytes": {dtype: self.peak_bytes(dtype) for dtype in _BITS},
            "layers": [
                {
                    **asdict(row),
                    "output_shape": list(row.output_shape),
                    "parameters": row.parameters,
                    "live_bytes": math.ceil(row.live_elements * _bits(self.dtype)[0] / 8),
                }
                for row in self.rows
            ],
        }

    def table(self) -> str:
        """Return a plain-text table, one line a layer, the peak marked, the sums below."""
        size = _bits(self.dtype)[0] / 8
        lines = [
            f"{'layer':<28} {'op':<18} {'output':<16} {'params':>10} {'MACs':>13} "
            f"{'live bytes':>11} {'FLOP/B':>7}"
        ]
        for row in self.rows:
            shape = "x".join(map(str, row.output_shape[1:]))
            mark = " <- peak" if row is self.peak_row else ""
            lines.append(
                f"{row.name[-28:]:<28} {row.op:<18} {shape:<16} {row.parameters:>10,} {row.macs:>13,} "
                f"{math.ceil(row.live_elements * size):>11,} {row.intensity(self.dtype):>7.1f}{mark}"
            )
        lines.append(
            f"{self.name}: {self.parameters:,} parameters, {self.macs:,} MACs, "
            f"{self.weight_bytes():,} bytes of weights and {self.peak_bytes():,} bytes of live activations "
            f"in {self.dtype}"
        )
        return "\n".join(lines)


def profile(model: torch.nn.Module | Graph, example: torch.Tensor | None = None) -> ModelProfile:
    """Return the costs of ``model`` for one input.

    Parameters
    ----------
    model : torch.nn.Module or Graph
        A module is captured first (`mcu.capture`), so that this counts the network that is deployed:
        batch norms folded, activations fused.
    example : Tensor, shape (1, C, H, W)
        An input of the module; not needed for a graph.

    Returns
    -------
    ModelProfile
        MACs count the products of convolutions and fully connected layers; adding a bias is not one.

    Raises
    ------
    UsageError
        If a module comes without an example.
    UnsupportedOpError
        If the module holds an operation that cannot be captured.
    """
    if isinstance(model, Graph):
        return _profile_graph(model)
    if example is None:
        raise UsageError("profile(model) needs an example input of shape (1, C, H, W); pass torch.zeros(...)")
    from ..mcu import capture

    return _profile_graph(
        capture(model, example[:1]),
        name=type(model).__name__,
        torch_parameters=sum(p.numel() for p in model.parameters()),
        torch_buffers=sum(b.numel() for b in model.buffers()),
    )


def _profile_graph(
    graph: Graph,
    name: str | None = None,
    torch_parameters: int | None = None,
    torch_buffers: int | None = None,
) -> ModelProfile:
    from ..ir import macs

    products, live = macs(graph), live_elements(graph)
    seen: set[str] = set()
    rows = []
    for step, node in enumerate(graph.nodes):
        constants = [n for n in node.inputs if graph[n].kind is Kind.CONSTANT]
        fresh = [n for n in constants if n not in seen]
        seen.update(fresh)
        bias = node.inputs[2] if node.op in _WEIGHTED and len(node.inputs) > 2 else None
        moves = node.op != "RESHAPE"
        rows.append(
            LayerProfile(
                name=node.name,
                op=node.op,
                output_shape=graph[node.outputs[0]].shape,
                macs=products[node.name],
                weights=sum(_elements(graph, n) for n in fresh if n != bias),
                biases=sum(_elements(graph, n) for n in fresh if n == bias),
                input_elements=moves * sum(_elements(graph, n) for n in node.inputs if n not in constants),
                output_elements=moves * sum(_elements(graph, n) for n in node.outputs),
                live_elements=live[step],
            )
        )
    dtype = graph[graph.inputs[0]].dtype
    return ModelProfile(name or graph.name, dtype, tuple(rows), torch_parameters, torch_buffers)


def _elements(graph: Graph, name: str) -> int:
    return math.prod(graph[name].shape)
