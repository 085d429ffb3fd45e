"""A shrunk network computes what the whole one computes with the removed channels at zero, bit for bit."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from random_networks import Branches, random_network
from surgery_cases import agrees, integers, with_integers, zeroed
from torch import nn

from tinyml_edu import ir, mcu, models, profile
from tinyml_edu._torchvision import load
from tinyml_edu.errors import UnknownNameError, UnsupportedOpError, UsageError
from tinyml_edu.pruning import kept_channels, shrink, surgery
from tinyml_edu.pruning.dependency import channel_groups


def chain(last_pool: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3), nn.ReLU6(), nn.Dropout(),
        nn.Conv2d(16, 8, (1, 2)), nn.BatchNorm2d(8), nn.ReLU(), last_pool, nn.Flatten(),
        nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip


def vgg11() -> nn.Module:
    """Return torchvision's VGG11 with a classifier of 64 instead of 4096 features."""
    with torch.device("meta"):
        model = load().models.vgg11(num_classes=10)
        model.classifier[0] = nn.Linear(512 * 7 * 7, 64)
        model.classifier[3] = nn.Linear(64, 64)
        model.classifier[6] = nn.Linear(64, 10)
    return model.to_empty(device="cpu")


# name -> (network, image, terms in a filter: enough that outputs depend on the input, few enough to be exact)
NETS = {
    "pool": (lambda: chain(nn.AdaptiveAvgPool2d(1), 8), (3, 12, 14), 20),
    "flatten": (lambda: chain(nn.Identity(), 8 * 2 * 3), (3, 8, 12), 20),
    "vgg_lite": (lambda: models.build("vgg_lite", width=0.25), (3, 16, 16), 6),
    "resnet8": (lambda: models.build("resnet8"), (3, 32, 32), 6),
    "mobilenet_v2_tiny": (lambda: models.build("mobilenet_v2_tiny", width=0.5), (3, 32, 32), 8),
    "ds_cnn": (lambda: models.build("ds_cnn", in_channels=3, width=0.5), (3, 32, 32), 4),
    "resnet18": (lambda: load().models.resnet18(num_classes=10), (3, 64, 64), 4),
    "mobilenet_v2": (lambda: load().models.mobilenet_v2(num_classes=10), (3, 64, 64), 8),
    "vgg11": (vgg11, (3, 64, 64), 4),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    make, image, terms = NETS[name]
    torch.manual_seed(seed)
    return with_integers(make(), seed, terms), integers(2, *image, seed=seed)


@pytest.mark.parametrize("name", NETS)
def test_the_shrunk_network_equals_the_zeroed_one(name):
    model, x = build(name)
    kept = kept_channels(model, x, 0.5)
    small = shrink(model, x, 0.5)
    assert type(small) is type(model)
    assert all(len(keep) < len(model.get_submodule(path).weight) for path, keep in kept.items())
    assert agrees(small, model, kept, x)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    network=st.integers(0, 10**6),
    ratio=st.floats(0, 0.95),
    seed=st.integers(0, 99),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_random_networks_shrink_to_what_the_zeroed_ones_compute(network, ratio, seed, multiple):
    model = with_integers(random_network(network), seed, 12)
    x = integers(3, 3, 8, 8, seed=seed)
    choice = {"criterion": "random", "seed": seed, "multiple": multiple}
    kept = kept_channels(model, x, ratio, **choice)
    expected = zeroed(model, kept, x)
    assume((expected != expected[:1]).any())  # a cut this deep may leave constants
    assert agrees(shrink(model, x, ratio, **choice), model, kept, x)


def first_norm_cut_by_position(small, model, kept):
    path = next(name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    norm, whole = small.get_submodule(path), model.get_submodule(path)
    norm.weight.data = whole.weight.data[: norm.num_features].clone()
    norm.running_mean.data = whole.running_mean.data[: norm.num_features].clone()


def first_norm_uncut(small, model, kept):
    path = next(name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    parent, _, leaf = path.rpartition(".")
    setattr(small.get_submodule(parent), leaf, copy.deepcopy(model.get_submodule(path)))


def reader_cut_by_position(small, model, kept):
    reader = small.get_submodule("features.1.first.conv")
    reader.weight.data = (
        model.get_submodule("features.1.first.conv")
        .weight.data[kept["features.1.first.conv"], : reader.in_channels]
        .clone()
    )


def reader_cut_on_the_wrong_axis(small, model, kept):
    whole = model.get_submodule("features.1.first.conv").weight.data
    small.get_submodule("features.1.first.conv").weight.data = whole[: len(kept["features.0.conv"])].clone()


def partner_uncut(small, model, kept):
    small.features[1].second = copy.deepcopy(model.features[1].second)
    conv = small.features[1].second.conv
    conv.weight.data = conv.weight.data[:, kept["features.1.first.conv"]].clone()
    conv.in_channels = len(kept["features.1.first.conv"])


def partner_cut_by_position(small, model, kept):
    partner_uncut(small, model, kept)
    block, width = small.features[1].second, len(kept["features.0.conv"])
    surgery.keep_outputs(block.conv, torch.arange(width))
    surgery.keep_outputs(block.bn, torch.arange(width))


@pytest.mark.parametrize(
    "defect",
    [
        first_norm_cut_by_position, first_norm_uncut, reader_cut_by_position, reader_cut_on_the_wrong_axis,
        partner_uncut, partner_cut_by_position,
    ],
)  # fmt: skip
def test_the_equality_sees_a_wrong_cut(defect):
    model, x = build("resnet8", seed=2)
    kept = kept_channels(model, x, 0.5)
    small = shrink(model, x, 0.5)
    assert agrees(small, model, kept, x)
    defect(small, model, kept)
    assert not agrees(small, model, kept, x)


def test_the_equality_sees_features_cut_pixel_by_pixel():
    model, x = build("flatten")
    kept = kept_channels(model, x, 0.5)
    small = shrink(model, x, 0.5)
    assert agrees(small, model, kept, x)
    by_pixel = model[12].weight.data[kept["12"]].reshape(len(kept["12"]), -1, 8)  # as if stored H W C
    small[12].weight.data = by_pixel[:, :, kept["7"]].flatten(1)
    assert not agrees(small, model, kept, x)


def test_a_residual_stage_is_one_group():
    groups = [group.layers for group in channel_groups(models.build("resnet8"), torch.zeros(1, 3, 32, 32))]
    assert groups == [
        ("features.0.conv", "features.1.second.conv"),
        ("features.1.first.conv",),
        ("features.2.first.conv",),
        ("features.2.second.conv", "features.2.shortcut.conv"),
        ("features.3.first.conv",),
        ("features.3.second.conv", "features.3.shortcut.conv"),
    ]


def test_a_sum_with_a_concatenation_splits_into_the_parts_that_must_agree():
    parts = Branches(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1), "cat")
    model = nn.Sequential(Branches(parts, nn.Conv2d(3, 12, 1), "add"), nn.Conv2d(12, 2, 1))
    groups = channel_groups(model, torch.zeros(1, 3, 8, 8))
    assert [group.layers for group in groups] == [
        ("0.first.first", "0.second"),
        ("0.first.second", "0.second"),
    ]
    assert groups[1].members["0.second"].ravel().tolist() == list(range(4, 12))


def test_a_grouped_convolution_loses_the_same_positions_of_each_group():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=4), nn.Conv2d(32, 2, 1))
    small = shrink(model, torch.zeros(1, 3, 8, 8), 0.5)
    assert small[1].groups == 4
    assert small[1].weight.shape == (16, 2, 3, 3)
    kept = kept_channels(model, torch.zeros(1, 3, 8, 8), 0.5)["1"].reshape(4, 4)
    assert torch.equal(kept - kept[:1], torch.arange(0, 32, 8)[:, None].expand(4, 4))


