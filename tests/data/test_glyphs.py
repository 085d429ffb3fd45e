"""The made image sets are a function of their parameters; their geometry is exact."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyml_edu.data import glyphs, presence, rendering
from tinyml_edu.errors import UsageError

GOLDEN = Path(__file__).with_name("golden_glyphs.npz")


def golden_images() -> dict[str, np.ndarray]:
    """Return the images of the golden file; ``python tests/data/test_glyphs.py`` writes it."""
    return {
        "glyphs32": glyphs.make(split="test", size=10)[0],
        "glyphs32_36": glyphs.make(split="test", size=12, classes=36, difficulty=0.5)[0],
        "glyph_presence": presence.make(split="test", size=2)[0],
    }


def digest(labels: np.ndarray, u: np.ndarray) -> str:
    return hashlib.sha256(labels.astype("<i8").tobytes() + u.astype("<f8").tobytes()).hexdigest()[:16]


def test_labels_and_parameters_are_the_same_everywhere():
    """They come from NumPy's generator alone, so they are compared exactly."""
    assert digest(*glyphs.parameters(1000, split="train", classes=10, seed=0)) == "758839ce41e1b695"
    assert digest(*presence.parameters(1000, split="train", seed=0)) == "b960f647510c6676"
    assert digest(*glyphs.parameters(1000, split="train", classes=10, seed=1)) != "758839ce41e1b695"


@pytest.mark.parametrize("name", ["glyphs32", "glyphs32_36", "glyph_presence"])
def test_pixels_are_the_same_within_one_grey_level(name):
    """FreeType and libjpeg round differently between versions; anything more is another set."""
    with np.load(GOLDEN) as golden:
        expected = golden[name].astype(int)
    difference = np.abs(golden_images()[name].astype(int) - expected)
    assert difference.max() <= 1


def test_the_pixel_comparison_sees_another_seed():
    with np.load(GOLDEN) as golden:
        expected = golden["glyphs32"].astype(int)
    other = glyphs.make(split="test", size=10, seed=1)[0].astype(int)
    assert np.abs(other - expected).max() > 1


@pytest.mark.parametrize("maker", [glyphs, presence])
def test_a_larger_split_begins_with_a_smaller_one(maker):
    large, small = maker.make(split="train", size=33), maker.make(split="train", size=7)
    assert np.array_equal(large[1][:7], small[1])
    assert np.array_equal(large[0][:7], small[0])


def test_the_noise_goes_on_across_batches(monkeypatch):
    whole = glyphs.make(split="train", size=12)[0]
    monkeypatch.setattr(glyphs, "_BATCH", 5)
    assert np.array_equal(glyphs.make(split="train", size=12)[0], whole)


@pytest.mark.parametrize("classes", [10, 36])
def test_each_run_of_images_holds_every_class_once(classes):
    labels, _ = glyphs.parameters(classes * 20, split="train", classes=classes, seed=0)
    assert (np.sort(labels.reshape(20, classes), axis=1) == np.arange(classes)).all()
    assert len(np.unique(labels.reshape(20, classes)[:, 0])) > 1  # in another order each time


