"""What ``MODEL`` means on the command line: a zoo name, a ``.tflite`` file or a checkpoint of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from ..ir import Graph

CALIBRATION_IMAGES = 256
_PYTORCH = "capture and quantize the network in Python, then QuantizedModel.save(...) a .safetensors file"
UNREADABLE = {
    ".onnx": "export the network as an int8 .tflite file",
    ".h5": "convert the network to an int8 .tflite file",
    **dict.fromkeys((".pt", ".pth", ".pt2", ".ckpt"), _PYTORCH),
}
MODEL_HELP = "A zoo name (`tinyml zoo list`), a .tflite file, or a .safetensors file saved by tinyml_edu."


def resolve_graph(model: str) -> Graph:
    """Return the int8 graph that ``model`` stands for; a zoo network is quantized on its own data."""
    from .. import ir, zoo

    path = Path(model)
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        return ir.read_tflite(path)
    if suffix in UNREADABLE:
        raise UsageError(f"{suffix} files such as {path.name} cannot be read; {UNREADABLE[suffix]}")
    if suffix == ".safetensors":
        if not path.is_file():
            raise DataError(f"no file {path}; give the path of a checkpoint that QuantizedModel.save wrote")
        from ..quantization import QuantizedModel

        return QuantizedModel.load(path).graph
    if model not in zoo.names():
        raise UnknownNameError("model", model, [*zoo.names(), "FILE.tflite", "FILE.safetensors"])
    return quantized_zoo(model)


def quantized_zoo(name: str) -> Graph:
    """Return the zoo network ``name`` in int8, calibrated on training images of its own data set."""
    from .. import data, mcu, zoo
    from ..quantization import quantize

    network, card = zoo.load(name)
    images = data.load(card["data"]["name"], "train").x[:CALIBRATION_IMAGES]
    graph = mcu.capture(network, data.to_tensor(images[:1]))
    graph.name = name
    return quantize(graph, calibration=images).graph