def test_the_importance_of_a_unit_is_the_sum_over_the_filters_that_write_it():
    model = nn.Sequential(
        Branches(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False), "add"), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[0].first.weight.copy_(torch.tensor([4.0, 1.0, 2.0, 0.0]).reshape(4, 1, 1, 1).expand(4, 3, 1, 1))
        model[0].second.weight.copy_(
            torch.tensor([0.0, 4.0, 1.0, 2.5]).reshape(4, 1, 1, 1).expand(4, 3, 1, 1)
        )
    kept = kept_channels(model, torch.zeros(1, 3, 8, 8), 0.5, multiple=1)
    assert {path: keep.tolist() for path, keep in kept.items()} == {"0.first": [0, 1], "0.second": [0, 1]}


def test_a_criterion_may_be_a_function_and_may_score_what_is_read():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 5))

    def by_writer(model, batches, *, seed):
        return {"0.weight": torch.arange(8.0).reshape(8, 1, 1, 1)}

    def by_reader(model, batches, *, seed):
        return {"3.weight": -torch.arange(32.0).reshape(1, 32)}  # features of channel c: 4c to 4c + 3

    x = torch.zeros(1, 3, 2, 2)
    assert kept_channels(model, x, 0.5, criterion=by_writer)["0"].tolist() == [4, 5, 6, 7]
    assert kept_channels(model, x, 0.5, criterion=by_reader)["0"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "apoz", "random", "reconstruction"])
