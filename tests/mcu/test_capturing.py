"""Capture computes what PyTorch computes.

Oracle: weights and inputs are small integers and batch norms scale by powers of two, so that float32 holds
every intermediate value exactly whatever the order of summation: graph and module must agree bit for bit.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import _torchvision, ir, mcu, models
from tinyml_edu.errors import UnsupportedOpError, UsageError
from tinyml_edu.ir.ops import infer_shape
from tinyml_edu.mcu.capturing import transcribe


def with_integers(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module with parameters whose arithmetic is exact in float32."""
    g = torch.Generator().manual_seed(seed)

    def draw(values, shape):
        return torch.tensor(values)[torch.randint(len(values), shape, generator=g)]

    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
                m.eps = 0.0
                m.running_var.copy_(draw([0.25, 1.0, 4.0], m.running_var.shape))
                m.running_mean.copy_(draw([-2.0, -1.0, 0.0, 3.0], m.running_mean.shape))
                if m.affine:
                    m.weight.copy_(draw([-1.0, 0.5, 1.0, 2.0], m.weight.shape))
                    m.bias.copy_(draw([-3.0, 0.0, 1.0], m.bias.shape))
            elif isinstance(m, (nn.Conv2d, nn.Linear)):
                m.weight.copy_(draw([-1.0, 0.0, 1.0, 2.0], m.weight.shape))
                if m.bias is not None:
                    m.bias.copy_(draw([-2.0, 0.0, 1.0, 3.0], m.bias.shape))
    return module.eval()


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def run_nchw(graph: ir.Graph, x: torch.Tensor) -> np.ndarray:
    """Run a graph on PyTorch's layout and return its output in PyTorch's layout."""
    y = ir.run(graph, x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy())
    return y.transpose(0, 3, 1, 2) if y.ndim == 4 else y


def captured(module: nn.Module, x: torch.Tensor) -> tuple[ir.Graph, np.ndarray, np.ndarray]:
    """Return the graph, what it computes on ``x`` and what the module computes."""
    graph = mcu.capture(module, x[:1])
    for node in graph.nodes:
        assert infer_shape(graph, node) == graph[node.outputs[0]].shape, node
    with torch.no_grad():
        return graph, run_nchw(graph, x), module(x).numpy()


class Net(nn.Module):
    """A module from layers and a forward function ``f(self, x)``."""

    def __init__(self, f, **layers: nn.Module) -> None:
        super().__init__()
        self.f = f
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self, x)


def conv(i: int, o: int, k=3, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **kwargs)


