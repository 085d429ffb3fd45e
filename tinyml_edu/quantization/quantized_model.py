"""An int8 network: predict, evaluate, save, load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import ir
from ..errors import UsageError
from ..ir.graph import Graph, Quant
from . import storage
from .calibration import as_stored


@dataclass(frozen=True)
class QuantizedModel:
    """The result of `quantize`.

    Attributes
    ----------
    graph : Graph
        The int8 graph.
    float_graph : Graph or None
        The float32 graph that it was made from; None after `load`, for a file holds the int8 graph only.
    """

    graph: Graph
    float_graph: Graph | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the constants: int8 weights and int32 biases."""
        return sum(tensor.nbytes for tensor in self.graph.constants())

    def input_codes(self, x: Any) -> np.ndarray:
        """Return real inputs as int8 codes, batch first, in the stored layout.

        Parameters
        ----------
        x : ndarray (n, H, W, C) or (n, F), or torch.Tensor (n, C, H, W) or (n, F)
            Floats normalised as in training, or an array of uint8 pixels, see `calibration.as_stored`.
        """
        return self._quant(self.graph.inputs[0]).quantize(as_stored(self.graph, x))

    def predict(self, x: Any, *, requant: str = "exact", batch_size: int = 256) -> np.ndarray:
        """Return the int8 output codes (n, ...) of real inputs ``x``, see `input_codes`."""
        codes = self.input_codes(x)
        starts = range(0, max(len(codes), 1), batch_size)
        parts = [ir.run(self.graph, codes[i : i + batch_size], requant=requant) for i in starts]
        return np.concatenate(parts)

    def logits(self, x: Any, *, requant: str = "exact") -> np.ndarray:
        """Return the real values (n, ...), float32, that the output codes stand for."""
        return self._quant(self.graph.outputs[0]).dequantize(self.predict(x, requant=requant))

    def evaluate(self, x: Any, y: Any, *, requant: str = "exact") -> float:
        """Return the accuracy, a fraction 0 to 1.

        Parameters
        ----------
        x : ndarray or torch.Tensor
            Inputs, see `input_codes`.
        y : ndarray or torch.Tensor of int, shape (n,)
            Classes.  A tie between output codes counts for the class of the lowest index.
        """
        labels = np.asarray(y)
        if len(labels) != len(x) or len(labels) == 0:
            raise UsageError(
                f"evaluate needs as many labels as inputs, at least one; got {len(labels)}, {len(x)}"
            )
        codes = self.predict(x, requant=requant)
        return float((codes.reshape(len(codes), -1).argmax(axis=1) == labels).mean())

    def save(self, path: str | Path) -> None:
        """Write the int8 graph to a ``.safetensors`` file: whole, or not at all."""
        storage.save_graph(self.graph, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> QuantizedModel:
        """Read a file that `save` wrote.

        Raises
        ------
        DataError
            If the file is missing, corrupt or no quantized model.
        """
        return cls(storage.load_graph(Path(path)))

    def _quant(self, name: str) -> Quant:
        quant = self.graph[name].quant
        if quant is None:
            raise UsageError(f"{name!r} has no scale; a QuantizedModel holds an int8 graph")
        return quant
