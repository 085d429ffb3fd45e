"""Accuracy against sparsity for each criterion and granularity, and what channel pruning makes faster.

    python -m benchmarks.pruning --quick                # minutes: few examples, one seed; shows that it runs
    python -m benchmarks.pruning --data glyphs32        # one table, three seeds
    python -m benchmarks.pruning                        # all tables

Every row prunes a VGG-lite checkpoint at once and fine-tunes it.  Controls: the dense checkpoint with the
same extra epochs, and random masks of the same sparsity.  Seeds differ in the examples that a criterion sees
and in the order and augmentation of fine-tuning.  What is printed is measured on the test split.  The plans
were chosen on the validation split, with one exception: the learning rate for CIFAR-10 was halved, to 0.05,
after a first dense run whose test accuracy was seen.
"""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn

from benchmarks.saved import saved_row
from benchmarks.study import Study, print_tables
from benchmarks.timing import time_ratios
from tinyml_edu import data, train
from tinyml_edu._threads import torch_threads
from tinyml_edu.pruning import ChannelPruner, PruneConfig, layer_costs, prune
from tinyml_edu.pruning.criteria import Batches

ELEMENT_CRITERIA = ("l1", "taylor", "obd", "snip", "grasp", "synflow", "random")
"""Without l2, which ranks single weights as l1 does."""


@dataclass(frozen=True)
class Shrink:
    """Channel surgery, the same ratio everywhere, to at most ``share`` of the MACs."""

    criterion: str = "l1"
    share: float = 0.5


Case = PruneConfig | Shrink | None
"""None is the control: the dense network with the same extra epochs."""


@dataclass(frozen=True)
class Plan:
    """A `study.Plan`.

    Attributes
    ----------
    criterion_examples : int
        What a criterion sees, in batches of 64.
    """

    data: str
    cases: tuple[Case, ...]
    config: train.TrainConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    criterion_examples: int = 256
    examples: dict[str, int] = field(default_factory=dict)


def element(criterion: str, sparsity: float) -> PruneConfig:
    """Return single weights under one rank over all layers."""
    return PruneConfig(criterion, "element", sparsity, ratios="global")


GRANULAR: tuple[PruneConfig, ...] = (
    *(PruneConfig("l1", kind, 0.5) for kind in ("element", "pattern", "vector", "kernel", "channel")),
    *(PruneConfig(name, "channel", 0.5) for name in ("apoz", "activation_entropy", "random")),
    PruneConfig("reconstruction", "input_channel", 0.5),
    *(PruneConfig(name, "2:4", 0.5) for name in ("l1", "random")),
)

PLANS = {
    # The last part of the checkpoint's own recipe, at a fifth of its learning rate.
    "glyphs32": Plan(
        "glyphs32",
        (
            None,
            *(element(*pair[::-1]) for pair in itertools.product((0.8, 0.9), ELEMENT_CRITERIA)),
            *GRANULAR,
            Shrink(),
            Shrink("random"),
        ),
        train.TrainConfig(
            epochs=2, learning_rate=0.03, schedule="cosine", shift=2, label_smoothing=0.05, progress=False
        ),
    ),
    "cifar10": Plan(
        "cifar10",
        (
            None,
            *(element(name, sparsity) for name in ("l1", "random") for sparsity in (0.8, 0.9)),
            Shrink(),
            Shrink("random"),
        ),
        train.TrainConfig(
            epochs=10,
            learning_rate=0.05,
            schedule="cosine",
            shift=3,
            flip=True,
            label_smoothing=0.05,
            ema=0.998,
            progress=False,
        ),
    ),
}


def quick(plan: Plan) -> Plan:
    """Return a plan of minutes that runs every kind of case."""
    cases = (None, *(element(name, 0.9) for name in ELEMENT_CRITERIA), *GRANULAR, Shrink())
    return replace(
        plan,
        cases=cases,
        config=replace(plan.config, epochs=1),
        seeds=(0,),
        criterion_examples=64,
        examples={"train": 640, "validation": 100, "test": 500},
    )


