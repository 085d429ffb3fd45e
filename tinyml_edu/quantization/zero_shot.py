"""Zero-shot calibration (ZeroQ): inputs made from a network's batch norms, for want of data.

A batch norm remembers mean and variance of what it saw in training.  Inputs that produce these statistics
again exercise the activations over about the ranges that the training data did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._modes import evaluating
from .._threads import torch_threads
from ..errors import UsageError
from .checking import require_module

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def zero_shot_calibration(
    model: nn.Module,
    shape: tuple[int, ...],
    n: int = 64,
    *,
    iterations: int = 100,
    learning_rate: float = 0.1,
    bounds: tuple[float, float] | None = (-1.0, 1.0),
    seed: int = 0,
) -> Tensor:
    """Return inputs whose activations have the statistics that the batch norms of ``model`` recorded.

    Gaussian noise is moved by Adam to minimize, summed over the batch norms (eq. 3 of [1]_),

        mean over channels of (mean(z) - running_mean)^2 + (std(z) - running_std)^2,

    ``z`` the input of a batch norm over the batch of all ``n``.

    Parameters
    ----------
    model : nn.Module
        With batch norms that track statistics; it is left as it was, gradients included.
    shape : tuple of int
        (C, H, W) or (F,) of one input.
    n : int, default=64
        Inputs to make, at least 2.
    iterations : int, default=100
    learning_rate : float
        Of Adam, in units of the input.
    bounds : (float, float) or None
        Smallest and largest value of an input; images of this package lie in [-1, 1].  They stand in for the
        term of [1]_ on the input itself, which supposes pixels of mean 0 and variance 1.
    seed : int
        Of the noise; the global random numbers do not move.

    Returns
    -------
    torch.Tensor (n, \\*shape)
        float32, as calibration for `quantize`.

    Raises
    ------
    UsageError
        If the model has no batch norm with statistics, or one that is not finite, does not take such inputs,
        or an argument is out of range.

    References
    ----------
    .. [1] Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020.
       https://arxiv.org/abs/2001.00281
    """
    require_module(model)
    sizes = shape if isinstance(shape, tuple | list) else ()
    if not (n >= 2 and iterations >= 1 and learning_rate > 0 and min(sizes, default=0) >= 1):
        raise UsageError(
            f"zero_shot_calibration needs n >= 2, iterations >= 1, learning_rate > 0 and a shape of positive "
            f"sizes; got {n}, {iterations}, {learning_rate} and {shape}"
        )
    if bounds is not None and not bounds[0] < bounds[1]:
        raise UsageError(f"bounds must be (low, high) with low < high, got {bounds}; None switches them off")
    first = next(model.parameters(), torch.empty(0))
    noise = torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed))
    low, high = bounds or (-torch.inf, torch.inf)
    x = noise.to(first.device, torch.float32).clamp(low, high).requires_grad_()
    adam = torch.optim.Adam([x], lr=learning_rate)
    with torch_threads(1), evaluating(model), _reading(model) as losses:
        for _ in range(iterations):
            losses.clear()
            _run(model, x)
            (x.grad,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), [x])
            adam.step()
            x.data.clamp_(low, high)
    if not bool(torch.isfinite(x).all()):
        raise UsageError(
            "the inputs became NaN or infinite; check the batch norms, or lower the learning rate"
        )
    return x.detach().cpu()


def _run(model: nn.Module, x: Tensor) -> None:
    """Run the model for what its batch norms see."""
    try:
        model(x)
    except RuntimeError as error:  # told by a layer of PyTorch that got another shape
        raise UsageError(f"the model does not take {tuple(x.shape)}: {str(error).splitlines()[0]}") from None


def statistics_error(model: nn.Module, x: Tensor) -> float:
    """Return what `zero_shot_calibration` minimizes, for inputs ``x`` (n, ...)."""
    with torch.no_grad(), evaluating(model), _reading(model) as losses:
        _run(model, x)
    return float(torch.stack(list(losses.values())).sum())


@contextmanager
def _reading(model: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """Yield a dict into which every forward pass writes the loss of each batch norm that it runs."""
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    if not norms:
        raise UsageError(
            f"{type(model).__name__} has no batch norm with running statistics; calibrate with real inputs"
        )
    losses: dict[nn.Module, Tensor] = {}

    def read(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        losses[norm] = mismatch(norm, inputs[0])

    handles = [norm.register_forward_pre_hook(read) for norm in norms]
    try:
        yield losses
    finally:
        for handle in handles:
            handle.remove()


def mismatch(norm: nn.BatchNorm1d | nn.BatchNorm2d, z: Tensor) -> Tensor:
    """Return the loss of one batch norm whose input is ``z`` (N, C, ...): squared errors, mean over C."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    dims = [d for d in range(z.dim()) if d != 1]
    variance, mean = torch.var_mean(z, dims)  # unbiased, as the running variance
    std, wanted = (variance + norm.eps).sqrt(), (norm.running_var + norm.eps).sqrt()
    return F.mse_loss(mean, norm.running_mean) + F.mse_loss(std, wanted)
