"""Batches of images on their way into a network: augmented for training, plain for evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .._modes import evaluating
from ..data.dataset import Dataset
from ..errors import UsageError


def augment(
    x: Tensor,
    indices: Tensor,
    *,
    flip: bool = False,
    shift: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the batch ``x[indices]``, normalised, randomly mirrored and shifted.

    Parameters
    ----------
    x : Tensor
        uint8 or float (N, H, W, C).
    indices : Tensor
        int64 (n,).
    flip : bool
        Mirror each image left to right with probability 1/2.
    shift : int
        Move each image by up to this many pixels along H and W; what enters is mirrored at the edge.
        Less than H and W.
    generator : torch.Generator, optional
        On the processor, so that all devices draw the same.

    Returns
    -------
    Tensor
        float32 (n, C, H, W) in channels_last memory format.
    """
    n, (height, width) = len(indices), x.shape[1:3]
    if not flip and not shift:
        return as_input(x[indices])
    columns = torch.arange(width).expand(n, width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    moves = torch.randint(-shift, shift + 1, (2, n, 1), generator=generator)
    rows = _mirrored(torch.arange(height) + moves[0], height)  # (n, H)
    columns = _mirrored(columns + moves[1], width)  # (n, W)
    rows, columns = rows.to(x.device), columns.to(x.device)
    return as_input(x[indices[:, None, None], rows[:, :, None], columns[:, None, :]])


def evaluate(model: nn.Module, dataset: Dataset, *, batch_size: int = 256) -> float:
    """Return the share (0 to 1) of ``dataset`` that ``model`` classifies correctly, in float32."""
    logits = predict_logits(model, dataset.x, batch_size=batch_size)
    return float((logits.argmax(1).numpy() == dataset.y).mean())


@torch.no_grad()
def predict_logits(model: nn.Module, x: np.ndarray, *, batch_size: int = 256) -> Tensor:
    """Return the logits of ``model`` in evaluation mode, computed in float32.

    Parameters
    ----------
    model : nn.Module
        Its mode is put back afterwards.
    x : ndarray
        Examples (n, H, W, C), uint8 or float, as in a :class:`~tinyml_edu.data.Dataset`.

    Returns
    -------
    Tensor
        float32 (n, classes), on the processor.
    """
    if len(x) == 0:
        raise UsageError("there are no examples to evaluate; the data set is empty")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        batches = (shared_tensor(x[i : i + batch_size]) for i in range(0, len(x), batch_size))
        return torch.cat([model(as_input(batch.to(device))).float().cpu() for batch in batches])


def shared_tensor(x: np.ndarray) -> Tensor:
    """Share memory with ``x``, or copy it where torch could not: read-only or not contiguous."""
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))


def as_input(batch: Tensor) -> Tensor:
    """Turn (n, H, W, C) into the float32 (n, C, H, W) of :func:`tinyml_edu.data.to_tensor`, no copy."""
    x = batch.permute(0, 3, 1, 2)
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Reflect positions in ``(-size, 2 * size - 1)`` into ``[0, size)`` without repeating the edge."""
    return (size - 1) - ((size - 1) - index.abs()).abs()
