"""Gates, branches that join and paths that grow: from PyTorch to the board, in codes that agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyml_edu import ir, mcu
from tinyml_edu.ir.graph import Graph
from tinyml_edu.quantization import quantize


def conv_norm(i: int, o: int, k: int, activation: nn.Module, **options) -> nn.Sequential:
    options = {"padding": k // 2, "bias": False} | options
    return nn.Sequential(nn.Conv2d(i, o, k, **options), nn.BatchNorm2d(o), activation)


class Squeeze(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018): each channel times a gate that reads all of them."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = gate

    def forward(self, x):
        return self.gate(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))) * x


class MobileNetV3Like(nn.Module):
    """Two inverted residuals with hard swish and gates (Howard et al., ICCV 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8, 3, nn.Hardswish(), stride=2)
        self.first = nn.Sequential(
            conv_norm(8, 16, 1, nn.Hardswish()),
            conv_norm(16, 16, 3, nn.Hardswish(), groups=16),
            Squeeze(16, nn.Hardsigmoid()),
            conv_norm(16, 8, 1, nn.Identity()),
        )
        self.second = nn.Sequential(
            conv_norm(8, 16, 1, nn.SiLU()),
            conv_norm(16, 16, 5, nn.SiLU(), groups=16, stride=2),
            Squeeze(16, nn.Sigmoid()),
            conv_norm(16, 12, 1, nn.Hardswish()),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.second(x + self.first(x)).mean((2, 3)))


class InceptionLike(nn.Module):
    """Four branches joined along the channels, one of them probabilities, and features joined once more."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = conv_norm(3, 4, 1, nn.ReLU()), conv_norm(3, 6, 3, nn.ReLU())
        self.five, self.mask = conv_norm(3, 2, 5, nn.ReLU6()), nn.Conv2d(3, 1, 1)
        self.last = conv_norm(16, 8, 3, nn.ReLU())
        self.head = nn.Linear(8 * 16 + 8, 5)

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, 1, 1)
        x = torch.cat([self.one(x), self.three(x), self.five(x), pooled, self.mask(x).sigmoid()], 1)
        x = self.last(x)
        return self.head(torch.cat([F.max_pool2d(x, 3).flatten(1), x.mean((2, 3))], 1))


class UNetLike(nn.Module):
    """Down twice, up twice with skips (Ronneberger et al., 2015, arXiv:1505.04597); returns an image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(3, 6, 3, nn.ReLU()), conv_norm(6, 8, 3, nn.ReLU())
        self.c, self.d = conv_norm(8, 8, 3, nn.ReLU()), conv_norm(16, 6, 3, nn.ReLU())
        self.e = nn.Conv2d(12, 3, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return x - self.e(torch.cat([F.interpolate(d, scale_factor=2), a], 1))


NETWORKS = {
    "mobilenet_v3_like": (MobileNetV3Like, {"HARD_SWISH", "LOGISTIC", "MUL", "ADD"}),
    "inception_like": (InceptionLike, {"CONCATENATION", "QUANTIZE", "LOGISTIC", "MAX_POOL_2D"}),
    "unet_like": (UNetLike, {"RESIZE_NEAREST_NEIGHBOR", "CONCATENATION", "SUB"}),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """Return (module, its quantized form, inputs (24, 3, 12, 12), ops that it must hold)."""
    make, ops = NETWORKS[request.param]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module, x = make().eval(), torch.randn(24, 3, 12, 12)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.uniform_(0.05, 0.3)  # signals of order 1, which use the codes
                layer.bias.normal_(0, 0.5)
    return module, quantize(module, None, x), x, ops


def codes(graph: Graph) -> np.ndarray:
    """Return (5, H, W, C): two random, all least, all greatest, a mix of both ends."""
    rng, shape = np.random.default_rng(3), graph[graph.inputs[0]].shape[1:]
    ends = [np.full(shape, -128), np.full(shape, 127), rng.choice([-128, 127], shape)]
    return np.concatenate([rng.integers(-128, 128, (2, *shape)), ends]).astype(np.int8)


def test_capture_computes_the_network(network):
    module, quantized, x, ops = network
    graph = quantized.float_graph
    assert ops <= {node.op for node in graph.nodes}
    y = ir.run(graph, x.permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        own, exact = module(x).numpy(), module.double()(x.double()).numpy()
        module.float()
    y = y.transpose(0, 3, 1, 2) if y.ndim == 4 else y
    # The graph folds and sums in another order: a few times the roundings of PyTorch's own float32.
    assert np.abs(y - exact).max() <= 8 * max(np.abs(own - exact).max(), np.abs(exact).max() * 2.0**-24)


def test_eight_bits_lose_little(network):
    _, quantized, x, _ = network
    real = ir.run(quantized.float_graph, x.permute(0, 2, 3, 1).numpy())
    error = quantized.logits(x) - real
    # 8 bits a layer, and the errors of some ten layers add like random ones: below 1 % in power.
    assert (error**2).mean() < 0.01 * real.var(), (error**2).mean() / real.var()


def real(graph: Graph, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
    return graph[name].quant.dequantize(values[name] if name in values else graph[name].data)


def test_every_layer_is_within_one_code_of_the_real_function_of_its_inputs(network):
    """One half for rounding the result, one for the roundings inside."""
    graph = network[1].graph
    values = ir.run(graph, codes(graph), keep=True)
    for node in graph.nodes:
        name = node.outputs[0]
        inputs = [real(graph, n, values) for n in node.inputs]
        y = ir.OPS[node.op].float_kernel(*inputs, attrs=node.attrs, out_shape=values[name].shape)
        distance = np.abs(graph[name].quant.quantize(y).astype(int) - values[name]).max()
        assert distance <= 1, (node.name, node.op, distance)


@pytest.mark.c
@pytest.mark.parametrize("requant", ["exact", "fast"])
def test_numpy_host_and_board_agree(network, requant, tmp_path):
    graph = network[1].graph
    x = codes(graph)
    expected = ir.run(graph, x, requant=requant).reshape(len(x), -1)
    assert len(np.unique(expected, axis=0)) == len(x)  # the network tells these inputs apart
    deployment = mcu.deploy(graph, "stm32h743", tmp_path / "project", requant=requant)
    for target in ("host", "emulate"):
        outputs = deployment.run(x, target=target).outputs.reshape(len(x), -1)
        np.testing.assert_array_equal(outputs, expected, err_msg=target)


def test_every_layer_equals_the_reference_of_litert(network, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="LiteRT is the oracle")
    pytest.importorskip("tflite", reason="writing .tflite needs the tflite package")
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "ir")
    from litert_oracle import compare

    graph, path = network[1].graph, tmp_path / "network.tflite"
    ir.write_tflite(graph, path)
    x = codes(graph)
    result = compare(graph, path.read_bytes(), [[image[None] for image in x]])
    assert result.compared >= sum(len(x) * np.prod(graph[n.outputs[0]].shape) for n in graph.nodes)
    assert result.different == 0
    again = ir.read_tflite(path)
    np.testing.assert_array_equal(ir.run(again, x), ir.run(graph, x))
