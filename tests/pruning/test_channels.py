"""Channels of a chain: the first ones kept, sorting as a permutation that leaves the outputs alone."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from surgery_cases import agrees, integers, with_integers
from torch import nn

from tinyml_edu import models
from tinyml_edu.errors import UsageError
from tinyml_edu.pruning import (
    apply_channel_sorting,
    channel_prune,
    get_input_channel_importance,
    get_num_channels_to_keep,
)


class OfficialVGG(nn.Module):
    """A flat ``backbone`` of convolution, batch norm, ReLU, as in the course's VGG."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate([(3, 8), (8, 12), (12, 10), (10, 6)]):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i == 1 else []
        self.backbone = nn.Sequential(*layers)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x):
        return self.classifier(self.backbone(x).mean([2, 3]))


NETS = {"backbone": OfficialVGG, "features": lambda: models.build("vgg_lite", width=0.25)}


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def exact(name: str, seed: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    return with_integers(NETS[name](), seed, 8), integers(2, 3, 16, 16, seed=seed)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 99), ratios=st.lists(st.floats(0, 0.9), min_size=6, max_size=6))
def test_the_first_channels_stay_and_the_rest_is_as_zero(name, seed, ratios):
    model, x = exact(name, seed)
    paths = list(convolutions(model))
    kept = {
        path: torch.arange(get_num_channels_to_keep(convolutions(model)[path].out_channels, ratio))
        for path, ratio in zip(paths[:-1], ratios)
    }
    try:
        assert agrees(channel_prune(model, ratios[: len(kept)]), model, kept, x)
    except AssertionError as error:
        if "do not depend" not in str(error):  # a cut this deep may leave constants
            raise


def test_one_ratio_stands_for_all():
    model, x = exact("backbone", 0)
    small, same = channel_prune(model, 0.3), channel_prune(model, [0.3, 0.3, 0.3])
    assert [m.out_channels for m in convolutions(small).values()] == [
        6,
        8,
        7,
        6,
    ]  # round(0.7 n), the last whole
    assert torch.equal(small(x), same(x))
    assert [m.out_channels for m in convolutions(model).values()] == [8, 12, 10, 6]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_sorting_changes_no_output_and_puts_the_important_first(name, seed):
    model, x = exact(name, seed)
    ordered = apply_channel_sorting(model)
    assert torch.equal(ordered(x), model(x))
    assert any(
        not torch.equal(a.weight, b.weight)
        for a, b in zip(convolutions(model).values(), convolutions(ordered).values())
    )
    for reader in list(convolutions(ordered).values())[1:]:
        importance = get_input_channel_importance(reader.weight)
        assert (importance[1:] <= importance[:-1]).all()


def test_sorting_without_the_batch_norm_changes_outputs():
    model, x = exact("backbone", 1)
    ordered = apply_channel_sorting(model)
    ordered.backbone[1].load_state_dict(model.backbone[1].state_dict())
    assert not torch.equal(ordered(x), model(x))


def test_sorting_keeps_a_smaller_error_than_the_first_channels():
    torch.manual_seed(0)
    model = models.build("vgg_lite", width=0.25).eval()
    with torch.no_grad():  # channels of unequal importance, the important ones last
        for conv in list(convolutions(model).values())[1:]:
            conv.weight.mul_(torch.linspace(0.01, 1, conv.in_channels).reshape(1, -1, 1, 1))
    x = torch.randn(8, 3, 16, 16)
    errors = [
        (channel_prune(net, 0.25)(x) - model(x)).norm().item()
        for net in (apply_channel_sorting(model), model)
    ]
    assert errors[0] < errors[1] / 2, errors


def test_the_importance_is_the_l2_norm_of_what_reads_the_channel():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = [
        sum(weight[o, c, y, x] ** 2 for o in range(5) for y in range(2) for x in range(2)) for c in range(3)
    ]
    # 20 squares, summed in two orders: each within 20 half steps of the exact sum
    torch.testing.assert_close(
        get_input_channel_importance(weight), torch.stack(by_hand).sqrt(), rtol=40 * 2**-53, atol=0
    )
    assert get_input_channel_importance(weight).shape == (3,)


def test_channels_to_keep_are_rounded_and_at_least_one():
    assert [get_num_channels_to_keep(*case) for case in [(64, 0.3), (10, 0.0), (3, 0.5), (4, 0.95)]] == [
        45,
        10,
        2,
        1,
    ]


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(UsageError, match="between 0 and 1"):
        channel_prune(OfficialVGG(), ratio)


def test_a_wrong_number_of_ratios_is_refused():
    with pytest.raises(UsageError, match="4 convolutions need 3 pruning ratios"):
        channel_prune(OfficialVGG(), [0.5] * 4)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2_tiny", "ds_cnn"])
def test_networks_that_are_no_chain_are_sent_to_shrink(name):
    for function in (apply_channel_sorting, lambda m: channel_prune(m, 0.5)):
        with pytest.raises(UsageError, match=r"pruning\.shrink"):
            function(models.build(name))