class Table(Study):
    """Runs one plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan
        self.example = torch.zeros(1, 3, 32, 32)

    def row(self, case: Case, seed: int) -> dict[str, float]:
        """Return the row of one case and seed, computed once."""
        inputs = {
            "checkpoint": self.card["sha256"],
            "case": f"{type(case).__name__} {case}",
            "seed": seed,
            "config": asdict(self.plan.config),
            "examples": [len(split) for split in self.splits.values()] + [self.plan.criterion_examples],
        }
        return saved_row("pruning", inputs, functools.partial(self._measure, case, seed))

    def _measure(self, case: Case, seed: int) -> dict[str, float]:
        """Prune, evaluate, fine-tune, evaluate."""
        after_step: Callable[[nn.Module], None] | None = None
        model, sparsity = copy.deepcopy(self.dense), 0.0
        if isinstance(case, PruneConfig):
            result = prune(model, replace(case, seed=seed), batches=self._sample(seed))
            model, sparsity, after_step = result.model, result.sparsity, result.after_step
        elif isinstance(case, Shrink):
            model = self.shrunk(case, seed)
            sparsity = 1 - self.macs(model) / self.macs(self.dense)
        before = self.accuracy(model)
        self.tune(model, self.plan.config, seed, after_step)
        if isinstance(case, PruneConfig):
            zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in result.masks)
            assert zeros >= result.removed_weights, "fine-tuning brought removed weights back"
        return {"pruned": before, "fine_tuned": self.accuracy(model), "sparsity": sparsity}

    def shrunk(self, case: Shrink, seed: int) -> nn.Module:
        """Return the network cut by the smallest ratio, in percent, that reaches the share of MACs."""
        pruner = ChannelPruner(self.dense, self.example, criterion=case.criterion, seed=seed)
        for percent in range(1, 100):
            small = pruner.shrink(percent / 100)
            if self.macs(small) <= case.share * self.macs(self.dense):
                return small
        raise AssertionError("no ratio reaches the share of MACs")

    def macs(self, model: nn.Module) -> int:
        """Return the multiply-accumulates of one image."""
        return sum(cost.macs for cost in layer_costs(model, self.example))

    def _sample(self, seed: int) -> Batches:
        """Return random training examples in batches of 64."""
        generator = torch.Generator().manual_seed(seed)
        dataset = self.splits["train"]
        chosen = torch.randperm(len(dataset), generator=generator)[: self.plan.criterion_examples].numpy()
        parts = [dataset.take(chosen[i : i + 64]) for i in range(0, len(chosen), 64)]
        return [(data.to_tensor(part.x), torch.from_numpy(part.y)) for part in parts]


def latency_ratios(dense: nn.Module, small: nn.Module, x: torch.Tensor, rounds: int = 15) -> list[float]:
    """Return dense time over small time, both in one round, in processor time of one thread."""
    with torch_threads(1), torch.inference_mode():
        dense.eval()
        small.eval()
        return time_ratios(lambda: dense(x), lambda: small(x), rounds)


def figures(plans: tuple[Plan, ...] = tuple(PLANS.values())) -> dict[str, tuple[float, str]]:
    """Run the plans, by default all; prints a table as it goes."""
    results: dict[str, tuple[float, str]] = {}
    for plan in plans:
        results |= run_plan(Table(plan))
    return results


def run_plan(table: Table) -> dict[str, tuple[float, str]]:
    """Return the figures of one plan."""
    name = f"pruning.vgg_lite.{table.plan.data}"
    start, control = table.accuracy(table.dense), float("nan")
    print(f"vgg_lite on {table.plan.data}: {start:.4f} without extra epochs, seeds {table.plan.seeds}")
    print("criterion            granularity     removed  pruned   tuned spread    drop vs same epochs")
    results = {f"{name}.dense.accuracy": (start, "fraction")}
    for case in table.plan.cases:
        rows = [table.row(case, seed) for seed in table.plan.seeds]
        mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        spread = max(row["fine_tuned"] for row in rows) - min(row["fine_tuned"] for row in rows)
        control = mean["fine_tuned"] if case is None else control
        what, kind, key = _names(case)
        print(
            f"{what:20} {kind:14} {mean['sparsity']:7.3f} {mean['pruned']:7.4f} {mean['fine_tuned']:7.4f} "
            f"{spread:.4f} {start - mean['fine_tuned']:+7.4f} {control - mean['fine_tuned']:+7.4f}",
            flush=True,
        )
        results |= {
            f"{name}.{key}.accuracy": (mean["fine_tuned"], "fraction"),
            f"{name}.{key}.drop": (start - mean["fine_tuned"], "fraction"),
            f"{name}.{key}.drop_against_same_epochs": (control - mean["fine_tuned"], "fraction"),
            f"{name}.{key}.spread": (spread, "fraction"),
            f"{name}.{key}.pruned.accuracy": (mean["pruned"], "fraction"),
            f"{name}.{key}.removed": (mean["sparsity"], "fraction"),
        }
        if isinstance(case, Shrink) and case.criterion == "l1":
            results |= _latency(table, case, f"{name}.{key}")
    return results


def _names(case: Case) -> tuple[str, str, str]:
    """Return criterion and granularity for the table, and the key of the results."""
    if case is None:
        return "dense, same epochs", "-", "same_epochs"
    suffix = "" if case.criterion == "l1" else f".{case.criterion}"
    if isinstance(case, Shrink):
        return case.criterion, "surgery", f"macs{100 * case.share:.0f}{suffix}"
    assert isinstance(case.sparsity, float)
    level = f"s{100 * case.sparsity:.0f}"
    if case.ratios == "global":
        return case.criterion, "element, global", f"{level}{suffix}"
    return case.criterion, case.granularity, f"{case.granularity.replace(':', '_')}.{level}{suffix}"


def _latency(table: Table, case: Shrink, key: str) -> dict[str, tuple[float, str]]:
    small = table.shrunk(case, table.plan.seeds[0])
    results: dict[str, tuple[float, str]] = {
        f"{key}.macs_ratio": (table.macs(table.dense) / table.macs(small), "dense MACs / pruned MACs")
    }
    for batch in (1, 32):
        ratios = latency_ratios(table.dense, small, torch.randn(batch, 3, 32, 32))
        print(f"    batch {batch}: dense time / pruned time {min(ratios):.2f} to {max(ratios):.2f}")
        unit = "dense time / pruned time, median of 15 rounds, one thread"
        results[f"{key}.batch{batch}.latency_ratio"] = (round(statistics.median(ratios), 3), unit)
    return results


if __name__ == "__main__":
    print_tables(__doc__, PLANS, quick, figures)