def _in_place(n, x):
    y = n.c(x)
    y = F.relu_(y)
    z = n.d(y)
    z += y
    z = F.hardtanh_(z, 0.0, 6.0)
    return z.clamp_(min=0)


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv_bn_relu": (nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU()), (3, 7, 9)),
    "bn_without_affine": (nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU6()), (3, 7, 9)),
    "stride_and_dilation": (conv(3, 5, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 1)), (3, 11, 13)),
    "same_padding_even_kernel": (conv(3, 5, (4, 2), padding="same"), (3, 6, 7)),
    "valid_padding": (conv(3, 5, 2, padding="valid"), (3, 6, 7)),
    "depthwise": (nn.Sequential(conv(6, 6, groups=6, padding=1), nn.BatchNorm2d(6), nn.ReLU6()), (6, 5, 8)),
    "depthwise_multiplier": (nn.Sequential(conv(4, 12, groups=4), nn.BatchNorm2d(12)), (4, 6, 5)),
    "residual": (
        Net(
            lambda n, x: F.relu(n.b(n.c(x)) + n.s(x)),
            c=conv(4, 8, padding=1),
            b=nn.BatchNorm2d(8),
            s=conv(4, 8, 1),
        ),
        (4, 6, 5),
    ),
    "difference": (Net(lambda n, x: F.relu(n.c(x) - x), c=conv(4, 4, padding=1)), (4, 6, 5)),
    "product": (Net(lambda n, x: F.relu6(n.c(x) * n.d(x)), c=conv(3, 4), d=conv(3, 4)), (3, 6, 5)),
    "square": (Net(lambda n, x: n.c(x) * n.c(x) * x, c=conv(4, 4, 1)), (4, 3, 5)),
    "gate_of_channels": (
        Net(lambda n, x: F.relu(n.c(F.max_pool2d(x, (6, 5)))) * x, c=conv(4, 4, 1)),
        (4, 6, 5),
    ),
    "gate_of_pixels": (Net(lambda n, x: x * n.c(x), c=conv(4, 1, 1)), (4, 6, 5)),
    "gate_of_features": (
        Net(lambda n, x: n.d(n.c(x).flatten(1) * n.c(x).flatten(1)), c=conv(3, 4), d=nn.Linear(60, 5)),
        (3, 5, 7),
    ),
    "concatenation": (
        Net(lambda n, x: n.d(torch.cat([n.c(x), x, n.c(x)], 1)), c=conv(3, 4, 1), d=conv(11, 2)),
        (3, 6, 5),
    ),
    "concatenation_of_flattened_images": (
        Net(
            lambda n, x: n.d(torch.cat([n.c(x).flatten(1), n.l(x.flatten(1)), x.flatten(1)], -1)),
            c=conv(3, 4),
            l=nn.Linear(105, 7),
            d=nn.Linear(60 + 7 + 105, 5),
        ),
        (3, 5, 7),
    ),
    "upsampling": (
        Net(lambda n, x: n.d(F.relu(F.interpolate(n.c(x), scale_factor=(2, 3)))), c=conv(3, 4), d=conv(4, 2)),
        (3, 4, 5),
    ),
    "upsampling_to_a_size": (
        nn.Sequential(conv(3, 4, 1), nn.Upsample(size=(8, 5), mode="nearest-exact")),
        (3, 4, 5),
    ),
    "added_to_itself": (Net(lambda n, x: n.c(x) + x + x, c=conv(4, 4, padding=1)), (4, 6, 5)),
    "in_place": (Net(_in_place, c=conv(3, 4, padding=1), d=conv(4, 4, padding=1)), (3, 6, 5)),
    "asymmetric_pad_into_conv": (
        Net(lambda n, x: n.c(F.pad(x, (0, 1, 2, 3))), c=conv(3, 4, padding=1)),
        (3, 6, 5),
    ),
    "pad_before_pool": (
        Net(lambda n, x: F.max_pool2d(F.pad(n.c(x), (1, 0, 0, 1)), 2), c=conv(3, 4)),
        (3, 7, 7),
    ),
    "pad_of_channels": (Net(lambda n, x: n.c(x) + F.pad(x, (0, 0, 0, 0, 1, 2)), c=conv(3, 6, 1)), (3, 4, 5)),
    "max_pool_padded": (nn.Sequential(conv(3, 4), nn.MaxPool2d(3, 2, padding=1)), (3, 8, 9)),
    "max_pool_ceil": (nn.Sequential(conv(3, 4), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU()), (3, 8, 9)),
    "relu_after_pool": (nn.Sequential(conv(3, 4), nn.MaxPool2d(2), nn.ReLU()), (3, 8, 9)),
    "average_pool": (nn.Sequential(conv(3, 4), nn.AvgPool2d(2), nn.ReLU()), (3, 8, 9)),
    "average_pool_padded": (
        nn.Sequential(conv(3, 4), nn.AvgPool2d(2, 2, padding=1, count_include_pad=False)),
        (3, 8, 10),
    ),
    "adaptive_pool": (
        nn.Sequential(conv(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        (3, 4, 8),
    ),
    "adaptive_pool_to_grid": (nn.Sequential(conv(3, 4, 1), nn.AdaptiveAvgPool2d((2, 4))), (3, 4, 8)),
    "adaptive_pool_of_its_own_size": (nn.Sequential(conv(3, 4, 1), nn.AdaptiveAvgPool2d((4, 8))), (3, 4, 8)),
    "mean": (Net(lambda n, x: n.l(n.c(x).mean((2, 3))), c=conv(3, 4, 1), l=nn.Linear(4, 5)), (3, 4, 8)),
    "mean_keepdim": (Net(lambda n, x: n.c(x).mean([-1, -2], keepdim=True), c=conv(3, 4, 1)), (3, 4, 8)),
    "relu_after_mean": (Net(lambda n, x: F.relu(n.c(x).mean((2, 3))), c=conv(3, 4, 1)), (3, 4, 8)),
    "flatten_not_square": (nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(4 * 3 * 5, 6)), (3, 5, 7)),
    "flatten_input": (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 6), nn.ReLU(), nn.Linear(6, 2)),
        (3, 4, 5),
    ),
    "flatten_one_channel": (nn.Sequential(nn.Flatten(), nn.Linear(20, 6)), (1, 4, 5)),
    "flatten_relu_bn_linear": (
        nn.Sequential(
            conv(3, 4), nn.Flatten(), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 6), nn.BatchNorm1d(6)
        ),
        (3, 5, 7),
    ),
    "unflatten_after_flatten": (
        Net(lambda n, x: n.d(n.c(x).flatten(1).view(-1, 4, 3, 5)), c=conv(3, 4), d=conv(4, 2)),
        (3, 5, 7),
    ),
    "squeeze_unsqueeze": (
        Net(
            lambda n, x: n.c(n.c(x).mean((2, 3)).unsqueeze(-1).unsqueeze(-1)).squeeze(3).squeeze(2),
            c=conv(4, 4, 1),
        ),
        (4, 4, 4),
    ),
    "mlp": (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU6(), nn.Linear(7, 3, bias=False)), (5,)),
    "lone_bn": (
        Net(lambda n, x: n.d(F.relu(n.b(x + n.c(x)))), c=conv(4, 4, 1), b=nn.BatchNorm2d(4), d=conv(4, 2)),
        (4, 5, 6),
    ),
    "bn_of_input": (nn.Sequential(nn.BatchNorm2d(3), conv(3, 4, padding=1)), (3, 5, 6)),
    "relu_beside_its_input": (Net(lambda n, x: F.relu(y := n.c(x)) + y, c=conv(3, 4)), (3, 5, 6)),
    "relu_of_features_beside_its_input": (
        Net(lambda n, x: F.relu6(y := n.l(x)) + y, l=nn.Linear(5, 4)),
        (5,),
    ),
    "relu_of_input": (nn.Sequential(nn.ReLU(), conv(3, 4)), (3, 5, 6)),
    "bn_beside_its_input": (
        Net(lambda n, x: n.b(y := n.c(x)) + y, c=conv(3, 4), b=nn.BatchNorm2d(4)),
        (3, 5, 6),
    ),
    "dropout_identity": (
        nn.Sequential(conv(3, 4), nn.Dropout(), nn.Identity(), nn.Dropout2d(), nn.ReLU()),
        (3, 5, 6),
    ),
    "one_layer_twice": (Net(lambda n, x: n.c(F.relu(n.c(x))), c=conv(3, 3, padding=1)), (3, 5, 6)),
    "relu_then_relu6": (nn.Sequential(conv(3, 4), nn.ReLU(), nn.ReLU6(), nn.ReLU()), (3, 5, 6)),
    "masked_weight": (
        Net(lambda n, x: F.conv2d(x, n.c.weight * (n.c.weight > 0), n.c.bias), c=conv(3, 4)),
        (3, 5, 6),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_the_graph_computes_exactly_what_the_module_computes(name):
    module, shape = NETS[name]
    _, got, expected = captured(with_integers(module), integers(3, *shape))
    assert np.array_equal(got, expected), np.abs(got - expected).max()
    assert np.abs(expected).max() > 1, "the network must not be trivially zero"


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_random_chains_match_exactly(data):
    draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    channels, layers = 3, []
    for _ in range(draw(1, 2, 3)):
        outputs = draw(2, 4, 6)
        kernel = (draw(1, 2, 3), draw(1, 2, 3))
        padding = (draw(0, 1, 2), draw(0, 1, 2))
        layers.append(
            conv(channels, outputs, kernel, padding=padding, stride=(draw(1, 2), 1), bias=draw(True, False))
        )
        layers += [nn.BatchNorm2d(outputs)] if draw(True, False) else []
        layers.append(draw(nn.Identity, nn.ReLU, nn.ReLU6)())
        layers += [nn.MaxPool2d(2, 2, padding=draw(0, 1))] if draw(True, False) else []
        channels = outputs
    x = integers(2, 3, draw(20, 25), draw(18, 23))
    features = nn.Sequential(*layers)
    try:
        with torch.no_grad():
            size = features.eval()(x).flatten(1).shape[1]
    except RuntimeError:  # strides and pools left less than a kernel: PyTorch itself refuses the network
        reject()
    module = with_integers(
        nn.Sequential(features, nn.Flatten(), nn.Linear(size, 3)), data.draw(st.integers(0, 99))
    )
    _, got, expected = captured(module, x)
    assert np.array_equal(got, expected)


def test_the_exact_oracle_sees_an_unpermuted_linear_layer():
    module, shape = NETS["flatten_not_square"]
    graph, _, expected = captured(with_integers(module), integers(3, *shape))
    node = graph.nodes[-1]
    graph.update(node.inputs[1], data=module[2].weight.detach().numpy())
    assert not np.array_equal(run_nchw(graph, integers(3, *shape)), expected)


def test_the_exact_oracle_sees_a_shifted_pad():
    module, shape = NETS["same_padding_even_kernel"]
    graph, _, expected = captured(with_integers(module), integers(3, *shape))
    object.__setattr__(graph.nodes[0].attrs, "padding", (2, 1, 1, 0))  # the odd element before the image
    assert not np.array_equal(run_nchw(graph, integers(3, *shape)), expected)


def ops_of(name: str) -> list[str]:
    module, shape = NETS[name]
    return [node.op for node in mcu.capture(with_integers(module), integers(1, *shape)).nodes]


def test_batch_norm_and_activation_fold_away():
    assert ops_of("conv_bn_relu") == ["CONV_2D"]
    assert ops_of("relu_then_relu6") == ["CONV_2D"]
    assert ops_of("dropout_identity") == ["CONV_2D"]
    assert ops_of("residual") == ["CONV_2D", "CONV_2D", "ADD"]
    assert ops_of("depthwise_multiplier") == ["DEPTHWISE_CONV_2D"]


def test_a_lone_batch_norm_becomes_a_depthwise_with_its_activation():
    module, shape = NETS["lone_bn"]
    graph = mcu.capture(with_integers(module), integers(1, *shape))
    norm = next(node for node in graph.nodes if node.op == "DEPTHWISE_CONV_2D")
    assert graph[norm.inputs[1]].shape == (1, 1, 1, 4)
    assert norm.attrs.activation == "relu"


def test_an_activation_beside_its_input_becomes_a_clamping_pool():
    module, shape = NETS["relu_beside_its_input"]
    pool = mcu.capture(with_integers(module), integers(1, *shape)).nodes[1]
    assert pool.op == "MAX_POOL_2D"
    assert (pool.attrs.kernel, pool.attrs.stride, pool.attrs.activation) == ((1, 1), (1, 1), "relu")


def test_an_activation_moves_above_the_max_pool():
    module, shape = NETS["relu_after_pool"]
    convolution, pool = mcu.capture(with_integers(module), integers(1, *shape)).nodes
    assert (convolution.attrs.activation, pool.attrs.activation) == ("relu", "none")


def test_padding_moves_into_the_convolution_but_not_into_a_pool():
    module, shape = NETS["asymmetric_pad_into_conv"]
    (node,) = mcu.capture(with_integers(module), integers(1, *shape)).nodes
    assert node.attrs.padding == (1 + 2, 1 + 0, 1 + 3, 1 + 1)
    assert "PAD" in ops_of("pad_before_pool")


def test_stride_two_padding_is_that_of_pytorch():
    (node,) = mcu.capture(conv(3, 4, stride=2, padding=1), torch.zeros(1, 3, 32, 32)).nodes
    assert node.attrs.padding == (1, 1, 1, 1)  # TensorFlow's SAME would be (0, 0, 1, 1)


def test_nodes_carry_the_paths_of_the_layers():
    graph = mcu.capture(models.build("resnet8"), torch.zeros(1, 3, 32, 32))
    names = [node.name for node in graph.nodes]
    assert names[:3] == ["features.0.conv", "features.1.first.conv", "features.1.second.conv"]
    assert names[3] == "features.1.add"
    assert len(set(names)) == len(names)


def test_capture_leaves_the_module_alone():
    module = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout())
    module[1].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    mcu.capture(module, torch.zeros(4, 3, 8, 8))
    assert [m.training for m in module] == [True, False, True]
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_softmax_over_channels_matches_within_float_rounding():
    module = with_integers(nn.Sequential(conv(3, 4), nn.Softmax(dim=1)))
    _, got, expected = captured(module, integers(2, 3, 5, 6))
    # exp, a sum of 4 and a division: each off by a few units in the last place of values below 1.
    assert np.abs(got - expected).max() < 8 * np.finfo(np.float32).eps


