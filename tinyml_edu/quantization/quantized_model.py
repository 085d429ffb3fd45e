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
        """Bytes of the constants as the int8 graph stores them: one for each weight, four for each bias.

        Codes of fewer than 8 bits count as whole bytes here: that is what the int8 kernels read.
        """
        return sum(tensor.nbytes for tensor in self.graph.constants())

    @property
    def packed_weight_bytes(self) -> int:
        """Bytes of the constants with their codes packed: what a file or a sub-byte kernel would hold.

        A tensor of ``n`` codes of ``b`` bits takes ``ceil(n * b / 8)`` bytes and 4 for each float32 scale;
        an int32 bias takes 4 bytes and no scale, for its scale is ``s_x * s_w``.
        """
        total = 0
        for tensor in self.graph.constants():
            if tensor.dtype == "int8" and tensor.quant is not None:
                total += -(-tensor.nbytes * tensor.quant.bits // 8) + 4 * tensor.quant.scale.size
            else:
                total += tensor.nbytes
        return total

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
        if batch_size < 1:
            raise UsageError(f"batch_size is the number of inputs per run, at least 1; got {batch_size}")
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
        if labels.shape != (len(x),) or labels.size == 0:
            raise UsageError(
                f"evaluate needs as many labels as inputs, at least one, of shape (n,); got {labels.shape} "
                f"for {len(x)} inputs"
            )
        codes = self.predict(x, requant=requant)
        return float((codes.reshape(len(codes), -1).argmax(axis=1) == labels).mean())

    def save(self, path: str | Path) -> None:
        """Write the int8 graph to a ``.safetensors`` file: whole, or not at all."""
        storage.save_graph(self.graph, Path(path))

    def write_tflite(self, path: str | Path) -> None:
        """Write the int8 graph as a ``.tflite`` file that takes and returns codes, see `ir.write_tflite`."""
        ir.write_tflite(self.graph, path)

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
