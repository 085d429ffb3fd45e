"""``glyphs32``: letters and digits over photographic texture, 32×32 RGB, rendered in seconds.

Each image is a character of one of 21 fonts, turned, scaled, seen in perspective, tinted, partly covered,
blended over a patch of a photograph at 64×64, averaged to 32×32, blurred, lit unevenly, and made noisy.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import UsageError
from . import rendering
from .rendering import FONTS

VERSION = 1
"""Raised whenever the same call gives other images."""

TEN = "ABEFGHKPRS"
"""The ten default classes: letters of which several differ in one stroke."""

ALL = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

_STREAMS = {"train": 0, "validation": 1, "test": 2}
_COLUMNS = 40
_SIDE = 64  # rendered at twice the size and averaged
_BATCH = 500


def class_names(classes: int = 10) -> tuple[str, ...]:
    """Return the characters of the 10 or 36 classes.

    Raises
    ------
    UsageError
        If ``classes`` is neither.

    Examples
    --------
    >>> "".join(class_names(10))
    'ABEFGHKPRS'
    """
    if classes not in (10, 36):
        raise UsageError(f"glyphs32 has 10 or 36 classes, not {classes}")
    return tuple(TEN if classes == 10 else ALL)


def parameters(size: int, *, split: str, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the uniform numbers that determine all images but their noise.

    Returns
    -------
    labels : ndarray
        int64 (size,); each run of ``classes`` images, counted from the first, holds every class once.
    u : ndarray
        float64 (size, 40) in [0, 1).
    """
    rng = np.random.default_rng([seed, _STREAMS[split], classes])
    return balanced_draws(rng, size, classes)


