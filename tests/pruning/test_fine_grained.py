"""The mask removes exactly the smallest weights, and training does not bring them back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import train
from tinyml_edu.data.dataset import Dataset
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.pruning import FineGrainedPruner, fine_grained_prune
from tinyml_edu.train import TrainConfig


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


def glyphs(n, seed=0):
    g = np.random.default_rng(seed)
    x = g.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return Dataset("noise", "train", x, g.integers(0, 3, n), ("a", "b", "c"))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


CONFIG = TrainConfig(
    epochs=2, batch_size=16, learning_rate=0.1, precision="float32", device="cpu", progress=False
)


def test_masks_survive_the_optimizer_through_the_hook_of_the_training_loop():
    model, data = small(), glyphs(64)
    pruner = FineGrainedPruner(model, {"0.weight": 0.5, "4.weight": 0.9})
    pruner.apply()
    start = model[4].weight.detach().clone()
    train.fit(model, data, data, CONFIG, after_step=pruner.after_step)
    for name, mask in pruner.masks.items():
        weight = model.get_parameter(name)
        assert (weight[~mask] == 0).all(), name
    assert (model[4].weight != start)[pruner.masks["4.weight"]].any(), "nothing was trained"


def test_without_the_hook_the_optimizer_revives_removed_weights():
    model, data = small(), glyphs(64)
    pruner = FineGrainedPruner(model, 0.5)
    pruner.apply()
    train.fit(model, data, data, CONFIG)
    assert any((model.get_parameter(name)[~mask] != 0).any() for name, mask in pruner.masks.items())


def test_each_weight_gets_its_own_sparsity_and_the_others_stay_whole():
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruner = FineGrainedPruner(model, {"4.weight": 0.25})
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    pruner.apply()
    assert pruner.sparsity_by_weight() == {"4.weight": 162 / 648}
    assert torch.equal(model[4].weight, before["4.weight"] * pruner.masks["4.weight"])
    assert torch.equal(model[0].weight, before["0.weight"])


def test_one_number_prunes_each_weight_by_itself_not_all_together():
    model = small()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)  # one rank over both would take the whole convolution
    pruner = FineGrainedPruner(model, 0.5)
    assert pruner.sparsity_by_weight() == {"0.weight": 0.5, "4.weight": 0.5}


def test_an_unknown_weight_is_named():
    with pytest.raises(UnknownNameError, match=r"4\.weight"):
        FineGrainedPruner(small(), {"4.weigth": 0.5})
