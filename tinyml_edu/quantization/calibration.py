"""The range of every activation over a calibration set."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ir
from ..data.dataset import normalised
from ..errors import UsageError
from ..ir.graph import Graph

Range = tuple[float, float]


def calibrate(graph: Graph, x: Any, *, batch_size: int = 32) -> dict[str, Range]:
    """Return ``(min, max)`` of every input and activation of a float graph, widened to contain 0.

    Parameters
    ----------
    graph : Graph
        Float graph with one input.
    x : ndarray or torch.Tensor
        Calibration inputs, see `as_stored`.
    batch_size : int, default=32
        Inputs per run; it bounds the memory, not the result.

    Raises
    ------
    UsageError
        If there is no input, or an activation is not finite.
    """
    x = as_stored(graph, x)
    if len(x) == 0:
        raise UsageError("the calibration set is empty; pass at least one input, a few hundred are better")
    ranges: dict[str, Range] = {}
    for start in range(0, len(x), batch_size):
        values = ir.run(graph, x[start : start + batch_size], keep=True)
        assert isinstance(values, dict)
        for name, value in values.items():
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
            # NaN compares false with everything, so min and max may hide it: ask the array.
            if not np.isfinite(value).all():
                raise UsageError(f"{name!r} is not finite on the calibration set; check model and data")
    return ranges


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
        If the shape or the type does not fit.
    """
    if len(graph.inputs) != 1:
        raise UsageError(f"graph {graph.name} has {len(graph.inputs)} inputs; only one is supported here")
    shape = graph[graph.inputs[0]].shape
    if hasattr(x, "detach"):  # a torch tensor, without importing torch
        x = x.detach().cpu().numpy()
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    x = np.asarray(x)
    if x.ndim != len(shape) or x.shape[1:] != shape[1:]:
        raise UsageError(
            f"inputs have shape {x.shape}, the network reads (n, {', '.join(map(str, shape[1:]))})"
        )
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UsageError(f"inputs are {x.dtype}; pass uint8 pixels, or floats normalised as in training")
    return normalised(x)