def test_every_kind_of_criterion_ranks_the_channels_of_a_residual_network(criterion):
    torch.manual_seed(0)
    model = models.build("resnet8", width=0.5).eval()
    batches = [(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]))]
    small = shrink(model, batches[0][0], 0.5, criterion=criterion, batches=batches)
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    # 8, 16 and 32 channels, half of them
    assert widths == [4, 4, 4, 8, 8, 8, 16, 16, 16]


def test_ratios_by_layer_cut_the_group_of_the_layer_and_no_other():
    model = models.build("resnet8")
    small = shrink(model, torch.zeros(1, 3, 32, 32), {"features.1.second.conv": 0.5})
    widths = {path: m.out_channels for path, m in small.named_modules() if isinstance(m, nn.Conv2d)}
    before = {path: m.out_channels for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {path for path in widths if widths[path] != before[path]} == {
        "features.0.conv",
        "features.1.second.conv",
    }
    assert widths["features.0.conv"] == 8


def test_two_ratios_for_one_group_are_refused():
    ratios = {"features.0.conv": 0.25, "features.1.second.conv": 0.5}
    with pytest.raises(UsageError, match="share their channels"):
        shrink(models.build("resnet8"), torch.zeros(1, 3, 32, 32), ratios)


def test_outputs_stay_whole_on_every_path_to_them():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            y = self.stem(x)
            return y, self.head(y)

    assert channel_groups(TwoHeads(), torch.zeros(1, 3, 4, 4)) == ()


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2_tiny"])
def test_the_result_captures_profiles_and_quantizes(name):
    from tinyml_edu.quantization import quantize

    torch.manual_seed(0)
    model = models.build(name, width=0.5).eval()
    x = torch.randn(8, 3, 32, 32)
    small = shrink(model, x, 0.5)
    whole, cut = (profile.profile(m, x[:1]) for m in (model, small))
    assert cut.macs < 0.5 * whole.macs
    assert cut.parameters < 0.5 * whole.parameters
    graph = mcu.capture(small, x[:1])
    assert graph[graph.inputs[0]].shape == (1, 32, 32, 3)
    codes = quantize(graph, calibration=x.permute(0, 2, 3, 1).numpy()).predict(x.permute(0, 2, 3, 1).numpy())
    assert np.asarray(codes).shape == (8, 10)


@pytest.mark.c
def test_the_result_runs_on_a_board_as_in_numpy(tmp_path, rng):
    from tinyml_edu.quantization import quantize

    torch.manual_seed(0)
    whole = models.build("resnet8", width=0.5).eval()
    images = rng.uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    bytes_of = []
    for model in (whole, shrink(whole, x, 0.5)):
        graph = quantize(mcu.capture(model, x[:1]), calibration=images).graph
        codes = rng.integers(-128, 128, (2, 16, 16, 3)).astype(np.int8)
        made = mcu.deploy(graph, "stm32f412", tmp_path / f"net{len(bytes_of)}")
        for target in ("host", "emulate"):
            outputs = made.run(codes, target=target).outputs
            np.testing.assert_array_equal(outputs.reshape(2, -1), ir.run(graph, codes).reshape(2, -1))
        bytes_of.append(sum(t.nbytes for t in graph.constants()))
    assert bytes_of[1] < 0.5 * bytes_of[0]


def test_the_channels_kept_have_the_largest_l1_norm_and_ties_keep_the_lowest_index():
    model = NETS["pool"][0]()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[7] = 5.0
        model[0].weight[3] = -3.0
        model[0].weight[0] = 0.5
    kept = kept_channels(model, torch.zeros(1, 3, 12, 14), {"0": 0.6})
    assert kept["0"].tolist() == [1, 2, 3, 7]
    assert kept["4"].tolist() == list(range(16))


def test_shapes_and_mode_after_surgery():
    model = models.build("vgg_lite").train()
    small = shrink(model, torch.zeros(1, 3, 32, 32), 0.4)
    assert small.training
    convolutions = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    # 32, 64 and 128 channels, 60 % of them rounded to a multiple of 4
    widths = [20, 20, 40, 40, 76, 76, 76]
    assert [m.out_channels for m in convolutions] == widths
    assert [m.in_channels for m in convolutions] == [3, *widths[:-1]]
    assert [tuple(m.weight.shape[:2]) for m in convolutions] == [
        (m.out_channels, m.in_channels) for m in convolutions
    ]
    assert [m.num_features for m in small.modules() if isinstance(m, nn.BatchNorm2d)] == widths
    assert small.linear.in_features == 76
    assert all(p.requires_grad and p.is_leaf for p in small.parameters())
    small(torch.randn(2, 3, 32, 32)).sum().backward()


def test_the_original_is_not_changed():
    model = models.build("resnet8", width=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = shrink(model, torch.zeros(1, 3, 16, 16), 0.5)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_ratio_zero_changes_nothing():
    model = models.build("mobilenet_v2_tiny", width=0.25)
    small = shrink(model, torch.zeros(1, 3, 16, 16), 0.0)
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in model.state_dict().items())


def test_at_least_one_multiple_stays():
    small = shrink(NETS["pool"][0](), torch.zeros(1, 3, 12, 14), 0.99)
    assert [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)] == [4, 4, 4]


