"""`prune` joins criterion, granularity, ratios and schedule, and counts what it removed."""

import itertools

import pytest
import torch
from torch import nn

from tinyml_edu import data, train, zoo
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.pruning import PruneConfig, criteria, prune
from tinyml_edu.pruning.fine_grained import prunable_weights
from tinyml_edu.pruning.granularity import GRANULARITIES
from tinyml_edu.pruning.masking import CRITERIA
from tinyml_edu.pruning.ratios import global_masks

CHANNEL_CRITERIA = {"apoz": "channel", "activation_entropy": "channel", "reconstruction": "input_channel"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def batches():
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 2, 4, 4, generator=g), torch.randint(4, (6,), generator=g))]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_masks_are_those_of_the_criterion_and_the_granularity(criterion):
    granularity = CHANNEL_CRITERIA.get(criterion, "kernel")
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = prune(model, PruneConfig(criterion, granularity, 0.5, seed=3), batches=batches())
    scores = CRITERIA[criterion](model, batches(), seed=3)
    expected = {"channel": 2, "input_channel": 2}.get(granularity, 3)
    assert len(result.masks) == expected
    for name, mask in result.masks.items():
        weight = model.get_parameter(name)
        assert torch.equal(mask, GRANULARITIES[granularity](scores[name].expand(weight.shape), 0.5)), name
        assert torch.equal(result.model.get_parameter(name), weight * mask), name
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the model was changed"


def test_the_counts_are_those_of_the_zeros():
    result = prune(network(), PruneConfig(sparsity={"0.weight": 0.5, "6.weight": 0.25}))
    zeros = {name: int((w == 0).sum()) for name, w in prunable_weights(result.model).items()}
    assert zeros == {"0.weight": 72, "3.weight": 0, "6.weight": 32}
    assert result.removed_weights == 104
    assert result.prunable_weights == 144 + 576 + 128
    assert result.sparsity == 104 / 848
    assert result.sparsity_by_weight == {"0.weight": 0.5, "6.weight": 0.25}


def test_a_global_rank_goes_over_all_weights():
    model = network()
    result = prune(model, PruneConfig(criterion="snip", sparsity=0.7, ratios="global"), batches=batches())
    expected = global_masks(criteria.snip(model, batches()), 0.7)
    assert all(torch.equal(mask, expected[name]) for name, mask in result.masks.items())
    assert result.removed_weights == round(0.7 * 848)
    assert len(set(result.sparsity_by_weight.values())) == 3


@pytest.mark.parametrize(
    ("granularity", "ratios"),
    [("element", "global"), *((name, "given") for name in GRANULARITIES if name != "pattern")],
)
def test_steps_only_ever_remove_more_and_training_cannot_bring_weights_back(granularity, ratios):
    zeros: list[dict[str, torch.Tensor]] = []

    def shake(model, after_step):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        after_step(model)
        zeros.append({name: w == 0 for name, w in prunable_weights(model).items()})

    config = PruneConfig("grasp", granularity, 0.5, ratios, schedule="iterative", steps=3)
    result = prune(network(), config, batches=batches(), train=shake)
    for earlier, later in itertools.pairwise(zeros):
        for name, gone in earlier.items():
            assert not (gone & ~later[name]).any(), name
    assert zeros[0]["3.weight"].sum() < zeros[-1]["3.weight"].sum()
    for name, mask in result.masks.items():
        assert torch.equal(~mask, zeros[-1][name])


def test_the_hook_of_the_result_puts_removed_weights_back_to_zero():
    result = prune(network(), PruneConfig(sparsity=0.5))
    with torch.no_grad():
        result.model[3].weight.add_(1.0)
    assert (result.model[3].weight[~result.masks["3.weight"]] != 0).all()
    result.after_step(result.model)
    assert (result.model[3].weight[~result.masks["3.weight"]] == 0).all()


def test_channels_spare_the_classes_and_the_colours():
    assert set(prune(network(), PruneConfig(granularity="channel")).masks) == {"0.weight", "3.weight"}
    assert set(prune(network(), PruneConfig(granularity="input_channel")).masks) == {"3.weight", "6.weight"}
    assert set(prune(network(), PruneConfig(skip=("3.weight",))).masks) == {"0.weight", "6.weight"}


def test_the_result_keeps_the_mode_of_the_model():
    assert prune(network().eval()).model.training is False
    assert prune(network().train()).model.training is True


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"criterion": "L1"}, UnknownNameError),
        ({"granularity": "chanel"}, UnknownNameError),
        ({"schedule": "linear"}, UnknownNameError),
        ({"ratios": "globl"}, UnknownNameError),
        ({"criterion": "apoz"}, UsageError),
        ({"criterion": "reconstruction", "granularity": "channel"}, UsageError),
        ({"ratios": "global", "granularity": "kernel"}, UsageError),
        ({"ratios": "global", "sparsity": {"0.weight": 0.5}}, UsageError),
        ({"steps": 0}, UsageError),
        ({"steps": 2, "granularity": "pattern"}, UsageError),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, error):
    with pytest.raises(error):
        PruneConfig(**values)


@pytest.mark.parametrize("sparsity", [-0.5, 1.5, float("nan"), {"0.weight": 2.0}])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(UsageError, match="between 0 and 1"):
        prune(network(), PruneConfig(sparsity=sparsity))


@pytest.mark.parametrize("config", [{"sparsity": {"0.weigth": 0.5}}, {"skip": ("9.weight",)}])
def test_an_unknown_weight_is_named(config):
    with pytest.raises(UnknownNameError, match="weight"):
        prune(network(), PruneConfig(**config))


def test_magnitude_keeps_what_the_checkpoint_learned_and_random_masks_do_not():
    model, _ = zoo.load("vgg_lite.glyphs32")
    test = data.load("glyphs32", "test", size=200)
    dense = train.evaluate(model, test)
    by_criterion = {
        name: train.evaluate(prune(model, PruneConfig(name, sparsity=0.5, ratios="global")).model, test)
        for name in ("l1", "random")
    }
    # A difference of two accuracies over 200 images has a standard error of at most sqrt(1 / 400) = 0.05.
    assert by_criterion["l1"] > dense - 0.15
    assert by_criterion["random"] < dense - 0.3
