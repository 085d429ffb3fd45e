"""The comparison with other tools: every file holds int8 weights, and a missing tool is one clear line."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import pytest
import torch

from tinyml_edu.errors import UsageError
from tinyml_edu.models import ConvBN


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = ConvBN(3, 64), ConvBN(64, 64), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 10)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _weights(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.ndim > 1)


def _peer(name: str, *needs: str):
    for module in needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; it is in the extra `peers`")
    return importlib.import_module(f"benchmarks.{name}")


def test_missing_tools_are_named_with_the_command_that_installs_them(monkeypatch):
    peers = importlib.import_module("benchmarks.quantization_peers")
    monkeypatch.setattr(peers, "PACKAGES", {"torch": "torch", "no_such_tool": "no-such-tool"})
    with pytest.raises(UsageError, match=r"needs no-such-tool; run: pip install .*peers"):
        peers.require_packages()
    monkeypatch.setattr(peers, "PACKAGES", {"torch": "torch"})
    peers.require_packages()


def test_every_package_of_the_comparison_is_in_an_extra(repository):
    peers = importlib.import_module("benchmarks.quantization_peers")
    pins = (repository / "constraints.txt").read_text()
    assert [name for name in peers.PACKAGES.values() if f"\n{name}==" not in f"\n{pins}"] == []


@pytest.mark.slow
def test_onnxruntime_writes_int8_weights_and_computes_the_network(network, images, tmp_path):
    peer = _peer("peer_onnxruntime", "onnx", "onnxruntime", "onnxscript")
    peer.export(network, images[:2], tmp_path / "float.onnx")
    with torch.no_grad():
        want = network(images).numpy()
    got = peer.predictor(tmp_path / "float.onnx")(images.numpy())
    np.testing.assert_allclose(got, want, atol=1e-5)
    for per_channel in (True, False):
        path = tmp_path / "int8.onnx"
        x = images.numpy()
        peer.quantize(tmp_path / "float.onnx", x, "minmax", per_channel=per_channel, path=path)
        onnx = importlib.import_module("onnx")
        constants = onnx.load(path).graph.initializer
        weights = [t for t in constants if len(t.dims) > 1]
        assert per_channel == any(t.name.endswith("_scale") and np.prod(t.dims) > 1 for t in constants)
        assert {t.data_type for t in weights} == {onnx.TensorProto.INT8}
        assert sum(int(np.prod(t.dims)) for t in weights) == _weights(network)
        assert 0 < np.abs(peer.predictor(path)(x) - want).max() < 0.1 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["histogram", "histogram_per_tensor", "minmax"])
def test_the_file_of_torchao_holds_int8_weights_only(network, images, tmp_path, setting):
    peer = _peer("peer_torchao", "torchao")
    path = tmp_path / "int8.pt2"
    module = peer.quantize(network, images, setting, path)
    stored = [t for t in torch.export.load(path).state_dict.values() if t.ndim > 1]
    assert {t.dtype for t in stored} == {torch.int8}
    assert sum(t.numel() for t in stored) == _weights(network)
    with torch.no_grad():
        want = network(images).numpy()
    assert 0 < np.abs(peer.predictor(module)(images.numpy()) - want).max() < 0.1 * np.abs(want).max()
    scales = [b for name, b in module.named_buffers() if name.startswith("_scale") and b.ndim]
    assert len(scales) == (0 if setting == "histogram_per_tensor" else 3), scales
