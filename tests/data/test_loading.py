"""``data.load``: shapes, disjoint splits, the search order, and errors that say what to do."""

from __future__ import annotations

import functools
import io
import socket
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from tinyml_edu import data
from tinyml_edu.data import loading, store
from tinyml_edu.data.dataset import Dataset
from tinyml_edu.data.manifest import entries, entry
from tinyml_edu.errors import DataError, UnknownNameError, UsageError

REAL = [e.name for e in entries().values() if e.kind == "real"]
SPLITS = loading.SPLITS


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An empty data folder and an empty cache; no network."""
    monkeypatch.setenv("TINYML_EDU_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TINYML_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TINYML_EDU_OFFLINE", "1")
    return tmp_path


def images_of(dataset: Dataset) -> Counter[bytes]:
    return Counter(image.tobytes() for image in dataset.x)


@functools.cache
def real(name: str, split: str) -> Dataset:
    return data.load(name, split)


def small(name: str, split: str) -> Dataset:
    return data.load(name, split, **({"size": 40} if entry(name).kind == "made" else {}))


@pytest.mark.parametrize("name", ["digits", "glyphs32", "glyph_presence"])
@pytest.mark.parametrize("split", SPLITS)
def test_sets_without_download_have_the_shape_of_the_manifest(name, split, folders):
    found = small(name, split)
    assert found.x.dtype == np.uint8
    assert found.x.shape == (len(found), *entry(name).shape)
    assert found.y.dtype == np.int64
    assert set(found.y) <= set(range(len(found.classes)))
    assert (found.name, found.split) == (name, split)


@pytest.mark.parametrize("name", ["digits", "glyphs32", "glyph_presence"])
def test_no_image_is_in_two_splits(name, folders):
    train, validation, test = (images_of(small(name, split)) for split in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_the_sizes_of_the_manifest(name, data_dir):
    for split in SPLITS:
        found = real(name, split)
        assert found.x.shape == (entry(name).splits[split], *entry(name).shape)
        assert "reduced copy" in found.info["source"]
        assert set(found.y) == set(range(len(found.classes)))


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_train_and_validation_together_are_the_published_train_half(name, data_dir):
    """Multisets, because some of the published halves hold an image twice."""
    (published, labels), _, _ = loading._real(entry(name), "train")
    train, validation = real(name, "train"), real(name, "validation")
    assert images_of(train) + images_of(validation) == Counter(image.tobytes() for image in published)
    assert (np.bincount(train.y) + np.bincount(validation.y)).tolist() == np.bincount(labels).tolist()


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_validation_holds_a_tenth_of_each_class(name, data_dir):
    train, validation = real(name, "train"), real(name, "validation")
    for label in range(len(train.classes)):
        held, kept = (validation.y == label).sum(), (train.y == label).sum()
        assert held == round(0.1 * (held + kept)), label


def test_digits_are_scikit_learns(folders):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {
        (np.round(image * 15.9375).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target)
    }
    total = 0
    for split in SPLITS:
        digits = data.load("digits", split)
        total += len(digits)
        assert len(digits) == entry("digits").splits[split]
        assert {(image.tobytes(), int(label)) for image, label in zip(digits.x, digits.y)} <= known
    assert total == 1797


def test_two_calls_return_the_same_examples(folders):
    first, second = (data.load("digits", "validation") for _ in range(2))
    assert np.array_equal(first.x, second.x)
    assert np.array_equal(first.y, second.y)


@pytest.mark.parametrize("name", REAL)
def test_an_absent_set_names_the_embedded_stand_in(name, folders):
    with pytest.raises(
        DataError, match=rf"TINYML_EDU_OFFLINE is set.*data\.load\('{entry(name).stand_in}'\)"
    ) as caught:
        data.load(name)
    assert "\n" not in str(caught.value)
    assert entry(entry(name).stand_in).kind != "real"
    assert not [p for p in folders.rglob("*") if p.is_file()]


def test_offline_opens_no_connection(folders, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # An address instead of a name, so that the control reaches the connection without a name server.
    source = {"url": "http://127.0.0.1:9/cifar-10-python.tar.gz", "md5": "0" * 32}
    monkeypatch.setitem(entry("cifar10").originals, "cifar-10-python.tar.gz", source)
    with pytest.raises(DataError):
        data.load("cifar10")
    monkeypatch.setenv("TINYML_EDU_OFFLINE", "0")
    with pytest.raises(AssertionError, match="a connection was opened"):  # the control: the trap works
        data.load("cifar10")


def test_unknown_names_suggest_the_nearest(folders):
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        data.load("cifar11")
    with pytest.raises(UnknownNameError, match="unknown split 'val'"):
        data.load("digits", "val")


def test_parameters_are_only_for_made_sets(folders):
    with pytest.raises(UsageError, match="'digits' does not take size; its parameters are: none"):
        data.load("digits", size=10)
    with pytest.raises(UsageError, match="does not take hardness; its parameters are: classes, difficulty"):
        data.load("glyphs32", hardness=1)


@pytest.mark.parametrize(
    "bad", [{"size": "many"}, {"size": 2.5}, {"size": None}, {"difficulty": "../x"}, {"seed": float("inf")}]
)
def test_a_parameter_of_another_type_is_refused(bad, folders):
    with pytest.raises(UsageError, match=f"{next(iter(bad))} must be of type"):
        data.load("glyphs32", **bad)


def test_equal_numbers_of_another_type_are_the_same_set(folders):
    first = data.load("glyphs32", "test", size=10, difficulty=1)
    again = data.load("glyphs32", "test", size=np.int64(10), difficulty=np.float32(1))
    assert np.array_equal(first.x, again.x)
    assert len(list((folders / "cache").rglob("*.npz"))) == 1


def write_reduced(folder, monkeypatch, pixel: int) -> None:
    """Put a data set of two grey images a class, all pixels alike, where fashion_mnist belongs."""
    import hashlib

    y = np.repeat(np.arange(2, dtype=np.uint8), 20)
    x = np.full((40, 28, 28), pixel, np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, x_train=x, y_train=y, x_test=x[:4], y_test=y[:4], classes=np.array(["a", "b"]))
    path = folder / "fashion_mnist" / "fashion_mnist_20k_5k.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    monkeypatch.setitem(entry("fashion_mnist").files, "fashion_mnist/fashion_mnist_20k_5k.npz", digest)


def test_the_data_folder_comes_before_the_cache(folders, monkeypatch):
    write_reduced(folders / "cache", monkeypatch, pixel=1)
    assert data.load("fashion_mnist").x[0, 0, 0, 0] == 1
    write_reduced(folders / "data", monkeypatch, pixel=2)
    found = data.load("fashion_mnist")
    assert found.x[0, 0, 0, 0] == 2
    assert (len(found), found.classes) == (36, ("a", "b"))


def test_a_corrupt_file_is_refused_in_one_line(folders, monkeypatch):
    write_reduced(folders / "data", monkeypatch, pixel=3)
    path = next((folders / "data").rglob("*.npz"))
    data.load("fashion_mnist")  # the control: whole, it loads
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"is corrupt: its sha256 starts with .* delete it and fetch it again"
    ) as caught:
        data.load("fashion_mnist")
    assert "\n" not in str(caught.value)


def test_made_sets_are_kept_and_read_back(folders, monkeypatch):
    from tinyml_edu.data import glyphs

    made = data.load("glyphs32", "test", size=10)
    monkeypatch.setattr(glyphs, "make", lambda **_: pytest.fail("rendered again"))
    again = data.load("glyphs32", "test", size=10)
    assert np.array_equal(made.x, again.x)
    assert again.info == {"source": "made", "classes": 10, "difficulty": 1.0, "seed": 0, "size": 10}


@pytest.mark.parametrize("change", [{"size": 11}, {"difficulty": 0.5}, {"seed": 1}, {"classes": 36}])
def test_other_parameters_are_not_read_from_the_cache(change, folders):
    made = data.load("glyphs32", "test", size=10)
    other = data.load("glyphs32", "test", **({"size": 10} | change))
    assert not np.array_equal(made.x, other.x)


def test_a_damaged_cache_is_made_again(folders):
    made = data.load("glyphs32", "test", size=10)
    path = next((folders / "cache").rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(data.load("glyphs32", "test", size=10).x, made.x)
    assert store.cached_arrays(path.stem) is not None


def test_a_cache_that_cannot_be_written_is_no_error(folders):
    (folders / "cache").write_text("a file where the folder should be")
    assert len(data.load("glyphs32", "test", size=10)) == 10


def test_tensors_are_nchw_between_minus_one_and_one(rng):
    x = rng.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    x[0, 0, 0], x[0, 0, 1] = 0, 255
    tensor = data.to_tensor(x)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor[0, :, 0, 0], torch.full((3,), -1.0))
    assert torch.equal(tensor[0, :, 0, 1], torch.full((3,), 1.0))
    # Division and subtraction each round by at most half an ulp of a number up to 2.
    expected = torch.from_numpy(x.astype(np.float64) / 127.5 - 1).permute(0, 3, 1, 2)
    assert (tensor - expected).abs().max() <= 2**-23


def test_float_features_are_only_reordered(rng):
    x = rng.standard_normal((2, 49, 10, 1)).astype(np.float32)
    assert np.array_equal(data.to_tensor(x).numpy(), x.transpose(0, 3, 1, 2))


def test_examples_without_a_channel_axis_are_refused():
    with pytest.raises(UsageError, match="add the missing axis"):
        data.to_tensor(np.zeros((2, 8, 8), np.uint8))


def test_a_data_set_with_too_few_labels_is_refused():
    with pytest.raises(UsageError, match="3 examples but 2 labels"):
        Dataset("x", "train", np.zeros((3, 1, 1, 1), np.uint8), np.zeros(2, np.int64), ("a",))


def test_loading_does_not_import_torch():
    code = (
        "import sys; from tinyml_edu import data; data.load('digits'); data.names(); data.card('digits'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
