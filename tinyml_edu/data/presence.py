"""``glyph_presence``: is there a sign in the scene?  96×96 RGB, two classes, like visual wake words.

A sign is a plate with one letter on it.  A scene without a sign may hold an empty plate, so that finding a
plate is not enough; the letter is what counts.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UsageError
from . import rendering
from .glyphs import ALL, balanced_draws
from .rendering import FONTS, MASK_PIXELS

VERSION = 1
"""Raised whenever the same call gives other images."""

_STREAMS = {"train": 10, "validation": 11, "test": 12}
_SIDE = 192  # rendered at twice the size and averaged
_BATCH = 100


def class_names() -> tuple[str, ...]:
    """Return the two classes."""
    return ("no sign", "sign")


def parameters(size: int, *, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int64 (size,) and uniform numbers (size, 40); each pair of scenes has both labels."""
    rng = np.random.default_rng([seed, _STREAMS[split]])
    return balanced_draws(rng, size, 2)


def make(*, split: str, size: int, difficulty: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Render one split.

    Parameters
    ----------
    split : {"train", "validation", "test"}
        Each has a random stream of its own.
    size : int
        Number of scenes; a larger split begins with the scenes of a smaller one.
    difficulty : float
        0 to 2: smaller, more tilted, fainter signs and more empty plates.
    seed : int

    Returns
    -------
    x : ndarray
        uint8 (size, 96, 96, 3).
    y : ndarray
        int64 (size,), 1 where there is a sign.

    Raises
    ------
    UsageError
        If a parameter is outside its range.
    """
    if size < 1 or not 0 <= difficulty <= 2 or seed < 0:
        raise UsageError("glyph_presence needs size >= 1, difficulty in 0 to 2 and seed >= 0")
    labels, u = parameters(size, split=split, seed=seed)
    noise = np.random.default_rng([seed, _STREAMS[split], 1])
    x = np.empty((size, _SIDE // 2, _SIDE // 2, 3), np.uint8)
    for start in range(0, size, _BATCH):
        rows = slice(start, start + _BATCH)
        x[rows] = _render(labels[rows], u[rows], float(difficulty), noise)
    return x, labels


def _render(labels: np.ndarray, u: np.ndarray, difficulty: float, noise: np.random.Generator) -> np.ndarray:
    """Return uint8 (n, 96, 96, 3)."""
    x = np.stack([rendering.texture(row[1:6], _SIDE, smallest=120, largest=400) for row in u])
    x = x.astype(np.float32)
    plates, letters = _layers(labels, u, difficulty)
    opacity = (1 - 0.25 * difficulty * u[:, 24]).astype(np.float32)[:, None, None, None]
    plate_colour = (40 + 200 * u[:, 25:28]).astype(np.float32)[:, None, None]
    x += plates[..., None] * opacity * (plate_colour - x)
    x += letters[..., None] * opacity * (_letter_colours(plate_colour, u, difficulty) - x)
    x = rendering.blurred(rendering.halved(x), np.minimum(1.0, 0.7 * difficulty * u[:, 29]))
    level = (2 + 12 * difficulty * u[:, 30] ** 2).astype(np.float32)[:, None, None, None]
    return rendering.to_uint8(x + level * noise.standard_normal(x.shape, np.float32))


def _letter_colours(plate: np.ndarray, u: np.ndarray, difficulty: float) -> np.ndarray:
    """Return the ink (n, 1, 1, 3): away from the plate's brightness, towards black or white."""
    brightness = plate.mean(axis=-1, keepdims=True)
    end = np.where(brightness > 128, np.float32(10), np.float32(245))
    share = (0.95 - 0.4 * difficulty * u[:, 28]).astype(np.float32)[:, None, None, None]
    return plate + share * (end - plate)


def _layers(labels: np.ndarray, u: np.ndarray, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of plate and letter, each float32 (n, 192, 192) in 0 to 1."""
    half = 14 + 34 * u[:, 8] ** (1 + 0.5 * difficulty)  # 14 to 48 of 192 pixels
    centre = half[:, None] + (_SIDE - 2 * half[:, None]) * u[:, 9:11]
    angle = (2 * u[:, 11] - 1) * math.radians(20) * difficulty
    jitter = (2 * u[:, 12:20].reshape(-1, 4, 2) - 1) * 0.15 * difficulty
    plate_maps = rendering.homographies(rendering.quads(centre, half, angle, jitter))
    letter_maps = rendering.homographies(rendering.quads(centre, 0.8 * half, angle, jitter))
    empty_plate = u[:, 20] < 0.4 * difficulty
    plates = np.zeros((len(u), _SIDE, _SIDE), np.float32)
    letters = np.zeros_like(plates)
    for i, label in enumerate(labels):
        if label or empty_plate[i]:
            plates[i] = rendering.warp(_plate(int(u[i, 21] * 3)), plate_maps[i], _SIDE)
        if label:
            font = FONTS[int(u[i, 22] * len(FONTS))]
            mask = rendering.glyph_mask(font, ALL[int(u[i, 23] * len(ALL))])
            letters[i] = rendering.warp(mask, letter_maps[i], _SIDE)
    return plates / np.float32(255), letters / np.float32(255)


def _plate(kind: int) -> Image.Image:
    """Return the mask of a square (0), rounded (1) or round (2) plate, 96×96."""
    mask = Image.new("L", (MASK_PIXELS, MASK_PIXELS))
    box = (1, 1, MASK_PIXELS - 2, MASK_PIXELS - 2)
    radius = (0, MASK_PIXELS // 5, MASK_PIXELS // 2)[kind]
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=radius, fill=255)
    return mask
