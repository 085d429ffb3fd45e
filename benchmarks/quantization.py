"""Accuracy and bytes of VGG-lite at fewer bits: rounding, repair without training, codebooks, training.

    python -m benchmarks.quantization --quick                # minutes: few examples, one seed
    python -m benchmarks.quantization --data glyphs32        # one table, three seeds
    python -m benchmarks.quantization                        # all tables
    python -m benchmarks.quantization --choose               # the grids that set sparsity and learning rate

Seeds differ in the 256 calibration images and in the order and augmentation of training.  Controls: rounding
to nearest beside AdaRound, one scale a tensor beside one a channel, and the float network with the same extra
epochs beside everything that trains.  Integer networks are run by the integer kernels.  The tables are of
the test split; the learning rate of quantization-aware training and the sparsity of Deep Compression were
chosen by ``--choose``, which sees the validation split and another seed.
"""

from __future__ import annotations

import copy
import functools
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.saved import saved_row
from benchmarks.study import Study, print_tables
from tinyml_edu import distillation, mcu, quantization, train
from tinyml_edu.pruning import PruneConfig, prune
from tinyml_edu.quantization import KMeansQuantizer, QuantConfig, QuantizedModel
from tinyml_edu.quantization import deep_compression as chain
from tinyml_edu.quantization.mixed_precision import assign_bits, sensitivity, weight_counts

Row = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """A `study.Plan`.

    Attributes
    ----------
    tuning : TrainConfig
        Of float weights under masks or codebooks.
    aware : TrainConfig
        Of quantization-aware training, where batch norms are folded and rates are small.
    distilled : TrainConfig
        Of pruned weights that learn from the network before pruning.
    sparsity : float
        Of the network that Deep Compression shares and codes.
    low_bit : TrainConfig, optional
        Of networks with two or three weight values; without it they are left out.
    rounding_steps : int
        Of AdaRound, a layer.
    """

    data: str
    tuning: train.TrainConfig
    aware: train.TrainConfig
    distilled: train.TrainConfig
    sparsity: float
    low_bit: train.TrainConfig | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    calibration: int = 256
    rounding_steps: int = 600
    examples: dict[str, int] = field(default_factory=dict)


_TUNING = train.TrainConfig(
    epochs=2, learning_rate=0.03, schedule="cosine", label_smoothing=0.05, shift=2, progress=False
)
_AWARE = replace(_TUNING, epochs=1, learning_rate=0.001, ema=0.99)

_LOW_BIT = replace(_TUNING, epochs=8, learning_rate=1e-3, optimizer="adamw", weight_decay=0.0)

_CIFAR10 = replace(_TUNING, epochs=10, learning_rate=0.05, shift=3, flip=True, ema=0.998)

PLANS = {
    "glyphs32": Plan(
        "glyphs32",
        tuning=_TUNING,
        aware=_AWARE,
        distilled=_TUNING,
        sparsity=0.83,
        low_bit=_LOW_BIT,
    ),
    "cifar10": Plan(
        "cifar10",
        tuning=_CIFAR10,
        aware=replace(_AWARE, epochs=2, learning_rate=0.003, shift=3, flip=True),
        distilled=_CIFAR10,
        sparsity=0.82,
    ),
}


_SMALL_LAYER = 40_000
"""Weights; Deep Compression shares those of smaller layers at 4 bits."""


