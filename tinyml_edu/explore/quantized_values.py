"""What Lab 2's explorer shows: quantized weights, their bytes, an activation's error, and an accuracy.

Everything is measured on one small trained network, each setting once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from ..quantization.activations import LINEAR_OPS, activation_quants
from ..quantization.affine import group_dequantize, group_quantize

if TYPE_CHECKING:
    import torch

    from ..ir.graph import Graph, Quant

NETWORK = "resnet8.glyphs32"
IMAGES, CALIBRATION = 200, 32
SHOWN_LAYER = "features.3.first.conv"
GROUP = 16
SCHEMES = {"tensor": "a tensor", "channel": "an output channel", "group": f"{GROUP} weights"}
"""What has a scale of its own."""


@functools.cache
def graph() -> Graph:
    """Return the trained network's float graph, batch norms folded."""
    import torch

    from .. import mcu, zoo

    return mcu.capture(zoo.load(NETWORK)[0], torch.zeros(1, 3, 32, 32))


def weight_names() -> list[str]:
    return [node.inputs[1] for node in graph().nodes if node.op in LINEAR_OPS]


@functools.cache
def quantized_weight(name: str, bits: int, scheme: str) -> tuple[np.ndarray, int]:
    """Return the values (O, ...) that the codes of one weight stand for, and its scales' number.

    Parameters
    ----------
    name : str
        Weight of the float graph.
    bits : int
        2 to 8; codes are symmetric.
    scheme : str
        One of `SCHEMES`; groups run along a filter and its last one may be short.
    """
    weight = graph()[name].data
    assert weight is not None
    rows = weight.reshape(len(weight), -1)
    if scheme == "tensor":
        rows = rows.reshape(1, -1)
    size = GROUP if scheme == "group" else rows.shape[1]
    found = group_quantize(rows, bits, size, symmetric=True)
    return group_dequantize(found, size).reshape(weight.shape), found.scales.size


def stored_bytes(bits: int, scheme: str) -> int:
    """Return the bytes of all weights: packed codes of each tensor, and four for each scale."""
    total = 0
    for name in weight_names():
        values, scales = quantized_weight(name, bits, scheme)
        total += -(-values.size * bits // 8) + 4 * scales
    return total


@functools.cache
def _ranges(observer: str, bits: int) -> dict[str, tuple[float, float]]:
    from .. import data
    from ..quantization.calibration import calibrate

    pixels = data.load("glyphs32", "train").x[:CALIBRATION]
    return calibrate(graph(), pixels, observer=observer, bits=bits)


def quants_of(observer: str, bits: int) -> dict[str, Quant]:
    return activation_quants(graph(), _ranges(observer, bits), bits)


@functools.cache
def simulated_accuracy(weight_bits: int, scheme: str, activation_bits: int, observer: str) -> float:
    """Return the share of the first 200 validation images that the network on quantized values reads."""
    import torch

    from .. import data, train
    from ..quantization.qat import FakeQuantize
    from ..quantization.torch_graph import TO_TORCH, TorchGraph

    quants = quants_of(observer, activation_bits)

    class Simulated(TorchGraph):
        """The float graph with every activation on its grid."""

        def compute(self, node: Any, inputs: Any) -> torch.Tensor:
            return FakeQuantize(quants[node.outputs[0]])(super().compute(node, inputs))

    model = Simulated(graph())
    with torch.no_grad():
        for node in graph().nodes:
            if node.op in LINEAR_OPS:
                values = quantized_weight(node.inputs[1], weight_bits, scheme)[0]
                order = TO_TORCH[node.op] if values.ndim == 4 else (0, 1)
                model.parameter(node.inputs[1]).copy_(
                    torch.from_numpy(values.transpose(order).astype(np.float32))
                )
    return train.evaluate(model, data.load("glyphs32", "validation").take(slice(IMAGES)))


@functools.cache
def activation() -> np.ndarray:
    """Return what the shown layer gives for the calibration images, flattened."""
    from .. import data, ir
    from ..quantization.calibration import as_stored

    pixels = as_stored(graph(), data.load("glyphs32", "train").x[:CALIBRATION])
    return ir.run(graph(), pixels, keep=True)[SHOWN_LAYER].ravel()


def activation_error(observer: str, bits: int) -> tuple[float, float]:
    """Return the mean squared error of the shown layer's codes, and the share of values that saturate."""
    quant, seen = quants_of(observer, bits)[SHOWN_LAYER], activation()
    scale, zero_point = quant.item()
    low, high = (scale * (q - zero_point - half) for q, half in zip(quant.limits, (0.5, -0.5)))
    error = quant.dequantize(quant.quantize(seen)) - seen
    return float(np.mean(error**2)), float(np.mean((seen < low) | (seen > high)))
