"""Counts of MACs and parameters against torchinfo, closed forms and each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import _torchvision, models
from tinyml_edu.errors import UsageError
from tinyml_edu.profile import conv2d_macs, count_parameters, model_macs, profile, weight_bytes

NETWORKS = {
    "vgg_lite": (lambda: models.build("vgg_lite"), 32),
    "resnet8": (lambda: models.build("resnet8"), 32),
    "mobilenet_v2": (lambda: _torchvision.load().models.mobilenet_v2(weights=None), 96),
    "resnet18": (lambda: _torchvision.load().models.resnet18(weights=None), 96),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """The model, an example, its profile and torchinfo's rows and total."""
    torchinfo = pytest.importorskip("torchinfo")
    make, size = NETWORKS[request.param]
    model, example = make().eval(), torch.zeros(1, 3, size, size)
    summary = torchinfo.summary(model, input_data=example, verbose=0)
    return model, example, profile(model, example), summary


def _torchinfo_macs(summary):
    """MACs of convolutions and linear layers, without the linear biases that torchinfo counts as MACs."""
    rows = summary.summary_list
    conv = [r for r in rows if isinstance(r.module, nn.Conv2d)]
    linear = [r for r in rows if isinstance(r.module, nn.Linear)]
    assert all(r.module.bias is None for r in conv)
    return sum(r.macs for r in conv) + sum(r.macs - r.module.bias.numel() for r in linear)


def test_graph_hooks_and_torchinfo_agree_on_macs(network):
    model, example, counted, summary = network
    assert counted.macs == model_macs(model, example) == _torchinfo_macs(summary)


def test_parameters_agree_with_torchinfo_and_folding_accounts_for_the_difference(network):
    model, _, counted, summary = network
    assert counted.torch_parameters == count_parameters(model) == summary.total_params
    # Folding turns the two parameters a channel of a batch norm into one bias of the convolution before it.
    channels = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert counted.parameters == summary.total_params - channels


def test_the_comparison_can_fail(network):
    model, example, _, summary = network
    model_with_bias = nn.Sequential(model, nn.Linear(summary.summary_list[-1].output_size[-1], 1))
    assert model_macs(model_with_bias, example) != _torchinfo_macs(summary)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    per_group=pairs(1, 3),
    kernel=pairs(1, 3),
    stride=pairs(1, 3),
    padding=pairs(0, 2),
    dilation=pairs(1, 2),
    size=pairs(7, 14),
)
def test_macs_equal_the_products_that_the_output_sums(
    groups, per_group, kernel, stride, padding, dilation, size
):
    """With all weights and pixels 1 and no padding seen, an output is its number of products."""
    layer = nn.Conv2d(
        groups * per_group[0], groups * per_group[1], kernel, stride, padding, dilation, groups, bias=False
    )
    nn.init.ones_(layer.weight)
    # Ones around the image too, so that padded positions count as the products that a kernel computes.
    image = torch.ones(1, layer.in_channels, size[0] + 2 * padding[0], size[1] + 2 * padding[1])
    layer.padding = (0, 0)
    with torch.no_grad():
        products = int(layer(image).sum().round())
    layer.padding = padding
    assert conv2d_macs(layer, *size) == products


def test_a_layer_that_runs_twice_counts_twice_and_the_mode_comes_back():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x)))

    model = Twice().train()
    model.norm.eval()
    assert model_macs(model, torch.zeros(5, 2, 3, 3)) == 2 * 4 * 9
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    assert not model.conv._forward_hooks
    assert int(model.norm.num_batches_tracked) == 0


def test_hooks_are_removed_when_the_model_fails():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Linear(7, 7)).train()
    with pytest.raises(RuntimeError):
        model_macs(model, torch.zeros(1, 2, 3, 3))
    assert not model[0]._forward_hooks
    assert model.training


def test_padding_in_words_is_refused_with_what_to_do():
    with pytest.raises(UsageError, match="in numbers"):
        conv2d_macs(nn.Conv2d(1, 1, 3, padding="same"), 8, 8)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 33)), max_size=6))
def test_packed_bytes_are_those_of_a_bit_string_cut_into_bytes(tensors):
    naive = sum(len(range(0, n * b, 8)) for n, b in tensors)
    assert weight_bytes([n for n, _ in tensors], [b for _, b in tensors]) == naive
