"""Reordering channels for N:M: the function stays, the order moves in writers and readers, more is kept."""

import copy

import pytest
import torch
from surgery_cases import integers, with_integers
from test_structured import NETS
from torch import nn

from tinyml_edu.pruning import prunable_weights, reorder_for_n_m
from tinyml_edu.pruning.n_m import n_m_mask


def kept_magnitude(model: nn.Module) -> float:
    """Return the sum of |w| that 2:4 keeps over all layers but the first, whose inputs are the colours."""
    magnitudes = [w.detach().abs() for w in prunable_weights(model).values()][1:]
    return sum(float((w * n_m_mask(w)).sum()) for w in magnitudes)


@pytest.mark.parametrize("name", ["pool", "flatten", "resnet8", "mobilenet_v2_tiny", "ds_cnn"])
def test_the_function_stays_exactly_and_two_of_four_keep_more(name):
    make, image, terms = NETS[name]
    torch.manual_seed(0)
    model, x = with_integers(make(), 0, terms), integers(2, *image)
    with torch.no_grad():  # more magnitudes, still exact
        for weight in prunable_weights(model).values():
            weight.mul_(torch.tensor([0.5, 1.0, 2.0])[torch.randint(3, weight.shape)])
    reordered = reorder_for_n_m(model, x)
    with torch.no_grad():
        assert torch.equal(reordered(x), model(x))
    assert kept_magnitude(reordered) > kept_magnitude(model)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(reordered.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_the_equality_sees_a_reader_that_was_left_behind():
    make, image, terms = NETS["pool"]
    torch.manual_seed(0)
    model, x = with_integers(make(), 0, terms), integers(2, *image)
    reordered = reorder_for_n_m(model, x)
    defect = copy.deepcopy(reordered)
    defect[4].weight.data = model[4].weight.data  # the second convolution keeps the old order of its inputs
    with torch.no_grad():
        assert torch.equal(reordered(x), model(x))
        assert not torch.equal(defect(x), model(x))


def test_a_crafted_layer_reaches_the_best_order():
    # The three large inputs share a group of four: 2:4 loses one of them until one moves to the other group.
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([4.0, 4, 4, 0, 0, 0, 4, 0]).reshape(1, 8, 1, 1))
    assert kept_magnitude(model) == 12
    assert kept_magnitude(reorder_for_n_m(model, torch.zeros(1, 3, 4, 4))) == 16


def test_a_grouped_convolution_keeps_its_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1)).eval()
    reordered = reorder_for_n_m(model, torch.zeros(1, 3, 4, 4))
    for name, value in model.state_dict().items():
        assert torch.equal(reordered.state_dict()[name], value), name
