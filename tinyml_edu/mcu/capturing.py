"""From a PyTorch module to the graph that profiling, quantization and deployment share.

``torch.export`` writes the forward pass down as ATen operations, ``run_decompositions({})`` makes the
in-place ones functional, `capture_ops` transcribes each into N H W C, and `capture_fold` folds batch norms,
activations and padding.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

from .._modes import evaluating
from ..errors import UnsupportedOpError, UsageError
from ..ir.graph import Graph, Kind, Tensor
from . import capture_arithmetic, capture_ops  # noqa: F401  (each registers handlers)
from .capture_call import HANDLERS, LITERAL_HANDLERS, Call, Value, stored_shape
from .capture_fold import fold


def capture(model: nn.Module, example: torch.Tensor) -> Graph:
    """Return the float32 graph of a PyTorch model at inference.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is: training mode and parameters do not change.
    example : torch.Tensor or tuple of torch.Tensor
        Input of shape (N, C, H, W) or (N, F); fixes every shape.  Only the first item of the batch is used.

    Returns
    -------
    Graph
        Activations N H W C with N = 1, weights O H W I, 1 H W C and O I; paddings explicit; batch norms
        folded; ReLU and ReLU6 fused where their producer has no other reader, else 1×1 MAX_POOL_2D nodes.
        Its outputs equal the model's up to float32 rounding, with N C H W results stored as N H W C.

    Raises
    ------
    UnsupportedOpError
        If the model cannot be traced, or holds an operation that the compiler lacks; the message names the
        operation, the layer and the supported operations.
    UsageError
        If ``example`` is no float tensor with a batch axis.

    Notes
    -----
    A flatten of an H×W image with H·W > 1 stores its features in the order H W C; the columns of the linear
    layer after it are permuted to match.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> [(n.name, n.op, n.attrs.activation) for n in capture(net, torch.zeros(1, 3, 8, 8)).nodes]
    [('0', 'CONV_2D', 'relu')]
    """
    return fold(_transcript(model, example, literal=False)).validate()


def transcribe(model: nn.Module, example: torch.Tensor) -> Graph:
    """Return the literal graph of a model, before folding: surgery on the model reads it.

    Nodes are named by the path of the ``torch.nn`` layer that they come from.  Batch norms and activations
    are nodes of the ops ``BATCH_NORM`` and ``ACTIVATION``, which only `capture_fold` knows.  It also admits
    what the compiler lacks and `capture` refuses or decomposes: ``GROUPED_CONV_2D``, ``HARD_SIGMOID`` and
    ``ADAPTIVE_AVERAGE_POOL_2D`` to a size that does not divide.  Parameters and errors are otherwise
    those of `capture`.
    """
    return _transcript(model, example, literal=True)


def _transcript(model: nn.Module, example: torch.Tensor, *, literal: bool) -> Graph:
    examples = example if isinstance(example, tuple) else (example,)
    for x in examples:
        if not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim >= 2 and len(x) > 0):
            raise UsageError(
                "capture needs an example input: a float tensor such as torch.zeros(1, 3, 32, 32)"
            )
    program = _export(model, tuple(x[:1] for x in examples))
    return _transcribe(program, type(model).__name__, literal)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export's log and printed graphs back: the error that is raised says it in one line."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own use of its own pytree
            yield
    finally:
        logging.disable(level)


def _export(model: nn.Module, examples: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    first = next(model.parameters(), None)
    if first is not None:
        examples = tuple(x.to(first.device, first.dtype) for x in examples)
    with evaluating(model), torch.no_grad(), _quiet():
        try:
            return torch.export.export(model, examples).run_decompositions({})
        except Exception as error:  # torch.export raises many unrelated classes
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UnsupportedOpError(
                f"torch.export cannot trace {type(model).__name__}: {reason}.  Check that the model runs on "
                f"the example and that no Python branch depends on tensor values."
            ) from error


def _transcribe(program: torch.export.ExportedProgram, name: str, literal: bool) -> Graph:
    graph = Graph(name)
    constants = _constants(program)
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    env: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = constants[node.name] if node.name in constants else _input(graph, node)
        elif node.op == "call_function":
            place = f"operation {calls.index(node) + 1} of {len(calls)}"
            env[node] = _transcribe_call(graph, node, env, place, literal)
        elif node.op == "output":
            graph.outputs = tuple(_output(env.get(n)) for n in node.args[0])
    if not graph.nodes:
        raise UnsupportedOpError(f"{name} computes nothing from its input; there is no graph to capture")
    return graph


def _constants(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Return parameters, buffers and constants by the name of their placeholder."""
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    named |= signature.inputs_to_lifted_tensor_constants
    known = {**program.constants, **program.state_dict}
    return {placeholder: known[target] for placeholder, target in named.items()}


