"""Constants, repeated operands, other means, joins, clamps and paddings: what PyTorch computes, exactly.

Oracle as in test_capturing: integers and powers of two, so that float32 holds every value.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_capturing import Net, captured, conv, integers, run_nchw, with_integers
from torch import nn

from tinyml_edu import ir, mcu
from tinyml_edu.quantization import quantize

VECTOR = torch.tensor([1.0, -2.0, 0.5, 4.0]).reshape(1, 4, 1, 1)
PLANE = torch.arange(-10.0, 10.0).reshape(1, 1, 4, 5)
CUBE = (torch.arange(80.0) - 40).reshape(1, 4, 4, 5)

EXACT = {
    "x + 1": lambda _, x: x + 1,
    "1 + x": lambda _, x: 1 + x,
    "x - 2": lambda _, x: x - 2,
    "2 - x": lambda _, x: 2 - x,
    "rsub with alpha": lambda _, x: torch.rsub(x, 4, alpha=2),
    "sub with alpha": lambda _, x: torch.sub(x, 3, alpha=2),
    "x * 0.5": lambda _, x: x * 0.5,
    "-x": lambda _, x: -1 * x,
    "x / 4": lambda _, x: x / 4,
    "channels": lambda _, x: x * VECTOR + VECTOR,
    "channels - x": lambda _, x: VECTOR - x,
    "rows and columns": lambda _, x: x + PLANE,
    "rows and columns - x": lambda _, x: PLANE - x,
    "every element": lambda _, x: (x + CUBE) * CUBE,
    "features": lambda _, x: x.mean((2, 3)) * VECTOR.reshape(4) - 1,
    "flattened": lambda n, x: n.d((x * VECTOR).flatten(1) * torch.tensor([2.0] * 40 + [1.0] * 40)),
    "repeats the second": lambda _, x: x + F.max_pool2d(x, (4, 5)),
    "repeats the first": lambda _, x: F.max_pool2d(x, (4, 5)) - x,
    "repeats both": lambda _, x: F.max_pool2d(x, (4, 1)) * F.max_pool2d(x, (1, 5)),
    "rows joined": lambda _, x: torch.cat([x, x + 1], 2),
    "columns joined": lambda _, x: torch.cat([x, x[:, :, :, :] * 2], -1),
    "clamp to one": lambda _, x: F.hardtanh(x * 0.5),
    "clamp to one after a relu": lambda _, x: F.hardtanh(F.relu(x * 0.5)),
    "relu after a clamp to one": lambda _, x: F.relu(F.hardtanh(x * 0.5)),
    "leaky": lambda _, x: F.leaky_relu(x, 0.25),
    "padded with 2": lambda n, x: n.c(F.pad(x, (1, 0, 2, 1), value=2.0)),
    "padded with 2, clamped": lambda _, x: F.relu6(F.pad(x - 8, (1, 1), value=-7.0)),
    "mean of rows": lambda _, x: x.mean(2, keepdim=True),
    "mean of channels": lambda _, x: x.mean(1),
    "mean of channels, kept": lambda _, x: x.mean(1, keepdim=True) + x,
    "mean of all": lambda _, x: x.mean((1, 2, 3)),
}
"""Means divide by 4 channels or rows, and 80 elements for the last: by 16, exactly, and 5, not exactly."""


@pytest.mark.parametrize("name", EXACT)
def test_the_graph_computes_what_the_module_computes(name):
    module = with_integers(Net(EXACT[name], c=conv(4, 4), d=nn.Linear(80, 3)))
    x = integers(2, 4, 4, 5)
    _, got, want = captured(module, x)
    if name == "mean of all":
        # 80 additions and a division, each half a unit of values below 4.
        np.testing.assert_allclose(got, want, rtol=0, atol=81 * 4 * 2.0**-24)
    else:
        np.testing.assert_array_equal(got, want)


def test_scalars_and_vectors_fold_into_the_layer_before():
    module = with_integers(Net(lambda n, x: F.relu(2 * n.c(x) - VECTOR), c=conv(4, 4)))
    graph, got, want = captured(module, integers(1, 4, 4, 4))
    assert [(node.op, node.attrs.activation) for node in graph.nodes] == [("CONV_2D", "relu")]
    np.testing.assert_array_equal(got, want)


def test_a_single_slope_of_prelu_is_a_leaky_relu():
    module = nn.PReLU().eval()
    graph, got, want = captured(module, integers(1, 4, 3, 3))
    assert [node.op for node in graph.nodes] == ["LEAKY_RELU"]
    np.testing.assert_array_equal(got, want)


def test_clamps_that_no_single_activation_does_stay_apart():
    module = with_integers(Net(lambda n, x: F.hardtanh(F.relu(n.c(x))), c=conv(4, 4)))
    graph = mcu.capture(module, torch.zeros(1, 4, 4, 4))
    assert [node.attrs.activation for node in graph.nodes] == ["relu", "relu_n1_to_1"]


def test_tanh_is_within_rounding_of_the_module():
    _, got, want = captured(nn.Tanh(), integers(1, 4, 3, 3))
    np.testing.assert_allclose(got, want, rtol=4 * 2.0**-24)  # a few units in the last place of each library


class Everything(nn.Module):
    """A constant, a repeated operand and a function of one element after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 8).reshape(1, 8, 1, 1))
        self.place = nn.Parameter(torch.randn(1, 8, 6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.stem(x) * self.scale, 0.1) + self.place
        x = x * torch.tanh(self.gate(F.avg_pool2d(x, 6))) + F.avg_pool2d(x, 6)
        x = torch.cat([x, 1 - F.hardtanh(x)], 1)
        return self.head(F.pad(x, (1, 1), value=0.5).mean((2, 3)))


def test_int8_codes_of_such_a_network_follow_the_module():
    torch.manual_seed(0)
    module, x = Everything().eval(), torch.randn(64, 3, 6, 6)
    quantized = quantize(module, None, x)
    codes = ir.run(quantized.graph, quantized.graph[quantized.graph.inputs[0]].quant.quantize(to_nhwc(x)))
    got = quantized.graph[quantized.graph.outputs[0]].quant.dequantize(codes)
    with torch.no_grad():
        want = module(x).numpy()
    assert {"ADD", "MUL", "TANH", "LEAKY_RELU", "CONCATENATION"} <= {n.op for n in quantized.graph.nodes}
    noise = np.abs(got - want).mean() / want.std()
    assert noise < 0.1, noise
    wrong = np.abs(got - np.roll(want, 1, axis=0)).mean() / want.std()  # the control: another image's output
    assert wrong > 0.1, wrong


def to_nhwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


REFUSED = {
    "divides": (lambda _, x: x / x.mean((2, 3), keepdim=True), "divides by computed values"),
    "by zero": (lambda _, x: x / 0, "divides by zero"),
    "floor": (lambda _, x: torch.div(x, 2, rounding_mode="floor"), "rounds its quotients"),
    "inverse": (lambda _, x: torch.div(torch.ones(1, 4, 1, 1), x), "divides a constant"),
    "grows": (lambda _, x: x.mean((2, 3), keepdim=True) + CUBE, "into the larger"),
    "batch joined": (lambda _, x: torch.cat([x, x], 0), "joins along the batch"),
    "batch mean": (lambda _, x: x.mean(), "the batch among them"),
    "mean before channels": (lambda _, x: x.mean(2), "pass keepdim=True"),
    "other clamp": (lambda _, x: x.clamp(-2, 2), r"clamps to \[-2"),
    "negative slope": (lambda _, x: F.leaky_relu(x, -0.1), "must not be negative"),
    "slopes": (lambda _, x: F.prelu(x, torch.ones(4)), "a slope for each channel"),
    "infinite padding": (lambda _, x: F.pad(x, (1, 1), value=float("inf")), "pad with a number"),
    "ranks": (lambda _, x: x + x.mean(1), "combines shapes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name):
    from tinyml_edu.errors import UnsupportedOpError

    forward, message = REFUSED[name]
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        mcu.capture(Net(forward), torch.zeros(1, 4, 4, 5))
    assert "\n" not in str(caught.value)


def test_the_exact_comparison_can_fail():
    """The control: the graph with one constant changed does not pass for the module."""
    module = with_integers(Net(lambda _, x: x + PLANE))
    graph = mcu.capture(module, torch.zeros(1, 4, 4, 5))
    name = graph.nodes[0].inputs[1]
    graph.update(name, data=graph[name].data[:, ::-1].copy())
    x = integers(1, 4, 4, 5)
    assert np.any(run_nchw(graph, x) != module(x).numpy())
