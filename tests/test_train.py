"""The training loop learns, resumes bit for bit, and refuses what cannot work."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyml_edu import models, train
from tinyml_edu.data.dataset import Dataset, to_tensor
from tinyml_edu.errors import DataError, UsageError

CONFIG = train.TrainConfig(
    epochs=4, batch_size=16, learning_rate=0.05, flip=True, shift=1, progress=False, precision="float32"
)


def stripes(n: int, seed: int, *, shuffled: bool = False) -> Dataset:
    """Return noisy 8×8 images whose bright half, upper or lower, is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.integers(0, 120, (n, 8, 8, 3)).astype(np.uint8)
    for image, label in zip(x, y):
        image[4 * label : 4 * label + 4] += 80
    if shuffled:
        y = rng.permutation(y)
    return Dataset("stripes", "train", x, y.astype(np.int64), ("upper", "lower"))


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 2),
    )


TRAIN, VALIDATION = stripes(96, 1), stripes(64, 2)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def without_seconds(history: train.History) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in history.epochs]


class InterruptError(Exception):
    pass


def interrupt_after(steps: int):
    """Return an ``after_step`` that raises on its ``steps``-th call."""
    counter = itertools.count(1)

    def hook(model: nn.Module) -> None:
        if next(counter) == steps:
            raise InterruptError

    return hook


def test_a_separable_task_is_learnt_and_shuffled_labels_are_not():
    config = replace(CONFIG, epochs=8)
    model, control = tiny(), tiny()
    train.fit(model, TRAIN, VALIDATION, config)
    train.fit(control, stripes(96, 1, shuffled=True), VALIDATION, config)
    assert train.evaluate(model, VALIDATION) == 1.0
    assert train.evaluate(control, VALIDATION) < 0.9


