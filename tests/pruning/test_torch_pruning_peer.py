"""Torch-Pruning (Fang et al., CVPR 2023) cuts the same networks to the same channels and MACs."""

import copy

import pytest
import torch
from test_structured import NETS
from torch import nn

from tinyml_edu import profile
from tinyml_edu.pruning import shrink

tp = pytest.importorskip("torch_pruning")


def widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        path: (m.weight.shape[0], m.weight.shape[1])
        for path, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    }


def macs(model: nn.Module, x: torch.Tensor) -> int:
    """Return MACs by hooks, for each layer its outputs times the weights of one."""
    counts: list[int] = []
    hooks = [
        m.register_forward_hook(lambda m, _, y: counts.append(y[0].numel() * m.weight[0].numel()))
        for m in model.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def cut_by_the_peer(model: nn.Module, x: torch.Tensor, ratio: float) -> nn.Module:
    model = copy.deepcopy(model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    importance = tp.importance.MagnitudeImportance(p=1)
    pruner = tp.pruner.MagnitudePruner(model, x, importance, pruning_ratio=ratio, ignored_layers=[last])
    pruner.step()
    return model


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11", "resnet8"])
def test_the_peer_reaches_the_same_channels_and_macs(name):
    make, image, _ = NETS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(1, *image)
    for parameter in model.parameters():  # some networks arrive without values
        nn.init.normal_(parameter, std=0.05)
    ours, peers = shrink(model, x, 0.5, multiple=1), cut_by_the_peer(model, x, 0.5)
    assert widths(ours) == widths(peers) != widths(model)
    assert ours(x).shape == peers(x).shape == model(x).shape
    assert macs(ours, x) == macs(peers, x) < macs(model, x)
    if name != "vgg11":  # its pool from 2x2 to 7x7 is not captured
        assert profile.profile(ours, x).macs == macs(ours, x)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peers.parameters())


def test_another_ratio_gives_other_macs():
    make, image, _ = NETS["resnet8"]
    model, x = make().eval(), torch.randn(1, *image)
    ours, peers = shrink(model, x, 0.25, multiple=1), cut_by_the_peer(model, x, 0.5)
    assert macs(ours, x) != macs(peers, x)
