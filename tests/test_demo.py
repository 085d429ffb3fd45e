"""The main job, whole: documented keys, agreement bit for bit, promises about accuracy and memory."""

from __future__ import annotations

import json

import pytest

from tinyml_edu import demo, mcu
from tinyml_edu.errors import UnknownNameError

IMAGES = 12


def silent(line: str) -> None:
    """Take a progress line and print nothing."""


def assert_promises(report, board):
    """What holds for every run of the demo, whatever its data and board."""
    assert set(report) == {"dataset", "board", "seconds", "steps", "deployed"}
    for step in report["steps"]:
        assert set(step) == {"name", "accuracy", "parameters", "macs", "weight_bytes"}
    deployed = report["deployed"]
    assert set(deployed) == {
        *("accuracy", "images_compared", "images_different", "instructions", "estimated_ms"),
        *("sram_bytes", "flash_bytes"),
    }
    sram, flash = deployed["sram_bytes"], deployed["flash_bytes"]
    assert set(sram) == {"input", "activations", "scratch", "stack", "total"}
    assert sram["total"] == sum(sram[k] for k in ("input", "activations", "scratch", "stack"))
    assert set(flash) == {"code", "weights", "total"}
    assert flash["total"] == flash["code"] + flash["weights"]
    assert sram["total"] <= board.sram_bytes
    assert flash["total"] <= board.flash_bytes
    assert deployed["images_compared"] == IMAGES
    assert deployed["images_different"] == 0
    assert json.loads(json.dumps(report)) == report

    whole, pruned, *_, distilled, int8 = report["steps"]
    assert pruned["macs"] < whole["macs"] / 5
    assert distilled["accuracy"] > pruned["accuracy"]
    assert abs(distilled["accuracy"] - int8["accuracy"]) <= 0.01
    assert int8["weight_bytes"] < distilled["weight_bytes"] / 3
    assert deployed["accuracy"] == int8["accuracy"]


@pytest.mark.slow
@pytest.mark.c
def test_the_demo_on_embedded_data(tmp_path):
    report = demo.run("glyphs32", "stm32f412", tmp_path, images=IMAGES, say=silent)
    assert_promises(report, mcu.get_board("stm32f412"))
    for name in ("memory_map.png", "pareto.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "project" / "firmware.elf").is_file()


@pytest.mark.slow
@pytest.mark.c
@pytest.mark.data
def test_the_demo_on_real_data_and_another_core(tmp_path):
    report = demo.run("cifar10", "stm32f746", tmp_path, images=IMAGES, say=silent)
    assert_promises(report, mcu.get_board("stm32f746"))


@pytest.mark.c
def test_the_comparison_can_fail(tmp_path):
    """A network whose firmware was built from other weights must be seen to differ."""
    from tinyml_edu import data
    from tinyml_edu.cli.resolve import quantized_zoo
    from tinyml_edu.quantization import QuantizedModel

    test = data.load("glyphs32", "test")
    graph = quantized_zoo("resnet8.glyphs32")
    deployment = mcu.deploy(graph, "stm32f412", tmp_path / "project")
    same = demo._compare(QuantizedModel(graph), deployment, test, 3, silent)
    assert same["images_different"] == 0
    weights = next(t for t in graph.constants() if t.dtype == "int8")
    graph.update(weights.name, data=-weights.data.clip(-127))
    other = demo._compare(QuantizedModel(graph), deployment, test, 3, silent)
    assert other["images_different"] == 3


def test_unknown_names_fail_before_any_work(tmp_path):
    with pytest.raises(UnknownNameError, match="glyphs32"):
        demo.run("imagenet", "stm32f412", tmp_path)
    with pytest.raises(UnknownNameError, match="stm32f412"):
        demo.run("glyphs32", "stm32f411", tmp_path)
    assert list(tmp_path.iterdir()) == []