def test_a_softmax_inside_the_network_keeps_its_channels():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax(1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    assert [group.layers for group in channel_groups(model, torch.zeros(1, 3, 4, 4))] == [("2",)]


class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(self.conv(x)))


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).view(-1, 8 * 16))


def test_a_layer_that_runs_twice_is_refused():
    with pytest.raises(UsageError, match="runs once"):
        shrink(SharedConvolution(), torch.zeros(1, 4, 8, 8), 0.5)


def test_a_number_of_channels_in_the_forward_pass_is_refused():
    with pytest.raises(UsageError, match="fixes a number of channels"):
        shrink(FixedView(), torch.zeros(2, 3, 4, 4), 0.5)


def test_an_operation_without_a_rule_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 2, 1))
    with pytest.raises(UnsupportedOpError, match="pixel_shuffle"):
        shrink(model, torch.zeros(1, 3, 4, 4), 0.5)


def test_an_unknown_layer_is_named():
    with pytest.raises(UnknownNameError, match=r"features\.0\.conv"):
        shrink(models.build("vgg_lite"), torch.zeros(1, 3, 32, 32), {"features.0.cnv": 0.5})


def test_an_unknown_criterion_is_named():
    with pytest.raises(UnknownNameError, match="taylor"):
        shrink(NETS["pool"][0](), torch.zeros(1, 3, 12, 14), 0.5, criterion="tailor")


def test_scores_that_are_not_finite_or_missing_are_refused():
    model = NETS["pool"][0]()
    with torch.no_grad():
        model[0].weight[2, 0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match="no finite score"):
        shrink(model, torch.zeros(1, 3, 12, 14), 0.5)
    with pytest.raises(UsageError, match="no finite score"):
        shrink(NETS["pool"][0](), torch.zeros(1, 3, 12, 14), 0.5, criterion=lambda *_, **__: {})


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(UsageError, match="0 <= ratio < 1"):
        shrink(NETS["pool"][0](), torch.zeros(1, 3, 12, 14), ratio)
