"""What studies of a compressed VGG-lite share: checkpoint and data, training, and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from tinyml_edu import data, train, zoo


class Plan(Protocol):
    """What to run on one data set.

    Attributes
    ----------
    data : str
        Names the checkpoint ``vgg_lite.<data>`` too.
    seeds : tuple of int
    examples : dict of str to int
        Size of a split; default all of it.
    """

    @property
    def data(self) -> str: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def examples(self) -> Mapping[str, int]: ...


class Study:
    """The checkpoint and the splits of one plan, loaded once.  Accuracies are of ``split``."""

    def __init__(self, plan: Plan, split: str = "test") -> None:
        self.split = split
        self.dense, self.card = zoo.load(f"vgg_lite.{plan.data}")
        self.splits: dict[str, data.Dataset] = {}
        for name in ("train", "validation", "test"):
            size = {"size": plan.examples[name]} if name in plan.examples else {}
            self.splits[name] = data.load(plan.data, name, **size)

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy of a float network."""
        return train.evaluate(model, self.splits[self.split])

    def tune(self, model: nn.Module, config: train.TrainConfig, seed: int, after_step: Any = None) -> None:
        """Train in place."""
        config = replace(config, seed=seed)
        train.fit(model, self.splits["train"], self.splits["validation"], config, after_step=after_step)


def print_tables(
    doc: str | None,
    plans: Mapping[str, Any],
    quick: Callable[[Any], Any],
    figures: Callable[..., object],
    choose: Callable[..., object] | None = None,
) -> None:
    """Read the command line and run ``figures``, or ``choose``, on the plans that it names."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few examples, one seed, one epoch; glyphs32")
    parser.add_argument("--data", choices=plans, help="one data set; default: all")
    if choose is not None:
        parser.add_argument("--choose", action="store_true", help="compare settings on the validation split")
    options = parser.parse_args()
    chosen = (plans[options.data],) if options.data else tuple(plans.values())
    run = choose if choose is not None and options.choose else figures
    run((quick(plans["glyphs32"]),) if options.quick else chosen)
