"""Network slimming: the penalty, and the removal of the channels with the smallest scales."""

import pytest
import torch
from torch import nn

from tinyml_edu.errors import UsageError
from tinyml_edu.pruning import kept_channels, shrink
from tinyml_edu.pruning.slimming import slimming_loss


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def scaled(*scales: list[float]) -> nn.Module:
    """Return a chain of convolutions whose batch norms have the given scales."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for values in scales:
        layers += [nn.Conv2d(channels, len(values), 1), nn.BatchNorm2d(len(values)), nn.ReLU()]
        with torch.no_grad():
            layers[-2].weight.copy_(torch.tensor(values))
        channels = len(values)
    return nn.Sequential(*layers, nn.Conv2d(channels, 5, 1)).eval()


def test_slimming_adds_the_sign_of_the_scale_to_its_gradient_and_touches_nothing_else():
    model = network()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([2.0, -1.0, 0.5, 3.0]))
    x, y = torch.randn(6, 3, 8, 8), torch.randint(5, (6,))

    def gradients(coefficient):
        model.zero_grad()
        slimming_loss(model, coefficient)(model(x), x, y, y).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain, slim = gradients(0.0), gradients(0.25)
    added = slim["1.weight"] - plain["1.weight"]
    # One float32 addition to a gradient below 4 in size: 2**-22 at most.
    assert plain["1.weight"].abs().max() < 4
    assert (added - 0.25 * torch.tensor([1.0, -1.0, 1.0, 1.0])).abs().max() <= 2**-22
    assert all(torch.equal(slim[name], plain[name]) for name in plain if name != "1.weight")


X = torch.zeros(1, 3, 4, 4)


def test_one_threshold_holds_for_all_layers():
    model = scaled([0.1, -0.3, 0.2], [1.0, -2.0, 0.9, 3.0])
    kept = kept_channels(model, X, 3 / 7, criterion="bn_scale", ranking="global", multiple=1)
    # 0.1, 0.2 and -0.3 are the smallest of seven, but a layer keeps its largest channel
    assert {path: index.tolist() for path, index in kept.items()} == {"0": [1], "3": [0, 1, 2, 3]}
    by_layer = kept_channels(model, X, 3 / 7, criterion="bn_scale", multiple=1)
    assert {path: len(index) for path, index in by_layer.items()} == {"0": 2, "3": 2}  # the control


def test_the_slimmed_network_is_smaller_and_runs():
    model = scaled([0.1, -0.3, 0.2, 5.0], [1.0, -2.0, 0.9, 3.0])
    small = shrink(model, X, 0.5, criterion="bn_scale", ranking="global", multiple=1)
    assert (small[0].out_channels, small[3].out_channels) == (1, 3)
    assert small(torch.randn(2, 3, 4, 4)).shape == (2, 5, 4, 4)


def test_a_unit_that_two_layers_write_counts_with_the_mean_of_its_scores():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm_a = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
            self.b, self.norm_b = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
            self.c, self.norm_c, self.d = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)

        def forward(self, x):
            x = torch.relu(self.norm_a(self.a(x)))
            x = x + self.norm_b(self.b(x))
            return self.d(torch.relu(self.norm_c(self.c(x))))

    model = Residual().eval()
    with torch.no_grad():
        for norm, values in (
            (model.norm_a, [0.4, 2.0]),
            (model.norm_b, [0.4, 2.0]),
            (model.norm_c, [0.5, 2.0]),
        ):
            norm.weight.copy_(torch.tensor(values))
    kept = kept_channels(model, X, 0.25, criterion="bn_scale", ranking="global", multiple=1)
    # The mean 0.4 goes; by the sum, 0.8, it would stay and the 0.5 of norm_c would go.
    assert {path: index.tolist() for path, index in kept.items()} == {"a": [1], "b": [1], "c": [0, 1]}


def test_a_network_without_batch_norms_is_refused():
    with pytest.raises(UsageError, match="batch norms"):
        shrink(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), X, 0.5, criterion="bn_scale")


def test_a_global_ranking_takes_one_ratio():
    with pytest.raises(UsageError, match="one ratio"):
        shrink(scaled([1.0, 2.0]), X, {"0": 0.5}, criterion="bn_scale", ranking="global")
