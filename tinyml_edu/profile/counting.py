"""Parameters and MACs of any PyTorch module, counted the plain way: by shapes, as the module runs.

`profile` counts the captured graph, layer by layer; this counts what a forward pass does, works for modules
that cannot be captured, and is the independent second count that the tests compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .._modes import evaluating
from ..errors import UsageError


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters: frozen ones too, a shared one once, buffers not."""
    return sum(p.numel() for p in model.parameters())


def conv2d_macs(layer: nn.Conv2d, height: int, width: int) -> int:
    """Return the MACs of ``layer`` for one input of ``height`` by ``width``; the bias is not a MAC.

    Each of the ``O * H_out * W_out`` outputs sums ``C_in / groups * K_h * K_w`` products.  ``padding`` of the
    layer must be given in numbers.

    Examples
    --------
    >>> conv2d_macs(nn.Conv2d(3, 8, 3, stride=2, padding=1), 32, 32)
    55296
    """
    if isinstance(layer.padding, str):
        raise UsageError(f"padding={layer.padding!r}: give the padding of the convolution in numbers")
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            (height, width), layer.kernel_size, layer.stride, layer.padding, layer.dilation
        )
    ]
    products = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return layer.out_channels * math.prod(size) * products


def model_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Return the MACs of all convolutions and linear layers of one forward pass for the first of ``example``.

    A layer that runs twice counts twice.  The mode of every submodule is restored and no hook stays behind.

    Parameters
    ----------
    model : nn.Module
    example : Tensor, shape (N, ...)
        Only the first sample is run.
    """
    total = 0

    def add(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += conv2d_macs(layer, *inputs[0].shape[-2:])
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    counted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in counted]
    try:
        with evaluating(model), torch.no_grad():
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return total


def weight_bytes(counts: Sequence[int], bits: Sequence[int]) -> int:
    """Return the bytes of tensors of ``counts[i]`` elements at ``bits[i]`` each.

    The codes of a tensor are packed without gaps and every tensor starts at a byte.

    Examples
    --------
    >>> weight_bytes([3, 5], [4, 1])  # 12 bits in 2 bytes, 5 bits in 1
    3
    """
    return sum(-(-n * b // 8) for n, b in zip(counts, bits))
