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
    make, size = NETWORKS[request.param]
    return make().eval(), torch.zeros(1, 3, size, size)


def _torchinfo_macs(model, example):
    """MACs of convolutions and linear layers by torchinfo, without the biases that it counts as MACs."""
    torchinfo = pytest.importorskip("torchinfo")
    rows = torchinfo.summary(model, input_data=example, verbose=0).summary_list
    conv = sum(r.macs for r in rows if isinstance(r.module, nn.Conv2d))
    linear = sum(r.macs - r.module.bias.numel() for r in rows if isinstance(r.module, nn.Linear))
    assert all(r.module.bias is None for r in rows if isinstance(r.module, nn.Conv2d))
    return conv + linear


def test_graph_hooks_and_torchinfo_agree_on_macs(network):
    model, example = network
    assert profile(model, example).macs == model_macs(model, example) == _torchinfo_macs(model, example)


def test_parameters_agree_with_torchinfo_and_folding_accounts_for_the_difference(network):
    model, example = network
    torchinfo = pytest.importorskip("torchinfo")
    counted = profile(model, example)
    total = torchinfo.summary(model, input_data=example, verbose=0).total_params
    assert counted.torch_parameters == count_parameters(model) == total
    # Folding turns the two parameters a channel of a batch norm into one bias of the convolution before it.
    channels = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert counted.parameters == total - channels


def test_the_comparison_can_fail():
    model, example = models.build("resnet8").eval(), torch.zeros(1, 3, 32, 32)
    wider = models.build("resnet8", width=1.25).eval()
    assert model_macs(wider, example) != _torchinfo_macs(model, example)


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
