"""Checkpoints load as their cards say, and a damaged one is refused in one line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys

import pytest
import torch

from tinyml_edu import data, models, train, zoo
from tinyml_edu.data.dataset import Dataset
from tinyml_edu.data.manifest import entry
from tinyml_edu.errors import DataError, UnknownNameError
from tinyml_edu.zoo.checkpoints import FOLDER

NAMES = zoo.names()
RUNS = [{"seed": 0, "test_accuracy": 0.25}, {"seed": 1, "test_accuracy": 0.75}]
CARD = {"model": {"name": "resnet8", "classes": 3, "in_channels": 1, "width": 0.25}, "runs": RUNS}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(4)
    model = models.build(**CARD["model"])
    zoo.save("small", model, CARD, tmp_path)
    return model.eval(), tmp_path


def test_what_is_saved_is_what_is_loaded(saved):
    model, folder = saved
    loaded, card = zoo.load("small", folder)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["test_accuracy"] == {"mean": 0.5, "min": 0.25, "max": 0.75, "seeds": 2}
    assert zoo.names(folder) == ["small"]
    assert sorted(p.name for p in folder.iterdir()) == ["small.json", "small.safetensors"]


def test_loading_leaves_the_random_stream_alone(saved):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    zoo.load("small", saved[1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-1], lambda t: t[:20], lambda t: t[:0], lambda t: t[:-1] + b"\x55"]
)
def test_a_corrupt_checkpoint_is_refused_in_one_line(saved, damage):
    path = saved[1] / "small.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="is corrupt: its sha256 is not the card's; reinstall") as caught:
        zoo.load("small", saved[1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"classes": 4}, {"name": "vgg_lite"}, {"in_channels": 3}])
def test_a_checkpoint_of_another_network_is_refused_in_one_line(saved, change):
    path = saved[1] / "small.json"
    card = json.loads(path.read_text())
    card["model"] |= change
    path.write_text(json.dumps(card))
    with pytest.raises(DataError, match="does not fit its card") as caught:
        zoo.load("small", saved[1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "small"}'])
def test_a_corrupt_card_is_refused_in_one_line(saved, text):
    (saved[1] / "small.json").write_text(text)
    with pytest.raises(DataError, match=r"card .*small\.json is corrupt") as caught:
        zoo.load("small", saved[1])
    assert "\n" not in str(caught.value)


def test_weights_that_are_gone_are_refused(saved):
    (saved[1] / "small.safetensors").unlink()
    with pytest.raises(DataError, match="cannot read checkpoint"):
        zoo.load("small", saved[1])


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean 'vgg_lite\.glyphs32'"):
        zoo.load("vgg_lite.glyphs")


def test_every_file_in_the_folder_belongs_to_a_checkpoint():
    assert {p.stem for p in FOLDER.glob("*.safetensors")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_checkpoint_loads_and_its_card_is_complete(name):
    model, card = zoo.load(name)
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < 5_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert card["name"] == name
    assert name == f"{card['model']['name']}.{card['data']['name']}"
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(card["classes"]) == card["model"]["classes"]
    assert card["recipe"]["epochs"] == card["runs"][0]["epochs"]
    assert all(run["cpu_seconds"] > 0 and 0 < run["test_accuracy"] < 1 for run in card["runs"])
    assert train.TrainConfig(**card["recipe"])
    # Nothing about the machine that trained it.
    assert not re.search(r"/(work|home|tmp|root)\b", json.dumps(card))


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_the_data_that_is_found(name):
    card = zoo.card(name)
    if card["data"]["name"] == "glyphs32":
        assert tuple(card["classes"]) == data.glyphs.class_names(card["data"]["parameters"]["classes"])
    assert {split: card["data"][split] for split in ("train", "validation", "test")} == entry(
        card["data"]["name"]
    ).splits


@pytest.fixture(scope="module")
def recipes(repository):
    """The module ``benchmarks/train_zoo.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("train_zoo", repository / "benchmarks" / "train_zoo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_zoo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_card_states_the_recipe_that_is_committed(name, recipes):
    recipe, card = recipes.RECIPES[name], zoo.card(name)
    assert (recipe.model, recipe.data) == (card["model"]["name"], card["data"]["name"])
    # TrainConfig fills in what the card leaves out: seed, progress, device.
    assert train.TrainConfig(**card["recipe"]) == recipe.config
    assert [run["seed"] for run in card["runs"]] == list(recipe.seeds[: len(card["runs"])])


def test_a_recipe_ends_in_a_checkpoint_and_a_second_call_only_reads(recipes, tmp_path, monkeypatch):
    """The whole path on digits: train two seeds, measure, save, load; then again without training."""
    config = train.TrainConfig(epochs=2, batch_size=64, learning_rate=0.05, progress=False)
    monkeypatch.setitem(recipes.RECIPES, "ds_cnn.digits", recipes.Recipe("ds_cnn", "digits", config, (0, 1)))
    monkeypatch.setattr(recipes, "STATE", tmp_path / "state")
    recipes.train_one("ds_cnn.digits", tmp_path / "zoo", 2)
    model, card = zoo.load("ds_cnn.digits", tmp_path / "zoo")
    assert [run["seed"] for run in card["runs"]] == [0, 1]
    assert train.evaluate(model, data.load("digits", "test")) == card["runs"][0]["test_accuracy"]
    assert (
        card["data"]
        == {"name": "digits", "parameters": {}, "source": "scikit-learn"} | entry("digits").splits
    )
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: pytest.fail("the test split was measured again"))
    recipes.train_one("ds_cnn.digits", tmp_path / "again", 2)
    assert zoo.card("ds_cnn.digits", tmp_path / "again") == card


def measured(name: str) -> tuple[float, float]:
    """Return the accuracy on the test split now, and the one on the card."""
    model, card = zoo.load(name)
    test = data.load(card["data"]["name"], "test", **card["data"]["parameters"])
    return train.evaluate(model, test), card["runs"][0]["test_accuracy"]


def tolerance(examples: int) -> float:
    """Two images: logits that tie within rounding may fall either way on another processor."""
    return 2 / examples + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("glyphs32")])
def test_a_checkpoint_for_glyphs_is_as_accurate_as_its_card_says(name):
    now, then = measured(name)
    assert abs(now - then) <= tolerance(2000)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("cifar10")])
def test_a_checkpoint_for_cifar10_is_as_accurate_as_its_card_says(name, data_dir):
    now, then = measured(name)
    assert abs(now - then) <= tolerance(5000)


def test_the_accuracy_of_wrong_weights_is_seen():
    model, _ = zoo.load("vgg_lite.glyphs32")
    test = data.load("glyphs32", "test", size=200)
    right = train.evaluate(model, test)
    with torch.no_grad():
        model.linear.weight.copy_(model.linear.weight.flip(0))
    assert right > 0.8
    assert train.evaluate(model, Dataset("x", "test", test.x, test.y, test.classes)) < 0.3
