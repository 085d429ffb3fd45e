"""How sums, differences, products and quotients are transcribed, with another value or with a constant.

A constant of one number, or of one number for each channel, is a batch norm: it folds into the layer before,
or becomes a 1×1 depthwise, which keeps every channel's own scale.  Any other constant is an operand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..ir.attrs import Add, Mul, Sub
from .capture_call import Call, Value, array, handles, same_order
from .capture_fold import BatchNorm

_NODES: dict[str, tuple[str, Any]] = {"add": ("ADD", Add()), "sub": ("SUB", Sub()), "mul": ("MUL", Mul())}


@handles("add", "sub", "rsub", "mul", "div")
def _arithmetic(call: Call) -> Value:
    a, b, kind = call["self"], call["other"], str(call["op"])
    if kind == "rsub":
        a, b, kind = b, a, "sub"
    alpha = call.args.get("alpha", 1)
    call.require(not call.args.get("rounding_mode"), "rounds its quotients; only plain division is supported")
    if isinstance(a, Value) and isinstance(b, Value):
        call.require(alpha == 1, f"alpha = {alpha}; only plain sums are supported")
        call.require(kind != "div", "divides by computed values; multiply instead")
        return _of_values(call, kind, a, b)
    call.require(not call.literal, "combines a value with a constant, which surgery cannot follow")
    if isinstance(a, Value):
        constant = _number(b) * alpha
        if kind == "div":
            call.require(bool(np.all(constant != 0)), "divides by zero")
            kind, constant = "mul", 1 / constant
        return _with_constant(call, kind, a, constant)
    call.require(kind != "div", "divides a constant by computed values; multiply instead")
    if kind == "sub":  # constant - b
        negative = _scaled(call, b, np.full(1, -float(alpha)), np.zeros(1))
        return _with_constant(call, "add", negative, _number(a))
    call.require(alpha == 1, f"alpha = {alpha}; only plain sums are supported")
    return _with_constant(call, kind, b, _number(a))


def _number(constant: Any) -> np.ndarray:
    return array(constant) if isinstance(constant, torch.Tensor) else np.array(float(constant))


def _of_values(call: Call, kind: str, a: Value, b: Value) -> Value:
    """Two values, an axis of either of which may have length 1; squeeze-and-excitation writes them so."""
    wide = len(a.shape) == len(b.shape) == len(call.shape)
    message = f"combines shapes {a.shape} and {b.shape}; both need the rank of the result, unsqueeze one"
    call.require(wide and a.shape[0] == b.shape[0], message)
    call.require(
        a.shape != b.shape or same_order(a, b),
        "combines a flattened image with features in another order; flatten later",
    )
    repeats = a.shape != b.shape and (a.perm is not None or b.perm is not None)
    call.require(not repeats or 1 in (a.shape[1], b.shape[1]), "repeats a flattened image; flatten later")
    op, attrs = _NODES[kind]
    perm = a.perm if a.shape == call.shape else b.perm
    return call.emit(op, (a.name, b.name), attrs, perm=perm)


def _with_constant(call: Call, kind: str, x: Value, constant: np.ndarray) -> Value:
    message = f"combines {x.shape} with a constant {constant.shape} into the larger {call.shape}"
    call.require(x.shape == call.shape, message)
    full = constant.reshape((1,) * (len(x.shape) - constant.ndim) + constant.shape)
    per_channel = len(x.shape) in (2, 4) and full.size == full.shape[1]
    if per_channel:
        vector = full.reshape(-1)
        if kind == "mul":
            return _scaled(call, x, vector, np.zeros(1))
        return _scaled(call, x, np.ones(1), vector if kind == "add" else -vector)
    return _operand(call, kind, x, full)


def _scaled(call: Call, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
    """Return ``scale * x + shift``, each of one number or of one for each channel, as a batch norm."""
    if len(x.shape) not in (2, 4):
        negated = call.constant("scale", scale.reshape((1,) * len(x.shape)))
        return call.emit("MUL", (x.name, negated), Mul(), x.shape, x.perm)
    channels = x.shape[1]
    scale, shift = (np.broadcast_to(v, (channels,)) for v in (scale, shift))
    if x.perm is not None:
        scale, shift = scale[x.perm], shift[x.perm]
    return call.emit("BATCH_NORM", (x.name,), BatchNorm(scale, shift), x.shape, x.perm)


def _operand(call: Call, kind: str, x: Value, constant: np.ndarray) -> Value:
    """Return ``x`` and a constant that varies along other axes, such as a position embedding."""
    stored = constant.transpose(0, 2, 3, 1) if constant.ndim == 4 else constant
    if x.perm is not None and stored.shape[-1] > 1:
        stored = stored[..., x.perm]
    op, attrs = _NODES[kind]
    return call.emit(op, (x.name, call.constant("operand", stored)), attrs, x.shape, x.perm)