def balanced_draws(rng: np.random.Generator, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int64 (size,), every class once in each run of ``classes``, and uniforms (size, 40)."""
    blocks = -(-size // classes)
    u = rng.random((blocks * classes, _COLUMNS))
    labels = u[:, 0].reshape(blocks, classes).argsort(axis=1).reshape(-1)
    return labels[:size].astype(np.int64), u[:size]


def make(
    *, split: str, size: int, classes: int = 10, difficulty: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Render one split.

    Parameters
    ----------
    split : {"train", "validation", "test"}
        Each has a random stream of its own.
    size : int
        Number of images; a larger split begins with the images of a smaller one.
    classes : {10, 36}
    difficulty : float
        0 (upright, clear letters) to 2; 1 is what the reference figures were measured on.
    seed : int

    Returns
    -------
    x : ndarray
        uint8 (size, 32, 32, 3).
    y : ndarray
        int64 (size,).

    Raises
    ------
    UsageError
        If a parameter is outside its range.
    """
    names = class_names(classes)
    if size < 1 or not 0 <= difficulty <= 2 or seed < 0:
        raise UsageError("glyphs32 needs size >= 1, difficulty in 0 to 2 and seed >= 0")
    labels, u = parameters(size, split=split, classes=classes, seed=seed)
    noise = np.random.default_rng([seed, _STREAMS[split], classes, 1])
    x = np.empty((size, _SIDE // 2, _SIDE // 2, 3), np.uint8)
    for start in range(0, size, _BATCH):
        rows = slice(start, start + _BATCH)
        characters = [names[label] for label in labels[rows]]
        x[rows] = _render(characters, u[rows], float(difficulty), noise)
    return x, labels


def _render(
    characters: list[str], u: np.ndarray, difficulty: float, noise: np.random.Generator
) -> np.ndarray:
    """Return uint8 (n, 32, 32, 3) for the characters and uniform numbers (n, 40)."""
    ground = np.stack([rendering.texture(row[1:6], _SIDE) for row in u]).astype(np.float32)
    ink = _masks(characters, u, difficulty)  # (n, 64, 64, 1) in 0 to 1
    colour = _colours(ground, ink, u, difficulty)  # (n, 1, 1, 3)
    opacity = (1 - 0.25 * difficulty * u[:, 25]).astype(np.float32)[:, None, None, None]
    x = ground + ink * opacity * (colour - ground)
    x = rendering.blurred(rendering.halved(x), np.minimum(1.0, 0.8 * difficulty * u[:, 26] ** 2))
    x = _lit(x, u, difficulty)
    level = (2 + 14 * difficulty * u[:, 27] ** 2).astype(np.float32)[:, None, None, None]
    return rendering.to_uint8(x + level * noise.standard_normal(x.shape, np.float32))


def _masks(characters: list[str], u: np.ndarray, difficulty: float) -> np.ndarray:
    """Return the ink of each image, with a covered part missing, float32 (n, 64, 64, 1) in 0 to 1."""
    half = 29 * (1 - 0.38 * difficulty * u[:, 7])
    room = np.maximum(0, 30 - 0.8 * half)  # how far the centre may move so that most of the ink stays inside
    centre = 32 + (2 * u[:, 8:10] - 1) * (difficulty * 0.7 * room)[:, None]
    angle = (2 * u[:, 10] - 1) * math.radians(28) * difficulty
    jitter = (2 * u[:, 11:19].reshape(-1, 4, 2) - 1) * 0.22 * difficulty
    aspect = 1 + (2 * u[:, 19] - 1) * 0.2 * difficulty
    maps = rendering.homographies(rendering.quads(centre, half, angle, jitter, aspect=aspect))
    masks = np.empty((len(u), _SIDE, _SIDE), np.uint8)
    for i, character in enumerate(characters):
        font = FONTS[int(u[i, 6] * len(FONTS))]
        masks[i] = rendering.warp(rendering.glyph_mask(font, character), maps[i], _SIDE)
    return _covered(masks, centre, half, u, difficulty)[..., None].astype(np.float32) / np.float32(255)


def _covered(
    masks: np.ndarray, centre: np.ndarray, half: np.ndarray, u: np.ndarray, difficulty: float
) -> np.ndarray:
    """Remove a rectangle of ink from some images, as if the ground lay over it."""
    axis = np.arange(_SIDE)
    middle = centre + (2 * u[:, 20:22] - 1) * 0.7 * half[:, None]  # (n, 2) x, y
    reach = half[:, None] * (0.12 + 0.28 * u[:, 22:24])  # (n, 2) half width and half height
    reach *= (u[:, 24] < 0.3 * difficulty)[:, None]
    in_x = np.abs(axis - middle[:, :1]) < reach[:, :1]  # (n, 64)
    in_y = np.abs(axis - middle[:, 1:]) < reach[:, 1:]
    return masks * ~(in_y[:, :, None] & in_x[:, None, :])


def _colours(ground: np.ndarray, ink: np.ndarray, u: np.ndarray, difficulty: float) -> np.ndarray:
    """Return one colour an image, lighter or darker than the ground under its ink: (n, 1, 1, 3)."""
    weight = ink.sum(axis=(1, 2)) + np.float32(1e-3)
    under = ((ground * ink).sum(axis=(1, 2)) + np.float32(1e-3) * 128) / weight  # (n, 3)
    brightness = under.mean(axis=1)
    # The nearer the ground is to white, the likelier is dark ink, so that contrast is not lost by clipping.
    sign = np.where(u[:, 28] < brightness / 255, -1.0, 1.0)
    room = np.where(sign > 0, 255 - brightness, brightness)
    lowest = 0.8 - 0.35 * difficulty
    contrast = sign * room * np.clip(lowest + (0.95 - lowest) * u[:, 29], 0.2, 1)
    tint = (2 * u[:, 30:33] - 1) * 40 * difficulty
    return np.clip(under + contrast[:, None] + tint, 0, 255).astype(np.float32)[:, None, None, :]


def _lit(x: np.ndarray, u: np.ndarray, difficulty: float) -> np.ndarray:
    """Multiply by a brightness that changes linearly across the picture."""
    axis = np.linspace(-1, 1, x.shape[1], dtype=np.float32)
    slope = ((2 * u[:, 33:35] - 1) * 0.3 * difficulty).astype(np.float32)
    gain = (1 + (2 * u[:, 35] - 1) * 0.25 * difficulty).astype(np.float32)
    plane = slope[:, 0, None, None] * axis[None, None, :] + slope[:, 1, None, None] * axis[None, :, None]
    return x * (gain[:, None, None] + plane)[..., None]
