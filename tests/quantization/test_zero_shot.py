"""Inputs made from batch norms alone bring the recorded statistics back, and ranges near the real ones."""

import numpy as np
import pytest
import torch
from torch import nn

from tinyml_edu import data, mcu, zoo
from tinyml_edu.data.dataset import to_tensor
from tinyml_edu.errors import UsageError
from tinyml_edu.quantization import calibrate, zero_shot_calibration
from tinyml_edu.quantization.zero_shot import mismatch, statistics_error


def recorded(mean: list[float], std: list[float]) -> nn.Sequential:
    """Return a batch norm on the input itself, which recorded ``mean`` and ``std`` of each channel."""
    norm = nn.BatchNorm2d(len(mean))
    norm.running_mean.copy_(torch.tensor(mean))
    norm.running_var.copy_(torch.tensor(std) ** 2)
    return nn.Sequential(norm)


def test_the_made_inputs_have_the_recorded_mean_and_deviation():
    """Oracle: with the batch norm on the input, the statistics can be read off the inputs themselves."""
    mean, std = [0.3, -0.5, 0.0], [0.2, 0.05, 1.5]
    x = zero_shot_calibration(recorded(mean, std), (3, 4, 4), 16, iterations=400, bounds=None)
    assert x.shape == (16, 3, 4, 4)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.mean((0, 2, 3)), mean, atol=0.01)
    np.testing.assert_allclose(x.std((0, 2, 3)), std, atol=0.01)
    # The control: noise of variance 1 is nowhere near.
    noise = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert statistics_error(recorded(mean, std), noise) > 1000 * statistics_error(recorded(mean, std), x)


def test_the_loss_is_that_of_the_definition():
    z = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(1)) * 2 + 1
    model = recorded([0.5, -1.0], [2.0, 0.1])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    wanted = ((mean - torch.tensor([0.5, -1.0])) ** 2).mean() + ((std - torch.tensor([2.0, 0.1])) ** 2).mean()
    assert float(mismatch(model[0], z)) == pytest.approx(float(wanted), rel=1e-3)  # eps = 1e-5 in the root
    both = nn.Sequential(model[0], nn.Identity(), recorded([0.0, 0.0], [1.0, 1.0])[0])
    with torch.no_grad():
        second = float(mismatch(both[2], both[0].eval()(z)))
    assert statistics_error(both, z) == pytest.approx(float(wanted) + second, rel=1e-3)


def test_bounds_hold():
    model = recorded([0.9, 0.0], [2.0, 0.1])
    for low, high in ((-1.0, 1.0), (0.0, 0.5)):
        x = zero_shot_calibration(model, (2, 4, 4), 8, iterations=20, bounds=(low, high))
        assert low == x.min()
        assert x.max() == high
    assert zero_shot_calibration(model, (2, 4, 4), 8, iterations=20, bounds=None).max() > 1


def test_features_work_as_images_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())
    nn.init.orthogonal_(model[0].weight)  # every statistic can be reached, none far away
    model[1].running_mean.copy_(torch.tensor([1.0, 0.0, -1.0, 2.0]))
    x = zero_shot_calibration(model, (5,), 32, iterations=300, bounds=None)
    assert statistics_error(model, x) < 0.01 < statistics_error(model, torch.randn(32, 5))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout()
    )


def test_the_model_is_left_as_it_was():
    model = small_model()
    model[1].eval()  # one layer is frozen, the others train
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    zero_shot_calibration(model, (3, 6, 6), 4, iterations=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_hooks_go_also_after_a_failure():
    model = small_model()
    with pytest.raises(UsageError, match=r"does not take \(4, 5, 6, 6\)"):
        zero_shot_calibration(model, (5, 6, 6), 4, iterations=3)
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_the_seed_decides():
    model = small_model()
    first, again, other = (
        zero_shot_calibration(model, (3, 6, 6), 4, iterations=5, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_wrong_arguments_are_refused():
    model = small_model()
    for arguments in (((3, 6, 6), 1), ((3, 0, 6), 4), ((), 4)):
        with pytest.raises(UsageError, match="zero_shot_calibration needs n >= 2"):
            zero_shot_calibration(model, *arguments)
    with pytest.raises(UsageError, match="bounds must be"):
        zero_shot_calibration(model, (3, 6, 6), 4, bounds=(1.0, 1.0))
    for bare in (nn.Sequential(nn.Linear(2, 2)), nn.BatchNorm2d(3, track_running_stats=False)):
        with pytest.raises(UsageError, match="no batch norm with running statistics"):
            zero_shot_calibration(bare, (3, 6, 6), 4)


@pytest.mark.slow
def test_ranges_come_closer_to_those_of_real_images_than_with_noise():
    model, _ = zoo.load("vgg_lite.glyphs32")
    real = to_tensor(data.load("glyphs32", "train", size=16).x)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    made = zero_shot_calibration(model, (3, 32, 32), 16, iterations=40)
    graph = mcu.capture(model, real)
    ranges = [calibrate(graph, x) for x in (real, made, noise)]

    def distance(found) -> float:
        """Mean over activations of |log| of the ratio of the ranges."""
        widths = [
            (high - low, ranges[0][name][1] - ranges[0][name][0]) for name, (low, high) in found.items()
        ]
        return float(np.mean([abs(np.log(a / b)) for a, b in widths]))

    assert distance(ranges[1]) < distance(ranges[2]) / 2
    assert statistics_error(model, made) < statistics_error(model, noise) / 50
