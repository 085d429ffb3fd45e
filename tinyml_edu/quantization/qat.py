"""Quantization-aware training: the float network computes on the values that its codes will stand for.

**Batch norms are folded before anything is quantized.**  The integer engine has no batch norm: it stores
``w * gamma / sigma`` and needs one scale for that product.  A grid laid over ``w`` and multiplied by
``gamma / sigma`` afterwards has another step in every channel, so that what was trained is not what a
per-tensor scale can store, and the clipping points move with the running statistics.  Here training starts
from a captured graph, whose batch norms are folded with their final statistics, and moves the folded weights.

Under bf16 autocast every quantizer still computes in float32.  The convolutions, however, read ``s * k``
rounded to 8 significant bits, off by up to ``k / 256`` steps: 0.06 steps for 4-bit codes, a whole step for
8-bit ones.  Take ``TrainConfig(precision="float32")`` above 4 bits.  `train.evaluate` always computes in
float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..errors import UnknownNameError, UsageError
from ..ir.graph import Graph, Kind, Node, Quant
from ..ir.ops import FIXED_SCALES
from .activations import LINEAR_OPS, SHARING_OPS, Range, sharing_roots
from .fake_quantization import FakeQuantize, LearnedStepSize, fake_quantize
from .post_training import BIAS_LIMIT, SMALLEST_FACTOR, QuantConfig, quantize_graph
from .quantized_model import QuantizedModel
from .torch_graph import TorchGraph, module_key

METHODS = ("ste", "lsq")


class QATGraph(TorchGraph):
    """A `TorchGraph` that computes with fake-quantized weights, biases and activations, see `prepare_qat`.

    Attributes
    ----------
    activations : nn.ModuleDict
        One quantizer for each group of tensors that share a scale.
    weight_steps : nn.ModuleDict
        Learned quantizers of the weights; empty for ``"ste"``, where a scale follows its weights.
    """

    def __init__(
        self, graph: Graph, ranges: Mapping[str, Range], config: QuantConfig, method: str, quantize_bias: bool
    ) -> None:
        super().__init__(graph)
        self.config, self.method, self.quantize_bias = config, method, quantize_bias
        int8 = quantize_graph(graph, ranges, config)
        self._roots = sharing_roots(graph)
        self._quants = {name: tensor.quant for name, tensor in int8.tensors.items() if tensor.quant}
        self._slots: dict[str, str] = {}
        self.activations, self.weight_steps = nn.ModuleDict(), nn.ModuleDict()
        for root in dict.fromkeys(self._roots.values()):
            self._slots[root] = module_key(root, self.activations)
            self.activations[self._slots[root]] = self._activation_quantizer(root)
        if method == "lsq":
            for node in graph.nodes:
                if node.op in LINEAR_OPS:
                    self._slots[node.inputs[1]] = key = module_key(node.inputs[1], self.weight_steps)
                    self.weight_steps[key] = self._weight_quantizer(node.inputs[1])

    def _activation_quantizer(self, root: str) -> FakeQuantize:
        """Return a learned quantizer, or a fixed one for inputs, constants and prescribed scales.

        The network's inputs keep their scale because data, often pixels, arrives on a grid of its own.
        """
        producer = self.graph.producer(root)
        if self.method == "ste" or producer is None or producer.op in FIXED_SCALES:
            return FakeQuantize(self._quants[root])
        return LearnedStepSize(self._quants[root], elements=prod(self.graph[root].shape[1:]))

    def _weight_quantizer(self, name: str) -> FakeQuantize:
        quant, weight = self._quants[name], self.parameter(name)
        along = Quant(quant.scale, quant.zero_point, None if quant.axis is None else 0, quant.bits)
        return LearnedStepSize(along, symmetric=True, elements=weight.numel() // quant.scale.size)

    def quantizer(self, name: str) -> FakeQuantize:
        """Return the quantizer of an input, an activation or a constant operand."""
        module = self.activations[self._slots[self._roots[name]]]
        assert isinstance(module, FakeQuantize)
        return module

    def _bind(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: self.quantizer(name)(x) for name, x in super()._bind(inputs).items()}

    def compute(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor:
        """Return the output of one node on fake-quantized inputs, fake-quantized."""
        y = super().compute(node, inputs)
        # The other sharing ops only move values that have codes already.
        clamps_off_the_grid = node.op == "MAX_POOL_2D" and node.attrs.activation in ("relu6", "relu_n1_to_1")
        moves = node.op in SHARING_OPS and node.op != "AVERAGE_POOL_2D" and not clamps_off_the_grid
        return y if moves else self.quantizer(node.outputs[0])(y)

    def constant(self, node: Node, position: int, n: int) -> Tensor:
        """Return a fake-quantized weight, bias or constant operand."""
        if node.op not in LINEAR_OPS:
            return self.quantizer(node.inputs[position])(super().constant(node, position, n))
        value = self.parameter(node.inputs[position])
        step = self.weight_step(node)
        if position == 1:
            q_max = float(self._quants[node.inputs[1]].limits[1])
            along = step.reshape(-1, *[1] * (value.ndim - 1))
            # float64, as `quantize_weight` computes, so that `convert` finds the same codes.
            return fake_quantize(value.double(), along.double(), -q_max, q_max).float()
        if not self.quantize_bias:
            return value
        bias_step = self.quantizer(node.inputs[0]).step().detach().double() * step.detach().double()
        return fake_quantize(value.double(), bias_step, -BIAS_LIMIT, BIAS_LIMIT).float()

    def weight_step(self, node: Node) -> Tensor:
        """Return the weight scales of a linear node, float32 (O,) or (1,), as `quantize_graph` has them."""
        name, weight = node.inputs[1], self.parameter(node.inputs[1])
        if self.method == "lsq":
            module = self.weight_steps[self._slots[name]]
            assert isinstance(module, FakeQuantize)
            step = module.step()
        else:
            magnitude = weight.detach().double().abs()
            largest = magnitude.amax() if self._quants[name].axis is None else magnitude.flatten(1).amax(1)
            step = largest.reshape(-1) / self._quants[name].limits[1]
        floor = self._bias_floor(node).expand_as(step)
        return torch.maximum(step, floor.to(step.dtype)).float()

    def _bias_floor(self, node: Node) -> Tensor:
        """Return the smallest scale that `quantize_graph` allows beside the bias; float64 (O,) or (1,)."""
        x_step = self.quantizer(node.inputs[0]).step().detach().double()
        y_step = self.quantizer(node.outputs[0]).step().detach().double()
        floor = y_step / x_step * SMALLEST_FACTOR
        if len(node.inputs) > 2:
            bias = self.parameter(node.inputs[2]).detach().double().abs()
            largest = bias.amax().reshape(1) if self._quants[node.inputs[1]].axis is None else bias
            floor = torch.maximum(floor, largest / (x_step * BIAS_LIMIT))
        return floor


def prepare_qat(
    graph: Graph,
    ranges: Mapping[str, Range],
    config: QuantConfig | None = None,
    *,
    method: str = "lsq",
    quantize_bias: bool = True,
) -> QATGraph:
    """Return a module that computes what the quantized graph will, and that `train.fit` trains.

    Before the first step it is the network that `quantize_graph` makes of the same arguments.

    Parameters
    ----------
    graph : Graph
        Float graph, batch norms folded, as from `mcu.capture`.
    ranges : mapping of str to (float, float)
        From `calibrate`, with the observer and the bits of ``config``.
    config : QuantConfig, optional
        Widths and granularity.
    method : {"lsq", "ste"}
        ``"lsq"`` trains the scales of weights and inner activations (`LearnedStepSize`).  ``"ste"`` keeps the
        activations' scales and takes each weight scale from the largest weight, anew in every pass.
    quantize_bias : bool, default=True
        Round biases to multiples of ``s_x * s_w``, as the engine stores them.

    Returns
    -------
    QATGraph
        Takes (n, C, H, W) or (n, F); turn it into integers with `convert`.

    Raises
    ------
    UnknownNameError
        If the method is unknown.
    UsageError, UnsupportedOpError
        As `quantize_graph` and `TorchGraph`.

    Notes
    -----
    No batch norm is left that would absorb a large step: a learning rate that trained the network from
    scratch makes even its folded float graph diverge.  Start at a hundredth of it, with a cosine to zero.
    """
    if method not in METHODS:
        raise UnknownNameError("method of quantization-aware training", method, METHODS)
    return QATGraph(graph, ranges, config or QuantConfig(), method, quantize_bias)


def convert(module: nn.Module) -> QuantizedModel:
    """Return the integer network of a module that `prepare_qat` made.

    Its codes of weights and biases are those of the module.  A layer that is fed the same codes returns codes
    that are at most one away: let ``t`` be its exact output in steps of its scale.  The module rounds once,
    within 1/2 of ``t`` (and float32 sums, far below); the engine within 1/2 + 1/4, for it rounds twice.
    Together that is below 2, hence at most 1.
    """
    if not isinstance(module, QATGraph):
        raise UsageError(f"convert takes a module from prepare_qat, not {type(module).__name__}")
    graph = module.to_graph()
    ranges = {
        name: module.quantizer(name).range()
        for name in module._roots
        if graph[name].kind is not Kind.CONSTANT
    }
    scales = {
        node.inputs[1]: module.weight_step(node).detach().cpu().numpy()
        for node in graph.nodes
        if node.op in LINEAR_OPS
    }
    return QuantizedModel(quantize_graph(graph, ranges, module.config, weight_scales=scales), graph)
