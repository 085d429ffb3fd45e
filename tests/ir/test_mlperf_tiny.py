"""Three networks that nobody here made, layer by layer against LiteRT's reference kernels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the oracle of these tests")
pytest.importorskip("tflite", reason="reading .tflite needs the tflite package")

from litert_oracle import Reference, codes

from tinyml_edu import ir

FOLDER = Path(os.environ.get("TINYML_EDU_DATA", "")) / "mlperf_tiny"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no mlperf_tiny folder in $TINYML_EDU_DATA"),
]

MACS = {"kws_ref_model": 2_656_768, "vww_96_int8": 7_489_664, "pretrainedResnet_quant": 12_501_632}
OPS = {
    "kws_ref_model": {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 4},
    "vww_96_int8": {"CONV_2D": 14, "DEPTHWISE_CONV_2D": 13},
    "pretrainedResnet_quant": {"CONV_2D": 9, "ADD": 3},
}
TAIL = {"AVERAGE_POOL_2D": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1}


def load(name):
    path = FOLDER / f"{name}.tflite"
    return ir.read_tflite(path), path


@pytest.mark.parametrize("name", MACS)
def test_ops_and_macs_are_the_published_ones(name):
    graph, _ = load(name)
    ops = [node.op for node in graph.nodes]
    assert {op: ops.count(op) for op in ops} == OPS[name] | TAIL
    assert sum(ir.macs(graph).values()) == MACS[name]


@pytest.mark.parametrize("name", MACS)
def test_every_tensor_equals_the_reference(name):
    graph, path = load(name)
    reference = Reference(path)
    inputs = codes(np.random.default_rng(0), graph[graph.inputs[0]].shape)
    inputs += codes(np.random.default_rng(1), graph[graph.inputs[0]].shape)
    values = ir.run(graph, np.concatenate(inputs), keep=True)
    assert set(values) == {*graph.inputs, *(node.outputs[0] for node in graph.nodes)}
    for i, x in enumerate(inputs):
        want = reference.run(x)
        for tensor, got in values.items():
            different = int((got[i : i + 1] != want[tensor]).sum())
            assert different == 0, (name, tensor, i, f"{different} of {want[tensor].size} differ")


def test_the_reference_notices_a_single_rounding():
    """The control: rounding once instead of twice, these networks do differ from LiteRT."""
    different = 0
    for name in MACS:
        graph, path = load(name)
        x = codes(np.random.default_rng(0), graph[graph.inputs[0]].shape)[0]
        want, fast = Reference(path).run(x), ir.run(graph, x, requant="fast", keep=True)
        different += sum(int((fast[tensor] != want[tensor]).sum()) for tensor in fast)
    assert different > 0


def test_a_batch_of_images_is_the_images_one_by_one():
    graph, _ = load("pretrainedResnet_quant")
    x = np.random.default_rng(0).integers(-128, 128, (16, *graph[graph.inputs[0]].shape[1:]), dtype=np.int8)
    batch = ir.run(graph, x)
    np.testing.assert_array_equal(batch, np.concatenate([ir.run(graph, one[None]) for one in x]))