def float_error(module: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the errors of the graph, and of PyTorch's own float32, against float64."""
    g = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=g)
            m.running_var.uniform_(0.5, 2, generator=g)
            m.weight.data.uniform_(0.5, 1.5, generator=g)
            m.bias.data.normal_(0, 0.3, generator=g)
    x = torch.randn(2, *shape, generator=g)
    _, got, own = captured(module.eval(), x)
    with torch.no_grad():
        exact = module.double()(x.double()).numpy()
    return np.abs(got - exact).max(), max(np.abs(own - exact).max(), np.abs(exact).max() * 2.0**-24)


# Folding rounds each weight and bias once more, and sums run in another order: a few times the roundings that
# PyTorch's own float32 forward pass makes on each path.
FLOAT_FACTOR = 8


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_reference_networks_match_like_float32(name):
    shape = (1, 49, 10) if name == "ds_cnn" else (3, 32, 32)
    error, own = float_error(models.build(name, in_channels=shape[0]), shape)
    assert error <= FLOAT_FACTOR * own, (error, own)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_torchvision_networks_match_like_float32(name):
    _torchvision.load()
    from torchvision import models as zoo

    torch.manual_seed(0)
    error, own = float_error(getattr(zoo, name)(), (3, 64, 96))
    assert error <= FLOAT_FACTOR * own, (error, own)


