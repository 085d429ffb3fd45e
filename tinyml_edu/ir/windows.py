"""Sliding windows over an image: signed padding and im2col, shared by float and integer kernels.

A kernel gets its buffer, a signed (top, left) offset and the shape of the output it has to fill.  The
bottom and the right edge follow from that shape, so that computing a patch of the output from a patch
of the input is the same call as computing all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Size = tuple[int, int]
"""(height, width) or (rows, columns)."""

CHUNK_ELEMENTS = 1 << 20
"""Columns of im2col made at a time: 4 MB in float32, small enough for a level-2 or level-3 cache."""


class Slide(NamedTuple):
    """A kernel that slides over an image: its geometry without any data.

    ``offset`` is the signed (top, left) padding and ``out`` the (OH, OW) to compute.
    """

    kernel: Size
    stride: Size
    dilation: Size
    offset: Size
    out: Size

    @classmethod
    def of(cls, attrs: Any, kernel: Size, out_shape: tuple[int, ...]) -> Slide:
        """Return the slide of a convolution or pooling node that fills ``out_shape`` (N, OH, OW, C)."""
        dilation = getattr(attrs, "dilation", (1, 1))
        return cls(kernel, attrs.stride, dilation, attrs.padding[:2], (out_shape[1], out_shape[2]))

    @property
    def extent(self) -> Size:
        """The (height, width) of padded input that all outputs together read."""
        (oh, ow), (kh, kw), (sh, sw), (dh, dw) = self.out, self.kernel, self.stride, self.dilation
        return (oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1

    def frame(self, x: np.ndarray, fill: float = 0) -> np.ndarray:
        """Return ``x`` (N, H, W, C) as seen by a frame (N, *extent, C).

        Row 0 of the frame is row ``-top`` of ``x``; a negative offset crops.  What lies outside ``x``
        holds ``fill``.  A view is returned where nothing lies outside.
        """
        n, h, w, c = x.shape
        (top, left), (height, width) = self.offset, self.extent
        y0, y1 = max(0, -top), min(h, height - top)
        x0, x1 = max(0, -left), min(w, width - left)
        inside = x[:, y0 : max(y0, y1), x0 : max(x0, x1), :]
        if inside.shape[1:3] == (height, width):
            return inside
        frame = np.full((n, height, width, c), fill, x.dtype)
        if inside.size:
            y0, x0 = y0 + top, x0 + left
            frame[:, y0 : y0 + inside.shape[1], x0 : x0 + inside.shape[2], :] = inside
        return frame

    def taps(self, frame: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield ``(ky, kx, view)``: for each kernel tap the (N, OH, OW, C) inputs that it meets."""
        (oh, ow), (sh, sw), (dh, dw) = self.out, self.stride, self.dilation
        for ky in range(self.kernel[0]):
            for kx in range(self.kernel[1]):
                rows = slice(ky * dh, ky * dh + (oh - 1) * sh + 1, sh)
                columns = slice(kx * dw, kx * dw + (ow - 1) * sw + 1, sw)
                yield ky, kx, frame[:, rows, columns, :]

    def reduce(self, x: np.ndarray, by: np.ufunc, fill: float) -> np.ndarray:
        """Return (N, OH, OW, C), each window of ``x`` reduced; ``fill`` stands in for the padding."""
        result = np.full((x.shape[0], *self.out, x.shape[3]), fill, x.dtype)
        for _, _, view in self.taps(self.frame(x, fill)):
            by(result, view, out=result)
        return result

    def im2col(self, frame: np.ndarray) -> np.ndarray:
        """Return (N·OH·OW, KH·KW·C): row by row the inputs under each output pixel."""
        sn, sh, sw, sc = frame.strides
        shape = (frame.shape[0], *self.out, *self.kernel, frame.shape[3])
        strides = (
            *(sn, sh * self.stride[0], sw * self.stride[1]),
            *(sh * self.dilation[0], sw * self.dilation[1], sc),
        )
        view = np.lib.stride_tricks.as_strided(frame, shape, strides, writeable=False)
        return view.reshape(frame.shape[0] * self.out[0] * self.out[1], -1)


def nearest(size: int, out: int, attrs: Any) -> np.ndarray:
    """Return int64 (out,): the row of ``size`` that each of ``out`` rows copies, see `attrs.ResizeNearest`.

    The ratio and its multiples are float32, as in TensorFlow Lite's reference kernel.
    """
    aligned = attrs.align_corners and out > 1
    ratio = np.float32(size - 1) / np.float32(out - 1) if aligned else np.float32(size) / np.float32(out)
    offset = np.float32(0.5 if attrs.half_pixel_centers else 0)
    at = (np.arange(out, dtype=np.float32) + offset) * ratio
    rows = np.floor(at.astype(np.float64) + 0.5) if attrs.align_corners else np.floor(at)
    return np.minimum(rows.astype(np.int64), size - 1)


def batches(n: int, elements_each: int) -> Iterator[slice]:
    """Yield slices of ``range(n)`` whose work, ``elements_each`` per item, stays near `CHUNK_ELEMENTS`."""
    step = max(1, CHUNK_ELEMENTS // max(1, elements_each))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))
