"""A float graph as a PyTorch module: the same function as `ir.run`, with gradients.

Images are N C H W outside and inside, weights O I H W and (C·M) 1 H W; tensors of other ranks keep their
stored layout.  With the channels_last memory format, which `train.fit` uses, N C H W and the stored
N H W C are the same bytes, so that the two permutations around RESHAPE, PAD, MEAN and SOFTMAX copy nothing.
"""
# ruff: noqa: ARG001 - all kernels have one signature, whether or not an op uses every part of it

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedOpError, UsageError
from ..ir.attrs import ACTIVATIONS
from ..ir.graph import Graph, GraphError, Kind, Node
from ..ir.ops import CONSTANT_OPERANDS, OPS
from ..ir.windows import nearest
from .activations import LINEAR_OPS
from .checking import require_float_graph

# Axes of the stored array in torch's order; a bias and any rank but 4 stay as they are.
TO_TORCH = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "image": (0, 3, 1, 2)}


class TorchGraph(nn.Module):
    """Run a float graph in PyTorch and train its weights.

    Parameters
    ----------
    graph : Graph
        Float32 graph, as from `mcu.capture`: its weights, batch norms folded in, are copied.

    Attributes
    ----------
    graph : Graph
        The graph as it was given; `to_graph` returns it with the present weights.
    tensors : nn.ParameterDict
        Weights and biases, to be trained, and the other constants, without gradients.  The keys are the
        tensor names with ``/`` for ``.``, which PyTorch does not allow; `parameter` takes the tensor name.

    Raises
    ------
    UsageError
        If the graph is int8.
    UnsupportedOpError
        If a weight is no constant, or one constant is read in two layouts.

    Notes
    -----
    Weights have two or four axes and biases one, so that `train.fit` lets only weights decay.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        require_float_graph(graph)
        self.graph = graph
        self.tensors = nn.ParameterDict()
        self._keys: dict[str, str] = {}
        self._order: dict[str, tuple[int, ...]] = {}
        for node in graph.validate().nodes:
            for position, name in enumerate(node.inputs):
                self._add_constant(node, position, name)

    def _add_constant(self, node: Node, position: int, name: str) -> None:
        """Register input ``position`` of ``node`` unless it is an activation."""
        tensor = self.graph[name]
        linear = node.op in LINEAR_OPS and position > 0
        if tensor.data is None or tensor.kind is not Kind.CONSTANT:
            if linear or tensor.kind is Kind.VARIABLE:
                raise UnsupportedOpError(
                    f"{node.name}: {name!r} must be a constant; store its data in the graph"
                )
            return
        natural = tuple(range(tensor.data.ndim))
        order = TO_TORCH.get(node.op if linear else "image", natural) if tensor.data.ndim == 4 else natural
        if self._order.setdefault(name, order) != order:
            raise UnsupportedOpError(f"{node.name}: {name!r} has readers of two layouts; copy the constant")
        if name not in self._keys:
            self._keys[name] = key = module_key(name, self.tensors)
            data = torch.from_numpy(np.ascontiguousarray(tensor.data.transpose(order), np.float32)).clone()
            self.tensors[key] = nn.Parameter(data, requires_grad=linear)

    def parameter(self, name: str) -> nn.Parameter:
        """Return the constant ``name`` of the graph in torch's layout."""
        value = self.tensors[self._keys[name]]
        assert isinstance(value, nn.Parameter)
        return value

    def forward(self, *inputs: Tensor) -> Any:
        """Return the output, or a tuple of them, of (N, C, H, W) images or (N, F) features."""
        values = self._bind(inputs)
        last_use = {name: i for i, node in enumerate(self.graph.nodes) for name in node.inputs}
        for i, node in enumerate(self.graph.nodes):
            values[node.outputs[0]] = self.compute(node, [values.get(name) for name in node.inputs])
            for name in {*node.inputs, *node.outputs} - {*self.graph.outputs}:
                if last_use.get(name, -1) <= i:
                    values.pop(name, None)
        results = tuple(values[name] for name in self.graph.outputs)
        return results[0] if len(results) == 1 else results

    def _bind(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        names = self.graph.inputs
        if len(inputs) != len(names):
            raise UsageError(f"graph {self.graph.name} has the inputs {names}, got {len(inputs)} tensors")
        for name, x in zip(names, inputs, strict=True):
            shape = self.graph[name].shape
            wanted = tuple(shape[i] for i in TO_TORCH["image"]) if len(shape) == 4 else shape
            if x.ndim != len(wanted) or tuple(x.shape[1:]) != wanted[1:]:
                shown = f"(N, {', '.join(map(str, wanted[1:]))})"
                raise UsageError(f"input {name!r} must have shape {shown}, got {tuple(x.shape)}")
        return dict(zip(names, inputs, strict=True))

    def compute(self, node: Node, inputs: Sequence[Tensor | None]) -> Tensor:
        """Return the output of one node.

        Parameters
        ----------
        node : Node
            Of ``self.graph``.
        inputs : sequence of Tensor or None
            Values of ``node.inputs``, images (N, C, H, W); None stands for a constant of the graph.
        """
        out = self.graph[node.outputs[0]]
        x = inputs[0]
        n = 1 if x is None else x.shape[0] // self.graph[node.inputs[0]].shape[0]
        for name, value in zip(node.inputs[1:], inputs[1:], strict=True):
            if x is None and value is not None:  # the first operand is a constant
                n = value.shape[0] // self.graph[name].shape[0]
        args = [self.constant(node, i, n) if value is None else value for i, value in enumerate(inputs)]
        # The batch is outermost, so that n images are n times the stored axis 0, also after a RESHAPE.
        return KERNELS[node.op](node.attrs, (out.shape[0] * n, *out.shape[1:]), *args)

    def constant(self, node: Node, position: int, n: int) -> Tensor:
        """Return input ``position`` of ``node``, a constant, for a batch of ``n``."""
        value: Tensor = self.parameter(node.inputs[position])
        # A constant operand is one image's worth.
        return value.repeat(n, *[1] * (value.ndim - 1)) if node.op in CONSTANT_OPERANDS else value

    def to_graph(self) -> Graph:
        """Return a new float graph with the present weights."""
        graph = self.graph
        result = Graph(graph.name, dict(graph.tensors), list(graph.nodes), graph.inputs, graph.outputs)
        for name, order in self._order.items():
            data = self.parameter(name).detach().cpu().float().numpy().transpose(np.argsort(order))
            result.update(name, data=np.ascontiguousarray(data))
        return result


def module_key(name: str, taken: Iterable[str]) -> str:
    """Return a tensor name without ``.`` and ``|``, which PyTorch or `train.fit`'s checkpoints reserve."""
    key = name.replace(".", "/").replace("|", "/")
    while key in taken:
        key += "_"
    return key


def to_stored(x: Tensor) -> Tensor:
    """Return an image (N, C, H, W) as (N, H, W, C), a view; other ranks as they are."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def from_stored(x: Tensor) -> Tensor:
    """Undo `to_stored`."""
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def activate(y: Tensor, activation: str) -> Tensor:
    """Return ``y`` after the fused activation."""
    if activation == "none":
        return y
    if activation == "relu":
        return F.relu(y)
    if activation == "relu6":
        return F.relu6(y)
    if activation == "relu_n1_to_1":
        return F.hardtanh(y)
    raise GraphError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")


def _framed(x: Tensor, padding: tuple[int, int, int, int], value: float = 0.0) -> Tensor:
    """Pad (top, left, bottom, right); a negative amount crops."""
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def _convolve(a: Any, x: Tensor, w: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    top, left, bottom, right = a.padding
    if (top, left) == (bottom, right) and min(top, left) >= 0:  # the convolution pads without a copy
        return activate(F.conv2d(x, w, bias, a.stride, (top, left), a.dilation, groups), a.activation)
    y = F.conv2d(_framed(x, a.padding), w, bias, a.stride, 0, a.dilation, groups)
    return activate(y, a.activation)


def _conv2d(a: Any, out: tuple[int, ...], x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    return _convolve(a, x, w, bias, 1)


def _depthwise_conv2d(
    a: Any, out: tuple[int, ...], x: Tensor, w: Tensor, bias: Tensor | None = None
) -> Tensor:
    return _convolve(a, x, w, bias, x.shape[1])


def _fully_connected(
    a: Any, out: tuple[int, ...], x: Tensor, w: Tensor, bias: Tensor | None = None
) -> Tensor:
    return activate(F.linear(x, w, bias), a.activation)


def _add(a: Any, out: tuple[int, ...], x1: Tensor, x2: Tensor) -> Tensor:
    return activate(x1 + x2, a.activation)


def _sub(a: Any, out: tuple[int, ...], x1: Tensor, x2: Tensor) -> Tensor:
    return activate(x1 - x2, a.activation)


def _mul(a: Any, out: tuple[int, ...], x1: Tensor, x2: Tensor) -> Tensor:
    return activate(x1 * x2, a.activation)


def _concatenation(a: Any, out: tuple[int, ...], *x: Tensor) -> Tensor:
    return from_stored(torch.cat([to_stored(part) for part in x], dim=a.axis))


def _elementwise(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def kernel(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
        return function(x)

    return kernel


def _leaky_relu(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    return F.leaky_relu(x, a.alpha)


def _resize_nearest(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    rows, columns = (
        torch.from_numpy(nearest(size, target, a)).to(x.device)
        for size, target in zip(x.shape[2:], a.size, strict=True)
    )
    return x.index_select(2, rows).index_select(3, columns)


def _average_pool2d(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    y = F.avg_pool2d(_framed(x, a.padding), a.kernel, a.stride)
    if any(a.padding):  # padding does not count
        inside = _framed(torch.ones_like(x[:1, :1]), a.padding)
        y = y / F.avg_pool2d(inside, a.kernel, a.stride)
    return activate(y, a.activation)


def _max_pool2d(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    x = _framed(x, a.padding, -torch.inf)
    single = a.kernel == (1, 1) == a.stride  # how capture writes an activation that it cannot fuse
    return activate(x if single else F.max_pool2d(x, a.kernel, a.stride), a.activation)


def _mean(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    return from_stored(to_stored(x).mean(dim=a.axes).reshape(out))


def _pad(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    amounts = [amount for pair in reversed(a.padding) for amount in pair]  # F.pad lists the last axis first
    return from_stored(F.pad(to_stored(x), amounts, value=a.value))


def _reshape(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    return from_stored(to_stored(x).reshape(out))


def _softmax(a: Any, out: tuple[int, ...], x: Tensor) -> Tensor:
    return from_stored(F.softmax(a.beta * to_stored(x), dim=-1))


KERNELS: dict[str, Callable[..., Tensor]] = {
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv2d,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
    "AVERAGE_POOL_2D": _average_pool2d,
    "MAX_POOL_2D": _max_pool2d,
    "MEAN": _mean,
    "PAD": _pad,
    "RESHAPE": _reshape,
    "SOFTMAX": _softmax,
    "SUB": _sub,
    "MUL": _mul,
    "CONCATENATION": _concatenation,
    "LOGISTIC": _elementwise(torch.sigmoid),
    "HARD_SWISH": _elementwise(F.hardswish),
    "RELU": _elementwise(F.relu),
    "RELU6": _elementwise(F.relu6),
    "RELU_N1_TO_1": _elementwise(F.hardtanh),
    "LEAKY_RELU": _leaky_relu,
    "TANH": _elementwise(torch.tanh),
    "QUANTIZE": _elementwise(torch.clone),
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
}
"""``kernel(attrs, out_shape, *inputs)`` of each op of `ir.ops.OPS`; ``out_shape`` is the stored shape."""

assert KERNELS.keys() == OPS.keys()
