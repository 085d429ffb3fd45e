"""The reference networks have the sizes their docstrings print, and torch.export captures them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tinyml_edu import models
from tinyml_edu.errors import UnknownNameError, UsageError

SHAPES = {
    "vgg_lite": (3, 32, 32),
    "resnet8": (3, 32, 32),
    "mobilenet_v2_tiny": (3, 32, 32),
    "ds_cnn": (1, 49, 10),
}


def count(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, float]:
    """Return parameters and millions of MACs, the latter by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e6


@pytest.mark.parametrize(
    ("name", "parameters", "mmacs"),
    [("vgg_lite", 436_458, 40.99), ("resnet8", 78_042, 12.50), ("mobilenet_v2_tiny", 86_922, 6.39)],
)
def test_sizes_are_those_of_the_docstring(name, parameters, mmacs):
    measured = count(models.build(name), SHAPES[name])
    assert measured[0] == parameters
    assert round(measured[1], 2) == mmacs
    printed = re.search(r"([\d,]+) parameters and ([\d.]+) M MACs", models.MODELS[name].__doc__)
    assert printed is not None
    assert int(printed[1].replace(",", "")) == parameters
    assert float(printed[2]) == round(mmacs, 1)


def test_vgg_lite_macs_equal_the_sum_over_its_convolutions():
    macs, side, channels = 0, 32, 3
    for step in models.VGG_PLAN:
        if step == "M":
            side //= 2
        else:
            macs += 9 * channels * step * side * side
            channels = step
    assert macs + channels * 10 == round(count(models.vgg_lite(), (3, 32, 32))[1] * 1e6)


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("width", [0.5, 1.0])
def test_export_captures_the_network_and_computes_the_same(name, width):
    torch.manual_seed(0)
    model = models.build(name, classes=7, in_channels=SHAPES[name][0], width=width).eval()
    x = torch.randn(2, *SHAPES[name])
    exported = torch.export.export(model, (x,)).module()
    assert torch.equal(exported(x), model(x))
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_batch_norm_follows_a_convolution_without_bias(name):
    for module in models.build(name).modules():
        if isinstance(module, models.ConvBN):
            assert module.conv.bias is None
            assert module.bn.num_features == module.conv.out_channels
    loose = [m for m in models.build(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(loose) == sum(isinstance(m, models.ConvBN) for m in models.build(name).modules())


@pytest.mark.parametrize("channels", [1, 3])
def test_ds_cnn_takes_log_mel_pictures_and_images(channels):
    shape = (1, 49, 10) if channels == 1 else (3, 32, 32)
    assert models.ds_cnn(5, in_channels=channels)(torch.zeros(2, *shape)).shape == (2, 5)


def test_width_scales_channels_to_multiples_of_four():
    assert [models.scaled(64, w) for w in (0.01, 0.3, 0.5, 1.0, 1.5)] == [4, 20, 32, 64, 96]
    assert models.vgg_lite(width=0.5).linear.in_features == 64


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet8'"):
        models.build("resnet9")


@pytest.mark.parametrize("bad", [{"classes": 0}, {"in_channels": 0}, {"width": 0.0}, {"width": float("nan")}])
def test_an_impossible_size_is_refused(bad):
    with pytest.raises(UsageError, match="needs classes >= 1"):
        models.build("vgg_lite", **bad)
