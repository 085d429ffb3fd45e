"""The range of every activation over a calibration set."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ir
from ..data.dataset import normalised
from ..errors import UnknownNameError, UsageError
from ..ir.graph import Graph
from .activations import Range, activation_widths
from .checking import require_float_graph
from .observers import OBSERVERS, Observer


def calibrate(
    graph: Graph, x: Any, *, observer: str = "minmax", bits: int = 8, batch_size: int = 32
) -> dict[str, Range]:
    """Return ``(low, high)`` of every input and activation of a float graph, widened to contain 0.

    Parameters
    ----------
    graph : Graph
        Float graph with one input.
    x : ndarray or torch.Tensor
        Calibration inputs, see `as_stored`.
    observer : str, default="minmax"
        How a range is chosen from the values, a key of `observers.OBSERVERS`.
    bits : int, default=8
        Width of inner activations (`activations.activation_widths`); the ranges of "kl" and "mse" depend
        on it.
    batch_size : int, default=32
        Inputs per run; it bounds the memory.  Only the range of "ema", an average over runs, depends on it.

    Raises
    ------
    UsageError
        If the graph is int8, there is no input, an activation is not finite, the observer is unknown or
        ``batch_size`` is below 1.
    """
    if observer not in OBSERVERS:
        raise UnknownNameError("observer", observer, OBSERVERS)
    if batch_size < 1:
        raise UsageError(f"batch_size is the number of inputs per run, at least 1; got {batch_size}")
    require_float_graph(graph)
    x = as_stored(graph, x)
    if len(x) == 0:
        raise UsageError("the calibration set is empty; pass at least one input, a few hundred are better")
    widths = activation_widths(graph, bits)
    observers: dict[str, Observer] = {}
    for start in range(0, len(x), batch_size):
        values = ir.run(graph, x[start : start + batch_size], keep=True)
        assert isinstance(values, dict)
        for name, value in values.items():
            if name not in observers:
                observers[name] = OBSERVERS[observer](bits=widths[name])
            try:
                observers[name].update(value)
            except UsageError:
                raise UsageError(
                    f"{name!r} is not finite on the calibration set; check model and data"
                ) from None
    spans = {name: seen.range() for name, seen in observers.items()}
    return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in spans.items()}


def as_stored(graph: Graph, x: Any) -> np.ndarray:
    """Return inputs as the float32 array, batch first, that a graph stores.

    Parameters
    ----------
    graph : Graph
        Graph with one input.
    x : ndarray or torch.Tensor
        An array is taken as stored, (n, H, W, C) or (n, F); a tensor as PyTorch's (n, C, H, W) or (n, F).
        Floats are taken as they are; an array of uint8 pixels is mapped to [-1, 1], as in training.

    Raises
    ------
    UsageError
        If the shape or the type does not fit, or a value is NaN or infinite.
    """
    if len(graph.inputs) != 1:
        raise UsageError(f"graph {graph.name} has {len(graph.inputs)} inputs; only one is supported here")
    shape = graph[graph.inputs[0]].shape
    if hasattr(x, "detach"):  # a torch tensor, without importing torch
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()  # NumPy has no bfloat16
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    x = np.asarray(x)
    if x.ndim != len(shape) or x.shape[1:] != shape[1:]:
        raise UsageError(
            f"inputs have shape {x.shape}, the network reads (n, {', '.join(map(str, shape[1:]))})"
        )
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UsageError(f"inputs are {x.dtype}; pass uint8 pixels, or floats normalised as in training")
    if not np.isfinite(x).all():
        raise UsageError("the inputs are not finite: a value is NaN or infinite; check where they come from")
    return normalised(x)
