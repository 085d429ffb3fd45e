"""Lab 2: the library's fixed-point functions on torch tensors, for questions that build on question 5."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..ir import fixed_point

if TYPE_CHECKING:
    import torch


def quantize_multipliers(m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return multiplier and exponent, int64 (O,), of each factor of ``m`` (O,)."""
    import torch

    multiplier, exponent = fixed_point.quantize_multipliers(m.numpy())
    return torch.from_numpy(multiplier.astype(np.int64)), torch.from_numpy(exponent.astype(np.int64))


def requant_single(acc: torch.Tensor, multiplier: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Return `ir.fixed_point.requant_single` of tensors, int64."""
    return _tensor(fixed_point.requant_single(acc.numpy(), np.asarray(multiplier), np.asarray(exponent)))


def requant_double(acc: torch.Tensor, multiplier: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Return `ir.fixed_point.requant_double` of tensors, int64."""
    return _tensor(fixed_point.requant_double(acc.numpy(), np.asarray(multiplier), np.asarray(exponent)))


def _tensor(values: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.asarray(values, np.int64))
