"""Ternary weights: the best scale for a threshold, the best threshold of all, and trained scales."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from tinyml_edu import data, train, zoo
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.quantization.low_bit_networks import ternarize_layers
from tinyml_edu.quantization.ternary import TTQ, TWN, twn


def squared_error(w, ternary):
    return float(((w.double() - ternary.dequantize().double()) ** 2).sum())


# Ternary weight networks -----------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 2**32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_codes_follow_the_threshold_and_the_scale_is_the_best_for_them(n, seed, exact):
    w = torch.from_numpy(np.random.default_rng(seed).standard_normal(n)).float()
    codes, scale, threshold = twn(w, exact=exact)
    assert torch.equal(codes, torch.where(w.abs() > threshold, w.sign(), torch.zeros(())).to(torch.int8))
    # The least squares solution for fixed codes: <w, codes> / <codes, codes>.
    wanted = float((w.double() * codes).sum() / (codes.double() ** 2).sum())
    assert float(scale) == pytest.approx(wanted, rel=1e-5)
    if not exact:
        assert float(threshold) == pytest.approx(0.7 * float(w.double().abs().mean()), rel=1e-5)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=7), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_exact_threshold_is_the_best_of_all_codes(values, seed):
    """Brute force over every ternary pattern, each with its own best scale; equal magnitudes included."""
    noise = np.random.default_rng(seed).choice([0.0, 0.25], len(values))
    w = torch.tensor(np.array(values) + noise)
    best = float((w**2).sum())  # all codes 0
    for codes in itertools.product((-1, 0, 1), repeat=len(w)):
        if any(codes):
            t = torch.tensor(codes, dtype=torch.float64)
            scale = max(float(w @ t) / float(t @ t), 0.0)
            best = min(best, float(((w - scale * t) ** 2).sum()))
    assert squared_error(w, twn(w, exact=True)) == pytest.approx(best, abs=1e-5)


def test_the_papers_threshold_is_near_the_best_and_half_of_it_is_not():
    # Evenly spaced quantiles stand for the distribution.  Uniform on [0, a]: S_k^2 / k is largest where the
    # threshold is a / 3, that is 2/3 of the mean; 0.7 of the mean is 0.35 a.
    w = torch.linspace(-1, 1, 20_001)
    exact, paper = twn(w, exact=True), twn(w)
    assert float(exact.threshold) == pytest.approx(1 / 3, abs=1e-4)
    assert float(paper.threshold) == pytest.approx(0.35, abs=1e-4)
    quantiles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    normal = torch.distributions.Normal(0.0, 1.0).icdf(quantiles).float()
    for values in (w, normal):
        best = squared_error(values, twn(values, exact=True))
        assert best <= squared_error(values, twn(values)) <= 1.01 * best
        magnitude = values.abs()
        half = magnitude > 0.35 * magnitude.mean()
        scale = magnitude[half].mean()
        assert float(((magnitude - scale * half) ** 2).sum()) > 1.1 * best  # the control


def test_each_channel_has_its_own_threshold():
    w = torch.tensor([[1.0, 2.0, -3.0], [10.0, 4.0, 0.1]])[:, :, None, None]
    codes, scale, threshold = twn(w, per_channel=True)
    assert scale.shape == threshold.shape == (2, 1, 1, 1)
    for i in range(2):
        alone = twn(w[i])
        assert torch.equal(codes[i], alone.codes)
        assert float(scale[i]) == float(alone.scale)
    assert not torch.equal(codes, twn(w).codes)


def test_zeros_stay_zeros_and_bad_weights_are_refused():
    for exact in (False, True):
        zeros = twn(torch.zeros(2, 3), exact=exact)
        assert zeros.dequantize().tolist() == [[0, 0, 0], [0, 0, 0]]
    for bad in (torch.zeros(0), torch.tensor([1.0, float("inf")])):
        with pytest.raises(UsageError, match="not finite"):
            twn(bad)
        with pytest.raises(UsageError, match="not finite"):
            TTQ(bad)
    with pytest.raises(UsageError, match="share of the largest"):
        TTQ(torch.ones(2), threshold=1.0)


def test_a_weight_under_twn_gets_the_gradient_of_its_ternary_form():
    layer = parametrize.register_parametrization(nn.Linear(6, 2, bias=False), "weight", TWN())
    real = layer.parametrizations.weight.original
    g = torch.arange(12.0).reshape(2, 6)
    (layer.weight * g).sum().backward()
    assert torch.equal(real.grad, g)
    assert torch.allclose(layer.weight, twn(real).dequantize(), rtol=1e-6)


# Trained ternary quantization ------------------------------------------------------------------------------


def test_gradients_of_ttq_are_those_of_the_paper():
    w = torch.tensor([1.0, 0.5, 0.04, 0.0, -0.05, -0.2, -0.9], dtype=torch.float64, requires_grad=True)
    module = TTQ(w).double()
    assert (module.positive.item(), module.negative.item()) == pytest.approx((0.75, 0.55))
    positive, negative = 3.0, 7.0
    module.positive.data.fill_(positive)
    module.negative.data.fill_(negative)
    y = module(w)
    assert y.tolist() == [3, 3, 0, 0, 0, -7, -7]  # -0.05 is on the threshold, not beyond it
    g = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], dtype=torch.float64)
    (y * g).sum().backward()
    assert float(module.positive.grad) == 1 + 2  # eq. (7)
    assert float(module.negative.grad) == -(32 + 64)
    assert w.grad.tolist() == [3 * 1, 3 * 2, 4, 8, 16, 7 * 32, 7 * 64]  # eq. (8)


def test_gradients_of_the_scales_are_true_derivatives():
    """The output is linear in both scales, so that a difference quotient is exact up to rounding."""
    w = torch.randn(50, generator=torch.Generator().manual_seed(3)).double()
    module, g = TTQ(w).double(), torch.linspace(-1, 2, 50).double()

    def loss():
        return (module(w) * g).sum()

    loss().backward()
    for scale in (module.positive, module.negative):
        before, gradient = loss().item(), scale.grad.item()
        scale.data += 1
        assert loss().item() - before == pytest.approx(gradient, rel=1e-12)
        assert loss().item() - before != pytest.approx(-gradient)  # the control: without the sign of W_n
        scale.data -= 1


def test_scales_train_and_a_plain_layer_remains():
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(64, 16)
    target = x @ torch.where(torch.rand(16, 8) < 0.5, 0.8, -0.3)
    parametrize.register_parametrization(layer, "weight", TTQ(layer.weight))
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = ((layer(x) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    ttq = layer.parametrizations.weight[0]
    assert losses[-1] < 0.1 * losses[0]
    assert ttq.positive.item() == pytest.approx(0.8, abs=0.1)
    assert ttq.negative.item() == pytest.approx(0.3, abs=0.1)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear
    assert len(layer.weight.unique()) <= 3


# Networks --------------------------------------------------------------------------------------------------


def test_first_and_last_layer_stay_real():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    for method in ("twn", "ttq"):
        made = ternarize_layers(net, method=method)
        assert [parametrize.is_parametrized(m) for m in made] == [False, True, False, False]
        assert len(made[1].weight.unique()) == 3
        assert not parametrize.is_parametrized(net[1])
    with pytest.raises(UnknownNameError, match="ternary method"):
        ternarize_layers(net, method="tnt")


@pytest.mark.parametrize("method", ["twn", "ttq"])
def test_one_epoch_of_training_beats_ternarization_afterwards(method):
    model, _ = zoo.load("resnet8.glyphs32")
    images, held_out = (data.load("glyphs32", s, size=n) for s, n in (("train", 2000), ("test", 500)))
    ternary = ternarize_layers(model, method=method)
    after_training = train.evaluate(ternary, held_out)
    config = train.TrainConfig(
        epochs=1, batch_size=50, learning_rate=1e-3, optimizer="adamw", progress=False, device="cpu"
    )
    history = train.fit(ternary, images, held_out, config)
    assert after_training < 0.5  # ten letters: 0.1 is chance
    assert history.validation_accuracy > 0.7
