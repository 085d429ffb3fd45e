"""What the functions of this package take, checked in one place: one line that says what to pass instead."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UsageError
from ..ir.graph import Graph
from ..ir.ops import is_int8


def is_whole(value: Any, low: int, high: int) -> bool:
    """Return whether ``value`` is a whole number, no bool, from ``low`` to ``high``."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= int(value) <= high


def require_float_graph(graph: Any) -> None:
    """Raise `UsageError` unless ``graph`` is a float32 `Graph`."""
    if not isinstance(graph, Graph):
        raise UsageError(
            f"a float ir.Graph is needed, not {type(graph).__name__}; mcu.capture makes one of a module"
        )
    if is_int8(graph):
        raise UsageError(f"graph {graph.name} is int8 already; pass the float graph, as from mcu.capture")


def require_tensor(value: Any, what: str) -> None:
    """Raise `UsageError` unless ``value`` is a torch tensor."""
    if not hasattr(value, "is_floating_point"):  # without importing torch
        raise UsageError(f"{what} must be a torch tensor, not {type(value).__name__}; use torch.as_tensor")


def require_module(value: Any) -> None:
    """Raise `UsageError` unless ``value`` is a torch module."""
    if not hasattr(value, "named_modules"):  # without importing torch
        raise UsageError(f"a torch module is needed, not {type(value).__name__}; zoo.load has trained ones")
