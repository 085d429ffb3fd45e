"""The comparison that `python -m benchmarks.fuzz --layers` makes at length, on a few, and its controls."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import host_build
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the cases of one generator come with LiteRT's oracle")
pytest.importorskip("tflite", reason="the cases of one generator come with the .tflite writer")

from direct_layers import DifferenceError, Layer, library
from random_graphs import random_layer

from tinyml_edu import ir

pytestmark = pytest.mark.c

FEW, MANY = 440, 11_000


@pytest.fixture(scope="module")
def fuzz(repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(repository), *sys.path])
        yield importlib.import_module("benchmarks.fuzz")


def test_layers_of_every_op_equal_numpy_in_both_roundings(fuzz, capsys):
    figures = fuzz.layers(FEW)
    assert figures["fuzz.layers.compared"] == (FEW, "layers")
    assert figures["fuzz.layers.outputs"][0] > 100 * FEW
    assert figures["fuzz.layers.different"] == (0, "outputs")
    table = capsys.readouterr().out
    assert all(op in table for op in ir.OPS)
    assert f"next --first {FEW}" in table


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc with its sanitizer is not installed")
def test_many_layers_equal_numpy_without_undefined_behaviour(fuzz):
    figures = fuzz.layers(MANY, first=FEW, sanitized=True)
    assert figures["fuzz.layers.compared"] == (MANY, "layers")
    assert figures["fuzz.layers.different"] == (0, "outputs")


@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "MEAN"])
def test_the_other_rounding_is_noticed(fuzz, op):
    """The control: the fast kernels do not pass for the exact ones."""
    wrong = {"exact": library(fast=True)}
    assert any(fuzz.compare_layer(op, seed, wrong)[1] for seed in range(400))


def broken(tmp_path: Path, monkeypatch, file: str, old: str, new: str):
    """Return the runtime with one line changed."""
    folder = tmp_path / "runtime"
    shutil.copytree(host_build.RUNTIME, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    monkeypatch.setattr(host_build, "RUNTIME", folder)
    return library(fast=False)


def call(layer: Layer, lib) -> np.ndarray:
    return layer.run(lib, *(np.zeros(layer.graph[name].shape, np.int8) for name in layer.graph.inputs))


def test_a_write_beside_the_output_is_noticed(tmp_path, monkeypatch):
    layer = Layer(random_layer("RELU", 1))
    call(layer, library(fast=False))
    lib = broken(tmp_path, monkeypatch, "te_lookup_s8.c", "i < size", "i < size + 1")
    with pytest.raises(DifferenceError, match="writes beside its output"):
        call(layer, lib)


def test_a_refusal_is_noticed():
    layer = Layer(random_layer("CONV_2D", 1))
    layer.kept["params_0"].stride_h = 0
    with pytest.raises(DifferenceError, match="returns 3"):
        call(layer, library(fast=False))
