"""Accuracy against sparsity for each criterion and granularity, on ``vgg_lite.glyphs32``.

    python -m benchmarks.pruning --quick     # minutes: few examples, one seed; shows that it runs
    python -m benchmarks.pruning             # the whole table, three seeds

Every row prunes the checkpoint at once and fine-tunes it under the masks.  Controls: the dense checkpoint
with the same extra epochs, and random masks of the same sparsity.  Seeds differ in the examples that a
criterion sees and in the order and augmentation of fine-tuning.  Nothing is chosen by these numbers: the plan
is fixed, so they are of the test split.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tinyml_edu import data, train, zoo
from tinyml_edu.pruning import PruneConfig, prune
from tinyml_edu.pruning.criteria import Batches

CHECKPOINT = "vgg_lite.glyphs32"

FINE_TUNING = train.TrainConfig(
    epochs=2, learning_rate=0.03, schedule="cosine", shift=2, label_smoothing=0.05, progress=False
)
"""The last part of the checkpoint's own recipe, at a fifth of its learning rate."""

ELEMENT_CRITERIA = ("l1", "taylor", "obd", "snip", "grasp", "synflow", "random")
"""Without l2, which ranks single weights as l1 does."""


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes
    ----------
    examples : dict of str to int
        Size of each split.
    criterion_examples : int
        What a criterion sees, in batches of 64.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    granular_sparsities: tuple[float, ...] = (0.5, 0.8)
    config: train.TrainConfig = FINE_TUNING
    criterion_examples: int = 256
    examples: dict[str, int] = field(default_factory=dict)


QUICK = Plan(
    seeds=(0,),
    sparsities=(0.9,),
    granular_sparsities=(0.5,),
    config=replace(FINE_TUNING, epochs=1),
    criterion_examples=64,
    examples={"train": 640, "validation": 100, "test": 500},
)


def cases(plan: Plan) -> Iterator[PruneConfig]:
    """Yield what is compared: criteria by one global rank of weights, granularities within each weight."""
    for sparsity in plan.sparsities:
        for criterion in ELEMENT_CRITERIA:
            yield PruneConfig(criterion, "element", sparsity, ratios="global")
    for sparsity in plan.granular_sparsities:
        for granularity in ("element", "pattern", "vector", "kernel", "channel"):
            yield PruneConfig("l1", granularity, sparsity)
        for criterion in ("apoz", "activation_entropy", "random"):
            yield PruneConfig(criterion, "channel", sparsity)
        yield PruneConfig("reconstruction", "input_channel", sparsity)
    yield PruneConfig("l1", "2:4", 0.5)
    yield PruneConfig("random", "2:4", 0.5)


def measure(config: PruneConfig, plan: Plan, splits: dict[str, data.Dataset], seed: int) -> dict[str, float]:
    """Prune, evaluate, fine-tune under the masks, evaluate."""
    model, _ = zoo.load(CHECKPOINT)
    result = prune(model, replace(config, seed=seed), batches=sample(splits["train"], plan, seed))
    before = train.evaluate(result.model, splits["test"])
    tune(result.model, plan, splits, seed, after_step=result.after_step)
    accuracy = train.evaluate(result.model, splits["test"])
    zeros = sum(int((result.model.get_parameter(name) == 0).sum()) for name in result.masks)
    assert zeros >= result.removed_weights, "fine-tuning brought removed weights back"
    return {"pruned": before, "fine_tuned": accuracy, "sparsity": result.sparsity}


def sample(dataset: data.Dataset, plan: Plan, seed: int) -> Batches:
    """Return ``plan.criterion_examples`` random training examples in batches of 64."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[: plan.criterion_examples].numpy()
    parts = [dataset.take(chosen[i : i + 64]) for i in range(0, len(chosen), 64)]
    return [(data.to_tensor(part.x), torch.from_numpy(part.y)) for part in parts]


def tune(
    model: torch.nn.Module, plan: Plan, splits: dict[str, data.Dataset], seed: int, after_step: Any = None
) -> None:
    """Fine-tune in place."""
    config = replace(plan.config, seed=seed)
    train.fit(model, splits["train"], splits["validation"], config, after_step=after_step)


def figures(plan: Plan | None = None) -> dict[str, tuple[float, str]]:
    """Run the plan, by default the whole one; prints a table as it goes."""
    plan = plan or Plan()
    splits: dict[str, data.Dataset] = {}
    for split in ("train", "validation", "test"):
        size = {"size": plan.examples[split]} if split in plan.examples else {}
        splits[split] = data.load("glyphs32", split, **size)
    results: dict[str, tuple[float, str]] = {}
    dense, _ = zoo.load(CHECKPOINT)
    start = train.evaluate(dense, splits["test"])
    longer = []
    for seed in plan.seeds:
        model = copy.deepcopy(dense)
        tune(model, plan, splits, seed)
        longer.append(train.evaluate(model, splits["test"]))
    control = statistics.mean(longer)
    print(f"{'criterion':20} {'granularity':14} {'ratios':7} {'zeros':>6} {'pruned':>7} {'tuned':>7} spread")
    spread = _spread(longer)
    print(f"{'dense, same epochs':20} {'-':14} {'-':7} {0:6.3f} {start:7.4f} {control:7.4f} {spread:.4f}")
    results["pruning.glyphs32.dense.accuracy"] = (start, "fraction")
    results["pruning.glyphs32.dense.same_epochs.accuracy"] = (control, "fraction")
    for case in cases(plan):
        rows = [measure(case, plan, splits, seed) for seed in plan.seeds]
        mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        spread = _spread([row["fine_tuned"] for row in rows])
        print(
            f"{case.criterion:20} {case.granularity:14} {case.ratios:7} {mean['sparsity']:6.3f} "
            f"{mean['pruned']:7.4f} {mean['fine_tuned']:7.4f} {spread:.4f}",
            flush=True,
        )
        granularity = case.granularity.replace(":", "_")
        key = f"pruning.glyphs32.{case.criterion}.{granularity}.{case.ratios}.s{100 * case.sparsity:.0f}"
        results |= {
            f"{key}.pruned.accuracy": (mean["pruned"], "fraction"),
            f"{key}.fine_tuned.accuracy": (mean["fine_tuned"], "fraction"),
            f"{key}.fine_tuned.spread": (spread, "fraction"),
            f"{key}.sparsity": (mean["sparsity"], "fraction"),
        }
    return results


def _spread(values: list[float]) -> float:
    """Return the largest minus the smallest over the seeds."""
    return max(values) - min(values)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few examples, one seed, one epoch")
    figures(QUICK if parser.parse_args().quick else None)


if __name__ == "__main__":
    main()
