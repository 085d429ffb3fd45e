"""Read ADD, SUB and MUL, whose operands may be constants and may have axes of length 1, or fewer axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import UnsupportedOpError
from . import attrs as A
from .graph import Kind
from .tflite_operator import OperatorReader

_KINDS = {"ADD": (A.Add, "AddOptions"), "SUB": (A.Sub, "SubOptions"), "MUL": (A.Mul, "MulOptions")}


def arithmetic(r: OperatorReader, op: Any, ids: list[int]) -> None:
    attrs, kind = _KINDS[r.op]
    activation, out = r.fused_activation(r.options(op, kind)), r.activation(r.out)
    names = [r.activation(i, constant=True) for i in ids[:2]]
    if all(r.graph[name].kind is Kind.CONSTANT for name in names):
        raise UnsupportedOpError(f"{r.where} computes a constant; fold it when you export the model")
    shape = r.graph[out].shape
    operands = tuple(_operand(r, name, shape, f"_in{k}") for k, name in enumerate(names, 1))
    r.node(operands, attrs(activation), out)


def _operand(r: OperatorReader, name: str, shape: tuple[int, ...], suffix: str) -> str:
    """Return ``name`` with leading axes of length 1 up to the rank of ``shape``, and its batch.

    A constant gets another shape, data a RESHAPE.  A constant that repeats along the first axis, where images
    are counted, is written out.
    """
    tensor = r.graph[name]
    wide = (1,) * (len(shape) - len(tensor.shape)) + tensor.shape
    batch = shape[0] if shape else 1
    if tensor.data is None:
        if wide[:1] != shape[:1]:
            raise UnsupportedOpError(f"{r.where} repeats {name!r} of shape {tensor.shape} along the batch")
        if wide != tensor.shape:
            target = r.new(f"{name}_{len(shape)}d", wide, tensor.quant)
            r.node((name,), A.Reshape(wide), target, op="RESHAPE", suffix=suffix)
            return target
        return name
    data = tensor.data.reshape(wide)
    if wide and wide[0] == 1 < batch:
        data = np.repeat(data, batch, axis=0)
    if data.shape == tensor.shape:
        return name
    return r.graph.add(
        replace(tensor, name=r.graph.unique(f"{name}_{len(shape)}d"), shape=data.shape, data=data)
    )


READERS = {"ADD": arithmetic, "SUB": arithmetic, "MUL": arithmetic}
"""``reader(r, operator, input indices)`` appends the nodes of an operator to the graph of ``r``."""
