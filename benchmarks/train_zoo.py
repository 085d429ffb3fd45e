"""Train the checkpoints of ``tinyml_edu/zoo``; what was interrupted goes on where it stopped.

    python benchmarks/train_zoo.py vgg_lite.glyphs32 resnet8.glyphs32
    python benchmarks/train_zoo.py --all --seeds 1

State lies in ``.build/zoo``.  Choices are made on the validation split.  The test split is measured once, on
the finished run of each seed; the file is that of the first seed, whatever the test says.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tinyml_edu import data, models, train, zoo
from tinyml_edu.errors import TinyMLError

STATE = Path(__file__).parents[1] / ".build" / "zoo"


@dataclass(frozen=True)
class Recipe:
    """A network, the data it learns, and how; ``seeds`` runs differ in first weights and order."""

    model: str
    data: str
    config: train.TrainConfig
    seeds: tuple[int, ...] = (0,)


# Letters must not be mirrored.  The average of the weights makes short runs steadier.
GLYPHS = train.TrainConfig(
    epochs=14, batch_size=128, learning_rate=0.15, weight_decay=5e-4, shift=2, label_smoothing=0.05, ema=0.995
)
CIFAR = train.TrainConfig(
    epochs=30, batch_size=128, learning_rate=0.2, weight_decay=5e-4, flip=True, shift=3, ema=0.998
)

RECIPES: dict[str, Recipe] = {
    "vgg_lite.glyphs32": Recipe("vgg_lite", "glyphs32", GLYPHS, seeds=(0, 1)),
    "resnet8.glyphs32": Recipe(
        "resnet8", "glyphs32", replace(GLYPHS, epochs=24, weight_decay=2e-4), seeds=(0, 1)
    ),
    # Depthwise layers gain nothing from bf16: float32 steps are the shorter ones.
    "mobilenet_v2_tiny.glyphs32": Recipe(
        "mobilenet_v2_tiny", "glyphs32", replace(GLYPHS, weight_decay=2e-4, precision="float32")
    ),
    "vgg_lite.cifar10": Recipe("vgg_lite", "cifar10", replace(CIFAR, label_smoothing=0.05)),
    # 78 k parameters underfit: little decay, no smoothing, many epochs.
    "resnet8.cifar10": Recipe("resnet8", "cifar10", replace(CIFAR, epochs=50, weight_decay=2e-4)),
}


def run_seed(name: str, recipe: Recipe, seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Train one seed, or read what it gave before; return the model and its row of the card."""
    splits = {split: data.load(recipe.data, split) for split in ("train", "validation")}
    config = replace(recipe.config, seed=seed)
    torch.manual_seed(seed)
    model = models.build(recipe.model, len(splits["train"].classes), splits["train"].x.shape[-1])
    print(f"{name}, seed {seed}: {len(splits['train'])} + {len(splits['validation'])} examples", flush=True)
    history = train.fit(model, **splits, config=config, checkpoint=STATE / f"{name}.{seed}.safetensors")
    result = STATE / f"{name}.{seed}.json"
    if not result.exists():
        row = {
            "seed": seed,
            "epochs": len(history.epochs),
            "validation_accuracy": history.validation_accuracy,
            "test_accuracy": train.evaluate(model, data.load(recipe.data, "test")),
            "seconds": round(history.seconds, 1),
            "cpu_seconds": round(history.cpu_seconds, 1),
            "precision": history.precision,
            "device": history.device,
        }
        result.write_text(json.dumps(row), encoding="utf-8")
    return model, json.loads(result.read_text(encoding="utf-8"))


def train_one(name: str, folder: Path, seeds: int) -> None:
    """Train the first ``seeds`` seeds and write the checkpoint with its card, after the first already."""
    recipe = RECIPES[name]
    first, rows = None, []
    for seed in recipe.seeds[:seeds]:
        model, row = run_seed(name, recipe, seed)
        first = first or model
        rows.append(row)
        zoo.save(name, first, make_card(recipe, rows), folder)
        print(f"{name}, seed {seed}: {row}", flush=True)


def make_card(recipe: Recipe, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the card's entries that the recipe and its runs determine."""
    splits = {split: data.load(recipe.data, split) for split in ("train", "validation", "test")}
    example = splits["train"]
    recipe_fields = asdict(recipe.config)
    for key in ("seed", "progress", "device"):
        del recipe_fields[key]
    parameters = {key: value for key, value in example.info.items() if key not in ("source", "size")}
    return {
        "model": {
            "name": recipe.model,
            "classes": len(example.classes),
            "in_channels": int(example.x.shape[-1]),
            "width": 1.0,
        },
        "classes": list(example.classes),
        "data": {"name": recipe.data, "parameters": parameters, "source": example.info["source"]}
        | {split: len(found) for split, found in splits.items()},
        "recipe": recipe_fields,
        "runs": rows,
    }


def main() -> int:
    """Parse the command line and train; the last line of a failure says what to do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(RECIPES)}")
    parser.add_argument("--all", action="store_true", help="every recipe")
    parser.add_argument("--seeds", type=int, default=99, help="at most so many seeds of each")
    parser.add_argument("--out", type=Path, default=zoo.checkpoints.FOLDER, help="folder of the checkpoints")
    arguments = parser.parse_args()
    chosen = list(RECIPES) if arguments.all else arguments.names
    if not chosen or not set(chosen) <= set(RECIPES):
        parser.error(f"give names of recipes, or --all; known: {', '.join(RECIPES)}")
    try:
        for name in chosen:
            train_one(name, arguments.out, arguments.seeds)
    except TinyMLError as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
