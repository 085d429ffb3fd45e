"""Pieces that the made image sets are rendered from: glyph masks, perspective, photographic texture.

Everything random comes in as arrays of uniform numbers, so that the parameters of an image are a function
of the seed alone; only the rasters depend on the versions of FreeType and libjpeg, by a grey level or so.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
"""Fonts in the matplotlib wheel that hold the Latin capitals and digits."""

MASK_PIXELS = 96
"""Side of a glyph mask; the glyph's longer side is :data:`GLYPH_PIXELS`, centred."""

GLYPH_PIXELS = 80


@functools.cache
def glyph_mask(font: str, character: str) -> Image.Image:
    """Return the 8-bit mask of one character, 96×96 with its ink in the central 80×80.

    Parameters
    ----------
    font : str
        One of :data:`FONTS`.
    character : str
        One capital letter or digit.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    large = ImageFont.truetype(str(path), 160, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = large.getbbox(character)
    ink = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=large)
    factor = GLYPH_PIXELS / max(ink.size)
    size = (max(1, round(ink.width * factor)), max(1, round(ink.height * factor)))
    mask = Image.new("L", (MASK_PIXELS, MASK_PIXELS))
    corner = ((MASK_PIXELS - size[0]) // 2, (MASK_PIXELS - size[1]) // 2)
    mask.paste(ink.resize(size, Image.Resampling.LANCZOS), corner)
    return mask


def quads(
    centre: np.ndarray,
    half: np.ndarray,
    angle: np.ndarray,
    jitter: np.ndarray,
    *,
    aspect: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Return where the corners of a square mask land in the picture.

    Parameters
    ----------
    centre : ndarray
        (n, 2) x and y in pixels.
    half : ndarray
        (n,) half the side in pixels.
    angle : ndarray
        (n,) radians, counter-clockwise in a picture whose y points down.
    jitter : ndarray
        (n, 4, 2) displacement of each corner, in units of ``half``: the perspective.
    aspect : ndarray or float
        Factor on the width.

    Returns
    -------
    ndarray
        (n, 4, 2), the corners in the order (0, 0), (1, 0), (1, 1), (0, 1).
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) + jitter  # (n, 4, 2)
    corners = corners * np.stack([half * aspect, half], -1)[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)  # (n, 2, 2)
    return corners @ turn.swapaxes(1, 2) + centre[:, None]


def homographies(to: np.ndarray, side: float = MASK_PIXELS) -> np.ndarray:
    """Return the eight numbers (n, 8) by which Pillow maps the picture back onto a square mask.

    Parameters
    ----------
    to : ndarray
        (n, 4, 2) corners in the picture, see :func:`quads`.
    side : float
        Side of the mask in pixels.

    Notes
    -----
    A picture point (x, y) takes the mask's value at
    ``((a x + b y + c) / (g x + h y + 1), (d x + e y + f) / (g x + h y + 1))``; the four corners give eight
    linear equations for a .. h (Hartley and Zisserman, Multiple View Geometry, 4.1).
    """
    source = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float) * side
    n = len(to)
    x, y = to[..., 0], to[..., 1]  # (n, 4)
    u, v = np.broadcast_to(source[:, 0], (n, 4)), np.broadcast_to(source[:, 1], (n, 4))
    one, zero = np.ones((n, 4)), np.zeros((n, 4))
    upper = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    lower = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    matrix = np.concatenate([upper, lower], axis=1)  # (n, 8, 8)
    return np.linalg.solve(matrix, np.concatenate([u, v], axis=1)[..., None])[..., 0]


def warp(mask: Image.Image, homography: np.ndarray, side: int) -> np.ndarray:
    """Return ``mask`` seen through ``homography`` (8,) in a picture uint8 (side, side)."""
    seen = mask.transform(
        (side, side), Image.Transform.PERSPECTIVE, homography.tolist(), Image.Resampling.BILINEAR
    )
    return np.asarray(seen)


@functools.cache
def photographs() -> tuple[Image.Image, ...]:
    """Return scikit-learn's two sample photographs (a temple roof, a flower), 640×427 RGB."""
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(image) for image in load_sample_images().images)


def texture(u: np.ndarray, side: int, *, smallest: int = 48, largest: int = 200) -> np.ndarray:
    """Return a patch of a photograph as uint8 (side, side, 3).

    Parameters
    ----------
    u : ndarray
        (5,) uniform numbers: photograph, size of the patch, its x and y, mirrored or not.
    side : int
        Side of the result in pixels.
    smallest, largest : int
        Range of the patch's side in the photograph, in pixels.
    """
    photo = photographs()[int(u[0] * 2)]
    size = smallest * (largest / smallest) ** u[1]
    left, top = u[2] * (photo.width - size), u[3] * (photo.height - size)
    box = (left, top, left + size, top + size)
    patch = np.asarray(photo.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    return patch[:, ::-1] if u[4] < 0.5 else patch


def halved(x: np.ndarray) -> np.ndarray:
    """Return the means of 2×2 blocks: (n, H, W, C) to (n, H / 2, W / 2, C)."""
    rows = x[:, 0::2] + x[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) / 4


def blurred(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return float32 (n, H, W, C) mixed with its binomial blur (1 4 6 4 1) / 16 along H and W.

    Parameters
    ----------
    weight : ndarray
        (n,) 0 keeps a picture sharp, 1 blurs it by a standard deviation of 1 pixel.
    """
    soft = x
    for axis in (1, 2):
        padded = np.pad(soft, [(2, 2) if a == axis else (0, 0) for a in range(4)], mode="edge")
        soft = np.zeros_like(x)
        for offset, tap in enumerate((1, 4, 6, 4, 1)):
            window = [slice(None)] * 4
            window[axis] = slice(offset, offset + x.shape[axis])
            soft += np.float32(tap / 16) * padded[tuple(window)]
    return x + weight[:, None, None, None].astype(np.float32) * (soft - x)


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Return float pictures in 0 to 255 rounded to uint8, clipped."""
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
