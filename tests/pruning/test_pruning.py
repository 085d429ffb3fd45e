"""A shrunk network computes what the whole one computes with the removed channels at zero.

Oracle: parameters and inputs are small integers, batch norms scale by powers of two and average pools cover
4 or 16 pixels, so that float64 is exact whatever the order of summation: they must agree bit for bit.
"""

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import models
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.pruning import fine_grained_prune, kept_channels, shrink


def with_integers(module: nn.Module, seed: int) -> nn.Module:
    g = torch.Generator().manual_seed(seed)

    def draw(values, shape):
        return torch.tensor(values)[torch.randint(len(values), shape, generator=g)]

    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps = 0.0
                m.running_var.copy_(draw([0.25, 1.0, 4.0], m.running_var.shape))
                m.running_mean.copy_(draw([-2.0, 0.0, 3.0], m.running_mean.shape))
                m.weight.copy_(draw([-1.0, 1.0, 0.5], m.weight.shape))
                m.bias.copy_(draw([1.0, 2.0, 0.0], m.bias.shape))
            elif isinstance(m, (nn.Conv2d, nn.Linear)):
                m.weight.copy_(draw([-1.0, 0.0, 1.0], m.weight.shape))
                if m.bias is not None:
                    m.bias.copy_(draw([-1.0, 1.0, 2.0], m.bias.shape))
    return module.double().eval()


def chain(last_pool: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3), nn.ReLU6(), nn.Dropout(),
        nn.Conv2d(16, 8, (1, 2)), nn.BatchNorm2d(8), nn.ReLU(), last_pool, nn.Flatten(),
        nn.Linear(features, 7), nn.ReLU(), nn.Linear(7, 5),
    )  # fmt: skip


NETS = {
    "pool": lambda: chain(nn.AdaptiveAvgPool2d(1), 8),
    "flatten": lambda: chain(nn.Identity(), 8 * 2 * 3),  # features of 2x3 pixels reach the linear layer
    "vgg_lite": lambda: models.build("vgg_lite", width=0.25),
}
IMAGE = {"pool": (3, 12, 14), "flatten": (3, 8, 12), "vgg_lite": (3, 16, 16)}


def masked(model: nn.Module, kept: dict[str, torch.Tensor]) -> nn.Module:
    """Return a copy in which the removed channels are zero after batch norm and activation."""
    model = copy.deepcopy(model)
    order = list(model.named_modules())
    for path, keep in kept.items():
        at = next(i for i, (name, _) in enumerate(order) if name == path)
        gone = torch.ones(order[at][1].out_channels, dtype=torch.bool)
        gone[keep] = False
        layers = [order[at][1]]
        following = next(m for _, m in order[at + 1 :] if not list(m.children()))
        layers += [following] if isinstance(following, nn.BatchNorm2d) else []
        for layer in layers:
            with torch.no_grad():
                layer.weight[gone] = 0
                if layer.bias is not None:
                    layer.bias[gone] = 0
    return model


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(ratio=st.floats(0, 0.95), seed=st.integers(0, 99), multiple=st.sampled_from([1, 2, 4]))
def test_the_shrunk_network_equals_the_masked_one(name, ratio, seed, multiple):
    torch.manual_seed(seed)
    model = with_integers(NETS[name](), seed)
    x = integers(3, *IMAGE[name], seed=seed)
    kept = kept_channels(model, x, ratio, multiple=multiple)
    small = shrink(model, x, ratio, multiple=multiple)
    with torch.no_grad():
        assert torch.equal(small(x), masked(model, kept)(x))


def test_the_equality_sees_other_channels_removed():
    model = with_integers(NETS["flatten"](), 0)
    x = integers(3, *IMAGE["flatten"])
    kept = kept_channels(model, x, 0.5)
    other = {
        path: torch.tensor([i for i in range(16) if i not in keep])[: len(keep)]
        for path, keep in kept.items()
    }
    other["0"] = kept["0"]
    other["7"] = kept["7"]
    with torch.no_grad():
        assert not torch.equal(shrink(model, x, 0.5)(x), masked(model, other)(x))


