"""Product quantization: a linear layer whose rows are put together from few short pieces [1]_ [2]_.

Each row of the weight (O, I) is cut into ``I / d`` pieces of d values.  The O pieces at the same place in
their rows are clustered into k codewords (d,), so that a row is ``I / d`` labels of ``ceil(log2 k)`` bits.

The layer needs no reconstructed weight to run: the dot products of the input's pieces with all codewords are
a table of ``I / d * k`` numbers, of which every output sums ``I / d``.

References
----------
.. [1] Jégou et al., Product Quantization for Nearest Neighbor Search, TPAMI 2011.
.. [2] Gong et al., Compressing Deep Convolutional Networks using Vector Quantization, 2014, section 3.2.
       https://arxiv.org/abs/1412.6115
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from .checking import is_whole, require_tensor

MAX_STEPS = 100


class ProductCode(NamedTuple):
    """A weight (O, I) as codewords and labels.

    Attributes
    ----------
    codebooks : Tensor (pieces, k, d) of float32
        Codewords for each of the ``pieces = I / d`` places in a row.
    labels : Tensor (O, pieces) of int64
        0 to k - 1.
    """

    codebooks: Tensor
    labels: Tensor

    def weight(self) -> Tensor:
        """Return the reconstructed weight (O, I)."""
        places = torch.arange(self.labels.shape[1], device=self.labels.device)
        return self.codebooks[places, self.labels].flatten(1)  # (O, pieces, d) -> (O, I)


def product_quantize(weight: Tensor, subvector: int, codewords: int, *, seed: int = 0) -> ProductCode:
    """Return the codewords and labels of a weight, by k-means at each place in the rows.

    Parameters
    ----------
    weight : Tensor (O, I)
    subvector : int
        d, values in a piece; it divides I.
    codewords : int
        k, 2 to 256, for each place.
    seed : int
        Of the first codewords, which are drawn as in k-means++.

    Raises
    ------
    UsageError
        If the weight is not a finite matrix, or a size does not fit.
    """
    require_tensor(weight, "the weight")
    if weight.ndim != 2 or weight.numel() == 0 or not torch.isfinite(weight).all():
        raise UsageError("product quantization needs a matrix (O, I) of finite weights")
    if not is_whole(subvector, 1, weight.shape[1]) or weight.shape[1] % subvector:
        raise UsageError(f"subvector={subvector} does not divide I = {weight.shape[1]}; take a divisor")
    if not is_whole(codewords, 2, 256):
        raise UsageError(f"product quantization takes 2 to 256 codewords, got {codewords}")
    rows = weight.detach().double()
    points = rows.reshape(len(rows), -1, subvector).transpose(0, 1)  # (pieces, O, d)
    centres = _spread(points, codewords, seed)
    for _ in range(MAX_STEPS):
        labels = _nearest(points, centres)
        moved = _means(points, centres, labels)
        if torch.equal(moved, centres):
            break
        centres = moved
    codebooks = centres.float()
    return ProductCode(codebooks, _nearest(points, codebooks.double()).T.contiguous())


def pack_labels(labels: Tensor, codewords: int) -> Tensor:
    """Return labels (n,) as a stream (bytes,) of uint8, ``ceil(log2 codewords)`` bits each, highest first.

    Examples
    --------
    >>> [f"{byte:08b}" for byte in pack_labels(torch.tensor([5, 0, 3]), codewords=8).tolist()]
    ['10100001', '10000000']
    """
    shifts = np.arange(label_bits(codewords))[::-1]
    bits = labels.reshape(-1, 1).cpu().numpy() >> shifts & 1
    return torch.from_numpy(np.packbits(bits.astype(np.uint8)))


def unpack_labels(packed: Tensor, count: int, codewords: int) -> Tensor:
    """Return the labels (count,) of int64 in a stream that `pack_labels` made."""
    width = label_bits(codewords)
    bits = np.unpackbits(packed.cpu().numpy(), count=count * width).reshape(count, width)
    return torch.from_numpy(bits.astype(np.int64) @ (1 << np.arange(width)[::-1])).to(packed.device)


def label_bits(codewords: int) -> int:
    """Return the bits of one label, ``ceil(log2 codewords)``."""
    return (codewords - 1).bit_length()


class ProductQuantizedLinear(nn.Module):
    """A linear layer that runs on codewords and packed labels, without its weight.

    Parameters
    ----------
    code : ProductCode
    bias : Tensor (O,), optional

    Attributes
    ----------
    codebooks : Parameter (pieces, k, d)
        Float32, trainable.
    packed : buffer (bytes,) of uint8
        The labels, row after row, see `pack_labels`.
    """

    packed: Tensor

    def __init__(self, code: ProductCode, bias: Tensor | None = None) -> None:
        super().__init__()
        pieces, self.codewords, subvector = code.codebooks.shape
        self.in_features, self.out_features = pieces * subvector, len(code.labels)
        self.codebooks = nn.Parameter(code.codebooks.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("packed", pack_labels(code.labels, self.codewords).to(code.labels.device))

    @classmethod
    def from_linear(cls, linear: nn.Linear, subvector: int, codewords: int, *, seed: int = 0) -> Self:
        """Return ``linear`` with its weight product-quantized, see `product_quantize`; the bias stays."""
        return cls(product_quantize(linear.weight, subvector, codewords, seed=seed), linear.bias)

    @property
    def nbytes(self) -> int:
        """Bytes of codebooks, packed labels and bias: all that the layer keeps."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    @property
    def macs(self) -> int:
        """Multiplications for one input: ``k * I``, against ``O * I`` of the dense layer."""
        return self.codewords * self.in_features

    def code(self) -> ProductCode:
        """Return the code; its ``weight()`` is that of the equal dense layer."""
        labels = unpack_labels(self.packed, self.out_features * len(self.codebooks), self.codewords)
        return ProductCode(self.codebooks, labels.view(self.out_features, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O) of an input (..., I) by table lookup."""
        _, labels = self.code()
        pieces = x.unflatten(-1, (len(self.codebooks), -1))  # (..., pieces, d)
        table = torch.einsum("...pd,pkd->...pk", pieces, self.codebooks)
        places = torch.arange(len(self.codebooks), device=x.device)
        y = table[..., places, labels].sum(-1)  # (..., O, pieces) -> (..., O)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Return the sizes, for ``print``."""
        pieces, k, d = self.codebooks.shape
        return f"{self.in_features}, {self.out_features}, {pieces} pieces, {k} codewords of {d} values"


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the label (pieces, O) of the nearest of ``centres`` (pieces, k, d); of equals the first."""
    return _squared_distances(points, centres).argmin(dim=2)


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return (pieces, O, k), from differences: no square is below 0 or cancels."""
    return torch.stack([(points - c[:, None]).square().sum(-1) for c in centres.unbind(1)], dim=2)


def _spread(points: Tensor, k: int, seed: int) -> Tensor:
    """Draw first codewords (pieces, k, d) from the points, far ones rather (k-means++) [1]_.

    References
    ----------
    .. [1] Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(len(points))
    distances = torch.ones(points.shape[:2], dtype=torch.float64)
    chosen: list[Tensor] = []
    for _ in range(k):
        # Once every point is a codeword, all distances are 0 and any may be drawn again.
        weights = torch.where(distances.sum(1, keepdim=True) > 0, distances, torch.ones_like(distances))
        drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]  # (pieces,)
        chosen.append(points[place, drawn.to(points.device)])
        new = (points - chosen[-1][:, None]).square().sum(-1).cpu()
        distances = new if len(chosen) == 1 else torch.minimum(distances, new)
    return torch.stack(chosen, dim=1)


def _means(points: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of each codeword's points; one without points moves onto the worst-served point."""
    k = centres.shape[1]
    member = nn.functional.one_hot(labels, k).double()  # (pieces, O, k)
    counts = member.sum(1)[..., None]
    moved = torch.where(counts > 0, member.transpose(1, 2) @ points / counts.clamp(min=1), centres)
    error = (points - torch.take_along_dim(centres, labels[..., None], dim=1)).square().sum(-1)  # (pieces, O)
    for place, unused in (counts[..., 0] == 0).nonzero().tolist():
        worst = int(error[place].argmax())
        if error[place, worst] > 0:
            moved[place, unused] = points[place, worst]
            error[place, worst] = 0.0
    return moved
