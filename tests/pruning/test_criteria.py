"""Each criterion against the definition of its paper, computed another way.

Networks are small and in float64, so that a Hessian by `torch.func` is affordable.  Two ways to compute one
number then differ by rounding only: ``TOLERANCE`` is 2**-53 times 10**6 operations, relative to the largest.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from tinyml_edu import models
from tinyml_edu.errors import UsageError
from tinyml_edu.pruning import criteria
from tinyml_edu.pruning.activation_criteria import (
    activation_entropy,
    apoz,
    channel_contributions,
    least_squares_scales,
    reconstruction,
)
from tinyml_edu.pruning.fine_grained import prunable_weights
from tinyml_edu.pruning.masking import CRITERIA

TOLERANCE = 1e-10


def network(activation=nn.ReLU) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), activation(), nn.AvgPool2d(2),
        nn.Conv2d(4, 3, 3, bias=False), activation(), nn.Flatten(), nn.Linear(12, 4),
    ).double()  # fmt: skip
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model


def data(sizes=(5, 3)):
    g = torch.Generator().manual_seed(2)
    return [
        (torch.randn(n, 2, 8, 8, generator=g).double(), torch.randint(4, (n,), generator=g)) for n in sizes
    ]


def mean_loss(model, values, batches):
    """Cross-entropy over all examples as a function of the weights ``values``."""
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    return F.cross_entropy(functional_call(model.eval(), values, (x,)), y)


def full_hessian(model, batches):
    """Weights and gradient (P,) and Hessian (P, P) over all prunable weights, in their order."""
    weights = {name: w.detach() for name, w in prunable_weights(model).items()}
    flat = torch.cat([w.flatten() for w in weights.values()])

    def loss(vector):
        parts = vector.split([w.numel() for w in weights.values()])
        values = {name: part.view_as(weights[name]) for name, part in zip(weights, parts)}
        return mean_loss(model, values, batches)

    return flat, torch.func.grad(loss)(flat), hessian(loss)(flat)


def flatten(scores):
    return torch.cat([score.flatten() for score in scores.values()])


def assert_same(found, expected):
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, float(error)


def test_obd_is_half_the_exact_hessian_diagonal_times_the_squared_weight():
    model, batches = network(), data()
    w, _, h = full_hessian(model, batches)
    assert_same(flatten(criteria.obd(model, batches)), h.diagonal() * w**2 / 2)


def test_obd_is_an_approximation_where_the_activation_is_curved():
    model, batches = network(nn.Tanh), data()
    w, _, h = full_hessian(model, batches)
    expected = h.diagonal() * w**2 / 2
    assert (flatten(criteria.obd(model, batches)) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_grasp_is_weight_times_hessian_times_gradient():
    model, batches = network(nn.Tanh), data()
    w, g, h = full_hessian(model, batches)
    assert_same(flatten(criteria.grasp(model, batches)), w * (h @ g))


def test_grasp_keeps_what_adds_to_the_gradient_flow():
    model, batches = network(nn.Tanh), data()
    w, g, h = full_hessian(model, batches)
    removed = -1e-4 * w  # the gradient flow after shrinking each weight a little, to first order
    by_one = 2 * removed * (h @ g)
    assert_same(-by_one / 2e-4, flatten(criteria.grasp(model, batches)))
    i = int(flatten(criteria.grasp(model, batches)).argmax())
    assert by_one[i] < 0, "removing the weight with the highest score must lower the flow"


def test_snip_is_the_normalised_slope_of_a_gate():
    model, batches = network(), data()
    weights = {name: w.detach() for name, w in prunable_weights(model).items()}

    def gated(gates):
        return mean_loss(model, {name: gates[name] * w for name, w in weights.items()}, batches)

    slopes = torch.func.grad(gated)({name: torch.ones_like(w) for name, w in weights.items()})
    expected = flatten(slopes).abs()
    assert_same(flatten(criteria.snip(model, batches)), expected / expected.sum())


def test_taylor_averages_the_square_over_batches():
    model, batches = network(), data()
    expected = 0
    for batch in batches:
        w, g, _ = full_hessian(model, [batch])
        expected = expected + (w * g) ** 2 / len(batches)
    assert_same(flatten(criteria.taylor(model, batches)), expected)
    _, g, _ = full_hessian(model, batches)
    assert (expected - (w * g) ** 2).abs().max() > 1e-3 * expected.max(), "the square of the mean is another"


def test_synflow_holds_the_same_total_in_every_layer_of_a_chain():
    model = models.build("vgg_lite", width=0.25)
    scores = criteria.synflow(model, [(torch.zeros(1, 3, 32, 32), torch.zeros(1))])
    totals = torch.stack([score.sum() for score in scores.values()])
    assert totals[0] > 0
    assert_same(totals, totals[:1].expand_as(totals))
    shares = torch.stack([score.sum() for score in criteria.l1(model).values()])
    assert shares.max() > 1.1 * shares.min(), "magnitudes are not conserved: the check can fail"


def test_synflow_is_the_sum_of_the_paths_through_a_weight():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        model[2].weight.copy_(torch.tensor([[-5.0, 6.0]]))
    scores = criteria.synflow(model, [(torch.randn(3, 2), torch.zeros(3))])
    assert scores["0.weight"].tolist() == [[5.0, 10.0], [18.0, 24.0]]
    assert scores["2.weight"].tolist() == [[15.0, 42.0]]


def test_l1_and_l2_rank_filters_differently():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [2.0, -2.0]]))
    assert criteria.l1(layer)["weight"].sum(1).tolist() == [3.0, 4.0]
    assert criteria.l2(layer)["weight"].sum(1).tolist() == [9.0, 8.0]


def test_random_scores_depend_on_the_seed_alone():
    a, b, c = (flatten(criteria.random(network(), seed=s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_apoz_counts_the_positive_activations():
    model, batches = network(), data()
    model.eval()
    x = torch.cat([x for x, _ in batches])
    expected = (model[:3](x) > 0).double().mean((0, 2, 3))
    assert torch.equal(apoz(model, batches)["0.weight"].flatten(), expected)
    assert apoz(model, batches)["0.weight"].shape == (4, 1, 1, 1)
    before_norm = (model[:1](x) > 0).double().mean((0, 2, 3))
    assert not torch.equal(expected, before_norm), "the batch norm matters, so the check can fail"


def test_apoz_survives_an_activation_that_works_in_place():
    model = network()
    expected = apoz(model, data())
    model[2] = nn.ReLU(inplace=True)
    assert all(torch.equal(score, expected[name]) for name, score in apoz(model, data()).items())


def test_the_entropy_of_a_channel_counts_its_histogram():
    layer = nn.Conv2d(1, 3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0.0, 7.0]).reshape(3, 1, 1, 1))
    x = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1, 1)
    scores = activation_entropy(nn.Sequential(layer), [(x, x)], bins=7)["0.weight"].flatten()
    # Range 0 to 7: channel 0 is in bins 0, 0, 1, 1; channel 1 always in 0; channel 2 in 0, 0, 6, 6.
    assert scores.tolist() == pytest.approx([math.log(2), 0.0, math.log(2)], abs=1e-15)
    coarse = activation_entropy(nn.Sequential(layer), [(x, x)], bins=2)["0.weight"].flatten()
    # Two bins over the layer's range: channel 0 never leaves the lower one.
    assert coarse.tolist() == pytest.approx([0.0, 0.0, math.log(2)], abs=1e-15)


def test_contributions_of_the_channels_add_up_to_outputs():
    model, batches = network(), data((6,))
    parts = channel_contributions(model, batches, samples=200)
    x = batches[0][0]
    model.eval()
    with torch.no_grad():
        outputs = {
            "0.weight": model[0](x) - model[0].bias[:, None, None],
            "4.weight": model[:5](x),
            "7.weight": model(x) - model[7].bias,
        }
    for name, value in outputs.items():
        nearest = (parts[name].sum(1)[:, None] - value.flatten()).abs().min(1).values
        assert nearest.max() <= TOLERANCE * value.abs().max(), name
        assert parts[name].shape == (200, model.get_parameter(name).shape[1])


def test_reconstruction_removes_first_what_loses_least_with_those_already_gone():
    model, batches = network(), data()
    parts = channel_contributions(model, batches, seed=3)["4.weight"]  # (samples, 4)
    removed: list[int] = []
    for _ in range(4):
        loss = {j: float(parts[:, [*removed, j]].sum(1).square().sum()) for j in range(4) if j not in removed}
        removed.append(min(loss, key=loss.__getitem__))
    scores = reconstruction(model, batches, seed=3)["4.weight"]
    assert scores.shape == (1, 4, 1, 1)
    assert scores.flatten().argsort().tolist() == removed


def test_the_greedy_search_sees_channels_that_cancel_where_magnitude_does_not():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0, -5.0]]))
    g = torch.Generator().manual_seed(0)
    shared, other = torch.randn(50, 1, generator=g).sign(), torch.randn(50, 1, generator=g).sign()
    x = torch.cat([shared, other, shared], 1)
    model = nn.Sequential(layer)
    scores = reconstruction(model, [(x, x)])["0.weight"].flatten()
    # Alone the squared losses are 9, 16 and 25; with channel 0 gone, 2 loses (3 - 5)² = 4 in all.
    assert scores.tolist() == [0, 2, 1]
    parts = channel_contributions(model, [(x, x)])["0.weight"]
    assert parts.square().mean(0).tolist() == [9.0, 16.0, 25.0]


def test_least_squares_scales_restore_a_channel_that_is_a_copy():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 30, 1, generator=g, dtype=torch.float64)
    parts = torch.cat([a, 3 * a, b], 1)
    scales = least_squares_scales(parts, torch.tensor([True, False, True]))
    assert scales.tolist() == pytest.approx([4.0, 0.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("training", [True, False])
def test_a_criterion_scores_every_weight_and_leaves_the_model_alone(name, training):
    model = network().train(training)
    model[3].train(not training)  # modes of submodules may differ
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    scores = CRITERIA[name](model, data(), seed=1)
    for key, weight in prunable_weights(model).items():
        assert torch.isfinite(scores[key]).all()
        scores[key].expand(weight.shape)
        assert not scores[key].requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[4].weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"l1", "l2", "random"}))
def test_a_criterion_that_needs_data_says_so(name):
    with pytest.raises(UsageError, match="needs data"):
        CRITERIA[name](network(), [])


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2_tiny"])
def test_channel_criteria_follow_residual_and_depthwise_networks(name):
    model = models.build(name, width=0.5)
    batches = [(torch.randn(4, 3, 32, 32), torch.zeros(4).long())]
    for criterion in (apoz, activation_entropy):
        for key, weight in prunable_weights(model).items():
            assert criterion(model, batches)[key].shape == (len(weight), *[1] * (weight.dim() - 1))
    grouped = {
        f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1
    }
    assert set(prunable_weights(model)) - set(reconstruction(model, batches)) == grouped
