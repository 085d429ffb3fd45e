"""Run a graph in NumPy, node by node, for any batch size."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Literal, overload

import numpy as np

from ..errors import UnknownNameError
from .fixed_point import REQUANT_MODES
from .graph import Graph, GraphError, Kind, Node
from .ops import CONSTANT_OPERANDS, OPS
from .windows import batches


@overload
def run(
    graph: Graph,
    x: np.ndarray | Mapping[str, np.ndarray],
    *,
    requant: str = "exact",
    keep: Literal[False] = False,
) -> Any: ...


@overload
def run(
    graph: Graph,
    x: np.ndarray | Mapping[str, np.ndarray],
    *,
    requant: str = "exact",
    keep: Literal[True],
) -> dict[str, np.ndarray]: ...


def run(
    graph: Graph,
    x: np.ndarray | Mapping[str, np.ndarray],
    *,
    requant: str = "exact",
    keep: bool = False,
) -> np.ndarray | dict[str, np.ndarray]:
    """Run ``graph`` on a batch.

    Parameters
    ----------
    graph : Graph
        Float graph or int8 graph; a node whose output is int8 runs in exact integer arithmetic.
    x : array, or dict of input name to array
        Batch first, float32 values or int8 codes as the input tensor's ``dtype`` says.  A batch of
        ``N`` has ``N`` times the stored length on axis 0.
    requant : {"exact", "fast"}
        Rounding of int8 nodes, see `integer_kernels`.
    keep : bool, default=False
        Return every activation, not only the output.

    Returns
    -------
    array, or dict of tensor name to array
        The output; a dict if the graph has several outputs or ``keep`` is set (inputs included).

    Raises
    ------
    GraphError
        If an input is missing or has the wrong shape or type.
    """
    if requant not in REQUANT_MODES:
        raise UnknownNameError("requantization", requant, REQUANT_MODES)
    inputs, n = _bind_inputs(graph, x)
    largest = max(prod(t.shape) for t in graph.tensors.values() if t.kind is not Kind.CONSTANT)
    # A few images at a time keep the int64 temporaries of a layer inside the cache.
    parts = []
    for part in batches(n, largest):
        rows = {k: v[part.start * len(v) // n : part.stop * len(v) // n] for k, v in inputs.items()}
        parts.append(_run_part(graph, rows, part.stop - part.start, requant, keep))
    values = parts[0] if len(parts) == 1 else {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return values if keep or len(graph.outputs) > 1 else values[graph.outputs[0]]


def _run_part(
    graph: Graph, values: dict[str, np.ndarray], n: int, requant: str, keep: bool
) -> dict[str, np.ndarray]:
    """Run ``n`` images; return the outputs, or with ``keep`` everything."""
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    for i, node in enumerate(graph.nodes):
        values[node.outputs[0]] = _run_node(graph, node, values, n, requant)
        if not keep:
            for name in {*node.inputs, *node.outputs}:
                if last_use.get(name, -1) <= i and name not in graph.outputs:
                    values.pop(name, None)
    return values if keep else {name: values[name] for name in graph.outputs}


def _bind_inputs(graph: Graph, x: np.ndarray | Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Return the input arrays by name, checked, and the factor of the batch."""
    if not isinstance(x, Mapping):
        if len(graph.inputs) != 1:
            raise GraphError(f"graph {graph.name} has inputs {graph.inputs}: pass a dict of name to array")
        x = {graph.inputs[0]: x}
    values, sizes = {}, set()
    for name in graph.inputs:
        if name not in x:
            raise GraphError(f"input {name!r} is missing; graph {graph.name} needs {graph.inputs}")
        tensor, array = graph[name], np.asarray(x[name])
        if array.ndim != len(tensor.shape) or array.shape[1:] != tensor.shape[1:]:
            raise GraphError(f"input {name!r} must have shape (N, {_tail(tensor.shape)}), got {array.shape}")
        if tensor.dtype not in ("float32", array.dtype):
            raise GraphError(
                f"input {name!r} must be {tensor.dtype} codes, got {array.dtype}: quantize it first, "
                f"for example with graph[{name!r}].quant.quantize(x)"
            )
        n, rest = divmod(array.shape[0], tensor.shape[0])
        if rest or not n:
            raise GraphError(
                f"input {name!r} needs a multiple of {tensor.shape[0]} rows, got {array.shape[0]}"
            )
        sizes.add(n)
        values[name] = array.astype(tensor.dtype, copy=False)
    if len(sizes) > 1:
        raise GraphError(f"the inputs of graph {graph.name} have different batch sizes: {sorted(sizes)}")
    return values, sizes.pop() if sizes else 1


def _tail(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape[1:]))


def _run_node(graph: Graph, node: Node, values: Mapping[str, np.ndarray], n: int, requant: str) -> np.ndarray:
    spec = OPS[node.op]
    out = graph[node.outputs[0]]
    # Data is row-major and the batch is outermost, so that n images are n times the stored axis 0,
    # also after a RESHAPE that folded other axes into it.
    out_shape = (out.shape[0] * n, *out.shape[1:])
    args = [values[name] if name in values else _constant(graph, node, name, n) for name in node.inputs]
    if out.dtype == "float32":
        return spec.float_kernel(*args, attrs=node.attrs, out_shape=out_shape)
    params = spec.params(graph, node)
    return spec.integer_kernel(*args, attrs=node.attrs, params=params, out_shape=out_shape, requant=requant)


def _constant(graph: Graph, node: Node, name: str, n: int) -> np.ndarray:
    tensor = graph[name]
    if tensor.kind is not Kind.CONSTANT or tensor.data is None:
        raise GraphError(f"{node.name} reads {name!r}, which has no value")
    if node.op in CONSTANT_OPERANDS:  # a constant operand is one image's worth
        return np.concatenate([tensor.data] * n)
    return tensor.data
