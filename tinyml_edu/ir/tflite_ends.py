"""Read QUANTIZE and DEQUANTIZE: where codes become real values, and back.

The graph computes with int8 codes from end to end:

- a QUANTIZE of a float input and a DEQUANTIZE to a float output are dropped, so that the graph takes and
  returns the codes on the other side; ``graph[name].quant`` says what they stand for;
- uint8 codes, at the two ends only, become int8 codes: 128 less, and so is the zero point.  A QUANTIZE
  between uint8 and int8 that changes nothing else is dropped, any other is a QUANTIZE of int8 codes;
- DEQUANTIZE and then QUANTIZE is one QUANTIZE, through float.  Float arithmetic between the two is refused.
"""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedOpError
from . import attrs as A
from .tflite_operator import OperatorReader


def dequantize(r: OperatorReader, _: Any, ids: list[int]) -> None:
    """Remember which codes a float tensor has; move the end of the graph if it is an output."""
    (source,) = ids
    if r.type_of(source) not in ("INT8", "UINT8"):
        raise UnsupportedOpError(
            f"{r.where} makes a {r.type_of(source)} tensor real; convert the model with full integer "
            "quantization"
        )
    r.activation(source)
    r.codes_of[r.out] = source
    r.outputs = [source if i == r.out else i for i in r.outputs]


def quantize(r: OperatorReader, _: Any, ids: list[int]) -> None:
    (source,) = ids
    if r.type_of(source) != "FLOAT32":
        return _requantize(r, source, A.Quantize())
    if source in r.inputs:  # the first of them: the graph now begins here
        r.inputs[r.inputs.index(source)] = r.begins_at[source] = r.out
        r.activation(r.out)
        return None
    if source in r.begins_at:
        if r.quant_at(r.begins_at[source]) != r.quant_at(r.out):
            raise UnsupportedOpError(f"{r.where} is a second scale for one float input; export it with one")
        return r.rename(r.out, r.begins_at[source])
    if source not in r.codes_of:
        raise UnsupportedOpError(
            f"{r.where} reads a float32 tensor that an op computed; convert the model with full integer "
            "quantization"
        )
    return _requantize(r, r.codes_of[source], A.Quantize(through_float=True))


def _requantize(r: OperatorReader, source: int, attrs: A.Quantize) -> None:
    """Append a QUANTIZE of codes, or let both tensors be one where only the offset of uint8 changes."""
    if r.type_of(source) != r.type_of(r.out) and r.quant_at(source) == r.quant_at(r.out):
        r.rename(r.out, source)
        return
    r.node((r.activation(source),), attrs, r.activation(r.out), op="QUANTIZE")


READERS = {"QUANTIZE": quantize, "DEQUANTIZE": dequantize}
"""``reader(r, operator, input indices)`` appends the nodes of an operator to the graph of ``r``."""