def test_the_channels_kept_have_the_largest_l1_norm_and_ties_keep_the_lowest_index():
    model = NETS["pool"]()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[7] = 5.0
        model[0].weight[3] = -3.0
        model[0].weight[0] = 0.5
    kept = kept_channels(model, torch.zeros(1, 3, 12, 12), {"0": 0.6})
    assert kept["0"].tolist() == [1, 2, 3, 7]
    assert kept["4"].tolist() == list(range(16))


def test_shapes_class_and_mode_after_surgery():
    model = models.build("vgg_lite").train()
    small = shrink(model, torch.zeros(1, 3, 32, 32), 0.4)
    assert type(small) is type(model)
    assert small.training
    convolutions = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    # 32, 64 and 128 channels, 60 % of them rounded to a multiple of 4.
    assert [m.out_channels for m in convolutions] == [20, 20, 40, 40, 76, 76, 76]
    assert [m.in_channels for m in convolutions] == [3, 20, 20, 40, 40, 76, 76]
    assert [tuple(m.weight.shape[:2]) for m in convolutions] == [
        (m.out_channels, m.in_channels) for m in convolutions
    ]
    assert [m.num_features for m in small.modules() if isinstance(m, nn.BatchNorm2d)] == [
        20,
        20,
        40,
        40,
        76,
        76,
        76,
    ]
    assert small.linear.in_features == 76
    assert all(p.requires_grad and p.is_leaf for p in small.parameters())
    small(torch.randn(2, 3, 32, 32)).sum().backward()


def test_the_original_is_not_changed():
    model = models.build("vgg_lite", width=0.25)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = shrink(model, torch.zeros(1, 3, 16, 16), 0.5)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_ratio_zero_changes_nothing():
    model = models.build("vgg_lite", width=0.25)
    small = shrink(model, torch.zeros(1, 3, 16, 16), 0.0)
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in model.state_dict().items())


def test_at_least_one_multiple_stays():
    small = shrink(NETS["pool"](), torch.zeros(1, 3, 12, 12), 0.99)
    assert [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)] == [4, 4, 4]


class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(self.conv(x)))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2_tiny"])
def test_networks_that_are_no_chain_are_refused(name):
    with pytest.raises(UsageError, match="come with the pruning release"):
        shrink(models.build(name), torch.zeros(1, 3, 32, 32), 0.5)


def test_a_layer_that_runs_twice_is_refused():
    with pytest.raises(UsageError, match="runs once"):
        shrink(SharedConvolution(), torch.zeros(1, 4, 8, 8), 0.5)


def test_a_batch_norm_of_flattened_features_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 2))
    with pytest.raises(UsageError, match="batch norm of flattened"):
        shrink(model, torch.zeros(1, 3, 8, 8), {"0": 0.5})


def test_an_unknown_layer_is_named():
    with pytest.raises(UnknownNameError, match=r"features\.0\.conv"):
        shrink(models.build("vgg_lite"), torch.zeros(1, 3, 32, 32), {"features.0.cnv": 0.5})


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(UsageError, match="0 <= ratio < 1"):
        shrink(NETS["pool"](), torch.zeros(1, 3, 12, 12), ratio)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.floats(0, 1))
def test_the_mask_removes_exactly_the_smallest(values, sparsity):
    tensor = torch.tensor(values, dtype=torch.float32)
    mask = fine_grained_prune(tensor, sparsity)
    removed = round(sparsity * len(values))
    order = sorted(range(len(values)), key=lambda i: (abs(values[i]), i))  # ties: the lower index goes first
    assert mask.dtype == torch.bool
    assert sorted(order[:removed]) == [i for i in range(len(values)) if not mask[i]]


def test_the_mask_has_the_shape_of_the_tensor():
    assert fine_grained_prune(torch.randn(4, 3, 2, 2), 0.5).shape == (4, 3, 2, 2)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(UsageError, match="between 0 and 1"):
        fine_grained_prune(torch.ones(4), sparsity)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(UsageError, match="not finite"):
        fine_grained_prune(torch.tensor([1.0, float("nan")]), 0.5)
