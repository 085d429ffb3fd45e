"""Weights, and inputs, of one bit: BinaryConnect, binary weights with a scale, XNOR-Net.

Each layer keeps real weights for the optimizer and computes with their signs.  The sign of 0 is +1.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnknownNameError, UsageError
from .checking import require_tensor
from .runtime.xnor import pack_bits, xnor_gemm

__all__ = [
    "METHODS",
    "BinaryConv2d",
    "BinaryLinear",
    "binarize",
    "clip_weights",
    "pack_bits",
    "sign_ste",
    "xnor_gemm",
]

METHODS = ("binary_connect", "binary_weight", "xnor")
"""What has one bit and what multiplies the sums: weights, nothing (BinaryConnect [1]_); weights, ``alpha``
(Binary-Weight-Networks [2]_); weights and inputs, ``alpha`` (XNOR-Net [2]_).

References
----------
.. [1] Courbariaux et al., BinaryConnect, NeurIPS 2015.  https://arxiv.org/abs/1511.00363
.. [2] Rastegari et al., XNOR-Net, ECCV 2016.  https://arxiv.org/abs/1603.05279
"""


class _Straight(torch.autograd.Function):
    """Give the second argument forward; give the gradient to the first where it lies in [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, binary: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        return binary.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (real,) = ctx.saved_tensors
        return gradients[0] * (real.abs() <= 1), None


def sign_ste(x: Tensor) -> Tensor:
    """Return +1 where ``x >= 0`` and -1 elsewhere; the gradient passes where ``|x| <= 1`` [1]_.

    The true derivative is 0 almost everywhere.  The straight-through estimator takes that of the hard tanh,
    ``clip(x, -1, 1)``: a value far outside stops moving, or it would grow without any effect on its sign.

    References
    ----------
    .. [1] Hubara et al., Binarized Neural Networks, NeurIPS 2016, eq. (4).  https://arxiv.org/abs/1602.02830

    Examples
    --------
    >>> x = torch.tensor([-2.0, -0.5, 0.0, 1.0], requires_grad=True)
    >>> signs = sign_ste(x)
    >>> signs.sum().backward()
    >>> signs.tolist(), x.grad.tolist()
    ([-1.0, -1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0])
    """
    return cast(Tensor, _Straight.apply(x, _signs(x)))


def _signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def binarize(w: Tensor, *, stochastic: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Return weights of +1 and -1, of the shape of ``w``, with the gradient of :func:`sign_ste` [1]_.

    Parameters
    ----------
    w : Tensor
        Real weights of any shape.
    stochastic : bool, default=False
        Draw +1 with probability ``clip((w + 1) / 2, 0, 1)``, so that the mean is ``clip(w, -1, 1)``; else
        take the sign.
    generator : torch.Generator, optional
        Of the draws.

    Raises
    ------
    UsageError
        If a weight is NaN.

    References
    ----------
    .. [1] Courbariaux et al., BinaryConnect, NeurIPS 2015, eq. (1) to (3).
           https://arxiv.org/abs/1511.00363
    """
    require_tensor(w, "what is binarized")
    if torch.isnan(w).any():
        raise UsageError("the weights hold NaN, which has no sign; check the training that made them")
    if not stochastic:
        return sign_ste(w)
    up = ((w.detach() + 1) / 2).clamp(0, 1)
    draws = torch.rand(w.shape, generator=generator, device=w.device, dtype=torch.float32)
    return cast(Tensor, _Straight.apply(w, torch.where(draws < up, 1.0, -1.0).to(w.dtype)))


class _Binary:
    """What the two layers share; ``weight`` (O, ...) stays real."""

    weight: Any
    bias: Any
    training: Any
    method: str
    stochastic: bool
    input_scale: bool

    def _configure(self, method: str, stochastic: bool, input_scale: bool) -> None:
        if method not in METHODS:
            raise UnknownNameError("binary method", method, METHODS)
        if input_scale and method != "xnor":
            raise UsageError("input_scale=True belongs to binary inputs; use method='xnor'")
        self.method, self.stochastic, self.input_scale = method, stochastic, input_scale

    def alpha(self) -> Tensor:
        """Return the scales (O,): the mean ``|w|`` of each output channel, XNOR-Net eq. (6), or ones.

        It is the least-squares optimum of ``||w - alpha sign(w)||``.  Its own gradient, ``sign(w) / n`` of
        the sum over the channel, follows by the chain rule; the paper's section 3.1 keeps only the weight's
        own term of that sum.
        """
        if self.method == "binary_connect":
            return torch.ones(len(self.weight), device=self.weight.device, dtype=self.weight.dtype)
        return self.weight.abs().flatten(1).mean(dim=1)

    def _weight_signs(self) -> Tensor:
        return binarize(self.weight, stochastic=self.stochastic and self.training)

    def _finish(self, sums: Tensor, inputs: Tensor | None, axis: int) -> Tensor:
        """Return ``sums * alpha * K + bias`` with the output channels along ``axis``."""
        shape = [1] * sums.ndim
        shape[axis] = -1
        y = sums * self.alpha().reshape(shape)
        y = y if inputs is None else y * inputs
        return y if self.bias is None else y + self.bias.reshape(shape)


class BinaryLinear(_Binary, nn.Linear):
    """``y = alpha * (x @ sign(w).T) + bias``; with ``method="xnor"`` of ``sign(x)``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default=True
    method : str, default="xnor"
        One of `METHODS`.
    stochastic : bool, default=False
        Draw the signs of the weights while training, see :func:`binarize`; evaluation takes the sign.
    input_scale : bool, default=False
        Multiply by ``K``, the mean ``|x|`` of each row, which makes ``sign(x)`` nearest to ``x``.

    Notes
    -----
    x (N, I), weight (O, I), y (N, O).  The sums are whole numbers below ``2**24``, hence exact in float32.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        method: str = "xnor",
        stochastic: bool = False,
        input_scale: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self._configure(method, stochastic, input_scale)

    def forward(self, x: Tensor) -> Tensor:
        inputs = sign_ste(x) if self.method == "xnor" else x
        return self._finish(F.linear(inputs, self._weight_signs()), self._scale(x), -1)

    def _scale(self, x: Tensor) -> Tensor | None:
        return x.abs().mean(dim=-1, keepdim=True) if self.input_scale else None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, method={self.method!r}"


class BinaryConv2d(_Binary, nn.Conv2d):
    """Convolution with ``alpha * sign(w)``; with ``method="xnor"`` of ``sign(x)``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As in ``nn.Conv2d``; padding is a number (or two) and holds zeros.
    method, stochastic : str, bool
        As in `BinaryLinear`.
    input_scale : bool, default=False
        Multiply by ``K``: the mean ``|x|`` over channels and window, padding included, XNOR-Net eq. (11).

    Notes
    -----
    x (N, C, H, W), weight (O, I, KH, KW), y (N, O, OH, OW).  With binary inputs a padded 0 is +1, as any 0:
    a bit has no third value.  After a ReLU every sign is +1: put a batch norm, not a ReLU, before this layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        method: str = "xnor",
        stochastic: bool = False,
        input_scale: bool = False,
    ) -> None:
        if isinstance(padding, str):
            raise UsageError(f"padding={padding!r} has no size; pass the number of rows and columns")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self._configure(method, stochastic, input_scale)

    def forward(self, x: Tensor) -> Tensor:
        framed = self._framed(x)
        inputs = sign_ste(framed) if self.method == "xnor" else framed
        sums = F.conv2d(inputs, self._weight_signs(), None, self.stride, 0, self.dilation, self.groups)
        return self._finish(sums, self._scale(framed), 1)

    def _framed(self, x: Tensor) -> Tensor:
        rows, columns = cast(tuple[int, int], self.padding)
        return F.pad(x, (columns, columns, rows, rows))

    def _scale(self, framed: Tensor) -> Tensor | None:
        """Return K (N, 1, OH, OW): the mean over the channels, averaged over each window."""
        if not self.input_scale:
            return None
        size = self.kernel_size[0] * self.kernel_size[1]
        box = framed.new_full((1, 1, *self.kernel_size), 1 / size)
        means = framed.abs().mean(dim=1, keepdim=True)
        return F.conv2d(means, box, None, self.stride, 0, self.dilation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, method={self.method!r}"


@torch.no_grad()
def clip_weights(model: nn.Module) -> None:
    """Clip the real weights of binary layers to [-1, 1], in place: BinaryConnect section 2.4.

    Pass it to ``train.fit`` as ``after_step``.
    """
    for module in model.modules():
        if isinstance(module, _Binary):
            module.weight.clamp_(-1, 1)
