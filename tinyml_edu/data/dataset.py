"""A split of a data set in memory, and the one way its images become network inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dataset:
    """Examples and labels of one split.

    Attributes
    ----------
    name : str
        Name of the data set, as in :func:`tinyml_edu.data.names`.
    split : str
        ``"train"``, ``"validation"`` or ``"test"``.
    x : ndarray
        Images uint8 (n, H, W, C), or features float32 (n, H, W, C).
    y : ndarray
        Labels int64 (n,), each in ``[0, len(classes))``.
    classes : tuple of str
        What each label stands for.
    info : dict
        Where the examples came from: ``source``, ``file`` and the parameters of a made set.

    Examples
    --------
    >>> two = Dataset("dots", "test", np.zeros((2, 1, 1, 3), np.uint8), np.array([0, 1]), ("a", "b"))
    >>> len(two), two.take([1]).y.tolist()
    (2, [1])
    """

    name: str
    split: str
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise UsageError(f"data set {self.name!r}: {len(self.x)} examples but {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Any) -> Dataset:
        """Return the examples at ``indices`` (a slice, or integers (k,)), in that order."""
        return Dataset(self.name, self.split, self.x[indices], self.y[indices], self.classes, dict(self.info))


def normalised(x: np.ndarray) -> np.ndarray:
    """Return images as float32 in [-1, 1]: ``x / 127.5 - 1`` for uint8, floats unchanged.

    One normalisation for all image sets: an int8 network then has an input scale of 2/255 whatever it was
    trained on.

    Parameters
    ----------
    x : ndarray
        uint8 pixels or floats, any shape.

    Examples
    --------
    >>> normalised(np.array([0, 255], np.uint8))
    array([-1.,  1.], dtype=float32)
    """
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(x, np.float32)


def to_tensor(x: np.ndarray) -> torch.Tensor:
    """Return examples (n, H, W, C) as a float32 tensor (n, C, H, W), normalised to [-1, 1].

    Parameters
    ----------
    x : ndarray
        uint8 (n, H, W, C), scaled by :func:`normalised`, or floats, only reordered.

    Raises
    ------
    UsageError
        If ``x`` does not have four axes.
    """
    import torch

    if x.ndim != 4:
        raise UsageError(f"expected examples of shape (n, H, W, C), got {x.shape}; add the missing axis")
    return torch.from_numpy(normalised(x)).permute(0, 3, 1, 2).contiguous()