def _input(graph: Graph, node: torch.fx.Node) -> Value:
    value = Value(node.name, tuple(node.meta["val"].shape))
    graph.add(Tensor(node.name, stored_shape(value.shape), "float32", Kind.INPUT))
    graph.inputs = (*graph.inputs, node.name)
    return value


def _output(value: Any) -> str:
    if not isinstance(value, Value):
        raise UnsupportedOpError(
            "an output of the model does not depend on its input; return tensors it computes"
        )
    if value.perm is not None:
        raise UnsupportedOpError(
            "the model returns a flattened image; return it unflattened, or after a linear layer"
        )
    return value.name


def _transcribe_call(
    graph: Graph, node: torch.fx.Node, env: dict[torch.fx.Node, Any], place: str, literal: bool
) -> Any:
    if node.target is operator.getitem:
        source, index = env[node.args[0]], node.args[1]  # type: ignore[index]
        return source[index] if not isinstance(source, Value) else source
    args = _bind(node, env)
    if not any(_computed(a) for a in args.values()):  # a constant expression, such as weight * mask
        lookup, target = env.__getitem__, cast(Callable[..., Any], node.target)
        return target(*torch.fx.map_arg(node.args, lookup), **torch.fx.map_arg(node.kwargs, lookup))
    op = str(args["op"])
    layer = _layer_name(node, op)
    where = f"{node.target} (layer {layer!r}, {place})"
    handler = HANDLERS.get(op) or (LITERAL_HANDLERS.get(op) if literal else None)
    if handler is None:
        supported = ", ".join(sorted(name for name in HANDLERS if not name.startswith("_")))
        raise UnsupportedOpError(f"{where} is not supported; replace that layer.  Supported: {supported}")
    result = node.meta["val"]
    shape = tuple((result[0] if isinstance(result, (tuple, list)) else result).shape)
    try:
        return handler(Call(graph, args, shape, layer, literal))
    except UnsupportedOpError as error:
        raise UnsupportedOpError(f"{where} is not supported in this form: {error}") from None


def _computed(value: Any) -> bool:
    """Whether an argument, or an item of a list of tensors, depends on the input of the network."""
    return any(isinstance(v, Value) for v in (value if isinstance(value, (list, tuple)) else [value]))


def _bind(node: torch.fx.Node, env: dict[torch.fx.Node, Any]) -> dict[str, Any]:
    """Return the arguments of an ATen call by name, defaults included, and the operation's name as ``op``."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound |= {a.name: given for a, given in zip(schema.arguments, node.args)} | node.kwargs
    bound = {name: torch.fx.map_arg(given, env.__getitem__) for name, given in bound.items()}
    return bound | {"op": schema.name.removeprefix("aten::")}


def _layer_name(node: torch.fx.Node, op: str) -> str:
    """Return the path of the torch.nn layer that made the call, else the path of the module and the op."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    if "torch.nn.modules" in str(kind) and ".container." not in str(kind) and path:
        return path
    return f"{path}.{op}" if path else op
