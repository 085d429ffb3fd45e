"""Predict, evaluate, save and load; damage to a file is noticed."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from tinyml_edu import ir
from tinyml_edu.errors import DataError, UsageError
from tinyml_edu.quantization import QuantizedModel, quantize, storage


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 9, 7, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model(images) -> QuantizedModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConstantPad2d((0, 1, 1, 0), 0.0), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 3, 5),
    )  # fmt: skip
    return quantize(net, calibration=images)


def test_a_saved_model_comes_back_equal(model, images, tmp_path):
    path = tmp_path / "sub" / "model.safetensors"
    model.save(path)
    back = QuantizedModel.load(path)
    assert back.graph.nodes == model.graph.nodes
    assert (back.graph.inputs, back.graph.outputs) == (model.graph.inputs, model.graph.outputs)
    for name, tensor in model.graph.tensors.items():
        other = back.graph[name]
        assert (other.shape, other.dtype, other.kind) == (tensor.shape, tensor.dtype, tensor.kind)
        assert tensor.data is None or np.array_equal(tensor.data, other.data)
        assert np.array_equal(tensor.quant.scale, other.quant.scale)
        assert tensor.quant.axis == other.quant.axis
    assert np.array_equal(back.predict(images), model.predict(images))
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_predict_is_the_integer_graph_on_quantized_inputs(model, images):
    codes = model.graph[model.graph.inputs[0]].quant.quantize(images)
    assert np.array_equal(model.predict(images, batch_size=7), ir.run(model.graph, codes))
    nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert np.array_equal(model.predict(nchw), model.predict(images))


def test_logits_are_the_values_of_the_codes(model, images):
    scale, zero_point = model.graph[model.graph.outputs[0]].quant.item()
    expected = np.float32(scale) * (model.predict(images).astype(np.int64) - zero_point)
    assert np.array_equal(model.logits(images), expected.astype(np.float32))


def test_evaluate_counts_the_right_classes(model, images):
    best = model.predict(images).argmax(axis=1)
    assert model.evaluate(images, best) == 1.0
    wrong = best.copy()
    wrong[:10] = (wrong[:10] + 1) % 5
    assert model.evaluate(images, torch.from_numpy(wrong)) == 30 / 40


def test_evaluate_refuses_labels_that_do_not_fit(model, images):
    with pytest.raises(UsageError, match="as many labels"):
        model.evaluate(images, np.zeros(39, int))
    for labels in (np.zeros((40, 1), int), np.zeros((40, 5)), 3, None):  # (40, 1) would broadcast
        with pytest.raises(UsageError, match=r"of shape \(n,\)"):
            model.evaluate(images, labels)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_input(model, images, batch_size):
    with pytest.raises(UsageError, match="batch_size"):
        model.predict(images, batch_size=batch_size)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_input_that_is_not_finite_has_no_codes(model, images, bad):
    x = images.copy()
    x[3, 0, 0, 0] = bad
    with pytest.raises(UsageError, match="not finite"):
        model.predict(x)


def test_a_tensor_of_bfloat16_is_an_input_like_its_float32_values(model, images):
    x = torch.from_numpy(images).permute(0, 3, 1, 2).bfloat16()
    assert np.array_equal(model.predict(x), model.predict(x.float()))


def test_weight_bytes_are_those_of_weights_and_biases(model):
    assert model.weight_bytes == (8 * 27 + 4 * 8) + (8 * 9 + 4 * 8) + (5 * 96 + 4 * 5)


def damaged(data: bytes, how: str) -> bytes:
    header_size = struct.unpack("<Q", data[:8])[0]
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "one bit of a weight":
        return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    if how == "text":
        return b"this is not a model"
    header = json.loads(data[8 : 8 + header_size])
    meta = header["__metadata__"]
    if how == "another format":
        meta["format"] = "pt"
    elif how == "no structure":
        del meta["graph"]
    elif how == "another width":
        meta["graph"] = meta["graph"].replace("null, 8]", "null, 4]", 1)
    else:
        structure = json.loads(meta["graph"])
        if how == "unknown op":
            structure["nodes"][0][1] = "NO_SUCH_OP"
        elif how == "unknown attribute":
            structure["nodes"][0][4]["no_such"] = 1
        elif how == "dangling tensor":
            structure["nodes"][0][2][0] = "nowhere"
        elif how == "wrong shape":
            structure["tensors"][-1][1] = [1, 2, 3, 4]
        meta["graph"] = json.dumps(structure)
        # The digest is no signature: whoever changes the structure can make it right again.
        meta["sha256"] = storage._digest(meta["graph"], safetensors.numpy.load(data))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + header_size :]


@pytest.mark.parametrize(
    "how",
    ["truncated", "empty", "one bit of a weight", "text", "another format", "no structure",
     "another width", "unknown op",
     "unknown attribute", "dangling tensor", "wrong shape"],
)  # fmt: skip
def test_a_damaged_file_is_a_data_error(model, tmp_path, how):
    path = tmp_path / "model.safetensors"
    model.save(path)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(DataError) as caught:
        QuantizedModel.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_damage_helper_alone_does_no_damage(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    path.write_bytes(damaged(path.read_bytes(), "nothing"))
    QuantizedModel.load(path)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        QuantizedModel.load(tmp_path / "none.safetensors")


def test_a_folder_that_cannot_be_written_is_a_data_error(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        model.save(tmp_path / "file" / "model.safetensors")
