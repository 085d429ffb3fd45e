"""Post-training quantization by onnxruntime: export, calibrate, write QDQ ``.onnx`` files, run them.

`quantize_static` puts QuantizeLinear and DequantizeLinear around the operators of the float model; a session
joins them to int8 kernels.  Both activations and weights are int8 codes, weights are symmetric.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

INPUT = "x"
METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
"""Names in `onnxruntime.quantization.CalibrationMethod`; each with the options that it has by default."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a peer prints, logs and warns of out of the table."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def export(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a float model (n, C, H, W) -> (n, classes) as ``.onnx``, prepared for `quantize`.

    The preparation folds batch norms and infers the shapes, as onnxruntime asks before calibration.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raw = path.with_suffix(".raw.onnx")
    shapes = ({0: torch.export.Dim("n", min=1, max=4096)},)
    with quiet():
        torch.onnx.export(
            model.eval(), (example,), raw, input_names=[INPUT], dynamic_shapes=shapes, external_data=False
        )
        quant_pre_process(raw, path)


def quantize(source: Path, x: np.ndarray, method: str, *, per_channel: bool, path: Path) -> None:
    """Write the int8 form of an exported model.

    Parameters
    ----------
    source : Path
        A file of `export`.
    x : ndarray float32 (n, C, H, W)
        Calibration inputs.
    method : str
        How the range of an activation is chosen, a key of `METHODS`.
    per_channel : bool
        One weight scale for each output channel, else one for each tensor.
    path : Path
        Of the ``.onnx`` file to write.
    """
    from onnxruntime import quantization

    with quiet():
        quantization.quantize_static(
            source,
            path,
            _Batches(x),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[METHODS[method]],
        )


class _Batches:
    """The inputs in batches, in the shape that a `CalibrationDataReader` hands them out."""

    def __init__(self, x: np.ndarray, batch_size: int = 32) -> None:
        self._parts = iter([x[i : i + batch_size] for i in range(0, len(x), batch_size)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by input name, or None."""
        part = next(self._parts, None)
        return None if part is None else {INPUT: part}


def predictor(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what maps inputs, float32 (n, C, H, W), to the logits (n, classes) of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {INPUT: x})[0]
