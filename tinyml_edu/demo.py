"""The main job end to end: data, checkpoint, smaller network, int8, firmware, agreement.

Each number of the report is measured in the run that prints it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UnknownNameError

if TYPE_CHECKING:
    import torch

    from .data import Dataset
    from .ir import Graph
    from .mcu import Deployment
    from .quantization import QuantizedModel

Step = dict[str, Any]
"""``name, accuracy, parameters, macs, weight_bytes`` of the network after one step."""

DATASETS = ("glyphs32", "cifar10")
REMOVED = 0.625  # share of the channels that structural pruning takes out of every layer
FINE_TUNE_EPOCHS = 1
DISTIL_EPOCHS = 2
CALIBRATION_IMAGES = 512
SEED = 0


def run(
    dataset: str = "glyphs32",
    board: str = "stm32f412",
    out: Path = Path("tinyml-demo"),
    *,
    images: int = 100,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compress the zoo's VGG-lite for ``dataset``, deploy it to ``board`` and return the report.

    Parameters
    ----------
    dataset : str
        ``"glyphs32"`` (embedded) or ``"cifar10"``.
    board : str
        A name in `mcu.BOARDS`.
    out : Path
        Directory for the C project (``out/project``) and the plots.
    images : int
        Test images on which NumPy, host C and firmware are compared code by code.
    say : callable
        Receives progress lines.

    Returns
    -------
    dict
        ``dataset, board, seconds, steps, deployed``; accuracy is a fraction, sizes are bytes.
    """
    from . import data, mcu, zoo

    if dataset not in DATASETS:
        raise UnknownNameError("data set for the demo", dataset, DATASETS)
    mcu.get_board(board)  # an unknown board or a bad folder fails before minutes of work
    mcu.project_folder.check_target(out / "project")
    start = time.perf_counter()
    splits = {split: data.load(dataset, split) for split in ("train", "validation", "test")}
    teacher, card = zoo.load(f"vgg_lite.{dataset}")
    say(f"1  {card['name']}: {len(splits['train'].y):,} training and {len(splits['test'].y):,} test images")
    steps = [_step("float32", teacher, splits["test"])]
    student = _shrink_and_train(teacher, splits, steps, say)
    quantized = _quantize(student, splits, steps, say)
    deployment = _deploy(quantized, board, out, say)
    deployed = _compare(quantized, deployment, splits["test"], images, say)
    deployed["accuracy"] = steps[-1]["accuracy"]
    report = {
        "dataset": dataset,
        "board": board,
        "seconds": time.perf_counter() - start,
        "steps": steps,
        "deployed": deployed,
    }
    _plots(quantized.graph, steps, out)
    report["seconds"] = time.perf_counter() - start
    return report


def _step(name: str, model: torch.nn.Module, test: Dataset, costs: dict[str, int] | None = None) -> Step:
    """Measure one float network: accuracy on the test split and its costs, unless these are known."""
    from . import data, profile, train

    if costs is None:
        counted = profile.profile(model, data.to_tensor(test.x[:1]))
        costs = {
            "parameters": counted.parameters,
            "macs": counted.macs,
            "weight_bytes": counted.weight_bytes(),
        }
    return {"name": name, "accuracy": train.evaluate(model, test), **costs}


def _shrink_and_train(
    teacher: torch.nn.Module,
    splits: dict[str, Dataset],
    steps: list[dict[str, Any]],
    say: Callable[[str], None],
) -> torch.nn.Module:
    from . import data, distillation, pruning, train

    example = data.to_tensor(splits["test"].x[:1])
    student = pruning.shrink(teacher, example, REMOVED)
    steps.append(_step(f"pruned, {REMOVED:.1%} of the channels out", student, splits["test"]))
    costs = {key: steps[-1][key] for key in ("parameters", "macs", "weight_bytes")}  # training keeps them
    say("2  pruned; fine-tuning, then distilling from the network before pruning")
    tune = train.TrainConfig(epochs=FINE_TUNE_EPOCHS, seed=SEED)
    train.fit(student, splits["train"], splits["validation"], tune)
    steps.append(_step("fine-tuned", student, splits["test"], costs))
    distil = train.TrainConfig(epochs=DISTIL_EPOCHS, seed=SEED)
    distillation.fit(student, teacher, splits["train"], splits["validation"], distil)
    steps.append(_step("distilled", student, splits["test"], costs))
    return student


def _quantize(
    student: torch.nn.Module,
    splits: dict[str, Dataset],
    steps: list[dict[str, Any]],
    say: Callable[[str], None],
) -> QuantizedModel:
    from . import data, mcu
    from .quantization import quantize

    images = splits["train"].x[:CALIBRATION_IMAGES]
    graph = mcu.capture(student, data.to_tensor(images[:1]))
    graph.name = f"vgg_lite.{splits['train'].name}, pruned and distilled"  # the C project says it
    quantized = quantize(graph, calibration=images)
    test = splits["test"]
    accuracy = quantized.evaluate(test.x, test.y)
    costs = {k: steps[-1][k] for k in ("parameters", "macs")}
    steps.append({"name": "int8", "accuracy": accuracy, **costs, "weight_bytes": quantized.weight_bytes})
    say(f"3  int8: accuracy {accuracy:.4f} against {steps[-2]['accuracy']:.4f} in float")
    return quantized


def _deploy(quantized: QuantizedModel, board: str, out: Path, say: Callable[[str], None]) -> Deployment:
    from . import mcu

    deployment = mcu.deploy(quantized.graph, board, out / "project")
    report = deployment.report
    say(
        f"4  planned and compiled for {report['board']} ({report['core']}): "
        f"{report['sram_bytes']['total']:,} B of SRAM and {report['flash_bytes']['total']:,} B of flash, "
        "inside the limits that the linker enforces"
    )
    return deployment


def _compare(
    quantized: QuantizedModel, deployment: Deployment, test: Dataset, images: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the same images through NumPy, host C and firmware and count images that differ in any code."""
    from . import ir

    codes = quantized.input_codes(test.x[:images])
    reference = ir.run(quantized.graph, codes).reshape(len(codes), -1)
    host = deployment.run(codes, target="host").outputs.reshape(len(codes), -1)
    board = deployment.run(codes, target="emulate")
    firmware = board.outputs.reshape(len(codes), -1)
    different = int(((reference != host) | (reference != firmware)).any(axis=1).sum())
    say(f"5  {len(codes)} test images through NumPy, host C and firmware: {different} differ")
    return {
        "images_compared": len(codes),
        "images_different": different,
        "instructions": board.instructions,
        "estimated_ms": board.estimated_ms,
        "sram_bytes": deployment.report["sram_bytes"],
        "flash_bytes": deployment.report["flash_bytes"],
    }


def _plots(graph: Graph, steps: list[Step], out: Path) -> None:
    from . import mcu, plots

    (out / "memory_map.png").write_bytes(plots.to_png(plots.memory_map(mcu.plan(graph))))
    points = [(s["name"], s["weight_bytes"], s["accuracy"]) for s in steps]
    figure = plots.pareto(points, x_label="weights (bytes)", y_label="test accuracy", log_x=True)
    (out / "pareto.png").write_bytes(plots.to_png(figure))