def test_streams_of_splits_and_seeds_differ():
    streams = [
        glyphs.parameters(10, split=split, classes=10, seed=seed)[1].tobytes()
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    assert len(set(streams)) == 6


@pytest.mark.parametrize("font", rendering.FONTS)
def test_every_font_draws_every_character_and_no_two_alike(font):
    """A font that lacks a character draws the same empty box for all of them."""
    masks = {c: np.asarray(rendering.glyph_mask(font, c)) for c in glyphs.ALL}
    assert all(mask.shape == (96, 96) and mask.max() > 200 for mask in masks.values())
    assert len({mask.tobytes() for mask in masks.values()}) == 36
    ink = np.argwhere(np.max(list(masks.values()), axis=0) > 0)
    margin = (rendering.MASK_PIXELS - rendering.GLYPH_PIXELS) // 2
    assert ink.min() >= margin
    assert ink.max() < rendering.MASK_PIXELS - margin


def test_the_ten_classes_are_among_the_36():
    assert set(glyphs.TEN) <= set(glyphs.ALL)
    assert (len(set(glyphs.TEN)), len(set(glyphs.ALL))) == (10, 36)


def contrast(difficulty: float) -> float:
    """Return how far the ink's colour stands off the ground, mean over 100 images, in grey levels."""
    _, u = glyphs.parameters(100, split="train", classes=10, seed=0)
    ground = np.stack([rendering.texture(row[1:6], 64) for row in u]).astype(np.float32)
    ink = glyphs._masks(["A"] * 100, u, difficulty)
    under = (ground * ink).sum((1, 2)) / ink.sum((1, 2))
    colours = glyphs._colours(ground, ink, u, difficulty)[:, 0, 0]
    return float(np.abs(colours.mean(1) - under.mean(1)).mean())


def test_difficulty_lowers_the_contrast_and_zero_stands_upright():
    assert contrast(0.0) > contrast(1.0) > contrast(2.0)
    _, u = glyphs.parameters(50, split="train", classes=10, seed=0)
    u[:, 6] = 0.0  # one font
    upright = glyphs._masks(["A"] * 50, u, 0.0)
    assert (upright == upright[0]).all()
    assert not (glyphs._masks(["A"] * 50, u, 1.0) == upright).all()


def test_a_sign_is_more_than_its_plate():
    """Without label and plate nothing is drawn; with the label a letter is."""
    labels, u = presence.parameters(60, split="train", seed=0)
    plates, letters = presence._layers(labels, u, 1.0)
    assert (letters.sum((1, 2)) > 0).tolist() == labels.astype(bool).tolist()
    has_plate = plates.sum((1, 2)) > 0
    assert has_plate[labels == 1].all()
    empty = has_plate[labels == 0].mean()
    assert 0 < empty < 1  # some scenes without a sign hold an empty plate


def test_labels_of_presence_are_balanced():
    labels, _ = presence.parameters(100, split="train", seed=0)
    assert labels.sum() == 50


points = st.floats(-20, 20)


@settings(max_examples=50)
@given(
    st.lists(st.floats(-0.3, 0.3), min_size=8, max_size=8), st.floats(5, 40), st.floats(-3, 3), points, points
)
def test_a_homography_takes_the_corners_back_to_the_mask(jitter, half, angle, x, y):
    quad = rendering.quads(
        np.array([[x, y]]), np.array([half]), np.array([angle]), np.array(jitter).reshape(1, 4, 2)
    )
    a, b, c, d, e, f, g, h = rendering.homographies(quad)[0]
    for (px, py), expected in zip(quad[0], np.array([[0, 0], [96, 0], [96, 96], [0, 96]])):
        scale = g * px + h * py + 1
        back = np.array([a * px + b * py + c, d * px + e * py + f]) / scale
        # Backward-stable solution of an 8×8 system with a condition number below 1e8 in these ranges.
        assert np.abs(back - expected).max() < 1e-5


def test_a_quad_without_jitter_is_a_turned_square():
    quad = rendering.quads(
        np.array([[10.0, 20.0]]), np.array([5.0]), np.array([math.pi / 2]), np.zeros((1, 4, 2))
    )
    # A quarter turn counter-clockwise on a screen takes the upper left corner to the lower left.
    assert np.allclose(quad[0], [[5, 25], [5, 15], [15, 15], [15, 25]])


def test_halving_takes_the_mean_of_four_pixels(rng):
    x = rng.integers(0, 256, (2, 4, 6, 3)).astype(np.float32)
    expected = [[x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for j in range(3)] for i in range(2)]
    # Sums of four integers below 2**10 are exact in float32, and so is a quarter of them.
    assert np.array_equal(rendering.halved(x), np.moveaxis(np.array(expected), 2, 0))


def test_blur_is_the_binomial_kernel_and_keeps_a_constant():
    x = np.zeros((2, 9, 9, 1), np.float32)
    x[:, 4, 4] = 256
    taps = np.array([1, 4, 6, 4, 1])
    out = rendering.blurred(x, np.array([0.0, 1.0]))
    assert np.array_equal(out[0], x[0])
    assert np.array_equal(out[1, 2:7, 2:7, 0], np.outer(taps, taps))
    flat = np.full((1, 5, 5, 3), 100, np.float32)
    assert np.array_equal(rendering.blurred(flat, np.array([1.0])), flat)


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"difficulty": -0.1}, {"difficulty": 2.1}, {"difficulty": math.nan}, {"seed": -1}]
)
@pytest.mark.parametrize("maker", [glyphs, presence])
def test_parameters_outside_their_range_are_refused(maker, bad):
    with pytest.raises(UsageError, match="needs size >= 1"):
        maker.make(**({"split": "train", "size": 3} | bad))


def test_eleven_classes_are_refused():
    with pytest.raises(UsageError, match="10 or 36 classes, not 11"):
        glyphs.make(split="train", size=3, classes=11)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden_images())
    print(digest(*glyphs.parameters(1000, split="train", classes=10, seed=0)))
    print(digest(*presence.parameters(1000, split="train", seed=0)))
