"""Does cross-layer equalisation help where one scale serves a whole weight tensor?

    python -m benchmarks.equalization

MobileNetV2-tiny on glyphs32, after training, without and with equalisation and bias correction; controls:
float32, and one scale a channel.  Seeds differ in the 256 calibration images.  Test split.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

from benchmarks.saved import saved_row
from tinyml_edu import data, mcu, quantization, train, zoo
from tinyml_edu.quantization import QuantConfig, QuantizedModel

NETWORK = "mobilenet_v2_tiny.glyphs32"
SEEDS = (0, 1, 2)
REPAIRS = ("none", "equalized", "bias_corrected", "both")


class Study:
    """The network, its graph and the images, loaded once."""

    def __init__(self) -> None:
        model, self.card = zoo.load(NETWORK)
        self.splits = {split: data.load("glyphs32", split) for split in ("train", "test")}
        self.float32 = train.evaluate(model, self.splits["test"])
        self.graph = mcu.capture(model, torch.zeros(1, 3, 32, 32))

    def accuracy(self, config: QuantConfig, repair: str, seed: int) -> float:
        """Calibrate, repair, quantize, and run the integer kernels on the test split."""
        images, test = self.splits["train"].x, self.splits["test"]
        x = images[np.random.default_rng(seed).permutation(len(images))[:256]]
        graph = self.graph
        if repair in ("equalized", "both"):
            graph = quantization.equalize(graph)
        if repair in ("bias_corrected", "both"):
            graph = quantization.correct_bias(graph, x, config)
        ranges = quantization.calibrate(graph, x, observer=config.observer)
        int8 = quantization.quantize_graph(graph, ranges, config)
        return QuantizedModel(int8, graph).evaluate(test.x, test.y)

    def saved(self, config: QuantConfig, repair: str, seed: int) -> float:
        """Return `accuracy`, kept for the next run."""
        setting = f"w{config.weight_bits} {'channel' if config.per_channel else 'tensor'} {repair}"
        inputs = {"checkpoint": self.card["sha256"], "row": setting, "seed": seed}
        row = saved_row("equalization", inputs, lambda: {"accuracy": self.accuracy(config, repair, seed)})
        return row["accuracy"]


def figures() -> dict[str, tuple[float, str]]:
    """Return accuracies by weight bits and repair; prints a table."""
    study, name = Study(), f"equalization.{NETWORK}"
    results: dict[str, tuple[float, str]] = {f"{name}.fp32.accuracy": (study.float32, "fraction")}
    print(f"{NETWORK}: {study.float32:.4f} in float32, seeds {SEEDS}")
    print(f"{'weights':8} {'scale a':8} {'repair':15} {'accuracy':>8} {'spread':>7} {'drop':>8}")
    for bits in (8, 6, 4):
        for scale, repair in [("channel", "none"), *(("tensor", repair) for repair in REPAIRS)]:
            config = QuantConfig(weight_bits=bits, per_channel=scale == "channel")
            values = [study.saved(config, repair, seed) for seed in SEEDS]
            mean, spread = statistics.mean(values), max(values) - min(values)
            row = f"{bits:<8} {scale:8} {repair:15} {mean:8.4f} {spread:7.4f} {study.float32 - mean:+8.4f}"
            print(row, flush=True)
            key = f"{name}.w{bits}a8.per_{scale}.{repair}"
            results |= {f"{key}.accuracy": (mean, "fraction"), f"{key}.spread": (spread, "fraction")}
    return results


if __name__ == "__main__":
    figures()
