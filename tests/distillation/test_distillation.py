"""The distillation loss against its formula, its gradient against two closed forms, and the loop."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from tinyml_edu import distillation, train
from tinyml_edu.data.dataset import Dataset
from tinyml_edu.distillation import kd_loss
from tinyml_edu.errors import UsageError

LOGITS = arrays(np.float64, (3, 5), elements=st.floats(-20, 20))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@given(LOGITS, LOGITS, st.floats(0.5, 20))
def test_the_loss_is_the_formula(s, t, temperature):
    p, q = softmax(t / temperature), softmax(s / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum() / len(s)
    got = float(kd_loss(torch.from_numpy(s), torch.from_numpy(t), temperature))
    # Terms of size T² · |log p| are summed in float64.
    scale = temperature**2 * (1 + np.abs(np.log(p)).max() + np.abs(np.log(q)).max())
    assert abs(got - expected) <= 64 * np.finfo(float).eps * scale


@given(LOGITS, st.floats(-3, 3), st.floats(0.5, 20))
def test_equal_probabilities_cost_nothing_and_others_cost_something(t, shift, temperature):
    teacher = torch.from_numpy(t)
    rounding = 64 * np.finfo(float).eps * temperature**2 * (1 + 40 / temperature)
    assert abs(float(kd_loss(teacher + shift, teacher, temperature))) <= rounding
    student = teacher.clone()
    student[0, 0] += 1.0
    p = softmax(t / temperature)[0, 0]
    if p * (1 - p) > 1e-6:
        assert float(kd_loss(student, teacher, temperature)) > rounding


def gradient(loss, s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    s = s.clone().requires_grad_()
    loss(s, t, temperature).backward()
    return s.grad


def without_the_factor(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    return kd_loss(s, t, temperature) / temperature**2


def closed_form(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T (softmax(s / T) - softmax(t / T)) / n, Hinton et al. eq. (2) times T²."""
    difference = F.softmax(s / temperature, 1) - F.softmax(t / temperature, 1)
    return temperature * difference / len(s)


def random_logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(4, 6, generator=g, dtype=torch.float64) * 3 for _ in range(2))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0, 30.0])
def test_the_gradient_is_its_closed_form(temperature):
    s, t = random_logits(0)
    error = (gradient(kd_loss, s, t, temperature) - closed_form(s, t, temperature)).abs().max()
    assert error < 1e-14 * temperature * 10


def test_the_closed_form_sees_the_factor_left_out():
    s, t = random_logits(0)
    error = (gradient(without_the_factor, s, t, 4.0) - closed_form(s, t, 4.0)).abs().max()
    assert error > 0.01


def logit_matching_error(loss, temperature: float) -> tuple[float, float]:
    """Return the distance of the gradient to that of logit matching, and the bound of the Taylor expansion.

    With d = z / T the second derivative of softmax along d is p_i ((d_i - mean)² - var), at most 4 |d|² p_i,
    and p_i <= exp(2 |d|) / C.  So T softmax(z / T) = T / C + (z - mean z) / C up to
    2 |z|² exp(2 |z| / T) / (T C).
    """
    s, t = (z - z.mean(1, keepdim=True) for z in random_logits(1))
    n, classes = s.shape
    matching = (s - t) / (n * classes)  # eq. (4): the gradient of mean((s - t)²) / 2 over all logits
    size = [float(z.abs().max()) for z in (s, t)]
    bound = sum(2 * z**2 * np.exp(2 * z / temperature) / (temperature * classes * n) for z in size)
    return float((gradient(loss, s, t, temperature) - matching).abs().max()), bound


@pytest.mark.parametrize("temperature", [100.0, 1e3, 1e5])
def test_at_high_temperature_the_gradient_is_that_of_logit_matching(temperature):
    error, bound = logit_matching_error(kd_loss, temperature)
    assert error <= bound


def test_logit_matching_sees_the_factor_left_out():
    error, bound = logit_matching_error(without_the_factor, 1e3)
    assert error > bound


def test_no_gradient_reaches_the_teacher():
    s, t = (z.requires_grad_() for z in random_logits(2))
    kd_loss(s, t, 2.0).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


def test_bad_arguments_are_usage_errors():
    s, t = random_logits(0)
    with pytest.raises(UsageError, match="must be positive"):
        kd_loss(s, t, 0.0)
    with pytest.raises(UsageError, match="the same classes"):
        kd_loss(s, t[:, :5], 1.0)


def network(channels: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * channels, 3),
    )


@pytest.fixture(scope="module")
def stripes() -> Dataset:
    """Three classes of noisy 6×6 images: rows, columns, plain."""
    rng = np.random.default_rng(0)
    y = np.arange(192) % 3
    pattern = np.zeros((3, 6, 6, 1))
    pattern[0, ::2], pattern[1, :, ::2] = 1, 1
    x = pattern[y] + rng.normal(scale=0.3, size=(192, 6, 6, 1))
    return Dataset("stripes", "train", x.astype(np.float32), y, ("rows", "columns", "plain"))


def config(**changes) -> train.TrainConfig:
    given = {"epochs": 3, "batch_size": 32, "learning_rate": 0.02, "precision": "float32", "device": "cpu"}
    return train.TrainConfig(**(given | {"progress": False} | changes))


@pytest.mark.parametrize("shift", [0, 1])
def test_the_teacher_stays_as_it_is(stripes, shift):
    teacher, student = network(4, 0).train(), network(2, 1)
    before = copy.deepcopy(teacher.state_dict())
    distillation.fit(student, teacher, stripes, stripes, config(shift=shift))
    assert teacher.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_the_student_comes_closer_to_the_teacher(stripes):
    teacher, student = network(8, 0), network(2, 1)
    train.fit(teacher, stripes, stripes, config(epochs=5))

    def distance() -> float:
        logits = [train.predict_logits(model, stripes.x) for model in (student, teacher)]
        return float(kd_loss(*logits, temperature=4.0))

    before = distance()
    distillation.fit(student, teacher, stripes, stripes, config(), alpha=1.0)
    assert distance() < before / 2


def test_alpha_zero_is_plain_training_bit_for_bit(stripes):
    plain, distilled = network(2, 1), network(2, 1)
    train.fit(plain, stripes, stripes, config(label_smoothing=0.1))
    distillation.fit(distilled, network(4, 0), stripes, stripes, config(label_smoothing=0.1), alpha=0.0)
    assert all(torch.equal(v, distilled.state_dict()[k]) for k, v in plain.state_dict().items())


def test_looked_up_and_computed_logits_agree(stripes):
    teacher = network(4, 0)
    x = torch.from_numpy(stripes.x).permute(0, 3, 1, 2)
    rows = torch.tensor([5, 0, 191, 7])
    cached = distillation._teacher(teacher, stripes, augmented=False)(x[rows], rows)
    computed = distillation._teacher(teacher, stripes, augmented=True)(x[rows], rows)
    # 16 features of 9 products: sums of at most 64 float32 terms below 10, in batches of another size.
    assert (cached - computed).abs().max() < 64 * 10 * np.finfo(np.float32).eps
    assert not cached.requires_grad
    assert not computed.requires_grad


def test_a_teacher_of_other_classes_is_refused(stripes):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with pytest.raises(UsageError, match="the same classes"):
        distillation.fit(network(2, 1), teacher, stripes, stripes, config())


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_out_of_range_is_refused(stripes, alpha):
    with pytest.raises(UsageError, match="alpha"):
        distillation.fit(network(2, 1), network(4, 0), stripes, stripes, config(), alpha=alpha)