VARIANTS = {
    "sgd": CONFIG,
    "adamw": replace(CONFIG, optimizer="adamw", learning_rate=0.01, schedule="cosine"),
    "average": replace(CONFIG, ema=0.9, label_smoothing=0.1),
    "best": replace(CONFIG, keep="best", schedule_unit="epoch"),
    "best average": replace(CONFIG, keep="best", ema=0.9),
    "bf16": replace(CONFIG, precision="bf16"),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("steps", [7, 15])  # in the second and in the third epoch of six steps
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(config, steps, tmp_path):
    whole, resumed = tiny(), tiny()
    expected = train.fit(whole, TRAIN, VALIDATION, config)
    path = tmp_path / "run.safetensors"
    with pytest.raises(InterruptError):
        train.fit(resumed, TRAIN, VALIDATION, config, checkpoint=path, after_step=interrupt_after(steps))
    # A new process has neither the weights nor the position in torch's random stream.
    resumed = tiny(seed=99)
    history = train.fit(resumed, TRAIN, VALIDATION, config, checkpoint=path)
    assert equal(whole, resumed)
    assert without_seconds(history) == without_seconds(expected)
    assert history.best_epoch == expected.best_epoch


def test_the_comparison_sees_a_lost_momentum(tmp_path):
    from tinyml_edu import _checkpoints

    whole, resumed = tiny(), tiny()
    train.fit(whole, TRAIN, VALIDATION, CONFIG)
    path = tmp_path / "run.safetensors"
    with pytest.raises(InterruptError):
        train.fit(resumed, TRAIN, VALIDATION, CONFIG, checkpoint=path, after_step=interrupt_after(15))
    tensors, state = _checkpoints.load(path)
    lost = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
    assert len(lost) < len(tensors)
    _checkpoints.save(path, lost, state)
    train.fit(resumed, TRAIN, VALIDATION, CONFIG, checkpoint=path)
    assert not equal(whole, resumed)


def test_a_finished_run_called_again_only_loads(tmp_path):
    path = tmp_path / "run.safetensors"
    first, again = tiny(), tiny(5)
    train.fit(first, TRAIN, VALIDATION, CONFIG, checkpoint=path)
    train.fit(again, TRAIN, VALIDATION, CONFIG, checkpoint=path, after_step=interrupt_after(1))
    assert equal(first, again)


@pytest.mark.parametrize("other", [replace(CONFIG, seed=1), replace(CONFIG, epochs=5)])
def test_a_checkpoint_of_another_run_is_refused(other, tmp_path):
    path = tmp_path / "run.safetensors"
    train.fit(tiny(), TRAIN, VALIDATION, CONFIG, checkpoint=path)
    with pytest.raises(DataError, match="belongs to another run"):
        train.fit(tiny(), TRAIN, VALIDATION, other, checkpoint=path)


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_truncated_checkpoint_is_refused_in_one_line(keep, tmp_path):
    path = tmp_path / "run.safetensors"
    train.fit(tiny(), TRAIN, VALIDATION, replace(CONFIG, epochs=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="corrupt or not one of ours") as caught:
        train.fit(tiny(), TRAIN, VALIDATION, replace(CONFIG, epochs=1), checkpoint=path)
    assert "\n" not in str(caught.value)


def test_nothing_but_the_checkpoint_is_left_in_its_folder(tmp_path):
    train.fit(tiny(), TRAIN, VALIDATION, CONFIG, checkpoint=tmp_path / "deep" / "run.safetensors")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["run.safetensors"]


def test_the_caller_keeps_his_random_stream_and_threads():
    model = tiny()
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train.fit(model, TRAIN, VALIDATION, replace(CONFIG, epochs=1, threads=threads + 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_the_model_ends_on_the_processor_contiguous_and_in_evaluation_mode():
    model = tiny()
    train.fit(model, TRAIN, VALIDATION, CONFIG)
    assert not model.training
    assert all(p.device.type == "cpu" and p.is_contiguous() for p in model.parameters())


def test_a_custom_loss_sees_the_batch_and_its_rows():
    x_all, y_all = to_tensor(TRAIN.x), torch.from_numpy(TRAIN.y)
    seen = []

    def loss(logits, x, y, indices):
        assert torch.equal(x, x_all[indices])
        assert torch.equal(y, y_all[indices])
        seen.append(indices)
        return F.cross_entropy(logits, y)

    config = replace(CONFIG, epochs=1, flip=False, shift=0)
    custom, standard = tiny(), tiny()
    train.fit(custom, TRAIN, VALIDATION, config, loss=loss)
    train.fit(standard, TRAIN, VALIDATION, config)
    assert equal(custom, standard)
    assert sorted(torch.cat(seen).tolist()) == list(range(96))


def test_a_mask_set_after_each_step_holds():
    def mask(model):
        with torch.no_grad():
            model[0].weight[:4] = 0

    model = tiny()
    train.fit(model, TRAIN, VALIDATION, CONFIG, after_step=mask)
    assert not model[0].weight[:4].any()
    assert model[0].weight[4:].all()


def test_keep_best_ends_with_the_weights_of_the_best_epoch():
    model = tiny()
    config = replace(CONFIG, keep="best", epochs=6, learning_rate=0.4, schedule="constant")
    history = train.fit(model, TRAIN, VALIDATION, config)
    accuracies = [row["validation_accuracy"] for row in history.epochs]
    assert history.best_epoch == 1 + int(np.argmax(accuracies))
    assert train.evaluate(model, VALIDATION) == max(accuracies)


def test_the_average_equals_its_recurrence():
    """One epoch of six steps: the kept weights are the averages of those after each step."""
    model, seen = tiny(), []
    start = model[0].weight.detach().clone()
    config = replace(CONFIG, epochs=1, ema=0.9)
    train.fit(
        model, TRAIN, VALIDATION, config, after_step=lambda m: seen.append(m[0].weight.detach().clone())
    )
    expected = start
    for step, weight in enumerate(seen):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    # Six float32 updates of values below 1 round by at most 6 * 2**-24 each; 4 operations an update.
    assert (model[0].weight - expected).abs().max() <= 24 * 2**-24
    assert not torch.equal(model[0].weight, seen[-1])


def all_versions(image: np.ndarray, shift: int, *, flip: bool) -> set[bytes]:
    """Return every shifted, and mirrored, version of an image (H, W, C), by torch's own padding."""
    versions = set()
    for candidate in (image, image[:, ::-1]) if flip else (image,):
        x = to_tensor(candidate[None])
        padded = F.pad(x, [shift] * 4, mode="reflect") if shift else x
        for dy, dx in itertools.product(range(2 * shift + 1), repeat=2):
            window = padded[..., dy : dy + image.shape[0], dx : dx + image.shape[1]]
            versions.add(window.contiguous().numpy().tobytes())
    return versions


@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 0), (False, 1), (True, 2)])
def test_augmentation_draws_every_shift_and_mirror_and_nothing_else(flip, shift, rng):
    image = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    x = torch.from_numpy(image)[None]
    generator = torch.Generator().manual_seed(0)
    batch = train.augment(x, torch.zeros(2000, dtype=torch.long), flip=flip, shift=shift, generator=generator)
    assert batch.shape == (2000, 3, 6, 5)
    drawn = {row.contiguous().numpy().tobytes() for row in batch}
    # The rarest of 50 versions has probability 1/50; the chance that 2000 draws miss one is below 1e-15.
    assert drawn == all_versions(image, shift, flip=flip)


def test_letters_are_not_mirrored_unless_asked(rng):
    image = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    mirrored = to_tensor(image[None, :, ::-1]).numpy().tobytes()
    assert mirrored not in all_versions(image, 1, flip=False)
    assert not train.TrainConfig().flip


def test_one_cycle_rises_to_the_peak_and_falls_to_almost_nothing():
    config = replace(CONFIG, epochs=10, learning_rate=1.0, warmup=0.2)
    rates = [train.learning_rate_at(config, s, 10) for s in range(100)]
    assert rates[:20] == pytest.approx([(s + 1) / 20 for s in range(20)])
    assert rates[20] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert 0 < rates[-1] < 1e-3


def test_a_schedule_counted_in_epochs_is_constant_within_an_epoch():
    config = replace(CONFIG, epochs=4, schedule="cosine", schedule_unit="epoch", learning_rate=1.0)
    rates = [train.learning_rate_at(config, s, 3) for s in range(12)]
    assert rates == pytest.approx(np.repeat([1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5], 3).tolist())
    assert train.learning_rate_at(replace(config, schedule="constant"), 11, 3) == 1.0


def test_only_matrices_and_kernels_decay():
    model = tiny()
    groups = train.state.make_optimizer(model, CONFIG).param_groups
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decaying == {id(model[0].weight), id(model[6].weight)}


def test_evaluation_equals_counting_by_hand_and_keeps_the_mode():
    model = tiny().train()
    accuracy = train.evaluate(model, VALIDATION, batch_size=7)
    assert model.training
    with torch.no_grad():
        predicted = model.eval()(to_tensor(VALIDATION.x)).argmax(1).numpy()
    assert accuracy == (predicted == VALIDATION.y).sum() / 64


def test_read_only_and_mirrored_views_are_accepted():
    frozen = VALIDATION.x.copy()
    frozen.flags.writeable = False
    model = tiny().eval()
    assert torch.equal(train.predict_logits(model, frozen), train.predict_logits(model, VALIDATION.x))
    mirrored = train.predict_logits(model, VALIDATION.x[:, :, ::-1])
    assert torch.equal(mirrored, train.predict_logits(model, VALIDATION.x[:, :, ::-1].copy()))


def test_no_examples_are_refused():
    with pytest.raises(UsageError, match="no examples to evaluate"):
        train.predict_logits(tiny(), VALIDATION.x[:0])


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(UsageError, match="fewer than one batch of 16"):
        train.fit(tiny(), TRAIN.take(slice(0, 15)), VALIDATION, CONFIG)


def test_a_diverging_run_stops_and_says_so():
    def explode(logits, x, y, indices):
        return logits.sum() * float("inf")

    with pytest.raises(UsageError, match="not finite in epoch 1; lower learning_rate"):
        train.fit(tiny(), TRAIN, VALIDATION, CONFIG, loss=explode)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch_size": 1}, {"ema": 1.0}, {"learning_rate": 0.0}, {"shift": -1}]
)
def test_an_impossible_configuration_is_refused(bad):
    with pytest.raises(UsageError, match="training needs"):
        train.TrainConfig(**bad)


def test_progress_is_one_line_an_epoch_on_stdout(capsys):
    train.fit(tiny(), TRAIN, VALIDATION, replace(CONFIG, progress=True))
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 4
    assert "epoch   4/4" in printed.out
    assert printed.err == ""


@pytest.mark.gpu
def test_a_gpu_is_used_where_there_is_one():
    model = tiny()
    history = train.fit(model, TRAIN, VALIDATION, replace(CONFIG, epochs=8, device="auto"))
    assert history.device.startswith("cuda")
    assert train.evaluate(model, VALIDATION) == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_an_absent_gpu_is_refused():
    with pytest.raises(UsageError, match="no usable GPU"):
        train.fit(tiny(), TRAIN, VALIDATION, replace(CONFIG, device="cuda"))


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write .*; choose another folder"):
        train.fit(tiny(), TRAIN, VALIDATION, CONFIG, checkpoint=tmp_path / "file" / "run.safetensors")


def test_evaluation_leaves_a_frozen_batch_norm_frozen():
    model = models.build("vgg_lite", classes=2, width=0.125).train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    train.predict_logits(model, np.zeros((2, 32, 32, 3), np.uint8))
    assert not frozen.training
    assert sum(m.training for m in model.modules()) == len(list(model.modules())) - 1
