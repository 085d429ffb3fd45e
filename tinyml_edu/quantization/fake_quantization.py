"""Rounding that can be trained: to the values of codes forwards, with a surrogate gradient backwards.

Under bf16 autocast every quantizer still computes in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..ir.graph import Quant
from .activations import Range

EDGE = 2.0**-16
"""Slack of the clip range in steps, so that its ends belong to it: the largest weight over its own, rounded
scale may exceed q_max.  Beside 255 a float32 has steps of ``2**-16``."""

SMALLEST_STEP = float(np.finfo(np.float32).tiny) * 256


class _FakeQuantize(torch.autograd.Function):
    """``step * round(clip(x / step, low, high))`` and its surrogate gradients, see `fake_quantize`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
        ctx.ends = low - EDGE, high + EDGE
        u = x / step
        codes = u.clamp(*ctx.ends).round_()
        ctx.save_for_backward(u, step, *([codes] if ctx.needs_input_grad[1] else []))
        return codes * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad, (u, step, *codes) = grads[0], ctx.saved_tensors
        grad_x = torch.ops.aten.hardtanh_backward(grad, u, *ctx.ends)  # 0 where u was clipped
        grad_step = None
        if codes:  # grad * (codes - u) inside, grad * codes outside
            grad_step = (grad * codes[0]).addcmul_(grad_x, u, value=-1).sum_to_size(step.shape)
        return grad_x, grad_step, None, None


def fake_quantize(x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """Return ``step * round(clip(x / step, low, high))``: the value of the nearest code.

    Parameters
    ----------
    x : Tensor
        Real values; computed in float32, or in float64 if it is.
    step : Tensor
        The scale, > 0; broadcasts against ``x``.
    low, high : float
        Smallest and largest code minus the zero point, whole numbers.

    Notes
    -----
    Rounding has the derivative 0 almost everywhere, so the backward pass takes another one.  To ``x`` the
    gradient passes as it is inside the clip range, ends included, and not at all outside (straight-through
    estimator [1]_).  To ``step``, if it asks for a gradient, passes ``round(x / step) - x / step`` inside,
    ``low`` or ``high`` outside [2]_, eq. 3.

    References
    ----------
    .. [1] Bengio et al., 2013.  https://arxiv.org/abs/1308.3432
    .. [2] Esser et al., ICLR 2020.  https://arxiv.org/abs/1902.08153

    Examples
    --------
    >>> x = torch.tensor([-9.0, 0.4, 1.2, 3.0], requires_grad=True)
    >>> y = fake_quantize(x, torch.tensor([0.5]), -4, 3)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([-2.0, 0.5, 1.0, 1.5], [0.0, 1.0, 1.0, 0.0])
    """
    if x.dtype is not torch.float64:
        x, step = x.float(), step.float()
    result: Tensor = _FakeQuantize.apply(x, step, low, high)
    return result


class FakeQuantize(nn.Module):
    """Round a tensor to the values of its codes; a straight-through estimator carries the gradient back.

    Parameters
    ----------
    quant : Quant
        Scale, zero point, width and, for weights, the axis of the channels *in the layout of the input*.
    symmetric : bool
        Weights: codes lie in ``[-q_max, q_max]`` instead of ``[q_min, q_max]``.

    Attributes
    ----------
    scale : Tensor
        float32, (1,) or (channels,).
    low, high : int
        Smallest and largest code minus the zero point.
    """

    scale: Tensor

    def __init__(self, quant: Quant, *, symmetric: bool = False) -> None:
        super().__init__()
        if not np.all(quant.scale > 0) or (symmetric and np.any(quant.zero_point)):
            raise UsageError("a quantizer needs positive scales, and zero point 0 if it is symmetric")
        if quant.axis is None and quant.scale.size != 1:
            raise UsageError(f"{quant.scale.size} scales need an axis; pass Quant(scale, zero_point, axis)")
        if not symmetric and np.unique(quant.zero_point).size != 1:
            raise UsageError("an affine quantizer has one zero point; use one quantizer for each channel")
        (q_min, q_max), zero_point = quant.limits, int(quant.zero_point[0])
        self.zero_point, self.bits, self.axis = zero_point, quant.bits, quant.axis
        self.low, self.high = (-q_max, q_max) if symmetric else (q_min - zero_point, q_max - zero_point)
        self._keep(torch.tensor(quant.scale, dtype=torch.float32))

    def _keep(self, scale: Tensor) -> None:
        self.register_buffer("scale", scale)

    def step(self) -> Tensor:
        """Return the scales that the codes have now, positive, float32 (1,) or (channels,)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        step = self.step()
        if self.axis is not None:
            step = step.reshape([-1 if i == self.axis else 1 for i in range(x.ndim)])
        return fake_quantize(x, step, self.low, self.high)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, zero_point={self.zero_point}, scales={self.scale.numel()}"

    def range(self) -> Range:
        """Return the real values of the smallest and the largest code; `affine_params` undoes it exactly."""
        step = float(self.step().detach().reshape(()))
        return step * self.low, step * self.high


class LearnedStepSize(FakeQuantize):
    """A quantizer whose scale is trained with the weights (LSQ, Esser et al. 2020); the zero point stays.

    Parameters
    ----------
    quant, symmetric
        As in `FakeQuantize`; the scale is the start value.
    elements : int
        Values that share one scale: of a weight tensor or channel, or of one image's activation.

    Notes
    -----
    The gradient of a step sums over all its values while a weight has a gradient of its own; scaled by
    ``1 / sqrt(elements * q_max)`` both move by a similar share of themselves ([1]_, section 2.2).  ``q_max``
    is the largest code in magnitude, counted from the zero point.

    References
    ----------
    .. [1] Esser et al., ICLR 2020.  https://arxiv.org/abs/1902.08153
    """

    scale: nn.Parameter

    def __init__(self, quant: Quant, *, symmetric: bool = False, elements: int) -> None:
        if elements < 1:
            raise UsageError(f"a step size belongs to at least one value, got elements={elements}")
        super().__init__(quant, symmetric=symmetric)
        self.gradient_scale = 1 / (elements * max(self.high, -self.low)) ** 0.5

    def _keep(self, scale: Tensor) -> None:
        self.scale = nn.Parameter(scale)

    def step(self) -> Tensor:
        # An optimizer step may cross zero.
        step = self.scale.abs().clamp_min(SMALLEST_STEP)
        return step.detach() + (step - step.detach()) * self.gradient_scale