class Table(Study):
    """Runs one plan; the graph is captured once.  Accuracies are of ``split``."""

    def __init__(self, plan: Plan, split: str = "test") -> None:
        super().__init__(plan, split)
        self.plan = plan
        self.graph = mcu.capture(self.dense, torch.zeros(1, 3, 32, 32))

    def rows(self) -> dict[str, Callable[[int], Row]]:
        """Return what is compared, by the name of its key."""
        low = {bits: QuantConfig(weight_bits=bits) for bits in (4, 3)}
        four = QuantConfig(weight_bits=4, activation_bits=4)
        rows: dict[str, Callable[[int], Row]] = {
            "same_epochs": self.same_epochs,
            "w8a8": self.rounded(QuantConfig()),
            "w8a8.per_tensor": self.rounded(QuantConfig(per_channel=False)),
            "w4a8": self.rounded(low[4]),
            "w4a8.per_tensor": self.rounded(replace(low[4], per_channel=False)),
            "w4a8.adaround": self.rounded(low[4], repair="adaround"),
            "w3a8": self.rounded(low[3]),
            "w3a8.bias_corrected": self.rounded(low[3], repair="bias"),
            "w3a8.adaround": self.rounded(low[3], repair="adaround"),
            "mixed3.5a8": self.mixed,
            "w8a8.zero_shot": self.rounded(QuantConfig(), source="zero_shot"),
        }
        for observer in ("minmax", "percentile", "kl", "mse"):
            rows[f"w4a4.{observer}"] = self.rounded(replace(four, observer=observer))
        rows["w4a4"] = self.aware
        for bits in (8, 4, 3, 2):
            rows[f"kmeans{bits}"] = functools.partial(self.shared, bits=bits, epochs=0)
        rows["kmeans2.tuned"] = functools.partial(self.shared, bits=2, epochs=1)
        rows["deep_compression"] = self.deep_compression
        if self.plan.low_bit is not None:
            rows |= {"ternary": self.ternary, "binary": self.binary, "xnor": self.xnor}
        return rows

    def calibration(self, seed: int) -> np.ndarray:
        """Return random training images, uint8 (n, H, W, C)."""
        x = self.splits["train"].x
        return x[np.random.default_rng(seed).permutation(len(x))[: self.plan.calibration]]

    def rounded(self, config: QuantConfig, *, repair: str = "", source: str = "data") -> Callable[[int], Row]:
        """Return a row without training: calibrate, repair, quantize."""

        def row(seed: int) -> Row:
            x: Any = self.calibration(seed)
            if source == "zero_shot":
                x = quantization.zero_shot_calibration(self.dense, (3, 32, 32), n=32, seed=seed)
            graph, codes = self.graph, None
            ranges = quantization.calibrate(graph, x, observer=config.observer, bits=config.activation_bits)
            if repair == "bias":
                graph = quantization.correct_bias(graph, x, config)
            elif repair == "adaround":
                steps = self.plan.rounding_steps
                codes = quantization.adaround(graph, x, config, iterations=steps, seed=seed)
            int8 = quantization.quantize_graph(graph, ranges, config, weight_codes=codes)
            return self.integers(QuantizedModel(int8, graph))

        return row

    def mixed(self, seed: int) -> Row:
        """Return the widths of the layers that lose least of those that need 3.5 bits a weight at most."""
        sizes = weight_counts(self.graph)
        validation = self.splits["validation"].x[:256]
        bits = assign_bits(sensitivity(self.graph, validation), sizes, int(3.5 * sum(sizes.values())) // 8)
        config = QuantConfig(weight_bits=3, weight_bits_by_layer=bits)
        return self.rounded(config)(seed)

    def aware(self, seed: int) -> Row:
        """Return 4-bit weights and activations after quantization-aware training."""
        config = QuantConfig(weight_bits=4, activation_bits=4, observer="mse")
        ranges = quantization.calibrate(self.graph, self.calibration(seed), observer="mse", bits=4)
        module = quantization.prepare_qat(self.graph, ranges, config)
        self.tune(module, self.plan.aware, seed)
        return self.integers(quantization.convert(module))

    def shared(self, seed: int, *, bits: int, epochs: int) -> Row:
        """Return k-means codebooks for the weights, distilled if ``epochs``; in float arithmetic."""
        model = copy.deepcopy(self.dense)
        quantizer = KMeansQuantizer(model, bits, seed=seed)
        if epochs:
            config = replace(self.plan.tuning, epochs=epochs, ema=0.0)
            self.distil(model, config, seed, quantizer.after_step)
        return {"accuracy": self.accuracy(model)}

    def deep_compression(self, seed: int) -> Row:
        """Prune, fine-tune, share, tune the codebooks, write one file, evaluate what it holds.

        Both trainings are distillation: the network before compression is the teacher.  Small layers get
        codebooks of 4 bits, which costs few bytes, the others of 3.
        """
        config = PruneConfig("l1", "element", self.plan.sparsity, ratios="global", seed=seed)
        pruned = prune(self.dense, config)
        self.distil(pruned.model, self.plan.distilled, seed, pruned.after_step)
        weights = {name: p.numel() for name, p in pruned.model.named_parameters() if p.ndim > 1}
        bits = {name: 4 if size < _SMALL_LAYER else 3 for name, size in weights.items()}
        quantizer = KMeansQuantizer(pruned.model, bits, seed=seed)
        last = replace(self.plan.distilled, epochs=1, learning_rate=0.01, ema=0.0)
        self.distil(pruned.model, last, seed, quantizer.after_step)
        chain.round_small_tensors(pruned.model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.tedc"
            report = chain.save_compressed(pruned.model, path)
            size = path.stat().st_size
            model = copy.deepcopy(self.dense)
            model.load_state_dict(chain.load_compressed(path))
        assert size == report.file_bytes
        return {"accuracy": self.accuracy(model), "bytes": size, "ratio": report.ratio}

    def ternary(self, seed: int) -> Row:
        """Return Trained Ternary Quantization, from the checkpoint."""
        return self.low_bit(quantization.ternarize_layers(self.dense), seed)

    def binary(self, seed: int) -> Row:
        """Return binary weights with a scale a channel, from the checkpoint."""
        return self.low_bit(quantization.binarize_layers(self.dense), seed, quantization.clip_weights)

    def xnor(self, seed: int) -> Row:
        """Return binary weights and inputs, from random weights: the blocks have another order."""
        torch.manual_seed(seed)
        return self.low_bit(quantization.xnor_vgg_lite(), seed, quantization.clip_weights)

    def low_bit(self, model: nn.Module, seed: int, after_step: Any = None) -> Row:
        """Train and judge a network of two or three weight values, in float arithmetic."""
        assert self.plan.low_bit is not None
        self.tune(model, self.plan.low_bit, seed, after_step=after_step)
        return {"accuracy": self.accuracy(model)}

    def distil(self, model: nn.Module, config: train.TrainConfig, seed: int, after_step: Any) -> None:
        """Train in place on the soft predictions of the network before compression."""
        images, held_out = self.splits["train"], self.splits["validation"]
        config = replace(config, seed=seed)
        distillation.fit(model, self.dense, images, held_out, config, after_step=after_step)

    def same_epochs(self, seed: int) -> Row:
        """Return the float network with the epochs that tuned rows get."""
        model = copy.deepcopy(self.dense)
        self.tune(model, self.plan.tuning, seed)
        return {"accuracy": self.accuracy(model)}

    def integers(self, model: QuantizedModel) -> Row:
        """Return the accuracy of the integer kernels, and the bytes in flash, packed."""
        judged = self.splits[self.split]
        return {"accuracy": model.evaluate(judged.x, judged.y), "bytes": model.packed_weight_bytes}


def quick(plan: Plan) -> Plan:
    """Return a plan of minutes that runs every row."""
    return replace(
        plan,
        tuning=replace(plan.tuning, epochs=1),
        aware=replace(plan.aware, epochs=1),
        distilled=replace(plan.distilled, epochs=1),
        low_bit=plan.low_bit and replace(plan.low_bit, epochs=1),
        seeds=(0,),
        calibration=32,
        rounding_steps=20,
        examples={"train": 640, "validation": 256, "test": 300},
    )


def figures(plans: tuple[Plan, ...] = tuple(PLANS.values())) -> dict[str, tuple[float, str]]:
    """Run the plans, by default all; prints a table as it goes."""
    results: dict[str, tuple[float, str]] = {}
    for plan in plans:
        results |= _run(Table(plan))
    return results


def _run(table: Table) -> dict[str, tuple[float, str]]:
    plan, name = table.plan, f"quantization.vgg_lite.{table.plan.data}"
    start = table.accuracy(table.dense)
    print(f"vgg_lite on {plan.data}: {start:.4f} in float32, seeds {plan.seeds}")
    print(f"{'row':22} {'accuracy':>8} {'spread':>7} {'drop':>8} {'bytes':>9} {'of fp32':>8}")
    fp32 = 4 * sum(p.numel() for p in table.dense.parameters())
    results: dict[str, tuple[float, str]] = {
        f"{name}.fp32.accuracy": (start, "fraction"),
        f"{name}.fp32.bytes": (fp32, "bytes"),
    }
    for key, compute in table.rows().items():
        rows = [_saved(table, key, compute, seed) for seed in plan.seeds]
        mean = {field: statistics.mean(row[field] for row in rows) for field in rows[0]}
        values = [row["accuracy"] for row in rows]
        results |= _keys(f"{name}.{key}", mean, start, max(values) - min(values))
        size = f"{mean['bytes']:9,.0f} {fp32 / mean['bytes']:7.1f}x" if "bytes" in mean else ""
        print(
            f"{key:22} {mean['accuracy']:8.4f} {max(values) - min(values):7.4f} "
            f"{start - mean['accuracy']:+8.4f} {size}",
            flush=True,
        )
    return results


# The settings that a row depends on beside `_BASE`: another value of one leaves the other rows as they are.
_BASE = ("data", "calibration", "rounding_steps", "examples")
_USES = {
    "same_epochs": ("tuning",),
    "w4a4": ("aware",),
    "kmeans2.tuned": ("tuning",),
    "deep_compression": ("distilled", "sparsity"),
} | dict.fromkeys(("ternary", "binary", "xnor"), ("low_bit",))


def _saved(table: Table, key: str, compute: Callable[[int], Row], seed: int) -> Row:
    settings = asdict(table.plan)
    inputs = {name: settings[name] for name in (*_BASE, *_USES.get(key, ()))}
    inputs |= {"checkpoint": table.card["sha256"], "row": key, "seed": seed, "split": table.split}
    return saved_row("quantization", inputs, functools.partial(compute, seed))


AWARE_RATES = (0.001, 0.003, 0.01, 0.03)
SPARSITIES = (0.8, 0.82, 0.83, 0.86)


def choose(plans: tuple[Plan, ...]) -> None:
    """Print the validation accuracy of each choice, with a seed that the tables do not use."""
    seed = 9
    for plan in plans:
        table = Table(plan, "validation")
        print(f"{plan.data}: float32 {table.accuracy(table.dense):.4f} on the validation split")
        for rate in AWARE_RATES:
            table.plan = replace(plan, aware=replace(plan.aware, learning_rate=rate))
            row = _saved(table, "w4a4", table.aware, seed)
            print(f"  w4a4, rate {rate:5}  {row['accuracy']:.4f}", flush=True)
        for sparsity in SPARSITIES:
            table.plan = replace(plan, sparsity=sparsity)
            row = _saved(table, "deep_compression", table.deep_compression, seed)
            text = f"{row['ratio']:5.1f}x  {row['accuracy']:.4f}"
            print(f"  deep compression, sparsity {sparsity}  {text}", flush=True)


def _keys(key: str, mean: Mapping[str, float], start: float, spread: float) -> dict[str, tuple[float, str]]:
    units = {"accuracy": "fraction", "bytes": "bytes", "ratio": "fp32 bytes / file bytes"}
    found = {f"{key}.{name}": (value, units[name]) for name, value in mean.items()}
    return found | {
        f"{key}.drop": (start - mean["accuracy"], "fraction"),
        f"{key}.spread": (spread, "fraction"),
    }


if __name__ == "__main__":
    print_tables(__doc__, PLANS, quick, figures, choose)