def test_the_float_bound_sees_a_batch_norm_epsilon_left_out():
    module = nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8))
    graph = mcu.capture(module, torch.zeros(1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph.update(graph.nodes[0].inputs[1], data=module[0].weight.detach().permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        own = module.eval()(x).numpy()
        exact = module.double()(x.double()).numpy()
    assert np.abs(run_nchw(graph, x) - exact).max() > FLOAT_FACTOR * np.abs(own - exact).max()


REFUSED = {
    "gelu": (
        nn.Sequential(conv(3, 4), nn.GELU()),
        ["aten.gelu", "layer '1'", "2 of 2", "relu6", "hardswish"],
    ),
    "groups": (conv(4, 4, groups=2), ["2 groups over 4 channels"]),
    "joined_constant": (
        Net(lambda _, x: torch.cat([x, torch.ones(1, 1, 4, 4)], 1)),
        ["aten.cat", "joins a constant"],
    ),
    "shrunk": (Net(lambda _, x: F.interpolate(x, scale_factor=0.5)), ["4x4 to 2x2", "whole factor"]),
    "odd_factor": (Net(lambda _, x: F.interpolate(x, scale_factor=2.1)), ["whole factor"]),
    "bilinear": (Net(lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear")), ["bilinear"]),
    "count_include_pad": (nn.AvgPool2d(2, padding=1), ["count_include_pad=False"]),
    "dilated_pool": (nn.MaxPool2d(2, dilation=2), ["dilated"]),
    "scaled_sum": (Net(lambda _, x: torch.add(x, x, alpha=2)), ["alpha = 2"]),
    "clamp": (nn.Hardtanh(-2, 1), ["clamps to [-2"]),
    "softmax_axis": (nn.Softmax(dim=3), ["softmax over the channels"]),
    "reflect": (nn.ReflectionPad2d(1), ["reflect"]),
    "crop": (nn.ConstantPad2d(-1, 0.0), ["crops"]),
    "transposed": (nn.ConvTranspose2d(4, 4, 2), ["conv_transpose2d"]),
    "spatial_flatten": (Net(lambda n, x: n.c(x.flatten(2)), c=nn.Conv1d(4, 4, 2)), ["reshapes"]),
    "conv1d": (Net(lambda n, x: n.c(F.relu(x[:, :, 0])), c=nn.Conv1d(4, 4, 2)), ["aten.select"]),
    "transpose": (Net(lambda _, x: x.transpose(1, 2)), ["aten.transpose"]),
    "uneven_pool": (nn.AdaptiveAvgPool2d(3), ["divide evenly"]),
    "flat_output": (nn.Sequential(conv(4, 4, 1), nn.Flatten()), ["flattened image"]),
    "no_operation": (nn.Identity(), ["computes nothing"]),
    "tensor_branch": (Net(lambda _, x: x if x.sum() > 0 else -x), ["torch.export cannot trace"]),
    "batch_statistics": (nn.BatchNorm2d(4, track_running_stats=False), ["batch_norm"]),
    "dynamic_weights": (
        Net(lambda _, x: F.linear(F.relu(x).mean((2, 3)), x.mean((2, 3)))),
        ["make them parameters"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_in_one_line(name):
    module, words = REFUSED[name]
    channels = 3 if name == "gelu" else 4
    with pytest.raises(UnsupportedOpError) as caught:
        mcu.capture(module, torch.zeros(1, channels, 4, 4))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


class Branches(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_branch_on_values_is_one_line_and_nothing_else(capfd):
    with pytest.raises(
        UnsupportedOpError, match=r"cannot trace Branches.*no Python branch depends"
    ) as caught:
        mcu.capture(Branches(), torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


class Joins(torch.nn.Module):
    """Calls an operation that takes its tensors in a list."""

    def __init__(self, join):
        super().__init__()
        self.conv, self.join = conv(3, 4), join

    def forward(self, x):
        return self.join([self.conv(x), self.conv(x)])


@pytest.mark.parametrize(
    ("join", "op"),
    [(lambda p: torch.cat(p, 0), "aten.cat"), (lambda p: torch.stack(p, 1), "aten.stack|cat|unsq")],
)
def test_operations_on_lists_of_tensors_are_named(join, op):
    with pytest.raises(UnsupportedOpError, match=op):
        mcu.capture(Joins(join), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "op", "shape"),
    [
        ("groups", "GROUPED_CONV_2D", (1, 2, 2, 4)),
        ("uneven_pool", "ADAPTIVE_AVERAGE_POOL_2D", (1, 3, 3, 4)),
    ],
)
def test_surgery_reads_what_the_compiler_lacks(name, op, shape):
    graph = transcribe(REFUSED[name][0], torch.zeros(1, 4, 4, 4)).validate()
    assert [(node.op, graph[node.outputs[0]].shape) for node in graph.nodes] == [(op, shape)]


def test_surgery_reads_a_hard_sigmoid_as_one_node_without_parameters():
    graph = transcribe(nn.Sequential(conv(4, 4), nn.Hardsigmoid()), torch.zeros(1, 4, 4, 4)).validate()
    assert [node.op for node in graph.nodes] == ["CONV_2D", "HARD_SIGMOID"]


def test_surgery_names_the_gates_that_it_has_no_rule_for():
    from tinyml_edu.pruning.dependency import find_dependencies

    for gate, op in ((nn.Sigmoid(), "LOGISTIC"), (nn.Hardsigmoid(), "HARD_SIGMOID"), (nn.SiLU(), "LOGISTIC")):
        with pytest.raises(UnsupportedOpError, match=rf"no rule for the operation {op} \('1'\)"):
            find_dependencies(nn.Sequential(conv(4, 4), gate, conv(4, 4, 1)), torch.zeros(1, 4, 4, 4))


SMOOTH = {
    "sigmoid": (nn.Sigmoid(), ["LOGISTIC"]),
    "hardswish": (nn.Hardswish(), ["HARD_SWISH"]),
    "silu": (nn.SiLU(), ["LOGISTIC", "MUL"]),
    "hardsigmoid": (nn.Hardsigmoid(), ["DEPTHWISE_CONV_2D"]),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_match_within_float_rounding(name):
    module, ops = SMOOTH[name]
    for before, shape in ((conv(3, 4, 1), (3, 5, 6)), (nn.Linear(6, 7), (6,))):
        net = with_integers(nn.Sequential(before, module))
        graph, got, expected = captured(net, integers(2, *shape))
        found = [node.op for node in graph.nodes if node.op != "RESHAPE"][1:]
        assert found == ops
        # An exponential, a sum, a division and a product: a few units in the last place of the result.
        assert np.abs(got - expected).max() <= 8 * np.finfo(np.float32).eps * np.abs(expected).max()


def test_a_joined_sigmoid_is_given_a_scale_of_its_own():
    net = Net(
        lambda n, x: torch.cat([F.max_pool2d(n.c(x).sigmoid(), 2), F.max_pool2d(x, 2)], 1), c=conv(3, 4, 1)
    )
    graph = mcu.capture(net, torch.zeros(1, 3, 6, 6))
    assert [n.op for n in graph.nodes] == [
        "CONV_2D", "LOGISTIC", "MAX_POOL_2D", "MAX_POOL_2D", "QUANTIZE", "CONCATENATION",
    ]  # fmt: skip
    assert graph.nodes[-1].inputs == (graph.nodes[-2].outputs[0], graph.nodes[3].outputs[0])


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_a_concatenation_of_images_along_another_axis_is_refused_by_surgery_too(dim):
    with pytest.raises(UnsupportedOpError, match="another axis"):
        transcribe(Net(lambda _, x: torch.cat([x, x], dim)), torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize(
    "example", [None, torch.zeros(1, 3, 8, 8, dtype=torch.int64), torch.zeros(3), torch.zeros(0, 3)]
)
def test_a_bad_example_is_a_usage_error(example):
    with pytest.raises(UsageError, match="example input"):
        mcu.capture(conv(3, 4), example)
