"""The networks of the course, deployed: NumPy, host C and firmware agree in every code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinyml_edu import data, ir, mcu, models, zoo
from tinyml_edu.quantization import quantize

pytestmark = pytest.mark.c


def extremes(graph: ir.Graph, rng: np.random.Generator, *, random: int) -> np.ndarray:
    """Return int8 inputs (n, H, W, C): random codes, both ends of the range, and a board of ends."""
    shape = graph[graph.inputs[0]].shape[1:]
    board = np.where(np.indices(shape).sum(axis=0) % 2, 127, -128)
    fixed = [np.full(shape, -128), np.full(shape, 127), board]
    return np.concatenate([rng.integers(-128, 128, (random, *shape)), fixed]).astype(np.int8)


def assert_agreement(graph: ir.Graph, codes: np.ndarray, folder, *, requant: str = "exact") -> None:
    expected = ir.run(graph, codes, requant=requant).reshape(len(codes), -1)
    deployment = mcu.deploy(graph, "stm32h743", folder, requant=requant)
    host = deployment.run(codes, target="host").outputs.reshape(len(codes), -1)
    board = deployment.run(codes, target="emulate").outputs.reshape(len(codes), -1)
    np.testing.assert_array_equal(host, expected)
    np.testing.assert_array_equal(board, expected)


@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("name", zoo.names())
def test_zoo_networks_agree_on_real_images_and_extremes(name, requant, tmp_path, rng):
    network, card = zoo.load(name)
    source = card["data"]["name"]
    # Where the real set is absent its embedded stand-in calibrates: parity holds for any scales.
    images = data.load(source if data.is_available(source) else "glyphs32", "test").x[:64]
    graph = mcu.capture(network, data.to_tensor(images[:1]))
    quantized = quantize(graph, calibration=images)
    codes = np.concatenate([quantized.input_codes(images[:3]), extremes(quantized.graph, rng, random=1)])
    assert_agreement(quantized.graph, codes, tmp_path / "project", requant=requant)


@pytest.mark.parametrize(
    ("name", "shape"), [("mobilenet_v2_tiny", (3, 32, 32)), ("ds_cnn", (1, 49, 10)), ("resnet8", (3, 31, 33))]
)
def test_untrained_networks_agree(name, shape, tmp_path, rng):
    """Depthwise layers, odd sizes and rectangular inputs, which the trained networks do not have."""
    torch.manual_seed(5)
    network = models.build(name, classes=7, in_channels=shape[0]).eval()
    graph = mcu.capture(network, torch.zeros(1, *shape))
    calibration = rng.uniform(-1, 1, (16, *shape[1:], shape[0])).astype(np.float32)
    quantized = quantize(graph, calibration=calibration)
    assert_agreement(quantized.graph, extremes(quantized.graph, rng, random=2), tmp_path / "project")
