"""A trained XNOR layer, stored as bits and run by the kernel in C."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ..binary import BinaryConv2d, BinaryLinear
from .xnor import PackedBits, XnorKernel, pack_bits


class PackedLayer:
    """A trained XNOR layer as it is stored and run: bits, a scale for each channel, the kernel in C.

    Parameters
    ----------
    layer : BinaryLinear or BinaryConv2d
        With ``method="xnor"``, and ``groups=1``.

    Attributes
    ----------
    bits : PackedBits
        The signs of the weights (O, I) or (O, I·KH·KW).
    nbytes : int
        Bytes of bits, scales and biases.

    Raises
    ------
    UsageError
        If the layer does not have binary inputs, or has groups.

    Notes
    -----
    The result equals the layer's own in float32, bit for bit: the sums are the same whole numbers, and the
    scales are applied by the same operations.
    """

    def __init__(self, layer: BinaryLinear | BinaryConv2d) -> None:
        if layer.method != "xnor":
            raise UsageError(
                f"a layer with method={layer.method!r} has real inputs; only 'xnor' can be packed"
            )
        if isinstance(layer, BinaryConv2d) and layer.groups != 1:
            raise UsageError("a convolution with groups cannot be packed; use groups=1")
        self.layer = copy.deepcopy(layer).float().cpu().eval()
        self.bits: PackedBits = pack_bits(self.layer.weight.detach().flatten(1).numpy())
        scales = [self.layer.alpha(), *([] if self.layer.bias is None else [self.layer.bias])]
        self.nbytes = self.bits.nbytes + sum(4 * tensor.numel() for tensor in scales)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output (N, O) or (N, O, OH, OW) for a float32 input, computed from bits."""
        layer = self.layer
        if isinstance(layer, BinaryLinear):
            return layer._finish(self._product(x.T).T, layer._scale(x), -1)
        framed = layer._framed(x)
        columns = F.unfold(framed, layer.kernel_size, layer.dilation, 0, layer.stride)  # (N, I·KH·KW, OH·OW)
        sums = self._product(columns.transpose(0, 1).flatten(1)).reshape(-1, len(x), columns.shape[2])
        spans = [(k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation)]
        height = (framed.shape[2] - spans[0] - 1) // layer.stride[0] + 1
        images = sums.transpose(0, 1).unflatten(2, (height, -1)).contiguous()
        return layer._finish(images, layer._scale(framed), 1)

    def _product(self, columns: Tensor) -> Tensor:
        """Return the sums (O, n) as float32 for columns (k, n)."""
        kernel = XnorKernel(self.bits, columns.shape[1])
        return torch.from_numpy(kernel(kernel.pack(columns.contiguous().numpy()))).float()
